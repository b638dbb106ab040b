//! A binary table: its rows, and which columns there are (FITS standard 4.0, section 7.3).

use super::column::{Column, Field, tform};
use super::error::{FitsError, require};
use super::hdu::{Hdu, Wanted, find};
use super::header::Header;
use super::source::Source;
use std::collections::HashSet;

/// A binary table whose header was read and whose rows all lie within the file.
#[derive(Debug)]
pub struct Table {
    /// Keywords of the primary HDU.
    pub primary: Header,
    /// Keywords of the table's HDU.
    pub header: Header,
    /// Number of rows.
    pub rows: usize,
    /// Bytes of a row.
    pub width: usize,
    fields: Vec<Field>,
}

impl Table {
    /// Find a table and read its header.
    ///
    /// # Errors
    ///
    /// There is no such table, or it is damaged: see [`FitsError`].
    pub fn open(source: &Source<'_>, wanted: &Wanted) -> Result<Self, FitsError> {
        let (primary, Hdu { number, header, .. }) = find(source, wanted)?;
        for (key, expected) in [("BITPIX", 8), ("NAXIS", 2), ("GCOUNT", 1)] {
            let given = header.integer(key, i64::MIN, i64::MAX, if key == "GCOUNT" { Some(1) } else { None })?;
            if given != expected {
                return Err(header.invalid(key, &format!("{expected} for a binary table")));
            }
        }
        let width = header.integer("NAXIS1", 0, i64::MAX, None)?;
        let rows = header.integer("NAXIS2", 0, i64::MAX, None)?;
        let columns = header.integer("TFIELDS", 0, 999, None)?;
        if width == 0 && rows > 0 {
            return Err(header.invalid("NAXIS2", "0, as rows have no bytes (NAXIS1)"));
        }
        // The size was checked with the heap added, so that the product fits.
        let (end, length) = (header.end.saturating_add_signed(width.saturating_mul(rows)), source.length());
        if end > length {
            return Err(FitsError::Truncated(format!(
                "the {rows} rows of {width} bytes of HDU {number} should end at byte {end}, and the file ends at byte \
                 {length}: it was cut short, or NAXIS1 or NAXIS2 is wrong."
            )));
        }
        let size = |value: i64| usize::try_from(value).map_err(|_| FitsError::Unsupported("it is too large.".into()));
        let (width, rows) = (size(width)?, size(rows)?);
        let fields = fields(&header, size(columns)?, width)?;
        Ok(Self { primary: primary.header, header, rows, width, fields })
    }

    /// Names of all columns.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.name.as_str())
    }

    /// The columns with these names, or all. Case does not count unless names differ in nothing else; what is named
    /// twice is given once.
    ///
    /// # Errors
    ///
    /// A column is missing, has variable length, or its TDIM, TSCAL, TZERO or TNULL makes no sense.
    pub fn select(&self, names: Option<&[String]>) -> Result<Vec<Column>, FitsError> {
        let Some(names) = names else {
            return self.fields.iter().map(|field| Column::new(&self.header, field)).collect();
        };
        let mut seen = HashSet::new();
        let mut columns = Vec::new();
        for name in names {
            let lower = name.to_lowercase();
            let exact = self.fields.iter().find(|field| field.name == *name);
            let field = exact.or_else(|| self.fields.iter().find(|field| field.name.to_lowercase() == lower));
            let field = field.ok_or_else(|| FitsError::MissingColumn {
                name: name.clone(),
                present: self.names().map(str::to_owned).collect(),
            })?;
            if seen.insert(field.number) {
                columns.push(Column::new(&self.header, field)?);
            }
        }
        Ok(columns)
    }
}

fn fields(header: &Header, count: usize, width: usize) -> Result<Vec<Field>, FitsError> {
    let mut fields = Vec::new();
    let mut taken = HashSet::new();
    let mut offset = 0_usize;
    for number in 1..=count {
        let key = format!("TFORM{number}");
        let form = header.text(&key).and_then(|text| tform(text.as_bytes()));
        let (code, repeat, bytes) = form.ok_or_else(|| header.invalid(&key, "a form such as 1E, 8A or 20J"))?;
        let name = header.text(&format!("TTYPE{number}")).unwrap_or_default().trim_matches(' ');
        let mut name = if name.is_empty() || taken.contains(name) { format!("col{number}") } else { name.to_owned() };
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        fields.push(Field { name, number, offset, width: bytes, code, repeat });
        offset = offset.saturating_add(bytes);
    }
    require(offset == width, || {
        format!("the columns (TFORM) fill {offset} bytes of a row, and NAXIS1 is {width}; expected the same.")
    })?;
    Ok(fields)
}

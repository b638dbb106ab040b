//! The HDUs of a file: where their data lie, and which one holds the table.

use super::error::{FitsError, require};
use super::header::{BLOCK, Header};
use super::source::Source;

/// HDUs that a message lists.
const LISTED: usize = 40;

/// Which HDU is asked for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The first with a binary table.
    FirstTable,
    /// By number; the primary HDU is 0.
    Number(usize),
    /// By EXTNAME; case does not count.
    Named(String),
}

/// A header with the size of its data.
#[derive(Clone, Debug)]
pub struct Hdu {
    /// Its number.
    pub number: usize,
    /// Its keywords.
    pub header: Header,
    /// Bytes of its data without padding.
    pub size: u64,
}

impl Hdu {
    /// The HDU at byte `start`; None where the file ends or something else than an extension follows.
    fn read(source: &Source<'_>, number: usize, start: u64) -> Result<Option<Self>, FitsError> {
        let mut buffer = Vec::new();
        let begins = if start + 9 <= source.length() { source.read(start, 9, &mut buffer)? } else { b"" };
        if number == 0 {
            require(begins == b"SIMPLE  =", || {
                let gzip = if begins.starts_with(b"\x1f\x8b") { " It looks compressed by gzip." } else { "" };
                format!("it is no FITS file: it does not begin with `SIMPLE  =`.{gzip}")
            })?;
        } else if begins != b"XTENSION=" {
            return Ok(None);
        }
        let header = Header::read(source, number, start)?;
        let size = size(&header, number)?;
        Ok(Some(Self { number, header, size }))
    }

    /// Byte of the file where the next HDU begins.
    fn next(&self) -> u64 {
        // Sizes are below 2^63, so the sum fits.
        self.header.end + self.size.div_ceil(BLOCK as u64) * BLOCK as u64
    }

    /// Whether it holds a binary table.
    pub fn is_table(&self) -> bool {
        self.kind() == "BINTABLE"
    }

    fn kind(&self) -> &str {
        if self.number == 0 { "primary" } else { self.header.text("XTENSION").unwrap_or_default() }
    }

    fn name(&self) -> &str {
        self.header.text("EXTNAME").unwrap_or_default()
    }
}

/// Bytes of the data that follow a header.
fn size(header: &Header, number: usize) -> Result<u64, FitsError> {
    let bitpix = header.integer("BITPIX", -64, 64, None)?;
    if ![8, 16, 32, 64, -32, -64].contains(&bitpix) {
        return Err(header.invalid("BITPIX", "8, 16, 32, 64, -32 or -64"));
    }
    let axes = header.integer("NAXIS", 0, 999, None)?;
    if axes == 0 {
        return Ok(0);
    }
    // Saturated products are beyond every limit, or become 0 as the exact ones would.
    let mut product = 1_u128;
    for axis in 1..=axes {
        let length = natural(header, &format!("NAXIS{axis}"), None)?;
        // Random groups announce themselves by a first axis of no length.
        if axis > 1 || length > 0 || !header.is_true("GROUPS") {
            product = product.saturating_mul(length);
        }
    }
    let (parameters, groups) = (natural(header, "PCOUNT", Some(0))?, natural(header, "GCOUNT", Some(1))?);
    let bytes = u128::from(bitpix.unsigned_abs() / 8);
    let size = product.saturating_add(parameters).saturating_mul(groups).saturating_mul(bytes);
    u64::try_from(size).ok().filter(|&size| size < 1 << 62).ok_or_else(|| {
        let start = header.start;
        FitsError::Format(format!(
            "the header of HDU {number} (from byte {start}) announces 2^62 bytes of data or more (NAXIS, PCOUNT, GCOUNT)."
        ))
    })
}

fn natural(header: &Header, key: &str, default: Option<i64>) -> Result<u128, FitsError> {
    header.integer(key, 0, i64::MAX, default).map(|value| u128::from(value.unsigned_abs()))
}

/// The primary HDU, and the one that is asked for where that is another.
///
/// # Errors
///
/// It is not there or holds no binary table; a header before it is damaged; the file ends before its turn.
pub fn find(source: &Source<'_>, wanted: &Wanted) -> Result<(Hdu, Hdu), FitsError> {
    let Some(primary) = Hdu::read(source, 0, 0)? else { return Err(FitsError::MissingHdu("it is empty.".into())) };
    let mut seen: Vec<String> = Vec::new();
    let mut next = Some(primary.clone());
    while let Some(hdu) = next {
        let found = match wanted {
            Wanted::FirstTable => hdu.is_table(),
            Wanted::Number(number) => *number == hdu.number,
            Wanted::Named(name) => name.to_lowercase() == hdu.name().to_lowercase(),
        };
        if found {
            let (number, kind) = (hdu.number, hdu.kind());
            return if hdu.is_table() {
                Ok((primary, hdu))
            } else {
                Err(FitsError::MissingHdu(format!("HDU {number} ({kind}) is no binary table.")))
            };
        }
        let (end, length) = (hdu.header.end + hdu.size, source.length());
        if end > length {
            let number = hdu.number;
            return Err(FitsError::Truncated(format!(
                "the data of HDU {number} should end at byte {end}, and the file ends at byte {length}: it was cut short."
            )));
        }
        seen.push(format!("{} ({})", hdu.number, if hdu.name().is_empty() { hdu.kind() } else { hdu.name() }));
        next = Hdu::read(source, hdu.number + 1, hdu.next())?;
    }
    let asked = match wanted {
        Wanted::FirstTable => "no binary table".to_owned(),
        Wanted::Number(number) => format!("no HDU {number}"),
        Wanted::Named(name) => format!("no HDU named '{name}'"),
    };
    let more = seen.len().saturating_sub(LISTED);
    seen.truncate(LISTED);
    if more > 0 {
        seen.push(format!("and {more} more"));
    }
    Err(FitsError::MissingHdu(format!("there is {asked}; its HDUs are: {}.", seen.join(", "))))
}

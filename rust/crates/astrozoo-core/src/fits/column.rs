//! A column: its form in the file, and what it becomes in memory (FITS standard 4.0, section 7.3).

use super::error::FitsError;
use super::header::Header;
use super::value::trim;

/// Arrays of more dimensions are refused; NumPy's limit was 32 for long.
const DIMENSIONS: usize = 30;

/// What a field holds in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// `L`: a byte, `T`, `F` or 0.
    Logical,
    /// `X`: bits, the first is the highest of its byte.
    Bit,
    /// `B`: unsigned 8-bit integer.
    Byte,
    /// `I`: 16-bit integer.
    Short,
    /// `J`: 32-bit integer.
    Int,
    /// `K`: 64-bit integer.
    Long,
    /// `A`: characters.
    Character,
    /// `E`: 32-bit floating point.
    Single,
    /// `D`: 64-bit floating point.
    Double,
    /// `C`: two 32-bit floating-point numbers.
    SingleComplex,
    /// `M`: two 64-bit floating-point numbers.
    DoubleComplex,
    /// `P` and `Q`: where in the heap an array of a length of its own lies.
    Variable,
}

/// What the values of a column are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Truth values.
    Bool,
    /// Signed 8-bit integers.
    I8,
    /// Unsigned 8-bit integers.
    U8,
    /// Signed 16-bit integers.
    I16,
    /// Unsigned 16-bit integers.
    U16,
    /// Signed 32-bit integers.
    I32,
    /// Unsigned 32-bit integers.
    U32,
    /// Signed 64-bit integers.
    I64,
    /// Unsigned 64-bit integers.
    U64,
    /// 32-bit floating-point numbers.
    F32,
    /// 64-bit floating-point numbers.
    F64,
    /// Complex numbers of two 32-bit parts; a value is two `f32`.
    Complex32,
    /// Complex numbers of two 64-bit parts; a value is two `f64`.
    Complex64,
    /// Strings of so many characters each; a character is a `u32`, and 0 behind the end.
    Text(usize),
}

/// `value = zero + scale * stored`, and the stored integer that means missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// TSCAL.
    pub scale: f64,
    /// TZERO.
    pub zero: f64,
    /// TNULL.
    pub null: Option<i64>,
}

/// Where in a row a column lies.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) number: usize,
    pub(super) offset: usize,
    pub(super) width: usize,
    pub(super) code: Code,
    pub(super) repeat: usize,
}

/// A column that is to be read.
#[derive(Clone, Debug)]
pub struct Column {
    /// TTYPE, or `col` and its number where that is blank or given before.
    pub name: String,
    /// TUNIT.
    pub unit: Option<String>,
    /// What its values are in memory.
    pub kind: Kind,
    /// Dimensions of the values of one row; none where a row has one value.
    pub shape: Vec<usize>,
    /// Elements of the array in memory that a row fills: numbers, parts of complex numbers, or characters.
    pub per_row: usize,
    pub(super) offset: usize,
    pub(super) width: usize,
    pub(super) code: Code,
    pub(super) scaling: Option<Scaling>,
}

/// Code, repeat count and bytes of a TFORM.
pub(super) fn tform(text: &[u8]) -> Option<(Code, usize, usize)> {
    let (digits, rest) = digits(trim(text));
    let (&code, behind) = rest.split_first()?;
    let mut repeat = if digits.is_empty() { 1 } else { natural(digits)? };
    let (code, bits) = match code.to_ascii_uppercase() {
        b'L' => (Code::Logical, 8),
        b'X' => (Code::Bit, 1),
        b'B' => (Code::Byte, 8),
        b'I' => (Code::Short, 16),
        b'J' => (Code::Int, 32),
        b'K' => (Code::Long, 64),
        b'A' => (Code::Character, 8),
        b'E' => (Code::Single, 32),
        b'D' => (Code::Double, 64),
        b'C' => (Code::SingleComplex, 64),
        b'M' => (Code::DoubleComplex, 128),
        b'P' => (Code::Variable, 64),
        b'Q' => (Code::Variable, 128),
        _ => return None,
    };
    // `A8` is the form of text tables, a common mistake that means `8A`; else what follows the code has no meaning.
    if code == Code::Character && digits.is_empty() && !behind.is_empty() && behind.iter().all(u8::is_ascii_digit) {
        repeat = natural(behind)?;
    }
    Some((code, repeat, repeat.checked_mul(bits)?.div_ceil(8)))
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len()))
}

/// A number of at most 15 digits, so that the bits of a field can be counted.
fn natural(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Column {
    /// The field with what only chosen columns need.
    pub(super) fn new(header: &Header, field: &Field) -> Result<Self, FitsError> {
        let &Field { ref name, number, offset, width, code, repeat } = field;
        if code == Code::Variable {
            return Err(FitsError::Unsupported(format!(
                "column '{name}' holds arrays of variable length (TFORM{number}), which are not read; name the other columns."
            )));
        }
        let scaling = scaling(header, field)?;
        let mut shape = dimensions(header, field)?;
        let kind = match (code, scaling) {
            (Code::Logical | Code::Bit, _) => Kind::Bool,
            (Code::Character, _) => Kind::Text(shape.pop().unwrap_or(repeat)),
            (Code::Byte, None) => Kind::U8,
            (Code::Short, None) => Kind::I16,
            (Code::Int, None) => Kind::I32,
            (Code::Long, None) => Kind::I64,
            (Code::Single, None) => Kind::F32,
            (Code::SingleComplex, None) => Kind::Complex32,
            (Code::DoubleComplex | Code::SingleComplex, _) => Kind::Complex64,
            (_, Some(scaling)) => offset_integer(code, scaling).unwrap_or(Kind::F64),
            (Code::Double | Code::Variable, None) => Kind::F64,
        };
        let values: usize = shape.iter().product();
        let per_row = match kind {
            Kind::Text(0) => {
                shape.push(0);
                0
            }
            Kind::Text(length) => values * length,
            Kind::Complex32 | Kind::Complex64 => 2 * values,
            _ => values,
        };
        let unit = header.text(&format!("TUNIT{number}")).map(|unit| unit.trim_matches(' ').to_owned());
        let unit = unit.filter(|unit| !unit.is_empty());
        Ok(Self { name: name.clone(), unit, kind, shape, per_row, offset, width, code, scaling })
    }
}

/// Signed bytes and unsigned integers, which the standard stores with an offset of half their range.
fn offset_integer(code: Code, scaling: Scaling) -> Option<Kind> {
    if scaling.scale != 1.0 || scaling.null.is_some() {
        return None;
    }
    let (zero, kind) = match code {
        Code::Byte => (-128.0, Kind::I8),
        Code::Short => (32_768.0, Kind::U16),
        Code::Int => (2_147_483_648.0, Kind::U32),
        Code::Long => (9_223_372_036_854_775_808.0, Kind::U64),
        _ => return None,
    };
    (scaling.zero == zero).then_some(kind)
}

/// How stored numbers become values; None where they are the values.
fn scaling(header: &Header, field: &Field) -> Result<Option<Scaling>, FitsError> {
    let number = field.number;
    if matches!(field.code, Code::Logical | Code::Bit | Code::Character) {
        return Ok(None);
    }
    let null = match (field.code, format!("TNULL{number}")) {
        (Code::Byte | Code::Short | Code::Int | Code::Long, key) if header.has(&key) => {
            Some(header.integer(&key, i64::MIN, i64::MAX, None)?)
        }
        _ => None,
    };
    let scale = header.number(&format!("TSCAL{number}"))?.unwrap_or(1.0);
    let zero = header.number(&format!("TZERO{number}"))?.unwrap_or(0.0);
    let changes = scale != 1.0 || zero != 0.0 || null.is_some();
    Ok(changes.then_some(Scaling { scale, zero, null }))
}

/// Dimensions of the values of a row, slowest first; of strings with their length last.
fn dimensions(header: &Header, field: &Field) -> Result<Vec<usize>, FitsError> {
    let &Field { number, code, repeat, .. } = field;
    let key = format!("TDIM{number}");
    if repeat == 0 || !header.has(&key) {
        return Ok(if repeat == 1 && code != Code::Character { vec![] } else { vec![repeat] });
    }
    let expected = || format!("dimensions such as (3,4), at most {DIMENSIONS}, for {repeat} elements or fewer");
    let text = header.text(&key).map(|text| trim(text.as_bytes()));
    let inner = text.and_then(|text| text.strip_prefix(b"(")?.strip_suffix(b")"));
    let lengths: Option<Vec<usize>> = inner.and_then(|inner| {
        inner.split(|&byte| byte == b',').map(|length| natural(trim(length)).filter(|&length| length > 0)).collect()
    });
    let size = lengths.iter().flatten().try_fold(1_usize, |product, &length| product.checked_mul(length));
    match (lengths, size) {
        (Some(mut lengths), Some(size)) if size <= repeat && lengths.len() <= DIMENSIONS => {
            lengths.reverse();
            Ok(lengths)
        }
        _ => Err(header.invalid(&key, &expected())),
    }
}

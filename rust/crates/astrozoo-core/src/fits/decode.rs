//! From the big-endian bytes of rows to arrays.
//!
//! Rows come in blocks that fit the second cache level; each column is then gathered from the block in a loop of its
//! own, without a branch on its type. Vector columns run through loops that the compiler turns into byte shuffles.

use super::column::{Code, Column, Kind, Scaling};
use multiversion::multiversion;

macro_rules! arrays {
    ($($(#[$doc:meta])* $name:ident($type:ty),)*) => {
        /// Where the values of a column go: `per_row` elements for each row.
        #[derive(Debug)]
        pub enum Slots<'a> { $($(#[$doc])* $name(&'a mut [$type]),)* }

        /// The values of a column, in memory of their own.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array { $($(#[$doc])* $name(Vec<$type>),)* }

        impl<'a> Slots<'a> {
            /// Number of elements.
            #[allow(clippy::len_without_is_empty)] // nobody asks
            pub fn len(&self) -> usize {
                match self { $(Self::$name(values) => values.len(),)* }
            }

            /// The first `at` elements, and the others.
            pub(super) fn split_at(self, at: usize) -> (Self, Self) {
                match self {
                    $(Self::$name(values) => {
                        let (head, tail) = values.split_at_mut(at);
                        (Self::$name(head), Self::$name(tail))
                    })*
                }
            }
        }

        impl Array {
            /// Room for all values of it, to be filled.
            pub fn slots(&mut self) -> Slots<'_> {
                match self { $(Self::$name(values) => Slots::$name(values),)* }
            }

            /// Bytes in memory.
            pub fn bytes(&self) -> usize {
                match self { $(Self::$name(values) => size_of_val(values.as_slice()),)* }
            }
        }
    };
}

arrays! {
    /// Truth values.
    Bool(bool),
    /// Signed 8-bit integers.
    I8(i8),
    /// Unsigned 8-bit integers.
    U8(u8),
    /// Signed 16-bit integers.
    I16(i16),
    /// Unsigned 16-bit integers.
    U16(u16),
    /// Signed 32-bit integers.
    I32(i32),
    /// Unsigned 32-bit integers, and characters.
    U32(u32),
    /// Signed 64-bit integers.
    I64(i64),
    /// Unsigned 64-bit integers.
    U64(u64),
    /// 32-bit floating-point numbers, and parts of complex ones.
    F32(f32),
    /// 64-bit floating-point numbers, and parts of complex ones.
    F64(f64),
}

impl Array {
    /// Zeros for `elements` of a column of this kind.
    pub fn zeros(kind: Kind, elements: usize) -> Self {
        match kind {
            Kind::Bool => Self::Bool(vec![false; elements]),
            Kind::I8 => Self::I8(vec![0; elements]),
            Kind::U8 => Self::U8(vec![0; elements]),
            Kind::I16 => Self::I16(vec![0; elements]),
            Kind::U16 => Self::U16(vec![0; elements]),
            Kind::I32 => Self::I32(vec![0; elements]),
            Kind::U32 | Kind::Text(_) => Self::U32(vec![0; elements]),
            Kind::I64 => Self::I64(vec![0; elements]),
            Kind::U64 => Self::U64(vec![0; elements]),
            Kind::F32 | Kind::Complex32 => Self::F32(vec![0.0; elements]),
            Kind::F64 | Kind::Complex64 => Self::F64(vec![0.0; elements]),
        }
    }
}

/// Decode a column. The field of each row begins `stride` bytes behind that of the row before; `bytes` begins with the
/// first field. False where the slots are of another kind than the column.
pub(super) fn decode(column: &Column, bytes: &[u8], stride: usize, slots: Slots<'_>) -> bool {
    let fields = Fields { bytes, stride, per_row: column.per_row };
    let Scaling { scale, zero, null } = column.scaling.unwrap_or(Scaling { scale: 1.0, zero: 0.0, null: None });
    // The offset of unsigned integers, and of signed bytes, turns the highest bit over.
    match (column.code, slots) {
        (Code::Logical, Slots::Bool(out)) => gather(fields, out, |[byte]: [u8; 1]| byte == b'T'),
        (Code::Bit, Slots::Bool(out)) => bits(fields, out),
        (Code::Character, Slots::U32(out)) => {
            if let Kind::Text(length) = column.kind {
                strings(fields, length, out);
            }
        }
        (Code::Byte, Slots::U8(out)) => gather(fields, out, |[byte]: [u8; 1]| byte),
        (Code::Byte, Slots::I8(out)) => gather(fields, out, |[byte]: [u8; 1]| (byte ^ 0x80).cast_signed()),
        (Code::Short, Slots::I16(out)) => gather(fields, out, i16::from_be_bytes),
        (Code::Short, Slots::U16(out)) => gather(fields, out, |b| u16::from_be_bytes(b) ^ (1 << 15)),
        (Code::Int, Slots::I32(out)) => gather(fields, out, i32::from_be_bytes),
        (Code::Int, Slots::U32(out)) => gather(fields, out, |b| u32::from_be_bytes(b) ^ (1 << 31)),
        (Code::Long, Slots::I64(out)) => gather(fields, out, i64::from_be_bytes),
        (Code::Long, Slots::U64(out)) => gather(fields, out, |b| u64::from_be_bytes(b) ^ (1 << 63)),
        (Code::Single | Code::SingleComplex, Slots::F32(out)) => gather(fields, out, f32::from_be_bytes),
        (Code::Double | Code::DoubleComplex, Slots::F64(out)) if column.scaling.is_none() => {
            gather(fields, out, f64::from_be_bytes);
        }
        (Code::Single, Slots::F64(out)) => gather(fields, out, |b| f64::from(f32::from_be_bytes(b)) * scale + zero),
        (Code::Double, Slots::F64(out)) => gather(fields, out, |b| f64::from_be_bytes(b) * scale + zero),
        (Code::SingleComplex, Slots::F64(out)) => {
            gather(fields, out, |b| f64::from(f32::from_be_bytes(b)) * scale);
            move_real(out, zero);
        }
        (Code::DoubleComplex, Slots::F64(out)) => {
            gather(fields, out, |b| f64::from_be_bytes(b) * scale);
            move_real(out, zero);
        }
        (code, Slots::F64(out)) => {
            let value = |stored: i64| if null == Some(stored) { f64::NAN } else { stored as f64 * scale + zero };
            match code {
                Code::Byte => gather(fields, out, |[byte]: [u8; 1]| value(i64::from(byte))),
                Code::Short => gather(fields, out, |b| value(i64::from(i16::from_be_bytes(b)))),
                Code::Int => gather(fields, out, |b| value(i64::from(i32::from_be_bytes(b)))),
                Code::Long => gather(fields, out, |b| value(i64::from_be_bytes(b))),
                _ => return false,
            }
        }
        _ => return false,
    }
    true
}

/// TZERO of a complex column belongs to the real part.
fn move_real(out: &mut [f64], zero: f64) {
    for [real, _] in out.as_chunks_mut::<2>().0 {
        *real += zero;
    }
}

#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8],
    stride: usize,
    per_row: usize,
}

/// Values of `N` bytes each.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn gather<const N: usize, T, F: Fn([u8; N]) -> T>(fields: Fields<'_>, out: &mut [T], convert: F) {
    let rows = fields.bytes.chunks(fields.stride.max(1));
    if fields.per_row == 1 {
        for (row, value) in rows.zip(out) {
            if let Some(bytes) = row.first_chunk::<N>() {
                *value = convert(*bytes);
            }
        }
    } else {
        for (row, values) in rows.zip(out.chunks_mut(fields.per_row.max(1))) {
            for (bytes, value) in row.as_chunks::<N>().0.iter().zip(values) {
                *value = convert(*bytes);
            }
        }
    }
}

fn bits(fields: Fields<'_>, out: &mut [bool]) {
    let rows = fields.bytes.chunks(fields.stride.max(1));
    for (row, values) in rows.zip(out.chunks_mut(fields.per_row.max(1))) {
        for (byte, values) in row.iter().zip(values.chunks_mut(8)) {
            for (place, value) in values.iter_mut().enumerate() {
                *value = byte & (0x80 >> place) != 0;
            }
        }
    }
}

/// Strings end before a NUL or before the blanks at their end.
fn strings(fields: Fields<'_>, length: usize, out: &mut [u32]) {
    let rows = fields.bytes.chunks(fields.stride.max(1));
    for (row, values) in rows.zip(out.chunks_mut(fields.per_row.max(1))) {
        for (bytes, characters) in row.chunks(length.max(1)).zip(values.chunks_mut(length.max(1))) {
            let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
            let end = text.iter().rposition(|&byte| byte != b' ').map_or(0, |place| place + 1);
            for (character, &byte) in characters.iter_mut().zip(&text[..end]) {
                *character = u32::from(byte);
            }
            characters[end..].fill(0);
        }
    }
}

//! Columns of binary tables in FITS files (FITS standard 4.0; Pence et al. 2010, A&A 524, A42).
//!
//! A file is read with positioned reads, never mapped, and nothing in it is believed before it was checked: what a call
//! allocates is bounded by a small multiple of the bytes that are there.
//!
//! - `source`: a file or memory; `header`: keywords and their `value`s; `hdu`: the walk to the table.
//! - `table`: which columns there are; `column`: what one becomes in memory.
//! - `read`: blocks of rows on several threads; `decode`: from big-endian fields to arrays.

mod column;
mod decode;
mod error;
mod hdu;
mod header;
mod read;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod value;

pub use column::{Code, Column, Kind, Scaling};
pub use decode::{Array, Slots};
pub use error::FitsError;
pub use hdu::Wanted;
pub use header::{BLOCK, CARD, Entry, Header};
pub use source::Source;
pub use table::Table;
pub use value::Value;

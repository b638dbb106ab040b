//! Columns of binary tables in FITS files (FITS standard 4.0; Pence et al. 2010, A&A 524, A42).
//!
//! A file is read with positioned reads, never mapped, and nothing in it is believed before it was checked: what a call
//! allocates is bounded by a small multiple of the bytes that are there.
//!
//! - `source`: a file or memory; `header`: keywords and values; `hdu`: the walk to the table.
//! - `table`: which columns there are and what they become; `read`: blocks of rows on several threads; `decode`: from
//!   big-endian fields to arrays.

mod decode;
mod error;
mod hdu;
mod header;
mod read;
mod source;
mod table;
#[cfg(test)]
mod tests;

pub use decode::{Array, Slots};
pub use error::FitsError;
pub use hdu::Wanted;
pub use header::{BLOCK, CARD, Entry, Header, Value};
pub use source::Source;
pub use table::{Code, Column, Kind, Scaling, Table};

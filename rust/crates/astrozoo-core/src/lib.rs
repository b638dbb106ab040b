//! Array kernels behind `astrozoo.accel`, without Python.
//!
//! Every kernel takes slices with explicit sizes, checks them, and gives the same numbers whatever the number of
//! threads: work is cut into pieces that depend on the data alone, and what is reduced is merged in a fixed order.
//! What a kernel computes, with units and the handling of NaN, is documented at its Python reference in
//! `astrozoo/accel/`; here stands how.
//!
//! Inner loops are compiled for several instruction sets (`multiversion`) and chosen when they run, so that a wheel
//! built for a baseline processor uses AVX2 or AVX-512 where they are there.

pub mod collation;
pub mod detrending;
mod elementary;
pub mod error;
pub mod fits;
pub mod float;
pub mod folding;
pub mod gaps;
pub mod graph_encodings;
pub mod lines;
pub mod neighbors;
pub mod parallel;
pub mod patches;
pub mod regridding;
pub mod spectra;
pub mod statistics;
pub mod transits;

pub use error::Error;

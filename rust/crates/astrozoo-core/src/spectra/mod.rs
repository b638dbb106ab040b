//! Spectra on uneven wavelength grids: resampling and line spread.

mod bins;
mod lsf;
mod rebin;

pub(crate) use bins::increasing;
pub use lsf::convolve_lsf;
pub use rebin::{FromTo, rebin_flux};

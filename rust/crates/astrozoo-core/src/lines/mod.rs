//! Spectral lines.

mod profile;
mod voigt;

pub use voigt::{Lines, voigt_cross_section};

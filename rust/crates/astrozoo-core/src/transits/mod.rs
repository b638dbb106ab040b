//! Search for transits in light curves.

mod box_least_squares;
mod boxes;
mod phase_bins;

pub use box_least_squares::{Light, box_least_squares};
pub use boxes::BestBox;

//! Trends of light curves: locations in a window of time that slides over uneven sampling.
//!
//! `windows` cuts the work and finds the windows, the same way for all estimators; `median` and `biweight` are two of
//! them.

mod biweight;
mod median;
mod sorted;
mod windows;

pub use biweight::biweight_detrend;
pub use median::median_filter_time;
pub use windows::Window;

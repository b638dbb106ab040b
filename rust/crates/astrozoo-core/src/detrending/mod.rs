//! Trends of light curves: locations in a window of time that slides over uneven sampling.
//!
//! `windows` cuts the work and finds the windows, `sorted` keeps the values of one in order; the estimators, `median` and
//! `biweight`, read off what they need.

mod biweight;
mod median;
mod sorted;
#[cfg(test)]
mod tests;
mod windows;

pub use biweight::biweight_detrend;
pub use median::median_filter_time;
pub use windows::Window;

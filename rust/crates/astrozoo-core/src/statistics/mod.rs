//! Statistics over cubes with missing values.

mod nan_stats;

pub use nan_stats::{Moments, nan_stats};

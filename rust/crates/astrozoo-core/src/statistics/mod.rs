//! Statistics over cubes with missing values.

mod nan_stats;
mod quantiles;

pub use nan_stats::{Moments, nan_stats};
pub use quantiles::{Ordered, quantiles};

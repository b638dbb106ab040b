//! Statistics over cubes with missing values.

mod brackets;
mod groups;
mod nan_stats;
mod quantiles;
mod select;

pub use nan_stats::{Moments, nan_stats};
pub use quantiles::quantiles;
pub use select::Ordered;

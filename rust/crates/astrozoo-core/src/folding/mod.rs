//! Light curves folded at the period of a transit, and seen through the medians of bins of phase.

mod fold_views;
mod median;
mod phase_order;

pub use fold_views::{Candidate, View, fold_views};

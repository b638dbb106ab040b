//! Which points lie near each other.

mod columns;
mod radius_graph;
mod scan;

pub use radius_graph::{Options, RadiusGraph};

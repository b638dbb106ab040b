//! Which points lie near each other.

mod columns;
mod group;
mod radius_graph;
mod scan;

pub use radius_graph::{Options, RadiusGraph};

//! Encodings of nodes and of pairs of nodes, for batches of small graphs.
//!
//! A batch is one list of edges over the nodes of all graphs; [`Arcs`] checks it and sorts it by source in two passes.
//! Graphs are then worked on one by one, in tasks of about equal work that the sizes alone decide. Within a graph the
//! inner loops run over fixed lanes: 64 nodes in a word (hops), or several columns of a matrix at a time (distances,
//! random walks, eigenvectors), while the loop around them follows the arcs, of which there are few.

mod arcs;
mod distances;
mod eigen;
mod hops;
mod laplacian;
mod random_walk;
mod small_hops;
mod steps;

pub use arcs::{Arcs, Direction, Graph};
pub use distances::distances;
pub use eigen::smallest;
pub use hops::hops;
pub use laplacian::laplacian;
pub use random_walk::random_walk;

/// Columns of a matrix that are worked on together: two vectors of eight doubles.
const LANES: usize = 16;

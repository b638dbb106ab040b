//! Probabilities that a random walk is back where it started after 1, 2, ... steps.
//!
//! The columns of the powers of the transition matrix do not touch each other, so a few of them are carried through all
//! steps together: a step adds, for each arc, one short row of lanes to another, all of it in the first cache level,
//! and the diagonal is read off on the way. No power is ever held as a whole.

use super::LANES;
use super::arcs::{Arcs, Graph};
use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;

/// What one task takes, in additions of numbers.
const GRAIN: usize = 1 << 17;

/// Return probabilities `[node, steps]`: the diagonals of the powers of the transition matrix.
///
/// An arc is taken with its weight, or 1, over the sum of those of its source. From a node without arcs (or with weights
/// of 0 alone) no walk goes anywhere, so that it never returns.
///
/// # Errors
///
/// More numbers than there is memory for, or an infinite sum of weights.
pub fn random_walk<T: Float>(arcs: &Arcs, steps: usize, threads: usize) -> Result<Vec<T>, Error> {
    let size = arcs.total().checked_mul(steps).filter(|&size| size < isize::MAX as usize / 8);
    let Some(size) = size else {
        return Err(Error::new(format!("{steps} steps for each of {} nodes", arcs.total())));
    };
    let mut out = vec![T::from_f64(0.0); size];
    let work = |nodes: usize, arcs: usize| nodes.saturating_mul(nodes + arcs).saturating_mul(steps);
    let tasks = arcs.tasks(GRAIN, work);
    let parts = arcs.parts(&tasks, &mut out, |graph| arcs.size(graph), steps);
    let finite = parallel::map(threads, parts, |(graphs, mut part)| {
        let mut walk = Walk::default();
        let mut finite = true;
        for graph in graphs {
            let graph = arcs.graph(graph);
            let rows;
            (rows, part) = part.split_at_mut(graph.len() * steps);
            finite &= walk.enter(graph);
            for first in (0..graph.len()).step_by(LANES) {
                powers(graph, &mut walk, first, steps, rows);
            }
        }
        finite
    });
    Error::require(finite.into_iter().all(|finite| finite), || "weights whose sum is not finite".to_owned())?;
    Ok(out)
}

/// What a graph needs, kept from graph to graph.
#[derive(Default)]
struct Walk {
    /// Probability of each arc, by source as in the graph.
    probability: Vec<f64>,
    now: Vec<[f64; LANES]>,
    next: Vec<[f64; LANES]>,
}

impl Walk {
    /// The probabilities of a graph; whether all sums of weights are finite.
    fn enter(&mut self, graph: Graph<'_>) -> bool {
        self.probability.clear();
        self.now.resize(graph.len(), [0.0; LANES]);
        self.next.resize(graph.len(), [0.0; LANES]);
        let mut finite = true;
        for node in 0..graph.len() {
            let (ends, weights) = (graph.ends(node), graph.weights(node));
            if weights.is_empty() {
                self.probability.resize(self.probability.len() + ends.len(), 1.0 / ends.len() as f64);
            } else {
                let sum: f64 = weights.iter().sum();
                finite &= sum.is_finite();
                self.probability.extend(weights.iter().map(|weight| if sum > 0.0 { weight / sum } else { 0.0 }));
            }
        }
        finite
    }
}

/// Rows of `out[node, steps]` from node `first` on, `LANES` of them.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn powers<T: Float>(graph: Graph<'_>, walk: &mut Walk, first: usize, steps: usize, out: &mut [T]) {
    let nodes = graph.len();
    let lanes = LANES.min(nodes - first);
    let Walk { probability, now, next } = walk;
    now.fill([0.0; LANES]);
    for lane in 0..lanes {
        now[first + lane][lane] = 1.0;
    }
    for step in 0..steps {
        let mut rest: &[f64] = probability;
        for (node, next) in next.iter_mut().enumerate() {
            let ends = graph.ends(node);
            let shares;
            (shares, rest) = rest.split_at(ends.len());
            let mut sum = [0.0; LANES];
            for (&end, &share) in ends.iter().zip(shares) {
                let there = &now[end as usize];
                for lane in 0..LANES {
                    sum[lane] += share * there[lane];
                }
            }
            *next = sum;
        }
        std::mem::swap(now, next);
        for lane in 0..lanes {
            out[(first + lane) * steps + step] = T::from_f64(now[first + lane][lane]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arcs::Direction;
    use super::*;
    use proptest::prelude::*;

    /// Diagonals of powers, by dense products.
    fn naive(edges: &[(usize, usize, f64)], nodes: usize, steps: usize) -> Vec<f64> {
        let mut matrix = vec![0.0; nodes * nodes];
        for &(a, b, weight) in edges {
            matrix[a * nodes + b] += weight;
        }
        for row in matrix.chunks_mut(nodes) {
            let sum: f64 = row.iter().sum();
            if sum > 0.0 {
                row.iter_mut().for_each(|entry| *entry /= sum);
            }
        }
        let (mut power, mut found) = (matrix.clone(), vec![0.0; nodes * steps]);
        for step in 0..steps {
            for node in 0..nodes {
                found[node * steps + step] = power[node * nodes + node];
            }
            let before = power.clone();
            for i in 0..nodes {
                for j in 0..nodes {
                    power[i * nodes + j] = (0..nodes).map(|k| before[i * nodes + k] * matrix[k * nodes + j]).sum();
                }
            }
        }
        found
    }

    proptest! {
        #[test]
        fn agrees_with_powers_of_the_dense_matrix(
            (nodes, edges) in (1_usize..24)
                .prop_flat_map(|n| (Just(n), proptest::collection::vec((0..n, 0..n, 0_f64..3.0), 0..3 * n))),
            steps in 1_usize..7,
            weighted in any::<bool>(),
        ) {
            let sources = edges.iter().map(|edge| edge.0 as i64);
            let flat: Vec<i64> = sources.chain(edges.iter().map(|edge| edge.1 as i64)).collect();
            let weights: Vec<f64> = edges.iter().map(|edge| edge.2).collect();
            let weights = weighted.then_some(weights.as_slice());
            let arcs = Arcs::new(&flat, &[nodes as i64], weights, Direction::Forward).unwrap();
            let found = random_walk::<f64>(&arcs, steps, 1).unwrap();
            let edges: Vec<_> = edges.into_iter().map(|(a, b, w)| (a, b, if weighted { w } else { 1.0 })).collect();
            for (found, expected) in found.iter().zip(naive(&edges, nodes, steps)) {
                prop_assert!((found - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn threads_change_no_bit_and_a_ring_returns_as_a_ring_does() {
        let sizes = vec![6_i64; 500];
        let sources: Vec<i64> = (0..3000).collect();
        let targets = sources.iter().map(|node| if node % 6 == 5 { node - 5 } else { node + 1 });
        let edges: Vec<i64> = sources.iter().copied().chain(targets).collect();
        let arcs = Arcs::new(&edges, &sizes, None, Direction::Both).unwrap();
        let one = random_walk::<f32>(&arcs, 20, 1).unwrap();
        assert_eq!(one, random_walk::<f32>(&arcs, 20, 4).unwrap());
        assert_eq!(one[..4], [0.0, 0.5, 0.0, 0.375]);
    }

    #[test]
    fn what_cannot_be_computed_is_an_error() {
        let arcs = Arcs::new(&[0, 1], &[2], Some(&[f64::INFINITY]), Direction::Forward).unwrap();
        assert!(random_walk::<f32>(&arcs, 3, 1).is_err());
        assert!(random_walk::<f32>(&arcs, usize::MAX / 2, 1).is_err());
    }
}

//! Lengths of shortest paths over weighted arcs, between all pairs of nodes of each graph.
//!
//! For a few targets side by side, every node takes the least of what its arcs offer (weight plus the distance from
//! their end), again and again until nothing falls any more: Bellman and Ford's method with the targets in lanes. Nodes
//! are taken forwards and backwards in turn, and use what was found in the same round, so that small graphs settle
//! within a few rounds; each costs one vector addition and minimum for each arc. What it settles at is the least over
//! all paths of the sum from the target backwards, in whatever order the nodes were taken.

use super::LANES;
use super::arcs::{Arcs, Graph};
use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;

/// What one task takes, in pairs of a node and an arc.
const GRAIN: usize = 1 << 14;

/// Distances of all pairs into `out[graph, node, node]` (source, target), where every graph has the room of the largest.
///
/// Infinity where there is no path of length at most `limit`, and where there is no node.
///
/// # Errors
///
/// `out` has another size.
pub fn distances<T: Float>(arcs: &Arcs, limit: f64, out: &mut [T], threads: usize) -> Result<(), Error> {
    let most = arcs.most();
    Error::require_fill(out.len(), &[arcs.graphs(), most, most])?;
    let work = |nodes: usize, arcs: usize| nodes.saturating_mul(nodes + arcs);
    let tasks = arcs.tasks(GRAIN, work);
    let parts = arcs.parts(&tasks, out, |_| most, most);
    parallel::map(threads, parts, |(graphs, part)| {
        for (graph, out) in graphs.zip(part.chunks_mut((most * most).max(1))) {
            out.fill(T::INFINITY);
            let graph = arcs.graph(graph);
            for first in (0..graph.len()).step_by(LANES) {
                to_targets(graph, first, limit, most, out);
            }
        }
    });
    Ok(())
}

/// Columns of `out` from `first` on, `LANES` of them.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn to_targets<T: Float>(graph: Graph<'_>, first: usize, limit: f64, most: usize, out: &mut [T]) {
    let nodes = graph.len();
    let lanes = LANES.min(nodes - first);
    let mut least = vec![[f64::INFINITY; LANES]; nodes];
    for lane in 0..lanes {
        least[first + lane][lane] = 0.0;
    }
    let mut forwards = true;
    loop {
        let mut fell = false;
        for step in 0..nodes {
            let node = if forwards { step } else { nodes - 1 - step };
            let before = least[node];
            let mut now = before;
            for (&end, &weight) in graph.ends(node).iter().zip(graph.weights(node)) {
                let there = &least[end as usize];
                for lane in 0..LANES {
                    let offer = there[lane] + weight;
                    now[lane] = if offer < now[lane] { offer } else { now[lane] };
                }
            }
            let mut lower = false;
            for lane in 0..LANES {
                lower |= now[lane] < before[lane];
            }
            if lower {
                fell = true;
                least[node] = now;
            }
        }
        if !fell {
            break;
        }
        forwards = !forwards;
    }
    for (row, least) in out.chunks_mut(most.max(1)).zip(&least) {
        for (out, &least) in row[first..first + lanes].iter_mut().zip(least) {
            *out = if least <= limit { T::from_f64(least) } else { T::INFINITY };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arcs::Direction;
    use super::*;
    use proptest::prelude::*;

    fn all(edges: &[i64], weights: &[f64], sizes: &[i64], limit: f64, threads: usize) -> Vec<f64> {
        let arcs = Arcs::new(edges, sizes, Some(weights), Direction::Forward).unwrap();
        let mut out = vec![7.0; arcs.graphs() * arcs.most() * arcs.most()];
        distances(&arcs, limit, &mut out, threads).unwrap();
        out
    }

    proptest! {
        #[test]
        fn agrees_with_floyd_and_warshall(
            (nodes, edges) in (1_usize..40)
                .prop_flat_map(|n| (Just(n), proptest::collection::vec((0..n, 0..n, 0_u8..50), 0..3 * n))),
            limit in prop_oneof![0_f64..90.0, Just(f64::INFINITY)],
        ) {
            // Whole weights, so that sums are exact in any order.
            let mut expected = vec![f64::INFINITY; nodes * nodes];
            for &(a, b, weight) in &edges {
                let place = &mut expected[a * nodes + b];
                *place = place.min(f64::from(weight));
            }
            for node in 0..nodes {
                expected[node * nodes + node] = 0.0;
            }
            for k in 0..nodes {
                for i in 0..nodes {
                    for j in 0..nodes {
                        let offer = expected[i * nodes + k] + expected[k * nodes + j];
                        expected[i * nodes + j] = expected[i * nodes + j].min(offer);
                    }
                }
            }
            let expected: Vec<f64> =
                expected.into_iter().map(|length| if length <= limit { length } else { f64::INFINITY }).collect();
            let sources = edges.iter().map(|edge| edge.0 as i64);
            let flat: Vec<i64> = sources.chain(edges.iter().map(|edge| edge.1 as i64)).collect();
            let weights: Vec<f64> = edges.iter().map(|edge| f64::from(edge.2)).collect();
            prop_assert_eq!(all(&flat, &weights, &[nodes as i64], limit, 1), expected);
        }
    }

    #[test]
    fn graphs_are_padded_and_threads_change_nothing() {
        let sizes = [3, 1, 40, 0, 17].repeat(20);
        let (mut sources, mut targets, mut weights, mut start) = (vec![], vec![], vec![], 0);
        for &size in &sizes {
            for node in 1..size {
                sources.push(start + node);
                targets.push(start + node / 2);
                weights.push(0.1 * node as f64);
            }
            start += size;
        }
        sources.extend(targets);
        let one = all(&sources, &weights, &sizes, f64::INFINITY, 1);
        assert_eq!(one, all(&sources, &weights, &sizes, f64::INFINITY, 4));
        assert_eq!(one[..4], [0.0, f64::INFINITY, f64::INFINITY, f64::INFINITY]);
        assert_eq!(one[40..42], [0.1, 0.0]);
    }

    #[test]
    fn a_wrong_size_of_the_output_is_an_error() {
        let arcs = Arcs::new(&[], &[2], Some(&[]), Direction::Both).unwrap();
        assert!(distances(&arcs, 1.0, &mut [0.0; 5], 1).is_err());
    }
}

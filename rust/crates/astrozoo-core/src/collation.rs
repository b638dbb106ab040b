//! Ragged graphs, laid one after the other as the parts of one large graph.
//!
//! Edges are shifted and checked in the same loop: as unsigned numbers, negative ones are huge, so the largest tells of
//! both ends.

use crate::error::Error;
use crate::parallel;
use multiversion::multiversion;

/// Numbers that are worth a thread: starting one takes as long as moving a few hundred kilobytes.
const GRAIN: usize = 1 << 17;
/// Graphs of one task.
const TASK: usize = 64;

/// The edges of graphs with `nodes` nodes as those of one graph: all first rows, then all second ones.
///
/// `edges` has for each graph as many sources as `ends` says, then as many targets.
///
/// # Errors
///
/// Edges that lead to nodes which their graph does not have, or sizes that do not fit each other.
pub fn shift_edges(nodes: &[usize], edges: &[i64], ends: &[usize], threads: usize) -> Result<Vec<i64>, Error> {
    let total = ends.iter().try_fold(0_usize, |sum, &end| sum.checked_add(end));
    Error::require(
        nodes.len() == ends.len() && total.and_then(|total| total.checked_mul(2)) == Some(edges.len()),
        || format!("{} numbers do not fill the edges of {} graphs: {total:?}", edges.len(), nodes.len()),
    )?;
    let mut result = vec![0; edges.len()];
    let (mut sources, mut targets) = result.split_at_mut(edges.len() / 2);
    let mut rest = edges;
    let mut first = 0;
    let mut tasks = Vec::with_capacity(nodes.len().div_ceil(TASK));
    for (number, (nodes, ends)) in nodes.chunks(TASK).zip(ends.chunks(TASK)).enumerate() {
        let length = ends.iter().sum();
        let (edges, source, target);
        (edges, rest) = rest.split_at(2 * length);
        (source, sources) = sources.split_at_mut(length);
        (target, targets) = targets.split_at_mut(length);
        tasks.push(Task { graph: number * TASK, first, nodes, ends, edges, source, target });
        first += nodes.iter().sum::<usize>() as i64;
    }
    let wrong = parallel::map(parallel::worth(threads, edges.len(), GRAIN), tasks, Task::run);
    match wrong.into_iter().flatten().next() {
        Some(graph) => Err(Error::new(format!("edges of graph {graph} lead to nodes that it does not have"))),
        None => Ok(result),
    }
}

/// The number of its graph for each node.
pub fn owners(nodes: &[usize]) -> Vec<i64> {
    let mut result = Vec::with_capacity(nodes.iter().sum());
    for (graph, &nodes) in (0..).zip(nodes) {
        result.resize(result.len() + nodes, graph);
    }
    result
}

/// Consecutive graphs, the number of the first and that of its first node among all.
struct Task<'a> {
    graph: usize,
    first: i64,
    nodes: &'a [usize],
    ends: &'a [usize],
    edges: &'a [i64],
    source: &'a mut [i64],
    target: &'a mut [i64],
}

impl Task<'_> {
    /// Shift the edges; the number of the first graph whose edges lead out of it.
    fn run(self) -> Option<usize> {
        let (mut first, mut rest, mut source, mut target) = (self.first, self.edges, self.source, self.target);
        for (graph, (&nodes, &end)) in (self.graph..).zip(self.nodes.iter().zip(self.ends)) {
            let (sources, others) = rest.split_at(end);
            let (targets, others) = others.split_at(end);
            rest = others;
            let (mine, behind) = source.split_at_mut(end);
            let far = shift(sources, first, mine);
            source = behind;
            let (mine, behind) = target.split_at_mut(end);
            let far = far.max(shift(targets, first, mine));
            target = behind;
            if end > 0 && far >= nodes as u64 {
                return Some(graph);
            }
            first += nodes as i64;
        }
        None
    }
}

/// Write numbers of nodes moved by `first`; the largest one, as it was, where negative ones count as huge.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn shift(nodes: &[i64], first: i64, result: &mut [i64]) -> u64 {
    let mut largest = 0;
    for (&node, result) in nodes.iter().zip(result) {
        *result = node.wrapping_add(first);
        largest = largest.max(node as u64);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn edges_are_shifted_by_the_nodes_before(
            graphs in proptest::collection::vec(
                (1_usize..9).prop_flat_map(|nodes| {
                    (Just(nodes), proptest::collection::vec((0..nodes as i64, 0..nodes as i64), 0..12))
                }),
                0..150,
            ),
            threads in 1_usize..4,
        ) {
            let nodes: Vec<usize> = graphs.iter().map(|(nodes, _)| *nodes).collect();
            let ends: Vec<usize> = graphs.iter().map(|(_, pairs)| pairs.len()).collect();
            let edges: Vec<i64> = graphs
                .iter()
                .flat_map(|(_, pairs)| pairs.iter().map(|pair| pair.0).chain(pairs.iter().map(|pair| pair.1)))
                .collect();
            let mut expected = (Vec::new(), Vec::new());
            let mut first = 0;
            for (nodes, pairs) in &graphs {
                expected.0.extend(pairs.iter().map(|pair| pair.0 + first));
                expected.1.extend(pairs.iter().map(|pair| pair.1 + first));
                first += *nodes as i64;
            }
            let found = shift_edges(&nodes, &edges, &ends, threads).unwrap();
            prop_assert_eq!(found, [expected.0, expected.1].concat());
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let nodes = vec![1000; 300];
        let edges: Vec<i64> = (0..300 * 2000).map(|i| (i * 7919) % 1000).collect();
        let one = shift_edges(&nodes, &edges, &vec![1000; 300], 1).unwrap();
        assert_eq!(one, shift_edges(&nodes, &edges, &vec![1000; 300], 3).unwrap());
    }

    #[test]
    fn every_node_knows_its_graph() {
        assert_eq!(owners(&[2, 0, 3]), [0, 0, 2, 2, 2]);
    }

    #[test]
    fn an_edge_out_of_its_graph_is_an_error_that_names_it() {
        for wrong in [[0, 1, 0, 2], [0, 1, -1, 0]] {
            let error = shift_edges(&[2, 2], &wrong, &[1, 1], 1).unwrap_err();
            assert!(error.to_string().contains("graph 1"), "{error}");
        }
        assert!(shift_edges(&[0], &[0, 0], &[1], 1).is_err());
    }

    #[test]
    fn wrong_sizes_are_an_error() {
        assert!(shift_edges(&[2], &[0, 1, 1], &[1], 1).is_err());
        assert!(shift_edges(&[2, 2], &[0, 1], &[1], 1).is_err());
        assert!(shift_edges(&[2, 2], &[0, 1], &[usize::MAX, 2], 1).is_err());
    }
}

//! Numbers of edges along shortest paths, between all pairs of nodes of each graph.
//!
//! A breadth-first search from all nodes at once. Every node keeps a word for each 64 targets: which of them it reaches
//! in as many hops as there were levels. A level is one OR for each arc, which serves 64 pairs or, with up to eight
//! words side by side, 512. The hops of a pair are kept as bits too, one plane for each power of two, so that a level
//! adds all its new pairs by an OR into the planes of its number; at the end the planes are spread into integers,
//! sixteen to a vector, without a branch for any pair.

use super::arcs::{Arcs, Graph};
use crate::error::Error;
use crate::parallel;
use multiversion::multiversion;

/// What one task takes, in pairs of nodes.
const GRAIN: usize = 1 << 14;

/// Hops of all pairs into `out[graph, node, node]` (source, target), where every graph has the room of the largest.
///
/// -1 where there is no path of at most `limit` hops, and where there is no node.
///
/// # Errors
///
/// `out` has another size.
pub fn hops(arcs: &Arcs, limit: u32, out: &mut [i32], threads: usize) -> Result<(), Error> {
    let most = arcs.most();
    let size = most.checked_mul(most).and_then(|pairs| pairs.checked_mul(arcs.graphs()));
    Error::require(size == Some(out.len()), || format!("{} places are not for {most} nodes squared", out.len()))?;
    let tasks = arcs.tasks(GRAIN, |nodes, _| nodes * nodes);
    let threads = parallel::worth(threads, out.len(), GRAIN);
    let parts = arcs.parts(&tasks, out, |_| most, most);
    parallel::map(threads, parts, |(graphs, part)| {
        let mut ends = Ends::default();
        for (graph, out) in graphs.zip(part.chunks_mut((most * most).max(1))) {
            ends.enter(arcs.graph(graph));
            of_graph(&ends, most, limit, out);
        }
    });
    Ok(())
}

/// Targets of the arcs of each node of a graph, each once: an edge that is listed both ways gives every arc twice.
#[derive(Default)]
struct Ends {
    first: Vec<u32>,
    ends: Vec<u32>,
    /// The last node that has an arc to this one, plus one.
    marks: Vec<u32>,
}

impl Ends {
    fn enter(&mut self, graph: Graph<'_>) {
        self.first.clear();
        self.ends.clear();
        self.marks.clear();
        self.marks.resize(graph.len(), 0);
        self.first.push(0);
        for node in 0..graph.len() {
            for &end in graph.ends(node) {
                let mark = &mut self.marks[end as usize];
                if *mark != node as u32 + 1 {
                    *mark = node as u32 + 1;
                    self.ends.push(end);
                }
            }
            self.first.push(self.ends.len() as u32);
        }
    }
}

fn of_graph(graph: &Ends, most: usize, limit: u32, out: &mut [i32]) {
    let nodes = graph.first.len() - 1;
    out[nodes * most..].fill(-1);
    let words = nodes.div_ceil(64);
    let mut first = 0;
    while first < words {
        let last = words - first <= 8;
        match words - first {
            1 => search::<1>(graph, first * 64, most, limit, out, last),
            2 => search::<2>(graph, first * 64, most, limit, out, last),
            3 | 4 => search::<4>(graph, first * 64, most, limit, out, last),
            _ => search::<8>(graph, first * 64, most, limit, out, last),
        }
        first += 8;
    }
}

/// Columns of `out` from `first` on, as many as `WORDS` words hold; and what follows them in the row, if `last`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn search<const WORDS: usize>(graph: &Ends, first: usize, most: usize, limit: u32, out: &mut [i32], last: bool) {
    let nodes = graph.first.len() - 1;
    let mut seen = vec![[0_u64; WORDS]; nodes];
    for node in first..nodes.min(first + 64 * WORDS) {
        seen[node][(node - first) / 64] = 1 << (node % 64);
    }
    let Ends { ends, first: first_end, .. } = graph;
    let mut frontier = seen.clone();
    let mut new = seen.clone();
    let mut planes: Vec<Vec<[u64; WORDS]>> = Vec::new();
    for level in 1..=limit {
        let mut any = [0; WORDS];
        for node in 0..nodes {
            let mut reached = [0; WORDS];
            for &end in &ends[first_end[node] as usize..first_end[node + 1] as usize] {
                let there = &frontier[end as usize];
                for word in 0..WORDS {
                    reached[word] |= there[word];
                }
            }
            for word in 0..WORDS {
                reached[word] &= !seen[node][word];
                seen[node][word] |= reached[word];
                any[word] |= reached[word];
            }
            new[node] = reached;
        }
        if any == [0; WORDS] {
            break;
        }
        if level.is_power_of_two() {
            planes.push(vec![[0; WORDS]; nodes]);
        }
        for (bit, plane) in planes.iter_mut().enumerate() {
            if level >> bit & 1 == 1 {
                for (sum, new) in plane.as_flattened_mut().iter_mut().zip(new.as_flattened()) {
                    *sum |= new;
                }
            }
        }
        std::mem::swap(&mut frontier, &mut new);
    }
    for (node, row) in out.chunks_mut(most.max(1)).take(nodes).enumerate() {
        let row = if last { &mut row[first..] } else { &mut row[first..first + 64 * WORDS] };
        for (word, columns) in row.chunks_mut(64).enumerate() {
            if word >= WORDS {
                columns.fill(-1);
                continue;
            }
            let mut spread = [0_i32; 64];
            for (half, spread) in spread.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let part = |bits: u64| (bits >> (32 * half)) as u32;
                let reached = part(seen[node][word]);
                for lane in 0..32 {
                    spread[lane] = if reached & (1 << lane) == 0 { -1 } else { 0 };
                }
                for (bit, plane) in planes.iter().enumerate() {
                    let ones = part(plane[node][word]);
                    for lane in 0..32 {
                        spread[lane] |= if ones & (1 << lane) == 0 { 0 } else { 1 << bit };
                    }
                }
            }
            columns.copy_from_slice(&spread[..columns.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arcs::Direction;
    use super::*;
    use proptest::prelude::*;

    fn all(edges: &[i64], sizes: &[i64], direction: Direction, limit: u32, threads: usize) -> Vec<i32> {
        let arcs = Arcs::new(edges, sizes, None, direction).unwrap();
        let mut out = vec![7; arcs.graphs() * arcs.most() * arcs.most()];
        hops(&arcs, limit, &mut out, threads).unwrap();
        out
    }

    /// Floyd and Warshall, for one graph.
    fn naive(edges: &[(usize, usize)], nodes: usize, limit: u32) -> Vec<i32> {
        let far = i32::MAX / 2;
        let mut hops = vec![far; nodes * nodes];
        for &(a, b) in edges {
            hops[a * nodes + b] = 1;
        }
        for node in 0..nodes {
            hops[node * nodes + node] = 0;
        }
        for k in 0..nodes {
            for i in 0..nodes {
                for j in 0..nodes {
                    hops[i * nodes + j] = hops[i * nodes + j].min(hops[i * nodes + k] + hops[k * nodes + j]);
                }
            }
        }
        hops.into_iter().map(|hops| if hops >= far || hops as u32 > limit { -1 } else { hops }).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_floyd_and_warshall(
            (nodes, edges) in (1_usize..150)
                .prop_flat_map(|n| (Just(n), proptest::collection::vec((0..n, 0..n), 0..2 * n))),
            limit in prop_oneof![0_u32..9, Just(u32::MAX)],
        ) {
            let sources = edges.iter().map(|edge| edge.0 as i64);
            let flat: Vec<i64> = sources.chain(edges.iter().map(|edge| edge.1 as i64)).collect();
            let found = all(&flat, &[nodes as i64], Direction::Forward, limit, 1);
            prop_assert_eq!(found, naive(&edges, nodes, limit));
            let both: Vec<_> = edges.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect();
            let found = all(&flat, &[nodes as i64], Direction::Both, limit, 1);
            prop_assert_eq!(found, naive(&both, nodes, limit));
        }
    }

    #[test]
    fn a_path_longer_than_all_words_side_by_side_is_counted() {
        let nodes = 1200_i64;
        let edges: Vec<i64> = (0..nodes - 1).chain(1..nodes).collect();
        let found = all(&edges, &[nodes], Direction::Both, u32::MAX, 1);
        for i in 0..nodes {
            for j in 0..nodes {
                assert_eq!(i64::from(found[(i * nodes + j) as usize]), (i - j).abs());
            }
        }
    }

    #[test]
    fn graphs_are_padded_and_threads_change_nothing() {
        let sizes: Vec<i64> = (0..300).map(|i| i * 7 % 90).collect();
        let (mut sources, mut targets, mut start) = (vec![], vec![], 0);
        for &size in &sizes {
            for node in 1..size {
                sources.push(start + node);
                targets.push(start + node / 3);
            }
            start += size;
        }
        sources.extend(targets);
        let one = all(&sources, &sizes, Direction::Both, u32::MAX, 1);
        assert_eq!(one, all(&sources, &sizes, Direction::Both, u32::MAX, 3));
        assert_eq!(one[..89 * 89], vec![-1; 89 * 89]);
        assert_eq!(one[89 * 89], 0);
        assert_eq!(one[89 * 89 + 7], -1);
    }

    #[test]
    fn no_graphs_and_a_wrong_size_of_the_output() {
        assert!(all(&[], &[], Direction::Both, 1, 2).is_empty());
        assert!(all(&[], &[0, 0], Direction::Both, 1, 2).is_empty());
        let arcs = Arcs::new(&[], &[2], None, Direction::Both).unwrap();
        assert!(hops(&arcs, 1, &mut [0; 5], 1).is_err());
    }
}

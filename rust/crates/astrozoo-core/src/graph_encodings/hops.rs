//! Numbers of edges along shortest paths, between all pairs of nodes of each graph.
//!
//! A breadth-first search from all nodes at once. Every node keeps a word for each 64 targets: which of them it reaches
//! in as many hops as there were levels. A level is one OR for each arc, which serves 64 pairs or, with up to eight
//! words side by side, 512. Nodes are sorted by the number of their arcs, and arcs laid out by their number within the
//! node, so that the loops are long and branches easy to foresee. The hops of a pair are kept as bits too, one plane for
//! each power of two, so that a level adds all its new pairs by an OR into the planes of its number; at the end the
//! planes are spread into integers, sixteen to a vector, without a branch for any pair.

use super::arcs::{Arcs, Graph};
use crate::error::Error;
use crate::parallel;
use multiversion::multiversion;

/// What one task takes, in pairs of nodes.
const GRAIN: usize = 1 << 14;
/// Words in a vector; arrays are filled up to whole ones.
const BLOCK: usize = 8;
/// The bit of each lane.
const ONE_BIT: [u32; 32] = {
    let mut bits = [1; 32];
    let mut lane = 1;
    while lane < 32 {
        bits[lane] = bits[lane - 1] << 1;
        lane += 1;
    }
    bits
};

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
        let (mut steps, mut bits) = (Steps::default(), Bits::default());
        for (graph, out) in graphs.zip(part.chunks_mut((most * most).max(1))) {
            steps.enter(arcs.graph(graph));
            of_graph(&steps, &mut bits, most, limit, out);
        }
    });
    Ok(())
}

fn of_graph(steps: &Steps, bits: &mut Bits, most: usize, limit: u32, out: &mut [i32]) {
    let nodes = steps.order.len();
    out[nodes * most..].fill(-1);
    let words = nodes.div_ceil(64);
    for first in (0..words).step_by(8) {
        let last = words - first <= 8;
        match words - first {
            1 => search::<1>(steps, bits, first * 64, most, limit, out, last),
            2 => search::<2>(steps, bits, first * 64, most, limit, out, last),
            3 | 4 => search::<4>(steps, bits, first * 64, most, limit, out, last),
            _ => search::<8>(steps, bits, first * 64, most, limit, out, last),
        }
    }
}

/// The arcs of a graph, each once (an edge that is listed both ways gives every arc twice).
#[derive(Default)]
struct Steps {
    /// The nodes, those with most arcs first; what follows numbers them by their place here.
    order: Vec<u32>,
    /// Ends of the first arc of each node that has one, of the second of each that has two, and so on.
    ends: Vec<u32>,
    /// Where those of each arc start in `ends`, and how many there are.
    starts: Vec<u32>,
    // Room for the work.
    distinct: Vec<u32>,
    first: Vec<u32>,
    marks: Vec<u32>,
    places: Vec<u32>,
}

impl Steps {
    fn enter(&mut self, graph: Graph<'_>) {
        let nodes = graph.len();
        self.distinct.clear();
        self.first.clear();
        self.first.push(0);
        self.marks.clear();
        self.marks.resize(nodes, 0); // the last node that has an arc to this one, plus one
        self.starts.clear();
        self.starts.push(0); // for now: how many nodes have more arcs than this
        for node in 0..nodes {
            let before = self.distinct.len();
            for &end in graph.ends(node) {
                let mark = &mut self.marks[end as usize];
                if *mark != node as u32 + 1 {
                    *mark = node as u32 + 1;
                    self.distinct.push(end);
                }
            }
            let count = self.distinct.len() - before;
            self.first.push(self.distinct.len() as u32);
            if count >= self.starts.len() {
                self.starts.resize(count + 1, 0);
            }
            self.starts[count] += 1;
        }
        let most = self.starts.len() - 1;
        for count in (0..most).rev() {
            self.starts[count] += self.starts[count + 1]; // nodes with at least as many arcs
        }
        // A node with `count` arcs comes after those with more: counting sort, from the last node to the first.
        self.order.resize(nodes, 0);
        self.places.resize(nodes, 0);
        self.marks.clear();
        self.marks.extend_from_slice(&self.starts);
        for node in (0..nodes).rev() {
            let count = (self.first[node + 1] - self.first[node]) as usize;
            self.marks[count] -= 1;
            self.places[node] = self.marks[count];
            self.order[self.marks[count] as usize] = node as u32;
        }
        self.starts.remove(0);
        let mut sum = 0;
        for start in &mut self.starts {
            sum += *start;
            *start = sum - *start;
        }
        self.starts.push(sum);
        self.ends.resize(sum as usize, 0);
        for node in 0..nodes {
            let own = &self.distinct[self.first[node] as usize..self.first[node + 1] as usize];
            for (start, &end) in self.starts.iter().zip(own) {
                self.ends[(start + self.places[node]) as usize] = self.places[end as usize];
            }
        }
    }
}

/// Words of each node, kept from graph to graph.
#[derive(Default)]
struct Bits {
    seen: Vec<u64>,
    frontier: Vec<u64>,
    new: Vec<u64>,
    /// One plane after the other, each with the words of all nodes.
    planes: Vec<u64>,
}

/// Columns of `out` from `first` on, as many as `WORDS` words hold; and what follows them in the row, if `last`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn search<const WORDS: usize>(
    steps: &Steps,
    bits: &mut Bits,
    first: usize,
    most: usize,
    limit: u32,
    out: &mut [i32],
    last: bool,
) {
    let size = (steps.order.len() * WORDS).next_multiple_of(BLOCK);
    let Bits { seen, frontier, new, planes } = bits;
    seen.clear();
    seen.resize(size, 0);
    for (place, &node) in steps.order.iter().enumerate() {
        if let Some(column) = (node as usize).checked_sub(first).filter(|&column| column < 64 * WORDS) {
            seen[place * WORDS + column / 64] = 1 << (column % 64);
        }
    }
    frontier.clear();
    frontier.extend_from_slice(seen);
    new.resize(size, 0);
    planes.clear();
    let mut count = 0;
    for level in 1..=limit {
        advance::<WORDS>(steps, frontier, new);
        let mut any = 0;
        for (new, seen) in new.iter_mut().zip(&mut *seen) {
            *new &= !*seen;
            *seen |= *new;
            any |= *new;
        }
        if any == 0 {
            break;
        }
        if level.is_power_of_two() {
            planes.resize(planes.len() + size, 0);
            count += 1;
        }
        for bit in (0..count).filter(|&bit| level >> bit & 1 == 1) {
            for (sum, new) in planes[bit * size..][..size].iter_mut().zip(&*new) {
                *sum |= new;
            }
        }
        std::mem::swap(frontier, new);
    }
    for (place, &node) in steps.order.iter().enumerate() {
        let row = &mut out[node as usize * most..][..most];
        let row = if last { &mut row[first..] } else { &mut row[first..first + 64 * WORDS] };
        for (word, columns) in row.chunks_mut(64).enumerate() {
            if word >= WORDS {
                columns.fill(-1);
                continue;
            }
            let word = place * WORDS + word;
            let mut spread = [0; 64];
            for (half, spread) in spread.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let part = |bits: u64| (bits >> (32 * half)) as u32;
                set(spread, !part(seen[word]), -1);
                for bit in 0..count {
                    set(spread, part(planes[bit * size + word]), 1 << bit);
                }
            }
            columns.copy_from_slice(&spread[..columns.len()]);
        }
    }
}

/// Which targets are one step from the frontier of each node's neighbours.
#[inline(always)]
fn advance<const WORDS: usize>(steps: &Steps, frontier: &[u64], new: &mut [u64]) {
    let (there, here) = (frontier.as_chunks::<WORDS>().0, new.as_chunks_mut::<WORDS>().0);
    let mut arcs = steps.starts.windows(2).map(|arc| &steps.ends[arc[0] as usize..arc[1] as usize]);
    let ends = arcs.next().unwrap_or_default();
    for (here, &end) in here.iter_mut().zip(ends) {
        *here = there[end as usize];
    }
    here[ends.len()..].as_flattened_mut().fill(0);
    for ends in arcs {
        for (here, &end) in here.iter_mut().zip(ends) {
            let there = &there[end as usize];
            for word in 0..WORDS {
                here[word] |= there[word];
            }
        }
    }
}

/// Set the bits of `value` in all numbers whose bit of `ones` is set.
#[inline(always)]
fn set(numbers: &mut [i32; 32], ones: u32, value: i32) {
    for (number, bit) in numbers.iter_mut().zip(&ONE_BIT) {
        *number |= if ones & bit == 0 { 0 } else { value };
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

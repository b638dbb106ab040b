//! Numbers of edges along shortest paths, between all pairs of nodes of each graph.
//!
//! A breadth-first search from all nodes at once. Every node keeps a word for each 64 targets: which of them it reaches
//! in as many hops as there were levels. A level is one OR for each arc, which serves 64 pairs or, with up to eight
//! words side by side, 512. Nodes are sorted by the number of their arcs, and arcs laid out by their number within the
//! node, so that the loops are long and branches easy to foresee. The hops of a pair are kept as bits too, one plane for
//! each power of two, so that a level adds all its new pairs by an OR into the planes of its number; at the end the
//! planes are spread into integers, sixteen to a vector, without a branch for any pair.

use super::arcs::{Arcs, Direction, nodes};
use super::small_hops;
use super::steps::Steps;
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
/// -1 where there is no path of at most `limit` hops, and where there is no node. Edges that come graph by graph, as a
/// batch has them, are sorted within their graphs, by all threads; others are sorted all together first.
///
/// # Errors
///
/// Edges or sizes that are no batch (see [`Arcs::new`]), or an `out` of another size.
pub fn hops(
    edges: &[i64],
    sizes: &[i64],
    direction: Direction,
    limit: u32,
    out: &mut [i32],
    threads: usize,
) -> Result<(), Error> {
    let nodes = nodes(sizes)?;
    let most = nodes.windows(2).map(|graph| graph[1] - graph[0]).max().unwrap_or(0);
    Error::require_fill(out.len(), &[sizes.len(), most, most])?;
    let source = match EdgeRuns::new(edges, &nodes) {
        Some(runs) => Source::Runs(runs),
        None => Source::Sorted(Arcs::new(edges, sizes, None, direction)?),
    };
    if out.is_empty() {
        return Ok(());
    }
    let graphs = (GRAIN / (most * most)).max(1);
    let threads = parallel::worth(threads, out.len(), GRAIN);
    let tasks: Vec<_> = out.chunks_mut(graphs * most * most).enumerate().collect();
    let done = parallel::map(threads, tasks, |(task, part)| {
        let (mut steps, mut bits) = (Steps::default(), Bits::default());
        for (graph, out) in part.chunks_mut(most * most).enumerate() {
            let graph = task * graphs + graph;
            match &source {
                Source::Runs(runs) => runs.enter(graph, direction, &mut steps)?,
                Source::Sorted(arcs) => steps.enter(arcs.graph(graph)),
            }
            of_graph(&steps, &mut bits, most, limit, out);
        }
        Ok(())
    });
    done.into_iter().collect()
}

/// Where the arcs of a graph come from.
enum Source<'a> {
    /// Its own edges, which lie next to each other.
    Runs(EdgeRuns<'a>),
    /// All edges, sorted together.
    Sorted(Arcs),
}

/// Edges of a batch in which those of a graph lie next to each other.
struct EdgeRuns<'a> {
    sources: &'a [i64],
    targets: &'a [i64],
    /// First node of each graph, and the number of nodes.
    nodes: &'a [usize],
    /// First edge of each graph, and the number of edges.
    first: Vec<usize>,
}

impl<'a> EdgeRuns<'a> {
    /// None where the edges do not come graph by graph, or one of them is not within a graph.
    fn new(edges: &'a [i64], nodes: &'a [usize]) -> Option<Self> {
        if !edges.len().is_multiple_of(2) {
            return None;
        }
        let (sources, targets) = edges.split_at(edges.len() / 2);
        let mut first = vec![0];
        let mut here = 0..0; // nodes of the graph whose edges come now
        for (edge, (&source, &target)) in sources.iter().zip(targets).enumerate() {
            let (source, target) = (usize::try_from(source).ok()?, usize::try_from(target).ok()?);
            while source >= here.end {
                let graph = first.len() - 1;
                here = *nodes.get(graph)?..*nodes.get(graph + 1)?;
                first.push(edge);
            }
            if !here.contains(&source) || !here.contains(&target) {
                return None;
            }
        }
        first.remove(0); // the edges before those of the first graph, of which there are none
        first.resize(nodes.len(), sources.len());
        Some(Self { sources, targets, nodes, first })
    }

    /// The arcs of one graph.
    fn enter(&self, graph: usize, direction: Direction, steps: &mut Steps) -> Result<(), Error> {
        let (start, size) = (self.nodes[graph], self.nodes[graph + 1] - self.nodes[graph]);
        let edges = self.first[graph]..self.first[graph + 1];
        let (sources, targets) = (&self.sources[edges.clone()], &self.targets[edges]);
        if size > 64 {
            let own: Vec<i64> = sources.iter().chain(targets).map(|&node| node - start as i64).collect();
            steps.enter(Arcs::new(&own, &[size as i64], None, direction)?.graph(0));
            return Ok(());
        }
        let mut words = [0_u64; 64];
        for (&source, &target) in sources.iter().zip(targets) {
            let (source, target) = ((source as usize - start) % 64, (target as usize - start) % 64);
            words[source] |= 1 << target;
            if direction == Direction::Both {
                words[target] |= 1 << source;
            }
        }
        steps.enter_words(&words[..size]);
        Ok(())
    }
}

fn of_graph(steps: &Steps, bits: &mut Bits, most: usize, limit: u32, out: &mut [i32]) {
    let nodes = steps.order.len();
    out[nodes * most..].fill(-1);
    if nodes <= small_hops::NODES {
        return small_hops::search(steps, most, limit, out);
    }
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
            let numbers = spread(seen[word], (0..count).map(|bit| planes[bit * size + word]));
            columns.copy_from_slice(&numbers[..columns.len()]);
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

/// The hops of 64 pairs, from their bits, lowest first; -1 for those that were never seen.
#[inline(always)]
pub(super) fn spread(seen: u64, bits: impl Iterator<Item = u64> + Clone) -> [i32; 64] {
    let mut numbers = [0; 64];
    for (half, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let part = |word: u64| (word >> (32 * half)) as u32;
        set(numbers, !part(seen), -1);
        for (bit, word) in bits.clone().enumerate() {
            set(numbers, part(word), 1 << bit);
        }
    }
    numbers
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
    use super::*;
    use proptest::prelude::*;

    fn all(edges: &[i64], sizes: &[i64], direction: Direction, limit: u32, threads: usize) -> Vec<i32> {
        let most = sizes.iter().copied().max().unwrap_or(0) as usize;
        let mut out = vec![7; sizes.len() * most * most];
        hops(edges, sizes, direction, limit, &mut out, threads).unwrap();
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
    fn edges_in_any_order_give_the_same() {
        let sizes = [3, 70, 0, 64, 5];
        let (mut edges, mut start) = (vec![], 0);
        for &size in &sizes {
            edges.extend((1..size).map(|node| (start + node, start + node * node % size)));
            start += size;
        }
        let flat = |edges: &[(i64, i64)]| -> Vec<i64> {
            edges.iter().map(|edge| edge.0).chain(edges.iter().map(|edge| edge.1)).collect()
        };
        for direction in [Direction::Forward, Direction::Both] {
            let grouped = all(&flat(&edges), &sizes, direction, u32::MAX, 2);
            let mixed: Vec<_> = edges.iter().rev().copied().collect();
            assert_eq!(grouped, all(&flat(&mixed), &sizes, direction, u32::MAX, 2));
        }
    }

    #[test]
    fn edges_between_graphs_or_to_nowhere_are_an_error() {
        let mut out = [0; 8];
        for edges in [[0, 2], [0, 4], [-1, 0], [3, 1]] {
            assert!(hops(&edges, &[2, 2], Direction::Both, 1, &mut out, 1).is_err());
        }
    }

    #[test]
    fn no_graphs_and_a_wrong_size_of_the_output() {
        assert!(all(&[], &[], Direction::Both, 1, 2).is_empty());
        assert!(all(&[], &[0, 0], Direction::Both, 1, 2).is_empty());
        assert!(hops(&[], &[2], Direction::Both, 1, &mut [0; 5], 1).is_err());
    }
}

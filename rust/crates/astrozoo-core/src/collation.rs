//! Ragged graphs, laid one after the other as the parts of one large graph.
//!
//! Every array of the result is written once, from front to back. Edges are shifted and checked in the same loop: as
//! unsigned numbers, negative ones are huge, so the largest tells of both ends.

use crate::error::Error;
use crate::parallel;
use multiversion::multiversion;

/// Bytes that are worth a thread: starting one takes as long as copying a few hundred kilobytes.
const GRAIN: usize = 1 << 20;
/// Graphs of one task.
const TASK: usize = 64;

/// Write `pieces` one after the other.
///
/// # Errors
///
/// They do not fill the result.
pub fn join<T: Copy + Send + Sync>(pieces: &[&[T]], result: &mut [T], threads: usize) -> Result<(), Error> {
    let tasks = cut(pieces, result, |piece| piece.len())?;
    let threads = parallel::worth(threads, std::mem::size_of_val(pieces) + total_bytes(pieces), GRAIN);
    parallel::map(threads, tasks, |(pieces, mut result)| {
        for piece in pieces {
            let (mine, rest) = result.split_at_mut(piece.len());
            mine.copy_from_slice(piece);
            result = rest;
        }
    });
    Ok(())
}

/// Write the edges `[2, edge]` of graphs with `nodes` nodes as those of one graph: all first rows, then all second ones.
///
/// # Errors
///
/// The number of a graph whose edges lead to nodes that it does not have.
///
/// # Errors
///
/// Sizes that do not fit each other.
pub fn shift_edges(
    nodes: &[usize],
    edges: &[&[i64]],
    result: &mut [i64],
    threads: usize,
) -> Result<Result<(), usize>, Error> {
    Error::require(nodes.len() == edges.len() && edges.iter().all(|edges| edges.len().is_multiple_of(2)), || {
        format!("{} graphs have {} lists of edges, or a list has an odd length", nodes.len(), edges.len())
    })?;
    let (sources, targets) = result.split_at_mut(result.len() / 2);
    let half = |edges: &&[i64]| edges.len() / 2;
    let tasks = cut(edges, sources, half)?.into_iter().zip(cut(edges, targets, half)?);
    let mut first = 0;
    let tasks = tasks.zip(nodes.chunks(TASK)).enumerate().map(|(task, (((edges, sources), (_, targets)), nodes))| {
        let offset = first;
        first += nodes.iter().sum::<usize>() as i64;
        (task, edges, sources, targets, nodes, offset)
    });
    let tasks: Vec<_> = tasks.collect();
    let threads = parallel::worth(threads, total_bytes(edges), GRAIN);
    let wrong = parallel::map(threads, tasks, |(task, edges, mut sources, mut targets, nodes, mut first)| {
        for (graph, (edges, &nodes)) in edges.iter().zip(nodes).enumerate() {
            let (source, target) = edges.split_at(edges.len() / 2);
            let (mine, rest) = sources.split_at_mut(source.len());
            let far = shift(source, first, mine);
            sources = rest;
            let (mine, rest) = targets.split_at_mut(target.len());
            let far = far.max(shift(target, first, mine));
            targets = rest;
            if !source.is_empty() && far >= nodes as u64 {
                return Some(task * TASK + graph);
            }
            first += nodes as i64;
        }
        None
    });
    Ok(wrong.into_iter().flatten().next().map_or(Ok(()), Err))
}

/// Write the number of its graph for each node.
///
/// # Errors
///
/// Graphs with `nodes` nodes do not fill the result.
pub fn owners(nodes: &[usize], result: &mut [i64]) -> Result<(), Error> {
    let mut rest = result;
    for (graph, &nodes) in (0..).zip(nodes) {
        let (mine, others) = rest.split_at_mut_checked(nodes).ok_or_else(|| Error::new("more nodes than places"))?;
        mine.fill(graph);
        rest = others;
    }
    Error::require(rest.is_empty(), || format!("{} places without a node", rest.len()))
}

/// Pieces by tasks, with their part of the result.
fn cut<'a, 'b, P, T>(
    pieces: &'a [P],
    result: &'b mut [T],
    size: impl Fn(&P) -> usize,
) -> Result<Vec<(&'a [P], &'b mut [T])>, Error> {
    let mut rest = result;
    let mut tasks = Vec::with_capacity(pieces.len().div_ceil(TASK));
    for pieces in pieces.chunks(TASK) {
        let length = pieces.iter().try_fold(0_usize, |sum, piece| sum.checked_add(size(piece)));
        let parts = length.and_then(|length| rest.split_at_mut_checked(length));
        let (mine, others) = parts.ok_or_else(|| Error::new("more values than places"))?;
        tasks.push((pieces, mine));
        rest = others;
    }
    Error::require(rest.is_empty(), || format!("{} places without a value", rest.len()))?;
    Ok(tasks)
}

fn total_bytes<T>(pieces: &[&[T]]) -> usize {
    pieces.iter().map(|piece| size_of_val(*piece)).sum()
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

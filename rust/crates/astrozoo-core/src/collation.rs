//! Graphs out of a data set, laid one after the other as the parts of one large graph.
//!
//! A data set is a few flat arrays, in which the rows of a graph lie next to each other: what is taken of each graph is
//! copied in one piece. The pieces of all arrays are one list of tasks, so that threads are started once.

use crate::error::Error;
use crate::parallel;
use std::ops::Range;

/// Values that are worth a thread: starting one takes as long as moving a hundred kilobytes.
const GRAIN: usize = 1 << 16;
/// Graphs of one task.
const GRAPHS: usize = 32;

/// A piece of the work.
pub type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

/// The rows of each graph that is taken: graph `i` has those from `starts[i]` to `starts[i + 1]`.
///
/// # Errors
///
/// A graph that does not exist, or starts that do not rise or pass the number of `rows`.
pub fn pick(starts: &[i64], graphs: &[i64], rows: usize) -> Result<Vec<Range<usize>>, Error> {
    let bounds = |graph: i64| {
        let graph = usize::try_from(graph).ok()?;
        let start = usize::try_from(*starts.get(graph)?).ok()?;
        let stop = usize::try_from(*starts.get(graph.checked_add(1)?)?).ok()?;
        (start <= stop && stop <= rows).then_some(start..stop)
    };
    let refused = |graph| Error::new(format!("graph {graph} has no rows among {rows}"));
    graphs.iter().map(|&graph| bounds(graph).ok_or_else(|| refused(graph))).collect()
}

/// How many rows were picked.
pub fn total(picked: &[Range<usize>]) -> usize {
    picked.iter().map(ExactSizeIterator::len).sum()
}

/// Add the tasks that copy the picked rows of `values[row, width]` into `out`.
///
/// # Errors
///
/// Sizes that do not fit each other.
pub fn gather_rows<'a, T: Copy + Send + Sync>(
    values: &'a [T],
    width: usize,
    picked: &'a [Range<usize>],
    out: &'a mut [T],
    tasks: &mut Vec<Task<'a>>,
) -> Result<(), Error> {
    let last = picked.iter().map(|rows| rows.end).max().unwrap_or(0);
    let inside = last.checked_mul(width).is_some_and(|last| last <= values.len());
    require(inside && total(picked) * width == out.len())?;
    each_part(picked, width, out, |picked, out| {
        tasks.push(Box::new(move || {
            let mut rest = out;
            for rows in picked {
                let (here, behind) = rest.split_at_mut(rows.len() * width);
                here.copy_from_slice(&values[rows.start * width..rows.end * width]);
                rest = behind;
            }
        }));
    });
    Ok(())
}

/// Add the tasks that write the picked columns of `edges[2, edge]` into `out`, moved by the nodes of the graphs before.
///
/// # Errors
///
/// Sizes that do not fit each other.
pub fn gather_edges<'a>(
    edges: &'a [i64],
    nodes: &'a [Range<usize>],
    picked: &'a [Range<usize>],
    out: &'a mut [i64],
    tasks: &mut Vec<Task<'a>>,
) -> Result<(), Error> {
    let count = edges.len() / 2;
    let inside = picked.iter().all(|columns| columns.end <= count);
    require(inside && edges.len() == 2 * count && out.len() == 2 * total(picked) && nodes.len() == picked.len())?;
    let (sources, targets) = out.split_at_mut(out.len() / 2);
    for (from, out) in [(&edges[..count], sources), (&edges[count..], targets)] {
        let (mut first, mut rest) = (0, nodes);
        each_part(picked, 1, out, |picked, out| {
            let before = first;
            let (mine, behind) = rest.split_at(picked.len());
            rest = behind;
            first += total(mine) as i64;
            tasks.push(Box::new(move || {
                let (mut shift, mut rest) = (before, out);
                for (columns, nodes) in picked.iter().zip(mine) {
                    let (here, behind) = rest.split_at_mut(columns.len());
                    for (here, &node) in here.iter_mut().zip(&from[columns.clone()]) {
                        *here = node.wrapping_add(shift);
                    }
                    shift += nodes.len() as i64;
                    rest = behind;
                }
            }));
        });
    }
    Ok(())
}

/// Add the tasks that write for each node the number of its graph within the batch.
///
/// # Errors
///
/// Sizes that do not fit each other.
pub fn owners<'a>(nodes: &'a [Range<usize>], out: &'a mut [i64], tasks: &mut Vec<Task<'a>>) -> Result<(), Error> {
    require(out.len() == total(nodes))?;
    let mut first = 0;
    each_part(nodes, 1, out, |nodes, out| {
        let graphs = first..;
        first += nodes.len() as i64;
        tasks.push(Box::new(move || {
            let mut rest = out;
            for (graph, rows) in graphs.zip(nodes) {
                let (here, behind) = rest.split_at_mut(rows.len());
                here.fill(graph);
                rest = behind;
            }
        }));
    });
    Ok(())
}

/// Run the tasks, which write `values` numbers.
pub fn run(tasks: Vec<Task<'_>>, values: usize, threads: usize) {
    parallel::map(parallel::worth(threads, values, GRAIN), tasks, |task| task());
}

fn require(met: bool) -> Result<(), Error> {
    Error::require(met, || "the parts of the graphs do not fit each other".to_owned())
}

/// Call `add` with the graphs of each task and their part of `out`.
fn each_part<'a, T>(
    picked: &'a [Range<usize>],
    width: usize,
    mut out: &'a mut [T],
    mut add: impl FnMut(&'a [Range<usize>], &'a mut [T]),
) {
    for picked in picked.chunks(GRAPHS) {
        let (part, behind) = out.split_at_mut(total(picked) * width);
        add(picked, part);
        out = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn graphs_are_taken_in_the_order_asked_for(
            sizes in proptest::collection::vec((0_usize..7, 0_usize..9), 1..60),
            order in proptest::collection::vec(0_usize..1000, 0..90),
            threads in 1_usize..4,
        ) {
            let starts = |of: &dyn Fn(&(usize, usize)) -> usize| -> Vec<i64> {
                std::iter::once(0)
                    .chain(sizes.iter().scan(0, |sum, graph| { *sum += of(graph); Some(*sum as i64) }))
                    .collect()
            };
            let (node_starts, edge_starts) = (starts(&|graph| graph.0), starts(&|graph| graph.1));
            let (nodes, edges) = (node_starts[sizes.len()] as usize, edge_starts[sizes.len()] as usize);
            let x: Vec<f32> = (0..3 * nodes).map(|i| i as f32).collect();
            let links: Vec<i64> = (0..2 * edges as i64).map(|i| i % 5).collect();
            let order: Vec<i64> = order.iter().map(|i| (i % sizes.len()) as i64).collect();

            let rows = pick(&node_starts, &order, nodes).unwrap();
            let columns = pick(&edge_starts, &order, edges).unwrap();
            let mut out = vec![0.0; 3 * total(&rows)];
            let mut linked = vec![0; 2 * total(&columns)];
            let mut graph_of = vec![0; total(&rows)];
            let mut tasks = Vec::new();
            gather_rows(&x, 3, &rows, &mut out, &mut tasks).unwrap();
            gather_edges(&links, &rows, &columns, &mut linked, &mut tasks).unwrap();
            owners(&rows, &mut graph_of, &mut tasks).unwrap();
            run(tasks, 1 << 20, threads);

            let (mut expected, mut ends, mut owner, mut shift) = (vec![], [vec![], vec![]], vec![], 0);
            for (place, (rows, columns)) in rows.iter().zip(&columns).enumerate() {
                expected.extend_from_slice(&x[3 * rows.start..3 * rows.end]);
                for (end, from) in ends.iter_mut().zip([&links[..edges], &links[edges..]]) {
                    end.extend(from[columns.clone()].iter().map(|node| node + shift));
                }
                owner.extend(rows.clone().map(|_| place as i64));
                shift += rows.len() as i64;
            }
            prop_assert_eq!(out, expected);
            prop_assert_eq!(linked, ends.concat());
            prop_assert_eq!(graph_of, owner);
        }
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        for (starts, graph) in [(vec![0, 2], 1), (vec![0, 2], -1), (vec![0, 9], 0), (vec![2, 1], 0), (vec![-1, 1], 0)] {
            assert!(pick(&starts, &[graph], 5).is_err());
        }
        let picked = [0..3, 1..2];
        let (mut four, mut three, mut eight) = ([0.0; 4], [0.0; 3], [0; 8]);
        assert!(gather_rows(&[0.0; 2], 1, &picked, &mut four, &mut Vec::new()).is_err());
        assert!(gather_rows(&[0.0; 3], 1, &picked, &mut three, &mut Vec::new()).is_err());
        assert!(gather_edges(&[0; 4], &picked, &picked, &mut eight, &mut Vec::new()).is_err());
        assert!(gather_edges(&[0; 6], &picked[..1], &picked, &mut eight, &mut Vec::new()).is_err());
        assert!(owners(&picked, &mut eight, &mut Vec::new()).is_err());
    }
}

//! Eigenvectors of the normalised Laplacian of each graph, those of the smallest eigenvalues but the first.

use super::arcs::{Arcs, Graph};
use super::eigen::{Symmetric, smallest};
use crate::error::Error;
use crate::float::Float;
use crate::parallel;

/// What one task takes, in nodes cubed.
const GRAIN: usize = 1 << 18;
/// Entries within this share of the largest one count as equally large for the sign.
const TIE: f64 = 1e-6;

/// Eigenvectors `[node, count]` and their eigenvalues `[graph, count]`.
///
/// Of a graph with fewer than `count + 1` nodes the missing vectors are 0 and their eigenvalues NaN. `arcs` are as the
/// edges are listed (`Direction::Forward`): two nodes are as far connected as in the direction that has more arcs.
///
/// # Errors
///
/// More numbers than there is memory for.
pub fn laplacian<T: Float>(arcs: &Arcs, count: usize, threads: usize) -> Result<(Vec<T>, Vec<T>), Error> {
    let fits = |rows: usize| rows.checked_mul(count).filter(|&size| size < isize::MAX as usize / 8);
    let (Some(entries), Some(values)) = (fits(arcs.total()), fits(arcs.graphs())) else {
        return Err(Error::new(format!("{count} eigenvectors for each of {} nodes", arcs.total())));
    };
    let most = arcs.most();
    Error::require(most.checked_mul(most).is_some_and(|size| size < isize::MAX as usize / 16), || {
        format!("a dense matrix of {most} nodes squared")
    })?;
    let mut vectors = vec![T::from_f64(0.0); entries];
    let mut eigenvalues = vec![T::NAN; values];
    let tasks = arcs.tasks(GRAIN, |nodes, _| nodes.saturating_mul(nodes).saturating_mul(nodes));
    let rows = arcs.parts(&tasks, &mut vectors, |graph| arcs.size(graph), count);
    let values = arcs.parts(&tasks, &mut eigenvalues, |_| 1, count);
    let both = rows.into_iter().zip(values.into_iter().map(|part| part.1)).collect();
    let done = parallel::map(threads, both, |((graphs, mut rows), values): ((_, &mut [T]), &mut [T])| {
        for (graph, values) in Iterator::zip(graphs, values.chunks_mut(count.max(1))) {
            let own;
            (own, rows) = rows.split_at_mut(arcs.size(graph) * count);
            of_graph(arcs.graph(graph), count, own, values)?;
        }
        Ok(())
    });
    done.into_iter().collect::<Result<(), Error>>()?;
    Ok((vectors, eigenvalues))
}

fn of_graph<T: Float>(graph: Graph<'_>, count: usize, rows: &mut [T], values: &mut [T]) -> Result<(), Error> {
    let found = count.min(graph.len().saturating_sub(1));
    if found == 0 {
        return Ok(());
    }
    let eigen = smallest(normalised(graph), 1, found)?;
    for (value, &exact) in values.iter_mut().zip(&eigen.values) {
        *value = T::from_f64(exact);
    }
    for column in 0..found {
        let entries = || eigen.vectors.iter().copied().skip(column).step_by(found);
        let largest = entries().map(f64::abs).fold(0.0, f64::max);
        let decides = entries().find(|entry| entry.abs() >= (1.0 - TIE) * largest);
        let sign = if decides.is_some_and(|entry| entry < 0.0) { -1.0 } else { 1.0 };
        for (row, entry) in rows.chunks_mut(count).zip(entries()) {
            row[column] = T::from_f64(sign * entry);
        }
    }
    Ok(())
}

/// 1 - D^-1/2 A D^-1/2, without loops; a node without neighbours has a 1 on the diagonal.
fn normalised(graph: Graph<'_>) -> Symmetric {
    let nodes = graph.len();
    let mut matrix = Symmetric::zeros(nodes);
    for node in 0..nodes {
        let row = matrix.row_mut(node);
        for &end in graph.ends(node) {
            row[end as usize] += 1.0;
        }
        row[node] = 0.0;
    }
    for node in 0..nodes {
        for &end in graph.ends(node) {
            let (end, there) = (end as usize, matrix.row(node)[end as usize]);
            let back = &mut matrix.row_mut(end)[node];
            *back = back.max(there);
            let both = *back;
            matrix.row_mut(node)[end] = both;
        }
    }
    let scale: Vec<f64> = (0..nodes)
        .map(|node| {
            let degree: f64 = matrix.row(node).iter().sum();
            if degree > 0.0 { degree.sqrt().recip() } else { 0.0 }
        })
        .collect();
    for node in 0..nodes {
        let row = matrix.row_mut(node);
        for (entry, other) in row.iter_mut().zip(&scale) {
            *entry *= -scale[node] * other;
        }
        row[node] = 1.0;
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::super::arcs::Direction;
    use super::*;

    #[test]
    fn a_ring_has_the_eigenvalues_of_a_ring_and_vectors_of_its_matrix() {
        let edges: Vec<i64> = (0..8).chain((1..8).chain([0])).collect();
        let arcs = Arcs::new(&edges, &[8], None, Direction::Forward).unwrap();
        let (vectors, values) = laplacian::<f64>(&arcs, 4, 1).unwrap();
        let exact = |i: usize| 1.0 - (std::f64::consts::TAU * i as f64 / 8.0).cos();
        for (value, exact) in values.iter().zip([1, 1, 2, 2].map(exact)) {
            assert!((value - exact).abs() < 1e-14);
        }
        let matrix = normalised(arcs.graph(0));
        for column in 0..4 {
            for row in 0..8 {
                let product: f64 = (0..8).map(|i| matrix.row(row)[i] * vectors[i * 4 + column]).sum();
                assert!((product - values[column] * vectors[row * 4 + column]).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn small_graphs_are_padded_and_threads_change_no_bit() {
        let sizes = [1_i64, 2, 0, 30, 3, 45].repeat(40);
        let (mut sources, mut targets, mut start) = (vec![], vec![], 0);
        for &size in &sizes {
            for node in 1..size {
                sources.push(start + node);
                targets.push(start + node * 2 / 5);
            }
            start += size;
        }
        sources.extend(targets);
        let arcs = Arcs::new(&sources, &sizes, None, Direction::Forward).unwrap();
        let (vectors, values) = laplacian::<f32>(&arcs, 5, 1).unwrap();
        let (others, other_values) = laplacian::<f32>(&arcs, 5, 3).unwrap();
        assert_eq!(vectors, others);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&other_values));
        assert_eq!(vectors[..5], [0.0; 5]);
        assert!(values[..5].iter().all(|value| value.is_nan()));
        assert_eq!(values[5], 2.0);
        assert!(values[6].is_nan());
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(vectors[5..7], [half, 0.0]);
        assert_eq!(vectors[10..12], [-half, 0.0]);
    }
}

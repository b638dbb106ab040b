//! Bindings of `astrozoo_core::graph_encodings`.

use crate::arrays::{Plain, empty, refused};
use astrozoo_core::float::Float;
use astrozoo_core::graph_encodings::{self as core, Arcs, Direction};
use numpy::{
    Element, IntoPyArray, PyArray1, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(shortest_paths, module)?)?;
    module.add_function(wrap_pyfunction!(random_walk_pe, module)?)?;
    module.add_function(wrap_pyfunction!(laplacian_pe, module)?)
}

/// Hops `[graph, node, node]`, or distances in double or `single` precision where there are weights.
#[pyfunction]
#[pyo3(signature = (edges, sizes, weights, limit, directed, single, threads, /))]
#[allow(clippy::too_many_arguments)] // as the reference has them
fn shortest_paths<'py>(
    py: Python<'py>,
    edges: PyReadonlyArray2<'py, i64>,
    sizes: PyReadonlyArray1<'py, i64>,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    limit: f64,
    directed: bool,
    single: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let direction = if directed { Direction::Forward } else { Direction::Both };
    if weights.is_none() {
        two_rows(&edges)?;
        let (edges, sizes) = (edges.as_slice()?, sizes.as_slice()?);
        let most = usize::try_from(sizes.iter().copied().max().unwrap_or(0)).unwrap_or(0);
        let most_hops = limit.clamp(0.0, f64::from(u32::MAX)) as u32;
        return filled(py, (sizes.len(), most, most), |out: &mut [i32]| {
            core::hops(edges, sizes, direction, most_hops, out, threads)
        });
    }
    let arcs = arcs(py, &edges, &sizes, weights.as_ref(), direction)?;
    let shape = (arcs.graphs(), arcs.most(), arcs.most());
    if single {
        filled(py, shape, |out: &mut [f32]| core::distances(&arcs, limit, out, threads))
    } else {
        filled(py, shape, |out: &mut [f64]| core::distances(&arcs, limit, out, threads))
    }
}

/// Return probabilities `[node, steps]` of random walks.
#[pyfunction]
#[pyo3(signature = (edges, sizes, weights, steps, single, threads, /))]
fn random_walk_pe<'py>(
    py: Python<'py>,
    edges: PyReadonlyArray2<'py, i64>,
    sizes: PyReadonlyArray1<'py, i64>,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    steps: usize,
    single: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let arcs = arcs(py, &edges, &sizes, weights.as_ref(), Direction::Forward)?;
    if single {
        rows(py, py.detach(|| core::random_walk::<f32>(&arcs, steps, threads)).map_err(refused)?, steps)
    } else {
        rows(py, py.detach(|| core::random_walk::<f64>(&arcs, steps, threads)).map_err(refused)?, steps)
    }
}

/// Eigenvectors `[node, count]` and eigenvalues `[graph, count]` of normalised Laplacians.
#[pyfunction]
#[pyo3(signature = (edges, sizes, count, single, threads, /))]
fn laplacian_pe<'py>(
    py: Python<'py>,
    edges: PyReadonlyArray2<'py, i64>,
    sizes: PyReadonlyArray1<'py, i64>,
    count: usize,
    single: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let arcs = arcs(py, &edges, &sizes, None, Direction::Forward)?;
    if single {
        let (vectors, values) = py.detach(|| core::laplacian::<f32>(&arcs, count, threads)).map_err(refused)?;
        (rows(py, vectors, count)?, rows(py, values, count)?).into_pyobject(py)
    } else {
        let (vectors, values) = py.detach(|| core::laplacian::<f64>(&arcs, count, threads)).map_err(refused)?;
        (rows(py, vectors, count)?, rows(py, values, count)?).into_pyobject(py)
    }
}

fn arcs(
    py: Python<'_>,
    edges: &PyReadonlyArray2<'_, i64>,
    sizes: &PyReadonlyArray1<'_, i64>,
    weights: Option<&PyReadonlyArray1<'_, f64>>,
    direction: Direction,
) -> PyResult<Arcs> {
    two_rows(edges)?;
    let weights = weights.map(|weights| weights.as_slice()).transpose()?;
    let (edges, sizes) = (edges.as_slice()?, sizes.as_slice()?);
    py.detach(|| Arcs::new(edges, sizes, weights, direction)).map_err(refused)
}

/// An array `[graph, node, node]` that `fill` has filled.
fn filled<'py, T: Plain>(
    py: Python<'py>,
    shape: (usize, usize, usize),
    fill: impl FnOnce(&mut [T]) -> Result<(), astrozoo_core::Error> + Send,
) -> PyResult<Bound<'py, PyAny>> {
    let array: Bound<'_, PyArray3<T>> = empty(py, shape)?;
    {
        let mut array = array.readwrite();
        let slice = array.as_slice_mut()?;
        py.detach(|| fill(slice)).map_err(refused)?;
    }
    Ok(array.into_any())
}

fn two_rows(edges: &PyReadonlyArray2<'_, i64>) -> PyResult<()> {
    if edges.shape()[0] != 2 {
        return Err(PyValueError::new_err(format!("edges of shape {:?}; expected (2, edge)", edges.shape())));
    }
    Ok(())
}

fn rows<T: Float + Element>(py: Python<'_>, values: Vec<T>, width: usize) -> PyResult<Bound<'_, PyAny>> {
    let count = values.len() / width.max(1);
    let array: Bound<'_, PyArray1<T>> = values.into_pyarray(py);
    Ok(array.reshape([count, width])?.into_any())
}

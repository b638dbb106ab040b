//! Bindings of `astrozoo_core::neighbors`.

use crate::arrays::{Plain, Real, empty, in_either, refused};
use astrozoo_core::float::Float;
use astrozoo_core::neighbors::{Options, RadiusGraph};
use numpy::{Ix1, Ix2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(radius_graph, module)?)
}

/// Edges and distances between the points of `positions[point, 3]`, in clouds of `sizes` points, within `radius`.
#[pyfunction]
#[pyo3(signature = (positions, sizes, radius, loop_, most, threads, /))]
fn radius_graph<'py>(
    py: Python<'py>,
    positions: Real<'py, Ix2>,
    sizes: PyReadonlyArray1<'py, i64>,
    radius: f64,
    loop_: bool,
    most: usize,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let options = Options { radius, loops: loop_, most };
    in_either!(positions, positions => radius_graph_of(py, &positions, sizes.as_slice()?, options, threads))
}

fn radius_graph_of<'py, T: Float + Plain>(
    py: Python<'py>,
    positions: &PyReadonlyArray2<'py, T>,
    sizes: &[i64],
    options: Options,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let &[_, 3] = positions.shape() else {
        return Err(refused(astrozoo_core::Error::new("positions have three coordinates")));
    };
    let slice = positions.as_slice()?;
    // A negative size becomes a huge one, which fits no positions.
    let sizes: Vec<usize> = sizes.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
    let graph = py.detach(|| RadiusGraph::new(slice, &sizes, options, threads)).map_err(refused)?;
    let edges = empty::<i64, Ix2>(py, (2, graph.edges()))?;
    let distances = empty::<T, Ix1>(py, graph.edges())?;
    {
        let (mut edges, mut distances) = (edges.readwrite(), distances.readwrite());
        let (edges, distances) = (edges.as_slice_mut()?, distances.as_slice_mut()?);
        py.detach(|| graph.write(edges, distances, threads)).map_err(refused)?;
    }
    (edges, distances).into_pyobject(py)
}

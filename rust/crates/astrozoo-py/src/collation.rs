//! Binding of `astrozoo_core::collation`.

use crate::arrays::{empty, refused};
use astrozoo_core::collation::{self as core, Task};
use numpy::{
    Ix1, Ix2, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::ops::Range;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(collate_graphs, module)?)
}

/// `[row, column]` of all graphs of a data set.
#[derive(FromPyObject)]
enum Rows<'py> {
    Single(PyReadonlyArray2<'py, f32>),
    Double(PyReadonlyArray2<'py, f64>),
    Whole(PyReadonlyArray2<'py, i64>),
}

/// Room for the rows that are picked.
enum Room<'py> {
    Single(PyReadwriteArray2<'py, f32>),
    Double(PyReadwriteArray2<'py, f64>),
    Whole(PyReadwriteArray2<'py, i64>),
}

impl<'py> Rows<'py> {
    fn count(&self) -> usize {
        match self {
            Self::Single(rows) => rows.shape()[0],
            Self::Double(rows) => rows.shape()[0],
            Self::Whole(rows) => rows.shape()[0],
        }
    }

    /// An array for `count` rows, and the right to write into it.
    fn room(&self, py: Python<'py>, count: usize) -> PyResult<(Bound<'py, PyAny>, Room<'py>)> {
        match self {
            Self::Single(rows) => {
                let array: Bound<'py, PyArray2<f32>> = empty(py, (count, rows.shape()[1]))?;
                Ok((array.clone().into_any(), Room::Single(array.readwrite())))
            }
            Self::Double(rows) => {
                let array: Bound<'py, PyArray2<f64>> = empty(py, (count, rows.shape()[1]))?;
                Ok((array.clone().into_any(), Room::Double(array.readwrite())))
            }
            Self::Whole(rows) => {
                let array: Bound<'py, PyArray2<i64>> = empty(py, (count, rows.shape()[1]))?;
                Ok((array.clone().into_any(), Room::Whole(array.readwrite())))
            }
        }
    }

    fn gather<'a>(
        &'a self,
        room: &'a mut Room<'py>,
        picked: &'a [Range<usize>],
        tasks: &mut Vec<Task<'a>>,
    ) -> PyResult<()> {
        let done = match (self, room) {
            (Self::Single(rows), Room::Single(room)) => {
                core::gather_rows(rows.as_slice()?, rows.shape()[1], picked, room.as_slice_mut()?, tasks)
            }
            (Self::Double(rows), Room::Double(room)) => {
                core::gather_rows(rows.as_slice()?, rows.shape()[1], picked, room.as_slice_mut()?, tasks)
            }
            (Self::Whole(rows), Room::Whole(room)) => {
                core::gather_rows(rows.as_slice()?, rows.shape()[1], picked, room.as_slice_mut()?, tasks)
            }
            _ => unreachable!("`room` makes the kind of its rows"),
        };
        done.map_err(refused)
    }
}

/// The graphs `indices` of a data set as one: features, edges, edge features, positions, graph of each node, sizes.
#[pyfunction]
#[pyo3(signature = (x, node_starts, edges, edge_starts, edge_attr, positions, indices, threads, /))]
#[allow(clippy::too_many_arguments)] // as the reference has them
fn collate_graphs<'py>(
    py: Python<'py>,
    x: Rows<'py>,
    node_starts: PyReadonlyArray1<'py, i64>,
    edges: PyReadonlyArray2<'py, i64>,
    edge_starts: PyReadonlyArray1<'py, i64>,
    edge_attr: Option<Rows<'py>>,
    positions: Option<Rows<'py>>,
    indices: PyReadonlyArray1<'py, i64>,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let indices = indices.as_slice()?;
    let nodes = core::pick(node_starts.as_slice()?, indices, x.count()).map_err(refused)?;
    let links = core::pick(edge_starts.as_slice()?, indices, edges.shape()[1]).map_err(refused)?;
    let (node_count, edge_count) = (core::total(&nodes), core::total(&links));

    let joined = empty::<i64, Ix2>(py, (2, edge_count))?;
    let batch = empty::<i64, Ix1>(py, node_count)?;
    let sizes = empty::<i64, Ix1>(py, nodes.len())?;
    let mut values = 2 * edge_count + node_count;
    let mut made = [None, None, None];
    let mut rooms = Vec::with_capacity(3);
    let parts = [(Some(&x), &nodes), (edge_attr.as_ref(), &links), (positions.as_ref(), &nodes)];
    for (made, (rows, picked)) in made.iter_mut().zip(parts) {
        let Some(rows) = rows else { continue };
        let (array, room) = rows.room(py, core::total(picked))?;
        values += array.len()?;
        *made = Some(array);
        rooms.push((rows, picked, room));
    }
    {
        let (mut edges_to, mut batch_to, mut sizes_to) = (joined.readwrite(), batch.readwrite(), sizes.readwrite());
        for (size, rows) in sizes_to.as_slice_mut()?.iter_mut().zip(&nodes) {
            *size = rows.len() as i64;
        }
        let mut tasks = Vec::new();
        for (rows, picked, room) in &mut rooms {
            rows.gather(room, picked, &mut tasks)?;
        }
        core::gather_edges(edges.as_slice()?, &nodes, &links, edges_to.as_slice_mut()?, &mut tasks).map_err(refused)?;
        core::owners(&nodes, batch_to.as_slice_mut()?, &mut tasks).map_err(refused)?;
        py.detach(|| core::run(tasks, values, threads));
    }
    let [x, edge_attr, positions] = made;
    (x, joined, edge_attr, positions, batch, sizes).into_pyobject(py)
}

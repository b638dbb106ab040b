//! Bindings of `astrozoo_core::collation`.
//!
//! Arrays of a batch are many and small, so what is done for each counts more than the copying. Nothing about them is
//! checked in Python before: where something is not as it should be, the answer is None, and `astrozoo.accel` looks for
//! what it is. Arrays are copied with the interpreter lock held, which protects them: to borrow each of them, so that
//! this could be done without, takes longer than to copy it (and as views of one array they are compared pair by pair).

use astrozoo_core::collation as core;
use numpy::{
    Element, PyArray1, PyArray2, PyArrayDescrMethods, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods, dtype,
};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(collate_graphs, module)?)
}

/// Graphs as the parts of one graph, or None where their arrays do not fit each other.
#[pyfunction]
#[pyo3(signature = (x, edges, edge_attr, positions, y, threads, /))]
fn collate_graphs<'py>(
    py: Python<'py>,
    x: Bound<'py, PyList>,
    edges: Bound<'py, PyList>,
    edge_attr: Option<Bound<'py, PyList>>,
    positions: Option<Bound<'py, PyList>>,
    y: Option<Bound<'py, PyList>>,
    threads: usize,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let Some((x, sizes)) = join(py, &x, 2)? else { return Ok(None) };
    let Some((shifted, owner, ends)) = join_edges(py, &edges, &sizes, threads)? else { return Ok(None) };
    let mut parts = [None, None, None];
    let lists = [(edge_attr, 2, Some(&ends)), (positions, 2, Some(&sizes)), (y, 1, None)];
    for (part, (list, dims, rows)) in parts.iter_mut().zip(lists) {
        let Some(list) = list else { continue };
        match join(py, &list, dims)? {
            Some((joined, found)) if found.len() == sizes.len() && rows.is_none_or(|rows| *rows == found) => {
                *part = Some(joined);
            }
            _ => return Ok(None),
        }
    }
    let [edge_attr, positions, y] = parts;
    let sizes = PyArray1::from_iter(py, sizes.iter().map(|&size| size as i64));
    (x, shifted, edge_attr, positions, y, owner, sizes).into_pyobject(py).map(Some)
}

/// One array of those of a list, and the rows of each: joined along the first of two dimensions, or, where they have
/// one, as the rows of the result. None unless they are of one type that kernels take, and equally wide.
fn join<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyList>,
    dims: usize,
) -> PyResult<Option<(Bound<'py, PyAny>, Vec<usize>)>> {
    let Ok(first) = list.get_item(0) else { return Ok(None) };
    let Ok(first) = first.cast_into::<PyUntypedArray>() else { return Ok(None) };
    let kind = first.dtype();
    if kind.is_equiv_to(&dtype::<f32>(py)) {
        join_of::<f32>(py, list, dims)
    } else if kind.is_equiv_to(&dtype::<f64>(py)) {
        join_of::<f64>(py, list, dims)
    } else {
        join_of::<i64>(py, list, dims)
    }
}

fn join_of<'py, T: Element + Copy>(
    py: Python<'py>,
    list: &Bound<'py, PyList>,
    dims: usize,
) -> PyResult<Option<(Bound<'py, PyAny>, Vec<usize>)>> {
    let mut width = None;
    let stacked = |shape: &[usize]| match (dims, shape) {
        (2, &[rows, width]) => Some((rows, width)),
        (1, &[width]) => Some((1, width)),
        _ => None,
    };
    let joined = append::<T>(list, |shape| {
        let (rows, found) = stacked(shape)?;
        (*width.get_or_insert(found) == found).then_some(rows)
    });
    let Some((values, rows)) = joined else { return Ok(None) };
    let shape = [rows.iter().sum(), width.unwrap_or(0)];
    Ok(Some((PyArray1::from_vec(py, values).reshape(shape)?.into_any(), rows)))
}

type Edges<'py> = (Bound<'py, PyArray2<i64>>, Bound<'py, PyArray1<i64>>, Vec<usize>);

/// Edges of the whole, the graph of each node, and the number of edges of each graph.
fn join_edges<'py>(
    py: Python<'py>,
    list: &Bound<'py, PyList>,
    sizes: &[usize],
    threads: usize,
) -> PyResult<Option<Edges<'py>>> {
    let joined = append::<i64>(list, |shape| match *shape {
        [2, edges] => Some(edges),
        _ => None,
    });
    let Some((values, ends)) = joined.filter(|(_, ends)| ends.len() == sizes.len()) else { return Ok(None) };
    let found = py.detach(|| Some((core::shift_edges(sizes, &values, &ends, threads).ok()?, core::owners(sizes))));
    let Some((shifted, owner)) = found else { return Ok(None) };
    let shifted = PyArray1::from_vec(py, shifted).reshape([2, values.len() / 2])?;
    Ok(Some((shifted, PyArray1::from_vec(py, owner), ends)))
}

/// The values of all arrays of a list, one after the other, and what `size` makes of each shape; None unless it makes
/// something of every one, and all are C-contiguous and of this type.
fn append<T: Element + Copy>(
    list: &Bound<'_, PyList>,
    mut size: impl FnMut(&[usize]) -> Option<usize>,
) -> Option<(Vec<T>, Vec<usize>)> {
    let mut arrays = Vec::with_capacity(list.len());
    let mut sizes = Vec::with_capacity(list.len());
    let mut total = 0;
    for item in list.iter() {
        let array = item.cast_into::<numpy::PyArrayDyn<T>>().ok()?;
        sizes.push(size(array.shape())?);
        if !array.is_c_contiguous() {
            return None;
        }
        total += array.len();
        arrays.push(array);
    }
    let mut values = Vec::with_capacity(total);
    for array in arrays {
        values.extend_from_slice(&array.to_vec().ok()?);
    }
    Some((values, sizes))
}

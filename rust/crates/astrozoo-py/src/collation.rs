//! Bindings of `astrozoo_core::collation`.
//!
//! Arrays of a batch are many and small, so what is done for each counts more than the copying: they are borrowed once,
//! and nothing about them is checked in Python before. Where something is not as it should be, the answer is None, and
//! `astrozoo.accel` looks for what it is.

use crate::arrays::refused;
use astrozoo_core::collation as core;
use numpy::{
    Element, PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(collate_graphs, module)?)
}

/// Arrays of one type, C-contiguous and of one shape, but for the first dimension.
enum Part<'py> {
    Single(Vec<PyReadonlyArrayDyn<'py, f32>>),
    Double(Vec<PyReadonlyArrayDyn<'py, f64>>),
    Whole(Vec<PyReadonlyArrayDyn<'py, i64>>),
}

impl<'py> Part<'py> {
    /// Borrow the arrays of a list that have `dims` dimensions.
    fn borrow(list: &Bound<'py, PyList>, dims: usize) -> Option<Self> {
        let first = list.get_item(0).ok()?;
        if first.cast::<PyArrayDyn<f32>>().is_ok() {
            borrow(list, dims).map(Part::Single)
        } else if first.cast::<PyArrayDyn<f64>>().is_ok() {
            borrow(list, dims).map(Part::Double)
        } else {
            borrow(list, dims).map(Part::Whole)
        }
    }

    fn arrays(&self) -> Vec<&Bound<'py, PyUntypedArray>> {
        match self {
            Part::Single(arrays) => arrays.iter().map(|array| array.as_untyped()).collect(),
            Part::Double(arrays) => arrays.iter().map(|array| array.as_untyped()).collect(),
            Part::Whole(arrays) => arrays.iter().map(|array| array.as_untyped()).collect(),
        }
    }

    /// Rows of each array, where they are the first dimension.
    fn rows(&self) -> Vec<usize> {
        self.arrays().into_iter().map(|array| array.shape()[0]).collect()
    }

    /// One array of all rows, or, with `stack`, with a row for each array.
    fn join(&self, py: Python<'py>, stack: bool, threads: usize) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Part::Single(arrays) => join(py, arrays, stack, threads),
            Part::Double(arrays) => join(py, arrays, stack, threads),
            Part::Whole(arrays) => join(py, arrays, stack, threads),
        }
    }
}

fn borrow<'py, T: Element>(list: &Bound<'py, PyList>, dims: usize) -> Option<Vec<PyReadonlyArrayDyn<'py, T>>> {
    let mut arrays: Vec<PyReadonlyArrayDyn<'py, T>> = Vec::with_capacity(list.len());
    for item in list.iter() {
        let array = item.cast_into::<PyArrayDyn<T>>().ok()?;
        let shape = array.shape();
        let alike = arrays.first().is_none_or(|first| first.shape()[dims.min(1)..] == shape[dims.min(1)..]);
        if shape.len() != dims || !array.is_c_contiguous() || !alike {
            return None;
        }
        arrays.push(array.try_into_readonly().ok()?);
    }
    Some(arrays)
}

fn join<'py, T: Element + Copy>(
    py: Python<'py>,
    arrays: &[PyReadonlyArrayDyn<'py, T>],
    stack: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let pieces: Vec<&[T]> = arrays.iter().map(|array| array.as_slice()).collect::<Result<_, _>>()?;
    let mut shape = arrays.first().map_or(vec![0], |array| array.shape().to_vec());
    if stack {
        shape.insert(0, arrays.len());
    } else {
        shape[0] = arrays.iter().map(|array| array.shape()[0]).sum();
    }
    let joined = PyArrayDyn::<T>::zeros(py, shape, false);
    {
        let mut joined = joined.readwrite();
        let result = joined.as_slice_mut()?;
        py.detach(|| core::join(&pieces, result, threads)).map_err(refused)?;
    }
    Ok(joined.into_any())
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
    /// The arrays of a list that may be missing; what is not as it should be ends the function with None.
    macro_rules! part {
        ($list:expr, $dims:expr) => {
            match &$list {
                None => None,
                Some(list) => match Part::borrow(list, $dims) {
                    None => return Ok(None),
                    part => part,
                },
            }
        };
    }
    let (Some(nodes), Some(edges)) = (Part::borrow(&x, 2), borrow_edges(&edges)) else { return Ok(None) };
    let (edge_attr, positions, y) = (part!(edge_attr, 2), part!(positions, 2), part!(y, 1));
    let sizes = nodes.rows();
    let ends: Vec<usize> = edges.iter().map(|edges| edges.shape()[1]).collect();
    let fits = |part: &Option<Part>, rows: &[usize]| part.as_ref().is_none_or(|part| part.rows() == rows);
    let labels = y.as_ref().map_or(sizes.len(), |y| y.arrays().len());
    let alike = y.as_ref().is_none_or(|y| y.rows().windows(2).all(|pair| pair[0] == pair[1]));
    if sizes.len() != edges.len() || labels != sizes.len() || !alike || !fits(&edge_attr, &ends) || !fits(&positions, &sizes) {
        return Ok(None);
    }
    let shifted = PyArray2::<i64>::zeros(py, [2, ends.iter().sum()], false);
    let owner = PyArray1::<i64>::zeros(py, sizes.iter().sum::<usize>(), false);
    {
        let pieces: Vec<&[i64]> = edges.iter().map(|edges| edges.as_slice()).collect::<Result<_, _>>()?;
        let (mut shifted, mut owner) = (shifted.readwrite(), owner.readwrite());
        let (shifted, owner) = (shifted.as_slice_mut()?, owner.as_slice_mut()?);
        let inside = py.detach(|| {
            core::owners(&sizes, owner)?;
            core::shift_edges(&sizes, &pieces, shifted, threads)
        });
        if inside.map_err(refused)?.is_err() {
            return Ok(None);
        }
    }
    let join = |part: &Option<Part<'py>>, stack| part.as_ref().map(|part| part.join(py, stack, threads)).transpose();
    let (x, edge_attr) = (nodes.join(py, false, threads)?, join(&edge_attr, false)?);
    let (positions, y) = (join(&positions, false)?, join(&y, true)?);
    let sizes = PyArray1::from_iter(py, sizes.iter().map(|&size| size as i64));
    (x, shifted, edge_attr, positions, y, owner, sizes).into_pyobject(py).map(Some)
}

/// Borrow the edges of each graph, `[2, edge]`.
fn borrow_edges<'py>(list: &Bound<'py, PyList>) -> Option<Vec<PyReadonlyArrayDyn<'py, i64>>> {
    let mut arrays = Vec::with_capacity(list.len());
    for item in list.iter() {
        let array = item.cast_into::<PyArrayDyn<i64>>().ok()?;
        if !matches!(array.shape(), [2, _]) || !array.is_c_contiguous() {
            return None;
        }
        arrays.push(array.try_into_readonly().ok()?);
    }
    Some(arrays)
}

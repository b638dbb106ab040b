//! Binding of `astrozoo_core::gaps`.

use crate::arrays::{Plain, Real, empty, in_either, refused};
use astrozoo_core::float::Float;
use astrozoo_core::gaps as core;
use numpy::{Ix3, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray3, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fill_gaps, module)?)
}

/// `values[outer, time, inner]` with its gaps along time filled linearly.
#[pyfunction]
#[pyo3(signature = (values, times, max_gap, threads, /))]
fn fill_gaps<'py>(
    py: Python<'py>,
    values: Real<'py, Ix3>,
    times: PyReadonlyArray1<'py, f64>,
    max_gap: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    in_either!(values, values => fill_gaps_of(py, &values, &times, max_gap, threads))
}

fn fill_gaps_of<'py, T: Float + Plain>(
    py: Python<'py>,
    values: &PyReadonlyArray3<'py, T>,
    times: &PyReadonlyArray1<'py, f64>,
    max_gap: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let &[outer, time, inner] = values.shape() else { unreachable!("the type has three dimensions") };
    let filled: Bound<'_, PyArray3<T>> = empty(py, (outer, time, inner))?;
    {
        let (slice, times) = (values.as_slice()?, times.as_slice()?);
        let mut writable = filled.try_readwrite()?;
        let target = writable.as_slice_mut()?;
        py.detach(|| core::fill_gaps(slice, target, (outer, inner), times, max_gap, threads)).map_err(refused)?;
    }
    Ok(filled.as_untyped().clone())
}

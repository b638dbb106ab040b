//! Bindings of `astrozoo_core::statistics`.

use crate::arrays::{Real, in_either, refused};
use astrozoo_core::float::Float;
use astrozoo_core::statistics as core;
use numpy::{
    Element, Ix3, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray3, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(nan_stats, module)?)?;
    module.add_function(wrap_pyfunction!(quantiles, module)?)
}

/// Count, mean, standard deviation, minimum and maximum of each of `kept` groups of `values[outer, kept, inner]`.
#[pyfunction]
#[pyo3(signature = (values, threads, /))]
fn nan_stats<'py>(py: Python<'py>, values: Real<'py, Ix3>, threads: usize) -> PyResult<Bound<'py, PyTuple>> {
    in_either!(values, values => nan_stats_of(py, &values, threads))
}

fn nan_stats_of<'py, T: Float + Element>(
    py: Python<'py>,
    values: &PyReadonlyArray3<'py, T>,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let &[outer, kept, inner] = values.shape() else { unreachable!("the type has three dimensions") };
    let slice = values.as_slice()?;
    let found = py.detach(|| core::nan_stats(slice, (outer, kept, inner), threads)).map_err(refused)?;
    let known = |moments: &core::Moments<T>| moments.count > 0;
    let count = PyArray1::from_iter(py, found.iter().map(|moments| moments.count as i64));
    let mean = PyArray1::from_iter(py, found.iter().map(|m| if known(m) { m.mean } else { f64::NAN }));
    let std = PyArray1::from_iter(py, found.iter().map(core::Moments::std));
    let min = PyArray1::from_iter(py, found.iter().map(|m| if known(m) { m.min } else { T::NAN }));
    let max = PyArray1::from_iter(py, found.iter().map(|m| if known(m) { m.max } else { T::NAN }));
    (count, mean, std, min, max).into_pyobject(py)
}

/// Quantiles `[q, kept]` of each of `kept` groups of `values[outer, kept, inner]`.
#[pyfunction]
#[pyo3(signature = (values, q, threads, /))]
fn quantiles<'py>(
    py: Python<'py>,
    values: Real<'py, Ix3>,
    q: PyReadonlyArray1<'py, f64>,
    threads: usize,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    in_either!(values, values => quantiles_of(py, &values, &q, threads))
}

fn quantiles_of<'py, T: core::Ordered + Element>(
    py: Python<'py>,
    values: &PyReadonlyArray3<'py, T>,
    q: &PyReadonlyArray1<'py, f64>,
    threads: usize,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let &[outer, kept, inner] = values.shape() else { unreachable!("the type has three dimensions") };
    let (slice, q) = (values.as_slice()?, q.as_slice()?);
    let found = py.detach(|| core::quantiles(slice, (outer, kept, inner), q, threads)).map_err(refused)?;
    PyArray1::from_vec(py, found).reshape([q.len(), kept])
}

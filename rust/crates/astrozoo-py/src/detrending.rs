//! Bindings of `astrozoo_core::detrending`.

use crate::arrays::{Real, in_either, refused};
use astrozoo_core::Error;
use astrozoo_core::detrending as core;
use astrozoo_core::float::Float;
use numpy::{Element, Ix2, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use numpy::{PyArray1, PyUntypedArray};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(median_filter_time, module)?)?;
    module.add_function(wrap_pyfunction!(biweight_detrend, module)?)
}

/// Median of `flux[curve, time]` in a window of time around each cadence.
#[pyfunction]
#[pyo3(signature = (time, flux, window, break_tolerance, edge_cutoff, threads, /))]
fn median_filter_time<'py>(
    py: Python<'py>,
    time: PyReadonlyArray1<'py, f64>,
    flux: Real<'py, Ix2>,
    window: f64,
    break_tolerance: f64,
    edge_cutoff: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let window = core::Window { length: window, break_tolerance, edge_cutoff };
    let time = time.as_slice()?;
    in_either!(flux, flux => trend(py, &flux, |values, curves| core::median_filter_time(time, values, curves, window, threads)))
}

/// Biweight location of `flux[curve, time]` in a window of time around each cadence.
#[pyfunction]
#[pyo3(signature = (time, flux, window, cval, break_tolerance, edge_cutoff, threads, /))]
#[expect(clippy::too_many_arguments, reason = "those of the reference")]
fn biweight_detrend<'py>(
    py: Python<'py>,
    time: PyReadonlyArray1<'py, f64>,
    flux: Real<'py, Ix2>,
    window: f64,
    cval: f64,
    break_tolerance: f64,
    edge_cutoff: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let window = core::Window { length: window, break_tolerance, edge_cutoff };
    let time = time.as_slice()?;
    in_either!(flux, flux => trend(py, &flux, |values, curves| core::biweight_detrend(time, values, curves, window, cval, threads)))
}

/// Run a kernel without the interpreter lock; its result has the shape of the flux.
fn trend<'py, T: Float + Element>(
    py: Python<'py>,
    flux: &PyReadonlyArray2<'py, T>,
    kernel: impl Fn(&[T], usize) -> Result<Vec<T>, Error> + Send + Sync,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let &[curves, cadences] = flux.shape() else { unreachable!("the type has two dimensions") };
    let values = flux.as_slice()?;
    let trend = py.detach(|| kernel(values, curves)).map_err(refused)?;
    let trend: Bound<'py, PyArray2<T>> = PyArray1::from_vec(py, trend).reshape([curves, cadences])?;
    Ok(trend.as_untyped().clone())
}

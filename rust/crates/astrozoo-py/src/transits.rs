//! Bindings of `astrozoo_core::transits`.

use crate::arrays::refused;
use astrozoo_core::transits as core;
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(box_least_squares, module)?)
}

/// Likelihood, depth, its error, duration and mid-time of the best box at each period.
#[pyfunction]
#[pyo3(signature = (time, flux, weight, periods, durations, oversample, threads, /))]
#[allow(clippy::too_many_arguments)] // as many as the reference has
fn box_least_squares<'py>(
    py: Python<'py>,
    time: PyReadonlyArray1<'py, f64>,
    flux: PyReadonlyArray1<'py, f64>,
    weight: PyReadonlyArray1<'py, f64>,
    periods: PyReadonlyArray1<'py, f64>,
    durations: PyReadonlyArray1<'py, f64>,
    oversample: usize,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let light = core::Light { time: time.as_slice()?, flux: flux.as_slice()?, weight: weight.as_slice()? };
    let (periods, durations) = (periods.as_slice()?, durations.as_slice()?);
    let found =
        py.detach(|| core::box_least_squares(light, periods, durations, oversample, threads)).map_err(refused)?;
    let array = |part: fn(&core::BestBox) -> f64| PyArray1::from_iter(py, found.iter().map(part));
    (
        array(|best| best.likelihood),
        array(|best| best.depth),
        array(|best| best.error),
        array(|best| best.duration),
        array(|best| best.time),
    )
        .into_pyobject(py)
}

//! Bindings of `astrozoo_core::lines`.

use crate::arrays::refused;
use astrozoo_core::lines as core;
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(voigt_cross_section, module)?)
}

/// Sum of Voigt profiles of the lines at every wavenumber.
#[pyfunction]
#[pyo3(signature = (wavenumber, centers, strengths, sigma, gamma, cutoff, threads, /))]
#[expect(clippy::too_many_arguments, reason = "those of the reference")]
fn voigt_cross_section<'py>(
    py: Python<'py>,
    wavenumber: PyReadonlyArray1<'py, f64>,
    centers: PyReadonlyArray1<'py, f64>,
    strengths: PyReadonlyArray1<'py, f64>,
    sigma: PyReadonlyArray1<'py, f64>,
    gamma: PyReadonlyArray1<'py, f64>,
    cutoff: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let grid = wavenumber.as_slice()?;
    let lines = core::Lines {
        centers: centers.as_slice()?,
        strengths: strengths.as_slice()?,
        sigma: sigma.as_slice()?,
        gamma: gamma.as_slice()?,
    };
    let found = py.detach(|| core::voigt_cross_section(grid, lines, cutoff, threads)).map_err(refused)?;
    Ok(PyArray1::from_vec(py, found))
}

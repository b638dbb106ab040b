//! Bindings of `astrozoo_core::spectra`. Results are arrays that NumPy allocates, in huge pages where they are large:
//! touching small ones for the first time would take longer than the kernels.

use crate::arrays::{Plain, Real, empty, in_either, refused};
use astrozoo_core::float::Float;
use astrozoo_core::spectra as core;
use numpy::{Ix2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rebin_flux, module)?)?;
    module.add_function(wrap_pyfunction!(convolve_lsf, module)?)
}

/// Mean of `flux[spectrum, wavelength]` over each bin of `new_wavelength`, and its error where errors are given.
#[pyfunction]
#[pyo3(signature = (wavelength, flux, new_wavelength, flux_err, fill, threads, /))]
fn rebin_flux<'py>(
    py: Python<'py>,
    wavelength: PyReadonlyArray1<'py, f64>,
    flux: Real<'py, Ix2>,
    new_wavelength: PyReadonlyArray1<'py, f64>,
    flux_err: Option<Real<'py, Ix2>>,
    fill: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let grids = (wavelength.as_slice()?, new_wavelength.as_slice()?);
    match (flux, flux_err) {
        (Real::Single(flux), None) => rebin_flux_of(py, grids, &flux, None, fill, threads),
        (Real::Double(flux), None) => rebin_flux_of(py, grids, &flux, None, fill, threads),
        (Real::Single(flux), Some(Real::Single(errors))) => {
            rebin_flux_of(py, grids, &flux, Some(&errors), fill, threads)
        }
        (Real::Double(flux), Some(Real::Double(errors))) => {
            rebin_flux_of(py, grids, &flux, Some(&errors), fill, threads)
        }
        _ => Err(PyTypeError::new_err("flux and flux_err have different types")),
    }
}

fn rebin_flux_of<'py, T: Float + Plain>(
    py: Python<'py>,
    (wavelength, new_wavelength): (&[f64], &[f64]),
    flux: &PyReadonlyArray2<'py, T>,
    errors: Option<&PyReadonlyArray2<'py, T>>,
    fill: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let shape = same_grid(flux.shape(), wavelength.len(), new_wavelength.len())?;
    let result = empty::<T, Ix2>(py, shape)?;
    let error_result = errors.map(|_| empty::<T, Ix2>(py, shape)).transpose()?;
    {
        let mut to = result.readwrite();
        let mut error_to = error_result.as_ref().map(PyArrayMethods::readwrite);
        let flux = (flux.as_slice()?, to.as_slice_mut()?);
        let errors = match (errors, &mut error_to) {
            (Some(errors), Some(to)) => Some((errors.as_slice()?, to.as_slice_mut()?)),
            _ => None,
        };
        py.detach(|| core::rebin_flux(wavelength, new_wavelength, flux, errors, fill, threads)).map_err(refused)?;
    }
    (result, error_result).into_pyobject(py)
}

/// `flux[spectrum, wavelength]` convolved with a Gaussian of `sigma[wavelength]`.
#[pyfunction]
#[pyo3(signature = (wavelength, flux, sigma, truncate, threads, /))]
fn convolve_lsf<'py>(
    py: Python<'py>,
    wavelength: PyReadonlyArray1<'py, f64>,
    flux: Real<'py, Ix2>,
    sigma: PyReadonlyArray1<'py, f64>,
    truncate: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let grid = (wavelength.as_slice()?, sigma.as_slice()?);
    in_either!(flux, flux => convolve_lsf_of(py, grid, &flux, truncate, threads))
}

fn convolve_lsf_of<'py, T: Float + Plain>(
    py: Python<'py>,
    (wavelength, sigma): (&[f64], &[f64]),
    flux: &PyReadonlyArray2<'py, T>,
    truncate: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let shape = same_grid(flux.shape(), wavelength.len(), wavelength.len())?;
    let result = empty::<T, Ix2>(py, shape)?;
    {
        let (flux, mut to) = (flux.as_slice()?, result.readwrite());
        let to = to.as_slice_mut()?;
        py.detach(|| core::convolve_lsf(wavelength, flux, sigma, truncate, to, threads)).map_err(refused)?;
    }
    Ok(result.into_any())
}

/// Shape of the result for spectra on a grid of `pixels`.
fn same_grid(shape: &[usize], pixels: usize, new_pixels: usize) -> PyResult<[usize; 2]> {
    let &[spectra, width] = shape else { unreachable!("the type has two dimensions") };
    let fits = || format!("flux has {width} columns for {pixels} wavelengths");
    astrozoo_core::Error::require(width == pixels, fits).map_err(refused)?;
    Ok([spectra, new_pixels])
}

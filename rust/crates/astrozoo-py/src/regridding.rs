//! Bindings of `astrozoo_core::regridding`.

use crate::arrays::{Real, in_either, refused};
use astrozoo_core::float::Float;
use astrozoo_core::regridding as core;
use numpy::{
    Element, Ix3, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray3, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(regrid_conservative, module)?)
}

type Indices<'py> = PyReadonlyArray1<'py, i64>;
type Weights<'py> = PyReadonlyArray1<'py, f64>;

/// Means over the known area of each target cell, of `values[field, lat, lon]` and the overlaps along both axes.
#[pyfunction]
#[pyo3(signature = (
    values, lat_first, lat_start, lat_weights, lon_first, lon_start, lon_weights, least, threads, /
))]
#[expect(clippy::too_many_arguments, reason = "as the reference takes them")]
fn regrid_conservative<'py>(
    py: Python<'py>,
    values: Real<'py, Ix3>,
    lat_first: Indices<'py>,
    lat_start: Indices<'py>,
    lat_weights: Weights<'py>,
    lon_first: Indices<'py>,
    lon_start: Indices<'py>,
    lon_weights: Weights<'py>,
    least: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let rows = (lat_first.as_slice()?, lat_start.as_slice()?, lat_weights.as_slice()?);
    let columns = (lon_first.as_slice()?, lon_start.as_slice()?, lon_weights.as_slice()?);
    in_either!(values, values => regrid(py, &values, rows, columns, least, threads))
}

fn regrid<'py, T: Float + Element>(
    py: Python<'py>,
    values: &PyReadonlyArray3<'py, T>,
    rows: (&[i64], &[i64], &[f64]),
    columns: (&[i64], &[i64], &[f64]),
    least: f64,
    threads: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let &[fields, lats, lons] = values.shape() else { unreachable!("the type has three dimensions") };
    let slice = values.as_slice()?;
    let shape = [fields, rows.0.len(), columns.0.len()];
    let made = py
        .detach(|| {
            let rows = core::Runs::new(lats, rows.0, rows.1, rows.2)?;
            let columns = core::Runs::new(lons, columns.0, columns.1, columns.2)?;
            core::regrid_conservative(slice, fields, &rows, &columns, least, threads)
        })
        .map_err(refused)?;
    Ok(PyArray1::from_vec(py, made).reshape(shape)?.as_untyped().clone())
}

//! Bindings of `astrozoo_core::folding`.

use crate::arrays::{Real, in_either, refused};
use astrozoo_core::Error;
use astrozoo_core::float::Float;
use astrozoo_core::folding as core;
use numpy::{
    Element, Ix1, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyList;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fold_views, module)?)
}

/// For each view, medians `[candidate, bin]`; `half` and `width` are `[view, candidate]`, and `bins` has one number for
/// each view.
#[pyfunction]
#[pyo3(signature = (time, flux, period, epoch, half, width, bins, normalise, threads, /))]
#[allow(clippy::too_many_arguments)] // as many as the reference has
fn fold_views<'py>(
    py: Python<'py>,
    time: PyReadonlyArray1<'py, f64>,
    flux: Real<'py, Ix1>,
    period: PyReadonlyArray1<'py, f64>,
    epoch: PyReadonlyArray1<'py, f64>,
    half: PyReadonlyArray2<'py, f64>,
    width: PyReadonlyArray2<'py, f64>,
    bins: Vec<usize>,
    normalise: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyList>> {
    let (period, epoch) = (period.as_slice()?, epoch.as_slice()?);
    let expected = [bins.len(), period.len()];
    Error::require(epoch.len() == period.len() && half.shape() == expected && width.shape() == expected, || {
        format!("{} epochs, half {:?} and width {:?} for {expected:?}", epoch.len(), half.shape(), width.shape())
    })
    .map_err(refused)?;
    let (half, width) = (half.as_slice()?, width.as_slice()?);
    let pairs = period.iter().zip(epoch);
    let candidates: Vec<_> = pairs.map(|(&period, &epoch)| core::Candidate { period, epoch }).collect();
    let row = |i: usize| i * candidates.len()..(i + 1) * candidates.len();
    let views: Vec<_> = bins
        .iter()
        .enumerate()
        .map(|(i, &bins)| core::View { bins, half: &half[row(i)], width: &width[row(i)] })
        .collect();
    in_either!(flux, flux => fold_views_of(py, time.as_slice()?, flux.as_slice()?, &candidates, &views, normalise, threads))
}

fn fold_views_of<'py, T: Float + Element>(
    py: Python<'py>,
    time: &[f64],
    flux: &[T],
    candidates: &[core::Candidate],
    views: &[core::View<'_>],
    normalise: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyList>> {
    let found = py.detach(|| core::fold_views(time, flux, candidates, views, normalise, threads)).map_err(refused)?;
    let arrays: Vec<Bound<'py, PyArray2<T>>> = found
        .into_iter()
        .zip(views)
        .map(|(medians, view)| PyArray1::from_vec(py, medians).reshape([candidates.len(), view.bins]))
        .collect::<PyResult<_>>()?;
    PyList::new(py, arrays)
}

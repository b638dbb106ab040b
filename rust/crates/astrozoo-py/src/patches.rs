//! Bindings of `astrozoo_core::patches`.

use crate::arrays::{Real, refused};
use astrozoo_core::float::Float;
use astrozoo_core::patches as core;
use numpy::{Element, Ix4, PyReadonlyArray1, PyReadonlyArray4, PyReadwriteArray4, PyUntypedArrayMethods};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(patch_batch, module)?)
}

#[derive(FromPyObject)]
enum Batch<'py> {
    Single(PyReadwriteArray4<'py, f32>),
    Bits(PyReadwriteArray4<'py, u16>),
}

type Indices<'py> = PyReadonlyArray1<'py, i64>;
type Flips<'py> = PyReadonlyArray1<'py, bool>;
type Moments<'py> = PyReadonlyArray1<'py, f64>;

/// Fill `batch[sample, channel, lat, lon]` with normalised crops of `cube[time, channel, lat, lon]`.
#[pyfunction]
#[pyo3(signature = (cube, times, lats, lons, flip_lat, flip_lon, mean, scale, fill, mask, batch, threads, /))]
#[expect(clippy::too_many_arguments, reason = "as the reference takes them")]
fn patch_batch<'py>(
    py: Python<'py>,
    cube: Real<'py, Ix4>,
    times: Indices<'py>,
    lats: Indices<'py>,
    lons: Indices<'py>,
    flip_lat: Flips<'py>,
    flip_lon: Flips<'py>,
    mean: Moments<'py>,
    scale: Moments<'py>,
    fill: f32,
    mask: bool,
    batch: Batch<'py>,
    threads: usize,
) -> PyResult<()> {
    let places = core::Places {
        times: times.as_slice()?,
        lats: lats.as_slice()?,
        lons: lons.as_slice()?,
        flip_lat: flip_lat.as_slice()?,
        flip_lon: flip_lon.as_slice()?,
    };
    let normalisation = core::Normalisation { mean: mean.as_slice()?, scale: scale.as_slice()?, fill };
    match (cube, batch) {
        (Real::Single(cube), Batch::Single(batch)) => write(py, &cube, places, normalisation, mask, batch, threads),
        (Real::Single(cube), Batch::Bits(batch)) => write(py, &cube, places, normalisation, mask, batch, threads),
        (Real::Double(cube), Batch::Single(batch)) => write(py, &cube, places, normalisation, mask, batch, threads),
        (Real::Double(cube), Batch::Bits(batch)) => write(py, &cube, places, normalisation, mask, batch, threads),
    }
}

fn write<'py, T: Float + Element, O: core::Stored + Element>(
    py: Python<'py>,
    cube: &PyReadonlyArray4<'py, T>,
    places: core::Places<'_>,
    normalisation: core::Normalisation<'_>,
    mask: bool,
    mut batch: PyReadwriteArray4<'py, O>,
    threads: usize,
) -> PyResult<()> {
    let &[times, channels, lats, lons] = cube.shape() else { unreachable!("the type has four dimensions") };
    let &[_, _, height, width] = batch.shape() else { unreachable!("the type has four dimensions") };
    let cube = core::Cube { values: cube.as_slice()?, shape: [times, channels, lats, lons] };
    let batch = batch.as_slice_mut()?;
    py.detach(|| core::patch_batch(cube, places, normalisation, mask, (height, width), batch, threads)).map_err(refused)
}

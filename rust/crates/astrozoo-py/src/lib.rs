//! The extension module `astrozoo_rust._native`: thin functions around `astrozoo-core`.
//!
//! Each takes what `astrozoo.accel` has checked and prepared (C-contiguous arrays of the right type) and checks sizes
//! again, so that no call from Python can reach outside an array; runs without the interpreter lock; and returns arrays.

mod arrays;
mod collation;
mod detrending;
mod fits;
mod folding;
mod gaps;
mod graph_encodings;
mod lines;
mod neighbors;
mod patches;
mod regridding;
mod spectra;
mod statistics;
mod transits;

use pyo3::prelude::*;

/// Version of the calling convention between `astrozoo.accel` and its accelerators that this module follows.
const INTERFACE: u32 = 1;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add("SOURCES", env!("ASTROZOO_SOURCES"))?;
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    collation::register(module)?;
    detrending::register(module)?;
    fits::register(module)?;
    folding::register(module)?;
    gaps::register(module)?;
    graph_encodings::register(module)?;
    lines::register(module)?;
    neighbors::register(module)?;
    patches::register(module)?;
    regridding::register(module)?;
    spectra::register(module)?;
    statistics::register(module)?;
    transits::register(module)?;
    Ok(())
}

//! The extension module `astrozoo_rust._native`: thin functions around `astrozoo-core`.
//!
//! Each takes what `astrozoo.accel` has checked and prepared (C-contiguous arrays of the right type) and checks sizes
//! again, so that no call from Python can reach outside an array; runs without the interpreter lock; and returns arrays.

mod arrays;
mod collation;
mod neighbors;
mod statistics;

use pyo3::prelude::*;

/// Version of the calling convention between `astrozoo.accel` and its accelerators that this module follows.
const INTERFACE: u32 = 1;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add("SOURCES", env!("ASTROZOO_SOURCES"))?;
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    collation::register(module)?;
    neighbors::register(module)?;
    statistics::register(module)?;
    Ok(())
}

//! What the bindings share: errors as Python exceptions.

use astrozoo_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

/// A kernel's refusal as a `ValueError`.
pub fn refused(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

//! What the bindings share: room for results, and errors as Python exceptions.

use astrozoo_core::Error;
use numpy::ndarray::Dimension;
use numpy::{Element, PyArray, PyReadonlyArray};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// A kernel's refusal as a `ValueError`.
pub fn refused(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// An array of one of the two precisions that kernels work in.
pub enum Real<'py, D: Dimension> {
    /// float32.
    Single(PyReadonlyArray<'py, f32, D>),
    /// float64.
    Double(PyReadonlyArray<'py, f64, D>),
}

impl<'a, 'py, D: Dimension + 'static> FromPyObject<'a, 'py> for Real<'py, D> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = object.extract::<PyReadonlyArray<'py, f32, D>>() {
            return Ok(Self::Single(array));
        }
        if let Ok(array) = object.extract::<PyReadonlyArray<'py, f64, D>>() {
            return Ok(Self::Double(array));
        }
        let dims = D::NDIM.unwrap_or_default();
        Err(PyTypeError::new_err(format!("expected an array of float32 or float64 with {dims} dimensions")))
    }
}

/// A type of which any bytes are a value, unlike of `bool`.
pub trait Plain: Element {}

macro_rules! plain {
    ($($type:ty),*) => {$(impl Plain for $type {})*};
}

plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// An array whose values are whatever was in its memory, for a kernel that writes all of them.
pub fn empty<'py, T: Plain, D: Dimension>(
    py: Python<'py>,
    shape: impl IntoPyObject<'py>,
) -> PyResult<Bound<'py, PyArray<T, D>>> {
    static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    by_numpy(EMPTY.import(py, "numpy", "empty")?, shape)
}

/// An array of zeros.
pub fn zeros<'py, T: Element, D: Dimension>(
    py: Python<'py>,
    shape: impl IntoPyObject<'py>,
) -> PyResult<Bound<'py, PyArray<T, D>>> {
    static ZEROS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    by_numpy(ZEROS.import(py, "numpy", "zeros")?, shape)
}

/// NumPy makes arrays: it asks the system for large pages, uses memory again that it has, which costs no page faults, and
/// having none left is a `MemoryError`.
fn by_numpy<'py, T: Element, D: Dimension>(
    maker: &Bound<'py, PyAny>,
    shape: impl IntoPyObject<'py>,
) -> PyResult<Bound<'py, PyArray<T, D>>> {
    let array = maker.call1((shape, T::get_dtype(maker.py())))?;
    Ok(array.cast_into::<PyArray<T, D>>()?)
}

/// `$body` with the array of either precision as `$name`.
macro_rules! in_either {
    ($array:expr, $name:ident => $body:expr) => {
        match $array {
            $crate::arrays::Real::Single($name) => $body,
            $crate::arrays::Real::Double($name) => $body,
        }
    };
}
pub(crate) use in_either;

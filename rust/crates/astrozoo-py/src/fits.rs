//! Binding of `astrozoo_core::fits`.

use crate::arrays::{empty, zeros};
use astrozoo_core::fits::{Column, FitsError, Header, Kind, Slots, Source, Table, Value, Wanted};
use numpy::{Ix1, PyArrayMethods, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::path::PathBuf;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_fits_columns, module)?)
}

#[derive(FromPyObject)]
enum File<'py> {
    Bytes(Bound<'py, PyBytes>),
    Path(PathBuf),
}

#[derive(FromPyObject)]
enum Hdu {
    Number(usize),
    Name(String),
}

/// Columns by name, their units, and the keywords of the table's HDU and of the primary one.
#[pyfunction]
#[pyo3(signature = (source, columns, hdu, threads, /))]
fn read_fits_columns<'py>(
    py: Python<'py>,
    source: File<'py>,
    columns: Option<Vec<String>>,
    hdu: Option<Hdu>,
    threads: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    let wanted = match hdu {
        None => Wanted::FirstTable,
        Some(Hdu::Number(number)) => Wanted::Number(number),
        Some(Hdu::Name(name)) => Wanted::Named(name),
    };
    let memory = match &source {
        File::Bytes(bytes) => Some(bytes.as_bytes()),
        File::Path(_) => None,
    };
    let path = match &source {
        File::Bytes(_) => None,
        File::Path(path) => Some(path.as_path()),
    };
    let opened = py.detach(|| {
        let source = match (memory, path) {
            (Some(bytes), _) => Source::Memory(bytes),
            (None, path) => Source::open(path.unwrap_or(std::path::Path::new("")))?,
        };
        let table = Table::open(&source, &wanted)?;
        let columns = table.select(columns.as_deref())?;
        Ok((source, table, columns))
    });
    let (source, table, columns) = opened.map_err(|error| refused(py, error))?;
    let mut room: Vec<Room<'py>> =
        columns.iter().map(|column| Room::new(py, column, table.rows)).collect::<PyResult<_>>()?;
    let slots = room.iter_mut().map(Room::slots).collect::<PyResult<_>>()?;
    py.detach(|| table.read(&source, &columns, slots, threads)).map_err(|error| refused(py, error))?;
    let (values, units) = (PyDict::new(py), PyDict::new(py));
    for (room, column) in room.into_iter().zip(&columns) {
        values.set_item(&column.name, room.finish(column, table.rows)?)?;
        if let Some(unit) = &column.unit {
            units.set_item(&column.name, unit)?;
        }
    }
    (values, units, keywords(py, &table.header)?, keywords(py, &table.primary)?).into_pyobject(py)
}

/// As `ValueError(message)`, with the name and the columns that are there behind the message where one is missing; what
/// the operating system refuses is an `OSError`.
fn refused(py: Python<'_>, error: FitsError) -> PyErr {
    let message = error.to_string();
    match error {
        FitsError::Io(error) => {
            let os_error = || -> PyResult<PyErr> {
                let Some(code) = error.raw_os_error() else { return Ok(error.into()) };
                let text = py.import("os")?.call_method1("strerror", (code,))?.unbind();
                Ok(pyo3::exceptions::PyOSError::new_err((code, text)))
            };
            os_error().unwrap_or_else(|error| error)
        }
        FitsError::MissingColumn { name, present } => PyValueError::new_err((message, name, present)),
        _ => PyValueError::new_err(message),
    }
}

fn keywords<'py>(py: Python<'py>, header: &Header) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for entry in header.entries() {
        let key = &entry.key;
        match &entry.value {
            Value::Undefined => dict.set_item(key, py.None())?,
            Value::Logical(value) => dict.set_item(key, value)?,
            // 64 bits are converted without a detour.
            Value::Integer(value) => match i64::try_from(*value) {
                Ok(value) => dict.set_item(key, value)?,
                Err(_) => dict.set_item(key, value)?,
            },
            Value::Real(value) => dict.set_item(key, value)?,
            Value::Text(value) => dict.set_item(key, value)?,
        }
    }
    Ok(dict)
}

macro_rules! rooms {
    ($($name:ident($type:ty) = $($kind:pat_param)|+, $maker:ident;)*) => {
        /// An array of NumPy that is being filled. Every element is written before anybody reads it; truth values begin as
        /// zeros all the same, as other bytes would be none.
        enum Room<'py> { $($name(PyReadwriteArray1<'py, $type>),)* }

        impl<'py> Room<'py> {
            fn new(py: Python<'py>, column: &Column, rows: usize) -> PyResult<Self> {
                let elements = column.per_row.saturating_mul(rows);
                match column.kind { $($($kind)|+ => Ok(Self::$name($maker::<$type, Ix1>(py, elements)?.try_readwrite()?)),)* }
            }

            fn slots(&mut self) -> PyResult<Slots<'_>> {
                match self { $(Self::$name(array) => Ok(Slots::$name(array.as_slice_mut()?)),)* }
            }

            fn into_any(self) -> Bound<'py, PyAny> {
                match self { $(Self::$name(array) => Bound::clone(&array).into_any(),)* }
            }
        }
    };
}

rooms! {
    Bool(bool) = Kind::Bool, zeros;
    I8(i8) = Kind::I8, empty;
    U8(u8) = Kind::U8, empty;
    I16(i16) = Kind::I16, empty;
    U16(u16) = Kind::U16, empty;
    I32(i32) = Kind::I32, empty;
    U32(u32) = Kind::U32 | Kind::Text(_), empty;
    I64(i64) = Kind::I64, empty;
    U64(u64) = Kind::U64, empty;
    F32(f32) = Kind::F32 | Kind::Complex32, empty;
    F64(f64) = Kind::F64 | Kind::Complex64, empty;
}

impl<'py> Room<'py> {
    /// The array `[rows, *shape]` of the column's own dtype.
    fn finish(self, column: &Column, rows: usize) -> PyResult<Bound<'py, PyAny>> {
        let array = self.into_any();
        let py = array.py();
        let array = match column.kind {
            Kind::Text(length) => array.call_method1(intern!(py, "view"), (format!("U{}", length.max(1)),))?,
            Kind::Complex32 => array.call_method1(intern!(py, "view"), ("c8",))?,
            Kind::Complex64 => array.call_method1(intern!(py, "view"), ("c16",))?,
            _ => array,
        };
        if column.shape.is_empty() {
            return Ok(array);
        }
        let shape: Vec<usize> = std::iter::once(rows).chain(column.shape.iter().copied()).collect();
        array.call_method1(intern!(py, "reshape"), (PyTuple::new(py, shape)?,))
    }
}

//! What is wrong with a file, or with what was asked of it.

use std::fmt;
use std::io;

/// Why a table was not read. Messages say what was found, what was expected, and at which byte of the file.
#[derive(Debug)]
pub enum FitsError {
    /// The operating system refused to open or to read the file.
    Io(io::Error),
    /// The file breaks the standard.
    Format(String),
    /// The file ends before its header says it does.
    Truncated(String),
    /// No such HDU, or one that holds no binary table.
    MissingHdu(String),
    /// No column has this name.
    MissingColumn {
        /// What was asked for.
        name: String,
        /// The columns that are there.
        present: Vec<String>,
    },
    /// Within the standard, but not read here.
    Unsupported(String),
    /// The caller's arrays do not fit the columns.
    Arguments(String),
}

impl fmt::Display for FitsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(formatter),
            Self::MissingColumn { name, .. } => write!(formatter, "there is no column '{name}'."),
            Self::Format(message)
            | Self::Truncated(message)
            | Self::MissingHdu(message)
            | Self::Unsupported(message)
            | Self::Arguments(message) => formatter.write_str(message),
        }
    }
}

impl std::error::Error for FitsError {}

impl From<io::Error> for FitsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// `Ok` if `met`, else that the file breaks the standard.
pub(super) fn require(met: bool, message: impl FnOnce() -> String) -> Result<(), FitsError> {
    if met { Ok(()) } else { Err(FitsError::Format(message())) }
}

//! What a kernel answers to input it cannot work on.

use std::fmt;

/// Why a kernel refused its input. The Python layer checks before it calls, so users rarely meet this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    /// An error with a message that says what was wrong and what was expected.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// `Ok` if `met`, else the error that `message` makes.
    pub fn require(met: bool, message: impl FnOnce() -> String) -> Result<(), Self> {
        if met { Ok(()) } else { Err(Self(message())) }
    }

    /// `Ok` if an array of these sizes has so many values.
    pub fn require_fill(values: usize, sizes: &[usize]) -> Result<(), Self> {
        let product = sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        Self::require(product == Some(values), || {
            let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
            format!("{values} values do not fill {}", sizes.join(" x "))
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

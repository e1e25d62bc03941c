//! What can go wrong, each with the argument, the index and the value.

use crate::model::ModelError;

/// An error of the core. The Python layer maps each variant to one exception class.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value or a shape is not acceptable (`ValueError`).
    #[error("{0}")]
    Value(String),
    /// An index is outside its range (`IndexError`).
    #[error("{0}")]
    Index(String),
    /// A count is too large to be represented exactly (`OverflowError`).
    #[error("{0}")]
    Overflow(String),
    /// There is not enough memory (`MemoryError`).
    #[error("{0}")]
    Memory(String),
    /// The local function misbehaved (`ltde.ModelError`).
    #[error("{0}")]
    Model(#[from] ModelError),
    /// The caller asked to stop (the pending Python exception, usually `KeyboardInterrupt`).
    #[error("interrupted")]
    Interrupted,
}

/// Result with the error of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Shorthand for `Err(Error::Value(format!(...)))`.
macro_rules! value_error {
    ($($arg:tt)*) => { Err($crate::error::Error::Value(format!($($arg)*))) };
}
pub(crate) use value_error;

//! Errors of the core as Python exceptions.

use ltde_core::model::{Fault, ModelError as CoreModelError};
use pyo3::exceptions::{
    PyIndexError, PyMemoryError, PyOverflowError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;

pyo3::create_exception!(
    ltde._core,
    ModelError,
    PyValueError,
    "The local function of a model returned something that is not a model.\n\n\
     Attributes: replica, step (None in `evaluate`), state, action (or None), value (or None),\n\
     mu (the densities of N_s it was given), raised (whether it raised an exception)."
);

/// One exception class for each kind of error.
pub(crate) fn to_py(error: ltde_core::Error) -> PyErr {
    match error {
        ltde_core::Error::Value(message) => PyValueError::new_err(message),
        ltde_core::Error::Index(message) => PyIndexError::new_err(message),
        ltde_core::Error::Overflow(message) => PyOverflowError::new_err(message),
        ltde_core::Error::Memory(message) => PyMemoryError::new_err(message),
        ltde_core::Error::Model(error) => Python::attach(|py| match model_error(py, &error) {
            Ok(error) | Err(error) => error,
        }),
        other => PyRuntimeError::new_err(other.to_string()),
    }
}

fn model_error(py: Python<'_>, error: &CoreModelError) -> PyResult<PyErr> {
    let exception = ModelError::new_err(error.to_string());
    let (action, value) = match error.fault {
        Fault::Raised => (None, None),
        Fault::Probability { action, value, .. }
        | Fault::RowSum { action, value }
        | Fault::Reward { action, value, .. } => (Some(action), Some(value)),
    };
    let instance = exception.value(py);
    instance.setattr("replica", error.replica)?;
    instance.setattr("step", error.step)?;
    instance.setattr("state", error.state)?;
    instance.setattr("action", action)?;
    instance.setattr("value", value)?;
    instance.setattr("mu", error.mu.clone())?;
    instance.setattr("raised", error.fault == Fault::Raised)?;
    Ok(exception)
}

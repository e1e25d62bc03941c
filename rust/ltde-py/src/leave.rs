//! The one place where Python is left: without the GIL, with errors mapped and signals heard.

use std::sync::Mutex;

use ltde_core::watch::Watch;
use pyo3::prelude::*;

use crate::errors::to_py;

/// Runs a call of the core without the GIL.
pub(crate) fn leave<R: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> ltde_core::Result<R> + Send,
) -> PyResult<R> {
    #[allow(clippy::disallowed_methods)]
    py.detach(work).map_err(to_py)
}

/// As [`leave`], for calls that take long: a pending signal stops them and is raised.
pub(crate) fn leave_watched<R: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Watch<'_>) -> ltde_core::Result<R> + Send,
) -> PyResult<R> {
    let signal: Mutex<Option<PyErr>> = Mutex::new(None);
    let poll = || {
        let raised = Python::attach(|py| py.check_signals().err());
        let stop = raised.is_some();
        if stop {
            *signal
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()) = raised;
        }
        stop
    };
    #[allow(clippy::disallowed_methods)]
    let result = py.detach(|| work(&Watch::new(&poll)));
    match signal
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
    {
        Some(error) => Err(error),
        None => result.map_err(to_py),
    }
}

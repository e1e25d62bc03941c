//! `ltde._core.TabularPolicy`.

use ltde_core::policy::TabularPolicy;
use numpy::{PyReadonlyArray4, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::errors::to_py;

/// A table of action probabilities (times, replicas, S, A), checked once.
#[pyclass(frozen, name = "TabularPolicy", module = "ltde._core")]
pub(crate) struct PyTabularPolicy {
    probs: Vec<f64>,
    shape: [usize; 4],
}

#[pymethods]
impl PyTabularPolicy {
    #[new]
    fn new(probs: PyReadonlyArray4<'_, f64>) -> PyResult<Self> {
        let shape = shape4(&probs);
        let probs = probs.as_slice()?.to_vec();
        TabularPolicy::new(&probs, shape).map_err(to_py)?;
        Ok(PyTabularPolicy { probs, shape })
    }
}

impl PyTabularPolicy {
    pub(crate) fn view(&self) -> TabularPolicy<'_> {
        TabularPolicy::trusted(&self.probs, self.shape)
    }
}

pub(crate) fn shape4(probs: &PyReadonlyArray4<'_, f64>) -> [usize; 4] {
    let shape = probs.shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

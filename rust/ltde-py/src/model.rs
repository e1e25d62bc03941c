//! `ltde._core.Model`.

use std::sync::Arc;

use ltde_core::initial::Initial;
use ltde_core::model::{Model, ModelData};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray3, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::to_py;
use crate::graph::PyGraph;
use crate::leave::leave_watched;
use crate::local_function::CompiledFunction;

/// A local model on a graph, ready to be simulated.
#[pyclass(frozen, name = "Model", module = "ltde._core")]
pub(crate) struct PyModel {
    pub(crate) inner: Arc<Model>,
}

/// The law P_0 as Python passes it.
#[derive(FromPyObject)]
enum InitialArray<'py> {
    #[pyo3(transparent)]
    Counts(PyReadonlyArray2<'py, i64>),
    #[pyo3(transparent)]
    Law(PyReadonlyArray1<'py, f64>),
}

#[pymethods]
impl PyModel {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        graph: &PyGraph,
        n_actions: usize,
        address: usize,
        owner: Py<PyAny>,
        node: PyReadonlyArray2<'_, f64>,
        edge: PyReadonlyArray2<'_, f64>,
        action_mask: PyReadonlyArray2<'_, bool>,
        initial: InitialArray<'_>,
        dirichlet: bool,
        discount: f64,
        reward_range: (f64, f64),
    ) -> PyResult<Self> {
        let local = CompiledFunction::new(address, owner)
            .ok_or_else(|| PyValueError::new_err("address: expected a function, got 0"))?;
        let initial = match initial {
            InitialArray::Counts(counts) => Initial::Counts(counts.as_slice()?.to_vec()),
            InitialArray::Law(alpha) if dirichlet => Initial::Dirichlet(alpha.as_slice()?.to_vec()),
            InitialArray::Law(law) => Initial::Independent(law.as_slice()?.to_vec()),
        };
        let data = ModelData {
            node: node.as_slice()?.to_vec(),
            edge: edge.as_slice()?.to_vec(),
            mask: action_mask.as_slice()?.to_vec(),
        };
        let graph = Arc::clone(&graph.inner);
        let model = Model::new(
            graph,
            n_actions,
            Box::new(local),
            data,
            initial,
            discount,
            reward_range,
        )
        .map_err(to_py)?;
        Ok(PyModel {
            inner: Arc::new(model),
        })
    }

    /// Fills prob (B, A, nnz) and reward (B, S, A) at local densities mu (B, nnz).
    fn evaluate(
        &self,
        py: Python<'_>,
        mu: PyReadonlyArray2<'_, f64>,
        mut prob: PyReadwriteArray3<'_, f64>,
        mut reward: PyReadwriteArray3<'_, f64>,
    ) -> PyResult<()> {
        let model = &self.inner;
        let (nnz, actions) = (model.graph.nnz(), model.n_actions);
        let states = model.graph.n_states();
        let rows = mu.shape()[0];
        check_shape("mu", mu.shape(), &[rows, nnz])?;
        check_shape("prob", prob.shape(), &[rows, actions, nnz])?;
        check_shape("reward", reward.shape(), &[rows, states, actions])?;
        let mu = mu.as_slice()?;
        let (prob, reward) = (prob.as_slice_mut()?, reward.as_slice_mut()?);
        leave_watched(py, |watch| {
            let slices = mu
                .chunks_exact(nnz)
                .zip(prob.chunks_exact_mut(actions * nnz))
                .zip(reward.chunks_exact_mut(states * actions));
            for (i, ((mu, prob), reward)) in slices.enumerate() {
                model.evaluate(i, mu, Some((prob, reward)), watch)?;
            }
            Ok(())
        })
    }

    /// Runs the local function at local densities mu (B, nnz) and checks what it writes.
    fn check(&self, py: Python<'_>, mu: PyReadonlyArray2<'_, f64>) -> PyResult<()> {
        let model = &self.inner;
        let nnz = model.graph.nnz();
        check_shape("mu", mu.shape(), &[mu.shape()[0], nnz])?;
        let mu = mu.as_slice()?;
        leave_watched(py, |watch| {
            for (i, mu) in mu.chunks_exact(nnz).enumerate() {
                model.evaluate(i, mu, None, watch)?;
            }
            Ok(())
        })
    }
}

/// Names the array whose shape differs.
pub(crate) fn check_shape(name: &str, got: &[usize], expected: &[usize]) -> PyResult<()> {
    if got == expected {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{name}: expected shape {expected:?}, got {got:?}"
    )))
}

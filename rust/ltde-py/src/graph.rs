//! `ltde._core.Graph`: the graph of the core, its rows as NumPy arrays.

use std::sync::Arc;

use ltde_core::graph::{Graph, UNREACHABLE};
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::to_py;
use crate::leave::leave;

/// Undirected graph of states; `ltde.Graph` is the public face.
#[pyclass(frozen, name = "Graph", module = "ltde._core")]
pub struct PyGraph {
    /// Shared with the models that live on this graph.
    pub inner: Arc<Graph>,
    indptr: Py<PyArray1<i64>>,
    indices: Py<PyArray1<i64>>,
}

/// Row pointers and entries.
type Csr<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

#[pymethods]
impl PyGraph {
    #[new]
    fn new(py: Python<'_>, n_states: usize, edges: PyReadonlyArray2<'_, i64>) -> PyResult<Self> {
        if edges.shape()[1] != 2 {
            let (rows, columns) = (edges.shape()[0], edges.shape()[1]);
            let message = format!("edges: expected shape (E, 2), got ({rows}, {columns})");
            return Err(PyValueError::new_err(message));
        }
        let (edges, _) = edges.as_slice()?.as_chunks();
        let graph = leave(py, || Graph::from_edges(n_states, edges))?;
        Ok(Self {
            indptr: read_only(int64(py, graph.indptr().iter().map(|&i| i as i64)))?,
            indices: read_only(int64(py, graph.indices().iter().map(|&t| t.into())))?,
            inner: Arc::new(graph),
        })
    }

    #[getter]
    fn n_states(&self) -> usize {
        self.inner.n_states()
    }

    #[getter]
    fn indptr<'py>(&self, py: Python<'py>) -> &Bound<'py, PyArray1<i64>> {
        self.indptr.bind(py)
    }

    #[getter]
    fn indices<'py>(&self, py: Python<'py>) -> &Bound<'py, PyArray1<i64>> {
        self.indices.bind(py)
    }

    /// The states at distance at most k from s, sorted.
    fn ball<'py>(&self, py: Python<'py>, s: i64, k: usize) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let s = self.inner.check_state("s", s).map_err(to_py)?;
        let ball = leave(py, || Ok(self.inner.ball(s, k)))?;
        Ok(int64(py, ball.iter().map(|&t| t.into())))
    }

    /// All balls of radius k, as CSR.
    fn balls<'py>(&self, py: Python<'py>, k: usize) -> PyResult<Csr<'py>> {
        let (indptr, indices) = leave(py, || Ok(self.inner.balls(k)))?;
        Ok((
            int64(py, indptr.iter().map(|&i| i as i64)),
            int64(py, indices.iter().map(|&t| t.into())),
        ))
    }

    /// Number of edges on a shortest path, or None.
    fn distance(&self, py: Python<'_>, s: i64, t: i64) -> PyResult<Option<u32>> {
        let s = self.inner.check_state("s", s).map_err(to_py)?;
        let t = self.inner.check_state("t", t).map_err(to_py)?;
        leave(py, || Ok(self.inner.distance(s, t)))
    }

    /// Distance to every state as float64, inf where there is no path.
    fn distances<'py>(&self, py: Python<'py>, s: i64) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let s = self.inner.check_state("s", s).map_err(to_py)?;
        let distances = leave(py, || Ok(self.inner.distances(s)))?;
        let float = |d| {
            if d == UNREACHABLE {
                f64::INFINITY
            } else {
                f64::from(d)
            }
        };
        Ok(PyArray1::from_vec(
            py,
            distances.into_iter().map(float).collect(),
        ))
    }
}

fn int64(py: Python<'_>, values: impl Iterator<Item = i64>) -> Bound<'_, PyArray1<i64>> {
    PyArray1::from_vec(py, values.collect())
}

/// NumPy does not own this memory, so Python cannot make the array writeable again.
fn read_only(array: Bound<'_, PyArray1<i64>>) -> PyResult<Py<PyArray1<i64>>> {
    array.try_readwrite()?.make_nonwriteable();
    Ok(array.unbind())
}

//! Policies as Python passes them: `ltde._core.TabularPolicy`, `ltde._core.NetworkPolicy`, arrays.

use ltde_core::energy::{ChainReport, Effort, EnergyPolicy, team_stream};
use ltde_core::network::{Networks, Reading};
use ltde_core::policy::{TabularPolicy, TeamPolicy, sample_teams};
use ltde_core::rng::Seed;
use ltde_core::softmax::SoftmaxPolicy;
use numpy::{
    Element, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyReadonlyArray3, PyReadonlyArray4, PyReadwriteArray1, PyReadwriteArray2, PyReadwriteArray3,
    PyReadwriteArray4, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::to_py;
use crate::leave::leave_watched;

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

fn shape4(probs: &PyReadonlyArray4<'_, f64>) -> [usize; 4] {
    let shape = probs.shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

/// Parameters theta (S, M, d) and signs b (S, M), where Python keeps them.
enum Parameters {
    F32(Py<PyArray3<f32>>, Py<PyArray2<f32>>),
    F64(Py<PyArray3<f64>>, Py<PyArray2<f64>>),
}

/// A policy of two-layer networks, softmax or energy-based; reads its arrays where they are.
#[pyclass(frozen, name = "NetworkPolicy", module = "ltde._core")]
pub(crate) struct PyNetworkPolicy {
    parameters: Parameters,
    mask: Py<PyArray2<bool>>,
    tau: f64,
    density_scale: f64,
    input_scale: f64,
    /// None for softmax.
    effort: Option<Effort>,
}

/// The arrays of a network policy, borrowed for one call.
struct Borrowed<'py> {
    parameters: BorrowedParameters<'py>,
    mask: PyReadonlyArray2<'py, bool>,
}

enum BorrowedParameters<'py> {
    F32(PyReadonlyArray3<'py, f32>, PyReadonlyArray2<'py, f32>),
    F64(PyReadonlyArray3<'py, f64>, PyReadonlyArray2<'py, f64>),
}

/// A network policy over borrowed arrays.
enum View<'a> {
    Softmax32(SoftmaxPolicy<'a, f32>),
    Softmax64(SoftmaxPolicy<'a, f64>),
    Energy32(EnergyPolicy<'a, f32>),
    Energy64(EnergyPolicy<'a, f64>),
}

impl View<'_> {
    fn team(&self) -> &dyn TeamPolicy {
        match self {
            View::Softmax32(policy) => policy,
            View::Softmax64(policy) => policy,
            View::Energy32(policy) => policy,
            View::Energy64(policy) => policy,
        }
    }
}

impl PyNetworkPolicy {
    fn borrow<'py>(&self, py: Python<'py>) -> PyResult<Borrowed<'py>> {
        let parameters = match &self.parameters {
            Parameters::F32(theta, signs) => BorrowedParameters::F32(
                theta.bind(py).try_readonly()?,
                signs.bind(py).try_readonly()?,
            ),
            Parameters::F64(theta, signs) => BorrowedParameters::F64(
                theta.bind(py).try_readonly()?,
                signs.bind(py).try_readonly()?,
            ),
        };
        Ok(Borrowed {
            parameters,
            mask: self.mask.bind(py).try_readonly()?,
        })
    }

    fn view<'a>(&self, arrays: &'a Borrowed<'_>) -> PyResult<View<'a>> {
        let reading = Reading {
            mask: arrays.mask.as_slice()?,
            tau: self.tau,
            density_scale: self.density_scale,
            input_scale: self.input_scale,
        };
        Ok(match (&arrays.parameters, self.effort) {
            (BorrowedParameters::F32(theta, signs), None) => {
                View::Softmax32(SoftmaxPolicy::new(networks(theta, signs)?, reading))
            }
            (BorrowedParameters::F64(theta, signs), None) => {
                View::Softmax64(SoftmaxPolicy::new(networks(theta, signs)?, reading))
            }
            (BorrowedParameters::F32(theta, signs), Some(effort)) => {
                View::Energy32(EnergyPolicy::new(networks(theta, signs)?, reading, effort))
            }
            (BorrowedParameters::F64(theta, signs), Some(effort)) => {
                View::Energy64(EnergyPolicy::new(networks(theta, signs)?, reading, effort))
            }
        })
    }
}

fn networks<'a, F: Element + Copy + Into<f64>>(
    theta: &'a PyReadonlyArray3<'_, F>,
    signs: &'a PyReadonlyArray2<'_, F>,
) -> PyResult<Networks<'a, F>> {
    let shape = theta.shape();
    let shape = [shape[0], shape[1], shape[2]];
    Networks::new(theta.as_slice()?, signs.as_slice()?, shape).map_err(to_py)
}

#[pymethods]
impl PyNetworkPolicy {
    /// `theta` and `b` are both float32 or both float64; `effort` is None for softmax, (limit,
    /// attempts, moves) for an energy-based policy.
    #[new]
    fn new(
        theta: &Bound<'_, PyAny>,
        b: &Bound<'_, PyAny>,
        mask: Py<PyArray2<bool>>,
        tau: f64,
        density_scale: f64,
        input_scale: f64,
        effort: Option<(u64, u32, u32)>,
    ) -> PyResult<Self> {
        let parameters = if let Ok(theta) = theta.cast::<PyArray3<f32>>() {
            let b = b.cast::<PyArray2<f32>>()?;
            Parameters::F32(theta.clone().unbind(), b.clone().unbind())
        } else {
            let (theta, b) = (theta.cast::<PyArray3<f64>>()?, b.cast::<PyArray2<f64>>()?);
            Parameters::F64(theta.clone().unbind(), b.clone().unbind())
        };
        Ok(PyNetworkPolicy {
            parameters,
            mask,
            tau,
            density_scale,
            input_scale,
            effort: effort.map(|(limit, attempts, moves)| Effort {
                limit,
                attempts,
                moves,
            }),
        })
    }

    /// Fills out (B, S, A) with pi(. | s, mu(s)) of a softmax policy at densities (B, S), or, with
    /// `outputs`, with f((mu(s), e_a); theta_s) before the softmax.
    fn mean_action(
        &self,
        py: Python<'_>,
        density: PyReadonlyArray2<'_, f64>,
        outputs: bool,
        mut out: PyReadwriteArray3<'_, f64>,
    ) -> PyResult<()> {
        let (density, out) = (density.as_slice()?, out.as_slice_mut()?);
        let arrays = self.borrow(py)?;
        match self.view(&arrays)? {
            View::Softmax32(policy) => policy.at_densities(density, outputs, out),
            View::Softmax64(policy) => policy.at_densities(density, outputs, out),
            _ => return Err(PyValueError::new_err("mean_action: needs a softmax policy")),
        }
        Ok(())
    }

    /// Fills action (B, S, A) with E[h(s)] and, if given, feature (B, S, M, d) with E[phi] of an
    /// energy-based policy at counts (B, S) of totals (B,) agents, all zero on arrival.
    fn means(
        &self,
        py: Python<'_>,
        counts: PyReadonlyArray2<'_, i64>,
        totals: PyReadonlyArray1<'_, f64>,
        seed: u64,
        mut action: PyReadwriteArray3<'_, f64>,
        mut feature: Option<PyReadwriteArray4<'_, f64>>,
    ) -> PyResult<()> {
        let (counts, totals) = (counts.as_slice()?, totals.as_slice()?);
        let action = action.as_slice_mut()?;
        let feature = feature.as_mut().map(|f| f.as_slice_mut()).transpose()?;
        let (arrays, seed) = (self.borrow(py)?, Seed(seed));
        let view = self.view(&arrays)?;
        leave_watched(py, |watch| match &view {
            View::Energy32(p) => p.means_of_teams(counts, totals, seed, watch, action, feature),
            View::Energy64(p) => p.means_of_teams(counts, totals, seed, watch, action, feature),
            _ => Err(not_energy("means")),
        })
    }

    /// Runs the chain of an energy-based policy for one team; fills counts (moves, A), zero on
    /// arrival, and energy (moves,). Returns (proposals of the rejection, whether one was
    /// accepted, independent proposals, of them accepted, exchanges, of them accepted).
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn trace(
        &self,
        py: Python<'_>,
        state: usize,
        density: f64,
        n: u64,
        seed: u64,
        mut counts: PyReadwriteArray2<'_, i64>,
        mut energy: PyReadwriteArray1<'_, f64>,
    ) -> PyResult<(u64, bool, u64, u64, u64, u64)> {
        let actions = counts.shape()[1];
        let (counts, energy) = (counts.as_slice_mut()?, energy.as_slice_mut()?);
        let moves = energy.len() as u64;
        let arrays = self.borrow(py)?;
        let view = self.view(&arrays)?;
        let report: ChainReport = leave_watched(py, |watch| {
            let mut rng = team_stream(Seed(seed), 0, state as u32);
            let each = |i: u64, a: usize, c: u64, e: f64| {
                counts[i as usize * actions + a] = c as i64;
                energy[i as usize] = e;
            };
            match &view {
                View::Energy32(policy) => {
                    policy.trace(state, density, n, moves, &mut rng, watch, each)
                }
                View::Energy64(policy) => {
                    policy.trace(state, density, n, moves, &mut rng, watch, each)
                }
                _ => Err(not_energy("trace")),
            }
        })?;
        let [proposed, accepted] = report.independent;
        let [exchanges, exchanged] = report.exchange;
        Ok((
            report.attempts,
            report.exact,
            proposed,
            accepted,
            exchanges,
            exchanged,
        ))
    }
}

fn not_energy(call: &str) -> ltde_core::Error {
    ltde_core::Error::Value(format!("{call}: needs an energy-based policy"))
}

/// A policy for one call: a checked table, networks, or an array (1, B | 1, S, A).
#[derive(FromPyObject)]
pub(crate) enum Policy<'py> {
    #[pyo3(transparent)]
    Table(Bound<'py, PyTabularPolicy>),
    #[pyo3(transparent)]
    Network(Bound<'py, PyNetworkPolicy>),
    #[pyo3(transparent)]
    Array(PyReadonlyArray4<'py, f64>),
}

/// What a call does with a policy, for every kind of policy.
pub(crate) trait PolicyCall<R> {
    fn call<P: TeamPolicy>(self, policy: &P) -> PyResult<R>;
}

impl Policy<'_> {
    pub(crate) fn apply<R>(&self, py: Python<'_>, call: impl PolicyCall<R>) -> PyResult<R> {
        match self {
            Policy::Table(table) => {
                let table = table.get();
                call.call(&TabularPolicy::trusted(&table.probs, table.shape))
            }
            Policy::Array(probs) => {
                call.call(&TabularPolicy::new(probs.as_slice()?, shape4(probs)).map_err(to_py)?)
            }
            Policy::Network(networks) => {
                let networks = networks.get();
                let arrays = networks.borrow(py)?;
                call.call(&networks.view(&arrays)?.team())
            }
        }
    }
}

/// Fills out (B, S, A), zero on arrival, with team actions at counts (B, S) of totals (B,) agents.
#[pyfunction]
pub(crate) fn sample_actions(
    py: Python<'_>,
    policy: Policy<'_>,
    counts: PyReadonlyArray2<'_, i64>,
    totals: PyReadonlyArray1<'_, f64>,
    seed: u64,
    mut out: PyReadwriteArray3<'_, i64>,
) -> PyResult<()> {
    struct Sample<'a, 'py> {
        py: Python<'py>,
        counts: &'a [i64],
        totals: &'a [f64],
        states: usize,
        seed: Seed,
        out: &'a mut [i64],
    }
    impl PolicyCall<()> for Sample<'_, '_> {
        fn call<P: TeamPolicy>(self, policy: &P) -> PyResult<()> {
            let Sample {
                counts,
                totals,
                states,
                seed,
                out,
                ..
            } = self;
            leave_watched(self.py, |watch| {
                sample_teams(policy, counts, totals, states, seed, watch, out)
            })
        }
    }
    let call = Sample {
        py,
        counts: counts.as_slice()?,
        totals: totals.as_slice()?,
        states: counts.shape()[1],
        seed: Seed(seed),
        out: out.as_slice_mut()?,
    };
    policy.apply(py, call)
}

//! `ltde._core.Simulator`: B replicas of N agents, or of the mean-field flow.

use std::process;
use std::sync::{Mutex, MutexGuard, TryLockError};

use ltde_core::costate::{CostateRecord, Segment};
use ltde_core::policy::TeamPolicy;
use ltde_core::population::Mass;
use ltde_core::record::Record;
use ltde_core::simulator::{Counters, Simulator};
use ltde_core::visitation::VisitationRecord;
use numpy::{
    Element, PyArray2, PyArray3, PyArray4, PyArrayMethods, PyReadonlyArray2, PyReadonlyArray3,
    PyReadwriteArray2, PyReadwriteArray3, PyReadwriteArray4, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors::to_py;
use crate::leave::leave_watched;
use crate::model::PyModel;
use crate::policy::{Policy, PolicyCall};

/// A simulator for one kind of mass, with the NumPy array that users see as `counts`.
struct Engine<T: Mass + Element> {
    simulator: Mutex<Simulator<T>>,
    counts: Py<PyArray2<T>>,
}

/// Where recorded arrays go; each is zeroed, C-contiguous and of the right dtype.
#[derive(FromPyObject)]
struct Arrays<'py> {
    #[pyo3(item)]
    counts: Option<Bound<'py, PyAny>>,
    #[pyo3(item)]
    actions: Option<Bound<'py, PyAny>>,
    #[pyo3(item)]
    rewards: Option<Bound<'py, PyAny>>,
    #[pyo3(item)]
    restarted: Option<Bound<'py, PyAny>>,
    #[pyo3(item)]
    flows: Option<Bound<'py, PyAny>>,
}

/// Where draws of `visitation` go.
#[derive(FromPyObject)]
struct VisitationArrays<'py> {
    #[pyo3(item)]
    counts: Bound<'py, PyAny>,
    #[pyo3(item)]
    actions: Bound<'py, PyAny>,
    #[pyo3(item)]
    rewards: Bound<'py, PyAny>,
    #[pyo3(item)]
    next_counts: Bound<'py, PyAny>,
    #[pyo3(item)]
    horizon: Bound<'py, PyAny>,
}

impl<T: Mass + Element> Engine<T> {
    fn new(py: Python<'_>, simulator: Simulator<T>) -> PyResult<Self> {
        let shape = [simulator.n_replicas(), simulator.model().graph.n_states()];
        let counts = PyArray2::<T>::zeros(py, shape, false);
        simulator.get_counts(counts.try_readwrite()?.as_slice_mut()?);
        Ok(Engine {
            simulator: Mutex::new(simulator),
            counts: counts.unbind(),
        })
    }

    fn lock(&self) -> PyResult<MutexGuard<'_, Simulator<T>>> {
        match self.simulator.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err(
                "this simulator is running in another thread; use one simulator a thread",
            )),
            Err(TryLockError::Poisoned(_)) => Err(PyRuntimeError::new_err(
                "this simulator was stopped by an internal error and cannot be used any more",
            )),
        }
    }

    /// Runs `work` from the counts that the user sees, and shows the new ones if it succeeds.
    fn advance(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Simulator<T>, &ltde_core::watch::Watch<'_>) -> ltde_core::Result<()>
        + Send,
    ) -> PyResult<()> {
        let mut guard = self.lock()?;
        let mut counts = self.counts.bind(py).try_readwrite()?;
        let counts = counts.as_slice_mut()?;
        let simulator = &mut *guard;
        leave_watched(py, move |watch| {
            simulator.set_counts(counts)?;
            work(simulator, watch)?;
            simulator.get_counts(counts);
            Ok(())
        })
    }

    fn rollout(
        &self,
        py: Python<'_>,
        policy: &Policy<'_>,
        n_steps: usize,
        chain: bool,
        arrays: Arrays<'_>,
        used: bool,
    ) -> PyResult<()> {
        let mut counts = readwrite3::<T>(arrays.counts)?;
        let mut actions = readwrite4::<T>(arrays.actions)?;
        let mut flows = readwrite3::<T>(arrays.flows)?;
        let mut rewards = readwrite3::<f64>(arrays.rewards)?;
        let mut restarted = readwrite2::<bool>(arrays.restarted)?;
        let record = Record {
            counts: counts.as_mut().map(|x| x.as_slice_mut()).transpose()?,
            actions: actions.as_mut().map(|x| x.as_slice_mut()).transpose()?,
            rewards: rewards.as_mut().map(|x| x.as_slice_mut()).transpose()?,
            restarted: restarted.as_mut().map(|x| x.as_slice_mut()).transpose()?,
            flows: flows.as_mut().map(|x| x.as_slice_mut()).transpose()?,
            used,
        };
        let call = RolloutCall {
            py,
            engine: self,
            n_steps,
            chain,
            record,
        };
        policy.apply(py, call)
    }

    fn visitation(
        &self,
        py: Python<'_>,
        policy: &Policy<'_>,
        n_draws: usize,
        arrays: VisitationArrays<'_>,
    ) -> PyResult<()> {
        let mut counts = arrays.counts.cast::<PyArray3<T>>()?.try_readwrite()?;
        let mut actions = arrays.actions.cast::<PyArray4<T>>()?.try_readwrite()?;
        let mut next_counts = arrays.next_counts.cast::<PyArray3<T>>()?.try_readwrite()?;
        let mut rewards = arrays.rewards.cast::<PyArray3<f64>>()?.try_readwrite()?;
        let mut horizon = arrays.horizon.cast::<PyArray2<i64>>()?.try_readwrite()?;
        let record = VisitationRecord {
            counts: counts.as_slice_mut()?,
            actions: actions.as_slice_mut()?,
            rewards: rewards.as_slice_mut()?,
            next_counts: next_counts.as_slice_mut()?,
            horizon: horizon.as_slice_mut()?,
        };
        let call = VisitationCall {
            py,
            engine: self,
            n_draws,
            record,
        };
        policy.apply(py, call)
    }

    fn reset(&self, py: Python<'_>, seed: Option<u64>) -> PyResult<()> {
        let mut guard = self.lock()?;
        let mut counts = self.counts.bind(py).try_readwrite()?;
        let counts = counts.as_slice_mut()?;
        let simulator = &mut *guard;
        leave_watched(py, move |watch| {
            simulator.reset(seed, watch)?;
            simulator.get_counts(counts);
            Ok(())
        })
    }

    fn set_counts(
        &self,
        py: Python<'_>,
        new: &Bound<'_, PyAny>,
        seed: Option<u64>,
    ) -> PyResult<()> {
        let new = new.cast::<PyArray2<T>>()?.try_readonly()?;
        let new = new.as_slice()?;
        let mut guard = self.lock()?;
        let counters = guard.counters();
        let seed = seed.unwrap_or(guard.seed());
        guard.set_counts(new).map_err(to_py)?;
        guard.restore(seed, counters);
        guard.get_counts(self.counts.bind(py).try_readwrite()?.as_slice_mut()?);
        Ok(())
    }
}

/// A rollout of any policy.
struct RolloutCall<'a, 'py, T: Mass + Element> {
    py: Python<'py>,
    engine: &'a Engine<T>,
    n_steps: usize,
    chain: bool,
    record: Record<'a, T>,
}

impl<T: Mass + Element> PolicyCall<()> for RolloutCall<'_, '_, T> {
    fn call<P: TeamPolicy>(self, policy: &P) -> PyResult<()> {
        let (n_steps, chain, record) = (self.n_steps, self.chain, self.record);
        self.engine.advance(self.py, move |simulator, watch| {
            simulator.rollout(policy, n_steps, chain, record, watch)
        })
    }
}

/// Costates along a segment under any policy of independent agents.
struct PassBackCall<'a, 'py, T: Mass + Element> {
    py: Python<'py>,
    engine: &'a Engine<T>,
    segment: Segment<'a>,
    record: CostateRecord<'a>,
}

impl<T: Mass + Element> PolicyCall<()> for PassBackCall<'_, '_, T> {
    fn call<P: TeamPolicy>(self, policy: &P) -> PyResult<()> {
        let (segment, record) = (self.segment, self.record);
        let guard = self.engine.lock()?;
        let simulator = &*guard;
        leave_watched(self.py, move |watch| {
            simulator.pass_back(policy, segment, record, watch)
        })
    }
}

/// Draws from sigma of any policy.
struct VisitationCall<'a, 'py, T: Mass + Element> {
    py: Python<'py>,
    engine: &'a Engine<T>,
    n_draws: usize,
    record: VisitationRecord<'a, T>,
}

impl<T: Mass + Element> PolicyCall<()> for VisitationCall<'_, '_, T> {
    fn call<P: TeamPolicy>(self, policy: &P) -> PyResult<()> {
        let (n_draws, record) = (self.n_draws, self.record);
        let mut guard = self.engine.lock()?;
        let simulator = &mut *guard;
        leave_watched(self.py, move |watch| {
            simulator.visitation(policy, n_draws, record, watch)
        })
    }
}

// `try_readwrite` gives an error where extracting the argument would panic: the array is in use.

fn readwrite2<T: Element>(
    array: Option<Bound<'_, PyAny>>,
) -> PyResult<Option<PyReadwriteArray2<'_, T>>> {
    array
        .map(|a| Ok(a.cast_into::<PyArray2<T>>()?.try_readwrite()?))
        .transpose()
}

fn readwrite3<T: Element>(
    array: Option<Bound<'_, PyAny>>,
) -> PyResult<Option<PyReadwriteArray3<'_, T>>> {
    array
        .map(|a| Ok(a.cast_into::<PyArray3<T>>()?.try_readwrite()?))
        .transpose()
}

fn readwrite4<T: Element>(
    array: Option<Bound<'_, PyAny>>,
) -> PyResult<Option<PyReadwriteArray4<'_, T>>> {
    array
        .map(|a| Ok(a.cast_into::<PyArray4<T>>()?.try_readwrite()?))
        .transpose()
}

enum Kind {
    Finite(Engine<i64>),
    Flow(Engine<f64>),
}

/// Calls a method of the engine, whichever kind of mass it moves.
macro_rules! engine {
    ($self:ident, $engine:ident => $call:expr) => {
        match &$self.kind {
            Kind::Finite($engine) => $call,
            Kind::Flow($engine) => $call,
        }
    };
}

/// B independent replicas of a model.
#[pyclass(frozen, name = "Simulator", module = "ltde._core")]
pub(crate) struct PySimulator {
    kind: Kind,
    /// The process that made the thread pool: its threads do not survive a fork.
    process: u32,
}

impl PySimulator {
    fn check_process(&self) -> PyResult<()> {
        if process::id() == self.process {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(
            "this simulator was made before a fork, and its threads stayed behind: make a new \
             Simulator in the child process, or start processes with the method 'spawn'",
        ))
    }
}

#[pymethods]
impl PySimulator {
    /// `n_agents` None is the mean-field limit.
    #[new]
    fn new(
        py: Python<'_>,
        model: &PyModel,
        n_agents: Option<u64>,
        n_replicas: usize,
        seed: u64,
        threads: usize,
        first_replica: u32,
    ) -> PyResult<Self> {
        let model = &model.inner;
        model
            .initial
            .check_agents(model.graph.n_states(), n_agents)
            .map_err(to_py)?;
        let model = model.clone();
        let kind = match n_agents {
            Some(n) => Kind::Finite(Engine::new(
                py,
                leave_watched(py, |watch| {
                    Simulator::new(model, n, n_replicas, seed, threads, first_replica, watch)
                })?,
            )?),
            None => Kind::Flow(Engine::new(
                py,
                leave_watched(py, |watch| {
                    Simulator::new(model, (), n_replicas, seed, threads, first_replica, watch)
                })?,
            )?),
        };
        Ok(PySimulator {
            kind,
            process: process::id(),
        })
    }

    /// The array (B, S) that every call updates in place.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        engine!(self, engine => engine.counts.bind(py).clone().into_any())
    }

    /// (seed, steps, resets, episodes).
    #[getter]
    fn position(&self) -> PyResult<(u64, u64, u64, u64)> {
        let (seed, c) = engine!(self, engine => {
            let guard = engine.lock()?;
            (guard.seed(), guard.counters())
        });
        Ok((seed, c.step, c.resets, c.episodes))
    }

    /// Puts back what `position` said.
    fn restore(&self, seed: u64, step: u64, resets: u64, episodes: u64) -> PyResult<()> {
        let counters = Counters {
            step,
            resets,
            episodes,
        };
        engine!(self, engine => engine.lock()?.restore(seed, counters));
        Ok(())
    }

    /// Redraws from P_0.
    fn reset(&self, py: Python<'_>, seed: Option<u64>) -> PyResult<()> {
        self.check_process()?;
        engine!(self, engine => engine.reset(py, seed))
    }

    /// Takes counts (B, S) instead of a draw.
    fn set_counts(
        &self,
        py: Python<'_>,
        counts: &Bound<'_, PyAny>,
        seed: Option<u64>,
    ) -> PyResult<()> {
        engine!(self, engine => engine.set_counts(py, counts, seed))
    }

    /// Plays `n_steps` steps, writing into the arrays of the dict `arrays`.
    fn rollout(
        &self,
        py: Python<'_>,
        policy: Policy<'_>,
        n_steps: usize,
        chain: bool,
        arrays: Arrays<'_>,
        used: bool,
    ) -> PyResult<()> {
        self.check_process()?;
        engine!(self, engine => engine.rollout(py, &policy, n_steps, chain, arrays, used))
    }

    /// Passes costates back along a segment: densities and costates (T + 1, B, S), restarted
    /// (T, B); fills targets (T, B, S), values and probs (T, B, S, A).
    #[allow(clippy::too_many_arguments)]
    fn pass_back(
        &self,
        py: Python<'_>,
        policy: Policy<'_>,
        densities: PyReadonlyArray3<'_, f64>,
        restarted: PyReadonlyArray2<'_, bool>,
        costates: PyReadonlyArray3<'_, f64>,
        step: f64,
        mut targets: PyReadwriteArray3<'_, f64>,
        mut values: PyReadwriteArray4<'_, f64>,
        mut probs: PyReadwriteArray4<'_, f64>,
    ) -> PyResult<()> {
        self.check_process()?;
        let segment = Segment {
            densities: densities.as_slice()?,
            restarted: restarted.as_slice()?,
            costates: costates.as_slice()?,
            n_replicas: restarted.shape()[1],
            step,
        };
        let record = CostateRecord {
            targets: targets.as_slice_mut()?,
            values: values.as_slice_mut()?,
            probs: probs.as_slice_mut()?,
        };
        engine!(self, engine => policy.apply(py, PassBackCall { py, engine, segment, record }))
    }

    /// Draws from sigma, writing into the arrays of the dict `arrays`.
    fn visitation(
        &self,
        py: Python<'_>,
        policy: Policy<'_>,
        n_draws: usize,
        arrays: VisitationArrays<'_>,
    ) -> PyResult<()> {
        self.check_process()?;
        engine!(self, engine => engine.visitation(py, &policy, n_draws, arrays))
    }
}

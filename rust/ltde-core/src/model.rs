//! The local model: reward r(s, mu(N_s), a) and transition P(. | s, mu(N_s), a) on a graph.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result, value_error};
use crate::graph::Graph;
use crate::initial::Initial;
use crate::simd::{Kernel, Simd};
use crate::watch::Watch;

/// Largest error of a row of `prob`: |sum - 1| must not exceed it.
pub const ROW_TOLERANCE: f64 = 1e-9;

/// The local function raised an exception (or wrote outside its arrays).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised;

/// The user's local function, or a closure in Rust.
///
/// `mu` (K,) holds the densities of N_s in the order of the graph's row, `node` (P,) the row of
/// node data of `state`, `edge` (K, Q) the rows of edge data. `prob` (A, K) and `reward` (A,)
/// arrive zeroed.
pub trait LocalFunction: Send + Sync {
    /// Fills `prob` and `reward`.
    ///
    /// # Errors
    /// [`Raised`] if the function raised; the caller adds the place.
    fn evaluate(
        &self,
        state: usize,
        mu: &[f64],
        node: &[f64],
        edge: &[f64],
        prob: &mut [f64],
        reward: &mut [f64],
    ) -> std::result::Result<(), Raised>;
}

impl<F> LocalFunction for F
where
    F: Fn(usize, &[f64], &[f64], &[f64], &mut [f64], &mut [f64]) -> std::result::Result<(), Raised>
        + Send
        + Sync,
{
    fn evaluate(
        &self,
        state: usize,
        mu: &[f64],
        node: &[f64],
        edge: &[f64],
        prob: &mut [f64],
        reward: &mut [f64],
    ) -> std::result::Result<(), Raised> {
        self(state, mu, node, edge, prob, reward)
    }
}

/// What the local function did wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// It raised; the Python layer runs it again to find the exception.
    Raised,
    /// `prob[action, index]` is negative or not finite.
    Probability {
        /// Action.
        action: usize,
        /// Position in the row of the graph.
        index: usize,
        /// The state at that position.
        target: usize,
        /// What was found.
        value: f64,
    },
    /// The row of an allowed action does not sum to 1.
    RowSum {
        /// Action.
        action: usize,
        /// The sum found.
        value: f64,
    },
    /// The reward of an allowed action is not finite or outside `reward_range`.
    Reward {
        /// Action.
        action: usize,
        /// What was found.
        value: f64,
        /// The permitted range.
        range: (f64, f64),
    },
}

/// A fault and where it happened.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelError {
    /// What happened.
    pub fault: Fault,
    /// Replica, or row of `mu` in `evaluate`.
    pub replica: usize,
    /// Step counter; none in `evaluate`.
    pub step: Option<u64>,
    /// State.
    pub state: usize,
    /// The densities mu(N_s) that the function was given.
    pub mu: Vec<f64>,
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(
                f,
                "replica {}, step {step}, state {}: ",
                self.replica, self.state
            )?,
            None => write!(f, "mu[{}], state {}: ", self.replica, self.state)?,
        }
        match &self.fault {
            Fault::Raised => write!(f, "the local function raised")?,
            Fault::Probability {
                action,
                index,
                target,
                value,
            } => write!(
                f,
                "action {action}: prob[{action}, {index}] (to state {target}): expected a \
                 probability >= 0, got {value}"
            )?,
            Fault::RowSum { action, value } => write!(
                f,
                "action {action}: prob[{action}] must sum to 1 within {ROW_TOLERANCE}, got {value}"
            )?,
            Fault::Reward {
                action,
                value,
                range,
            } => {
                write!(
                    f,
                    "action {action}: reward[{action}]: expected a finite number"
                )?;
                if *range != (f64::MIN, f64::MAX) {
                    write!(f, " in [{:?}, {:?}]", range.0, range.1)?;
                }
                write!(f, ", got {value}")?;
            }
        }
        write!(f, "; mu(N_s) = {:?}", self.mu)
    }
}

impl std::error::Error for ModelError {}

/// A graph, a local function with its data, masks, initial law and discount.
pub struct Model {
    /// The graph of states.
    pub graph: Arc<Graph>,
    /// Number of actions A.
    pub n_actions: usize,
    /// gamma in [0, 1).
    pub discount: f64,
    /// The law P_0 of the initial counts.
    pub initial: Initial,
    local: Box<dyn LocalFunction>,
    node: Vec<f64>,
    edge: Vec<f64>,
    node_width: usize,
    edge_width: usize,
    mask: Vec<bool>,
    masked: bool,
    pub(crate) reward_range: (f64, f64),
    max_degree: usize,
}

/// Data of a model in the layout of its graph.
#[derive(Debug, Default, Clone)]
pub struct ModelData {
    /// (S, P) row-major; empty for P = 0.
    pub node: Vec<f64>,
    /// (nnz, Q) in CSR order; empty for Q = 0.
    pub edge: Vec<f64>,
    /// (S, A): whether an action is allowed; every state needs one.
    pub mask: Vec<bool>,
}

impl Model {
    /// Puts a model together.
    ///
    /// # Errors
    /// [`Error::Value`] if a size does not fit the graph, `discount` is outside [0, 1), a mask
    /// forbids every action of a state, or the reward range is empty.
    pub fn new(
        graph: Arc<Graph>,
        n_actions: usize,
        local: Box<dyn LocalFunction>,
        data: ModelData,
        initial: Initial,
        discount: f64,
        reward_range: (f64, f64),
    ) -> Result<Self> {
        let states = graph.n_states();
        if n_actions == 0 {
            return value_error!("n_actions: expected at least 1, got 0");
        }
        if !(0.0..1.0).contains(&discount) {
            return value_error!("discount: expected a number in [0, 1), got {discount}");
        }
        if reward_range.0.is_nan() || reward_range.1.is_nan() || reward_range.0 > reward_range.1 {
            return value_error!(
                "reward_range: expected (lo, hi) with lo <= hi, got ({}, {})",
                reward_range.0,
                reward_range.1
            );
        }
        if data.mask.len() != states * n_actions {
            return value_error!(
                "action_mask: expected {states} x {n_actions} entries, got {}",
                data.mask.len()
            );
        }
        if let Some(s) = data
            .mask
            .chunks_exact(n_actions)
            .position(|row| !row.contains(&true))
        {
            return value_error!("action_mask[{s}]: forbids every action of state {s}");
        }
        let width = |name: &str, len: usize, rows: usize| {
            if len.is_multiple_of(rows) {
                Ok(len / rows)
            } else {
                value_error!("{name}: {len} values do not divide into {rows} rows")
            }
        };
        let node_width = width("node", data.node.len(), states)?;
        let edge_width = width("edge", data.edge.len(), graph.nnz())?;
        initial.check(states)?;
        let max_degree = (0..states).map(|s| graph.range(s).len()).max().unwrap_or(0);
        Ok(Model {
            graph,
            n_actions,
            discount,
            initial,
            local,
            node: data.node,
            edge: data.edge,
            node_width,
            edge_width,
            masked: data.mask.contains(&false),
            mask: data.mask,
            max_degree,
            // finite bounds refuse infinite rewards without a further comparison
            reward_range: (reward_range.0.max(f64::MIN), reward_range.1.min(f64::MAX)),
        })
    }

    /// Which actions state `s` allows.
    #[inline]
    pub fn allowed(&self, s: usize) -> &[bool] {
        &self.mask[s * self.n_actions..][..self.n_actions]
    }

    /// Whether some state forbids some action.
    pub fn has_masks(&self) -> bool {
        self.masked
    }

    /// Largest |N_s|.
    #[inline]
    pub fn max_degree(&self) -> usize {
        self.max_degree
    }

    /// Runs the local function of `s` at `mu` (|N_s|,) and checks what it wrote.
    ///
    /// # Errors
    /// The first [`Fault`] in the order of the actions. Rows of masked actions do not matter.
    #[inline(always)]
    pub fn local(
        &self,
        s: usize,
        mu: &[f64],
        prob: &mut [f64],
        reward: &mut [f64],
    ) -> std::result::Result<(), Fault> {
        self.local_within(self.reward_range, s, mu, prob, reward)
    }

    /// As [`Model::local`], with another range of rewards: densities that no population has, such
    /// as those of one more agent, may give rewards outside that of the model.
    #[inline(always)]
    pub(crate) fn local_within(
        &self,
        reward_range: (f64, f64),
        s: usize,
        mu: &[f64],
        prob: &mut [f64],
        reward: &mut [f64],
    ) -> std::result::Result<(), Fault> {
        prob.fill(0.0);
        reward.fill(0.0);
        self.write(s, self.graph.range(s), mu, prob, reward)?;
        self.check(reward_range, s, mu.len(), prob, reward)
    }

    /// Runs the local function of `s`, whose row in the graph is `range`, at `mu` (|N_s|,); `prob` and
    /// `reward` are zero on arrival.
    ///
    /// # Errors
    /// [`Fault::Raised`].
    #[inline(always)]
    pub(crate) fn write(
        &self,
        s: usize,
        range: Range<usize>,
        mu: &[f64],
        prob: &mut [f64],
        reward: &mut [f64],
    ) -> std::result::Result<(), Fault> {
        let node = &self.node[s * self.node_width..][..self.node_width];
        let edge = &self.edge[range.start * self.edge_width..range.end * self.edge_width];
        self.local
            .evaluate(s, mu, node, edge, prob, reward)
            .map_err(|Raised| Fault::Raised)
    }

    /// Checks what the local function of `s` wrote.
    ///
    /// # Errors
    /// The first [`Fault`] in the order of the actions. Rows of masked actions do not matter.
    #[inline]
    pub(crate) fn check(
        &self,
        range: (f64, f64),
        s: usize,
        degree: usize,
        prob: &[f64],
        reward: &[f64],
    ) -> std::result::Result<(), Fault> {
        for (action, row) in prob.chunks_exact(degree).enumerate() {
            if !self.allowed(s)[action] {
                continue;
            }
            let sum: f64 = row.iter().sum();
            if !((sum - 1.0).abs() <= ROW_TOLERANCE && row.iter().all(|&p| p >= 0.0)) {
                return Err(self.row_fault(s, action, row, sum));
            }
            let value = reward[action];
            if !(value >= range.0 && value <= range.1) {
                return Err(Fault::Reward {
                    action,
                    value,
                    range,
                });
            }
        }
        Ok(())
    }

    #[cold]
    fn row_fault(&self, s: usize, action: usize, row: &[f64], sum: f64) -> Fault {
        match row.iter().position(|&p| !(p >= 0.0 && p.is_finite())) {
            Some(index) => Fault::Probability {
                action,
                index,
                target: self.graph.row(s)[index] as usize,
                value: row[index],
            },
            None => Fault::RowSum { action, value: sum },
        }
    }

    /// P and r at local densities: `mu` (nnz,) in CSR order, one density vector for each N_s.
    ///
    /// Fills `prob` (A, nnz) and `reward` (S, A) if given; entries of masked actions stay as
    /// they are. `sample` names the row of mu in errors.
    ///
    /// # Errors
    /// [`Error::Model`] at the first state that misbehaves, [`Error::Interrupted`].
    pub fn evaluate(
        &self,
        sample: usize,
        mu: &[f64],
        mut out: Option<(&mut [f64], &mut [f64])>,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let (graph, actions) = (&self.graph, self.n_actions);
        let mut prob = vec![0.0; actions * self.max_degree()];
        let mut reward = vec![0.0; actions];
        for s in 0..graph.n_states() {
            if watch.tick_here() {
                return Err(Error::Interrupted);
            }
            let range = graph.range(s);
            let degree = range.len();
            let prob = &mut prob[..actions * degree];
            let mu = &mu[range.clone()];
            self.local(s, mu, prob, &mut reward).map_err(|fault| {
                Error::Model(ModelError {
                    fault,
                    replica: sample,
                    step: None,
                    state: s,
                    mu: mu.to_vec(),
                })
            })?;
            if let Some((all_prob, all_reward)) = out.as_mut() {
                for (a, _) in self.allowed(s).iter().enumerate().filter(|(_, ok)| **ok) {
                    all_prob[a * graph.nnz()..][range.clone()]
                        .copy_from_slice(&prob[a * degree..][..degree]);
                    all_reward[s * actions + a] = reward[a];
                }
            }
        }
        Ok(())
    }
}

/// Whether rows with these sums, of these numbers, and these rewards pass [`Model::check`] beyond
/// doubt: without a branch, for many at once. A NaN or an infinity in a row makes its sum fail.
pub(crate) struct AreSound<'a> {
    pub prob: &'a [f64],
    pub sums: &'a [f64],
    pub reward: &'a [f64],
    pub range: (f64, f64),
}

impl Kernel for AreSound<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let (lo, hi) = self.range;
        let (mut signs, mut sums, mut rewards) = (0, true, true);
        for p in self.prob {
            signs |= p.to_bits();
        }
        for sum in self.sums {
            sums &= (sum - 1.0).abs() <= ROW_TOLERANCE;
        }
        for &r in self.reward {
            rewards &= (r >= lo) & (r <= hi);
        }
        signs >> 63 == 0 && sums && rewards
    }
}

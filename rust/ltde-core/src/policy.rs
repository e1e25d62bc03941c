//! Team-decentralised policies Pi_s(h(s) | mu(s)), Eq. (3.1)-(3.3).

use crate::error::{Result, value_error};
use crate::model::Model;
use crate::multinomial::{Row, Scratch, draw_rows};
use crate::rng::{BLOCK, BlockRng, Purpose, Seed};
use crate::teams::Sums;
use crate::tiny;
use crate::watch::Watch;

/// Largest |sum - 1| of a row of action probabilities: room for rows computed in float32.
pub const PROBABILITY_TOLERANCE: f64 = 1e-4;

/// Where a team acts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cell {
    /// Index of the replica within the call.
    pub replica: usize,
    /// Index of the step within the call.
    pub time: usize,
    /// State s.
    pub state: usize,
    /// mu(s).
    pub density: f64,
}

/// A team policy: how many of the agents of a state take each action.
pub trait TeamPolicy: Sync {
    /// Checks that the policy fits a model and a call of `n_steps` steps of `n_replicas`.
    ///
    /// # Errors
    /// [`crate::Error::Value`] if a size differs, or a forbidden action has probability.
    fn check(&self, model: &Model, n_replicas: usize, n_steps: usize) -> Result<()>;

    /// Whether the agents of a team act independently, each by [`TeamPolicy::mean_action`]: the
    /// multinomial team of an individual policy, Eq. (3.2). Only such policies have a flow.
    #[inline]
    fn is_multinomial(&self) -> bool {
        true
    }

    /// Fills `pi` (A,) with E[h(s)], the law of one agent's action.
    fn mean_action(&self, cell: Cell, pi: &mut [f64]);

    /// Adds draws of the team actions c(s, .) of the states of one block, one at least, to `out`
    /// (cells, A).
    #[inline]
    fn sample(&self, teams: &[(Cell, i64)], rng: &mut BlockRng, work: &mut Work, out: &mut [i64]) {
        let actions = out.len() / teams.len();
        work.mean_actions(self, teams, actions);
        let Work {
            pi, rows, scratch, ..
        } = work;
        rows.clear();
        rows.extend(teams.iter().enumerate().map(|(i, &(_, n))| Row {
            n,
            weights: i * actions,
            out: i * actions,
            width: actions as u32,
        }));
        draw_rows(rng, rows, pi, scratch, out);
    }
}

/// Memory for the draws of one block of states, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub struct Work {
    /// E[h(s)] (cells, A) at least.
    pub pi: Vec<f64>,
    /// What is to be drawn.
    pub rows: Vec<Row>,
    /// Sums of the rows of P.
    pub sums: Sums,
    /// Memory of the samplers.
    pub scratch: Scratch,
    /// Teams that are drawn agent by agent, and the memory for it.
    pub(crate) tiny: tiny::Scratch,
}

impl Work {
    /// Fills `pi` with the law of one agent's action in each cell.
    #[inline]
    pub fn mean_actions<T>(
        &mut self,
        policy: &(impl TeamPolicy + ?Sized),
        cells: &[(Cell, T)],
        actions: usize,
    ) {
        let size = cells.len() * actions;
        if self.pi.len() < size {
            self.pi.resize(size, 0.0);
        }
        for (pi, (cell, _)) in self.pi.chunks_exact_mut(actions).zip(cells) {
            policy.mean_action(*cell, pi);
        }
    }
}

impl<P: TeamPolicy + ?Sized> TeamPolicy for &P {
    fn check(&self, model: &Model, n_replicas: usize, n_steps: usize) -> Result<()> {
        (**self).check(model, n_replicas, n_steps)
    }

    #[inline]
    fn is_multinomial(&self) -> bool {
        (**self).is_multinomial()
    }

    #[inline]
    fn mean_action(&self, cell: Cell, pi: &mut [f64]) {
        (**self).mean_action(cell, pi);
    }

    #[inline]
    fn sample(&self, teams: &[(Cell, i64)], rng: &mut BlockRng, work: &mut Work, out: &mut [i64]) {
        (**self).sample(teams, rng, work, out);
    }
}

/// Draws team actions of all states: `counts` (B, S) with `totals` (B,) agents N, into `out`
/// (B, S, A), zero on arrival. Replica b and every block of states have their own stream.
pub fn sample_teams(
    policy: &dyn TeamPolicy,
    counts: &[i64],
    totals: &[f64],
    n_states: usize,
    seed: Seed,
    watch: &Watch<'_>,
    out: &mut [i64],
) -> Result<()> {
    let actions = out.len() / counts.len().max(1);
    let (mut work, mut teams, mut drawn) = (Work::default(), Vec::new(), Vec::new());
    let replicas = counts
        .chunks(n_states)
        .zip(totals)
        .zip(out.chunks_mut(n_states * actions));
    for (replica, ((counts, &total), out)) in replicas.enumerate() {
        let blocks = counts.chunks(BLOCK).zip(out.chunks_mut(BLOCK * actions));
        for (block, (counts, out)) in blocks.enumerate() {
            if watch.tick_here() {
                return Err(crate::Error::Interrupted);
            }
            teams.clear();
            for (i, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                let cell = Cell {
                    replica,
                    time: 0,
                    state: block * BLOCK + i,
                    density: n as f64 / total,
                };
                teams.push((cell, n));
            }
            if teams.is_empty() {
                continue;
            }
            drawn.clear();
            drawn.resize(teams.len() * actions, 0);
            let mut rng = seed.block(Purpose::Team, replica as u32, 0, block as u32);
            policy.sample(&teams, &mut rng, &mut work, &mut drawn);
            for ((cell, _), drawn) in teams.iter().zip(drawn.chunks_exact(actions)) {
                out[cell.state % BLOCK * actions..][..actions].copy_from_slice(drawn);
            }
        }
    }
    Ok(())
}

/// Action probabilities from a table (times, replicas, S, A), the first two of size 1 if the
/// table does not depend on them.
#[derive(Debug, Clone, Copy)]
pub struct TabularPolicy<'a> {
    probs: &'a [f64],
    shape: [usize; 4],
}

impl<'a> TabularPolicy<'a> {
    /// Views `probs` as a table of the given shape.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the first row that holds a negative or non-finite number
    /// or does not sum to 1 within [`PROBABILITY_TOLERANCE`].
    pub fn new(probs: &'a [f64], shape: [usize; 4]) -> Result<Self> {
        if probs.len() != shape.iter().product::<usize>() {
            return value_error!(
                "probs: expected shape {shape:?}, got {} values",
                probs.len()
            );
        }
        for (row, values) in probs.chunks_exact(shape[3].max(1)).enumerate() {
            let mut sum = 0.0;
            let mut least = 0.0f64;
            for &p in values {
                sum += p;
                least = if p < least { p } else { least };
            }
            if !((sum - 1.0).abs() <= PROBABILITY_TOLERANCE && least >= 0.0) {
                let place = Self::place(shape, row);
                return match values.iter().position(|&p| !(p >= 0.0 && p.is_finite())) {
                    Some(a) => value_error!(
                        "probs[{place}, {a}]: expected a probability in [0, 1], got {}",
                        values[a]
                    ),
                    None => value_error!(
                        "probs[{place}]: expected a sum of 1 (within {PROBABILITY_TOLERANCE}), \
                         got {sum}"
                    ),
                };
            }
        }
        Ok(TabularPolicy { probs, shape })
    }

    /// Views a table that [`TabularPolicy::new`] has accepted before.
    pub fn trusted(probs: &'a [f64], shape: [usize; 4]) -> Self {
        debug_assert_eq!(probs.len(), shape.iter().product::<usize>());
        TabularPolicy { probs, shape }
    }

    /// The index of a row as the caller wrote it, leaving out axes of size 1.
    fn place(shape: [usize; 4], row: usize) -> String {
        let (rest, s) = (row / shape[2], row % shape[2]);
        let (t, b) = (rest / shape[1], rest % shape[1]);
        let mut place = Vec::new();
        if shape[0] > 1 {
            place.push(t.to_string());
        }
        if shape[1] > 1 {
            place.push(b.to_string());
        }
        place.push(s.to_string());
        place.join(", ")
    }

    #[inline]
    fn row(&self, cell: Cell) -> &[f64] {
        let [times, replicas, states, actions] = self.shape;
        let t = if times > 1 { cell.time } else { 0 };
        let b = if replicas > 1 { cell.replica } else { 0 };
        &self.probs[((t * replicas + b) * states + cell.state) * actions..][..actions]
    }
}

impl TeamPolicy for TabularPolicy<'_> {
    fn check(&self, model: &Model, n_replicas: usize, n_steps: usize) -> Result<()> {
        let [times, replicas, states, actions] = self.shape;
        let (s, a) = (model.graph.n_states(), model.n_actions);
        if (states, actions) != (s, a) {
            return value_error!(
                "probs: expected {s} states and {a} actions, got {states} and {actions}"
            );
        }
        if replicas != 1 && replicas != n_replicas {
            return value_error!("probs: expected 1 or {n_replicas} replicas, got {replicas}");
        }
        if times != 1 && times < n_steps {
            return value_error!("probs: holds {times} steps, {n_steps} were asked for");
        }
        if model.has_masks() {
            for (row, values) in self.probs.chunks_exact(actions).enumerate() {
                let state = row % states;
                let allowed = model.allowed(state);
                if let Some(a) = (0..actions).find(|&a| !allowed[a] && values[a] != 0.0) {
                    return value_error!(
                        "probs[{}, {a}]: action {a} is forbidden in state {state} by action_mask, \
                         got probability {}",
                        Self::place(self.shape, row),
                        values[a]
                    );
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn mean_action(&self, cell: Cell, pi: &mut [f64]) {
        pi.copy_from_slice(self.row(cell));
    }
}

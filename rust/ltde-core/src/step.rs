//! One step of one replica: team actions, next states, team rewards (Eq. (2.7), (3.4), (3.5),
//! with the weight mu(s) of Lemma 3.1 in the reward).

use std::ops::Range;

use crate::model::{AreSound, Fault, Model, ModelError};
use crate::policy::{Cell, TeamPolicy, Work};
use crate::population::{Mass, Population};
use crate::rng::{BLOCK, Purpose, Seed};
use crate::simd::{Kernel, Simd, dispatch};
use crate::teams::{ROOM, Teams, clear};

/// What all blocks of one step of one replica share.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a, T: Mass, P> {
    pub model: &'a Model,
    pub policy: &'a P,
    pub total: T::Total,
    pub seed: Seed,
    /// Replica in the address of the draws.
    pub replica: u32,
    /// Step counter in the address of the draws.
    pub step: u64,
    /// Index of the replica within the call, for the policy and errors.
    pub local_replica: usize,
    /// Index of the step within the call, for the policy.
    pub time: usize,
}

/// Buffers of one worker, for the occupied states of one block.
#[derive(Debug, Default)]
pub(crate) struct Workspace<T> {
    mu: Vec<f64>,
    /// P (A, |N_s|) of each state, one after the other.
    prob: Vec<f64>,
    /// (states, A).
    reward: Vec<f64>,
    cells: Vec<(Cell, T)>,
    degrees: Vec<u32>,
    /// (states, A).
    actions: Vec<T>,
    /// (|N_s|,) of each state, one after the other.
    landed: Vec<T>,
    draws: Work,
}

/// Where one block writes what is recorded, each slice beginning at its first state or edge.
#[derive(Default)]
pub(crate) struct BlockRecord<'a, T> {
    pub actions: Option<&'a mut [T]>,
    pub rewards: Option<&'a mut [f64]>,
}

/// Plays one block of states of `now`; hands `sink` the range of each occupied state in the graph's
/// rows, and the masses that go there.
pub(crate) struct PlayBlock<'a, 'b, T: Mass, P, F> {
    pub context: &'a StepContext<'b, T, P>,
    pub now: &'a Population<T>,
    pub block: u32,
    pub work: &'a mut Workspace<T>,
    pub record: BlockRecord<'a, T>,
    pub sink: F,
}

impl<T: Mass, P: TeamPolicy, F: FnMut(Range<usize>, &[T])> Kernel for PlayBlock<'_, '_, T, P, F> {
    type Output = Result<(), Box<ModelError>>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Result<(), Box<ModelError>> {
        let PlayBlock {
            context,
            now,
            block,
            work,
            record,
            mut sink,
        } = self;
        let StepContext { model, policy, .. } = *context;
        let width = model.n_actions;
        let raised = work.evaluate(context, now, block);
        work.check(context, now)?;
        raised?;
        let Workspace {
            prob,
            reward,
            cells,
            degrees,
            actions,
            landed,
            draws,
            ..
        } = work;
        actions.resize(cells.len() * width + ROOM, T::default());
        landed.resize(prob.len() / width + ROOM, T::default());
        let mut rng = context
            .seed
            .block(Purpose::Step, context.replica, context.step, block);
        let teams = Teams {
            cells,
            degrees,
            prob,
            actions,
            landed,
        };
        T::play(policy, teams, &mut rng, draws);
        let teams = cells.iter().zip(actions.chunks_exact(width));
        if let Some(out) = record.actions {
            for ((cell, _), team) in teams.clone() {
                out[cell.state % BLOCK * width..][..width].copy_from_slice(team);
            }
        }
        if let Some(out) = record.rewards {
            for (((cell, _), team), reward) in teams.zip(reward.chunks_exact(width)) {
                let s = cell.state;
                out[s % BLOCK] = T::team_reward(team, reward, model.allowed(s), context.total);
            }
        }
        let mut landed = landed.as_slice();
        for (cell, _) in &*cells {
            let range = model.graph.range(cell.state);
            let arrivals;
            (arrivals, landed) = landed.split_at(range.len());
            sink(range, arrivals);
        }
        Ok(())
    }
}

/// Makes `out` so many zeros.
#[inline(always)]
fn zeros(out: &mut Vec<f64>, len: usize) {
    out.resize(len, 0.0);
    clear(out);
}

/// The densities mu(N_s) of K neighbours.
#[inline(always)]
fn gather<const K: usize>(densities: &[f64], row: &[u32], mu: &mut [f64]) {
    gather_any(densities, &row[..K], &mut mu[..K]);
}

/// The densities mu(N_s).
#[inline(always)]
fn gather_any(densities: &[f64], row: &[u32], mu: &mut [f64]) {
    for (m, &y) in mu.iter_mut().zip(row) {
        *m = densities[y as usize];
    }
}

impl<T: Mass> Workspace<T> {
    /// Runs the local functions, up to the first that raises: `cells` end before it.
    #[inline(always)]
    fn evaluate<P>(
        &mut self,
        context: &StepContext<'_, T, P>,
        now: &Population<T>,
        block: u32,
    ) -> Result<(), Box<ModelError>> {
        let model = context.model;
        let width = model.n_actions;
        let (counts, densities) = (now.counts(), now.densities());
        let (indptr, indices) = (model.graph.indptr(), model.graph.indices());
        let occupied = now.occupied(block);
        let count = occupied.clone().count();
        self.cells.resize(count, Default::default());
        self.degrees.resize(count, 0);
        let (replica, time) = (context.local_replica, context.time);
        let mut degrees = 0;
        let states = self.cells.iter_mut().zip(&mut self.degrees);
        for (((cell, n), degree), s) in states.zip(occupied) {
            *cell = Cell {
                replica,
                time,
                state: s,
                density: densities[s],
            };
            *n = counts[s];
            *degree = (indptr[s + 1] - indptr[s]) as u32;
            degrees += *degree as usize;
        }
        self.mu.resize(model.max_degree(), 0.0);
        zeros(&mut self.prob, width * degrees);
        zeros(&mut self.reward, width * self.cells.len());
        let mut rest = self.prob.as_mut_slice();
        let states = self.cells.iter().zip(self.reward.chunks_exact_mut(width));
        for (i, ((cell, _), reward)) in states.enumerate() {
            let s = cell.state;
            let range = indptr[s]..indptr[s + 1];
            let row = &indices[range.clone()];
            let prob;
            (prob, rest) = rest.split_at_mut(width * row.len());
            let mu = &mut self.mu[..row.len()];
            // one copy of the code for each small |N_s|: its loops are unrolled
            match row.len() {
                2 => gather::<2>(densities, row, mu),
                3 => gather::<3>(densities, row, mu),
                4 => gather::<4>(densities, row, mu),
                5 => gather::<5>(densities, row, mu),
                _ => gather_any(densities, row, mu),
            }
            if let Err(fault) = model.write(s, range, mu, prob, reward) {
                self.cells.truncate(i);
                return Err(context.error(fault, s, now));
            }
        }
        Ok(())
    }

    /// Checks what was written, all of the block at the end: to read numbers together that have just
    /// been stored one by one is slow.
    #[inline(always)]
    fn check<P: TeamPolicy>(
        &mut self,
        context: &StepContext<'_, T, P>,
        now: &Population<T>,
    ) -> Result<(), Box<ModelError>> {
        let model = context.model;
        let (width, range) = (model.n_actions, model.reward_range);
        let states = self.cells.len();
        let degrees = &self.degrees[..states];
        let reward = &mut self.reward[..states * width];
        let size = degrees.iter().map(|&degree| degree as usize).sum::<usize>() * width;
        let prob = &self.prob[..size];
        let sums = (self.draws.sums).add_up(context.policy, &self.cells, degrees, prob, width);
        if model.has_masks() {
            // what was written for an action that nobody takes does not matter
            let own = sums
                .chunks_exact_mut(width)
                .zip(reward.chunks_exact_mut(width));
            for ((sums, reward), (cell, _)) in own.zip(&self.cells) {
                let own = sums.iter_mut().zip(reward).zip(model.allowed(cell.state));
                for ((sum, reward), _) in own.filter(|(_, allowed)| !**allowed) {
                    (*sum, *reward) = (1.0, range.0);
                }
            }
        }
        let sums = &*sums;
        if dispatch(AreSound {
            prob,
            sums,
            reward,
            range,
        }) {
            return Ok(());
        }
        let mut rest = prob;
        let states = self.cells.iter().zip(degrees);
        for ((&(cell, _), &degree), reward) in states.zip(reward.chunks_exact(width)) {
            let own;
            (own, rest) = rest.split_at(width * degree as usize);
            model
                .check(range, cell.state, degree as usize, own, reward)
                .map_err(|fault| context.error(fault, cell.state, now))?;
        }
        Ok(())
    }
}

impl<T: Mass, P> StepContext<'_, T, P> {
    #[cold]
    fn error(&self, fault: Fault, state: usize, now: &Population<T>) -> Box<ModelError> {
        let row = self.model.graph.row(state).iter();
        Box::new(ModelError {
            fault,
            replica: self.local_replica,
            step: Some(self.step),
            state,
            mu: row.map(|&y| now.densities()[y as usize]).collect(),
        })
    }
}

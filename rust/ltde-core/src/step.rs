//! One step of one replica: team actions, next states, team rewards (Eq. (2.7), (3.4), (3.5),
//! with the weight mu(s) of Lemma 3.1 in the reward).

use crate::model::{AreSound, Fault, Model, ModelError};
use crate::policy::{Cell, TeamPolicy, Work};
use crate::population::{Mass, Population};
use crate::rng::{BLOCK, Purpose, Seed};
use crate::simd::dispatch;
use crate::teams::{ROOM, Teams};

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

/// Zeros that are written at once: more would start slowly (`rep stos` in the C library).
const ZEROS: usize = 128;

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

/// Plays one block of states of `now`; hands `sink` each occupied state with its row of the graph
/// and the masses that went there.
#[inline]
pub(crate) fn play_block<T: Mass, P: TeamPolicy>(
    context: &StepContext<'_, T, P>,
    now: &Population<T>,
    block: u32,
    work: &mut Workspace<T>,
    record: BlockRecord<'_, T>,
    mut sink: impl FnMut(usize, &[u32], &[T]),
) -> Result<(), Box<ModelError>> {
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
    zeros(actions, cells.len() * width + ROOM);
    zeros(landed, prob.len() / width + ROOM);
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
    for (&(cell, _), &degree) in cells.iter().zip(&*degrees) {
        let arrivals;
        (arrivals, landed) = landed.split_at(degree as usize);
        sink(cell.state, model.graph.row(cell.state), arrivals);
    }
    Ok(())
}

/// Makes `out` so many zeros.
#[inline(always)]
fn zeros<T: Mass>(out: &mut Vec<T>, len: usize) {
    out.resize(len, T::default());
    for piece in out.chunks_mut(ZEROS) {
        piece.fill(T::default());
    }
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
        let (model, densities) = (context.model, now.densities());
        let width = model.n_actions;
        self.cells.clear();
        self.degrees.clear();
        let mut degrees = 0;
        for s in now.occupied(block) {
            let cell = Cell {
                replica: context.local_replica,
                time: context.time,
                state: s,
                density: densities[s],
            };
            let degree = model.graph.range(s).len();
            self.cells.push((cell, now.counts()[s]));
            self.degrees.push(degree as u32);
            degrees += degree;
        }
        self.mu.resize(model.max_degree(), 0.0);
        zeros(&mut self.prob, width * degrees);
        zeros(&mut self.reward, width * self.cells.len());
        let mut rest = self.prob.as_mut_slice();
        let states = self.cells.iter().zip(self.reward.chunks_exact_mut(width));
        for (i, ((cell, _), reward)) in states.enumerate() {
            let s = cell.state;
            let row = model.graph.row(s);
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
            if let Err(fault) = model.write(s, mu, prob, reward) {
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

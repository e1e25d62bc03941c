//! One step of one replica: team actions, next states, team rewards (Eq. (2.7), (3.4), (3.5),
//! with the weight mu(s) of Lemma 3.1 in the reward).

use crate::model::{Fault, Model, ModelError, has_signs};
use crate::policy::{Cell, TeamPolicy, Work};
use crate::population::{Mass, Population};
use crate::rng::{BLOCK, Purpose, Seed};
use crate::simd::{Kernel, Simd, dispatch};
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

/// Buffers of one worker, for the occupied states of one block.
#[derive(Debug, Default)]
pub(crate) struct Workspace<T> {
    mu: Vec<f64>,
    /// P (A, |N_s|) of each state, one after the other; of `size` numbers.
    prob: Vec<f64>,
    size: usize,
    /// (states, A) at least.
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
    mut record: BlockRecord<'_, T>,
    mut sink: impl FnMut(usize, &[u32], &[T]),
) -> Result<(), Box<ModelError>> {
    let StepContext { model, policy, .. } = *context;
    let width = model.n_actions;
    dispatch(Evaluate {
        context,
        now,
        block,
        work,
    })?;
    let Workspace {
        prob,
        size,
        reward,
        cells,
        degrees,
        actions,
        landed,
        draws,
        ..
    } = work;
    actions.clear();
    actions.resize(cells.len() * width + ROOM, T::default());
    landed.clear();
    let prob = &prob[..*size];
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
    let mut landed = landed.as_slice();
    let teams = actions.chunks_exact(width).zip(reward.chunks_exact(width));
    for ((&(cell, _), &degree), (team, reward)) in cells.iter().zip(&*degrees).zip(teams) {
        let s = cell.state;
        let i = s % BLOCK;
        if let Some(out) = record.actions.as_deref_mut() {
            out[i * width..][..width].copy_from_slice(team);
        }
        if let Some(out) = record.rewards.as_deref_mut() {
            out[i] = T::team_reward(team, reward, model.allowed(s), context.total);
        }
        let arrivals;
        (arrivals, landed) = landed.split_at(degree as usize);
        sink(s, model.graph.row(s), arrivals);
    }
    Ok(())
}

/// Evaluates the local function of the occupied states of a block: compiled for each instruction
/// set for the checks of what it wrote.
struct Evaluate<'a, T: Mass, P> {
    context: &'a StepContext<'a, T, P>,
    now: &'a Population<T>,
    block: u32,
    work: &'a mut Workspace<T>,
}

impl<T: Mass, P> Kernel for Evaluate<'_, T, P> {
    type Output = Result<(), Box<ModelError>>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        let Evaluate {
            context,
            now,
            block,
            work,
        } = self;
        work.cells.clear();
        work.degrees.clear();
        work.size = 0;
        let mut raised = Ok(());
        for s in now.occupied(block) {
            let row = context.model.graph.row(s);
            // one copy of the code for each small |N_s|: its loops are unrolled
            raised = match row.len() {
                2 => work.evaluate(context, now, s, fixed::<2>(row)),
                3 => work.evaluate(context, now, s, fixed::<3>(row)),
                4 => work.evaluate(context, now, s, fixed::<4>(row)),
                5 => work.evaluate(context, now, s, fixed::<5>(row)),
                _ => work.evaluate(context, now, s, row),
            };
            if raised.is_err() {
                break;
            }
        }
        work.check(context, now)?;
        raised
    }
}

/// The row, of K entries as the compiler then knows.
#[inline(always)]
fn fixed<const K: usize>(row: &[u32]) -> &[u32] {
    row.first_chunk::<K>().map_or(row, |row| row)
}

impl<T: Mass> Workspace<T> {
    #[inline(always)]
    fn evaluate<P>(
        &mut self,
        context: &StepContext<'_, T, P>,
        now: &Population<T>,
        s: usize,
        row: &[u32],
    ) -> Result<(), Box<ModelError>> {
        let (model, densities) = (context.model, now.densities());
        let width = model.n_actions;
        if self.mu.len() < row.len() {
            self.mu.resize(row.len(), 0.0);
        }
        let mu = &mut self.mu[..row.len()];
        for (m, &y) in mu.iter_mut().zip(row) {
            *m = densities[y as usize];
        }
        // grown, never cleared: `Model::write` does that where it writes
        let (first, i) = (self.size, self.cells.len() * width);
        self.size += width * row.len();
        if self.prob.len() < self.size {
            self.prob.resize(self.size, 0.0);
        }
        if self.reward.len() < i + width {
            self.reward.resize(i + width, 0.0);
        }
        let prob = &mut self.prob[first..self.size];
        let reward = &mut self.reward[i..][..width];
        if let Err(fault) = model.write(s, mu, prob, reward) {
            self.size = first;
            return Err(context.error(fault, s, now));
        }
        let cell = Cell {
            replica: context.local_replica,
            time: context.time,
            state: s,
            density: densities[s],
        };
        self.cells.push((cell, now.counts()[s]));
        self.degrees.push(row.len() as u32);
        Ok(())
    }

    /// Checks what was written, all of the block at the end: to read numbers together that have just
    /// been stored one by one is slow.
    #[inline(always)]
    fn check<P>(
        &self,
        context: &StepContext<'_, T, P>,
        now: &Population<T>,
    ) -> Result<(), Box<ModelError>> {
        let model = context.model;
        let width = model.n_actions;
        let (mut prob, range) = (&self.prob[..self.size], model.reward_range);
        let signs = has_signs(prob);
        let states = self.cells.iter().zip(&self.degrees);
        for (((cell, _), &degree), reward) in states.zip(self.reward.chunks_exact(width)) {
            let (s, degree) = (cell.state, degree as usize);
            let own;
            (own, prob) = prob.split_at(width * degree);
            // one copy of the code for each small |N_s|: its loops are unrolled
            let checked = match degree {
                2 => model.check(range, s, 2, signs, own, reward),
                3 => model.check(range, s, 3, signs, own, reward),
                4 => model.check(range, s, 4, signs, own, reward),
                5 => model.check(range, s, 5, signs, own, reward),
                _ => model.check(range, s, degree, signs, own, reward),
            };
            if let Err(fault) = checked {
                return Err(context.error(fault, s, now));
            }
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

//! One step of one replica: team actions, next states, team rewards (Eq. (2.7), (3.4), (3.5),
//! with the weight mu(s) of Lemma 3.1 in the reward).

use crate::model::{Fault, Model, ModelError};
use crate::multinomial::Scratch;
use crate::policy::{Cell, TeamPolicy};
use crate::population::{Mass, Population, Team};
use crate::rng::{BLOCK, Purpose, Rng, Seed};
use crate::simd::{Kernel, dispatch};

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

/// Buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Workspace<T> {
    mu: Vec<f64>,
    prob: Vec<f64>,
    reward: Vec<f64>,
    pi: Vec<f64>,
    team: Vec<T>,
    landed: Vec<T>,
    scratch: Scratch,
}

impl<T: Mass> Workspace<T> {
    pub(crate) fn new(model: &Model) -> Self {
        let (degree, actions) = (model.max_degree(), model.n_actions);
        Workspace {
            mu: vec![0.0; degree],
            prob: vec![0.0; degree * actions],
            reward: vec![0.0; actions],
            pi: vec![0.0; actions],
            team: vec![T::default(); actions],
            landed: vec![T::default(); degree],
            scratch: Scratch::default(),
        }
    }
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
    sink: impl FnMut(usize, &[u32], &[T]),
) -> Result<(), Box<ModelError>> {
    let rng = context
        .seed
        .stream(Purpose::Step, context.replica, context.step, block);
    let play = Play {
        context,
        now,
        rng,
        work,
        record,
        sink,
    };
    dispatch(Block { play, block })
}

/// One block, compiled for each instruction set.
struct Block<'a, T: Mass, P, F> {
    play: Play<'a, T, P, F>,
    block: u32,
}

impl<T: Mass, P: TeamPolicy, F: FnMut(usize, &[u32], &[T])> Kernel for Block<'_, T, P, F> {
    type Output = Result<(), Box<ModelError>>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Block { mut play, block } = self;
        for s in play.now.occupied(block) {
            let row = play.context.model.graph.row(s);
            // one copy of the code for each small |N_s|: its loops are unrolled
            match row.len() {
                2 => play.state(s, fixed::<2>(row))?,
                3 => play.state(s, fixed::<3>(row))?,
                4 => play.state(s, fixed::<4>(row))?,
                5 => play.state(s, fixed::<5>(row))?,
                6 => play.state(s, fixed::<6>(row))?,
                7 => play.state(s, fixed::<7>(row))?,
                8 => play.state(s, fixed::<8>(row))?,
                _ => play.state(s, row)?,
            }
        }
        Ok(())
    }
}

/// The row, of K entries as the compiler then knows.
#[inline(always)]
fn fixed<const K: usize>(row: &[u32]) -> &[u32] {
    row.first_chunk::<K>().map_or(row, |row| row)
}

/// One block of one step.
struct Play<'a, T: Mass, P, F> {
    context: &'a StepContext<'a, T, P>,
    now: &'a Population<T>,
    rng: Rng,
    work: &'a mut Workspace<T>,
    record: BlockRecord<'a, T>,
    sink: F,
}

impl<T: Mass, P: TeamPolicy, F: FnMut(usize, &[u32], &[T])> Play<'_, T, P, F> {
    #[inline(always)]
    fn state(&mut self, s: usize, row: &[u32]) -> Result<(), Box<ModelError>> {
        let StepContext {
            model,
            policy,
            total,
            ..
        } = *self.context;
        let densities = self.now.densities();
        let (actions, degree) = (model.n_actions, row.len());
        let Workspace {
            mu,
            prob,
            reward,
            pi,
            team,
            landed,
            scratch,
        } = &mut *self.work;
        let (mu, prob) = (&mut mu[..degree], &mut prob[..actions * degree]);
        for (m, &y) in mu.iter_mut().zip(row) {
            *m = densities[y as usize];
        }
        if let Err(fault) = model.local(s, mu, prob, reward) {
            return Err(self.context.error(fault, s, mu));
        }
        let cell = Cell {
            replica: self.context.local_replica,
            time: self.context.time,
            state: s,
            density: densities[s],
        };
        let landed = &mut landed[..degree];
        team.fill(T::default());
        landed.fill(T::default());
        self.now.counts()[s].play(
            policy,
            cell,
            prob,
            &mut self.rng,
            Team {
                pi,
                scratch,
                actions: team,
                landed,
            },
        );
        let i = s % BLOCK;
        if let Some(out) = self.record.actions.as_deref_mut() {
            out[i * actions..][..actions].copy_from_slice(team);
        }
        if let Some(out) = self.record.rewards.as_deref_mut() {
            out[i] = T::team_reward(team, reward, model.allowed(s), total);
        }
        (self.sink)(s, row, landed);
        Ok(())
    }
}

impl<T: Mass, P> StepContext<'_, T, P> {
    #[cold]
    fn error(&self, fault: Fault, state: usize, mu: &[f64]) -> Box<ModelError> {
        Box::new(ModelError {
            fault,
            replica: self.local_replica,
            step: Some(self.step),
            state,
            mu: mu.to_vec(),
        })
    }
}

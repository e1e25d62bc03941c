//! One step of one replica: team actions, next states, team rewards (Eq. (2.7), (3.4), (3.5),
//! with the weight mu(s) of Lemma 3.1 in the reward).

use crate::model::{Fault, Model, ModelError};
use crate::multinomial::Scratch;
use crate::policy::{Cell, TeamPolicy};
use crate::population::{Mass, Population};
use crate::rng::{BLOCK, Purpose, Seed};

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

/// Plays one block of states of `now`; hands `sink` the masses that left each occupied state,
/// in the order of its row of the graph.
#[inline]
pub(crate) fn play_block<T: Mass, P: TeamPolicy>(
    context: &StepContext<'_, T, P>,
    now: &Population<T>,
    block: u32,
    work: &mut Workspace<T>,
    mut record: BlockRecord<'_, T>,
    mut sink: impl FnMut(usize, &[T]),
) -> Result<(), Box<ModelError>> {
    let StepContext {
        model,
        policy,
        total,
        ..
    } = *context;
    let (actions, counts, densities) = (model.n_actions, now.counts(), now.densities());
    let mut rng = context
        .seed
        .stream(Purpose::Step, context.replica, context.step, block);
    for s in now.occupied(block) {
        let row = model.graph.row(s);
        let degree = row.len();
        let mu = &mut work.mu[..degree];
        for (m, &y) in mu.iter_mut().zip(row) {
            *m = densities[y as usize];
        }
        let prob = &mut work.prob[..actions * degree];
        if let Err(fault) = model.local(s, mu, prob, &mut work.reward) {
            return Err(context.error(fault, s, mu));
        }
        let cell = Cell {
            replica: context.local_replica,
            time: context.time,
            state: s,
            density: densities[s],
        };
        work.team.fill(T::default());
        counts[s].act(
            policy,
            cell,
            &mut rng,
            &mut work.pi,
            &mut work.scratch,
            &mut work.team,
        );
        let landed = &mut work.landed[..degree];
        landed.fill(T::default());
        T::travel(&work.team, prob, &mut rng, &mut work.scratch, landed);
        let i = s % BLOCK;
        if let Some(out) = record.actions.as_deref_mut() {
            out[i * actions..][..actions].copy_from_slice(&work.team);
        }
        if let Some(out) = record.rewards.as_deref_mut() {
            out[i] = T::team_reward(&work.team, &work.reward, model.allowed(s), total);
        }
        sink(s, landed);
    }
    Ok(())
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

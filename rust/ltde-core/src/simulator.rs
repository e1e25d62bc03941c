//! Replicas of the N-agent system: steps, rollouts, the restart chain.
//!
//! Replicas are independent, so as many as divide evenly over the threads run whole rollouts
//! in parallel; the rest run one after another, parallel over blocks of states. Every draw is
//! addressed (see [`crate::rng`]) and masses arrive in ascending order of their origin, so the
//! bits do not depend on which way a replica went.

use std::sync::Arc;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::costate::{CostateRecord, Segment, pass_back};
use crate::error::{Error, Result, value_error};
use crate::initial::DrawAddress;
use crate::model::Model;
use crate::play::{FirstFault, Moves, Replica, Work, play_step};
use crate::policy::TeamPolicy;
use crate::population::Mass;
use crate::record::{Record, ReplicaRecord};
use crate::rng::{BLOCK, MAX_STEP, Purpose, Seed, Words};
use crate::step::{StepContext, Workspace};
use crate::watch::Watch;

/// B independent replicas of N agents (T = i64) or of the mean-field flow (T = f64).
pub struct Simulator<T: Mass> {
    pub(crate) model: Arc<Model>,
    pub(crate) total: T::Total,
    pub(crate) seed: Seed,
    pub(crate) first_replica: u32,
    pub(crate) pool: Option<ThreadPool>,
    replicas: Vec<Replica<T>>,
    /// For replicas that run parallel over blocks.
    moves: Moves<T>,
    counters: Counters,
}

/// What has been drawn so far; with the counts and the seed, the whole state of a simulator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps taken.
    pub step: u64,
    /// Draws of P_0 by construction and `reset`.
    pub resets: u64,
    /// Draws of `visitation`.
    pub episodes: u64,
}

impl<T: Mass> Simulator<T> {
    /// A simulator whose replicas are drawn from P_0.
    ///
    /// # Errors
    /// [`Error::Value`] for a number of replicas or threads out of range.
    pub fn new(
        model: Arc<Model>,
        total: T::Total,
        n_replicas: usize,
        seed: u64,
        threads: usize,
        first_replica: u32,
        watch: &Watch<'_>,
    ) -> Result<Self> {
        if n_replicas == 0 {
            return value_error!("n_replicas: expected at least 1, got 0");
        }
        if u64::from(first_replica) + n_replicas as u64 > 1 << 32 {
            return value_error!(
                "first_replica: first_replica + n_replicas must not exceed 2^32, got {first_replica} + {n_replicas}"
            );
        }
        let pool = match threads {
            0 => return value_error!("threads: expected at least 1, got 0"),
            1 => None,
            _ => Some(
                ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("ltde-{i}"))
                    .build()
                    .map_err(|e| Error::Value(format!("threads: cannot start {threads}: {e}")))?,
            ),
        };
        let replicas = Replica::several(n_replicas, model.graph.n_states())?;
        let mut simulator = Simulator {
            model,
            total,
            seed: Seed(seed),
            first_replica,
            pool,
            replicas,
            moves: Moves::default(),
            counters: Counters::default(),
        };
        simulator.reset(None, watch)?;
        Ok(simulator)
    }

    /// Number of replicas B.
    pub fn n_replicas(&self) -> usize {
        self.replicas.len()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed.0
    }

    /// Steps, resets and episodes so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Puts seed and counters back, for a resumed simulation.
    pub fn restore(&mut self, seed: u64, counters: Counters) {
        self.seed = Seed(seed);
        self.counters = counters;
    }

    /// Redraws all replicas from P_0; `seed` re-keys. The step counter goes on.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; seed and counters are then as before.
    pub fn reset(&mut self, seed: Option<u64>, watch: &Watch<'_>) -> Result<()> {
        let seed = seed.map_or(self.seed, Seed);
        let mut scratch = Default::default();
        for (b, replica) in self.replicas.iter_mut().enumerate() {
            if watch.look() {
                return Err(Error::Interrupted);
            }
            let address = DrawAddress {
                seed,
                purpose: Purpose::Initial,
                replica: self.first_replica + b as u32,
                step: self.counters.resets,
            };
            replica.now.replace(self.total, |counts| {
                T::initial(
                    &self.model.initial,
                    self.total,
                    address,
                    &mut scratch,
                    counts,
                );
            });
        }
        self.seed = seed;
        self.counters.resets += 1;
        Ok(())
    }

    /// Takes the counts (B, S) for the present state, if they differ from it.
    ///
    /// # Errors
    /// [`Error::Value`] naming the entry that is negative or the replica whose sum is not N.
    pub fn set_counts(&mut self, counts: &[T]) -> Result<()> {
        let states = self.model.graph.n_states();
        if counts.len() != self.replicas.len() * states {
            return value_error!(
                "counts: expected {} x {states} entries, got {}",
                self.replicas.len(),
                counts.len()
            );
        }
        let rows = || counts.chunks_exact(states).zip(&self.replicas).enumerate();
        for (b, (row, replica)) in rows() {
            if row != replica.now.counts() {
                T::check(row, b, self.total)?;
            }
        }
        for (row, replica) in counts.chunks_exact(states).zip(&mut self.replicas) {
            if row != replica.now.counts() {
                replica
                    .now
                    .replace(self.total, |own| own.copy_from_slice(row));
            }
        }
        Ok(())
    }

    /// Writes the present counts to `out` (B, S).
    pub fn get_counts(&self, out: &mut [T]) {
        let states = self.model.graph.n_states();
        for (row, replica) in out.chunks_exact_mut(states).zip(&self.replicas) {
            row.copy_from_slice(replica.now.counts());
        }
    }

    /// Passes costates back along a recorded segment; see [`crate::costate`].
    ///
    /// # Errors
    /// Those of [`pass_back`].
    pub fn pass_back<P: TeamPolicy>(
        &self,
        policy: &P,
        segment: Segment<'_>,
        out: CostateRecord<'_>,
        watch: &Watch<'_>,
    ) -> Result<()> {
        pass_back(&self.model, policy, segment, out, self.pool.as_ref(), watch)
    }

    /// Checks that a policy fits the model, the replicas and the kind of mass.
    pub(crate) fn check_policy<P: TeamPolicy>(&self, policy: &P, n_steps: usize) -> Result<()> {
        if T::MEAN_FIELD && !policy.is_multinomial() {
            return value_error!(
                "policy: its teams stay random at n_agents = inf; play the policy of one agent \
                 there, policy.individual(n_agents)"
            );
        }
        policy.check(&self.model, self.n_replicas(), n_steps)
    }

    /// Plays `n_steps` steps of every replica; with `chain`, restarts from P_0 with
    /// probability 1 - gamma after each.
    ///
    /// After an error the counters are those of before the call, and the caller puts its own
    /// copy of the counts back with [`Simulator::set_counts`].
    ///
    /// # Errors
    /// [`Error::Model`] with the first fault of the local function, [`Error::Interrupted`],
    /// [`Error::Value`] if the policy or an array does not fit.
    pub fn rollout<P: TeamPolicy>(
        &mut self,
        policy: &P,
        n_steps: usize,
        chain: bool,
        mut record: Record<'_, T>,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let replicas = self.replicas.len();
        self.check_policy(policy, n_steps)?;
        if self.counters.step + n_steps as u64 > MAX_STEP {
            return value_error!("n_steps: the step counter must stay below 2^48, got {n_steps}");
        }
        if record.used {
            record.clear();
        }
        let restarted = record.restarted.take();
        if restarted
            .as_ref()
            .is_some_and(|array| array.len() != n_steps * replicas)
        {
            return value_error!("restarted: expected {n_steps} x {replicas} entries");
        }
        let mut restarts = vec![Vec::new(); replicas];
        let records = record.split(&self.model, n_steps, &mut restarts)?;
        let play = Play {
            model: &self.model,
            policy,
            total: self.total,
            seed: self.seed,
            first_replica: self.first_replica,
            first_step: self.counters.step,
            n_steps,
            chain,
            faults: FirstFault::new(),
            watch,
        };
        let threads = self
            .pool
            .as_ref()
            .map_or(1, ThreadPool::current_num_threads);
        let blocks = self.model.graph.n_states().div_ceil(BLOCK);
        // whole replicas where they divide evenly or cannot be divided further
        let whole = match self.replicas.len() % threads {
            rest if blocks > 1 => self.replicas.len() - rest,
            _ => self.replicas.len(),
        };
        let mut jobs: Vec<_> = self.replicas.iter_mut().zip(records).enumerate().collect();
        let moves = &mut self.moves;
        watch.run(self.pool.as_ref(), || {
            let rest = jobs.split_off(whole);
            let serial = |workspace: &mut Workspace<T>, (b, (replica, record))| {
                play.replica(b, replica, record, Work::Serial(workspace));
            };
            if threads == 1 {
                let mut workspace = Workspace::default();
                jobs.into_iter().for_each(|job| serial(&mut workspace, job));
            } else {
                jobs.into_par_iter()
                    .for_each_init(Workspace::default, serial);
            }
            for (b, (replica, record)) in rest {
                play.replica(b, replica, record, Work::Blocks(moves));
            }
        });
        play.faults.into_result(watch)?;
        if let Some(restarted) = restarted {
            for (b, times) in restarts.iter().enumerate() {
                times
                    .iter()
                    .for_each(|time| restarted[time * replicas + b] = true);
            }
        }
        self.counters.step += n_steps as u64;
        Ok(())
    }

    /// Counts further draws of `visitation`.
    pub(crate) fn add_episodes(&mut self, n: u64) {
        self.counters.episodes += n;
    }
}

/// One call of `rollout`.
struct Play<'a, T: Mass, P> {
    model: &'a Model,
    policy: &'a P,
    total: T::Total,
    seed: Seed,
    first_replica: u32,
    first_step: u64,
    n_steps: usize,
    chain: bool,
    faults: FirstFault,
    watch: &'a Watch<'a>,
}

impl<T: Mass, P: TeamPolicy> Play<'_, T, P> {
    /// The whole rollout of one replica.
    fn replica(
        &self,
        b: usize,
        replica: &mut Replica<T>,
        mut record: ReplicaRecord<'_, T>,
        mut work: Work<'_, T>,
    ) {
        if let Some(out) = record.counts.first_mut() {
            out.copy_from_slice(replica.now.counts());
        }
        for time in 0..self.n_steps {
            let step = self.first_step + time as u64;
            if self.watch.stopped() || self.faults.is_before(step) {
                return;
            }
            let context = StepContext {
                model: self.model,
                policy: self.policy,
                total: self.total,
                seed: self.seed,
                replica: self.first_replica + b as u32,
                step,
                local_replica: b,
                time,
            };
            let played = play_step(
                &context,
                replica,
                &mut work,
                record.actions.get_mut(time).map(|x| &mut **x),
                record.rewards.get_mut(time).map(|x| &mut **x),
                record.flows.get_mut(time).map(|x| &mut **x),
                self.watch,
            );
            match played {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.faults.report(error),
            }
            if self.chain && self.restarts(b, step) {
                self.restart(b, step, replica);
                record.restarts.push(time);
            }
            std::mem::swap(&mut replica.now, &mut replica.next);
            if let Some(out) = record.counts.get_mut(time + 1) {
                out.copy_from_slice(replica.now.counts());
            }
        }
    }

    /// The coin of the restart chain: heads with probability 1 - gamma.
    fn restarts(&self, b: usize, step: u64) -> bool {
        let replica = self.first_replica + b as u32;
        let mut rng = self.seed.stream(Purpose::RestartCoin, replica, step, 0);
        rng.open_uniform() >= self.model.discount
    }

    /// Puts a fresh draw from P_0 where the next population was.
    fn restart(&self, b: usize, step: u64, replica: &mut Replica<T>) {
        let address = DrawAddress {
            seed: self.seed,
            purpose: Purpose::Restart,
            replica: self.first_replica + b as u32,
            step,
        };
        replica.next.replace(self.total, |counts| {
            let mut scratch = Default::default();
            T::initial(
                &self.model.initial,
                self.total,
                address,
                &mut scratch,
                counts,
            );
        });
    }
}

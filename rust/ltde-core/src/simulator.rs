//! Replicas of the N-agent system: steps, rollouts, the restart chain.
//!
//! Replicas are independent, so as many as divide evenly over the threads run whole rollouts
//! in parallel; the rest run one after another, parallel over blocks of states. Every draw is
//! addressed (see [`crate::rng`]) and masses arrive in ascending order of their origin, so the
//! bits do not depend on which way a replica went.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result, value_error};
use crate::initial::DrawAddress;
use crate::model::{Model, ModelError};
use crate::policy::TeamPolicy;
use crate::population::{Mass, Population};
use crate::rng::{BLOCK, MAX_STEP, Purpose, Seed, Words};
use crate::step::{BlockRecord, StepContext, Workspace, play_block};
use crate::watch::Watch;

/// One replica: its population now, and room for the next.
#[derive(Debug, Clone)]
pub(crate) struct Replica<T> {
    pub now: Population<T>,
    pub next: Population<T>,
}

impl<T: Mass> Replica<T> {
    pub(crate) fn empty(states: usize) -> Self {
        Replica {
            now: Population::empty(states),
            next: Population::empty(states),
        }
    }

    /// `n` replicas without agents.
    ///
    /// # Errors
    /// [`Error::Memory`] where they certainly do not fit, instead of the end of the process.
    fn several(n: usize, states: usize) -> Result<Vec<Self>> {
        let bytes = states
            .saturating_mul(2 * (size_of::<T>() + size_of::<f64>()))
            .saturating_add(size_of::<Self>())
            .saturating_mul(n);
        let memory = |_| {
            Error::Memory(format!(
                "n_replicas: {n} replicas of {states} states take {bytes} bytes"
            ))
        };
        // asks the allocator for as much as all replicas take, and gives it back
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(memory)?;
        let mut replicas = Vec::new();
        replicas.try_reserve_exact(n).map_err(memory)?;
        replicas.resize_with(n, || Replica::empty(states));
        Ok(replicas)
    }
}

/// Where the recorded arrays of a rollout go, each C-contiguous; `None` is not recorded.
#[derive(Debug)]
pub struct Record<'a, T> {
    /// (T + 1, B, S)
    pub counts: Option<&'a mut [T]>,
    /// (T, B, S, A), zero on arrival
    pub actions: Option<&'a mut [T]>,
    /// (T, B, S), zero on arrival
    pub rewards: Option<&'a mut [f64]>,
    /// (T, B), false on arrival
    pub restarted: Option<&'a mut [bool]>,
    /// (T, B, nnz), zero on arrival
    pub flows: Option<&'a mut [T]>,
    /// Whether the arrays were used before and are to be zeroed first.
    pub used: bool,
}

/// The part of a [`Record`] that belongs to one replica: a slice for each time.
struct ReplicaRecord<'a, T> {
    counts: Vec<&'a mut [T]>,
    actions: Vec<&'a mut [T]>,
    rewards: Vec<&'a mut [f64]>,
    flows: Vec<&'a mut [T]>,
    /// Steps after which the chain restarted.
    restarts: &'a mut Vec<usize>,
}

impl<'a, T: Mass> Record<'a, T> {
    /// Zeroes what will not be overwritten.
    fn clear(&mut self) {
        let masses = [self.actions.as_deref_mut(), self.flows.as_deref_mut()];
        masses
            .into_iter()
            .flatten()
            .for_each(|array| array.fill(T::default()));
        if let Some(array) = self.rewards.as_deref_mut() {
            array.fill(0.0);
        }
        if let Some(array) = self.restarted.as_deref_mut() {
            array.fill(false);
        }
    }

    /// Checks the sizes and deals the slices out to the replicas.
    fn split(
        self,
        model: &Model,
        steps: usize,
        restarts: &'a mut [Vec<usize>],
    ) -> Result<Vec<ReplicaRecord<'a, T>>> {
        let replicas = restarts.len();
        fn deal<'a, U>(
            name: &str,
            array: Option<&'a mut [U]>,
            times: usize,
            replicas: usize,
            size: usize,
        ) -> Result<Vec<Vec<&'a mut [U]>>> {
            let mut dealt: Vec<Vec<&mut [U]>> = (0..replicas).map(|_| Vec::new()).collect();
            if let Some(array) = array {
                if array.len() != times * replicas * size {
                    return value_error!(
                        "{name}: expected {} entries, got {}",
                        times * replicas * size,
                        array.len()
                    );
                }
                for (i, slice) in array.chunks_exact_mut(size).enumerate() {
                    dealt[i % replicas].push(slice);
                }
            }
            Ok(dealt)
        }
        let (s, a, nnz) = (model.graph.n_states(), model.n_actions, model.graph.nnz());
        let counts = deal("counts", self.counts, steps + 1, replicas, s)?;
        let actions = deal("actions", self.actions, steps, replicas, s * a)?;
        let rewards = deal("rewards", self.rewards, steps, replicas, s)?;
        let flows = deal("flows", self.flows, steps, replicas, nnz)?;
        Ok(counts
            .into_iter()
            .zip(actions)
            .zip(rewards)
            .zip(flows)
            .zip(restarts)
            .map(
                |((((counts, actions), rewards), flows), restarts)| ReplicaRecord {
                    counts,
                    actions,
                    rewards,
                    flows,
                    restarts,
                },
            )
            .collect())
    }
}

/// The first fault in the order (step, replica, state), whatever the scheduling.
pub(crate) struct FirstFault {
    /// No replica needs to go past this step.
    bound: AtomicU64,
    found: Mutex<Option<Box<ModelError>>>,
}

impl FirstFault {
    pub(crate) fn new() -> Self {
        FirstFault {
            bound: AtomicU64::new(u64::MAX),
            found: Mutex::new(None),
        }
    }

    pub(crate) fn report(&self, error: Box<ModelError>) {
        let key = |e: &ModelError| (e.step, e.replica, e.state);
        self.bound
            .fetch_min(error.step.unwrap_or(0), Ordering::Relaxed);
        let mut found = self
            .found
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if found.as_ref().is_none_or(|first| key(&error) < key(first)) {
            *found = Some(error);
        }
    }

    /// Whether step `step` need not be played any more.
    pub(crate) fn is_before(&self, step: u64) -> bool {
        self.bound.load(Ordering::Relaxed) < step
    }

    pub(crate) fn into_result(self, watch: &Watch<'_>) -> Result<()> {
        let found = self
            .found
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match found {
            _ if watch.stopped() => Err(Error::Interrupted),
            Some(error) => Err(Error::Model(*error)),
            None => Ok(()),
        }
    }
}

/// How one replica plays its steps.
pub(crate) enum Work<'a, T> {
    /// On this thread.
    Serial(&'a mut Workspace<T>),
    /// Parallel over blocks in the current pool; holds a flow buffer (nnz,).
    Blocks(&'a mut Vec<T>),
}

/// Plays one step of one replica from `now` into `next`.
///
/// # Errors
/// The fault of the lowest state. `Ok(false)` if the watch said stop.
pub(crate) fn play_step<T: Mass, P: TeamPolicy>(
    context: &StepContext<'_, T, P>,
    replica: &mut Replica<T>,
    work: &mut Work<'_, T>,
    actions: Option<&mut [T]>,
    rewards: Option<&mut [f64]>,
    flows: Option<&mut [T]>,
    watch: &Watch<'_>,
) -> std::result::Result<bool, Box<ModelError>> {
    let Replica { now, next } = replica;
    next.clear();
    let done = match work {
        Work::Serial(workspace) => play_serial(
            context, now, next, workspace, actions, rewards, flows, watch,
        )?,
        Work::Blocks(buffer) => {
            let flows = match flows {
                Some(flows) => flows,
                None => {
                    buffer.resize(context.model.graph.nnz(), T::default());
                    buffer.as_mut_slice()
                }
            };
            let done = play_blocks(context, now, actions, rewards, flows, watch)?;
            for &block in now.blocks() {
                for s in now.occupied(block) {
                    let row = context.model.graph.row(s);
                    scatter(row, &flows[context.model.graph.range(s)], next);
                }
            }
            done
        }
    };
    next.finish(context.total);
    Ok(done)
}

#[inline]
fn scatter<T: Mass>(row: &[u32], landed: &[T], next: &mut Population<T>) {
    for (&y, &mass) in row.iter().zip(landed) {
        next.add(y as usize, mass);
    }
}

#[allow(clippy::too_many_arguments)]
fn play_serial<T: Mass, P: TeamPolicy>(
    context: &StepContext<'_, T, P>,
    now: &Population<T>,
    next: &mut Population<T>,
    workspace: &mut Workspace<T>,
    mut actions: Option<&mut [T]>,
    mut rewards: Option<&mut [f64]>,
    mut flows: Option<&mut [T]>,
    watch: &Watch<'_>,
) -> std::result::Result<bool, Box<ModelError>> {
    let graph = &context.model.graph;
    let width = BLOCK * context.model.n_actions;
    for &block in now.blocks() {
        if watch.tick() {
            return Ok(false);
        }
        let record = BlockRecord {
            actions: actions
                .as_deref_mut()
                .map(|a| &mut a[block as usize * width..]),
            rewards: rewards
                .as_deref_mut()
                .map(|r| &mut r[block as usize * BLOCK..]),
        };
        play_block(context, now, block, workspace, record, |s, landed| {
            scatter(graph.row(s), landed, next);
            if let Some(flows) = flows.as_deref_mut() {
                flows[graph.range(s)].copy_from_slice(landed);
            }
        })?;
    }
    Ok(true)
}

/// Cuts disjoint ranges off a slice, in ascending order.
struct Cutter<'a, U> {
    rest: &'a mut [U],
    offset: usize,
}

impl<'a, U> Cutter<'a, U> {
    fn new(slice: &'a mut [U]) -> Self {
        Cutter {
            rest: slice,
            offset: 0,
        }
    }

    fn cut(&mut self, start: usize, end: usize) -> &'a mut [U] {
        let rest = std::mem::take(&mut self.rest);
        let (piece, rest) = rest[start - self.offset..].split_at_mut(end - start);
        self.rest = rest;
        self.offset = end;
        piece
    }
}

fn play_blocks<T: Mass, P: TeamPolicy>(
    context: &StepContext<'_, T, P>,
    now: &Population<T>,
    actions: Option<&mut [T]>,
    rewards: Option<&mut [f64]>,
    flows: &mut [T],
    watch: &Watch<'_>,
) -> std::result::Result<bool, Box<ModelError>> {
    let model = context.model;
    let (graph, states) = (&model.graph, model.graph.n_states());
    let mut actions = actions.map(Cutter::new);
    let mut rewards = rewards.map(Cutter::new);
    let mut flows = Cutter::new(flows);
    let tasks: Vec<_> = now
        .blocks()
        .iter()
        .map(|&block| {
            let start = block as usize * BLOCK;
            let end = (start + BLOCK).min(states);
            let record = BlockRecord {
                actions: actions
                    .as_mut()
                    .map(|c| c.cut(start * model.n_actions, end * model.n_actions)),
                rewards: rewards.as_mut().map(|c| c.cut(start, end)),
            };
            let first = graph.indptr()[start];
            (block, record, first, flows.cut(first, graph.indptr()[end]))
        })
        .collect();
    let faults = FirstFault::new();
    tasks.into_par_iter().for_each_init(
        || Workspace::new(model),
        |workspace, (block, record, first, flows)| {
            if watch.tick() {
                return;
            }
            let played = play_block(context, now, block, workspace, record, |s, landed| {
                let range = graph.range(s);
                flows[range.start - first..range.end - first].copy_from_slice(landed);
            });
            if let Err(error) = played {
                faults.report(error);
            }
        },
    );
    match faults
        .found
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
    {
        Some(error) => Err(error),
        None => Ok(!watch.stopped()),
    }
}

/// B independent replicas of N agents (T = i64) or of the mean-field flow (T = f64).
pub struct Simulator<T: Mass> {
    pub(crate) model: Arc<Model>,
    pub(crate) total: T::Total,
    pub(crate) seed: Seed,
    pub(crate) first_replica: u32,
    pub(crate) pool: Option<ThreadPool>,
    replicas: Vec<Replica<T>>,
    /// Flow buffer (nnz,) of replicas that run parallel over blocks.
    flow: Vec<T>,
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
            flow: Vec::new(),
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
        policy.check(&self.model, self.replicas.len(), n_steps)?;
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
        let flow = &mut self.flow;
        watch.run(self.pool.as_ref(), || {
            let rest = jobs.split_off(whole);
            let serial = |workspace: &mut Workspace<T>, (b, (replica, record))| {
                play.replica(b, replica, record, Work::Serial(workspace));
            };
            if threads == 1 {
                let mut workspace = Workspace::new(play.model);
                jobs.into_iter().for_each(|job| serial(&mut workspace, job));
            } else {
                jobs.into_par_iter()
                    .for_each_init(|| Workspace::new(play.model), serial);
            }
            for (b, (replica, record)) in rest {
                play.replica(b, replica, record, Work::Blocks(flow));
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

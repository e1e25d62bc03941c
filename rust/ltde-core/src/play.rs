//! One step of one replica, on one thread or parallel over blocks of states, with the same bits.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::model::ModelError;
use crate::policy::TeamPolicy;
use crate::population::{Mass, Population};
use crate::rng::BLOCK;
use crate::simd::dispatch_ordinary;
use crate::step::{BlockRecord, PlayBlock, StepContext, Workspace};
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
    pub(crate) fn several(n: usize, states: usize) -> Result<Vec<Self>> {
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
    /// Parallel over blocks in the current pool.
    Blocks(&'a mut Moves<T>),
}

/// What is needed to play blocks in parallel; sized on first use and reused.
#[derive(Debug, Default)]
pub(crate) struct Moves<T> {
    /// One for each thread of the pool.
    workspaces: Vec<Mutex<Workspace<T>>>,
    /// How many go along each entry of the graph (nnz,).
    flows: Vec<T>,
    /// For each entry (y, s) of the graph, the place of y in the row of s (nnz,).
    places: Vec<u32>,
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
    let (graph, total) = (&context.model.graph, context.total);
    match work {
        Work::Serial(workspace) => {
            next.clear();
            if !play_serial(
                context, now, next, workspace, actions, rewards, flows, watch,
            )? {
                return Ok(false);
            }
        }
        Work::Blocks(Moves {
            workspaces,
            flows: own_flows,
            places,
        }) => {
            workspaces.resize_with(rayon::current_num_threads(), Mutex::default);
            let flows = match flows {
                Some(flows) => flows,
                None => {
                    own_flows.resize(graph.nnz(), T::default());
                    own_flows.as_mut_slice()
                }
            };
            // to gather costs the whole graph, to add only the occupied states; the bits are the same
            let gathered = 2 * now.n_occupied() >= graph.n_states();
            if gathered && now.blocks().len() < graph.n_states().div_ceil(BLOCK) {
                // blocks without anybody are not played
                flows.fill(T::default());
            }
            if !play_blocks(
                context, now, workspaces, actions, rewards, flows, gathered, watch,
            )? {
                return Ok(false);
            }
            let flows = &*flows;
            if gathered {
                if places.is_empty() {
                    *places = graph.places();
                }
                // in the order of those who come, as below: sums of floats depend on it
                next.fill(total, |y| {
                    let range = graph.range(y);
                    let places = &places[range.clone()];
                    let mut mass = T::default();
                    for (&s, &place) in graph.indices()[range].iter().zip(places) {
                        mass += flows[graph.indptr()[s as usize] + place as usize];
                    }
                    mass
                });
                return Ok(true);
            }
            next.clear();
            for &block in now.blocks() {
                for s in now.occupied(block) {
                    next.add(graph.row(s), &flows[graph.range(s)]);
                }
            }
        }
    }
    next.finish(total);
    Ok(true)
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
        dispatch_ordinary(PlayBlock {
            context,
            now,
            block,
            work: workspace,
            record,
            sink: |range: Range<usize>, landed: &[T]| {
                next.add(&graph.indices()[range.clone()], landed);
                if let Some(flows) = flows.as_deref_mut() {
                    flows[range].copy_from_slice(landed);
                }
            },
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

/// Plays all blocks; with `clear`, the flows of their other states are zero.
#[allow(clippy::too_many_arguments)]
fn play_blocks<T: Mass, P: TeamPolicy>(
    context: &StepContext<'_, T, P>,
    now: &Population<T>,
    workspaces: &[Mutex<Workspace<T>>],
    actions: Option<&mut [T]>,
    rewards: Option<&mut [f64]>,
    flows: &mut [T],
    clear: bool,
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
    tasks
        .into_par_iter()
        .for_each(|(block, record, first, flows)| {
            if watch.tick() {
                return;
            }
            if clear && now.occupied(block).count() < BLOCK {
                // nobody leaves the states that are not occupied
                flows.fill(T::default());
            }
            let thread = rayon::current_thread_index().unwrap_or(0);
            // it is in use where a local function of Rust lets this thread play another block
            let mut own = workspaces[thread].try_lock().ok();
            let mut other = None;
            let workspace = match &mut own {
                Some(own) => &mut **own,
                None => other.insert(Workspace::default()),
            };
            let played = dispatch_ordinary(PlayBlock {
                context,
                now,
                block,
                work: workspace,
                record,
                sink: |range: Range<usize>, landed: &[T]| {
                    flows[range.start - first..range.end - first].copy_from_slice(landed);
                },
            });
            if let Err(error) = played {
                faults.report(error);
            }
        });
    match faults
        .found
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
    {
        Some(error) => Err(error),
        None => Ok(!watch.stopped()),
    }
}

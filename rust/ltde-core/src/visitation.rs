//! Independent exact draws from the discounted visitation law sigma, Eq. (4.2):
//! sigma = (1 - gamma) sum_t gamma^t Law(mu_t, h_t), read at a geometric time.

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Result, value_error};
use crate::initial::DrawAddress;
use crate::math::ln;
use crate::play::{FirstFault, Moves, Replica, Work, play_step};
use crate::policy::TeamPolicy;
use crate::population::Mass;
use crate::rng::{BLOCK, Purpose, Rng, Seed, Words};
use crate::simulator::Simulator;
use crate::step::{StepContext, Workspace};
use crate::watch::Watch;

/// Where the draws go, each C-contiguous.
#[derive(Debug)]
pub struct VisitationRecord<'a, T> {
    /// (D, B, S)
    pub counts: &'a mut [T],
    /// (D, B, S, A), zero on arrival
    pub actions: &'a mut [T],
    /// (D, B, S), zero on arrival
    pub rewards: &'a mut [f64],
    /// (D, B, S)
    pub next_counts: &'a mut [T],
    /// (D, B)
    pub horizon: &'a mut [i64],
}

/// One draw: where it goes and what seeds it.
struct Episode<'a, T> {
    replica: usize,
    seed: Seed,
    counts: &'a mut [T],
    actions: &'a mut [T],
    rewards: &'a mut [f64],
    next_counts: &'a mut [T],
    horizon: &'a mut i64,
}

/// A geometric time: P(t) = (1 - gamma) gamma^t, t = 0, 1, ..., never truncated.
pub fn geometric(rng: &mut Rng, gamma: f64) -> u64 {
    if gamma <= 0.0 {
        return 0;
    }
    // An exponential variate without an upper end: below 2^-20 a uniform is replaced by
    // 2^-20 times a fresh one.
    const TAIL: f64 = 1.0 / (1u64 << 20) as f64;
    let mut exponential = 0.0;
    loop {
        let u = rng.open_uniform();
        if u >= TAIL {
            exponential -= ln(u);
            return (exponential / -ln(gamma)) as u64;
        }
        exponential -= ln(TAIL);
    }
}

impl<T: Mass> Simulator<T> {
    /// Draws `n_draws` x B independent samples of (mu, h, r, mu') with (mu, h) from sigma. The
    /// present state is untouched; every call goes on with new draws.
    ///
    /// # Errors
    /// As [`Simulator::rollout`].
    pub fn visitation<P: TeamPolicy>(
        &mut self,
        policy: &P,
        n_draws: usize,
        record: VisitationRecord<'_, T>,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let replicas = self.n_replicas();
        self.check_policy(policy, 1)?;
        let (states, actions) = (self.model.graph.n_states(), self.model.n_actions);
        let total = n_draws * replicas;
        if record.counts.len() != total * states
            || record.next_counts.len() != total * states
            || record.rewards.len() != total * states
            || record.actions.len() != total * states * actions
            || record.horizon.len() != total
        {
            return value_error!("visitation: arrays do not fit {n_draws} x {replicas} draws");
        }
        let first = self.counters().episodes;
        let episodes: Vec<Episode<'_, T>> = record
            .counts
            .chunks_exact_mut(states)
            .zip(record.actions.chunks_exact_mut(states * actions))
            .zip(record.rewards.chunks_exact_mut(states))
            .zip(record.next_counts.chunks_exact_mut(states))
            .zip(record.horizon.iter_mut())
            .enumerate()
            .map(
                |(i, ((((counts, actions), rewards), next_counts), horizon))| {
                    let replica = self.first_replica + (i % replicas) as u32;
                    let draw = first + (i / replicas) as u64;
                    let seed = self
                        .seed
                        .stream(Purpose::Episode, replica, draw, 0)
                        .next_word();
                    Episode {
                        replica: i % replicas,
                        seed: Seed(seed),
                        counts,
                        actions,
                        rewards,
                        next_counts,
                        horizon,
                    }
                },
            )
            .collect();
        let faults = FirstFault::new();
        let threads = self
            .pool
            .as_ref()
            .map_or(1, ThreadPool::current_num_threads);
        let make = || (Replica::empty(states), Workspace::default());
        watch.run(self.pool.as_ref(), || {
            let serial = |(replica, workspace): &mut (Replica<T>, Workspace<T>), episode| {
                self.play_episode(
                    policy,
                    episode,
                    replica,
                    Work::Serial(workspace),
                    &faults,
                    watch,
                );
            };
            if threads == 1 {
                let mut own = make();
                episodes
                    .into_iter()
                    .for_each(|episode| serial(&mut own, episode));
            } else if total < threads && states > BLOCK {
                let (mut replica, mut moves) = (make().0, Moves::default());
                for episode in episodes {
                    let work = Work::Blocks(&mut moves);
                    self.play_episode(policy, episode, &mut replica, work, &faults, watch);
                }
            } else {
                // lengths differ a lot: hand episodes out one by one
                episodes
                    .into_par_iter()
                    .with_max_len(1)
                    .for_each_init(make, serial);
            }
        });
        faults.into_result(watch)?;
        self.add_episodes(n_draws as u64);
        Ok(())
    }

    fn play_episode<P: TeamPolicy>(
        &self,
        policy: &P,
        episode: Episode<'_, T>,
        replica: &mut Replica<T>,
        mut work: Work<'_, T>,
        faults: &FirstFault,
        watch: &Watch<'_>,
    ) {
        if watch.stopped() || faults.is_before(0) {
            return;
        }
        let seed = episode.seed;
        let horizon = geometric(
            &mut seed.stream(Purpose::Horizon, 0, 0, 0),
            self.model.discount,
        );
        let address = DrawAddress {
            seed,
            purpose: Purpose::Initial,
            replica: 0,
            step: 0,
        };
        let mut scratch = Default::default();
        replica.now.replace(self.total, |counts| {
            T::initial(
                &self.model.initial,
                self.total,
                address,
                &mut scratch,
                counts,
            );
        });
        let Episode {
            counts,
            actions,
            rewards,
            next_counts,
            ..
        } = episode;
        let mut last = Some((actions, rewards));
        for step in 0..=horizon {
            if faults.is_before(step) {
                return;
            }
            let context = StepContext {
                model: &self.model,
                policy,
                total: self.total,
                seed,
                replica: 0,
                step,
                local_replica: episode.replica,
                time: 0,
            };
            let (actions, rewards) = if step == horizon {
                counts.copy_from_slice(replica.now.counts());
                last.take().unzip()
            } else {
                (None, None)
            };
            match play_step(&context, replica, &mut work, actions, rewards, None, watch) {
                Ok(true) => std::mem::swap(&mut replica.now, &mut replica.next),
                Ok(false) => return,
                Err(error) => return faults.report(error),
            }
        }
        next_counts.copy_from_slice(replica.now.counts());
        *episode.horizon = horizon as i64;
    }
}

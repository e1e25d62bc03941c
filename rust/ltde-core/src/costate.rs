//! Costates: the value of one more agent in a state, passed back along a recorded segment.
//!
//! With G(mu) = sum_y mu(y) sum_a pi(a | y, mu(y)) q(y, a; mu) and
//! q(y, a; mu) = r(y, mu(N_y), a) + gamma sum_j P(j | y, mu(N_y), a) lambda'_j, lambda' held fixed,
//! the costate at mu is lambda_s = (G(mu + h e_s) - G(mu)) / h: for h = 1/N the exact one-agent
//! difference, for small h the derivative. Only y in N_s contribute, so a costate is local; it
//! holds what the agent earns itself and what its presence does to its neighbours. At finite N mu
//! is the density of the other N - 1 agents: the one more is the one that chooses.

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Error, Result, value_error};
use crate::model::{Model, ModelError};
use crate::policy::{Cell, TeamPolicy};
use crate::watch::Watch;

/// A recorded segment: T steps of B replicas.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// mu_t of the other agents (T + 1, B, S).
    pub densities: &'a [f64],
    /// (T, B): densities\[t + 1\] is a fresh draw, not the successor of densities\[t\].
    pub restarted: &'a [bool],
    /// The critic's costates at every mu_t (T + 1, B, S): where the segment ends or breaks.
    pub costates: &'a [f64],
    /// Number of replicas B.
    pub n_replicas: usize,
    /// The difference step h in densities.
    pub step: f64,
}

/// Where the results go.
#[derive(Debug)]
pub struct CostateRecord<'a> {
    /// lambda_s(mu_t) (T, B, S); at a restart the critic's own.
    pub targets: &'a mut [f64],
    /// q(s, a; mu_t + h e_s) (T, B, S, A), of one more agent in s; 0 for masked actions and at a
    /// restart.
    pub values: &'a mut [f64],
    /// pi(a | s, mu_t(s) + h) (T, B, S, A).
    pub probs: &'a mut [f64],
}

/// Passes costates back along a segment, replicas in parallel.
///
/// # Errors
/// [`Error::Value`] if a size is wrong, [`Error::Model`] if the local function misbehaves (the
/// step counts within the segment), [`Error::Interrupted`].
pub fn pass_back<P: TeamPolicy>(
    model: &Model,
    policy: &P,
    segment: Segment<'_>,
    out: CostateRecord<'_>,
    pool: Option<&ThreadPool>,
    watch: &Watch<'_>,
) -> Result<()> {
    let (states, actions, replicas) = (model.graph.n_states(), model.n_actions, segment.n_replicas);
    let size = replicas * states;
    let steps = segment.restarted.len() / replicas.max(1);
    if replicas == 0
        || segment.restarted.len() != steps * replicas
        || segment.densities.len() != (steps + 1) * size
        || segment.costates.len() != segment.densities.len()
        || out.targets.len() != steps * size
        || out.values.len() != steps * size * actions
        || out.probs.len() != out.values.len()
    {
        return value_error!("segment: arrays of different sizes");
    }
    if !policy.is_multinomial() {
        return value_error!("policy: costates need agents that act independently");
    }
    policy.check(model, replicas, steps)?;
    // the arrays of each replica, from the last step to the first
    let mut parts: Vec<Part<'_>> = (0..replicas).map(|_| Vec::with_capacity(steps)).collect();
    let rows = out
        .targets
        .chunks_mut(states)
        .zip(out.values.chunks_mut(states * actions))
        .zip(out.probs.chunks_mut(states * actions));
    for (i, ((targets, values), probs)) in rows.enumerate() {
        parts[i % replicas].push((targets, values, probs));
    }
    let one = |(replica, part)| Passing::new(model, policy, segment, replica).run(part, watch);
    let results: Vec<Result<()>> = watch.run(pool, || match pool {
        Some(_) => parts.into_par_iter().enumerate().map(one).collect(),
        None => parts.into_iter().enumerate().map(one).collect(),
    });
    results.into_iter().collect()
}

type Part<'a> = Vec<(&'a mut [f64], &'a mut [f64], &'a mut [f64])>;

/// One replica.
struct Passing<'a, P> {
    model: &'a Model,
    policy: &'a P,
    segment: Segment<'a>,
    replica: usize,
    mu: Vec<f64>,
    prob: Vec<f64>,
    reward: Vec<f64>,
    /// pi(a | y, mu(y)) of every state (S, A).
    base: Vec<f64>,
    /// sum_a pi(a | y, mu(y)) q(y, a; mu) of every state.
    mean: Vec<f64>,
}

impl<'a, P: TeamPolicy> Passing<'a, P> {
    fn new(model: &'a Model, policy: &'a P, segment: Segment<'a>, replica: usize) -> Self {
        let (degree, actions) = (model.max_degree(), model.n_actions);
        Passing {
            model,
            policy,
            segment,
            replica,
            mu: vec![0.0; degree],
            prob: vec![0.0; degree * actions],
            reward: vec![0.0; actions],
            base: vec![0.0; model.graph.n_states() * actions],
            mean: vec![0.0; model.graph.n_states()],
        }
    }

    fn run(&mut self, part: Part<'_>, watch: &Watch<'_>) -> Result<()> {
        let Segment {
            restarted,
            n_replicas,
            step: h,
            ..
        } = self.segment;
        let mut next = self.critic(part.len()).to_vec();
        for (t, (targets, values, probs)) in part.into_iter().enumerate().rev() {
            if restarted[t * n_replicas + self.replica] {
                let density = self.density(t);
                for (s, probs) in probs.chunks_mut(self.model.n_actions).enumerate() {
                    self.policy
                        .mean_action(self.cell(t, s, density[s] + h), probs);
                }
                next.copy_from_slice(self.critic(t));
            } else {
                self.step(t, &mut next, values, probs, watch)?;
            }
            targets.copy_from_slice(&next);
        }
        Ok(())
    }

    /// Row of the critic's costates.
    fn critic(&self, t: usize) -> &'a [f64] {
        let states = self.model.graph.n_states();
        &self.segment.costates[(t * self.segment.n_replicas + self.replica) * states..][..states]
    }

    fn density(&self, t: usize) -> &'a [f64] {
        let states = self.model.graph.n_states();
        &self.segment.densities[(t * self.segment.n_replicas + self.replica) * states..][..states]
    }

    fn cell(&self, time: usize, state: usize, density: f64) -> Cell {
        Cell {
            replica: self.replica,
            time,
            state,
            density,
        }
    }

    /// Replaces lambda' at mu_{t + 1} by lambda at mu_t.
    fn step(
        &mut self,
        t: usize,
        costates: &mut [f64],
        values: &mut [f64],
        probs: &mut [f64],
        watch: &Watch<'_>,
    ) -> Result<()> {
        let (model, density, h) = (self.model, self.density(t), self.segment.step);
        let actions = model.n_actions;
        let mut row = vec![0.0; actions];
        for (y, &here) in density.iter().enumerate() {
            if watch.tick() {
                return Err(Error::Interrupted);
            }
            self.values(t, y, None, costates, &mut row)?;
            let cell = self.cell(t, y, here);
            let pi = &mut self.base[y * actions..][..actions];
            self.policy.mean_action(cell, pi);
            self.mean[y] = dot(pi, &row);
        }
        let mut shifted = vec![0.0; density.len()];
        for y in 0..density.len() {
            if watch.tick() {
                return Err(Error::Interrupted);
            }
            // what one more agent in each neighbour s of y changes at y
            for i in 0..model.graph.row(y).len() {
                let s = model.graph.row(y)[i] as usize;
                if s != y && density[y] == 0.0 {
                    continue;
                }
                self.values(t, y, Some(i), costates, &mut row)?;
                let mean = if s == y {
                    let cell = self.cell(t, y, density[y] + h);
                    let pi = &mut probs[y * actions..][..actions];
                    self.policy.mean_action(cell, pi);
                    let mean = dot(pi, &row);
                    shifted[s] += mean; // the one more agent's own
                    values[y * actions..][..actions].copy_from_slice(&row);
                    mean
                } else {
                    dot(&self.base[y * actions..][..actions], &row)
                };
                shifted[s] += density[y] * (mean - self.mean[y]) / h;
            }
        }
        costates.copy_from_slice(&shifted);
        Ok(())
    }

    /// q(y, a; mu) for all allowed a, with one more agent in the i-th neighbour if asked.
    fn values(
        &mut self,
        t: usize,
        y: usize,
        shift: Option<usize>,
        costates: &[f64],
        out: &mut [f64],
    ) -> Result<()> {
        let (model, density) = (self.model, self.density(t));
        let row = model.graph.row(y);
        let (mu, prob) = (
            &mut self.mu[..row.len()],
            &mut self.prob[..row.len() * out.len()],
        );
        for (m, &j) in mu.iter_mut().zip(row) {
            *m = density[j as usize];
        }
        let played = match shift {
            Some(i) => {
                mu[i] += self.segment.step;
                model.local_within((f64::MIN, f64::MAX), y, mu, prob, &mut self.reward)
            }
            None => model.local(y, mu, prob, &mut self.reward),
        };
        if let Err(fault) = played {
            return Err(Error::Model(ModelError {
                fault,
                replica: self.replica,
                step: Some(t as u64),
                state: y,
                mu: mu.to_vec(),
            }));
        }
        let rows = prob.chunks_exact(row.len()).zip(&self.reward);
        for ((q, (prob, r)), &allowed) in out.iter_mut().zip(rows).zip(model.allowed(y)) {
            let mut next = 0.0;
            if allowed {
                for (&p, &j) in prob.iter().zip(row) {
                    next += p * costates[j as usize];
                }
            }
            *q = if allowed {
                r + model.discount * next
            } else {
                0.0
            };
        }
        Ok(())
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

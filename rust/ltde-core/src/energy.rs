//! The energy-based policy, Eq. (4.4): Pi_s(h | mu(s)) is proportional to exp(tau f((mu(s), h);
//! theta_s)) over all empirical action distributions h of the n agents of s.
//!
//! - Up to `limit` distributions: exact, by enumeration.
//! - Beyond: uniform distributions are proposed and accepted with probability exp(tau f - U),
//!   where U bounds tau f from above; the first that is accepted is an exact draw. After
//!   `attempts` rejections a Markov chain takes over, which is approximate: independent uniform
//!   proposals mixed with exchanges of k agents between two actions, k on every scale from 1 to n.
//!
//! **The bound.** f = F+ - F-, where F+ and F- sum the convex ReLUs of neurons with b > 0 and b < 0.
//! F- lies above each of its tangent planes T, so f <= F+ - T, which is convex and so takes its
//! maximum over the simplex at a vertex. The smallest of those maxima, T taken at the centre and
//! at each vertex, is U.

use crate::error::{Error, Result};
use crate::math::exp_nonpositive;
use crate::model::Model;
use crate::network::{Networks, Reading};
use crate::policy::{Cell, TeamPolicy, Work};
use crate::rng::{BlockRng, Purpose, Rng, Seed, Words};
use crate::watch::Watch;

/// How the law is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Largest number of distributions that are enumerated.
    pub limit: u64,
    /// Proposals of the exact rejection before the chain takes over.
    pub attempts: u32,
    /// Moves of the chain for one draw; a mean is taken over 16 times as many.
    pub moves: u32,
}

/// Energy-based policies of all states.
#[derive(Debug, Clone, Copy)]
pub struct EnergyPolicy<'a, F> {
    networks: Networks<'a, F>,
    reading: Reading<'a>,
    effort: Effort,
}

/// What a Markov chain did.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct ChainReport {
    /// Uniform proposals of the exact rejection until the first acceptance, or all in vain.
    pub attempts: u64,
    /// Whether one of them was accepted.
    pub exact: bool,
    /// Independent proposals of the chain, and how many were accepted.
    pub independent: [u64; 2],
    /// Exchanges proposed by the chain, and how many were accepted.
    pub exchange: [u64; 2],
}

/// The generator of the chains of one team outside a simulation.
pub fn team_stream(seed: Seed, replica: u32, state: u32) -> Rng {
    // step 1: step 0 belongs to the draws of `sample_teams`
    seed.stream(Purpose::Team, replica, 1, state)
}

/// Moves over which a mean is taken, in moves of one draw.
const MEAN: u32 = 16;

/// Moves between two looks at whether to go on.
const LOOK: u32 = 256;

/// Number of ways to divide n agents over `actions` actions, C(n + A - 1, A - 1), or `u64::MAX`
/// if it does not fit.
pub fn n_compositions(n: u64, actions: usize) -> u64 {
    let mut count = 1u128;
    for i in 1..actions as u128 {
        count = match count.checked_mul(u128::from(n) + i) {
            Some(product) => product / i,
            None => return u64::MAX,
        };
    }
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// A uniform integer in 0..n.
fn below<R: Words>(rng: &mut R, n: u64) -> u64 {
    // multiply and reject (Lemire, ACM TOMACS 29(1), 2019)
    let threshold = n.wrapping_neg() % n;
    loop {
        let product = u128::from(rng.next_word()) * u128::from(n);
        if product as u64 >= threshold {
            return (product >> 64) as u64;
        }
    }
}

/// A uniform composition of n into `out.len()` counts: A - 1 bars among n + A - 1 places.
fn uniform_composition<R: Words>(rng: &mut R, n: u64, out: &mut [u64]) {
    let last = out.len() - 1;
    let places = n + last as u64;
    // a uniform subset of size A - 1 (Floyd, CACM 30(9), 1987), kept sorted in `out`
    for i in 0..last {
        let top = places - (last - i) as u64;
        let drawn = below(rng, top + 1);
        let bar = if out[..i].contains(&drawn) {
            top
        } else {
            drawn
        };
        let at = out[..i].partition_point(|&b| b < bar);
        out.copy_within(at..i, at + 1);
        out[at] = bar;
    }
    out[last] = places;
    for i in (1..=last).rev() {
        out[i] -= out[i - 1] + 1;
    }
}

/// One state's law at one density: its network restricted to the allowed actions.
#[derive(Debug)]
struct Law {
    /// Allowed actions, ascending.
    actions: Vec<usize>,
    signs: Vec<f64>,
    /// What the density adds to each neuron (M,).
    base: Vec<f64>,
    /// What each allowed action adds per unit of h, (A', M).
    columns: Vec<f64>,
    /// tau M^{-1/2}.
    scale: f64,
    n: u64,
}

impl Law {
    fn width(&self) -> usize {
        self.signs.len()
    }

    fn column(&self, j: usize) -> &[f64] {
        &self.columns[j * self.width()..][..self.width()]
    }

    /// tau f from the inputs of the neurons.
    #[inline]
    fn energy(&self, z: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (&z, &sign) in z.iter().zip(&self.signs) {
            sum += if z > 0.0 { sign * z } else { 0.0 };
        }
        self.scale * sum
    }

    /// The inputs of the neurons at counts c (A',).
    fn inputs(&self, counts: &[u64], z: &mut [f64]) {
        z.copy_from_slice(&self.base);
        for (j, &c) in counts.iter().enumerate() {
            add(z, c as f64 / self.n as f64, self.column(j));
        }
    }

    /// Visits all compositions of n in a fixed order with the inputs of the neurons there.
    fn visit(&self, mut each: impl FnMut(&[u64], &[f64])) {
        let (depth, width) = (self.actions.len(), self.width());
        // z[j] holds the inputs with the first j counts in place
        let mut z = vec![0.0; (depth + 1) * width];
        z[..width].copy_from_slice(&self.base);
        let mut counts = vec![0; depth];
        let mut left = self.n;
        let mut level = 0;
        loop {
            // descend: nobody takes the actions in between, all who are left take the last
            while level < depth {
                counts[level] = if level + 1 == depth { left } else { 0 };
                let (done, next) = z.split_at_mut((level + 1) * width);
                next[..width].copy_from_slice(&done[level * width..]);
                let share = counts[level] as f64 / self.n as f64;
                add(&mut next[..width], share, self.column(level));
                left -= counts[level];
                level += 1;
            }
            each(&counts, &z[depth * width..]);
            // ascend to the last action but one that can take one agent more
            left += counts[depth - 1];
            level = depth - 1;
            while level > 0 && left == 0 {
                level -= 1;
                left += counts[level];
            }
            if level == 0 {
                return;
            }
            level -= 1;
            counts[level] += 1;
            left -= 1;
            let (done, next) = z.split_at_mut((level + 1) * width);
            next[..width].copy_from_slice(&done[level * width..]);
            let share = counts[level] as f64 / self.n as f64;
            add(&mut next[..width], share, self.column(level));
            level += 1;
        }
    }

    /// An upper bound of tau f over the simplex.
    fn bound(&self) -> f64 {
        let (actions, width) = (self.actions.len(), self.width());
        let at = |j: usize, m: usize| self.base[m] + self.columns[j * width + m];
        let positive: Vec<f64> = (0..actions)
            .map(|j| {
                let rising = (0..width).filter(|&m| self.signs[m] > 0.0);
                rising.map(|m| self.signs[m] * at(j, m).max(0.0)).sum()
            })
            .collect();
        let above = |active: &dyn Fn(usize) -> bool| {
            let highest = (0..actions).map(|j| {
                let falling = (0..width).filter(|&m| self.signs[m] < 0.0 && active(m));
                let tangent: f64 = falling.map(|m| self.signs[m] * at(j, m)).sum();
                positive[j] + tangent
            });
            highest.fold(f64::NEG_INFINITY, f64::max)
        };
        let centre = |m: usize| (0..actions).map(|j| at(j, m)).sum::<f64>() > 0.0;
        let mut least = above(&centre);
        for j in 0..actions {
            least = least.min(above(&|m| at(j, m) > 0.0));
        }
        // rounding must not turn the bound into no bound
        self.scale * least + 1e-9 * (1.0 + (self.scale * least).abs())
    }
}

#[inline]
fn add(z: &mut [f64], share: f64, column: &[f64]) {
    for (z, &w) in z.iter_mut().zip(column) {
        *z += share * w;
    }
}

/// A Markov chain on the compositions of n.
struct Chain<'a> {
    law: &'a Law,
    counts: Vec<u64>,
    z: Vec<f64>,
    energy: f64,
    proposal: Vec<u64>,
    proposal_z: Vec<f64>,
    report: ChainReport,
}

impl<'a> Chain<'a> {
    /// Starts with an exact draw if rejection finds one, else from its last proposal.
    fn start<R: Words>(law: &'a Law, attempts: u32, rng: &mut R) -> Self {
        let (actions, width) = (law.actions.len(), law.width());
        let mut chain = Chain {
            law,
            counts: vec![0; actions],
            z: vec![0.0; width],
            energy: 0.0,
            proposal: vec![0; actions],
            proposal_z: vec![0.0; width],
            report: ChainReport::default(),
        };
        let bound = law.bound();
        while chain.report.attempts < u64::from(attempts.max(1)) && !chain.report.exact {
            uniform_composition(rng, law.n, &mut chain.counts);
            law.inputs(&chain.counts, &mut chain.z);
            chain.energy = law.energy(&chain.z);
            chain.report.attempts += 1;
            chain.report.exact = rng.open_uniform() < exp_nonpositive(chain.energy - bound);
        }
        chain
    }

    /// One move of Metropolis and Hastings; both kinds propose symmetrically.
    fn step<R: Words>(&mut self, rng: &mut R) {
        let (law, n) = (self.law, self.law.n);
        let actions = law.actions.len() as u64;
        let kind = if below(rng, 2) == 0 {
            uniform_composition(rng, n, &mut self.proposal);
            law.inputs(&self.proposal, &mut self.proposal_z);
            &mut self.report.independent
        } else {
            let from = below(rng, actions) as usize;
            let to = (from + 1 + below(rng, actions - 1) as usize) % actions as usize;
            let scale = below(rng, u64::from(64 - n.leading_zeros()));
            let k = 1 + below(rng, 1 << scale);
            self.report.exchange[0] += 1;
            if self.counts[from] < k {
                return;
            }
            self.proposal.copy_from_slice(&self.counts);
            self.proposal[from] -= k;
            self.proposal[to] += k;
            let share = k as f64 / n as f64;
            let (lose, gain) = (law.column(from), law.column(to));
            let z = self.z.iter().zip(lose.iter().zip(gain));
            for (new, (&z, (&lose, &gain))) in self.proposal_z.iter_mut().zip(z) {
                *new = z + share * (gain - lose);
            }
            self.report.exchange[0] -= 1;
            &mut self.report.exchange
        };
        kind[0] += 1;
        let energy = law.energy(&self.proposal_z);
        let gain = energy - self.energy;
        if gain >= 0.0 || rng.open_uniform() < exp_nonpositive(gain) {
            kind[1] += 1;
            self.energy = energy;
            std::mem::swap(&mut self.counts, &mut self.proposal);
            std::mem::swap(&mut self.z, &mut self.proposal_z);
        }
    }
}

impl<'a, F: Copy + Into<f64>> EnergyPolicy<'a, F> {
    /// The policy of these networks, each of input (mu(s), h(s)), so d = 1 + A.
    pub fn new(networks: Networks<'a, F>, reading: Reading<'a>, effort: Effort) -> Self {
        EnergyPolicy {
            networks,
            reading,
            effort,
        }
    }

    fn law(&self, s: usize, density: f64, n: u64) -> Law {
        let (width, all) = (self.networks.width(), self.networks.inputs() - 1);
        let mask = &self.reading.mask[s * all..][..all];
        let actions: Vec<usize> = (0..all).filter(|&a| mask[a]).collect();
        let unit = self.reading.input_scale;
        let x = unit * self.reading.density_scale * density;
        let mut law = Law {
            signs: Vec::with_capacity(width),
            base: Vec::with_capacity(width),
            columns: vec![0.0; actions.len() * width],
            scale: self.reading.tau / (width as f64).sqrt(),
            n,
            actions,
        };
        for (m, (&sign, row)) in self.networks.neurons(s).enumerate() {
            law.signs.push(sign.into());
            law.base.push(x * row[0].into());
            for (j, &a) in law.actions.iter().enumerate() {
                law.columns[j * width + m] = unit * row[1 + a].into();
            }
        }
        law
    }

    /// Whether the law of `n` agents is enumerated.
    pub fn is_exact(&self, s: usize, n: u64) -> bool {
        let all = self.networks.inputs() - 1;
        let mask = &self.reading.mask[s * all..][..all];
        let actions = mask.iter().filter(|&&allowed| allowed).count();
        actions == 1 || n_compositions(n, actions) <= self.effort.limit
    }

    /// Draws c(s, .) of n > 0 agents into `out` (A,), and says how.
    pub fn draw<R: Words>(
        &self,
        s: usize,
        density: f64,
        n: u64,
        rng: &mut R,
        out: &mut [i64],
    ) -> ChainReport {
        let law = self.law(s, density, n);
        let (counts, report) = if law.actions.len() == 1 {
            (vec![n], ChainReport::default())
        } else if self.is_exact(s, n) {
            (draw_by_enumeration(&law, rng), ChainReport::default())
        } else {
            let mut chain = Chain::start(&law, self.effort.attempts, rng);
            if !chain.report.exact {
                for _ in 0..self.effort.moves {
                    chain.step(rng);
                }
            }
            (chain.counts, chain.report)
        };
        for (&a, &c) in law.actions.iter().zip(&counts) {
            out[a] += c as i64;
        }
        report
    }

    /// E[h(s)] (A,) and, if asked, E[phi_theta(mu(s), h(s))] (M, d) for n > 0 agents, phi as in
    /// Eq. (4.6): exact by enumeration, else the mean over a chain.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    #[allow(clippy::too_many_arguments)]
    pub fn means<R: Words>(
        &self,
        s: usize,
        density: f64,
        n: u64,
        rng: &mut R,
        watch: &Watch<'_>,
        action: &mut [f64],
        feature: Option<&mut [f64]>,
    ) -> Result<ChainReport> {
        let law = self.law(s, density, n);
        let (actions, inputs) = (law.actions.len(), self.networks.inputs());
        let mut report = ChainReport::default();
        // masses of 1{z_m > 0} and of 1{z_m > 0} h(a), (M, 1 + A'), and of h, (A',)
        let mut active = vec![0.0; law.width() * (1 + actions)];
        let mut mean = vec![0.0; actions];
        let mut tally = |weight: f64, counts: &[u64], z: &[f64]| {
            for (sum, &c) in mean.iter_mut().zip(counts) {
                *sum += weight * c as f64 / n as f64;
            }
            for (row, &z) in active.chunks_exact_mut(1 + actions).zip(z) {
                if z > 0.0 {
                    row[0] += weight;
                    for (sum, &c) in row[1..].iter_mut().zip(counts) {
                        *sum += weight * c as f64 / n as f64;
                    }
                }
            }
        };
        if self.is_exact(s, n) {
            let mut weights = weights(&law).into_iter();
            law.visit(|counts, z| tally(weights.next().unwrap_or(0.0), counts, z));
        } else {
            let mut chain = Chain::start(&law, self.effort.attempts, rng);
            if !chain.report.exact {
                for _ in 0..self.effort.moves {
                    chain.step(rng);
                }
            }
            let moves = MEAN * self.effort.moves.max(1);
            for i in 0..moves {
                if i % LOOK == 0 && watch.tick_here() {
                    return Err(Error::Interrupted);
                }
                chain.step(rng);
                tally(1.0 / f64::from(moves), &chain.counts, &chain.z);
            }
            report = chain.report;
        }
        for (&a, &mean) in law.actions.iter().zip(&mean) {
            action[a] = mean;
        }
        let Some(feature) = feature else {
            return Ok(report);
        };
        let unit = self.reading.input_scale;
        let x = unit * self.reading.density_scale * density;
        let scale = 1.0 / (law.width() as f64).sqrt();
        let rows = feature
            .chunks_exact_mut(inputs)
            .zip(active.chunks_exact(1 + actions));
        for ((row, active), &sign) in rows.zip(&law.signs) {
            row[0] = scale * sign * x * active[0];
            for (&a, &mass) in law.actions.iter().zip(&active[1..]) {
                row[1 + a] = scale * sign * unit * mass;
            }
        }
        Ok(report)
    }

    /// [`EnergyPolicy::means`] of all teams: `counts` (B, S) with `totals` (B,) agents N, into
    /// `action` (B, S, A) and `feature` (B, S, M, d), zero on arrival; empty teams stay 0.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn means_of_teams(
        &self,
        counts: &[i64],
        totals: &[f64],
        seed: Seed,
        watch: &Watch<'_>,
        action: &mut [f64],
        feature: Option<&mut [f64]>,
    ) -> Result<()> {
        let (states, inputs) = (self.networks.states(), self.networks.inputs());
        let mut features = feature.map(|f| f.chunks_mut(self.networks.width() * inputs));
        for (i, (action, &n)) in action.chunks_mut(inputs - 1).zip(counts).enumerate() {
            if watch.tick_here() {
                return Err(Error::Interrupted);
            }
            let feature = features.as_mut().and_then(Iterator::next);
            if n > 0 {
                let (b, s) = (i / states, i % states);
                let density = n as f64 / totals[b];
                let mut rng = team_stream(seed, b as u32, s as u32);
                self.means(s, density, n as u64, &mut rng, watch, action, feature)?;
            }
        }
        Ok(())
    }

    /// Runs a chain of `moves` moves whatever the size of the law, and hands `each` the counts of
    /// the allowed actions and tau f after every move.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    #[allow(clippy::too_many_arguments)]
    pub fn trace<R: Words>(
        &self,
        s: usize,
        density: f64,
        n: u64,
        moves: u64,
        rng: &mut R,
        watch: &Watch<'_>,
        mut each: impl FnMut(u64, usize, u64, f64),
    ) -> Result<ChainReport> {
        let law = self.law(s, density, n);
        let mut chain = Chain::start(&law, self.effort.attempts, rng);
        for i in 0..moves {
            if i % u64::from(LOOK) == 0 && watch.tick_here() {
                return Err(Error::Interrupted);
            }
            if law.actions.len() > 1 {
                chain.step(rng);
            }
            for (&a, &c) in law.actions.iter().zip(&chain.counts) {
                each(i, a, c, chain.energy);
            }
        }
        Ok(chain.report)
    }
}

/// The probabilities of all compositions in the order of [`Law::visit`].
fn weights(law: &Law) -> Vec<f64> {
    let mut energies = Vec::new();
    law.visit(|_, z| energies.push(law.energy(z)));
    let largest = energies.iter().fold(f64::NEG_INFINITY, |m, &e| m.max(e));
    let mut total = 0.0;
    for e in &mut energies {
        *e = exp_nonpositive(*e - largest);
        total += *e;
    }
    energies.iter_mut().for_each(|e| *e /= total);
    energies
}

fn draw_by_enumeration<R: Words>(law: &Law, rng: &mut R) -> Vec<u64> {
    let weights = weights(law);
    let total: f64 = weights.iter().sum();
    let mut left = rng.open_uniform() * total;
    let mut drawn = 0;
    for (i, &w) in weights.iter().enumerate() {
        if w > 0.0 {
            drawn = i;
            if left < w {
                break;
            }
        }
        left -= w;
    }
    let (mut index, mut found) = (0, Vec::new());
    law.visit(|counts, _| {
        if index == drawn {
            found = counts.to_vec();
        }
        index += 1;
    });
    found
}

impl<F: Copy + Into<f64> + Sync> TeamPolicy for EnergyPolicy<'_, F> {
    fn check(&self, model: &Model, _n_replicas: usize, _n_steps: usize) -> Result<()> {
        self.reading
            .check(self.networks.states(), self.networks.inputs() - 1, model)
    }

    fn is_multinomial(&self) -> bool {
        false
    }

    /// E[h(s)] depends on n, which the mean-field limit has not: see [`EnergyPolicy::means`].
    fn mean_action(&self, _cell: Cell, _pi: &mut [f64]) {
        unreachable!("an energy-based policy plays finite teams only")
    }

    fn sample(&self, teams: &[(Cell, i64)], rng: &mut BlockRng, _: &mut Work, out: &mut [i64]) {
        let actions = out.len() / teams.len();
        for (&(cell, n), out) in teams.iter().zip(out.chunks_exact_mut(actions)) {
            self.draw(cell.state, cell.density, n as u64, rng.single(), out);
        }
    }
}

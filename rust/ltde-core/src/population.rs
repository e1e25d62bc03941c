//! The population of one replica: how many agents are in each state, and which states are
//! occupied.

use rayon::prelude::*;

use crate::error::{Result, value_error};
use crate::initial::{DrawAddress, Initial};
use crate::multinomial::Scratch;
use crate::policy::{TeamPolicy, Work};
use crate::rng::{BLOCK, BlockRng};
use crate::simd::{Kernel, Simd, dispatch};
use crate::teams::{self, ROOM, Teams, clear};

/// A number of agents: an integer for finite N, a fraction of the population for N = infinity.
///
/// The two implementations are the only difference between the exact simulation and the
/// mean-field flow.
pub trait Mass:
    Copy + Default + PartialEq + PartialOrd + Send + Sync + std::ops::AddAssign + 'static
{
    /// The number of agents N: u64, or nothing in the mean-field limit.
    type Total: Copy + Send + Sync + std::fmt::Debug;
    /// Whether this is the flow of the mean-field limit.
    const MEAN_FIELD: bool;

    /// mu = n / N.
    fn density(self, total: Self::Total) -> f64;
    /// The number of agents; of a mass, more than any.
    fn count(self) -> i64;
    /// Plays the teams of the states of one block: writes the team actions to `teams.actions`, and
    /// how many go to each neighbour to `teams.landed`.
    fn play<P: TeamPolicy>(policy: &P, teams: Teams<'_, Self>, rng: &mut BlockRng, work: &mut Work);
    /// The team reward: sum over a of c(s, a) r(s, mu(N_s), a) / N.
    fn team_reward(actions: &[Self], reward: &[f64], allowed: &[bool], total: Self::Total) -> f64;
    /// Draws from P_0 into `out` (S,).
    fn initial(
        law: &Initial,
        total: Self::Total,
        address: DrawAddress,
        scratch: &mut Scratch,
        out: &mut [Self],
    );
    /// Checks that `counts` (S,) holds the whole population.
    ///
    /// # Errors
    /// [`crate::Error::Value`] naming the entry and its value.
    fn check(counts: &[Self], replica: usize, total: Self::Total) -> Result<()>;
}

impl Mass for i64 {
    type Total = u64;
    const MEAN_FIELD: bool = false;

    #[inline]
    fn density(self, total: u64) -> f64 {
        self as f64 / total as f64
    }

    #[inline]
    fn count(self) -> i64 {
        self
    }

    #[inline(always)]
    fn play<P: TeamPolicy>(policy: &P, teams: Teams<'_, i64>, rng: &mut BlockRng, work: &mut Work) {
        teams::draw(policy, teams, rng, work);
    }

    #[inline]
    fn team_reward(actions: &[i64], reward: &[f64], allowed: &[bool], total: u64) -> f64 {
        f64::weighted(actions.iter().map(|&c| c as f64), reward, allowed) / total as f64
    }

    fn initial(
        law: &Initial,
        total: u64,
        address: DrawAddress,
        scratch: &mut Scratch,
        out: &mut [i64],
    ) {
        law.draw_counts(total, address, scratch, out);
    }

    fn check(counts: &[i64], replica: usize, total: u64) -> Result<()> {
        if let Some(s) = counts.iter().position(|&c| c < 0) {
            return value_error!(
                "counts[{replica}, {s}]: expected a count >= 0, got {}",
                counts[s]
            );
        }
        let sum: i128 = counts.iter().map(|&c| i128::from(c)).sum();
        if sum != i128::from(total) {
            return value_error!(
                "counts[{replica}]: expected a sum of n_agents = {total}, got {sum}"
            );
        }
        Ok(())
    }
}

impl Mass for f64 {
    type Total = ();
    const MEAN_FIELD: bool = true;

    #[inline]
    fn density(self, (): ()) -> f64 {
        self
    }

    #[inline]
    fn count(self) -> i64 {
        i64::MAX
    }

    #[inline]
    fn play<P: TeamPolicy>(policy: &P, teams: Teams<'_, f64>, _: &mut BlockRng, work: &mut Work) {
        let Teams {
            cells,
            degrees,
            mut prob,
            actions,
            mut landed,
        } = teams;
        let width = (actions.len() - ROOM) / cells.len();
        clear(actions);
        clear(landed);
        work.mean_actions(policy, cells, width);
        let teams = actions
            .chunks_exact_mut(width)
            .zip(work.pi.chunks_exact(width));
        for ((team, pi), (&(_, mass), &degree)) in teams.zip(cells.iter().zip(degrees)) {
            mass.spread(pi, team);
            let out;
            (out, landed) = landed.split_at_mut(degree as usize);
            let rows;
            (rows, prob) = prob.split_at(width * degree as usize);
            for (&mass, row) in team.iter().zip(rows.chunks_exact(degree as usize)) {
                if mass > 0.0 {
                    mass.spread(row, out);
                }
            }
        }
    }

    #[inline]
    fn team_reward(actions: &[f64], reward: &[f64], allowed: &[bool], (): ()) -> f64 {
        f64::weighted(actions.iter().copied(), reward, allowed)
    }

    fn initial(law: &Initial, (): (), address: DrawAddress, _: &mut Scratch, out: &mut [f64]) {
        law.draw_density(address, out);
    }

    fn check(counts: &[f64], replica: usize, (): ()) -> Result<()> {
        if let Some(s) = counts.iter().position(|&m| !(m >= 0.0 && m.is_finite())) {
            return value_error!(
                "counts[{replica}, {s}]: expected a density >= 0, got {}",
                counts[s]
            );
        }
        let sum: f64 = counts.iter().sum();
        if (sum - 1.0).abs() > 1e-6 {
            return value_error!("counts[{replica}]: densities must sum to 1, got {sum}");
        }
        Ok(())
    }
}

/// Helpers of the two implementations.
trait Weighted {
    fn weighted(masses: impl Iterator<Item = f64>, reward: &[f64], allowed: &[bool]) -> f64;
    fn spread(self, weights: &[f64], out: &mut [f64]);
}

impl Weighted for f64 {
    /// Sum of masses times rewards over the allowed actions, in their order.
    #[inline]
    fn weighted(masses: impl Iterator<Item = f64>, reward: &[f64], allowed: &[bool]) -> f64 {
        let mut sum = 0.0;
        for ((mass, r), &ok) in masses.zip(reward).zip(allowed) {
            if ok {
                sum += mass * r;
            }
        }
        sum
    }

    /// Divides a mass in proportion to weights.
    #[inline]
    fn spread(self, weights: &[f64], out: &mut [f64]) {
        let unit = self / weights.iter().sum::<f64>();
        for (o, &w) in out.iter_mut().zip(weights) {
            *o += unit * w;
        }
    }
}

/// Counts of one replica with a bitmap of the occupied states, one word per block.
#[derive(Debug, Clone, Default)]
pub struct Population<T> {
    counts: Vec<T>,
    /// mu = n / N, after [`Population::finish`] or [`Population::fill`], as what follows.
    densities: Vec<f64>,
    /// The occupied states in bits; until then, all ones for blocks in `blocks`.
    words: Vec<u64>,
    /// Blocks with an occupied state, ascending.
    blocks: Vec<u32>,
}

impl<T: Mass> Population<T> {
    /// No agents in `states` states.
    pub fn empty(states: usize) -> Self {
        let blocks = states.div_ceil(BLOCK);
        Population {
            counts: vec![T::default(); states],
            densities: vec![0.0; states],
            words: vec![0; blocks],
            blocks: Vec::new(),
        }
    }

    /// Counts (S,).
    #[inline]
    pub fn counts(&self) -> &[T] {
        &self.counts
    }

    /// Densities mu (S,).
    #[inline]
    pub fn densities(&self) -> &[f64] {
        &self.densities
    }

    /// Blocks with an occupied state, ascending.
    #[inline]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The occupied states of a block, ascending.
    #[inline]
    pub fn occupied(&self, block: u32) -> Occupied {
        Occupied {
            base: block as usize * BLOCK,
            word: self.words[block as usize],
        }
    }

    /// Removes everybody; costs O(occupied states).
    pub fn clear(&mut self) {
        /// From this many occupied states on, a whole block is wiped: it is faster.
        const MANY: u32 = 16;
        while let Some(block) = self.blocks.pop() {
            let occupied = self.occupied(block);
            let start = block as usize * BLOCK;
            if occupied.word.count_ones() < MANY {
                for s in occupied {
                    self.counts[s] = T::default();
                    self.densities[s] = 0.0;
                }
            } else {
                let end = (start + BLOCK).min(self.counts.len());
                self.counts[start..end].fill(T::default());
                self.densities[start..end].fill(0.0);
            }
            self.words[block as usize] = 0;
        }
    }

    /// Adds `masses` to the states of `row`. Call [`Population::finish`] after the last.
    #[inline(always)]
    pub fn add(&mut self, row: &[u32], masses: &[T]) {
        let Population {
            counts,
            words,
            blocks,
            ..
        } = self;
        let (counts, words) = (&mut counts[..], &mut words[..]);
        for (&y, &mass) in row.iter().zip(masses) {
            let (s, block) = (y as usize, y as usize / BLOCK);
            // no branch on the mass where blocks are occupied anyway: it is hard to predict
            counts[s] += mass;
            if words[block] == 0 {
                enter(mass != T::default(), block, words, blocks);
            }
        }
    }

    /// Finds the occupied states, restores the order of the blocks, and computes the densities.
    #[inline]
    pub fn finish(&mut self, total: T::Total) {
        self.blocks.sort_unstable();
        dispatch(FindOccupied(self));
        for &block in &self.blocks {
            for s in self.occupied(block) {
                self.densities[s] = self.counts[s].density(total);
            }
        }
    }

    /// Number of occupied states.
    pub fn n_occupied(&self) -> usize {
        let blocks = self.blocks.iter();
        blocks.map(|&block| self.occupied(block).count()).sum()
    }

    /// Overwrites everything with these counts, in parallel over blocks; costs S calls of `count`.
    pub fn fill(&mut self, total: T::Total, count: impl Fn(usize) -> T + Sync) {
        /// Blocks that are worth a task.
        const BLOCKS: usize = 8;
        let counts = self.counts.par_chunks_mut(BLOCK);
        let densities = self.densities.par_chunks_mut(BLOCK);
        let states = counts.zip(densities).zip(&mut self.words).enumerate();
        (states.with_min_len(BLOCKS)).for_each(|(block, ((counts, densities), word))| {
            let states = counts.iter_mut().zip(densities).enumerate();
            for (i, (n, density)) in states {
                *n = count(block * BLOCK + i);
                *density = n.density(total);
            }
            *word = occupied_bits(counts);
        });
        self.blocks.clear();
        let words = self.words.iter().enumerate();
        let occupied = words.filter(|(_, word)| **word != 0);
        self.blocks.extend(occupied.map(|(block, _)| block as u32));
    }

    /// Overwrites the counts through `fill` and finds the occupied states; costs O(S).
    pub fn replace(&mut self, total: T::Total, fill: impl FnOnce(&mut [T])) {
        self.clear();
        fill(&mut self.counts);
        let blocks = self.counts.chunks(BLOCK).enumerate();
        let occupied = blocks.filter(|(_, counts)| counts.iter().any(|&c| c != T::default()));
        self.blocks.extend(occupied.map(|(block, _)| block as u32));
        self.finish(total);
    }
}

/// Notes a block that somebody enters.
#[cold]
#[inline(never)]
fn enter(some: bool, block: usize, words: &mut [u64], blocks: &mut Vec<u32>) {
    if some {
        words[block] = u64::MAX;
        blocks.push(block as u32);
    }
}

/// Finds the occupied states of the blocks that somebody entered.
struct FindOccupied<'a, T>(&'a mut Population<T>);

impl<T: Mass> Kernel for FindOccupied<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Population {
            counts,
            words,
            blocks,
            ..
        } = self.0;
        let (full, last) = counts.as_chunks::<BLOCK>();
        for &block in &*blocks {
            words[block as usize] = match full.get(block as usize) {
                Some(counts) => occupied_bits(counts),
                None => occupied_bits(last),
            };
        }
    }
}

/// One bit for each state, whether somebody is there.
#[inline(always)]
fn occupied_bits<T: Mass>(counts: &[T]) -> u64 {
    let mut bits = 0;
    for (i, &c) in counts.iter().enumerate() {
        bits |= u64::from(c != T::default()) << i;
    }
    bits
}

/// Iterator over the occupied states of a block.
#[derive(Debug, Clone)]
pub struct Occupied {
    base: usize,
    word: u64,
}

impl Iterator for Occupied {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.word == 0 {
            return None;
        }
        let s = self.base + self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(s)
    }

    #[inline]
    fn count(self) -> usize {
        self.word.count_ones() as usize
    }
}

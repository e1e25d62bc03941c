//! The law P_0 of the initial counts.

use rand_distr::Distribution;

use crate::binomial::MAX_COUNT;
use crate::error::{Error, Result, value_error};
use crate::math::{exp, ln};
use crate::multinomial::{Scratch, multinomial_add, normalize};
use crate::rng::{BLOCK, Purpose, Rng, Seed, Words};

/// Block number of the streams that serve all blocks of a draw from P_0.
const WHOLE: u32 = u32::MAX;

/// The law of the initial counts (finite N) or densities (N = infinity).
#[derive(Debug, Clone, PartialEq)]
pub enum Initial {
    /// One of K rows of counts (K, S), with equal probability; K = 1: these counts.
    Counts(Vec<i64>),
    /// Agents independent with this law (S,), normalised.
    Independent(Vec<f64>),
    /// Agents independent with a law drawn from Dirichlet(alpha), alpha (S,).
    Dirichlet(Vec<f64>),
}

/// Where a draw from P_0 takes its randomness.
#[derive(Debug, Clone, Copy)]
pub struct DrawAddress {
    /// Seed.
    pub seed: Seed,
    /// [`Purpose::Initial`] or [`Purpose::Restart`].
    pub purpose: Purpose,
    /// Replica.
    pub replica: u32,
    /// Step counter, or number of resets.
    pub step: u64,
}

impl DrawAddress {
    fn stream(self, block: u32) -> Rng {
        self.seed
            .stream(self.purpose, self.replica, self.step, block)
    }
}

impl Initial {
    /// Checks sizes and values, naming the entry.
    pub(crate) fn check(&self, states: usize) -> Result<()> {
        let (len, rows) = match self {
            Initial::Counts(counts) => {
                if let Some(i) = counts.iter().position(|&c| c < 0) {
                    return value_error!(
                        "initial[{}]: expected a count >= 0, got {}",
                        place(i, counts.len(), states),
                        counts[i]
                    );
                }
                (counts.len(), counts.len() / states)
            }
            Initial::Independent(law) => {
                if let Some(s) = law.iter().position(|&p| !(p >= 0.0 && p.is_finite())) {
                    return value_error!("initial[{s}]: expected a probability, got {}", law[s]);
                }
                let sum: f64 = law.iter().sum();
                if (sum - 1.0).abs() > 1e-6 {
                    return value_error!("initial: probabilities must sum to 1, got {sum}");
                }
                (law.len(), 1)
            }
            Initial::Dirichlet(alpha) => {
                // smaller ones would overflow the logarithms of the gamma variates
                if let Some(s) = alpha.iter().position(|&a| !(a >= 1e-300 && a.is_finite())) {
                    return value_error!(
                        "initial.alpha[{s}]: expected a positive number (at least 1e-300), got {}",
                        alpha[s]
                    );
                }
                (alpha.len(), 1)
            }
        };
        if rows == 0 || len != rows * states {
            return value_error!("initial: expected rows of {states} states, got {len} values");
        }
        Ok(())
    }

    /// Checks that this law can start `n_agents` agents (None: the mean-field limit).
    ///
    /// # Errors
    /// [`Error::Value`] if fixed counts do not sum to `n_agents`, [`Error::Overflow`] above 2^53.
    pub fn check_agents(&self, states: usize, n_agents: Option<u64>) -> Result<()> {
        if let Some(n) = n_agents {
            if n == 0 {
                return value_error!("n_agents: expected at least 1, got 0");
            }
            if n > MAX_COUNT {
                return Err(Error::Overflow(format!("n_agents: at most 2^53, got {n}")));
            }
        }
        if let Initial::Counts(counts) = self {
            for (row, values) in counts.chunks_exact(states).enumerate() {
                let total: i128 = values.iter().map(|&c| i128::from(c)).sum();
                let name = place_row(row, counts.len() / states);
                match n_agents {
                    Some(n) if total != i128::from(n) => {
                        return value_error!(
                            "n_agents: {name} sums to {total} agents, got n_agents = {n}"
                        );
                    }
                    None if total == 0 => {
                        return value_error!("{name}: expected at least one agent, got none");
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Draws the counts of `n` agents; `out` (S,) is overwritten.
    pub fn draw_counts(
        &self,
        n: u64,
        address: DrawAddress,
        scratch: &mut Scratch,
        out: &mut [i64],
    ) {
        match self {
            Initial::Counts(counts) => out.copy_from_slice(pick(counts, out.len(), address)),
            Initial::Independent(law) => independent(n, law, address, scratch, out),
            Initial::Dirichlet(alpha) => {
                let mut law = vec![0.0; alpha.len()];
                dirichlet(alpha, address, &mut law);
                independent(n, &law, address, scratch, out);
            }
        }
    }

    /// Draws the initial density of the mean-field limit; `out` (S,) is overwritten.
    pub fn draw_density(&self, address: DrawAddress, out: &mut [f64]) {
        match self {
            Initial::Counts(counts) => {
                let row = pick(counts, out.len(), address);
                let total: i128 = row.iter().map(|&c| i128::from(c)).sum();
                for (o, &c) in out.iter_mut().zip(row) {
                    *o = c as f64 / total as f64;
                }
            }
            Initial::Independent(law) => {
                let sum: f64 = law.iter().sum();
                for (o, &p) in out.iter_mut().zip(law) {
                    *o = p / sum;
                }
            }
            Initial::Dirichlet(alpha) => dirichlet(alpha, address, out),
        }
    }
}

fn place(index: usize, len: usize, states: usize) -> String {
    if len == states {
        index.to_string()
    } else {
        format!("{}, {}", index / states, index % states)
    }
}

fn place_row(row: usize, rows: usize) -> String {
    if rows == 1 {
        "initial".into()
    } else {
        format!("initial[{row}]")
    }
}

/// One of the K rows, uniformly (no draw for K = 1).
fn pick(counts: &[i64], states: usize, address: DrawAddress) -> &[i64] {
    let rows = (counts.len() / states) as u128;
    let row = if rows == 1 {
        0
    } else {
        // the high half of word * rows: bias below rows 2^-64
        (u128::from(address.stream(WHOLE).next_word()) * rows) >> 64
    };
    &counts[row as usize * states..][..states]
}

/// Multinomial(n, law) in two levels: totals of the blocks from one stream, then every block
/// from its own.
fn independent(n: u64, law: &[f64], address: DrawAddress, scratch: &mut Scratch, out: &mut [i64]) {
    out.fill(0);
    let masses: Vec<f64> = law.chunks(BLOCK).map(|block| block.iter().sum()).collect();
    let mut totals = vec![0i64; masses.len()];
    multinomial_add(
        &mut address.stream(WHOLE - 1),
        n,
        &masses,
        scratch,
        &mut totals,
    );
    let mut weights = Vec::with_capacity(BLOCK);
    for (block, (law, out)) in law.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).enumerate() {
        if totals[block] > 0 {
            weights.clear();
            weights.extend_from_slice(law);
            normalize(&mut weights).expect("a block that received agents has positive mass");
            let mut rng = address.stream(block as u32);
            multinomial_add(&mut rng, totals[block] as u64, &weights, scratch, out);
        }
    }
}

/// A draw from Dirichlet(alpha), by gamma variates on the log scale (no underflow for small
/// alpha): if G ~ Gamma(a + 1) and U is uniform, then G U^(1/a) ~ Gamma(a).
fn dirichlet(alpha: &[f64], address: DrawAddress, out: &mut [f64]) {
    for (block, (alpha, out)) in alpha.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).enumerate() {
        let mut rng = DistributionRng(address.stream(1 << 31 | block as u32));
        for (o, &a) in out.iter_mut().zip(alpha) {
            let gamma = rand_distr::Gamma::new(a + 1.0, 1.0).expect("alpha is positive and finite");
            let g: f64 = gamma.sample(&mut rng);
            *o = ln(g.max(f64::MIN_POSITIVE)) + ln(rng.0.open_uniform()) / a;
        }
    }
    let largest = out.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
    let mut sum = 0.0;
    for o in out.iter_mut() {
        let x = *o - largest;
        *o = if x < -700.0 { 0.0 } else { exp(x) };
        sum += *o;
    }
    out.iter_mut().for_each(|o| *o /= sum);
}

/// Our generator behind the trait that rand_distr asks for.
struct DistributionRng(Rng);

impl rand_core::TryRng for DistributionRng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Self::Error> {
        Ok((self.0.next_word() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Self::Error> {
        Ok(self.0.next_word())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.next_word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

//! Exact multinomial draws.
//!
//! Law: n agents choose among K categories independently with probabilities proportional to
//! `weights`. Few agents are drawn one by one against cumulative weights in fixed point; many by
//! a chain of binomials whose conditional probabilities come from suffix sums taken backwards,
//! so that a category of weight zero is never hit and rows that sum to 1 +- eps are
//! renormalised (no `1 - running sum` anywhere).

use crate::binomial::binomial;
use crate::error::{Result, value_error};
use crate::rng::Words;

/// Whether n agents of a row with K categories are drawn one by one: up to where their cost
/// (1 + 0.3 K ns each, measured) reaches that of K - 1 binomials of small n p (about 70 ns).
#[inline]
fn is_few(n: i64, categories: usize) -> bool {
    n < 1 << 16 && n * (10 + 3 * categories as i64) <= 700 * (categories as i64 - 1)
}

/// Scratch memory of the sampler, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    /// Rows with agents.
    rows: Vec<usize>,
    /// Uniforms of the agents of one row, and its cumulative weights.
    uniforms: Vec<f64>,
    limits: Vec<f64>,
    /// Rows that take the chain: what is left of their agents, and the index of the row.
    chains: Vec<(i64, usize)>,
    /// Suffix sums of those rows, (rows, K + 1).
    tails: Vec<f64>,
}

/// Adds one draw of Multinomial(n, weights) to `out`; see [`multinomial_rows`].
#[inline(always)]
pub fn multinomial_add<R: Words>(
    rng: &mut R,
    n: u64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    let n = n as i64;
    if n > 0 && is_few(n, out.len()) {
        draw_few(rng, n, weights, scratch, out);
    } else {
        multinomial_rows(rng, &[n], weights, scratch, out);
    }
}

/// Adds independent draws of Multinomial(counts\[a\], weights\[a\]) to `out` (K,), for all rows
/// a of `weights` (A, K).
///
/// Weights must be finite and non-negative, with a sum in (0, 1.5] in every row; it need not be
/// 1. Nothing is drawn for a row without agents or with a single category.
#[inline(always)]
pub fn multinomial_rows<R: Words>(
    rng: &mut R,
    counts: &[i64],
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    debug_assert_eq!(weights.len(), out.len() * counts.len());
    let categories = out.len();
    scratch.chains.clear();
    // without branches: which rows are empty is hard to predict where teams are small
    if scratch.rows.len() < counts.len() {
        scratch.rows.resize(counts.len(), 0);
    }
    let mut occupied = 0;
    for (row, &n) in counts.iter().enumerate() {
        scratch.rows[occupied] = row;
        occupied += usize::from(n > 0);
    }
    for i in 0..occupied {
        let row = scratch.rows[i];
        let n = counts[row];
        if is_few(n, categories) {
            let weights = &weights[row * categories..][..categories];
            draw_few(rng, n, weights, scratch, out);
        } else {
            scratch.chains.push((n, row));
        }
    }
    if !scratch.chains.is_empty() {
        chain(rng, weights, scratch, out);
    }
}

/// Draws few agents one by one.
#[inline(always)]
fn draw_few<R: Words>(
    rng: &mut R,
    n: i64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    // one copy of the code for each small K: its loops are unrolled
    match out.len() {
        2 => few::<R, 2>(rng, n, weights, out),
        3 => few::<R, 3>(rng, n, weights, out),
        4 => few::<R, 4>(rng, n, weights, out),
        5 => few::<R, 5>(rng, n, weights, out),
        6 => few::<R, 6>(rng, n, weights, out),
        7 => few::<R, 7>(rng, n, weights, out),
        8 => few::<R, 8>(rng, n, weights, out),
        _ => few_of_many(rng, n, weights, scratch, out),
    }
}

/// Draws few agents one by one among K categories.
///
/// Each agent compares one uniform below the total with the cumulative weights; the error in
/// probability is that of one rounding, 2^-53 of the row's sum. A category of weight zero is
/// never hit: its limit is that of the category before it, or the total.
#[inline(always)]
fn few<R: Words, const K: usize>(rng: &mut R, n: i64, weights: &[f64], out: &mut [i64]) {
    let (Some(weights), Some(out)) = (weights.first_chunk::<K>(), out.first_chunk_mut::<K>())
    else {
        return;
    };
    let mut limits = [0.0; K];
    let mut total = 0.0;
    let mut largest = 0.0;
    for j in 0..K {
        total += weights[j];
        limits[j] = total;
        largest = if weights[j] > largest {
            weights[j]
        } else {
            largest
        };
    }
    if largest == total {
        let only = weights.iter().position(|&w| w == largest).unwrap_or(0);
        out[only] += n;
        return;
    }
    let scale = Uniform::new(total);
    if n == 1 {
        let x = scale.draw(rng);
        let category: usize = limits[..K - 1]
            .iter()
            .map(|&limit| usize::from(x >= limit))
            .sum();
        out[category] += 1;
        return;
    }
    let mut above = [0i64; K];
    for _ in 0..n {
        let x = scale.draw(rng);
        for j in 0..K - 1 {
            above[j] += i64::from(x >= limits[j]);
        }
    }
    let mut before = n;
    for j in 0..K {
        out[j] += before - above[j];
        before = above[j];
    }
}

/// Limits compared with one uniform at a time where there are many.
const LANES: usize = 4;

/// As [`few`] for more categories: the uniforms are kept and meet the limits four by four.
fn few_of_many<R: Words>(
    rng: &mut R,
    n: i64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    let Scratch {
        uniforms, limits, ..
    } = scratch;
    let inner = weights.len() - 1;
    limits.clear();
    let mut total = 0.0;
    limits.extend(weights.iter().map(|&w| {
        total += w;
        total
    }));
    limits.truncate(inner);
    let largest = weights.iter().fold(0.0, |m: f64, &w| m.max(w));
    if largest == total {
        let only = weights.iter().position(|&w| w == largest).unwrap_or(0);
        out[only] += n;
        return;
    }
    limits.resize(inner.next_multiple_of(LANES), f64::INFINITY);
    let scale = Uniform::new(total);
    uniforms.clear();
    uniforms.extend((0..n).map(|_| scale.draw(rng)));
    let mut before = n;
    let (chunks, _) = limits.as_chunks();
    for (limits, out) in chunks.iter().zip(out[..inner].chunks_mut(LANES)) {
        let mut above = [0; LANES];
        for &x in uniforms.iter() {
            tally(x, limits, &mut above);
        }
        for (o, above) in out.iter_mut().zip(above) {
            *o += before - above;
            before = above;
        }
    }
    out[inner] += before;
}

/// Uniform numbers in (0, total): (k + 1/2) 2^-52 total, kept below the total.
#[derive(Clone, Copy)]
pub(crate) struct Uniform {
    step: f64,
    half: f64,
    below: f64,
}

impl Uniform {
    #[inline(always)]
    pub(crate) fn new(total: f64) -> Self {
        let step = total * (1.0 / (1u64 << 52) as f64);
        Uniform {
            step,
            half: 0.5 * step,
            below: f64::from_bits(total.to_bits() - 1),
        }
    }

    #[inline(always)]
    pub(crate) fn draw<R: Words>(self, rng: &mut R) -> f64 {
        let x = (rng.next_word() >> 12) as f64 * self.step + self.half;
        if x < self.below { x } else { self.below }
    }
}

#[inline]
fn tally(x: f64, limits: &[f64; LANES], above: &mut [i64; LANES]) {
    for (count, &limit) in above.iter_mut().zip(limits) {
        *count += i64::from(x >= limit);
    }
}

/// Conditional binomials in the order of the categories; the rows take turns, since their draws
/// do not wait for each other.
#[inline]
fn chain<R: Words>(rng: &mut R, weights: &[f64], scratch: &mut Scratch, out: &mut [i64]) {
    let categories = out.len();
    let Scratch { chains, tails, .. } = scratch;
    tails.clear();
    tails.resize(chains.len() * (categories + 1), 0.0);
    for (&(_, row), tail) in chains.iter().zip(tails.chunks_exact_mut(categories + 1)) {
        let weights = &weights[row * categories..][..categories];
        for j in (0..categories).rev() {
            tail[j] = tail[j + 1] + weights[j];
        }
    }
    for (j, o) in out.iter_mut().enumerate() {
        for ((left, row), tail) in chains.iter_mut().zip(tails.chunks_exact(categories + 1)) {
            if *left > 0 {
                let (p, q) = (
                    weights[*row * categories + j] / tail[j],
                    tail[j + 1] / tail[j],
                );
                let k = binomial(rng, *left as u64, p, q) as i64;
                *o += k;
                *left -= k;
            }
        }
    }
}

/// Adds one draw of Multinomial(n, weights) to `out`, for any weights.
///
/// # Errors
/// [`crate::Error::Value`] if a weight is negative or not finite, or if all are zero.
pub fn multinomial<R: Words>(
    rng: &mut R,
    n: u64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) -> Result<()> {
    let mut scaled = weights.to_vec();
    normalize(&mut scaled)?;
    multinomial_add(rng, n, &scaled, scratch, out);
    Ok(())
}

/// Scales weights to a sum of about 1, without overflow or loss for any finite input.
///
/// # Errors
/// [`crate::Error::Value`] if a weight is negative or not finite, or if all are zero.
pub fn normalize(weights: &mut [f64]) -> Result<()> {
    let mut largest = 0.0f64;
    for (j, &w) in weights.iter().enumerate() {
        if !(w >= 0.0 && w.is_finite()) {
            return value_error!("weights[{j}]: expected a finite number >= 0, got {w}");
        }
        largest = largest.max(w);
    }
    if largest == 0.0 {
        return value_error!("weights: expected at least one positive weight, got all zero");
    }
    if !(1e-200..=1e200).contains(&largest) {
        weights.iter_mut().for_each(|w| *w /= largest);
    }
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
    Ok(())
}

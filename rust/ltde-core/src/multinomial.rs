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

/// Up to this many agents per row are drawn one by one: (base, extra per category), measured.
const ONE_BY_ONE: (usize, usize) = (8, 4);

/// Scratch memory of the sampler, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    tail: Vec<f64>,
    cumulative: Vec<u64>,
}

/// Adds one draw of Multinomial(n, weights) to `out`.
///
/// `weights` must be finite and non-negative with a sum in (0, 1.5]; it need not be 1. Draws
/// nothing when n = 0 or when a single category has weight.
#[inline]
pub fn multinomial_add<R: Words>(
    rng: &mut R,
    n: u64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    debug_assert_eq!(weights.len(), out.len());
    if n == 0 {
        return;
    }
    if n <= (ONE_BY_ONE.0 + ONE_BY_ONE.1 * weights.len()) as u64 {
        one_by_one(rng, n, weights, &mut scratch.cumulative, out);
    } else {
        chain(rng, n, weights, &mut scratch.tail, out);
    }
}

/// Each agent compares one word with the cumulative weights.
///
/// Weight w becomes floor(w 2^63), an error below 2^-63 in probability; the sums of these
/// integers are exact, and a word is scaled to their total by the high half of a product.
#[inline]
fn one_by_one<R: Words>(
    rng: &mut R,
    n: u64,
    weights: &[f64],
    cumulative: &mut Vec<u64>,
    out: &mut [i64],
) {
    const UNIT: f64 = (1u64 << 63) as f64;
    cumulative.clear();
    let mut total = 0u64;
    let mut largest = (0u64, 0usize);
    for (j, &w) in weights.iter().enumerate() {
        let fixed = (w * UNIT) as u64;
        total += fixed;
        if fixed > largest.0 {
            largest = (fixed, j);
        }
        cumulative.push(total);
    }
    if largest.0 == total {
        out[largest.1] += n as i64;
        return;
    }
    let (_, inner) = cumulative.split_last().unwrap_or((&0, &[]));
    for _ in 0..n {
        let x = ((u128::from(rng.next_word()) * u128::from(total)) >> 64) as u64;
        let j = inner.iter().map(|&c| usize::from(x >= c)).sum::<usize>();
        out[j] += 1;
    }
}

/// Conditional binomials in the order of the categories.
#[inline]
fn chain<R: Words>(rng: &mut R, n: u64, weights: &[f64], tail: &mut Vec<f64>, out: &mut [i64]) {
    let categories = weights.len();
    tail.clear();
    tail.resize(categories + 1, 0.0);
    for j in (0..categories).rev() {
        tail[j] = tail[j + 1] + weights[j];
    }
    let mut left = n;
    for j in 0..categories {
        let k = binomial(rng, left, weights[j] / tail[j], tail[j + 1] / tail[j]);
        out[j] += k as i64;
        left -= k;
        if left == 0 {
            return;
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

//! Exact binomial draws for counts up to 2^53.
//!
//! Law: the number of successes in n independent trials of probability p, with `p` and
//! `q = 1 - p` both passed by the caller, each accurate relative to itself: nothing in here
//! computes `1 - p`.
//!
//! - n min(p, q) < 6: inversion by sequential search from 0 (Kachitvichyanukul and Schmeiser's
//!   BINV), q^n as exp(n ln1p(-p)).
//! - otherwise: rejection from the strips of a [`hat`] that is the same for all laws, with a squeeze
//!   for each strip, and a second squeeze by Taylor's series. The hat dominates for n p >= 6; that
//!   and both squeezes are checked deterministically by the tests.
//!
//! **Numerics.** k is drawn as floor(n p) + floor(offset), so that no bit is lost up to 2^53. The
//! logarithm of a ratio of probabilities comes from the series of the second squeeze, whose
//! rounding error is about 1e-14; where that leaves a candidate open, from the `log1p` form, whose
//! error is about 5 |k - m| 2^-53: below 1.1e-7 within 6 standard deviations at n = 2^53, where the
//! textbook form is off by 1.

use crate::hat;
use crate::math::{exp, ln, ln_1p, stirling_tail};
use crate::rng::{Words, open_uniform};
use crate::simd::{Mask, Real, Word};

/// Largest count whose neighbours are exact in a float64.
pub const MAX_COUNT: u64 = 1 << 53;

/// n min(p, q) from which rejection is used; its hat needs at least 6.
pub const REJECTION_FROM: f64 = 6.0;

/// Attempts after which rejection gives up and returns the mode; each attempt is accepted with
/// a probability above 0.6, so this happens with probability below 10^-100.
pub(crate) const MAX_ATTEMPTS: usize = 256;

/// Inversion stops where the remaining mass is below the resolution of a uniform (2^-53).
const NEGLIGIBLE: f64 = 1e-20;

/// Draws from Binomial(n, p), given q = 1 - p. `n` at most 2^53; p, q >= 0.
///
/// Draws nothing when the result is certain (n = 0, p = 0 or q = 0).
#[inline]
pub fn binomial<R: Words>(rng: &mut R, n: u64, p: f64, q: f64) -> u64 {
    debug_assert!(
        n <= MAX_COUNT && p >= 0.0 && q >= 0.0,
        "binomial({n}, {p}, {q})"
    );
    if n == 0 || p <= 0.0 {
        return 0;
    }
    if q <= 0.0 {
        return n;
    }
    // without branches: which of the two is smaller is hard to predict
    let (small, large) = (if p <= q { p } else { q }, if p <= q { q } else { p });
    let size = n as i64 as f64; // signed conversions are single instructions
    let k = if size * small < REJECTION_FROM {
        inversion(rng.open_uniform(), size, small, large)
    } else {
        rejection(rng, size, small, large)
    };
    let (k, n) = (k as i64, n as i64);
    let flip = -i64::from(p > q);
    ((n & flip) + ((k ^ flip) - flip)) as u64
}

/// Sequential search from 0 (BINV) for a uniform u. Needs n p small; at most a few dozen passes.
#[inline(always)]
pub(crate) fn inversion<V: Real>(u: V, n: V, p: V, q: V) -> V {
    let odds = p / q;
    let a = (n + 1.0) * odds;
    let (one, zero) = (n.of(1.0), n.of(0.0));
    let mut mass = exp(n * ln_1p(-p));
    let (mut sum, mut k) = (mass, zero);
    // beyond the table, and past the last u, the remaining mass has long been negligible
    for &reciprocal in &RECIPROCAL[1..] {
        let beyond = sum.lt(u) & n.of(NEGLIGIBLE).le(mass);
        if !beyond.any() {
            break;
        }
        k = k + V::select(beyond, one, zero);
        // zero up to rounding from k = n on, a / (n + 1) = odds; the minimum below sees to it
        mass = mass * (a * reciprocal - odds);
        sum = sum + mass;
    }
    k.min(n)
}

/// 1 / k; inversion leaves before the end, where the mass has long been negligible.
const RECIPROCAL: [f64; 256] = {
    let mut table = [0.0; 256];
    let mut k = 1;
    while k < 256 {
        table[k] = 1.0 / k as f64;
        k += 1;
    }
    table
};

/// The constants of the rejection for (n, p): of one law, or of one in each lane.
#[derive(Debug, Clone, Copy)]
pub struct Rejection<V> {
    n: V,
    p: V,
    q: V,
    /// The unit of the hat: sd + [`hat::WIDER`].
    scale: V,
    /// floor(n p), and (n + 1) p - floor(n p) without rounding.
    whole: V,
    fraction: V,
}

/// A place under the hat, one in each lane.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<V> {
    /// The value.
    pub k: V,
    /// Width of the strip; the hat is [`hat::AREA`] over it. In the tail as wide as it would be.
    pub width: V,
    /// The squeeze of the strip, see [`hat::STRIPS`].
    level: V,
    slope: V,
}

impl<V: Real> Rejection<V> {
    /// Set-up; needs p <= 1/2 and n p >= 6.
    #[inline(always)]
    pub fn new(n: V, p: V, q: V) -> Self {
        let scale = (n * p * q).sqrt() + hat::WIDER;
        let (product, error) = n.two_product(p);
        let whole = product.floor();
        let fraction = (product - whole) + error + p;
        Rejection {
            n,
            p,
            q,
            scale,
            whole,
            fraction,
        }
    }

    /// The candidate of a word: bit 0 is the side, bits 2 to 8 are the strip, and the upper 52 bits
    /// the place in it.
    #[inline(always)]
    pub fn candidate(&self, word: V::Bits) -> Candidate<V> {
        let u = open_uniform(word);
        let [left, mut width, level, slope] = word.look_up(&hat::STRIPS);
        let mut z = left + u * width;
        let tail = level.lt(u.of(0.0));
        if tail.any() {
            // u is the part of the tail beyond z, which falls like z^-4
            let root = u.sqrt().sqrt();
            z = V::select(tail, left / root, z);
            width = V::select(tail, left * 0.25 / (u * root), width);
        }
        let z = (z.to_bits() ^ word.shl::<63>()).to_real();
        Candidate {
            k: self.whole + (self.scale * z + self.fraction).floor(),
            width,
            level,
            slope,
        }
    }

    /// First squeeze: such a v is accepted wherever in its strip the candidate is.
    #[inline(always)]
    pub fn accept_at_once(&self, candidate: &Candidate<V>, v: V) -> V::Mask {
        candidate.slope.le((candidate.level - v) * self.scale)
    }

    /// The height of v under the hat where a candidate has this width, on the scale of
    /// f(k) / f(mode).
    #[inline(always)]
    pub fn height(&self, width: V, v: V) -> V {
        v * hat::AREA * (self.scale + hat::HIGHER) / (width * self.scale)
    }

    /// Most probable value, floor((n + 1) p).
    #[inline(always)]
    pub fn mode(&self) -> V {
        ((self.n + 1.0) * self.p).floor().min(self.n)
    }

    /// Largest |k - mode| for [`Rejection::ln_ratio_series`].
    #[inline(always)]
    pub fn series_range(&self) -> V {
        ((self.n * self.p) * 0.75 - 0.5).floor()
    }

    /// Second squeeze: ln f(m + d) / f(m) lies within `error` of `value`, up to rounding, for the
    /// mode m and an integer |d| up to [`Rejection::series_range`].
    ///
    /// With N = n + 1 and y_i = i - N p, f(i) / f(i - 1) = (1 - y_i / (N q)) / (1 + y_i / (N p)).
    /// Each logarithm by Taylor's series to y^4; the sums of y_i, ..., y_i^4 over the factors from m
    /// to m + d are polynomials in d and the mean of the first and the last y_i. As |y_i| <= 1, 2,
    /// ..., |d| and p <= q, what is left out is at most D x^5 / 15 / (1 - x) with D = |d| + 1/2 and
    /// x = D / (N p).
    #[inline(always)]
    pub fn ln_ratio_series(&self, d: V) -> (V, V) {
        let one = d.of(1.0);
        let (p, q, m) = (self.p, self.q, self.mode());
        let pq = p * q;
        let skew = q - p;
        // the mean of y, and that of its squares less the square of it, in units of N p q
        let unit = one / ((self.n + 1.0) * pq);
        let y = ((m - self.whole) - self.fraction + (d + 1.0) * 0.5) * unit;
        let unit2 = unit * unit;
        let v = (d * d - 1.0) * (unit2 * (1.0 / 12.0));
        let y2 = y * y;
        let second = y2 + v;
        let third = y * (second + v + v);
        let fourth = y2 * (y2 + v * 6.0) + v * (v * 1.8 - unit2 * 0.2);
        let even = second * 0.5 + (one - pq * 2.0) * (fourth * 0.25);
        let odd = y + (one - pq * 3.0) * (third * (1.0 / 3.0));
        let value = d * (skew * even - odd);

        let distance = d.abs() + 0.5;
        let x = distance * (unit * q);
        let x2 = x * x;
        // 1 / (1 - x) <= 1 + 4 x up to x = 3/4
        let error = distance * (x * x2 * x2) * (x * (4.0 / 15.0) + 1.0 / 15.0);
        (value, error)
    }

    /// ln f(k) / f(m) for the binomial law f and an m near the mode.
    #[inline(always)]
    pub fn ln_ratio(&self, m: V, k: V) -> V {
        let (n, p, q) = (self.n, self.p, self.q);
        let rest = n - m;
        let d = k - m;
        let (product, error) = n.two_product(p);
        let slope = ((product - m) + error + p + p - 1.0) / (q * (m + 1.0));
        d * ln_1p(slope)
            - (k + 0.5) * ln_1p(d / (m + 1.0))
            - (n - k + 0.5) * ln_1p(-d / (rest + 1.0))
            + (stirling_tail(m) - stirling_tail(k))
            + (stirling_tail(rest) - stirling_tail(n - k))
    }

    /// Whether candidates of this ln height under the hat are certainly accepted, and whether they
    /// are certainly rejected: by the second squeeze, and where they are outside of [0, n].
    #[inline(always)]
    pub(crate) fn second_squeeze(&self, k: V, ln_height: V) -> (V::Mask, V::Mask) {
        let zero = k.of(0.0);
        let possible = zero.le(k) & k.le(self.n);
        let d = k - self.mode();
        let (distance, range) = (d.abs(), self.series_range());
        // farther out the law is lower still
        let near = distance.min(range);
        let (value, error) = self.ln_ratio_series(V::select(d.lt(zero), -near, near));
        (
            possible & distance.le(range) & ln_height.lt(value - error),
            !possible | (value + error).lt(ln_height),
        )
    }
}

/// Rejection from the strips of the hat.
#[inline]
fn rejection<R: Words>(rng: &mut R, n: f64, p: f64, q: f64) -> f64 {
    let law = Rejection::new(n, p, q);
    for _ in 0..MAX_ATTEMPTS {
        let candidate = law.candidate(rng.next_word());
        let v = rng.open_uniform();
        if law.accept_at_once(&candidate, v) {
            return candidate.k;
        }
        let ln_height = ln(law.height(candidate.width, v));
        let (accepted, rejected) = law.second_squeeze(candidate.k, ln_height);
        if accepted || (!rejected && ln_height <= law.ln_ratio(law.mode(), candidate.k)) {
            return candidate.k;
        }
    }
    law.mode()
}

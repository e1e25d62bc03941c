//! Exact binomial draws for counts up to 2^53.
//!
//! Law: the number of successes in n independent trials of probability p, with `p` and
//! `q = 1 - p` both passed by the caller, each accurate relative to itself: nothing in here
//! computes `1 - p`.
//!
//! - n min(p, q) < 10: inversion by sequential search from 0 (Kachitvichyanukul and Schmeiser's
//!   BINV), q^n as exp(n ln1p(-p)).
//! - otherwise: transformed rejection with squeeze (Hörmann's BTRS, J. Stat. Comput. Simul.
//!   46, 1993), and a second squeeze by Taylor's series. The hat dominates for n p >= 10; that and
//!   both squeezes are checked deterministically on dense grids by the tests.
//!
//! **Numerics.** k is drawn as floor(n p) + floor(offset), so that no bit is lost up to 2^53. The
//! logarithm of a ratio of probabilities comes from the series of the second squeeze, whose
//! rounding error is about 1e-14; where that leaves a candidate open, from the `log1p` form, whose
//! error is about 5 |k - m| 2^-53: below 1.1e-7 within 6 standard deviations at n = 2^53, where the
//! textbook form is off by 1.

use crate::math::{exp, ln, ln_1p, stirling_tail};
use crate::rng::Words;
use crate::simd::{Mask, Real};

/// Largest count whose neighbours are exact in a float64.
pub const MAX_COUNT: u64 = 1 << 53;

/// n min(p, q) from which transformed rejection is used; its hat needs at least 10.
pub const REJECTION_FROM: f64 = 10.0;

/// Attempts after which rejection gives up and returns the mode; each attempt is accepted with
/// a probability above 0.7, so this happens with probability below 10^-133.
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

/// The constants of the transformed rejection for (n, p), named as in Hörmann's paper: of one law,
/// or of one in each lane.
#[derive(Debug, Clone, Copy)]
pub struct Btrs<V> {
    n: V,
    p: V,
    q: V,
    spq: V,
    /// Width and slope of the transformation u -> (2 a / u_s + b) u + c.
    b: V,
    a: V,
    /// floor(n p), and n p - floor(n p) + 1/2 without rounding.
    whole: V,
    fraction: V,
}

impl<V: Real> Btrs<V> {
    /// Set-up; needs p <= 1/2 and n p >= 10.
    #[inline(always)]
    pub fn new(n: V, p: V, q: V) -> Self {
        let spq = (n * p * q).sqrt();
        let b = spq * 2.53 + 1.15;
        let a = b * 0.0248 + p * 0.01 - 0.0873;
        let (product, error) = n.two_product(p);
        let whole = product.floor();
        let fraction = (product - whole) + error + 0.5;
        Btrs {
            n,
            p,
            q,
            spq,
            b,
            a,
            whole,
            fraction,
        }
    }

    /// The candidate for u in (-1/2, 1/2), u_s = 1/2 - |u|.
    #[inline(always)]
    pub fn candidate(&self, u: V, us: V) -> V {
        self.whole + (((self.a + self.a) / us + self.b) * u + self.fraction).floor()
    }

    /// First squeeze: inside this rectangle every candidate is accepted. v <= 0.92 - 4.2 / b.
    #[inline(always)]
    pub fn accept_at_once(&self, us: V, v: V) -> V::Mask {
        us.of(0.07).le(us) & (v * self.b).le(self.b * 0.92 - 4.2)
    }

    /// The height of v under the hat at u, on the scale of f(k) / f(mode).
    #[inline(always)]
    pub fn height(&self, us: V, v: V) -> V {
        let us2 = us * us;
        v * (self.b * 2.83 + 5.1) * self.spq * us2 / (self.b * (self.a + self.b * us2))
    }

    /// Most probable value, floor((n + 1) p).
    #[inline(always)]
    pub fn mode(&self) -> V {
        ((self.n + 1.0) * self.p).floor().min(self.n)
    }

    /// Largest |k - mode| for [`Btrs::ln_ratio_series`].
    #[inline(always)]
    pub fn series_range(&self) -> V {
        ((self.n * self.p) * 0.75 - 0.5).floor()
    }

    /// Second squeeze: ln f(m + d) / f(m) lies within `error` of `value`, up to rounding, for the
    /// mode m and an integer |d| up to [`Btrs::series_range`].
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
        let y = ((m - self.whole) - (self.fraction - 0.5) - p + (d + 1.0) * 0.5) * unit;
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

/// Transformed rejection.
#[inline]
fn rejection<R: Words>(rng: &mut R, n: f64, p: f64, q: f64) -> f64 {
    let btrs = Btrs::new(n, p, q);
    for _ in 0..MAX_ATTEMPTS {
        let u = rng.open_uniform() - 0.5;
        let v = rng.open_uniform();
        let us = 0.5 - u.abs();
        let k = btrs.candidate(u, us);
        if btrs.accept_at_once(us, v) {
            return k;
        }
        let ln_height = ln(btrs.height(us, v));
        let (accepted, rejected) = btrs.second_squeeze(k, ln_height);
        if accepted || (!rejected && ln_height <= btrs.ln_ratio(btrs.mode(), k)) {
            return k;
        }
    }
    btrs.mode()
}

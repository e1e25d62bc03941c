//! Multinomial draws of many agents: a chain of binomials along each row, the same link of many
//! rows in vectors.
//!
//! Conditional probabilities come from suffix sums taken backwards, so that a category of weight
//! zero is never hit and rows that sum to 1 +- eps are renormalised (no `1 - running sum`). Most
//! candidates of the rejection are accepted at once by the first squeeze. The others are compacted
//! into a queue for the second, or the exact test where that leaves one open; and those that are
//! rejected, into one for the next attempt.

use crate::binomial::{Btrs, MAX_ATTEMPTS, REJECTION_FROM, inversion};
use crate::columns;
use crate::math::ln;
use crate::multinomial::Row;
use crate::rng::LaneRng;
use crate::simd::{Eight, LANES, Mask, Real, Simd, Word};

/// Most rows that are drawn together.
const TILE: usize = 320;

/// Scratch memory, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch {
    rows: Rows,
    waiting: Waiting,
}

/// The rows of a tile side by side, in groups of eight.
#[derive(Debug, Default, Clone)]
struct Rows {
    /// Largest number of categories; where a row has fewer, weights are zero.
    width: usize,
    /// Whether all rows of a group have so many, (groups,).
    alike: Vec<bool>,
    /// Agents without a category yet, (groups,).
    left: Vec<Eight<f64>>,
    /// Weights and their suffix sums, (groups, width).
    weights: Vec<Eight<f64>>,
    tails: Vec<Eight<f64>>,
    /// What is drawn: how often the rarer outcome comes, and 1 where that is to go elsewhere.
    drawn: Vec<Eight<f64>>,
    flipped: Vec<Eight<f64>>,
    /// How many go to each category, (groups, width).
    counts: Vec<Eight<i64>>,
}

/// Binomials that wait, each with the index of its row.
#[derive(Debug, Default, Clone)]
struct Waiting {
    /// n, p, q of inversions.
    small: Queue<4>,
    /// n, p, q of rejections with a candidate, its u_s and v.
    tested: Queue<7>,
    /// n, p, q of rejections without a candidate.
    retried: Queue<4>,
}

/// Entries that wait, field by field.
#[derive(Debug, Clone)]
struct Queue<const N: usize> {
    len: usize,
    fields: Box<[[f64; TILE + LANES]; N]>,
}

impl<const N: usize> Default for Queue<N> {
    fn default() -> Self {
        Queue {
            len: 0,
            fields: Box::new([[0.0; TILE + LANES]; N]),
        }
    }
}

impl<const N: usize> Queue<N> {
    /// Appends the lanes where the mask holds.
    #[inline(always)]
    fn push<V: Real>(&mut self, mask: V::Mask, values: [V; N]) {
        let at = self.len.min(TILE);
        let mut many = 0;
        for (field, value) in self.fields.iter_mut().zip(values) {
            many = value.compress(mask, &mut field[at..]);
        }
        self.len = at + many;
    }

    /// The entries from `i` on, and which lanes hold one.
    #[inline(always)]
    fn at<S: Simd>(&self, simd: S, i: usize) -> ([S::Real; N], <S::Real as Real>::Mask) {
        // no closure: see `Kernel`
        let at = i.min(TILE);
        let mut values = [simd.real(0.0); N];
        for (value, field) in values.iter_mut().zip(&*self.fields) {
            *value = simd.load(&field[at..]);
        }
        const FROM_ZERO: [f64; LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let live = simd
            .load(&FROM_ZERO)
            .lt(simd.real(self.len as f64 - i as f64));
        (values, live)
    }
}

/// w / tail and rest / tail. Products with the reciprocal are quicker than a second division, and
/// as good but where the reciprocal may overflow. Zero stays zero, so what is certain stays certain.
#[inline(always)]
fn conditional<V: Real>(w: V, tail: V, rest: V) -> (V, V) {
    const LEAST: f64 = 1e-300;
    let one = tail.of(1.0);
    let reciprocal = one / tail;
    let (p, q) = (w * reciprocal, rest * reciprocal);
    // each lane by itself: what is beside it must not matter
    let tiny = tail.lt(tail.of(LEAST));
    if tiny.any() {
        // nobody is left where nothing is
        let tail = V::select(tail.of(0.0).lt(tail), tail, one);
        (
            V::select(tiny, w / tail, p),
            V::select(tiny, rest / tail, q),
        )
    } else {
        (p, q)
    }
}

/// The words i, i + 1, ..., as bits of numbers: they are only moved.
#[inline(always)]
fn indices<S: Simd>(simd: S, i: usize) -> S::Real {
    simd.load_words(&[0, 1, 2, 3, 4, 5, 6, 7])
        .plus(simd.word(i as u64))
        .to_real()
}

/// Adds a draw of every row to `out`.
#[inline(always)]
pub(crate) fn draw<S: Simd>(
    simd: S,
    rng: &mut LaneRng,
    rows: &[Row],
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    let Scratch {
        rows: tile,
        waiting,
    } = scratch;
    for rows in rows.chunks(TILE) {
        tile.arrange(rows, weights);
        tile.add_up(simd);
        for j in 0..tile.width - 1 {
            tile.link(simd, rng, j, waiting);
        }
        tile.add(rows, out);
    }
}

/// Writes the values where the mask holds to the rows of these indices; `drawn` ends with a group
/// for the others: to branch would be slower.
#[inline(always)]
fn put<S: Simd>(
    simd: S,
    mask: <S::Real as Real>::Mask,
    index: S::Real,
    values: S::Real,
    drawn: &mut [Eight<f64>],
) {
    let nowhere = simd.word(((drawn.len() - 1) * LANES) as u64).to_real();
    let (mut to, mut what) = ([0; LANES], [0.0; LANES]);
    S::Real::select(mask, index, nowhere)
        .to_bits()
        .store(&mut to);
    values.store(&mut what);
    for (&to, what) in to.iter().zip(what).take(S::WIDTH) {
        let row = to as usize;
        drawn[row / LANES].0[row % LANES] = what;
    }
}

impl Rows {
    /// Arranges the rows of a tile. Not compiled for vectors, which would scatter.
    #[inline(never)]
    fn arrange(&mut self, rows: &[Row], weights: &[f64]) {
        const ZERO: Eight<f64> = Eight([0.0; LANES]);
        let (width, groups) = (columns::width(rows).0 as usize, rows.len().div_ceil(LANES));
        self.width = width;
        self.alike.clear();
        self.left.clear();
        self.left.resize(groups, ZERO);
        self.weights.resize(width * groups, ZERO);
        self.tails.resize(width * groups, ZERO);
        self.drawn.resize(groups + 1, ZERO);
        self.flipped.resize(groups, ZERO);
        self.counts.resize(width * groups, Eight([0; LANES]));
        let groups = rows.chunks(LANES).zip(&mut self.left);
        for ((group, left), columns) in groups.zip(self.weights.chunks_exact_mut(width)) {
            for (left, row) in left.0.iter_mut().zip(group) {
                *left = row.n as f64;
            }
            let alike = columns::width(group) == (width as u32, true);
            self.alike.push(alike);
            columns::arrange(group, alike, weights, columns);
        }
    }

    /// Suffix sums of the weights.
    #[inline(always)]
    fn add_up<S: Simd>(&mut self, simd: S) {
        let tails = self.tails.chunks_exact_mut(self.width);
        for (weights, tails) in self.weights.chunks_exact(self.width).zip(tails) {
            for part in 0..S::PARTS {
                let at = part * S::WIDTH;
                let mut sum = simd.real(0.0);
                for (weights, tails) in weights.iter().zip(tails.iter_mut()).rev() {
                    sum = sum + simd.load(&weights.0[at..]);
                    sum.store(&mut tails.0[at..]);
                }
            }
        }
    }

    /// Draws how many of those left go to category j, in all rows, into `drawn`.
    #[inline(always)]
    fn link<S: Simd>(&mut self, simd: S, rng: &mut LaneRng, j: usize, waiting: &mut Waiting) {
        let Rows {
            width,
            left,
            weights,
            tails,
            drawn,
            flipped,
            counts,
            ..
        } = self;
        let width = *width;
        let (one, zero) = (simd.real(1.0), simd.real(0.0));
        waiting.small.len = 0;
        waiting.tested.len = 0;
        let sums = weights.chunks_exact(width).zip(tails.chunks_exact(width));
        let groups = left.iter_mut().zip(&mut *drawn).zip(&mut *flipped);
        for (group, (((left, drawn), flipped), (weights, tails))) in groups.zip(sums).enumerate() {
            let (weights, tails, next_tails) = (&weights[j], &tails[j], &tails[j + 1]);
            let mut parts = [(zero, zero, zero, zero.lt(zero)); LANES];
            let mut reject = false;
            for (part, binomial) in parts.iter_mut().enumerate().take(S::PARTS) {
                let at = part * S::WIDTH;
                let n = simd.load(&left.0[at..]);
                let tail = simd.load(&tails.0[at..]);
                let (p, q) = conditional(
                    simd.load(&weights.0[at..]),
                    tail,
                    simd.load(&next_tails.0[at..]),
                );
                let flip = q.lt(p);
                S::Real::select(flip, one, zero).store(&mut flipped.0[at..]);
                let (p, q) = (S::Real::select(flip, q, p), S::Real::select(flip, p, q));
                let mean = n * p;
                let large = simd.real(REJECTION_FROM).le(mean);
                let small = zero.lt(mean) & !large;
                if small.any() {
                    let index = indices(simd, group * LANES + at);
                    waiting.small.push(small, [n, p, q, index]);
                }
                *binomial = (n, p, q, large);
                reject |= large.any();
            }
            if !reject {
                drawn.0 = [0.0; LANES];
                continue;
            }
            for (part, &(n, p, q, large)) in parts.iter().enumerate().take(S::PARTS) {
                let at = part * S::WIDTH;
                let (k, us, v, accepted) = attempt(simd, rng, part, n, p, q);
                S::Real::select(large, k, zero).store(&mut drawn.0[at..]);
                let index = indices(simd, group * LANES + at);
                waiting
                    .tested
                    .push(large & !accepted, [n, p, q, index, k, us, v]);
            }
        }
        waiting.reject(simd, rng, drawn);
        waiting.invert(simd, rng, drawn);
        let results = left.iter_mut().zip(drawn).zip(flipped);
        for (((left, drawn), flipped), counts) in results.zip(counts.chunks_exact_mut(width)) {
            for part in 0..S::PARTS {
                let at = part * S::WIDTH;
                let (n, k) = (simd.load(&left.0[at..]), simd.load(&drawn.0[at..]));
                let flip = zero.lt(simd.load(&flipped.0[at..]));
                let k = S::Real::select(flip, n - k, k);
                let others = n - k;
                others.store(&mut left.0[at..]);
                integer(k).store_signed(&mut counts[j].0[at..]);
                if j + 2 == width {
                    integer(others).store_signed(&mut counts[j + 1].0[at..]);
                }
            }
        }
    }

    /// Adds what was drawn, row by row: to add to the same count again and again would be slow.
    #[inline(never)]
    fn add(&self, rows: &[Row], out: &mut [i64]) {
        let groups = rows.chunks(LANES).zip(&self.alike);
        for ((group, &alike), counts) in groups.zip(self.counts.chunks_exact(self.width)) {
            columns::add(group, alike, counts, out);
        }
    }
}

/// Integers in [0, 2^53].
#[inline(always)]
fn integer<V: Real>(x: V) -> V::Bits {
    const FROM: f64 = (1u64 << 52) as f64;
    const HALF: f64 = (1u64 << 32) as f64;
    // both halves stand in the lowest bits of a sum with 2^52
    let high = (x * (1.0 / HALF)).floor();
    let low = x - high * HALF;
    let bits = (low + FROM).to_bits();
    bits.minus(bits.of(FROM.to_bits()))
        .plus((high + FROM).to_bits().shl::<32>())
}

impl Waiting {
    /// Decides on the candidates that are drawn, and draws others for those that are rejected, until
    /// nobody waits.
    #[inline(always)]
    fn reject<S: Simd>(&mut self, simd: S, rng: &mut LaneRng, drawn: &mut [Eight<f64>]) {
        for attempts in 1.. {
            if self.tested.len == 0 {
                return;
            }
            self.retried.len = 0;
            for i in (0..self.tested.len).step_by(S::WIDTH) {
                let ([n, p, q, index, k, us, v], live) = self.tested.at(simd, i);
                let btrs = Btrs::new(n, p, q);
                let ln_height = ln(btrs.height(us, v));
                let (accepted, mut rejected) = btrs.second_squeeze(k, ln_height);
                let open = live & !accepted & !rejected;
                if open.any() {
                    let possible = ln_height.le(btrs.ln_ratio(btrs.mode(), k));
                    rejected = rejected | (open & !possible);
                }
                self.retried.push(live & rejected, [n, p, q, index]);
            }
            self.tested.len = 0;
            for group in (0..self.retried.len).step_by(LANES) {
                for part in 0..S::PARTS {
                    let i = group + part * S::WIDTH;
                    let ([n, p, q, index], live) = self.retried.at(simd, i);
                    if attempts == MAX_ATTEMPTS {
                        put(simd, live, index, Btrs::new(n, p, q).mode(), drawn);
                        continue;
                    }
                    let (k, us, v, accepted) = attempt(simd, rng, part, n, p, q);
                    put(simd, live, index, k, drawn);
                    self.tested
                        .push(live & !accepted, [n, p, q, index, k, us, v]);
                }
            }
        }
    }

    /// Draws those of small n p.
    #[inline(always)]
    fn invert<S: Simd>(&mut self, simd: S, rng: &mut LaneRng, drawn: &mut [Eight<f64>]) {
        let (zero, half) = (simd.real(0.0), simd.real(0.5));
        for group in (0..self.small.len).step_by(LANES) {
            for part in 0..S::PARTS {
                let mut words = rng.part(simd, part);
                let u = words.open_uniform();
                rng.put_back(simd, part, words);
                let ([n, p, q, index], live) = self.small.at(simd, group + part * S::WIDTH);
                // what stood in the other lanes before is not to search for long
                let n = S::Real::select(live, n, zero);
                let p = S::Real::select(live, p, half);
                let q = S::Real::select(live, q, half);
                put(simd, live, index, inversion(u, n, p, q), drawn);
            }
        }
    }
}

/// One candidate in each lane with its u_s and v, and whether the first squeeze accepts it.
#[inline(always)]
#[allow(clippy::type_complexity)]
fn attempt<S: Simd>(
    simd: S,
    rng: &mut LaneRng,
    part: usize,
    n: S::Real,
    p: S::Real,
    q: S::Real,
) -> (S::Real, S::Real, S::Real, <S::Real as Real>::Mask) {
    let mut words = rng.part(simd, part);
    let u = words.open_uniform() - 0.5;
    let v = words.open_uniform();
    rng.put_back(simd, part, words);
    let us = simd.real(0.5) - u.abs();
    let btrs = Btrs::new(n, p, q);
    (btrs.candidate(u, us), us, v, btrs.accept_at_once(us, v))
}

//! Multinomial draws of many agents: a chain of binomials along each row, the same link of many
//! rows in vectors.
//!
//! Conditional probabilities come from suffix sums taken backwards, so that a category of weight
//! zero is never hit and rows that sum to 1 +- eps are renormalised (no `1 - running sum`). Most
//! candidates of the rejection are accepted at once by the first squeeze. The others are compacted
//! into a queue for the second, or the exact test where that leaves one open; and those that are
//! rejected, into one for the next attempt.

use crate::binomial::{MAX_ATTEMPTS, REJECTION_FROM, Rejection, inversion};
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
    /// The groups, and one more to write to where nothing is drawn.
    groups: Vec<Group>,
    /// Weights and their suffix sums, (groups, width).
    weights: Vec<Eight<f64>>,
    tails: Vec<Eight<f64>>,
    /// How many go to each category, (groups, width).
    counts: Vec<Eight<i64>>,
}

/// Eight rows on the way, each in its lane.
#[derive(Debug, Default, Clone, Copy)]
struct Group {
    /// Agents without a category yet.
    left: Eight<f64>,
    /// What is drawn: how often the rarer outcome comes, and 1 where that is to go elsewhere.
    drawn: Eight<f64>,
    flipped: Eight<f64>,
    /// The probability of the rarer outcome, and of the other.
    p: Eight<f64>,
    q: Eight<f64>,
    /// Whether some lane is for rejection.
    reject: bool,
}

/// Binomials that wait, each with the index of its row.
#[derive(Debug, Default, Clone)]
struct Waiting {
    /// n, p, q of inversions.
    small: Queue<4>,
    /// n, p, q of rejections with a candidate, its width and v.
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

/// Writes the values where the mask holds to the rows of these indices; there is a last group for
/// the others: to branch would be slower.
#[inline(always)]
fn put<S: Simd>(
    simd: S,
    mask: <S::Real as Real>::Mask,
    index: S::Real,
    values: S::Real,
    groups: &mut [Group],
) {
    let nowhere = simd.word(((groups.len() - 1) * LANES) as u64).to_real();
    let (mut to, mut what) = ([0; LANES], [0.0; LANES]);
    S::Real::select(mask, index, nowhere)
        .to_bits()
        .store(&mut to);
    values.store(&mut what);
    for (&to, what) in to.iter().zip(what).take(S::WIDTH) {
        let row = to as usize;
        groups[row / LANES].drawn.0[row % LANES] = what;
    }
}

impl Rows {
    /// Arranges the rows of a tile. Not compiled for vectors, which would scatter.
    #[inline(never)]
    fn arrange(&mut self, rows: &[Row], weights: &[f64]) {
        const ZERO: Eight<f64> = Eight([0.0; LANES]);
        let (width, groups) = (columns::width(rows) as usize, rows.len().div_ceil(LANES));
        self.width = width;
        self.groups.resize(groups + 1, Group::default());
        self.weights.resize(width * groups, ZERO);
        self.tails.resize(width * groups, ZERO);
        self.counts.resize(width * groups, Eight([0; LANES]));
        let groups = rows.chunks(LANES).zip(&mut self.groups);
        for ((rows, group), columns) in groups.zip(self.weights.chunks_exact_mut(width)) {
            if rows.len() < LANES {
                *group = Group::default();
            }
            for (left, row) in group.left.0.iter_mut().zip(rows) {
                *left = row.n as f64;
            }
            columns::arrange(rows, weights, columns);
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
            groups,
            weights,
            tails,
            counts,
            ..
        } = self;
        let width = *width;
        let (one, zero) = (simd.real(1.0), simd.real(0.0));
        waiting.small.len = 0;
        waiting.tested.len = 0;
        let many = groups.len() - 1;
        for (i, group) in groups[..many].iter_mut().enumerate() {
            let at = i * width + j;
            let (weights, tails, next_tails) = (&weights[at], &tails[at], &tails[at + 1]);
            group.reject = false;
            for part in 0..S::PARTS {
                let at = part * S::WIDTH;
                let n = simd.load(&group.left.0[at..]);
                let tail = simd.load(&tails.0[at..]);
                let (p, q) = conditional(
                    simd.load(&weights.0[at..]),
                    tail,
                    simd.load(&next_tails.0[at..]),
                );
                let flip = q.lt(p);
                S::Real::select(flip, one, zero).store(&mut group.flipped.0[at..]);
                let (p, q) = (S::Real::select(flip, q, p), S::Real::select(flip, p, q));
                p.store(&mut group.p.0[at..]);
                q.store(&mut group.q.0[at..]);
                let mean = n * p;
                let large = simd.real(REJECTION_FROM).le(mean);
                let small = zero.lt(mean) & !large;
                if small.any() {
                    let index = indices(simd, i * LANES + at);
                    waiting.small.push(small, [n, p, q, index]);
                }
                group.reject |= large.any();
            }
        }
        // in a loop of its own: divisions above and roots below do not wait for each other
        for (i, group) in groups[..many].iter_mut().enumerate() {
            if !group.reject {
                group.drawn.0 = [0.0; LANES];
                continue;
            }
            for part in 0..S::PARTS {
                let at = part * S::WIDTH;
                let n = simd.load(&group.left.0[at..]);
                let p = simd.load(&group.p.0[at..]);
                let q = simd.load(&group.q.0[at..]);
                let large = simd.real(REJECTION_FROM).le(n * p);
                let (k, width, v, accepted) = attempt(simd, rng, part, n, p, q);
                S::Real::select(large, k, zero).store(&mut group.drawn.0[at..]);
                let index = indices(simd, i * LANES + at);
                waiting
                    .tested
                    .push(large & !accepted, [n, p, q, index, k, width, v]);
            }
        }
        waiting.reject(simd, rng, groups);
        waiting.invert(simd, rng, groups);
        for (i, group) in groups[..many].iter_mut().enumerate() {
            let column = i * width + j;
            for part in 0..S::PARTS {
                let at = part * S::WIDTH;
                let (n, k) = (
                    simd.load(&group.left.0[at..]),
                    simd.load(&group.drawn.0[at..]),
                );
                let flip = zero.lt(simd.load(&group.flipped.0[at..]));
                let k = S::Real::select(flip, n - k, k);
                let others = n - k;
                others.store(&mut group.left.0[at..]);
                integer(k).store_signed(&mut counts[column].0[at..]);
                if j + 2 == width {
                    integer(others).store_signed(&mut counts[column + 1].0[at..]);
                }
            }
        }
    }

    /// Adds what was drawn, row by row: to add to the same count again and again would be slow.
    #[inline(never)]
    fn add(&self, rows: &[Row], out: &mut [i64]) {
        let counts = self.counts.chunks_exact(self.width);
        for (group, counts) in rows.chunks(LANES).zip(counts) {
            columns::add(group, counts, out);
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
    fn reject<S: Simd>(&mut self, simd: S, rng: &mut LaneRng, groups: &mut [Group]) {
        for attempts in 1.. {
            if self.tested.len == 0 {
                return;
            }
            self.retried.len = 0;
            for i in (0..self.tested.len).step_by(S::WIDTH) {
                let ([n, p, q, index, k, width, v], live) = self.tested.at(simd, i);
                let law = Rejection::new(n, p, q);
                let ln_height = ln(law.height(width, v));
                let (accepted, mut rejected) = law.second_squeeze(k, ln_height);
                let open = live & !accepted & !rejected;
                if open.any() {
                    let possible = ln_height.le(law.ln_ratio(law.mode(), k));
                    rejected = rejected | (open & !possible);
                }
                self.retried.push(live & rejected, [n, p, q, index]);
            }
            self.tested.len = 0;
            for first in (0..self.retried.len).step_by(LANES) {
                for part in 0..S::PARTS {
                    let i = first + part * S::WIDTH;
                    let ([n, p, q, index], live) = self.retried.at(simd, i);
                    if attempts == MAX_ATTEMPTS {
                        put(simd, live, index, Rejection::new(n, p, q).mode(), groups);
                        continue;
                    }
                    let (k, width, v, accepted) = attempt(simd, rng, part, n, p, q);
                    put(simd, live, index, k, groups);
                    self.tested
                        .push(live & !accepted, [n, p, q, index, k, width, v]);
                }
            }
        }
    }

    /// Draws those of small n p.
    #[inline(always)]
    fn invert<S: Simd>(&mut self, simd: S, rng: &mut LaneRng, groups: &mut [Group]) {
        let (zero, half) = (simd.real(0.0), simd.real(0.5));
        for first in (0..self.small.len).step_by(LANES) {
            for part in 0..S::PARTS {
                let mut words = rng.part(simd, part);
                let u = words.open_uniform();
                rng.put_back(simd, part, words);
                let ([n, p, q, index], live) = self.small.at(simd, first + part * S::WIDTH);
                // what stood in the other lanes before is not to search for long
                let n = S::Real::select(live, n, zero);
                let p = S::Real::select(live, p, half);
                let q = S::Real::select(live, q, half);
                put(simd, live, index, inversion(u, n, p, q), groups);
            }
        }
    }
}

/// One candidate in each lane with its width and v, and whether the first squeeze accepts it.
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
    let word = words.words();
    let v = words.open_uniform();
    rng.put_back(simd, part, words);
    let law = Rejection::new(n, p, q);
    let candidate = law.candidate(word);
    let accepted = law.accept_at_once(&candidate, v);
    (candidate.k, candidate.width, v, accepted)
}

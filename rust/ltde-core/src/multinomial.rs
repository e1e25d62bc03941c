//! Exact multinomial draws.
//!
//! Law: n agents choose among K categories independently with probabilities proportional to
//! `weights`. Few agents are drawn one by one against cumulative weights; many by a chain of
//! binomials whose conditional probabilities come from suffix sums taken backwards, so that a
//! category of weight zero is never hit and rows that sum to 1 +- eps are renormalised (no
//! `1 - running sum` anywhere).
//!
//! Many rows are drawn together in vectors, [`draw_rows`]; single rows, and those with one category
//! or too many, one after the other, [`multinomial_add`].

use crate::binomial::binomial;
use crate::chain;
use crate::error::{Result, value_error};
use crate::few;
use crate::rng::{BlockRng, Words};
use crate::simd::{Kernel, Simd, dispatch};

/// One draw of Multinomial(n, weights): where its weights begin, and where its counts are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Number of agents n, at least 1.
    pub n: i64,
    /// Index of the first weight.
    pub weights: usize,
    /// Index of the first count.
    pub out: usize,
    /// Number of categories K.
    pub width: u32,
}

/// Most agents of a row that are drawn one by one, for each width: up to where their cost reaches
/// that of K - 1 binomials (both measured). None of one category, nor of too many.
const LIMITS: [i64; few::WIDEST + 2] = {
    let mut limits = [0; few::WIDEST + 2];
    let mut width = 2;
    while width <= few::WIDEST {
        // wider rows are not unrolled
        limits[width] = if width <= few::UNROLLED {
            900 * (width as i64 - 1) / (2 + width as i64)
        } else {
            450
        };
        assert!(limits[width] <= MOST);
        width += 1;
    }
    limits
};

/// No limit is above it.
const MOST: i64 = 600;
const _: () = assert!(MOST <= few::MOST);

/// Scratch memory of the samplers, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    keys: Vec<u8>,
    sorted: Vec<Row>,
    few: few::Scratch,
    chain: chain::Scratch,
    /// Uniforms of the agents of one row, and its cumulative weights.
    uniforms: Vec<f64>,
    limits: Vec<f64>,
    /// Suffix sums of one row.
    tails: Vec<f64>,
}

/// Adds an independent draw of every row to `out`, in vectors.
///
/// Weights must be finite and non-negative, with a sum between 1/2 and 3/2 in every row; it need not
/// be 1. The draws depend on the rows and their order, not on the instruction set.
pub fn draw_rows(
    rng: &mut BlockRng,
    rows: &[Row],
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    dispatch(DrawRows {
        rng,
        rows,
        weights,
        scratch,
        out,
    });
}

/// [`draw_rows`] as a kernel.
#[derive(Debug)]
pub struct DrawRows<'a> {
    /// The generators of the block.
    pub rng: &'a mut BlockRng,
    /// What to draw.
    pub rows: &'a [Row],
    /// Where the weights of the rows lie.
    pub weights: &'a [f64],
    /// Scratch memory.
    pub scratch: &'a mut Scratch,
    /// Where the draws are added.
    pub out: &'a mut [i64],
}

impl Kernel for DrawRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let DrawRows {
            rng,
            rows,
            weights,
            scratch,
            out,
        } = self;
        let begins = scratch.sort(rows);
        let Scratch {
            few, chain, sorted, ..
        } = scratch;
        let sorted = if begins[0] == rows.len() {
            rows
        } else {
            sorted
        };
        let (chained, few_rows) = sorted[..begins[1]].split_at(begins[0]);
        if !few_rows.is_empty() {
            let lanes = rng.lanes(simd);
            few::draw(simd, lanes, few_rows, weights, few, out);
        }
        if !chained.is_empty() {
            let lanes = rng.lanes(simd);
            chain::draw(simd, lanes, chained, weights, chain, out);
        }
        for i in begins[1]..rows.len() {
            let row = scratch.sorted[i];
            let width = row.width as usize;
            let weights = &weights[row.weights..][..width];
            let out = &mut out[row.out..][..width];
            multinomial_add(rng.single(), row.n as u64, weights, scratch, out);
        }
    }
}

impl Scratch {
    /// Sorts rows, stable: those with many agents first, those with few in ascending order of
    /// their rounds, and those that are not drawn in vectors. Returns where the second and the
    /// third kind begin. If all have more than [`MOST`] agents, `rows` are left as they are.
    #[inline(never)]
    fn sort(&mut self, rows: &[Row]) -> [usize; 2] {
        /// The key of rows that are not drawn in vectors; those with many agents have 0, those
        /// with few their rounds.
        const OTHERS: u8 = u8::MAX;
        let vectors = 2..=few::WIDEST as u32;
        let limit = |row: &Row| LIMITS[(row.width as usize).min(few::WIDEST + 1)];
        if rows
            .iter()
            .all(|row| row.n > MOST && vectors.contains(&row.width))
        {
            return [rows.len(); 2];
        }
        // how many rows have each key, then where those rows begin
        let mut starts = [0u32; OTHERS as usize + 1];
        let mut bits = 0;
        self.keys.resize(rows.len(), 0);
        for (key, row) in self.keys.iter_mut().zip(rows) {
            // no branch where teams are small: it is hard to predict
            debug_assert!(row.n > 0 && row.width > 0, "{row:?}");
            *key = if row.n <= limit(row) {
                few::rounds(row.n)
            } else if vectors.contains(&row.width) {
                0
            } else {
                OTHERS
            };
            bits |= *key;
            starts[usize::from(*key)] += 1;
        }
        let many = starts[0] as usize;
        let vectors = rows.len() - starts[usize::from(OTHERS)] as usize;
        let mut sum = 0;
        // no key is above its bits
        for start in &mut starts[..=usize::from(bits)] {
            (*start, sum) = (sum, sum + *start);
        }
        self.sorted.resize(rows.len(), Row::default());
        let sorted = self.sorted.as_mut_slice();
        for (&key, row) in self.keys.iter().zip(rows) {
            let place = &mut starts[usize::from(key)];
            sorted[*place as usize] = *row;
            *place += 1;
        }
        [many, vectors]
    }
}

/// Adds one draw of Multinomial(n, weights) to `out`. Weights as in [`draw_rows`]; nothing is drawn
/// for an n of zero or a single category.
pub fn multinomial_add<R: Words>(
    rng: &mut R,
    n: u64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    let (n, width) = (n as i64, weights.len() as i64);
    // up to where the cost (1 + 0.3 K ns each, measured) reaches that of K - 1 binomials
    if n < 1 << 16 && n * (10 + 3 * width) <= 700 * (width - 1) {
        few_of_many(rng, n, weights, scratch, out);
    } else {
        chain_of_one(rng, n, weights, scratch, out);
    }
}

/// Limits compared with one uniform at a time where there are many.
const LANES: usize = 4;

/// Draws agents one by one. Each compares one uniform below the total with the cumulative weights;
/// the error in probability is that of their sums, K - 1 roundings of 2^-53 at most. A category of
/// weight zero is never hit: its limit is that of the category before it, or the total.
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

/// Conditional binomials in the order of the categories.
fn chain_of_one<R: Words>(
    rng: &mut R,
    n: i64,
    weights: &[f64],
    scratch: &mut Scratch,
    out: &mut [i64],
) {
    let tails = &mut scratch.tails;
    tails.clear();
    tails.resize(weights.len() + 1, 0.0);
    for j in (0..weights.len()).rev() {
        tails[j] = tails[j + 1] + weights[j];
    }
    let mut left = n;
    for ((o, &w), tail) in out.iter_mut().zip(weights).zip(tails.windows(2)) {
        if left > 0 {
            let k = binomial(rng, left as u64, w / tail[0], tail[1] / tail[0]) as i64;
            *o += k;
            left -= k;
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

//! Multinomial draws of few agents: agent by agent, eight at once in each of eight rows.
//!
//! An agent is a uniform number x in (0, 1), counted from the top, that falls between two cumulative
//! weights. Of x only the first byte is drawn at first: a 64-bit word of a lane holds eight agents of
//! its row. How many agents share their byte with a cumulative weight is counted (one in 256 for
//! each); these draw a second byte, and an agent whose two bytes are still those of a cumulative
//! weight draws 52 bits more. The error in probability is that of the cumulative weight, a few
//! roundings of 2^-53 of the row's sum, and for small weights 2^-69. A category of weight zero is
//! never hit.

use std::ops::Range;

use crate::columns;
use crate::multinomial::Row;
use crate::rng::{LaneRng, Words};
use crate::simd::{Eight, LANES, Real, Simd, Word};

/// Agents that a word holds.
const AGENTS: usize = 8;

/// Most agents of a row: their number in one place of a word fits into a byte, and there is one byte
/// more than there are [`rounds`].
pub(crate) const MOST: i64 = (AGENTS * 254) as i64;

/// Bits of a word.
const WORD: u64 = 64;

/// Values of a byte.
const VALUES: f64 = 256.0;

/// Scratch memory, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch {
    /// Largest width of eight rows.
    widths: Vec<u32>,
    /// The weights of eight rows side by side, (groups, width).
    weights: Vec<Eight<f64>>,
    ties: Vec<Tied>,
}

/// Second bytes of agents tied with one limit; with this one or another some are tied again.
#[derive(Debug, Clone, Copy)]
struct Tied {
    words: Eight<u64>,
    part: usize,
    round: usize,
}

/// Most categories of a row, and most of those with code of their own.
pub(crate) const WIDEST: usize = 32;
pub(crate) const UNROLLED: usize = 6;

/// Words that hold all agents of a row.
#[inline(always)]
pub(crate) fn rounds(n: i64) -> u8 {
    // `div_ceil` would allow for overflow
    ((n as u32 + (AGENTS as u32 - 1)) >> AGENTS.trailing_zeros()) as u8
}

/// Adds a draw of every row to `out`: at most [`MOST`] agents and [`WIDEST`] categories each, in
/// ascending order of their [`rounds`].
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
        widths,
        weights: aside,
        ties,
    } = scratch;
    arrange(rows, weights, widths, aside);
    let mut aside = aside.as_slice();
    for (group, &width) in rows.chunks(LANES).zip(&*widths) {
        let weights;
        (weights, aside) = aside.split_at(width as usize);
        // one copy of the code for each small width: its loops are unrolled
        match width {
            2 => play::<S, 2>(simd, rng, group, weights, ties, out),
            3 => play::<S, 3>(simd, rng, group, weights, ties, out),
            4 => play::<S, 4>(simd, rng, group, weights, ties, out),
            5 => play::<S, 5>(simd, rng, group, weights, ties, out),
            6 => play::<S, 6>(simd, rng, group, weights, ties, out),
            _ => play::<S, WIDEST>(simd, rng, group, weights, ties, out),
        }
    }
}

/// Arranges the weights of all rows in groups of eight. All before the first draw: a vector that is
/// loaded right after its lanes were stored waits long. Not compiled for vectors, which would
/// scatter.
#[inline(never)]
fn arrange(
    rows: &[Row],
    weights: &[f64],
    widths: &mut Vec<u32>,
    weights_aside: &mut Vec<Eight<f64>>,
) {
    widths.clear();
    let mut first = 0;
    for group in rows.chunks(LANES) {
        let width = columns::width(group);
        widths.push(width);
        let end = first + width as usize;
        weights_aside.resize(end.max(weights_aside.len()), Eight::default());
        // what stands in the lanes of rows that are missing does not matter: nobody is there
        columns::arrange(group, weights, &mut weights_aside[first..end]);
        first = end;
    }
}

/// Up to eight rows on the way, each in its lane; of each array what belongs to the categories that
/// there are, and to the limits between them.
struct Group<const W: usize> {
    /// Agents.
    agents: Eight<u64>,
    /// Cumulative weights in units of 2^-8 of their total.
    limits: [Eight<f64>; W],
    /// How many agents are below each limit by their first bytes.
    below: [Eight<u64>; W],
    /// Bits of the words that hold the second bytes of those who share their first byte with a limit.
    tied: [Eight<u64>; W],
    /// How many agents are in each category.
    drawn: [Eight<i64>; W],
}

/// Draws up to eight rows, of the same number of rounds or nearly so. Their largest width is W, or at
/// most W where that is [`WIDEST`].
#[inline(always)]
fn play<S: Simd, const W: usize>(
    simd: S,
    rng: &mut LaneRng,
    rows: &[Row],
    weights: &[Eight<f64>],
    ties: &mut Vec<Tied>,
    out: &mut [i64],
) {
    let width = if W == WIDEST { weights.len().min(W) } else { W };
    let weights = &weights[..width];
    let mut group = Group {
        agents: Eight([0; LANES]),
        limits: [Eight([0.0; LANES]); W],
        below: [Eight([0; LANES]); W],
        tied: [Eight([0; LANES]); W],
        drawn: [Eight([0; LANES]); W],
    };
    for (n, row) in group.agents.0.iter_mut().zip(rows) {
        *n = row.n as u64;
    }
    // those that are full in every lane, and all
    let full = match rows.first() {
        Some(row) if rows.len() == LANES => u64::from(rounds(row.n)) - 1,
        _ => 0,
    };
    let words = full..rows.last().map_or(0, |row| u64::from(rounds(row.n)));
    let mut most = simd.word(0);
    for part in 0..S::PARTS {
        most = group.draw_first_bytes(simd, rng, part, weights, &words, most);
    }
    let mut rounds = 0;
    while most.any() {
        most = most.minus16_or_zero(simd.word(WORD));
        rounds += 1;
    }
    for part in 0..S::PARTS {
        group.draw_second_bytes(simd, rng, part, width, rounds, ties);
    }
    if !ties.is_empty() {
        let Group {
            limits,
            tied,
            drawn,
            ..
        } = &mut group;
        let (limits, tied) = (&limits[..width - 1], &tied[..width - 1]);
        resolve::<S>(rng, tied, limits, ties, &mut drawn[..width]);
    }
    add(rows, &group.drawn, width, out);
}

impl<const W: usize> Group<W> {
    /// Counts the agents below each limit, and those tied with it; of the latter returns the largest
    /// number so far, in bits as `tied`. `words` are those where some lane is not full, after others
    /// that are full.
    #[inline(always)]
    fn draw_first_bytes<S: Simd>(
        &mut self,
        simd: S,
        rng: &mut LaneRng,
        part: usize,
        weights: &[Eight<f64>],
        words: &Range<u64>,
        mut most: S::Word,
    ) -> S::Word {
        let inner = weights.len() - 1;
        let at = part * S::WIDTH;
        let (zero, nothing) = (simd.word(0), simd.real(0.0));
        let mut total = nothing;
        let mut sums = [nothing; W];
        for (sum, weights) in sums.iter_mut().zip(weights) {
            total = total + simd.load(&weights.0[at..]);
            *sum = total;
        }
        let scale = simd.real(VALUES) / total;
        let mut first = [zero; W];
        for j in 0..inner {
            // beyond the last agent where nothing follows, which the product may round away from
            let limit = S::Real::select(sums[j].lt(total), sums[j] * scale, simd.real(VALUES));
            limit.store(&mut self.limits[j].0[at..]);
            first[j] = byte(limit).1.spread8();
        }
        let first = &first[..inner];
        let (mut above, mut equal) = ([zero; W], [zero; W]);
        let (above, equal) = (&mut above[..inner], &mut equal[..inner]);
        let mut generator = rng.part(simd, part);
        for _ in 0..words.start {
            generator.words().compare8(first, above, equal);
        }
        let agents = simd.load_words(&self.agents.0[at..]);
        let full = simd.word(words.start * AGENTS as u64);
        let mut left = agents.minus(full).shl::<3>();
        for _ in words.clone() {
            let x = generator.words().min8(smallest_from(simd, left));
            left = left.minus16_or_zero(simd.word(WORD));
            x.compare8(first, above, equal);
        }
        rng.put_back(simd, part, generator);
        let missing = simd.word(words.end * AGENTS as u64).minus(agents);
        for j in 0..inner {
            above[j].sum_bytes().store(&mut self.below[j].0[at..]);
            // where no agent is stands the smallest byte
            let smallest = simd
                .real(VALUES - 1.0)
                .le(simd.load(&self.limits[j].0[at..]));
            let missing = S::Real::select(smallest, missing.to_real(), nothing).to_bits();
            let tied = equal[j].sum_bytes().minus(missing).shl::<3>();
            tied.store(&mut self.tied[j].0[at..]);
            most = most.plus(tied.minus16_or_zero(most));
        }
        most
    }

    /// Decides on the agents that are tied with a limit, in so many words for each, and fills `drawn`;
    /// those that are tied again are left to `ties` and, until then, above the limit.
    #[inline(always)]
    fn draw_second_bytes<S: Simd>(
        &mut self,
        simd: S,
        rng: &mut LaneRng,
        part: usize,
        width: usize,
        rounds: usize,
        ties: &mut Vec<Tied>,
    ) {
        let inner = width - 1;
        let at = part * S::WIDTH;
        let (zero, ones) = (simd.word(0), simd.word(u64::MAX));
        let mut second = [zero; W];
        let mut left = [zero; W];
        let mut same = [simd.real(0.0).lt(simd.real(0.0)); W];
        let mut before = simd.real(-1.0);
        for j in 0..inner {
            let limit = simd.load(&self.limits[j].0[at..]);
            let whole = byte(limit).0;
            second[j] = byte((limit - whole) * VALUES).1.spread8();
            left[j] = simd.load_words(&self.tied[j].0[at..]);
            same[j] = whole.le(before);
            before = whole;
        }
        let mut above = [zero; W];
        let mut generator = rng.part(simd, part);
        for round in 0..rounds {
            let mut words = [Eight([0; LANES]); W];
            let (mut word, mut again) = (zero, zero);
            for j in 0..inner {
                // limits with the same first byte are tied with the same agents
                let fresh = generator.words().to_real();
                word = S::Real::select(same[j], word.to_real(), fresh).to_bits();
                word.store(&mut words[j].0);
                let x = word.min8(smallest_from(simd, left[j]));
                let mut equal = [zero];
                x.compare8(&[second[j]], &mut above[j..=j], &mut equal);
                again = again | (equal[0] & (ones.shl_by(left[j]) ^ ones));
                left[j] = left[j].minus16_or_zero(simd.word(WORD));
            }
            if again.any() {
                for &words in &words[..inner] {
                    ties.push(Tied { words, part, round });
                }
            }
        }
        rng.put_back(simd, part, generator);
        let mut before = zero;
        for (j, above) in above.iter().enumerate().take(inner) {
            let below = simd.load_words(&self.below[j].0[at..]);
            let below = below.plus(above.sum_bytes());
            below.minus(before).store_signed(&mut self.drawn[j].0[at..]);
            before = below;
        }
        let others = simd.load_words(&self.agents.0[at..]).minus(before);
        others.store_signed(&mut self.drawn[inner].0[at..]);
    }
}

/// The smallest byte, which is above no limit, in all places from this bit on, and the largest before.
#[inline(always)]
fn smallest_from<S: Simd>(simd: S, bit: S::Word) -> S::Word {
    simd.word(u64::MAX).shl_by(bit) ^ simd.word(0x7F7F_7F7F_7F7F_7F7F)
}

/// Adds what was drawn; not compiled for vectors, which would gather.
#[inline(never)]
fn add<const W: usize>(rows: &[Row], drawn: &[Eight<i64>; W], width: usize, out: &mut [i64]) {
    let width = if W == WIDEST { width } else { W };
    columns::add(rows, &drawn[..width], out);
}

/// The first byte of a limit in [0, 2^8], at most 2^8 - 1: as a number, and in the lowest byte, from
/// 127 down to -128. What is left of the limit is in [0, 1].
#[inline(always)]
fn byte<V: Real>(limit: V) -> (V, V::Bits) {
    const SHIFT: f64 = (1u64 << 52) as f64 + 127.0 + VALUES;
    let whole = limit.floor().min(limit.of(VALUES - 1.0));
    (whole, (limit.of(SHIFT) - whole).to_bits())
}

/// Draws the rest of the agents that are tied twice, each from the generator of its lane.
#[cold]
#[inline(never)]
fn resolve<S: Simd>(
    rng: &mut LaneRng,
    tied: &[Eight<u64>],
    limits: &[Eight<f64>],
    ties: &mut Vec<Tied>,
    drawn: &mut [Eight<i64>],
) {
    let inner = limits.len();
    for words in ties.chunks_exact(inner) {
        let Tied { part, round, .. } = words[0];
        for i in 0..S::WIDTH {
            let lane = part * S::WIDTH + i;
            let whole = |j: usize| byte(limits[j].0[lane]).0;
            let mut j = 0;
            while j < inner {
                // limits with the same first byte
                let mut end = j + 1;
                while end < inner && whole(end) == whole(j) {
                    end += 1;
                }
                let many = (tied[j].0[lane] / 8) as usize;
                for place in 0..AGENTS.min(many.saturating_sub(round * AGENTS)) {
                    let second = (words[j].words.0[i] >> (8 * place)) as u8;
                    let again = |limit: &Eight<f64>| {
                        let rest = (limit.0[lane] - byte(limit.0[lane]).0) * VALUES;
                        let (whole, bits) = byte(rest);
                        (bits as u8 == second).then_some(rest - whole)
                    };
                    if limits[j..end].iter().all(|limit| again(limit).is_none()) {
                        continue;
                    }
                    let x = rng.lane(lane).open_uniform();
                    for (j, limit) in (j..end).zip(&limits[j..end]) {
                        if again(limit).is_some_and(|rest| x < rest) {
                            drawn[j].0[lane] += 1;
                            drawn[j + 1].0[lane] -= 1;
                        }
                    }
                }
                j = end;
            }
        }
    }
    ties.clear();
}

//! Multinomial draws of few agents: agent by agent, eight at once in each of eight rows.
//!
//! An agent is a uniform number x in (0, 1), counted from the top, that falls between two cumulative
//! weights. Of x only the first byte is drawn at first: a 64-bit word of a lane holds eight agents of
//! its row. How many agents share their byte with a cumulative weight is counted (one in 256 for
//! each); these draw a second byte, and an agent whose two bytes are still those of a cumulative
//! weight draws 52 bits more. The error in probability is that of the cumulative weight, a few
//! roundings of 2^-53 of the row's sum, and for small weights 2^-69. A category of weight zero is
//! never hit.

use crate::columns;
use crate::multinomial::Row;
use crate::rng::{LaneRng, Words};
use crate::simd::{Eight, LANES, Real, Simd, Word};

/// Agents that a word holds.
const AGENTS: usize = 8;

/// Most agents of a row: their number in one place of a word fits into a byte.
pub(crate) const MOST: i64 = (AGENTS * 254) as i64;

/// Values of a byte.
const VALUES: f64 = 256.0;

/// Scratch memory, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch {
    /// Largest width of eight rows, and whether all have it.
    widths: Vec<(u32, bool)>,
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
    (n as u32).div_ceil(AGENTS as u32) as u8
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
    for (group, &(width, alike)) in rows.chunks(LANES).zip(&*widths) {
        let weights;
        (weights, aside) = aside.split_at(width as usize);
        // one copy of the code for each small width: its loops are unrolled
        match width {
            2 => play::<S, 2>(simd, rng, group, alike, weights, ties, out),
            3 => play::<S, 3>(simd, rng, group, alike, weights, ties, out),
            4 => play::<S, 4>(simd, rng, group, alike, weights, ties, out),
            5 => play::<S, 5>(simd, rng, group, alike, weights, ties, out),
            6 => play::<S, 6>(simd, rng, group, alike, weights, ties, out),
            _ => play::<S, WIDEST>(simd, rng, group, alike, weights, ties, out),
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
    widths: &mut Vec<(u32, bool)>,
    weights_aside: &mut Vec<Eight<f64>>,
) {
    weights_aside.clear();
    widths.clear();
    for group in rows.chunks(LANES) {
        let (width, alike) = columns::width(group);
        widths.push((width, alike));
        let first = weights_aside.len();
        weights_aside.resize(first + width as usize, Eight([1.0; LANES]));
        columns::arrange(group, alike, weights, &mut weights_aside[first..]);
    }
}

/// Draws up to eight rows, of the same number of rounds or nearly so.
/// Their largest width is W, or at most W where that is [`WIDEST`].
#[inline(always)]
fn play<S: Simd, const W: usize>(
    simd: S,
    rng: &mut LaneRng,
    group: &[Row],
    alike: bool,
    weights: &[Eight<f64>],
    ties: &mut Vec<Tied>,
    out: &mut [i64],
) {
    let width = if W == WIDEST { weights.len().min(W) } else { W };
    let inner = width - 1;
    let weights = &weights[..width];
    let mut counts = Eight([0; LANES]);
    for (count, row) in counts.0.iter_mut().zip(group) {
        *count = row.n as u64;
    }
    // words in all, and those that are full in every lane
    let words = group.last().map_or(0, |row| u64::from(rounds(row.n)));
    let full = match group.first() {
        Some(row) if group.len() == LANES => u64::from(rounds(row.n)) - 1,
        _ => 0,
    };
    let ones = simd.word(u64::MAX);
    let no_agent = simd.word(0x7F7F_7F7F_7F7F_7F7F);
    // cumulative weights in units of 2^-8 of their total; how many agents are below; and bits of the
    // words that hold the second bytes of those with the same first one
    let mut limits = [Eight([0.0; LANES]); W];
    let mut below = [Eight([0; LANES]); W];
    let mut tied = [Eight([0; LANES]); W];
    let mut most = simd.word(0);
    for part in 0..S::PARTS {
        let at = part * S::WIDTH;
        let zero = simd.word(0);
        let mut total = simd.real(0.0);
        let mut sums = [total; W];
        for j in 0..width {
            total = total + simd.load(&weights[j].0[at..]);
            sums[j] = total;
        }
        let scale = simd.real(VALUES) / total;
        let mut first = [zero; W];
        for j in 0..inner {
            // beyond the last agent where nothing follows, which the product may round away from
            let limit = S::Real::select(sums[j].lt(total), sums[j] * scale, simd.real(VALUES));
            limit.store(&mut limits[j].0[at..]);
            first[j] = byte(limit).1.spread8();
        }
        let mut generator = rng.part(simd, part);
        let (mut above, mut equal) = ([zero; W], [zero; W]);
        let (above, equal) = (&mut above[..inner], &mut equal[..inner]);
        for _ in 0..full {
            generator.words().compare8(&first[..inner], above, equal);
        }
        let agents = simd.load_words(&counts.0[at..]);
        let mut left = agents.minus(simd.word(full * AGENTS as u64)).shl::<3>();
        for _ in full..words {
            // the smallest value where there is no agent: above no limit
            let x = generator.words().min8(ones.shl_by(left) ^ no_agent);
            left = left.minus16_or_zero(simd.word(64));
            x.compare8(&first[..inner], above, equal);
        }
        rng.put_back(simd, part, generator);
        let missing = simd.word(words * AGENTS as u64).minus(agents).to_real();
        for j in 0..inner {
            above[j].sum_bytes().store(&mut below[j].0[at..]);
            let last = simd.real(VALUES - 1.0).le(simd.load(&limits[j].0[at..]));
            let others = S::Real::select(last, missing, simd.real(0.0)).to_bits();
            let tied_bits = equal[j].sum_bytes().minus(others).shl::<3>();
            tied_bits.store(&mut tied[j].0[at..]);
            most = most.plus(tied_bits.minus16_or_zero(most));
        }
    }
    let mut rounds = 0;
    while most.any() {
        most = most.minus16_or_zero(simd.word(64));
        rounds += 1;
    }
    let mut drawn = [Eight([0; LANES]); W];
    for part in 0..S::PARTS {
        let at = part * S::WIDTH;
        let zero = simd.word(0);
        let mut second = [zero; W];
        let mut same = [simd.real(0.0).lt(simd.real(0.0)); W];
        let mut before = simd.real(-1.0);
        for j in 0..inner {
            let limit = simd.load(&limits[j].0[at..]);
            let whole = byte(limit).0;
            second[j] = byte((limit - whole) * VALUES).1.spread8();
            same[j] = whole.le(before);
            before = whole;
        }
        let mut generator = rng.part(simd, part);
        let mut left = [zero; W];
        for j in 0..inner {
            left[j] = simd.load_words(&tied[j].0[at..]);
        }
        let mut above = [zero; W];
        for round in 0..rounds {
            let mut again = zero;
            let mut words = [Eight([0; LANES]); W];
            let mut word = zero;
            for j in 0..inner {
                // limits with the same first byte are tied with the same agents
                let fresh = generator.words().to_real();
                word = S::Real::select(same[j], word.to_real(), fresh).to_bits();
                word.store(&mut words[j].0);
                let none = ones.shl_by(left[j]);
                left[j] = left[j].minus16_or_zero(simd.word(64));
                let mut equal = [zero];
                word.min8(none ^ no_agent)
                    .compare8(&[second[j]], &mut above[j..=j], &mut equal);
                again = again | (equal[0] & (none ^ ones));
            }
            if again.any() {
                for &words in &words[..inner] {
                    ties.push(Tied { words, part, round });
                }
            }
        }
        rng.put_back(simd, part, generator);
        let mut before = zero;
        for j in 0..inner {
            let below = simd
                .load_words(&below[j].0[at..])
                .plus(above[j].sum_bytes());
            below.minus(before).store_signed(&mut drawn[j].0[at..]);
            before = below;
        }
        let agents = simd.load_words(&counts.0[at..]);
        agents.minus(before).store_signed(&mut drawn[inner].0[at..]);
    }
    if !ties.is_empty() {
        resolve::<S>(
            rng,
            &tied[..inner],
            &limits[..inner],
            ties,
            &mut drawn[..width],
        );
    }
    add(group, alike, &drawn, width, out);
}

/// Adds what was drawn; not compiled for vectors, which would gather.
#[inline(never)]
fn add<const W: usize>(
    group: &[Row],
    alike: bool,
    drawn: &[Eight<i64>; W],
    width: usize,
    out: &mut [i64],
) {
    let width = if W == WIDEST { width } else { W };
    columns::add(group, alike, &drawn[..width], out);
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

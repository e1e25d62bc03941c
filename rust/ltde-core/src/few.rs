//! Multinomial draws of few agents: agent by agent, four at once in each of eight rows.
//!
//! An agent is a uniform number x in (0, 1) that falls between two cumulative weights. Of x only
//! the first 16 bits are drawn at first: a 64-bit word of a lane holds four agents of its row. An
//! agent whose 16 bits are those of a cumulative weight (one in 2^16 for each) draws 52 bits more.
//! The error in probability is that of the cumulative weight, a few roundings of 2^-53 of the row's
//! sum, and for small weights 2^-69. A category of weight zero is never hit.

use crate::columns;
use crate::multinomial::Row;
use crate::rng::{LaneRng, Words};
use crate::simd::{Eight, LANES, Real, Simd, Word};

/// Agents that a word holds.
const AGENTS: usize = 4;

/// Most agents of a row: their number in one place of a word fits into a byte.
pub(crate) const MOST: i64 = (AGENTS * 254) as i64;

/// Values of 16 bits.
const VALUES: f64 = 65_536.0;

/// Scratch memory, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch {
    /// Largest width of eight rows, and whether all have it.
    widths: Vec<(u32, bool)>,
    /// The weights of eight rows side by side, (groups, width).
    weights: Vec<Eight<f64>>,
    ties: Vec<Tied>,
}

/// A word with a tied agent.
#[derive(Debug, Clone, Copy)]
struct Tied {
    words: Eight<u64>,
    part: usize,
    round: usize,
}

/// Most categories of a row.
pub(crate) const WIDEST: usize = 32;

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
        let width = columns::width(group);
        let alike = columns::all_have(group, width);
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
    let rounds = group.last().map_or(0, |row| usize::from(rounds(row.n)));
    // cumulative weights in units of 2^-16 of their total, and how many agents are in each category
    let mut limits = [Eight([0.0; LANES]); W];
    let mut drawn = [Eight([0; LANES]); W];
    for part in 0..S::PARTS {
        let at = part * S::WIDTH;
        let mut total = simd.real(0.0);
        let mut sums = [total; W];
        for j in 0..width {
            total = total + simd.load(&weights[j].0[at..]);
            sums[j] = total;
        }
        let scale = simd.real(VALUES) / total;
        let mut first_bits = [simd.word(0); W];
        for j in 0..inner {
            // beyond the last agent where nothing follows, which the product may round away from
            let limit = S::Real::select(sums[j].lt(total), sums[j] * scale, simd.real(VALUES));
            limit.store(&mut limits[j].0[at..]);
            first_bits[j] = whole_part(limit).1.spread16();
        }
        let mut generator = rng.part(simd, part);
        let mut tally = [simd.word(0); W];
        let agents = simd.load_words(&counts.0[at..]);
        // agents of this place and of later rounds: positive where there is one
        let mut left = agents.spread16().minus16(simd.word(0x0003_0002_0001_0000));
        for round in 0..rounds {
            let none = simd.word(0x0001_0001_0001_0001).above16(left);
            left = left.minus16(simd.word(0x0004_0004_0004_0004));
            // the largest value where there is no agent: below no limit
            let x = generator
                .words()
                .max16(none ^ simd.word(0x8000_8000_8000_8000));
            if x.count_below16(&first_bits[..inner], none, &mut tally[..inner]) {
                let mut words = Eight([0; LANES]);
                x.store(&mut words.0);
                ties.push(Tied { words, part, round });
            }
        }
        rng.put_back(simd, part, generator);
        let mut before = simd.word(0);
        for j in 0..inner {
            let below = tally[j].sum_bytes();
            below.minus(before).store_signed(&mut drawn[j].0[at..]);
            before = below;
        }
        agents.minus(before).store_signed(&mut drawn[inner].0[at..]);
    }
    if !ties.is_empty() {
        resolve::<S>(rng, &counts, &limits[..inner], ties, &mut drawn[..width]);
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

/// The first 16 bits of a limit in [0, 2^16], at most 2^16 - 1: as a number, and as a signed
/// 16-bit number in the lowest bits, 2^15 lower. What is left of the limit is in [0, 1].
#[inline(always)]
fn whole_part<V: Real>(limit: V) -> (V, V::Bits) {
    const SHIFT: f64 = (1u64 << 52) as f64 + 32_768.0;
    let whole = limit.floor().min(limit.of(VALUES - 1.0));
    (whole, (whole + SHIFT).to_bits())
}

/// Draws the rest of the tied agents, each from the generator of its lane.
#[cold]
#[inline(never)]
fn resolve<S: Simd>(
    rng: &mut LaneRng,
    counts: &Eight<u64>,
    limits: &[Eight<f64>],
    ties: &mut Vec<Tied>,
    drawn: &mut [Eight<i64>],
) {
    for Tied { words, part, round } in ties.drain(..) {
        for i in 0..S::WIDTH {
            let lane = part * S::WIDTH + i;
            for place in 0..AGENTS {
                if (round * AGENTS + place) as u64 >= counts.0[lane] {
                    continue;
                }
                let bits = (words.0[i] >> (16 * place)) as u16;
                let tied = |limit: &Eight<f64>| {
                    let (whole, first_bits) = whole_part(limit.0[lane]);
                    (first_bits as u16 == bits).then_some(limit.0[lane] - whole)
                };
                if limits.iter().all(|limit| tied(limit).is_none()) {
                    continue;
                }
                let x = rng.lane(lane).open_uniform();
                for (j, limit) in limits.iter().enumerate() {
                    if tied(limit).is_some_and(|rest| x < rest) {
                        drawn[j].0[lane] += 1;
                        drawn[j + 1].0[lane] -= 1;
                    }
                }
            }
        }
    }
}

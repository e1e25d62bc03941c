//! Eight rows side by side, each in its lane: their weights on the way in, their counts on the way
//! out.
//!
//! Not for functions that are compiled for vectors, where these would become scatters and gathers.

use crate::multinomial::Row;
use crate::simd::{Eight, LANES};

/// The largest number of categories of some rows, 2 at least, and whether all have as many.
#[inline(always)]
pub(crate) fn width(rows: &[Row]) -> (u32, bool) {
    let (mut all, mut any) = (u32::MAX, 0);
    for row in rows {
        all &= row.width;
        any |= row.width;
    }
    if all == any && any >= 2 {
        return (any, true);
    }
    let most = rows.iter().fold(2, |most, row| most.max(row.width));
    (most, false)
}

/// Writes the weights of up to eight rows, category by category; missing weights are zero. `alike`
/// says that all have as many as there are columns.
#[inline(always)]
pub(crate) fn arrange(group: &[Row], alike: bool, weights: &[f64], columns: &mut [Eight<f64>]) {
    // one copy of the code for each small width: its loops are unrolled
    match (columns.len(), alike) {
        (2, true) => arrange_all_of::<2>(group, weights, columns),
        (3, true) => arrange_all_of::<3>(group, weights, columns),
        (4, true) => arrange_all_of::<4>(group, weights, columns),
        (5, true) => arrange_all_of::<5>(group, weights, columns),
        (6, true) => arrange_all_of::<6>(group, weights, columns),
        _ => {
            for (lane, row) in group.iter().enumerate() {
                let weights = &weights[row.weights..][..row.width as usize];
                for (k, column) in columns.iter_mut().enumerate() {
                    column.0[lane % LANES] = weights.get(k).copied().unwrap_or(0.0);
                }
            }
        }
    }
}

#[inline(always)]
fn arrange_all_of<const W: usize>(group: &[Row], weights: &[f64], columns: &mut [Eight<f64>]) {
    let columns = &mut columns[..W];
    for (lane, row) in group.iter().enumerate() {
        let weights = &weights[row.weights..][..W];
        for (column, &w) in columns.iter_mut().zip(weights) {
            column.0[lane % LANES] = w;
        }
    }
}

/// Adds the counts of up to eight rows, category by category, to where each belongs; `alike` as for
/// [`arrange`].
#[inline(always)]
pub(crate) fn add(group: &[Row], alike: bool, counts: &[Eight<i64>], out: &mut [i64]) {
    match (counts.len(), alike) {
        (2, true) => add_all_of::<2>(group, counts, out),
        (3, true) => add_all_of::<3>(group, counts, out),
        (4, true) => add_all_of::<4>(group, counts, out),
        (5, true) => add_all_of::<5>(group, counts, out),
        (6, true) => add_all_of::<6>(group, counts, out),
        _ => {
            for (lane, row) in group.iter().enumerate() {
                let out = &mut out[row.out..][..row.width as usize];
                for (o, counts) in out.iter_mut().zip(counts) {
                    *o += counts.0[lane % LANES];
                }
            }
        }
    }
}

#[inline(always)]
fn add_all_of<const W: usize>(group: &[Row], counts: &[Eight<i64>], out: &mut [i64]) {
    let counts = &counts[..W];
    for (lane, row) in group.iter().enumerate() {
        let out = &mut out[row.out..][..W];
        for (o, counts) in out.iter_mut().zip(counts) {
            *o += counts.0[lane % LANES];
        }
    }
}

//! Eight rows side by side, each in its lane: their weights on the way in, their counts on the way
//! out.
//!
//! Not for functions that are compiled for vectors, where these would become scatters and gathers.

use crate::multinomial::Row;
use crate::simd::{Eight, LANES};

/// The largest number of categories of some rows, 2 at least.
#[inline(always)]
pub(crate) fn width(rows: &[Row]) -> u32 {
    rows.iter().fold(2, |most, row| most.max(row.width))
}

/// Writes the weights of up to eight rows, category by category, of no more categories than there
/// are columns; missing weights are zero.
#[inline(always)]
pub(crate) fn arrange(group: &[Row], weights: &[f64], columns: &mut [Eight<f64>]) {
    // one copy of the code for each small width: its loops are unrolled
    match columns.len() {
        2 => arrange_all_of::<2>(group, weights, columns),
        3 => arrange_all_of::<3>(group, weights, columns),
        4 => arrange_all_of::<4>(group, weights, columns),
        5 => arrange_all_of::<5>(group, weights, columns),
        6 => arrange_all_of::<6>(group, weights, columns),
        _ => {
            for (lane, row) in group.iter().enumerate() {
                arrange_some(lane % LANES, row, weights, columns);
            }
        }
    }
}

#[inline(always)]
fn arrange_all_of<const W: usize>(group: &[Row], weights: &[f64], columns: &mut [Eight<f64>]) {
    let columns = &mut columns[..W];
    for (lane, row) in group.iter().enumerate() {
        let lane = lane % LANES;
        if row.width as usize == W {
            let weights = &weights[row.weights..][..W];
            for (column, &w) in columns.iter_mut().zip(weights) {
                column.0[lane] = w;
            }
        } else {
            arrange_some(lane, row, weights, columns);
        }
    }
}

#[inline(always)]
fn arrange_some(lane: usize, row: &Row, weights: &[f64], columns: &mut [Eight<f64>]) {
    let (columns, missing) = columns.split_at_mut(row.width as usize);
    let weights = &weights[row.weights..][..columns.len()];
    for (column, &w) in columns.iter_mut().zip(weights) {
        column.0[lane] = w;
    }
    for column in missing {
        column.0[lane] = 0.0;
    }
}

/// Adds the counts of up to eight rows, category by category, to where each belongs.
#[inline(always)]
pub(crate) fn add(group: &[Row], counts: &[Eight<i64>], out: &mut [i64]) {
    match counts.len() {
        2 => add_all_of::<2>(group, counts, out),
        3 => add_all_of::<3>(group, counts, out),
        4 => add_all_of::<4>(group, counts, out),
        5 => add_all_of::<5>(group, counts, out),
        6 => add_all_of::<6>(group, counts, out),
        _ => {
            for (lane, row) in group.iter().enumerate() {
                add_some(lane % LANES, row, counts, out);
            }
        }
    }
}

#[inline(always)]
fn add_all_of<const W: usize>(group: &[Row], counts: &[Eight<i64>], out: &mut [i64]) {
    let counts = &counts[..W];
    for (lane, row) in group.iter().enumerate() {
        let lane = lane % LANES;
        if row.width as usize == W {
            let out = &mut out[row.out..][..W];
            for (o, counts) in out.iter_mut().zip(counts) {
                *o += counts.0[lane];
            }
        } else {
            add_some(lane, row, counts, out);
        }
    }
}

#[inline(always)]
fn add_some(lane: usize, row: &Row, counts: &[Eight<i64>], out: &mut [i64]) {
    let out = &mut out[row.out..][..row.width as usize];
    for (o, counts) in out.iter_mut().zip(counts) {
        *o += counts.0[lane];
    }
}

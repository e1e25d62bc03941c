//! The model of `workload.slip` as a C function in Rust. `scaling.py` compiles it by
//! `rustc -O --edition 2024 --crate-type cdylib` and compares it with numba's; the contract of the
//! signature stands in rust/ltde-py/src/local_function.rs.

use std::slice;

const N_ACTIONS: usize = 5;

/// Moves to neighbour `a % |N_s|` with probability 0.8, else anywhere in the neighbourhood.
///
/// # Safety
/// `prob` must point to `N_ACTIONS * degree` numbers that nothing else reads or writes meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn local(
    _state: i64,
    degree: i64,
    _mu: *const f64,
    _node: *const f64,
    _edge: *const f64,
    prob: *mut f64,
    _reward: *mut f64,
) -> i32 {
    let degree = degree as usize;
    // SAFETY: the caller promises it
    let prob = unsafe { slice::from_raw_parts_mut(prob, N_ACTIONS * degree) };
    for (a, row) in prob.chunks_exact_mut(degree).enumerate() {
        row.fill(0.2 / degree as f64);
        row[a % degree] += 0.8;
    }
    0
}

//! The call of the compiled local function: the only `unsafe` of this crate.
//!
//! # Contract
//! `address` is that of a function with the C signature
//!
//! ```c
//! int32_t f(int64_t state, int64_t degree, const double *mu, const double *node,
//!           const double *edge, double *prob, double *reward);
//! ```
//!
//! which
//! - reads `degree` numbers of mu, P of node, degree * Q of edge, and writes at most A * degree
//!   of prob and A of reward, where A, P, Q are those it was compiled for (the wrapper in
//!   `ltde/model.py` compiles the user's function with bounds checks and with read-only inputs);
//! - may be called from any thread at the same time, without the GIL, and lets no exception
//!   escape: it returns 0, or 1 if the user's function raised;
//! - stays valid as long as `owner`, the Python object that holds the machine code, is alive.

use ltde_core::model::{LocalFunction, Raised};
use pyo3::prelude::*;

type Address =
    unsafe extern "C" fn(i64, i64, *const f64, *const f64, *const f64, *mut f64, *mut f64) -> i32;

/// A compiled local function and the Python object that keeps its code alive.
pub(crate) struct CompiledFunction {
    call: Address,
    _owner: Py<PyAny>,
}

impl CompiledFunction {
    /// Wraps the function at `address`, which must satisfy the contract of this file.
    #[allow(unsafe_code)]
    pub(crate) fn new(address: usize, owner: Py<PyAny>) -> Option<Self> {
        if address == 0 {
            return None;
        }
        // SAFETY: the caller passes the address of a function with the signature above
        // (contract of this file); a non-null data pointer of that size is a function pointer.
        let call = unsafe { std::mem::transmute::<usize, Address>(address) };
        Some(CompiledFunction {
            call,
            _owner: owner,
        })
    }
}

impl LocalFunction for CompiledFunction {
    #[inline]
    #[allow(unsafe_code)]
    fn evaluate(
        &self,
        state: usize,
        mu: &[f64],
        node: &[f64],
        edge: &[f64],
        prob: &mut [f64],
        reward: &mut [f64],
    ) -> Result<(), Raised> {
        // SAFETY: the slices live through the call and have the lengths of the contract: the
        // core passes mu (K,), node (P,), edge (K Q), prob (A K), reward (A,) of one state.
        let status = unsafe {
            (self.call)(
                state as i64,
                mu.len() as i64,
                mu.as_ptr(),
                node.as_ptr(),
                edge.as_ptr(),
                prob.as_mut_ptr(),
                reward.as_mut_ptr(),
            )
        };
        if status == 0 { Ok(()) } else { Err(Raised) }
    }
}

//! The samplers by themselves: what the statistical tests and the benchmarks call.

use ltde_core::binomial::MAX_COUNT;
use ltde_core::multinomial::{Row, Scratch, draw_rows, normalize};
use ltde_core::rng::{BLOCK, Purpose, Seed};
use numpy::{PyReadonlyArray1, PyReadwriteArray1, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

use crate::leave::leave;

fn check_count(n: u64) -> PyResult<()> {
    if n > MAX_COUNT {
        return Err(PyOverflowError::new_err(format!(
            "n: at most 2^53, got {n}"
        )));
    }
    Ok(())
}

/// Fills out (size,) with draws from Binomial(n, p), given q = 1 - p; the p and q of the caller
/// need not be rounded consistently.
#[pyfunction]
pub(crate) fn binomial(
    py: Python<'_>,
    n: u64,
    p: f64,
    q: f64,
    seed: u64,
    mut out: PyReadwriteArray1<'_, i64>,
) -> PyResult<()> {
    check_count(n)?;
    if !(p >= 0.0 && q >= 0.0 && (p + q - 1.0).abs() <= 1e-9) {
        return Err(PyValueError::new_err(format!(
            "p, q: expected probabilities with p + q = 1, got {p} and {q}"
        )));
    }
    let out = out.as_slice_mut()?;
    leave(py, || {
        let mut rng = Seed(seed).stream(Purpose::Sample, 0, 0, 0);
        for k in out {
            *k = ltde_core::binomial::binomial(&mut rng, n, p, q) as i64;
        }
        Ok(())
    })
}

/// Fills out (size, K), zero on arrival, with draws from Multinomial(n, weights / sum).
#[pyfunction]
pub(crate) fn multinomial(
    py: Python<'_>,
    n: u64,
    weights: PyReadonlyArray1<'_, f64>,
    seed: u64,
    mut out: PyReadwriteArray2<'_, i64>,
) -> PyResult<()> {
    check_count(n)?;
    if out.shape()[1] != weights.shape()[0] {
        return Err(PyValueError::new_err(format!(
            "out: expected {} columns, got {}",
            weights.shape()[0],
            out.shape()[1]
        )));
    }
    let mut weights = weights.as_slice()?.to_vec();
    let out = out.as_slice_mut()?;
    leave(py, || {
        normalize(&mut weights)?;
        if n == 0 {
            return Ok(());
        }
        let mut rng = Seed(seed).block(Purpose::Sample, 0, 0, 0);
        let mut scratch = Scratch::default();
        let width = weights.len();
        let rows: Vec<Row> = (0..BLOCK)
            .map(|i| Row {
                n: n as i64,
                weights: 0,
                out: i * width,
                width: width as u32,
            })
            .collect();
        for out in out.chunks_mut(BLOCK * width) {
            draw_rows(
                &mut rng,
                &rows[..out.len() / width],
                &weights,
                &mut scratch,
                out,
            );
        }
        Ok(())
    })
}

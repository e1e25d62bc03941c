//! The hat under which the rejection draws: one shape for all laws, put together of strips.
//!
//! In units of the law's standard deviation, a little [`WIDER`], and seen from (n + 1) p, binomial
//! laws of mean 6 and more lie under a normal curve, a little [`HIGHER`]; beyond its last strip under
//! z^-5. Each half of the curve is covered by [`STRIPS`] of one area (J. H. Ahrens, A one-table
//! method for sampling from continuous and discrete distributions, Computing 54, 1995), so a strip
//! is a few bits of a word, and a place in it a product. The squeeze is a constant for each strip,
//! less what skewness and steps may take, which falls like 1 / sd.
//!
//! That laws lie under the hat and above the squeeze is checked by the tests (`rejection.rs`).

/// Strips of one half, the last of them its tail.
pub const MANY: usize = 128;

/// What is added to the standard deviation.
pub const WIDER: f64 = 0.65;

/// The hat of a law is 1 + `HIGHER` / scale times that of the table.
pub const HIGHER: f64 = 0.22;

/// What the hat is above the curve and the squeeze below it: room for rounding.
const ROOM: f64 = 1.0005;

/// Area of a strip: that with which the last one ends where the tail, which is as large, begins.
pub const AREA: f64 = ROOM * 0.009_988_281_030_393_276;

/// Of each strip its left end, its width, and `level` and `slope` of the squeeze, which accepts v up
/// to level - slope / scale. The tail begins at its left end and is never accepted by it.
pub static STRIPS: [f64; 4 * MANY] = {
    let mut strips = [0.0; 4 * MANY];
    let mut left = 0.0;
    let mut i = 0;
    while i < 4 * (MANY - 1) {
        let right = round(left + AREA / (ROOM * bell(left)));
        let width = right - left;
        strips[i] = left;
        strips[i + 1] = width;
        strips[i + 2] = bell(right) * width / (AREA * ROOM);
        strips[i + 3] = 0.24 + right * (1.13 + 0.51 * right);
        left = right;
        i += 4;
    }
    strips[i] = left;
    strips[i + 2] = -1.0;
    strips
};

/// exp(-z^2 / 2) for |z| < 4.
const fn bell(z: f64) -> f64 {
    // a 16th of the exponent by Taylor's series
    let x = -z * z / 32.0;
    let (mut sum, mut term, mut i) = (1.0, 1.0, 1);
    while i < 20 {
        term *= x / i as f64;
        sum += term;
        i += 1;
    }
    let fourth = (sum * sum) * (sum * sum);
    (fourth * fourth) * (fourth * fourth)
}

/// To so few bits that strips meet without gap or overlap.
const fn round(x: f64) -> f64 {
    const UNIT: f64 = (1u64 << 40) as f64;
    (x * UNIT + 0.5) as u64 as f64 / UNIT
}

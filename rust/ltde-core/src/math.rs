//! Elementary functions with the same bits on every machine and in every lane: only + - * / and
//! integer arithmetic on the bits, no call of the platform's mathematical library.
//!
//! Each is written once, for a number or a vector of them ([`Real`]).

use crate::simd::{Mask, Real, Word};

const LN2_HIGH: f64 = 6.931_471_803_691_238e-1; // 33 bits, times an exponent exact
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Natural logarithm of a positive normal number; relative error below 4e-16.
#[inline(always)]
pub fn ln<V: Real>(x: V) -> V {
    const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    const ONE: u64 = 1023 << 52;
    let bits = x.to_bits();
    // the exponent e of x = 2^e m, m in [sqrt(1/2), sqrt(2)), plus 1023: never negative
    let biased = bits.plus(bits.of(ONE - SQRT_HALF)).shr::<52>();
    let m = bits.minus(biased.shl::<52>()).plus(bits.of(ONE)).to_real();
    let e = (biased | bits.of(0x4330 << 48)).to_real() - ((1u64 << 52) as f64 + 1023.0);
    let f = m - 1.0;
    let s = f / (m + 1.0);
    let z = s * s;
    // ln(1 + f) = 2 atanh(s) = f + s (z P(z) - f); P by Estrin's scheme: short chains
    let z2 = z * z;
    let z4 = z2 * z2;
    let low = (z * 0.4 + 2.0 / 3.0) + (z * (2.0 / 9.0) + 2.0 / 7.0) * z2;
    let high = (z * (2.0 / 13.0) + 2.0 / 11.0) + (z * (2.0 / 17.0) + 2.0 / 15.0) * z2;
    let p = low + (high + z4 * (2.0 / 19.0)) * z4;
    e * LN2_HIGH + ((f + s * (z * p - f)) + e * LN2_LOW)
}

/// ln(1 + x) for x > -1.
#[inline(always)]
pub fn ln_1p<V: Real>(x: V) -> V {
    let y = x + 1.0;
    ln(y) + (x - (y - 1.0)) / y
}

/// exp(x) for x in [-700, 700]; anything beyond.
#[inline(always)]
pub fn exp<V: Real>(x: V) -> V {
    // the nearest integer k, which then stands in the lowest bits
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let k = shifted - SHIFT;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // Taylor's series to degree 13 by Estrin's scheme; |r| <= ln(2) / 2
    const C: [f64; 14] = {
        let mut c = [1.0; 14];
        let mut i = 1;
        while i < 14 {
            c[i] = c[i - 1] / i as f64;
            i += 1;
        }
        c
    };
    let r2 = r * r;
    let r4 = r2 * r2;
    let p0 = (r * C[1] + C[0]) + (r * C[3] + C[2]) * r2;
    let p4 = (r * C[5] + C[4]) + (r * C[7] + C[6]) * r2;
    let p8 = (r * C[9] + C[8]) + (r * C[11] + C[10]) * r2;
    let p = (p0 + p4 * r4) + (p8 + (r * C[13] + C[12]) * r4) * (r4 * r4);
    p.to_bits().plus(shifted.to_bits().shl::<52>()).to_real()
}

/// 1.5 * 2^52: a sum with it has no fractional bits.
const SHIFT: f64 = 6_755_399_441_055_744.0;

/// exp(x) for x <= 0; 0 below -700.
#[inline(always)]
pub fn exp_nonpositive(x: f64) -> f64 {
    // no branch: nothing here stops the compiler from taking several x at once
    let keep = u64::from(x >= -700.0).wrapping_neg();
    f64::from_bits(exp(x).to_bits() & keep)
}

/// The tail of Stirling's formula: ln k! - [ln(2 pi)/2 + (k + 1/2) ln(k + 1) - (k + 1)].
#[inline(always)]
pub fn stirling_tail<V: Real>(k: V) -> V {
    const TABLE: [f64; 16] = [
        0.081_061_466_795_327_26,
        0.041_340_695_955_409_29,
        0.027_677_925_684_998_34,
        0.020_790_672_103_765_09,
        0.016_644_691_189_821_19,
        0.013_876_128_823_070_75,
        0.011_896_709_945_891_77,
        0.010_411_265_261_972_09,
        0.009_255_462_182_712_733,
        0.008_330_563_433_362_87,
        0.007_573_675_487_951_841,
        0.006_942_840_107_209_53,
        0.006_408_994_188_004_207,
        0.005_951_370_112_758_848,
        0.005_554_733_551_962_801,
        0.005_207_655_919_609_64,
    ];
    let x = k.of(1.0) / (k + 1.0);
    let x2 = x * x;
    let series =
        x * (-(x2 * (-(x2 * (-(x2 * (1.0 / 1680.0)) + 1.0 / 1260.0)) + 1.0 / 360.0)) + 1.0 / 12.0);
    let small = k.lt(k.of(TABLE.len() as f64));
    if small.any() {
        let table = k.patch(small, |k| TABLE.get(k as usize).copied().unwrap_or(0.0));
        V::select(small, table, series)
    } else {
        series
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_exponential_agree_with_the_standard_library() {
        let mut x: f64 = 1e-300;
        while x < 1e300 {
            let want = x.ln();
            assert!(
                (ln(x) - want).abs() <= 4.5e-16 * want.abs().max(1e-300),
                "ln({x})"
            );
            x *= 1.000_37 + x.sin().abs() * 1e-3;
        }
        for i in 0..200_000 {
            let x = -14.0 + f64::from(i) * 1e-4;
            assert!((exp(x) / x.exp() - 1.0).abs() < 5e-16, "exp({x})");
            for y in [10f64.powf(x), -(10f64.powf(x.min(-1e-4)))] {
                assert!((ln_1p(y) / y.ln_1p() - 1.0).abs() < 5e-16, "ln_1p({y})");
            }
        }
    }

    #[test]
    fn two_product_is_exact() {
        for (x, y) in [
            (9007199254740991.0, 0.3),
            (1e9 + 7.0, 1e-7 / 3.0),
            (3.0, 1.0 / 3.0),
        ] {
            let (product, error) = x.two_product(y);
            assert_eq!(product, x * y);
            assert_eq!(error, f64::mul_add(x, y, -product));
        }
    }

    #[test]
    fn floor_is_floor() {
        for x in [
            0.0,
            -0.5,
            -1.0,
            -1.000001,
            1.5,
            2.0,
            1e15 + 0.5,
            -1e15 - 0.5,
            3e18,
            -1e300,
        ] {
            assert_eq!(Real::floor(x), x.floor());
        }
    }

    #[test]
    fn stirling_tail_is_continuous_at_the_table_end() {
        // ln k! by summation
        let mut ln_factorial = 0.0;
        for k in 1..=40 {
            let k = f64::from(k);
            ln_factorial += k.ln();
            let want = ln_factorial
                - (0.5 * (2.0 * std::f64::consts::PI).ln() + (k + 0.5) * (k + 1.0).ln()
                    - (k + 1.0));
            assert!((stirling_tail(k) - want).abs() < 1e-13, "k = {k}");
        }
    }
}

//! Elementary functions with the same bits on every machine: only + - * / and integer
//! arithmetic on the bits, no call of the platform's mathematical library.

/// Natural logarithm of a positive normal number; relative error below 4e-16.
#[inline]
pub fn ln(x: f64) -> f64 {
    const SQRT_HALF: i64 = 0x3FE6_A09E_667F_3BCD;
    let bits = x.to_bits() as i64;
    let exponent = (bits - SQRT_HALF) >> 52;
    let m = f64::from_bits((bits - (exponent << 52)) as u64); // in [sqrt(1/2), sqrt(2))
    let f = m - 1.0;
    let s = f / (m + 1.0);
    let z = s * s;
    // ln(1 + f) = 2 atanh(s) = f + s (z P(z) - f)
    let mut p = 2.0 / 19.0;
    for c in [
        2.0 / 17.0,
        2.0 / 15.0,
        2.0 / 13.0,
        2.0 / 11.0,
        2.0 / 9.0,
        2.0 / 7.0,
        0.4,
        2.0 / 3.0,
    ] {
        p = p * z + c;
    }
    let e = exponent as f64;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1; // 33 bits, times e exact
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    e * LN2_HIGH + ((f + s * (z * p - f)) + e * LN2_LOW)
}

/// ln(1 + x) for x > -1.
#[inline]
pub fn ln_1p(x: f64) -> f64 {
    let y = 1.0 + x;
    ln(y) + (x - (y - 1.0)) / y
}

/// exp(x) for x in [-700, 700].
#[inline]
pub fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let k = floor(x * std::f64::consts::LOG2_E + 0.5);
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut p = 1.605_904_383_682_161_3e-10;
    for c in [
        2.087_675_698_786_81e-9,
        2.505_210_838_544_172e-8,
        2.755_731_922_398_589e-7,
        2.755_731_922_398_589_3e-6,
        2.480_158_730_158_73e-5,
        1.984_126_984_126_984e-4,
        1.388_888_888_888_889e-3,
        8.333_333_333_333_333e-3,
        4.166_666_666_666_666_4e-2,
        1.666_666_666_666_666_6e-1,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    f64::from_bits((p.to_bits() as i64 + ((k as i64) << 52)) as u64)
}

/// Largest integer not above x, for |x| < 2^62 (no call into the platform's library).
#[inline]
pub fn floor(x: f64) -> f64 {
    let t = x as i64 as f64;
    t - f64::from(u8::from(t > x))
}

/// The tail of Stirling's formula: ln k! - [ln(2 pi)/2 + (k + 1/2) ln(k + 1) - (k + 1)].
#[inline]
pub fn stirling_tail(k: f64) -> f64 {
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
        0.008_330_563_433_362_871,
        0.007_573_675_487_951_841,
        0.006_942_840_107_209_53,
        0.006_408_994_188_004_207,
        0.005_951_370_112_758_848,
        0.005_554_733_551_962_801,
        0.005_207_655_919_609_64,
    ];
    if k < 16.0 {
        return TABLE[k as usize];
    }
    let x = 1.0 / (k + 1.0);
    let x2 = x * x;
    (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / 1680.0 * x2) * x2) * x2) * x
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
        ] {
            assert_eq!(floor(x), x.floor());
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

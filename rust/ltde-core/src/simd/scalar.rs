//! The reference: one lane at a time, in ordinary Rust.

use super::{Mask, Real, Simd, Word};

/// Ordinary Rust, on every processor.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type Real = f64;
    type Word = u64;
    const WIDTH: usize = 1;

    #[inline(always)]
    fn real(self, x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn word(self, x: u64) -> u64 {
        x
    }

    #[inline(always)]
    fn load(self, from: &[f64]) -> f64 {
        from[0]
    }

    #[inline(always)]
    fn load_words(self, from: &[u64]) -> u64 {
        from[0]
    }
}

impl Mask for bool {
    #[inline(always)]
    fn bits(self) -> u32 {
        self.into()
    }
}

impl Real for f64 {
    type Mask = bool;
    type Bits = u64;

    #[inline(always)]
    fn of(self, x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn abs(self) -> f64 {
        f64::abs(self)
    }

    /// No call into the platform's library, which `f64::floor` is on old x86-64.
    #[inline(always)]
    fn floor(self) -> f64 {
        const INTEGERS_FROM: f64 = (1u64 << 52) as f64;
        let t = self as i64 as f64;
        let floor = t - f64::from(u8::from(t > self));
        // -0 stays -0
        if self.abs() < INTEGERS_FROM && self != 0.0 {
            floor
        } else {
            self
        }
    }

    #[inline(always)]
    fn min(self, other: f64) -> f64 {
        if self < other { self } else { other }
    }

    #[inline(always)]
    fn lt(self, other: f64) -> bool {
        self < other
    }

    #[inline(always)]
    fn le(self, other: f64) -> bool {
        self <= other
    }

    #[inline(always)]
    fn select(mask: bool, yes: f64, no: f64) -> f64 {
        if mask { yes } else { no }
    }

    /// Dekker (1971); the vectors take a fused product for the same error.
    #[inline(always)]
    fn two_product(self, other: f64) -> (f64, f64) {
        const SPLIT: f64 = 134_217_729.0; // 2^27 + 1
        let product = self * other;
        let split = |x: f64| {
            let c = SPLIT * x;
            let high = c - (c - x);
            (high, x - high)
        };
        let ((xh, xl), (yh, yl)) = (split(self), split(other));
        (product, ((xh * yh - product) + xh * yl + xl * yh) + xl * yl)
    }

    #[inline(always)]
    fn to_bits(self) -> u64 {
        f64::to_bits(self)
    }

    #[inline(always)]
    fn store(self, to: &mut [f64]) {
        to[0] = self;
    }

    #[inline(always)]
    fn compress(self, mask: bool, to: &mut [f64]) -> usize {
        to[0] = self;
        mask.into()
    }

    #[inline(always)]
    fn patch(self, mask: bool, f: impl Fn(f64) -> f64) -> f64 {
        if mask { f(self) } else { self }
    }
}

/// The highest bit of each byte.
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The highest bit of each byte where x > y, as signed numbers.
#[inline(always)]
fn above(x: u64, y: u64) -> u64 {
    // the lower bits of x are not above those of y; nothing is borrowed from the next byte
    let not_above = (y | HIGH) - (x & !HIGH);
    ((!x & y) | !(x ^ y | not_above)) & HIGH
}

/// The highest bit of each byte where x = y.
#[inline(always)]
fn equal(x: u64, y: u64) -> u64 {
    let differ = x ^ y;
    !(((differ & !HIGH) + !HIGH) | differ) & HIGH
}

impl Word for u64 {
    type Real = f64;

    #[inline(always)]
    fn of(self, x: u64) -> u64 {
        x
    }

    #[inline(always)]
    fn plus(self, other: u64) -> u64 {
        self.wrapping_add(other)
    }

    #[inline(always)]
    fn minus(self, other: u64) -> u64 {
        self.wrapping_sub(other)
    }

    #[inline(always)]
    fn shl<const BY: i32>(self) -> u64 {
        self << BY
    }

    #[inline(always)]
    fn shr<const BY: i32>(self) -> u64 {
        self >> BY
    }

    #[inline(always)]
    fn mul_low(self, other: u64) -> u64 {
        u64::from(self as u32) * u64::from(other as u32)
    }

    #[inline(always)]
    fn to_real(self) -> f64 {
        f64::from_bits(self)
    }

    #[inline(always)]
    fn store(self, to: &mut [u64]) {
        to[0] = self;
    }

    #[inline(always)]
    fn store_signed(self, to: &mut [i64]) {
        to[0] = self as i64;
    }

    #[inline(always)]
    fn shl_by(self, by: u64) -> u64 {
        if by < 64 { self << by } else { 0 }
    }

    #[inline(always)]
    fn minus16_or_zero(self, other: u64) -> u64 {
        [0, 16, 32, 48].iter().fold(0, |word, shift| {
            let [x, y] = [self, other].map(|word| (word >> shift) as u16);
            word | u64::from(x.saturating_sub(y)) << shift
        })
    }

    #[inline(always)]
    fn any(self) -> bool {
        self != 0
    }

    #[inline(always)]
    fn look_up<const N: usize>(self, table: &[f64; N]) -> [f64; 4] {
        let at = self as usize & (N - 4);
        [table[at], table[at + 1], table[at + 2], table[at + 3]]
    }

    #[inline(always)]
    fn spread8(self) -> u64 {
        (self & 0xFF) * 0x0101_0101_0101_0101
    }

    #[inline(always)]
    fn min8(self, other: u64) -> u64 {
        let smaller = (above(other, self) >> 7) * 0xFF;
        (self & smaller) | (other & !smaller)
    }

    #[inline(always)]
    fn compare8(self, limits: &[u64], counts: &mut [u64], equals: &mut [u64]) {
        for ((&limit, count), equals) in limits.iter().zip(counts).zip(equals) {
            *count += above(self, limit) >> 7;
            *equals += equal(self, limit) >> 7;
        }
    }

    #[inline(always)]
    fn sum_bytes(self) -> u64 {
        self.to_le_bytes().iter().map(|&b| u64::from(b)).sum()
    }
}

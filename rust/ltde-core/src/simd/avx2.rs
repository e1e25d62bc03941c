//! AVX2 with FMA: four lanes at a time.
//!
//! SAFETY of all unsafe blocks: the intrinsics ask for AVX2 and FMA alone, and a value of [`Avx2`],
//! [`F`], [`M`] or [`W`] exists only where the processor has them; see the contract in `mod.rs`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

use super::{Mask, Real, Simd, Word};

/// AVX2 and FMA are there.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(super) fn new() -> Self {
        Avx2(())
    }
}

/// Four numbers.
#[derive(Debug, Clone, Copy)]
pub struct F(__m256d);
/// Four truth values: all bits of a lane, or none.
#[derive(Debug, Clone, Copy)]
pub struct M(__m256d);
/// Four words.
#[derive(Debug, Clone, Copy)]
pub struct W(__m256i);

impl Simd for Avx2 {
    type Real = F;
    type Word = W;
    const WIDTH: usize = 4;

    #[inline(always)]
    fn real(self, x: f64) -> F {
        F(unsafe { _mm256_set1_pd(x) })
    }

    #[inline(always)]
    fn word(self, x: u64) -> W {
        W(unsafe { _mm256_set1_epi64x(x as i64) })
    }

    #[inline(always)]
    fn load(self, from: &[f64]) -> F {
        let from = from[..4].as_ptr();
        F(unsafe { _mm256_loadu_pd(from) })
    }

    #[inline(always)]
    fn load_words(self, from: &[u64]) -> W {
        let from = from[..4].as_ptr();
        W(unsafe { _mm256_loadu_si256(from.cast()) })
    }
}

operator!(Add, add, F, _mm256_add_pd);
operator!(Sub, sub, F, _mm256_sub_pd);
operator!(Mul, mul, F, _mm256_mul_pd);
operator!(Div, div, F, _mm256_div_pd);
operator_with_number!(Add, add);
operator_with_number!(Sub, sub);
operator_with_number!(Mul, mul);
operator!(BitAnd, bitand, M, _mm256_and_pd);
operator!(BitOr, bitor, M, _mm256_or_pd);
operator!(BitAnd, bitand, W, _mm256_and_si256);
operator!(BitOr, bitor, W, _mm256_or_si256);
operator!(BitXor, bitxor, W, _mm256_xor_si256);

impl Neg for F {
    type Output = F;

    #[inline(always)]
    fn neg(self) -> F {
        F(unsafe { _mm256_xor_pd(self.0, _mm256_set1_pd(-0.0)) })
    }
}

impl Not for M {
    type Output = M;

    #[inline(always)]
    fn not(self) -> M {
        M(unsafe { _mm256_xor_pd(self.0, _mm256_castsi256_pd(_mm256_set1_epi64x(-1))) })
    }
}

impl Mask for M {
    #[inline(always)]
    fn bits(self) -> u32 {
        unsafe { _mm256_movemask_pd(self.0) as u32 }
    }
}

/// For each mask, which 32-bit pieces stand side by side once its lanes do.
const TOGETHER: [[i32; 8]; 16] = {
    let mut table = [[0; 8]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut lane, mut place) = (0, 0);
        while lane < 4 {
            if mask >> lane & 1 == 1 {
                table[mask][place] = 2 * lane;
                table[mask][place + 1] = 2 * lane + 1;
                place += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

impl Real for F {
    type Mask = M;
    type Bits = W;

    #[inline(always)]
    fn of(self, x: f64) -> F {
        F(unsafe { _mm256_set1_pd(x) })
    }

    #[inline(always)]
    fn sqrt(self) -> F {
        F(unsafe { _mm256_sqrt_pd(self.0) })
    }

    #[inline(always)]
    fn abs(self) -> F {
        F(unsafe { _mm256_andnot_pd(_mm256_set1_pd(-0.0), self.0) })
    }

    #[inline(always)]
    fn floor(self) -> F {
        F(unsafe { _mm256_floor_pd(self.0) })
    }

    #[inline(always)]
    fn min(self, other: F) -> F {
        F(unsafe { _mm256_min_pd(self.0, other.0) })
    }

    #[inline(always)]
    fn lt(self, other: F) -> M {
        M(unsafe { _mm256_cmp_pd::<_CMP_LT_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn le(self, other: F) -> M {
        M(unsafe { _mm256_cmp_pd::<_CMP_LE_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn select(mask: M, yes: F, no: F) -> F {
        F(unsafe { _mm256_blendv_pd(no.0, yes.0, mask.0) })
    }

    #[inline(always)]
    fn two_product(self, other: F) -> (F, F) {
        let product = self * other;
        (
            product,
            F(unsafe { _mm256_fmsub_pd(self.0, other.0, product.0) }),
        )
    }

    #[inline(always)]
    fn to_bits(self) -> W {
        W(unsafe { _mm256_castpd_si256(self.0) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f64]) {
        let to = to[..4].as_mut_ptr();
        unsafe { _mm256_storeu_pd(to, self.0) }
    }

    #[inline(always)]
    fn compress(self, mask: M, to: &mut [f64]) -> usize {
        let bits = mask.bits();
        let order = TOGETHER[bits as usize & 15].as_ptr();
        F(unsafe {
            let order = _mm256_loadu_si256(order.cast());
            _mm256_castsi256_pd(_mm256_permutevar8x32_epi32(
                _mm256_castpd_si256(self.0),
                order,
            ))
        })
        .store(to);
        bits.count_ones() as usize
    }

    #[inline(always)]
    fn patch(self, mask: M, f: impl Fn(f64) -> f64) -> F {
        let mut lanes = [0.0; 4];
        self.store(&mut lanes);
        for (i, x) in lanes.iter_mut().enumerate() {
            if mask.bits() >> i & 1 == 1 {
                *x = f(*x);
            }
        }
        F(unsafe { _mm256_loadu_pd(lanes.as_ptr()) })
    }
}

/// A row of a table, see [`Word::look_up`].
#[inline(always)]
fn row<const N: usize>(table: &[f64; N], at: u64) -> F {
    let row = table[at as usize & (N - 4)..][..4].as_ptr();
    F(unsafe { _mm256_loadu_pd(row) })
}

impl Word for W {
    type Real = F;

    #[inline(always)]
    fn of(self, x: u64) -> W {
        W(unsafe { _mm256_set1_epi64x(x as i64) })
    }

    #[inline(always)]
    fn plus(self, other: W) -> W {
        W(unsafe { _mm256_add_epi64(self.0, other.0) })
    }

    #[inline(always)]
    fn minus(self, other: W) -> W {
        W(unsafe { _mm256_sub_epi64(self.0, other.0) })
    }

    #[inline(always)]
    fn shl<const BY: i32>(self) -> W {
        W(unsafe { _mm256_slli_epi64::<BY>(self.0) })
    }

    #[inline(always)]
    fn shr<const BY: i32>(self) -> W {
        W(unsafe { _mm256_srli_epi64::<BY>(self.0) })
    }

    #[inline(always)]
    fn mul_low(self, other: W) -> W {
        W(unsafe { _mm256_mul_epu32(self.0, other.0) })
    }

    #[inline(always)]
    fn to_real(self) -> F {
        F(unsafe { _mm256_castsi256_pd(self.0) })
    }

    #[inline(always)]
    fn store(self, to: &mut [u64]) {
        let to = to[..4].as_mut_ptr();
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    fn store_signed(self, to: &mut [i64]) {
        let to = to[..4].as_mut_ptr();
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    fn shl_by(self, by: W) -> W {
        W(unsafe { _mm256_sllv_epi64(self.0, by.0) })
    }

    #[inline(always)]
    fn minus16_or_zero(self, other: W) -> W {
        W(unsafe { _mm256_subs_epu16(self.0, other.0) })
    }

    #[inline(always)]
    fn any(self) -> bool {
        unsafe { _mm256_testz_si256(self.0, self.0) == 0 }
    }

    #[inline(always)]
    fn look_up<const N: usize>(self, table: &[f64; N]) -> [F; 4] {
        let mut at = [0; 4];
        self.store(&mut at);
        unsafe {
            let (F(r0), F(r1)) = (row(table, at[0]), row(table, at[1]));
            let (F(r2), F(r3)) = (row(table, at[2]), row(table, at[3]));
            let (even, odd) = (_mm256_unpacklo_pd(r0, r1), _mm256_unpackhi_pd(r0, r1));
            let (even2, odd2) = (_mm256_unpacklo_pd(r2, r3), _mm256_unpackhi_pd(r2, r3));
            [
                F(_mm256_permute2f128_pd::<0x20>(even, even2)),
                F(_mm256_permute2f128_pd::<0x20>(odd, odd2)),
                F(_mm256_permute2f128_pd::<0x31>(even, even2)),
                F(_mm256_permute2f128_pd::<0x31>(odd, odd2)),
            ]
        }
    }

    #[inline(always)]
    fn spread8(self) -> W {
        W(unsafe {
            let high = 0x0808_0808_0808_0808;
            _mm256_shuffle_epi8(self.0, _mm256_set_epi64x(high, 0, high, 0))
        })
    }

    #[inline(always)]
    fn min8(self, other: W) -> W {
        W(unsafe { _mm256_min_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn compare8(self, limits: &[W], above: &mut [W], equal: &mut [W]) {
        for ((limit, above), equal) in limits.iter().zip(above).zip(equal) {
            unsafe {
                above.0 = _mm256_sub_epi8(above.0, _mm256_cmpgt_epi8(self.0, limit.0));
                equal.0 = _mm256_sub_epi8(equal.0, _mm256_cmpeq_epi8(self.0, limit.0));
            }
        }
    }

    #[inline(always)]
    fn sum_bytes(self) -> W {
        W(unsafe { _mm256_sad_epu8(self.0, _mm256_setzero_si256()) })
    }
}

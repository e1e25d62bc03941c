//! AVX-512 (F, DQ, BW, VL): all eight lanes at once.
//!
//! SAFETY of all unsafe blocks: the intrinsics ask for AVX-512 F, DQ and BW alone, and a value of
//! [`Avx512`], [`F`] or [`W`] exists only where the processor has them; see the contract in
//! `mod.rs`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

use super::{Mask, Real, Simd, Word};

/// AVX-512 F, DQ, BW and VL are there.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
    #[inline]
    pub(super) fn new() -> Self {
        Avx512(())
    }
}

/// Eight numbers.
#[derive(Debug, Clone, Copy)]
pub struct F(__m512d);
/// Eight truth values.
#[derive(Debug, Clone, Copy)]
pub struct M(__mmask8);
/// Eight words.
#[derive(Debug, Clone, Copy)]
pub struct W(__m512i);

impl Simd for Avx512 {
    type Real = F;
    type Word = W;
    const WIDTH: usize = 8;

    #[inline(always)]
    fn real(self, x: f64) -> F {
        F(unsafe { _mm512_set1_pd(x) })
    }

    #[inline(always)]
    fn word(self, x: u64) -> W {
        W(unsafe { _mm512_set1_epi64(x as i64) })
    }

    #[inline(always)]
    fn load(self, from: &[f64]) -> F {
        let from = from[..8].as_ptr();
        F(unsafe { _mm512_loadu_pd(from) })
    }

    #[inline(always)]
    fn load_words(self, from: &[u64]) -> W {
        let from = from[..8].as_ptr();
        W(unsafe { _mm512_loadu_si512(from.cast()) })
    }
}

operator!(Add, add, F, _mm512_add_pd);
operator!(Sub, sub, F, _mm512_sub_pd);
operator!(Mul, mul, F, _mm512_mul_pd);
operator!(Div, div, F, _mm512_div_pd);
operator_with_number!(Add, add);
operator_with_number!(Sub, sub);
operator_with_number!(Mul, mul);
operator!(BitAnd, bitand, W, _mm512_and_si512);
operator!(BitOr, bitor, W, _mm512_or_si512);
operator!(BitXor, bitxor, W, _mm512_xor_si512);

impl Neg for F {
    type Output = F;

    #[inline(always)]
    fn neg(self) -> F {
        F(unsafe { _mm512_xor_pd(self.0, _mm512_set1_pd(-0.0)) })
    }
}

impl BitAnd for M {
    type Output = M;

    #[inline(always)]
    fn bitand(self, other: M) -> M {
        M(self.0 & other.0)
    }
}

impl BitOr for M {
    type Output = M;

    #[inline(always)]
    fn bitor(self, other: M) -> M {
        M(self.0 | other.0)
    }
}

impl Not for M {
    type Output = M;

    #[inline(always)]
    fn not(self) -> M {
        M(!self.0)
    }
}

impl Mask for M {
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.into()
    }
}

impl Real for F {
    type Mask = M;
    type Bits = W;

    #[inline(always)]
    fn of(self, x: f64) -> F {
        F(unsafe { _mm512_set1_pd(x) })
    }

    #[inline(always)]
    fn sqrt(self) -> F {
        F(unsafe { _mm512_sqrt_pd(self.0) })
    }

    #[inline(always)]
    fn abs(self) -> F {
        F(unsafe { _mm512_abs_pd(self.0) })
    }

    #[inline(always)]
    fn floor(self) -> F {
        const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
        F(unsafe { _mm512_roundscale_pd::<DOWN>(self.0) })
    }

    #[inline(always)]
    fn min(self, other: F) -> F {
        F(unsafe { _mm512_min_pd(self.0, other.0) })
    }

    #[inline(always)]
    fn lt(self, other: F) -> M {
        M(unsafe { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn le(self, other: F) -> M {
        M(unsafe { _mm512_cmp_pd_mask::<_CMP_LE_OQ>(self.0, other.0) })
    }

    #[inline(always)]
    fn select(mask: M, yes: F, no: F) -> F {
        F(unsafe { _mm512_mask_blend_pd(mask.0, no.0, yes.0) })
    }

    #[inline(always)]
    fn two_product(self, other: F) -> (F, F) {
        let product = self * other;
        (
            product,
            F(unsafe { _mm512_fmsub_pd(self.0, other.0, product.0) }),
        )
    }

    #[inline(always)]
    fn to_bits(self) -> W {
        W(unsafe { _mm512_castpd_si512(self.0) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f64]) {
        let to = to[..8].as_mut_ptr();
        unsafe { _mm512_storeu_pd(to, self.0) }
    }

    /// In a register, then a whole store: the memory form is microcoded on Zen 4.
    #[inline(always)]
    fn compress(self, mask: M, to: &mut [f64]) -> usize {
        F(unsafe { _mm512_maskz_compress_pd(mask.0, self.0) }).store(to);
        mask.0.count_ones() as usize
    }

    #[inline(always)]
    fn patch(self, mask: M, f: impl Fn(f64) -> f64) -> F {
        let mut lanes = [0.0; 8];
        self.store(&mut lanes);
        for (i, x) in lanes.iter_mut().enumerate() {
            if mask.bits() >> i & 1 == 1 {
                *x = f(*x);
            }
        }
        F(unsafe { _mm512_loadu_pd(lanes.as_ptr()) })
    }
}

/// Two rows of a table side by side, see [`Word::look_up`].
#[inline(always)]
fn rows<const N: usize>(table: &[f64; N], at: u64, and_at: u64) -> F {
    let low = table[at as usize & (N - 4)..][..4].as_ptr();
    let high = table[and_at as usize & (N - 4)..][..4].as_ptr();
    F(unsafe {
        let low = _mm512_castpd256_pd512(_mm256_loadu_pd(low));
        _mm512_insertf64x4::<1>(low, _mm256_loadu_pd(high))
    })
}

impl Word for W {
    type Real = F;

    #[inline(always)]
    fn of(self, x: u64) -> W {
        W(unsafe { _mm512_set1_epi64(x as i64) })
    }

    #[inline(always)]
    fn plus(self, other: W) -> W {
        W(unsafe { _mm512_add_epi64(self.0, other.0) })
    }

    #[inline(always)]
    fn minus(self, other: W) -> W {
        W(unsafe { _mm512_sub_epi64(self.0, other.0) })
    }

    #[inline(always)]
    fn shl<const BY: i32>(self) -> W {
        W(unsafe { _mm512_sll_epi64(self.0, _mm_cvtsi32_si128(BY)) })
    }

    #[inline(always)]
    fn shr<const BY: i32>(self) -> W {
        W(unsafe { _mm512_srl_epi64(self.0, _mm_cvtsi32_si128(BY)) })
    }

    #[inline(always)]
    fn mul_low(self, other: W) -> W {
        W(unsafe { _mm512_mul_epu32(self.0, other.0) })
    }

    #[inline(always)]
    fn to_real(self) -> F {
        F(unsafe { _mm512_castsi512_pd(self.0) })
    }

    #[inline(always)]
    fn store(self, to: &mut [u64]) {
        let to = to[..8].as_mut_ptr();
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    fn store_signed(self, to: &mut [i64]) {
        let to = to[..8].as_mut_ptr();
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    fn shl_by(self, by: W) -> W {
        W(unsafe { _mm512_sllv_epi64(self.0, by.0) })
    }

    #[inline(always)]
    fn minus16_or_zero(self, other: W) -> W {
        W(unsafe { _mm512_subs_epu16(self.0, other.0) })
    }

    #[inline(always)]
    fn any(self) -> bool {
        unsafe { _mm512_test_epi64_mask(self.0, self.0) != 0 }
    }

    #[inline(always)]
    fn look_up<const N: usize>(self, table: &[f64; N]) -> [F; 4] {
        let mut at = [0; 8];
        self.store(&mut at);
        unsafe {
            // then a transposition in each half
            let (F(p0), F(p1)) = (rows(table, at[0], at[4]), rows(table, at[1], at[5]));
            let (F(p2), F(p3)) = (rows(table, at[2], at[6]), rows(table, at[3], at[7]));
            let (even, odd) = (_mm512_unpacklo_pd(p0, p1), _mm512_unpackhi_pd(p0, p1));
            let (even2, odd2) = (_mm512_unpacklo_pd(p2, p3), _mm512_unpackhi_pd(p2, p3));
            let first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            [
                F(_mm512_permutex2var_pd(even, first, even2)),
                F(_mm512_permutex2var_pd(odd, first, odd2)),
                F(_mm512_permutex2var_pd(even, second, even2)),
                F(_mm512_permutex2var_pd(odd, second, odd2)),
            ]
        }
    }

    #[inline(always)]
    fn spread8(self) -> W {
        W(unsafe {
            let high = 0x0808_0808_0808_0808;
            let order = _mm512_set_epi64(high, 0, high, 0, high, 0, high, 0);
            _mm512_shuffle_epi8(self.0, order)
        })
    }

    #[inline(always)]
    fn min8(self, other: W) -> W {
        W(unsafe { _mm512_min_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn compare8(self, limits: &[W], above: &mut [W], equal: &mut [W]) {
        for ((limit, above), equal) in limits.iter().zip(above).zip(equal) {
            unsafe {
                let one = _mm512_set1_epi8(1);
                let is_above = _mm512_cmpgt_epi8_mask(self.0, limit.0);
                let is_equal = _mm512_cmpeq_epi8_mask(self.0, limit.0);
                above.0 = _mm512_mask_add_epi8(above.0, is_above, above.0, one);
                equal.0 = _mm512_mask_add_epi8(equal.0, is_equal, equal.0, one);
            }
        }
    }

    #[inline(always)]
    fn sum_bytes(self) -> W {
        W(unsafe { _mm512_sad_epu8(self.0, _mm512_setzero_si512()) })
    }
}

//! Vectors: the same code for several instruction sets, chosen when the program runs.
//!
//! All that is drawn in vectors has *eight logical lanes*, on every machine. An instruction set
//! works through them in [`Simd::PARTS`] parts: AVX-512 takes all eight at once, AVX2 twice four,
//! and [`Scalar`], ordinary Rust and the reference, one after the other. Every operation here is
//! defined to the bit (IEEE 754 arithmetic, integers, no contraction, no library function), so
//! that all instruction sets give the same bits.
//!
//! **Contract of the unsafe code.** This folder is the only place of the core with `unsafe`, and
//! it holds two kinds:
//! - calls of intrinsics, which ask for their instruction set. They take or are followed by a value
//!   of a vector type of that set, and such values come only from [`Avx2`] or [`Avx512`], which
//!   are made only after the processor has been asked;
//! - calls of the functions `with_avx2` and `with_avx512`, which ask for the same.
//!
//! Loads and stores go through slices and check their lengths; no address is computed.

/// Operators of a vector type by one intrinsic.
#[cfg(target_arch = "x86_64")]
macro_rules! operator {
    ($trait:ident, $method:ident, $type:ident, $intrinsic:ident) => {
        impl $trait for $type {
            type Output = $type;
            #[inline(always)]
            fn $method(self, other: $type) -> $type {
                $type(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    };
}

/// Operators of a vector and a number in every lane.
#[cfg(target_arch = "x86_64")]
macro_rules! operator_with_number {
    ($trait:ident, $method:ident) => {
        impl $trait<f64> for F {
            type Output = F;
            #[inline(always)]
            fn $method(self, other: f64) -> F {
                self.$method(self.of(other))
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Result, value_error};

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use scalar::Scalar;

/// Logical lanes of everything that is drawn in vectors.
pub const LANES: usize = 8;

/// One value for each logical lane, in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(align(64))]
pub struct Eight<T>(pub [T; LANES]);

/// An instruction set; a value of it proves that the processor has it.
pub trait Simd: Copy {
    /// float64 numbers, one for each lane of a part.
    type Real: Real<Bits = Self::Word>;
    /// 64-bit words, one for each lane of a part.
    type Word: Word<Real = Self::Real>;
    /// Lanes of a part.
    const WIDTH: usize;
    /// Parts of the eight lanes.
    const PARTS: usize = LANES / Self::WIDTH;

    /// x in every lane.
    fn real(self, x: f64) -> Self::Real;
    /// x in every lane.
    fn word(self, x: u64) -> Self::Word;
    /// The first `WIDTH` numbers.
    fn load(self, from: &[f64]) -> Self::Real;
    /// The first `WIDTH` words.
    fn load_words(self, from: &[u64]) -> Self::Word;
}

/// A vector of float64 numbers, or one number. Operations are those of IEEE 754, lane by lane.
pub trait Real:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Add<f64, Output = Self>
    + Sub<f64, Output = Self>
    + Mul<f64, Output = Self>
    + Neg<Output = Self>
{
    /// One truth value for each lane.
    type Mask: Mask;
    /// The same bits as words.
    type Bits: Word<Real = Self>;

    /// `x` in every lane.
    fn of(self, x: f64) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// The largest integer not above x.
    fn floor(self) -> Self;
    /// The smaller one; neither is NaN.
    fn min(self, other: Self) -> Self;
    /// x < y.
    fn lt(self, other: Self) -> Self::Mask;
    /// x <= y.
    fn le(self, other: Self) -> Self::Mask;
    /// `yes` where the mask holds, `no` elsewhere.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// The product and its rounding error, barring under- and overflow.
    fn two_product(self, other: Self) -> (Self, Self);
    /// The bits.
    fn to_bits(self) -> Self::Bits;
    /// Writes the first `WIDTH` numbers.
    fn store(self, to: &mut [f64]);
    /// Writes the lanes where the mask holds, side by side, to the beginning of `to`, which must
    /// have room for all lanes; what follows them there is undefined. Returns their number.
    fn compress(self, mask: Self::Mask, to: &mut [f64]) -> usize;
    /// Replaces x by f(x) where the mask holds, one lane after the other.
    fn patch(self, mask: Self::Mask, f: impl Fn(f64) -> f64) -> Self;
}

/// Truth values of the lanes.
pub trait Mask: Copy + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self> {
    /// Bit i says whether lane i of the part holds.
    fn bits(self) -> u32;
    /// Whether some lane holds.
    #[inline(always)]
    fn any(self) -> bool {
        self.bits() != 0
    }
}

/// A vector of 64-bit words, or one word. Each can be read as eight signed bytes.
pub trait Word:
    Copy + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self>
{
    /// The same bits as numbers.
    type Real: Real<Bits = Self>;

    /// `x` in every lane.
    fn of(self, x: u64) -> Self;
    /// x + y modulo 2^64.
    fn plus(self, other: Self) -> Self;
    /// x - y modulo 2^64.
    fn minus(self, other: Self) -> Self;
    /// Shift to higher bits.
    fn shl<const BY: i32>(self) -> Self;
    /// Shift to lower bits, filling with zeros.
    fn shr<const BY: i32>(self) -> Self;
    /// The product of the low halves.
    fn mul_low(self, other: Self) -> Self;
    /// The bits as numbers.
    fn to_real(self) -> Self::Real;
    /// Writes the first `WIDTH` words.
    fn store(self, to: &mut [u64]);
    /// As [`Word::store`], into signed integers.
    fn store_signed(self, to: &mut [i64]);

    /// Shift to higher bits, each word by its own number of bits; zero from 64 on.
    fn shl_by(self, by: Self) -> Self;
    /// x - y in each 16-bit place, as unsigned numbers, or zero where y is larger.
    fn minus16_or_zero(self, other: Self) -> Self;
    /// Whether some bit is set.
    fn any(self) -> bool;

    /// The rows of four numbers that begin where the lowest bits of the words say, but for the last
    /// two bits, column by column; `N` is a power of 2.
    fn look_up<const N: usize>(self, table: &[f64; N]) -> [Self::Real; 4];
    /// The lowest byte in all eight places of each word.
    fn spread8(self) -> Self;
    /// The smaller bytes.
    fn min8(self, other: Self) -> Self;
    /// For all j, adds 1 to `above[j]` in each byte where x > `limits[j]`, and to `equal[j]` where x
    /// equals it. No byte may go beyond 255.
    fn compare8(self, limits: &[Self], above: &mut [Self], equal: &mut [Self]);
    /// The sum of the bytes of each word.
    fn sum_bytes(self) -> Self;
}

/// Work that is compiled for every instruction set. `run`, and what it calls in its inner loops,
/// must be `#[inline(always)]`: only what is inlined is compiled for the wider set. Vectors must not
/// be made inside of closures that are handed to the standard library, which may stay calls.
pub trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel with the widest instruction set that the processor has and
/// `LTDE_INSTRUCTION_SET` allows.
#[inline(always)]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    run(instruction_set(), kernel)
}

/// As [`dispatch`] for ordinary code, with AVX2 at most: for AVX-512 the compiler would turn its
/// loops into scatters.
#[inline(always)]
pub fn dispatch_ordinary<K: Kernel>(kernel: K) -> K::Output {
    run(instruction_set().min(InstructionSet::Avx2), kernel)
}

/// The instruction sets with code of their own, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum InstructionSet {
    /// Ordinary Rust; on x86-64 SSE2, elsewhere whatever the target has.
    Portable = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 F, DQ, BW and VL.
    Avx512 = 3,
}

impl InstructionSet {
    /// All of them, from narrow to wide.
    pub const ALL: [InstructionSet; 3] = [
        InstructionSet::Portable,
        InstructionSet::Avx2,
        InstructionSet::Avx512,
    ];

    /// The name, which `LTDE_INSTRUCTION_SET` takes in lower case.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Portable => "portable",
            InstructionSet::Avx2 => "AVX2",
            InstructionSet::Avx512 => "AVX-512",
        }
    }

    /// Whether this processor has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_there(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt")
        };
        match self {
            InstructionSet::Portable => true,
            InstructionSet::Avx2 => avx2(),
            InstructionSet::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }

    /// Whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_there(self) -> bool {
        self == InstructionSet::Portable
    }

    fn from_u8(n: u8) -> Self {
        match n {
            3 => InstructionSet::Avx512,
            2 => InstructionSet::Avx2,
            _ => InstructionSet::Portable,
        }
    }
}

/// The instruction set that [`dispatch`] takes: the widest that is there, or the one that the
/// environment variable `LTDE_INSTRUCTION_SET` (`portable`, `avx2`, `avx-512`) names, if it is
/// there. Asked once in the life of the process.
#[inline(always)]
pub fn instruction_set() -> InstructionSet {
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    #[cold]
    fn find() -> InstructionSet {
        let limit = asked().ok().flatten().unwrap_or(InstructionSet::Avx512);
        let found = InstructionSet::ALL
            .into_iter()
            .filter(|&set| set <= limit && set.is_there())
            .max()
            .unwrap_or(InstructionSet::Portable);
        KNOWN.store(found as u8, Ordering::Relaxed);
        found
    }
    match KNOWN.load(Ordering::Relaxed) {
        0 => find(),
        known => InstructionSet::from_u8(known),
    }
}

/// The instruction set that `LTDE_INSTRUCTION_SET` names, if it is set and not empty.
///
/// # Errors
/// [`crate::Error::Value`] for a name that is none; [`instruction_set`] takes it for not set.
pub fn asked() -> Result<Option<InstructionSet>> {
    let Some(name) = std::env::var_os("LTDE_INSTRUCTION_SET") else {
        return Ok(None);
    };
    let name = name.to_string_lossy();
    if name.is_empty() {
        return Ok(None);
    }
    match InstructionSet::ALL
        .into_iter()
        .find(|set| set.name().eq_ignore_ascii_case(&name))
    {
        Some(set) => Ok(Some(set)),
        None => value_error!(
            "LTDE_INSTRUCTION_SET: expected 'portable', 'avx2' or 'avx-512', got '{name}'"
        ),
    }
}

/// Runs a kernel with a given instruction set.
///
/// # Panics
/// If the processor does not have it.
pub fn dispatch_to<K: Kernel>(set: InstructionSet, kernel: K) -> K::Output {
    assert!(set.is_there(), "no {} on this processor", set.name());
    run(set, kernel)
}

/// As [`dispatch_to`]; the caller has seen that the set is there.
#[inline(always)]
fn run<K: Kernel>(set: InstructionSet, kernel: K) -> K::Output {
    match set {
        // SAFETY: `set` is there, so the processor has every feature of the function, and the
        // token is made where the instruction set is.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        InstructionSet::Avx512 => unsafe { with_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        InstructionSet::Avx2 => unsafe { with_avx2(kernel) },
        _ => kernel.run(Scalar),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::new())
}

//! The same code for several instruction sets, chosen when the program runs.
//!
//! Nothing here changes a result: the kernels are ordinary Rust, which is never allowed to
//! contract or reorder floating-point operations, compiled once more with wider vectors.

/// Work that is compiled for every instruction set. `run`, and what it calls in its inner loops,
/// must be `#[inline(always)]`: only what is inlined is compiled for the wider set.
pub trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the widest instruction set that the processor has.
#[inline(always)]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has every feature of `with_avx2`, as was just checked.
        #[allow(unsafe_code)]
        return unsafe { with_avx2(kernel) };
    }
    kernel.run()
}

/// Name of the instruction set that [`dispatch`] takes.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        return "AVX2";
    }
    "portable"
}

/// Whether AVX2 is there, and `LTDE_INSTRUCTION_SET=portable` does not forbid it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn has_avx2() -> bool {
    use std::sync::atomic::{AtomicU8, Ordering};
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    #[cold]
    fn find() -> bool {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
            && std::env::var_os("LTDE_INSTRUCTION_SET").is_none_or(|asked| asked != "portable");
        KNOWN.store(1 + u8::from(there), Ordering::Relaxed);
        there
    }
    match KNOWN.load(Ordering::Relaxed) {
        0 => find(),
        known => known == 2,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

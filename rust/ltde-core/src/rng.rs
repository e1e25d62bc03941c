//! Addressed random numbers: every draw of the library belongs to an address
//! (seed, purpose, replica, step, block), and nothing else decides its bits.
//!
//! An address is a Philox4x32-10 counter under the key `seed` (Salmon et al., SC 2011). Two
//! Philox blocks give the 256 bits that start a xoshiro256++ generator (Blackman and Vigna,
//! ACM TOMS 47(4), 2021), from which the draws of one block of [`BLOCK`] states are taken in
//! order of the states. The result does not depend on the number of threads, on how replicas
//! are split over calls or machines, nor on what happened before that step.

/// Number of consecutive states that share a generator; also the unit of parallel work.
pub const BLOCK: usize = 64;

/// Largest step counter that an address can hold.
pub const MAX_STEP: u64 = (1 << 48) - 1;

/// What a draw is for. The numbers are part of the stream: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Team actions and next states of one step.
    Step = 1,
    /// A draw from P_0 at construction or at a reset; `step` is the number of resets so far.
    Initial = 2,
    /// The coin of the restart chain.
    RestartCoin = 3,
    /// A draw from P_0 inside the restart chain.
    Restart = 4,
    /// The seed of one episode of `visitation`; `step` is the index of the draw.
    Episode = 5,
    /// The geometric horizon of one episode.
    Horizon = 6,
    /// Samples asked for directly (`binomial`, `multinomial`).
    Sample = 7,
    /// Team actions drawn outside a simulation, and means over a chain of them.
    Team = 8,
}

/// The source of all streams of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The generator at an address. `step` must not exceed [`MAX_STEP`].
    #[inline]
    pub fn stream(self, purpose: Purpose, replica: u32, step: u64, block: u32) -> Rng {
        debug_assert!(step <= MAX_STEP);
        let high = (purpose as u32) << 16 | (step >> 32) as u32;
        let key = [self.0 as u32, (self.0 >> 32) as u32];
        let a = philox4x32_10([block, replica, step as u32, high], key);
        let b = philox4x32_10([block, replica, step as u32, high | 1 << 24], key);
        Rng::from_words([
            join(a[0], a[1]),
            join(a[2], a[3]),
            join(b[0], b[1]),
            join(b[2], b[3]),
        ])
    }
}

#[inline]
fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// One Philox4x32-10 block.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(c0) * 0xD251_1F53;
        let p1 = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = (
            (p1 >> 32) as u32 ^ c1 ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ k1,
            p0 as u32,
        );
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// A source of uniform 64-bit words. Implemented by [`Rng`] and by the test doubles that prove
/// a path draws nothing.
pub trait Words {
    /// The next word.
    fn next_word(&mut self) -> u64;

    /// A uniform number in the open interval (0, 1): (k + 1/2) 2^-52 with k uniform.
    #[inline]
    fn open_uniform(&mut self) -> f64 {
        ((self.next_word() >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
    }
}

/// xoshiro256++.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng([u64; 4]);

impl Rng {
    /// Starts from 256 bits; all zero, which the generator cannot leave, is replaced.
    #[inline]
    pub fn from_words(mut words: [u64; 4]) -> Self {
        if words == [0; 4] {
            words[0] = 0x9E37_79B9_7F4A_7C15;
        }
        Rng(words)
    }
}

impl Words for Rng {
    #[inline]
    fn next_word(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// First outputs of the reference C code of xoshiro256++ from the state 1, 2, 3, 4.
    #[test]
    fn xoshiro_known_answers() {
        let mut rng = Rng::from_words([1, 2, 3, 4]);
        let first: Vec<u64> = (0..4).map(|_| rng.next_word()).collect();
        assert_eq!(
            first,
            [41943041, 58720359, 3588806011781223, 3591011842654386]
        );
    }

    /// Every field of the address reaches the stream: 10^6 neighbouring addresses, no repeat.
    #[test]
    fn first_words_of_a_million_streams_differ() {
        let mut seen = HashSet::new();
        for seed in [0, 1, 1 << 32] {
            for purpose in [Purpose::Step, Purpose::Initial] {
                for replica in 0..16 {
                    for step in (0..50).chain([1 << 32, (1 << 32) + 1, MAX_STEP]) {
                        for block in 0..200 {
                            let word = Seed(seed).stream(purpose, replica, step, block).next_word();
                            assert!(seen.insert(word));
                        }
                    }
                }
            }
        }
        assert!(seen.len() > 1_000_000);
    }

    #[test]
    fn open_uniforms_never_reach_the_ends() {
        struct Constant(u64);
        impl Words for Constant {
            fn next_word(&mut self) -> u64 {
                self.0
            }
        }
        assert_eq!(Constant(0).open_uniform(), 0.5f64.powi(53));
        assert_eq!(Constant(u64::MAX).open_uniform(), 1.0 - 0.5f64.powi(53));
    }
}

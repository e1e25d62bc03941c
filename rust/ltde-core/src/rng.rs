//! Addressed random numbers: every draw of the library belongs to an address
//! (seed, purpose, replica, step, block), and nothing else decides its bits.
//!
//! An address is a Philox4x32-10 counter under the key `seed` (Salmon et al., SC 2011). Two
//! Philox blocks give the 256 bits that start a xoshiro256++ generator (Blackman and Vigna,
//! ACM TOMS 47(4), 2021): one [`Rng`] for what is drawn one after the other, eight in the lanes of
//! a [`LaneRng`] for what is drawn in vectors, all of one block of [`BLOCK`] states. The result does
//! not depend on the number of threads, on how replicas are split over calls or machines, on the
//! instruction set, nor on what happened before that step.

use crate::simd::{Eight, LANES, Simd, Word};

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
        Rng::start(self, Counter::new(purpose, replica, step, block))
    }

    /// The generators at an address, one and eight lanes: they share nothing. The one is that of
    /// [`Seed::stream`].
    #[inline]
    pub fn block(self, purpose: Purpose, replica: u32, step: u64, block: u32) -> BlockRng {
        BlockRng {
            seed: self,
            counter: Counter::new(purpose, replica, step, block),
            lanes: None,
            single: None,
        }
    }

    #[inline]
    fn key(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }
}

/// The Philox counters of an address.
#[derive(Debug, Clone, Copy)]
struct Counter([u32; 4]);

impl Counter {
    #[inline]
    fn new(purpose: Purpose, replica: u32, step: u64, block: u32) -> Self {
        debug_assert!(step <= MAX_STEP);
        let high = (purpose as u32) << 16 | (step >> 32) as u32;
        Counter([block, replica, step as u32, high])
    }

    /// The counter of the i-th Philox block, i < 256.
    #[inline]
    fn at(self, i: u32) -> [u32; 4] {
        let [block, replica, step, high] = self.0;
        [block, replica, step, high | i << 24]
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

/// One Philox4x32-10 block in each lane; a 32-bit number stands in each word.
#[inline(always)]
fn philox_lanes<W: Word>(counter: [W; 4], key: [u32; 2]) -> [W; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = c0.mul_low(c0.of(0xD251_1F53));
        let p1 = c2.mul_low(c0.of(0xCD9E_8D57));
        // only the low halves are read from here on
        (c0, c1, c2, c3) = (
            p1.shr::<32>() ^ c1 ^ c1.of(k0.into()),
            p1,
            p0.shr::<32>() ^ c3 ^ c3.of(k1.into()),
            p0,
        );
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    let low = c0.of(u32::MAX.into());
    [c0 & low, c1 & low, c2 & low, c3 & low]
}

/// Eight xoshiro256++ generators side by side. None starts at zero, which it could not leave:
/// Philox is a bijection, so its two blocks of a lane differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneRng {
    state: [Eight<u64>; 4],
}

impl LaneRng {
    /// From the Philox blocks 2 and 3, 4 and 5, ..., two for each lane.
    #[inline(always)]
    fn start<S: Simd>(simd: S, seed: Seed, counter: Counter) -> Self {
        let mut rng = LaneRng::default();
        let [c0, c1, c2, _] = counter.at(0);
        let (c0, c1, c2) = (
            simd.word(c0.into()),
            simd.word(c1.into()),
            simd.word(c2.into()),
        );
        for half in 0..2 {
            let last: Eight<u64> =
                Eight([2, 4, 6, 8, 10, 12, 14, 16].map(|i| counter.at(i + half)[3].into()));
            let [low, high] = [2 * half as usize, 2 * half as usize + 1];
            for part in 0..S::PARTS {
                let at = part * S::WIDTH;
                let c3 = simd.load_words(&last.0[at..]);
                let [x0, x1, x2, x3] = philox_lanes([c0, c1, c2, c3], seed.key());
                (x0 | x1.shl::<32>()).store(&mut rng.state[low].0[at..]);
                (x2 | x3.shl::<32>()).store(&mut rng.state[high].0[at..]);
            }
        }
        rng
    }

    /// Starts from 256 bits for each lane, word by word; no lane may start at zero.
    pub fn from_words(state: [Eight<u64>; 4]) -> Self {
        debug_assert!((0..LANES).all(|lane| state.iter().any(|words| words.0[lane] != 0)));
        LaneRng { state }
    }

    /// The generators of one part, to take words from.
    #[inline(always)]
    pub fn part<S: Simd>(&self, simd: S, part: usize) -> PartRng<S::Word> {
        // no closure: see `Kernel`
        let at = part * S::WIDTH;
        let [s0, s1, s2, s3] = &self.state;
        PartRng([
            simd.load_words(&s0.0[at..]),
            simd.load_words(&s1.0[at..]),
            simd.load_words(&s2.0[at..]),
            simd.load_words(&s3.0[at..]),
        ])
    }

    /// Takes the generators of one part back.
    #[inline(always)]
    pub fn put_back<S: Simd>(&mut self, _: S, part: usize, rng: PartRng<S::Word>) {
        for (state, word) in self.state.iter_mut().zip(rng.0) {
            word.store(&mut state.0[part * S::WIDTH..]);
        }
    }

    /// The generator of one lane, to take words from.
    pub fn lane(&mut self, lane: usize) -> Lane<'_> {
        Lane { rng: self, lane }
    }
}

/// Where a block of states draws from: the generators of its address, made when first asked for.
#[derive(Debug, Clone)]
pub struct BlockRng {
    seed: Seed,
    counter: Counter,
    lanes: Option<LaneRng>,
    single: Option<Rng>,
}

impl BlockRng {
    /// The same with other generators in the lanes.
    pub fn with_lanes(self, lanes: LaneRng) -> Self {
        BlockRng {
            lanes: Some(lanes),
            ..self
        }
    }

    /// What is drawn in vectors.
    #[inline(always)]
    pub fn lanes<S: Simd>(&mut self, simd: S) -> &mut LaneRng {
        let lanes = match self.lanes.take() {
            Some(lanes) => lanes,
            None => LaneRng::start(simd, self.seed, self.counter),
        };
        self.lanes.insert(lanes)
    }

    /// What is drawn one after the other.
    #[inline]
    pub fn single(&mut self) -> &mut Rng {
        self.single
            .get_or_insert_with(|| Rng::start(self.seed, self.counter))
    }
}

/// One of eight generators.
#[derive(Debug)]
pub struct Lane<'a> {
    rng: &'a mut LaneRng,
    lane: usize,
}

impl Words for Lane<'_> {
    fn next_word(&mut self) -> u64 {
        debug_assert!(self.lane < LANES);
        let mut rng = PartRng(self.rng.state.map(|words| words.0[self.lane]));
        let word = rng.words();
        for (state, word) in self.rng.state.iter_mut().zip(rng.0) {
            state.0[self.lane] = word;
        }
        word
    }
}

/// xoshiro256++ in each lane of a vector.
#[derive(Debug, Clone, Copy)]
pub struct PartRng<W>([W; 4]);

impl<W: Word> PartRng<W> {
    /// The next words.
    #[inline(always)]
    pub fn words(&mut self) -> W {
        let [s0, s1, s2, s3] = self.0;
        let sum = s0.plus(s3);
        let result = (sum.shl::<23>() | sum.shr::<41>()).plus(s0);
        let s2 = s2 ^ s0;
        let s3 = s3 ^ s1;
        self.0 = [
            s0 ^ s3,
            s1 ^ s2,
            s2 ^ s1.shl::<17>(),
            s3.shl::<45>() | s3.shr::<19>(),
        ];
        result
    }

    /// Uniform numbers in (0, 1), those of [`Words::open_uniform`].
    #[inline(always)]
    pub fn open_uniform(&mut self) -> W::Real {
        open_uniform(self.words())
    }
}

/// Uniform numbers in (0, 1) from the upper 52 bits of words: (k + 1/2) 2^-52 with k uniform.
#[inline(always)]
pub(crate) fn open_uniform<W: Word>(word: W) -> W::Real {
    let from_one = (word.shr::<12>() | W::of(word, 1023 << 52)).to_real();
    from_one - (1.0 - 0.5 / (1u64 << 52) as f64)
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
    /// From the Philox blocks 0 and 1.
    #[inline]
    fn start(seed: Seed, counter: Counter) -> Self {
        let a = philox4x32_10(counter.at(0), seed.key());
        let b = philox4x32_10(counter.at(1), seed.key());
        Rng::from_words([
            join(a[0], a[1]),
            join(a[2], a[3]),
            join(b[0], b[1]),
            join(b[2], b[3]),
        ])
    }

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

//! Eight lanes: every instruction set gives the bits of the portable one, and its draws follow their
//! laws.
//!
//! Laws are compared by the likelihood ratio, and a false alarm is bounded by a theorem, not by the
//! limit of many draws: see [`surprise`].

use std::collections::HashSet;
use std::fmt::Debug;

use ltde_core::binomial::{MAX_COUNT, REJECTION_FROM, Rejection};
use ltde_core::hat::MANY;
use ltde_core::math::{exp, ln, ln_1p, stirling_tail};
use ltde_core::multinomial::{DrawRows, Row, Scratch, normalize};
use ltde_core::rng::{BlockRng, LaneRng, MAX_STEP, Purpose, Rng, Seed, Words, philox4x32_10};
use ltde_core::simd::{Eight, InstructionSet, Kernel, LANES, Mask, Real, Simd, Word, dispatch_to};
use proptest::prelude::*;

/// The instruction sets of this processor.
fn present() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::ALL.into_iter().filter(|set| set.is_there())
}

/// Whether a run compares AVX-512 shows in what this prints (tests/emulate.sh reads it).
#[test]
fn instruction_sets_are_named() {
    let names: Vec<&str> = present().map(InstructionSet::name).collect();
    println!("instruction sets: {}", names.join(", "));
    assert_eq!(names[0], "portable");
}

/// Words for inputs.
fn words(tag: u64) -> Rng {
    Seed(tag).stream(Purpose::Sample, 0, 0, 0)
}

// Operations

/// One input of each lane, as bits.
type Lanes = [u64; LANES];

/// What came out of each operation, as bits.
type Log = Vec<(&'static str, Vec<u64>)>;

/// Applies operations to N inputs of each lane.
struct Trial<'a, S, const N: usize> {
    simd: S,
    inputs: &'a [Lanes; N],
    log: Log,
}

impl<'a, S: Simd, const N: usize> Trial<'a, S, N> {
    fn new(simd: S, inputs: &'a [Lanes; N]) -> Self {
        assert_eq!(S::WIDTH * S::PARTS, LANES);
        let log = Log::new();
        Trial { simd, inputs, log }
    }

    /// The words of a part, which begins at lane `at`.
    #[inline(always)]
    fn words(&self, at: usize) -> [S::Word; N] {
        let mut words = [self.simd.word(0); N];
        for (word, input) in words.iter_mut().zip(self.inputs) {
            *word = self.simd.load_words(&input[at..]);
        }
        words
    }

    /// The same bits as numbers.
    #[inline(always)]
    fn reals(&self, at: usize) -> [S::Real; N] {
        let mut reals = [self.simd.real(0.0); N];
        for (real, input) in reals.iter_mut().zip(self.inputs) {
            *real = self.simd.load(&input.map(f64::from_bits)[at..]);
        }
        reals
    }

    /// Logs numbers; one NaN is as good as another.
    #[inline(always)]
    fn real(&mut self, name: &'static str, f: impl Fn([S::Real; N]) -> S::Real) {
        let mut out = [0.0; LANES];
        for at in (0..LANES).step_by(S::WIDTH) {
            f(self.reals(at)).store(&mut out[at..]);
        }
        let bits = |x: f64| if x.is_nan() { u64::MAX } else { x.to_bits() };
        self.log.push((name, out.map(bits).to_vec()));
    }

    /// Logs truth values.
    #[inline(always)]
    fn mask(&mut self, name: &'static str, f: impl Fn([S::Real; N]) -> <S::Real as Real>::Mask) {
        let mut out = 0;
        for at in (0..LANES).step_by(S::WIDTH) {
            let mask = f(self.reals(at));
            let bits = mask.bits();
            assert_eq!(mask.any(), bits != 0, "{name}");
            assert_eq!(bits >> S::WIDTH, 0, "{name}");
            out |= bits << at;
        }
        self.log.push((name, vec![out.into()]));
    }

    /// Logs words.
    #[inline(always)]
    fn word(&mut self, name: &'static str, f: impl Fn([S::Word; N]) -> S::Word) {
        let mut out = [0; LANES];
        for at in (0..LANES).step_by(S::WIDTH) {
            f(self.words(at)).store(&mut out[at..]);
        }
        self.log.push((name, out.to_vec()));
    }
}

/// All instruction sets log the same.
fn assert_same<K: Kernel<Output = Log> + Copy + Debug>(kernel: K) {
    let want = dispatch_to(InstructionSet::Portable, kernel);
    for set in present() {
        let got = dispatch_to(set, kernel);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got, want, "{} with {kernel:x?}", set.name());
        }
    }
}

/// Arithmetic and all else that takes any numbers x, y, z.
#[derive(Debug, Clone, Copy)]
struct Arithmetic([Lanes; 3]);

impl Kernel for Arithmetic {
    type Output = Log;

    fn run<S: Simd>(self, simd: S) -> Log {
        let mut t = Trial::new(simd, &self.0);
        t.real("load", |[x, ..]| x);
        t.real("in every lane", |_| simd.real(0.1));
        t.real("of", |[x, ..]| x.of(-0.0));
        t.real("+", |[x, y, _]| x + y);
        t.real("-", |[x, y, _]| x - y);
        t.real("*", |[x, y, _]| x * y);
        t.real("/", |[x, y, _]| x / y);
        t.real("+ number", |[x, ..]| x + 0.3);
        t.real("- number", |[x, ..]| x - 4_503_599_627_370_496.0);
        t.real("* number", |[x, ..]| x * 1.7);
        t.real("negative", |[x, ..]| -x);
        t.real("sqrt", |[x, ..]| x.sqrt());
        t.real("abs", |[x, ..]| x.abs());
        t.real("floor", |[x, ..]| x.floor());
        t.real("min", |[x, y, _]| x.min(y));
        t.mask("<", |[x, y, _]| x.lt(y));
        t.mask("<=", |[x, y, _]| x.le(y));
        t.mask("and", |[x, y, z]| x.lt(y) & y.le(z));
        t.mask("or", |[x, y, z]| x.lt(y) | y.lt(z));
        t.mask("not", |[x, y, _]| !x.lt(y));
        t.real("select", |[x, y, z]| S::Real::select(x.lt(y), y, z));
        t.real("patch", |[x, y, _]| x.patch(x.le(y), |x| 3.0 * x - 1.0));
        t.word("bits", |[x, y, _]| {
            (x.to_real() * y.to_real().abs()).to_bits() & x
        });
        let mut together = [0.0; 2 * LANES];
        let mut len = 0;
        for at in (0..LANES).step_by(S::WIDTH) {
            let [x, y, z] = t.reals(at);
            len += z.compress(x.lt(y), &mut together[len..]);
        }
        let defined = together[..len].iter().map(|x| x.to_bits()).collect();
        t.log.push(("compress", defined));
        t.log
    }
}

/// Numbers at which something changes.
fn special_numbers() -> Vec<f64> {
    let powers = [
        0.5,
        1.0,
        2.0,
        16.0,
        2f64.powi(31),
        2f64.powi(32),
        2f64.powi(51),
    ];
    let large = [52, 53, 62, 63, 64, 1000].map(|e| 2f64.powi(e));
    let mut numbers = vec![
        0.0,
        f64::from_bits(1),
        f64::from_bits((1 << 52) - 1),
        f64::MIN_POSITIVE,
        0.1,
        1.5,
        1e300,
        f64::MAX,
        f64::INFINITY,
        2f64.powi(52) - 0.5,
        2f64.powi(51) + 0.5,
    ];
    for x in powers.into_iter().chain(large) {
        numbers.extend([x.next_down(), x, x.next_up()]);
    }
    let negative: Vec<f64> = numbers.iter().map(|x| -x).collect();
    numbers.extend(negative);
    numbers
}

/// A finite number of any size, or one near an integer.
fn random_number(rng: &mut Rng) -> f64 {
    let word = rng.next_word();
    match rng.next_word() % 4 {
        0 => match f64::from_bits(word) {
            x if x.is_finite() => x,
            _ => 1.0,
        },
        1 => (word >> (rng.next_word() % 60 + 1)) as f64 - 1000.0,
        2 => ((word % 2000) as f64 - 1000.0).next_up(),
        _ => rng.open_uniform() * 4.0 - 2.0,
    }
}

/// All pairs of special numbers, and 20,000 times random ones.
#[test]
fn arithmetic_has_the_same_bits() {
    let mut rng = words(1);
    let special = special_numbers();
    let pairs: Vec<(f64, f64)> = special
        .iter()
        .flat_map(|&x| special.iter().map(move |&y| (x, y)))
        .collect();
    for pairs in pairs.chunks(LANES) {
        let mut inputs = [[0; LANES]; 3];
        for lane in 0..LANES {
            let (x, y) = pairs[lane % pairs.len()];
            let z = random_number(&mut rng);
            for (input, x) in inputs.iter_mut().zip([x, y, z]) {
                input[lane] = x.to_bits();
            }
        }
        assert_same(Arithmetic(inputs));
    }
    for _ in 0..20_000 {
        let inputs = [(); 3].map(|_| [(); LANES].map(|_| random_number(&mut rng).to_bits()));
        assert_same(Arithmetic(inputs));
    }
}

/// Operations on words x, y and z.
#[derive(Debug, Clone, Copy)]
struct Integers {
    inputs: [Lanes; 3],
    limits: usize,
}

impl Kernel for Integers {
    type Output = Log;

    fn run<S: Simd>(self, simd: S) -> Log {
        let mut t = Trial::new(simd, &self.inputs);
        t.word("load", |[x, ..]| x);
        t.word("in every lane", |_| simd.word(u64::MAX - 1));
        t.word("of", |[x, ..]| x.of(1 << 63));
        t.word("and", |[x, y, _]| x & y);
        t.word("or", |[x, y, _]| x | y);
        t.word("xor", |[x, y, _]| x ^ y);
        t.word("plus", |[x, y, _]| x.plus(y));
        t.word("minus", |[x, y, _]| x.minus(y));
        t.word("mul_low", |[x, y, _]| x.mul_low(y));
        t.word("shl 0", |[x, ..]| x.shl::<0>());
        t.word("shl 1", |[x, ..]| x.shl::<1>());
        t.word("shl 17", |[x, ..]| x.shl::<17>());
        t.word("shl 23", |[x, ..]| x.shl::<23>());
        t.word("shl 32", |[x, ..]| x.shl::<32>());
        t.word("shl 45", |[x, ..]| x.shl::<45>());
        t.word("shl 52", |[x, ..]| x.shl::<52>());
        t.word("shl 63", |[x, ..]| x.shl::<63>());
        t.word("shr 0", |[x, ..]| x.shr::<0>());
        t.word("shr 1", |[x, ..]| x.shr::<1>());
        t.word("shr 12", |[x, ..]| x.shr::<12>());
        t.word("shr 19", |[x, ..]| x.shr::<19>());
        t.word("shr 32", |[x, ..]| x.shr::<32>());
        t.word("shr 41", |[x, ..]| x.shr::<41>());
        t.word("shr 63", |[x, ..]| x.shr::<63>());
        t.word("as numbers and back", |[x, ..]| x.to_real().to_bits());
        t.word("shl_by", |[x, y, _]| x.shl_by(y & simd.word(0x7F)));
        t.word("shl_by much", |[x, y, _]| x.shl_by(y));
        t.word("minus16_or_zero", |[x, y, _]| x.minus16_or_zero(y));
        t.word("look_up", |[x, ..]| x.look_up(&TABLE)[0].to_bits());
        t.word("look_up 1", |[x, ..]| x.look_up(&TABLE)[1].to_bits());
        t.word("look_up 2", |[x, ..]| x.look_up(&TABLE)[2].to_bits());
        t.word("look_up 3", |[x, ..]| x.look_up(&TABLE)[3].to_bits());
        t.word("spread8", |[x, ..]| x.spread8());
        t.word("min8", |[x, y, _]| x.min8(y));
        t.word("sum_bytes", |[x, ..]| x.sum_bytes());
        let mut signed = [0; LANES];
        let mut counts = [[0; LANES]; 6];
        let mut any = [false; 2];
        for at in (0..LANES).step_by(S::WIDTH) {
            let [x, y, z] = t.words(at);
            x.store_signed(&mut signed[at..]);
            any[0] |= x.any();
            any[1] |= (x ^ y).any();
            let limits = [y, z, y.min8(z)];
            let before = [simd.word(0), simd.word(0x00FE_0001_FE00_0080), simd.word(7)];
            let (mut above, mut equal) = (before, before);
            x.compare8(
                &limits[..self.limits],
                &mut above[..self.limits],
                &mut equal[..self.limits],
            );
            for (counts, sum) in counts.iter_mut().zip(above.into_iter().chain(equal)) {
                sum.store(&mut counts[at..]);
            }
        }
        t.log
            .push(("store_signed", signed.map(|x| x as u64).to_vec()));
        t.log.push(("compare8", counts.as_flattened().to_vec()));
        t.log.push(("any", any.map(u64::from).to_vec()));
        t.log
    }
}

/// Extreme bytes in all places, and random words; words that are alike, or but for one bit.
#[test]
fn integers_have_the_same_bits() {
    const SPECIAL: [u8; 8] = [0, 1, 2, 0x7E, 0x7F, 0x80, 0x81, 0xFF];
    let mut rng = words(2);
    let pick = |rng: &mut Rng| {
        u64::from_le_bytes([(); 8].map(|_| SPECIAL[(rng.next_word() % 8) as usize]))
    };
    for case in 0..40_000 {
        let mut inputs = [[0; LANES]; 3];
        for input in &mut inputs {
            for word in input {
                *word = match case % 2 {
                    0 => pick(&mut rng),
                    _ => rng.next_word(),
                };
            }
        }
        let lane = (rng.next_word() % 8) as usize;
        let different = rng.next_word().is_multiple_of(2);
        if case % 4 == 3 {
            inputs[1] = inputs[0];
            inputs[1][lane] ^= u64::from(different) << (rng.next_word() % 64);
        }
        let integers = Integers {
            inputs,
            limits: (rng.next_word() % 4) as usize,
        };
        assert_same(integers);
        let log = dispatch_to(InstructionSet::Portable, integers);
        if let (3, Some((_, any))) = (case % 4, log.last()) {
            assert_eq!(any[1], different.into());
        }
    }
}

/// The bytes of words, one by one.
#[test]
fn bytes_are_signed() {
    let x = u64::from_le_bytes([0x80, 0xFF, 0, 1, 0x7F, 5, 5, 5]);
    let limit = u64::from_le_bytes([0x7F, 0xFE, 0, 0x80, 0x7E, 4, 5, 6]);
    let (mut above, mut equal) = ([0xFE_FE_FE_FE_FE_FE_FE_FE], [0]);
    Word::compare8(x, &[limit], &mut above, &mut equal);
    assert_eq!(
        above[0].to_le_bytes(),
        [254, 255, 254, 255, 255, 255, 254, 254]
    );
    assert_eq!(equal[0].to_le_bytes(), [0, 0, 1, 0, 0, 0, 1, 0]);
    // all pairs of bytes, between others that are extreme
    const PLACES: u64 = 0x0100_0001_0001_0001;
    let word = |z: i8| (u64::from(z as u8) * PLACES) | 0x7F << 40 | 0x80 << 24;
    for x in i8::MIN..=i8::MAX {
        for y in i8::MIN..=i8::MAX {
            let (mut above, mut equal) = ([0], [0]);
            Word::compare8(word(x), &[word(y)], &mut above, &mut equal);
            assert_eq!(above[0], u64::from(x > y) * PLACES, "{x} {y}");
            assert_eq!(equal[0] & PLACES, u64::from(x == y) * PLACES, "{x} {y}");
            assert_eq!(Word::min8(word(x), word(y)), word(x.min(y)), "{x} {y}");
        }
    }
    assert_eq!(
        Word::min8(x, limit).to_le_bytes(),
        [0x80, 0xFE, 0, 0x80, 0x7E, 4, 5, 5]
    );
    assert_eq!(
        Word::minus16_or_zero(0x0005_0003_FFFF_0001, 0x0003_0005_0001_0001),
        0x0002_0000_FFFE_0000
    );
    assert_eq!(Word::look_up(0xFF13, &TABLE), [16.0, 17.0, 18.0, 19.0]);
    assert_eq!(
        [0, 1, 63, 64, 65, u64::MAX].map(|by| Word::shl_by(3, by)),
        [3, 6, 1 << 63, 0, 0, 0]
    );
}

/// Numbers that say where they are.
const TABLE: [f64; 32] = {
    let mut table = [0.0; 32];
    let mut i = 0;
    while i < table.len() {
        table[i] = i as f64;
        i += 1;
    }
    table
};

/// Elementary functions: of positive normal numbers, of numbers above -1, of numbers in
/// [-700, 700], of counts; and n p in two parts.
#[derive(Debug, Clone, Copy)]
struct Functions([Lanes; 6]);

impl Kernel for Functions {
    type Output = Log;

    fn run<S: Simd>(self, simd: S) -> Log {
        let mut t = Trial::new(simd, &self.0);
        t.real("ln", |[x, ..]| ln(x));
        t.real("ln_1p", |[_, x, ..]| ln_1p(x));
        t.real("exp", |[_, _, x, ..]| exp(x));
        t.real("stirling_tail", |[_, _, _, k, ..]| stirling_tail(k));
        t.real("product", |[_, _, _, _, n, p]| n.two_product(p).0);
        t.real("its error", |[_, _, _, _, n, p]| n.two_product(p).1);
        t.log
    }
}

/// 10^x for x uniform.
fn decades(rng: &mut Rng, from: f64, to: f64) -> f64 {
    10f64.powf(from + (to - from) * rng.open_uniform())
}

/// An integer in [1, 2^53] of any size.
fn random_count(rng: &mut Rng) -> f64 {
    ((rng.next_word() >> 11 >> (rng.next_word() % 53)) + 1) as f64
}

/// 40,000 times random inputs of all sizes, and special ones: the ends of the domains, the turning
/// points of the mantissa, the table of [`stirling_tail`] and its end.
#[test]
fn functions_have_the_same_bits() {
    let mut rng = words(3);
    let sqrt_half = std::f64::consts::FRAC_1_SQRT_2;
    let of_ln = [
        f64::MIN_POSITIVE,
        f64::MAX,
        1.0,
        1.0f64.next_down(),
        1.0f64.next_up(),
        sqrt_half,
        sqrt_half.next_up(),
        2.0 * sqrt_half,
    ];
    let of_ln_1p = [
        0.0,
        -0.0,
        -0.5,
        1e-300,
        -1e-17,
        1e17,
        1e300,
        (-1f64).next_up(),
    ];
    let of_exp = [
        0.0,
        -0.0,
        700.0,
        -700.0,
        1e-20,
        0.5f64.ln() * 0.5,
        0.5,
        -0.5,
    ];
    let probabilities = [
        1e-15,
        0.5,
        0.25,
        1.0 / 3.0,
        0.1,
        1e-9,
        0.5f64.next_down(),
        0.3,
    ];
    for case in 0..40_000 {
        let mut inputs = [[0.0; LANES]; 6];
        for lane in 0..LANES {
            let special = case < 100 || rng.next_word().is_multiple_of(16);
            let i = (rng.next_word() % 8) as usize;
            let x = if special {
                [
                    of_ln[i],
                    of_ln_1p[i],
                    of_exp[i],
                    i as f64,
                    MAX_COUNT as f64,
                    probabilities[i],
                ]
            } else {
                let of_ln_1p = match rng.next_word() % 3 {
                    0 => -decades(&mut rng, -18.0, -1e-9),
                    1 => decades(&mut rng, -18.0, 20.0),
                    _ => rng.open_uniform() - 0.5,
                };
                [
                    decades(&mut rng, -307.0, 308.0),
                    of_ln_1p,
                    1400.0 * rng.open_uniform() - 700.0,
                    match rng.next_word() % 3 {
                        0 => random_count(&mut rng),
                        _ => (rng.next_word() % 20) as f64,
                    },
                    random_count(&mut rng),
                    0.5 * decades(&mut rng, -14.6, 0.0),
                ]
            };
            for (input, x) in inputs.iter_mut().zip(x) {
                input[lane] = x;
            }
        }
        assert_same(Functions(inputs.map(|input| input.map(f64::to_bits))));
    }
}

/// All methods of the rejection: n, p, q; a word and v; a distance and a k.
#[derive(Debug, Clone, Copy)]
struct Methods([Lanes; 7]);

impl Kernel for Methods {
    type Output = Log;

    fn run<S: Simd>(self, simd: S) -> Log {
        let mut t = Trial::new(simd, &self.0);
        t.real("candidate", |[n, p, q, word, ..]| {
            Rejection::new(n, p, q).candidate(word.to_bits()).k
        });
        t.real("width", |[n, p, q, word, ..]| {
            Rejection::new(n, p, q).candidate(word.to_bits()).width
        });
        t.mask("accept_at_once", |[n, p, q, word, v, ..]| {
            let law = Rejection::new(n, p, q);
            law.accept_at_once(&law.candidate(word.to_bits()), v)
        });
        t.real("height", |[n, p, q, word, v, ..]| {
            let law = Rejection::new(n, p, q);
            law.height(law.candidate(word.to_bits()).width, v)
        });
        t.real("ln height", |[n, p, q, word, v, ..]| {
            let law = Rejection::new(n, p, q);
            ln(law.height(law.candidate(word.to_bits()).width, v))
        });
        t.real("mode", |[n, p, q, ..]| Rejection::new(n, p, q).mode());
        t.real("series_range", |[n, p, q, ..]| {
            Rejection::new(n, p, q).series_range()
        });
        t.real("series", |[n, p, q, _, _, d, _]| {
            Rejection::new(n, p, q).ln_ratio_series(d).0
        });
        t.real("error of the series", |[n, p, q, _, _, d, _]| {
            Rejection::new(n, p, q).ln_ratio_series(d).1
        });
        t.real("ln_ratio", |[n, p, q, _, _, _, k]| {
            let law = Rejection::new(n, p, q);
            law.ln_ratio(law.mode(), k)
        });
        t.log
    }
}

/// n from 20 to 2^53, p from where n p = 6, words with all strips, and places also at their ends, as
/// v, k up to 60 standard deviations from the mode.
#[test]
fn rejection_has_the_same_bits() {
    let mut rng = words(4);
    let end = 0.5f64.powi(53);
    for _ in 0..40_000 {
        let mut inputs = [[0.0; LANES]; 7];
        for lane in 0..LANES {
            let n = random_count(&mut rng).max(20.0);
            let least = (REJECTION_FROM / n).log10();
            let p = match rng.next_word() % 4 {
                0 => 0.5,
                1 => REJECTION_FROM / n,
                _ => decades(&mut rng, least, 0.5f64.log10()),
            };
            let p = p.max((REJECTION_FROM / n).next_up()).min(0.5);
            const PLACE: u64 = u64::MAX << 12;
            const TAIL: u64 = (MANY as u64 - 1) << 2;
            let word = match rng.next_word() % 16 {
                0 => rng.next_word() & !PLACE,
                1 => rng.next_word() | PLACE,
                2 => rng.next_word() | TAIL,
                3 => rng.next_word() & !PLACE | TAIL,
                _ => rng.next_word(),
            };
            let v = match rng.next_word() % 16 {
                0 => end,
                1 => 1.0 - end,
                _ => rng.open_uniform(),
            };
            let sd = (n * p * (1.0 - p)).sqrt();
            let z = (rng.open_uniform() - 0.5) * decades(&mut rng, -2.0, 2.0);
            let k = (n * p + z * sd).round().clamp(0.0, n);
            let distance = (z * sd).abs().round();
            let values = [n, p, 1.0 - p, f64::from_bits(word), v, distance, k];
            for (input, x) in inputs.iter_mut().zip(values) {
                input[lane] = x;
            }
        }
        assert_same(Methods(inputs.map(|input| input.map(f64::to_bits))));
    }
}

// Generators

/// The first `len` words of all lanes, and the generators before and after.
struct Take {
    rng: BlockRng,
    len: usize,
}

impl Kernel for Take {
    type Output = (LaneRng, Vec<Lanes>, LaneRng);

    fn run<S: Simd>(mut self, simd: S) -> Self::Output {
        let lanes = self.rng.lanes(simd);
        let before = lanes.clone();
        let mut out = vec![[0; LANES]; self.len];
        for part in 0..S::PARTS {
            let mut words = lanes.part(simd, part);
            for out in &mut out {
                words.words().store(&mut out[part * S::WIDTH..]);
            }
            lanes.put_back(simd, part, words);
        }
        (before, out, lanes.clone())
    }
}

/// The lanes as they are.
fn lanes_of(set: InstructionSet, rng: &BlockRng) -> LaneRng {
    let rng = rng.clone();
    dispatch_to(set, Take { rng, len: 0 }).0
}

/// Uniform numbers of all lanes.
struct TakeUniforms(LaneRng);

impl Kernel for TakeUniforms {
    type Output = [f64; LANES];

    fn run<S: Simd>(self, simd: S) -> [f64; LANES] {
        let mut out = [0.0; LANES];
        for part in 0..S::PARTS {
            let uniforms = self.0.part(simd, part).open_uniform();
            uniforms.store(&mut out[part * S::WIDTH..]);
        }
        out
    }
}

#[derive(Debug, Clone, Copy)]
struct Address {
    seed: u64,
    purpose: Purpose,
    replica: u32,
    step: u64,
    block: u32,
}

impl Address {
    /// Two Philox blocks, from the documented layout of the counter.
    fn state(self, first: u32) -> [u64; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let half = |i: u32| {
            let high = i << 24 | (self.purpose as u32) << 16 | (self.step >> 32) as u32;
            let x = philox4x32_10([self.block, self.replica, self.step as u32, high], key);
            let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            [join(x[0], x[1]), join(x[2], x[3])]
        };
        let ([a, b], [c, d]) = (half(first), half(first + 1));
        [a, b, c, d]
    }

    /// Where each lane starts.
    fn lanes(self) -> [[u64; 4]; LANES] {
        [2, 4, 6, 8, 10, 12, 14, 16].map(|first| self.state(first))
    }

    fn block(self) -> BlockRng {
        Seed(self.seed).block(self.purpose, self.replica, self.step, self.block)
    }

    fn stream(self) -> Rng {
        Seed(self.seed).stream(self.purpose, self.replica, self.step, self.block)
    }
}

/// Generators that start from these states.
fn from_states(states: [[u64; 4]; LANES]) -> LaneRng {
    LaneRng::from_words([0, 1, 2, 3].map(|i| Eight(states.map(|state| state[i]))))
}

fn addresses() -> impl Iterator<Item = Address> {
    let seeds = [0, 1, 0x0123_4567_89AB_CDEF, u64::MAX];
    let steps = [
        0,
        1,
        2,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 32) + 1,
        MAX_STEP,
    ];
    let purposes = [
        Purpose::Step,
        Purpose::Initial,
        Purpose::Sample,
        Purpose::Team,
    ];
    seeds.into_iter().flat_map(move |seed| {
        steps.into_iter().flat_map(move |step| {
            purposes.into_iter().flat_map(move |purpose| {
                [0, 1, 2, 3, 17, u32::MAX]
                    .into_iter()
                    .flat_map(move |replica| {
                        [0, 1, 2, 3, 200, u32::MAX].map(|block| Address {
                            seed,
                            purpose,
                            replica,
                            step,
                            block,
                        })
                    })
            })
        })
    })
}

/// Each lane is a plain xoshiro256++ from its two Philox blocks, word for word; so is what is left
/// of it, taken from one lane or as uniform numbers.
#[test]
fn lanes_are_plain_generators() {
    for (i, address) in addresses().enumerate() {
        let len = if i % 32 == 0 { 100 } else { 3 };
        let states = address.lanes();
        let start = from_states(states);
        for set in present() {
            let rng = address.block();
            let (before, words, mut after) = dispatch_to(set, Take { rng, len });
            assert_eq!(before, start, "{address:?}");
            let uniforms = dispatch_to(set, TakeUniforms(after.clone()));
            for (lane, state) in states.into_iter().enumerate() {
                let mut plain = Rng::from_words(state);
                for word in &words {
                    assert_eq!(word[lane], plain.next_word(), "{address:?}");
                }
                assert_eq!(uniforms[lane], plain.clone().open_uniform());
                for _ in 0..3 {
                    assert_eq!(after.lane(lane).next_word(), plain.next_word());
                }
            }
        }
    }
}

/// No lane starts where another one or a stream starts, of the same or of any other address; and
/// the first 10,000 words of the lanes and the stream of one address are all different (a chance of
/// 10^-9 that some are not).
#[test]
fn lanes_share_nothing_with_streams() {
    let mut starts = HashSet::new();
    for address in addresses() {
        let stream = address.state(0);
        assert_eq!(address.stream(), Rng::from_words(stream));
        assert_eq!(address.block().single().clone(), address.stream());
        assert!(starts.insert(stream));
        for state in address.lanes() {
            assert!(starts.insert(state));
        }
    }
    assert!(starts.len() > 30_000);
    let address = addresses().last().unwrap();
    for set in present() {
        let rng = address.block();
        let (_, words, _) = dispatch_to(set, Take { rng, len: 10_000 });
        let mut stream = address.stream();
        let mut seen: HashSet<u64> = (0..10_000).map(|_| stream.next_word()).collect();
        for word in words.as_flattened() {
            assert!(seen.insert(*word));
        }
    }
}

// Draws

/// The state of a xoshiro256++ whose next three words are given; `free` decides on the rest.
fn state_before(next: [u64; 3], free: u64) -> [u64; 4] {
    // s3 from s0 and the word that they give
    let last = |s0: u64, word: u64| {
        let sum = word.wrapping_sub(s0).rotate_right(23);
        sum.wrapping_sub(s0)
    };
    // the names count steps back from the third word
    let s0 = free;
    let s3 = last(s0, next[2]);
    let mixed = s3.rotate_right(45);
    let before_s0 = s0 ^ mixed;
    let before_s3 = last(before_s0, next[1]);
    let before_s1 = before_s3 ^ mixed;
    let mixed = before_s3.rotate_right(45);
    let first_s0 = before_s0 ^ mixed;
    let first_s3 = last(first_s0, next[0]);
    let first_s1 = first_s3 ^ mixed;
    let first_s2 = before_s1 ^ first_s1 ^ first_s0;
    [first_s0, first_s1, first_s2, first_s3]
}

#[test]
fn states_before_give_their_words() {
    let mut rng = words(5);
    for _ in 0..1000 {
        let next = [(); 3].map(|_| rng.next_word());
        let mut crafted = Rng::from_words(state_before(next, rng.next_word()));
        assert_eq!([(); 3].map(|_| crafted.next_word()), next);
    }
}

/// Rows with their weights, and what is in `out` before.
#[derive(Debug, Clone, Default)]
struct Batch {
    rows: Vec<Row>,
    weights: Vec<f64>,
    out: Vec<i64>,
}

/// What one row of a batch is made from.
#[derive(Debug, Clone, Copy)]
struct Spec {
    width: usize,
    regime: u8,
    shape: u8,
    /// Whether it takes weights and counts of the row before, if that has the same width.
    shared: bool,
    seed: u64,
}

/// Most agents of a row that are drawn one by one, about; see `multinomial`.
fn about_few(width: usize) -> i64 {
    match width {
        0..=6 => 900 * (width as i64 - 1) / (2 + width as i64),
        _ => 450,
    }
}

impl Spec {
    fn count(&self, rng: &mut Rng) -> i64 {
        let word = (rng.next_word() >> 1) as i64;
        match self.regime {
            0 => 1 + word % 20,
            1 => (about_few(self.width) + word % 7 - 3).max(1),
            2 => 21 + word % 600,
            3 => 1000 + word % 99_000,
            4 => (1 << (17 + word % 36)) + (word >> 20) % (1 << 17),
            _ => MAX_COUNT as i64 - word % 3,
        }
    }

    /// Weights with a sum of 1, but for 10^-9.
    fn weights(&self, rng: &mut Rng) -> Vec<f64> {
        let width = self.width;
        let any = (rng.next_word() % width as u64) as usize;
        let mut weights: Vec<f64> = (0..width)
            .map(|_| match self.shape {
                0 => rng.open_uniform(),
                1 => decades(rng, -300.0, 0.0),
                2 => f64::from_bits(rng.next_word() >> 12),
                3 => 0.0,
                4 => (rng.next_word() % 2) as f64 * rng.open_uniform(),
                5 => 1.0,
                _ => decades(rng, -12.0, 0.0),
            })
            .collect();
        match (self.shape, rng.next_word() % 4) {
            (0, 1) => weights[..any].fill(0.0),
            (0, 2) => weights[any + 1..].fill(0.0),
            (0, 3) => weights[any / 2..any].fill(0.0),
            _ => {}
        }
        if weights.iter().all(|&w| w == 0.0) {
            weights[any] = 1.0;
        }
        normalize(&mut weights).unwrap();
        if self.shape == 6 {
            // multiples of 2^-16, with a sum of exactly 1
            weights
                .iter_mut()
                .for_each(|w| *w = (*w * 65_536.0).floor() / 65_536.0);
            weights[any] += 1.0 - weights.iter().sum::<f64>();
        } else if rng.next_word().is_multiple_of(2) {
            let factor = 1.0 + 2e-9 * (rng.open_uniform() - 0.5);
            weights.iter_mut().for_each(|w| *w *= factor);
        }
        weights
    }
}

impl Batch {
    fn new(specs: &[Spec]) -> Self {
        let mut batch = Batch::default();
        let mut width_before = 0;
        for spec in specs {
            let mut rng = words(spec.seed);
            let n = spec.count(&mut rng);
            let width = spec.width;
            if spec.shared && width == width_before {
                let row = Row {
                    n,
                    ..batch.rows[batch.rows.len() - 1]
                };
                batch.rows.push(row);
                continue;
            }
            width_before = width;
            // a gap of one between the rows
            let row = Row {
                n,
                weights: batch.weights.len() + 1,
                out: batch.out.len() + 1,
                width: width as u32,
            };
            batch.rows.push(row);
            batch.weights.push(f64::NAN);
            batch.weights.extend(spec.weights(&mut rng));
            batch
                .out
                .extend((0..=width).map(|_| (rng.next_word() >> 40) as i64));
        }
        batch
    }

    /// Draws the batch; `out` as it is then.
    fn draw(&self, set: InstructionSet, rng: &mut BlockRng, scratch: &mut Scratch) -> Vec<i64> {
        let mut out = self.out.clone();
        let draws = DrawRows {
            rng,
            rows: &self.rows,
            weights: &self.weights,
            scratch,
            out: &mut out,
        };
        dispatch_to(set, draws);
        out
    }

    /// Agents conserved, none negative, nobody where the weight is zero, nothing between the rows.
    fn assert_possible(&self, out: &[i64]) {
        let mut left: Vec<i64> = out
            .iter()
            .zip(&self.out)
            .map(|(o, before)| o - before)
            .collect();
        let mut rows = self.rows.as_slice();
        while let Some(&row) = rows.first() {
            let shared = rows.iter().take_while(|other| other.out == row.out).count();
            let n: i64 = rows[..shared].iter().map(|row| row.n).sum();
            let width = row.width as usize;
            let drawn = &mut left[row.out..][..width];
            assert_eq!(drawn.iter().sum::<i64>(), n, "{row:?}: {drawn:?}");
            for (k, &w) in drawn.iter_mut().zip(&self.weights[row.weights..][..width]) {
                assert!(*k >= 0 && (w > 0.0 || *k == 0), "{row:?}: {k} where {w}");
                *k = 0;
            }
            rows = &rows[shared..];
        }
        assert!(left.iter().all(|&k| k == 0));
    }

    /// Every instruction set draws the same, leaves the generators alike, and keeps nothing of the
    /// batch before; what it draws is possible.
    fn check(&self, rng: &BlockRng, before: &Batch) {
        let portable = InstructionSet::Portable;
        let mut reference = rng.clone();
        let want = self.draw(portable, &mut reference, &mut Scratch::default());
        self.assert_possible(&want);
        let next = reference.single().next_word();
        for set in present() {
            let mut scratch = Scratch::default();
            before.draw(
                set,
                &mut Seed(0).block(Purpose::Sample, 1, 0, 0),
                &mut scratch,
            );
            let mut rng = rng.clone();
            let got = self.draw(set, &mut rng, &mut scratch);
            assert_eq!(got, want, "{}", set.name());
            assert_eq!(lanes_of(set, &rng), lanes_of(portable, &reference));
            assert_eq!(rng.single().next_word(), next);
            // what was there is only added to
            let nothing = Batch {
                out: vec![0; self.out.len()],
                ..self.clone()
            };
            let drawn = nothing.draw(set, &mut rng.clone(), &mut scratch);
            let added = self.draw(set, &mut rng.clone(), &mut scratch);
            for ((drawn, added), before) in drawn.iter().zip(added).zip(&self.out) {
                assert_eq!(drawn + before, added);
            }
        }
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let width = prop_oneof![
        1 => Just(1_usize),
        6 => 2..7_usize,
        3 => 7..33_usize,
        1 => Just(32_usize),
        1 => 33..=40_usize,
    ];
    (
        width,
        0..6_u8,
        0..8_u8,
        prop::bool::weighted(0.2),
        any::<u64>(),
    )
        .prop_map(|(width, regime, shape, shared, seed)| Spec {
            width,
            regime,
            shape,
            shared,
            seed,
        })
}

fn specs(most: usize) -> impl Strategy<Value = Vec<Spec>> {
    prop::collection::vec(spec(), 0..=most)
}

/// Rows of one regime and of one width, which fill tiles and groups.
fn alike() -> impl Strategy<Value = Vec<Spec>> {
    (specs(400), spec()).prop_map(|(mut specs, like)| {
        for spec in &mut specs {
            (spec.width, spec.regime) = (like.width, like.regime);
        }
        specs
    })
}

/// The first words of a lane, often extreme: 0 and the largest, and in all eight places the smallest
/// and the largest of the bytes.
fn lane_state() -> impl Strategy<Value = [u64; 4]> {
    let word = || {
        prop_oneof![
            Just(0),
            Just(u64::MAX),
            Just(1 << 63),
            Just(0x7F7F_7F7F_7F7F_7F7F),
            Just(0x8080_8080_8080_8080),
            any::<u64>(),
        ]
    };
    let crafted =
        ([word(), word(), word()], any::<u64>()).prop_map(|(next, free)| state_before(next, free));
    prop_oneof![
        8 => crafted,
        1 => Just([0, 1, 2, 0]),
        1 => Just([u64::MAX, 0, 0, 1]),
    ]
    .prop_filter("zero", |state| *state != [0; 4])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn draws_have_the_same_bits(seed: u64, specs in specs(400), before in specs(40)) {
        let rng = Seed(seed).block(Purpose::Sample, 0, 0, 0);
        Batch::new(&specs).check(&rng, &Batch::new(&before));
    }

    #[test]
    fn draws_of_like_rows_have_the_same_bits(seed: u64, specs in alike(), before in specs(40)) {
        let rng = Seed(seed).block(Purpose::Step, 3, 1 << 40, 9);
        Batch::new(&specs).check(&rng, &Batch::new(&before));
    }

    #[test]
    fn draws_from_extreme_words_have_the_same_bits(
        seed: u64,
        specs in prop_oneof![specs(30), alike()],
        states in prop::array::uniform8(lane_state()),
    ) {
        let rng = Seed(seed).block(Purpose::Sample, 0, 0, 0).with_lanes(from_states(states));
        Batch::new(&specs).check(&rng, &Batch::default());
    }
}

// Ties

/// The word of an open uniform number (k + 1/2) 2^-52.
fn uniform_word(k: u64) -> u64 {
    k << 12
}

/// The byte of an agent that falls on the v-th of 256 values, and the v of a byte.
fn byte_of_value(v: u64) -> u64 {
    127u8.wrapping_sub(v as u8).into()
}

/// One row in each lane, of n agents with these weights; lane l draws the words `next[l]`. Returns
/// the counts of each lane, and the generators after.
fn draw_lanes(
    set: InstructionSet,
    n: i64,
    weights: &[f64],
    next: [[u64; 3]; LANES],
) -> (Vec<Vec<i64>>, LaneRng) {
    let width = weights.len();
    let lanes = from_states(next.map(|next| state_before(next, 1)));
    let mut rng = Seed(0).block(Purpose::Sample, 0, 0, 0).with_lanes(lanes);
    let row = |lane: usize| Row {
        n,
        weights: 0,
        out: lane * width,
        width: width as u32,
    };
    let batch = Batch {
        rows: (0..LANES).map(row).collect(),
        weights: weights.to_vec(),
        out: vec![0; LANES * width],
    };
    let out = batch.draw(set, &mut rng, &mut Scratch::default());
    let counts = out.chunks(width).map(<[i64]>::to_vec).collect();
    (counts, lanes_of(set, &rng))
}

/// The category of the only agent, from its two bytes and the word of the rest, in each lane.
fn categories(set: InstructionSet, weights: &[f64], agents: [(u64, u64); LANES]) -> Vec<usize> {
    let next = agents.map(|(v, rest)| [byte_of_value(v >> 8), byte_of_value(v & 0xFF), rest]);
    let (counts, _) = draw_lanes(set, 1, weights, next);
    counts
        .iter()
        .map(|counts| {
            assert_eq!(counts.iter().sum::<i64>(), 1, "{weights:?}");
            counts.iter().position(|&c| c == 1).unwrap()
        })
        .collect()
}

/// How many of the 2^68 pairs of two bytes and of the 52 bits of the rest fall into the first of two
/// categories: all values of the two bytes with the smallest and the largest rest, and the rest from
/// which the tied value goes to the second category, by bisection.
fn numerator(set: InstructionSet, p: f64) -> u128 {
    let weights = [p, 1.0 - p];
    assert_eq!(weights[0] + weights[1], 1.0);
    let mut first = 0;
    let mut open = Vec::new();
    for v in (0..1 << 16).step_by(LANES / 2) {
        let mut agents = [(0, 0); LANES];
        for (i, agent) in agents.iter_mut().enumerate() {
            let rest = if i % 2 == 0 { 0 } else { u64::MAX };
            *agent = (v + i as u64 / 2, rest);
        }
        let drawn = categories(set, &weights, agents);
        for (pair, v) in drawn.chunks(2).zip(v..) {
            match pair {
                [0, 0] => first += 1 << 52,
                [0, 1] => open.push(v),
                pair => assert_eq!(pair, [1, 1], "p {p}, value {v}"),
            }
        }
    }
    assert!(open.len() <= 1, "p {p}: {open:?}");
    for v in open {
        let (mut low, mut high) = (0, (1 << 52) - 1);
        while high - low > 1 {
            let k = low + (high - low) / 2;
            let drawn = categories(set, &weights, [(v, uniform_word(k)); LANES]);
            assert!(drawn.iter().all(|&category| category == drawn[0]));
            if drawn[0] == 0 {
                low = k;
            } else {
                high = k;
            }
        }
        first += u128::from(high);
    }
    first
}

/// p 2^68 without rounding, times 2^40.
fn exact_numerator(p: f64) -> u128 {
    let bits = p.to_bits();
    let mantissa = u128::from(bits & ((1 << 52) - 1) | 1 << 52);
    let shift = (bits >> 52) as i32 - 1075 + 108;
    assert!((0..=55).contains(&shift), "{p}");
    mantissa << shift
}

/// The probability of a category is that of its weight up to 2^-69, exactly on multiples of 2^-16,
/// just beside them and between them; no generator is asked in vain.
#[test]
fn ties_leave_the_probability_exact() {
    let mut numbers = 0;
    for k in [
        0.0, 1.0, 2.0, 100.0, 32_767.0, 32_768.0, 32_769.0, 65_534.0, 65_535.0, 65_536.0,
    ] {
        for beside in [0.0, 0.5, 1e-5, -1e-5, 1.0 / 3.0, 1e-11, -1e-11] {
            let p: f64 = (k + beside) / 65_536.0;
            if !(0.0 < p && p < 1.0) {
                continue;
            }
            for set in present() {
                let (got, want) = (numerator(set, p) << 40, exact_numerator(p));
                assert!(got.abs_diff(want) <= 1 << 39, "{}: {p}", set.name());
                // the mutant that draws no rest is wrong by up to 2^-17
                let mutant = want >> 92 << 92;
                assert_eq!(mutant.abs_diff(want) <= 1 << 39, beside == 0.0, "{p}");
            }
            numbers += 1;
        }
    }
    assert_eq!(numbers, 62);
}

/// Rows that are drawn agent by agent in one group of eight, in ascending order of their words, with
/// the limits that their weights give, in units of 2^-8.
struct Agents {
    batch: Batch,
    limits: Vec<Vec<f64>>,
}

impl Agents {
    /// Limits side by side, often in one cell of 2^-8 or 2^-16, some at its beginning, some equal.
    fn new(rng: &mut Rng) -> Self {
        let width = match rng.next_word() % 4 {
            0 => 7 + (rng.next_word() % 26) as usize,
            _ => 2 + (rng.next_word() % 5) as usize,
        };
        let mut batch = Batch::default();
        let mut limits = Vec::new();
        let mut counts: Vec<i64> = (0..1 + rng.next_word() % 8)
            .map(|_| 1 + (rng.next_word() % about_few(width) as u64) as i64)
            .collect();
        counts.sort_unstable();
        for n in counts {
            let cell = (rng.next_word() % 65_536) as f64;
            let mut points: Vec<f64> = (1..width)
                .map(|_| match rng.next_word() % 6 {
                    0 => rng.open_uniform(),
                    1 => cell / 65_536.0,
                    2 => (cell / 256.0).floor() / 256.0,
                    3 => ((cell / 256.0).floor() + rng.open_uniform()) / 256.0,
                    _ => (cell + rng.open_uniform()) / 65_536.0,
                })
                .collect();
            points.sort_by(f64::total_cmp);
            let row = Row {
                n,
                weights: batch.weights.len(),
                out: batch.out.len(),
                width: width as u32,
            };
            let mut before = 0.0;
            for point in points.into_iter().chain([1.0]) {
                batch.weights.push(point - before);
                before = point;
            }
            let weights = &batch.weights[row.weights..];
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let limit = weights[..width - 1].iter().map(|w| {
                sum += w;
                if sum < total {
                    sum * (256.0 / total)
                } else {
                    256.0
                }
            });
            limits.push(limit.collect());
            batch.rows.push(row);
            batch.out.resize(row.out + width, 0);
        }
        Agents { batch, limits }
    }

    /// Draws as the module says: x from two bytes and, where these are those of a limit, 52 bits more;
    /// its category by comparing integers. Also returns how many agents needed a rest, and how many of
    /// those had two limits at least in their cell of 2^-16.
    fn draw(&self, rng: &mut LaneRng) -> (Vec<i64>, [usize; 2]) {
        let value = |word: u64, place: usize| byte_of_value(word >> (8 * (place % 8))) as u8;
        let cell = |limit: f64| limit.floor().min(255.0);
        let again = |limit: f64| cell((limit - cell(limit)) * 256.0);
        let rows = &self.batch.rows;
        let most = rows.iter().map(|row| row.n as usize).max().unwrap_or(0);
        let inner = self.limits[0].len();
        // the first bytes, and which agents share theirs with each limit
        let mut firsts = Vec::new();
        let mut second_words = 0;
        for lane in 0..LANES {
            let words: Vec<u64> = (0..most.div_ceil(8))
                .map(|_| rng.lane(lane).next_word())
                .collect();
            let Some(row) = rows.get(lane) else { continue };
            let first: Vec<u8> = (0..row.n as usize)
                .map(|i| value(words[i / 8], i))
                .collect();
            for &limit in &self.limits[lane] {
                let tied = first
                    .iter()
                    .filter(|&&v| f64::from(v) == cell(limit))
                    .count();
                second_words = second_words.max(tied.div_ceil(8));
            }
            firsts.push(first);
        }
        let mut out = vec![0; self.batch.out.len()];
        let mut rests = [0; 2];
        for lane in 0..LANES {
            let words: Vec<u64> = (0..second_words * inner)
                .map(|_| rng.lane(lane).next_word())
                .collect();
            let (Some(first), Some(row)) = (firsts.get(lane), rows.get(lane)) else {
                continue;
            };
            let limits = &self.limits[lane];
            let mut x: Vec<u128> = first
                .iter()
                .map(|&v| u128::from(v) << 61 | 1 << 60)
                .collect();
            for round in 0..second_words {
                for j in 0..inner {
                    if j > 0 && cell(limits[j]) == cell(limits[j - 1]) {
                        continue;
                    }
                    let alike = |limit: &&f64| cell(**limit) == cell(limits[j]);
                    let tied = (0..first.len()).filter(|&i| f64::from(first[i]) == cell(limits[j]));
                    for (place, i) in tied.skip(8 * round).take(8).enumerate() {
                        let second = value(words[round * inner + j], place);
                        x[i] = u128::from(first[i]) << 61 | u128::from(second) << 53 | 1 << 52;
                        let same = limits.iter().filter(alike);
                        let shared = same.filter(|&&l| again(l) == f64::from(second)).count();
                        if shared > 0 {
                            let rest = rng.lane(lane).next_word() >> 12;
                            x[i] = x[i] >> 53 << 53 | u128::from(2 * rest + 1);
                            rests[0] += 1;
                            rests[1] += usize::from(shared > 1);
                        }
                    }
                }
            }
            for x in x {
                let below = |limit: &&f64| x < (**limit * 2f64.powi(61)).ceil() as u128;
                let category = inner - limits.iter().filter(below).count();
                out[row.out + category] += 1;
            }
        }
        (out, rests)
    }
}

/// Whole draws against a plain reference that compares integers, with many ties, and limits that
/// share them; the generators move by the words that it takes.
#[test]
fn agents_fall_where_their_bytes_say() {
    let mut choice = words(20);
    let mut rests = [0; 2];
    for case in 0..15_000 {
        let agents = Agents::new(&mut choice);
        let rng = Seed(case).block(Purpose::Sample, 0, 0, 0);
        let mut lanes = lanes_of(InstructionSet::Portable, &rng);
        let (want, many) = agents.draw(&mut lanes);
        for set in present() {
            let mut rng = rng.clone();
            let got = agents.batch.draw(set, &mut rng, &mut Scratch::default());
            assert_eq!(got, want, "{}: case {case}", set.name());
            assert_eq!(lanes_of(set, &rng), lanes, "{}: case {case}", set.name());
        }
        rests = [rests[0] + many[0], rests[1] + many[1]];
    }
    assert!(rests[0] > 500 && rests[1] > 100, "{rests:?}");
}

/// A limit among the largest 2^-8 is not tied with the agents that are not there.
#[test]
fn missing_agents_are_never_tied() {
    let p = 65_535.5 / 65_536.0;
    for set in present() {
        for n in 1..8 {
            let next = [[0, 1, 2]; LANES];
            let (counts, mut after) = draw_lanes(set, n, &[p, 1.0 - p], next);
            assert!(counts.iter().all(|counts| *counts == [n, 0]));
            assert!((0..LANES).all(|lane| after.lane(lane).next_word() == 1));
        }
    }
}

/// A state whose first word has this lowest byte, and whose third and fourth are given.
fn state_two_before(lowest: u8, third: u64, fourth: u64) -> [u64; 4] {
    let mut rng = words(u64::from(lowest));
    loop {
        let [s0, s1, s2, s3] = state_before([rng.next_word(), third, fourth], rng.next_word());
        // one step back
        let mixed = s3.rotate_right(45);
        let before_s0 = s0 ^ mixed;
        let before_s1 = [(); 3].iter().fold(s1 ^ s2, |x, _| s1 ^ s2 ^ x << 17);
        let before = [
            before_s0,
            before_s1,
            s1 ^ before_s1 ^ before_s0,
            mixed ^ before_s1,
        ];
        let mut crafted = Rng::from_words(before);
        if crafted.next_word() as u8 == lowest {
            crafted.next_word();
            assert_eq!([crafted.next_word(), crafted.next_word()], [third, fourth]);
            return before;
        }
    }
}

/// The largest two bytes with the largest rest, for sums in (0, 1.5] and for sums as of float32 rows:
/// a category of weight zero at the end of a row takes nobody, and rows that are narrower than
/// others of their eight lose nobody.
#[test]
fn zero_weights_at_the_end_are_never_hit() {
    // one word of first bytes, one of second bytes for each of two limits, and the rest
    let largest = byte_of_value(255);
    let lanes = from_states([state_two_before(largest as u8, largest, u64::MAX); LANES]);
    let rng = Seed(0).block(Purpose::Sample, 0, 0, 0).with_lanes(lanes);
    let all = (1..=20_000).map(|i| f64::from(i) * 7.5e-5);
    let near_one = (-10_000..=10_000).map(|i| 1.0 + f64::from(i) * 1e-10);
    let sums: Vec<f64> = all.chain(near_one).collect();
    for set in present() {
        let mut scratch = Scratch::default();
        let (mut lost, mut hit) = (Vec::new(), Vec::new());
        for &sum in &sums {
            let row = |width: u32, weights: usize, out: usize| Row {
                n: 1,
                weights,
                out,
                width,
            };
            // widths 2 and 3 in one group of eight
            let mixed = Batch {
                rows: vec![row(2, 0, 0), row(3, 0, 2)],
                weights: vec![0.25 * sum, 0.75 * sum, 0.0],
                out: vec![0; 5],
            };
            let out = mixed.draw(set, &mut rng.clone(), &mut scratch);
            if out[..2] != [0, 1] {
                lost.push(sum);
            }
            if out[2..5] != [0, 1, 0] {
                hit.push(sum);
            }
        }
        let near_one = |sums: &[f64]| sums.iter().filter(|&sum| (sum - 1.0).abs() < 1e-6).count();
        assert!(
            lost.is_empty() && hit.is_empty(),
            "{}: an agent lost for {} sums ({} near 1), weight zero hit for {} ({} near 1), as {:?}",
            set.name(),
            lost.len(),
            near_one(&lost),
            hit.len(),
            near_one(&hit),
            hit.last()
        );
    }
}

// Laws

/// How unlikely these counts are under this law, in nats: -ln of a bound of the probability of
/// counts at least as far from it.
///
/// For D draws among K bins with frequencies f and law p, the divergence x = D KL(f, p) has
/// E exp(t x) <= (1 - t)^-(K - 1), thus P(x >= y) <= exp(-y) (e y / (K - 1))^(K - 1) for every D
/// and p (Agrawal, IEEE Trans. Inf. Theory 66(10), 2020). 2 x is the statistic of the
/// likelihood-ratio chi-square test.
fn surprise(counts: &[u64], law: &[f64]) -> f64 {
    let (x, free) = divergence(counts, law);
    if x == f64::INFINITY {
        x
    } else if x > free {
        x - free - free * (x / free).ln()
    } else {
        0.0
    }
}

/// x and K - 1.
fn divergence(counts: &[u64], law: &[f64]) -> (f64, f64) {
    assert_eq!(counts.len(), law.len());
    let draws: u64 = counts.iter().sum();
    let x = counts
        .iter()
        .zip(law)
        .filter(|&(&k, _)| k > 0)
        .map(|(&k, &p)| k as f64 * (k as f64 / (draws as f64 * p)).ln())
        .sum();
    let possible = law.iter().filter(|&&p| p > 0.0).count();
    (x, (possible as f64 - 1.0).max(1.0))
}

/// Keeps the false alarms of one test function below 10^-9, and its mutants.
struct Verdict {
    name: &'static str,
    limit: f64,
    tests: usize,
    made: usize,
    /// The largest surprise, and the largest distance of the statistic from its mean in standard
    /// deviations of the limit of many draws.
    largest: f64,
    deviation: f64,
    /// The mutant that came nearest to passing.
    smallest_of_mutants: f64,
}

impl Verdict {
    /// For at most `tests` comparisons.
    fn new(name: &'static str, tests: usize) -> Self {
        Verdict {
            name,
            limit: (1e9 * tests as f64).ln(),
            tests,
            made: 0,
            largest: 0.0,
            deviation: f64::NEG_INFINITY,
            smallest_of_mutants: f64::INFINITY,
        }
    }

    fn passes(&mut self, what: &dyn Debug, counts: &[u64], law: &[f64]) {
        self.made += 1;
        assert!(self.made <= self.tests);
        let nats = surprise(counts, law);
        self.largest = self.largest.max(nats);
        let (x, free) = divergence(counts, law);
        let deviation = (2.0 * x - free) / (2.0 * free).sqrt();
        self.deviation = self.deviation.max(deviation);
        assert!(
            nats < self.limit,
            "{what:?}: {nats} nats\n{counts:?}\n{law:?}"
        );
    }

    fn fails(&mut self, what: &dyn Debug, counts: &[u64], law: &[f64]) {
        let nats = surprise(counts, law);
        self.smallest_of_mutants = self.smallest_of_mutants.min(nats);
        assert!(
            nats > self.limit,
            "mutant of {what:?}: only {nats} nats\n{counts:?}\n{law:?}"
        );
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let Verdict {
            name,
            limit,
            made,
            largest,
            deviation,
            smallest_of_mutants: mutants,
            ..
        } = self;
        println!(
            "{name}: {made} comparisons, at most {largest:.1} nats ({deviation:.1} sd); limit \
             {limit:.1}; mutants from {mutants:.1}"
        );
    }
}

/// Rows that one block of states draws.
const ROWS: usize = 64;

/// Draws a row again and again, `ROWS` times with each generator; (draws, width).
fn sample(set: InstructionSet, seed: u64, n: i64, weights: &[f64], draws: usize) -> Vec<i64> {
    let width = weights.len();
    let batch = Batch {
        rows: (0..ROWS)
            .map(|i| Row {
                n,
                weights: 0,
                out: i * width,
                width: width as u32,
            })
            .collect(),
        weights: weights.to_vec(),
        out: vec![0; ROWS * width],
    };
    let mut scratch = Scratch::default();
    let mut out = Vec::with_capacity(draws.next_multiple_of(ROWS) * width);
    for step in 0..draws.div_ceil(ROWS) as u64 {
        let mut rng = Seed(seed).block(Purpose::Sample, 0, step, 0);
        out.extend(batch.draw(set, &mut rng, &mut scratch));
    }
    out
}

/// Binomial probabilities around the mode, as far as they matter: the smallest k, and f(k), ...
/// From ratios of neighbours alone, scaled to a sum of 1.
fn binomial_law(n: i64, p: f64, q: f64) -> (i64, Vec<f64>) {
    const NEGLIGIBLE: f64 = 1e-28;
    let size = n as f64;
    let mode = (((size + 1.0) * p) as i64).clamp(0, n);
    let mut below = Vec::new();
    let (mut k, mut f) = (mode, 1.0);
    while k > 0 && f > NEGLIGIBLE {
        f *= k as f64 / (size - k as f64 + 1.0) * (q / p);
        below.push(f);
        k -= 1;
    }
    let first = k;
    let mut law: Vec<f64> = below.into_iter().rev().collect();
    law.push(1.0);
    (k, f) = (mode, 1.0);
    while k < n && f > NEGLIGIBLE {
        f *= (size - k as f64) / (k as f64 + 1.0) * (p / q);
        law.push(f);
        k += 1;
    }
    let total: f64 = law.iter().sum();
    law.iter_mut().for_each(|f| *f /= total);
    (first, law)
}

/// Bins of neighbouring k: the largest k of each but the last.
struct Bins(Vec<i64>);

impl Bins {
    /// At least 10 draws are expected in each, up to a 16th of them; finer bins in the tails. But at
    /// least two bins.
    fn new((first, law): &(i64, Vec<f64>), draws: usize) -> Self {
        let least = 10.0 / draws as f64;
        let mut ends = Vec::new();
        let (mut below, mut mass) = (0.0, 0.0);
        for (k, f) in (*first..).zip(law) {
            mass += f;
            let above = 1.0 - below - mass;
            if mass >= f64::min(below, above).clamp(least, 1.0 / 16.0) && above >= least {
                ends.push(k);
                below += mass;
                mass = 0.0;
            }
        }
        if ends.is_empty() {
            // where the mode is at an end, it alone; else half and half
            let top = law.iter().copied().fold(0.0, f64::max);
            let mode = law.iter().position(|&f| f == top).unwrap_or(0) as i64;
            let last = mode + 1 == law.len() as i64;
            ends.push(first + mode - i64::from(last));
        }
        Bins(ends)
    }

    fn find(&self, k: i64) -> usize {
        self.0.partition_point(|&end| end < k)
    }

    fn count(&self, draws: impl Iterator<Item = i64>) -> Vec<u64> {
        let mut counts = vec![0; self.0.len() + 1];
        draws.for_each(|k| counts[self.find(k)] += 1);
        counts
    }

    fn masses(&self, (first, law): &(i64, Vec<f64>)) -> Vec<f64> {
        let mut masses = vec![0.0; self.0.len() + 1];
        for (k, f) in (*first..).zip(law) {
            masses[self.find(k)] += f;
        }
        masses
    }
}

/// (p, q) wrong by 20 standard errors of the whole sample, and 200 agents of it; towards 1/2.
fn wrong(n: i64, p: f64, q: f64, draws: usize) -> (f64, f64) {
    let agents = n as f64 * draws as f64;
    let shift = 20.0 * (p * q / agents).sqrt() + 200.0 / agents;
    if p < q {
        (p + shift, q - shift)
    } else {
        (p - shift, q + shift)
    }
}

/// Compares draws with Binomial(n, p), and their mutant of a wrong p.
fn compare(
    verdict: &mut Verdict,
    what: &dyn Debug,
    (n, p, q): (i64, f64, f64),
    drawn: impl ExactSizeIterator<Item = i64>,
) {
    let draws = drawn.len();
    let law = binomial_law(n, p, q);
    let bins = Bins::new(&law, draws);
    let counts = bins.count(drawn);
    verdict.passes(what, &counts, &bins.masses(&law));
    let (p, q) = wrong(n, p, q, draws);
    verdict.fails(what, &counts, &bins.masses(&binomial_law(n, p, q)));
}

/// The joint law of one, two and three agents with three categories, all outcomes enumerated.
/// False alarms below 10^-9. The mutant has a first probability wrong by 3 %, the last one as much
/// the other way.
#[test]
fn law_of_up_to_three_agents() {
    const DRAWS: usize = 1_000_000;
    let mut verdict = Verdict::new("up to three agents", 18);
    let rows = [[0.2, 0.3, 0.5], [0.45, 0.002, 0.548], [0.6, 0.3, 0.1]];
    for (set, n) in present().flat_map(|set| [1, 2, 3].map(|n| (set, n))) {
        for (i, row) in rows.into_iter().enumerate() {
            let drawn = sample(set, 100 + i as u64, n, &row, DRAWS);
            let outcomes: Vec<[i64; 3]> = (0..=n)
                .flat_map(|a| (0..=n - a).map(move |b| [a, b, n - a - b]))
                .collect();
            let mut counts = vec![0; outcomes.len()];
            for draw in drawn.chunks(3) {
                counts[outcomes.iter().position(|outcome| outcome == draw).unwrap()] += 1;
            }
            let factorial = |k: i64| (1..=k).product::<i64>() as f64;
            let law = |p: [f64; 3]| -> Vec<f64> {
                let probability = |outcome: &[i64; 3]| {
                    let terms = outcome
                        .iter()
                        .zip(p)
                        .map(|(&k, p)| p.powi(k as i32) / factorial(k));
                    factorial(n) * terms.product::<f64>()
                };
                outcomes.iter().map(probability).collect()
            };
            let what = (set, n, row);
            verdict.passes(&what, &counts, &law(row));
            let shift = 0.03 * row[0];
            verdict.fails(
                &what,
                &counts,
                &law([row[0] + shift, row[1], row[2] - shift]),
            );
        }
    }
}

/// On both sides of the step from agent by agent to binomials: 225 agents of two categories, 514 of
/// five; and around whole words.
const COUNTS: [i64; 13] = [
    1,
    8,
    9,
    20,
    100,
    225,
    226,
    513,
    514,
    515,
    1000,
    100_000,
    1_000_000_000,
];
const PROBABILITIES: [f64; 7] = [1e-9, 1e-3, 0.02, 0.3, 0.5, 0.97, 1.0 - 1e-6];

/// How often each law is drawn.
fn draws_for(n: i64) -> usize {
    match n {
        ..=20 => 64 * 4000,
        21..=1000 => 64 * 1000,
        _ => 64 * 2000,
    }
}

/// Marginals against exact binomial probabilities: of two categories, and of the middle one of five.
/// Also the sum over the 64 rows of a block, which tells whether its lanes are independent. False
/// alarms below 10^-9. The mutant has a p that is wrong by 20 standard errors of the sample and
/// 200 / (n draws): for p = 0.5 by 0.021 where n = 1, and by 9 10^-7 where n = 10^9.
fn marginals(name: &'static str, width: usize) {
    let mut verdict = Verdict::new(name, 600);
    for set in present() {
        for (i, n) in COUNTS.into_iter().enumerate() {
            for (j, p) in PROBABILITIES.into_iter().enumerate() {
                let q = 1.0 - p;
                let row = if width == 2 {
                    vec![p, q]
                } else {
                    vec![0.1 * q, 0.2 * q, p, 0.3 * q, 0.4 * q]
                };
                let middle = width / 2 - usize::from(width == 2);
                let draws = draws_for(n);
                let drawn = sample(set, 1000 + (10 * i + j) as u64, n, &row, draws);
                let first: Vec<i64> = drawn.chunks(width).map(|draw| draw[middle]).collect();
                let what = (set, n, p);
                compare(&mut verdict, &what, (n, p, q), first.iter().copied());
                if n <= 1000 {
                    let sums = first.chunks_exact(ROWS).map(|rows| rows.iter().sum());
                    let rows = ROWS as i64;
                    compare(&mut verdict, &(what, "sum"), (rows * n, p, q), sums);
                }
            }
        }
    }
}

/// See [`marginals`].
#[test]
fn marginals_of_two_categories() {
    marginals("two categories", 2);
}

/// See [`marginals`].
#[test]
fn marginals_of_five_categories() {
    marginals("five categories", 5);
}

/// Sums of two categories are binomial, which fixes their covariance -n p_i p_j: var(c_i + c_j) has
/// it twice. False alarms below 10^-9. Mutants: a p wrong by 20 standard errors, as above; and the
/// same two categories taken from different rows, which have the right marginals and no covariance.
#[test]
fn categories_have_their_covariances() {
    const ROW: [f64; 5] = [0.3, 0.05, 0.25, 0.15, 0.25];
    let mut verdict = Verdict::new("covariances", 200);
    for set in present() {
        for (i, n) in [2, 9, 30, 514, 515, 3000, 1_000_000]
            .into_iter()
            .enumerate()
        {
            let draws = 64 * 2000;
            let drawn = sample(set, 2000 + i as u64, n, &ROW, draws);
            let draw = |d: usize| &drawn[5 * d..][..5];
            for (a, b) in (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b))) {
                let p = ROW[a] + ROW[b];
                let what = (set, n, a, b);
                let sums = (0..draws).map(|d| draw(d)[a] + draw(d)[b]);
                compare(&mut verdict, &what, (n, p, 1.0 - p), sums);
                let others = (0..draws).map(|d| draw(d)[a] + draw((d + 1) % draws)[b]);
                let law = binomial_law(n, p, 1.0 - p);
                let bins = Bins::new(&law, draws);
                let mut counts = bins.count(others);
                // sums above n have no chance at all: the mutant is to fail without them
                let possible = (0..draws)
                    .filter(|&d| draw(d)[a] + draw((d + 1) % draws)[b] > n)
                    .count() as u64;
                *counts.last_mut().unwrap() -= possible;
                verdict.fails(&(what, "no covariance"), &counts, &bins.masses(&law));
                let (mean_a, mean_b) = (n as f64 * ROW[a], n as f64 * ROW[b]);
                let covariance: f64 = (0..draws)
                    .map(|d| (draw(d)[a] as f64 - mean_a) * (draw(d)[b] as f64 - mean_b))
                    .sum::<f64>()
                    / draws as f64;
                let ratio = covariance / (-mean_a * ROW[b]);
                assert!((0.5..1.5).contains(&ratio), "{what:?}: {ratio}");
            }
        }
    }
}

//! What holds for every draw of the samplers, whatever the random words are.

use ltde_core::binomial::{MAX_COUNT, binomial};
use ltde_core::multinomial::{Scratch, multinomial, multinomial_add, normalize};
use ltde_core::rng::{Purpose, Rng, Seed, Words};
use proptest::prelude::*;

fn rng(seed: u64) -> Rng {
    Seed(seed).stream(Purpose::Sample, 0, 0, 0)
}

/// Proves that a path draws nothing.
struct Never;

impl Words for Never {
    fn next_word(&mut self) -> u64 {
        panic!("a draw where the result is certain");
    }
}

/// Repeats some words for ever, but not more than `limit` of them.
struct Cycle<'a> {
    words: &'a [u64],
    drawn: usize,
    limit: usize,
}

impl Words for Cycle<'_> {
    fn next_word(&mut self) -> u64 {
        assert!(self.drawn < self.limit, "more than {} words", self.limit);
        self.drawn += 1;
        self.words[(self.drawn - 1) % self.words.len()]
    }
}

fn cycle(words: &[u64], limit: usize) -> Cycle<'_> {
    Cycle {
        words,
        drawn: 0,
        limit,
    }
}

/// More words than one binomial may take: rejection gives up after 256 attempts of two words.
const WORDS_OF_ONE_BINOMIAL: usize = 600;

fn draw(seed: u64, n: u64, weights: &[f64]) -> Vec<i64> {
    let mut out = vec![0; weights.len()];
    multinomial(
        &mut rng(seed),
        n,
        weights,
        &mut Scratch::default(),
        &mut out,
    )
    .unwrap();
    out
}

/// Sum n, none negative, nobody where the weight is zero.
fn assert_possible(out: &[i64], n: u64, weights: &[f64]) {
    assert_eq!(
        out.iter().map(|&c| i128::from(c)).sum::<i128>(),
        i128::from(n),
        "{out:?}"
    );
    for (&c, &w) in out.iter().zip(weights) {
        assert!(c >= 0 && (w > 0.0 || c == 0), "{out:?} of {weights:?}");
    }
}

/// Small and large counts, and the ends.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..200,
        0..=MAX_COUNT,
        (0_u32..53, -2_i64..3).prop_map(|(e, d)| (1_u64 << e).saturating_add_signed(d)),
        MAX_COUNT - 2..=MAX_COUNT,
    ]
}

/// Probabilities p with q = 1 - p, in both orders, ordinary and extreme.
fn probability() -> impl Strategy<Value = (f64, f64)> {
    let p = prop_oneof![
        0.0..=0.5,
        (-320.0..-0.31_f64).prop_map(|e| 10f64.powf(e)),
        Just(0.0),
        Just(f64::from_bits(1)),
        Just(0.5f64.powi(53)),
    ];
    (p, any::<bool>()).prop_map(|(p, flip)| if flip { (1.0 - p, p) } else { (p, 1.0 - p) })
}

/// Any weights, at least one positive: zeros, ratios up to 10^600, subnormal numbers.
fn weights() -> impl Strategy<Value = Vec<f64>> {
    let weight = prop_oneof![
        3 => Just(0.0),
        5 => 0.0..1.0,
        2 => (-323.0..308.0_f64).prop_map(|e| 10f64.powf(e)),
        1 => Just(f64::from_bits(1)),
        1 => Just(f64::MAX),
    ];
    prop::collection::vec(weight, 1..40)
        .prop_filter("all zero", |weights| weights.iter().any(|&w| w > 0.0))
}

/// A softmax in float32 with masked entries, as policies give it: its sum is 1 +- 1e-6 in float64.
fn float32_row() -> impl Strategy<Value = Vec<f64>> {
    let logit = prop_oneof![1 => Just(f32::NEG_INFINITY), 4 => -30.0..30.0_f32];
    prop::collection::vec(logit, 1..40)
        .prop_filter("all masked", |logits| logits.iter().any(|l| l.is_finite()))
        .prop_map(|logits| {
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp: Vec<f32> = logits.iter().map(|l| (l - top).exp()).collect();
            let sum: f32 = exp.iter().sum();
            exp.iter().map(|e| f64::from(e / sum)).collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn binomials_lie_between_zero_and_n(seed: u64, n in count(), (p, q) in probability()) {
        let mut rng = rng(seed);
        for _ in 0..4 {
            let k = binomial(&mut rng, n, p, q);
            prop_assert!(k <= n);
            prop_assert!(p > 0.0 || k == 0);
            prop_assert!(q > 0.0 || k == n);
        }
    }

    #[test]
    fn multinomials_are_possible(seed: u64, n in count(), weights in weights()) {
        assert_possible(&draw(seed, n, &weights), n, &weights);
    }

    /// numpy#8317, numpy#14789: float32 rows are neither refused nor completed by the last category.
    #[test]
    fn float32_rows_are_taken_as_they_are(seed: u64, n in count(), row in float32_row()) {
        let mut out = vec![0; row.len()];
        multinomial_add(&mut rng(seed), n, &row, &mut Scratch::default(), &mut out);
        assert_possible(&out, n, &row);
    }

    /// numpy#25106: rows whose sum misses 1 by a rounding, in either direction.
    #[test]
    fn rows_need_not_sum_to_one(
        seed: u64, n in count(), mut row in weights(), error in -1e-9..1e-9,
    ) {
        normalize(&mut row).unwrap();
        row.iter_mut().for_each(|w| *w *= 1.0 + error);
        let mut out = vec![0; row.len()];
        multinomial_add(&mut rng(seed), n, &row, &mut Scratch::default(), &mut out);
        assert_possible(&out, n, &row);
    }

    /// With 2^53 agents and weights within a factor 10^9, a category is hit if and only if it has
    /// weight, wherever it stands (each is missed with a probability below e^-100000).
    #[test]
    fn support_follows_a_permutation(
        seed: u64,
        (weights, shuffled) in prop::collection::vec(
            prop_oneof![Just(0.0), (-9.0..0.0_f64).prop_map(|e| 10f64.powf(e))], 1..12,
        )
        .prop_filter("all zero", |weights| weights.iter().any(|&w| w > 0.0))
        .prop_flat_map(|weights| (Just(weights.clone()), Just(weights).prop_shuffle())),
    ) {
        for weights in [weights, shuffled] {
            let hit: Vec<bool> = draw(seed, MAX_COUNT, &weights).iter().map(|&c| c > 0).collect();
            let positive: Vec<bool> = weights.iter().map(|&w| w > 0.0).collect();
            prop_assert_eq!(hit, positive);
        }
    }

    /// Draws are added to what is there, and the scratch memory of another row leaves no trace.
    #[test]
    fn scratch_and_output_carry_over_nothing(
        seed: u64, n in count(), weights in weights(), other in weights(),
    ) {
        let mut scratch = Scratch::default();
        multinomial(&mut rng(1), 1000, &other, &mut scratch, &mut vec![0; other.len()]).unwrap();
        let mut out = vec![7; weights.len()];
        multinomial(&mut rng(seed), n, &weights, &mut scratch, &mut out).unwrap();
        let fresh: Vec<i64> = draw(seed, n, &weights).iter().map(|c| c + 7).collect();
        prop_assert_eq!(out, fresh);
    }

    /// rand#1324, numba#1640, numba#9493: no generator, however bad, makes a loop endless.
    #[test]
    fn loops_are_bounded(
        words in prop::collection::vec(
            prop_oneof![Just(0), Just(u64::MAX), Just(1 << 63), any::<u64>()], 1..5,
        ),
        n in count(), (p, q) in probability(), weights in weights(),
    ) {
        prop_assert!(binomial(&mut cycle(&words, WORDS_OF_ONE_BINOMIAL), n, p, q) <= n);
        let limit = WORDS_OF_ONE_BINOMIAL * (weights.len() + 1);
        let mut out = vec![0; weights.len()];
        let mut words = cycle(&words, limit);
        multinomial(&mut words, n, &weights, &mut Scratch::default(), &mut out).unwrap();
        assert_possible(&out, n, &weights);
    }

    #[test]
    fn normalised_weights_keep_zeros_and_ratios(weights in weights()) {
        let mut scaled = weights.clone();
        normalize(&mut scaled).unwrap();
        prop_assert!((scaled.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let top = scaled.iter().copied().fold(0.0, f64::max);
        for (&w, &s) in weights.iter().zip(&scaled) {
            prop_assert!((w == 0.0) <= (s == 0.0));
            let ratio = w / largest;
            if ratio > 1e-290 {
                prop_assert!((s / top / ratio - 1.0).abs() < 1e-14);
            }
        }
    }
}

/// The generators that found the loops elsewhere: a constant word, the ends, and alternating ones.
#[test]
fn constant_words_give_a_result() {
    let generators: [&[u64]; 5] = [
        &[0],
        &[u64::MAX],
        &[0, u64::MAX],
        &[u64::MAX, 0],
        &[1 << 63],
    ];
    let cases = [
        (1, 0.9), // pytorch#42153: -1 for a uniform that rounds to 1
        (16_000_000, 3.144_475_314_855_856_6e-10), // rand#1324
        (1459, 0.4), // numba#1640: q^n underflows
        (700, 0.1), // numba#9493
        (1 << 31, f64::MIN_POSITIVE), // rand#1378
        (MAX_COUNT, 6.270_43e-17), // boostorg/random#81, numpy#29522
        (20, 0.5),
        (1_000_000, 0.5),
        (MAX_COUNT, 0.5),
        (MAX_COUNT, 0.3),
        (MAX_COUNT, 1e-15),
    ];
    for words in generators {
        for (n, p) in cases {
            for (p, q) in [(p, 1.0 - p), (1.0 - p, p)] {
                let k = binomial(&mut cycle(words, WORDS_OF_ONE_BINOMIAL), n, p, q);
                assert!(k <= n, "{words:?}: binomial({n}, {p}) = {k}");
            }
        }
    }
}

#[test]
fn certain_binomials_draw_nothing() {
    for n in [0, 1, 7, 1000, MAX_COUNT] {
        assert_eq!(binomial(&mut Never, n, 0.0, 1.0), 0);
        assert_eq!(binomial(&mut Never, n, 1.0, 0.0), n);
    }
    for p in [1e-300, 0.3, 0.5, 0.999] {
        assert_eq!(binomial(&mut Never, 0, p, 1.0 - p), 0);
    }
}

/// tensorflow/probability#1684, pytensor#1327: 0 / 0 for the categories after the last weight.
#[test]
fn certain_multinomials_draw_nothing() {
    for categories in [1, 2, 3, 5, 8, 40] {
        for j in 0..categories {
            for n in [0, 1, 2, 9, 40, 1000, MAX_COUNT] {
                let mut one_hot = vec![0.0; categories];
                for weight in [1.0, 0.3, 1.0 - 1e-9, 1.0 + 1e-9] {
                    one_hot[j] = weight;
                    let mut out = vec![0; categories];
                    multinomial_add(&mut Never, n, &one_hot, &mut Scratch::default(), &mut out);
                    assert_possible(&out, n, &one_hot);
                    assert_eq!(out[j], n as i64);
                }
            }
        }
    }
    let mut out = [0; 3];
    multinomial(
        &mut Never,
        0,
        &[0.2, 0.3, 0.5],
        &mut Scratch::default(),
        &mut out,
    )
    .unwrap();
    assert_eq!(out, [0; 3]);
}

/// Weights far apart: the heavy category takes all but what chance gives the light ones.
#[test]
fn huge_ratios() {
    for n in [1, 20, 1000, MAX_COUNT] {
        for weights in [
            [1e-300, 1.0, 1e-300],
            [f64::from_bits(1), 1e-200, f64::from_bits(1)],
            [1e-10, f64::MAX, 1.0],
            [0.0, f64::from_bits(1), 0.0],
        ] {
            assert_eq!(draw(1, n, &weights), [0, n as i64, 0], "{weights:?}");
        }
    }
    let equal = draw(1, MAX_COUNT, &[f64::from_bits(1); 3]);
    assert!(
        equal
            .iter()
            .all(|&c| (c - (MAX_COUNT / 3) as i64).abs() < 1 << 31),
        "{equal:?}"
    );
    let equal = draw(1, MAX_COUNT, &[f64::MAX; 3]);
    assert!(
        equal
            .iter()
            .all(|&c| (c - (MAX_COUNT / 3) as i64).abs() < 1 << 31),
        "{equal:?}"
    );
}

/// Refused weights are named by index and value (numpy#14268: NaN gave a negative count).
#[test]
fn errors_name_the_weight() {
    let cases: [(&[f64], &str); 6] = [
        (
            &[0.5, f64::NAN],
            "weights[1]: expected a finite number >= 0, got NaN",
        ),
        (
            &[-0.25, 0.5],
            "weights[0]: expected a finite number >= 0, got -0.25",
        ),
        (
            &[0.5, 0.5, f64::INFINITY],
            "weights[2]: expected a finite number >= 0, got inf",
        ),
        (
            &[f64::NEG_INFINITY],
            "weights[0]: expected a finite number >= 0, got -inf",
        ),
        (
            &[0.0, -0.0, 0.0],
            "weights: expected at least one positive weight, got all zero",
        ),
        (
            &[],
            "weights: expected at least one positive weight, got all zero",
        ),
    ];
    for (weights, message) in cases {
        let error = normalize(&mut weights.to_vec()).unwrap_err();
        assert_eq!(error.to_string(), message);
        let mut out = vec![3; weights.len()];
        let error = multinomial(&mut Never, 5, weights, &mut Scratch::default(), &mut out);
        assert_eq!(error.unwrap_err().to_string(), message);
        assert_eq!(out, vec![3; weights.len()]); // left as it was
    }
}

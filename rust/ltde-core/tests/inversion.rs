//! Laws read off exactly where one word gives one result: bisection finds how many of the words
//! give each result, and that number is its probability. No sample, no false alarm.

use ltde_core::binomial::{MAX_COUNT, REJECTION_FROM, binomial};
use ltde_core::multinomial::{Scratch, multinomial_add};
use ltde_core::rng::Words;

/// One word and no more.
struct One(Option<u64>);

impl Words for One {
    fn next_word(&mut self) -> u64 {
        self.0.take().expect("one word for one result")
    }
}

/// How many of the words 0, 1, ... give a result up to k, in units of 2^64; `result` must not
/// decrease with the word.
fn share(k: u64, result: impl Fn(u64) -> u64) -> f64 {
    let (mut low, mut high) = (0u128, 1u128 << 64);
    while low < high {
        let word = low + (high - low) / 2;
        if result(word as u64) <= k {
            low = word + 1;
        } else {
            high = word;
        }
    }
    low as f64 * 0.5f64.powi(64)
}

/// Largest gap between the distribution function of Binomial(n, p) and what `result` gives.
fn gap(n: u64, p: f64, result: impl Fn(u64) -> u64) -> f64 {
    let mut mass = (n as f64 * (-p).ln_1p()).exp();
    let (mut below, mut gap) = (0.0, 0.0f64);
    for k in 0..n.min(100) {
        below += mass;
        gap = gap.max((share(k, &result) - below).abs());
        mass *= (n - k) as f64 / (k + 1) as f64 * (p / (1.0 - p));
    }
    gap
}

fn cases() -> Vec<(u64, f64)> {
    let mut cases = Vec::new();
    let sizes = [
        1,
        2,
        3,
        5,
        8,
        19,
        20,
        21,
        50,
        100,
        1000,
        1_000_000,
        (1 << 31) + 5,
        1 << 40,
    ];
    for n in sizes.into_iter().chain([MAX_COUNT - 1, MAX_COUNT]) {
        for mean in [
            1e-9,
            1e-3,
            0.1,
            0.5,
            1.0,
            3.0,
            7.0,
            9.9,
            REJECTION_FROM.next_down(),
        ] {
            let p = mean / n as f64;
            if p <= 0.5 && n as f64 * p < REJECTION_FROM {
                cases.push((n, p));
            }
        }
    }
    cases
}

/// The distribution function of inversion is right to 1e-14 at every k: some roundings of numbers
/// below 1, where the uniforms themselves are 2.2e-16 apart.
#[test]
fn inversion_is_the_binomial_law() {
    let cases = cases();
    assert!(cases.len() > 100);
    for (n, p) in cases {
        let gap = gap(n, p, |word| binomial(&mut One(Some(word)), n, p, 1.0 - p));
        assert!(gap < 1e-14, "n {n}, p {p}: {gap}");
    }
}

/// numpy#29522: a p below 2^-53 is not taken for 0; and the mirror image of a law is drawn from the
/// same words, so that p near 1 costs no precision when q is given.
#[test]
fn inversion_keeps_tiny_probabilities_on_both_sides() {
    for (n, p) in [
        (50_000_000_000, 5e-17),
        (MAX_COUNT, 1e-17),
        (MAX_COUNT, 1e-20),
    ] {
        let zero = share(0, |word| binomial(&mut One(Some(word)), n, p, 1.0));
        assert!((1.0 - zero - n as f64 * p).abs() < (n as f64 * p).powi(2) + 3e-16);
    }
    for (n, p) in cases() {
        for word in [0, 1 << 40, 1 << 60, 1 << 63, 3 << 62, u64::MAX] {
            let k = binomial(&mut One(Some(word)), n, p, 1.0 - p);
            if p < 0.5 {
                assert_eq!(binomial(&mut One(Some(word)), n, 1.0 - p, p), n - k);
            }
        }
    }
}

/// The check sees a mutant: q^n as a power of the rounded 1 - p, as numpy and others had it.
#[test]
fn power_of_the_rounded_complement_fails() {
    let mutant = |n: u64, p: f64| {
        move |word: u64| {
            let mut u = ((word >> 12) as f64 + 0.5) * 0.5f64.powi(52);
            let mut mass = (1.0 - p).powf(n as f64);
            let mut k = 0;
            while u > mass && k < 110 {
                u -= mass;
                mass *= (n - k) as f64 / (k + 1) as f64 * (p / (1.0 - p));
                k += 1;
            }
            k
        }
    };
    assert!(gap(1000, 0.003, mutant(1000, 0.003)) < 1e-12);
    let (n, p) = (1 << 40, 3.3 / (1u64 << 40) as f64);
    assert!(gap(n, p, mutant(n, p)) > 1e-6);
    let (n, p) = (MAX_COUNT, 3.3 / MAX_COUNT as f64);
    assert!(gap(n, p, mutant(n, p)) > 1e-2);
}

/// One agent falls into each category with its probability, up to 2^-60.
#[test]
fn one_agent_falls_by_the_weights() {
    let rows: [&[f64]; 6] = [
        &[0.5, 0.5],
        &[0.3, 0.0, 0.7],
        &[0.0, 1e-12, 0.2, 0.8 - 1e-12, 0.0],
        &[1e-18, 1.0 - 1e-9, 1e-9],
        &[0.05; 20],
        &[0.024_999; 40],
    ];
    for row in rows {
        let sum: f64 = row.iter().sum();
        let category = |word| {
            let mut out = vec![0; row.len()];
            multinomial_add(
                &mut One(Some(word)),
                1,
                row,
                &mut Scratch::default(),
                &mut out,
            );
            out.iter().position(|&c| c == 1).unwrap() as u64
        };
        let mut below = 0.0;
        for (j, w) in row.iter().enumerate() {
            let before = if j > 0 {
                share(j as u64 - 1, category)
            } else {
                0.0
            };
            let got = share(j as u64, category) - before;
            assert!((got - w / sum).abs() < 1e-15, "{row:?}[{j}]: {got}");
            assert!(*w > 0.0 || got == 0.0);
            below += w / sum;
        }
        assert!((below - 1.0).abs() < 1e-14);
    }
}

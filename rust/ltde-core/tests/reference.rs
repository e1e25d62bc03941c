//! The functions inside the binomial sampler against reference values of 60 digits.
//!
//! `tests/reference/ln_pmf_ratio.py` makes the tables with mpmath.

use ltde_core::binomial::Rejection;
use ltde_core::math::{exp, ln, ln_1p, stirling_tail};

/// A ratio ln f(k) / f(m) of the law Binomial(n, p).
struct Ratio {
    n: f64,
    p: f64,
    m: f64,
    k: f64,
    value: f64,
}

fn ratios() -> Vec<Ratio> {
    let rows = rows(include_str!("reference/ln_pmf_ratio.csv"));
    let ratio = |row: &Vec<&str>| {
        let [n, p, m, k, value] = [0, 1, 2, 3, 4].map(|i| row[i].parse().unwrap());
        Ratio { n, p, m, k, value }
    };
    rows.iter().map(ratio).collect()
}

fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.map(|line| line.split(',').collect()).collect()
}

/// Largest |error| over the rows with n in [low, high].
fn worst(low: f64, high: f64, formula: impl Fn(&Ratio) -> f64) -> f64 {
    let rows = ratios();
    let rows = rows.iter().filter(|r| (low..=high).contains(&r.n));
    let errors: Vec<f64> = rows.map(|r| (formula(r) - r.value).abs()).collect();
    assert!(
        errors.len() >= 40,
        "{} rows in [{low}, {high}]",
        errors.len()
    );
    errors.into_iter().fold(0.0, f64::max)
}

fn ours(r: &Ratio) -> f64 {
    Rejection::new(r.n, r.p, 1.0 - r.p).ln_ratio(r.m, r.k)
}

/// The formula of Hörmann's paper, which the implementations that we know take as it stands: a
/// difference of numbers of size n p ln n.
fn textbook(r: &Ratio) -> f64 {
    let odds = r.p / (1.0 - r.p);
    let (from_m, from_k) = (r.n - r.m + 1.0, r.n - r.k + 1.0);
    (r.m + 0.5) * ((r.m + 1.0) / (odds * from_m)).ln()
        + stirling_tail(r.m)
        + stirling_tail(r.n - r.m)
        + (r.n + 1.0) * (from_m / from_k).ln()
        + (r.k + 0.5) * (from_k * odds / (r.k + 1.0)).ln()
        - stirling_tail(r.k)
        - stirling_tail(r.n - r.k)
}

/// numpy#31238, Distributions.jl#2053: BTPE as published adds the four tails of Stirling's formula,
/// of which two must be subtracted; the mistake lived for decades in many libraries, because no
/// chi-square test sees it.
fn published_signs(r: &Ratio) -> f64 {
    ours(r) + 2.0 * (stirling_tail(r.k) + stirling_tail(r.n - r.k))
}

/// numpy#31238 again: 13680 for 13860 in the first term of the tail.
fn swapped_digits(r: &Ratio) -> f64 {
    let defect = |x: f64| (13680.0 / 13860.0 - 1.0) / (12.0 * (x + 1.0));
    ours(r) + defect(r.m) + defect(r.n - r.m) - defect(r.k) - defect(r.n - r.k)
}

/// tensorflow#34398: the wrong sign in the third term of the tail.
fn third_term(r: &Ratio) -> f64 {
    let defect = |x: f64| {
        if x < 10.0 {
            0.0
        } else {
            -2.0 / 1260.0 / (x + 1.0).powi(5)
        }
    };
    ours(r) + defect(r.m) + defect(r.n - r.m) - defect(r.k) - defect(r.n - r.k)
}

/// Bound on the error of a ratio: a few roundings of a number of size |k - m|, and those of numbers
/// of size 1. (A search of 60,000 rows found 5.3 roundings, 1.1e-7 at 2^53.)
fn bound(r: &Ratio) -> f64 {
    8.0 * 0.5f64.powi(53) * (r.k - r.m).abs() + 5e-14
}

/// An error e of the log of the acceptance ratio changes a decision with a probability below e: no
/// sample that anyone can draw shows 1.5e-7, the largest error at the largest count.
#[test]
fn ln_ratio_is_accurate_up_to_the_largest_count() {
    for r in ratios() {
        let error = (ours(&r) - r.value).abs();
        assert!(
            error <= bound(&r),
            "{error:e} at {} {} {} {}",
            r.n,
            r.p,
            r.m,
            r.k
        );
    }
    assert!(worst(20.0, 2f64.powi(53), ours) <= 1.5e-7);
    assert!(worst(20.0, 2f64.powi(40), ours) <= 2e-9);
    assert!(worst(20.0, 2f64.powi(20), ours) <= 1e-11);
}

/// The bounds above are sharp enough to tell: each known wrong formula fails them.
#[test]
fn known_wrong_formulas_fail_the_same_bounds() {
    assert!(worst(2f64.powi(39), 2f64.powi(40), textbook) > 1e-5);
    assert!(worst(2f64.powi(52), 2f64.powi(53), textbook) > 0.1);
    // It is the same formula where rounding does not matter, so the failure is one of rounding.
    assert!(worst(20.0, 100.0, textbook) < 1e-12);
    for mutant in [published_signs, swapped_digits, third_term] {
        assert!(worst(20.0, 2f64.powi(20), mutant) > 1e-9);
    }
}

/// Relative error below 1e-15 in every argument of the table.
#[test]
fn elementary_functions_are_accurate() {
    let mut seen = [0; 3];
    for row in rows(include_str!("reference/elementary.csv")) {
        let (x, value): (f64, f64) = (row[1].parse().unwrap(), row[2].parse().unwrap());
        let (i, got) = match row[0] {
            "ln" => (0, ln(x)),
            "ln_1p" => (1, ln_1p(x)),
            "exp" => (2, exp(x)),
            name => panic!("{name}"),
        };
        seen[i] += 1;
        let error = (got - value).abs();
        assert!(
            error <= 1e-15 * value.abs(),
            "{}({x}) = {got}, not {value}",
            row[0]
        );
    }
    assert!(seen.iter().all(|&n| n > 100));
}

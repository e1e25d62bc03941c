//! Golden values: fixed seeds and exact outputs, one line for each code path.
//!
//! They are no evidence of correctness; they announce that a stream has changed, which belongs into
//! the changelog. To accept a change, run
//!
//! ```text
//! LTDE_REGENERATE=1 cargo test --test values
//! ```
//!
//! which rewrites `golden/values.txt`, and read the diff.

use std::fmt::Write as _;
use std::path::Path;

use ltde_core::binomial::{MAX_COUNT, binomial};
use ltde_core::initial::{DrawAddress, Initial};
use ltde_core::multinomial::{Scratch, multinomial};
use ltde_core::rng::{MAX_STEP, Purpose, Rng, Seed, Words};

fn rng() -> Rng {
    Seed(2026).stream(Purpose::Sample, 0, 0, 0)
}

fn binomials(n: u64, p: f64, q: f64) -> Vec<i128> {
    let mut rng = rng();
    (0..12)
        .map(|_| i128::from(binomial(&mut rng, n, p, q)))
        .collect()
}

/// Three rows, drawn one after the other.
fn multinomials(n: u64, weights: &[f64]) -> Vec<i128> {
    let (mut rng, mut scratch) = (rng(), Scratch::default());
    let mut rows = Vec::new();
    for _ in 0..3 {
        let mut out = vec![0; weights.len()];
        multinomial(&mut rng, n, weights, &mut scratch, &mut out).unwrap();
        rows.extend(out.into_iter().map(i128::from));
    }
    rows
}

fn initial(initial: &Initial, n: u64, states: usize) -> Vec<i128> {
    let mut out = vec![0; states];
    let address = DrawAddress {
        seed: Seed(2026),
        purpose: Purpose::Initial,
        replica: 3,
        step: 5,
    };
    initial.draw_counts(n, address, &mut Scratch::default(), &mut out);
    out.into_iter().map(i128::from).collect()
}

fn words(purpose: Purpose, replica: u32, step: u64, block: u32) -> Vec<i128> {
    let mut rng = Seed(2026).stream(purpose, replica, step, block);
    (0..4).map(|_| i128::from(rng.next_word())).collect()
}

/// The lines of the golden file.
fn values() -> String {
    let uneven = [0.4, 0.0, 0.3, 0.2, 0.1];
    let forty: Vec<f64> = (1..=40).map(|j| 1.0 / f64::from(j)).collect();
    let law: Vec<f64> = (0..130).map(|s| f64::from(s % 7) / 385.0).collect();
    let table = [
        ("words of a step", words(Purpose::Step, 1, 2, 3)),
        (
            "words of the last step",
            words(Purpose::Step, u32::MAX, MAX_STEP, u32::MAX),
        ),
        ("inversion", binomials(100, 0.03, 0.97)),
        ("inversion, mirrored", binomials(100, 0.97, 0.03)),
        ("inversion, one agent", binomials(1, 0.5, 0.5)),
        (
            "inversion, tiny p",
            binomials(MAX_COUNT, 5e-16, 1.0 - 5e-16),
        ),
        ("rejection, n p = 10", binomials(20, 0.5, 0.5)),
        ("rejection", binomials(1000, 0.4, 0.6)),
        ("rejection, mirrored", binomials(1000, 0.6, 0.4)),
        ("rejection, small p", binomials(1 << 40, 1e-9, 1.0 - 1e-9)),
        ("rejection, largest count", binomials(MAX_COUNT, 0.3, 0.7)),
        ("multinomial, one by one", multinomials(10, &uneven)),
        ("multinomial, one by one, 40", multinomials(40, &forty)),
        ("multinomial, inversions", multinomials(60, &uneven)),
        ("multinomial, rejections", multinomials(1_000_000, &uneven)),
        ("multinomial, mixed, 40", multinomials(500, &forty)),
        (
            "multinomial, largest count",
            multinomials(MAX_COUNT, &uneven),
        ),
        (
            "initial, rows of counts",
            initial(&Initial::Counts(vec![5, 0, 3, 2, 1, 5, 4, 4, 0]), 8, 3),
        ),
        (
            "initial, independent",
            initial(&Initial::Independent(law.clone()), 10_000, 130),
        ),
        (
            "initial, few agents",
            initial(&Initial::Independent(law), 20, 130),
        ),
        (
            "initial, Dirichlet",
            initial(&Initial::Dirichlet(vec![0.5; 130]), 10_000, 130),
        ),
    ];
    let mut text = String::new();
    for (name, values) in table {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        writeln!(text, "{name}: {}", values.join(" ")).unwrap();
    }
    text
}

#[test]
fn streams_have_not_changed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/values.txt");
    let now = values();
    if std::env::var_os("LTDE_REGENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(
            now, golden,
            "the stream has changed: see the head of values.rs"
        );
    }
    assert_eq!(now.lines().count(), golden.lines().count());
}

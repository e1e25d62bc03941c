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
use std::sync::Arc;

use ltde_core::binomial::{MAX_COUNT, binomial};
use ltde_core::graph::Graph;
use ltde_core::initial::{DrawAddress, Initial};
use ltde_core::model::{Model, ModelData};
use ltde_core::multinomial::{Row, Scratch, draw_rows, multinomial};
use ltde_core::policy::TabularPolicy;
use ltde_core::record::Record;
use ltde_core::rng::{MAX_STEP, Purpose, Rng, Seed, Words};
use ltde_core::simulator::Simulator;
use ltde_core::watch::Watch;

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

/// Nine rows, drawn together in vectors: one more than there are lanes.
fn rows(n: i64, weights: &[f64]) -> Vec<i128> {
    let width = weights.len();
    let rows: Vec<Row> = (0..9)
        .map(|i| Row {
            n: n + i,
            weights: 0,
            out: i as usize * width,
            width: width as u32,
        })
        .collect();
    let mut out = vec![0; rows.len() * width];
    let mut rng = Seed(2026).block(Purpose::Sample, 1, 2, 3);
    draw_rows(&mut rng, &rows, weights, &mut Scratch::default(), &mut out);
    out.into_iter().map(i128::from).collect()
}

/// The counts after five steps on a ring of 70 states: two blocks.
fn steps(n_agents: u64, actions: usize) -> Vec<i128> {
    let edges: Vec<[i64; 2]> = (0..70).map(|s| [s, (s + 1) % 70]).collect();
    let local = |_: usize, _: &[f64], _: &[f64], _: &[f64], prob: &mut [f64], _: &mut [f64]| {
        for (row, law) in prob
            .chunks_exact_mut(3)
            .zip([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]].iter().cycle())
        {
            row.copy_from_slice(law);
        }
        Ok(())
    };
    let data = ModelData {
        mask: vec![true; 70 * actions],
        ..ModelData::default()
    };
    let graph = Arc::new(Graph::from_edges(70, &edges).unwrap());
    let law = Initial::Independent(vec![1.0 / 70.0; 70]);
    let model = Model::new(graph, actions, Box::new(local), data, law, 0.9, (0.0, 1.0)).unwrap();
    let watch = Watch::new(&|| false);
    let mut simulator =
        Simulator::<i64>::new(Arc::new(model), n_agents, 1, 2026, 1, 0, &watch).unwrap();
    let table = [0.5 / actions as f64, 1.5 / actions as f64].repeat(35 * actions);
    let policy = TabularPolicy::new(&table, [1, 1, 70, actions]).unwrap();
    let nothing = Record {
        counts: None,
        actions: None,
        rewards: None,
        restarted: None,
        flows: None,
        used: false,
    };
    simulator
        .rollout(&policy, 5, false, nothing, &watch)
        .unwrap();
    let mut counts = vec![0; 70];
    simulator.get_counts(&mut counts);
    counts.into_iter().map(i128::from).collect()
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
        ("rejection, n p = 6", binomials(12, 0.5, 0.5)),
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
        ("rows, one word of agents", rows(1, &uneven)),
        ("rows, agent by agent", rows(30, &uneven)),
        ("rows, agent by agent, 40", rows(30, &forty[..32])),
        ("rows, inversions and rejections", rows(1000, &uneven)),
        ("rows, rejections", rows(1_000_000, &uneven)),
        ("rows, largest count", rows((1 << 53) - 8, &uneven)),
        ("rows, too wide for vectors", rows(1000, &forty)),
        ("steps, tiny teams", steps(200, 2)),
        ("steps, tiny teams, eight actions", steps(200, 8)),
        ("steps, few agents", steps(7_000, 2)),
        ("steps, many agents", steps(7_000_000_000, 2)),
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
    let now = values();
    if std::env::var_os("LTDE_REGENERATE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/values.txt");
        std::fs::write(path, now).unwrap();
        return;
    }
    let golden = include_str!("golden/values.txt");
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(
            now, golden,
            "the stream has changed: see the head of values.rs"
        );
    }
    assert_eq!(now.lines().count(), golden.lines().count());
}

//! Steps of a 32 x 32 grid in one thread, for tools that count or check what they execute:
//! `cargo run --release --example rollouts AGENTS_PER_STATE STEPS` prints the instruction set and
//! the draw-equivalents (benchmarks/README.md). A run is the same every time.

use std::sync::Arc;

use ltde_core::graph::Graph;
use ltde_core::initial::Initial;
use ltde_core::model::{Model, ModelData, Raised};
use ltde_core::policy::TabularPolicy;
use ltde_core::record::Record;
use ltde_core::rng::{Purpose, Seed, Words};
use ltde_core::simd::instruction_set;
use ltde_core::simulator::Simulator;
use ltde_core::watch::Watch;

const SEED: u64 = 1;
const SIDE: usize = 32;
const STATES: usize = SIDE * SIDE;
/// Up, left, stay, right, down.
const ACTIONS: usize = 5;
/// Next states of a state inside of the grid.
const NEXT: usize = 5;

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("a number"))
        .collect();
    let [agents_per_state, steps] = numbers[..] else {
        panic!("usage: rollouts AGENTS_PER_STATE STEPS");
    };
    let probs = policy();
    let policy = TabularPolicy::new(&probs, [1, 1, STATES, ACTIONS]).unwrap();
    let watch = Watch::new(&|| false);
    let agents = (agents_per_state * STATES) as u64;
    let mut simulator =
        Simulator::<i64>::new(Arc::new(grid()), agents, 1, SEED, 1, 0, &watch).unwrap();
    let nothing = Record {
        counts: None,
        actions: None,
        rewards: None,
        restarted: None,
        flows: None,
        used: false,
    };
    simulator
        .rollout(&policy, steps, false, nothing, &watch)
        .unwrap();
    let mut counts = vec![0; STATES];
    simulator.get_counts(&mut counts);
    assert_eq!(
        counts.iter().sum::<i64>(),
        agents as i64,
        "agents were lost"
    );
    let draws = steps * STATES * ((ACTIONS - 1) + ACTIONS * (NEXT - 1));
    println!("{} {draws}", instruction_set().name());
}

/// Probabilities of the actions in each state, drawn once.
fn policy() -> Vec<f64> {
    let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 0);
    let mut probs: Vec<f64> = (0..STATES * ACTIONS).map(|_| rng.open_uniform()).collect();
    for row in probs.chunks_mut(ACTIONS) {
        let total: f64 = row.iter().sum();
        row.iter_mut().for_each(|p| *p /= total);
    }
    probs
}

/// The grid: 0.8 on the state that the action means (this one at the edge), 0.2 spread evenly.
fn grid() -> Model {
    let right = (0..STATES)
        .filter(|s| s % SIDE < SIDE - 1)
        .map(|s| [s as i64, s as i64 + 1]);
    let down = (0..STATES - SIDE).map(|s| [s as i64, (s + SIDE) as i64]);
    let edges: Vec<_> = right.chain(down).collect();
    let graph = Arc::new(Graph::from_edges(STATES, &edges).unwrap());
    let laws: Vec<Vec<f64>> = (0..STATES).map(|s| laws_of(&graph, s)).collect();
    let local = move |s: usize,
                      _mu: &[f64],
                      _node: &[f64],
                      _edge: &[f64],
                      prob: &mut [f64],
                      _reward: &mut [f64]|
          -> Result<(), Raised> {
        prob.copy_from_slice(&laws[s]);
        Ok(())
    };
    let data = ModelData {
        node: vec![],
        edge: vec![],
        mask: vec![true; STATES * ACTIONS],
    };
    let initial = Initial::Independent(vec![1.0 / STATES as f64; STATES]);
    let rewards = (0.0, 1.0);
    Model::new(graph, ACTIONS, Box::new(local), data, initial, 0.9, rewards).unwrap()
}

/// P (A, |N_s|) in one state.
fn laws_of(graph: &Graph, s: usize) -> Vec<f64> {
    let row = graph.row(s);
    let meant = [
        s.wrapping_sub(SIDE),
        s.wrapping_sub(usize::from(!s.is_multiple_of(SIDE))),
        s,
        s + usize::from(s % SIDE < SIDE - 1),
        s + SIDE,
    ];
    let law_of = |next: usize| {
        let next = if next < STATES { next } else { s };
        let even = 0.2 / row.len() as f64;
        row.iter()
            .map(move |&t| even + if t as usize == next { 0.8 } else { 0.0 })
    };
    meant.into_iter().flat_map(law_of).collect()
}

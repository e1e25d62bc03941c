//! Speed of the random words, the samplers and the kernels of a step: `cargo bench`, or
//! `cargo bench -- multinomial` for one group.

use std::borrow::Cow;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng as _, SeedableRng};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use ltde_core::binomial::binomial;
use ltde_core::graph::Graph;
use ltde_core::initial::Initial;
use ltde_core::model::{Model, ModelData, Raised};
use ltde_core::multinomial::{Row, Scratch, draw_rows};
use ltde_core::network::{Networks, Reading};
use ltde_core::policy::{Cell, TabularPolicy, TeamPolicy, Work};
use ltde_core::population::Population;
use ltde_core::record::Record;
use ltde_core::rng::{BLOCK, BlockRng, Purpose, Rng, Seed, Words, philox4x32_10};
use ltde_core::simd::{Kernel, Simd, dispatch_ordinary};
use ltde_core::simulator::Simulator;
use ltde_core::softmax::SoftmaxPolicy;
use ltde_core::teams::{ROOM, Teams, draw};
use ltde_core::watch::Watch;

const SEED: u64 = 1;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .without_plots()
        .configure_from_args();
    words(&mut criterion);
    binomials(&mut criterion);
    multinomials(&mut criterion);
    softmax(&mut criterion);
    kernels(&mut criterion);
    rest(&mut criterion);
    steps(&mut criterion);
    criterion.final_summary();
}

/// A way to address the words that the states of one block draw in one step of one replica.
trait Scheme: Words {
    /// Goes to a block of states.
    fn enter(&mut self, replica: u32, step: u32, block: u32);

    /// Goes to a state of that block.
    fn seek(&mut self, state: u32);
}

/// What the library does: two Philox blocks start a xoshiro256++ for each block of states.
struct StreamPerBlock(Rng);

impl Scheme for StreamPerBlock {
    #[inline]
    fn enter(&mut self, replica: u32, step: u32, block: u32) {
        self.0 = Seed(SEED).stream(Purpose::Step, replica, step.into(), block);
    }

    #[inline]
    fn seek(&mut self, _state: u32) {}
}

impl Words for StreamPerBlock {
    #[inline]
    fn next_word(&mut self) -> u64 {
        self.0.next_word()
    }
}

/// One Philox block starts a xoshiro256++ for each state; SplitMix64 doubles its 128 bits.
struct StreamPerState {
    rng: Rng,
    replica: u32,
    step: u32,
}

impl Scheme for StreamPerState {
    #[inline]
    fn enter(&mut self, replica: u32, step: u32, _block: u32) {
        (self.replica, self.step) = (replica, step);
    }

    #[inline]
    fn seek(&mut self, state: u32) {
        let [a, b] = philox_words([state, self.replica, self.step, Purpose::Step as u32]);
        let next = |word: u64| split_mix(word.wrapping_add(0x9E37_79B9_7F4A_7C15));
        self.rng = Rng::from_words([split_mix(a), next(a), split_mix(b), next(b)]);
    }
}

impl Words for StreamPerState {
    #[inline]
    fn next_word(&mut self) -> u64 {
        self.rng.next_word()
    }
}

fn split_mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// Every word from Philox: a block gives two, its number within the state is in the counter.
struct PurePhilox {
    counter: [u32; 4],
    spare: Option<u64>,
}

impl Scheme for PurePhilox {
    #[inline]
    fn enter(&mut self, replica: u32, step: u32, _block: u32) {
        self.counter[1] = replica;
        self.counter[2] = step;
    }

    #[inline]
    fn seek(&mut self, state: u32) {
        self.counter[0] = state;
        self.counter[3] = 0;
        self.spare = None;
    }
}

impl Words for PurePhilox {
    #[inline]
    fn next_word(&mut self) -> u64 {
        if let Some(word) = self.spare.take() {
            return word;
        }
        let [word, spare] = philox_words(self.counter);
        self.counter[3] += 1;
        self.spare = Some(spare);
        word
    }
}

fn philox_words(counter: [u32; 4]) -> [u64; 2] {
    let x = philox4x32_10(counter, [SEED as u32, (SEED >> 32) as u32]);
    [(0, 1), (2, 3)].map(|(low, high)| u64::from(x[low]) | u64::from(x[high]) << 32)
}

/// ChaCha8 under a stream number for (replica, step), with a seek for each state.
struct ChaCha(ChaCha8Rng);

impl Scheme for ChaCha {
    #[inline]
    fn enter(&mut self, replica: u32, step: u32, _block: u32) {
        self.0
            .set_stream(u64::from(replica) << 32 | u64::from(step));
    }

    #[inline]
    fn seek(&mut self, state: u32) {
        self.0.set_block_pos(u64::from(state) << 32);
    }
}

impl Words for ChaCha {
    #[inline]
    fn next_word(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// Random words for one block of states, by scheme: per word where each state draws many or
/// few, and per stream.
fn words(criterion: &mut Criterion) {
    fn add<S: Scheme>(criterion: &mut Criterion, name: &str, mut scheme: S) {
        for per_state in [24, 2] {
            let mut group = criterion.benchmark_group(format!("rng, {per_state} words a state"));
            group.throughput(Throughput::Elements((BLOCK * per_state) as u64));
            let mut step = 0;
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    step += 1;
                    let block = black_box(3);
                    scheme.enter(1, step, block);
                    for state in 0..BLOCK as u32 {
                        scheme.seek(block * BLOCK as u32 + state);
                        for _ in 0..per_state {
                            black_box(scheme.next_word());
                        }
                    }
                });
            });
        }
        let mut step = 0;
        criterion
            .benchmark_group("rng, start of a stream")
            .bench_function(name, |bencher| {
                bencher.iter(|| {
                    step += 1;
                    scheme.enter(1, step, black_box(3));
                    scheme.seek(black_box(200));
                    scheme.next_word()
                });
            });
    }
    let start = Rng::from_words([1; 4]);
    add(
        criterion,
        "xoshiro256++ per block",
        StreamPerBlock(start.clone()),
    );
    let per_state = StreamPerState {
        rng: start,
        replica: 0,
        step: 0,
    };
    add(criterion, "xoshiro256++ per state", per_state);
    let philox = PurePhilox {
        counter: [0; 4],
        spare: None,
    };
    add(criterion, "Philox4x32-10", philox);
    add(criterion, "ChaCha8", ChaCha(ChaCha8Rng::from_seed([7; 32])));
}

/// One binomial, by the mean n p.
fn binomials(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("binomial");
    let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 0);
    for (name, n, p) in [
        ("5", 100, 0.05),
        ("10", 101, 0.1),
        ("50", 250, 0.2),
        ("2e3", 10_000, 0.2),
        ("2e5", 1_000_000, 0.2),
        ("3e11", 1 << 40, 0.3),
    ] {
        group.bench_function(BenchmarkId::new("np", name), |bencher| {
            bencher.iter(|| {
                binomial(
                    &mut rng,
                    black_box(n),
                    black_box(p),
                    black_box(1.0) - black_box(p),
                )
            });
        });
    }
}

/// Rows of five categories, as many as leave a block of states, by their agents.
fn multinomials(criterion: &mut Criterion) {
    const ROWS: usize = BLOCK * ACTIONS;
    let mut group = criterion.benchmark_group("multinomial");
    let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 1);
    let weights: Vec<f64> = (0..BLOCK)
        .flat_map(|_| transitions(&mut rng).into_iter().flatten())
        .collect();
    let mut scratch = Scratch::default();
    let mut out = vec![0; BLOCK * NEXT];
    for n in [1, 2, 5, 20, 100, 400, 10_000, 1_000_000] {
        let rows: Vec<Row> = (0..ROWS)
            .map(|i| Row {
                n,
                weights: i * NEXT,
                out: i / ACTIONS * NEXT,
                width: NEXT as u32,
            })
            .collect();
        group.throughput(Throughput::Elements((ROWS * (NEXT - 1)) as u64));
        group.bench_function(BenchmarkId::new("n", n), |bencher| {
            let mut step = 0;
            bencher.iter(|| {
                step += 1;
                let mut rng = Seed(SEED).block(Purpose::Sample, 0, step, 0);
                draw_rows(&mut rng, black_box(&rows), &weights, &mut scratch, &mut out);
            });
        });
    }
}

const SIDE: usize = 32;
const STATES: usize = SIDE * SIDE;
const REPLICAS: usize = 16;
const ACTIONS: usize = 5;
/// Nominal next states of a cell: up, left, itself, right, down.
const NEXT: usize = 5;
/// Nominal conditional binomials of a state: one is a draw-equivalent.
const DRAWS: usize = (ACTIONS - 1) + ACTIONS * (NEXT - 1);

/// One step of the grid of docs/performance.md with tabulated policy and transitions.
fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.throughput(Throughput::Elements((REPLICAS * STATES * DRAWS) as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 2);
    let model = grid(&mut rng);
    let probs: Vec<f64> = (0..REPLICAS * STATES)
        .flat_map(|_| softmax_of_normals(&mut rng))
        .collect();
    let policy = TabularPolicy::new(&probs, [1, REPLICAS, STATES, ACTIONS]).unwrap();
    for (name, agents_per_state) in LOADS {
        let agents = agents_per_state * STATES as u64;
        let model = Arc::clone(&model);
        let mut simulator =
            Simulator::<i64>::new(model, agents, REPLICAS, SEED, 1, 0, &Watch::new(&|| false))
                .unwrap();
        let mut walk = |n_steps| {
            let watch = Watch::new(&|| false);
            simulator
                .rollout(&policy, n_steps, false, nothing(), &watch)
                .unwrap();
        };
        walk(12);
        group.bench_function(BenchmarkId::new("agents a state", name), |bencher| {
            bencher.iter(|| walk(1));
        });
    }
}

/// The draws of one block.
struct Draw<'a> {
    policy: &'a TabularPolicy<'a>,
    teams: Teams<'a, i64>,
    rng: BlockRng,
    work: &'a mut Work,
}

impl Kernel for Draw<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        let Teams {
            cells,
            degrees,
            prob,
            ..
        } = self.teams;
        let sums = &mut self.work.sums;
        sums.add_up(self.policy, cells, degrees, prob, ACTIONS);
        draw(self.policy, self.teams, &mut self.rng, self.work);
    }
}

/// What [`steps`] plays without the local function, the arrivals and all else: draws from tables.
fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Elements((REPLICAS * STATES * DRAWS) as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 2);
    let model = grid(&mut rng);
    let probs: Vec<f64> = (0..STATES)
        .flat_map(|_| softmax_of_normals(&mut rng))
        .collect();
    let policy = TabularPolicy::new(&probs, [1, 1, STATES, ACTIONS]).unwrap();
    let table = table(&model);
    let watch = Watch::new(&|| false);
    for (name, agents_per_state) in LOADS {
        let agents = agents_per_state * STATES as u64;
        let model = Arc::clone(&model);
        let mut simulator =
            Simulator::<i64>::new(model, agents, REPLICAS, SEED, 1, 0, &watch).unwrap();
        simulator
            .rollout(&policy, 12, false, nothing(), &watch)
            .unwrap();
        let mut counts = vec![0; REPLICAS * STATES];
        simulator.get_counts(&mut counts);
        let graph = &simulator.model().graph;
        // the occupied states of each block of each replica
        let mut blocks = Vec::new();
        for (replica, counts) in counts.chunks(STATES).enumerate() {
            for (block, counts) in counts.chunks(BLOCK).enumerate() {
                let (mut cells, mut degrees, mut prob) = (Vec::new(), Vec::new(), Vec::new());
                for (i, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                    let state = block * BLOCK + i;
                    let cell = Cell {
                        replica,
                        time: 0,
                        state,
                        density: n as f64 / agents as f64,
                    };
                    let range = graph.range(state);
                    cells.push((cell, n));
                    degrees.push(range.len() as u32);
                    prob.extend(&table[range.start * ACTIONS..range.end * ACTIONS]);
                }
                // replicas share the table where nothing is left out
                let first = graph.indptr()[block * BLOCK] * ACTIONS;
                let prob = if cells.len() == counts.len() {
                    Cow::Borrowed(&table[first..][..prob.len()])
                } else {
                    Cow::Owned(prob)
                };
                blocks.push((replica as u32, block as u32, cells, degrees, prob));
            }
        }
        let (mut work, mut actions, mut landed) = (Work::default(), Vec::new(), Vec::new());
        let mut step = 0;
        group.bench_function(BenchmarkId::new("agents a state", name), |bencher| {
            bencher.iter(|| {
                step += 1;
                for (replica, block, cells, degrees, prob) in &blocks {
                    actions.resize(cells.len() * ACTIONS + ROOM, 0);
                    landed.resize(prob.len() / ACTIONS + ROOM, 0);
                    let teams = Teams {
                        cells,
                        degrees,
                        prob,
                        actions: &mut actions,
                        landed: &mut landed,
                    };
                    dispatch_ordinary(Draw {
                        policy: &policy,
                        teams,
                        rng: Seed(SEED).block(Purpose::Step, *replica, step, *block),
                        work: &mut work,
                    });
                    black_box(&landed);
                }
            });
        });
    }
}

/// The rest of [`steps`]: the local function with the checks of what it wrote, and the arrivals.
fn rest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rest");
    group.throughput(Throughput::Elements(STATES as u64));
    let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 2);
    let model = grid(&mut rng);
    let mu = [1.0 / STATES as f64; NEXT];
    let (mut prob, mut reward) = ([0.0; ACTIONS * NEXT], [0.0; ACTIONS]);
    group.bench_function("local function, checked", |bencher| {
        bencher.iter(|| {
            for s in 0..STATES {
                let degree = model.graph.range(s).len();
                let prob = &mut prob[..ACTIONS * degree];
                model
                    .local(s, black_box(&mu[..degree]), prob, &mut reward)
                    .unwrap();
            }
        });
    });
    let mut next = Population::<i64>::empty(STATES);
    group.bench_function("arrivals", |bencher| {
        bencher.iter(|| {
            next.clear();
            for s in 0..STATES {
                let row = model.graph.row(s);
                next.add(row, &black_box([2; NEXT])[..row.len()]);
            }
            next.finish(10 * STATES as u64);
        });
    });
}

/// Agents a state.
const LOADS: [(&str, u64); 5] = [
    ("1", 1),
    ("10", 10),
    ("100", 100),
    ("1e4", 10_000),
    ("1e6", 1_000_000),
];

fn nothing<T>() -> Record<'static, T> {
    Record {
        counts: None,
        actions: None,
        rewards: None,
        restarted: None,
        flows: None,
        used: false,
    }
}

/// P of all states, as the local function of [`grid`] writes it.
fn table(model: &Model) -> Vec<f64> {
    let graph = &model.graph;
    let (mut table, mut reward) = (Vec::new(), [0.0; ACTIONS]);
    for s in 0..STATES {
        let degree = graph.range(s).len();
        let mut prob = vec![0.0; degree * ACTIONS];
        model
            .local(s, &vec![0.0; degree], &mut prob, &mut reward)
            .unwrap();
        table.extend(prob);
    }
    table
}

/// The grid, whose local function copies a table of transitions.
fn grid(rng: &mut Rng) -> Arc<Model> {
    let right = (0..STATES)
        .filter(|s| s % SIDE < SIDE - 1)
        .map(|s| [s as i64, s as i64 + 1]);
    let down = (0..STATES - SIDE).map(|s| [s as i64, (s + SIDE) as i64]);
    let edges: Vec<_> = right.chain(down).collect();
    let graph = Arc::new(Graph::from_edges(STATES, &edges).unwrap());
    let starts = graph.indptr().to_vec();
    let mut table = vec![0.0; graph.nnz() * ACTIONS];
    for s in 0..STATES {
        let row = graph.row(s);
        let nominal = [
            (s >= SIDE).then(|| s - SIDE),
            (s % SIDE > 0).then(|| s - 1),
            Some(s),
            (s % SIDE < SIDE - 1).then(|| s + 1),
            (s < STATES - SIDE).then(|| s + SIDE),
        ];
        for (a, law) in transitions(rng).into_iter().enumerate() {
            for (next, p) in nominal.into_iter().zip(law) {
                let next = next.unwrap_or(s) as u32;
                let j = row.binary_search(&next).unwrap();
                table[starts[s] * ACTIONS + a * row.len() + j] += p;
            }
        }
    }
    let local = move |s: usize,
                      _mu: &[f64],
                      _node: &[f64],
                      _edge: &[f64],
                      prob: &mut [f64],
                      _reward: &mut [f64]|
          -> Result<(), Raised> {
        prob.copy_from_slice(&table[starts[s] * ACTIONS..][..prob.len()]);
        Ok(())
    };
    let data = ModelData {
        node: vec![],
        edge: vec![],
        mask: vec![true; STATES * ACTIONS],
    };
    let initial = Initial::Independent(vec![1.0 / STATES as f64; STATES]);
    let range = (0.0, 1.0);
    Arc::new(Model::new(graph, ACTIONS, Box::new(local), data, initial, 0.9, range).unwrap())
}

/// The nominal next states by action: 0.8 on the intended one, 0.2 spread by Dirichlet(1).
fn transitions(rng: &mut Rng) -> [[f64; NEXT]; ACTIONS] {
    let mut laws = [[0.0; NEXT]; ACTIONS];
    for (a, law) in laws.iter_mut().enumerate() {
        law.fill_with(|| -rng.open_uniform().ln());
        let total: f64 = law.iter().sum();
        law.iter_mut().for_each(|p| *p *= 0.2 / total);
        law[a] += 0.8;
    }
    laws
}

fn softmax_of_normals(rng: &mut Rng) -> [f64; ACTIONS] {
    let mut pi = [0.0; ACTIONS];
    pi.fill_with(|| {
        let angle = std::f64::consts::TAU * rng.open_uniform();
        ((-2.0 * rng.open_uniform().ln()).sqrt() * angle.cos()).exp()
    });
    let total: f64 = pi.iter().sum();
    pi.map(|p| p / total)
}

/// A softmax policy of width 64 in one of 1024 states after the other.
fn softmax(criterion: &mut Criterion) {
    const STATES: usize = 1024;
    const WIDTH: usize = 64;
    let mut group = criterion.benchmark_group("softmax");
    for actions in [2, 5, 12] {
        let mut rng = Seed(SEED).stream(Purpose::Sample, 0, 0, 0);
        let mut numbers =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.open_uniform() as f32 - 0.5).collect() };
        let theta = numbers(STATES * WIDTH * (1 + actions));
        let signs: Vec<f32> = numbers(STATES * WIDTH)
            .into_iter()
            .map(f32::signum)
            .collect();
        let mask = vec![true; STATES * actions];
        let reading = Reading {
            mask: &mask,
            tau: 1.0,
            density_scale: STATES as f64,
            input_scale: 1.0,
        };
        let shape = [STATES, WIDTH, 1 + actions];
        let policy = SoftmaxPolicy::new(Networks::new(&theta, &signs, shape).unwrap(), reading);
        let mut pi = vec![0.0; actions];
        let mut state = 0;
        group.bench_function(BenchmarkId::from_parameter(actions), |bencher| {
            bencher.iter(|| {
                state = (state + 1) % STATES;
                let cell = Cell {
                    replica: 0,
                    time: 0,
                    state,
                    density: black_box(0.003),
                };
                policy.mean_action(cell, &mut pi);
                pi[0]
            });
        });
    }
    group.finish();
}

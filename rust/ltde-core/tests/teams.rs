//! Blocks of teams that are drawn agent by agent, against a plain reference of the same draws.

use std::process::Command;

use ltde_core::error::Result;
use ltde_core::model::Model;
use ltde_core::policy::{Cell, TeamPolicy, Work};
use ltde_core::rng::{BlockRng, LaneRng, Purpose, Rng, Seed, Words};
use ltde_core::simd::{InstructionSet, Kernel, LANES, Simd, dispatch_to};
use ltde_core::teams::{ROOM, Teams, draw};

/// pi (states, A) as it stands.
struct Table<'a> {
    pi: &'a [f64],
    actions: usize,
}

impl TeamPolicy for Table<'_> {
    fn check(&self, _: &Model, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn mean_action(&self, cell: Cell, pi: &mut [f64]) {
        pi.copy_from_slice(&self.pi[cell.state * self.actions..][..self.actions]);
    }
}

/// A block of teams.
struct Block {
    actions: usize,
    teams: Vec<i64>,
    degrees: Vec<u32>,
    pi: Vec<f64>,
    prob: Vec<f64>,
}

impl Block {
    /// With a few zero weights, and a few that are tiny.
    fn random(rng: &mut Rng) -> Self {
        let mut below = |n: u64| rng.next_word() % n;
        let actions = 1 + below(8) as usize;
        let widest = [2, 5, 8, 9][below(4) as usize];
        let largest = [1, 4, 40, 64, 110][below(5) as usize];
        let count = 1 + below(64) as usize;
        let teams: Vec<i64> = (0..count).map(|_| 1 + below(largest) as i64).collect();
        let degrees: Vec<u32> = (0..count).map(|_| 1 + below(widest) as u32).collect();
        let mut weights = |width: usize| {
            let mut row: Vec<f64> = (0..width)
                .map(|_| match below(8) {
                    0 => 0.0,
                    1 => f64::MIN_POSITIVE / 8.0,
                    2 => 1e-17,
                    _ => (1 + below(1000)) as f64,
                })
                .collect();
            row[below(width as u64) as usize] += 1.0;
            let total: f64 = row.iter().sum();
            row.iter_mut().for_each(|w| *w /= total);
            row
        };
        let pi = (0..count).flat_map(|_| weights(actions)).collect();
        let rows = degrees.iter().flat_map(|&d| vec![d as usize; actions]);
        let prob = rows.flat_map(&mut weights).collect();
        Block {
            actions,
            teams,
            degrees,
            pi,
            prob,
        }
    }

    /// The actions (teams, A), and how many go to each neighbour, team by team.
    fn draw(&self, rng: &mut BlockRng, work: &mut Work) -> (Vec<i64>, Vec<i64>) {
        let cell = |state| Cell {
            replica: 0,
            time: 0,
            state,
            density: 0.5,
        };
        let cells: Vec<(Cell, i64)> = (0..).map(cell).zip(self.teams.iter().copied()).collect();
        // what stands there before does not matter
        let mut actions = vec![i64::MIN; cells.len() * self.actions + ROOM];
        let mut landed = vec![i64::MIN; self.prob.len() / self.actions + ROOM];
        let policy = Table {
            pi: &self.pi,
            actions: self.actions,
        };
        work.sums
            .add_up(&policy, &cells, &self.degrees, &self.prob, self.actions);
        let teams = Teams {
            cells: &cells,
            degrees: &self.degrees,
            prob: &self.prob,
            actions: &mut actions,
            landed: &mut landed,
        };
        draw(&policy, teams, rng, work);
        actions.truncate(cells.len() * self.actions);
        landed.truncate(self.prob.len() / self.actions);
        (actions, landed)
    }

    /// Whether team i is drawn agent by agent.
    fn is_tiny(&self, i: usize) -> bool {
        let mean = self.teams.iter().sum::<i64>() as f64 / self.teams.len() as f64;
        mean <= 32.0 && self.teams[i] <= 96 && self.degrees[i] <= 8
    }
}

/// The generators of a block.
struct Lanes<'a>(&'a mut BlockRng);

impl Kernel for Lanes<'_> {
    type Output = LaneRng;

    fn run<S: Simd>(self, simd: S) -> LaneRng {
        self.0.lanes(simd).clone()
    }
}

/// The first cumulative weight above u times the total.
fn choice(u: f64, weights: &[f64]) -> usize {
    let total = weights.iter().fold(0.0, |sum, w| sum + w);
    let mut sum = 0.0;
    let above = weights.iter().position(|w| {
        sum += w;
        sum > u * total
    });
    above.unwrap()
}

/// Agent by agent: eight take a uniform number of each lane for their actions, then one for their
/// next states.
fn reference(block: &Block, mut lanes: LaneRng) -> (Vec<i64>, Vec<i64>) {
    let mut actions = vec![0; block.teams.len() * block.actions];
    let mut landed = vec![0; block.prob.len() / block.actions];
    let (mut agents, mut first) = (Vec::new(), 0);
    for (i, &degree) in block.degrees.iter().enumerate() {
        if block.is_tiny(i) {
            agents.extend((0..block.teams[i]).map(|_| (i, first)));
        }
        first += degree as usize;
    }
    for group in agents.chunks(LANES) {
        let mut uniforms = [[0.0; LANES]; 2];
        for uniforms in &mut uniforms {
            for (lane, u) in uniforms.iter_mut().enumerate() {
                *u = lanes.lane(lane).open_uniform();
            }
        }
        for (lane, &(i, first)) in group.iter().enumerate() {
            let a = choice(
                uniforms[0][lane],
                &block.pi[i * block.actions..][..block.actions],
            );
            let degree = block.degrees[i] as usize;
            let row = &block.prob[first * block.actions + a * degree..][..degree];
            actions[i * block.actions + a] += 1;
            landed[first + choice(uniforms[1][lane], row)] += 1;
        }
    }
    (actions, landed)
}

#[test]
fn teams_follow_the_reference() {
    let mut rng = Seed(7).stream(Purpose::Sample, 0, 0, 0);
    // one memory for all: nothing of the block before may matter
    let mut work = Work::default();
    let (mut tiny, mut whole, mut wide) = (0, 0, 0);
    for step in 0..400 {
        let block = Block::random(&mut rng);
        let mut source = Seed(8).block(Purpose::Step, 0, step, 0);
        let lanes = dispatch_to(InstructionSet::Portable, Lanes(&mut source.clone()));
        let (actions, landed) = block.draw(&mut source, &mut work);
        let (expected_actions, expected_landed) = reference(&block, lanes);
        let mut first = 0;
        for (i, &n) in block.teams.iter().enumerate() {
            let degree = block.degrees[i] as usize;
            let team = i * block.actions..(i + 1) * block.actions;
            let row = first..first + degree;
            assert_eq!(actions[team.clone()].iter().sum::<i64>(), n, "block {step}");
            assert_eq!(landed[row.clone()].iter().sum::<i64>(), n, "block {step}");
            if block.is_tiny(i) {
                assert_eq!(
                    actions[team.clone()],
                    expected_actions[team],
                    "block {step}, team {i}"
                );
                assert_eq!(
                    landed[row.clone()],
                    expected_landed[row],
                    "block {step}, team {i}"
                );
                tiny += 1;
            }
            first += degree;
        }
        whole += usize::from((0..block.teams.len()).all(|i| block.is_tiny(i)));
        wide += usize::from(block.actions > 5 && block.is_tiny(0));
    }
    // what is to be compared has been
    assert!(
        tiny > 4000 && whole > 50 && wide > 50,
        "{tiny} {whole} {wide}"
    );
}

/// The same test with each instruction set that is there, in a process of its own.
#[test]
fn every_instruction_set_follows_the_reference() {
    for set in InstructionSet::ALL.into_iter().filter(|set| set.is_there()) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "teams_follow_the_reference"])
            .env("LTDE_INSTRUCTION_SET", set.name().to_lowercase())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {text}", set.name());
        assert!(text.contains("1 passed"), "{text}");
    }
}

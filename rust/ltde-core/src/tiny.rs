//! Tiny teams: the action and the next state of each agent are drawn together, agent by agent. Only
//! their uniform numbers come in vectors, entry i in lane i mod 8.
//!
//! The law is that of a multinomial team action, Eq. (3.2), followed by the multinomials of its
//! rows, Eq. (2.7): agents of a team are independent given the densities. The error in probability
//! is that of the sums of weights, K - 1 roundings of 2^-53 at most.

use crate::rng::{BlockRng, LaneRng};
use crate::simd::{Eight, Kernel, LANES, Real, Simd};

/// Most agents of a tiny team; measured on the whole step.
const MOST: i64 = 16;

/// Room for the agents of a team.
const ROOM: usize = MOST as usize;

/// Most actions, and most neighbours, of a tiny team.
pub(crate) const WIDEST: usize = 8;

/// Whether a team is drawn agent by agent.
#[inline(always)]
pub(crate) fn is_tiny(n: i64, actions: usize, degree: u32) -> bool {
    n <= MOST && actions <= WIDEST && degree as usize <= WIDEST
}

/// One team: how many agents, and where its rows begin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Team {
    pub n: u32,
    /// |N_s|.
    pub degree: u32,
    /// In `pi` and `actions`.
    pub actions: u32,
    /// In `prob`.
    pub prob: usize,
    /// In `landed`.
    pub landed: u32,
}

/// Scratch memory, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch {
    /// Index of the team of each agent.
    agents: Vec<u32>,
    /// Where the row of its action begins.
    rows: Vec<usize>,
    uniforms: Vec<Eight<f64>>,
    /// How often each choice was made up to each agent: a byte for each choice, modulo 2^64. To
    /// count in memory would be slow, since an agent often counts where the one before did.
    sums: Vec<u64>,
}

/// Draws actions and next states of all agents of some teams.
#[derive(Debug)]
pub(crate) struct PlayTiny<'a> {
    pub rng: &'a mut BlockRng,
    pub teams: &'a [Team],
    /// Number of actions A.
    pub width: usize,
    /// pi (A,) of each state.
    pub pi: &'a [f64],
    /// P (A, |N_s|) of each state.
    pub prob: &'a [f64],
    /// The team action (A,) of each state, zero on arrival; with room for [`WIDEST`] more.
    pub actions: &'a mut [i64],
    /// How many go to each neighbour (|N_s|,) of each state, zero on arrival; with room for
    /// [`WIDEST`] more.
    pub landed: &'a mut [i64],
    pub scratch: &'a mut Scratch,
}

impl Kernel for PlayTiny<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PlayTiny {
            rng,
            teams,
            width,
            pi,
            prob,
            actions,
            landed,
            scratch,
        } = self;
        let rng = rng.lanes(simd);
        let Scratch {
            agents,
            rows,
            uniforms,
            sums,
        } = scratch;
        // all that a team may have, and back to what it has: no branch on its size
        agents.resize((teams.len() * ROOM).max(agents.len()), 0);
        let mut len = 0;
        for (i, team) in teams.iter().enumerate() {
            agents[len..][..ROOM].copy_from_slice(&[i as u32; ROOM]);
            len += (team.n as usize).min(ROOM);
        }
        let agents = &agents[..len];
        rows.resize(len.max(rows.len()), 0);
        sums.resize((len + 1).max(sums.len()), 0);
        let groups = len.div_ceil(LANES);
        uniforms.resize(groups.max(uniforms.len()), Eight::default());
        fill(simd, rng, &mut uniforms[..groups]);
        // one copy of the code for each width: its loops are unrolled
        match width {
            1 => act::<1>(teams, agents, uniforms, pi, sums, rows),
            2 => act::<2>(teams, agents, uniforms, pi, sums, rows),
            3 => act::<3>(teams, agents, uniforms, pi, sums, rows),
            4 => act::<4>(teams, agents, uniforms, pi, sums, rows),
            5 => act::<5>(teams, agents, uniforms, pi, sums, rows),
            6 => act::<6>(teams, agents, uniforms, pi, sums, rows),
            7 => act::<7>(teams, agents, uniforms, pi, sums, rows),
            _ => act::<8>(teams, agents, uniforms, pi, sums, rows),
        }
        let mut first = 0;
        for team in teams {
            let n = team.n as usize;
            let counts = sums[first + n].wrapping_sub(sums[first]);
            unpack(counts, &mut actions[team.actions as usize..]);
            first += n;
        }
        fill(simd, rng, &mut uniforms[..groups]);
        let mut sum = 0u64;
        let chosen = agents.chunks(LANES).zip(rows.chunks(LANES)).zip(&*uniforms);
        for (((agents, rows), uniforms), sums) in chosen.zip(sums[1..].chunks_mut(LANES)) {
            let chosen = agents.iter().zip(rows).zip(&uniforms.0).zip(sums);
            for (((&i, &row), &u), place) in chosen {
                let row = &prob[row..];
                let next = match teams[i as usize].degree {
                    1 => 0,
                    2 => choose::<2>(u, row),
                    3 => choose::<3>(u, row),
                    4 => choose::<4>(u, row),
                    5 => choose::<5>(u, row),
                    6 => choose::<6>(u, row),
                    7 => choose::<7>(u, row),
                    _ => choose::<8>(u, row),
                };
                sum = sum.wrapping_add(1 << (8 * next));
                *place = sum;
            }
        }
        let mut first = 0;
        for team in teams {
            let n = team.n as usize;
            let counts = sums[first + n].wrapping_sub(sums[first]);
            unpack(counts, &mut landed[team.landed as usize..]);
            first += n;
        }
    }
}

/// Writes the bytes of `counts`, all eight: what follows the categories of a team is zero, and is
/// written later.
#[inline(always)]
fn unpack(counts: u64, out: &mut [i64]) {
    out[..WIDEST].copy_from_slice(&counts.to_le_bytes().map(i64::from));
}

/// Uniform numbers in (0, 1), one after the other in each lane.
#[inline(always)]
fn fill<S: Simd>(simd: S, rng: &mut LaneRng, out: &mut [Eight<f64>]) {
    for part in 0..S::PARTS {
        let mut words = rng.part(simd, part);
        for out in &mut *out {
            words.open_uniform().store(&mut out.0[part * S::WIDTH..]);
        }
        rng.put_back(simd, part, words);
    }
}

/// Draws the action of each agent.
#[inline(always)]
fn act<const A: usize>(
    teams: &[Team],
    agents: &[u32],
    uniforms: &[Eight<f64>],
    pi: &[f64],
    sums: &mut [u64],
    rows: &mut [usize],
) {
    let mut sum = 0u64;
    sums[0] = 0;
    let groups = agents
        .chunks(LANES)
        .zip(rows.chunks_mut(LANES))
        .zip(uniforms);
    for (((agents, rows), uniforms), sums) in groups.zip(sums[1..].chunks_mut(LANES)) {
        let agents = agents.iter().zip(rows).zip(&uniforms.0).zip(sums);
        for (((&i, row), &u), place) in agents {
            let team = teams[i as usize];
            let action = choose::<A>(u, &pi[team.actions as usize..]);
            sum = sum.wrapping_add(1 << (8 * action));
            *place = sum;
            *row = team.prob + action * team.degree as usize;
        }
    }
}

/// The draw that a uniform number u makes from the distribution proportional to K weights: the
/// number of cumulative weights, but the last, that u times the total reaches. A weight of zero is
/// never hit: the product stays below the total, since u is at most 1 - 2^-53.
#[inline(always)]
fn choose<const K: usize>(u: f64, weights: &[f64]) -> usize {
    let weights = &weights[..K];
    let mut limits = [0.0; K];
    let mut total = 0.0;
    for (limit, &w) in limits.iter_mut().zip(weights) {
        total += w;
        *limit = total;
    }
    let x = u * total;
    let mut reached = 0;
    for &limit in &limits[..K - 1] {
        reached += usize::from(x >= limit);
    }
    reached
}

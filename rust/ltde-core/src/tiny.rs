//! Tiny teams: the action and the next state of each agent are drawn together, agent by agent. Their
//! uniform numbers come in vectors, entry i in lane i mod 8, and are compared with all cumulative
//! weights at once.
//!
//! The law is that of a multinomial team action, Eq. (3.2), followed by the multinomials of its
//! rows, Eq. (2.7): agents of a team are independent given the densities. The error in probability
//! is that of the sums of weights, K - 1 roundings of 2^-53 at most.

use crate::rng::{BLOCK, BlockRng, LaneRng};
use crate::simd::{Eight, Kernel, LANES, Mask, Real, Simd};

/// Most agents of the mean team of a block where teams are drawn agent by agent; measured on the
/// whole step.
const MEAN: i64 = 32;

/// Most agents of such a team, far above the mean: their number fits into a byte.
const MOST: i64 = 96;

/// Agents of a team whose places are written without a branch.
const ROOM: usize = 32;

/// Most actions, and most neighbours, of a tiny team.
pub(crate) const WIDEST: usize = LANES;

/// Most laws of a block: where one begins needs no check but for lower bits.
const LAWS: usize = (BLOCK * (1 + WIDEST)).next_power_of_two();

/// Room for the laws of a block, and for those behind the last that are not looked at.
pub(crate) const LAWS_AND_ROOM: usize = LAWS + WIDEST;

/// Most agents of a tiny team in a block of so many teams with so many agents together: few beside
/// many are as quick in [`crate::few`].
#[inline(always)]
pub(crate) fn most(actions: usize, teams: usize, agents: i64) -> i64 {
    let tiny = actions <= WIDEST && agents <= MEAN * teams as i64;
    if tiny { MOST } else { 0 }
}

/// Whether a team of n agents is drawn agent by agent, in a block where such teams have at most
/// `most`, as [`most`] finds.
#[inline(always)]
pub(crate) fn is_tiny(n: i64, degree: u32, most: i64) -> bool {
    n <= most && degree as usize <= WIDEST
}

/// One team: how many agents, and where its rows begin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Team {
    pub n: u32,
    /// Index of the state in the block: that of its rows of `pi`, `laws` and `actions`.
    pub index: u32,
    /// In `landed`.
    pub landed: u32,
}

/// What is to be drawn, and scratch memory, sized on first use and reused.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch {
    pub teams: Vec<Team>,
    /// Index of the first law of the team of each agent.
    agents: Vec<u32>,
    /// For the actions of eight agents, then for their next states.
    uniforms: Vec<[Eight<f64>; 2]>,
    /// How often each action, and each next state, was chosen up to each agent: a byte for each,
    /// modulo 2^64. To count in memory would be slow, since an agent often counts where the one
    /// before did.
    sums: Vec<[u64; 2]>,
}

/// Draws actions and next states of all agents of some teams.
#[derive(Debug)]
pub(crate) struct PlayTiny<'a> {
    pub rng: &'a mut BlockRng,
    /// Number of actions A.
    pub width: usize,
    /// Whether no law has more than [`HALF`] limits.
    pub half: bool,
    /// pi (A,) of each state.
    pub pi: &'a [f64],
    /// Laws (1 + A,) of each state: room for that of pi, then those of the rows of P.
    pub laws: &'a mut [Eight<f64>; LAWS_AND_ROOM],
    /// For the team action (A,) of each state; with room for [`WIDEST`] more.
    pub actions: &'a mut [i64],
    /// For how many go to each neighbour (|N_s|,) of each state; with room for [`WIDEST`] more.
    pub landed: &'a mut [i64],
    pub scratch: &'a mut Scratch,
}

impl Kernel for PlayTiny<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.half {
            self.play::<S, HALF>(simd);
        } else {
            self.play::<S, TOTAL>(simd);
        }
    }
}

impl PlayTiny<'_> {
    /// Draws, with so many limits of a law at most.
    #[inline(always)]
    fn play<S: Simd, const LIMITS: usize>(self, simd: S) {
        let PlayTiny {
            rng,
            width,
            pi,
            laws,
            actions,
            landed,
            scratch,
            ..
        } = self;
        let rng = rng.lanes(simd);
        let Scratch {
            teams,
            agents,
            uniforms,
            sums,
        } = scratch;
        let teams = teams.as_slice();
        let all = teams.iter().map(|team| team.n as usize).sum::<usize>();
        agents.resize((all + ROOM.max(LANES)).max(agents.len()), 0);
        // one copy of the code for each A: its loops are unrolled
        match width {
            1 => begin::<1, LIMITS>(teams, pi, laws, agents),
            2 => begin::<2, LIMITS>(teams, pi, laws, agents),
            3 => begin::<3, LIMITS>(teams, pi, laws, agents),
            4 => begin::<4, LIMITS>(teams, pi, laws, agents),
            5 => begin::<5, LIMITS>(teams, pi, laws, agents),
            6 => begin::<6, LIMITS>(teams, pi, laws, agents),
            7 => begin::<7, LIMITS>(teams, pi, laws, agents),
            _ => begin::<8, LIMITS>(teams, pi, laws, agents),
        };
        // the last eight are completed by agents that nobody looks at
        agents[all..][..LANES].fill(0);
        let all = all.next_multiple_of(LANES);
        uniforms.resize((all / LANES).max(uniforms.len()), Default::default());
        let uniforms = &mut uniforms[..all / LANES];
        fill(simd, rng, uniforms.as_flattened_mut());
        sums.resize((all + 1).max(sums.len()), [0; 2]);
        let (agents, _) = agents[..all].as_chunks();
        let (sums_of_groups, _) = sums[1..].as_chunks_mut();
        choose::<S, LIMITS>(simd, laws, agents, uniforms, sums_of_groups);
        let mut before = [0; 2];
        let mut last = 0;
        for team in teams {
            last += team.n as usize;
            let [a, b] = sums[last];
            unpack(
                a.wrapping_sub(before[0]),
                &mut actions[team.index as usize * width..],
            );
            unpack(
                b.wrapping_sub(before[1]),
                &mut landed[team.landed as usize..],
            );
            before = [a, b];
        }
    }
}

/// Writes the law of the policy of each team, and the index of its first law for each of its agents.
#[inline(always)]
fn begin<const A: usize, const LIMITS: usize>(
    teams: &[Team],
    pi: &[f64],
    laws: &mut [Eight<f64>; LAWS_AND_ROOM],
    agents: &mut [u32],
) {
    let mut len = 0;
    for team in teams {
        let index = team.index as usize;
        let first = index * (1 + A);
        write_law::<A, LIMITS>(&pi[index * A..][..A], &mut laws[first]);
        // more than most teams have: no branch on its size
        agents[len..][..ROOM].copy_from_slice(&[first as u32; ROOM]);
        let n = team.n as usize;
        if n > ROOM {
            agents[len..][..n].fill(first as u32);
        }
        len += n;
    }
}

/// Where the total of a law stands: before it are limits.
pub(crate) const TOTAL: usize = LANES - 1;

/// Half of the lanes.
pub(crate) const HALF: usize = LANES / 2;

/// Writes the laws and the sums of the rows of some states, of so many actions and neighbours; of
/// the laws (1 + A,) of a state the first is left as it is.
#[inline(always)]
pub(crate) fn add_up<const LIMITS: usize>(
    prob: &[f64],
    width: usize,
    degree: usize,
    laws: &mut [Eight<f64>],
    sums: &mut [f64],
) {
    // one copy of the code for each |N_s|: its loops are unrolled
    match degree {
        1 => add_up_rows::<1, LIMITS>(prob, width, laws, sums),
        2 => add_up_rows::<2, LIMITS>(prob, width, laws, sums),
        3 => add_up_rows::<3, LIMITS>(prob, width, laws, sums),
        4 => add_up_rows::<4, LIMITS>(prob, width, laws, sums),
        5 => add_up_rows::<5, LIMITS>(prob, width, laws, sums),
        6 => add_up_rows::<6, LIMITS>(prob, width, laws, sums),
        7 => add_up_rows::<7, LIMITS>(prob, width, laws, sums),
        _ => add_up_rows::<8, LIMITS>(prob, width, laws, sums),
    }
}

/// As [`add_up`], for K neighbours.
#[inline(always)]
fn add_up_rows<const K: usize, const LIMITS: usize>(
    prob: &[f64],
    width: usize,
    laws: &mut [Eight<f64>],
    sums: &mut [f64],
) {
    let (mut rows, _) = prob.as_chunks::<K>();
    let mut sums = sums;
    for laws in laws.chunks_exact_mut(1 + width) {
        let (own, out);
        (own, rows) = rows.split_at(width);
        (out, sums) = sums.split_at_mut(width);
        for ((row, law), sum) in own.iter().zip(&mut laws[1..]).zip(out) {
            *sum = write_law::<K, LIMITS>(row, law);
        }
    }
}

/// Writes the law of K weights, and returns their total. A law is the cumulative weights but the
/// last, infinity in place of those that are missing, and at [`TOTAL`] the total.
#[inline(always)]
fn write_law<const K: usize, const LIMITS: usize>(weights: &[f64], law: &mut Eight<f64>) -> f64 {
    let mut limits = [f64::INFINITY; LIMITS];
    let mut total = weights[0];
    for (limit, &w) in limits.iter_mut().zip(&weights[1..K]) {
        *limit = total;
        total += w;
    }
    law.0[..LIMITS].copy_from_slice(&limits);
    law.0[TOTAL] = total;
    total
}

/// Writes the bytes of `counts`, all eight: what follows the categories of a team are zeros, where
/// the next team's come later.
#[inline(always)]
fn unpack(counts: u64, out: &mut [i64]) {
    out[..WIDEST].copy_from_slice(&counts.to_le_bytes().map(i64::from));
}

/// Uniform numbers in (0, 1), one after the other in each lane.
#[inline(always)]
fn fill<S: Simd>(simd: S, rng: &mut LaneRng, out: &mut [Eight<f64>]) {
    let mut part = 0;
    // two parts side by side: each waits for its own last word
    while part + 1 < S::PARTS {
        let mut words = [rng.part(simd, part), rng.part(simd, part + 1)];
        for out in &mut *out {
            words[0].open_uniform().store(&mut out.0[part * S::WIDTH..]);
            words[1]
                .open_uniform()
                .store(&mut out.0[(part + 1) * S::WIDTH..]);
        }
        let [first, second] = words;
        rng.put_back(simd, part, first);
        rng.put_back(simd, part + 1, second);
        part += 2;
    }
    if part < S::PARTS {
        let mut words = rng.part(simd, part);
        for out in &mut *out {
            words.open_uniform().store(&mut out.0[part * S::WIDTH..]);
        }
        rng.put_back(simd, part, words);
    }
}

/// What a choice adds to a sum, for each set of the limits that are reached: one to the byte of
/// their number.
const COUNTED: [u64; 1 << TOTAL] = {
    let mut counted = [0; 1 << TOTAL];
    let mut reached = 0;
    while reached < counted.len() {
        counted[reached] = 1 << (8 * reached.count_ones());
        reached += 1;
    }
    counted
};

/// Draws the action of each agent from the first law of its team, and its next state from the law
/// that belongs to the action.
#[inline(always)]
fn choose<S: Simd, const LIMITS: usize>(
    simd: S,
    laws: &[Eight<f64>; LAWS_AND_ROOM],
    agents: &[[u32; LANES]],
    uniforms: &[[Eight<f64>; 2]],
    sums: &mut [[[u64; 2]; LANES]],
) {
    let [mut actions, mut next_states] = [0u64; 2];
    for ((agents, [u, v]), sums) in agents.iter().zip(uniforms).zip(sums) {
        for (((&first, &u), &v), sums) in agents.iter().zip(&u.0).zip(&v.0).zip(sums) {
            let first = first as usize % LAWS;
            let limits = reached::<S, LIMITS>(simd, &laws[first], u);
            actions = actions.wrapping_add(COUNTED[limits]);
            let law = first + 1 + limits.count_ones() as usize;
            let limits = reached::<S, LIMITS>(simd, &laws[law], v);
            next_states = next_states.wrapping_add(COUNTED[limits]);
            *sums = [actions, next_states];
        }
    }
}

/// The draw that a uniform number u makes from a law: the limits that u times the total reaches, a
/// bit for each. A weight of zero is never hit: the product stays below the total, since u is at
/// most 1 - 2^-53.
#[inline(always)]
fn reached<S: Simd, const LIMITS: usize>(simd: S, law: &Eight<f64>, u: f64) -> usize {
    let x = simd.real(u) * simd.real(law.0[TOTAL]);
    let mut reached = 0;
    for part in 0..LIMITS.div_ceil(S::WIDTH) {
        let at = part * S::WIDTH;
        reached |= simd.load(&law.0[at..]).le(x).bits() << at;
    }
    // the total is never reached
    reached as usize % (1 << LIMITS)
}

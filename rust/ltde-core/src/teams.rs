//! The teams of one block of states: their actions, and where their agents go next.

use crate::multinomial::{Row, draw_rows};
use crate::policy::{Cell, TeamPolicy, Work};
use crate::population::Mass;
use crate::rng::BlockRng;
use crate::simd::{Eight, dispatch};
use crate::tiny::{self, PlayTiny, Team};

/// Room behind the results, which is written to.
pub const ROOM: usize = tiny::WIDEST;

/// The teams of the occupied states of one block, one at least.
#[derive(Debug)]
pub struct Teams<'a, T> {
    /// Where each team is, and how many they are.
    pub cells: &'a [(Cell, T)],
    /// |N_s| of each.
    pub degrees: &'a [u32],
    /// P (A, |N_s|) of each, one after the other.
    pub prob: &'a [f64],
    /// For the team actions c(s, .) (cells, A), and [`ROOM`] more; whatever it holds is overwritten.
    pub actions: &'a mut [T],
    /// For how many go to each neighbour (|N_s|,) of each, and [`ROOM`] more; as `actions`.
    pub landed: &'a mut [T],
}

/// Makes everything zero.
#[inline(always)]
pub(crate) fn clear<T: Mass>(out: &mut [T]) {
    /// Zeros that are written at once: more would start slowly (`rep stos` in the C library).
    const ZEROS: usize = 128;
    for piece in out.chunks_mut(ZEROS) {
        piece.fill(T::default());
    }
}

/// Sums of the rows of P of the occupied states of one block.
#[derive(Debug, Default, Clone)]
pub struct Sums {
    /// The sum of each row (cells, A).
    totals: Vec<f64>,
    /// Room for the law of the policy, then the laws of the rows, (cells, 1 + A), of teams that are
    /// drawn agent by agent.
    laws: Vec<Eight<f64>>,
    /// Whether no law has more than [`tiny::HALF`] limits.
    half: bool,
    /// Most agents of a team that is drawn agent by agent, see [`tiny::most`].
    most: i64,
    /// Whether all teams are.
    all_tiny: bool,
}

impl Sums {
    /// Adds up P (A, |N_s|) of each cell, one after the other, for A = `width` actions and the
    /// |N_s| of `degrees`; returns the sums (cells, A). What the draws of `policy` use of them is
    /// kept for [`draw`]. Weights may be anything: they are checked by their sums. To be called from
    /// ordinary code, see [`crate::simd::dispatch_ordinary`].
    #[inline(always)]
    pub fn add_up<T: Mass, P: TeamPolicy>(
        &mut self,
        policy: &P,
        cells: &[(Cell, T)],
        degrees: &[u32],
        mut prob: &[f64],
        width: usize,
    ) -> &mut [f64] {
        let widest = degrees.iter().fold(0, |widest, &degree| widest.max(degree));
        self.half = width.max(widest as usize) <= tiny::HALF + 1;
        self.totals.resize(cells.len() * width, 0.0);
        self.most = if policy.is_multinomial() && !T::MEAN_FIELD {
            let agents = cells.iter().map(|(_, n)| n.count()).sum();
            tiny::most(width, cells.len(), agents)
        } else {
            0
        };
        if self.most > 0 {
            self.laws.resize(tiny::LAWS_AND_ROOM, Eight::default());
        }
        let most = self.most;
        let kind = |i: usize| {
            let degree: u32 = degrees[i];
            (degree, tiny::is_tiny(cells[i].1.count(), degree, most))
        };
        self.all_tiny = true;
        let mut first = 0;
        while first < cells.len() {
            // rows of one kind side by side
            let (degree, is_tiny) = kind(first);
            let mut end = first + 1;
            while end < cells.len() && kind(end) == (degree, is_tiny) {
                end += 1;
            }
            self.all_tiny &= is_tiny;
            let degree = degree as usize;
            let own;
            (own, prob) = prob.split_at((end - first) * width * degree);
            let totals = &mut self.totals[first * width..end * width];
            if is_tiny {
                let laws = &mut self.laws[first * (1 + width)..end * (1 + width)];
                if self.half {
                    tiny::add_up::<{ tiny::HALF }>(own, width, degree, laws, totals);
                } else {
                    tiny::add_up::<{ tiny::TOTAL }>(own, width, degree, laws, totals);
                }
            } else {
                // one copy of the code for each small |N_s|: its loops are unrolled
                match degree {
                    2 => add_up(own, 2, totals),
                    3 => add_up(own, 3, totals),
                    4 => add_up(own, 4, totals),
                    5 => add_up(own, 5, totals),
                    _ => add_up(own, degree, totals),
                }
            }
            first = end;
        }
        &mut self.totals
    }
}

/// The sum of each row of so many numbers.
#[inline(always)]
fn add_up(prob: &[f64], degree: usize, sums: &mut [f64]) {
    for (row, out) in prob.chunks_exact(degree).zip(sums) {
        let mut sum = 0.0;
        for &p in row {
            sum += p;
        }
        *out = sum;
    }
}

/// Draws the team actions, Eq. (3.2) or those of `policy`, and the next states, Eq. (2.7). The
/// sums of `work` must be those of these rows.
#[inline(always)]
pub fn draw<P: TeamPolicy>(policy: &P, teams: Teams<'_, i64>, rng: &mut BlockRng, work: &mut Work) {
    let Teams {
        cells,
        degrees,
        prob,
        actions,
        landed,
    } = teams;
    let width = (actions.len() - ROOM) / cells.len();
    if !work.sums.all_tiny {
        clear(actions);
        clear(landed);
    }
    let multinomial = policy.is_multinomial();
    if multinomial {
        work.mean_actions(policy, cells, width);
    } else {
        policy.sample(cells, rng, work, &mut actions[..cells.len() * width]);
    }
    let Work {
        pi,
        rows,
        sums,
        scratch,
        tiny,
    } = work;
    tiny.teams.clear();
    rows.clear();
    let mut first = 0;
    for (i, (&(_, n), &degree)) in cells.iter().zip(degrees).enumerate() {
        if tiny::is_tiny(n, degree, sums.most) {
            tiny.teams.push(Team {
                n: n as u32,
                index: i as u32,
                landed: first as u32,
            });
        } else if multinomial {
            rows.push(Row {
                n,
                weights: i * width,
                out: i * width,
                width: width as u32,
            });
        }
        first += degree as usize;
    }
    if !tiny.teams.is_empty() {
        dispatch(PlayTiny {
            rng,
            width,
            half: sums.half,
            pi,
            laws: sums.laws.first_chunk_mut().expect("sized with the sums"),
            actions,
            landed,
            scratch: tiny,
        });
    }
    if sums.all_tiny {
        return;
    }
    draw_rows(rng, rows, pi, scratch, actions);
    // no branch on who took which action: it is hard to predict
    rows.resize(cells.len() * width, Row::default());
    let (mut len, mut weights, mut out) = (0, 0, 0);
    for ((team, &(_, n)), &degree) in actions.chunks_exact(width).zip(cells).zip(degrees) {
        let step = degree as usize;
        if tiny::is_tiny(n, degree, sums.most) {
            weights += width * step;
        } else {
            for &n in team {
                rows[len] = Row {
                    n,
                    weights,
                    out,
                    width: degree,
                };
                len += usize::from(n > 0);
                weights += step;
            }
        }
        out += step;
    }
    draw_rows(rng, &rows[..len], prob, scratch, landed);
}

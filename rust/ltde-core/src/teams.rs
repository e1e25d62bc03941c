//! The teams of one block of states: their actions, and where their agents go next.

use crate::multinomial::{Row, draw_rows};
use crate::policy::{Cell, TeamPolicy, Work};
use crate::rng::BlockRng;
use crate::simd::dispatch;
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
    /// The team actions c(s, .) (cells, A), zero on arrival, and [`ROOM`] more.
    pub actions: &'a mut [T],
    /// How many go to each neighbour (|N_s|,) of each, zero on arrival, and [`ROOM`] more.
    pub landed: &'a mut [T],
}

/// Draws the team actions, Eq. (3.2) or those of `policy`, and the next states, Eq. (2.7).
pub fn draw<P: TeamPolicy>(policy: &P, teams: Teams<'_, i64>, rng: &mut BlockRng, work: &mut Work) {
    let Teams {
        cells,
        degrees,
        prob,
        actions,
        landed,
    } = teams;
    let width = (actions.len() - ROOM) / cells.len();
    let multinomial = policy.is_multinomial();
    if multinomial {
        work.mean_actions(policy, cells, width);
    } else {
        policy.sample(cells, rng, work, &mut actions[..cells.len() * width]);
    }
    let Work {
        pi,
        rows,
        tiny,
        scratch,
    } = work;
    tiny.clear();
    rows.clear();
    let (mut first, mut first_row) = (0, 0);
    for (i, (&(_, n), &degree)) in cells.iter().zip(degrees).enumerate() {
        if multinomial && tiny::is_tiny(n, width, degree) {
            tiny.push(Team {
                n: n as u32,
                degree,
                actions: (i * width) as u32,
                prob: first_row,
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
        first_row += width * degree as usize;
    }
    if !tiny.is_empty() {
        dispatch(PlayTiny {
            rng,
            teams: tiny,
            width,
            pi,
            prob,
            actions,
            landed,
            scratch: scratch.tiny(),
        });
    }
    if tiny.len() == cells.len() {
        return;
    }
    draw_rows(rng, rows, pi, scratch, actions);
    // no branch on who took which action: it is hard to predict
    rows.resize(cells.len() * width, Row::default());
    let (mut len, mut weights, mut out) = (0, 0, 0);
    for ((team, &(_, n)), &degree) in actions.chunks_exact(width).zip(cells).zip(degrees) {
        let step = degree as usize;
        if multinomial && tiny::is_tiny(n, width, degree) {
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

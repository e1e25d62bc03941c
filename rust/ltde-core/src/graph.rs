//! The undirected graph (S, E) of states: neighbourhoods N_s, balls N_s^k and distances.
//!
//! N_s holds s itself. The rows are stored one after the other (CSR): N_s is
//! `indices[indptr[s]..indptr[s + 1]]`, sorted ascending. Everything else that is stored per edge
//! (probabilities, flows, edge data) follows the order of `indices`.

use std::fmt::Display;
use std::ops::Range;
use std::thread;

use crate::error::{Error, Result, value_error};

/// Distance to a state that cannot be reached.
pub const UNREACHABLE: u32 = u32::MAX;

/// A thread with fewer states than this costs more to start than it saves.
const MIN_STATES_PER_THREAD: usize = 64;

/// An undirected graph of states; immutable, rows sorted, every state in its own row.
///
/// # Examples
///
/// ```
/// use ltde_core::graph::Graph;
///
/// let path = Graph::from_edges(4, &[[0, 1], [1, 2], [2, 3]])?;
/// assert_eq!(path.row(1), [0, 1, 2]);
/// assert_eq!(path.ball(0, 2), [0, 1, 2]);
/// assert_eq!(path.distance(0, 3), Some(3));
/// # Ok::<(), ltde_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Graph {
    indptr: Vec<usize>,
    indices: Vec<u32>,
}

impl Graph {
    /// Builds the graph from its edges; duplicates, reversed duplicates and self-loops are merged.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if `n_states` is 0 or above 2^32 - 1; [`Error::Index`] if an edge names a
    /// state outside `0..n_states`.
    pub fn from_edges(n_states: usize, edges: &[[i64; 2]]) -> Result<Self> {
        if n_states == 0 || n_states > u32::MAX as usize {
            return value_error!(
                "n_states: expected 1 to {} states, got {n_states}",
                u32::MAX
            );
        }

        // Counting sort by row. Each row starts with room for s itself.
        let mut indptr = vec![1_usize; n_states + 1];
        indptr[0] = 0;
        for (i, &[u, v]) in edges.iter().enumerate() {
            let u = check_state(format_args!("edges[{i}, 0]"), u, n_states)?;
            let v = check_state(format_args!("edges[{i}, 1]"), v, n_states)?;
            if u != v {
                indptr[u + 1] += 1;
                indptr[v + 1] += 1;
            }
        }
        for s in 0..n_states {
            indptr[s + 1] += indptr[s];
        }

        let mut indices = vec![0_u32; indptr[n_states]];
        let mut next = indptr[..n_states].to_vec();
        let mut push = |s: usize, t: usize| {
            indices[next[s]] = t as u32;
            next[s] += 1;
        };
        for s in 0..n_states {
            push(s, s);
        }
        for &[u, v] in edges {
            if u != v {
                push(u as usize, v as usize);
                push(v as usize, u as usize);
            }
        }

        sort_and_merge_rows(&mut indptr, &mut indices);
        Ok(Self { indptr, indices })
    }

    /// Number of states S.
    pub fn n_states(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Number of stored entries: the sum of |N_s| over all states.
    pub fn nnz(&self) -> usize {
        self.indices.len()
    }

    /// Where each row begins, and the end of the last: (S + 1,).
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// The rows N_0, N_1, ... one after the other: (nnz,).
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The neighbourhood N_s: sorted, s included.
    ///
    /// # Panics
    ///
    /// If `s` is not a state; the same holds for every method below that takes a state.
    pub fn row(&self, s: usize) -> &[u32] {
        &self.indices[self.range(s)]
    }

    /// Where N_s lies in [`indices`](Self::indices) and in every array of that order.
    pub fn range(&self, s: usize) -> Range<usize> {
        self.indptr[s]..self.indptr[s + 1]
    }

    /// For each entry (s, y), the place of s in the row of y: (nnz,).
    pub fn places(&self) -> Vec<u32> {
        // rows are sorted, so the states that have y in theirs come in the order of its row
        let mut next = vec![0; self.n_states()];
        let place = |&y: &u32| {
            let next = &mut next[y as usize];
            *next += 1;
            *next - 1
        };
        self.indices.iter().map(place).collect()
    }

    /// The value as a state, or an error that calls it `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] if it is outside `0..n_states`.
    pub fn check_state(&self, name: &str, value: i64) -> Result<usize> {
        check_state(name, value, self.n_states())
    }

    /// The ball N_s^k: the states at distance at most k from s, sorted.
    pub fn ball(&self, s: usize, k: usize) -> Vec<u32> {
        let mut ball = Vec::new();
        self.push_ball(s, k, &mut vec![0; self.n_states()], &mut ball);
        ball
    }

    /// All balls of radius k as CSR: where each begins (S + 1,), and the balls one after the other.
    ///
    /// Works in threads of its own, so that a forked process can call it too. The result does not
    /// depend on their number.
    pub fn balls(&self, k: usize) -> (Vec<usize>, Vec<u32>) {
        let n_states = self.n_states();
        let n_threads = thread::available_parallelism().map_or(1, usize::from);
        let chunk = n_states.div_ceil(n_threads).max(MIN_STATES_PER_THREAD);
        let mut parts = vec![(Vec::new(), Vec::new()); n_states.div_ceil(chunk)];
        thread::scope(|scope| {
            for (i, part) in parts.iter_mut().enumerate() {
                let states = i * chunk..n_states.min((i + 1) * chunk);
                scope.spawn(move || *part = self.balls_of(states, k));
            }
        });

        let mut indptr = Vec::with_capacity(n_states + 1);
        let mut indices = Vec::with_capacity(parts.iter().map(|(_, part)| part.len()).sum());
        indptr.push(0);
        for (ends, part) in parts {
            let offset = indices.len();
            indptr.extend(ends.iter().map(|end| offset + end));
            indices.extend_from_slice(&part);
        }
        (indptr, indices)
    }

    /// Number of edges on a shortest path from s to t; `None` if there is no path.
    pub fn distance(&self, s: usize, t: usize) -> Option<u32> {
        let distance = self.search(s, Some(t))[t];
        (distance != UNREACHABLE).then_some(distance)
    }

    /// The distance from s to every state: (S,), [`UNREACHABLE`] where there is no path.
    pub fn distances(&self, s: usize) -> Vec<u32> {
        self.search(s, None)
    }

    /// The balls of some states: where each ends, and the balls one after the other.
    fn balls_of(&self, states: Range<usize>, k: usize) -> (Vec<usize>, Vec<u32>) {
        let mut seen = vec![0; self.n_states()];
        let mut balls = Vec::new();
        let ends = states
            .map(|s| {
                self.push_ball(s, k, &mut seen, &mut balls);
                balls.len()
            })
            .collect();
        (ends, balls)
    }

    /// Appends the ball of s. `seen[t] == s + 1` marks t as found, so that `seen` (zeros at first)
    /// serves all states without being cleared.
    fn push_ball(&self, s: usize, k: usize, seen: &mut [u32], balls: &mut Vec<u32>) {
        let mark = s as u32 + 1;
        let start = balls.len();
        seen[s] = mark;
        balls.push(s as u32);
        let mut frontier = start..balls.len();
        for _ in 0..k {
            for i in frontier.clone() {
                for &t in self.row(balls[i] as usize) {
                    if seen[t as usize] != mark {
                        seen[t as usize] = mark;
                        balls.push(t);
                    }
                }
            }
            frontier = frontier.end..balls.len();
            if frontier.is_empty() {
                break;
            }
        }
        balls[start..].sort_unstable();
    }

    /// Breadth-first search from s, of the whole component or until `target` is found.
    fn search(&self, s: usize, target: Option<usize>) -> Vec<u32> {
        let mut distances = vec![UNREACHABLE; self.n_states()];
        let mut queue = vec![s];
        distances[s] = 0;
        let mut head = 0;
        while head < queue.len() && target.is_none_or(|t| distances[t] == UNREACHABLE) {
            let u = queue[head];
            head += 1;
            for &v in self.row(u) {
                let v = v as usize;
                if distances[v] == UNREACHABLE {
                    distances[v] = distances[u] + 1;
                    queue.push(v);
                }
            }
        }
        distances
    }
}

fn check_state(name: impl Display, value: i64, n_states: usize) -> Result<usize> {
    match usize::try_from(value) {
        Ok(s) if s < n_states => Ok(s),
        _ => Err(Error::Index(format!(
            "{name}: expected a state in 0..{n_states}, got {value}"
        ))),
    }
}

/// Sorts each row and drops its duplicates, closing the gaps.
fn sort_and_merge_rows(indptr: &mut [usize], indices: &mut Vec<u32>) {
    let mut begin = 0;
    let mut kept = 0;
    for end in &mut indptr[1..] {
        indices[begin..*end].sort_unstable();
        let row = kept;
        for i in begin..*end {
            if kept == row || indices[kept - 1] != indices[i] {
                indices[kept] = indices[i];
                kept += 1;
            }
        }
        begin = *end;
        *end = kept;
    }
    indices.truncate(kept);
    indices.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 - 1 - 2 and 3 - 4, given with every kind of repetition.
    fn two_paths() -> Graph {
        Graph::from_edges(5, &[[4, 3], [1, 0], [0, 1], [1, 2], [1, 2], [2, 2], [3, 4]]).unwrap()
    }

    #[test]
    fn rows_are_sorted_merged_and_hold_the_state() {
        let g = two_paths();
        assert_eq!(g.n_states(), 5);
        assert_eq!(g.nnz(), 11);
        assert_eq!(g.indptr(), [0, 2, 5, 7, 9, 11]);
        assert_eq!(g.indices(), [0, 1, 0, 1, 2, 1, 2, 3, 4, 3, 4]);
        assert_eq!(g.row(1), [0, 1, 2]);
        assert_eq!(g.range(1), 2..5);
    }

    #[test]
    fn places_lead_back() {
        let g = two_paths();
        assert_eq!(g.places(), [0, 0, 1, 1, 0, 2, 1, 0, 0, 1, 1]);
        let back = (0..5).flat_map(|s| g.row(s).iter().map(move |&y| (s, y as usize)));
        for ((s, y), place) in back.zip(g.places()) {
            assert_eq!(g.row(y)[place as usize] as usize, s);
        }
    }

    #[test]
    fn no_edges_gives_isolated_states() {
        let g = Graph::from_edges(3, &[]).unwrap();
        assert_eq!(g.indptr(), [0, 1, 2, 3]);
        assert_eq!(g.indices(), [0, 1, 2]);
        assert_eq!(g.balls(7), (vec![0, 1, 2, 3], vec![0, 1, 2]));
    }

    #[test]
    fn balls_of_two_paths() {
        let g = two_paths();
        assert_eq!(g.ball(0, 0), [0]);
        assert_eq!(g.ball(0, 1), [0, 1]);
        assert_eq!(g.ball(0, 2), [0, 1, 2]);
        assert_eq!(g.ball(4, usize::MAX), [3, 4]);
        let balls = vec![0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 3, 4];
        assert_eq!(g.balls(2), (vec![0, 3, 6, 9, 11, 13], balls));
    }

    #[test]
    fn balls_over_several_threads_keep_their_order() {
        let n = 5 * MIN_STATES_PER_THREAD as i64 + 1;
        let edges: Vec<_> = (0..n).map(|s| [s, (s + 1) % n]).collect();
        let g = Graph::from_edges(n as usize, &edges).unwrap();
        let (indptr, indices) = g.balls(3);
        for s in 0..n as usize {
            assert_eq!(indices[indptr[s]..indptr[s + 1]], g.ball(s, 3));
            assert_eq!(indptr[s], 7 * s);
        }
    }

    #[test]
    fn distances_of_two_paths() {
        let g = two_paths();
        assert_eq!(g.distance(0, 0), Some(0));
        assert_eq!(g.distance(0, 2), Some(2));
        assert_eq!(g.distance(2, 3), None);
        assert_eq!(g.distances(0), [0, 1, 2, UNREACHABLE, UNREACHABLE]);
    }

    #[test]
    fn errors_name_argument_index_and_value() {
        let edges = [[0, 1], [1, 2], [2, 3], [4, 7]];
        let message = "edges[3, 1]: expected a state in 0..5, got 7";
        assert_eq!(
            Graph::from_edges(5, &edges),
            Err(Error::Index(message.into()))
        );
        let message = "edges[0, 0]: expected a state in 0..5, got -1";
        assert_eq!(
            Graph::from_edges(5, &[[-1, 1]]),
            Err(Error::Index(message.into()))
        );
        let message = "n_states: expected 1 to 4294967295 states, got 0";
        assert_eq!(Graph::from_edges(0, &[]), Err(Error::Value(message.into())));
        let message = "n_states: expected 1 to 4294967295 states, got 4294967296";
        assert_eq!(
            Graph::from_edges(1 << 32, &[]),
            Err(Error::Value(message.into()))
        );
        let message = "t: expected a state in 0..5, got 5";
        assert_eq!(
            two_paths().check_state("t", 5),
            Err(Error::Index(message.into()))
        );
        assert_eq!(two_paths().check_state("t", 4), Ok(4));
    }
}

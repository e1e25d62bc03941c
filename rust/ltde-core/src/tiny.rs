//! Tiny teams: the action and the next state of each agent are drawn together.
//!
//! The law is that of a multinomial team action, Eq. (3.2), followed by the multinomials of its
//! rows, Eq. (2.7): agents of a team are independent given the densities. Only the rows that are
//! used are added up, and nothing branches on where the agents go.

use crate::multinomial::Uniform;
use crate::rng::Words;

/// Whether a team is drawn agent by agent; the bounds were measured on the whole step.
#[inline]
pub(crate) fn is_tiny(n: u64, actions: usize, degree: usize) -> bool {
    n <= 16 && (2..=8).contains(&actions) && degree <= 8
}

/// Draws actions by `pi` (A,) and next states by `prob` (A, K) for `n` agents; adds them to
/// `actions` (A,) and `landed` (K,). Only where [`is_tiny`] says so.
#[inline(always)]
pub(crate) fn play_tiny<R: Words>(
    rng: &mut R,
    n: u64,
    pi: &[f64],
    prob: &[f64],
    actions: &mut [i64],
    landed: &mut [i64],
) {
    // one copy of the code for each small A: its loops are unrolled
    match pi.len() {
        2 => play::<R, 2>(rng, n, pi, prob, actions, landed),
        3 => play::<R, 3>(rng, n, pi, prob, actions, landed),
        4 => play::<R, 4>(rng, n, pi, prob, actions, landed),
        5 => play::<R, 5>(rng, n, pi, prob, actions, landed),
        6 => play::<R, 6>(rng, n, pi, prob, actions, landed),
        7 => play::<R, 7>(rng, n, pi, prob, actions, landed),
        _ => play::<R, 8>(rng, n, pi, prob, actions, landed),
    }
}

#[inline(always)]
fn play<R: Words, const A: usize>(
    rng: &mut R,
    n: u64,
    pi: &[f64],
    prob: &[f64],
    actions: &mut [i64],
    landed: &mut [i64],
) {
    let (pi, actions, degree) = (&pi[..A], &mut actions[..A], landed.len());
    for _ in 0..n {
        let a = choose(rng, pi);
        actions[a] += 1;
        landed[choose(rng, &prob[a * degree..][..degree])] += 1;
    }
}

/// One draw from the distribution proportional to `weights`: the number of cumulative weights,
/// but the last, that one uniform below the total reaches. A weight of zero is never hit.
#[inline(always)]
fn choose<R: Words>(rng: &mut R, weights: &[f64]) -> usize {
    let mut total = 0.0;
    for &w in weights {
        total += w;
    }
    let x = Uniform::new(total).draw(rng);
    let mut limit = 0.0;
    let mut above = 0;
    for &w in &weights[..weights.len() - 1] {
        limit += w;
        above += usize::from(x >= limit);
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Words that reach both ends of the unit interval, over and over.
    struct Ends<'a>(std::iter::Cycle<std::slice::Iter<'a, u64>>);

    impl Words for Ends<'_> {
        fn next_word(&mut self) -> u64 {
            *self.0.next().unwrap_or(&0)
        }
    }

    fn row(width: usize) -> impl Strategy<Value = Vec<f64>> {
        let weight = prop_oneof![Just(0.0), Just(1e-310), 0.0..1.0];
        prop::collection::vec(weight, width).prop_map(|mut row| {
            let last = row.len() - 1;
            if row.iter().sum::<f64>() < 1e-3 {
                row[last / 2] = 1.0;
            }
            let total: f64 = row.iter().sum();
            row.iter_mut().for_each(|w| *w /= total);
            row
        })
    }

    proptest! {
        #[test]
        fn agents_are_conserved_and_never_go_where_the_probability_is_zero(
            (n, pi, prob) in (1u64..=16, 2usize..=8, 1usize..=8).prop_flat_map(|(n, a, k)| {
                (Just(n), row(a), prop::collection::vec(row(k), a))
            }),
            words in prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..40),
        ) {
            prop_assert!(is_tiny(n, pi.len(), prob[0].len()));
            let (mut actions, mut landed) = (vec![0; pi.len()], vec![0; prob[0].len()]);
            let mut rng = Ends(words.iter().cycle());
            play_tiny(&mut rng, n, &pi, &prob.concat(), &mut actions, &mut landed);
            prop_assert_eq!(actions.iter().sum::<i64>(), n as i64);
            prop_assert_eq!(landed.iter().sum::<i64>(), n as i64);
            for (a, &c) in actions.iter().enumerate() {
                prop_assert!(c == 0 || pi[a] > 0.0);
            }
            for (j, &m) in landed.iter().enumerate() {
                let reached = (0..pi.len()).any(|a| actions[a] > 0 && prob[a][j] > 0.0);
                prop_assert!(m == 0 || reached);
            }
        }
    }
}

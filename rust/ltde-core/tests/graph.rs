//! What holds for every graph: rows, balls and distances against powers of the adjacency matrix.

use ltde_core::graph::Graph;
use proptest::prelude::*;

type Edges = Vec<[i64; 2]>;

/// Up to 12 states and any edges among them, repeated or not; and the same edges shuffled.
fn graphs() -> impl Strategy<Value = (usize, Edges, Edges)> {
    (1_usize..=12).prop_flat_map(|n| {
        let state = 0..n as i64;
        let edges = prop::collection::vec([state.clone(), state], 0..20);
        edges.prop_flat_map(move |edges| (Just(n), Just(edges.clone()), Just(edges).prop_shuffle()))
    })
}

/// `reach[s][t]`: is there a walk of k steps from s to t, where staying is a step?
fn matrix_power(n: usize, edges: &[[i64; 2]], k: usize) -> Vec<Vec<bool>> {
    let mut adjacency = vec![vec![false; n]; n];
    let identity: Vec<Vec<bool>> = (0..n).map(|s| (0..n).map(|t| s == t).collect()).collect();
    for &[u, v] in edges {
        adjacency[u as usize][v as usize] = true;
        adjacency[v as usize][u as usize] = true;
    }
    for (s, row) in adjacency.iter_mut().enumerate() {
        row[s] = true;
    }
    (0..k).fold(identity, |power, _| {
        let entry = |s: usize, t: usize| (0..n).any(|u| power[s][u] && adjacency[u][t]);
        (0..n)
            .map(|s| (0..n).map(|t| entry(s, t)).collect())
            .collect()
    })
}

proptest! {
    #[test]
    fn rows_are_strictly_ascending_symmetric_and_hold_the_state((n, edges, _) in graphs()) {
        let g = Graph::from_edges(n, &edges).unwrap();
        prop_assert_eq!(g.n_states(), n);
        prop_assert_eq!(g.indptr()[n], g.nnz());
        for s in 0..n {
            prop_assert!(g.row(s).is_sorted_by(|a, b| a < b));
            prop_assert!(g.row(s).contains(&(s as u32)));
            for &t in g.row(s) {
                prop_assert!(g.row(t as usize).contains(&(s as u32)));
            }
        }
    }

    #[test]
    fn balls_are_the_powers_of_the_adjacency_matrix((n, edges, _) in graphs(), k in 0_usize..6) {
        let g = Graph::from_edges(n, &edges).unwrap();
        let reach = matrix_power(n, &edges, k);
        let (indptr, indices) = g.balls(k);
        prop_assert_eq!(indptr.len(), n + 1);
        prop_assert_eq!(indptr[n], indices.len());
        for s in 0..n {
            let expected: Vec<u32> = (0..n as u32).filter(|&t| reach[s][t as usize]).collect();
            prop_assert_eq!(g.ball(s, k), &expected[..]);
            prop_assert_eq!(&indices[indptr[s]..indptr[s + 1]], &expected[..]);
        }
    }

    #[test]
    fn balls_are_nested_from_the_state_to_its_row_on((n, edges, _) in graphs(), k in 0_usize..6) {
        let g = Graph::from_edges(n, &edges).unwrap();
        for s in 0..n {
            prop_assert_eq!(g.ball(s, 0), [s as u32]);
            prop_assert_eq!(g.ball(s, 1), g.row(s));
            let larger = g.ball(s, k + 1);
            prop_assert!(g.ball(s, k).iter().all(|t| larger.contains(t)));
        }
    }

    #[test]
    fn distance_is_the_radius_of_the_first_ball_that_holds_the_state((n, edges, _) in graphs()) {
        let g = Graph::from_edges(n, &edges).unwrap();
        for s in 0..n {
            let distances = g.distances(s);
            for (t, &distance) in distances.iter().enumerate() {
                let first = (0..n).find(|&k| g.ball(s, k).contains(&(t as u32)));
                let first = first.map(|k| k as u32);
                prop_assert_eq!(g.distance(s, t), first);
                prop_assert_eq!(g.distance(t, s), first);
                prop_assert_eq!(distance, first.unwrap_or(u32::MAX));
            }
        }
    }

    #[test]
    fn order_direction_and_repetition_of_edges_do_not_matter((n, edges, shuffled) in graphs()) {
        let reversed = shuffled.iter().map(|&[u, v]| [v, u]);
        let loops = (0..n as i64).map(|s| [s, s]);
        let again: Edges = reversed.chain(loops).chain(edges.iter().copied()).collect();
        let g = Graph::from_edges(n, &edges).unwrap();
        prop_assert_eq!(&g, &Graph::from_edges(n, &shuffled).unwrap());
        prop_assert_eq!(&g, &Graph::from_edges(n, &again).unwrap());
    }

    #[test]
    fn a_state_out_of_range_is_named((n, mut edges, _) in graphs(), at in any::<prop::sample::Index>(),
                                     side in 0_usize..2, above in any::<bool>()) {
        edges.push([0, 0]);
        let i = at.index(edges.len());
        let value = if above { n as i64 } else { -1 };
        edges[i][side] = value;
        let error = Graph::from_edges(n, &edges).unwrap_err();
        let message = format!("edges[{i}, {side}]: expected a state in 0..{n}, got {value}");
        prop_assert_eq!(error, ltde_core::Error::Index(message));
    }
}

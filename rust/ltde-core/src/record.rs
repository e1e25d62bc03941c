//! Where a rollout writes what it records, and how that is dealt out to the replicas.

use crate::error::{Result, value_error};
use crate::model::Model;
use crate::population::Mass;

/// Where the recorded arrays of a rollout go, each C-contiguous; `None` is not recorded.
#[derive(Debug)]
pub struct Record<'a, T> {
    /// (T + 1, B, S)
    pub counts: Option<&'a mut [T]>,
    /// (T, B, S, A), zero on arrival
    pub actions: Option<&'a mut [T]>,
    /// (T, B, S), zero on arrival
    pub rewards: Option<&'a mut [f64]>,
    /// (T, B), false on arrival
    pub restarted: Option<&'a mut [bool]>,
    /// (T, B, nnz), zero on arrival
    pub flows: Option<&'a mut [T]>,
    /// Whether the arrays were used before and are to be zeroed first.
    pub used: bool,
}

/// The part of a [`Record`] that belongs to one replica: a slice for each time.
pub(crate) struct ReplicaRecord<'a, T> {
    pub counts: Vec<&'a mut [T]>,
    pub actions: Vec<&'a mut [T]>,
    pub rewards: Vec<&'a mut [f64]>,
    pub flows: Vec<&'a mut [T]>,
    /// Steps after which the chain restarted.
    pub restarts: &'a mut Vec<usize>,
}

impl<'a, T: Mass> Record<'a, T> {
    /// Zeroes what will not be overwritten.
    pub(crate) fn clear(&mut self) {
        let masses = [self.actions.as_deref_mut(), self.flows.as_deref_mut()];
        masses
            .into_iter()
            .flatten()
            .for_each(|array| array.fill(T::default()));
        if let Some(array) = self.rewards.as_deref_mut() {
            array.fill(0.0);
        }
        if let Some(array) = self.restarted.as_deref_mut() {
            array.fill(false);
        }
    }

    /// Checks the sizes and deals the slices out to the replicas.
    pub(crate) fn split(
        self,
        model: &Model,
        steps: usize,
        restarts: &'a mut [Vec<usize>],
    ) -> Result<Vec<ReplicaRecord<'a, T>>> {
        let replicas = restarts.len();
        fn deal<'a, U>(
            name: &str,
            array: Option<&'a mut [U]>,
            times: usize,
            replicas: usize,
            size: usize,
        ) -> Result<Vec<Vec<&'a mut [U]>>> {
            let mut dealt: Vec<Vec<&mut [U]>> = (0..replicas).map(|_| Vec::new()).collect();
            if let Some(array) = array {
                if array.len() != times * replicas * size {
                    return value_error!(
                        "{name}: expected {} entries, got {}",
                        times * replicas * size,
                        array.len()
                    );
                }
                for (i, slice) in array.chunks_exact_mut(size).enumerate() {
                    dealt[i % replicas].push(slice);
                }
            }
            Ok(dealt)
        }
        let (s, a, nnz) = (model.graph.n_states(), model.n_actions, model.graph.nnz());
        let counts = deal("counts", self.counts, steps + 1, replicas, s)?;
        let actions = deal("actions", self.actions, steps, replicas, s * a)?;
        let rewards = deal("rewards", self.rewards, steps, replicas, s)?;
        let flows = deal("flows", self.flows, steps, replicas, nnz)?;
        Ok(counts
            .into_iter()
            .zip(actions)
            .zip(rewards)
            .zip(flows)
            .zip(restarts)
            .map(
                |((((counts, actions), rewards), flows), restarts)| ReplicaRecord {
                    counts,
                    actions,
                    rewards,
                    flows,
                    restarts,
                },
            )
            .collect())
    }
}

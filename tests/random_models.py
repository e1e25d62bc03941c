"""Random models driven by data alone, so that one compiled function serves every graph.

Chances are proportional to edge data, with a chosen dependence on the densities; chances that are
exactly zero, rows that sum to 1 +- 1e-9, masks, and NaN in masked rows are all data.
"""

import math

import ltde
import numpy as np

N_ACTIONS = 3
# Columns of the node data after the N_ACTIONS flags of allowed actions.
COUPLING, ROW_SUM, N_NODE = N_ACTIONS, N_ACTIONS + 1, N_ACTIONS + 2


def data_local(s, mu, node, edge, prob, reward):
    """Go to N_s[i] with a chance proportional to edge[i, a] (1 + coupling mu_i)."""
    for a in range(3):
        if node[a] == 0.0:
            for i in range(mu.size):
                prob[a, i] = math.nan
            reward[a] = math.nan
            continue
        total = 0.0
        for i in range(mu.size):
            prob[a, i] = edge[i, a] * (1.0 + node[3] * mu[i])
            total += prob[a, i]
        for i in range(mu.size):
            prob[a, i] *= node[4] / total
            reward[a] += edge[i, a] * mu[i]


def data_model(graph, weights, mask=None, coupling=1.0, row_sum=1.0, **options):
    """Model of the edge weights (nnz, A); `coupling` and `row_sum` are numbers or (S,)."""
    states = graph.n_states
    mask = np.ones((states, N_ACTIONS), dtype=bool) if mask is None else mask
    node = np.zeros((states, N_NODE))
    node[:, :N_ACTIONS] = mask
    node[:, COUPLING] = coupling
    node[:, ROW_SUM] = row_sum
    return ltde.NetworkedModel(
        graph, N_ACTIONS, data_local, node=node, edge=weights, action_mask=mask, **options
    )


def random_weights(rng, graph):
    """Edge weights (nnz, A), a third of them zero, at least one positive in every row."""
    weights = rng.uniform(1e-3, 1.0, (graph.indices.size, N_ACTIONS))
    weights[rng.random(weights.shape) < 0.35] = 0.0
    degrees = np.diff(graph.indptr)
    chosen = graph.indptr[:-1, None] + rng.integers(0, degrees[:, None], (len(degrees), N_ACTIONS))
    weights[chosen, np.arange(N_ACTIONS)] = 0.5
    return weights


def random_model(rng, n_states, **options):
    """Random graph, weights, masks, coupling, and row sums of 1 - 9e-10, 1 or 1 + 9e-10."""
    edges = rng.integers(0, n_states, (int(rng.integers(0, 3 * n_states)), 2))
    graph = ltde.Graph(n_states, edges)
    mask = rng.random((n_states, N_ACTIONS)) < 0.6
    mask[np.arange(n_states), rng.integers(0, N_ACTIONS, n_states)] = True
    row_sum = 1.0 + 9e-10 * rng.integers(-1, 2, n_states)
    coupling = rng.uniform(0.0, 3.0, n_states)
    return data_model(graph, random_weights(rng, graph), mask, coupling, row_sum, **options)


def softmax_float32(rng, mask, spread):
    """Softmax rows (S, A) computed in float32; masked actions are exactly zero."""
    logits = rng.normal(0.0, spread, mask.shape).astype(np.float32)
    logits[~mask] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True, dtype=np.float32)

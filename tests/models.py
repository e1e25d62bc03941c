"""Small models whose transition and reward really depend on mu(N_s), shared by the tests.

The local functions are module-level and plain (scalars, loops, `math`), so numba can compile them
and a spawned process can import them.

| model | what it exercises |
|---|---|
| ring | edge data that tell directions apart; congestion; it matters what mu(s) a policy sees |
| path | node and edge data that differ everywhere: a mixed-up row or column shows |
| complete | no data at all; as many actions as states |
| star | action masks; masked rows hold NaN, which nobody may read |
"""

import math

import ltde
import numpy as np


def ring_local(s, mu, node, edge, prob, reward):
    """Move on the ring in congestion; actions: stay, step forward, step back.

    A step succeeds with probability 0.9 / (1 + 2 mu(target)); edge[i, 0] is the direction of
    N_s[i]: 0, 1 or -1.
    """
    here = 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
    crowd = 0.0
    for i in range(mu.size):
        crowd += mu[i]
    for a in range(3):
        direction = 0.0
        if a == 1:
            direction = 1.0
        elif a == 2:
            direction = -1.0
        target = here
        for i in range(mu.size):
            if edge[i, 0] == direction:
                target = i
        success = 0.9 / (1.0 + 2.0 * mu[target])
        prob[a, here] += 1.0 - success
        prob[a, target] += success
        reward[a] = 1.0 - 0.5 * crowd - 0.25 * mu[here]
        if a > 0:
            reward[a] -= 0.25


def path_local(s, mu, node, edge, prob, reward):
    """Drift along the path; actions: calm, eager.

    The chance of N_s[i] is proportional to edge[i, 0] exp(-node[0] (1 + a) mu_i); the reward is
    node[1] less the tolls edge[i, 1] that the agent expects to pay, each scaled by the crowd it
    meets.
    """
    for a in range(2):
        total = 0.0
        for i in range(mu.size):
            prob[a, i] = edge[i, 0] * math.exp(-node[0] * (1.0 + a) * mu[i])
            total += prob[a, i]
        reward[a] = node[1] - 0.1 * a
        for i in range(mu.size):
            prob[a, i] /= total
            reward[a] -= prob[a, i] * edge[i, 1] * (0.5 + 0.5 * mu[i])


def complete_local(s, mu, node, edge, prob, reward):
    """Go to state a with action a, which succeeds with probability 1 - 0.7 mu(a); else stay."""
    for a in range(mu.size):
        success = 1.0 - 0.7 * mu[a]
        prob[a, s] += 1.0 - success
        prob[a, a] += success
        reward[a] = mu[a] * (1.0 - mu[a]) + 0.1 * s


def star_local(s, mu, node, edge, prob, reward):
    """Fleet around the depot 0; actions there: stay, or go to leaf a.

    In a leaf action 1 goes home, and the other actions beyond 0 are masked: their rows are filled
    with NaN, which nobody may read.
    """
    n_actions = reward.size
    if s == 0:
        for a in range(n_actions):
            success = 0.95 - 0.6 * mu[a]
            if a == 0:
                success = 0.8
            prob[a, a] += success
            for i in range(mu.size):
                prob[a, i] += (1.0 - success) / mu.size
            reward[a] = -0.2 * mu[0] * a / n_actions
        return
    for a in range(n_actions):
        if a > 1:
            for i in range(mu.size):
                prob[a, i] = math.nan
            reward[a] = math.nan
            continue
        home = 0.1 + 0.6 * a * (1.0 - mu[0])  # N_s = (0, s)
        prob[a, 0] = home
        prob[a, 1] = 1.0 - home
        reward[a] = 1.0 / (1.0 + 3.0 * mu[1]) - 0.3 * a * mu[0]


def ring_model(n_states=4, initial=None, discount=0.9):
    """Congested ring; 3 actions, edge data (direction), no node data. Needs n_states >= 3."""
    graph = ltde.Graph.ring(n_states)
    direction = [
        0.0 if j == s else 1.0 if j == (s + 1) % n_states else -1.0
        for s in range(n_states)
        for j in graph.neighbors(s)
    ]
    return ltde.NetworkedModel(
        graph,
        3,
        ring_local,
        edge=np.array(direction)[:, None],
        initial=_uniform(n_states) if initial is None else initial,
        discount=discount,
        reward_range=(0.0, 1.0),
    )


def path_model(n_states=3, initial=None, discount=0.9):
    """Path with data that differ at every node and directed edge; 2 actions, P = 2, Q = 2."""
    graph = ltde.Graph.path(n_states)
    place = np.arange(n_states) / n_states
    entry = np.arange(graph.indices.size) / graph.indices.size
    return ltde.NetworkedModel(
        graph,
        2,
        path_local,
        node=np.stack([0.5 + 2.0 * place, 1.0 - 0.5 * place**2], axis=1),
        edge=np.stack([1.0 + 2.0 * entry * (1.0 - entry) + entry, 0.6 - 0.5 * entry], axis=1),
        initial=_uniform(n_states) if initial is None else initial,
        discount=discount,
        reward_range=(-0.5, 1.0),
    )


def complete_model(n_states=3, initial=None, discount=0.9):
    """Complete graph, as many actions as states, no data."""
    return ltde.NetworkedModel(
        ltde.Graph.complete(n_states),
        n_states,
        complete_local,
        initial=_uniform(n_states) if initial is None else initial,
        discount=discount,
        reward_range=(0.0, 0.25 + 0.1 * n_states),
    )


def star_model(n_states=4, initial=None, discount=0.9):
    """Depot 0 and leaves 1, 2, ...; actions beyond 1 are masked in the leaves."""
    mask = np.zeros((n_states, n_states), dtype=bool)
    mask[0] = True
    mask[1:, :2] = True
    return ltde.NetworkedModel(
        ltde.Graph(n_states, np.array([(0, leaf) for leaf in range(1, n_states)])),
        n_states,
        star_local,
        action_mask=mask,
        initial=_uniform(n_states) if initial is None else initial,
        discount=discount,
        reward_range=(-0.3, 1.0),
    )


MODELS = {
    "ring": ring_model,
    "path": path_model,
    "complete": complete_model,
    "star": star_model,
}


def random_policy(model, rng):
    """(S, A) probabilities, every allowed action with positive probability, masked ones with 0."""
    weights = np.where(model.action_mask, rng.uniform(0.2, 1.0, model.action_mask.shape), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _uniform(n_states):
    return np.full(n_states, 1.0 / n_states)

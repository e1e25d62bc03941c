"""Exact laws of small systems by enumeration: the test oracle, no code shared with the library.

A law is a dict from outcomes to positive probabilities. Counts are tuples of length S; team actions
are tuples of length S * A, row-major: `tuple(actions.ravel())`. A policy is an (S, A) array, or a
callable `(state, density) -> (A,)`. Masked actions must have probability 0. Sums are floats, exact
up to rounding; keep N <= 6, S <= 4, A <= 3.
"""

import math
from collections import defaultdict
from functools import lru_cache
from itertools import product

import numpy as np


def compositions(n, k):
    """All tuples of k non-negative integers that sum to n, in lexicographic order."""
    if k == 1:
        return [(n,)]
    return [(first, *rest) for first in range(n + 1) for rest in compositions(n - first, k - 1)]


def multinomial_pmf(counts, probabilities):
    """P(counts) under Multinomial(sum of counts, probabilities)."""
    value = math.factorial(sum(counts))
    for c in counts:
        value //= math.factorial(c)
    return float(value) * math.prod(p**c for c, p in zip(counts, probabilities, strict=True))


def multinomial_law(n, probabilities):
    """Law of Multinomial(n, probabilities): outcomes of probability 0 are left out."""
    return dict(_multinomial_items(int(n), tuple(map(float, probabilities))))


def dirichlet_multinomial_pmf(counts, alpha):
    """P(counts) when p ~ Dirichlet(alpha) and then counts ~ Multinomial(sum of counts, p)."""
    n, total = sum(counts), math.fsum(alpha)
    log = math.lgamma(n + 1) + math.lgamma(total) - math.lgamma(n + total)
    for c, a in zip(counts, alpha, strict=True):
        log += math.lgamma(c + a) - math.lgamma(c + 1) - math.lgamma(a)
    return math.exp(log)


def local_tables(model, counts):
    """Prob (S, A, S) and reward (S, A) at these counts, from the plain local function.

    Masked rows are NaN.
    """
    graph, n = model.graph, sum(counts)
    n_states, n_actions = model.action_mask.shape
    prob = np.zeros((n_states, n_actions, n_states))
    reward = np.zeros((n_states, n_actions))
    for s in range(n_states):
        row = slice(graph.indptr[s], graph.indptr[s + 1])
        around = graph.indices[row]
        mu = np.array([counts[j] / n for j in around])
        local_prob = np.zeros((n_actions, len(around)))
        model.local(s, mu, model.node[s], model.edge[row], local_prob, reward[s])
        prob[s][:, around] = local_prob
    prob[~model.action_mask] = np.nan
    reward[~model.action_mask] = np.nan
    return prob, reward


def policy_table(policy, model, counts):
    """(S, A) action probabilities at these counts; raises if a masked action is played."""
    n_states = model.graph.n_states
    if callable(policy):
        table = np.array([policy(s, counts[s] / sum(counts)) for s in range(n_states)])
    else:
        table = np.asarray(policy, dtype=float)
    if np.any(table[~model.action_mask] != 0.0):
        raise ValueError("the policy plays a masked action")
    return table


def initial_law(model, n_agents):
    """P_0 as a law on counts, for each of the four forms of `model.initial`."""
    initial = model.initial
    n_states = model.graph.n_states
    if not isinstance(initial, np.ndarray):
        return _dirichlet_law(n_agents, initial.alpha)
    if initial.dtype.kind == "f":
        return multinomial_law(n_agents, initial)
    rows = np.atleast_2d(initial)
    law = defaultdict(float)
    for row in rows.tolist():
        assert len(row) == n_states
        assert sum(row) == n_agents
        law[tuple(row)] += 1.0 / len(rows)
    return dict(law)


def team_law(model, n_agents, probs, counts):
    """Law of the team actions given the counts: independent multinomials, one for each state."""
    assert sum(counts) == n_agents
    table = policy_table(probs, model, counts)
    law = {(): 1.0}
    for s, n in enumerate(counts):
        law = {
            (*done, *c): p * q
            for done, p in law.items()
            for c, q in multinomial_law(n, table[s]).items()
        }
    return law


def step_law(model, n_agents, probs, counts):
    """Law of (team actions, next counts) given the counts.

    Given the actions, the next counts are a sum of independent multinomials, one for each (s, a).
    """
    prob, _ = local_tables(model, counts)
    n_states, n_actions = model.action_mask.shape
    law = {}
    for actions, p in team_law(model, n_agents, probs, counts).items():
        moved = {(0,) * n_states: p}
        for index, c in enumerate(actions):
            if c > 0:
                s, a = divmod(index, n_actions)
                moved = _convolve(moved, multinomial_law(c, prob[s, a]))
        for after, q in moved.items():
            law[actions, after] = q
    return law


def next_law(model, n_agents, probs, counts):
    """Law of the next counts given the counts."""
    return marginal(step_law(model, n_agents, probs, counts), 1)


def n_step_law(model, n_agents, probs, start, n_steps):
    """Law of the counts after n_steps steps from `start`, a law on counts or a tuple of counts."""
    law = dict(start) if isinstance(start, dict) else {tuple(start): 1.0}
    for _ in range(n_steps):
        law = _push(law, lambda counts: next_law(model, n_agents, probs, counts))
    return law


def joint_two_step(model, n_agents, probs, start):
    """Law of (counts_1, counts_2), the counts after one and after two steps from `start`."""
    law = {}
    for first, p in n_step_law(model, n_agents, probs, start, 1).items():
        for second, q in next_law(model, n_agents, probs, first).items():
            law[first, second] = p * q
    return law


def restart_chain_law(model, n_agents, probs, t):
    """Law of the counts after t steps of the restart chain that starts from P_0."""
    fresh = initial_law(model, n_agents)
    law = fresh
    for _ in range(t):
        law = _mix(model.discount, n_step_law(model, n_agents, probs, law, 1), fresh)
    return law


def visitation_law(model, n_agents, probs):
    """Discounted visitation law sigma of (4.2): (law of (counts, actions), its marginal on counts).

    The marginal d solves d = (1 - gamma) P_0 + gamma d K, K the kernel on counts; then the actions
    are drawn given them.
    """
    states = compositions(n_agents, model.graph.n_states)
    index = {counts: i for i, counts in enumerate(states)}
    kernel = np.zeros((len(states), len(states)))
    for counts in states:
        for after, p in next_law(model, n_agents, probs, counts).items():
            kernel[index[counts], index[after]] = p
    fresh = np.zeros(len(states))
    for counts, p in initial_law(model, n_agents).items():
        fresh[index[counts]] = p
    gamma = model.discount
    d = np.linalg.solve(np.eye(len(states)) - gamma * kernel.T, (1.0 - gamma) * fresh)
    on_counts = {counts: float(d[i]) for counts, i in index.items() if d[i] > 1e-15}
    on_pairs = {
        (counts, actions): p * q
        for counts, p in on_counts.items()
        for actions, q in team_law(model, n_agents, probs, counts).items()
    }
    return on_pairs, on_counts


def labelled_step_law(model, probs, positions):
    """Law of (actions, next positions) of N labelled agents, by enumeration of all they can do.

    It states the definition of the model, one agent at a time, and is what `step_law` is checked
    against.
    """
    n_states = model.graph.n_states
    counts = tuple(np.bincount(positions, minlength=n_states).tolist())
    prob, _ = local_tables(model, counts)
    table = policy_table(probs, model, counts)
    one_agent = [
        [
            (a, j, float(table[s, a] * prob[s, a, j]))
            for a in range(table.shape[1])
            if table[s, a] > 0.0
            for j in range(n_states)
            if prob[s, a, j] > 0.0
        ]
        for s in positions
    ]
    return {
        (tuple(a for a, _, _ in moves), tuple(j for _, j, _ in moves)): math.prod(
            p for _, _, p in moves
        )
        for moves in product(*one_agent)
    }


def marginal(law, part):
    """Marginal of a law on tuples: the law of outcome[part]."""
    result = defaultdict(float)
    for outcome, p in law.items():
        result[outcome[part]] += p
    return dict(result)


def total_variation(first, second):
    """Total-variation distance between two laws."""
    outcomes = first.keys() | second.keys()
    return 0.5 * math.fsum(abs(first.get(o, 0.0) - second.get(o, 0.0)) for o in outcomes)


@lru_cache(maxsize=100_000)
def _multinomial_items(n, probabilities):
    if n == 0:
        return (((0,) * len(probabilities), 1.0),)
    pairs = ((c, multinomial_pmf(c, probabilities)) for c in compositions(n, len(probabilities)))
    return tuple((c, p) for c, p in pairs if p > 0.0)


def _dirichlet_law(n_agents, alpha):
    """Dirichlet-multinomial law; a state with alpha = 0 is never occupied."""
    possible = [s for s, a in enumerate(alpha) if a > 0.0]
    law = {}
    for part in compositions(n_agents, len(possible)):
        counts = [0] * len(alpha)
        for s, c in zip(possible, part, strict=True):
            counts[s] = c
        law[tuple(counts)] = dirichlet_multinomial_pmf(part, [float(alpha[s]) for s in possible])
    return law


def _convolve(first, second):
    """Law of the sum of two independent vectors of counts."""
    result = defaultdict(float)
    for x, p in first.items():
        for y, q in second.items():
            result[tuple(i + j for i, j in zip(x, y, strict=True))] += p * q
    return result


def _push(law, kernel):
    """Law of the next outcome when the present one has this law."""
    result = defaultdict(float)
    for outcome, p in law.items():
        for after, q in kernel(outcome).items():
            result[after] += p * q
    return dict(result)


def _mix(weight, first, second):
    """Mix two laws: weight * first + (1 - weight) * second."""
    result = defaultdict(float)
    for outcome, p in first.items():
        result[outcome] += weight * p
    for outcome, p in second.items():
        result[outcome] += (1.0 - weight) * p
    return dict(result)

"""Small systems that can be solved exactly: what a learner reaches is compared with the best.

| system | what it asks for |
|---|---|
| ring | leave crowded states, and know that those ahead are crowded too |
| braess | split between routes; the short cut tempts each agent and harms all (closed network) |
| line | spread over the states as a target density says |
| work | stay where the pay is, away from crowds; short-sighted, so that the theory preset learns |

The functions are plain, so numba can compile them.
"""

import math

import ltde
import numpy as np


def ring_local(s, mu, node, edge, prob, reward):
    """Stay or go on; a step succeeds with probability 0.9 / (1 + mu(target)).

    An agent earns node[0] - mu(s), less 0.1 when it tries to move.
    """
    here, ahead = 0, 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
        if edge[i, 0] == 1.0:
            ahead = i
    success = 0.9 / (1.0 + mu[ahead])
    prob[0, here] = 1.0
    prob[1, here] = 1.0 - success
    prob[1, ahead] = success
    reward[0] = node[0] - mu[here]
    reward[1] = reward[0] - 0.1


def ring(n_states=4):
    """Congestion on a one-way ring of states of unequal worth."""
    graph = ltde.Graph.ring(n_states)
    ahead = [float((j - s) % n_states) for s in range(n_states) for j in graph.neighbors(s)]
    return ltde.NetworkedModel(
        graph,
        2,
        ring_local,
        node=np.resize([0.0, 1.0, 0.0, 2.0], n_states)[:, None],
        edge=np.array(ahead)[:, None],
        initial=np.full(n_states, 1.0 / n_states),
        discount=0.9,
    )


def braess_local(s, mu, node, edge, prob, reward):
    """Travel a link of latency node[0] + node[1] x, x its flow; a trip that ends earns 1.

    With mu agents the flow solves x (node[0] + node[1] x) = mu: Little's law. An agent leaves with
    probability 1 / latency; edge[i, 1 + a] is 1 where action a leads.
    """
    here = 0
    for i in range(mu.size):
        if edge[i, 0] == 1.0:
            here = i
    latency = node[0]
    if node[1] > 0.0 and mu[here] > 0.0:
        a, b = node[0], node[1]
        flow = (math.sqrt(a * a + 4.0 * b * mu[here]) - a) / (2.0 * b)
        latency = a + b * flow
    leave = 1.0 / max(latency, 1.0)
    for a in range(2):
        prob[a, here] += 1.0 - leave
        for i in range(mu.size):
            if edge[i, 1 + a] == 1.0:
                prob[a, i] += leave
        reward[a] = leave * node[2]


def braess():
    """Braess's network, closed: links 1-3, 1-4, 3-2, 4-2, 3-4, and a restart state in node 1."""
    ways = {0: (2, 4), 1: (3, 3), 2: (5, 5), 3: (5, 5), 4: (3, 3), 5: (0, 1)}
    graph = ltde.Graph(6, [[s, t] for s, to in ways.items() for t in to])
    edge = [
        [j == s, ways[s][0] == j, ways[s][1] == j] for s in range(6) for j in graph.neighbors(s)
    ]
    # ten-minute steps; a population of mass 1
    node = [[0.1, 80.0, 0], [5.0, 8.0, 0], [5.0, 8.0, 1], [0.1, 80.0, 1], [1.0, 8.0, 0], [1, 0, 0]]
    mask = np.ones((6, 2), dtype=bool)
    mask[1:5, 1] = False
    return ltde.NetworkedModel(
        graph,
        2,
        braess_local,
        node=np.array(node, dtype=float),
        edge=np.array(edge, dtype=float),
        action_mask=mask,
        initial=np.full(6, 1 / 6),
        discount=0.95,
    )


def line_local(s, mu, node, edge, prob, reward):
    """Stay, or go right with success 0.9; an agent earns 2 node[0] - mu(s).

    The team reward is then the sum of node[0]^2 - (mu(s) - node[0])^2 over s.
    """
    here, right = 0, 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
    right = here
    for i in range(mu.size):
        if edge[i, 0] == 1.0:
            right = i
    prob[0, here] = 1.0
    prob[1, here] += 0.1
    prob[1, right] += 0.9
    for a in range(2):
        reward[a] = 2.0 * node[0] - mu[here]


def line():
    """Spread over 3 states as the target density (0.2, 0.3, 0.5), from all at the left."""
    graph = ltde.Graph.path(3)
    side = [float(j - s) for s in range(3) for j in graph.neighbors(s)]
    return ltde.NetworkedModel(
        graph,
        2,
        line_local,
        node=np.array([[0.2], [0.3], [0.5]]),
        edge=np.array(side)[:, None],
        action_mask=np.array([[True, True], [True, True], [True, False]]),
        initial=np.array([1.0, 0.0, 0.0]),
        discount=0.9,
    )


def work_local(s, mu, node, edge, prob, reward):
    """Work here, or go on without pay; a crowd earns less each."""
    here, ahead = 0, 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
        if edge[i, 0] == 1.0:
            ahead = i
    prob[0, here] = 1.0
    prob[1, here] = 0.1
    prob[1, ahead] = 0.9
    reward[0] = 1.0 - 0.5 * mu[here]


def work():
    """Three places of work on a one-way ring, discount 1/2: for the theory preset."""
    graph = ltde.Graph.ring(3)
    ahead = [float((j - s) % 3) for s in range(3) for j in graph.neighbors(s)]
    return ltde.NetworkedModel(
        graph,
        2,
        work_local,
        edge=np.array(ahead)[:, None],
        initial=np.full(3, 1.0 / 3.0),
        discount=0.5,
        reward_range=(0.0, 1.0),
    )

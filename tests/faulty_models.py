"""A model that misbehaves on demand: what, where, in which action and how crowded, all by data."""

import math

import ltde
import numpy as np

NEGATIVE, NAN, INFINITE, SUM, ABOVE, BELOW, REWARD_NAN, RAISES, WRITES, READS = range(1, 11)


class RoadClosed(Exception):
    """Raised by `faulty_local`: an exception that neither NumPy nor ltde raises."""


def faulty_local(s, mu, node, edge, prob, reward):
    """Every agent moves to the right; at node = (fault, action, least density) something breaks."""
    here = min(s, 1)
    right = mu.size - 1
    for a in range(reward.size):
        prob[a, right] = 1.0
        reward[a] = 0.5
    if node[0] == 0.0 or mu[here] < node[2]:
        return
    fault = int(node[0])
    a = int(node[1])
    if fault == 1:
        prob[a, 0] -= 0.25
        prob[a, right] += 0.25
    elif fault == 2:
        prob[a, right] = math.nan
    elif fault == 3:
        prob[a, right] = math.inf
    elif fault == 4:
        prob[a, right] += 2e-9
    elif fault == 5:
        reward[a] = 1.5
    elif fault == 6:
        reward[a] = -0.5
    elif fault == 7:
        reward[a] = math.nan
    elif fault == 8:
        raise RoadClosed("too crowded", s)
    elif fault == 9:
        prob[a, mu.size] = 1.0
    elif fault == 10:
        reward[a] = mu[mu.size]


# fault: (what the message says of it, the value that is named), for state 2 of a path of 6 and
# action 1, whose row is prob[1] = (0, 0, 1) over the states 1, 2, 3.
FAULTS = {
    NEGATIVE: (r"prob\[1, 0\] \(to state 1\): expected a probability >= 0, got -0\.25", -0.25),
    NAN: (r"prob\[1, 2\] \(to state 3\): expected a probability >= 0, got (NaN|nan)", math.nan),
    INFINITE: (r"prob\[1, 2\] \(to state 3\): expected a probability >= 0, got inf", math.inf),
    SUM: (r"prob\[1\] must sum to 1 within (0\.000000001|1e-09), got 1\.000000002", 1.0 + 2e-9),
    ABOVE: (r"reward\[1\]: expected a (finite )?number in \[0(\.0)?, 1(\.0)?\], got 1\.5", 1.5),
    BELOW: (r"reward\[1\]: expected a (finite )?number in \[0(\.0)?, 1(\.0)?\], got -0\.5", -0.5),
    REWARD_NAN: (r"reward\[1\]: expected a (finite )?number in .*, got (NaN|nan)", math.nan),
}
RAISED = {
    RAISES: (RoadClosed, r"too crowded"),
    WRITES: (IndexError, r"index 3 is out of bounds"),
    READS: (IndexError, r"index 3 is out of bounds"),
}


def faulty_model(fault=0, states=(2,), action=1, density=0.0, n_states=6, **options):
    """Path on which `fault` breaks `action` at `states` whose density is at least `density`."""
    node = np.zeros((n_states, 3))
    node[list(states)] = (fault, action, density)
    options = {"reward_range": (0.0, 1.0), "discount": 0.9} | options
    return ltde.NetworkedModel(ltde.Graph.path(n_states), 2, faulty_local, node=node, **options)

"""The simulation workload that every contender runs: agents that walk on a grid.

Each state has up to four neighbours and itself, five actions (up, left, stay, right, down) and its
own policy in every replica. An agent reaches the cell it intends with probability 0.8 and slips
inside the neighbourhood otherwise. The transition law belongs to the (state, action) pair and is
shared by the replicas, so that all contenders draw from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_ACTIONS = 5
N_NEXT = 5
"""Nominal next states of a cell: up, left, itself, right, down, which is also the CSR order."""

INTENDED = 0.8
WARM_UP_STEPS = 12


def local(s, mu, node, edge, prob, reward):  # type: ignore[no-untyped-def]
    """Copy this state's rows of transition data: the local function of the ltde model."""
    for j in range(prob.shape[1]):
        for a in range(prob.shape[0]):
            prob[a, j] = edge[j, a]


def slip(s, mu, node, edge, prob, reward):  # type: ignore[no-untyped-def]
    """Move to neighbour ``a % |N_s|`` with probability 0.8, else anywhere in the neighbourhood.

    The local function of the scaling benchmarks: it needs no data, whatever the size of the grid.
    """
    n_next = prob.shape[1]
    for a in range(prob.shape[0]):
        for j in range(n_next):
            prob[a, j] = 0.2 / n_next
        prob[a, a % n_next] += 0.8


@dataclass(frozen=True, eq=False)
class Network:
    """A grid with its tabulated policy and transition law.

    Attributes
    ----------
    rows, cols, n_replicas
        Shape of the grid and number of independent replicas B.
    indptr, indices : int64
        Neighbourhoods with the state itself, in CSR form with sorted rows.
    next_state : int64 (S, 5)
        The five nominal next states; a missing neighbour is replaced by the state itself.
    policy : float64 (B, S, 5)
        Softmax of standard normal logits.
    transition : float64 (S, 5, 5)
        Law of the next state for each (state, action); 0 on missing neighbours.
    edge : float64 (nnz, 5)
        The same law in CSR order, one column for each action.
    moves : int64 (B * S * 5,)
        Flat index ``replica * S + next state`` of every nominal move.
    """

    rows: int
    cols: int
    n_replicas: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    next_state: NDArray[np.int64]
    policy: NDArray[np.float64]
    transition: NDArray[np.float64]
    edge: NDArray[np.float64]
    moves: NDArray[np.int64]

    @property
    def n_states(self) -> int:
        """Return the number of cells S."""
        return self.rows * self.cols

    @property
    def name(self) -> str:
        """Return the shape as text, for instance ``32x32``."""
        return f"{self.rows}x{self.cols}"

    @property
    def draw_equivalents(self) -> int:
        """Return the nominal conditional binomials of one step, draws of zero agents included."""
        per_state = (N_ACTIONS - 1) + N_ACTIONS * (N_NEXT - 1)
        return self.n_replicas * self.n_states * per_state

    def gather(self, leaving: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add up the agents that leave each state for each next state, (B, S, 5), to counts."""
        size = self.n_replicas * self.n_states
        # bincount adds in float64, which is exact up to 2**53 agents
        summed = np.bincount(self.moves, weights=leaving.ravel(), minlength=size)
        return summed.astype(np.int64).reshape(self.n_replicas, self.n_states)


@dataclass(frozen=True, eq=False)
class Workload:
    """A network and where its agents are after twelve steps.

    Attributes
    ----------
    network : Network
        The grid, its policy and its transition law.
    n_agents : int
        Agents N in each replica.
    counts : int64 (B, S)
        Agents in each state.
    """

    network: Network
    n_agents: int
    counts: NDArray[np.int64]


def make_network(rows: int, cols: int, n_replicas: int = 16, seed: int = 0) -> Network:
    """Build the grid, the policy and the transition law from a seed."""
    n_states = rows * cols
    rng = np.random.default_rng((seed, rows, cols))
    row, col = np.divmod(np.arange(n_states), cols)
    present = np.stack(
        [row > 0, col > 0, np.ones(n_states, bool), col < cols - 1, row < rows - 1], axis=1
    )
    here = np.arange(n_states)[:, None]
    next_state = np.where(present, here + np.array([-cols, -1, 0, 1, cols]), here)

    transition = (1.0 - INTENDED) * rng.dirichlet(np.ones(N_NEXT), size=(n_states, N_ACTIONS))
    transition[:, np.arange(N_ACTIONS), np.arange(N_ACTIONS)] += INTENDED
    missing = np.where(present[:, None, :], 0.0, transition)
    transition -= missing
    transition[:, :, 2] += missing.sum(axis=2)
    transition /= transition.sum(axis=2, keepdims=True)

    policy = np.exp(rng.normal(size=(n_replicas, n_states, N_ACTIONS)))
    policy /= policy.sum(axis=2, keepdims=True)
    return Network(
        rows=rows,
        cols=cols,
        n_replicas=n_replicas,
        indptr=np.concatenate([[0], np.cumsum(present.sum(axis=1))]),
        indices=next_state[present],
        next_state=next_state,
        policy=policy,
        transition=transition,
        edge=np.ascontiguousarray(transition.swapaxes(1, 2)[present]),
        moves=(np.arange(n_replicas)[:, None, None] * n_states + next_state).ravel(),
    )


def make_workload(network: Network, agents_per_state: int, seed: int = 0) -> Workload:
    """Spread the agents uniformly and let them walk twelve steps.

    Parameters
    ----------
    network : Network
        The grid, from `make_network`.
    agents_per_state : int
        N / S, the mean number of agents in a state.
    seed : int
        Seed of the start and of the twelve steps.

    Returns
    -------
    Workload
        The network with the counts after those steps.
    """
    n_states = network.n_states
    n_agents = agents_per_state * n_states
    rng = np.random.default_rng((seed, agents_per_state))
    counts = rng.multinomial(n_agents, np.full(n_states, 1 / n_states), size=network.n_replicas)
    for _ in range(WARM_UP_STEPS):
        actions = rng.multinomial(counts, network.policy)
        counts = network.gather(rng.multinomial(actions, network.transition).sum(axis=2))
    return Workload(network, n_agents, counts)

"""Systems that share their random numbers, agent by agent.

Each labelled agent has its own uniform numbers for its action and for its next state, the same in
all systems of a replica, and uses them by inversion. So agents that start alike stay alike until
they are influenced. Each system by itself has the law of `Simulator`; the variance of a difference
between two is far smaller than between independent ones.

Fixed letters: `R` replicas, `V` systems, `N` agents, `S` states, `A` actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltde.arguments import integer
from ltde.model import NetworkedModel
from ltde.policy import FunctionPolicy, TabularPolicy
from ltde.simulator import Simulator

__all__ = ["PairedSimulator"]

# Numbers in the largest array of a batch of systems: 32 MB.
_BATCH = 2**22
# Room for float32 rows, as for `TabularPolicy`.
_ROW_TOLERANCE = 1e-4


class PairedSimulator:
    """Simulate systems of `N` labelled agents from several starts, with common random numbers.

    A start is a team action `c(s, a)`, `(S, A)`, which determines `mu` and `h`.

    Parameters
    ----------
    model
        The model.
    n_agents
        Number of agents `N`, finite. Time and memory grow like `N`.
    policy
        `(S, A)` probabilities, a policy with `mean_action` and multinomial teams, or a function
        `policy(state, density) -> (A,)`. It is asked once for every `(s, n(s))` that occurs.

    Raises
    ------
    TypeError
        If `policy` is an `EnergyPolicy` or a `FunctionPolicy`.
    ValueError
        If it changes with time or has the wrong shape; later, when it first answers with something
        that is not a law on the allowed actions.
    """

    def __init__(self, model: NetworkedModel, n_agents: int, policy: Any) -> None:
        if hasattr(policy, "log_weight"):
            raise TypeError(
                "policy: the team actions of an energy-based policy cannot be coupled agent by "
                "agent; take policy.individual(n_agents), or a small system and method='exact'"
            )
        if isinstance(policy, FunctionPolicy):
            raise TypeError("policy: expected one of the form (2.8), got a FunctionPolicy")
        if not hasattr(policy, "mean_action") and not callable(policy):
            policy = TabularPolicy(policy)
        if not getattr(policy, "stationary", True):
            raise ValueError("policy: expected one that does not change with time")
        shape = model.action_mask.shape
        if isinstance(policy, TabularPolicy) and policy.probs.shape != shape:
            raise ValueError(f"policy: expected shape {shape}, got {policy.probs.shape}")
        self.model = model
        self.n_agents = integer("n_agents", n_agents, 1, 2**31)
        self.policy = policy
        # Row of every key s (N + 1) + n(s), 0 where unknown; untouched pages take no memory.
        self._row = np.zeros(shape[0] * (n_agents + 1), dtype=np.int32)
        self._first_key = np.arange(shape[0]) * (n_agents + 1)
        self._rows = np.zeros((1, shape[1]))

    def mean_action(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return `pi(. | s, mu(s))`, `(..., S, A)`, at counts `(..., S)`."""
        keys = self._first_key + counts
        row = self._row[keys]
        if not row.all():
            self._learn(np.unique(keys[row == 0]))
            row = self._row[keys]
        probs: NDArray[np.float64] = self._rows[row]
        return probs

    def _learn(self, keys: NDArray[np.int64]) -> None:
        s, n = np.divmod(keys, self.n_agents + 1)
        rows = self._ask(s, n)
        total = rows.sum(axis=1)
        wrong = (rows < 0.0).any(axis=1) | ~(np.abs(total - 1.0) <= _ROW_TOLERANCE)
        wrong |= (rows * ~self.model.action_mask[s]).any(axis=1)
        for i in np.flatnonzero(wrong)[:1]:
            raise ValueError(
                f"policy at state {s[i]}, density {n[i] / self.n_agents:g}: expected probabilities "
                f"of allowed actions that sum to 1, got {rows[i].tolist()}"
            )
        self._row[keys] = len(self._rows) + np.arange(len(keys))
        self._rows = np.concatenate((self._rows, rows / total[:, None]))

    def _ask(self, s: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Ask the policy about `n` agents in `s`, both `(Q,)` with `s` ascending."""
        if hasattr(self.policy, "mean_action"):
            turn = np.arange(len(s)) - np.searchsorted(s, s)  # 0, 1, ... within a state
            grid = np.zeros((int(turn.max()) + 1, self.model.n_states), dtype=np.int64)
            grid[turn, s] = n
            answer = self.policy.mean_action(grid, n_agents=self.n_agents)
            answer = answer.detach().cpu() if hasattr(answer, "detach") else answer
            return np.asarray(np.asarray(answer, dtype=np.float64)[turn, s])
        rows = np.empty((len(s), self.model.n_actions))
        for i, density in enumerate((n / self.n_agents).tolist()):
            row = np.asarray(self.policy(int(s[i]), density), dtype=np.float64)
            if row.shape != rows[i].shape:
                expected = f"shape (A,) = {rows[i].shape}"
                raise ValueError(f"policy at state {s[i]}: expected {expected}, got {row.shape}")
            rows[i] = row
        return rows

    def visited(self, n_draws: int, seed: int) -> NDArray[np.int64]:
        """Draw starts `(D, S, A)` independently from the visitation law `sigma` (4.2).

        `Simulator.visitation` does the same, but cannot call a Python function.
        """
        simulator = Simulator(self.model, self.n_agents, n_replicas=n_draws, seed=seed)
        times = np.random.default_rng([seed, 0]).geometric(1.0 - self.model.discount, n_draws) - 1
        drawn = np.zeros((n_draws, *self.model.action_mask.shape), dtype=np.int64)
        for t in range(times.max() + 1):
            counts = np.asarray(simulator.counts, dtype=np.int64)
            actions = simulator.step(self.mean_action(counts)).actions
            drawn[times == t] = actions[times == t]
        return drawn

    def replaced(
        self,
        start: NDArray[np.int64],
        kept: NDArray[np.bool_],
        weights: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Draw a start that agrees with `start` on the states `kept`.

        The other agents are dealt to the other states in proportion to the integer weights `(S,)`,
        as whole copies and a rest drawn without replacement, and act by the policy.
        """
        counts = np.where(kept, start.sum(axis=1), 0)
        n_outside = self.n_agents - int(counts.sum())
        if n_outside == 0:
            return start
        urn = np.where(kept, 0, weights)
        urn = urn if urn.any() else (~kept).astype(np.int64)
        copies, rest = divmod(n_outside, int(urn.sum()))
        counts += copies * urn + rng.multivariate_hypergeometric(urn, rest)
        policy = TabularPolicy(self.mean_action(counts))
        actions = policy.sample(counts, int(rng.integers(2**63)))
        return np.where(kept[:, None], start, actions)

    def differences(
        self,
        start: NDArray[np.int64],
        others: NDArray[np.int64],
        states: NDArray[np.int64],
        n_replicas: int,
        horizon: int,
        seed: tuple[int, ...],
    ) -> NDArray[np.float64]:
        """Sample `Q_s(mu, h) - Q_s(mu', h')`, cut off after `horizon` rewards.

        Parameters
        ----------
        start
            `(S, A)`, the start of `(mu, h)`.
        others
            `(V, S, A)`, the starts of the `(mu', h')`.
        states
            `(V,)`, the state `s` for each of them.
        n_replicas, horizon
            Number of replicas, and of rewards.
        seed
            Integers in [0, 2^64).

        Returns
        -------
        ndarray
            `(R, V)`, independent over replicas; exactly 0 where the starts do not differ.
        """
        total = np.zeros((n_replicas, len(others)))
        different = np.flatnonzero((others != start).any(axis=(1, 2)))
        size = max(self.n_agents, self.model.n_actions * len(self.model.graph.indices))
        width = max(1, min(len(different), _BATCH // size - 1))
        depth = max(1, _BATCH // (size * (width + 1)))
        for r in range(0, n_replicas, depth):
            rows = slice(r, min(r + depth, n_replicas))
            for v in range(0, len(different), width):
                part = different[v : v + width]
                rng = np.random.default_rng([*seed, r])  # the same numbers for all parts
                starts = np.concatenate((start[None], others[part]))
                paths = self.paths(starts, rows.stop - r, rng)
                for t, (_, rewards) in zip(range(horizon), paths, strict=False):
                    other = rewards[:, 1 + np.arange(len(part)), states[part]]
                    gap = rewards[:, 0, states[part]] - other
                    total[rows, part] += self.model.discount**t * gap
        return total

    def paths(
        self, starts: NDArray[np.int64], n_replicas: int, rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Simulate systems that share their random numbers.

        Parameters
        ----------
        starts
            `(V, S, A)`, the start of each system; each sums to `N`.
        n_replicas
            Number `R` of independent replicas.
        rng
            Where the random numbers come from.

        Yields
        ------
        counts
            `(R, V, S)`, of step 0, of step 1, and so on without end.
        rewards
            `(R, V, S)`, team rewards of that step; from step 1 on their means over the actions.
        """
        n_systems, n_states, n_actions = starts.shape
        cells = np.stack([_dealt(starts[0], start) for start in starts])
        positions, actions = np.divmod(np.tile(cells, (n_replicas, 1, 1)), n_actions)
        counts = np.tile(starts.sum(axis=2), (n_replicas, 1, 1))
        acting = np.tile(starts / self.n_agents, (n_replicas, 1, 1, 1))  # mu(s) h(s)(a)
        given = True
        while True:
            density = counts / self.n_agents
            prob, reward = self.model.evaluate(density.reshape(-1, n_states))
            pi = self.mean_action(counts)
            if not given:
                acting = density[..., None] * pi
            yield counts, (acting * reward.reshape(acting.shape)).sum(axis=3)
            counts = counts.copy()
            _compiled_move()(
                positions,
                counts,
                actions,
                given,
                rng.random((n_replicas, self.n_agents, 2)),
                pi,
                prob.reshape(n_replicas, n_systems, n_actions, -1),
                self.model.graph.indptr,
                self.model.graph.indices,
            )
            given = False


def _dealt(start: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cell `s A + a` of every agent, `(N,)`, in the system that starts from `other`.

    Agents are numbered by their cells under `start`, and as many as possible stay in them.
    """
    old, new, cell = start.ravel(), other.ravel(), np.arange(start.size)
    cells = np.repeat(cell, old)
    turn = np.arange(len(cells)) - np.repeat(np.cumsum(old) - old, old)
    cells[turn >= new[cells]] = np.repeat(cell, np.maximum(new - old, 0))
    return cells


@cache
def _compiled_move() -> Any:
    import numba

    return numba.njit(_move)


def _move(
    positions: NDArray[np.int64],
    counts: NDArray[np.int64],
    actions: NDArray[np.int64],
    given: bool,
    uniforms: NDArray[np.float64],
    pi: NDArray[np.float64],
    prob: NDArray[np.float64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int64],
) -> None:
    """Move all agents, in place; compiled by numba. Entries of probability 0 are never drawn.

    Shapes: positions and actions `(R, V, N)`, counts `(R, V, S)`, uniforms `(R, N, 2)`, pi
    `(R, V, S, A)`, prob `(R, V, A, nnz)`. `actions` are played if `given`, else drawn from `pi`.
    """
    n_replicas, n_systems, n_agents = positions.shape
    for r in range(n_replicas):
        for v in range(n_systems):
            for i in range(n_agents):
                s = positions[r, v, i]
                a = actions[r, v, i]
                if not given:
                    below = 0.0
                    for b in range(pi.shape[3]):
                        if pi[r, v, s, b] > 0.0:
                            a = b
                            below += pi[r, v, s, b]
                            if uniforms[r, i, 0] < below:
                                break
                target = s
                below = 0.0
                for e in range(indptr[s], indptr[s + 1]):
                    if prob[r, v, a, e] > 0.0:
                        target = indices[e]
                        below += prob[r, v, a, e]
                        if uniforms[r, i, 1] < below:
                            break
                positions[r, v, i] = target
                counts[r, v, s] -= 1
                counts[r, v, target] += 1

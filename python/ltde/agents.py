"""Labelled agents moved one by one: the independent, simple twin of the count simulator.

`Simulator` moves counts, because the agents are exchangeable. `AgentSimulator` moves the `N` agents
themselves, with the plain Python local function and NumPy's generator, and shares no code with the
compiled core: if the two agree in law, both are right. It also shows what decentralised execution
means (2.8): the action of an agent is computed from its own state and from the density of that
state, and from nothing else.

Fixed letters: `N` agents, `S` states, `A` actions, `T` steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde.arguments import integer, population_size

if TYPE_CHECKING:
    from ltde.model import NetworkedModel
    from ltde.policy import IndividualPolicy

__all__ = ["AgentRollout", "AgentSimulator", "AgentStep", "SupportsIndividual"]

_Scalar = TypeVar("_Scalar", bound=np.generic)

# A row of the local function is computed in float64 from a few dozen terms: rounding stays far
# below this.
ROW_TOLERANCE = 1e-9
# A policy may be computed in float32 (relative rounding 6e-8 a term); its rows are divided by their
# own sum.
POLICY_TOLERANCE = 1e-4


class SupportsIndividual(Protocol):
    """A team policy that can be executed agent by agent, such as `TabularPolicy`."""

    def individual(self) -> IndividualPolicy:
        """Return the policy of one agent."""


@dataclass(frozen=True, slots=True)
class AgentStep:
    """What one step of `N` labelled agents did.

    Attributes
    ----------
    actions
        `(N,)`, the action of each agent.
    rewards
        `(N,)`, the reward `r(s_i, mu(N_s), a_i)` of each agent, at the state that it left.
    positions
        `(N,)`, the state of each agent after the step; read-only.
    """

    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    positions: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AgentRollout:
    """What `T` steps did, in the arrays of `Rollout` for a single replica.

    Attributes
    ----------
    counts
        `(T + 1, S)`, agents in each state; `counts[0]` is the start.
    actions
        `(T, S, A)`, team actions `c(s, a)`: how many agents of `s` took `a`.
    rewards
        `(T, S)`, team rewards `r_s = sum_a c(s, a) r(s, mu(N_s), a) / N`.
    restarted
        `(T,)`, whether `counts[t + 1]` is a fresh draw from `P_0`.
    trajectories
        `(T + 1, len(tagged))`, the state of each tagged agent.
    """

    counts: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    restarted: NDArray[np.bool_]
    trajectories: NDArray[np.int64]


class AgentSimulator:
    """Move `N` labelled agents, each by its own draws.

    Parameters
    ----------
    model
        The model; only its plain Python local function is called, never the compiled one.
    n_agents
        Number of agents `N`, a finite positive integer. Time and memory grow like `N`.
    seed
        Seed of the simulator's own generator, `PCG64(SeedSequence(seed))`.

    Raises
    ------
    ValueError
        If `n_agents` is not a finite positive integer, or differs from the total of integer initial
        counts.

    Notes
    -----
    The law of `counts` is that of `Simulator` with the same model, policy and `N`; the random
    numbers are not. Integer initial counts are dealt to the agents in random order, so the agents
    are exchangeable from the start.

    Examples
    --------
    >>> import numpy as np
    >>> import ltde
    >>> from ltde.agents import AgentSimulator
    >>> def wander(s, mu, node, edge, prob, reward):
    ...     for i in range(mu.size):
    ...         prob[0, i] = 1.0 / mu.size
    ...     reward[0] = 1.0 - mu[0]
    >>> model = ltde.NetworkedModel(
    ...     ltde.Graph.ring(4),
    ...     1,
    ...     wander,
    ...     initial=np.array([6, 0, 0, 0]),
    ...     discount=0.9,
    ...     reward_range=(0.0, 1.0),
    ... )
    >>> simulator = AgentSimulator(model, n_agents=6, seed=1)
    >>> simulator.positions
    array([0, 0, 0, 0, 0, 0])
    >>> rollout = simulator.rollout(lambda state, density: [1.0], n_steps=5, tagged=[0, 3])
    >>> rollout.counts.sum(axis=1)
    array([6, 6, 6, 6, 6, 6])
    >>> rollout.trajectories.shape
    (6, 2)
    """

    def __init__(self, model: NetworkedModel, n_agents: int, seed: int = 0) -> None:
        self.model = model
        self.n_agents = _finite_population(n_agents)
        _check_initial_total(model.initial, self.n_agents)
        self._rng = _generator(seed)
        self._n_steps = 0
        self._positions = self._draw_initial()

    @property
    def positions(self) -> NDArray[np.int64]:
        """State of each labelled agent, `(N,)`; read-only, a step makes a new array."""
        return self._positions

    @property
    def counts(self) -> NDArray[np.int64]:
        """Agents in each state, `(S,)`, counted afresh from `positions`."""
        return np.bincount(self._positions, minlength=self.model.graph.n_states).astype(np.int64)

    @property
    def n_steps(self) -> int:
        """Steps taken since construction; `reset` does not rewind it."""
        return self._n_steps

    def reset(self, positions: ArrayLike | None = None, seed: int | None = None) -> None:
        """Start again from `positions`, or from a fresh draw from `P_0`.

        Parameters
        ----------
        positions
            `(N,)` states, or None to draw from `P_0`.
        seed
            If given, the generator starts afresh from this seed.

        Raises
        ------
        TypeError
            If `positions` are not integers.
        ValueError
            If `positions` does not have shape `(N,)` or names a state that does not exist.
        """
        given = None if positions is None else self._checked_positions(positions)
        if seed is not None:
            self._rng = _generator(seed)
        self._positions = self._draw_initial() if given is None else given

    def step(self, policy: IndividualPolicy | SupportsIndividual | ArrayLike) -> AgentStep:
        """Let every agent act once and move once.

        Parameters
        ----------
        policy
            `policy(state, density) -> (A,)`, an object whose `individual()` returns such a
            callable, or an `(S, A)` array. Called once for each occupied state, as agents in one
            state share its answer.

        Returns
        -------
        AgentStep
            Actions, individual rewards and the positions after the step.

        Raises
        ------
        ValueError
            If the policy or the local function returns something that is not a law, or the policy
            plays a masked action. The simulator is then as it was before the call.
        """
        decide = self._individual(policy)
        counts = self.counts
        density = counts / self.n_agents
        # All that can fail comes first: until every plan is made nothing is drawn and nothing is
        # moved.
        plans = {}
        for s in np.flatnonzero(counts).tolist():
            choice = self._action_probabilities(decide, s, float(density[s]))
            plans[s] = (choice, *self._local(s, density))

        actions = np.empty(self.n_agents, dtype=np.int64)
        rewards = np.empty(self.n_agents, dtype=np.float64)
        positions = np.empty(self.n_agents, dtype=np.int64)
        for s, (choice, prob, reward) in plans.items():
            agents = np.flatnonzero(self._positions == s)
            neighbors = self.model.graph.neighbors(s)
            chosen = self._draw(choice, agents.size)
            actions[agents] = chosen
            rewards[agents] = reward[chosen]
            for a in np.unique(chosen):
                movers = agents[chosen == a]
                positions[movers] = neighbors[self._draw(prob[a], movers.size)]
        self._positions = _frozen(positions)
        self._n_steps += 1
        return AgentStep(actions, rewards, self._positions)

    def rollout(
        self,
        policy: IndividualPolicy | SupportsIndividual | ArrayLike,
        n_steps: int,
        restart: Literal["chain"] | None = None,
        tagged: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> AgentRollout:
        """Take `n_steps` steps and record them by team.

        Parameters
        ----------
        policy
            As for `step`.
        n_steps
            Number of steps `T`, at least 0.
        restart
            `"chain"`: after each step, with probability `1 - discount`, all agents are drawn afresh
            from `P_0` (the restart chain, whose stationary law is the discounted visitation law of
            (4.2)). None: never.
        tagged
            Agents whose trajectories are recorded; none by default.

        Returns
        -------
        AgentRollout
            Counts, team actions, team rewards, restarts and tagged trajectories.

        Raises
        ------
        IndexError
            If `tagged` names an agent that does not exist.
        TypeError
            If `n_steps` is not an integer.
        ValueError
            As for `step`, or if `n_steps` or `restart` is not as above. The simulator is then as it
            was before the call.
        """
        n_steps = integer("n_steps", n_steps, 0, 2**48)
        if restart not in (None, "chain"):
            raise ValueError(f"restart: expected None or 'chain', got {restart!r}")
        tags = self._checked_tags(tagged)
        decide = self._individual(policy)
        n_states, n_actions = self.model.action_mask.shape
        rollout = AgentRollout(
            counts=np.empty((n_steps + 1, n_states), dtype=np.int64),
            actions=np.zeros((n_steps, n_states, n_actions), dtype=np.int64),
            rewards=np.zeros((n_steps, n_states), dtype=np.float64),
            restarted=np.zeros(n_steps, dtype=np.bool_),
            trajectories=np.empty((n_steps + 1, tags.size), dtype=np.int64),
        )
        before = self._positions, self._n_steps, self._rng.bit_generator.state
        try:
            rollout.counts[0] = self.counts
            rollout.trajectories[0] = self._positions[tags]
            for t in range(n_steps):
                origin = self._positions
                step = self.step(decide)
                np.add.at(rollout.actions[t], (origin, step.actions), 1)
                np.add.at(rollout.rewards[t], origin, step.rewards / self.n_agents)
                if restart == "chain" and self._rng.random() >= self.model.discount:
                    rollout.restarted[t] = True
                    self._positions = self._draw_initial()
                rollout.counts[t + 1] = self.counts
                rollout.trajectories[t + 1] = self._positions[tags]
        except BaseException:
            self._positions, self._n_steps, self._rng.bit_generator.state = before
            raise
        return rollout

    def _individual(self, policy: Any) -> IndividualPolicy:
        """Return the policy of one agent that `policy` stands for."""
        if hasattr(policy, "individual"):
            decide: IndividualPolicy = policy.individual()
            return decide
        if callable(policy):
            decide = policy
            return decide
        table, shape = np.asarray(policy, dtype=np.float64), self.model.action_mask.shape
        if table.shape != shape:
            raise ValueError(f"policy: expected an array (S, A) = {shape}, got {table.shape}")
        return lambda state, density: table[state]

    def _action_probabilities(
        self, decide: IndividualPolicy, s: int, density: float
    ) -> NDArray[np.float64]:
        """Ask the policy of an agent in `s`, and check the answer."""
        probabilities = np.asarray(decide(s, density), dtype=np.float64)
        where, shape = f"policy at state {s}", probabilities.shape
        if shape != (self.model.n_actions,):
            expected = f"({self.model.n_actions},)"
            raise ValueError(f"{where}: expected shape (A,) = {expected}, got {shape}")
        _check_law(probabilities, range(shape[0]), where, "action", POLICY_TOLERANCE)
        for a in np.flatnonzero((probabilities > 0.0) & ~self.model.action_mask[s]).tolist():
            p = probabilities[a]
            raise ValueError(f"{where}, action {a}: expected 0 for a masked action, got {p}")
        return probabilities

    def _local(
        self, s: int, density: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Call the plain local function at `s`; check and return `prob` and `reward`."""
        graph = self.model.graph
        row = slice(int(graph.indptr[s]), int(graph.indptr[s + 1]))
        neighbors = graph.indices[row]
        prob = np.zeros((self.model.n_actions, neighbors.size))
        reward = np.zeros(self.model.n_actions)
        where = f"local function at step {self._n_steps}, state {s}"
        mu, node, edge = density[neighbors], self.model.node[s], self.model.edge[row]
        try:
            self.model.local(s, _frozen(mu), _frozen(node), _frozen(edge), prob, reward)
        except Exception as error:
            error.add_note(where)
            raise
        for a in np.flatnonzero(self.model.action_mask[s]).tolist():
            _check_law(prob[a], neighbors, f"{where}, action {a}", "next state", ROW_TOLERANCE)
            if not math.isfinite(reward[a]):
                raise ValueError(f"{where}, action {a}: expected a finite reward, got {reward[a]}")
        return prob, reward

    def _draw(self, weights: NDArray[np.float64], size: int) -> NDArray[np.intp]:
        """Draw `size` independent indices with probabilities proportional to `weights`.

        The uniform u is in [0, 1) and the index i has cumulative[i - 1] <= u < cumulative[i]: an
        entry of weight 0 has an empty interval, and the last value is exactly 1, so u always falls
        into one.
        """
        cumulative = np.cumsum(weights)
        return np.searchsorted(cumulative / cumulative[-1], self._rng.random(size), side="right")

    def _draw_initial(self) -> NDArray[np.int64]:
        """Draw the `N` positions from `P_0`."""
        initial = self.model.initial
        if isinstance(initial, np.ndarray) and initial.dtype.kind in "iu":
            row = initial if initial.ndim == 1 else initial[self._rng.integers(len(initial))]
            states = np.repeat(np.arange(row.size, dtype=np.int64), row)
            return _frozen(self._rng.permutation(states))
        density = initial if isinstance(initial, np.ndarray) else self._rng.dirichlet(initial.alpha)
        return _frozen(self._draw(density, self.n_agents).astype(np.int64))

    def _checked_positions(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return `positions` as a new read-only int64 array of states."""
        given, n = np.asarray(positions), self.n_agents
        if given.shape != (n,):
            raise ValueError(f"positions: expected shape (N,) = ({n},), got {given.shape}")
        if given.dtype.kind not in "iu":
            raise TypeError(f"positions: expected integers, got dtype {given.dtype}")
        last = self.model.graph.n_states - 1
        for i in np.flatnonzero((given < 0) | (given > last)).tolist():
            raise ValueError(f"positions[{i}]: expected a state in 0..{last}, got {given[i]}")
        return _frozen(given.astype(np.int64))

    def _checked_tags(self, tagged: Sequence[int] | NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the tagged agents as an int64 array."""
        tags = np.asarray([] if tagged is None else tagged)
        if tags.ndim != 1 or (tags.size and tags.dtype.kind not in "iu"):
            raise TypeError(f"tagged: expected a list of integers, got {tagged!r}")
        last = self.n_agents - 1
        for i in np.flatnonzero((tags < 0) | (tags > last)).tolist():
            raise IndexError(f"tagged[{i}]: expected an agent in 0..{last}, got {tags[i]}")
        return tags.astype(np.int64)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Return a read-only view: a local function cannot write into what it is given to read."""
    view = array.view()
    view.flags.writeable = False
    return view


def _check_law(
    row: NDArray[np.float64], entries: Iterable[int], where: str, entry: str, tolerance: float
) -> None:
    for i, p in zip(entries, row.tolist(), strict=True):
        if not (math.isfinite(p) and p >= 0.0):
            raise ValueError(f"{where}, {entry} {i}: expected a probability, got {p}")
    if abs(row.sum() - 1.0) > tolerance:
        raise ValueError(f"{where}: expected probabilities that sum to 1, got {row.sum()}")


def _finite_population(n_agents: Any) -> int:
    size = population_size(n_agents)
    if math.isinf(size):
        raise ValueError(
            "n_agents: expected a finite number, got inf: agents cannot be labelled in the "
            "mean-field limit"
        )
    return int(size)


def _check_initial_total(initial: Any, n_agents: int) -> None:
    if not (isinstance(initial, np.ndarray) and initial.dtype.kind in "iu"):
        return
    for row, total in enumerate(np.atleast_2d(initial).sum(axis=1)):
        if total != n_agents:
            name = "initial" if initial.ndim == 1 else f"initial[{row}]"
            raise ValueError(
                f"{name}: expected counts that sum to n_agents = {n_agents}, got a sum of {total}"
            )

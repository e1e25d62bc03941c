"""The value of a policy from simulation, and the difference of two values, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltde.agents import AgentSimulator
from ltde.arguments import integer, population_size, seed_number
from ltde.model import NetworkedModel
from ltde.policy import FunctionPolicy
from ltde.simulator import Simulator

__all__ = ["Evaluation", "Gap", "evaluate"]

# Steps recorded at a time.
_BLOCK = 64
# Agents that stand for infinitely many where E[h(s)] of an energy-based team is wanted.
_MANY = 2**40
# Answers of a policy of one agent that are kept.
_CACHE = 2**16


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference of two values.

    Attributes
    ----------
    mean
        The first less the second.
    interval
        95 % interval (Student's t over replicas, each with its like); a point for one replica.
    """

    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The value `J` of a policy, Eq. (4.1).

    Attributes
    ----------
    mean
        Mean over replicas of the discounted sum of team rewards.
    interval
        95 % interval of the mean (Student's t over replicas); a point for one replica.
    per_state
        `(S,)` what each state contributes to `mean`.
    values
        `(B,)` the value of each replica.
    n_agents
        `N`.
    horizon
        Steps played; the rest is below `gamma^horizon max |r| / (1 - gamma)`.
    """

    mean: float
    interval: tuple[float, float]
    per_state: NDArray[np.float64]
    values: NDArray[np.float64]
    n_agents: float
    horizon: int

    def minus(self, other: Evaluation) -> Gap:
        """Return by how much this value is above another, with a 95 % interval.

        Both must have the same number of replicas. The same `seed` pairs them: where `P_0` draws a
        density, a replica at finite `N` and its like at infinity start from the same one.

        Parameters
        ----------
        other
            A value at another `N`, of another execution or of another policy.

        Examples
        --------
        The gap between a finite population and its limit, and what decentralised execution of an
        energy-based policy costs:

        >>> import math
        >>> import ltde
        >>> def local(s, mu, node, edge, prob, reward):
        ...     for a in range(prob.shape[0]):
        ...         prob[a, a] = 1.0
        ...         reward[a] = -mu[a]
        >>> model = ltde.NetworkedModel(ltde.Graph.ring(4), 3, local, discount=0.5)
        >>> softmax = ltde.TabularPolicy.uniform(model)
        >>> finite, limit = (ltde.evaluate(model, softmax, n) for n in (100, math.inf))
        >>> gap = finite.minus(limit)
        >>> gap.mean == finite.mean - limit.mean
        True
        >>> energy = ltde.EnergyPolicy(model, 8)
        >>> team, alone = (
        ...     ltde.evaluate(model, energy, 9, execution=e) for e in ("team", "individual")
        ... )
        >>> low, high = team.minus(alone).interval
        """
        if not isinstance(other, Evaluation):
            raise TypeError(f"other: expected an Evaluation, got {type(other).__name__}")
        if len(other.values) != len(self.values):
            raise ValueError(
                f"other: expected {len(self.values)} replicas, got {len(other.values)}"
            )
        return Gap(self.mean - other.mean, mean_interval(self.values - other.values))


def evaluate(
    model: NetworkedModel,
    policy: Any,
    n_agents: float,
    n_replicas: int = 16,
    horizon: int | None = None,
    seed: int = 0,
    *,
    execution: Literal["team", "individual", "agents"] = "team",
    threads: int | None = None,
) -> Evaluation:
    """Estimate `J` of a policy by simulation from `P_0`.

    Parameters
    ----------
    model, n_agents, n_replicas, seed, threads
        As for `Simulator`; `n_agents` may be `math.inf`. `n_agents` need not be the one that the
        policy was trained for.
    policy
        What `Simulator.rollout` plays, or a policy of one agent, `(state, density) -> (A,)`.
    horizon
        Number of steps; None takes the first with `gamma^horizon <= 1e-4`.
    execution
        `"team"` draws team actions from the team policy. `"individual"` plays `mean_action` as the
        policy of every agent: the same for multinomial teams, another policy for energy-based ones.
        `"agents"` does so with labelled agents one by one (`AgentSimulator`): the same law, from
        code that shares nothing with the core, in time that grows like `N`.

    Returns
    -------
    Evaluation
        Mean, 95 % interval, and what each state contributes.

    Raises
    ------
    ValueError
        If an argument is out of range; at `n_agents = inf`, for teams of an `EnergyPolicy`, which
        stay random there, and for labelled agents.
    TypeError
        If an argument has the wrong type, or agents should play a `FunctionPolicy`.

    Notes
    -----
    Energy-based policies have a value in the limit by `"individual"` only. `E[h(s)]` is then the
    mean along a Markov chain for 2^40 agents: more `chain_moves` make it more accurate.
    `policy.individual(n)` as the policy plays what `n` agents would.
    """
    if not isinstance(model, NetworkedModel):
        raise TypeError(f"model: expected an ltde.NetworkedModel, got {type(model).__name__}")
    if execution not in ("team", "individual", "agents"):
        raise ValueError(f'execution: expected "team", "individual" or "agents", got {execution!r}')
    if horizon is None:
        horizon = max(1, math.ceil(math.log(1e-4) / math.log(max(model.discount, 1e-9))))
    horizon = integer("horizon", horizon, 1, 2**48)
    n_agents = population_size(n_agents)
    if execution == "agents":
        per_state = _by_agents(model, policy, n_agents, n_replicas, horizon, seed)
    else:
        if not hasattr(policy, "mean_action") and callable(policy):
            policy = _asked(policy, model)
        elif execution == "individual" and hasattr(policy, "mean_action"):
            policy = _individually(policy)
        simulator = Simulator(model, n_agents, n_replicas, seed=seed, threads=threads)
        per_state = _by_counts(simulator, policy, horizon)
    values = per_state.sum(axis=1)
    return Evaluation(
        mean=float(values.mean()),
        interval=mean_interval(values),
        per_state=per_state.mean(axis=0),
        values=values,
        n_agents=n_agents,
        horizon=horizon,
    )


def _by_counts(simulator: Simulator, policy: Any, horizon: int) -> NDArray[np.float64]:
    """Return the discounted rewards of every replica, `(B, S)`."""
    discount = simulator.model.discount
    per_state = np.zeros(simulator.counts.shape)
    played, weight = 0, 1.0
    while played < horizon:
        steps = min(_BLOCK, horizon - played)
        rollout = simulator.rollout(policy, steps, record=["rewards"])
        assert rollout.rewards is not None
        discounts = weight * discount ** np.arange(steps)
        per_state += np.tensordot(discounts, rollout.rewards, axes=1)
        weight *= discount**steps
        played += steps
    return per_state


def _by_agents(
    model: NetworkedModel, policy: Any, n_agents: Any, n_replicas: int, horizon: int, seed: int
) -> NDArray[np.float64]:
    """Return the discounted rewards of every replica of labelled agents, `(B, S)`."""
    replicas = integer("n_replicas", n_replicas, 1, 2**31)
    seed = seed_number(seed)
    if isinstance(policy, FunctionPolicy):
        raise TypeError(
            "policy: agents play one of the form (2.8), and a FunctionPolicy sees the whole state"
        )
    simulator = AgentSimulator(model, n_agents)
    if hasattr(policy, "individual"):
        policy = policy.individual(n_agents) if is_energy(policy) else policy.individual()
    if callable(policy):
        policy = lru_cache(maxsize=_CACHE)(policy)
    discounts = model.discount ** np.arange(horizon)
    per_state = np.zeros((replicas, model.n_states))
    for b in range(replicas):
        number = np.random.SeedSequence((seed, b)).generate_state(1, np.uint64)[0]
        simulator.reset(seed=int(number))
        per_state[b] = discounts @ simulator.rollout(policy, horizon).rewards
    return per_state


def _individually(policy: Any) -> FunctionPolicy:
    """Play `E[h(s)]` as the policy of every agent."""

    def probabilities(counts: NDArray[Any], n_agents: float) -> NDArray[np.float64]:
        if is_energy(policy) and n_agents == math.inf:
            mean = policy.mean_action(np.rint(counts * _MANY).astype(np.int64), _MANY)
        else:
            mean = policy.mean_action(counts)
        return np.asarray(mean.detach().cpu() if hasattr(mean, "detach") else mean)

    return FunctionPolicy(probabilities)


def is_energy(policy: Any) -> bool:
    """Whether teams of a policy follow Eq. (4.4)."""
    return getattr(policy, "family", None) == "energy"


def has_value(policy: Any, n_agents: float) -> bool:
    """Whether teams of a policy have a value at `N`; energy-based ones stay random at infinity."""
    return n_agents < math.inf or not is_energy(policy)


def _asked(policy: Callable[[int, float], Any], model: NetworkedModel) -> FunctionPolicy:
    """Play a policy of one agent as the policy of every agent."""
    decide = lru_cache(maxsize=_CACHE)(policy)

    def probabilities(counts: NDArray[Any], n_agents: float) -> NDArray[np.float64]:
        density = counts / n_agents if n_agents < math.inf else counts
        uniform = model.action_mask / model.action_mask.sum(axis=1, keepdims=True)
        probs = np.tile(uniform, (len(counts), 1, 1))
        for b, s in np.argwhere(density > 0.0).tolist():
            row = np.asarray(decide(s, density[b, s].item()))
            if row.shape != (model.n_actions,):
                expected = f"({model.n_actions},)"
                raise ValueError(
                    f"policy at state {s}: expected shape (A,) = {expected}, got {row.shape}"
                )
            probs[b, s] = row
        return probs

    return FunctionPolicy(probabilities)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values`, `(B,)`, by Student's t.

    A point for one value, or where the mean is not finite.
    """
    mean, n = float(values.mean()), len(values)
    if n == 1 or not math.isfinite(mean):
        return mean, mean
    half = _student(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def _student(freedom: int) -> float:
    """Return the 97.5 % point of Student's t, by its expansion in 1 / freedom."""
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2.0 / (1.0 - 0.95**2))
    z, v = NormalDist().inv_cdf(0.975), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )

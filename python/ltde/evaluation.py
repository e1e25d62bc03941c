"""The value of a policy from simulation, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltde.arguments import integer
from ltde.model import NetworkedModel
from ltde.policy import FunctionPolicy
from ltde.simulator import Simulator

__all__ = ["Evaluation", "evaluate"]

# Steps recorded at a time.
_BLOCK = 64


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


def evaluate(
    model: NetworkedModel,
    policy: Any,
    n_agents: float,
    n_replicas: int = 16,
    horizon: int | None = None,
    seed: int = 0,
    *,
    execution: Literal["team", "individual"] = "team",
    threads: int | None = None,
) -> Evaluation:
    """Estimate `J` of a policy by simulation from `P_0`.

    Parameters
    ----------
    model, n_agents, n_replicas, seed, threads
        As for `Simulator`; `n_agents` may be `math.inf`.
    policy
        What `Simulator.rollout` plays.
    horizon
        Number of steps; None takes the first with `gamma^horizon <= 1e-4`.
    execution
        `"team"` draws team actions from the team policy. `"individual"` plays `mean_action` as the
        policy of every agent: the same for multinomial teams, another policy for energy-based ones.

    Returns
    -------
    Evaluation
        Mean, 95 % interval, and what each state contributes.
    """
    if not isinstance(model, NetworkedModel):
        raise TypeError(f"model: expected an ltde.NetworkedModel, got {type(model).__name__}")
    if execution not in ("team", "individual"):
        raise ValueError(f'execution: expected "team" or "individual", got {execution!r}')
    if horizon is None:
        horizon = max(1, math.ceil(math.log(1e-4) / math.log(max(model.discount, 1e-9))))
    horizon = integer("horizon", horizon, 1, 2**48)
    if execution == "individual" and hasattr(policy, "mean_action"):
        policy = _individually(policy)
    simulator = Simulator(model, n_agents, n_replicas, seed=seed, threads=threads)
    per_state = np.zeros(simulator.counts.shape)
    played, weight = 0, 1.0
    while played < horizon:
        steps = min(_BLOCK, horizon - played)
        rollout = simulator.rollout(policy, steps, record=["rewards"])
        assert rollout.rewards is not None
        discounts = weight * model.discount ** np.arange(steps)
        per_state += np.tensordot(discounts, rollout.rewards, axes=1)
        weight *= model.discount**steps
        played += steps
    values = per_state.sum(axis=1)
    return Evaluation(
        mean=float(values.mean()),
        interval=_interval(values),
        per_state=per_state.mean(axis=0),
        values=values,
        n_agents=simulator.n_agents,
        horizon=horizon,
    )


def _individually(policy: Any) -> FunctionPolicy:
    """Play `E[h(s)]` as the policy of every agent."""

    def probabilities(counts: NDArray[Any], n_agents: float) -> NDArray[np.float64]:
        mean = policy.mean_action(counts)
        return np.asarray(mean.detach().cpu() if hasattr(mean, "detach") else mean)

    return FunctionPolicy(probabilities)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean."""
    mean, n = float(values.mean()), len(values)
    if n == 1:
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

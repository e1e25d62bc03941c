"""How far a Q-function sees: its dependence on what lies outside a ball, against the bound.

`decay_profile` helps to choose `k`, the radius of the balls that the critics read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltde.arguments import integer, population_size, positive, seed_number
from ltde.model import NetworkedModel
from ltde.paired import PairedSimulator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DecayProfile", "decay_profile"]

# Up to this many pairs (mu, h), "auto" enumerates them: about a second.
_EXACT_PAIRS = 10_000
# States that simulation looks at if none are named.
_SIMULATED_STATES = 4
# Share of the bound at `k_max` that the rewards beyond the default horizon may carry.
_TAIL = 0.01


@dataclass(frozen=True, eq=False)
class DecayProfile:
    """How much `Q_s` depends on what lies outside the ball `N_s^k`; see `decay_profile`.

    Attributes
    ----------
    k
        `(K + 1,)`, the radii 0, ..., `k_max`.
    states
        `(n,)`, the states looked at.
    profile
        `(K + 1, n)`, the largest `|Q_s(mu, h) - Q_s(mu', h')|` over pairs that agree on the ball:
        over all pairs if exact, over the pairs that were tried if simulated.
    profile_error
        `(K + 1, n)`, standard errors of `profile`; 0 if exact.
    mean, mean_error
        `(K + 1, n)`, the mean over the pairs tried, and its standard error; None if exact.
    bound
        `(K + 1,)`, `D gamma^ceil(k / 2) / (1 - gamma)`, with `D = max(r_max, 0) - min(r_min, 0)`
        of the team rewards; see `reward_span`.
    method
        "exact" or "simulation".
    n_agents, discount
        `N` and `gamma`.
    horizon
        Number of rewards that were added up; None if exact.
    """

    k: NDArray[np.int64]
    states: NDArray[np.int64]
    profile: NDArray[np.float64]
    profile_error: NDArray[np.float64]
    mean: NDArray[np.float64] | None
    mean_error: NDArray[np.float64] | None
    bound: NDArray[np.float64]
    method: Literal["exact", "simulation"]
    n_agents: int
    discount: float
    horizon: int | None

    def suggest(self, tolerance: float = 0.05) -> int | None:
        """Return the smallest radius from which on the profile is small.

        Small means: for every state looked at, `profile + 2 profile_error` is at most `tolerance`
        times the largest `profile` at `k = 0`, which is what a critic misses that sees nothing but
        its own state.

        Parameters
        ----------
        tolerance
            Share of the profile at `k = 0`, > 0.

        Returns
        -------
        k
            None if no radius up to `k_max` will do: take a larger `k_max`, or more replicas.
        """
        limit = positive("tolerance", tolerance) * float(self.profile[0].max())
        small = (self.profile + 2.0 * self.profile_error).max(axis=1) <= limit
        radii = self.k[np.logical_and.accumulate(small[::-1])[::-1]]
        return int(radii[0]) if len(radii) else None

    def plot(
        self, ax: Axes | None = None, *, color: str = "#0072B2", label: str | None = None
    ) -> Axes:
        """Draw profile and bound over `k`, on a logarithmic axis.

        Solid: the largest profile of all states, with two standard errors; thin: single states;
        dashed: the bound. What is below two of its standard errors is left out, and an open
        triangle stands at `profile + 2 profile_error` instead. Zeros have no place on the axis.

        Parameters
        ----------
        ax
            matplotlib axes to draw into; None makes a figure.
        color, label
            Colour of the lines, and their name in the legend, by default the discount.

        Raises
        ------
        ImportError
            If matplotlib is not installed and `ax` is None.
        """
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as cause:
                raise ImportError("plot needs matplotlib: pip install 'ltde[plot]'") from cause
            _, ax = pyplot.subplots(figsize=(6.0, 4.0), layout="constrained")
        name = rf"$\gamma$ = {self.discount:g}" if label is None else label
        error = 2.0 * self.profile_error
        clear = np.where(self.profile > error, self.profile, np.nan)
        if len(self.states) > 1:
            ax.plot(self.k, clear, color=color, lw=0.8, alpha=0.35)
        worst = self.k, (self.profile + error).argmax(axis=1)
        style: dict[str, Any] = {"color": color, "marker": "o", "ms": 5, "lw": 1.8, "capsize": 3}
        ax.errorbar(self.k, clear[worst], error[worst], label=f"measured, {name}", **style)
        limit = np.where(np.isnan(clear) & (error > 0.0), self.profile + error, np.nan)
        ax.plot(self.k, limit[worst], color=color, marker="v", mfc="white", ls="")
        if np.isfinite(self.bound).all():
            ax.plot(self.k, self.bound, color=color, ls="--", lw=1.5, label=f"bound, {name}")
        ax.set_yscale("log", nonpositive="clip")
        ax.set_xticks(self.k)
        ax.set_xlabel("radius $k$ of the ball around $s$")
        ax.set_ylabel("change of $Q_s$ by what is outside")
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        ax.legend(frameon=False)
        return ax


def decay_profile(
    model: NetworkedModel,
    policy: Any,
    k_max: int,
    *,
    n_agents: int,
    states: Sequence[int] | NDArray[np.int64] | None = None,
    method: Literal["auto", "exact", "simulation"] = "auto",
    outside: Literal["visited", "crowded"] = "visited",
    n_pairs: int = 8,
    n_replicas: int = 8,
    horizon: int | None = None,
    reward_span: float | None = None,
    seed: int = 0,
) -> DecayProfile:
    """Measure how much `Q_s(mu, h)` depends on what lies outside the balls `N_s^k`.

    That is the left side of Definition 3.4: the largest `|Q_s(mu, h) - Q_s(mu', h')|` over pairs
    that agree on `N_s^k`. By Lemma 3.5, its exponent corrected, it is at most
    `D gamma^ceil(k / 2) / (1 - gamma)`; how far below it stays tells which `k` is enough.

    Parameters
    ----------
    model
        The model.
    policy
        `(S, A)` probabilities, a policy with `mean_action` and multinomial teams (`TabularPolicy`,
        `SoftmaxPolicy`), or a function `policy(state, density) -> (A,)`. The exact method takes
        what `ExactSystem` takes: an `EnergyPolicy` too, but no function.
    k_max
        Largest radius.
    n_agents
        Number of agents `N`, finite.
    states
        States to look at. None: all if exact, four spread over 0, ..., S - 1 if simulated.
    method
        "exact" enumerates all `(mu, h)` by `ExactSystem`, "simulation" tries random pairs, "auto"
        is exact up to 10,000 pairs.
    outside
        How simulation makes `(mu', h')` of a draw `(mu, h)` from the visitation law `sigma` (4.2),
        keeping counts and team actions inside the ball. "visited": the agents outside are placed
        as in another draw from `sigma`, scaled to their number: what a learner meets. "crowded":
        they are all in one state, a random one of the nearest to the ball: closer to the worst
        case. Their actions are drawn by the policy.
    n_pairs
        Number of pairs tried for every `k` and state, at least 2.
    n_replicas
        Number of times that each pair is simulated, at least 4.
    horizon
        Number of rewards that are added up. None: as many as leave out at most 1 % of the bound at
        `k_max`.
    reward_span
        `D` of the bound. None: that of the enumerated team rewards if exact, else that of the
        model's `reward_range`, nan if it is infinite. That range is of one agent's `r`; team
        rewards carry `mu(s)`, so a much smaller `D` is often known.
    seed
        Integer in [0, 2^64).

    Returns
    -------
    DecayProfile
        The profile.

    Raises
    ------
    ValueError
        If an argument is out of range, or the policy changes with time or plays a masked action.
    TypeError
        If the method cannot take such a policy.

    Notes
    -----
    The two systems of a pair have common random numbers (see `ltde.paired`). The largest value over
    some pairs is a *lower* estimate of the largest over all. Noise does not lift it: pair and sign
    are chosen on one half of the replicas and measured on the other half, both ways round, so that
    the mean of the estimate is at most the largest difference among the pairs tried. Where it comes
    out negative, 0 is reported.

    Time is that of `n_pairs n_replicas (1 + n (k_max + 1)) horizon` steps, each about 20 ns an
    agent and 200 ns a state.

    Examples
    --------
    >>> import ltde
    >>> def local(s, mu, node, edge, prob, reward):
    ...     for i in range(mu.size):
    ...         prob[0, i] = 1.0 / mu.size
    ...     reward[0] = 1.0 - mu[0]
    >>> model = ltde.NetworkedModel(ltde.Graph.path(5), 1, local, discount=0.5)
    >>> profile = ltde.diagnostics.decay_profile(model, [[1.0]] * 5, 4, n_agents=3)
    >>> profile.profile.max(axis=1).round(4)
    array([0.4068, 0.0488, 0.0081, 0.    , 0.    ])
    >>> profile.suggest(tolerance=0.05)
    2
    """
    if not isinstance(model, NetworkedModel):
        raise TypeError(f"model: expected an ltde.NetworkedModel, got {type(model).__name__}")
    size = population_size(n_agents)
    if size == math.inf:
        raise ValueError("n_agents: expected a finite number, got inf")
    radii = np.arange(integer("k_max", k_max, 0, 2**16) + 1)
    for name, value, choices in (
        ("method", method, ("auto", "exact", "simulation")),
        ("outside", outside, ("visited", "crowded")),
    ):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    n_pairs = integer("n_pairs", n_pairs, 2, 2**31)
    n_replicas = integer("n_replicas", n_replicas, 4, 2**31)
    if horizon is None:
        tail = math.log(_TAIL) / math.log(model.discount) if model.discount > 0.0 else 1.0
        horizon = (k_max + 1) // 2 + math.ceil(tail)
    horizon = integer("horizon", horizon, 1, 2**31)
    seed = seed_number(seed)
    if reward_span is not None:
        reward_span = positive("reward_span", reward_span)
    if method == "auto":
        n, cells = int(size), int(model.action_mask.sum())
        few = math.comb(n + cells - 1, min(n, cells - 1, 8)) <= _EXACT_PAIRS  # C(18, 8) is more
        known = hasattr(policy, "log_prob") or not callable(policy)
        method = "exact" if few and known else "simulation"
    if states is None:
        spread = model.n_states if method == "exact" else min(model.n_states, _SIMULATED_STATES)
        states = np.linspace(0, model.n_states - 1, spread).round().astype(np.int64)
    if np.ndim(states) != 1 or len(states) == 0:
        raise ValueError(f"states: expected a list of states, got {states!r}")
    chosen = np.array([integer(f"states[{i}]", s, 0, model.n_states) for i, s in enumerate(states)])
    found: dict[str, Any] = {"mean": None, "mean_error": None}
    if method == "exact":
        from ltde.exact import ExactSystem

        system = ExactSystem(model, int(size), policy)
        found["profile"] = np.stack([system.decay(k)[chosen] for k in radii.tolist()])
        found["profile_error"] = np.zeros(found["profile"].shape)
        span = system.decay_bound(0) * (1.0 - model.discount)
    else:
        pairs = PairedSimulator(model, int(size), policy)
        samples = _samples(pairs, radii, chosen, outside, n_pairs, n_replicas, horizon, seed)
        found |= _summary(samples)
        low, high = model.reward_range
        span = max(high, 0.0) - min(low, 0.0) if math.isfinite(high - low) else math.nan
    span = span if reward_span is None else reward_span
    return DecayProfile(
        k=radii,
        states=chosen,
        bound=span * model.discount ** np.ceil(radii / 2) / (1.0 - model.discount),
        method="exact" if method == "exact" else "simulation",
        n_agents=int(size),
        discount=model.discount,
        horizon=None if method == "exact" else horizon,
        **found,
    )


def _samples(
    pairs: PairedSimulator,
    radii: NDArray[np.int64],
    states: NDArray[np.int64],
    outside: str,
    n_pairs: int,
    n_replicas: int,
    horizon: int,
    seed: int,
) -> NDArray[np.float64]:
    """Sample `Q_s - Q_s'` for pairs that agree on `N_s^k`, `(n_pairs, n_replicas, K + 1, n)`."""
    n_states = pairs.model.n_states
    drawn = pairs.visited(2 * n_pairs, seed)
    distances = [pairs.model.graph.distances(s) for s in states.tolist()]
    samples = np.empty((n_pairs, n_replicas, len(radii) * len(states)))
    for p, (start, another) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        rng = np.random.default_rng([seed, 1, p])
        others = []
        for k in radii:
            for far in distances:
                weights = another.sum(axis=1)
                if outside == "crowded" and (far > k).any():
                    nearest = np.flatnonzero(far == far[far > k].min())
                    weights = np.bincount([rng.choice(nearest)], minlength=n_states)
                others.append(pairs.replaced(start, far <= k, weights, rng))
        observed = np.tile(states, len(radii))
        samples[p] = pairs.differences(
            start, np.stack(others), observed, n_replicas, horizon, (seed, 2, p)
        )
    return samples.reshape(n_pairs, n_replicas, len(radii), -1)


def _summary(samples: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the largest and the mean `|E difference|` over pairs, of samples `(P, R, ...)`."""
    spread = samples.std(axis=1, ddof=1)
    halves = samples[:, ::2], samples[:, 1::2]
    largest, errors, sizes = [], [], []
    for choosing, measuring in (halves, halves[::-1]):
        guess, value = choosing.mean(axis=1), measuring.mean(axis=1)
        best = np.abs(guess).argmax(axis=0)[None]
        pick = partial(np.take_along_axis, indices=best, axis=0)
        largest.append(np.sign(pick(guess)) * pick(value))
        errors.append(pick(spread) / math.sqrt(measuring.shape[1]))
        sizes.append(np.sign(guess) * value)
    size = np.mean(sizes, axis=0)
    return {
        "profile": np.maximum(np.mean(largest, axis=0)[0], 0.0),
        "profile_error": np.mean(errors, axis=0)[0],  # as if the halves were fully correlated
        "mean": np.maximum(size.mean(axis=0), 0.0),
        "mean_error": size.std(axis=0, ddof=1) / math.sqrt(len(size)),
    }

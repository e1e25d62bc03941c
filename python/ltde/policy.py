"""Policies given as probabilities: tables, and functions that are stepped from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde import _core
from ltde.arguments import seed_number
from ltde.individual import IndividualTable

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = [
    "Counts",
    "FunctionPolicy",
    "IndividualPolicy",
    "TabularPolicy",
    "as_actions",
    "as_counts",
    "as_probabilities",
    "draw_actions",
]


class IndividualPolicy(Protocol):
    """What one agent needs in order to act, Eq. (2.8): `policy(state, density) -> (A,)`."""

    def __call__(self, state: int, density: float, /) -> ArrayLike:
        """Probabilities of the `A` actions for an agent in `state`, whose density is `density`."""


def as_probabilities(probs: ArrayLike) -> NDArray[np.float64]:
    """Convert probabilities to a C-contiguous float64 array; a float64 one is not copied.

    Raises
    ------
    TypeError
        If `probs` does not hold real numbers.
    """
    array = np.asarray(probs)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"probs: expected real numbers, got dtype {array.dtype}")
    return np.require(array, np.float64, ["C_CONTIGUOUS", "ALIGNED"])


class Counts(NamedTuple):
    """Checked counts: `(..., S)`, and the number of agents `N` of each row, `(..., 1)` float64."""

    counts: NDArray[Any]
    total: NDArray[np.float64]

    @property
    def density(self) -> NDArray[np.float64]:
        """`mu(s)`, `(..., S)`."""
        density: NDArray[np.float64] = self.counts / self.total
        return density


def as_counts(
    counts: ArrayLike,
    n_states: int,
    n_agents: ArrayLike | None,
    *,
    densities: bool = False,
) -> Counts:
    """Check counts `(..., S)`, integers or, with `densities`, also densities of the flow.

    `n_agents` None takes the sum of each row; otherwise a number, or `(..., 1)`, and rows need not
    sum to it.
    """
    array = np.asarray(counts)
    if array.dtype.kind not in ("iuf" if densities else "iu"):
        raise TypeError(f"counts: expected integers, got dtype {array.dtype}")
    if array.ndim < 1 or array.shape[-1] != n_states:
        raise ValueError(f"counts: expected shape (..., {n_states}), got {array.shape}")
    for wrong, expected in (
        (~(array >= 0), "expected a number >= 0"),
        (array > 2**53, "at most 2^53"),
    ):
        if wrong.any():
            index = np.unravel_index(int(wrong.argmax()), array.shape)
            raise ValueError(f"counts{_place(index)}: {expected}, got {array[index]}")
    kind = np.float64 if array.dtype.kind == "f" else np.int64
    checked = np.require(array, kind, ["C_CONTIGUOUS", "WRITEABLE"])
    if n_agents is None:
        total = checked.sum(axis=-1, keepdims=True, dtype=np.float64)
        # a row without agents has densities 0
        total = np.where(total > 0, total, 1.0)
    else:
        total = _totals(n_agents, (*array.shape[:-1], 1))
    return Counts(checked, np.ascontiguousarray(total))


def _totals(n_agents: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Check numbers of agents: one for all rows, or `(..., 1)`."""
    array = np.asarray(n_agents)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"n_agents: expected a number, got {n_agents!r}")
    if array.ndim and array.shape != shape:
        raise ValueError(f"n_agents: expected a number or shape {shape}, got {array.shape}")
    wrong = ~(array > 0)
    if wrong.any():
        index = np.unravel_index(int(wrong.argmax()), array.shape)
        place = _place(index) if array.ndim else ""
        raise ValueError(f"n_agents{place}: expected a number > 0, got {array[index]}")
    return np.broadcast_to(array.astype(np.float64), shape)


def _place(index: tuple[np.intp, ...]) -> str:
    """Write an index as the caller would."""
    return f"[{', '.join(map(str, index))}]"


def as_actions(actions: ArrayLike, checked: Counts, n_actions: int) -> NDArray[np.int64]:
    """Check team actions `(..., S, A)` against counts `(..., S)`."""
    array = np.asarray(actions)
    if array.dtype.kind not in "iu":
        raise TypeError(f"actions: expected integers, got dtype {array.dtype}")
    expected = (*checked.counts.shape, n_actions)
    if array.shape != expected:
        raise ValueError(f"actions: expected shape {expected}, got {array.shape}")
    counts = checked.counts
    # numbers above the count are refused before their sum could wrap
    wrong = ((array < 0) | (array > counts[..., None])).any(axis=-1)
    wrong |= array.sum(axis=-1, dtype=np.float64) != counts
    if wrong.any():
        index = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise ValueError(
            f"actions{_place(index)}: expected numbers >= 0 that sum to counts = "
            f"{counts[index]}, got {array[index].tolist()}"
        )
    return np.require(array, np.int64, ["C_CONTIGUOUS", "WRITEABLE"])


def draw_actions(core: Any, checked: Counts, n_actions: int, seed: int) -> NDArray[np.int64]:
    """Draw team actions `(..., S, A)` from a policy of the core."""
    shape = checked.counts.shape
    rows = checked.counts.reshape(-1, shape[-1])
    out = np.zeros((*rows.shape, n_actions), np.int64)
    seed = seed_number(seed)
    if rows.size:
        _core.sample_actions(core, rows, checked.total.reshape(-1), seed, out)
    return out.reshape(*shape, n_actions)


class TabularPolicy:
    """Action probabilities from a table: every agent of `s` takes `a` with probability `p(s, a)`.

    The team policy is the multinomial of Eq. (3.2). The density plays no part.

    Parameters
    ----------
    probs
        `(S, A)`, or `(T, S, A)` for a policy that changes with the step of a rollout (the first
        step of every rollout uses `probs[0]`). Rows are non-negative, sum to 1 within 1e-4 (room
        for float32) and are divided by their sum when drawn from; the table is copied.

    Raises
    ------
    ValueError
        Naming the first entry that is negative or not finite, or the first row whose sum is wrong.

    Examples
    --------
    >>> import ltde
    >>> policy = ltde.TabularPolicy([[0.5, 0.5], [1.0, 0.0]])
    >>> policy.probs.shape
    (2, 2)
    >>> policy.individual()(0, 0.25)
    array([0.5, 0.5])
    """

    def __init__(self, probs: ArrayLike) -> None:
        table = as_probabilities(probs).copy()
        if table.ndim not in (2, 3) or 0 in table.shape:
            raise ValueError(f"probs: expected shape (S, A) or (T, S, A), got {table.shape}")
        table.flags.writeable = False
        self._probs = table
        _, states, actions = times = table.reshape(-1, *table.shape[-2:]).shape
        self._core = _core.TabularPolicy(table.reshape(times[0], 1, states, actions))

    @classmethod
    def uniform(cls, model: NetworkedModel) -> TabularPolicy:
        """Return the policy that takes every allowed action of `model` with equal probability."""
        allowed = model.action_mask.astype(np.float64)
        return cls(allowed / allowed.sum(axis=1, keepdims=True))

    @property
    def probs(self) -> NDArray[np.float64]:
        """The table, `(S, A)` or `(T, S, A)`, read-only."""
        return self._probs

    @property
    def stationary(self) -> bool:
        """Whether the table has no time axis."""
        return self._probs.ndim == 2

    def sample(
        self, counts: ArrayLike, seed: int, n_agents: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Draw team actions from the multinomials (3.2), independently over states.

        Parameters
        ----------
        counts
            `(..., S)` integers.
        seed
            Integer in [0, 2^64).
        n_agents
            Plays no part: the table does not depend on densities.

        Returns
        -------
        ndarray
            `(..., S, A)` int64; rows sum to `counts`.

        Raises
        ------
        ValueError
            If the policy changes with time.
        """
        states, actions = self._stationary_table().shape
        return draw_actions(self._core, as_counts(counts, states, n_agents), actions, seed)

    def mean_action(
        self, counts: ArrayLike, n_agents: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Return `E[h(s)]`, the normalised rows of the table, `(..., S, A)`.

        Parameters
        ----------
        counts
            `(..., S)` integers or densities; only their shape matters.
        n_agents
            Plays no part.

        Raises
        ------
        ValueError
            If the policy changes with time.
        """
        table = self._stationary_table()
        checked = as_counts(counts, len(table), n_agents, densities=True)
        row = table / table.sum(axis=-1, keepdims=True)
        return np.broadcast_to(row, (*checked.counts.shape, table.shape[-1]))

    def log_prob(
        self, counts: ArrayLike, actions: ArrayLike, n_agents: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Return `log Pi_s(h(s) | mu(s))` of the multinomial team (3.2); (3.3) is its sum over `s`.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            Plays no part.

        Returns
        -------
        ndarray
            `(..., S)`; 0 for an empty team, `-inf` where an action of probability 0 is taken.

        Raises
        ------
        ValueError
            If the policy changes with time.
        """
        import torch

        from ltde.multinomial import multinomial_log_prob

        table = self._stationary_table()
        team = as_actions(actions, as_counts(counts, len(table), n_agents), table.shape[-1])
        log_pi = torch.from_numpy(table / table.sum(axis=-1, keepdims=True)).log()
        log_prob: NDArray[np.float64] = multinomial_log_prob(
            torch.from_numpy(team).double(), log_pi
        ).numpy()
        return log_prob

    def score(
        self, counts: ArrayLike, actions: ArrayLike, n_agents: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Return the gradient of `log Pi_s` in the logits of state `s`: `c(s, a) - n(s) p(s, a)`.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            Plays no part.

        Returns
        -------
        ndarray
            `(..., S, A)`.

        Raises
        ------
        ValueError
            If the policy changes with time.
        """
        mean = self.mean_action(counts, n_agents)
        checked = as_counts(counts, mean.shape[-2], n_agents)
        team = as_actions(actions, checked, mean.shape[-1])
        score: NDArray[np.float64] = team - checked.counts[..., None] * mean
        return score

    def _stationary_table(self) -> NDArray[np.float64]:
        if not self.stationary:
            raise ValueError("probs: the policy changes with time; use TabularPolicy(probs[t])")
        return self._probs

    def individual(self) -> IndividualTable:
        """Return the policy of one agent: `(state, density) -> (A,)`.

        Raises
        ------
        ValueError
            If the policy changes with time.
        """
        if not self.stationary:
            raise ValueError("probs: a policy that changes with time has no individual policy")
        return IndividualTable(self._probs)

    def __repr__(self) -> str:
        """Show the shape."""
        return f"TabularPolicy(shape={self._probs.shape})"

    def __reduce__(self) -> tuple[type[TabularPolicy], tuple[NDArray[np.float64]]]:
        """Pickle by the table."""
        return type(self), (self._probs,)


class FunctionPolicy:
    """A policy computed by a Python function of the whole state: baselines that see more.

    Parameters
    ----------
    function
        `function(counts, n_agents) -> probs`: `counts` is the `(B, S)` array of the simulator
        (read-only; densities at `n_agents = inf`), `probs` is `(B, S, A)` or `(S, A)`.

    Notes
    -----
    It is called once a step, so a rollout returns to Python between steps. It is in general not of
    the decentralised form (2.8), since it may read the density of other states.

    Examples
    --------
    >>> import numpy as np
    >>> import ltde
    >>> stay_if_alone = ltde.FunctionPolicy(
    ...     lambda counts, n: np.where(counts[..., None] > 1, [0.5, 0.5], [1.0, 0.0])
    ... )
    """

    def __init__(self, function: Callable[[NDArray[np.generic], float], ArrayLike]) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        self.function = function

    def __repr__(self) -> str:
        """Show the function."""
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"FunctionPolicy({name})"

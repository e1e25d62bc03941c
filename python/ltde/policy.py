"""Policies given as probabilities: tables, and functions that are stepped from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde import _core

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["FunctionPolicy", "IndividualPolicy", "TabularPolicy", "as_probabilities"]


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

    def individual(self) -> IndividualPolicy:
        """Return the policy of one agent: `(state, density) -> (A,)`.

        Raises
        ------
        ValueError
            If the policy changes with time.
        """
        if not self.stationary:
            raise ValueError("probs: a policy that changes with time has no individual policy")
        table = self._probs

        def individual(state: int, density: float, /) -> NDArray[np.float64]:
            row: NDArray[np.float64] = table[state]
            return row

        return individual

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

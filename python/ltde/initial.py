"""Initial laws that are more than an array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DirichletInitial"]


@dataclass(frozen=True, eq=False)
class DirichletInitial:
    """Agents independent with a law that is itself drawn from a Dirichlet distribution.

    Each draw from `P_0` takes a density from `Dirichlet(alpha)` and places the `N` agents
    independently by it; at `N = inf` the density itself is the start. Small `alpha` gives densities
    concentrated on few states, large `alpha` nearly fixed ones.

    Parameters
    ----------
    alpha
        `(S,)` positive numbers.

    Raises
    ------
    ValueError
        If `alpha` is not one-dimensional or holds a number that is not positive and finite.

    Examples
    --------
    >>> import ltde
    >>> ltde.DirichletInitial([1.0, 1.0, 0.5]).alpha
    array([1. , 1. , 0.5])
    """

    alpha: NDArray[np.float64]

    def __init__(self, alpha: ArrayLike) -> None:
        values = np.array(alpha, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"alpha: expected shape (S,), got {values.shape}")
        # below 1e-300 the logarithms of the gamma variates would overflow
        bad = np.flatnonzero(~((values >= 1e-300) & np.isfinite(values)))
        if bad.size:
            raise ValueError(
                f"alpha[{bad[0]}]: expected a positive number (at least 1e-300), got "
                f"{values[bad[0]]}"
            )
        values.flags.writeable = False
        object.__setattr__(self, "alpha", values)

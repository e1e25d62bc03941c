"""Compositions: the ways to divide agents over actions or states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["compositions"]


def compositions(n: int, k: int) -> NDArray[np.int64]:
    """Return all rows of `k` counts that sum to `n`, `(C(n + k - 1, k - 1), k)`.

    The order is lexicographic.

    Parameters
    ----------
    n, k
        The sum, at least 0, and the number of parts, at least 1.
    """
    rest = np.array([n], dtype=np.int64)
    levels = []
    for _ in range(k - 1):
        origin = np.repeat(np.arange(len(rest)), rest + 1)
        value = np.arange(len(origin)) - np.repeat(np.cumsum(rest + 1) - rest - 1, rest + 1)
        levels.append((origin, value))
        rest = rest[origin] - value
    rows = np.empty((len(rest), k), dtype=np.int64)
    rows[:, -1] = rest
    row = np.arange(len(rest))
    for column, (origin, value) in reversed(list(enumerate(levels))):
        rows[:, column] = value[row]
        row = origin[row]
    return rows

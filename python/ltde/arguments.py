"""Checks of arguments that several modules take; every message names argument and value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["integer", "population_size", "positive", "seed_number"]


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an integer in [low, high)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not low <= value < high:
        raise ValueError(f"{name}: expected an integer in [{low}, {high}), got {value}")
    return int(value)


def positive(name: str, value: Any, high: float = 1e50) -> float:
    """Return `value` as a number in (0, high]."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name}: expected a number > 0, got {value!r}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    if value > high:
        raise ValueError(f"{name}: at most {high:g}, got {value}")
    return float(value)


def seed_number(seed: Any) -> int:
    """Return a seed, an integer in [0, 2^64)."""
    return integer("seed", seed, 0, 2**64)


def population_size(value: Any) -> int | float:
    """Return a number of agents, an integer from 1 to 2^53 or `math.inf`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"n_agents: expected an integer or math.inf, got {value!r}")
    if value == math.inf:
        return math.inf
    if not (value >= 1 and value == math.floor(value)):
        raise ValueError(f"n_agents: expected an integer >= 1 or math.inf, got {value}")
    if value > 2**53:
        raise OverflowError(f"n_agents: at most 2^53 = {2**53}, got {value}")
    return int(value)

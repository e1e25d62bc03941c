"""Policies of one agent, `(state, density) -> (A,)`, that can leave ltde as plain arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from ltde.energy import EnergyPolicy

__all__ = ["IndividualEnergy", "IndividualSoftmax", "IndividualTable"]

# Agents up to which `IndividualEnergy.to_numpy` tabulates all numbers by itself.
_ALL_NUMBERS = 1000


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class IndividualTable:
    """The policy of one agent of a `TabularPolicy`; the density plays no part.

    Attributes
    ----------
    probs
        `(S, A)`, read-only.
    """

    probs: NDArray[np.float64]

    def __call__(self, state: int, density: float, /) -> NDArray[np.float64]:
        """Return the row of a state, `(A,)`."""
        row: NDArray[np.float64] = self.probs[state]
        return row

    def table(self, densities: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities at `densities (D,)` in every state, `(S, D, A)`."""
        times = len(_densities(densities))
        return np.repeat(self.probs[:, None], times, axis=1)

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Return `probs (S, A)`: an agent in `state` acts by `probs[state]`."""
        return {"probs": self.probs.copy()}

    def __repr__(self) -> str:
        """Show the shape."""
        return f"IndividualTable(shape={self.probs.shape})"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class IndividualSoftmax:
    """The policy of one agent of a `SoftmaxPolicy`, with the weights of when it was made.

    Attributes
    ----------
    theta, b
        `(S, M, 1 + A)` and `(S, M)`, weights and signs of the networks.
    action_mask
        `(S, A)` bool.
    tau, density_scale, input_scale
        As those of the policy.
    """

    theta: NDArray[Any]
    b: NDArray[Any]
    action_mask: NDArray[np.bool_]
    tau: float
    density_scale: float
    input_scale: float

    def __call__(self, state: int, density: float, /) -> NDArray[np.float64]:
        """Return the probabilities of the actions, `(A,)`; 0 for masked ones."""
        x = self.density_scale * density
        output = at_vertices(self.theta[state], self.b[state], x, self.input_scale)
        return masked_softmax(self.tau * output, self.action_mask[state])

    def table(self, densities: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities at `densities (D,)` in every state, `(S, D, A)`."""
        grid = _densities(densities).tolist()
        out = np.empty((len(self.b), len(grid), self.action_mask.shape[1]))
        for s, d in np.ndindex(out.shape[:2]):
            out[s, d] = self(s, grid[d])
        return out

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the closed form, for an agent that has NumPy and nothing else.

        Returns
        -------
        dict
            `theta (S, M, 1 + A)`, `b (S, M)`, `action_mask (S, A)`, and the numbers `tau`,
            `density_scale` and `input_scale`; `numpy.savez(file, **arrays)` keeps them in a file.

        Notes
        -----
        An agent in state `s` that sees `density = mu(s)` acts by `probs`, with `p` this dict::

            theta, b, mask = p["theta"][s], p["b"][s], p["action_mask"][s]
            z = p["input_scale"] * (p["density_scale"] * density * theta[:, :1] + theta[:, 1:])
            logits = p["tau"] * (b @ np.maximum(z, 0.0)) / len(b) ** 0.5
            weights = np.exp(np.where(mask, logits, -np.inf) - logits[mask].max())
            probs = weights / weights.sum()
        """
        return {
            "theta": self.theta.astype(np.float64),
            "b": self.b.astype(np.float64),
            "action_mask": self.action_mask.copy(),
            "tau": np.array(self.tau),
            "density_scale": np.array(self.density_scale),
            "input_scale": np.array(self.input_scale),
        }

    def __repr__(self) -> str:
        """Show the sizes."""
        states, width = self.b.shape
        actions = self.action_mask.shape[1]
        return f"IndividualSoftmax(n_states={states}, width={width}, n_actions={actions})"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class IndividualEnergy:
    """A policy of one agent recovered from an `EnergyPolicy`; see `EnergyPolicy.individual`.

    Attributes
    ----------
    policy
        The team policy, with the weights of when this was made.
    n_agents
        `N` for which it is recovered.
    formula
        `"mean"` or `"dirac"`.
    """

    policy: EnergyPolicy
    n_agents: int
    formula: Literal["mean", "dirac"]

    def __call__(self, state: int, density: float, /) -> NDArray[np.float64]:
        """Return the probabilities of the actions, `(A,)`; 0 for masked ones."""
        row: NDArray[np.float64] = self._rows(density, [state])[0]
        return row

    def table(self, densities: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities at `densities (D,)` in every state, `(S, D, A)`."""
        grid = _densities(densities).tolist()
        states = range(self.policy.n_states)
        out = np.empty((len(states), len(grid), self.policy.n_actions))
        for d, density in enumerate(grid):
            out[:, d] = self._rows(density, states)
        return out

    def to_numpy(self, densities: ArrayLike | None = None) -> dict[str, NDArray[Any]]:
        """Return a table, since `E[h(s)]` has no closed form.

        Parameters
        ----------
        densities
            `(D,)`; None takes `n / N` for all `n = 0..N`, up to `N = 1000`.

        Returns
        -------
        dict
            `densities (D,)` and `probs (S, D, A)`. With all numbers, `n` agents in state `s` act by
            `probs[s, n]`; with a grid, one takes a near density or interpolates between two.

        Raises
        ------
        ValueError
            If `densities` is None and `N` is larger.
        """
        if densities is None:
            if self.n_agents > _ALL_NUMBERS:
                raise ValueError(
                    f"densities: expected a grid, as n_agents = {self.n_agents} is more than "
                    f"{_ALL_NUMBERS}"
                )
            densities = np.arange(self.n_agents + 1) / self.n_agents
        grid = _densities(densities)
        return {"densities": grid.copy(), "probs": self.table(grid)}

    def _rows(self, density: float, states: Sequence[int]) -> NDArray[np.float64]:
        """Return the probabilities of some states at one density, `(len(states), A)`."""
        policy, n = self.policy, max(1, round(self.n_agents * density))
        if self.formula == "mean":
            counts = np.zeros(policy.n_states, np.int64)
            counts[states] = n
            # n agents at this density, whatever N it stands for
            mean = policy.mean_action(counts, n / density if density > 0.0 else math.inf)
            rows: NDArray[np.float64] = mean.detach().numpy()[states]
            return rows
        arrays = (policy.theta, policy.b, policy.action_mask)
        theta, b, mask = (x.detach().numpy() for x in arrays)
        x, unit = policy.density_scale * density, policy.input_scale
        tau = policy.tau / n
        return np.stack(
            [masked_softmax(tau * at_vertices(theta[s], b[s], x, unit), mask[s]) for s in states]
        )

    def __repr__(self) -> str:
        """Show for how many agents it is, and the formula."""
        return f"IndividualEnergy(n_agents={self.n_agents}, formula={self.formula!r})"


def at_vertices(
    theta: NDArray[Any], b: NDArray[Any], density: float, unit: float
) -> NDArray[np.float64]:
    """Return `f` of one state at `unit * (density, e_a)` for every action."""
    row = theta.astype(np.float64)
    z = unit * (density * row[:, :1] + row[:, 1:])
    output: NDArray[np.float64] = b @ np.maximum(z, 0.0) / len(z) ** 0.5
    return output


def masked_softmax(logits: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the softmax of the allowed entries of `logits (A,)`; the others are 0."""
    weights = np.exp(np.where(mask, logits, -np.inf) - logits[mask].max())
    row: NDArray[np.float64] = weights / weights.sum()
    return row


def _densities(densities: ArrayLike) -> NDArray[np.float64]:
    """Check densities `(D,)`."""
    array = np.asarray(densities)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"densities: expected real numbers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"densities: expected shape (D,), got {array.shape}")
    for i in np.flatnonzero(~((array >= 0.0) & (array <= 1.0))).tolist():
        raise ValueError(f"densities[{i}]: expected a number in [0, 1], got {array[i]}")
    return array.astype(np.float64)

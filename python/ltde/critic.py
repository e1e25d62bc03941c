"""Localised critics: one two-layer network a state, which reads the ball N_s^k and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ltde.networks import initial_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltde.graph import Graph

__all__ = ["Critic"]


@dataclass(frozen=True, slots=True)
class _Group:
    """States whose balls are of about the same size, padded to the largest of them.

    Attributes
    ----------
    states
        `(G,)` the states.
    ball
        `(G, K)` states of each ball, 0 where padded.
    inside
        `(G, K)` 1 where a state belongs to the ball, 0 where padded.
    scale
        `(G,)` the factor `1 / sqrt(1 + |N_s^k|)` of the input, which gives `||zeta_s^k|| <= 1`.
    """

    states: Tensor
    ball: Tensor
    inside: Tensor
    scale: Tensor


class Critic:
    """The critics of all states: `f(zeta_s^k; omega_s)` with two-layer networks, Eq. (4.3).

    The input of `s` is `zeta_s^k = (density_scale mu(N_s^k), h(N_s^k)) / sqrt(1 + |N_s^k|)`;
    critics of costates leave out `h`, and `constant_input` adds a 1. Balls differ in size: states
    are grouped by it, each group padded to less than twice the size of its smallest ball, so that
    a hub costs what it needs and no more.

    Parameters
    ----------
    graph
        The graph of states.
    k
        Radius of the balls.
    width
        Number `M` of neurons of each state.
    n_actions
        `A` if the critics read `h`, 0 if they read densities only.
    constant_input
        Whether the input holds a constant 1.
    symmetric
        Start from `f = 0`.
    radius
        `R` of the projection (4.12); `inf` does not project.
    seed
        Seed of the initial weights.
    dtype, device
        Of the parameters.

    Attributes
    ----------
    omega, omega_0, omega_mean, b : list of torch.Tensor
        For each group of `G` states: weights `(G, M, d)`, their start, the running average (4.13),
        and the signs `(G, M)`. Padded inputs are 0, so their weights never move.
    """

    def __init__(
        self,
        graph: Graph,
        k: int,
        width: int,
        *,
        n_actions: int,
        constant_input: bool,
        symmetric: bool,
        radius: float,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.k, self.width, self.radius = k, width, radius
        self.n_actions, self.constant_input = n_actions, constant_input
        self.n_states = graph.n_states
        self.dtype, self.device = dtype, device
        self.groups = [
            _Group(*(x.to(device) for x in group)) for group in _grouped(graph, k, dtype)
        ]
        self.b, self.omega_0 = [], []
        for g, group in enumerate(self.groups):
            inputs = group.ball.shape[1] * (1 + n_actions) + constant_input
            shape = (len(group.states), width, inputs)
            weights, signs = initial_weights(
                shape, symmetric=symmetric, seed=(seed + g) % 2**63, dtype=torch.float64
            )
            # N(0, I / d) with d the length without padding
            own = group.inside.double().sum(1).cpu() * (1 + n_actions) + constant_input
            weights *= (inputs / own).sqrt()[:, None, None]
            self.omega_0.append(weights.to(device, dtype))
            self.b.append(signs.to(device, dtype))
        self.omega = [w.clone() for w in self.omega_0]
        self.omega_mean = [w.clone() for w in self.omega_0]
        self.n_steps = 0

    def inputs(self, density: Tensor, h: Tensor | None = None) -> list[Tensor]:
        """Return `zeta_s^k` for each group, `(G, n, d)`.

        Parameters
        ----------
        density
            Scaled densities `(n, S)`.
        h
            Action distributions `(n, S, A)`, or masses; None for critics of densities.
        """
        density = density.to(self.dtype)
        result = []
        for group in self.groups:
            size = group.ball.shape
            parts = [density[:, group.ball.reshape(-1)].reshape(-1, *size)]
            if h is not None:
                around = h.to(self.dtype)[:, group.ball.reshape(-1)]
                parts += [
                    around.reshape(-1, *size, self.n_actions)[..., a] for a in range(self.n_actions)
                ]
            # padding is cut out by `where`, so that nothing outside the ball can get in
            parts = [torch.where(group.inside > 0, part, 0.0) for part in parts]
            if self.constant_input:
                parts.append(torch.ones_like(parts[0][..., :1]))
            zeta = torch.cat(parts, dim=-1) * group.scale[:, None]
            result.append(zeta.transpose(0, 1).contiguous())
        return result

    def values(self, inputs: list[Tensor], *, mean: bool = False) -> Tensor:
        """Return `f(zeta_s^k; omega_s)`, `(n, S)`.

        Parameters
        ----------
        inputs
            As `inputs` returns them.
        mean
            Take the running average of the weights, Eq. (4.13).
        """
        weights = self.omega_mean if mean else self.omega
        n = inputs[0].shape[1]
        result = torch.empty(n, self.n_states, dtype=self.dtype, device=self.device)
        for group, x, w, b in zip(self.groups, inputs, weights, self.b, strict=True):
            z = torch.bmm(x, w.transpose(1, 2))
            result[:, group.states] = _output(z, b).T
        return result

    def td_step(
        self,
        inputs: list[Tensor],
        targets: Tensor,
        rate: float,
        *,
        keep: Tensor | None = None,
        normalized: bool = False,
    ) -> Tensor:
        """Take one semi-gradient step (4.11), project (4.12) and average (4.13).

        `omega_s -= rate mean_l [(f(zeta_l; omega_s) - target_l) grad f(zeta_l; omega_s)]`.

        Parameters
        ----------
        inputs
            As `inputs` returns them, for `n` samples.
        targets
            `(n, S)`; for TD(0) `r_s + gamma Q_s(zeta'; omega_s)`.
        rate
            `eta_critic`.
        keep
            `(n,)` 0 for samples to leave out of the mean, 1 for the others.
        normalized
            Divide the step of each state by the mean square of its input.

        Returns
        -------
        Tensor
            `(n, S)` the errors `f - target`.
        """
        n = inputs[0].shape[1]
        weight = torch.full((n,), 1.0 / n, dtype=self.dtype, device=self.device)
        if keep is not None:
            weight = keep.to(self.dtype) / keep.sum().clamp(min=1)
        errors = torch.empty(n, self.n_states, dtype=self.dtype, device=self.device)
        self.n_steps += 1
        for g, (group, x) in enumerate(zip(self.groups, inputs, strict=True)):
            w, b = self.omega[g], self.b[g]
            z = torch.bmm(x, w.transpose(1, 2))
            error = _output(z, b) - targets[:, group.states].T.to(self.dtype)
            errors[:, group.states] = error.T
            pull = (error * weight)[:, :, None] * (z > 0) * b[:, None, :]
            step = torch.bmm(pull.transpose(1, 2), x)
            size = rate / math.sqrt(self.width)
            if normalized:
                power = ((x * x).sum(-1) * weight).sum(-1)
                step *= (size / (power + 1e-6))[:, None, None]
            else:
                step *= size
            w -= step
            _project(w, self.omega_0[g], self.radius / math.sqrt(self.width))
            # omega_mean <- (t + 1) / (t + 2) omega_mean + 1 / (t + 2) omega
            self.omega_mean[g].lerp_(w, 1.0 / (self.n_steps + 1))
        return errors

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by name, and the number of steps."""
        named = dict(self._named())
        return {**named, "n_steps": torch.tensor(self.n_steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict` of a critic of the same sizes."""
        for name, tensor in self._named():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"critic.{name}: expected shape {tuple(tensor.shape)}, got "
                    f"{tuple(state[name].shape)}"
                )
            tensor.copy_(state[name])
        self.n_steps = int(state["n_steps"])

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("omega", "omega_0", "omega_mean", "b"):
            for g, tensor in enumerate(getattr(self, name)):
                yield f"{name}.{g}", tensor


def _output(z: Tensor, b: Tensor) -> Tensor:
    """Return `M^{-1/2} sum_m b_m ReLU(z_m)` of `z (G, n, M)`: `(G, n)`."""
    value: Tensor = torch.bmm(z.relu(), b.unsqueeze(-1)).squeeze(-1) / math.sqrt(b.shape[1])
    return value


def _project(weights: Tensor, start: Tensor, radius: float) -> None:
    """Project on the sup-norm ball around `start`, in place."""
    if radius < math.inf:
        torch.clamp(weights, start - radius, start + radius, out=weights)


def _grouped(
    graph: Graph, k: int, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Sort the balls into groups by size, the largest less than twice the smallest."""
    balls = graph.balls(k)
    sizes = np.diff(balls.indptr)
    order = np.argsort(sizes, kind="stable")
    start = 0
    while start < len(order):
        small = sizes[order[start]]
        end = int(np.searchsorted(sizes[order], 2 * small))
        states = np.sort(order[start:end])
        own = sizes[states]
        column = np.arange(own.max())
        inside = column < own[:, None]
        place = np.where(inside, balls.indptr[states][:, None] + column, 0)
        ball = np.where(inside, balls.indices[place], 0)
        yield (
            torch.from_numpy(states),
            torch.from_numpy(ball),
            torch.from_numpy(inside).to(dtype),
            torch.from_numpy(1.0 / np.sqrt(1.0 + own)).to(dtype),
        )
        start = end

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
    from collections.abc import Iterator, Sequence

    from ltde.graph import Graph

__all__ = ["Critic"]

# Numbers of a block of states: few enough for the cache, many beside the overhead of a call.
_BLOCK = 1 << 19


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
    rows
        `(G, d)` the row of `Critic._table` that each input reads.
    """

    states: Tensor
    ball: Tensor
    inside: Tensor
    scale: Tensor
    rows: Tensor


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
    average
        Whether to keep the running average (4.13).
    seed
        Seed of the initial weights.
    dtype, device
        Of the parameters.

    Attributes
    ----------
    omega, omega_0, omega_mean, b : list of torch.Tensor
        For each group of `G` states: weights `(G, M, d)`, their start, the running average (4.13)
        (an empty list without `average`), and the signs `(G, M)`. Padded inputs are 0, so their
        weights never move. Weights lie in memory as `(G, d, M)`, which suits the products.
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
        average: bool = True,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.k, self.width, self.radius = k, width, radius
        self.n_actions, self.constant_input = n_actions, constant_input
        self.n_states = graph.n_states
        self.dtype, self.device = dtype, device
        self.groups = [
            _Group(*(x.to(device) for x in group))
            for group in _grouped(graph, k, n_actions, constant_input, dtype)
        ]
        states = torch.cat([group.states for group in self.groups])
        self._by_group, self._by_state = states, states.argsort()
        self.b, self.omega_0 = [], []
        for g, group in enumerate(self.groups):
            inputs = group.rows.shape[1]
            shape = (len(group.states), width, inputs)
            weights, signs = initial_weights(
                shape, symmetric=symmetric, seed=(seed + g) % 2**63, dtype=torch.float64
            )
            # N(0, I / d) with d the length without padding
            own = group.inside.double().sum(1).cpu() * (1 + n_actions) + constant_input
            weights *= (inputs / own).sqrt()[:, None, None]
            inner = weights.to(device, dtype).transpose(1, 2).contiguous()
            self.omega_0.append(inner.transpose(1, 2))
            self.b.append(signs.to(device, dtype))
        self.omega = [w.clone() for w in self.omega_0]
        self.omega_mean = [w.clone() for w in self.omega_0] if average else []
        self.n_steps = 0

    @torch.no_grad()
    def inputs(self, density: Tensor, h: Tensor | None = None) -> list[Tensor]:
        """Return `zeta_s^k` for each group, `(G, n, d)`.

        Parameters
        ----------
        density
            Scaled densities `(n, S)`.
        h
            Action distributions `(n, S, A)`, or masses; None for critics of densities.
        """
        table = self._table(density.unsqueeze(0), None if h is None else h.unsqueeze(0))
        everything = slice(None)
        return [self._read(table, g, everything)[0] for g in range(len(self.groups))]

    @torch.no_grad()
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
        result = torch.empty(self.n_states, n, dtype=self.dtype, device=self.device)
        for g, part, rows in self._blocks(n):
            terms = _terms(inputs[g][part], weights[g][part].transpose(1, 2), self._signs(g, part))
            torch.sum(terms, -1, out=result[rows])
        return result[self._by_state].T

    @torch.no_grad()
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
            `(n,)` 0 for samples to leave out, whatever they hold, 1 for the others.
        normalized
            Divide the step of each state by the mean square of its input.

        Returns
        -------
        Tensor
            `(n, S)` the errors `f - target`, 0 for samples left out.
        """
        n = inputs[0].shape[1]
        wanted = targets.to(self.dtype).T[self._by_group]
        left_out, kept = None, torch.full((1,), n, device=self.device)
        if keep is not None:
            left_out, kept = _left_out(keep), keep.sum().clamp(min=1).view(1)
        if left_out is not None:
            wanted.index_fill_(1, left_out, 0.0)
        errors = torch.empty_like(wanted)
        for g, part, rows in self._blocks(n):
            x = inputs[g][part]
            if left_out is not None:
                x = x.index_fill(1, left_out, 0.0)
            errors[rows] = self._learn(
                g, part, x[None], wanted[None, rows], kept, rate, normalized, (0,)
            )[0]
        self.n_steps += 1
        return errors[self._by_state].T

    @torch.no_grad()
    def td_steps(
        self,
        density: Tensor,
        targets: Tensor,
        rate: float,
        *,
        order: Sequence[int],
        h: Tensor | None = None,
        discount: float = 0.0,
        keep: Tensor | None = None,
        normalized: bool = False,
    ) -> Tensor:
        """Take many steps as `td_step` does, a block of states at a time.

        The critics of different states never meet, so each block takes all its steps while its
        weights are in the cache.

        Parameters
        ----------
        density
            Scaled densities `(T, n, S)`, the samples of each of `T` times; `(T + 1, n, S)` with
            `discount`.
        targets
            `(T, n, S)`; only those of the times in `order` are read.
        rate
            `eta_critic`.
        order
            The times of the steps, one after another.
        h
            Action distributions or masses of the same times, `(..., n, S, A)`; None for critics of
            densities.
        discount
            If not 0, `discount f` of the next time is added to the targets, as TD(0) does.
        keep
            `(T, n)` 0 for samples to leave out, whatever they hold, 1 for the others.
        normalized
            Divide the step of each state by the mean square of its input.

        Returns
        -------
        Tensor
            `(S,)` the mean square error of each state over all steps and the samples they kept.
        """
        times, n, _ = targets.shape
        table = self._table(density, h)
        if discount:
            table = torch.cat([table[:times], table[1 : times + 1]], dim=2)
        kept = torch.full((times,), n, device=self.device)
        if keep is not None:
            kept = keep.sum(1)
            for t, row in enumerate(keep):
                left_out = _left_out(row)
                if left_out is not None:
                    table[t].view(table.shape[1], -1, n).index_fill_(2, left_out, 0.0)
        total = torch.empty(self.n_states, dtype=torch.float64, device=self.device)
        for g, part, rows in self._blocks(table.shape[2]):
            wanted = targets.index_select(2, self._by_group[rows]).to(self.dtype)
            if keep is not None:
                wanted.masked_fill_((keep == 0).unsqueeze(2), 0.0)
            errors = self._learn(
                g,
                part,
                self._read(table[:times], g, part),
                wanted.transpose(1, 2).contiguous(),
                kept.clamp(min=1),
                rate,
                normalized,
                order,
                discount,
            )
            total[rows] = errors.square_().sum((0, 2), dtype=torch.float64)
        self.n_steps += len(order)
        return total[self._by_state] / kept[list(order)].sum().clamp(min=1)

    def _learn(
        self,
        g: int,
        part: slice,
        x: Tensor,
        targets: Tensor,
        kept: Tensor,
        rate: float,
        normalized: bool,
        order: Sequence[int],
        discount: float = 0.0,
    ) -> Tensor:
        """Take steps with `G` states of a group, and return the errors `(len(order), G, n)`.

        Parameters
        ----------
        g, part
            The group and the states in it.
        x, targets
            Inputs `(T, G, n, d)` and targets `(T, G, n)`, 0 for samples left out; with `discount`,
            `n` inputs of the next times follow the `n` of these.
        kept
            `(T,)` how many samples are not left out, at least 1.
        rate, normalized, order, discount
            As for `td_steps`.
        """
        w = self.omega[g][part].transpose(1, 2)
        start = self.omega_0[g][part].transpose(1, 2)
        mean = self.omega_mean[g][part].transpose(1, 2) if self.omega_mean else None
        signs = self._signs(g, part)
        factor = -rate / math.sqrt(self.width) / kept.to(self.dtype).view(-1, 1, 1)
        n = targets.shape[2]
        if normalized:
            power = torch.linalg.vector_norm(x[:, :, :n], dim=(2, 3)).square_().unsqueeze(2)
            factor = factor / (power / kept.view(-1, 1, 1) + 1e-6)
        errors = torch.empty(len(order), *targets.shape[1:], dtype=x.dtype, device=x.device)
        inputs, wanted = x.unbind(), targets.unbind()
        factors = factor.expand(-1, len(w), 1).unbind()
        for step, (t, error) in enumerate(zip(order, errors.unbind(), strict=True)):
            here, target = inputs[t], wanted[t]
            terms = _terms(here, w, signs)
            values = terms.sum(-1)
            if discount:
                target = torch.add(target, values[:, n:], alpha=discount)
                here, terms, values = here[:, :n], terms[:, :n], values[:, :n]
            torch.sub(values, target, out=error)
            # grad f in W_m is M^{-1/2} b_m 1{x . W_m > 0} x, and sign(terms) = b_m 1{x . W_m > 0}
            pull = here * (error * factors[t]).unsqueeze(2)
            w.baddbmm_(pull.transpose(1, 2), terms.sign_())
            _project(w, start, self.radius / math.sqrt(self.width))
            if mean is not None:
                # omega_mean <- (t + 1) / (t + 2) omega_mean + 1 / (t + 2) omega
                mean.lerp_(w, 1.0 / (self.n_steps + step + 2))
        return errors

    def _signs(self, g: int, part: slice) -> Tensor:
        """Return `M^{-1/2} b` of some states of a group, `(G, 1, M)`."""
        return self.b[g][part].unsqueeze(1) / math.sqrt(self.width)

    def _read(self, table: Tensor, g: int, part: slice) -> Tensor:
        """Return the inputs `(T, G, n, d)` of some states of a group, from a table."""
        rows, scale = self.groups[g].rows[part], self.groups[g].scale[part]
        found = table.index_select(1, rows.reshape(-1)).view(len(table), *rows.shape, -1)
        return found.mul_(scale[:, None, None]).transpose(2, 3)

    def _table(self, density: Tensor, h: Tensor | None) -> Tensor:
        """Return what inputs are made of, `(T, rows, n)`: densities, 0, 1, and `h` by action."""
        times, n, states = density.shape
        rows = states * (1 + self.n_actions) + 2
        table = torch.empty(times, rows, n, dtype=self.dtype, device=self.device)
        table[:, :states] = density.transpose(1, 2)
        table[:, states], table[:, states + 1] = 0.0, 1.0
        if h is not None:
            table[:, states + 2 :].view(times, -1, states, n).copy_(h.permute(0, 3, 2, 1))
        return table

    def _blocks(self, n: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield groups, some of their states, and where those stand among all, for `n` samples."""
        first = 0
        for g, group in enumerate(self.groups):
            size, inputs = group.rows.shape
            block = size
            if self.device.type == "cpu":
                block = max(1, _BLOCK // (self.width * (n + inputs)))
            for start in range(0, size, block):
                stop = min(start + block, size)
                yield g, slice(start, stop), slice(first + start, first + stop)
            first += size

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


def _terms(x: Tensor, weights: Tensor, signs: Tensor) -> Tensor:
    """Return `M^{-1/2} b_m ReLU(x . W_m)`, `(G, n, M)`, from weights `(G, d, M)`."""
    return torch.bmm(x, weights).relu_().mul_(signs)


def _left_out(keep: Tensor) -> Tensor | None:
    """Return the samples whose `keep` is 0; None if there are none."""
    found = (keep == 0).nonzero().squeeze(1)
    return found if len(found) else None


def _project(weights: Tensor, start: Tensor, radius: float) -> None:
    """Project on the sup-norm ball around `start`, in place."""
    if radius < math.inf:
        torch.clamp(weights, start - radius, start + radius, out=weights)


def _grouped(
    graph: Graph, k: int, n_actions: int, constant_input: bool, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
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
        # padding reads a row of zeros, so that nothing outside the ball can get in
        zero, one, first = graph.n_states, graph.n_states + 1, graph.n_states + 2
        rows = [ball] + [first + a * graph.n_states + ball for a in range(n_actions)]
        rows = [np.where(inside, row, zero) for row in rows]
        rows += [np.full((len(states), 1), one)] * constant_input
        yield (
            torch.from_numpy(states),
            torch.from_numpy(ball),
            torch.from_numpy(inside).to(dtype),
            torch.from_numpy(1.0 / np.sqrt(1.0 + own)).to(dtype),
            torch.from_numpy(np.concatenate(rows, axis=1)),
        )
        start = end

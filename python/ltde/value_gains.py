"""What one more agent adds to learned values: derivatives and exact one-agent differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ltde.critic import Critic
    from ltde.graph import Graph

__all__ = ["DifferenceGains", "derivative_gains"]

# Numbers held at a time.
_CHUNK = 1 << 20


def derivative_gains(critic: Critic, inputs: list[Tensor]) -> Tensor:
    """Return `sum over y in N_j^k of dV_y / dx_j`, `x_j` the scaled density of `j`: `(n, S)`.

    Parameters
    ----------
    critic
        Critics of densities.
    inputs
        What `Critic.inputs` returns for `n` densities.
    """
    n = inputs[0].shape[1]
    result = torch.zeros(n, critic.n_states, dtype=torch.float64, device=critic.device)
    for group, zeta, w, b in zip(critic.groups, inputs, critic.omega, critic.b, strict=True):
        size = group.ball.shape[1]
        factor = group.scale / math.sqrt(critic.width)
        chunk = max(1, _CHUNK // b.numel())
        for start in range(0, n, chunk):
            z = torch.bmm(zeta[:, start : start + chunk], w.transpose(1, 2))
            slope = torch.bmm((z > 0) * b[:, None, :], w[..., :size])
            slope *= (factor[:, None] * group.inside)[:, None, :]
            result[start : start + chunk].index_add_(
                1, group.ball.reshape(-1), slope.transpose(0, 1).flatten(1).double()
            )
    return result


class DifferenceGains:
    """Exact differences `V(mu'' + e_j / N) - V(mu'')` for every `j` in `N_s`, any `N`.

    `mu''` are the next densities without one agent of `s`; critics whose ball holds `j` differ.

    Parameters
    ----------
    critic
        Critics of densities: which balls they read.
    graph
        The graph of states.
    """

    def __init__(self, critic: Critic, graph: Graph) -> None:
        device = critic.device
        balls, indptr, indices = graph.balls(critic.k), graph.indptr, graph.indices
        self.n_edges = len(indices)
        degrees = np.diff(indptr)
        source = np.repeat(np.arange(graph.n_states), degrees)
        # for each edge s -> j, the critics y whose ball holds j: those of N_j^k
        sizes = np.diff(balls.indptr)[indices]
        edge = np.repeat(np.arange(self.n_edges), sizes)
        within = np.arange(len(edge)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        reader = balls.indices[balls.indptr[indices[edge]] + within]
        column = np.arange(degrees.max())
        place = np.minimum(indptr[source, None] + column, self.n_edges - 1)
        near = np.where(column < degrees[source, None], indices[place], -1)
        self.parts = []
        for group in critic.groups:
            states, ball = group.states.cpu().numpy(), group.ball.cpu().numpy()
            inside = group.inside.cpu().numpy() > 0
            rank = np.full(graph.n_states, -1)
            rank[states] = np.arange(len(states))
            mine = np.flatnonzero(rank[reader] >= 0)
            row, own = rank[reader[mine]], edge[mine]
            members = np.where(inside[row], ball[row], -2)
            column_j = (members == indices[own, None]).argmax(1)
            hits = members[:, None, :] == near[own][:, :, None]
            column_i = np.where(hits.any(-1), hits.argmax(-1), -1)
            arrays = own, source[own], indices[own], near[own], row, column_j, column_i
            self.parts.append([torch.from_numpy(x.astype(np.int64)).to(device) for x in arrays])

    def __call__(
        self, critic: Critic, inputs: list[Tensor], minus: Tensor, plus: Tensor, landed: Tensor
    ) -> Tensor:
        """Return the differences for every edge `s -> j`, `(n, nnz)` in CSR order.

        Parameters
        ----------
        critic
            Critics with the balls of the first one.
        inputs
            What `Critic.inputs` returns for the next densities.
        minus, plus
            `(n, S)` what the scaled density of a state changes by when an agent leaves or comes.
        landed
            `(n, S)` where the agent of `s` that is taken out went, as a place in the row of `s`.
        """
        n = landed.shape[0]
        result = torch.zeros(n, self.n_edges, dtype=torch.float64, device=critic.device)
        for group, zeta, w, b, part in zip(
            critic.groups, inputs, critic.omega, critic.b, self.parts, strict=True
        ):
            edge, source, target, near, row, column_j, column_i = part
            weights = w.transpose(1, 2).contiguous()  # (G, d, M)
            signs, scale = b[row], group.scale[row]
            up = weights[row, column_j]
            chunk = max(1, _CHUNK // (len(edge) * critic.width))
            for start in range(0, n, chunk):
                at = slice(start, start + chunk)
                z = torch.bmm(zeta[:, at], w.transpose(1, 2))[row].transpose(0, 1)
                slot = landed[at][:, source]
                here = torch.arange(len(edge), device=critic.device)
                left = near[here, slot]
                column = column_i[here, slot]
                gone = minus[at].gather(1, left)
                lost = torch.where(column >= 0, gone, 0.0)
                gained = torch.where(left == target, -gone, plus[at][:, target])
                down = weights[row, column.clamp(min=0)]
                z = z + down * (lost * scale).to(z.dtype).unsqueeze(-1)
                more = z + up * (gained * scale).to(z.dtype).unsqueeze(-1)
                change = ((more.relu() - z.relu()) * signs).sum(-1) / math.sqrt(critic.width)
                result[at].index_add_(1, edge, change.double())
        return result

"""The natural gradient of softmax policies, state by state, on knots of the density."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ltde.softmax import SoftmaxPolicy

__all__ = ["NaturalGradient"]

# Samples of each state from which knots are chosen.
_SAMPLES = 256
# Numbers held at a time.
_CHUNK = 1 << 18


class NaturalGradient:
    """Least squares of advantages in the features of the policy: the natural gradient.

    The natural gradient (Kakade, 2001) changes the logits of `(s, mu(s))` by the advantages, as far
    as the network can: `w_s` minimises the mean over visits of
    `sum_a (A(s, a) - w_s . phi(mu(s), e_a))^2 + ridge |w_s|^2`. All actions count alike, since the
    one-agent gradient knows the advantages of all of them, taken or not; so rare actions recover.
    The features depend on `mu(s)` alone: samples are gathered at a few knots by linear
    interpolation, and the normal equations of a state have one row for each knot and action.

    Parameters
    ----------
    policy
        Gives the features.
    density
        `(n, S)` densities whose quantiles become the knots.
    n_knots
        Number of knots of each state.
    """

    def __init__(self, policy: SoftmaxPolicy, density: NDArray[np.float64], n_knots: int) -> None:
        self.policy = policy
        stride = max(1, len(density) // _SAMPLES)
        ordered = np.sort(density[::stride], axis=0)
        # empty teams have no say: quantiles of the others
        empty = (ordered <= 0.0).sum(axis=0)
        share = np.linspace(0.0, 1.0, n_knots)[:, None]
        rank = np.rint(empty + share * np.maximum(len(ordered) - 1 - empty, 0)).astype(np.intp)
        knots = np.take_along_axis(ordered, np.minimum(rank, len(ordered) - 1), axis=0)
        device = policy.theta.device
        self.knots = torch.from_numpy(np.ascontiguousarray(knots.T)).to(device)  # (S, G)
        shape = (policy.n_states, n_knots)
        self.mass = torch.zeros(shape, dtype=torch.float64, device=device)
        self.total = torch.zeros((*shape, policy.n_actions), dtype=torch.float64, device=device)

    def add(self, density: Tensor, weight: Tensor, advantage: Tensor) -> None:
        """Gather samples: densities and weights `(n, S)`, advantages `(n, S, A)`."""
        knots = self.mass.shape[1]
        x = density.T.contiguous()
        left = torch.searchsorted(self.knots, x, right=True).sub_(1).clamp_(0, knots - 2)
        low, high = self.knots.gather(1, left), self.knots.gather(1, left + 1)
        gap = high - low
        share = torch.where(gap > 0, (x - low) / torch.where(gap > 0, gap, 1.0), 0.0).clamp_(0, 1)
        w = weight.T
        values = advantage.transpose(0, 1)
        for place, part in ((left, w * (1.0 - share)), (left + 1, w * share)):
            self.mass.scatter_add_(1, place, part)
            index = place.unsqueeze(-1).expand(-1, -1, values.shape[-1])
            self.total.scatter_add_(1, index, part.unsqueeze(-1) * values)

    def direction(self, floor: float, ridge: float) -> Tensor:
        """Return `w`, `(S, M, 1 + A)`.

        Parameters
        ----------
        floor
            A state with mean weight `v` counts `v / (v + floor)` against the ridge.
        ridge
            In units of the mean square of a feature whose neurons are all active.
        """
        policy = self.policy
        theta, unit = policy.theta.detach(), policy.input_scale
        states, knots = self.mass.shape
        actions, width = policy.n_actions, policy.width
        result = torch.zeros_like(theta)
        size = knots * actions
        chunk = max(1, _CHUNK // (size * max(size, width)))
        allowed = policy.action_mask.double()
        for start in range(0, states, chunk):
            at = slice(start, start + chunk)
            mass, part = self.mass[at], theta[at]
            visits = mass.sum(1, keepdim=True)
            mean = self.total[at] / mass.clamp(min=1e-300).unsqueeze(-1)
            mask = allowed[at].unsqueeze(1)
            mean = mean - (mean * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
            # square roots of the weights of the rows
            root = (mass / (visits + floor).clamp(min=1e-300)).sqrt().unsqueeze(-1) * mask
            x = (policy.density_scale * self.knots[at]).to(theta.dtype)
            z = x[:, :, None, None] * part[:, None, None, :, 0]
            z = z + part[:, None, :, :].transpose(2, 3)[:, :, 1:, :]
            gate = (z > 0).to(theta.dtype).flatten(1, 2)  # (s, G A, M)
            xs = x.repeat_interleave(actions, dim=1)
            same = torch.eye(actions, dtype=theta.dtype, device=theta.device).repeat(knots, knots)
            kernel = torch.bmm(gate, gate.transpose(1, 2)) * (unit * unit / width)
            kernel = (kernel * (xs[:, :, None] * xs[:, None, :] + same)).double()
            root = root.flatten(1, 2)
            kernel = root[:, :, None] * kernel * root[:, None, :]
            rows = root * root
            square = unit * unit * (1.0 + xs.double() ** 2)  # of a feature, all neurons active
            level = (rows * square).sum(1, keepdim=True) / rows.sum(1, keepdim=True).clamp(1e-300)
            kernel.diagonal(dim1=1, dim2=2).add_(ridge * level.clamp(min=1e-300))
            wanted = root * mean.flatten(1, 2)
            alpha = torch.linalg.solve(kernel, wanted.unsqueeze(-1)).squeeze(-1) * root
            pull = alpha.to(theta.dtype).unsqueeze(-1) * gate  # (s, G A, M)
            result[at, :, 0] = (pull * xs.unsqueeze(-1)).sum(1)
            result[at, :, 1:] = pull.unflatten(1, (knots, actions)).sum(1).transpose(1, 2)
        signs = policy.b.to(theta.dtype).unsqueeze(-1)
        return result * signs * (unit / math.sqrt(width))

"""Gradients of the actor: the one-agent gradient, and the score function of Algorithm 2.

Both end in the same contraction: a weight for each sample, state and action times the feature
`phi(mu(s), e_a)`, or, for energy-based policies, a weight for each sample and state times `Phi`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltde.energy import EnergyPolicy
from ltde.network_policy import NetworkPolicy
from ltde.softmax import SoftmaxPolicy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["advantages", "ascend", "contract", "score_gradient"]

# Numbers that fit into the cache beside the parameters.
_CHUNK = 1 << 20
# Numbers of a block of states: few enough for the cache, many beside the overhead of a call.
_BLOCK = 1 << 17


def advantages(values: Tensor, probs: Tensor, mask: Tensor) -> Tensor:
    """Return `q(s, a) - sum_b pi(b) q(s, b)`, 0 for masked actions.

    Parameters
    ----------
    values, probs
        `(..., S, A)`.
    mask
        `(S, A)` bool.
    """
    centred = values - (probs * values).sum(-1, keepdim=True)
    return torch.where(mask, centred, 0.0)


def contract(policy: SoftmaxPolicy, density: Tensor, weights: Tensor) -> Tensor:
    """Return `sum_l sum_a weights(l, s, a) phi(mu_l(s), e_a)`, Eq. (4.6).

    Parameters
    ----------
    policy
        Gives the weights of the networks and the scales of their inputs.
    density
        `mu_l(s)`, `(n, S)`.
    weights
        `(n, S, A)`.

    Returns
    -------
    Tensor
        `(S, M, 1 + A)` in the dtype of `theta`.
    """
    theta, unit = policy.theta.detach(), policy.input_scale
    states, width, inputs = theta.shape
    n, n_actions = len(density), inputs - 1
    x = (unit * policy.density_scale * density).double()
    first = (n + 1) * torch.arange(n_actions, device=theta.device)
    result = torch.empty_like(theta)
    block = states
    if theta.device.type == "cpu":
        block = max(1, _BLOCK // (n_actions * (n + width)))
    for start in range(0, states, block):
        part = slice(start, start + block)
        ordered, order = x[:, part].T.contiguous().sort(dim=1)
        weight = weights.detach()[:, part].permute(1, 2, 0).double()
        weight = weight.gather(2, order.unsqueeze(1).expand_as(weight))
        # one input decides whether a neuron is active: where it passes the kink of the neuron
        slope = theta[part, :, :1].double() + 0.0  # no -0, whose kinks have the wrong sign
        kink = (-unit * theta[part, :, 1:].double() / slope).nan_to_num_(
            math.inf, math.inf, -math.inf
        )
        falling = slope < 0.0
        kink = torch.where(falling, torch.nextafter(kink, kink.new_tensor(-math.inf)), kink)
        place = torch.searchsorted(ordered, kink.flatten(1), right=True)
        place = (place.view_as(kink) + first).flatten(1)
        sums = []
        for y in (weight, weight * ordered.unsqueeze(1)):
            sum_to = torch.zeros(*y.shape[:2], n + 1, dtype=y.dtype, device=y.device)
            torch.cumsum(y, 2, out=sum_to[..., 1:])
            below = sum_to.flatten(1).gather(1, place).view_as(kink)
            above = sum_to[:, None, :, -1] - below
            sums.append(torch.where(falling, below, above))
        result[part, :, 1:] = unit * sums[0]
        result[part, :, 0] = sums[1].sum(-1)
    return result.mul_((policy.b / math.sqrt(policy.width)).unsqueeze(-1))


def score_gradient(
    policy: NetworkPolicy,
    counts: NDArray[np.int64],
    actions: NDArray[np.int64],
    weights: Tensor,
    seed: int,
) -> Tensor:
    """Return `sum_l weights(l, s) grad log Pi_s(h_l(s) | mu_l(s))`.

    Parameters
    ----------
    policy
        Softmax or energy-based.
    counts, actions
        `(n, S)` and `(n, S, A)`.
    weights
        `(n, S)`.
    seed
        Seed of the chains of an energy-based policy.

    Returns
    -------
    Tensor
        `(S, M, 1 + A)`.
    """
    if isinstance(policy, SoftmaxPolicy):
        n = torch.from_numpy(counts).to(policy.theta.device).double()
        team = torch.from_numpy(actions).to(policy.theta.device).double()
        with torch.no_grad():
            excess = team - n.unsqueeze(-1) * policy.mean_action(counts)
        density = n / n.sum(-1, keepdim=True)
        return contract(policy, density, policy.tau * weights.unsqueeze(-1) * excess)
    assert isinstance(policy, EnergyPolicy)
    result = torch.zeros_like(policy.theta.detach(), dtype=torch.float64)
    chunk = max(1, _CHUNK // result.numel())
    for start in range(0, len(counts), chunk):
        part = slice(start, start + chunk)
        score = policy.score(counts[part], actions[part], seed=seed + start)
        result.add_((weights[part][:, :, None, None] * score).sum(0))
    return result.to(policy.theta.dtype)


def ascend(policy: NetworkPolicy, step: Tensor, start: Tensor, radius: float) -> None:
    """Add `step` to `theta` and project on `||theta - theta(0)||_inf <= R / sqrt(M)`, in place."""
    with torch.no_grad():
        policy.theta.add_(step)
        if radius < math.inf:
            bound = radius / math.sqrt(policy.width)
            torch.clamp(policy.theta, start - bound, start + bound, out=policy.theta)

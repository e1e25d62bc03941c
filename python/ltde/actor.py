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
    theta = policy.theta.detach()
    unit = policy.input_scale
    x = (unit * policy.density_scale * density).to(theta.dtype)
    weights = weights.to(theta.dtype)
    result = torch.zeros_like(theta)
    chunk = max(1, _CHUNK // theta.numel())
    columns = unit * theta[..., 1:]
    for start in range(0, len(x), chunk):
        part, weight = x[start : start + chunk], weights[start : start + chunk]
        z = part[..., None, None] * theta[..., :1] + columns
        # (n, S, M, A): the weight where the neuron is active
        active = torch.where(z > 0, weight.unsqueeze(-2), 0.0)
        result[..., 1:] += active.sum(0)
        result[..., 0] += (active.sum(-1) * part.unsqueeze(-1)).sum(0)
    result[..., 1:] *= unit
    return result * (policy.b / math.sqrt(policy.width)).unsqueeze(-1)


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

"""Two-layer networks, one for each state, Eq. (4.3), and their features, Eq. (4.6).

`f(x; W) = M^{-1/2} sum_m b_m ReLU(x . W_m)`, `b_m = +-1` fixed, only `W` trained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["features", "forward", "initial_weights"]


def initial_weights(
    shape: tuple[int, int, int], *, symmetric: bool, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Draw `W` and `b` as Algorithms 1 and 2 do, from a generator of NumPy of their own.

    Parameters
    ----------
    shape
        `(S, M, d)`.
    symmetric
        The second half of the neurons copies the first with `b` negated, so that `f = 0`.
    seed
        Seed of the generator, an integer >= 0.
    dtype
        Of the result.

    Returns
    -------
    W, b
        `(S, M, d)` with entries N(0, 1 / d), and `(S, M)` with entries +-1.
    """
    states, width, inputs = shape
    drawn = width // 2 if symmetric else width
    rng = np.random.default_rng(seed)
    drawn_weights = rng.standard_normal((states, drawn, inputs)) / inputs**0.5
    weights = torch.from_numpy(drawn_weights)
    signs = torch.from_numpy(2.0 * rng.integers(0, 2, (states, drawn)) - 1.0)
    if symmetric:
        weights = torch.cat([weights, weights], dim=1)
        signs = torch.cat([signs, -signs], dim=1)
    return weights.to(dtype), signs.to(dtype)


def forward(x: Tensor, weights: Tensor, signs: Tensor) -> Tensor:
    """Return `f(x; W)`, Eq. (4.3).

    Parameters
    ----------
    x
        Inputs `(..., S, d)`.
    weights, signs
        `W (S, M, d)` and `b (S, M)`.

    Returns
    -------
    Tensor
        `(..., S)`.
    """
    z = torch.einsum("...sd,smd->...sm", x, weights)
    value: Tensor = (signs * z.relu()).sum(-1) / signs.shape[-1] ** 0.5
    return value


def features(x: Tensor, weights: Tensor, signs: Tensor) -> Tensor:
    """Return `phi(x) = M^{-1/2} b_m 1{x . W_m > 0} x`, Eq. (4.6): the gradient of `f` in `W`.

    Parameters
    ----------
    x
        Inputs `(..., S, d)`.
    weights, signs
        `W (S, M, d)` and `b (S, M)`.

    Returns
    -------
    Tensor
        `(..., S, M, d)`.
    """
    z = torch.einsum("...sd,smd->...sm", x, weights)
    gate = signs * (z > 0).to(signs.dtype) / signs.shape[-1] ** 0.5
    phi: Tensor = gate.unsqueeze(-1) * x.unsqueeze(-2)
    return phi

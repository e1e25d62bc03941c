"""The multinomial law of a team of independent agents, Eq. (3.1)-(3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["multinomial_log_prob"]


def multinomial_log_prob(team: Tensor, log_pi: Tensor) -> Tensor:
    """Return the log of the multinomial probability (3.2) of `team` under `pi`, both `(..., A)`.

    Deviances `c log(c / n pi) + n pi - c` and Stirling tails (Loader, 2000): no factorial, and an
    error that grows with `|c - n pi|`, not with `n`.
    """
    n = team.sum(-1, keepdim=True)
    taken = team > 0
    impossible = (taken & (log_pi == -math.inf)).any(-1)
    log_pi = log_pi.masked_fill(log_pi == -math.inf, -1e6)
    expected = n * log_pi.exp()
    c = torch.where(taken, team, torch.ones_like(team))
    one = torch.where(n > 0, n, torch.ones_like(n))
    away = (expected - c) / c
    near = away.abs() < 0.5
    close = c * (away - torch.log1p(torch.where(near, away, torch.zeros_like(away))))
    far = c * (torch.log(c) - torch.log(one) - log_pi) + (expected - c)
    deviance = torch.where(taken, torch.where(near, close, far), expected).sum(-1)
    spread = torch.where(taken, _stirling(c), torch.zeros_like(c)).sum(-1)
    whole = torch.where(n > 0, _stirling(one), torch.zeros_like(one)).squeeze(-1)
    return (whole - spread - deviance).masked_fill(impossible, -math.inf)


def _stirling(x: Tensor) -> Tensor:
    """Return `log x! - (x log x - x)` for `x >= 1`."""
    return _stirling_tail(x) + 0.5 * torch.log(2.0 * math.pi * x)


def _stirling_tail(x: Tensor) -> Tensor:
    """Return `log x! - (x log x - x + log(2 pi x) / 2)` for `x >= 1`."""
    small = torch.clamp(x, max=16.0)
    direct = (
        torch.lgamma(small + 1.0)
        - small * torch.log(small)
        + small
        - 0.5 * torch.log(2.0 * math.pi * small)
    )
    y = 1.0 / (x * x)
    series = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x
    return torch.where(x < 16.0, direct, series)

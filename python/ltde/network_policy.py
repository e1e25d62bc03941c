"""What the policies of two-layer networks share: parameters, inputs, and the view of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ltde import _core
from ltde.arguments import integer, positive, seed_number
from ltde.networks import initial_weights
from ltde.policy import Counts, as_counts, draw_actions

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["NetworkPolicy", "as_array", "as_tensor", "at_vertices", "masked_softmax"]


class NetworkPolicy(nn.Module):
    """What the two families share: the networks of all states and how they read a state.

    Use `SoftmaxPolicy` or `EnergyPolicy`. The network of `s` reads
    `input_scale * (density_scale * mu(s), h(s))`, so `d = 1 + A`.

    Attributes
    ----------
    theta : torch.nn.Parameter
        `(S, M, 1 + A)`, the trained weights. The core reads them in place, without a copy, as long
        as they are contiguous on the CPU.
    b : torch.Tensor
        `(S, M)`, the fixed signs +-1.
    action_mask : torch.Tensor
        `(S, A)` bool, which actions each state allows.
    """

    b: Tensor
    action_mask: Tensor

    def __init__(
        self,
        model: NetworkedModel,
        width: int = 64,
        *,
        tau: float = 1.0,
        density_scale: float = 1.0,
        input_scale: float = 1.0,
        symmetric: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        width = integer("width", width, 1, 2**31)
        if symmetric and width % 2:
            raise ValueError(f"width: expected an even number with symmetric=True, got {width}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        self.tau = positive("tau", tau)
        self.density_scale = positive("density_scale", density_scale)
        self.input_scale = positive("input_scale", input_scale)
        shape = (model.n_states, width, 1 + model.n_actions)
        theta, b = initial_weights(shape, symmetric=symmetric, seed=seed_number(seed), dtype=dtype)
        self.theta = nn.Parameter(theta)
        self.register_buffer("b", b)
        self.register_buffer("action_mask", torch.from_numpy(model.action_mask.copy()))

    @property
    def n_states(self) -> int:
        """Number of states `S`."""
        return int(self.b.shape[0])

    @property
    def width(self) -> int:
        """Width `M` of the networks."""
        return int(self.b.shape[1])

    @property
    def n_actions(self) -> int:
        """Number of actions `A`."""
        return int(self.action_mask.shape[1])

    @property
    def stationary(self) -> bool:
        """True: the policy does not depend on time."""
        return True

    def sample(
        self, counts: ArrayLike, seed: int, n_agents: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Draw team actions `c(s, .)` from `Pi_s(. | mu(s))`, independently over states.

        Parameters
        ----------
        counts
            `(..., S)` integers.
        seed
            Integer in [0, 2^64).
        n_agents
            `N`; None takes the sum of each row of `counts`.

        Returns
        -------
        ndarray
            `(..., S, A)` int64; rows sum to `counts`.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        return draw_actions(self._core, checked, self.n_actions, seed)

    @property
    def _core(self) -> _core.NetworkPolicy:
        """The view that the core reads; shares the memory of CPU parameters."""
        self._check()
        return _core.NetworkPolicy(
            as_array(self.theta),
            as_array(self.b.to(self.theta.dtype)),
            as_array(self.action_mask),
            self.tau,
            self.density_scale,
            self.input_scale,
            self._effort(),
        )

    def _effort(self) -> tuple[int, int, int] | None:
        """Return what an energy-based policy may spend on a draw."""
        return None

    def _wide(self) -> tuple[Tensor, Tensor]:
        """Return `theta` and `b` in float64, differentiable."""
        self._check()
        return self.theta.double(), self.b.double()

    def _check(self) -> None:
        """Refuse parameters that were replaced by others that do not fit."""
        theta, shape = self.theta, (*self.b.shape, 1 + self.action_mask.shape[1])
        if theta.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"theta: expected float32 or float64, got {theta.dtype}")
        if tuple(theta.shape) != shape:
            raise ValueError(f"theta: expected shape {shape}, got {tuple(theta.shape)}")
        if not bool(self.action_mask.any(-1).all()):
            s = int((~self.action_mask.any(-1)).nonzero()[0])
            raise ValueError(f"action_mask[{s}]: forbids every action of state {s}")

    def _density(self, checked: Counts) -> Tensor:
        """Return `input_scale * density_scale * mu(s)`, `(..., S)` in float64."""
        scale = self.input_scale * self.density_scale
        return torch.from_numpy(scale * checked.density).to(self.theta.device)

    def extra_repr(self) -> str:
        """Show sizes and scales."""
        return (
            f"n_states={self.n_states}, width={self.width}, n_actions={self.n_actions}, "
            f"tau={self.tau:g}, density_scale={self.density_scale:g}, "
            f"input_scale={self.input_scale:g}"
        )


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
    weights = np.where(mask, np.exp(logits - logits[mask].max()), 0.0)
    row: NDArray[np.float64] = weights / weights.sum()
    return row


def as_array(tensor: Tensor) -> NDArray[Any]:
    """View a tensor as an array; a contiguous one on the CPU is not copied."""
    return tensor.detach().contiguous().cpu().numpy()


def as_tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy counts to a float64 tensor on a device."""
    return torch.from_numpy(array).to(device=device, dtype=torch.float64)

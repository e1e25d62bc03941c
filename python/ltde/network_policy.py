"""What the policies of two-layer networks share: parameters, inputs, and the view of the core."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ltde import _core, checkpoint
from ltde.arguments import integer, positive, seed_number
from ltde.networks import initial_weights
from ltde.policy import Counts, as_counts, draw_actions

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["NetworkPolicy", "as_array", "as_tensor"]


class NetworkPolicy(nn.Module):
    """What the two families share: the networks of all states and how they read a state.

    Use `SoftmaxPolicy` or `EnergyPolicy`. The network of `s` reads
    `input_scale * (density_scale * mu(s), h(s))`, so `d = 1 + A`.

    Attributes
    ----------
    theta : torch.nn.Parameter
        `(S, M, 1 + A)`, the trained weights. The core reads them where they are at every
        call, as long as they are contiguous on the CPU.
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
        """Whether the policy does not depend on time; always True."""
        return True

    @property
    def family(self) -> str:
        """Name of the family in files."""
        raise NotImplementedError("use SoftmaxPolicy or EnergyPolicy")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy into one file (safetensors with a small JSON), atomically.

        Parameters
        ----------
        path
            The file, such as `"policy.safetensors"`; its folder must exist.
        """
        self._check()
        tensors = {"theta": self.theta, "b": self.b, "action_mask": self.action_mask}
        checkpoint.write(path, tensors, {"family": self.family, **self._settings()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote: the same law and the same draws, on the CPU. No model is needed.

        `NetworkPolicy.load` returns a policy of either family.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            Naming the file, if it is damaged, or holds a policy of another family or none.
        """
        from ltde.energy import EnergyPolicy
        from ltde.softmax import SoftmaxPolicy

        families = {"softmax": SoftmaxPolicy, "energy": EnergyPolicy}
        needs = ("family", "tau", "density_scale", "input_scale", "theta", "b", "action_mask")
        tensors, info = checkpoint.read(path, needs)
        name = info.pop("family")
        family = families.get(name)
        if family is None or not issubclass(family, cls):
            raise ValueError(f"{path}: expected a {cls.__name__}, got a policy of family {name!r}")
        theta, mask = tensors["theta"], tensors["action_mask"].numpy()
        sizes: Any = SimpleNamespace(
            n_states=mask.shape[0], n_actions=mask.shape[1], action_mask=mask
        )
        policy = family(sizes, theta.shape[1], dtype=theta.dtype, **info)
        policy.theta = nn.Parameter(theta)
        policy.b = tensors["b"]
        return policy

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

    def _settings(self) -> dict[str, float]:
        """Return the arguments of the constructor that a file keeps beside the tensors."""
        return {name: getattr(self, name) for name in ("tau", "density_scale", "input_scale")}

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


def as_array(tensor: Tensor) -> NDArray[Any]:
    """View a tensor as an array; a contiguous one on the CPU is not copied."""
    return tensor.detach().contiguous().cpu().numpy()


def as_tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy counts to a float64 tensor on a device."""
    return torch.from_numpy(array).to(device=device, dtype=torch.float64)

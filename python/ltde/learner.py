"""What the iterations of both actors share: critics, rates, and the stop when a run diverges."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ltde.actor import ascend
from ltde.critic import Critic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ltde.config import Config
    from ltde.model import NetworkedModel
    from ltde.network_policy import NetworkPolicy
    from ltde.simulator import Simulator

__all__ = ["Learner", "TrainingDiverged", "part_seed", "recorded"]

# How many times the largest error of its first iterations a critic's error may reach. Costates of
# models with jumps grow by up to 1e6, the inverse of the difference step.
_EXPLODED = 1e8
_FIRST_ITERATIONS = 5

# Seeds of the parts of a run: different, so that evaluation never sees the training's numbers.
POLICY, CRITIC, SIMULATOR, EVALUATION, SHUFFLE, DRAWS, CHAINS, LANDED, REPLAY = range(1, 10)


class TrainingDiverged(RuntimeError):
    """A parameter is not finite, or a critic's error has exploded; the last checkpoint stands."""


class Learner(abc.ABC):
    """One iteration of training: learn the critics, step the actor.

    Attributes
    ----------
    policy
        The policy that `iterate` improves.
    critic
        The critics.
    simulator
        The replicas that the critics learn from.
    """

    def __init__(
        self,
        model: NetworkedModel,
        n_agents: float,
        config: Config,
        policy: NetworkPolicy,
        simulator: Simulator,
    ) -> None:
        self.model, self.n_agents, self.config = model, n_agents, config
        self.policy, self.simulator = policy, simulator
        self.device = policy.theta.device
        self.theta_0 = policy.theta.detach().clone()
        self.critic = self.fresh_critic(0)
        self.first_error = 0.0  # the largest of any critic in the first iterations

    @abc.abstractmethod
    def iterate(self, iteration: int) -> dict[str, Any]:
        """Do iteration `iteration`, from 0, and return its metrics."""

    def simulators(self) -> Iterator[tuple[str, Simulator]]:
        """Yield what draws random numbers, by name."""
        yield "simulator", self.simulator

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the numbers that a resumed run needs; `restore` takes them."""
        tensors = {
            "theta": self.policy.theta,
            "theta_0": self.theta_0,
            "b": self.policy.b,
            **{f"critic.{name}": x for name, x in self.critic.state_dict().items()},
        }
        info: dict[str, Any] = {"first_error": self.first_error}
        for name, simulator in self.simulators():
            state = simulator.state_dict()
            tensors[f"{name}.counts"] = torch.from_numpy(state.pop("counts"))
            info[name] = state
        return {name: x.detach().clone() for name, x in tensors.items()}, info

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        with torch.no_grad():
            self.policy.theta.copy_(tensors["theta"])
            self.policy.b.copy_(tensors["b"])
            self.theta_0.copy_(tensors["theta_0"])
        self.first_error = info["first_error"]
        prefix = "critic."
        self.critic.load_state_dict(
            {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        )
        for name, simulator in self.simulators():
            counts = tensors[f"{name}.counts"].numpy()
            simulator.load_state_dict({**info[name], "counts": counts})

    def fresh_critic(self, iteration: int) -> Critic:
        """Return critics with new weights, different at each iteration."""
        config = self.config
        return Critic(
            self.model.graph,
            config.k,
            config.width,
            n_actions=self.model.n_actions if config.critic == "q" else 0,
            constant_input=config.constant_input,
            symmetric=config.symmetric,
            radius=config.critic_radius,
            seed=part_seed(config.seed, CRITIC) + 1_000_003 * iteration,
            average=config.critic_average,
            dtype=getattr(torch, config.dtype),
            device=self.device,
        )

    @property
    def reward_scale(self) -> float:
        """What rewards are multiplied by before the critics see them."""
        if self.config.reward_scale is not None:
            return self.config.reward_scale
        return float(self.model.n_states) if self.config.critic == "value" else 1.0

    def transformed(self, density: Tensor) -> Tensor:
        """Return densities as the critics read them."""
        scaled = self.policy.density_scale * density
        return 2.0 * torch.log1p(scaled) if self.config.density_transform == "log1p" else scaled

    def ascend(self, direction: Tensor, iteration: int) -> None:
        """Step the actor along a direction with the rate of this iteration, and project."""
        config = self.config
        step = config.actor_rate / (1.0 + config.actor_decay * iteration) * direction
        self.check("actor", step, iteration)
        ascend(self.policy, step, self.theta_0, config.actor_radius)

    def check(self, what: str, tensor: Tensor, iteration: int) -> None:
        """Raise where a number is not finite, before it reaches a parameter of the actor."""
        wrong = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
        if wrong.any():
            raise self._diverged(what, int(wrong.nonzero()[0]), "is not finite", iteration)

    def check_errors(self, square: Tensor, iteration: int) -> None:
        """Raise where the mean square errors `(S,)` of the critics explode."""
        self.check("critic", square, iteration)
        error = float(square.max()) ** 0.5
        if iteration < _FIRST_ITERATIONS or self.first_error == 0.0:
            self.first_error = max(self.first_error, error)
        elif error > _EXPLODED * self.first_error:
            grown = f"has an error of {error:.3g}, after {self.first_error:.3g} at first"
            raise self._diverged("critic", int(square.argmax()), grown, iteration)

    def _diverged(self, what: str, state: int, how: str, iteration: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"iteration {iteration + 1}: the {what} of state {state} {how}; try a smaller "
            f"{what}_rate (now {getattr(self.config, what + '_rate')}) or a smaller {what}_radius"
        )


def recorded(array: NDArray[Any] | None) -> NDArray[Any]:
    """Return an array that was recorded."""
    assert array is not None
    return array


def part_seed(seed: int, part: int) -> int:
    """Return the seed of one part of a run."""
    return int(np.random.SeedSequence((seed, part)).generate_state(1, np.uint64)[0] >> np.uint64(1))

"""Algorithms 1 and 2 of the paper: critics of `Q_s` by TD(0), and the score-function actor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ltde.actor import score_gradient
from ltde.energy import EnergyPolicy
from ltde.learner import CHAINS, DRAWS, REPLAY, Learner, part_seed, recorded
from ltde.simulator import Simulator
from ltde.softmax import SoftmaxPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["ScoreLearner"]

# Numbers of a history held at a time.
_BLOCK = 1 << 22


class ScoreLearner(Learner):
    """Iterations of `actor="score"`: Algorithm 2, with Algorithm 1 inside.

    Attributes
    ----------
    draws
        Replicas that the actor reads: they leave the chain of the critics alone.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # counts, actions, rewards, and where a transition ends: the replay buffer
        self.history: tuple[NDArray[Any], ...] = ()
        simulator = self.simulator
        self.draws = Simulator(
            self.model,
            self.n_agents,
            self.config.n_replicas,
            seed=part_seed(self.config.seed, DRAWS),
            threads=simulator.threads,
        )

    def simulators(self) -> Iterator[tuple[str, Simulator]]:
        """Yield what draws random numbers, by name."""
        yield from super().simulators()
        yield "draws", self.draws

    def iterate(self, iteration: int) -> dict[str, Any]:
        """Learn the critics, then step the actor."""
        config, policy = self.config, self.policy
        if not config.critic_warm_start:
            self.critic = self.fresh_critic(iteration)
        error = self.learn_q(iteration)
        counts, actions, rewards = self.visits()
        with torch.no_grad():
            weights = self.q_weights(counts, actions)
            factor = 1.0 / ((1.0 - self.model.discount) * len(counts) * self.reward_scale)
            gradient = score_gradient(
                policy,
                counts,
                actions,
                factor * weights,
                part_seed(config.seed, CHAINS) + iteration,
            )
        # Theorem 5.10 steps along the gradient of the scaled objective
        self.ascend(self.reward_scale * gradient, iteration)
        return {
            "J_estimate": float(rewards.sum(-1).mean() / (1.0 - self.model.discount)),
            "critic_error": error,
            "gradient_norm": float(gradient.norm()),
            "replica_steps": config.critic_steps * config.n_replicas + len(counts),
        }

    def learn_q(self, iteration: int) -> float:
        """Algorithm 1: TD(0) on transitions of the stationary or of the restart chain.

        Returns
        -------
        float
            Root mean square TD error.
        """
        config = self.config
        chain: Literal["chain"] | None = "chain" if config.critic_law == "sigma" else None
        thinning = config.thinning if chain is None else 1
        rng = np.random.default_rng((part_seed(config.seed, REPLAY), iteration))
        square = torch.zeros(self.model.n_states, dtype=torch.float64, device=self.device)
        size = config.n_replicas * self.model.n_states * (1 + self.model.n_actions)
        block = max(1, _BLOCK // (size * thinning))
        for done in range(0, config.critic_steps, block):
            n = min(block, config.critic_steps - done)
            rollout = self.simulator.rollout(
                self.policy,
                n * thinning + 1,
                restart=chain,
                record=["counts", "actions", "rewards"],
            )
            # the last team action has no successor
            last = np.ones((1, config.n_replicas), dtype=np.bool_)
            history: tuple[NDArray[Any], ...] = (
                recorded(rollout.counts)[:-1],
                recorded(rollout.actions),
                recorded(rollout.rewards),
                np.concatenate([rollout.restarted[:-1], last]),
            )
            order = range(0, n * thinning, thinning)
            if config.replay:
                if self.history:
                    pairs = zip(self.history, history, strict=True)
                    history = tuple(np.concatenate(pair) for pair in pairs)
                self.history = history = tuple(part[-config.replay :] for part in history)
                # a step needs one transition at least; the last time has none
                times = np.flatnonzero(~history[3].all(1))
                order = rng.choice(times, n).tolist() if len(times) else range(0)
            square += n * self._td(history, order)
        self.check_errors(square, iteration)
        return math.sqrt(float(square.mean()) / config.critic_steps)

    def _td(self, history: tuple[NDArray[Any], ...], order: Sequence[int]) -> Tensor:
        """Take TD(0) steps at some times of a history; return mean square errors `(S,)`."""
        config = self.config
        counts, actions, rewards, ended = history
        density, h = self.q_features(counts, actions)
        return self.critic.td_steps(
            density,
            torch.from_numpy(rewards[:-1] * self.reward_scale).to(self.device),
            config.critic_rate,
            order=order,
            h=h,
            discount=self.model.discount,
            keep=torch.from_numpy(~ended[:-1]).to(self.device),
            normalized=config.critic_normalized,
        )

    def visits(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return `n_draws` draws from sigma: counts, team actions, rewards."""
        config = self.config
        steps = config.n_draws // config.n_replicas
        if config.sampler == "visitation":
            draws = self.draws.visitation(self.policy, steps)
            arrays = draws.counts, draws.actions, draws.rewards
        else:
            rollout = self.draws.rollout(
                self.policy, steps, restart="chain", record=("counts", "actions", "rewards")
            )
            counts = recorded(rollout.counts)[:-1]
            arrays = counts, recorded(rollout.actions), recorded(rollout.rewards)
        states, n_actions = self.model.n_states, self.model.n_actions
        counts, actions, rewards = arrays
        return (
            np.ascontiguousarray(counts.reshape(-1, states), np.int64),
            np.ascontiguousarray(actions.reshape(-1, states, n_actions), np.int64),
            rewards.reshape(-1, states),
        )

    def q_weights(self, counts: NDArray[np.int64], actions: NDArray[np.int64]) -> Tensor:
        """Return `sum over y in N_s^k of Q_y`, less its baseline, `(n, S)`."""
        config = self.config
        mean = config.critic_average
        q = self.critic.values(self.q_inputs(counts, actions), mean=mean).double()
        if config.baseline == "mean_action":
            expected = self.mean_action(counts)
            q -= self.critic.values(self.q_inputs(counts, None, expected), mean=mean).double()
        balls = self.model.graph.balls(config.k)
        rows = np.repeat(np.arange(self.model.n_states), np.diff(balls.indptr))
        total = torch.zeros_like(q)
        # y is in N_s^k where s is in N_y^k
        return total.index_add_(
            1,
            torch.from_numpy(rows).to(self.device),
            q[:, torch.from_numpy(balls.indices).to(self.device)],
        )

    def mean_action(self, counts: NDArray[np.int64]) -> Tensor:
        """Return `E[h(s)]`, 0 for empty teams as `h` itself."""
        assert isinstance(self.policy, SoftmaxPolicy | EnergyPolicy)
        mean = self.policy.mean_action(counts)
        return mean * torch.from_numpy(counts > 0).to(self.device).unsqueeze(-1)

    def q_inputs(
        self, counts: NDArray[Any], actions: NDArray[Any] | None, mean: Tensor | None = None
    ) -> list[Tensor]:
        """Return what the critics read, with `h` of the team actions or `mean` in its place."""
        return self.critic.inputs(*self.q_features(counts, actions, mean))

    def q_features(
        self, counts: NDArray[Any], actions: NDArray[Any] | None, mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return densities `(..., S)` and `h` or masses `(..., S, A)` as the critics read them."""
        n = torch.from_numpy(counts).to(self.device).double()
        density = n / n.sum(-1, keepdim=True)
        if mean is None:
            assert actions is not None
            team = torch.from_numpy(actions).to(self.device).double()
            mean = team / n.clamp(min=1.0).unsqueeze(-1)
        if self.config.features == "mass":
            mean = self.policy.density_scale * density.unsqueeze(-1) * mean
        return self.transformed(density), mean

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the numbers that a resumed run needs."""
        tensors, info = super().state()
        for i, part in enumerate(self.history):
            tensors[f"history.{i}"] = torch.from_numpy(part.copy())
        return tensors, info

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        super().restore(tensors, info)
        names = [f"history.{i}" for i in range(4)]
        self.history = tuple(tensors[name].numpy() for name in names if name in tensors)

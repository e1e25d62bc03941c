"""The one-agent gradient: what one agent's action is worth, by critics of costates or of values."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ltde.actor import advantages, contract
from ltde.learner import LANDED, SHUFFLE, Learner, part_seed, recorded
from ltde.natural import NaturalGradient
from ltde.value_gains import DifferenceGains, derivative_gains

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ltde.graph import Graph
    from ltde.simulator import Rollout
    from ltde.softmax import SoftmaxPolicy

__all__ = ["OneAgentLearner"]

# Difference step of costates where 1 / N is smaller: the derivative form of the one-agent gradient.
_DERIVATIVE_STEP = 1e-7
# Up to this N one agent is told from the others, exactly; beyond, 1 / N is neglected.
_EXACT_UP_TO = 1000
# Action values held at a time.
_BLOCK = 1 << 22


class OneAgentLearner(Learner):
    """Iterations of `actor="marginal"`: see docs/one_agent_gradient.md.

    `grad J = E_sigma[sum_s mu(s) sum_a grad pi(a | s, mu(s)) q(s, a)] / (1 - gamma)` with
    `q(s, a) = r(s, mu(N_s), a) + gamma sum_j P(j | s, mu(N_s), a) lambda_j`, where `lambda_j` is
    the value of one more agent in `j` at the next densities.
    """

    policy: SoftmaxPolicy
    scale = 0.0

    def iterate(self, iteration: int) -> dict[str, Any]:
        """Simulate a segment, step the actor, then regress the critics."""
        config, policy = self.config, self.policy
        if not config.critic_warm_start:
            self.critic = self.fresh_critic(iteration)
        exact = self.n_agents <= _EXACT_UP_TO
        record: list[Literal["counts", "rewards", "flows"]] = ["counts", "rewards"]
        if exact:
            record.append("flows")
        rollout = self.simulator.rollout(policy, config.segment, restart="chain", record=record)
        density = recorded(rollout.counts) / (self.n_agents if self.n_agents < math.inf else 1.0)
        # what the policy reads where an agent chooses, and what the critics read
        own, others, weight = density, density, density
        if config.critic == "costate":
            if exact:
                tagged = self.tagged(rollout, iteration)
                others = density - tagged / self.n_agents
                # The gradient asks for the agent where it is: less bias, more variance. The natural
                # gradient fits the advantages of all states, whatever the weights.
                weight = density if config.natural else tagged
            own = np.where(density > 0.0, others + self.step, 0.0)
        steps, replicas, states = density.shape[0] - 1, density.shape[1], density.shape[2]
        targets = np.empty((steps, replicas, states))
        if config.critic == "value":
            self._value_targets(density, rollout, targets)
        gradient = torch.zeros_like(policy.theta.detach())
        natural = None
        if config.natural:
            natural = NaturalGradient(policy, own[:-1].reshape(-1, states), config.n_knots)
        visits = torch.zeros(states, dtype=torch.float64, device=self.device)
        square = 0.0
        block = max(1, _BLOCK // (replicas * states * self.model.n_actions))
        for last in range(steps, 0, -block):
            part = slice(max(0, last - block), last)
            if config.critic == "value":
                values, probs = self._value_block(density, rollout, part, iteration)
            else:
                values, probs = self._costate_block(others, rollout, part, targets)
            mass = weight[part] * ~rollout.restarted[part][..., None]
            mu = torch.from_numpy(mass.reshape(-1, states)).to(self.device)
            pi = torch.from_numpy(probs).to(self.device)
            advantage = advantages(torch.from_numpy(values).to(self.device), pi, policy.action_mask)
            weights = mu.unsqueeze(-1) * advantage
            weighted = weights * pi
            square += float((weighted * advantage).sum())
            here = torch.from_numpy(own[part].reshape(-1, states)).to(self.device)
            if natural is not None:
                natural.add(here, mu, advantage)
            else:
                gradient += contract(policy, here, config.tau * weighted)
            visits += mu.sum(0)
        n_kept = max(int((~rollout.restarted).sum()), 1)
        scale = self._advantage_scale(math.sqrt(square / max(float(visits.sum()), 1.0)), iteration)
        visits /= n_kept
        if natural is not None:
            floor = n_kept * config.visit_floor / states
            gradient = natural.direction(floor, config.ridge) * (1.0 / config.tau / scale)
            direction = gradient
        else:
            gradient /= n_kept * scale
            direction = self._per_visit(gradient, visits)
        self.ascend(direction, iteration)
        error = self._regress(others, targets, rollout.restarted, iteration)
        reward = recorded(rollout.rewards).sum(-1).mean()
        return {
            "J_estimate": float(reward / (1.0 - self.model.discount)),
            "critic_error": error,
            "gradient_norm": float(gradient.norm()),
            "advantage_scale": scale,
            "replica_steps": steps * replicas,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the numbers that a resumed run needs."""
        tensors, info = super().state()
        return tensors, {**info, "scale": self.scale}

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        super().restore(tensors, info)
        self.scale = info["scale"]

    # ---- values of actions ------------------------------------------------------------------

    def _costate_block(
        self,
        density: NDArray[np.float64],
        rollout: Rollout,
        part: slice,
        targets: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pass costates back along some steps; return action values and probabilities."""
        around = density[part.start : part.stop + 1]
        flat = torch.from_numpy(around.reshape(-1, around.shape[-1])).to(self.device)
        costates = self.critic.values(self.critic_inputs(flat)).double().cpu().numpy()
        costates = costates.reshape(around.shape) / self.reward_scale
        if part.stop < len(targets):
            costates[-1] = targets[part.stop]
        return self.pass_back(around, rollout.restarted[part], costates, targets[part])

    @property
    def step(self) -> float:
        """The difference step of costates: `1 / N`, or a small one where that is smaller."""
        return max(1.0 / self.n_agents, _DERIVATIVE_STEP)

    def tagged(self, rollout: Rollout, iteration: int) -> NDArray[np.float64]:
        """Draw the path of one agent of each replica, `(T + 1, B, S)` with a 1 where it is."""
        graph = self.model.graph
        counts, flows = recorded(rollout.counts), recorded(rollout.flows)
        rng = np.random.default_rng((part_seed(self.config.seed, LANDED), iteration))
        replicas = np.arange(counts.shape[1])
        path = np.zeros(counts.shape)
        state = _draw(counts[0], rng)
        path[0, replicas, state] = 1.0
        for t, restarted in enumerate(rollout.restarted):
            place, inside = _rows(graph, state)
            went = np.where(inside, flows[t][replicas[:, None], place], 0)
            state = graph.indices[graph.indptr[state] + _draw(went, rng)]
            state = np.where(restarted, _draw(counts[t + 1], rng), state)
            path[t + 1, replicas, state] = 1.0
        return path

    def pass_back(
        self,
        density: NDArray[np.float64],
        restarted: NDArray[np.bool_],
        costates: NDArray[np.float64],
        targets: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pass costates back along a segment of `T` steps, in the core.

        Parameters
        ----------
        density
            `mu_t` of the other agents, `(T + 1, B, S)`.
        restarted
            `(T, B)`.
        costates
            What the critics say, `(T + 1, B, S)`; read at the end and at restarts.
        targets
            `(T, B, S)`, filled with the costates at each step.

        Returns
        -------
        values, probs
            `q(s, a)` and `pi(a | s, .)` of one more agent in `s`, `(T B, S, A)`.
        """
        steps, replicas, states = targets.shape
        values = np.zeros((steps, replicas, states, self.model.n_actions))
        probs = np.zeros_like(values)
        with self.model.explaining():
            self.simulator._core.pass_back(
                self.policy._core,
                np.ascontiguousarray(density),
                np.ascontiguousarray(restarted),
                np.ascontiguousarray(costates),
                self.step,
                targets,
                values,
                probs,
            )
        flat = (-1, states, self.model.n_actions)
        return values.reshape(flat), probs.reshape(flat)

    def _value_block(
        self, density: NDArray[np.float64], rollout: Rollout, part: slice, iteration: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return action values and probabilities of some steps from critics of values."""
        states = density.shape[-1]
        landed = None
        if rollout.flows is not None:
            rng = np.random.default_rng(
                (part_seed(self.config.seed, LANDED), iteration, part.start)
            )
            flows = cast("NDArray[np.int64]", rollout.flows[part])
            landed = self.landed(flows.reshape(-1, flows.shape[-1]), rng)
        here = density[part].reshape(-1, states)
        after = density[part.start + 1 : part.stop + 1].reshape(-1, states)
        values = self.one_agent_values(here, after, landed)
        with torch.no_grad():
            probs = self.policy.mean_action(here, 1.0).cpu().numpy()
        return values, probs

    def one_agent_values(
        self,
        density: NDArray[np.float64],
        after: NDArray[np.float64],
        landed: NDArray[np.intp] | None,
    ) -> NDArray[np.float64]:
        """Return `q(s, a)` from critics of values, `(n, S, A)`.

        Parameters
        ----------
        density, after
            `mu` and the next densities, `(n, S)`.
        landed
            `(n, S)` where one agent of `s` went, as a place in the row of `s`: it is taken out of
            the next densities before `V(. + e_j / N) - V(.)` is formed. None takes the derivative
            of `V` at the next densities.
        """
        graph = self.model.graph
        x = torch.from_numpy(after).to(self.device)
        if landed is None:
            slope = derivative_gains(self.critic, self.critic_inputs(x)).cpu().numpy()
            gains = (slope * self._input_slope(after))[:, graph.indices]
        else:
            step = 1.0 / self.n_agents
            now = self.transformed(x)
            gains = (
                self._differences(
                    self.critic,
                    self.critic_inputs(x),
                    self.transformed((x - step).clamp(min=0.0)) - now,
                    self.transformed(x + step) - now,
                    torch.from_numpy(landed).to(self.device),
                )
                .cpu()
                .numpy()
                / step
            )
        prob, reward = self.model.evaluate(density)
        prob *= gains[:, None, :] / self.reward_scale
        ahead = np.add.reduceat(prob, graph.indptr[:-1], axis=-1)
        values: NDArray[np.float64] = reward + self.model.discount * ahead.swapaxes(1, 2)
        return values

    @cached_property
    def _differences(self) -> DifferenceGains:
        """Which critics read what; the same for all critics of this learner."""
        return DifferenceGains(self.critic, self.model.graph)

    def landed(self, flows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.intp]:
        """Draw where one agent of each state went, `(n, S)`, from flows `(n, nnz)` in CSR order."""
        place, inside = _rows(self.model.graph, np.arange(self.model.n_states))
        return _draw(np.where(inside, flows[:, place], 0), rng)

    def _value_targets(
        self, density: NDArray[np.float64], rollout: Rollout, targets: NDArray[np.float64]
    ) -> None:
        """Fill targets of values: the rewards of the segment and the critic at its end."""
        last = torch.from_numpy(density[-1]).to(self.device)
        after = self.critic.values(self.critic_inputs(last)).double().cpu().numpy()
        after /= self.reward_scale
        rewards = recorded(rollout.rewards)
        for t in range(len(targets) - 1, -1, -1):
            targets[t] = rewards[t] + self.model.discount * after
            if rollout.restarted[t].any():
                # the transition is dropped; what leads to mu_t still needs its value
                x = torch.from_numpy(density[t]).to(self.device)
                own = self.critic.values(self.critic_inputs(x)).double().cpu().numpy()
                targets[t] = np.where(
                    rollout.restarted[t][:, None], own / self.reward_scale, targets[t]
                )
            after = targets[t]

    # ---- critics and scales -----------------------------------------------------------------

    def _advantage_scale(self, size: float, iteration: int) -> float:
        """Return what advantages of this root mean square are divided by."""
        config = self.config
        if config.advantage_scale is not None:
            return config.advantage_scale
        if iteration < config.scale_iterations:
            # the largest seen: early critics know too little to see all
            self.scale = max(self.scale, size)
        return self.scale if self.scale > 0.0 else 1.0

    def _per_visit(self, gradient: Tensor, visits: Tensor) -> Tensor:
        """Return the gradient of each state by its mean density `(S,)`, `visit_floor` at least."""
        if self.config.visit_floor == math.inf:
            return gradient
        floored = visits + self.config.visit_floor / len(visits)
        # a state that nobody visits has no gradient either
        floored = torch.where(floored > 0.0, floored, 1.0)
        return gradient / floored[:, None, None].to(gradient.dtype)

    def _regress(
        self,
        density: NDArray[np.float64],
        targets: NDArray[np.float64],
        restarted: NDArray[np.bool_],
        iteration: int,
    ) -> float:
        """Regress the critics on their targets, a step of all replicas at a time."""
        config = self.config
        steps = len(targets)
        rng = np.random.default_rng((part_seed(config.seed, SHUFFLE), iteration))
        order = [t for _ in range(config.critic_epochs) for t in rng.permutation(steps).tolist()]
        square = self.critic.td_steps(
            self.transformed(torch.from_numpy(density[:steps]).to(self.device)),
            torch.from_numpy(targets * self.reward_scale).to(self.device),
            config.critic_rate,
            order=order,
            keep=torch.from_numpy(~restarted).to(self.device),
            normalized=config.critic_normalized,
        )
        self.check_errors(square, iteration)
        return math.sqrt(float(square.mean()))

    def critic_inputs(self, density: Tensor) -> list[Tensor]:
        """Return what critics of densities `(n, S)` read."""
        return self.critic.inputs(self.transformed(density))

    def _input_slope(self, density: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivative of the inputs in the densities."""
        scale = self.policy.density_scale
        if self.config.density_transform == "log1p":
            return 2.0 * scale / (1.0 + scale * density)
        return np.full_like(density, scale)


def _rows(graph: Graph, states: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where the rows of some states stand in CSR order, and what is no padding, `(n, D)`."""
    degrees = np.diff(graph.indptr)
    column = np.arange(degrees.max())
    place = graph.indptr[states][:, None] + column
    return np.minimum(place, len(graph.indices) - 1), column < degrees[states][:, None]


def _draw(counts: NDArray[Any], rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw the place of one agent of each row `(..., K)` of counts; 0 where there is none."""
    ends = counts.cumsum(axis=-1)
    agent = rng.integers(0, np.maximum(ends[..., -1], 1))
    place: NDArray[np.intp] = (ends <= agent[..., None]).sum(-1) * (ends[..., -1] > 0)
    return place

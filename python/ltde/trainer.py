"""LTDE-Neural-AC: localised critics and actors, trained over the arrays of the simulator."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltde.actor import advantages, ascend, contract, score_gradient
from ltde.arguments import integer, population_size
from ltde.config import Config
from ltde.critic import Critic
from ltde.energy import EnergyPolicy
from ltde.evaluation import evaluate
from ltde.model import NetworkedModel
from ltde.network_policy import NetworkPolicy
from ltde.simulator import Simulator
from ltde.softmax import SoftmaxPolicy

__all__ = ["LTDENeuralAC", "TrainingDiverged", "TrainingResult"]

Callback: TypeAlias = Callable[["LTDENeuralAC", dict[str, Any]], object]

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = 1
# Difference step of costates where 1 / N is smaller: the derivative form of the one-agent gradient.
_DERIVATIVE_STEP = 1e-7
# Seeds of the parts of a run: different, so that evaluation never sees the training's numbers.
_POLICY, _CRITIC, _SIMULATOR, _EVALUATION, _SHUFFLE = range(1, 6)
_SCORE_CHAINS, _DRAWS = 7, 103


class TrainingDiverged(RuntimeError):
    """Training met a number that is not finite; the last checkpoint is as it was."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What `fit` did.

    Attributes
    ----------
    policy
        The policy of the last iteration.
    best
        The policy of the best evaluation; the last one if there was none.
    metrics
        One dict an iteration.
    """

    policy: NetworkPolicy
    best: NetworkPolicy
    metrics: list[dict[str, Any]] = field(repr=False)


class LTDENeuralAC:
    """Train localised critics and decentralised actors; see `Config` for what it does.

    Parameters
    ----------
    model
        The model.
    n_agents
        Number of agents `N`, or `math.inf` with `actor="marginal"`.
    config
        `Config.practical()` by default.
    threads
        Worker threads of the simulator; None takes all cores.
    device
        Of the networks: `"cpu"` or `"cuda"`.

    Attributes
    ----------
    policy
        The policy being trained.
    critic
        Its critics.
    simulator
        The replicas.
    iteration
        Iterations done.

    Examples
    --------
    >>> import ltde
    >>> def local(s, mu, node, edge, prob, reward):
    ...     for a in range(prob.shape[0]):
    ...         prob[a, a] = 1.0
    ...         reward[a] = -mu[a]
    >>> model = ltde.NetworkedModel(ltde.Graph.ring(4), 3, local, discount=0.9)
    >>> trainer = ltde.LTDENeuralAC(model, 100, ltde.Config.practical(width=16, n_iterations=3))
    >>> result = trainer.fit()
    >>> len(result.metrics)
    3
    """

    def __init__(
        self,
        model: NetworkedModel,
        n_agents: float,
        config: Config | None = None,
        *,
        threads: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        config = Config.practical() if config is None else config
        if not isinstance(model, NetworkedModel):
            raise TypeError(f"model: expected an ltde.NetworkedModel, got {type(model).__name__}")
        if not isinstance(config, Config):
            raise TypeError(f"config: expected an ltde.Config, got {type(config).__name__}")
        self.model, self.config = model, config
        self.n_agents = population_size(n_agents)
        if self.n_agents == math.inf and config.actor != "marginal":
            raise ValueError('n_agents: actor="score" needs a finite number, got inf')
        self.device = torch.device(device)
        dtype = getattr(torch, config.dtype)
        scale = config.density_scale
        family = SoftmaxPolicy if config.family == "softmax" else EnergyPolicy
        self.policy: NetworkPolicy = family(
            model,
            config.width,
            tau=config.tau,
            density_scale=float(model.n_states) if scale is None else scale,
            input_scale=config.input_scale,
            symmetric=config.symmetric,
            seed=_seed(config.seed, _POLICY),
            dtype=dtype,
        ).to(self.device)
        self._theta_0 = self.policy.theta.detach().clone()
        self.critic = self._fresh_critic()
        self.simulator = Simulator(
            model, n_agents, config.n_replicas, seed=_seed(config.seed, _SIMULATOR), threads=threads
        )
        # draws from sigma for the score function: they leave the chain of the critic alone
        self._draws = Simulator(
            model,
            n_agents,
            config.n_replicas,
            seed=_seed(config.seed, _DRAWS),
            threads=threads,
        )
        self.iteration = 0
        self._scale = 0.0
        self._best: tuple[float, Tensor] | None = None
        self._folder: Path | None = None  # the run directory that is this trainer's own
        self.metrics: list[dict[str, Any]] = []

    def fit(
        self,
        callbacks: Iterable[Callback] = (),
        *,
        n_iterations: int | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> TrainingResult:
        """Train until `n_iterations` iterations are done in all.

        Parameters
        ----------
        callbacks
            Called as `callback(trainer, metrics)` after every iteration; one that returns True
            stops the training.
        n_iterations
            Total number of iterations; None takes `config.n_iterations`.
        run_dir
            Folder for `config.toml`, `metrics.jsonl` and a checkpoint every
            `config.checkpoint_every` iterations, written atomically: `load` goes on from it with
            the same bits, whenever the process ends. After Ctrl-C, or any error, this trainer is
            where its last whole iteration ended.

        Returns
        -------
        TrainingResult
            The last and the best policy, and the metrics.

        Raises
        ------
        TrainingDiverged
            If a parameter or an error is not finite, naming the state.
        """
        total = self.config.n_iterations
        if n_iterations is not None:
            total = integer("n_iterations", n_iterations, 0, 2**53)
        callbacks = list(callbacks)
        folder = None if run_dir is None else Path(run_dir)
        if folder is not None:
            self._open(folder)
        with _one_torch_thread():
            while self.iteration < total:
                before = self._state()
                try:
                    metrics = self._iterate()
                except BaseException:
                    # as if the iteration had not begun
                    self._restore(*before)
                    raise
                self.metrics.append(metrics)
                if folder is not None:
                    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(metrics) + "\n")
                    last = self.iteration == total
                    if last or self.iteration % self.config.checkpoint_every == 0:
                        self.save(folder)
                if any([callback(self, metrics) is True for callback in callbacks]):
                    if folder is not None:
                        self.save(folder)
                    break
        return TrainingResult(self.policy, self.best_policy(), list(self.metrics))

    def best_policy(self) -> NetworkPolicy:
        """Return a copy of the policy with the weights of its best evaluation."""
        policy = copy.deepcopy(self.policy)
        if self._best is not None:
            with torch.no_grad():
                policy.theta.copy_(self._best[1])
        return policy

    # ---- one iteration ----------------------------------------------------------------------

    def _iterate(self) -> dict[str, Any]:
        start = time.perf_counter()
        config = self.config
        if config.actor == "marginal":
            metrics = self._marginal_iteration()
        else:
            metrics = self._score_iteration()
        self.iteration += 1
        metrics = {"iteration": self.iteration, **metrics}
        if config.evaluate_every and self.iteration % config.evaluate_every == 0:
            result = evaluate(
                self.model,
                self.policy,
                self.n_agents,
                config.n_replicas,
                seed=_seed(config.seed, _EVALUATION),
                threads=self.simulator.threads,
            )
            metrics["J"], metrics["J_interval"] = result.mean, list(result.interval)
            if self._best is None or result.mean > self._best[0]:
                self._best = result.mean, self.policy.theta.detach().clone()
        metrics["seconds"] = time.perf_counter() - start
        return metrics

    def _marginal_iteration(self) -> dict[str, Any]:
        """Take a step of the one-agent gradient with costate critics."""
        config, policy = self.config, self.policy
        assert isinstance(policy, SoftmaxPolicy)
        if not config.critic_warm_start:
            self.critic = self._fresh_critic()
        rollout = self.simulator.rollout(
            policy, config.segment, restart="chain", record=("counts", "rewards")
        )
        density = _array(rollout.counts) / (self.n_agents if self.n_agents < math.inf else 1.0)
        steps, replicas, states = density.shape[0] - 1, density.shape[1], density.shape[2]
        inputs = self._costate_inputs(density.reshape(-1, states))
        costates = self.critic.values(inputs).double().cpu() / config.reward_scale
        targets, values, probs = self._pass_back(
            density, rollout.restarted, costates.numpy().reshape(density.shape)
        )
        kept = ~rollout.restarted.reshape(-1)
        n_kept = max(int(kept.sum()), 1)
        with torch.no_grad():
            mu = torch.from_numpy(density[:-1].reshape(-1, states) * kept[:, None]).to(self.device)
            pi = torch.from_numpy(probs).to(self.device)
            advantage = advantages(
                torch.from_numpy(values).to(self.device), pi, self.policy.action_mask
            )
            scale = self._advantage_scale(mu, pi, advantage)
            weights = mu.unsqueeze(-1) * advantage / scale
            if not config.natural:
                weights = weights * pi
            gradient = contract(policy, mu, config.tau * weights) / n_kept
            visits = mu.sum(0) / n_kept
            step = gradient
            if config.visit_floor < math.inf:
                mass = visits + config.visit_floor / states
                # a state that nobody visits has no gradient either
                mass = torch.where(mass > 0.0, mass, 1.0)
                step = step / mass[:, None, None].to(step.dtype)
            rate = config.actor_rate / (1.0 + config.actor_decay * self.iteration)
            step = rate * step
            self._check("actor", step)
            ascend(policy, step, self._theta_0, config.actor_radius)
            error = self._regress(inputs, targets, rollout.restarted)
        reward = _array(rollout.rewards).sum(-1).mean()
        return {
            "J_estimate": float(reward / (1.0 - self.model.discount)),
            "critic_error": error,
            "gradient_norm": float(gradient.norm()),
            "advantage_scale": scale,
            "agent_steps": steps * replicas,
        }

    def _pass_back(
        self, density: NDArray[np.float64], restarted: NDArray[np.bool_], costates: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return costate targets `(T, B, S)`, and action values and probabilities `(T B, S, A)`."""
        steps, replicas, states = density.shape[0] - 1, density.shape[1], density.shape[2]
        actions = self.model.n_actions
        targets = np.zeros((steps, replicas, states))
        values = np.zeros((steps, replicas, states, actions))
        probs = np.zeros_like(values)
        with self.model.explaining():
            self.simulator._core.pass_back(
                self.policy._core,
                np.ascontiguousarray(density),
                restarted,
                np.ascontiguousarray(costates),
                max(1.0 / self.n_agents, _DERIVATIVE_STEP),
                targets,
                values,
                probs,
            )
        flat = (-1, states, actions)
        return targets, values.reshape(flat), probs.reshape(flat)

    def _advantage_scale(self, mu: Tensor, pi: Tensor, advantage: Tensor) -> float:
        """Return what advantages are divided by."""
        config = self.config
        if config.advantage_scale is not None:
            return config.advantage_scale
        if self.iteration < config.scale_iterations:
            weights = mu.unsqueeze(-1) * pi
            square = float((weights * advantage**2).sum() / mu.sum())
            # the largest seen: early critics know too little to see all
            self._scale = max(self._scale, math.sqrt(square))
        return self._scale if self._scale > 0.0 else 1.0

    def _regress(
        self, inputs: list[Tensor], targets: NDArray[np.float64], restarted: NDArray[np.bool_]
    ) -> float:
        """Regress the critics on costate targets, a step of all replicas at a time."""
        config = self.config
        steps, replicas, states = targets.shape
        wanted = torch.from_numpy(targets * config.reward_scale).to(self.device)
        kept = torch.from_numpy(~restarted).to(self.device)
        samples = [x.reshape(len(x), steps + 1, replicas, -1) for x in inputs]
        rng = np.random.default_rng((_seed(config.seed, _SHUFFLE), self.iteration))
        total = torch.zeros(states, dtype=torch.float64, device=self.device)
        for _ in range(config.critic_epochs):
            for t in rng.permutation(steps).tolist():
                errors = self.critic.td_step(
                    [x[:, t].contiguous() for x in samples],
                    wanted[t],
                    config.critic_rate,
                    keep=kept[t],
                    normalized=config.critic_normalized,
                )
                total += (errors.double() ** 2).mean(0)
        self._check("critic", total)
        return math.sqrt(float(total.mean()) / (steps * config.critic_epochs))

    def _score_iteration(self) -> dict[str, Any]:
        """Algorithm 2, with Algorithm 1 inside."""
        config, policy = self.config, self.policy
        if not config.critic_warm_start:
            self.critic = self._fresh_critic()
        error = self._learn_q()
        counts, actions, rewards = self._visits()
        with torch.no_grad():
            weights = self._q_weights(counts, actions)
            factor = 1.0 / ((1.0 - self.model.discount) * len(counts) * config.reward_scale)
            gradient = score_gradient(
                policy,
                counts,
                actions,
                factor * weights,
                _seed(config.seed, _SCORE_CHAINS) + self.iteration,
            )
            rate = config.actor_rate / (1.0 + config.actor_decay * self.iteration)
            # Theorem 5.10 steps along the gradient of the scaled objective
            step = rate * config.reward_scale * gradient
            self._check("actor", step)
            ascend(policy, step, self._theta_0, config.actor_radius)
        return {
            "J_estimate": float(rewards.sum(-1).mean() / (1.0 - self.model.discount)),
            "critic_error": error,
            "gradient_norm": float(gradient.norm()),
            "agent_steps": config.critic_steps * config.n_replicas + len(counts),
        }

    def _learn_q(self) -> float:
        """Algorithm 1: TD(0) on transitions of the stationary or of the restart chain."""
        config, discount = self.config, self.model.discount
        chain: Literal["chain"] | None = "chain" if config.critic_law == "sigma" else None
        thinning = config.thinning if chain is None else 1
        steps = config.critic_steps * thinning
        rollout = self.simulator.rollout(
            self.policy, steps + 1, restart=chain, record=("counts", "actions", "rewards")
        )
        counts, actions = _array(rollout.counts), _array(rollout.actions)
        rewards = _array(rollout.rewards)
        total = torch.zeros(self.model.n_states, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for t in range(0, steps, thinning):
                zeta = self._q_inputs(counts[t], actions[t])
                after = self._q_inputs(counts[t + 1], actions[t + 1])
                reward = torch.from_numpy(rewards[t] * config.reward_scale)
                targets = reward.to(self.device) + discount * self.critic.values(after).double()
                errors = self.critic.td_step(
                    zeta,
                    targets,
                    config.critic_rate,
                    keep=torch.from_numpy(~rollout.restarted[t]).to(self.device),
                    normalized=config.critic_normalized,
                )
                total += (errors.double() ** 2).mean(0)
        self._check("critic", total)
        return math.sqrt(float(total.mean()) / config.critic_steps)

    def _visits(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return `n_draws` draws from sigma: counts, team actions, rewards."""
        config = self.config
        steps = config.n_draws // config.n_replicas
        if config.sampler == "visitation":
            draws = self._draws.visitation(self.policy, steps)
            arrays = draws.counts, draws.actions, draws.rewards
        else:
            rollout = self._draws.rollout(
                self.policy, steps, restart="chain", record=("counts", "actions", "rewards")
            )
            counts = _array(rollout.counts)[:-1]
            arrays = counts, _array(rollout.actions), _array(rollout.rewards)
        states, n_actions = self.model.n_states, self.model.n_actions
        counts, actions, rewards = arrays
        return (
            np.ascontiguousarray(counts.reshape(-1, states), np.int64),
            np.ascontiguousarray(actions.reshape(-1, states, n_actions), np.int64),
            rewards.reshape(-1, states),
        )

    def _q_weights(self, counts: NDArray[np.int64], actions: NDArray[np.int64]) -> Tensor:
        """Return `sum over y in N_s^k of Q_y`, less its baseline, `(n, S)`."""
        config = self.config
        mean = config.critic_average
        q = self.critic.values(self._q_inputs(counts, actions), mean=mean).double()
        if config.baseline == "mean_action":
            expected = self._mean_action(counts)
            q -= self.critic.values(self._q_inputs(counts, None, expected), mean=mean).double()
        balls = self.model.graph.balls(config.k)
        rows = np.repeat(np.arange(self.model.n_states), np.diff(balls.indptr))
        total = torch.zeros_like(q)
        # y is in N_s^k where s is in N_y^k
        return total.index_add_(
            1,
            torch.from_numpy(rows).to(self.device),
            q[:, torch.from_numpy(balls.indices).to(self.device)],
        )

    def _mean_action(self, counts: NDArray[np.int64]) -> Tensor:
        """Return `E[h(s)]`, 0 for empty teams as `h` itself."""
        assert isinstance(self.policy, SoftmaxPolicy | EnergyPolicy)
        mean = self.policy.mean_action(counts)
        return mean * torch.from_numpy(counts > 0).to(self.device).unsqueeze(-1)

    # ---- inputs of the critics --------------------------------------------------------------

    def _costate_inputs(self, density: NDArray[np.float64]) -> list[Tensor]:
        scaled = torch.from_numpy(density * self.policy.density_scale).to(self.device)
        return self.critic.inputs(scaled)

    def _q_inputs(
        self, counts: NDArray[Any], actions: NDArray[Any] | None, mean: Tensor | None = None
    ) -> list[Tensor]:
        n = torch.from_numpy(counts).to(self.device).double()
        density = n / n.sum(-1, keepdim=True)
        if mean is None:
            assert actions is not None
            team = torch.from_numpy(actions).to(self.device).double()
            mean = team / n.clamp(min=1.0).unsqueeze(-1)
        scale = self.policy.density_scale
        if self.config.features == "mass":
            mean = scale * density.unsqueeze(-1) * mean
        return self.critic.inputs(scale * density, mean)

    def _fresh_critic(self) -> Critic:
        config = self.config
        fresh = self.iteration if hasattr(self, "iteration") else 0
        return Critic(
            self.model.graph,
            config.k,
            config.width,
            n_actions=self.model.n_actions if config.critic == "q" else 0,
            constant_input=config.constant_input,
            symmetric=config.symmetric,
            radius=config.critic_radius,
            seed=_seed(config.seed, _CRITIC) + 1_000_003 * fresh,
            dtype=getattr(torch, config.dtype),
            device=self.device,
        )

    def _check(self, what: str, tensor: Tensor) -> None:
        """Raise where a number is not finite, before it reaches a parameter of the actor."""
        wrong = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
        if wrong.any():
            state = int(wrong.nonzero()[0])
            raise TrainingDiverged(
                f"iteration {self.iteration + 1}: the {what} of state {state} is not finite; try a "
                f"smaller {what}_rate (now {getattr(self.config, what + '_rate')}) or a smaller "
                f"{what}_radius"
            )

    # ---- saving -----------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint (safetensors, with a small JSON inside) into a folder, atomically."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, info = self._state()
        copies = {name: x.cpu().contiguous() for name, x in tensors.items()}
        temporary = folder / f".{CHECKPOINT}.{os.getpid()}"
        save_file(copies, temporary, metadata={"ltde": json.dumps(info)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / CHECKPOINT)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: NetworkedModel,
        *,
        threads: int | None = None,
        device: str | torch.device = "cpu",
    ) -> LTDENeuralAC:
        """Go on from a checkpoint: the same bits as an uninterrupted run.

        Raises
        ------
        FileNotFoundError
            If the folder holds no checkpoint.
        ValueError
            If the checkpoint is of another model or version, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / CHECKPOINT
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no checkpoint")
        try:
            with safe_open(path, framework="pt") as file:
                info = json.loads((file.metadata() or {}).get("ltde", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: damaged checkpoint: {error}") from error
        if info.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected format {_FORMAT}, got {info.get('format')}")
        if info["fingerprint"] != model.fingerprint:
            raise ValueError(
                f"{path}: made for another model (fingerprint {info['fingerprint']}, this one has "
                f"{model.fingerprint})"
            )
        trainer = cls(
            model,
            info["n_agents"],
            Config.from_toml(info["config"]),
            threads=threads,
            device=device,
        )
        trainer._restore(tensors, info)
        trainer.metrics = _metrics_until(Path(folder), trainer.iteration)
        trainer._folder = Path(folder).resolve()
        return trainer

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all tensors and numbers that a resumed run needs."""
        tensors = {
            "theta": self.policy.theta,
            "theta_0": self._theta_0,
            "b": self.policy.b,
            **{f"critic.{name}": x for name, x in self.critic.state_dict().items()},
        }
        info: dict[str, Any] = {
            "format": _FORMAT,
            "fingerprint": self.model.fingerprint,
            "config": self.config.to_toml(),
            "n_agents": self.n_agents,
            "iteration": self.iteration,
            "scale": self._scale,
            "best": None if self._best is None else self._best[0],
        }
        if self._best is not None:
            tensors["best_theta"] = self._best[1]
        for name, simulator in self._simulators():
            state = simulator.state_dict()
            tensors[f"{name}.counts"] = torch.from_numpy(state.pop("counts"))
            info[name] = state
        return {name: x.detach().clone() for name, x in tensors.items()}, info

    def _restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Go back to what `_state` returned."""
        self.iteration, self._scale = info["iteration"], info["scale"]
        with torch.no_grad():
            self.policy.theta.copy_(tensors["theta"])
            self.policy.b.copy_(tensors["b"])
            self._theta_0.copy_(tensors["theta_0"])
        prefix = "critic."
        self.critic.load_state_dict(
            {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        )
        best = info["best"]
        self._best = None if best is None else (best, tensors["best_theta"].to(self.device))
        for name, simulator in self._simulators():
            counts = tensors[f"{name}.counts"].numpy()
            simulator.load_state_dict({**info[name], "counts": counts})

    def _simulators(self) -> Iterator[tuple[str, Simulator]]:
        yield "simulator", self.simulator
        yield "draws", self._draws

    def _open(self, folder: Path) -> None:
        """Make the run directory ready: metrics end where this trainer stands."""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / CHECKPOINT
        if checkpoint.exists() and folder.resolve() != self._folder:
            raise FileExistsError(
                f"{checkpoint}: a run is there already; go on with LTDENeuralAC.load, or take "
                "another folder"
            )
        self._folder = folder.resolve()
        _replace(folder / "config.toml", self.config.to_toml())
        lines = [json.dumps(row) + "\n" for row in self.metrics]
        _replace(folder / "metrics.jsonl", "".join(lines))
        if not checkpoint.exists():
            self.save(folder)


def _array(recorded: NDArray[Any] | None) -> NDArray[Any]:
    """Return an array that was recorded."""
    assert recorded is not None
    return recorded


def _seed(seed: int, part: int) -> int:
    """Return the seed of one part of a run."""
    return int(np.random.SeedSequence((seed, part)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _metrics_until(folder: Path, iteration: int) -> list[dict[str, Any]]:
    """Read the metrics up to an iteration; a line that was cut off is left out."""
    rows: list[dict[str, Any]] = []
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines()[:iteration]:
            rows.append(json.loads(line))
    return rows


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Run with one thread of torch: its operations here are too small to be worth more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

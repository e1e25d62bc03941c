"""LTDE-Neural-AC: localised critics and actors, trained over the arrays of the simulator."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ltde import checkpoint
from ltde.arguments import integer, population_size
from ltde.config import Config
from ltde.energy import EnergyPolicy
from ltde.evaluation import evaluate
from ltde.learner import EVALUATION, POLICY, SIMULATOR, Learner, TrainingDiverged, part_seed
from ltde.model import NetworkedModel
from ltde.network_policy import NetworkPolicy
from ltde.one_agent import OneAgentLearner
from ltde.progress import Progress
from ltde.score import ScoreLearner
from ltde.simulator import Simulator
from ltde.softmax import SoftmaxPolicy

__all__ = ["LTDENeuralAC", "TrainingDiverged", "TrainingResult"]

Callback: TypeAlias = Callable[["LTDENeuralAC", dict[str, Any]], object]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What `fit` did.

    Attributes
    ----------
    policy
        The policy of the last iteration.
    best
        The latest policy whose evaluation reaches the highest within its 95 % interval; the last
        one if there was none.
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
    learner
        What an iteration does: a `OneAgentLearner` or a `ScoreLearner`.
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
        scale = config.density_scale
        family = SoftmaxPolicy if config.family == "softmax" else EnergyPolicy
        policy = family(
            model,
            config.width,
            tau=config.tau,
            density_scale=float(model.n_states) if scale is None else scale,
            input_scale=config.input_scale,
            symmetric=config.symmetric,
            seed=part_seed(config.seed, POLICY),
            dtype=getattr(torch, config.dtype),
        ).to(torch.device(device))
        simulator = Simulator(
            model,
            n_agents,
            config.n_replicas,
            seed=part_seed(config.seed, SIMULATOR),
            threads=threads,
        )
        learner = OneAgentLearner if config.actor == "marginal" else ScoreLearner
        self.learner: Learner = learner(model, self.n_agents, config, policy, simulator)
        self.iteration = 0
        self._best: tuple[float, Tensor] | None = None
        self._folder: Path | None = None  # the run directory that is this trainer's own
        self.metrics: list[dict[str, Any]] = []

    @property
    def policy(self) -> NetworkPolicy:
        """The policy being trained."""
        return self.learner.policy

    def fit(
        self,
        callbacks: Iterable[Callback] = (),
        *,
        n_iterations: int | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
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
            the same bits, whenever the process ends. Ctrl-C saves, and says how to go on. After it,
            or any error, this trainer is where its last whole iteration ended.
        progress
            Whether to show a progress bar (extra `log`); None shows one where standard error is a
            terminal and `rich` is installed.

        Returns
        -------
        TrainingResult
            The last and the best policy, and the metrics.

        Raises
        ------
        TrainingDiverged
            If a parameter is not finite or the error of a critic explodes, naming the state.
        """
        total = self.config.n_iterations
        if n_iterations is not None:
            total = integer("n_iterations", n_iterations, 0, 2**53)
        callbacks = list(callbacks)
        folder = None if run_dir is None else Path(run_dir)
        if folder is not None:
            self._open(folder)
        with _one_torch_thread(), _bar(progress, total, self.iteration) as bar:
            try:
                while self.iteration < total:
                    metrics = self._whole_iteration()
                    if bar is not None:
                        bar.update(metrics)
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
            except KeyboardInterrupt as error:
                if folder is not None:
                    self._write_metrics(folder)
                    self.save(folder)
                    error.add_note(
                        f"{self.iteration} iterations are saved; go on with "
                        f"ltde.LTDENeuralAC.load({str(folder)!r}, model)"
                    )
                raise
        return TrainingResult(self.policy, self.best_policy(), list(self.metrics))

    def best_policy(self) -> NetworkPolicy:
        """Return a copy of the policy with the weights of `TrainingResult.best`."""
        policy = copy.deepcopy(self.policy)
        if self._best is not None:
            with torch.no_grad():
                policy.theta.copy_(self._best[1])
        return policy

    # ---- one iteration ----------------------------------------------------------------------

    def _whole_iteration(self) -> dict[str, Any]:
        """Do an iteration and note its metrics, or nothing at all."""
        before = self._state()
        try:
            metrics = self._iterate()
            self.metrics.append(metrics)
        except BaseException:
            self._restore(*before)
            del self.metrics[self.iteration :]
            raise
        return metrics

    def _iterate(self) -> dict[str, Any]:
        start = time.perf_counter()
        config = self.config
        metrics = {"iteration": self.iteration + 1, **self.learner.iterate(self.iteration)}
        self.iteration += 1
        if config.evaluate_every and self.iteration % config.evaluate_every == 0:
            result = evaluate(
                self.model,
                self.policy,
                self.n_agents,
                config.n_replicas,
                seed=part_seed(config.seed, EVALUATION),
                threads=self.learner.simulator.threads,
            )
            metrics["J"], metrics["J_interval"] = result.mean, list(result.interval)
            highest = -math.inf if self._best is None else self._best[0]
            # rates decay, so of policies that cannot be told apart the latest is taken
            if result.interval[1] >= highest:
                self._best = max(highest, result.mean), self.policy.theta.detach().clone()
        metrics["seconds"] = time.perf_counter() - start
        return metrics

    # ---- saving -----------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a checkpoint (safetensors, with a small JSON inside) into a folder, atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(folder / CHECKPOINT, *self._state())

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
        path = Path(folder) / CHECKPOINT
        needs = ("fingerprint", "config", "n_agents", "iteration", "best", "learner", "theta")
        tensors, info = checkpoint.read(path, needs)
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
        tensors, info = self.learner.state()
        if self._best is not None:
            tensors["best_theta"] = self._best[1].clone()
        return tensors, {
            "fingerprint": self.model.fingerprint,
            "config": self.config.to_toml(),
            "n_agents": self.n_agents,
            "iteration": self.iteration,
            "best": None if self._best is None else self._best[0],
            "learner": info,
        }

    def _restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Go back to what `_state` returned."""
        self.iteration, best = info["iteration"], info["best"]
        device = self.policy.theta.device
        self._best = None if best is None else (best, tensors["best_theta"].to(device))
        self.learner.restore(tensors, info["learner"])

    def _write_metrics(self, folder: Path) -> None:
        lines = [json.dumps(row) + "\n" for row in self.metrics]
        checkpoint.write_text(folder / "metrics.jsonl", "".join(lines))

    def _open(self, folder: Path) -> None:
        """Make the run directory ready: metrics end where this trainer stands."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CHECKPOINT
        if path.exists() and folder.resolve() != self._folder:
            raise FileExistsError(
                f"{path}: a run is there already; go on with LTDENeuralAC.load, or take "
                "another folder"
            )
        self._folder = folder.resolve()
        checkpoint.write_text(folder / "config.toml", self.config.to_toml())
        self._write_metrics(folder)
        if not path.exists():
            self.save(folder)


def _metrics_until(folder: Path, iteration: int) -> list[dict[str, Any]]:
    """Read the metrics up to an iteration, and warn where they end too early."""
    rows: list[dict[str, Any]] = []
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines()[:iteration]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(row, dict) or row.get("iteration") != len(rows) + 1:
                break
            rows.append(row)
    # `save` alone writes no metrics
    if len(rows) < iteration and (folder / "config.toml").is_file():
        warnings.warn(
            f"{path}: holds the metrics of {len(rows)} of {iteration} iterations",
            RuntimeWarning,
            stacklevel=3,
        )
    return rows


def _bar(progress: bool | None, total: int, done: int) -> AbstractContextManager[Progress | None]:
    """Return a progress bar, or nothing to show."""
    if progress is None:
        progress = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    return Progress(max(total, done), done) if progress else nullcontext()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Run with one thread of torch: its operations here are too small to be worth more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

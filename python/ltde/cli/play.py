"""`ltde evaluate`, `ltde simulate` and `ltde report`: what plays a policy."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ltde.cli import source
from ltde.cli.options import (
    File,
    Flag,
    Integer,
    Name,
    Number,
    Numbers,
    Output,
    Run,
    Target,
    UsageError,
    Word,
    interval,
    number_of_agents,
    plural,
    short,
    table,
    whole,
)
from ltde.envs import ENVIRONMENTS
from ltde.envs.environment import Environment, OwnModel
from ltde.evaluation import has_value
from ltde.policy import TabularPolicy

if TYPE_CHECKING:
    from ltde.trainer import LTDENeuralAC

__all__ = ["Evaluate", "Report", "Simulate"]

_NOTHING_LEFT = (
    "--agents: expected a finite number; teams of an energy-based policy stay random at inf"
)


@dataclass(kw_only=True)
class Evaluate:
    """Measure a trained policy at any number of agents.

    It shows what the application measures, such as minutes, and the value J.

    In brackets are 95 % intervals over replicas.

    For example:
    $ ltde evaluate runs/roads --agents 100 10000 inf --baselines

    Attributes
    ----------
    run_dir
        The run directory.
    agents
        Numbers of agents: 1000, 1e6, 10_000 or inf. By default 100, 10000 and inf; for a model
        that starts with given numbers of agents, their sum and inf.
    policy
        `best`, `last`, or the name of a baseline.
    baselines
        Also measure the baselines of the application.
    replicas
        Number of independent simulations.
    seed
        Seed of the simulations. Those of the training are others.
    threads
        Worker threads; all cores by default.
    """

    run_dir: Run
    agents: Numbers = None
    policy: Name = "best"
    baselines: Flag = False
    replicas: int = 16
    seed: int = 0
    threads: Integer = None
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Evaluate."""
        _check_flags(self)
        given = _numbers(self.agents)  # what is wrong is said at once
        made = source.read(self.run_dir)
        environment = made.build()
        numbers = given or _default_numbers(environment, (100, 10_000, math.inf))
        chosen = _policies(environment, self.run_dir, made, self.policy, self.baselines)
        own = isinstance(environment, OwnModel)  # measured by J itself
        plays = [
            (name, policy, n_agents)
            for name, policy in chosen.items()
            for n_agents in _playable(policy, numbers, self.output)
        ]
        if not plays:
            raise UsageError(_NOTHING_LEFT)
        rows = [self._measured(environment, *play) for play in plays]
        references = environment.references()
        measure = f"{environment.measure_name} ({environment.unit})"
        header = ["policy", "agents", measure] + ["J"] * (not own)
        lines = [header]
        for row in rows:
            shown = [row["measure"]] + [row["J"]] * (not own)
            values = [interval(value["mean"], value["interval"]) for value in shown]
            lines.append([row["policy"], f"{row['agents']:,}", *values])
        for name, value in references.items():
            lines.append([name, "", short(value)] + [""] * (not own))
        better = "lower" if environment.lower_is_better else "higher"
        self.output.result(
            {
                "run": str(self.run_dir),
                "measure": environment.measure_name,
                "unit": environment.unit,
                "lower_is_better": environment.lower_is_better,
                "replicas": self.replicas,
                "seed": self.seed,
                "rows": rows,
                "references": references,
            },
            f"{environment.title}\n\n{table(lines)}\n\n{better} is better; "
            f"[95 % interval, {plural(self.replicas, 'replica')}]",
        )

    def _measured(
        self, environment: Environment, name: str, policy: Any, n_agents: float
    ) -> dict[str, Any]:
        from ltde.evaluation import evaluate

        sizes = (n_agents, self.replicas)
        value = evaluate(environment.model, policy, *sizes, seed=self.seed, threads=self.threads)
        measured: Any = value
        if not isinstance(environment, OwnModel):
            measured = environment.measure(policy, *sizes, self.seed, threads=self.threads)
        return {
            "policy": name,
            "agents": n_agents,
            "measure": {"mean": measured.mean, "interval": measured.interval},
            "J": {"mean": value.mean, "interval": value.interval},
        }


@dataclass(kw_only=True)
class Simulate:
    """Play a policy and write down where the agents are and what they earn.

    For example:
    $ ltde simulate runs/roads --agents 1e6 --steps 200 --out trajectory.npz
    $ ltde simulate my_model.py:model --agents inf

    Attributes
    ----------
    target
        A run directory, an application that `ltde envs` lists, or FILE.py:NAME. With an
        application, --help also shows its options.
    agents
        Number of agents: 1000, 1e6, 10_000 or inf. By default what the application asks for, and
        1000 for a model of your own.
    steps
        Number of steps T, at least 1.
    replicas
        Number B of independent simulations.
    policy
        `uniform`, the name of a baseline, or, for a run, `best` or `last`. By default the best of a
        run, and uniform without one.
    out
        A file of NumPy arrays (.npz): counts (T + 1, B, S), agents in each state, and rewards
        (T, B, S). With inf agents counts are densities.
    seed
        Seed of the simulation.
    threads
        Worker threads; all cores by default.
    """

    target: Target
    agents: Number = None
    steps: int = 100
    replicas: int = 1
    policy: Word = None
    out: File = None
    seed: int = 0
    threads: Integer = None
    application: ClassVar[Any] = None
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Simulate."""
        whole("steps", self.steps, 1)
        _check_flags(self)
        _check_file(self.out)
        folder = Path(self.target)
        is_run = self.target not in ENVIRONMENTS and folder.is_dir()
        made = source.read(folder) if is_run else source.named(self.target, self.application)
        environment = made.build()
        wanted = self.policy or ("best" if is_run else "uniform")
        chosen = _policies(environment, folder if is_run else None, made, wanted, False)
        agents = self.agents
        n_agents = environment.training_agents if agents is None else number_of_agents(agents)

        from ltde.simulator import Simulator

        simulator = Simulator(
            environment.model, n_agents, self.replicas, seed=self.seed, threads=self.threads
        )
        start = time.perf_counter()
        rollout = simulator.rollout(chosen[wanted], self.steps, record=["counts", "rewards"])
        seconds = time.perf_counter() - start
        counts, rewards = rollout.counts, rollout.rewards
        assert counts is not None
        assert rewards is not None
        if self.out is not None:
            with self.out.open("wb") as file:
                np.savez_compressed(file, counts=counts, rewards=rewards)
        team = rewards.sum(axis=2).mean(axis=1)
        discounts = environment.model.discount ** np.arange(self.steps)
        total = 1.0 if n_agents == math.inf else n_agents
        crowd = counts.mean(axis=1) / total
        step, state = divmod(int(crowd.argmax()), crowd.shape[1])
        data = {
            "target": self.target,
            "policy": wanted,
            "agents": n_agents,
            "steps": self.steps,
            "replicas": self.replicas,
            "seed": self.seed,
            "seconds": seconds,
            "reward_first": team[0],
            "reward_last": team[-1],
            "discounted_sum": float(discounts @ team),
            "fullest": {"step": step, "state": state, "share": crowd[step, state]},
            "out": None if self.out is None else str(self.out),
        }
        rows = [
            ["policy", wanted],
            ["reward of a step", f"{short(team[0])} at first, {short(team[-1])} at last"],
            ["discounted sum", short(data["discounted_sum"])],
            ["fullest", f"state {state} after {plural(step, 'step')}: {crowd[step, state]:.1%}"],
        ]
        if self.out is not None:
            rows.append([str(self.out), f"counts {counts.shape}, rewards {rewards.shape}"])
        self.output.result(
            data,
            f"{environment.title}: {plural(n_agents, 'agent')}, {plural(self.steps, 'step')}, "
            f"{plural(self.replicas, 'replica')} in {seconds:.3g} s\n\n{table(rows)}",
        )


@dataclass(kw_only=True)
class Report:
    """Write report.html into a run directory: learning curves, numbers and pictures.

    For example:
    $ ltde report runs/roads --open

    Attributes
    ----------
    run_dir
        The run directory.
    agents
        Numbers of agents to compare: 1000, 1e6, 10_000 or inf. By default 100, 1000, 10000 and
        inf; for a model that starts with given numbers of agents, their sum and inf.
    policy
        The policy of the best evaluation, or of the last iteration.
    replicas
        Number of independent simulations.
    seed
        Seed of the simulations.
    threads
        Worker threads; all cores by default.
    open
        Show the report in a browser.
    """

    run_dir: Run
    agents: Numbers = None
    policy: Literal["best", "last"] = "best"
    replicas: int = 16
    seed: int = 0
    threads: Integer = None
    open: Flag = False
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Write the report."""
        _check_flags(self)
        _numbers(self.agents)  # what is wrong is said at once
        made = source.read(self.run_dir)
        environment = made.build()
        path = self.write(environment, source.load_trainer(self.run_dir, made, environment))
        self.output.result({"report": str(path)}, str(path))
        if self.open:
            import webbrowser

            webbrowser.open(path.resolve().as_uri())

    def write(self, environment: Environment, trainer: LTDENeuralAC) -> Path:
        """Write the report of a trainer."""
        policy = trainer.best_policy() if self.policy == "best" else trainer.policy
        numbers = _numbers(self.agents)
        numbers = numbers or _default_numbers(environment, (100, 1000, 10_000, math.inf))
        played = _playable(policy, numbers, self.output)
        if not played:
            raise UsageError(_NOTHING_LEFT)
        from ltde import report

        return report.write(
            self.run_dir,
            environment,
            policy,
            trainer.metrics,
            agents=played,
            n_replicas=self.replicas,
            seed=self.seed,
            training_agents=trainer.n_agents,
            threads=self.threads,
        )


def _check_flags(command: Evaluate | Simulate | Report) -> None:
    """Check the numbers that these commands share."""
    whole("replicas", command.replicas, 1, 2**31)
    whole("seed", command.seed, 0, 2**64 - 1)
    whole("threads", command.threads, 1, 2**16)


def _check_file(path: Path | None) -> None:
    """Find out whether a file can be written before there is something to write."""
    if path is None:
        return
    number = 0
    if not path.parent.is_dir():
        number = errno.ENOENT
    elif path.is_dir():
        number = errno.EISDIR
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(path))


def _numbers(agents: tuple[str, ...] | None) -> list[float]:
    """Return the numbers of agents that were given; none if the flag was not."""
    if agents is None:
        return []
    if not agents:
        raise UsageError("--agents: expected a number")
    return [number_of_agents(text) for text in agents]


def _default_numbers(environment: Environment, usual: Sequence[float]) -> list[float]:
    """Return the usual numbers of agents; the only ones where the start has given counts."""
    fixed = source.fixed_agents(environment.model)
    return list(usual) if fixed is None else [fixed, math.inf]


def _playable(policy: Any, numbers: list[float], output: Output) -> list[float]:
    """Leave out infinitely many agents where a policy has no value there."""
    left = [n_agents for n_agents in numbers if has_value(policy, n_agents)]
    if left and len(left) < len(numbers):
        output.note("inf is left out: teams of an energy-based policy stay random there")
    return left


def _policies(
    environment: Environment, folder: Path | None, made: source.Source, wanted: str, baselines: bool
) -> dict[str, Any]:
    """Return the policy that is wanted, and the baselines too if asked for, by name."""
    if wanted == "uniform":
        known: dict[str, Any] = {"uniform": TabularPolicy.uniform(environment.model)}
    elif folder is not None and wanted in ("best", "last"):
        trainer = source.load_trainer(folder, made, environment)
        known = {"best": trainer.best_policy(), "last": trainer.policy}
    else:
        known = dict(environment.baselines())
    if wanted not in known:
        names = ["best", "last"] * (folder is not None) + ["uniform", *known]
        raise UsageError(
            f"--policy: expected one of {', '.join(dict.fromkeys(names))}; got {wanted!r}"
        )
    chosen = {wanted: known[wanted]}
    return chosen | dict(environment.baselines()) if baselines else chosen

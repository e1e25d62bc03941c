"""`ltde train` and `ltde resume`."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ltde.cli import source
from ltde.cli.options import (
    File,
    Flag,
    Integer,
    Number,
    Output,
    Run,
    Target,
    UsageError,
    flags_to_change,
    interval,
    number_of_agents,
    plural,
    whole,
)
from ltde.config import Config

if TYPE_CHECKING:
    from ltde.envs import Environment
    from ltde.model import NetworkedModel
    from ltde.network_policy import NetworkPolicy
    from ltde.trainer import LTDENeuralAC

__all__ = ["Resume", "Train"]

Settings: Any = flags_to_change(
    Config,
    "Settings",
    "Settings of the learner, the fields of ltde.Config. Shown are the defaults of the preset "
    "practical; --preset theory and --config have their own.",
)

# Seconds between two lines of progress where there is no terminal.
_LINE_SECONDS = 10.0


@dataclass(kw_only=True)
class Machine:
    """Where the work is done; the results do not depend on the number of threads.

    Attributes
    ----------
    threads
        Worker threads of the simulator; all cores by default.
    device
        Of the networks: "cpu" or "cuda".
    """

    threads: Integer = None
    device: str = "cpu"

    def check(self) -> None:
        """Refuse numbers that make no sense."""
        whole("threads", self.threads, 1, 2**16)


@dataclass(kw_only=True)
class Train:
    """Train a policy for an application or a model of your own.

    It writes a run directory, which is all that the other commands need:
    - environment.toml: what was trained
    - config.toml, metrics.jsonl, checkpoint.safetensors: while it trains
    - policy_best.safetensors, policy_last.safetensors: at the end

    Ctrl-C saves the run, and `ltde resume` goes on with the same bits.

    For example:
    $ ltde train road-routing --iterations 40 --out runs/roads
    $ ltde train my_model.py:model --agents 1000 --out runs/mine

    Attributes
    ----------
    target
        An application that `ltde envs` lists, or FILE.py:NAME, where NAME is an
        ltde.NetworkedModel, an ltde.envs.Environment, or a function without arguments that returns
        one. With an application, --help also shows its options.
    out
        The run directory; by default runs/ and the name of the application or file.
    agents
        Number of agents to train with: 1000, 1e6, 10_000 or inf. By default what the application
        asks for, and 1000 for a model of your own.
    preset
        `practical` is what to run; `theory` is the paper's algorithm with the rates of its theorem.
    config
        A TOML file with fields of ltde.Config, such as the config.toml of another run; flags change
        it.
    report
        Write report.html into the run directory at the end.
    """

    target: Target
    out: File = None
    agents: Number = None
    preset: Literal["practical", "theory"] = "practical"
    config: File = None
    report: Flag = False
    application: ClassVar[Any] = None
    settings: Settings = dataclasses.field(default_factory=Settings)
    machine: Machine = dataclasses.field(default_factory=Machine)
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Train."""
        agents = None if self.agents is None else number_of_agents(self.agents)
        for flag in ("iterations", "replicas"):
            whole(flag, getattr(self.settings, f"n_{flag}"), 1)
        whole("seed", self.settings.seed, 0)
        self.machine.check()
        made = source.named(self.target, self.application)
        folder = self.out or Path("runs", made.folder)
        environment = made.build()
        config = self._config(environment.model)
        _refuse_a_run(folder)

        from ltde.trainer import LTDENeuralAC

        trainer = LTDENeuralAC(
            environment.model,
            environment.training_agents if agents is None else agents,
            config,
            threads=self.machine.threads,
            device=self.machine.device,
        )
        source.write(folder, made)
        _fit(trainer, environment, folder, config.n_iterations, self.output, report=self.report)

    def _config(self, model: NetworkedModel) -> Config:
        """Return the config that preset, file and flags ask for."""
        given = {name: value for name, value in vars(self.settings).items() if value is not None}
        if self.config is not None:
            if self.preset != "practical":
                raise UsageError("--preset and --config: give one of them")
            try:
                config = Config.from_toml(self.config)
            except (ValueError, TypeError) as error:
                error.add_note(f"in {self.config}")
                raise
            return _from_flags(config.replace, given, f"in {self.config}, with the flags given")
        if self.preset == "practical":
            return _from_flags(Config.practical, given)
        largest = max(abs(bound) for bound in model.reward_range)
        if "reward_scale" not in given and not 0.0 < largest < math.inf:
            raise UsageError(
                "--reward-scale: the preset theory needs it, as the model has no reward_range: "
                "(1 - discount) / max |r|"
            )
        needed = {
            "n_iterations": Config().n_iterations,
            "critic_steps": Config().critic_steps,
            "reward_scale": (1.0 - model.discount) / largest,
        }
        return _from_flags(partial(Config.theory, model.discount), needed | given)


@dataclass(kw_only=True)
class Resume:
    """Go on with a run that was interrupted or killed, or add iterations to it.

    The bits are those of a run that was never interrupted.

    For example:
    $ ltde resume runs/roads
    $ ltde resume runs/roads --iterations 80

    Attributes
    ----------
    run_dir
        The run directory.
    iterations
        Iterations in all, those that were done included; by default what the run was begun with.
    """

    run_dir: Run
    iterations: Integer = None
    machine: Machine = dataclasses.field(default_factory=Machine)
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Resume."""
        whole("iterations", self.iterations, 1)
        self.machine.check()
        made = source.read(self.run_dir)
        environment = made.build()
        trainer = source.load_trainer(
            self.run_dir,
            made,
            environment,
            threads=self.machine.threads,
            device=self.machine.device,
        )
        total = trainer.config.n_iterations if self.iterations is None else self.iterations
        if trainer.iteration >= total:
            self.output.note(
                f"{plural(trainer.iteration, 'iteration')} are done already; --iterations asks "
                "for more"
            )
        _fit(trainer, environment, self.run_dir, total, self.output)


def _refuse_a_run(folder: Path) -> None:
    """Raise an exception if a folder holds what a training has written."""
    from ltde.trainer import CHECKPOINT

    if (folder / CHECKPOINT).exists():
        raise FileExistsError(
            f"{folder}: holds a run already; go on with `ltde resume {folder}`, or take "
            "another folder with --out"
        )
    metrics = folder / "metrics.jsonl"
    left = [_policy_file(folder, name) for name in ("best", "last")]
    left = [path for path in left if path.exists()]
    if metrics.is_file() and metrics.stat().st_size > 0:
        left.append(metrics)
    if left:
        raise FileExistsError(
            f"{folder}: holds {', '.join(path.name for path in left)} of a run whose checkpoint "
            "is gone; take another folder with --out"
        )


def _policy_file(folder: Path, name: str) -> Path:
    """Return where a policy of a run is written."""
    return folder / f"policy_{name}.safetensors"


def _holds(path: Path, policy: NetworkPolicy) -> bool:
    """Whether a file holds this policy; that of a run that was killed may be of an earlier end."""
    from ltde import checkpoint

    try:
        theta = checkpoint.read(path, ["theta"])[0]["theta"]
    except (FileNotFoundError, ValueError):
        return False
    return np.array_equal(theta.numpy(), policy.theta.detach().cpu().numpy())


def _from_flags(make: Callable[..., Config], given: dict[str, Any], note: str = "") -> Config:
    """Make a config of what flags give; what it refuses is an error of usage."""
    try:
        return make(**given)
    except (ValueError, TypeError, OverflowError) as error:
        problem = UsageError(str(error))
        if note:
            problem.add_note(note)
        raise problem from error


def _fit(
    trainer: LTDENeuralAC,
    environment: Environment,
    folder: Path,
    total: int,
    output: Output,
    *,
    report: bool = False,
) -> None:
    """Train until `total` iterations are done, write the policies and show what came of it.

    Nothing is written if they are done already and the files of the policies hold them.
    """
    done, start = trainer.iteration, time.perf_counter()
    shown = not output.quiet and done < total
    bar = shown and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    if shown:
        agents = plural(trainer.n_agents, "agent")
        output.note(f"{environment.title}, {agents}, iterations {done + 1} to {total}")
    try:
        if done < total:
            trainer.fit(
                [_Lines(total, output)] if shown and not bar else [],
                n_iterations=total,
                run_dir=folder,
                progress=bar,
            )
    except KeyboardInterrupt as error:
        saved = ""
        if hasattr(error, "__notes__"):  # `fit` says that it saved the run
            saved = f"{plural(trainer.iteration, 'iteration')} saved, "
        raise KeyboardInterrupt(f"interrupted; {saved}go on with `ltde resume {folder}`") from error
    seconds = time.perf_counter() - start
    policies = {"best": trainer.best_policy(), "last": trainer.policy}
    files = {name: _policy_file(folder, name) for name in policies}
    written = []
    for name, policy in policies.items():
        if done < total or not _holds(files[name], policy):
            policy.save(files[name])
            written.append(files[name].name)
    threads = trainer.learner.simulator.threads
    measured = environment.measure(policies["best"], trainer.n_agents, threads=threads)
    if report:
        from ltde.cli.play import Report

        page = Report(run_dir=folder, threads=threads, output=output).write(environment, trainer)
        written.append(page.name)
    output.result(
        {
            "run": str(folder),
            "agents": trainer.n_agents,
            "iterations": trainer.iteration,
            "seconds": seconds,
            "measure": environment.measure_name,
            "unit": environment.unit,
            "mean": measured.mean,
            "interval": measured.interval,
            "policies": {name: str(path) for name, path in files.items()},
            "report": str(page) if report else None,
        },
        f"{environment.measure_name}: {interval(measured.mean, measured.interval)} "
        f"({environment.unit}), with {plural(trainer.n_agents, 'agent')}\n"
        f"{folder}: {plural(trainer.iteration, 'iteration')}, {seconds:.1f} s; "
        f"{', '.join(written) or 'nothing was left to do'}",
    )


class _Lines:
    """Progress as plain lines: at evaluations, and every few seconds."""

    def __init__(self, total: int, output: Output) -> None:
        self.total, self.output = total, output
        self.start = self.last = time.perf_counter()
        self.first: int | None = None

    def __call__(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write a line if it is time."""
        done, now = metrics["iteration"], time.perf_counter()
        if self.first is None:
            self.first = done - 1
        if "J" not in metrics and now - self.last < _LINE_SECONDS:
            return
        self.last = now
        left = (now - self.start) / (done - self.first) * (self.total - done)
        value = f"J {interval(metrics['J'], metrics['J_interval'])}, " if "J" in metrics else ""
        self.output.note(f"iteration {done} of {self.total}: {value}{left:.0f} s left")

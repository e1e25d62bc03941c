"""`ltde envs`, `ltde check` and `ltde info`: what there is, and whether it is right."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ltde import envs
from ltde.cli import source
from ltde.cli.options import (
    Integer,
    Number,
    Output,
    Target,
    documentation,
    flags,
    number_of_agents,
    plural,
    short,
    table,
    whole,
)
from ltde.envs import ENVIRONMENTS

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["Check", "Envs", "Info"]

# Radii of balls that `check` shows.
_RADII = (0, 1, 2, 3)
# Instruction sets worth naming, best last.
_INSTRUCTIONS = ("sse2", "neon", "asimd", "avx", "avx2", "avx512f")


@dataclass(kw_only=True)
class Envs:
    """List the applications, their options and the networks that are built in."""

    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """List."""
        from ltde.envs import RoadNetwork

        data: dict[str, Any] = {}
        blocks = []
        for name, attribute in ENVIRONMENTS.items():
            kind = getattr(envs, attribute)
            summary = (kind.__doc__ or "").splitlines()[0]
            described = documentation(kind)
            options: dict[str, dict[str, Any]] = {
                field.name: {
                    "default": None if field.default is dataclasses.MISSING else field.default,
                    "help": described.get(field.name, ""),
                }
                for field in dataclasses.fields(flags(kind, "Options", ""))
            }
            data[name] = {"summary": summary, "options": options}
            lines = [f"{name}: {summary}", ""]
            for option, about in options.items():
                lines.append(f"  --{option.replace('_', '-')} (default: {about['default']})")
                lines.append(textwrap.indent(textwrap.fill(about["help"], 90), "      "))
            blocks.append("\n".join(lines))
        networks: dict[str, Any] = {}
        for name in RoadNetwork.BUILT_IN:
            network = RoadNetwork.named(name)
            networks[name] = {
                "title": network.name,
                "nodes": len(network.nodes),
                "links": network.n_links,
                "destinations": len(network.destinations),
            }
        rows = [[f"  {name}", *map(str, network.values())] for name, network in networks.items()]
        header = ["road networks", "", "nodes", "links", "destinations"]
        blocks.append(table([header, *rows]))
        self.output.result({"applications": data, "networks": networks}, "\n\n".join(blocks))


@dataclass(kw_only=True)
class Check:
    """Check a model, and play it for a moment.

    The local function runs at many densities of every state, compiled and plain.

    Then agents play uniformly, and infinitely many do so too.

    The exit code is 1 if the model is wrong.

    For example:
    $ ltde check my_model.py:model

    Attributes
    ----------
    target
        FILE.py:NAME, where NAME is an ltde.NetworkedModel, an ltde.envs.Environment, or a function
        without arguments that returns one; or an application that `ltde envs` lists.
    agents
        Number of agents to play: 1000, 1e6 or 10_000. By default what the application
        asks for, and 1000 for a model of your own.
    samples
        Number of densities at which the local function runs, for every state.
    steps
        Steps to play, at least 1.
    seed
        Seed of the densities and of the simulation.
    threads
        Worker threads; all cores by default.
    """

    target: Target
    agents: Number = None
    samples: int = 30
    steps: int = 100
    seed: int = 0
    threads: Integer = None
    application: ClassVar[Any] = None
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Check."""
        for name, least in (("steps", 1), ("samples", 1), ("seed", 0), ("threads", 1)):
            whole(name, getattr(self, name), least)
        start = time.perf_counter()
        environment = source.named(self.target, self.application).build()
        model = environment.model
        built = time.perf_counter() - start
        start = time.perf_counter()
        model.check(self.samples, self.seed)
        checked = time.perf_counter() - start
        agents = environment.training_agents
        numbers = [agents if self.agents is None else number_of_agents(self.agents), math.inf]
        plays = [self._play(model, n_agents) for n_agents in dict.fromkeys(numbers)]
        degrees = np.diff(model.graph.indptr)
        sizes = {k: np.diff(model.graph.balls(k).indptr) for k in _RADII}
        low, high = model.reward_range
        data = {
            "target": self.target,
            "states": model.n_states,
            "actions": model.n_actions,
            "edges": model.graph.n_edges,
            "largest_neighbourhood": degrees.max(),
            "discount": model.discount,
            "reward_range": [low, high],
            "seconds": {"build": built, "check": checked},
            "plays": plays,
            "balls": [
                {
                    "k": k,
                    "mean": n.mean(),
                    "largest": n.max(),
                    "share": model.discount ** ((k + 1) // 2),
                }
                for k, n in sizes.items()
            ],
        }
        states, edges = plural(model.n_states, "state"), plural(model.graph.n_edges, "edge")
        rows = [
            ["graph", f"{states}, {edges}, neighbourhoods of up to {degrees.max()}"],
            ["actions", str(model.n_actions)],
            ["discount", f"{model.discount:g}"],
            ["reward range", f"[{low:g}, {high:g}]"],
            ["built", f"{built:.2f} s"],
            ["checked", f"{checked:.2f} s, {self.samples} times at every state"],
        ]
        for play in plays:
            text = f"{play['seconds'] / self.steps * 1e6:.3g} us a step"
            text += f", reward of a step {short(play['reward'])}"
            rows.append([plural(play["agents"], "agent"), text])
        balls = [["k", "states in a ball", "largest", "share"]]
        balls += [
            [str(b["k"]), f"{b['mean']:.1f}", str(b["largest"]), f"{b['share']:.2g}"]
            for b in data["balls"]
        ]
        self.output.result(
            data,
            f"{environment.title}: nothing wrong was found\n\n{table(rows)}\n\n{table(balls)}\n\n"
            "k: radius of the balls that critics read; share: discount^ceil(k/2), what is outside\n"
            "changes Q by at most this share of its range, often by far less, which\n"
            "ltde.diagnostics.decay_profile measures",
        )

    def _play(self, model: NetworkedModel, n_agents: float) -> dict[str, Any]:
        """Play uniformly for a moment, once to warm up and once to measure."""
        from ltde.policy import TabularPolicy
        from ltde.simulator import Simulator

        simulator = Simulator(model, n_agents, seed=self.seed, threads=self.threads)
        uniform = TabularPolicy.uniform(model)
        simulator.rollout(uniform, min(self.steps, 2), record=())
        start = time.perf_counter()
        rollout = simulator.rollout(uniform, self.steps, record=["rewards"])
        seconds = time.perf_counter() - start
        assert rollout.rewards is not None
        reward = float(rollout.rewards.sum(axis=2).mean())
        return {"agents": n_agents, "steps": self.steps, "seconds": seconds, "reward": reward}


@dataclass(kw_only=True)
class Info:
    """Show versions, threads, processor and devices: what a bug report needs."""

    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        """Show."""
        import torch

        from ltde import __version__, _core

        devices = ["cpu"]
        devices += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
        threads = os.environ.get("LTDE_NUM_THREADS", "")
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count()
        data = {
            "ltde": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "numba": importlib.metadata.version("numba"),
            "platform": platform.platform(),
            "processor": _processor(),
            "instructions": _instructions(),
            "kernels": _core.instruction_set(),
            "cores": cores,
            "threads": int(threads) if threads.isdigit() else cores,
            "devices": devices,
        }
        rows = [
            [name, ", ".join(value) if isinstance(value, list) else str(value)]
            for name, value in data.items()
        ]
        self.output.result(data, table(rows))


def _processor() -> str:
    """Return the name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    """Return the instruction sets of the processor that matter for speed, as far as is known."""
    found = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [name for name in _INSTRUCTIONS if name in found]


def _cpuinfo(name: str) -> str:
    """Return a line of /proc/cpuinfo, or nothing."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        label, _, value = line.partition(":")
        if label.strip() == name:
            return value.strip()
    return ""

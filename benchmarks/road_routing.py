"""What learned routes reach: minutes of a trip beside the baselines, five seeds each.

For each problem, five policies are trained with the practical preset, no setting changed but the
number of iterations (and of replicas on the largest problem), and no shaping. Each is then played,
on seeds that training never used, at every N from 100 to infinity. On Braess the paper's own actor
is trained too, the score function, with multinomial and with energy-based teams.

Run ``python benchmarks/road_routing.py`` from the root of the repository; ``--help`` lists the
options. Every finished run is written at once, and runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ltde
import numpy as np
import report
from ltde.envs import RoadRouting
from ltde.evaluation import mean_interval

AGENTS = (100, 1_000, 2_000, 10_000, 1_000_000, math.inf)
HELD_OUT = 10**6  # seeds of evaluation begin here, those of training at 1


@dataclass(frozen=True)
class Job:
    """A problem and how to train on it."""

    title: str
    routing: dict[str, Any]
    iterations: int
    target: float | None
    n_agents: int | None = None
    replicas: int = 16  # of each measurement
    changes: dict[str, Any] = field(default_factory=dict)


SCORE = {"actor": "score", "critic": "q", "features": "mass", "critic_steps": 100}
JOBS = {
    "braess": Job("Braess, closed", {"network": "braess"}, 200, 84.0),
    "destination": Job(
        "Sioux Falls, to node 10", {"network": "sioux-falls", "destination": 10}, 100, 10.0
    ),
    "sioux-falls": Job(
        "Sioux Falls, all destinations",
        {"network": "sioux-falls"},
        40,
        22.0,
        replicas=4,
        changes={"n_replicas": 4},
    ),
    "braess-score": Job(
        "Braess, score function", {"network": "braess"}, 500, None, n_agents=60, changes=SCORE
    ),
    "braess-energy": Job(
        "Braess, score function, energy-based teams",
        {"network": "braess"},
        500,
        None,
        n_agents=60,
        changes={**SCORE, "family": "energy", "actor_rate": 10.0},
    ),
}


def measure(routing: RoadRouting, policy: Any, replicas: int, seed: int) -> dict[str, float]:
    """Return the mean minutes at every N."""
    energy = isinstance(policy, ltde.EnergyPolicy)
    agents = [n for n in AGENTS if n <= 2_000] if energy else AGENTS
    return {str(n): routing.measure(policy, n, replicas, seed).mean for n in agents}


def train(job: Job, seed: int) -> dict[str, Any]:
    """Train one policy and measure it."""
    routing = RoadRouting(**job.routing)
    n_agents = job.n_agents or routing.training_agents
    config = ltde.Config.practical(n_iterations=job.iterations, seed=seed, **job.changes)
    trainer = ltde.LTDENeuralAC(routing.model, n_agents, config)
    start = time.perf_counter()
    policy = trainer.fit(progress=False).best
    seconds = time.perf_counter() - start
    minutes = measure(routing, policy, job.replicas, HELD_OUT + seed)
    return {"seed": seed, "n_agents": n_agents, "seconds": seconds, "minutes": minutes}


def baselines(job: Job) -> dict[str, dict[str, float]]:
    """Measure the policies that do not learn."""
    routing = RoadRouting(**job.routing)
    return {
        name: measure(routing, policy, job.replicas, HELD_OUT)
        for name, policy in routing.baselines().items()
    }


def column(n_agents: str) -> str:
    """Return the name of a number of agents."""
    return "∞" if n_agents == "inf" else f"{int(n_agents):,}"


def tables(results: dict[str, Any]) -> str:
    """Format what is there."""
    parts = []
    for name, job in JOBS.items():
        found = results.get(name, {})
        runs = sorted(found.get("runs", {}).values(), key=lambda run: run["seed"])
        if not runs:
            continue
        agents = list(runs[0]["minutes"])
        rows = []
        for policy, minutes in found.get("baselines", {}).items():
            cells = [f"{minutes[n]:.2f}" if n in minutes else "-" for n in agents]
            rows.append([policy, *cells])
        values = np.array([[run["minutes"][n] for n in agents] for run in runs])
        cells = []
        for at in values.T:
            low, high = mean_interval(at)
            cells.append(f"**{at.mean():.2f}** ± {0.5 * (high - low):.2f}")
        rows.append(["**learned**", *cells])
        text = report.table(["minutes at N =", *(column(n) for n in agents)], rows)
        seconds = np.median([run["seconds"] for run in runs])
        settings = ", ".join(f"`{key}={value!r}`" for key, value in job.changes.items())
        worst = values[:, [i for i, n in enumerate(agents) if float(n) >= 2_000]].mean(0).max()
        notes = [
            f"Trained with {runs[0]['n_agents']:,} agents, {job.iterations} iterations, "
            f"{len(runs)} seeds, a median of {seconds:.0f} s"
            + (f"; {settings}." if settings else "; no setting changed.")
        ]
        if job.target is not None:
            notes.append(
                f"Target {job.target:g} minutes at N of 2,000 and more: "
                f"{report.verdict(worst, job.target, at_most=True)} (largest mean {worst:.2f})."
            )
        parts.append(f"### {job.title}\n\n{text}\n\n" + " ".join(notes))
    return "\n\n".join(parts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--again", action="store_true", help="repeat runs that are there already")
    parser.add_argument("--out", type=Path, default=Path("docs/results.json"))
    parser.add_argument("--markdown", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--print-only", action="store_true", help="write no file")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    results: dict[str, Any] = {}
    if options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    results["machine"] = report.machine(("numpy", "torch", "ltde"))

    def done() -> None:
        if not options.print_only:
            text = tables(results)
            report.write(
                results, text, "road_routing", json_path=options.out, markdown_path=options.markdown
            )

    for name in options.jobs:
        job, found = JOBS[name], results.setdefault(name, {})
        for seed in options.seeds:
            runs = found.setdefault("runs", {})
            if str(seed) in runs and not options.again:
                continue
            run = runs[str(seed)] = train(job, seed)
            cells = "  ".join(f"{column(n)}: {m:.2f}" for n, m in run["minutes"].items())
            print(f"{name}, seed {seed}: {run['seconds']:.0f} s  {cells}", flush=True)
            done()
        if "baselines" not in found or options.again:
            found["baselines"] = baselines(job)
    done()
    print("\n" + tables(results))


if __name__ == "__main__":
    main()

"""Road traffic in Sioux Falls: 45,100 vehicles on their way to node 10, at every number of agents.

Each of `N` agents stands for 45,100 / `N` vehicles, and `N = inf` is the fluid limit. A policy is
learned with 4,000 agents from the cost of a step alone. It is decentralised: a driver sees the road
that she is on, and how full it is.

The table shows the mean minutes of a trip on the road, queues at the origins excluded, under three
policies that do not learn and the one that did, and the time that a step takes: it stays bounded
however large `N` is. The folder `--out` receives a report, the pictures and the policy.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import ltde
import numpy as np
from ltde import plotting, report
from ltde.envs import Measurement, RoadRouting
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

AGENTS = [10**2, 10**3, 10**4, 10**6, 10**9, math.inf]
SHOWN = ["uniform", "shortest path", "myopic"]
DOCS = Path(__file__).resolve().parents[1] / "docs"


def learn(env: RoadRouting, config: ltde.Config) -> ltde.TrainingResult:
    """Train from `env.model`; there is a progress bar where standard error is a terminal."""
    trainer = ltde.LTDENeuralAC(env.model, env.training_agents, config)
    start = time.perf_counter()
    result = trainer.fit()
    seconds = time.perf_counter() - start
    print(
        f"Trained {config.n_iterations} iterations with {env.training_agents:,} agents: "
        f"{seconds:.1f} s.\n"
    )
    return result


def microseconds_per_step(model: ltde.NetworkedModel, n_agents: float, n_replicas: int) -> float:
    """Time of one step of one replica on full roads, uniform policy; the best of five."""
    simulator = ltde.Simulator(model, n_agents, n_replicas)
    policy = ltde.TabularPolicy.uniform(model)
    simulator.rollout(policy, n_steps=50, record=())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        simulator.rollout(policy, n_steps=40, record=())
        times.append((time.perf_counter() - start) / 40)
    return 1e6 * min(times) / n_replicas


def cell(measured: Measurement) -> str:
    """Write the mean, and half of its 95 % interval where there are several replicas."""
    if len(measured.values) == 1:
        return f"{measured.mean:8.3f}{'':11}"
    return f"{measured.mean:8.3f} +- {measured.interval[1] - measured.mean:6.3f} "


def picture(
    env: RoadRouting, learned: ltde.SoftmaxPolicy, curves: Mapping[str, Mapping[float, Measurement]]
) -> np.ndarray:
    """Draw the map with the peak load of every link, and the minutes at every `N` beside it."""
    peak = env.link_loads(learned, math.inf).max(axis=0)
    left = plotting.road_map(
        env.roads,
        peak / env.roads.full,
        env.roads.flow(peak),
        title=f"Peak load, learned routes to node {env.destination}",
        label="peak vehicles on a link / at capacity",
        highlight=env.destination,
        limits=(0.05, 20.0),
    )
    right = plotting.value_by_agents(curves, ylabel="mean time on the road (minutes)")
    right.axes[0].set_title("Mean trip at every $N$, up to the fluid limit", fontsize=11)
    right.set_size_inches(right.get_figwidth(), left.get_figheight())
    return np.concatenate([pixels(left), pixels(right)], axis=1)


def pixels(figure: Figure) -> np.ndarray:
    figure.set_dpi(95)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def number_of_agents(text: str) -> float:
    """Read `1000`, `1e6` or `inf`."""
    value = float(text)
    return value if value == math.inf else int(value)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Route traffic through Sioux Falls.")
    parser.add_argument(
        "--agents",
        type=number_of_agents,
        nargs="+",
        default=AGENTS,
        help="numbers of agents, such as 100 1e6 inf",
    )
    parser.add_argument("--replicas", type=int, default=64, help="independent replicas of each")
    parser.add_argument("--iterations", type=int, default=40, help="of training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/sioux_falls"), help="folder")
    parser.add_argument("--docs", action="store_true", help="also write docs/sioux_falls.png")
    options = parser.parse_args()
    if (options.out / "checkpoint.safetensors").exists():
        parser.error(f"--out: {options.out} holds a run of `ltde train`")
    return options


def main() -> None:
    options = arguments()
    env = RoadRouting("sioux-falls", destination=10)
    env.model.check()
    # evaluated often, for the curve of the report
    config = ltde.Config.practical(
        n_iterations=options.iterations, evaluate_every=2, seed=options.seed
    )
    result = learn(env, config)
    learned = result.best
    baselines = env.baselines()
    policies = {name: baselines[name] for name in SHOWN} | {"learned": learned}

    print(f"{env.title}: {env.model.n_states} states, {env.model.n_actions} actions.")
    print(f"Mean minutes on the road, with 95 % intervals over {options.replicas} replicas;")
    print("time of a step of one replica in microseconds.\n")
    print("".join([f"{'N':>13}", *(f"{name:>19}" for name in policies), f"{'us/step':>9}"]))
    curves: dict[str, dict[float, Measurement]] = {name: {} for name in policies}
    for n_agents in options.agents:
        print(f"{n_agents:>13,}", end="")
        for name, policy in policies.items():
            measured = env.measure(policy, n_agents, options.replicas, options.seed)
            curves[name][n_agents] = measured
            print(cell(measured), end="", flush=True)
        print(f"{microseconds_per_step(env.model, n_agents, options.replicas):9.1f}")

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    learned.save(out / "policy.safetensors")
    path = report.write(
        out,
        env,
        learned,
        result.metrics,
        agents=options.agents,
        n_replicas=min(16, options.replicas),
        seed=options.seed,
    )
    print(f"\nWrote {path.as_posix()}")
    del curves["uniform"]  # far above the others
    image = picture(env, learned, curves)
    for folder in [out, DOCS] if options.docs else [out]:
        imsave(folder / "sioux_falls.png", image)
        print(f"Wrote {(folder / 'sioux_falls.png').as_posix()}")


if __name__ == "__main__":
    main()

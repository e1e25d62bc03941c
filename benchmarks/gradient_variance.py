"""Plot the variance of gradient estimates per sample against N.

One system, one policy, critics that are learned first and then kept: the one-agent gradient with
costates (along `natural=False`), and the score function with critics of Q, with its baseline and
without. A sample is one step of one replica. What is plotted is the trace of the covariance of the
estimate of one sample, from the spread of batches, over the squared length of the gradient, that of
the mean one-agent gradient at the same N. Up to N = 1000 the one-agent gradient follows one agent.

Run ``python benchmarks/gradient_variance.py`` from the root of the repository; ``--help`` lists the
options. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import report

report.use_one_thread(pin=False)

import ltde  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import solvable  # noqa: E402

SAMPLES = 480  # 30 steps or draws of 16 replicas
SCORE = {"actor": "score", "critic": "q", "critic_steps": 300, "n_draws": SAMPLES}
ESTIMATORS = {
    "one-agent, costates": {},
    "score, baseline": SCORE,
    "score, plain": {**SCORE, "baseline": "none"},
}
STYLES = {
    "one-agent, costates": ("#009E73", "^"),
    "score, baseline": ("#0072B2", "o"),
    "score, plain": ("#D55E00", "s"),
}


def variance(n_agents, changes, policy, batches):
    """Return the variance of one sample, and the squared length of the mean."""
    model = solvable.ring(8)
    config = ltde.Config.practical(
        natural=False, advantage_scale=1.0, visit_floor=math.inf, n_replicas=16, **changes
    )
    learner = ltde.LTDENeuralAC(model, n_agents, config, threads=1).learner
    with torch.no_grad():
        learner.policy.theta.copy_(policy.theta)
    steps = []
    learner.ascend = lambda direction, iteration: steps.append(direction.double().numpy().ravel())
    for iteration in range(30):  # the policy stays: these teach the critics
        learner.iterate(iteration)
    steps.clear()
    for iteration in range(30, 30 + batches):
        learner.iterate(iteration)
    found = np.array(steps)
    if config.actor == "score":
        found *= 1.0 - model.discount  # the other leaves this factor out
    spread = found.var(axis=0, ddof=1).sum()
    length = (found.mean(axis=0) ** 2).sum() - spread / len(found)
    return SAMPLES * spread, length


def draw(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values in results.items():
        colour, marker = STYLES[name]
        axes.plot(list(values), list(values.values()), color=colour, marker=marker, label=name)
    axes.set(xscale="log", yscale="log", xlabel="number of agents $N$")
    axes.set_ylabel("variance of one sample / squared gradient")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[10**2, 10**4, 10**6])
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--plot", type=Path, default=Path("docs/gradient_variance.png"))
    options = parser.parse_args()
    # neither uniform nor settled: a few steps of training
    model = solvable.ring(8)
    policy = ltde.LTDENeuralAC(model, 1000, threads=1).fit(n_iterations=2).policy
    results = {name: {} for name in ESTIMATORS}
    print(f"{'N':>12}", *(f"{name:>22}" for name in ESTIMATORS))
    length = math.nan
    for n_agents in options.agents:
        for name, changes in ESTIMATORS.items():
            spread, squared = variance(n_agents, changes, policy, options.batches)
            length = squared if not changes else length
            results[name][n_agents] = spread / length
        cells = (f"{values[n_agents]:22.3g}" for values in results.values())
        print(f"{n_agents:>12,}", *cells, flush=True)
    draw(results, options.plot)
    print(f"Wrote {options.plot.as_posix()}")


if __name__ == "__main__":
    main()

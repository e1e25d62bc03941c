"""Plot the variance of gradient estimates per sample against N, all with the same critics.

Critics of costates are learned first and then kept; they say what one agent does is worth,
q(s, a; mu) of `OneAgentLearner.pass_back`. The critics of Q say the same of teams,
Q_s = sum_a mu(s) h(s, a) q(s, a; mu), so that all estimates have one expectation: the one-agent
gradient sums over actions, the score function draws h, with the baseline Q(mu, E h) or without. A
sample is one draw of (mu, h) from sigma, independent of the others. What is shown is the trace of
the covariance of a sample over the squared length of the gradient: so many samples know the
gradient to within its own length. Up to N = 1000 the library weighs the one-agent gradient by where
one agent is, which is less biased and is shown apart.

Run ``python benchmarks/gradient_variance.py`` from the root of the repository; ``--help`` lists the
options. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import report

report.use_one_thread(pin=False)

import ltde  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ltde.actor import advantages  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import solvable  # noqa: E402

STATES, CHUNK = 8, 500
TAGGED, ONE_AGENT = "one agent, where it is", "one agent"
BASELINE, PLAIN = "score, baseline", "score"
STYLES = {TAGGED: ("#56B4E9", "v"), ONE_AGENT: ("#009E73", "^")}
STYLES |= {BASELINE: ("#0072B2", "o"), PLAIN: ("#D55E00", "s")}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[10**2, 10**4, 10**6])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--plot", type=Path, default=Path("docs/gradient_variance.png"))
    return parser.parse_args()


def taught(n_agents):
    """Return a learner whose policy is neither uniform nor settled, and whose critics know it."""
    model = solvable.ring(STATES)
    trainer = ltde.LTDENeuralAC(model, n_agents, threads=1)
    trainer.fit(n_iterations=2)
    learner = trainer.learner
    learner.ascend = lambda direction, iteration: None
    for iteration in range(2, 60):
        learner.iterate(iteration)
    return learner


def action_values(learner, counts, after):
    """Return `q(s, a; mu)` and `pi`, `(n, S, A)`."""
    both = np.stack([counts, after]) / learner.n_agents
    inputs = learner.critic_inputs(torch.from_numpy(both[1]))
    costates = np.stack([np.zeros_like(both[0]), learner.critic.values(inputs).double().numpy()])
    restarted, targets = np.zeros((1, len(counts)), bool), np.zeros((1, *counts.shape))
    return learner.pass_back(both, restarted, costates, targets)


def gradients(learner, counts, actions, after):
    """Return the gradient of each sample by each estimator, `(n, size)`."""
    values, pi = action_values(learner, counts, after)
    policy, n = learner.policy, counts[..., None].astype(float)
    mu, h = n / learner.n_agents, actions / np.maximum(n, 1.0)
    balls = learner.model.graph.balls(learner.config.k)
    near = np.zeros((STATES, STATES))
    near[np.repeat(np.arange(STATES), np.diff(balls.indptr)), balls.indices] = 1.0

    def around(team):
        return ((mu * team * values).sum(-1) @ near)[..., None]

    advantage = advantages(torch.from_numpy(values), torch.from_numpy(pi), policy.action_mask)
    weighted = pi * advantage.numpy()
    excess = actions - n * pi
    who = np.random.default_rng(0).multinomial(1, counts / counts.sum(1, keepdims=True))
    weights = {
        TAGGED: who[..., None] * weighted,
        ONE_AGENT: mu * weighted,
        BASELINE: excess * (around(h) - around(pi)),
        PLAIN: excess * around(h),
    }
    x = torch.from_numpy(policy.density_scale * mu)
    theta, signs = policy.theta.detach().double(), policy.b.double() / policy.width**0.5
    z = x.unsqueeze(-1) * theta[None, :, None, :, 0] + theta[..., 1:].transpose(1, 2)[None]
    gate = (z > 0).double() * signs[None, :, None]  # (n, S, A, M)
    result = {}
    for name, w in weights.items():
        pulls = gate * torch.from_numpy(w).unsqueeze(-1)
        by_density = pulls.sum(2) * x
        result[name] = torch.cat([pulls.flatten(1), by_density.flatten(1)], 1).numpy()
    return result


def measure(n_agents, n_samples):
    """Return the relative variance of a sample by estimator."""
    learner = taught(n_agents)
    simulator = ltde.Simulator(learner.model, n_agents, CHUNK, seed=1, threads=1)
    sums, squares = {}, {}
    for _ in range(n_samples // CHUNK):
        draws = simulator.visitation(learner.policy, 1)
        arrays = draws.counts[0], draws.actions[0], draws.next_counts[0]
        for name, x in gradients(learner, *arrays).items():
            sums[name] = sums.get(name, 0.0) + x.sum(0)
            squares[name] = squares.get(name, 0.0) + (x**2).sum(0)
    n = n_samples // CHUNK * CHUNK
    mean = {name: x / n for name, x in sums.items()}
    spread = {name: float((squares[name] / n - mean[name] ** 2).sum()) for name in mean}
    length = float((mean[ONE_AGENT] ** 2).sum()) - spread[ONE_AGENT] / n
    return {name: value / length for name, value in spread.items()}


def draw(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, (colour, marker) in STYLES.items():
        shown = {n: row[name] for n, row in results.items() if name != TAGGED or n <= 1000}
        axes.plot(shown.keys(), shown.values(), color=colour, marker=marker)
        last = list(shown.items())[-1]
        axes.annotate(name, last, (9, 0), textcoords="offset points", va="center", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="number of agents")
    axes.set_ylabel("variance of a sample / squared gradient")
    axes.set_xlim(right=3e7)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    options = parse_arguments()
    results = {}
    print(f"{'N':>10}", *(f"{name:>23}" for name in STYLES))
    for n_agents in options.agents:
        results[n_agents] = measure(n_agents, options.samples)
        cells = (f"{results[n_agents][name]:23.2g}" for name in STYLES)
        print(f"{n_agents:>10,}", *cells, flush=True)
    draw(results, options.plot)


if __name__ == "__main__":
    main()

"""Which actor to take for which number of agents: the value reached after equal wall time.

On the ring of `tests/solvable.py` with 16 states: the one-agent gradient with critics of costates
and of values, the score function with its baseline and without, and energy-based teams. Each runs
with the practical preset for the same seconds; the score function needs a rate, tries four and
shows the best. The value is that of the best evaluation of a run, on other seeds, as a share of the
best that any of them found.

Run ``python benchmarks/actors.py`` from the root of the repository; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import report

report.use_one_thread(pin=False)

import ltde  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import solvable  # noqa: E402

SCORE = {"actor": "score", "critic": "q", "critic_steps": 50, "sampler": "chain"}
ACTORS = {
    "marginal, costates": {},
    "marginal, values": {"critic": "value"},
    "score, baseline": SCORE,
    "score, baseline, mass": {**SCORE, "features": "mass"},
    "score, plain": {**SCORE, "baseline": "none"},
    "energy, baseline": {**SCORE, "family": "energy"},
}
RATES = (0.1, 1.0, 10.0, 100.0)


def train(model, n_agents, seconds, config):
    """Return the policy of the best evaluation after some seconds, and the iterations done."""
    trainer = ltde.LTDENeuralAC(model, n_agents, config, threads=1)
    end = time.perf_counter() + seconds
    try:
        result = trainer.fit([lambda trainer, metrics: time.perf_counter() > end])
    except ltde.TrainingDiverged:
        return trainer.best_policy(), trainer.iteration
    return result.best, trainer.iteration


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run")
    parser.add_argument("--agents", type=int, nargs="+", default=[10, 1000, 10**6])
    parser.add_argument("--out", type=Path, default=Path("docs/performance-actors.json"))
    parser.add_argument("--markdown", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--print-only", action="store_true", help="write no file")
    return parser.parse_args()


def compare(n_agents, seconds):
    """Return a row for each actor: name, rate, iterations, value, share of the best."""
    model = solvable.ring(16)
    uniform = model.action_mask / model.action_mask.sum(1, keepdims=True)
    base = ltde.evaluate(model, uniform, n_agents, 64, seed=1, threads=1).mean
    reached = {}
    for name, changes in ACTORS.items():
        for rate in RATES if "actor" in changes else (None,):
            own = {} if rate is None else {"actor_rate": rate}
            config = ltde.Config.practical(n_iterations=10**6, **changes, **own)
            policy, done = train(model, n_agents, seconds, config)
            value = ltde.evaluate(model, policy, n_agents, 64, seed=1, threads=1).mean
            if name not in reached or value > reached[name][0]:
                reached[name] = value, rate, done
    best = max(value for value, _, _ in reached.values())
    return base, [
        {
            "actor": name,
            "rate": rate,
            "iterations": done,
            "value": value,
            "share": (value - base) / (best - base),
        }
        for name, (value, rate, done) in reached.items()
    ]


def main() -> None:
    options = parse_arguments()
    results = {"machine": report.machine(("numpy", "torch", "ltde")), "seconds": options.seconds}
    rows = []
    for n_agents in options.agents:
        base, reached = compare(n_agents, options.seconds)
        results[str(n_agents)] = {"uniform": base, "actors": reached}
        for row in reached:
            rate = "-" if row["rate"] is None else f"{row['rate']:g}"
            cells = f"{n_agents:,}", rate, str(row["iterations"]), f"{row['value']:.2f}"
            rows.append((row["actor"], *cells, f"{row['share']:.0%}"))
            print(*rows[-1], sep="  ", flush=True)
    header = ("actor", "N", "rate", "iterations", "J", "share of the best gain")
    text = report.table(header, rows)
    if not options.print_only:
        report.write(results, text, "actors", json_path=options.out, markdown_path=options.markdown)


if __name__ == "__main__":
    main()

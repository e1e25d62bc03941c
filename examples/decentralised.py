"""Decentralised execution: each agent acts from its own state and the density there.

`AgentSimulator` moves labelled bikes of `own_model.py` one by one, and three of them are followed.
`Simulator` moves counts, a step costing the same for any number of bikes. Their laws agree.
"""

import math

import ltde
import numpy as np
from numpy.typing import ArrayLike, NDArray
from own_model import build

AGENTS, STEPS, RUNS = 60, 10, 500


def decide(state: int, density: float) -> ArrayLike:
    """Probabilities to stay and to move on: the more bikes are here, the more leave."""
    leave = min(0.9, 6.0 * density)
    return [1.0 - leave, leave]


def decide_for_all(counts: NDArray[np.int64], n_agents: float) -> ArrayLike:
    """Ask `decide` at every station of every replica, `(B, S, A)`."""
    return [[decide(s, n / n_agents) for s, n in enumerate(row)] for row in counts.tolist()]


def mean_and_error(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(len(samples))


def main() -> None:
    model = build()
    agents = ltde.AgentSimulator(model, AGENTS, seed=1)
    paths = agents.rollout(decide, n_steps=STEPS, tagged=[0, 1, 2]).trajectories
    print(f"Stations of three of {AGENTS} bikes, step by step:\n")
    for bike, path in enumerate(paths.T):
        print(f"  bike {bike}:", *(f"{station:2d}" for station in path))

    positions = np.arange(AGENTS) % 4  # all bikes start at stations 0 to 3
    start = np.bincount(positions, minlength=model.n_states)
    by_agent = np.empty((RUNS, model.n_states))
    for run in range(RUNS):
        agents.reset(positions)
        by_agent[run] = agents.rollout(decide, n_steps=STEPS).counts[-1]
    simulator = ltde.Simulator(model, AGENTS, n_replicas=RUNS, seed=1)
    simulator.reset(start)
    simulator.rollout(ltde.FunctionPolicy(decide_for_all), n_steps=STEPS, record=())

    print(f"\nBikes at each station after {STEPS} steps, mean and standard error of {RUNS} runs:\n")
    print("station    agent by agent        by counts")
    rows = zip(*mean_and_error(by_agent), *mean_and_error(simulator.counts), strict=True)
    for station, (mean, error, count_mean, count_error) in enumerate(rows):
        print(
            f"{station:7d}    {mean:5.2f} +- {error:.2f}    {count_mean:5.2f} +- {count_error:.2f}"
        )


if __name__ == "__main__":
    main()

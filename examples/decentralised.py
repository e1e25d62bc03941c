"""Decentralised execution: each agent acts from its own state and the density there.

The team policy learned for the bikes of `own_model.py` gives the policy of one bike.
`AgentSimulator` moves labelled bikes by it one by one, and three of them are followed. `Simulator`
moves counts by the team policy, a step costing the same for any number of bikes. Their laws agree,
and so do their values.
"""

import math
from functools import lru_cache

import ltde
import numpy as np
from numpy.typing import NDArray
from own_model import build, learn

AGENTS, STEPS, RUNS = 60, 10, 200
VALUE_RUNS, HORIZON = 16, 90


def mean_and_error(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(len(samples))


def main() -> None:
    model = build()
    team = learn(model)
    decide = lru_cache(team.individual())  # (station, density) -> probabilities to stay, to move
    print("A bike at station 9 where density is 0, 0.1, 0.2 moves on with probability")
    print("  " + ", ".join(f"{decide(9, density)[1]:.3f}" for density in (0.0, 0.1, 0.2)))

    agents = ltde.AgentSimulator(model, AGENTS, seed=1)
    paths = agents.rollout(decide, n_steps=STEPS, tagged=[0, 1, 2]).trajectories
    print(f"\nStations of three of {AGENTS} bikes, step by step:\n")
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
    simulator.rollout(team, n_steps=STEPS, record=())

    print(f"\nBikes at each station after {STEPS} steps, mean and standard error of {RUNS} runs:\n")
    print("station    agent by agent        by counts")
    rows = zip(*mean_and_error(by_agent), *mean_and_error(simulator.counts), strict=True)
    for station, (mean, error, count_mean, count_error) in enumerate(rows):
        print(
            f"{station:7d}    {mean:5.2f} +- {error:.2f}    {count_mean:5.2f} +- {count_error:.2f}"
        )

    print(f"\nValue J over {HORIZON} steps, mean of {VALUE_RUNS} runs with its 95 % interval:\n")
    for name, execution in {"agent by agent": "agents", "by counts": "team"}.items():
        value = ltde.evaluate(model, team, AGENTS, VALUE_RUNS, HORIZON, 1, execution=execution)
        low, high = value.interval
        print(f"  {name:14}   {value.mean:6.3f}   [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()

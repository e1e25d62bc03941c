"""One policy, any number of agents: trained with 4,000, saved, and played from 10 to infinity.

Vehicles go round Braess's network, each agent standing for its share of them. The value is the
number of trips that a vehicle completes, discounted; the gap is the difference to the limit.
"""

import math
import tempfile
from pathlib import Path

import ltde
from ltde.envs import RoadRouting

TRAINING_AGENTS, REPLICAS = 4_000, 32


def main() -> None:
    model = RoadRouting("braess").model
    config = ltde.Config.practical(n_iterations=50)
    learned = ltde.LTDENeuralAC(model, TRAINING_AGENTS, config).fit().best
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.safetensors"
        learned.save(file)
        print(f"Trained with {TRAINING_AGENTS:,} agents, saved in {file.stat().st_size:,} bytes.\n")
        policy = ltde.SoftmaxPolicy.load(file)  # needs no model, and no number of agents

    limit = ltde.evaluate(model, policy, math.inf, REPLICAS, seed=1)
    print(f"{'N':>13}   {'value':>7}   {'gap to the limit':>17}   95 % interval")
    for n_agents in (10, 100, 10_000, 10**6, 10**9):
        value = ltde.evaluate(model, policy, n_agents, REPLICAS, seed=1)
        gap = value.minus(limit)
        low, high = gap.interval
        print(f"{n_agents:>13,}   {value.mean:7.4f}   {gap.mean:17.6f}   [{low:.6f}, {high:.6f}]")
    print(f"{'inf':>13}   {limit.mean:7.4f}")


if __name__ == "__main__":
    main()

"""A model of one's own: shared bikes at twelve stations on a ring; how to move them is learned.

An agent is a bike. Action 0 leaves it where it is, action 1 sends it to the next station, which it
reaches unless that station is full. A bike earns its share of the demand of its station.
"""

import math

import ltde
import numpy as np

STATIONS = 12
CAPACITY = 0.25  # largest share of the bikes that a station has docks for


def bikes(s, mu, node, edge, prob, reward):
    here = next_station = 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
        elif edge[i, 0] == 1.0:
            next_station = i
    arrive = max(0.0, 1.0 - mu[next_station] / CAPACITY)
    prob[0, here] = 1.0
    prob[1, here] = 1.0 - arrive
    prob[1, next_station] = arrive
    reward[:] = min(1.0, node[0] / max(mu[here], 1e-12))


def build() -> ltde.NetworkedModel:
    graph = ltde.Graph.ring(STATIONS)
    station = np.repeat(np.arange(STATIONS), np.diff(graph.indptr))
    clockwise = (graph.indices - station) % STATIONS  # 0 here, 1 next, 11 previous
    demand = 1.0 + np.sin(2.0 * np.pi * np.arange(STATIONS) / STATIONS)
    return ltde.NetworkedModel(
        graph,
        n_actions=2,
        local=bikes,
        node=demand / demand.sum(),
        edge=clockwise.astype(np.float64),
        discount=0.95,
        reward_range=(0.0, 1.0),
    )


def learn(model: ltde.NetworkedModel) -> ltde.SoftmaxPolicy:
    config = ltde.Config.practical(n_iterations=40)
    return ltde.LTDENeuralAC(model, 1_000, config).fit().best


def main() -> None:
    model = build()
    model.check()  # names the first state, density and action at which something is wrong
    send = 0.5 - 0.4 * model.node / model.node.max()  # bikes leave where demand is low
    policies = {
        "uniform": ltde.TabularPolicy.uniform(model),
        "by demand": ltde.TabularPolicy(np.hstack([1.0 - send, send])),
        "learned": learn(model),
    }
    print("Share of the demand that is served, discounted mean, with 95 % intervals:\n")
    print(f"{'N':>9}" + "".join(f"   {name:>16}" for name in policies))
    for n_agents in (10, 1_000, 1_000_000, math.inf):
        print(f"{n_agents:>9,}", end="")
        for policy in policies.values():
            value = ltde.evaluate(model, policy, n_agents, n_replicas=50, seed=1)
            scale = 1.0 - model.discount  # from the discounted sum to the mean of a step
            half = scale * (value.interval[1] - value.mean)
            print(f"   {scale * value.mean:.4f} +- {half:.4f}", end="")
        print()


if __name__ == "__main__":
    main()

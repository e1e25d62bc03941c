"""Road traffic in Sioux Falls: 45,100 vehicles on their way to node 10, simulated at any N.

A state is where a vehicle is: on one of 76 links, in the queue of one of 23 origins, or in the sink
where all trips end. An action is the link to take at the next crossing. Each of `N` agents stands
for 45,100 / `N` vehicles, and `N = inf` is the fluid limit.

The number of vehicles on a link and the flow through it satisfy Little's law, `vehicles = flow *
minutes(flow)`, and a vehicle leaves its link within a step with probability `step / minutes`.

The table shows the mean minutes on links of a trip, queues excluded, under three policies that do
not learn and one that has learned with 4,000 agents from the cost of a step alone, and the time a
step takes: it stays bounded however large `N` is. The learned policy is decentralised: a driver
sees the road that she is on.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeAlias

import ltde
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numba.extending import register_jitable
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

Policy: TypeAlias = ltde.TabularPolicy | ltde.FunctionPolicy | ltde.SoftmaxPolicy

DESTINATION = 10
VEHICLES = 45_100
STEP = 1.0  # minutes
RELEASE = 30.0  # mean minutes in an origin queue
TRAINING_AGENTS = 4_000
TEMPERATURE = 1.0  # minutes; how sharply the myopic driver tells two times apart

# Values of the edge data: which action leads along an edge, or one of these.
HERE, NO_ACTION = -1, -2


@dataclass(frozen=True)
class Network:
    """A road network with one destination, and the states that it makes.

    Links come first among the states, then the origin queues, then the sink.

    Attributes
    ----------
    tail, head
        End nodes of each link, `(L,)`.
    free_minutes, congestion
        Minutes of each link are `free_minutes + congestion * flow^4`, flow in vehicles per hour.
    origins, demand
        Nodes with a queue, `(O,)`, and their shares of the vehicles, which sum to 1.
    place
        Where to draw each node.
    """

    tail: Integers
    head: Integers
    free_minutes: Floats
    congestion: Floats
    origins: Integers
    demand: Floats
    place: dict[int, tuple[float, float]]

    @property
    def n_links(self) -> int:
        """Number of links."""
        return len(self.tail)

    @property
    def sink(self) -> int:
        """The last state."""
        return self.n_links + len(self.origins)

    def successors(self) -> list[list[int]]:
        """States to which the actions 0, 1, ... of each state lead; none from the sink."""
        ends = [*self.head.tolist(), *self.origins.tolist()]
        out = [np.flatnonzero(self.tail == end).tolist() for end in ends]
        pairs = zip(ends, out, strict=True)
        return [[self.sink] if end == DESTINATION else go for end, go in pairs] + [[]]

    def remaining_minutes(self) -> Floats:
        """Free-flow minutes from each node to the destination, indexed by node (Bellman-Ford)."""
        best = np.full(max(self.place) + 1, np.inf)
        best[DESTINATION] = 0.0
        for _ in self.place:
            np.minimum.at(best, self.tail, self.free_minutes + best[self.head])
        return best


def read_network() -> Network:
    """Read the packaged Sioux Falls data."""
    folder = resources.files("ltde") / "data" / "sioux_falls"

    def columns(name: str) -> Floats:
        rows = list(csv.reader((folder / name).read_text(encoding="utf-8").splitlines()))
        return np.array(rows[1:], dtype=np.float64).T

    tail, head, free_minutes, congestion = columns("links.csv")
    origin, destination, trips = columns("od.csv")
    bound = (destination == DESTINATION) & (trips > 0)
    return Network(
        tail=tail.astype(np.int64),
        head=head.astype(np.int64),
        free_minutes=free_minutes,
        congestion=congestion,
        origins=origin[bound].astype(np.int64),
        demand=trips[bound] / trips[bound].sum(),
        place={int(node): (x, y) for node, x, y in columns("nodes.csv").T},
    )


@register_jitable
def speed(mu, load):
    """Speed on a link relative to free flow: the root `y` of `y + load mu^4 y^5 = 1`.

    With `n` vehicles the flow is `y n / free_minutes`, so this is Little's law. Newton's method
    starts above the root of a convex function and so cannot pass it; five iterations reach
    rounding error for any load. Works for numbers in compiled code and for arrays.
    """
    c = load * mu**4
    y = (1.0 + c) ** -0.2
    for _ in range(5):
        y = y - (y + c * y**5 - 1.0) / (1.0 + 5.0 * c * y**4)
    return y


def road_local(s, mu, node, edge, prob, reward):
    """Leave the link (or queue) with probability `STEP / minutes`, else stay.

    `node` holds free-flow minutes, load and reward; `edge[i, 0]` the action that leads to the
    i-th neighbour, or `HERE`, or `NO_ACTION`.
    """
    here = 0
    for i in range(mu.size):
        if edge[i, 0] == HERE:
            here = i
    leave = min(1.0, STEP * speed(mu[here], node[1]) / node[0])
    for a in range(prob.shape[0]):
        prob[a, here] = 1.0
        reward[a] = node[2]
    for i in range(mu.size):
        if edge[i, 0] >= 0:
            a = int(edge[i, 0])
            prob[a, here] = 1.0 - leave
            prob[a, i] = leave


def build_model(network: Network) -> ltde.NetworkedModel:
    """Make the model: the agents start in the origin queues, and each step on the way costs 1."""
    successors = network.successors()
    action = {(s, t): a for s, go in enumerate(successors) for a, t in enumerate(go)}
    graph = ltde.Graph(len(successors), list(action))
    rows = np.repeat(np.arange(graph.n_states), np.diff(graph.indptr)).tolist()
    edge = [
        HERE if s == t else action.get((s, t), NO_ACTION)
        for s, t in zip(rows, graph.indices.tolist(), strict=True)
    ]
    # A queue is a link of constant time, and the sink one that leads nowhere.
    node = np.tile([RELEASE, 0.0, -1.0], (graph.n_states, 1))
    links = slice(network.n_links)
    node[links, 0] = network.free_minutes
    node[links, 1] = network.congestion * (60.0 * VEHICLES) ** 4 / network.free_minutes**5
    node[network.sink, 2] = 0.0
    n_actions = int(np.bincount(network.tail).max())  # the same for every destination
    mask = np.arange(n_actions) < np.maximum(1, [len(go) for go in successors])[:, None]
    initial = np.zeros(graph.n_states)
    initial[network.n_links : network.sink] = network.demand
    return ltde.NetworkedModel(
        graph,
        n_actions,
        road_local,
        node=node,
        edge=np.array(edge, dtype=np.float64),
        action_mask=mask,
        initial=initial,
        discount=0.98,
        reward_range=(-1.0, 0.0),
    )


class Choices:
    """What a driver compares: for each state and action, the link taken and the minutes after it.

    Attributes
    ----------
    link
        `(S, A)` state to which an action leads; the sink where the action is masked.
    remaining
        `(S, A)` free-flow minutes from the end of that link; infinite where masked.
    """

    def __init__(self, network: Network, model: ltde.NetworkedModel) -> None:
        after = np.zeros(model.n_states)
        after[: network.n_links] = network.remaining_minutes()[network.head]
        self.link = np.full(model.action_mask.shape, network.sink)
        for s, go in enumerate(network.successors()):
            self.link[s, : len(go)] = go
        self.remaining = np.where(model.action_mask, after[self.link], np.inf)
        self.free_minutes, self.load = model.node[:, 0], model.node[:, 1]

    def shortest_path(self) -> ltde.TabularPolicy:
        """Take the path that is shortest on empty roads, each of several with equal probability."""
        cost = self.free_minutes[self.link] + self.remaining
        best = cost == cost.min(axis=1, keepdims=True)
        return ltde.TabularPolicy(best / best.sum(axis=1, keepdims=True))

    def myopic(self) -> ltde.FunctionPolicy:
        """Choose by the present minutes of the next link, and free flow after it.

        It reads the densities of other states than its own, so it is no table.
        """

        def policy(counts: NDArray[Any], n_agents: float) -> Floats:
            density = counts if n_agents == math.inf else counts / n_agents
            minutes = self.free_minutes / speed(density, self.load)
            cost = minutes[:, self.link] + self.remaining
            weight = np.exp((cost.min(axis=2, keepdims=True) - cost) / TEMPERATURE)
            return weight / weight.sum(axis=2, keepdims=True)

        return ltde.FunctionPolicy(policy)


def drive(simulator: ltde.Simulator, policy: Policy, n_links: int) -> tuple[Floats, Floats]:
    """Play until all agents are in the sink (at `N = inf`, all but 1e-9 of the mass).

    Returns
    -------
    minutes
        `(B,)` mean minutes of an agent on links, one number for each replica.
    peak
        `(n_links,)` largest density of each link, averaged over replicas.
    """
    finite = simulator.n_agents < math.inf
    total, arrived = (simulator.n_agents, simulator.n_agents) if finite else (1.0, 1.0 - 1e-9)
    minutes = np.zeros(simulator.n_replicas)
    peak = np.zeros((simulator.n_replicas, n_links))
    while (simulator.counts[:, -1] < arrived).any():
        rollout = simulator.rollout(policy, n_steps=100, record=("counts",))
        density = rollout.counts[:-1, :, :n_links] / total
        minutes += STEP * density.sum(axis=(0, 2))
        peak = np.maximum(peak, density.max(axis=0))
    return minutes, peak.mean(axis=0)


def learn(model: ltde.NetworkedModel, n_iterations: int, seed: int) -> ltde.SoftmaxPolicy:
    """Train with the practical preset as it stands."""
    config = ltde.Config.practical(n_iterations=n_iterations, seed=seed)
    trainer = ltde.LTDENeuralAC(model, TRAINING_AGENTS, config)
    start = time.perf_counter()
    policy = trainer.fit().best
    seconds = time.perf_counter() - start
    print(f"Trained {n_iterations} iterations with {TRAINING_AGENTS:,} agents: {seconds:.1f} s.\n")
    return policy


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


def interval(minutes: Floats) -> tuple[float, float]:
    """Mean over replicas and half width of its 95 % interval (normal), 0 for one replica."""
    if len(minutes) == 1:
        return float(minutes[0]), 0.0
    error = minutes.std(ddof=1) / math.sqrt(len(minutes))
    return float(minutes.mean()), NormalDist().inv_cdf(0.975) * float(error)


# ---- picture ------------------------------------------------------------------------------------


def draw_map(figure: Figure, axes: Axes, network: Network, peak: Floats) -> None:
    """Draw the roads, coloured by the largest number of vehicles on each link."""
    # What a link holds when it is as full as it is meant to be: the flow at which its minutes are
    # 15 % above free flow (the usual definition of capacity), times those minutes.
    capacity = (0.15 * network.free_minutes / network.congestion) ** 0.25 / 60.0
    full = capacity * 1.15 * network.free_minutes
    ratio = VEHICLES * peak / full
    norm, colours = LogNorm(0.05, 20.0, clip=True), colormaps["cividis_r"]
    place = {node: np.array(at) * (1.25, 1.0) for node, at in network.place.items()}
    for e in np.argsort(ratio).tolist():
        start, end = place[int(network.tail[e])], place[int(network.head[e])]
        along = (end - start) / np.linalg.norm(end - start)
        beside = 0.085 * np.array([along[1], -along[0]])  # traffic keeps to the right
        points = np.array([start + beside + 0.2 * along, end + beside - 0.24 * along])
        used = ratio[e] > norm.vmin
        axes.annotate(
            "",
            points[1],
            points[0],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.16,head_length=0.3",
                "color": colours(norm(ratio[e])) if used else "0.85",
                "linewidth": 2.4 if used else 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
                "mutation_scale": 11,
            },
        )
    for node, (x, y) in place.items():
        goal = node == DESTINATION
        axes.plot(x, y, "o", ms=14, mfc="#D55E00" if goal else "white", mec="0.3", zorder=3)
        colour = "white" if goal else "0.1"
        axes.text(x, y, node, ha="center", va="center_baseline", fontsize=8, color=colour, zorder=4)
    axes.set(xlim=(-0.4, 9.15), ylim=(-0.4, 9.4), aspect="equal")
    axes.axis("off")
    axes.set_title(
        f"Peak load, learned routes to node {DESTINATION} (grey: hardly used)", fontsize=11
    )
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=axes, orientation="horizontal", shrink=0.8, pad=0.02
    )
    bar.set_ticks([0.1, 0.3, 1, 3, 10], labels=["0.1", "0.3", "1", "3", "10"])
    bar.set_label("largest number of vehicles on a link / its number at capacity")


def draw_convergence(
    axes: Axes, curves: dict[str, tuple[str, str, dict[float, tuple[float, float]]]]
) -> None:
    """Draw minutes against N, with intervals, and the fluid limit."""
    bars, limits = [], []
    for name, (colour, marker, results) in curves.items():
        agents = sorted(n for n in results if n < math.inf)
        mean, half = np.array([results[n] for n in agents]).reshape(-1, 2).T
        style = {"color": colour, "marker": marker, "ms": 5, "capsize": 4, "lw": 1.2}
        bars.append(axes.errorbar(agents, mean, half, label=f"{name}, 95 % interval", **style))
        if math.inf in results:
            limit = results[math.inf][0]
            label = f"{name}, $N = \\infty$: {limit:.2f}"
            limits.append(axes.axhline(limit, color=colour, ls="--", lw=1.2, label=label))
    axes.set_xscale("log")
    axes.set_xlabel("number of agents $N$")
    axes.set_ylabel("mean time on the road (minutes)")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=bars + limits, frameon=False, fontsize=10)
    axes.set_title("Mean trip at every $N$, up to the fluid limit", fontsize=11)


# ---- command line -------------------------------------------------------------------------------


def number_of_agents(text: str) -> float:
    """Read `1000`, `1e6` or `inf`."""
    value = float(text)
    return value if value == math.inf else int(value)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Route traffic through Sioux Falls.")
    parser.add_argument(
        "--agents",
        type=number_of_agents,
        nargs="+",
        default=[10**2, 10**3, 10**4, 10**6, 10**9, math.inf],
        help="numbers of agents, such as 100 1e6 inf",
    )
    parser.add_argument("--replicas", type=int, default=64, help="independent replicas of each")
    parser.add_argument("--iterations", type=int, default=40, help="of training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/sioux_falls"), help="folder")
    parser.add_argument("--docs", action="store_true", help="also write docs/sioux_falls.png")
    return parser.parse_args(argv)


def main() -> None:
    options = arguments()
    network = read_network()
    model = build_model(network)
    model.check()
    choices = Choices(network, model)
    policies: dict[str, Policy] = {
        "uniform": ltde.TabularPolicy.uniform(model),
        "shortest path": choices.shortest_path(),
        "myopic": choices.myopic(),
        "learned": learn(model, options.iterations, options.seed),
    }

    print(f"Sioux Falls, {VEHICLES:,} vehicles to node {DESTINATION}: {model.n_states} states,")
    print(f"{model.n_actions} actions. Mean minutes on the road, with 95 % intervals over")
    print(f"{options.replicas} replicas; time of a step of one replica in microseconds.\n")
    print("".join([f"{'N':>13}", *(f"{name:>19}" for name in policies), f"{'us/step':>9}"]))
    results: dict[str, dict[float, tuple[float, float]]] = {name: {} for name in policies}
    peaks = {}
    for n_agents in options.agents:
        replicas = 1 if n_agents == math.inf else options.replicas
        cells = [f"{n_agents:>13,}"]
        for name, policy in policies.items():
            simulator = ltde.Simulator(model, n_agents, replicas, options.seed)
            minutes, peaks[name] = drive(simulator, policy, network.n_links)
            mean, half = results[name][n_agents] = interval(minutes)
            cells.append(f"{mean:8.3f} +- {half:6.3f} " if replicas > 1 else f"{mean:8.3f}{'':11}")
        cells.append(f"{microseconds_per_step(model, n_agents, options.replicas):9.1f}")
        print("".join(cells), flush=True)

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.05])
    draw_map(figure, left, network, peaks["learned"])
    styles = {
        "shortest path": ("#0072B2", "o"),
        "myopic": ("#D55E00", "s"),
        "learned": ("#009E73", "^"),
    }
    draw_convergence(right, {name: (*style, results[name]) for name, style in styles.items()})
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "sioux_falls.png", dpi=110)
    print(f"\nWrote {(options.out / 'sioux_falls.png').as_posix()}")
    if options.docs:
        docs = Path(__file__).resolve().parents[1] / "docs"
        figure.savefig(docs / "sioux_falls.png", dpi=110)
        print("Wrote docs/sioux_falls.png")


if __name__ == "__main__":
    main()

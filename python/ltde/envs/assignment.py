"""Static traffic assignment: user equilibrium and system optimum of a road network.

A user equilibrium loads only paths of least time; a system optimum only paths of least marginal
time, so it is the equilibrium of a network in which a link costs `marginal_latency`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltde.envs.road_network import RoadNetwork

__all__ = ["Assignment", "assign", "shortest_splits"]

Floats = NDArray[np.float64]

_MAX_ROUNDS = 300
_SWEEPS = 4  # passes over the paths that are known, in the first round; one more in each round
_TIE = 1e-9  # costs that differ by less, relatively, are equal


@dataclass(frozen=True, eq=False)
class Assignment:
    """Flows of a static assignment.

    Attributes
    ----------
    link_flows
        `(D, L)` vehicles per `flow_unit` on their way to each of `network.destinations`.
    gap
        Relative gap: the part of the total cost that would be saved if all took the cheapest path
        at the present costs. Cost is time (`"ue"`) or marginal time (`"so"`).
    total_minutes
        Vehicle-minutes per `flow_unit`.
    mean_trip
        Minutes of a trip, averaged over trips.
    splits
        `(D, L)` share of the vehicles at the tail of a link, on their way to a destination, that
        take it. Where no vehicle goes: cheapest paths, ties in equal parts.
    """

    link_flows: Floats
    gap: float
    total_minutes: float
    mean_trip: float
    splits: Floats

    @property
    def flow(self) -> Floats:
        """`(L,)` vehicles per `flow_unit` on each link."""
        return np.asarray(self.link_flows.sum(axis=0))


def assign(
    network: RoadNetwork,
    objective: Literal["so", "ue"] = "so",
    gap: float = 1e-8,
) -> Assignment:
    """Solve a static assignment by gradient projection on paths.

    Parameters
    ----------
    network
        Links and trips.
    objective
        `"ue"`: no vehicle can save time by another path. `"so"`: least total time.
    gap
        Relative gap to reach, > 0; rounding allows about 1e-13.

    Returns
    -------
    Assignment
        Flows, splits and the gap that was reached; a RuntimeWarning tells if it is larger.

    Raises
    ------
    ValueError
        If an argument is wrong.

    Notes
    -----
    The link flows are unique where latencies grow; how they divide over destinations is not.
    Time grows with the number of pairs: half a second for the 528 of Sioux Falls, to a gap of
    1e-10, and half a minute for 1,560 on a jammed grid of 960 links, to 1e-6.

    References
    ----------
    R. Jayakrishnan et al., *A faster path-based algorithm for traffic assignment*, Transportation
    Research Record 1443 (1994).
    """
    if objective not in ("so", "ue"):
        raise ValueError(f'objective: expected "so" or "ue", got {objective!r}')
    if not 0.0 < gap < math.inf:
        raise ValueError(f"gap: expected a finite number > 0, got {gap}")
    paths = _Paths(network, objective)
    for round_ in range(_MAX_ROUNDS):
        reached = paths.add_cheapest()
        if reached <= gap:
            break
        for _ in range(_SWEEPS + round_):
            paths.sweep()
    else:
        warnings.warn(f"gap: {reached:g} was reached, {gap:g} asked for", RuntimeWarning, 2)
    flows = paths.link_flows()
    flow = flows.sum(axis=0)
    total = float(flow @ network.latency(flow))
    cheapest = shortest_splits(network, paths.costs(flow))
    return Assignment(
        link_flows=flows,
        gap=reached,
        total_minutes=total,
        mean_trip=total / float(network.trips.sum()),
        splits=_shares(network, flows, cheapest),
    )


def shortest_splits(network: RoadNetwork, cost: Floats) -> Floats:
    """Return the splits of paths of least cost, `(D, L)`, each of several links in equal parts.

    Parameters
    ----------
    network
        Links and destinations.
    cost
        `(L,)` cost of each link, >= 0.
    """
    remaining = network.remaining(cost)
    through = np.where(network.usable, cost + network.beyond(remaining), np.inf)
    here = remaining[:, np.searchsorted(network.nodes, network.tail)]
    with np.errstate(invalid="ignore"):
        best = network.usable & (through <= here + _TIE * np.maximum(1.0, here))
    return _shares(network, best.astype(np.float64), np.zeros_like(through))


def _shares(network: RoadNetwork, weight: Floats, otherwise: Floats) -> Floats:
    """Divide the weights `(D, L)` of links by their sums over the links of each node."""
    tail = np.searchsorted(network.nodes, network.tail)
    total = np.stack([np.bincount(tail, row, len(network.nodes)) for row in weight])[:, tail]
    return np.where(total > 0.0, weight / np.where(total > 0.0, total, 1.0), otherwise)


class _Paths:
    """Paths in use of every pair of origin and destination, and what flows on them.

    The paths are short and few, so plain lists are faster than arrays here.
    """

    def __init__(self, network: RoadNetwork, objective: Literal["so", "ue"]) -> None:
        self._network = network
        grown = network.power + 1.0 if objective == "so" else np.ones(network.n_links)
        self._coefficient = network.coefficient * grown
        parameters = (network.free_flow, self._coefficient, network.power)
        self._links = list(zip(*(values.tolist() for values in parameters), strict=True))
        self._heads = np.searchsorted(network.nodes, network.head).tolist()
        self._pairs = list(
            zip(
                np.searchsorted(network.nodes, network.origin).tolist(),
                np.searchsorted(network.destinations, network.destination).tolist(),
                network.trips.tolist(),
                strict=True,
            )
        )
        # for each pair: the flow of each path, a tuple of links
        self._paths: list[dict[tuple[int, ...], float]] = [{} for _ in self._pairs]
        self.add_cheapest()
        for (_, _, trips), paths in zip(self._pairs, self._paths, strict=True):
            for path in paths:
                paths[path] = trips

    def costs(self, flow: Floats) -> Floats:
        """Return the cost of each link, `(L,)`, at flows `(L,)`."""
        return self._network.free_flow + self._coefficient * flow**self._network.power

    def link_flows(self) -> Floats:
        """Return the flows by destination, `(D, L)`."""
        flows = np.zeros((len(self._network.destinations), self._network.n_links))
        for (_, d, _), paths in zip(self._pairs, self._paths, strict=True):
            for path, flow in paths.items():
                flows[d, list(path)] += flow
        return flows

    def add_cheapest(self) -> float:
        """Add the cheapest path of every pair; return the relative gap before."""
        flow = self.link_flows().sum(axis=0)
        cost = self.costs(flow)
        self._flow = flow.tolist()
        self._cost, self._slope = cost.tolist(), [0.0] * len(self._flow)
        for e in range(len(self._flow)):
            self._update(e)
        remaining, onward = self._network.cheapest(cost)
        next_link = onward.tolist()
        needed = 0.0
        for (node, d, trips), paths in zip(self._pairs, self._paths, strict=True):
            needed += trips * float(remaining[d, node])
            path = []
            while (e := next_link[d][node]) >= 0:
                path.append(e)
                node = self._heads[e]
            paths.setdefault(tuple(path), 0.0)
        spent = float(cost @ flow)
        return max(0.0, 1.0 - needed / spent) if spent > 0.0 else 0.0

    def sweep(self) -> None:
        """Move flow of every pair from its dearer paths to its cheapest, by a Newton step each."""
        cost, slope = self._cost, self._slope
        for paths in self._paths:
            if len(paths) == 1:
                continue
            price = {path: sum([cost[e] for e in path]) for path in paths}
            cheapest = min(price, key=price.__getitem__)
            links = set(cheapest)
            for path in list(paths):
                if path is cheapest:
                    continue
                own = set(path)
                left, entered = own - links, links - own
                # earlier shifts of this pair have changed the costs
                excess = sum([cost[e] for e in left]) - sum([cost[e] for e in entered])
                flow = paths[path]
                if excess > 0.0 and flow > 0.0:
                    curvature = sum([slope[e] for e in left]) + sum([slope[e] for e in entered])
                    shift = flow if excess >= flow * curvature else excess / curvature
                    self._shift(left, -shift)
                    self._shift(entered, shift)
                    paths[cheapest] += shift
                    paths[path] = flow - shift
                if paths[path] <= 0.0:
                    del paths[path]

    def _shift(self, links: set[int], flow: float) -> None:
        for e in links:
            self._flow[e] = max(0.0, self._flow[e] + flow)
            self._update(e)

    def _update(self, e: int) -> None:
        """Set the cost of a link, and its derivative in the flow."""
        free, coefficient, power = self._links[e]
        flow = self._flow[e]
        crowd = coefficient * flow**power
        self._cost[e] = free + crowd
        self._slope[e] = power * crowd / flow if flow > 0.0 else coefficient * (power == 1.0)

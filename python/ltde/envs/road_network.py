"""Road networks: links whose minutes grow with their flow, and the trips that load them."""

from __future__ import annotations

import csv
import heapq
import math
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RoadNetwork"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_POWER = 32.0
_MAX_TRIPS = 1e50  # as of vehicles
_MAX_MINUTES = 1e250  # of a link that takes all trips; sums of products with trips stay finite
_NEWTON_STEPS = 60  # seven are typical; the iteration is monotone, so this is a guard only


@dataclass(frozen=True, eq=False)
class RoadNetwork:
    """Directed links with congestion, and trips between nodes.

    A link that `x` vehicles enter in `flow_unit` minutes takes
    `free_flow + coefficient * x^power` minutes.

    Parameters
    ----------
    name
        For titles.
    tail, head
        `(L,)` labels, non-negative integers, of the nodes where each link begins and ends.
    free_flow
        `(L,)` minutes of an empty link, >= 0.
    coefficient, power
        `(L,)` growth of the minutes with the flow, >= 0; `power` at most 32. Where it is 0, the
        coefficient is added to `free_flow`.
    origin, destination
        `(P,)` nodes between which trips go; each pair once.
    trips
        `(P,)` vehicles per `flow_unit` minutes, > 0 and at most 1e50.
    flow_unit
        Minutes in which flows and trips are counted: 60 for vehicles an hour.
    coordinates
        Where to draw each node, or None.
    first_through
        Nodes with smaller labels are only ends of trips: no trip passes through them.

    Raises
    ------
    ValueError
        Naming argument, index and value; also if some trip has no path.
    TypeError
        If an array does not hold numbers, or labels are no integers.

    Examples
    --------
    >>> from ltde.envs import RoadNetwork
    >>> network = RoadNetwork.braess()
    >>> network.latency([3.0, 2.0, 3.0, 2.0, 1.0])
    array([30., 52., 53., 20., 11.])
    """

    BUILT_IN: ClassVar[tuple[str, ...]] = ("braess", "sioux-falls")  # what `named` knows

    name: str
    tail: Integers
    head: Integers
    free_flow: Floats
    coefficient: Floats
    power: Floats
    origin: Integers
    destination: Integers
    trips: Floats
    flow_unit: float = 60.0
    coordinates: dict[int, tuple[float, float]] | None = None
    first_through: int = 0

    def __post_init__(self) -> None:
        """Convert and check every field; arrays become read-only copies."""

        def keep(name: str, value: Any) -> None:
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)

        for name in ("tail", "head", "origin", "destination"):
            keep(name, _labels(name, getattr(self, name)))
        for name in ("free_flow", "coefficient", "power", "trips"):
            keep(name, _numbers(name, getattr(self, name)))
        for names in (
            ("tail", "head", "free_flow", "coefficient", "power"),
            ("origin", "destination", "trips"),
        ):
            length = len(getattr(self, names[0]))
            if length == 0:
                raise ValueError(f"{names[0]}: expected at least one entry")
            for name in names[1:]:
                if len(getattr(self, name)) != length:
                    raise ValueError(
                        f"{name}: expected {length} entries as in {names[0]}, "
                        f"got {len(getattr(self, name))}"
                    )
        _refuse("head", self.head, self.head == self.tail, "a link must not end where it begins")
        _refuse("power", self.power, self.power > MAX_POWER, f"at most {MAX_POWER:g}")
        growing = self.power > 0.0
        keep("free_flow", np.where(growing, self.free_flow, self.free_flow + self.coefficient))
        keep("coefficient", np.where(growing, self.coefficient, 0.0))
        keep("power", np.where(growing, self.power, 1.0))
        _refuse("trips", self.trips, self.trips <= 0.0, "expected a number > 0")
        _refuse("trips", self.trips, self.trips > _MAX_TRIPS, f"at most {_MAX_TRIPS:g}")
        total = float(self.trips.sum())
        with np.errstate(divide="ignore"):
            size = np.log10(self.coefficient) + (self.power + 1.0) * math.log10(total)
        if size.max() > math.log10(_MAX_MINUTES):
            raise ValueError(
                f"trips: {total:g} in all are too many for link {size.argmax()}, whose minutes "
                "would overflow"
            )
        _refuse(
            "destination",
            self.destination,
            self.destination == self.origin,
            "a trip must not end where it begins",
        )
        for name in ("origin", "destination"):
            labels = getattr(self, name)
            _refuse(name, labels, ~np.isin(labels, self.nodes), "no link touches this node")
        pairs = np.stack([self.origin, self.destination], axis=1)
        _, first = np.unique(pairs, axis=0, return_index=True)
        again = np.ones(len(pairs), dtype=bool)
        again[first] = False
        _refuse("destination", self.destination, again, "this pair occurs twice")
        if not 0.0 < self.flow_unit < math.inf:
            raise ValueError(f"flow_unit: expected a finite number > 0, got {self.flow_unit}")
        if self.coordinates is not None:
            missing = set(self.nodes.tolist()) - set(self.coordinates)
            if missing:
                raise ValueError(f"coordinates: node {min(missing)} has none")
        self.usable  # noqa: B018  finds trips without a path

    # ---- constructors ----------------------------------------------------------------------------

    @classmethod
    def braess(cls) -> Self:
        """Build Braess's network: 6 trips a minute from node 1 to node 2.

        In the user equilibrium a trip takes 92 minutes, in the system optimum 83.

        References
        ----------
        D. Braess, *Ueber ein Paradoxon aus der Verkehrsplanung*, Unternehmensforschung 12 (1968).
        """
        return cls(
            name="Braess",
            tail=np.array([1, 1, 3, 4, 3]),
            head=np.array([3, 4, 2, 2, 4]),
            free_flow=np.array([0.0, 50.0, 50.0, 0.0, 10.0]),
            coefficient=np.array([10.0, 1.0, 1.0, 10.0, 1.0]),
            power=np.ones(5),
            origin=np.array([1]),
            destination=np.array([2]),
            trips=np.array([6.0]),
            flow_unit=1.0,
            coordinates={1: (0.0, 1.0), 2: (4.0, 1.0), 3: (2.0, 2.0), 4: (2.0, 0.0)},
        )

    @classmethod
    def sioux_falls(cls) -> Self:
        """Read the packaged network of Sioux Falls: 24 nodes, 76 links, 360,600 trips an hour.

        `data/sioux_falls/README.md` names source and licence.
        """
        folder = resources.files("ltde") / "data" / "sioux_falls"

        def columns(name: str) -> Floats:
            rows = list(csv.reader((folder / name).read_text(encoding="utf-8").splitlines()))
            return np.array(rows[1:], dtype=np.float64).T

        tail, head, free_flow, coefficient = columns("links.csv")
        origin, destination, trips = columns("od.csv")
        return cls(
            name="Sioux Falls",
            tail=tail.astype(np.int64),
            head=head.astype(np.int64),
            free_flow=free_flow,
            coefficient=coefficient,
            power=np.full(len(tail), 4.0),
            origin=origin.astype(np.int64),
            destination=destination.astype(np.int64),
            trips=trips,
            coordinates={int(node): (x, y) for node, x, y in columns("nodes.csv").T.tolist()},
        )

    @classmethod
    def from_tntp(
        cls,
        net: str | Path,
        trips: str | Path,
        nodes: str | Path | None = None,
        *,
        time_factor: float = 1.0,
        flow_unit: float = 60.0,
    ) -> Self:
        """Read a network in the TNTP format of the TransportationNetworks collection.

        Parameters
        ----------
        net, trips, nodes
            The files; `nodes` holds coordinates and may be absent.
        time_factor
            Minutes in a unit of `free_flow_time`, 60 if that is in hours.
        flow_unit
            Minutes in which capacities and trips are counted.

        Raises
        ------
        ValueError
            Naming file and line, if a line is malformed, and the files, if these do not fit.

        Notes
        -----
        Trips within a zone and of zero vehicles are left out.
        """
        from ltde.envs import tntp

        if not 0.0 < time_factor < math.inf:
            raise ValueError(f"time_factor: expected a finite number > 0, got {time_factor}")
        links = tntp.read_links(net)
        origin, destination, vehicles = tntp.read_trips(trips)
        places = None if nodes is None else tntp.read_nodes(nodes)
        kept = (origin != destination) & (vehicles > 0)
        if not kept.any():
            raise ValueError(f"{Path(trips).name}: holds no trips between different zones")
        touched = np.union1d(links.tail, links.head)
        lonely = np.setdiff1d(np.concatenate([origin[kept], destination[kept]]), touched)
        if len(lonely):
            raise ValueError(
                f"{Path(trips).name}: zone {lonely[0]} has trips, but no link of "
                f"{Path(net).name} touches it"
            )
        if nodes is not None and (missing := set(touched.tolist()) - set(places or ())):
            raise ValueError(
                f"{Path(nodes).name}: holds no coordinates of node {min(missing)} of "
                f"{Path(net).name}"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            minutes = links.free_flow_time * time_factor
            grown = minutes * links.b
            # without growth the capacity does not matter, however large or small
            capacity = np.where(grown > 0.0, links.capacity, 1.0)
            coefficient = grown / capacity**links.power
        try:
            return cls(
                name=Path(net).stem.removesuffix("_net"),
                tail=links.tail,
                head=links.head,
                free_flow=minutes,
                coefficient=coefficient,
                power=links.power,
                origin=origin[kept],
                destination=destination[kept],
                trips=vehicles[kept],
                flow_unit=flow_unit,
                coordinates=places,
                first_through=links.first_through,
            )
        except ValueError as error:
            # indices are not those of lines
            what = re.sub(r"^(\w+)\[\d+\]", r"\1", str(error))
            raise ValueError(f"{net}, {trips}: {what}") from error

    @classmethod
    def named(cls, text: str) -> Self:
        """Return the network of a name: what a command line takes.

        Parameters
        ----------
        text
            `"braess"`, `"sioux-falls"`, or the path of a file `CITY_net.tntp` with
            `CITY_trips.tntp`, and optionally `CITY_node.tntp`, beside it.

        Raises
        ------
        ValueError
            If the name is unknown.
        FileNotFoundError
            If a file is missing.
        """
        if text in cls.BUILT_IN:
            made: Self = getattr(cls, text.replace("-", "_"))()
            return made
        if not text.endswith("_net.tntp"):
            raise ValueError(
                'network: expected "braess", "sioux-falls" or the path of a file that ends in '
                f"_net.tntp, got {text!r}"
            )
        net = Path(text)
        stem = net.name.removesuffix("_net.tntp")
        nodes = net.with_name(f"{stem}_node.tntp")
        trips = net.with_name(f"{stem}_trips.tntp")
        return cls.from_tntp(net, trips, nodes if nodes.exists() else None)

    # ---- minutes ---------------------------------------------------------------------------------

    @property
    def n_links(self) -> int:
        """Number of links `L`."""
        return len(self.tail)

    def latency(self, flow: ArrayLike) -> Floats:
        """Return the minutes of each link, `(..., L)`, at flows `(..., L)` per `flow_unit`."""
        return self.free_flow + self.coefficient * _flows(flow, self.n_links) ** self.power

    def marginal_latency(self, flow: ArrayLike) -> Floats:
        """Return the minutes that one more vehicle costs all, `(..., L)`: `d(x t(x))/dx`."""
        grown = (self.power + 1.0) * self.coefficient
        return self.free_flow + grown * _flows(flow, self.n_links) ** self.power

    def minutes(self, vehicles: ArrayLike) -> Floats:
        """Return the minutes of each link, `(..., L)`, that holds `vehicles` `(..., L)`.

        Little's law: the root `t` of `t = latency(flow_unit * vehicles / t)`, found by Newton's
        method to rounding error.
        """
        held = _flows(vehicles, self.n_links)
        power = self.power
        # the minutes if the link took none when empty; the larger of the two is the unit
        queue = (self.crowding * held) ** (power / (power + 1.0))
        unit = np.maximum(self.free_flow, queue)
        safe = np.where(unit > 0.0, unit, 1.0)
        free = np.where(unit > 0.0, self.free_flow / safe, 1.0)
        crowd = (queue / safe) ** (power + 1.0)
        # With y = unit / t: free y + crowd y^(power + 1) = 1. The start lies above the root of a
        # convex function, so the iteration cannot pass it.
        y = (free ** (power + 1.0) + crowd) ** (-1.0 / (power + 1.0))
        for _ in range(_NEWTON_STEPS):
            c = crowd * y**power
            step = (free * y + c * y - 1.0) / (free + (power + 1.0) * c)
            y = y - step
            if (step <= 1e-15 * y).all():
                break
        return unit / y

    def flow(self, vehicles: ArrayLike) -> Floats:
        """Return the flow, `(..., L)` per `flow_unit`, of links that hold `vehicles` `(..., L)`.

        It solves `flow * latency(flow) = flow_unit * vehicles`; infinite where a link takes no
        time.
        """
        held = _flows(vehicles, self.n_links)
        minutes = self.minutes(held)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(held > 0.0, self.flow_unit * held / minutes, 0.0)

    @cached_property
    def crowding(self) -> Floats:
        """`(L,)` `k` in minutes `= free_flow + (k * flow)^power`, flow in vehicles per minute."""
        return np.asarray(self.coefficient ** (1.0 / self.power) * self.flow_unit)

    @cached_property
    def full(self) -> Floats:
        """`(L,)` vehicles on each link at capacity; infinite where there is no congestion.

        Capacity is the flow at which a link takes 15 % longer than when it is empty, as is usual. A
        link that takes no time when it is empty is full at the mean free-flow minutes of all links.
        """
        congested = self.coefficient > 0.0
        extra = np.where(self.free_flow > 0.0, 0.15 * self.free_flow, self.free_flow.mean())
        coefficient = np.where(congested, self.coefficient, 1.0)
        capacity = (extra / coefficient) ** (1.0 / self.power)
        vehicles = capacity * (self.free_flow + extra) / self.flow_unit
        return np.where(congested & (vehicles > 0.0), vehicles, np.inf)

    # ---- paths -----------------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> Integers:
        """`(V,)` labels of the nodes that some link touches, ascending."""
        return np.union1d(self.tail, self.head)

    @cached_property
    def destinations(self) -> Integers:
        """`(D,)` labels of the nodes where trips end, ascending."""
        return np.unique(self.destination)

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """`(D, L)` whether a trip to this destination can still arrive once it is on this link."""
        to_go = self.remaining(np.ones(self.n_links))
        row = np.searchsorted(self.destinations, self.destination)
        cut = ~np.isfinite(to_go[row, np.searchsorted(self.nodes, self.origin)])
        origin = self.origin[cut.argmax()]
        _refuse("destination", self.destination, cut, f"no path leads there from {origin}")
        return np.isfinite(self.beyond(to_go))

    def remaining(self, cost: ArrayLike) -> Floats:
        """Return the least cost from each node to each destination, by Dijkstra's algorithm.

        Parameters
        ----------
        cost
            `(L,)` cost of each link, >= 0.

        Returns
        -------
        ndarray
            `(D, V)`, infinite where there is no path.
        """
        return self.cheapest(cost)[0]

    def cheapest(self, cost: ArrayLike) -> tuple[Floats, Integers]:
        """Return `remaining`, and the link by which a cheapest path leaves each node.

        Parameters
        ----------
        cost
            `(L,)` cost of each link, >= 0.

        Returns
        -------
        remaining
            `(D, V)`, infinite where there is no path.
        onward
            `(D, V)` links; -1 at the destination and where there is no path.
        """
        weight = _flows(cost, self.n_links).tolist()
        found = [self._dijkstra(d, weight) for d in self.destinations.tolist()]
        return np.array([best for best, _ in found]), np.array([onward for _, onward in found])

    def beyond(self, remaining: Floats) -> Floats:
        """Return what is left at the end of each link, `(D, L)`, of `remaining` `(D, V)`.

        Infinite where the end of a link is a node that trips must not pass through.
        """
        left = remaining[:, np.searchsorted(self.nodes, self.head)]
        closed = (self.head < self.first_through) & (self.head != self.destinations[:, None])
        return np.where(closed, np.inf, left)

    @cached_property
    def _into(self) -> list[list[tuple[int, int]]]:
        """For each node: the links that end there and the nodes where they begin, as indices."""
        into: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        ends = np.searchsorted(self.nodes, self.head).tolist()
        begins = np.searchsorted(self.nodes, self.tail).tolist()
        for e, (end, begin) in enumerate(zip(ends, begins, strict=True)):
            into[end].append((e, begin))
        return into

    def _dijkstra(self, destination: int, weight: list[float]) -> tuple[list[float], list[int]]:
        """Return the least cost from each node to one destination, and the link to take."""
        into = self._into
        target = int(np.searchsorted(self.nodes, destination))
        n_closed = int(np.searchsorted(self.nodes, self.first_through))
        best, onward = [math.inf] * len(self.nodes), [-1] * len(self.nodes)
        best[target] = 0.0
        heap = [(0.0, target)]
        while heap:
            cost, v = heapq.heappop(heap)
            if cost > best[v] or (v < n_closed and v != target):
                continue
            for e, u in into[v]:
                through = cost + weight[e]
                if through < best[u]:
                    best[u], onward[u] = through, e
                    heapq.heappush(heap, (through, u))
        return best, onward

    def __repr__(self) -> str:
        """Show name and sizes."""
        return (
            f"RoadNetwork({self.name!r}, {len(self.nodes)} nodes, {self.n_links} links, "
            f"{len(self.trips)} pairs, {self.trips.sum():g} trips in {self.flow_unit:g} min)"
        )


def _labels(name: str, values: Any) -> Integers:
    """Check node labels and copy them."""
    array = np.array(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one axis, got shape {array.shape}")
    labels = array.astype(np.int64)
    _refuse(name, labels, labels < 0, "expected a label >= 0")
    return labels


def _numbers(name: str, values: Any) -> Floats:
    """Check finite non-negative numbers and copy them."""
    array = np.array(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one axis, got shape {array.shape}")
    numbers = array.astype(np.float64)
    wrong = ~((numbers >= 0.0) & np.isfinite(numbers))
    _refuse(name, numbers, wrong, "expected a finite number >= 0")
    return numbers


def _refuse(name: str, values: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    """Raise ValueError for the first entry that is wrong."""
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(f"{name}[{i}]: {expected}, got {values[i]}")


def _flows(values: ArrayLike, n_links: int) -> Floats:
    """Check numbers >= 0 of links, `(..., L)`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != n_links:
        raise ValueError(f"flow: expected shape (..., {n_links}), got {array.shape}")
    if not (array >= 0.0).all():
        index = np.unravel_index(int((~(array >= 0.0)).argmax()), array.shape)
        place = ", ".join(map(str, index))
        raise ValueError(f"flow[{place}]: expected a number >= 0, got {array[index]}")
    return array

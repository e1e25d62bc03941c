"""Road routing: vehicles choose at every crossing which link to take next.

The time on a link grows with the vehicles on it, which all delay each other. A driver sees the link
she is on, and how full it is; what is best for all differs from what is best for each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltde.arguments import integer, positive
from ltde.envs.assignment import Assignment, assign, shortest_splits
from ltde.envs.environment import Environment, Measurement
from ltde.envs.road_network import RoadNetwork
from ltde.graph import Graph
from ltde.model import NetworkedModel
from ltde.policy import FunctionPolicy, TabularPolicy
from ltde.simulator import Simulator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RoadRouting", "road_local"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Columns of the edge data: whether the neighbour is this state, or on the same link; the action
# that leads there, or -1; the share of those who leave that go there; the reward of going there.
PLACE, ACTION, SHARE, GAIN = 0, 1, 2, 3
HERE, SAME_LINK, ELSEWHERE = 2.0, 1.0, 0.0

# The published table of trips has 45,100 to node 10; the shipped one differs in 12 cells.
_TO_NODE_10 = 45_100.0
_GAP = 1e-7  # of static assignments: splits to three digits
_MAX_NEIGHBOURS = 50_000_000  # memory: 40 bytes each
_CHUNK = 100  # steps recorded at a time
_LONGEST_TRIP = 20_000  # steps, more if trips are long; a driver in circles never arrives
_ARRIVED = 1e-9  # share that may still be on the road when the flow is stopped
_MAX_VEHICLES = 1e50  # as of the option `vehicles`
_MAX_HORIZON = 1e12  # steps; the discount must stay below 1


def road_local(s, mu, node, edge, prob, reward):  # type: ignore[no-untyped-def]
    """Leave the link with probability `min(1, 1 / t)`, else stay; `t` is its time in steps.

    `node` holds the time `free` of the empty link, `load` and `power`. By Little's law a density
    `m` on the link gives `t = free + (load m / t)^power`.
    """
    here, density = 0, 0.0
    for i in range(mu.size):
        if edge[i, PLACE] != ELSEWHERE:
            density += mu[i]
        if edge[i, PLACE] == HERE:
            here = i
    free, load, power = node[0], node[1], node[2]
    crowd = (load * density) ** power if load > 0.0 else 0.0
    leave = 1.0
    if free + crowd > 1.0:
        # leave = 1 / t solves free leave + crowd leave^(power + 1) = 1. Newton's method starts
        # above the root of a convex function and so cannot pass it; five iterations are typical.
        leave = (free ** (power + 1.0) + crowd) ** (-1.0 / (power + 1.0))
        for _ in range(60):
            squared = leave * leave  # powers of 4, the usual ones, without logarithms
            c = crowd * (squared * squared if power == 4.0 else leave**power)
            change = (free * leave + c * leave - 1.0) / (free + (power + 1.0) * c)
            leave -= change
            if change <= 1e-15 * leave:
                break
        leave = min(1.0, leave)
    for a in range(prob.shape[0]):
        prob[a, here] = 1.0 - leave
        reward[a] = (1.0 - leave) * edge[here, GAIN]
    for i in range(mu.size):
        if edge[i, ACTION] >= 0.0:
            a = int(edge[i, ACTION])
            prob[a, i] += leave * edge[i, SHARE]
            reward[a] += leave * edge[i, SHARE] * edge[i, GAIN]


@dataclass(frozen=True)
class RoadRouting(Environment):
    """Routing of vehicles through a road network, in minutes of a trip.

    Each of `N` agents stands for `vehicles / N` vehicles. A state is a link and a destination, and
    an action is the link to take at the end of it. What delays a vehicle is all that is on its
    link, whatever the destination, so these states are neighbours.

    With one destination all vehicles begin in queues at their origins, and trips end in a sink: a
    step outside costs 1. With all destinations the system is closed: a vehicle that arrives, which
    earns 1, begins a trip from there, drawn from the trips of that node (of all nodes if it has
    none), after one step in a restart state.

    Parameters
    ----------
    network
        `"braess"`, `"sioux-falls"`, the path of a `*_net.tntp` file, or a `RoadNetwork`.
    destination
        Node where all trips end; None for all destinations.
    vehicles
        Number of vehicles; None for the trips of an hour to one destination (45,100 for the
        packaged trips to node 10 of Sioux Falls), and otherwise for those that a system optimum
        keeps on the way.
    step
        Minutes of a step; `model` warns if it is longer than some link takes.
    discount
        Discount of a step; None covers a trip (0.98, more if trips are long).
    release
        Mean minutes in an origin queue.
    shaping
        Potential added to the reward, which leaves the optimum as it is: none, or the discounted
        time that remains at free flow or at the marginal times of the system optimum.
    temperature
        Minutes; how sharply the myopic driver tells two times apart.

    Raises
    ------
    ValueError
        Naming the argument that is wrong, and its value.

    Notes
    -----
    A vehicle leaves its link within a step with probability `step / minutes`, the minutes those of
    the vehicles on it by Little's law. The stationary fluid of the closed system is therefore a
    static assignment, if as many trips begin at every node as end there.

    Potential: `Phi = -(1 - gamma^T) / ((1 - gamma) U)`, `T` the steps that remain after this link,
    and `U` 1 with one destination, the largest `T` without. The reward of a move from `s` to `t` is
    then larger by `gamma Phi(t) - Phi(s)`. `model.reward_range` holds the least and the largest
    reward of all moves.

    Examples
    --------
    >>> from ltde.envs import RoadRouting
    >>> RoadRouting("braess", discount=0.99).model
    NetworkedModel(n_states=6, n_actions=2, local='road_local', discount=0.99)
    """

    network: RoadNetwork | str = "sioux-falls"
    destination: int | None = None
    vehicles: float | None = None
    step: float = 1.0
    discount: float | None = None
    release: float = 30.0
    shaping: Literal["none", "free-flow", "marginal"] = "none"
    temperature: float = 1.0

    measure_name: ClassVar[str] = "mean trip"
    unit: ClassVar[str] = "minutes"
    lower_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("step", "release", "temperature"):
            positive(name, getattr(self, name))
        if self.vehicles is not None:
            positive("vehicles", self.vehicles)
        if self.discount is not None and not 0.0 <= self.discount < 1.0:
            raise ValueError(f"discount: expected a number in [0, 1), got {self.discount}")
        if self.shaping not in ("none", "free-flow", "marginal"):
            raise ValueError(
                f'shaping: expected "none", "free-flow" or "marginal", got {self.shaping!r}'
            )
        self.roads  # noqa: B018  reads the network now, and checks the destination

    # ---- the model -------------------------------------------------------------------------------

    @cached_property
    def roads(self) -> RoadNetwork:
        """The network, with the trips of this application only."""
        network = self.network
        if isinstance(network, str):
            network = RoadNetwork.named(network)
        elif not isinstance(network, RoadNetwork):
            raise TypeError(f"network: expected a RoadNetwork or a name, got {network!r}")
        if self.destination is None:
            return network
        bound = network.destination == self.destination
        if not bound.any():
            raise ValueError(f"destination: no trip ends at {self.destination!r}")
        return replace(
            network,
            origin=network.origin[bound],
            destination=network.destination[bound],
            trips=network.trips[bound],
        )

    @property
    def closed(self) -> bool:
        """Whether vehicles go on to another trip."""
        return self.destination is None

    @cached_property
    def optimum(self) -> Assignment:
        """The static system optimum."""
        return assign(self.roads, "so", _GAP)

    @cached_property
    def equilibrium(self) -> Assignment:
        """The static user equilibrium."""
        return assign(self.roads, "ue", _GAP)

    @cached_property
    def n_vehicles(self) -> float:
        """Vehicles that all agents together stand for."""
        if self.vehicles is not None:
            return float(self.vehicles)
        if self._is_packaged():
            return _TO_NODE_10
        per_minute = float(self.roads.trips.sum()) / self.roads.flow_unit
        vehicles = 60.0 * per_minute
        if self.closed:
            vehicles = self.optimum.total_minutes / self.roads.flow_unit + per_minute * self.step
        if vehicles > _MAX_VEHICLES:
            raise ValueError(
                f"trips: {self.roads.trips.sum():g} in all keep {vehicles:g} vehicles on the way, "
                f"at most {_MAX_VEHICLES:g} can be"
            )
        return vehicles

    def _is_packaged(self) -> bool:
        """Tell whether the trips are those to node 10 of the packaged Sioux Falls."""
        if self.destination != 10:
            return False
        known, own = RoadNetwork.sioux_falls(), self.roads
        bound = known.destination == 10
        trips = dict(zip(known.origin[bound].tolist(), known.trips[bound].tolist(), strict=True))
        return own.flow_unit == known.flow_unit and trips == dict(
            zip(own.origin.tolist(), own.trips.tolist(), strict=True)
        )

    @cached_property
    def _discount(self) -> float:
        if self.discount is not None:
            return float(self.discount)
        horizon = 1.25 * self.optimum.mean_trip / self.step
        if not horizon <= _MAX_HORIZON:
            raise ValueError(
                f"trips: {self.roads.trips.sum():g} in all are too many for the links; in the "
                f"system optimum one takes {self.optimum.mean_trip:g} minutes, and steps of "
                f"{self.step:g} leave no discount below 1"
            )
        return 1.0 - 1.0 / max(50.0, horizon)

    @cached_property
    def _states(self) -> _States:
        return _States(self.roads, sink=not self.closed)

    @property
    def link_of_state(self) -> Integers:
        """`(S,)` link of each state; -1 for queues, restart states and the sink."""
        return self._states.link

    @property
    def destination_of_state(self) -> Integers:
        """`(S,)` node to which the vehicles of each state go."""
        goals: Integers = self.roads.destinations[self._states.destination]
        return goals

    @cached_property
    def model(self) -> NetworkedModel:
        """The model, the same object at every access."""
        self._warn_of_short_links()
        states, gamma = self._states, self._discount
        potential = self._potential()
        moves = states.moves(reward_of_arrival=1.0 if self.closed else 0.0)
        cost = np.where(np.arange(states.n) == states.sink, 0.0, 0.0 if self.closed else -1.0)
        stay = cost + (gamma - 1.0) * potential
        gain = cost[moves.source] + moves.reward + gamma * potential[moves.target]
        gain -= potential[moves.source]

        graph = Graph(states.n, np.concatenate([states.same_link(), moves.pairs]))
        rows = np.repeat(np.arange(states.n), np.diff(graph.indptr))
        columns = graph.indices
        edge = np.tile([ELSEWHERE, -1.0, 0.0, 0.0], (len(columns), 1))
        together = (states.link[rows] == states.link[columns]) & (states.link[rows] >= 0)
        edge[together, PLACE] = SAME_LINK
        itself = rows == columns
        edge[itself, PLACE], edge[itself, GAIN] = HERE, stay
        place = np.searchsorted(rows * states.n + columns, moves.source * states.n + moves.target)
        edge[place, ACTION], edge[place, SHARE], edge[place, GAIN] = moves.action, moves.share, gain

        lo, hi = min(stay.min(), gain.min()), max(stay.max(), gain.max())
        rounding = 0.0 if not self.closed and self.shaping == "none" else 1e-12
        return NetworkedModel(
            graph,
            states.n_actions,
            road_local,
            node=self._node_data(),
            edge=edge,
            action_mask=states.mask,
            initial=self._initial(),
            discount=gamma,
            reward_range=(float(lo) - rounding, float(hi) + rounding),
        )

    def _warn_of_short_links(self) -> None:
        """Warn of a step that is longer than the shortest link; one of no time is meant so."""
        free = np.where(self.roads.free_flow > 0.0, self.roads.free_flow, np.inf)
        e = int(free.argmin())
        if self.step > free[e] * (1.0 + 1e-9):
            warnings.warn(
                f"step: {self.step:g} minutes is longer than link {e}'s {free[e]:g} minutes at "
                f"free flow ({self.roads.tail[e]} to {self.roads.head[e]}); vehicles spend more "
                "time there than they need",
                UserWarning,
                stacklevel=4,  # past `model` and its cache
            )

    def _node_data(self) -> Floats:
        """Return what `road_local` reads, `(S, 3)`: time in steps, densities instead of vehicles.

        A queue or a restart state is a link of constant time, and the sink one of no time.
        """
        roads, states = self.roads, self._states
        fixed = self.step if self.closed else self.release
        node = np.tile([fixed / self.step, 0.0, 1.0], (states.n, 1))
        load = roads.crowding * self.n_vehicles * self.step ** (-1.0 / roads.power - 1.0)
        on_link = states.link >= 0
        links = np.stack([roads.free_flow / self.step, load, roads.power], axis=1)
        node[on_link] = links[states.link[on_link]]
        if states.sink >= 0:
            node[states.sink, 0] = 0.0
        return node

    def _initial(self) -> Floats:
        """Queues by demand; in the closed system links and destinations alike."""
        states = self._states
        initial = np.zeros(states.n)
        if self.closed:
            initial[states.link >= 0] = 1.0
        else:
            initial[states.origins] = self.roads.trips
        return np.asarray(initial / initial.sum())

    def _potential(self) -> Floats:
        """Return `Phi`, `(S,)`."""
        states, roads = self._states, self.roads
        if self.shaping == "none":
            return np.zeros(states.n)
        cost = roads.free_flow
        if self.shaping == "marginal":
            cost = roads.marginal_latency(self.optimum.flow)
        steps = states.remaining(roads.remaining(cost)) / self.step
        unit = float(steps.max()) if self.closed else 1.0
        gamma = self._discount
        return np.asarray((gamma**steps - 1.0) / ((1.0 - gamma) * max(unit, 1.0)))

    # ---- what the command line and the report ask ------------------------------------------------

    @property
    def title(self) -> str:
        """One line for pictures and reports."""
        goal = "all destinations" if self.closed else f"to node {self.destination}"
        return f"{self.roads.name}, {self.n_vehicles:,.0f} vehicles, {goal}"

    @property
    def training_agents(self) -> int:
        """Number of agents to train with, unless told otherwise."""
        return 4_000 if self._states.n <= 1_000 else 10_000

    def baselines(self) -> dict[str, Any]:
        """Return policies that do not learn, by name.

        The splits of static assignments are no bounds: they do not react, and with one destination
        the traffic is not stationary.
        """
        return {
            "uniform": TabularPolicy.uniform(self.model),
            "shortest path": self.shortest_path(),
            "myopic": self.myopic(),
            "user equilibrium": self.split(self.equilibrium.splits),
            "system optimum": self.split(self.optimum.splits),
        }

    def split(self, splits: Floats) -> TabularPolicy:
        """Return the policy that divides the vehicles at each node over its links.

        Parameters
        ----------
        splits
            `(D, L)` shares, as `Assignment.splits` holds them.
        """
        states = self._states
        probs = np.where(
            states.choice >= 0, splits[states.destination[:, None], states.choice], 0.0
        )
        probs[(states.choice < 0).all(axis=1), 0] = 1.0
        return TabularPolicy(probs)

    def shortest_path(self) -> TabularPolicy:
        """Take the path that is shortest on empty roads, each of several with equal chance."""
        return self.split(shortest_splits(self.roads, self.roads.free_flow))

    def logit(self) -> TabularPolicy:
        """Choose by the minutes at free flow, softly: `exp(-minutes / temperature)`."""
        return TabularPolicy(self._softmax(self.roads.free_flow))

    def myopic(self) -> FunctionPolicy:
        """Choose softly by the present minutes of the next link, and free flow after it.

        It reads the densities of other states than its own, so it is no table.
        """

        def present_minutes(counts: NDArray[Any], n_agents: float) -> Floats:
            total = 1.0 if n_agents == math.inf else n_agents
            minutes = self.roads.minutes(self._on_links(counts) * (self.n_vehicles / total))
            return self._softmax(minutes)

        return FunctionPolicy(present_minutes)

    def _softmax(self, minutes: Floats) -> Floats:
        """Return choices `(..., S, A)` by `minutes` `(..., L)` of the next link and free flow."""
        choice = self._states.choice
        cost = minutes[..., choice] + self._after
        none = (choice < 0).all(axis=1)
        cost[..., none, 0] = 0.0
        weight = np.exp((cost.min(axis=-1, keepdims=True) - cost) / self.temperature)
        return np.asarray(weight / weight.sum(axis=-1, keepdims=True))

    @cached_property
    def _after(self) -> Floats:
        """`(S, A)` minutes at free flow after the link that an action takes, or infinity."""
        states, roads = self._states, self.roads
        beyond = roads.beyond(roads.remaining(roads.free_flow))
        after = beyond[states.destination[:, None], states.choice]
        return np.where(states.choice >= 0, after, np.inf)

    def _on_links(self, counts: NDArray[Any]) -> Floats:
        """Add up what is on each link, `(..., L)` of `(..., S)`."""
        states = self._states
        total = np.zeros((*counts.shape[:-1], states.first[-1] + 1), dtype=counts.dtype)
        np.cumsum(counts[..., : states.first[-1]], axis=-1, out=total[..., 1:])
        # differences of rounded sums may be just below zero
        return np.maximum(0.0, np.diff(total[..., states.first], axis=-1))

    def references(self) -> Mapping[str, float]:
        """Return the mean trips of the static assignments, in minutes; none with one destination.

        There traffic is not stationary, and static times bound nothing.
        """
        if not self.closed:
            return {}
        return {
            "static user equilibrium": self.equilibrium.mean_trip,
            "static system optimum": self.optimum.mean_trip,
        }

    def measure(
        self,
        policy: Any,
        n_agents: float,
        n_replicas: int = 16,
        seed: int = 0,
        *,
        threads: int | None = None,
    ) -> Measurement:
        """Measure the mean minutes of a trip, without queues and restart states.

        One destination: the time on links until all have arrived (at `N = inf`, all but 1e-9), or
        for 20,000 steps, or 20 `release` and 100 mean trips of the system optimum if these are
        longer. A RuntimeWarning tells that some had not arrived; the minutes are then a lower
        bound.

        All destinations: agents times minutes over trips completed, in a window of 1,000 steps
        after 500 steps of burn-in, more if trips are long. They are infinite, and a RuntimeWarning
        says so, if no trip was completed in the window.

        Parameters
        ----------
        policy
            What `Simulator.rollout` plays.
        n_agents
            `N`, or `math.inf` for the fluid, of which there is one replica.
        n_replicas
            Independent replicas.
        seed
            Of the simulation.
        threads
            Worker threads; None for all.
        """
        n_replicas = integer("n_replicas", n_replicas, 1, 2**32)
        replicas = 1 if n_agents == math.inf else n_replicas
        simulator = Simulator(self.model, n_agents, replicas, seed, threads)
        minutes = self._cycle(simulator, policy) if self.closed else self._way(simulator, policy)
        return Measurement(minutes, n_agents)

    def _cycle(self, simulator: Simulator, policy: Any) -> Floats:
        """Return minutes of a trip in the closed system, `(B,)`."""
        burn_in, window = self._settled, max(1_000, self._settled)
        simulator.rollout(policy, burn_in, record=())
        done = np.zeros(simulator.n_replicas)
        for counts in _played(simulator, policy, window):
            # vehicles stay in restart states for one step, so these hold the trips just completed
            done += counts[:, :, self._states.origins].sum(axis=(0, 2))
        total = 1.0 if simulator.n_agents == math.inf else simulator.n_agents
        if not done.all():
            warnings.warn(
                f"measure: no trip was completed in the window of {window:,} steps by "
                f"{np.count_nonzero(done == 0)} of {len(done)} replicas; their minutes are inf",
                RuntimeWarning,
                stacklevel=3,
            )
        with np.errstate(divide="ignore"):
            return self.step * (total * window / done - 1.0)

    @cached_property
    def _settled(self) -> int:
        """Steps until the start is forgotten: 25 trips, at least 500."""
        return max(500, math.ceil(25.0 * self.optimum.mean_trip / self.step))

    def _way(self, simulator: Simulator, policy: Any) -> Floats:
        """Return minutes on links until all vehicles have arrived, `(B,)`."""
        fluid = simulator.n_agents == math.inf
        total, arrived = (1.0, 1.0 - _ARRIVED) if fluid else (simulator.n_agents,) * 2
        minutes = np.zeros(simulator.n_replicas)
        longest = 20.0 * self.release + 100.0 * self.optimum.mean_trip
        n_steps = max(_LONGEST_TRIP, math.ceil(longest / self.step))
        for counts in _played(simulator, policy, n_steps):
            minutes += counts[:, :, self._states.link >= 0].sum(axis=(0, 2)) / total * self.step
            if (simulator.counts[:, self._states.sink] >= arrived).all():
                break
        else:
            left = 1.0 - float(simulator.counts[:, self._states.sink].mean()) / total
            warnings.warn(
                f"measure: {100.0 * left:.3g} % of the agents had not arrived after {n_steps:,} "
                "steps; the minutes are a lower bound",
                RuntimeWarning,
                stacklevel=3,
            )
        return minutes

    # ---- pictures --------------------------------------------------------------------------------

    def link_loads(
        self, policy: Any, n_agents: float, seed: int = 0, n_steps: int | None = None
    ) -> Floats:
        """Simulate one replica from the initial law and return the vehicles on links, `(T, L)`.

        Parameters
        ----------
        policy
            What `Simulator.rollout` plays.
        n_agents
            `N`, or `math.inf`.
        seed
            Of the simulation.
        n_steps
            `T`; None for the time in which most trips are over, or the start is forgotten.
        """
        return self._on_links(self._history(policy, n_agents, seed, n_steps)) * self.n_vehicles

    def link_flows(
        self, policy: Any, n_agents: float, seed: int = 0, n_steps: int | None = None
    ) -> Floats:
        """Simulate as `link_loads` does and return the flows on links, `(T, L)` per `flow_unit`."""
        return self.roads.flow(self.link_loads(policy, n_agents, seed, n_steps))

    def _history(
        self, policy: Any, n_agents: float, seed: int, n_steps: int | None = None
    ) -> Floats:
        """Return the densities of one replica after every step, `(T, S)`."""
        n_steps = self._shown if n_steps is None else n_steps
        simulator = Simulator(self.model, n_agents, 1, seed, threads=1)
        total = 1.0 if n_agents == math.inf else n_agents
        return np.concatenate([c[:, 0] / total for c in _played(simulator, policy, n_steps)])

    @property
    def _shown(self) -> int:
        """Steps in which most trips are over, or the start is forgotten."""
        minutes = 5.0 * self.release + 3.0 * self.optimum.mean_trip
        return self._settled if self.closed else math.ceil(minutes / self.step)

    def figures(self, policies: Mapping[str, Any], seed: int = 0) -> dict[str, Figure]:
        """Draw maps before and after learning, traffic over time, and where routes are unusual.

        Parameters
        ----------
        policies
            Policies to compare by name, among them `"learned"`.
        seed
            Of the simulations, one replica of `training_agents` each.
        """
        from ltde import plotting

        if "learned" not in policies:
            raise ValueError(f'policies: expected "learned" among the names, got {[*policies]}')
        shown = {"uniform": TabularPolicy.uniform(self.model), **policies}
        density = {
            name: self._history(policy, self.training_agents, seed)
            for name, policy in shown.items()
        }
        loads = {name: self._on_links(mu) * self.n_vehicles for name, mu in density.items()}
        minutes = self.step * np.arange(1.0, len(loads["learned"]) + 1.0)

        figures = {
            "Traffic before and after learning": plotting.road_maps(
                self.roads,
                {
                    "before: uniform choices": self._load_and_flow(loads["uniform"]),
                    "learned": self._load_and_flow(loads["learned"]),
                },
                label=f"{'mean' if self.closed else 'peak'} vehicles on a link / at capacity",
                highlight=self.destination,
            )
        }
        if self.closed:
            figures["Trips completed"] = plotting.density_over_time(
                _blocks(minutes),
                {name: _blocks(self._completed(mu)) for name, mu in density.items()},
                title=f"Trips completed, {self.title}",
                ylabel="trips per minute",
                xlabel="minutes",
            )
        else:
            figures["Vehicles on the road"] = plotting.density_over_time(
                minutes,
                {name: load.sum(axis=1) for name, load in loads.items()},
                title=f"Vehicles on the road, {self.title}",
                ylabel="vehicles",
                xlabel="minutes",
            )
        relative = loads["learned"] / self.roads.full
        fullest = self._load_and_flow(loads["learned"])[0]
        busiest = np.argsort(-fullest, kind="stable")[:5].tolist()
        figures["Busiest links"] = plotting.density_over_time(
            minutes,
            {f"{self.roads.tail[e]} to {self.roads.head[e]}": relative[:, e] for e in busiest},
            title="The fullest links, learned",
            ylabel="vehicles / at capacity",
            xlabel="minutes",
        )
        unusual, entering = self.detours(shown["learned"], seed)
        figures["Away from the shortest path"] = plotting.road_map(
            self.roads,
            unusual,
            entering,
            title="Where the learned routes leave the shortest path",
            label="share of the choices of a link that the shortest path does not make",
            highlight=self.destination,
            limits=(0.0, 1.0),
        )
        return figures

    def _completed(self, density: Floats) -> Floats:
        """Return the trips completed in a minute, `(T,)`; restart states hold those of a step."""
        done = density[:, self._states.origins].sum(axis=1)
        return np.asarray(done * self.n_vehicles / self.step)

    def _load_and_flow(self, loads: Floats) -> tuple[Floats, Floats]:
        """Sum up loads `(T, L)` over time: the mean of the second half, or the peak."""
        load = loads[len(loads) // 2 :].mean(axis=0) if self.closed else loads.max(axis=0)
        return load / self.roads.full, self.roads.flow(load)

    def detours(self, policy: Any, seed: int = 0) -> tuple[Floats, Floats]:
        """Simulate as `figures` does and compare choices with the shortest path.

        Parameters
        ----------
        policy
            What `Simulator.rollout` plays.
        seed
            Of the simulation.

        Returns
        -------
        share
            `(L,)` part of the choices of each link that the shortest path would not make there.
        flow
            `(L,)` mean flow per `flow_unit`.
        """
        states, roads = self._states, self.roads
        simulator = Simulator(self.model, self.training_agents, 1, seed, threads=1)
        taken = np.zeros(states.choice.shape)
        load = np.zeros(roads.n_links)
        for _ in range(self._shown):
            rollout = simulator.rollout(policy, 1, record=("counts", "actions"))
            assert rollout.counts is not None
            assert rollout.actions is not None
            taken += rollout.actions[0, 0]
            load += self._on_links(rollout.counts[1, 0])
        usual = taken.sum(axis=1, keepdims=True) * self.shortest_path().probs
        chosen = states.choice >= 0
        links = states.choice[chosen]
        total = np.bincount(links, taken[chosen], roads.n_links)
        excess = np.bincount(links, np.maximum(0.0, taken - usual)[chosen], roads.n_links)
        share = np.divide(excess, total, out=np.zeros_like(total), where=total > 0.0)
        return share, roads.flow(load * self.n_vehicles / (self._shown * self.training_agents))


class _Moves(NamedTuple):
    """Where an agent can go: from `source` to `target` by `action`, with this share of those."""

    source: Integers
    target: Integers
    action: Integers
    share: Floats
    reward: Floats

    @property
    def pairs(self) -> Integers:
        """`(M, 2)` edges of the graph."""
        return np.stack([self.source, self.target], axis=1)


class _States:
    """Numbers of the states: links with their destinations, then queues or restarts, then the sink.

    Attributes
    ----------
    n, n_actions
        How many states and actions.
    link
        `(S,)` link, or -1.
    destination
        `(S,)` index of the destination.
    node
        `(S,)` index of the node where the next link begins.
    first
        `(L + 1,)` first state of each link, and the end of the last.
    origins
        `(P,)` queue or restart state of each pair.
    sink
        The sink, or -1.
    choice
        `(S, A)` link that an action takes, or -1.
    mask
        `(S, A)` allowed actions.
    """

    def __init__(self, roads: RoadNetwork, *, sink: bool) -> None:
        self._roads = roads
        usable = roads.usable.T  # (L, D)
        n_roads, n_pairs = int(usable.sum()), len(roads.trips)
        self.first = np.concatenate([[0], np.cumsum(usable.sum(axis=1))])
        neighbours = int((usable.sum(axis=1, dtype=np.int64) ** 2).sum())
        if neighbours > _MAX_NEIGHBOURS:
            raise ValueError(
                f"network: {roads.name} with all destinations would have {n_roads:,} states and "
                f"more than {neighbours:,} pairs of neighbours; choose one destination"
            )
        self.n = n_roads + n_pairs + sink
        self.sink = self.n - 1 if sink else -1
        self.origins = np.arange(n_roads, n_roads + n_pairs)
        self._number = np.full(usable.shape, -1)
        self._number[usable] = np.arange(n_roads)
        link, destination = np.nonzero(usable)
        nothing = np.full(n_pairs + sink, -1)
        self.link = np.concatenate([link, nothing])
        ends = np.searchsorted(roads.destinations, roads.destination)
        last = np.zeros(int(sink), dtype=np.int64)
        self.destination = np.concatenate([destination, ends, last])
        self.node = np.concatenate(
            [
                np.searchsorted(roads.nodes, roads.head)[link],
                np.searchsorted(roads.nodes, roads.origin),
                last + np.searchsorted(roads.nodes, roads.destinations[0]),
            ]
        )
        goal = np.searchsorted(roads.nodes, roads.destinations)[self.destination]
        self._arrives = (self.node == goal) & (self.link >= 0)

        tail = np.searchsorted(roads.nodes, roads.tail)
        degree = np.bincount(tail, minlength=len(roads.nodes))
        self.n_actions = int(degree.max())
        leaving = np.full((len(roads.nodes), self.n_actions), -1)
        order = np.argsort(tail, kind="stable")
        rank = np.arange(len(tail)) - np.repeat(np.cumsum(degree) - degree, degree)
        leaving[tail[order], rank] = order
        choice = leaving[self.node]
        open_ = (choice >= 0) & (self.node != goal)[:, None]
        open_ &= self._number[choice, self.destination[:, None]] >= 0
        self.choice = np.where(open_, choice, -1)
        self.mask = open_.copy()
        self.mask[~open_.any(axis=1), 0] = True

    def same_link(self) -> Integers:
        """Return the pairs of states on one link, `(M, 2)`."""
        pairs = [
            np.stack(np.triu_indices(end - start, 1), axis=1) + start
            for start, end in pairwise(self.first.tolist())
        ]
        return np.concatenate(pairs)

    def moves(self, reward_of_arrival: float) -> _Moves:
        """Return all moves between different states, and the stay in the sink."""
        source, action = np.nonzero(self.choice >= 0)
        target = self._number[self.choice[source, action], self.destination[source]]
        parts = [(source, target, action, np.ones(len(source)), np.zeros(len(source)))]
        trips = self._roads.trips
        origin = self.node[self.origins]
        for s in np.flatnonzero(self._arrives).tolist():
            to, share = np.array([self.sink]), np.ones(1)
            if self.sink < 0:
                own = origin == self.node[s]
                weight = np.where(own, trips, 0.0) if own.any() else trips
                to = self.origins[weight > 0.0]
                share = weight[weight > 0.0] / weight.sum()
            same = np.full(len(to), s)
            parts.append((same, to, 0 * to, share, np.full(len(to), reward_of_arrival)))
        if self.sink >= 0:
            one = np.array([self.sink])
            parts.append((one, one, 0 * one, np.ones(1), np.zeros(1)))
        return _Moves(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def remaining(self, remaining: Floats) -> Floats:
        """Return what is left after each state, `(S,)`, of `remaining` `(D, V)`."""
        return np.asarray(remaining[self.destination, self.node])


def _played(simulator: Simulator, policy: Any, n_steps: int) -> Iterator[NDArray[Any]]:
    """Play `n_steps` steps and yield the counts after each, `(T, B, S)`, in parts."""
    chunk = max(1, min(_CHUNK, 4_000_000 // simulator.counts.size))
    for start in range(0, n_steps, chunk):
        rollout = simulator.rollout(policy, min(chunk, n_steps - start), record=["counts"])
        assert rollout.counts is not None
        yield rollout.counts[1:]


def _blocks(values: Floats) -> Floats:
    """Average over blocks of time, about 50 in all."""
    length = max(1, len(values) // 50)
    return np.asarray(values[: len(values) // length * length].reshape(-1, length).mean(axis=1))

"""Static assignments: conservation, equal times, least total time, and published values."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ltde.envs import RoadNetwork
from ltde.envs.assignment import assign, shortest_splits
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra


@st.composite
def networks(draw):
    """Draw a ring of 4 to 7 nodes with random further links, and some trips."""
    n = draw(st.integers(4, 7))
    extra = draw(
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=8, unique=True)
    )
    ring = [(v, (v + 1) % n) for v in range(n)]
    links = [*ring, *(link for link in extra if link[0] != link[1] and link not in ring)]
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    pairs = list(itertools.permutations(range(n), 2))
    kept = rng.choice(len(pairs), size=draw(st.integers(1, 6)), replace=False)
    origin, destination = np.array(pairs)[kept].T
    power = rng.choice([1.0, 2.0, 4.0], len(links))
    free = rng.uniform(1, 20, len(links))
    return RoadNetwork(
        name="random",
        tail=np.array(links)[:, 0],
        head=np.array(links)[:, 1],
        free_flow=free,
        coefficient=0.15 * free / rng.uniform(50, 500, len(links)) ** power,
        power=power,
        origin=origin,
        destination=destination,
        trips=rng.uniform(10, 900, len(kept)),
    )


def surplus(network, flows):
    """Flow out of each node less flow into it, by destination `(D, V)`."""
    out = np.zeros((len(network.destinations), len(network.nodes)))
    rows = np.arange(len(out))[:, None]
    np.add.at(out, (rows, np.searchsorted(network.nodes, network.tail)), flows)
    np.subtract.at(out, (rows, np.searchsorted(network.nodes, network.head)), flows)
    return out


def demand(network):
    """Trips that begin at each node, less those that end, by destination `(D, V)`."""
    wanted = np.zeros((len(network.destinations), len(network.nodes)))
    row = np.searchsorted(network.destinations, network.destination)
    np.add.at(wanted, (row, np.searchsorted(network.nodes, network.origin)), network.trips)
    np.subtract.at(
        wanted, (row, np.searchsorted(network.nodes, network.destination)), network.trips
    )
    return wanted


def relative_gap(network, cost, flow):
    """Part of the cost that trips would save on cheapest paths: by scipy."""
    places = (np.searchsorted(network.nodes, ends) for ends in (network.tail, network.head))
    size = len(network.nodes)
    dense = np.full((size, size), np.inf)
    np.minimum.at(dense, tuple(places), cost)
    least = dijkstra(csr_array(np.where(np.isfinite(dense), dense, 0.0)))
    ends = (np.searchsorted(network.nodes, x) for x in (network.origin, network.destination))
    return 1.0 - (network.trips * least[tuple(ends)]).sum() / (cost @ flow)


@settings(max_examples=40)
@given(networks())
def test_flows_are_conserved_and_no_trip_can_save(network):
    equilibrium, optimum = assign(network, "ue", 1e-9), assign(network, "so", 1e-9)
    for found, cost in ((equilibrium, network.latency), (optimum, network.marginal_latency)):
        np.testing.assert_allclose(
            surplus(network, found.link_flows), demand(network), atol=1e-9 * network.trips.sum()
        )
        assert (found.link_flows >= 0.0).all()
        assert found.gap <= 1e-9
        assert relative_gap(network, cost(found.flow), found.flow) < 1.1e-9
        assert found.total_minutes == pytest.approx(found.flow @ network.latency(found.flow))
    assert optimum.total_minutes <= equilibrium.total_minutes * (1.0 + 1e-8)
    # the check has teeth: the one is not the other where roads are congested
    if equilibrium.total_minutes > 1.001 * optimum.total_minutes:
        assert relative_gap(network, network.latency(optimum.flow), optimum.flow) > 1e-5


@settings(max_examples=40)
@given(networks())
def test_splits_give_the_flows_back(network):
    for found in (assign(network, "ue", 1e-9), assign(network, "so", 1e-9)):
        tail = np.searchsorted(network.nodes, network.tail)
        head = np.searchsorted(network.nodes, network.head)
        for d, goal in enumerate(network.destinations):
            size = len(network.nodes)
            move = np.zeros((size, size))
            np.add.at(move, (tail, head), found.splits[d])
            sums = np.delete(move.sum(axis=1), np.searchsorted(network.nodes, goal))
            np.testing.assert_allclose(sums, 1.0, atol=1e-12)
            begin = np.maximum(0.0, demand(network)[d])
            through = np.linalg.solve(np.eye(size) - move.T, begin)
            np.testing.assert_allclose(
                through[tail] * found.splits[d],
                found.link_flows[d],
                atol=1e-6 * network.trips.sum(),
            )


def test_braess():
    network = RoadNetwork.braess()
    equilibrium, optimum = assign(network, "ue", 1e-13), assign(network, "so", 1e-13)
    assert equilibrium.mean_trip == pytest.approx(92.0, abs=1e-9)
    assert optimum.mean_trip == pytest.approx(83.0, abs=1e-9)
    # links 1 -> 3, 1 -> 4, 3 -> 2, 4 -> 2 and the short cut 3 -> 4, which harms all
    np.testing.assert_allclose(equilibrium.flow, [4, 2, 2, 4, 2], atol=1e-9)
    np.testing.assert_allclose(optimum.flow, [3, 3, 3, 3, 0], atol=1e-9)
    np.testing.assert_allclose(equilibrium.splits, [[2 / 3, 1 / 3, 0.5, 1, 0.5]], atol=1e-9)
    np.testing.assert_allclose(optimum.splits, [[0.5, 0.5, 1, 1, 0]], atol=1e-9)


def test_sioux_falls():
    # computed by another path-based solver, gap < 1e-12
    network = RoadNetwork.sioux_falls()
    equilibrium = assign(network, "ue", 1e-12)
    optimum = assign(network, "so", 1e-12)
    assert equilibrium.gap <= 1e-12
    assert equilibrium.total_minutes == pytest.approx(7_450_678.58, abs=0.01)
    assert optimum.total_minutes == pytest.approx(7_165_372.57, abs=0.01)
    assert optimum.mean_trip == pytest.approx(19.8707, abs=1e-4)
    np.testing.assert_allclose(surplus(network, optimum.link_flows), demand(network), atol=1e-6)


def test_an_optimum_is_an_equilibrium_of_marginal_times():
    network = RoadNetwork.sioux_falls()
    taxed = dataclasses.replace(network, coefficient=network.coefficient * (network.power + 1.0))
    np.testing.assert_allclose(
        assign(network, "so", 1e-11).flow, assign(taxed, "ue", 1e-11).flow, rtol=1e-4
    )


def test_two_roads_by_hand():
    network = RoadNetwork(
        name="two roads",
        tail=[0, 0],
        head=[1, 1],
        free_flow=[3.0, 8.0],
        coefficient=[0.01, 1e-6],
        power=[1.0, 3.0],
        origin=[0],
        destination=[1],
        trips=[1000.0],
    )

    def total(x):
        flow = np.array([x, 1000.0 - x])
        return flow @ network.latency(flow)

    best = minimize_scalar(total, bounds=(0.0, 1000.0), method="bounded", options={"xatol": 1e-9})
    found = assign(network, "so")
    assert found.total_minutes == pytest.approx(best.fun, rel=1e-10)
    first, second = network.latency(assign(network, "ue").flow)
    assert first == pytest.approx(second, rel=1e-9)


def test_roads_without_congestion_or_time():
    network = RoadNetwork(
        name="ring of links that take no time",
        tail=[0, 1, 2, 1],
        head=[1, 0, 1, 2],
        free_flow=[0.0, 0.0, 0.0, 0.0],
        coefficient=[0.0, 0.0, 0.0, 0.0],
        power=[0.0, 1.0, 4.0, 1.0],
        origin=[0],
        destination=[2],
        trips=[7.0],
    )
    found = assign(network, "ue")
    assert found.flow.tolist() == [7.0, 0.0, 0.0, 7.0]
    assert found.gap == 0.0
    assert found.mean_trip == 0.0


def test_ties_are_split_evenly():
    network = RoadNetwork.braess()
    cost = np.array([1.0, 1.0, 2.0, 2.0, 3.0])
    np.testing.assert_array_equal(shortest_splits(network, cost), [[0.5, 0.5, 1, 1, 0]])
    cost[0] = 1.1
    np.testing.assert_array_equal(shortest_splits(network, cost), [[0, 1, 1, 1, 0]])


def test_zones_are_not_passed_through():
    braess = RoadNetwork.braess()
    # relabel so that the node 3 is a zone: only the path by 4 is left
    relabel = np.array([0, 10, 11, 3, 12])
    network = dataclasses.replace(
        braess,
        tail=relabel[braess.tail],
        head=relabel[braess.head],
        origin=relabel[braess.origin],
        destination=relabel[braess.destination],
        coordinates=None,
        first_through=10,
    )
    assert assign(network, "ue").flow.tolist() == [0.0, 6.0, 0.0, 6.0, 0.0]


def test_wrong_arguments():
    network = RoadNetwork.braess()
    with pytest.raises(ValueError, match='objective: expected "so" or "ue", got \'best\''):
        assign(network, "best")
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="gap: expected a finite number > 0"):
            assign(network, "ue", wrong)


def test_a_gap_that_is_not_reached_is_reported(monkeypatch):
    monkeypatch.setattr("ltde.envs.assignment._MAX_ROUNDS", 3)
    with pytest.warns(RuntimeWarning, match=r"gap: \S+ was reached, 1e-12 asked for"):
        found = assign(RoadNetwork.sioux_falls(), "so", 1e-12)
    assert 1e-12 < found.gap < 0.5

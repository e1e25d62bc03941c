"""Road networks: minutes, flows, paths, and files in the TNTP format."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ltde.envs import RoadNetwork
from ltde.envs import tntp as tntp_files
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

NET = """<NUMBER OF ZONES> 3
<NUMBER OF NODES> 4
<FIRST THRU NODE> 1
<NUMBER OF LINKS> 5
<END OF METADATA>

~ \tinit_node\tterm_node\tcapacity\tlength\tfree_flow_time\tb\tpower\tspeed\ttoll\tlink_type\t;
\t1\t2\t100\t6\t6\t0.15\t4\t0\t0\t1\t;
\t2\t3\t50\t1\t5\t0.5\t1\t0\t0\t1\t;   ~ the bridge
\t1\t4\t1000\t1\t4\t0\t0\t0\t0\t1\t;
\t4\t3\t2000\t1\t8\t0.15\t4\t0\t0\t1\t;

\t3\t1\t10.5\t1\t2.5\t1\t2\t0\t0\t1\t;
"""
TRIPS = """<NUMBER OF ZONES> 3
<TOTAL OD FLOW> 350.0
<END OF METADATA>

Origin \t1
    1 :      0.0;     2 :    100.0;     3 :    200.0;
Origin 2
    2 :      9.0;  3 : 41.0;
~ a comment
origin 3
    1 :      0.0;
"""
NODES = """Node\tX\tY\t;
1\t-96.77\t43.61\t;
2 5 6 ;
3\t7\t8
4\t1e3\t-2.5\t;
"""


def write(folder, net=NET, trips=TRIPS, nodes=NODES):
    for kind, text in (("net", net), ("trips", trips), ("node", nodes)):
        if text is not None:
            (folder / f"Town_{kind}.tntp").write_text(text)
    return folder / "Town_net.tntp"


def triangle(**changes):
    fields = {
        "name": "triangle",
        "tail": [0, 1, 0],
        "head": [1, 2, 2],
        "free_flow": [1.0, 2.0, 5.0],
        "coefficient": [0.5, 0.0, 0.1],
        "power": [1.0, 4.0, 2.0],
        "origin": [0],
        "destination": [2],
        "trips": [3.0],
    }
    return RoadNetwork(**fields | changes)


# ---- minutes ------------------------------------------------------------------------------------


def test_the_packaged_networks():
    falls, braess = RoadNetwork.sioux_falls(), RoadNetwork.braess()
    assert (len(falls.nodes), falls.n_links, len(falls.trips)) == (24, 76, 528)
    assert falls.trips.sum() == 360_600
    assert falls.flow_unit == 60.0
    assert len(falls.destinations) == 24
    # 1 -> 3 and 4 -> 2: 10 x; 1 -> 4 and 3 -> 2: 50 + x; 3 -> 4: 10 + x
    ends = zip(braess.tail.tolist(), braess.head.tolist(), strict=True)
    minutes = dict(zip(ends, braess.latency([4.0] * 5), strict=True))
    assert minutes == {(1, 3): 40, (4, 2): 40, (1, 4): 54, (3, 2): 54, (3, 4): 14}
    assert braess.trips.tolist() == [6.0]
    assert braess.flow_unit == 1.0


def test_marginal_latency_is_the_derivative_of_the_total_time():
    network = RoadNetwork.sioux_falls()
    flow = np.random.default_rng(1).uniform(100, 20_000, network.n_links)
    step = 1e-3
    total = [x * network.latency(x) for x in (flow - step, flow + step)]
    np.testing.assert_allclose(
        network.marginal_latency(flow), (total[1] - total[0]) / (2 * step), rtol=1e-6
    )
    assert (network.marginal_latency(flow) > network.latency(flow)).all()


@given(
    free=st.one_of(st.just(0.0), st.floats(1e-12, 100.0)),
    coefficient=st.one_of(st.just(0.0), st.floats(1e-20, 100.0)),
    power=st.sampled_from([0.0, 0.5, 1.0, 4.0, 10.0]),
    vehicles=st.floats(1e-3, 1e6),
)
def test_vehicles_flow_and_minutes_obey_littles_law(free, coefficient, power, vehicles):
    network = triangle(
        free_flow=[free, 1.0, 1.0], coefficient=[coefficient, 0.0, 0.0], power=[power, 1.0, 1.0]
    )
    held = np.array([vehicles, 0.0, 2.0])
    minutes, flow = network.minutes(held), network.flow(held)
    assert minutes[1:].tolist() == [1.0, 1.0]
    assert flow[1:].tolist() == [0.0, 120.0]
    if minutes[0] > 0.0:
        assert flow[0] * minutes[0] == pytest.approx(60.0 * vehicles, rel=1e-9)
        assert network.latency(flow)[0] == pytest.approx(minutes[0], rel=1e-9)
    else:  # a link without length holds what it wants
        assert free == 0.0
        assert coefficient == 0.0
        assert flow[0] == math.inf


def test_a_full_link_takes_15_percent_longer():
    network = RoadNetwork.sioux_falls()
    np.testing.assert_allclose(network.minutes(network.full), 1.15 * network.free_flow)
    braess = RoadNetwork.braess()
    # links that take no time when empty: full at the mean of 0, 50, 50, 0, 10 minutes
    np.testing.assert_allclose(braess.minutes(braess.full), [22, 57.5, 57.5, 22, 11.5])
    assert triangle().full[1] == math.inf  # no congestion


def test_a_power_of_zero_is_a_constant():
    network = triangle(power=[0.0, 4.0, 2.0])
    assert network.free_flow.tolist() == [1.5, 2.0, 5.0]
    assert network.coefficient.tolist() == [0.0, 0.0, 0.1]
    assert network.latency([9.0, 9.0, 0.0]).tolist() == [1.5, 2.0, 5.0]
    assert network.marginal_latency([9.0, 9.0, 0.0]).tolist() == [1.5, 2.0, 5.0]


def test_arrays_with_leading_axes():
    network = RoadNetwork.sioux_falls()
    vehicles = np.random.default_rng(2).uniform(0, 3000, (4, 5, network.n_links))
    minutes = network.minutes(vehicles)
    assert minutes.shape == vehicles.shape
    np.testing.assert_array_equal(minutes[2, 3], network.minutes(vehicles[2, 3]))
    np.testing.assert_allclose(network.latency(network.flow(vehicles)), minutes, rtol=1e-12)


# ---- paths --------------------------------------------------------------------------------------


def test_remaining_cost_is_that_of_scipy():
    network = RoadNetwork.sioux_falls()
    cost = np.random.default_rng(3).uniform(1, 9, network.n_links)
    places = network.tail - 1, network.head - 1
    expected = dijkstra(csr_array((cost, places), shape=(24, 24)))
    remaining, onward = network.cheapest(cost)
    np.testing.assert_allclose(remaining, expected.T)
    # the links that it names lead along cheapest paths
    d, v = np.nonzero(onward >= 0)
    assert len(d) == 24 * 23
    e = onward[d, v]
    assert (network.tail[e] == network.nodes[v]).all()
    np.testing.assert_allclose(remaining[d, v], cost[e] + network.beyond(remaining)[d, e])


def test_no_trip_passes_through_a_zone():
    # 0 -> 1 -> 2 is shorter than 0 -> 3 -> 2, but 1 is a zone
    network = {
        "tail": [0, 1, 0, 3],
        "head": [1, 2, 3, 2],
        "free_flow": [1.0, 1.0, 5.0, 5.0],
        "coefficient": [0.0] * 4,
        "power": [1.0] * 4,
        "origin": [0, 0],
        "destination": [2, 1],
        "trips": [3.0, 1.0],
    }
    closed = triangle(**network, first_through=2)
    assert closed.remaining(closed.free_flow)[:, 0].tolist() == [1.0, 10.0]
    assert closed.usable[1].tolist() == [False, True, True, True]
    assert closed.usable[0].tolist() == [True, False, False, False]
    opened = triangle(**network)
    assert opened.remaining(opened.free_flow)[:, 0].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"destination\[0\]: no path leads there.*got 2"):
        triangle(**network, first_through=4)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tail": [0, 1]}, r"head: expected 2 entries as in tail, got 3"),
        ({"free_flow": [1.0, 2.0]}, r"free_flow: expected 3 entries"),
        ({"free_flow": [1.0, -2.0, 3.0]}, r"free_flow\[1\]: expected a finite number >= 0.*-2"),
        ({"coefficient": [1.0, 2.0, np.nan]}, r"coefficient\[2\]: .* got nan"),
        ({"power": [1.0, 40.0, 1.0]}, r"power\[1\]: at most 32, got 40"),
        ({"head": [1, 1, 2]}, r"head\[1\]: a link must not end where it begins, got 1"),
        ({"tail": [-1, 1, 0]}, r"tail\[0\]: expected a label >= 0, got -1"),
        ({"trips": [0.0]}, r"trips\[0\]: expected a number > 0, got 0"),
        ({"origin": [7]}, r"origin\[0\]: no link touches this node, got 7"),
        ({"origin": [2]}, r"destination\[0\]: a trip must not end where it begins, got 2"),
        ({"trips": [1e100]}, r"trips\[0\]: at most 1e\+50, got 1e\+100"),
        (
            {"trips": [1e12], "power": [1.0, 4.0, 32.0]},
            r"trips: 1e\+12 in all are too many for link 2, whose minutes would overflow",
        ),
        ({"origin": [2], "destination": [0]}, r"destination\[0\]: no path leads there from 2"),
        (
            {"origin": [0, 0], "destination": [2, 2], "trips": [1.0, 2.0]},
            r"destination\[1\]: this pair occurs twice",
        ),
        ({"flow_unit": 0.0}, r"flow_unit: expected a finite number > 0, got 0"),
        ({"coordinates": {0: (0, 0), 2: (1, 1)}}, r"coordinates: node 1 has none"),
        ({"free_flow": [[1.0], [2.0], [5.0]]}, r"free_flow: expected one axis"),
        ({"origin": [], "destination": [], "trips": []}, r"expected"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        triangle(**changes)


def test_labels_are_integers():
    with pytest.raises(TypeError, match="tail: expected integers, got dtype float64"):
        triangle(tail=[0.0, 1.0, 0.0])


def test_a_network_does_not_change():
    network = triangle()
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.name = "other"
    with pytest.raises(ValueError, match="read-only"):
        network.trips[0] = 9.0


@pytest.mark.parametrize("method", ["latency", "marginal_latency", "minutes", "flow", "remaining"])
def test_numbers_of_links_are_checked(method):
    network = triangle()
    with pytest.raises(ValueError, match=r"flow\[1\]: expected a number >= 0, got -1"):
        getattr(network, method)([1.0, -1.0, 0.0])
    with pytest.raises(ValueError, match=r"expected shape \(..., 3\), got \(2,\)"):
        getattr(network, method)([1.0, 2.0])


def test_names():
    assert RoadNetwork.named("braess").name == "Braess"
    assert RoadNetwork.named("sioux-falls").name == "Sioux Falls"
    with pytest.raises(ValueError, match=r"network: expected .* got 'paris'"):
        RoadNetwork.named("paris")
    with pytest.raises(FileNotFoundError):
        RoadNetwork.named("nowhere_net.tntp")


# ---- TNTP files ---------------------------------------------------------------------------------


def test_a_town_in_tntp_files(tmp_path):
    network = RoadNetwork.named(str(write(tmp_path)))
    assert network.name == "Town"
    assert network.tail.tolist() == [1, 2, 1, 4, 3]
    assert network.head.tolist() == [2, 3, 4, 3, 1]
    flow = np.array([80.0, 30.0, 7.0, 500.0, 21.0])
    capacity = np.array([100, 50, 1000, 2000, 10.5])
    b, power = np.array([0.15, 0.5, 0, 0.15, 1]), np.array([4, 1, 0, 4, 2])
    free = np.array([6, 5, 4, 8, 2.5])
    np.testing.assert_allclose(network.latency(flow), free * (1 + b * (flow / capacity) ** power))
    pairs = zip(network.origin, network.destination, network.trips, strict=True)
    assert list(pairs) == [(1, 2, 100), (1, 3, 200), (2, 3, 41)]  # none within zones, no zeros
    assert network.coordinates[1] == (-96.77, 43.61)
    assert network.coordinates[4] == (1000.0, -2.5)
    assert network.first_through == 1


def test_units_of_tntp_files(tmp_path):
    net = write(tmp_path, nodes=None)
    trips = tmp_path / "Town_trips.tntp"
    network = RoadNetwork.from_tntp(net, trips)
    hours = RoadNetwork.from_tntp(net, trips, time_factor=60.0)
    np.testing.assert_allclose(hours.latency([50.0] * 5), 60.0 * network.latency([50.0] * 5))
    assert network.coordinates is None
    # capacities of a day: 24 times the vehicles fill a link in an hour as they do in a day
    day = RoadNetwork.from_tntp(net, trips, flow_unit=1440.0)
    np.testing.assert_allclose(day.minutes([3.0] * 5), network.minutes([72.0] * 5))
    assert (day.minutes([3.0] * 5) > network.minutes([3.0] * 5)).any()
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="time_factor: expected a finite number > 0"):
            RoadNetwork.from_tntp(net, trips, time_factor=wrong)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t50\t1\t5", "\tfast\t1\t5", r"Town_net.tntp, line 9: expected a number, got 'fast'"),
        ("\t2\t3\t50\t1\t5\t0.5\t1\t0\t0\t1\t;", "2 3 50;", r"line 9: .* 7 columns, got 3"),
        ("\t2\t3\t50", "\t2\tx\t50", r"line 9: expected the label of a node, got 'x'"),
        ("\t2\t3\t50", "\t2\t5\t50", r"line 9: expected a label of at least 1 and at most 4.*5"),
        ("\t2\t3\t50", "\t0\t3\t50", r"line 9: expected a label of at least 1"),
        ("\t2\t3\t50", "\t2\t3\t0", r"line 9: expected a capacity > 0, got 0"),
        ("\t2\t3\t50", "\t2\t3\tnan", r"line 9: expected a finite number >= 0: nan"),
        ("\t2\t3\t50", "\t2\t2\t50", r"Town_net.tntp, line 9: a link must not end .* got 2 twice"),
        ("0.5\t1", "0.5\t40", r"Town_net.tntp, line 9: expected a power of at most 32, got 40"),
        ("50\t1\t5\t0.5\t1", "1e-300\t1\t5\t0.5\t1", r"line 9: capacity 1e-300 is too small"),
        ("50\t1\t5\t0.5\t1", "1e12\t1\t5\t0.5\t32", r"line 9: capacity 1e\+12 is too large for"),
        ("0.5\t1", "-0.5\t1", r"line 9: expected a finite number >= 0: -0.5"),
        ("LINKS> 5", "LINKS> 6", r"Town_net.tntp: expected 6 links, got 5"),
        ("LINKS> 5", "LINKS> five", r"line 4: expected the label of a node, got 'five'"),
        ("<NUMBER OF NODES>", "<NUMBER OF NODES", r'line 2: expected ">"'),
    ],
)
def test_malformed_net_files(tmp_path, old, new, message):
    assert old in NET
    with pytest.raises(ValueError, match=message):
        RoadNetwork.named(str(write(tmp_path, net=NET.replace(old, new))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Origin \t1\n", "", r'Town_trips.tntp, line 5: expected "Origin" first'),
        ("Origin 2", "Origin 2 3", r'line 7: expected "Origin" and one zone'),
        ("Origin 2", "Origin 9", r"line 7: expected a label of at least 1 and at most 3, got 9"),
        ("41.0;", "41.0", r'line 8: expected ";" after every entry'),
        ("3 : 41.0", "3 41.0", r'line 8: expected "destination : trips", got \'3 41.0\''),
        ("41.0", "many", r"line 8: expected a number, got 'many'"),
        ("41.0", "-41.0", r"line 8: expected a finite number >= 0"),
        ("3 : 41.0;", "3 : 41; 3 : 9;", r"line 8: trips from 2 to 3 were given before, in line 8"),
        (
            "origin 3\n    1 :      0.0;",
            "origin 1\n 2 : 1;",
            r"Town_trips.tntp, line 11: trips from 1 to 2 were given before, in line 6",
        ),
        ("3 : 41.0;", "", r"Town_trips.tntp: expected 350 trips in all, got 309"),
    ],
)
def test_malformed_trips_files(tmp_path, old, new, message):
    assert old in TRIPS
    with pytest.raises(ValueError, match=message):
        RoadNetwork.named(str(write(tmp_path, trips=TRIPS.replace(old, new))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2 5 6", "2 5", r"Town_node.tntp, line 3: expected a label and two coordinates"),
        ("2 5 6", "2 5 east", r"line 3: expected a number, got 'east'"),
        ("2 5 6 ;\n", "", r"Town_node.tntp: holds no coordinates of node 2 of Town_net.tntp"),
        ("2 5 6 ;\n", "2 5 6;\n2 5 7;\n", r"Town_node.tntp, line 4: node 2 was given before"),
    ],
)
def test_malformed_node_files(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        RoadNetwork.named(str(write(tmp_path, nodes=NODES.replace(old, new))))


def test_metadata_may_be_absent_and_windows_may_have_written_the_files(tmp_path):
    net = NET.split("<END OF METADATA>")[1].replace("\n", "\r\n")
    path = write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + net.encode())
    links = tntp_files.read_links(path)
    assert links.tail.tolist() == [1, 2, 1, 4, 3]
    assert links.first_through == 0


@pytest.mark.parametrize("header", ["node_id X Y", "node1 X Y", "~ none", '"Node" X Y ;'])
def test_headers_of_node_files(tmp_path, header):
    path = write(tmp_path, nodes=NODES.replace("Node\tX\tY\t;", header))
    assert len(RoadNetwork.named(str(path)).coordinates) == 4


def test_only_the_first_line_of_a_node_file_holds_names(tmp_path):
    path = write(tmp_path, nodes="node_id X Y\n" + NODES)
    with pytest.raises(ValueError, match="line 2: expected a number, got 'X'"):
        RoadNetwork.named(str(path))


def test_files_that_do_not_fit_are_named(tmp_path):
    nothing = "Origin 1\n 1 : 30; 2 : 0;\n"
    with pytest.raises(
        ValueError, match=r"Town_trips.tntp: holds no trips between different zones"
    ):
        RoadNetwork.named(str(write(tmp_path, trips=nothing)))
    with pytest.raises(ValueError, match=r"_trips.tntp: zone 9 has trips, but no link of Town_net"):
        RoadNetwork.named(str(write(tmp_path, trips="Origin 1\n 2 : 30; 9 : 4;\n")))
    # indices of arrays say nothing here: within zones and zeros are left out
    cut = r"Town_net.tntp, .*Town_trips.tntp: destination: no path leads there from 3, got 1"
    with pytest.raises(ValueError, match=cut):
        RoadNetwork.named(
            str(
                write(
                    tmp_path,
                    net=NET.replace("\t3\t1\t10.5", "\t1\t3\t10.5"),
                    trips="Origin 1\n 1 : 5; 2 : 30;\nOrigin 3\n 1 : 4;\n",
                )
            )
        )


def test_a_constant_link_may_have_any_capacity(tmp_path):
    # b = 0: the capacity does not matter
    net = NET.replace("1000\t1\t4\t0\t0", "1e-300\t1\t4\t0\t4")
    network = RoadNetwork.named(str(write(tmp_path, net=net)))
    assert network.coefficient[2] == 0.0


def test_a_factor_that_overflows_is_refused(tmp_path):
    net = write(tmp_path)
    with pytest.raises(ValueError, match=r"Town_net.tntp, .*: free_flow: expected a finite number"):
        RoadNetwork.from_tntp(net, tmp_path / "Town_trips.tntp", time_factor=1e308)

"""`ltde.Graph`: constructors, errors, and agreement with networkx."""

import copy
import math
import pickle
import re
import sys

import hypothesis.strategies as st
import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from ltde.graph import Balls, Graph

EMPTY = np.empty((0, 2), dtype=np.int64)


@st.composite
def edge_lists(draw):
    """Up to 15 states and any edges among them, repeated or not."""
    n = draw(st.integers(1, 15))
    state = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(state, state), max_size=30))


def raises(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def networkx_twin(n, edges):
    G = nx.empty_graph(n)
    G.add_edges_from(edges)
    return G


def rows(graph):
    return [graph.neighbors(s).tolist() for s in range(graph.n_states)]


# ---- constructors


def test_edges_are_undirected_and_merged():
    graph = Graph(4, [[2, 1], [0, 1], [1, 0], [0, 1], [3, 3]])
    assert graph.n_states == 4
    assert graph.n_edges == 2
    assert rows(graph) == [[0, 1], [0, 1, 2], [1, 2], [3]]
    assert graph.indptr.tolist() == [0, 2, 5, 7, 8]
    assert graph.indices.tolist() == [0, 1, 0, 1, 2, 1, 2, 3]
    assert graph.labels is None
    assert repr(graph) == "Graph(n_states=4, n_edges=2)"


@pytest.mark.parametrize("edges", [[], (), EMPTY, np.empty((0, 2)), np.empty(0)])
def test_no_edges(edges):
    assert rows(Graph(3, edges)) == [[0], [1], [2]]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", ">i4", "uint64"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_any_integer_dtype_and_layout(dtype, layout):
    edges = layout(np.array([[0, 1], [1, 2]], dtype=dtype))
    assert Graph(np.int32(3), edges) == Graph.path(3)
    assert Graph(3, np.repeat(edges, 2, axis=0)[::2]) == Graph.path(3)


def test_from_edges_is_the_constructor():
    assert Graph.from_edges(3, [[0, 1], [1, 2]]) == Graph(3, [[0, 1], [1, 2]])


def test_ring():
    assert rows(Graph.ring(1)) == [[0]]
    assert rows(Graph.ring(2)) == [[0, 1], [0, 1]]
    assert rows(Graph.ring(4)) == [[0, 1, 3], [0, 1, 2], [1, 2, 3], [0, 2, 3]]


def test_path():
    assert rows(Graph.path(1)) == [[0]]
    assert rows(Graph.path(4)) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]


def test_complete():
    assert rows(Graph.complete(1)) == [[0]]
    assert rows(Graph.complete(3)) == [[0, 1, 2]] * 3
    assert Graph.complete(7).n_edges == 21


def test_grid():
    assert rows(Graph.grid(1, 1)) == [[0]]
    assert rows(Graph.grid(2, 3)) == [
        [0, 1, 3],
        [0, 1, 2, 4],
        [1, 2, 5],
        [0, 3, 4],
        [1, 3, 4, 5],
        [2, 4, 5],
    ]
    assert Graph.grid(1, 5) == Graph.grid(5, 1) == Graph.path(5)
    assert Graph.grid(3, 4).n_edges == 3 * 3 + 2 * 4


def test_torus():
    torus = Graph.grid(3, 4, torus=True)
    assert torus.n_edges == 2 * 12
    assert torus.neighbors(0).tolist() == [0, 1, 3, 4, 8]
    assert torus.neighbors(11).tolist() == [3, 7, 8, 10, 11]
    assert Graph.grid(1, 5, torus=True) == Graph.grid(5, 1, torus=True) == Graph.ring(5)
    assert Graph.grid(2, 2, torus=True) == Graph.grid(2, 2)


# ---- networkx


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph, nx.MultiGraph, nx.MultiDiGraph])
def test_from_networkx_reads_every_kind_as_undirected(kind):
    G = kind()
    G.add_nodes_from(["c", "a", (1, 2)])
    G.add_edges_from([("a", "c"), ("c", "a"), ("a", "c"), ("a", "a")])
    graph = Graph.from_networkx(G)
    assert graph.labels == ["c", "a", (1, 2)]
    assert rows(graph) == [[0, 1], [0, 1], [2]]


def test_labels_survive_the_round_trip():
    G = nx.relabel_nodes(nx.grid_2d_graph(3, 4), {(0, 0): "corner"})
    G.add_edge("corner", "corner")
    graph = Graph.from_networkx(G)
    back = graph.to_networkx()
    assert type(back) is nx.Graph
    assert list(back) == list(G) == graph.labels
    assert nx.number_of_selfloops(back) == 0
    G.remove_edge("corner", "corner")
    assert nx.utils.graphs_equal(back, G)
    assert Graph.from_networkx(back) == graph


def test_to_networkx_without_labels():
    G = Graph(4, [[2, 1], [3, 3]]).to_networkx()
    assert list(G) == [0, 1, 2, 3]
    assert all(type(node) is int for node in G)
    assert list(G.edges) == [(1, 2)]


def test_labels_cannot_be_changed_from_outside():
    graph = Graph.from_networkx(nx.path_graph(2))
    graph.labels.append("more")
    assert graph.labels == [0, 1]


def test_from_networkx_errors():
    with raises(ValueError, "G: expected at least one node, got an empty graph"):
        Graph.from_networkx(nx.Graph())
    with raises(TypeError, "G: expected a networkx graph, got list"):
        Graph.from_networkx([(0, 1)])


def test_missing_networkx_is_named(monkeypatch):
    graph, G = Graph.path(2), nx.path_graph(2)
    monkeypatch.setitem(sys.modules, "networkx", None)
    message = "networkx is not installed: pip install ltde[networkx]"
    with raises(ImportError, message):
        graph.to_networkx()
    with raises(ImportError, message):
        Graph.from_networkx(G)


# ---- errors


@pytest.mark.parametrize(
    ("n_states", "error", "message"),
    [
        (0, ValueError, "n_states: expected at least 1, got 0"),
        (-3, ValueError, "n_states: expected at least 1, got -3"),
        (10**30, ValueError, f"n_states: expected at most 4294967295, got {10**30}"),
        (True, TypeError, "n_states: expected an integer, got True"),
        (3.0, TypeError, "n_states: expected an integer, got 3.0"),
        ("3", TypeError, "n_states: expected an integer, got '3'"),
        (None, TypeError, "n_states: expected an integer, got None"),
        (np.array(3.0), TypeError, "n_states: expected an integer, got array(3.)"),
    ],
)
def test_bad_n_states(n_states, error, message):
    with raises(error, message):
        Graph(n_states, EMPTY)


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        (
            [[0, 1], [1, 2], [2, 3], [4, 7]],
            IndexError,
            "edges[3, 1]: expected a state in 0..5, got 7",
        ),
        ([[0, 5]], IndexError, "edges[0, 1]: expected a state in 0..5, got 5"),
        ([[0, 1], [-1, 1]], IndexError, "edges[1, 0]: expected a state in 0..5, got -1"),
        (
            np.array([[0, 1], [2**63 + 1, 9]], dtype=np.uint64),
            IndexError,
            f"edges[1, 0]: expected a state in 0..5, got {2**63 + 1}",
        ),
        ([[0.0, 1.0]], TypeError, "edges: expected integers, got dtype float64"),
        (
            [[0.0, 1.0], [math.nan, 1.0]],
            TypeError,
            "edges: expected integers, got dtype float64, with edges[1, 0] = nan",
        ),
        ([[False, True]], TypeError, "edges: expected integers, got dtype bool"),
        ([["0", "1"]], TypeError, "edges: expected integers, got dtype <U1"),
        ([[0, 10**30]], TypeError, "edges: expected integers, got dtype object"),
        (None, TypeError, "edges: expected integers, got dtype object"),
        ([0, 1], ValueError, "edges: expected shape (E, 2), got (2,)"),
        ([[0, 1, 2]], ValueError, "edges: expected shape (E, 2), got (1, 3)"),
        ([[[0, 1]]], ValueError, "edges: expected shape (E, 2), got (1, 1, 2)"),
        (
            np.empty((0, 3), dtype=int),
            ValueError,
            "edges: expected shape (E, 2), got (0, 3)",
        ),
        (3, ValueError, "edges: expected shape (E, 2), got ()"),
        (
            [[0, 1], [2]],
            ValueError,
            "edges: expected shape (E, 2), got rows of different lengths",
        ),
    ],
)
def test_bad_edges(edges, error, message):
    with raises(error, message):
        Graph(5, edges)


@pytest.mark.parametrize("build", [Graph.ring, Graph.path, Graph.complete])
def test_bad_n(build):
    with raises(ValueError, "n: expected at least 1, got 0"):
        build(0)
    with raises(ValueError, f"n: expected at most 4294967295, got {2**32}"):
        build(2**32)
    with raises(TypeError, "n: expected an integer, got 2.5"):
        build(2.5)


def test_bad_grid():
    with raises(ValueError, "rows: expected at least 1, got 0"):
        Graph.grid(0, 3)
    with raises(ValueError, "cols: expected at least 1, got -1"):
        Graph.grid(3, -1)
    with raises(TypeError, "cols: expected an integer, got True"):
        Graph.grid(3, True)
    with raises(ValueError, f"rows * cols: expected at most 4294967295, got {2**40}"):
        Graph.grid(2**20, 2**20)


@pytest.mark.parametrize(
    ("s", "error", "message"),
    [
        (12, IndexError, "s: expected a state in 0..9, got 12"),
        (9, IndexError, "s: expected a state in 0..9, got 9"),
        (-1, IndexError, "s: expected a state in 0..9, got -1"),
        (10**30, IndexError, f"s: expected a state in 0..9, got {10**30}"),
        (False, TypeError, "s: expected an integer, got False"),
        (1.0, TypeError, "s: expected an integer, got 1.0"),
    ],
)
def test_bad_state(s, error, message):
    graph = Graph.grid(3, 3)
    with raises(error, message):
        graph.neighbors(s)
    with raises(error, message):
        graph.ball(s, 1)
    with raises(error, message):
        graph.distances(s)
    with raises(error, message):
        graph.distance(s, 0)
    with raises(error, "t" + message[1:]):
        graph.distance(0, s)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (-1, ValueError, "k: expected at least 0, got -1"),
        (1.0, TypeError, "k: expected an integer, got 1.0"),
        (True, TypeError, "k: expected an integer, got True"),
        (None, TypeError, "k: expected an integer, got None"),
    ],
)
def test_bad_radius(k, error, message):
    with raises(error, message):
        Graph.path(3).ball(0, k)
    with raises(error, message):
        Graph.path(3).balls(k)


def test_the_core_checks_for_itself():
    core = Graph.path(3)._core
    with raises(ValueError, "edges: expected shape (E, 2), got (1, 3)"):
        type(core)(3, np.zeros((1, 3), dtype=np.int64))
    for call in (core.ball, core.distance):
        with raises(IndexError, "s: expected a state in 0..3, got 3"):
            call(3, 1)
    with raises(IndexError, "t: expected a state in 0..3, got -1"):
        core.distance(0, -1)
    with raises(IndexError, "s: expected a state in 0..3, got 3"):
        core.distances(3)


# ---- balls and distances


def test_balls_of_a_path():
    graph = Graph.path(4)
    assert graph.ball(0, 2).tolist() == [0, 1, 2]
    balls = graph.balls(2)
    assert isinstance(balls, Balls)
    assert balls.indptr.tolist() == [0, 3, 7, 11, 14]
    assert balls.indices.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 1, 2, 3]


def test_a_radius_beyond_the_graph_gives_the_component():
    graph = Graph(4, [[0, 1], [1, 2]])
    assert graph.ball(0, 10**30).tolist() == [0, 1, 2]
    assert graph.balls(10**30).indptr.tolist() == [0, 3, 6, 9, 10]


def test_distance_is_an_int_or_inf():
    graph = Graph(5, [[0, 1], [1, 2], [3, 4]])
    assert graph.distance(0, 2) == 2
    assert type(graph.distance(0, 2)) is int
    assert graph.distance(0, 0) == 0
    assert graph.distance(0, 3) == math.inf
    assert graph.distances(0).tolist() == [0, 1, 2, math.inf, math.inf]


def test_balls_of_a_large_grid():
    n = 1000
    indptr, indices = Graph.grid(n, n).balls(2)
    # ordered pairs of cells at offset (i, j): (n - |i|) (n - |j|), over |i| + |j| <= 2
    assert indices.size == n**2 + 4 * n * (n - 1) + 4 * n * (n - 2) + 4 * (n - 1) ** 2
    assert indptr[-1] == indices.size
    s = 500 * n + 500
    cross = [-2 * n, -n - 1, -n, -n + 1, -2, -1, 0, 1, 2, n - 1, n, n + 1, 2 * n]
    assert indices[indptr[s] : indptr[s + 1]].tolist() == [s + offset for offset in cross]


@given(edge_lists())
def test_rows_and_edges_as_in_networkx(graph_of):
    graph, G = Graph(*graph_of), networkx_twin(*graph_of)
    assert rows(graph) == [sorted({s, *G[s]}) for s in G]
    assert graph.n_edges == G.number_of_edges() - nx.number_of_selfloops(G)
    G.remove_edges_from(list(nx.selfloop_edges(G)))
    assert nx.utils.graphs_equal(graph.to_networkx(), G)


@given(edge_lists(), st.integers(0, 6))
def test_balls_as_in_networkx(graph_of, k):
    graph, G = Graph(*graph_of), networkx_twin(*graph_of)
    balls = graph.balls(k)
    for s in G:
        expected = sorted(nx.ego_graph(G, s, radius=k))
        assert graph.ball(s, k).tolist() == expected
        assert balls.indices[balls.indptr[s] : balls.indptr[s + 1]].tolist() == expected


@given(edge_lists())
def test_distances_as_in_networkx(graph_of):
    graph, G = Graph(*graph_of), networkx_twin(*graph_of)
    for s in G:
        length = nx.shortest_path_length(G, s)
        expected = [length.get(t, math.inf) for t in G]
        assert graph.distances(s).tolist() == expected
        assert [graph.distance(s, t) for t in G] == expected


@given(edge_lists(), st.randoms(use_true_random=False))
def test_order_and_direction_of_edges_do_not_matter(graph_of, random):
    n, edges = graph_of
    shuffled = [random.choice([(u, v), (v, u)]) for u, v in edges]
    random.shuffle(shuffled)
    assert Graph(n, shuffled) == Graph(n, edges)
    assert hash(Graph(n, shuffled)) == hash(Graph(n, edges))


# ---- an immutable value


def test_arrays_are_shared_and_read_only():
    graph = Graph.ring(5)
    for array in (graph.indptr, graph.indices, graph.neighbors(2)):
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    assert np.shares_memory(graph.indptr, graph.indptr)
    assert np.shares_memory(graph.neighbors(2), graph.indices)
    assert graph.indices is graph.indices


def test_arrays_outlive_the_graph():
    row = Graph.ring(5).neighbors(2)
    assert row.tolist() == [1, 2, 3]


def test_later_changes_of_the_edges_do_not_matter():
    edges = np.array([[0, 1], [1, 2]])
    graph = Graph(3, edges)
    edges[:] = 0
    assert graph == Graph.path(3)


@pytest.mark.parametrize("attribute", ["n_states", "n_edges", "indptr", "indices", "labels"])
def test_attributes_cannot_be_set(attribute):
    with pytest.raises(AttributeError):
        setattr(Graph.path(2), attribute, None)


def test_equality_is_by_structure_and_labels():
    assert Graph.complete(3) == Graph.ring(3)
    assert Graph.path(3) != Graph.ring(3)
    assert Graph.path(3) != Graph.path(4)
    assert Graph(4, [[0, 1], [2, 3]]) != Graph(4, [[0, 2], [1, 3]])
    assert Graph.path(3) != "path"
    named = Graph.from_networkx(nx.relabel_nodes(nx.path_graph(3), dict(enumerate("abc"))))
    other = Graph.from_networkx(nx.relabel_nodes(nx.path_graph(3), dict(enumerate("abd"))))
    assert len({named, other, Graph.path(3), Graph.path(3), copy.copy(named)}) == 3


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol):
    labelled = Graph.from_networkx(nx.star_graph(["hub", "x", "y"]))
    isolated = Graph(3, [[0, 0]])
    for graph in (labelled, isolated, Graph.grid(3, 4, torus=True)):
        again = pickle.loads(pickle.dumps(graph, protocol))
        assert again == graph
        assert again.labels == graph.labels
        assert copy.deepcopy(graph) == graph


def test_a_subclass_keeps_its_type():
    class Street(Graph):
        pass

    street = Street.path(3)
    assert type(street) is Street
    assert repr(street) == "Street(n_states=3, n_edges=2)"

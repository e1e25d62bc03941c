"""The undirected graph (S, E) of states, which fixes who sees whom and who can go where.

N_s, the neighbourhood of the state s, holds s itself. The neighbourhoods are stored one after the
other (CSR), each sorted; edge data, transition probabilities and flows follow the same order.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple, Self, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde import _core

if TYPE_CHECKING:
    import networkx as nx

_MAX_STATES = 2**32 - 1  # the core numbers the states with 32 bits


class Balls(NamedTuple):
    """All balls of one radius: that of s is ``indices[indptr[s]:indptr[s + 1]]``, sorted.

    Attributes
    ----------
    indptr
        Where each ball begins, and the end of the last, (S + 1,).
    indices
        The balls one after the other.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]


class Graph:
    """Undirected graph of the states 0, ..., S - 1; immutable, hashable, picklable.

    Parameters
    ----------
    n_states
        S, from 1 to 2^32 - 1.
    edges
        Pairs of states, integers, (E, 2). Duplicates, reversed duplicates and self-loops are
        merged: every state is its own neighbour anyway. Empty means no edges.

    Raises
    ------
    IndexError
        If an edge names a state that does not exist.
    TypeError
        If `n_states` or `edges` do not hold integers.
    ValueError
        If `n_states` is out of range or `edges` has another shape.

    Examples
    --------
    >>> import ltde
    >>> graph = ltde.Graph(4, [[0, 1], [1, 2], [2, 3]])
    >>> graph
    Graph(n_states=4, n_edges=3)
    >>> graph.neighbors(1)
    array([0, 1, 2])
    """

    def __init__(self, n_states: SupportsIndex, edges: ArrayLike) -> None:
        n = _integer("n_states", n_states, 1, _MAX_STATES)
        self._core = _core.Graph(n, _edge_array(edges, n))
        self._labels: tuple[Any, ...] | None = None

    @classmethod
    def from_edges(cls, n_states: SupportsIndex, edges: ArrayLike) -> Self:
        """Build the graph from its edges: the same as ``Graph(n_states, edges)``.

        Parameters
        ----------
        n_states
            S, from 1 to 2^32 - 1.
        edges
            Pairs of states, integers, (E, 2).

        Raises
        ------
        IndexError, TypeError, ValueError
            As `Graph` does.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.from_edges(3, [[0, 1], [1, 0], [2, 2]])
        Graph(n_states=3, n_edges=1)
        """
        return cls(n_states, edges)

    @classmethod
    def ring(cls, n: SupportsIndex) -> Self:
        """Build the cycle 0, 1, ..., n - 1, 0.

        Parameters
        ----------
        n
            Number of states, at least 1.

        Raises
        ------
        TypeError, ValueError
            If `n` is not an integer of at least 1.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.ring(5).neighbors(0)
        array([0, 1, 4])
        """
        n = _integer("n", n, 1, _MAX_STATES)
        states = np.arange(n, dtype=np.int64)
        return cls(n, np.column_stack((states, (states + 1) % n)))

    @classmethod
    def path(cls, n: SupportsIndex) -> Self:
        """Build the path 0, 1, ..., n - 1.

        Parameters
        ----------
        n
            Number of states, at least 1.

        Raises
        ------
        TypeError, ValueError
            If `n` is not an integer of at least 1.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.path(5).neighbors(0)
        array([0, 1])
        """
        n = _integer("n", n, 1, _MAX_STATES)
        states = np.arange(n, dtype=np.int64)
        return cls(n, np.column_stack((states[:-1], states[1:])))

    @classmethod
    def complete(cls, n: SupportsIndex) -> Self:
        """Build the graph in which all states are neighbours: no locality at all.

        Parameters
        ----------
        n
            Number of states, at least 1.

        Raises
        ------
        TypeError, ValueError
            If `n` is not an integer of at least 1.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.complete(4)
        Graph(n_states=4, n_edges=6)
        """
        n = _integer("n", n, 1, _MAX_STATES)
        return cls(n, np.column_stack(np.triu_indices(n, 1)))

    @classmethod
    def grid(cls, rows: SupportsIndex, cols: SupportsIndex, torus: bool = False) -> Self:
        """Build the rectangular grid in which a state has (up to) four neighbours and itself.

        Parameters
        ----------
        rows, cols
            Size of the grid, at least 1 each. The state in row i, column j is ``i * cols + j``.
        torus
            Join the last row to the first and the last column to the first.

        Raises
        ------
        TypeError, ValueError
            If `rows` or `cols` is not an integer of at least 1.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.grid(3, 3).neighbors(4)
        array([1, 3, 4, 5, 7])
        >>> ltde.Graph.grid(3, 3, torus=True).neighbors(0)
        array([0, 1, 2, 3, 6])
        """
        rows = _integer("rows", rows, 1, _MAX_STATES)
        cols = _integer("cols", cols, 1, _MAX_STATES)
        n = _integer("rows * cols", rows * cols, 1, _MAX_STATES)
        states = np.arange(n, dtype=np.int64).reshape(rows, cols)
        if torus:
            pairs = (states, np.roll(states, -1, axis=1)), (states, np.roll(states, -1, axis=0))
        else:
            pairs = (states[:, :-1], states[:, 1:]), (states[:-1], states[1:])
        edges = [np.column_stack((u.ravel(), v.ravel())) for u, v in pairs]
        return cls(n, np.concatenate(edges))

    @classmethod
    def from_networkx(cls, G: nx.Graph[Any]) -> Self:
        """Read a networkx graph; its nodes become the states 0, ..., S - 1 in their order.

        Directed graphs and multigraphs are read as undirected graphs without parallel edges.

        Parameters
        ----------
        G
            A networkx graph with at least one node. Its nodes are kept as `labels`.

        Raises
        ------
        ImportError
            If networkx is not installed.
        TypeError
            If `G` is no networkx graph.
        ValueError
            If `G` has no nodes.

        Examples
        --------
        >>> import ltde, networkx
        >>> graph = ltde.Graph.from_networkx(networkx.Graph([("home", "work"), ("work", "gym")]))
        >>> graph.labels
        ['home', 'work', 'gym']
        >>> graph.neighbors(0)
        array([0, 1])
        """
        nx = _networkx()
        if not isinstance(G, nx.Graph):
            raise TypeError(f"G: expected a networkx graph, got {type(G).__name__}")
        if len(G) == 0:
            raise ValueError("G: expected at least one node, got an empty graph")
        state = {label: s for s, label in enumerate(G)}
        ends = (state[label] for edge in G.edges() for label in edge)
        graph = cls(len(state), np.fromiter(ends, np.int64).reshape(-1, 2))
        graph._labels = tuple(state)
        return graph

    def to_networkx(self) -> nx.Graph[Any]:
        """Return the graph as a `networkx.Graph`, without self-loops.

        Its nodes are `labels`, or 0, ..., S - 1 if there are none, in the order of the states.

        Raises
        ------
        ImportError
            If networkx is not installed.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.path(3).to_networkx().edges
        EdgeView([(0, 1), (1, 2)])
        """
        nx = _networkx()
        labels = self.labels or list(range(self.n_states))
        G = nx.Graph()
        G.add_nodes_from(labels)
        G.add_edges_from((labels[s], labels[t]) for s, t in self._edges().tolist())
        return G

    @property
    def n_states(self) -> int:
        """Number of states S."""
        return self._core.n_states

    @property
    def n_edges(self) -> int:
        """Number of edges between different states, each counted once."""
        return (self.indices.size - self.n_states) // 2

    @property
    def indptr(self) -> NDArray[np.int64]:
        """Where each neighbourhood begins, and the end of the last, (S + 1,); read-only."""
        return self._core.indptr

    @property
    def indices(self) -> NDArray[np.int64]:
        """The neighbourhoods N_0, N_1, ... one after the other, (nnz,); read-only."""
        return self._core.indices

    @property
    def labels(self) -> list[Any] | None:
        """The nodes of the networkx graph this graph was read from, (S,), or None; a copy."""
        return None if self._labels is None else list(self._labels)

    def neighbors(self, s: SupportsIndex) -> NDArray[np.int64]:
        """Return the neighbourhood N_s: sorted, s included; a read-only view of `indices`.

        Parameters
        ----------
        s
            State in 0, ..., S - 1.

        Raises
        ------
        IndexError
            If there is no such state; negative numbers do not count from the end.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.path(3).neighbors(2)
        array([1, 2])
        """
        s = self._state("s", s)
        return self.indices[self.indptr[s] : self.indptr[s + 1]]

    def ball(self, s: SupportsIndex, k: SupportsIndex) -> NDArray[np.int64]:
        """Return the ball N_s^k: the states at distance at most k from s, sorted.

        Parameters
        ----------
        s
            State in 0, ..., S - 1.
        k
            Radius, at least 0. The ball of radius 0 is s alone, that of radius 1 is N_s.

        Raises
        ------
        IndexError
            If there is no such state.
        TypeError, ValueError
            If `k` is not an integer of at least 0.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.path(6).ball(1, 2)
        array([0, 1, 2, 3])
        """
        return self._core.ball(self._state("s", s), self._radius(k))

    def balls(self, k: SupportsIndex) -> Balls:
        """Return the balls of radius k around all states.

        Parameters
        ----------
        k
            Radius, at least 0.

        Raises
        ------
        TypeError, ValueError
            If `k` is not an integer of at least 0.

        Notes
        -----
        The balls are found on all cores, without the GIL. They take 8 bytes per entry: on a large
        graph, a large radius may not fit into memory.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.path(3).balls(1)
        Balls(indptr=array([0, 2, 5, 7]), indices=array([0, 1, 0, 1, 2, 1, 2]))
        """
        return Balls(*self._core.balls(self._radius(k)))

    def distance(self, s: SupportsIndex, t: SupportsIndex) -> float:
        """Return the number of edges on a shortest path from s to t.

        Parameters
        ----------
        s, t
            States in 0, ..., S - 1.

        Returns
        -------
        distance
            An int, or `math.inf` if there is no path.

        Raises
        ------
        IndexError
            If there is no such state.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph.ring(6).distance(0, 4)
        2
        """
        distance = self._core.distance(self._state("s", s), self._state("t", t))
        return math.inf if distance is None else distance

    def distances(self, s: SupportsIndex) -> NDArray[np.float64]:
        """Return the distances from s to all states, (S,), inf where there is no path.

        Parameters
        ----------
        s
            State in 0, ..., S - 1.

        Raises
        ------
        IndexError
            If there is no such state.

        Examples
        --------
        >>> import ltde
        >>> ltde.Graph(4, [[0, 1], [1, 2]]).distances(0)
        array([ 0.,  1.,  2., inf])
        """
        return self._core.distances(self._state("s", s))

    def __eq__(self, other: object) -> bool:
        """Whether the other graph has the same states, edges and labels."""
        if not isinstance(other, Graph):
            return NotImplemented
        return self is other or (
            np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
            and self._labels == other._labels
        )

    def __hash__(self) -> int:
        """Hash of the states, edges and labels."""
        return hash((self.indptr.tobytes(), self.indices.tobytes(), self._labels))

    def __repr__(self) -> str:
        """Sizes of the graph."""
        return f"{type(self).__name__}(n_states={self.n_states}, n_edges={self.n_edges})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as states, edges and labels."""
        return type(self), (self.n_states, self._edges()), {"_labels": self._labels}

    def _edges(self) -> NDArray[np.int64]:
        """Return each edge once, smaller state first, (n_edges, 2)."""
        rows = np.repeat(np.arange(self.n_states), np.diff(self.indptr))
        above = rows < self.indices
        return np.column_stack((rows[above], self.indices[above]))

    def _state(self, name: str, value: SupportsIndex) -> int:
        s = _integer(name, value)
        if not 0 <= s < self.n_states:
            raise IndexError(f"{name}: expected a state in 0..{self.n_states}, got {s}")
        return s

    def _radius(self, k: SupportsIndex) -> int:
        return min(_integer("k", k, 0), self.n_states)  # no shortest path is longer


def _integer(
    name: str, value: SupportsIndex, low: int | None = None, high: int | None = None
) -> int:
    """Return the value as an int from `low` to `high`; a bool is no integer here."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if low is not None and number < low:
        raise ValueError(f"{name}: expected at least {low}, got {number}")
    if high is not None and number > high:
        raise ValueError(f"{name}: expected at most {high}, got {number}")
    return number


def _edge_array(edges: ArrayLike, n_states: int) -> NDArray[np.int64]:
    """Return the edges as a C-contiguous int64 array (E, 2); the core checks the values."""
    try:
        array = np.asarray(edges)
    except ValueError:
        raise ValueError("edges: expected shape (E, 2), got rows of different lengths") from None
    if array.shape in ((0,), (0, 2)):
        return np.empty((0, 2), dtype=np.int64)
    if array.dtype.kind not in "iu":
        message = f"edges: expected integers, got dtype {array.dtype}"
        if array.dtype.kind == "f" and np.isnan(array).any():
            index = ", ".join(map(str, np.argwhere(np.isnan(array))[0]))
            message += f", with edges[{index}] = nan"
        raise TypeError(message)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"edges: expected shape (E, 2), got {array.shape}")
    if array.dtype == np.uint64:  # could wrap around below
        for i, j in np.argwhere(array >= n_states)[:1]:
            value = array[i, j]
            raise IndexError(f"edges[{i}, {j}]: expected a state in 0..{n_states}, got {value}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as error:
        raise ImportError("networkx is not installed: pip install ltde[networkx]") from error
    return networkx

"""The networked model: a graph, one local function, its data, an initial law and a discount."""

from __future__ import annotations

import hashlib
import math
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde import _core
from ltde.graph import Graph
from ltde.initial import DirichletInitial
from ltde.local import LocalFunction, compile_local, definition

__all__ = ["NetworkedModel"]

# The compiled and the plain Python function may differ by the order of roundings.
_TWIN_TOLERANCE = 1e-9
# Samples and states at which `check` also runs the plain Python function.
_TWIN_SAMPLES = 3
_TWIN_STATES = 256
# Largest |sum - 1| of a row of `prob`; ROW_TOLERANCE in the core.
_ROW_TOLERANCE = 1e-9


class NetworkedModel:
    """N identical agents on a graph of states, with local rewards and transitions.

    Parameters
    ----------
    graph
        The graph of states.
    n_actions
        Number of actions `A`.
    local
        Plain Python function `local(s, mu, node, edge, prob, reward)`, compiled once a process by
        numba. It reads the state `s`, the densities `mu` `(|N_s|,)` of its neighbourhood in the
        order of `graph.neighbors(s)`, and this state's data `node` `(P,)` and `edge` `(|N_s|, Q)`.
        It writes `prob` `(A, |N_s|)`, the law of the next state of an agent that takes an action,
        and `reward` `(A,)`; both arrive zeroed.
    node
        `(S, P)` or `(S,)` data of the states; None for none.
    edge
        `(nnz, Q)` or `(nnz,)` data of the edges, in the order of `graph.indices` (each state also
        has an edge to itself); None for none.
    action_mask
        `(S, A)` bool, which actions a state allows; None allows all. The rows of masked actions are
        never read.
    initial
        Law `P_0` of the start. Integers `(S,)`: exactly these counts. Integers `(K, S)`: one of
        these rows, with equal probability. Floats `(S,)` summing to 1: agents independent with this
        law (at `N = inf` the density itself). `DirichletInitial`: agents independent with a random
        law. None: uniform over states.
    discount
        `gamma` in [0, 1).
    reward_range
        `(lo, hi)`, the range of `reward` over allowed actions; None only asks for finite numbers.

    Attributes
    ----------
    node, edge, action_mask
        The arrays `(S, P)`, `(nnz, Q)` and `(S, A)`, read-only; `P` or `Q` is 0 if there is none.
    initial
        The array, or the `DirichletInitial`.

    Raises
    ------
    ValueError
        Naming the argument, index and value that is wrong.
    TypeError
        If an array has the wrong dtype or `local` cannot be compiled.

    Examples
    --------
    >>> import numpy as np
    >>> import ltde
    >>> def local(s, mu, node, edge, prob, reward):
    ...     for i in range(mu.size):
    ...         prob[1, i] = 1.0 / mu.size  # action 1 wanders, action 0 leaves prob[0] to be set
    ...     prob[0, 0] = 1.0
    ...     reward[:] = 1.0 - mu[0]
    >>> model = ltde.NetworkedModel(ltde.Graph.ring(5), 2, local, discount=0.9)
    >>> model
    NetworkedModel(n_states=5, n_actions=2, local='local', discount=0.9)
    >>> prob, reward = model.evaluate(np.full(5, 0.2))
    >>> prob.shape, reward.shape
    ((2, 15), (5, 2))
    """

    def __init__(
        self,
        graph: Graph,
        n_actions: int,
        local: LocalFunction,
        *,
        node: ArrayLike | None = None,
        edge: ArrayLike | None = None,
        action_mask: ArrayLike | None = None,
        initial: ArrayLike | DirichletInitial | None = None,
        discount: float = 0.95,
        reward_range: tuple[float, float] | None = None,
    ) -> None:
        if not isinstance(graph, Graph):
            raise TypeError(f"graph: expected an ltde.Graph, got {type(graph).__name__}")
        if isinstance(n_actions, bool) or not isinstance(n_actions, (int, np.integer)):
            raise TypeError(f"n_actions: expected an integer, got {n_actions!r}")
        if n_actions < 1:
            raise ValueError(f"n_actions: expected at least 1, got {n_actions}")
        if not callable(local):
            raise TypeError(f"local: expected a function, got {type(local).__name__}")
        self.graph = graph
        self.n_actions = int(n_actions)
        self.local = local
        self.node = _data("node", node, graph.n_states, "S")
        self.edge = _data("edge", edge, len(graph.indices), "nnz")
        self.action_mask = _mask(action_mask, graph.n_states, self.n_actions)
        self.initial = _initial(initial, graph.n_states)
        self.discount = _number("discount", discount)
        self.reward_range = _range(reward_range)
        self._definition = definition(local)  # now: a global may change later
        self._core  # noqa: B018  compile and validate now: errors at the earliest point

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse changes: the core holds its own copy of what it was built from."""
        if "_core" in self.__dict__:
            raise AttributeError(f"{name}: a NetworkedModel does not change; build another one")
        super().__setattr__(name, value)

    @cached_property
    def _core(self) -> _core.Model:
        compiled = compile_local(self.local, self.n_actions, self.node.shape[1], self.edge.shape[1])
        dirichlet = isinstance(self.initial, DirichletInitial)
        law = self.initial.alpha if isinstance(self.initial, DirichletInitial) else self.initial
        return _core.Model(
            self.graph._core,
            self.n_actions,
            compiled.address,
            compiled.owner,
            self.node,
            self.edge,
            self.action_mask,
            np.atleast_2d(law) if law.dtype == np.int64 else law,
            dirichlet,
            self.discount,
            self.reward_range,
        )

    @property
    def n_states(self) -> int:
        """Number of states `S`."""
        return self.graph.n_states

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over graph, arrays, discount and local function.

        Of the function: its source, its defaults and the values of outer variables it reads, those
        of helper functions included.
        """
        law = self.initial.alpha if isinstance(self.initial, DirichletInitial) else self.initial
        digest = hashlib.sha256()
        for array in (
            self.graph.indptr,
            self.graph.indices,
            self.node,
            self.edge,
            self.action_mask,
            law,
        ):
            digest.update(f"{array.shape} {array.dtype.str};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(f"{type(self.initial).__name__} {self.n_actions} {self.discount!r}".encode())
        digest.update(f" {self.reward_range!r} {self._definition}".encode())
        return digest.hexdigest()

    def evaluate(self, mu: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Evaluate transitions and rewards at densities, in the core.

        Parameters
        ----------
        mu
            `(B, S)` or `(S,)` densities, finite and non-negative.

        Returns
        -------
        prob
            `(B, A, nnz)`: `prob[b, a, e]` is the probability that an agent that takes `a` in the
            state whose row holds the edge `e` moves to `graph.indices[e]`; 0 where masked.
        reward
            `(B, S, A)`, 0 where masked. The axis `B` is absent from both if it is from `mu`.

        Raises
        ------
        ValueError
            If `mu` has the wrong shape, or holds a number that is negative or not finite.
        ModelError
            At the first state where the local function misbehaves.
        """
        densities = _real("mu", mu)
        states = self.graph.n_states
        if densities.ndim not in (1, 2) or densities.shape[-1] != states:
            raise ValueError(
                f"mu: expected shape (B, {states}) or ({states},), got {densities.shape}"
            )
        _non_negative("mu", densities)
        rows = np.ascontiguousarray(np.atleast_2d(densities)[:, self.graph.indices])
        with self.explaining():
            prob, reward = self._evaluate_rows(rows)
        return (prob, reward) if densities.ndim == 2 else (prob[0], reward[0])

    def evaluate_local(
        self, s: int, mu: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Run the plain Python local function at one state: for debugging.

        Parameters
        ----------
        s
            State.
        mu
            `(|N_s|,)` densities of the neighbourhood, in the order of `graph.neighbors(s)`.

        Returns
        -------
        prob
            `(A, |N_s|)`.
        reward
            `(A,)`. Neither is checked.
        """
        degree = len(self.graph.neighbors(s))
        densities = _real("mu", mu)
        if densities.shape != (degree,):
            raise ValueError(f"mu: expected shape ({degree},), got {densities.shape}")
        densities.flags.writeable = False
        prob = np.zeros((self.n_actions, degree))
        reward = np.zeros(self.n_actions)
        start = self.graph.indptr[s]
        self.local(int(s), densities, self.node[s], self.edge[start : start + degree], prob, reward)
        return prob, reward

    def check(self, n_samples: int = 30, seed: int = 0, *, compiled: bool = True) -> None:
        """Run the local function at sampled densities and name the first thing that is wrong.

        A third of the samples are corners (all agents in one state of the neighbourhood), a third
        sparse, a third dense random densities; each state has its own sample of `mu(N_s)`. Looked
        for: exceptions, probabilities that are negative or not finite, rows that do not sum to 1
        within 1e-9, rewards outside `reward_range`. Rows of masked actions are not read. The
        compiled function is also compared with the Python one, at up to 256 states.

        Parameters
        ----------
        n_samples
            Number of densities tried at every state.
        seed
            Seed of the samples.
        compiled
            False runs the plain Python function everywhere: slow, but open to a debugger.

        Raises
        ------
        ModelError
            Naming state, densities, action and value.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples: expected at least 1, got {n_samples}")
        rng = np.random.default_rng(seed)
        states = range(self.graph.n_states)
        for sample in range(n_samples):
            rows = self._sample_rows(sample, rng)
            twin = None
            with self.explaining():
                if not compiled:
                    pass
                elif sample < _TWIN_SAMPLES:
                    twin = self._evaluate_rows(rows[None])
                else:
                    self._core.check(rows[None])
            if not compiled:
                for s in states:
                    self._check_state(s, sample, rows)
            elif twin is not None:
                for s in states[:: max(1, len(states) // _TWIN_STATES)]:
                    self._check_twin(s, sample, rows, *twin)

    def _sample_rows(self, sample: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sample a density for every neighbourhood, `(nnz,)` in CSR order, of sum at most 1."""
        indptr = self.graph.indptr
        degrees = np.diff(indptr)
        kind, number = sample % 3, sample // 3
        if kind == 0:
            rows = np.zeros(int(indptr[-1]))
            rows[indptr[:-1] + number % degrees] = 1.0
            return rows
        rows = rng.exponential(size=int(indptr[-1]))
        if kind == 1:
            rows *= rng.random(rows.size) < 0.4
        sums = np.add.reduceat(rows, indptr[:-1])
        totals = rng.random(len(degrees)) ** (number % 4)
        scale = np.divide(totals, sums, out=np.zeros_like(sums), where=sums > 0)
        return np.asarray(rows * np.repeat(scale, degrees))

    def _evaluate_rows(
        self, rows: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Evaluate P `(B, A, nnz)` and r `(B, S, A)` at densities `(B, nnz)` in CSR order."""
        prob = np.zeros((len(rows), self.n_actions, rows.shape[1]))
        reward = np.zeros((len(rows), self.n_states, self.n_actions))
        self._core.evaluate(rows, prob, reward)
        return prob, reward

    def _check_state(self, s: int, sample: int, rows: NDArray[np.float64]) -> None:
        """Check what the plain Python function writes at one state."""
        mu = rows[self.graph.indptr[s] : self.graph.indptr[s + 1]]
        prob, reward = self.evaluate_local(s, mu)
        lo, hi = self.reward_range
        for a in np.flatnonzero(self.action_mask[s]).tolist():
            for i, p in enumerate(prob[a].tolist()):
                if not (p >= 0.0 and math.isfinite(p)):
                    what = f"prob[{a}, {i}] (to state {self.graph.neighbors(s)[i]})"
                    what = f"{what}: expected a probability >= 0, got {p}"
                    raise _fault(sample, s, a, p, what, mu)
            total = float(prob[a].sum())
            if not abs(total - 1.0) <= _ROW_TOLERANCE:
                what = f"prob[{a}] must sum to 1 within {_ROW_TOLERANCE}, got {total}"
                raise _fault(sample, s, a, total, what, mu)
            r = float(reward[a])
            if not (lo <= r <= hi and math.isfinite(r)):
                wanted = "" if math.isinf(hi - lo) else f" in [{lo}, {hi}]"
                what = f"reward[{a}]: expected a finite number{wanted}, got {r}"
                raise _fault(sample, s, a, r, what, mu)

    def _check_twin(
        self,
        s: int,
        sample: int,
        rows: NDArray[np.float64],
        compiled_prob: NDArray[np.float64],
        compiled_reward: NDArray[np.float64],
    ) -> None:
        """Compare what the Python and the compiled function write at one state."""
        own = slice(int(self.graph.indptr[s]), int(self.graph.indptr[s + 1]))
        prob, reward = self.evaluate_local(s, rows[own])
        for a in np.flatnonzero(self.action_mask[s]).tolist():
            for name, python, machine in (
                ("prob", prob[a], compiled_prob[0, a, own]),
                ("reward", reward[a : a + 1], compiled_reward[0, s, a : a + 1]),
            ):
                if not np.allclose(python, machine, rtol=_TWIN_TOLERANCE, atol=_TWIN_TOLERANCE):
                    value = float(machine[np.argmax(np.abs(python - machine))])
                    what = (
                        f"{name}[{a}] is {machine.tolist()} compiled but {python.tolist()} in "
                        "plain Python (did a global change after compilation?)"
                    )
                    raise _fault(sample, s, a, value, what, rows[own])

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn "the local function raised" into the exception that it raised.

        An exception cannot leave compiled code, so the core reports where it happened and the plain
        Python function runs there again.
        """
        try:
            yield
        except _core.ModelError as error:
            if not error.raised:
                raise
            try:
                self.evaluate_local(error.state, error.mu)
            except Exception as original:
                original.add_note(f"raised by the local function at {error}")
                raise original from None
            error.add_note(
                "the plain Python function does not raise there: it may read a global that changed "
                "after compilation, or index with numba's rules"
            )
            raise

    def __repr__(self) -> str:
        """Show the sizes."""
        name = getattr(self.local, "__name__", repr(self.local))
        return (
            f"NetworkedModel(n_states={self.n_states}, n_actions={self.n_actions}, "
            f"local={name!r}, discount={self.discount})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the name of the local function and the arrays; compiled again on arrival."""
        module = sys.modules.get(self.local.__module__)
        found: Any = module
        for part in self.local.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not self.local:
            raise pickle.PicklingError(
                f"local: {self.local.__module__}.{self.local.__qualname__} is not a function at "
                "the top level of an importable module, so another process could not find it"
            )
        keywords = {
            "node": self.node,
            "edge": self.edge,
            "action_mask": self.action_mask,
            "initial": self.initial,
            "discount": self.discount,
            "reward_range": self.reward_range,
        }
        return _rebuild, (self.graph, self.n_actions, self.local, keywords)


def _fault(
    sample: int, state: int, action: int, value: float, what: str, mu: NDArray[np.float64]
) -> _core.ModelError:
    """Make the error that the core would make of a fault."""
    error = _core.ModelError(
        f"mu[{sample}], state {state}: action {action}: {what}; mu(N_s) = {mu.tolist()}"
    )
    error.replica, error.step, error.state, error.action = sample, None, state, action
    error.value, error.mu, error.raised = value, mu.tolist(), False
    return error


def _rebuild(
    graph: Graph, n_actions: int, local: LocalFunction, keywords: dict[str, Any]
) -> NetworkedModel:
    return NetworkedModel(graph, n_actions, local, **keywords)


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _range(reward_range: Any) -> tuple[float, float]:
    if reward_range is None:
        return -np.inf, np.inf
    try:
        lo, hi = reward_range
    except (TypeError, ValueError):
        raise TypeError(f"reward_range: expected a pair (lo, hi), got {reward_range!r}") from None
    lo, hi = _number("reward_range[0]", lo), _number("reward_range[1]", hi)
    if lo == np.inf or hi == -np.inf:
        raise ValueError(f"reward_range: no finite number lies in ({lo}, {hi})")
    return lo, hi


def _real(name: str, data: ArrayLike) -> NDArray[np.float64]:
    """Convert to a float64 array of real numbers."""
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array.astype(np.float64)


def _place(array: NDArray[Any], bad: NDArray[np.bool_]) -> str:
    """Return the index of the first bad entry, as it is written in Python."""
    return ", ".join(str(i) for i in np.argwhere(bad)[0])


def _non_negative(name: str, array: NDArray[np.float64]) -> None:
    bad = ~((array >= 0) & np.isfinite(array))
    if bad.any():
        raise ValueError(
            f"{name}[{_place(array, bad)}]: expected a finite number >= 0, got {array[bad][0]}"
        )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Make a read-only C-contiguous copy."""
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy


def _data(name: str, data: ArrayLike | None, rows: int, letter: str) -> NDArray[np.float64]:
    if data is None:
        return _frozen(np.zeros((rows, 0)))
    array = _real(name, data)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(
            f"{name}: expected shape ({letter}, .) with {letter} = {rows}, got {np.shape(data)}"
        )
    if np.isnan(array).any():
        raise ValueError(f"{name}[{_place(array, np.isnan(array))}]: expected a number, got nan")
    return _frozen(array)


def _mask(mask: ArrayLike | None, states: int, actions: int) -> NDArray[np.bool_]:
    if mask is None:
        return _frozen(np.ones((states, actions), dtype=np.bool_))
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"action_mask: expected dtype bool, got {array.dtype}")
    if array.shape != (states, actions):
        raise ValueError(f"action_mask: expected shape ({states}, {actions}), got {array.shape}")
    return _frozen(array)


def _initial(
    initial: ArrayLike | DirichletInitial | None, states: int
) -> NDArray[Any] | DirichletInitial:
    if isinstance(initial, DirichletInitial):
        if len(initial.alpha) != states:
            raise ValueError(
                f"initial: expected alpha of shape ({states},), got {initial.alpha.shape}"
            )
        return initial
    array = np.full(states, 1.0 / states) if initial is None else np.asarray(initial)
    if array.dtype.kind in "iu":
        if array.ndim not in (1, 2) or array.shape[-1] != states or len(array) == 0:
            raise ValueError(
                f"initial: expected counts of shape ({states},) or (K, {states}), got {array.shape}"
            )
        too_many = array > 2**53
        if too_many.any():
            place = _place(array, too_many)
            raise OverflowError(f"initial[{place}]: at most 2^53, got {array[too_many][0]}")
        return _frozen(array.astype(np.int64))
    if array.dtype.kind == "f":
        if array.shape != (states,):
            raise ValueError(f"initial: expected a law of shape ({states},), got {array.shape}")
        return _frozen(array.astype(np.float64))
    raise TypeError(f"initial: expected integers or floats, got dtype {array.dtype}")

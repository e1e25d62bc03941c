"""The simulator: B replicas of N agents, exactly in law, at a cost that does not depend on N."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde import _core
from ltde.arguments import integer, population_size, seed_number
from ltde.model import NetworkedModel
from ltde.policy import FunctionPolicy, TabularPolicy, as_probabilities

if TYPE_CHECKING:
    from ltde.network_policy import NetworkPolicy

__all__ = ["Rollout", "Simulator", "Step", "Visitation"]

# Counts are int64 at finite N and float64 masses at N = inf.
Masses: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
Policy: TypeAlias = Union[TabularPolicy, FunctionPolicy, "NetworkPolicy", ArrayLike]
Recorded: TypeAlias = Literal["counts", "actions", "rewards", "flows"]

_RECORDABLE = ("counts", "actions", "rewards", "flows")


class _Arrays:
    """What the records share: torch tensors over the same memory."""

    def torch(self) -> SimpleNamespace:
        """Return the arrays as torch tensors that share their memory, under the same names."""
        import torch

        arrays = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return SimpleNamespace(
            **{
                name: None if array is None else torch.from_numpy(array)
                for name, array in arrays.items()
            }
        )


@dataclass(frozen=True, slots=True)
class Step(_Arrays):
    """What one step did.

    Attributes
    ----------
    actions
        `(B, S, A)` team actions `c(s, a)`: how many agents of `s` took `a`; masses at `N = inf`.
    rewards
        `(B, S)` team rewards `r_s = sum_a c(s, a) r(s, mu(N_s), a) / N`.
    """

    actions: Masses
    rewards: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rollout(_Arrays):
    """What `T` steps of `B` replicas did; arrays that were not recorded are None.

    The arrays are filled in place by the core. They belong to this object and outlive the
    simulator; a later rollout overwrites them only if it is given this one as `out`.

    Attributes
    ----------
    counts
        `(T + 1, B, S)` agents in each state; `counts[0]` is the start. Masses at `N = inf`.
    actions
        `(T, B, S, A)` team actions `c(s, a)`.
    rewards
        `(T, B, S)` team rewards `r_s = sum_a c(s, a) r(s, mu(N_s), a) / N`.
    restarted
        `(T, B)` bool: `counts[t + 1]` is a fresh draw from `P_0`. Learners drop that transition,
        which is unbiased, because the coin is independent of it.
    flows
        `(T, B, nnz)` agents that went from the state of an edge's row to `graph.indices[e]`; at a
        restart those of the transition that was dropped.
    """

    counts: Masses | None
    actions: Masses | None
    rewards: NDArray[np.float64] | None
    restarted: NDArray[np.bool_]
    flows: Masses | None


@dataclass(frozen=True, slots=True)
class Visitation(_Arrays):
    """Independent draws from the discounted visitation law `sigma` (4.2).

    Attributes
    ----------
    counts
        `(D, B, S)`, `mu` times `N`.
    actions
        `(D, B, S, A)` team actions drawn there.
    rewards
        `(D, B, S)` team rewards of that step.
    next_counts
        `(D, B, S)` counts after that step.
    horizon
        `(D, B)` the time at which the chain was read, geometric: `P(t) = (1 - gamma) gamma^t`.
    """

    counts: Masses
    actions: Masses
    rewards: NDArray[np.float64]
    next_counts: Masses
    horizon: NDArray[np.int64]


class Simulator:
    """Simulate `B` independent replicas of `N` agents by counts.

    Exactly in law for every `N` up to 2^53: the agents are exchangeable, so a step draws for every
    occupied state how many agents take each action and how many of those land on each neighbour.
    The cost of a step does not depend on `N`, and states without agents cost nothing.

    Parameters
    ----------
    model
        The model.
    n_agents
        Number of agents `N`, an integer from 1 to 2^53, or `math.inf` for the deterministic
        mean-field flow: then `counts` are densities `mu(s)` and actions are masses
        `mu(s) h(s)(a)`, both float64.
    n_replicas
        Number of independent replicas `B`.
    seed
        Integer in [0, 2^64). Every draw is addressed by (seed, purpose, replica, step, block of 64
        states): the same bits for any number of threads and any split of the work.
    threads
        Worker threads; None takes the environment variable `LTDE_NUM_THREADS`, or all cores.
    first_replica
        Number of the first replica: replicas 4 to 7 of a large run are
        `Simulator(..., n_replicas=4, first_replica=4)`.

    Raises
    ------
    ValueError
        If an argument is out of range, or `n_agents` differs from the sum of fixed initial counts.
    OverflowError
        If `n_agents` exceeds 2^53.

    Examples
    --------
    >>> import ltde
    >>> def local(s, mu, node, edge, prob, reward):
    ...     for a in range(prob.shape[0]):
    ...         prob[a, a] = 1.0  # go to the a-th neighbour
    ...         reward[a] = -mu[a]
    >>> model = ltde.NetworkedModel(ltde.Graph.ring(4), 3, local, discount=0.9)
    >>> simulator = ltde.Simulator(model, n_agents=10**9, n_replicas=2, seed=1)
    >>> rollout = simulator.rollout(ltde.TabularPolicy.uniform(model), n_steps=5)
    >>> rollout.counts.shape, rollout.actions.shape
    ((6, 2, 4), (5, 2, 4, 3))
    >>> int(simulator.counts.sum())
    2000000000
    """

    def __init__(
        self,
        model: NetworkedModel,
        n_agents: float,
        n_replicas: int = 1,
        seed: int = 0,
        threads: int | None = None,
        first_replica: int = 0,
    ) -> None:
        if not isinstance(model, NetworkedModel):
            raise TypeError(f"model: expected an ltde.NetworkedModel, got {type(model).__name__}")
        self.model = model
        self.n_agents = population_size(n_agents)
        self.n_replicas = integer("n_replicas", n_replicas, 1, 2**32)
        self.threads = _threads(threads)
        self.first_replica = integer("first_replica", first_replica, 0, 2**32)
        self._core = _core.Simulator(
            model._core,
            None if self.n_agents == math.inf else int(self.n_agents),
            self.n_replicas,
            seed_number(seed),
            self.threads,
            self.first_replica,
        )
        self._dtype = np.dtype(np.float64 if self.n_agents == math.inf else np.int64)

    @property
    def counts(self) -> Masses:
        """The present counts `(B, S)`, one array updated in place by every call.

        int64, or float64 densities at `N = inf`. Writing to it moves agents; the next call checks
        that they are still `N`.
        """
        return self._core.counts

    @property
    def seed(self) -> int:
        """The seed in use."""
        return self._core.position[0]

    @property
    def n_steps(self) -> int:
        """Steps taken so far; part of the address of every draw, never rewound."""
        return self._core.position[1]

    def reset(self, counts: ArrayLike | None = None, seed: int | None = None) -> None:
        """Redraw the counts from `P_0`, or set them.

        Parameters
        ----------
        counts
            `(B, S)` or `(S,)` to start from instead of a draw; rows sum to `n_agents` (to 1 at
            `N = inf`).
        seed
            A new seed; None keeps the present one.

        Raises
        ------
        ValueError
            Naming the replica whose sum is wrong, or the entry that is negative.
        TypeError
            If `counts` are not integers at finite `N`.

        Notes
        -----
        The counters of steps and resets go on, so a simulator never uses a random number twice;
        `reset(seed=k)` is therefore another draw than that of a fresh `Simulator(seed=k)`.
        """
        new_seed = None if seed is None else seed_number(seed)
        if counts is None:
            self._core.reset(new_seed)
            return
        array = np.asarray(counts)
        if array.dtype.kind not in ("iu" if self._dtype.kind == "i" else "iuf"):
            raise TypeError(f"counts: expected dtype {self._dtype}, got {array.dtype}")
        shape = (self.n_replicas, self.model.n_states)
        if array.shape not in (shape, shape[1:]):
            raise ValueError(f"counts: expected shape {shape} or {shape[1:]}, got {array.shape}")
        if array.dtype.kind == "u" and array.size and array.max() > 2**53:
            raise OverflowError(f"counts: at most 2^53, got {array.max()}")
        full = np.array(np.broadcast_to(array, shape), dtype=self._dtype, order="C")
        self._core.set_counts(full, new_seed)

    def step(self, probs: ArrayLike) -> Step:
        """Play one step with any policy given as probabilities.

        Parameters
        ----------
        probs
            `(B, S, A)` or `(S, A)` action probabilities; see `TabularPolicy` for what rows may be.

        Returns
        -------
        Step
            Team actions and rewards; the new counts are in `counts`.

        Raises
        ------
        ValueError
            Naming the first wrong entry.
        ModelError
            If the local function misbehaves; the simulator is then as it was.
        """
        if isinstance(probs, FunctionPolicy):
            raise TypeError("probs: expected an array; play a FunctionPolicy with rollout")
        table = self._table(probs)
        shape = (1, self.n_replicas, self.model.n_states)
        actions = np.zeros((*shape, self.model.n_actions), self._dtype)
        rewards = np.zeros(shape)
        arrays = {"counts": None, "actions": actions, "rewards": rewards}
        self._play(table, 1, False, arrays | {"restarted": None, "flows": None})
        return Step(actions[0], rewards[0])

    def rollout(
        self,
        policy: Policy,
        n_steps: int,
        restart: Literal["chain"] | None = None,
        record: Collection[Recorded] = ("counts", "actions", "rewards"),
        out: Rollout | None = None,
    ) -> Rollout:
        """Play `n_steps` steps, the whole loop in the core.

        Parameters
        ----------
        policy
            A policy, or an array `(S, A)` or `(B, S, A)` of probabilities. The teams of an
            `EnergyPolicy` stay random, so it has no flow: play its `individual` at `N = inf`.
        n_steps
            Number of steps `T`.
        restart
            `"chain"` restarts each replica from `P_0` with probability `1 - gamma` after every
            step: the law of (counts, actions) then tends to `sigma` (4.2), within `gamma^t` in
            total variation after `t` steps. None never restarts.
        record
            What to record: any of "counts", "actions", "rewards", "flows". With `()` the cost of a
            step is that of its occupied states; a call costs O(B S) besides.
        out
            An earlier rollout of the same sizes, whose arrays are filled again.

        Returns
        -------
        Rollout
            The recorded arrays.

        Raises
        ------
        ValueError
            If an argument is wrong.
        ModelError
            If the local function misbehaves, naming replica, step, state, action and value. After
            any exception the simulator is as it was before the call.
        """
        steps = integer("n_steps", n_steps, 0, 2**48)
        if restart is not None and not (isinstance(restart, str) and restart == "chain"):
            raise ValueError(f'restart: expected None or "chain", got {restart!r}')
        wanted = self._wanted(record)
        chain = restart == "chain"
        if out is not None and not isinstance(out, Rollout):
            raise TypeError(f"out: expected a Rollout, got {type(out).__name__}")
        if isinstance(policy, TabularPolicy) and not policy.stationary:
            if chain:
                raise ValueError("policy: the restart chain needs one that does not depend on time")
            if steps > len(policy.probs):
                raise ValueError(f"probs: holds {len(policy.probs)} steps, {steps} were asked for")
        arrays = self._empty(steps, wanted) if out is None else self._reused(out, steps, wanted)
        if isinstance(policy, FunctionPolicy):
            self._play_function(policy, steps, chain, arrays, used=out is not None)
        else:
            self._play(self._table(policy), steps, chain, arrays, used=out is not None)
        return Rollout(**{name: arrays[name] for name in arrays})

    def visitation(self, policy: Policy, n_draws: int) -> Visitation:
        """Draw independently and exactly from the discounted visitation law `sigma` (4.2).

        Each draw starts a fresh episode from `P_0` and reads it at a geometric time, which is never
        truncated. The counts and the step counter of the simulator are untouched; every call goes
        on with new draws.

        Parameters
        ----------
        policy
            A policy that does not depend on time, or an array of probabilities.
        n_draws
            Number of draws `D` for each replica.

        Returns
        -------
        Visitation
            The draws.

        Raises
        ------
        ValueError
            If an argument is wrong.
        TypeError
            If `policy` is a `FunctionPolicy`: use `rollout(..., restart="chain")`.
        ModelError
            If the local function misbehaves.
        """
        draws = integer("n_draws", n_draws, 0, 2**32)
        if isinstance(policy, FunctionPolicy):
            raise TypeError(
                "policy: visitation runs in the core and cannot call a FunctionPolicy; use "
                'rollout(policy, n_steps, restart="chain")'
            )
        if isinstance(policy, TabularPolicy) and not policy.stationary:
            raise ValueError("policy: sigma needs a policy that does not depend on time")
        shape = (draws, self.n_replicas, self.model.n_states)
        arrays: dict[str, Any] = {
            "counts": np.zeros(shape, self._dtype),
            "actions": np.zeros((*shape, self.model.n_actions), self._dtype),
            "rewards": np.zeros(shape),
            "next_counts": np.zeros(shape, self._dtype),
            "horizon": np.zeros(shape[:2], np.int64),
        }
        with self.model.explaining():
            self._core.visitation(self._table(policy), draws, arrays)
        return Visitation(**arrays)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed simulator needs to go on with the same bits.

        Returns
        -------
        dict
            `counts` (a copy), `seed`, `n_steps`, `n_resets`, `n_episodes`, `n_agents`,
            `first_replica` and the `fingerprint` of the model: numbers, one string and one array.
        """
        seed, steps, resets, episodes = self._core.position
        return {
            "counts": self.counts.copy(),
            "seed": seed,
            "n_steps": steps,
            "n_resets": resets,
            "n_episodes": episodes,
            "n_agents": self.n_agents,
            "first_replica": self.first_replica,
            "fingerprint": self.model.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, bit for bit.

        Raises
        ------
        ValueError
            If the state is of another model, number of agents, of replicas or first replica.
        KeyError
            If an entry is missing.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a dict, got {type(state).__name__}")
        for name, own in (
            ("fingerprint", self.model.fingerprint),
            ("n_agents", self.n_agents),
            ("first_replica", self.first_replica),
        ):
            if state[name] != own:
                raise ValueError(f"state[{name!r}]: expected {own!r}, got {state[name]!r}")
        seed, *position = (
            integer(f"state[{name!r}]", np.asarray(state[name])[()], 0, limit)
            for name, limit in (
                ("seed", 2**64),
                ("n_steps", 2**48),
                ("n_resets", 2**48),
                ("n_episodes", 2**48),
            )
        )
        counts = np.asarray(state["counts"])
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"state['counts']: expected shape {self.counts.shape}, got {counts.shape}"
            )
        self.reset(counts=counts)
        self._core.restore(seed, *position)

    def __repr__(self) -> str:
        """Show the sizes and the position."""
        return (
            f"Simulator(n_agents={self.n_agents}, n_replicas={self.n_replicas}, "
            f"n_states={self.model.n_states}, seed={self.seed}, n_steps={self.n_steps})"
        )

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: the state of a simulator is its `state_dict`."""
        raise TypeError(
            "a Simulator cannot be pickled or copied; make another one and give it state_dict()"
        )

    def _table(self, policy: Policy) -> Any:
        """Convert a policy to what the core takes."""
        core = getattr(policy, "_core", None)
        if isinstance(core, (_core.TabularPolicy, _core.NetworkPolicy)):
            return core
        probs = as_probabilities(policy)  # type: ignore[arg-type]
        sizes = (self.model.n_states, self.model.n_actions)
        if probs.shape not in (sizes, (self.n_replicas, *sizes)):
            raise ValueError(
                f"probs: expected shape {sizes} or {(self.n_replicas, *sizes)}, got {probs.shape}"
            )
        if np.may_share_memory(probs, self.counts):
            probs = probs.copy()
        return probs.reshape(1, -1, *sizes)

    def _wanted(self, record: Collection[Recorded]) -> tuple[str, ...]:
        if not isinstance(record, Iterable):
            raise TypeError(f"record: expected names among {_RECORDABLE}, got {record!r}")
        names = (record,) if isinstance(record, str) else tuple(record)
        for name in names:
            if name not in _RECORDABLE:
                raise ValueError(f"record: expected any of {_RECORDABLE}, got {name!r}")
        return names

    def _shapes(self, steps: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        replicas, model = self.n_replicas, self.model
        return {
            "counts": ((steps + 1, replicas, model.n_states), self._dtype),
            "actions": ((steps, replicas, model.n_states, model.n_actions), self._dtype),
            "rewards": ((steps, replicas, model.n_states), np.dtype(np.float64)),
            "restarted": ((steps, replicas), np.dtype(np.bool_)),
            "flows": ((steps, replicas, len(model.graph.indices)), self._dtype),
        }

    def _empty(self, steps: int, wanted: tuple[str, ...]) -> dict[str, Any]:
        return {
            name: np.zeros(shape, dtype) if name in wanted or name == "restarted" else None
            for name, (shape, dtype) in self._shapes(steps).items()
        }

    def _reused(self, out: Rollout, steps: int, wanted: tuple[str, ...]) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        for name, (shape, dtype) in self._shapes(steps).items():
            array = getattr(out, name)
            if name not in wanted and name != "restarted":
                array = None
            elif array is None or array.shape != shape or array.dtype != dtype:
                got = None if array is None else (array.shape, str(array.dtype))
                raise ValueError(f"out.{name}: expected {(shape, str(dtype))}, got {got}")
            elif not array.flags.carray:
                raise ValueError(f"out.{name}: expected a C-contiguous writeable array")
            arrays[name] = array
        return arrays

    def _play(
        self, table: Any, steps: int, chain: bool, arrays: dict[str, Any], *, used: bool = False
    ) -> None:
        """Run the core; it clears arrays that were used before, once it has accepted the call."""
        with self.model.explaining():
            self._core.rollout(table, steps, chain, arrays, used)

    def _play_function(
        self,
        policy: FunctionPolicy,
        steps: int,
        chain: bool,
        arrays: dict[str, Any],
        *,
        used: bool,
    ) -> None:
        """Step from Python, asking the policy before each; all or nothing."""
        if steps == 0 and arrays["counts"] is not None:
            arrays["counts"][0] = self.counts
        with self._undone_on_error():
            for t in range(steps):
                seen = self.counts.view()
                seen.flags.writeable = False
                position = self._core.position
                table = self._table(policy.function(seen, self.n_agents))
                if self._core.position != position:
                    raise RuntimeError("policy: the function advanced the simulator that asked it")
                length = {"counts": 2}
                part = {
                    name: None if array is None else array[t : t + length.get(name, 1)]
                    for name, array in arrays.items()
                }
                self._play(table, 1, chain, part, used=used)

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        before, position = self.counts.copy(), self._core.position
        try:
            yield
        except BaseException:
            self._core.set_counts(before, None)
            self._core.restore(*position)
            raise


def _threads(threads: Any) -> int:
    if threads is not None:
        return integer("threads", threads, 1, 2**16)
    text = os.environ.get("LTDE_NUM_THREADS")
    if text is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    try:
        return integer("LTDE_NUM_THREADS", int(text), 1, 2**16)
    except ValueError:
        raise ValueError(
            f"LTDE_NUM_THREADS: expected an integer in [1, 65536), got {text!r}"
        ) from None

"""The contenders of the simulation benchmark: ltde and the ways to do the same work without it.

Import after `report.use_one_thread`. A contender holds its own state; each call makes `steps`
steps, the counts of one feeding the next, and evaluates no policy or model that could have been
tabulated beforehand (only ltde, and a loop that is named so, call the compiled local function).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from workload import N_ACTIONS, N_NEXT, Network, Workload, local

LTDE_STEP = "ltde step"
LTDE_ROLLOUT = "ltde rollout"
NUMPY_MULTINOMIAL = "numpy multinomial"

MAX_AGENTS = 16_000_000
"""Per-agent simulation is left out above this many agents in all replicas."""

ROLLOUT_STEPS = 10
SEED = 1

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass
class Contender:
    """A named way to simulate.

    Attributes
    ----------
    name : str
        Shown in the tables.
    advance : callable
        Make `steps` steps.
    counts : callable
        Return the present counts (B, S), to check that no agent is lost.
    steps : int
        Steps in one call of `advance`.
    """

    name: str
    advance: Callable[[], object]
    counts: Callable[[], NDArray[Any]]
    steps: int = 1


def conditional(prob: Floats) -> Floats:
    """Turn categories (..., K) into the K - 1 conditional binomial probabilities (K - 1, ...)."""
    suffix = np.cumsum(prob[..., ::-1], axis=-1)[..., ::-1]
    chain = np.divide(prob, suffix, out=np.zeros_like(prob), where=suffix > 0)
    return np.ascontiguousarray(np.moveaxis(chain[..., :-1], -1, 0).clip(0.0, 1.0))


def _chain_probabilities(network: Network) -> tuple[Floats, Floats]:
    """Return those of the policy (A - 1, B, S) and of the next states (K - 1, B, S, A)."""
    onward = conditional(network.transition)[:, None]
    shape = (N_NEXT - 1, network.n_replicas, network.n_states, N_ACTIONS)
    return conditional(network.policy), np.ascontiguousarray(np.broadcast_to(onward, shape))


def ltde(work: Workload) -> Iterator[Contender]:
    """Yield ltde through its public API: one step at a time, and in rollouts."""
    import ltde

    network = work.network
    model = _ltde_model(network)

    def simulator() -> Any:
        sim = ltde.Simulator(model, work.n_agents, network.n_replicas, seed=SEED, threads=1)
        sim.reset(counts=work.counts)
        return sim

    stepped, rolled = simulator(), simulator()
    policy = ltde.TabularPolicy(network.policy[0])
    yield Contender(LTDE_STEP, lambda: stepped.step(network.policy), lambda: stepped.counts)
    yield Contender(
        LTDE_ROLLOUT,
        lambda: rolled.rollout(policy, ROLLOUT_STEPS, record=()),
        lambda: rolled.counts,
        ROLLOUT_STEPS,
    )


@cache
def _ltde_model(network: Network) -> Any:
    import ltde

    graph = ltde.Graph.grid(network.rows, network.cols)
    np.testing.assert_array_equal(graph.indices, network.indices)
    return ltde.NetworkedModel(
        graph,
        N_ACTIONS,
        local,
        edge=network.edge,
        initial=np.full(network.n_states, 1 / network.n_states),
        discount=0.9,
        reward_range=(0.0, 1.0),
    )


def numpy_multinomial(work: Workload) -> Iterator[Contender]:
    """Yield ``Generator.multinomial`` with each of two bit generators."""
    network = work.network
    for bits in (np.random.PCG64, np.random.SFC64):
        rng = np.random.Generator(bits(SEED))
        state = [work.counts]

        def advance(rng: np.random.Generator = rng, state: list[Counts] = state) -> None:
            actions = rng.multinomial(state[0], network.policy)
            moves = rng.multinomial(actions, network.transition)
            state[0] = network.gather(moves.sum(axis=2))

        yield Contender(
            f"{NUMPY_MULTINOMIAL} {bits.__name__}", advance, lambda state=state: state[0]
        )


def numpy_binomial(work: Workload) -> Iterator[Contender]:
    """Yield a chain of ``Generator.binomial`` calls, vectorised over everything else."""
    network = work.network
    rng = np.random.Generator(np.random.SFC64(SEED))
    act, onward = _chain_probabilities(network)
    counts = work.counts

    def split(left: Counts, chain: Floats) -> Counts:
        parts = np.empty((*left.shape, len(chain) + 1), np.int64)
        for j, prob in enumerate(chain):
            parts[..., j] = rng.binomial(left, prob)
            left = left - parts[..., j]
        parts[..., -1] = left
        return parts

    def advance() -> None:
        nonlocal counts
        counts = network.gather(split(split(counts, act), onward).sum(axis=2))

    yield Contender("numpy binomial chain", advance, lambda: counts)


def torch_binomial(work: Workload) -> Iterator[Contender]:
    """Yield a chain of ``torch.binomial`` calls in float64."""
    import torch

    torch.set_num_threads(1)
    network = work.network
    rng = torch.Generator().manual_seed(SEED)
    act, onward = map(torch.from_numpy, _chain_probabilities(network))
    moves = torch.from_numpy(network.moves)
    counts = torch.from_numpy(work.counts).double()

    def split(left: torch.Tensor, chain: torch.Tensor) -> torch.Tensor:
        parts = []
        for prob in chain:
            parts.append(torch.binomial(left, prob, generator=rng))
            left = left - parts[-1]
        return torch.stack([*parts, left], dim=-1)

    def advance() -> None:
        nonlocal counts
        leaving = split(split(counts, act), onward).sum(dim=2)
        arrived = torch.zeros(counts.numel(), dtype=torch.float64)
        counts = arrived.index_add_(0, moves, leaving.flatten()).view_as(counts)

    yield Contender("torch binomial chain", advance, lambda: counts.numpy())


def jax_binomial(work: Workload) -> Iterator[Contender]:
    """Yield a compiled chain of ``jax.random.binomial`` calls in float64 (float32 loses agents)."""
    import jax

    jax.config.update("jax_enable_x64", True)
    network = work.network
    act, onward = map(jax.numpy.asarray, _chain_probabilities(network))
    moves = jax.numpy.asarray(network.moves)
    state = (jax.random.key(SEED), jax.numpy.asarray(work.counts, dtype="float64"))
    step = _jax_step()

    def advance() -> None:
        nonlocal state
        state = step(*state, act, onward, moves)
        state[1].block_until_ready()

    yield Contender("JAX binomial chain", advance, lambda: np.asarray(state[1]))


@cache
def _jax_step() -> Any:
    import jax
    import jax.numpy as jnp

    def split(key: Any, left: Any, chain: Any) -> Any:
        parts = []
        for subkey, prob in zip(jax.random.split(key, len(chain)), chain, strict=True):
            parts.append(jax.random.binomial(subkey, left, prob, dtype=jnp.float64))
            left = left - parts[-1]
        return jnp.stack([*parts, left], axis=-1)

    @jax.jit
    def step(key: Any, counts: Any, act: Any, onward: Any, moves: Any) -> Any:
        key, first, second = jax.random.split(key, 3)
        leaving = split(second, split(first, counts, act), onward).sum(axis=2)
        arrived = jnp.zeros(counts.size).at[moves].add(leaving.ravel())
        return key, arrived.reshape(counts.shape)

    return step


def numba_agents(work: Workload) -> Iterator[Contender]:
    """Yield compiled loops over the agents: two uniforms each, against cumulative thresholds.

    Those of the next states come from a table, or from the local function as ltde calls it, once
    for each occupied state in each step, but without its checks.
    """
    network = work.network
    if work.n_agents * network.n_replicas > MAX_AGENTS:
        return
    indptr, indices, edge = network.indptr, network.indices, network.edge
    policy = np.cumsum(network.policy, axis=2)
    rows = np.zeros((network.n_states, N_NEXT), np.int32)
    for s in range(network.n_states):
        rows[s, : indptr[s + 1] - indptr[s]] = indices[indptr[s] : indptr[s + 1]]
    table, room = np.cumsum(network.transition, axis=2), np.empty(network.transition.shape)
    laws = {
        "numba loop over agents": (False, table, network.next_state.astype(np.int32)),
        "numba loop, local function": (True, room, rows),
    }
    walk = _numba_walk()
    for name, (evaluated, thresholds, next_state) in laws.items():
        rng = np.random.default_rng(SEED)
        homes = np.arange(network.n_states, dtype=np.int32)
        where = np.stack([rng.permutation(np.repeat(homes, row)) for row in work.counts])
        bits = rng.integers(2**64, size=4, dtype=np.uint64)
        counts = work.counts.copy()
        data = (where, policy, indptr, indices, edge, evaluated, thresholds, next_state)
        yield Contender(name, partial(walk, *data, bits, counts), lambda counts=counts: counts)


@cache
def _numba_walk() -> Any:
    import numba

    law = numba.njit(local)

    @numba.njit
    def uniform(s0, s1, s2, s3):  # type: ignore[no-untyped-def]
        """Draw from [0, 1) with xoshiro256+, whose state stays in registers."""
        value = ((s0 + s3) >> np.uint64(11)) * 2.0**-53
        shifted = s1 << np.uint64(17)
        s2 ^= s0
        s3 ^= s1
        s1 ^= s2
        s0 ^= s3
        s2 ^= shifted
        s3 = (s3 << np.uint64(45)) | (s3 >> np.uint64(19))
        return value, s0, s1, s2, s3

    @numba.njit
    def evaluate(counts, n_agents, indptr, indices, edge, thresholds):  # type: ignore[no-untyped-def]
        """Write the thresholds of the occupied states."""
        mu, node, reward = np.empty(N_NEXT), np.empty(0), np.empty(N_ACTIONS)
        memory = np.empty(N_ACTIONS * N_NEXT)
        for s in range(counts.size):
            if counts[s] == 0:
                continue
            row = indices[indptr[s] : indptr[s + 1]]
            for j in range(row.size):
                mu[j] = counts[row[j]] / n_agents
            prob = memory[: N_ACTIONS * row.size].reshape((N_ACTIONS, row.size))
            prob[:] = 0.0
            reward[:] = 0.0
            law(s, mu[: row.size], node, edge[indptr[s] : indptr[s + 1]], prob, reward)
            for a in range(N_ACTIONS):
                total = 0.0
                for j in range(N_NEXT - 1):
                    total = total + prob[a, j] if j < row.size - 1 else np.inf
                    thresholds[s, a, j] = total

    @numba.njit
    def walk(  # type: ignore[no-untyped-def]
        where, policy, indptr, indices, edge, evaluated, thresholds, next_state, bits, counts
    ):
        s0, s1, s2, s3 = bits
        for b in range(where.shape[0]):
            if evaluated:
                evaluate(counts[b], where.shape[1], indptr, indices, edge, thresholds)
            counts[b] = 0
            for i in range(where.shape[1]):
                s = where[b, i]
                u, s0, s1, s2, s3 = uniform(s0, s1, s2, s3)
                action = 0
                for j in range(N_ACTIONS - 1):
                    action += u >= policy[b, s, j]
                u, s0, s1, s2, s3 = uniform(s0, s1, s2, s3)
                k = 0
                for j in range(N_NEXT - 1):
                    k += u >= thresholds[s, action, j]
                where[b, i] = next_state[s, k]
                counts[b, where[b, i]] += 1
        bits[0], bits[1], bits[2], bits[3] = s0, s1, s2, s3

    return walk


PEERS: dict[str, tuple[str, Callable[[Workload], Iterator[Contender]]]] = {
    "ltde": ("ltde", ltde),
    "numpy": ("numpy", numpy_multinomial),
    "numpy-binomial": ("numpy", numpy_binomial),
    "torch": ("torch", torch_binomial),
    "jax": ("jax", jax_binomial),
    "numba": ("numba", numba_agents),
}
"""By the name used on the command line: the package that is needed, and the contenders."""


def installed(peer: str) -> bool:
    """Say whether the package that a peer needs is there."""
    return importlib.util.find_spec(PEERS[peer][0]) is not None

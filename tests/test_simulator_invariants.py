"""What holds for every draw, whatever the random numbers; no p-values here."""

import hypothesis.strategies as st
import ltde
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from models import ring_model
from random_models import (
    N_ACTIONS,
    data_model,
    random_model,
    random_weights,
    softmax_float32,
)

# The first example compiles the local function.
patient = settings(deadline=None)
seeds = st.integers(0, 2**32 - 1)
populations = st.sampled_from([1, 2, 17, 10**6, 10**12, 2**53 - 1, 2**53])


def assert_possible(model, n_agents, probs, rollout):
    """Check every number of a rollout recorded whole, without restarts."""
    mask, indptr, indices = model.action_mask, model.graph.indptr, model.graph.indices
    row = np.repeat(np.arange(model.n_states), np.diff(indptr))
    assert (rollout.counts >= 0).all()
    assert (rollout.actions >= 0).all()
    assert (rollout.flows >= 0).all()
    assert (rollout.counts.sum(axis=-1) == n_agents).all()
    np.testing.assert_array_equal(rollout.actions.sum(axis=-1), rollout.counts[:-1])
    assert (rollout.actions[..., ~mask] == 0).all()
    assert (rollout.actions[..., np.asarray(probs) == 0.0] == 0).all()
    np.testing.assert_array_equal(
        np.add.reduceat(rollout.flows, indptr[:-1], axis=-1), rollout.counts[:-1]
    )
    for t, b in np.ndindex(rollout.rewards.shape[:2]):
        arrived = np.zeros(model.n_states, dtype=np.int64)
        np.add.at(arrived, indices, rollout.flows[t, b])
        np.testing.assert_array_equal(arrived, rollout.counts[t + 1, b])
        prob, _ = model.evaluate(rollout.counts[t, b] / n_agents)
        # An edge is used only by agents whose action gives it a positive probability.
        open_to = ((prob > 0.0) & (rollout.actions[t, b, row].T > 0)).any(axis=0)
        assert (rollout.flows[t, b, ~open_to] == 0).all()
    assert np.isfinite(rollout.rewards).all()
    assert (rollout.rewards[rollout.counts[:-1] == 0] == 0.0).all()


@patient
@given(seeds, st.integers(1, 12), populations, st.floats(0.1, 60.0))
def test_a_rollout_holds_only_what_is_possible(seed, n_states, n_agents, spread):
    rng = np.random.default_rng(seed)
    model = random_model(rng, n_states)
    probs = softmax_float32(rng, model.action_mask, spread)
    simulator = ltde.Simulator(model, n_agents, n_replicas=2, seed=seed)
    record = ("counts", "actions", "rewards", "flows")
    assert_possible(model, n_agents, probs, simulator.rollout(probs, 3, record=record))


@pytest.mark.parametrize("mutant", ["agents", "mask", "flow", "edge", "reward"])
def test_the_check_of_what_is_possible_sees_mutants(mutant):
    graph = ltde.Graph.path(3)
    weights = random_weights(np.random.default_rng(0), graph)
    weights[0] = 0.0  # nobody stays in state 0
    weights[1] = 1.0
    mask = np.ones((3, N_ACTIONS), dtype=bool)
    mask[:, 2] = False
    model = data_model(graph, weights, mask, initial=np.array([10, 0, 0]))
    probs = np.tile([0.5, 0.5, 0.0], (3, 1))
    simulator = ltde.Simulator(model, 10, seed=1)
    record = ("counts", "actions", "rewards", "flows")
    rollout = simulator.rollout(probs, 2, record=record)
    assert_possible(model, 10, probs, rollout)
    if mutant == "agents":
        rollout.counts[1, 0, 0] += 1
    elif mutant == "mask":
        rollout.actions[0, 0, 0] = [5, 4, 1]
    elif mutant == "flow":
        rollout.flows[1] = np.roll(rollout.flows[1], 1)
    elif mutant == "edge":  # one agent stays in state 0, and all sums are right
        rollout.flows[0, 0, :2] += [1, -1]
        rollout.counts[1, 0, :2] += [1, -1]
    else:
        rollout.rewards[0, 0, 2] = 0.1
    with pytest.raises(AssertionError):
        assert_possible(model, 10, probs, rollout)


@patient
@given(seeds, st.integers(1, 12), populations)
def test_draws_from_sigma_and_restarts_hold_only_what_is_possible(seed, n_states, n_agents):
    rng = np.random.default_rng(seed)
    model = random_model(rng, n_states, discount=0.5)
    probs = softmax_float32(rng, model.action_mask, 5.0)
    simulator = ltde.Simulator(model, n_agents, n_replicas=2, seed=seed)
    draws = simulator.visitation(probs, 3)
    rollout = simulator.rollout(probs, 4, restart="chain")
    for counts in (draws.counts, draws.next_counts, rollout.counts):
        assert (counts >= 0).all()
        assert (counts.sum(axis=-1) == n_agents).all()
    for x in (draws, rollout):
        assert (x.actions >= 0).all()
        assert (x.actions[..., probs == 0.0] == 0).all()
        assert np.isfinite(x.rewards).all()
    np.testing.assert_array_equal(draws.actions.sum(axis=-1), draws.counts)
    np.testing.assert_array_equal(rollout.actions.sum(axis=-1), rollout.counts[:-1])


@patient
@given(seeds, populations, st.lists(st.sampled_from([0.0, 0.0, 1.0, 1e-300, 0.3]), min_size=2))
def test_the_start_leaves_states_of_probability_zero_empty(seed, n_agents, weights):
    weights = np.array([*weights, 1.0])
    law = weights / weights.sum()
    model = data_model(ltde.Graph(len(law), []), np.ones((len(law), N_ACTIONS)), initial=law)
    counts = ltde.Simulator(model, n_agents, n_replicas=3, seed=seed).counts
    assert (counts[:, law == 0.0] == 0).all()
    assert (counts.sum(axis=1) == n_agents).all()


# Whose random numbers are whose.


def disjoint(graph, weights, places, n_states):
    """Put the same states at other places of a graph of n_states, the others isolated."""
    row = np.repeat(np.arange(graph.n_states), np.diff(graph.indptr))
    edges = np.stack([places[row], places[graph.indices]], axis=1)
    large = ltde.Graph(n_states, edges)
    spread = np.ones((large.indices.size, weights.shape[1]))
    for s, place in enumerate(places):
        spread[large.indptr[place] : large.indptr[place + 1]] = weights[
            graph.indptr[s] : graph.indptr[s + 1]
        ]
    return large, spread


def small_system(seed, n_states=9):
    rng = np.random.default_rng(seed)
    graph = ltde.Graph(n_states, rng.integers(0, n_states, (2 * n_states, 2)))
    counts = rng.integers(0, 200, n_states)
    counts[rng.integers(0, n_states)] += 1
    return graph, random_weights(rng, graph), counts, rng


def play(graph, weights, counts, probs, coupling=1.0, seed=5):
    model = data_model(graph, weights, coupling=coupling, initial=counts)
    simulator = ltde.Simulator(model, int(counts.sum()), seed=seed)
    return simulator.rollout(probs, 4)


@patient
@given(seeds)
def test_empty_states_draw_nothing(seed):
    graph, weights, counts, rng = small_system(seed)
    # In order inside the first block of 64 states, with empty states between and behind them.
    places = np.sort(rng.choice(64, graph.n_states, replace=False))
    probs = softmax_float32(rng, np.ones((200, N_ACTIONS), dtype=bool), 1.0)
    alone = play(graph, weights, counts, probs[places])
    large, spread = disjoint(graph, weights, places, 200)
    full = np.zeros(200, dtype=np.int64)
    full[places] = counts
    among = play(large, spread, full, probs)
    for name in ("counts", "actions", "rewards"):
        one, many = getattr(alone, name), getattr(among, name)
        np.testing.assert_array_equal(one, many[:, :, places])
        assert not np.delete(many, places, axis=2).any()


@patient
@given(seeds)
def test_agents_in_other_blocks_do_not_change_the_draws_of_a_block(seed):
    # Chances do not depend on densities here, as N differs.
    graph, weights, counts, rng = small_system(seed)
    places = np.arange(graph.n_states)
    probs = softmax_float32(rng, np.ones((200, N_ACTIONS), dtype=bool), 1.0)
    alone = play(graph, weights, counts, probs[places], coupling=0.0)
    large, spread = disjoint(graph, weights, places, 200)
    full = np.zeros(200, dtype=np.int64)
    full[places] = counts
    full[64:] = rng.integers(0, 100, 136)
    among = play(large, spread, full, probs, coupling=0.0)
    for name in ("counts", "actions"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(among, name)[:, :, places])
    assert play(large, spread, full, probs, 0.0, 6).actions.tolist() != among.actions.tolist()


@patient
@given(seeds, st.integers(2, 12))
def test_relabelling_the_states_relabels_transitions_and_rewards(seed, n_states):
    rng = np.random.default_rng(seed)
    model = random_model(rng, n_states)
    new = rng.permutation(n_states)  # state s becomes new[s]
    graph = model.graph
    row = np.repeat(np.arange(n_states), np.diff(graph.indptr))
    relabelled_graph = ltde.Graph(n_states, np.stack([new[row], new[graph.indices]], axis=1))
    relabelled_row = np.repeat(np.arange(n_states), np.diff(relabelled_graph.indptr))
    # Position in the new CSR order of each old edge.
    order = np.lexsort((new[graph.indices], new[row]))
    old = np.argsort(new)
    relabelled = ltde.NetworkedModel(
        relabelled_graph,
        N_ACTIONS,
        model.local,
        node=model.node[old],
        edge=model.edge[order],
        action_mask=model.action_mask[old],
    )
    np.testing.assert_array_equal(new[row][order], relabelled_row)
    mu = rng.dirichlet(np.ones(n_states))
    prob, reward = model.evaluate(mu)
    relabelled_prob, relabelled_reward = relabelled.evaluate(mu[old])
    # Sums over at most 12 neighbours come in another order: 12 roundings.
    np.testing.assert_allclose(relabelled_prob, prob[:, order], rtol=12 * 2.0**-52)
    np.testing.assert_allclose(relabelled_reward, reward[old], rtol=12 * 2.0**-52)


# Layouts and dtypes of input.


def _strided(array):
    room = np.full((*array.shape[:-1], 2 * array.shape[-1]), -7, dtype=array.dtype)
    room[..., ::2] = array
    return room[..., ::2]


LAYOUTS = {
    "strided": _strided,
    "fortran": np.asfortranarray,
    "backwards": lambda array: array[::-1].copy()[::-1],
    "list": lambda array: array.tolist(),
    "torch": lambda array: torch.from_numpy(array.copy()),
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "swapped": lambda array: array.astype(array.dtype.newbyteorder()),
}


def every_output(layout, probs_dtype=np.float64):
    """All that a simulator returns when every array input goes through `layout`."""
    rng = np.random.default_rng(3)
    source = random_model(rng, 7)
    model = ltde.NetworkedModel(
        source.graph,
        N_ACTIONS,
        source.local,
        node=layout(source.node.copy()),
        edge=layout(source.edge.copy()),
        action_mask=layout(source.action_mask.copy()),
        initial=layout(np.array([[70, 0, 0, 0, 0, 0, 0], [10] * 7])),
        discount=0.5,
    )
    probs = softmax_float32(rng, source.action_mask, 1.0).astype(probs_dtype)
    simulator = ltde.Simulator(model, 70, n_replicas=2, seed=9)
    collected = [*model.evaluate(layout(rng.dirichlet(np.ones(7), 3)))]
    simulator.reset(counts=layout(np.array([[1, 2, 3, 4, 5, 6, 49], [70, 0, 0, 0, 0, 0, 0]])))
    collected += [simulator.counts.copy(), simulator.step(layout(probs)).actions]
    for policy in (
        ltde.TabularPolicy(layout(probs)),
        layout(np.stack([probs, probs])),
        ltde.FunctionPolicy(lambda counts, n: layout(probs)),
    ):
        rollout = simulator.rollout(policy, 3, restart="chain")
        collected += [rollout.counts, rollout.actions, rollout.rewards]
    collected.append(simulator.visitation(layout(probs), 4).counts)
    return model.fingerprint, collected


def assert_same_outputs(first, second):
    assert first[0] == second[0]
    for x, y in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_input_does_not_matter(layout):
    assert_same_outputs(every_output(LAYOUTS[layout]), every_output(lambda array: array))


@pytest.mark.parametrize("layout", ["strided", "torch"])
def test_float32_probabilities_give_the_bits_of_the_same_numbers_in_float64(layout):
    plain = every_output(lambda array: array)
    assert_same_outputs(every_output(LAYOUTS[layout], np.float32), plain)


def test_the_check_of_layouts_sees_rows_in_another_order():
    plain = every_output(lambda array: array)
    mutant = every_output(lambda array: array[::-1] if array.dtype == np.int64 else array)
    with pytest.raises(AssertionError):
        assert_same_outputs((mutant[0], plain[1]), mutant)
    with pytest.raises(AssertionError):
        assert_same_outputs((plain[0], mutant[1]), plain)


@pytest.mark.parametrize("n_agents", [1000, np.inf])
def test_input_arrays_are_not_changed(n_agents):
    model = ring_model()
    probs = np.full((2, 4, 3), 1.0 / 3.0)
    density = np.full((2, 4), 0.25)
    counts = density if n_agents == np.inf else (density * 1000).astype(np.int64)
    before = counts.copy()
    simulator = ltde.Simulator(model, n_agents, n_replicas=2, seed=1)
    simulator.reset(counts=counts)
    simulator.rollout(probs, 5)
    simulator.visitation(probs, 5)
    model.evaluate(density)
    assert (probs == 1.0 / 3.0).all()
    assert (density == 0.25).all()
    np.testing.assert_array_equal(counts, before)

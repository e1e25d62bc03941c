"""The same bits whatever the threads, the split of the work and the way there."""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys

import ltde
import numpy as np
import pytest
from ltde import _core
from models import MODELS, path_model, random_policy, ring_model, star_model
from statcheck import generator

RECORD = ("counts", "actions", "rewards", "flows")
POPULATIONS = [1, 1000, 10**12, np.inf]


def assert_same(first, second):
    """Compare two records, or two lists of arrays, bit for bit."""
    for x, y in zip(arrays_of(first), arrays_of(second), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def arrays_of(record):
    if isinstance(record, (list, tuple)):
        return [array for part in record for array in arrays_of(part)]
    if record is None or isinstance(record, np.ndarray):
        return [record]
    return [getattr(record, name) for name in type(record).__dataclass_fields__]


def policy_for(model):
    return random_policy(model, generator("reproducible"))


def part(rollout, steps, replicas=slice(None)):
    """List steps and replicas of a rollout, in the order of its fields."""
    longer = slice(steps.start, None if steps.stop is None else steps.stop + 1)
    return [rollout.counts[longer, replicas]] + [
        getattr(rollout, name)[steps, replicas]
        for name in ("actions", "rewards", "restarted", "flows")
    ]


def everything(model, n_agents, n_replicas, threads, first_replica=0, seed=11):
    """All that one simulator does, in one fixed order of calls."""
    simulator = ltde.Simulator(model, n_agents, n_replicas, seed, threads, first_replica)
    policy = policy_for(model)
    done = [simulator.counts.copy()]
    done.append(simulator.rollout(policy, 4, record=RECORD))
    done.append(simulator.rollout(ltde.TabularPolicy(policy), 6, restart="chain", record=RECORD))
    done.append(simulator.visitation(policy, 3))
    done.append(simulator.step(policy))
    simulator.reset()
    done.append(simulator.counts.copy())
    simulator.rollout(policy, 3, record=())
    done.append(simulator.counts.copy())
    return done


# Threads and replicas. 4 states: one block. 300 and 1000: several blocks, so that replicas that
# do not divide evenly over the threads run parallel over blocks.


@pytest.mark.parametrize("n_agents", POPULATIONS)
@pytest.mark.parametrize("n_replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("n_states", [4, 300, 1000])
def test_the_number_of_threads_does_not_matter(n_states, n_replicas, n_agents):
    model = ring_model(n_states, discount=0.7)
    one = everything(model, n_agents, n_replicas, 1)
    for threads in (2, 4):
        assert_same(one, everything(model, n_agents, n_replicas, threads))


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_threads_does_not_matter_in_any_model(name):
    initial = ltde.DirichletInitial(np.full(4, 0.5))
    model = MODELS[name](n_states=4, initial=initial, discount=0.5)
    for n_agents in (1000, np.inf):
        assert_same(everything(model, n_agents, 3, 1), everything(model, n_agents, 3, 2))


@pytest.mark.parametrize("n_agents", [30_000, np.inf])
def test_the_number_of_threads_does_not_matter_where_a_block_empties(n_agents):
    model = ring_model(300, discount=0.7)
    everywhere = np.full(300, 100 if n_agents < np.inf else 1 / 300)
    gap = everywhere.copy()
    gap[150:250] += gap[50:150]
    gap[50:150] = 0

    def counts(threads):
        simulator = ltde.Simulator(model, n_agents, 1, 5, threads)
        for start in (everywhere, gap):
            simulator.reset(counts=start[None])
            simulator.rollout(policy_for(model), 4, record=())
        return simulator.counts.copy()

    one = counts(1)
    assert not one[0, 64:128].any()  # a whole block
    np.testing.assert_array_equal(counts(2), one)


@pytest.mark.parametrize("n_agents", [1000, np.inf])
@pytest.mark.parametrize("n_states", [4, 300])
def test_replicas_together_or_apart(n_states, n_agents):
    model = ring_model(n_states, ltde.DirichletInitial(np.ones(n_states)), discount=0.7)
    together = arrays_of(everything(model, n_agents, 8, 2))
    for first, n in ((0, 3), (3, 1), (4, 4)):
        apart = arrays_of(everything(model, n_agents, n, 1, first))
        for whole, piece in zip(together, apart, strict=True):
            axis = whole.shape.index(8)  # no other axis before it has this length
            np.testing.assert_array_equal(whole.take(range(first, first + n), axis), piece)


@pytest.mark.parametrize("n_agents", [1000, np.inf])
@pytest.mark.parametrize("restart", [None, "chain"])
def test_one_long_rollout_or_many_short_ones(n_agents, restart):
    model = star_model(n_states=5, discount=0.7)
    policy = policy_for(model)

    def simulator():
        return ltde.Simulator(model, n_agents, n_replicas=3, seed=5)

    long = simulator().rollout(policy, 10, restart, RECORD)
    short = simulator()
    assert_same(
        part(long, slice(0, 4)), part(short.rollout(policy, 4, restart, RECORD), slice(0, 4))
    )
    nothing = short.rollout(policy, 0, restart, RECORD)
    np.testing.assert_array_equal(nothing.counts[0], long.counts[4])
    assert nothing.actions.shape == (0, 3, 5, 5)
    short.rollout(policy, 3, restart, record=())
    np.testing.assert_array_equal(short.counts, long.counts[7])
    rest = short.rollout(policy, 3, restart, RECORD)
    assert_same(part(long, slice(7, 10)), part(rest, slice(0, 3)))
    assert short.n_steps == 10


@pytest.mark.parametrize("n_agents", [1000, np.inf])
def test_steps_are_a_rollout_of_the_same_probabilities(n_agents):
    model = path_model(n_states=70)
    table = np.stack([random_policy(model, generator(f"step {t}")) for t in range(5)])
    first, second, third = (ltde.Simulator(model, n_agents, 2, seed=5) for _ in range(3))
    rollout = first.rollout(ltde.TabularPolicy(table), 5)
    policy = iter(table)
    stepped = second.rollout(ltde.FunctionPolicy(lambda counts, n: next(policy)), 5)
    assert_same(rollout, stepped)
    for t in range(5):
        probs = table[t] if t % 2 else np.stack([table[t]] * 2)
        step = third.step(probs)
        assert_same([rollout.actions[t], rollout.rewards[t]], step)
        np.testing.assert_array_equal(third.counts, rollout.counts[t + 1])


@pytest.mark.parametrize("n_agents", [1000, np.inf])
@pytest.mark.parametrize("restart", [None, "chain"])
def test_a_function_policy_gives_the_bits_of_the_table_that_it_returns(n_agents, restart):
    model = ring_model(300, discount=0.6)
    probs = np.stack([policy_for(model)] * 3)
    probs[1] = probs[1][:, ::-1]
    seen = []

    def function(counts, n):
        seen.append(counts.copy())
        assert n == n_agents
        return probs

    table, stepped = (ltde.Simulator(model, n_agents, 3, seed=2) for _ in range(2))
    first = table.rollout(probs, 5, restart, RECORD)
    second = stepped.rollout(ltde.FunctionPolicy(function), 5, restart, RECORD)
    assert_same(first, second)
    np.testing.assert_array_equal(np.array(seen), first.counts[:-1])


def test_what_is_recorded_does_not_matter():
    model = ring_model(300, discount=0.5)
    policy = policy_for(model)
    every = ltde.Simulator(model, 1000, 3, seed=1).rollout(policy, 4, "chain", RECORD)
    for size in range(5):
        for record in itertools.combinations(RECORD, size):
            simulator = ltde.Simulator(model, 1000, 3, seed=1, threads=2)
            rollout = simulator.rollout(policy, 4, "chain", record)
            for name in RECORD:
                if name in record:
                    assert_same([getattr(rollout, name)], [getattr(every, name)])
                else:
                    assert getattr(rollout, name) is None
            assert_same([rollout.restarted, simulator.counts], [every.restarted, every.counts[4]])


# Saving, loading, resetting.


def via_npz(state):
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file) as loaded:
        return dict(loaded)


def via_json(state):
    return json.loads(json.dumps(state | {"counts": state["counts"].tolist()}))


@pytest.mark.parametrize(
    "through",
    [dict, lambda s: pickle.loads(pickle.dumps(s)), via_npz, via_json],
    ids=["dict", "pickle", "npz", "json"],
)
@pytest.mark.parametrize("n_agents", [1000, np.inf])
def test_a_loaded_simulator_goes_on_with_the_same_bits(through, n_agents):
    model = ring_model(70, ltde.DirichletInitial(np.ones(70)), discount=0.6)
    policy = policy_for(model)
    seed = 2**64 - 1
    original = ltde.Simulator(model, n_agents, 2, seed=seed, first_replica=3)
    original.rollout(policy, 3)
    original.visitation(policy, 2)
    original.reset()
    original.rollout(policy, 2, "chain")
    state = through(original.state_dict())

    def go_on(simulator):
        done = [simulator.counts.copy(), simulator.rollout(policy, 4, "chain", RECORD)]
        done.append(simulator.visitation(policy, 3))
        simulator.reset()
        return [*done, simulator.counts.copy(), simulator.rollout(policy, 2)]

    loaded = ltde.Simulator(model, n_agents, 2, seed=0, first_replica=3)
    loaded.rollout(policy, 1)
    loaded.load_state_dict(state)
    assert (loaded.seed, loaded.n_steps) == (seed, 5)
    expected = go_on(original)
    assert_same(expected, go_on(loaded))
    loaded.load_state_dict(state)  # the state is a copy, and can be loaded again
    assert_same(expected, go_on(loaded))


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded():
    model, policy = ring_model(), policy_for(ring_model())
    simulator, twin = (ltde.Simulator(model, 1000, 2, seed=1) for _ in range(2))
    state = ltde.Simulator(model, 1000, 2, seed=8).state_dict()
    other = ltde.Simulator(ring_model(discount=0.5), 1000, 2).state_dict()
    wrong = [
        (other, ValueError, r"state\['fingerprint'\]"),
        (state | {"n_agents": 999}, ValueError, r"state\['n_agents'\]: expected 1000, got 999"),
        (state | {"first_replica": 2}, ValueError, r"state\['first_replica'\]: expected 0, got 2"),
        (state | {"counts": state["counts"][:1]}, ValueError, "counts"),
        (state | {"counts": state["counts"] + 1}, ValueError, r"counts\[0\].*1004"),
        (state | {"seed": -1}, ValueError, "seed.*-1"),
        ({k: v for k, v in state.items() if k != "n_resets"}, KeyError, "n_resets"),
        ({k: v for k, v in state.items() if k != "counts"}, KeyError, "counts"),
    ]
    for bad, error, message in wrong:
        with pytest.raises(error, match=message):
            simulator.load_state_dict(bad)
    assert (simulator.seed, simulator.n_steps) == (1, 0)
    assert_same(simulator.rollout(policy, 3), twin.rollout(policy, 3))


def test_reset_goes_on_counting_and_never_repeats_a_draw():
    model = ring_model(initial=ltde.DirichletInitial(np.ones(4)))
    policy = policy_for(model)
    simulator = ltde.Simulator(model, 10**9, seed=1)
    start = np.array([10**9, 0, 0, 0])
    starts, rollouts = [simulator.counts.copy()], []
    for i in range(4):
        simulator.reset()
        starts.append(simulator.counts.copy())
        simulator.reset(counts=start)
        np.testing.assert_array_equal(simulator.counts, [start])
        rollouts.append(simulator.rollout(policy, 1).actions)
        assert simulator.n_steps == i + 1
    for draws in (starts, rollouts):
        assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_reset_with_a_seed_gives_the_bits_of_that_seed():
    model = ring_model(initial=ltde.DirichletInitial(np.ones(4)))
    policy = policy_for(model)
    start = np.array([[500, 500, 0, 0]])
    simulator = ltde.Simulator(model, 1000, seed=1)
    simulator.reset(seed=7)
    assert simulator.seed == 7
    other = ltde.Simulator(model, 1000, seed=7)
    other.reset()
    np.testing.assert_array_equal(simulator.counts, other.counts)
    simulator.reset(counts=start)
    other.reset(counts=start)
    assert_same(simulator.rollout(policy, 3), other.rollout(policy, 3))
    simulator.reset(counts=start, seed=9)
    third = ltde.Simulator(model, 1000, seed=9)
    third.rollout(policy, 3)
    third.reset(counts=start)
    assert simulator.seed == 9
    assert_same(simulator.rollout(policy, 3), third.rollout(policy, 3))


def test_seeds_replicas_steps_and_calls_are_distinct():
    model = ring_model(initial=np.array([10**9, 0, 0, 0]), discount=0.5)
    policy = policy_for(model)
    draws = []
    for seed in (0, 1, 2**32, 2**64 - 1):
        simulator = ltde.Simulator(model, 10**9, 3, seed=seed)
        rollout = simulator.rollout(policy, 3, "chain")
        draws += list(rollout.actions.reshape(-1, 12))
        visits = [simulator.visitation(policy, 3) for _ in range(2)]
        draws += [x for visit in visits for x in visit.actions.reshape(-1, 12)]
    assert len({draw.tobytes() for draw in draws}) == len(draws) == 4 * (9 + 18)


def test_twice_the_same():
    model = path_model(n_states=70)
    assert_same(everything(model, 1000, 3, 2), everything(model, 1000, 3, 2))
    with pytest.raises(AssertionError):
        assert_same(everything(model, 1000, 3, 2), everything(model, 1000, 3, 2, seed=12))


# Counts edited in place.


@pytest.mark.parametrize("n_agents", [1000, np.inf])
def test_agents_moved_in_place_are_honoured(n_agents):
    model = ring_model(300)
    policy = policy_for(model)
    edited, told = (ltde.Simulator(model, n_agents, 2, seed=1) for _ in range(2))
    edited.rollout(policy, 2)
    told.rollout(policy, 2)
    moved = edited.counts.copy()
    moved[1, 5] += moved[1, 6:].sum()
    moved[1, 6:] = 0
    edited.counts[...] = moved
    told.reset(counts=moved)
    rollout = edited.rollout(policy, 3)
    np.testing.assert_array_equal(rollout.counts[0], moved)
    assert_same(rollout, told.rollout(policy, 3))


@pytest.mark.parametrize(
    ("n_agents", "index", "value", "message"),
    [
        (1000, (1, 2), 10**6, r"counts\[1\]: expected a sum of n_agents = 1000, got 100\d{4}"),
        (1000, (0, 3), -1, r"counts\[0, 3\]: expected a count >= 0, got -1"),
        (np.inf, (1, 2), 2.0, r"counts\[1\]: densities must sum to 1, got 2\."),
        (np.inf, (1, 2), np.nan, r"counts\[1, 2\]: expected a density >= 0, got NaN"),
    ],
)
def test_agents_made_in_place_are_refused(n_agents, index, value, message):
    model = ring_model()
    policy = policy_for(model)
    simulator, twin = (ltde.Simulator(model, n_agents, 2, seed=1) for _ in range(2))
    before = simulator.counts.copy()
    simulator.counts[index] = value
    for call in (
        lambda: simulator.step(policy),
        lambda: simulator.rollout(policy, 2),
        lambda: simulator.rollout(ltde.FunctionPolicy(lambda counts, n: policy), 2),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert simulator.n_steps == 0
    simulator.counts[...] = before
    assert_same(simulator.rollout(policy, 2), twin.rollout(policy, 2))


# Other processes, other generators.


def on_every_path(there):
    """Send what the models and networks of 1 to 9 actions do, and the instruction set."""
    done = []
    for model, n_agents in itertools.product([build(5) for build in MODELS.values()], POPULATIONS):
        done.append(everything(model, n_agents, 2, 1))
    graph, density = ltde.Graph.ring(9), np.linspace(0.0, 1.0, 9)
    for n_actions, width in itertools.product(range(1, 10), [1, 8, 13]):
        model = ltde.NetworkedModel(graph, n_actions, crowded, discount=0.9)
        policy = ltde.SoftmaxPolicy(model, width, tau=7.0, density_scale=9.0, seed=width)
        probs = np.zeros((1, 9, n_actions))
        policy._core.mean_action(density[None], False, probs)
        done.append(probs)
        if n_actions == 5:  # every size of a team
            for n_agents in (1, 10, 300, 10**6, np.inf):
                simulator = ltde.Simulator(model, n_agents, 2, 3, 1)
                done.append(simulator.rollout(policy, 6, record=RECORD))
    there.send((_core.instruction_set(), arrays_of(done)))
    there.close()


def crowded(s, mu, node, edge, prob, reward):
    for a in range(prob.shape[0]):
        for i in range(mu.size):
            prob[a, i] = 1.0 + a * i + mu[i]
        prob[a] /= prob[a].sum()
        reward[a] = -mu[0]


def sent_by(target, *args):
    """Run a function in a spawned process and return what it sends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*args, there))
    process.start()
    there.close()
    try:
        assert here.poll(100), "the spawned process sent nothing"
        return here.recv()
    finally:
        process.join(60)
        process.kill()
        assert process.exitcode == 0


def test_every_instruction_set_gives_the_same_bits(monkeypatch):
    widest = _core.instruction_set()
    if widest == "portable":
        pytest.skip("this processor has one path only")
    wide = sent_by(on_every_path)
    assert wide[0] == widest
    assert len(wide[1]) > 400
    names = ["portable", "AVX2", "AVX-512"]
    for name in names[: names.index(widest)]:
        monkeypatch.setenv("LTDE_INSTRUCTION_SET", name.lower())
        narrow = sent_by(on_every_path)
        assert narrow[0] == name
        assert_same(wide[1], narrow[1])


def test_an_unknown_instruction_set_is_refused():
    command = [sys.executable, "-c", "from ltde import _core"]
    environment = {**os.environ, "LTDE_INSTRUCTION_SET": "sse9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    expected = "LTDE_INSTRUCTION_SET: expected 'portable', 'avx2' or 'avx-512', got 'sse9'"
    assert expected in done.stderr


def spawned(model, pipe):
    pipe.send(everything(model, 1000, 2, 2))
    pipe.close()


def test_a_spawned_process_gives_the_same_bits():
    model = ring_model(300, discount=0.7)
    assert_same(everything(model, 1000, 2, 1), sent_by(spawned, model))


def test_global_generators_are_left_alone():
    import torch  # not above: the spawned process imports this module

    def states():
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate(), name, keys.tobytes(), rest, torch.get_rng_state().tolist()

    before = states()
    model = star_model(n_states=5, initial=ltde.DirichletInitial(np.ones(5)))
    everything(model, 1000, 2, 2)
    model.check(n_samples=6)
    ltde.AgentSimulator(model, 10, seed=1).step(policy_for(model))
    assert states() == before
    np.random.random()  # noqa: NPY002
    assert states() != before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_steps": -1}, ValueError, r"^state\['n_steps'\]: .* got -1"),
        ({"n_steps": 2**64 - 1}, ValueError, r"^state\['n_steps'\]"),
        ({"n_resets": 1.7}, TypeError, r"^state\['n_resets'\]"),
        ({"seed": -1}, ValueError, r"^state\['seed'\]"),
        ({"counts": np.zeros(70, np.int64)}, ValueError, r"^state\['counts'\]: expected shape"),
    ],
)
def test_a_bad_state_dict_changes_nothing(change, error, message):
    model = ring_model(70)
    simulator = ltde.Simulator(model, 1000, 2, seed=1)
    other = ltde.Simulator(model, 1000, 2, seed=2)
    before = simulator.state_dict()
    with pytest.raises(error, match=message):
        simulator.load_state_dict(other.state_dict() | change)
    after = simulator.state_dict()
    np.testing.assert_array_equal(after.pop("counts"), before.pop("counts"))
    assert after == before


def test_the_counts_may_be_kept_while_the_seed_changes():
    simulator = ltde.Simulator(ring_model(70), 1000, 2, seed=1)
    counts = simulator.counts.copy()
    simulator.reset(counts=simulator.counts, seed=5)
    assert simulator.seed == 5
    np.testing.assert_array_equal(simulator.counts, counts)

"""A model that misbehaves in the middle of a run: the error says where, and nothing has happened.

On the path of `faulty_model` every agent moves one state to the right in every step, so it is known
who meets the fault when.
"""

import math
import pickle

import ltde
import numpy as np
import pytest
from faulty_models import FAULTS, NEGATIVE, RAISED, RAISES, SUM, WRITES, RoadClosed, faulty_model

N = 1000
RECORD = ("counts", "actions", "rewards", "flows")


def at(*states, n_states=6, n_agents=N):
    """Put all agents of replica b in states[b]: counts (B, S)."""
    return n_agents * np.eye(n_states, dtype=np.int64)[list(states)]


def simulator_of(model, *states, threads=1, n_agents=N, **options):
    simulator = ltde.Simulator(
        model, n_agents, n_replicas=len(states), seed=1, threads=threads, **options
    )
    mass = 1 if n_agents == np.inf else n_agents
    simulator.reset(counts=at(*states, n_states=model.n_states, n_agents=mass))
    return simulator


def uniform(model):
    return np.full((model.n_states, 2), 0.5)


def state_of(simulator):
    state = simulator.state_dict()
    return state.pop("counts").tolist(), state


CALLS = {
    "rollout": lambda simulator, probs, steps: simulator.rollout(probs, steps, record=RECORD),
    "chain": lambda simulator, probs, steps: simulator.rollout(
        ltde.TabularPolicy(probs), steps, "chain", record=()
    ),
    "function": lambda simulator, probs, steps: simulator.rollout(
        ltde.FunctionPolicy(lambda counts, n: probs), steps
    ),
    "steps": lambda simulator, probs, steps: [simulator.step(probs) for _ in range(steps)],
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_replica_step_state_action_and_value(fault, threads):
    what, value = FAULTS[fault]
    model = faulty_model(fault, discount=1.0 - 1e-12)  # the chain restarts with chance 1e-12
    for call in ("rollout", "chain", "function"):
        for n_agents in (N, np.inf):
            # Two steps before, and two more until replica 1 is in state 2 at step 3.
            simulator = simulator_of(model, 4, 4, 4, threads=threads, n_agents=n_agents)
            simulator.rollout(uniform(model), 2)
            mass = 1 if n_agents == np.inf else n_agents
            simulator.reset(counts=at(4, 1, 0, n_agents=mass))
            before = state_of(simulator)
            place = rf"^replica 1, step 3, state 2: action 1: {what}; mu\(N_s\) = \[0"
            with pytest.raises(ltde.ModelError, match=place) as info:
                CALLS[call](simulator, uniform(model), 10)
            error = info.value
            assert (error.replica, error.step, error.state, error.action) == (1, 3, 2, 1)
            assert error.value == pytest.approx(value, rel=1e-15, nan_ok=True)
            assert error.mu == [0.0, 1.0, 0.0]
            assert not error.raised
            assert state_of(simulator) == before


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fault", RAISED)
def test_an_exception_of_the_function_is_raised_with_its_place(fault, threads):
    error, message = RAISED[fault]
    model = faulty_model(fault)
    for call in ("rollout", "function"):
        simulator = simulator_of(model, 5, 0, threads=threads)
        before = state_of(simulator)
        with pytest.raises(error, match=message) as info:
            CALLS[call](simulator, uniform(model), 10)
        if error is RoadClosed:
            assert info.value.args == ("too crowded", 2)
        (note,) = info.value.__notes__
        assert note.startswith("raised by the local function at replica 1, step 2, state 2: ")
        assert "mu(N_s) = [0.0, 1.0, 0.0]" in note
        assert info.value.__cause__ is None
        assert info.traceback[-1].name == "faulty_local"
        assert state_of(simulator) == before


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [SUM, RAISES, WRITES])
def test_afterwards_the_simulator_goes_on_with_the_same_bits(fault, call, threads):
    # Many states and replicas, so that much has happened elsewhere when the fault is met.
    model = faulty_model(fault, states=(150,), n_states=200)
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 50, (3, 200))
    counts[:, 140:151] = 0
    counts[:, 0] += 10_000 - counts.sum(axis=1)
    simulator, twin = (
        ltde.Simulator(model, 10_000, n_replicas=3, seed=2, threads=t) for t in (threads, 1)
    )
    for each in (simulator, twin):
        each.reset(counts=counts)
        each.rollout(uniform(model), 3)
    before = state_of(simulator)
    with pytest.raises((ltde.ModelError, RoadClosed, IndexError)):
        CALLS[call](simulator, uniform(model), 20)
    if call == "steps":  # whose steps before the fault are done
        assert simulator.n_steps == 11
        simulator.reset(counts=twin.counts)
        twin.rollout(uniform(model), 8, record=())
        twin.reset(counts=simulator.counts)
    else:
        assert state_of(simulator) == before
    first, second = (each.rollout(uniform(model), 7, record=RECORD) for each in (simulator, twin))
    for name in RECORD:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_fault_is_the_same_for_any_number_of_threads(threads):
    # Order: step, then replica, then state. Each start meets several faults in one call.
    model = faulty_model(NEGATIVE, states=(60, 130, 190), n_states=200)
    cases = [
        # One replica: the blocks of its states run in parallel, both faults at step 2.
        ([[58, 128]], (0, 2, 60)),
        ([[58, 127, 190]], (0, 0, 190)),
        # The later step of a lower replica does not count, the lower replica of one step does.
        ([[50], [128], [187]], (1, 2, 130)),
        ([[50], [188], [128], [58]], (1, 2, 190)),
        ([[57], [127], [187], [57], [57]], (0, 3, 60)),
    ]
    for replicas, expected in cases:
        counts = np.zeros((len(replicas), 200), dtype=np.int64)
        for b, states in enumerate(replicas):
            counts[b, states] = N // len(states)
            counts[b, 199] = N - counts[b].sum()
        simulator = ltde.Simulator(model, N, len(replicas), seed=1, threads=threads)
        simulator.reset(counts=counts)
        for _ in range(5):
            with pytest.raises(ltde.ModelError) as info:
                simulator.rollout(uniform(model), 30)
            error = info.value
            assert (error.replica, error.step, error.state) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fault_in_a_draw_from_sigma(threads):
    # Every episode starts in state 0 and meets the fault in state 2, unless it is read before.
    model = faulty_model(SUM, initial=at(0)[0], discount=0.9)
    simulator, twin = (ltde.Simulator(model, N, 3, seed=1, threads=t) for t in (threads, 1))
    simulator.rollout(uniform(model), 1)
    twin.rollout(uniform(model), 1)
    before = state_of(simulator)
    with pytest.raises(ltde.ModelError, match=r"^replica \d, step 2, state 2: action 1: prob"):
        simulator.visitation(uniform(model), 20)
    assert state_of(simulator) == before
    # Action 0 is sound, but so is nothing in state 2: a fault counts even if nobody takes it.
    with pytest.raises(ltde.ModelError):
        simulator.visitation(np.tile([1.0, 0.0], (6, 1)), 20)
    sound = faulty_model(initial=at(0)[0], discount=0.9)
    draws = [ltde.Simulator(sound, N, 3, seed=1).visitation(uniform(sound), 5) for _ in range(2)]
    np.testing.assert_array_equal(draws[0].actions, draws[1].actions)


def test_states_without_agents_are_not_asked():
    # The fault is in a state that nobody reaches in time.
    model = faulty_model(RAISES)
    simulator = simulator_of(model, 0, 3)
    simulator.rollout(uniform(model), 2)
    assert simulator.counts.tolist() == at(2, 5).tolist()
    with pytest.raises(RoadClosed):
        simulator.rollout(uniform(model), 1)


def test_masked_rows_are_never_read_in_a_run():
    mask = np.ones((6, 2), dtype=bool)
    mask[2, 1] = False
    probs = np.where(mask, mask / mask.sum(axis=1, keepdims=True), 0.0)
    for fault in FAULTS:
        model = faulty_model(fault, action_mask=mask)
        rollout = simulator_of(model, 0).rollout(probs, 5)
        assert rollout.counts[-1].tolist() == at(5).tolist()
        assert np.isfinite(rollout.rewards).all()
        np.testing.assert_allclose(rollout.rewards.sum(axis=-1), 0.5)


@pytest.mark.parametrize("fault", [NEGATIVE, RAISES])
def test_evaluate_names_the_row_of_mu(fault):
    model = faulty_model(fault, density=0.5)
    mu = np.full((3, 6), 1.0 / 6.0)
    model.evaluate(mu)
    mu[1, 2] = 0.75
    if fault == NEGATIVE:
        with pytest.raises(ltde.ModelError, match=r"^mu\[1\], state 2: action 1: prob") as info:
            model.evaluate(mu)
        error = info.value
        assert (error.replica, error.step, error.state, error.mu[1]) == (1, None, 2, 0.75)
    else:
        with pytest.raises(RoadClosed) as info:
            model.evaluate(mu)
        assert info.value.__notes__[0].startswith("raised by the local function at mu[1], state 2")


LIMIT = 0.5


def depends_on_a_global(s, mu, node, edge, prob, reward):
    prob[:, 0] = 1.0
    if mu[0] > LIMIT:
        raise RoadClosed("above the limit")


def test_an_exception_that_plain_python_does_not_raise_is_explained(monkeypatch):
    model = ltde.NetworkedModel(ltde.Graph.path(2), 1, depends_on_a_global)
    monkeypatch.setitem(globals(), "LIMIT", 2.0)
    simulator = ltde.Simulator(model, 10, seed=1)
    simulator.reset(counts=np.array([10, 0]))
    with pytest.raises(ltde.ModelError, match="the local function raised") as info:
        simulator.rollout(np.ones((2, 1)), 1)
    assert info.value.raised
    (note,) = info.value.__notes__
    assert "a global that changed" in note


def test_a_model_error_survives_pickling():
    model = faulty_model(SUM)
    with pytest.raises(ltde.ModelError) as info:
        model.check()
    again = pickle.loads(pickle.dumps(info.value))
    assert str(again) == str(info.value)
    assert vars(again) == vars(info.value)
    assert math.isclose(again.value, 1.0 + 2e-9, rel_tol=1e-15)

"""Policies given as probabilities: tables and functions of the whole state."""

import pickle

import ltde
import numpy as np
import pytest
from models import path_model, random_policy, ring_model, star_model
from statcheck import generator

PROBS = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])


def simulators(model, n=2, n_agents=1000, n_replicas=2):
    return [ltde.Simulator(model, n_agents, n_replicas, seed=1) for _ in range(n)]


# Tables.


def test_a_table_is_a_read_only_copy():
    probs = PROBS.copy()
    policy = ltde.TabularPolicy(probs)
    probs[0] = [0.0, 1.0]
    np.testing.assert_array_equal(policy.probs, PROBS)
    assert policy.probs.dtype == np.float64
    assert policy.stationary
    with pytest.raises(ValueError, match="read-only"):
        policy.probs[0, 0] = 1.0
    assert repr(policy) == "TabularPolicy(shape=(3, 2))"
    assert not ltde.TabularPolicy([PROBS, PROBS]).stationary


BAD = [
    ([[0.5, np.nan]], ValueError, r"^probs\[0, 1\]: expected a probability .* got (NaN|nan)$"),
    (
        [[0.5, 0.5], [np.inf, 0.0]],
        ValueError,
        r"^probs\[1, 0\]: expected a probability .* got inf$",
    ),
    ([[1.5, -0.5]], ValueError, r"^probs\[0, 1\]: expected a probability in \[0, 1\], got -0\.5$"),
    ([[0.5, 0.5], [0.5, 0.4]], ValueError, r"^probs\[1\]: expected a sum of 1 .*, got 0\.9$"),
    ([[0.0, 0.0]], ValueError, r"^probs\[0\]: expected a sum of 1 .*, got 0$"),
    (
        [PROBS, [[1, 0], [1.1, -0.1], [1, 0]]],
        ValueError,
        r"^probs\[1, 1, 1\]: expected .* got -0\.1$",
    ),
    ([PROBS, PROBS * 0.9], ValueError, r"^probs\[1, 0\]: expected a sum of 1 .*, got 0\.9$"),
    ([0.5, 0.5], ValueError, r"^probs: expected shape \(S, A\) or \(T, S, A\), got \(2,\)$"),
    (1.0, ValueError, r"^probs: expected shape \(S, A\) or \(T, S, A\), got \(1?,?\)$"),
    (np.ones((1, 1, 1, 1)), ValueError, r"^probs: expected shape .*, got \(1, 1, 1, 1\)$"),
    (np.ones((0, 2)), ValueError, r"^probs: expected shape .*, got \(0, 2\)$"),
    (np.ones((3, 0)), ValueError, r"^probs: expected shape .*, got \(3, 0\)$"),
    (PROBS > 0, TypeError, r"^probs: expected real numbers, got dtype bool$"),
    (PROBS * 1j, TypeError, r"^probs: expected real numbers, got dtype complex128$"),
    ([["a", "b"]], TypeError, r"^probs: expected real numbers, got dtype <U1$"),
    (None, TypeError, r"^probs: expected real numbers, got dtype object$"),
]


@pytest.mark.parametrize(("probs", "error", "message"), BAD)
def test_a_bad_table_is_refused_when_it_is_made(probs, error, message):
    with pytest.raises(error, match=message):
        ltde.TabularPolicy(probs)


@pytest.mark.parametrize(("error", "accepted"), [(9e-5, True), (2e-4, False)])
def test_rows_may_be_off_by_float32_rounding_but_not_more(error, accepted):
    for sign in (1.0, -1.0):
        probs = PROBS * (1.0 + sign * error)
        if accepted:
            ltde.TabularPolicy(probs)
        else:
            with pytest.raises(ValueError, match=r"^probs\[0\]: expected a sum of 1"):
                ltde.TabularPolicy(probs)


def test_rows_are_divided_by_their_sum():
    # At N = inf the actions show the probabilities that are used.
    model = path_model()
    flow = ltde.Simulator(model, np.inf, seed=1)
    actions = flow.step(PROBS * (1.0 + 9e-5)).actions[0]
    np.testing.assert_allclose(actions, PROBS / 3.0, rtol=1e-14)


def test_a_table_of_time_is_read_from_its_first_row_in_every_rollout():
    model = ring_model()
    table = np.stack([np.roll(np.tile([1.0, 0.0, 0.0], (4, 1)), t, axis=1) for t in range(3)])
    simulator = ltde.Simulator(model, 1000, seed=1)
    policy = ltde.TabularPolicy(table)
    for n_steps in (3, 2, 1):
        rollout = simulator.rollout(policy, n_steps)
        for t in range(n_steps):
            np.testing.assert_array_equal(rollout.actions[t, 0].sum(axis=0), 1000 * np.eye(3)[t])
    with pytest.raises(ValueError, match=r"^probs: holds 3 steps, 4 were asked for$"):
        simulator.rollout(policy, 4)
    assert simulator.n_steps == 6


def test_a_table_of_one_step_serves_one_step():
    simulator = ltde.Simulator(path_model(), 10, seed=1)
    simulator.rollout(ltde.TabularPolicy(PROBS[None]), 1)
    with pytest.raises(ValueError, match=r"^probs: holds 1 steps?, 2 were asked for$"):
        simulator.rollout(ltde.TabularPolicy(PROBS[None]), 2)


def test_sigma_needs_a_policy_without_time():
    simulator = ltde.Simulator(path_model(), 10, seed=1)
    policy = ltde.TabularPolicy([PROBS] * 5)
    with pytest.raises(ValueError, match=r"^policy: .* does not depend on time$"):
        simulator.visitation(policy, 1)
    with pytest.raises(ValueError, match=r"^policy: the restart chain .* not depend on time$"):
        simulator.rollout(policy, 2, restart="chain")


def test_a_table_serves_several_models_of_its_size_and_no_other():
    policy = ltde.TabularPolicy(np.full((4, 3), 1.0 / 3.0))
    ltde.Simulator(ring_model(), 10).rollout(policy, 2)
    message = r"^probs: expected 5 states and 3 actions, got 4 and 3$"
    with pytest.raises(ValueError, match=message):
        ltde.Simulator(ring_model(5), 10).rollout(policy, 2)


def test_the_uniform_policy_plays_allowed_actions_with_equal_probability():
    model = star_model(n_states=4)
    policy = ltde.TabularPolicy.uniform(model)
    np.testing.assert_array_equal(policy.probs[0], [0.25] * 4)
    np.testing.assert_array_equal(policy.probs[1:], [[0.5, 0.5, 0.0, 0.0]] * 3)
    ltde.Simulator(model, 10, seed=1).rollout(policy, 2)


def test_the_individual_policy_is_a_row_of_the_table():
    individual = ltde.TabularPolicy(PROBS).individual()
    for s in range(3):
        np.testing.assert_array_equal(individual(s, 0.7), PROBS[s])
    with pytest.raises(ValueError, match=r"^probs: .*changes with time.* no individual policy$"):
        ltde.TabularPolicy([PROBS, PROBS]).individual()


def test_a_table_is_pickled():
    for probs in (PROBS, np.stack([PROBS, PROBS[::-1]])):
        again = pickle.loads(pickle.dumps(ltde.TabularPolicy(probs)))
        np.testing.assert_array_equal(again.probs, probs)
        assert again.stationary == (probs.ndim == 2)
        ltde.Simulator(path_model(), 10, seed=1).rollout(again, 2)


# Functions.


def test_a_function_sees_counts_that_it_cannot_write():
    simulator = ltde.Simulator(path_model(), 1000, n_replicas=2, seed=1)
    seen = []

    def function(counts, n_agents):
        seen.append((counts.shape, counts.dtype, n_agents, counts.tolist()))
        with pytest.raises(ValueError, match="read-only"):
            counts[0, 0] = 0
        return PROBS

    rollout = simulator.rollout(ltde.FunctionPolicy(function), 3)
    assert [x[3] for x in seen] == rollout.counts[:3].tolist()
    assert seen[0][:3] == ((2, 3), np.dtype(np.int64), 1000)
    simulator.counts[...] = simulator.counts  # the user's own view is still writeable


def test_a_function_may_return_what_a_table_may_be():
    model = path_model()
    first, second, third, fourth = simulators(model, 4)
    expected = first.rollout(PROBS, 3)
    for simulator, probs in (
        (second, np.stack([PROBS, PROBS])),
        (third, PROBS.tolist()),
        (fourth, np.asfortranarray(PROBS)),
    ):
        rollout = simulator.rollout(ltde.FunctionPolicy(lambda counts, n, p=probs: p), 3)
        np.testing.assert_array_equal(rollout.actions, expected.actions)


class Strange(Exception):
    """Nobody else raises it."""


def fails_at(step, outcome):
    calls = []

    def function(counts, n_agents):
        calls.append(None)
        if len(calls) <= step:
            return PROBS
        return outcome()

    return ltde.FunctionPolicy(function)


def strange():
    raise Strange("at this step")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("outcome", "error", "message"),
    [
        (strange, Strange, r"^at this step$"),
        (interrupted, KeyboardInterrupt, r"^$"),
        (lambda: None, TypeError, r"^probs: expected real numbers, got dtype object$"),
        (lambda: PROBS[:2], ValueError, r"^probs: expected shape .*, got \(2, 2\)$"),
        (lambda: PROBS * np.nan, ValueError, r"^probs\[0, 0\]: expected a probability"),
        (lambda: PROBS * 0.9, ValueError, r"^probs\[0\]: expected a sum of 1"),
    ],
)
@pytest.mark.parametrize("restart", [None, "chain"])
@pytest.mark.parametrize("step", [0, 3])
def test_what_goes_wrong_in_a_function_leaves_the_simulator_unchanged(
    step, restart, outcome, error, message
):
    model = path_model(initial=ltde.DirichletInitial(np.ones(3)), discount=0.5)
    simulator, twin = simulators(model)
    for each in (simulator, twin):
        each.rollout(PROBS, 2)
        each.visitation(PROBS, 1)
    counts = simulator.counts.copy()
    with pytest.raises(error, match=message):
        simulator.rollout(fails_at(step, outcome), 6, restart)
    np.testing.assert_array_equal(simulator.counts, counts)
    assert simulator.n_steps == 2
    for call in (
        lambda each: each.rollout(PROBS, 4, "chain").counts,
        lambda each: each.visitation(PROBS, 2).counts,
        lambda each: (each.reset(), each.counts)[1],
    ):
        np.testing.assert_array_equal(call(simulator), call(twin))


def test_a_function_that_moves_agents_itself_is_played_from_where_they_are():
    # The function may hold the simulator: what it writes to `counts` is honoured as elsewhere.
    simulator = ltde.Simulator(path_model(), 1000, seed=1)

    def to_the_end(counts, n_agents):
        simulator.counts[...] = [[0, 0, 1000]]
        return PROBS

    rollout = simulator.rollout(ltde.FunctionPolicy(to_the_end), 2)
    assert (rollout.actions.sum(axis=-1) == [0, 0, 1000]).all()


def test_function_policies_at_infinity():
    model = ring_model()
    first, second = simulators(model, 2, np.inf)
    probs = random_policy(model, generator("function at infinity"))
    seen = []

    def function(counts, n_agents):
        seen.append((counts.dtype, n_agents))
        return probs

    rollout = first.rollout(ltde.FunctionPolicy(function), 4)
    assert seen == [(np.dtype(np.float64), np.inf)] * 4
    np.testing.assert_array_equal(rollout.counts, second.rollout(probs, 4).counts)


def test_visitation_refuses_a_function_and_says_what_to_do():
    simulator = ltde.Simulator(path_model(), 10)
    with pytest.raises(TypeError, match=r"^policy: .*FunctionPolicy.*restart=\"chain\""):
        simulator.visitation(ltde.FunctionPolicy(lambda counts, n: PROBS), 1)


def test_a_function_policy_wants_a_callable():
    with pytest.raises(TypeError, match=r"^function: expected a callable, got int$"):
        ltde.FunctionPolicy(3)

    def greedy(counts, n_agents):
        return PROBS

    assert "greedy" in repr(ltde.FunctionPolicy(greedy))


def test_a_function_may_not_advance_the_simulator_that_asks_it():
    simulator = ltde.Simulator(path_model(), 10, seed=1)
    before = simulator.counts.copy()

    def meddles(counts, n_agents):
        simulator.step(PROBS)
        return PROBS

    with pytest.raises(RuntimeError, match="advanced the simulator"):
        simulator.rollout(ltde.FunctionPolicy(meddles), 3)
    assert simulator.n_steps == 0
    np.testing.assert_array_equal(simulator.counts, before)

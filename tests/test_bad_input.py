"""Bad input to a simulator: a clear sentence, and nothing half-done.

Every message names the argument and the value, and the index where there is one. After each refusal
the simulator gives the bits of one that was never bothered.
"""

import math

import ltde
import numpy as np
import pytest
from models import path_model, star_model

MODEL_STATES = 4
PROBS = np.zeros((MODEL_STATES, MODEL_STATES))
PROBS[:, :2] = 0.5  # allowed everywhere in the star
N = 100


def make(n_agents=N, n_replicas=2, **options):
    return ltde.Simulator(star_model(MODEL_STATES), n_agents, n_replicas, seed=1, **options)


# Construction.

CONSTRUCTION = [
    ({"model": None}, TypeError, r"^model: expected an ltde\.NetworkedModel, got NoneType$"),
    ({"n_agents": 0}, ValueError, r"^n_agents: expected an integer >= 1 or math\.inf, got 0$"),
    ({"n_agents": -5}, ValueError, r"^n_agents: expected an integer >= 1 .*, got -5$"),
    ({"n_agents": 1.5}, ValueError, r"^n_agents: expected an integer >= 1 .*, got 1\.5$"),
    ({"n_agents": math.nan}, ValueError, r"^n_agents: expected an integer >= 1 .*, got nan$"),
    ({"n_agents": -math.inf}, ValueError, r"^n_agents: expected an integer >= 1 .*, got -inf$"),
    ({"n_agents": True}, TypeError, r"^n_agents: expected an integer or math\.inf, got True$"),
    ({"n_agents": np.True_}, TypeError, r"^n_agents: expected an integer .*True"),
    ({"n_agents": "10"}, TypeError, r"^n_agents: expected an integer or math\.inf, got '10'$"),
    ({"n_agents": None}, TypeError, r"^n_agents: expected an integer or math\.inf, got None$"),
    ({"n_agents": 10 + 0j}, TypeError, r"^n_agents: expected an integer .*, got \(10\+0j\)$"),
    ({"n_agents": 2**53 + 1}, OverflowError, r"^n_agents: at most 2\^53 .*got 9007199254740993$"),
    ({"n_agents": 2.0**54}, OverflowError, r"^n_agents: at most 2\^53 .*got 1\.8014"),
    ({"n_agents": 10**400}, OverflowError, r"^n_agents: at most 2\^53"),
    ({"n_replicas": 0}, ValueError, r"^n_replicas: expected an integer in \[1, .*\), got 0$"),
    ({"n_replicas": -1}, ValueError, r"^n_replicas: expected an integer in \[1, .*\), got -1$"),
    ({"n_replicas": 2**32}, ValueError, r"^n_replicas: .*4294967296\), got 4294967296$"),
    ({"n_replicas": 1.0}, TypeError, r"^n_replicas: expected an integer, got 1\.0$"),
    ({"n_replicas": True}, TypeError, r"^n_replicas: expected an integer, got True$"),
    ({"seed": -1}, ValueError, r"^seed: expected an integer in \[0, .*\), got -1$"),
    ({"seed": 2**64}, ValueError, r"^seed: .*, got 18446744073709551616$"),
    ({"seed": 1.0}, TypeError, r"^seed: expected an integer, got 1\.0$"),
    ({"seed": None}, TypeError, r"^seed: expected an integer, got None$"),
    ({"threads": 0}, ValueError, r"^threads: expected an integer in \[1, .*\), got 0$"),
    ({"threads": -2}, ValueError, r"^threads: expected an integer in \[1, .*\), got -2$"),
    ({"threads": 65536}, ValueError, r"^threads: .*, got 65536$"),
    ({"threads": "2"}, TypeError, r"^threads: expected an integer, got '2'$"),
    ({"first_replica": -1}, ValueError, r"^first_replica: .*\[0, .*\), got -1$"),
    ({"first_replica": 2**32}, ValueError, r"^first_replica: .*, got 4294967296$"),
    ({"first_replica": 0.5}, TypeError, r"^first_replica: expected an integer, got 0\.5$"),
    (
        {"first_replica": 2**32 - 1, "n_replicas": 2},
        ValueError,
        r"^first_replica: .* must not exceed 2\^32, got 4294967295 \+ 2$",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), CONSTRUCTION)
def test_bad_construction_is_named(options, error, message):
    options = {"model": path_model(), "n_agents": N} | options
    with pytest.raises(error, match=message):
        ltde.Simulator(**options)


@pytest.mark.parametrize("n_agents", [1, 5.0, np.int64(7), np.uint8(7), np.float32(7.0), 2**53])
def test_integers_of_any_kind_are_numbers_of_agents(n_agents):
    simulator = ltde.Simulator(path_model(), n_agents, seed=np.uint64(2**63), threads=np.int8(1))
    assert type(simulator.n_agents) is int
    assert simulator.counts.sum() == simulator.n_agents == int(n_agents)
    assert simulator.seed == 2**63


def test_infinity_of_any_kind_is_the_mean_field_limit():
    for n_agents in (math.inf, np.float64("inf"), np.float32("inf")):
        simulator = ltde.Simulator(path_model(), n_agents)
        assert simulator.n_agents == math.inf
        assert simulator.counts.dtype == np.float64


@pytest.mark.parametrize(
    ("initial", "n_agents", "message"),
    [
        ([1, 2, 3], 7, r"^n_agents: initial sums to 6 agents, got n_agents = 7$"),
        ([[1, 2, 3], [0, 0, 7]], 6, r"^n_agents: initial\[1\] sums to 7 agents, got n_agents = 6$"),
        ([2**53, 1, 0], 2**53, r"^n_agents: initial sums to 9007199254740993 agents"),
        ([0, 0, 0], math.inf, r"^initial: expected at least one agent, got none$"),
        ([[1, 0, 0], [0, 0, 0]], math.inf, r"^initial\[1\]: expected at least one agent"),
    ],
)
def test_the_number_of_agents_must_be_that_of_fixed_counts(initial, n_agents, message):
    with pytest.raises(ValueError, match=message):
        ltde.Simulator(path_model(initial=np.array(initial)), n_agents)


# Calls. A refused call must leave a simulator as it was.


def changed(index, value, array=PROBS):
    array = array.copy()
    array[index] = value
    return array


BATCH = np.stack([PROBS, PROBS])
BAD_PROBS = [
    (changed((2, 1), math.nan), ValueError, r"^probs\[2, 1\]: expected a prob.* got (NaN|nan)$"),
    (changed((3, 0), math.inf), ValueError, r"^probs\[3, 0\]: expected a probability .* got inf$"),
    (changed(0, [1.5, -0.5, 0, 0]), ValueError, r"^probs\[0, 1\]: expected .* got -0\.5$"),
    (changed((1, 1), 0.6), ValueError, r"^probs\[1\]: expected a sum of 1 .*, got 1\.1$"),
    (PROBS * 0.0, ValueError, r"^probs\[0\]: expected a sum of 1 .*, got 0$"),
    (changed((1, 2, 1), -1.0, BATCH), ValueError, r"^probs\[1, 2, 1\]: expected .* got -1$"),
    (
        changed((1, 3), 0.25, BATCH),
        ValueError,
        r"^probs\[1, 3, 2\]: action 2 is forbidden in state",
    ),
    (
        np.full((4, 4), 0.25),
        ValueError,
        r"^probs\[1, 2\]: action 2 is forbidden in state 1 .*0\.25",
    ),
    (PROBS[:3], ValueError, r"^probs: expected shape \(4, 4\) or \(2, 4, 4\), got \(3, 4\)$"),
    (PROBS[:, :2], ValueError, r"^probs: expected shape .*, got \(4, 2\)$"),
    (PROBS[None, :, :], ValueError, r"^probs: expected shape .*, got \(1, 4, 4\)$"),
    (np.stack([PROBS] * 3), ValueError, r"^probs: expected shape .*, got \(3, 4, 4\)$"),
    (PROBS[0], ValueError, r"^probs: expected shape .*, got \(4,\)$"),
    (PROBS.astype(bool), TypeError, r"^probs: expected real numbers, got dtype bool$"),
    (PROBS * 1j, TypeError, r"^probs: expected real numbers, got dtype complex128$"),
    (PROBS.astype(object), TypeError, r"^probs: expected real numbers, got dtype object$"),
    ("uniform", TypeError, r"^probs: expected real numbers, got dtype <U7$"),
    (None, TypeError, r"^probs: expected real numbers, got dtype object$"),
]


def calls():
    """Yield bad calls, each with the error and the message it must give."""
    for probs, error, message in BAD_PROBS:
        yield lambda each, p=probs: each.step(p), error, message
        yield lambda each, p=probs: each.rollout(p, 3), error, message
        yield lambda each, p=probs: each.rollout(p, 3, "chain", ()), error, message
        yield lambda each, p=probs: each.visitation(p, 3), error, message
    for value, error, message in (
        (-1, ValueError, r"expected an integer in \[0, .*\), got -1$"),
        (2**48, ValueError, r"expected an integer in \[0, .*\), got 281474976710656$"),
        (1.5, TypeError, r"expected an integer, got 1\.5$"),
        (True, TypeError, r"expected an integer, got True$"),
        ("3", TypeError, r"expected an integer, got '3'$"),
        (None, TypeError, r"expected an integer, got None$"),
    ):
        yield lambda each, v=value: each.rollout(PROBS, v), error, "^n_steps: " + message
        yield lambda each, v=value: each.visitation(PROBS, v), error, "^n_draws: " + message
    for value in ("Chain", True, 0, ""):
        yield (
            lambda each, v=value: each.rollout(PROBS, 3, v),
            ValueError,
            rf'^restart: expected None or "chain", got {value!r}$',
        )
    for value, name in (("count", "'count'"), (("counts", "flow"), "'flow'"), ([3], "3")):
        yield (
            lambda each, v=value: each.rollout(PROBS, 3, record=v),
            ValueError,
            rf"^record: expected any of \('counts', .*\), got {name}$",
        )
    yield (
        lambda each: each.rollout(ltde.TabularPolicy(np.full((4, 2), 0.5)), 3),
        ValueError,
        r"^probs: expected 4 states and 4 actions, got 4 and 2$",
    )
    yield (
        lambda each: each.rollout(ltde.TabularPolicy(np.full((4, 4), 0.25)), 3),
        ValueError,
        r"^probs\[1, 2\]: action 2 is forbidden in state 1 by action_mask, got probability 0\.25$",
    )
    for counts, error, message in (
        ([25, 25, 25, 26], ValueError, r"^counts\[0\]: expected a sum of n_agents = 100, got 101$"),
        ([101, -1, 0, 0], ValueError, r"^counts\[0, 1\]: expected a count >= 0, got -1$"),
        ([[100, 0, 0, 0], [99, 0, 0, 0]], ValueError, r"^counts\[1\]: .* got 99$"),
        ([2**62, 2**62, 2**62, 2**62], ValueError, r"^counts\[0\]: .* got 18446744073709551616$"),
        ([[100, 0, 0]], ValueError, r"^counts: expected shape \(2, 4\) or \(4,\), got \(1, 3\)$"),
        ([[100, 0, 0, 0]], ValueError, r"^counts: expected shape .* got \(1, 4\)$"),
        ([100.0, 0, 0, 0], TypeError, r"^counts: expected dtype int64, got float64$"),
        ([True, False, False, False], TypeError, r"^counts: expected dtype int64, got bool$"),
        ("everywhere", TypeError, r"^counts: expected dtype int64, got <U10$"),
    ):
        yield lambda each, c=counts: each.reset(counts=c), error, message
        yield lambda each, c=counts: each.reset(counts=c, seed=5), error, message
    for seed, error in ((-1, ValueError), (2**64, ValueError), (0.0, TypeError)):
        yield lambda each, s=seed: each.reset(seed=s), error, rf"^seed: .*, got {seed}$"
        counts = [100, 0, 0, 0]
        yield lambda each, s=seed, c=counts: each.reset(c, s), error, rf"^seed: .*, got {seed}$"


@pytest.mark.parametrize(("call", "error", "message"), list(calls()))
def test_a_bad_call_is_named_and_changes_nothing(call, error, message):
    simulator, twin = make(), make()
    for each in (simulator, twin):
        each.rollout(PROBS, 2)
    before = simulator.counts.copy()
    with pytest.raises(error, match=message):
        call(simulator)
    np.testing.assert_array_equal(simulator.counts, before)
    assert (simulator.n_steps, simulator.seed) == (2, 1)
    for go_on in (
        lambda each: each.rollout(PROBS, 3, "chain").actions,
        lambda each: each.visitation(PROBS, 2).actions,
        lambda each: (each.reset(), each.counts)[1],
    ):
        np.testing.assert_array_equal(go_on(simulator), go_on(twin))


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ([0.5, 0.5, 0.5, 0.0], ValueError, r"^counts\[0\]: densities must sum to 1, got 1\.5$"),
        ([1.5, -0.5, 0, 0], ValueError, r"^counts\[0, 1\]: expected a density >= 0, got -0\.5$"),
        ([math.nan, 0, 0, 1], ValueError, r"^counts\[0, 0\]: .* got (NaN|nan)$"),
        ([math.inf, 0, 0, 1], ValueError, r"^counts\[0, 0\]: .* got inf$"),
        ([True, False, False, False], TypeError, r"^counts: expected dtype float64, got bool$"),
        ([1j, 0, 0, 0], TypeError, r"^counts: expected dtype float64, got complex128$"),
    ],
)
def test_bad_densities_are_named_and_change_nothing(counts, error, message):
    simulator, twin = make(math.inf), make(math.inf)
    with pytest.raises(error, match=message):
        simulator.reset(counts=counts)
    np.testing.assert_array_equal(
        simulator.rollout(PROBS, 3, "chain").actions, twin.rollout(PROBS, 3, "chain").actions
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda each: each.rollout(PROBS, 3, record=None), "^record: "),
        (lambda each: each.rollout(PROBS, 3, record=3), "^record: "),
        (lambda each: each.rollout(PROBS, 3, out=3), "^out: "),
        (lambda each: each.step(ltde.FunctionPolicy(lambda c, n: PROBS)), "FunctionPolicy"),
        (lambda each: each.load_state_dict(None), "^state: "),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call(make())


def test_the_step_counter_has_an_end():
    simulator = make()
    state = simulator.state_dict() | {"n_steps": 2**48 - 3}
    simulator.load_state_dict(state)
    simulator.rollout(PROBS, 2, record=())
    with pytest.raises(ValueError, match=r"^n_steps: the step counter must stay below 2\^48"):
        simulator.rollout(PROBS, 1)
    assert simulator.n_steps == 2**48 - 1

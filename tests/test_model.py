"""The model: what it refuses, what it evaluates, what `check` finds, what it is known by."""

import copy
import math
import pickle
import sys

import ltde
import numba
import numpy as np
import pytest
from exact_law import local_tables
from faulty_models import FAULTS, RAISED, RAISES, RoadClosed, faulty_local, faulty_model
from models import MODELS, path_local, path_model, ring_local, ring_model, star_model
from statcheck import generator

RING = ltde.Graph.ring(4)


def stay(s, mu, node, edge, prob, reward):
    for a in range(prob.shape[0]):
        prob[a, 0] = 1.0


def build(graph=RING, n_actions=2, local=stay, **options):
    return ltde.NetworkedModel(graph, n_actions, local, **options)


# Refusals.

MASK = np.ones((4, 2), dtype=bool)
BAD = [
    ({"graph": None}, TypeError, r"^graph: expected an ltde\.Graph, got NoneType$"),
    ({"n_actions": 0}, ValueError, r"^n_actions: expected at least 1, got 0$"),
    ({"n_actions": 2.0}, TypeError, r"^n_actions: expected an integer, got 2\.0$"),
    ({"n_actions": True}, TypeError, r"^n_actions: expected an integer, got True$"),
    ({"local": 3}, TypeError, r"^local: expected a function, got int$"),
    ({"node": np.ones((3, 2))}, ValueError, r"^node: .*\(S, \.\) with S = 4, got \(3, 2\)$"),
    ({"node": np.ones((4, 2, 1))}, ValueError, r"^node: expected shape .* got \(4, 2, 1\)$"),
    ({"node": ["a"] * 4}, TypeError, r"^node: expected real numbers, got dtype <U1$"),
    ({"node": np.ones(4) * 1j}, TypeError, r"^node: expected real numbers, got dtype complex128$"),
    (
        {"node": [[0, 1], [0, 1], [0, math.nan], [1, 1]]},
        ValueError,
        r"^node\[2, 1\]: expected a number, got nan$",
    ),
    ({"edge": np.ones(11)}, ValueError, r"^edge: .*\(nnz, \.\) with nnz = 12, got \(11,\)$"),
    ({"edge": [0.0] * 5 + [math.nan] * 7}, ValueError, r"^edge\[5, 0\]: .* got nan$"),
    ({"edge": [None] * 12}, TypeError, r"^edge: expected real numbers, got dtype object$"),
    ({"action_mask": MASK.astype(int)}, TypeError, r"^action_mask: .*bool, got int64$"),
    (
        {"action_mask": MASK[:3]},
        ValueError,
        r"^action_mask: expected shape \(4, 2\), got \(3, 2\)$",
    ),
    (
        {"action_mask": MASK & (np.arange(4) != 2)[:, None]},
        ValueError,
        r"^action_mask\[2\]: forbids every action of state 2$",
    ),
    ({"discount": 1.0}, ValueError, r"^discount: expected a number in \[0, 1\), got 1$"),
    ({"discount": -0.1}, ValueError, r"^discount: expected a number in \[0, 1\), got -0\.1$"),
    ({"discount": math.nan}, ValueError, r"^discount: expected a number .* got (NaN|nan)$"),
    ({"discount": None}, TypeError, r"^discount: expected a number, got None$"),
    ({"reward_range": (2, 1)}, ValueError, r"^reward_range: .*lo <= hi, got \(2, 1\)$"),
    ({"reward_range": (math.nan, 1)}, ValueError, r"^reward_range: .* got \((NaN|nan), 1\)$"),
    ({"reward_range": (None, 1)}, TypeError, r"^reward_range\[0\]: expected a number, got None$"),
    ({"initial": [1, 2, -3, 4]}, ValueError, r"^initial\[2\]: expected a count >= 0, got -3$"),
    ({"initial": [[1, 2, 3, 4], [1, 2, -3, 4]]}, ValueError, r"^initial\[1, 2\]: .* got -3$"),
    ({"initial": [2**53 + 1, 0, 0, 0]}, OverflowError, r"^initial\[0\]: at most 2\^53, got 900"),
    ({"initial": np.uint64([2**64 - 1, 0, 0, 0])}, OverflowError, r"^initial\[0\]: .*, got 18446"),
    ({"initial": [1, 2, 3]}, ValueError, r"^initial: .*\(4,\) or \(K, 4\), got \(3,\)$"),
    ({"initial": np.ones((0, 4), int)}, ValueError, r"^initial: .* got \(0, 4\)$"),
    ({"initial": np.ones((1, 2, 4), int)}, ValueError, r"^initial: .* got \(1, 2, 4\)$"),
    ({"initial": [0.5, 0.5]}, ValueError, r"^initial: expected a law of shape \(4,\), got \(2,\)$"),
    ({"initial": np.full((2, 4), 0.25)}, ValueError, r"^initial: .* got \(2, 4\)$"),
    ({"initial": [0.5, 0.5, 0.5, 0.0]}, ValueError, r"^initial: .*must sum to 1, got 1\.5$"),
    ({"initial": [0.5, 0.5, math.nan, 0]}, ValueError, r"^initial\[2\]: .* got (NaN|nan)$"),
    ({"initial": [0.5, 0.6, -0.1, 0]}, ValueError, r"^initial\[2\]: .* got -0\.1$"),
    ({"initial": [True, False, False, False]}, TypeError, r"^initial: .* got dtype bool$"),
    ({"initial": "uniform"}, TypeError, r"^initial: expected integers or floats, got dtype <U7$"),
    (
        {"initial": ltde.DirichletInitial([1.0, 1.0])},
        ValueError,
        r"^initial: expected alpha of shape \(4,\), got \(2,\)$",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        ([1.0, 0.0], r"^alpha\[1\]: expected a positive number \(at least 1e-300\), got 0\.0$"),
        ([-1.0, 1.0], r"^alpha\[0\]: expected a positive number \(at least 1e-300\), got -1\.0$"),
        ([1.0, math.nan], r"^alpha\[1\]: expected a positive number \(at least 1e-300\), got nan$"),
        ([1.0, math.inf], r"^alpha\[1\]: expected a positive number \(at least 1e-300\), got inf$"),
        ([[1.0, 1.0]], r"^alpha: expected shape \(S,\), got \(1, 2\)$"),
        (1.0, r"^alpha: expected shape \(S,\), got \(\)$"),
    ],
)
def test_bad_alpha_is_named(alpha, message):
    with pytest.raises(ValueError, match=message):
        ltde.DirichletInitial(alpha)


@pytest.mark.parametrize("bad", [5, (1,), (1, 2, 3)])
def test_a_reward_range_that_is_not_a_pair_is_named(bad):
    with pytest.raises((TypeError, ValueError), match=r"^reward_range: "):
        build(reward_range=bad)


@pytest.mark.parametrize("bad", ["0.5", False])
def test_a_discount_that_is_not_a_number_is_named(bad):
    with pytest.raises(TypeError, match=r"^discount: expected a number, got "):
        build(discount=bad)


# What numba cannot compile.


def writes_mu(s, mu, node, edge, prob, reward):
    mu[0] = 1.0


def writes_node(s, mu, node, edge, prob, reward):
    node[0] = 1.0


def writes_edge(s, mu, node, edge, prob, reward):
    edge[0, 0] = 1.0


def unknown_name(s, mu, node, edge, prob, reward):
    reward[0] = no_such_name  # noqa: F821


def unknown_type(s, mu, node, edge, prob, reward):
    reward[0] = ltde.Graph.ring(3).n_states


def too_few(s, mu):
    pass


def imports(s, mu, node, edge, prob, reward):
    import math

    reward[0] = math.pi


class NotAFunction:
    """Callable, but nothing that numba compiles."""

    def __call__(self, s, mu, node, edge, prob, reward):
        """Do nothing."""


@pytest.mark.parametrize("local", [writes_mu, writes_node, writes_edge])
def test_writing_to_the_inputs_is_refused_at_compile_time(local):
    message = rf"^local: numba cannot compile '{local.__name__}' .*only prob and reward may be"
    with pytest.raises(TypeError, match=message):
        build(local=local)


@pytest.mark.parametrize("local", [unknown_name, unknown_type])
def test_what_numba_cannot_compile_is_a_readable_type_error(local):
    with pytest.raises(TypeError, match=rf"^local: numba cannot compile '{local.__name__}'"):
        build(local=local)


@pytest.mark.parametrize("local", [too_few, imports, NotAFunction(), print])
def test_what_is_no_function_of_six_arguments_is_a_readable_type_error(local):
    with pytest.raises(TypeError, match=r"^local: "):
        build(local=local)


# Evaluation.


@pytest.mark.parametrize("name", MODELS)
def test_compiled_and_plain_function_agree_at_every_state(name):
    model = MODELS[name](n_states=4)
    rng = generator("evaluate")
    mu = rng.dirichlet(np.ones(4), 5)
    prob, reward = model.evaluate(mu)
    assert prob.shape == (5, model.n_actions, model.graph.indices.size)
    assert reward.shape == (5, 4, model.n_actions)
    for b in range(5):
        for s in range(4):
            own = slice(model.graph.indptr[s], model.graph.indptr[s + 1])
            plain_prob, plain_reward = model.evaluate_local(s, mu[b, model.graph.neighbors(s)])
            allowed = model.action_mask[s]
            # A few dozen roundings, in an order that the compiler may change.
            np.testing.assert_allclose(
                prob[b, allowed, own], plain_prob[allowed], rtol=1e-13, atol=1e-15
            )
            np.testing.assert_allclose(
                reward[b, s, allowed], plain_reward[allowed], rtol=1e-13, atol=1e-15
            )
            assert not prob[b, ~allowed, own].any()
            assert not reward[b, s, ~allowed].any()
        one_prob, one_reward = model.evaluate(mu[b])
        np.testing.assert_array_equal(one_prob, prob[b])
        np.testing.assert_array_equal(one_reward, reward[b])


def test_evaluate_by_hand():
    # 10 agents: 4, 6, 0 on a path. node[0] = 0.5 at state 0; edge[0] in CSR order.
    model = path_model()
    edge, mu = model.edge, np.array([0.4, 0.6, 0.0])
    prob, reward = model.evaluate(mu)
    weights = edge[:2, 0] * np.exp(-0.5 * 2.0 * mu[:2])
    expected = weights / weights.sum()
    np.testing.assert_allclose(prob[1, :2], expected, rtol=1e-14)
    tolls = expected @ (edge[:2, 1] * (0.5 + 0.5 * mu[:2]))
    assert reward[0, 1] == pytest.approx(1.0 - 0.1 - tolls, rel=1e-14)
    table, rewards = local_tables(model, (4, 6, 0))
    np.testing.assert_allclose(prob[0, :2], table[0, 0, :2], rtol=1e-14)
    np.testing.assert_allclose(reward, rewards, rtol=1e-13)


@pytest.mark.parametrize(
    ("mu", "message"),
    [
        (np.ones(3), r"^mu: expected shape \(B, 4\) or \(4,\), got \(3,\)$"),
        (np.ones((1, 1, 4)), r"^mu: expected shape .* got \(1, 1, 4\)$"),
        ([0, 0, math.nan, 1], r"^mu\[2\]: expected a finite number >= 0, got nan$"),
        ([0, math.inf, 0, 1], r"^mu\[1\]: expected a finite number >= 0, got inf$"),
        ([[0, 0, 0, 1], [0, 0, -1, 1]], r"^mu\[1, 2\]: expected a finite number >= 0, got -1\.0$"),
    ],
)
def test_bad_densities_are_named(mu, message):
    with pytest.raises(ValueError, match=message):
        ring_model().evaluate(mu)


@pytest.mark.parametrize("mu", ["abcd", np.ones(4) * 1j])
def test_densities_that_are_not_real_numbers_are_named(mu):
    with pytest.raises(TypeError, match=r"^mu: expected real numbers"):
        ring_model().evaluate(mu)


def test_evaluate_local_refuses_states_and_shapes():
    model = ring_model()
    with pytest.raises(IndexError, match=r"s: expected a state in .* got 4"):
        model.evaluate_local(4, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"^mu: expected shape \(3,\), got \(2,\)$"):
        model.evaluate_local(0, [1.0, 0.0])


def test_no_rows_and_states_without_neighbours():
    prob, reward = ring_model().evaluate(np.zeros((0, 4)))
    assert prob.shape == (0, 3, 12)
    assert reward.shape == (0, 4, 3)
    alone = build(ltde.Graph(1, []))
    assert alone.evaluate([1.0])[0].tolist() == [[1.0], [1.0]]
    assert ltde.Simulator(alone, 5).rollout([[0.5, 0.5]], 3).counts.ravel().tolist() == [5] * 4


# check.


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_good_models_pass_and_masked_rows_are_never_read(name, compiled):
    MODELS[name](n_states=4).check(compiled=compiled)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_every_planted_fault(fault, compiled):
    what, value = FAULTS[fault]
    with pytest.raises(
        ltde.ModelError, match=rf"state 2: action 1: {what}; mu\(N_s\) = \["
    ) as info:
        faulty_model(fault).check(compiled=compiled)
    error = info.value
    assert isinstance(error, ValueError)
    assert (error.replica, error.step, error.state, error.action) == (0, None, 2, 1)
    assert error.value == pytest.approx(value, rel=1e-15, nan_ok=True)
    assert len(error.mu) == 3
    assert not error.raised
    # The same fault in a masked action is nobody's business.
    mask = np.ones((6, 2), dtype=bool)
    mask[2, 1] = False
    faulty_model(fault, action_mask=mask).check(compiled=compiled)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_faults_of_crowded_states(fault, compiled):
    # Only a corner of the simplex has 0.995 of the agents in one state.
    with pytest.raises(ltde.ModelError) as info:
        faulty_model(fault, density=0.995).check(compiled=compiled)
    assert info.value.mu[1] >= 0.995
    faulty_model(fault, density=1.5).check(compiled=compiled)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("fault", RAISED)
def test_check_raises_the_exception_of_the_function(fault, compiled):
    error, message = RAISED[fault]
    with pytest.raises(error, match=message) as info:
        faulty_model(fault, density=0.5).check(compiled=compiled)
    if compiled:
        (note,) = info.value.__notes__
        assert note.startswith("raised by the local function at mu[")
        assert "state 2" in note


def test_check_compares_the_compiled_with_the_plain_function():
    model = ring_model()
    model.check()
    # as if a global had changed since the compilation
    vars(model).update(local=path_local, node=np.ones((4, 2)), edge=np.ones((12, 2)))
    with pytest.raises(ltde.ModelError, match=r"prob\[\d\] is .* compiled but .* in plain Python"):
        model.check()


def test_check_asks_for_a_sample():
    with pytest.raises(ValueError, match=r"^n_samples: expected at least 1, got 0$"):
        ring_model().check(n_samples=0)


def test_without_a_reward_range_rewards_only_have_to_be_finite():
    for fault in (5, 6):
        faulty_model(fault, reward_range=None).check()
    with pytest.raises(ltde.ModelError, match="reward"):
        faulty_model(7, reward_range=None).check()


# Identity and pickling.


def test_the_fingerprint_changes_with_every_ingredient():
    direction = ring_model().edge
    uniform = np.full(4, 0.25)

    def other(graph=RING, local=ring_local, **options):
        return ltde.NetworkedModel(
            graph, 3, local, **({"edge": direction, "initial": uniform} | options)
        )

    mask = np.ones((4, 3), dtype=bool)
    mask[0, 0] = False
    models = [
        other(),
        other(ltde.Graph(4, [[0, 1], [1, 2], [2, 3], [0, 2]]), edge=direction),
        other(local=path_local, edge=direction.repeat(2, axis=1), node=np.ones((4, 2))),
        ltde.NetworkedModel(RING, 4, ring_local, edge=direction, initial=uniform),
        other(node=np.zeros(4)),
        other(node=np.ones(4)),
        other(edge=direction + 1.0),
        other(action_mask=mask),
        other(initial=np.array([0.5, 0.5, 0.0, 0.0])),
        other(initial=np.array([1, 1, 1, 1])),
        other(initial=np.array([[1, 1, 1, 1]] * 2)),
        other(initial=ltde.DirichletInitial(uniform)),
        other(discount=0.9),
        other(reward_range=(0.0, 1.0)),
        other(reward_range=(0.0, 2.0)),
    ]
    prints = [model.fingerprint for model in models]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 64 for p in prints)
    assert other().fingerprint == prints[0]
    assert pickle.loads(pickle.dumps(models[-1])).fingerprint == prints[-1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("through", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_pickled_model_is_the_same(name, through):
    model = MODELS[name](n_states=4, initial=ltde.DirichletInitial(np.arange(1.0, 5.0)))
    again = through(model)
    assert again is not model
    assert (again.fingerprint, repr(again)) == (model.fingerprint, repr(model))
    mu = np.full(4, 0.25)
    for one, other in zip(model.evaluate(mu), again.evaluate(mu), strict=True):
        np.testing.assert_array_equal(one, other)
    counts = [ltde.Simulator(m, 1000, seed=3).counts.tolist() for m in (model, again)]
    assert counts[0] == counts[1]


def test_functions_that_another_process_could_not_find_are_refused():
    def nested(s, mu, node, edge, prob, reward):
        prob[:, 0] = 1.0

    def disguised(s, mu, node, edge, prob, reward):
        prob[:, 0] = 1.0

    disguised.__qualname__ = "stay"
    for local, name in ((lambda *x: None, "<lambda>"), (nested, "nested"), (disguised, "stay")):
        if name == "<lambda>":
            local = lambda s, mu, node, edge, prob, reward: None  # noqa: E731
        model = build(local=local)
        message = rf"local: .*{name} is not a function at the top level of an importable module"
        with pytest.raises(pickle.PicklingError, match=message):
            pickle.dumps(model)


def test_arrays_of_a_model_are_its_own_and_read_only():
    node = np.ones((4, 1))
    model = build(node=node)
    node[:] = 7.0
    assert (model.node == 1.0).all()
    assert model.edge.shape == (12, 0)
    for array in (model.node, model.edge, model.action_mask, model.initial):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_repr_and_defaults():
    model = build()
    assert repr(model) == "NetworkedModel(n_states=4, n_actions=2, local='stay', discount=0.95)"
    np.testing.assert_array_equal(model.initial, np.full(4, 0.25))
    assert model.action_mask.all()
    assert model.reward_range == (-math.inf, math.inf)
    assert repr(ltde.DirichletInitial([1.0])) == "DirichletInitial(alpha=array([1.]))"


def test_the_planted_faults_are_planted():
    """`faulty_local` does nothing wrong by itself, and its exception is its own."""
    faulty_model().check()
    prob, reward = faulty_model().evaluate(np.full(6, 1 / 6))
    assert prob.sum() == 12.0
    assert (reward == 0.5).all()
    arguments = np.ones(3), np.array([RAISES, 1, 0]), None, np.zeros((2, 3)), np.zeros(2)
    with pytest.raises(RoadClosed) as info:
        faulty_local(2, *arguments)
    assert info.value.args == ("too crowded", 2)
    assert star_model().action_mask.sum() == 4 + 3 * 2


# Functions that the local function calls, and globals that it reads.


@numba.njit
def put(prob, index):
    prob[0, index] = 1.0


@numba.njit
def put_by_another(prob, index):
    put(prob, index)


INDEX = 3  # |N_s| is 3: one past the end


def writes_through_a_helper(s, mu, node, edge, prob, reward):
    put_by_another(prob, INDEX)
    prob[0, 0] = prob[1, 1] = 1.0


@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_write_out_of_range_in_a_jitted_helper_is_caught(compiled_before):
    if compiled_before:
        put_by_another(np.zeros((2, 5)), 3)
    model = ltde.NetworkedModel(ltde.Graph.ring(5), 2, writes_through_a_helper, discount=0.5)
    with pytest.raises((IndexError, ltde.ModelError), match="state 0"):
        model.evaluate(np.full(5, 0.2))


PAY = 1.0


def pays_a_global(s, mu, node, edge, prob, reward):
    prob[0, 0] = 1.0
    reward[0] = PAY


def test_a_new_model_sees_a_global_that_has_changed(monkeypatch):
    def build_one():
        return ltde.NetworkedModel(ltde.Graph.path(2), 1, pays_a_global, discount=0.5)

    first = build_one()
    monkeypatch.setattr(sys.modules[__name__], "PAY", 2.0)
    second = build_one()
    assert first.evaluate([0.5, 0.5])[1].tolist() == [[1.0], [1.0]]
    assert second.evaluate([0.5, 0.5])[1].tolist() == [[2.0], [2.0]]
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_ignores_globals_that_are_only_attribute_names(monkeypatch):
    # pays_a_global reads no `size`; a module that defines one must not matter
    before = ltde.NetworkedModel(ltde.Graph.path(2), 1, pays_a_global, discount=0.5).fingerprint
    monkeypatch.setattr(sys.modules[__name__], "size", object(), raising=False)
    after = ltde.NetworkedModel(ltde.Graph.path(2), 1, pays_a_global, discount=0.5).fingerprint
    assert before == after


@pytest.mark.parametrize("bad", [(math.inf, math.inf), (-math.inf, -math.inf)])
def test_a_reward_range_without_a_finite_number_is_refused(bad):
    with pytest.raises(ValueError, match=r"^reward_range: no finite number"):
        build(reward_range=bad)


def test_tiny_alpha_is_refused_and_small_alpha_gives_densities():
    with pytest.raises(ValueError, match="at least 1e-300"):
        ltde.DirichletInitial(np.full(4, 5e-324))
    model = ring_model(4, ltde.DirichletInitial(np.full(4, 1e-300)))
    density = ltde.Simulator(model, math.inf, 20, seed=1).counts
    assert (np.sort(density, axis=1) == [0.0, 0.0, 0.0, 1.0]).all()

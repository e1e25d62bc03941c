"""`evaluate`: teams, policies of one agent and labelled agents, at finite N and in the limit."""

import dataclasses
import math
from functools import cache

import ltde
import numpy as np
import pytest
import statcheck
import torch
from ltde.evaluation import _student, mean_interval
from ltde.exact import ExactSystem
from models import ring_model, star_model
from scipy import stats

N = 12


FUNCTION = ltde.FunctionPolicy(lambda counts, n: np.full((*counts.shape, 3), 1 / 3))
CHANGING = ltde.TabularPolicy(np.full((200, 4, 3), 1 / 3))


@cache
def ring(n_states=4, discount=0.9):
    return ring_model(n_states, discount=discount)


def within(values, expected, sigmas=5.0):
    """Whether the mean of independent values is within some standard errors of what is expected."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert error > 0.0
    return abs(values.mean() - expected) < sigmas * error


def policy_of(family, model=None, seed=3, tau=3.0):
    kind = {"softmax": ltde.SoftmaxPolicy, "energy": ltde.EnergyPolicy}[family]
    return kind(model or ring(), 8, seed=seed, tau=tau, dtype=torch.float64)


@pytest.mark.statistical
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("family", ["softmax", "energy"])
def test_evaluation_is_j(family, discount):
    model = ring(3, discount)
    policy = policy_of(family, model)
    exact = ExactSystem(model, 3, policy)
    result = ltde.evaluate(model, policy, 3, 4000, seed=1)
    assert discount**result.horizon <= 1e-4 < discount ** (result.horizon - 1)
    assert within(result.values, exact.J)
    per_state = exact.initial_law @ exact.v
    np.testing.assert_allclose(result.per_state, per_state, atol=0.05)
    # what the interval says of itself
    assert result.values.shape == (4000,)
    assert result.mean == pytest.approx(result.values.mean(), rel=1e-12)
    assert result.per_state.sum() == pytest.approx(result.mean, rel=1e-12)
    half = stats.t.ppf(0.975, 3999) * stats.sem(result.values)
    np.testing.assert_allclose(result.interval, [result.mean - half, result.mean + half], rtol=1e-9)
    assert (result.n_agents, np.ndim(result.mean)) == (3, 0)


@pytest.mark.statistical
def test_the_interval_covers():
    model = ring(3, 0.5)
    policy = policy_of("softmax", model)
    exact = ExactSystem(model, 3, policy).J
    results = [ltde.evaluate(model, policy, 3, 8, seed=s, threads=1) for s in range(400)]
    covered = sum(r.interval[0] <= exact <= r.interval[1] for r in results)
    # 5 sigma of a binomial, and 2 % for values that are not normal
    assert covered > 400 * 0.93 - 5 * math.sqrt(400 * 0.95 * 0.05)
    assert covered < 400 * 0.97 + 5 * math.sqrt(400 * 0.95 * 0.05)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 15, 31, 999])
def test_students_t(freedom):
    assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-3)


def test_one_replica_has_a_point():
    result = ltde.evaluate(ring(), policy_of("softmax"), N, 1)
    assert result.interval == (result.mean, result.mean)


def test_the_mean_field_limit():
    policy = policy_of("softmax")
    limit = ltde.evaluate(ring(), policy, math.inf, 3)
    assert limit.n_agents == math.inf
    np.testing.assert_allclose(limit.values, limit.mean, rtol=1e-12)
    large = ltde.evaluate(ring(), policy, 10**8, 4)
    assert large.mean == pytest.approx(limit.mean, rel=1e-3)
    alone = ltde.evaluate(ring(), policy, math.inf, 2, execution="individual")
    assert alone.mean == pytest.approx(limit.mean, rel=1e-9)


@pytest.mark.statistical
def test_individual_execution_of_softmax_is_the_same_law():
    model = ring(3, 0.8)
    policy = policy_of("softmax", model)
    result = ltde.evaluate(model, policy, 3, 3000, seed=2, execution="individual")
    assert within(result.values, ExactSystem(model, 3, policy).J)


@pytest.mark.statistical
def test_individual_execution_of_energy_is_another_law():
    model = ring(3, 0.8)
    policy = policy_of("energy", model, tau=20.0)
    result = ltde.evaluate(model, policy, 3, 3000, seed=2, execution="individual")
    team = ExactSystem(model, 3, policy).J
    assert not within(result.values, team)
    assert within(ltde.evaluate(model, policy, 3, 3000, seed=2).values, team)


@pytest.mark.parametrize("execution", ["team", "individual"])
def test_other_policies_are_evaluated(execution):
    uniform = ltde.TabularPolicy.uniform(ring())
    first = ltde.evaluate(ring(), uniform, N, 4, seed=1, execution=execution)
    second = ltde.evaluate(ring(), np.full((4, 3), 1 / 3), N, 4, seed=1, execution=execution)
    assert first.mean == second.mean
    function = ltde.FunctionPolicy(lambda counts, n: np.full((*counts.shape, 3), 1 / 3))
    assert ltde.evaluate(ring(), function, N, 4, 5, seed=1, execution=execution).horizon == 5


@pytest.mark.parametrize("horizon", [1, 63, 64, 65, 200])
def test_the_horizon(horizon):
    policy = policy_of("softmax")
    result = ltde.evaluate(ring(), policy, N, 3, horizon, seed=4)
    rewards = ltde.Simulator(ring(), N, 3, seed=4).rollout(policy, horizon).rewards
    values = (0.9 ** np.arange(horizon)[:, None, None] * rewards).sum((0, 2))
    np.testing.assert_allclose(result.values, values, rtol=1e-12)
    assert result.horizon == horizon


def test_evaluation_repeats_itself():
    policy = policy_of("softmax")
    first = ltde.evaluate(ring(), policy, N, 4, seed=1, threads=1)
    second = ltde.evaluate(ring(), policy, N, 4, seed=1, threads=2)
    np.testing.assert_array_equal(first.values, second.values)
    assert ltde.evaluate(ring(), policy, N, 4, seed=2).mean != first.mean
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.mean = 0.0


@pytest.mark.parametrize(
    ("error", "name", "changes"),
    [
        (ValueError, "execution", {"execution": "both"}),
        (ValueError, "horizon", {"horizon": 0}),
        (ValueError, "horizon", {"horizon": -1}),
        (TypeError, "horizon", {"horizon": 2.5}),
        (TypeError, "horizon", {"horizon": True}),
        (ValueError, "n_replicas", {"n_replicas": 0}),
        (TypeError, "n_replicas", {"n_replicas": "4"}),
        (ValueError, "n_agents", {"n_agents": 0}),
        (ValueError, "n_agents", {"n_agents": 2.5}),
        (ValueError, "seed", {"seed": -1}),
        (ValueError, "threads", {"threads": 0}),
        (TypeError, "model", {"model": None}),
        (ValueError, "n_agents", {"execution": "agents", "n_agents": math.inf}),
        (ValueError, "n_agents", {"execution": "agents", "n_agents": 0}),
        (ValueError, "n_replicas", {"execution": "agents", "n_replicas": 0}),
        (TypeError, "n_replicas", {"execution": "agents", "n_replicas": 2.0}),
        (ValueError, "seed", {"execution": "agents", "seed": -1}),
        (TypeError, "policy", {"execution": "agents", "policy": FUNCTION}),
        (ValueError, "policy", {"execution": "agents", "policy": np.full((3, 3), 1 / 3)}),
        (ValueError, "probs", {"execution": "agents", "policy": CHANGING}),
        (ValueError, "policy at state 0", {"policy": lambda state, density: [0.5, 0.5]}),
        (ValueError, "policy at state 0", {"policy": lambda state, density: 1 / 3}),
        (ValueError, r"probs\[0, 0\]", {"policy": lambda state, density: [0.5, 0.5, 0.5]}),
        (ValueError, r"probs\[0, 0, 0\]", {"policy": lambda state, density: [-1.0, 1.0, 1.0]}),
    ],
)
def test_bad_arguments_of_evaluate(error, name, changes):
    arguments = {"model": ring(), "policy": policy_of("softmax"), "n_agents": N} | changes
    with pytest.raises(error, match=f"^{name}: "):
        ltde.evaluate(**arguments)


def test_an_energy_based_team_has_no_value_in_the_limit():
    policy = policy_of("energy")
    with pytest.raises(ValueError, match=r"^policy: .*n_agents = inf.*individual\(n_agents\)"):
        ltde.evaluate(ring(), policy, math.inf)


# Labelled agents.


class OneByOne:
    """The team policy (3.2) of agents that act by `decide`, for the oracle."""

    def __init__(self, decide):
        self.decide = decide

    def log_prob(self, counts, actions, n_agents):
        """Return log Pi_s(h(s) | mu(s)), (..., S)."""
        result = np.zeros(counts.shape)
        for index in np.ndindex(*counts.shape):
            n = int(counts[index])
            probs = self.decide(index[-1], n / n_agents)
            result[index] = stats.multinomial.logpmf(actions[index], n, probs)
        return result


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["softmax", "table", "masks"])
def test_labelled_agents_have_the_value_of_multinomial_teams(kind):
    # 1000 replicas, 5 standard errors of 0.007: a value that is wrong by 0.06 is caught, such as
    # that of another policy.
    model = star_model(3, discount=0.5) if kind == "masks" else ring(3, 0.5)
    table = np.where(model.action_mask, [0.1, 0.2, 0.7], 0.0)
    table /= table.sum(axis=1, keepdims=True)
    softmax, other = (policy_of("softmax", model, seed=s, tau=tau) for s, tau in ((3, 3), (5, 30)))
    policy = table if kind == "table" else softmax
    team = ExactSystem(model, 3, policy).J
    wrong = ExactSystem(model, 3, other).J
    draws = statcheck.seed(f"agents {kind}")
    result = ltde.evaluate(model, policy, 3, 1000, seed=draws, execution="agents")
    assert within(result.values, team)
    assert not within(result.values, wrong)
    assert within(ltde.evaluate(model, policy, 3, 1000, seed=draws).values, team)
    assert result.n_agents == 3
    assert 0.5**result.horizon <= 1e-4


@pytest.mark.statistical
def test_labelled_agents_of_an_energy_based_policy_act_by_its_individual_policy():
    model = ring(3, 0.5)
    policy = policy_of("energy", model, tau=20.0)
    alone = policy.individual(3)
    agents = ltde.evaluate(model, policy, 3, 800, seed=statcheck.seed("alone"), execution="agents")
    assert within(agents.values, ExactSystem(model, 3, OneByOne(alone)).J)
    assert not within(agents.values, ExactSystem(model, 3, policy_of("energy", model, seed=5)).J)
    again, few = (
        ltde.evaluate(model, p, 3, 4, seed=1, execution="agents").values for p in (policy, alone)
    )
    np.testing.assert_array_equal(again, few)


def test_labelled_agents_take_every_form_of_a_policy():
    table = np.full((4, 3), 1 / 3)
    forms = table, ltde.TabularPolicy(table), lambda state, density: table[state]
    values = [
        ltde.evaluate(ring(), policy, N, 3, 6, seed=4, execution="agents").values
        for policy in forms
    ]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


def test_replicas_of_labelled_agents_are_drawn_apart():
    policy = policy_of("softmax")
    first, second = (
        ltde.evaluate(ring(), policy, N, b, 6, seed=4, execution="agents") for b in (3, 5)
    )
    np.testing.assert_array_equal(first.values, second.values[:3])  # more replicas, the same ones
    assert len(set(second.values.tolist())) == 5
    other = ltde.evaluate(ring(), policy, N, 3, 6, seed=5, execution="agents")
    assert not set(other.values) & set(second.values)


# One policy at many N.


@pytest.mark.parametrize("n_agents", [3, N, math.inf])
def test_a_policy_of_one_agent_is_played_by_teams(n_agents):
    softmax = policy_of("softmax")
    values = [
        ltde.evaluate(ring(), policy, n_agents, 4, 20, seed=1).values
        for policy in (softmax, softmax.individual())
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    table = ltde.TabularPolicy.uniform(ring())
    values = [
        ltde.evaluate(ring(), policy, n_agents, 4, 20, seed=1).values
        for policy in (table, table.individual())
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)


def test_individual_execution_is_the_individual_policy():
    policy = policy_of("energy", tau=20.0)
    first = ltde.evaluate(ring(), policy, N, 4, 20, seed=1, execution="individual")
    second = ltde.evaluate(ring(), policy.individual(N), N, 4, 20, seed=1)
    np.testing.assert_allclose(first.values, second.values, rtol=1e-12)
    team = ltde.evaluate(ring(), policy, N, 4, 20, seed=1)
    assert not np.allclose(first.values, team.values, rtol=1e-3)


def test_the_answers_of_a_policy_of_one_agent_are_kept():
    asked = []

    def policy(state, density):
        asked.append((state, density))
        return np.full(3, 1 / 3)

    ltde.evaluate(ring(), policy, 3, 8)
    assert len(asked) == len(set(asked)) <= 4 * 3  # states times 1, 2 or 3 agents
    assert {density for _, density in asked} <= {1 / 3, 2 / 3, 1.0}


@pytest.mark.statistical
def test_a_policy_trained_at_one_n_is_evaluated_at_others():
    model = ring(3, 0.5)
    config = ltde.Config(width=8, n_replicas=4, segment=5, n_iterations=10, evaluate_every=0)
    policy = ltde.LTDENeuralAC(model, 50, config, threads=1).fit().policy
    for n_agents in (2, 4):
        result = ltde.evaluate(
            model, policy, n_agents, 20_000, seed=statcheck.seed(f"at {n_agents}")
        )
        assert within(result.values, ExactSystem(model, n_agents, policy).J)
        assert not within(result.values, ExactSystem(model, n_agents + 1, policy).J)
    limit = ltde.evaluate(model, policy, math.inf, 1)
    assert ltde.evaluate(model, policy, 10**8, 2).mean == pytest.approx(limit.mean, rel=1e-3)


@pytest.mark.statistical
def test_values_tend_to_that_of_the_limit():
    # The gap is of order 1 / N: its intervals at N, 8 N and 64 N do not overlap.
    policy = policy_of("softmax")
    limit = ltde.evaluate(ring(), policy, math.inf, 3000)
    gaps = [
        ltde.evaluate(ring(), policy, n, 3000, seed=statcheck.seed(f"gap {n}")).minus(limit)
        for n in (4, 32, 256)
    ]
    for near, far in zip(gaps[1:], gaps, strict=False):
        assert far.interval[1] < near.interval[0] < 0.02
        assert abs(near.mean) < 0.3 * abs(far.mean)


@pytest.mark.statistical
def test_the_limit_of_an_energy_based_policy_by_its_individual_policy():
    # Enumeration for 300 agents is within about 1 / 100 of the limit; the chains are as noisy.
    policy = policy_of("energy", tau=10.0)
    limit = ltde.evaluate(ring(), policy, math.inf, 8, execution="individual")
    policy.enumeration_limit = 10**5
    near = ltde.evaluate(ring(), policy.individual(300), math.inf, 1)
    uniform = ltde.evaluate(ring(), ltde.TabularPolicy.uniform(ring()), math.inf, 1)
    few = ltde.evaluate(ring(), policy.individual(4), math.inf, 1)
    assert limit.mean == pytest.approx(near.mean, abs=0.03)
    assert abs(near.mean - uniform.mean) > 0.2
    assert abs(near.mean - few.mean) > 0.06


# Gaps.


def test_the_interval_of_a_gap_is_that_of_the_differences():
    policy = policy_of("softmax")
    first, second = (ltde.evaluate(ring(), policy, n, 30, seed=1) for n in (3, N))
    gap = first.minus(second)
    assert gap.mean == first.mean - second.mean
    known = stats.ttest_rel(first.values, second.values).confidence_interval(0.95)
    np.testing.assert_allclose(gap.interval, [known.low, known.high], rtol=1e-6)
    back = second.minus(first)
    np.testing.assert_allclose([back.mean, *back.interval], [-gap.mean, -known.high, -known.low])
    assert first.minus(first).interval == (0.0, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        gap.mean = 0.0


@pytest.mark.statistical
@pytest.mark.parametrize("pair", ["sizes", "executions"])
def test_the_interval_of_a_gap_covers(pair):
    # 300 intervals of 8 replicas: 5 sigma of a binomial, and 2 % for values that are not normal.
    model = ring(3, 0.5)
    if pair == "sizes":
        policy = policy_of("softmax", model)
        exact = ExactSystem(model, 2, policy).J - ExactSystem(model, 4, policy).J
        sides = ({"n_agents": 2}, {"n_agents": 4})
    else:
        policy = policy_of("energy", model, tau=20.0)
        exact = (
            ExactSystem(model, 3, policy).J
            - ExactSystem(model, 3, OneByOne(policy.individual(3))).J
        )
        sides = ({"n_agents": 3}, {"n_agents": 3, "execution": "individual"})
    covered, elsewhere = 0, 0
    for s in range(300):
        first, second = (
            ltde.evaluate(model, policy, n_replicas=8, seed=s, threads=1, **side) for side in sides
        )
        low, high = first.minus(second).interval
        covered += low <= exact <= high
        elsewhere += low <= exact + 0.3 <= high
    slack = 5 * math.sqrt(300 * 0.95 * 0.05)
    assert 300 * 0.93 - slack < covered < 300 * 0.97 + slack
    assert elsewhere < 300 * 0.7


def test_equal_seeds_pair_the_starts():
    initial = ltde.DirichletInitial([0.5, 0.5, 0.5])
    model = ring_model(3, initial=initial, discount=0.5)
    policy = policy_of("softmax", model)
    limit = ltde.evaluate(model, policy, math.inf, 16, seed=1)
    paired, apart = (
        ltde.evaluate(model, policy, 10**4, 16, seed=s).minus(limit).interval for s in (1, 2)
    )
    assert paired[1] - paired[0] < 0.1 * (apart[1] - apart[0])


@pytest.mark.parametrize(
    ("error", "match", "other"),
    [
        (ValueError, r"^other: expected 3 replicas, got 4$", 4),
        (TypeError, r"^other: expected an Evaluation, got float$", None),
    ],
)
def test_gaps_that_have_no_meaning(error, match, other):
    first = ltde.evaluate(ring(), policy_of("softmax"), N, 3, 2)
    second = ltde.evaluate(ring(), policy_of("softmax"), N, other, 2) if other else 1.0
    with pytest.raises(error, match=match):
        first.minus(second)


def test_an_infinite_value_has_no_interval():
    assert mean_interval(np.array([1.0, np.inf])) == (math.inf, math.inf)

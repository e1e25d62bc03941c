"""The exact solution of small systems, against the enumerating oracle and by definition."""

import importlib
import itertools
import math
import sys
from functools import lru_cache

import ltde
import numpy as np
import pytest
import torch
from exact_law import (
    compositions,
    initial_law,
    local_tables,
    multinomial_pmf,
    restart_chain_law,
    step_law,
    total_variation,
    visitation_law,
)
from ltde.exact import ExactSystem
from models import complete_model, path_model, random_policy, ring_model, star_model
from random_models import data_model

START = np.array([[3, 0, 0], [0, 1, 2]])
SYSTEMS = {
    "ring": (ring_model, 3, START),
    "path": (path_model, 4, np.array([0.5, 0.2, 0.3])),
    "complete": (complete_model, 3, None),
    "star": (star_model, 3, ltde.DirichletInitial([0.5, 1.0, 2.0])),
}
EXACT = {"rtol": 0.0, "atol": 1e-12}  # sums of a few thousand products of order 1


class DensityPolicy:
    """Softmax of `theta[s, 0, a] + theta[s, 1, a] mu(s)`: a team policy that depends on mu(s)."""

    def __init__(self, model, theta):
        self.mask, self.theta = model.action_mask, np.asarray(theta, dtype=float)

    @classmethod
    def random(cls, model, seed=0):
        """Draw the parameters."""
        shape = (model.n_states, 2, model.n_actions)
        return cls(model, np.random.default_rng(seed).normal(0.0, 1.0, shape))

    def __call__(self, state, density):
        """Probabilities of the actions of one agent."""
        logits = np.where(self.mask[state], self.theta[state].T @ [1.0, density], -np.inf)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def rows(self, counts, actions, n_agents):
        """Yield index, density, p, n(s) and c(s, .) of every team; none may be empty."""
        assert np.all(np.asarray(actions).sum(axis=-1) == counts)
        assert np.all(counts > 0)
        for index in np.ndindex(*counts.shape):
            density = counts[index] / n_agents
            yield index, density, self(index[-1], density), counts[index], actions[index]

    def log_prob(self, counts, actions, n_agents=None):
        """Logarithms of (3.2), `(..., S)`."""
        result = np.empty(counts.shape)
        for index, _, p, _, c in self.rows(counts, actions, n_agents):
            result[index] = math.log(multinomial_pmf(c.tolist(), p))
        return result

    def score(self, counts, actions, n_agents=None):
        """Their gradients in `theta[s]`, `(..., S, 2, A)`."""
        result = np.empty((*counts.shape, 2, actions.shape[-1]))
        for index, density, p, n, c in self.rows(counts, actions, n_agents):
            result[index] = np.outer([1.0, density], c - n * p)
        return result


@lru_cache
def solve(name, discount=0.8):
    make, n_agents, initial = SYSTEMS[name]
    model = make(n_states=3, initial=initial, discount=discount)
    policy = DensityPolicy.random(model, seed=len(name))
    return model, n_agents, policy, ExactSystem(model, n_agents, policy)


@lru_cache
def oracle(name, discount=0.8):
    """By the oracle, for every pair: P(mu' | mu, h), Pi(h | mu) and r_s; keys are tuples."""
    model, n_agents, policy, _ = solve(name, discount)
    result = {}
    for counts in compositions(n_agents, 3):
        _, reward = local_tables(model, counts)
        reward = np.where(model.action_mask, reward, 0.0)
        for (actions, after), p in step_law(model, n_agents, policy, counts).items():
            team = np.reshape(actions, model.action_mask.shape)
            rewards = (team * reward).sum(axis=1) / n_agents
            law, _ = result.setdefault((counts, actions), ({}, rewards))
            law[after] = p
    return {
        pair: ({a: p / math.fsum(law.values()) for a, p in law.items()}, math.fsum(law.values()), r)
        for pair, (law, r) in result.items()
    }


def keys(exact):
    """Write the pairs as the oracle does."""
    return [(tuple(exact.states[row[0]].tolist()), tuple(row[1:].tolist())) for row in exact.pairs]


def dense(operator):
    return operator @ np.eye(operator.shape[1])


# Enumeration, transition, rewards, policy.


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_pair_is_there_once_in_order(name):
    model, n_agents, _, exact = solve(name)
    assert exact.states.tolist() == [list(c) for c in compositions(n_agents, 3)]
    pairs = []
    for i, counts in enumerate(exact.states.tolist()):
        teams = [
            [c for c in compositions(n, model.n_actions) if not np.any(np.array(c)[~mask])]
            for n, mask in zip(counts, model.action_mask, strict=True)
        ]
        pairs += [[i, *itertools.chain(*team)] for team in itertools.product(*teams)]
    assert exact.pairs.tolist() == pairs
    assert exact.pairs.dtype == exact.states.dtype == np.int64
    assert repr(exact) == (
        f"ExactSystem(n_agents={n_agents}, n_states_mu={len(exact.states)}, n_pairs={len(pairs)})"
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_transition_policy_and_rewards_are_the_oracles(name):
    _, _, _, exact = solve(name)
    expected = oracle(name)
    transition = exact.transition.toarray()
    assert set(keys(exact)) == expected.keys()  # the policy takes every allowed action
    for i, pair in enumerate(keys(exact)):
        law, p, rewards = expected[pair]
        row = {tuple(after): q for after, q in zip(exact.states.tolist(), transition[i]) if q > 0}  # noqa: B905
        assert row.keys() == law.keys()
        assert total_variation(row, law) < 1e-12
        assert exact.policy_probs[i] == pytest.approx(p, rel=1e-12)
        assert exact.team_rewards[i] == pytest.approx(rewards, rel=1e-12, abs=1e-15)
    assert exact.transition.has_canonical_format
    assert exact.transition.data.min() > 0.0


def test_the_pairs_of_another_policy_have_another_law():
    model, n_agents, policy, exact = solve("path")
    other = ExactSystem(model, n_agents, DensityPolicy(model, 1.1 * policy.theta))
    constant = DensityPolicy(model, policy.theta * np.array([1.0, 0.0])[:, None])
    np.testing.assert_array_equal(other.pairs, exact.pairs)
    for system in (other, ExactSystem(model, n_agents, constant)):
        assert np.abs(system.policy_probs - exact.policy_probs).max() > 1e-3
        assert abs(system.J - exact.J) > 1e-4


def test_a_table_may_be_an_array_or_a_tabular_policy_with_actions_that_are_never_taken():
    model = star_model(n_states=3)
    probs = np.array([[0.5, 0.0, 0.5], [0.25, 0.75, 0.0], [0.0, 1.0, 0.0]])
    exact = ExactSystem(model, 3, probs)
    assert exact.J == ExactSystem(model, 3, ltde.TabularPolicy(probs)).J
    assert exact.visitation.sum() == pytest.approx(1.0, abs=1e-14)
    taken = exact.pairs[:, 1:].reshape(-1, 3, 3)
    assert np.all(exact.policy_probs[(taken[:, probs == 0] > 0).any(axis=1)] == 0.0)
    law = visitation_law(model, 3, probs)[0]
    sigma = {k: p for k, p in zip(keys(exact), exact.visitation, strict=True) if p > 0.0}
    assert sigma.keys() == law.keys()
    assert total_variation(sigma, law) < 1e-12


def test_forbidden_actions_are_not_taken_and_their_rows_not_read():
    model, _, _, exact = solve("star")
    assert np.all(exact.pairs[:, 1:][:, ~model.action_mask.ravel()] == 0)
    assert np.isfinite(exact.q).all()  # the masked rows hold NaN
    assert exact.gradient()[:, :, 2].tolist()[1:] == [[0.0, 0.0], [0.0, 0.0]]
    message = r"^policy: expected team actions in state 1 .* got 0\.6666\d* for 1 agents$"
    with pytest.raises(ValueError, match=message):
        ExactSystem(model, 3, np.full((3, 3), 1 / 3)).policy_probs  # noqa: B018


def test_empty_teams_earn_nothing_and_do_nothing():
    # `DensityPolicy.rows` asserts that no policy is asked about an empty team.
    _, _, _, exact = solve("path")
    counts = exact.states[exact.pairs[:, 0]]
    assert np.all(exact.team_rewards[counts == 0] == 0.0)
    assert np.abs(exact.team_rewards[counts > 0]).min() > 1e-3
    alone = exact.policy_probs[(counts == [0, 0, 4]).all(axis=1)]
    assert len(alone) == 5
    assert alone.sum() == pytest.approx(1.0, abs=1e-14)


def test_rows_that_nearly_sum_to_one_are_divided_by_their_sum():
    graph = ltde.Graph.path(2)
    weights = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])[[0, 1, 0, 1]]
    near = data_model(graph, weights, row_sum=1.0 + 9e-10, discount=0.8)
    laws = []
    for model in (near, data_model(graph, weights, discount=0.8)):
        policy = DensityPolicy.random(model)
        laws.append(ExactSystem(model, 3, Loose(policy, 1e-5)))
        laws.append(ExactSystem(model, 3, policy))
    for exact in laws:
        np.testing.assert_allclose(exact.transition.sum(axis=1), 1.0, rtol=1e-14)
        np.testing.assert_allclose(exact.visitation, laws[-1].visitation, **EXACT)
    with pytest.raises(ValueError, match=r"^policy: .* sum to 1 .*, got 1\.001"):
        ExactSystem(near, 3, Loose(policy, 1e-3)).J  # noqa: B018


class Loose:
    """A policy whose probabilities are too large by a factor, as after float32 arithmetic."""

    def __init__(self, policy, error):
        self.policy, self.error = policy, error

    def log_prob(self, counts, actions, n_agents=None):
        """Logarithms that are too large by the error."""
        return self.policy.log_prob(counts, actions, n_agents) + self.error


@pytest.mark.parametrize(
    "initial",
    [
        np.array([2, 1, 1]),
        np.array([[4, 0, 0], [0, 0, 4], [0, 0, 4], [1, 2, 1]]),
        np.array([0.5, 0.0, 0.5]),
        np.array([0.2, 0.5, 0.3]),
        ltde.DirichletInitial([0.3, 2.0, 1.0]),
        ltde.DirichletInitial([1e-3, 1e15, 1e15]),
    ],
    ids=["counts", "list", "law with a zero", "law", "Dirichlet", "extreme Dirichlet"],
)
def test_initial_laws(initial):
    model = path_model(initial=initial)
    exact = ExactSystem(model, 4, random_policy(model, np.random.default_rng(0)))
    law = {tuple(c): p for c, p in zip(exact.states.tolist(), exact.initial_law, strict=True) if p}
    if isinstance(initial, ltde.DirichletInitial) and initial.alpha.max() > 1e6:
        expected = {(0, k, 4 - k): math.comb(4, k) / 16 for k in range(5)}  # lgamma would fail
        assert total_variation(law, expected) < 1e-12
    else:
        expected = initial_law(model, 4)
        assert law.keys() == expected.keys()
        assert total_variation(law, expected) < 1e-12


# Values.


@pytest.mark.parametrize("name", SYSTEMS)
def test_bellman_equations(name):
    model, _, _, exact = solve(name)
    expected = oracle(name)
    row = {pair: i for i, pair in enumerate(keys(exact))}
    by_mu = {}
    for pair, (_, p, _) in expected.items():
        by_mu.setdefault(pair[0], []).append((p, exact.q[row[pair]]))
    # V is the mean of Q under Pi, and (3.13) with h' drawn given mu'.
    mean = {mu: sum(p * q for p, q in terms) for mu, terms in by_mu.items()}
    for i, mu in enumerate(exact.states.tolist()):
        np.testing.assert_allclose(exact.v[i], mean[tuple(mu)], **EXACT)
    for pair, (law, _, rewards) in expected.items():
        after = sum(p * mean[mu] for mu, p in law.items())
        np.testing.assert_allclose(exact.q[row[pair]], rewards + 0.8 * after, **EXACT)
    after = exact.pair_transition @ exact.q
    np.testing.assert_allclose(exact.q, exact.team_rewards + 0.8 * after, **EXACT)
    uniform = np.array([q.mean(axis=0) for q in np.split(exact.q, exact._first[1:-1])])
    assert np.abs(exact.v - uniform).max() > 1e-3  # the weights of Pi matter
    assert model.discount == 0.8


@pytest.mark.parametrize("name", SYSTEMS)
def test_v_j_and_sigma_are_the_sums_over_time(name):
    model, n_agents, _, exact = solve(name, 0.5)
    expected, states = oracle(name, 0.5), compositions(n_agents, 3)
    index = {counts: i for i, counts in enumerate(states)}
    kernel, mean = np.zeros((len(states), len(states))), np.zeros((len(states), 3))
    for (counts, _), (law, p, rewards) in expected.items():
        mean[index[counts]] += p * rewards
        for after, q in law.items():
            kernel[index[counts], index[after]] += p * q
    start = np.zeros(len(states))
    for counts, p in initial_law(model, n_agents).items():
        start[index[counts]] = p
    v, later, law, sigma = 0.0, mean, start, 0.0
    for t in range(60):  # what is left out weighs 2^-60
        v, later = v + 0.5**t * later, kernel @ later
        sigma, law = sigma + 0.5 * 0.5**t * law, law @ kernel
    np.testing.assert_allclose(exact.v, v, **EXACT)
    np.testing.assert_allclose(exact.J, start @ v.sum(axis=1), rtol=1e-12)
    for (counts, actions), p in zip(keys(exact), exact.visitation, strict=True):
        expected_p = sigma[index[counts]] * expected[counts, actions][1]
        assert p == pytest.approx(expected_p, rel=1e-10, abs=1e-15)
    nu = np.linalg.matrix_power(kernel, 20_000)[0]
    by_mu = np.bincount(exact.pairs[:, 0], exact.stationary)
    np.testing.assert_allclose(by_mu, nu, rtol=1e-9)
    assert np.abs(nu - sigma).max() > 1e-3


# Visitation and stationary law.


@pytest.mark.parametrize("name", SYSTEMS)
def test_visitation_is_the_law_of_the_restart_chain(name):
    model, n_agents, policy, exact = solve(name)
    sigma = dict(zip(keys(exact), exact.visitation, strict=True))
    on_pairs, on_counts = visitation_law(model, n_agents, policy)
    assert total_variation(sigma, on_pairs) < 1e-12
    assert exact.visitation.sum() == pytest.approx(1.0, abs=1e-13)
    assert exact.visitation.min() >= 0.0
    fresh = exact.initial_law[exact.pairs[:, 0]] * exact.policy_probs
    moved = exact.pair_transition.T @ exact.visitation
    np.testing.assert_allclose(exact.visitation, 0.2 * fresh + 0.8 * moved, **EXACT)
    law = restart_chain_law(model, n_agents, policy, 8)
    by_mu = np.bincount(exact.pairs[:, 0], exact.visitation)
    by_mu = {tuple(c): p for c, p in zip(exact.states.tolist(), by_mu, strict=True)}
    assert total_variation(by_mu, law) <= 0.8**8
    assert total_variation(by_mu, on_counts) < 1e-12
    # J is also the mean reward under sigma; under nu it is something else.
    rewards = exact.team_rewards.sum(axis=1)
    assert exact.visitation @ rewards / 0.2 == pytest.approx(exact.J, rel=1e-12)
    assert exact.stationary @ rewards / 0.2 != pytest.approx(exact.J, rel=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_stationary_is_a_fixed_point(name):
    _, _, _, exact = solve(name)
    nu = exact.stationary
    assert nu.sum() == pytest.approx(1.0, abs=1e-13)
    assert nu.min() >= 0.0
    np.testing.assert_allclose(exact.pair_transition.T @ nu, nu, rtol=1e-10, atol=1e-16)
    moved = exact.pair_transition.T @ exact.visitation
    assert np.abs(moved - exact.visitation).max() > 1e-5


def swap_local(s, mu, node, edge, prob, reward):
    """Go to the other state (a = 0), or to state 0 (a = 1)."""
    prob[0, 1 - s] = 1.0
    prob[1, 0] = 1.0


def test_stationary_law_of_periodic_transient_and_reducible_chains():
    model = ltde.NetworkedModel(ltde.Graph.path(2), 2, swap_local)
    swap, home = [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
    periodic = ExactSystem(model, 1, swap)
    assert periodic.stationary.tolist() == [0.0, 0.5, 0.0, 0.5]  # action 1 comes first
    absorbed = ExactSystem(model, 3, home)
    here = (absorbed.states[absorbed.pairs[:, 0]] == [3, 0]).all(axis=1)
    np.testing.assert_array_equal(absorbed.stationary, here * absorbed.policy_probs)
    assert absorbed.stationary.sum() == 1.0
    with pytest.raises(ValueError, match=r"^stationary: the chain has 2 recurrent classes.*\[1, 1"):
        ExactSystem(model, 2, swap).stationary  # noqa: B018
    # Rare excursions: nearly two classes, still the right law.
    rare = ExactSystem(model, 1, [[1e-9, 1.0 - 1e-9], [2e-9, 1.0 - 2e-9]])
    to_zero, to_one = 1.0, 1e-9  # from 1 to 0 by either action; from 0 to 1 by swapping
    expected = to_one / (to_zero + to_one)
    assert np.bincount(rare.pairs[:, 0], rare.stationary)[0] == pytest.approx(expected, rel=1e-9)


# Gradients.


def difference_quotients(value, theta, step=1e-5):
    """Central differences of `value(theta)` in every entry."""
    gradient = np.zeros(theta.shape)
    for index in np.ndindex(*theta.shape):
        shift = np.zeros(theta.shape)
        shift[index] = step
        gradient[index] = (value(theta + shift) - value(theta - shift)) / (2.0 * step)
    return gradient


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradient_by_finite_differences(name):
    model, n_agents, policy, exact = solve(name)
    expected = difference_quotients(
        lambda theta: ExactSystem(model, n_agents, DensityPolicy(model, theta)).J, policy.theta
    )
    gradient = exact.gradient()
    assert gradient.shape == policy.theta.shape
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    if name in ("path", "star"):  # of diameter 2
        for k in (0, 1):
            near = exact.localized_gradient(k)
            assert np.abs(near - expected).max() > 1e-3 * np.abs(expected).max()


def test_gradient_of_a_table_is_in_its_logits():
    model = ring_model(n_states=3, initial=START, discount=0.8)
    logits = np.random.default_rng(2).normal(size=(3, 3))

    def exact(logits):
        return ExactSystem(model, 3, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))

    expected = difference_quotients(lambda logits: exact(logits).J, logits)
    gradient = exact(logits).gradient()
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("family", [ltde.SoftmaxPolicy, ltde.EnergyPolicy])
def test_gradient_of_a_network_and_the_policy_as_it_was(family):
    model = star_model(n_states=3, discount=0.8)
    policy = family(model, width=2, tau=3.0, density_scale=3.0, dtype=torch.float64)
    exact = ExactSystem(model, 2, policy)
    start = policy.theta.detach().numpy().copy()

    def value(theta):
        with torch.no_grad():
            policy.theta.copy_(torch.from_numpy(theta))
        return ExactSystem(model, 2, policy).J

    expected = difference_quotients(value, start)
    assert np.abs(expected).max() > 1e-3
    value(start + 1.0)  # what was solved does not follow the training
    gradient = exact.gradient()
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_the_score_of_what_never_happens_does_not_matter():
    class Undefined(ltde.TabularPolicy):
        def score(self, counts, actions, n_agents=None):
            score = super().score(counts, actions, n_agents)
            never = np.isneginf(self.log_prob(counts, actions, n_agents))
            assert never.any()
            return np.where(never[..., None], np.nan, score)

    model, n_agents, _, _ = solve("path")
    probs = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    gradient = ExactSystem(model, n_agents, Undefined(probs)).gradient()
    np.testing.assert_array_equal(gradient, ExactSystem(model, n_agents, probs).gradient())


def test_gradient_needs_a_score():
    class Tensors:
        def __init__(self, policy):
            self.policy = policy

        def log_prob(self, counts, actions, n_agents=None):
            log = self.policy.log_prob(counts, actions, n_agents)
            return torch.tensor(log, requires_grad=True)

    model, n_agents, policy, exact = solve("path")
    scoreless = ExactSystem(model, n_agents, Tensors(policy))
    assert scoreless.J == exact.J
    with pytest.raises(TypeError, match=r"^policy: Tensors has no score$"):
        scoreless.gradient()


# Locality.


def agreeing(model, exact, s, k):
    """Rows of pairs, grouped by mu and h on the ball: by definition."""
    ball, classes = model.graph.ball(s, k), {}
    for i, row in enumerate(exact.pairs):
        team = row[1:].reshape(model.action_mask.shape)
        seen = exact.states[row[0]][ball].tobytes(), team[ball].tobytes()
        classes.setdefault(seen, []).append(i)
    return list(classes.values())


@pytest.mark.parametrize("name", ["path", "star"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_localised_q_decay_and_gradient_by_definition(name, k):
    model, n_agents, policy, exact = solve(name)
    rng = np.random.default_rng(k)
    weights = rng.random(exact.q.shape) * (rng.random(exact.q.shape) < 0.5)
    decay, expected = np.zeros(3), np.empty_like(exact.q)
    for s in range(3):
        for rows in agreeing(model, exact, s, k):
            q, w = exact.q[rows, s], weights[rows, s]
            expected[rows, s] = np.average(q, weights=w if w.any() else None)
            decay[s] = max(decay[s], q.max() - q.min())
    local_q = exact.local_q(k, weights)
    np.testing.assert_allclose(local_q, expected, **EXACT)
    np.testing.assert_allclose(exact.decay(k), decay, **EXACT)
    assert np.all(np.abs(local_q - exact.q) <= exact.decay(k) + 1e-12)  # Proposition 3.6
    assert np.all(decay <= exact.decay_bound(k))
    gradient = np.zeros(policy.theta.shape)
    for s in range(3):
        near = expected[:, model.graph.ball(s, k)].sum(axis=1)
        for i, row in enumerate(exact.pairs):
            n, c = exact.states[row[0], s], row[1:].reshape(3, -1)[s]
            if n > 0:
                density = n / n_agents
                score = np.outer([1.0, density], c - n * policy(s, density))
                gradient[s] += exact.visitation[i] * near[i] * score / 0.2
    np.testing.assert_allclose(exact.localized_gradient(k, weights), gradient, rtol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_is_lost_from_the_diameter_on(name):
    _, _, _, exact = solve(name)
    diameter = 1 if name in ("ring", "complete") else 2
    for k in (diameter, diameter + 5):
        np.testing.assert_allclose(exact.local_q(k), exact.q, rtol=1e-15)
        np.testing.assert_array_equal(exact.decay(k), 0.0)
        np.testing.assert_allclose(exact.localized_gradient(k), exact.gradient(), rtol=1e-12)
    assert exact.decay(diameter - 1).max() > 1e-3
    assert np.abs(exact.local_q(diameter - 1) - exact.q).max() > 1e-3


def test_default_weights_are_uniform_and_one_row_of_weights_serves_all_states():
    _, _, _, exact = solve("path")
    np.testing.assert_array_equal(exact.local_q(0), exact.local_q(0, np.full(len(exact.q), 4.0)))
    zero = exact.local_q(0, np.zeros(len(exact.q)))
    np.testing.assert_array_equal(exact.local_q(0), zero)
    sigma = exact.visitation
    every = exact.local_q(0, np.tile(sigma[:, None], 3))
    np.testing.assert_array_equal(exact.local_q(0, sigma), every)
    assert np.abs(every - zero).max() > 1e-3


def queue_local(s, mu, node, edge, prob, reward):
    """Stay; from 2 go to 1 if nobody is in 3. State 0 pays if somebody is in 1."""
    here = 0 if s == 0 else 1
    go = s == 2 and mu[2] == 0.0
    prob[0, here - 1 if go else here] = 1.0
    if s == 0 and mu[1] > 0.0:
        reward[0] = 1.0


def test_the_printed_bound_of_lemma_3_5_fails_for_even_k_and_ours_holds():
    model = ltde.NetworkedModel(ltde.Graph.path(5), 1, queue_local, discount=0.5)
    exact = ExactSystem(model, 10, np.ones((5, 1)))
    # D = 0.9: nine agents in 0 and one in 1. The printed bound is that for r in [0, 1].
    assert exact.decay(2)[0] == pytest.approx(0.8, rel=1e-12)
    assert exact.decay(2)[0] > 0.5**1.5 / 0.5
    for k in range(5):
        assert exact.decay_bound(k) == pytest.approx(0.9 / 0.5 * 0.5 ** math.ceil(k / 2))
        assert np.all(exact.decay(k) <= exact.decay_bound(k))
    rewards = exact.team_rewards[exact.pairs[:, 1] == 9]
    assert rewards[:, 0].max() == 0.9


# The centralised optimum.


def test_optimal_value_is_the_best_of_all_centralised_controls():
    model = path_model(n_states=2, discount=0.7)
    exact = ExactSystem(model, 2, random_policy(model, np.random.default_rng(0)))
    rows = np.split(np.arange(len(exact.pairs)), exact._first[1:-1])
    assert [len(r) for r in rows] == [3, 4, 3]
    best = np.full(3, -np.inf)
    worst = np.full(3, np.inf)
    for chosen in itertools.product(*rows):
        matrix = np.eye(3) - 0.7 * exact.transition[list(chosen)].toarray()
        value = np.linalg.solve(matrix, exact.team_rewards[list(chosen)].sum(axis=1))
        best, worst = np.maximum(best, value), np.minimum(worst, value)
    np.testing.assert_allclose(exact.optimal_value, best, **EXACT)
    assert np.all(best - worst > 0.1)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("discount", [0.0, 0.8, 0.9999])
def test_optimal_value_bounds_every_policy(name, discount):
    make, n_agents, _ = SYSTEMS[name]
    model = make(n_states=3, discount=discount)
    exact = ExactSystem(model, n_agents, DensityPolicy.random(model))
    value = exact.optimal_value
    scale = np.abs(exact.team_rewards.sum(axis=1)).max() / (1.0 - discount)
    # (3.12), up to the error that is promised
    q = exact.team_rewards.sum(axis=1) + discount * (exact.transition @ value)
    best = [part.max() for part in np.split(q, exact._first[1:-1])]
    np.testing.assert_allclose(value, best, rtol=0.0, atol=1e-13 * scale)
    for seed in range(3):
        system = ExactSystem(model, n_agents, DensityPolicy.random(model, seed))
        np.testing.assert_array_equal(system.optimal_value, value)
        assert np.all(value >= system.v.sum(axis=1) - 1e-12 * scale)
        assert (value - system.v.sum(axis=1)).max() > 1e-3 * scale


def lure_local(s, mu, node, edge, prob, reward):
    """Go to the next state (a = 0) or stay (a = 1); state 2 pays 1e-9 more, for ever."""
    prob[0, mu.size - 1] = 1.0
    prob[1, min(s, 1)] = 1.0
    reward[:] = 1.0 + 1e-9 * (s == 2)


def test_optimal_value_sees_small_differences_far_away():
    model = ltde.NetworkedModel(ltde.Graph.path(3), 2, lure_local, discount=0.5)
    exact = ExactSystem(model, 1, np.full((3, 2), 0.5))
    gain = [2e-9, 1e-9, 0.5e-9]  # in state 2, 1, 0
    np.testing.assert_allclose(exact.optimal_value, 2.0 + np.array(gain), rtol=1e-14)


def apart_local(s, mu, node, edge, prob, reward):
    """Stay in 0 (a = 0) or go to 1 (a = 1); return from 1. Paid if half of all are in 0."""
    for a in range(2):
        target = 1 if s == 0 and a == 1 else 0
        prob[a, target] = 1.0
        if mu[0] == 0.5:
            reward[a] = 1.0


def test_two_agents_apart_need_a_controller():
    start = np.array([2, 0])
    model = ltde.NetworkedModel(ltde.Graph.path(2), 2, apart_local, initial=start, discount=0.5)
    values = []
    for p in np.linspace(0.05, 0.95, 19):  # at mu(0) = 1 go with probability p; at 1/2 go
        at_half, at_one = 30.0, math.log(p / (1.0 - p))
        theta = np.zeros((2, 2, 2))
        theta[0, :, 1] = 2.0 * at_half - at_one, 2.0 * (at_one - at_half)
        exact = ExactSystem(model, 2, DensityPolicy(model, theta))
        values.append(2.0 * p * (1.0 - p) / (1.0 - 0.5 * (1.0 - p) ** 2 - 0.25 * p**2))
        np.testing.assert_allclose(exact.J, values[-1], rtol=1e-9)
    assert max(values) == pytest.approx(0.62, abs=0.005)
    assert exact.initial_law @ exact.optimal_value == pytest.approx(1.0, rel=1e-12)


# Sizes, arguments and failures.


def test_systems_of_many_states_or_actions():
    # 60 states, 120 pairs (s, a), two agents: the ranks stay small, radix keys would overflow.
    model = path_model(n_states=60)
    exact = ExactSystem(model, 2, random_policy(model, np.random.default_rng(0)))
    assert exact.pairs.shape == (math.comb(121, 2), 121)
    assert exact.visitation.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(exact.transition.sum(axis=1), 1.0, rtol=1e-13)
    assert exact.decay(59).max() == 0.0
    alone = ExactSystem(path_model(n_states=1, discount=0.5), 5, [[0.0, 1.0]])
    assert alone.pairs[:, 1:].tolist() == [[n, 5 - n] for n in range(6)]
    np.testing.assert_allclose(alone.J, 2.0 * alone.team_rewards[0, 0], rtol=1e-12)
    assert alone.stationary.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_arrays_are_read_only():
    _, _, _, exact = solve("ring")
    names = "states pairs team_rewards policy_probs q v initial_law visitation stationary"
    for name in [*names.split(), "optimal_value"]:
        with pytest.raises(ValueError, match="read-only"):
            getattr(exact, name)[0] = 0
        assert getattr(exact, name) is getattr(exact, name)
    with pytest.raises(ValueError, match="read-only"):
        exact.transition.data[0] = 0.0


def test_too_large_systems_are_refused_with_their_size():
    model = ring_model(n_states=3)
    uniform = ltde.TabularPolicy.uniform(model)
    assert len(ExactSystem(model, 6, uniform, max_pairs=3003).pairs) == 3003
    message = r"^n_agents: 6 agents on 9 allowed pairs \(s, a\) make 3003 pairs .*max_pairs = 3002$"
    with pytest.raises(ValueError, match=message):
        ExactSystem(model, 6, uniform, max_pairs=3002)
    for n_agents, size in ((10**4, "more than 10\\^27"), (2**53, "more than 10\\^123")):
        with pytest.raises(ValueError, match=f"make {size} pairs"):
            ExactSystem(model, n_agents, uniform)
    large = path_model(n_states=1000)
    with pytest.raises(ValueError, match=r"make more than 10\^\d\d+ pairs"):
        ExactSystem(large, 10**9, ltde.TabularPolicy.uniform(large))
    # masks count: 3 + 2 + 2 allowed pairs
    star = star_model(n_states=3)
    with pytest.raises(ValueError, match=r"on 7 allowed pairs \(s, a\) make 84 pairs"):
        ExactSystem(star, 3, ltde.TabularPolicy.uniform(star), max_pairs=83)
    # few pairs, but all reach all
    crowd = ltde.NetworkedModel(ltde.Graph.complete(6), 1, queue_local)
    message = r"^n_agents: 10 agents make a transition matrix of up to 9e\+06 entries, but 1000"
    with pytest.raises(ValueError, match=message):
        ExactSystem(crowd, 10, np.ones((6, 1)), max_pairs=3003)


BAD = [
    ({"n_agents": math.inf}, ValueError, r"^n_agents: expected a finite number, got inf"),
    ({"n_agents": 0}, ValueError, r"^n_agents: expected an integer >= 1"),
    ({"n_agents": 2.5}, ValueError, r"^n_agents: .* got 2\.5$"),
    ({"n_agents": "3"}, TypeError, r"^n_agents: expected an integer"),
    ({"n_agents": 4}, ValueError, r"^n_agents: initial\[0\] sums to 3 agents, got n_agents = 4$"),
    ({"max_pairs": 0}, ValueError, r"^max_pairs: expected an integer in \[1, "),
    ({"model": None}, TypeError, r"^model: expected an ltde.NetworkedModel, got NoneType$"),
    ({"policy": None}, TypeError, r"^policy: expected \(S, A\) prob.*got NoneType$"),
    (
        {"policy": ltde.FunctionPolicy(lambda counts, n: np.ones((3, 3)) / 3)},
        TypeError,
        r"^policy: expected .* a policy with log_prob, got FunctionPolicy$",
    ),
    ({"policy": np.full((2, 3, 3), 1 / 3)}, ValueError, r"^policy: .* not change with time$"),
    (
        {"policy": ltde.TabularPolicy(np.full((2, 3, 3), 1 / 3))},
        ValueError,
        r"^policy: expected one that does not change with time$",
    ),
    ({"policy": [[0.5, 0.5]]}, ValueError, r"^policy: expected shape \(3, 3\), got \(1, 2\)$"),
    ({"policy": np.full((3, 3), 0.5)}, ValueError, r"^probs\[0\]: expected a sum of 1"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    model = ring_model(n_states=3, initial=START)
    arguments = {"model": model, "n_agents": 3, "policy": np.full((3, 3), 1 / 3), "max_pairs": 500}
    ExactSystem(**arguments)
    with pytest.raises(error, match=message):
        ExactSystem(**arguments | change)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (lambda e: e.decay(-1), ValueError, r"^k: expected at least 0, got -1$"),
        (lambda e: e.local_q(-1), ValueError, r"^k: expected at least 0, got -1$"),
        (lambda e: e.localized_gradient(-2), ValueError, r"^k: expected at least 0, got -2$"),
        (lambda e: e.decay_bound(-1), ValueError, r"^k: expected an integer in \[0, .* got -1$"),
        (lambda e: e.decay(0.5), TypeError, r"^k: expected an integer, got 0\.5$"),
        (
            lambda e: e.local_q(0, -e.visitation),
            ValueError,
            r"^weights\[0\]: expected a finite number >= 0, got -",
        ),
        (
            lambda e: e.local_q(0, np.where(np.arange(3) == 1, np.nan, np.ones_like(e.q))),
            ValueError,
            r"^weights\[0, 1\]: expected a finite number >= 0, got nan$",
        ),
        (
            lambda e: e.localized_gradient(0, np.ones(3)),
            ValueError,
            r"^weights: expected shape \(165,\) or \(165, 3\), got \(3,\)$",
        ),
    ],
)
def test_bad_arguments_of_methods(method, error, message):
    _, _, _, exact = solve("ring")
    with pytest.raises(error, match=message):
        method(exact)


def test_a_policy_must_answer_in_the_right_shape():
    class Sloppy(DensityPolicy):
        def log_prob(self, counts, actions, n_agents=None):
            return super().log_prob(counts, actions, n_agents).sum(axis=1)

    model, n_agents, policy, _ = solve("ring")
    with pytest.raises(ValueError, match=r"^policy: expected log_prob of shape \(3, 3\)"):
        ExactSystem(model, n_agents, Sloppy(model, policy.theta)).J  # noqa: B018


def test_scipy_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    monkeypatch.delitem(sys.modules, "ltde.exact")
    with pytest.raises(ImportError, match=r"^ltde.exact needs scipy: pip install 'ltde\[exact\]'$"):
        importlib.import_module("ltde.exact")

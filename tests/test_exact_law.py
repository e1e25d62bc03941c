"""The enumerating oracle against the definition, one labelled agent at a time, and by hand."""

import math
from collections import defaultdict

import exact_law
import ltde
import numpy as np
import pytest
from exact_law import (
    compositions,
    initial_law,
    joint_two_step,
    labelled_step_law,
    local_tables,
    marginal,
    multinomial_law,
    multinomial_pmf,
    n_step_law,
    next_law,
    restart_chain_law,
    step_law,
    team_law,
    total_variation,
    visitation_law,
)
from models import MODELS, complete_model, path_model, random_policy, ring_model, star_model
from scipy import stats


def assert_same_law(first, second):
    """Compare sums of a few thousand products in [0, 1]: they differ by rounding only."""
    assert first.keys() == second.keys()
    assert total_variation(first, second) < 1e-12


def test_compositions():
    assert compositions(2, 2) == [(0, 2), (1, 1), (2, 0)]
    assert compositions(0, 3) == [(0, 0, 0)]
    assert len(compositions(6, 4)) == math.comb(9, 3)


def test_multinomial_pmf_is_scipys():
    p = [0.5, 0.2, 0.3]
    for counts in compositions(5, 3):
        expected = stats.multinomial.pmf(counts, 5, p)
        assert multinomial_pmf(counts, p) == pytest.approx(expected, rel=1e-12)
    assert multinomial_pmf((0, 2), (0.0, 1.0)) == 1.0


def test_multinomial_law_leaves_out_what_cannot_happen():
    assert multinomial_law(2, (0.0, 1.0)) == {(0, 2): 1.0}
    assert multinomial_law(0, (0.5, 0.5)) == {(0, 0): 1.0}


@pytest.mark.parametrize("name", MODELS)
def test_step_law_is_the_law_of_labelled_agents(name):
    model = MODELS[name](n_states=3)
    policy = random_policy(model, np.random.default_rng(7))
    for positions in ([0, 0, 1], [2, 1, 0], [1, 1, 1]):
        counts = np.bincount(positions, minlength=3)
        law = defaultdict(float)
        for (actions, after), p in labelled_step_law(model, policy, positions).items():
            teams = np.zeros(model.action_mask.shape, dtype=int)
            np.add.at(teams, (positions, list(actions)), 1)
            after_counts = np.bincount(after, minlength=3)
            law[tuple(teams.ravel().tolist()), tuple(after_counts.tolist())] += p
        counts = tuple(counts.tolist())
        assert_same_law(step_law(model, 3, policy, counts), law)
        assert_same_law(next_law(model, 3, policy, counts), marginal(law, 1))
        assert_same_law(team_law(model, 3, policy, counts), marginal(law, 0))


def test_step_law_by_hand():
    # Complete graph, two agents in state 0: action a succeeds with probability 1 - 0.7 mu(a), so 0
    # always stays and 1 always goes.
    model = complete_model(n_states=2)
    assert step_law(model, 2, [[0.75, 0.25], [1.0, 0.0]], (2, 0)) == {
        ((2, 0, 0, 0), (2, 0)): 0.5625,
        ((1, 1, 0, 0), (1, 1)): 0.375,
        ((0, 2, 0, 0), (0, 2)): 0.0625,
    }


def test_a_policy_may_read_the_density_of_the_state():
    model = ring_model(n_states=3)

    def cautious(state, density):
        return [density, 1.0 - density, 0.0]

    counts = (3, 1, 0)
    table = np.array([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 1.0, 0.0]])
    assert_same_law(step_law(model, 4, cautious, counts), step_law(model, 4, table, counts))


def test_a_masked_action_is_refused_and_masked_rows_are_not_read():
    model = star_model(n_states=3)
    policy = random_policy(model, np.random.default_rng(1))
    assert math.fsum(step_law(model, 2, policy, (1, 1, 0)).values()) == pytest.approx(1.0)
    prob, reward = local_tables(model, (1, 1, 0))
    assert np.isnan(prob[1, 2]).all()
    assert np.isnan(reward[1, 2])
    with pytest.raises(ValueError, match="plays a masked action"):
        step_law(model, 2, np.full((3, 3), 1 / 3), (1, 1, 0))


def test_transition_and_reward_of_every_model_depend_on_the_densities():
    for make in MODELS.values():
        model = make(n_states=3)
        prob, reward = local_tables(model, (4, 0, 0))
        other_prob, other_reward = local_tables(model, (1, 2, 1))
        for s in range(3):
            allowed = model.action_mask[s]
            assert np.abs(prob[s, allowed] - other_prob[s, allowed]).max() > 0.02
            assert np.abs(reward[s, allowed] - other_reward[s, allowed]).max() > 0.02
            assert np.allclose(prob[s, allowed].sum(axis=-1), 1.0, rtol=0.0, atol=1e-12)
            low, high = model.reward_range
            assert low <= reward[s, allowed].min() <= reward[s, allowed].max() <= high


def test_initial_laws():
    p = np.array([0.5, 0.3, 0.2])
    assert initial_law(path_model(initial=np.array([2, 1, 0])), 3) == {(2, 1, 0): 1.0}
    rows = np.array([[2, 1, 0], [0, 0, 3], [0, 0, 3], [1, 1, 1]])
    assert initial_law(path_model(initial=rows), 3) == {
        (2, 1, 0): 0.25,
        (0, 0, 3): 0.5,
        (1, 1, 1): 0.25,
    }
    law = initial_law(path_model(initial=p), 4)
    assert law.keys() == set(compositions(4, 3))
    assert law[(2, 1, 1)] == pytest.approx(12 * 0.25 * 0.3 * 0.2, rel=1e-12)
    alpha = [2.0, 0.5, 1.5]
    law = initial_law(path_model(initial=ltde.DirichletInitial(np.array(alpha))), 4)
    for counts in compositions(4, 3):
        expected = stats.dirichlet_multinomial.pmf(counts, alpha, 4)
        assert law[counts] == pytest.approx(expected, rel=1e-10)


def test_laws_of_several_steps_agree():
    model = path_model(initial=np.array([2, 0, 1]))
    policy = random_policy(model, np.random.default_rng(3))
    joint = joint_two_step(model, 3, policy, (2, 0, 1))
    assert math.fsum(joint.values()) == pytest.approx(1.0, rel=1e-12)
    assert_same_law(marginal(joint, 0), n_step_law(model, 3, policy, (2, 0, 1), 1))
    assert_same_law(marginal(joint, 1), n_step_law(model, 3, policy, {(2, 0, 1): 1.0}, 2))
    assert n_step_law(model, 3, policy, (2, 0, 1), 0) == {(2, 0, 1): 1.0}


def test_visitation_law_is_the_discounted_sum_over_time():
    model = ring_model(n_states=3, initial=np.array([3, 0, 0]), discount=0.5)
    policy = random_policy(model, np.random.default_rng(4))
    on_pairs, on_counts = visitation_law(model, 3, policy)
    summed = defaultdict(float)
    law = initial_law(model, 3)
    for t in range(50):  # what is left out weighs 2^-50
        for counts, p in law.items():
            summed[counts] += 0.5 * 0.5**t * p
        law = n_step_law(model, 3, policy, law, 1)
    assert_same_law(on_counts, summed)
    assert_same_law(marginal(on_pairs, 0), on_counts)
    counts = (2, 1, 0)
    given = {h: p / on_counts[counts] for (c, h), p in on_pairs.items() if c == counts}
    assert_same_law(given, team_law(model, 3, policy, counts))


@pytest.mark.parametrize("name", MODELS)
def test_restart_chain_approaches_the_visitation_law_at_the_stated_rate(name):
    model = MODELS[name](n_states=3, initial=np.array([0, 1, 2]), discount=0.7)
    policy = random_policy(model, np.random.default_rng(5))
    _, sigma = visitation_law(model, 3, policy)
    for t in range(6):
        law = restart_chain_law(model, 3, policy, t)
        assert math.fsum(law.values()) == pytest.approx(1.0, rel=1e-12)
        assert total_variation(law, sigma) <= 0.7**t
    # The chain without restarts stays away from sigma, so the bound is not met by accident.
    assert total_variation(n_step_law(model, 3, policy, (0, 1, 2), 40), sigma) > 0.7**20


def test_marginal_and_total_variation():
    assert marginal({(0, "a"): 0.25, (1, "a"): 0.5, (1, "b"): 0.25}, 1) == {"a": 0.75, "b": 0.25}
    assert total_variation({"a": 1.0}, {"b": 1.0}) == 1.0
    assert total_variation({"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}) == 0.25
    assert exact_law.policy_table([[1.0, 0.0]] * 3, path_model(), (1, 0, 0)).shape == (3, 2)

"""The discounted visitation law sigma (4.2): the restart chain and `visitation`, against (4.2).

Reference: the exact law by enumeration (`exact_law.visitation_law`, a linear solve). Pearson's
chi-square at 1e-6 or DKW at 1e-9, divided by the comparisons of the test. The mutants are samples
of a model with another discount, of a chain without restarts, and of truncated horizons.
"""

import math
from collections import defaultdict

import ltde
import numpy as np
import pytest
from exact_law import (
    initial_law,
    n_step_law,
    next_law,
    restart_chain_law,
    step_law,
    team_law,
    total_variation,
    visitation_law,
)
from models import MODELS, path_model, random_policy, ring_model, star_model
from statcheck import (
    ALPHA_EXACT,
    chi2_counts,
    chi2_law,
    dkw_one_sample,
    generator,
    outcomes,
    seed,
)

REPLICAS = 20_000
START = np.array([[3, 0, 0], [0, 1, 2]])


def make(name, discount=0.7, initial=START):
    model = MODELS[name](n_states=3, initial=initial, discount=discount)
    return model, random_policy(model, generator(f"visitation {name}"))


def chain(model, policy, n_steps, tag, restart="chain", **options):
    simulator = ltde.Simulator(model, 3, n_replicas=REPLICAS, seed=seed(tag))
    return simulator.rollout(policy, n_steps, restart=restart, **options)


# The restart chain.


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_the_restart_chain_has_its_exact_law_at_every_step(name):
    model, policy = make(name)
    rollout = chain(model, policy, 4, f"chain {name}")
    wrong = chain(make(name, 0.75)[0], policy, 4, f"chain {name}")
    for t in range(5):
        law = restart_chain_law(model, 3, policy, t)
        assert chi2_law(outcomes(rollout.counts[t]), law, n_comparisons=5)
    # Power: 5 % more or fewer restarts, after four steps.
    assert not chi2_law(outcomes(wrong.counts[4]), law, n_comparisons=5)


def transition_law(model, policy):
    """Law of (counts, actions, restarted, next counts) of the first transition of the chain."""
    fresh, law = initial_law(model, 3), defaultdict(float)
    for counts, p in fresh.items():
        for (actions, after), q in step_law(model, 3, policy, counts).items():
            law[counts, actions, (False,), after] += model.discount * p * q
            for again, r in fresh.items():
                law[counts, actions, (True,), again] += (1.0 - model.discount) * p * q * r
    return dict(law)


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_the_coin_of_the_chain_is_independent_of_the_transition(name):
    model, policy = make(name)
    rollout = chain(model, policy, 1, f"coin {name}")
    parts = (rollout.counts[0], rollout.actions[0], rollout.restarted[0], rollout.counts[1])
    law = transition_law(model, policy)
    assert chi2_law(outcomes(*parts), law)
    # Mutants: a coin that belongs to another replica; coins with the discount 0.75.
    parts = (*parts[:2], np.roll(parts[2], 1), parts[3])
    assert not chi2_law(outcomes(*parts), law)
    wrong = chain(make(name, 0.75)[0], policy, 1, f"coin {name}")
    parts = (wrong.counts[0], wrong.actions[0], wrong.restarted[0], wrong.counts[1])
    assert not chi2_law(outcomes(*parts), law)


@pytest.mark.statistical
def test_the_coins_of_several_steps_are_independent():
    model, policy = make("path", 0.8)
    restarted = chain(model, policy, 5, "coins", record=()).restarted
    code = (1 << np.arange(5)) @ restarted
    ones = np.array([bin(i).count("1") for i in range(32)])
    law = 0.2**ones * 0.8 ** (5 - ones)
    assert chi2_counts(np.bincount(code, minlength=32), law)
    sticky = np.repeat(restarted[:1], 5, axis=0)
    assert not chi2_counts(np.bincount((1 << np.arange(5)) @ sticky, minlength=32), law)


@pytest.mark.parametrize("name", MODELS)
def test_the_chain_is_within_gamma_to_the_t_of_sigma_exactly(name):
    for discount in (0.3, 0.9):
        model, policy = make(name, discount)
        _, sigma = visitation_law(model, 3, policy)
        for t in range(12):
            law = restart_chain_law(model, 3, policy, t)
            assert total_variation(law, sigma) <= discount**t + 1e-13
    # Without restarts it does not come close.
    model, policy = make(name, 0.3)
    _, sigma = visitation_law(model, 3, policy)
    law = n_step_law(model, 3, policy, initial_law(model, 3), 12)
    assert total_variation(law, sigma) > 0.3**3


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_the_chain_is_within_gamma_to_the_t_of_sigma_in_samples(name):
    """Empirical total variation, rigorous for every R and law of K outcomes.

    P(TV(empirical, law) > d) <= 2^K exp(-2 R d^2): the union bound over the 2^K events.
    """
    model, policy = make(name, 0.4)
    _, sigma = visitation_law(model, 3, policy)
    k = math.comb(5, 2)
    band = math.sqrt((k * math.log(2.0) + math.log(10.0 / ALPHA_EXACT)) / (2.0 * REPLICAS))
    assert band < 0.03
    for restart in ("chain", None):
        counts = chain(model, policy, 9, f"tv {name}", restart).counts
        distances = [empirical_distance(counts[t], sigma) for t in range(10)]
        bounds = [0.4**t + band for t in range(10)]
        close = [d <= bound for d, bound in zip(distances, bounds, strict=True)]
        assert all(close) == (restart == "chain")


def empirical_distance(counts, law):
    seen = defaultdict(float)
    for outcome in outcomes(counts):
        seen[outcome] += 1.0 / len(counts)
    return total_variation(seen, law)


@pytest.mark.statistical
def test_the_restart_chain_stepped_from_python_has_the_same_law():
    model, policy = make("ring")
    rollout = chain(model, ltde.FunctionPolicy(lambda counts, n: policy), 3, "function chain")
    law = restart_chain_law(model, 3, policy, 3)
    assert chi2_law(outcomes(rollout.counts[3]), law)
    assert not chi2_law(outcomes(rollout.counts[3]), n_step_law(model, 3, policy, (3, 0, 0), 3))


def test_discount_zero_restarts_after_every_step():
    model, policy = make("path", 0.0)
    rollout = chain(model, policy, 3, "discount zero")
    assert rollout.restarted.all()
    rows = {tuple(row) for row in START.tolist()}
    assert set(outcomes(rollout.counts.reshape(-1, 3))) == rows


# `visitation`.


def visit(model, policy, tag, n_draws=4, replicas=REPLICAS // 4):
    simulator = ltde.Simulator(model, 3, n_replicas=replicas, seed=seed(tag))
    return simulator.visitation(policy, n_draws)


def flat(draws):
    """Draws (D, B, ...) as (D B, ...), for each array."""
    names = ("counts", "actions", "rewards", "next_counts", "horizon")
    return {name: np.concatenate(getattr(draws, name)) for name in names}


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_draws_have_the_exact_law_of_counts_and_actions(name):
    model, policy = make(name)
    on_pairs, on_counts = visitation_law(model, 3, policy)
    draws = flat(visit(model, policy, f"pairs {name}"))
    assert chi2_law(outcomes(draws["counts"], draws["actions"]), on_pairs, n_comparisons=2)
    assert chi2_law(outcomes(draws["counts"]), on_counts, n_comparisons=2)
    # Power: horizons of another discount, and actions of another draw.
    wrong = flat(visit(make(name, 0.75)[0], policy, f"pairs {name}"))
    assert not chi2_law(outcomes(wrong["counts"]), on_counts, n_comparisons=2)
    np.testing.assert_array_equal(draws["actions"].sum(-1), draws["counts"])
    same = draws["counts"][:, 0] == 3
    assert same.sum() > 1000
    law = team_law(model, 3, policy, (3, 0, 0))
    assert chi2_law(outcomes(draws["actions"][same]), law, n_comparisons=2)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["ring", "star"])
def test_next_counts_have_the_law_of_a_step_from_the_draw(name):
    model, policy = make(name)
    _, on_counts = visitation_law(model, 3, policy)
    law = {
        (counts, *pair): p * q
        for counts, p in on_counts.items()
        for pair, q in step_law(model, 3, policy, counts).items()
    }
    draws = flat(visit(model, policy, f"next {name}"))
    parts = [draws[part] for part in ("counts", "actions", "next_counts")]
    assert chi2_law(outcomes(*parts), law)
    # Mutant: the actions were drawn, but the step was taken with fresh ones.
    fresh = {
        (counts, actions, after): p * q * r
        for counts, p in on_counts.items()
        for actions, q in team_law(model, 3, policy, counts).items()
        for after, r in next_law(model, 3, policy, counts).items()
    }
    assert not chi2_law(outcomes(*parts), fresh)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["path", "complete"])
def test_the_horizon_is_the_time_at_which_the_chain_is_read(name):
    # Joint law of (horizon, counts), horizons from 3 on taken together.
    model, policy = make(name)
    _, sigma = visitation_law(model, 3, policy)
    law, rest, now = {}, dict(sigma), initial_law(model, 3)
    for t in range(3):
        for counts, p in now.items():
            law[(t,), counts] = (1.0 - 0.7) * 0.7**t * p
            rest[counts] -= law[(t,), counts]
        now = n_step_law(model, 3, policy, now, 1)
    law |= {((3,), counts): p for counts, p in rest.items() if p > 1e-15}
    draws = flat(visit(model, policy, f"horizon {name}"))
    horizon = np.minimum(draws["horizon"], 3)
    assert chi2_law(outcomes(horizon, draws["counts"]), law)
    assert not chi2_law(outcomes(np.roll(horizon, 1), draws["counts"]), law)


@pytest.mark.statistical
@pytest.mark.parametrize(("discount", "draws"), [(0.05, 50_000), (0.8, 50_000), (0.995, 10_000)])
def test_horizons_are_geometric_and_never_truncated(discount, draws):
    # DKW at 1e-9: a gap of 0.015 (0.033 at 10 000 draws) is the band. Mutants: a discount that
    # gives a gap of 0.05, and horizons cut at the 95 % quantile.
    model, _ = make("path", discount, np.array([3, 0, 0]))
    policy = np.full((3, 2), 0.5)
    horizon = flat(visit(model, policy, f"geometric {discount}", draws // 1000, 1000))["horizon"]

    def cdf(gamma):
        return lambda t: 1.0 - gamma ** (np.asarray(t) + 1.0)

    assert dkw_one_sample(horizon, cdf(discount))
    assert not dkw_one_sample(horizon, cdf(discount + 0.25 * (1.0 - discount)))
    cut = math.ceil(math.log(0.05) / math.log(discount))
    assert not dkw_one_sample(np.minimum(horizon, cut - 1), cdf(discount))
    # P(max < m) = (1 - gamma^m)^R is 1e-9 at this m.
    m = math.log(-math.expm1(math.log(1e-9) / horizon.size)) / math.log(discount)
    assert horizon.max() >= math.floor(m)


def test_discount_zero_reads_the_start():
    model, policy = make("path", 0.0)
    draws = flat(visit(model, policy, "zero"))
    assert (draws["horizon"] == 0).all()
    rows = {tuple(row) for row in START.tolist()}
    assert set(outcomes(draws["counts"])) == rows


@pytest.mark.statistical
def test_each_replica_is_visited_under_its_own_probabilities():
    model, policy = make("ring")
    other = policy[:, [1, 0, 2]]
    probs = np.where(np.arange(5000)[:, None, None] % 2 == 0, policy, other)
    draws = visit(model, probs, "replica policies")
    for i, probs in enumerate((policy, other)):
        on_pairs, _ = visitation_law(model, 3, probs)
        for j in range(2):
            parts = (np.concatenate(x[:, j::2]) for x in (draws.counts, draws.actions))
            assert bool(chi2_law(outcomes(*parts), on_pairs, n_comparisons=4)) == (i == j)


def test_rewards_of_draws_are_those_of_their_counts_and_actions():
    model = star_model(n_states=4)
    policy = random_policy(model, generator("rewards of draws"))
    simulator = ltde.Simulator(model, 10**7, n_replicas=3, seed=seed("rewards of draws"))
    draws = simulator.visitation(policy, 20)
    for d, b in np.ndindex(20, 3):
        _, reward = model.evaluate(draws.counts[d, b] / 10**7)
        expected = np.zeros(4)
        for a in range(model.n_actions):
            expected += draws.actions[d, b, :, a] * reward[:, a]
        np.testing.assert_array_equal(draws.rewards[d, b], expected / 10**7)
    np.testing.assert_array_equal(draws.actions.sum(-1), draws.counts)
    assert (draws.next_counts.sum(-1) == 10**7).all()
    assert draws.rewards.any()


@pytest.mark.statistical
def test_draws_of_one_call_of_several_calls_and_of_replicas_are_independent():
    # Joint law of the counts in state 0 of two draws; a repeated draw is the mutant.
    model, policy = make("path")
    _, sigma = visitation_law(model, 3, policy)
    one = defaultdict(float)
    for counts, p in sigma.items():
        one[counts[:1]] += p
    law = {(x, y): p * q for x, p in one.items() for y, q in one.items()}
    simulator = ltde.Simulator(model, 3, n_replicas=REPLICAS, seed=seed("independent draws"))
    first, second = (simulator.visitation(policy, 2).counts[..., :1] for _ in range(2))
    for x, y in ((first[0], first[1]), (first[0], second[0]), (first[0], np.roll(first[0], 1))):
        assert chi2_law(outcomes(x, y), law, n_comparisons=3)
    assert not chi2_law(outcomes(first[0], first[0]), law, n_comparisons=3)


def test_visitation_leaves_the_simulator_as_it_was():
    model = ring_model()
    policy = random_policy(model, generator("untouched"))
    simulators = [ltde.Simulator(model, 100, n_replicas=2, seed=4) for _ in range(2)]
    simulators[0].rollout(policy, 3)
    simulators[1].rollout(policy, 3)
    before = simulators[0].counts.copy()
    simulators[0].visitation(policy, 10)
    np.testing.assert_array_equal(simulators[0].counts, before)
    assert simulators[0].n_steps == 3
    rollouts = [simulator.rollout(policy, 3) for simulator in simulators]
    np.testing.assert_array_equal(rollouts[0].counts, rollouts[1].counts)


@pytest.mark.parametrize("n_draws", [0, 1])
def test_shapes_of_draws(n_draws):
    model = path_model(n_states=5)
    draws = ltde.Simulator(model, 10, n_replicas=3).visitation(np.full((5, 2), 0.5), n_draws)
    assert draws.counts.shape == draws.next_counts.shape == draws.rewards.shape == (n_draws, 3, 5)
    assert draws.actions.shape == (n_draws, 3, 5, 2)
    assert draws.horizon.shape == (n_draws, 3)
    assert draws.counts.dtype == draws.actions.dtype == draws.horizon.dtype == np.int64

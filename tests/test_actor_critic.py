"""Algorithms 1 and 2: what the critics converge to, what the actor estimates, and how it learns."""

import hashlib
import math
from functools import cache

import ltde
import numpy as np
import pytest
import solvable
import torch
from ltde.exact import ExactSystem
from models import path_model, ring_model
from scipy import stats
from statcheck import bernstein_mean, seed

FAMILIES = {"softmax": ltde.SoftmaxPolicy, "energy": ltde.EnergyPolicy}


def fixed(tag):
    """Return a generator for examples, which do not change with the seeds of the statistics."""
    digest = hashlib.sha256(f"0:{tag}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little") >> 1)


def make_learner(model, n_agents, policy=None, **options):
    """Return a learner of Algorithms 1 and 2 in float64, of this policy if one is given."""
    fields = {"actor": "score", "critic": "q", "width": 8, "n_replicas": 4, "n_draws": 8}
    fields |= {"dtype": "float64", "natural": False, "family": getattr(policy, "family", "softmax")}
    config = ltde.Config(**{**fields, **options})
    learner = ltde.LTDENeuralAC(model, n_agents, config, threads=1).learner
    if policy is not None:
        learner.policy = policy
    return learner


def random_policy(family, model, width=4, size=1.0):
    """Return a policy with random weights."""
    policy = FAMILIES[family](
        model, width, seed=5, tau=1.3, density_scale=model.n_states, dtype=torch.float64
    )
    noise = fixed(f"policy {family}").normal(0.0, size, tuple(policy.theta.shape))
    with torch.no_grad():
        policy.theta += torch.tensor(noise)
    return policy


def randomize(critic, size=1.0):
    """Give critics random weights."""
    for g, w in enumerate(critic.omega):
        w.copy_(torch.tensor(fixed(f"critic {g}").normal(0.0, size, tuple(w.shape))))


def all_pairs(exact):
    """Return counts `(n_pairs, S)` and team actions `(n_pairs, S, A)`."""
    counts = exact.states[exact.pairs[:, 0]]
    return counts, exact.pairs[:, 1:].reshape(*counts.shape, -1).copy()


# ---- the critics ---------------------------------------------------------------------------------


@cache
def critic_system():
    """Return a fixed policy on a ring, and its exact values."""
    policy = random_policy("softmax", ring_model(4))
    return policy, ExactSystem(ring_model(4), 3, policy)


def relative_error(exact, q):
    """Error in L2(nu) of Q of all states, relative to their standard deviation."""
    nu = exact.stationary
    spread = exact.q - nu @ exact.q
    return math.sqrt((nu @ (q - exact.q) ** 2).sum() / (nu @ spread**2).sum())


@cache
def critic_error(k, width, discount=0.9):
    """Return the relative error of critics that took many steps, averaged over seeds."""
    policy, exact = critic_system()
    errors = []
    for start in range(2):
        learner = make_learner(
            ring_model(4, discount=discount),
            3,
            policy,
            k=k,
            width=width,
            density_transform="linear",
            critic_law="nu",
            critic_average=True,
            critic_steps=4000,
            critic_rate=0.5,
            n_replicas=16,
            n_draws=16,
            seed=start,
        )
        learner.learn_q(0)
        learner.critic.n_steps = 0  # the average forgets the way
        learner.learn_q(1)
        q = learner.critic.values(learner.q_inputs(*all_pairs(exact)), mean=True)
        errors.append(relative_error(exact, q.numpy()))
    return float(np.mean(errors))


def test_critics_approach_q_as_the_ball_grows():
    _, exact = critic_system()
    best = [relative_error(exact, exact.local_q(k, exact.stationary)) for k in (0, 1, 2)]
    errors = [critic_error(k, 64) for k in (0, 1, 2)]
    assert best[0] > 3 * best[1]
    assert best[2] < 1e-12
    # no function of the ball is closer than the conditional mean
    assert errors[0] > 0.999 * best[0]
    assert errors[1] > 0.999 * best[1]
    assert errors[0] < 1.1 * best[0]
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > 1.5 * errors[2]
    assert errors[2] < 0.2


def test_critics_approach_q_as_they_widen():
    errors = [critic_error(2, width) for width in (2, 8, 64)]
    assert errors[0] > 1.3 * errors[1]
    assert errors[1] > 1.1 * errors[2]


def test_critics_of_another_discount_do_not():
    assert critic_error(2, 64, discount=0.8) > 1.0 > 4.0 * critic_error(2, 64)


# ---- the gradient of the actor -------------------------------------------------------------------


def terms(learner, exact):
    """Return what each pair adds to the gradient, `(n_pairs, S, M, 1 + A)`."""
    counts, actions = all_pairs(exact)
    score = learner.policy.score(counts, actions)
    weights = learner.q_weights(counts, actions)
    return (score * weights[..., None, None]).numpy() / (1.0 - exact.model.discount)


def rows_of(exact, counts, actions):
    """Return the place of each draw among the pairs."""
    place = {pair.tobytes(): i for i, pair in enumerate(exact.pairs[:, 1:])}
    return np.array([place[x.tobytes()] for x in actions.reshape(len(counts), -1)])


@cache
def actor_system(family, baseline="none", **options):
    """Return critics of random weights on a ring of four, where k = 1 leaves a state out."""
    model = ring_model(4, discount=0.7)
    policy = random_policy(family, model)
    learner = make_learner(model, 3, policy, baseline=baseline, **options)
    randomize(learner.critic)
    return learner, ExactSystem(model, 3, policy)


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_exact_local_values_it_is_the_localised_gradient(family, k):
    _, exact = actor_system(family)
    learner = make_learner(exact.model, 3, exact.policy, k=k, baseline="none")
    local_q = torch.tensor(exact.local_q(k))
    learner.critic.values = lambda inputs, mean: local_q
    gradient = np.tensordot(exact.visitation, terms(learner, exact), 1)
    expected = exact.localized_gradient(k)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)
    if k < 2:
        other = exact.localized_gradient(k + 1)
        assert np.abs(expected - other).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("reward_scale", [1.0, 0.1])
@pytest.mark.parametrize("baseline", ["none", "mean_action"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_iteration_averages_the_terms_of_its_draws(family, baseline, reward_scale):
    learner, exact = actor_system(family, baseline, reward_scale=reward_scale, n_draws=40)
    drawn, found, visits = [], [], learner.visits

    def spied():
        drawn.append(visits())
        return drawn[-1]

    learner.visits, learner.learn_q = spied, lambda iteration: 0.0
    learner.ascend = lambda direction, iteration: found.append(direction.numpy())
    learner.iterate(0)
    rows = rows_of(exact, *drawn[0][:2])
    assert len(set(rows)) > 10
    np.testing.assert_allclose(found[0], terms(learner, exact)[rows].mean(0), atol=1e-12)


def is_mean(table, rows, expected):
    """Whether the draws have these expectations, coordinate by coordinate.

    Statistic and reference: `bernstein_mean` at 1e-9 in all, every draw within what the pairs hold.
    """
    table, expected = table.reshape(len(table), -1), expected.ravel()
    low, high = table.min(0), table.max(0)
    alive = np.flatnonzero(high > low)
    assert len(alive) > 20
    return all(
        bernstein_mean(table[rows, c], expected[c], (low[c], high[c]), n_comparisons=len(alive))
        for c in alive
    )


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("family", "sampler"),
    [("softmax", "visitation"), ("energy", "visitation"), ("softmax", "chain")],
)
def test_the_expected_gradient(family, sampler):
    # 10^5 draws see half the weights, a neighbour left out, and a chain read at its start.
    n = 100_000
    replicas = 500 if sampler == "visitation" else n
    learner, exact = actor_system(
        family, sampler=sampler, n_draws=n, n_replicas=replicas, seed=seed("draws")
    )
    table, law = terms(learner, exact), exact.visitation
    expected = np.tensordot(law, table, 1)
    rows = rows_of(exact, *learner.visits()[:2])
    if sampler == "chain":
        assert not is_mean(table, rows, expected)
        # independent replicas, within gamma^40 = 1e-6 of sigma
        learner.draws.rollout(learner.policy, 40, restart="chain", record=())
        rows = rows_of(exact, *learner.visits()[:2])
    assert is_mean(table, rows, expected)
    assert not is_mean(table, rows, 0.5 * expected)
    score = learner.policy.score(*all_pairs(exact))
    before = learner.critic.values(learner.q_inputs(*all_pairs(exact))).roll(1, 1)
    left_out = (score * before[..., None, None]).numpy() / (1.0 - exact.model.discount)
    assert not is_mean(table, rows, expected - np.tensordot(law, left_out, 1))


@pytest.mark.parametrize("features", ["distribution", "mass"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_baseline_leaves_the_expectation(family, features):
    plain, exact = actor_system(family, "none", features=features)
    learner, _ = actor_system(family, "mean_action", features=features)
    with_baseline, without = terms(learner, exact), terms(plain, exact)
    expected = np.tensordot(exact.visitation, without, 1)
    scale = np.abs(expected).max()
    assert scale > 0.1
    gradient = np.tensordot(exact.visitation, with_baseline, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-10 * scale)
    # one that depends on what the agents do does not
    sees = exact.pairs[:, 1] > 0  # whether any agent of state 0 takes action 0
    wrong = np.where(sees[:, None, None, None], with_baseline, without)
    assert np.abs(np.tensordot(exact.visitation, wrong, 1) - expected).max() > 1e-3 * scale


@cache
def baseline_gain(family, n_agents):
    """Return how many times the baseline makes the variance of a draw smaller."""
    model = path_model(3)  # two actions: the law of 100 agents is enumerated
    policy = random_policy(family, model)
    sizes, draws = [], None
    for baseline in ("none", "mean_action"):
        options = {"n_replicas": 100, "n_draws": 400, "sampler": "visitation"}
        learner = make_learner(model, n_agents, policy, baseline=baseline, **options)
        randomize(learner.critic)
        counts, actions, _ = draws = learner.visits() if draws is None else draws
        weights = learner.q_weights(counts, actions)
        terms = (policy.score(counts, actions) * weights[..., None, None]).flatten(1)
        sizes.append(float(terms.var(0).sum()))
    return sizes[0] / sizes[1]


def test_the_baseline_makes_the_variance_smaller():
    # multinomial teams: of order 1 instead of N; energy-based teams keep exploring at any N
    assert baseline_gain("softmax", 100) > 10.0
    assert baseline_gain("softmax", 10_000) > 50.0 * baseline_gain("softmax", 100)
    assert baseline_gain("energy", 100) > 1.5


# ---- the transitions that critics learn from -----------------------------------------------------


@pytest.mark.parametrize("thinning", [1, 3])
def test_thinning_takes_every_third_transition_of_the_chain(thinning):
    options = {"critic_law": "nu", "critic_steps": 7, "critic_rate": 0.3}
    one, two = (make_learner(ring_model(4), 5, **options, thinning=t) for t in (thinning, 1))
    for learner in (one, two):
        randomize(learner.critic)
    chain = two.simulator.rollout(two.policy, 7 * thinning + 1, restart=None)
    for t in range(0, 7 * thinning, thinning):
        here, after = (two.q_inputs(chain.counts[i], chain.actions[i]) for i in (t, t + 1))
        targets = torch.tensor(chain.rewards[t]) + 0.9 * two.critic.values(after)
        two.critic.td_step(here, targets, 0.3, normalized=True)
    one.learn_q(0)
    for a, b in zip(one.critic.omega, two.critic.omega, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def transitions(counts, actions, rewards, ended):
    """Return the transitions (mu, h, r, mu', h') of a history that lead on, as a set."""
    found = set()
    for t, b in np.argwhere(~ended[:-1]):
        parts = counts[t, b], actions[t, b], rewards[t, b], counts[t + 1, b], actions[t + 1, b]
        found.add(b"".join(np.ascontiguousarray(x).tobytes() for x in parts))
    return found


@pytest.mark.parametrize("size", [50, 10])
@pytest.mark.parametrize("law", ["nu", "sigma"])
def test_replay_takes_transitions_that_happened_old_ones_too(law, size):
    steps = 20
    options = {"critic_law": law, "critic_steps": steps, "replay": size}
    learner = make_learner(ring_model(4), 500, **options)
    rollout, td, lived, used = learner.simulator.rollout, learner._td, [], []

    def spied_rollout(*args, **options):
        result = rollout(*args, **options)
        ended = np.concatenate([result.restarted[:-1], np.ones((1, 4), bool)])
        lived.append(transitions(result.counts[:-1], result.actions, result.rewards, ended))
        return result

    def spied_td(history, order):
        counts, actions, rewards, ended = history
        taken = set()
        for t in order:
            part = slice(t, t + 2)
            end = np.stack([ended[t], np.ones(4, bool)])
            taken |= transitions(counts[part], actions[part], rewards[part], end)
        used.append((len(counts), len(order), taken))
        return td(history, order)

    learner.simulator.rollout, learner._td = spied_rollout, spied_td
    for iteration in range(6):
        learner.learn_q(iteration)
    for i, (length, n, taken) in enumerate(used):
        assert length <= size
        assert n == steps
        assert taken <= set().union(*lived[: i + 1])
        assert taken & lived[i]
        if size > steps and i > 0:
            assert taken & lived[i - 1]
        for old in lived[: max(0, i - size // steps)]:  # forgotten
            assert not taken & old
    assert sum(map(len, lived)) > 6 * (steps - 1) * 3


def test_without_replay_each_transition_is_taken_once():
    learner = make_learner(ring_model(4), 500, critic_steps=20)
    taken, td = [], learner._td
    learner._td = lambda history, order: taken.append((history, order)) or td(history, order)
    learner.learn_q(0)
    ((history, order),) = taken
    assert list(order) == list(range(20))
    assert not learner.history
    assert len(history[0]) == 21


# ---- Theorem 5.10 --------------------------------------------------------------------------------


def theory_gain(seed, learn=True):
    """Return what a run of the theory preset gains in exact J."""
    model, n_agents = solvable.work(), 2
    config = ltde.Config.theory(
        model.discount,
        n_iterations=36,
        critic_steps=300,
        reward_scale=1.0 - model.discount,  # |r| <= 1: |Q_s| <= 1, Assumption 5.1
        width=32,
        n_draws=512,
        evaluate_every=0,
        dtype="float64",
        seed=seed,
    )
    trainer = ltde.LTDENeuralAC(model, n_agents, config, threads=1)
    if not learn:
        trainer.learner.learn_q = lambda iteration: 0.0
    start = ExactSystem(model, n_agents, trainer.policy)
    assert np.abs(start.q).max() * config.reward_scale <= 1.0
    trainer.fit()
    return ExactSystem(model, n_agents, trainer.policy).J - start.J


def interval(gains):
    """95 % interval of the mean, Student's t."""
    return stats.t.interval(0.95, len(gains) - 1, np.mean(gains), stats.sem(gains))


def test_the_theory_preset_raises_j():
    gains = [theory_gain(seed) for seed in range(5)]
    blind = [theory_gain(seed, learn=False) for seed in range(5)]
    assert interval(gains)[0] > 0.0
    # critics that have learned nothing lead nowhere
    assert interval(blind)[0] < 0.0

"""Systems with common random numbers: each has the right law, and together they vary little.

References: laws by enumeration (`exact_law`), Q-functions by `ExactSystem`. Mutants: a pair that is
expected at another `(mu', h')`, `V` in place of `Q`, systems without common random numbers.
"""

import math
from collections import defaultdict

import ltde
import numpy as np
import pytest
from exact_law import n_step_law, step_law, visitation_law
from hypothesis import given
from hypothesis import strategies as st
from ltde import paired
from ltde.exact import ExactSystem
from ltde.paired import PairedSimulator
from models import MODELS, path_model, random_policy, ring_model, star_model
from statcheck import bernstein_mean, chi2_law, generator, outcomes, seed

AGENTS = 4
REPLICAS = 4000


def crowd_averse(s, density):
    """Play the second action the more often the more crowded the state is."""
    row = [0.0] * 3
    row[0], row[1] = 0.8 - 0.6 * density, 0.2 + 0.6 * density
    return row


def make(name, policy="table", discount=0.5, n_states=3):
    model = MODELS[name](n_states=n_states, discount=discount)
    if policy == "table":
        return model, random_policy(model, generator(f"paired {name}"))
    network = ltde.SoftmaxPolicy(model, 8, density_scale=5.0, tau=3.0, seed=3)
    return model, network if policy == "softmax" else network.individual()


def starts(exact, size, rng):
    """Pick pairs (mu, h) at random: rows of `exact.pairs`, and their team actions (size, S, A)."""
    rows = rng.choice(len(exact.pairs), size, replace=False)
    return rows, exact.pairs[rows, 1:].reshape(size, *exact.model.action_mask.shape)


def take(paths, n_steps):
    """Take counts and rewards of the first steps, (T, R, V, S) each."""
    steps = [step for _, step in zip(range(n_steps), paths, strict=False)]
    return tuple(np.stack(arrays) for arrays in zip(*steps, strict=True))


# Right in the mean.

KINDS = [(name, "table") for name in MODELS] + [("ring", "softmax"), ("star", "function")]


@pytest.mark.statistical
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_mean_differences_are_those_of_the_exact_q(name, kind):
    """Bernstein at 1e-9: catches a mean that is wrong by 0.05 of the widest difference."""
    model, policy = make(name, kind)
    team = make(name, "softmax")[1] if kind == "function" else policy
    exact = ExactSystem(model, AGENTS, team)
    rows, teams = starts(exact, 7, generator(f"q {name} {kind}"))
    states = np.arange(6) % model.n_states
    simulator = PairedSimulator(model, AGENTS, policy)
    key = (seed(f"q {name} {kind}"),)
    samples = simulator.differences(teams[0], teams[1:], states, REPLICAS, 40, key)
    widest = 2.0 * np.abs(exact.team_rewards).max() / (1.0 - model.discount)
    caught = 0
    for v, s in enumerate(states):
        own, other = exact.q[rows[0], s], exact.q[rows[1:], s]
        claims = [own - q for q in other] + [own - exact.v[exact.pairs[rows[v + 1], 0], s]]
        for i, claim in enumerate(claims):
            check = bernstein_mean(samples[:, v], claim, (-widest, widest), n_comparisons=6)
            if i == v:
                assert check, check.detail
            elif abs(claim - claims[v]) > 0.05 * widest:
                assert not check, check.detail
                caught += 1
    assert caught >= 6


def test_without_future_the_difference_is_that_of_the_rewards():
    model, policy = make("path", discount=0.0)
    exact = ExactSystem(model, AGENTS, policy)
    rows, teams = starts(exact, 5, generator("no future"))
    simulator = PairedSimulator(model, AGENTS, policy)
    samples = simulator.differences(teams[0], teams[1:], np.array([0, 1, 2, 0]), 3, 1, (1,))
    expected = (exact.q[rows[0]] - exact.q[rows[1:]])[np.arange(4), [0, 1, 2, 0]]
    np.testing.assert_allclose(samples, np.tile(expected, (3, 1)), atol=1e-15)


# Right in law.


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["ring", "star"])
@pytest.mark.parametrize("kind", ["table", "function"])
def test_each_system_by_itself_has_its_exact_law(name, kind):
    """Chi-square at 1e-6 on the counts after one, two and three steps from a given (mu, h)."""
    model, policy = make(name, kind)
    first = np.zeros(model.action_mask.shape, dtype=np.int64)
    first[0, :2], first[1, 1] = (1, 1), 1
    second = np.zeros_like(first)
    second[0, 0], second[2, :2] = 1, (1, 1)
    simulator = PairedSimulator(model, 3, policy)
    rng = generator(f"law {name} {kind}")
    counts, _ = take(simulator.paths(np.stack((first, second)), 20_000, rng), 4)
    laws = []
    for v, team in enumerate((first, second)):
        law = defaultdict(float)
        start = tuple(team.sum(axis=1).tolist())
        for (actions, after), p in step_law(model, 3, policy, start).items():
            if actions == tuple(team.ravel().tolist()):
                law[after] += p
        law = {after: p / math.fsum(law.values()) for after, p in law.items()}
        laws.append(law)
        for t in (1, 2, 3):
            assert chi2_law(outcomes(counts[t, :, v]), law, n_comparisons=12)
            law = n_step_law(model, 3, policy, law, 1)
    assert not chi2_law(outcomes(counts[1, :, 0]), laws[1])


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["table", "softmax", "function"])
def test_starts_have_the_visitation_law(kind):
    """Chi-square at 1e-6 against (4.2); the mutant reads the start of every episode."""
    initial = np.array([[3, 0, 0], [0, 1, 2]])
    model = star_model(3, initial=initial, discount=0.7)
    policy = random_policy(model, generator("visited"))
    if kind != "table":
        policy = ltde.SoftmaxPolicy(model, 8, density_scale=5.0, seed=1)
    individual = policy if kind == "table" else policy.individual()
    given_policy = individual if kind == "function" else policy
    drawn = PairedSimulator(model, 3, given_policy).visited(20_000, seed("visited"))
    law, on_counts = visitation_law(model, 3, individual)
    assert chi2_law(outcomes(drawn.sum(axis=2), drawn), law, n_comparisons=3)
    assert chi2_law(outcomes(drawn.sum(axis=2)), on_counts, n_comparisons=3)
    mutant = ltde.Simulator(model, 3, 20_000, seed=seed("visited")).counts
    assert not chi2_law(outcomes(mutant), on_counts, n_comparisons=3)


def test_draws_do_not_depend_on_how_many_are_made():
    model, policy = make("ring")
    simulator = PairedSimulator(model, 9, policy)
    np.testing.assert_array_equal(simulator.visited(6, 4)[:2], simulator.visited(2, 4))


# Common random numbers.


def crowded_pair(k, n_states=14, n_agents=60):
    """Two starts that agree on the ball around state 0; in one, all others crowd beside it."""
    model = path_model(n_states, discount=0.9)
    simulator = PairedSimulator(model, n_agents, lambda s, density: crowd_averse(s, density)[:2])
    kept = model.graph.distances(0) <= k
    crowd = (np.arange(n_states) == k + 1).astype(np.int64)
    start = simulator.visited(1, 5)[0]
    other = simulator.replaced(start, kept, crowd, generator(f"pair {k}"))
    return simulator, kept, np.stack((start, other))


@pytest.mark.parametrize("k", range(9))
def test_nothing_differs_inside_the_light_cone(k):
    """Lemma 3.5, corrected: mu_t on N_s^(k - 2t), hence r_s while t <= (k - 1) / 2."""
    simulator, kept, teams = crowded_pair(k)
    distance = simulator.model.graph.distances(0)
    counts, rewards = take(simulator.paths(teams, 50, generator("cone")), 15)
    np.testing.assert_array_equal(teams[0][kept], teams[1][kept])
    for t in range(k // 2 + 1):
        inside = distance <= k - 2 * t
        np.testing.assert_array_equal(counts[t, :, 0, inside], counts[t, :, 1, inside])
    for t in range((k + 1) // 2):
        np.testing.assert_array_equal(rewards[t, :, 0, 0], rewards[t, :, 1, 0])
    assert (counts[-1, :, 0] != counts[-1, :, 1]).any()
    assert (rewards[-1, :, 0] != rewards[-1, :, 1]).any()


def domino_local(s, mu, node, edge, prob, reward):
    """Go left as soon as the right neighbour is occupied, else stay; reward 1 for staying alone."""
    own = left = pushed = 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            own = left = i
    for i in range(mu.size):
        if edge[i, 0] == -1.0:
            left = i
        elif edge[i, 0] == 1.0 and mu[i] > 0.0:
            pushed = 1
    prob[0, left if pushed == 1 else own] = 1.0
    reward[0] = 1.0 - pushed


@pytest.mark.parametrize("k", range(9))
def test_the_light_cone_is_reached(k):
    """Dominoes carry a difference two states a step: r_0 differs at t = (k - 1) // 2 + 1."""
    graph = ltde.Graph.path(14)
    rows = np.repeat(np.arange(14), np.diff(graph.indptr))
    model = ltde.NetworkedModel(graph, 1, domino_local, edge=graph.indices - rows, discount=0.5)
    teams = np.zeros((2, 14, 1), dtype=np.int64)
    teams[:, 0] = 1
    teams[:, k:0:-2] = 1
    teams[0, k + 1] = teams[1, k + 3] = 1
    simulator = PairedSimulator(model, int(teams[0].sum()), np.ones((14, 1)))
    _, rewards = take(simulator.paths(teams, 1, generator("domino")), 8)
    gap = rewards[:, 0, 0, 0] - rewards[:, 0, 1, 0]
    assert np.flatnonzero(gap)[0] == (k - 1) // 2 + 1


def test_without_common_random_numbers_the_variance_is_far_larger():
    """Measured: 43 times; the mutant simulates the two starts one after the other."""
    simulator, _, teams = crowded_pair(6)
    weights = 0.9 ** np.arange(30)[:, None]
    _, rewards = take(simulator.paths(teams, 400, generator("common")), 30)
    own = generator("own")
    one, two = (take(simulator.paths(team[None], 400, own), 30)[1] for team in teams)
    common = (weights * (rewards[:, :, 0, 0] - rewards[:, :, 1, 0])).sum(axis=0)
    mutant = (weights * (one[:, :, 0, 0] - two[:, :, 0, 0])).sum(axis=0)
    assert mutant.var() > 10.0 * common.var() > 0.0
    assert abs(mutant.mean() - common.mean()) < 5.0 * mutant.std() / 400**0.5


def test_equal_starts_never_part():
    simulator, _, teams = crowded_pair(3)
    counts, rewards = take(simulator.paths(teams[[0, 0, 1]], 5, generator("twins")), 20)
    np.testing.assert_array_equal(counts[:, :, 0], counts[:, :, 1])
    np.testing.assert_array_equal(rewards[:, :, 0], rewards[:, :, 1])
    assert (counts[-1, :, 0] != counts[-1, :, 2]).any()
    others = np.stack((teams[0], teams[1]))
    samples = simulator.differences(teams[0], others, np.array([0, 0]), 4, 20, (1,))
    assert (samples[:, 0] == 0.0).all()
    assert (samples[:, 1] != 0.0).any()


def test_agents_are_conserved():
    simulator, _, teams = crowded_pair(2)
    counts, _ = take(simulator.paths(teams, 3, generator("conserved")), 20)
    assert (counts.sum(axis=3) == 60).all()
    assert (counts >= 0).all()


@pytest.mark.parametrize("limit", [1, 3000, 2**22])
def test_differences_do_not_depend_on_how_the_others_are_split(limit, monkeypatch):
    simulator, _, teams = crowded_pair(1)
    others, states = np.stack([crowded_pair(k)[2][1] for k in (0, 1, 2)]), np.array([0, 3, 0])
    alone = [
        simulator.differences(teams[0], others[[v]], states[[v]], 1, 10, (7,)) for v in range(3)
    ]
    monkeypatch.setattr(paired, "_BATCH", limit)
    together = simulator.differences(teams[0], others, states, 1, 10, (7,))
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))


# Starts that agree inside.

TEAM = st.lists(st.integers(0, 6), min_size=6, max_size=6)


@given(TEAM, TEAM)
def test_as_many_agents_as_possible_keep_their_cells(old, new):
    short = sum(old) - sum(new)
    old[0], new[0] = old[0] + max(-short, 0), new[0] + max(short, 0)
    team, other = (np.array(x).reshape(3, 2) for x in (old, new))
    before, after = paired._dealt(team, team), paired._dealt(team, other)
    np.testing.assert_array_equal(np.bincount(before, minlength=6), old)
    np.testing.assert_array_equal(np.bincount(after, minlength=6), new)
    assert (before == after).sum() == np.minimum(old, new).sum()


@given(
    st.integers(0, 2**32), st.integers(0, 5), st.lists(st.integers(0, 9), min_size=6, max_size=6)
)
def test_replacing_keeps_the_inside_and_the_number_of_agents(key, k, weights):
    model = path_model(6)
    simulator = PairedSimulator(model, 20, np.tile([0.3, 0.7], (6, 1)))
    start, weights = simulator.visited(1, key)[0], np.array(weights)
    kept = model.graph.distances(0) <= k
    other = simulator.replaced(start, kept, weights, np.random.default_rng(key))
    np.testing.assert_array_equal(other[kept], start[kept])
    assert other.sum() == start.sum() == 20
    outside = start[~kept].sum()
    if weights[~kept].any() and outside:
        share = outside * weights[~kept] / weights[~kept].sum()
        copies = outside // weights[~kept].sum() * weights[~kept]
        got = other[~kept].sum(axis=1)
        assert (copies <= got).all()
        assert (got <= copies + weights[~kept]).all()
        assert (got[share == 0] == 0).all()


def test_agents_outside_act_by_the_policy():
    model = star_model(4)
    probs = np.zeros((4, 4))
    probs[:, 1] = 1.0
    simulator = PairedSimulator(model, 30, probs)
    start = np.zeros((4, 4), dtype=np.int64)
    start[0, 3], start[1, 0] = 10, 20
    kept = np.array([True, False, False, False])
    other = simulator.replaced(start, kept, np.array([5, 0, 1, 3]), generator("outside"))
    np.testing.assert_array_equal(other[0], [0, 0, 0, 10])
    np.testing.assert_array_equal(other[1:], [[0, 0, 0, 0], [0, 5, 0, 0], [0, 15, 0, 0]])


# The policy.


@pytest.mark.parametrize("kind", ["table", "softmax", "function"])
def test_the_policy_is_asked_about_density_and_state(kind):
    model, policy = make("star", kind)
    simulator = PairedSimulator(model, 10, policy)
    counts = generator("asked").multinomial(10, [0.2, 0.3, 0.5], size=(4, 5))
    probs = simulator.mean_action(counts)
    assert probs.shape == (4, 5, *model.action_mask.shape)
    for index in np.ndindex(4, 5, 3):
        s, n = index[2], counts[index]
        row = policy[s] if kind == "table" else None
        if kind == "function":
            row = policy(s, n / 10)
        elif kind == "softmax":
            row = policy.individual()(s, n / 10)
        np.testing.assert_allclose(probs[index], row, atol=1e-12)
    np.testing.assert_array_equal(simulator.mean_action(counts), probs)


def test_the_policy_is_asked_once_for_each_density():
    asked = []

    def policy(s, density):
        asked.append((s, density))
        return [1.0, 0.0, 0.0]

    simulator = PairedSimulator(ring_model(4), 8, policy)
    take(simulator.paths(simulator.visited(2, 1), 10, generator("once")), 10)
    assert len(asked) == len(set(asked)) > 4
    assert all(isinstance(s, int) and isinstance(density, float) for s, density in asked)


def test_nothing_of_probability_0_happens():
    """The largest uniform number falls behind a rounded sum; it must not reach a masked row."""
    uniforms = np.full((1, 1, 2), np.nextafter(1.0, 0.0))
    row = np.array([0.1] * 3 + [0.7 - 1e-15, 0.0])
    pi, prob = np.tile(row, (1, 1, 5, 1)), np.full((1, 1, 5, 5), np.nan)
    pi[..., :3] = (0.1, 0.2, 0.3)
    pi[..., 3] = 0.4 - 1e-15
    prob[0, 0, 3] = row
    positions, counts = np.zeros((1, 1, 1), dtype=int), np.array([[[1, 0, 0, 0, 0]]])
    arguments = counts, np.zeros((1, 1, 1), dtype=int), False, uniforms, pi, prob
    paired._move(positions, *arguments, np.array([0, 5]), np.arange(5))
    assert positions.item() == 3
    np.testing.assert_array_equal(counts[0, 0], [0, 0, 0, 1, 0])


def test_the_compiled_loop_does_what_the_plain_one_does(monkeypatch):
    simulator, _, teams = crowded_pair(2)
    compiled = take(simulator.paths(teams, 2, generator("twin")), 5)
    monkeypatch.setattr(paired, "_compiled_move", lambda: paired._move)
    plain = take(simulator.paths(teams, 2, generator("twin")), 5)
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def bad_policies():
    model = star_model(4)
    masked = np.full((4, 4), 0.25)
    energy = ltde.EnergyPolicy(model, 4)
    yield np.full((4, 3), 1 / 3), ValueError, r"^policy: expected shape \(4, 4\), got \(4, 3\)$"
    yield np.full((2, 4, 4), 0.25), ValueError, r"^policy: expected one that does not change with"
    yield (
        masked,
        ValueError,
        r"^policy at state 1, density 0\.\d+: .* allowed actions .*got \[0\.25",
    )
    yield lambda s, d: [0.5, 0.4, 0, 0], ValueError, r"^policy at state 0, density .*\[0\.5, 0\.4"
    yield lambda s, d: [1.5, -0.5, 0, 0], ValueError, r"^policy at state 0, density .*-0\.5"
    yield lambda s, d: [math.nan, 1, 0, 0], ValueError, r"^policy at state 0, density .*nan"
    yield (
        lambda s, d: [1.0],
        ValueError,
        r"^policy at state 0: expected shape .*\(4,\), got \(1,\)$",
    )
    yield energy, TypeError, r"^policy: .* energy-based .*policy\.individual\(n_agents\)"
    yield ltde.FunctionPolicy(lambda c, n: masked), TypeError, r"^policy: .*got a FunctionPolicy$"


@pytest.mark.parametrize(("policy", "error", "message"), list(bad_policies()))
def test_a_bad_policy_is_refused(policy, error, message):
    model = star_model(4)
    with pytest.raises(error, match=message):
        PairedSimulator(model, 10, policy).visited(2, 0)


def test_an_energy_based_policy_can_be_profiled_by_its_individual_policy():
    model = star_model(4)
    individual = ltde.EnergyPolicy(model, 4).individual(10)
    assert PairedSimulator(model, 10, individual).visited(2, 0).sum() == 20

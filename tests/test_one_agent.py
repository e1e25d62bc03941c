"""The one-agent gradient: exact where its critics are, local, and what happens as N grows."""

import hashlib
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import exact_law
import ltde
import ltde.one_agent
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltde.actor import advantages, contract
from ltde.exact import ExactSystem
from ltde.value_gains import DifferenceGains, derivative_gains
from models import complete_model, path_model, ring_model, star_model
from scipy import stats
from statcheck import ALPHA_ASYMPTOTIC, bernstein_mean, chi2_counts, generator, seed

SYSTEMS = {
    "ring of 3": lambda: ring_model(3),
    "ring of 4": lambda: ring_model(4),
    "path": lambda: path_model(3),
    "complete": lambda: complete_model(3),
    "star": lambda: star_model(4),
}
HUB = ltde.Graph(8, [[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [5, 6], [6, 7]])


def fixed(tag):
    """Return a generator for examples, which do not change with the seeds of the statistics."""
    digest = hashlib.sha256(f"0:{tag}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little") >> 1)


def make_learner(model, n_agents, policy=None, **options):
    """Return a one-agent learner in float64, of this policy if one is given."""
    config = ltde.Config(
        **{
            "density_transform": "linear",
            "width": 8,
            "n_replicas": 4,
            "dtype": "float64",
            "tau": 1.3,
            **options,
        }
    )
    learner = ltde.LTDENeuralAC(model, n_agents, config, threads=1).learner
    if policy is not None:
        learner.policy = policy
    return learner


def random_softmax(model, tag, scale=2.0):
    """Return a softmax policy whose probabilities are far from uniform."""
    policy = ltde.SoftmaxPolicy(
        model, 6, seed=5, tau=1.3, density_scale=scale, input_scale=0.7, dtype=torch.float64
    )
    with torch.no_grad():
        policy.theta += torch.tensor(fixed(tag).normal(size=tuple(policy.theta.shape)))
    return policy


def randomize(critic, tag, size=1.0):
    """Give critics random weights."""
    for g, w in enumerate(critic.omega):
        noise = fixed(f"{tag} {g}").normal(0.0, size, tuple(w.shape))
        w.copy_(torch.tensor(noise))


# ---- the gradient is exact where the values are --------------------------------------------------


def interpolate(critic, counts, unit, values):
    """Make critic s, whose ball is the whole graph, equal to values[:, s] at the counts (K, S).

    A projection u . counts tells all counts apart; in it the critic is piecewise linear, with a
    neuron for each kink. Inputs are the counts times `unit`, and 1.
    """
    n_points, states = counts.shape
    u = (counts.max() + 1.0) ** np.arange(states)
    place = counts @ u
    order = place.argsort()
    t, v = place[order], values[order]
    assert critic.width == n_points
    assert (np.diff(t) >= 1.0).all()
    slopes = np.diff(v, axis=0) / np.diff(t)[:, None]
    bends = np.concatenate([v[:1], slopes[:1], np.diff(slopes, axis=0)])  # (K, S), v[0] first
    directions = np.concatenate([u / unit, [0.0]])[None].repeat(n_points, 0)
    directions[0, :-1], directions[0, -1] = 0.0, 1.0
    directions[1:, -1] = -t[:-1]
    for g, group in enumerate(critic.groups):
        own = torch.tensor(bends.T[group.states.numpy()])
        scale = math.sqrt(critic.width) / group.scale[:, None, None]
        critic.omega[g].copy_(own.abs()[..., None] * torch.tensor(directions) * scale)
        critic.b[g].copy_(torch.where(own < 0.0, -1.0, 1.0))


def moves(model, policy, counts):
    """Return p (S, S): where an agent of each state goes, its action drawn by the policy."""
    prob, _ = exact_law.local_tables(model, counts)
    pi = exact_law.policy_table(policy.individual(), model, counts)
    return np.einsum("sa,saj->sj", pi, np.nan_to_num(prob))


def others_law(p, counts, s):
    """Law of the next counts of all agents but one of s."""
    law = {(0,) * len(counts): 1.0}
    for y, n in enumerate(counts):
        law = exact_law._convolve(law, exact_law.multinomial_law(n - (y == s), p[y]))
    return law


def visits(exact):
    """Visitation of every mu, `(n_states_mu,)`."""
    return np.bincount(exact.pairs[:, 0], exact.visitation, len(exact.states))


def enumerated_gradient(exact, learner, mutant=None):
    """Return the expectation of the one-agent gradient, every draw of it enumerated.

    Mutants: "derivative", "landed by chance" (a place that has nothing to do with the next
    densities), "an agent too many" (mu' in the place of mu'').
    """
    model, policy, n = exact.model, learner.policy, exact.n_agents
    graph, states = model.graph, model.n_states
    rows, source, weights = [], [], []
    for m, counts in enumerate(map(tuple, exact.states.tolist())):
        p = moves(model, policy, counts)
        for s in np.flatnonzero(counts):
            for others, chance in others_law(p, counts, s).items():
                for place, i in enumerate(graph.neighbors(s)):
                    if p[s, i] == 0.0:
                        continue
                    after, landed = np.array(others), np.zeros(states, dtype=np.intp)
                    after[i] += 1
                    landed[s] = place
                    if mutant == "landed by chance":
                        landed[s] = (after[graph.neighbors(s)] > 0).argmax()
                    if mutant == "an agent too many":
                        after[i] += 1
                    rows.append((exact.states[m] / n, after / n, landed))
                    source.append((m, s))
                    weights.append(chance * p[s, i])
    density, after, landed = map(np.array, zip(*rows, strict=True))
    m, s = np.array(source).T
    landed = None if mutant == "derivative" else landed
    values = learner.one_agent_values(density, after, landed)[np.arange(len(m)), s]
    q = np.zeros((len(exact.states), states, model.n_actions))
    np.add.at(q, (m, s), np.array(weights)[:, None] * values)
    mu = torch.tensor(exact.states / n)
    pi = policy.mean_action(exact.states).detach()
    mass = mu * torch.tensor(visits(exact))[:, None]
    weighted = mass[..., None] * pi * advantages(torch.tensor(q), pi, policy.action_mask)
    return contract(policy, mu, policy.tau * weighted).numpy() / (1.0 - model.discount)


def exact_learner(model, policy, n_agents, **options):
    """Return the exact system, and a learner whose critics are its values."""
    exact = ExactSystem(model, n_agents, policy)
    learner = make_learner(
        model,
        n_agents,
        policy,
        critic="value",
        k=model.n_states,
        width=len(exact.states),
        symmetric=False,
        reward_scale=1.0,
        **options,
    )
    unit = policy.density_scale / n_agents
    interpolate(learner.critic, exact.states, unit, exact.v)
    inputs = learner.critic_inputs(torch.tensor(exact.states / n_agents))
    np.testing.assert_allclose(learner.critic.values(inputs), exact.v, rtol=1e-10, atol=1e-10)
    return exact, learner


@pytest.mark.parametrize("n_agents", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SYSTEMS)
def test_with_exact_values_it_is_the_gradient_of_j(name, n_agents):
    model = SYSTEMS[name]()
    exact, learner = exact_learner(model, random_softmax(model, name), n_agents)
    expected = exact.gradient()
    scale = np.abs(expected).max()
    assert scale > 1e-2
    np.testing.assert_allclose(enumerated_gradient(exact, learner), expected, atol=1e-8 * scale)
    slope = enumerated_gradient(exact, learner, "derivative")
    assert np.abs(slope - expected).max() > 0.05 * scale
    if n_agents > 1:  # one agent is alone wherever it landed
        chance = enumerated_gradient(exact, learner, "landed by chance")
        assert np.abs(chance - expected).max() > 0.005 * scale


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_exact_gradient_is_the_slope_of_j(name):
    model, n, step = SYSTEMS[name](), 3, 2e-5
    policy = random_softmax(model, name)
    gradient = ExactSystem(model, n, policy).gradient()
    start = policy.theta.detach().clone()
    for i in range(3):
        direction = fixed(f"direction {i}").normal(size=tuple(start.shape))

        def at(distance, direction=direction):
            with torch.no_grad():
                policy.theta.copy_(start + distance * torch.tensor(direction))
            return ExactSystem(model, n, policy).J

        # central differences, of the fourth order
        slope = (8.0 * (at(step) - at(-step)) - at(2 * step) + at(-2 * step)) / (12.0 * step)
        size = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(slope - (gradient * direction).sum()) < 1e-8 * size
        assert abs(slope) > 1e-3 * size


def crowd_local(s, mu, node, edge, prob, reward):
    """Stay or go on; a crowd ahead is in the way, and a crowd here costs.

    Densities are in units of node[0], so that the same weight of an agent can be kept for another
    number of agents; node[1] is the strength of the interaction and node[2] the worth of s.
    """
    here, ahead = 0, 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
        if edge[i, 0] == 1.0:
            ahead = i
    success = 0.9 / (1.0 + node[1] * node[0] * mu[ahead])
    prob[0, here] = 1.0
    prob[1, here] = 1.0 - success
    prob[1, ahead] = success
    for a in range(2):
        reward[a] = node[0] * (node[2] - node[1] * node[0] * mu[here] - 0.1 * a)


def crowd_model(strength=1.0, unit=1.0):
    """One-way ring of three states; `unit` multiplies densities and team rewards."""
    graph = ltde.Graph.ring(3)
    ahead = [float((j - s) % 3) for s in range(3) for j in graph.neighbors(s)]
    return ltde.NetworkedModel(
        graph,
        2,
        crowd_local,
        node=np.array([[unit, strength, worth] for worth in (0.0, 1.0, 2.0)]),
        edge=np.array(ahead)[:, None],
        initial=np.full(3, 1.0 / 3.0),
        discount=0.9,
    )


def crowd_systems(n_agents, more, strength=1.0):
    """Exact systems of N agents, and of N + more that weigh 1 / N each as well; None of no agents.

    The policy is that of the first.
    """
    scale = 3.0 if strength else 1e-9  # a policy that sees the crowd interacts with it
    policy, same = (random_softmax(crowd_model(), "crowd", scale) for _ in range(2))
    exact, other = ExactSystem(crowd_model(strength), n_agents, policy), None
    if n_agents + more > 0:
        unit = (n_agents + more) / n_agents
        same.density_scale *= unit
        other = ExactSystem(crowd_model(strength, unit), n_agents + more, same)
    return exact, other, policy


def test_an_agent_of_the_oracle_weighs_the_same_in_both_systems():
    exact, more, policy = crowd_systems(4, 1)
    mu = exact.states / 4
    (prob, reward), (prob_1, reward_1) = exact.model.evaluate(mu), more.model.evaluate(mu * 0.8)
    np.testing.assert_allclose(prob_1, prob, rtol=1e-12)
    np.testing.assert_allclose(reward_1 * 0.8, reward, rtol=1e-12)
    pi = [p.mean_action(exact.states, n).detach() for p, n in ((policy, 4), (more.policy, 5))]
    torch.testing.assert_close(*pi, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("n_agents", [2, 3, 5])
def test_the_agent_is_taken_out_before_one_is_added(n_agents):
    # Even with exact values of N + 1 agents, V(mu' + e_j / N) - V(mu') is not what one agent does.
    exact, more, policy = crowd_systems(n_agents, 1)
    counts = np.concatenate([exact.states, more.states])
    learner = make_learner(
        exact.model,
        n_agents,
        policy,
        critic="value",
        width=len(counts),
        symmetric=False,
        reward_scale=1.0,
    )
    unit = policy.density_scale / n_agents
    interpolate(learner.critic, counts, unit, np.concatenate([exact.v, more.v]))
    expected = exact.gradient()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(enumerated_gradient(exact, learner), expected, atol=1e-8 * scale)
    wrong = enumerated_gradient(exact, learner, "an agent too many")
    assert np.abs(wrong - expected).max() > 0.3 * scale


def p_values(learner, expected, burn_in, n=60):
    """Compare the steps of independent iterations with E_sigma of what they estimate.

    Statistic: z of the mean along four directions. Reference: normal, two-sided; compare the least
    with `FOUR_OF_THEM`. The iterations are gamma^burn_in from sigma and from each other.
    """
    found = []
    learner.ascend = lambda direction, iteration: found.append(direction.numpy())
    for iteration in range(n):
        learner.simulator.rollout(learner.policy, burn_in, restart="chain", record=())
        learner.iterate(iteration)
    directions = fixed("directions").normal(size=(4, expected.size))
    gaps = (np.array(found) - expected).reshape(n, -1) @ directions.T
    return 2.0 * stats.norm.sf(abs(gaps.mean(0)) / gaps.std(0, ddof=1) * n**0.5)


FOUR_OF_THEM = ALPHA_ASYMPTOTIC / 4
FIXED = {  # critics stay, and steps are the gradient
    "critic_rate": 1e-300,
    "natural": False,
    "advantage_scale": 1.0,
    "visit_floor": math.inf,
    "n_replicas": 200,
    "segment": 4,
}


@pytest.mark.statistical
def test_an_iteration_estimates_the_gradient():
    # Power: a place that has nothing to do with the next densities is seen.
    model = ring_model(3, discount=0.5)
    policy, options = random_softmax(model, "ring of 3"), {**FIXED, "seed": seed("iterations")}
    exact, learner = exact_learner(model, policy, 3, **options)
    expected = exact.gradient() * (1.0 - model.discount)
    assert p_values(learner, expected, burn_in=20).min() > FOUR_OF_THEM
    landed = learner.landed
    learner.landed = lambda flows, rng: landed(np.ones_like(flows), rng)
    assert p_values(learner, expected, burn_in=20).min() < FOUR_OF_THEM


# ---- what one more agent adds --------------------------------------------------------------------


def hub_local(s, mu, node, edge, prob, reward):
    """Go where there are agents; action 1 prefers later neighbours."""
    for a in range(2):
        total = 0.0
        for i in range(mu.size):
            prob[a, i] = 1.0 + a * i + 3.0 * mu[i]
            total += prob[a, i]
        reward[a] = 0.3 * a - mu[0]
        for i in range(mu.size):
            prob[a, i] /= total


@cache
def hub_model():
    return ltde.NetworkedModel(HUB, 2, hub_local, initial=np.full(8, 0.125), discount=0.9)


def hub_learner(k, transform, n_agents=30, **options):
    """Return a learner whose value critics have random weights."""
    learner = make_learner(
        hub_model(), n_agents, critic="value", k=k, width=12, density_transform=transform, **options
    )
    randomize(learner.critic, f"hub {k}")
    return learner


def total_value(learner, density):
    """Sum of all critics at densities (n, S)."""
    return learner.critic.values(learner.critic_inputs(density)).sum(1)


@pytest.mark.parametrize("transform", ["linear", "log1p"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_differences_by_brute_force(k, transform):
    learner, n = hub_learner(k, transform), 5
    step = 1.0 / learner.n_agents
    after = torch.tensor((1 + fixed("after").multinomial(22, np.ones(8) / 8, n)) * step)
    now = learner.transformed(after)
    differences = DifferenceGains(learner.critic, HUB)
    naive, itself = 0.0, 0
    for slot in range(6):
        landed = np.minimum(slot, np.diff(HUB.indptr) - 1)
        gains = differences(
            learner.critic,
            learner.critic_inputs(after),
            learner.transformed(after - step) - now,
            learner.transformed(after + step) - now,
            torch.tensor(landed).expand(n, 8),
        )
        for s in range(8):
            i = HUB.neighbors(s)[landed[s]]
            without = after.clone()
            without[:, i] -= step
            for e in range(HUB.indptr[s], HUB.indptr[s + 1]):
                j = HUB.indices[e]
                itself += i == j
                one, two = without.clone(), after.clone()
                one[:, j] += step
                two[:, j] += step
                expected = total_value(learner, one) - total_value(learner, without)
                torch.testing.assert_close(gains[:, e], expected, rtol=0.0, atol=1e-10)
                beyond = total_value(learner, two) - total_value(learner, after)
                naive = max(naive, float((gains[:, e] - beyond).abs().max()))
    assert itself >= 22
    assert naive > 1e-3


@pytest.mark.parametrize("transform", ["linear", "log1p"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_derivatives_by_finite_differences(k, transform):
    # critics are piecewise linear: central differences are exact but for rounding
    learner, step = hub_learner(k, transform), 1e-6
    after = torch.tensor(fixed("slopes").dirichlet(np.ones(8), 5))
    gains = derivative_gains(learner.critic, learner.critic_inputs(after))
    x = learner.transformed(after)
    by_density = np.zeros((5, 8))
    for j in range(8):
        for y, result in ((x, gains), (after, by_density)):
            up, down = y.clone(), y.clone()
            up[:, j] += step
            down[:, j] -= step
            if y is x:
                values = [
                    learner.critic.values(learner.critic.inputs(z)).sum(1) for z in (up, down)
                ]
                slope = (values[0] - values[1]) / (2.0 * step)
                torch.testing.assert_close(result[:, j], slope, rtol=0.0, atol=1e-8)
                assert float(slope.abs().max()) > 1e-2
            else:
                slope = (total_value(learner, up) - total_value(learner, down)) / (2.0 * step)
                result[:, j] = slope
    density = fixed("here").dirichlet(np.ones(8), 5)
    values = learner.one_agent_values(density, after.numpy(), None)
    expected = action_values(learner, density, np.repeat(by_density[:, None], 8, axis=1))
    np.testing.assert_allclose(values, expected, atol=1e-8)


def action_values(learner, density, gains):
    """Return r + gamma sum_j P(j) gains[n, s, j], with loops."""
    graph, scale = learner.model.graph, learner.reward_scale
    prob, values = learner.model.evaluate(density)
    for n, s, a in np.ndindex(values.shape):
        for e in range(graph.indptr[s], graph.indptr[s + 1]):
            gain = gains[n, s, graph.indices[e]] / scale
            values[n, s, a] += learner.model.discount * prob[n, a, e] * gain
    return values


@pytest.mark.parametrize("transform", ["linear", "log1p"])
def test_action_values_are_the_reward_and_what_the_agent_adds(transform):
    learner, n = hub_learner(1, transform), 4
    agents, rng = learner.n_agents, fixed("action values")
    density = rng.dirichlet(np.ones(8), n)
    after = (1 + rng.multinomial(agents - 8, np.ones(8) / 8, n)) / agents
    landed = rng.integers(0, np.diff(HUB.indptr), (n, 8))
    gains = np.zeros((n, 8, 8))
    for s in range(8):
        without = torch.tensor(after)
        places = np.array(HUB.neighbors(s))[landed[:, s]]
        without[np.arange(n), places] -= 1.0 / agents
        for j in HUB.neighbors(s):
            more = without.clone()
            more[:, j] += 1.0 / agents
            gain = total_value(learner, more) - total_value(learner, without)
            gains[:, s, j] = agents * gain
    expected = action_values(learner, density, gains)
    values = learner.one_agent_values(density, after, landed)
    np.testing.assert_allclose(values, expected, atol=1e-10)
    assert learner.reward_scale == 8.0
    assert np.abs(values - action_values(learner, density, 0.0 * gains)).max() > 0.1


# ---- where the agent landed ----------------------------------------------------------------------


@pytest.mark.statistical
def test_where_an_agent_landed_is_drawn_by_the_flows():
    # Statistic: chi-square of the places of each state, 1e-6 in all. Power: 10^5 draws see a place
    # of probability 1/4 that is wrong by 0.02; places drawn evenly are caught.
    learner, rng, n = hub_learner(1, "linear"), generator("landed"), 100_000
    flows = fixed("flows").integers(1, 9, len(HUB.indices))
    flows[::5] = 0
    flows[HUB.indptr[7] :] = 0  # nobody was in 7
    draws = learner.landed(np.tile(flows, (n, 1)), rng)
    even = learner.landed(np.tile(np.minimum(flows, 1), (n, 1)), rng)
    assert not draws[:, 7].any()
    unequal = 0
    for s in range(7):
        row = flows[HUB.indptr[s] : HUB.indptr[s + 1]]
        law = row / row.sum()
        observed, mutant = (np.bincount(x[:, s], minlength=len(row)) for x in (draws, even))
        if (row > 0).sum() < 2:
            assert observed[row.argmax()] == n
            continue
        assert chi2_counts(observed, law, n_comparisons=7)
        if len(set(row[row > 0])) > 1:
            unequal += 1
            assert not chi2_counts(mutant, law, n_comparisons=7)
    assert unequal > 3


@given(st.lists(st.sampled_from([0, 0, 1, 2, 2**50]), min_size=22, max_size=22), st.integers(0, 99))
def test_an_agent_landed_where_the_flow_went(flows, seed):
    flows = np.array(flows)
    learner = cached_hub_learner()
    (landed,) = learner.landed(flows[None], np.random.default_rng(seed))
    for s in range(8):
        row = flows[HUB.indptr[s] : HUB.indptr[s + 1]]
        if row.any():
            assert row[landed[s]] > 0
        else:
            assert landed[s] == 0


@cache
def cached_hub_learner():
    return hub_learner(1, "linear")


@pytest.mark.statistical
@pytest.mark.parametrize("n_agents", [1, 5])
def test_the_path_of_one_agent(n_agents):
    # Statistic: the mean over replicas of whether it is in s, less n(s) / N, and of how many are
    # where it is, less what that is on average; the same of flows; by `bernstein_mean` at 1e-9 in
    # all. Power: means of 0.02; places drawn evenly, at the start or on the way, are caught.
    replicas, steps = 40_000, 4
    options = {"n_replicas": replicas, "seed": seed("path of one agent")}
    learner = make_learner(ring_model(4), n_agents, **options)
    rollout = learner.simulator.rollout(
        learner.policy, steps, restart="chain", record=("counts", "flows")
    )
    graph = learner.model.graph
    source = np.repeat(np.arange(4), np.diff(graph.indptr))

    def moved(path):
        return path[:-1][..., source] * path[1:][..., graph.indices]

    def is_one_of_them(path):
        checks = []
        for seen, agents in ((path, rollout.counts), (moved(path), rollout.flows)):
            share = agents / n_agents
            gaps = seen - share
            if agents is rollout.flows:
                gaps[rollout.restarted] = 0.0  # it begins anew
            gaps = np.concatenate([gaps, (share * gaps).sum(-1, keepdims=True)], axis=-1)
            for gap in gaps.swapaxes(1, 2).reshape(-1, replicas):
                checks.append(bernstein_mean(gap, 0.0, (-1.0, 1.0), n_comparisons=77))
        assert len(checks) == 77
        return all(checks)

    path = learner.tagged(rollout, 0)
    np.testing.assert_array_equal(path.sum(-1), 1.0)
    assert (rollout.counts >= path).all()
    went, goes_on = moved(path), ~rollout.restarted
    assert (rollout.flows >= went)[goes_on].all()
    assert (went.sum(-1) == 1.0)[goes_on].all()
    assert not goes_on.all()
    assert is_one_of_them(path)
    if n_agents > 1:  # a single one goes where all go
        for wrong in ("counts", "flows"):
            even = {wrong: np.minimum(getattr(rollout, wrong), 1)}
            assert not is_one_of_them(learner.tagged(replace(rollout, **even), 0))


# ---- large N -------------------------------------------------------------------------------------


def shrinks_like_one_over_n(errors):
    """Whether errors at N = 10^2, 10^3, 10^4, 10^5 fall about tenfold each time."""
    ratios = np.divide(errors[:-1], errors[1:])
    return bool((ratios > 5.0).all() and (ratios < 20.0).all())


@pytest.mark.parametrize("transform", ["linear", "log1p"])
def test_differences_become_derivatives(transform):
    learner, n = hub_learner(1, transform), 1000
    rng = fixed("large N")
    # no density below 1 / 100
    density, after = 0.1 / 8 + 0.9 * rng.dirichlet(np.ones(8), (2, n))
    landed = rng.integers(0, np.diff(HUB.indptr), (n, 8))
    slopes = learner.one_agent_values(density, after, None)
    errors = []
    for learner.n_agents in (10**2, 10**3, 10**4, 10**5):
        values = learner.one_agent_values(density, after, landed)
        errors.append(np.abs(values - slopes).mean())
    assert shrinks_like_one_over_n(errors)
    assert np.ptp(slopes, axis=-1).mean() > 100 * errors[-1]


@pytest.mark.parametrize("n_agents", [2, 999, 1000, 1001, 10**6, math.inf])
def test_value_critics_are_differenced_up_to_1000_agents(n_agents):
    learner = make_learner(ring_model(), n_agents, critic="value", segment=3)
    assert learner.step == max(1.0 / n_agents, 1e-7)
    called, recorded = [], []
    values, rollout = learner.one_agent_values, learner.simulator.rollout

    def spied(density, after, landed):
        called.append(landed)
        return values(density, after, landed)

    def spied_rollout(*args, **options):
        recorded.append("flows" in options["record"])
        return rollout(*args, **options)

    learner.one_agent_values, learner.simulator.rollout = spied, spied_rollout
    learner.iterate(0)
    assert recorded == [n_agents <= 1000]
    assert [landed is not None for landed in called] == recorded


@pytest.mark.parametrize("n_agents", [1, 1000, 1001, math.inf])
def test_costates_tell_one_agent_from_the_others_up_to_1000_agents(n_agents):
    learner, drawn = make_learner(ring_model(), n_agents, segment=3), []
    tagged = learner.tagged
    learner.tagged = lambda rollout, iteration: (
        drawn.append(iteration) or tagged(rollout, iteration)
    )
    learner.iterate(7)
    assert drawn == ([7] if n_agents <= 1000 else [])


@pytest.mark.parametrize("n_agents", [5, 2000])
def test_the_natural_gradient_is_told_where_the_policy_chose(n_agents, monkeypatch):
    told = []

    class Spy(ltde.one_agent.NaturalGradient):
        def add(self, density, weight, advantage):
            told.append((density.numpy(), weight.numpy(), advantage.numpy()))
            super().add(density, weight, advantage)

    monkeypatch.setattr("ltde.one_agent.NaturalGradient", Spy)
    model = star_model(4)
    learner = make_learner(model, n_agents, random_softmax(model, "told"), segment=6)
    randomize(learner.critic, "told")
    before = learner.policy.individual()
    learner.iterate(0)
    ((density, weight, advantage),) = told
    for s in range(4):
        pi = np.array([before(s, x) for x in density[:, s]])
        here = density[:, s] > 0.0
        centred = (pi * advantage[:, s]).sum(-1)
        np.testing.assert_allclose(centred[here], 0.0, atol=1e-12)
        assert not weight[~here, s].any()
        shifted = np.array([before(s, x + 0.2) for x in density[:, s]])
        assert np.abs((shifted * advantage[:, s]).sum(-1)).max() > 1e-3


def own_value(model, policy, density, costates):
    """Return G(mu): what the agents earn in this step, and their costates in the next."""
    individual, total = policy.individual(), 0.0
    for y, mass in enumerate(density):
        around = model.graph.neighbors(y)
        pi, (prob, reward) = individual(y, mass), model.evaluate_local(y, density[around])
        q = reward + model.discount * prob @ costates[around]
        total += mass * sum(p * x for p, x in zip(pi, q, strict=True) if p > 0.0)
    return total


def costate_targets(learner, density, costates):
    """Pass costates (B, S) back one step from densities (B, S)."""
    targets = np.zeros((1, *density.shape))
    after = np.stack([np.zeros_like(costates), costates])
    restarted = np.zeros((1, len(density)), bool)
    learner.pass_back(np.stack([density, density]), restarted, after, targets)
    return targets[0]


@pytest.mark.parametrize("name", SYSTEMS)
def test_costates_are_the_difference_of_one_agent(name):
    model = SYSTEMS[name]()
    policy, states = random_softmax(model, name), model.n_states
    learner, rng = make_learner(model, 5, policy), fixed("costates")
    costates = rng.normal(size=(3, states))
    density = rng.multinomial(5, np.ones(states) / states, 3) / 5
    for learner.n_agents in (5, 50):
        h = 1.0 / learner.n_agents
        targets = costate_targets(learner, density, costates)
        for mu, after, got in zip(density, costates, targets, strict=True):
            here = own_value(model, policy, mu, after)
            for s, e in enumerate(np.eye(states)):
                more = own_value(model, policy, mu + h * e, after)
                assert got[s] == pytest.approx((more - here) / h, abs=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_costates_become_derivatives(name):
    model = SYSTEMS[name]()
    policy, states = random_softmax(model, name), model.n_states
    learner, step = make_learner(model, math.inf, policy), 1e-5
    rng = fixed("limit")
    density, costates = rng.dirichlet(np.ones(states), 500), rng.normal(size=(500, states))
    limit = costate_targets(learner, density, costates)
    for s, e in enumerate(np.eye(states)):
        up, down = (
            own_value(model, policy, density[0] + h * e, costates[0]) for h in (step, -step)
        )
        assert limit[0, s] == pytest.approx((up - down) / (2.0 * step), abs=1e-5)
    errors = []
    for learner.n_agents in (10**2, 10**3, 10**4, 10**5):
        errors.append(np.abs(costate_targets(learner, density, costates) - limit).mean())
    assert shrinks_like_one_over_n(errors)
    for learner.n_agents in (10**7, 10**8, 2**53):  # beyond, differences are lost to rounding
        np.testing.assert_array_equal(costate_targets(learner, density, costates), limit)


# ---- locality ------------------------------------------------------------------------------------

LINE, MIDDLE, AGENTS = 13, 6, 256


@cache
def line_model():
    return path_model(LINE)


def line_learner(critic, k, **options):
    learner = make_learner(
        line_model(),
        AGENTS,
        random_softmax(line_model(), "line"),
        critic=critic,
        k=k,
        n_replicas=24,  # so many that neurons go on and off: of 6, one stream in ten saw none
        advantage_scale=1.0,
        **options,
    )
    learner.theta_0 = learner.policy.theta.detach().clone()
    randomize(learner.critic, "line")
    return learner


def beyond(radius):
    """States further than `radius` from the middle."""
    return np.flatnonzero(np.abs(np.arange(LINE) - MIDDLE) > radius)


def rewrite_critics(critic, states, draw):
    for group, w in zip(critic.groups, critic.omega, strict=True):
        for i, y in enumerate(group.states.tolist()):
            if y in states:
                w[i] = torch.tensor(draw(tuple(w[i].shape)))


@pytest.mark.parametrize("differences", [True, False])
@pytest.mark.parametrize("transform", ["linear", "log1p"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_value_critics_are_read_on_a_ball(k, transform, differences):
    learner, rng = line_learner("value", k, density_transform=transform), fixed("balls")
    density = rng.dirichlet(np.ones(LINE), 5)
    after = (1 + rng.multinomial(AGENTS - LINE, np.ones(LINE) / LINE, 5)) / AGENTS
    landed = rng.integers(0, 2, (5, LINE)) if differences else None

    def values(after):
        return learner.one_agent_values(density, after, landed)[:, MIDDLE]

    clean, poisoned = values(after), after.copy()
    poisoned[:, beyond(2 * k + 1)] = np.nan
    rewrite_critics(learner.critic, beyond(k + 1), lambda shape: np.full(shape, np.nan))
    np.testing.assert_array_equal(values(poisoned), clean)
    poisoned[:, beyond(2 * k)] = np.nan  # a neuron of a derivative is off there
    assert not np.array_equal(values(poisoned), clean)
    rewrite_critics(learner.critic, beyond(k), lambda shape: np.full(shape, np.nan))
    assert np.isnan(values(after)).any()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_costate_critics_are_read_on_a_ball(k):
    learner, rng = line_learner("costate", k), fixed("balls")
    density = rng.dirichlet(np.ones(LINE), (2, 6))

    def values(after, here=density[0]):
        inputs = learner.critic_inputs(torch.tensor(after))
        costates = np.stack([np.zeros_like(after), learner.critic.values(inputs).numpy()])
        targets = np.zeros((1, 6, LINE))
        both = np.stack([here, np.full_like(after, np.nan)])
        return learner.pass_back(both, np.zeros((1, 6), bool), costates, targets)[0][:, MIDDLE]

    clean, poisoned = values(density[1]), density[1].copy()
    poisoned[:, beyond(k + 1)] = np.nan
    here = density[0].copy()
    here[:, beyond(1)] = rng.random((6, LINE - 3))  # the core refuses NaN here
    rewrite_critics(learner.critic, beyond(1), lambda shape: np.full(shape, np.nan))
    np.testing.assert_array_equal(values(poisoned, here), clean)
    poisoned[:, beyond(k)] = np.nan
    assert np.isnan(values(poisoned)).any()


def update(critic, k, distance=None, **options):
    """Return the steps of actor and critic of the middle, with other numbers from a distance on.

    Teams there are dealt out again (256 agents: densities have no rounding that sums could see),
    and critics that the middle should not read are others.
    """
    learner, rng = line_learner(critic, k, **options), fixed("other numbers")
    real = learner.simulator.rollout(
        learner.policy, learner.config.segment, record=("counts", "rewards", "flows")
    )
    path = np.zeros(real.counts.shape)
    path[..., MIDDLE] = 1.0  # where the one agent is, its step is not 0
    learner.tagged = lambda rollout, iteration: path
    counts, rewards = real.counts.astype(float), real.rewards.copy()
    if distance is not None:
        far = beyond(distance - 1)
        for row in counts.reshape(-1, LINE):
            spare = int(row[far].sum()) - len(far)
            row[far] = 1 + rng.multinomial(spare, rng.dirichlet(np.ones(len(far))))
        rewards[..., far] += rng.normal(size=rewards[..., far].shape)
        unread = k + 1 if critic == "value" else 2 * learner.config.segment
        rewrite_critics(learner.critic, beyond(unread), lambda shape: rng.normal(size=shape))
    learner.simulator.rollout = lambda *args, **options: SimpleNamespace(
        counts=counts, rewards=rewards, restarted=real.restarted, flows=real.flows
    )
    before = learner.policy.theta.detach()[MIDDLE].clone()
    learner.iterate(0)
    weights = None
    for group, w in zip(learner.critic.groups, learner.critic.omega, strict=True):
        for i in (group.states == MIDDLE).nonzero().flatten().tolist():
            weights = w[i]
    return learner.policy.theta.detach()[MIDDLE] - before, weights


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("segment", [1, 2])
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("critic", ["costate", "value"])
def test_an_iteration_reads_a_ball_and_nothing_else(critic, k, segment, natural):
    options = {"segment": segment, "natural": natural, "actor_rate": 0.1}
    actor, weights = update(critic, k, **options)
    # costates: messages between neighbours, two states a step
    reach = k + 2 * segment
    radii = (2 * k + 1, k) if critic == "value" else (reach - 1, reach)
    assert float(actor.abs().max()) > 1e-5
    for part, radius in enumerate(radii):
        for distance, same in ((radius + 1, True), (radius, False)):
            changed = update(critic, k, distance, **options)[part]
            assert torch.equal(changed, (actor, weights)[part]) == same, (part, distance)


# ---- costates against the oracle -----------------------------------------------------------------


class Others:
    """The N - 1 other agents of an exact system of three states, as one agent meets them.

    Attributes
    ----------
    density
        `(K, S)` their densities nu, in units of 1 / N.
    weight
        `(K, S)` how often they are seen there with the one agent in each state.
    law
        `(K, S, K)` their next densities given theirs and the state of the one agent.
    """

    def __init__(self, exact, policy):
        n = exact.n_agents
        counts = np.array(exact_law.compositions(n - 1, 3))
        place = {tuple(c): m for m, c in enumerate(counts.tolist())}
        self.density = counts / n
        self.weight = np.zeros(counts.shape)
        self.law = np.zeros((*counts.shape, len(counts)))
        for all_agents, visited in zip(exact.states, visits(exact), strict=True):
            p = moves(exact.model, policy, tuple(all_agents.tolist()))
            for s in np.flatnonzero(all_agents):
                others = all_agents - np.eye(3, dtype=int)[s]
                m = place[tuple(others)]
                self.weight[m, s] = visited * all_agents[s] / n
                self.law[m, s] = self._next(p, others)[counts[:, 0], counts[:, 1]]

    @staticmethod
    def _next(p, counts):
        """Law of the next counts by its generating function: `[c_0, c_1]`."""
        size = counts.sum() + 1
        root = np.exp(2j * np.pi * np.arange(size) / size)
        values = np.ones((size, size), dtype=complex)
        for row, n in zip(p, counts, strict=True):
            values *= (row[0] * root[:, None] + row[1] * root + row[2]) ** n
        return np.fft.fft2(values).real / size**2

    def chain(self):
        """`P(nu' | nu)`, `(K, K)`."""
        chance = self.weight / self.weight.sum(1, keepdims=True)
        return np.einsum("ms,msn->mn", chance, self.law)

    def size(self, errors):
        """Root mean square over densities, as often as they are seen, and states."""
        return math.sqrt(self.weight.sum(1) @ (errors**2).mean(1))


def pass_back(learner, density, after):
    """Pass costates back from after each density, both `(n, S)`: targets, action values, pi."""
    targets, restarted = np.zeros((1, *density.shape)), np.zeros((1, len(density)), bool)
    both, costates = np.stack([density, density]), np.stack([np.zeros_like(after), after])
    values, probs = learner.pass_back(both, restarted, costates, targets)
    return targets[0], values, probs


def fixed_point(others, learner, externality=True):
    """Return the costates that targets lead back to in expectation: a critic that has converged.

    Targets are affine in the costates at the next densities; without `externality` the mutant
    counts what an agent earns itself and not what it does to others.
    """
    n, states = others.density.shape

    def passed(after):
        targets, values, probs = pass_back(learner, others.density, np.tile(after, (n, 1)))
        return targets if externality else (values * probs).sum(-1)

    constant = passed(np.zeros(states))
    slope = np.stack([passed(e) - constant for e in np.eye(states)], axis=-1)
    ahead = np.einsum("mn,msj->msnj", others.chain(), slope).reshape(n * states, n * states)
    return np.linalg.solve(np.eye(n * states) - ahead, constant.ravel()).reshape(n, states)


def oracle(exact, fewer):
    """N [V(nu + e_s / N) - V(nu)], `(K, S)`; without agents, V = 0."""
    place = {tuple(counts): m for m, counts in enumerate(exact.states.tolist())}
    value = exact.v.sum(1)
    fewer_counts = np.zeros((1, 3), dtype=int) if fewer is None else fewer.states
    fewer_value = np.zeros(1) if fewer is None else fewer.v.sum(1)
    one_more = fewer_counts[:, None] + np.eye(3, dtype=int)
    rows = np.apply_along_axis(lambda counts: place[tuple(counts)], 2, one_more)
    return exact.n_agents * (value[rows] - fewer_value[:, None])


def costate_gradient(exact, others, learner, costates, natural=False):
    """Return the expectation of the one-agent gradient with these costates at the next densities.

    Its weights say where the one agent is; those that the natural gradient fits count all agents.
    """
    policy, (m, s) = learner.policy, np.nonzero(others.weight)
    density, here = others.density[m], np.eye(3)[s]
    _, values, probs = pass_back(learner, density, others.law[m, s] @ costates)
    pi = torch.tensor(probs)
    advantage = advantages(torch.tensor(values), pi, policy.action_mask)
    mu = density + here / exact.n_agents
    weight = torch.tensor(others.weight[m, s][:, None] * (mu if natural else here))
    own = torch.tensor(np.where(mu > 0.0, density + 1.0 / exact.n_agents, 0.0))
    weighted = weight[..., None] * pi * advantage
    gradient = contract(policy, own, policy.tau * weighted).numpy()
    return gradient / (1.0 - exact.model.discount)


def costate_errors(n_agents, strength=1.0, externality=True, natural=False):
    """Errors of a converged critic and, relative, of the gradient."""
    exact, fewer, policy = crowd_systems(n_agents, -1, strength)
    learner, others = make_learner(exact.model, n_agents, policy), Others(exact, policy)
    costates = fixed_point(others, learner, externality)
    gradient = exact.gradient()
    gap = costate_gradient(exact, others, learner, costates, natural) - gradient
    error = others.size(costates - oracle(exact, fewer))
    return float(error), float(np.abs(gap).max() / np.abs(gradient).max())


def test_the_law_of_the_others():
    exact, _, policy = crowd_systems(4, -1)
    others = Others(exact, policy)
    assert others.weight.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(others.law.sum(-1)[others.weight > 0.0], 1.0)
    counts = np.rint(others.density * 4).astype(int)
    for m, s in np.ndindex(others.weight.shape):
        everyone = tuple((counts[m] + np.eye(3, dtype=int)[s]).tolist())
        law = others_law(moves(exact.model, policy, everyone), everyone, s)
        expected = [law.get(tuple(c), 0.0) for c in counts.tolist()]
        np.testing.assert_allclose(others.law[m, s], expected, atol=1e-14)


@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_with_exact_costates_it_is_the_gradient_of_j(n_agents):
    exact, fewer, policy = crowd_systems(n_agents, -1)
    learner, others = make_learner(exact.model, n_agents, policy), Others(exact, policy)
    costates, expected = oracle(exact, fewer), exact.gradient()
    scale = np.abs(expected).max()
    gradient = costate_gradient(exact, others, learner, costates)
    np.testing.assert_allclose(gradient, expected, atol=1e-8 * scale)
    if n_agents > 1:  # weights that count all agents
        gradient = costate_gradient(exact, others, learner, costates, natural=True)
        assert np.abs(gradient - expected).max() > 0.2 * scale


def test_costates_are_the_value_of_one_more_agent_to_order_one_over_n():
    # Costates are first order in what one agent changes: they are wrong by 1.9 / N here, and the
    # gradient by 0.04 / N of itself (by 3 / N with the weights of the natural gradient). Without
    # the externality both stay wrong.
    sizes = np.array([4, 8, 16])
    errors, gradients = np.transpose([costate_errors(n) for n in sizes])
    _, natural = np.transpose([costate_errors(n, natural=True) for n in sizes])
    own, own_gradients = np.transpose([costate_errors(n, externality=False) for n in sizes])
    assert (errors * sizes < 2.2).all()
    assert (gradients * sizes < 0.05).all()
    assert (natural * sizes < 3.0).all()
    for falling in (errors, gradients):
        assert (falling[:-1] / falling[1:] > 1.4).all()
    assert (np.diff(natural) < 0.0).all()
    assert (own > 7.0 * errors).all()
    assert own[-1] > own[0] > 2.0
    assert (own_gradients > 10.0 * gradients).all()
    assert own_gradients[-1] > 0.5 * own_gradients[0] > 0.05


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_costates_of_a_single_agent_are_exact(strength):
    assert max(costate_errors(1, strength)) < 1e-10


@pytest.mark.parametrize("n_agents", [2, 8])
def test_costates_without_interaction_are_exact(n_agents):
    assert max(costate_errors(n_agents, strength=0.0)) < 1e-8
    exact, fewer, _ = crowd_systems(n_agents, -1, strength=0.0)
    assert np.ptp(oracle(exact, fewer), axis=1).min() > 1.0


@pytest.mark.statistical
def test_an_iteration_with_costates_estimates_their_gradient():
    # Power: weights that count all agents are seen.
    exact, _, policy = crowd_systems(4, -1)
    others = Others(exact, policy)
    options = {"k": 1, "width": len(others.density), "symmetric": False, **FIXED}
    learner = make_learner(exact.model, 4, policy, **options, seed=seed("costate iterations"))
    costates = fixed_point(others, learner)
    counts = np.rint(others.density * 4).astype(int)
    interpolate(learner.critic, counts, policy.density_scale / 4, costates)
    right, wrong = (
        costate_gradient(exact, others, learner, costates, natural) * (1.0 - exact.model.discount)
        for natural in (False, True)
    )
    assert p_values(learner, right, burn_in=130).min() > FOUR_OF_THEM
    assert p_values(learner, wrong, burn_in=130).min() < FOUR_OF_THEM


def test_the_critic_of_costates_converges():
    exact, _, policy = crowd_systems(8, -1)
    options = {"segment": 10, "n_replicas": 64, "width": 64, "k": 1}
    learner, others = make_learner(exact.model, 8, policy, **options), Others(exact, policy)
    learner.ascend = lambda direction, iteration: None  # a fixed policy
    wanted = fixed_point(others, learner)
    for iteration in range(80):
        learner.iterate(iteration)
    inputs = learner.critic_inputs(torch.tensor(others.density))
    learned = learner.critic.values(inputs).numpy()
    assert others.size(learned - wanted) < 0.05 * others.size(wanted)
    own = fixed_point(others, learner, externality=False)
    assert others.size(learned - own) > others.size(wanted)

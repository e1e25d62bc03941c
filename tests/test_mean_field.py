"""The mean-field limit: the flow itself, and how fast finite populations approach it."""

import math

import ltde
import numpy as np
import pytest
from exact_law import local_tables
from models import MODELS, path_model, random_policy, ring_model, star_model
from statcheck import chi2_counts, dkw_one_sample, generator, seed

RECORD = ("counts", "actions", "rewards", "flows")


def dense_step(model, policy, mu):
    """One step of the forward equation with dense matrices and the plain local function.

    mu'(j) = sum over s, a of mu(s) pi(a | s) P(j | s, mu, a).
    """
    n_states = model.n_states
    prob = np.zeros((n_states, model.n_actions, n_states))
    reward = np.zeros((n_states, model.n_actions))
    for s in range(n_states):
        around = model.graph.neighbors(s)
        local_prob, reward[s] = model.evaluate_local(s, mu[around])
        prob[s][:, around] = local_prob
    prob[~model.action_mask] = 0.0
    reward[~model.action_mask] = 0.0
    masses = mu[:, None] * policy
    flows = np.einsum("sa,saj->sj", masses, prob)
    return masses, (masses * reward).sum(axis=1), flows


@pytest.mark.parametrize(
    ("name", "n_states"),
    [("ring", 5), ("path", 5), ("complete", 5), ("star", 5), ("ring", 70), ("path", 70)],
)
def test_the_flow_is_the_forward_equation(name, n_states):
    # Each step adds a few roundings of numbers below 1, and the models do not amplify errors much:
    # 1e-12 is some thousand roundings after 20 steps.
    rng = generator(f"flow {name}")
    start = rng.dirichlet(np.ones(n_states))
    model = MODELS[name](n_states=n_states, initial=start)
    policy = random_policy(model, rng)
    flow = ltde.Simulator(model, math.inf, seed=1)
    rollout = flow.rollout(policy, 20, record=RECORD)
    row = np.repeat(np.arange(n_states), np.diff(model.graph.indptr))
    mu = start / start.sum()
    moved = 0.0
    for t in range(20):
        np.testing.assert_allclose(rollout.counts[t, 0], mu, rtol=0.0, atol=1e-12)
        actions, rewards, flows = dense_step(model, policy, mu)
        np.testing.assert_allclose(rollout.actions[t, 0], actions, rtol=0.0, atol=1e-12)
        np.testing.assert_allclose(rollout.rewards[t, 0], rewards, rtol=0.0, atol=1e-12)
        edge_flows = flows[row, model.graph.indices]
        np.testing.assert_allclose(rollout.flows[t, 0], edge_flows, rtol=0.0, atol=1e-12)
        moved += np.abs(flows.sum(axis=0) - mu).sum()
        mu = flows.sum(axis=0)
    np.testing.assert_allclose(flow.counts[0], mu, rtol=0.0, atol=1e-12)
    assert moved > 0.1  # the flow does not rest


def test_one_step_of_the_flow_by_hand():
    # Complete graph, mu = (0.25, 0.75). Action a leads to state a with probability 1 - 0.7 mu(a),
    # else one stays; the reward is mu(a) (1 - mu(a)) + 0.1 s = 0.1875 + 0.1 s.
    model = MODELS["complete"](n_states=2, initial=np.array([0.25, 0.75]))
    flow = ltde.Simulator(model, math.inf)
    rollout = flow.rollout([[0.4, 0.6], [1.0, 0.0]], 1, record=RECORD)
    np.testing.assert_allclose(rollout.actions[0, 0], [[0.1, 0.15], [0.75, 0.0]], rtol=1e-15)
    np.testing.assert_allclose(rollout.rewards[0, 0], [0.25 * 0.1875, 0.75 * 0.2875], rtol=1e-15)
    there, back = 0.15 * 0.475, 0.75 * 0.825
    flows = [0.25 - there, there, back, 0.75 - back]
    np.testing.assert_allclose(rollout.flows[0, 0], flows, rtol=1e-14)
    np.testing.assert_allclose(
        flow.counts, [[0.25 - there + back, 0.75 - back + there]], rtol=1e-14
    )


def test_mass_is_conserved_over_many_steps():
    # Each step divides and adds up masses with relative roundings of 2^-53; over 10^4 steps they
    # add up like a random walk, or in the worst case to 10^4 times a few 1e-16.
    model = star_model(n_states=6)
    policy = random_policy(model, generator("mass"))
    flow = ltde.Simulator(model, math.inf, n_replicas=2, seed=1)
    rollout = flow.rollout(policy, 10_000, record=("counts",))
    assert np.abs(rollout.counts.sum(axis=-1) - 1.0).max() < 1e-12
    assert (rollout.counts >= 0.0).all()
    flow.rollout(policy, 1)  # the drift does not make the simulator refuse its own state


@pytest.mark.parametrize("make", [ring_model, path_model, star_model])
def test_the_flow_has_the_names_shapes_and_dtypes_of_a_simulation(make):
    model = make(n_states=4, discount=0.5)
    policy = random_policy(model, generator("same API"))
    flow, finite = (ltde.Simulator(model, n, n_replicas=3, seed=1) for n in (math.inf, 1000))
    for call in (
        lambda simulator: simulator.step(policy),
        lambda simulator: simulator.rollout(policy, 4, "chain", RECORD),
        lambda simulator: simulator.visitation(policy, 2),
    ):
        one, other = call(flow), call(finite)
        assert type(one) is type(other)
        for name in type(one).__dataclass_fields__:
            first, second = getattr(one, name), getattr(other, name)
            assert first.shape == second.shape
            fixed = name in ("rewards", "restarted", "horizon")
            assert first.dtype == (second.dtype if fixed else np.float64)
    assert flow.state_dict().keys() == finite.state_dict().keys()
    assert (flow.n_agents, flow.counts.dtype) == (math.inf, np.float64)


def test_where_the_flow_starts():
    law = np.array([0.5, 0.3, 0.2])
    starts = [
        (law, law),
        (np.array([6, 3, 1]), [0.6, 0.3, 0.1]),
        (np.array([2**53, 2**53, 0]), [0.5, 0.5, 0.0]),
    ]
    for initial, expected in starts:
        flow = ltde.Simulator(path_model(initial=initial), math.inf, n_replicas=2)
        np.testing.assert_allclose(flow.counts, [expected] * 2, rtol=2.0**-52)


@pytest.mark.statistical
def test_random_starts_of_the_flow_have_their_law():
    # A row of the list with probability 1/3 each; Dirichlet marginals are beta (DKW at 1e-9 / 3:
    # a gap of 0.03 is caught).
    from scipy import stats

    rows = np.array([[6, 3, 1], [0, 0, 5], [1, 1, 1]])
    flow = ltde.Simulator(path_model(initial=rows), math.inf, 20_000, seed("rows of the flow"))
    densities = rows / rows.sum(axis=1, keepdims=True)
    chosen = (np.abs(flow.counts[:, None] - densities).max(axis=-1) < 1e-15).astype(int)
    assert (chosen.sum(axis=1) == 1).all()
    assert chi2_counts(chosen.sum(axis=0), np.full(3, 1.0 / 3.0))
    assert not chi2_counts(chosen.sum(axis=0), [0.36, 0.32, 0.32])

    alpha = np.array([2.0, 0.5, 1.0])
    model = path_model(initial=ltde.DirichletInitial(alpha))
    flow = ltde.Simulator(model, math.inf, 20_000, seed("dirichlet of the flow"))
    np.testing.assert_allclose(flow.counts.sum(axis=1), 1.0, rtol=1e-14)
    for s in range(3):
        law = stats.beta(alpha[s], alpha.sum() - alpha[s])
        assert dkw_one_sample(flow.counts[:, s], law.cdf, n_comparisons=3)
        wrong = stats.beta(1.2 * alpha[s], alpha.sum() - alpha[s])
        assert not dkw_one_sample(flow.counts[:, s], wrong.cdf, n_comparisons=3)


@pytest.mark.statistical
def test_the_restart_chain_of_the_flow():
    # Between restarts the flow is deterministic, so the age of a replica tells its density; ages
    # after t steps are geometric, cut at t.
    start = np.array([0.7, 0.2, 0.1])
    model = path_model(initial=start, discount=0.8)
    policy = random_policy(model, generator("restarts of the flow"))
    flow = ltde.Simulator(model, math.inf, 20_000, seed("restarts of the flow"))
    rollout = flow.rollout(policy, 6, "chain")
    path = ltde.Simulator(model, math.inf).rollout(policy, 6).counts[:, 0]
    age = np.zeros(20_000, dtype=int)
    for t in range(6):
        np.testing.assert_array_equal(rollout.counts[t], path[age])
        age = np.where(rollout.restarted[t], 0, age + 1)
    law = np.array([0.2 * 0.8**k for k in range(6)] + [0.8**6])
    assert chi2_counts(np.bincount(age, minlength=7), law)
    law = np.array([0.23 * 0.77**k for k in range(6)] + [0.77**6])
    assert not chi2_counts(np.bincount(age, minlength=7), law)


@pytest.mark.statistical
def test_draws_from_sigma_of_the_flow_are_its_path_read_at_their_horizons():
    model = ring_model(initial=np.array([0.7, 0.1, 0.1, 0.1]), discount=0.8)
    policy = random_policy(model, generator("sigma of the flow"))
    flow = ltde.Simulator(model, math.inf, 1000, seed("sigma of the flow"))
    draws = flow.visitation(policy, 20)
    path = ltde.Simulator(model, math.inf).rollout(policy, int(draws.horizon.max()) + 1)
    np.testing.assert_array_equal(draws.counts, path.counts[draws.horizon, 0])
    np.testing.assert_array_equal(draws.next_counts, path.counts[draws.horizon + 1, 0])
    np.testing.assert_array_equal(draws.actions, path.actions[draws.horizon, 0])
    np.testing.assert_array_equal(draws.rewards, path.rewards[draws.horizon, 0])
    horizon = draws.horizon.ravel()
    assert dkw_one_sample(horizon, lambda t: 1.0 - 0.8 ** (t + 1.0))
    assert not dkw_one_sample(horizon, lambda t: 1.0 - 0.85 ** (t + 1.0))


# The rate of the limit.


def deviations(model, policy, flow_policy, n_agents, replicas=200, n_steps=10):
    """Mean over replicas of the largest deviation of a path from the flow."""
    start = np.array([0.7, 0.1, 0.1, 0.1])
    flow = ltde.Simulator(model, math.inf).rollout(flow_policy, n_steps).counts[:, 0]
    simulator = ltde.Simulator(model, n_agents, replicas, seed(f"limit {n_agents}"))
    simulator.reset(counts=(start * n_agents).round().astype(np.int64))
    counts = simulator.rollout(policy, n_steps, record=("counts",)).counts
    return np.abs(counts / n_agents - flow[:, None]).max(axis=(0, 2)).mean()


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["ring", "path", "star"])
def test_finite_populations_approach_the_flow_like_one_over_the_root_of_n(name):
    """Slope of log(deviation) over log(N), N = 10^2 ... 10^8: -1/2 by the central limit theorem.

    The deviation of one replica spreads by about 40 % of its mean, the mean of 200 by 3 %. Seven
    points at equal distances of log 10 give the slope a standard deviation of 0.03 / (log 10
    sqrt(28)) = 0.0025. Corrections of relative order N^{-1/2} (10 % at N = 100) shift the fit by
    0.1 * 3 / (28 log 10) = 0.005. So +-0.1 leaves some 40 standard deviations on either side. The
    mutant, a limit for a policy that is wrong by 0.02 in one state, moves the flow by 1e-3 or less
    and stops the decrease from N = 10^5 or 10^6 on.
    """
    model = MODELS[name](n_states=4, initial=np.array([0.7, 0.1, 0.1, 0.1]))
    policy = random_policy(model, generator("limit"))
    sizes = 10 ** np.arange(2, 9)
    wrong = policy.copy()
    wrong[0, :2] += [0.02, -0.02]
    slopes = []
    for flow_policy in (policy, wrong):
        errors = [deviations(model, policy, flow_policy, int(n)) for n in sizes]
        slopes.append(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
    assert -0.6 < slopes[0] < -0.4
    assert slopes[1] > -0.4


def test_the_limit_reads_densities_and_not_counts():
    # The same local function at N = inf and at finite N: r and P at mu, from the plain function.
    model = path_model(initial=np.array([0.25, 0.25, 0.5]))
    _, reward = local_tables(model, (1, 1, 2))
    flow = ltde.Simulator(model, math.inf).step([[1.0, 0.0]] * 3)
    finite = ltde.Simulator(model, 4, seed=1)
    finite.reset(counts=np.array([1, 1, 2]))
    step = finite.step([[1.0, 0.0]] * 3)
    expected = reward[:, 0] * [0.25, 0.25, 0.5]
    np.testing.assert_allclose(flow.rewards[0], expected, rtol=1e-14)
    np.testing.assert_allclose(step.rewards[0], expected, rtol=1e-14)

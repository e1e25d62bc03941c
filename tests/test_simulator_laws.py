"""The law of `step` and `rollout` against exact enumeration.

Each of the R replicas of one simulator is an independent sample. Pearson's chi-square at 1e-6
divided by the comparisons of the test; each test also shows a mutant, of a size that a user would
notice, that its samples or its law must reject (power: see `statcheck.chi2_counts`).
"""

from collections import defaultdict
from types import SimpleNamespace

import ltde
import numpy as np
import pytest
from exact_law import (
    joint_two_step,
    local_tables,
    multinomial_law,
    n_step_law,
    next_law,
    policy_table,
    step_law,
)
from models import MODELS, path_model, random_policy, ring_model, star_model
from statcheck import (
    chi2_law,
    correlation,
    dispersion,
    dkw_two_sample,
    generator,
    outcomes,
    pooled_mean,
    seed,
)

REPLICAS = 20_000
START = (2, 1, 1)


def two_policies(model, tag):
    """Return a policy, and another that differs by 0.1 in two probabilities of state 0."""
    policy = random_policy(model, generator(tag))
    other = policy.copy()
    other[0, :2] += (-0.1, 0.1) if policy[0, 0] > policy[0, 1] else (0.1, -0.1)
    return policy, other


def sample_step(model, probs, tag, start=START, replicas=REPLICAS):
    """Team actions and next counts of one step from `start`, (R, S, A) and (R, S)."""
    simulator = ltde.Simulator(model, sum(start), n_replicas=replicas, seed=seed(tag))
    simulator.reset(counts=np.array(start))
    step = simulator.step(probs)
    return step.actions, simulator.counts.copy()


def frozen(model, counts):
    """Return the model as it would be if it went on reading the densities of `counts`."""
    mu = np.array(counts) / sum(counts)

    def local(s, _, *rest):
        model.local(s, mu[model.graph.neighbors(s)], *rest)

    return SimpleNamespace(
        graph=model.graph,
        action_mask=model.action_mask,
        node=model.node,
        edge=model.edge,
        local=local,
    )


# One step.


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_one_step_has_the_exact_joint_law_of_actions_and_next_counts(name):
    # Power: 0.1 in probabilities p, q of n agents has non-centrality R n 0.01 (1 / p + 1 / q), at
    # least 1600 here and 500 in the next test; pooling small cells loses less than half.
    model = MODELS[name](n_states=3, initial=np.array(START))
    policy, other = two_policies(model, f"policy {name}")
    samples = outcomes(*sample_step(model, policy, f"one step {name}"))
    assert chi2_law(samples, step_law(model, 4, policy, START))
    assert not chi2_law(samples, step_law(model, 4, other, START))


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_each_replica_plays_its_own_probabilities(name):
    model = MODELS[name](n_states=3, initial=np.array(START))
    policy, other = two_policies(model, f"policies {name}")
    probs = np.where(np.arange(REPLICAS)[:, None, None] % 3 == 0, policy, other)
    samples = outcomes(*sample_step(model, probs, f"replicas {name}"))
    first = samples[::3]
    second = [x for i, x in enumerate(samples) if i % 3]
    law, other_law = (step_law(model, 4, p, START) for p in (policy, other))
    assert chi2_law(first, law, n_comparisons=2)
    assert chi2_law(second, other_law, n_comparisons=2)
    assert not chi2_law(first, other_law, n_comparisons=2)
    assert not chi2_law(second, law, n_comparisons=2)


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_one_step_from_corners_where_all_agents_are_in_one_state(name):
    # The densities at which models break most easily. The mutant reads uniform densities; power:
    # they move the probabilities of one agent by 0.1 or more.
    for corner in range(4):
        start = tuple((5 * np.eye(4, dtype=int)[corner]).tolist())
        model = MODELS[name](n_states=4, initial=np.array(start))
        policy = random_policy(model, generator("corner"))
        samples = outcomes(sample_step(model, policy, f"{name} {corner}", start)[1])
        assert chi2_law(samples, next_law(model, 5, policy, start), n_comparisons=4)
        uniform = frozen(model, (1, 1, 1, 1))
        assert not chi2_law(samples, next_law(uniform, 5, policy, start), n_comparisons=4)


@pytest.mark.statistical
def test_teams_on_both_sides_of_the_agent_by_agent_path_have_the_exact_joint_law():
    # Teams of 32 agents on average move one by one, larger ones do not. Power as for one step.
    for start in ((63, 1), (64, 1)):
        model = path_model(n_states=2, initial=np.array(start))
        policy, other = two_policies(model, "sides")
        samples = outcomes(*sample_step(model, policy, f"sides {start}", start))
        assert chi2_law(samples, step_law(model, sum(start), policy, start), n_comparisons=2)
        assert not chi2_law(samples, step_law(model, sum(start), other, start), n_comparisons=2)


def numpy_step(model, policy, start, rng, mutant=None):
    """One step by NumPy's samplers, as it should be, or wrong in a way that keeps all means."""
    prob, _ = local_tables(model, start)
    actions = np.array(
        [rng.multinomial(n, row, REPLICAS) for n, row in zip(start, policy, strict=True)]
    ).swapaxes(0, 1)
    after = np.zeros((REPLICAS, len(start)), dtype=np.int64)
    for s in range(len(start)):
        for a in np.flatnonzero(model.action_mask[s]):
            c, row = actions[:, s, a], prob[s, a]
            if mutant == "flock":  # all who do the same land together
                after += c[:, None] * rng.multinomial(1, row, REPLICAS)
            elif mutant == "poisson":
                after += rng.poisson(c[:, None] * row)
            else:
                after += rng.multinomial(c, row)
    if mutant == "shuffled":  # actions and next counts of different replicas
        actions = np.roll(actions, 1, axis=0)
    return actions, after


@pytest.mark.statistical
def test_the_check_of_one_step_sees_mutants_with_the_right_means():
    model = ring_model(n_states=3, initial=np.array(START))
    policy, _ = two_policies(model, "mutants")
    law = step_law(model, 4, policy, START)
    rng = generator("mutants of a step")
    assert chi2_law(outcomes(*numpy_step(model, policy, START, rng)), law)
    for mutant in ("flock", "poisson", "shuffled"):
        assert not chi2_law(outcomes(*numpy_step(model, policy, START, rng, mutant)), law)


@pytest.mark.statistical
def test_a_billion_agents_have_the_right_mean_and_spread():
    # All agents of one state with one action: the next counts are Multinomial(N, P). N R = 2e13
    # trials see a relative error of 1e-5 in a probability; the spread is seen to 5 %.
    n, replicas = 10**9, 20_000
    model = ring_model(n_states=4, initial=np.array([0, n, 0, 0]))
    simulator = ltde.Simulator(model, n, n_replicas=replicas, seed=seed("billion"))
    step = simulator.step(np.tile([0.0, 1.0, 0.0], (4, 1)))
    assert (step.actions[:, 1, 1] == n).all()
    prob, _ = local_tables(model, (0, 1, 0, 0))
    row = prob[1, 1]
    assert pooled_mean(simulator.counts, row, n_comparisons=2)
    assert dispersion(simulator.counts, n, row, n_comparisons=2)
    shifted = row + 1e-5 * np.array([0.0, 1.0, -1.0, 0.0])
    assert not pooled_mean(simulator.counts, shifted, n_comparisons=2)
    expected = np.broadcast_to(n * row, simulator.counts.shape)
    assert not dispersion(np.rint(expected).astype(int), n, row, n_comparisons=2)


# Two steps.


def stale_two_step(model, n_agents, policy, start):
    """Law of two steps that both read the densities of `start`: the mutant."""
    stale = frozen(model, start)
    return {
        (first, second): p * q
        for first, p in n_step_law(model, n_agents, policy, start, 1).items()
        for second, q in next_law(stale, n_agents, policy, first).items()
    }


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_two_steps_have_the_exact_joint_law(name):
    start = (3, 0, 1)
    model = MODELS[name](n_states=3, initial=np.array(start))
    policy = random_policy(model, generator(f"two steps {name}"))
    simulator = ltde.Simulator(model, 4, n_replicas=REPLICAS, seed=seed(f"two steps {name}"))
    counts = simulator.rollout(ltde.TabularPolicy(policy), 2, record=("counts",)).counts
    samples = outcomes(counts[1], counts[2])
    assert chi2_law(samples, joint_two_step(model, 4, policy, start))
    assert not chi2_law(samples, stale_two_step(model, 4, policy, start))


@pytest.mark.statistical
def test_a_policy_that_changes_with_time_and_one_that_reads_densities():
    start = (3, 0, 1)
    model = ring_model(n_states=3, initial=np.array(start))
    first, second = (random_policy(model, generator(f"time {i}")) for i in range(2))

    def cautious(counts, n_agents):
        stay = 0.2 + 0.6 * counts / n_agents
        return np.stack([stay, 0.75 * (1.0 - stay), 0.25 * (1.0 - stay)], axis=-1)

    def cautious_agent(state, density):
        stay = 0.2 + 0.6 * density
        return [stay, 0.75 * (1.0 - stay), 0.25 * (1.0 - stay)]

    laws = (
        {
            (x, y): p * q
            for x, p in next_law(model, 4, first, start).items()
            for y, q in next_law(model, 4, second, x).items()
        },
        joint_two_step(model, 4, cautious_agent, start),
    )
    policies = (ltde.TabularPolicy([first, second]), ltde.FunctionPolicy(cautious))
    for i, policy in enumerate(policies):
        simulator = ltde.Simulator(model, 4, n_replicas=REPLICAS, seed=seed(f"policies {i}"))
        counts = simulator.rollout(policy, 2).counts
        samples = outcomes(counts[1], counts[2])
        assert chi2_law(samples, laws[i], n_comparisons=2)
        assert not chi2_law(samples, laws[1 - i], n_comparisons=2)


# Rewards and flows.


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n_agents", [1, 7, 10**6, 2**53])
def test_team_rewards_are_recomputed_exactly(name, n_agents):
    """r_s = sum_a c(s, a) r(s, mu(N_s), a) / N, the sum in the order of the actions."""
    model = MODELS[name](n_states=4)
    policy = random_policy(model, generator("rewards"))
    simulator = ltde.Simulator(model, n_agents, n_replicas=5, seed=seed("rewards"))
    rollout = simulator.rollout(policy, 6)
    for t, b in np.ndindex(6, 5):
        mu = rollout.counts[t, b] / n_agents
        _, reward = model.evaluate(mu)
        expected = np.zeros(4)
        for a in range(model.n_actions):
            expected += rollout.actions[t, b, :, a] * reward[:, a]
        np.testing.assert_array_equal(rollout.rewards[t, b], expected / n_agents)
        # The plain Python function agrees up to the rounding of a few dozen operations.
        plain = np.array(
            [model.evaluate_local(s, mu[model.graph.neighbors(s)])[1] for s in range(4)]
        )
        np.testing.assert_allclose(
            np.where(model.action_mask, plain, 0.0), reward, rtol=1e-13, atol=1e-14
        )
    if n_agents == 1:
        return  # mu(s) is 0 or 1
    # Without the weight mu(s), as Eq. (3.6) is printed, one would find something else.
    teams = rollout.counts[:-1] / n_agents
    printed = np.divide(rollout.rewards, teams, out=np.zeros_like(teams), where=teams > 0)
    assert np.abs(printed - rollout.rewards).max() > 0.1


@pytest.mark.parametrize("n_agents", [5, 10**12, np.inf])
def test_actions_and_flows_add_up_to_counts(n_agents):
    model = star_model(n_states=5, discount=0.5)
    policy = random_policy(model, generator("flows"))
    simulator = ltde.Simulator(model, n_agents, n_replicas=4, seed=seed("flows"))
    record = ("counts", "actions", "rewards", "flows")
    rollout = simulator.rollout(policy, 30, restart="chain", record=record)
    out = np.add.reduceat(rollout.flows, model.graph.indptr[:-1], axis=-1)
    into = np.zeros_like(rollout.counts[1:])
    np.add.at(into, (..., model.graph.indices), rollout.flows)
    kept = ~rollout.restarted
    # A masses' sum of up to five terms at N = inf; integers otherwise.
    tolerance = 1e-15 if n_agents == np.inf else 0.0
    np.testing.assert_allclose(out, rollout.counts[:-1], rtol=8 * tolerance, atol=tolerance)
    np.testing.assert_allclose(
        rollout.actions.sum(-1), rollout.counts[:-1], rtol=8 * tolerance, atol=tolerance
    )
    np.testing.assert_allclose(
        into[kept], rollout.counts[1:][kept], rtol=8 * tolerance, atol=tolerance
    )
    assert 20 < rollout.restarted.sum() < 100
    np.testing.assert_allclose(into[~kept].sum(-1), 1 if n_agents == np.inf else n_agents)
    if n_agents == 10**12:
        # At a restart the flows are those of the transition that was dropped.
        assert (into[~kept] != rollout.counts[1:][~kept]).any(axis=-1).all()


def flow_law(model, n_agents, policy, counts):
    """Law of the flows of one step: given the counts, independent multinomials over the rows."""
    prob, _ = local_tables(model, counts)
    table = policy_table(policy, model, counts)
    law = {(): 1.0}
    for s, n in enumerate(counts):
        used = np.where(model.action_mask[s][:, None], prob[s], 0.0)
        row = (table[s] @ used)[model.graph.neighbors(s)]
        law = {
            (*done, *c): p * q
            for done, p in law.items()
            for c, q in multinomial_law(n, row / row.sum()).items()
        }
    return law


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["ring", "star"])
def test_flows_have_their_exact_law(name):
    start = (2, 0, 1)
    model = MODELS[name](n_states=3, initial=np.array(start))
    policy, other = two_policies(model, f"flow law {name}")
    simulator = ltde.Simulator(model, 3, n_replicas=REPLICAS, seed=seed(f"flow law {name}"))
    samples = outcomes(simulator.rollout(policy, 1, record=("flows",)).flows[0])
    assert chi2_law(samples, flow_law(model, 3, policy, start))
    assert not chi2_law(samples, flow_law(model, 3, other, start))


# The twin, and independence.


@pytest.mark.statistical
def test_labelled_agents_have_the_same_law_after_three_steps():
    # DKW two-sample at 1e-9 / 4 per state. Band 0.14: a shift of half a standard deviation
    # of a count (about 1.5 agents of 50) is caught.
    n, n_twin = 50, 1000
    model = ring_model(initial=np.array([20, 20, 5, 5]))
    policy, _ = two_policies(model, "twin")
    mutant = policy.copy()
    mutant[:, :2] = policy[:, 1::-1]
    twin = ltde.AgentSimulator(model, n, seed=seed("twin of agents"))
    agents = []
    for _ in range(n_twin):
        twin.reset()
        agents.append(twin.rollout(ltde.TabularPolicy(policy), 3).counts[3])
    agents = np.array(agents)

    def compare(probs):
        simulator = ltde.Simulator(model, n, n_replicas=REPLICAS, seed=seed("twin of counts"))
        counts = simulator.rollout(probs, 3, record=("counts",)).counts[3]
        return [dkw_two_sample(counts[:, s], agents[:, s], n_comparisons=4) for s in range(4)]

    assert all(compare(policy))
    assert not all(compare(mutant))


@pytest.mark.statistical
def test_states_steps_replicas_and_resets_have_separate_streams():
    # Equal copies of a two-state system: 0-1 and 2-3 in one block of 64 states, 64-65 in another.
    # A shared stream has correlation 1; 0.06 is caught.
    copies = (0, 2, 64)
    edges = [(s, s + 1) for s in copies]
    graph = ltde.Graph(66, np.array(edges))
    start = np.zeros(66, dtype=np.int64)
    start[list(copies)] = 1000
    model = ltde.NetworkedModel(graph, 1, _mix, initial=start)
    simulator = ltde.Simulator(model, 3000, n_replicas=REPLICAS, seed=seed("streams"))
    went = [simulator.rollout(np.ones((66, 1)), 1).counts[1]]
    for _ in range(2):
        simulator.reset()
        went.append(simulator.rollout(np.ones((66, 1)), 1).counts[1])
    cells = [counts[:, s] for counts in went for s in copies]
    pairs = [(x, y) for i, x in enumerate(cells) for y in cells[:i]]
    shifted = [(x[1:], x[:-1]) for x in cells]
    for first, second in pairs + shifted:
        assert correlation(first, second, n_comparisons=len(pairs) + len(shifted))
    assert not correlation(cells[0], cells[0] + generator("noise").integers(0, 50, REPLICAS))


def _mix(s, mu, node, edge, prob, reward):
    for i in range(mu.size):
        prob[0, i] = 1.0 / mu.size


def test_the_oracle_used_here_gives_laws():
    model = path_model(initial=np.array(START))
    policy, other = two_policies(model, "oracle")
    assert np.allclose(other.sum(axis=1), 1.0)
    for law in (
        flow_law(model, 4, policy, START),
        stale_two_step(model, 4, policy, START),
    ):
        assert abs(sum(law.values()) - 1.0) < 1e-12
    # Flows, summed into the states where they go, give the law of the next counts.
    summed = defaultdict(float)
    for flows, p in flow_law(model, 4, policy, START).items():
        after = np.zeros(3, dtype=int)
        np.add.at(after, model.graph.indices, flows)
        summed[tuple(after.tolist())] += p
    exact = next_law(model, 4, policy, START)
    assert summed.keys() == exact.keys()
    assert all(abs(summed[k] - exact[k]) < 1e-12 for k in exact)

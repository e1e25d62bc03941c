"""Labelled agents against the exact law of the model, and what the interface promises."""

import math
from types import SimpleNamespace

import ltde
import numpy as np
import pytest
from exact_law import (
    initial_law,
    joint_two_step,
    labelled_step_law,
    local_tables,
    n_step_law,
    restart_chain_law,
    step_law,
)
from ltde.agents import AgentSimulator
from models import (
    MODELS,
    complete_model,
    path_model,
    random_policy,
    ring_local,
    ring_model,
    star_model,
)
from statcheck import (
    bernstein_mean,
    chi2_counts,
    chi2_law,
    correlation,
    outcomes,
    pooled_mean,
    seed,
)

START = np.array([2, 1, 0])
REPLICAS = 3000


def onward(state, density):
    """Depend on the state and on its density; for models of three actions without masks."""
    stay = 0.1 + 0.4 * density + 0.05 * state
    return [stay, 1.0 - stay, 0.0]


def fixed_policy(model):
    return random_policy(model, np.random.default_rng(11))


def with_local(model, local):
    """Return what an agent simulator reads of `model`, with another plain local function."""
    read = ("graph", "n_actions", "node", "edge", "action_mask", "discount", "initial")
    return SimpleNamespace(local=local, **{name: getattr(model, name) for name in read})


def sample_steps(model, policy, positions, tag):
    """Take one step from `positions`, REPLICAS times: (actions, next positions), both (R, N)."""
    simulator = AgentSimulator(model, len(positions), seed=seed(tag))
    actions, after = [], []
    for _ in range(REPLICAS):
        simulator.reset(positions=positions)
        step = simulator.step(policy)
        actions.append(step.actions)
        after.append(step.positions)
    return np.array(actions), np.array(after)


def sample_rollouts(model, policy, n_steps, replicas, tag, **options):
    simulator = AgentSimulator(model, 3, seed=seed(tag))
    rollouts = []
    for _ in range(replicas):
        simulator.reset()
        rollouts.append(simulator.rollout(policy, n_steps, **options))
    return rollouts


# The law of a step. Each must-fail law below is so far from the true one that the check misses it
# with probability < 1e-5: non-centrality 145 or more at up to 30 degrees of freedom, 96 at one. For
# one step that is an error of 0.1 in one action probability of one state.


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_one_step_has_the_exact_labelled_law(name):
    model = MODELS[name](n_states=3, initial=START)
    policy = fixed_policy(model)
    samples = outcomes(*sample_steps(model, policy, [0, 1, 0], f"labelled {name}"))
    assert chi2_law(samples, labelled_step_law(model, policy, [0, 1, 0]))
    wrong = policy.copy()
    wrong[0, :2] += 0.1, -0.1
    assert not chi2_law(samples, labelled_step_law(model, wrong, [0, 1, 0]))


@pytest.mark.statistical
@pytest.mark.parametrize("name", MODELS)
def test_one_step_has_the_exact_law_of_team_actions_and_counts(name):
    model = MODELS[name](n_states=3, initial=START)
    policy = fixed_policy(model)
    rollouts = sample_rollouts(model, policy, 1, REPLICAS, f"counts {name}")
    actions = np.array([rollout.actions[0] for rollout in rollouts])
    after = np.array([rollout.counts[1] for rollout in rollouts])
    samples = outcomes(actions, after)
    assert chi2_law(samples, step_law(model, 3, policy, (2, 1, 0)))
    wrong = policy.copy()
    wrong[0, :2] += 0.1, -0.1
    assert not chi2_law(samples, step_law(model, 3, wrong, (2, 1, 0)))


@pytest.mark.statistical
def test_two_steps_have_the_exact_joint_law():
    # The second step must read the densities after the first: a chain that keeps the densities of
    # the start for both steps is the mutant.
    model = ring_model(n_states=3, initial=np.array([3, 0, 0]))
    rollouts = sample_rollouts(model, onward, 2, 3000, "two steps")
    samples = outcomes(
        np.array([rollout.counts[1] for rollout in rollouts]),
        np.array([rollout.counts[2] for rollout in rollouts]),
    )
    assert chi2_law(samples, joint_two_step(model, 3, onward, (3, 0, 0)))

    mu = np.array([1.0, 0.0, 0.0])  # on three states every N_s is all of them, in order

    def stale_policy(state, density):
        return onward(state, mu[state])

    def stale_local(s, densities, *rest):
        ring_local(s, mu, *rest)

    assert not chi2_law(samples, joint_two_step(model, 3, stale_policy, (3, 0, 0)))
    stale_model = with_local(model, stale_local)
    assert not chi2_law(samples, joint_two_step(stale_model, 3, onward, (3, 0, 0)))


@pytest.mark.statistical
def test_restart_chain_has_its_exact_law_and_restarts_at_the_stated_rate():
    initial = np.array([[3, 0, 0], [0, 1, 2]])
    model = path_model(initial=initial, discount=0.6)
    policy = fixed_policy(model)
    rollouts = sample_rollouts(model, policy, 3, 2000, "restart chain", restart="chain")
    samples = outcomes(np.array([rollout.counts[3] for rollout in rollouts]))
    assert chi2_law(samples, restart_chain_law(model, 3, policy, 3), n_comparisons=2)
    assert not chi2_law(samples, n_step_law(model, 3, policy, initial_law(model, 3), 3))

    restarted = np.array([rollout.restarted for rollout in rollouts])
    coins = np.array([restarted.size - restarted.sum(), restarted.sum()])
    assert chi2_counts(coins, [0.6, 0.4], n_comparisons=2)
    assert not chi2_counts(coins, [0.66, 0.34])


@pytest.mark.statistical
def test_the_coin_of_a_restart_is_independent_of_the_transition():
    model = path_model(initial=START, discount=0.5)
    rollout = AgentSimulator(model, 3, seed("coin")).rollout(
        fixed_policy(model), 3000, restart="chain"
    )
    assert correlation(rollout.restarted, rollout.actions[:, 0, 1])


@pytest.mark.statistical
@pytest.mark.parametrize(
    "initial",
    [
        np.array([0.5, 0.3, 0.2]),
        np.array([[3, 0, 0], [0, 1, 2], [0, 1, 2], [1, 1, 1]]),
        ltde.DirichletInitial(np.array([0.5, 2.0, 1.0])),
    ],
    ids=["independent agents", "one of several", "random density"],
)
def test_initial_draw_has_its_exact_law(initial):
    model = path_model(initial=initial)
    simulator = AgentSimulator(model, 3, seed("initial"))
    counts = []
    for _ in range(10_000):
        simulator.reset()
        counts.append(simulator.counts)
    samples = outcomes(np.array(counts))
    assert chi2_law(samples, initial_law(model, 3))
    other = path_model(initial=np.array([0.46, 0.34, 0.2]))
    assert not chi2_law(samples, initial_law(other, 3))


@pytest.mark.statistical
def test_fixed_counts_are_dealt_to_the_agents_in_random_order():
    model = path_model(initial=np.array([1, 0, 3]))
    simulator = AgentSimulator(model, 4, seed("dealt"))
    first = []
    for _ in range(2000):
        simulator.reset()
        assert simulator.counts.tolist() == [1, 0, 3]
        first.append(int(np.flatnonzero(simulator.positions == 0)[0]))
    assert chi2_counts(np.bincount(first, minlength=4), np.full(4, 0.25))


@pytest.mark.statistical
def test_many_agents_in_one_step():
    # N = 10^6 in one state: counts are Multinomial(N, q) with q the exact law of one agent.
    model = complete_model(initial=np.array([10**6, 0, 0]))
    policy = fixed_policy(model)
    simulator = AgentSimulator(model, 10**6, seed("many"))
    simulator.step(policy)
    prob, _ = local_tables(model, (1, 0, 0))
    assert pooled_mean(simulator.counts[None], policy[0] @ prob[0])
    wrong = policy[0] + [0.005, -0.005, 0.0]
    assert not pooled_mean(simulator.counts[None], wrong @ prob[0])


@pytest.mark.statistical
def test_mean_team_reward_is_the_exact_one():
    # r_s = sum_a c(s, a) r(s, mu(N_s), a) / N: with mu(s), which the printed (3.6) leaves out.
    model = path_model(initial=START)
    policy = fixed_policy(model)
    rollouts = sample_rollouts(model, policy, 1, 2000, "mean reward")
    _, reward = local_tables(model, (2, 1, 0))
    per_agent = (policy * reward).sum(axis=1)
    expected = float(START / 3 @ per_agent)
    totals = [float(rollout.rewards[0].sum()) for rollout in rollouts]
    assert bernstein_mean(totals, expected, model.reward_range)
    assert not bernstein_mean(totals, float(per_agent[:2].sum()), model.reward_range)
    assert not bernstein_mean(totals, expected + 0.05, model.reward_range)


# What holds at every step, whatever is drawn.


@pytest.mark.parametrize("name", MODELS)
def test_a_step_moves_every_agent_along_the_graph_and_pays_it(name):
    model = MODELS[name](n_states=4)
    simulator = AgentSimulator(model, 50, seed=5)
    policy = fixed_policy(model)
    for t in range(20):
        before, counts = simulator.positions, simulator.counts
        step = simulator.step(policy)
        prob, reward = local_tables(model, tuple(counts.tolist()))
        assert np.all(prob[before, step.actions, step.positions] > 0.0)
        np.testing.assert_allclose(step.rewards, reward[before, step.actions], rtol=1e-15, atol=0.0)
        assert step.positions is simulator.positions
        assert step.actions.dtype == step.positions.dtype == simulator.counts.dtype == np.int64
        assert simulator.counts.tolist() == np.bincount(step.positions, minlength=4).tolist()
        assert simulator.counts.sum() == 50
        assert simulator.n_steps == t + 1


@pytest.mark.parametrize("restart", [None, "chain"])
def test_rollout_is_consistent_in_itself(restart):
    model = star_model(initial=np.array([0, 3, 3, 4]), discount=0.7)
    rollout = AgentSimulator(model, 10, seed=3).rollout(
        fixed_policy(model), 60, restart=restart, tagged=range(10)
    )
    for t in range(61):
        seen = np.bincount(rollout.trajectories[t], minlength=4)
        assert seen.tolist() == rollout.counts[t].tolist()
    assert np.all(rollout.actions.sum(axis=2) == rollout.counts[:-1])
    assert np.all(rollout.actions[:, ~model.action_mask] == 0)
    assert np.all(rollout.counts.sum(axis=1) == 10)
    for t in range(60):
        _, reward = local_tables(model, tuple(rollout.counts[t].tolist()))
        expected = np.nansum(rollout.actions[t] * reward, axis=1) / 10
        np.testing.assert_allclose(rollout.rewards[t], expected, rtol=0.0, atol=1e-14)
    assert bool(rollout.restarted.any()) == (restart == "chain")
    assert np.all(rollout.counts[1:][rollout.restarted] == model.initial)
    left = rollout.trajectories[:-1][~rollout.restarted]
    reached = rollout.trajectories[1:][~rollout.restarted]
    assert np.all((left == reached) | (left == 0) | (reached == 0))  # every edge meets the centre


def test_a_draw_divides_by_the_sum_and_never_takes_an_entry_of_weight_zero():
    # Without the division, every second u would fall beyond the last entry.
    simulator = AgentSimulator(ring_model(), 1, seed=1)
    drawn = simulator._draw(np.array([0.0, 0.25, 0.0, 0.25, 0.0]), 1000)
    assert set(drawn.tolist()) == {1, 3}


def test_tagged_agents_are_the_ones_named():
    model = ring_model()
    policy = np.full((4, 3), 1 / 3)
    everyone = AgentSimulator(model, 7, seed=2).rollout(policy, 9, tagged=range(7))
    some = AgentSimulator(model, 7, seed=2).rollout(policy, 9, tagged=[4, 0])
    assert some.trajectories.tolist() == everyone.trajectories[:, [4, 0]].tolist()
    assert AgentSimulator(model, 7).rollout(policy, 9).trajectories.shape == (10, 0)


def test_rollout_continues_where_the_simulator_stands():
    model = ring_model()
    whole = AgentSimulator(model, 6, seed=4).rollout(onward, 8, restart="chain")
    simulator = AgentSimulator(model, 6, seed=4)
    parts = [simulator.rollout(onward, n, restart="chain") for n in (3, 0, 5)]
    assert simulator.n_steps == 8
    assert parts[1].counts.shape == (1, 4)
    joined = np.concatenate([parts[0].counts, parts[2].counts[1:]])
    assert whole.counts.tolist() == joined.tolist()


# Decentralised execution.


def test_a_policy_sees_its_state_and_the_density_there_and_nothing_else():
    calls = []

    def spy(*arguments, **named):
        calls.append((arguments, named))
        return [0.5, 0.25, 0.25]

    simulator = AgentSimulator(ring_model(initial=np.array([3, 0, 1, 0])), 4, seed=1)
    simulator.step(spy)
    assert calls == [((0, 0.75), {}), ((2, 0.25), {})]
    for (state, density), _ in calls:
        assert type(state) is int
        assert type(density) is float


def test_every_form_of_a_policy_gives_the_same_run():
    class Team:
        def __init__(self, table):
            self.table = table

        def __call__(self, counts):
            raise AssertionError("a team policy is not called by an agent")

        def individual(self):
            return lambda state, density: self.table[state]

    model = star_model()
    table = fixed_policy(model)
    runs = [
        AgentSimulator(model, 9, seed=6).rollout(policy, 10).counts.tolist()
        for policy in (
            table,
            table.tolist(),
            table.astype(np.float32),  # its rows sum to 1 only to float32
            Team(table),
            lambda state, density: table[state],
        )
    ]
    assert all(run == runs[0] for run in runs)


def test_the_local_function_gets_fresh_zeroed_output_and_read_only_input():
    model = path_model(initial=START)
    calls = []

    def watched(s, mu, node, edge, prob, reward):
        calls.append((s, mu.tolist(), node.tolist(), edge.tolist()))
        assert prob.shape == (2, mu.size)
        assert reward.shape == (2,)
        assert not prob.any()
        assert not reward.any()
        for given in (mu, node, edge):
            with pytest.raises(ValueError, match="read-only"):
                given[...] = 0.0
        model.local(s, mu, node, edge, prob, reward)

    AgentSimulator(with_local(model, watched), 3).step(np.full((3, 2), 0.5))
    indptr = model.graph.indptr
    assert calls == [
        (0, [2 / 3, 1 / 3], model.node[0].tolist(), model.edge[: indptr[1]].tolist()),
        (1, [2 / 3, 1 / 3, 0], model.node[1].tolist(), model.edge[indptr[1] : indptr[2]].tolist()),
    ]


# Seeds and reset.


def test_a_seed_fixes_the_run():
    model = ring_model()
    policy = np.full((4, 3), 1 / 3)

    def run(simulator):
        return simulator.rollout(policy, 10, tagged=range(8)).trajectories.tolist()

    first = AgentSimulator(model, 8, seed=1)
    trajectories = run(first)
    assert trajectories == run(AgentSimulator(model, 8, seed=1))
    assert trajectories != run(AgentSimulator(model, 8, seed=2))
    assert trajectories != run(first)
    first.reset(seed=1)
    assert trajectories == run(first)
    assert first.n_steps == 30


def test_reset_takes_positions_or_draws_them():
    simulator = AgentSimulator(path_model(initial=START), 3, seed=1)
    positions = np.array([2, 2, 1])
    simulator.reset(positions=positions)
    positions[0] = 0  # the simulator keeps its own copy
    assert simulator.positions.tolist() == [2, 2, 1]
    assert simulator.counts.tolist() == [0, 1, 2]
    simulator.reset()
    assert simulator.counts.tolist() == [2, 1, 0]
    assert AgentSimulator(path_model(initial=START), np.int64(3)).n_agents == 3
    with pytest.raises(ValueError, match="read-only"):
        simulator.positions[0] = 1


# Errors, by message.


@pytest.mark.parametrize(
    ("n_agents", "message"),
    [
        (math.inf, r"n_agents: expected a finite number, got inf.* cannot be labelled"),
        (True, "n_agents: expected an integer or math.inf, got True"),
        (2.5, "n_agents: expected an integer >= 1 or math.inf, got 2.5"),
        (math.nan, "n_agents: expected an integer >= 1 or math.inf, got nan"),
        (0, "n_agents: expected an integer >= 1 or math.inf, got 0"),
        (-3, "n_agents: expected an integer >= 1 or math.inf, got -3"),
    ],
)
def test_bad_n_agents(n_agents, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AgentSimulator(ring_model(), n_agents)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (START, "initial: expected counts that sum to n_agents = 4, got a sum of 3"),
        (
            np.array([[4, 0, 0], [2, 1, 0]]),
            r"initial\[1\]: expected counts that sum to n_agents = 4, got a sum of 3",
        ),
    ],
)
def test_initial_counts_must_sum_to_n_agents(initial, message):
    with pytest.raises(ValueError, match=message):
        AgentSimulator(path_model(initial=initial), 4)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.full((3, 3), 1 / 3), r"policy: expected an array \(S, A\) = \(4, 4\), got \(3, 3\)"),
        (None, r"policy: expected an array \(S, A\) = \(4, 4\), got \(\)"),
        (lambda s, d: [1.0], r"policy at state 2: expected shape \(A,\) = \(4,\), got \(1,\)"),
        (
            lambda s, d: [0.9, 0.0, 0.0, 0.1],
            "policy at state 2, action 3: expected 0 for a masked action, got 0.1",
        ),
        (
            lambda s, d: [0.9, 0.1, 1e-300, 0.0],
            "policy at state 2, action 2: expected 0 for a masked action, got 1e-300",
        ),
        (
            lambda s, d: [1.1, -0.1, 0.0, 0.0],
            "policy at state 2, action 1: expected a probability, got -0.1",
        ),
        (
            lambda s, d: [1.0, math.nan, 0.0, 0.0],
            "policy at state 2, action 1: expected a probability, got nan",
        ),
        (
            lambda s, d: [0.9, 0.05, 0.0, 0.0],
            "policy at state 2: expected probabilities that sum to 1, got 0.95",
        ),
    ],
)
def test_bad_policy(policy, message):
    simulator = AgentSimulator(star_model(initial=np.array([0, 0, 2, 0])), 2)
    with pytest.raises(ValueError, match=message):
        simulator.step(policy)


@pytest.mark.parametrize(
    ("row", "reward", "message"),
    [
        ([0.5, 0.6, -0.1], 0.0, "action 1, next state 2: expected a probability, got -0.1"),
        ([0.5, math.nan, 0.5], 0.0, "action 1, next state 1: expected a probability, got nan"),
        ([0.5, math.inf, 0.5], 0.0, "action 1, next state 1: expected a probability, got inf"),
        ([0.5, 0.4, 0.0], 0.0, "action 1: expected probabilities that sum to 1, got 0.9"),
        ([0.5, 0.5, 2e-9], 0.0, "action 1: expected probabilities that sum to 1, got 1.000000002"),
        ([0.5, 0.5, 0.0], math.nan, "action 1: expected a finite reward, got nan"),
        ([0.5, 0.5, 5e-10], 0.0, None),
    ],
)
def test_a_local_function_that_misbehaves_is_named_and_nothing_moves(row, reward, message):
    model = complete_model(initial=np.array([0, 2, 0]))
    misbehaves = True

    def local(s, mu, node, edge, prob, reward_out):
        model.local(s, mu, node, edge, prob, reward_out)
        if s == 2 and misbehaves:
            prob[1] = row
            reward_out[1] = reward

    simulator = AgentSimulator(with_local(model, local), 2, seed=1)
    go_to_2 = np.tile([0.0, 0.0, 1.0], (3, 1))
    if message is None:  # within the tolerance
        simulator.rollout(go_to_2, 2)
        return
    with pytest.raises(ValueError, match=f"local function at step 1, state 2, {message}"):
        simulator.rollout(go_to_2, 2)
    assert simulator.n_steps == 0
    assert simulator.counts.tolist() == [0, 2, 0]
    misbehaves = False
    untouched = AgentSimulator(model, 2, seed=1)
    policy = np.full((3, 3), 1 / 3)
    rollout = simulator.rollout(policy, 5)
    assert rollout.counts.tolist() == untouched.rollout(policy, 5).counts.tolist()


def test_an_exception_of_the_local_function_says_where():
    def local(s, mu, node, edge, prob, reward):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError) as caught:
        AgentSimulator(with_local(path_model(initial=START), local), 3).step(np.full((3, 2), 0.5))
    assert caught.value.__notes__ == ["local function at step 0, state 0"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda sim: sim.reset([0, 1]), ValueError, r"shape \(N,\) = \(3,\), got \(2,\)"),
        (lambda sim: sim.reset([0, 1, 3]), ValueError, r"positions\[2\]: .* 0..2, got 3"),
        (lambda sim: sim.reset([0, -1, 2]), ValueError, r"positions\[1\]: .* 0..2, got -1"),
        (lambda sim: sim.reset([0.0, 1.0, 2.0]), TypeError, "integers, got dtype float64"),
        (lambda sim: sim.rollout(HALF, -1), ValueError, "n_steps: .* got -1"),
        (lambda sim: sim.rollout(HALF, 1.5), TypeError, "n_steps: .* got 1.5"),
        (lambda sim: sim.rollout(HALF, 1, "often"), ValueError, "None or 'chain', got 'often'"),
        (lambda sim: sim.rollout(HALF, 1, None, [3]), IndexError, r"tagged\[0\]: .* 0..2, got 3"),
        (lambda sim: sim.rollout(HALF, 1, None, [0, -1]), IndexError, r"tagged\[1\]: .* got -1"),
        (lambda sim: sim.rollout(HALF, 1, None, [0.5]), TypeError, "list of integers, got"),
    ],
)
def test_bad_arguments(call, error, message):
    simulator = AgentSimulator(path_model(initial=START), 3)
    before = simulator.positions
    with pytest.raises(error, match=message):
        call(simulator)
    assert simulator.positions is before


HALF = np.full((3, 2), 0.5)

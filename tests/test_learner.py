"""Critic and actor: each step against a literal transcription of the paper, and against oracles."""

import math

import ltde
import numpy as np
import pytest
import torch
from ltde.actor import advantages, ascend, contract, score_gradient
from ltde.critic import Critic
from ltde.exact import ExactSystem
from ltde.trainer import LTDENeuralAC
from models import ring_model, star_model
from statcheck import generator

STAR = ltde.Graph(6, [[0, 1], [0, 2], [0, 3], [0, 4], [4, 5]])


def make_critic(graph, k=1, n_actions=2, radius=math.inf, constant=True, seed=3):
    return Critic(
        graph,
        k,
        4,
        n_actions=n_actions,
        constant_input=constant,
        symmetric=False,
        radius=radius,
        seed=seed,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


def parts(critic, s):
    """Weights, start, signs of state s, and where its inputs lie: no padding."""
    for g, group in enumerate(critic.groups):
        place = (group.states == s).nonzero()
        if len(place):
            i = int(place[0])
            size, width = int(group.inside[i].sum()), group.ball.shape[1]
            columns = [a * width + j for a in range(1 + critic.n_actions) for j in range(size)]
            columns += [width * (1 + critic.n_actions)] * critic.constant_input
            return [
                x[g][i].numpy()[..., columns].copy()
                for x in (critic.omega, critic.omega_0, critic.omega_mean)
            ] + [critic.b[g][i].numpy()]
    raise AssertionError(s)


def zeta(graph, k, s, density, h, constant):
    """Return the input of critic s: densities of the ball, then the shares of each action."""
    ball = graph.ball(s, k)
    x = [density[y] for y in ball]
    for a in range(h.shape[-1]):
        x += [h[y, a] for y in ball]
    return np.array(x + [1.0] * constant) / math.sqrt(1 + len(ball))


def network(x, w, b):
    total = 0.0
    for m in range(len(b)):
        total += b[m] * max(0.0, float(x @ w[m]))
    return total / math.sqrt(len(b))


@pytest.mark.parametrize("graph", [STAR, ltde.Graph.grid(2, 3), ltde.Graph.complete(6)])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("radius", [0.05, math.inf])
def test_a_critic_step_is_the_lines_5_to_11_of_algorithm_1(graph, k, radius):
    rng = generator(f"critic {k} {radius}")
    critic, rate, gamma, n = make_critic(graph, k, radius=radius), 0.3, 0.9, 3
    start = [parts(critic, s) for s in range(6)]
    density, after = rng.dirichlet(np.ones(6), (2, n))
    h, h_after = rng.dirichlet(np.ones(2), (2, n, 6))
    reward = rng.normal(size=(n, 6))
    here = critic.inputs(torch.tensor(density), torch.tensor(h))
    there = critic.inputs(torch.tensor(after), torch.tensor(h_after))
    targets = torch.tensor(reward) + gamma * critic.values(there)
    errors = critic.td_step(here, targets, rate)
    for s in range(6):
        w, w0, _, b = start[s]
        bound, gradient = radius / math.sqrt(len(b)), np.zeros_like(w)
        for i in range(n):
            x = zeta(graph, k, s, density[i], h[i], True)
            y = zeta(graph, k, s, after[i], h_after[i], True)
            delta = network(x, w, b) - reward[i, s] - gamma * network(y, w, b)
            assert float(errors[i, s]) == pytest.approx(delta, abs=1e-12)
            for m in range(len(b)):
                if x @ w[m] > 0.0:
                    gradient[m] += delta * b[m] * x / math.sqrt(len(b)) / n
        stepped = np.clip(w - rate * gradient, w0 - bound, w0 + bound)
        now, _, mean, _ = parts(critic, s)
        np.testing.assert_allclose(now, stepped, atol=1e-13)
        np.testing.assert_allclose(mean, 0.5 * w0 + 0.5 * stepped, atol=1e-13)
        assert np.abs(now - w).max() > 1e-4
        assert np.abs(now - (w - rate * gradient)).max() < 1e-13 or radius < math.inf


def test_padding_costs_less_than_twice_and_never_moves():
    graph = ltde.Graph(200, [[0, i] for i in range(1, 200)])  # a hub and its leaves
    critic = make_critic(graph, constant=False)
    used = sum(int(group.inside.sum()) for group in critic.groups)
    held = sum(group.inside.numel() for group in critic.groups)
    assert used <= held < 2 * used
    rng = generator("padding")
    x = critic.inputs(torch.tensor(rng.random((4, 200))), torch.tensor(rng.random((4, 200, 2))))
    critic.td_step(x, torch.tensor(rng.normal(size=(4, 200))), 1.0)
    for group, w, w0 in zip(critic.groups, critic.omega, critic.omega_0, strict=True):
        inside = group.inside.repeat(1, 3).bool()
        assert torch.equal(w.transpose(1, 2)[~inside], w0.transpose(1, 2)[~inside])


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_critic_reads_its_ball_and_nothing_else(k):
    graph, rng = ltde.Graph.path(9), generator(f"poison {k}")
    density, h = rng.random((4, 9)), rng.random((4, 9, 2))
    targets = torch.tensor(rng.normal(size=(4, 9)))
    clean, s = make_critic(graph, k), 4
    clean.td_step(clean.inputs(torch.tensor(density), torch.tensor(h)), targets, 0.5)
    outside = ~np.isin(np.arange(9), graph.ball(s, k))
    poisoned, own = density.copy(), targets.clone()
    poisoned[:, outside], own[:, np.arange(9) != s] = np.nan, np.nan
    h_poisoned = h.copy()
    h_poisoned[:, outside] = np.nan
    other = make_critic(graph, k)
    other.td_step(other.inputs(torch.tensor(poisoned), torch.tensor(h_poisoned)), own, 0.5)
    np.testing.assert_array_equal(parts(other, s)[0], parts(clean, s)[0])
    # what lies inside is read
    inside = density.copy()
    inside[:, graph.ball(s, k)[-1]] += 0.1
    third = make_critic(graph, k)
    third.td_step(third.inputs(torch.tensor(inside), torch.tensor(h)), targets, 0.5)
    assert not np.array_equal(parts(third, s)[0], parts(clean, s)[0])


@pytest.mark.parametrize("family", [ltde.SoftmaxPolicy, ltde.EnergyPolicy])
def test_the_score_gradient_sums_the_scores(family):
    model = star_model(n_states=4)
    policy = family(
        model, 6, seed=2, tau=1.5, density_scale=3.0, input_scale=0.7, dtype=torch.float64
    )
    counts = generator("scores").multinomial(7, np.ones(4) / 4, 5)
    actions = policy.sample(counts, 1)
    weights = torch.tensor(generator("weights").normal(size=(5, 4)))
    got = score_gradient(policy, counts, actions, weights, seed=0)
    expected = (weights[..., None, None] * policy.score(counts, actions)).sum(0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_contraction_is_the_gradient_of_the_outputs():
    model = ring_model()
    policy = ltde.SoftmaxPolicy(
        model, 6, seed=2, density_scale=3.0, input_scale=0.7, dtype=torch.float64
    )
    rng = generator("contraction")
    counts = rng.multinomial(9, np.ones(4) / 4, 5)
    weights = torch.tensor(rng.normal(size=(5, 4, model.n_actions)))
    got = contract(policy, torch.tensor(counts / 9), weights)
    (policy.outputs(counts) * weights).sum().backward()
    torch.testing.assert_close(got, policy.theta.grad, rtol=1e-12, atol=1e-12)


def test_the_actor_is_projected_on_the_sup_norm_ball():
    policy = ltde.SoftmaxPolicy(ring_model(), 4, dtype=torch.float64)
    start = policy.theta.detach().clone()
    step = torch.tensor(generator("ascend").normal(size=tuple(start.shape)))
    ascend(policy, step, start, 0.5)
    torch.testing.assert_close(policy.theta.detach(), start + step.clamp(-0.25, 0.25))


def flow_value(model, policy, density, steps):
    simulator = ltde.Simulator(model, math.inf)
    simulator.reset(counts=density)
    rewards = simulator.rollout(policy, steps, record=("rewards",)).rewards[:, 0].sum(-1)
    return float((model.discount ** np.arange(steps)) @ rewards)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_segment_targets_are_the_derivative_of_the_flow(steps):
    # The costate of s at the start of a segment is the derivative of the discounted reward of the
    # segment in mu(s): the pathwise derivative of the mean-field flow, here by differences of 5e-7.
    model = ring_model()
    policy = ltde.SoftmaxPolicy(model, 8, seed=4, density_scale=4.0, tau=2.0, dtype=torch.float64)
    density = np.array([0.4, 0.3, 0.2, 0.1])
    simulator = ltde.Simulator(model, math.inf)
    simulator.reset(counts=density)
    path = simulator.rollout(policy, steps, record=("counts",))
    trainer = LTDENeuralAC(model, math.inf, ltde.Config(width=8, n_replicas=1, dtype="float64"))
    trainer.policy = policy
    targets, _, _ = trainer._pass_back(path.counts, path.restarted, np.zeros((steps + 1, 1, 4)))
    base, shift = flow_value(model, policy, density, steps), 5e-7
    for s in range(4):
        moved = density.copy()
        moved[s] += shift
        slope = (flow_value(model, policy, moved, steps) - base) / shift
        assert targets[0, 0, s] == pytest.approx(slope, rel=1e-4, abs=1e-4)
    if steps > 1:  # what others do counts: a myopic agent would be worth something else
        myopic, _, _ = trainer._pass_back(path.counts[:2], path.restarted[:1], np.zeros((2, 1, 4)))
        assert np.abs(targets[0] - myopic[0]).max() > 0.01


def test_the_one_agent_gradient_with_exact_values_is_the_policy_gradient():
    # N = 1: the value of one more agent in j is V(e_j), so that the gradient must be exact.
    model = star_model(n_states=4)
    policy = ltde.SoftmaxPolicy(model, 6, seed=5, tau=1.3, density_scale=2.0, dtype=torch.float64)
    exact = ExactSystem(model, 1, policy)
    value = np.zeros(4)
    value[exact.states.argmax(1)] = exact.v.sum(1)
    density = np.eye(4)[None].repeat(2, 0)  # replica b has its agent in b
    trainer = LTDENeuralAC(model, 1, ltde.Config(width=8, n_replicas=4, dtype="float64"))
    trainer.policy = policy
    _, values, probs = trainer._pass_back(
        density, np.zeros((1, 4), bool), np.tile(value, (2, 4, 1))
    )
    pi = torch.tensor(probs)
    advantage = advantages(torch.tensor(values), pi, policy.action_mask)
    visits = np.zeros(len(exact.states))
    np.add.at(visits, exact.pairs[:, 0], exact.visitation)
    weights = torch.zeros(4, dtype=torch.float64)
    weights[exact.states.argmax(1)] = torch.tensor(visits)
    mass = torch.tensor(density[0]) * weights[:, None]
    gradient = contract(
        policy, torch.tensor(density[0]), policy.tau * mass[..., None] * pi * advantage
    )
    gradient /= 1.0 - model.discount
    np.testing.assert_allclose(gradient, exact.gradient(), rtol=1e-10, atol=1e-12)
    assert np.abs(exact.gradient()).max() > 1e-3


def test_restarts_cut_the_segment():
    model = ring_model()
    policy = ltde.SoftmaxPolicy(model, 8, seed=4, dtype=torch.float64)
    trainer = LTDENeuralAC(model, 10, ltde.Config(width=8, n_replicas=1, dtype="float64"))
    trainer.policy = policy
    density = generator("cut").dirichlet(np.ones(4), (4, 1))
    critic = generator("critic of the cut").normal(size=(4, 1, 4))
    restarted = np.array([[False], [True], [False]])
    targets, values, _ = trainer._pass_back(density, restarted, critic)
    np.testing.assert_array_equal(targets[1], critic[1])
    assert not values.reshape(3, 4, -1)[1].any()
    alone, _, _ = trainer._pass_back(density[:2], restarted[:1], critic[:2])
    np.testing.assert_array_equal(targets[0], alone[0])


def test_the_mean_action_baseline_leaves_the_expectation():
    # E over h of score * Q(mu, E h) = 0 given mu: enumerate the teams of one state.
    model = ring_model()
    policy = ltde.SoftmaxPolicy(model, 6, seed=1, dtype=torch.float64)
    trainer = LTDENeuralAC(
        model, 4, ltde.Config(actor="score", critic="q", width=6, dtype="float64", natural=False)
    )
    trainer.policy = policy
    plain = LTDENeuralAC(
        model,
        4,
        trainer.config.replace(baseline="none"),
    )
    plain.policy, plain.critic = policy, trainer.critic
    for g, w in enumerate(trainer.critic.omega):
        w += torch.tensor(generator(f"omega {g}").normal(size=tuple(w.shape)))
    exact = ExactSystem(model, 4, policy)
    counts = exact.states[exact.pairs[:, 0]]
    actions = exact.pairs[:, 1:].reshape(len(counts), 4, -1).copy()
    law = torch.tensor(exact.visitation)[:, None]
    args = policy, counts, actions
    with_baseline = score_gradient(*args, law * trainer._q_weights(counts, actions), 0)
    without = score_gradient(*args, law * plain._q_weights(counts, actions), 0)
    torch.testing.assert_close(with_baseline, without, rtol=1e-9, atol=1e-12)
    assert float(without.abs().max()) > 1e-4

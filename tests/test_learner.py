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


def make_critic(graph, k=1, n_actions=2, radius=math.inf, constant=True, average=True):
    return Critic(
        graph,
        k,
        4,
        n_actions=n_actions,
        constant_input=constant,
        symmetric=False,
        radius=radius,
        average=average,
        seed=3,
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


@pytest.mark.parametrize("block", [1, 1 << 19])
@pytest.mark.parametrize("discount", [0.0, 0.9])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("radius", [0.05, math.inf])
def test_many_steps_are_single_steps(monkeypatch, block, discount, normalized, radius):
    rng = generator(f"steps {discount} {normalized}")
    density, h = rng.random((4, 5, 6)), rng.random((4, 5, 6, 2))
    targets = torch.tensor(rng.normal(size=(3, 5, 6)))
    keep = torch.tensor(rng.random((3, 5)) < 0.7)
    keep[1] = False
    one, many = make_critic(STAR, radius=radius), make_critic(STAR, radius=radius)
    order = (2, 0, 1, 2)
    inputs = [one.inputs(torch.tensor(x), torch.tensor(y)) for x, y in zip(density, h, strict=True)]
    total = torch.zeros(6, dtype=torch.float64)
    for t in order:
        wanted = targets[t] + discount * one.values(inputs[t + 1])
        errors = one.td_step(inputs[t], wanted, 0.3, keep=keep[t], normalized=normalized)
        assert not errors[~keep[t]].any()
        total += (errors**2).sum(0)
    monkeypatch.setattr("ltde.critic._BLOCK", block)
    square = many.td_steps(
        torch.tensor(density),
        targets,
        0.3,
        order=order,
        h=torch.tensor(h),
        discount=discount,
        keep=keep,
        normalized=normalized,
    )
    torch.testing.assert_close(square, total / int(keep[list(order)].sum()), rtol=1e-12, atol=1e-14)
    for name in ("omega", "omega_mean"):
        for a, b in zip(getattr(one, name), getattr(many, name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert many.n_steps == len(order)


@pytest.mark.parametrize("discount", [0.0, 0.9])
@pytest.mark.parametrize("normalized", [False, True])
def test_samples_left_out_may_hold_anything(discount, normalized):
    rng = generator("left out")
    density, h = torch.tensor(rng.random((2, 5, 6))), torch.tensor(rng.random((2, 5, 6, 2)))
    targets = torch.tensor(rng.normal(size=(1, 5, 6)))
    keep = torch.tensor([[True, False, True, True, False]])
    wrong = [x.clone() for x in (density, h, targets)]
    for x in wrong:
        x[:, ~keep[0]] = math.nan
    clean, single, many = make_critic(STAR), make_critic(STAR), make_critic(STAR)
    for critic, data in ((clean, (density, h, targets)), (single, wrong)):
        mu, team, wanted = data
        here, after = critic.inputs(mu[0], team[0]), critic.inputs(mu[1], team[1])
        if critic is clean:
            here, after = ([x[:, keep[0]] for x in inputs] for inputs in (here, after))
            wanted = wanted[:, keep[0]]
        wanted = wanted[0] + discount * critic.values(after)
        left_out = None if critic is clean else keep[0]
        errors = critic.td_step(here, wanted, 0.3, keep=left_out, normalized=normalized)
        assert torch.isfinite(errors).all()
    square = many.td_steps(
        wrong[0],
        wrong[2],
        0.3,
        order=[0],
        h=wrong[1],
        discount=discount,
        keep=keep,
        normalized=normalized,
    )
    assert torch.isfinite(square).all()
    for critic in (single, many):
        for a, b in zip(clean.omega, critic.omega, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_without_the_average_only_the_last_weights_are_kept():
    rng = generator("last")
    x, targets = torch.tensor(rng.random((3, 6))), torch.tensor(rng.normal(size=(3, 6)))
    both = [make_critic(STAR, n_actions=0, average=average) for average in (True, False)]
    for critic in both:
        critic.td_step(critic.inputs(x), targets, 0.3)
    assert all(map(torch.equal, both[0].omega, both[1].omega))
    assert not both[1].omega_mean
    assert set(both[0].state_dict()) - set(both[1].state_dict()) == {"omega_mean.0", "omega_mean.1"}


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


@pytest.mark.parametrize("block", [1, 1 << 17])
def test_the_contraction_knows_on_which_side_of_a_kink_a_density_lies(monkeypatch, block):
    # Densities, weights and kinks are multiples of 1 / 8, so that many inputs are exactly 0.
    monkeypatch.setattr("ltde.actor._BLOCK", block)
    policy = ltde.SoftmaxPolicy(ring_model(), 40, seed=2, dtype=torch.float64)
    rng = generator("kinks")
    theta = rng.integers(-8, 9, policy.theta.shape) / 8
    theta[..., 0] = rng.choice([-1.0, -0.5, -0.0, 0.0, 0.5, 1.0], theta.shape[:2])
    with torch.no_grad():
        policy.theta.copy_(torch.tensor(theta))
    counts = rng.multinomial(8, np.ones(4) / 4, 30)
    weights = torch.tensor(rng.normal(size=(30, 4, policy.n_actions)))
    (policy.outputs(counts) * weights).sum().backward()
    got = contract(policy, torch.tensor(counts / 8), weights)
    torch.testing.assert_close(got, policy.theta.grad, rtol=1e-12, atol=1e-12)
    x = counts[:, :, None, None] / 8 * theta[..., :1] + theta[..., 1:]
    assert (x == 0).sum() > 100


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
    trainer.learner.policy = policy
    targets = np.zeros((steps, 1, 4))
    trainer.learner.pass_back(path.counts, path.restarted, np.zeros((steps + 1, 1, 4)), targets)
    base, shift = flow_value(model, policy, density, steps), 5e-7
    for s in range(4):
        moved = density.copy()
        moved[s] += shift
        slope = (flow_value(model, policy, moved, steps) - base) / shift
        assert targets[0, 0, s] == pytest.approx(slope, rel=1e-4, abs=1e-4)
    if steps > 1:  # what others do counts: a myopic agent would be worth something else
        myopic = np.zeros((1, 1, 4))
        trainer.learner.pass_back(path.counts[:2], path.restarted[:1], np.zeros((2, 1, 4)), myopic)
        assert np.abs(targets[0] - myopic[0]).max() > 0.01


def test_the_one_agent_gradient_with_exact_values_is_the_policy_gradient():
    # N = 1: there are no others, and the value of one more agent in j is V(e_j), so that the
    # gradient must be exact.
    model = star_model(n_states=4)
    policy = ltde.SoftmaxPolicy(model, 6, seed=5, tau=1.3, density_scale=2.0, dtype=torch.float64)
    exact = ExactSystem(model, 1, policy)
    value = np.zeros(4)
    value[exact.states.argmax(1)] = exact.v.sum(1)
    trainer = LTDENeuralAC(model, 1, ltde.Config(width=8, n_replicas=1, dtype="float64"))
    trainer.learner.policy = policy
    targets = np.zeros((1, 1, 4))
    values, probs = trainer.learner.pass_back(
        np.zeros((2, 1, 4)), np.zeros((1, 1), bool), np.tile(value, (2, 1, 1)), targets
    )
    np.testing.assert_allclose(targets[0, 0], value, rtol=1e-12)  # Bellman's equation
    pi = torch.tensor(probs)
    advantage = advantages(torch.tensor(values), pi, policy.action_mask)
    visits = np.zeros(len(exact.states))
    np.add.at(visits, exact.pairs[:, 0], exact.visitation)
    weights = torch.zeros(4, dtype=torch.float64)
    weights[exact.states.argmax(1)] = torch.tensor(visits)
    gradient = contract(
        policy, torch.ones(1, 4), policy.tau * weights[None, :, None] * pi * advantage
    )
    gradient /= 1.0 - model.discount
    np.testing.assert_allclose(gradient, exact.gradient(), rtol=1e-10, atol=1e-12)
    assert np.abs(exact.gradient()).max() > 1e-3


def test_restarts_cut_the_segment():
    model = ring_model()
    policy = ltde.SoftmaxPolicy(model, 8, seed=4, dtype=torch.float64)
    trainer = LTDENeuralAC(model, 10, ltde.Config(width=8, n_replicas=1, dtype="float64"))
    trainer.learner.policy = policy
    density = generator("cut").dirichlet(np.ones(4), (4, 1))
    critic = generator("critic of the cut").normal(size=(4, 1, 4))
    restarted = np.array([[False], [True], [False]])
    targets, first = np.zeros((3, 1, 4)), np.zeros((1, 1, 4))
    values, _ = trainer.learner.pass_back(density, restarted, critic, targets)
    np.testing.assert_array_equal(targets[1], critic[1])
    assert not values.reshape(3, 4, -1)[1].any()
    trainer.learner.pass_back(density[:2], restarted[:1], critic[:2], first)
    np.testing.assert_array_equal(targets[0], first[0])


def test_the_mean_action_baseline_leaves_the_expectation():
    # E over h of score * Q(mu, E h) = 0 given mu: enumerate the teams of one state.
    model = ring_model()
    policy = ltde.SoftmaxPolicy(model, 6, seed=1, dtype=torch.float64)
    trainer = LTDENeuralAC(
        model, 4, ltde.Config(actor="score", critic="q", width=6, dtype="float64", natural=False)
    )
    trainer.learner.policy = policy
    plain = LTDENeuralAC(
        model,
        4,
        trainer.config.replace(baseline="none"),
    )
    plain.learner.policy, plain.learner.critic = policy, trainer.learner.critic
    for g, w in enumerate(trainer.learner.critic.omega):
        w += torch.tensor(generator(f"omega {g}").normal(size=tuple(w.shape)))
    exact = ExactSystem(model, 4, policy)
    counts = exact.states[exact.pairs[:, 0]]
    actions = exact.pairs[:, 1:].reshape(len(counts), 4, -1).copy()
    law = torch.tensor(exact.visitation)[:, None]
    args = policy, counts, actions
    with_baseline = score_gradient(*args, law * trainer.learner.q_weights(counts, actions), 0)
    without = score_gradient(*args, law * plain.learner.q_weights(counts, actions), 0)
    torch.testing.assert_close(with_baseline, without, rtol=1e-9, atol=1e-12)
    assert float(without.abs().max()) > 1e-4

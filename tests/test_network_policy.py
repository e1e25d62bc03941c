"""Softmax and energy-based team policies: twin, scores, laws, simulation, numerics, bad input.

`network`, `softmax_of` and `energy_law` below state Eq. (3.2), (4.3) and (4.4) in NumPy and share
no code with the library; the laws of the simulator are those of `exact_law`.
"""

import copy
import io
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import exact_law
import ltde
import ltde.energy
import ltde.network_policy
import mpmath
import numpy as np
import pytest
import torch
from exact_law import compositions, joint_two_step, restart_chain_law, step_law, visitation_law
from hypothesis import given
from hypothesis import strategies as st
from ltde.networks import features, forward
from models import complete_model, path_model, ring_model, star_model
from scipy import stats
from statcheck import chi2_law, dkw_one_sample, generator, outcomes, seed
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
NETWORKS = {"softmax": ltde.SoftmaxPolicy, "energy": ltde.EnergyPolicy}
# Two states, three actions; the last is masked in state 1.
MASK = ((True, True, True), (True, True, False))
REPLICAS = 20_000


def still(s, mu, node, edge, prob, reward):
    for a in range(prob.shape[0]):
        prob[a, 0] = 1.0


@cache
def model_of(mask):
    """Return a model whose states allow the actions of `mask`; nobody moves in it."""
    states = len(mask)
    return ltde.NetworkedModel(
        ltde.Graph.path(states),
        len(mask[0]),
        still,
        action_mask=np.array(mask),
        initial=np.full(states, 1.0 / states),
    )


def full(states, actions):
    return ((True,) * actions,) * states


def make(family, mask=MASK, width=8, *, gain=1.0, signs=None, **options):
    """Return a policy whose first weights are multiplied by `gain`."""
    policy = NETWORKS[family](model_of(mask), width, **options)
    with torch.no_grad():
        policy.theta *= gain
        if signs is not None:
            policy.b.copy_(torch.tensor(signs).expand_as(policy.b))
    return policy


def tabular(tag, mask=MASK):
    weights = np.where(mask, generator(tag).uniform(0.2, 1.0, np.shape(mask)), 0.0)
    return ltde.TabularPolicy(weights / weights.sum(axis=1, keepdims=True))


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


# The oracle.


def network(policy, s, density, h):
    """Eq. (4.3) at the scaled input (mu(s), h)."""
    theta = array(policy.theta)[s].astype(float)
    x = policy.input_scale * np.concatenate([[policy.density_scale * density], h])
    hidden = np.maximum(theta @ x, 0.0)
    return float(array(policy.b)[s].astype(float) @ hidden) / math.sqrt(len(theta))


def normalised(logs):
    """Law proportional to exp(logs), a dict."""
    top = max(logs.values())
    total = math.fsum(math.exp(x - top) for x in logs.values())
    return {key: math.exp(x - top) / total for key, x in logs.items()}


def softmax_of(policy, s, density):
    mask = array(policy.action_mask)[s]
    unit = np.eye(len(mask))
    logs = {
        a: policy.tau * network(policy, s, density, unit[a]) for a in np.flatnonzero(mask).tolist()
    }
    law = normalised(logs)
    return np.array([law.get(a, 0.0) for a in range(len(mask))])


def allowed_teams(mask, n):
    """Compositions of n over the allowed actions, as tuples over all actions."""
    places = np.flatnonzero(mask)
    for part in compositions(n, len(places)):
        team = np.zeros(len(mask), dtype=int)
        team[places] = part
        yield tuple(team.tolist())


def log_coefficient(team):
    return math.lgamma(sum(team) + 1) - sum(math.lgamma(c + 1) for c in team)


def energy_law(policy, s, n, total, base=None):
    """Eq. (4.4) by enumeration; `base(team)` is the log of another base measure, for a mutant."""
    mask = array(policy.action_mask)[s]
    if n == 0:
        return {(0,) * len(mask): 1.0}
    return normalised(
        {
            team: policy.tau * network(policy, s, n / total, np.array(team) / n)
            + (base(team) if base else 0.0)
            for team in allowed_teams(mask, n)
        }
    )


def mean_of(law):
    """E[h] under a law on teams."""
    return sum(p * np.array(team) / max(sum(team), 1) for team, p in law.items())


def independent(laws):
    """Law of the teams of all states, flattened, from the law of each."""
    return {
        sum(teams, ()): math.prod(law[team] for law, team in zip(laws, teams, strict=True))
        for teams in product(*laws)
    }


def enumerated(policy, counts, s, n_agents=None):
    """exp(log_prob) of every composition of counts[s], those with masked actions included."""
    mask = np.array(MASK if isinstance(policy, ltde.TabularPolicy) else array(policy.action_mask))
    teams = compositions(counts[s], mask.shape[1])
    actions = np.zeros((len(teams), *mask.shape), dtype=int)
    for other, n in enumerate(counts):
        actions[:, other, mask[other].argmax()] = n
    actions[:, s] = teams
    log_prob = array(policy.log_prob(np.tile(counts, (len(teams), 1)), actions, n_agents))
    return dict(zip(teams, np.exp(log_prob[:, s]).tolist(), strict=True))


def library_law(policy, counts, n_agents=None):
    laws = [enumerated(policy, counts, s, n_agents) for s in range(len(counts))]
    return independent([{team: p for team, p in law.items() if p > 0.0} for law in laws])


# Random policies.


@st.composite
def networks(draw, family, largest=40):
    """Return a policy of any sizes, scales and masks, and counts with a number of agents."""
    states, actions = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    row = st.tuples(*[st.booleans()] * actions).filter(any)
    mask = tuple(draw(row) for _ in range(states))
    symmetric = draw(st.booleans())

    def scale(low, high):
        return 10.0 ** draw(st.floats(low, high))

    policy = make(
        family,
        mask,
        draw(st.integers(1, 24)) * (2 if symmetric else 1),
        gain=scale(-1, 0.5),
        tau=scale(-2, 1.5),
        density_scale=scale(-1, 1.5),
        input_scale=draw(st.sampled_from([1.0, 0.5**0.5, 3.0])),
        symmetric=symmetric,
        seed=draw(st.integers(0, 2**64 - 1)),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
    )
    counts = np.array(draw(st.lists(st.integers(0, largest), min_size=states, max_size=states)))
    n_agents = int(counts.sum()) + draw(st.integers(1, 50))
    return policy, counts, draw(st.sampled_from([None, n_agents]))


def densities(counts, n_agents):
    total = counts.sum() if n_agents is None else n_agents
    return counts / max(total, 1)


def core_outputs(policy, density, raw):
    """Return what the core computes: outputs of the networks, or probabilities, (S, A)."""
    out = np.zeros((1, policy.n_states, policy.n_actions))
    policy._core.mean_action(density[None].astype(float), raw, out)
    return out[0]


def spread(policy, density, dtype=torch.float64):
    """f, sum |ReLU| and sum |terms of the inputs|, both over sqrt(M), (S, A), in `dtype`."""
    states, actions = policy.n_states, policy.n_actions
    x = torch.zeros(actions, states, 1 + actions, dtype=torch.float64)
    x[..., 0] = torch.from_numpy(policy.density_scale * density)
    x[..., 1:] = torch.eye(actions, dtype=torch.float64)[:, None]
    x = (policy.input_scale * x).to(dtype)
    theta, b = policy.theta.detach().to(dtype), policy.b.to(dtype)
    ones = torch.ones_like(b)
    return [
        forward(*args).T.double().numpy()
        for args in ((x, theta, b), (x, theta, ones), (x.abs(), theta.abs(), ones))
    ]


# The twin.


@given(networks("softmax"))
def test_the_core_and_torch_compute_the_same_outputs_and_probabilities(case):
    policy, counts, n_agents = case
    density = densities(counts, n_agents)
    m, eps = policy.width, torch.finfo(policy.theta.dtype).eps
    fine = torch.finfo(torch.float64).eps
    raw, pi = core_outputs(policy, density, True), core_outputs(policy, density, False)
    torch_raw = array(policy.outputs(counts, n_agents))
    torch_pi = array(policy.mean_action(counts, n_agents))
    wide, relu, terms = spread(policy, density)
    assert (np.abs(raw - torch_raw) <= 2 * m * eps * relu).all()
    # the core sums in float64, whatever the parameters are
    assert (np.abs(raw - torch_raw) <= 2 * m * fine * relu).all()
    assert (np.abs(raw - wide) <= 2 * (m + 2) * fine * terms).all()
    # tau times an error of f is an error of log pi
    steep = np.maximum(1.0, policy.tau * relu.max(axis=1, keepdims=True))
    assert (np.abs(pi - torch_pi) <= 4 * m * fine * steep).all()
    reference = [softmax_of(policy, s, mu) for s, mu in enumerate(density)]
    steepest = np.maximum(1.0, policy.tau * terms.max(axis=1, keepdims=True))
    assert (np.abs(pi - reference) <= 4 * (m + 2) * fine * steepest).all()
    # torch in the dtype of the parameters; a neuron's input may cancel, and ReLU does not say so
    narrow = spread(policy, density, policy.theta.dtype)[0]
    assert (np.abs(raw - narrow) <= 2 * (m + 2) * eps * terms).all()
    logits = torch.tensor(policy.tau * narrow, dtype=policy.theta.dtype)
    logits = logits.masked_fill(~policy.action_mask, -math.inf)
    narrow_pi = torch.softmax(logits, -1).double().numpy()
    assert (np.abs(pi - narrow_pi) <= 4 * (m + 2) * eps * steepest).all()
    assert (pi[~array(policy.action_mask)] == 0.0).all()
    np.testing.assert_allclose(pi.sum(axis=-1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 2, 64, 1024])
def test_the_twin_bounds_at_ordinary_sizes(dtype, width):
    # |f_core - f_torch| <= 2 M eps M^-1/2 sum |ReLU| and |pi_core - pi_torch| <= 4 M eps, tau = 1.
    eps = torch.finfo(dtype).eps
    for i in range(8):
        policy = make("softmax", full(3, 4), width, input_scale=0.5**0.5, seed=i, dtype=dtype)
        counts = generator(f"twin {i}").multinomial(997, [0.2, 0.3, 0.5])
        density = counts / 997
        raw, pi = core_outputs(policy, density, True), core_outputs(policy, density, False)
        relu = spread(policy, density)[1]
        error = np.abs(raw - array(policy.outputs(counts)))
        assert (error <= 2 * width * torch.finfo(torch.float64).eps * relu).all()
        narrow = spread(policy, density, dtype)[0]
        assert (np.abs(pi - array(policy.mean_action(counts))) <= 4 * width * eps).all()
        narrow_pi = torch.softmax(torch.tensor(narrow, dtype=dtype), -1).double().numpy()
        assert (np.abs(pi - narrow_pi) <= 4 * max(width, 2) * eps).all()


def test_float32_sums_would_break_the_bound_of_the_core():
    policy = make("softmax", full(1, 3), 1024, gain=3.0)
    density = np.array([0.3])
    _, relu, _ = spread(policy, density)
    narrow = spread(policy, density, torch.float32)[0]
    bound = 2 * policy.width * torch.finfo(torch.float64).eps * relu
    assert (np.abs(core_outputs(policy, density, True) - narrow) > bound).any()


@given(networks("energy", largest=5))
def test_log_weights_and_energies_of_the_core_agree_with_the_equation(case):
    policy, counts, n_agents = case
    density = densities(counts, n_agents)
    for s in np.flatnonzero(counts).tolist():
        n = int(counts[s])
        teams, energies = np.zeros((20, policy.n_actions), np.int64), np.zeros(20)
        policy._core.trace(s, density[s], n, 1, teams, energies)
        scale = policy.tau * max(
            spread(policy, density)[2][s].max(), abs(network(policy, s, density[s], teams[0] / n))
        )
        tolerance = 4 * (policy.width + 40) * 2.3e-16 * scale
        for team, energy in zip(teams, energies, strict=True):
            reference = policy.tau * network(policy, s, density[s], team / n)
            assert abs(energy - reference) <= tolerance
            actions = np.zeros((policy.n_states, policy.n_actions), np.int64)
            actions[s] = team
            alone = np.where(np.arange(policy.n_states) == s, counts, 0)
            weight = policy.log_weight(alone, actions, n_agents or int(counts.sum()))
            assert abs(float(weight[s].detach()) - reference) <= tolerance


@given(networks("energy", largest=5))
def test_enumerated_means_of_the_core_agree_with_the_equation(case):
    policy, counts, n_agents = case
    total = n_agents or int(counts.sum())
    action = array(policy.mean_action(counts, n_agents))
    phi = array(policy.mean_features(counts, n_agents))
    assert policy.is_exact(counts).all()
    theta, b = policy.theta.detach().double(), policy.b.double()
    for s, n in enumerate(counts.tolist()):
        law = energy_law(policy, s, n, total)
        if n == 0:
            mask = array(policy.action_mask)[s]
            np.testing.assert_allclose(action[s], mask / mask.sum(), rtol=1e-15)
            assert not phi[s].any()
            continue
        np.testing.assert_allclose(action[s], mean_of(law), atol=1e-11)
        x = np.array([[policy.density_scale * n / total, *np.array(team) / n] for team in law])
        each = features(
            policy.input_scale * torch.from_numpy(x)[:, None], theta[s : s + 1], b[s : s + 1]
        )
        expected = torch.einsum(
            "c,cmd->md", torch.tensor(list(law.values()), dtype=torch.float64), each[:, 0]
        )
        np.testing.assert_allclose(phi[s], expected, atol=1e-11 * (1 + np.abs(x).max()))


# Memory.


@pytest.fixture
def handed(monkeypatch):
    """Return the arrays `theta` that are handed to the core from now on."""
    seen, real = [], ltde.network_policy._core.NetworkPolicy

    def spy(theta, *rest):
        seen.append(theta)
        return real(theta, *rest)

    monkeypatch.setattr(ltde.network_policy, "_core", SimpleNamespace(NetworkPolicy=spy))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", NETWORKS)
def test_the_core_reads_the_parameters_where_they_are(family, dtype, handed):
    policy = make(family, dtype=dtype)
    memory = policy.theta.detach().numpy()
    policy.sample([3, 2], 1)
    ltde.Simulator(model_of(MASK), 5, seed=1).rollout(policy, 30)
    ltde.Simulator(model_of(MASK), 5, seed=1).visitation(policy, 2)
    assert len(handed) == 3  # once a call: a rollout does not come back between its steps
    for theta in handed:
        assert theta.dtype == memory.dtype
        assert np.shares_memory(theta, memory)
        assert theta.ctypes.data == policy.theta.data_ptr()


@pytest.mark.parametrize("family", NETWORKS)
def test_a_rollout_never_comes_back_to_torch(family, monkeypatch):
    policy = make(family)
    simulator = ltde.Simulator(model_of(MASK), 5, seed=1)

    def never(*args, **options):
        raise AssertionError("torch was asked during a rollout")

    for name in ("outputs", "mean_action", "log_prob", "_density", "_wide", "_zeta", "_inputs"):
        monkeypatch.setattr(type(policy), name, never, raising=False)
    simulator.rollout(policy, 10)


@pytest.mark.parametrize("family", NETWORKS)
def test_training_in_place_shows_in_the_next_call(family):
    policy = make(family, gain=4.0)
    counts = np.tile([50, 0], (2000, 1))
    core = policy._core
    before = policy.sample(counts, 1)
    all_take_0 = [[1, 0, 0], [0, 0, 0]]
    policy.log_prob([1, 0], all_take_0).sum().backward()
    with torch.no_grad():
        policy.theta += 100.0 * policy.theta.grad
    after = policy.sample(counts, 1)
    # state 0 now takes action 0 far more often, by the old view of the core just as by a new one
    assert after[:, 0, 0].mean() > before[:, 0, 0].mean() + 5.0
    out = np.zeros(before.shape, np.int64)
    ltde._core.sample_actions(core, counts, np.full(2000, 50.0), 1, out)
    np.testing.assert_array_equal(out, after)


@pytest.mark.parametrize("family", NETWORKS)
def test_parameters_that_are_not_contiguous_are_copied_and_give_the_same(family):
    policy = make(family)
    counts = np.tile([30, 20], (50, 1))
    expected = policy.sample(counts, 1)
    theta, b = policy.theta.detach(), policy.b
    strided = torch.zeros(2, 16, 8)
    strided[:, ::2, ::2] = theta
    for other in (
        theta.transpose(1, 2).contiguous().transpose(1, 2),
        theta.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        strided[:, ::2, ::2],
    ):
        assert not other.is_contiguous()
        policy.theta = torch.nn.Parameter(other)
        policy.b = b.T.contiguous().T
        np.testing.assert_array_equal(policy.sample(counts, 1), expected)
        ltde.Simulator(model_of(MASK), 5, seed=1).rollout(policy, 2)
        policy.log_prob(counts, expected).sum().backward()


# Scores.


def autograd_score(policy, counts, actions, n_agents):
    """Gradient of log Pi_s in theta_s by autograd, (S, M, d)."""
    policy.theta.grad = None
    policy.log_prob(counts, actions, n_agents).sum().backward()
    return policy.theta.grad.double().numpy()


def assert_score(policy, counts, actions, n_agents=None):
    score = policy.score(counts, actions, n_agents)
    assert score.dtype == torch.float64
    assert not score.requires_grad
    expected = autograd_score(policy, counts, actions, n_agents)
    size = policy.tau * policy.input_scale * (1.0 + policy.density_scale) * (1 + np.sum(counts))
    tolerance = 1e-12 if policy.theta.dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(score.numpy(), expected, rtol=tolerance, atol=tolerance * size)
    return score.numpy()


@pytest.mark.parametrize("family", NETWORKS)
def test_scores_are_the_gradients_of_log_prob(family):
    @given(networks(family, largest=5), st.integers(0, 2**32))
    def check(case, number):
        policy, counts, n_agents = case
        actions = policy.sample(counts, number, n_agents)
        score = assert_score(policy, counts, actions, n_agents)
        single = array(policy.action_mask).sum(axis=1) == 1
        assert not score[counts == 0].any()
        np.testing.assert_allclose(score[single], 0.0, atol=1e-10)

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", NETWORKS)
def test_scores_at_the_symmetric_start_and_at_zero_weights(family, dtype):
    actions = np.array([[1, 2, 0], [1, 1, 0]])
    start = make(family, symmetric=True, dtype=dtype)
    assert np.abs(assert_score(start, [3, 2], actions)).max() > 0.01
    zero = make(family, gain=0.0, dtype=dtype)
    assert not assert_score(zero, [3, 2], actions).any()


@pytest.mark.parametrize("family", NETWORKS)
def test_scores_have_mean_zero(family):
    policy = make(family, gain=3.0, density_scale=2.0, dtype=torch.float64)
    counts = [4, 3]
    for s in range(2):
        law = enumerated(policy, counts, s)
        teams = [team for team, p in law.items() if p > 0.0]
        actions = np.zeros((len(teams), 2, 3), dtype=int)
        actions[:, 1 - s, 0] = counts[1 - s]
        actions[:, s] = teams
        score = policy.score(np.tile(counts, (len(teams), 1)), actions).numpy()[:, s]
        p = np.array([law[team] for team in teams])
        np.testing.assert_allclose(np.einsum("c,cmd->md", p, score), 0.0, atol=1e-12)
        assert np.abs(score).max() > 0.1


@given(st.integers(0, 2**32))
def test_the_score_of_a_table_is_that_of_its_logits(number):
    rng = np.random.default_rng(number)
    logits = torch.tensor(rng.normal(size=(2, 3)), requires_grad=True)
    masked = logits.masked_fill(~torch.tensor(MASK), -math.inf)
    table = ltde.TabularPolicy(torch.softmax(masked, -1).detach().numpy())
    counts = rng.integers(0, 20, size=2)
    actions = table.sample(counts, number)
    log_pi = torch.log_softmax(masked, -1)
    taken = torch.tensor(actions) * torch.where(torch.tensor(MASK), log_pi, 0.0)
    taken.sum().backward()
    np.testing.assert_allclose(table.score(counts, actions), logits.grad, atol=1e-12)
    constant = np.array([log_coefficient(row) for row in actions.tolist()])
    np.testing.assert_allclose(
        table.log_prob(counts, actions), array(taken.sum(-1)) + constant, atol=1e-12
    )


def test_scores_are_batched_over_replicas():
    for family in NETWORKS:
        policy = make(family, density_scale=2.0)
        counts = generator("batch").integers(0, 5, (2, 3, 2))
        totals = counts.sum(-1, keepdims=True) + 1
        actions = policy.sample(counts, 1, totals)
        score = policy.score(counts, actions, totals)
        assert score.shape == (2, 3, 2, 8, 4)
        for i in np.ndindex(2, 3):
            np.testing.assert_allclose(
                score[i], policy.score(counts[i], actions[i], totals[i]), atol=1e-14
            )


def test_the_score_of_an_energy_policy_beyond_enumeration_is_close():
    # E[phi] along 4096 moves: standard error about 0.02 of entries up to 0.3.
    policy = make("energy", gain=2.0)
    actions = np.array([[5, 4, 3], [4, 2, 0]])
    exact = policy.score([12, 6], actions)
    policy.enumeration_limit = 1
    with pytest.raises(ValueError, match="log_prob"):
        policy.log_prob([12, 6], actions)
    chain = policy.score([12, 6], actions, seed=1)
    assert 0.0 < (chain - exact).abs().max() < 0.1
    assert torch.equal(chain, policy.score([12, 6], actions, seed=1))
    assert not torch.equal(chain, policy.score([12, 6], actions, seed=2))


# Laws. Chi-square at 1e-6 of R = 20,000 draws: a relative error of 10 % everywhere has
# non-centrality 200.


def three_policies(tag, **options):
    return {
        "softmax": make("softmax", gain=2.0, seed=seed(tag), **options),
        "energy": make("energy", gain=4.0, seed=seed(tag), **options),
        "tabular": tabular(tag),
    }


@pytest.mark.statistical
@pytest.mark.parametrize("family", [*NETWORKS, "tabular"])
def test_draws_have_the_law_of_log_prob(family):
    counts = [5, 3]
    policy, other = (three_policies(tag, density_scale=3.0)[family] for tag in "AB")
    samples = outcomes(policy.sample(np.tile(counts, (REPLICAS, 1)), seed("draws")))
    law = library_law(policy, counts)
    assert abs(math.fsum(law.values()) - 1.0) < 1e-12
    assert chi2_law(samples, law)
    assert not chi2_law(samples, library_law(other, counts))
    if family == "tabular":
        return
    # mu(s) is read: another number of agents is another law
    assert not chi2_law(samples, library_law(policy, counts, 80))
    sparse = policy.sample(np.tile(counts, (REPLICAS, 1)), seed("draws"), 80)
    assert chi2_law(outcomes(sparse), library_law(policy, counts, 80))


@pytest.mark.statistical
def test_the_laws_are_those_of_the_paper():
    counts, total = [5, 3], 8
    softmax = make("softmax", gain=2.0, density_scale=3.0)
    energy = make("energy", gain=4.0, density_scale=3.0)
    laws = [energy_law(energy, s, n, total) for s, n in enumerate(counts)]
    multinomial = [
        {
            team: exact_law.multinomial_pmf(team, softmax_of(softmax, s, n / total))
            for team in allowed_teams(MASK[s], n)
        }
        for s, n in enumerate(counts)
    ]
    for policy, expected in ((energy, laws), (softmax, multinomial)):
        for s in range(2):
            got = enumerated(policy, counts, s)
            for team, p in got.items():
                assert p == pytest.approx(expected[s].get(team, 0.0), rel=1e-12)
    # the energy family has the uniform base measure: that of the multinomial is another law
    mutants = [energy_law(energy, s, n, total, base=log_coefficient) for s, n in enumerate(counts)]
    samples = outcomes(energy.sample(np.tile(counts, (REPLICAS, 1)), seed("base measure")))
    assert chi2_law(samples, independent(laws))
    assert not chi2_law(samples, independent(mutants))
    assert not chi2_law(samples, independent(multinomial))


def one_team(policy, n, draws, tag):
    """Draws (R, A) of a team of n agents of a policy of one state."""
    return policy.sample(np.full((draws, 1), n), seed(tag), 2 * n)[:, 0]


SIDES = {
    "enumeration": dict(enumeration_limit=91),
    "rejection": dict(enumeration_limit=90, rejection_attempts=10**6, chain_moves=1),
    "chain": dict(enumeration_limit=90, rejection_attempts=1, chain_moves=500),
}


@pytest.mark.statistical
@pytest.mark.parametrize("side", SIDES)
def test_the_law_is_the_same_on_both_sides_of_the_switch(side):
    # 12 agents, three actions: 91 = C(14, 2) outcomes, the likeliest 57 times as likely as the
    # least.
    policy = make("energy", full(1, 3), gain=6.0, tau=2.0, seed=5, **SIDES[side])
    other = make("energy", full(1, 3), gain=6.0, tau=2.0, seed=3)
    law = energy_law(policy, 0, 12, 24)
    assert 10.0 < max(law.values()) / min(law.values()) < 1000.0
    assert policy.is_exact([12]) == (side == "enumeration")
    samples = outcomes(one_team(policy, 12, REPLICAS, side))
    assert chi2_law(samples, law)
    assert not chi2_law(samples, energy_law(other, 0, 12, 24))
    assert not chi2_law(samples, energy_law(policy, 0, 12, 24, base=log_coefficient))


@pytest.mark.statistical
def test_the_law_with_masks_beyond_enumeration():
    mask = ((True, False, True, True), (False, True, False, False))
    law = independent(
        [energy_law(make("energy", mask, gain=6.0), s, n, 13) for s, n in enumerate((8, 5))]
    )
    for options in (
        dict(rejection_attempts=10**6, chain_moves=1),
        dict(rejection_attempts=1, chain_moves=300),
    ):
        policy = make("energy", mask, gain=6.0, enumeration_limit=1, **options)
        draws = policy.sample(np.tile([8, 5], (REPLICAS, 1)), seed(str(options)))
        assert chi2_law(outcomes(draws), law, n_comparisons=2)
        np.testing.assert_array_equal(policy.is_exact([8, 5]), [False, True])


@pytest.mark.statistical
def test_a_chain_of_one_move_is_not_the_law_of_a_peaked_policy():
    options = dict(enumeration_limit=1, rejection_attempts=1)
    law = energy_law(make("energy", full(1, 3), gain=10.0, tau=10.0, seed=2), 0, 12, 24)
    assert max(law.values()) > 15.0 / 91.0
    short = make("energy", full(1, 3), gain=10.0, tau=10.0, seed=2, chain_moves=1, **options)
    long = make("energy", full(1, 3), gain=10.0, tau=10.0, seed=2, chain_moves=1000, **options)
    assert not chi2_law(outcomes(one_team(short, 12, 10_000, "short")), law)
    assert chi2_law(outcomes(one_team(long, 12, 10_000, "long")), law)


SHAPES = {
    # what makes a bound of tau f hard: maxima at the corners, inside, on an edge, a cancellation
    "convex": dict(signs=[1.0] * 8, gain=8.0),
    "concave": dict(signs=[-1.0] * 8, gain=16.0),
    "mixed": dict(signs=[1.0, -1.0] * 4, gain=12.0),
    "cancelling": dict(symmetric=True, gain=8.0),
    "flat": dict(gain=0.0),
}


@pytest.mark.statistical
@pytest.mark.parametrize("shape", SHAPES)
def test_rejection_is_exact_for_networks_of_every_shape(shape):
    # A bound that were exceeded would cut the peak off. Six agents, four actions: 84 outcomes.
    options = dict(enumeration_limit=1, rejection_attempts=2**31 - 1, chain_moves=1)
    policy = make("energy", full(1, 4), seed=5, **SHAPES[shape], **options)
    law = energy_law(policy, 0, 6, 12)
    samples = outcomes(one_team(policy, 6, REPLICAS, shape))
    assert chi2_law(samples, law)
    top = max(law.values())
    cut = {team: min(p, 0.6 * top) for team, p in law.items()}
    total = sum(cut.values())
    if shape in ("convex", "concave", "mixed"):
        assert not chi2_law(samples, {team: p / total for team, p in cut.items()})


@pytest.mark.statistical
@pytest.mark.parametrize("moves", [1, 3])
def test_moves_of_the_chain_keep_the_law(moves):
    # From an exact draw; a wrong proposal ratio or acceptance shows after a few moves.
    policy = make(
        "energy", full(1, 3), gain=12.0, seed=2, enumeration_limit=1, rejection_attempts=10**6
    )
    law = energy_law(policy, 0, 8, 16)
    ends = np.zeros((REPLICAS, 3), np.int64)
    core, first = policy._core, seed("moves")
    for i in range(REPLICAS):
        path, energies = np.zeros((moves, 3), np.int64), np.zeros(moves)
        report = core.trace(0, 0.5, 8, first % 2**60 + i, path, energies)
        assert report[1]
        ends[i] = path[-1]
    assert chi2_law(outcomes(ends), law)
    # the mutant accepts every independent proposal, which is half of the moves
    mixed = {team: 0.75 * p + 0.25 / len(law) for team, p in law.items()}
    assert not chi2_law(outcomes(ends), mixed)


@pytest.mark.statistical
def test_means_along_a_chain_are_those_of_the_enumeration():
    # 300 chains of 16 x 64 moves; each entry of E[h] and E[phi] within 6 standard errors of their
    # mean (1e-9 each, 35 entries). The mutant is another policy.
    policy = make("energy", full(1, 3), gain=8.0, seed=2, density_scale=2.0)
    other = make("energy", full(1, 3), gain=8.0, seed=3, density_scale=2.0)
    exact = [
        np.concatenate(
            [array(p.mean_action([12], 24)).ravel(), array(p.mean_features([12], 24)).ravel()]
        )
        for p in (policy, other)
    ]
    policy.enumeration_limit, policy.rejection_attempts, policy.chain_moves = 1, 1, 64
    counts = np.full((300, 1), 12)
    chains = np.concatenate(
        [
            array(policy.mean_action(counts, 24)).reshape(300, -1),
            array(policy.mean_features(counts, 24)).reshape(300, -1),
        ],
        axis=1,
    )
    error = chains.std(axis=0, ddof=1) / math.sqrt(300)
    assert (np.abs(chains.mean(axis=0) - exact[0]) <= 6.0 * error + 1e-12).all()
    assert (np.abs(chains.mean(axis=0) - exact[1]) > 6.0 * error + 1e-12).any()
    assert 0.0 < error[:3].max() < 0.01


# A million agents, and more.


@pytest.mark.statistical
@pytest.mark.parametrize(
    "options", [dict(rejection_attempts=10**6), dict(rejection_attempts=1, chain_moves=1000)]
)
def test_a_million_agents_have_the_law_of_the_enumeration(options):
    # Two actions: all 10^6 + 1 outcomes are summed here. DKW at 1e-9, band 0.033 for 10,000
    # draws: a CDF wrong by 0.07 is caught.
    n, draws = 10**6, 10_000
    policy = make("energy", full(1, 2), gain=8.0, seed=4, **options)
    samples = one_team(policy, n, draws, str(options))
    assert (samples.sum(axis=1) == n).all()
    h = np.arange(n + 1) / n
    theta, b = array(policy.theta)[0].astype(float), array(policy.b)[0]
    z = 0.5 * theta[:, :1] + theta[:, 1:2] * h + theta[:, 2:] * (1.0 - h)
    f = b @ np.maximum(z, 0.0) / math.sqrt(8)
    p = np.exp(f - f.max())
    cdf = np.cumsum(p) / p.sum()
    assert dkw_one_sample(samples[:, 0], lambda x: np.where(x < 0, 0.0, cdf[np.maximum(x, 0)]))
    uniform = (np.arange(n + 1) + 1.0) / (n + 1)
    assert not dkw_one_sample(
        samples[:, 0], lambda x: np.where(x < 0, 0.0, uniform[np.maximum(x, 0)])
    )
    mean = float(h @ p / p.sum())
    spread = math.sqrt(float((h - mean) ** 2 @ p / p.sum()))
    assert abs(samples[:, 0].mean() / n - mean) < 5.0 * spread / 100.0 * 1.5
    report = policy.diagnose(0, n, 2 * n, n_moves=20_000, seed=1)
    error = spread / math.sqrt(report.effective_sample_size)
    assert abs(report.mean_action[0] - mean) < 6.0 * error
    assert error < 0.1 * spread


@pytest.mark.parametrize("n", [10**6, 10**9, 2**53])
@pytest.mark.parametrize("family", [*NETWORKS, "tabular"])
def test_large_teams_are_drawn_whole(family, n):
    policy = three_policies("large")[family]
    draws = policy.sample(np.tile([n, n // 3], (200, 1)), 1, 2 * n)
    assert (draws >= 0).all()
    assert (draws.sum(axis=-1) == [n, n // 3]).all()
    assert (draws[:, 1, 2] == 0).all()
    assert len(np.unique(draws[:, 0], axis=0)) == 200
    if family != "tabular":
        action = array(policy.mean_action([n, n // 3], 2 * n))
        np.testing.assert_allclose(action.sum(axis=-1), 1.0, rtol=1e-12)
        actions = draws[:3]
        assert np.isfinite(array(policy.score(np.tile([n, n // 3], (3, 1)), actions))).all()
    if family == "energy":
        assert np.isfinite(array(policy.log_weight([n, n // 3], draws[0]))).all()
        size = math.comb(n + 2, 2)
        with pytest.raises(ValueError, match=rf"^log_prob: .*{n} agents .*{size} .*log_weight"):
            policy.log_prob([n, 0], [[n, 0, 0], [0, 0, 0]])


def test_a_simulator_plays_energy_teams_of_a_million():
    model = ring_model(100)
    policy = ltde.EnergyPolicy(model, 16, seed=1)
    simulator = ltde.Simulator(model, 10**8, n_replicas=2, seed=1)
    rollout = simulator.rollout(policy, 5)
    assert (rollout.actions.sum(axis=-1) == rollout.counts[:-1]).all()
    # h(s) stays random at any N: standard deviations far beyond those of a multinomial, 1e-3
    h = rollout.actions / rollout.counts[:-1, :, :, None]
    assert h.std() > 0.1


@pytest.mark.parametrize("actions", [2, 3])
@pytest.mark.parametrize("gain", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("n", [1, 2, 12, 10**6])
def test_diagnosis_is_sane(n, gain, actions):
    policy = make("energy", full(2, actions), gain=gain, seed=2)
    moves = 4000
    for i in range(4):
        report = policy.diagnose(1, n, 3 * n, n_moves=moves, seed=i)
        assert report.n_moves == moves
        assert 1 <= report.rejection_attempts <= policy.rejection_attempts
        assert report.exact or report.rejection_attempts == policy.rejection_attempts
        for rate in (report.independent_acceptance, report.exchange_acceptance):
            assert 0.0 <= rate <= 1.0
        assert 1.0 <= report.effective_sample_size <= moves
        assert report.mean_action.sum() == pytest.approx(1.0)
        if n <= 12 and report.effective_sample_size > 20.0:
            law = energy_law(policy, 1, n, 3 * n)
            mean = mean_of(law)
            square = sum(p * (np.array(team) / n - mean) ** 2 for team, p in law.items())
            error = np.sqrt(square / report.effective_sample_size)
            # a chain that never left the one likely team cannot know what it missed
            if max(law.values()) < 0.9:
                assert (np.abs(report.mean_action - mean) <= 6.0 * error + 1e-9).all()
    if gain == 0.0:
        assert report.exact
        assert report.independent_acceptance == 1.0
        assert report.rejection_attempts == 1
    if gain == 100.0 and n == 10**6:
        assert report.independent_acceptance < 0.5


def test_effective_sample_size_of_a_known_chain():
    # AR(1): n (1 - r) / (1 + r) within 25 % (its own standard error is about 5 % here).
    rng = generator("ar")
    n = 50_000
    for r in (0.0, 0.5, 0.9, 0.98):
        noise = rng.normal(size=n)
        chain = np.zeros(n)
        for i in range(1, n):
            chain[i] = r * chain[i - 1] + noise[i]
        size = ltde.energy._effective_size(chain)
        assert size == pytest.approx(n * (1.0 - r) / (1.0 + r), rel=0.25)


@pytest.mark.parametrize("n", [1, 2, 101, 10_000])
def test_effective_sample_size_lies_between_one_and_the_number_of_moves(n):
    rng = generator("sizes")
    for chain in (
        np.arange(n) % 2.0,  # perfectly antithetic
        rng.normal(size=n),
        np.arange(n) * 1.0,
        (np.arange(n) > n / 2) * 1.0,
        np.zeros(n),
    ):
        assert 1.0 <= ltde.energy._effective_size(chain) <= n


def test_the_switch_is_at_the_limit():
    policy = make("energy", enumeration_limit=21)
    np.testing.assert_array_equal(policy.is_exact([5, 20]), [True, True])  # 21 and 21 outcomes
    np.testing.assert_array_equal(policy.is_exact([6, 21]), [False, False])
    np.testing.assert_array_equal(policy.is_exact([[0, 0], [6, 1]]), [[True, True], [False, True]])
    policy.log_prob([5, 20], [[5, 0, 0], [20, 0, 0]])
    with pytest.raises(ValueError, match=r"^log_prob: a team of 6 agents has 28 .*= 21"):
        policy.log_prob([6, 0], [[6, 0, 0], [0, 0, 0]])
    assert torch.isfinite(policy.log_weight([6, 0], [[6, 0, 0], [0, 0, 0]])).all()


# Simulation.

START = (2, 1, 1)


def star_policy(family, **options):
    model = star_model(3, initial=np.array(START))
    policy = NETWORKS[family](model, 8, density_scale=3.0, **options)
    with torch.no_grad():
        policy.theta *= 5.0
    return model, policy


def energy_team_law(model, n_agents, policy, counts):
    """Stands in for `exact_law.team_law` when the policy is energy-based."""
    return independent([energy_law(policy, s, n, n_agents) for s, n in enumerate(counts)])


def oracle(family, policy, monkeypatch):
    """Return what the functions of `exact_law` take for this policy."""
    if family == "energy":
        monkeypatch.setattr(exact_law, "team_law", energy_team_law)
        return policy
    return lambda s, density: softmax_of(policy, s, density)


@pytest.mark.statistical
@pytest.mark.parametrize("family", NETWORKS)
def test_one_and_two_steps_have_the_exact_law(family, monkeypatch):
    model, policy = star_policy(family, seed=1)
    simulator = ltde.Simulator(model, 4, n_replicas=REPLICAS, seed=seed(f"two steps {family}"))
    rollout = simulator.rollout(policy, 2)
    mutants = [
        # agents that act independently with the same means, and a policy that ignores densities
        lambda s, mu: policy_mean(policy, s, max(round(4 * mu), 1)),
        lambda s, mu: policy_mean(policy, s, 1),
    ]
    if family == "softmax":
        mutants = mutants[1:]
    wrong = [joint_two_step(model, 4, mutant, START) for mutant in mutants]
    exact = oracle(family, policy, monkeypatch)
    first = outcomes(rollout.actions[0], rollout.counts[1])
    assert chi2_law(first, step_law(model, 4, exact, START), n_comparisons=2)
    both = outcomes(rollout.counts[1], rollout.counts[2])
    assert chi2_law(both, joint_two_step(model, 4, exact, START), n_comparisons=2)
    for law in wrong:
        assert not chi2_law(both, law, n_comparisons=2)


def policy_mean(policy, s, n):
    if isinstance(policy, ltde.SoftmaxPolicy):
        return softmax_of(policy, s, n / 4)
    return mean_of(energy_law(policy, s, n, 4))


@pytest.mark.statistical
@pytest.mark.parametrize("family", NETWORKS)
def test_the_restart_chain_and_sigma_have_the_exact_law(family, monkeypatch):
    model = star_model(3, initial=np.array([[2, 1, 0], [0, 0, 3]]), discount=0.6)
    policy, other = (
        NETWORKS[family](model, 8, density_scale=3.0, seed=i, tau=10.0) for i in range(2)
    )
    exact = oracle(family, policy, monkeypatch)
    different = other if family == "energy" else lambda s, mu: softmax_of(other, s, mu)
    simulator = ltde.Simulator(model, 3, n_replicas=REPLICAS, seed=seed(f"sigma {family}"))
    counts = simulator.rollout(policy, 3, restart="chain").counts[3]
    assert chi2_law(outcomes(counts), restart_chain_law(model, 3, exact, 3), n_comparisons=2)
    assert not chi2_law(outcomes(counts), restart_chain_law(model, 3, different, 3))
    draws = simulator.visitation(policy, 1)
    pairs = outcomes(draws.counts[0], draws.actions[0])
    assert chi2_law(pairs, visitation_law(model, 3, exact)[0], n_comparisons=2)
    assert not chi2_law(pairs, visitation_law(model, 3, different)[0])


def test_a_softmax_rollout_has_the_bits_of_the_function_in_torch():
    model = ring_model(70, discount=0.8)
    policy = ltde.SoftmaxPolicy(model, 16, density_scale=70.0, seed=1)
    twin = ltde.FunctionPolicy(lambda counts, n: array(policy.mean_action(counts, n)))
    record = ("counts", "actions", "rewards", "flows")
    for n_agents in (1, 300, 10**9):
        first, second = (
            ltde.Simulator(model, n_agents, n_replicas=3, seed=1).rollout(
                each, 10, restart="chain", record=record
            )
            for each in (policy, twin)
        )
        for name in record:
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_the_flow_of_a_softmax_policy_is_that_of_the_function_in_torch():
    for model in (ring_model(70), star_model(3)):
        policy = ltde.SoftmaxPolicy(model, 16, density_scale=5.0, seed=1, tau=3.0)
        twin = ltde.FunctionPolicy(lambda mu, n, p=policy: array(p.mean_action(mu, 1.0)))
        first, second = (
            ltde.Simulator(model, np.inf, seed=1).rollout(each, 50) for each in (policy, twin)
        )
        for name in ("counts", "actions", "rewards"):
            np.testing.assert_allclose(
                getattr(first, name), getattr(second, name), rtol=0.0, atol=1e-12
            )
        assert np.abs(first.counts[-1] - first.counts[0]).max() > 1e-3


@pytest.mark.parametrize("options", [{}, dict(enumeration_limit=20, rejection_attempts=2)])
@pytest.mark.parametrize("family", NETWORKS)
def test_bits_do_not_depend_on_threads_or_on_how_replicas_are_split(family, options):
    model = ring_model(140, discount=0.9)
    if family == "softmax":
        options = {}
    policy = NETWORKS[family](model, 4, seed=1, density_scale=140.0, **options)

    def play(n_replicas=4, first=0, threads=1):
        simulator = ltde.Simulator(
            model, 2000, n_replicas, seed=1, threads=threads, first_replica=first
        )
        rollout = simulator.rollout(policy, 6, restart="chain")
        draws = simulator.visitation(policy, 2)
        return rollout.counts, rollout.actions, rollout.rewards, draws.actions, draws.horizon

    whole = play()
    for first, second in zip(whole, play(threads=2), strict=True):
        np.testing.assert_array_equal(first, second)
    parts = [play(1, 0), play(3, 1, 2)]
    for array_, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(array_, np.concatenate([first, second], axis=1))


@pytest.mark.parametrize(
    "call",
    [
        lambda simulator, policy: simulator.rollout(policy, 2),
        lambda simulator, policy: simulator.rollout(policy, 2, restart="chain"),
        lambda simulator, policy: simulator.visitation(policy, 2),
        lambda simulator, policy: simulator.step(policy),
    ],
)
def test_an_energy_policy_has_no_flow(call):
    model, policy = star_policy("energy")
    simulator = ltde.Simulator(star_model(3), np.inf, seed=1)
    before = simulator.counts.copy()
    with pytest.raises(ValueError, match=r"^policy: .*n_agents = inf.*individual"):
        call(simulator, policy)
    np.testing.assert_array_equal(simulator.counts, before)
    assert simulator.n_steps == 0
    # what the message advises works
    alone = policy.individual(1000)
    flow = simulator.rollout(
        ltde.FunctionPolicy(lambda mu, n: np.array([[alone(s, x) for s, x in enumerate(mu[0])]])),
        2,
    )
    np.testing.assert_allclose(flow.counts.sum(axis=-1), 1.0)
    assert model.n_states == 3


@pytest.mark.statistical
def test_labelled_agents_that_act_by_the_individual_policy_have_the_team_law():
    # 3000 first steps; chi-square of the joint law of team actions and next counts.
    model, policy = star_policy("softmax", seed=1)
    other = star_policy("softmax", seed=2)[1]
    twin = ltde.AgentSimulator(model, 4, seed=seed("labelled"))
    actions, after = [], []
    decide = policy.individual()
    for _ in range(3000):
        twin.reset()
        rollout = twin.rollout(decide, 1)
        actions.append(rollout.actions[0])
        after.append(rollout.counts[1])
    samples = outcomes(np.array(actions), np.array(after))
    law, wrong = (
        step_law(model, 4, lambda s, mu, p=p: softmax_of(p, s, mu), START) for p in (policy, other)
    )
    assert chi2_law(samples, law)
    assert not chi2_law(samples, wrong)
    assert chi2_law(outcomes(ltde_step(model, policy)), team_marginal(law))


def ltde_step(model, policy):
    simulator = ltde.Simulator(model, 4, n_replicas=4000, seed=seed("step"))
    return simulator.step(policy).actions


def team_marginal(law):
    return exact_law.marginal(law, 0)


def test_labelled_agents_play_both_families():
    for family in NETWORKS:
        model, policy = star_policy(family, seed=1)
        alone = policy.individual(4) if family == "energy" else policy
        assert ltde.AgentSimulator(model, 4, seed=1).rollout(alone, 5).counts.shape == (6, 3)


# Numerics of the multinomial.


def test_log_prob_is_that_of_scipy():
    rng = generator("scipy")
    for n in (0, 1, 2, 15, 16, 17, 40, 170, 1000):
        policy = make("softmax", full(2, 4), gain=3.0, seed=n, dtype=torch.float64)
        for _ in range(8):
            pi = array(policy.mean_action([n, n]))
            actions = rng.multinomial(n, [0.25] * 4, size=2)
            expected = [
                stats.multinomial(n, p / p.sum()).logpmf(c)
                for p, c in zip(pi, actions, strict=True)
            ]
            got = array(policy.log_prob([n, n], actions))
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-11)
            table = ltde.TabularPolicy(pi)
            np.testing.assert_allclose(
                table.log_prob([n, n], actions), expected, rtol=1e-12, atol=1e-11
            )


@pytest.mark.parametrize("family", [*NETWORKS, "tabular"])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 17, 40])
def test_probabilities_of_all_compositions_sum_to_one(family, n):
    policy = three_policies("sums")[family]
    for s in range(2):
        law = enumerated(policy, [n, n], s)
        assert math.fsum(law.values()) == pytest.approx(1.0, abs=1e-12)
        assert all(p == 0.0 for team, p in law.items() if s == 1 and team[2] > 0)
        assert all(p > 0.0 for team, p in law.items() if s == 0 or team[2] == 0)


def reference_log_prob(policy, s, density, team):
    """Eq. (3.2) with softmax from the parameters, in 80 digits."""
    with mpmath.workdps(80):
        exact = mpmath.mpf
        theta = [[exact(float(w)) for w in row] for row in array(policy.theta)[s]]
        signs = [exact(float(b)) for b in array(policy.b)[s]]
        unit, scale = exact(policy.input_scale), exact(policy.density_scale)
        logits = {}
        for a in np.flatnonzero(array(policy.action_mask)[s]).tolist():
            z = [unit * (scale * exact(density) * row[0] + row[1 + a]) for row in theta]
            f = sum(b * max(x, 0) for b, x in zip(signs, z, strict=True)) / mpmath.sqrt(len(z))
            logits[a] = exact(policy.tau) * f
        norm = mpmath.log(sum(mpmath.exp(x) for x in logits.values()))
        result = mpmath.loggamma(sum(team) + 1)
        for a, c in enumerate(team):
            if c:
                result += c * (logits[a] - norm) - mpmath.loggamma(c + 1)
        return result


def likely_team(rng, n, pi):
    """Integer counts that sum to n, each within a few standard deviations of n pi."""
    counts = [int(n * p + rng.normal() * math.sqrt(n * p * (1.0 - p))) for p in pi[:-1]]
    return [*counts, n - sum(counts)]


@pytest.mark.parametrize("n", [10, 10**3, 10**6, 10**9, 10**12, 2**53 - 1])
def test_log_prob_has_all_its_digits_at_any_size(n):
    """Relative error against 80 digits.

    pi is computed with a relative error of a few eps, so log Pi with sum |c - n pi| times that, if
    the factors n pi are not also rounded: this is what a likely team may lose, and no more.
    """
    rng = generator(f"digits {n}")
    eps = np.finfo(float).eps
    for i in range(10):
        policy = make("softmax", full(1, 3), width=4, seed=i, dtype=torch.float64)
        pi = array(policy.mean_action([n], 2 * n))[0]
        team = likely_team(rng, n, pi)
        got = float(array(policy.log_prob([n], [team], 2 * n))[0])
        expected = reference_log_prob(policy, 0, 0.5, team)
        away = float(np.abs(np.array(team) - n * pi).sum())
        assert abs(got - expected) <= 64 * eps * (abs(float(expected)) + away + 30)


@pytest.mark.parametrize("tau", [1.0, 30.0, 100.0, 300.0, 1000.0, 1e5])
@pytest.mark.parametrize("n", [5, 10**9])
def test_log_prob_of_unlikely_teams(tau, n):
    """Rare actions keep their digits: pi(a) of 1e-20 or below 1e-308 is no probability of 0."""
    policy = make("softmax", full(1, 3), width=4, seed=3, tau=tau, dtype=torch.float64)
    for team in ([n - 2, 1, 1], [1, n - 2, 1], [1, 1, n - 2], [0, 0, n], [0, n, 0], [n, 0, 0]):
        got = float(array(policy.log_prob([n], [team], n))[0])
        expected = float(reference_log_prob(policy, 0, 1.0, team))
        assert got == pytest.approx(expected, rel=1e-11, abs=1e-9)


@pytest.mark.parametrize("tau", [1.0, 100.0, 1000.0])
def test_gradients_of_unlikely_teams_are_the_score(tau):
    policy = make("softmax", full(1, 3), width=4, seed=3, tau=tau, dtype=torch.float64)
    for team in ([3, 1, 1], [1, 3, 1], [1, 1, 3]):
        assert_score(policy, [5], [team])


def test_a_table_with_rare_actions():
    table = ltde.TabularPolicy([[1e-20, 1.0 - 1e-20, 0.0], [1e-300, 0.5, 0.5]])
    got = table.log_prob([3, 3], [[1, 2, 0], [1, 1, 1]])
    expected = [math.log(3e-20), math.log(6 * 0.25) + math.log(1e-300)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert table.log_prob([3, 3], [[1, 1, 1], [0, 3, 0]]).tolist() == [-math.inf, -3 * math.log(2)]


@pytest.mark.parametrize("family", NETWORKS)
def test_masked_actions_have_log_prob_minus_infinity_and_no_gradient(family):
    policy = make(family)
    with torch.no_grad():
        policy.theta[1, :, 3] = 1e6  # of the masked action
    fine, forbidden = [[1, 1, 1], [2, 1, 0]], [[1, 1, 1], [1, 1, 1]]
    log_prob = policy.log_prob([[3, 3], [3, 3]], [fine, forbidden])
    assert torch.isfinite(log_prob[0]).all()
    assert log_prob[1, 1] == -math.inf
    log_prob[0].sum().backward()
    assert torch.isfinite(policy.theta.grad).all()
    assert not policy.theta.grad[1, :, 3].any()
    assert policy.theta.grad.any()
    # nor does one forbidden team spoil the gradient of the others
    policy.theta.grad = None
    policy.log_prob([[3, 3], [3, 3]], [fine, forbidden]).sum().backward()
    assert torch.isfinite(policy.theta.grad).all()


@pytest.mark.parametrize("family", NETWORKS)
def test_an_empty_team_has_probability_one(family):
    policy = make(family)
    log_prob = policy.log_prob([0, 0], np.zeros((2, 3), int))
    assert log_prob.tolist() == [0.0, 0.0]
    log_prob.sum().backward()
    assert not policy.theta.grad.any()
    assert not policy.score([0, 0], np.zeros((2, 3), int)).any()
    assert not policy.sample([0, 0], 1).any()
    if family == "energy":
        assert policy.log_weight([0, 0], np.zeros((2, 3), int)).tolist() == [0.0, 0.0]
    mean = array(policy.mean_action([0, 0]))
    np.testing.assert_allclose(mean.sum(axis=-1), 1.0)
    assert mean[1, 2] == 0.0


# Extremes.


@pytest.mark.parametrize("tau", [1e-300, 1e-3, 1e6, 1e50])
@pytest.mark.parametrize("gain", [1.0, 1e10, 1e100])
@pytest.mark.parametrize("family", NETWORKS)
def test_extreme_weights_and_temperatures_are_played(family, tau, gain):
    # In the limit of tau f the largest f is played; no law ever holds a NaN.
    policy = make(family, gain=gain, tau=tau, seed=1, dtype=torch.float64)
    draws = policy.sample(np.tile([6, 6], (20, 1)), 1)
    assert (draws.sum(axis=-1) == 6).all()
    assert (draws >= 0).all()
    assert (draws[:, 1, 2] == 0).all()
    if tau * gain > 1e20:
        for s in range(2):
            teams = list(allowed_teams(MASK[s], 6))
            if family == "softmax":
                teams = [team for team in teams if max(team) == 6]
            best = max(teams, key=lambda team: network(policy, s, 0.5, np.array(team) / 6))
            np.testing.assert_array_equal(draws[:, s], np.tile(best, (20, 1)))
    mean = array(policy.mean_action([6, 6]))
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(mean.sum(axis=-1), 1.0)


@pytest.mark.parametrize("family", NETWORKS)
def test_one_state_one_action_one_agent(family):
    for states, actions, n in ((1, 1, 1), (1, 1, 10**6), (1, 3, 1), (3, 1, 5)):
        policy = make(family, full(states, actions), width=1)
        counts = np.full(states, n)
        draws = policy.sample(counts, 1)
        assert draws.sum() == states * n
        log_prob = array(policy.log_prob(counts, draws))
        assert (log_prob <= 1e-12).all()
        if actions == 1:
            np.testing.assert_allclose(log_prob, 0.0, atol=1e-12)
            np.testing.assert_allclose(array(policy.score(counts, draws)), 0.0, atol=1e-9)
    if family == "energy":
        policy = make(family, full(1, 1))
        report = policy.diagnose(0, 10)
        assert report.mean_action.tolist() == [1.0]


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("family", [*NETWORKS, "tabular"])
def test_no_replicas_at_all(family, lead):
    policy = three_policies("none")[family]
    counts, actions = np.zeros((*lead, 2), int), np.zeros((*lead, 2, 3), int)
    assert policy.mean_action(counts).shape == (*lead, 2, 3)
    assert policy.log_prob(counts, actions).shape == (*lead, 2)
    assert policy.score(counts, actions).shape[: len(lead)] == lead
    drawn = no_panic(lambda: policy.sample(counts, 1))
    assert drawn.shape == (*lead, 2, 3)


def no_panic(call):
    """Turn a panic of the core, which is a BaseException, into an ordinary failure."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise AssertionError(f"the core panicked: {error}") from None
        raise


@pytest.mark.parametrize("family", [*NETWORKS, "tabular"])
def test_shapes_and_kinds_of_input(family):
    policy = three_policies("shapes")[family]
    counts = generator("shapes").integers(0, 9, (2, 3, 4, 2))
    expected = policy.sample(counts, 7)
    assert expected.shape == (2, 3, 4, 2, 3)
    np.testing.assert_array_equal(expected.sum(axis=-1), counts)
    flat = policy.sample(counts.reshape(-1, 2), 7)
    np.testing.assert_array_equal(flat, expected.reshape(-1, 2, 3))
    log_prob = array(policy.log_prob(counts, expected))
    frozen = counts.copy()
    frozen.flags.writeable = False
    padded = np.zeros((2, 3, 4, 4), np.int64)
    padded[..., ::2] = counts
    totals = counts.sum(axis=-1, keepdims=True)
    for same, n_agents in (
        (frozen, None),
        (np.asfortranarray(counts), None),
        (padded[..., ::2], None),
        (counts[::-1, :, ::-1][::-1, :, ::-1], None),
        (counts.astype(np.uint8), None),
        (counts.astype(np.int16), np.maximum(totals, 1)),
        (counts.astype(np.uint64), np.maximum(totals, 1).astype(np.float32)),
        (counts.astype(">i8"), np.maximum(totals, 1).tolist()),
        (counts.tolist(), None),
        (torch.from_numpy(counts), None),
    ):
        np.testing.assert_array_equal(policy.sample(same, 7, n_agents), expected)
        for actions in (np.asfortranarray(expected), expected.copy(), expected.tolist()):
            if isinstance(actions, np.ndarray):
                actions.flags.writeable = False
            got = policy.log_prob(same, actions, n_agents)
            np.testing.assert_array_equal(array(got), log_prob)
    assert not np.array_equal(policy.sample(counts, 8), expected)
    row = counts[0, 0, 0]
    assert policy.sample(row, 7).shape == (2, 3)
    np.testing.assert_array_equal(policy.sample(row, 7), policy.sample(row[None], 7)[0])


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that torch makes meanwhile."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: D105
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel())
        return out


def test_log_prob_of_many_replicas_does_not_hold_all_energies_at_once():
    # 400 replicas of a team with 1891 outcomes, M = 64: 48 million inputs of neurons.
    policy = make("energy", full(1, 3), width=64)
    counts = np.full((400, 1), 60)
    actions = policy.sample(counts, 1)
    with torch.no_grad(), LargestTensor() as largest:
        together = policy.log_prob(counts, actions)
    assert 1891 * 64 <= largest.size < 5_000_000
    alone = [array(policy.log_prob(counts[:1], actions[i : i + 1])) for i in range(0, 400, 50)]
    np.testing.assert_allclose(together[::50], np.concatenate(alone), rtol=1e-13)


# Decentralised execution.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_individual_policy_of_a_softmax_team_is_its_mean_action(dtype):
    policy = make("softmax", gain=3.0, density_scale=2.0, tau=2.0, dtype=dtype)
    alone = policy.individual()
    for n, total in ((0, 5), (1, 5), (3, 7), (5, 5), (10**9, 3 * 10**9)):
        mean = array(policy.mean_action([n, n], total))
        for s in range(2):
            np.testing.assert_allclose(alone(s, n / total), mean[s], rtol=1e-13, atol=1e-16)
            np.testing.assert_allclose(alone(s, n / total), softmax_of(policy, s, n / total))
    for density in (0.0, 1e-300, 1e-9, 0.123456789, 1.0):
        row = alone(1, density)
        assert row.shape == (3,)
        assert row.sum() == pytest.approx(1.0)
        assert row[2] == 0.0
    # the weights of now, not of later
    before = alone(0, 0.3)
    with torch.no_grad():
        policy.theta.zero_()
    np.testing.assert_array_equal(alone(0, 0.3), before)
    np.testing.assert_allclose(policy.individual()(0, 0.3), 1.0 / 3.0)


def test_the_individual_policy_of_an_energy_team_is_its_mean():
    policy = make("energy", gain=6.0, density_scale=2.0, dtype=torch.float64)
    alone = policy.individual(30)
    for s, n in product(range(2), (1, 2, 7, 30)):
        expected = mean_of(energy_law(policy, s, n, 30))
        np.testing.assert_allclose(alone(s, n / 30), expected, rtol=1e-11)
        np.testing.assert_allclose(
            alone(s, n / 30), array(policy.mean_action([n, n], 30))[s], rtol=1e-12
        )
    for density in (0.0, 1e-300, 1e-9, 0.123, 0.999, 1.0):
        for formula in ("mean", "dirac"):
            row = policy.individual(30, formula)(1, density)
            assert row.shape == (3,)
            assert row.sum() == pytest.approx(1.0)
            assert row[2] == 0.0
    before = alone(0, 0.3)
    with torch.no_grad():
        policy.theta.zero_()
    np.testing.assert_array_equal(alone(0, 0.3), before)
    np.testing.assert_allclose(policy.individual(30)(0, 0.3), 1.0 / 3.0)


def dirac_formula(policy, s, n, total):
    """Pi_s(delta_a)^(1 / n), normalised, from log_prob: the formula under Eq. (3.2)."""
    logs = []
    for a in range(3):
        counts, actions = np.zeros(2, int), np.zeros((2, 3), int)
        counts[s] = actions[s, a] = n
        logs.append(float(array(policy.log_prob(counts, actions, total))[s]) / n)
    weights = np.exp(np.array(logs) - max(logs))
    return weights / weights.sum()


@pytest.mark.parametrize("n", [1, 2, 10, 40])
def test_the_dirac_formula_recovers_a_multinomial_team_and_not_an_energy_team(n):
    options = dict(gain=12.0, density_scale=2.0, dtype=torch.float64, seed=1)
    softmax, energy = (make(family, **options) for family in ("softmax", "energy"))
    for s in range(2):
        pi = softmax_of(softmax, s, 0.5)
        np.testing.assert_allclose(dirac_formula(softmax, s, n, 2 * n), pi, rtol=1e-11)
        mean = energy.individual(2 * n)(s, 0.5)
        dirac = energy.individual(2 * n, "dirac")(s, 0.5)
        np.testing.assert_allclose(dirac_formula(energy, s, n, 2 * n), dirac, rtol=1e-11)
        if n == 1:  # one agent: its team is its action
            np.testing.assert_allclose(dirac, mean, rtol=1e-11)
        else:
            assert np.abs(dirac - mean).max() > 0.003


def test_the_dirac_formula_tends_to_uniform_and_the_mean_does_not():
    policy = make("energy", full(1, 3), gain=12.0, seed=1)
    gaps = {"dirac": [], "mean": []}
    sizes = [10, 10**2, 10**3, 10**4, 10**6]
    for formula, n in product(gaps, sizes):
        row = policy.individual(2 * n, formula)(0, 0.5)
        gaps[formula].append(np.abs(row - 1.0 / 3.0).max())
    dirac = np.array(gaps["dirac"])
    assert (np.diff(dirac) < 0.0).all()
    np.testing.assert_allclose(dirac[1:] * sizes[1:], dirac[1] * sizes[1], rtol=0.1)  # like 1 / n
    assert min(gaps["mean"]) > 0.02


# Bad input.

EITHER = (TypeError, ValueError, OverflowError)
SHARED = {
    "counts of wrong shape": (
        lambda p: p.sample([1, 2, 3], 1),
        ValueError,
        r"^counts: expected shape \(\.\.\., 2\), got \(3,\)$",
    ),
    "a number": (lambda p: p.sample(3, 1), ValueError, r"^counts: expected shape .*got \(\)$"),
    "float counts": (
        lambda p: p.sample([1.0, 2.0], 1),
        TypeError,
        r"^counts: expected integers, got dtype float64$",
    ),
    "bool counts": (lambda p: p.sample([True, False], 1), TypeError, r"^counts: .*dtype bool$"),
    "negative counts": (
        lambda p: p.sample([[1, 2], [3, -4]], 1),
        ValueError,
        r"^counts\[1, 1\]: expected a number >= 0, got -4$",
    ),
    "counts that wrap": (
        lambda p: p.sample(np.array([[1, 2], [2**63 + 5, 0]], np.uint64), 1),
        EITHER,
        r"^counts\[1, 0\]: .*9223372036854775813",
    ),
    "counts beyond 2^53": (
        lambda p: p.sample([2**53 + 2, 0], 1),
        EITHER,
        r"^counts\[0\]: .*2\^53.*9007199254740994",
    ),
    "no agents": (
        lambda p: p.sample([1, 2], 1, 0),
        ValueError,
        r"^n_agents: expected a number > 0, got 0$",
    ),
    "negative agents": (lambda p: p.sample([1, 2], 1, -3), ValueError, r"^n_agents: .*got -3$"),
    "nan agents": (lambda p: p.sample([1, 2], 1, math.nan), ValueError, r"^n_agents: .*got nan$"),
    "no agents in one row": (
        lambda p: p.sample([[1, 2]] * 3, 1, [[3], [0], [3]]),
        ValueError,
        r"^n_agents\[1.*\]: expected a number > 0, got 0",
    ),
    "n_agents without the last axis": (
        lambda p: p.sample([[1, 2]] * 3, 1, [3, 3, 3]),
        ValueError,
        r"^n_agents: expected .*shape.*\(3, 1\).*got \(3,\)$",
    ),
    "n_agents as text": (lambda p: p.sample([1, 2], 1, "3"), EITHER, r"^n_agents: "),
    "n_agents complex": (lambda p: p.sample([1, 2], 1, 3j), EITHER, r"^n_agents: "),
    "actions of wrong shape": (
        lambda p: p.log_prob([1, 2], [[1, 0], [2, 0]]),
        ValueError,
        r"^actions: expected shape \(2, 3\), got \(2, 2\)$",
    ),
    "float actions": (
        lambda p: p.log_prob([1, 2], [[1.0, 0, 0], [2, 0, 0]]),
        TypeError,
        r"^actions: expected integers, got dtype float64$",
    ),
    "actions that do not sum": (
        lambda p: p.log_prob([1, 2], [[1, 0, 0], [2, 1, 0]]),
        ValueError,
        r"^actions\[1\]: expected .* sum to counts = 2, got \[2, 1, 0\]$",
    ),
    "negative actions": (
        lambda p: p.score([[1, 2]], [[[2, -1, 0], [2, 0, 0]]]),
        ValueError,
        r"^actions\[0, 0\]: expected numbers >= 0 .* got \[2, -1, 0\]$",
    ),
    "actions whose sum wraps": (
        lambda p: p.log_prob([1, 0], [[2**63 - 1, 2**63 - 1, 3], [0, 0, 0]]),
        EITHER,
        r"^actions\[0\]: ",
    ),
    "seed below": (lambda p: p.sample([1, 2], -1), ValueError, r"^seed: .*got -1$"),
    "seed above": (lambda p: p.sample([1, 2], 2**64), ValueError, r"^seed: .*18446744073709551616"),
    "seed no integer": (lambda p: p.sample([1, 2], 1.5), TypeError, r"^seed: .*got 1\.5$"),
}


@pytest.mark.parametrize("family", [*NETWORKS, "tabular"])
@pytest.mark.parametrize("case", SHARED)
def test_bad_input_is_named(case, family):
    call, error, message = SHARED[case]
    with pytest.raises(error, match=message):
        no_panic(lambda: call(three_policies("bad")[family]))


SOFTMAX = {
    "negative densities": (lambda p: p.mean_action([0.5, -0.5]), r"^counts\[1\]: .*got -0\.5$"),
    "nan densities": (lambda p: p.mean_action([math.nan, 0.5]), r"^counts\[0\]: .*got nan$"),
    "infinite densities": (lambda p: p.outputs([math.inf, 0.5]), r"^counts\[0\]: .*got inf$"),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("case", SOFTMAX)
def test_bad_densities_are_named(case):
    call, message = SOFTMAX[case]
    with pytest.raises(ValueError, match=message):
        call(make("softmax"))


ENERGY = {
    "float counts": (lambda p: p.mean_action([1.0, 2.0]), TypeError, r"^counts: .*float64$"),
    "float counts of log_weight": (
        lambda p: p.log_weight([1.0, 2.0], [[1, 0, 0], [2, 0, 0]]),
        TypeError,
        r"^counts: .*float64$",
    ),
    "float counts of is_exact": (lambda p: p.is_exact([1.0, 2.0]), TypeError, r"^counts: "),
    "seed of means": (lambda p: p.mean_features([1, 2], seed=-1), ValueError, r"^seed: .*got -1$"),
    "seed of score": (
        lambda p: p.score([1, 0], [[1, 0, 0], [0, 0, 0]], seed=0.5),
        TypeError,
        r"^seed: .*got 0\.5$",
    ),
    "state": (lambda p: p.diagnose(2, 5), ValueError, r"^state: .*\[0, 2\), got 2$"),
    "state of wrong type": (lambda p: p.diagnose("a", 5), TypeError, r"^state: .*'a'$"),
    "nobody": (lambda p: p.diagnose(0, 0), ValueError, r"^n: .*got 0$"),
    "fewer than there are": (lambda p: p.diagnose(0, 5, 4), ValueError, r"^n_agents: .*got 4$"),
    "no moves": (lambda p: p.diagnose(0, 5, n_moves=0), ValueError, r"^n_moves: .*got 0$"),
    "seed of diagnose": (lambda p: p.diagnose(0, 5, seed=2**64), ValueError, r"^seed: "),
    "nobody acts": (lambda p: p.individual(0), ValueError, r"^n_agents: .*got 0$"),
    "infinitely many": (lambda p: p.individual(math.inf), EITHER, r"^n_agents: .*got inf$"),
    "formula": (
        lambda p: p.individual(5, "median"),
        ValueError,
        r"^formula: expected \"mean\" or \"dirac\", got 'median'$",
    ),
}


@pytest.mark.parametrize("case", ENERGY)
def test_bad_input_of_an_energy_policy_is_named(case):
    call, error, message = ENERGY[case]
    with pytest.raises(error, match=message):
        call(make("energy"))


ARGUMENTS = [
    (dict(width=0), ValueError, r"^width: expected an integer in \[1, .*got 0$"),
    (dict(width=-2), ValueError, r"^width: .*got -2$"),
    (dict(width=2.0), TypeError, r"^width: expected an integer, got 2\.0$"),
    (dict(width=True), TypeError, r"^width: .*got True$"),
    (dict(width=7, symmetric=True), ValueError, r"^width: expected an even .*got 7$"),
    *[
        (dict([(name, value)]), error, rf"^{name}: expected a .*number > 0, got {shown}$")
        for name in ("tau", "density_scale", "input_scale")
        for value, error, shown in (
            (0.0, ValueError, r"0\.0"),
            (-1, ValueError, "-1"),
            (math.nan, ValueError, "nan"),
            (math.inf, ValueError, "inf"),
            ("1", TypeError, "'1'"),
            (None, TypeError, "None"),
            (True, TypeError, "True"),
        )
    ],
    (dict(seed=-1), ValueError, r"^seed: .*got -1$"),
    (dict(seed=2**64), ValueError, r"^seed: .*got 18446744073709551616$"),
    (dict(seed=None), TypeError, r"^seed: .*got None$"),
    (dict(dtype=torch.float16), ValueError, r"^dtype: expected .*, got torch\.float16$"),
    (dict(dtype=torch.int64), ValueError, r"^dtype: expected .*, got torch\.int64$"),
    (dict(dtype="float32"), EITHER, r"^dtype: expected .*, got '?float32'?$"),
]


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_bad_arguments_are_named(family, arguments, error, message):
    with pytest.raises(error, match=message):
        make(family, **arguments)


@pytest.mark.parametrize("name", ["enumeration_limit", "rejection_attempts", "chain_moves"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_efforts_are_named(name, value, error):
    with pytest.raises(error, match=rf"^{name}: expected an integer.*got {value}$"):
        make("energy", **{name: value})


@pytest.mark.parametrize("family", NETWORKS)
def test_a_policy_of_another_model_is_refused(family):
    policy = NETWORKS[family](complete_model(3), 4)
    for model, message in (
        (ring_model(4), r"^policy: made for 3 states and 3 actions, the model has 4 and 3$"),
        (path_model(3), r"^policy: made for 3 states and 3 actions, the model has 3 and 2$"),
        (star_model(3), r"^policy: allows action 2 in state 1, .*action_mask .* forbids$"),
    ):
        simulator = ltde.Simulator(model, 5, seed=1)
        before = simulator.counts.copy()
        for call in (
            lambda s: s.rollout(policy, 2),
            lambda s: s.rollout(policy, 2, restart="chain"),
            lambda s: s.visitation(policy, 2),
            lambda s: s.step(policy),
        ):
            with pytest.raises(ValueError, match=message):
                call(simulator)
        np.testing.assert_array_equal(simulator.counts, before)
        assert simulator.n_steps == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", NETWORKS)
def test_weights_that_are_not_finite_are_named(family, value):
    policy = make(family)
    with torch.no_grad():
        policy.theta[1, 2, 0] = value
    simulator = ltde.Simulator(model_of(MASK), 5, seed=1)
    message = r"^theta\[1, 2, 0\]: expected a finite number .*, got (NaN|-?inf)$"
    calls = [
        lambda: policy.sample([1, 2], 1),
        lambda: simulator.rollout(policy, 2),
        lambda: simulator.visitation(policy, 2),
    ]
    if family == "energy":
        calls += [
            lambda: policy.mean_action([1, 2]),
            lambda: policy.score([1, 0], [[1, 0, 0], [0, 0, 0]]),
            lambda: policy.diagnose(1, 2),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 8, 3), (3, 8, 4), (1, 8, 4), (2, 7, 4), (2, 8)])
@pytest.mark.parametrize("family", NETWORKS)
def test_parameters_of_another_shape_are_refused(family, shape):
    # action_mask (2, 3) and b (2, 8) say what theta must be
    policy = make(family)
    policy.theta = torch.nn.Parameter(torch.zeros(shape))
    simulator = ltde.Simulator(model_of(MASK), 5, seed=1)
    for call in (
        lambda: simulator.rollout(policy, 2),
        lambda: policy.sample([1, 2], 1),
        lambda: policy.mean_action([1, 2]),
    ):
        with pytest.raises(
            ValueError, match=r"^(theta: expected|policy: made for|counts: expected)"
        ):
            no_panic(call)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("family", NETWORKS)
def test_parameters_of_another_dtype_are_refused(family, dtype):
    policy = make(family)
    policy.theta = torch.nn.Parameter(policy.theta.detach().to(dtype))
    with pytest.raises(EITHER, match=r"^theta: expected .*float32.*float64.*, got "):
        policy.sample([1, 2], 1)


@pytest.mark.parametrize("family", NETWORKS)
def test_a_state_without_actions_is_refused(family):
    policy = make(family)
    policy.action_mask[1] = False
    for call in (lambda: policy.sample([1, 2], 1), lambda: policy.mean_action([1, 2])):
        with pytest.raises(ValueError, match=r"^action_mask\[1\]: "):
            no_panic(call)


@pytest.mark.parametrize("family", NETWORKS)
def test_a_state_dict_of_another_model_is_refused(family):
    policy = make(family)
    for other in (make(family, full(3, 3)), make(family, full(2, 4)), make(family, width=4)):
        with pytest.raises(RuntimeError, match="theta"):
            policy.load_state_dict(other.state_dict())


# Random numbers.


@pytest.mark.parametrize("family", NETWORKS)
def test_global_generators_are_left_alone(family):
    def states():
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), *rest)

    before = states()
    policy = make(family, seed=3)
    actions = policy.sample([[5, 4]], 1)
    policy.log_prob([[5, 4]], actions).sum().backward()
    policy.score([[5, 4]], actions)
    policy.mean_action([[5, 4]])
    ltde.Simulator(model_of(MASK), 9, seed=1).rollout(policy, 2)
    ltde.Simulator(model_of(MASK), 9, seed=1).visitation(policy, 2)
    if family == "energy":
        policy.enumeration_limit = 1
        policy.mean_features([5, 4])
        policy.diagnose(0, 5)
        policy.individual(9)(0, 0.5)
    else:
        policy.individual()(0, 0.5)
    copy.deepcopy(policy)
    assert states() == before
    # and what they hold plays no part
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again = make(family, seed=3)
    assert torch.equal(again.theta, policy.theta)
    assert torch.equal(again.b, policy.b)
    np.testing.assert_array_equal(again.sample([[5, 4]], 1), actions)


def test_initial_weights_are_those_of_the_algorithms():
    # N(0, 1 / d), signs +-1; DKW at 1e-9 of 30,720 entries: a standard deviation wrong by 8 %.
    policy = make("softmax", full(3, 4), width=2048, dtype=torch.float64)
    entries = array(policy.theta).ravel()
    assert dkw_one_sample(entries, stats.norm(0.0, 5**-0.5).cdf)
    assert not dkw_one_sample(entries, stats.norm(0.0, 0.5).cdf)
    assert set(policy.b.unique().tolist()) == {-1.0, 1.0}
    assert abs(policy.b.mean()) < 6.0 / math.sqrt(3 * 2048)
    assert policy.theta.requires_grad
    assert not policy.b.requires_grad
    assert [name for name, _ in policy.named_parameters()] == ["theta"]


def test_seeds_of_initial_weights():
    seeds = [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    for family in NETWORKS:
        weights = [make(family, seed=i).theta for i in seeds]
        for i, first in enumerate(weights):
            for second in weights[:i]:
                assert not torch.equal(first, second)
    # one seed, one start: both families and both dtypes
    first = make("softmax", seed=5, dtype=torch.float64)
    for family, dtype in product(NETWORKS, (torch.float32, torch.float64)):
        other = make(family, seed=5, dtype=dtype)
        assert torch.equal(other.theta, first.theta.to(dtype))
        assert torch.equal(other.b, first.b.to(dtype))


@pytest.mark.parametrize("family", NETWORKS)
def test_the_symmetric_start_is_the_uniform_policy(family):
    policy = make(family, symmetric=True, gain=3.0, tau=5.0)
    assert torch.equal(policy.theta[:, :4], policy.theta[:, 4:])
    assert torch.equal(policy.b[:, :4], -policy.b[:, 4:])
    mean = array(policy.mean_action([5, 3]))
    np.testing.assert_allclose(mean, [[1 / 3] * 3, [0.5, 0.5, 0.0]], rtol=1e-14)
    np.testing.assert_allclose(core_outputs(policy, np.array([0.6, 0.4]), True), 0, atol=1e-15) if (
        family == "softmax"
    ) else None


def test_importing_ltde_and_playing_tables_does_not_import_torch():
    code = """
import sys, ltde
table = ltde.TabularPolicy([[0.5, 0.5]])
table.sample([3], 1), table.mean_action([3]), table.score([3], [[1, 2]]), table.individual()
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False"]


# Life of a policy.


def behaves_like(policy, other):
    counts = np.tile([40, 30], (20, 1))
    actions = policy.sample(counts, 3)
    np.testing.assert_array_equal(other.sample(counts, 3), actions)
    small = policy.sample([5, 3], 4)
    np.testing.assert_array_equal(
        array(other.log_prob([5, 3], small)), array(policy.log_prob([5, 3], small))
    )
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", NETWORKS)
def test_a_policy_is_copied_pickled_and_saved(family, dtype):
    policy = make(family, gain=2.0, tau=3.0, density_scale=4.0, input_scale=0.5, dtype=dtype)
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    for other in (
        copy.deepcopy(policy),
        copy.copy(policy),
        pickle.loads(pickle.dumps(policy)),
        torch.load(file, weights_only=False),
    ):
        assert behaves_like(policy, other)
        assert repr(other) == repr(policy)
    clone = copy.deepcopy(policy)
    with torch.no_grad():
        clone.theta += 1.0
    assert not torch.equal(clone.theta, policy.theta)
    file = io.BytesIO()
    torch.save(policy.state_dict(), file)
    file.seek(0)
    fresh = make(family, tau=3.0, density_scale=4.0, input_scale=0.5, seed=9, dtype=dtype)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert behaves_like(policy, fresh)
    for text in ("n_states=2", "width=8", "n_actions=3", "tau=3", "input_scale=0.5"):
        assert text in repr(policy)
    assert (policy.n_states, policy.width, policy.n_actions, policy.stationary) == (2, 8, 3, True)


@pytest.mark.parametrize("family", NETWORKS)
def test_a_policy_changes_its_dtype(family):
    policy = make(family, gain=2.0)
    double = copy.deepcopy(policy).double()
    assert double.theta.dtype == double.b.dtype == torch.float64
    assert double.action_mask.dtype == torch.bool
    assert behaves_like(policy, double)  # the same numbers, and the core sums in float64 anyway
    assert behaves_like(policy, double.float())


@pytest.mark.parametrize("family", NETWORKS)
def test_policies_without_gradients(family):
    expected = make(family)
    frozen = make(family).requires_grad_(False)
    assert behaves_like(expected, frozen)
    assert not frozen.log_prob([1, 0], [[1, 0, 0], [0, 0, 0]]).requires_grad
    frozen.score([1, 0], [[1, 0, 0], [0, 0, 0]])
    simulator = ltde.Simulator(model_of(MASK), 5, seed=1)
    with torch.inference_mode():
        inside = make(family)
        assert behaves_like(expected, inside)
        assert behaves_like(expected, expected)
        inside.score([1, 0], [[1, 0, 0], [0, 0, 0]])
        simulator.rollout(inside, 2)
        simulator.visitation(expected, 2)
    with torch.no_grad():
        assert behaves_like(expected, expected)
    assert behaves_like(expected, expected.eval())


@pytest.mark.parametrize("family", NETWORKS)
def test_gradients_flow_through_what_is_documented(family):
    policy = make(family)
    actions = policy.sample([5, 3], 1)
    results = [policy.log_prob([5, 3], actions)]
    if family == "softmax":
        results += [policy.outputs([5, 3]), policy.mean_action([5, 3])]
    else:
        results += [policy.log_weight([5, 3], actions)]
    for result in results:
        assert result.dtype == torch.float64
        policy.theta.grad = None
        (result * torch.arange(1.0, 1.0 + result.numel()).reshape(result.shape)).sum().backward()
        assert policy.theta.grad.abs().max() > 0.0


@pytest.mark.parametrize("family", NETWORKS)
def test_threads_share_a_policy(family):
    policy = make(
        family, full(100, 3), **({} if family == "softmax" else {"enumeration_limit": 30})
    )
    counts = np.full((40, 100), 12)
    expected = policy.sample(counts, 1)
    failures = []

    def work():
        try:
            for _ in range(10):
                np.testing.assert_array_equal(policy.sample(counts, 1), expected)
                ltde.Simulator(model_of(full(100, 3)), 500, seed=1).rollout(policy, 3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", NETWORKS)
def test_a_forked_child_samples_the_same(family):
    policy = make(family, full(100, 3))
    counts = np.full((3, 100), 9)

    def play():
        simulator = ltde.Simulator(model_of(full(100, 3)), 900, seed=1, threads=2)
        return policy.sample(counts, 1), simulator.rollout(policy, 3).actions

    expected = play()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if all(map(np.array_equal, play(), expected)) else 2
        finally:
            os._exit(status)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status = -1
    assert status == 0


@pytest.mark.parametrize("work", ["mean", "diagnosis"])
def test_a_signal_stops_a_long_chain(work):
    # 2 million moves of 1024 neurons: about 4 s if nobody listens.
    policy = make(
        "energy", width=1024, gain=1e5, rejection_attempts=1, enumeration_limit=1, chain_moves=1
    )
    moves = 2**21
    if work == "mean":
        policy.chain_moves = moves // 32 - 1
    calls = {
        "mean": lambda: policy.mean_action([10**6, 0]),
        "diagnosis": lambda: policy.diagnose(0, 10**6, n_moves=moves),
    }
    call = calls[work]
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    start = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    timer.join()
    assert time.perf_counter() - start < 1.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", NETWORKS)
def test_a_policy_on_a_gpu_samples_the_same(family):
    policy = make(family)
    twin = copy.deepcopy(policy).cuda()
    actions = policy.sample([[5, 3]], 1)
    np.testing.assert_array_equal(twin.sample([[5, 3]], 1), actions)
    for name in ("log_prob", "score"):
        first, second = (getattr(p, name)([[5, 3]], actions) for p in (policy, twin))
        assert second.device.type == "cuda"
        np.testing.assert_allclose(array(first), array(second.cpu()), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        array(policy.mean_action([5, 3])), array(twin.mean_action([5, 3]).cpu()), rtol=1e-12
    )
    ltde.Simulator(model_of(MASK), 8, seed=1).rollout(twin, 2)
    alone = twin.individual(8) if family == "energy" else twin.individual()
    assert alone(0, 0.5).sum() == pytest.approx(1.0)

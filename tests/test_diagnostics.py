"""`decay_profile`: exact, simulated, against the bound; what it suggests and draws.

References: `ExactSystem.decay` and the corrected bound of Lemma 3.5. Mutant: the largest of noisy
means, which noise lifts.
"""

import math
import random
import subprocess
import sys
from dataclasses import replace

import ltde
import matplotlib
import numpy as np
import pytest
from ltde import diagnostics
from ltde.diagnostics import DecayProfile, decay_profile
from ltde.exact import ExactSystem
from matplotlib.figure import Figure
from models import MODELS, path_model, random_policy, ring_model
from statcheck import generator, seed

AGENTS = 4


def make(name, n_states=4, discount=0.8):
    model = MODELS[name](n_states=n_states, discount=discount)
    return model, random_policy(model, generator(f"diagnostics {name}"))


def simulated(model, policy, k_max=3, **options):
    options = {"n_agents": AGENTS, "method": "simulation", "n_replicas": 40, "seed": 1} | options
    return decay_profile(model, policy, k_max, **options)


def constructed(profile, error=0.0, **options):
    profile = np.array(profile, dtype=float)
    profile = profile[:, None] if profile.ndim == 1 else profile
    fields = {
        "k": np.arange(len(profile)),
        "states": np.arange(profile.shape[1]),
        "profile": profile,
        "profile_error": np.broadcast_to(np.asarray(error, dtype=float), profile.shape),
        "mean": None,
        "mean_error": None,
        "bound": 0.9 ** np.arange(len(profile)),
        "method": "simulation",
        "n_agents": 100,
        "discount": 0.9,
        "horizon": 50,
    }
    return DecayProfile(**(fields | options))


# Exact.


@pytest.mark.parametrize("name", MODELS)
def test_the_exact_profile_is_that_of_the_enumerated_system(name):
    model, policy = make(name)
    found = decay_profile(model, policy, 4, n_agents=AGENTS)
    exact = ExactSystem(model, AGENTS, policy)
    assert found.method == "exact"
    np.testing.assert_array_equal(found.k, np.arange(5))
    np.testing.assert_array_equal(found.states, np.arange(4))
    np.testing.assert_array_equal(found.profile, [exact.decay(k) for k in range(5)])
    np.testing.assert_allclose(found.bound, [exact.decay_bound(k) for k in range(5)], rtol=1e-14)
    assert (found.profile <= found.bound[:, None]).all()
    assert (np.diff(found.profile, axis=0) <= 0.0).all()
    assert (found.profile[0] > 0.0).any()
    assert (found.profile_error == 0.0).all()
    assert found.mean is found.mean_error is found.horizon is None
    assert (found.n_agents, found.discount) == (AGENTS, 0.8)


def test_states_can_be_chosen():
    model, policy = make("path")
    whole = decay_profile(model, policy, 2, n_agents=AGENTS)
    part = decay_profile(model, policy, 2, n_agents=AGENTS, states=[3, 1])
    np.testing.assert_array_equal(part.states, [3, 1])
    np.testing.assert_array_equal(part.profile, whole.profile[:, [3, 1]])


def test_auto_is_exact_only_if_that_is_cheap_and_possible():
    model, policy = make("ring")
    few = {"n_pairs": 2, "n_replicas": 4, "horizon": 2}
    assert decay_profile(model, policy, 1, n_agents=5, **few).method == "exact"  # 4,368 pairs
    assert decay_profile(model, policy, 1, n_agents=6, **few).method == "simulation"  # 12,376
    individual = ltde.TabularPolicy(policy).individual()
    assert decay_profile(model, individual, 1, n_agents=2, **few).method == "simulation"
    softmax = ltde.SoftmaxPolicy(model, 4)  # callable too, being a torch module
    assert decay_profile(model, softmax, 1, n_agents=2, **few).method == "exact"
    alone = ltde.NetworkedModel(ltde.Graph.path(1), 1, one_state, discount=0.5)
    assert decay_profile(alone, [[1.0]], 0, n_agents=1000, **few).method == "exact"


def one_state(s, mu, node, edge, prob, reward):
    prob[0, 0] = 1.0
    reward[0] = mu[0]


def test_an_energy_based_policy_has_an_exact_profile_only():
    model = ring_model(3)
    policy = ltde.EnergyPolicy(model, 4, seed=2)
    assert decay_profile(model, policy, 1, n_agents=3).profile[0].min() > 0.0
    with pytest.raises(TypeError, match=r"^policy: .*energy-based.*individual\(n_agents\)"):
        decay_profile(model, policy, 1, n_agents=100)


# Simulated.


@pytest.mark.statistical
@pytest.mark.parametrize("outside", ["visited", "crowded"])
@pytest.mark.parametrize("name", MODELS)
def test_the_simulated_profile_is_a_lower_estimate_of_the_exact_one(name, outside):
    """At most the exact profile, within five standard errors, and at k = 0 a fifth of it."""
    model, policy = make(name)
    found = simulated(model, policy, states=[0, 1, 2, 3], outside=outside, seed=seed("below"))
    exact = decay_profile(model, policy, 3, n_agents=AGENTS, method="exact")
    assert found.method == "simulation"
    assert (found.profile <= exact.profile + 5.0 * found.profile_error).all()
    assert (found.profile <= found.bound[:, None] + 5.0 * found.profile_error).all()
    assert (found.mean <= found.profile + 2.0 * found.profile_error + found.mean_error).all()
    assert found.profile[0].max() > 0.2 * exact.profile[0].max()
    assert (found.bound >= exact.bound - 1e-12).all()
    whole = [model.graph.ball(s, k).size == 4 for k in range(4) for s in range(4)]
    assert (found.profile.ravel()[whole] == 0.0).all()
    assert (found.profile_error.ravel()[whole] == 0.0).all()


@pytest.mark.statistical
def test_noise_does_not_lift_the_profile():
    """Eight pairs without any difference: naively the largest mean is 0.5, here it is about 0.1."""
    noise = generator("noise").normal(size=(400, 8, 8, 1))
    found = np.array([diagnostics._summary(samples)["profile"][0] for samples in noise])
    naive = np.abs(noise.mean(axis=2)).max(axis=1).mean()
    assert naive > 0.45
    assert found.mean() < 0.3 * naive


@pytest.mark.statistical
def test_the_errors_cover_the_largest_difference():
    """One pair stands out: unbiased within 0.05, and two errors cover it in 95 % of the cases."""
    samples = generator("errors").normal(size=(2000, 6, 16, 1))
    samples[:, 3] -= 2.0
    found = [diagnostics._summary(one) for one in samples]
    profile, error, mean, mean_error = (
        np.array([one[name][0] for one in found])
        for name in ("profile", "profile_error", "mean", "mean_error")
    )
    assert abs(profile.mean() - 2.0) < 0.05
    assert (np.abs(profile - 2.0) < 2.0 * error).mean() > 0.95
    assert error.mean() < 0.5
    assert abs(mean.mean() - 2.0 / 6.0) < 0.05
    assert mean_error.mean() > 0.2  # one pair in six makes the mean


def test_crowding_tells_more_of_the_worst_case():
    model = path_model(12, discount=0.8)
    policy = random_policy(model, generator("crowding"))
    visited, crowded = (
        simulated(model, policy, 2, n_agents=100, states=[0], outside=outside)
        for outside in ("visited", "crowded")
    )
    assert (crowded.profile > 1.5 * visited.profile).all()


def test_the_crowd_stands_beside_the_ball(monkeypatch):
    model, policy = make("path", n_states=7)
    distance, asked = model.graph.distances(3), []

    def replaced(self, start, kept, weights, rng):
        asked.append((int(kept.sum()), distance[weights > 0].tolist(), weights.sum()))
        return start

    monkeypatch.setattr(diagnostics.PairedSimulator, "replaced", replaced)
    simulated(model, policy, 2, states=[3], outside="crowded")
    assert asked == [(1, [1.0], 1), (3, [2.0], 1), (5, [3.0], 1)] * 8


def test_it_decays_on_a_larger_graph():
    model = ring_model(60, discount=0.7)
    found = simulated(model, random_policy(model, generator("ring")), 6, n_agents=600)
    np.testing.assert_array_equal(found.states, [0, 20, 39, 59])
    worst = found.profile.max(axis=1)
    assert worst[4] < 0.1 * worst[0]
    assert found.horizon == 3 + math.ceil(math.log(0.01) / math.log(0.7))


def test_unreachable_states_change_nothing():
    graph = ltde.Graph(6, [[0, 1], [1, 2], [3, 4], [4, 5]])
    model = ltde.NetworkedModel(graph, 1, spread, discount=0.8)
    for outside in ("visited", "crowded"):
        found = simulated(model, np.ones((6, 1)), 3, n_agents=30, states=[0], outside=outside)
        assert found.profile[0] > 0.0
        assert (found.profile[2:] == 0.0).all()


def spread(s, mu, node, edge, prob, reward):
    for i in range(mu.size):
        prob[0, i] = 1.0 / mu.size
    reward[0] = 1.0 - mu[0]


def test_masked_actions_are_not_played():
    model, policy = make("star", n_states=6)  # masked rows of the model are NaN
    found = simulated(model, policy, 2, n_agents=50, outside="crowded")
    assert np.isfinite(found.profile).all()
    with pytest.raises(ValueError, match=r"^policy at state 1, .*: .*allowed actions"):
        simulated(model, lambda s, density: np.full(6, 1 / 6), 2, n_agents=50)


def test_the_bound_uses_the_reward_range_unless_a_span_is_given():
    model, policy = make("path")
    options = {"n_pairs": 2, "n_replicas": 4, "horizon": 2}
    rate = 0.8 ** np.array([0, 1, 1, 2]) / (1.0 - 0.8)
    np.testing.assert_allclose(simulated(model, policy, **options).bound, 1.5 * rate)
    spanned = simulated(model, policy, reward_span=0.25, **options)
    np.testing.assert_allclose(spanned.bound, 0.25 * rate)
    exact = decay_profile(model, policy, 3, n_agents=AGENTS, reward_span=0.25)
    np.testing.assert_allclose(exact.bound, 0.25 * rate)
    graph = ltde.Graph.path(4)
    unknown = ltde.NetworkedModel(graph, 1, spread, discount=0.8)
    assert np.isnan(simulated(unknown, np.ones((4, 1)), **options).bound).all()


# Randomness.


def test_the_seed_fixes_the_profile_and_nothing_else_is_touched():
    import torch

    model, policy = make("ring", n_states=8)
    state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    one, same, other = (simulated(model, policy, 2, seed=s) for s in (3, 3, 4))
    after = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    np.testing.assert_array_equal(state[0][1], after[0][1])
    assert state[1] == after[1]
    assert torch.equal(state[2], after[2])
    for name in ("profile", "profile_error", "mean", "mean_error"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert (getattr(one, name) != getattr(other, name)).any()


def test_every_pair_has_random_numbers_of_its_own(monkeypatch):
    model, policy = make("ring")
    keys = []

    def differences(self, start, others, states, n_replicas, horizon, seed):
        keys.append(seed)
        return np.zeros((n_replicas, len(others)))

    monkeypatch.setattr(diagnostics.PairedSimulator, "differences", differences)
    simulated(model, policy, 1, n_pairs=5, seed=3)
    simulated(model, policy, 1, n_pairs=5, seed=4)
    assert len(keys) == len(set(keys)) == 10


def test_the_largest_seed_will_do():
    model, policy = make("ring")
    assert simulated(model, policy, 1, seed=2**64 - 1, n_replicas=4).profile.shape == (2, 4)


# Arguments.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k_max": -1}, ValueError, r"^k_max: expected an integer in \[0, .*got -1$"),
        ({"k_max": 1.0}, TypeError, r"^k_max: expected an integer, got 1\.0$"),
        ({"n_agents": 0}, ValueError, r"^n_agents: .*got 0$"),
        ({"n_agents": math.inf}, ValueError, r"^n_agents: expected a finite number, got inf$"),
        ({"n_pairs": 1}, ValueError, r"^n_pairs: expected an integer in \[2, .*got 1$"),
        ({"n_replicas": 3}, ValueError, r"^n_replicas: expected an integer in \[4, .*got 3$"),
        ({"horizon": 0}, ValueError, r"^horizon: expected an integer in \[1, .*got 0$"),
        ({"seed": -1}, ValueError, r"^seed: .*got -1$"),
        ({"reward_span": 0.0}, ValueError, r"^reward_span: expected a .*number > 0.*, got 0\.0$"),
        ({"method": "guess"}, ValueError, r"^method: expected one of \('auto', .*got 'guess'$"),
        ({"outside": None}, ValueError, r"^outside: expected one of \('visited', .*got None$"),
        ({"states": [0, 4]}, ValueError, r"^states\[1\]: expected an integer in \[0, 4\), got 4$"),
        ({"states": [0.5]}, TypeError, r"^states\[0\]: expected an integer, got 0\.5$"),
        ({"states": []}, ValueError, r"^states: expected a list of states, got \[\]$"),
        ({"states": 2}, ValueError, r"^states: expected a list of states, got 2$"),
        ({"model": None}, TypeError, r"^model: expected an ltde\.NetworkedModel, got NoneType$"),
    ],
)
@pytest.mark.parametrize("method", ["simulation", "exact"])
def test_bad_arguments_are_named(options, error, message, method):
    model, policy = make("ring")
    arguments = {"model": model, "policy": policy, "k_max": 1, "n_agents": 3, "method": method}
    with pytest.raises(error, match=message):
        decay_profile(**(arguments | options))


@pytest.mark.parametrize("method", ["simulation", "exact"])
def test_a_policy_of_the_wrong_kind_is_named(method):
    model, policy = make("ring")
    for wrong, error, message in (
        (np.full((4, 2), 0.5), ValueError, r"^policy: expected shape \(4, 3\), got \(4, 2\)$"),
        (np.tile(policy, (2, 1, 1)), ValueError, r"^policy: expected one that does not change"),
        (None, TypeError, r"^(policy|probs): expected "),
    ):
        with pytest.raises(error, match=message):
            decay_profile(model, wrong, 1, n_agents=3, method=method)


def test_exact_refuses_what_is_too_large():
    model, policy = make("ring")
    with pytest.raises(ValueError, match=r"^n_agents: 100 agents"):
        decay_profile(model, policy, 1, n_agents=100, method="exact")
    with pytest.raises(TypeError, match=r"^policy: "):
        decay_profile(model, lambda s, d: policy[s], 1, n_agents=2, method="exact")


def test_integer_initial_counts_fix_the_number_of_agents():
    model = ring_model(4, initial=np.array([3, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"sum.* n_agents|n_agents.* sum"):
        simulated(model, random_policy(model, generator("initial")), n_agents=5)


# Suggestions.


def test_suggest_takes_the_first_radius_from_which_on_the_profile_is_small():
    assert constructed([1.0, 0.5, 0.04, 0.01]).suggest() == 2
    assert constructed([1.0, 0.5, 0.04, 0.01]).suggest(0.5) == 1
    assert constructed([1.0, 0.5, 0.04, 0.01]).suggest(1.0) == 0
    assert constructed([1.0, 0.04, 0.06, 0.01]).suggest(0.05) == 3
    assert constructed([1.0, 0.5, 0.1]).suggest(0.05) is None
    assert constructed([[1.0, 0.1], [0.01, 0.09], [0.01, 0.01]]).suggest(0.05) == 2
    assert constructed([0.0, 0.0]).suggest() == 0


def test_suggest_does_not_trust_what_noise_could_hide():
    errors = np.array([0.01, 0.01, 0.03, 0.001])[:, None]
    assert constructed([1.0, 0.5, 0.0, 0.0], errors).suggest(0.05) == 3
    assert constructed([1.0, 0.5, 0.0, 0.0], 0.03).suggest(0.05) is None


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan, math.inf])
def test_suggest_refuses_a_tolerance(tolerance):
    with pytest.raises(ValueError, match=r"^tolerance: expected a .*number > 0.*, got"):
        constructed([1.0]).suggest(tolerance)


# Pictures.


@pytest.fixture(autouse=True)
def _agg():
    matplotlib.use("Agg")
    yield
    if "matplotlib.pyplot" in sys.modules:
        matplotlib.pyplot.close("all")


def drawn(profile, **options):
    ax = Figure().subplots()
    assert profile.plot(ax, **options) is ax
    ax.figure.canvas.draw()
    return ax


def test_plot_draws_profile_and_bound():
    profile = [[1.0, 0.5], [0.1, 0.2], [0.0, 0.0]]
    ax = drawn(constructed(profile, method="exact"))
    assert ax.get_yscale() == "log"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(labels) == [r"bound, $\gamma$ = 0.9", r"measured, $\gamma$ = 0.9"]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_array_equal(lines[r"bound, $\gamma$ = 0.9"], 0.9 ** np.arange(3))
    (container,) = ax.containers
    np.testing.assert_array_equal(container.lines[0].get_ydata(), [1.0, 0.2, np.nan])
    low, high = ax.get_ylim()
    assert 0.01 < low < high < 10.0


def test_plot_marks_what_is_lost_in_noise():
    ax = drawn(constructed([1.0, 0.01], np.array([[0.1], [0.02]])), color="k", label="city")
    (container,) = ax.containers
    np.testing.assert_array_equal(container.lines[0].get_ydata(), [1.0, np.nan])
    (limit,) = (line for line in ax.get_lines() if line.get_marker() == "v")
    np.testing.assert_allclose(limit.get_ydata(), [np.nan, 0.05])
    assert container.get_label() == "measured, city"


def test_plot_makes_its_own_figure_and_leaves_an_unknown_bound_out():
    profile = replace(constructed([1.0, 0.1]), bound=np.full(2, np.nan))
    ax = profile.plot()
    ax.figure.canvas.draw()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [r"measured, $\gamma$ = 0.9"]


def test_without_matplotlib_there_is_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^plot needs matplotlib: pip install 'ltde\[plot\]'$"):
        constructed([1.0, 0.1]).plot()


def test_neither_the_module_nor_a_simulation_loads_what_it_does_not_need():
    code = """
import sys
import ltde.diagnostics
print(*(name for name in ("torch", "scipy", "matplotlib", "numba") if name in sys.modules), "-")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["-"]

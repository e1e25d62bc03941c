"""The natural gradient on knots: the least squares that it says it solves."""

import ltde
import numpy as np
import pytest
import torch
from ltde.natural import NaturalGradient
from models import ring_model, star_model
from statcheck import generator

MODELS = {"ring": ring_model, "star": lambda: star_model(6)}  # the star masks actions


def make_policy(name, **options):
    options = {"density_scale": 3.0, "input_scale": 0.7, "tau": 1.0, "seed": 2} | options
    return ltde.SoftmaxPolicy(MODELS[name](), 24, dtype=torch.float64, **options)


def gather(policy, density, weight, advantage, n_knots):
    natural = NaturalGradient(policy, density, n_knots)
    natural.add(torch.tensor(density), torch.tensor(weight), torch.tensor(advantage))
    return natural


def features(policy, s, x, a):
    """phi((x, e_a)) of Eq. (4.6), flat."""
    inputs = np.zeros(1 + policy.n_actions)
    inputs[0], inputs[1 + a] = policy.density_scale * x, 1.0
    inputs *= policy.input_scale
    theta, b = policy.theta.detach().numpy()[s], policy.b.numpy()[s]
    gate = b * (theta @ inputs > 0.0) / np.sqrt(policy.width)
    return (gate[:, None] * inputs).ravel()


def samples(policy, levels=4, n=40):
    """Return few densities, so that each is a knot, weights, and advantages of allowed actions."""
    rng = generator("samples of a natural gradient")
    shape = n, policy.n_states
    density = rng.integers(1, levels + 1, shape) / levels
    density[:levels] = (np.arange(levels)[:, None] + 1) / levels
    mask = policy.action_mask.numpy()
    return density, rng.random(shape), rng.normal(size=(*shape, policy.n_actions)) * mask


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("floor", "ridge"), [(0.0, 1e-6), (5.0, 0.01), (1.0, 1.0)])
def test_it_is_ridge_regression(name, floor, ridge):
    policy = make_policy(name)
    density, weight, advantage = samples(policy)
    got = gather(policy, density, weight, advantage, 40).direction(floor, ridge).numpy()
    for s in range(policy.n_states):
        allowed = np.flatnonzero(policy.action_mask.numpy()[s])
        rows, wanted, mass = [], [], []
        for x in np.unique(density[:, s]):
            here = density[:, s] == x
            mean = weight[here, s] @ advantage[here, s] / weight[here, s].sum()
            for a in allowed:
                rows.append(features(policy, s, x, a))
                wanted.append(mean[a] - mean[allowed].mean())
                mass.append(weight[here, s].sum() / (weight[:, s].sum() + floor))
        rows, wanted, mass = np.array(rows), np.array(wanted), np.array(mass)
        square = policy.input_scale**2 * np.array(
            [1 + (policy.density_scale * x) ** 2 for x in np.unique(density[:, s]) for _ in allowed]
        )
        penalty = ridge * (mass @ square) / mass.sum()
        normal = rows.T * mass @ rows + penalty * np.eye(rows.shape[1])
        expected = np.linalg.solve(normal, rows.T @ (mass * wanted))
        np.testing.assert_allclose(got[s].ravel(), expected, rtol=1e-5, atol=1e-7)
        assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_logits_move_by_advantages(name):
    # without a ridge, where the network can: differences between actions at each density
    policy = make_policy(name)
    density, weight, advantage = samples(policy, levels=2)
    step = gather(policy, density, weight, advantage, 40).direction(0.0, 1e-10).numpy()
    for s in range(policy.n_states):
        allowed = np.flatnonzero(policy.action_mask.numpy()[s])
        for x in np.unique(density[:, s]):
            here = density[:, s] == x
            mean = weight[here, s] @ advantage[here, s] / weight[here, s].sum()
            moved = [features(policy, s, x, a) @ step[s].ravel() for a in allowed]
            expected = mean[allowed] - mean[allowed].mean()
            np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_knots_share_what_lies_between():
    policy = make_policy("ring")
    rng = generator("between knots")
    density = rng.random((500, 4))
    weight, advantage = rng.random((500, 4)), np.repeat(density[..., None], 3, axis=2)
    natural = gather(policy, density, weight, advantage, 8)
    assert (np.diff(natural.knots.numpy(), axis=1) > 0.0).all()
    np.testing.assert_allclose(natural.mass.sum(1), weight.sum(0), rtol=1e-12)
    np.testing.assert_allclose(natural.total[..., 0].sum(1), (weight * density).sum(0), rtol=1e-12)


def test_the_order_of_blocks_does_not_matter():
    policy = make_policy("star")
    density, weight, advantage = samples(policy)
    whole = gather(policy, density, weight, advantage, 6).direction(1.0, 0.01)
    natural = NaturalGradient(policy, density, 6)
    for part in (slice(25, 40), slice(0, 25)):
        natural.add(*(torch.tensor(x[part]) for x in (density, weight, advantage)))
    torch.testing.assert_close(natural.direction(1.0, 0.01), whole, rtol=1e-9, atol=1e-12)


def test_states_that_nobody_visits_stay():
    policy = make_policy("ring")
    density, weight, advantage = samples(policy)
    density[:, 1], weight[:, 1] = 0.0, 0.0
    step = gather(policy, density, weight, advantage, 6).direction(0.1, 0.01)
    assert not step[1].any()
    assert torch.isfinite(step).all()
    assert all(step[s].any() for s in (0, 2, 3))


def test_seldom_visited_states_step_less():
    policy = make_policy("ring")
    density, weight, advantage = samples(policy)
    full = gather(policy, density, weight, advantage, 6).direction(1.0, 0.01)
    seldom = gather(policy, density, weight * 1e-4, advantage, 6).direction(1.0, 0.01)
    assert (seldom.flatten(1).norm(dim=1) < 0.2 * full.flatten(1).norm(dim=1)).all()

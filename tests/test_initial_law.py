"""The law P_0 of the start against exact enumeration.

Pearson's chi-square at 1e-6 divided by the comparisons of the test; each test also shows that its
samples reject the law of another P_0 (power: see `statcheck.chi2_counts`).
"""

import ltde
import numpy as np
import pytest
from exact_law import initial_law
from models import path_model
from statcheck import chi2_law, generator, outcomes, seed

REPLICAS = 20_000


def as_array(initial):
    return initial if isinstance(initial, ltde.DirichletInitial) else np.array(initial)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("initial", "wrong"),
    [
        ([[3, 0, 0], [0, 1, 2], [0, 1, 2], [1, 1, 1]], [[3, 0, 0], [0, 1, 2], [1, 1, 1]]),
        ([0.5, 0.3, 0.2], [0.5, 0.28, 0.22]),
        (ltde.DirichletInitial([2.0, 0.5, 0.1]), ltde.DirichletInitial([20.0, 5.0, 1.0])),
        (ltde.DirichletInitial([0.01, 0.02, 0.03]), ltde.DirichletInitial([0.01, 0.02, 0.02])),
    ],
    ids=["list", "independent", "dirichlet", "concentrated"],
)
def test_the_start_has_its_exact_law_after_construction_and_after_reset(initial, wrong):
    model, other = (path_model(initial=as_array(x)) for x in (initial, wrong))
    simulator = ltde.Simulator(model, 3, n_replicas=REPLICAS, seed=seed(f"start {initial}"))
    built = simulator.counts.copy()
    simulator.reset()
    again = simulator.counts.copy()
    law, other_law = (initial_law(m, 3) for m in (model, other))
    for counts in (built, again):
        assert chi2_law(outcomes(counts), law, n_comparisons=3)
        assert not chi2_law(outcomes(counts), other_law, n_comparisons=3)
    # The two draws are independent; the mutant is a reset that repeats the draw.
    both = {(x, y): p * q for x, p in law.items() for y, q in law.items()}
    assert chi2_law(outcomes(built, again), both, n_comparisons=3)
    assert not chi2_law(outcomes(built, built), both, n_comparisons=3)


def test_fixed_counts_start_from_these_counts():
    model = path_model(initial=np.array([2, 0, 5]))
    simulator = ltde.Simulator(model, 7, n_replicas=3, seed=1)
    assert simulator.counts.tolist() == [[2, 0, 5]] * 3
    simulator.rollout(np.full((3, 2), 0.5), 3)
    simulator.reset()
    assert simulator.counts.tolist() == [[2, 0, 5]] * 3


@pytest.mark.statistical
@pytest.mark.parametrize("dirichlet", [False, True])
def test_the_start_over_several_blocks_of_states(dirichlet):
    # The core draws totals of blocks of 64 states first. Groups of states that cut across blocks
    # have a law of the same family, with summed parameters. Mutant: groups summed one state off.
    states, n = 150, 3
    rng = generator("blocks")
    weights = rng.uniform(0.0, 0.05, states) ** 2 * 40.0
    group = np.arange(states) * 2 % 3
    sums = np.bincount(group, weights)
    if dirichlet:
        initial, small = ltde.DirichletInitial(weights + 1e-9), ltde.DirichletInitial(sums)
    else:
        initial, small = weights / weights.sum(), sums / sums.sum()
    model = path_model(n_states=states, initial=initial)
    simulator = ltde.Simulator(model, n, n_replicas=REPLICAS, seed=seed(f"blocks {dirichlet}"))
    law = initial_law(path_model(n_states=3, initial=small), n)
    grouped = np.stack([simulator.counts[:, group == i].sum(axis=1) for i in range(3)], axis=1)
    assert chi2_law(outcomes(grouped), law)
    shifted = simulator.counts[:, np.roll(np.arange(states), 64)]
    mutant = np.stack([shifted[:, group == i].sum(axis=1) for i in range(3)], axis=1)
    assert not chi2_law(outcomes(mutant), law)

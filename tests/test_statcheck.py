"""Tests of the tests: correct samplers pass, and each mutant fails what is there to catch it."""

import math

import numpy as np
import pytest
from scipy import stats
from statcheck import (
    ALPHA_ASYMPTOTIC,
    ALPHA_EXACT,
    bernstein_mean,
    chi2_counts,
    chi2_law,
    correlation,
    dispersion,
    dkw_marginals,
    dkw_one_sample,
    dkw_pairs,
    dkw_two_sample,
    generator,
    n_for_dkw,
    outcomes,
    pooled_mean,
    seed,
)

N = 1000
P = np.array([0.5, 0.3, 0.15, 0.05])
R = 20_000

pytestmark = pytest.mark.statistical


def correct(rng):
    return rng.multinomial(N, P, size=R)


def rounded(rng):
    """Deterministic rounding of N p: the right mean, no randomness."""
    return np.tile(np.rint(N * P).astype(np.int64), (R, 1))


def poissons(rng):
    """Independent Poissons: the total fluctuates."""
    return rng.poisson(N * P, size=(R, len(P)))


def gaussians(rng):
    """Independent Gaussians with the binomial moments, rounded."""
    draws = rng.normal(N * P, np.sqrt(N * P * (1 - P)), size=(R, len(P)))
    return np.rint(draws).astype(np.int64)


def permuted(rng):
    """Right marginals, wrong covariance: one column permuted between the replicas."""
    samples = correct(rng)
    samples[:, 0] = rng.permutation(samples[:, 0])
    return samples


def conserves(samples):
    return bool(np.all(samples.sum(axis=1) == N))


CHECKS = {
    "mean": lambda samples: pooled_mean(samples, P),
    "dispersion": lambda samples: dispersion(samples, N, P),
    "marginals": lambda samples: dkw_marginals(samples, N, P),
    "pairs": lambda samples: dkw_pairs(samples, N, P),
    "sum": conserves,
}
# The table of mutants: which checks must pass and which must fail; a check that is not named may do
# either.
MUTANTS = {
    correct: ("mean dispersion marginals pairs sum", ""),
    rounded: ("mean sum", "dispersion marginals pairs"),
    poissons: ("mean", "dispersion marginals sum"),
    gaussians: ("mean dispersion marginals", "pairs sum"),
    permuted: ("mean dispersion marginals", "pairs sum"),
}


@pytest.mark.parametrize("sampler", MUTANTS, ids=lambda sampler: sampler.__name__)
def test_each_mutant_fails_the_checks_that_are_there_to_catch_it(sampler):
    samples = sampler(generator(f"mutants {sampler.__name__}"))
    passing, failing = MUTANTS[sampler]
    for name in passing.split():
        assert CHECKS[name](samples), name
    for name in failing.split():
        assert not CHECKS[name](samples), name


def test_pooled_mean_catches_a_tenth_of_a_percent_in_a_billion_trials():
    wrong = P * np.array([1.001, 1.0, 1.0, 1.0])
    wrong /= wrong.sum()
    rng = generator("tenth of a percent")
    trials = 10**9 // 1000
    assert pooled_mean(rng.multinomial(trials, P, size=1000), P)
    assert not pooled_mean(rng.multinomial(trials, wrong, size=1000), P)
    assert pooled_mean(
        rng.multinomial(1000, wrong, size=1000), P
    )  # a thousandth of the trials is blind


def test_correlation_catches_a_shared_stream():
    rng = generator("shared stream")
    first = rng.multinomial(N, P, size=R)
    second = rng.multinomial(N, P, size=R)
    shared_stream = np.random.default_rng(1), np.random.default_rng(1)
    assert correlation(first[:, 0], second[:, 0])
    twins = [stream.multinomial(N, P, size=R)[:, 0] for stream in shared_stream]
    check = correlation(*twins)
    assert not check
    assert check.detail == "z = 141.4"


def test_chi2_law_on_all_outcomes_of_a_small_case():
    rng = generator("small case")
    p = (0.5, 0.3, 0.2)
    law = {
        (i, j, 3 - i - j): float(stats.multinomial.pmf([i, j, 3 - i - j], 3, p))
        for i in range(4)
        for j in range(4 - i)
    }
    assert chi2_law(outcomes(rng.multinomial(3, p, size=R)), law)
    assert not chi2_law(outcomes(rng.multinomial(3, (0.53, 0.29, 0.18), size=R)), law)
    assert not chi2_law(outcomes(np.tile([2, 1, 0], (R, 1))), law)
    one_lost_agent = [*outcomes(rng.multinomial(3, p, size=R)), (1, 1, 0)]
    assert not chi2_law(one_lost_agent, law)


def test_chi2_is_pearsons_statistic_on_counts():
    # By hand: ((60 - 50)^2 + (40 - 50)^2) / 50 = 4, and P(chi2_1 > 4) = erfc(sqrt(2)).
    check = chi2_counts(np.array([60, 40]), [0.5, 0.5])
    assert check.p_value == pytest.approx(math.erfc(math.sqrt(2.0)), rel=1e-12)
    assert check.detail == "X2 = 4 with 1 degrees of freedom"
    assert not chi2_counts(np.array([600, 400]), [0.5, 0.5])


def test_chi2_pools_the_small_cells():
    # Expected 900, 60, 30, 10: the two small ones expect 40 together, so they take the cell of 60
    # with them.
    check = chi2_counts(np.array([890, 70, 28, 12]), [0.9, 0.06, 0.03, 0.01])
    assert check.detail == f"X2 = {100 / 900 + 100 / 100:.4g} with 1 degrees of freedom"


def test_chi2_fails_at_once_on_an_impossible_outcome():
    assert not chi2_counts(np.array([10**6, 10**6, 1]), [0.5, 0.5, 0.0])
    assert not chi2_law(["heads"] * 100 + ["tails"] * 100 + ["edge"], {"heads": 0.5, "tails": 0.5})


def test_dispersion_moments_are_exact():
    # The mean and the variance of X2 by enumeration of Multinomial(3, p): the reference of the
    # check is exact at any n.
    p = np.array([0.5, 0.3, 0.2])
    cells = np.array([(i, j, 3 - i - j) for i in range(4) for j in range(4 - i)])
    weights = stats.multinomial.pmf(cells, 3, p)
    x2 = np.sum((cells - 3 * p) ** 2 / (3 * p), axis=1)
    mean = weights @ x2
    assert mean == pytest.approx(2.0, rel=1e-12)
    variance = weights @ (x2 - mean) ** 2
    assert variance == pytest.approx(4.0 + (np.sum(1 / p) - 9 - 6 + 2) / 3, rel=1e-12)


def test_dispersion_is_two_sided():
    rng = generator("dispersion")
    half = 2 * rng.multinomial(N // 2, P, size=R)  # every agent counted twice
    assert not dispersion(half, N, P)
    assert not dispersion(rounded(rng), N, P)


def test_dkw_one_sample_on_a_continuous_law_and_at_atoms():
    rng = generator("dkw one sample")
    assert dkw_one_sample(rng.normal(size=R), stats.norm.cdf)
    assert not dkw_one_sample(rng.normal(0.1, 1.0, size=R), stats.norm.cdf)
    assert dkw_one_sample(rng.binomial(5, 0.3, size=R), stats.binom(5, 0.3).cdf)
    assert not dkw_one_sample(rng.binomial(5, 0.33, size=R), stats.binom(5, 0.3).cdf)


def test_dkw_one_sample_reads_both_limits_at_an_atom():
    # All samples are 2, the law is 1 or 3 with probability 1/2: F_R - F is 1/2 at 2, and F - F_R is
    # 1/2 just left of 2.
    def cdf(x):
        return np.where(x < 1, 0.0, np.where(x < 3, 0.5, 1.0))

    check = dkw_one_sample(np.full(100, 2), cdf)
    assert check.p_value == pytest.approx(2 * math.exp(-50), rel=1e-9)
    # All samples are 3 but a third of the law is below: only the left limit of the atom shows it.
    check = dkw_one_sample(np.full(100, 3), lambda x: np.where(x < 3, 1 / 3, 1.0))
    assert check.p_value == pytest.approx(2 * math.exp(-200 / 9), rel=1e-9)


def test_dkw_two_sample():
    rng = generator("dkw two sample")
    first = rng.binomial(20, 0.5, size=R)
    assert dkw_two_sample(first, rng.binomial(20, 0.5, size=R // 2))
    assert not dkw_two_sample(first, rng.binomial(20, 0.53, size=R // 2))
    assert not dkw_two_sample(first, np.full(R, 10))
    # By hand: D = 1 for samples that do not overlap.
    check = dkw_two_sample(np.zeros(100), np.ones(400))
    assert check.p_value == pytest.approx(4 * math.exp(-2 / 0.15**2), rel=1e-9)


def test_bernstein_mean():
    rng = generator("bernstein")
    samples = rng.uniform(size=R)
    assert bernstein_mean(samples, 0.5, (0.0, 1.0))
    assert not bernstein_mean(samples, 0.47, (0.0, 1.0))
    assert not bernstein_mean(samples, 0.53, (0.0, 1.0))
    assert not bernstein_mean(np.append(samples, 1.5), 0.5, (0.0, 1.0))


def test_bernstein_band_is_the_inequality():
    # At the gap sqrt(2 V L / R) + 7 (hi - lo) L / (3 (R - 1)), with L = log(4 / p), the reported
    # value is p.
    samples = np.tile([0.0, 2.0], 500)
    spread = 2.0 * samples.var(ddof=1) / 1000
    for p in (1e-3, 1e-9):
        level = math.log(4 / p)
        band = math.sqrt(spread * level) + 7 * 3.0 * level / (3 * 999)
        assert bernstein_mean(samples, 1.0 - band, (0.0, 3.0)).p_value == pytest.approx(p, rel=1e-9)
    small_variance = bernstein_mean(np.full(1000, 1.0), 1.02, (0.0, 3.0))
    assert small_variance.p_value == pytest.approx(4 * math.exp(-0.02 * 999 / 7), rel=1e-9)


def test_n_for_dkw_gives_the_published_sizes():
    assert [n_for_dkw(0.01, a, a) for a in (1e-3, 1e-6, 1e-9)] == [152_019, 290_174, 428_329]


def test_n_for_dkw_samples_suffice():
    n = n_for_dkw(0.02)
    samples = generator("n_for_dkw").binomial(1, 0.52, size=n)
    assert not dkw_one_sample(samples, stats.binom(1, 0.5).cdf)


def test_stated_power_of_chi2_and_correlation():
    critical = stats.chi2.isf(ALPHA_ASYMPTOTIC, 10)
    assert stats.ncx2.sf(critical, 10, 90) >= 0.999
    assert stats.norm.sf(stats.norm.isf(ALPHA_ASYMPTOTIC / 2) - (4.9 + 3.1)) >= 0.999


def test_bonferroni_divides_the_rate():
    observed = np.array([600, 400])
    p = chi2_counts(observed, [0.5, 0.5]).p_value
    assert not chi2_counts(observed, [0.5, 0.5], alpha=2 * p)
    assert chi2_counts(observed, [0.5, 0.5], alpha=2 * p, n_comparisons=3)
    assert dkw_one_sample(np.arange(9), stats.norm.cdf, n_comparisons=4).alpha == ALPHA_EXACT / 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chi2_counts(np.array([5, 5]), [0.5, 0.5]), "fewer than two cells expect 50"),
        (lambda: chi2_counts(np.array([500, 0]), [1.0, 0.0]), "fewer than two cells expect 50"),
        (lambda: chi2_counts(np.array([0.6, 0.4]), [0.5, 0.5]), "expected integer counts"),
        (lambda: chi2_counts(np.array([60, 40]), [0.5, 0.6]), "got a sum of 1.1"),
        (lambda: dispersion(np.ones((999, 2), int), 2, [0.5, 0.5]), "at least 1000 replicas"),
        (lambda: dispersion(np.ones((1000, 1), int), 1, [1.0]), "at least two cells"),
        (lambda: dispersion(np.tile([0, 1], (1000, 1)), 1, [0.5, 0.5]), "X2 is constant"),
        (lambda: dkw_pairs(np.ones((9, 2), int), 2, [0.5, 0.5]), "at least three categories"),
        (lambda: dkw_one_sample(np.ones((2, 2)), stats.norm.cdf), r"shape \(R,\)"),
        (lambda: dkw_two_sample([], [1.0]), "not empty"),
        (lambda: bernstein_mean([1.0], 1.0, (0, 1)), "R > 1"),
        (lambda: correlation(np.ones(1000), np.arange(1000)), "constant column"),
        (lambda: correlation(np.arange(999), np.arange(999)), "R >= 1000"),
    ],
)
def test_a_check_that_could_not_fail_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_seed_is_fixed_and_differs_by_tag_and_by_environment(monkeypatch, capsys):
    monkeypatch.delenv("LTDE_TEST_SEED", raising=False)
    fixed = seed("a")
    assert fixed == 8342909361095637454
    assert fixed != seed("b")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("LTDE_TEST_SEED", "12")
    assert seed("a") == seed("a") != fixed
    assert capsys.readouterr().out == "LTDE_TEST_SEED=12\n" * 2
    monkeypatch.setenv("LTDE_TEST_SEED", "random")
    drawn = seed("a")
    assert drawn == seed("a") != fixed
    base = capsys.readouterr().out.split()[0].removeprefix("LTDE_TEST_SEED=")
    monkeypatch.setenv("LTDE_TEST_SEED", base)
    assert seed("a") == drawn
    monkeypatch.setenv("LTDE_TEST_SEED", "often")
    with pytest.raises(ValueError, match="expected an integer or 'random', got 'often'"):
        seed("a")


def _calibrations():
    """Name to a function rng -> Check at alpha = 1e-3, on samples for which the claim is true."""
    p, alpha = np.array([0.5, 0.3, 0.2]), 1e-3
    small = np.array([0.9, 0.06, 0.03, 0.01])
    binomial = stats.binom(20, 0.3)

    def counts(rng, replicas=1000):
        return rng.multinomial(50, p, size=replicas)

    return {
        "chi2_counts": lambda rng: chi2_counts(rng.multinomial(1000, p), p, alpha=alpha),
        "chi2_counts, two cells": lambda rng: chi2_counts(
            rng.multinomial(1000, [0.4, 0.6]), [0.4, 0.6], alpha=alpha
        ),
        "chi2_counts, pooled": lambda rng: chi2_counts(
            rng.multinomial(1000, small), small, alpha=alpha
        ),
        "pooled_mean": lambda rng: pooled_mean(counts(rng, 100), p, alpha=alpha),
        "dispersion": lambda rng: dispersion(counts(rng), 50, p, alpha=alpha),
        "correlation": lambda rng: correlation(counts(rng)[:, 0], counts(rng)[:, 0], alpha=alpha),
        "dkw_one_sample": lambda rng: dkw_one_sample(
            rng.uniform(size=1000), lambda x: x, alpha=alpha
        ),
        "dkw_one_sample, atoms": lambda rng: dkw_one_sample(
            rng.binomial(20, 0.3, size=1000), binomial.cdf, alpha=alpha
        ),
        "dkw_two_sample": lambda rng: dkw_two_sample(
            rng.uniform(size=500), rng.uniform(size=500), alpha=alpha
        ),
        "dkw_pairs": lambda rng: dkw_pairs(counts(rng, 200), 50, p, alpha=alpha),
        "bernstein_mean": lambda rng: bernstein_mean(
            rng.uniform(size=1000), 0.5, (0.0, 1.0), alpha=alpha
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", _calibrations())
def test_false_alarm_rate_is_as_stated(name):
    # 3000 repetitions at 1e-3: 3 alarms expected for an exact reference; P(more than 10) = 3e-4
    # (Poisson).
    check, rng = _calibrations()[name], generator(f"calibration {name}")
    alarms = sum(not check(rng) for _ in range(3000))
    assert alarms <= 10

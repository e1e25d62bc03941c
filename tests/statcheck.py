"""Statistical checks at a stated false-alarm rate; docstrings name statistic, reference and power.

Every check returns a `Check`, which is true when the samples are compatible with the claim: write
`assert chi2_law(samples, law)`, and `assert not chi2_law(mutant, law)` for a mutant that must be
caught. A check raises ValueError when it could not fail (too few samples, a single cell), so that
no test passes for lack of power.

`n_comparisons` is the number of checks that one test makes: the false-alarm rate is divided by it
(Bonferroni).
"""

import hashlib
import itertools
import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

# False-alarm rates. A fixed seed makes a red test a change and never luck; the rate is the chance
# that an *innocent* change (another stream, another platform) breaks a test. The far tail of an
# asymptotic reference is trusted less.
ALPHA_EXACT = 1e-9
ALPHA_ASYMPTOTIC = 1e-6
# A mean of fewer squared terms than this is still too skew for its normal reference to be trusted
# at 1e-6.
MIN_REPLICAS = 1000


@dataclass(frozen=True)
class Check:
    """Outcome of one check: it is true when `p_value >= alpha`."""

    name: str
    p_value: float
    alpha: float
    detail: str

    @property
    def ok(self):
        """Whether the samples are compatible with the claim."""
        return self.p_value >= self.alpha

    def __bool__(self):
        """`assert check` and `assert not check` read as they should."""
        return self.ok


def seed(tag):
    """Seed for the test `tag`: fixed, unless LTDE_TEST_SEED is another integer or `random`.

    `random` draws a base once per process; a base other than 0 is printed.
    """
    base = _base_seed(os.environ.get("LTDE_TEST_SEED", "0"))
    if base != 0:
        print(f"LTDE_TEST_SEED={base}")  # shown by pytest when the test fails
    digest = hashlib.sha256(f"{base}:{tag}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(tag):
    """NumPy generator seeded by `seed(tag)`."""
    return np.random.default_rng(seed(tag))


def outcomes(*arrays):
    """Hashable outcomes of arrays (R, ...): tuples, or tuples of tuples for several arrays."""
    columns = [[tuple(row.ravel().tolist()) for row in np.asarray(array)] for array in arrays]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def chi2_counts(observed, probabilities, min_expected=50, alpha=ALPHA_ASYMPTOTIC, n_comparisons=1):
    """Observed counts (K,) of independent trials against their probabilities (K,).

    Statistic: Pearson's sum of (observed - expected)^2 / expected, cells that expect less than
    `min_expected` pooled into one. Reference: chi-square with (number of cells after pooling) - 1
    degrees of freedom. A count in a cell of probability 0 fails at once. Power: non-centrality n
    sum (p' - p)^2 / p; at alpha = 1e-6 and 10 degrees of freedom, 90 is caught with probability
    0.999.
    """
    observed = np.asarray(observed)
    p = np.asarray(probabilities, dtype=float)
    if observed.dtype.kind not in "iu" or observed.shape != p.shape or observed.ndim != 1:
        raise ValueError("observed: expected integer counts (K,), like the probabilities")
    if not (np.all(p >= 0.0) and abs(math.fsum(p) - 1.0) < 1e-9):
        raise ValueError(f"probabilities: expected a law, got a sum of {math.fsum(p)}")
    impossible = int(observed[p == 0.0].sum())
    if impossible:
        return _check("chi2", 0.0, alpha, n_comparisons, f"{impossible} impossible outcomes")
    cells, expected = _pool(observed[p > 0.0], observed.sum() * p[p > 0.0], min_expected)
    if len(cells) < 2:
        raise ValueError(f"{observed.sum()} samples: fewer than two cells expect {min_expected}")
    statistic = float(np.sum((cells - expected) ** 2 / expected))
    p_value = float(stats.chi2.sf(statistic, len(cells) - 1))
    detail = f"X2 = {statistic:.4g} with {len(cells) - 1} degrees of freedom"
    return _check("chi2", p_value, alpha, n_comparisons, detail)


def chi2_law(samples, law, min_expected=50, alpha=ALPHA_ASYMPTOTIC, n_comparisons=1):
    """Independent samples (hashable, see `outcomes`) against a law {outcome: probability}.

    Statistic, reference and power as `chi2_counts`, a cell for each outcome. An
    outcome that the law does not hold, or holds with probability 0, fails at once.
    """
    seen = Counter(samples)
    strange = [outcome for outcome in seen if law.get(outcome, 0.0) == 0.0]
    if strange:
        return _check("chi2", 0.0, alpha, n_comparisons, f"impossible outcome {strange[0]}")
    table = list(law.items())
    observed = np.array([seen[outcome] for outcome, _ in table])
    probabilities = [p for _, p in table]
    return chi2_counts(observed, probabilities, min_expected, alpha, n_comparisons)


def pooled_mean(samples, probabilities, alpha=ALPHA_ASYMPTOTIC, n_comparisons=1):
    """R replicas (R, K) of Multinomial(N, p), added up: Multinomial(R N, p).

    Statistic and reference as `chi2_counts`, K - 1 degrees of freedom. Power: cheap with counts,
    so take R N = 10^9; then one cell of p = 1/2 that is wrong by 0.1 % (the others rescaled) has
    non-centrality 1000, and one of p = 0.2 has 250. It is blind to the spread (see `dispersion`).
    """
    return chi2_counts(np.asarray(samples).sum(axis=0), probabilities, 50, alpha, n_comparisons)


def dispersion(samples, n, probabilities, alpha=ALPHA_ASYMPTOTIC, n_comparisons=1):
    """R replicas (R, K) of Multinomial(n, p): the spread is neither too small nor too large.

    Statistic: mean over replicas of X2 = sum (c - n p)^2 / (n p). Reference: normal, two-sided,
    with the exact moments mean K - 1 and variance (2 (K - 1) + (sum 1/p - K^2 - 2 K + 2) / n) / R.
    Power: a variance wrong by the factor 1 + e shifts z by e sqrt(R (K - 1) / 2). Cells with n p
    below about 1 make X2 skew: pool them first, or take R >= 10^4.
    """
    samples = np.asarray(samples)
    p = np.asarray(probabilities, dtype=float)
    if len(samples) < MIN_REPLICAS:
        raise ValueError(f"dispersion: expected at least {MIN_REPLICAS} replicas")
    if samples[:, p == 0.0].any():
        return _check("dispersion", 0.0, alpha, n_comparisons, "impossible outcome")
    samples, p = samples[:, p > 0.0], p[p > 0.0]
    k = len(p)
    if k < 2:
        raise ValueError("dispersion: expected at least two cells of positive probability")
    mean = np.mean(np.sum((samples - n * p) ** 2 / (n * p), axis=1))
    variance = 2.0 * (k - 1) + (np.sum(1.0 / p) - k**2 - 2 * k + 2) / n
    if variance <= 1e-12 * k:
        raise ValueError("dispersion: X2 is constant, nothing can be checked (n = 1, equal cells)")
    z = float((mean - (k - 1)) / math.sqrt(variance / len(samples)))
    return _normal_check("dispersion", z, alpha, n_comparisons)


def dkw_one_sample(samples, cdf, cdf_left=None, alpha=ALPHA_EXACT, n_comparisons=1):
    """Independent samples (R,) against a distribution function, which may have atoms.

    Statistic: D = sup |F_R - F|, at the values seen and at their left limits; `cdf_left(x)` is
    P(X < x), by default cdf(x - 1) for integer samples and cdf(x) for others (no atoms). Reference:
    Dvoretzky-Kiefer-Wolfowitz with Massart's constant, P(D > d) <= 2 exp(-2 R d^2) for every R and
    every law. Power: `n_for_dkw`.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError("samples: expected shape (R,), R > 0")
    if cdf_left is None:
        cdf_left = (lambda x: cdf(x - 1)) if samples.dtype.kind in "iu" else cdf
    values, repeats = np.unique(samples, return_counts=True)
    at = np.cumsum(repeats) / len(samples)
    left = np.concatenate([[0.0], at[:-1]])
    gaps = np.maximum(np.abs(at - cdf(values)), np.abs(left - cdf_left(values)))
    return _dkw_check("dkw", float(gaps.max()), len(samples), alpha, n_comparisons)


def dkw_two_sample(first, second, alpha=ALPHA_EXACT, n_comparisons=1):
    """Two independent samples (R,) and (Q,) against each other: one distribution.

    Statistic: D = sup |F_R - G_Q|. Reference: DKW for each and the triangle inequality,
    P(D > d) <= 4 exp(-2 (d / (R^-1/2 + Q^-1/2))^2), for every R, Q and law. Power: as `n_for_dkw`
    with half the gap for R = Q.
    """
    first, second = np.sort(np.asarray(first)), np.sort(np.asarray(second))
    if first.ndim != 1 or second.ndim != 1 or 0 in (len(first), len(second)):
        raise ValueError("samples: expected shapes (R,) and (Q,), not empty")
    values = np.concatenate([first, second])
    gaps = np.searchsorted(first, values, "right") / len(first)
    gaps = np.abs(gaps - np.searchsorted(second, values, "right") / len(second))
    gap = float(gaps.max())
    scale = len(first) ** -0.5 + len(second) ** -0.5
    p_value = min(1.0, 4.0 * math.exp(-2.0 * (gap / scale) ** 2))
    return _check("dkw two-sample", p_value, alpha, n_comparisons, f"D = {gap:.4g}")


def dkw_marginals(samples, n, probabilities, alpha=ALPHA_EXACT, n_comparisons=1):
    """Replicas (R, K) of Multinomial(n, p): each category against Binomial(n, p_j).

    Statistic and reference as `dkw_one_sample`, at alpha / K.
    """
    samples = np.asarray(samples)
    k = samples.shape[1]
    checks = [
        dkw_one_sample(c, stats.binom(n, p).cdf, None, alpha, n_comparisons * k)
        for c, p in zip(samples.T, probabilities, strict=True)
    ]
    return min(checks, key=lambda check: check.p_value)


def dkw_pairs(samples, n, probabilities, alpha=ALPHA_EXACT, n_comparisons=1):
    """Replicas (R, K) of Multinomial(n, p): each n_i + n_j against Binomial(n, p_i + p_j).

    Statistic and reference as `dkw_one_sample`, at alpha / (number of pairs). It sees what the
    marginals do not: the covariances. Needs K >= 3 (with K = 2 the only pair is the constant n).
    """
    samples = np.asarray(samples)
    pairs = list(itertools.combinations(range(samples.shape[1]), 2))
    if len(pairs) < 3:
        raise ValueError("dkw_pairs: expected at least three categories")
    checks = []
    for i, j in pairs:
        binomial = stats.binom(n, min(1.0, probabilities[i] + probabilities[j]))
        both = samples[:, i] + samples[:, j]
        checks.append(dkw_one_sample(both, binomial.cdf, None, alpha, n_comparisons * len(pairs)))
    return min(checks, key=lambda check: check.p_value)


def bernstein_mean(samples, expected, bounds, alpha=ALPHA_EXACT, n_comparisons=1):
    """Independent samples (R,) in [lo, hi]: their expectation is `expected`.

    Statistic: |mean - expected|. Reference: the empirical Bernstein inequality (Maurer and Pontil
    2009, theorem 4), two-sided, for every R and law: with L = log(4 / alpha) and V the sample
    variance, |mean - E| <= sqrt(2 V L / R) + 7 (hi - lo) L / (3 (R - 1)). Power: a bias above twice
    that band is caught with probability 1 - alpha.
    """
    samples = np.asarray(samples, dtype=float)
    low, high = bounds
    if samples.ndim != 1 or len(samples) < 2:
        raise ValueError("samples: expected shape (R,), R > 1")
    if samples.min() < low or samples.max() > high:
        detail = f"a value outside [{low}, {high}]"
        return _check("bernstein", 0.0, alpha, n_comparisons, detail)
    r = len(samples)
    gap = abs(float(samples.mean()) - expected)
    linear = math.sqrt(2.0 * samples.var(ddof=1) / r)
    quadratic = 7.0 * (high - low) / (3.0 * (r - 1))
    # The band at level p is linear x + quadratic x^2 with x^2 = log(4 / p): solve for the p at
    # which it equals the gap.
    x = 2.0 * gap / (linear + math.sqrt(linear**2 + 4.0 * quadratic * gap)) if gap > 0.0 else 0.0
    p_value = min(1.0, 4.0 * math.exp(-(x**2)))
    return _check("bernstein", p_value, alpha, n_comparisons, f"|mean - expected| = {gap:.4g}")


def correlation(first, second, alpha=ALPHA_ASYMPTOTIC, n_comparisons=1):
    """Two columns (R,), cells or steps with separate streams: uncorrelated over the replicas.

    Statistic: z = r sqrt(R - 1), r Pearson's correlation. Reference: normal, two-sided (given the
    values, r has variance 1 / (R - 1) under permutation). Power: a correlation of (4.9 + 3.1) /
    sqrt(R) is caught with probability 0.999; a shared stream has r near 1.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < MIN_REPLICAS:
        raise ValueError(f"correlation: expected two columns (R,), R >= {MIN_REPLICAS}")
    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        raise ValueError("correlation: a constant column, nothing can be checked")
    z = float(np.corrcoef(first, second)[0, 1] * math.sqrt(len(first) - 1))
    return _normal_check("correlation", z, alpha, n_comparisons)


def n_for_dkw(gap, alpha=ALPHA_EXACT, beta=ALPHA_EXACT):
    """Return the number of samples with which `dkw_one_sample` sees a gap.

    At this number, a true gap sup |F' - F| of at least `gap` is missed with probability <= `beta`.
    """
    both = math.sqrt(math.log(2.0 / alpha)) + math.sqrt(math.log(2.0 / beta))
    return math.ceil(both**2 / (2.0 * gap**2))


@lru_cache
def _base_seed(text):
    if text == "random":
        return int.from_bytes(os.urandom(4), "little") | 1
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"LTDE_TEST_SEED: expected an integer or 'random', got {text!r}") from None


def _pool(observed, expected, min_expected):
    """Pool the cells that expect less than `min_expected`.

    If the pool itself expects less, it swallows the smallest other cell.
    """
    order = np.argsort(expected)
    observed, expected = observed[order], expected[order]
    small = int(np.searchsorted(expected, min_expected))
    if small and expected[:small].sum() < min_expected and small < len(expected):
        small += 1
    if small == 0:
        return observed, expected
    cells = np.concatenate([[observed[:small].sum()], observed[small:]])
    return cells, np.concatenate([[expected[:small].sum()], expected[small:]])


def _check(name, p_value, alpha, n_comparisons, detail):
    return Check(name, p_value, alpha / n_comparisons, detail)


def _normal_check(name, z, alpha, n_comparisons):
    return _check(name, float(2.0 * stats.norm.sf(abs(z))), alpha, n_comparisons, f"z = {z:.4g}")


def _dkw_check(name, gap, r, alpha, n_comparisons):
    p_value = min(1.0, 2.0 * math.exp(-2.0 * r * gap**2))
    return _check(name, p_value, alpha, n_comparisons, f"D = {gap:.4g} of {r} samples")

"""The binomial and multinomial samplers against their laws, and the checks against mutants.

These tests sample. What no sample of a reasonable size can see is proved in `rust/ltde-core/tests`:
`rejection.rs` (hat, squeezes and acceptance of rejection), `inversion.rs` (its law, word by word),
`reference.rs` (the ratio of probabilities to 60 digits), `samplers.rs` (invariants).
"""

import itertools
import math
from fractions import Fraction

import ltde
import mpmath
import numpy as np
import pytest
import statcheck
from exact_law import multinomial_law
from ltde import _core
from scipy import special, stats

MAX_COUNT = 2**53
SWITCH = 10  # n min(p, q) from which rejection is used instead of inversion


def binomials(n, p, size, tag, q=None):
    """`size` draws of ours from Binomial(n, p)."""
    out = np.zeros(size, np.int64)
    _core.binomial(n, p, 1.0 - p if q is None else q, statcheck.seed(tag), out)
    return out


def multinomials(n, weights, size, tag):
    """`size` draws of ours from Multinomial(n, weights), (size, K)."""
    out = np.zeros((size, len(weights)), np.int64)
    _core.multinomial(n, np.asarray(weights, float), statcheck.seed(tag), out)
    return out


def law_of(weights):
    """Probabilities of the weights, as accurate as floats are."""
    return np.asarray(weights, float) / math.fsum(weights)


# ------------------------------------------------------------------------------------------------
# Binomial: chi-square, mean and variance on a grid


def binomial_cells(n, p):
    """Edges (C,) and probabilities (C + 1,) of the cells (.., e_0], (e_0, e_1], .. of a binomial.

    Each value is a cell if few are probable, else 400 cells of equal width. Needs p <= 1/2.
    """
    sd = math.sqrt(n * p * (1.0 - p))
    low, high = max(0, math.floor(n * p - 7 * sd - 20)), min(n, math.ceil(n * p + 7 * sd + 20))
    if high - low <= 400:
        edges = np.arange(low, high)
    else:
        edges = np.floor(n * p + sd * np.linspace(-4.0, 4.0, 400)).astype(np.int64)
    at = stats.binom.cdf(edges, n, p)
    inner = stats.binom.pmf(edges[1:], n, p) if high - low <= 400 else np.diff(at)
    return edges, np.concatenate([at[:1], inner, [stats.binom.sf(edges[-1], n, p)]])


def binomial_chi2(samples, n, p, q, n_comparisons=1):
    """Chi-square of the samples against Binomial(n, p); None if fewer than two cells expect 50.

    The smaller of p and q is the one that is known well, so failures are counted if it is q.
    """
    samples, p = (samples, p) if p <= q else (n - samples, q)
    edges, law = binomial_cells(n, p)
    observed = np.bincount(np.searchsorted(edges, samples, "left"), minlength=len(law))
    if np.sort(law)[-2] * len(samples) < 100:
        return None
    return statcheck.chi2_counts(observed, law / law.sum(), n_comparisons=n_comparisons)


def binomial_mean(samples, n, p, q, n_comparisons=1):
    """p-value of the total of R samples, Binomial(R n, p); true when it is compatible.

    Exact below a variance of 1e4, else normal. Power: at 1e-8, a mean that is wrong by 9 / sqrt(R)
    standard deviations is caught with probability 0.999.
    """
    samples, p = (samples, p) if p <= q else (n - samples, q)
    size, variance = len(samples), len(samples) * n * p * (1.0 - p)
    if variance < 1e4:
        total = stats.binom(float(size) * n, p)
        both = [total.cdf(samples.sum()), total.sf(samples.sum() - 1)]
        p_value = min(1.0, 2.0 * min(both))
    else:
        centre = round(n * Fraction(p))
        excess = int((samples - centre).sum()) + size * (centre - n * Fraction(p))
        p_value = 2.0 * stats.norm.sf(abs(float(excess)) / math.sqrt(variance))
    return p_value >= statcheck.ALPHA_ASYMPTOTIC / n_comparisons


def binomial_variance(samples, n, p, q, n_comparisons=1):
    """Mean of (k - n p)^2 / (n p q) over R samples, normal; true when it is compatible.

    Variance (2 + (1 - 6 p q) / (n p q)) / R. Power: at 1e-8 and large n p q, a variance that is
    wrong by the factor 1 + 13 / sqrt(R) is caught with probability 0.999. None below n p q = 1,
    where it is too skew to be normal.
    """
    samples, p = (samples, p) if p <= q else (n - samples, q)
    v = n * p * (1.0 - p)
    if v < 1.0:
        return None
    centre = round(n * Fraction(p))
    distance = (samples - centre) + float(centre - n * Fraction(p))
    spread = math.sqrt((2.0 + (1.0 - 6.0 * p * (1.0 - p)) / v) / len(samples))
    z = (np.mean(distance**2) / v - 1.0) / spread
    return 2.0 * stats.norm.sf(abs(z)) >= statcheck.ALPHA_ASYMPTOTIC / n_comparisons


def grid(n):
    """(p, q) from 1e-12 to 1 - 1e-12, with n min(p, q) on both sides of the switch."""
    small = [1e-12, 1e-6, 1e-3, 0.03, 0.2, 0.3, 0.5]
    for mean in (0.5, 5.0, 9.9, math.nextafter(SWITCH, 0), SWITCH, 10.1, 12.0, 17.9, 40.0, 300.0):
        if mean / n < 0.5:
            small.append(mean / n)
    return [pair for p in small for pair in ((p, 1.0 - p), (1.0 - p, p))]


SIZES = [1, 2, 3, 5, 8, 20, 50, 64, 100, 400, 1000, 10**4, 10**6, 2**31 + 5, 2**40, MAX_COUNT - 1]


def check_grid(n, size, pairs):
    """All checks at all (p, q); returns how many had the power to be made."""
    made = 0
    for p, q in pairs:
        samples = binomials(n, p, size, f"grid {n} {p}", q)
        assert samples.min() >= 0
        assert samples.max() <= n
        for check in (binomial_chi2, binomial_mean, binomial_variance):
            outcome = check(samples, n, p, q, n_comparisons=3 * len(pairs))
            assert outcome is None or outcome, (n, p, q, check.__name__, outcome)
            made += outcome is not None
    return made


@pytest.mark.statistical
@pytest.mark.parametrize("n", SIZES)
def test_binomial_on_a_grid(n):
    """Chi-square (up to 400 cells), mean and variance of 1e5 draws at every (p, q).

    False alarms: 1e-6 for each n. Power: a mean wrong by 0.03 standard deviations, a variance wrong
    by 4 %; the chi-square sees a cell of probability 0.01 that is wrong by a half. Alone it is too
    weak: see the mutants below.
    """
    made = check_grid(n, 100_000, grid(n))
    assert made >= (14 if n == 1 else 24)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("n", SIZES)
def test_binomial_on_a_grid_with_many_draws(n):
    """The same with 2e6 draws, 4.5 times smaller defects; false alarms 1e-6 for each (p, q)."""
    for pair in grid(n):
        check_grid(n, 2_000_000, [pair])


def exact_cdf(edges, n, p):
    """Binomial distribution function at 30 digits, by summing from the lowest edge - 12 sd."""
    mpmath.mp.dps = 30
    odds = mpmath.mpf(p) / (1 - mpmath.mpf(p))
    k = max(0, int(edges[0] - 12 * math.sqrt(n * p)))
    mass = mpmath.binomial(n, k) * mpmath.mpf(p) ** k * (1 - mpmath.mpf(p)) ** (n - k)
    total, at = mass, []
    for edge in edges:
        while k < edge:
            mass *= mpmath.mpf(n - k) / (k + 1) * odds
            k += 1
            total += mass
        at.append(float(total))
    return np.array(at)


def expanded_cdf(edges, n, p):
    """Edgeworth's expansion of the binomial distribution function; its error is O(1 / (n p q))."""
    sd = math.sqrt(n * p * (1.0 - p))
    x = np.array([float(int(e) + Fraction(1, 2) - n * Fraction(p)) for e in edges]) / sd
    skewness = (1.0 - 2.0 * p) / sd
    return stats.norm.cdf(x) - stats.norm.pdf(x) * skewness * (x**2 - 1.0) / 6.0


def test_scipy_is_a_fit_reference():
    """The grid takes scipy's word, which is checked here up to the largest count.

    It is right to 1e-12 where 30 digits are cheap, and elsewhere to the 1 / (n p q) that is the
    error of an expansion with which it shares nothing.

    A chi-square of R draws feels an error e of a cell of probability c as R e^2 / c, here below
    5e6 (1e-7)^2 / 1e-4 = 5e-4 of non-centrality.
    """
    for n, p in [(50, 0.3), (1000, 0.01), (10**4, 0.5), (10**6, 0.03), (10**6, 3e-4)]:
        edges, _ = binomial_cells(n, p)
        scipy = stats.binom.cdf(edges, n, p)
        np.testing.assert_allclose(scipy, exact_cdf(edges, n, p), rtol=0, atol=1e-12)
    for n in (10**8, 2**31 + 5, 2**40, 2**47, MAX_COUNT - 1):
        for p in (0.5, 0.3, 0.03, 1e-3, 1e-6, 1e-9):
            if (v := n * p * (1.0 - p)) > 5e6:
                edges, _ = binomial_cells(n, p)
                scipy = stats.binom.cdf(edges, n, p)
                # Beyond the 1 / v of the expansion, 2^-53 in p shifts the mean by 1e-16 sqrt(n) sd.
                tolerance = 0.5 / v + 3e-16 * math.sqrt(n * p)
                np.testing.assert_allclose(scipy, expanded_cdf(edges, n, p), rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------
# Multinomial: the checks of a count sampler

WEIGHTS = {
    "even pair": [0.5, 0.5],
    "uneven pair": [0.97, 0.03],
    "one of two": [1.0, 2.0**-53],
    "three": [0.7, 0.2, 0.1],
    "unnormalised": [3e5, 2e5, 7e5],
    "zeros": [0.0, 0.5, 0.0, 0.3, 0.2, 0.0],
    "tiny": [1e-12, 0.3, 1e-7, 0.7, 1e-300],
    "float32": [float(w) for w in np.array([0.1, 0.2, 0.05, 0.65], np.float32)],
    "forty": [1.0 / (j + 1) for j in range(40)],
}


def grouped(samples, p, groups=5):
    """Collapse categories j, j + groups, ... into one: at most `groups` columns."""
    index = np.arange(len(p)) % groups
    columns = [samples[:, index == g].sum(axis=1) for g in range(min(groups, len(p)))]
    return np.stack(columns, axis=1), np.array([p[index == g].sum() for g in range(len(columns))])


def without_rare(samples, n, p, least=5.0):
    """Collapse the categories that expect less than `least` agents into the most probable one."""
    keep = n * p >= least
    top = int(np.argmax(p))
    samples, q = samples.copy(), p.copy()
    samples[:, top] += samples[:, ~keep].sum(axis=1)
    q[top] += p[~keep].sum()
    return samples[:, keep], q[keep]


def check_possible(samples, n, weights):
    """Check 2: nobody is lost, nobody is where no weight is."""
    assert samples.min() >= 0
    assert np.array_equal(samples.sum(axis=1), np.full(len(samples), n))
    assert not samples[:, np.asarray(weights) == 0.0].any()


@pytest.mark.statistical
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("n", [1, 1000, 10**9])
def test_multinomial(n, name):
    """Checks 2 to 6 and 8: invariants, pooled mean, dispersion, marginals, collapsed pairs.

    False alarms: 1e-6 for the pooled mean and the dispersion, 1e-9 for the others. Power: the
    pooled mean has 5e5 (n = 1), 2e8 or 2e13 trials and sees, at 2e8, a cell of 0.2 wrong by 0.15 %;
    the dispersion sees, with 2e4 replicas, a variance wrong by 8 % / sqrt(K - 1); marginals and
    pairs see a gap of 0.05 in a distribution function (0.12 at n = 1e9, where the law is dear).
    """
    weights, pooled = WEIGHTS[name], {1: 500_000, 1000: 200_000, 10**9: 20_000}[n]
    p = law_of(weights)
    samples = multinomials(n, weights, pooled, f"multinomial {n} {name}")
    check_possible(samples, n, weights)
    if np.sort(p)[-2] * pooled * n > 100:
        assert statcheck.pooled_mean(samples, p)
    samples = samples[:20_000]
    if n > 1:
        common, q = without_rare(samples, n, p)
        if len(q) > 1:
            assert statcheck.dispersion(common, n, q)
    samples, q = grouped(samples if n < 10**9 else samples[:3000], p)
    assert statcheck.dkw_marginals(samples, n, q)
    if len(q) > 2:
        assert statcheck.dkw_pairs(samples, n, q)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("n", "weights"),
    [
        (1, (0.1, 0.2, 0.3, 0.4)),
        (2, (0.5, 0.0, 0.3, 0.2)),
        (6, (0.6, 0.3, 0.1)),
        (6, (0.1, 0.2, 0.3, 0.4)),
        (40, (0.6, 0.3, 0.1)),  # the two ways to draw, whatever the switch between them
        (90, (0.2, 0.8)),
        (120, (0.95, 0.05, 0.0)),
    ],
)
def test_small_multinomial_is_exact(n, weights):
    """Check 1: chi-square over all outcomes, 3e5 draws; it sees every defect at these sizes.

    False alarms: 1e-6. Power: total variation of 0.01 spread over 84 outcomes (N = 6, K = 4) has
    non-centrality 120 and more.
    """
    samples = multinomials(n, weights, 300_000, f"small {n} {weights}")
    check_possible(samples, n, weights)
    law = multinomial_law(n, tuple(law_of(weights)))
    assert statcheck.chi2_law(statcheck.outcomes(samples), law)


@pytest.mark.statistical
@pytest.mark.parametrize("n", [3, 60, 200])
def test_multinomial_agrees_with_its_twins(n):
    """Check 9: two-sample DKW against a loop over agents, and against numpy, for every category.

    False alarms: 1e-9. Power: 4e4 against 4e4 draws see a gap of 0.07.
    """
    weights = np.array([0.45, 0.3, 0.15, 0.1])
    replicas, rng = 40_000, statcheck.generator(f"twin {n}")
    samples = multinomials(n, weights, replicas, f"twins {n}")
    agents = np.searchsorted(np.cumsum(weights)[:-1], rng.random((replicas, n)), "right")
    counted = [(agents == j).sum(axis=1) for j in range(4)]
    theirs = rng.multinomial(n, weights, replicas)
    for j in range(4):
        assert statcheck.dkw_two_sample(samples[:, j], counted[j], n_comparisons=8)
        assert statcheck.dkw_two_sample(samples[:, j], theirs[:, j], n_comparisons=8)


# ------------------------------------------------------------------------------------------------
# Independence of streams, through the simulator


def stay(s, mu, node, edge, prob, reward):
    """Everybody stays: a state is then nothing but a multinomial over its actions."""
    for a in range(prob.shape[0]):
        prob[a, 0] = 1.0
        reward[a] = 0.0


STATES = 130  # three blocks of 64 states, each with its own stream


def actions(agents, n_replicas, n_steps, tag, **options):
    """Agents of each isolated state that take action 0 of two with probability 0.4, (T, B, S)."""
    graph = ltde.Graph(STATES, np.empty((0, 2), int))
    counts = np.full(STATES, agents)
    model = ltde.NetworkedModel(graph, 2, stay, initial=counts, discount=0.9)
    seed = statcheck.seed(tag) + options.pop("seed_offset", 0)
    simulator = ltde.Simulator(model, agents * STATES, n_replicas, seed=seed, **options)
    policy = np.tile([0.4, 0.6], (STATES, 1))
    return simulator.rollout(policy, n_steps, record=("actions",)).actions[..., 0]


def neighbours(taken):
    """Pairs of cells with addresses that differ in one field: state, block, step, replica."""
    yield "states", taken[:, :, :-1], taken[:, :, 1:]
    yield "blocks", taken[:, :, :66], taken[:, :, 64:]
    yield "steps", taken[:-1], taken[1:]
    yield "two steps", taken[:-2], taken[2:]
    yield "replicas", taken[:, :-1], taken[:, 1:]
    yield "replica and step", taken[1:, :-1], taken[:-1, 1:]
    yield "block and step", taken[1:, :, :66], taken[:-1, :, 64:]


def action_law(agents):
    """Law of how many of the agents of a state take action 0."""
    return {k: float(stats.binom.pmf(k, agents, 0.4)) for k in range(agents + 1)}


@pytest.mark.statistical
@pytest.mark.parametrize("agents", [3, 25, 10**6])
def test_cells_are_independent(agents):
    """Check 7: counts of neighbouring states, blocks, steps and replicas are independent.

    Statistics: correlation, and for 3 agents chi-square of the pairs of counts against the product
    law, which also sees dependence without correlation. False alarms: 1e-6. Power: 1.6e5 pairs
    see a correlation of 0.022; a shared stream has 1.
    """
    taken = actions(agents, 50, 50, f"cells {agents}")
    if agents <= 25:
        assert statcheck.chi2_law(taken.ravel().tolist(), action_law(agents))
    pairs = [(name, first.ravel(), second.ravel()) for name, first, second in neighbours(taken)]
    for offset in (1, 2**32):
        other = actions(agents, 50, 50, f"cells {agents}", seed_offset=offset)
        pairs.append(("seeds", taken.ravel(), other.ravel()))
    for name, first, second in pairs:
        check = statcheck.correlation(first, second, n_comparisons=2 * len(pairs))
        assert check, (name, check)
        if agents == 3:
            law = list(action_law(3).values())
            observed = np.bincount(first * 4 + second, minlength=16)
            check = statcheck.chi2_counts(
                observed, np.outer(law, law).ravel(), n_comparisons=2 * len(pairs)
            )
            assert check, (name, check)


@pytest.mark.statistical
def test_a_shared_stream_is_caught():
    """Mutant "same stream for two states", also if only 3 % of the draws share it."""
    taken = actions(25, 50, 50, "shared stream")
    first, second = taken[..., 0:60].ravel(), taken[..., 64:124].ravel()
    assert statcheck.correlation(first, second)
    assert not statcheck.correlation(first, first)
    assert not statcheck.correlation(first, 25 - first)
    shared = np.arange(len(first)) % 33 == 0
    assert not statcheck.correlation(first, np.where(shared, first, second))


# ------------------------------------------------------------------------------------------------
# Mutants of the multinomial: each must fail, and the table says by which check


def shipped(n, p, size, rng):
    """Ours."""
    out = np.zeros((size, len(p)), np.int64)
    _core.multinomial(n, np.asarray(p, float), int(rng.integers(2**63)), out)
    return out


def rounded_shares(n, p, size, rng):
    """Every replica the expectation, rounded: no chance at all."""
    shares = np.floor(n * np.asarray(p)).astype(np.int64)
    shares[0] += n - shares.sum()
    return np.tile(shares, (size, 1))


def poissons(n, p, size, rng):
    """Poissonised counts."""
    return rng.poisson(n * np.asarray(p), (size, len(p)))


def gaussians(n, p, size, rng):
    """Draw rounded normal counts with the right marginal variances."""
    p = np.asarray(p)
    normal = rng.normal(n * p, np.sqrt(n * p * (1 - p)), (size, len(p)))
    return np.maximum(np.rint(normal), 0).astype(np.int64)


def normal_chain(n, p, size, rng):
    """Conditional counts from a rounded normal law: right sums, means and covariances."""
    tail, left = np.cumsum(p[::-1])[::-1], np.full(size, n)
    out = np.zeros((size, len(p)), np.int64)
    for j in range(len(p)):
        q = p[j] / tail[j] if tail[j] > 0 else 0.0
        normal = rng.normal(left * q, np.sqrt(left * q * (1 - min(q, 1.0))))
        out[:, j] = np.clip(np.rint(normal), 0, left)
        left = left - out[:, j]
    return out


def mixed_replicas(n, p, size, rng):
    """Right marginals from independent replicas: one column is permuted."""
    out = rng.multinomial(n, law_of(p), size)
    out[:, 1] = rng.permutation(out[:, 1])
    return out


def biased(n, p, size, rng):
    """Make the first probability too large by 0.1 %."""
    q = np.array(p, float)
    q[0] *= 1.001
    return rng.multinomial(n, law_of(q), size)


def running_sum(n, p, size, rng):
    """Conditional probabilities by 1 - running sum, the last category takes what is left."""
    out, left, rest = np.zeros((size, len(p)), np.int64), np.full(size, n), 1.0
    for j in range(len(p) - 1):
        out[:, j] = rng.binomial(left, min(1.0, p[j] / rest))
        left = left - out[:, j]
        rest -= p[j]
    out[:, -1] = left
    return out


def float32_chain(n, p, size, rng):
    """Keep counts in float32."""
    out = rng.multinomial(n, law_of(p), size)
    return out.astype(np.float32).astype(np.int64)


MUTANTS = {
    shipped: set(),
    rounded_shares: {"small", "dispersion", "marginals", "pairs"},
    poissons: {"possible", "small", "dispersion", "marginals", "pairs"},
    gaussians: {"possible", "small", "pairs"},
    normal_chain: {"small"},
    mixed_replicas: {"possible", "small", "pairs"},
    biased: {"pooled mean"},
    running_sum: {"possible"},
    float32_chain: {"possible"},
}


def failures(sampler, tag):
    """Names of the checks that a multinomial sampler fails: the checks of the tests above."""
    rng = statcheck.generator(tag)
    failed = set()

    def note(name, outcome):
        if not outcome:
            failed.add(name)

    def possible(n, weights, size):
        samples = sampler(n, weights, size, rng)
        try:
            check_possible(samples, n, weights)
        except AssertionError:
            failed.add("possible")
        return samples

    # Weights as float32 gives them: their sum is 1 - 7e-9, which is 75 of 1e10 agents.
    possible(10**10, np.array([0.1, 0.2, 0.7, 0.0], np.float32).astype(float), 100)
    law = multinomial_law(6, (0.6, 0.3, 0.1))
    samples = sampler(6, np.array([0.6, 0.3, 0.1]), 100_000, rng)
    note("small", statcheck.chi2_law(statcheck.outcomes(samples), law))
    p = np.array([0.5, 0.3, 0.15, 0.05])
    samples = possible(1000, p, 20_000)
    note("dispersion", statcheck.dispersion(samples, 1000, p))
    note("marginals", statcheck.dkw_marginals(samples, 1000, p))
    note("pairs", statcheck.dkw_pairs(samples, 1000, p))
    note("pooled mean", statcheck.pooled_mean(sampler(100_000, p, 10_000, rng), p))
    return failed


@pytest.mark.statistical
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_fails(mutant):
    """The table of which check catches which mutant (STYLE 5.3); no check catches all of them.

    One more agent in 1e10 fails "possible"; 0.1 % of bias fails only at 1e9 trials.
    """
    assert failures(mutant, f"mutant {mutant.__name__}") == MUTANTS[mutant]


# ------------------------------------------------------------------------------------------------
# Mutants of the binomial


def rounded_normal(n, p, size, rng):
    """Draw from the normal approximation."""
    normal = rng.normal(n * p, math.sqrt(n * p * (1 - p)), size)
    return np.clip(np.rint(normal), 0, n).astype(np.int64)


def strips():
    """Left ends, widths, and the squeeze of the strips of the hat, and their area (`hat.rs`)."""
    room = 1.0005
    area = 0.009_988_281_030_393_276 * room
    left = [0.0]
    while len(left) < 128:
        left.append(left[-1] + area / room * math.exp(left[-1] ** 2 / 2))
    left = np.array(left)
    right, width = left[1:], np.diff(left)
    level = np.exp(-(right**2) / 2) * width / (area * room)
    slope = 0.24 + 1.13 * right + 0.51 * right**2
    return left, np.append(width, 0.0), np.append(level, -1.0), np.append(slope, 0.0), area


def unrestricted_rejection(n, p, size, rng):
    """Use rejection whatever n p; its hat and its squeeze are wrong below 6."""
    q = 1.0 - p
    scale, mode = math.sqrt(n * p * q) + 0.65, math.floor((n + 1) * p)
    left, widths, level, slope, area = strips()

    def ln_mass(k):
        return k * math.log(p / q) - special.gammaln(k + 1) - special.gammaln(n - k + 1)

    kept = []
    while sum(map(len, kept)) < size:
        u, v = 1.0 - rng.random(size // 2), 1.0 - rng.random(size // 2)
        strip, sign = rng.integers(0, 128, size // 2), rng.choice([-1, 1], size // 2)
        tail = strip == 127
        z = np.where(tail, left[127] * u**-0.25, left[strip] + widths[strip] * u)
        width = np.where(tail, left[127] / 4 * u**-1.25, widths[strip])
        k = np.floor((n + 1) * p + sign * scale * z)
        squeeze = slope[strip] <= (level[strip] - v) * scale
        height = v * area / width * (1 + 0.22 / scale)
        inside = (k >= 0) & (k <= n)
        exact = np.log(height) <= ln_mass(np.where(inside, k, mode)) - ln_mass(mode)
        kept.append(k[squeeze | (inside & exact)])
    return np.concatenate(kept)[:size].astype(np.int64)


@pytest.mark.statistical
def test_a_rounded_normal_is_caught_where_it_is_skew():
    """Mutant "rounded normal": caught at n p = 15, not at n = 1e4, p = 0.3 (non-centrality 2.5).

    At large counts the chi-square is blind; the acceptance test in `rejection.rs` is not.
    """
    rng = statcheck.generator("rounded normal")
    assert not binomial_chi2(rounded_normal(50, 0.3, 200_000, rng), 50, 0.3, 0.7)
    assert binomial_chi2(rounded_normal(10**4, 0.3, 200_000, rng), 10**4, 0.3, 0.7)
    assert binomial_chi2(binomials(50, 0.3, 200_000, "not normal"), 50, 0.3, 0.7)


@pytest.mark.statistical
def test_chi_square_is_blind_to_rejection_below_its_range():
    """Mutant "rejection below n p = 6": even at n p = 3 no chi-square of 2e5 draws sees it.

    This is why `rejection.rs` computes the margins of the hat: there it fails at 5.5, 3 and 2.
    """
    for mean in (5.5, 3.0):
        rng = statcheck.generator(f"rejection {mean}")
        samples = unrestricted_rejection(1000, mean / 1000, 200_000, rng)
        assert binomial_chi2(samples, 1000, mean / 1000, 1 - mean / 1000)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("mean", "exact"), [(7.0, True), (2.0, False)])
def test_rejection_far_below_its_range_is_caught_by_many_draws(mean, exact):
    """1e7 draws: at n p = 7 the same code is exact, at n p = 2 it is not (X2 = 259, 11 degrees)."""
    rng = statcheck.generator("rejection with many draws")
    samples = unrestricted_rejection(1000, mean / 1000, 10_000_000, rng)
    assert bool(binomial_chi2(samples, 1000, mean / 1000, 1 - mean / 1000)) == exact


@pytest.mark.statistical
def test_second_squeeze_beyond_its_range_is_not_used():
    """Binomial(17.9e9, 1e-9) has mass 1.68e-8 at 0, beyond the range of the second squeeze.

    The mutant that takes such candidates as if they were at the end of the range gives 0 a mass of
    1.4e-4. 1e7 draws: 0.17 expected. False alarms: 1e-6 (exact Poisson), at 5. Power: the mutant
    expects 1,400. `acceptance_is_the_exact_ratio` in `rejection.rs` sees it for certain.
    """
    zeros = int((binomials(17_900_000_000, 1e-9, 10**7, "squeeze") == 0).sum())
    assert stats.poisson.sf(zeros - 1, 1e7 * math.exp(-17.9)) > statcheck.ALPHA_ASYMPTOTIC


@pytest.mark.statistical
def test_complement_of_p_is_not_recomputed():
    """Mutant "q = 1 - p" at p = 1 - 1e-12: 1 - p is 2.2e-5 off, relative to itself.

    Statistic: total of the failures, 1.2e7 draws of 9007. False alarms: 1e-6. Power: the mutant is
    at z = 7.3.
    """
    p, q, size = 1.0 - 1e-12, 1e-12, 3_000_000
    ours = mutant = 0
    for batch in range(4):
        ours += int((MAX_COUNT - binomials(MAX_COUNT, p, size, f"q {batch}", q)).sum())
        mutant += int((MAX_COUNT - binomials(MAX_COUNT, p, size, f"1 - p {batch}", 1.0 - p)).sum())
    expected = 4 * size * MAX_COUNT * q
    z = [(total - expected) / math.sqrt(expected) for total in (ours, mutant)]
    alarm = stats.norm.isf(statcheck.ALPHA_ASYMPTOTIC / 2)
    assert abs(z[0]) < alarm < abs(z[1])


# ------------------------------------------------------------------------------------------------
# What went wrong elsewhere, one test for each fault
#
# In Rust: numpy#31238, Distributions.jl#2053, tensorflow#34398 (signs and digits of Stirling's
# series: `reference.rs`), rand#1324, numba#1640, numba#9493 (endless loops: `samplers.rs`).


@pytest.mark.statistical
def test_tiny_p_is_not_zero():
    # numpy#29522: below 2^-53, 1 - p rounds to 1 and every draw was 0; boostorg/random#81: the same
    # near n p = 1 gave a wrong mean.
    for n, p, size in [(50_000_000_000, 5e-17, 4_000_000), (MAX_COUNT, 6.27043e-17, 200_000)]:
        samples = binomials(n, p, size, f"tiny {p}")
        assert binomial_mean(samples, n, p, 1.0)
    assert binomial_chi2(samples, n, p, 1.0)
    # The reference itself, Binomial(n, p) at such p, is Poisson to n p^2 = 4e-17.
    _, law = binomial_cells(n, p)
    np.testing.assert_allclose(law[:5], stats.poisson.pmf(range(5), n * p), rtol=1e-9)


def test_counts_beyond_32_bits():
    # numpy#16587: n above 2^31 wrapped; numpy#5254: -2^31 was returned; rand#1378: a panic for
    # extreme p.
    for n in (2**31 - 1, 2**31, 2**31 + 5, 2**32 + 1, 10**10, MAX_COUNT):
        samples = binomials(n, 0.5, 1000, f"wide {n}")
        assert (np.abs(samples - n // 2) < 7 * math.sqrt(n / 4)).all()
        assert (binomials(n, np.finfo(float).tiny, 1000, "tiny", 1.0) == 0).all()
        assert (binomials(n, 1.0, 1000, "all", np.finfo(float).tiny) == n).all()
        counts = multinomials(n, [0.5, 0.25, 0.25], 1000, f"wide {n}")
        check_possible(counts, n, [0.5, 0.25, 0.25])
    with pytest.raises(OverflowError, match=r"n: at most 2\^53, got 9007199254740993"):
        binomials(MAX_COUNT + 1, 0.5, 1, "too many")


def test_not_a_number_is_refused():
    # numpy#14268: an array of NaN gave -9223372036854775798.
    for p, q in [(math.nan, math.nan), (math.nan, 0.5), (0.5, math.nan)]:
        with pytest.raises(ValueError, match="p, q: expected probabilities with p \\+ q = 1, got"):
            binomials(10, p, 1, "nan", q)
    with pytest.raises(ValueError, match=r"weights\[1\]: expected a finite number >= 0, got NaN"):
        multinomials(10, [0.5, math.nan], 1, "nan")


@pytest.mark.parametrize("n", [10**10, 10**11, 10**12])
def test_the_last_category_gets_no_rest(n):
    # numpy#14789: what is missing to a sum of 1 went to the last category, which has probability 0
    # here; of 1e10, 1e11 and 1e12 agents it got 75, 745 and 7451.
    row = np.array([0.1, 0.2, 0.7, 0.0], np.float32).astype(float)
    assert 1.0 - math.fsum(row) > 7e-9
    samples = multinomials(n, row, 1000, f"rest {n}")
    check_possible(samples, n, row)
    # Nor does it take part of the rest if it has weight: row 4 has its share and no more.
    row[3] = 1e-8
    expected = 1000 * n * law_of(row)[3]
    got = multinomials(n, row, 1000, f"share {n}")[:, 3].sum()
    assert abs(got - expected) < 6 * math.sqrt(expected)


def test_rows_that_miss_one_are_taken():
    # numpy#8317, numpy#25106, numpy#16688: float32 rows with a sum of 1 + 2e-8 were refused.
    logits = statcheck.generator("softmax").normal(size=(200, 64)).astype(np.float32)
    rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert rows.dtype == np.float32
    sums = rows.astype(float).sum(axis=1)
    assert sums.min() < 1.0 - 1e-8 < 1.0 + 1e-8 < sums.max()
    for i, row in enumerate(rows):
        check_possible(multinomials(10**9, row, 3, f"row {i}"), 10**9, row)


def test_a_single_trial_is_zero_or_one():
    # pytorch#42153: Binomial(1, 0.9) was -1 about once in 1e8, for a uniform that rounds to 1.
    samples = binomials(1, 0.9, 10_000_000, "single")
    assert samples.min() == 0
    assert samples.max() == 1


def test_impossible_is_impossible():
    # pytorch#26807, pytorch#15356: Bernoulli(0) was 1 in 3 to 11 of 1e8 draws.
    for n in (1, 100, MAX_COUNT):
        assert not binomials(n, 0.0, 1_000_000, "never", 1.0).any()
        assert (binomials(n, 1.0, 1_000_000, "always", 0.0) == n).all()


def test_nothing_is_left_for_the_categories_after_the_last_weight():
    # tensorflow/probability#1684, pytensor#1327: 0 / 0 there, and a loop without an end.
    for weights in ([0.3, 0.7, 0.0, 0.0], [0.0, 1.0, 0.0], [1e-300, 1.0, 0.0], [1.0, 1e-300, 0.0]):
        for n in (0, 1, 10, 10**6, MAX_COUNT):
            check_possible(multinomials(n, weights, 2000, f"after {weights} {n}"), n, weights)


@pytest.mark.statistical
def test_low_bits_are_not_quantised():
    """Counts modulo 16 are uniform where the standard deviation is large, up to 2^53.

    Chi-square, 4e5 draws; false alarms: 1e-6. Power: one class in 16 off by 6 %.
    """
    # rand_distr#22: multiples of powers of 2; a float32 sampler (JAX, torch) has them from 2^24.
    sizes = [2**24 + 1, 2**30, 2**40, 2**50 + 1, 2**53 - 1, 2**53]
    for n, p in itertools.product(sizes, (0.5, 0.3, 0.9)):
        samples = binomials(n, p, 400_000, f"low bits {n} {p}")
        observed = np.bincount(samples % 16, minlength=16)
        # Poisson summation: the classes are equal up to exp(-2 (pi sd / 16)^2), nothing here.
        assert statcheck.chi2_counts(observed, np.full(16, 1 / 16), n_comparisons=18), (n, p)
    coarse = samples.astype(np.float32).astype(np.int64)
    assert not statcheck.chi2_counts(np.bincount(coarse % 16, minlength=16), np.full(16, 1 / 16))


def test_no_agent_is_lost_in_float32():
    # JAX keeps counts in float32: sums differ from n above 2^24.
    weights = [0.3, 0.3, 0.4]
    for n in (2**24 - 1, 2**24 + 1, 10**9 + 7, MAX_COUNT - 1):
        check_possible(multinomials(n, weights, 2000, f"float32 {n}"), n, weights)

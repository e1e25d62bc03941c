"""Reference values of the functions inside the binomial sampler, by mpmath at 60 digits.

    python tests/reference/ln_pmf_ratio.py

writes `rust/ltde-core/tests/reference/{ln_pmf_ratio,elementary}.csv`, which `reference.rs` reads.
"""

import math
import random
from fractions import Fraction
from pathlib import Path

import mpmath

OUTPUT = Path(__file__).parents[2] / "rust/ltde-core/tests/reference"
MAX_COUNT = 2**53
mpmath.mp.dps = 60


def ln_pmf_ratio(n, p, m, k):
    """Return ln f(k) / f(m) for f = Binomial(n, p), p taken as the exact value of the float."""
    n, m, k, p = mpmath.mpf(n), mpmath.mpf(m), mpmath.mpf(k), mpmath.mpf(p)
    choose = [mpmath.loggamma(i + 1) + mpmath.loggamma(n - i + 1) for i in (m, k)]
    return choose[0] - choose[1] + (k - m) * (mpmath.log(p) - mpmath.log1p(-p))


def ratio_rows(rng):
    """Draw (n, p, mode, k) where the sampler uses rejection: n p >= 6, k within 6 sd."""
    sizes = [12, 13, 20, 21, 25, 33, 100, 1000, MAX_COUNT - 1]
    for exponent in (5, 6, 8, 10, 12, 16, 20, 24, 30, 31, 32, 36, 40, 44, 47, 50, 52, 53):
        top = 2**exponent - (exponent == 53)
        sizes += [top] + [top - rng.randrange(2 ** (exponent - 2)) for _ in range(3)]
    for n in sizes:
        low = max(6 / n, 1e-12)
        for i in range(6):
            # The ends of the range and, between them, p uniform on the scale of logarithms.
            p = 0.5 if i == 0 else low if i == 1 else math.exp(rng.uniform(math.log(low), -0.7))
            p = min(max(p, low), 0.5)
            m = min(math.floor((n + 1) * Fraction(p)), n)
            sd = math.sqrt(n * p * (1 - p))
            for z in (rng.uniform(-6, 6), rng.choice([-6, -1e-3, 1e-3, 6])):
                yield n, p, m, min(max(m + round(z * sd), 0), n)


def elementary_rows(rng):
    """Arguments of ln, ln_1p and exp over the ranges that they promise."""
    for _ in range(150):
        yield "ln", mpmath.log, 10 ** rng.uniform(-300, 300)
        yield "ln", mpmath.log, 1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-16, -0.5)
        yield "ln_1p", mpmath.log1p, rng.choice([-1, 1]) * 10 ** rng.uniform(-17, -1e-3)
        yield "ln_1p", mpmath.log1p, 10 ** rng.uniform(0, 15)
        yield "exp", mpmath.exp, rng.uniform(-700, 700)
        yield "exp", mpmath.exp, -(10 ** rng.uniform(-12, 1.5))
    for x in (math.sqrt(0.5), math.sqrt(2), 2.0, 0.5, 1 + 2**-52, 1 - 2**-53):
        yield "ln", mpmath.log, x
        yield "ln", mpmath.log, math.nextafter(x, 0)
    for x in (-1 + 2**-53, 2.0**-1000, -(2.0**-1000), 1e-5, 5e-324):
        yield "ln_1p", mpmath.log1p, x
    for x in (-700.0, 700.0, 0.5 * math.log(2), 1.5 * math.log(2), -0.5 * math.log(2), 1e-300):
        yield "exp", mpmath.exp, x


def write(name, header, rows):
    """Write one table; 17 digits give a float back exactly, 20 are more than it can hold."""
    lines = [f"# made by tests/reference/{Path(__file__).name}", header, *rows]
    (OUTPUT / name).write_text("\n".join(lines) + "\n")


def main():
    """Write both tables."""
    OUTPUT.mkdir(exist_ok=True)
    rng = random.Random(1)
    rows = [
        f"{n},{p:.17g},{m},{k},{mpmath.nstr(ln_pmf_ratio(n, p, m, k), 20)}"
        for n, p, m, k in ratio_rows(rng)
    ]
    write("ln_pmf_ratio.csv", "n,p,m,k,ln_ratio", rows)
    rows = [
        f"{name},{x:.17g},{mpmath.nstr(function(mpmath.mpf(x)), 20)}"
        for name, function, x in elementary_rows(rng)
    ]
    write("elementary.csv", "function,x,value", rows)


if __name__ == "__main__":
    main()

"""Plot the regret of the theory preset: J of the best policy found, less J of the iterates.

The algorithm of the paper with the rates of Theorem 5.10 on the system `work` of
`tests/solvable.py`, with five seeds; J is exact. The theorem bounds the smallest regret so far by a
term that falls like T_actor^(-1/4) and by terms that do not fall with T_actor. The reference is the
policy that the practical preset finds.

Run ``python benchmarks/theory_regret.py`` from the root of the repository; ``--help`` lists the
options. Needs matplotlib and scipy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import report

report.use_one_thread(pin=False)

import ltde  # noqa: E402
import numpy as np  # noqa: E402
from ltde.exact import ExactSystem  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import solvable  # noqa: E402

N_AGENTS = 2


def values(seed, options):
    """Return the exact J before training and after every few iterations."""
    model = solvable.work()
    config = ltde.Config.theory(
        model.discount,
        n_iterations=options.iterations,
        critic_steps=options.critic_steps,
        reward_scale=1.0 - model.discount,  # |r| <= 1
        width=options.width,
        n_draws=options.draws,
        evaluate_every=0,
        seed=seed,
    )
    trainer = ltde.LTDENeuralAC(model, N_AGENTS, config, threads=1)
    found = [ExactSystem(model, N_AGENTS, trainer.policy).J]
    for done in range(options.every, options.iterations + 1, options.every):
        trainer.fit(n_iterations=done, progress=False)
        found.append(ExactSystem(model, N_AGENTS, trainer.policy).J)
    return found, config.unmet_conditions(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=144)
    parser.add_argument("--critic-steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--plot", type=Path, default=Path("docs/theory_regret.png"))
    options = parser.parse_args()
    model = solvable.work()
    config = ltde.Config.practical(n_iterations=100)
    practical = ltde.LTDENeuralAC(model, N_AGENTS, config, threads=1).fit(progress=False).best
    best = ExactSystem(model, N_AGENTS, practical).J
    curves = []
    for seed in range(5):
        found, unmet = values(seed, options)
        curves.append(best - np.array(found))
        print(f"seed {seed}: regret {curves[-1][0]:.3f} -> {curves[-1][-1]:.3f}", flush=True)
    print("Conditions of Theorem 5.10 that do not hold:", *unmet, sep="\n- ")
    mean, iterations = np.mean(curves, axis=0), options.every * np.arange(len(curves[0]))
    half = 2.776 * np.std(curves, axis=0, ddof=1) / len(curves) ** 0.5  # Student's t, 4 degrees
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(iterations, mean - half, mean + half, color="#0072B2", alpha=0.2, lw=0)
    axes.plot(iterations, mean, color="#0072B2", label="mean of 5 seeds, 95 % interval")
    axes.set(xlabel="iteration", ylabel="J of the practical preset, less J", ylim=(0.0, None))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(options.plot, dpi=110)
    print(f"Wrote {options.plot.as_posix()}")


if __name__ == "__main__":
    main()

"""Time ltde against itself: more agents, more threads, more empty states, a model in Rust.

Run ``python benchmarks/scaling.py`` from the root of the repository; ``--help`` lists the options.
Each part alternates its contenders within one run, and the figures that count are the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import report

PACKAGES = ("numpy", "numba", "ltde")
N_ACTIONS = 5

MOST_POPULATION_RATIO = 1.5
LEAST_THREAD_RATIO = 1.7

MIB = 2**20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each turn")
    parser.add_argument("--out", type=Path, default=Path("docs/performance-scaling.json"))
    parser.add_argument("--markdown", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--print-only", action="store_true", help="write no file")
    parser.add_argument(
        "--check-targets", action="store_true", help="exit with 1 if a target is missed"
    )
    return parser.parse_args()


def grid_model(rows: int, cols: int) -> Any:
    """Build the model of `workload.slip` on a grid, agents starting anywhere."""
    import ltde
    import numpy as np
    from workload import slip

    n_states = rows * cols
    return ltde.NetworkedModel(
        ltde.Graph.grid(rows, cols),
        N_ACTIONS,
        slip,
        initial=np.full(n_states, 1 / n_states),
        discount=0.9,
        reward_range=(0.0, 1.0),
    )


def walk(
    model: Any, n_agents: int, n_replicas: int, n_steps: int, threads: int = 1
) -> Callable[[], int]:
    """Return a function that makes `n_steps` more steps under the uniform policy."""
    import ltde
    import numpy as np

    n_states = model.graph.n_states
    policy = ltde.TabularPolicy(np.full((n_states, N_ACTIONS), 1 / N_ACTIONS))
    sim = ltde.Simulator(model, n_agents, n_replicas, seed=1, threads=threads)

    def call() -> int:
        sim.rollout(policy, n_steps, record=())
        return n_steps

    return call


def population(rounds: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Compare a billion agents with a million on the same graph."""
    model = grid_model(32, 32)
    timed = report.round_robin(
        {f"{n:,}": walk(model, n, 4, n_steps=10) for n in (10**6, 10**9)}, rounds, seconds
    )
    small, large = (report.typical(timed, name) for name in timed[0])
    result = _judged(
        "N = 10^9 against 10^6, 32x32, B = 4",
        report.ratio(timed, ["1,000,000,000"], "1,000,000"),
        MOST_POPULATION_RATIO,
        at_most=True,
    )
    result |= {"ms_million": small * 1e3, "ms_billion": large * 1e3}
    text = report.table(
        ["step time", "10^6, ms", "10^9, ms", "ratio", "target"],
        [
            [
                "32x32, B = 4",
                report.number(small * 1e3),
                report.number(large * 1e3),
                _verdict_cell(result),
                f"at most {MOST_POPULATION_RATIO}",
            ]
        ],
    )
    return [result], text


def threads(rounds: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Compare two threads with one, with many replicas and with a single one."""
    if report.n_cores() < 2:
        return [], "Two threads: not measured, the process may use one core only."
    results = []
    rows = []
    per_state = 100
    for side, n_replicas in ((32, 1), (32, 2), (32, 3), (32, 16), (200, 1)):
        model = grid_model(side, side)
        n_steps = max(1, 200 * 1024 // (side * side * n_replicas))
        timed = report.round_robin(
            {
                str(n): walk(model, per_state * side * side, n_replicas, n_steps, threads=n)
                for n in (1, 2)
            },
            rounds,
            seconds,
        )
        one, two = (report.typical(timed, name) for name in ("1", "2"))
        name = f"{side}x{side}, B = {n_replicas}"
        result = _judged(
            f"two threads, {name}", report.ratio(timed, ["1"], "2"), LEAST_THREAD_RATIO
        )
        results.append(result | {"ms_one": one * 1e3, "ms_two": two * 1e3})
        rows.append(
            [
                name,
                report.number(one * 1e3),
                report.number(two * 1e3),
                _verdict_cell(result),
                f"{LEAST_THREAD_RATIO}",
            ]
        )
    text = report.table(
        [f"step at N/S = {per_state}", "one thread, ms", "two, ms", "ratio", "target"], rows
    )
    return results, text


def occupied(rounds: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Compare a thousand agents on a huge grid with as many on a small one, then fill the grid."""
    timed = report.round_robin(
        {str(side): walk(grid_model(side, side), 1000, 1, n_steps=2000) for side in (100, 1000)},
        rounds,
        seconds,
    )
    small, large = (report.typical(timed, name) for name in ("100", "1000"))
    sparse = {
        "name": "N = 1000, 1000x1000 against 100x100",
        "value": report.ratio(timed, ["1000"], "100"),
        "us_100x100": small * 1e6,
        "us_1000x1000": large * 1e6,
    }
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as child:
        dense = child.submit(dense_grid, rounds, report.n_cores()).result()
    text = report.table(
        ["1000 agents, record=()", "100x100, us", "1000x1000, us", "ratio"],
        [["step", *map(report.number, (small * 1e6, large * 1e6, sparse["value"]))]],
    )
    text += "\n\n" + report.table(
        ["10^9 agents on 1000x1000", ""],
        [
            ["threads", str(dense["threads"])],
            ["steps per second", report.number(dense["value"])],
            ["peak memory, MiB", report.number(dense["peak_mib"])],
            ["of it before the simulator (Python, numba, model), MiB", f"{dense['model_mib']:.0f}"],
        ],
    )
    return [sparse, dense], text


def dense_grid(rounds: int, threads: int) -> dict[str, Any]:
    """Step a billion agents on a million states, in a process of its own for its peak memory."""
    model = grid_model(1000, 1000)
    before = report.peak_memory()
    call = walk(model, 10**9, 1, n_steps=2, threads=threads)
    timed = report.round_robin({"dense": call}, rounds, seconds=0.0)
    return {
        "name": "N = 10^9, 1000x1000, steps per second",
        "value": 1 / report.typical(timed, "dense"),
        "threads": threads,
        "peak_mib": report.peak_memory() / MIB,
        "model_mib": before / MIB,
    }


def native(rounds: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Compare the compiled local function with the same model written in Rust."""
    results = []
    rows = []
    for per_state in (1, 100):
        result = native_ratio(per_state, rounds, seconds)
        if result is None:
            return [], "Model in Rust: not measured, this build has no `bench_step_native`."
        results.append(result)
        rows.append(
            [
                f"N/S = {per_state}",
                *map(report.number, (result["us_rust"], result["us_local"], result["value"])),
            ]
        )
    text = report.table(["step, 32x32, B = 16", "Rust, us", "local function, us", "ratio"], rows)
    return results, text


def native_ratio(per_state: int, rounds: int, seconds: float) -> dict[str, Any] | None:
    """Return compiled over native step time, or None where the core was built without it.

    ``ltde._core.bench_step_native(rows, cols, n_actions, n_agents, n_replicas, n_steps, seed)``
    returns the seconds that `n_steps` steps take, set-up left out, on one thread, for the model of
    `workload.slip` written in Rust, the uniform policy, agents starting anywhere, nothing recorded.
    """
    import ltde._core

    step_native = getattr(ltde._core, "bench_step_native", None)
    if step_native is None:
        return None
    side, n_replicas = 32, 16
    n_agents = per_state * side * side
    model = grid_model(side, side)
    warm = walk(model, n_agents, n_replicas, n_steps=10)
    warm()
    n_steps = max(10, int(seconds / _timed(warm)))
    call = walk(model, n_agents, n_replicas, n_steps)
    call()
    compiled, rust = [], []
    for seed in range(rounds):
        compiled.append(_timed(call))
        total = step_native(side, side, N_ACTIONS, n_agents, n_replicas, n_steps, seed)
        rust.append(total / n_steps)
    return {
        "name": f"local function against Rust, N/S = {per_state}",
        "value": median(c / r for c, r in zip(compiled, rust, strict=True)),
        "us_local": median(compiled) * 1e6,
        "us_rust": median(rust) * 1e6,
    }


def _timed(call: Callable[[], int]) -> float:
    start = time.perf_counter()
    units = call()
    return (time.perf_counter() - start) / units


def _judged(name: str, value: float, target: float, *, at_most: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "target": target,
        "verdict": report.verdict(value, target, at_most=at_most),
    }


def _verdict_cell(result: dict[str, Any]) -> str:
    return f"{report.number(result['value'])} {result['verdict']}"


PARTS: dict[str, Callable[[int, float], tuple[list[dict[str, Any]], str]]] = {
    "population": population,
    "threads": threads,
    "occupied": occupied,
    "native": native,
}
"""By the name used on the command line; each part returns its results and its tables."""


def main() -> int:
    options = parse_arguments()
    if importlib.util.find_spec("ltde") is None:
        print("ltde is not installed: build it first", file=sys.stderr)
        return 1
    report.use_one_thread(pin=False)

    results = []
    texts = []
    for part in options.parts:
        measured, text = PARTS[part](options.rounds, options.seconds)
        results += measured
        texts.append(text)
        print(f"{text}\n", flush=True)
    if not options.print_only:
        report.write(
            {"machine": report.machine(PACKAGES), "results": results},
            "\n\n".join(texts),
            "scaling",
            json_path=options.out,
            markdown_path=options.markdown,
        )
    missed = [result for result in results if result.get("verdict") == "missed"]
    for result in missed:
        print(f"missed: {result['name']}: {result['value']:.2f}", file=sys.stderr)
    return 1 if missed and options.check_targets else 0


if __name__ == "__main__":
    sys.exit(main())

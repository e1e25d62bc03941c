"""Time ltde against itself: more agents, more threads, more empty states, a model in Rust.

Run ``python benchmarks/scaling.py`` from the root of the repository; ``--help`` lists the options.
Each part alternates its contenders within one run, and the figures that count are the ratios.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.util
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import report

PACKAGES = ("numpy", "numba", "ltde")
N_ACTIONS = 5

MOST_POPULATION_RATIO = 1.5
LEAST_THREAD_RATIO = 1.7
MOST_LOCAL_RATIO = 2.0

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


def uniform_policy(model: Any) -> Any:
    """Return the policy that chooses every action with equal probability."""
    import ltde
    import numpy as np

    return ltde.TabularPolicy(np.full((model.n_states, N_ACTIONS), 1 / N_ACTIONS))


def walk(
    model: Any, n_agents: int, n_replicas: int, n_steps: int, threads: int = 1
) -> Callable[[], int]:
    """Return a function that makes `n_steps` more steps under the uniform policy."""
    import ltde

    policy = uniform_policy(model)
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
    if shutil.which("rustc") is None:
        return [], "Model in Rust: not measured, there is no `rustc`."
    model = grid_model(32, 32)
    twin = rust_twin(model)
    results = []
    rows = []
    for per_state in (1, 100):
        n_agents = per_state * model.n_states
        contenders = {
            name: walk(m, n_agents, 16, n_steps=10)
            for name, m in (("Rust", twin), ("local", model))
        }
        timed = report.round_robin(contenders, rounds, seconds)
        require_same_counts(model, twin, n_agents)
        rust, local = (report.typical(timed, name) for name in ("Rust", "local"))
        name = f"N/S = {per_state}"
        result = _judged(
            f"local function against Rust, {name}",
            report.ratio(timed, ["local"], "Rust"),
            MOST_LOCAL_RATIO,
            at_most=True,
        )
        results.append(result | {"us_rust": rust * 1e6, "us_local": local * 1e6})
        rows.append(
            [
                name,
                *map(report.number, (rust * 1e6, local * 1e6)),
                _verdict_cell(result),
                f"at most {MOST_LOCAL_RATIO}",
            ]
        )
    text = report.table(
        ["step, 32x32, B = 16", "model in Rust, us", "local function, us", "ratio", "target"], rows
    )
    return results, text


def rust_twin(model: Any) -> Any:
    """Build the model once more around ``native_local.rs``, compiled on the spot."""
    import ltde._core

    source = Path(__file__).with_name("native_local.rs")
    # the loaded library may outlive its folder, except on Windows, where the folder stays
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "native_local.so")
        flags = ["-O", "--edition", "2024", "--crate-type", "cdylib"]
        subprocess.run(["rustc", *flags, "-o", str(path), str(source)], check=True)
        library = ctypes.CDLL(str(path))
    twin = copy.copy(model)
    vars(twin)["_core"] = ltde._core.Model(
        model.graph._core,
        model.n_actions,
        ctypes.cast(library.local, ctypes.c_void_p).value,
        library,
        model.node,
        model.edge,
        model.action_mask,
        model.initial,
        False,
        model.discount,
        model.reward_range,
    )
    return twin


def require_same_counts(model: Any, twin: Any, n_agents: int) -> None:
    """Make sure that both play the same game: same seed, same counts."""
    import ltde
    import numpy as np

    policy = uniform_policy(model)
    counts = []
    for each in (model, twin):
        sim = ltde.Simulator(each, n_agents, 4, seed=2, threads=1)
        sim.rollout(policy, 20, record=())
        counts.append(sim.counts.copy())
    np.testing.assert_array_equal(*counts)


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

"""Time one simulation step of ltde beside NumPy, PyTorch, JAX and a per-agent loop, one thread.

Run ``python benchmarks/simulation.py`` from the root of the repository; ``--help`` lists the
options. All contenders take turns within one run, and the figures that count are the ratios.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import report

PEER_NAMES = ("ltde", "numpy", "numpy-binomial", "torch", "jax", "numba")
PACKAGES = ("numpy", "torch", "numba", "jax", "ltde")

RATIOS = (1, 10, 100, 10**4, 10**6)
TARGETS = {
    "portable": dict(zip(RATIOS, (6.0, 4.0, 2.2, 1.5, 1.5), strict=True)),
    "AVX2": dict(zip(RATIOS, (8.0, 8.0, 6.0, 4.0, 4.0), strict=True)),
    "AVX-512": dict(zip(RATIOS, (10.0, 9.0, 8.0, 6.0, 6.0), strict=True)),
}
"""At least this many times the speed of numpy's multinomial, by the instruction set that ltde
takes and by agents per state."""


def target(agents_per_state: int) -> float | None:
    from ltde import _core

    return TARGETS[_core.instruction_set()].get(agents_per_state)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", nargs="+", default=["32x32", "4x6"], metavar="RxC")
    parser.add_argument(
        "--ratios",
        nargs="+",
        type=lambda text: int(float(text)),
        default=list(RATIOS),
        help="agents per state, N/S",
    )
    parser.add_argument("--peers", nargs="+", choices=PEER_NAMES, default=list(PEER_NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each turn")
    parser.add_argument("--out", type=Path, default=Path("docs/performance-simulation.json"))
    parser.add_argument("--markdown", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--print-only", action="store_true", help="write no file")
    parser.add_argument(
        "--check-targets", action="store_true", help="exit with 1 if a target is missed"
    )
    return parser.parse_args()


def measure(work: Any, peers: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Time all contenders on one workload and check that they keep their agents.

    Returns
    -------
    dict
        ``ns_per_draw`` by contender (median over rounds), ``ns_per_draw_rounds``, and
        ``times_numpy``: how many times numpy's speed each ltde entry reaches.
    """
    from peers import LTDE_ROLLOUT, LTDE_STEP, NUMPY_MULTINOMIAL, PEERS

    contenders = [contender for peer in peers for contender in PEERS[peer][1](work)]

    def turn(contender: Any) -> Any:
        def call() -> int:
            contender.advance()
            return contender.steps

        return call

    timed = report.round_robin({c.name: turn(c) for c in contenders}, rounds, seconds)
    for contender in contenders:
        totals = contender.counts().sum(axis=1)
        if not (totals == work.n_agents).all():
            raise RuntimeError(f"{contender.name} lost agents: {totals} is not {work.n_agents}")

    scale = 1e9 / work.network.draw_equivalents
    numpy_names = [c.name for c in contenders if c.name.startswith(NUMPY_MULTINOMIAL)]
    ltde_names = [c.name for c in contenders if c.name in (LTDE_STEP, LTDE_ROLLOUT)]
    return {
        "graph": work.network.name,
        "agents_per_state": work.n_agents // work.network.n_states,
        "n_replicas": work.network.n_replicas,
        "ns_per_draw": {c.name: scale * report.typical(timed, c.name) for c in contenders},
        "ns_per_draw_rounds": [
            {name: scale * seconds for name, seconds in times.items()} for times in timed
        ],
        "times_numpy": {
            name: report.ratio(timed, numpy_names, name) for name in ltde_names if numpy_names
        },
    }


def tabulate(entries: list[dict[str, Any]]) -> str:
    """Show one graph: ns per draw-equivalent, then the ratios beside their targets."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["ns_per_draw"]))
    header = ["N/S", *(f"{entry['agents_per_state']:,}" for entry in entries)]
    rows = []
    for name in names:
        figures = [entry["ns_per_draw"].get(name) for entry in entries]
        rows.append([name, *("-" if x is None else report.number(x) for x in figures)])
    for name in entries[0]["times_numpy"]:
        cells = []
        for entry in entries:
            value = entry["times_numpy"][name]
            goal = target(entry["agents_per_state"])
            word = "" if goal is None else f" {report.verdict(value, goal)}"
            cells.append(f"{report.number(value)}{word}")
        rows.append([f"**{name}: times numpy**", *cells])
    rows.append(["target", *(f"{target(e['agents_per_state']) or '-'}" for e in entries)])
    return report.table(header, rows)


def missed_targets(entries: list[dict[str, Any]]) -> list[str]:
    """Name every target that was missed or not measured."""
    missed = []
    for entry in entries:
        goal = target(entry["agents_per_state"])
        if goal is None:
            continue
        where = f"{entry['graph']}, N/S = {entry['agents_per_state']:,}"
        if not entry["times_numpy"]:
            missed.append(f"{where}: needs both ltde and numpy")
        for name, value in entry["times_numpy"].items():
            if value < goal:
                missed.append(f"{where}: {name} is {value:.2f} times numpy, target {goal}")
    return missed


def main() -> int:
    options = parse_arguments()
    report.use_one_thread()

    from peers import installed  # after the environment is set: these import numpy and the rest
    from workload import make_network, make_workload

    peers = [peer for peer in options.peers if installed(peer)]
    for peer in set(options.peers) - set(peers):
        print(f"{peer} is not installed: left out", flush=True)

    entries = []
    sections = []
    for graph in options.graphs:
        rows, cols = map(int, graph.split("x"))
        network = make_network(rows, cols)
        measured = []
        for agents_per_state in options.ratios:
            work = make_workload(network, agents_per_state)
            measured.append(measure(work, peers, options.rounds, options.seconds))
            print(f"{graph}, N/S = {agents_per_state:,}: done", flush=True)
        entries += measured
        sections.append(
            f"Grid {graph} (S = {network.n_states}), B = {network.n_replicas}, "
            f"ns per draw-equivalent, median of {options.rounds} rounds:\n\n{tabulate(measured)}"
        )

    text = "\n\n".join(sections)
    print(text)
    if not options.print_only:
        results = {"machine": report.machine(PACKAGES), "results": entries}
        report.write(
            results, text, "simulation", json_path=options.out, markdown_path=options.markdown
        )
    missed = missed_targets(entries) if options.check_targets else []
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the benchmark scripts share: pinning, round-robin timing, machine facts and writing.

This module imports no numerical library, so that a script can set the environment first.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

Rounds = list[dict[str, float]]
"""Seconds for one unit of work of each contender, round by round."""


def use_one_thread(*, pin: bool = True) -> None:
    """Ask numerical libraries for one thread; call before they are imported.

    Parameters
    ----------
    pin : bool
        Keep the process on one core too, where the system allows it.
    """
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    if pin and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def round_robin(contenders: dict[str, Callable[[], int]], rounds: int, seconds: float) -> Rounds:
    """Time the contenders in turn, so that a slow spell of the machine meets all of them.

    Parameters
    ----------
    contenders
        By name, a function that does some work and returns how many units (steps) it did.
    rounds
        How often each contender has its turn.
    seconds
        Length of a turn; at least one call is made.

    Returns
    -------
    Rounds
        For each round, the median seconds per unit of each contender.
    """
    for call in contenders.values():
        call()
    result: Rounds = []
    for _ in range(rounds):
        times = {}
        for name, call in contenders.items():
            samples = []
            end = time.perf_counter() + seconds
            while True:
                start = time.perf_counter()
                units = call()
                stop = time.perf_counter()
                samples.append((stop - start) / units)
                if stop >= end:
                    break
            times[name] = median(samples)
        result.append(times)
    return result


def typical(rounds: Rounds, name: str) -> float:
    """Return the median over rounds of one contender's seconds per unit."""
    return median(times[name] for times in rounds)


def ratio(rounds: Rounds, slow: Iterable[str], fast: str) -> float:
    """Return how many times quicker `fast` is than the best of `slow`: median over rounds."""
    slow = list(slow)
    return median(min(times[name] for name in slow) / times[fast] for times in rounds)


def machine(packages: Sequence[str]) -> dict[str, str]:
    """Describe processor, system and package versions; no names of hosts or folders."""
    facts = {
        "processor": _cpuinfo("model name") or platform.machine(),
        "vector instructions": _vector_instructions(),
        "logical cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _cpuinfo(field: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    found = re.search(rf"^{field}\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
    return found.group(1).strip() if found else None


def _vector_instructions() -> str:
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    widest = [flag for flag in ("avx512f", "avx2", "asimd") if flag in flags]
    return widest[0] if widest else "unknown"


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is text, the others are right-aligned."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Format a figure with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def verdict(value: float, target: float, *, at_most: bool = False) -> str:
    """Say whether a target is reached."""
    reached = value <= target if at_most else value >= target
    return "reached" if reached else "missed"


def fill_section(path: Path, section: str, text: str) -> None:
    """Replace what stands between ``<!-- section:begin -->`` and ``<!-- section:end -->``."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    page = path.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path.name} must hold the markers {begin} and {end} once each")
    head, rest = page.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", encoding="utf-8")


def write(
    results: dict[str, Any], text: str, section: str, *, json_path: Path, markdown_path: Path
) -> None:
    """Write the figures as JSON, and the tables and the machine into the page's section.

    Parameters
    ----------
    results
        Everything measured; ``results["machine"]`` comes from `machine`.
    text
        The tables, in Markdown.
    section
        Name of the marked section to fill.
    json_path, markdown_path
        Where to write.
    """
    json_path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    facts = table(["machine", ""], results["machine"].items())
    fill_section(markdown_path, section, f"{facts}\n\n{text}")

"""Count the instructions of a step under callgrind and compare them with the last accepted ones.

Run ``python benchmarks/instructions.py`` from the root of the repository. Unlike times, counts are
the same in every run, on a busy machine too; they are of the portable code and of AVX2, since
valgrind has no AVX-512. Exits with 1 if one grew by more than a tenth; ``--accept`` writes them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ACCEPTED = Path(__file__).with_suffix(".json")
INSTRUCTION_SETS = ("portable", "avx2")
AGENTS_PER_STATE = (1, 10, 100, 10_000, 1_000_000)
STEPS = 40
MOST_GROWTH = 0.1

Counts = dict[str, dict[str, float]]
"""Instructions per draw-equivalent by instruction set and agents per state."""


def build() -> str:
    """Build the example in release mode and return where it is."""
    command = ["cargo", "build", "--release", "--locked", "--example", "rollouts"]
    command.append("--message-format=json-render-diagnostics")
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for message in map(json.loads, lines.splitlines()):
        if message.get("executable") and message["target"]["name"] == "rollouts":
            return str(message["executable"])
    raise RuntimeError("cargo built no example rollouts")


def play(example: str, instruction_set: str, agents: int, steps: int) -> tuple[int, int]:
    """Return the instructions of a whole run and its draw-equivalents."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    run = subprocess.run(
        [*command, example, str(agents), str(steps)],
        env=os.environ | {"LTDE_INSTRUCTION_SET": instruction_set},
        capture_output=True,
        text=True,
    )
    collected = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or not collected:
        raise RuntimeError(f"valgrind failed:\n{run.stderr}")
    played, draws = run.stdout.split()
    if played.lower() != instruction_set:
        raise RuntimeError(f"asked for {instruction_set}, but this processor has only {played}")
    return int(collected[1]), int(draws)


def count(example: str, instruction_set: str, agents: int) -> float:
    """Return the instructions per draw-equivalent; those of a run without steps do not count."""
    start, _ = play(example, instruction_set, agents, 0)
    end, draws = play(example, instruction_set, agents, STEPS)
    return round((end - start) / draws, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help=f"write {ACCEPTED.name}")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print("Instructions left out: valgrind is not installed (apt-get install valgrind)")
        return 0
    accepted: Counts = json.loads(ACCEPTED.read_text()) if ACCEPTED.exists() else {}
    example = build()
    counts: Counts = {}
    grown = []
    print("Instructions per draw-equivalent")
    print(f"{'':10}{'agents a state':>16}{'now':>10}{'accepted':>10}{'change':>10}")
    for instruction_set in INSTRUCTION_SETS:
        counts[instruction_set] = {}
        for agents in AGENTS_PER_STATE:
            now = count(example, instruction_set, agents)
            counts[instruction_set][str(agents)] = now
            before = accepted.get(instruction_set, {}).get(str(agents))
            line = f"{instruction_set:10}{agents:16}{now:10.2f}"
            if before is None:
                line += f"{'-':>10}"
            else:
                line += f"{before:10.2f}{now / before - 1:+10.1%}"
                if now > (1 + MOST_GROWTH) * before:
                    grown.append(f"{instruction_set} with {agents} agents a state")
            print(line, flush=True)
    if arguments.accept:
        ACCEPTED.write_text(json.dumps(counts, indent=2) + "\n")
        print(f"Wrote {ACCEPTED.name}")
        return 0
    if grown:
        print(f"More than {MOST_GROWTH:.0%} more instructions: {'; '.join(grown)}")
        print("If that is meant: make instructions ARGUMENTS=--accept")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())

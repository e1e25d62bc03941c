"""Reader of the TNTP format, in which the TransportationNetworks collection keeps its cities.

A file begins with lines `<NAME> value` up to `<END OF METADATA>`. What follows a `~` is a comment,
and `;` ends an entry. See https://github.com/bstabler/TransportationNetworks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltde.envs.road_network import MAX_POWER

__all__ = ["Links", "read_links", "read_nodes", "read_trips"]

_COLUMNS = 7  # init_node term_node capacity length free_flow_time b power, then what is not read
# Published totals are rounded; a file that was cut short misses more.
_TOTAL_TOLERANCE = 0.01
# log10 of capacity^power, with room for the factors of minutes
_LOWEST_POWER, _HIGHEST_POWER = -100.0, 250.0


class Links(NamedTuple):
    """Links of a net file: minutes are `free_flow_time (1 + b (flow / capacity)^power)`.

    Attributes
    ----------
    tail, head
        `(L,)` labels of the nodes, from 1.
    capacity, free_flow_time, b, power
        `(L,)` as in the file; capacities are > 0.
    first_through
        No trip passes through nodes with smaller labels.
    """

    tail: NDArray[np.int64]
    head: NDArray[np.int64]
    capacity: NDArray[np.float64]
    free_flow_time: NDArray[np.float64]
    b: NDArray[np.float64]
    power: NDArray[np.float64]
    first_through: int


def read_links(path: str | Path) -> Links:
    """Read a net file.

    Parameters
    ----------
    path
        The file. Of each line the first seven columns are read: `init_node`, `term_node`,
        `capacity`, `length` (unused), `free_flow_time`, `b`, `power`.

    Raises
    ------
    ValueError
        Naming file and line of the first entry that is malformed.
    """
    file = _File(path)
    n_nodes = file.integer("NUMBER OF NODES")
    rows: list[list[float]] = []
    for line, text in file.body:
        fields = text.replace(";", " ").split()
        if len(fields) < _COLUMNS:
            raise file.wrong(line, f"expected at least {_COLUMNS} columns, got {len(fields)}")
        tail, head = (file.label(line, word, n_nodes) for word in fields[:2])
        if tail == head:
            raise file.wrong(line, f"a link must not end where it begins, got {tail} twice")
        numbers = [file.number(line, word) for word in fields[2:_COLUMNS]]
        capacity, _, free_flow_time, b, power = numbers  # the length is not needed
        if capacity <= 0.0:
            raise file.wrong(line, f"expected a capacity > 0, got {capacity:g}")
        if power > MAX_POWER:
            raise file.wrong(line, f"expected a power of at most {MAX_POWER:g}, got {power:g}")
        size = power * math.log10(capacity)
        if free_flow_time * b > 0.0 and not _LOWEST_POWER <= size <= _HIGHEST_POWER:
            small = "small" if size < 0.0 else "large"
            raise file.wrong(line, f"capacity {capacity:g} is too {small} for power {power:g}")
        rows.append([tail, head, capacity, free_flow_time, b, power])
    if not rows:
        raise ValueError(f"{file.name}: holds no links")
    expected = file.integer("NUMBER OF LINKS")
    if expected is not None and expected != len(rows):
        raise ValueError(f"{file.name}: expected {expected} links, got {len(rows)}")
    columns = np.ascontiguousarray(np.array(rows).T)
    tail, head = columns[:2].astype(np.int64)
    capacity, free_flow_time, b, power = columns[2:]
    first = file.integer("FIRST THRU NODE") or 0
    return Links(tail, head, capacity, free_flow_time, b, power, first)


def read_trips(
    path: str | Path,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Read a trips file: lines `Origin 1`, and below each entries `destination : trips;`.

    Returns
    -------
    origin, destination
        `(P,)` labels of zones, from 1.
    trips
        `(P,)` as in the file, zeros included.

    Raises
    ------
    ValueError
        Naming file and line of the first entry that is malformed, or gives trips between two zones
        again; also if the trips miss `<TOTAL OD FLOW>` by more than 1 %.
    """
    file = _File(path)
    n_zones = file.integer("NUMBER OF ZONES")
    origins: list[int] = []
    destinations: list[int] = []
    trips: list[float] = []
    given: dict[tuple[int, int], int] = {}  # the line of each pair with trips
    origin = None
    for line, text in file.body:
        words = text.split()
        if words[0].lower() == "origin":
            if len(words) != 2:
                raise file.wrong(line, f'expected "Origin" and one zone, got {text!r}')
            origin = file.label(line, words[1], n_zones)
            continue
        if origin is None:
            raise file.wrong(line, f'expected "Origin" first, got {text!r}')
        *entries, rest = text.split(";")
        if rest.strip():
            raise file.wrong(line, f'expected ";" after every entry, got {rest.strip()!r}')
        for entry in entries:
            parts = entry.split(":")
            if len(parts) != 2:
                raise file.wrong(line, f'expected "destination : trips", got {entry.strip()!r}')
            destination = file.label(line, parts[0].strip(), n_zones)
            vehicles = file.number(line, parts[1].strip())
            if vehicles > 0.0 and destination != origin:
                pair = origin, destination
                if pair in given:
                    before = f"were given before, in line {given[pair]}"
                    raise file.wrong(line, f"trips from {origin} to {destination} {before}")
                given[pair] = line
            origins.append(origin)
            destinations.append(destination)
            trips.append(vehicles)
    total = file.real("TOTAL OD FLOW")
    if total is not None and abs(math.fsum(trips) - total) > _TOTAL_TOLERANCE * total:
        raise ValueError(f"{file.name}: expected {total:g} trips in all, got {math.fsum(trips):g}")
    return np.array(origins, np.int64), np.array(destinations, np.int64), np.array(trips)


def read_nodes(path: str | Path) -> dict[int, tuple[float, float]]:
    """Read a node file: label and two coordinates in every line, after one of names if any.

    Raises
    ------
    ValueError
        Naming file and line of the first entry that is malformed, or gives a node again.
    """
    file = _File(path)
    places: dict[int, tuple[float, float]] = {}
    for i, (line, text) in enumerate(file.body):
        fields = text.replace(";", " ").split()
        if i == 0 and not _is_integer(fields[0]):
            continue  # the names of the columns
        if len(fields) < 3:
            raise file.wrong(line, f"expected a label and two coordinates, got {text!r}")
        x, y = (file.number(line, word, signed=True) for word in fields[1:3])
        node = file.label(line, fields[0], None)
        if node in places:
            raise file.wrong(line, f"node {node} was given before")
        places[node] = (x, y)
    return places


def _is_integer(word: str) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True


class _File:
    """Lines of a file without comments, its metadata, and errors that name a line."""

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).name
        self._metadata: dict[str, tuple[int, str]] = {}
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
        self.body: list[tuple[int, str]] = []
        for line, raw in enumerate(text.splitlines(), start=1):
            stripped = raw.split("~", 1)[0].strip()
            if stripped.startswith("<"):
                name, closed, value = stripped[1:].partition(">")
                if not closed:
                    raise self.wrong(line, f'expected ">" in {stripped!r}')
                self._metadata[name.strip().upper()] = (line, value.strip())
            elif stripped.strip("; \t"):
                self.body.append((line, stripped))

    def wrong(self, line: int, what: str) -> ValueError:
        """Make the error of a line."""
        return ValueError(f"{self.name}, line {line}: {what}")

    def number(self, line: int, word: str, *, signed: bool = False) -> float:
        """Read a finite number, >= 0 unless `signed`."""
        try:
            value = float(word)
        except ValueError:
            raise self.wrong(line, f"expected a number, got {word!r}") from None
        if not math.isfinite(value) or (value < 0.0 and not signed):
            raise self.wrong(line, f"expected a finite number{'' if signed else ' >= 0'}: {word}")
        return value

    def label(self, line: int, word: str, n_labels: int | None) -> int:
        """Read the label of a node, from 1 to `n_labels`."""
        try:
            value = int(word)
        except ValueError:
            raise self.wrong(line, f"expected the label of a node, got {word!r}") from None
        if value < 1 or (n_labels is not None and value > n_labels):
            limit = "" if n_labels is None else f" and at most {n_labels}"
            raise self.wrong(line, f"expected a label of at least 1{limit}, got {value}")
        return value

    def real(self, name: str) -> float | None:
        """Return a number of the metadata, or None."""
        found = self._metadata.get(name)
        return None if found is None or not found[1] else self.number(*found)

    def integer(self, name: str) -> int | None:
        """Return a positive integer of the metadata, or None."""
        found = self._metadata.get(name)
        return None if found is None or not found[1] else self.label(*found, None)

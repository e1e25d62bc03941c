"""Options that commands share, and flags made from the fields of documented dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import tyro
from docstring_parser import DocstringStyle, parse

from ltde.arguments import population_size

__all__ = [
    "File",
    "Flag",
    "Integer",
    "Name",
    "Number",
    "Numbers",
    "Output",
    "Run",
    "Target",
    "UsageError",
    "Word",
    "documentation",
    "flags",
    "flags_to_change",
    "interval",
    "number_of_agents",
    "plural",
    "short",
    "table",
    "whole",
]

# Options of commands; None if one is not given, which is no word of the command line.
Flag: TypeAlias = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")
]
Integer: TypeAlias = Annotated[
    int | None, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="")
]
Word: TypeAlias = Annotated[
    str | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="NAME", help_behavior_hint="")
]
Number: TypeAlias = Annotated[
    str | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="N", help_behavior_hint="")
]
Numbers: TypeAlias = Annotated[
    tuple[str, ...] | None,
    tyro.conf.DisallowNone,
    tyro.conf.arg(metavar="N [N ...]", help_behavior_hint=""),
]
File: TypeAlias = Annotated[
    Path | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="PATH", help_behavior_hint="")
]
Name: TypeAlias = Annotated[str, tyro.conf.arg(metavar="NAME")]
Run: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Target: TypeAlias = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]

# Infinitely many agents.
_INFINITE = ("inf", "infinity", "\N{INFINITY}")

_PLAIN = (bool, int, float, str, type(None))


class UsageError(ValueError):
    """Arguments that make no sense; the exit code is 2."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is shown.

    Attributes
    ----------
    json
        Write results as JSON on standard output. Infinity is the string "inf".
    quiet
        No progress and no notes on standard error.
    debug
        Show the traceback of an error. LTDE_DEBUG=1 in the environment does the same.
    """

    json: Flag = False
    quiet: Flag = False
    debug: Flag = False

    def note(self, text: str) -> None:
        """Write a line on standard error, unless all is to be quiet."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def result(self, data: Mapping[str, Any], text: str) -> None:
        """Write a result: the data as JSON, or the text."""
        print(json.dumps(_plain(data), indent=2) if self.json else text)


def number_of_agents(text: str) -> float:
    """Read a number of agents: `1000`, `1e6`, `10_000` or `inf`."""
    if text.strip().lower().removeprefix("+") in _INFINITE:
        return math.inf
    try:
        try:
            return population_size(int(text))
        except ValueError:
            number = float(text)
            if number == math.inf:  # such as 1e400
                raise
            return population_size(number)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--agents: expected an integer from 1 to 2^53, such as 1000, 1e6 or 10_000, or inf; "
            f"got {text!r}"
        ) from None


def whole(flag: str, value: int | None, least: int, most: int = 2**63 - 1) -> None:
    """Check a whole number that a flag gives; None is a flag that is not given.

    Raises
    ------
    UsageError
        Naming the flag.
    """
    if value is None or least <= value <= most:
        return
    expected = f"at least {least}" if value < least else f"at most {most:,}"
    raise UsageError(f"--{flag}: expected {expected}, got {value}")


def flags(kind: type, name: str, title: str) -> type:
    """Return a dataclass of the fields of another that a command line can give.

    Parameters
    ----------
    kind
        A dataclass whose docstring describes its fields. A field that takes numbers, strings or
        other things is left with numbers and strings.
    name, title
        Name and docstring of the new class.
    """
    fields: list[Any] = []
    documented, hints = documentation(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = _simple(hints[field.name])
        if hint is None or not field.init:
            continue
        argument = tyro.conf.arg(help=documented.get(field.name))
        if field.default is None:
            argument = tyro.conf.arg(help=documented.get(field.name), help_behavior_hint="")
            hint = Annotated[hint, tyro.conf.DisallowNone]
        if field.default is not dataclasses.MISSING:
            default: Any = dataclasses.field(default=field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=field.default_factory)
        else:
            default = dataclasses.field()
        fields.append((field.name, Annotated[hint, argument], default))
    return _dataclass(name, title, fields)


def flags_to_change(kind: type, name: str, title: str) -> type:
    """Return a dataclass of the same fields, None where the command line does not give one.

    A prefix `n_` is left out of the name of a flag.
    """
    fields: list[Any] = []
    documented, hints = documentation(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        argument = tyro.conf.arg(
            name=field.name.removeprefix("n_").replace("_", "-"),
            help=documented.get(field.name),
            help_behavior_hint=f"(default: {field.default})",
        )
        hint = hints[field.name] | None
        fields.append((field.name, Annotated[hint, argument, tyro.conf.DisallowNone], None))
    return _dataclass(name, title, fields)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def interval(mean: float, bounds: tuple[float, float]) -> str:
    """Write a mean with its interval, which is left out where it is a point."""
    low, high = map(short, bounds)
    return short(mean) + (f" [{low}, {high}]" if bounds[0] < bounds[1] else "")


def short(number: float) -> str:
    """Write a number in four digits."""
    return f"{number:#.4g}".rstrip(".")


def plural(number: float, noun: str) -> str:
    """Return a number and its noun, such as `1 agent` and `10,000 agents`."""
    amount = "infinitely many" if number == math.inf else f"{number:,}"
    return f"{amount} {noun}{'' if number == 1 else 's'}"


def _dataclass(name: str, title: str, fields: list[Any]) -> type:
    made = dataclasses.make_dataclass(name, fields, kw_only=True, frozen=True)
    made.__doc__ = title
    return made


def documentation(kind: type) -> dict[str, str]:
    """Return the descriptions of the fields in a NumPy docstring."""
    found = parse(kind.__doc__ or "", style=DocstringStyle.NUMPYDOC).params
    return {
        name.strip(): " ".join((entry.description or "").split())
        for entry in found
        for name in entry.arg_name.split(",")
    }


def _simple(hint: Any) -> Any:
    """Return the part of an annotation that flags can give, or None."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in map(_simple, get_args(hint)) if part is not None]
        return Union[tuple(parts)] if set(parts) - {type(None)} else None  # noqa: UP007
    if get_origin(hint) is tuple:
        return hint if all(_simple(part) for part in get_args(hint) if part is not ...) else None
    return hint if hint in _PLAIN or get_origin(hint) is Literal else None


def _plain(data: Any) -> Any:
    """Return what strict JSON can hold."""
    if isinstance(data, Mapping):
        return {str(name): _plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple, np.ndarray)):
        return [_plain(value) for value in data]
    if isinstance(data, np.generic):
        data = data.item()
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data

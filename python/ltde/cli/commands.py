"""The commands: each is a dataclass of its options with a method `run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ltde.cli.describe import Check, Envs, Info
from ltde.cli.options import flags
from ltde.cli.play import Evaluate, Report, Simulate
from ltde.cli.training import Resume, Train
from ltde.envs import ENVIRONMENTS

__all__ = ["COMMANDS", "command"]

COMMANDS: dict[str, Any] = {
    "envs": Envs,
    "train": Train,
    "resume": Resume,
    "evaluate": Evaluate,
    "simulate": Simulate,
    "report": Report,
    "check": Check,
    "info": Info,
}


def command(name: str, arguments: Sequence[str]) -> Any:
    """Return the class of a command, with the options of the application that is named."""
    kind = COMMANDS[name]
    application = next((word for word in arguments if word in ENVIRONMENTS), None)
    if application is None or not hasattr(kind, "application"):
        return kind
    from ltde import envs

    options = flags(
        getattr(envs, ENVIRONMENTS[application]), "Options", f"Options of {application}."
    )
    field: Any = ("application", options, dataclasses.field(default_factory=options))
    extended = dataclasses.make_dataclass(kind.__name__, [field], bases=(kind,), kw_only=True)
    extended.__doc__ = kind.__doc__
    return extended

"""The command line `ltde`: `main` reads the arguments, runs a command, returns its exit code.

Needs `tyro`: `pip install 'ltde[cli]'`. Nothing is loaded before a command needs it: `--help` and
`ltde envs` load neither torch nor numba.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]

_HELP = """Mean-field multi-agent reinforcement learning on networks.

Train policies for agents on a graph; play them with any number of agents.

For example:
$ ltde train road-routing --out runs/roads
$ ltde evaluate runs/roads --agents 100 1e6 inf --baselines
$ ltde COMMAND --help"""

# Errors whose message says all that a user needs; the names of others are shown as well.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, OverflowError, RuntimeError)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args
        Arguments after the name of the program; None takes those of the process.

    Returns
    -------
    int
        0 if all is well; 1 after an error, a wrong model or a training that diverged; 2 for
        arguments that make no sense; 130 after Ctrl-C.
    """
    _make_streams_safe()
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        import tyro  # noqa: F401
    except ImportError:
        print("ltde: the command line needs tyro: pip install 'ltde[cli]'", file=sys.stderr)
        return 1
    path = list(sys.path)
    debug = "--debug" in arguments or os.environ.get("LTDE_DEBUG", "0") not in ("", "0")
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # tyro, after --help or an error
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        print(f"\nltde: {_message(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read the output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        message = _message(error)
        if not isinstance(error, _EXPECTED):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
        print(f"ltde: {message}", file=sys.stderr)
        from ltde.cli.options import UsageError

        return 2 if isinstance(error, UsageError) else 1
    finally:
        sys.path[:] = path


def _make_streams_safe() -> None:
    """Write "?" for what a stream cannot encode; a stream that is closed swallows everything."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure") and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def _run(arguments: list[str]) -> int:
    """Parse the arguments and run the command."""
    import tyro

    from ltde.cli.commands import COMMANDS, command

    config = (tyro.conf.OmitArgPrefixes,)
    name = arguments[0] if arguments else None
    if name in COMMANDS:
        parsed: Any = tyro.cli(
            command(name, arguments), prog=f"ltde {name}", args=arguments[1:], config=config
        )
        code: int | None = parsed.run()
        return code or 0
    if name == "--version":
        from ltde import __version__

        print(f"ltde {__version__}")
        return 0
    commands = {name: _described(kind) for name, kind in COMMANDS.items()}
    tyro.extras.subcommand_cli_from_dict(
        commands, prog="ltde", description=_HELP, args=arguments or ["--help"], config=config
    )
    return 0


def _described(kind: type) -> Any:
    """Return what stands for a command in the list of commands: its first line."""

    def stub() -> None: ...

    stub.__doc__ = (kind.__doc__ or "").splitlines()[0]
    return stub


def _message(error: BaseException) -> str:
    """Return the message of an error with its notes."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return "\n".join([text, *getattr(error, "__notes__", [])]).strip()

"""Where an environment comes from: an application, a file of the user's own, or a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import sys
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

import numpy as np

from ltde import envs
from ltde.cli.options import UsageError
from ltde.config import toml_value
from ltde.envs import ENVIRONMENTS
from ltde.envs.environment import Environment, OwnModel
from ltde.model import NetworkedModel

if TYPE_CHECKING:
    from ltde.trainer import LTDENeuralAC

__all__ = [
    "ENVIRONMENT",
    "Application",
    "OwnFile",
    "Source",
    "fixed_agents",
    "load_trainer",
    "named",
    "read",
    "write",
]

ENVIRONMENT = "environment.toml"

# How the path of a network ends.
_NETWORK = "_net.tntp"

_FORMS = f"{', '.join(ENVIRONMENTS)} or FILE.py:NAME"


@dataclass(frozen=True)
class Application:
    """An application of `ltde.envs` and its options."""

    name: str
    options: Mapping[str, Any]
    origin: Path | None = None  # the file that holds the options, if flags do not

    @property
    def folder(self) -> str:
        """Name of a run directory."""
        return self.name

    def build(self) -> Environment:
        """Return the environment.

        Raises
        ------
        UsageError
            If a flag holds what the application refuses.
        """
        try:
            environment: Environment = getattr(envs, ENVIRONMENTS[self.name])(**self.options)
        except FileNotFoundError as error:
            for name, value in self.options.items():
                if self.origin is not None and _is_network(value):
                    error.add_note(f"correct `{name}` in {self.origin}")
            raise
        except (ValueError, TypeError, OverflowError) as error:
            if self.origin is not None:
                raise ValueError(f"{self.origin}: {error}") from error
            if any(str(error).startswith(f"{name}:") for name in self.options):
                raise UsageError(str(error)) from error
            raise  # of a file of a network
        return environment

    def to_toml(self, folder: Path) -> str:
        """Return what `read` reads; an option that is None is left out.

        The path of a network is relative to the folder, so both can move.
        """
        lines = [f"application = {toml_value(self.name)}", "", "[options]"]
        for name, value in self.options.items():
            if value is not None:
                stored = _relative(Path(value), folder) if _is_network(value) else value
                lines.append(f"{name} = {toml_value(stored)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class OwnFile:
    """A model or an environment in a Python file."""

    path: Path
    attribute: str
    sha256: str = ""  # of the file when a run began

    @property
    def folder(self) -> str:
        """Name of a run directory."""
        return self.path.stem

    def build(self) -> Environment:
        """Run the file and return the environment.

        The attribute is a `NetworkedModel`, an `Environment`, or a function without arguments that
        returns either.
        """
        module = _imported(self.path)
        name = f"{self.path.name}:{self.attribute}"
        try:
            value = getattr(module, self.attribute)
        except AttributeError:
            raise ValueError(
                f"{self.path}: has no {self.attribute!r}{_candidates(module)}"
            ) from None
        if callable(value) and not isinstance(value, (NetworkedModel, Environment)):
            with _Explaining(self.path), _quietly():
                value = value()
        if isinstance(value, NetworkedModel):
            return OwnModel(value, name, _training_agents(value))
        if not isinstance(value, Environment):
            raise TypeError(
                f"{name}: expected an ltde.NetworkedModel, an ltde.envs.Environment, or a function "
                f"without arguments that returns one; got {type(value).__name__}"
            )
        with _quietly():
            value.model  # noqa: B018  built now, if it is built at the first access
        return value

    def to_toml(self, folder: Path) -> str:
        """Return what `read` reads; the path is relative to the folder, so both can move."""
        items = {
            "file": _relative(self.path, folder),
            "attribute": self.attribute,
            "sha256": _sha256(self.path),
        }
        return "".join(f"{name} = {toml_value(value)}\n" for name, value in items.items())

    @property
    def changed(self) -> bool:
        """Whether the file is another than when the run began."""
        return bool(self.sha256) and _sha256(self.path) != self.sha256


Source: TypeAlias = Application | OwnFile


def named(target: str, options: Any = None) -> Source:
    """Return what a target names: an application, or `FILE.py:NAME`.

    Parameters
    ----------
    target
        As given on the command line.
    options
        A dataclass of the options of the application.
    """
    if target in ENVIRONMENTS:
        given = {} if options is None else vars(options)
        return Application(target, {name: _located(value) for name, value in given.items()})
    path, _, attribute = target.rpartition(":")
    if target.endswith(".py"):
        path, attribute = target, ""
    if not path.endswith(".py"):
        raise ValueError(f"{target}: no such application, file or folder; expected {_FORMS}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not attribute:
        raise ValueError(f"{path}: name what to take, {path}:NAME{_candidates(_imported(file))}")
    return OwnFile(file, attribute)


def read(folder: Path) -> Source:
    """Return what `environment.toml` of a run directory names."""
    path = folder / ENVIRONMENT
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run directory")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a folder that `ltde train` made")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if "application" not in values:
            for key in ("file", "attribute", "sha256"):
                if not isinstance(values[key], str):
                    raise ValueError(f"{key}: expected a string, got {values[key]!r}")
            file = _absolute(values["file"], folder)
            own = OwnFile(file, values["attribute"], values["sha256"])
            if not file.is_file():
                raise FileNotFoundError(
                    f"{path}: there is no {file}; correct `file` there if it was moved"
                )
            return own
        name = values["application"]
        if not isinstance(name, str) or name not in ENVIRONMENTS:
            raise ValueError(f"no such application {name!r}; known are {', '.join(ENVIRONMENTS)}")
        options = values.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"options: expected a table, got {options!r}")
        options = {
            k: str(_absolute(v, folder)) if _is_network(v) else v for k, v in options.items()
        }
        return Application(name, _all_options(name, options), path)
    except KeyError as error:
        raise ValueError(f"{path}: holds no {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(folder: Path, made: Source) -> None:
    """Write `environment.toml` into a run directory."""
    from ltde import checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(folder / ENVIRONMENT, made.to_toml(folder))


def load_trainer(
    folder: Path, made: Source, environment: Environment, **where: Any
) -> LTDENeuralAC:
    """Return the trainer of a run directory; `where` are threads and device."""
    from ltde.trainer import LTDENeuralAC

    try:
        return LTDENeuralAC.load(folder, environment.model, **where)
    except ValueError as error:
        if isinstance(made, OwnFile) and made.changed:
            error.add_note(f"{made.path} has changed since the run began")
        raise


def _imported(path: Path) -> ModuleType:
    """Run a Python file as the module of its name, as `import` would.

    The local function of a model carries the name of its module in its fingerprint: a model is the
    same here and where a user imports it.
    """
    name = path.stem
    found = sys.modules.get(name)
    if found is None and "." not in name:
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        taken = spec is not None and not (origin and _same(Path(origin), path))
    else:
        taken = found is not None and not hasattr(found, "__ltde_file__")
        taken = taken and not _same(Path(getattr(found, "__file__", None) or os.devnull), path)
    if taken:
        raise ValueError(f"{path}: Python has another module {name!r}; rename the file")
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__ltde_file__"] = True
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for what the file imports from beside it
    sys.modules[name] = module
    try:
        with _Explaining(path), _quietly():
            # no bytecode: a file that changed within a second would not be seen
            exec(compile(path.read_bytes(), str(path.resolve()), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _quietly() -> contextlib.AbstractContextManager[Any]:
    """Send what a user's file prints to standard error: standard output is for results."""
    return contextlib.redirect_stdout(sys.stderr)


class _Explaining:
    """Turn an exception of a user's file into a sentence that names the line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Say where the exception was raised; Ctrl-C passes."""
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if _same(Path(frame.filename), self.path)]
        where, text = f"{self.path}:{lines[-1]}" if lines else str(self.path), str(error)
        if isinstance(error, SyntaxError) and error.filename:
            where, text = f"{error.filename}:{error.lineno}", error.msg
        problem = ValueError(f"{where}: {type(error).__name__}: {text}")
        for note in getattr(error, "__notes__", []):
            problem.add_note(note)
        raise problem from error


def _candidates(module: ModuleType) -> str:
    """Say which names of a module could be meant."""
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, (NetworkedModel, Environment))
        or (getattr(value, "__module__", None) == module.__name__ and _without_arguments(value))
    ]
    return f"; it has {', '.join(names)}" if names else ""


def _without_arguments(value: Any) -> bool:
    code = getattr(value, "__code__", None)
    return code is not None and code.co_argcount - len(value.__defaults__ or ()) == 0


def fixed_agents(model: NetworkedModel) -> int | None:
    """Return the number of agents of a start with given counts; None if there are none."""
    initial = model.initial
    if isinstance(initial, np.ndarray) and initial.dtype.kind in "iu":
        return int(np.atleast_2d(initial)[0].sum())
    return None


def _training_agents(model: NetworkedModel) -> int:
    """Return the number of agents of a start with given counts, or 1000."""
    fixed = fixed_agents(model)
    return 1000 if fixed is None else fixed


def _all_options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return options as they were written: what was left out is None, where it may be."""
    kind = getattr(envs, ENVIRONMENTS[name])
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for option in given:
        if option not in known:
            raise ValueError(f"{option}: no such option; known are {', '.join(sorted(known))}")
    optional = {k for k, hint in get_type_hints(kind).items() if type(None) in get_args(hint)}
    return {option: None for option in known & optional} | given


def _located(value: Any) -> Any:
    """Return a path to a file as an absolute one, so that other folders find it too."""
    is_file = isinstance(value, str) and "." in value and Path(value).is_file()
    return str(Path(value).resolve()) if is_file else value


def _is_network(value: Any) -> bool:
    """Whether an option is the path of a network."""
    return isinstance(value, str) and value.endswith(_NETWORK)


def _relative(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


def _absolute(text: str, folder: Path) -> Path:
    """Return the path that `_relative` wrote."""
    return Path(os.path.normpath(folder / text))


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

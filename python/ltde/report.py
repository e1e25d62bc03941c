"""A report of a trained policy: one HTML file with tables and pictures, that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import errno
import html
import io
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltde import plotting
from ltde.arguments import integer, population_size, seed_number
from ltde.checkpoint import write_text
from ltde.envs.environment import Environment, Measurement
from ltde.evaluation import evaluate, has_value
from ltde.simulator import Simulator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write"]

_LEARNED = "learned"
_DPI = 110
# States that the picture of the policy shows.
_SHOWN_STATES = 6
# Replicas, and steps recorded at a time, behind mean densities.
_REPLICAS, _BLOCK = 4, 16
# Discount at which a mean density ends.
_TAIL = 1e-2
# Characters of an option of the environment that are shown.
_LONGEST = 200
_MISSING = "\N{EN DASH}"

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.2rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { border: 1px solid #8888; padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th[scope=row] { text-align: left; }
td small { display: block; opacity: .8; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 6px; }
pre { overflow-x: auto; border: 1px solid #8888; border-radius: 6px; padding: .7rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Picture:
    """A figure, and in words what it shows where the title does not say all."""

    title: str
    words: str
    figure: Figure


def write(
    folder: str | os.PathLike[str],
    environment: Environment,
    policy: Any,
    metrics: Sequence[Mapping[str, Any]],
    *,
    agents: Sequence[float] = (100, 1000, 10_000, math.inf),
    n_replicas: int = 16,
    seed: int = 0,
    training_agents: float | None = None,
    threads: int | None = None,
) -> Path:
    """Measure a policy beside those that do not learn, and write a report.

    Parameters
    ----------
    folder
        Where `report.html` goes, and the pictures in it into `figures/`; made if it is missing. The
        report shows `config.toml` of a run directory.
    environment
        What was trained for.
    policy
        What was learned.
    metrics
        One dict an iteration, as `TrainingResult.metrics`; may be empty.
    agents
        Numbers of agents to measure at, `math.inf` among them or not.
    n_replicas, seed, threads
        As for `Environment.measure`.
    training_agents
        Number of agents that the policy was trained with, at which `J` is compared; None takes that
        of the environment.

    Returns
    -------
    Path
        The report. The same arguments write the same file but for the date in it.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    ImportError
        If matplotlib is not installed.
    OSError
        If the folder cannot be written, before anything is simulated.

    Notes
    -----
    Teams of an `EnergyPolicy` stay random at any `N`, so they have no value at `math.inf`: the
    table leaves that out.
    """
    if not isinstance(environment, Environment):
        raise TypeError(
            f"environment: expected an ltde.envs.Environment, got {type(environment).__name__}"
        )
    for i, row in enumerate(metrics):
        if not isinstance(row, Mapping):
            raise TypeError(f"metrics[{i}]: expected a dict, got {type(row).__name__}")
    numbers = sorted({population_size(n) for n in agents})
    if not numbers:
        raise ValueError("agents: expected at least one number")
    replicas = integer("n_replicas", n_replicas, 1, 2**31)
    seed = seed_number(seed)
    trained = environment.training_agents if training_agents is None else training_agents
    trained = population_size(trained)
    baselines = dict(environment.baselines())
    if _LEARNED in baselines:
        raise ValueError(f"environment: a policy that does not learn is named {_LEARNED!r}")
    policies = {**baselines, _LEARNED: policy}
    folder = Path(folder)
    for place in (folder, folder / "figures"):
        _check_folder(place)

    measured = {
        name: {
            n: environment.measure(played, n, replicas, seed, threads=threads)
            for n in numbers
            if has_value(played, n)
        }
        for name, played in policies.items()
    }
    references = dict(environment.references())
    values = {
        name: evaluate(environment.model, played, trained, replicas, seed=seed, threads=threads)
        for name, played in baselines.items()
        if has_value(played, trained)
    }
    what = _what(environment)
    pictures = [
        _Picture(
            "Value during training",
            f"Value J of the policy by iteration, at N = {_count(trained)}; lines: J of the "
            "policies that do not learn. Before the first evaluation the points are the estimate "
            "(reward of a step) / (1 - discount), J_estimate of the metrics, which is biased while "
            "the chain is young.",
            plotting.learning_curve(
                metrics, lines={name: value.mean for name, value in values.items()}
            ),
        ),
        _Picture(
            "Errors during training",
            "Error of the critic and norm of the gradient by iteration, on logarithmic axes.",
            plotting.training_errors(metrics),
        ),
        _Picture(
            "Every number of agents",
            f"{_sentence(what)} against the number of agents, with 95 % intervals; the numbers are "
            "in the table.",
            plotting.value_by_agents(measured, ylabel=what, references=references),
        ),
        *_of_the_application(environment, policies, trained, seed, replicas, threads),
    ]

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    parts = [
        f"<h1>{_escape(environment.title)}</h1>",
        _summary(environment, policy, metrics, trained),
        f"<h2>{_escape(_sentence(environment.measure_name))}</h2>",
        _table(environment, measured, references, numbers, replicas),
        *(_embed(folder / "figures", number, p) for number, p in enumerate(pictures, start=1)),
        _settings(environment, folder / "config.toml"),
    ]
    path = folder / "report.html"
    write_text(path, _page(environment.title, parts))
    return path


def _check_folder(folder: Path) -> None:
    """Raise an exception if a folder can be neither written nor made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


# ---- what is measured and drawn -----------------------------------------------------------------


def _of_the_application(
    environment: Environment,
    policies: Mapping[str, Any],
    trained: float,
    seed: int,
    replicas: int,
    threads: int | None,
) -> list[_Picture]:
    """Return the application's own pictures; densities and the policy where it has none."""
    own = environment.figures(policies, seed)
    if own:
        return [_Picture(title, "", figure) for title, figure in own.items()]
    model, learned = environment.model, policies[_LEARNED]
    if not has_value(learned, trained):
        return []
    simulator = Simulator(model, trained, min(replicas, _REPLICAS), seed=seed, threads=threads)
    before = next((name for name in policies if name != _LEARNED), None)
    density = {
        name: _mean_density(simulator, policies[name])
        for name in (before, _LEARNED)
        if name is not None
    }
    mean, most = density[_LEARNED]
    pictures = [
        _Picture(
            "Where the agents are",
            f"Discounted mean density of the states at N = {_count(trained)}.",
            plotting.graph_density(model, {name: pair[0] for name, pair in density.items()}),
        )
    ]
    if hasattr(learned, "individual") or callable(learned):
        busiest = np.sort(np.argsort(-mean, kind="stable")[:_SHOWN_STATES])
        pictures.append(
            _Picture(
                "What an agent does",
                "Learned probability of each action against the density of the agent's state, in "
                "the busiest states, up to 1.2 times the largest density that was seen.",
                plotting.policy_by_density(
                    model,
                    learned,
                    busiest.tolist(),
                    upper=1.2 * most[busiest],
                    n_agents=int(min(trained, 1000)),
                ),
            )
        )
    return pictures


def _mean_density(
    simulator: Simulator, policy: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the discounted mean density of every state from `P_0`, and the largest one seen."""
    simulator.reset()
    model = simulator.model
    horizon = max(1, math.ceil(math.log(_TAIL) / math.log(max(model.discount, 1e-9))))
    total = simulator.n_agents if simulator.n_agents < math.inf else 1.0
    mean, most = np.zeros(model.n_states), np.zeros(model.n_states)
    weight = 1.0
    for start in range(0, horizon, _BLOCK):
        steps = min(_BLOCK, horizon - start)
        counts = simulator.rollout(policy, steps, record=["counts"]).counts
        assert counts is not None
        densities = counts[:-1] / total
        mean += np.tensordot(
            weight * model.discount ** np.arange(steps), densities.mean(axis=1), axes=1
        )
        most = np.maximum(most, densities.max(axis=(0, 1)))
        weight *= model.discount**steps
    return mean / mean.sum(), most


# ---- parts of the page --------------------------------------------------------------------------


def _page(title: str, parts: Sequence[str]) -> str:
    """Put the parts into a page that may load nothing."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *parts,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _summary(
    environment: Environment, policy: Any, metrics: Sequence[Mapping[str, Any]], trained: float
) -> str:
    """Say what was trained, by what, and when."""
    import torch

    from ltde import __version__

    model = environment.model
    seconds = [float(row["seconds"]) for row in metrics if "seconds" in row]
    wall = sum(s for s in seconds if math.isfinite(s))
    rows = {
        "Environment": type(environment).__name__,
        "Model": f"{model.n_states:,} states, {model.graph.n_edges:,} edges, "
        f"{model.n_actions} actions, discount {model.discount:g}",
        "Policy": repr(policy),
        "Training": f"{len(metrics):,} iterations with N = {_count(trained)}"
        + (f", {_duration(wall)}" if seconds else ""),
        "Versions": f"ltde {__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}",
        "Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    entries = (f"<dt>{name}</dt><dd>{_escape(text)}</dd>" for name, text in rows.items())
    return "\n".join(["<dl>", *entries, "</dl>"])


def _table(
    environment: Environment,
    measured: Mapping[str, Mapping[float, Measurement]],
    references: Mapping[str, float],
    numbers: Sequence[float],
    replicas: int,
) -> str:
    """Return the table of measurements."""
    better = "lower" if environment.lower_is_better else "higher"
    head = "".join(f'<th scope="col">N = {_count(n)}</th>' for n in numbers)
    rows = []
    for name, row in measured.items():
        cells = "".join(f"<td>{_cell(row.get(n))}</td>" for n in numbers)
        rows.append(f'<tr><th scope="row">{_escape(name)}</th>{cells}</tr>')
    for name, value in references.items():
        cell = f'<td colspan="{len(numbers)}">{_number(value)}</td>'
        rows.append(f'<tr><th scope="row">{_escape(name)} (reference)</th>{cell}</tr>')
    text = (
        f"{_sentence(_what(environment))}; {better} is better. Mean over {replicas} replicas, and "
        "its 95 % interval; without one where nothing is random or there is one replica."
    )
    if any(n not in row for row in measured.values() for n in numbers):
        note = f"<p>{_MISSING}: teams of an energy-based policy stay random, and have no limit.</p>"
    else:
        note = ""
    return "\n".join(
        [
            '<div class="wide"><table>',
            f"<caption>{_escape(text)}</caption>",
            f'<thead><tr><th scope="col">policy</th>{head}</tr></thead>',
            "<tbody>",
            *rows,
            "</tbody>",
            "</table></div>",
            note,
        ]
    )


def _cell(measurement: Measurement | None) -> str:
    """Write a measurement."""
    if measurement is None:
        return _MISSING
    low, high = measurement.interval
    half = 0.5 * (high - low)
    mean = _number(measurement.mean, half)
    if not half > 0.0:
        return mean
    return f"{mean}<small>[{_number(low, half)}, {_number(high, half)}]</small>"


def _embed(folder: Path, number: int, picture: _Picture) -> str:
    """Write a picture into the folder, and into the page."""
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png", dpi=_DPI)
    data = buffer.getvalue()
    slug = re.sub(r"[^a-z0-9]+", "-", picture.title.lower()).strip("-")[:60]
    (folder / f"{number:02}-{slug}.png").write_bytes(data)
    words = _escape(picture.words)
    image = (
        f'<img alt="{words or _escape(picture.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )
    caption = f"\n<figcaption>{words}</figcaption>" if words else ""
    return f"<h2>{_escape(picture.title)}</h2>\n<figure>{image}{caption}</figure>"


def _settings(environment: Environment, config: Path) -> str:
    """Show the options of the environment and of the training, where there are any."""
    parts = []
    if dataclasses.is_dataclass(environment):
        lines = "\n".join(
            f"{field.name} = {repr(getattr(environment, field.name))[:_LONGEST]}"
            for field in dataclasses.fields(environment)
            if field.init and field.repr
        )
        parts.append(("Environment", lines))
    if config.is_file():
        parts.append(("Training", config.read_text(encoding="utf-8").strip()))
    if not parts:
        return ""
    details = (
        f"<details><summary>{name}</summary><pre>{_escape(text)}</pre></details>"
        for name, text in parts
    )
    return "\n".join(["<h2>Settings</h2>", *details])


# ---- words and numbers --------------------------------------------------------------------------


def _escape(text: Any) -> str:
    """Make text from outside fit for HTML; control characters have no place there."""
    return html.escape(
        re.sub(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", str(text))
    )


def _sentence(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


def _what(environment: Environment) -> str:
    """Name what is measured, with its unit."""
    return f"{environment.measure_name} ({environment.unit})"


def _count(n_agents: float) -> str:
    """Write a number of agents."""
    return "\N{INFINITY}" if n_agents == math.inf else f"{int(n_agents):,}"


def _number(value: float, half: float = 0.0) -> str:
    """Write a number to the digits that its interval leaves, or to five."""
    if not math.isfinite(value):
        return f"{value}"
    if not 0.0 < half < math.inf:
        half = 1e-3 * abs(value)
    if half == 0.0:
        return "0"
    digits = 1 - math.floor(math.log10(half))
    if digits > 9 or abs(value) >= 1e12:
        return f"{value:.5g}"
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _duration(seconds: float) -> str:
    """Write a time."""
    if seconds < 120.0:
        return f"{seconds:.3g} seconds"
    if seconds < 7200.0:
        return f"{seconds / 60.0:.3g} minutes"
    return f"{seconds / 3600.0:.3g} hours"

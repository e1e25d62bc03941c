"""A progress bar for training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ltde.arguments import integer

__all__ = ["Progress"]


class Progress:
    """Show iterations, value, errors, speed and the time left on standard error.

    Needs `rich`: `pip install 'ltde[log]'`. Where standard error is no terminal, only the last
    state is written.

    Parameters
    ----------
    total
        Number of iterations in all.
    done
        Iterations that were done before.

    Raises
    ------
    ImportError
        If rich is not installed.

    Examples
    --------
    >>> with Progress(total=2) as bar:  # doctest: +SKIP
    ...     trainer.fit([lambda trainer, metrics: bar.update(metrics)])
    """

    def __init__(self, total: int, done: int = 0) -> None:
        try:
            from rich import console, progress
        except ImportError as error:
            raise ImportError("a progress bar needs rich: pip install 'ltde[log]'") from error
        total = integer("total", total, 0, 2**53)
        done = integer("done", done, 0, total + 1)
        self._bar = progress.Progress(
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of an iteration.

        Parameters
        ----------
        metrics
            `iteration`, and what there is of `J` with `J_interval` (else `J_estimate`),
            `critic_error`, `gradient_norm`, `replica_steps` and `seconds`.
        """
        self._bar.update(
            self._task, completed=metrics["iteration"], description=_description(metrics)
        )

    def __enter__(self) -> Self:
        """Begin to show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def _description(metrics: Mapping[str, Any]) -> str:
    """Return the numbers of an iteration as a line."""
    parts = []
    if "J" in metrics:
        value = f"J {metrics['J']:.4g}"
        if "J_interval" in metrics:
            low, high = metrics["J_interval"]
            value += f" [{low:.4g}, {high:.4g}]"
        parts.append(value)
    elif "J_estimate" in metrics:
        parts.append(f"J ~ {metrics['J_estimate']:.4g}")
    for name, label in (("critic_error", "error"), ("gradient_norm", "gradient")):
        if name in metrics:
            parts.append(f"{label} {metrics[name]:.3g}")
    seconds = metrics.get("seconds", 0.0)
    if "replica_steps" in metrics and seconds > 0.0:
        parts.append(f"{_short(metrics['replica_steps'] / seconds)} steps/s")
    return "  ".join(parts)


def _short(number: float) -> str:
    """Write a large number in three digits."""
    if not math.isfinite(number):
        return f"{number}"
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.3g}"

"""Metrics of training for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard"]


class TensorBoard:
    """A callback of `LTDENeuralAC.fit` that writes every number of the metrics as a scalar.

    Needs `tensorboard`: `pip install 'ltde[log]'`. The step is the iteration. An interval `x` gives
    `x/low` and `x/high`. A run that goes on from a checkpoint, in the same folder, replaces what
    was written after it.

    Parameters
    ----------
    folder
        Folder for the event files, made when it does not exist.

    Raises
    ------
    ImportError
        If tensorboard is not installed.

    Examples
    --------
    >>> with TensorBoard("runs/first") as board:  # doctest: +SKIP
    ...     trainer.fit([board])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise ImportError("TensorBoard needs tensorboard: pip install 'ltde[log]'") from error
        self._folder = os.fspath(folder)
        self._open = tensorboard.SummaryWriter
        self._writer: SummaryWriter | None = None

    def __call__(self, trainer: object, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of an iteration to disk.

        Parameters
        ----------
        trainer
            Plays no part.
        metrics
            `iteration`, and numbers or pairs of numbers by name; others are left out.
        """
        step = metrics["iteration"]
        if self._writer is None:
            self._writer = self._open(self._folder, purge_step=step)
        for name, value in metrics.items():
            pair = isinstance(value, (list, tuple)) and len(value) == 2
            parts = {f"{name}/low": value[0], f"{name}/high": value[1]} if pair else {name: value}
            for tag, number in parts.items():
                if tag != "iteration" and _is_number(number):
                    self._writer.add_scalar(tag, number, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a later call opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        """Return the callback itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)

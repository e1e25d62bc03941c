"""Files of tensors with a small JSON: written whole or not at all, read as written or not at all.

A file is a safetensors file whose metadata hold one entry, `ltde`: a JSON object with the format,
the SHA-256 of the file and what the caller wants to keep. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["FORMAT", "read", "write", "write_text"]

# Layout of all files; raised when a file of the old layout can no longer be read.
FORMAT = 1
# The SHA-256 is that of the file with this in its place.
_BLANK = "0" * 64


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON object into a file, atomically.

    Parameters
    ----------
    path
        The file; its folder must exist. One that is there is replaced, and is as it was after any
        error. One process at a time may write it.
    tensors
        Tensors by name, on any device; no two may share memory.
    info
        What JSON can hold; `format` and `sha256` are taken.

    Raises
    ------
    ValueError
        If `info` holds a name that is taken.
    TypeError
        If `info` holds what JSON cannot.
    """
    for name in ("format", "sha256"):
        if name in info:
            raise ValueError(f"info[{name!r}]: the name is taken")
    text = json.dumps({"format": FORMAT, "sha256": _BLANK, **info})
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    data = save(plain, metadata={"ltde": text})
    digest = hashlib.sha256(data).hexdigest()
    _replace(Path(path), data.replace(_entry(_BLANK), _entry(digest), 1))


def read(
    path: str | os.PathLike[str], needs: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote; any other byte in the file is noticed.

    Parameters
    ----------
    path
        The file.
    needs
        Names that the tensors or the JSON object must hold.

    Returns
    -------
    tensors, info
        Tensors on the CPU, and the JSON object.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        Naming the file, if it is damaged, of another format, or without a name it must hold.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint")
    data = path.read_bytes()
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        info = json.loads(header.get("__metadata__", {}).get("ltde", "{}"))
        found = info.pop("format", None)
        digest = str(info.pop("sha256", None))
        blank = data.replace(_entry(digest), _entry(_BLANK), 1)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged checkpoint: {error}") from error
    if type(found) is not int or found != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {found}")
    if hashlib.sha256(blank).hexdigest() != digest:
        raise ValueError(f"{path}: damaged checkpoint: the SHA-256 is not that of its bytes")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged checkpoint: {error}") from error
    for name in needs:
        if name not in tensors and name not in info:
            raise ValueError(f"{path}: holds no {name!r}")
    return tensors, info


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text into a file in UTF-8, atomically; as `write`."""
    _replace(Path(path), text.encode())


def _entry(digest: str) -> bytes:
    """Return the SHA-256 as it stands in the file: JSON inside JSON."""
    return rf"\"sha256\": \"{digest}\"".encode()


def _replace(path: Path, data: bytes) -> None:
    """Give a file new contents at once: whoever reads it sees the old ones or the new ones."""
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed while writing this file left behind."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+-\d+\.tmp")
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name):
                with suppress(OSError):
                    os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Make the new name outlive a power failure."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(number)

"""Files of tensors: whole or not there, and any other byte is noticed."""

import errno
import json
import math
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ltde import checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

NAME = "some.safetensors"
TENSORS = {
    "theta": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "mask": torch.tensor([True, False, True]),
    "counts": torch.tensor([2**53, -1]),
    "nothing": torch.zeros(0, 3),
}
INFO = {"iteration": 3, "n_agents": math.inf, "best": None, "inner": {"sha256": "0" * 64}}


@pytest.fixture
def path(tmp_path):
    checkpoint.write(tmp_path / NAME, TENSORS, INFO)
    return tmp_path / NAME


def same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name])
    return True


def test_what_is_written_is_read(path):
    tensors, info = checkpoint.read(path)
    assert same(tensors, TENSORS)
    assert info == INFO
    tensors["theta"] += 1.0  # memory of its own
    assert same(checkpoint.read(str(path))[0], TENSORS)
    assert checkpoint.read(path, ["theta", "best"])[1] == INFO


def test_any_safetensors_reader_reads_it(path):
    assert same(load_file(path), TENSORS)
    with safe_open(path, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("theta"), TENSORS["theta"].numpy())
        info = json.loads(file.metadata()["ltde"])
    assert info.pop("format") == checkpoint.FORMAT == 1
    assert len(info.pop("sha256")) == 64
    assert info == INFO


def test_the_same_content_has_the_same_bytes(path, tmp_path):
    before = path.read_bytes()
    checkpoint.write(tmp_path / "other", dict(reversed(TENSORS.items())), INFO)
    assert (tmp_path / "other").read_bytes() == before
    checkpoint.write(tmp_path / "other", TENSORS, {**INFO, "iteration": 4})
    assert (tmp_path / "other").read_bytes() != before


def test_tensors_of_every_kind(tmp_path):
    tensors = {
        "parameter": torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64)),
        "turned": torch.arange(6).reshape(2, 3).T,
        "one": torch.ones(()),
    }
    checkpoint.write(tmp_path / NAME, tensors, {})
    read, info = checkpoint.read(tmp_path / NAME)
    assert info == {}
    assert same(read, {name: x.detach() for name, x in tensors.items()})
    assert not read["parameter"].requires_grad


# Damage.


def test_every_flipped_bit_is_noticed(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(ValueError, match=NAME):
                checkpoint.read(path)
    path.write_bytes(whole)
    checkpoint.read(path)


def test_white_space_is_noticed(tmp_path):
    """The padding of the header is where a JSON reader takes other bytes."""
    path = tmp_path / NAME
    for text in ("", "1", "12", "123"):  # one of them needs padding
        checkpoint.write(path, TENSORS, {"text": text})
        whole = path.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        if whole[end - 1 : end] == b" ":
            break
    path.write_bytes(whole[: end - 1] + b"\n" + whole[end:])
    assert same(load_file(path), TENSORS)
    with pytest.raises(ValueError, match=f"{NAME}: damaged checkpoint: the SHA-256"):
        checkpoint.read(path)


def test_a_file_of_another_length_is_noticed(path):
    whole = path.read_bytes()
    for data in [whole[:size] for size in range(len(whole))] + [whole + b"0", whole + whole]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=NAME):
            checkpoint.read(path)


@pytest.mark.parametrize("number", range(20))
def test_noise(number, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(random.Random(number).randbytes(5000))
    with pytest.raises(ValueError, match=f"{NAME}: damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "header",
    ["[]", "3", "null", '{"__metadata__": 3}', '{"__metadata__": {"ltde": "[]"}}', "[" * 10**5],
    ids=range(6),
)
def test_other_json(header, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ValueError, match=f"{NAME}: damaged"):
        checkpoint.read(path)


def test_a_file_without_our_json(path):
    save_file(TENSORS, path)
    with pytest.raises(ValueError, match=f"{NAME}: expected format 1, got None"):
        checkpoint.read(path)
    save_file(TENSORS, path, metadata={"ltde": '{"format": 1'})
    with pytest.raises(ValueError, match=f"{NAME}: damaged"):
        checkpoint.read(path)
    save_file(TENSORS, path, metadata={"ltde": '{"format": 1}'})
    with pytest.raises(ValueError, match=f"{NAME}: damaged checkpoint: the SHA-256"):
        checkpoint.read(path)


@pytest.mark.parametrize("number", [0, 2, None, "1", 1.0, True])
def test_another_format(number, path):
    info = json.dumps({"format": number, "sha256": "0" * 64})
    save_file(TENSORS, path, metadata={"ltde": info})
    with pytest.raises(ValueError, match=f"{NAME}: expected format 1, got {number}$"):
        checkpoint.read(path)


def test_what_is_missing(path, tmp_path):
    with pytest.raises(ValueError, match=f"{NAME}: holds no 'omega'$"):
        checkpoint.read(path, ["theta", "iteration", "omega"])
    for nothing in (tmp_path / "nowhere", tmp_path / "no" / "where", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"{nothing.name}: no checkpoint$"):
            checkpoint.read(nothing)


# Writing.

SHARED = torch.zeros(2)
REFUSED = {
    "the format": (TENSORS, {"format": 1}, ValueError, r"^info\['format'\]: "),
    "the digest": (TENSORS, {"sha256": ""}, ValueError, r"^info\['sha256'\]: "),
    "no JSON": (TENSORS, {"path": Path()}, TypeError, "JSON"),
    "shared memory": ({"a": SHARED, "b": SHARED}, {}, RuntimeError, "share memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_changes_nothing(name, path):
    tensors, info, error, match = REFUSED[name]
    before = path.read_bytes()
    with pytest.raises(error, match=match):
        checkpoint.write(path, tensors, info)
    assert os.listdir(path.parent) == [NAME]
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("write", ["write", "write_text"])
def test_after_an_error_the_old_file_is_there(write, where, error, path, monkeypatch):
    def fail(*arguments):
        raise error

    before = path.read_bytes()
    content = (TENSORS, {}) if write == "write" else ("text",)
    with monkeypatch.context() as patch:
        patch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[where], fail)
        with pytest.raises(type(error)):
            getattr(checkpoint, write)(path, *content)
    assert os.listdir(path.parent) == [NAME]
    assert path.read_bytes() == before
    getattr(checkpoint, write)(path, *content)
    assert path.read_bytes() != before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.write(tmp_path / "nowhere" / NAME, TENSORS, INFO)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not synchronised")
def test_the_order_of_steps(path, monkeypatch):
    """The bytes are on the disk before they have the name, and the name is before `write` ends."""
    steps, sync, replace = [], os.fsync, Path.replace

    def synchronise(number):
        status = os.fstat(number)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        return sync(number)

    def move(self, target):
        assert self.parent == target.parent
        steps.append(self.stat().st_size)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(Path, "replace", move)
    checkpoint.write(path, TENSORS, {"more": "x" * 1000})
    size = path.stat().st_size
    assert steps == [size, size, "folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not synchronised")
@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_synchronise_folders(number, raises, path, monkeypatch):
    sync = os.fsync

    def synchronise(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, "folder")
        return sync(file)

    monkeypatch.setattr(os, "fsync", synchronise)
    if raises:
        with pytest.raises(OSError, match="folder"):
            checkpoint.write_text(path, "new")
    else:
        checkpoint.write_text(path, "new")
    assert path.read_text() == "new"


def test_what_a_killed_process_left_is_removed(path):
    folder = path.parent
    left = [f".{NAME}.123-456.tmp", f".{NAME}.{os.getpid()}-1.tmp"]
    others = [
        ".other.123-456.tmp",
        f".{NAME}.tmp",
        f".x{NAME}.1-2.tmp",
        ".someXsafetensors.1-2.tmp",
    ]
    for name in left + others:
        (folder / name).write_bytes(b"half")
    checkpoint.write(path, TENSORS, INFO)
    assert set(os.listdir(folder)) == {NAME, *others}
    checkpoint.write_text(folder / "other", "text")
    assert set(os.listdir(folder)) == {NAME, "other", *others[1:]}


KILLED = """
import os, signal, sys
import torch
from ltde import checkpoint

os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write(sys.argv[1], {"theta": torch.zeros(1000)}, {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process(path):
    command = [sys.executable, "-c", KILLED, str(path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(path.parent)) == 2
    assert same(checkpoint.read(path)[0], TENSORS)
    checkpoint.write(path, {}, {"after": 1})
    assert os.listdir(path.parent) == [NAME]
    assert checkpoint.read(path) == ({}, {"after": 1})


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_others_may_read_it_as_the_umask_says(path):
    before = os.umask(0o027)
    try:
        checkpoint.write(path, TENSORS, INFO)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_text(tmp_path):
    path = tmp_path / "text"
    for text in ("", "first\nsecond\r\n", "\u00e9"):
        checkpoint.write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    assert os.listdir(tmp_path) == ["text"]
    with pytest.raises(UnicodeEncodeError):
        checkpoint.write_text(path, "\ud800")
    assert path.read_bytes() == b"\xc3\xa9"

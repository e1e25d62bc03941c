"""What a training run shows: the progress bar and the curves of TensorBoard."""

import math
import sys

import ltde
import numpy as np
import pytest
from ltde.progress import Progress
from ltde.tensorboard import TensorBoard
from models import ring_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

METRICS = {
    "iteration": 7,
    "J": 12.34567,
    "J_interval": [12.0, 12.75],
    "J_estimate": 99.0,
    "critic_error": 0.02468,
    "gradient_norm": 1.5,
    "replica_steps": 48_000,
    "seconds": 0.02,
}


@pytest.fixture
def shown(capsys, monkeypatch):
    """Return a function that shows metrics in a bar and returns what was written."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def show(*rows, total=10, done=0):
        with Progress(total, done) as bar:
            for metrics in rows:
                bar.update(metrics)
        written = capsys.readouterr()
        assert written.out == ""
        return " ".join(written.err.split())

    return show


# The bar.


def test_the_numbers_of_an_iteration(shown):
    text = shown(METRICS)
    assert text.startswith("7/10")
    assert "J 12.35 [12, 12.75] error 0.0247 gradient 1.5 2.4M steps/s" in text
    assert "99" not in text


def test_between_evaluations_the_estimate_is_shown(shown):
    between = {name: x for name, x in METRICS.items() if name not in ("J", "J_interval")}
    text = shown(METRICS, {**between, "iteration": 8})
    assert text.startswith("8/10")
    assert "J ~ 99 error" in text
    assert "12.35" not in text


def test_a_value_without_an_interval(shown):
    assert "J 12.35 error" in shown({k: x for k, x in METRICS.items() if k != "J_interval"})


def test_what_is_not_there_is_not_shown(shown):
    text = shown({"iteration": 3})
    assert text.startswith("3/10")
    for word in ("J", "critic", "gradient", "agent"):
        assert word not in text
    for seconds in ({"seconds": 0.0}, {}):
        assert "agent" not in shown({"iteration": 3, "replica_steps": 10, **seconds})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (0, "0"),
        (12, "12"),
        (1234, "1.23k"),
        (5e6, "5M"),
        (2.5e9, "2.5G"),
        (1e15, "1e+03T"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_speeds(steps, expected, shown):
    metrics = {"iteration": 1, "replica_steps": steps, "seconds": 1.0}
    assert f" {expected} steps/s" in shown(metrics)


def test_numbers_that_are_not_finite(shown):
    text = shown({**METRICS, "J": math.nan, "critic_error": math.inf})
    assert "J nan [12, 12.75] error inf" in text


def test_a_run_that_goes_on(shown):
    assert shown(total=10, done=4).startswith("4/10")
    assert shown({"iteration": 5}, total=10, done=4).startswith("5/10")
    assert "0:00:00" in shown({"iteration": 10}, total=10, done=9)
    assert "0:00:00" not in shown({"iteration": 9}, total=10, done=9)
    assert shown(total=0).startswith("0/0")


def test_the_bar_ends_with_an_error(capsys):
    def train():
        with Progress(3) as bar:
            bar.update({"iteration": 2})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert "2/3" in capsys.readouterr().err


def test_metrics_without_an_iteration():
    with Progress(3) as bar, pytest.raises(KeyError, match="iteration"):
        bar.update({"J": 1.0})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((-1,), ValueError, r"^total: "),
        ((2.5,), TypeError, r"^total: "),
        ((3, 4), ValueError, r"^done: .*got 4$"),
        ((3, -1), ValueError, r"^done: "),
        ((3, "1"), TypeError, r"^done: "),
    ],
)
def test_bad_numbers_of_iterations(arguments, error, match):
    with pytest.raises(error, match=match):
        Progress(*arguments)


# TensorBoard.


def curves(folder):
    """Return `{tag: [(step, value), ...]}` of all that was written into a folder."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_every_number_is_a_curve(tmp_path):
    with TensorBoard(tmp_path / "runs") as board:
        assert board(None, METRICS) is None
        first = curves(tmp_path / "runs")  # on the disk at once
        assert first["J"] == [(7, pytest.approx(12.34567))]
        board(None, {"iteration": 8, "J_estimate": np.float32(2.0), "seconds": 1})
    written = curves(tmp_path / "runs")
    intervals = {"J_interval/low", "J_interval/high"}
    assert written.keys() == (METRICS.keys() - {"iteration", "J_interval"}) | intervals
    assert written["J_interval/low"] == [(7, 12.0)]
    assert written["J_interval/high"] == [(7, 12.75)]
    assert written["J_estimate"] == [(7, 99.0), (8, 2.0)]
    assert written["seconds"] == [(7, pytest.approx(0.02)), (8, 1.0)]


def test_what_is_not_a_number_is_left_out(tmp_path):
    others = {"text": "1", "none": None, "flag": True, "list": [1, 2, 3], "pair": ["a", "b"]}
    with TensorBoard(tmp_path) as board:
        board(None, {"iteration": 1, "x": 0.5, **others})
    assert curves(tmp_path) == {"x": [(1, 0.5)]}


def test_a_run_that_goes_on_replaces_what_came_after(tmp_path):
    with TensorBoard(str(tmp_path)) as board:
        for step in range(1, 6):
            board(None, {"iteration": step, "x": float(step)})
    with TensorBoard(tmp_path) as board:  # from the checkpoint of iteration 3
        board(None, {"iteration": 4, "x": -4.0})
    assert curves(tmp_path)["x"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, -4.0)]


def test_nothing_is_made_before_there_is_something(tmp_path):
    board = TensorBoard(tmp_path / "runs")
    board.close()
    assert not (tmp_path / "runs").exists()
    board(None, {"iteration": 1, "x": 1.0})
    board.close()
    board.close()
    assert curves(tmp_path / "runs") == {"x": [(1, 1.0)]}
    with pytest.raises(KeyError, match="iteration"), board:
        board(None, {"x": 1.0})


# Both.


def test_a_training_run(tmp_path, shown, capsys):
    config = ltde.Config(width=8, n_replicas=2, segment=3, n_iterations=4, evaluate_every=2)
    trainer = ltde.LTDENeuralAC(ring_model(4), 12, config, threads=1)
    with Progress(4) as bar, TensorBoard(tmp_path) as board:
        result = trainer.fit([lambda trainer, metrics: bar.update(metrics), board])
    assert len(result.metrics) == 4
    assert "4/4" in capsys.readouterr().err
    written = curves(tmp_path)
    assert written["J"] == [
        (row["iteration"], pytest.approx(row["J"], rel=1e-6)) for row in result.metrics[1::2]
    ]
    assert [step for step, _ in written["critic_error"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("module", "make", "match"),
    [
        ("rich", lambda folder: Progress(3), r"rich: pip install 'ltde\[log\]'$"),
        (
            "torch.utils.tensorboard",
            TensorBoard,
            r"needs tensorboard: pip install 'ltde\[log\]'$",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named(module, make, match, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=match):
        make(tmp_path)

"""The command line: every command, own models, errors, exit codes, JSON, pipes and Ctrl-C."""

import dataclasses
import importlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ltde
import numpy as np
import pytest
from ltde.checkpoint import read
from ltde.cli import main
from ltde.cli.commands import COMMANDS
from ltde.cli.options import number_of_agents
from ltde.config import Config
from ltde.trainer import CHECKPOINT

MODEL = '''
import numpy as np
import ltde
from ltde.envs import OwnModel


def local(s, mu, node, edge, prob, reward):
    """Stay, or go on along the ring; an agent earns the worth of its state less the crowd."""
    here = ahead = 0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            here = i
        if edge[i, 0] == 1.0:
            ahead = i
    prob[0, here] = prob[1, ahead] = 1.0
    reward[:] = node[0] - mu[here]


def build(discount=0.8, initial=None, reward_range=(-1.0, 1.0)):
    graph = ltde.Graph.ring(6)
    ahead = (graph.indices - np.repeat(np.arange(6), np.diff(graph.indptr))) % 6
    worth = np.where(np.arange(6) % 3 == 2, 1.0, 0.0)
    return ltde.NetworkedModel(
        graph, 2, local, node=worth, edge=ahead, discount=discount, initial=initial,
        reward_range=reward_range,
    )


model = build()
environment = OwnModel(model, "a ring", 50)
number = 7
fixed = build(initial=np.array([5, 4, 3, 2, 1, 0]))
unbounded = build(reward_range=None)


def other():
    return build(0.7)


def returns_nothing():
    return None


def raises():
    raise KeyError("worth")
'''
TINY = [
    "--width",
    "8",
    "--replicas",
    "4",
    "--segment",
    "5",
    "--evaluate-every",
    "2",
    "--checkpoint-every",
    "2",
    "--threads",
    "1",
]
POLICIES = {"policy_best.safetensors", "policy_last.safetensors"}
FILES = {"environment.toml", "config.toml", "metrics.jsonl", CHECKPOINT, *POLICIES}
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f]")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make a folder with a model and a run of it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "own_model.py").write_text(MODEL, encoding="utf-8")
    assert train(folder, "run", "--iterations", "5") == 0
    return folder


def target(folder, attribute="model"):
    return f"{folder / 'own_model.py'}:{attribute}"


def train(folder, run, *more, attribute="model"):
    out = ["--out", str(folder / run), "--agents", "12", "--quiet"]
    return main(["train", target(folder, attribute), *out, *TINY, *more])


def move_file(home, run):
    """Let the copy of a run find its model."""
    path = run / "environment.toml"
    text = path.read_text(encoding="utf-8")
    text = re.sub("file = .*", f"file = '{(home / 'own_model.py').as_posix()}'", text)
    path.write_text(text, encoding="utf-8")


def theta(run):
    return {name: x.numpy() for name, x in read(run / CHECKPOINT)[0].items()}


def same_bits(one, other):
    ours, theirs = theta(one), theta(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], name)


def fails(capsys, *args, code=1):
    """Return the one message of a command that fails."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in error
    return error


def data(capsys, *args):
    """Return the JSON that a command prints."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    capsys.readouterr()
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


# ---- help ---------------------------------------------------------------------------------------


def test_help_lists_the_commands(capsys):
    for args in (["--help"], []):
        assert main(args) == 0
        out = capsys.readouterr().out
        assert all(f"• {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_each_option(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    groups = {"settings", "machine", "output"}
    options = {"json", "quiet", "debug"}
    options |= {field.name for field in dataclasses.fields(COMMANDS[name])} - groups
    if name == "train":
        options |= {field.name.removeprefix("n_") for field in dataclasses.fields(Config)}
        options |= {"threads", "device"}
    for option in options - {"target", "run_dir"}:
        assert re.search(rf"--{option.replace('_', '-')}\b", out), option
    assert ("TARGET" in out) == ("target" in options)
    assert ("RUN" in out) == ("run_dir" in options)
    assert max(map(len, out.splitlines())) <= 80
    assert not ESCAPES.search(out)
    documented = re.sub(r"[│\s]+", " ", out)
    assert "None)" not in documented or name == "train"  # where Config has a None
    if name == "train":
        assert "Number `M` of neurons of each state" in documented
        assert 'needs `actor="score"` and `critic="q"`' in documented


def test_help_shows_the_options_of_an_application(capsys):
    for name in ("train", "simulate", "check"):
        assert main([name, "road-routing", "--help"]) == 0
        out = capsys.readouterr().out
        for field in dataclasses.fields(ltde.envs.RoadRouting):
            assert f"--{field.name}" in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ltde {ltde.__version__}\n"


def test_what_cannot_be_parsed_is_a_usage_error(home, capsys):
    assert "trian" in fails(capsys, "trian", code=2)
    assert "TARGET" in fails(capsys, "train", code=2)
    assert "--width" in fails(capsys, "train", target(home), "--widht", "3", code=2)
    assert "--width" in fails(capsys, "train", target(home), "--width", "x", code=2)
    for wrong in ("0", "1.5", "many", "nan", "-3", "1e300", "1e400", "-inf"):
        message = fails(capsys, "evaluate", home / "run", "--agents", wrong, code=2)
        assert message.startswith("ltde: --agents: expected an integer")
        assert wrong in message
    assert "expected one of best" in fails(
        capsys, "evaluate", home / "run", "--policy", "bset", code=2
    )
    assert "--steps" in fails(capsys, "simulate", target(home), "--steps", "0", code=2)


@pytest.mark.parametrize("text", ["inf", "+Inf", "infinity", "\N{INFINITY}"])
def test_infinity_is_a_word(text):
    assert number_of_agents(text) == math.inf


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        *[
            (command, flag, value)
            for command in ("evaluate", "simulate", "report")
            for flag, value in (("replicas", "0"), ("threads", "0"), ("seed", "-1"))
        ],
        *[("check", flag, value) for flag, value in (("samples", "0"), ("steps", "0"))],
        *[("check", flag, value) for flag, value in (("threads", "0"), ("seed", "-1"))],
        *[("train", flag, "0") for flag in ("replicas", "threads", "iterations", "width")],
        *[("train", flag, "-1") for flag in ("seed", "k")],
        ("resume", "threads", "0"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(command, flag, value, home, tmp_path, capsys):
    what = target(home) if command in ("train", "check") else home / "run"
    out = ["--out", tmp_path / "out"] * (command == "train")
    message = fails(capsys, command, what, *out, f"--{flag}", value, code=2)
    assert re.match(rf"ltde: (--)?{flag}: expected ", message)
    assert not (tmp_path / "out").exists()


def test_without_tyro_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "pip install 'ltde[cli]'" in fails(capsys, "envs")


# ---- train and resume ---------------------------------------------------------------------------


def test_train_writes_a_run_directory(home):
    run = home / "run"
    assert {path.name for path in run.iterdir()} == FILES
    text = (run / "environment.toml").read_text(encoding="utf-8")
    assert 'file = "../own_model.py"\nattribute = "model"\nsha256 = ' in text
    config = Config.from_toml(run / "config.toml")
    assert (config.width, config.n_iterations, config.n_replicas) == (8, 5, 4)
    assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 5
    trainer = ltde.LTDENeuralAC.load(run, imported(home).model)
    assert trainer.n_agents == 12
    for name, policy in (("best", trainer.best_policy()), ("last", trainer.policy)):
        saved = ltde.SoftmaxPolicy.load(run / f"policy_{name}.safetensors")
        np.testing.assert_array_equal(saved.theta.detach(), policy.theta.detach())
    assert not np.array_equal(trainer.best_policy().theta.detach(), trainer.policy.theta.detach())


def imported(folder):
    """Import the file of the model as a user does, and forget it."""
    sys.modules.pop("own_model", None)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("own_model")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["own_model"]


def test_the_run_is_that_of_the_library(home, tmp_path):
    config = Config.from_toml(home / "run" / "config.toml")
    trainer = ltde.LTDENeuralAC(imported(home).model, 12, config, threads=1)
    trainer.fit(run_dir=tmp_path)
    same_bits(home / "run", tmp_path)


def test_resumed_runs_have_the_bits_of_one_that_was_left_alone(home, tmp_path, capsys):
    assert train(home, tmp_path / "whole", "--iterations", "7") == 0
    assert train(home, tmp_path / "parts", "--iterations", "3") == 0
    run = str(tmp_path / "parts")
    assert main(["resume", run, "--iterations", "5", "--threads", "1"]) == 0
    assert "iterations 4 to 5" in capsys.readouterr().err
    assert data(capsys, "resume", run, "--iterations", "7")["iterations"] == 7
    same_bits(tmp_path / "whole", tmp_path / "parts")
    assert main(["resume", run]) == 0
    assert "7 iterations are done already" in capsys.readouterr().err
    for wrong in ("0", "-1"):
        message = fails(capsys, "resume", run, "--iterations", wrong, code=2)
        assert message.startswith("ltde: --iterations: expected at least 1")


def test_with_nothing_left_to_do_nothing_is_written(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    move_file(home, run)

    def state():
        return {path.name: path.stat().st_mtime_ns for path in (run, *run.iterdir())}

    before = state()
    shown = data(capsys, "resume", run, "--iterations", "2")
    assert (shown["iterations"], shown["run"]) == (5, str(run))
    assert before == state()
    assert main(["resume", str(run)]) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    last = run / "policy_last.safetensors"
    wanted = last.read_bytes()
    assert wanted != (run / "policy_best.safetensors").read_bytes()
    for old in (None, b"damaged", (run / "policy_best.safetensors").read_bytes()):
        # killed just before it was written, beside nothing or the policy of an earlier end
        last.unlink()
        if old is not None:
            last.write_bytes(old)
        assert main(["resume", str(run), "--quiet"]) == 0
        assert last.read_bytes() == wanted
    same_bits(home / "run", run)


@pytest.mark.parametrize("left", ["policy_best.safetensors", "metrics.jsonl"])
def test_what_is_left_of_a_run_is_not_overwritten(left, home, tmp_path, capsys):
    shutil.copy(home / "run" / left, tmp_path)
    message = fails(capsys, "train", target(home), "--out", tmp_path)
    assert left in message
    assert "whose checkpoint is gone" in message
    assert [path.name for path in tmp_path.iterdir()] == [left]
    (tmp_path / left).unlink()
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert train(home, tmp_path, "--iterations", "1") == 0


def test_a_folder_with_a_run_is_refused(home, capsys):
    before = {path.name: path.read_bytes() for path in (home / "run").iterdir()}
    message = fails(capsys, "train", target(home), "--out", home / "run")
    assert f"ltde resume {home / 'run'}" in message
    assert before == {path.name: path.read_bytes() for path in (home / "run").iterdir()}


def test_the_run_directory_has_the_name_of_the_file(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = data(capsys, "train", target(home), *TINY, "--iterations", "1", "--agents", "1e1")
    assert shown["run"] == str(Path("runs", "own_model"))
    assert shown["agents"] == 10
    assert shown["iterations"] == 1
    assert {Path(path).name for path in shown["policies"].values()} == POLICIES
    assert shown["interval"][0] <= shown["mean"] <= shown["interval"][1]
    assert (tmp_path / "runs" / "own_model" / CHECKPOINT).is_file()


def test_run_and_model_can_move_together(home, tmp_path, capsys):
    moved = home.rename(home.with_name("moved"))
    try:
        assert data(capsys, "evaluate", moved / "run", "--agents", "5")["rows"]
    finally:
        moved.rename(home)
    assert train(home, tmp_path / "run", "--iterations", "1") == 0
    own = home / "own_model.py"
    own.rename(home / "elsewhere.py")
    try:
        message = fails(capsys, "evaluate", tmp_path / "run")
        assert "correct `file` there" in message
        assert "own_model.py" in message
    finally:
        (home / "elsewhere.py").rename(own)


def test_presets_files_and_flags_make_the_config(home, tmp_path, capsys):
    file = tmp_path / "my.toml"
    file.write_text("width = 16\nn_iterations = 2\nseed = 5\n", encoding="utf-8")
    options = ["--config", str(file), "--width", "8", "--no-symmetric", "--segment", "3"]
    assert train(home, tmp_path / "a", *options, "--seed", "6") == 0
    config = Config.from_toml(tmp_path / "a" / "config.toml")
    assert config.replace(checkpoint_every=10) == Config.practical(
        width=8,
        n_iterations=2,
        seed=6,
        symmetric=False,
        segment=3,
        n_replicas=4,
        evaluate_every=2,
    )
    theory = ["--preset", "theory", "--iterations", "2", "--critic-steps", "3", "--draws", "4"]
    assert train(home, tmp_path / "b", *theory) == 0
    config = Config.from_toml(tmp_path / "b" / "config.toml")
    assert config == Config.theory(
        0.8,
        n_iterations=2,
        critic_steps=3,
        reward_scale=0.2,
        n_draws=4,
        width=8,
        n_replicas=4,
        segment=5,
        evaluate_every=2,
        checkpoint_every=2,
    ).replace(reward_scale=config.reward_scale)
    assert config.reward_scale == pytest.approx(0.2)
    # energy-based teams have no value at infinity
    assert main(["evaluate", str(tmp_path / "b"), "--agents", "5", "inf", "--baselines"]) == 0
    out, error = capsys.readouterr()
    assert re.findall(r"^(best|uniform) +(\w+) ", out, re.M) == [
        ("best", "5"),
        ("uniform", "5"),
        ("uniform", "inf"),
    ]
    assert "inf is left out" in error
    for command in ("evaluate", "report"):
        message = fails(capsys, command, tmp_path / "b", "--agents", "inf", code=2)
        assert message.startswith("ltde: --agents: expected a finite number")
    assert not (tmp_path / "b" / "report.html").exists()
    shown = data(capsys, "evaluate", tmp_path / "b", "--agents", "inf", "--baselines")
    assert [row["policy"] for row in shown["rows"]] == ["uniform"]
    args = ["train", target(home, "unbounded"), "--out", tmp_path / "c"]
    assert "--reward-scale" in fails(capsys, *args, "--preset", "theory", code=2)
    args[1] = target(home)
    message = fails(capsys, *args, "--preset", "theory", "--config", file, code=2)
    assert "--preset and --config" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht = 3", "widht: no such field"),
        ("width = 0", "width: expected at least 1"),
        ("width = 'a'", "width: expected a number"),
        ("width =", "Invalid value"),
    ],
)
def test_a_wrong_config_is_refused(text, message, home, tmp_path, capsys):
    file = tmp_path / "my.toml"
    file.write_text(text, encoding="utf-8")
    out = tmp_path / "run"
    shown = fails(capsys, "train", target(home), "--out", out, "--config", file)
    assert message in shown
    assert str(file) in shown
    assert not out.exists()


def test_wrong_settings_are_refused(home, tmp_path, capsys):
    args = ["train", target(home), "--out", tmp_path / "run"]
    message = fails(capsys, *args, "--agents", "inf", "--actor", "score", "--critic", "q")
    assert "needs a finite number" in message
    assert "n_agents" in fails(capsys, "train", target(home, "fixed"), *args[2:], "--agents", "9")


def test_a_training_that_diverges_says_what_to_try(home, tmp_path, capsys):
    args = ["train", target(home), "--out", tmp_path / "run", *TINY, "--quiet"]
    rates = ["--critic-rate", "1e30", "--no-critic-normalized", "--iterations", "20"]
    message = fails(capsys, *args, *rates, "--segment", "30")
    assert re.search(r"iteration \d+: the .* is not finite; try a smaller", message)


def test_a_model_with_fixed_counts_is_played_with_their_number(home, tmp_path, capsys):
    args = ["train", target(home, "fixed"), "--out", str(tmp_path), *TINY, "--iterations", "1"]
    assert main([*args, "--quiet"]) == 0
    assert read(tmp_path / CHECKPOINT)[1]["n_agents"] == 15
    # by default the only numbers that there are
    shown = data(capsys, "evaluate", tmp_path, "--replicas", "2")
    assert [row["agents"] for row in shown["rows"]] == [15, "inf"]
    assert main(["report", str(tmp_path), "--replicas", "2"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall("N = ([^<]*)</th>", text) == ["15", "\N{INFINITY}"]


# ---- own files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["model", "environment", "other", "build"])
def test_what_an_attribute_may_be(attribute, home, capsys):
    shown = data(capsys, "simulate", target(home, attribute), "--steps", "3")
    assert shown["agents"] == (50 if attribute == "environment" else 1000)


def test_what_an_attribute_may_not_be(home, capsys):
    assert "no such file" in fails(capsys, "check", home / "none.py:model")
    message = fails(capsys, "check", target(home, "modle"))
    assert "has no 'modle'; it has build, model, environment" in message
    message = fails(capsys, "check", home / "own_model.py")
    assert "own_model.py:NAME; it has build, model" in message
    for name, kind in (("number", "int"), ("returns_nothing", "NoneType")):
        assert f"got {kind}" in fails(capsys, "check", target(home, name))
    message = fails(capsys, "check", target(home, "raises"))
    assert re.search(r"own_model\.py:\d+: KeyError: 'worth'", message)
    for wrong in ("road-ruoting", "own_model:model", ""):
        assert "expected road-routing or FILE.py:NAME" in fails(capsys, "check", wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import ltde\n\nltde.Grph\n", ":3: AttributeError: module 'ltde' has no attribute 'Grph'"),
        ("x = (\n", ":1: SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit(3)\n", ":2: SystemExit: 3"),
        ("import no_such_module\n", ":1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_an_exception_while_a_file_is_imported(text, message, tmp_path, capsys):
    (tmp_path / "broken_model.py").write_text(text, encoding="utf-8")
    shown = fails(capsys, "check", tmp_path / "broken_model.py:model")
    assert f"broken_model.py{message}" in shown
    assert "broken_model" not in sys.modules
    (tmp_path / "user_model.py").write_text("\nimport broken_model\n", encoding="utf-8")
    assert message.split(": ", 1)[1] in fails(capsys, "check", tmp_path / "user_model.py:model")


@pytest.mark.parametrize("name", ["random", "ltde", "numpy"])
def test_a_file_must_not_hide_a_module(name, tmp_path, capsys):
    (tmp_path / f"{name}.py").write_text(MODEL, encoding="utf-8")
    module = importlib.import_module(name)
    assert "rename the file" in fails(capsys, "check", tmp_path / f"{name}.py:model")
    assert sys.modules[name] is module


def test_a_file_may_import_from_beside_it_and_changes_are_seen(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = list(sys.path)
    own = tmp_path / "own-model.py"  # not a name that `import` takes
    (tmp_path / "beside_own_model.py").write_text(MODEL, encoding="utf-8")
    for discount in (0.5, 0.6):  # of the same size and time
        own.write_text(f"import beside_own_model\nm = beside_own_model.build({discount})\n")
        os.utime(own, (10**9, 10**9))
        assert data(capsys, "check", f"{own}:m", "--steps", "2")["discount"] == discount
    assert sys.path == path
    del sys.modules["beside_own_model"]


def test_what_a_file_prints_is_no_result(tmp_path, capsys):
    own = tmp_path / "own_model.py"
    text = (
        MODEL
        + """

class Late(OwnModel):
    @property
    def model(self):
        if self._model is None:
            print("at the first access")
            self._model = build()
        return self._model


def loud():
    print("while it is built")
    return Late(None, "late", 20)


print("at import")
"""
    )
    own.write_text(text, encoding="utf-8")
    shown = data(capsys, "check", f"{own}:loud", "--steps", "2")
    assert shown["states"] == 6
    assert main(["check", f"{own}:loud", "--steps", "2", "--json"]) == 0
    out, error = capsys.readouterr()
    assert error.splitlines() == ["at import", "while it is built", "at the first access"]
    assert out.startswith("{")


def test_another_model_is_refused(tmp_path, capsys):
    own = tmp_path / "own_model.py"
    own.write_text(MODEL, encoding="utf-8")
    assert train(tmp_path, "run", "--iterations", "1") == 0
    own.write_text(MODEL + "# a comment changes nothing\n", encoding="utf-8")
    assert main(["resume", str(tmp_path / "run"), "--iterations", "2"]) == 0
    own.write_text(MODEL.replace("model = build()", "model = build(0.6)"), encoding="utf-8")
    for command in ("resume", "evaluate", "simulate"):
        message = fails(capsys, command, tmp_path / "run")
        assert "another model" in message
        assert "own_model.py has changed since the run began" in message


# ---- evaluate, simulate, report -----------------------------------------------------------------


def test_evaluate_shows_values_with_intervals(home, capsys):
    run = home / "run"
    shown = data(capsys, "evaluate", run, "--agents", "12", "inf", "--baselines", "--replicas", "3")
    assert [(row["policy"], row["agents"]) for row in shown["rows"]] == [
        ("best", 12),
        ("best", "inf"),
        ("uniform", 12),
        ("uniform", "inf"),
    ]
    policy = ltde.SoftmaxPolicy.load(run / "policy_best.safetensors")
    wanted = ltde.evaluate(imported(home).model, policy, 12, 3)
    assert shown["rows"][0]["J"] == {"mean": wanted.mean, "interval": list(wanted.interval)}
    assert shown["rows"][0]["measure"] == shown["rows"][0]["J"]
    assert main(["evaluate", str(run), "--agents", "1_2", "1e6", "inf", "--policy", "last"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^last +12 +[\d.]+ \[[\d.]+, [\d.]+\]$", out, re.M)
    assert re.search(r"^last +1,000,000 ", out, re.M)
    assert re.search(r"^last +inf +[\d.]+$", out, re.M)


def test_simulate_writes_counts_and_rewards(home, tmp_path, capsys):
    out = tmp_path / "trajectory.npz"
    args = ["--agents", "1e6", "--steps", "7", "--replicas", "2", "--seed", "3", "--out", out]
    shown = data(capsys, "simulate", home / "run", *args)
    model = imported(home).model
    policy = ltde.SoftmaxPolicy.load(home / "run" / "policy_best.safetensors")
    wanted = ltde.Simulator(model, 10**6, 2, seed=3).rollout(policy, 7)
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["counts"], wanted.counts)
        np.testing.assert_array_equal(arrays["rewards"], wanted.rewards)
    total = 0.8 ** np.arange(7) @ wanted.rewards.sum(2).mean(1)
    assert shown["discounted_sum"] == pytest.approx(total)
    assert shown["agents"] == 10**6
    fullest, shares = shown["fullest"], wanted.counts.mean(1) / 1e6
    assert shares[fullest["step"], fullest["state"]] == fullest["share"] == shares.max()
    for policy in ("best", "last", "uniform"):
        assert main(["simulate", str(home / "run"), "--steps", "2", "--policy", policy]) == 0
    assert main(["simulate", target(home), "--agents", "inf", "--out", str(out)]) == 0
    assert "infinitely many agents, 100 steps, 1 replica" in capsys.readouterr().out
    with np.load(out) as arrays:
        assert arrays["counts"].dtype == np.float64
    message = fails(capsys, "simulate", target(home), "--out", tmp_path / "none" / "a.npz")
    assert message == f"ltde: {tmp_path / 'none' / 'a.npz'}: No such file or directory\n"
    # found out before anything is simulated, or even imported
    none = ["simulate", home / "none.py:model", "--out"]
    assert "No such file or directory" in fails(capsys, *none, tmp_path / "none" / "a.npz")
    assert "Is a directory" in fails(capsys, *none, tmp_path)
    message = fails(capsys, "simulate", target(home), "--policy", "best", code=2)
    assert "expected one of uniform" in message


def test_report_hands_over_what_was_learned(home, monkeypatch, capsys):
    calls, opened = [], []

    def write(folder, environment, policy, metrics, **options):
        calls.append((folder, environment, policy, metrics, options))
        return folder / "report.html"

    stub = SimpleNamespace(write=write)
    monkeypatch.setitem(sys.modules, "ltde.report", stub)
    monkeypatch.setattr(ltde, "report", stub, raising=False)
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = home / "run"
    shown = data(capsys, "report", run, "--agents", "5", "inf", "--replicas", "2", "--open")
    assert shown == {"report": str(run / "report.html")}
    assert opened == [(run / "report.html").as_uri()]
    folder, environment, policy, metrics, options = calls[0]
    assert folder == run
    assert environment.model.discount == 0.8
    best = ltde.SoftmaxPolicy.load(run / "policy_best.safetensors")
    np.testing.assert_array_equal(policy.theta.detach(), best.theta.detach())
    assert len(metrics) == 5
    assert options == {
        "agents": [5, math.inf],
        "n_replicas": 2,
        "seed": 0,
        "training_agents": 12,
        "threads": None,
    }
    out = ["--out", home / "reported", *TINY, "--iterations", "1", "--report"]
    shown = data(capsys, "train", target(home), *out)
    assert shown["report"] == str(home / "reported" / "report.html")
    assert calls[1][0] == home / "reported"


def test_folders_that_hold_no_run(tmp_path, home, capsys):
    for command in ("evaluate", "report", "resume"):
        assert "no such run directory" in fails(capsys, command, tmp_path / "none")
        assert "that `ltde train` made" in fails(capsys, command, tmp_path)
    assert "that `ltde train` made" in fails(capsys, "simulate", tmp_path)
    assert "no such application, file or folder" in fails(capsys, "simulate", tmp_path / "none")
    (tmp_path / "environment.toml").write_text("file = 'a.py'\n", encoding="utf-8")
    assert "environment.toml: holds no 'attribute'" in fails(capsys, "evaluate", tmp_path)
    (tmp_path / "environment.toml").write_text("application = 'x'\n", encoding="utf-8")
    assert "no such application 'x'" in fails(capsys, "evaluate", tmp_path)
    text = "application = 'road-routing'\n[options]\nspeed = 3\n"
    (tmp_path / "environment.toml").write_text(text, encoding="utf-8")
    assert "speed: no such option; known are" in fails(capsys, "evaluate", tmp_path)
    shutil.copy(home / "run" / "environment.toml", tmp_path)
    move_file(home, tmp_path)
    assert "no checkpoint" in fails(capsys, "evaluate", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("application = ['a']", "no such application ['a']"),
        ("application = 'road-routing'\noptions = 3", "options: expected a table, got 3"),
        ("application = 'road-routing'\n[options]\nstep = 'abc'", "step: expected"),
        ("application = 'road-routing'\n[options]\nnetwork = 3", "network: expected"),
        ("file = 3\nattribute = 'a'\nsha256 = ''", "file: expected a string, got 3"),
        ("file = 'a.py'\nattribute = 3\nsha256 = ''", "attribute: expected a string, got 3"),
        ("file = 'a.py'\nattribute = 'a'\nsha256 = 3", "sha256: expected a string, got 3"),
    ],
)
def test_a_damaged_environment_is_named(text, message, tmp_path, capsys):
    path = tmp_path / "environment.toml"
    path.write_text(text, encoding="utf-8")
    for command in ("evaluate", "report", "resume", "simulate"):
        shown = fails(capsys, command, tmp_path)
        assert shown.startswith(f"ltde: {path}: {message}")
        assert shown.count("\n") == 1


# ---- envs, check, info --------------------------------------------------------------------------


def test_envs_lists_applications_options_and_networks(capsys):
    shown = data(capsys, "envs")
    options = shown["applications"]["road-routing"]["options"]
    assert set(options) == {field.name for field in dataclasses.fields(ltde.envs.RoadRouting)}
    assert options["network"]["default"] == "sioux-falls"
    assert all(about["help"] for about in options.values())
    assert shown["networks"]["sioux-falls"]["links"] == 76
    assert main(["envs"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("road-routing: ", "--shaping", "braess"))


def test_check_says_that_a_model_is_right(home, capsys):
    shown = data(capsys, "check", target(home), "--agents", "1e3", "--steps", "5")
    assert (shown["states"], shown["actions"], shown["edges"]) == (6, 2, 6)
    assert [play["agents"] for play in shown["plays"]] == [1000, "inf"]
    assert [ball["mean"] for ball in shown["balls"]] == [1, 3, 5, 6]
    assert [ball["share"] for ball in shown["balls"]] == pytest.approx([1, 0.8, 0.8, 0.64])
    assert main(["check", target(home)]) == 0
    assert "nothing wrong was found" in capsys.readouterr().out


def test_check_says_what_is_wrong_with_a_model(tmp_path, capsys):
    own = tmp_path / "wrong_model.py"
    own.write_text(MODEL.replace("prob[1, ahead] = 1.0", "prob[1, ahead] = 0.9"), encoding="utf-8")
    message = fails(capsys, "check", f"{own}:model")
    assert re.search(r"state 0.*must sum to 1", message)
    crowded = (
        "if mu[here] > 0.99:  # agents that play uniformly never are\n        prob[1, ahead] = 0.9"
    )
    own.write_text(MODEL.replace("reward[:] =", f"{crowded}\n    reward[:] ="), encoding="utf-8")
    assert "must sum to 1" in fails(capsys, "check", f"{own}:model")
    text = MODEL.replace(
        "reward[:] =", "if s == 4:\n        raise ValueError('full')\n    reward[:] ="
    )
    own.write_text(text, encoding="utf-8")
    message = fails(capsys, "check", f"{own}:model")
    assert "full" in message
    assert "raised by the local function at" in message
    assert "state 4" in message
    own.write_text(MODEL.replace("reward[:] = ", "reward[:] = open('x') + "), encoding="utf-8")
    assert "numba cannot compile 'local'" in fails(capsys, "check", f"{own}:model")


def test_info_names_versions_and_devices(capsys):
    shown = data(capsys, "info")
    assert shown["ltde"] == ltde.__version__
    assert shown["numpy"] == np.__version__
    assert shown["devices"][0] == "cpu"
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("python", "torch", "numba", "threads", "instructions"))


# ---- errors, pipes and Ctrl-C -------------------------------------------------------------------


def test_debug_shows_where_an_error_is(home, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        main(["check", "none.py:model", "--debug"])
    monkeypatch.setenv("LTDE_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="no such file"):
        main(["check", "none.py:model"])
    monkeypatch.setenv("LTDE_DEBUG", "0")
    assert main(["check", "none.py:model"]) == 1


def test_an_error_that_nobody_expected_has_its_name(monkeypatch, capsys):
    def unexpected(*_):
        raise KeyError("a")

    monkeypatch.setattr(COMMANDS["info"], "run", unexpected)
    assert fails(capsys, "info") == "ltde: KeyError: 'a' (--debug shows where)\n"


def test_ctrl_c_saves_the_run(home, tmp_path, monkeypatch, capsys):
    iterate = ltde.LTDENeuralAC._iterate

    def interrupted(trainer):
        if trainer.iteration == 3:
            raise KeyboardInterrupt
        return iterate(trainer)

    monkeypatch.setattr(ltde.LTDENeuralAC, "_iterate", interrupted)
    run = tmp_path / "run"
    assert train(home, run, "--iterations", "5") == 130
    out, error = capsys.readouterr()
    assert error == f"\nltde: interrupted; 3 iterations saved, go on with `ltde resume {run}`\n"
    assert out == ""
    monkeypatch.undo()
    assert main(["resume", str(run), "--quiet"]) == 0
    same_bits(home / "run", run)


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def ltde_process(*args):
    """Start the command line; its pipes carry bytes, in which nothing is translated."""
    return subprocess.Popen(
        [sys.executable, "-m", "ltde", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_ends_a_process_that_can_be_resumed(home, tmp_path):
    run = tmp_path / "run"
    args = ["--agents", "12", "--iterations", "1000000", *TINY]
    process = ltde_process("train", target(home), "--out", run, *args)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.is_file() or metrics.read_text(encoding="utf-8").count("\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = (text.decode() for text in process.communicate(timeout=60))
    assert process.returncode == 130, error
    assert out == ""
    assert "Traceback" not in error
    assert f"go on with `ltde resume {run}`" in error
    # standard error is a pipe: whole lines, nothing that moves a cursor
    assert "iteration 2 of 1000000: J " in error
    assert not ESCAPES.search(error)
    done = read(run / CHECKPOINT)[1]["iteration"]
    assert main(["resume", str(run), "--iterations", str(done + 1), "--quiet"]) == 0
    assert train(home, tmp_path / "whole", "--iterations", str(done + 1)) == 0
    same_bits(tmp_path / "whole", run)


def test_the_module_runs_and_loads_nothing_heavy():
    code = """
import sys
from ltde.cli import main
codes = [main(["--help"]), main(["envs"]), main(["train", "--help"]), main(["train", "--wrong"])]
print(codes, {"torch", "numba", "matplotlib", "rich"} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.endswith("[0, 0, 0, 2] set()\n")
    assert not ESCAPES.search(done.stdout + done.stderr)
    process = ltde_process("--version")
    assert process.communicate(timeout=60)[0].decode().split() == ["ltde", ltde.__version__]
    assert process.returncode == 0


def test_a_reader_that_goes_away_is_no_error_to_show():
    process = ltde_process("envs")
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1


def test_streams_that_cannot_take_everything():
    command = [sys.executable, "-m", "ltde", "--help"]
    ascii_only = environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, timeout=60, env=ascii_only)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"? train " in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_a_closed_standard_output_is_no_error():
    for argument in ("--version", "envs"):
        command = f"{shlex.quote(sys.executable)} -m ltde {argument} >&-"
        done = subprocess.run(command, shell=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")


# ---- road routing -------------------------------------------------------------------------------


def test_road_routing_from_training_to_simulation(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--network", "braess", "--destination", "2", "--vehicles", "300", "--agents", "50"]
    train = ["train", "road-routing", *options, *TINY, "--iterations", "2"]
    shown = data(capsys, *train)
    assert shown["run"] == str(Path("runs", "road-routing"))
    assert shown["unit"] == "minutes"
    text = (tmp_path / "runs" / "road-routing" / "environment.toml").read_text(encoding="utf-8")
    assert 'application = "road-routing"' in text
    assert 'network = "braess"' in text
    assert "destination = 2" in text
    assert "vehicles = 300.0" in text
    assert "discount" not in text
    shown = data(capsys, "evaluate", shown["run"], "--agents", "inf", "--baselines")
    application = ltde.envs.RoadRouting("braess", 2, 300.0)
    wanted = application.measure(application.baselines()["shortest path"], math.inf)
    rows = {row["policy"]: row for row in shown["rows"]}
    assert rows["shortest path"]["measure"]["mean"] == wanted.mean
    assert rows.keys() == {"best", *application.baselines()}
    assert shown["references"] == application.references()
    assert shown["lower_is_better"]
    simulate = ["simulate", "road-routing", "--network", "braess", "--policy", "myopic"]
    assert data(capsys, *simulate, "--steps", "3", "--agents", "100")["agents"] == 100
    assert "no trip ends at 9" in fails(capsys, *train, "--destination", "9", code=2)
    check = ["check", "road-routing", "--network"]
    assert "network: expected" in fails(capsys, *check, "nowhere", code=2)
    for option, value in (("step", "0"), ("discount", "1")):
        message = fails(capsys, *check, "braess", f"--{option}", value, code=2)
        assert message.startswith(f"ltde: {option}: expected")


CITY = """<NUMBER OF ZONES> 2
<NUMBER OF NODES> 2
<FIRST THRU NODE> 1
<NUMBER OF LINKS> 2
<END OF METADATA>
~ init term capacity length free_flow b power speed toll type ;
1 2 1000 1 5 0.15 4 0 0 1 ;
2 1 1000 1 5 0.15 4 0 0 1 ;
"""
TRIPS = """<NUMBER OF ZONES> 2
<TOTAL OD FLOW> 200
<END OF METADATA>
Origin 1
2 : 100;
Origin 2
1 : 100;
"""


def test_run_and_city_can_move_together(tmp_path, capsys):
    here = tmp_path / "here"
    here.mkdir()
    (here / "city_net.tntp").write_text(CITY, encoding="utf-8")
    (here / "city_trips.tntp").write_text(TRIPS, encoding="utf-8")
    options = ["--network", str(here / "city_net.tntp"), "--agents", "20", "--vehicles", "100"]
    run = here / "run"
    out = ["--out", str(run), "--iterations", "1", "--quiet"]
    assert main(["train", "road-routing", *options, *TINY, *out]) == 0
    text = (run / "environment.toml").read_text(encoding="utf-8")
    assert 'network = "../city_net.tntp"' in text
    there = here.rename(tmp_path / "there")
    play = ["simulate", there / "run", "--steps", "2", "--agents", "20"]
    assert data(capsys, *play)["steps"] == 2
    (there / "city_net.tntp").rename(there / "town_net.tntp")
    message = fails(capsys, *play)
    assert "city_net.tntp" in message
    assert f"correct `network` in {there / 'run' / 'environment.toml'}" in message

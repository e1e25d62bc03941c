"""The documentation: its examples run, what it names exists, and the site builds."""

import dataclasses
import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import ltde
import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MODULES = ["envs", "exact", "diagnostics", "plotting", "report", "tensorboard", "progress"]
WITH_EXAMPLES = ["quickstart.md", "define_a_model.md", "choosing.md", "road_routing.md"]


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_page_run(name):
    failed, tried = doctest.testfile(str(DOCS / name), module_relative=False)
    assert tried > 5
    assert failed == 0


def test_every_page_with_examples_is_tested():
    here = {path.name for path in DOCS.glob("*.md") if re.search("^>>> ", page(path.name), re.M)}
    assert here == {*WITH_EXAMPLES, "training.md"}  # the last in test_readme.py


def test_the_tests_that_concepts_names_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page("concepts.md"))
    assert len(named) > 30
    for file, name in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.M), f"{file}::{name}"
    rows = [line for line in page("concepts.md").splitlines() if "`ltde." in line and "|" in line]
    assert all("::test_" in row for row in rows)


def test_the_names_and_files_in_concepts_exist():
    text = page("concepts.md")
    names = set(re.findall(r"`(ltde\.[\w.]+)`", text))
    assert len(names) > 30
    for name in names:
        pkgutil.resolve_name(name)
    files = re.findall(r"`(python/[\w./]+)`", text)
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file
    fields = {field.name for field in dataclasses.fields(ltde.Config)}
    settings = re.findall(r"`(\w+)=[^`]+` of `ltde\.Config`", text)
    assert settings
    assert fields >= set(settings)


def test_the_api_page_names_every_public_name():
    shown = re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)$", page("api.md"), re.M)
    assert len(shown) == len(set(shown))
    for name in shown:
        pkgutil.resolve_name(name)
    public = {f"ltde.{name}" for name in ltde.__all__}
    for module in MODULES:
        names = importlib.import_module(f"ltde.{module}").__all__
        public |= {f"ltde.{module}.{name}" for name in names}
    assert public - set(shown) == set()


def test_the_page_of_the_command_line_names_its_commands_and_flags():
    pytest.importorskip("tyro")
    from ltde.cli.commands import COMMANDS

    text = page("command_line.md")
    assert set(re.findall(r"^\| `ltde (\w+)", text, re.M)) == set(COMMANDS)
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    known = {"--help", "--version"}
    for command in ("train road-routing", "simulate", "evaluate", "report"):
        done = subprocess.run(
            [sys.executable, "-m", "ltde", *command.split(), "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        known |= set(re.findall(r"--[a-z-]+", done.stdout))
    assert flags - known == set()


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tyro")
    from ltde.cli import main

    text = page("command_line.md")
    (code,) = re.findall(r"```python\n# ring\.py\n(.*?)```", text, re.S)
    (commands,) = re.findall(r"```\n(ltde check .*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTDE_NUM_THREADS", "1")
    (tmp_path / "ring.py").write_text(code, encoding="utf-8")
    for line in commands.splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    assert (tmp_path / "trajectory.npz").is_file()
    value = re.findall(r"^best +inf +([\d.]+)$", capsys.readouterr().out, re.M)
    assert 5.5 < float(value[0]) < 6.1


def test_results_have_a_place_for_the_tables():
    text = page("results.md")
    assert text.count("<!-- road_routing:begin -->") == 1
    assert text.index("<!-- road_routing:begin -->") < text.index("<!-- road_routing:end -->")


def test_the_site_builds_without_warnings(tmp_path):
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for source in DOCS.glob("*.md"):
        assert (tmp_path / "html" / f"{source.stem}.html").is_file()

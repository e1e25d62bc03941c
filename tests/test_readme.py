"""The code of the README runs as it stands."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.checkout
def test_the_model_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    script = tmp_path / "readme.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["10", "1000000", "1000000000", "inf"]
    # at large N the mean reward is that of the flow, 1 - sum of mu^2 up to its small fluctuations
    assert float(lines[2][1]) == pytest.approx(float(lines[3][1]), abs=1e-4)


@pytest.mark.checkout
def test_the_commands_of_the_readme_run(tmp_path):
    (block,) = re.findall(r"```\n(ltde .*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    printed = []
    for line in block.splitlines():
        program, *options = shlex.split(line)
        assert program == "ltde"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "ltde", *options],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    learned = re.search(r"^best +inf +([\d.]+)", printed[1], flags=re.M)
    assert float(learned[1]) < 10.0
    assert (tmp_path / "runs" / "roads" / "report.html").stat().st_size > 10**5


@pytest.mark.checkout
def test_every_make_target_of_the_readme_exists():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", readme))
    assert {"demo", "test", "bench", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.checkout
def test_the_guide_to_training_runs():
    failed, tried = doctest.testfile(str(ROOT / "docs" / "training.md"), module_relative=False)
    assert tried > 10
    assert failed == 0

"""The code of the README runs as it stands."""

import doctest
import re
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
def test_every_make_target_of_the_readme_exists():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", readme))
    assert {"demo", "test", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.checkout
def test_the_guide_to_training_runs():
    failed, tried = doctest.testfile(str(ROOT / "docs" / "training.md"), module_relative=False)
    assert tried > 10
    assert failed == 0

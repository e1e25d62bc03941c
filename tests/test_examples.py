"""The examples run, and print the right numbers; the packaged data are whole."""

import csv
import math
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import ltde
import numpy as np
import pytest
from ltde.envs import RoadRouting

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
needs_examples = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples are not installed")
NUMBER = r"(-?\d+(?:\.\d+)?)"


def play(name, *options):
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def run(name, *options):
    done = play(name, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    return done.stdout


def rows(name):
    text = (resources.files("ltde") / "data" / "sioux_falls" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_the_packaged_road_network_is_whole():
    links, trips, nodes = rows("links.csv"), rows("od.csv"), rows("nodes.csv")
    assert len(links) == len({(row["from"], row["to"]) for row in links}) == 76
    assert len(trips) == 528
    assert sum(int(row["trips_per_hour"]) for row in trips) == 360_600
    assert sum(int(row["trips_per_hour"]) for row in trips if row["destination"] == "10") == 45_200
    assert [int(row["node"]) for row in nodes] == list(range(1, 25))
    assert all(float(row["free_flow_time"]) > 0 < float(row["b_flow4"]) for row in links)


def test_the_licence_travels_with_the_data():
    folder = resources.files("ltde") / "data" / "sioux_falls"
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "only the format changed" in (folder / "README.md").read_text(encoding="utf-8")


@needs_examples
def test_sioux_falls_gives_the_minutes_of_the_references(tmp_path):
    folder = tmp_path / "run"
    few = ["--agents", "100", "--replicas", "2", "--iterations", "1", "--out", str(folder)]
    run("sioux_falls.py", *few)
    options = ["--agents", "100", "1e6", "inf", "--replicas", "8", "--out", str(folder)]
    printed = run("sioux_falls.py", *options)  # again: its own output is overwritten
    table = {}
    for line in printed.splitlines():
        found = re.fullmatch(rf"\s*([\d,]+|inf)((?:\s+{NUMBER}(?: \+-\s+{NUMBER})?)+)\s*", line)
        if found:
            numbers = found[2].replace("+-", " ").split()
            table[found[1]] = [float(number) for number in numbers]
    assert list(table) == ["100", "1,000,000", "inf"]
    uniform, shortest, myopic, learned, _ = table["inf"]
    assert abs(uniform - 77.53) < 0.02
    assert abs(shortest - 15.12) < 0.02
    assert abs(myopic - 12.89) < 0.02
    # 9.63 here; other processors round the training otherwise
    assert 9.2 < learned < 10.0
    # Ten standard errors: with 8 replicas the printed half width is itself rough.
    means, halves = np.array(table["1,000,000"][:8]).reshape(4, 2).T
    assert (halves > 0).all()
    assert (np.abs(means - table["inf"][:4]) < 0.02 + 5 * halves).all()
    assert table["100"][0] > uniform + 10  # few heavy agents jam the roads
    assert "45,100 vehicles, to node 10: 100 states" in printed

    assert f"Wrote {(folder / 'report.html').as_posix()}\n" in printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("40 iterations with N = 4,000", "N = 1,000,000", "n_iterations = 40", "77.5"):
        assert text in page
    picture = folder / "sioux_falls.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 40_000 < picture.stat().st_size < 200_000
    env = RoadRouting("sioux-falls", destination=10)
    policy = ltde.SoftmaxPolicy.load(folder / "policy.safetensors")
    assert abs(env.measure(policy, math.inf).mean - learned) < 0.001


@needs_examples
def test_sioux_falls_leaves_other_runs_alone(tmp_path):
    (tmp_path / "checkpoint.safetensors").touch()
    done = play("sioux_falls.py", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "holds a run of `ltde train`" in done.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_sioux_falls_loses_no_agent():
    env = RoadRouting("sioux-falls", destination=10)
    policies = env.baselines()
    for name in ("uniform", "shortest path", "myopic"):
        for n_agents in (1, 137, 10**9):
            simulator = ltde.Simulator(env.model, n_agents, n_replicas=3, seed=1)
            counts = simulator.rollout(policies[name], n_steps=60).counts
            assert (counts.sum(axis=2) == n_agents).all()
            assert (np.diff(counts[:, :, -1], axis=0) >= 0).all()  # the sink keeps them
        simulator = ltde.Simulator(env.model, math.inf)
        density = simulator.rollout(policies[name], n_steps=60).counts
        np.testing.assert_allclose(density.sum(axis=2), 1.0, atol=1e-12)


@needs_examples
def test_own_model_learns_and_converges_to_the_fluid_limit():
    pattern = rf"^\s*([\d,]+|inf)\s+{NUMBER} \+- {NUMBER}\s+{NUMBER} \+- {NUMBER}"
    found = re.findall(rf"{pattern}\s+{NUMBER} \+- {NUMBER}$", run("own_model.py"), re.M)
    table = {n: np.array(numbers, dtype=float).reshape(3, 2) for n, *numbers in found}
    assert list(table) == ["10", "1,000", "1,000,000", "inf"]
    limit = table["inf"][:, 0]
    assert (table["inf"][:, 1] == 0.0).all()
    assert (np.abs(table["1,000,000"][:, 0] - limit) < 0.001).all()
    assert (table["10"][:, 0] < limit - 0.05).all()
    for values in table.values():
        uniform, by_demand, learned = values[:, 0]
        assert 0.5 < uniform < by_demand < learned < 1.0
    assert abs(limit[0] - 0.6889) < 0.0002
    assert limit[2] > 0.88  # 0.906 here


@needs_examples
def test_the_oracle_bounds_the_learner():
    printed = run("braess_oracle.py", "--agents", "1", "2", "4")
    lines = re.findall(rf"^\s*(\d)((?:\s+{NUMBER}){{5}})\s+{NUMBER}%$", printed, re.M)
    table = {int(n): [float(value) for value in values.split()] for n, values, *_ in lines}
    reached = {int(row[0]): float(row[-1]) for row in lines}
    assert list(table) == [1, 2, 4]
    for uniform, learned, of_many, best, bound in table.values():
        assert uniform + 0.05 < learned
        assert max(learned, of_many) <= best <= bound + 1e-5
    # alone, an agent sees everything; with others it does not
    assert abs(table[1][3] - table[1][4]) < 1e-4
    assert all(table[n][4] - table[n][3] > 0.03 for n in (2, 4))
    # the uniform policy, and what exact gradients find
    np.testing.assert_allclose(table[4][0], 1.76429, atol=2e-5)
    np.testing.assert_allclose(table[4][3], 1.8478, atol=1e-3)
    assert reached[1] > 98.0
    assert reached[2] > 70.0
    assert reached[4] > 85.0


@needs_examples
def test_one_policy_for_any_population():
    printed = run("any_population.py")
    lines = re.findall(
        rf"^\s*([\d,]+)\s+{NUMBER}\s+{NUMBER}\s+\[{NUMBER}, {NUMBER}\]$", printed, re.M
    )
    table = {int(n.replace(",", "")): [float(value) for value in row] for n, *row in lines}
    assert list(table) == [10, 100, 10**4, 10**6, 10**9]
    limit = float(re.search(rf"^\s*inf\s+{NUMBER}$", printed, re.M)[1])
    assert abs(limit - 1.241) < 0.01
    for value, gap, low, high in table.values():
        assert abs(value - limit - gap) < 2e-4
        assert low <= gap <= high
    assert table[10][3] < 0.0  # a few heavy agents do worse
    widths = [high - low for _, _, low, high in table.values()]
    assert widths == sorted(widths, reverse=True)
    assert abs(table[10**9][1]) < 1e-4


@needs_examples
def test_agents_one_by_one_and_counts_agree():
    printed = run("decentralised.py")
    empty, _, crowded = map(
        float, re.search(rf"^  {NUMBER}, {NUMBER}, {NUMBER}$", printed, re.M).groups()
    )
    assert empty > 0.8
    assert crowded > 0.5  # no demand there: bikes leave
    paths = [re.findall(r"\d+", path) for path in re.findall(r"bike \d: (.*)", printed)]
    assert len(paths) == 3
    for path in paths:
        moves = (np.diff(np.array(path, dtype=int)) % 12).tolist()
        assert set(moves) <= {0, 1}
    pattern = rf"^\s+\d+\s+{NUMBER} \+- {NUMBER}\s+{NUMBER} \+- {NUMBER}$"
    table = np.array(re.findall(pattern, printed, re.M), dtype=float)
    assert table.shape == (12, 4)
    agent, agent_error, count, count_error = table.T
    assert abs(agent.sum() - 60) < 0.1
    assert abs(count.sum() - 60) < 0.1
    assert (np.abs(agent - count) <= 4.5 * np.hypot(agent_error, count_error) + 0.02).all()
    assert np.ptp(count) > 3  # the stations differ, so that agreement means something
    pattern = rf"^  (?:agent by agent|by counts) +{NUMBER} +\[{NUMBER}, {NUMBER}\]$"
    values = np.array(re.findall(pattern, printed, re.M), dtype=float)
    assert values.shape == (2, 3)
    halves = values[:, 2] - values[:, 0]
    assert (halves > 0.0).all()
    # 95 % intervals end at 2.13 standard errors
    assert abs(values[0, 0] - values[1, 0]) <= 4.5 / 2.13 * np.hypot(*halves)


@needs_examples
def test_the_decay_profile_suggests_a_radius(tmp_path):
    picture = tmp_path / "decay.png"
    printed = run("decay_profile.py", "--plot", str(picture))
    pattern = rf"^\s*\d\s+{NUMBER} \+- {NUMBER}\s+{NUMBER} \+- {NUMBER}$"
    table = np.array(re.findall(pattern, printed, re.M), dtype=float)
    assert table.shape == (7, 4)
    assert table[-1, 0] < 0.05 * table[0, 0]
    assert (table[:, 0] < table[:, 2]).all()
    suggested = dict(re.findall(r"discount (\S+): k = (\d)", printed))
    assert suggested.keys() == {"0.7", "0.9"}
    assert suggested["0.7"] < suggested["0.9"]
    assert picture.read_bytes().startswith(b"\x89PNG")

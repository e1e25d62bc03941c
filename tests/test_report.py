"""The report: valid, self-contained HTML whose numbers are those of `Environment.measure`."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import ltde
import numpy as np
import pytest
import solvable
from ltde import report
from ltde.envs import Measurement, OwnModel
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_plotting import metrics, overlaps

VOID = {"meta", "img", "br"}
# Quick enough for many reports.
FEW = {"agents": (10, 1000, math.inf), "n_replicas": 4, "threads": 1}


@pytest.fixture(scope="module")
def model():
    return solvable.ring()


@pytest.fixture(scope="module")
def environment(model):
    return OwnModel(model, "A one-way ring", 50)


@pytest.fixture(scope="module")
def learned(model):
    return ltde.SoftmaxPolicy(model, 8, seed=1, symmetric=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment, learned):
    """Return a run directory with a report that several tests read."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.toml").write_text("width = 8 # </pre><script>\n")
    report.write(folder, environment, learned, metrics(), seed=7, training_agents=1234, **FEW)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def undrawn(monkeypatch):
    """Leave pictures out, which take most of the time; return those that there would be."""
    left_out = []

    def note(folder, number, picture):
        left_out.append(picture)
        return ""

    monkeypatch.setattr(report, "_embed", note)
    return left_out


class Page(HTMLParser):
    """Read a page strictly: every tag is closed where it must be."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.images, self.links, self.headers = [], [], [], []
        self.tags, self.text, self.rows = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[name] for name in ("src", "href", "srcset", "action") if name in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "th":
            self.headers.append(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Close the tag that is open."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note a text."""
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def words(self):
        """All texts."""
        return " ".join(self.text)

    @property
    def table(self):
        """Cells by the names of row and column: the means only."""
        head, *body = self.rows
        return {row[0]: dict(zip(head[1:], row[1:], strict=False)) for row in body}


def written(folder, *args, **options):
    path = report.write(folder, *args, **(FEW | options))
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def header(n):
    return "N = ∞" if n == math.inf else f"N = {n:,}"


def test_the_page_is_valid_and_needs_nothing_else(folder, page):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert 'lang="en"' in text
    assert not re.search(r"https?://|url\(|@import", text)
    assert "script" not in page.tags
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert all(row.get("scope") in ("row", "col") for row in page.headers)
    assert {"title", "h1", "caption"} <= set(page.tags)
    assert "prefers-color-scheme" in text or "color-scheme: light dark" in text


def test_every_picture_decodes_has_words_and_is_in_the_folder(folder, page):
    files = sorted((folder / "figures").iterdir())
    assert len(page.images) == len(files) == 5
    for image, file in zip(page.images, files, strict=True):
        data = base64.b64decode(image["src"].split(",")[1], validate=True)
        assert data == file.read_bytes()
        assert imread(io.BytesIO(data), format="png").shape[0] > 100
        assert len(image["alt"]) > 30


def test_the_numbers_are_those_of_the_environment(page, environment, learned):
    policies = {"learned": learned, **environment.baselines()}
    assert set(page.table) == set(policies)
    for name, policy in policies.items():
        for n in FEW["agents"]:
            wanted = environment.measure(policy, n, 4, 7)
            low, high = wanted.interval
            half = 0.5 * (high - low)
            shown = float(page.table[name][header(n)].replace(",", ""))
            assert shown == pytest.approx(wanted.mean, rel=1e-4, abs=0.06 * half)
            if half > 1e-12:
                assert f"[{report._number(low, half)}, {report._number(high, half)}]" in page.words


def test_the_caption_says_what_the_points_are_before_an_evaluation(page):
    assert "(reward of a step) / (1 - discount)" in page.words
    assert "biased while the chain is young" in page.words


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, model, learned, monkeypatch):
    class Unmeasured(OwnModel):
        def measure(self, *args, **options):
            raise AssertionError("it was simulated")

    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "run"):
        with pytest.raises(NotADirectoryError):
            report.write(folder, Unmeasured(model), learned, [])
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
        report.write(tmp_path / "a" / "b", Unmeasured(model), learned, [])


def test_baselines_are_lines_of_the_learning_curve(tmp_path, environment, learned, undrawn):
    written(tmp_path, environment, learned, metrics(), training_agents=30, seed=3)
    uniform = environment.baselines()["uniform"]
    wanted = ltde.evaluate(environment.model, uniform, 30, 4, seed=3).mean
    (axes,) = undrawn[0].figure.axes
    assert list(axes.lines[-1].get_ydata()) == [wanted, wanted]


def test_it_says_what_was_trained(page, learned):
    for text in (
        "A one-way ring",
        "4 states, 4 edges, 2 actions, discount 0.9",
        "20 iterations with N = 1,234, 2 seconds",
        f"ltde {ltde.__version__}",
        repr(learned),
        "width = 8 # </pre><script>",
    ):
        assert text in page.words


def test_what_comes_from_outside_is_escaped(tmp_path, model, learned):
    evil = '<script>alert("1 & 2")</script>\x00'

    class Odd(OwnModel):
        measure_name, unit, lower_is_better = "<i>", evil, True

        def baselines(self):
            return {evil: super().baselines()["uniform"]}

        def references(self):
            return {evil: 1.0, "not known": math.nan}

        def figures(self, policies, seed=0):
            figure = Figure()
            figure.text(0.5, 0.5, "own")
            return {evil: figure, "../../outside": Figure()}

    page = written(tmp_path / "runs", Odd(model, evil, 20), learned, metrics(2))
    assert not {"script", "i"} & set(page.tags)
    assert evil.replace("\x00", "�") in page.text  # the title, as text
    assert "\x00" not in page.words
    assert page.images[-1]["alt"].startswith("../../outside")
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}
    assert "nan" in page.words


def test_an_application_shows_its_own_pictures(tmp_path, model, learned):
    asked = {}

    class Own(OwnModel):
        def figures(self, policies, seed=0):
            asked.update(policies)
            return {"Roads at noon": Figure()}

    page = written(tmp_path, Own(model, "own", 20), learned, [])
    assert list(asked) == ["uniform", "learned"]
    assert page.words.count("Roads at noon") == 1  # no caption says it again
    assert page.images[-1]["alt"] == "Roads at noon"
    assert "What an agent does" not in page.words


def test_the_same_arguments_write_the_same_page_but_for_the_date(
    tmp_path, folder, environment, learned
):
    (tmp_path / "config.toml").write_text((folder / "config.toml").read_text())
    written(tmp_path, environment, learned, metrics(), seed=7, training_agents=1234)
    texts = []
    for path in (folder, tmp_path):
        text = (path / "report.html").read_text(encoding="utf-8")
        texts.append(re.sub(r"<dt>Written</dt><dd>[^<]*</dd>", "", text))
    assert texts[0] == texts[1]
    assert "UTC</dd>" not in texts[0]


def test_teams_without_a_limit_leave_a_gap(tmp_path, environment, model, undrawn):
    page = written(tmp_path, environment, ltde.EnergyPolicy(model, 8), [])
    assert page.table["learned"]["N = ∞"] == "\N{EN DASH}"
    assert page.table["uniform"]["N = ∞"] != "\N{EN DASH}"
    assert "stay random" in page.words
    assert len(undrawn) == 5


def test_policies_from_functions_are_measured(tmp_path, model, undrawn):
    class Reacting(OwnModel):
        def baselines(self):
            return {"reacting": ltde.FunctionPolicy(lambda counts, n: np.full((4, 2), 0.5))}

    policy = ltde.FunctionPolicy(lambda counts, n: np.full((4, 2), 0.5))
    page = written(tmp_path, Reacting(model, "ring", 20), policy, [], agents=(10,))
    assert set(page.table) == {"reacting", "learned"}
    titles = [picture.title for picture in undrawn]
    assert titles[-1] == "Where the agents are"  # what it does depends on more than its own state


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([], {"agents": (math.inf,)}),
        (metrics(1, 1), {"agents": (1,), "n_replicas": 1}),
        ([{"iteration": 1, "J": math.nan, "seconds": math.nan}], {"agents": (5, 5, 2)}),
        ([{}], {"agents": (10**15,)}),
        (metrics(2, 0), {"agents": (7,), "training_agents": math.inf}),
    ],
)
def test_little_is_enough(tmp_path, environment, learned, rows, options, undrawn):
    page = written(tmp_path, environment, learned, rows, **options)
    assert [header(n) for n in sorted(set(options["agents"]))] == list(page.table["learned"])
    assert [wrong for picture in undrawn for wrong in overlaps(picture.figure)] == []


def test_an_error_leaves_the_old_report(tmp_path, environment, learned):
    (tmp_path / "report.html").write_text("old")

    class Broken(OwnModel):
        def measure(self, *args, **options):
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        report.write(tmp_path, Broken(environment.model), learned, [])
    assert (tmp_path / "report.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_bad_input_is_named(tmp_path, environment, learned):
    class Learned(OwnModel):
        def baselines(self):
            return {"learned": learned}

    for error, text, change in (
        (TypeError, "environment: expected an ltde.envs.Environment", {"environment": None}),
        (TypeError, r"metrics\[1\]: expected a dict, got int", {"metrics": [{}, 3]}),
        (ValueError, "agents: expected at least one", {"agents": ()}),
        (ValueError, "n_agents", {"agents": (10, -3)}),
        (ValueError, "n_replicas: expected", {"n_replicas": 0}),
        (TypeError, "seed: expected", {"seed": 1.5}),
        (ValueError, "named 'learned'", {"environment": Learned(environment.model)}),
    ):
        options = {"environment": environment, "policy": learned, "metrics": [], **change}
        with pytest.raises(error, match=text):
            report.write(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (12.3456, 0.123, "12.35"),
        (12.3456, 0.0, "12.346"),
        (-1234567.8, 12.0, "-1,234,568"),
        (1234567.8, 0.0, "1,234,600"),
        (0.0, 0.0, "0"),
        (0.0, 0.5, "0.00"),
        (3e-13, 0.0, "3e-13"),
        (2e15, 0.0, "2e+15"),
        (math.inf, math.nan, "inf"),
        (math.nan, 0.0, "nan"),
    ],
)
def test_numbers_have_the_digits_that_matter(value, half, text):
    assert report._number(value, half) == text


def test_mean_densities_are_those_of_the_flow(environment, model):
    uniform = ltde.TabularPolicy.uniform(model)
    simulator = ltde.Simulator(model, math.inf, 2, seed=0, threads=1)
    mean, most = report._mean_density(simulator, uniform)
    steps = math.ceil(math.log(1e-2) / math.log(0.9))
    simulator = ltde.Simulator(model, math.inf, 1, seed=0, threads=1)
    counts = simulator.rollout(uniform, steps).counts[:-1, 0]
    weights = 0.9 ** np.arange(steps)
    np.testing.assert_allclose(mean, weights @ counts / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(most, counts.max(axis=0))


def test_one_replica_has_no_interval():
    assert "[" not in report._cell(Measurement(np.array([2.0]), 10))

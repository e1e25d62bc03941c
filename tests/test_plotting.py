"""Pictures: what they show is what they were given; no text overlaps or is small.

`overlaps` lays a figure out as saving does, and compares the boxes of all texts that were drawn.
Mutant: a figure with two texts in one place.
"""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import ltde
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ltde import plotting
from ltde.envs import Measurement, RoadNetwork
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from models import ring_model
from statcheck import generator

DPI = 110
NAN = math.nan


def drawn_texts(figure):
    """Return `(text, box in pixels, size)` of every text that a figure draws."""
    found = []
    draw = Text.draw

    def note(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), Text.get_window_extent(self, renderer), self))
        return draw(self, renderer, *args, **kwargs)

    figure.set_dpi(DPI)
    with mock.patch.object(Text, "draw", note):
        figure.draw_without_rendering()
    return [(text, box, artist.get_fontsize()) for text, box, artist in found]


def overlaps(figure):
    """Return pairs of texts that overlap, texts beyond the edge, and those smaller than 8."""
    texts = drawn_texts(figure)
    wrong = []
    for (one, a, _), (two, b, _) in itertools.combinations(texts, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        if width > 1.0 and height > 1.0:
            wrong.append((one, two))
    page = figure.bbox
    for text, box, size in texts:
        beyond = (page.x0 - box.x0, page.y0 - box.y0, box.x1 - page.x1, box.y1 - page.y1)
        if max(beyond) > 1.0:
            wrong.append((text, "beyond the edge"))
        if size < 8.0:
            wrong.append((text, f"size {size}"))
    return wrong


def test_overlaps_finds_what_is_wrong():
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.5, 0.5, "two")
    figure.text(0.99, 0.1, "far out")
    figure.text(0.1, 0.1, "tiny", fontsize=5)
    assert overlaps(figure) == [
        ("one", "two"),
        ("far out", "beyond the edge"),
        ("tiny", "size 5.0"),
    ]


# What is drawn in the tests below.


def metrics(n=20, every=5, **columns):
    rows = []
    for i in range(1, n + 1):
        row = {"iteration": i, "J_estimate": -1.0 / i, "critic_error": 1.0 / i}
        row |= {"gradient_norm": 0.02, "seconds": 0.1}
        if every and i % every == 0:
            row |= {"J": -2.0 / i, "J_interval": [-3.0 / i, -1.0 / i]}
        rows.append(row | {name: values[i - 1] for name, values in columns.items()})
    return rows


def measurement(mean, n, spread=0.1):
    values = mean + spread * np.linspace(-1.0, 1.0, 8) if n < math.inf else np.array([mean])
    return Measurement(values, n)


def curves(agents, names=("uniform", "learned")):
    return {name: {n: measurement(10.0 - i, n) for n in agents} for i, name in enumerate(names)}


def city(side=12):
    node = np.arange(side * side).reshape(side, side) + 100
    pairs = [(node[:, :-1], node[:, 1:]), (node[:-1], node[1:])]
    tail, head = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    places = generator("city").normal(scale=0.2, size=(side * side, 2))
    places += np.stack(np.indices((side, side)), axis=-1).reshape(-1, 2)
    return SimpleNamespace(
        name="city",
        tail=np.concatenate([tail, head]),
        head=np.concatenate([head, tail]),
        coordinates=dict(zip(node.ravel().tolist(), places.tolist(), strict=True)),
        flow_unit=60.0,
    )


def roads(pairs, **options):
    tail, head = np.array(pairs).T
    fields = {"name": "few", "tail": tail, "head": head, "coordinates": None, "flow_unit": 7.0}
    return SimpleNamespace(**(fields | options))


BRAESS, SIOUX = RoadNetwork.braess(), RoadNetwork.sioux_falls()
LABEL = "largest number of vehicles on a link / its number at capacity"


def one_map(network, load=None, **options):
    links = len(network.tail)
    if load is None:
        load = np.exp(generator("load").normal(scale=1.5, size=links))
    load = np.broadcast_to(load, links)
    options = {"title": "Learned routes", "label": LABEL} | options
    return plotting.road_map(network, load, 1000.0 * load, **options)


def maps(network, count):
    load = np.linspace(1.0, 30.0, len(network.tail))
    panels = {f"policy number {i}": (load / (1 + i), load) for i in range(count)}
    return plotting.road_maps(network, panels, label=LABEL, title="Before and after", highlight=2)


def policy_picture(states, **options):
    model = ring_model(12)
    policy = ltde.SoftmaxPolicy(model, 8, seed=1, tau=5.0)
    return plotting.policy_by_density(model, policy, states, **options)


def many_actions():
    model = SimpleNamespace(n_states=2, n_actions=20, action_mask=np.ones((2, 20), bool))
    return plotting.policy_by_density(model, lambda s, density: np.full(20, 0.05), [0, 1])


def density_picture(n_states, names=("uniform", "learned")):
    rng = generator("density")
    laws = {name: rng.dirichlet(np.full(n_states, 0.3)) for name in names}
    return plotting.graph_density(SimpleNamespace(n_states=n_states), laws)


def over_time(n_series, steps=100):
    t = np.arange(steps)
    series = {f"link {i} to {i + 1}": np.sin(t / 20 + i) for i in range(n_series)}
    return plotting.density_over_time(t, series, title="Busiest links", ylabel="vehicles")


MANY = {f"a policy with a long name {i}": -1.0 - 1e-4 * i for i in range(15)}
ODD = ["a_b $x$ \\frac{", "_hidden", "$", "two\nlines", "x" * 300, "", "<b>&amp;", "\x00\t"]

PICTURES = {
    "learning": lambda: plotting.learning_curve(metrics(), lines={"uniform": -3.0}),
    "learning, many lines": lambda: plotting.learning_curve(metrics(), lines=MANY),
    "learning, odd names": lambda: plotting.learning_curve(
        metrics(), lines=dict.fromkeys(ODD, 1.0)
    ),
    "learning, estimates": lambda: plotting.learning_curve(metrics(every=0)),
    "learning, nothing": lambda: plotting.learning_curve([]),
    "learning, nothing but lines": lambda: plotting.learning_curve([], lines=MANY),
    "learning, one iteration": lambda: plotting.learning_curve(metrics(1, 1)),
    "learning, one estimate": lambda: plotting.learning_curve(metrics(1, 0)),
    "learning, NaN": lambda: plotting.learning_curve(
        metrics(2, 1, J=[NAN, 1.0], J_interval=[[NAN, NAN], [0.0, 2.0]]), lines={"uniform": NAN}
    ),
    "learning, huge": lambda: plotting.learning_curve(
        metrics(2, 1, J=[1e300, -1e300], J_interval=[[0, 1e300]] * 2)
    ),
    "errors": lambda: plotting.training_errors(metrics(100)),
    "errors, nothing": lambda: plotting.training_errors([]),
    "errors, one": lambda: plotting.training_errors(metrics(1)),
    "errors, NaN": lambda: plotting.training_errors(
        metrics(3, critic_error=[NAN, 0.0, math.inf], gradient_norm=[None, 1e-3, 1e3])
    ),
    "errors, many powers": lambda: plotting.training_errors(
        metrics(20, critic_error=10.0 ** -np.arange(20.0))
    ),
    "agents": lambda: plotting.value_by_agents(
        curves((100, 1000, 10**4, math.inf)), ylabel="trip (minutes)", references={"free flow": 5.0}
    ),
    "agents, many": lambda: plotting.value_by_agents(
        curves((100, 10**15, math.inf), [f"a rather long name {i}" for i in range(12)]),
        ylabel="trip (minutes)",
        references=dict.fromkeys(MANY, 9.0),
    ),
    "agents, odd names": lambda: plotting.value_by_agents(
        curves((100, 200), ODD), ylabel="value", references=dict.fromkeys(ODD, 9.0)
    ),
    "agents, close": lambda: plotting.value_by_agents(
        curves((10**6, 10**6 + 1, 1_234_567, 10**9, 10**9 + 1)), ylabel="value"
    ),
    "agents, far apart": lambda: plotting.value_by_agents(
        {**curves((100, math.inf)), "bad": {100: measurement(90.0, 100, 30.0)}},
        ylabel="trip (minutes)",
        references={"free flow": 5.0, "optimum": 8.9, "equilibrium": 9.0},
    ),
    "agents, very far apart": lambda: plotting.value_by_agents(
        {"a": {9: measurement(1e9, 9)}, "b": {9: measurement(1e-9, 9)}}, ylabel="value"
    ),
    "agents, one": lambda: plotting.value_by_agents(curves((7,)), ylabel="value"),
    "agents, only infinity": lambda: plotting.value_by_agents(curves((math.inf,)), ylabel="value"),
    "agents, nothing": lambda: plotting.value_by_agents({}, ylabel="value"),
    "agents, NaN": lambda: plotting.value_by_agents(
        {"learned": {10: measurement(NAN, 10)}}, ylabel="value", references={"optimum": NAN}
    ),
    "time": lambda: over_time(3),
    "time, many": lambda: over_time(12),
    "time, nothing": lambda: over_time(0),
    "time, one step": lambda: over_time(2, 1),
    "density, 2 states": lambda: density_picture(2),
    "density, 200 states": lambda: density_picture(200),
    "density, 3000 states": lambda: density_picture(3000),
    "density, odd names": lambda: density_picture(4, ODD),
    "policy": lambda: policy_picture(range(6)),
    "policy, one state": lambda: policy_picture([3], upper=0.013),
    "policy, four states": lambda: policy_picture([0, 1, 2, 3], upper=[0.1, 0.0, 1.0, 0.5]),
    "policy, many actions": many_actions,
    "Braess": lambda: one_map(BRAESS, highlight=2),
    "Sioux Falls": lambda: one_map(SIOUX, highlight=10),
    "Sioux Falls, no coordinates": lambda: one_map(replace(SIOUX, coordinates=None)),
    "Braess, no load": lambda: one_map(BRAESS, 0.0),
    "Braess, equal loads": lambda: one_map(BRAESS, 0.3),
    "Braess, NaN": lambda: one_map(BRAESS, NAN),
    "Braess, wide limits": lambda: one_map(BRAESS, limits=(1e-6, 1e6)),
    "Braess, tiny": lambda: one_map(BRAESS, np.geomspace(1e-300, 1e-290, 5)),
    "Sioux Falls, odd title": lambda: one_map(SIOUX, title=" ".join(ODD), label=LABEL * 9),
    "Sioux Falls, 2 maps": lambda: maps(SIOUX, 2),
    "Braess, 3 maps": lambda: maps(BRAESS, 3),
    "Braess, 5 maps": lambda: maps(BRAESS, 5),
    "city": lambda: one_map(city(), highlight=120),
    "city, no coordinates": lambda: one_map(roads(np.c_[city().tail, city().head])),
    "two nodes": lambda: one_map(roads([(1, 2)])),
    "a row of nodes": lambda: one_map(roads([(i, i + 1) for i in range(9)])),
    "a star": lambda: one_map(roads([(0, i) for i in range(1, 12)])),
    "two parts": lambda: one_map(roads([(1, 2), (2, 1), (3, 4)])),
    "all in one place": lambda: one_map(roads([(1, 2)], coordinates={1: (3, 3), 2: (3, 3)})),
}


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_overlaps_or_is_small(name):
    assert overlaps(PICTURES[name]()) == []


def test_the_same_picture_has_the_same_bytes(tmp_path):
    for copy in "ab":
        PICTURES["two parts"]().savefig(tmp_path / copy, format="png", dpi=DPI)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# What is shown.


def test_the_learning_curve_shows_evaluations_with_their_intervals():
    figure = plotting.learning_curve(metrics(20, 5), lines={"uniform": -0.5, "bad": NAN})
    (axes,) = figure.axes
    curve, line = axes.lines
    np.testing.assert_array_equal(curve.get_xdata(), [5, 10, 15, 20])
    np.testing.assert_array_equal(curve.get_ydata(), [-2.0 / i for i in (5, 10, 15, 20)])
    assert set(line.get_ydata()) == {-0.5}
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == -3.0 / 5
    assert [text.get_text() for text in axes.texts] == ["uniform  -0.5"]


def test_the_learning_curve_shows_estimates_where_nothing_was_evaluated():
    (axes,) = plotting.learning_curve(metrics(4, 0, J_estimate=[1.0, NAN, None, 2.0])).axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 4])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, 2.0])


def test_errors_leave_out_what_has_no_logarithm():
    axes, _ = plotting.training_errors(metrics(4, critic_error=[0.0, -1.0, NAN, 3.0])).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [3.0])


def test_value_by_agents_shows_means_intervals_and_the_limit():
    measured = curves((100, 1000, math.inf), ["learned"])
    (axes,) = plotting.value_by_agents(measured, ylabel="value", references={"free": 3.0}).axes
    finite, limit = axes.containers
    np.testing.assert_array_equal(finite[0].get_xdata(), [100, 1000])
    ends = finite[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, measured["learned"][100].interval)
    assert limit[0].get_ydata() == [10.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["$\\infty$", "1,000", "100"]
    assert {3.0, 10.0} <= {line.get_ydata()[0] for line in axes.lines}


def test_every_number_of_agents_has_its_place():
    (axes,) = PICTURES["agents, many"]().axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["$\\infty$", "$10^{15}$", "100"]


def test_means_that_are_far_apart_have_a_logarithmic_axis():
    for name, scale in (("agents", "linear"), ("agents, far apart", "log")):
        (axes,) = PICTURES[name]().axes
        assert axes.get_yscale() == scale
        assert ("log scale" in axes.get_ylabel()) == (scale == "log")


def test_curves_differ_in_colour_marker_and_line():
    styles = [plotting._style(i) for i in range(7)]
    for key, least in (("color", 7), ("marker", 7), ("ls", 4)):
        assert len({style[key] for style in styles}) == least


def test_the_policy_is_that_of_one_agent():
    model = ring_model(4)
    policy = ltde.SoftmaxPolicy(model, 8, seed=1)
    (axes,) = plotting.policy_by_density(model, policy, [2], upper=0.5).axes
    for a, line in enumerate(axes.lines):
        x, y = line.get_data()
        assert (x[0], x[-1]) == (0.0, 0.5)
        np.testing.assert_array_equal(y, [policy.individual()(2, d)[a] for d in x.tolist()])


@pytest.mark.parametrize(
    "policy", [lambda m: ltde.TabularPolicy.uniform(m), lambda m: ltde.EnergyPolicy(m, 4)]
)
def test_policies_of_every_kind_are_drawn(policy):
    model = ring_model(4)
    figure = plotting.policy_by_density(model, policy(model), [0, 1], n_agents=20)
    assert len(figure.axes) == 2


# Labels at the side.


@given(
    st.lists(st.floats(-1.0, 2.0), min_size=1, max_size=20).map(sorted),
    st.floats(0.001, 0.04),
)
def test_labels_keep_their_order_and_distance(places, gap):
    spread = np.array(plotting._spread(np.array(places), gap))
    assert (np.diff(spread) >= gap - 1e-9).all()
    assert spread.min() >= -1e-9
    assert spread.max() <= 1.0 + 1e-9


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20, unique=True).map(sorted))
def test_labels_that_are_apart_stay_where_they_are(places):
    wanted = np.array(places) / 100.0
    np.testing.assert_allclose(plotting._spread(wanted, 0.01), wanted, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 15])
def test_labels_at_the_side_stay_beside_the_axes(count):
    for value in (1e3, -1e3):  # at the upper edge, and at the lower one
        figure = plotting.learning_curve(
            metrics(), lines={f"name {i}": value * (1 + 1e-3 * i) for i in range(count)}
        )
        boxes = [box for text, box, _ in drawn_texts(figure) if text.startswith("name")]
        axes = figure.axes[0].get_window_extent()
        assert len(boxes) == count
        assert max(box.y1 for box in boxes) <= axes.y1 + 1.0
        assert min(box.y0 for box in boxes) >= axes.y0 - 1.0


# Roads.


def segments(figure, panel=0):
    """Return ends, widths and colours of the links of a map, in the order in which they lie."""
    (lines,) = (c for c in figure.axes[panel].collections if isinstance(c, LineCollection))
    return np.array(lines.get_segments()), np.array(lines.get_linewidths()), lines.get_colors()


def test_fuller_links_are_darker_and_busier_ones_wider():
    load = np.linspace(1.0, 50.0, 76)
    flow = load[::-1]
    figure = plotting.road_map(SIOUX, load, flow, title="Sioux Falls", label=LABEL)
    _, widths, colours = segments(figure)  # full links lie on top
    assert (np.diff(widths) < 0.0).all()
    assert (np.diff(colours[::5, :3] @ [0.299, 0.587, 0.114]) < 0.0).all()


def test_both_directions_are_side_by_side_with_traffic_to_the_right():
    pairs = [(1, 2), (2, 1), (1, 2)]
    network = roads(pairs, coordinates={1: (0.0, 0.0), 2: (10.0, 0.0)})
    figure = plotting.road_map(network, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], title="", label=LABEL)
    ends, widths, _ = segments(figure)
    assert (ends[[0, 2], :, 1] < 0.0).all()  # to the east, on the southern side
    assert (ends[1, :, 1] > 0.0).all()
    for a, b in itertools.combinations(range(3), 2):
        assert abs(ends[a, 0, 1] - ends[b, 0, 1]) >= 0.5 * (widths[a] + widths[b])


def test_a_road_in_one_direction_is_in_the_middle():
    network = roads([(1, 2)], coordinates={1: (0.0, 5.0), 2: (10.0, 5.0)})
    ends, _, _ = segments(plotting.road_map(network, [1.0], [1.0], title="", label=LABEL))
    np.testing.assert_allclose(ends[0, :, 1], 0.0)


def test_maps_side_by_side_share_their_scales():
    load = np.linspace(1.0, 50.0, 76)
    panels = {"before": (load, load), "after": (load / 2.0, load / 2.0)}
    figure = plotting.road_maps(SIOUX, panels, label=LABEL)
    (_, wide, dark), (_, narrow, light) = segments(figure, 0), segments(figure, 1)
    assert (narrow < wide).all()
    assert (light[-1] != dark[-1]).any()


def test_links_without_load_are_grey_and_explained():
    load = np.zeros(76)
    load[3] = 5.0
    figure = plotting.road_map(SIOUX, load, load, title="Sioux Falls", label=LABEL)
    _, _, colours = segments(figure)
    grey = (np.ptp(colours[:, :3], axis=1) == 0.0).sum()
    assert grey == 75
    assert "no load" in [text for text, _, _ in drawn_texts(figure)]


def test_the_unit_of_flows_is_named():
    for network, unit in (
        (BRAESS, "minute"),
        (roads([(1, 2)], flow_unit=60.0), "hour"),
        (roads([(1, 2)]), "7 minutes"),
    ):
        texts = " ".join(text for text, _, _ in drawn_texts(one_map(network)))
        assert f"vehicles per {unit}" in texts
    figure = plotting.road_map(BRAESS, np.ones(5), np.full(5, 4.0), title="", label=LABEL)
    texts = [text for text, _, _ in drawn_texts(figure)]
    assert {"2 vehicles per minute", "1 vehicle per minute"} <= set(texts)


def test_long_labels_take_two_lines():
    words = "share of the choices of a link that the shortest path does not take, in all hours"
    texts = [text for text, _, _ in drawn_texts(one_map(roads([(1, 2)]), label=words))]
    assert words in [text.replace("\n", " ") for text in texts]
    assert words not in texts


def test_nodes_are_numbered_where_there_is_room():
    numbers = {text for text, _, _ in drawn_texts(one_map(SIOUX, highlight=10))}
    assert set(map(str, range(1, 25))) <= numbers
    assert not {str(i) for i in range(100, 164)} & {t for t, _, _ in drawn_texts(one_map(city(8)))}


def test_a_layout_keeps_neighbours_near():
    ring = [(i, (i + 1) % 12) for i in range(12)]
    place = plotting._layout(12, *np.array(ring).T)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    step = np.array([apart[a, b] for a, b in ring])
    assert step.max() < 1.2 * step.min()
    assert apart.max() > 3.0 * step.max()


# What is refused.


def test_bad_input_is_named():
    model = ring_model(4)
    uniform = ltde.TabularPolicy.uniform(model)
    for call, error, text in (
        (lambda: plotting.road_maps(SIOUX, {}, label=""), ValueError, "panels: expected at least"),
        (lambda: one_map(SIOUX, highlight=99), ValueError, "highlight: expected a node, got 99"),
        (lambda: one_map(SIOUX, limits=(3.0, 1.0)), ValueError, "limits: expected 0 <= low < high"),
        (
            lambda: plotting.road_map(SIOUX, np.ones(3), np.ones(76), title="t", label=""),
            ValueError,
            r"load of 't': expected shape \(76,\), got \(3,\)",
        ),
        (
            lambda: plotting.graph_density(model, {"a": np.ones(3)}),
            ValueError,
            r"densities\['a'\]: expected shape \(4,\)",
        ),
        (
            lambda: plotting.density_over_time([1, 2], {"a": [1]}, title="", ylabel=""),
            ValueError,
            r"series\['a'\]: expected shape \(2,\)",
        ),
        (lambda: plotting.policy_by_density(model, uniform, []), ValueError, "states: expected"),
        (
            lambda: plotting.policy_by_density(model, uniform, [4]),
            ValueError,
            r"states: expected numbers in \[0, 4\), got 4",
        ),
        (
            lambda: plotting.policy_by_density(model, ltde.FunctionPolicy(len), [0]),
            TypeError,
            "policy: expected one with `individual`, got FunctionPolicy",
        ),
    ):
        with pytest.raises(error, match=text):
            call()


@pytest.mark.parametrize("name", ["learning", "agents", "time", "density, 2 states", "Braess"])
def test_missing_matplotlib_is_explained(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'ltde\[plot\]'"):
        PICTURES[name]()


def test_pyplot_is_left_alone():
    code = (
        "import sys, ltde.plotting as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.learning_curve([])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

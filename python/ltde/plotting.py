"""Pictures of training, of measurements and of road networks, as matplotlib figures.

Every function returns a new `Figure` and leaves pyplot alone. Curves differ in colour, marker and
line style; colours are those of Okabe and Ito, and cividis.
"""

from __future__ import annotations

import math
import textwrap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde.envs.environment import Measurement
from ltde.evaluation import is_energy
from ltde.model import NetworkedModel

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from ltde.envs.road_network import RoadNetwork

__all__ = [
    "density_over_time",
    "graph_density",
    "learning_curve",
    "policy_by_density",
    "road_map",
    "road_maps",
    "training_errors",
    "value_by_agents",
]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":")
_GREY = "0.35"
_UNUSED = "0.82"
_SMALL = 9.0  # points, of labels beside and below axes; ticks and axis labels have 10
# Room for a line of small text, in inches.
_ROW = 0.17
# Characters of a name or label that are drawn.
_LONGEST = 40
# States that are drawn in their own order; more are sorted by density.
_ORDERED_STATES = 200
# Actions of a state that `policy_by_density` draws.
_ACTIONS = 7
# Nodes up to which a road map has numbers and arrows.
_NUMBERED_NODES = 60
# Ratio of two means from which on a logarithmic axis shows them better.
_LONG = 4.0
# Largest ratio of two loads that colours tell apart.
_LOAD_SPAN = 300.0


# ---- training -----------------------------------------------------------------------------------


def learning_curve(
    metrics: Sequence[Mapping[str, Any]],
    *,
    lines: Mapping[str, float] | None = None,
    ylabel: str = "value J",
) -> Figure:
    """Draw `J` by iteration, with values to compare it with.

    Parameters
    ----------
    metrics
        As `TrainingResult.metrics`: `J` with `J_interval` where there are any, else `J_estimate`.
        Numbers that are missing or not finite are left out.
    lines
        Horizontal lines by name, such as the `J` of policies that do not learn.
    ylabel
        Label of the vertical axis.

    Returns
    -------
    Figure
        One panel.
    """
    lines = _finite(lines or {})
    figure = _figure(7.6, _height(len(lines)))
    axes = figure.subplots()
    x, y = _column(metrics, "J")
    evaluated = len(x) > 0
    if not evaluated:
        x, y = _column(metrics, "J_estimate")
    style: dict[str, Any] = {"color": _COLOURS[0], "lw": 1.6}
    if evaluated:
        low, high = (_column(metrics, "J_interval", end) for end in (0, 1))
        if len(low[0]) and np.array_equal(low[0], high[0]):
            axes.fill_between(low[0], low[1], high[1], color=_COLOURS[0], alpha=0.2, lw=0)
            axes.vlines(low[0], low[1], high[1], color=_COLOURS[0], alpha=0.5, lw=1.2)
        axes.plot(x, y, marker=_MARKERS[0], ms=4, **style)
        axes.set_title("Value of the policy, with 95 % intervals", fontsize=11)
    else:
        axes.plot(x, y, marker=_MARKERS[0] if len(x) == 1 else "", **style)
        axes.set_title("Value of the policy, estimated while it learns", fontsize=11)
    if not len(x):
        _nothing(axes, "no iterations yet")
    labels = []
    for i, (name, value) in enumerate(lines.items(), start=1):
        colour, line = _COLOURS[i % len(_COLOURS)], _LINES[1 + i % 3]
        axes.axhline(value, color=colour, ls=line, lw=1.4)
        labels.append((value, f"{_plain(name)}  {value:.4g}", colour))
    axes.set_xlabel("iteration")
    axes.set_ylabel(_plain(ylabel, lines=2))
    _integers(axes, x)
    _tidy(axes)
    _label_at_the_side(figure, axes, labels)
    return figure


def training_errors(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the error of the critic and the norm of the gradient, on logarithmic axes.

    Parameters
    ----------
    metrics
        As `TrainingResult.metrics`: `critic_error` and `gradient_norm`. Numbers that are missing,
        not finite or not above 0 are left out.

    Returns
    -------
    Figure
        Two panels.
    """
    figure = _figure(8.6, 3.2)
    names = {"critic_error": "error of the critic", "gradient_norm": "norm of the gradient"}
    for i, (axes, (name, label)) in enumerate(
        zip(figure.subplots(1, 2), names.items(), strict=True)
    ):
        x, y = _column(metrics, name)
        x, y = x[y > 0.0], y[y > 0.0]
        marker = _MARKERS[i] if len(x) <= 30 else ""
        axes.plot(x, y, color=_COLOURS[i], marker=marker, ms=4, lw=1.4)
        axes.set_yscale("log")
        _short_log_axis(axes, y)
        if not len(x):
            _nothing(axes, "none recorded")
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"{label} (log scale)")
        _integers(axes, x)
        _tidy(axes)
    return figure


# ---- measurements -------------------------------------------------------------------------------


def value_by_agents(
    curves: Mapping[str, Mapping[float, Measurement]],
    *,
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Draw measurements against the number of agents, with 95 % intervals.

    Parameters
    ----------
    curves
        Measurements by the name of the policy and by `N`. A dashed line goes through the one at
        `N = inf`. Those that are not finite are left out.
    ylabel
        What is measured, and its unit.
    references
        Horizontal lines by name, labelled at the side.

    Returns
    -------
    Figure
        One panel; its vertical axis is logarithmic where the largest mean is more than 4 times the
        smallest.
    """
    references = _finite(references or {})
    drawn = {
        name: {float(n): m for n, m in sorted(curve.items()) if math.isfinite(m.mean)}
        for name, curve in curves.items()
    }
    agents = sorted({n for curve in drawn.values() for n in curve})
    finite = [n for n in agents if n < math.inf]
    # infinity has a place of its own on the axis, at least a decade to the right
    limit = finite[-1] * max(10.0, (finite[-1] / finite[0]) ** 0.25) if finite else 1.0
    names = [_plain(name) for name in drawn]
    figure = _figure(7.6, _height(len(references), 3.9))
    axes = figure.subplots()
    handles: list[Artist] = []
    for i, curve in enumerate(drawn.values()):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5.5, "lw": 1.4}
        numbers = [n for n in curve if n < math.inf]
        if numbers:
            mean = np.array([curve[n].mean for n in numbers])
            ends = np.array([curve[n].interval for n in numbers]).T
            error = np.abs(ends - mean)
            axes.errorbar(numbers, mean, error, ls=_LINES[i // 7 % 2 * 2], capsize=4, **style)
        if math.inf in curve:
            value = curve[math.inf]
            axes.axhline(value.mean, color=colour, ls="--", lw=1.1)
            error = np.abs(np.array(value.interval) - value.mean)[:, None]
            axes.errorbar([limit], [value.mean], error, capsize=4, mfc="white", **style)
        handles.append(_key(**style))
    if math.inf in agents:
        names.append("at $N = \\infty$")
        handles.append(_key(color=_GREY, ls="--", lw=1.1, marker="o", mfc="white"))
    if not agents:
        _nothing(axes, "nothing measured")
    labels = []
    for name, reference in references.items():
        axes.axhline(reference, color=_GREY, ls=":", lw=1.4)
        labels.append((reference, f"{_plain(name)}  {reference:.4g}", _GREY))
    _agents_axis(axes, finite, limit if math.inf in agents else None)
    shown = [m.mean for curve in drawn.values() for m in curve.values()]
    shown += references.values()
    if shown and 0.0 < _LONG * min(shown) < max(shown):
        axes.set_yscale("log")
        edges = (end for curve in drawn.values() for m in curve.values() for end in m.interval)
        _short_log_axis(axes, np.array([*shown, *edges]))
        ylabel = f"{ylabel}, log scale"
    axes.set_ylabel(_plain(ylabel, lines=2))
    _tidy(axes)
    _label_at_the_side(figure, axes, labels)
    _legend_below(figure, handles, names)
    return figure


def density_over_time(
    times: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    title: str,
    ylabel: str,
    xlabel: str = "step",
) -> Figure:
    """Draw numbers against time.

    Parameters
    ----------
    times
        `(T,)`.
    series
        `(T,)` by name.
    title, ylabel, xlabel
        What is drawn, and units.

    Returns
    -------
    Figure
        One panel.

    Raises
    ------
    ValueError
        If a series does not have the length of `times`.
    """
    x = np.asarray(times, dtype=np.float64)
    figure = _figure(7.6, 3.9)
    axes = figure.subplots()
    handles: list[Artist] = []
    for i, (name, values) in enumerate(series.items()):
        y = np.asarray(values, dtype=np.float64)
        if x.ndim != 1 or y.shape != x.shape:
            raise ValueError(f"series[{name!r}]: expected shape {x.shape[:1]}, got {y.shape}")
        style = _style(i)
        # markers of different curves at different times
        every = max(1, len(x) // 10)
        axes.plot(x, y, markevery=(i * every // max(1, len(series)), every), **style)
        handles.append(_key(**style))
    if not series or not len(x):
        _nothing(axes, "nothing recorded")
    axes.set_title(_plain(title, 90), fontsize=11)
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel(_plain(ylabel, lines=2))
    _tidy(axes)
    _legend_below(figure, handles, [_plain(name) for name in series])
    return figure


# ---- models -------------------------------------------------------------------------------------


def graph_density(model: NetworkedModel, densities: Mapping[str, ArrayLike]) -> Figure:
    """Draw the density of every state, such as before and after learning.

    Parameters
    ----------
    model
        The model.
    densities
        `(S,)` by name. Up to 200 states are drawn in their order; more are sorted, the fullest
        first, each curve for itself.

    Returns
    -------
    Figure
        One panel.

    Raises
    ------
    ValueError
        If a density does not have one number for each state.
    """
    ordered = model.n_states <= _ORDERED_STATES
    figure = _figure(7.6, 3.9)
    axes = figure.subplots()
    handles: list[Artist] = []
    for i, (name, density) in enumerate(densities.items()):
        y = np.asarray(density, dtype=np.float64)
        if y.shape != (model.n_states,):
            raise ValueError(
                f"densities[{name!r}]: expected shape ({model.n_states},), got {y.shape}"
            )
        style = _style(i)
        if ordered:
            style |= {"drawstyle": "steps-mid", "markevery": max(1, model.n_states // 50)}
            axes.plot(np.arange(model.n_states), y, **style)
        else:
            every = (i * len(y) // 40, max(1, len(y) // 10))
            axes.plot(np.arange(1, len(y) + 1), np.sort(y)[::-1], markevery=every, **style)
        handles.append(_key(**_style(i)))
    axes.set_title("Mean density of every state", fontsize=11)
    axes.set_xlabel("state" if ordered else "rank of the state, the fullest first")
    axes.set_ylabel("share of the agents")
    if ordered:
        _integers(axes, np.arange(model.n_states))
    else:
        top = max([float(np.max(density)) for density in densities.values()], default=0.0)
        axes.set(xscale="log", yscale="log")
        if top > 0.0:
            axes.set_ylim(1e-6 * top, 2.0 * top)
    _tidy(axes)
    _legend_below(figure, handles, [_plain(name) for name in densities])
    return figure


def policy_by_density(
    model: NetworkedModel,
    policy: Any,
    states: Sequence[int],
    *,
    upper: ArrayLike = 1.0,
    n_agents: int = 1000,
) -> Figure:
    """Draw the probability of each action against the density of the agent's state.

    Parameters
    ----------
    model
        The model.
    policy
        A policy with `individual`, or a policy of one agent, `(state, density) -> (A,)`.
    states
        States to draw, one panel each. Of many actions, the seven likeliest are drawn.
    upper
        Largest density, a number or one for each of `states`.
    n_agents
        `N` for which the policy of one agent is taken from an `EnergyPolicy`.

    Returns
    -------
    Figure
        A panel for each state.

    Raises
    ------
    ValueError
        If there are no states, or one is not of the model.
    TypeError
        If the policy has no policy of one agent.
    """
    chosen = [int(s) for s in states]
    if not chosen:
        raise ValueError("states: expected at least one")
    for s in chosen:
        if not 0 <= s < model.n_states:
            raise ValueError(f"states: expected numbers in [0, {model.n_states}), got {s}")
    decide = _of_one_agent(policy, n_agents)
    ends = np.broadcast_to(np.asarray(upper, dtype=np.float64), (len(chosen),))
    columns = 2 if len(chosen) == 4 else min(3, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = _figure(1.4 + 2.7 * columns, 0.9 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    used: set[int] = set()
    hidden = False
    for axes, s, end in zip(panels, chosen, ends.tolist(), strict=False):
        x = np.linspace(0.0, min(1.0, end) if end > 0.0 else 1.0, 41)
        probs = np.array([np.asarray(decide(s, float(d)), dtype=np.float64) for d in x])
        allowed = np.flatnonzero(model.action_mask[s])
        likeliest = allowed[np.argsort(-probs[:, allowed].max(axis=0), kind="stable")]
        hidden |= len(likeliest) > _ACTIONS
        for a in sorted(likeliest[:_ACTIONS].tolist()):
            used.add(a)
            axes.plot(x, probs[:, a], markevery=(3 * a % 10, 10), **_style(a))
        axes.set(ylim=(-0.03, 1.03), xlim=(x[0], x[-1]))
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(f"state {s}", fontsize=10)
        _tidy(axes)
    for axes in panels[len(chosen) :]:
        axes.remove()
    figure.supxlabel("density of the agent's state (share of the agents)", fontsize=10)
    figure.supylabel("probability of an action", fontsize=10)
    handles: list[Artist] = [_key(**_style(a)) for a in sorted(used)]
    names = [f"action {a}" for a in sorted(used)]
    if hidden:
        handles.append(_key(ls=""))
        names.append("less likely ones are not drawn")
    _legend_below(figure, handles, names, place="outside upper center")
    return figure


def _of_one_agent(policy: Any, n_agents: int) -> Callable[[int, float], ArrayLike]:
    """Return what one agent does."""
    if hasattr(policy, "individual"):
        energy = is_energy(policy)
        alone: Callable[[int, float], ArrayLike] = (
            policy.individual(n_agents) if energy else policy.individual()
        )
        return alone
    if not callable(policy):
        raise TypeError(f"policy: expected one with `individual`, got {type(policy).__name__}")
    decide: Callable[[int, float], ArrayLike] = policy
    return decide


# ---- roads --------------------------------------------------------------------------------------


def road_map(
    network: RoadNetwork,
    load: ArrayLike,
    flow: ArrayLike,
    *,
    title: str,
    label: str,
    highlight: int | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw a road network: colour is load, width is flow.

    Parameters
    ----------
    network
        The network. Without coordinates, nodes are placed so that distances are numbers of links.
    load
        `(L,)` of each link, such as vehicles on it divided by those at capacity. Links without load
        are grey.
    flow
        `(L,)` flow through each link, vehicles in `network.flow_unit` minutes.
    title
        Title of the map.
    label
        What `load` is, and its unit.
    highlight
        A node to mark as the destination.
    limits
        Ends of the colour scale; None takes those of the loads. It is logarithmic if they are a
        factor of 10 apart.

    Returns
    -------
    Figure
        One map. The two directions of a road are drawn side by side, traffic to the right.

    Raises
    ------
    ValueError
        If an array does not have one number for each link, or `highlight` is no node.
    """
    panels = {title: (load, flow)}
    return road_maps(network, panels, label=label, highlight=highlight, limits=limits)


def road_maps(
    network: RoadNetwork,
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    label: str,
    title: str = "",
    highlight: int | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw maps side by side, with the same colours and widths; see `road_map`.

    Parameters
    ----------
    panels
        `(load, flow)` by the title of the map.
    title
        Title over all maps.
    network, label, highlight, limits
        As in `road_map`.
    """
    _require()
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import to_rgba

    if not panels:
        raise ValueError("panels: expected at least one")
    links = len(network.tail)
    checked: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for name, pair in panels.items():
        arrays = [np.asarray(values, dtype=np.float64) for values in pair]
        for kind, array in zip(("load", "flow"), arrays, strict=True):
            if array.shape != (links,):
                raise ValueError(
                    f"{kind} of {name!r}: expected shape ({links},), got {array.shape}"
                )
        load, flow = (np.where(np.isfinite(array), array, 0.0) for array in arrays)
        checked[name] = load, flow
    nodes = np.unique(np.concatenate([network.tail, network.head])).tolist()
    if highlight is not None and highlight not in nodes:
        raise ValueError(f"highlight: expected a node, got {highlight}")

    columns = len(panels) if len(panels) <= 3 else 2
    rows = math.ceil(len(panels) / columns)
    side = {1: 460.0, 2: 400.0, 3: 320.0}[columns] * (1.0 if len(nodes) <= _NUMBERED_NODES else 1.2)
    drawing = _Roads(network, nodes, side)
    norm = _load_norm(np.concatenate([load for load, _ in checked.values()]), limits)
    widest = max(float(flow.max(initial=0.0)) for _, flow in checked.values())
    box = drawing.box
    width = max(box[0], 300.0) / 72.0
    figure = _figure(
        columns * (width + 0.25),
        rows * (box[1] + 26.0) / 72.0 + 0.9 + (0.3 if title else 0.0),
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = colormaps["cividis_r"]
    unused = False
    for axes, (name, (load, flow)) in zip(grid, checked.items(), strict=False):
        used = _used(load, norm)
        unused |= not used.all()
        thickness = np.where(used, drawing.widths(flow, widest), drawing.thin)
        rgba = np.where(used[:, None], colours(norm(load)), to_rgba(_UNUSED))
        drawing.draw(axes, rgba, thickness, np.where(used, load, -1.0))
        drawing.draw_nodes(axes, highlight)
        axes.set_title(_plain(name, int(10.0 * width), lines=2), fontsize=11)
    for axes in grid[len(checked) :]:
        axes.remove()
    if title:
        figure.suptitle(_plain(title, int(9.0 * columns * width), lines=2), fontsize=12)
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=grid[: len(checked)].tolist(),
        orientation="horizontal",
        fraction=0.05,
        aspect=40,
        pad=0.02,
    )
    _bar_ticks(bar, norm)
    bar.set_label(_plain(label, int(11.0 * columns * width), lines=2))

    handles: list[Artist] = []
    names = []
    if highlight is not None:
        handles.append(_key(ls="", marker="s", color=_COLOURS[1], mec="0.2", ms=8))
        names.append(f"destination, node {highlight}")
    if widest > 0.0:
        for value in (_round_down(widest), _round_down(widest / 4.0)):
            line = float(drawing.widths(np.array([value]), widest)[0])
            handles.append(_key(color=_GREY, lw=line))
            names.append(f"{value:,g} {_flow_unit(network, value)}")
    if unused:
        handles.append(_key(color=_UNUSED, lw=1.5))
        names.append(f"load below {norm.vmin:g}" if _is_log(norm) else "no load")
    _legend_below(figure, handles, names)
    return figure


def _flow_unit(network: RoadNetwork, value: float) -> str:
    """Name the unit of a flow."""
    named = {1.0: "minute", 60.0: "hour", 1440.0: "day"}
    vehicles = "vehicle" if value == 1.0 else "vehicles"
    return f"{vehicles} per {named.get(network.flow_unit, f'{network.flow_unit:g} minutes')}"


class _Roads:
    """Where nodes and links of a network are drawn; a unit of length is about a point."""

    def __init__(self, network: RoadNetwork, nodes: list[int], side: float) -> None:
        self.nodes = nodes
        index = {node: i for i, node in enumerate(nodes)}
        self.tail = np.array([index[int(node)] for node in network.tail])
        self.head = np.array([index[int(node)] for node in network.head])
        places = network.coordinates
        if places is None or any(node not in places for node in nodes):
            raw = _layout(len(nodes), self.tail, self.head)
        else:
            raw = np.array([places[node] for node in nodes], dtype=np.float64)
        raw = raw - raw.min(axis=0)
        extent = raw.max(axis=0)
        longest = float(extent.max())
        # a unit of the drawing is a point if the axes are as large as the box
        self.place = raw * ((side - 40.0) / longest if longest > 0.0 else 1.0)
        self.box = np.maximum(self.place.max(axis=0) + 40.0, 0.3 * side)
        near = _nearest(self.place)
        self.radius = 7.5 if max(len(str(node)) for node in nodes) <= 2 else 10.0
        self.large = len(nodes) > _NUMBERED_NODES or near.min() < 2.0 * self.radius + 4.0
        if self.large:
            self.radius = float(np.clip(0.12 * np.median(near), 0.5, 2.5))
        self.thin = 0.5 if self.large else 0.9
        self.thick = 3.0 if self.large else 6.0

    def widths(self, flow: NDArray[np.float64], widest: float) -> NDArray[np.float64]:
        """Return the width of links in points."""
        share = np.clip(flow / widest, 0.0, 1.0) if widest > 0.0 else np.zeros_like(flow)
        return np.asarray(self.thin + 0.4 + (self.thick - self.thin) * share)

    def draw(
        self,
        axes: Axes,
        colours: NDArray[np.float64],
        width: NDArray[np.float64],
        order: NDArray[np.float64],
    ) -> None:
        """Draw the links, those with the largest `order` on top."""
        from matplotlib.collections import LineCollection, PolyCollection

        start, end = self.place[self.tail], self.place[self.head]
        length = np.linalg.norm(end - start, axis=1)
        along = (end - start) / np.maximum(length, 1e-9)[:, None]
        right = np.stack([along[:, 1], -along[:, 0]], axis=1)
        margin = np.minimum(self.radius + 1.5, 0.3 * length)[:, None]
        shift = right * self._offsets(width)[:, None]
        start, tip = start + shift + margin * along, end + shift - margin * along
        half = 0.5 * width + (0.8 if self.large else 1.8)
        arrow = np.minimum(2.0 * half, 0.5 * length)[:, None]
        base = tip if self.large else tip - 0.9 * arrow * along
        ranks = np.argsort(order, kind="stable")
        rounded: Literal["butt", "round"] = "round" if self.large else "butt"
        lines = LineCollection(
            np.stack([start, base], axis=1)[ranks].tolist(),
            colors=colours[ranks],
            linewidths=width[ranks],
            capstyle=rounded,
            zorder=2,
        )
        axes.add_collection(lines)
        if not self.large:
            back, side = tip - arrow * along, half[:, None] * right
            heads = np.stack([tip, back + side, back - side], axis=1)
            axes.add_collection(
                PolyCollection(heads[ranks].tolist(), facecolors=colours[ranks], lw=0, zorder=2.5)
            )

    def draw_nodes(self, axes: Axes, highlight: int | None) -> None:
        """Draw the nodes, numbered where there is room, and set the limits of the axes."""
        marked = np.array([node == highlight for node in self.nodes])
        for those, colour, marker, radius in (
            (~marked, "0.3" if self.large else "white", "o", self.radius),
            (marked, _COLOURS[1], "s", max(self.radius, 4.0)),
        ):
            x, y = self.place[those].T
            axes.plot(
                x,
                y,
                ls="",
                marker=marker,
                ms=2.0 * radius,
                mfc=colour,
                mec="0.3",
                mew=0.3 if self.large else 1.0,
                zorder=3,
            )
        if not self.large:
            for node, (x, y) in zip(self.nodes, self.place.tolist(), strict=True):
                colour = "white" if node == highlight else "0.1"
                weight = "bold" if node == highlight else "normal"
                axes.text(
                    x,
                    y,
                    str(node),
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=colour,
                    fontweight=weight,
                    zorder=4,
                )
        centre, half = self.place.max(axis=0) / 2.0, self.box / 2.0
        # limits may grow, so that the axes keep the box that their title is above
        axes.set_xlim(centre[0] - half[0], centre[0] + half[0], auto=True)
        axes.set_ylim(centre[1] - half[1], centre[1] + half[1], auto=True)
        axes.set_aspect("equal", adjustable="datalim")
        axes.axis("off")

    def _offsets(self, width: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far to the right of the middle each link is drawn."""
        gap = 0.8 if self.large else 4.0
        pairs = list(zip(self.tail.tolist(), self.head.tolist(), strict=True))
        total: dict[tuple[int, int], float] = {}
        inner = np.zeros(len(pairs))
        for e, pair in enumerate(pairs):  # parallel links lie side by side
            inner[e] = total.get(pair, 0.0)
            total[pair] = inner[e] + float(width[e]) + gap
        both = np.array([(b, a) in total for a, b in pairs])
        one_way = -0.5 * np.array([total[pair] for pair in pairs])
        return np.asarray(np.where(both, 0.0, one_way) + inner + 0.5 * (width + gap))


def _layout(n: int, tail: NDArray[np.int64], head: NDArray[np.int64]) -> NDArray[np.float64]:
    """Place nodes in the plane so that distances are about numbers of links (SMACOF)."""
    near: list[set[int]] = [set() for _ in range(n)]
    for a, b in zip(tail.tolist(), head.tolist(), strict=True):
        near[a].add(b)
        near[b].add(a)
    hops = np.full((n, n), -1.0)
    for source in range(n):
        hops[source, source] = 0.0
        queue = deque([source])
        while queue:
            a = queue.popleft()
            for b in near[a]:
                if hops[source, b] < 0.0:
                    hops[source, b] = hops[source, a] + 1.0
                    queue.append(b)
    hops[hops < 0.0] = hops.max() + 1.0  # parts that no road joins
    centred = hops**2 - (hops**2).mean(axis=0)
    gram = -0.5 * (centred - centred.mean(axis=1, keepdims=True))
    values, vectors = np.linalg.eigh(gram)
    place = vectors[:, -2:][:, ::-1] * np.sqrt(np.maximum(values[-2:][::-1], 0.0))
    if place.shape[1] < 2:
        return np.zeros((n, 2))
    place *= np.where(place[0] > 0.0, -1.0, 1.0)  # the first node to the left
    place += 0.01 * np.random.default_rng(0).standard_normal(place.shape)
    for _ in range(100):
        apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
        ratio = hops / np.maximum(apart, 1e-9)
        np.fill_diagonal(ratio, 0.0)
        place = (ratio.sum(axis=1)[:, None] * place - ratio @ place) / n
    return np.asarray(place)


def _nearest(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each point is from the nearest other one; infinity for a single point."""
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    np.fill_diagonal(apart, math.inf)
    return np.asarray(apart.min(axis=1))


def _load_norm(loads: NDArray[np.float64], limits: tuple[float, float] | None) -> Normalize:
    """Return the scale of colours: logarithmic if it is long, else from 0."""
    from matplotlib.colors import LogNorm, Normalize

    if limits is not None:
        low, high = (float(end) for end in limits)
        if not 0.0 <= low < high < math.inf:
            raise ValueError(f"limits: expected 0 <= low < high, got {limits}")
    else:
        positive = loads[loads > 0.0]
        high = float(positive.max(initial=0.0))
        if high < 1e-100:  # none, or too small for logarithms
            return Normalize(0.0, 1.0, clip=True)
        low = max(float(positive.min()), high / _LOAD_SPAN)
        low = 0.0 if high < 10.0 * low else _round_down(low)
    if low > 0.0 and high >= 10.0 * low:
        return LogNorm(low, high, clip=True)
    return Normalize(low, high, clip=True)


def _is_log(norm: Normalize) -> bool:
    from matplotlib.colors import LogNorm

    return isinstance(norm, LogNorm)


def _used(load: NDArray[np.float64], norm: Normalize) -> NDArray[np.bool_]:
    """Return which loads have a colour."""
    assert norm.vmin is not None
    return np.asarray(load >= norm.vmin if _is_log(norm) else load > 0.0)


def _bar_ticks(bar: Any, norm: Normalize) -> None:
    """Write plain numbers at a colour bar with a logarithmic scale."""
    if not _is_log(norm):
        return
    assert norm.vmin is not None
    assert norm.vmax is not None
    low, high = math.log10(norm.vmin), math.log10(norm.vmax)
    powers = range(math.floor(low), math.ceil(high) + 1)
    digits = (1, 3) if high - low < 3.5 else (1,)
    ticks = [float(f"{d}e{p}") for p in powers for d in digits]
    ticks = [tick for tick in ticks if norm.vmin * 0.999 <= tick <= norm.vmax * 1.001]
    ticks = ticks[:: math.ceil(len(ticks) / 8)]
    bar.set_ticks(ticks, labels=[f"{tick:,g}" for tick in ticks])


def _round_down(value: float) -> float:
    """Return the largest number 1, 2 or 5 times a power of 10 up to `value`, > 0."""
    power = math.floor(math.log10(value))
    digit = max(d for d in (1, 2, 5) if d * 10.0**power <= value * (1.0 + 1e-12))
    return float(f"{digit}e{power}")


# ---- what figures share -------------------------------------------------------------------------


def _require() -> None:
    """Say how to get matplotlib where it is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as cause:
        raise ImportError("pictures need matplotlib: pip install 'ltde[plot]'") from cause


def _figure(width: float, height: float) -> Figure:
    """Make a figure, in inches."""
    _require()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    return Figure(figsize=(width, height), layout=layout)


def _key(**style: Any) -> Artist:
    """Return a line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _height(labels: int, least: float = 3.8) -> float:
    """Return the height of a figure with this many labels at its side."""
    return max(least, 1.6 + _ROW * labels)


def _style(i: int) -> dict[str, Any]:
    """Return colour, marker and line of curve `i`."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "ls": _LINES[i % len(_LINES)],
        "ms": 4.5,
        "lw": 1.5,
    }


def _plain(text: str, longest: int = _LONGEST, lines: int = 1) -> str:
    """Make a text from outside fit to be drawn: not too long, and no formula."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    if len(text) > lines * longest:
        text = text[: lines * longest - 1] + "…"
    if lines > 1:
        text = "\n".join(textwrap.wrap(text, longest))
    # matplotlib hides labels that start with an underscore
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _finite(lines: Mapping[str, float]) -> dict[str, float]:
    """Leave out values that are not finite."""
    return {name: float(value) for name, value in lines.items() if math.isfinite(value)}


def _column(
    metrics: Sequence[Mapping[str, Any]], name: str, index: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return iterations and finite values of a metric, or of one entry of it."""
    rows = []
    for i, row in enumerate(metrics):
        value = row.get(name)
        if value is not None and index is not None:
            value = value[index]
        if value is not None and math.isfinite(value):
            rows.append((float(row.get("iteration", i + 1)), float(value)))
    x, y = np.array(rows).reshape(-1, 2).T
    return x, y


def _tidy(axes: Axes) -> None:
    """Give axes a light grid and no frame."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _nothing(axes: Axes, text: str) -> None:
    """Say that there is nothing to see."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)
    axes.set(xticks=[], yticks=[])


def _integers(axes: Axes, x: NDArray[Any]) -> None:
    """Put ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    if len(x):
        steps = [1, 2, 5, 10]
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=steps, integer=True, min_n_ticks=1))
    if len(x) == 1:
        axes.set_xlim(x[0] - 1.0, x[0] + 1.0)


def _short_log_axis(axes: Axes, y: NDArray[Any]) -> None:
    """Fit a logarithmic axis to values; where they span little, write more than powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_minor_formatter(NullFormatter())
    y = y[y > 0.0]
    if len(y) and y.max() < 100.0 * y.min():
        middle = math.sqrt(y.max() * y.min())
        axes.set_ylim(min(y.min() * 0.9, middle / 4.0), max(y.max() * 1.1, middle * 4.0))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _agents_axis(axes: Axes, finite: list[float], limit: float | None) -> None:
    """Draw a logarithmic axis of numbers of agents, with a place for infinity."""
    from matplotlib.ticker import NullLocator

    places = [*finite, *([] if limit is None else [limit])] or [1.0]
    first, last = places[0], places[-1]
    margin = max((last / first) ** 0.05, 1.3 if len(places) > 1 else 2.0)
    span = math.log(last / first) + 2.0 * math.log(margin)
    ticks: list[tuple[float, str]] = [] if limit is None else [(limit, "$\\infty$")]
    for n in reversed(finite):  # where they are close, the larger one has a number
        if all(math.log(tick / n) > 0.11 * span for tick, _ in ticks):
            ticks.append((n, _agents(n)))
    axes.set_xscale("log")
    axes.set_xlim(first / margin, last * margin)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([x for x, _ in ticks], labels=[text for _, text in ticks])
    axes.set_xlabel("number of agents $N$")


def _agents(n: float) -> str:
    """Write a number of agents shortly."""
    if n < 100_000:
        return f"{n:,g}"
    digits, power = f"{n:.2e}".split("e")
    factor = digits.rstrip("0").rstrip(".")
    return f"$10^{{{int(power)}}}$" if factor == "1" else f"${factor}\\cdot 10^{{{int(power)}}}$"


def _label_at_the_side(
    figure: Figure, axes: Axes, labels: Sequence[tuple[float, str, str]]
) -> None:
    """Write `(y, text, colour)` to the right of the axes, without overlaps; limits are final.

    No label stands out above or below the axes.
    """
    if not labels:
        return
    limits = axes.get_ylim()
    axes.set_ylim(limits)
    order = sorted(labels)
    scale = axes.yaxis.get_transform().transform
    low, high = scale(np.array(limits))
    heights = (scale(np.array([y for y, _, _ in order])) - low) / (high - low)
    gap = _ROW / (figure.get_figheight() - 1.5)
    inside = 1.0 - gap  # half a line of room at both ends
    places = inside * np.array(_spread((heights - 0.5 * gap) / inside, gap / inside)) + 0.5 * gap
    for (y, text, colour), place in zip(order, places.tolist(), strict=True):
        axes.annotate(
            text,
            (1.0, y),
            (1.05, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords="axes fraction",
            va="center",
            fontsize=_SMALL,
            color="0.2",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0.0, 0.5),
            },
        )


def _spread(places: NDArray[np.float64], gap: float) -> list[float]:
    """Move sorted places in [0, 1] as little as possible until they are `gap` apart."""
    steps = gap * np.arange(len(places))
    blocks: list[tuple[float, int]] = []  # mean and size: pool adjacent violators
    for value in (places - steps).tolist():
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, size = (mean * size + other * more) / (size + more), size + more
        blocks.append((mean, size))
    free = np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])
    spread: list[float] = (np.clip(free, 0.0, max(0.0, 1.0 - steps[-1])) + steps).tolist()
    return spread


def _legend_below(
    figure: Figure,
    handles: Sequence[Artist],
    names: Sequence[str],
    place: Literal["outside lower center", "outside upper center"] = "outside lower center",
) -> None:
    """Put a legend under (or over) the axes, in as many columns as there is room for."""
    if not names:
        return
    each = 0.6 + 0.08 * max(map(len, names))
    columns = max(1, min(len(names), int(figure.get_figwidth() / each)))
    rows = math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(
        handles,
        names,
        loc=place,
        ncols=columns,
        frameon=False,
        fontsize=_SMALL,
        borderaxespad=0.2,
    )

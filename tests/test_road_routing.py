"""Road routing: the model, its dynamics, baselines against their references, measurements."""

import dataclasses
import functools
import math

import ltde
import numpy as np
import pytest
import statcheck
from hypothesis import given, settings
from hypothesis import strategies as st
from ltde.envs import Environment, RoadNetwork, RoadRouting
from ltde.envs.assignment import assign
from matplotlib.figure import Figure


@functools.cache
def routing(*args, **options):
    """Build an application once for all tests."""
    return RoadRouting(*args, **options)


def fluid(app, policy):
    return app.measure(policy, math.inf).mean


def system_optimum(app):
    return app.split(app.optimum.splits)


def user_equilibrium(app):
    return app.split(app.equilibrium.splits)


@st.composite
def networks(draw):
    """Draw a ring with chords, and trips from the nodes 0 and 1 to 2 and 3.

    As no trip begins where trips end, vehicles go on to any trip, and the stationary fluid is a
    static assignment.
    """
    n = draw(st.integers(4, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ring = [(v, (v + 1) % n) for v in range(n)]
    chords = [(u, v) for u in range(n) for v in range(n) if u != v and (u, v) not in ring]
    # two links leave every node at most, so that the local function is compiled once
    kept = {u: (u, v) for u, v in rng.permutation(chords)[: draw(st.integers(1, 4))].tolist()}
    tail, head = np.array([*ring, *kept.values()]).T
    free = rng.uniform(1, 8, len(tail))
    power = rng.choice([1.0, 2.0, 4.0], len(tail))
    return RoadNetwork(
        name="random",
        tail=tail,
        head=head,
        free_flow=free,
        coefficient=0.15 * free / rng.uniform(5, 20, len(tail)) ** power,
        power=power,
        origin=[0, 0, 1, 1],
        destination=[2, 3, 2, 3],
        trips=rng.uniform(1, 8, 4),
        flow_unit=1.0,
    )


# ---- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes", "degree", "vehicles", "discount"),
    [
        ({"network": "braess"}, (6, 2), 5, 504.0, 0.99),
        ({"network": "braess", "destination": 2}, (7, 2), 4, 360.0, 0.99),
        ({"destination": 10}, (100, 5), 11, 45_100.0, 0.98),
        ({}, (2352, 5), 53, 125_433.0, 0.98),
    ],
)
def test_sizes(options, sizes, degree, vehicles, discount):
    app = routing(**options)
    model = app.model
    assert model is app.model
    assert isinstance(app, Environment)
    assert (model.n_states, model.n_actions) == sizes
    assert np.diff(model.graph.indptr).max() <= degree
    assert app.n_vehicles == pytest.approx(vehicles, abs=0.5)
    assert discount <= model.discount < discount + 0.005
    assert app.link_of_state.shape == app.destination_of_state.shape == sizes[:1]
    assert app.title.isascii()
    model.check(n_samples=9)


def test_the_model_is_that_of_the_example():
    app = routing(destination=10)
    model, roads = app.model, app.roads
    assert model.initial[:76].sum() == 0.0
    np.testing.assert_allclose(model.initial[76:99].sum(), 1.0)
    assert model.reward_range == (-1.0, 0.0)
    degree = np.bincount(roads.tail)
    expected = np.where(roads.head == 10, 1, degree[roads.head])
    np.testing.assert_array_equal(model.action_mask[:76].sum(axis=1), expected)
    np.testing.assert_array_equal(model.node[:76, 0], roads.free_flow)


def test_the_closed_system_starts_on_the_links():
    app = routing()
    on_link = app.link_of_state >= 0
    assert on_link.sum() == 76 * 24
    np.testing.assert_allclose(app.model.initial, on_link / on_link.sum())
    # every link once for each destination
    pairs = {*zip(app.link_of_state[on_link], app.destination_of_state[on_link], strict=True)}
    assert len(pairs) == 76 * 24
    assert app.model.reward_range == pytest.approx((0.0, 1.0), abs=1e-9)


@pytest.mark.parametrize("options", [{"network": "braess"}, {"destination": 10}, {}])
def test_vehicles_leave_at_the_rate_of_littles_law(options):
    app = routing(**options)
    model, roads = app.model, app.roads
    mu = np.random.default_rng(4).dirichlet(np.full(model.n_states, 0.2))
    prob, _ = model.evaluate(mu)
    vehicles = np.bincount(
        app.link_of_state[app.link_of_state >= 0],
        mu[app.link_of_state >= 0] * app.n_vehicles,
        roads.n_links,
    )
    leave = np.minimum(1.0, app.step / np.maximum(roads.minutes(vehicles), app.step))
    rows = np.repeat(np.arange(model.n_states), np.diff(model.graph.indptr))
    stay = prob[0, rows == model.graph.indices]
    on_link = app.link_of_state >= 0
    np.testing.assert_allclose(1.0 - stay[on_link], leave[app.link_of_state[on_link]], rtol=1e-9)
    # not so without the vehicles that go elsewhere on the same link
    alone = roads.minutes(np.bincount(app.link_of_state[on_link], minlength=roads.n_links) * 0.0)
    assert not np.allclose(leave, np.minimum(1.0, 1.0 / np.maximum(alone, 1.0)), rtol=0.01)


def test_actions_lead_to_the_links_that_leave_the_node():
    app = routing()
    model, roads = app.model, app.roads
    prob, reward = model.evaluate(model.initial)
    rows = np.repeat(np.arange(model.n_states), np.diff(model.graph.indptr))
    target = model.graph.indices
    a, e = np.nonzero(prob)
    moves = (rows[e] != target[e]) & model.action_mask[rows[e], a]
    a, s, t = a[moves], rows[e[moves]], target[e[moves]]
    link, goal = app.link_of_state, app.destination_of_state
    arrived = (link[s] >= 0) & (roads.head[link[s]] == goal[s])
    # on the way: the a-th link from the end of this one, the same destination
    way = ~arrived & (link[s] >= 0)
    assert (goal[s[way]] == goal[t[way]]).all()
    assert (roads.tail[link[t[way]]] == roads.head[link[s[way]]]).all()
    for i in np.flatnonzero(way)[::97]:
        out = np.flatnonzero(roads.tail == roads.head[link[s[i]]])
        assert out[a[i]] == link[t[i]]
    # arrived: a restart state of that node, by the trips that begin there
    assert (link[t[arrived]] == -1).all()
    assert (a[arrived] == 0).all()
    node_of_restart = roads.origin[t[arrived] - 76 * 24]
    assert (node_of_restart == goal[s[arrived]]).all()
    share = prob[0, e[moves][arrived]]
    trips = roads.trips[t[arrived] - 76 * 24]
    leave = reward[s[arrived], 0]
    total = np.bincount(roads.origin, roads.trips)[node_of_restart]
    np.testing.assert_allclose(share, leave * trips / total)
    # only arrivals are rewarded
    assert (reward[np.setdiff1d(s, s[arrived])] == 0.0).all()
    # restart states last for one step
    np.testing.assert_array_equal(prob[0, (rows == target) & (rows >= 76 * 24)], 0.0)


def test_policies_and_masks_agree():
    for options in ({"network": "braess"}, {"destination": 10}, {}):
        app = routing(**options)
        tables = [app.shortest_path(), app.logit(), system_optimum(app), user_equilibrium(app)]
        myopic = app.myopic().function(np.tile(app.model.initial, (2, 1)), math.inf)
        for probs in [*(table.probs for table in tables), myopic[0], myopic[1]]:
            assert (probs[~app.model.action_mask] == 0.0).all()
            np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-12)


# ---- references ---------------------------------------------------------------------------------


def test_closed_braess_gives_the_minutes_of_the_references():
    app = routing("braess")
    assert fluid(app, system_optimum(app)) == pytest.approx(83.0, abs=1e-6)
    assert fluid(app, app.baselines()["uniform"]) == pytest.approx(88.09, abs=0.005)
    assert fluid(app, app.shortest_path()) == pytest.approx(107.5, abs=0.05)
    crowded = routing("braess", vehicles=558.0)
    assert fluid(crowded, user_equilibrium(crowded)) == pytest.approx(92.0, abs=1e-4)
    # the equilibrium is worse, and needs its own number of vehicles
    assert fluid(app, user_equilibrium(app)) == pytest.approx(88.563, abs=0.005)
    assert app.references() == pytest.approx(
        {"static user equilibrium": 92.0, "static system optimum": 83.0}
    )


@pytest.mark.parametrize("step", [0.5, 2.0])
def test_minutes_do_not_depend_on_the_step(step):
    app = routing("braess", step=step)
    assert app.n_vehicles == pytest.approx(498.0 + 6.0 * step, abs=1e-6)
    assert fluid(app, system_optimum(app)) == pytest.approx(83.0, abs=1e-6)


def test_one_destination_gives_the_minutes_of_the_references():
    app = routing(destination=10)
    minutes = {name: fluid(app, policy) for name, policy in app.baselines().items()}
    assert minutes == pytest.approx(
        {
            "uniform": 77.53,
            "shortest path": 15.12,
            "myopic": 12.89,
            "user equilibrium": 9.78,
            "system optimum": 9.71,
        },
        abs=0.006,
    )
    for temperature in (0.47, 2.25):
        other = routing(destination=10, temperature=temperature)
        assert fluid(other, other.myopic()) == pytest.approx(13.60, abs=0.05)


def test_full_sioux_falls_gives_the_optimum_of_the_references():
    app = routing()
    assert fluid(app, system_optimum(app)) == pytest.approx(19.868, abs=0.001)
    assert app.references()["static system optimum"] == pytest.approx(19.871, abs=0.001)


@pytest.mark.parametrize(
    ("name", "reference", "tolerance", "in_all"),
    [
        ("user equilibrium", 20.12, 0.01, 20.125),
        ("shortest path", 32.78, 0.2, 33.10),
        ("logit", 32.17, 0.2, 32.53),
        ("uniform", 323.6, 1.0, 333.9),
    ],
)
@pytest.mark.slow
def test_full_sioux_falls_gives_the_minutes_of_the_references(name, reference, tolerance, in_all):
    # The references keep 119,423 vehicles on links whatever the policy; those in restart states
    # come on top, one minute of each trip.
    on_links = 119_422.9 * (1.0 + 1.0 / reference)
    for app, expected, near in (
        (RoadRouting(vehicles=on_links), reference, tolerance),
        (routing(), in_all, 0.05),
    ):
        policy = app.logit() if name == "logit" else app.baselines()[name]
        assert fluid(app, policy) == pytest.approx(expected, abs=near)


@pytest.mark.slow
def test_the_myopic_driver_in_full_sioux_falls():
    app = routing()
    assert fluid(app, app.myopic()) == pytest.approx(24.87, abs=0.01)
    sharper = RoadRouting(temperature=0.47, vehicles=119_422.9 * (1.0 + 1.0 / 24.48))
    assert fluid(sharper, sharper.myopic()) == pytest.approx(24.48, abs=0.05)


@pytest.mark.statistical
@pytest.mark.parametrize("n_agents", [2_000, 10_000])
def test_simulated_minutes_agree_with_the_fluid(n_agents):
    """Means over 32 replicas against the fluid, at five standard errors and the bias of `N`.

    The bias of the static splits is about 200 / N minutes (9.80 for 9.71 at 2,000 agents). With
    10 % more vehicles the shortest path must fail. False alarms: about 1e-4 in all (Student's t,
    31 degrees of freedom, five policies).
    """
    app = routing(destination=10)
    for name, policy in app.baselines().items():
        expected = fluid(app, policy)
        found = app.measure(
            policy, n_agents, 32, seed=statcheck.seed("road routing, flow"), threads=1
        )
        error = found.values.std(ddof=1) / math.sqrt(32)
        bias = (400.0 if name in ("shortest path", "myopic", "uniform") else 200.0) / n_agents
        assert abs(found.mean - expected) < 5.0 * error + bias, name
    mutant = RoadRouting(destination=10, vehicles=1.1 * app.n_vehicles)
    jam = mutant.measure(
        app.shortest_path(), 10_000, 32, seed=statcheck.seed("road routing, flow"), threads=1
    )
    error = jam.values.std(ddof=1) / math.sqrt(32)
    assert jam.mean - fluid(app, app.shortest_path()) > 5.0 * error + 0.2


@pytest.mark.statistical
def test_few_agents_in_braess_take_longer():
    # 87.5 with 20 agents, 84.4 with 60: heavy agents jam the roads
    app = routing("braess")
    policy = system_optimum(app)
    for n_agents, expected in ((20, 87.5), (60, 84.4), (2_000, 83.05)):
        found = app.measure(
            policy, n_agents, 64, seed=statcheck.seed("road routing, few agents"), threads=1
        )
        error = found.values.std(ddof=1) / 8.0
        assert abs(found.mean - expected) < 5.0 * error + 0.1
        assert error < 0.5


@pytest.mark.slow
@pytest.mark.statistical
def test_full_sioux_falls_at_finite_n():
    app = routing()
    policy = system_optimum(app)
    for n_agents, expected in ((500, 21.1), (2_000, 20.20), (10_000, 19.95)):
        found = app.measure(policy, n_agents, 8, seed=statcheck.seed("road routing, full"))
        error = found.values.std(ddof=1) / math.sqrt(8)
        assert abs(found.mean - expected) < 8.0 * error + 0.05


@settings(max_examples=12)
@given(networks())
def test_the_fluid_of_static_splits_is_the_static_assignment(network):
    app = RoadRouting(network)
    app.model.check(n_samples=6)
    policy = system_optimum(app)
    loads = app.link_loads(policy, math.inf, n_steps=3_000)
    assert loads.shape == (3_000, network.n_links)
    # a link of less than a step takes a step, so none is here
    flow = app.optimum.flow
    np.testing.assert_allclose(
        loads[-1], flow * network.latency(flow), rtol=1e-3, atol=1e-3 * loads[-1].max()
    )
    np.testing.assert_allclose(
        app.link_flows(policy, math.inf, n_steps=3_000)[-1],
        flow,
        rtol=1e-3,
        atol=1e-3 * flow.max(),
    )
    assert fluid(app, policy) == pytest.approx(app.optimum.mean_trip, rel=2e-3)


# ---- shaping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"network": "braess"}, {"destination": 10}])
@pytest.mark.parametrize("shaping", ["free-flow", "marginal"])
def test_shaping_changes_the_value_of_every_policy_alike(options, shaping):
    plain, shaped = routing(**options), routing(**options, shaping=shaping)
    shaped.model.check(n_samples=9)
    lo, hi = shaped.model.reward_range
    changes = []
    for name in ("uniform", "shortest path", "system optimum"):
        policy = plain.baselines()[name]
        before, after = (
            ltde.evaluate(app.model, policy, math.inf, 1, horizon=3_000).mean
            for app in (plain, shaped)
        )
        changes.append(after - before)
        assert abs(after - before) > 0.1
        # minutes are measured without the potential
        assert fluid(shaped, policy) == pytest.approx(fluid(plain, policy), rel=1e-12)
    np.testing.assert_allclose(changes, changes[0], rtol=1e-9)
    # the range is that of the rewards: no wider than what densities at the corners show
    _, reward = shaped.model.evaluate(shaped.model.initial * 1e-9)
    assert lo <= reward.min()
    assert reward.max() <= hi
    assert hi - lo < 100.0


def test_free_flow_shaping_pays_for_the_next_link_in_advance():
    # on an empty shortest path a link of f minutes costs f and earns the minutes of the next one
    app = routing(destination=10, shaping="free-flow", discount=0.9999)
    _, reward = app.model.evaluate(np.zeros(100))
    probs, free = app.shortest_path().probs[:76], app.roads.free_flow
    following = np.zeros(76)
    for e in range(76):
        if app.roads.head[e] != 10:
            out = np.flatnonzero(app.roads.tail == app.roads.head[e])
            following[e] = probs[e, : len(out)] @ free[out]
    earned = (reward[:76] * probs).sum(axis=1) * free
    np.testing.assert_allclose(earned, following - free, atol=0.02)


# ---- any city -----------------------------------------------------------------------------------


def test_a_city_with_zones(tmp_path):
    (tmp_path / "City_net.tntp").write_text(
        "<NUMBER OF ZONES> 2\n<FIRST THRU NODE> 3\n<END OF METADATA>\n"
        "1 3 500 1 2 0.15 4 0 0 1;\n3 1 500 1 2 0.15 4 0 0 1;\n"
        "2 4 500 1 3 0.15 4 0 0 1;\n4 2 500 1 3 0.15 4 0 0 1;\n"
        "3 4 500 1 9 0.15 4 0 0 1;\n4 3 500 1 9 0.15 4 0 0 1;\n"
    )
    (tmp_path / "City_trips.tntp").write_text(
        "<END OF METADATA>\nOrigin 1\n 2 : 600;\nOrigin 2\n 1 : 600;\n"
    )
    app = RoadRouting(str(tmp_path / "City_net.tntp"))
    # links into a zone only for trips that end there: (1, 3), (2, 4), (3, 4), (4, 3) for both
    # destinations, (3, 1) and (4, 2) for one each, and two restart states
    assert app.model.n_states == 4 * 2 + 2 + 2
    app.model.check(n_samples=6)
    minutes = fluid(app, system_optimum(app))
    assert minutes == pytest.approx(app.optimum.mean_trip, rel=1e-4)
    assert minutes > 14.0


def test_a_node_where_no_trip_begins_sends_vehicles_to_all_origins():
    app = routing("braess")
    (restart,) = np.flatnonzero(app.link_of_state < 0)
    prob, reward = app.model.evaluate(app.model.initial)
    arriving = np.flatnonzero(reward[:, 0] > 0.0)
    assert (app.roads.head[app.link_of_state[arriving]] == 2).all()
    rows = np.repeat(np.arange(6), np.diff(app.model.graph.indptr))
    to_restart = prob[0, (app.model.graph.indices == restart) & np.isin(rows, arriving)]
    np.testing.assert_allclose(to_restart, reward[arriving, 0])


def test_too_many_neighbours_are_refused(monkeypatch):
    monkeypatch.setattr("ltde.envs.road_routing._MAX_NEIGHBOURS", 1_000)
    with pytest.raises(ValueError, match=r"1,824 states .* choose one destination"):
        RoadRouting().model  # noqa: B018
    assert RoadRouting(destination=10).model.n_states == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "paris"}, "network: expected"),
        ({"destination": 99}, "destination: no trip ends at 99"),
        ({"vehicles": -3.0}, "vehicles: expected a finite number > 0, got -3"),
        ({"step": 0.0}, "step: expected a finite number > 0"),
        ({"release": math.nan}, "release: expected a finite number > 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"discount": 1.0}, r"discount: expected a number in \[0, 1\), got 1.0"),
        ({"shaping": "free"}, 'shaping: expected "none"'),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RoadRouting(**options)


def test_the_network_is_checked():
    with pytest.raises(TypeError, match="network: expected a RoadNetwork or a name, got 3"):
        RoadRouting(3)


def test_options_are_plain():
    # the command line makes its flags of these
    for field in dataclasses.fields(RoadRouting):
        assert field.default is not dataclasses.MISSING
        assert f"\n    {field.name}\n" in RoadRouting.__doc__


# ---- measurements and pictures ------------------------------------------------------------------


def test_measurements_repeat_and_have_one_value_for_each_replica():
    app = routing("braess")
    policy = app.baselines()["uniform"]
    first, again = (app.measure(policy, 100, 5, seed=3, threads=t) for t in (1, 2))
    assert first.values.shape == (5,)
    np.testing.assert_array_equal(first.values, again.values)
    assert first.interval[0] < first.mean < first.interval[1]
    assert (app.measure(policy, 100, 5, seed=4).values != first.values).all()
    assert app.measure(policy, math.inf).values.shape == (1,)


def test_minutes_of_the_closed_system_are_those_of_completed_trips():
    # in another way: the rewards count the arrivals
    app = routing("braess")
    policy = app.baselines()["uniform"]
    simulator = ltde.Simulator(app.model, math.inf)
    simulator.rollout(policy, 3_000, record=())
    done = simulator.rollout(policy, 2_000, record=("rewards",)).rewards.sum()
    assert fluid(app, policy) == pytest.approx(2_000 / done - 1.0, abs=1e-6)


def circles(app):
    """Return the policy that turns back at every crossing that is not an end."""
    link = app.link_of_state
    probs = app.baselines()["uniform"].probs.copy()
    for s in range(76):
        out = np.flatnonzero(app.roads.tail == app.roads.head[link[s]])
        if app.roads.head[link[s]] != 10:
            probs[s] = 0.0
            probs[s, np.flatnonzero(app.roads.head[out] == app.roads.tail[link[s]])] = 1.0
    return ltde.TabularPolicy(probs)


def test_circles_are_measured_by_a_lower_bound(monkeypatch):
    monkeypatch.setattr("ltde.envs.road_routing._LONGEST_TRIP", 300)
    app = routing(destination=10)
    n_steps = math.ceil(20 * app.release + 100 * app.optimum.mean_trip)
    message = rf"measure: \d+(\.\d)? % of the agents had not arrived after {n_steps:,} steps; the "
    with pytest.warns(RuntimeWarning, match=message + "minutes are a lower bound"):
        found = app.measure(circles(app), 500, 2)
    assert found.mean > 0.5 * n_steps


def test_how_long_is_measured_depends_on_minutes(monkeypatch):
    # 12 steps of a minute are too few, but not 20 times the release and 100 trips
    monkeypatch.setattr("ltde.envs.road_routing._LONGEST_TRIP", 12)
    plain, fine = (routing("braess", destination=2, step=step) for step in (1.0, 0.25))
    minutes = [fluid(app, app.baselines()["uniform"]) for app in (plain, fine)]
    assert minutes[0] == pytest.approx(minutes[1], rel=0.05)


def test_a_window_without_trips_is_told():
    app = RoadRouting("braess", vehicles=1e30)
    with pytest.warns(RuntimeWarning, match="no trip was completed in the window") as caught:
        found = app.measure(app.baselines()["uniform"], 50, 3)
    assert len(caught) == 1
    assert found.values.tolist() == [math.inf] * 3
    assert found.mean == math.inf


@pytest.mark.parametrize("n_replicas", [0, -1, 1.5])
def test_replicas_are_checked_also_of_the_fluid(n_replicas):
    app = routing("braess")
    with pytest.raises((ValueError, TypeError), match="n_replicas: expected an integer"):
        app.measure(app.baselines()["uniform"], math.inf, n_replicas)


def test_vehicles_follow_from_the_trips_of_the_network():
    falls = RoadNetwork.sioux_falls()
    assert RoadRouting(falls, destination=10).n_vehicles == 45_100.0
    # its links and its title do not matter
    other = dataclasses.replace(falls, name="A town", free_flow=2.0 * falls.free_flow)
    assert RoadRouting(other, destination=10).n_vehicles == 45_100.0
    half = dataclasses.replace(falls, trips=0.5 * falls.trips)
    assert RoadRouting(half, destination=10).n_vehicles == pytest.approx(22_600.0)
    one = falls.trips.copy()
    one[np.flatnonzero(falls.destination == 10)[3]] += 100.0
    more = dataclasses.replace(falls, trips=one)
    assert RoadRouting(more, destination=10).n_vehicles == pytest.approx(45_300.0)
    assert RoadRouting(falls, destination=11).n_vehicles != 45_100.0


def test_too_many_trips_are_named():
    braess = RoadNetwork.braess()
    for trips in (1e12, 1e30):
        app = RoadRouting(dataclasses.replace(braess, trips=[trips]))
        with pytest.raises(
            ValueError, match=r"trips: 1e\+(12|30) in all are too many for the links"
        ):
            app.model  # noqa: B018
    falls = RoadNetwork.sioux_falls()
    app = RoadRouting(dataclasses.replace(falls, trips=1e25 * falls.trips), discount=0.99)
    with pytest.raises(ValueError, match=r"trips: 3.606e\+30 in all keep \S+ vehicles on the way"):
        app.model  # noqa: B018


def test_long_steps_are_told():
    app = RoadRouting("braess", step=50.0)
    with pytest.warns(
        UserWarning, match="step: 50 minutes is longer than link 4's 10 minutes at"
    ) as w:
        model = app.model
    assert [caught.filename for caught in w] == [__file__]
    assert app.model is model  # once
    # as long as the shortest link, or that of no time
    assert RoadRouting("braess", step=10.0, discount=0.95).model.n_states == 6


def test_loads_and_flows_of_links():
    app = routing(destination=10)
    policy = system_optimum(app)
    loads = app.link_loads(policy, 10_000, seed=1)
    assert loads.shape[1] == 76
    assert loads[0].sum() < loads.max(axis=0).sum()
    assert loads[-1].sum() < 0.05 * loads.sum(axis=1).max()
    flows = app.link_flows(policy, 10_000, seed=1)
    np.testing.assert_allclose(flows * app.roads.latency(flows), 60.0 * loads, atol=1e-6)
    # agents are whole
    agents = loads * 10_000 / app.n_vehicles
    np.testing.assert_allclose(agents, np.round(agents), atol=1e-6)


@pytest.mark.parametrize("options", [{"network": "braess"}, {"destination": 10}])
def test_figures(options):
    app = routing(**options)
    policies = {"shortest path": app.shortest_path(), "learned": system_optimum(app)}
    figures = app.figures(policies, seed=2)
    assert len(figures) == 4
    assert all(isinstance(figure, Figure) for figure in figures.values())
    with pytest.raises(ValueError, match='policies: expected "learned" among the names'):
        app.figures({"shortest path": app.shortest_path()})


def test_the_map_of_differences_shows_what_the_shortest_path_does_not_do():
    app = routing("braess")
    share, flow = app.detours(app.shortest_path(), seed=1)
    np.testing.assert_allclose(share, 0.0, atol=1e-12)
    assert flow[1] < 0.2  # the link 1 -> 4 empties
    share, _ = app.detours(system_optimum(app), seed=1)
    np.testing.assert_allclose(share, [0, 1, 1, 0, 0], atol=1e-12)


def test_a_policy_can_learn_here():
    # a few iterations from uniform choices help
    app = routing(destination=10)
    config = ltde.Config.practical(n_iterations=4, seed=1)
    result = ltde.LTDENeuralAC(app.model, 1_000, config).fit()
    found = app.measure(result.best, 2_000, 4, seed=5, threads=1)
    assert found.mean < 60.0


def test_splits_of_another_assignment():
    app = routing()
    rough = assign(app.roads, "so", 1e-4)
    assert rough.gap > 1e-7
    table = app.split(rough.splits)
    assert table.probs.shape == (2352, 5)

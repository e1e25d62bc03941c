"""Settings of a training run: presets, TOML, and an error for everything out of range."""

import dataclasses
import math
import tomllib

import ltde
import numpy as np
import pytest
from ltde import Config
from models import ring_local

SCORE = {"actor": "score", "critic": "q"}
THEORY = {"n_iterations": 400, "critic_steps": 10_000, "reward_scale": 0.1}
PRESETS = {
    "practical": Config.practical(),
    "changed": Config.practical(
        width=10,
        tau=1e-5,
        k=3,
        density_scale=2.5,
        advantage_scale=1e-300,
        natural=False,
        visit_floor=math.inf,
    ),
    "projected": Config.practical(critic_radius=3.0, actor_radius=math.inf, dtype="float64"),
    "score": Config.practical(**SCORE, family="energy", features="mass", seed=2**63 - 1),
    "large": Config.practical(actor_rate=1e22, critic_rate=5e-324, n_iterations=10**15),
    "theory": Config.theory(0.9, **THEORY),
    "theory changed": Config.theory(0.0, **THEORY, k=0, width=7, n_draws=33, seed=5),
}
NAMES = [field.name for field in dataclasses.fields(Config)]


# Presets.


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_toml(name, tmp_path):
    config = PRESETS[name]
    text = config.to_toml()
    assert Config.from_toml(text) == config
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    again = Config.from_toml(path)
    assert again == config
    assert again.to_toml() == text
    for field in NAMES:
        assert type(getattr(again, field)) is type(getattr(config, field)), field


def test_toml_holds_every_field_but_none():
    values = tomllib.loads(PRESETS["changed"].to_toml())
    assert list(values) == [n for n in NAMES if getattr(PRESETS["changed"], n) is not None]
    assert "density_scale" not in tomllib.loads(Config().to_toml())


def test_toml_of_some_fields_takes_the_defaults_of_the_others():
    assert Config.from_toml("width = 32\nk = 2\n") == Config(width=32, k=2)
    assert Config.from_toml("") == Config()


def test_practical_is_the_defaults():
    assert Config.practical() == Config()
    assert Config.practical(width=8) == Config(width=8)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("iterations", "steps"), [(1, 1), (100, 64), (400, 10**6)])
def test_theory_has_the_rates_of_theorem_5_10(discount, iterations, steps):
    config = Config.theory(discount, n_iterations=iterations, critic_steps=steps, reward_scale=0.1)
    assert config.critic_rate == pytest.approx(
        min((1 - discount) / 8, 1 / math.sqrt(steps)), rel=1e-15
    )
    assert config.actor_rate == pytest.approx(1 / math.sqrt(iterations), rel=1e-15)
    assert (config.n_iterations, config.critic_steps) == (iterations, steps)


def test_theory_is_the_paper_and_nothing_else():
    paper = {
        "family": "energy",
        "actor": "score",
        "critic": "q",
        "tau": 1.0,
        "actor_radius": 1.0,
        "critic_radius": 1.0,
        "density_scale": 1.0,
        "input_scale": 2**-0.5,
        "symmetric": False,
        "actor_decay": 0.0,
        "critic_normalized": False,
        "critic_average": True,
        "critic_warm_start": False,
        "constant_input": False,
        "baseline": "none",
        "features": "distribution",
        "critic_law": "nu",
        "thinning": 1,
        "sampler": "visitation",
        "n_replicas": 1,
        "reward_scale": 0.1,
    }
    config = PRESETS["theory"]
    assert {name: getattr(config, name) for name in paper} == paper


def test_theory_takes_changes():
    assert Config.theory(0.9, **THEORY, baseline="mean_action").baseline == "mean_action"


@pytest.mark.parametrize("discount", [1.0, -0.1, 2.0, math.nan])
def test_theory_refuses_a_discount(discount):
    with pytest.raises(ValueError, match=rf"^discount: .*got {discount}"):
        Config.theory(discount, **THEORY)


@pytest.mark.parametrize("value", [0, -1, -4])
@pytest.mark.parametrize("name", ["n_iterations", "critic_steps"])
def test_theory_names_what_is_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: .*got {value}"):
        Config.theory(0.9, **THEORY | {name: value})


# A config does not change.


@pytest.mark.parametrize("name", NAMES)
def test_frozen(name):
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


def test_nothing_can_be_added():
    with pytest.raises((AttributeError, TypeError)):
        Config().other = 1


def test_equal_configs_hash_alike():
    assert hash(Config(width=8)) == hash(Config(width=8.0))
    assert Config(width=8) != Config(width=10)


def test_replace_leaves_the_first_alone_and_checks():
    config = Config()
    assert config.replace(width=8).width == 8
    assert config.width == 64
    with pytest.raises(ValueError, match=r"^width: .*got 7"):
        config.replace(width=7)


def test_fields_are_named():
    with pytest.raises(TypeError):
        Config("softmax")


# Wrong fields.

AT_LEAST_ONE = (
    *("width", "critic_steps", "critic_epochs", "segment", "thinning", "n_draws"),
    *("n_replicas", "n_iterations", "scale_iterations", "checkpoint_every"),
)
AT_LEAST_ZERO = ("k", "evaluate_every", "seed", "replay")
INTEGERS = (*AT_LEAST_ONE, *AT_LEAST_ZERO, "n_knots")
POSITIVE = ("tau", "input_scale", "ridge", "actor_rate", "critic_rate")
RADII = ("actor_radius", "critic_radius")
OPTIONAL = ("density_scale", "advantage_scale", "reward_scale")
NOT_NEGATIVE = ("actor_decay", "visit_floor")
NUMBERS = POSITIVE + RADII + OPTIONAL + NOT_NEGATIVE
FLAGS = tuple(n for n in NAMES if isinstance(getattr(Config(), n), bool))
CHOICES = tuple(n for n in NAMES if isinstance(getattr(Config(), n), str))

OUT_OF_RANGE = [
    *((name, value) for name in AT_LEAST_ONE for value in (0, -3, -2.0)),
    *((name, value) for name in AT_LEAST_ZERO for value in (-1, -2.0)),
    *((name, value) for name in INTEGERS for value in (2.5, math.inf, -math.inf, math.nan)),
    *((name, value) for name in POSITIVE + OPTIONAL for value in (0.0, -1, math.inf, math.nan)),
    *((name, value) for name in RADII for value in (0.0, -1, -math.inf, math.nan)),
    *((name, value) for name in NOT_NEGATIVE for value in (-1, -math.inf, math.nan)),
    *((name, value) for name in CHOICES for value in ("other", "", None, 1)),
    ("actor_decay", math.inf),  # inf * 0 at the first iteration
    ("seed", 2**63),
    ("n_knots", 1),
    ("replay", 1),
    ("width", 7),
]
WRONG_TYPE = [
    *((name, value) for name in INTEGERS + NUMBERS for value in ("8", True, [8], 1j, {})),
    *((name, None) for name in INTEGERS + NUMBERS if name not in OPTIONAL),
    *((name, value) for name in FLAGS for value in (1, 0, "true", None, 1.0)),
]


def test_every_field_is_tested():
    assert sorted(INTEGERS + NUMBERS + FLAGS + CHOICES) == sorted(NAMES)


def refuses(error, name, value, **others):
    with pytest.raises(error) as caught:
        Config(**{name: value}, **others)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ")
    got = message.rpartition("got ")[2]
    try:
        assert got == repr(value) or float(got) == float(value)
    except ValueError:
        pytest.fail(f"{message!r} does not name {value!r}")


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_out_of_range(name, value):
    refuses(ValueError, name, value)


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE)
def test_wrong_type(name, value):
    refuses(TypeError, name, value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("critic", {"critic": "q"}),
        ("critic", {"actor": "score"}),
        ("critic", {"actor": "score", "family": "energy"}),
        ("critic", {"actor": "score", "critic": "value"}),
        ("family", {"family": "energy"}),
        ("n_draws", {**SCORE, "n_draws": 100}),
        ("n_draws", {**SCORE, "n_replicas": 512}),
        ("visit_floor", {"visit_floor": math.inf}),
        ("width", {"width": 1}),
        ("width", {**SCORE, "width": 9}),
    ],
)
def test_pairs_that_do_not_go_together(name, changes):
    value = Config.__dataclass_fields__[name].default
    with pytest.raises(ValueError, match=rf"^{name}: .*got {changes.get(name, value)!r}$"):
        Config(**changes)


def test_pairs_that_do_not_matter():
    assert Config(n_draws=7).n_draws == 7  # no draws with actor="marginal"
    assert Config(width=7, symmetric=False).width == 7


@pytest.mark.parametrize("make", [Config, Config.practical, Config().replace])
def test_unknown_field(make):
    with pytest.raises(TypeError, match="widht"):
        make(widht=8)


def test_unknown_field_in_toml():
    with pytest.raises(ValueError, match=r"^widht: no such field; known are .*width"):
        Config.from_toml("widht = 8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 0", r"^width: .*got 0"),
        ("tau = nan", r"^tau: .*got nan"),
        ("family = 'other'", r"^family: .*got 'other'"),
        ("k = 2024-01-01", r"^k: .*2024"),
        ("symmetric = 1", r"^symmetric: .*got 1"),
        ("[width]\nx = 1", r"^width: .*'x'"),
    ],
)
def test_wrong_value_in_toml(text, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Config.from_toml(text)


def test_broken_toml_and_missing_file(tmp_path):
    with pytest.raises(tomllib.TOMLDecodeError):
        Config.from_toml("width = = 3")
    with pytest.raises(FileNotFoundError):
        Config.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["width", "tau", "density_scale"])
def test_whole_floats_and_numpy_floats_are_numbers(name):
    config = Config(**{name: np.float64(8.0)})
    assert config == Config(**{name: 8})
    assert type(getattr(config, name)) is type(getattr(PRESETS["changed"], name))


# The theorem.


def test_what_theorem_5_10_asks_for():
    model = ltde.NetworkedModel(
        ltde.Graph.ring(4),
        3,
        ring_local,
        edge=np.zeros((12, 1)),
        discount=0.9,
        reward_range=(-1.0, 1.0),
    )
    config = Config.theory(0.9, n_iterations=400, critic_steps=10, reward_scale=0.1, width=64)
    text = config.unmet_conditions(model)
    assert [line.partition(":")[0].split(" ")[0] for line in text] == ["T_critic", "M", "gamma"]
    assert "critic_steps = 10, width = 64" in text[0]
    assert f"{9.0**5 * 400**8:.3g}" in text[1]
    # a scale too large, and a field that is not the paper's
    more = config.replace(reward_scale=0.11, baseline="mean_action").unmet_conditions(model)
    assert more[0].startswith("baseline: ")
    assert more[-1].startswith("|Q_s| <= R = 1")
    assert len(more) == 5
    assert any(line.startswith("actor: ") for line in Config().unmet_conditions(model))


def test_a_config_can_meet_the_theorem():
    # one iteration, one action, alone: M >= 1
    def alone(s, mu, node, edge, prob, reward):
        prob[0, 0] = 1.0

    model = ltde.NetworkedModel(ltde.Graph(1, []), 1, alone, discount=0.5, reward_range=(0.0, 1.0))
    config = Config.theory(0.5, n_iterations=1, critic_steps=8, reward_scale=0.5, width=8)
    assert config.unmet_conditions(model) == []

"""Policies in files, and policies of one agent as plain arrays."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
import textwrap

import ltde
import numpy as np
import pytest
import torch
from ltde import checkpoint
from ltde.network_policy import NetworkPolicy
from models import ring_model, star_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FAMILIES = {"softmax": ltde.SoftmaxPolicy, "energy": ltde.EnergyPolicy}
DTYPES = [torch.float32, torch.float64]
FILE = "policy.safetensors"
EFFORT = {"enumeration_limit": 7, "rejection_attempts": 5, "chain_moves": 50}


def make(family, dtype=torch.float64, gain=2.0, **changes):
    """Return a policy of which no argument has its default."""
    options = {"tau": 1.7, "density_scale": 4.3, "input_scale": 0.6, "seed": 3, "dtype": dtype}
    if family == "energy":
        options |= EFFORT
    policy = FAMILIES[family](star_model(4), 8, **(options | changes))
    with torch.no_grad():
        policy.theta *= gain
    return policy


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def same(policy, other):
    """Assert that two policies have the same parameters, laws and draws, bit for bit."""
    assert type(policy) is type(other)
    assert repr(policy) == repr(other)
    assert policy._settings() == other._settings()
    assert policy.state_dict().keys() == other.state_dict().keys()
    for name, tensor in policy.state_dict().items():
        assert tensor.dtype == other.state_dict()[name].dtype
        assert torch.equal(tensor, other.state_dict()[name])
    counts = np.tile([40, 30, 5, 0], (20, 1))
    np.testing.assert_array_equal(policy.sample(counts, 3), other.sample(counts, 3))
    few = policy.sample([1, 2, 1, 0], 4)
    for name in ("log_prob", "score"):
        one, two = (array(getattr(p, name)([1, 2, 1, 0], few)) for p in (policy, other))
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(
        array(policy.mean_action(counts)), array(other.mean_action(counts))
    )
    return True


# Files.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_is_what_it_was(family, dtype, tmp_path):
    policy = make(family, dtype)
    policy.save(tmp_path / FILE)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    for kind in (FAMILIES[family], NetworkPolicy):
        loaded = kind.load(str(tmp_path / FILE))
        assert same(policy, loaded)
        assert [name for name, _ in loaded.named_parameters()] == ["theta"]
        assert loaded.theta.requires_grad
    loaded.log_prob([1, 2, 1, 0], loaded.sample([1, 2, 1, 0], 1)).sum().backward()
    # a mutant: other weights are another policy
    with torch.no_grad():
        loaded.theta[0, 0, 0] += 1.0
    with pytest.raises(AssertionError):
        same(policy, loaded)


def test_the_settings_of_now_are_kept(tmp_path):
    policy = make("energy")
    policy.tau, policy.chain_moves = 0.1 + 0.2, 77
    policy.save(tmp_path / FILE)
    loaded = ltde.EnergyPolicy.load(tmp_path / FILE)
    assert (loaded.tau, loaded.chain_moves, loaded.enumeration_limit) == (0.1 + 0.2, 77, 7)
    policy.theta.data.zero_()
    policy.save(tmp_path / FILE)
    assert not ltde.EnergyPolicy.load(tmp_path / FILE).theta.any()


def test_what_a_file_holds(tmp_path):
    policy = make("energy")
    policy.save(tmp_path / FILE)
    assert load_file(tmp_path / FILE).keys() == {"theta", "b", "action_mask"}
    with safe_open(tmp_path / FILE, framework="np") as file:
        info = json.loads(file.metadata()["ltde"])
    assert len(info.pop("sha256")) == 64
    scales = {"tau": 1.7, "density_scale": 4.3, "input_scale": 0.6}
    assert info == {"format": 1, "family": "energy", **scales, **EFFORT}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_policy_plays_and_trains(family, tmp_path):
    model, policy = star_model(4), make(family)
    policy.save(tmp_path / FILE)
    loaded = NetworkPolicy.load(tmp_path / FILE)
    one, two = (ltde.Simulator(model, 20, 3, seed=1).rollout(p, 5).counts for p in (policy, loaded))
    np.testing.assert_array_equal(one, two)
    score = loaded.score([5, 4, 3, 2], loaded.sample([5, 4, 3, 2], 1))
    with torch.no_grad():
        loaded.theta += score.reshape(loaded.theta.shape)
    other = ltde.Simulator(model, 20, 3, seed=1).rollout(loaded, 5).counts
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_process_needs_no_model(family, tmp_path):
    policy = make(family, torch.float32)
    policy.save(tmp_path / FILE)
    code = f"""
import sys, ltde
policy = ltde.{type(policy).__name__}.load({str(tmp_path / FILE)!r})
print(policy.sample([40, 30, 5, 0], 3).tolist(), "numba" in sys.modules, sep=";")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"{policy.sample([40, 30, 5, 0], 3).tolist()};False"


def test_a_policy_of_another_family_is_refused(tmp_path):
    for family, other in (("softmax", "energy"), ("energy", "softmax")):
        make(family).save(tmp_path / FILE)
        kind = FAMILIES[other]
        with pytest.raises(
            ValueError, match=rf"{FILE}: expected a {kind.__name__}, got .* family '{family}'$"
        ):
            kind.load(tmp_path / FILE)
    tensors, info = checkpoint.read(tmp_path / FILE)
    checkpoint.write(tmp_path / FILE, tensors, {**info, "family": "gibbs"})
    with pytest.raises(ValueError, match=rf"{FILE}: expected a NetworkPolicy, got .*'gibbs'$"):
        NetworkPolicy.load(tmp_path / FILE)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / FILE
    make("softmax").save(path)
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:100], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=FILE):
            ltde.SoftmaxPolicy.load(path)
    path.write_bytes(whole)
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=rf"{FILE}: expected format 1, got None"):
        ltde.SoftmaxPolicy.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ltde.SoftmaxPolicy.load(tmp_path / "nowhere")


@pytest.mark.parametrize("missing", ["theta", "b", "action_mask", "family", "tau", "input_scale"])
def test_a_file_of_something_else_is_refused(missing, tmp_path):
    make("softmax").save(tmp_path / FILE)
    tensors, info = (
        {name: x for name, x in part.items() if name != missing}
        for part in checkpoint.read(tmp_path / FILE)
    )
    checkpoint.write(tmp_path / FILE, tensors, info)
    with pytest.raises(ValueError, match=rf"{FILE}: holds no '{missing}'$"):
        ltde.SoftmaxPolicy.load(tmp_path / FILE)


def test_a_policy_that_does_not_fit_is_not_saved(tmp_path):
    policy = make("softmax")
    policy.save(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    policy.theta = torch.nn.Parameter(policy.theta.detach()[:, :4])
    with pytest.raises(ValueError, match=r"^theta: expected shape"):
        policy.save(tmp_path / FILE)
    policy.theta = torch.nn.Parameter(make("softmax").theta.detach().half())
    with pytest.raises(TypeError, match=r"^theta: expected float32 or float64"):
        policy.save(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == before
    with pytest.raises(NotImplementedError, match="SoftmaxPolicy or EnergyPolicy"):
        NetworkPolicy(star_model(4), 8).save(tmp_path / "other")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_on_a_gpu_is_saved(family, tmp_path):
    make(family).cuda().save(tmp_path / FILE)
    assert same(make(family), NetworkPolicy.load(tmp_path / FILE))


# Policies of one agent.


def closed_form():
    """Return the lines of NumPy in the docstring of `IndividualSoftmax.to_numpy`."""
    text = inspect.getdoc(ltde.IndividualSoftmax.to_numpy)
    lines = textwrap.dedent(text.split("::\n\n")[1])
    assert len(lines.strip().splitlines()) == 5
    return lines


@pytest.mark.parametrize("gain", [1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_closed_form_in_the_docstring(dtype, gain, tmp_path):
    individual = make("softmax", dtype, gain).individual()
    np.savez(tmp_path / "policy", **individual.to_numpy())
    lines = closed_form()
    with np.load(tmp_path / "policy.npz", allow_pickle=False) as file:
        p = dict(file)
    for s in range(4):
        for density in (0.0, 0.25, 0.7, 1.0):
            names = {"np": np, "p": p, "s": s, "density": density}
            exec(lines, names)
            np.testing.assert_allclose(names["probs"], individual(s, density), rtol=1e-12)
            assert names["probs"].sum() == pytest.approx(1.0)
            assert (names["probs"][~p["action_mask"][s]] == 0.0).all()


def test_the_closed_form_reads_every_array():
    individual = make("softmax", gain=1.0).individual()
    p = individual.to_numpy()
    for name, value in p.items():
        names = {"np": np, "p": {**p, name: 0.5 * value}, "s": 1, "density": 0.7}
        if name == "action_mask":
            names["p"][name] = np.ones_like(value)
        exec(closed_form(), names)
        assert np.abs(names["probs"] - individual(1, 0.7)).max() > 1e-3, name


@pytest.mark.parametrize("formula", ["mean", "dirac"])
def test_the_table_of_an_energy_based_policy(formula):
    policy = make("energy", enumeration_limit=100)
    individual = policy.individual(9, formula)
    arrays = individual.to_numpy()
    assert arrays["probs"].shape == (4, 10, 4)
    np.testing.assert_array_equal(arrays["densities"], np.arange(10) / 9)
    for s in range(4):
        for n in range(10):
            np.testing.assert_array_equal(arrays["probs"][s, n], individual(s, n / 9))
            if formula == "mean" and n > 0:
                mean = array(policy.mean_action([n] * 4, 9))[s]
                np.testing.assert_allclose(arrays["probs"][s, n], mean, rtol=1e-12)
    assert not np.allclose(arrays["probs"][:, 1], arrays["probs"][:, 9], atol=1e-3)
    grid = individual.to_numpy([0.0, 0.5])
    np.testing.assert_array_equal(grid["probs"], individual.table([0.0, 0.5]))
    np.testing.assert_array_equal(grid["densities"], [0.0, 0.5])


def test_a_large_table_needs_a_grid():
    policy = make("energy", chain_moves=5, rejection_attempts=1)
    assert policy.individual(1000, "dirac").to_numpy()["probs"].shape == (4, 1001, 4)
    alone = policy.individual(1001, "dirac")
    with pytest.raises(ValueError, match=r"^densities: .*n_agents = 1001 is more than 1000$"):
        alone.to_numpy()
    assert alone.to_numpy(np.linspace(0.0, 1.0, 5))["probs"].shape == (4, 5, 4)


def individuals():
    table = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    yield "table", ltde.TabularPolicy(table).individual()
    yield "softmax", make("softmax").individual()
    yield "mean", make("energy").individual(30)
    yield "dirac", make("energy").individual(30, "dirac")


INDIVIDUALS = dict(individuals())


@pytest.mark.parametrize("name", INDIVIDUALS)
def test_a_table_holds_the_answers(name):
    individual = INDIVIDUALS[name]
    grid = [0.0, 1e-9, 0.1, 0.5, 1.0]
    table = individual.table(grid)
    states = len(table)
    assert table.shape == (states, 5, table.shape[2])
    assert table.dtype == np.float64
    for s in range(states):
        for d, density in enumerate(grid):
            np.testing.assert_array_equal(table[s, d], individual(s, density))
    np.testing.assert_allclose(table.sum(axis=2), 1.0)
    assert np.ptp(table, axis=1).max() > 1e-3 or name == "table"
    assert np.ptp(table, axis=0).max() > 1e-3
    assert individual.table([]).shape == (states, 0, table.shape[2])
    np.testing.assert_array_equal(individual.table([0, 1]), table[:, [0, 4]])


@pytest.mark.parametrize("name", INDIVIDUALS)
def test_an_individual_policy_is_copied_and_pickled(name):
    individual = INDIVIDUALS[name]
    for other in (pickle.loads(pickle.dumps(individual)), copy.deepcopy(individual)):
        assert type(other) is type(individual)
        assert repr(other) == repr(individual)
        np.testing.assert_array_equal(other.table([0.2, 0.9]), individual.table([0.2, 0.9]))
    assert type(individual).__name__ in repr(individual)
    assert len(repr(individual)) < 80


@pytest.mark.parametrize("name", INDIVIDUALS)
def test_arrays_are_of_numpy_and_leave_the_policy_alone(name):
    individual = INDIVIDUALS[name]
    before = individual.table([0.2, 0.9])
    arrays = individual.to_numpy() if name != "mean" else individual.to_numpy([0.2, 0.9])
    for value in arrays.values():
        assert type(value) is np.ndarray
        assert value.dtype in (np.float64, np.bool_)
        value[...] = 0
    np.testing.assert_array_equal(individual.table([0.2, 0.9]), before)


@pytest.mark.parametrize("name", INDIVIDUALS)
@pytest.mark.parametrize(
    ("densities", "error", "match"),
    [
        ([0.5, -0.1], ValueError, r"^densities\[1\]: expected a number in \[0, 1\], got -0.1$"),
        ([1.5], ValueError, r"^densities\[0\]: .*got 1.5$"),
        ([0.0, np.nan], ValueError, r"^densities\[1\]: .*got nan$"),
        (0.5, ValueError, r"^densities: expected shape \(D,\), got \(\)$"),
        ([[0.5]], ValueError, r"^densities: expected shape \(D,\), got \(1, 1\)$"),
        (["0.5"], TypeError, r"^densities: expected real numbers, got dtype <U3$"),
        ([True], TypeError, r"^densities: expected real numbers, got dtype bool$"),
    ],
)
def test_bad_densities(name, densities, error, match):
    with pytest.raises(error, match=match):
        INDIVIDUALS[name].table(densities)


def test_labelled_agents_play_them():
    model = star_model(4)
    policy = make("softmax")
    alone = policy.individual()
    first, second = (
        ltde.AgentSimulator(model, 9, seed=1).rollout(p, 6).counts for p in (policy, alone)
    )
    np.testing.assert_array_equal(first, second)
    arrays, lines = alone.to_numpy(), closed_form()

    def vehicle(state, density):
        names = {"np": np, "p": arrays, "s": state, "density": density}
        exec(lines, names)
        return names["probs"]

    third = ltde.AgentSimulator(model, 9, seed=1).rollout(vehicle, 6).counts
    np.testing.assert_array_equal(first, third)
    other = ltde.AgentSimulator(model, 9, seed=1).rollout(make("energy").individual(9), 6).counts
    assert not np.array_equal(first, other)


def test_a_table_needs_no_torch():
    code = """
import sys, ltde
individual = ltde.TabularPolicy([[0.5, 0.5]]).individual()
individual.to_numpy(), individual.table([0.5]), ltde.IndividualEnergy
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False"]


def test_a_checkpoint_of_a_run_is_no_policy(tmp_path):
    config = ltde.Config(width=8, n_replicas=2, segment=3, n_iterations=1, evaluate_every=0)
    trainer = ltde.LTDENeuralAC(ring_model(4), 12, config, threads=1)
    trainer.fit(run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: "):
        NetworkPolicy.load(tmp_path / "checkpoint.safetensors")
    trainer.policy.save(tmp_path / FILE)
    loaded = ltde.SoftmaxPolicy.load(tmp_path / FILE)
    assert torch.equal(loaded.theta, trainer.policy.theta)
    first, second = (
        ltde.evaluate(ring_model(4), p, 12, 2, 5).values for p in (trainer.policy, loaded)
    )
    np.testing.assert_array_equal(first, second)

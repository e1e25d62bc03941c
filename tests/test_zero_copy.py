"""Results are views of memory that the core filled: shared, long-lived, reusable, not leaked."""

import ctypes
import gc
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import ltde
import numpy as np
import pytest
import torch
from models import random_policy, ring_model
from statcheck import generator

RECORD = ("counts", "actions", "rewards", "flows")


def make(n_states=4, n_agents=1000, n_replicas=2, **options):
    model = ring_model(n_states)
    policy = random_policy(model, generator("zero copy"))
    return ltde.Simulator(model, n_agents, n_replicas, seed=1, **options), policy


def named_arrays(record):
    return {name: getattr(record, name) for name in type(record).__dataclass_fields__}


RESULTS = {
    "step": lambda simulator, policy: simulator.step(policy),
    "rollout": lambda simulator, policy: simulator.rollout(policy, 3, "chain", RECORD),
    "visitation": lambda simulator, policy: simulator.visitation(policy, 3),
}


@pytest.mark.parametrize("n_agents", [1000, np.inf])
@pytest.mark.parametrize("kind", RESULTS)
def test_torch_shares_the_memory_of_every_array(kind, n_agents):
    result = RESULTS[kind](*make(n_agents=n_agents))
    tensors = vars(result.torch())
    arrays = named_arrays(result)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.data_ptr() == array.ctypes.data
        assert tuple(tensor.shape) == array.shape
        assert tensor.is_contiguous()
        assert np.shares_memory(tensor.numpy(), array)
        array.reshape(-1)[0] = 1
        assert tensor.reshape(-1)[0] == 1
        tensor.zero_()
        assert not array.any()


@pytest.mark.parametrize("n_agents", [1000, np.inf])
@pytest.mark.parametrize("kind", RESULTS)
def test_arrays_are_plain_contiguous_writeable_and_apart(kind, n_agents):
    simulator, policy = make(n_agents=n_agents)
    mass = np.float64 if n_agents == np.inf else np.int64
    dtypes = {"rewards": np.float64, "restarted": np.bool_, "horizon": np.int64}
    first, second = (RESULTS[kind](simulator, policy) for _ in range(2))
    arrays = [*named_arrays(first).items(), *named_arrays(second).items()]
    for i, (name, array) in enumerate(arrays):
        assert type(array) is np.ndarray
        assert array.dtype == dtypes.get(name, mass)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not np.shares_memory(array, simulator.counts)
        for _, other in arrays[:i]:
            assert not np.shares_memory(array, other)


def test_arrays_that_were_not_recorded_are_none_in_torch_too():
    simulator, policy = make()
    tensors = simulator.rollout(policy, 2, record=("actions",)).torch()
    assert tensors.counts is tensors.rewards is tensors.flows is None
    assert tensors.actions.dtype == torch.int64
    assert tensors.restarted.dtype == torch.bool


@pytest.mark.parametrize("n_agents", [1000, np.inf])
def test_counts_are_one_array_that_every_call_updates(n_agents):
    simulator, policy = make(n_agents=n_agents)
    counts = simulator.counts
    tensor = torch.from_numpy(counts)
    assert counts is simulator.counts
    assert counts.shape == (2, 4)
    assert tensor.data_ptr() == counts.ctypes.data
    seen = [counts.tobytes()]
    state = simulator.state_dict()
    corner = np.array([1, 0, 0, 0]) * (1 if n_agents == np.inf else n_agents)
    for call in (
        lambda: simulator.step(policy),
        lambda: simulator.rollout(policy, 2, record=()),
        lambda: simulator.rollout(ltde.FunctionPolicy(lambda c, n: policy), 2, record=()),
        lambda: simulator.reset(counts=corner),
        lambda: simulator.step(policy),
        lambda: simulator.load_state_dict(state),
    ):
        call()
        assert simulator.counts is counts
        assert counts.tobytes() != seen[-1]
        assert tensor.numpy().tobytes() == counts.tobytes()
        seen.append(counts.tobytes())
    assert seen[-1] == seen[0]


def test_buffers_outlive_the_simulator():
    simulator, policy = make(n_states=300, threads=2)
    results = [call(simulator, policy) for call in RESULTS.values()]
    counts = simulator.counts
    tensors = [result.torch() for result in results]
    arrays = [array for result in results for array in named_arrays(result).values()]
    before = [array.copy() for array in [*arrays, counts]]
    del simulator, results
    gc.collect()
    filler = [np.full(array.shape, 7) for array in before for _ in range(50)]
    for array, copy in zip([*arrays, counts], before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert int(tensors[0].actions.sum()) == 2000
    assert len(filler) == 50 * len(before)


# out=


@pytest.mark.parametrize("n_agents", [1000, np.inf])
@pytest.mark.parametrize("restart", [None, "chain"])
@pytest.mark.parametrize("function", [False, True])
def test_reused_arrays_hold_what_fresh_ones_would(n_agents, restart, function):
    fresh, policy = make(n_states=70, n_agents=n_agents)
    reusing, _ = make(n_states=70, n_agents=n_agents)
    policy = ltde.FunctionPolicy(lambda counts, n: probs) if function else policy
    probs = random_policy(fresh.model, generator("zero copy"))
    # Few states are occupied, so that what a rollout leaves untouched is seen.
    start = np.zeros(70, dtype=np.int64 if n_agents == 1000 else np.float64)
    start[3] = n_agents if n_agents == 1000 else 1.0
    out = reusing.rollout(policy, 4, restart, RECORD)
    fresh.rollout(policy, 4, restart, RECORD)
    arrays = named_arrays(out)
    for _ in range(3):
        for array in arrays.values():
            array.fill(-1)
        for simulator in (fresh, reusing):
            simulator.reset(counts=start)
        expected = fresh.rollout(policy, 4, restart, RECORD)
        again = reusing.rollout(policy, 4, restart, RECORD, out=out)
        for name, array in named_arrays(again).items():
            assert array is arrays[name]
            np.testing.assert_array_equal(array, getattr(expected, name))


def test_a_part_of_a_rollout_may_be_reused():
    simulator, policy = make()
    out = simulator.rollout(policy, 3, record=RECORD)
    before = out.actions.copy()
    again = simulator.rollout(policy, 3, record=("counts",), out=out)
    assert again.counts is out.counts
    assert again.actions is again.rewards is again.flows is None
    np.testing.assert_array_equal(out.actions, before)


def test_wrong_out_is_refused_before_anything_is_touched():
    simulator, policy = make()
    out = simulator.rollout(policy, 3, record=("counts", "actions"))
    before = {name: None if a is None else a.copy() for name, a in named_arrays(out).items()}
    counts = simulator.counts.copy()

    def changed(**arrays):
        return ltde.Rollout(**(named_arrays(out) | arrays))

    read_only = out.counts.copy()
    read_only.flags.writeable = False
    wrong = [
        (out, 2, ("counts",), r"out\.counts: expected \(\(3, 2, 4\), 'int64'\), got.*\(4, 2, 4\)"),
        (out, 3, ("rewards",), r"out\.rewards: expected .*got None"),
        (changed(actions=out.actions.astype(float)), 3, ("actions",), r"out\.actions.*float64"),
        (changed(counts=np.asfortranarray(out.counts)), 3, ("counts",), r"out\.counts.*C-contig"),
        (changed(counts=read_only), 3, ("counts",), r"out\.counts.*writeable"),
        (changed(restarted=None), 3, ("counts",), r"out\.restarted.*got None"),
    ]
    for bad, steps, record, message in wrong:
        with pytest.raises(ValueError, match=message):
            simulator.rollout(policy, steps, record=record, out=bad)
    for name, array in named_arrays(out).items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(simulator.counts, counts)
    assert simulator.n_steps == 3


# Memory.


@pytest.mark.parametrize("n_agents", [1000, np.inf])
def test_record_nothing_keeps_nothing(n_agents):
    simulator, policy = make(n_agents=n_agents)
    rollout = simulator.rollout(policy, 5, record=())
    assert rollout.counts is rollout.actions is rollout.rewards is rollout.flows is None
    assert rollout.restarted.shape == (5, 2)
    assert simulator.n_steps == 5


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_record_nothing_needs_no_memory_that_grows_with_the_steps():
    # A fault at the first step ends the call at once; what is left is what was prepared. The coins
    # `restarted` take one byte a step, here 20 MB.
    script = r"""
import pathlib, re, ltde, numpy as np
from faulty_models import RAISES, RoadClosed, faulty_model

def peak():  # in kB; ru_maxrss would begin at that of the parent process
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])

model = faulty_model(RAISES, states=range(6))
simulator = ltde.Simulator(model, 10, seed=1)
before = peak()
try:
    simulator.rollout(np.full((6, 2), 0.5), 2 * 10**7, record=())
except RoadClosed:
    print((peak() - before) // 1024)
"""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": here}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50  # MiB


def resident_bytes():
    # what earlier tests freed but the allocator kept would hide growth: give it back first
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def growth(calls, keep):
    """Growth of the resident memory over 1000 calls, after 200 to warm up."""
    kept = []
    for i in range(1200):
        result = calls[i % len(calls)]()
        if keep and i >= 200:
            kept.append(result)
        if i == 200:
            gc.collect()
            before = resident_bytes()
    gc.collect()
    return resident_bytes() - before


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
def test_memory_does_not_grow_over_a_thousand_calls(keep):
    # A call fills 0.1 MB or more, so a leak of one array in ten calls is seen; keeping the results
    # is the mutant. The bound is 10 MB, the noise of an allocator.
    simulator, policy = make(n_states=300, n_replicas=4, threads=2)
    table = ltde.TabularPolicy(policy)
    function = ltde.FunctionPolicy(lambda counts, n: policy)
    out = simulator.rollout(table, 2)
    calls = [
        lambda: simulator.rollout(table, 3, record=RECORD),
        lambda: simulator.rollout(policy, 3, "chain"),
        lambda: simulator.rollout(function, 3),
        lambda: (simulator.rollout(table, 2, out=out), simulator.step(policy).torch()),
        lambda: simulator.visitation(table, 2),
        lambda: (simulator.reset(), simulator.state_dict(), simulator.step(policy)),
    ]
    assert (growth(calls, keep) > 10 * 2**20) == keep


@pytest.mark.parametrize("probs", [np.full((4, 2), 0.5), np.full((4, 3), 0.6)])
def test_out_is_untouched_by_a_call_that_is_refused(probs):
    simulator, policy = make()
    out = simulator.rollout(policy, 3, record=RECORD)
    before = {name: array.copy() for name, array in named_arrays(out).items()}
    with pytest.raises(ValueError, match=r"^probs"):
        simulator.rollout(probs, 3, record=RECORD, out=out)
    for name, array in named_arrays(out).items():
        np.testing.assert_array_equal(array, before[name])


def test_one_out_in_two_threads_is_an_error_and_no_panic():
    simulators = [make()[0] for _ in range(2)]
    policy = make()[1]
    out = simulators[0].rollout(policy, 20_000, record=RECORD)
    errors = []

    def run(simulator):
        try:
            simulator.rollout(policy, 20_000, record=RECORD, out=out)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in simulators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, TypeError) for error in errors), errors

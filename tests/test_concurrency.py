"""Threads, forks and signals around a simulator."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import ltde
import numpy as np
import pytest
from models import random_policy, ring_model
from statcheck import generator

HERE = Path(__file__).parent


def make(n_states=300, threads=1, seed=1):
    model = ring_model(n_states)
    policy = ltde.TabularPolicy(random_policy(model, generator("concurrency")))
    return ltde.Simulator(model, 10**6, n_replicas=2, seed=seed, threads=threads), policy


def steps_for(seconds, threads=1):
    """Count the steps that take about this long here and now."""
    simulator, policy = make(threads=threads)
    n_steps = 64
    while True:
        start = time.perf_counter()
        simulator.rollout(policy, n_steps, record=())
        took = time.perf_counter() - start
        if took > 0.05:
            return int(n_steps * seconds / took)
        n_steps *= 2


# Threads of one process.


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["rollout", "visitation"])
def test_other_python_threads_run_during_a_call(threads, call):
    simulator, policy = make(threads=threads)
    n_steps = steps_for(0.4, threads)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        start = time.perf_counter()
        if call == "rollout":
            simulator.rollout(policy, n_steps, record=())
        else:  # a draw takes ten steps on average
            simulator.visitation(policy, n_steps // 10)
        end = time.perf_counter()
    finally:
        done.set()
        thread.join()
    length = end - start
    # With the GIL held there would be no tick at all; 5 ms are 80 ticks in 0.4 s.
    inside = [t for t in ticks if start + 0.1 * length < t < end - 0.1 * length]
    assert length > 0.1
    assert len(inside) >= 8


@pytest.mark.parametrize("threads", [1, 2])
def test_two_simulators_in_two_threads_give_the_bits_of_one_after_the_other(threads):
    def run(simulator, policy, results):
        for _ in range(20):
            results.append(simulator.rollout(policy, 20, "chain"))
            results.append(simulator.visitation(policy, 2))

    expected = [[], []]
    for i in range(2):
        run(*make(threads=threads, seed=i), expected[i])
    results = [[], []]
    workers = [
        threading.Thread(target=run, args=(*make(threads=threads, seed=i), results[i]))
        for i in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for i in range(2):
        assert len(results[i]) == 40
        for one, other in zip(results[i], expected[i], strict=True):
            np.testing.assert_array_equal(one.counts, other.counts)
            np.testing.assert_array_equal(one.rewards, other.rewards)
    assert not np.array_equal(results[0][0].counts, results[1][0].counts)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_simulator_in_two_threads_raises_and_the_first_call_is_unharmed(threads):
    simulator, policy = make(threads=threads)
    twin, _ = make(threads=threads)
    n_steps = steps_for(0.5, threads)
    running, results = threading.Event(), []

    def run():
        running.set()
        results.append(simulator.rollout(policy, n_steps, record=()))

    worker = threading.Thread(target=run)
    worker.start()
    running.wait()
    time.sleep(0.05)
    refused = []
    for call in (
        lambda: simulator.rollout(policy, 1),
        lambda: simulator.step(policy.probs),
        lambda: simulator.visitation(policy, 1),
        lambda: simulator.reset(),
        lambda: simulator.reset(counts=twin.counts),
        lambda: simulator.rollout(ltde.FunctionPolicy(lambda c, n: policy.probs), 1),
        lambda: simulator.state_dict(),
    ):
        with pytest.raises(RuntimeError, match="running in another thread"):
            call()
        refused.append(worker.is_alive())
    worker.join(60)
    assert all(refused)
    assert len(results) == 1
    twin.rollout(policy, n_steps, record=())
    np.testing.assert_array_equal(simulator.counts, twin.counts)
    simulator.rollout(policy, 1)


def test_the_environment_variable_sets_the_number_of_threads(monkeypatch):
    model = ring_model()
    monkeypatch.setenv("LTDE_NUM_THREADS", "3")
    assert ltde.Simulator(model, 10).threads == 3
    assert ltde.Simulator(model, 10, threads=2).threads == 2
    monkeypatch.delenv("LTDE_NUM_THREADS")
    assert ltde.Simulator(model, 10).threads == len(os.sched_getaffinity(0))
    for text in ("0", "-1", "two", "", "1.5", "65536"):
        monkeypatch.setenv("LTDE_NUM_THREADS", text)
        message = rf"LTDE_NUM_THREADS: expected an integer in \[1, 65536\), got '{text}'"
        with pytest.raises(ValueError, match=message):
            ltde.Simulator(model, 10)
        assert ltde.Simulator(model, 10, threads=1).threads == 1


# In a process of its own: forks and signals.


def run_script(body, *arguments, timeout=60):
    """Run a script, in which the head below has been run, and return what it prints."""
    head = """
        import os, signal, sys, threading, time
        import ltde, numpy as np
        from models import random_policy, ring_model
        threads = int(sys.argv[1])
        model = ring_model(1000, discount=0.999999)
        policy = ltde.TabularPolicy(random_policy(model, np.random.default_rng(1)))
        def make():
            return ltde.Simulator(model, 10**6, n_replicas=2, seed=1, threads=threads)
    """
    script = textwrap.dedent(head) + textwrap.dedent(body)
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_workers_as_asked_for_and_none_for_one_thread(threads):
    lines = run_script(
        """
        def workers():
            names = []
            for task in os.listdir("/proc/self/task"):
                try:
                    with open(f"/proc/self/task/{task}/comm") as file:
                        names.append(file.read())
                except (FileNotFoundError, ProcessLookupError):  # ended in between
                    pass
            return sum(name.startswith("ltde-") for name in names)
        simulator = make()
        simulator.rollout(policy, 2)
        # a worker gives itself its name, maybe after a short call has ended
        deadline = time.monotonic() + 10
        while workers() < (threads if threads > 1 else 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        print(workers())
        del simulator
        deadline = time.monotonic() + 10
        while workers() and time.monotonic() < deadline:
            time.sleep(0.01)
        print(workers())
        """,
        threads,
    )
    assert lines[:2] == ["0" if threads == 1 else str(threads), "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_raises_instead_of_hanging_and_may_make_its_own(threads):
    lines = run_script(
        """
        simulator = make()
        expected = make().rollout(policy, 3).counts
        def child():
            for call in (
                lambda: simulator.rollout(policy, 3),
                lambda: simulator.step(policy.probs),
                lambda: simulator.visitation(policy, 3),
                lambda: simulator.reset(),
                lambda: simulator.rollout(ltde.FunctionPolicy(lambda c, n: policy.probs), 1),
            ):
                try:
                    call()
                except RuntimeError as error:
                    if "before a fork" not in str(error):
                        return 3
                else:
                    return 4
            own = make().rollout(policy, 3).counts
            return 0 if np.array_equal(own, expected) else 5
        pid = os.fork()
        if pid == 0:
            status = 6
            try:
                status = child()
            finally:
                os._exit(status)
        deadline = time.monotonic() + 30
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                print("child", os.waitstatus_to_exitcode(status))
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                print("child hangs")
                break
            time.sleep(0.02)
        print("parent", np.array_equal(simulator.rollout(policy, 3).counts, expected))
        """,
        threads,
    )
    assert lines[:2] == ["child 0", "parent True"]


CALLS = {
    "rollout": "simulator.rollout(policy, 3 * 10**6, record=())",
    "function": (
        "simulator.rollout(ltde.FunctionPolicy(lambda c, n: policy.probs), 3 * 10**6, record=())"
    ),
    "visitation": "simulator.visitation(policy, 20)",
}


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_call_and_leaves_the_simulator_unchanged(threads):
    body = """
        def long_call(simulator, name):
            CALL
        for name in ("rollout", "function", "visitation"):
            simulator, twin = make(), make()
            for s in (simulator, twin):
                s.rollout(policy, 3)
            sent = []
            def interrupt():
                time.sleep(0.4)
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
            timer = threading.Thread(target=interrupt)
            timer.start()
            try:
                long_call(simulator, name)
                outcome = "finished"
            except KeyboardInterrupt:
                outcome = "interrupted"
            late = time.monotonic() - sent[0]
            timer.join()
            same = (
                np.array_equal(simulator.counts, twin.counts)
                and simulator.n_steps == twin.n_steps == 3
                and np.array_equal(
                    simulator.rollout(policy, 4, "chain").actions,
                    twin.rollout(policy, 4, "chain").actions,
                )
            )
            print(name, outcome, same, late < 5.0, f"{late:.2f} s", sep=";")
    """
    calls = "\n            ".join(f'if name == "{name}": {call}' for name, call in CALLS.items())
    lines = run_script(body.replace("CALL", calls, 1), threads)
    for name, line in zip(CALLS, lines, strict=False):
        assert line.startswith(f"{name};interrupted;True;True;"), line
        print(line)


def test_ctrl_c_ends_a_script_with_keyboard_interrupt():
    body = """
        timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
        timer.start()
        try:
            make().rollout(policy, 3 * 10**6, record=())
        except KeyboardInterrupt as error:
            print("stopped", type(error).__name__)
    """
    assert run_script(body, 2)[0] == "stopped KeyboardInterrupt"

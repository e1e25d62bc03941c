"""Time the training of ltde: critics beside autograd, and how an iteration grows.

Run ``python benchmarks/training.py`` from the root of the repository; ``--help`` lists the options.
Each part alternates its contenders within one run, and the figures that count are the ratios.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import report

PACKAGES = ("numpy", "torch", "numba", "ltde")
N_ACTIONS = 5
WIDTH = 64
RATE = 0.01
DISCOUNT = 0.9

LTDE, MODULES, VMAP = "ltde", "loop of modules", "vmap(grad)"
TARGETS = {
    (1024, 1): {MODULES: 100.0},
    (1024, 32): {MODULES: 20.0},
    (1024, 256): {VMAP: 3.0},
}
"""At least this many times the speed of a peer, by number of states and minibatch."""
SIZES = ("24x1", "24x32", "1024x1", "1024x32", "1024x256")
GRIDS = {24: (4, 6), 1024: (32, 32)}

MOST_SIMULATION = 0.2
MOST_STATE_RATIO = 1.5
MOST_POPULATION_RATIO = 1.5
MOST_GIB = 8.0
SIDES = (10, 32, 100, 316)
POPULATIONS = (10**2, 10**3, 10**5, 10**7, 10**9)
PER_STATE = 10
"""Agents in a state, on average."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each turn")
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=SIZES,
        default=list(SIZES),
        help="of the critic part: states x minibatch",
    )
    parser.add_argument(
        "--side", type=int, default=SIDES[-1], help="rows of the largest grid (states, memory)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/performance-training.json"))
    parser.add_argument("--markdown", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--print-only", action="store_true", help="write no file")
    parser.add_argument(
        "--check-targets", action="store_true", help="exit with 1 if a target is missed"
    )
    return parser.parse_args()


def crowd(s, mu, node, edge, prob, reward):  # type: ignore[no-untyped-def]
    """Move as `workload.slip` does; a crowd costs, and so do all actions but the first."""
    n_next = prob.shape[1]
    for a in range(prob.shape[0]):
        for j in range(n_next):
            prob[a, j] = 0.2 / n_next
        prob[a, a % n_next] += 0.8
        reward[a] = -mu[0] - 0.1 * a


def torus_model(rows: int, cols: int) -> Any:
    """Build the model of `crowd` on a torus: every state has four neighbours and itself."""
    import ltde
    import numpy as np

    n_states = rows * cols
    return ltde.NetworkedModel(
        ltde.Graph.grid(rows, cols, torus=True),
        N_ACTIONS,
        crowd,
        initial=np.full(n_states, 1 / n_states),
        discount=DISCOUNT,
    )


# ---- the critic beside autograd -----------------------------------------------------------------


class Samples:
    """A rollout, and the same start for all contenders: TD(0) on its transitions, in order.

    Each state reads the densities and the action distributions of five states: `d = 30`.
    """

    def __init__(self, model: Any, n_replicas: int, n_steps: int) -> None:
        import ltde

        self.model, self.n_steps = model, n_steps
        self.scale = float(model.n_states)
        self.policy = ltde.SoftmaxPolicy(model, WIDTH, density_scale=self.scale)
        self.simulator = ltde.Simulator(
            model, PER_STATE * model.n_states, n_replicas, seed=1, threads=1
        )
        self.rollout = self.simulator.rollout(self.policy, n_steps + 1)

    def play(self) -> int:
        """Simulate and record what the critics learn from."""
        self.simulator.rollout(self.policy, self.n_steps + 1, out=self.rollout)
        return self.n_steps + 1

    def read(self) -> tuple[Any, Any, Any]:
        """Return scaled densities `(T + 1, n, S)`, `h (T + 1, n, S, A)`, rewards `(T, n, S)`."""
        import torch

        counts = torch.from_numpy(self.rollout.counts[:-1]).float()
        h = torch.from_numpy(self.rollout.actions).float()
        h /= counts.clamp(min=1.0).unsqueeze(-1)
        counts *= self.scale / self.simulator.n_agents
        return counts, h, torch.from_numpy(self.rollout.rewards[:-1]).float()

    def gathered(self) -> tuple[list[Any], Any]:
        """Return the inputs of each step, `(n, S, 30)`, and rewards, for contenders without one."""
        import torch

        density, h, rewards = self.read()
        balls = self.model.graph.balls(1)
        ball = torch.from_numpy(balls.indices).view(self.model.n_states, -1)
        inputs = []
        for mu, team in zip(density, h, strict=True):
            around = team[:, ball].transpose(-1, -2).flatten(2)
            inputs.append(torch.cat([mu[:, ball], around], dim=-1) / math.sqrt(1 + ball.shape[1]))
        return inputs, rewards

    def critic(self) -> Any:
        """Return the critics of ltde; the others copy their weights and signs."""
        import torch
        from ltde.critic import Critic

        return Critic(
            self.model.graph,
            1,
            WIDTH,
            n_actions=N_ACTIONS,
            constant_input=False,
            symmetric=False,
            radius=math.inf,
            average=False,
            seed=2,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )


class Closed:
    """The critics of ltde."""

    def __init__(self, samples: Samples) -> None:
        self.samples, self.critic = samples, samples.critic()

    def update(self) -> int:
        """Take all steps, and return how many."""
        density, h, rewards = self.samples.read()
        steps = len(rewards)
        self.critic.td_steps(density, rewards, RATE, order=range(steps), h=h, discount=DISCOUNT)
        return steps

    def weights(self) -> Any:
        """Return the weights of all states, `(S, M, d)`."""
        return self.critic.omega[0]


class Modules:
    """One module and one SGD for each state, in a loop."""

    def __init__(self, samples: Samples) -> None:
        import torch

        class Net(torch.nn.Module):
            def __init__(self, weights: Any, signs: Any) -> None:
                super().__init__()
                self.weights = torch.nn.Parameter(weights.clone())
                self.register_buffer("signs", signs)

            def forward(self, x: Any) -> Any:
                return (x @ self.weights.T).relu() @ self.signs / math.sqrt(WIDTH)

        self.samples, start = samples, samples.critic()
        self.nets = [Net(w, b) for w, b in zip(start.omega[0], start.b[0], strict=True)]
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=RATE) for net in self.nets]

    def update(self) -> int:
        """Take all steps, and return how many."""
        import torch

        inputs, rewards = self.samples.gathered()
        steps = len(rewards)
        for t in range(steps):
            for s, (net, optimizer) in enumerate(zip(self.nets, self.optimizers, strict=True)):
                with torch.no_grad():
                    target = rewards[t][:, s] + DISCOUNT * net(inputs[t + 1][:, s])
                optimizer.zero_grad()
                (0.5 * (net(inputs[t][:, s]) - target).square().mean()).backward()
                optimizer.step()
        return steps

    def weights(self) -> Any:
        """Return the weights of all states, `(S, M, d)`."""
        import torch

        return torch.stack([net.weights.detach() for net in self.nets])


class Mapped:
    """All states at once by `torch.func`."""

    def __init__(self, samples: Samples) -> None:
        import torch

        self.samples, start = samples, samples.critic()
        self.omega, self.signs = start.omega[0].contiguous(), start.b[0]

        def loss(weights: Any, signs: Any, x: Any, after: Any, reward: Any) -> Any:
            def value(x: Any) -> Any:
                return (x @ weights.T).relu() @ signs / math.sqrt(WIDTH)

            target = (reward + DISCOUNT * value(after)).detach()
            return 0.5 * (value(x) - target).square().mean()

        self.gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0, 1, 1, 1))

    def update(self) -> int:
        """Take all steps, and return how many."""
        inputs, rewards = self.samples.gathered()
        steps = len(rewards)
        for t in range(steps):
            step = self.gradient(self.omega, self.signs, inputs[t], inputs[t + 1], rewards[t])
            self.omega.sub_(step, alpha=RATE)
        return steps

    def weights(self) -> Any:
        """Return the weights of all states, `(S, M, d)`."""
        return self.omega


def critic(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Compare rollout and update of the critics with two ways to leave the gradient to autograd."""
    results = []
    rows = []
    for size in options.sizes:
        n_states, minibatch = map(int, size.split("x"))
        model = torus_model(*GRIDS[n_states])
        require_same_weights(model, minibatch)
        # the loop over modules is slow: few steps a call are enough to hide the overhead of one
        played = Samples(model, minibatch, 4 if minibatch > 100 else 16)
        short = Samples(model, minibatch, 2)
        contenders = {
            LTDE: Closed(played),
            MODULES: Modules(short),
            VMAP: Mapped(played),
        }
        timed = report.round_robin(
            {"rollout": played.play, **{name: x.update for name, x in contenders.items()}},
            options.rounds,
            options.seconds,
        )
        cells = [report.number(report.typical(timed, name) * 1e3) for name in timed[0]]
        for peer in (MODULES, VMAP):
            whole = median(
                (times["rollout"] + times[peer]) / (times["rollout"] + times[LTDE])
                for times in timed
            )
            name = f"critic, S = {n_states}, minibatch {minibatch}: times {peer}"
            target = TARGETS.get((n_states, minibatch), {}).get(peer)
            result = (
                {"name": name, "value": whole} if target is None else _judged(name, whole, target)
            )
            result["update_only"] = report.ratio(timed, [peer], LTDE)
            result["ms"] = {key: report.typical(timed, key) * 1e3 for key in timed[0]}
            results.append(result)
            cells += [report.number(result["update_only"]), _verdict_cell(result)]
            cells[-1] += "" if target is None else f" ({target:.0f})"
        rows.append([f"{n_states}, {WIDTH}, 30, {minibatch}", *cells])
    header = ["S, M, d, minibatch", "rollout, ms", "ltde, ms", "modules, ms", "vmap(grad), ms"]
    for peer in ("modules", "vmap(grad)"):
        header += [f"update: times {peer}", f"**whole step: times {peer}** (target)"]
    return results, report.table(header, rows)


def require_same_weights(model: Any, minibatch: int) -> None:
    """Make sure that all contenders learn the same from the same samples."""
    import torch

    samples = Samples(model, minibatch, 2)
    contenders = [Closed(samples), Modules(samples), Mapped(samples)]
    start = contenders[0].weights().clone()
    for contender in contenders:
        contender.update()
    moved = [contender.weights() - start for contender in contenders]
    for other in moved[1:]:
        torch.testing.assert_close(
            other, moved[0], rtol=1e-3, atol=1e-3 * float(start.std()) * RATE
        )
    if not float(moved[0].abs().max()) > 0.0:
        raise RuntimeError("the critics did not learn")


# ---- whole iterations ---------------------------------------------------------------------------


def trainer(model: Any, n_agents: float, **changes: Any) -> Callable[[], int]:
    """Return a function that does one more iteration with `Config.practical`."""
    import ltde

    config = ltde.Config.practical(evaluate_every=0, **changes)
    learner = ltde.LTDENeuralAC(model, n_agents, config, threads=1)

    def call() -> int:
        learner.fit(n_iterations=learner.iteration + 1)
        return 1

    return call


def sioux(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Measure the share of the simulation in a training on the Sioux Falls road network."""
    import ltde
    from ltde.envs import RoadRouting

    model = RoadRouting("sioux-falls", destination=10).model
    timed: report.Rounds = []
    for seed in range(options.rounds):
        config = ltde.Config.practical(n_iterations=40, evaluate_every=0, seed=seed)
        learner = ltde.LTDENeuralAC(model, 4000, config, threads=1)
        simulator = learner.learner.simulator
        spent, rollout = [], simulator.rollout

        def timed_rollout(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = rollout(*args, **options)  # noqa: B023  called within this turn of the loop
            spent.append(time.perf_counter() - start)  # noqa: B023
            return result

        simulator.rollout = timed_rollout
        start = time.perf_counter()
        learner.fit(progress=False)
        whole = time.perf_counter() - start
        timed.append({"simulation": sum(spent) / 40, "iteration": whole / 40, "first": spent[0]})
    result = _judged(
        "share of simulation on Sioux Falls",
        report.ratio(timed, ["simulation"], "iteration"),
        MOST_SIMULATION,
        at_most=True,
    )
    result["ms"] = {name: report.typical(timed, name) * 1e3 for name in timed[0]}
    names = ["simulation, ms", "iteration, ms", "first simulation, ms", "share", "target"]
    text = report.table(
        ["Sioux Falls, N = 4000, 40 iterations", *names],
        [
            [
                f"T = {config.segment}, B = {config.n_replicas}",
                *map(report.number, result["ms"].values()),
                _verdict_cell(result),
                f"at most {MOST_SIMULATION}",
            ]
        ],
    )
    return [result], text


def states(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Compare the time of an iteration per state on small and large grids."""
    sides = [side for side in SIDES if side < options.side] + [options.side]
    sizes = {f"{side * side:,}": side for side in sides}
    calls = {
        name: trainer(torus_model(side, side), PER_STATE * side * side, segment=4, n_replicas=4)
        for name, side in sizes.items()
    }
    timed = report.round_robin(calls, options.rounds, options.seconds)
    per_state = [{name: times[name] / sizes[name] ** 2 for name in sizes} for times in timed]
    first, last = f"{sides[0] ** 2:,}", f"{sides[-1] ** 2:,}"
    result = _judged(
        f"time per state, |S| = {last} against {first}",
        report.ratio(per_state, [last], first),
        MOST_STATE_RATIO,
        at_most=True,
    )
    result["us_per_state"] = {name: report.typical(per_state, name) * 1e6 for name in sizes}
    text = report.table(
        ["states, T = 4, B = 4", *sizes, "last against first", "target"],
        [
            [
                "iteration, ms",
                *(report.number(report.typical(timed, x) * 1e3) for x in sizes),
                "",
                "",
            ],
            [
                "per state, us",
                *map(report.number, result["us_per_state"].values()),
                _verdict_cell(result),
                f"at most {MOST_STATE_RATIO}",
            ],
        ],
    )
    return [result], text


def agents(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Compare the time of an iteration with few and with many agents."""
    model = torus_model(10, 10)
    timed = report.round_robin(
        {f"{n:,}": trainer(model, n) for n in POPULATIONS}, options.rounds, options.seconds
    )
    first, last = f"{POPULATIONS[0]:,}", f"{POPULATIONS[-1]:,}"
    result = _judged(
        f"iteration, N = {last} against {first}",
        report.ratio(timed, [last], first),
        MOST_POPULATION_RATIO,
        at_most=True,
    )
    result["ms"] = {name: report.typical(timed, name) * 1e3 for name in timed[0]}
    text = report.table(
        ["agents, 10x10", *timed[0], "last against first", "target"],
        [
            [
                "iteration, ms",
                *map(report.number, result["ms"].values()),
                _verdict_cell(result),
                f"at most {MOST_POPULATION_RATIO}",
            ]
        ],
    )
    return [result], text


def memory(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Measure the peak memory of an iteration on the largest grid."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as child:
        peak, before = child.submit(one_iteration, options.side).result()
    n_states = options.side**2
    result = _judged(f"peak memory, |S| = {n_states:,}, GiB", peak, MOST_GIB, at_most=True)
    result["gib_before"] = before
    text = report.table(
        ["peak memory of an iteration, GiB", "before", "peak", "target"],
        [
            [
                f"{n_states:,} states, M = {WIDTH}, k = 1",
                report.number(before),
                _verdict_cell(result),
                f"at most {MOST_GIB}",
            ]
        ],
    )
    return [result], text


def one_iteration(side: int) -> tuple[float, float]:
    """Train one iteration, in a process of its own; return GiB at the peak and before."""
    report.use_one_thread(pin=False)
    import ltde  # noqa: F401
    import torch  # noqa: F401

    model = torus_model(side, side)
    before = report.peak_memory()
    trainer(model, PER_STATE * side * side, width=WIDTH, k=1)()
    return report.peak_memory() / 2**30, before / 2**30


def _judged(name: str, value: float, target: float, *, at_most: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "target": target,
        "verdict": report.verdict(value, target, at_most=at_most),
    }


def _verdict_cell(result: dict[str, Any]) -> str:
    return f"{report.number(result['value'])} {result.get('verdict', '')}".strip()


PARTS: dict[str, Callable[[argparse.Namespace], tuple[list[dict[str, Any]], str]]] = {
    "critic": critic,
    "sioux": sioux,
    "states": states,
    "agents": agents,
    "memory": memory,
}
"""By the name used on the command line; each part returns its results and its tables."""


def main() -> int:
    options = parse_arguments()
    report.use_one_thread()
    import torch

    torch.set_num_threads(1)
    results = []
    texts = []
    for part in options.parts:
        measured, text = PARTS[part](options)
        results += measured
        texts.append(text)
        print(f"{text}\n", flush=True)
    if not options.print_only:
        report.write(
            {"machine": report.machine(PACKAGES), "results": results},
            "\n\n".join(texts),
            "training",
            json_path=options.out,
            markdown_path=options.markdown,
        )
    missed = [result for result in results if result.get("verdict") == "missed"]
    for result in missed:
        print(f"missed: {result['name']}: {result['value']:.2f}", file=sys.stderr)
    return 1 if missed and options.check_targets else 0


if __name__ == "__main__":
    sys.exit(main())

"""How large must k be? How fast a Q-function forgets what lies outside the ball of radius k.

Scooters roam a city of 12 x 12 zones. A rider leaves the zone the sooner the more scooters stand
there, and heads for neighbouring zones that are emptier. `decay_profile` changes everything outside
the ball around a zone, keeps all inside, and measures the change of the Q-function of that zone.

`--plot PATH` writes the picture, which needs matplotlib.
"""

import argparse
import math

import ltde
import numpy as np
from ltde.diagnostics import DecayProfile, decay_profile
from numpy.typing import ArrayLike

SIDE = 12
SCOOTERS = 576
ZONES = [0, 66]  # a corner and the middle
K_MAX = 6
DISCOUNTS = 0.7, 0.9
TOLERANCE = 0.1


def ride(s, mu, node, edge, prob, reward):
    """Wait (action 0) or go to a neighbouring zone (action 1); scooters share the demand."""
    total = 0.0
    for i in range(mu.size):
        if edge[i, 0] == 0.0:
            prob[0, i] = 1.0
            reward[:] = 1.0 / (1.0 + mu[i] / node[0])
        else:
            prob[1, i] = math.exp(-0.2 * mu[i] / node[0])
            total += prob[1, i]
    for i in range(mu.size):
        prob[1, i] /= total


def build(discount: float) -> ltde.NetworkedModel:
    graph = ltde.Graph.grid(SIDE, SIDE)
    zone = np.repeat(np.arange(graph.n_states), np.diff(graph.indptr))
    return ltde.NetworkedModel(
        graph,
        n_actions=2,
        local=ride,
        node=np.full(graph.n_states, 1.0 / graph.n_states),  # demand of the zone
        edge=(graph.indices != zone).astype(np.float64),
        initial=ltde.DirichletInitial(np.full(graph.n_states, 0.05)),  # most start in a few zones
        discount=discount,
        reward_range=(0.0, 1.0),
    )


def decide(state: int, density: float) -> ArrayLike:
    """Probabilities to wait and to leave."""
    leave = min(0.9, 0.2 + 0.1 * SIDE**2 * density)
    return [1.0 - leave, leave]


def measure(discount: float) -> DecayProfile:
    return decay_profile(
        build(discount),
        decide,
        K_MAX,
        n_agents=SCOOTERS,
        states=ZONES,
        n_pairs=6,
        n_replicas=24,
        reward_span=1.0 / SIDE**2,  # a team earns mu / (1 + mu / demand) < demand
        seed=1,
    )


def draw(profiles: list[DecayProfile], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(profiles), sharey=True)
    for axes, profile in zip(panels, profiles, strict=True):
        k = profile.suggest(TOLERANCE)
        if k is not None:
            axes.axvline(k, color="0.6", ls=":", label=f"suggested: k = {k}")
        profile.plot(axes).label_outer()
    figure.suptitle(f"{SCOOTERS} scooters on {SIDE} x {SIDE} zones", fontsize=11)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="PATH", help="write the picture to this file")
    plot = parser.parse_args().plot
    profiles = [measure(discount) for discount in DISCOUNTS]
    print("Change of Q by what is outside the ball, with standard error:\n")
    print("  k" + "".join(f"   {f'discount {p.discount}':>21}" for p in profiles))
    for k in range(K_MAX + 1):
        print(f"{k:3d}", end="")
        for profile in profiles:
            worst = profile.profile[k].argmax()
            value, error = profile.profile[k, worst], profile.profile_error[k, worst]
            print(f"   {value:.6f} +- {error:.6f}", end="")
        print()
    print(f"\nSmallest k that leaves at most {TOLERANCE:.0%} of what k = 0 leaves:\n")
    for profile in profiles:
        k = profile.suggest(TOLERANCE)
        print(f"  discount {profile.discount}:", f"more than {K_MAX}" if k is None else f"k = {k}")
    if plot:
        draw(profiles, plot)


if __name__ == "__main__":
    main()

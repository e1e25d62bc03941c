"""Learner and oracle: Braess's network with a few agents, of which everything is known exactly.

`ltde.exact` enumerates all states of `N` agents, so every number printed is exact:

uniform    the value J of choosing links with equal chance
learned    of a policy trained with these N agents
of 4,000   of one policy trained with 4,000 agents, unchanged at every N
best       the best that was found among all decentralised policies, by exact gradients: an agent
           sees its state and how many are there
bound      what a controller would reach who sees all agents and tells each what to do
reached    how far the learned policy gets from uniform to best

With a table for every number of agents on a link there are few parameters, and the search starts
from the learned policy and from the uniform one.
"""

import argparse
import math

import ltde
import numpy as np
from ltde.envs import RoadRouting
from ltde.exact import ExactSystem
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import gammaln, log_softmax, xlogy

FLOOR = 1e-5  # probability from which the search lets an action recover
LARGEST_LOGIT = 12.0


class Table:
    """The most general decentralised policy: logits `(S, N + 1, A)` by state and number there."""

    def __init__(self, model: ltde.NetworkedModel, logits: NDArray[np.float64]) -> None:
        masked = np.where(model.action_mask[:, None], logits, -np.inf)
        self.probs = np.exp(log_softmax(masked, axis=-1))

    def log_prob(self, counts: ArrayLike, actions: ArrayLike, n_agents: int) -> NDArray[np.float64]:
        """Return the logarithms of multinomial probabilities, `(..., S)`."""
        counts, actions = np.asarray(counts), np.asarray(actions)
        probs = self.probs[np.arange(counts.shape[-1]), counts]
        terms = xlogy(actions, probs) - gammaln(actions + 1.0)
        return gammaln(counts + 1.0) + terms.sum(axis=-1)

    def score(self, counts: ArrayLike, actions: ArrayLike, n_agents: int) -> NDArray[np.float64]:
        """Return their gradients in the logits of each state, `(..., S, N + 1, A)`."""
        counts, actions = np.asarray(counts), np.asarray(actions)
        probs = self.probs[np.arange(counts.shape[-1]), counts]
        gradient = np.zeros((*counts.shape, *self.probs.shape[1:]))
        gradient[(*np.indices(counts.shape), counts)] = actions - counts[..., None] * probs
        return gradient


def search(model: ltde.NetworkedModel, n_agents: int, start: NDArray[np.float64]) -> float:
    """Climb from a table of probabilities along the exact gradient, and return the value."""

    def loss(logits: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        exact = ExactSystem(model, n_agents, Table(model, logits.reshape(start.shape)))
        return -exact.J, -exact.gradient().ravel()

    bounds = [(-LARGEST_LOGIT, LARGEST_LOGIT)] * start.size
    first = np.log(np.maximum(start, FLOOR)).ravel()
    return -float(minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds).fun)


def train(model: ltde.NetworkedModel, n_agents: int) -> ltde.SoftmaxPolicy:
    return ltde.LTDENeuralAC(model, n_agents, ltde.Config.practical()).fit().best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--agents", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="numbers of agents"
    )
    model = RoadRouting("braess", step=10.0, discount=0.95).model
    uniform = ltde.TabularPolicy.uniform(model)
    of_many = train(model, 4_000)
    print("Exact values in Braess's network, discounted trips of an agent:\n")
    print("  N   uniform   learned  of 4,000      best     bound   reached")
    for n_agents in parser.parse_args().agents:
        learned = train(model, n_agents)
        exact = ExactSystem(model, n_agents, uniform)
        low, value, other = (
            exact.J,
            ExactSystem(model, n_agents, learned).J,
            ExactSystem(model, n_agents, of_many).J,
        )
        densities = np.arange(n_agents + 1) / n_agents
        starts = [policy.individual().table(densities) for policy in (learned, uniform)]
        best = max(value, other, *(search(model, n_agents, start) for start in starts))
        bound = float(exact.initial_law @ exact.optimal_value)
        share = (value - low) / (best - low) if best > low else math.nan
        print(
            f"{n_agents:3d}{low:10.5f}{value:10.5f}{other:10.5f}{best:10.5f}{bound:10.5f}"
            f"{share:10.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()

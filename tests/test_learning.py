"""What the practical preset reaches, with no setting changed, against exact optima."""

import math

import ltde
import numpy as np
import pytest
import solvable
import torch
from ltde.exact import ExactSystem
from ltde.multinomial import multinomial_log_prob
from scipy.optimize import minimize
from statcheck import generator

# N, J of the uniform policy, and the best J of a decentralised one (`test_the_best_are_the_best`).
SYSTEMS = {
    "ring": (8, 3.6876612796798045, 9.712374),
    "braess": (6, 1.5942018601626473, 1.702048),
    "line": (12, 0.3253433315877218, 2.211189),
}


def uniform(model):
    return model.action_mask / model.action_mask.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SYSTEMS)
def test_97_percent_of_the_gap(name, seed):
    # seeds reach 98.1 % to 99.9 %
    n_agents, low, high = SYSTEMS[name]
    model = getattr(solvable, name)()
    config = ltde.Config.practical(seed=seed)
    result = ltde.LTDENeuralAC(model, n_agents, config, threads=1).fit()
    reached = ExactSystem(model, n_agents, result.best).J
    assert reached - low >= 0.97 * (high - low)
    assert reached <= high + 1e-6


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_value_of_the_uniform_policy(name):
    n_agents, low, _ = SYSTEMS[name]
    model = getattr(solvable, name)()
    value = ExactSystem(model, n_agents, uniform(model)).J
    assert value == pytest.approx(low, rel=1e-12)


class Table:
    """The most general decentralised policy: logits for every state and number of agents there."""

    def __init__(self, model, logits):
        masked = np.where(model.action_mask[:, None, :], logits, -np.inf)
        weights = np.exp(masked - masked.max(-1, keepdims=True))
        self.probs = weights / weights.sum(-1, keepdims=True)

    def log_prob(self, counts, actions, n_agents=None):
        """Return `log Pi_s`, as `ExactSystem` asks for it."""
        counts, actions = np.asarray(counts), np.asarray(actions, dtype=np.float64)
        pi = self.probs[np.arange(len(self.probs)), counts]
        return multinomial_log_prob(torch.from_numpy(actions), torch.from_numpy(pi).log())

    def score(self, counts, actions, n_agents=None):
        """Return its gradient in the logits."""
        counts, actions = np.asarray(counts), np.asarray(actions)
        pi = self.probs[np.arange(len(self.probs)), counts]
        result = np.zeros((*counts.shape, *self.probs.shape[1:]))
        result[(*np.indices(counts.shape), counts)] = actions - counts[..., None] * pi
        return torch.from_numpy(result)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_best_are_the_best(name):
    # Exact-gradient search over all tables, from the learned policy and from random ones.
    n_agents, _, high = SYSTEMS[name]
    model = getattr(solvable, name)()
    shape = (model.n_states, n_agents + 1, model.n_actions)

    def loss(x):
        exact = ExactSystem(model, n_agents, Table(model, x.reshape(shape)))
        return -exact.J, -np.asarray(exact.gradient()).ravel()

    learned = ltde.LTDENeuralAC(model, n_agents, threads=1).fit().best.individual()
    near = learned.table(np.arange(n_agents + 1) / n_agents)
    starts = [np.log(np.maximum(near, 1e-5)), np.zeros(shape)]
    starts += list(generator(f"best {name}").normal(size=(2, *shape)))
    found = [
        minimize(
            loss,
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-15.0, 15.0)] * math.prod(shape),
            options={"maxiter": 150},
        )
        for start in starts
    ]
    assert -min(one.fun for one in found) == pytest.approx(high, rel=1e-4)

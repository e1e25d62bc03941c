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


@pytest.mark.parametrize("n_agents", [10**6, math.inf])
def test_it_learns_at_any_number_of_agents(n_agents):
    # 14.9 of the 15.1 that long runs reach; the uniform policy has 5.9
    model = solvable.ring(16)
    config = ltde.Config.practical(n_iterations=50)
    result = ltde.LTDENeuralAC(model, n_agents, config, threads=1).fit()
    assert ltde.evaluate(model, uniform(model), n_agents, seed=1).mean < 6.5
    reached = ltde.evaluate(model, result.best, n_agents, seed=1)
    assert reached.mean > 14.5
    # the same policy with a thousand agents, without retraining
    assert ltde.evaluate(model, result.best, 1000, seed=1).mean > 14.0


def errand_local(s, mu, node, edge, prob, reward):
    """Head for a neighbour; crowds slow the way and cost; worth, prices and slowness differ."""
    n, here = mu.size, 0
    for i in range(n):
        if edge[i, 0] == 1.0:
            here = i
    for a in range(prob.shape[0]):
        to = a % n
        arrive = edge[to, 1] / (1.0 + node[2] * mu[to])
        prob[a, here] += 1.0 - arrive
        prob[a, to] += arrive
        reward[a] = node[0] - node[1] * mu[here]
        if to != here:
            reward[a] -= edge[to, 2]


def errands(seed):
    """Return a random network and model; rewards of any size, hubs, discounts up to 0.99."""
    rng = generator(f"errands {seed}")
    n = int(rng.integers(5, 40))
    tree = [[i, int(rng.integers(0, i))] for i in range(1, n)]
    more = rng.integers(0, n, (n // 2, 2)).tolist()
    graph = [ltde.Graph.ring(n), ltde.Graph(n, tree + more), ltde.Graph.grid(2, n)][seed % 3]
    n, degrees = graph.n_states, np.diff(graph.indptr)
    n_actions = int(min(6, degrees.max()))
    size = rng.choice([0.01, 1.0, 100.0])
    node = rng.exponential(size=(n, 3)) * [size, size * rng.choice([1, 10, n]), n]
    node[:, 2] *= rng.choice([0.0, 0.3])
    own = np.concatenate([graph.neighbors(s) == s for s in range(n)])
    edge = np.stack(
        [own, rng.uniform(0.3, 1.0, len(own)), 0.1 * size * rng.exponential(size=len(own))], axis=1
    )
    return ltde.NetworkedModel(
        graph,
        n_actions,
        errand_local,
        node=node,
        edge=edge,
        action_mask=np.arange(n_actions) < degrees[:, None],
        initial=rng.dirichlet(np.ones(n)),
        discount=float(rng.choice([0.8, 0.95, 0.99])),
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    # Without any setting: better than uniform, and than taking the best immediate reward.
    model = errands(seed)
    n_agents = 1000
    result = ltde.LTDENeuralAC(model, n_agents, ltde.Config.practical(n_iterations=50)).fit()
    reached = ltde.evaluate(model, result.best, n_agents, seed=1)
    plain = ltde.evaluate(model, uniform(model), n_agents, seed=1)
    gain = reached.minus(plain)
    assert gain.interval[0] > 0.0
    reward = model.evaluate(np.full(model.n_states, 1.0 / model.n_states))[1]
    greedy = np.where(model.action_mask, reward, -np.inf).argmax(1)
    myopic = ltde.evaluate(model, np.eye(model.n_actions)[greedy], n_agents, seed=1)
    assert reached.minus(myopic).interval[0] > 0.0

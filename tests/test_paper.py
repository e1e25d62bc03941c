"""The paper as tests, up to Proposition 3.6: a test for each displayed equation or lemma.

Gu, Guo, Wei, Xu, arXiv 2108.02731v2. Every system is small and random, and solved twice: by
`ltde.exact`, and here by plain loops over labelled agents, which share no code with it. Where the
paper is wrong, a test shows that what is printed fails and that what we use holds;
docs/corrections.md explains, with the numbers that the functions `numbers_...` compute.
"""

import math
from collections import defaultdict
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path

import ltde
import numpy as np
import pytest
import torch
from exact_law import compositions, labelled_step_law, local_tables, multinomial_pmf
from ltde.exact import ExactSystem

EXACT = {"rtol": 0.0, "atol": 1e-10}  # dense solves of a few hundred equations of order 1
CLEAR = 1e-3  # a difference that is no rounding


# Random systems.


def random_local(s, mu, node, edge, prob, reward):
    """Chances edge[i, a] exp(edge[i, A + a] mu_i), divided by their sum; rewards of both signs.

    Both depend on all of mu(N_s). node = (rewards, flags of allowed actions); masked rows are NaN.
    """
    n_actions = reward.size
    for a in range(n_actions):
        if node[n_actions + a] == 0.0:
            reward[a] = math.nan
            for i in range(mu.size):
                prob[a, i] = math.nan
            continue
        total = 0.0
        reward[a] = node[a]
        for i in range(mu.size):
            prob[a, i] = edge[i, a] * math.exp(edge[i, n_actions + a] * mu[i])
            total += prob[a, i]
            reward[a] += edge[i, 2 * n_actions + a] * mu[i]
        for i in range(mu.size):
            prob[a, i] /= total


def random_graph(rng, n_states):
    """Draw a connected graph, rather long: a tree, and one more edge with probability 1/2."""
    edges = [(v, int(rng.integers(max(0, v - 2), v))) for v in range(1, n_states)]
    if rng.random() < 0.5:
        edges.append(tuple(rng.integers(0, n_states, 2).tolist()))
    return ltde.Graph(n_states, np.array(edges))


class AnyPolicy:
    """Any policy of `u`, Eq. (2.8): a random law for every state and every density n / N."""

    def __init__(self, rng, mask, n_agents):
        self.n_agents = n_agents
        table = rng.uniform(0.05, 1.0, (n_agents + 1, *mask.shape)) ** 2 * mask
        self.table = table / table.sum(axis=-1, keepdims=True)

    def __call__(self, state, density):
        """Return the probabilities of the actions."""
        return self.table[round(density * self.n_agents), state]


class Team:
    """A team policy for `ExactSystem`, from `law(s, n, density) -> {c: probability}`."""

    def __init__(self, law):
        self.law = law

    def log_prob(self, counts, actions, n_agents):
        """Return log Pi_s(h(s) | mu(s)), (..., S)."""
        result = np.full(counts.shape, -np.inf)
        for index in np.ndindex(*counts.shape):
            law = self.law(index[-1], int(counts[index]), counts[index] / n_agents)
            p = law.get(tuple(actions[index].tolist()), 0.0)
            result[index] = math.log(p) if p > 0.0 else -math.inf
        return result


def induced(pi):
    """Return the team policy that `pi` induces, by (3.2)."""

    def law(s, n, density):
        p = pi(s, density)
        return {c: q for c in compositions(n, len(p)) if (q := multinomial_pmf(c, p)) > 0.0}

    return Team(law)


class System:
    """A model, a policy, and the oracle: everything from labelled agents, by plain loops.

    Pairs (mu, h) are `keys`, tuples (n(.), c(., .)); arrays have a row for each. `pi` is the policy
    of one agent, if `policy` is induced by one, and None for (4.4).
    """

    def __init__(self, model, n_agents, policy, pi):
        self.model, self.n_agents, self.policy, self.pi = model, n_agents, policy, pi
        self.n_states, self.gamma = model.n_states, model.discount
        self.exact = ExactSystem(model, n_agents, policy)

    def team_law(self, s, n, density):
        """Law of c(s, .) for n agents of s who see `density`: (3.1) by definition, or (4.4)."""
        n_actions = self.model.n_actions
        allowed = np.flatnonzero(self.model.action_mask[s])
        law = defaultdict(float)
        if self.pi is not None:
            p = self.pi(s, density)
            for drawn in product(allowed, repeat=n):
                c = tuple(np.bincount(np.array(drawn, int), minlength=n_actions).tolist())
                law[c] += math.prod(p[a] for a in drawn)
            return dict(law)
        if n == 0:
            return {(0,) * n_actions: 1.0}
        theta, b = (x[s].detach().numpy() for x in (self.policy.theta, self.policy.b))
        for part in compositions(n, len(allowed)):
            c = np.zeros(n_actions, int)
            c[allowed] = part
            zeta = [self.policy.density_scale * density, *(c / n)]
            f = sum(b[m] * max(0.0, theta[m] @ zeta) for m in range(len(b))) / math.sqrt(len(b))
            law[tuple(c.tolist())] = math.exp(self.policy.tau * f)
        total = math.fsum(law.values())
        return {c: weight / total for c, weight in law.items()}

    @cached_property
    def states(self):
        """Counts of every mu."""
        return compositions(self.n_agents, self.n_states)

    @cached_property
    def keys(self):
        """The set Xi of (3.4), by plain loops."""
        keys = []
        for counts in self.states:
            teams = [
                [c for c in compositions(n, len(mask)) if not np.array(c)[~mask].any()]
                for n, mask in zip(counts, self.model.action_mask, strict=True)
            ]
            keys += [(counts, sum(team, ())) for team in product(*teams)]
        return keys

    @cached_property
    def row(self):
        """Row of every pair, and of every mu."""
        rows = {key: i for i, key in enumerate(self.keys)}
        return rows | {counts: i for i, counts in enumerate(self.states)}

    @cached_property
    def of(self):
        """Row of the mu of every pair."""
        return np.array([self.row[counts] for counts, _ in self.keys])

    def actions(self, key):
        """Return c of a pair, (S, A)."""
        return np.reshape(key[1], self.model.action_mask.shape)

    @cached_property
    def transition(self):
        """P_N(mu' | mu, h), from one labelled arrangement of every pair."""
        result = np.zeros((len(self.keys), len(self.states)))
        for i, key in enumerate(self.keys):
            for after, p in self.moved(key).items():
                result[i, self.row[after]] = p
        return result

    def moved(self, key):
        """Law of the next counts: the agents of a pair stand in a row and move one by one."""
        prob, _ = local_tables(self.model, key[0])
        law = {(0,) * self.n_states: 1.0}
        for (s, a), c in np.ndenumerate(self.actions(key)):
            for _ in range(c):
                pushed = defaultdict(float)
                for after, p in law.items():
                    for j in np.flatnonzero(prob[s, a] > 0.0):
                        pushed[(*after[:j], after[j] + 1, *after[j + 1 :])] += p * prob[s, a, j]
                law = pushed
        return dict(law)

    @cached_property
    def pi_team(self):
        """Pi(h | mu) of (3.3) for every pair."""
        result = np.empty(len(self.keys))
        laws = {
            (s, n): self.team_law(s, n, n / self.n_agents)
            for s in range(self.n_states)
            for n in range(self.n_agents + 1)
        }
        for i, key in enumerate(self.keys):
            teams = self.actions(key).tolist()
            result[i] = math.prod(
                laws[s, n][tuple(c)] for s, (n, c) in enumerate(zip(key[0], teams, strict=True))
            )
        return result

    @cached_property
    def mean(self):
        """Pi(h | mu) as a matrix (mu, pairs)."""
        result = np.zeros((len(self.states), len(self.keys)))
        result[self.of, np.arange(len(self.keys))] = self.pi_team
        return result

    def rewards(self, printed=False):
        """Team rewards r_s, (pairs, S): (3.6) with the weight mu(s), or as printed."""
        result = np.zeros((len(self.keys), self.n_states))
        for i, key in enumerate(self.keys):
            _, reward = local_tables(self.model, key[0])
            for (s, a), c in np.ndenumerate(self.actions(key)):
                if c > 0:
                    result[i, s] += c * reward[s, a] / (key[0][s] if printed else self.n_agents)
        return result

    def values(self, rewards):
        """V_s and Q_s of (3.9) and (3.11) for these team rewards, by a dense solve."""
        kernel = self.mean @ self.transition
        matrix = np.eye(len(self.states)) - self.gamma * kernel
        v = np.linalg.solve(matrix, self.mean @ rewards)
        return v, rewards + self.gamma * self.transition @ v

    @cached_property
    def pair_transition(self):
        """P_N(mu' | mu, h) Pi(h' | mu'), (pairs, pairs)."""
        return self.transition @ self.mean

    @cached_property
    def labelled(self):
        """Law of (actions, next positions) for all positions of N labelled agents."""
        everywhere = product(range(self.n_states), repeat=self.n_agents)
        return {x: labelled_step_law(self.model, self.pi, x) for x in everywhere}

    def counts(self, positions):
        """Count labelled agents."""
        return tuple(np.bincount(positions, minlength=self.n_states).tolist())

    def key(self, positions, taken):
        """Return the pair (mu, h) of labelled agents and their actions."""
        actions = np.zeros(self.model.action_mask.shape, int)
        np.add.at(actions, (list(positions), list(taken)), 1)
        return self.counts(positions), tuple(actions.ravel().tolist())

    def classes(self, see):
        """Give pairs the same number if `see(counts, actions)`, a tuple of arrays, is the same."""
        seen = {}
        return np.array(
            [
                seen.setdefault(
                    tuple(x.tobytes() for x in see(np.array(key[0]), self.actions(key))), len(seen)
                )
                for key in self.keys
            ]
        )

    def ball_classes(self, s, k):
        """Classes of pairs that agree on mu(N_s^k) and h(N_s^k)."""
        ball = self.model.graph.ball(s, k)
        return self.classes(lambda counts, actions: (counts[ball], actions[ball]))


def random_system(seed, n_states, n_agents, n_actions, family, graph=None):
    """Draw masks, chances, rewards of both signs, gamma and a policy of this family."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, n_states) if graph is None else graph
    mask = rng.random((n_states, n_actions)) < 0.7
    some, other = rng.choice(n_states, 2, replace=False)
    mask[some], mask[other, 0] = True, False
    mask[np.arange(n_states), rng.integers(1, n_actions, n_states)] = True
    shape = (len(graph.indices), n_actions)
    edge = [rng.uniform(0.1, 1.0, shape), rng.normal(0, 2, shape), rng.normal(0, 1, shape)]
    node = [rng.uniform(-1.0, 1.0, mask.shape), mask]
    model = ltde.NetworkedModel(
        graph,
        n_actions,
        random_local,
        node=np.concatenate(node, axis=1),
        edge=np.concatenate(edge, axis=1),
        action_mask=mask,
        discount=float(rng.uniform(0.5, 0.8)),
    )
    if family == "any":
        pi = AnyPolicy(rng, mask, n_agents)
        return System(model, n_agents, induced(pi), pi)
    if family == "table":
        policy = ltde.TabularPolicy(AnyPolicy(rng, mask, n_agents).table[0])
        return System(model, n_agents, policy, policy.individual())
    make = {"softmax": ltde.SoftmaxPolicy, "energy": ltde.EnergyPolicy}[family]
    policy = make(model, 6, tau=4.0, density_scale=2.0, seed=seed, dtype=torch.float64)
    return System(model, n_agents, policy, policy.individual() if family == "softmax" else None)


def spread(values, classes):
    """Largest difference of values (pairs, ...) between two pairs of one class."""
    values = np.reshape(values, (len(values), -1))
    return max(float(np.ptp(values[classes == c], axis=0).max()) for c in np.unique(classes))


def labelled_values(system, pi=None):
    """V (positions) and Q (positions, actions) of N labelled agents: (MF-MARL) and (2.9)."""
    model, gamma = system.model, system.gamma
    laws = system.labelled
    if pi is not None:
        laws = {x: labelled_step_law(model, pi, x) for x in laws}
    row = {x: i for i, x in enumerate(laws)}
    kernel, reward, pairs = np.zeros((len(row), len(row))), np.zeros(len(row)), {}
    for x, law in laws.items():
        _, table = local_tables(model, system.counts(x))
        for (taken, y), p in law.items():
            r = sum(table[s, a] for s, a in zip(x, taken, strict=True)) / system.n_agents
            kernel[row[x], row[y]] += p
            reward[row[x]] += p * r
            pairs.setdefault((x, taken), (r, []))[1].append((row[y], p))
    v = np.linalg.solve(np.eye(len(row)) - gamma * kernel, reward)
    q = {}
    for pair, (r, after) in pairs.items():
        q[pair] = r + gamma * sum(p * v[y] for y, p in after) / sum(p for _, p in after)
    return {x: v[i] for x, i in row.items()}, q


# states, agents, actions, family; masks, graphs, rewards of both signs and gamma are drawn.
MULTINOMIAL = {
    "any-2": (1, 2, 3, 3, "any"),
    "any-4": (2, 4, 3, 2, "any"),
    "any-5": (3, 5, 2, 2, "any"),
    "softmax-3": (4, 3, 3, 2, "softmax"),
    "softmax-5": (5, 5, 2, 2, "softmax", ltde.Graph.path(5)),
    "table-4": (6, 4, 2, 3, "table"),
}
ENERGY = {
    "energy-3": (7, 3, 3, 3, "energy"),
    "energy-5": (8, 5, 2, 2, "energy", ltde.Graph.path(5)),
}
ALL = MULTINOMIAL | ENERGY
LONG = ["softmax-5", "energy-5"]  # the path of five states, where N_0^3 is not yet everything
DENSITY = [name for name in ALL if name != "table-4"]  # policies that depend on mu(s)


@lru_cache
def system(name):
    return random_system(*ALL[name])


# Section 2.


@pytest.mark.parametrize("name", MULTINOMIAL)
def test_eq_2_7_and_2_8_the_labelled_agents_move_as_the_teams(name):
    """From any positions, the law of (h, mu') is Pi(h | mu) P_N(mu' | mu, h).

    So it is the same for all positions of the same counts, which is (A.1).
    """
    it = system(name)
    exact = it.exact.policy_probs[:, None] * it.exact.transition.toarray()
    worst = 0.0
    for x, law in it.labelled.items():
        joint = np.zeros_like(exact)
        for (taken, y), p in law.items():
            joint[it.row[it.key(x, taken)], it.row[it.counts(y)]] += p
        here = it.of == it.row[it.counts(x)]
        np.testing.assert_allclose(joint, exact * here[:, None], **EXACT)
        # Agents who read the density of the others in place of their own do something else.
        other = labelled_step_law(it.model, lambda s, density: it.pi(s, 1.0 - density), x)
        worst = max(worst, max(abs(law[outcome] - p) for outcome, p in other.items()))
    assert (worst > CLEAR) == (name in DENSITY)


@pytest.mark.parametrize("name", ALL)
def test_eq_2_6_and_2_7_the_random_models_depend_on_the_densities_around(name):
    """Guard: otherwise all that follows would be about independent agents."""
    it = system(name)
    tables = [local_tables(it.model, counts) for counts in it.states]
    prob, reward = (np.array(x)[:, it.model.action_mask] for x in zip(*tables, strict=True))
    assert np.ptp(prob, axis=0).max() > 0.1
    assert np.ptp(reward, axis=0).max() > 0.1
    assert reward.min() < 0.0 < reward.max()
    assert not it.model.action_mask.all()
    assert it.model.action_mask.all(axis=1).any()


@pytest.mark.parametrize("name", MULTINOMIAL)
def test_eq_2_9_q_does_not_depend_on_the_order_of_the_agents(name):
    """Q(s_0, a_0) of labelled agents is a function of (mu, h), for a fixed policy."""
    it = system(name)
    _, q = labelled_values(it)
    assert {it.key(*pair) for pair in q} == set(it.keys)
    by_pair = defaultdict(list)
    for pair, value in q.items():
        by_pair[it.key(*pair)].append(value)
    assert max(np.ptp(values) for values in by_pair.values()) < 1e-12
    by_mu = defaultdict(list)  # mu alone is not enough
    for (counts, _), values in by_pair.items():
        by_mu[counts] += values
    assert max(np.ptp(values) for values in by_mu.values()) > CLEAR


# Section 3.1.


@pytest.mark.parametrize("name", ["softmax-3", "softmax-5", "table-4"])
def test_eq_3_1_the_team_of_independent_agents_is_multinomial(name):
    """Enumerate the actions of n agents one by one; the empty team does nothing, surely.

    The paper does not define h(s) for n(s) = 0, where its proportions are 0/0: we take c(s, .) = 0.
    """
    it = system(name)
    for n in range(it.n_agents + 1):
        for s in range(it.n_states):
            law = it.team_law(s, n, n / it.n_agents)
            if n == 0:
                assert law == {(0,) * it.model.n_actions: 1.0}
            for c, p in law.items():
                counts = np.zeros(it.n_states, int)
                actions = np.zeros(it.model.action_mask.shape, int)
                counts[s], actions[s] = n, c
                with torch.no_grad():
                    log = it.policy.log_prob(counts, actions, n_agents=it.n_agents)
                assert math.exp(float(log[s])) == pytest.approx(p, rel=1e-10)
                assert multinomial_pmf(c, it.pi(s, n / it.n_agents)) == pytest.approx(p, rel=1e-10)
    # An empirical distribution is more probable than each of its orders.
    p = it.pi(0, 1.0)
    allowed = np.flatnonzero(it.model.action_mask[0])
    if len(allowed) > 1:
        both = np.isin(np.arange(len(p)), allowed[:2]).astype(int)
        assert it.team_law(0, 2, 1.0)[tuple(both.tolist())] > 1.9 * math.prod(p[allowed[:2]])


def dirac(law, n, n_actions):
    """Pi(delta_a)^(1/n) for every a: the formula under (3.2) that recovers pi from Pi."""
    unit = n * np.eye(n_actions, dtype=int)
    return np.array([law.get(tuple(row.tolist()), 0.0) ** (1.0 / n) for row in unit])


@pytest.mark.parametrize("name", ALL)
def test_eq_3_2_back_from_the_team_to_one_agent_needs_a_multinomial_team(name):
    """Pi(delta_a)^(1/n) is pi for a Pi of the form (3.2), where n(s) > 0; not for (4.4)."""
    it = system(name)
    worst = 0.0
    for s in range(it.n_states):
        for n in range(1, it.n_agents + 1):
            law = it.team_law(s, n, n / it.n_agents)
            pi = dirac(law, n, it.model.n_actions)
            if it.pi is not None:
                np.testing.assert_allclose(pi, it.pi(s, n / it.n_agents), **EXACT)
                assert max(abs(multinomial_pmf(c, pi) - p) for c, p in law.items()) < 1e-10
                continue
            for recovered in (pi, pi / pi.sum()):
                again = max(abs(multinomial_pmf(c, recovered) - p) for c, p in law.items())
                worst = max(worst, again)
            # The law of one agent is multinomial for any pi; that of two agents is not.
            assert n > 1 or again < 1e-10
    assert (worst > 0.05) == (it.pi is None)


@pytest.mark.parametrize("name", MULTINOMIAL)
def test_eq_3_3_teams_are_independent_given_mu(name):
    """Given mu_t, hence not for agents who are themselves at random positions."""
    it = system(name)
    s, t = 0, 1
    mixed, average = defaultdict(float), 1.0 / len(it.labelled)
    for x, law in it.labelled.items():
        joint = defaultdict(float)
        for (taken, _), p in law.items():
            actions = it.actions(it.key(x, taken))
            joint[tuple(actions[s]), tuple(actions[t])] += p
        assert dependence(joint) < 1e-12
        for outcome, p in joint.items():
            mixed[outcome] += average * p
    assert dependence(mixed) > 0.02


def dependence(joint):
    """Largest |P(x, y) - P(x) P(y)| of a law on pairs."""
    first, second = defaultdict(float), defaultdict(float)
    for (x, y), p in joint.items():
        first[x] += p
        second[y] += p
    pairs = product(first, second)
    return max(abs(joint.get((x, y), 0.0) - first[x] * second[y]) for x, y in pairs)


@pytest.mark.parametrize("name", ALL)
def test_eq_3_4_xi_holds_every_way_to_deal_agents_to_states_and_actions(name):
    """The pairs of the library are those of the loops; an empty team has one h(s), not none."""
    it = system(name)
    cells = int(it.model.action_mask.sum())
    assert len(it.keys) == math.comb(it.n_agents + cells - 1, cells - 1)
    found = [
        (tuple(it.exact.states[row[0]].tolist()), tuple(row[1:].tolist())) for row in it.exact.pairs
    ]
    assert found == it.keys
    without_empty = [counts for counts, _ in it.keys if min(counts) > 0]
    assert len(without_empty) < len(it.keys)


@pytest.mark.parametrize("name", ALL)
def test_eq_3_5_law_of_the_next_mu(name):
    """P_N against labelled agents in any order, and Pi against (3.1) or (4.4)."""
    it = system(name)
    np.testing.assert_allclose(it.exact.transition.toarray(), it.transition, **EXACT)
    np.testing.assert_allclose(it.exact.policy_probs, it.pi_team, **EXACT)
    np.testing.assert_allclose(
        it.exact.pair_transition @ np.eye(len(it.keys)), it.pair_transition, **EXACT
    )
    if it.pi is None:
        return
    for x, law in it.labelled.items():  # given the actions
        given, total = defaultdict(lambda: np.zeros(len(it.states))), defaultdict(float)
        for (taken, y), p in law.items():
            given[taken][it.row[it.counts(y)]] += p
            total[taken] += p
        for taken, p in given.items():
            expected = it.transition[it.row[it.key(x, taken)]]
            np.testing.assert_allclose(p / total[taken], expected, **EXACT)


def marginal_law(it, states):
    """Law of mu'(states) given every pair, (pairs, outcomes)."""
    column = {}
    at = [column.setdefault(tuple(np.array(mu)[states].tolist()), len(column)) for mu in it.states]
    return it.exact.transition @ np.eye(len(column))[at]


@pytest.mark.parametrize("name", ["any-4", *LONG])
def test_eq_3_5_mu_of_s_depends_on_mu_two_steps_away_and_h_one_step_away(name):
    """As the paper says after (3.5); less is not enough.

    The same for a whole ball: mu_{t+1}(N_s^j) depends on mu_t(N_s^{j+2}) and h_t(N_s^{j+1}).
    """
    it = system(name)
    ball = it.model.graph.ball
    less = defaultdict(float)
    for s in range(it.n_states):
        for j in range(3):
            law = marginal_law(it, ball(s, j))
            seen = {
                "paper": (j + 2, j + 1),
                "less of mu": (j + 1, j + 1),
                "less of h": (j + 2, j),
            }
            for what, (k, m) in seen.items():
                mu, h = ball(s, k), ball(s, m)
                classes = it.classes(lambda n, c, mu=mu, h=h: (n[mu], c[h]))
                less[what] = max(less[what], spread(law, classes))
    assert less["paper"] < 1e-12
    assert less["less of mu"] > CLEAR
    assert less["less of h"] > CLEAR


@pytest.mark.parametrize("name", ["any-2", "softmax-5"])
def test_eq_b_1_gives_the_law_of_every_state_but_not_the_joint_law(name):
    """(B.1) is a marginal of (3.5), no rewriting of it: the agents who are here are not there.

    Independent draws from the laws (B.1) would make and lose agents.
    """
    it = system(name)
    lost = 0.0
    for row in it.transition:
        laws = [defaultdict(float) for _ in range(it.n_states)]
        for counts, p in zip(it.states, row, strict=True):
            for s, n in enumerate(counts):
                laws[s][n] += p
        total = np.ones(1)
        for law in laws:
            total = np.convolve(total, [law[n] for n in range(it.n_agents + 1)])
        lost = max(lost, 1.0 - total[it.n_agents])
    assert lost > 0.3


@pytest.mark.parametrize("name", ALL)
def test_eq_3_6_team_rewards_add_up_to_the_mean_over_agents(name):
    """With the weight mu(s): sum_s r_s = (1/N) sum_i r(s_i, mu(N_{s_i}), a_i); not as printed."""
    it = system(name)
    np.testing.assert_allclose(it.exact.team_rewards, it.rewards(), **EXACT)
    agents = np.zeros(len(it.keys))
    for i, key in enumerate(it.keys):
        _, reward = local_tables(it.model, key[0])
        for (s, a), c in np.ndenumerate(it.actions(key)):
            agents[i] += sum(reward[s, a] for _ in range(c)) / it.n_agents
    np.testing.assert_allclose(it.exact.team_rewards.sum(axis=1), agents, **EXACT)
    printed = it.rewards(printed=True).sum(axis=1)
    assert np.abs(printed - agents).max() > 0.1
    together = np.array([max(counts) == it.n_agents for counts, _ in it.keys])
    np.testing.assert_allclose(printed[together], agents[together], **EXACT)


@pytest.mark.parametrize("name", ALL)
def test_eq_3_7_to_3_11_values_are_the_sums_over_time(name):
    """V_s and Q_s by adding up gamma^t E r_s; V_s is the mean of Q_s, and not Q_s."""
    it = system(name)
    rewards = it.rewards()
    q, later, weight = 0.0, rewards, 1.0
    while weight > 1e-13:
        q, later, weight = q + weight * later, it.pair_transition @ later, it.gamma * weight
    np.testing.assert_allclose(it.exact.q, q, **EXACT)
    np.testing.assert_allclose(it.exact.v, it.mean @ q, **EXACT)
    assert np.abs(it.exact.q - it.exact.v[it.of]).max() > CLEAR


@pytest.mark.parametrize("name", MULTINOMIAL)
def test_lemma_3_1_from_agents_to_teams(name):
    """From u to U by (3.2): the agents' V and Q are the sums over teams of V_s and Q_s."""
    it = system(name)
    teams = ExactSystem(it.model, it.n_agents, induced(it.pi))
    v, q = labelled_values(it)
    for x, value in v.items():
        np.testing.assert_allclose(teams.v[it.row[it.counts(x)]].sum(), value, **EXACT)
    for pair, value in q.items():
        np.testing.assert_allclose(teams.q[it.row[it.key(*pair)]].sum(), value, **EXACT)


@pytest.mark.parametrize("name", MULTINOMIAL)
def test_lemma_3_1_from_teams_to_agents(name):
    """From U to u by the Dirac formula: agents who act alone have the value of the teams.

    pi(s, 0) cannot be recovered, and plays no part: we put in anything. The team policy must be
    one of U, that is induced by some pi: see test_lemma_3_1_needs_multinomial_teams.
    """
    it = system(name)
    unit = np.eye(it.model.n_actions, dtype=int)
    anything = it.model.action_mask / it.model.action_mask.sum(axis=1, keepdims=True)

    def recovered(s, density):
        n = round(density * it.n_agents)
        if n == 0:
            return anything[s]
        p = np.zeros(it.model.n_actions)
        for a in np.flatnonzero(it.model.action_mask[s]):
            counts, actions = np.zeros(it.n_states, int), np.zeros(it.model.action_mask.shape, int)
            counts[s], actions[s] = n, n * unit[a]
            with torch.no_grad():
                log = it.policy.log_prob(counts, actions, n_agents=it.n_agents)
            p[a] = math.exp(float(log[s]) / n)
        return p

    recovered = lru_cache(recovered)
    v, q = labelled_values(it, recovered)
    for x, value in v.items():
        np.testing.assert_allclose(it.exact.v[it.row[it.counts(x)]].sum(), value, **EXACT)
    for pair, value in q.items():
        np.testing.assert_allclose(it.exact.q[it.row[it.key(*pair)]].sum(), value, **EXACT)


@pytest.mark.parametrize("name", MULTINOMIAL)
def test_lemma_3_1_is_false_with_the_printed_3_6(name):
    """Without mu(s) the sum of the V_s is not the value of the agents, and is not a multiple."""
    it = system(name)
    v, _ = it.values(it.rewards(printed=True))
    printed = v.sum(axis=1)
    agents, _ = labelled_values(it)
    true = np.array([agents[sum(((s,) * n for s, n in enumerate(c)), ())] for c in it.states])
    np.testing.assert_allclose(it.values(it.rewards())[0].sum(axis=1), true, **EXACT)
    assert np.abs(printed - true).max() > 0.1
    factor = (printed @ true) / (true @ true)
    assert np.abs(printed - factor * true).max() > 0.01


@lru_cache
def numbers_eq_3_6():
    """Three agents who stay on three states and earn 1 each in every step; gamma = 0.9."""
    model = signal_model([[0, 1, 0]] * 3, discount=0.9)
    exact = ExactSystem(model, 3, np.ones((3, 1)))
    printed = (exact.states > 0).sum(axis=1) / (1.0 - model.discount)  # sum_a h(s)(a) = 1
    rows = [exact.states.tolist().index(counts) for counts in ([3, 0, 0], [1, 1, 1])]
    together, apart = (float(exact.v[row].sum()) for row in rows)
    return {
        "agents, together": f"{together:.2f}",
        "agents, apart": f"{apart:.2f}",
        "printed, together": f"{printed[rows[0]]:.2f}",
        "printed, apart": f"{printed[rows[1]]:.2f}",
    }


def test_eq_3_6_as_printed_pays_for_occupied_states():
    """With r = 1 every policy is worth 1 / (1 - gamma); the printed reward prefers to spread."""
    show(numbers_eq_3_6())
    assert list(numbers_eq_3_6().values()) == ["10.00", "10.00", "10.00", "30.00"]


def show(numbers):
    """Print what docs/corrections.md cites."""
    for what, number in numbers.items():
        print(f"{what}: {number}")


# Two agents who are paid when they are apart.


def apart_local(s, mu, node, edge, prob, reward):
    """Stay in 0 (a = 0) or go to 1 (a = 1); from 1 return. Paid if half of all are in 0."""
    for a in range(2):
        prob[a, 1 if s == 0 and a == 1 else 0] = 1.0
        reward[a] = 1.0 if mu[0] == 0.5 else 0.0


TOGETHER, APART, AWAY = 2, 1, 0  # rows of `states` by n(0)


@lru_cache
def apart_model():
    return ltde.NetworkedModel(
        ltde.Graph.path(2), 2, apart_local, initial=np.array([2, 0]), discount=0.5
    )


def apart_pi(go_together, go_alone=1.0):
    """Let an agent in 0 go with these probabilities at mu(0) = 1 and at 1/2."""

    def pi(s, density):
        p = 0.0 if s == 1 else go_together if density == 1.0 else go_alone
        return np.array([1.0 - p, p])

    return pi


def apart_exact(policy):
    exact = ExactSystem(apart_model(), 2, policy)
    assert exact.states.tolist() == [[0, 2], [1, 1], [2, 0]]
    return exact


def apart_team(stay, split, go):
    """Give h(0) these probabilities when both agents are in 0; one alone in 0 goes."""

    def law(s, n, density):
        if s == 1:
            return {(n, 0): 1.0}
        return {(2, 0): stay, (1, 1): split, (0, 2): go} if n == 2 else {(0, n): 1.0}

    return Team(law)


@lru_cache
def apart_energy():
    """Make a policy (4.4) that splits two agents in 0 exactly, and sends one that is alone.

    f = (ReLU(h(1) + 1 - 2 mu) - |h(0) - h(1)|) C / sqrt(3), as h(0) + h(1) = 1.
    """
    policy = ltde.EnergyPolicy(apart_model(), width=3, dtype=torch.float64)
    weights = torch.tensor([[-2.0, 1.0, 2.0], [0.0, 1.0, -1.0], [0.0, -1.0, 1.0]])
    with torch.no_grad():
        policy.theta.copy_(100.0 * weights.double().expand(2, 3, 3))
        policy.b.copy_(torch.tensor([1.0, -1.0, -1.0]).expand(2, 3))
    return policy


@pytest.mark.parametrize("name", ALL)
def test_eq_a_4_the_mean_of_mu(name):
    """E[mu'(s) | mu] in the three forms of (A.4), where pi stands for E h(s)."""
    it = system(name)
    next_mean = it.mean @ it.transition @ np.array(it.states) / it.n_agents
    for i, counts in enumerate(it.states):
        prob, _ = local_tables(it.model, counts)
        expected = np.zeros(it.n_states)
        for s, n in enumerate(counts):
            if n > 0:
                law = it.team_law(s, n, n / it.n_agents)
                mean_h = sum(p * np.array(c) / n for c, p in law.items())
                if it.pi is not None:
                    np.testing.assert_allclose(mean_h, it.pi(s, n / it.n_agents), **EXACT)
                allowed = it.model.action_mask[s]
                expected += n / it.n_agents * mean_h[allowed] @ prob[s, allowed]
        np.testing.assert_allclose(next_mean[i], expected, **EXACT)


@lru_cache
def numbers_eq_a_4():
    """Three team policies of the same mean, E h(0) = (1/2, 1/2) for two agents in 0."""
    teams = {
        "all or none": apart_team(0.5, 0.0, 0.5),
        "independent": apart_team(0.25, 0.5, 0.25),
        "exact split": apart_team(0.0, 1.0, 0.0),
    }
    systems = {what: apart_exact(team) for what, team in teams.items()}
    means = []
    for it in systems.values():
        weighted = it.policy_probs[:, None] * (it.transition @ it.states)
        means.append([weighted[it.pairs[:, 0] == i].sum(axis=0) for i in range(3)])
    assert np.ptp(means, axis=0).max() < 1e-15  # (A.4) does not tell them apart
    return {what: f"{it.J:.4f}" for what, it in systems.items()}


def test_eq_a_4_equal_means_do_not_give_equal_values():
    """(A.4) shows that (A.2) and (3.5) have the same mean, which does not identify a law.

    Lemma 3.1 is true because the laws are equal (test_eq_2_7_...), and for multinomial teams only.
    """
    show(numbers_eq_a_4())
    assert list(numbers_eq_a_4().values()) == ["0.0000", "0.6154", "1.0000"]
    one = apart_exact(induced(apart_pi(0.5)))
    assert abs(one.J - 8 / 13) < 1e-12


@lru_cache
def numbers_eq_3_2():
    """Compare executions of the energy that splits, and recover pi from the energy 3 h(0)."""
    split = apart_energy()
    tilt = ltde.EnergyPolicy(apart_model(), width=1, tau=3.0, dtype=torch.float64)
    with torch.no_grad():
        tilt.theta.copy_(torch.tensor([0.0, 1.0, 0.0]).expand(2, 1, 3))
        tilt.b.fill_(1.0)
    one = {}
    for formula in ("dirac", "mean"):
        for n in (1, 10, 100, 1000):
            p = tilt.individual(n, formula)(0, 1.0)[0]
            one[f"{formula}, n = {n}"] = f"{p:.3f}"
    return one | {
        "team": f"{apart_exact(split).J:.4f}",
        "mean": f"{apart_exact(induced(split.individual(2))).J:.4f}",
        "dirac": f"{apart_exact(induced(split.individual(2, 'dirac'))).J:.4f}",
    }


def test_eq_3_2_the_dirac_formula_tends_to_uniform_for_the_energy_family():
    """For (4.4): Pi(delta_a)^(1/n) forgets the energy as n grows, and E h(s) does not."""
    numbers = numbers_eq_3_2()
    show(numbers)
    for n in (1, 10, 100, 1000):
        law = np.exp(3.0 * np.arange(n + 1) / n)
        mean = float(law @ np.arange(n + 1) / n / law.sum())
        assert numbers[f"mean, n = {n}"] == f"{mean:.3f}"
        assert numbers[f"dirac, n = {n}"] == f"{1.0 / (1.0 + math.exp(-3.0 / n)):.3f}"
    assert abs(float(numbers["dirac, n = 1000"]) - 0.5) < 0.002
    limit = 1.0 / (1.0 - math.exp(-3.0)) - 1.0 / 3.0
    assert abs(float(numbers["mean, n = 1000"]) - limit) < 0.002


@pytest.mark.parametrize("name", ENERGY)
def test_eq_3_2_the_mean_is_the_closest_multinomial(name):
    """E h(s) minimises KL(Pi_s || multinomial(p)) over p; the Dirac formula does not."""
    it = system(name)
    rng = np.random.default_rng(0)
    gaps = []
    for s in range(it.n_states):
        mask = it.model.action_mask[s]
        for n in range(2, it.n_agents + 1):
            law = it.team_law(s, n, n / it.n_agents)

            def divergence(p, law=law):
                return sum(q * math.log(q / multinomial_pmf(c, p)) for c, q in law.items())

            mean = it.policy.individual(it.n_agents)(s, n / it.n_agents)
            expected = sum(q * np.array(c) / n for c, q in law.items())
            np.testing.assert_allclose(mean, expected, **EXACT)
            best = divergence(mean)
            for _ in range(50):
                other = mean * np.exp(0.3 * rng.normal(size=len(mean))) * mask
                assert divergence(other / other.sum()) >= best - 1e-14
            printed = dirac(law, n, len(mean))
            printed /= printed.sum()
            library = it.policy.individual(it.n_agents, "dirac")(s, n / it.n_agents)
            np.testing.assert_allclose(library, printed, **EXACT)
            gaps.append(divergence(printed) - best)
    assert max(gaps) > CLEAR


def test_lemma_3_1_needs_multinomial_teams():
    """(4.4) is not in U: a team policy (4.4) can be better than every policy of one agent.

    So neither the mean nor any other pi has its value, and (3.8) with the sup over such Pi in place
    of U is false.
    """
    numbers = numbers_eq_3_2()
    assert (numbers["team"], numbers["mean"], numbers["dirac"]) == ("1.0000", "0.6154", "0.6154")
    assert float(numbers["team"]) > float(numbers_lemma_3_2()["decentralised"]) + 0.3
    law = System(apart_model(), 2, apart_energy(), None).team_law(0, 2, 1.0)
    assert law[1, 1] == pytest.approx(1.0, abs=1e-12)


# Section 3.2.


@lru_cache
def centralised(name):
    """Solve the N-agent Bellman equation (2.5): one who sees all positions chooses for all."""
    it = system(name)
    mask = it.model.action_mask
    everywhere = list(product(range(it.n_states), repeat=it.n_agents))
    row = {x: i for i, x in enumerate(everywhere)}
    pairs, rewards, transition = [], [], []
    for x in everywhere:
        prob, reward = local_tables(it.model, it.counts(x))
        for taken in product(*(np.flatnonzero(mask[s]).tolist() for s in x)):
            law = np.ones(1)
            for s, a in zip(x, taken, strict=True):
                law = np.multiply.outer(law, prob[s, a]).ravel()
            pairs.append((x, taken))
            rewards.append(np.mean([reward[s, a] for s, a in zip(x, taken, strict=True)]))
            transition.append(law)
    first = np.array([i for i, (x, _) in enumerate(pairs) if i == 0 or pairs[i - 1][0] != x])
    rewards, transition = np.array(rewards), np.array(transition)
    q, before = rewards, np.inf
    while np.abs(q - before).max() > 1e-13:
        before, q = q, rewards + it.gamma * transition @ np.maximum.reduceat(q, first)
    assert list(row) == [pairs[i][0] for i in first]
    return dict(zip(pairs, q, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_lemma_3_2_is_the_bellman_equation_of_a_controller_who_sees_everything(name):
    """The solution of (3.12) is that of (2.5), where one controller tells every agent what to do.

    It bounds every policy, and the policy at hand does not attain it.
    """
    it = system(name)
    best = it.exact.optimal_value
    q = it.exact.team_rewards.sum(axis=1) + it.gamma * it.transition @ best
    sup = np.array([q[it.of == i].max() for i in range(len(it.states))])
    np.testing.assert_allclose(best, sup, **EXACT)  # (3.12)
    joint = centralised(name)
    for pair, value in joint.items():
        np.testing.assert_allclose(q[it.row[it.key(*pair)]], value, **EXACT)
    assert np.all(it.exact.v.sum(axis=1) <= best + 1e-10)
    assert np.max(best - it.exact.v.sum(axis=1)) > 0.01
    # The Q of a policy does not satisfy (3.12).
    own = it.exact.q.sum(axis=1)
    sup = np.array([own[it.of == i].max() for i in range(len(it.states))])
    residual = it.exact.team_rewards.sum(axis=1) + it.gamma * it.transition @ sup - own
    assert residual.min() > -1e-10
    assert residual.max() > CLEAR


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_lemma_3_2_the_best_of_all_centralised_controls(seed):
    """Brute force over all maps mu -> h, of which stationary ones suffice."""
    it = random_system(seed, 2, 2, 2, "any")
    rows = [np.flatnonzero(it.of == i) for i in range(len(it.states))]
    rewards = it.rewards().sum(axis=1)
    best, worst = np.full(3, -np.inf), np.full(3, np.inf)
    for chosen in product(*rows):
        matrix = np.eye(3) - it.gamma * it.transition[list(chosen)]
        value = np.linalg.solve(matrix, rewards[list(chosen)])
        best, worst = np.maximum(best, value), np.minimum(worst, value)
    np.testing.assert_allclose(it.exact.optimal_value, best, **EXACT)
    assert np.max(best - worst) > 0.01


@lru_cache
def numbers_lemma_3_2():
    """Two agents: the best controller, and a fine search over all of u.

    In u there are two numbers: the probabilities p and q to leave 0 at mu(0) = 1 and 1/2.
    """
    gamma = apart_model().discount
    p, q = np.meshgrid(np.linspace(0.0, 1.0, 4001), np.linspace(0.0, 1.0, 21), indexing="ij")
    chain = np.zeros((*p.shape, 3, 3))
    chain[..., TOGETHER, TOGETHER] = (1.0 - p) ** 2
    chain[..., TOGETHER, APART] = 2.0 * p * (1.0 - p)
    chain[..., TOGETHER, AWAY] = p**2
    chain[..., APART, APART], chain[..., APART, TOGETHER] = q, 1.0 - q
    chain[..., AWAY, TOGETHER] = 1.0
    v = np.linalg.solve(np.eye(3) - gamma * chain, np.array([[0.0], [1.0], [0.0]]))
    best = np.unravel_index(v[..., TOGETHER, 0].argmax(), p.shape)
    exact = apart_exact(induced(apart_pi(p[best], q[best])))
    np.testing.assert_allclose(exact.v.sum(axis=1), v[best][:, 0], **EXACT)
    # Both stay: the left side of (3.12) with the Q of (2.9), and its right side.
    pairs = exact.pairs[:, 1:].tolist()
    together = exact.q.sum(axis=1)[exact.pairs[:, 0] == TOGETHER]
    return {
        "centralised": f"{exact.optimal_value[TOGETHER]:.4f}",
        "decentralised": f"{exact.J:.4f}",
        "p": f"{p[best]:.4f}",
        "q": f"{q[best]:.4f}",
        "Q of (2.9)": f"{exact.q.sum(axis=1)[pairs.index([2, 0, 0, 0])]:.4f}",
        "right side of (3.12)": f"{gamma * together.max():.4f}",
    }


def guess_local(s, mu, node, edge, prob, reward):
    """In 0 stay and guess if somebody is in 1 (a = 0) or not; else wander between 1 and 2."""
    for a in range(2):
        if s == 0:
            prob[a, 0] = 1.0
            reward[a] = 1.0 if (a == 0) == (mu[1] > 0.0) else 0.0
        else:
            prob[a, mu.size - 1] = prob[a, mu.size - 2] = 0.5


@lru_cache
def numbers_lemma_3_2_knowledge():
    """One agent in 0 guesses where the other is: every policy of u is right half of the time."""
    model = ltde.NetworkedModel(
        ltde.Graph.path(3),
        2,
        guess_local,
        initial=np.array([[1, 1, 0], [1, 0, 1]]),
        discount=0.5,
    )
    systems = [ExactSystem(model, 2, [[p, 1.0 - p]] * 3) for p in (0.0, 0.3, 1.0)]
    values = [it.J for it in systems]
    assert np.ptp(values) < 1e-12
    best = float(systems[0].initial_law @ systems[0].optimal_value)
    return {"centralised": f"{best:.4f}", "decentralised": f"{values[0]:.4f}"}


def test_lemma_3_2_is_larger_although_every_team_is_one_agent():
    """(3.12) lets h(s) depend on mu(s') for all s'; here nothing need be split."""
    show(numbers_lemma_3_2_knowledge())
    assert list(numbers_lemma_3_2_knowledge().values()) == ["1.0000", "0.5000"]


def test_lemma_3_2_is_larger_than_the_best_decentralised_value():
    """(3.12) is not the equation of the Q of (2.9): its fixed point is 1.0, the sup over u 0.62.

    Here every agent even knows all of mu, and its policy might as well depend on time; what is
    missing is the exact split of a team. The sup is at p = sqrt(6) - 2, q = 1.
    """
    numbers = numbers_lemma_3_2()
    show(numbers)
    assert numbers["centralised"] == "1.0000"
    assert numbers["decentralised"] == f"{(8.0 - 2.0 * math.sqrt(6.0)) / 5.0:.4f}" == "0.6202"
    assert float(numbers["p"]) == pytest.approx(math.sqrt(6.0) - 2.0, abs=2e-4)
    assert numbers["q"] == "1.0000"
    assert float(numbers["Q of (2.9)"]) < float(numbers["right side of (3.12)"]) - 0.1


@pytest.mark.parametrize("name", ALL)
def test_lemma_3_3_unique_fixed_point_of_a_contraction(name):
    """T_s is a gamma-contraction in the sup norm on bounded functions on Xi.

    It needs gamma < 1 and a team policy of the product form (3.3) or any other, in U or not: the
    lemma says U, the algorithms use (4.4).
    """
    it = system(name)
    rng = np.random.default_rng(0)
    rewards, q = it.rewards(), it.exact.q

    def bellman(f):
        return rewards + it.gamma * it.pair_transition @ f

    np.testing.assert_allclose(bellman(q), q, **EXACT)
    np.testing.assert_allclose(rewards + it.gamma * (it.exact.pair_transition @ q), q, **EXACT)
    largest = 0.0
    for _ in range(200):
        f, g = rng.normal(size=(2, *q.shape)) * rng.exponential(size=(2, 1, 1))
        ratio = np.abs(bellman(f) - bellman(g)).max(axis=0) / np.abs(f - g).max(axis=0)
        largest = max(largest, ratio.max())
    assert largest <= it.gamma + 1e-12
    np.testing.assert_allclose(bellman(q + 1.0), q + it.gamma, **EXACT)  # no smaller modulus
    f = rng.normal(size=q.shape)
    error = np.abs(f - q).max()
    for n in range(1, 150):
        f = bellman(f)
        assert np.abs(f - q).max() <= it.gamma**n * error + 1e-10
    np.testing.assert_allclose(f, q, **EXACT)
    # With gamma = 1 nothing is unique: the kernel of 1 - T holds the constants.
    assert np.linalg.matrix_rank(np.eye(len(q)) - it.pair_transition) < len(q)
    assert np.linalg.matrix_rank(np.eye(len(q)) - it.gamma * it.pair_transition) == len(q)


def printed_pair_transition(it):
    """(3.13) as printed, in the only reading that makes sense: n'(s) agents who see mu(s).

    Also the probability that h' drawn from Pi(. | mu) itself fits mu', (pairs,).
    """
    kernel, fits = np.zeros((len(it.keys), len(it.keys))), np.zeros(len(it.keys))
    laws = lru_cache(it.team_law)
    for i, (counts, _) in enumerate(it.keys):
        for m in np.flatnonzero(it.transition[i]):
            here = it.of == m
            after = it.states[m]
            for j in np.flatnonzero(here):
                teams = it.actions(it.keys[j]).tolist()
                kernel[i, j] = it.transition[i, m] * math.prod(
                    laws(s, after[s], counts[s] / it.n_agents)[tuple(c)]
                    for s, c in enumerate(teams)
                )
            fits[i] += it.transition[i, m] * math.prod(
                sum(
                    p
                    for c, p in laws(s, n, n / it.n_agents).items()
                    if all(x * new % n == 0 for x in c)
                )
                if n > 0
                else 0.0
                for s, (n, new) in enumerate(zip(counts, after, strict=True))
                if new > 0
            )
    return kernel, fits


@pytest.mark.parametrize("name", ALL)
def test_eq_3_13_uses_the_next_density(name):
    """The next h' ~ Pi(. | mu'), not Pi(. | mu): the latter need not even be a team action of mu'.

    Read with the right numbers of agents, who still see the old density, it has another fixed
    point, unless the policy does not depend on the density.
    """
    it = system(name)
    kernel, fits = printed_pair_transition(it)
    np.testing.assert_allclose(kernel.sum(axis=1), 1.0, rtol=1e-10)
    q, rewards = it.exact.q, it.rewards()
    np.testing.assert_allclose(rewards + it.gamma * it.pair_transition @ q, q, **EXACT)
    printed = np.linalg.solve(np.eye(len(q)) - it.gamma * kernel, rewards)
    assert (np.abs(printed - q).max() > CLEAR) == (name in DENSITY)
    assert fits.min() < 0.5


@lru_cache
def numbers_eq_3_13():
    """Two agents in 0 leave with probability 1/2 each, one who is alone surely; h is the split."""
    pi = apart_pi(0.5)
    it = System(apart_model(), 2, induced(pi), pi)
    split = it.row[(2, 0), (1, 1, 0, 0)]
    kernel, fits = printed_pair_transition(it)
    rewards = it.rewards().sum(axis=1)
    printed = np.linalg.solve(np.eye(len(rewards)) - it.gamma * kernel, rewards)
    return {
        "Q of the split": f"{it.exact.q[split].sum():.4f}",
        "Q of the split, printed": f"{printed[split]:.4f}",
        "probability that h' fits mu'": f"{fits[split]:.4f}",
    }


def test_eq_3_13_as_printed_for_two_agents():
    """After the split, one agent is in 1, where h' ~ Pi(. | mu) has no agent to give an action."""
    show(numbers_eq_3_13())
    assert numbers_eq_3_13()["Q of the split"] == "1.0000"
    assert float(numbers_eq_3_13()["Q of the split, printed"]) < 0.9
    assert numbers_eq_3_13()["probability that h' fits mu'"] == "0.0000"


# Section 3.3.


@pytest.mark.parametrize("name", ALL)
def test_lemma_3_5_with_the_corrected_bound(name):
    """|Q_s(mu, h) - Q_s(mu', h')| <= D gamma^ceil(k/2) / (1 - gamma) for pairs that agree on N_s^k.

    D = max(r_max, 0) - min(r_min, 0) is the span of the team rewards. It needs a team policy of
    the product form (3.3), in U or not.
    """
    it = system(name)
    rewards = it.rewards()
    span = max(rewards.max(), 0.0) - min(rewards.min(), 0.0)
    for k in range(5):
        bound = span / (1.0 - it.gamma) * it.gamma ** math.ceil(k / 2)
        assert it.exact.decay_bound(k) == pytest.approx(bound, rel=1e-10)
        decay = [spread(it.exact.q[:, s], it.ball_classes(s, k)) for s in range(it.n_states)]
        np.testing.assert_allclose(it.exact.decay(k), decay, **EXACT)
        assert max(decay) <= bound
    assert it.exact.decay(0).max() > CLEAR


@pytest.mark.parametrize("name", LONG)
def test_lemma_3_5_the_laws_agree_for_t_up_to_half_of_k_minus_1(name):
    """(mu_t(N_s), h_t(s)) has the same law from pairs that agree on N_s^k iff 2 t + 1 <= k.

    Appendix B has t <= k/2, which is false for even k. "Only if" where somebody can be outside.
    """
    it = system(name)
    for s in (0, 2, 4):
        around = it.model.graph.ball(s, 1)
        outcome = it.classes(lambda n, c, s=s, around=around: (n[around], c[s]))
        law = np.eye(outcome.max() + 1)[outcome]  # row by row the law of (mu_t(N_s), h_t(s))
        for t in range(3):
            for k in range(5):
                gap = spread(law, it.ball_classes(s, k))
                outside = len(it.model.graph.ball(s, k)) < it.n_states
                if 2 * t + 1 <= k or not outside:
                    assert gap < 1e-12
                else:
                    assert gap > 1e-6
                    if k == 2 * t:
                        assert gap > CLEAR  # where Appendix B says 0
            law = it.pair_transition @ law


def signal_local(s, mu, node, edge, prob, reward):
    """Path: stay, or go left; one action. Sees whether somebody is in s + 1.

    node[0]: go if somebody is (1), if nobody is (2), always (3). Reward: node[1], and node[2] if
    somebody is.
    """
    here = 0 if s == 0 else 1
    somebody = here + 1 < mu.size and mu[mu.size - 1] > 0.0
    go = node[0] == 3.0 or (node[0] == 1.0 and somebody) or (node[0] == 2.0 and not somebody)
    prob[0, here - 1 if go and s > 0 else here] = 1.0
    reward[0] = node[1] + (node[2] if somebody else 0.0)


def signal_model(node, discount=0.5):
    graph, node = ltde.Graph.path(len(node)), np.array(node, float)
    return ltde.NetworkedModel(graph, 1, signal_local, node=node, discount=discount)


def signal(k, n_agents, reward=1.0):
    """Make a model and two starts that agree on N_0^k, whose Q_0 differ from ceil(k/2) on.

    An agent sits in each of 2, 4, ... within the ball, and moves left once somebody is behind it;
    the last one outside does so by itself, from k + 1, or never, from k + 2. An even k saves a step
    by looking: the agent in k moves left if nobody is in k + 1. State 0 pays if somebody is in 1.
    """
    node = np.zeros((k + 3, 3))
    node[0, 2] = reward
    node[2 : k + 1 : 2, 0] = 1.0
    if k % 2 == 1:
        node[k + 1, 0] = 3.0
    elif k > 0:
        node[k, 0] = 2.0
    starts = np.zeros((2, k + 3), int)
    starts[:, 2 : k + 1 : 2] = 1
    starts[0, k + 1] = starts[1, k + 2] = 1
    starts[:, 0] = n_agents - starts[0].sum()
    return signal_model(node), starts


def deterministic_q0(model, counts):
    """Q_0 from these counts, where everything is deterministic, until nobody moves any more."""
    value, weight, n_agents = 0.0, 1.0, sum(counts)
    while True:
        prob, reward = local_tables(model, tuple(counts))
        r = counts[0] / n_agents * reward[0, 0]
        after = np.array(counts) @ prob[:, 0]
        if np.array_equal(after, counts):
            return value + weight * r / (1.0 - model.discount)
        value, weight, counts = value + weight * r, weight * model.discount, after.astype(int)


def all_go_left():
    """Path of five states, r = 1 everywhere."""
    return signal_model([[0, 1, 0]] + [[3, 1, 0]] * 4)


@lru_cache
def numbers_lemma_3_5():
    """Ten agents on the path 0-1-2-3-4, k = 2, gamma = 1/2, and variations."""
    model, starts = signal(2, 10)
    # An agent in 2 moves to 1 if nobody is in 3, then r(0) = 1; the tenth agent is in 3 or 4.
    assert starts.tolist() == [[8, 0, 1, 1, 0], [8, 0, 1, 0, 1]]
    values = [deterministic_q0(model, start) for start in starts]
    exact = ExactSystem(model, 10, np.ones((5, 1)))
    one, other = (exact.states.tolist().index(start) for start in starts.tolist())
    assert abs(exact.q[one, 0] - values[0]) < 1e-12 > abs(exact.q[other, 0] - values[1])
    gap = abs(values[0] - values[1])
    assert abs(exact.decay(2)[0] - gap) < 1e-12
    ends = [1, 0, 1, 0, 0], [1, 0, 0, 1, 0]
    ones = [deterministic_q0(all_go_left(), start) for start in ends]
    cost, ends = signal(1, 10, reward=-1.0)
    costs = [deterministic_q0(cost, start) for start in ends]
    return {
        "gap, k = 2": f"{gap:.4f}",
        "printed, k = 2": f"{0.5**1.5 / 0.5:.4f}",
        "proof of the printed, k = 2": f"{0.5**2 / 0.5:.4f}",
        "ours, k = 2, r in [0, 1]": f"{0.5 / 0.5:.4f}",
        "ours, k = 2": f"{exact.decay_bound(2):.4f}",
        "gap, r = 1, k = 1": f"{abs(ones[0] - ones[1]):.4f}",
        "gap, r = -1 or 0, k = 1": f"{abs(costs[0] - costs[1]):.4f}",
        "printed, r = -1 or 0, k = 1, r_max = 0.01": f"{0.01 * 0.5 / 0.5:.4f}",
    }


def test_lemma_3_5_as_printed_fails_for_k_2():
    """Counterexample to (r_max / (1 - gamma), sqrt(gamma)); the proof even claims gamma^(k/2 + 1).

    The state 0 sees at time 1 what was two states away from the ball's inside at time 0.
    """
    numbers = numbers_lemma_3_5()
    show(numbers)
    assert (numbers["gap, k = 2"], numbers["printed, k = 2"]) == ("0.8000", "0.7071")
    assert float(numbers["gap, k = 2"]) > float(numbers["printed, k = 2"])
    # The team reward of 0 is at most 0.9: somebody must be in 1.
    assert (numbers["ours, k = 2, r in [0, 1]"], numbers["ours, k = 2"]) == ("1.0000", "0.9000")


@pytest.mark.parametrize("k", range(8))
def test_lemma_3_5_the_corrected_exponent_is_the_best(k):
    """Q_0 differs by (1 - j / N) gamma^ceil(k/2) / (1 - gamma), j agents being signals.

    As N grows, that is the bound for r in [0, 1]; for even k it exceeds the printed one.
    """
    model, starts = signal(k, 1000)
    ball = model.graph.ball(0, k)
    assert starts[0, ball].tolist() == starts[1, ball].tolist()
    gap = abs(deterministic_q0(model, starts[0]) - deterministic_q0(model, starts[1]))
    bound = 0.5 ** math.ceil(k / 2) / 0.5
    assert gap == pytest.approx(starts[0, 0] / 1000 * bound, rel=1e-12)
    assert 0.99 * bound < gap <= bound
    printed = 0.5 ** ((k + 1) / 2) / 0.5
    assert (gap > 1.4 * printed) == (k % 2 == 0)
    if k % 2 == 1:
        assert bound == pytest.approx(printed)  # right for odd k and r in [0, r_max]


def test_lemma_3_5_needs_the_span_of_the_team_rewards():
    """The lemma bounds r from above only, and its proof assumes r in [0, r_max].

    With costs, r in [-1, 0] is below every r_max > 0. With r = 1 everywhere r_max - r_min = 0, but
    r_s = mu(s) still depends on who is outside the ball: the span is that of r_s and of 0.
    """
    numbers = numbers_lemma_3_5()
    assert float(numbers["gap, r = -1 or 0, k = 1"]) > 0.5
    assert float(numbers["printed, r = -1 or 0, k = 1, r_max = 0.01"]) == 0.01
    assert numbers["gap, r = 1, k = 1"] == "0.1250"  # half of the agents reach 0 a step earlier
    exact = ExactSystem(all_go_left(), 2, np.ones((5, 1)))
    assert exact.model.evaluate(np.full(5, 0.2))[1].tolist() == [[1.0]] * 5
    for k in range(3):
        assert exact.decay(k)[0] > CLEAR
        assert np.all(exact.decay(k) <= 1.0 / (1.0 - 0.5) * 0.5 ** math.ceil(k / 2))
        assert exact.decay_bound(k) == pytest.approx(2.0 * 0.5 ** math.ceil(k / 2))


def local_q(q, weights, classes):
    """(Local Q-function): the weighted mean of Q_s over the pairs of a class, by plain loops."""
    result = np.empty_like(q)
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        total = sum(weights[i] for i in rows)
        result[rows] = sum(weights[i] / total * q[i] for i in rows)
    return result


@pytest.mark.parametrize("name", ALL)
def test_prop_3_6_for_all_weights(name):
    """|local Q_s - Q_s| <= sup |Q_s - Q_s'| <= the bound of Lemma 3.5, whatever the weights.

    The weights must be non-negative and sum to 1 over those (mu, h) outside the ball that complete
    the inside to a pair of Xi: Q_s is not defined at others.
    """
    it = system(name)
    rng = np.random.default_rng(0)
    q, shape = it.exact.q, it.exact.q.shape
    attained = 0.0
    for k in range(3):
        classes = [it.ball_classes(s, k) for s in range(it.n_states)]
        decay = it.exact.decay(k)
        assert np.all(decay <= it.exact.decay_bound(k))
        for draw in range(30):
            weights = rng.random(shape) ** (1 + draw) * (rng.random(shape) < 1.0 / (1 + draw % 3))
            mean = it.exact.local_q(k, weights)
            assert np.all(np.abs(mean - q) <= decay + 1e-12)
            if draw < 2:
                weights = np.maximum(weights, 1e-9)
                for s, kind in enumerate(classes):
                    expected = local_q(q[:, s], weights[:, s], kind)
                    got = it.exact.local_q(k, weights[:, s])[:, s]
                    np.testing.assert_allclose(got, expected, **EXACT)
                    assert spread(got, kind) < 1e-12  # it depends on the ball only
        # All the weight on the pair where Q_s is largest: the first bound is attained.
        for s, kind in enumerate(classes):
            rank = np.argsort(np.argsort(q[:, s]))
            top = [rank[i] == rank[kind == kind[i]].max() for i in range(len(q))]
            error = np.abs(it.exact.local_q(k, np.array(top, float))[:, s] - q[:, s]).max()
            assert error == pytest.approx(decay[s], abs=1e-12)
        # Weights of both signs, or not of sum 1, break it.
        s = int(decay.argmax())
        if decay[s] > CLEAR:
            rank = np.argsort(np.argsort(q[:, s]))
            kind = classes[s]
            low = np.array([rank[i] == rank[kind == kind[i]].min() for i in range(len(q))])
            both = np.array([np.sum(kind == c) for c in kind]) > 1
            signed = np.where(low & both, -1.0, 0.0)
            high = np.array([rank[i] == rank[kind == kind[i]].max() for i in range(len(q))])
            signed[high] += 1.0 + both[high]
            wrong = local_q(q[:, s], signed, kind)
            assert np.abs(wrong - q[:, s]).max() == pytest.approx(2.0 * decay[s], rel=1e-9)
            attained = max(attained, decay[s])
    assert attained > CLEAR


def test_eq_3_14_as_printed_fails_with_lemma_3_5():
    """(3.14) inherits the bound: weights on one of the two starts give the whole gap at the other.

    The proposition itself is right, given Definition 3.4.
    """
    model, starts = signal(2, 10)
    exact = ExactSystem(model, 10, np.ones((5, 1)))
    one, other = (exact.states.tolist().index(start) for start in starts.tolist())
    weights = np.zeros(len(exact.q))
    weights[one] = 1.0
    error = abs(exact.local_q(2, weights) - exact.q)[other, 0]
    assert error == pytest.approx(0.8, rel=1e-12)
    assert 0.5**1.5 / 0.5 < error <= exact.decay_bound(2)


# The page.


PAGE = Path(__file__).parents[1] / "docs" / "corrections.md"


@pytest.mark.checkout
@pytest.mark.parametrize(
    ("section", "numbers"),
    [
        ("1.", numbers_eq_3_6),
        ("2.", numbers_lemma_3_5),
        ("5.", numbers_eq_3_13),
        ("6.", numbers_eq_3_2),
        ("7.", numbers_lemma_3_2),
        ("7.", numbers_lemma_3_2_knowledge),
        ("8.", numbers_eq_a_4),
    ],
)
def test_the_page_on_corrections_cites_these_numbers(section, numbers):
    (text,) = [
        part for part in PAGE.read_text().split("\n## ")[1:] if part.startswith(f"{section} ")
    ]
    words = text.replace("|", " ").replace(",", " ").split()
    cited = {word.strip("().;:*`") for word in words}
    missing = {what: number for what, number in numbers().items() if number not in cited}
    assert not missing


@pytest.mark.checkout
def test_the_page_on_corrections_names_tests_that_exist():
    words = PAGE.read_text().replace("`", " ").split()
    named = {word.strip(".,;:()") for word in words if word.startswith("test_")}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []

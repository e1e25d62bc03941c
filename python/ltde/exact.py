"""Exact solution of small systems: every pair (mu, h) is enumerated, nothing is sampled.

The pairs `(mu, h)` of `N` agents are the ways to deal `N` agents out to the allowed pairs `(s, a)`.
Compositions (rows of counts with a given sum) are kept in lexicographic order throughout, and
`_rank` gives the place of one in that order, so that no dictionary is needed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltde.arguments import integer, population_size
from ltde.compositions import compositions
from ltde.initial import DirichletInitial
from ltde.model import NetworkedModel
from ltde.policy import TabularPolicy

try:
    from scipy.sparse import csc_array, csr_array, eye_array
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import LinearOperator, aslinearoperator, splu
    from scipy.special import gammaln, xlogy
except ImportError as error:
    raise ImportError("ltde.exact needs scipy: pip install 'ltde[exact]'") from error

__all__ = ["ExactSystem"]

_T = TypeVar("_T", bound=np.generic)

# Entries of `transition` per pair that are accepted: 200 million at the default `max_pairs`.
_ENTRIES_PER_PAIR = 1000
# Largest |sum - 1| of a team policy; float32 networks come within.
_POLICY_TOLERANCE = 1e-4
# Distance of the inverse iteration from the eigenvalue 1; far above the rounding of a row sum.
_NEARLY_SINGULAR = 1e-12


class ExactSystem:
    """Enumerate every `(mu, h)` of a small system under one policy, and solve it.

    What costs time is computed on first use and kept, for the policy as it was when this object was
    made. Arrays are read-only.

    Parameters
    ----------
    model
        The model. Rows of `prob` are divided by their sum, as the simulator does.
    n_agents
        Number of agents `N`, a finite integer.
    policy
        `(S, A)` probabilities, a `TabularPolicy`, or any policy that does not change with time and
        has `log_prob(counts, actions, n_agents)`, the logarithms `(..., S)` of
        `Pi_s(h(s) | mu(s))`, and for gradients `score(counts, actions, n_agents)`, their gradients
        `(..., S, ...)` with respect to the parameters of `s`. Both are asked about one number of
        agents in all states at once, so they must depend on `mu(s)` and `h(s)` only, Eq. (3.3).
    max_pairs
        Largest number of pairs `(mu, h)` to enumerate.

    Raises
    ------
    ValueError
        If `n_agents` is not a finite positive integer or differs from the total of integer initial
        counts, if there are too many pairs, or if the policy changes with time.
    TypeError
        If `policy` is neither an array nor has `log_prob`.

    Examples
    --------
    Two agents in state 0 are paid when they are apart; action 1 goes to state 1, whence agents
    return by themselves.

    >>> import ltde
    >>> from ltde.exact import ExactSystem
    >>> def local(s, mu, node, edge, prob, reward):
    ...     for a in range(2):
    ...         prob[a, a if s == 0 else 0] = 1.0
    ...         reward[a] = 1.0 if mu[0] == 0.5 else 0.0
    >>> model = ltde.NetworkedModel(
    ...     ltde.Graph.path(2), 2, local, initial=[2, 0], discount=0.5
    ... )
    >>> exact = ExactSystem(model, 2, [[0.5, 0.5], [1.0, 0.0]])
    >>> exact
    ExactSystem(n_agents=2, n_states_mu=3, n_pairs=10)
    >>> round(exact.J, 6)  # each agent flips a coin
    0.457143
    >>> exact.optimal_value[exact.initial_law == 1.0]  # a controller sends one of them
    array([1.])
    """

    def __init__(
        self,
        model: NetworkedModel,
        n_agents: int,
        policy: Any,
        *,
        max_pairs: int = 200_000,
    ) -> None:
        if not isinstance(model, NetworkedModel):
            raise TypeError(f"model: expected an ltde.NetworkedModel, got {type(model).__name__}")
        size = population_size(n_agents)
        if size == math.inf:
            raise ValueError("n_agents: expected a finite number, got inf: nothing to enumerate")
        self.model = model
        self.n_agents = int(size)
        self._allowed = [np.flatnonzero(row) for row in model.action_mask]
        self._check_size(integer("max_pairs", max_pairs, 1, 2**63))
        self._check_initial()
        self.policy = copy.deepcopy(_team_policy(policy, model))  # networks may be trained on

    def _check_size(self, max_pairs: int) -> None:
        """Refuse what would not fit, before anything is enumerated."""
        agents, cells, limit = self.n_agents, int(self.model.action_mask.sum()), 64
        smaller = min(agents, cells - 1)  # above the limit, more than 2^64 pairs
        pairs = math.comb(agents + cells - 1, min(smaller, limit))
        if pairs > max_pairs:
            amount = f"{pairs}" if pairs < 10**15 else f"10^{len(str(pairs)) - 1}"
            raise ValueError(
                f"n_agents: {agents} agents on {cells} allowed pairs (s, a) make "
                f"{'more than ' if smaller > limit or pairs >= 10**15 else ''}{amount} pairs "
                f"(mu, h), but max_pairs = {max_pairs}"
            )
        n_states_mu = len(self.states)
        targets = _log_compositions(self.states, np.diff(self.model.graph.indptr))
        teams = _log_compositions(self.states, self.model.action_mask.sum(axis=1))
        entries = np.exp(teams + np.minimum(targets, math.log(n_states_mu))).sum()
        if entries > _ENTRIES_PER_PAIR * max_pairs:
            raise ValueError(
                f"n_agents: {agents} agents make a transition matrix of up to {entries:.2g} "
                f"entries, but {_ENTRIES_PER_PAIR} max_pairs = {_ENTRIES_PER_PAIR * max_pairs}"
            )

    def _check_initial(self) -> None:
        initial = self.model.initial
        if isinstance(initial, DirichletInitial) or initial.dtype.kind == "f":
            return
        for row, total in enumerate(np.atleast_2d(initial).sum(axis=1)):
            if total != self.n_agents:
                name = "initial" if initial.ndim == 1 else f"initial[{row}]"
                raise ValueError(
                    f"n_agents: {name} sums to {total} agents, got n_agents = {self.n_agents}"
                )

    # The system.

    @cached_property
    def states(self) -> NDArray[np.int64]:
        """Counts of every `mu`, `(n_states_mu, S)`, in lexicographic order."""
        return _read_only(compositions(self.n_agents, self.model.n_states))

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """Row of `mu` in `states`, then `c(s, a)` in C order, `(n_pairs, 1 + S A)`."""
        mask = self.model.action_mask
        dealt = compositions(self.n_agents, int(mask.sum()))
        pairs = np.zeros((len(dealt), 1 + mask.size), dtype=np.int64)
        pairs[:, 1:][:, mask.ravel()] = dealt
        pairs[:, 0] = _rank(pairs[:, 1:].reshape(-1, *mask.shape).sum(axis=2))
        return _read_only(pairs[np.argsort(pairs[:, 0], kind="stable")])

    @cached_property
    def _actions(self) -> NDArray[np.int64]:
        """Team actions of every pair, `(n_pairs, S, A)`."""
        return self.pairs[:, 1:].reshape(-1, *self.model.action_mask.shape)

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """First pair of every `mu`, and the number of pairs, `(n_states_mu + 1,)`."""
        return np.searchsorted(self.pairs[:, 0], np.arange(len(self.states) + 1))

    @cached_property
    def transition(self) -> csr_array:
        """`P_N(mu' | mu, h)` of (3.5), sparse `(n_pairs, n_states_mu)`."""
        data, indices, lengths = [], [], []
        for counts in self.states:
            reached, law = self._next_law(counts)
            data.append(law.ravel())
            indices.append(np.tile(reached, len(law)))
            lengths.append(np.full(len(law), len(reached)))
        indptr = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
        transition = csr_array(
            (np.concatenate(data), np.concatenate(indices), indptr),
            shape=(len(self.pairs), len(self.states)),
        )
        transition.eliminate_zeros()
        for array in (transition.data, transition.indices, transition.indptr):
            _read_only(array)
        return transition

    @cached_property
    def team_rewards(self) -> NDArray[np.float64]:
        """`r_s = sum_a c(s, a) r(s, mu(N_s), a) / N`, `(n_pairs, S)`."""
        one_agent = np.stack([self.model.evaluate(mu)[1] for mu in self.states / self.n_agents])
        rewards = np.einsum("psa,psa->ps", self._actions, one_agent[self.pairs[:, 0]])
        return _read_only(rewards / self.n_agents)

    def _next_law(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of `states` that can follow, and their law for every `h` of this `mu`.

        Agents move one at a time, state by state. All that take the same action move alike, so the
        law for `c(s, .)` is that for `c(s, .)` less one agent of `a`, convolved with the move of
        that agent; it does not matter which `a` with `c(s, a) > 0` it is.
        """
        graph, (prob, _) = self.model.graph, self.model.evaluate(counts / self.n_agents)
        unit = np.eye(self.model.n_states, dtype=np.int64)
        reached = np.zeros((1, self.model.n_states), dtype=np.int64)
        law = np.ones((1, 1, 1))  # (teams of the states before, teams of s, reached)
        for s in np.flatnonzero(counts):
            moves = prob[self._allowed[s], graph.indptr[s] : graph.indptr[s + 1]]
            moves = moves / moves.sum(axis=1, keepdims=True)
            law = law.reshape(-1, 1, len(reached))
            for n in range(1, counts[s] + 1):
                fewer, action = _less_one(n, len(moves))
                law = law[:, fewer, None, :] * moves[action, :, None]
                reached = (reached + unit[graph.neighbors(s), None]).reshape(-1, len(unit))
                ranks, first, order = _groups(_rank(reached))
                law = np.add.reduceat(law.reshape(*law.shape[:2], -1)[..., order], first, axis=2)
                reached = reached[order[first]]
        return ranks, law.reshape(-1, len(reached))

    @cached_property
    def initial_law(self) -> NDArray[np.float64]:
        """`P_0`, `(n_states_mu,)`."""
        initial, states = self.model.initial, self.states
        if not isinstance(initial, DirichletInitial) and initial.dtype.kind == "i":
            ranks = _rank(np.atleast_2d(initial))
            law = np.bincount(ranks, minlength=len(states)).astype(np.float64)
            return _read_only(law / law.sum())
        log = -gammaln(states + 1).sum(axis=1)  # up to a constant
        if isinstance(initial, DirichletInitial):
            rising = np.log(initial.alpha[:, None] + np.arange(self.n_agents)).cumsum(axis=1)
            rising = np.pad(rising, ((0, 0), (1, 0)))  # log alpha (alpha + 1) ... (alpha + n - 1)
            log += rising[np.arange(len(rising)), states].sum(axis=1)
        else:
            log += xlogy(states, initial).sum(axis=1)
        law = np.exp(log - log.max())
        return _read_only(law / law.sum())

    # The policy.

    @cached_property
    def policy_probs(self) -> NDArray[np.float64]:
        """`Pi(h | mu)` of (3.3), `(n_pairs,)`."""
        logs = [np.zeros((1, self.model.n_states))]
        for n in range(1, self.n_agents + 1):
            logs.append(self._ask(self.policy.log_prob, n))
            for s, allowed in enumerate(self._allowed):
                own = logs[-1][: math.comb(n + len(allowed) - 1, n), s]
                total = float(np.exp(own).sum())
                if not abs(total - 1.0) <= _POLICY_TOLERANCE:
                    raise ValueError(
                        f"policy: expected team actions in state {s} of probabilities that sum "
                        f"to 1 over the allowed actions, got {total} for {n} agents"
                    )
                own -= math.log(total)
        log = np.concatenate(logs)
        return _read_only(np.exp(log[self._teams, np.arange(self.model.n_states)].sum(axis=1)))

    def _team_actions(self, n: int) -> NDArray[np.int64]:
        """All `c(s, .)` of `n` agents, for all states at once, `(C, S, A)`.

        States that have fewer than `C` of them repeat their last.
        """
        dealt = [compositions(n, len(allowed)) for allowed in self._allowed]
        size = max(len(rows) for rows in dealt)
        actions = np.zeros((size, *self.model.action_mask.shape), dtype=np.int64)
        for s, (allowed, rows) in enumerate(zip(self._allowed, dealt, strict=True)):
            actions[:, s, allowed] = rows[np.minimum(np.arange(size), len(rows) - 1)]
        return actions

    def _ask(self, method: Callable[..., Any], n: int) -> NDArray[np.float64]:
        """Call `log_prob` or `score` at all `c(s, .)` of `n` agents, `(C, S, ...)`."""
        actions = self._team_actions(n)
        counts = np.full(actions.shape[:2], n, dtype=np.int64)
        answer = method(counts, actions, n_agents=self.n_agents)
        if hasattr(answer, "detach"):  # a torch tensor
            answer = answer.detach().cpu().numpy()
        array = np.array(answer, dtype=np.float64)
        if array.shape[:2] != counts.shape:
            raise ValueError(
                f"policy: expected {method.__name__} of shape {counts.shape} or with more axes, "
                f"got {array.shape}"
            )
        return array

    @cached_property
    def _teams(self) -> NDArray[np.int64]:
        """Place of every `c(s, .)` among `_team_actions(0), (1), ...` stacked, `(n_pairs, S)`."""
        sizes = _binomials(self.n_agents, max(map(len, self._allowed)))[:, -1]
        places: NDArray[np.int64] = (np.cumsum(sizes) - sizes)[self.states[self.pairs[:, 0]]]
        for s, allowed in enumerate(self._allowed):
            places[:, s] += _rank(self._actions[:, s, allowed])
        return places

    @cached_property
    def _team_law(self) -> csr_array:
        """`Pi(h | mu)` as a matrix `(n_states_mu, n_pairs)`."""
        columns = np.arange(len(self.pairs))
        shape = (len(self.states), len(self.pairs))
        return csr_array((self.policy_probs, columns, self._first), shape=shape)

    @cached_property
    def _chain(self) -> csr_array:
        """`P(mu' | mu)` under the policy, `(n_states_mu, n_states_mu)`."""
        chain = csr_array(self._team_law @ self.transition)
        chain.eliminate_zeros()
        return chain

    @cached_property
    def pair_transition(self) -> LinearOperator:
        """`P_N(mu' | mu, h) Pi(h' | mu')`, a linear operator `(n_pairs, n_pairs)`."""
        return aslinearoperator(self.transition) @ aslinearoperator(self._team_law)

    # Values and laws.

    @cached_property
    def _resolvent(self) -> Any:
        """LU factors of `1 - gamma P(mu' | mu)`."""
        return _factors(self.model.discount, self._chain)

    @cached_property
    def v(self) -> NDArray[np.float64]:
        """`V_s` of (3.9), `(n_states_mu, S)`."""
        return _read_only(self._resolvent.solve(self._team_law @ self.team_rewards))

    @cached_property
    def q(self) -> NDArray[np.float64]:
        """`Q_s` of (3.11), `(n_pairs, S)`."""
        return _read_only(self.team_rewards + self.model.discount * (self.transition @ self.v))

    @cached_property
    def J(self) -> float:
        """Expected total reward, Eq. (4.1), the mean of `sum_s V_s` under `P_0`."""
        return float(self.initial_law @ self.v.sum(axis=1))

    @cached_property
    def visitation(self) -> NDArray[np.float64]:
        """Discounted visitation law `sigma` of (4.2), `(n_pairs,)`."""
        law = self._resolvent.solve((1.0 - self.model.discount) * self.initial_law, "T")
        return _read_only(law[self.pairs[:, 0]] * self.policy_probs)

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """Stationary law `nu` of the chain without restarts, `(n_pairs,)`; 0 where transient.

        Raises
        ------
        ValueError
            If there are several: the chain has more than one recurrent class.
        """
        n_classes, kind = connected_components(self._chain, connection="strong")
        origin, target = self._chain.nonzero()
        left = np.unique(kind[origin[kind[origin] != kind[target]]])
        closed = np.setdiff1d(np.arange(n_classes), left)
        if len(closed) > 1:
            one, other = (self.states[np.flatnonzero(kind == c)[0]].tolist() for c in closed[:2])
            raise ValueError(
                f"stationary: the chain has {len(closed)} recurrent classes, so that its "
                f"stationary law is not unique; counts {one} and {other} never lead to each other"
            )
        members = np.flatnonzero(kind == closed[0])
        factors = _factors(1.0 - _NEARLY_SINGULAR, self._chain[members][:, members])
        inside = np.full(len(members), 1.0 / len(members))
        for _ in range(10):  # inverse iteration; periodic chains are no exception
            inside = factors.solve(inside, "T")
            inside /= inside.sum()
        law = np.zeros(len(self.states))
        law[members] = inside
        return _read_only(law[self.pairs[:, 0]] * self.policy_probs)

    @cached_property
    def optimal_value(self) -> NDArray[np.float64]:
        """Best centralised value of every `mu`, the fixed point of (3.12), `(n_states_mu,)`.

        It is an upper bound on what decentralised policies reach, in general not attained: (3.12)
        lets a controller who sees all of `mu` choose `h`, and split a team exactly. It is computed
        by policy iteration until the Bellman residual proves an error of at most
        `max(1e-12, 64 eps / (1 - gamma)) max |sum_s r_s| / (1 - gamma)`, `eps = 2^-52`.
        """
        gamma, mu, rewards = self.model.discount, self.pairs[:, 0], self.team_rewards.sum(axis=1)
        scale = np.abs(rewards).max() / (1.0 - gamma)
        enough = max(1e-12 * (1.0 - gamma), 64 * np.finfo(float).eps) * scale
        value = np.zeros(len(self.states))
        for _ in range(1000):  # a handful in practice
            q = rewards + gamma * (self.transition @ value)
            best = np.maximum.reduceat(q, self._first[:-1])
            if np.abs(best - value).max() <= enough:
                return _read_only(best)
            attained = np.flatnonzero(q == best[mu])
            greedy = attained[np.unique(mu[attained], return_index=True)[1]]
            value = _factors(gamma, self.transition[greedy]).solve(rewards[greedy])
        raise ArithmeticError("optimal_value: policy iteration did not settle in 1000 rounds")

    # Gradients.

    def gradient(self) -> NDArray[np.float64]:
        """Return the policy gradient `grad J` of Lemma 4.1.

        Returns
        -------
        gradient
            `(S, ...)`, for every state the gradient with respect to its parameters: those that
            `policy.score` differentiates by (the logits of a table).

        Raises
        ------
        TypeError
            If the policy has no `score`.
        """
        everything = self.q.sum(axis=1, keepdims=True)
        return self._weighted_scores(np.broadcast_to(everything, self.q.shape))

    def localized_gradient(
        self, k: SupportsIndex, weights: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Return the localised policy gradient `g_s` of (4.9).

        Parameters
        ----------
        k
            Radius, at least 0.
        weights
            As in `local_q`.

        Returns
        -------
        gradient
            `(S, ...)`, as `gradient`; the same from the diameter of the graph on.
        """
        local_q = self.local_q(k, weights)
        balls = (self.model.graph.ball(s, k) for s in range(self.model.n_states))
        return self._weighted_scores(np.stack([local_q[:, b].sum(axis=1) for b in balls], axis=1))

    def _weighted_scores(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`E_sigma[values_s score_s] / (1 - gamma)` for values `(n_pairs, S)`, `(S, ...)`."""
        if not hasattr(self.policy, "score"):
            raise TypeError(f"policy: {type(self.policy).__name__} has no score")
        weights = self.visitation[:, None] * values / (1.0 - self.model.discount)
        size = int(self._teams.max()) + 1
        table = np.stack(
            [np.bincount(t, w, size) for t, w in zip(self._teams.T, weights.T, strict=True)], axis=1
        )
        parts, first = [], 1
        for n in range(1, self.n_agents + 1):
            score = self._ask(self.policy.score, n)
            own = table[first : first + len(score)]
            score[own == 0.0] = 0.0
            parts.append(np.einsum("cs,cs...->s...", own, score))
            first += len(score)
        return np.asarray(np.sum(parts, axis=0))

    # Locality.

    def local_q(self, k: SupportsIndex, weights: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return the localised Q-functions, (Local Q-function) in the paper.

        `Q_s` is replaced by its weighted mean over all pairs that agree on `mu(N_s^k)` and
        `h(N_s^k)`.

        Parameters
        ----------
        k
            Radius, at least 0.
        weights
            `(n_pairs,)` or `(n_pairs, S)`, non-negative, scaled to a sum of 1 in each class of
            pairs that agree; a class of total 0 is weighted uniformly. None: uniform.

        Returns
        -------
        q
            `(n_pairs, S)`.

        Raises
        ------
        ValueError
            If `weights` has another shape or holds a number that is negative or not finite.
        """
        weight = self._weights(weights)
        result = np.empty_like(self.q)
        for s, kind in enumerate(self._classes(k)):
            w = weight[:, s]
            w = np.where(np.bincount(kind, w)[kind] > 0.0, w, 1.0)
            mean = np.bincount(kind, w * self.q[:, s]) / np.bincount(kind, w)
            result[:, s] = mean[kind]
        return result

    def decay(self, k: SupportsIndex) -> NDArray[np.float64]:
        """Return how much each `Q_s` depends on what is outside the ball `N_s^k`, `(S,)`.

        That is the largest `|Q_s(mu, h) - Q_s(mu', h')|` over pairs that agree on the ball, the
        left side of Definition 3.4.

        Parameters
        ----------
        k
            Radius, at least 0.
        """
        result = np.zeros(self.model.n_states)
        for s, kind in enumerate(self._classes(k)):
            _, first, order = _groups(kind)
            q = self.q[order, s]
            result[s] = (np.maximum.reduceat(q, first) - np.minimum.reduceat(q, first)).max()
        return result

    def decay_bound(self, k: int) -> float:
        """Return the bound `D gamma^ceil(k/2) / (1 - gamma)` on `decay(k)`: Lemma 3.5, corrected.

        `D = max(r_max, 0) - min(r_min, 0)` is the span of the team rewards of this system.

        Parameters
        ----------
        k
            Radius, at least 0.
        """
        half = (integer("k", k, 0, 2**63) + 1) // 2
        span = max(self.team_rewards.max(), 0.0) - min(self.team_rewards.min(), 0.0)
        return float(span * self.model.discount**half / (1.0 - self.model.discount))

    def _classes(self, k: SupportsIndex) -> list[NDArray[np.int64]]:
        """For each state, the class of every pair: equal where they agree on `N_s^k`."""
        classes = []
        for s in range(self.model.n_states):
            ball = self.model.graph.ball(s, k)
            inside = self._actions[:, ball][:, self.model.action_mask[ball]]  # determines mu too
            outside = self.n_agents - inside.sum(axis=1, keepdims=True)
            rank = _rank(np.concatenate((outside, inside), axis=1))
            classes.append(np.unique(rank, return_inverse=True)[1])
        return classes

    def _weights(self, weights: ArrayLike | None) -> NDArray[np.float64]:
        if weights is None:
            return np.ones_like(self.q)
        array = np.asarray(weights, dtype=np.float64)
        n_pairs, states = self.q.shape
        if array.shape not in ((n_pairs,), (n_pairs, states)):
            raise ValueError(
                f"weights: expected shape ({n_pairs},) or ({n_pairs}, {states}), got {array.shape}"
            )
        for index in np.argwhere(~((array >= 0.0) & np.isfinite(array)))[:1].tolist():
            place = ", ".join(map(str, index))
            raise ValueError(
                f"weights[{place}]: expected a finite number >= 0, got {array[tuple(index)]}"
            )
        return np.broadcast_to(array.reshape(n_pairs, -1), (n_pairs, states))

    def __repr__(self) -> str:
        """Show the sizes."""
        return (
            f"ExactSystem(n_agents={self.n_agents}, n_states_mu={len(self.states)}, "
            f"n_pairs={len(self.pairs)})"
        )


def _team_policy(policy: Any, model: NetworkedModel) -> Any:
    """Return an object with `log_prob` that does not change with time."""
    if not hasattr(policy, "log_prob") and not isinstance(policy, TabularPolicy):
        array = np.asarray(policy)
        if array.dtype.kind not in "fiu":
            raise TypeError(
                "policy: expected (S, A) probabilities or a policy with log_prob, got "
                f"{type(policy).__name__}"
            )
        policy = TabularPolicy(array)
    if not getattr(policy, "stationary", True):
        raise ValueError("policy: expected one that does not change with time")
    shape = model.action_mask.shape
    if isinstance(policy, TabularPolicy) and policy.probs.shape != shape:
        raise ValueError(f"policy: expected shape {shape}, got {policy.probs.shape}")
    return policy


@lru_cache(maxsize=256)
def _binomials(n: int, k: int) -> NDArray[np.int64]:
    """Table `(n + 1, k)` of `C(r + j, j)`: compositions of `r` into `j + 1` parts."""
    table = np.ones((n + 1, k), dtype=np.int64)
    for j in range(1, k):
        np.cumsum(table[:, j - 1], out=table[:, j])
    return _read_only(table)


def _log_compositions(totals: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of the ways to split each of the totals `(..., S)` into its parts `(S,)`."""
    ways = gammaln(totals + parts) - gammaln(totals + 1) - gammaln(parts)
    return np.asarray(ways.sum(axis=-1))


def _rank(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each row of counts among all rows of the same sum, in lexicographic order.

    The rows that come first because of column `i` have the same counts before it and less in it.
    """
    k = rows.shape[-1]
    rest = np.cumsum(rows[..., ::-1], axis=-1)[..., ::-1]
    table, after = _binomials(int(rest[..., 0].max()), k), np.arange(k - 1, 0, -1)
    ranks: NDArray[np.int64] = table[rest[..., :-1], after] - table[rest[..., 1:], after]
    return np.asarray(ranks.sum(axis=-1))


@lru_cache(maxsize=256)
def _less_one(n: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each composition of `n` into `k` parts, a positive part and the rank with one less."""
    rows = compositions(n, k)
    part = (rows > 0).argmax(axis=1)
    rows[np.arange(len(rows)), part] -= 1
    return _rank(rows), part


def _groups(
    values: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]:
    """Distinct values in order, where each begins once sorted, and the order that sorts."""
    order = np.argsort(values, kind="stable")
    distinct, first = np.unique(values[order], return_index=True)
    return distinct, first, order


def _factors(discount: float, chain: csr_array) -> Any:
    """LU factors of `1 - discount chain`, with pivots on the diagonal.

    It is an M-matrix: its elimination needs no other pivots and keeps laws non-negative.
    """
    matrix = csc_array(eye_array(chain.shape[0]) - discount * chain)
    mode = {"SymmetricMode": True}
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=mode)


def _read_only(array: NDArray[_T]) -> NDArray[_T]:
    array.flags.writeable = False
    return array

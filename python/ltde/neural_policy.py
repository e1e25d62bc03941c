"""Team policies of two-layer networks: softmax with a multinomial team, and energy-based."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ltde import _core
from ltde.arguments import integer, positive, seed_number
from ltde.compositions import compositions
from ltde.networks import features, forward, initial_weights
from ltde.policy import Counts, IndividualPolicy, as_actions, as_counts, draw_actions

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["ChainReport", "EnergyPolicy", "NetworkPolicy", "SoftmaxPolicy"]


class NetworkPolicy(nn.Module):
    """What the two families share: the networks of all states and how they read a state.

    Use `SoftmaxPolicy` or `EnergyPolicy`. The network of `s` reads
    `input_scale * (density_scale * mu(s), h(s))`, so `d = 1 + A`.

    Attributes
    ----------
    theta : torch.nn.Parameter
        `(S, M, 1 + A)`, the trained weights. The core reads them in place, without a copy, as long
        as they are contiguous on the CPU.
    b : torch.Tensor
        `(S, M)`, the fixed signs +-1.
    action_mask : torch.Tensor
        `(S, A)` bool, which actions each state allows.
    """

    b: Tensor
    action_mask: Tensor

    def __init__(
        self,
        model: NetworkedModel,
        width: int = 64,
        *,
        tau: float = 1.0,
        density_scale: float = 1.0,
        input_scale: float = 1.0,
        symmetric: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        width = integer("width", width, 1, 2**31)
        if symmetric and width % 2:
            raise ValueError(f"width: expected an even number with symmetric=True, got {width}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        self.tau = positive("tau", tau)
        self.density_scale = positive("density_scale", density_scale)
        self.input_scale = positive("input_scale", input_scale)
        shape = (model.n_states, width, 1 + model.n_actions)
        theta, b = initial_weights(shape, symmetric=symmetric, seed=seed_number(seed), dtype=dtype)
        self.theta = nn.Parameter(theta)
        self.register_buffer("b", b)
        self.register_buffer("action_mask", torch.from_numpy(model.action_mask.copy()))

    @property
    def n_states(self) -> int:
        """Number of states `S`."""
        return int(self.b.shape[0])

    @property
    def width(self) -> int:
        """Width `M` of the networks."""
        return int(self.b.shape[1])

    @property
    def n_actions(self) -> int:
        """Number of actions `A`."""
        return int(self.action_mask.shape[1])

    @property
    def stationary(self) -> bool:
        """True: the policy does not depend on time."""
        return True

    def sample(
        self, counts: ArrayLike, seed: int, n_agents: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Draw team actions `c(s, .)` from `Pi_s(. | mu(s))`, independently over states.

        Parameters
        ----------
        counts
            `(..., S)` integers.
        seed
            Integer in [0, 2^64).
        n_agents
            `N`; None takes the sum of each row of `counts`.

        Returns
        -------
        ndarray
            `(..., S, A)` int64; rows sum to `counts`.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        return draw_actions(self._core, checked, self.n_actions, seed)

    @property
    def _core(self) -> _core.NetworkPolicy:
        """The view that the core reads; shares the memory of CPU parameters."""
        self._check()
        return _core.NetworkPolicy(
            _numpy(self.theta),
            _numpy(self.b.to(self.theta.dtype)),
            _numpy(self.action_mask),
            self.tau,
            self.density_scale,
            self.input_scale,
            self._effort(),
        )

    def _effort(self) -> tuple[int, int, int] | None:
        """Return what an energy-based policy may spend on a draw."""
        return None

    def _wide(self) -> tuple[Tensor, Tensor]:
        """Return `theta` and `b` in float64, differentiable."""
        self._check()
        return self.theta.double(), self.b.double()

    def _check(self) -> None:
        """Refuse parameters that were replaced by others that do not fit."""
        theta, shape = self.theta, (*self.b.shape, 1 + self.action_mask.shape[1])
        if theta.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"theta: expected float32 or float64, got {theta.dtype}")
        if tuple(theta.shape) != shape:
            raise ValueError(f"theta: expected shape {shape}, got {tuple(theta.shape)}")
        if not bool(self.action_mask.any(-1).all()):
            s = int((~self.action_mask.any(-1)).nonzero()[0])
            raise ValueError(f"action_mask[{s}]: forbids every action of state {s}")

    def _density(self, checked: Counts) -> Tensor:
        """Return `input_scale * density_scale * mu(s)`, `(..., S)` in float64."""
        scale = self.input_scale * self.density_scale
        return torch.from_numpy(scale * checked.density).to(self.theta.device)

    def extra_repr(self) -> str:
        """Show sizes and scales."""
        return (
            f"n_states={self.n_states}, width={self.width}, n_actions={self.n_actions}, "
            f"tau={self.tau:g}, density_scale={self.density_scale:g}, "
            f"input_scale={self.input_scale:g}"
        )


class SoftmaxPolicy(NetworkPolicy):
    """Individual policy by softmax, and its multinomial team policy, Eq. (3.2)-(3.3).

    `pi(a | s, mu(s)) = softmax over allowed a of tau f((mu(s), e_a); theta_s)` with the two-layer
    network `f` of Eq. (4.3).

    Parameters
    ----------
    model
        Gives the states, the actions and their mask.
    width
        Number `M` of neurons of each state.
    tau
        Temperature parameter of the softmax, > 0.
    density_scale
        Multiplies `mu(s)` in the input; `|S|` makes densities of order 1.
    input_scale
        Multiplies the whole input; `2 ** -0.5` gives `||zeta_s|| <= 1`, as the theory assumes.
    symmetric
        Start from `f = 0`, the uniform policy: the second half of the neurons copies the first
        with `b` negated. Needs an even width.
    seed
        Seed of the initial weights, an integer in [0, 2^64).
    dtype
        `torch.float32` or `torch.float64`.

    Examples
    --------
    >>> import ltde
    >>> def wander(s, mu, node, edge, prob, reward):
    ...     for a in range(prob.shape[0]):
    ...         prob[a, a] = 1.0
    >>> model = ltde.NetworkedModel(ltde.Graph.ring(4), 3, wander, discount=0.9)
    >>> policy = ltde.SoftmaxPolicy(model, width=16, symmetric=True)
    >>> policy.individual()(0, 0.25)
    array([0.33333333, 0.33333333, 0.33333333])
    """

    def outputs(self, counts: ArrayLike, n_agents: ArrayLike | None = None) -> Tensor:
        """Return `f((mu(s), e_a); theta_s)` for every action.

        Parameters
        ----------
        counts
            `(..., S)` integers, or densities that sum to 1.
        n_agents
            `N`; None takes the sum of each row.

        Returns
        -------
        Tensor
            `(..., S, A)` in float64, differentiable in `theta`.
        """
        z = self._inputs(as_counts(counts, self.n_states, n_agents, densities=True))
        _, b = self._wide()
        output: Tensor = torch.einsum("...sma,sm->...sa", z.relu(), b) / self.width**0.5
        return output

    def mean_action(self, counts: ArrayLike, n_agents: ArrayLike | None = None) -> Tensor:
        """Return `E[h(s)] = pi(. | s, mu(s))`.

        Parameters
        ----------
        counts
            `(..., S)` integers, or densities that sum to 1.
        n_agents
            `N`; None takes the sum of each row.

        Returns
        -------
        Tensor
            `(..., S, A)` in float64, differentiable in `theta`; 0 for masked actions.
        """
        return torch.softmax(self._logits(counts, n_agents), dim=-1)

    def log_prob(
        self, counts: ArrayLike, actions: ArrayLike, n_agents: ArrayLike | None = None
    ) -> Tensor:
        """Return `log Pi_s(h(s) | mu(s))` of the multinomial team (3.2); (3.3) is its sum over `s`.

        Accurate up to `n(s) = 10^9` and beyond: deviances and Stirling tails instead of factorials.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            `N`; None takes the sum of each row of `counts`.

        Returns
        -------
        Tensor
            `(..., S)` in float64, differentiable in `theta`; 0 for an empty team and `-inf` where
            a masked action is taken.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        team = _tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
        logits = self._logits(checked.counts, checked.total)
        return multinomial_log_prob(team, torch.log_softmax(logits, dim=-1))

    def score(
        self, counts: ArrayLike, actions: ArrayLike, n_agents: ArrayLike | None = None
    ) -> Tensor:
        """Return the gradient of `log Pi_s` in `theta_s`, in closed form.

        `tau n(s) sum_a (h(s)(a) - pi(a | s, mu(s))) phi(mu(s), e_a)`.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            `N`; None takes the sum of each row of `counts`.

        Returns
        -------
        Tensor
            `(..., S, M, 1 + A)` in float64; 0 for an empty team.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        team = _tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
        with torch.no_grad():
            z = self._inputs(checked)
            excess = team - team.sum(-1, keepdim=True) * self.mean_action(
                checked.counts, checked.total
            )
            gate = self.b.double().unsqueeze(-1) * (z > 0) * (self.tau / self.width**0.5)
            by_action = gate * excess.unsqueeze(-2)
            by_density = by_action.sum(-1) * self._density(checked).unsqueeze(-1)
            return torch.cat([by_density.unsqueeze(-1), self.input_scale * by_action], dim=-1)

    def individual(self) -> IndividualPolicy:
        """Return the policy of one agent, `(state, density) -> (A,)`, with the present weights."""
        theta, b, mask = (_numpy(x).copy() for x in (self.theta, self.b, self.action_mask))
        tau, unit, scale = self.tau, self.input_scale, self.density_scale

        def individual(state: int, density: float, /) -> NDArray[np.float64]:
            output = _at_vertices(theta[state], b[state], scale * density, unit)
            return _softmax(tau * output, mask[state])

        return individual

    def _logits(self, counts: ArrayLike, n_agents: ArrayLike | None) -> Tensor:
        """Return `tau f` of the allowed actions and `-inf` for the others."""
        logits = self.tau * self.outputs(counts, n_agents)
        return logits.masked_fill(~self.action_mask, -math.inf)

    def _inputs(self, checked: Counts) -> Tensor:
        """Return the inputs `theta_m . (mu(s), e_a)` of the neurons, `(..., S, M, A)`."""
        theta, _ = self._wide()
        base = self._density(checked).unsqueeze(-1) * theta[..., 0]
        return base.unsqueeze(-1) + self.input_scale * theta[..., 1:]


@dataclass(frozen=True, slots=True)
class ChainReport:
    """How well the Markov chain of an `EnergyPolicy` does for one team.

    Attributes
    ----------
    rejection_attempts
        Uniform proposals until the exact rejection accepted one, or all in vain.
    exact
        Whether one was accepted; a draw is then exact, and no chain is needed.
    independent_acceptance, exchange_acceptance
        Accepted fraction of the two kinds of moves.
    effective_sample_size
        Of `h(s)`, the least over the actions, at most `n_moves` (Geyer's initial sequence).
    n_moves
        Moves of the chain.
    mean_action
        `(A,)`, the mean of `h(s)` along the chain.
    """

    rejection_attempts: int
    exact: bool
    independent_acceptance: float
    exchange_acceptance: float
    effective_sample_size: float
    n_moves: int
    mean_action: NDArray[np.float64]


class EnergyPolicy(NetworkPolicy):
    """The energy-based team policy of Eq. (4.4).

    `Pi_s(h | mu(s))` is proportional to `exp(tau f((mu(s), h); theta_s))` over all empirical
    distributions `h` of the `n(s)` agents over the allowed actions. `h(s)` stays random at any
    `N`; decentralised execution by `individual` is another policy with another value.

    Parameters
    ----------
    model, width, tau, density_scale, input_scale, symmetric, seed, dtype
        As for `SoftmaxPolicy`; `tau` is the temperature parameter of Eq. (4.4).
    enumeration_limit
        The law is enumerated, exactly, where it has at most this many outcomes,
        `C(n + A - 1, A - 1)`.
    rejection_attempts
        Beyond, this many uniform proposals are tried; the first that rejection accepts is an exact
        draw.
    chain_moves
        If none is accepted, the draw is the state of a Markov chain after this many moves:
        approximate. Means are taken along 16 times as many. `diagnose` tells how good it is.

    Notes
    -----
    Its cost for one team is up to `enumeration_limit` times `M`, whatever `n(s)`. Ctrl-C is heard
    between the draws of two blocks of 64 states, so large limits make it wait.
    """

    def __init__(
        self,
        model: NetworkedModel,
        width: int = 64,
        *,
        tau: float = 1.0,
        density_scale: float = 1.0,
        input_scale: float = 1.0,
        symmetric: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        enumeration_limit: int = 2000,
        rejection_attempts: int = 64,
        chain_moves: int = 256,
    ) -> None:
        super().__init__(
            model,
            width,
            tau=tau,
            density_scale=density_scale,
            input_scale=input_scale,
            symmetric=symmetric,
            seed=seed,
            dtype=dtype,
        )
        self.enumeration_limit = integer("enumeration_limit", enumeration_limit, 1, 2**31)
        self.rejection_attempts = integer("rejection_attempts", rejection_attempts, 1, 2**31)
        self.chain_moves = integer("chain_moves", chain_moves, 1, 2**26)

    def log_weight(
        self, counts: ArrayLike, actions: ArrayLike, n_agents: ArrayLike | None = None
    ) -> Tensor:
        """Return `tau f((mu(s), h(s)); theta_s)`, the unnormalised log probability.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            `N`; None takes the sum of each row of `counts`.

        Returns
        -------
        Tensor
            `(..., S)` in float64, differentiable in `theta`; 0 for an empty team and `-inf` where
            a masked action is taken.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        team = _tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
        energy = self.tau * forward(self._zeta(checked, team), *self._wide())
        forbidden = ((team > 0) & ~self.action_mask).any(-1)
        energy = torch.where(team.sum(-1) > 0, energy, torch.zeros_like(energy))
        return energy.masked_fill(forbidden, -math.inf)

    def log_prob(
        self, counts: ArrayLike, actions: ArrayLike, n_agents: ArrayLike | None = None
    ) -> Tensor:
        """Return `log Pi_s(h(s) | mu(s))` of Eq. (4.4), normalised by enumeration.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            `N`; None takes the sum of each row of `counts`.

        Returns
        -------
        Tensor
            `(..., S)` in float64, differentiable in `theta`; 0 for an empty team.

        Raises
        ------
        ValueError
            Where the law of a team has more than `enumeration_limit` outcomes; `log_weight` exists
            for every team.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        weight = self.log_weight(checked.counts, actions, checked.total)
        return weight - self._log_partition(checked)

    def score(
        self,
        counts: ArrayLike,
        actions: ArrayLike,
        n_agents: ArrayLike | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return the gradient of `log Pi_s` in `theta_s`: `tau Phi`, Eq. (4.7).

        `Phi = phi(mu(s), h(s)) - E[phi(mu(s), h'(s))]`; the expectation is exact where the law is
        enumerated, and the mean along a Markov chain beyond.

        Parameters
        ----------
        counts, actions
            `(..., S)` and `(..., S, A)` integers, `actions` summing to `counts`.
        n_agents
            `N`; None takes the sum of each row of `counts`.
        seed
            Seed of the chains.

        Returns
        -------
        Tensor
            `(..., S, M, 1 + A)` in float64; 0 for an empty team.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        team = _tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
        with torch.no_grad():
            phi = features(self._zeta(checked, team), *self._wide())
            centred = phi - self.mean_features(checked.counts, checked.total, seed)
            occupied = (team.sum(-1) > 0).double()
            return self.tau * centred * occupied[..., None, None]

    def mean_action(
        self, counts: ArrayLike, n_agents: ArrayLike | None = None, seed: int = 0
    ) -> Tensor:
        """Return `E[h(s)]`: exact where the law is enumerated, the mean along a chain beyond.

        Parameters
        ----------
        counts
            `(..., S)` integers.
        n_agents
            `N`; None takes the sum of each row of `counts`.
        seed
            Seed of the chains.

        Returns
        -------
        Tensor
            `(..., S, A)` in float64; uniform over the allowed actions for an empty team.
        """
        checked = as_counts(counts, self.n_states, n_agents)
        action, _, _ = self._means(checked, seed)
        uniform = self.action_mask.double() / self.action_mask.sum(-1, keepdim=True)
        return torch.where(action.sum(-1, keepdim=True) > 0, action, uniform)

    def mean_features(
        self, counts: ArrayLike, n_agents: ArrayLike | None = None, seed: int = 0
    ) -> Tensor:
        """Return `E[phi(mu(s), h(s))]`, the second term of Eq. (4.7).

        Parameters
        ----------
        counts
            `(..., S)` integers.
        n_agents
            `N`; None takes the sum of each row of `counts`.
        seed
            Seed of the chains.

        Returns
        -------
        Tensor
            `(..., S, M, 1 + A)` in float64; 0 for an empty team.
        """
        return self._means(as_counts(counts, self.n_states, n_agents), seed)[1]

    def is_exact(self, counts: ArrayLike) -> NDArray[np.bool_]:
        """Tell where draws, means and scores are exact: where the law is enumerated.

        Parameters
        ----------
        counts
            `(..., S)` integers.

        Returns
        -------
        ndarray
            `(..., S)` bool.
        """
        counts = as_counts(counts, self.n_states, None).counts
        allowed = self.action_mask.sum(-1).tolist()
        exact = np.empty(counts.shape, dtype=np.bool_)
        for s, actions in enumerate(allowed):
            for n in np.unique(counts[..., s]).tolist():
                size = math.comb(n + actions - 1, actions - 1)
                exact[..., s][counts[..., s] == n] = size <= self.enumeration_limit
        return exact

    def individual(
        self, n_agents: int, formula: Literal["mean", "dirac"] = "mean"
    ) -> IndividualPolicy:
        """Return a policy of one agent, `(state, density) -> (A,)`, with the present weights.

        Parameters
        ----------
        n_agents
            `N` for which the team policy is recovered: a density stands for `round(N density)`
            agents, at least 1.
        formula
            `"mean"`: `E[h(s)]`, the multinomial closest to `Pi_s` in `KL(Pi_s || .)`. `"dirac"`:
            the formula under Eq. (3.2), `Pi_s(delta_a)^(1 / n)` normalised, which is right for
            multinomial teams only and here tends to the uniform policy as `n` grows.
        """
        total = integer("n_agents", n_agents, 1, 2**53 + 1)
        if formula not in ("mean", "dirac"):
            raise ValueError(f'formula: expected "mean" or "dirac", got {formula!r}')
        frozen = _Frozen(self)

        def individual(state: int, density: float, /) -> NDArray[np.float64]:
            n = max(1, round(total * density))
            if formula == "mean":
                return frozen.mean_action(state, density, n)
            return frozen.dirac(state, density, n)

        return individual

    def diagnose(
        self,
        state: int,
        n: int,
        n_agents: int | None = None,
        *,
        n_moves: int = 10_000,
        seed: int = 0,
    ) -> ChainReport:
        """Run the Markov chain for a team of `n` agents in `state` and report how it mixes.

        Parameters
        ----------
        state, n
            The state and its number of agents.
        n_agents
            `N`; None takes `n`.
        n_moves
            Moves of the chain that are looked at, after a tenth as many that are not.
        seed
            Seed of the chain.

        Returns
        -------
        ChainReport
            Acceptance rates, effective sample size, and the mean action along the chain.
        """
        state = integer("state", state, 0, self.n_states)
        n = integer("n", n, 1, 2**53 + 1)
        total = n if n_agents is None else integer("n_agents", n_agents, n, 2**53 + 1)
        moves = integer("n_moves", n_moves, 1, 2**31)
        burn_in = moves // 10
        counts = np.zeros((burn_in + moves, self.n_actions), np.int64)
        energy = np.zeros(len(counts))
        attempts, exact, proposed, accepted, exchanges, exchanged = self._core.trace(
            state, n / total, n, seed_number(seed), counts, energy
        )
        h = counts[burn_in:] / n
        allowed = np.flatnonzero(_numpy(self.action_mask)[state])
        sizes = [_effective_size(h[:, a]) for a in allowed]
        return ChainReport(
            rejection_attempts=attempts,
            exact=exact,
            independent_acceptance=accepted / max(proposed, 1),
            exchange_acceptance=exchanged / max(exchanges, 1),
            effective_sample_size=max(1.0, min(sizes)) if len(sizes) > 1 else float(moves),
            n_moves=moves,
            mean_action=h.mean(axis=0),
        )

    def _effort(self) -> tuple[int, int, int]:
        return self.enumeration_limit, self.rejection_attempts, self.chain_moves

    def _zeta(self, checked: Counts, team: Tensor) -> Tensor:
        """Return the scaled inputs `(mu(s), h(s))`, `(..., S, 1 + A)` in float64."""
        h = team / team.sum(-1, keepdim=True).clamp(min=1.0)
        return torch.cat([self._density(checked).unsqueeze(-1), self.input_scale * h], dim=-1)

    def _means(self, checked: Counts, seed: int) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        """Return `E[h] (..., S, A)`, `E[phi] (..., S, M, d)` and where they are exact."""
        lead, states = checked.counts.shape[:-1], self.n_states
        rows = checked.counts.reshape(-1, states)
        action = np.zeros((len(rows), states, self.n_actions))
        phi = np.zeros((len(rows), states, self.width, 1 + self.n_actions))
        exact = np.zeros((len(rows), states), dtype=np.bool_)
        totals = checked.total.reshape(-1)
        seed = seed_number(seed)
        if rows.size:
            self._core.means(rows, totals, seed, action, phi, exact)
        device = self.theta.device
        return (
            torch.from_numpy(action.reshape(*lead, *action.shape[1:])).to(device),
            torch.from_numpy(phi.reshape(*lead, *phi.shape[1:])).to(device),
            exact.reshape(*lead, states),
        )

    def _log_partition(self, checked: Counts) -> Tensor:
        """Return `log sum_h exp(tau f((mu(s), h); theta_s))`, `(..., S)`; 0 for an empty team."""
        theta, b = self._wide()
        device = theta.device
        counts = torch.from_numpy(checked.counts).to(device)
        density = self._density(checked)
        result = torch.zeros_like(density)
        masks, group = torch.unique(self.action_mask, dim=0, return_inverse=True)
        for g, mask in enumerate(masks):
            inside = group == g
            for n in np.unique(checked.counts[..., _numpy(inside)]).tolist():
                if n == 0:
                    continue
                outcomes = self._outcomes(n, np.flatnonzero(_numpy(mask)))
                where = ((counts == n) & inside).nonzero(as_tuple=True)
                states = where[-1]
                h = self.input_scale * torch.from_numpy(outcomes / n).to(device)
                parts = []
                # (teams, outcomes, M) numbers at a time
                chunk = max(1, 2**18 // (len(outcomes) * self.width))
                groups = torch.split(states, chunk), torch.split(density[where], chunk)
                for at, x in zip(*groups, strict=True):
                    z = torch.einsum("ca,pma->pcm", h, theta[at, :, 1:])
                    z = z + (x.unsqueeze(-1) * theta[at, :, 0]).unsqueeze(1)
                    energy = torch.einsum("pcm,pm->pc", z.relu(), b[at]) / self.width**0.5
                    parts.append(torch.logsumexp(self.tau * energy, dim=-1))
                result = result.index_put(where, torch.cat(parts))
        return result

    def _outcomes(self, n: int, allowed: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return all divisions of `n` agents over the allowed actions, `(C, A)`."""
        size = math.comb(n + len(allowed) - 1, len(allowed) - 1)
        if size > self.enumeration_limit:
            raise ValueError(
                f"log_prob: a team of {n} agents has {size} empirical action distributions, more "
                f"than enumeration_limit = {self.enumeration_limit}; log_weight exists always"
            )
        outcomes = np.zeros((size, self.n_actions))
        outcomes[:, allowed] = compositions(n, len(allowed))
        return outcomes


class _Frozen:
    """A copy of the weights of an `EnergyPolicy`, for its individual policies."""

    def __init__(self, policy: EnergyPolicy) -> None:
        self.theta, self.b, self.mask = (
            _numpy(x).copy() for x in (policy.theta, policy.b, policy.action_mask)
        )
        self.scales = policy.tau, policy.density_scale, policy.input_scale
        self.core = _core.NetworkPolicy(
            self.theta, self.b, self.mask, *self.scales, policy._effort()
        )

    def mean_action(self, state: int, density: float, n: int) -> NDArray[np.float64]:
        """Return `E[h(s)]` for `n` agents at `density`."""
        states, width, inputs = self.theta.shape
        counts = np.zeros((1, states), np.int64)
        counts[0, state] = n
        action = np.zeros((1, states, inputs - 1))
        phi = np.zeros((1, states, width, inputs))
        exact = np.zeros((1, states), np.bool_)
        # the core divides n by this total
        total = np.array([n / density if density > 0.0 else np.inf])
        self.core.means(counts, total, 0, action, phi, exact)
        row: NDArray[np.float64] = action[0, state]
        return row

    def dirac(self, state: int, density: float, n: int) -> NDArray[np.float64]:
        """Return `Pi_s(delta_a)^(1 / n)`, normalised."""
        tau, scale, unit = self.scales
        output = _at_vertices(self.theta[state], self.b[state], scale * density, unit)
        return _softmax(tau / n * output, self.mask[state])


def multinomial_log_prob(team: Tensor, log_pi: Tensor) -> Tensor:
    """Return the log of the multinomial probability (3.2) of `team` under `pi`, both `(..., A)`.

    Deviances `c log(c / n pi) + n pi - c` and Stirling tails (Loader, 2000): no factorial, and an
    error that grows with `|c - n pi|`, not with `n`.
    """
    n = team.sum(-1, keepdim=True)
    taken = team > 0
    impossible = (taken & (log_pi == -math.inf)).any(-1)
    log_pi = log_pi.masked_fill(log_pi == -math.inf, -1e6)
    expected = n * log_pi.exp()
    c = torch.where(taken, team, torch.ones_like(team))
    one = torch.where(n > 0, n, torch.ones_like(n))
    away = (expected - c) / c
    near = away.abs() < 0.5
    close = c * (away - torch.log1p(torch.where(near, away, torch.zeros_like(away))))
    far = c * (torch.log(c) - torch.log(one) - log_pi) + (expected - c)
    deviance = torch.where(taken, torch.where(near, close, far), expected).sum(-1)
    spread = torch.where(taken, _stirling(c), torch.zeros_like(c)).sum(-1)
    whole = torch.where(n > 0, _stirling(one), torch.zeros_like(one)).squeeze(-1)
    return (whole - spread - deviance).masked_fill(impossible, -math.inf)


def _stirling(x: Tensor) -> Tensor:
    """Return `log x! - (x log x - x)` for `x >= 1`."""
    return _stirling_tail(x) + 0.5 * torch.log(2.0 * math.pi * x)


def _stirling_tail(x: Tensor) -> Tensor:
    """Return `log x! - (x log x - x + log(2 pi x) / 2)` for `x >= 1`."""
    small = torch.clamp(x, max=16.0)
    direct = (
        torch.lgamma(small + 1.0)
        - small * torch.log(small)
        + small
        - 0.5 * torch.log(2.0 * math.pi * small)
    )
    y = 1.0 / (x * x)
    series = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x
    return torch.where(x < 16.0, direct, series)


def _at_vertices(
    theta: NDArray[Any], b: NDArray[Any], density: float, unit: float
) -> NDArray[np.float64]:
    """Return `f` of one state at `unit * (density, e_a)` for every action."""
    row = theta.astype(np.float64)
    z = unit * (density * row[:, :1] + row[:, 1:])
    output: NDArray[np.float64] = b @ np.maximum(z, 0.0) / len(z) ** 0.5
    return output


def _softmax(logits: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    weights = np.where(mask, np.exp(logits - logits[mask].max()), 0.0)
    row: NDArray[np.float64] = weights / weights.sum()
    return row


def _effective_size(x: NDArray[np.float64]) -> float:
    """Return the effective sample size of a chain by Geyer's initial positive sequence."""
    n = len(x)
    centred = x - x.mean()
    variance = float(centred @ centred) / n
    if variance == 0.0:
        return 1.0  # a chain that never moved says nothing
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), size)[:n] / (n * variance)
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0.0)
    time = 2.0 * float(pairs[: negative[0] if len(negative) else None].sum()) - 1.0
    return min(float(n), n / max(time, 1.0))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """View a tensor as an array; a contiguous one on the CPU is not copied."""
    return tensor.detach().contiguous().cpu().numpy()


def _tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device=device, dtype=torch.float64)

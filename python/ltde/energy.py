"""The energy-based team policy of two-layer networks, Eq. (4.4)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ltde.arguments import integer, seed_number
from ltde.compositions import compositions
from ltde.individual import IndividualEnergy
from ltde.network_policy import NetworkPolicy, as_array, as_tensor
from ltde.networks import features, forward
from ltde.policy import Counts, as_actions, as_counts

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["ChainReport", "EnergyPolicy"]


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

    @property
    def family(self) -> str:
        """`"energy"`."""
        return "energy"

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
        team = as_tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
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
        team = as_tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
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
        action, _ = self._means(checked, seed)
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
        checked = as_counts(counts, self.n_states, n_agents)
        _, phi = self._means(checked, seed, features=True)
        return phi

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
    ) -> IndividualEnergy:
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
        return IndividualEnergy(copy.deepcopy(self).cpu(), total, formula)

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
        allowed = np.flatnonzero(as_array(self.action_mask)[state])
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

    def _settings(self) -> dict[str, float]:
        names = ("enumeration_limit", "rejection_attempts", "chain_moves")
        return {**super()._settings(), **dict(zip(names, self._effort(), strict=True))}

    def _zeta(self, checked: Counts, team: Tensor) -> Tensor:
        """Return the scaled inputs `(mu(s), h(s))`, `(..., S, 1 + A)` in float64."""
        h = team / team.sum(-1, keepdim=True).clamp(min=1.0)
        return torch.cat([self._density(checked).unsqueeze(-1), self.input_scale * h], dim=-1)

    def _means(
        self, checked: Counts, seed: int, *, features: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return `E[h] (..., S, A)` and, if asked, `E[phi] (..., S, M, d)`; else an empty one."""
        lead, states = checked.counts.shape[:-1], self.n_states
        rows = checked.counts.reshape(-1, states)
        action = np.zeros((len(rows), states, self.n_actions))
        phi = np.zeros((len(rows) if features else 0, states, self.width, 1 + self.n_actions))
        totals, seed = checked.total.reshape(-1), seed_number(seed)
        if rows.size:
            self._core.means(rows, totals, seed, action, phi if features else None)
        device = self.theta.device
        return (
            torch.from_numpy(action.reshape(*lead, *action.shape[1:])).to(device),
            torch.from_numpy(phi.reshape(*lead, *phi.shape[1:]) if features else phi).to(device),
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
            for n in np.unique(checked.counts[..., as_array(inside)]).tolist():
                if n == 0:
                    continue
                outcomes = self._outcomes(n, np.flatnonzero(as_array(mask)))
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

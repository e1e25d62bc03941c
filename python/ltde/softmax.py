"""The softmax policy of two-layer networks, and its multinomial teams."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ltde.individual import IndividualSoftmax
from ltde.multinomial import multinomial_log_prob
from ltde.network_policy import NetworkPolicy, as_array, as_tensor
from ltde.policy import Counts, as_actions, as_counts

__all__ = ["SoftmaxPolicy"]


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

    @property
    def family(self) -> str:
        """`"softmax"`."""
        return "softmax"

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
        team = as_tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
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
        team = as_tensor(as_actions(actions, checked, self.n_actions), self.theta.device)
        with torch.no_grad():
            z = self._inputs(checked)
            excess = team - team.sum(-1, keepdim=True) * self.mean_action(
                checked.counts, checked.total
            )
            gate = self.b.double().unsqueeze(-1) * (z > 0) * (self.tau / self.width**0.5)
            by_action = gate * excess.unsqueeze(-2)
            by_density = by_action.sum(-1) * self._density(checked).unsqueeze(-1)
            return torch.cat([by_density.unsqueeze(-1), self.input_scale * by_action], dim=-1)

    def individual(self) -> IndividualSoftmax:
        """Return the policy of one agent, `(state, density) -> (A,)`, with the present weights."""
        theta, b, mask = (as_array(x).copy() for x in (self.theta, self.b, self.action_mask))
        return IndividualSoftmax(theta, b, mask, self.tau, self.density_scale, self.input_scale)

    def _logits(self, counts: ArrayLike, n_agents: ArrayLike | None) -> Tensor:
        """Return `tau f` of the allowed actions and `-inf` for the others."""
        logits = self.tau * self.outputs(counts, n_agents)
        return logits.masked_fill(~self.action_mask, -math.inf)

    def _inputs(self, checked: Counts) -> Tensor:
        """Return the inputs `theta_m . (mu(s), e_a)` of the neurons, `(..., S, M, A)`."""
        theta, _ = self._wide()
        base = self._density(checked).unsqueeze(-1) * theta[..., 0]
        return base.unsqueeze(-1) + self.input_scale * theta[..., 1:]

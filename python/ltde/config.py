"""What a training run does: every choice is a named field, and every deviation from the paper."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from ltde.arguments import integer

if TYPE_CHECKING:
    from ltde.model import NetworkedModel

__all__ = ["Config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of `LTDENeuralAC`; make one with `Config.practical` or `Config.theory`.

    Attributes
    ----------
    family
        `"softmax"` (multinomial teams) or `"energy"` (Eq. (4.4); needs `actor="score"` and
        `critic="q"`).
    width
        Number `M` of neurons of each state, in actor and critic.
    tau
        Temperature parameter of the policy.
    k
        Radius of the ball that each critic reads.
    density_scale
        Multiplies densities in all inputs; None takes the number of states `|S|`. 1 in the paper,
        where `mu(s)` is of order `1 / |S|` and so invisible beside `h(s)` on large graphs.
    input_scale
        Multiplies the inputs of the actor; `2 ** -0.5` gives `||zeta_s|| <= 1`, as Lemma 4.2 needs.
    density_transform
        Critics read `x`, densities times `density_scale`, by `"linear"` as in the paper; `"log1p"`
        reads `2 log(1 + x)`, which tells small densities apart and keeps costates from growing with
        densities that the critics have not seen, where linear inputs can make training diverge. The
        2 lets densities weigh enough beside the constant input.
    symmetric
        Start from `f = 0` in actor and critic: the second half of the neurons copies the first with
        `b` negated. The paper draws all neurons independently. Changes the start only.
    dtype
        `"float32"` or `"float64"`, of all parameters.
    actor
        `"marginal"`: the one-agent gradient; multinomial teams only. `"score"`: Algorithm 2.
    critic
        With `actor="marginal"`: `"costate"`, the value of one more agent in each state, from the
        local function; or `"value"`, values `V_s(mu(N_s^k))` from rewards, differenced at next
        densities, which need densities that vary. With `actor="score"`: `"q"`, Algorithm 1.
    natural
        With `actor="marginal"`: step along the natural gradient (Kakade, 2001) of each state, which
        changes logits by advantages as far as the network can, instead of the gradient. Rare
        actions recover, and the scales of inputs matter little.
    n_knots
        With `natural`: densities of each state at which the advantages are gathered.
    ridge
        With `natural`: weight of the squared step in its least squares, in units of the mean square
        feature. Larger values trust what is seldom visited less.
    actor_rate
        Step of the actor. With `advantage_scale=None` it is in units of the logits and serves every
        application.
    actor_decay
        The rate of iteration `i` is `actor_rate / (1 + actor_decay i)`.
    actor_radius
        `R` of the projection of the actor on `||theta_s - theta_s(0)||_inf <= R / sqrt(M)`;
        `inf` does not project.
    advantage_scale
        With `actor="marginal"`: advantages are divided by this. None measures their root mean
        square over the first `scale_iterations` iterations and then keeps it: a scale that
        followed them would not let steps shrink near the optimum.
    scale_iterations
        Iterations over which that scale is measured.
    visit_floor
        With `actor="marginal"`: states with a mean density far below `visit_floor / |S|` step less.
        The step of `s` is divided by its mean density, but at least by that; with `natural`, the
        samples of `s` weigh `v / (v + visit_floor / |S|)` against `ridge`, `v` its mean density.
        `inf` divides by nothing, and goes with `natural=False` only.
    critic_rate
        Step of the critic, `eta_critic`.
    critic_normalized
        Divide the critic's step of each state by the mean square of its input in the minibatch.
        The paper does not.
    critic_radius
        `R` of the projection (4.12); `inf` does not project.
    critic_average
        Use the running average (4.13) of the iterates, as Algorithm 1 does, instead of the last.
    critic_warm_start
        Go on from the last critic at each iteration instead of a fresh one, as Algorithm 2 has it.
    constant_input
        Give critics a constant input 1, which (4.3) lacks: without it an empty ball has value 0.
    critic_steps
        With `critic="q"`: `T_critic`, TD steps an iteration, each on one transition of every
        replica.
    critic_epochs
        With `actor="marginal"`: passes over the segment an iteration.
    segment
        With `actor="marginal"`: steps `L` along which targets are passed back. The information
        radius of the training grows with it; 1 is strictly k-hop.
    baseline
        With `actor="score"`: `"mean_action"` subtracts `Q_y(mu, E h)`; the expectation is the same
        and the variance bounded in `N`. `"none"` is the paper.
    features
        With `critic="q"`: `"distribution"` reads `h(s)`, the paper; `"mass"` reads `mu(s) h(s)`, in
        which team rewards are linear.
    critic_law
        With `critic="q"`: transitions from `"nu"`, the stationary chain (the paper), or `"sigma"`,
        the restart chain, which suits the discounted objective.
    thinning
        With `critic_law="nu"`: steps of the chain for one transition used.
    replay
        With `critic="q"`: steps of all replicas that a replay buffer keeps; TD steps draw from it,
        older policies included, which the paper does not. 0 uses each transition once, in order.
    sampler
        With `actor="score"`: draws from sigma by `"visitation"` (independent) or by the restart
        `"chain"`.
    n_draws
        With `actor="score"`: draws `B` from sigma an iteration, a multiple of `n_replicas`.
    reward_scale
        Rewards are multiplied by this before the critic sees them; the actor divides it out. None
        takes `|S|` for `critic="value"`, which sees the rewards of single states, and 1 otherwise.
    n_replicas
        Replicas simulated side by side.
    n_iterations
        Iterations `T_actor`.
    evaluate_every
        Iterations between evaluations on other seeds; 0 never evaluates.
    checkpoint_every
        Iterations between checkpoints of a run directory.
    seed
        Seed of everything.
    """

    family: Literal["softmax", "energy"] = "softmax"
    width: int = 64
    tau: float = 1.0
    k: int = 1
    density_scale: float | None = None
    input_scale: float = 1.0
    density_transform: Literal["linear", "log1p"] = "log1p"
    symmetric: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    actor: Literal["marginal", "score"] = "marginal"
    critic: Literal["costate", "value", "q"] = "costate"
    natural: bool = True
    n_knots: int = 16
    ridge: float = 1e-4
    actor_rate: float = 1.0
    actor_decay: float = 0.1
    actor_radius: float = math.inf
    advantage_scale: float | None = None
    scale_iterations: int = 5
    visit_floor: float = 0.1
    critic_rate: float = 0.5
    critic_normalized: bool = True
    critic_radius: float = math.inf
    critic_average: bool = False
    critic_warm_start: bool = True
    constant_input: bool = True
    critic_steps: int = 200
    critic_epochs: int = 1
    segment: int = 30
    baseline: Literal["mean_action", "none"] = "mean_action"
    features: Literal["distribution", "mass"] = "distribution"
    critic_law: Literal["nu", "sigma"] = "sigma"
    thinning: int = 1
    replay: int = 0
    sampler: Literal["visitation", "chain"] = "chain"
    n_draws: int = 256
    reward_scale: float | None = None
    n_replicas: int = 16
    n_iterations: int = 100
    evaluate_every: int = 10
    checkpoint_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            object.__setattr__(
                self, field.name, _checked(field.name, getattr(self, field.name), hints[field.name])
            )
        for name in ("width", "critic_steps", "critic_epochs", "segment", "thinning", "n_draws"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("n_replicas", "n_iterations", "scale_iterations", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("replay", self.replay != 1, "0 or at least 2")
        self._require("n_knots", self.n_knots >= 2, "at least 2")
        for name in ("k", "evaluate_every", "seed", "replay", "actor_decay", "visit_floor"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("tau", "input_scale", "ridge", "actor_rate", "critic_rate"):
            self._require(name, 0.0 < getattr(self, name) < math.inf, "a finite number > 0")
        self._require("actor_decay", self.actor_decay < math.inf, "a finite number >= 0")
        for name in ("actor_radius", "critic_radius"):
            self._require(name, getattr(self, name) > 0.0, "a number > 0")
        for name in ("density_scale", "advantage_scale", "reward_scale"):
            value = getattr(self, name)
            self._require(name, value is None or 0.0 < value < math.inf, "a finite number > 0")
        self._require("seed", self.seed < 2**63, "below 2^63")
        self._require("width", not self.symmetric or self.width % 2 == 0, "even (symmetric=True)")
        self._require(
            "critic",
            (self.critic == "q") == (self.actor == "score"),
            f"{'q' if self.actor == 'score' else 'costate or value'} with actor={self.actor!r}",
        )
        self._require(
            "family",
            self.family == "softmax" or self.actor == "score",
            "'softmax' with actor='marginal': the one-agent gradient needs independent agents",
        )
        self._require(
            "visit_floor",
            self.visit_floor < math.inf or not (self.natural and self.actor == "marginal"),
            "a finite number with natural=True",
        )
        self._require(
            "n_draws",
            self.actor != "score" or self.n_draws % self.n_replicas == 0,
            f"a multiple of n_replicas = {self.n_replicas}",
        )

    @classmethod
    def practical(cls, **changes: Any) -> Config:
        """Return what users run: the defaults, with changes.

        Localised and decentralised, like the paper's algorithm; every deviation from it is a field.
        """
        return cls(**changes)

    @classmethod
    def theory(
        cls,
        discount: float,
        *,
        n_iterations: int,
        critic_steps: int,
        reward_scale: float,
        **changes: Any,
    ) -> Config:
        """Return the algorithm of the paper and nothing else, with the rates of Theorem 5.10.

        `R = tau = 1`, `eta_critic = min((1 - gamma) / 8, T_critic^{-1/2})`,
        `eta_actor = T_actor^{-1/2}`, one sample a critic step, energy-based policies.

        Parameters
        ----------
        discount
            `gamma` of the model.
        n_iterations, critic_steps
            `T_actor` and `T_critic`.
        reward_scale
            Multiplies rewards so that `|Q_s| <= R = 1`, as Assumption 5.1 needs:
            `(1 - gamma) / max |r_s|` does.
        **changes
            Other fields, such as `k`, `width` (`M`) and `n_draws` (`B`).
        """
        if isinstance(discount, complex) or not 0.0 <= discount < 1.0:
            raise ValueError(f"discount: expected a number in [0, 1), got {discount}")
        n_iterations = integer("n_iterations", n_iterations, 1, 2**53)
        critic_steps = integer("critic_steps", critic_steps, 1, 2**53)
        fields: dict[str, Any] = {
            "family": "energy",
            "actor": "score",
            "critic": "q",
            "density_scale": 1.0,
            "input_scale": 2.0**-0.5,
            "density_transform": "linear",
            "symmetric": False,
            "natural": False,
            "actor_rate": n_iterations**-0.5,
            "actor_decay": 0.0,
            "actor_radius": 1.0,
            "critic_rate": min((1.0 - discount) / 8.0, critic_steps**-0.5),
            "critic_normalized": False,
            "critic_radius": 1.0,
            "critic_average": True,
            "critic_warm_start": False,
            "constant_input": False,
            "baseline": "none",
            "critic_law": "nu",
            "sampler": "visitation",
            "n_replicas": 1,
            "n_iterations": n_iterations,
            "critic_steps": critic_steps,
            "reward_scale": reward_scale,
        }
        return cls(**{**fields, **changes})

    def unmet_conditions(self, model: NetworkedModel) -> list[str]:
        """Say which conditions of Theorem 5.10 this config does not meet for a model.

        Nothing is enforced: the widths that the theorem asks for are out of reach. Constants that
        the theorem hides in `Omega` are taken as 1. What cannot be computed, Assumptions 5.2 and
        5.5 to 5.9, is not looked at.

        Parameters
        ----------
        model
            Gives `gamma`, `|A|`, the balls, and `reward_range`.

        Returns
        -------
        list of str
            A sentence for each condition that fails; empty if all hold.
        """
        gamma, iterations, k = model.discount, self.n_iterations, self.k
        ball = int(np.diff(model.graph.balls(k).indptr).max())
        unmet = []

        def need(holds: bool, sentence: str) -> None:
            if not holds:
                unmet.append(sentence)

        paper = Config.theory(
            gamma, n_iterations=iterations, critic_steps=self.critic_steps, reward_scale=1.0
        )
        free = {"width", "k", "n_draws", "reward_scale", "seed", "dtype", "evaluate_every"}
        free |= {"checkpoint_every", "thinning", "n_replicas", "sampler"}
        # fields that nothing reads with the paper's actor
        free |= {"segment", "critic_epochs", "visit_floor", "scale_iterations", "n_knots", "ridge"}
        free |= {"advantage_scale", "natural"}
        for field in dataclasses.fields(self):
            mine, wanted = getattr(self, field.name), getattr(paper, field.name)
            need(
                field.name in free or mine == wanted,
                f"{field.name}: Theorem 5.10 is about {wanted!r}, this is {mine!r}",
            )
        need(
            self.critic_steps >= self.width,
            f"T_critic = Omega(M): critic_steps = {self.critic_steps}, width = {self.width}",
        )
        width = (ball * model.n_actions) ** 5 * iterations**8
        need(
            self.width >= width,
            f"M = Omega((f(k) |A|)^5 T_actor^8) = {width:.3g}: width = {self.width}",
        )
        largest = iterations ** (-2.0 / k) if k else float(iterations == 1)
        need(
            gamma <= largest,
            f"gamma <= T_actor^(-2/k) = {largest:.3g}: discount = {gamma}, k = {k}",
        )
        bound = max(abs(x) for x in model.reward_range)
        scale = 1.0 if self.reward_scale is None else self.reward_scale
        need(
            scale * bound <= (1.0 - gamma) * (1.0 + 1e-12),
            f"|Q_s| <= R = 1 (Assumption 5.1) needs reward_scale max |r_s| <= 1 - gamma = "
            f"{1.0 - gamma:.3g}: reward_scale max |r_s| = {scale * bound:.3g}",
        )
        return unmet

    def to_toml(self) -> str:
        """Return the fields as TOML; None is left out."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                lines.append(f"{field.name} = {toml_value(value)}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str | Path) -> Config:
        """Read what `to_toml` wrote, from a string or a file.

        Raises
        ------
        ValueError
            Naming a field that is unknown or out of range.
        """
        source = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
        values = tomllib.loads(source)
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{name}: no such field; known are {', '.join(sorted(known))}")
        return cls(**values)

    def replace(self, **changes: Any) -> Config:
        """Return a copy with other values of some fields."""
        return dataclasses.replace(self, **changes)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value of the annotated type, or raise naming the field."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = " or ".join(repr(choice) for choice in get_args(hint))
            raise ValueError(f"{name}: expected {choices}, got {value!r}")
        return value
    optional = type(None) in get_args(hint)
    if optional and value is None:
        return None
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if hint is int:
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"{name}: expected an integer, got {value!r}")
        return int(value)
    if math.isnan(value):
        raise ValueError(f"{name}: expected a number, got nan")
    return float(value)


def toml_value(value: Any) -> str:
    """Write a number, a string, a bool or a list of these as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)

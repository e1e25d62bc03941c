"""What the command line, the report and the benchmarks need to know of an application."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltde.evaluation import evaluate, mean_interval
from ltde.model import NetworkedModel
from ltde.policy import TabularPolicy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Environment", "Measurement", "OwnModel"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What users of an application measure a policy by, such as minutes of a trip.

    Attributes
    ----------
    values
        `(B,)` one number for each replica.
    n_agents
        `N`.
    """

    values: NDArray[np.float64]
    n_agents: float

    @property
    def mean(self) -> float:
        """Mean over replicas."""
        return float(self.values.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean (Student's t over replicas); a point for one replica."""
        return mean_interval(self.values)


class Environment(ABC):
    """An application: a model, and what it is measured by.

    Attributes
    ----------
    title
        One line for pictures and reports.
    measure_name, unit
        What `measure` returns, and its unit.
    lower_is_better
        Whether a smaller measurement is a better one.
    training_agents
        Number of agents to train with, unless told otherwise.
    """

    measure_name: ClassVar[str]
    unit: ClassVar[str]
    lower_is_better: ClassVar[bool]

    @property
    @abstractmethod
    def title(self) -> str:
        """One line for pictures and reports."""

    @property
    @abstractmethod
    def model(self) -> NetworkedModel:
        """The model, the same object at every access."""

    @property
    @abstractmethod
    def training_agents(self) -> int:
        """Number of agents to train with, unless told otherwise."""

    def baselines(self) -> Mapping[str, Any]:
        """Return policies that do not learn, by name: what `Simulator.rollout` plays."""
        return {"uniform": TabularPolicy.uniform(self.model)}

    def references(self) -> Mapping[str, float]:
        """Return values to draw as lines beside the measurements, by name."""
        return {}

    @abstractmethod
    def measure(
        self,
        policy: Any,
        n_agents: float,
        n_replicas: int = 16,
        seed: int = 0,
        *,
        threads: int | None = None,
    ) -> Measurement:
        """Measure a policy by simulation.

        Parameters
        ----------
        policy
            What `Simulator.rollout` plays.
        n_agents
            `N`, or `math.inf`, where one replica may stand for all.
        n_replicas
            Independent replicas `B`.
        seed
            Of the simulation.
        threads
            Worker threads; None for all.

        Returns
        -------
        Measurement
            One number for each replica, in `unit`.
        """

    def figures(self, policies: Mapping[str, Any], seed: int = 0) -> dict[str, Figure]:
        """Return pictures of the application's own for a report, by title.

        Parameters
        ----------
        policies
            Policies to compare by name, among them `"learned"`.
        seed
            Of the simulation behind the pictures.
        """
        return {}


class OwnModel(Environment):
    """A model of a user's own, measured by `J`.

    Parameters
    ----------
    model
        The model.
    title
        One line for pictures and reports.
    training_agents
        Number of agents to train with, unless told otherwise.
    """

    measure_name: ClassVar[str] = "value J"
    unit: ClassVar[str] = "discounted reward of an agent"
    lower_is_better: ClassVar[bool] = False

    def __init__(
        self, model: NetworkedModel, title: str = "own model", training_agents: int = 1000
    ) -> None:
        self._model, self._title, self._training_agents = model, title, training_agents

    @property
    def title(self) -> str:
        """One line for pictures and reports."""
        return self._title

    @property
    def model(self) -> NetworkedModel:
        """The model."""
        return self._model

    @property
    def training_agents(self) -> int:
        """Number of agents to train with, unless told otherwise."""
        return self._training_agents

    def measure(
        self,
        policy: Any,
        n_agents: float,
        n_replicas: int = 16,
        seed: int = 0,
        *,
        threads: int | None = None,
    ) -> Measurement:
        """Estimate `J`, Eq. (4.1), as `ltde.evaluate` does."""
        result = evaluate(self.model, policy, n_agents, n_replicas, seed=seed, threads=threads)
        return Measurement(result.values, n_agents)

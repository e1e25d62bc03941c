"""Mean-field multi-agent reinforcement learning on networks.

Every public name is loaded on first use; importing the package loads neither torch nor numba nor
matplotlib nor networkx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltde import diagnostics as diagnostics
    from ltde import envs as envs
    from ltde import exact as exact
    from ltde import plotting as plotting
    from ltde import report as report
    from ltde._core import ModelError as ModelError
    from ltde._core import __version__ as __version__
    from ltde.agents import AgentRollout as AgentRollout
    from ltde.agents import AgentSimulator as AgentSimulator
    from ltde.agents import AgentStep as AgentStep
    from ltde.config import Config as Config
    from ltde.energy import ChainReport as ChainReport
    from ltde.energy import EnergyPolicy as EnergyPolicy
    from ltde.evaluation import Evaluation as Evaluation
    from ltde.evaluation import Gap as Gap
    from ltde.evaluation import evaluate as evaluate
    from ltde.graph import Balls as Balls
    from ltde.graph import Graph as Graph
    from ltde.individual import IndividualEnergy as IndividualEnergy
    from ltde.individual import IndividualSoftmax as IndividualSoftmax
    from ltde.individual import IndividualTable as IndividualTable
    from ltde.initial import DirichletInitial as DirichletInitial
    from ltde.model import NetworkedModel as NetworkedModel
    from ltde.policy import FunctionPolicy as FunctionPolicy
    from ltde.policy import IndividualPolicy as IndividualPolicy
    from ltde.policy import TabularPolicy as TabularPolicy
    from ltde.simulator import Rollout as Rollout
    from ltde.simulator import Simulator as Simulator
    from ltde.simulator import Step as Step
    from ltde.simulator import Visitation as Visitation
    from ltde.softmax import SoftmaxPolicy as SoftmaxPolicy
    from ltde.trainer import LTDENeuralAC as LTDENeuralAC
    from ltde.trainer import TrainingDiverged as TrainingDiverged
    from ltde.trainer import TrainingResult as TrainingResult

_HOME = {
    "AgentRollout": "agents",
    "AgentSimulator": "agents",
    "AgentStep": "agents",
    "Balls": "graph",
    "ChainReport": "energy",
    "Config": "config",
    "DirichletInitial": "initial",
    "EnergyPolicy": "energy",
    "Evaluation": "evaluation",
    "FunctionPolicy": "policy",
    "Gap": "evaluation",
    "Graph": "graph",
    "IndividualEnergy": "individual",
    "IndividualPolicy": "policy",
    "IndividualSoftmax": "individual",
    "IndividualTable": "individual",
    "LTDENeuralAC": "trainer",
    "ModelError": "_core",
    "NetworkedModel": "model",
    "Rollout": "simulator",
    "Simulator": "simulator",
    "SoftmaxPolicy": "softmax",
    "Step": "simulator",
    "TabularPolicy": "policy",
    "TrainingDiverged": "trainer",
    "TrainingResult": "trainer",
    "Visitation": "simulator",
    "__version__": "_core",
    "evaluate": "evaluation",
}

_MODULES = ("diagnostics", "envs", "exact", "plotting", "report")

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name in _MODULES:
        return importlib.import_module(f"ltde.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'ltde' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ltde.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *_HOME, *_MODULES})

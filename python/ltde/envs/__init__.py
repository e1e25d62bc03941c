"""Applications: each is a model written with the public interface, one file to open and copy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltde.envs.environment import Environment as Environment
    from ltde.envs.environment import Measurement as Measurement
    from ltde.envs.environment import OwnModel as OwnModel
    from ltde.envs.road_network import RoadNetwork as RoadNetwork
    from ltde.envs.road_routing import RoadRouting as RoadRouting

_HOME = {
    "Environment": "environment",
    "Measurement": "environment",
    "OwnModel": "environment",
    "RoadNetwork": "road_network",
    "RoadRouting": "road_routing",
}

# What the command line offers by name: dataclasses of options that are Environments.
ENVIRONMENTS = {"road-routing": "RoadRouting"}

__all__ = ["ENVIRONMENTS", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'ltde.envs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ltde.envs.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *_HOME})

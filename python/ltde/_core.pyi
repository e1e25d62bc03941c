from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Graph",
    "Model",
    "ModelError",
    "NetworkPolicy",
    "Simulator",
    "TabularPolicy",
    "__version__",
    "binomial",
    "instruction_set",
    "multinomial",
    "sample_actions",
]

__version__: str

class ModelError(ValueError):
    replica: int
    step: int | None
    state: int
    action: int | None
    value: float | None
    mu: list[float]
    raised: bool

@final
class Graph:
    def __new__(cls, n_states: int, edges: NDArray[np.int64]) -> Graph: ...
    @property
    def n_states(self) -> int: ...
    @property
    def indptr(self) -> NDArray[np.int64]: ...
    @property
    def indices(self) -> NDArray[np.int64]: ...
    def ball(self, s: int, k: int) -> NDArray[np.int64]: ...
    def balls(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def distance(self, s: int, t: int) -> int | None: ...
    def distances(self, s: int) -> NDArray[np.float64]: ...

@final
class Model:
    def __new__(
        cls,
        graph: Graph,
        n_actions: int,
        address: int,
        owner: object,
        node: NDArray[np.float64],
        edge: NDArray[np.float64],
        action_mask: NDArray[np.bool_],
        initial: NDArray[np.int64] | NDArray[np.float64],
        dirichlet: bool,
        discount: float,
        reward_range: tuple[float, float],
    ) -> Model: ...
    def evaluate(
        self,
        mu: NDArray[np.float64],
        prob: NDArray[np.float64],
        reward: NDArray[np.float64],
    ) -> None: ...
    def check(self, mu: NDArray[np.float64]) -> None: ...

@final
class TabularPolicy:
    def __new__(cls, probs: NDArray[np.float64]) -> TabularPolicy: ...

@final
class NetworkPolicy:
    def __new__(
        cls,
        theta: NDArray[np.float32] | NDArray[np.float64],
        b: NDArray[np.float32] | NDArray[np.float64],
        mask: NDArray[np.bool_],
        tau: float,
        density_scale: float,
        input_scale: float,
        effort: tuple[int, int, int] | None,
    ) -> NetworkPolicy: ...
    def mean_action(
        self, density: NDArray[np.float64], outputs: bool, out: NDArray[np.float64]
    ) -> None: ...
    def means(
        self,
        counts: NDArray[np.int64],
        totals: NDArray[np.float64],
        seed: int,
        action: NDArray[np.float64],
        feature: NDArray[np.float64] | None,
    ) -> None: ...
    def trace(
        self,
        state: int,
        density: float,
        n: int,
        seed: int,
        counts: NDArray[np.int64],
        energy: NDArray[np.float64],
    ) -> tuple[int, bool, int, int, int, int]: ...

@final
class Simulator:
    def __new__(
        cls,
        model: Model,
        n_agents: int | None,
        n_replicas: int,
        seed: int,
        threads: int,
        first_replica: int,
    ) -> Simulator: ...
    @property
    def counts(self) -> NDArray[Any]: ...
    @property
    def position(self) -> tuple[int, int, int, int]: ...
    def restore(self, seed: int, step: int, resets: int, episodes: int) -> None: ...
    def reset(self, seed: int | None) -> None: ...
    def set_counts(self, counts: NDArray[Any], seed: int | None) -> None: ...
    def rollout(
        self,
        policy: TabularPolicy | NetworkPolicy | NDArray[np.float64],
        n_steps: int,
        chain: bool,
        arrays: dict[str, Any],
        used: bool,
    ) -> None: ...
    def pass_back(
        self,
        policy: TabularPolicy | NetworkPolicy | NDArray[np.float64],
        densities: NDArray[np.float64],
        restarted: NDArray[np.bool_],
        costates: NDArray[np.float64],
        step: float,
        targets: NDArray[np.float64],
        values: NDArray[np.float64],
        probs: NDArray[np.float64],
    ) -> None: ...
    def visitation(
        self,
        policy: TabularPolicy | NetworkPolicy | NDArray[np.float64],
        n_draws: int,
        arrays: dict[str, Any],
    ) -> None: ...

def instruction_set() -> str: ...
def binomial(n: int, p: float, q: float, seed: int, out: NDArray[np.int64]) -> None: ...
def multinomial(
    n: int, weights: NDArray[np.float64], seed: int, out: NDArray[np.int64]
) -> None: ...
def sample_actions(
    policy: TabularPolicy | NetworkPolicy | NDArray[np.float64],
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
    seed: int,
    out: NDArray[np.int64],
) -> None: ...

"""Compilation of the user's local function to a C function that the core calls without the GIL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CompiledLocal", "LocalFunction", "compile_local"]

# local(s, mu, node, edge, prob, reward)
LocalFunction: TypeAlias = Callable[
    [
        int,
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
    ],
    None,
]


class CompiledLocal(NamedTuple):
    """Machine code of a local function.

    Attributes
    ----------
    address
        Address of the C function; its contract stands in `rust/ltde-py/src/local_function.rs`.
    owner
        The numba object that holds the code; it must outlive every use of `address`.
    """

    address: int
    owner: object


_CACHE: dict[tuple[LocalFunction, int, int, int], CompiledLocal] = {}


def compile_local(
    local: LocalFunction, n_actions: int, node_width: int, edge_width: int
) -> CompiledLocal:
    """Compile `local` for arrays of given widths, once a process.

    Parameters
    ----------
    local
        Plain Python function of `(s, mu, node, edge, prob, reward)`.
    n_actions
        Number of actions `A`.
    node_width, edge_width
        Widths `P` of the node data and `Q` of the edge data; 0 if there are none.

    Returns
    -------
    CompiledLocal
        The same object for the same arguments.

    Raises
    ------
    TypeError
        If numba cannot compile the function; its message follows.

    Notes
    -----
    Bounds are checked (a write outside the arrays raises instead of corrupting memory), the inputs
    are read-only, division by zero gives inf or nan as in NumPy, and no exception leaves the C
    function: it returns 1 instead.
    """
    key = (local, n_actions, node_width, edge_width)
    if key not in _CACHE:
        _CACHE[key] = _compile(*key)
    return _CACHE[key]


def _compile(
    local: LocalFunction, n_actions: int, node_width: int, edge_width: int
) -> CompiledLocal:
    import numba
    from numba import types

    def array(ndim: int, readonly: bool) -> Any:
        return types.Array(types.float64, ndim, "C", readonly=readonly)

    signature = types.void(
        types.int64,
        array(1, readonly=True),
        array(1, readonly=True),
        array(2, readonly=True),
        array(2, readonly=False),
        array(1, readonly=False),
    )
    function = local.py_func if isinstance(local, numba.core.dispatcher.Dispatcher) else local
    try:
        checked = numba.njit(signature, boundscheck=True, error_model="numpy")(function)
    except Exception as error:  # numba raises many kinds, not only its own
        raise TypeError(
            f"local: numba cannot compile {getattr(function, '__qualname__', function)!r} for "
            "(int64 s, float64 mu[:], node[:], edge[:, :], prob[:, :], reward[:]), of which only "
            f"prob and reward may be written\n{error}"
        ) from error

    pointer = types.CPointer(types.float64)

    @numba.cfunc(
        types.int32(types.int64, types.int64, pointer, pointer, pointer, pointer, pointer),
        error_model="numpy",
    )
    def entry(s, degree, mu, node, edge, prob, reward):  # type: ignore[no-untyped-def]
        try:
            checked(
                s,
                numba.carray(mu, (degree,)),
                numba.carray(node, (node_width,)),
                numba.carray(edge, (degree, edge_width)),
                numba.carray(prob, (n_actions, degree)),
                numba.carray(reward, (n_actions,)),
            )
        except Exception:
            return 1
        return 0

    return CompiledLocal(entry.address, entry)

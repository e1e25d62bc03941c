"""Compilation of the user's local function to a C function that the core calls without the GIL."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CompiledLocal", "LocalFunction", "compile_local", "definition"]

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


_CACHE: dict[tuple[str, int, int, int], CompiledLocal] = {}


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
    Bounds are checked (a write outside the arrays raises instead of corrupting memory), also in
    jitted functions that it calls by name; one that is reached as the attribute of a module keeps
    the flags it was compiled with. The inputs are read-only, division by zero gives inf or nan as
    in NumPy, and no exception leaves the C function: it returns 1 instead.
    """
    # the definition, not the function: a global that it reads may have changed
    key = (definition(local), n_actions, node_width, edge_width)
    if key not in _CACHE:
        _CACHE[key] = _compile(local, n_actions, node_width, edge_width)
    return _CACHE[key]


def definition(function: Any) -> str:
    """Return all that decides what a function computes, as text.

    Its name, source, defaults and the values of the outer variables that it reads, those of the
    functions it calls included. Values of other kinds than numbers, strings, containers of them,
    arrays, functions and modules are named by their type only.
    """
    return "\n".join(_parts(function, set()))


def _parts(function: Any, seen: set[int]) -> Iterator[str]:
    function = _plain(function)
    if id(function) in seen:
        return
    seen.add(id(function))
    if not isinstance(function, types.FunctionType):
        yield repr(function)
        return
    yield f"{function.__module__}.{function.__qualname__}"
    try:
        yield inspect.getsource(function)
    except (OSError, TypeError):
        yield repr((function.__code__.co_code, function.__code__.co_consts))
    yield repr(function.__defaults__)
    for name, value in sorted(_outer(function).items()):
        yield name
        if isinstance(_plain(value), types.FunctionType):
            yield from _parts(value, seen)
        elif isinstance(value, np.ndarray):
            yield f"{value.dtype.str}{value.shape}{value.tobytes().hex()}"
        elif isinstance(value, (bool, int, float, complex, str, bytes, tuple, np.generic)):
            yield repr(value)
        else:
            yield getattr(value, "__name__", type(value).__qualname__)


def _plain(function: Any) -> Any:
    """Return the Python function behind a numba dispatcher."""
    return getattr(function, "py_func", function)


def _outer(function: types.FunctionType) -> dict[str, Any]:
    """Return the values of the global and enclosing variables that a function reads."""
    names = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    values = {name: function.__globals__[name] for name in names if name in function.__globals__}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return values | {name: cell.cell_contents for name, cell in cells}


def _with_bounds_checked(function: Any, options: dict[str, Any], done: dict[int, Any]) -> Any:
    """Compile anew a function, and the jitted functions it calls, with bounds checks.

    Flags of numba do not reach the functions that a function calls, so these are replaced by
    checked copies, as are theirs.
    """
    import numba

    plain = _plain(function)
    if id(plain) in done:
        return done[id(plain)]
    done[id(plain)] = function  # what a recursive function finds while it is copied
    jitted = {
        name: _with_bounds_checked(value, value.targetoptions, done)
        for name, value in _outer(plain).items()
        if isinstance(value, numba.core.dispatcher.Dispatcher)
    }
    copy = types.FunctionType(
        plain.__code__,
        plain.__globals__ | jitted,
        plain.__name__,
        plain.__defaults__,
        tuple(
            types.CellType(jitted.get(name, cell.cell_contents))
            for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True)
        ),
    )
    copy.__module__, copy.__qualname__ = plain.__module__, plain.__qualname__
    kept = {name: value for name, value in options.items() if name in ("fastmath", "inline")}
    checked = numba.njit(boundscheck=True, error_model="numpy", **kept)(copy)
    done[id(plain)] = checked
    return checked


def _compile(
    local: LocalFunction, n_actions: int, node_width: int, edge_width: int
) -> CompiledLocal:
    import numba
    from numba import types as numba_types

    def array(ndim: int, readonly: bool) -> Any:
        return numba_types.Array(numba_types.float64, ndim, "C", readonly=readonly)

    signature = numba_types.void(
        numba_types.int64,
        array(1, readonly=True),
        array(1, readonly=True),
        array(2, readonly=True),
        array(2, readonly=False),
        array(1, readonly=False),
    )
    function = _plain(local)
    try:
        checked = _with_bounds_checked(function, {}, {})
        checked.compile(signature)
        checked.disable_compile()
    except Exception as error:  # numba raises many kinds, not only its own
        raise TypeError(
            f"local: numba cannot compile {getattr(function, '__qualname__', function)!r} for "
            "(int64 s, float64 mu[:], node[:], edge[:, :], prob[:, :], reward[:]), of which only "
            f"prob and reward may be written\n{error}"
        ) from error

    pointer = numba_types.CPointer(numba_types.float64)

    @numba.cfunc(
        numba_types.int32(
            numba_types.int64, numba_types.int64, pointer, pointer, pointer, pointer, pointer
        ),
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

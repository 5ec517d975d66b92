"""RegNDE's functions as C functions: they are called by their addresses, and numbers and text cross.

A call through juliacall would be compiled by Julia first, in each process anew. The functions run without Python's
global lock, so that signals and other threads are served, but for those that load packages: PythonCall's extensions
of them may use Python. Errors come as text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

__all__ = ["Entries", "JuliaFailure", "evaluate", "park"]

LOADING = frozenset({"bridge_evaluate"})
"""The functions that keep Python's global lock."""

KINDS: dict[str, Any] = {"l": ctypes.c_int64, "d": ctypes.c_double, "b": ctypes.c_bool, "s": ctypes.c_char_p}
"""C types by the letters that Julia's `entries` tells."""

Answer = ctypes.c_int64 * 2
"""What a function writes: its result, or address and length of a text."""


class JuliaFailure(RuntimeError):
    """An error inside Julia, as text."""


class Entries:
    """The functions by name, as attributes.

    Args:
        table: for each a line with its name, the letters of its result and arguments, and its address.
    """

    def __init__(self, table: str) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        for line in table.splitlines():
            name, letters, address = line.split()
            self._functions[name] = _entry(int(address), letters, locked=name in LOADING)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._functions[name]


def _entry(address: int, letters: str, *, locked: bool) -> Callable[..., Any]:
    result, kinds = letters[0], letters[1:]
    prototype = ctypes.PYFUNCTYPE if locked else ctypes.CFUNCTYPE
    function = prototype(ctypes.c_bool, ctypes.c_void_p, *(KINDS[kind] for kind in kinds))(address)
    texts = [place for place, kind in enumerate(kinds) if kind == "s"]

    def call(*arguments: Any) -> Any:
        out, given = Answer(), [*arguments]
        for place in texts:
            given[place] = given[place].encode()
        if not function(ctypes.addressof(out), *given):
            raise JuliaFailure(ctypes.string_at(out[0], out[1]).decode())
        if result == "s":
            return ctypes.string_at(out[0], out[1]).decode()
        if result == "d":
            return ctypes.c_double.from_buffer(out).value
        if result == "b":
            return bool(out[0])
        return out[0] if result == "l" else None

    return call


def evaluate(library: str, text: str) -> str:
    """Evaluates Julia code whose value is text, in Julia's `Main`, by Julia's C interface, with Python's global lock.

    Args:
        library: path of libjulia, which is loaded and initialised on this thread.
        text: the code; it must not throw.
    """
    julia = ctypes.PyDLL(library)
    julia.jl_eval_string.argtypes, julia.jl_eval_string.restype = [ctypes.c_char_p], ctypes.c_void_p
    julia.jl_string_ptr.argtypes, julia.jl_string_ptr.restype = [ctypes.c_void_p], ctypes.c_char_p
    value = julia.jl_eval_string(text.encode())
    if not value:
        raise JuliaFailure("Julia could not evaluate its own start")
    return bytes(julia.jl_string_ptr(value)).decode()


def park(address: int) -> None:
    """Says that this thread, which has started Julia, is outside Julia unless it is in one of the functions.

    Otherwise a garbage collection that another thread begins would wait for it, for ever.

    Args:
        address: of Julia's `jl_gc_safe_enter`.
    """
    ctypes.PYFUNCTYPE(ctypes.c_int8)(address)()

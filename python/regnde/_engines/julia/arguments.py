"""How arguments cross between torch and Julia: numbers, text and addresses, never objects.

torch owns every array, Julia reads and writes them where they lie. Julia keeps what it needs between forward and
backward and gives a handle for it. A tensor on the CPU crosses as its address and size, one on another device as the
structure that the DLPack protocol describes it by.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from regnde._controller import PID, Controller, I
from regnde._engines.julia.code import Code
from regnde._event import Event
from regnde._mass import Mass
from regnde._noise import BrownianPath
from regnde._stops import Segment

__all__ = ["ArgumentBuffer", "in_memory", "path_address", "synchronize"]

_DTYPES = ("float32", "float64", "int64", "int32", "bool", "uint8", "complex64", "complex128")
ELTYPES = {getattr(torch, name): place for place, name in enumerate(_DTYPES, 1)}
NOTHING = (ELTYPES[torch.float64], -1, 0)
"""What stands for no array."""

DLPACK = 0
"""In place of an element type: a DLPack structure follows."""

_capsule_address = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_address.restype, _capsule_address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def synchronize(tensor: Tensor) -> None:
    """Waits for what torch has queued on the tensor's device: Julia has a queue of its own there."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def in_memory(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, with the numbers that it stands for in its memory: torch may conjugate on reading."""
    return tensor.resolve_conj().resolve_neg().contiguous()


class ArgumentBuffer:
    """64-bit integers in the order in which Julia reads them; keeps alive what they point to."""

    def __init__(self) -> None:
        self.integers: list[int] = []
        self.alive: list[object] = []

    def add(self, *numbers: int) -> None:
        self.integers += numbers

    def tensor(self, tensor: Tensor | None) -> None:
        """A tensor that is `in_memory` as element type, address, dimensions reversed; None has the address -1."""
        if tensor is None:
            self.integers += NOTHING
            return
        assert tensor.is_contiguous()
        assert not tensor.is_conj()
        assert not tensor.is_neg()
        self.alive.append(tensor)
        if not tensor.is_cpu:
            self.add(DLPACK, self.dlpack(tensor))
            return
        shape = tensor.shape
        self.integers += (ELTYPES[tensor.dtype], tensor.data_ptr(), len(shape), *shape[::-1])

    def doubles(self, numbers: array[float]) -> None:
        """Double precision numbers, as an array of one dimension."""
        self.alive.append(numbers)
        self.add(ELTYPES[torch.float64], numbers.buffer_info()[0], 1, len(numbers))

    def numbers(self, rows: Sequence[Sequence[float]]) -> None:
        """Rows of numbers, the columns of a matrix in Julia; None if there are none."""
        self.tensor(torch.tensor(rows, dtype=torch.float64) if rows else None)

    def tolerances(self, rtol: float | Tensor, atol: float | Tensor) -> tuple[float, float]:
        """Those of each entry, if there are any; returns numbers, NaN in the place of those."""
        for value in (rtol, atol):
            self.tensor(in_memory(value) if isinstance(value, Tensor) else None)
        return math.nan if isinstance(rtol, Tensor) else rtol, math.nan if isinstance(atol, Tensor) else atol

    def segments(self, segments: Sequence[Segment]) -> None:
        """End and bounds of each segment; none if the span is one without bounds."""
        bounded = len(segments) > 1 or segments[0].within is not None
        self.numbers([(s.end, *(s.within or (-math.inf, math.inf))) for s in segments] if bounded else [])

    def controller(self, controller: Controller | None) -> str:
        """Its constants, NaN for those of the method; returns its name."""
        if controller is None:
            self.tensor(None)
            return ""
        c = controller
        if isinstance(c, PID):
            constants: tuple[float | None, ...] = c.beta1, c.beta2, c.beta3, c.accept_factor
        else:
            bounds = c.safety, c.min_factor, c.max_factor, c.first_max_factor
            constants = bounds if isinstance(c, I) else (c.beta1, c.beta2, c.error_floor, *bounds)
        self.doubles(array("d", [math.nan if x is None else x for x in constants]))
        return type(controller).__name__

    def grid(self, ends: Sequence[float]) -> None:
        """Ends of the steps of a fixed-step method; none for others."""
        self.doubles(array("d", ends)) if ends else self.tensor(None)

    def mass(self, mass: Mass | None) -> None:
        """The mass matrix as Julia has it, one column after the other; none for the identity."""
        self.tensor(None if mass is None else mass.matrix.mT.contiguous())

    def conditions(self, codes: Sequence[Code], events: Sequence[Event], y0: Tensor) -> None:
        """The conditions of events as fields, and what is looked for."""
        self.fields(codes, [in_memory(x.detach().to(y0.device)) for code in codes for x in code.tensors])
        self.numbers([(event.direction, event.terminal) for event in events])

    def dlpack(self, tensor: Tensor) -> int:
        """The address of the tensor's DLPack structure, which is freed with this buffer."""
        # a stream of -1 means that there is nothing to wait for: `synchronize` has done it
        capsule = tensor.detach().__dlpack__(stream=-1 if tensor.is_cuda else None)
        self.alive.append(capsule)
        return _capsule_address(capsule, b"dltensor") or 0

    def fields(self, codes: Sequence[Code], tensors: Sequence[Tensor]) -> None:
        """The fields' codes and their tensors, given one after the other."""
        self.add(len(codes))
        rest = iter(tensors)
        for code in codes:
            handle = code.handle()
            self.alive.append(handle)
            self.add(handle.number, code.columns, len(code.tensors))
            for _ in code.tensors:
                self.tensor(next(rest))

    def gradients(self, codes: Sequence[Code], tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Zeros for what needs a gradient, field by field; returns them in the tensors' order."""
        found: list[Tensor | None] = []
        rest = iter(tensors)
        for code in codes:
            wanted = code.needs_gradient if code.name else (True,) * len(code.tensors)
            self.add(sum(wanted))
            for needs in wanted:
                tensor = next(rest)
                found.append(torch.zeros_like(tensor) if needs else None)
                if needs:
                    self.tensor(found[-1])
        return found

    @property
    def location(self) -> tuple[int, int]:
        """Address and number of the integers, as they are now."""
        integers = array("q", self.integers)
        self.alive.append(integers)
        return integers.buffer_info()


def path_address(path: BrownianPath | None, y: Tensor, *, matrix: bool) -> AbstractContextManager[int]:
    """The address of a C function that writes the path's increments; 0 without a path.

    Those of scalar noise are written for each entry that they drive, as if it were diagonal.

    Args:
        path: the path.
        y: the state.
        matrix: whether the diffusion is a matrix.
    """
    return NO_PATH if path is None else _path_address(path, y, matrix=matrix)


NO_PATH = nullcontext(0)


@contextmanager
def _path_address(path: BrownianPath, y: Tensor, *, matrix: bool) -> Iterator[int]:
    problems: list[Exception] = []
    real = ctypes.c_float if y.dtype == torch.float32 else ctypes.c_double
    shape = path.shape if matrix else y.shape
    size = ctypes.sizeof(real) * shape.numel()
    second = 2 * 3**0.5  # dZ of the methods of order 1.5 from the space-time Levy area

    def increments(s: float, t: float, w: int, z: int) -> None:
        try:
            increment = path.increment(s, t)
            both = (increment.w, second * increment.h)
            values = [x.to("cpu", y.dtype).expand(shape).contiguous() for x in both]
            for address, value in zip((w, z), values, strict=True):
                ctypes.memmove(address, value.data_ptr(), size)
        except Exception as problem:  # an exception can not pass through C
            problems.append(problem)

    function = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p)(increments)
    yield ctypes.cast(function, ctypes.c_void_p).value or 0
    if problems:
        raise problems[0]

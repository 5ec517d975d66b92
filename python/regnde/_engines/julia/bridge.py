"""One solve between torch and Julia: what crosses, once forward and once backward.

Numbers, text and addresses cross, never objects: torch owns every array, Julia reads and writes them
where they lie, and keeps its own between forward and backward under a number.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regnde._engines.julia import runtime
from regnde._noise import BrownianPath
from regnde._solver import ResolvedSolver

__all__ = ["Code", "LocalJob", "Outcome", "SolveJob", "path_address"]

ELTYPES = {torch.float32: 1, torch.float64: 2, torch.int64: 3, torch.int32: 4, torch.bool: 5}
STATUSES = ("success", "non-finite", "underflow", "steps")
CODES_KEPT = 64

_numbers: OrderedDict[tuple[str, str], int] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Code:
    """A field as Julia code with the tensors that it reads.

    Attributes:
        source: Julia source.
        name: of its function; "" for a `JuliaField`, whose source is one function.
        tensors: what to pass.
        needs_gradient: which of them get a gradient.
    """

    source: str
    name: str
    tensors: tuple[Tensor, ...]
    needs_gradient: tuple[bool, ...]

    def number(self) -> int:
        """Julia's number of the compiled source; compiles it the first time."""
        key = (self.name, self.source)
        if key not in _numbers:
            _numbers[key] = runtime.call(lambda julia: int(julia.bridge_compile(self.source, self.name)))
            if len(_numbers) > CODES_KEPT:
                runtime.discard(_numbers.popitem(last=False)[1])
        _numbers.move_to_end(key)
        return _numbers[key]


class _Words:
    """64-bit integers in the order in which Julia reads them; keeps the tensors alive that they point to."""

    def __init__(self) -> None:
        self.words = array("q")
        self.alive: list[Tensor] = []

    def add(self, *numbers: int) -> None:
        self.words.extend(numbers)

    def tensor(self, tensor: Tensor | None) -> None:
        """A contiguous tensor as element type, address, dimensions reversed; None has the address -1."""
        if tensor is None:
            self.add(ELTYPES[torch.float64], -1, 0)
            return
        assert tensor.is_contiguous()
        self.alive.append(tensor)
        self.add(ELTYPES[tensor.dtype], tensor.data_ptr(), tensor.dim(), *reversed(tensor.shape))

    def fields(self, codes: Sequence[Code], tensors: Sequence[Tensor]) -> None:
        """The fields' codes and their tensors, given one after the other."""
        self.add(len(codes))
        left = iter(tensors)
        for code in codes:
            self.add(code.number(), len(code.tensors))
            for _ in code.tensors:
                self.tensor(next(left))

    def gradients(self, codes: Sequence[Code], tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Zeros for what needs a gradient, field by field; returns them in the tensors' order."""
        found: list[Tensor | None] = []
        left = iter(tensors)
        for code in codes:
            wanted = code.needs_gradient if code.name else (True,) * len(code.tensors)
            self.add(sum(wanted))
            for needs in wanted:
                tensor = next(left)
                found.append(torch.zeros_like(tensor) if needs else None)
                if needs:
                    self.tensor(found[-1])
        return found

    @property
    def place(self) -> tuple[int, int]:
        """Address and number of the words."""
        return self.words.buffer_info()


class _Kept:
    """A number under which Julia keeps something; forgets it with this object, on whatever thread."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        runtime.discard(self.number)


@contextmanager
def path_address(path: BrownianPath | None, y: Tensor) -> Iterator[int]:
    """The address of a C function that writes the path's increments; 0 without a path."""
    if path is None:
        yield 0
        return
    problems: list[Exception] = []
    real = ctypes.c_float if y.dtype == torch.float32 else ctypes.c_double
    size = ctypes.sizeof(real) * y.numel()
    second = 2 * 3**0.5  # dZ of the methods of order 1.5 from the space-time Levy area

    def increments(s: float, t: float, w: int, z: int) -> None:
        try:
            increment = path.increment(s, t)
            values = increment.w.to(y.dtype).contiguous(), (second * increment.h).to(y.dtype).contiguous()
            for address, value in zip((w, z), values, strict=True):
                ctypes.memmove(address, value.data_ptr(), size)
        except Exception as problem:  # an exception can not pass through C
            problems.append(problem)

    function = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p)(increments)
    yield ctypes.cast(function, ctypes.c_void_p).value or 0
    if problems:
        raise problems[0]


@dataclass(eq=False)
class Outcome:
    """What a solve gave beside the differentiable tensors.

    Attributes:
        status: `"success"`, `"non-finite"`, `"underflow"` or `"steps"`, with `reason`.
        saved: rows of `ys` that were reached.
        table: float64 (5, S): t, dt, error, stiffness, implicit of every accepted step.
        kept: Julia's number of the solve.
    """

    status: str
    reason: str
    accepted: int
    saved: int
    rejected: int
    calls: tuple[int, int]
    dt_first: float
    t: float
    dt: float
    table: Tensor
    kept: _Kept


@dataclass(eq=False)
class SolveJob:
    """The arguments of one solve.

    Attributes:
        codes: the field, or drift and diffusion.
        times: save times.
        solver: method and tolerances.
        record: whether estimates are recorded.
        keep: what Julia keeps of each step: `"nothing"`, `"states"` or `"stages"`.
        path: the noise of an SDE.
        spare: one more row of `ys` behind those of the save times, for an anchor.
        adjoint: name of SciMLSensitivity's adjoint for the way back, or "" for the discrete one.
        moving: whether the times carry a gradient.
        probe: where to write the field's value at the start, or None.
    """

    codes: tuple[Code, ...]
    times: tuple[float, ...]
    solver: ResolvedSolver
    record: bool
    keep: str
    path: BrownianPath | None = None
    spare: bool = False
    adjoint: str = ""
    moving: bool = False
    probe: Tensor | None = None
    outcome: Outcome | None = None

    def run(self, y0: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """States at the save times, and error and stiffness records in the state's dtype."""
        ys = y0.new_empty((len(self.times) + self.spare, *y0.shape))
        times = torch.tensor(self.times, dtype=torch.float64)
        results = torch.zeros(9, dtype=torch.float64)
        words = _Words()
        for tensor in (y0, ys, times, results, self.probe):
            words.tensor(tensor)
        words.fields(self.codes, tensors)
        solver, threads = self.solver, torch.get_num_threads()
        dt0 = math.nan if solver.dt0 is None else solver.dt0

        def solve(julia: Any) -> tuple[int, Tensor, str]:
            number = int(
                julia.bridge_solve(
                    *words.place,
                    solver.method,
                    solver.rtol,
                    solver.atol,
                    dt0,
                    solver.max_steps,
                    self.record,
                    self.keep,
                    path,
                    threads,
                )
            )
            table = torch.empty((5, int(results[1])), dtype=torch.float64)
            julia.bridge_records(number, table.data_ptr())
            return number, table, str(julia.bridge_reason(number)) if results[0] else ""

        with path_address(self.path, y0) as path:
            number, table, reason = runtime.call(solve)
        status, accepted, saved, rejected, first, second, dt_first, t, dt = results.tolist()
        self.outcome = Outcome(
            status=STATUSES[int(status)],
            reason=reason,
            accepted=int(accepted),
            saved=int(saved),
            rejected=int(rejected),
            calls=(int(first), int(second)),
            dt_first=dt_first,
            t=t,
            dt=dt,
            table=table,
            kept=_Kept(number),
        )
        return ys, table[2].to(y0.dtype), table[3].to(y0.dtype)

    def place_anchor(self, step: int, ys: Tensor) -> float:
        """Writes the state at the start of a step (1, 2, ...) to the spare row; returns its time."""
        assert self.outcome is not None
        number = self.outcome.kept.number
        return runtime.call(lambda julia: float(julia.bridge_anchor(number, step)))

    def reverse(
        self,
        y0: Tensor,
        tensors: Sequence[Tensor],
        ys: Tensor | None,
        ysbar: Tensor | None,
        errorbar: Tensor | None,
        stiffnessbar: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Cotangents of the state, the times and the tensors."""
        assert self.outcome is not None
        y0bar = torch.zeros_like(y0)
        tbar = torch.zeros(len(self.times), dtype=torch.float64) if self.moving else None
        words = _Words()
        words.tensor(y0bar)
        words.tensor(None if ysbar is None else ysbar.contiguous())
        for bar in (errorbar, stiffnessbar):
            words.tensor(None if bar is None else bar.to(torch.float64).contiguous())
        words.tensor(tbar)
        words.tensor(ys if self.moving else None)
        gradients = words.gradients(self.codes, tensors)
        number = self.outcome.kept.number
        if self.adjoint:
            runtime.call(lambda julia: julia.bridge_adjoint(number, *words.place, self.adjoint) and None)
        else:
            runtime.call(lambda julia: julia.bridge_backward(number, *words.place) and None)
        return y0bar, tbar, gradients


class Solve(torch.autograd.Function):
    """A solve as one node: ys, error and stiffness from y0, the times and the fields' tensors."""

    @staticmethod
    def forward(ctx: Any, job: SolveJob, y0: Tensor, ts: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solves, and keeps what the way back needs."""
        ys, error, stiffness = job.run(y0, tensors)
        ctx.job = job
        ctx.ts = ts.dtype, ts.device
        ctx.save_for_backward(y0, *([ys] if job.moving else []), *tensors)
        ctx.set_materialize_grads(False)
        return ys, error, stiffness

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ysbar: Tensor | None, errorbar: Tensor | None, stiffnessbar: Tensor | None) -> Any:
        """The reverse sweep over the accepted steps."""
        job: SolveJob = ctx.job
        y0, *rest = ctx.saved_tensors
        ys = rest.pop(0) if job.moving else None
        if ys is not None and ysbar is None:
            ysbar = torch.zeros_like(ys)
        y0bar, tbar, gradients = job.reverse(y0, rest, ys, ysbar, errorbar, stiffnessbar)
        dtype, device = ctx.ts
        return None, y0bar, None if tbar is None else tbar.to(device, dtype), *gradients


@dataclass(eq=False)
class LocalJob:
    """The arguments of one local step.

    Attributes:
        codes: the field, or drift and diffusion.
        t: where it starts.
        t_end: where it is cut at the latest.
        h: its size, or NaN for the first-step heuristic's.
        solver: method and tolerances.
        path: the step's noise.
        freeze: whether the first stage is a constant.
    """

    codes: tuple[Code, ...]
    t: float
    t_end: float
    h: float
    solver: ResolvedSolver
    path: BrownianPath | None = None
    freeze: bool = False
    kept: _Kept | None = None
    end: float = 0.0
    size: float = 0.0
    calls: tuple[int, int] = (0, 0)

    def run(self, y: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error and stiffness of the step, 0-dim."""
        results = torch.zeros(6, dtype=torch.float64)
        words = _Words()
        words.tensor(y)
        words.tensor(results)
        words.fields(self.codes, tensors)
        solver = self.solver

        def step(julia: Any) -> int:
            return int(
                julia.bridge_local(
                    *words.place, solver.method, solver.rtol, solver.atol, self.t, self.t_end, self.h, path
                )
            )

        with path_address(self.path, y) as path:
            self.kept = _Kept(runtime.call(step))
        self.end, self.size, error, stiffness, first, second = results.tolist()
        self.calls = int(first), int(second)
        return y.new_tensor(error), y.new_tensor(stiffness)


class LocalStep(torch.autograd.Function):
    """A local step as one node: error and stiffness from its initial state and the fields' tensors."""

    @staticmethod
    def forward(ctx: Any, job: LocalJob, y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the step."""
        ctx.job = job
        ctx.save_for_backward(y, *tensors)
        return job.run(y, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errorbar: Tensor, stiffnessbar: Tensor) -> Any:
        """Its reverse."""
        job: LocalJob = ctx.job
        y, *tensors = ctx.saved_tensors
        words, ybar = _Words(), torch.zeros_like(y)
        words.tensor(ybar)
        gradients = words.gradients(job.codes, tensors)
        assert job.kept is not None
        number, bars = job.kept.number, (float(errorbar), float(stiffnessbar))
        runtime.call(lambda julia: julia.bridge_local_backward(number, *words.place, *bars, job.freeze) and None)
        return None, ybar, *gradients

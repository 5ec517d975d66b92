"""An explicit Runge-Kutta method applied to one ODE: the loop's stepper, and the local step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regnde._engines.torch.buffers import Buffered, BufferStages, buffered
from regnde._engines.torch.control import first_step_size
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.loop import Anchor, Diagnosis, Trial
from regnde._engines.torch.memory import keep_freed_memory
from regnde._engines.torch.norm import joinable, rms, tolerated, transformed
from regnde._engines.torch.outside import explored
from regnde._engines.torch.piece import ErrorKind, Kept, Piece
from regnde._engines.torch.stages import ListStages, Stages, listed
from regnde._engines.torch.step import (
    Taken,
    dense_rows,
    error_estimate,
    extra_stages,
    scaled_error,
    stage_times,
    stiffness_estimate,
    take_step,
)
from regnde._engines.torch.tableaux import Tableau
from regnde._solver import Local, ResolvedSolver

__all__ = ["NonFiniteStart", "RungeKutta"]

MANY = 2**18  # entries from which copying the stages into a buffer costs more than adding them up one by one

T = TypeVar("T")


class NonFiniteStart(Exception):
    """The field is not finite at the initial state."""


def _recomputed(run: Callable[..., T], *args: object) -> T:
    """Runs a piece whose intermediate tensors are recomputed in the backward pass."""
    result: T = checkpoint(run, *args, use_reentrant=False)
    return result


class RungeKutta:
    """Steps one ODE with one tableau.

    Args:
        field: the right-hand side.
        tableau: the method.
        solver: tolerances and the way of differentiating.
        y0: the initial state.
        record: whether the estimates of accepted steps are recorded.
    """

    def __init__(
        self, field: CountedField, tableau: Tableau, solver: ResolvedSolver, y0: Tensor, *, record: bool
    ) -> None:
        if y0.device.type == "cpu" and (y0.numel() >= MANY or torch.is_grad_enabled()):
            keep_freed_memory()
        self.field = field
        self.tableau = tableau
        self.controller = tableau.controller
        self.reach = 1.0
        self.rtol = solver.rtol
        self.atol = torch.tensor(solver.atol, dtype=y0.real.dtype, device=y0.device)
        self.graph = torch.is_grad_enabled()
        self.checkpoint = self.graph and solver.gradient == "checkpoint"
        self.kept: Kept | None = None
        self.record_error = record and tableau.btilde is not None
        self.piece = Piece(
            field=field,
            tableau=tableau,
            rtol=solver.rtol,
            atol=self.atol,
            error=self._error_kind(y0, joined=not (self.checkpoint or solver.compile)),
            stiffness=record and tableau.stiffness_pair,
            compiled=solver.compile,
        )
        self.stages: Stages = listed(tableau, y0) if self.graph else buffered(tableau, y0)
        self.handed: Tensor | None = None  # the first slope itself, while the first step is looked for
        self.new_slopes = False  # whether the field is known to hand out another tensor at every call
        self.first: Tensor | None = None  # the FSAL stage carried over from the step before
        self.at: tuple[float, float, float, Tensor, Taken]  # t, h, t_new, y and the outcome of the last attempt

    def _error_kind(self, y0: Tensor, *, joined: bool) -> ErrorKind:
        """What becomes of the error estimates; `joined` if those of many steps may share a node of the graph."""
        if self.tableau.btilde is None:
            return "none"
        if not (self.graph and self.record_error):
            return "value"
        return "later" if joined and joinable(y0) else "graph"

    # --- the loop's side -------------------------------------------------------------------------

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The signed size of the first step, evaluating the FSAL stage and the heuristic's two slopes."""
        (time,) = stage_times((0.0,), t0, 0.0, t0, y0)
        if self.checkpoint:
            self._explore(time, y0)
        elif self.tableau.fsal:
            self.first = self.handed = self.field(time, y0)
            if not self.graph:
                self.stages.start(self.first)
                self.first = self.stages[0]  # a copy: a field may hand out its own buffer
        if dt0 is None:
            with torch.no_grad():
                dt0 = self.initial_size(y0, t0, t1, time, known=self.first)
        if self.new_slopes and isinstance(self.stages, BufferStages):
            self.stages, self.first, self.field.copied = ListStages(), self.handed, False
        self.handed = None
        return math.copysign(min(dt0, abs(t1 - t0)), t1 - t0)

    def _explore(self, time: Tensor, y0: Tensor) -> None:
        """Evaluates the first stage, and decides how steps are to be taken again in the backward pass."""
        self.first, leaves = explored(self.field, self.field.function, time, y0)
        if leaves is None:
            return  # each step by torch's own checkpoint, which is slower, and knows more
        self.first = self.first.detach()
        again = replace(self.piece, error=self._error_kind(y0, joined=True) if self.record_error else "none")
        self.checkpoint = self.graph = False
        self.piece = replace(self.piece, error=self._error_kind(y0, joined=False))
        self.kept = Kept(again, leaves, y0.numel())

    def initial_size(self, y: Tensor, t0: float, t1: float, time: Tensor, known: Tensor | None = None) -> float:
        """The first-step heuristic (> 0) at (t0, y) towards t1; two evaluations.

        The slope is evaluated afresh even where it is `known`, as OrdinaryDiffEq.jl counts it; two
        values at one point then tell a field that is not a function.
        """
        if y.numel() == 0:
            return abs(t1 - t0)
        tolerance = tolerated(y.abs(), self.rtol, self.atol)
        again = self.field(time, y)
        if self.handed is not None and y.numel() >= MANY and not transformed():
            self.new_slopes = again.data_ptr() != self.handed.data_ptr()
        slope = again.clone() if known is None else known.detach()  # not a tensor that the next call may change
        d0, d1 = rms(y / tolerance), rms(slope / tolerance)
        if not (math.isfinite(d0) and math.isfinite(d1)):
            bad = int((~torch.isfinite(slope)).sum())
            raise NonFiniteStart(
                f"the dynamics are not finite at the start: {bad} of {y.numel()} components of f(t0, y0)"
                if bad
                else "the initial state or slope over its tolerance overflows: scale the problem or raise atol"
            )
        if known is not None:
            self.field.check_pure(known, again)

        def curvature(size: float) -> float | None:
            h = math.copysign(size, t1 - t0)
            (later,) = stage_times((1.0,), t0, h, t0 + h, y)
            change = self.field(later, torch.add(y, slope, alpha=h)) - slope
            moved = rms(change.div_(tolerance))
            return moved / size if moved or bool(change.any()) else None

        return first_step_size(d0, d1, curvature, t0=t0, span=abs(t1 - t0), order=self.tableau.order)

    def attempt(self, t: float, h: float, t_new: float, y: Tensor) -> Trial:
        """Tries a step; the estimates carry a graph only where they are recorded."""
        times = stage_times(self.tableau.c, t, h, t_new, y)
        if self.checkpoint:
            stages, taken, (value, error, stiffness) = _recomputed(self.piece.listed_step, h, times, y, self.first)
            self.stages = ListStages(stages)
        else:
            taken, (value, error, stiffness) = self.piece.step(self.stages, h, times, y, self.first)
        self.at = (t, h, t_new, y, taken)
        if isinstance(value, Tensor):
            value = value.item()
        elif self.record_error:
            error = y.real.new_tensor(value)
        return Trial(taken.y1, value, error if self.record_error else None, stiffness)

    def rejected(self, h_next: float) -> None:
        """Keeps the FSAL stage, wherever it lies now; others are evaluated again, as OrdinaryDiffEq.jl does."""
        self.first = self.stages[0] if self.tableau.fsal else None

    def accepted(self) -> None:
        """Hands the last stage on where the method is FSAL."""
        if self.kept is not None:
            self.kept.add(self.at[3], self.first if self.tableau.fsal else None)
        last = self.stages[self.tableau.stages - 1]
        self.first = last if self.tableau.fsal else None

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt; methods with extra stages evaluate them here, once a step."""
        t, h, t_new, y, _ = self.at
        if not self.tableau.extra_a:
            return dense_rows(self.tableau, self.stages, y, h, thetas)
        if isinstance(self.stages, Buffered):
            self.stages.filled = self.tableau.stages
            extra_stages(self.field, self.tableau, self.stages, y, t, h, t_new)
            return dense_rows(self.tableau, self.stages, y, h, thetas)

        known = [self.stages[i] for i in range(self.tableau.stages)]
        if self.checkpoint:
            return _recomputed(self.piece.extended_rows, t, h, t_new, thetas, y, *known)
        return self.piece.extended_rows(t, h, t_new, thetas, y, *known)

    # --- diagnosis -------------------------------------------------------------------------------

    def start_is_finite(self) -> bool:
        """Whether the first stage of the last attempt is finite."""
        return bool(torch.isfinite(self.stages[0]).all())

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """Where the last attempt's trouble sits."""
        _, h, _, y, taken = self.at
        tableau, stages = self.tableau, self.stages
        for i in range(tableau.stages):  # the first one tells; what it spoils is carried into the others
            bad = int((~torch.isfinite(stages[i])).sum())
            if bad:
                return Diagnosis(f"{bad} of {y.numel()} components")
        if tableau.btilde is None:
            bad = int((~torch.isfinite(taken.y1)).sum())
            largest = f"|y| up to {float(taken.y1.abs().max()):.3g}"
            return Diagnosis(f"{bad} of {y.numel()} components of the state" if bad else largest)
        worst = scaled_error(tableau, stages, y, taken.y1, h, self.rtol, self.atol).abs().reshape(-1)
        component = int(worst.argmax())
        where = f"worst component {component} of {y.numel()}, |y| up to {float(y.abs().max()):.3g}"
        if not tableau.stiffness_pair:
            return Diagnosis(where, component)
        stiffness = float(stiffness_estimate(stages, tableau.stages - 1, taken))
        return Diagnosis(f"{where}, stiffness {stiffness:.3g}", component, stiffness)

    # --- the local record ------------------------------------------------------------------------

    def local_step(self, anchor: Anchor, t1: float, local: Local) -> tuple[float, float, Tensor, Tensor | None]:
        """One step from the anchor, apart from the trajectory: its end, size, error and stiffness.

        Pal, Edelman, Rackauckas (ICML 2023), section 3: the regulariser is this step's E |h|.
        """
        t, y = anchor.t, anchor.y
        (time,) = stage_times((0.0,), t, 0.0, t, y)
        if local.step_size == "initial":
            with torch.no_grad():
                size = self.initial_size(y, t, t1, time)
        else:
            size = abs(anchor.h)
        h = math.copysign(min(size, abs(t1 - t)), t1 - t)
        t_new = t1 if abs(h) == abs(t1 - t) else t + h
        first = self.field(time, y)
        if local.freeze_first_stage:
            first = first.detach()
        stages = ListStages()
        stages.start(first)
        taken = take_step(self.field, self.tableau, stages, y, h, stage_times(self.tableau.c, t, h, t_new, y))
        error = error_estimate(self.tableau, stages, y, taken.y1, h, self.rtol, self.atol)
        if not self.tableau.stiffness_pair:
            return t_new, h, error, None
        return t_new, h, error, stiffness_estimate(stages, self.tableau.stages - 1, taken)

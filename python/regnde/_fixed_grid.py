"""A module that solves along fixed steps."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from regnde._arguments import check_arguments
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.grid import evaluations, walk
from regnde._equation import Field
from regnde._grid_report import GridReport, distances
from regnde._solver import hint
from regnde._state import checked_state
from regnde._stops import Segment, segments
from regnde._tableau import TABLEAUX, Tableau
from regnde._times import checked_stops, checked_times

__all__ = ["FixedGrid", "explicit", "with_stops"]

SHORTEST = 1e-9  # step over the span: an end of a step this close to a stop is the stop


class FixedGrid(nn.Module):
    """Solves an ODE along fixed steps: a plain sequence of evaluations, for `torch.export` and ONNX.

    `fixed_grid` chooses the steps and makes one. States that are not finite are not noticed.

    Args:
        field: f(t, y), usually a module; its parameters are this module's.
        ts: save times, in units of time.
        ends: the initial time and the ends of the steps; the first and the last are those of `ts`.
        method: name of an explicit method of the torch engine, of fixed or adaptive step, or a `Tableau`.
        rtol: relative tolerance, for `error`.
        atol: absolute tolerance, in units of the state.
        output: `"state"` returns the one at the last time, of y0's shape; `"states"` those at all times, shape
            (T, *y0.shape).
        stops: times at which the field may jump or bend, as for `solve`: steps end there, too.

    Attributes:
        nfe: evaluations of the field in a solve.
        report: what the steps were chosen on, or None.

    Examples:
        >>> grid = FixedGrid(lambda t, y: -y, ts=[0.0, 1.0], ends=[0.0, 0.4, 1.0], method="rk4")
        >>> grid(torch.ones(3, 1)).shape, grid.nfe
        (torch.Size([3, 1]), 8)
    """

    report: GridReport | None

    def __init__(
        self,
        field: Field,
        ts: Sequence[float] | Tensor,
        ends: Sequence[float],
        method: str | Tableau = "tsit5",
        *,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        output: Literal["state", "states"] = "state",
        stops: Sequence[float] | Tensor = (),
    ) -> None:
        super().__init__()
        check_arguments("field", field, by="FixedGrid")
        times, steps = checked_times(ts)[1], tuple(map(float, ends))
        gaps = [b - a for a, b in itertools.pairwise(steps)]
        if not gaps or not (min(gaps) > 0 or max(gaps) < 0) or (steps[0], steps[-1]) != (times[0], times[-1]):
            raise ValueError(
                f"FixedGrid: ends must go from ts[0]={times[0]!r} to ts[-1]={times[-1]!r} without repetition, got "
                f"{len(steps)} times, the first of which are {steps[:3]}."
            )
        if output not in ("state", "states"):
            raise ValueError(f"FixedGrid(output={output!r}): choose 'state' (the last one) or 'states'.")
        self.field = field
        self.stops = checked_stops(stops)[1]
        self.ts, self.ends = times, with_stops(steps, segments(times[0], times[-1], self.stops, torch.float64))
        self._segments: dict[torch.dtype, tuple[Segment, ...]] = {}  # made outside of graphs, where numbers are numbers
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16) if self.stops else ():
            with contextlib.suppress(ValueError):  # a dtype in which two stops are one
                self._segments[dtype] = segments(times[0], times[-1], self.stops, dtype)
        self.tableau = explicit(method)
        self.rtol, self.atol = float(rtol), float(atol)
        self.output = output
        self.nfe = evaluations(self.tableau, self.ends, times)
        self.report = None

    def forward(self, y0: Tensor) -> Tensor:
        """The state at the last time, or those at all times, from y0 of any shape."""
        states = self._states(y0, self.ends)
        return states[-1] if self.output == "state" else states

    @torch.no_grad()
    def error(self, y0: Tensor) -> Tensor:
        """Estimated error of each sample in units of the tolerance, shape (batch,); infinite where it is not finite.

        It is the distance from a solve with two steps for each one, corrected for the error of that solve (Richardson's
        extrapolation), the largest over the save times. It takes three times the evaluations of a solve.

        Args:
            y0: shape (batch, ...).
        """
        if y0.ndim == 0:
            raise ValueError("FixedGrid.error: y0 needs a leading dimension of samples, but it has no dimension.")
        halves = [(a + b) / 2 for a, b in itertools.pairwise(self.ends)]
        finer = (self.ends[0], *itertools.chain(*zip(halves, self.ends[1:], strict=True)))
        shown = 1 - 0.5**self.tableau.order  # of the error, by the distance
        return distances(self._states(y0, self.ends), self._states(y0, finer), self.rtol, self.atol) / shown

    def beyond(self, y0: Tensor) -> Tensor:
        """Which samples are not solved to the tolerance, shape (batch,), bool: inputs beyond those of the choice.

        It compares `error` with 1. Whether the trained field is meaningful for such a sample is another question.

        Args:
            y0: shape (batch, ...).
        """
        return ~(self.error(y0) <= 1)

    def extra_repr(self) -> str:
        """Method, steps and tolerances, for the module's repr."""
        return (
            f"method={self.tableau.name!r}, steps={len(self.ends) - 1}, ts={self.ts}, rtol={self.rtol:g}, "
            f"atol={self.atol:g}, output={self.output!r}"
        )

    def _states(self, y0: Tensor, ends: Sequence[float]) -> Tensor:
        field = self.field if torch.compiler.is_compiling() else CountedField(self.field)
        y = checked_state(y0, half=True)
        if self.stops and y.real.dtype not in self._segments:
            raise ValueError(f"FixedGrid: no time of {y.real.dtype} lies between two of the stops: take float64.")
        return walk(field, self.tableau, y, ends, self.ts, self._segments[y.real.dtype] if self.stops else ())


def with_stops(ends: Sequence[float], parts: Sequence[Segment]) -> tuple[float, ...]:
    """The ends of steps, and the stops between segments in the place of those that are as good as equal."""
    if len(parts) < 2:
        return tuple(ends)
    stops, near = [part.end for part in parts[:-1]], SHORTEST * abs(ends[-1] - ends[0])
    others = [end for end in ends[1:-1] if min(abs(end - stop) for stop in stops) > near]
    return tuple(sorted({ends[0], *others, *stops, ends[-1]}, reverse=ends[-1] < ends[0]))


def explicit(method: str | Tableau) -> Tableau:
    """The tableau of an explicit method."""
    if isinstance(method, Tableau):
        return method
    if method.lower() not in TABLEAUX:
        text = f"there is no explicit method {method!r} for fixed steps; choose one of {', '.join(TABLEAUX)}."
        raise ValueError(f"{text} {hint(method)}".rstrip())
    return TABLEAUX[method.lower()]

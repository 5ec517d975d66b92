"""The report on how the steps of a fixed grid were chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Candidate", "GridReport", "Spacing", "distances"]

Spacing = Literal["even", "recorded", "measured"]


@dataclass(frozen=True)
class Candidate:
    """A grid that meets the tolerance.

    Attributes:
        method: name of the method.
        spacing: how the steps are spaced: `"even"`; `"recorded"`, as those of the adaptive solve; or `"measured"`, so
            that the method's local errors are alike.
        steps: their number.
        nfe: evaluations of the field in a solve.
        error: the given share of the samples has this error or a smaller one, in units of the tolerance.
    """

    method: str
    spacing: Spacing
    steps: int
    nfe: int
    error: float


@dataclass(frozen=True)
class GridReport:
    """The errors of a grid on the samples that it was chosen on. `print` it.

    The error of a sample is its distance from a reference: the root mean square over its entries of
    |y - reference| / (atol + rtol |reference|), the largest over the save times. Up to 1 is within the tolerance.

    Attributes:
        chosen: the grid.
        candidates: the grids that were found, the fewest evaluations first.
        samples: how many.
        share: of them that was to be within the tolerance.
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the state.
        quantiles: shares of the samples for which errors are told.
        errors: of the grid: that share of the samples has this error or a smaller one.
        adaptive_errors: the same of the adaptive solve of all samples as one system.
        adaptive_nfe: its evaluations.
        adaptive_steps: its accepted steps.
        reference_error: largest distance of the samples between the reference and a less accurate one.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    samples: int
    share: float
    rtol: float
    atol: float
    quantiles: tuple[float, ...]
    errors: tuple[float, ...]
    adaptive_errors: tuple[float, ...]
    adaptive_nfe: int
    adaptive_steps: int
    reference_error: float

    def __str__(self) -> str:
        chosen = self.chosen
        name = f"{chosen.method}, {chosen.spacing} steps"
        rows: list[tuple[object, ...]] = [
            ("", "steps", "evaluations", *(f"{100 * q:g} %" for q in self.quantiles)),
            ("adaptive", self.adaptive_steps, self.adaptive_nfe, *(f"{e:.3g}" for e in self.adaptive_errors)),
            (name, chosen.steps, chosen.nfe, *(f"{e:.3g}" for e in self.errors)),
        ]
        widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
        lines = [
            f"{first!s:<{widths[0]}}" + "".join(f"  {x!s:>{w}}" for x, w in zip(rest, widths[1:], strict=True))
            for first, *rest in rows
        ]
        head = (
            f"the error that a share of {self.samples} samples does not exceed, in units of the tolerance "
            f"(rtol={self.rtol:g}, atol={self.atol:g})"
        )
        return "\n".join([head, *lines])


def distances(ys: Tensor, reference: Tensor, rtol: float, atol: float) -> Tensor:
    """Distance of each sample in units of the tolerance, shape (samples,), as `GridReport` has it.

    Args:
        ys: states, shape (T, samples, ...). The distance is infinite where they are not finite.
        reference: likewise.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """
    ratios = (ys - reference).abs() / (atol + rtol * reference.abs())
    means = ratios.reshape(*ratios.shape[:2], math.prod(ratios.shape[2:])).square().mean(-1).sqrt()
    return means.nan_to_num(nan=math.inf, posinf=math.inf).amax(0)

"""Why a solve stops early, and what its last attempt shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["IMPURE_TRIALS", "Diagnosis", "Failure", "asked_below", "diagnosed", "impure_reason"]

IMPURE_TRIALS = 1000  # trial steps after which the field is evaluated twice at one point, to see whether it draws noise


class Diagnosis(NamedTuple):
    """What an attempt shows about a failure.

    Attributes:
        text: for the message.
        component: index of the entry with the largest error, in the flattened state; None if not told.
        stiffness: the stiffness estimate, in units of 1/time; None if the method has none.
    """

    text: str
    component: int | None = None
    stiffness: float | None = None


NO_DIAGNOSIS = Diagnosis("")


@dataclass
class Failure:
    """Why the loop stopped early."""

    kind: str
    reason: str
    dt: float
    error: float | None = None
    diagnosis: Diagnosis = NO_DIAGNOSIS


def diagnosed(
    y: Tensor,
    y1: Tensor,
    slopes: Iterable[tuple[Tensor, str]],
    ratio: Tensor | None,
    stiffness: Tensor | None,
    of: str = "of",
) -> Diagnosis:
    """The diagnosis of an attempt from y to y1.

    Args:
        y: state where it starts.
        y1: state where it ends.
        slopes: the stages in their order, each with text for the message, such as " of the drift".
        ratio: the error over the tolerance, entrywise; None if the method has no error estimate.
        stiffness: the stiffness estimate, one entry; None if the method has none.
        of: text before the number of components.
    """
    size = y.numel()
    if size == 0:
        return Diagnosis("the state is empty")
    for slope, name in slopes:  # the first one tells; what it spoils is carried into the others
        if bad := int((~torch.isfinite(slope)).sum()):
            return Diagnosis(f"{bad} {of} {slope.numel()} components{name}")
    if ratio is None:
        bad = int((~torch.isfinite(y1)).sum())
        largest = f"|y| up to {float(y1.abs().max()):.3g}"
        return Diagnosis(f"{bad} {of} {size} components of the state" if bad else largest)
    component = int(ratio.abs().reshape(-1).argmax())
    text = f"worst component {component} {of} {size}, |y| up to {float(y.abs().max()):.3g}"
    if stiffness is None:
        return Diagnosis(text, component)
    return Diagnosis(f"{text}, stiffness {float(stiffness):.3g}", component, float(stiffness))


def asked_below(limit: str, evidence: str, error: float) -> str:
    """The message for an error control that asks for steps below a limit.

    A PID controller rejects steps whose error is within the tolerance, if those before had far smaller ones.
    """
    reason = f"the error control asks for a step below {limit}{evidence}"
    if not error <= 1:
        return reason
    return (
        f"{reason}. The error is within the tolerance: the PID controller rejects the step as those before it had far "
        "smaller errors. If the field jumps here, name the time in stops=; or leave the controller out"
    )


def impure_reason(trials: int) -> str:
    """The message for a field that is not a function."""
    return (
        f"after {trials} steps, two evaluations of the field at the same (t, y) differ: it draws noise or dropout, so "
        "that smaller steps do not make the error estimate small. Draw the noise once per solve, call .eval() on the "
        "module, or pass an SDE"
    )

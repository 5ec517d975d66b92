"""One whole step, field and estimates included, through torch.compile: `Solver(compile=True)`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regnde._engines.torch.stages import ColumnStages
from regnde._engines.torch.step import Taken, error_estimate, stiffness_estimate, take_step
from regnde._engines.torch.tableaux import Tableau

__all__ = ["compiled_step"]

Outcome = tuple[Taken, list[Tensor], Tensor | None, Tensor | None]


def _step(
    function: Callable[[Tensor, Tensor], Tensor],
    tableau: Tableau,
    y: Tensor,
    first: Tensor,
    h: Tensor,
    times: Tensor,
    rtol: float,
    atol: float,
    differentiable_error: bool,
    stiffness: bool,
) -> Outcome:
    """The same step with its size as a tensor, so that another size is no other program."""
    stages, error, quotient = ColumnStages(h), None, None
    stages.start(first)
    taken = take_step(function, tableau, stages, y, 1.0, times.unbind())
    if tableau.btilde is not None:
        with torch.set_grad_enabled(differentiable_error):
            error = error_estimate(tableau, stages, y, taken.y1, 1.0, rtol, atol)
    if stiffness:
        quotient = stiffness_estimate(stages, tableau.stages - 1, taken)
    return taken, stages.stages, error, quotient


@functools.lru_cache(maxsize=1)
def _compiler() -> Callable[..., Outcome]:
    compiled: Any = torch.compile(_step, dynamic=False)
    return compiled  # type: ignore[no-any-return]  # torch.compile keeps the signature


def compiled_step(*arguments: Any) -> Outcome:
    """Takes a step by compiled code; where torch can not compile it, warns and runs it as it is.

    Args:
        arguments: those of `_step`. Shapes, dtype, field, tableau and tolerances select the program;
            the first step with new ones waits for the compiler (tens of seconds).
    """
    try:
        return _compiler()(*arguments)
    except torch._dynamo.exc.TorchDynamoException as problem:
        _warn(problem)
    except RuntimeError as problem:
        if "compil" not in str(problem).lower():
            raise  # the field's own error
        _warn(problem)
    return _step(*arguments)


def _warn(problem: Exception) -> None:
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    warnings.warn(f"Solver(compile=True): torch.compile failed ({reason}); the step runs uncompiled.", stacklevel=2)

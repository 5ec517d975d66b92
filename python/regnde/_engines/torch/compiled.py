"""One whole step, field included, through torch.compile: `Solver(compile=True)`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regnde._engines.torch.field import CountedField
from regnde._engines.torch.step import Step, take_step
from regnde._tableau import Tableau

__all__ = ["compiled_step"]


@functools.lru_cache(maxsize=1)
def _compiler() -> Callable[..., Step]:
    compiled: Any = torch.compile(take_step, dynamic=False)
    return compiled  # type: ignore[no-any-return]  # torch.compile keeps the signature


def compiled_step(
    field: CountedField, tableau: Tableau, y: Tensor, first: Tensor | None, h: float, times: Sequence[Tensor]
) -> Step:
    """`take_step` by compiled code; where torch can not compile it, warns and runs it as it is.

    Shapes, dtype, field and tableau select the program; the first step with new ones waits for the
    compiler (tens of seconds). The size is a tensor, so that another size is no other program.
    """
    first = field(times[0], y) if first is None else first
    size = torch.tensor(h, dtype=y.dtype.to_real(), device=y.device)
    arguments = (field.function, tableau, y, first, size, torch.stack(tuple(times)).unbind())
    field.calls += tableau.stages - 1
    try:
        step = _compiler()(*arguments)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as problem:
        text = str(problem).strip()
        if not isinstance(problem, torch._dynamo.exc.TorchDynamoException) and "compil" not in text.lower():
            raise  # the field's own error
        reason = text.splitlines()[0] if text else type(problem).__name__
        warnings.warn(f"Solver(compile=True): torch.compile failed ({reason}); the step runs uncompiled.", stacklevel=2)
        step = take_step(*arguments)
    return step._replace(h=h)

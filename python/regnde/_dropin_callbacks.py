"""Methods of a field that torchdiffeq calls at each step: `callback_step(t0, y0, dt)` and others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regnde._engines.base import StepCallbacks
from regnde._state import Structure

__all__ = ["callbacks_of"]

NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")


def callbacks_of(
    func: object, method: str, known: tuple[str, ...], structure: Structure, *, adjoint: bool
) -> StepCallbacks | None:
    """What the field wants to be called, with times and sizes as tensors and states as the user has them.

    Args:
        func: the user's field.
        method: for messages.
        known: the names that the method calls.
        structure: of the state.
        adjoint: whether there is a backward pass that recomputes steps, which calls the names with `_adjoint`.
    """
    forwards = {name: call for name in NAMES if (call := getattr(func, name, None)) is not None}
    if unknown := sorted(forwards.keys() - set(known)):
        warnings.warn(f"odeint: method {method!r} does not call {', '.join(unknown)}, as in torchdiffeq.", stacklevel=4)

    def told(name: str) -> Callable[[float, Tensor, float], object] | None:
        call = forwards.get(name) if name in known else None
        if call is None:
            return None
        return lambda t, y, h: call(_time(t, y), structure.tree_of(y), _time(abs(h), y))

    backwards = [getattr(func, f"{name}_adjoint") for name in NAMES[:2] if adjoint and hasattr(func, f"{name}_adjoint")]

    def back(t: float, y: Tensor, gradient: Tensor, h: float) -> None:
        for call in backwards:
            call(_time(t, y), (_time(0.0, y), y, gradient), _time(abs(h), y))

    step, accept, reject = (told(name) for name in NAMES)
    if step is None and accept is None and reject is None and not backwards:
        return None
    return StepCallbacks(step, accept, reject, back if backwards else None)


def _time(value: Any, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=like.device)

"""The options of torchdiffeq's methods, checked. Unknown ones are warned about and ignored, as there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["AdaptiveOptions", "GridOptions", "ScipyOptions", "options_of"]

T = TypeVar("T", bound="DropinOptions")

IGNORED = ("dtype", "eps", "grid_points")  # options of torchdiffeq that have no effect here
INTERPOLATIONS = ("linear", "cubic")


@dataclass(frozen=True)
class DropinOptions:
    """Options of all methods.

    Args:
        norm: of the state's shape, or of a tuple as the state is one; adaptive methods alone use it.
    """

    norm: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"odeint: norm={self.norm!r} must be a function of the state.")


@dataclass(frozen=True)
class AdaptiveOptions(DropinOptions):
    """Options of the adaptive methods; sizes of steps are above 0 in both directions of time.

    Args:
        first_step: size of the first step, whose sign does not matter; None for torchdiffeq's own choice.
        safety: factor on the step size that the error asks for.
        ifactor: a step grows at most by this factor.
        dfactor: a step shrinks at most to this share.
        min_step: steps do not shrink below this size; one of this size is accepted whatever its error.
        max_step: steps do not grow above this size.
        max_num_steps: steps, accepted and rejected, between two times of the output.
        step_t: times at which steps end.
        jump_t: times at which the field may jump; steps end there, and the field is evaluated anew behind them.
    """

    first_step: float | None = None
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    min_step: float = 0.0
    max_step: float = math.inf
    max_num_steps: int = 100_000
    step_t: tuple[float, ...] = ()
    jump_t: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_step is not None:
            object.__setattr__(self, "first_step", _number("first_step", abs(self.first_step)))
        for name in ("safety", "ifactor", "dfactor", "min_step", "max_step"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        object.__setattr__(self, "max_num_steps", int(self.max_num_steps))
        for name in ("step_t", "jump_t"):
            object.__setattr__(self, name, _times(name, getattr(self, name)))
        if repeated := set(self.step_t) & set(self.jump_t):
            raise ValueError(f"odeint: step_t and jump_t both hold {sorted(repeated)}: give each time once.")


@dataclass(frozen=True)
class GridOptions(DropinOptions):
    """Options of the methods of fixed step size.

    Args:
        step_size: of steps from the first time on, the last one cut; its sign does not matter. None for steps from
            each time to the next.
        grid_constructor: a function of the field, the state and the times that returns the ends of the steps.
        interp: `"linear"` or `"cubic"`: how states at times between the ends of steps are found.
        perturb: evaluate the field just behind the start and just before the end of steps, not at them.
        max_iters: iterations of an implicit method; None for its own default.
        max_order: of Adams' methods.
    """

    step_size: float | None = None
    grid_constructor: Callable[[Any, Any, Tensor], Tensor] | None = None
    interp: str = "linear"
    perturb: bool = False
    max_iters: int | None = None
    max_order: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            object.__setattr__(self, "step_size", _number("step_size", abs(self.step_size)))
            if self.grid_constructor is not None:
                raise ValueError("odeint: step_size and grid_constructor exclude each other.")
            if not self.step_size:
                raise ValueError("odeint: step_size=0 reaches no time.")
        if self.interp not in INTERPOLATIONS:
            raise ValueError(f"odeint: interp={self.interp!r}: choose 'linear' or 'cubic'.")


@dataclass(frozen=True)
class ScipyOptions(DropinOptions):
    """Options of `scipy_solver`.

    Args:
        solver: scipy's name of the method.
        min_step: least step, which scipy knows for LSODA.
        max_step: largest step.
    """

    solver: str = "LSODA"
    min_step: float = 0.0
    max_step: float = math.inf


def options_of(kind: type[T], method: str, given: Mapping[str, Any] | None, *, without: tuple[str, ...] = ()) -> T:
    """The options of that kind; unknown ones are warned about.

    Args:
        kind: which options the method takes.
        method: its name, for messages.
        given: the user's.
        without: names of the kind that this method does not know.
    """
    if not given:
        return kind()
    known = kind.__dataclass_fields__.keys() - set(without)
    unknown = {name: value for name, value in given.items() if name not in known and name not in IGNORED}
    if unknown:
        warnings.warn(
            f"odeint: method {method!r} has no options {', '.join(map(repr, unknown))}, which are ignored, as in "
            f"torchdiffeq; it has {', '.join(sorted(known))}.",
            stacklevel=4,
        )
    return kind(**{name: value for name, value in given.items() if name in known})


def _number(name: str, value: Any) -> float:
    """One number, given as one or as a tensor."""
    number = float(value.detach()) if isinstance(value, Tensor) else float(value)
    if math.isnan(number) or number < 0:
        raise ValueError(f"odeint: {name}={number}: give a number of at least 0.")
    return number


def _times(name: str, value: Any) -> tuple[float, ...]:
    """Times in their order, given as a tensor or a sequence."""
    times = torch.as_tensor(() if value is None else value, dtype=torch.float64).detach()
    if times.ndim > 1 or not bool(torch.isfinite(times).all()):
        raise ValueError(f"odeint: {name} must be finite times of shape (n,), got {times}.")
    values: list[float] = times.reshape(-1).tolist()
    if len(set(values)) < len(values):
        raise ValueError(f"odeint: {name} holds a time twice: give each time once.")
    return tuple(sorted(values))

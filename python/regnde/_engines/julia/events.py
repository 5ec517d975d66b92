"""Events: Julia sees in which steps a condition passes zero, torch locates the zero, with its gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.julia.code import Code
from regnde._engines.julia.fields import SAMPLE, code_of
from regnde._event import Event
from regnde._event_locator import EventLocator, Hit, of_sample

__all__ = ["conditions_of", "hits_of"]


def conditions_of(events: Sequence[Event], y0: Tensor, *, samples: bool = False) -> tuple[Code, ...]:
    """The conditions as Julia code: fields of states like y0 whose entries are all the condition.

    Args:
        events: what to look for.
        y0: a state; with `samples` one of them, of shape (1, ...).
        samples: whether the conditions are those of samples.
    """
    locator = EventLocator([of_sample(event, SAMPLE) for event in events] if samples else events)

    def code(which: int) -> Code:
        def field(t: Tensor, y: Tensor) -> Tensor:
            value = locator.value(which, t, y[0] if samples else y)
            return value.to(y.dtype).expand(y.shape)

        return code_of(field, y0, f"condition{which}")[0]

    return tuple(code(which) for which in range(len(events)))


def hits_of(
    events: Sequence[Event], crossing: Sequence[float], within: Interpolant, end: float, sample: int | None = None
) -> tuple[list[Hit], Hit | None]:
    """The events in a step, up to the first terminal one, and this one.

    Args:
        events: what is looked for.
        crossing: the step as Julia's `bridge_crossings` has it.
        within: its interpolant.
        end: its end.
        sample: whose step it is.

    Raises:
        ValueError: for a condition that is nan.
    """
    _, _, start, *values = crossing
    before, after = values[: len(events)], values[len(events) :]
    for which, pair in enumerate(zip(before, after, strict=True)):
        if any(map(math.isnan, pair)):
            of = "" if sample is None else f" for sample {sample}"
            at = start if math.isnan(pair[0]) else end
            raise ValueError(
                f"the condition of event {which} is nan{of} at t={at:.6g}: it must have a sign in every state."
            )
    index = None if sample is None else SAMPLE.new_tensor([sample])
    locator = EventLocator(events if index is None else [of_sample(event, index) for event in events])
    hits = locator.hits(lambda: within, start, end, before, after)
    return hits, locator.terminal(hits)

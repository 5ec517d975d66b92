"""Events of samples with step sizes of their own: signs are compared for all at once, zeros are located one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.sample_outputs import Bools, Floats, Ints, of_samples
from regnde._equation import takes_samples
from regnde._event import Event
from regnde._event_locator import EventLocator, Hit, behind, of_sample, passes
from regnde._transforms import numbers

__all__ = ["SampleEvents"]

States = Callable[[Ints, Floats], Tensor]
Interpolants = Callable[[Ints], Sequence[Interpolant]]


class SampleEvents:
    """Looks for events.

    Args:
        events: their conditions are called as fields are, with the times of b samples, shape (b, 1, ..., 1), their
            states and, if they take a third argument, their indices in the batch; they return shape (b,).
        t0: initial time.
        y0: initial states, shape (B, ...).

    Attributes:
        hits: the samples and their events, in the order in which they are found.
        stopped: which samples a terminal event stopped, shape (B,).
    """

    def __init__(self, events: Sequence[Event], t0: float, y0: Tensor) -> None:
        self.events, self.t0 = events, t0
        self.with_samples = [takes_samples(event.condition) for event in events]
        self.hits: list[tuple[int, Hit]] = []
        self.stopped = np.zeros(len(y0), bool)
        everywhere = np.arange(len(y0))
        self.values = self._numbers(everywhere, np.full(len(y0), t0), y0)

    def seen(
        self,
        running: Ints,
        accepted: Bools,
        t: Floats,
        t1: Floats,
        y1: Tensor,
        states: States,
        interpolants: Interpolants,
    ) -> Mapping[int, Hit]:
        """The terminal events within the accepted steps of the running samples, by the places of these.

        Args:
            running: indices of the samples.
            accepted: whose step is accepted.
            t: where the steps start.
            t1: where they end.
            y1: the states there.
            states: those inside the steps, of places and times.
            interpolants: of the steps at places.
        """
        place = np.flatnonzero(accepted)
        start, end, samples = t[place], t1[place], running[place]
        before, after = self.values[:, samples], self._numbers(samples, end, _rows(y1, place))
        self.values[:, samples] = after
        anew = (start == self.t0) | (before == 0).any(0)  # a zero there is none of this step
        if anew.any():
            start = np.where(anew, behind(start, end, y1.dtype), start)
            before = before.copy()
            before[:, anew] = self._numbers(samples[anew], start[anew], states(place[anew], start[anew]).detach())
        each = [passes(event, *values) for event, *values in zip(self.events, before, after, strict=True)]
        found = np.flatnonzero(np.any(each, axis=0))
        last: dict[int, Hit] = {}
        for n, within in zip(found, interpolants(place[found]) if found.size else (), strict=True):
            index = torch.tensor([samples[n]], device=y1.device)
            locator = EventLocator([of_sample(event, index) for event in self.events])
            values = before[:, n].tolist(), after[:, n].tolist()
            hits = locator.hits(functools.partial(_itself, within), float(start[n]), float(end[n]), *values)
            self.hits += [(int(samples[n]), hit) for hit in hits]
            if (stop := locator.terminal(hits)) is not None:
                last[int(place[n])], self.stopped[samples[n]] = stop, True
        return last

    def _value(self, which: int, t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        """The condition of b samples, shape (b,)."""
        condition = self.events[which].condition
        value = condition(t, y, samples) if self.with_samples[which] else condition(t, y)
        if not isinstance(value, Tensor) or value.numel() != len(y) or value.is_complex() or value.dtype == torch.bool:
            shown = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"the condition of event {which} must return real values of shape ({len(y)},), one for each sample, "
                f"got {shown}."
            )
        return value.reshape(len(y))

    def _numbers(self, samples: Ints, t: Floats, y: Tensor) -> Floats:
        """Values of all conditions, shape (events, b)."""
        times, index = of_samples(t, y), torch.as_tensor(samples, device=y.device)
        with torch.no_grad():
            values = [numbers(self._value(i, times, y.detach(), index)) for i in range(len(self.events))]
        found = np.array(values).reshape(len(self.events), len(samples))
        if np.isnan(found).any():
            which, n = np.argwhere(np.isnan(found))[0]
            raise ValueError(
                f"the condition of event {which} is nan for sample {samples[n]} at t={t[n]:.6g}: it must have a sign "
                "in every state."
            )
        return found


def _itself(within: Interpolant) -> Interpolant:
    return within


def _rows(x: Tensor, place: Ints) -> Tensor:
    return x.index_select(0, torch.as_tensor(place, device=x.device))

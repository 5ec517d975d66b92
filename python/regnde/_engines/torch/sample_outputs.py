"""What a batch of samples with step sizes of their own gives: states at the save times, and records."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.step import Estimates

__all__ = ["Bools", "Floats", "Ints", "SampleOutputs", "Within", "of_samples"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Within = tuple[Floats, Floats] | None  # the least and the largest time that the field gets, of each sample


class SampleOutputs:
    """Gathers states and records in the order in which the samples reach them, and lays them out.

    Args:
        y0: initial states, shape (B, ...).
        times: monotone save times, shared by the batch.
    """

    def __init__(self, y0: Tensor, times: Floats) -> None:
        self.y0, self.times = y0, times
        self.sign = math.copysign(1.0, times[-1] - times[0])
        self._saved = np.zeros(len(y0), np.int64)
        self._states: list[tuple[Ints, Ints, Tensor]] = []  # rows of `times`, samples, states
        self._records: list[tuple[Ints, Ints, Floats, Floats, Estimates]] = []  # steps, samples, ends, sizes

    def due(self, running: Ints, t: Floats) -> tuple[Ints, Ints]:
        """Save times that the samples `running` pass by reaching `t`: places in `running`, and rows of `times`.

        Each is told once.
        """
        saved = self._saved[running]
        stop = np.maximum(saved, np.searchsorted(self.sign * self.times, self.sign * t, side="right"))
        self._saved[running] = stop
        place = np.repeat(np.arange(len(running)), stop - saved)
        rows = [np.arange(a, b) for a, b in zip(saved, stop, strict=True)]
        return place, np.concatenate([np.zeros(0, np.int64), *rows])

    def add_states(self, rows: Ints, samples: Ints, values: Tensor) -> None:
        """Adds states of pairs of save time and sample."""
        self._states.append((rows, samples, values))

    def add_records(
        self, steps: Ints, samples: Ints, ends: Floats, sizes: Floats, known: Estimates, accepted: Bools
    ) -> None:
        """Adds the records of those samples whose step was accepted; `steps` are the numbers of their steps."""
        index = torch.as_tensor(np.flatnonzero(accepted), device=self.y0.device)
        chosen = Estimates(*(None if x is None else x.index_select(0, index) for x in known))
        self._records.append((steps[accepted], samples[accepted], ends[accepted], sizes[accepted], chosen))

    def states(self) -> Tensor:
        """States at the save times that every sample has reached, shape (rows, B, ...)."""
        rows = int(self._saved.min(initial=len(self.times)))
        ys = self.y0.new_zeros((len(self.times), *self.y0.shape))
        if self._states:
            place = self._place(*(np.concatenate(x) for x in list(zip(*self._states, strict=True))[:2]))
            ys = ys.index_put(place, torch.cat([values for _, _, values in self._states]))
        return ys[:rows]

    def clocks(self) -> tuple[Floats, Floats, Bools]:
        """End and size of each step, and which entries are steps, shape (S, B)."""
        shape = self._shape()
        ends, sizes, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
        for rows, samples, t, h, _ in self._records:
            ends[rows, samples], sizes[rows, samples], mask[rows, samples] = t, h, True
        return ends, sizes, mask

    def records(self) -> Estimates:
        """Errors and stiffnesses, shape (S, B), 0 where a sample took fewer steps."""
        shape = self._shape()
        if not self._records:  # an empty record with a graph, so that a penalty has a gradient (0)
            empty = self.y0.reshape(-1)[:0].abs().reshape(0, 1).expand(0, shape[1])
            return Estimates(empty, empty)
        rows, samples, _, _, parts = zip(*self._records, strict=True)
        place = self._place(np.concatenate(rows), np.concatenate(samples))

        def laid_out(values: list[Tensor]) -> Tensor | None:
            flat = torch.cat(values) if values else None
            return None if flat is None else flat.new_zeros(shape).index_put(place, flat)

        errors, stiffnesses = zip(*parts, strict=True)
        return Estimates(*(laid_out([x for x in values if x is not None]) for values in (errors, stiffnesses)))

    def _place(self, rows: Ints, samples: Ints) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(rows, device=self.y0.device), torch.as_tensor(samples, device=self.y0.device)

    def _shape(self) -> tuple[int, int]:
        return 1 + max((int(steps.max()) for steps, *_ in self._records), default=-1), len(self.y0)


def of_samples(values: Floats, like: Tensor, within: Within = None) -> Tensor:
    """One value a sample, within its bounds, as a column of the state's real dtype."""
    values = values if within is None else np.clip(values, *within)
    rows = torch.as_tensor(values).to(like.device, like.dtype.to_real())
    return rows.reshape(-1, *[1] * (like.ndim - 1))

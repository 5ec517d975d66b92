"""What a batch whose samples step apart leaves behind: outputs and records, laid out as arrays at the end."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.loop import Failure

__all__ = ["BatchPath"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class BatchPath:
    """Gathers outputs and records of single samples as they come, in lists of (row, sample, value).

    Args:
        y0: initial states, shape (B, ...).
        times: monotone save times, shape (T,).

    Attributes:
        accepted, rejected, evaluations: counts of each sample, shape (B,).
        calls: evaluations of the field for the batch as a whole.
        dt_first: first step size of each sample, signed, shape (B,).
        reached: save times that each sample has passed, shape (B,).
        out: outputs so far: rows of `times`, samples, states.
        failure: why the loop stopped early, at time `t` of the sample at fault.
    """

    def __init__(self, y0: Tensor, times: Floats) -> None:
        batch = len(y0)
        self.y0, self.times = y0, times
        self.sign = math.copysign(1.0, times[-1] - times[0])
        self.accepted, self.rejected = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self.evaluations, self.reached = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self.dt_first = np.zeros(batch)
        self.calls = 0
        self.t = float(times[0])
        self.failure: Failure | None = None
        self.out: list[tuple[Ints, Ints, Tensor]] = []
        self._kept: list[tuple[Ints, Ints, Floats, Floats, Tensor, Tensor | None]] = []

    def due(self, running: Ints, t: Floats) -> tuple[Ints, Ints]:
        """Save times that the samples `running` pass by reaching `t`: places in `running`, and rows of `times`."""
        saved = self.reached[running]
        stop = np.maximum(saved, np.searchsorted(self.sign * self.times, self.sign * t, side="right"))
        self.reached[running] = stop
        place = np.repeat(np.arange(len(running)), stop - saved)
        rows = [np.arange(a, b) for a, b in zip(saved, stop, strict=True)]
        return place, np.concatenate([np.zeros(0, np.int64), *rows])

    def keep(
        self, running: Ints, accepted: Bools, t: Floats, h: Floats, error: Tensor, stiffness: Tensor | None
    ) -> None:
        """Remembers the records of the accepted samples."""
        samples = running[accepted]
        index = torch.as_tensor(np.flatnonzero(accepted), device=error.device)
        chosen = None if stiffness is None else stiffness[index]
        self._kept.append((self.accepted[samples], samples, t[accepted], h[accepted], error[index], chosen))

    def outputs(self) -> Tensor:
        """States at the save times that every sample has reached, shape (rows, B, ...)."""
        rows = int(self.reached.min(initial=len(self.times)))
        ys = self.y0.new_zeros((len(self.times), *self.y0.shape))
        if self.out:
            place = self._place(*(np.concatenate(x) for x in list(zip(*self.out, strict=True))[:2]))
            ys = ys.index_put(place, torch.cat([values for _, _, values in self.out]))
        return ys[:rows]

    def clocks(self) -> tuple[Floats, Floats, Bools]:
        """End and size of each step, and which entries are steps, shape (S, B)."""
        shape = (int(self.accepted.max(initial=0)), len(self.y0))
        ends, sizes, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
        for rows, samples, t, h, _, _ in self._kept:
            ends[rows, samples], sizes[rows, samples], mask[rows, samples] = t, h, True
        return ends, sizes, mask

    def estimates(self) -> tuple[Tensor, Tensor | None]:
        """Errors and stiffnesses, shape (S, B), 0 where a sample took fewer steps."""
        shape = (int(self.accepted.max(initial=0)), len(self.y0))
        if not self._kept:
            # No steps: an empty record that still hangs on y0's graph, so that a penalty has a gradient (0).
            empty = self.y0.reshape(-1)[:0].abs().reshape(0, 1).expand(0, shape[1])
            return empty, empty
        rows, samples, _, _, errors, stiffnesses = zip(*self._kept, strict=True)
        place = self._place(np.concatenate(rows), np.concatenate(samples))

        def laid(values: list[Tensor]) -> Tensor:
            flat = torch.cat(values)
            return flat.new_zeros(shape).index_put(place, flat)

        known = [s for s in stiffnesses if s is not None]
        return laid(list(errors)), laid(known) if known else None

    def _place(self, rows: Ints, samples: Ints) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(rows, device=self.y0.device), torch.as_tensor(samples, device=self.y0.device)

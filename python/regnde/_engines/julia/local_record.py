"""The step of a local record: where it is drawn, and how it is taken apart from the solve."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from regnde._engines.base import Request
from regnde._engines.julia.arguments import in_memory
from regnde._engines.julia.bridge import LocalJob, SolveJob
from regnde._noise import drawn_seed
from regnde._rosenbrock_tableau import AUTOTSIT5
from regnde._solver import Local

__all__ = ["LocalRecord"]


class LocalRecord:
    """One random step of a solve.

    Args:
        request: what was asked for.
        record: of it.

    Attributes:
        by_step: whether one of the accepted steps is drawn, behind the solve; else a time before it.
        times: save times, with the drawn one among them.
        row: its index there, or None.
    """

    def __init__(self, request: Request, record: Local) -> None:
        self.request, self.record = request, record
        self._random = random.Random(drawn_seed() if record.seed is None else record.seed)
        self.by_step = record.sampling == "step"
        self.times = request.times
        self.row: int | None = None
        t0, t1 = request.times[0], request.times[-1]
        if not self.by_step:
            self._drawn = t0 + self._random.random() * (t1 - t0)
            if t0 != t1:
                self.row = sum(t <= self._drawn if t1 > t0 else t >= self._drawn for t in self.times)
                self.times = (*self.times[: self.row], self._drawn, *self.times[self.row :])

    def saved(self, full: Tensor, saved: int) -> Tensor:
        """The states at the save times that were reached, without the drawn one."""
        if self.row is None:
            return full[:saved]
        return torch.cat([full[: self.row], full[self.row + 1 : max(saved, self.row)]])[:saved]

    def job(self, solved: SolveJob, full: Tensor) -> tuple[LocalJob, Tensor]:
        """The step at the drawn place, and the state where it starts.

        Args:
            solved: the solve, which has made steps.
            full: its states.
        """
        ends, sizes = solved.ends, solved.sizes
        if self.row is None:
            step = self._reservoir(solved.accepted)
            t, y = solved.save_local_start(step), full[-1]
        else:
            inside = (ends > self._drawn) if self.times[-1] > self.times[0] else (ends < self._drawn)
            step = 1 + int(inside.to(torch.uint8).argmax())
            t, y = self._drawn, full[self.row]
        end, sign = float(ends[step - 1]), math.copysign(1.0, self.times[-1] - self.times[0])
        method = solved.method
        if method == AUTOTSIT5:
            method = "rosenbrock23" if bool(solved.implicit[step - 1]) else "tsit5"
        job = LocalJob(
            codes=solved.codes,
            t=t,
            segment=next(segment for segment in solved.segments if sign * end <= sign * segment.end),
            h=math.nan if self.record.step_size == "initial" else float(sizes[step - 1]),
            method=method,
            solver=solved.solver,
            tolerances=solved.tolerances,
            path=None if solved.path is None else solved.path.independent(),
            freeze=self.record.freeze_first_stage,
            mass=solved.mass,
        )
        return job, in_memory(y.detach() if self.record.detach_state else y)

    def _reservoir(self, accepted: int) -> int:
        """One of the steps 1 to `accepted`, each equally likely: the torch engine's draw."""
        chosen = 1
        for step in range(1, accepted + 1):
            if self._random.random() * step < 1.0:
                chosen = step
        return chosen

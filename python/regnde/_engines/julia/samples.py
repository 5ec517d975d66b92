"""Batches with per-sample step sizes: every sample is solved by itself, on the threads that Julia has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.base import FAILURES, Request
from regnde._engines.julia import runtime
from regnde._engines.julia.arguments import ArgumentBuffer, in_memory
from regnde._engines.julia.code import Code
from regnde._engines.julia.events import hits_of
from regnde._engines.julia.fields import SAMPLE, FieldChanged
from regnde._engines.julia.handle import Handle
from regnde._engines.julia.job import (
    RESULTS,
    STATUSES,
    Job,
    Weights,
    call_for,
    interpolant_of,
    pieces_of,
    records_like,
    told,
)
from regnde._event_locator import Hit, events_of
from regnde._last_step import FirstStep
from regnde._solution import Events, SampleStats, Solution, Stats, Status, Steps

__all__ = ["SampleJob", "SampleSolve"]


@dataclass(eq=False, kw_only=True)
class SampleJob(Job):
    """The arguments of one solve of a batch, and what `run` finds beside the differentiable tensors.

    Fields and conditions are those of one sample, and what is `compared` is the first sample's. `times_need_gradient`
    is never set.

    Attributes:
        results: float64 (B, RESULTS): of each sample what Julia's `bridge_solve` tells of one solve.
        table: float64 (5, S, B): t, dt, error, stiffness, implicit of the steps of each sample, 0 behind its last one.
        reasons: why samples failed, by their index.
    """

    results: NDArray[np.float64] = field(init=False)
    table: Tensor = field(init=False)
    reasons: dict[int, str] = field(init=False)

    def run(self, y0: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States at the save times (T, B, ...), records (S, B) in its real dtype, pieces (steps, pieces, ...).

        Raises:
            FieldChanged: if the code and the field disagree for the first sample.
        """
        ys = y0.new_empty((len(self.times), *y0.shape))
        results = torch.zeros((len(y0), RESULTS), dtype=torch.float64)
        arguments, options = self.arguments(y0, ys, results, tensors)
        threads, handle = torch.get_num_threads(), Handle()
        number = handle.number
        arguments.add(*(_place(code) for code in (*self.codes, *self.conditions)))

        def solve(julia: Any) -> tuple[Tensor, Tensor, Tensor, dict[int, str]]:
            if not julia.bridge_samples(handle.number, *arguments.location, *options, self.keep, threads):
                raise FieldChanged
            table = torch.zeros((5, int(results[:, 1].max()), len(y0)), dtype=torch.float64)
            julia.bridge_sample_records(number, table.data_ptr(), table.shape[1])
            crossings = self.crossings_of(julia, number, int(results[:, 10].sum()))
            pieces = pieces_of(julia, number, y0.new_empty((len(crossings), self.pieces, *y0.shape[1:])))
            failed = torch.nonzero((results[:, 0] > 0) & (results[:, 0] < STATUSES.index("event"))).flatten().tolist()
            return table, crossings, pieces, {i: str(julia.bridge_reason(number, i + 1)) for i in failed}

        self.table, self.crossings, pieces, self.reasons = runtime.call(solve)
        self.handle, self.results = handle, results.numpy()
        return ys, *records_like(self.table[2], self.table[3], y0), pieces

    def reverse(self, inputs: Sequence[Tensor], first: Tensor | None, *bars: Tensor | None) -> tuple[Any, ...]:
        """Cotangents of the inputs of `run`."""
        y0, *tensors = inputs
        ysbar, errorbar, stiffnessbar, piecesbar = bars
        y0bar, arguments = torch.zeros_like(y0), ArgumentBuffer()
        arguments.tensor(y0bar)
        arguments.tensor(None if ysbar is None else in_memory(ysbar))
        for bar in (errorbar, stiffnessbar):
            arguments.tensor(None if bar is None else bar.to(torch.float64).contiguous())
        arguments.tensor(None if piecesbar is None or not piecesbar.numel() else in_memory(piecesbar))
        gradients = arguments.gradients(self.codes, tensors)
        call_for("bridge_samples_backward", self.handle.number, *arguments.location)
        return y0bar, *gradients


def _place(code: Code) -> int:
    """Which of the code's tensors is the sample's index, counted from 1; 0 if none is."""
    return next((i for i, x in enumerate(code.tensors, 1) if x is SAMPLE), 0)


class SampleSolve:
    """What a job has found, and the solution that follows from it.

    Args:
        request: what was asked for.
        job: the job, which has run.
        weights: of the method's interpolant, if events are looked for.
        results: of the job, with their gradients.
    """

    def __init__(
        self,
        request: Request,
        job: SampleJob,
        weights: Weights | None,
        results: Sequence[Tensor],
    ) -> None:
        self.request, self.job, self.weights = request, job, weights
        self.ys, self.error, self.stiffness, self.pieces = results
        columns = job.results.T
        self.accepted, self.saved = columns[1].astype(np.int64), columns[2].astype(np.int64)
        self.rejected, self.evaluations = columns[3].astype(np.int64), columns[4].astype(np.int64)

    def solution(self, order: float, stability_size: float | None, *, implicit: bool = False) -> Solution:
        """The solution; raises the failure of the first sample that has one, if that is asked for.

        Args:
            order: of the method, as the step control has it.
            stability_size: of the method; None if it estimates no stiffness.
            implicit: whether it is, or switches to, an implicit one.
        """
        request, job = self.request, self.job
        hits, stopped = self._hits()
        ys = self._states(stopped)
        clocks = job.results.T
        counts = zip(self.evaluations.tolist(), self.accepted.tolist(), self.rejected.tolist(), strict=True)
        table = job.table
        sizes = np.where(self.accepted > 0, table[1, 0].numpy(), math.nan) if table.shape[1] else clocks[9]
        stats = Stats(
            nfe=int(self.evaluations.max()),
            accepted=int(self.accepted.sum()),
            rejected=int(self.rejected.sum()),
            dt_first=float(min(clocks[6], key=abs)),
            njac=int(clocks[11].max()),
            nfactorisations=int(clocks[12].sum()),
            samples=tuple(SampleStats(*count) for count in counts),
            first_step=FirstStep(sizes, clocks[9], self.accepted, order),
        )
        status = Status.EVENT if stopped and len(stopped) == len(self.accepted) else Status.SUCCESS
        kinds = {i: STATUSES[int(clocks[0, i])] for i in job.reasons}
        first = min(kinds, default=None)
        solution = Solution(
            ts=request.ts[: len(ys)],
            ys=ys,
            stats=stats,
            steps=self._steps(stability_size, implicit=implicit) if request.record == "all" else None,
            engine="julia",
            solver=request.solver,
            status=status if first is None else FAILURES[kinds[first]].status,
            events=self._events(hits) if request.events else None,
        )
        if first is not None and request.throw:
            y0, reason = request.y0, f"sample {first} of {len(request.y0)}, {job.reasons[first]}"
            bad = int((~torch.isfinite(y0)).sum())
            if bad:  # whatever was seen later, it began here
                reason = f"y0 is not finite: {bad} of {y0.numel()} components"
            raise FAILURES[kinds[first]](
                reason, t=float(clocks[7, first]), dt=float(clocks[8, first]), solution=solution
            )
        return solution

    def _steps(self, stability_size: float | None, *, implicit: bool) -> Steps:
        table = self.job.table
        mask = torch.arange(table.shape[1])[:, None] < torch.from_numpy(self.accepted)
        error, stiffness = self.error, self.stiffness
        if not len(mask):  # no step: an empty record that is part of the graph
            empty = self.request.y0.reshape(-1)[:0].abs().reshape(0, 1).expand(0, mask.shape[1])
            error = stiffness = empty
        return Steps(
            t=table[0],
            dt=table[1],
            error=error,
            stiffness=told(stiffness, stability_size, self.job.mass),
            method=self.request.solver.method,
            stability_size=stability_size,
            implicit=table[4] == 1 if implicit else None,
            mask=mask,
        )

    # --- events ----------------------------------------------------------------------------------

    def _hits(self) -> tuple[list[tuple[int, Hit]], dict[int, Hit]]:
        """Samples and their events, in the order of both, and the events that stopped samples."""
        hits: list[tuple[int, Hit]] = []
        stopped: dict[int, Hit] = {}
        t0, ends, sizes = self.request.times[0], self.job.table[0], self.job.table[1]
        for crossing, (y, *k) in zip(self.job.crossings.tolist(), self.pieces.unbind(), strict=True):
            sample, step = int(crossing[0]), int(crossing[1]) - 1
            begin = t0 if step == 0 else float(ends[step - 1, sample])
            assert self.weights is not None
            implicit = bool(self.job.table[4, step, sample] == 1)
            within = interpolant_of(self.weights, begin, float(sizes[step, sample]), y, k, implicit=implicit)
            found, last = hits_of(self.request.events, crossing, within, float(ends[step, sample]), sample)
            hits += [(sample, hit) for hit in found]
            if last is not None:
                stopped[sample] = last
        return hits, stopped

    def _states(self, stopped: dict[int, Hit]) -> Tensor:
        """States at the save times that every sample has reached; one that an event stopped stays where it was."""
        times, sign = self.request.times, math.copysign(1.0, self.request.times[-1] - self.request.times[0])
        ys, saved = self.ys, self.saved.copy()
        for sample, hit in stopped.items():
            rows = [i for i, time in enumerate(times) if sign * time > sign * hit.at]
            saved[sample] = len(times)
            if rows:
                place = torch.tensor(rows), torch.full((len(rows),), sample)
                ys = ys.index_put(place, hit.y.expand(len(rows), *hit.y.shape))
        return ys[: int(saved.min())]

    def _events(self, hits: Sequence[tuple[int, Hit]]) -> Events:
        events = events_of([hit for _, hit in hits], self.request.y0[0])
        return events._replace(sample=torch.tensor([sample for sample, _ in hits], dtype=torch.long))

"""What runs in Julia as one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regnde._engines.julia.bridge import LocalJob, SolveJob
from regnde._engines.julia.samples import SampleJob
from regnde._last_derivative import last_derivative

__all__ = ["run"]

AnyJob = SolveJob | LocalJob | SampleJob


class _Node(torch.autograd.Function):
    """A job as one graph node, its inputs and results differentiable."""

    @staticmethod
    def forward(ctx: Any, job: AnyJob, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Runs the job, and saves what its reverse needs."""
        results = job.run(*inputs)
        ctx.job = job
        ctx.save_for_backward(*inputs, results[0] if job.times_need_gradient else None)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @last_derivative("the Julia engine has no second derivatives: set Solver(engine='torch').")
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        """One reverse in Julia."""
        *inputs, first = ctx.saved_tensors
        return None, *ctx.job.reverse(inputs, first, *bars)


def run(job: AnyJob, *inputs: Tensor, graph: bool) -> tuple[Any, ...]:
    """Runs a job, as a node of the graph if asked for; its results."""
    results: tuple[Any, ...] = _Node.apply(job, *inputs) if graph else job.run(*inputs)  # type: ignore[no-untyped-call]  # torch does not type it
    return results

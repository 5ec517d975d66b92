"""The checkpointed gradient of an ODE: steps without a graph, taken again with one in the backward pass.

The forward pass keeps a state every few steps. The backward pass goes from one to the one before:
it takes the steps between with a graph, pulls the cotangents back, and drops the graph, so that memory
grows by kept states only. The numbers are those of the full graph. A. Griewank, A. Walther, Evaluating
Derivatives (2008), chapter 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.loop import Anchor, Path
from regnde._engines.torch.outside import leaves_of
from regnde._engines.torch.piece import Kept, Piece
from regnde._engines.torch.records import Records
from regnde._engines.torch.stages import ListStages, listed
from regnde._engines.torch.step import dense_rows, stage_times

__all__ = ["with_graph"]

Pulled = list[tuple[Tensor, Tensor | None]]  # values, and their cotangents
Gradients = list[Tensor | None]


class _Cotangents(NamedTuple):
    """Of the outputs of a solve; None where nothing depends on one."""

    ys: Tensor | None
    errors: Tensor | None
    stiffnesses: Tensor | None
    anchor: Tensor | None


@dataclass(frozen=True)
class _Tape:
    """The accepted steps, as floats.

    Attributes:
        piece: takes a step.
        every: steps from one kept state to the next.
        begins, ends, sizes: of the steps.
        rows: number of save times before the first step and after each.
        times: the save times.
        anchor: index of the step with the local record's state, and its time; None without one.
    """

    piece: Piece
    every: int
    begins: Sequence[float]
    ends: Sequence[float]
    sizes: Sequence[float]
    rows: Sequence[int]
    times: Sequence[float]
    anchor: tuple[int, float] | None

    def first_stage(self, y: Tensor) -> Tensor | None:
        """The stage that the first step gets, if the method is FSAL."""
        if not self.piece.tableau.fsal:
            return None
        t = self.begins[0]
        return self.piece.field(stage_times((0.0,), t, 0.0, t, y)[0], y)

    def steps(
        self, indices: range, y: Tensor, first: Tensor | None, of: _Cotangents
    ) -> tuple[Tensor, Tensor | None, Pulled]:
        """Takes steps again, with a graph.

        Args:
            indices: which.
            y: state at the beginning.
            first: the FSAL stage there, if the method has one.
            of: cotangents of the solve's outputs.

        Returns:
            State and FSAL stage at the end; the outputs between, with their cotangents.
        """
        tableau, pulled = self.piece.tableau, Pulled()
        records = Records()
        for n in indices:
            t, h, t_new = self.begins[n], self.sizes[n], self.ends[n]
            stages = listed(tableau, y)
            taken, estimates = self.piece.step(stages, h, stage_times(tableau.c, t, h, t_new, y), y, first)
            pulled += self._outputs(n, y, taken.y1, stages, of)
            records.add(estimates.error, estimates.stiffness)
            y, first = taken.y1, stages[tableau.stages - 1] if tableau.fsal else None
        steps = slice(indices.start, indices.stop)
        for form, cotangents in ((records.errors, of.errors), (records.stiffnesses, of.stiffnesses)):
            if cotangents is not None and (formed := form()) is not None:
                pulled.append((formed, cotangents[steps]))
        return y, first, pulled

    def _outputs(self, n: int, y: Tensor, y1: Tensor, stages: ListStages, of: _Cotangents) -> Pulled:
        """The states that a step gave to the outside: at save times, and the local record's."""
        t, h, t_new = self.begins[n], self.sizes[n], self.ends[n]
        pulled, inside, rows = Pulled(), [], []
        if of.ys is not None:
            start, stop = self.rows[n], self.rows[n + 1]
            inside = [(s - t) / h for s in self.times[start:stop] if s != t_new]
            rows = [of.ys[start : start + len(inside)]]
            if start + len(inside) < stop:
                pulled.append((y1, of.ys[start + len(inside) : stop].sum(0)))
        if of.anchor is not None and self.anchor is not None and self.anchor[0] == n:
            if self.anchor[1] == t:
                pulled.append((y, of.anchor))
            else:
                inside.append((self.anchor[1] - t) / h)
                rows.append(of.anchor[None])
        if inside:
            if self.piece.tableau.extra_a:
                states = self.piece.extended_rows(t, h, t_new, inside, y, *stages.stages)
            else:
                states = dense_rows(self.piece.tableau, stages, y, h, inside)
            pulled.append((states, torch.cat(rows)))
        return pulled


def with_graph(path: Path, kept: Kept, y0: Tensor, times: Sequence[float], *, anchor: Anchor | None) -> None:
    """Hangs the tensors of a path, taken without a graph, on that of y0 and of the field's leaves.

    Args:
        path: from `integrate`.
        kept: what was kept on the way.
        y0: initial state.
        times: the save times.
        anchor: the path's, if its state is to have a graph.
    """
    outputs = (
        torch.cat(path.chunks),
        path.records.errors(),
        path.records.stiffnesses(),
        None if anchor is None else anchor.y.clone(),
    )
    states = [x for pair in kept.states for x in pair]
    begins = [times[0], *path.ends[:-1]]
    at = None if anchor is None else (anchor.step, anchor.t)
    tape = _Tape(kept.piece, kept.every, begins, path.ends, path.sizes, path.rows, times, at)
    inputs = tape, outputs, kept.leaves, y0, *kept.leaves, *states
    ys, errors, stiffnesses, state = _Solve.apply(*inputs)  # type: ignore[no-untyped-call]  # torch does not type it
    path.chunks = [ys]
    path.records = Records()
    path.records.add(errors, stiffnesses)
    if anchor is not None:
        anchor.y = state


class _Solve(torch.autograd.Function):
    """The outputs of a solve as one function of its initial state and the field's leaves."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: _Tape,
        outputs: tuple[Tensor | None, ...],
        leaves: list[Tensor],
        y0: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.tape = tape
        ctx.leaves = leaves  # the very objects: the field uses them again
        ctx.versions = [leaf._version for leaf in leaves]
        ctx.save_for_backward(y0, *others[len(leaves) :])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        y0, *states = ctx.saved_tensors
        sweep = _graph_of_all if torch.is_grad_enabled() else _sweep
        of_y0, of_leaves = sweep(ctx.tape, y0, states, ctx.leaves, _Cotangents(*of_outputs))
        for leaf, version, gradient in zip(ctx.leaves, ctx.versions, of_leaves, strict=True):
            if gradient is not None and leaf._version != version:
                raise RuntimeError(
                    "gradient='checkpoint': a parameter of the field was changed in place after the solve, which takes "
                    "its steps again in the backward pass. Call backward() before the optimiser's step."
                )
        of_y0 = of_y0 if ctx.needs_input_grad[3] else None
        return None, None, None, of_y0, *of_leaves, *[None] * len(states)


def _sweep(
    tape: _Tape, y0: Tensor, states: Sequence[Tensor], leaves: Sequence[Tensor], of: _Cotangents
) -> tuple[Tensor | None, Gradients]:
    """Gradients by y0 and by the leaves, from one kept state to the one before."""
    sums: Gradients = [None] * len(leaves)
    of_y: Tensor | None = None
    of_first: Tensor | None = None

    def pull(pulled: Pulled, inputs: list[Tensor]) -> Gradients:
        """Adds to the gradients of the leaves; returns those of the inputs."""
        gradients = _gradients(pulled, [*inputs, *leaves], further=False)
        sums[:] = map(_sum, sums, gradients[len(inputs) :])
        return gradients[: len(inputs)]

    width = 2 if tape.piece.tableau.fsal else 1
    for i in reversed(range(len(states) // width)):
        inputs = [x.detach().requires_grad_() for x in states[width * i : width * (i + 1)]]
        indices = range(len(tape.ends))[tape.every * i : tape.every * (i + 1)]
        with torch.enable_grad():
            y1, last, pulled = tape.steps(indices, inputs[0], inputs[1] if width == 2 else None, of)
        pulled.append((y1, of_y))
        if last is not None:
            pulled.append((last, of_first))
        of_y, of_first = [*pull(pulled, inputs), None][:2]
    if of_first is not None:
        y = y0.detach().requires_grad_()
        with torch.enable_grad():
            first = tape.first_stage(y)
        assert first is not None  # it has a cotangent
        of_y = _sum(of_y, pull([(first, of_first)], [y])[0])
    return _sum(of_y, _of_start(tape, of)), sums


def _graph_of_all(
    tape: _Tape, y0: Tensor, states: Sequence[Tensor], leaves: Sequence[Tensor], of: _Cotangents
) -> tuple[Tensor | None, Gradients]:
    """The same with a graph of its own, for derivatives of derivatives: it holds all steps at once."""
    y = y0 if y0.requires_grad else y0.detach().requires_grad_()
    *_, pulled = tape.steps(range(len(tape.ends)), y, tape.first_stage(y), of)
    of_y, *of_leaves = _gradients(pulled, [y, *leaves], further=True)
    return _sum(of_y, _of_start(tape, of)), of_leaves


def _of_start(tape: _Tape, of: _Cotangents) -> Tensor | None:
    """Cotangent of the initial state where it is saved itself."""
    return None if of.ys is None or not tape.rows[0] else of.ys[: tape.rows[0]].sum(0)


def _gradients(pulled: Pulled, inputs: Sequence[Tensor], *, further: bool) -> Gradients:
    """Pulls cotangents back to the inputs; a tensor that would be missed among them is an error."""
    used = [(value, cotangent) for value, cotangent in pulled if cotangent is not None and value.requires_grad]
    if not used:
        return [None] * len(inputs)
    values, of_values = zip(*used, strict=True)
    missed = leaves_of(values, known=inputs)
    if missed:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in missed)
        raise RuntimeError(
            f"gradient='checkpoint': the field used tensors, of shape {shapes}, that it had not used at the initial "
            "time, so that their gradients would be lost. Make them parameters of the module that is the field, "
            "or use gradient='discrete'."
        )
    return list(torch.autograd.grad(values, inputs, of_values, create_graph=further, allow_unused=True))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b

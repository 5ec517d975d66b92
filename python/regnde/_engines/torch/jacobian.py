"""The derivatives of a field by its state and by the time, with a graph where the solve has one.

PyTorch differentiates: one backward pass, vectorised over the unit vectors of the slope. With `create_graph` the
Jacobian is differentiable in its turn, so that a Rosenbrock step has its exact gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regnde._derivative_check import check_derivatives, direction
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.step import Field
from regnde._errors import UnsupportedField
from regnde._transforms import transformed

__all__ = ["Derivatives", "Jacobian", "as_states", "as_vectors", "has_other_leaves"]

PROBE = 1e-3  # change of the state, relative and absolute
CHECKED = (1, 4, 16, 64)  # attempts at which the derivatives are checked: at one point they may be right by chance
Pair = tuple[Tensor | None, Tensor | None]


class Derivatives(NamedTuple):
    """A slope and its derivatives, as real vectors of n entries: of one system, or of each of B samples.

    Attributes:
        slope: the field's value, of the state's shape.
        by_state: the Jacobian, shape (n, n) or (B, n, n).
        by_time: shape (n,) or (B, n).
    """

    slope: Tensor
    by_state: Tensor
    by_time: Tensor


def as_vectors(x: Tensor, samples: bool) -> Tensor:
    """The entries of a state as a real vector, shape (n,), or of each of its samples, shape (B, n)."""
    real = torch.view_as_real(x) if x.is_complex() else x
    return real.reshape(len(x), -1) if samples else real.reshape(-1)


def as_states(vectors: Tensor, like: Tensor) -> Tensor:
    """The reverse, in the shape of a state."""
    if like.is_complex():
        return torch.view_as_complex(vectors.reshape(*like.shape, 2))
    return vectors.reshape(like.shape)


class Jacobian:
    """Differentiates fields.

    Args:
        samples: whether the leading dimension holds samples that do not act on each other.

    Attributes:
        calls: evaluations so far.
    """

    def __init__(self, *, samples: bool = False) -> None:
        self.samples, self.calls = samples, 0
        self._attempts, self._due = 0, False
        self._vectorised = True  # until a field has an operation that can not be

    def begin_attempt(self) -> None:
        """The next evaluation is that of a new attempt, not of one that a checkpoint takes again."""
        self._attempts += 1
        self._due = self._attempts in CHECKED

    def __call__(self, field: Field, t: Tensor, y: Tensor, end: Tensor | None = None) -> Derivatives:
        """The derivatives at a point: one evaluation of the field, and one backward pass for each entry of a system.

        At some attempts they are compared with a difference quotient.

        Args:
            field: the right-hand side.
            t: 0-dim, or a column of the samples' times.
            y: state.
            end: a later time, where the field may be evaluated for the comparison; None for no comparison.

        Raises:
            UnsupportedField: if torch can not differentiate the field.
        """
        self.calls += 1
        due, self._due = self._due, False
        if transformed():
            return self._by_transform(field, t, y)
        wanted = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            real = torch.view_as_real(y) if y.is_complex() else y
            if real.is_inference():
                real, t = real.clone(), t.clone()
            if wanted and real.requires_grad:
                own, time = _Arguments.apply(real, t)  # type: ignore[no-untyped-call]  # torch does not type it
            else:
                own, time = real.detach().requires_grad_(), t.detach().requires_grad_()
            slope = field(time, torch.view_as_complex(own) if y.is_complex() else own)
            value = torch.view_as_real(slope) if slope.is_complex() else slope
            wanted = wanted and (real.requires_grad or has_other_leaves(value, (own, time)))
            grads: Pair = (None, None)
            if value.requires_grad and real.numel():
                grads = self._gradients(value, (own, time), self._unit_vectors(real), wanted)
            if grads[0] is None and self.calls == 1 and real.numel():
                _check_constant(field, t, y)
            found = self._laid_out(slope, real, grads)
            if due and end is not None and real.numel():
                self._check(field, t, y, end, found, grads[1])
        return found if wanted else Derivatives(*(x.detach() for x in found))

    @torch.no_grad()
    def _check(
        self, field: Field, t: Tensor, y: Tensor, end: Tensor, found: Derivatives, by_time: Tensor | None
    ) -> None:
        """Warns if the derivatives miss a part of the field."""
        along = as_vectors(direction(y.detach()), self.samples)
        product = as_states((found.by_state @ along.unsqueeze(-1)).squeeze(-1), y)
        function = field.function if isinstance(field, CountedField) else field
        if check_derivatives(function, t.detach(), y.detach(), found.slope, product, end, by_time):
            self._attempts = max(CHECKED)  # once is enough

    def _unit_vectors(self, real: Tensor) -> Tensor:
        """Of the slope, shape (n, *real.shape): of all samples at once."""
        shape = real.shape[1:] if self.samples else real.shape
        n = shape.numel()
        rows = torch.eye(n, dtype=real.dtype, device=real.device)
        return rows.view(n, 1, *shape).expand(n, *real.shape) if self.samples else rows.view(n, *shape)

    def _gradients(self, value: Tensor, inputs: Sequence[Tensor], rows: Tensor, create: bool) -> Pair:
        """The gradients of each entry of the value, stacked."""
        with _explained():
            if self._vectorised:
                try:
                    by_state, by_time = torch.autograd.grad(
                        value, inputs, rows, True, create, allow_unused=True, is_grads_batched=True
                    )
                    return by_state, by_time
                except RuntimeError:  # an operation that vmap does not know: one pass for each row
                    self._vectorised = False
            parts = [torch.autograd.grad(value, inputs, row, True, create, allow_unused=True) for row in rows]
        return _stacked([of_y for of_y, _ in parts]), _stacked([of_t for _, of_t in parts])

    def _laid_out(self, slope: Tensor, real: Tensor, grads: Pair) -> Derivatives:
        """The rows of gradients as Jacobians and time derivatives; zeros where the slope does not depend."""
        by_state, by_time = grads
        n = real.numel() // (len(real) if self.samples else 1) if real.numel() else 0
        batch = (len(real),) if self.samples else ()
        state = real.new_zeros((*batch, n, n)) if by_state is None else by_state.reshape(n, *batch, n)
        time = real.new_zeros((*batch, n)) if by_time is None else by_time.reshape(n, *batch)
        if self.samples:
            state = state if by_state is None else state.transpose(0, 1)
            time = time if by_time is None else time.transpose(0, 1)
        return Derivatives(slope, state, time)

    def _by_transform(self, field: Field, t: Tensor, y: Tensor) -> Derivatives:
        """The same where a transform of torch.func, or forward mode, is at work."""
        real = torch.view_as_real(y) if y.is_complex() else y

        def value(t: Tensor, x: Tensor) -> Tensor:
            slope = field(t, torch.view_as_complex(x) if y.is_complex() else x)
            return torch.view_as_real(slope) if slope.is_complex() else slope

        with _explained():
            slope, pull, *_ = torch.func.vjp(value, t, real)
            by_time, by_state = torch.func.vmap(pull)(self._unit_vectors(real))
        return self._laid_out(torch.view_as_complex(slope) if y.is_complex() else slope, real, (by_state, by_time))


@torch.no_grad()
def _check_constant(field: Field, t: Tensor, y: Tensor) -> None:
    """Refuses a field that depends on the state where torch does not see it."""
    function = field.function if isinstance(field, CountedField) else field
    here, there = (function(t.detach().clone(), x) for x in (y.detach().clone(), y.detach() * (1 + PROBE) + PROBE))
    if bool(torch.isfinite(there).all()) and not torch.equal(here, there):
        raise UnsupportedField(
            "an implicit method needs the derivative of the field by the state, but the field leaves torch: it calls "
            "numpy, .item(), .detach() or torch.no_grad(). Write it in differentiable operations of torch, or use an "
            "explicit method such as 'tsit5'."
        )


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    """The rows as one tensor; an input is used by all of them or by none."""
    known = [row for row in rows if row is not None]
    return torch.stack(known) if known else None


class _Arguments(torch.autograd.Function):
    """A state and a time as they are, made by one node.

    The search for what a derivative needs ends at this node. At a time that is a leaf it would pass through the
    graph of all steps before.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return y.clone(), t.clone()

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_t: Tensor) -> tuple[Tensor, None]:
        return of_y, None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns torch's error of a derivative into one that says what was wanted of the field."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise UnsupportedField(
            f"an implicit method needs the derivative of the field by the state, which torch can not form: {reason} "
            "Write the field in differentiable operations of torch, or use an explicit method such as 'tsit5'."
        ) from problem


def has_other_leaves(value: Tensor, own: Sequence[Tensor]) -> bool:
    """Whether the graph of a value reaches tensors that require a gradient besides these."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is x for x in own):
            return True
        waiting.extend(following for following, _ in node.next_functions)
    return False

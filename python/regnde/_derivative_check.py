"""Whether a field's derivatives, as PyTorch forms them, are those of the field: a difference quotient at one point.

A part that leaves torch (numpy, .item(), .detach(), torch.no_grad()) has no derivative for PyTorch. A Rosenbrock method
with that Jacobian loses its order, and its error estimate does not tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["check_derivatives", "check_field", "direction"]

Field = Callable[[Tensor, Tensor], Tensor]
MISSING = 1e-2  # share of a derivative below which it may be missing
BENT = 10.0  # how many times the change between two quotients both they and the error of one of them must be
NOISE = 1e2  # of the field's values, in units of the dtype's resolution
FARTHER = 10.0  # times the distance: there the derivative must be as wrong, else the field's own rounding is seen
AS_WRONG = 2.0  # how many times the change of a quotient to there its error must be
MISSING_THERE = 3e-2  # share of the quotient there that must be missing


def direction(y: Tensor) -> Tensor:
    """A direction for the derivative at a state: every entry about as large as the state's, signs mixed.

    Entries that are 0 do not change, since nothing tells on what scale they do. Of a state that is 0 all change by 1.
    """
    real = torch.view_as_real(y) if y.is_complex() else y
    weights = torch.cos(torch.arange(1, real.numel() + 1, dtype=torch.float64).square())  # no pattern of a state's
    weights = (weights.sign() * (1 + weights.abs()) / 2).to(real).reshape(real.shape)
    along = weights * real.abs() if bool(real.any()) else weights
    return torch.view_as_complex(along) if y.is_complex() else along


@torch.no_grad()
def check_derivatives(
    field: Field, t: Tensor, y: Tensor, slope: Tensor, product: Tensor, end: Tensor, by_time: Tensor | None
) -> bool:
    """Warns if the derivatives at (t, y) miss a part of the field; returns whether they do.

    A kink of the field, rounding and points where it is not finite give no warning: an entry is told only where the
    quotients of both sides agree with each other far better than with the derivative.

    Args:
        field: the right-hand side.
        t: time, 0-dim, or a column of the samples' times.
        y: state.
        slope: the field there.
        product: the Jacobian times `direction(y)`.
        end: of the step: the field is evaluated up to there.
        by_time: derivative by the time; None where PyTorch sees no dependence.
    """
    step = torch.finfo(y.dtype).eps ** (1 / 3)
    along = step * direction(y)
    try:
        before, after = field(t, y - along / 2), field(t, y + along)
        missing = _missing(before, slope, after, product, step)
        if bool(missing.any()):
            near, distance = (after - slope) / step, FARTHER * step
            for signed in (distance, -distance):
                far = (field(t, y + signed * direction(y)) - slope) / signed
                missing &= _remains(near, far, product)
        late = by_time is None and _moves(field, t, y, slope, end)
    except Exception:  # what the field does beside the solution is no fault of the solve
        return False
    count = int(missing.sum())
    if not (count or late):
        return False
    what = f"by the state ({count} of {y.numel()} entries)" if count else "by the time"
    coupled = " Or the samples of the batch act on each other: use batch='joint'." if count and t.ndim else ""
    warnings.warn(
        f"the derivative of the field {what} is not what PyTorch forms of it: a part of the field seems to leave torch "
        "(numpy, .item(), .detach(), torch.no_grad(), an autograd function of your own). An implicit method loses its "
        "order by that, and its errors are larger than the tolerance asks for. Write that part in differentiable "
        "operations of torch, or use an explicit method such as 'tsit5'." + coupled,
        stacklevel=2,
    )
    return True


def check_field(field: Field, t: Tensor, y: Tensor, end: Tensor) -> None:
    """The same with the derivatives at (t, y) that PyTorch forms there."""
    with torch.enable_grad():
        y, time = y.detach().requires_grad_(), t.detach().requires_grad_()
        slope = field(time, y * 1)
        product, by_time = torch.zeros_like(slope), None
        if slope.requires_grad:
            cotangent = torch.zeros_like(slope, requires_grad=True)
            by_state, by_time = torch.autograd.grad(slope, (y, time), cotangent, create_graph=True, allow_unused=True)
            if by_state is not None:
                (product,) = torch.autograd.grad((by_state * direction(y.detach())).sum(), cotangent)
    check_derivatives(field, t, y.detach(), slope.detach(), product, end, by_time)


def _missing(before: Tensor, here: Tensor, after: Tensor, product: Tensor, step: float) -> Tensor:
    """The entries in which the derivative seems not to be that of the field.

    The state before is half as far away as the one after: quotients on both sides of a field that saturates or jumps,
    such as tanh of a large argument or a sign, would agree at equal distances.
    """
    left, right = (here - before) / (step / 2), (after - here) / step
    noise = NOISE * torch.finfo(here.dtype).eps * (before.abs() + after.abs()) / step
    wrong, bent = (right - product).abs(), BENT * (right - left).abs()
    return (wrong > bent) & (right.abs() >= bent) & (wrong > MISSING * right.abs()) & (wrong > noise)


def _remains(near: Tensor, far: Tensor, product: Tensor) -> Tensor:
    """The entries in which the derivative is as wrong by a quotient over a larger distance.

    A field that computes in a lower precision than its state's has the same wrong quotients at small distances by
    chance, or zeros.
    """
    wrong = (far - product).abs()
    return (near != 0) & (wrong > AS_WRONG * (far - near).abs()) & (wrong > MISSING_THERE * far.abs())


def _moves(field: Field, t: Tensor, y: Tensor, slope: Tensor, end: Tensor) -> bool:
    """Whether the field changes steadily with the time, of which PyTorch sees nothing."""
    once = field(t + (end - t) / 2, y)
    if torch.equal(once, slope):
        return False
    twice = field(end, y)
    change, bent = (once - slope).abs(), (twice - 2 * once + slope).abs()
    noise = NOISE * torch.finfo(slope.dtype).eps * slope.abs()
    return bool(((change > noise) & (change > BENT * bent)).any())

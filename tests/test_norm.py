"""The scaled norm as one node against the formula that it is: value, derivatives of every kind, ties and zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regnde._engines.torch.norm import MANY, scaled_norm
from tolerances import ROUNDING

RTOL, ATOL = 1e-3, 1e-2


def arguments(*, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Error, state and new state, of both signs."""
    generator = torch.Generator().manual_seed(0)
    error, y, y1 = (torch.randn(MANY, dtype=torch.float64, generator=generator) for _ in range(3))
    return error, y, torch.where(torch.arange(MANY) % 2 == 0, y, y1) if ties else y1


def formula(error: Tensor, y: Tensor, y1: Tensor) -> Tensor:
    return (error / (ATOL + RTOL * torch.maximum(y.abs(), y1.abs()))).square().mean().sqrt()


def node(error: Tensor, y: Tensor, y1: Tensor) -> Tensor:
    terms = [(share * MANY**-0.5, error) for share in (0.5, 0.75, -0.25)]  # in all the mean of the squares' root
    estimate = scaled_norm(terms, y, y1, RTOL, ATOL)
    assert not estimate.requires_grad or "ScaledNorm" in type(estimate.grad_fn).__name__
    return estimate


def close(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=1e-15)


@pytest.mark.parametrize("ties", [False, True])
def test_value_and_gradient(ties: bool) -> None:
    outcomes = []
    for of in (node, formula):
        inputs = [x.clone().requires_grad_() for x in arguments(ties=ties)]
        value = of(*inputs)
        outcomes.append((value.detach(), *torch.autograd.grad(value, inputs)))
    close(*outcomes)


def test_second_derivatives() -> None:
    outcomes = []
    for of in (node, formula):
        inputs = [x.clone().requires_grad_() for x in arguments()]
        first = torch.autograd.grad(of(*inputs), inputs, create_graph=True)
        outcomes.append(torch.autograd.grad(sum((g**2).sum() for g in first), inputs))
    close(*outcomes)


def test_gradient_by_the_error_alone() -> None:
    error, y, y1 = arguments()
    error.requires_grad_()
    close(*[torch.autograd.grad(of(error, y, y1), error) for of in (node, formula)])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, from its functorch
def test_transforms_of_torch_func() -> None:
    """They take the formula."""
    inputs = arguments()
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        # along a direction: a whole Jacobian of 4096 columns by jacfwd is no more telling
        got, expected = (
            transform(lambda s, of=of: of(inputs[0] * s, inputs[1] + s, inputs[2] - 2 * s))(
                torch.tensor(1.5, dtype=torch.float64)
            )
            for of in (lambda e, *x: scaled_norm([(MANY**-0.5, e)], *x, RTOL, ATOL), formula)
        )
        close(got, expected)


def test_forward_mode() -> None:
    inputs, directions = arguments(), arguments(ties=True)
    outcomes = []
    for of in (node, formula):
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(*pair) for pair in zip(inputs, directions, strict=True)]
            outcomes.append(torch.autograd.forward_ad.unpack_dual(of(*duals)).tangent)
    close(*outcomes)


def test_no_error_has_no_gradient() -> None:
    _, y, y1 = arguments()
    inputs = [x.clone().requires_grad_() for x in (torch.zeros_like(y), y, y1)]
    value = node(*inputs)
    assert float(value.detach()) == 0.0
    assert not any(bool(g.any()) for g in torch.autograd.grad(value, inputs))

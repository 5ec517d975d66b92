"""The scaled norm as one node against the formula that it is: value, derivatives of every kind, ties and zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regnde._engines.torch.norm import MANY, measured, norms, scaled_norm
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
    assert not estimate.requires_grad or "Norms" in str(estimate.grad_fn.next_functions[0][0].next_functions)
    return estimate


def close(a: object, b: object, rtol: float = ROUNDING) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("ties", [False, True])
def test_value_and_gradient(ties: bool) -> None:
    outcomes = []
    for of in (node, formula):
        inputs = [x.clone().requires_grad_() for x in arguments(ties=ties)]
        value = of(*inputs)
        of_error, *of_states = torch.autograd.grad(value, inputs)
        if ties and of is node:  # where both states have the same size the formula halves their share
            assert not of_states[0][::2].any(), "the node gives it to y1"
        outcomes.append((value.detach(), of_error, *([sum(of_states)] if ties else of_states)))
    close(*outcomes)


def test_second_derivatives() -> None:
    outcomes = []
    for of in (node, formula):
        inputs = [x.clone().requires_grad_() for x in arguments()]
        first = torch.autograd.grad(of(*inputs), inputs, create_graph=True)
        outcomes.append(torch.autograd.grad(sum((g**2).sum() for g in first), inputs))
    close(*outcomes)


def test_norms_of_samples_that_step_apart() -> None:
    """With a step size for each: values, first and second derivatives."""
    column = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=torch.float64)[:, None]
    width = MANY // 4

    def node_of_samples(error: Tensor, y: Tensor, y1: Tensor) -> Tensor:
        terms = [(share * width**-0.5, error) for share in (0.5, 0.75, -0.25)]
        with torch.no_grad():
            known = measured(terms, y, y1, RTOL, ATOL, column=column)
        return norms([known])

    def formula_of_samples(error: Tensor, y: Tensor, y1: Tensor) -> Tensor:
        scale = ATOL + RTOL * torch.maximum(y.abs(), y1.abs())
        return (column * error / scale).square().mean(1).sqrt()

    outcomes = []
    for of in (node_of_samples, formula_of_samples):
        inputs = [x.reshape(4, width).clone().requires_grad_() for x in arguments()]
        values = of(*inputs)
        first = torch.autograd.grad((values * torch.arange(4)).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), inputs)
        plain = torch.autograd.grad((of(*inputs) * torch.arange(4)).sum(), inputs)
        outcomes.append([values.detach(), *[g.detach() for g in first], *second, *plain])
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


def test_several_steps_are_one_node_with_the_formula_s_derivatives() -> None:
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(4)]
    slopes = [torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(4)]
    outcomes = []
    for joined in (True, False):
        ys, ks = ([x.clone().requires_grad_() for x in group] for group in (states, slopes))
        terms = [[(0.5 + n, ks[n]), (-0.25, ks[n + 1])] for n in range(3)]  # a stage that two steps share
        if joined:
            with torch.no_grad():
                known = [measured(terms[n], ys[n], ys[n + 1], RTOL, ATOL) for n in range(3)]
            estimates = norms(known)
        else:
            errors = [sum(weight * x for weight, x in term) for term in terms]
            scales = [ATOL + RTOL * torch.maximum(ys[n].abs(), ys[n + 1].abs()) for n in range(3)]
            estimates = torch.stack([(e / s).square().sum().sqrt() for e, s in zip(errors, scales, strict=True)])
        assert estimates.shape == (3,)
        weighed = (estimates * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).sum()
        first = torch.autograd.grad(weighed, [*ys, *ks], create_graph=True)
        plain = torch.autograd.grad(weighed, [*ys, *ks], retain_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [*ys, *ks])
        outcomes.append((*[g.detach() for g in first], *plain, *second))
    close(*outcomes, rtol=100 * ROUNDING)


def test_a_single_term_is_not_overwritten_where_a_graph_wants_it() -> None:
    error, y, y1 = arguments()
    leaf = error.clone().requires_grad_()
    term = leaf * 1.0
    value = scaled_norm([(1.0, term)], y, y1, RTOL, ATOL)
    assert torch.equal(term, error)
    close(torch.autograd.grad(value / MANY**0.5, leaf), torch.autograd.grad(formula(leaf, y, y1), leaf))

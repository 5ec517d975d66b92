"""Methods that step along a grid: implicit Runge-Kutta methods and Adams' methods, through the drop-ins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import regnde
from regnde._grid_method import IMPLICIT_TABLEAUX, Adams, ImplicitTableau, adams_weights
from tolerances import ROUNDING

IMPLICIT = tuple(IMPLICIT_TABLEAUX)
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
ITERATION = 1e-7  # what the residual 1e-8 of a step's equations leaves of a state, at most
GRADIENT = 1e-6  # of central differences with steps of 1e-5, and of the iterations' residual in them


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def swinging(t: Tensor, y: Tensor) -> Tensor:
    """A pendulum with a force that depends on the time."""
    return torch.stack([y[1], -torch.sin(y[0]) + 0.3 * torch.cos(2 * t)])


def error_at_end(method: str, steps: int, options: dict[str, int] | None = None) -> float:
    """Of y' = -2 (y - cos t) - sin t, whose solution from 1 is cos t."""
    y0, t = f64([1.0]), torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    ys = regnde.odeint(lambda t, y: -2 * (y - torch.cos(t)) - torch.sin(t), y0, t, method=method, options=options)
    return abs(float(ys[-1]) - math.cos(1.0))


@pytest.mark.parametrize("method", IMPLICIT)
def test_an_implicit_method_has_its_order(method: str) -> None:
    order = IMPLICIT_TABLEAUX[method].order
    steps = 8 if order < 5 else 2
    measured = math.log2(error_at_end(method, steps) / error_at_end(method, 2 * steps))
    assert measured > order - 0.3


@pytest.mark.filterwarnings("ignore:the corrector of")
@pytest.mark.parametrize("method", ADAMS)
def test_an_adams_method_has_its_order_whose_first_steps_have_order_four(method: str) -> None:
    """At most 5: the explicit one then goes up to 4, the implicit ones up to 5."""
    errors = [error_at_end(method, steps, {"max_order": 5}) for steps in (48, 96)]
    assert math.log2(errors[0] / errors[1]) > 3.7


@pytest.mark.filterwarnings("ignore:the corrector of")
@pytest.mark.parametrize("method", ADAMS)
def test_adams_steps_of_unequal_size_keep_the_order(method: str) -> None:
    """The weights of equal steps, which torchdiffeq takes here, too, leave an error of the second order."""

    def error(steps: int) -> float:
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        t = t + 0.4 / steps * torch.sin(9 * t) * (t > 0) * (t < 1)
        options = {"max_order": 5}
        ys = regnde.odeint(
            lambda t, y: -2 * (y - torch.cos(t)) - torch.sin(t), f64([1.0]), t, method=method, options=options
        )
        return float((ys[:, 0] - torch.cos(t)).abs().max())

    assert error(40) < 1e-6
    assert math.log2(error(20) / error(40)) > 3.3


def test_weights_of_equal_steps_are_those_of_adams() -> None:
    """Hairer, Norsett, Wanner I, III.1: tables 1.1 and 1.2."""
    assert adams_weights([0, -1, -2, -3]) == pytest.approx(np.array([55, -59, 37, -9]) / 24, rel=ROUNDING)
    assert adams_weights([1, 0, -1, -2]) == pytest.approx(np.array([9, 19, -5, 1]) / 24, rel=ROUNDING)
    nodes = [0.0, -0.3, -1.7, -2.1, -4.0]
    for power in range(5):  # exact for polynomials
        assert adams_weights(nodes) @ np.array(nodes) ** power == pytest.approx(1 / (power + 1), abs=1e-12)


@pytest.mark.filterwarnings("ignore:the corrector of")
@pytest.mark.parametrize("solve", [regnde.odeint, regnde.odeint_adjoint])
@pytest.mark.parametrize("method", [*IMPLICIT, *ADAMS])
def test_gradients_are_those_of_the_steps(method: str, solve: Callable[..., Tensor]) -> None:
    t = torch.linspace(0, 1, 7, dtype=torch.float64)

    def loss(w: Tensor, y0: Tensor) -> Tensor:
        ys = solve(lambda t, y: w * torch.sin(y + t) - y.flip(0), y0, t, method=method)
        return (ys * f64([1.0, 2.0])).sum()

    at = f64([0.7]), f64([1.0, -0.5])
    w, y0 = (x.clone().requires_grad_() for x in at)
    found = torch.cat(torch.autograd.grad(loss(w, y0), [w, y0]))
    for place, value in enumerate(found):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[place] = 1e-5
        ahead, behind = (loss(at[0] + s * moved[:1], at[1] + s * moved[1:]) for s in (1, -1))
        assert float(value) == pytest.approx(float(ahead - behind) / 2e-5, abs=GRADIENT)


def test_complex_states_and_times_with_gradients() -> None:
    y0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128, requires_grad=True)
    t = f64([0.0, 0.05, 0.1]).requires_grad_()
    for method in ("gl6", "implicit_adams"):
        ys = regnde.odeint(lambda t, y: 2j * y, y0, t, method=method)
        expected = y0 * torch.exp(2j * (t - t[0])[:, None])
        torch.testing.assert_close(ys, expected, rtol=1e-6, atol=0)
        found, right = (torch.autograd.grad(x.real.sum(), [y0, t]) for x in (ys, expected))
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


def test_stiff_components_die_out() -> None:
    rates = f64([-1.0, -1e3, -1e6])
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for method in ("implicit_euler", "radauIIA5", "sdirk2", "trbdf2"):
        y1 = regnde.odeint(lambda t, y: rates * y, torch.ones(3, dtype=torch.float64), t, method=method)[-1]
        assert y1[1:].abs().max() < 1e-3, method


def test_equations_that_are_not_solved_are_an_error() -> None:
    """y1 = 1 + 100 (1 + y1^2) has no solution."""
    t = f64([0.0, 100.0])
    with pytest.raises(regnde.NonFiniteDynamics), pytest.warns(UserWarning, match="not solved in 100 iterations"):
        regnde.odeint(lambda t, y: 1 + y**2, f64([1.0]), t, method="implicit_euler")


def test_a_gradient_of_second_order_is_refused() -> None:
    y0 = f64([1.0]).requires_grad_()
    y1 = regnde.odeint(lambda t, y: -(y**2), y0, f64([0.0, 0.1]), method="gl4")[-1]
    (slope,) = torch.autograd.grad(y1.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of an implicit step"):
        slope.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of an implicit step"):
        torch.autograd.grad(slope.sum(), y0, allow_unused=True)


def test_the_state_needs_no_gradient_where_nothing_does() -> None:
    for method in ("gl4", "implicit_adams"):
        assert not regnde.odeint(lambda t, y: -y, f64([1.0]), f64([0.0, 0.1]), method=method).requires_grad


def test_a_gradient_that_only_a_later_iteration_needs() -> None:
    """The field uses w beyond 1.05, where the first guess is not."""
    w = f64(2.0).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(y) if float(y.detach()) < 1.05 else 1 + w * (y - 1.05)

    ys = regnde.odeint(field, f64([1.0]), f64([0.0, 0.1]), method="implicit_euler")
    k = (1 - 0.05 * w) / (1 - 0.1 * w)  # of k = 1 + w (1 + 0.1 k - 1.05)
    (right,) = torch.autograd.grad(0.1 * k, w)
    assert float(torch.autograd.grad(ys[-1].sum(), w)[0]) == pytest.approx(float(right), rel=1e-6)


def test_cubic_outputs_between_the_steps() -> None:
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    for method in ("gl4", "implicit_adams"):
        options = {"step_size": 0.05, "interp": "cubic"}
        ys = regnde.odeint(lambda t, y: -y, f64([1.0]), t, method=method, options=options)
        torch.testing.assert_close(ys[:, 0], torch.exp(-t), rtol=1e-6, atol=0)


def test_adams_options() -> None:
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    as_rk4 = regnde.odeint(swinging, f64([1.0, 0.0]), t, method="explicit_adams", options={"max_order": 3})
    torch.testing.assert_close(as_rk4, regnde.odeint(swinging, f64([1.0, 0.0]), t, method="rk4"), rtol=0, atol=ROUNDING)
    for options, message in (({"max_order": 13}, "give 1 to 12"), ({"max_iters": 0}, "give at least 1")):
        with pytest.raises(ValueError, match=message):
            regnde.odeint(swinging, f64([1.0, 0.0]), t, method="implicit_adams", options=options)
    with pytest.warns(UserWarning, match="did not converge in 1 iterations"):
        regnde.odeint(swinging, f64([1.0, 0.0]), t, method="implicit_adams", options={"max_iters": 1})


@pytest.mark.parametrize("method", [*IMPLICIT, *ADAMS])
def test_grid_methods_against_torchdiffeq(method: str) -> None:
    theirs = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install regnde[bench])")
    if method == "gl4":
        pytest.skip("torchdiffeq evaluates both stages at the first one's time")
    t = torch.linspace(0, 1, 15, dtype=torch.float64)
    calls = [0, 0]

    def counted(place: int) -> Callable[[Tensor, Tensor], Tensor]:
        def field(t: Tensor, y: Tensor) -> Tensor:
            calls[place] += 1
            return swinging(t, y)

        return field

    try:
        expected = theirs.odeint(counted(0), f64([1.0, 0.0]), t, method=method)
    except ValueError:
        pytest.skip("the released torchdiffeq has no implicit methods yet")
    got = regnde.odeint(counted(1), f64([1.0, 0.0]), t, method=method)
    torch.testing.assert_close(got, expected, rtol=0, atol=ITERATION if method in IMPLICIT else ROUNDING)
    assert calls[1] <= calls[0]


def test_coefficients_that_miss_a_condition_are_refused() -> None:
    gauss = IMPLICIT_TABLEAUX["gl4"]
    with pytest.raises(ValueError, match="a condition of order 2"):
        ImplicitTableau(name="typo", order=4, a=((0.25, 0.25), gauss.a[1]), b=gauss.b)
    assert dataclasses.replace(gauss, max_iters=3).max_iters == 3
    assert gauss.blocks == ((0, 1),)
    assert IMPLICIT_TABLEAUX["trbdf2"].blocks == ((0,), (1,), (2,))
    assert Adams(name="a", order=4, implicit=True).max_order == 12

"""torchdiffeq's events and dense output, its scipy solver, and states of half precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import regnde
from tolerances import GRADIENT, ROUNDING

G = 9.81
METHODS = ("dopri5", "dopri8", "bosh3", "tsit5", "rk4", "gl6", "implicit_adams")
LOCATED = 1e-5  # of an event: the methods' errors over a second


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def falling(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return y[1], torch.full_like(y[1], -G)


def options_of(method: str) -> dict[str, float] | None:
    return None if method in ("dopri5", "dopri8", "bosh3", "tsit5") else {"step_size": 0.01}


@pytest.mark.parametrize("interface", [regnde.odeint, regnde.odeint_adjoint])
@pytest.mark.parametrize("method", METHODS)
def test_event_times_and_states_have_exact_gradients(method: str, interface: Callable[..., object]) -> None:
    """A ball falls from the height s to the ground at r: t = sqrt(2 (s - r) / g), v = -sqrt(2 g (s - r))."""
    height, ground = f64([2.0]).requires_grad_(), f64(0.5).requires_grad_()
    t, (h, v) = regnde.odeint_event(
        falling,
        (height, f64([0.0])),
        f64(3.0),
        event_fn=lambda t, y: y[0] - ground,
        odeint_interface=interface,
        method=method,
        options=options_of(method),
    )
    drop = height[0] - ground
    right = 3 + torch.sqrt(2 * drop / G), -torch.sqrt(2 * G * drop)
    assert (h.shape, v.shape) == ((2, 1), (2, 1))
    assert (h[0].item(), v[0].item()) == (2.0, 0.0)
    assert t.item() == pytest.approx(right[0].item(), abs=LOCATED)
    assert v[1].item() == pytest.approx(right[1].item(), abs=LOCATED)
    assert h[1].item() == pytest.approx(0.5, abs=ROUNDING)
    for found, wanted in zip((t, v[1, 0]), right, strict=True):
        got, expected = (torch.autograd.grad(x, [height, ground], retain_graph=True) for x in (found, wanted))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_first_of_several_events_backwards_in_time() -> None:
    w, t0 = f64(2.0).requires_grad_(), f64(1.0).requires_grad_()
    seen: list[float] = []

    def event(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t.detach()))
        return torch.stack([y[0] - 1e6, y[0] - 5.0, t - 0.9])  # far away, at y = 5, too early

    t, y = regnde.odeint_event(
        lambda t, y: -w * y, f64([1.0]), t0, event_fn=event, reverse_time=True, rtol=1e-10, atol=1e-10
    )
    assert t.item() == pytest.approx(0.9, abs=1e-9)
    t, y = regnde.odeint_event(
        lambda t, y: -w * y,
        f64([1.0]),
        t0,
        event_fn=lambda t, y: event(t, y)[:2],
        reverse_time=True,
        rtol=1e-10,
        atol=1e-10,
    )
    assert t.item() == pytest.approx(1 - math.log(5) / 2, abs=1e-9)
    assert max(seen) <= 1.0
    of_w, of_t0 = torch.autograd.grad(t, [w, t0])
    assert of_w.item() == pytest.approx(math.log(5) / 4, rel=GRADIENT)
    assert of_t0.item() == pytest.approx(1.0, rel=GRADIENT)
    assert y[-1].item() == pytest.approx(5.0, abs=1e-9)


def test_an_event_at_the_start_and_one_that_never_comes() -> None:
    y0, t = f64([1.0]), f64([0.0, 1.0])
    time, states = regnde.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] - 1)
    assert float(time) == 0.0
    assert states.tolist() == [[1.0], [1.0]]
    with pytest.raises(regnde.MaxStepsReached):
        regnde.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] + 1, options={"max_num_steps": 50})
    with pytest.raises(RuntimeError, match=r"no zero up to t=1e\+12"):
        regnde.odeint(lambda t, y: 0 * y, y0, t, event_fn=lambda t, y: y[0] + 1)
    with pytest.raises(RuntimeError, match="no zero up to t=2"):
        regnde.odeint(
            lambda t, y: -y, y0, t, event_fn=lambda t, y: y[0] + 1, method="euler", options={"step_size": 1e-4}
        )
    for arguments, message in (
        ({"method": "scipy_solver"}, "finds no events"),
        ({"method": "rk4"}, "needs the option step_size"),
        ({"t": f64([0.0, 1.0, 2.0])}, "needs two times"),
    ):
        with pytest.raises(ValueError, match=message):
            regnde.odeint(lambda t, y: -y, y0, **{"t": t, **arguments}, event_fn=lambda t, y: y[0] - 0.5)


def test_an_event_is_found_beyond_the_second_time_and_recorded() -> None:
    with regnde.recording() as log:
        t, y = regnde.odeint(lambda t, y: -y, f64([1.0]), f64([0.0, 1.0]), event_fn=lambda t, y: y[0] - 1e-3)
    assert t.item() == pytest.approx(math.log(1e3), abs=1e-4)
    assert y.shape == (2, 1)
    assert len(log.solutions) == 1


def test_torchdiffeqs_own_functions_are_no_interface() -> None:
    theirs = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install regnde[test])")
    field, event = (lambda t, y: -y), (lambda t, y: y[0] - 0.5)
    for interface in (theirs.odeint, functools.partial(theirs.odeint_adjoint, adjoint_params=())):
        with pytest.raises(ValueError, match="give regnde's odeint"):
            regnde.odeint_event(field, f64([1.0]), f64(0.0), event_fn=event, odeint_interface=interface)
    with regnde.install("torchdiffeq"):
        interface = functools.partial(theirs.odeint_adjoint, adjoint_params=())
        t, _ = theirs.odeint_event(field, f64([1.0]), f64(0.0), event_fn=event, odeint_interface=interface)
    assert t.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", [None, "dopri8", "bosh3"])
def test_dense_output(method: str | None) -> None:
    w = f64(1.5).requires_grad_()
    solution = regnde.odeint_dense(lambda t, y: -w * y, f64([2.0, 1.0]), f64(0.0), f64(2.0), method=method)
    t = f64(0.77).requires_grad_()
    y = solution(t)
    assert y.tolist() == pytest.approx([2 * math.exp(-1.155), math.exp(-1.155)], rel=1e-5)
    of_w, of_t = torch.autograd.grad(y[0], [w, t])
    assert of_w.item() == pytest.approx(-0.77 * 2 * math.exp(-1.155), rel=1e-4)
    assert of_t.item() == pytest.approx(-1.5 * 2 * math.exp(-1.155), rel=1e-4)
    assert solution(torch.linspace(0, 2, 5)).shape == (5, 2)
    with pytest.raises(ValueError, match="fixed grid"):
        regnde.odeint_dense(lambda t, y: -y, f64([1.0]), f64(0.0), f64(1.0), method="rk4")


# --- scipy_solver -------------------------------------------------------------------------------


class Rotation(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(f64(1.3))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.w * y[1], -self.w * y[0]


@pytest.mark.parametrize("solver", ["LSODA", "RK45", "DOP853", "Radau"])
def test_scipy_steps_and_the_adjoint_differentiates(solver: str) -> None:
    pytest.importorskip("scipy")
    field = Rotation()
    t = f64([2.0, 1.2, 1.2, 0.0]).requires_grad_()
    y0 = f64([1.0, 0.0]).requires_grad_(), f64([[0.0, 1.0]]).requires_grad_()
    a, b = regnde.odeint_adjoint(field, y0, t, method="scipy_solver", options={"solver": solver}, rtol=1e-8, atol=1e-8)
    assert not regnde.odeint(field, y0, t, method="scipy_solver")[0].requires_grad
    angle = field.w * (t - t[0])
    right = torch.cos(angle)[:, None] * y0[0] + torch.sin(angle)[:, None] * y0[1][0]
    torch.testing.assert_close(a, right, rtol=1e-5, atol=1e-5)
    assert b.shape == (4, 1, 2)
    sources = [field.w, t, *y0]
    weights = f64([1.0, 2.0, 3.0, 4.0])[:, None]
    found, wanted = (torch.autograd.grad((weights * x).sum(), sources, retain_graph=True) for x in (a, right))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    first = torch.autograd.grad((weights * a).sum(), field.w, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivatives of 'scipy_solver'"):
        first.square().backward()


def test_what_scipy_can_not_do() -> None:
    pytest.importorskip("scipy")
    t = f64([0.0, 2.0])
    with pytest.raises(RuntimeError, match="did not get beyond t="):
        regnde.odeint(lambda t, y: y**2, f64([1.0]), t, method="scipy_solver", options={"solver": "RK45"})
    with pytest.raises(ValueError, match="needs adjoint_params="):
        regnde.odeint_adjoint(lambda t, y: -y, f64([1.0]), t, method="scipy_solver")
    field = Rotation()
    field.callback_step = print
    with pytest.warns(UserWarning, match="does not call callback_step"):
        regnde.odeint(field, (f64([1.0]), f64([1.0])), t, method="scipy_solver")
    one = regnde.odeint(lambda t, y: -y, torch.ones(3, dtype=torch.complex64), t[:1], method="scipy_solver")
    assert one.shape == (1, 3)
    spinning = regnde.odeint(
        lambda t, y: 1j * y, torch.ones(1, dtype=torch.complex64), t, method="scipy_solver", options={"solver": "RK45"}
    )
    assert complex(spinning[-1, 0]) == pytest.approx(np.exp(2j), abs=1e-4)


# --- half precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams"])
def test_half_precision_on_fixed_grids(method: str, dtype: torch.dtype) -> None:
    """Samplers solve in the dtype of their network. A state is rounded once a step, as in torchdiffeq."""
    theirs = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install regnde[test])")
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4).to(dtype)

    def field(t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == y.dtype == dtype
        return torch.tanh(net(y)) * torch.cos(t)

    y0, t = torch.randn(50, 4).to(dtype), torch.linspace(0, 1, 17, dtype=dtype)
    options = {"max_order": 5} if method == "explicit_adams" else None
    ys = regnde.odeint(field, y0, t, method=method, options=options)
    expected = theirs.odeint(field, y0, t, method=method, options=options)
    assert ys.dtype == dtype
    assert float((ys - expected).detach().abs().mean()) < torch.finfo(dtype).eps
    if method in ("euler", "midpoint"):
        assert torch.equal(ys, expected)
    ys[-1].sum().backward()
    assert net.weight.grad.dtype == dtype
    for other in ("dopri5", "gl4"):
        with pytest.raises(TypeError, match="too coarse"):
            regnde.odeint(field, y0, t, method=other)

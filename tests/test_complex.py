"""Complex states and Fourier transforms on both engines: known solutions, gradients, every kind of record."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regnde
from complex_fields import schroedinger
from fields import state
from regnde import ErrorPenalty, Event, Local, Solver
from regnde._engines.julia import runtime
from regnde._engines.julia.code import Code
from tolerances import SOLVER

pytestmark = pytest.mark.timeout(600)
DOUBLE, COMPLEX = torch.float64, torch.complex128
RATE = -0.3 + 2.0j
TOLERANCE = 1e-8


def solver(engine: str, **options: Any) -> Solver:
    return Solver(rtol=TOLERANCE, atol=TOLERANCE, engine=engine, **options)


def near(found: Tensor, right: Any, tolerance: float = SOLVER * TOLERANCE) -> None:
    assert float((found - right).detach().abs().max()) < tolerance


def start() -> Tensor:
    return torch.tensor([1.0 + 0.5j, -2.0j, 0.3], dtype=COMPLEX, requires_grad=True)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_a_rotation_with_its_gradients(engine: str, gradient: str) -> None:
    """z' = a z: z(1) = e^a z0. The gradient of Re(w* z(1)) is conj(e^a) w by z0, and conj(z0* w e^a*)* by a."""
    y0, rate = start(), torch.tensor(RATE, dtype=COMPLEX, requires_grad=True)
    weight = torch.tensor([1.0 - 1.0j, 0.5j, 2.0], dtype=COMPLEX)
    sol = regnde.solve(lambda t, z: rate * z, y0, [0.0, 0.4, 1.0], solver(engine, gradient=gradient), record="all")
    assert (sol.engine, sol.ys.dtype, sol.steps.error.dtype) == (engine, COMPLEX, DOUBLE)
    grown = torch.exp(torch.tensor(RATE))
    near(sol.y1, grown * y0)
    near(sol.ys[1], torch.exp(0.4 * torch.tensor(RATE)) * y0)
    by_state, by_rate = torch.autograd.grad((weight.conj() * sol.y1).real.sum(), (y0, rate))
    near(by_state, grown.conj() * weight)
    near(by_rate, ((grown * y0).conj() * weight).sum())


def test_the_records_are_those_of_pairs_of_real_numbers(engine: str) -> None:
    """A field with equal moduli in all entries has the norms of its real form but for the number of entries."""
    angles = torch.linspace(0, 3, 5, dtype=DOUBLE)
    y0 = torch.polar(torch.ones(5, dtype=DOUBLE), angles).requires_grad_()
    sol = regnde.solve(lambda t, z: 3j * z, y0, [0.0, 1.0], solver(engine), record="all")
    near(sol.steps.stiffness, 3.0, 1e-6)
    (gradient,) = torch.autograd.grad(ErrorPenalty()(sol), y0)
    turned = gradient / y0.detach()  # the error depends on the moduli alone, and on all of them alike
    near(turned - turned.mean().real, 0.0, 1e-9)


def test_both_engines_take_the_same_steps(julia: None) -> None:
    y0 = state(4, dtype=COMPLEX)
    theirs, ours = (
        regnde.solve(lambda t, z: RATE * z + z.conj() * z, y0, [0.0, 1.0], solver(name), record="all")
        for name in ("torch", "julia")
    )
    assert theirs.stats.nfe == ours.stats.nfe
    for name in ("t", "dt", "error", "stiffness"):
        torch.testing.assert_close(getattr(ours.steps, name), getattr(theirs.steps, name), rtol=1e-3, atol=1e-9)


def test_single_precision(engine: str) -> None:
    y0 = start().detach().to(torch.complex64).requires_grad_()
    sol = regnde.solve(lambda t, z: RATE * z, y0, [0.0, 1.0], Solver(engine=engine, rtol=1e-4, atol=1e-4), record="all")
    assert (sol.y1.dtype, sol.steps.error.dtype) == (torch.complex64, torch.float32)
    near(sol.y1, torch.exp(torch.tensor(RATE)) * y0, 1e-2)
    (sol.y1.abs().sum() + sol.steps.error.sum()).backward()
    assert torch.isfinite(torch.view_as_real(y0.grad)).all()


def test_what_goes_with_a_complex_state(engine: str) -> None:
    """Samples with steps of their own, local records, dense output, events, stops, gradients by times."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return RATE * z

    y0, grown = start(), torch.exp(torch.tensor(RATE))
    alone = regnde.solve(field, y0[:, None], [0.0, 1.0], solver(engine, batch="per-sample"), record="all")
    near(alone.y1[:, 0], grown * y0)
    (gradient,) = torch.autograd.grad(alone.y1.real.sum() + 0 * alone.steps.error.sum(), y0)
    near(gradient, grown.conj())

    local = regnde.solve(field, y0, [0.0, 1.0], solver(engine), record=Local(seed=3, detach_state=False))
    assert len(local.steps.error) == 1
    assert torch.isfinite(torch.view_as_real(torch.autograd.grad(local.steps.error.sum(), y0)[0])).all()

    dense = regnde.solve(field, y0, [0.0, 1.0], solver(engine), dense=True)
    near(dense(0.37), torch.exp(0.37 * torch.tensor(RATE)) * y0)

    stopped = regnde.solve(
        field, torch.ones(1, dtype=COMPLEX), [0.0, 3.0], solver(engine), event=Event(lambda t, z: z[0].real)
    )
    near(stopped.events.t[0], math.pi / 4, 1e-6)

    jump = regnde.solve(
        lambda t, z: torch.where(t < 0.5, 1.0, 2.0) * RATE * z, y0, [0.0, 1.0], solver(engine), stops=[0.5]
    )
    near(jump.y1, torch.exp(1.5 * torch.tensor(RATE)) * y0)

    ts = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
    by_time = torch.autograd.grad(regnde.solve(field, y0, ts, solver(engine)).y1.real.sum(), ts)[0]
    near(by_time[1], (RATE * grown * y0.detach()).real.sum())


def test_numbers_that_torch_conjugates_on_reading(engine: str) -> None:
    """`conj()` and `imag` of it change no memory: the state, a parameter and a cotangent are what they stand for."""
    z = start().detach()
    weight = torch.tensor([1j, 2.0, 1 - 1j], dtype=COMPLEX).conj()
    sol = regnde.solve(lambda t, y: weight * y, z.conj(), [0.0, 1.0], solver(engine))
    near(sol.y1, torch.exp(weight) * z.conj())
    imaginary = z[1:2].conj().imag
    assert imaginary.is_neg()
    real = regnde.solve(lambda t, y: -y, imaginary, [0.0, 1.0], solver(engine))
    near(real.y1, math.exp(-1) * imaginary)


def test_what_complex_states_do_not_have_on_julia_is_refused(julia: None) -> None:
    y0, sde = start(), regnde.SDE(lambda t, z: -z, lambda t, z: z)
    for options, equation, message in (
        ({"method": "rodas5p"}, lambda t, z: -z, r"view_as_real"),
        ({"method": "sriw1"}, sde, "SDEs of complex states"),
    ):
        with pytest.raises((ValueError, regnde.EngineUnavailable), match=message) as caught:
            regnde.solve(equation, y0, [0.0, 1.0], Solver(engine="julia", **options))
        assert "\n" not in str(caught.value)


def test_heat_on_a_circle(engine: str) -> None:
    """y_t = y_xx by transforms: a wave of number k falls by e^(-k^2 t), and its gradient with it."""
    if engine == "julia" and runtime.missing("FFTW"):
        pytest.skip("FFTW is not in Julia's project")
    size, k = 16, 3
    place = torch.arange(size, dtype=DOUBLE) * (2 * math.pi / size)
    y0 = (torch.cos(k * place) + 2).expand(2, size).clone().requires_grad_()
    waves = torch.arange(size // 2 + 1, dtype=DOUBLE)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.fft.irfft(-(waves**2) * torch.fft.rfft(y), n=size)

    sol = regnde.solve(field, y0, [0.0, 0.2], solver(engine), record="all")
    assert sol.engine == engine
    near(sol.y1, math.exp(-(k**2) * 0.2) * torch.cos(k * place) + 2)
    (gradient,) = torch.autograd.grad((sol.y1 * torch.cos(k * place)).sum(), y0)
    near(gradient, math.exp(-(k**2) * 0.2) * torch.cos(k * place))


def test_the_norm_of_a_wave_function_is_kept(engine: str) -> None:
    if engine == "julia" and runtime.missing("FFTW"):
        pytest.skip("FFTW is not in Julia's project")
    psi = state(12, dtype=COMPLEX)
    sol = regnde.solve(schroedinger, psi / psi.norm(), [0.0, 0.5], solver(engine))
    near(sol.y1.norm(), 1.0)


def test_transforms_without_fftw(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command. With engine="auto", torch solves what is an `UnsupportedField`."""
    monkeypatch.setattr(runtime, "missing", lambda *names: list(names))
    with pytest.raises(regnde.UnsupportedField, match="Fourier transforms, and the Julia package FFTW") as caught:
        Code("transform!(dy, y, plan1)", "f", (), ()).handle()
    assert "\n" not in str(caught.value)

"""RNODE, TayNODE, STEER for many times and FFJORD's field, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import regnde
from problems import seeded
from regnde import Solver
from regnde.comparators import RNODE, Hutchinson, TayNODE, solve_with_integral, steer_all, total_derivative
from regnde.nn import MLP
from tolerances import GRADIENT, ROUNDING

DOUBLE = torch.float64


def decay(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -2 * y


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_total_derivatives_of_known_solutions(order: int) -> None:
    t, y = torch.tensor(0.3, dtype=DOUBLE), torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=DOUBLE)
    torch.testing.assert_close(total_derivative(decay, t, y, order), (-2.0) ** order * y, rtol=ROUNDING, atol=0)
    # y' = 2 t y: y = c exp(t^2), whose derivatives are c exp(t^2) times these polynomials
    s = 0.3
    factor = [2 * s, 2 + 4 * s**2, 12 * s + 8 * s**3, 12 + 48 * s**2 + 16 * s**4][order - 1]
    found = total_derivative(lambda t, y: 2 * t * y, t, y, order)
    torch.testing.assert_close(found, factor * y, rtol=ROUNDING, atol=0)
    with pytest.raises(ValueError, match="start at order 1"):
        total_derivative(decay, t, y, 0)


@pytest.mark.parametrize("end", [1.0, -0.7])
def test_integrals_and_outputs(engine: str, end: float) -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    solver = Solver(rtol=1e-10, atol=1e-10, engine=engine)
    ts = [0.0, 0.5 * end, end]
    squares = abs(1 - math.exp(-4 * end)) / 4 * 2.5  # integral of the mean of y^2
    solution, energy = solve_with_integral(decay, y0, ts, RNODE(kinetic=1.0, jacobian=0.0), solver)
    assert float(energy) == pytest.approx(2 * squares, rel=1e-8)
    plain = regnde.solve(decay, y0, ts, solver)
    assert solution.stats == plain.stats  # outside error control: the same steps
    torch.testing.assert_close(solution.ys, plain.ys, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(solution.ts, plain.ts, rtol=0, atol=0)
    _, frobenius = solve_with_integral(decay, y0, ts, RNODE(kinetic=0.0, jacobian=1.0), solver)
    assert float(frobenius) == pytest.approx(4 * abs(end), rel=1e-10)
    _, taylor = solve_with_integral(decay, y0, ts, TayNODE(order=3), solver)
    assert float(taylor) == pytest.approx(64 * squares, rel=1e-8)


def test_a_node_on_a_save_time_keeps_its_place() -> None:
    y0 = torch.tensor([1.0], dtype=DOUBLE)
    ts = [0.0, 0.5, 1.0]  # the only node is 0.5 too
    solution, energy = solve_with_integral(decay, y0, ts, RNODE(jacobian=0.0), nodes=1)
    assert solution.ts.tolist() == ts
    assert float(energy) == pytest.approx(2 * math.exp(-2), rel=1e-5)


def test_the_probe_estimates_the_frobenius_norm() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=DOUBLE)
    y, t = torch.zeros(20_000, 6, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    found = RNODE(kinetic=0.0, jacobian=1.0)(lambda t, y: y @ matrix.T, t, y)
    assert float(found) == pytest.approx(float(matrix.square().sum()) / 6, rel=0.02)


@pytest.mark.parametrize("integrand", [RNODE(kinetic=0.3, jacobian=0.7), TayNODE(order=2), TayNODE(order=3)])
def test_gradients_against_differences(integrand: regnde.comparators.Integrand) -> None:
    torch.manual_seed(0)
    net = MLP([3, 5, 3], output=torch.tanh).double()
    y0 = torch.randn(4, 3, dtype=DOUBLE)
    if isinstance(integrand, RNODE):
        integrand = integrand.drawn(y0)

    def integral() -> torch.Tensor:
        # steps of one size: a step size that adapts is a constant to the gradient, but not to the differences
        return solve_with_integral(net, y0, [0.0, 1.0], integrand, Solver(method="rk4", dt0=0.125))[1]

    integral().backward()
    for parameter in net.parameters():
        direction = torch.randn_like(parameter)
        along = float((parameter.grad * direction).sum())
        size, values = 1e-5, []
        for sign in (1, -2):
            parameter.data.add_(direction, alpha=sign * size)
            values.append(float(integral().detach()))
        parameter.data.add_(direction, alpha=size)
        assert along == pytest.approx((values[0] - values[1]) / (2 * size), rel=10 * GRADIENT, abs=1e-9)


def test_ffjord_keeps_the_volume() -> None:
    """log det of a linear flow is tr(A) T; Hutchinson's estimate is exact for a diagonal A."""
    rates = torch.tensor([0.5, -1.0, 2.0], dtype=DOUBLE)
    flow = Hutchinson(lambda t, y: y * rates)
    y0 = torch.randn(5, 3, dtype=DOUBLE)
    with pytest.raises(ValueError, match="call draw"):
        flow(torch.tensor(0.0), torch.zeros(5, 4))
    flow.draw(y0)
    start = torch.cat((y0, torch.zeros(5, 1, dtype=DOUBLE)), 1)
    for graph in (True, False):
        with torch.set_grad_enabled(graph):
            end = regnde.solve(flow, start, [0.0, 1.0], Solver(rtol=1e-10, atol=1e-10)).y1
        torch.testing.assert_close(end[:, :-1], y0 * rates.exp(), rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(end[:, -1], -rates.sum().expand(5), rtol=1e-8, atol=1e-9)


def test_ffjord_noise_is_fixed_and_unbiased() -> None:
    matrix = torch.randn(4, 4, dtype=DOUBLE)
    flow = Hutchinson(lambda t, y: y @ matrix.T)
    y, t = torch.zeros(20_000, 5, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    flow.draw(y[:, :-1], seeded(1))
    assert torch.equal(flow(t, y), flow(t, y))
    assert float(flow(t, y)[:, -1].mean()) == pytest.approx(-float(matrix.trace()), abs=0.1)


def test_steer_moves_every_time_but_the_first_and_keeps_the_order() -> None:
    ts = [0.0, *(i / 48 for i in range(1, 49))]
    generator = seeded(0)
    drawn = torch.tensor([steer_all(ts, generator=generator) for _ in range(300)], dtype=DOUBLE)
    given = torch.tensor(ts, dtype=DOUBLE)
    assert bool((drawn[:, 0] == 0).all())
    assert float(drawn.max()) <= 1.0
    assert bool((drawn.diff(dim=1) >= 0).all())
    moved = (drawn - given)[:, 1:-1] * 48
    assert 0.49 < float(moved.max()) <= 0.5
    assert float(moved.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(moved.var()) == pytest.approx(1 / 12, rel=0.05)
    uneven = steer_all([0.0, 1.0, 1.1, 5.0], generator=generator)
    assert list(uneven) == sorted(uneven)
    with pytest.raises(ValueError, match="increasing"):
        steer_all([0.0, 0.0])


# --- case A10: complex states ----------------------------------------------------------------------------


def complex_matrix() -> torch.Tensor:
    return torch.randn(4, 4, dtype=torch.complex128, generator=seeded(3))


def test_case_A10_kinetic_energy_of_complex_states() -> None:
    """y' = -i y keeps |y|: mean |f|^2 / 2 is constant, its integral |y0|^2 / 2 times the span."""
    y0 = torch.tensor([0.6 - 0.8j, 2.0j], dtype=torch.complex128, requires_grad=True)
    solver = Solver(rtol=1e-10, atol=1e-10)
    _, energy = solve_with_integral(lambda t, y: -1j * y, y0, [0.0, 1.5], RNODE(jacobian=0.0), solver)
    assert not energy.is_complex()
    assert float(energy.detach()) == pytest.approx(1.5 * 2.5 / 2, rel=1e-8)
    (slope,) = torch.autograd.grad(energy, y0)
    torch.testing.assert_close(slope, 1.5 * y0.detach() / 2, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_case_A10_derivatives_of_complex_states(order: int) -> None:
    y0 = torch.tensor([0.6 - 0.8j, 2.0j], dtype=torch.complex128)
    solver = Solver(rtol=1e-10, atol=1e-10)
    _, integral = solve_with_integral(lambda t, y: (-0.5 - 2j) * y, y0, [0.0, 1.0], TayNODE(order=order), solver)
    assert not integral.is_complex()
    wanted = (0.25 + 4) ** order * 2.5 * (1 - math.exp(-1))
    assert float(integral) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("kind", ["holomorphic", "conjugate", "real part", "turned real part"])
def test_case_A10_jacobian_of_complex_fields(kind: str) -> None:
    """Mean over the real and imaginary parts of the squared Frobenius norm of the real Jacobian."""
    a = complex_matrix()
    field = {
        "holomorphic": lambda t, y: y @ a.T,
        "conjugate": lambda t, y: y.conj() @ a.T,
        "real part": lambda t, y: (y @ a.T).real + 0j,
        "turned real part": lambda t, y: 1j * (y @ a.T).real,
    }[kind]
    y, t = torch.zeros(20_000, 4, dtype=torch.complex128), torch.tensor(0.0, dtype=DOUBLE)
    found = RNODE(kinetic=0.0, jacobian=1.0)(field, t, y)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: torch.view_as_real(field(t, torch.view_as_complex(x))), torch.zeros(4, 2, dtype=DOUBLE)
    )
    assert float(found) == pytest.approx(float(jacobian.square().sum()) / 8, rel=0.03)
    if kind == "holomorphic":
        assert float(jacobian.square().sum()) / 8 == pytest.approx(float(a.abs().square().sum()) / 4)


def test_case_A10_probes_of_complex_states() -> None:
    drawn = RNODE().drawn(torch.zeros(4000, dtype=torch.complex64)).probe
    assert drawn.dtype == torch.complex64
    torch.testing.assert_close(drawn.abs(), torch.ones(4000))
    assert float((drawn.real * drawn.imag).mean()) == pytest.approx(0.0, abs=0.03)
    real = RNODE(kinetic=0.0, probe=torch.ones(2))  # of the real dtype: the field's is taken
    assert float(real(lambda t, y: -2j * y, torch.tensor(0.0), torch.ones(2, dtype=torch.complex64))) == 4.0


def test_case_A10_ffjord_of_complex_states() -> None:
    """The log density of n complex entries is that of 2 n real ones: it falls by twice the rates' real part."""
    rates = torch.tensor([0.5 - 1j, -1.0 + 3j], dtype=torch.complex128)
    flow = Hutchinson(lambda t, y: y * rates)
    y0 = torch.ones(3, 2, dtype=torch.complex128)
    flow.draw(y0)
    start = torch.cat((y0, torch.zeros(3, 1, dtype=torch.complex128)), 1)
    end = regnde.solve(flow, start, [0.0, 1.0], Solver(rtol=1e-10, atol=1e-10)).y1
    torch.testing.assert_close(end[:, :-1], y0 * rates.exp(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(end[:, -1], (-2 * rates.real.sum()).expand(3) + 0j, rtol=1e-8, atol=1e-9)


def test_draws_do_not_depend_on_the_default_device() -> None:
    y = torch.zeros(5)
    torch.set_default_device("meta")
    try:
        assert RNODE().drawn(y).probe.abs().tolist() == [1.0] * 5
        assert steer_all([0.0, 1.0, 2.0])[0] == 0.0
    finally:
        torch.set_default_device(None)

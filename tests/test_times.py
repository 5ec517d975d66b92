"""Cases A4, A7, A14 and D3: times keep their precision and their gradient, or a warning says that they do not."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import regnde
from problems import exp_decay
from regnde import Solver
from regnde.comparators import RNODE, TayNODE, solve_with_integral
from regnde.nn import MLP, BackwardGRU, LatentODE, NeuralODE, NeuralSDE
from tolerances import GRADIENT, ROUNDING, SOLVER

DOUBLE = torch.float64
TODAY = 1.7e9  # seconds since 1970: float32 has a resolution of two minutes there


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


# --- A4: times that the state's dtype does not resolve -------------------------------------------------


def quarter(t0: float, dtype: torch.dtype, tolerance: float = 1e-5) -> float:
    """Error of the integral of cos(2 pi t) over a quarter of a period."""
    solver = Solver(rtol=tolerance, atol=tolerance)
    sol = regnde.solve(
        lambda t, y: torch.cos(2 * math.pi * t) + 0 * y, torch.zeros(1, dtype=dtype), [t0, t0 + 0.25], solver
    )
    return abs(float(sol.y1) - 1 / (2 * math.pi))


@pytest.mark.parametrize("t0", [1e4, 1e6, 1e7, -1e6])
def test_case_A4_far_times_of_a_float32_state_warn(t0: float) -> None:
    with pytest.warns(UserWarning, match=r"times in torch.float32.*y0.double\(\)"):
        quarter(t0, torch.float32)
    assert quarter(t0, DOUBLE) < SOLVER * 1e-5  # no warning, and right


@pytest.mark.parametrize(
    "ts", [[0.0, 1.0], [0.0, 50.0], [-3.0, 1.0], [1.0, 0.0], [1e6, 1e6], [0.0, 1e-30], [10.0, 11.0]]
)
def test_case_A4_near_times_do_not_warn(ts: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.complex64):
            regnde.solve(exp_decay, torch.ones(1, dtype=dtype), ts, Solver(rtol=1e-5, atol=1e-5))
    assert quarter(0.0, torch.float32) < SOLVER * 1e-5


def test_case_A4_what_does_not_warn_is_right() -> None:
    """As far from 0 as it gets without a warning, the error is of the size of the tolerance."""
    tolerance, t0 = 1e-5, 200.0
    assert quarter(t0, torch.float32, tolerance) < 2 * tolerance
    with pytest.warns(UserWarning, match="shift the time"):
        quarter(1.1 * t0, torch.float32, tolerance)


def test_case_A4_windows_of_a_span_do_not_warn() -> None:
    """A span solved window by window, as with inner solves between observations, at the default tolerance."""
    y = torch.ones(1)
    for i in range(20):
        y = regnde.solve(exp_decay, y, [i / 20, (i + 1) / 20]).y1
    assert float(y) == pytest.approx(math.exp(-1), rel=1e-5)


def test_case_A4_complex_states_and_backward_times_warn() -> None:
    for y0 in (torch.ones(1, dtype=torch.complex64), torch.ones(1)):
        with pytest.warns(UserWarning, match="shift the time"):
            regnde.solve(exp_decay, y0, [1e6 + 1, 1e6])
    with pytest.warns(UserWarning, match="shift the time"):
        NeuralODE(MLP([1, 4, 1]), ts=(1e6, 1e6 + 1))(torch.ones(1))


# --- A14: precision of the times of a solution ----------------------------------------------------------

FORMS = {
    "list": [TODAY, TODAY + 1, TODAY + 2],
    "tuple": (TODAY, TODAY + 1, TODAY + 2),
    "ints": [int(TODAY), int(TODAY) + 1, int(TODAY) + 2],
    "mixed": [int(TODAY), TODAY + 1, np.float64(TODAY + 2)],
    "numpy": np.array([TODAY, TODAY + 1, TODAY + 2]),
    "int tensor": torch.tensor([int(TODAY), int(TODAY) + 1, int(TODAY) + 2]),
    "double tensor": f64([TODAY, TODAY + 1, TODAY + 2]),
    "with a tensor": [TODAY, TODAY + 1, f64(TODAY + 2)],
}


@pytest.mark.parametrize("form", FORMS)
def test_case_A14_times_are_double(form: str) -> None:
    ts = FORMS[form]
    sol = regnde.solve(exp_decay, f64([1.0]), ts)
    assert sol.ts.dtype == DOUBLE
    assert (sol.ts - TODAY).tolist() == [0.0, 1.0, 2.0]
    torch.testing.assert_close(sol.ys.flatten(), f64([1.0, math.exp(-1), math.exp(-2)]), rtol=1e-5, atol=0)


def test_case_A14_times_of_a_solution_are_double_whatever_they_were() -> None:
    for ts in (torch.tensor([0.0, 0.1]), f64([0.0, 0.1]), torch.tensor([0.0, 0.1], requires_grad=True)):
        sol = regnde.solve(exp_decay, torch.ones(1), ts)
        assert sol.ts.dtype == DOUBLE
        assert torch.equal(sol.ts, ts.double())
        assert sol.ts.requires_grad == ts.requires_grad
    assert regnde.solve(exp_decay, [1.0], [0, 1]).ys.dtype == torch.float32  # times do not promote states


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_case_A14_numbers_beside_tensors_are_not_rounded(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    end = torch.ones(shape, dtype=dtype, requires_grad=True)
    sol = regnde.solve(exp_decay, f64([1.0]), [0.1, end])
    assert sol.ts[0].item() == 0.1
    (slope,) = torch.autograd.grad(sol.y1.sum(), end)
    assert float(slope) == pytest.approx(-math.exp(-0.9), rel=GRADIENT)


@pytest.mark.parametrize("wrong", [None, {0: 1.0}, ["0", "1"], "01", {0.0, 1.0}])
def test_case_D3_no_times(wrong: object) -> None:
    with pytest.raises(TypeError, match="sequence of times such as"):
        regnde.solve(exp_decay, [1.0], wrong)


@pytest.mark.parametrize("single", [1.0, 1, np.float64(1.0), torch.tensor(1.0)])
def test_case_D3_a_single_time(single: object) -> None:
    with pytest.raises(ValueError, match=r"sequence of times such as \[0.0, 1.0\], got the single time 1"):
        regnde.solve(exp_decay, [1.0], single)


def test_default_devices_do_not_move_the_arguments() -> None:
    """`torch.as_tensor` would move them."""
    torch.set_default_device("meta")
    try:
        for ts in ([0.0, 1.0], np.array([0.0, 1.0]), torch.tensor([0.0, 1.0], device="cpu"), [0, 1]):
            sol = regnde.solve(exp_decay, torch.ones(2, device="cpu"), ts)
            assert sol.ts.device.type == sol.ys.device.type == "cpu"
    finally:
        torch.set_default_device(None)


# --- A7: gradients by times through layers --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parameter", "leaf", "result", "list of parameters", "list of results"])
def test_case_A7_times_of_a_layer_are_trained(kind: str) -> None:
    end = nn.Parameter(f64(1.0))
    whole = nn.Parameter(f64([0.0, 1.0]))
    ts, by, keys = {
        "parameter": (whole, whole, ["ts"]),
        "leaf": ((leaf := f64([0.0, 1.0]).requires_grad_()), leaf, []),
        "result": (torch.stack((f64(0.0), 1 * end)), end, []),
        "list of parameters": ([0.0, end], end, ["ts.1"]),
        "list of results": ((0.0, 1 * end), end, []),
    }[kind]
    layer = NeuralODE(exp_decay, ts=ts, solver=Solver(rtol=1e-9, atol=1e-9))
    assert list(layer.state_dict()) == keys == [name for name, _ in layer.named_parameters()]
    (slope,) = torch.autograd.grad(layer(f64([2.0])).y1.sum(), by)
    assert float(slope.flatten()[-1]) == pytest.approx(-2 * math.exp(-1), rel=GRADIENT)
    assert "1.0" in repr(layer)


def test_case_A7_a_trained_end_time_moves_and_is_stored() -> None:
    """y(T) = exp(-T): the end time at which it is 0.5 is log 2."""
    layer = NeuralODE(exp_decay, ts=nn.Parameter(f64([0.0, 1.0])))
    sgd = torch.optim.SGD(layer.parameters(), 0.5)
    for _ in range(60):
        sgd.zero_grad()
        (layer(f64([1.0])).y1 - 0.5).square().sum().backward()
        sgd.step()
    assert float((layer.ts[1] - layer.ts[0]).detach()) == pytest.approx(math.log(2), rel=1e-3)
    other = NeuralODE(exp_decay, ts=nn.Parameter(f64([0.0, 5.0])))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(f64([1.0])).y1, layer(f64([1.0])).y1)
    moved = {"ts": f64([0.0, 2.0])}
    end = torch.func.functional_call(layer, moved, (f64([1.0]),)).y1
    assert float(end) == pytest.approx(math.exp(-2), rel=1e-5)


def test_case_A7_times_that_need_no_gradient_are_floats() -> None:
    for ts in ([0, 1], torch.tensor([0.0, 1.0]), np.array([0.0, 1.0]), [torch.tensor(0.0), 1.0]):
        assert NeuralODE(exp_decay, ts=ts).ts == (0.0, 1.0)
    frozen = NeuralODE(exp_decay, ts=nn.Parameter(f64([0.0, 1.0]), requires_grad=False))
    assert list(frozen.state_dict()) == ["ts"]
    with pytest.raises(TypeError, match=r"mixes nn.Parameter"):
        NeuralODE(exp_decay, ts=[nn.Parameter(f64(0.0)), f64(1.0).requires_grad_()])


def test_case_A7_an_sde_says_that_its_times_have_no_gradient() -> None:
    layer = NeuralSDE(exp_decay, exp_decay, ts=nn.Parameter(f64([0.0, 1.0])))
    with pytest.raises(ValueError, match="no derivative with respect to the times"):
        layer(f64([1.0]))


def latent(kind: type[nn.Module]) -> LatentODE:
    torch.manual_seed(2)
    encoder = BackwardGRU(3, hidden=5, units=7, latent=2) if kind is BackwardGRU else kind()
    solver = Solver(method="rk4", dt0=0.0625)  # an adaptive step is a constant to the gradient, not to the differences
    return LatentODE(encoder, MLP([2, 6, 2]), nn.Linear(2, 3), solver=solver).double()


class Still(nn.Module):
    """An encoder that does not read the times."""

    def forward(self, values: torch.Tensor, mask: torch.Tensor, ts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values.mean(1)[:, :2], mask.mean(1)[:, :2]


@pytest.mark.parametrize("kind", [BackwardGRU, Still])
@pytest.mark.parametrize("hooked", [False, True])
def test_case_A7_latent_ode_by_its_times(kind: type[nn.Module], hooked: bool) -> None:
    model, values, mask = latent(kind), torch.randn(4, 5, 3, dtype=DOUBLE), torch.ones(4, 5, 3, dtype=DOUBLE)
    ts = (torch.linspace(0, 1, 5, dtype=DOUBLE) ** 2).requires_grad_()

    def integrate(start: torch.Tensor, times: object, record: regnde.Solver) -> regnde.Solution:
        return regnde.solve(model.field, start, times, model.solver, record=record)

    def loss(times: torch.Tensor) -> torch.Tensor:
        made = model(values, mask, times, sample=False, integrate=integrate if hooked else None)
        return (made.values - values).square().mean()

    (slope,) = torch.autograd.grad(loss(ts), ts)
    for i in range(1, 5):  # the first one moves the grid of steps
        moved = torch.zeros(5, dtype=DOUBLE)
        moved[i] = 1e-6
        difference = (loss(ts.detach() + moved) - loss(ts.detach() - moved)) / 2e-6
        assert float(slope[i]) == pytest.approx(float(difference.detach()), rel=1e-3, abs=1e-7)


def test_case_A7_latent_ode_keeps_the_precision_of_its_times() -> None:
    """Times of today with float32 data: the encoder's gaps and the solve do not see them rounded."""
    encoder = BackwardGRU(3, hidden=5, units=7, latent=2)
    model = LatentODE(encoder, exp_decay, nn.Linear(2, 3), solver=Solver(rtol=1e-4, atol=1e-4))
    values, mask = torch.randn(4, 3, 3), torch.ones(4, 3, 3)
    shifts: list[torch.Tensor] = []
    for start in (0.0, TODAY):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the field's float32 times: this field does not read them
            shifts.append(model(values, mask, [start, start + 1, start + 2], sample=False).values.detach())
    torch.testing.assert_close(shifts[1], shifts[0], rtol=1e-3, atol=1e-3)


# --- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "bs3", "rosenbrock23", "rodas5p", "autotsit5"])
def test_the_derivatives_by_times_are_not_counted_as_evaluations_of_the_solve(method: str) -> None:
    counts = []
    for stops in ([], [0.3]):
        for wanted in (False, True):
            ts, at = torch.linspace(0, 1, 9, dtype=DOUBLE).requires_grad_(wanted), f64(stops).requires_grad_(wanted)
            solver = Solver(method=method, engine="torch")
            counts.append(regnde.solve(lambda t, y: -3 * y * torch.cos(t), f64([1.0, 2.0]), ts, solver, stops=at).stats)
    assert counts[0] == counts[1]
    assert counts[2] == counts[3]


# --- A14: the integral along a solution ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_case_A14_integral_by_its_times(dtype: torch.dtype) -> None:
    """Of y' = -y from 1: the integral of y^2 / 2 is (1 - exp(-2 T)) / 4."""
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=dtype, requires_grad=True)
    solution, energy = solve_with_integral(exp_decay, f64([1.0]), ts, RNODE(jacobian=0.0), Solver(rtol=1e-9, atol=1e-9))
    assert torch.equal(solution.ts, ts.double())
    of_energy, of_state = (torch.autograd.grad(x.sum(), ts, retain_graph=True)[0] for x in (energy, solution.ys[1]))
    torch.testing.assert_close(
        of_energy.double(), f64([-math.exp(-2) / 2, 0.0, math.exp(-2) / 2]), rtol=GRADIENT, atol=1e-7
    )
    torch.testing.assert_close(of_state.double(), f64([math.exp(-0.5), -math.exp(-0.5), 0.0]), rtol=GRADIENT, atol=1e-7)


def test_case_A14_integral_of_a_field_of_time_by_its_times() -> None:
    """Of y' = t: mean f^2 / 2 integrates to (T1^3 - T0^3) / 6, also backwards."""
    for ends in ([0.5, 2.0], [2.0, 0.5]):
        ts = f64(ends).requires_grad_()
        _, energy = solve_with_integral(lambda t, y: t + 0 * y, f64([1.0]), ts, RNODE(jacobian=0.0))
        (slope,) = torch.autograd.grad(energy, ts)
        sign = 1 if ends[1] > ends[0] else -1
        assert float(energy.detach()) == pytest.approx((8 - 0.125) / 6, rel=ROUNDING)
        torch.testing.assert_close(slope, sign * f64([-(ends[0] ** 2) / 2, ends[1] ** 2 / 2]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("y0", [[1.0, 2.0], (1, 2), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])], ids=type)
@pytest.mark.parametrize("integrand", [RNODE(), TayNODE(order=2)], ids=["rnode", "taynode"])
def test_case_A14_integral_of_any_state(y0: object, integrand: regnde.comparators.Integrand) -> None:
    solution, integral = solve_with_integral(exp_decay, y0, (0, 1), integrand)
    squares = 2.5 * (1 - math.exp(-2)) / 2
    wanted = squares / 2 + 1 if isinstance(integrand, RNODE) else squares
    assert float(integral) == pytest.approx(wanted, rel=1e-5)
    assert solution.ts.tolist() == [0.0, 1.0]
    assert solution.ys.shape == (2, 2)

"""Control paths and the neural CDE: linear equations with known answers, missing values, gradients, torchcde."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regnde
from frozen import central_differences, relative
from problems import seeded
from regnde import ErrorPenalty, Solver
from regnde.nn import ControlPath, CubicPath, LinearPath, NeuralCDE, RectilinearPath
from tolerances import EXACT, GRADIENT, ROUNDING, SOLVER

TIGHT = 1e-9
KNOTS = (0.0, 0.7, 1.0, 2.5, 3.0)
MATRICES = torch.tensor([[[0.2, 1.0], [-0.7, 0.1]], [[0.5, 0.0], [0.6, -0.4]]], dtype=torch.float64)
KINDS = (LinearPath, CubicPath, RectilinearPath)


def tight(**other: str) -> Solver:
    return Solver(rtol=TIGHT, atol=TIGHT, engine="torch", **other)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(7))


def made(kind: type[ControlPath], values: Tensor) -> ControlPath:
    return kind(values) if kind is RectilinearPath else kind(values, KNOTS)


def linear(t: Tensor, z: Tensor) -> Tensor:
    """The matrix of dz = sum over channels A_c z dX_c, shape (..., hidden, channels)."""
    return torch.einsum("chk,...k->...hc", MATRICES, z)


# --- the paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_path_goes_through_its_values(kind: type[ControlPath]) -> None:
    values = data(2, 3, 5, 2)
    path = made(kind, values)
    along = torch.stack([path(t) for t in path.knots], -2)
    torch.testing.assert_close(along, path.values, rtol=ROUNDING, atol=ROUNDING)
    if kind is not RectilinearPath:
        assert torch.equal(path.values, values)
        assert path.span == (0.0, 3.0)
        assert path.stops == KNOTS[1:-1]
    assert path.channels == 2


@pytest.mark.parametrize("kind", KINDS)
def test_derivative_is_that_of_the_path(kind: type[ControlPath]) -> None:
    """Inside the pieces by autograd, beyond the span too; at a knot it is that of the piece after it."""
    path = made(kind, data(5, 2))
    inside = [a + s * (b - a) for a, b in itertools.pairwise(path.knots) for s in (0.1, 0.5, 0.9)]
    for t in (-0.5, *inside, path.span[1] + 0.5):
        rate = torch.autograd.functional.jacobian(path, torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(
            path.derivative(torch.tensor(t, dtype=torch.float64)), rate, rtol=ROUNDING, atol=ROUNDING
        )
    for knot in path.stops:
        at, after = (path.derivative(torch.tensor(knot + d, dtype=torch.float64)) for d in (0.0, 1e-9))
        torch.testing.assert_close(at, after, rtol=0, atol=1e-7)


def test_cubic_path_has_backward_differences_as_slopes() -> None:
    values = data(5, 2)
    path, times = CubicPath(values, KNOTS), torch.tensor(KNOTS, dtype=torch.float64)
    secants = values.diff(dim=0) / times.diff()[:, None]
    for i, t in enumerate(times):
        wanted = secants[max(i - 1, 0)]
        for near in (t - 1e-12, t + 1e-12):
            torch.testing.assert_close(path.derivative(near), wanted, rtol=0, atol=1e-9)
    changed = values.clone()
    changed[3:] += 1
    other = CubicPath(changed, KNOTS)
    for t in (0.3, 0.8, 0.999):  # pieces that end at or before the third knot know nothing of later values
        assert torch.equal(path(t), other(t))


def test_rectilinear_path_moves_along_the_axes() -> None:
    values = torch.tensor([[0.0, 5.0], [0.3, 7.0], [1.0, 6.0]], dtype=torch.float64)
    path = RectilinearPath(values)
    corners = [[0.0, 5.0], [0.3, 5.0], [0.3, 7.0], [1.0, 7.0], [1.0, 6.0]]
    assert path.values.tolist() == corners
    assert path.knots == (0.0, 1.0, 2.0, 3.0, 4.0)
    last = RectilinearPath(values.flip(-1), time_channel=-1)
    assert last.values.flip(-1).tolist() == corners


def test_missing_values() -> None:
    values = data(3, 5, 2)
    holes = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 1]], dtype=torch.bool)
    values[..., 0] = values[..., 0].masked_fill(holes, torch.nan)
    values[0, :, 1] = torch.nan  # no value at all
    path = LinearPath(values, KNOTS)
    for sample, channel in itertools.product(range(3), range(2)):
        row = values[sample, :, channel].numpy()
        seen = ~np.isnan(row)
        wanted = np.interp(KNOTS, np.array(KNOTS)[seen], row[seen]) if seen.any() else np.zeros(5)
        np.testing.assert_allclose(path.values[sample, :, channel], wanted, rtol=ROUNDING)
    assert torch.equal(CubicPath(values, KNOTS).values, path.values)
    times = torch.tensor(KNOTS, dtype=torch.float64).expand(3, 5)
    values[:, 0] = 0.0
    forward = RectilinearPath(torch.stack([times, values[..., 0]], -1)).values[:, ::2, 1]
    for sample in range(3):
        latest = 0.0
        for i in range(5):
            latest = latest if values[sample, i, 0].isnan() else float(values[sample, i, 0])
            assert float(forward[sample, i]) == latest


def test_missing_values_leave_gradients_finite() -> None:
    values = data(5, 2)
    values[1, 0] = values[4, 1] = torch.nan
    values.requires_grad_()
    (slope,) = torch.autograd.grad(LinearPath(values, KNOTS).values.square().sum(), values)
    assert bool(torch.isfinite(slope).all())
    assert slope[1, 0] == 0
    assert slope[0, 0] != 2 * values[0, 0]  # the value that was filled in moves with its neighbours


def test_samples_of_a_path() -> None:
    values = data(4, 5, 2)
    path = CubicPath(values, KNOTS)
    chosen = path[torch.tensor([2, 0])]
    assert isinstance(chosen, CubicPath)
    assert len(chosen) == 2
    t = torch.tensor(1.7, dtype=torch.float64)
    assert torch.equal(chosen.derivative(t), path.derivative(t)[[2, 0]])
    assert torch.equal(path[1](t), path(t)[1])
    with pytest.raises(IndexError, match="leave times and channels"):
        path[:, 1:]
    with pytest.raises(TypeError, match="single path has no length"):
        len(path[0])
    assert path[0]  # a path is true, as any object: also where it has no length
    assert path[:0]
    assert repr(path) == "CubicPath(batch: (4,), 5 knots in [0, 3], channels: 2)"


def test_paths_that_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(TypeError, match=r"real floating-point values, got dtype torch\.int64"):
            kind(torch.zeros(3, 1, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"T >= 2, got shape \(1, 1\)"):
            kind(torch.zeros(1, 1))
    for kind in (LinearPath, CubicPath):
        with pytest.raises(ValueError, match="3 values and 2 knots"):
            kind(torch.zeros(3, 1), [0.0, 1.0])
        with pytest.raises(ValueError, match="must increase"):
            kind(torch.zeros(3, 1), [0.0, 1.0, 1.0])
        with pytest.raises(ValueError, match="no gradient with respect to its knots"):
            kind(torch.zeros(3, 1), torch.tensor([0.0, 1.0, 2.0], requires_grad=True))
    holes = torch.tensor([[0.0, torch.nan], [1.0, 1.0]])
    with pytest.raises(ValueError, match="must have no NaN"):
        RectilinearPath(holes)
    with pytest.raises(ValueError, match="the values have 2 channels"):
        RectilinearPath(torch.zeros(3, 2), time_channel=2)


# --- the equation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("kind", [LinearPath, CubicPath])
def test_one_channel_has_a_closed_form(kind: type[ControlPath], batch: str) -> None:
    """The solution of dz = A z dX is exp(A (X(t) - X(0))) z0, whatever the path in between."""
    matrix = MATRICES[0]
    values, z0 = data(4, 5, 1), data(4, 2)
    path = made(kind, values)
    ts = [0.0, 0.9, 3.0]
    solution = NeuralCDE(lambda t, z: (z @ matrix.T).unsqueeze(-1), solver=tight(batch=batch))(path, z0, ts)
    for i, t in enumerate(ts):
        flow = torch.matrix_exp(matrix * (path(t) - path(0.0)).unsqueeze(-1))
        wanted = (flow @ z0.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(solution.ys[i], wanted, rtol=0, atol=SOLVER * TIGHT)


@pytest.mark.parametrize("kind", [LinearPath, RectilinearPath])
def test_two_channels_along_lines(kind: type[ControlPath]) -> None:
    """Along a line of the path the matrix is constant: z is a product of exponentials, which do not commute."""
    values, z0 = data(3, 5, 2), data(3, 2)
    path = made(kind, values)
    wanted = z0.unsqueeze(-1)
    for change in path.values.diff(dim=-2).unbind(-2):
        wanted = torch.matrix_exp(torch.einsum("bc,chk->bhk", change, MATRICES)) @ wanted
    solution = NeuralCDE(linear, solver=tight())(path, z0)
    torch.testing.assert_close(solution.y1, wanted.squeeze(-1), rtol=0, atol=SOLVER * TIGHT)
    back = NeuralCDE(linear, solver=tight())(path, solution.y1, path.span[::-1])
    torch.testing.assert_close(back.y1, z0, rtol=0, atol=SOLVER * TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_follows_the_path(kind: type[ControlPath]) -> None:
    """With dz = dX from X(0) the state is the path, at times of the inside too; `initial` is given X(0)."""
    path = made(kind, data(3, 5, 2))
    layer = NeuralCDE(lambda t, z: torch.eye(2).double().expand(*z.shape, 2), nn.Identity(), tight(), output="states")
    first, last = path.span
    ts = torch.linspace(first, last, 7, dtype=torch.float64)
    states = layer(path, ts=ts)
    torch.testing.assert_close(states, torch.stack([path(t) for t in ts]), rtol=0, atol=SOLVER * TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_knots_are_stops(kind: type[ControlPath]) -> None:
    """Steps end at every knot, and fewer evaluations give a smaller error than without."""
    path, z0 = made(kind, data(3, 5, 2)), data(3, 2)
    solver = Solver(rtol=1e-5, atol=1e-5)
    exact = NeuralCDE(linear, solver=tight())(path, z0).y1
    solution = NeuralCDE(linear, solver=solver, record="all")(path, z0)
    assert set(path.stops) <= set(solution.steps.t.tolist())

    def across(t: Tensor, z: Tensor) -> Tensor:
        return (linear(t, z) @ path.derivative(t).unsqueeze(-1)).squeeze(-1)

    without = regnde.solve(across, z0, path.span, solver)
    assert solution.stats.nfe < without.stats.nfe
    assert (solution.y1 - exact).abs().max() < (without.y1 - exact).abs().max()


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("kind", [LinearPath, CubicPath])
def test_gradients_by_parameters_and_data(kind: type[ControlPath], gradient: str) -> None:
    """With steps of one size that end at the knots."""
    solver = Solver(method="rk4", dt0=0.5, gradient=gradient, engine="torch")
    values, z0, p = data(2, 4, 2), data(2, 2), MATRICES.flatten()

    def value(p: Tensor, values: Tensor) -> Tensor:
        def field(t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(torch.einsum("chk,...k->...hc", p.view(2, 2, 2), z))

        return NeuralCDE(field, solver=solver, path=kind, output="state")(values, z0).square().sum()

    q, x = p.clone().requires_grad_(), values.clone().requires_grad_()
    of_p, of_x = torch.autograd.grad(value(q, x), [q, x])
    assert relative(of_p, central_differences(lambda v: value(v, values), p)) < GRADIENT
    assert relative(of_x, central_differences(lambda v: value(p, v), values)) < GRADIENT


def test_gradient_by_the_times() -> None:
    """Of z(t1) = X(t1) by t1, and by t0, from which `initial` takes X(t0): with dz = dX they cancel."""
    path = CubicPath(data(3, 5, 2), KNOTS)
    layer = NeuralCDE(lambda t, z: torch.eye(2).double().expand(*z.shape, 2), nn.Identity(), tight(), output="state")
    ts = torch.tensor([0.2, 1.7], dtype=torch.float64, requires_grad=True)
    of_start, of_end = torch.autograd.grad(layer(path, ts=ts).sum(), ts)[0]
    assert float(of_start) == pytest.approx(0.0, abs=SOLVER * TIGHT)
    assert float(of_end) == pytest.approx(float(path.derivative(torch.tensor(1.7).double()).sum()), rel=GRADIENT)


class Field(nn.Module):
    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(hidden, hidden * channels), (hidden, channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z)).unflatten(-1, self.shape)


def test_layer_in_a_pipeline_learns() -> None:
    """To tell the direction of a turn, which only the order of the values holds."""
    torch.manual_seed(0)
    layer = NeuralCDE(Field(4, 2), nn.Linear(2, 4), Solver(rtol=1e-2, atol=1e-2), output="state")
    model = nn.Sequential(layer, nn.Linear(4, 1))
    angles = torch.linspace(0, 3, 6) + torch.rand(32, 1)
    turn = torch.where(torch.arange(32)[:, None] % 2 == 0, 1.0, -1.0)
    x = torch.stack([angles.cos(), turn * angles.sin()], -1)
    adam = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(40):
        adam.zero_grad()
        loss = nn.functional.soft_margin_loss(model(x), turn)
        loss.backward()
        adam.step()
    assert float(loss.detach()) < 0.1


def test_records_and_copies() -> None:
    layer = NeuralCDE(Field(3, 2), nn.Linear(2, 3), record="all").double()
    x = data(2, 5, 2)
    solution = layer(x)
    ErrorPenalty()(solution).backward()
    assert all(p.grad is not None for p in layer.parameters())
    fresh = NeuralCDE(Field(3, 2), nn.Linear(2, 3)).double()
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        torch.testing.assert_close(twin(x).ys, solution.ys, rtol=EXACT, atol=EXACT)
    assert layer.eval()(x).steps is None
    path = CubicPath(x)
    for twin in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert torch.equal(layer(twin).ys, layer(path).ys)


def test_what_is_refused() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="give an initial state z0"):
        NeuralCDE(Field(4, 3))(x)
    with pytest.raises(ValueError, match=r"knots span \[0, 4\], ts goes from 0 to 5"):
        NeuralCDE(Field(4, 3))(x, torch.zeros(2, 4), [0.0, 5.0])
    with pytest.raises(ValueError, match=r"returned shape \(2, 4\) for a state of shape \(2, 4\) and 3 channels"):
        NeuralCDE(lambda t, z: z)(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"NeuralCDE\(output='end'\)"):
        NeuralCDE(Field(4, 3), output="end")


# --- torchcde -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of its dependencies
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_paths_and_solutions_are_those_of_torchcde(kind: type[ControlPath], holes: bool) -> None:
    torchcde = pytest.importorskip("torchcde", reason="torchcde is not installed: pip install --no-deps torchcde")
    values, z0 = data(3, 5, 2), data(3, 2)
    if holes:
        values[1, 2, 1] = values[2, 3, 1] = torch.nan
    times = torch.tensor(KNOTS, dtype=torch.float64)
    if kind is LinearPath:
        theirs = torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(values, times), times)
    elif kind is CubicPath:
        coefficients = torchcde.hermite_cubic_coefficients_with_backward_differences(values, times)
        theirs = torchcde.CubicSpline(coefficients, times)
    else:
        theirs = torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(values, rectilinear=0))
    path = made(kind, values)
    for t in torch.linspace(*path.span, 23, dtype=torch.float64)[:-1]:
        torch.testing.assert_close(path(t), theirs.evaluate(t), rtol=ROUNDING, atol=ROUNDING)
        if all(abs(float(t) - knot) > 1e-9 for knot in path.knots):
            torch.testing.assert_close(path.derivative(t), theirs.derivative(t), rtol=ROUNDING, atol=ROUNDING)
    found = NeuralCDE(linear, solver=tight())(path, z0).y1
    options = dict(jump_t=theirs.grid_points)
    wanted = torchcde.cdeint(
        X=theirs, func=linear, z0=z0, t=theirs.interval, adjoint=False, rtol=1e-9, atol=1e-9, options=options
    )
    torch.testing.assert_close(found, wanted[:, -1], rtol=0, atol=SOLVER * TIGHT)

"""Properties that hold for every input of a kind: drawn by hypothesis, the same ones every time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regnde
from problems import seeded
from regnde import ErrorPenalty, Local, Penalty, Solver, SquaredErrorPenalty, StiffnessPenalty
from regnde._tableau import TABLEAUX
from tolerances import EXACT, ROUNDING, SOLVER

pytestmark = pytest.mark.timeout(120)

EXAMPLES = int(os.environ.get("REGNDE_EXAMPLES", "25"))  # more of them, by hand, look for what 25 do not show
few = settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 25, database=None)
fewer = settings(few, max_examples=EXAMPLES * 2 // 5)

METHODS = ("tsit5", "dp5", "bs3", "vern7")
TOLERANCE = 1e-7
methods = st.sampled_from(METHODS)
seeds = st.integers(0, 2**31)
times = st.floats(-2.0, 2.0, allow_nan=False, width=32)
Field = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draws(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def matrix(seed: int, n: int) -> torch.Tensor:
    """A random matrix of spectral norm at most 2, so that nothing grows by more than e^2 in a unit of time."""
    a = draws(seed, n, n)
    return 2 * a / torch.linalg.matrix_norm(a, 2).clamp(min=1e-3)


def linear(a: torch.Tensor) -> Field:
    return lambda t, y: y @ a.T


def net(seed: int, n: int) -> Field:
    w, b, v = draws(seed, 8, n), draws(seed + 1, 8), draws(seed + 2, n, 8) / 3
    return lambda t, y: torch.tanh(y @ w.T + b + t) @ v.T


@few
@given(seed=seeds, n=st.integers(1, 6), batch=st.integers(1, 4), t0=times, t1=times, method=methods)
def test_linear_systems_are_matrix_exponentials(
    seed: int, n: int, batch: int, t0: float, t1: float, method: str
) -> None:
    a, y0 = matrix(seed, n), draws(seed + 1, batch, n)
    inner = sorted(t0 + (t1 - t0) * x for x in torch.rand(3, generator=seeded(seed)).tolist())
    ts = [t0, *(inner if t1 >= t0 else reversed(inner)), t1]
    solver = Solver(method=method, rtol=TOLERANCE, atol=TOLERANCE, engine="torch")
    sol = regnde.solve(linear(a), y0, ts, solver, record="all")
    expected = torch.stack([y0 @ torch.linalg.matrix_exp(a * (t - t0)).T for t in ts])
    growth = math.exp(2 * abs(t1 - t0))
    torch.testing.assert_close(sol.ys, expected, rtol=0, atol=SOLVER * TOLERANCE * growth * (1 + float(y0.abs().max())))
    assert (sol.steps.error <= 1).all()
    assert sol.steps.dt.sum().item() == pytest.approx(t1 - t0, rel=ROUNDING, abs=ROUNDING)
    if method != "bs3":
        assert (sol.steps.stiffness <= 2 + 1e-4).all()  # a quotient |A v| / |v|, up to its rounding


@few
@given(
    seed=seeds,
    shape=st.lists(st.integers(0, 3), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]),
    forward=st.booleans(),
    grad=st.booleans(),
    record=st.sampled_from(["none", "all", Local(seed=1), Local(sampling="step", step_size="initial", seed=1)]),
    method=st.sampled_from([*METHODS, "euler", "midpoint", "heun3", "rk4"]),
)
def test_any_shape_dtype_and_direction(
    seed: int,
    shape: list[int],
    dtype: torch.dtype,
    forward: bool,
    grad: bool,
    record: regnde.Local | str,
    method: str,
) -> None:
    y0 = draws(seed, *shape, dtype=dtype).requires_grad_(grad)
    ts = [0.0, 0.25, 0.25, 1.0] if forward else [1.0, 0.25, 0.25, 0.0]
    fixed = method not in METHODS
    if fixed and record != "all":
        record = "none"
    solver = Solver(method=method, dt0=0.05 if fixed else None, rtol=1e-5, atol=1e-5, engine="torch")
    sol = regnde.solve(lambda t, y: -y, y0, ts, solver, record=record)
    assert sol.ys.shape == (4, *shape)
    assert sol.ys.dtype == dtype
    exact = y0.detach() * torch.exp(ts[0] - torch.tensor(ts, dtype=y0.real.dtype)).reshape(4, *([1] * len(shape)))
    rel = {"euler": 0.1}.get(method, 2e-3)
    torch.testing.assert_close(sol.ys.detach(), exact, rtol=rel, atol=rel)
    if grad:
        loss = sol.ys.abs().sum() + (ErrorPenalty()(sol) if record != "none" and not fixed else 0.0)
        assert torch.isfinite(torch.view_as_real(torch.autograd.grad(loss, y0)[0] + 0j)).all()


@few
@given(seed=seeds, n=st.integers(1, 5), span=st.floats(0.01, 3.0), method=methods)
def test_there_and_back(seed: int, n: int, span: float, method: str) -> None:
    """Solving back from the end state returns the start, also as the mirrored problem in the time -t."""
    f, y0 = net(seed, n), draws(seed + 3, n)
    solver = Solver(method=method, rtol=TOLERANCE, atol=TOLERANCE, engine="torch")
    there = regnde.solve(f, y0, [0.0, span], solver)
    back = regnde.solve(f, there.y1, [span, 0.0], solver, record="all")
    mirrored = regnde.solve(lambda t, y: -f(-t, y), there.y1, [-span, 0.0], solver, record="all")
    torch.testing.assert_close(back.y1, y0, rtol=0, atol=SOLVER * TOLERANCE * math.exp(4 * span))
    assert back.stats == mirrored.stats or back.stats.dt_first == -mirrored.stats.dt_first
    torch.testing.assert_close(back.y1, mirrored.y1, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(back.steps.error, mirrored.steps.error, rtol=1e-6, atol=1e-9)


@few
@given(seed=seeds, n=st.integers(1, 5), exponent=st.integers(-30, 30), method=methods, shift=st.integers(-8, 8))
def test_records_do_not_depend_on_units_or_on_the_origin_of_time(
    seed: int, n: int, exponent: int, method: str, shift: int
) -> None:
    """States times a power of two, with atol; and times moved by an integer, of a field that does not see time."""
    scale, a, y0 = 2.0**exponent, matrix(seed, n), draws(seed + 1, n)
    base = regnde.solve(linear(a), y0, [0.0, 1.5], Solver(method=method, engine="torch"), record="all")
    scaled = Solver(method=method, atol=1e-6 * scale, engine="torch")
    moved = regnde.solve(linear(a), y0 * scale, [0.0, 1.5], scaled, record="all")
    assert moved.stats.accepted == base.stats.accepted
    torch.testing.assert_close(moved.ys / scale, base.ys, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(moved.steps.error, base.steps.error, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(moved.steps.dt, base.steps.dt, rtol=1e-6, atol=0)
    later = regnde.solve(linear(a), y0, [shift, shift + 1.5], Solver(method=method, engine="torch"), record="all")
    assert later.stats.accepted == base.stats.accepted
    torch.testing.assert_close(later.ys, base.ys, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(later.steps.error, base.steps.error, rtol=1e-4, atol=1e-9)


@few
@given(seed=seeds, n=st.integers(1, 5), exponent=st.integers(-10, 10), offset=st.floats(-5, 5), method=methods)
def test_records_are_affine_invariant_without_a_relative_tolerance(
    seed: int, n: int, exponent: int, offset: float, method: str
) -> None:
    """y -> s y + c, atol -> s atol; the heuristic compares y with f, so the first step is given, and not tiny."""
    s, a, y0 = 2.0**exponent, matrix(seed, n), draws(seed + 1, n)
    outcomes = []
    for scale, c in ((1.0, 0.0), (s, offset * s)):
        solver = Solver(method=method, rtol=0.0, atol=1e-7 * scale, dt0=0.3, engine="torch")
        field = lambda t, y, c=c: (y - c) @ a.T  # noqa: E731 - one line reads best
        outcomes.append(regnde.solve(field, y0 * scale + c, [0.0, 1.5], solver, record="all"))
    base, moved = outcomes
    assert moved.stats.accepted == base.stats.accepted
    torch.testing.assert_close((moved.ys - offset * s) / s, base.ys, rtol=0, atol=1e-10)
    torch.testing.assert_close(moved.steps.error, base.steps.error, rtol=1e-3, atol=1e-5)
    if method != "bs3":
        torch.testing.assert_close(moved.steps.stiffness, base.steps.stiffness, rtol=1e-2, atol=1e-8)


@few
@given(seed=seeds, n=st.integers(1, 4), method=methods, count=st.integers(2, 30), record=st.booleans())
def test_save_points_change_nothing_else(seed: int, n: int, method: str, count: int, record: bool) -> None:
    f, y0 = net(seed, n), draws(seed + 3, n)
    inner = torch.rand(count, generator=seeded(seed), dtype=torch.float64).sort().values * 2
    solver = Solver(method=method, engine="torch")
    few_points = regnde.solve(f, y0, [0.0, 2.0], solver, record="all")
    many = regnde.solve(f, y0, [0.0, *inner.tolist(), 2.0], solver, record="all")
    torch.testing.assert_close(many.y1, few_points.y1, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(many.steps.dt, few_points.steps.dt, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(many.steps.error, few_points.steps.error, rtol=EXACT, atol=EXACT)
    if record:  # the saved states are those of a solve that ends there, to the tolerance
        alone = regnde.solve(f, y0, [0.0, inner[count // 2].item()], solver).y1
        torch.testing.assert_close(many.ys[1 + count // 2], alone, rtol=0, atol=SOLVER * 1e-6)


penalties = st.builds(
    lambda kind, reduction: kind(reduction),
    st.sampled_from([ErrorPenalty, SquaredErrorPenalty, StiffnessPenalty]),
    st.sampled_from(["sum", "mean", "max"]),
)
factors = st.floats(-10, 10, allow_nan=False)


@few
@given(seed=seeds, p=penalties, q=penalties, r=penalties, a=factors, b=factors)
def test_penalties_form_a_vector_space(seed: int, p: Penalty, q: Penalty, r: Penalty, a: float, b: float) -> None:
    sol = regnde.solve(net(seed, 2), draws(seed, 2), [0.0, 1.0], Solver(engine="torch"), record="all")
    pairs = [
        (p + q, q + p),
        ((p + q) + r, p + (q + r)),
        (a * (p + q), a * p + a * q),
        (a * (b * p), (a * b) * p),
        (p * a, a * p),
        (1.0 * p, p),
        (p + -1.0 * p, 0.0 * p),
    ]
    for left, right in pairs:
        torch.testing.assert_close(left(sol), right(sol), rtol=1e-9, atol=1e-9)
    assert ((a * p + b * q)(sol) - a * p(sol) - b * q(sol)).abs().item() < 1e-9
    assert p(sol).ndim == 0
    assert p(sol).item() >= 0


@fewer
@given(
    seed=seeds, method=st.sampled_from(["euler", "midpoint", "heun2", "heun3", "rk4", "rk38"]), backwards=st.booleans()
)
def test_gradcheck_of_fixed_steps(seed: int, method: str, backwards: bool) -> None:
    ts = [0.9, 0.4, 0.0] if backwards else [0.0, 0.4, 0.9]
    solver = Solver(method=method, dt0=0.3, gradient="checkpoint" if seed % 2 else "discrete", engine="torch")

    def run(a: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        return regnde.solve(lambda t, y: torch.sin(y @ a + t), y0, ts, solver).ys

    a, y0 = draws(seed, 2, 2).requires_grad_(), draws(seed + 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(run, (a, y0))


@fewer
@given(seed=seeds, method=methods, tight=st.booleans())
def test_both_gradients_agree_and_are_near_the_true_one(seed: int, method: str, tight: bool) -> None:
    """d y(1) / d y0 of a linear system is its matrix exponential."""
    a, y0 = matrix(seed, 3), draws(seed, 3)
    tolerance = 1e-8 if tight else 1e-4
    jacobians = []
    for gradient in ("discrete", "checkpoint"):
        solver = Solver(method=method, rtol=tolerance, atol=tolerance, gradient=gradient, engine="torch")
        jacobians.append(
            torch.autograd.functional.jacobian(lambda y, s=solver: regnde.solve(linear(a), y, [0, 1], s).y1, y0)
        )
    torch.testing.assert_close(jacobians[0], jacobians[1], rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(jacobians[0], torch.linalg.matrix_exp(a), rtol=0, atol=SOLVER * 10 * tolerance)


@fewer
@given(seed=seeds, rows=st.permutations(range(5)), method=methods)
def test_samples_with_their_own_steps_do_not_know_each_other(seed: int, rows: list[int], method: str) -> None:
    y0 = draws(seed, 5, 2)
    solver = Solver(method=method, batch="per-sample", engine="torch")
    base = regnde.solve(net(seed, 2), y0, [0.0, 0.5, 1.0], solver, record="all")
    other = regnde.solve(net(seed, 2), y0[rows], [0.0, 0.5, 1.0], solver, record="all")
    torch.testing.assert_close(other.ys, base.ys[:, rows], rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(other.steps.error, base.steps.error[:, rows], rtol=1e-6, atol=1e-9)


def test_engines_agree(engine: str) -> None:
    """The same module on both engines: steps, states, records and gradients."""
    if engine == "torch":
        pytest.skip("the torch engine is what the others are compared with")

    @settings(fewer, max_examples=5)
    @given(seed=seeds, method=methods, backwards=st.booleans())
    def check(seed: int, method: str, backwards: bool) -> None:
        torch.manual_seed(seed)
        field = regnde.nn.MLP([2, 6, 2]).double()
        y0, ts = draws(seed, 3, 2), [1.0, 0.3, 0.0] if backwards else [0.0, 0.3, 1.0]
        outcomes = []
        for name in ("torch", engine):
            field.zero_grad()
            sol = regnde.solve(field, y0, ts, Solver(method=method, engine=name), record="all")
            (sol.ys.square().sum() + ErrorPenalty()(sol)).backward()
            slopes = torch.cat([p.grad.flatten() for p in field.parameters()])
            outcomes.append((sol.stats.accepted, sol.ys.detach(), sol.steps.error.detach(), slopes))
        (n, ys, errors, slopes), (m, others, other_errors, other_slopes) = outcomes
        assert n == m
        torch.testing.assert_close(others, ys, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(other_errors, errors, rtol=3e-2, atol=1e-4)
        torch.testing.assert_close(other_slopes, slopes, rtol=1e-4, atol=1e-5)

    check()


@few
@given(seed=seeds, rate=st.floats(-2.0, 2.0), h=st.floats(0.05, 0.5), tolerance=st.floats(0.1, 1.0))
def test_estimates_of_one_step_by_hand(seed: int, rate: float, h: float, tolerance: float) -> None:
    """E and S of a step of a linear field, entry by entry, from the formulas and the coefficients alone."""
    y0, rtol, atol = draws(seed, 3) * 2, tolerance, 1.1 - tolerance
    for method in METHODS:
        tableau = TABLEAUX[method]
        squares, slopes, arguments = 0.0, 0.0, 0.0
        for i, y in enumerate(y0.tolist()):
            a, k, g = rate * (i + 1), [], []
            for row in tableau.a:
                g.append(y + h * sum(weight * slope for weight, slope in zip(row, k, strict=True)))
                k.append(a * g[-1])
            y1 = y + h * sum(weight * slope for weight, slope in zip(tableau.b, k, strict=False))
            error = h * sum(weight * slope for weight, slope in zip(tableau.btilde, k, strict=True))
            squares += (error / (atol + rtol * max(abs(y), abs(y1)))) ** 2
            slopes += (k[-1] - k[-2]) ** 2
            arguments += (g[-1] - g[-2]) ** 2
        rates = torch.tensor([rate * (i + 1) for i in range(3)], dtype=torch.float64)
        solver = Solver(method=method, rtol=rtol, atol=atol, dt0=h, engine="torch")
        sol = regnde.solve(lambda t, y, r=rates: r * y, y0, [0.0, h], solver, record="all")
        assert len(sol.steps) == 1
        assert sol.steps.error.item() == pytest.approx(math.sqrt(squares / 3), rel=1e-7, abs=1e-13)
        if tableau.stiffness_pair and arguments > 1e-16:
            assert sol.steps.stiffness.item() == pytest.approx(math.sqrt(slopes / arguments), rel=1e-4, abs=1e-6)

"""SDEs of every kind of noise and both calculi: recorded runs of Julia, orders, records, refusals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import regnde
from frozen import central_differences, relative
from frozen_sde import FrozenSDE
from problems import (
    MIX,
    SMALL_P,
    area_process,
    bounded,
    exponentials,
    geometric,
    mixed_lagging,
    seeded,
    small_net,
    turned,
    turning,
)
from regnde import SDE, BrownianPath, ErrorPenalty, Increment, Local, Solver
from regnde._engines import engines
from regnde._engines.base import Request
from regnde._sde_method import SDE_METHODS
from regnde.nn import MLP, NeuralSDE
from tolerances import GOLDEN_REPLAY, GRADIENT, ORDER, ROUNDING

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sde_kinds_steps.json").read_text())["runs"]
COUPLED = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
FASTPOWER = 1e-4  # Julia's powers are approximate (sciml.md B.2), the more so at exponents above 1
HEUNS = ("heun", "eulerheun", "midpoint", "diffusionheun", "lambaeulerheun")


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- recorded runs of StochasticDiffEq.jl ---------------------------------------------------------


def golden_problem(name: str) -> tuple[SDE, torch.Tensor, str]:
    """The equation, the initial state and the method of a recorded run."""
    problem, noise, method, _ = name.split("/")
    drift = {"linear": lambda t, y: COUPLED @ y, "cubic": lambda t, y: COUPLED @ y**3}[problem]
    diffusion = {"diagonal": lambda t, y: 0.2 * y, "general": lambda t, y: MIX * y.unsqueeze(-1)}[noise]
    calculus = "ito" if method == "LambaEM" else "stratonovich"
    return SDE(drift, diffusion, noise, calculus), f64([2.0, 0.5 if noise == "general" else 0.0]), method.lower()


class Recorded(BrownianPath):
    """A path that is known over one interval."""

    def __init__(self, t0: float, t1: float, dw: torch.Tensor) -> None:
        super().__init__(t0, t1, dw.shape, seed=0)
        self.dw = dw

    def increment(self, s: float, t: float) -> Increment:
        return Increment(self.dw, torch.zeros_like(self.dw))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_replay(name: str, engine: str) -> None:
    """Every recorded step from Julia's own state, t, dt and dW: the state and the error estimate."""
    run = GOLDEN[name]
    sde, y, method = golden_problem(name)
    start = 0.0
    for end, size, dw, state, error in zip(run["t"], run["dt"], run["dW"], run["u"], run["error"], strict=True):
        allowed = {"rtol": run["reltol"], "atol": run["abstol"]}
        solver = Solver(method=method, dt0=size, max_steps=1, engine=engine, **allowed)
        noise = Recorded(start, end, f64(dw))
        record = "all" if SDE_METHODS[method].adaptive else "none"
        sol = regnde.solve(sde, y, [start, end], solver, noise=noise, record=record)
        torch.testing.assert_close(sol.y1, f64(state), rtol=GOLDEN_REPLAY, atol=GOLDEN_REPLAY)
        if sol.steps is not None:
            # The size is the difference of two times here, whose rounding the division by its root enlarges.
            rounding = GOLDEN_REPLAY + 2**-52 * end / size
            assert float(sol.steps.error) == pytest.approx(error, rel=rounding)
        start, y = end, f64(state)


@pytest.mark.parametrize("name", [name for name in GOLDEN if "Lamba" in name])
def test_golden_first_step_and_control(name: str, engine: str) -> None:
    """The first step's size, and each next size that Julia chose from its own error estimates."""
    run = GOLDEN[name]
    sde, y0, method = golden_problem(name)
    chosen = Solver(method=method, rtol=run["reltol"], atol=run["abstol"], engine=engine, max_steps=1)
    start = regnde.solve(sde, y0, [0.0, 1.0], chosen, throw=False).stats.dt_first
    assert start == pytest.approx(run["dt_init"], rel=ROUNDING)
    h, previous, rejected = start, 1e-4, 0
    for i, (size, error) in enumerate(zip(run["dt"], run["error"], strict=True)):
        wanted = min(h, 1 - (run["t"][i] - size))
        if size < wanted * (1 - 10 * FASTPOWER):  # a trial was rejected; its error is not recorded
            rejected += 1
        else:
            assert size == pytest.approx(wanted, rel=10 * FASTPOWER)
        q = error**1.4 / previous**0.8 / 0.9
        h = size / min(max(q, 1e-4 if i == 0 else 8 / 9), 5.0)
        previous = max(error, 1e-4)
    assert rejected <= run["nreject"]


# --- strong order ---------------------------------------------------------------------------------


def slope(errors: list[float]) -> float:
    """Slope of log2 error over log2 step for step sizes that double."""
    return -float(np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0])


def grid(level: int) -> list[float]:
    return [i / 2**level for i in range(2**level + 1)]


SAMPLES, FINEST = 400, 10


def two(x: float, y: float) -> torch.Tensor:
    return f64([x, y]).expand(SAMPLES, 2)


def exponential_end(y0: torch.Tensor, w: torch.Tensor, calculus: str) -> torch.Tensor:
    half = MIX.square().sum(1) / 2 if calculus == "ito" else 0.0
    return y0 * torch.exp(0.3 - half + w @ MIX.T)


Kind = tuple[Callable[[str], SDE], torch.Tensor, int, Callable[..., torch.Tensor] | None]
ONE = torch.full((SAMPLES,), 0.3, dtype=torch.float64)
KINDS: dict[str, Kind] = {  # equation, initial state, processes of a sample, end from y0, W(1) and the calculus
    "diagonal": (
        lambda c: SDE(
            geometric(0.4, 0.5).drift if c == "ito" else lambda t, y: 0.275 * y, geometric().diffusion, "diagonal", c
        ),
        ONE,
        0,
        lambda y0, w, c: y0 * torch.exp(0.275 + 0.5 * w),
    ),
    "bounded": (
        lambda c: SDE(
            bounded(0.6).drift if c == "ito" else lambda t, y: torch.zeros_like(y), bounded(0.6).diffusion, calculus=c
        ),
        ONE,
        0,
        lambda y0, w, c: ((1 + y0) * torch.exp(1.2 * w) + y0 - 1) / ((1 + y0) * torch.exp(1.2 * w) + 1 - y0),
    ),
    "scalar": (turning, two(1.0, 0.5), 1, lambda y0, w, c: turned(y0, 0.8 * w[..., 0])),
    "commuting": (exponentials, two(1.0, 0.5), 3, exponential_end),
    "area": (area_process, two(0.0, 0.0), 2, None),
    "additive": (mixed_lagging, two(0.3, -0.2), 3, None),
}


def strong_errors(method: str, kind: str, calculus: str, levels: range) -> list[float]:
    """Rms error at t = 1 with 2^level steps along one path."""
    make, y0, processes, end = KINDS[kind]
    sde = make(calculus)
    shape = (SAMPLES, processes) if processes else (SAMPLES,)
    path = BrownianPath(0.0, 1.0, shape, seed=0, resolution=2.0**-FINEST)
    reference = {"area": "em", "additive": "sosra"}.get(kind)
    if end is not None:
        exact = end(y0, path(1.0), calculus)
    else:
        exact = FrozenSDE.on(path, reference, grid(FINEST)).end(sde, y0)
    errors = []
    for level in levels:
        solver = Solver(method=method, dt0=2.0**-level, engine="torch", rtol=1e9, atol=1e9, dt_max=2.0**-level)
        if not SDE_METHODS[method].adaptive:
            solver = Solver(method=method, dt0=2.0**-level, engine="torch")
        with torch.no_grad():
            y1 = regnde.solve(sde, y0, [0.0, 1.0], solver, noise=path).y1
        errors.append(float((y1 - exact).square().mean().sqrt()))
    return errors


ORDERS = [
    *(("em", kind, "ito", 0.5) for kind in ("scalar", "commuting", "area")),
    *(("lambaem", kind, "ito", 0.5) for kind in ("diagonal", "scalar", "commuting", "area")),
    *((method, "additive", "ito", 1.0) for method in ("em", "lambaem", "milstein")),
    *(
        (method, kind, calculus, 1.0)
        for method in ("milstein", "rkmil")
        for kind in ("diagonal", "bounded", "scalar")
        for calculus in ("ito", "stratonovich")
        if (method, kind, calculus) != ("rkmil", "bounded", "stratonovich")
    ),
    # Its difference quotient is off by sqrt(h) g^2 g'' / 2, which dW^2 does not average away, as dW^2 - h does.
    ("rkmil", "bounded", "stratonovich", 0.5),
    *((method, kind, "stratonovich", 1.0) for method in HEUNS for kind in ("bounded", "scalar", "commuting")),
    *((method, "area", "stratonovich", 0.5) for method in HEUNS),
    *((method, "additive", "stratonovich", 1.0) for method in ("heun", "midpoint", "diffusionheun")),
    *((method, "scalar", "ito", 1.5) for method in ("sriw1", "sosri", "sosri2")),
]


@pytest.mark.parametrize(("method", "kind", "calculus", "order"), ORDERS)
def test_strong_order(method: str, kind: str, calculus: str, order: float) -> None:
    """Commuting processes have the order of one process: the double integrals follow from the increments."""
    levels = range(3, 8) if kind != "area" else range(2, 7)
    assert abs(slope(strong_errors(method, kind, calculus, levels)) - order) < ORDER


def test_strong_order_of_additive_matrices() -> None:
    assert 1.5 - ORDER < slope(strong_errors("sosra", "additive", "ito", range(3, 8))) < 2 + ORDER


# --- weak order -----------------------------------------------------------------------------------

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)  # exact to degree 17 in each increment


class Quadrature(BrownianPath):
    """Increments that stand for a normal law: nodes of a Gauss rule for two processes, one row for each pair."""

    def __init__(self) -> None:
        self.nodes = f64(list(itertools.product(NODES, NODES)))
        super().__init__(0.0, 1.0, self.nodes.shape, seed=0)

    def increment(self, s: float, t: float) -> Increment:
        return Increment(self.nodes * math.sqrt(t - s), torch.zeros_like(self.nodes))


A, B = f64([[-0.4, 0.3], [0.2, -0.5]]), f64([[[0.3, 0.4], [-0.2, 0.1]], [[0.1, -0.5], [0.3, 0.2]]])


@pytest.mark.parametrize(
    ("method", "calculus"), [("em", "ito"), ("lambaem", "ito"), *((method, "stratonovich") for method in HEUNS)]
)
def test_weak_order_for_noise_that_does_not_commute(method: str, calculus: str) -> None:
    """The mean and the mean square of a linear equation, by quadrature: without a sampling error."""
    sde = SDE(
        lambda t, y: y @ A.T, lambda t, y: torch.einsum("mij,...j->...im", B, y), noise="general", calculus=calculus
    )
    drift = A if calculus == "ito" else A + 0.5 * (B @ B).sum(0)
    eye = torch.eye(2, dtype=torch.float64)
    of_square = torch.kron(drift, eye) + torch.kron(eye, drift) + sum(torch.kron(b, b) for b in B)
    weights = f64(np.outer(WEIGHTS, WEIGHTS).ravel() / (2 * math.pi))
    errors = []
    for level in range(2, 7):
        h = 2.0**-level
        fixed = {} if not SDE_METHODS[method].adaptive else {"rtol": 1e9, "atol": 1e9}
        solver = Solver(method=method, dt0=h, engine="torch", **fixed)
        ends = [
            regnde.solve(sde, unit.expand(len(weights), 2), [0.0, h], solver, noise=Quadrature()).y1 for unit in eye
        ]
        mean = torch.stack([weights @ end for end in ends], 1)
        square = torch.stack([weights @ torch.einsum("ni,nj->nij", a, b).reshape(-1, 4) for a in ends for b in ends], 1)
        gaps = [
            torch.linalg.matrix_power(x, 2**level) - torch.linalg.matrix_exp(y)
            for x, y in ((mean, drift), (square, of_square))
        ]
        errors.append(float(sum(gap.abs().max() for gap in gaps)))
    assert abs(slope(errors) - 1.0) < ORDER


@pytest.mark.parametrize("method", ["milstein", "rkmil", *HEUNS])
@pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
def test_weak_order_for_one_process(method: str, calculus: str) -> None:
    if calculus == "ito" and method in HEUNS:
        calculus, method = "ito", {"lambaeulerheun": "lambaem"}.get(method, "em")
    mu, sigma = 0.4, 0.6
    sde = SDE(lambda t, y: mu * y, lambda t, y: sigma * y, calculus=calculus)
    rate = mu + (0.5 * sigma**2 if calculus == "stratonovich" else 0.0)
    weights = f64(np.outer(WEIGHTS, WEIGHTS).ravel() / (2 * math.pi))
    errors = []
    for level in range(2, 7):
        h = 2.0**-level
        fixed = {} if not SDE_METHODS[method].adaptive else {"rtol": 1e9, "atol": 1e9}
        end = regnde.solve(
            sde,
            torch.ones(len(weights), 2, dtype=torch.float64),
            [0.0, h],
            Solver(method=method, dt0=h, engine="torch", **fixed),
            noise=Quadrature(),
        ).y1[:, 0]
        mean, square = float(weights @ end), float(weights @ end.square())
        errors.append(abs(mean ** (2**level) - math.exp(rate)))
        errors[-1] += abs(square ** (2**level) - math.exp(2 * rate + sigma**2))
    assert abs(slope(errors) - 1.0) < ORDER


# --- control, records and gradients ---------------------------------------------------------------

P = torch.cat([SMALL_P, f64([0.4, 0.3, 0.5, 0.2])])
Y0 = f64([[0.5, -0.3], [0.2, 0.8]])
END, STRIDE = 0.5, 3e-4


def small(noise: str, calculus: str, p: torch.Tensor) -> SDE:
    """A small equation of each kind with parameters in both functions."""
    drift = small_net(p[:6])
    entries = {
        "diagonal": lambda t, y: 0.3 * torch.sin(p[6] * y + p[7]) + p[8] * torch.cos(t),
        "scalar": lambda t, y: 0.3 * torch.sin(p[6] * y + p[7] * y.flip(-1)) + p[8] * torch.cos(t),
        "additive": lambda t, y: (MIX * p[6] + torch.sin(p[7] + t)).expand(*y.shape, 3),
        "general": lambda t, y: torch.sin(y.unsqueeze(-1) * p[6] + y.flip(-1).unsqueeze(-1) * MIX + p[7] * t),
    }
    return SDE(drift, entries[noise], noise, calculus)


def path_for(noise: str) -> BrownianPath:
    shape = {"diagonal": (2, 2), "scalar": (2, 1)}.get(noise, (2, 3))
    return BrownianPath(0.0, END, shape, seed=3)


EVERY = [
    *(("sriw1", "scalar", "ito"), ("sosri2", "scalar", "ito"), ("sosra", "additive", "ito")),
    *(("sosra", "additive", "stratonovich"), ("em", "general", "ito"), ("em", "scalar", "ito")),
    *((m, n, c) for m in ("rkmil", "milstein") for n in ("diagonal", "scalar") for c in ("ito", "stratonovich")),
    *((m, "additive", "ito") for m in ("em", "milstein", "heun")),
    *(("lambaem", n, "ito") for n in ("diagonal", "scalar", "additive", "general")),
    *((m, n, "stratonovich") for m in HEUNS for n in ("diagonal", "general")),
    *(("lambaeulerheun", "scalar", "stratonovich"), ("lambaeulerheun", "additive", "stratonovich")),
]


def solver_for(method: str, gradient: str = "discrete", engine: str = "torch") -> Solver:
    if SDE_METHODS[method].adaptive:
        tolerance = {"sriw1": 0.1, "rkmil": 0.05, "lambaem": 0.05, "lambaeulerheun": 0.2}.get(method, 0.6)
        return Solver(method=method, rtol=tolerance, atol=tolerance, gradient=gradient, engine=engine, dt0=0.04)
    return Solver(method=method, dt0=0.06, gradient=gradient, engine=engine)


def only_torch(method: str, engine: str) -> None:
    """Skips what the Julia engine refuses; `test_what_julia_can_not_do_is_said` holds that it does."""
    if engine == "julia" and method in NOT_IN_JULIA:
        pytest.skip(f"the Julia engine refuses {method!r}")


NOT_IN_JULIA = ("milstein", "reversible_heun")


@pytest.mark.parametrize(("method", "noise", "calculus"), EVERY)
def test_case_20c_gradients_of_states_and_penalties(method: str, noise: str, calculus: str, engine: str) -> None:
    """Both gradients against central differences with steps and noise frozen."""
    only_torch(method, engine)
    adaptive = SDE_METHODS[method].adaptive
    ts = [0.0, 0.13, 0.3, END]
    solutions, leaves = [], []
    for gradient in ("discrete", "checkpoint"):
        p, y0 = P.clone().requires_grad_(), Y0.clone().requires_grad_()
        sde = small(noise, calculus, p)
        solver = solver_for(method, gradient, engine)
        solutions.append(regnde.solve(sde, y0, ts, solver, record="all", noise=path_for(noise)))
        leaves.append((p, y0))
    frozen = FrozenSDE.of(solutions[0], path_for(noise))
    weights = torch.randn(solutions[0].ys.shape, generator=seeded(1), dtype=torch.float64)

    def value(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        sde = small(noise, calculus, p)
        total = (frozen.states(sde, y0, ts) * weights).sum()
        if adaptive:
            total = total + 0.1 * (frozen.walk(sde, y0)[1] * f64(frozen.sizes)).sum()
        return total

    by_p = central_differences(lambda q: value(q, Y0), P, STRIDE)
    by_y0 = central_differences(lambda x: value(P, x), Y0, STRIDE)
    for sol, (p, y0) in zip(solutions, leaves, strict=True):
        total = (sol.ys * weights).sum() + (0.1 * ErrorPenalty()(sol) if adaptive else 0.0)
        torch.testing.assert_close(total, value(P, Y0), rtol=ROUNDING, atol=ROUNDING)
        of_p, of_y0 = torch.autograd.grad(total, [p, y0])
        assert relative(of_p, by_p) < GRADIENT
        assert relative(of_y0, by_y0) < GRADIENT
    assert solutions[0].stats == solutions[1].stats


@pytest.mark.parametrize(
    ("method", "kind", "calculus"),
    [
        ("rkmil", "diagonal", "ito"),
        ("rkmil", "scalar", "stratonovich"),
        ("lambaem", "commuting", "ito"),
        ("lambaeulerheun", "commuting", "stratonovich"),
    ],
)
def test_tolerance_controls_the_error_along_one_path(method: str, kind: str, calculus: str, engine: str) -> None:
    make, y0, processes, end = KINDS[kind]
    path = BrownianPath(0.0, 1.0, (SAMPLES, processes) if processes else (SAMPLES,), seed=3)
    errors = []
    for tolerance in (1e-1, 1e-2, 1e-3):
        solver = Solver(method=method, rtol=tolerance, atol=tolerance, engine=engine)
        y1 = regnde.solve(make(calculus), y0, [0.0, 1.0], solver, noise=path).y1
        errors.append(float((y1 - end(y0, path(1.0), calculus)).square().mean().sqrt()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 1.5 * errors[2]  # the estimates of these methods follow the error loosely


@pytest.mark.parametrize("method", ["rkmil", "lambaem", "lambaeulerheun"])
@pytest.mark.parametrize("detach", [False, True])
def test_local_records(method: str, detach: bool, engine: str) -> None:
    """One step beside the trajectory, by the same method; its noise is a path of its own."""
    calculus = "ito" if method == "lambaem" else "stratonovich"
    noise = "diagonal" if method == "rkmil" else "general"
    p = P.clone().requires_grad_()
    local = Local(seed=0, detach_state=detach)
    solver = solver_for(method, engine=engine)
    sol = regnde.solve(small(noise, calculus, p), Y0, [0.0, END], solver, record=local, noise=path_for(noise))
    (of_p,) = torch.autograd.grad(ErrorPenalty()(sol), p)
    assert len(sol.steps) == 1
    assert bool(torch.isfinite(of_p).all())
    assert bool(of_p.any())


def test_evaluations_are_counted_apart() -> None:
    """Of each function: those of the first step's size, then those of every trial; one more finds the columns."""
    for method, calculus, drifts, diffusions in (
        ("lambaem", "ito", 2, 2),
        ("lambaeulerheun", "stratonovich", 3, 3),
        ("heun", "stratonovich", 2, 2),
        ("midpoint", "stratonovich", 2, 2),
        ("diffusionheun", "stratonovich", 1, 2),
        ("em", "ito", 1, 1),
    ):
        adaptive = SDE_METHODS[method].adaptive
        solver = Solver(method=method, rtol=0.1, atol=0.1) if adaptive else Solver(method=method, dt0=0.1)
        calls = {"drift": 0, "diffusion": 0}
        sde = small("general", calculus, P)

        def drift(t, y, sde=sde, calls=calls):
            calls["drift"] += 1
            return sde.drift(t, y)

        def diffusion(t, y, sde=sde, calls=calls):
            calls["diffusion"] += 1
            return sde.diffusion(t, y)

        for noise in (None, path_for("general")):
            calls.update(drift=0, diffusion=0)
            stats = regnde.solve(SDE(drift, diffusion, "general", calculus), Y0, [0.0, END], solver, noise=noise).stats
            trials, start = stats.accepted + stats.rejected, 2 * adaptive
            wanted = (start + drifts * trials, start + (noise is None) + diffusions * trials)
            assert (stats.nfe, stats.nfe_diffusion) == wanted
            assert calls == {"drift": stats.nfe, "diffusion": stats.nfe_diffusion}


def test_the_two_calculi_differ_by_the_drift() -> None:
    """A Stratonovich equation is the Ito equation whose drift has half of g g' added: one path, one solution."""
    path = BrownianPath(0.0, 1.0, (SAMPLES,), seed=5)
    ito = SDE(lambda t, y: -y + 0.5 * 0.09 * torch.sin(y) * torch.cos(y), lambda t, y: 0.3 * torch.sin(y))
    same = SDE(lambda t, y: -y, ito.diffusion, calculus="stratonovich")
    solver = Solver(method="milstein", dt0=1 / 256, engine="torch")
    a, b = (regnde.solve(sde, ONE, [0.0, 1.0], solver, noise=path).y1 for sde in (ito, same))
    torch.testing.assert_close(a, b, rtol=0, atol=3e-3)
    other = regnde.solve(SDE(same.drift, same.diffusion), ONE, [0.0, 1.0], solver, noise=path).y1
    assert float((a - other).abs().max()) > 5e-3


@pytest.mark.parametrize("noise", ["scalar", "additive", "general"])
def test_the_path_is_a_function_of_the_seed(noise: str, engine: str) -> None:
    calculus, solver = "ito", Solver(rtol=0.1, atol=0.1, engine=engine)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(regnde.solve(small(noise, calculus, P), Y0, [0.0, END], solver).y1)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("shape", [(2,), (3, 2), (0, 2), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", ["scalar", "additive", "general"])
def test_states_of_any_leading_shape(noise: str, dtype: torch.dtype, shape: tuple[int, ...], engine: str) -> None:
    if engine == "julia" and 0 in shape:
        pytest.skip("the Julia engine refuses empty states")
    sde = small(noise, "ito", P.to(dtype))
    if noise != "scalar":
        sde = SDE(sde.drift, lambda t, y: small(noise, "ito", P).diffusion(t, y).to(y.dtype), noise)
    y0 = torch.full(shape, 0.4, dtype=dtype)
    sol = regnde.solve(sde, y0, [0.0, 0.2, END], Solver(rtol=0.1, atol=0.1, engine=engine), record="all")
    assert sol.ys.shape == (3, *shape)
    assert sol.ys.dtype == dtype
    assert bool(torch.isfinite(sol.ys).all())


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "noise", "calculus", "fitting"),
    [
        ("sosri", "general", "ito", "'lambaem' (adaptive), or 'em' (fixed step)"),
        ("sosri", "diagonal", "stratonovich", "'rkmil' or 'lambaeulerheun' (adaptive)"),
        ("em", "general", "stratonovich", "'lambaeulerheun' (adaptive)"),
        ("heun", "diagonal", "ito", "'rkmil'"),
        ("rkmil", "general", "ito", "'lambaem'"),
        ("milstein", "general", "stratonovich", "'heun'"),
        ("sosra", "general", "ito", "'lambaem'"),
        ("lambaem", "scalar", "stratonovich", "'lambaeulerheun'"),
        ("sriw1", "additive", "ito", "'sosra'"),
    ],
)
def test_a_method_for_another_kind_is_refused_in_one_line(method: str, noise: str, calculus: str, fitting: str) -> None:
    options = {} if SDE_METHODS[method].adaptive else {"dt0": 0.1}
    with pytest.raises(ValueError, match=f"method '{method}' is for") as caught:
        regnde.solve(small(noise, calculus, P), Y0, [0.0, END], Solver(method=method, **options))
    text = str(caught.value)
    assert fitting in text
    assert "\n" not in text


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, within its jvp
@pytest.mark.parametrize("method", ["heun", "reversible_heun", "lambaeulerheun", "rkmil"])
def test_transforms_of_torch_func_see_through_a_solve_of_an_sde(method: str) -> None:
    """The path is made outside the transform, so that gradients are those of autograd."""
    solver = Solver(method=method, dt0=0.1, rtol=0.1, atol=0.1, engine="torch")

    def end(rate: torch.Tensor) -> torch.Tensor:
        sde = SDE(lambda t, y: -rate * y, lambda t, y: torch.sin(rate * y), calculus="stratonovich")
        return regnde.solve(sde, f64([1.3, 0.7]), [0.0, 1.0], solver, noise=BrownianPath(0.0, 1.0, (2,), seed=3)).y1[0]

    rate = f64(0.8)
    leaf = rate.clone().requires_grad_()
    (expected,) = torch.autograd.grad(end(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(end)(rate), expected, rtol=ROUNDING, atol=ROUNDING)
    tangent = torch.func.jvp(end, (rate,), (torch.ones_like(rate),))[1]
    torch.testing.assert_close(tangent, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
def test_milstein_differentiates_by_the_state_alone(noise: str) -> None:
    """A diffusion that reads the initial state, as a context, has no further slope from there."""
    path = BrownianPath(0.0, 0.1, (2 if noise == "diagonal" else 1,), seed=3)
    solver = Solver(method="milstein", dt0=0.1, engine="torch")

    def end(y0: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        sde = SDE(lambda t, y: -y, lambda t, y: context * y, noise=noise)
        return regnde.solve(sde, y0, [0.0, 0.1], solver, noise=path).y1.detach()

    y0 = f64([1.3, 0.7]).requires_grad_()
    expected = end(y0.detach(), y0.detach())
    for context in (y0, y0.clone()):
        torch.testing.assert_close(end(y0, context), expected, rtol=ROUNDING, atol=ROUNDING)


def test_milstein_builds_no_graph_where_nothing_is_differentiated() -> None:
    sde = small("scalar", "ito", P)
    solver = Solver(method="milstein", dt0=0.1, engine="torch")
    assert not regnde.solve(sde, Y0, [0.0, END], solver).ys.requires_grad
    with torch.inference_mode():
        path = path_for("scalar")
        inside = regnde.solve(sde, Y0, [0.0, END], solver, noise=path).y1
    assert torch.equal(inside, regnde.solve(sde, Y0, [0.0, END], solver, noise=path_for("scalar")).y1)


def test_every_kind_has_a_default(engine: str) -> None:
    for noise, calculus in itertools.product(("diagonal", "scalar", "additive", "general"), ("ito", "stratonovich")):
        sol = regnde.solve(small(noise, calculus, P), Y0, [0.0, END], Solver(rtol=0.3, atol=0.3, engine=engine))
        assert sol.stats.accepted > 0


@pytest.mark.parametrize("method", NOT_IN_JULIA)
def test_what_julia_can_not_do_is_said(method: str) -> None:
    sde = small("diagonal", "stratonovich", P)
    request = Request(
        equation=sde,
        y0=Y0,
        ts=f64([0.0, END]),
        times=(0.0, END),
        solver=Solver(engine="julia", method=method, dt0=0.1).resolve(sde=sde),
        record="none",
        noise=None,
        throw=True,
    )
    assert f"no SDE method '{method}'" in engines()["julia"].why_unsupported(request)
    assert engines()["torch"].why_unsupported(request) is None


def test_the_layer_takes_every_kind() -> None:
    layer = NeuralSDE(
        MLP([2, 8, 2]),
        lambda t, y: torch.tanh(y).unsqueeze(-1).expand(*y.shape, 3) * 0.3,
        solver=Solver(rtol=0.3, atol=0.3),
        record="all",
        noise="general",
        calculus="stratonovich",
    )
    sol = layer(torch.ones(4, 2))
    torch.autograd.backward(sol.y1.sum() + ErrorPenalty()(sol))
    assert all(p.grad is not None for p in layer.parameters())
    with pytest.raises(ValueError, match="choose one of"):
        NeuralSDE(MLP([2, 2]), MLP([2, 2]), noise="white")


def test_refuses_shapes_and_kinds() -> None:
    drift = lambda t, y: -y  # noqa: E731 - one line reads best
    with pytest.raises(ValueError, match="choose one of 'diagonal', 'scalar'"):
        SDE(drift, drift, noise="white")
    with pytest.raises(ValueError, match="choose one of 'ito', 'stratonovich'"):
        SDE(drift, drift, calculus="backward")
    matrix = SDE(drift, lambda t, y: torch.ones(2, 2, 3), noise="general")
    em = Solver(method="em", dt0=0.1)
    regnde.solve(matrix, torch.ones(2, 2), [0.0, 0.1], em)
    with pytest.raises(ValueError, match=r"needs \(2, m\)"):
        regnde.solve(matrix, torch.ones(2, 2), [0.0, 0.1], em, noise=BrownianPath(0.0, 1.0, (3, 2)))
    with pytest.raises(ValueError, match=r"and 2 Wiener processes; it must be the matrix \(2, 2, 2\)"):
        regnde.solve(matrix, torch.ones(2, 2), [0.0, 0.1], em, noise=BrownianPath(0.0, 1.0, (2, 2)))
    with pytest.raises(ValueError, match=r"with noise='general' it must be a matrix"):
        regnde.solve(SDE(drift, drift, noise="general"), torch.ones(2, 2), [0.0, 0.1], em)
    with pytest.raises(ValueError, match=r"scalar noise of a state of shape \(2, 2\) needs \(2, 1\)"):
        regnde.solve(SDE(drift, drift, "scalar"), torch.ones(2, 2), [0.0, 0.1], em, noise=BrownianPath(0, 1, (2, 2)))
    with pytest.raises(ValueError, match="state of one tensor"):
        regnde.solve(matrix, (torch.ones(2, 2), torch.ones(2)), [0.0, 0.1], em)
    with pytest.raises(ValueError, match="one or more dimensions"):
        regnde.solve(matrix, torch.tensor(1.0), [0.0, 0.1], em)


@pytest.mark.parametrize("method", ["heun", "sosra"])
def test_an_additive_diffusion_is_checked(method: str, engine: str) -> None:
    growing = SDE(lambda t, y: -y, lambda t, y: y.unsqueeze(-1) * MIX, noise="additive")
    solver = Solver(method=method, dt0=0.1, engine=engine)
    with pytest.raises(ValueError, match="write noise='general'"):
        regnde.solve(growing, Y0, [0.0, 1.0], solver)
    # beside the start it is constant
    late = SDE(lambda t, y: 3 * y, lambda t, y: torch.relu(y - 1.0).unsqueeze(-1) * MIX + 0.01, noise="additive")
    with pytest.raises(ValueError, match="write noise='general'"):
        regnde.solve(late, Y0, [0.0, 1.0], solver)

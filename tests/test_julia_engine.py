"""The Julia engine: DifferentialEquations.jl's own numbers, and the torch engine's on the same steps."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regnde
from frozen import Frozen, relative
from frozen_sde import FrozenSDE
from problems import GOLDEN, SMALL_P, SMALL_Y0, cubic_net, small_net
from regnde import SDE, BrownianPath, Local, Solver
from regnde._tableau import TABLEAUX
from test_golden import NET, ODE, golden_net, tensor
from tolerances import GOLDEN_GRADIENT, ROUNDING

ROOT = Path(__file__).parent.parent
EXPLICIT = ("tsit5", "bs3", "dp5", "heun", "vern6", "vern7", "vern8", "vern9")
ROSENBROCK = ("rosenbrock23", "rodas4", "rodas5p", "autotsit5")
SDIRK = ("trbdf2", "kencarp4")

# Julia fuses multiply-adds and sums in another order: a step from equal states agrees to this, relative.
STEP = 1e-9
# A first solve compiles; on a loaded machine that takes minutes.
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("julia")]


def solver(**options: object) -> Solver:
    return Solver(engine="julia", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ODE["runs"])
def test_golden_runs_are_reproduced(name: str) -> None:
    """Counts, times, states and estimates of the recorded runs; they were out of place, this is in place."""
    run = ODE["runs"][name]
    problem, method, _ = name.split("/")
    setup = ODE["problems"][problem]
    chosen = solver(method=method, rtol=run["reltol"], atol=run["abstol"])
    with torch.no_grad():
        sol = regnde.solve(GOLDEN[problem], tensor(setup["u0"]), setup["tspan"], chosen, record="all")
    assert sol.stats.dt_first == pytest.approx(run["dt_init"], rel=1e-9)
    if min(run["error"]) < 1e-9:
        pytest.skip("some estimate is rounding, which sizes the steps after it: only the first step was compared")
    assert (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    n = min(len(run["t"]), run["naccept"] - 1)
    torch.testing.assert_close(sol.steps.t[:n], tensor(run["t"][:n]), rtol=1e-5, atol=0)
    torch.testing.assert_close(sol.steps.error[:n], tensor(run["error"][:n]), rtol=1e-2, atol=0)


def evaluated(text: str) -> float:
    """The number that Julia gives for an expression in our package."""
    from regnde._engines.julia import runtime

    def on_its_thread(_: object) -> float:
        import juliacall

        return float(juliacall.Main.seval(f"import RegNDE; Base.eval(RegNDE, :({text}))"))

    return runtime.call(on_its_thread)


def test_stability_sizes_are_julias() -> None:
    from regnde._engines.julia.methods import EXPLICIT

    for name, size in EXPLICIT.items():
        text = f"Float64(OrdinaryDiffEqCore.alg_stability_size(method(:{name}).algorithm))"
        if size is not None and name != "heun":  # OrdinaryDiffEq has none for its Heun
            assert evaluated(text) == size


@pytest.mark.parametrize("method", ["tsit5", "bs3", "dp5", "vern7"])
@pytest.mark.parametrize("problem", GOLDEN)
def test_torch_agrees_on_julias_steps(problem: str, method: str) -> None:
    """States to 1e-9 and records to 1e-6 of what the torch engine makes of the same steps."""
    setup, f = ODE["problems"][problem], GOLDEN[problem]
    if problem == "vdp_mu100":
        pytest.skip("the stiff field amplifies rounding over hundreds of steps; its single steps are golden")
    t0, t1 = setup["tspan"]
    inside = t0 + 0.37 * (t1 - t0)
    with torch.no_grad():
        sol = regnde.solve(f, tensor(setup["u0"]), [t0, inside, t1], solver(method=method), record="all")
        frozen = Frozen.of(sol, t0)
        y1, pieces = frozen.walk(f, tensor(setup["u0"]))
        middle = frozen.state(f, tensor(setup["u0"]), inside)
    torch.testing.assert_close(sol.y1, y1, rtol=STEP, atol=STEP)
    torch.testing.assert_close(sol.ys[1], middle, rtol=STEP, atol=STEP)
    error = pieces[:, 0].square().mean(-1).sqrt()
    believable = error > 1e-6  # below, the estimate is a sum that cancels
    torch.testing.assert_close(sol.steps.error[believable], error[believable], rtol=1e-6, atol=0)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("quantity", ["uT", "RE", "RE2", "RS"])
@pytest.mark.parametrize("name", NET["runs"])
def test_golden_gradients(name: str, quantity: str, gradient: str) -> None:
    """Gradients of Julia's recorded neural ODE by central differences on its frozen steps."""
    run, p, u0 = golden_net(name)
    chosen = solver(rtol=run["reltol"], atol=run["abstol"], gradient=gradient)
    sol = regnde.solve(cubic_net(p), u0, [0.0, 1.5], chosen, record="all")
    assert (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    value = {
        "uT": lambda: sol.y1.square().sum(),
        "RE": lambda: regnde.ErrorPenalty()(sol),
        "RE2": lambda: regnde.SquaredErrorPenalty()(sol),
        "RS": lambda: regnde.StiffnessPenalty()(sol),
    }[quantity]()
    (slope,) = torch.autograd.grad(value, p)
    expected = tensor(run["gradients"][quantity])
    if min(run["error"]) < 1e-9:
        pytest.skip("rounding sizes the second step: `test_gradients_equal_torchs_on_equal_steps` compares instead")
    tolerance = 100 * GOLDEN_GRADIENT
    assert float(value.detach()) == pytest.approx(run["values"][quantity], rel=tolerance)
    assert relative(slope, expected) < tolerance


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "bs3", "dp5", "heun", "vern7", *ROSENBROCK])
def test_gradients_equal_torchs_on_equal_steps(method: str, gradient: str) -> None:
    """A loose tolerance and a first step over the whole span: both engines make it, and that alone."""
    results = []
    for engine in ("torch", "julia"):
        p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
        ts = torch.tensor([0.0, 0.11, 0.4, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
        chosen = Solver(method=method, dt0=0.9, rtol=1e3, atol=1e3, gradient=gradient, engine=engine)
        sol = regnde.solve(small_net(p), y0, ts, chosen, record="all")
        weights = torch.linspace(1, 2, sol.ys.numel(), dtype=torch.float64).reshape(sol.ys.shape)
        value = (sol.ys * weights).sum() + 1e6 * sol.steps.error.square().sum()
        if method != "bs3":
            value = value + sol.steps.stiffness.sum()
        results.append((sol, torch.autograd.grad(value, (p, y0, ts))))
    (ours, grads), (theirs, others) = results
    torch.testing.assert_close(ours.steps.dt, theirs.steps.dt, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=STEP, atol=STEP)
    for a, b in zip(grads, others, strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("method", EXPLICIT)
def test_a_last_step_is_passed_on(method: str) -> None:
    """Two evaluations and the short step less; where torch has the method, of torch's size."""
    sizes = []
    for engine in ("julia", "torch") if method in TABLEAUX else ("julia",):
        last = regnde.LastStep()
        chosen = Solver(method=method, rtol=1e-3, atol=1e-3, dt0=last, engine=engine)
        with torch.no_grad():
            first, second = (regnde.solve(small_net(SMALL_P), SMALL_Y0, [0.0, 3.0], chosen) for _ in range(2))
        assert second.stats.dt_first == pytest.approx(min(first.stats.dt_next, 3.0))
        assert second.stats.nfe <= first.stats.nfe - 2
        sizes.append(first.stats.dt_next)
    assert sizes == pytest.approx(sizes[:1] * len(sizes), rel=0.05)


@pytest.mark.parametrize(
    "local",
    [
        Local(seed=1),
        Local(seed=2, sampling="step"),
        Local(seed=3, freeze_first_stage=True),
        Local(seed=4, detach_state=False),
        Local(seed=4, sampling="step", detach_state=False),
        Local(seed=5, step_size="initial"),
    ],
)
def test_local_records_equal_torchs(local: Local) -> None:
    results = []
    for engine in ("torch", "julia"):
        p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
        chosen = Solver(dt0=0.9, rtol=1e3, atol=1e3, engine=engine)
        sol = regnde.solve(small_net(p), y0, [0.0, 0.3, 0.9], chosen, record=local)
        value = 1e6 * sol.steps.error.sum() + sol.steps.stiffness.sum() + sol.y1.sum()
        results.append((sol, torch.autograd.grad(value, (p, y0))))
    (ours, grads), (theirs, others) = results
    assert ours.stats.nfe == theirs.stats.nfe
    torch.testing.assert_close(ours.steps.t, theirs.steps.t, rtol=STEP, atol=STEP)
    torch.testing.assert_close(ours.steps.error, theirs.steps.error, rtol=1e-6, atol=0)
    for a, b in zip(grads, others, strict=True):
        assert relative(a, b) < 1e-6


NOISY_P = torch.tensor([0.9, 0.3, -1.1, 0.5, 0.8, 0.1, 0.25], dtype=torch.float64)


def noisy(p: torch.Tensor, method: str) -> SDE:
    def diffusion(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return p[6] * (1 + t) * torch.ones_like(y) if method == "sosra" else p[6] * torch.sin(y) + 0.1

    return SDE(small_net(p[:6]), diffusion)


@pytest.mark.parametrize("method", ["sosri", "sosri2", "sriw1", "sosra", "em"])
def test_sde_on_the_same_path(method: str) -> None:
    """Both engines read one Brownian path: on equal steps states, records and gradients are equal."""
    path = BrownianPath(0.0, 1.0, (2, 2), seed=7)
    p, y0 = NOISY_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
    chosen = solver(method=method, rtol=1e-2, atol=1e-2, dt0=0.05 if method == "em" else None)
    sol = regnde.solve(noisy(p, method), y0, [0.0, 0.4, 1.0], chosen, record="all", noise=path)
    q, z0 = NOISY_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
    states, errors, stiffnesses = FrozenSDE.of(sol, path).walk(noisy(q, method), z0)
    y1 = states[-1]
    torch.testing.assert_close(sol.y1, y1, rtol=STEP, atol=STEP)
    value, other = sol.y1.sum(), y1.sum()
    if method != "em":
        torch.testing.assert_close(sol.steps.error, errors, rtol=1e-6, atol=1e-12)
        value, other = value + sol.steps.error.sum(), other + errors.sum()
    if method == "sosri2":
        torch.testing.assert_close(sol.steps.stiffness, stiffnesses, rtol=1e-6, atol=0)
        value, other = value + sol.steps.stiffness.sum(), other + stiffnesses.sum()
    for a, b in zip(torch.autograd.grad(value, (p, y0)), torch.autograd.grad(other, (q, z0)), strict=True):
        assert relative(a, b) < 1e-6


def test_sde_engines_count_alike() -> None:
    p = NOISY_P.clone()
    stats = [
        regnde.solve(
            noisy(p, "sosri"),
            SMALL_Y0,
            [0.0, 1.0],
            Solver(method="sosri", rtol=1e-2, atol=1e-2, engine=engine),
            noise=BrownianPath(0.0, 1.0, (2, 2), seed=7),
        ).stats
        for engine in ("torch", "julia")
    ]
    assert stats[0].accepted == stats[1].accepted
    assert stats[0].rejected == stats[1].rejected


@pytest.mark.parametrize("method", [*ROSENBROCK, *SDIRK])
def test_implicit_methods_record(method: str) -> None:
    setup, f = ODE["problems"]["vdp_mu100"], GOLDEN["vdp_mu100"]
    y0 = tensor(setup["u0"])
    chosen = solver(method=method, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        sol = regnde.solve(f, y0, [0.0, 0.5, 1.5], chosen, record="all")
        exact = regnde.solve(f, y0, [0.0, 0.5, 1.5], Solver(rtol=1e-10, atol=1e-10, engine="torch"))
    torch.testing.assert_close(sol.ys, exact.ys, rtol=1e-4, atol=1e-4)
    assert len(sol.steps) == sol.stats.accepted
    assert bool((sol.steps.error <= 1).all())
    assert bool(sol.steps.implicit.any())
    if method == "autotsit5":
        assert not bool(sol.steps.implicit[0])
        assert float(sol.steps.stiffness.max()) > 100
    if method in SDIRK:
        with pytest.raises(ValueError, match="implicit equations"):
            regnde.solve(f, y0.requires_grad_(), [0.0, 1.0], chosen)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "agreement"), [(torch.float64, 1e-9, 1e-5), (torch.float32, 1e-5, 1e-3)]
)
@pytest.mark.parametrize("adjoint", ["interpolating", "gauss", "quadrature", "backsolve", "tracker"])
def test_continuous_adjoints(adjoint: str, dtype: torch.dtype, tolerance: float, agreement: float) -> None:
    """SciMLSensitivity's gradient of the trajectory against the discrete one, at a tolerance where both are right."""
    results = []
    for gradient in ("discrete", adjoint):
        p, y0 = SMALL_P.to(dtype, copy=True).requires_grad_(), SMALL_Y0.to(dtype, copy=True).requires_grad_()
        sol = regnde.solve(
            small_net(p),
            y0,
            [0.0, 0.3, 0.3, 0.8],
            solver(rtol=tolerance, atol=tolerance, gradient=gradient),
            record=Local(seed=1),
        )
        results.append(torch.autograd.grad(sol.ys.square().sum() + sol.steps.stiffness.sum(), (p, y0)))
    for a, b in zip(*results, strict=True):
        assert relative(b, a) < agreement


@pytest.mark.parametrize("adjoint", ["interpolating", "gauss", "quadrature", "backsolve", "tracker"])
def test_global_records_with_a_continuous_adjoint_are_refused(adjoint: str) -> None:
    with pytest.raises(ValueError, match="zero without a word"):
        regnde.solve(small_net(SMALL_P), SMALL_Y0, [0.0, 1.0], solver(gradient=adjoint), record="all")


def test_implicit_methods_have_the_adjoint() -> None:
    p = SMALL_P.clone().requires_grad_()
    sol = regnde.solve(
        small_net(p),
        SMALL_Y0,
        [0.0, 0.5, 1.0],
        solver(method="rosenbrock23", rtol=1e-7, atol=1e-7, gradient="interpolating"),
        record=Local(seed=1),
    )
    (slope,) = torch.autograd.grad(sol.ys.sum(), p, retain_graph=True)
    q = SMALL_P.clone().requires_grad_()
    (other,) = torch.autograd.grad(
        regnde.solve(small_net(q), SMALL_Y0, [0.0, 0.5, 1.0], Solver(rtol=1e-9, atol=1e-9, engine="torch")).ys.sum(), q
    )
    assert relative(slope, other) < 1e-3
    assert torch.isfinite(torch.autograd.grad(sol.steps.error.sum(), p)[0]).all()


def test_julia_field() -> None:
    """A field by hand gives what the same field in torch gives, gradient included."""
    w = torch.tensor([[0.0, 1.0], [-1.0, -0.1]], dtype=torch.float64, requires_grad=True)
    y0 = SMALL_Y0.clone().requires_grad_()
    by_hand = regnde.JuliaField("(t, y, w) -> w' * y .+ sin(t)", (w,))
    sol = regnde.solve(by_hand, y0, [0.0, 1.0], solver(), record="all")
    other = regnde.solve(lambda t, y: y @ w.T + torch.sin(t), y0, [0.0, 1.0], solver(), record="all")
    torch.testing.assert_close(sol.ys, other.ys, rtol=STEP, atol=STEP)
    losses = [s.ys.square().sum() + s.steps.error.sum() for s in (sol, other)]
    for a, b in zip(*(torch.autograd.grad(loss, (w, y0)) for loss in losses), strict=True):
        assert relative(a, b) < 1e-6


def test_arrays_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Julia reads the state and the parameters, and writes the states, where torch has them."""
    from regnde._engines.julia import arguments

    seen: list[int] = []
    original = arguments.ArgumentBuffer.tensor

    def noted(buffer: object, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            seen.append(tensor.data_ptr())
        original(buffer, tensor)

    monkeypatch.setattr(arguments.ArgumentBuffer, "tensor", noted)
    layer = nn.Linear(3, 3)
    y0 = torch.ones(2, 3, requires_grad=True)
    sol = regnde.solve(lambda t, y: torch.tanh(layer(y)), y0, [0.0, 1.0], solver(rtol=1e-4, atol=1e-4))
    assert {y0.data_ptr(), layer.weight.data_ptr(), layer.bias.data_ptr(), sol.ys.data_ptr()} <= set(seen)
    assert sol.ys.dtype == torch.float32
    seen.clear()
    sol.y1.sum().backward()
    assert {y0.grad.data_ptr(), layer.weight.grad.data_ptr()} <= set(seen)


class Hamiltonian(nn.Module):
    """y' = (dH/dp, -dH/dq) of H = (p^2 + q^2) / 2, by autograd."""

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(y.square().sum() / 2, y, create_graph=True)
        return torch.stack([slope[1], -slope[0]])


def test_a_module_that_differentiates_in_inference_mode() -> None:
    field = Hamiltonian()
    with torch.inference_mode():
        for start in ([1.0, 0.0], [0.0, 1.0]):
            y0 = torch.tensor(start, dtype=torch.float64)
            y1 = regnde.solve(field, y0, [0.0, 1.0], solver(rtol=1e-8, atol=1e-8)).y1
            turned = start[0] * math.cos(1) + start[1] * math.sin(1), start[1] * math.cos(1) - start[0] * math.sin(1)
            torch.testing.assert_close(y1, y0.new_tensor(turned), rtol=1e-6, atol=0)


def test_a_changed_module_is_read_again() -> None:
    """Attributes, tensors and what the module can not show: a global factor."""
    factor: list[float | torch.Tensor] = [1.0]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
            self.sign = -1.0

        def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.sign * factor[0] * self.rate * y

    field, y0 = Scaled(), torch.ones(2, dtype=torch.float64)

    def end() -> float:
        return float(regnde.solve(field, y0, [0.0, 1.0], solver(rtol=1e-8, atol=1e-8)).y1[0].detach())

    assert end() == pytest.approx(0.36788, rel=1e-4)
    assert end() == pytest.approx(0.36788, rel=1e-4)
    field.sign = 1.0
    assert end() == pytest.approx(2.71828, rel=1e-4)
    factor[0] = 2.0
    assert end() == pytest.approx(7.38906, rel=1e-4)
    factor[0] = torch.tensor(0.5, dtype=torch.float64)
    assert end() == pytest.approx(1.64872, rel=1e-4)
    factor[0] = torch.tensor(2.0, dtype=torch.float64)  # another tensor that the module does not hold
    assert end() == pytest.approx(7.38906, rel=1e-4)
    field.rate.data.fill_(0.0)
    assert end() == pytest.approx(1.0)
    field.rate = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    regnde.solve(field, y0, [0.0, 1.0], solver()).y1.sum().backward()
    assert field.rate.grad is not None


def test_tapes_are_freed() -> None:
    from regnde._engines.julia import runtime

    def kept() -> int:
        return runtime.call(lambda julia: julia.bridge_saved())

    p = SMALL_P.clone().requires_grad_()
    for _ in range(3):
        regnde.solve(small_net(p), SMALL_Y0, [0.0, 1.0], solver(), record="all").y1.sum().backward()
    gc.collect()
    before = kept()
    for _ in range(20):
        regnde.solve(small_net(p), SMALL_Y0, [0.0, 1.0], solver(), record="all")
    gc.collect()
    assert kept() <= before + 1


@pytest.mark.parametrize("record", ["none", "all", regnde.Local(seed=0)])
def test_a_solve_is_freed_with_its_solution(record: regnde.Record) -> None:
    """At once: a solve that only a garbage collection of Python's finds takes Julia's memory until then."""
    from regnde._engines.julia import runtime

    def kept() -> int:
        return runtime.call(lambda julia: julia.bridge_saved())

    p = SMALL_P.clone().requires_grad_()

    def train() -> None:
        sol = regnde.solve(small_net(p), SMALL_Y0, [0.0, 1.0], solver(), record=record)
        penalty = 0.0 if sol.steps is None else regnde.ErrorPenalty()(sol)
        (sol.y1.square().sum() + penalty).backward()

    train()
    gc.collect()
    gc.disable()
    try:
        before = kept()
        for _ in range(5):
            train()
        assert kept() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("record", "batch"), [("all", "joint"), (regnde.Local(seed=0), "joint"), ("all", "per-sample")]
)
def test_an_interrupt_behind_a_call_loses_nothing_that_julia_keeps(
    monkeypatch: pytest.MonkeyPatch, record: regnde.Record, batch: Any
) -> None:
    """A signal's handler may raise before the next line runs: Julia forgets what the call has compiled or saved."""
    from regnde._engines.julia import runtime

    call, left = runtime.call, 0

    def interrupted(function: Any, *, waits: bool = True) -> Any:
        nonlocal left
        result, left = call(function, waits=waits), left - 1
        if left == 0:
            raise KeyboardInterrupt
        return result

    def kept() -> int:
        gc.collect()
        return call(lambda julia: julia.bridge_saved())

    y0 = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    before, interrupts = kept(), 0
    monkeypatch.setattr(runtime, "call", interrupted)
    for n in (*range(1, 9), *range(1, 9)):
        left = n
        try:
            sol = regnde.solve(lambda t, y: -y.sin().cos(), y0, [0.0, 1.0], solver(batch=batch), record=record)
            sol.y1.sum().backward()
            del sol
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 1
    assert kept() <= before + 1  # the field


def test_failures_are_ours() -> None:
    for f, kind in (
        (lambda t, y: y * float("nan"), regnde.NonFiniteDynamics),
        (lambda t, y: torch.where(t > 0.5, y * float("nan"), -y), regnde.NonFiniteDynamics),
        (lambda t, y: y * y, regnde.SolveError),
    ):
        with pytest.raises(kind) as caught:
            regnde.solve(f, torch.ones(1, dtype=torch.float64), [0.0, 2.0], solver(), record="all")
        assert caught.value.nfe < 10_000
        assert len(caught.value.solution.ys) == 1
    with pytest.raises(regnde.MaxStepsReached):
        regnde.solve(lambda t, y: -y, torch.ones(1), [0.0, 50.0], solver(max_steps=5))
    partial = regnde.solve(lambda t, y: -y, torch.ones(1), [0.0, 50.0], solver(max_steps=5), throw=False)
    assert partial.status == "max steps reached"
    assert partial.stats.accepted == 5


def test_auto_falls_back_where_a_field_is_not_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGNDE_ENGINE", raising=False)
    y0 = torch.ones(2, dtype=torch.float64)
    assert regnde.solve(lambda t, y: -y, y0, [0.0, 1.0]).engine == "julia"
    assert regnde.solve(lambda t, y: -y if float(y[0]) > 0 else y, y0, [0.0, 1.0]).engine == "torch"


# Filters of warnings belong to the process: torch's tracing in one thread undoes those that another has set.
@pytest.mark.filterwarnings("ignore:torch was imported before juliacall")
def test_case_22a_other_threads() -> None:
    """Solves and backward passes from other threads, with garbage collections in between."""
    p = SMALL_P.clone()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            q = p.clone().requires_grad_()
            for _ in range(25):
                regnde.solve(small_net(q), SMALL_Y0, [0.0, 0.5], solver(), record="all").y1.sum().backward()
                evaluated("(GC.gc(); 0)")
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    assert not problems


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT / "python")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


SOLVE = "print(float(regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], regnde.Solver(engine='julia')).y1))"


@pytest.mark.parametrize("imports", ["import torch, regnde", "import regnde, torch"])
def test_case_21a_import_order(imports: str) -> None:
    out = run(f"{imports}; {SOLVE}")
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) == pytest.approx(0.367879, rel=1e-4)
    assert "segfault" not in out.stderr


def test_case_22b_forked_children_are_refused() -> None:
    """The torch engine works in a fork of a process with Julia; the Julia engine says why it can not."""
    code = f"""
import os, regnde
{SOLVE}
child = os.fork()
if child == 0:
    assert regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], regnde.Solver(engine='torch')).engine == 'torch'
    try:
        regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], regnde.Solver(engine='julia'))
    except regnde.EngineUnavailable as why:
        os._exit(7 if 'fork' in str(why) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    out = run(code)
    assert out.returncode == 0, out.stderr


def test_case_22b_a_forked_child_ends_without_julia() -> None:
    """Through the interpreter's own end, with its status; Julia's work at exit would write into the parent's memory."""
    code = f"""
import os, sys, regnde
{SOLVE}
solution = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], regnde.Solver(engine='julia'))
child = os.fork()
if child == 0:
    del solution
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
{SOLVE}
"""
    out = run(code)
    assert out.returncode == 0, out.stderr
    assert "signal" not in out.stderr
    assert out.stdout.split() == [out.stdout.split()[0]] * 2


def test_no_extension_of_ipython_is_loaded() -> None:
    """In a notebook it would call Julia on the main thread at the end of each cell, and never return."""
    code = f"""
import sys, types
sys.modules['IPython'] = types.ModuleType('IPython')
sys.modules['IPython'].get_ipython = lambda: None
import regnde
{SOLVE}
"""
    out = run(code)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) == pytest.approx(0.367879, rel=1e-4)


def test_a_thread_that_solves_when_the_main_thread_has_ended_is_told() -> None:
    code = f"""
import threading, regnde
{SOLVE}
def train():
    threading.main_thread().join()
    try:
        {SOLVE}
    except regnde.EngineUnavailable as why:
        print(why)
threading.Thread(target=train).start()
"""
    out = run(code)
    assert out.returncode == 0, out.stderr
    assert "join()" in out.stdout


def test_that_an_extension_compiles_is_announced(tmp_path: Path) -> None:
    """As it is where Julia starts: else nothing is said for minutes."""
    (tmp_path / "RegNDESleeper" / "src").mkdir(parents=True)
    (tmp_path / "RegNDESleeper" / "src" / "RegNDESleeper.jl").write_text("module RegNDESleeper\nsleep(8)\nend\n")
    code = """
from regnde._engines.julia import runtime
runtime.start()
import sys
print("loads", file=sys.stderr, flush=True)
runtime.load("RegNDESleeper")
"""
    depots = os.pathsep.join(
        [str(tmp_path / "depot"), os.environ.get("JULIA_DEPOT_PATH", "")]
    )  # compiles into the first
    out = run(code, JULIA_LOAD_PATH=os.pathsep + str(tmp_path), JULIA_DEPOT_PATH=depots)
    assert out.returncode == 0, out.stderr
    assert "Julia compiles packages" in out.stderr.partition("loads")[2]


def test_samples_on_two_threads_have_their_own_index() -> None:
    """Each thread tells its fields which sample they are of: 64 decays, each with a rate of its own."""
    code = """
import os
os.environ["PYTHON_JULIACALL_THREADS"] = "2"
import torch, regnde

class Decay(torch.nn.Module):
    def forward(self, t, y, samples):
        return -(1 + samples.reshape(-1, 1) / 16) * y

field, solver = Decay(), regnde.Solver(engine="julia", batch="per-sample", rtol=1e-8, atol=1e-8)
y0 = torch.ones(64, 1, dtype=torch.float64, requires_grad=True)
exact = torch.exp(-(1 + torch.arange(64, dtype=torch.float64).reshape(-1, 1) / 16))
for _ in range(20):
    sol = regnde.solve(field, y0, [0.0, 1.0], solver)
    (gradient,) = torch.autograd.grad(sol.y1.sum(), y0)
    torch.testing.assert_close(sol.y1, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-6)
"""
    out = run(code)
    assert out.returncode == 0, out.stderr


def test_faulthandler_after_the_start_of_julia_with_several_threads() -> None:
    """Julia's threads wait for each other by segmentation faults, which Python's handler takes for a crash."""
    code = """
import os
os.environ["PYTHON_JULIACALL_THREADS"] = "2"
import faulthandler
from regnde._engines.julia import runtime
runtime.start()
faulthandler.enable()
collect = "Threads.@threads for i in 1:2 for j in 1:10^6 Base.donotdelete(zeros(j % 99)) end end; "
collect += "string(Threads.nthreads())"
print(runtime.call(lambda julia: julia.bridge_evaluate(collect)))
"""
    out = run(code)
    assert out.returncode == 0, out.stderr
    assert "Fatal" not in out.stderr
    assert out.stdout == "2\n"


def test_case_23_started_by_another_package_first() -> None:
    code = f"""
import warnings; warnings.simplefilter('ignore')
import juliacall, regnde
try:
    {SOLVE}
except regnde.EngineUnavailable as why:
    assert 'another package' in str(why)
    raise SystemExit(7)
"""
    assert run(code).returncode == 7


def test_case_24_two_processes_at_once() -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: results.append(run(f"import regnde; {SOLVE}"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out.returncode for out in results] == [0, 0], [out.stderr for out in results]


def test_handlers_of_signals_run_during_a_solve() -> None:
    """What one raises stops the solve and is raised; one that solves itself is told that it can not."""
    code = f"""
import signal
import regnde, torch
{SOLVE}
f = lambda t, y: torch.stack([y[1], -1e6 * y[0]])
y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
calls = []
def handler(*_):
    calls.append(None)
    if len(calls) == 1:
        try:
            {SOLVE}
        except RuntimeError as problem:
            print(problem)
    else:
        raise TimeoutError
regnde.solve(f, y0, [0.0, 1e-3], regnde.Solver(engine='julia'))  # exported before the first signal
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
try:
    regnde.solve(f, y0, [0.0, 1e4], regnde.Solver(engine='julia', rtol=1e-10, atol=1e-10, max_steps=10**9))
except TimeoutError:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print('stopped')
{SOLVE}
"""
    out = run(code)
    assert out.returncode == 0, out.stderr
    assert [line.startswith(("0.3678", "Julia is at work", "stopped")) for line in out.stdout.splitlines()] == [
        True
    ] * 4


def test_case_23_ctrl_c_ends_a_long_solve() -> None:
    """A solve that would take hours ends at its next step, as a KeyboardInterrupt, and the engine goes on."""
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
import regnde, torch
{SOLVE}
f = lambda t, y: torch.stack([y[1], -1e6 * y[0]])
y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
def solve(end):
    return regnde.solve(f, y0, [0.0, end], regnde.Solver(engine='julia', rtol=1e-10, atol=1e-10, max_steps=10**9))
solve(1e-3)
print('started', flush=True)
try:
    solve(1e4)
except KeyboardInterrupt:
    print('interrupted', flush=True)
print('again', solve(1e-3).status, flush=True)
"""
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT / "python")]))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert any(line.startswith("started") for line in lines)
        time.sleep(2)
        late = threading.Timer(150, process.kill)
        late.start()
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        assert next(lines, "") == "interrupted\n"
        assert time.monotonic() - asked < 120  # in seconds on an idle machine; a loaded one must not fail
        assert next(lines, "") == "again success\n"
        assert process.wait(120) == 0
        late.cancel()
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_second_derivatives_are_refused(batch: str) -> None:
    """Also where the first derivative is multiplied by constants: its derivative would be zero without a word."""
    y0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    end = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    joint = batch == "joint"  # only then times have gradients
    sol = regnde.solve(lambda t, y: -weight * y**2, y0, [0.0, end if joint else 1.0], solver(batch=batch))
    sources = (y0, weight, end) if joint else (y0, weight)
    for first in torch.autograd.grad(sol.y1.sum(), sources, create_graph=True):
        for source in sources:
            with pytest.raises(RuntimeError, match=r"no second derivatives: set Solver\(engine='torch'\)"):
                torch.autograd.grad((first.square().sum() + weight), source, allow_unused=True, retain_graph=True)

"""Rosenbrock methods and the switch to them, on the torch engine: step sequences, values, gradients, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import regnde
from frozen import central_differences, rms
from frozen_rosenbrock import FrozenRosenbrock
from problems import STIFF, forced_net, robertson
from regnde._rosenbrock_tableau import ROSENBROCK_TABLEAUX
from tolerances import CANCELLED, GOLDEN_DT, GOLDEN_ERROR, GOLDEN_ESTIMATE, GOLDEN_REPLAY, GRADIENT, ROUNDING

GOLDEN = json.loads((Path(__file__).parent / "golden" / "stiff_steps.json").read_text())
METHODS = {
    "Rosenbrock23": "rosenbrock23",
    "Rodas4": "rodas4",
    "Rodas5P": "rodas5p",
    "AutoTsit5(Rosenbrock23)": "autotsit5",
}
LONG = 1000  # accepted steps from which two rounded sequences differ in a count
RUNS = {name: run for name, run in GOLDEN["runs"].items() if run["naccept"] < LONG}
TOLERANCES = {"rosenbrock23": 1e-2, "rodas4": 1e-3, "rodas5p": 1e-4}  # for about thirty steps
NET_P = torch.tensor([1.3, 2.4, 0.4, 0.7, -1.1, 0.3], dtype=torch.float64)
NET_Y0 = torch.tensor([0.6, -0.4], dtype=torch.float64)
ROBERTSON_END = [1.7865921142146e-02, 7.2747514684559e-08, 9.8213400611034e-01]
ROBERTSON_BY_RATES = [
    [-7.9304712811965e-01, 3.1690758341175e-06, -5.2818033621796e-10],
    [-1.4688907582377e-06, 5.8642768195842e-12, -2.1898424104377e-15],
    [7.9304859701047e-01, -3.1690816983910e-06, 5.2818252606043e-10],
]
"""At t = 1e5, by Radau of scipy at rtol 1e-12 and atol 1e-16 with the sensitivities as further states."""


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solver(method: str, **options: object) -> regnde.Solver:
    return regnde.Solver(**({"method": method, "rtol": 1e-5, "atol": 1e-7, "engine": "torch"} | options))


def golden(name: str, run: dict) -> regnde.Solution:
    problem, method, _ = name.split("/")
    setup = GOLDEN["problems"][problem]
    chosen = solver(METHODS[method], rtol=run["reltol"], atol=run["abstol"])
    with torch.no_grad():
        return regnde.solve(STIFF[problem], tensor(setup["u0"]), setup["tspan"], chosen, record="all")


# --- OrdinaryDiffEq.jl, step for step --------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_counts(name: str) -> None:
    run, sol = RUNS[name], golden(name, RUNS[name])
    stats = sol.stats
    assert (stats.nfe, stats.accepted, stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    assert (2 * stats.njac, stats.nfactorisations) == (run["njacs"], run["nw"])  # Julia counts df/dt as another
    assert stats.dt_first == pytest.approx(run["dt_init"], rel=GOLDEN_REPLAY)
    if "algorithm" in run:
        assert sol.steps.implicit.tolist()[: len(run["algorithm"])] == [x == 2 for x in run["algorithm"]]
        assert int(sol.steps.implicit.sum()) == run["implicit_steps"]


@pytest.mark.parametrize("name", RUNS)
def test_each_step_replayed(name: str) -> None:
    """From Julia's own state, time and step size every single step gives Julia's next state and error."""
    run = RUNS[name]
    problem, method, _ = name.split("/")
    u = [tensor(GOLDEN["problems"][problem]["u0"]), *map(tensor, run["u"])]
    begin = [0.0, *run["t"]]
    for j, h in enumerate(run["dt"]):
        implicit = run.get("algorithm", [2] * len(run["dt"]))[j] == 2
        name = "rosenbrock23" if implicit and method.startswith("Auto") else METHODS[method]
        chosen = solver(name, rtol=run["reltol"], atol=run["abstol"], dt0=h)
        end = begin[j] + h
        sol = regnde.solve(STIFF[problem], u[j], [begin[j], end], chosen, record="all", throw=False)
        y1, y = u[j + 1], u[j]
        # entries that almost vanish, and errors far below 1, are differences of the stages
        smallest = float(run["abstol"] + run["reltol"] * y.abs().min())
        torch.testing.assert_close(sol.ys[-1], y1, rtol=GOLDEN_ESTIMATE, atol=1e-6 * smallest)
        rounding = 1e-11 * float(y.abs().max()) / smallest
        assert float(sol.steps.error[0]) == pytest.approx(run["error"][j], rel=GOLDEN_ESTIMATE, abs=rounding)
        if implicit and "eigen_est" in run:
            assert float(sol.steps.stiffness[0]) == pytest.approx(run["eigen_est"][j], rel=GOLDEN_REPLAY)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if min(run["error"]) > 1e-9])
def test_steps(name: str) -> None:
    run = RUNS[name]
    steps = golden(name, run).steps
    n = min(len(run["t"]), run["naccept"] - 1)
    torch.testing.assert_close(steps.t[:n], tensor(run["t"][:n]), rtol=GOLDEN_DT, atol=0)
    torch.testing.assert_close(steps.dt[:n], tensor(run["dt"][:n]), rtol=GOLDEN_DT, atol=0)
    torch.testing.assert_close(steps.error[:n], tensor(run["error"][:n]), rtol=GOLDEN_ERROR, atol=0)


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ROSENBROCK_TABLEAUX)
def test_gradients_by_frozen_differences(method: str, gradient: str) -> None:
    """Of the end state and of each penalty, by parameters and initial state."""
    p, y0 = NET_P.clone().requires_grad_(), NET_Y0.clone().requires_grad_()
    sol = regnde.solve(
        forced_net(p),
        y0,
        [0.0, 1.0],
        solver(method, rtol=TOLERANCES[method], atol=1e-4, gradient=gradient),
        record="all",
    )
    frozen = FrozenRosenbrock.of(sol, 0.0)
    end, errors, jacobians = frozen.walk(forced_net(NET_P), NET_Y0)
    torch.testing.assert_close(sol.y1, end, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(sol.steps.error, rms(errors), rtol=CANCELLED, atol=CANCELLED)
    torch.testing.assert_close(sol.steps.stiffness, jacobians.abs().sum(-1).amax(-1), rtol=ROUNDING, atol=0)

    at, steps, weights = torch.cat([NET_P, NET_Y0]), len(sol.steps), tensor([0.7, -1.3])
    sizes = sol.steps.dt.abs()

    def walked(x: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1) for part in frozen.walk(forced_net(x[:6]), x[6:])])

    # a coarser difference would cross the kinks of max(|y|, |y1|)
    base, by_all = walked(at), central_differences(walked, at, 1e-4)

    def check(value: Tensor, of_vector: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        vector = base.clone().requires_grad_()
        end, errors, jacobians = vector.split([2, 2 * steps, 4 * steps])
        expected = of_vector(end, errors.view(steps, 2), jacobians.view(steps, 2, 2))
        (outer,) = torch.autograd.grad(expected, vector)
        found = torch.cat(torch.autograd.grad(value, (p, y0), retain_graph=True))
        scale = float((outer @ by_all).abs().max())
        torch.testing.assert_close(found, outer @ by_all, rtol=GRADIENT, atol=GRADIENT * scale)

    check(sol.y1 @ weights, lambda end, errors, jacobians: end @ weights)
    check(regnde.ErrorPenalty()(sol), lambda end, errors, jacobians: rms(errors) @ sizes)
    check(regnde.SquaredErrorPenalty()(sol), lambda end, errors, jacobians: rms(errors).square().sum())
    check(regnde.StiffnessPenalty()(sol), lambda end, errors, jacobians: jacobians.abs().sum(-1).amax(-1).sum())


@pytest.mark.parametrize("method", ["rodas5p", "rodas4"])
def test_robertson_by_its_rates(method: str) -> None:
    p = tensor([0.04, 1e4, 3e7]).requires_grad_()
    sol = regnde.solve(robertson(p), tensor([1.0, 0, 0]), [0.0, 1e5], solver(method, rtol=1e-6, atol=1e-9))
    torch.testing.assert_close(sol.y1.detach(), tensor(ROBERTSON_END), rtol=1e-6, atol=0)
    found = torch.stack([torch.autograd.grad(y, p, retain_graph=True)[0] for y in sol.y1])
    torch.testing.assert_close(found, tensor(ROBERTSON_BY_RATES), rtol=GRADIENT, atol=0)

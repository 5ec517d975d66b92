"""The torch engine against step sequences and gradients of a real DifferentialEquations.jl (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import regnde
from frozen import estimates, stages_of, step_vectors
from problems import GOLDEN, cubic_net
from regnde._tableau import TABLEAUX
from tolerances import GOLDEN_DT, GOLDEN_ERROR, GOLDEN_ESTIMATE, GOLDEN_GRADIENT, GOLDEN_REPLAY, GOLDEN_T

FOLDER = Path(__file__).parent / "golden"
ODE = json.loads((FOLDER / "ode_steps.json").read_text())
NET = json.loads((FOLDER / "neural_ode.json").read_text())

# Below this an error estimate is a sum that cancels to rounding: its value, and by it the size of the
# next step, differ between any two machines.
CANCELLED = 1e-9


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rounding_decides(run: dict) -> bool:
    """Whether some error estimate of the run is rounding, so that later steps can not be compared."""
    return min(run["error"]) < CANCELLED


def solve(name: str, run: dict) -> regnde.Solution:
    problem, method, _ = name.split("/")
    setup = ODE["problems"][problem]
    solver = regnde.Solver(method=method, rtol=run["reltol"], atol=run["abstol"], engine="torch")
    with torch.no_grad():
        return regnde.solve(GOLDEN[problem], tensor(setup["u0"]), setup["tspan"], solver, record="all")


@pytest.mark.parametrize("name", ODE["runs"])
def test_counts_and_first_step(name: str) -> None:
    run = ODE["runs"][name]
    stats = solve(name, run).stats
    assert (stats.nfe, stats.accepted, stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    assert stats.dt_first == pytest.approx(run["dt_init"], rel=GOLDEN_REPLAY)


@pytest.mark.parametrize("name", [name for name, run in ODE["runs"].items() if not rounding_decides(run)])
def test_steps(name: str) -> None:
    run = ODE["runs"][name]
    steps = solve(name, run).steps
    n = min(len(run["t"]), run["naccept"] - 1)  # the last step is what remains of the span: its size is a difference
    torch.testing.assert_close(steps.t[:n], tensor(run["t"][:n]), rtol=GOLDEN_T, atol=0)
    torch.testing.assert_close(steps.dt[:n], tensor(run["dt"][:n]), rtol=GOLDEN_DT, atol=0)
    torch.testing.assert_close(steps.error[:n], tensor(run["error"][:n]), rtol=GOLDEN_ERROR, atol=0)
    if "stiffness" in run:
        torch.testing.assert_close(steps.stiffness[:n], tensor(run["stiffness"][:n]), rtol=GOLDEN_ERROR, atol=0)


@pytest.mark.parametrize("name", ODE["runs"])
def test_each_step_replayed(name: str) -> None:
    """From Julia's own state, time and step size every single step gives Julia's next state and estimates."""
    run = ODE["runs"][name]
    problem, method, _ = name.split("/")
    tableau, field = TABLEAUX[method.lower()], GOLDEN[problem]
    u = [tensor(ODE["problems"][problem]["u0"]), *map(tensor, run["u"])]
    begin = [0.0, *run["t"]]
    # Vern7's weights reach 187: through ten stages of a stiff field they blow rounding up by 1e9.
    relative = 1e-5 if (problem, method) == ("vdp_mu100", "Vern7") else GOLDEN_ESTIMATE
    for j, h in enumerate(run["dt"]):
        t, y = begin[j], u[j]
        solver = regnde.Solver(method=method, rtol=run["reltol"], atol=run["abstol"], dt0=h, engine="torch")
        sol = regnde.solve(field, y, [t, t + h], solver, record="all", throw=False)
        scale = float(y.abs().max())
        stages = stages_of(field, tableau, t, h, y)
        slopes = max(float(k.abs().max()) for k in stages.k)
        rounding = 1e-13 * h * slopes / (run["abstol"] + run["reltol"] * min(abs(float(v)) for v in y))
        if len(sol.steps) == 1:
            torch.testing.assert_close(sol.y1, u[j + 1], rtol=GOLDEN_REPLAY, atol=GOLDEN_REPLAY * scale)
            assert sol.steps.error.item() == pytest.approx(run["error"][j], rel=relative, abs=rounding)
        else:
            assert run["error"][j] > 1 - relative, "a step that Julia accepted was rejected"
        if "stiffness" in run and len(sol.steps) == 1:
            gap = float((stages.g[tableau.stages - 1] - stages.g[tableau.stages - 2]).norm())
            noise = 1e-14 * slopes / gap  # both stage differences cancel
            found = sol.steps.stiffness.item()
            assert found == pytest.approx(run["stiffness"][j], rel=GOLDEN_ESTIMATE, abs=noise)


def replay(p: torch.Tensor, run: dict, u0: torch.Tensor) -> dict[str, torch.Tensor]:
    """The golden quantities on Julia's own steps, by the formulas of the tests."""
    tableau, field, y, t = TABLEAUX["tsit5"], cubic_net(p), u0, 0.0
    vectors = []
    for h in run["dt"]:
        stages = stages_of(field, tableau, t, h, y)
        vectors.append(step_vectors(tableau, stages, y, h, run["reltol"], run["abstol"]))
        t, y = t + h, stages.y1
    error, stiffness = estimates(torch.stack(vectors))
    return {
        "uT": y.square().sum(),
        "RE": (error * tensor(run["dt"])).sum(),
        "RE2": error.square().sum(),
        "RS": stiffness.sum(),
    }


def golden_net(name: str) -> tuple[dict, torch.Tensor, torch.Tensor]:
    p = tensor(NET["p"]).requires_grad_()
    u0 = tensor(NET["u0_1"] if name.startswith("b1/") else NET["u0_16"]).reshape(-1, 2)
    return NET["runs"][name], p, u0


@pytest.mark.parametrize("quantity", ["uT", "RE", "RE2", "RS"])
@pytest.mark.parametrize("name", NET["runs"])
def test_gradients_on_julias_steps(name: str, quantity: str) -> None:
    run, p, u0 = golden_net(name)
    value = replay(p, run, u0)[quantity]
    (gradient,) = torch.autograd.grad(value, p)
    expected = tensor(run["gradients"][quantity])
    assert float(value.detach()) == pytest.approx(run["values"][quantity], rel=GOLDEN_GRADIENT)
    assert float((gradient - expected).norm() / expected.norm()) < GOLDEN_GRADIENT


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("name", NET["runs"])
def test_solve_on_the_neural_ode(name: str, gradient: str) -> None:
    """The engine's own steps: counts exactly, values and gradients as close as `fastpower` leaves the steps."""
    run, p, u0 = golden_net(name)
    solver = regnde.Solver(rtol=run["reltol"], atol=run["abstol"], gradient=gradient, engine="torch")
    sol = regnde.solve(cubic_net(p), u0, [0.0, 1.5], solver, record="all")
    assert (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    if rounding_decides(run):
        pytest.skip("rounding sizes the steps: counts are all that two machines share, and they were compared")
    values = {
        "uT": sol.y1.square().sum(),
        "RE": regnde.ErrorPenalty()(sol),
        "RE2": regnde.SquaredErrorPenalty()(sol),
        "RS": regnde.StiffnessPenalty()(sol),
    }
    for quantity, value in values.items():
        assert float(value.detach()) == pytest.approx(run["values"][quantity], rel=GOLDEN_DT), quantity
        (slope,) = torch.autograd.grad(value, p, retain_graph=True)
        expected = tensor(run["gradients"][quantity])
        assert float((slope - expected).norm() / expected.norm()) < GOLDEN_ERROR, quantity

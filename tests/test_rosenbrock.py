"""Rosenbrock methods and the switch to them: step sequences, values, gradients, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
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
from tolerances import CANCELLED, GOLDEN_DT, GOLDEN_ERROR, GOLDEN_ESTIMATE, GOLDEN_REPLAY, GOLDEN_T, GRADIENT, ROUNDING

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from stiff import learn_kinetics, pollu  # an example is no package
from stiff import robertson as robertson_network

GOLDEN = json.loads((Path(__file__).parent / "golden" / "stiff_steps.json").read_text())
METHODS = {
    "Rosenbrock23": "rosenbrock23",
    "Rodas4": "rodas4",
    "Rodas5P": "rodas5p",
    "AutoTsit5(Rosenbrock23)": "autotsit5",
}
LONG = 1000  # accepted steps from which two rounded sequences differ in a count
RUNS = {name: run for name, run in GOLDEN["runs"].items() if run["naccept"] < LONG}
pytestmark = pytest.mark.timeout(600)  # Julia compiles its first solve; on a loaded machine that takes minutes
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

POLLU_END = [
    *(5.646255480023e-02, 1.342484130422e-01, 4.139734331099e-09, 5.523140207484e-03, 2.018977262302e-07),
    *(1.464541863494e-07, 7.784249118998e-02, 3.245075353396e-01, 7.494013383880e-03, 1.622293157302e-08),
    *(1.135863833257e-08, 2.230505975721e-03, 2.087162882799e-04, 1.396921016840e-05, 8.964884856898e-03),
    *(4.352846369330e-18, 6.899219696263e-03, 1.007803037366e-04, 1.772146513970e-06, 5.682943292316e-05),
]
POLLU_BY_CONSTANTS = [
    *(-1.954027959163e-02, 2.488734074544e-02, -6.882624046493e-10, -3.293093998058e-03, -1.970948447393e-07),
    *(-1.518961230961e-07, 2.761807864903e-02, -2.799198853646e-02, 6.235906827021e-04, 6.449361118962e-09),
    *(-6.565427607608e-09, -4.748437662178e-04, -1.965738189918e-04, -5.273392281107e-06, -4.802748349268e-03),
    *(-4.500031290966e-18, 3.913356529796e-05, -3.913356529796e-05, -3.387465767810e-06, -1.721757598903e-04),
]
"""At t = 60, by Radau of scipy at rtol 1e-12: states, and their derivative by the logarithms of the constants along
sin(1), sin(2), ..., a further state. The states are those of the test set for initial value problem solvers, too."""


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solver(method: str, **options: object) -> regnde.Solver:
    return regnde.Solver(**({"method": method, "rtol": 1e-5, "atol": 1e-7, "engine": "torch"} | options))


def golden(name: str, run: dict, engine: str) -> regnde.Solution:
    problem, method, _ = name.split("/")
    setup = GOLDEN["problems"][problem]
    chosen = solver(METHODS[method], rtol=run["reltol"], atol=run["abstol"], engine=engine)
    with torch.no_grad():
        return regnde.solve(STIFF[problem], tensor(setup["u0"]), setup["tspan"], chosen, record="all")


# --- OrdinaryDiffEq.jl, step for step --------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_counts(name: str, engine: str) -> None:
    run, sol = RUNS[name], golden(name, RUNS[name], engine)
    stats = sol.stats
    assert (stats.nfe, stats.accepted, stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    assert stats.nfactorisations == run["nw"]
    if engine == "julia" and METHODS[name.split("/")[1]].startswith("rodas"):
        assert stats.njac == run["naccept"]  # a rejected attempt leaves its Jacobian to the next one
    else:
        assert 2 * stats.njac == run["njacs"]  # Julia counts df/dt as another
    assert stats.dt_first == pytest.approx(run["dt_init"], rel=GOLDEN_REPLAY)
    torch.testing.assert_close(sol.y1, tensor(run["u_end"]), rtol=GOLDEN_T, atol=0)
    if "algorithm" in run:
        assert sol.steps.implicit.tolist()[: len(run["algorithm"])] == [x == 2 for x in run["algorithm"]]
        assert int(sol.steps.implicit.sum()) == run["implicit_steps"]


@pytest.mark.parametrize("name", RUNS)
def test_each_step_replayed(name: str, engine: str) -> None:
    """From Julia's own state, time and step size every single step gives Julia's next state and error."""
    run = RUNS[name]
    problem, method, _ = name.split("/")
    u = [tensor(GOLDEN["problems"][problem]["u0"]), *map(tensor, run["u"])]
    begin = [0.0, *run["t"]]
    for j, h in enumerate(run["dt"]):
        implicit = run.get("algorithm", [2] * len(run["dt"]))[j] == 2
        name = "rosenbrock23" if implicit and method.startswith("Auto") else METHODS[method]
        chosen = solver(name, rtol=run["reltol"], atol=run["abstol"], dt0=h, engine=engine)
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
def test_steps(name: str, engine: str) -> None:
    run = RUNS[name]
    steps = golden(name, run, engine).steps
    n = min(len(run["t"]), run["naccept"] - 1)
    torch.testing.assert_close(steps.t[:n], tensor(run["t"][:n]), rtol=GOLDEN_DT, atol=0)
    sure = tensor([1.0, *run["error"]])[:n] > 1e-8  # a size that follows from a smaller error follows from rounding
    torch.testing.assert_close(steps.dt[:n][sure], tensor(run["dt"][:n])[sure], rtol=GOLDEN_DT, atol=0)
    torch.testing.assert_close(steps.error[:n], tensor(run["error"][:n]), rtol=GOLDEN_ERROR, atol=0)


def test_a_step_that_the_end_cuts_is_halved_where_the_method_becomes_explicit() -> None:
    """As in OrdinaryDiffEq.jl, which cuts the size before it chooses the method."""

    def softening(t: Tensor, y: Tensor) -> Tensor:
        return -(1e4 * torch.exp(-5 * t) + 1) * (y - torch.cos(t))

    def steps(end: float) -> regnde.Steps:
        chosen = solver("autotsit5", rtol=1e-3, atol=1e-3)
        return regnde.solve(softening, tensor([0.0]), [0.0, end], chosen, record="all").steps

    whole = steps(3.0)
    implicit = whole.implicit.tolist()
    back = next(i for i in range(1, len(implicit)) if implicit[i - 1] and not implicit[i])
    size = float(whole.dt[back])  # half of what the control proposed
    cut = steps(float(whole.t[back - 1]) + 1.6 * size)
    assert cut.implicit.tolist()[: back + 1] == implicit[: back + 1]
    assert float(cut.dt[back]) == pytest.approx(0.8 * size, rel=ROUNDING)


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ROSENBROCK_TABLEAUX)
def test_gradients_by_frozen_differences(method: str, gradient: str, engine: str) -> None:
    """Of the end state and of each penalty, by parameters and initial state."""
    p, y0 = NET_P.clone().requires_grad_(), NET_Y0.clone().requires_grad_()
    sol = regnde.solve(
        forced_net(p),
        y0,
        [0.0, 1.0],
        solver(method, rtol=TOLERANCES[method], atol=1e-4, gradient=gradient, engine=engine),
        record="all",
    )
    check_by_frozen_differences(sol, forced_net, p, y0, lambda jacobians: jacobians)


def check_by_frozen_differences(
    sol: regnde.Solution,
    field: Callable[[Tensor], Callable[[Tensor, Tensor], Tensor]],
    p: Tensor,
    y0: Tensor,
    slope_jacobians: Callable[[Tensor], Tensor] | None,
    mass: Tensor | None = None,
) -> None:
    """Compares values and gradients of a recorded solve of `field(p)`, from t = 0, with its steps taken again.

    Args:
        sol: the solution.
        field: of a parameter.
        p: the parameter, which requires a gradient.
        y0: the initial state, which does, too.
        slope_jacobians: the derivatives of y' from those of the field; None where there are none.
        mass: the mass matrix.
    """
    frozen, at, n = FrozenRosenbrock.of(sol, 0.0, mass), torch.cat([p.detach(), y0.detach()]), len(y0)
    steps, sizes, weights = len(sol.steps), sol.steps.dt.abs(), tensor([0.7, -1.3, 0.4])[:n]

    def stiffness(jacobians: Tensor) -> Tensor:
        assert slope_jacobians is not None
        return slope_jacobians(jacobians).abs().sum(-1).amax(-1)

    end, errors, jacobians = frozen.walk(field(p.detach()), y0.detach())
    torch.testing.assert_close(sol.y1, end, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(sol.steps.error, rms(errors), rtol=CANCELLED, atol=CANCELLED)
    if slope_jacobians is not None:
        torch.testing.assert_close(sol.steps.stiffness, stiffness(jacobians), rtol=ROUNDING, atol=0)

    def walked(x: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1) for part in frozen.walk(field(x[:-n]), x[-n:])])

    # a coarser difference would cross the kinks of max(|y|, |y1|)
    base, by_all = walked(at), central_differences(walked, at, 1e-4)

    def check(value: Tensor, of_vector: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        vector = base.clone().requires_grad_()
        end, errors, jacobians = vector.split([n, n * steps, n * n * steps])
        expected = of_vector(end, errors.view(steps, n), jacobians.view(steps, n, n))
        (outer,) = torch.autograd.grad(expected, vector)
        found = torch.cat(torch.autograd.grad(value, (p, y0), retain_graph=True))
        scale = float((outer @ by_all).abs().max())
        torch.testing.assert_close(found, outer @ by_all, rtol=GRADIENT, atol=GRADIENT * scale)

    check(sol.y1 @ weights, lambda end, errors, jacobians: end @ weights)
    check(regnde.ErrorPenalty()(sol), lambda end, errors, jacobians: rms(errors) @ sizes)
    check(regnde.SquaredErrorPenalty()(sol), lambda end, errors, jacobians: rms(errors).square().sum())
    if slope_jacobians is not None:
        check(regnde.StiffnessPenalty()(sol), lambda end, errors, jacobians: stiffness(jacobians).sum())


@pytest.mark.parametrize("method", ["rodas5p", "rodas4"])
def test_robertson_by_its_rates(method: str, engine: str) -> None:
    p = tensor([0.04, 1e4, 3e7]).requires_grad_()
    chosen = solver(method, rtol=1e-6, atol=1e-9, engine=engine)
    sol = regnde.solve(robertson(p), tensor([1.0, 0, 0]), [0.0, 1e5], chosen)
    torch.testing.assert_close(sol.y1.detach(), tensor(ROBERTSON_END), rtol=1e-6, atol=0)
    found = torch.stack([torch.autograd.grad(y, p, retain_graph=True)[0] for y in sol.y1])
    torch.testing.assert_close(found, tensor(ROBERTSON_BY_RATES), rtol=GRADIENT, atol=0)


def test_pollu_by_its_constants(engine: str) -> None:
    air = pollu()
    logs = air.constants.log().requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return (logs.exp() * air.products(y)) @ air.changes.T

    sol = regnde.solve(field, air.y0, [0.0, 60.0], solver("rodas5p", rtol=1e-6, atol=1e-12, engine=engine))
    torch.testing.assert_close(sol.y1.detach(), tensor(POLLU_END), rtol=1e-6, atol=0)
    along = torch.arange(1, 26, dtype=torch.float64).sin()
    found = [float(torch.autograd.grad(y, logs, retain_graph=True)[0] @ along) for y in sol.y1]
    torch.testing.assert_close(tensor(found), tensor(POLLU_BY_CONSTANTS), rtol=GRADIENT, atol=0)


@pytest.mark.parametrize("name", ["robertson", "pollu"])
def test_the_example_learns_rates(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        learn_kinetics({"robertson": robertson_network, "pollu": pollu}[name](), 4)
    first, last = (float(x) for x in re.findall(r"mean error (\S+?)[ ;]", capsys.readouterr().out)[:2])
    assert last < 0.7 * first


# --- what a solve can do, with each method ---------------------------------------------------------

ALL = (*ROSENBROCK_TABLEAUX, "autotsit5")


def relaxing(t: Tensor, y: Tensor) -> Tensor:
    """y' = -50 (y - cos t), every entry alike."""
    return -50 * (y - torch.cos(t))


def relaxed(t: float, y0: float = 1.0) -> float:
    """Its solution from (0, y0)."""
    slow = lambda t: (2500 * math.cos(t) + 50 * math.sin(t)) / 2501  # noqa: E731
    return slow(t) + (y0 - slow(0)) * math.exp(-50 * t)


@pytest.mark.parametrize("method", ALL)
def test_values_inside_steps(method: str, engine: str) -> None:
    ts = [0.05 * i for i in range(31)]
    exact = tensor([relaxed(t) for t in ts]).unsqueeze(-1)
    sol = regnde.solve(relaxing, tensor([1.0]), ts, solver(method, engine=engine), dense=True)
    torch.testing.assert_close(sol.ys, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(sol(tensor(ts)), sol.ys, rtol=0, atol=ROUNDING)
    single = regnde.solve(
        relaxing, torch.ones(1, dtype=torch.float32), [0.0, 1.5], solver(method, rtol=1e-3, atol=1e-4, engine=engine)
    )
    torch.testing.assert_close(single.y1, exact[-1].float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_decreasing_time_and_states_of_several_parts(method: str, engine: str) -> None:
    chosen = solver(method, engine=engine)
    back = regnde.solve(lambda t, y: 20 * y, tensor([1.0]), [1.0, 0.0], chosen)
    assert float(back.y1) == pytest.approx(math.exp(-20), abs=1e-6)
    parts = {"fast": tensor([1.0, 2.0]), "slow": tensor([[1.0]])}
    both = regnde.solve(lambda t, y: {"fast": -40 * y["fast"], "slow": -y["slow"]}, parts, [0.0, 1.0], chosen)
    assert float(both.y1["slow"]) == pytest.approx(math.exp(-1), rel=1e-4)
    assert both.y1["fast"].shape == (2,)


@pytest.mark.parametrize("method", ALL)
def test_complex_states(method: str) -> None:
    a = torch.tensor([[-3 + 9j, 1], [0, -40 + 1j]], dtype=torch.complex128)
    y0 = torch.tensor([1 + 0j, 1j], dtype=torch.complex128)
    rotated = regnde.solve(lambda t, y: a @ y, y0, [0.0, 1.0], solver(method))
    torch.testing.assert_close(rotated.y1, torch.linalg.matrix_exp(a) @ y0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_stops_events_and_times_have_gradients(method: str, engine: str) -> None:
    stop, chosen = tensor([1.0]).requires_grad_(), solver(method, engine=engine)
    jumping = regnde.solve(
        lambda t, y: -y + torch.where(t >= 1, 2.0, 0.0), tensor([1.0]), [0.0, 2.0], chosen, stops=stop
    )
    (by_stop,) = torch.autograd.grad(jumping.y1.sum(), stop)
    assert float(by_stop) == pytest.approx(-2 * math.exp(-1), rel=1e-4)
    k = tensor(3.0).requires_grad_()
    event = regnde.Event(lambda t, y: y[0] - 0.5)
    halved = regnde.solve(lambda t, y: -k * y, tensor([1.0]), [0.0, 2.0], chosen, event=event)
    assert float(halved.events.t[0].detach()) == pytest.approx(math.log(2) / 3, abs=1e-4)
    (by_k,) = torch.autograd.grad(halved.events.t[0], k)
    assert float(by_k) == pytest.approx(-math.log(2) / 9, rel=1e-2)
    ts = tensor([0.0, 0.7]).requires_grad_()
    (by_ts,) = torch.autograd.grad(regnde.solve(lambda t, y: -3 * y, tensor([1.0]), ts, chosen).y1.sum(), ts)
    torch.testing.assert_close(by_ts, tensor([3.0, -3.0]) * math.exp(-2.1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ALL)
def test_transforms_second_derivatives_and_inference(method: str) -> None:
    def end(k: Tensor) -> Tensor:
        return regnde.solve(lambda t, y: -k * y * y, tensor([1.0]), [0.0, 1.0], solver(method)).y1.sum()

    k = tensor(3.0).requires_grad_()
    (first,) = torch.autograd.grad(end(k), k, create_graph=True)
    (second,) = torch.autograd.grad(first, k)
    assert (float(first.detach()), float(second)) == pytest.approx((-1 / 16, 1 / 32), abs=1e-4)
    assert float(torch.func.grad(end)(tensor(3.0))) == pytest.approx(float(first.detach()), rel=1e-9)
    with torch.inference_mode():
        assert float(end(tensor(3.0))) == pytest.approx(1 / 4, abs=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_local_records(method: str, engine: str) -> None:
    """Of the only step of a solve, whose size is the one that is given, or the heuristic's, cut at the end."""
    p, y0 = NET_P.clone().requires_grad_(), NET_Y0.clone().requires_grad_()
    for size, end, dt0 in (("solver", 0.9, 0.9), ("initial", 1e-3, None)):
        local = regnde.Local(sampling="step", step_size=size, detach_state=False)
        chosen = solver(method, engine=engine, rtol=1.0, atol=1.0, dt0=dt0)
        sols = [regnde.solve(forced_net(p), y0, [0.0, end], chosen, record=record) for record in (local, "all")]
        assert [len(sol.steps) for sol in sols] == [1, 1]
        for penalty in (regnde.ErrorPenalty(), regnde.StiffnessPenalty()):
            found, right = (penalty(sol) for sol in sols)
            assert found.item() == pytest.approx(right.item(), rel=CANCELLED)
            assert found.item() > 0
            gradients = [torch.autograd.grad(x, (p, y0), retain_graph=True) for x in (found, right)]
            torch.testing.assert_close(*gradients, rtol=CANCELLED, atol=CANCELLED)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ROSENBROCK_TABLEAUX)
def test_samples_as_if_they_were_alone(method: str, gradient: str, engine: str) -> None:
    y0 = tensor([[1.0, 0, 0], [0.5, 0, 0.5], [0.9, 1e-5, 0.1]]).requires_grad_()
    ts, options = [0.0, 1.0, 30.0], {"rtol": 1e-4, "atol": 1e-7, "gradient": gradient, "engine": engine}

    def loss(sol: regnde.Solution) -> Tensor:
        penalties = regnde.ErrorPenalty() + 1e-6 * regnde.StiffnessPenalty()
        return (1e4 * sol.ys[..., 1]).sum() + sol.ys[1].square().sum() + penalties(sol)

    together = regnde.solve(robertson(), y0, ts, solver(method, batch="per-sample", **options), record="all")
    alone = [regnde.solve(robertson(), y, ts, solver(method, **options), record="all") for y in y0]
    counts = [(sol.stats.nfe, sol.stats.accepted, sol.stats.rejected) for sol in alone]
    assert [tuple(sample) for sample in together.stats.samples] == counts
    assert together.stats.nfactorisations == sum(sol.stats.nfactorisations for sol in alone)
    (found,) = torch.autograd.grad(loss(together), y0)
    (expected,) = torch.autograd.grad(sum(loss(sol) for sol in alone), y0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("method", ROSENBROCK_TABLEAUX)
def test_samples_count_their_evaluations_at_stops_as_if_they_were_alone(method: str, engine: str) -> None:
    y0, span, stops = tensor([[1.0], [3.0]]), [0.0, 1.0], [0.3, 0.7]
    chosen = solver(method, batch="per-sample", engine=engine)
    together = regnde.solve(relaxing, y0, span, chosen, stops=stops)
    joint = dataclasses.replace(chosen, batch="joint")
    alone = [regnde.solve(relaxing, y0[i : i + 1], span, joint, stops=stops).stats for i in range(2)]
    assert together.stats.samples is not None
    assert [x.nfe for x in together.stats.samples] == [x.nfe for x in alone]


def test_one_block_for_each_sample_costs_as_many_backward_passes_as_a_sample_has_entries() -> None:
    passes: list[torch.Size] = []

    class Watched(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(y: Tensor) -> Tensor:
            return -y

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None: ...

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            passes.append(gradient.shape)
            return -gradient

    with torch.no_grad():
        one = solver("rosenbrock23", batch="per-sample", dt0=0.1, rtol=1.0, atol=1.0)
        regnde.solve(lambda t, y: Watched.apply(y), torch.ones(7, 3, dtype=torch.float64), [0.0, 0.1], one)
    assert passes == [torch.Size([7, 3])]  # vectorised: one pass, of three columns that vmap hides


# --- mass matrices ---------------------------------------------------------------------------------


def conserved(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Robertson's kinetics, where the third equation is the conservation of mass."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        rate = p[0] * a - p[1] * b * c
        return torch.stack([-rate, rate - p[2] * b * b, a + b + c - 1], -1)

    return field


DAE_MASS = torch.diag(tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_a_differential_algebraic_equation(gradient: str, engine: str) -> None:
    p = tensor([0.04, 1e4, 3e7]).requires_grad_()
    chosen = solver("rodas5p", rtol=1e-6, atol=1e-9, gradient=gradient, engine=engine)
    sol = regnde.solve(regnde.ODE(conserved(p), DAE_MASS), tensor([1.0, 0, 0]), [0.0, 1e5], chosen, record="all")
    torch.testing.assert_close(sol.y1.detach(), tensor(ROBERTSON_END), rtol=1e-6, atol=0)
    found = torch.stack([torch.autograd.grad(y, p, retain_graph=True)[0] for y in sol.y1])
    torch.testing.assert_close(found, tensor(ROBERTSON_BY_RATES), rtol=GRADIENT, atol=0)
    with pytest.raises(ValueError, match="estimates no stiffness"):
        _ = sol.steps.stiffness


MIXED_MASS = tensor([[2.0, 1.0, 0.5], [0.3, 3.0, -1.0], [2.3, 4.0, -0.5]])
"""Its third row is the sum of the others: the algebraic equation is f1 + f2 = f3."""


def constrained(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The forced net, and z with 2 z = a b + cos(t) as the algebraic equation of `MIXED_MASS`."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        a, b, z = y.unbind(-1)
        first, second = forced_net(p)(t, torch.stack([a, z], -1)).unbind(-1)
        return torch.stack([first, second, first + second - (2 * z - a * b - torch.cos(t))], -1)

    return field


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["rodas4", "rodas5p"])
def test_gradients_with_a_mass_matrix_by_frozen_differences(method: str, gradient: str, engine: str) -> None:
    chosen = solver(method, rtol=TOLERANCES[method], atol=1e-4, gradient=gradient, engine=engine)
    p, y0 = NET_P.clone().requires_grad_(), NET_Y0.clone().requires_grad_()
    mass = tensor([[2.0, 0.7], [-0.4, 1.5]])
    sol = regnde.solve(regnde.ODE(forced_net(p), mass), y0, [0.0, 1.0], chosen, record="all")
    check_by_frozen_differences(sol, forced_net, p, y0, lambda jacobians: torch.linalg.solve(mass, jacobians), mass)

    y0 = tensor([0.6, -0.4, (1 - 0.24) / 2]).requires_grad_()
    sol = regnde.solve(regnde.ODE(constrained(p), MIXED_MASS), y0, [0.0, 1.0], chosen, record="all")
    check_by_frozen_differences(sol, constrained, p, y0, None, MIXED_MASS)
    with pytest.raises(ValueError, match="estimates no stiffness"):
        _ = sol.steps.stiffness


@pytest.mark.parametrize("method", ["rodas4", "rodas5p"])
def test_what_a_solve_with_a_mass_matrix_can_do(method: str, engine: str) -> None:
    """Values inside steps, events, stops, local records, samples, decreasing time, single precision."""

    def field(t: Tensor, y: Tensor) -> Tensor:  # 2 a' = -a, and z = a^2
        a, z = y.unbind(-1)
        return torch.stack([-a, z - a * a], -1)

    dae, y0, ts = regnde.ODE(field, torch.diag(tensor([2.0, 0.0]))), tensor([1.0, 1.0]), [0.0, 0.3, 0.8, 1.5]
    chosen = solver(method, engine=engine)
    exact = torch.stack([torch.exp(-tensor(ts) / 2), torch.exp(-tensor(ts))], -1)
    sol = regnde.solve(dae, y0, ts, chosen, dense=True)
    torch.testing.assert_close(sol.ys, exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(sol(tensor(ts)), sol.ys, rtol=ROUNDING, atol=ROUNDING)
    back = regnde.solve(dae, exact[-1], [1.5, 0.0], chosen)
    torch.testing.assert_close(back.y1, y0, rtol=1e-4, atol=0)
    rows, both = torch.stack([y0, tensor([2.0, 4.0])]), dataclasses.replace(chosen, batch="per-sample")
    together = regnde.solve(dae, rows, ts, both, record="all")
    torch.testing.assert_close(together.ys[:, 1], exact * tensor([2.0, 4.0]), rtol=1e-4, atol=0)
    alone = [regnde.solve(dae, row, ts, chosen).stats for row in rows]
    assert [sample.nfe for sample in together.stats.samples or ()] == [stats.nfe for stats in alone]
    with pytest.raises(ValueError, match="estimates no stiffness"):
        _ = together.steps.stiffness
    with pytest.raises(ValueError, match="y0 does not satisfy the algebraic equations"):
        regnde.solve(dae, torch.stack([y0, tensor([2.0, 1.0])]), ts, both)

    k = tensor(1.0).requires_grad_()
    scaled = regnde.ODE(lambda t, y: k * field(t, y), dae.mass)
    event = regnde.Event(lambda t, y: y[1] - 0.5)
    halved = regnde.solve(scaled, y0, [0.0, 2.0], chosen, event=event)
    assert float(halved.events.t[0].detach()) == pytest.approx(math.log(2), abs=1e-4)
    (by_k,) = torch.autograd.grad(halved.events.t[0], k)
    assert float(by_k) == pytest.approx(-math.log(2), rel=1e-2)
    single = regnde.ODE(field, dae.mass.float())
    coarse = dataclasses.replace(chosen, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(regnde.solve(single, y0.float(), ts, coarse).ys, exact.float(), rtol=1e-2, atol=0)

    for size, end, dt0 in (("solver", 0.9, 0.9), ("initial", 1e-7, None)):
        local = regnde.Local(sampling="step", step_size=size, detach_state=False)
        loose = dataclasses.replace(chosen, rtol=1.0, atol=1.0, dt0=dt0)
        sols = [regnde.solve(scaled, y0, [0.0, end], loose, record=record) for record in (local, "all")]
        assert [len(sol.steps) for sol in sols] == [1, 1]
        found, right = (regnde.ErrorPenalty()(sol) for sol in sols)
        assert found.item() == pytest.approx(right.item(), rel=CANCELLED)
        gradients = [torch.autograd.grad(x, k, retain_graph=True) for x in (found, right)]
        torch.testing.assert_close(*gradients, rtol=CANCELLED, atol=CANCELLED)


@pytest.mark.usefixtures("julia")
def test_both_engines_take_the_same_steps_with_a_mass_matrix() -> None:
    """Up to the powers that OrdinaryDiffEq.jl approximates in its step size control."""
    for field, mass, y0, dt0 in (
        (forced_net(NET_P), tensor([[2.0, 0.7], [-0.4, 1.5]]), NET_Y0, None),
        # the error of the default first step is rounding, from which the next size would follow
        (constrained(NET_P), MIXED_MASS, tensor([0.6, -0.4, (1 - 0.24) / 2]), 1e-2),
        (conserved(tensor([0.04, 1e4, 3e7])), DAE_MASS, tensor([1.0, 0, 0]), 1e-4),
    ):
        equation, chosen = regnde.ODE(field, mass), solver("rodas5p", dt0=dt0)
        sols = [
            regnde.solve(equation, y0, [0.0, 1.0], dataclasses.replace(chosen, engine=engine), record="all")
            for engine in ("torch", "julia")
        ]
        counts = [(sol.stats.nfe, sol.stats.accepted, sol.stats.rejected, sol.stats.nfactorisations) for sol in sols]
        assert counts[0] == counts[1]
        one, other = (sol.steps for sol in sols)
        torch.testing.assert_close(one.t, other.t, rtol=GOLDEN_T, atol=0)
        torch.testing.assert_close(one.dt, other.dt, rtol=GOLDEN_DT, atol=0)
        torch.testing.assert_close(one.error, other.error, rtol=GOLDEN_ERROR, atol=0)


def test_a_mass_matrix_with_an_inverse_is_that_inverse(engine: str) -> None:
    a, m = tensor([[-100.0, 3], [1, -2]]), tensor([[2.0, 1], [0.5, 3]])
    y0 = tensor([[1.0, 2], [0.3, -1]])

    def field(t: Tensor, y: Tensor) -> Tensor:
        return y @ a.T + torch.cos(t)

    def solved(t: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.solve(m, field(t, y).unsqueeze(-1)).squeeze(-1)

    for method in ("rodas4", "rodas5p"):
        chosen = solver(method, engine=engine)
        one = regnde.solve(regnde.ODE(field, m), y0[0], [0.0, 1.0], chosen, record="all")
        other = regnde.solve(solved, y0[0], [0.0, 1.0], chosen, record="all")
        assert one.stats == other.stats
        torch.testing.assert_close(one.y1, other.y1, rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(one.steps.stiffness, other.steps.stiffness, rtol=ROUNDING, atol=0)
        both = regnde.solve(regnde.ODE(field, m), y0, [0.0, 1.0], dataclasses.replace(chosen, batch="per-sample"))
        torch.testing.assert_close(both.y1[0], one.y1, rtol=CANCELLED, atol=CANCELLED)


# --- refusals --------------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    """The slope -y, with a first derivative only."""

    @staticmethod
    def forward(ctx: object, y: Tensor) -> Tensor:
        return -y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


def test_what_is_refused() -> None:
    y0, span = tensor([1.0]), [0.0, 1.0]
    for field in (
        torch.no_grad()(lambda t, y: -y * y),
        lambda t, y: torch.from_numpy(-y.detach().numpy()),
    ):
        with pytest.raises(regnde.UnsupportedField, match="the field leaves torch"):
            regnde.solve(field, y0, span, solver("rodas5p"))

    regnde.solve(lambda t, y: Once.apply(y), y0, span, solver("rodas5p"))  # a solve needs one derivative
    with pytest.raises(ValueError, match="steps that are not compiled"):
        regnde.solve(relaxing, y0, span, solver("rodas4", compile=True))
    with pytest.raises(ValueError, match="'autotsit5' chooses one method for one system"):
        regnde.solve(relaxing, torch.ones(2, 1), span, solver("autotsit5", batch="per-sample"))
    regnde.solve(lambda t, y: torch.cos(t).reshape(1), y0, span, solver("rodas5p"))  # no state: that is no fault


def test_which_differential_algebraic_equations_are_refused(engine: str) -> None:
    p, start = tensor([0.04, 1e4, 3e7]), tensor([1.0, 0, 0.1])
    dae = regnde.ODE(conserved(p), DAE_MASS)
    with pytest.raises(ValueError, match=r"y0 does not satisfy the algebraic equations: they ask for a change by 0\.1"):
        regnde.solve(dae, start, [0.0, 1.0], solver("rodas5p", engine=engine))
    higher = regnde.ODE(lambda t, y: torch.stack([y[1], y[0] - torch.sin(t)]), DAE_MASS[1:, 1:])
    with pytest.raises(ValueError, match="an index above 1"):
        regnde.solve(higher, tensor([0.0, 1.0]), [0.0, 1.0], solver("rodas5p", engine=engine))
    for method in ("tsit5", "rosenbrock23", "autotsit5"):
        with pytest.raises(ValueError, match=f"is solved by 'rodas5p' or 'rodas4', not '{method}'"):
            regnde.solve(dae, start, [0.0, 1.0], solver(method, engine=engine))
    with pytest.raises(ValueError, match="give a square matrix"):
        regnde.ODE(conserved(p), DAE_MASS[:2])
    with pytest.raises(
        ValueError, match=r"the state has 3 entries of torch.float64: give a real matrix of shape \(3, 3\)"
    ):
        regnde.solve(regnde.ODE(conserved(p), torch.eye(2)), start, [0.0, 1.0], solver("rodas5p", engine=engine))
    times = tensor([0.0, 1.0]).requires_grad_()
    with pytest.raises(ValueError, match="gives no gradient with respect to the times"):
        regnde.solve(dae, tensor([1.0, 0, 0]), times, solver("rodas5p", engine=engine))


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_a_stop_of_a_differential_algebraic_equation_may_not_move_its_algebraic_variables(batch: str) -> None:
    """Interpolation in the step behind it would begin at a state that is none of the equation's."""

    def jumping(of_a: float, of_z: float) -> regnde.ODE:
        def field(t: Tensor, y: Tensor) -> Tensor:  # a' = -a, z = a, after t = 1 with jumps
            a, z = y[..., :1], y[..., 1:]
            late = (t >= 1).to(y)
            return torch.cat([of_a * late - a, z - a - of_z * late], -1)

        return regnde.ODE(field, DAE_MASS[1:, 1:])

    y0, chosen = tensor([1.0, 1.0]), solver("rodas5p", batch=batch)
    y0 = y0 if batch == "joint" else torch.stack([y0, 2 * y0])
    end = regnde.solve(jumping(1.0, 0.0), y0, [0.0, 2.0], chosen, stops=[1.0]).y1
    expected = (y0 * math.exp(-1)) * math.exp(-1) + 1 - math.exp(-1)
    torch.testing.assert_close(end, expected, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="the algebraic equations jump at the stop t=1: behind it they ask for"):
        regnde.solve(jumping(0.0, 1.0), y0, [0.0, 2.0], chosen, stops=[1.0])


def test_failures_are_named(engine: str) -> None:
    chosen = solver("rodas5p", engine=engine)
    with pytest.raises(regnde.NonFiniteDynamics, match="the dynamics are not finite"):
        regnde.solve(lambda t, y: torch.where(t > 0.5, torch.nan, -y), tensor([1.0]), [0.0, 1.0], chosen)
    reason = r"stiffness \d" if engine == "torch" else "20 steps did not reach"
    with pytest.raises(regnde.MaxStepsReached, match=reason):
        regnde.solve(robertson(), tensor([1.0, 0, 0]), [0.0, 1e5], dataclasses.replace(chosen, max_steps=20))


@pytest.mark.usefixtures("julia")
def test_events_of_samples_whose_method_changes() -> None:
    """On the Julia engine alone: each sample as if it were solved alone, in steps of both methods."""
    rates = tensor([2.0, 2e3])

    def field(t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        return -rates[samples].unsqueeze(-1) * (y - torch.cos(t))

    y0, span, chosen = tensor([[1.0], [1.0]]), [0.0, 2.0], solver("autotsit5", rtol=1e-4, atol=1e-6, engine="julia")
    event = regnde.Event(lambda t, y: y[..., 0] - 0.2, terminal=False)
    both = dataclasses.replace(chosen, batch="per-sample")
    together = regnde.solve(field, y0, span, both, event=event, record="all")
    assert together.steps.implicit.any(0).tolist() == [False, True]
    for i in range(2):
        one = regnde.solve(lambda t, y, i=i: field(t, y, torch.tensor([i]))[0], y0[i], span, chosen, event=event)
        mine = together.events.sample == i
        assert len(one.events.t) == int(mine.sum()) == 1
        torch.testing.assert_close(together.events.t[mine], one.events.t, rtol=ROUNDING, atol=0)
        torch.testing.assert_close(together.events.y[mine], one.events.y, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.usefixtures("julia")
def test_what_the_julia_engine_refuses() -> None:
    y0, span, chosen = tensor([1.0]).requires_grad_(), [0.0, 1.0], solver("rodas5p", engine="julia")
    with pytest.raises(ValueError, match="with respect to a mass matrix runs on the torch engine"):
        regnde.solve(regnde.ODE(relaxing, tensor([[2.0]]).requires_grad_()), y0, span, chosen)
    with pytest.raises(ValueError, match="stops of a differential-algebraic equation run on the torch engine"):
        regnde.solve(regnde.ODE(conserved(NET_P), DAE_MASS), tensor([1.0, 0, 0]), span, chosen, stops=[0.5])
    with pytest.raises(ValueError, match="derivatives that a JuliaField does not have"):
        regnde.solve(regnde.JuliaField("(t, y) -> -y", ()), y0, span, solver("rodas5p", engine="julia"))

    class Detached(Once):
        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return -gradient.detach()

    for function, reason in ((Once, "once_differentiable"), (Detached, "which detaches it")):
        with pytest.raises(regnde.UnsupportedField, match=reason):
            regnde.solve(lambda t, y, f=function: f.apply(y), y0, span, solver("rodas5p", engine="julia"))
    with pytest.warns(UserWarning, match="the derivative of the field by the state"):
        regnde.solve(lambda t, y: -y * y.detach(), y0, span, solver("rodas5p", engine="julia"))


def test_coefficients_that_are_wrong_are_refused() -> None:
    good = ROSENBROCK_TABLEAUX["rodas4"]
    for change, reason in (
        ({"b": (1.3, *good.b[1:])}, "a condition of order 1"),
        ({"gamma": 0.26}, "row sums to"),
        ({"c": (0.0, 0.387, *good.c[2:])}, r"c\[1\] is 0.387, but its row sums to"),
        ({"btilde": (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)}, "btilde misses a condition"),
        ({"dense": good.dense[::-1]}, "dense at theta = 1 is not b"),
    ):
        with pytest.raises(ValueError, match=reason):
            dataclasses.replace(good, **change)

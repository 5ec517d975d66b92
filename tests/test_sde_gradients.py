"""Gradients of SDE solves against central differences, with the steps and the path frozen."""

from __future__ import annotations

import pytest
import torch

import regnde
from frozen import central_differences, relative
from frozen_sde import FrozenSDE
from problems import SMALL_SDE_P, SMALL_Y0, seeded, small_net, small_sde
from regnde import SDE, BrownianPath, ErrorPenalty, Local, Penalty, Solver, SquaredErrorPenalty, StiffnessPenalty
from tolerances import GRADIENT, ROUNDING

END = 0.5
STRIDE = 3e-4  # of the central differences
TS = [0.0, 0.13, 0.3, END]
GRADIENTS = ("discrete", "checkpoint")
PENALTIES = {
    "error": ErrorPenalty(),
    "error-max": ErrorPenalty("max"),
    "squared-mean": SquaredErrorPenalty("mean"),
    "stiffness": StiffnessPenalty(),
    "stiffness-max": StiffnessPenalty("max"),
}
METHODS = ("sosri", "sosri2", "sriw1", "sosra")


def equation(method: str, p: torch.Tensor) -> SDE:
    """A small one that the method is for."""
    if method == "sosra":
        return SDE(small_net(p[:6]), lambda t, y: torch.sin(p[6:8] + t * p[8:]).expand_as(y))
    return small_sde(p)


def path() -> BrownianPath:
    return BrownianPath(0.0, END, SMALL_Y0.shape, seed=1)


def solver(method: str, gradient: str = "discrete") -> Solver:
    if method == "em":
        return Solver(method="em", dt0=0.04, gradient=gradient, engine="torch")
    tolerance = 0.15 if method == "sriw1" else 0.6
    return Solver(method=method, rtol=tolerance, atol=tolerance, gradient=gradient, engine="torch")


def as_solution(base: regnde.Solution, error: torch.Tensor, stiffness: torch.Tensor) -> regnde.Solution:
    """A solution with replayed records, so that penalties are applied by their own code."""
    steps = regnde.Steps(
        t=base.steps.t, dt=base.steps.dt, error=error, stiffness=stiffness, method="replay", stability_size=None
    )
    return regnde.Solution(base.ts, base.ys, base.stats, steps, base.engine, base.solver)


def penalties_of(method: str) -> list[str]:
    return [name for name in PENALTIES if method == "sosri2" or "stiffness" not in name]


@pytest.mark.parametrize(("method", "penalty"), [(m, p) for m in METHODS for p in penalties_of(m)])
def test_case_20c_penalty_of_all_steps(method: str, penalty: str) -> None:
    p = SMALL_SDE_P.clone().requires_grad_()
    y0 = SMALL_Y0.clone().requires_grad_()
    base, again = (
        regnde.solve(equation(method, p), y0, [0.0, END], solver(method, g), record="all", noise=path())
        for g in GRADIENTS
    )
    frozen = FrozenSDE.of(base, path())

    def value(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        return PENALTIES[penalty](as_solution(base, *frozen.walk(equation(method, p), y0)[1:]))

    torch.testing.assert_close(PENALTIES[penalty](base), value(p, y0), rtol=ROUNDING, atol=0)
    by_p = central_differences(lambda q: value(q, SMALL_Y0), SMALL_SDE_P, STRIDE)
    by_y0 = central_differences(lambda x: value(SMALL_SDE_P, x), SMALL_Y0, STRIDE)
    for sol in (base, again):
        of_p, of_y0 = torch.autograd.grad(PENALTIES[penalty](sol), [p, y0])
        assert relative(of_p, by_p) < GRADIENT
        assert relative(of_y0, by_y0) < GRADIENT


@pytest.mark.parametrize("method", [*METHODS, "em"])
def test_case_20c_trajectory(method: str) -> None:
    """States at save times inside the steps."""
    p = SMALL_SDE_P.clone().requires_grad_()
    y0 = SMALL_Y0.clone().requires_grad_()
    base, again = (
        regnde.solve(equation(method, p), y0, TS, chosen, record="all", noise=path())
        for chosen in (solver(method, g) for g in GRADIENTS)
    )
    frozen = FrozenSDE.of(base, path())
    weights = torch.randn(base.ys.shape, generator=seeded(1), dtype=torch.float64)

    def value(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        return (frozen.states(equation(method, p), y0, TS) * weights).sum()

    torch.testing.assert_close((base.ys * weights).sum(), value(p, y0), rtol=ROUNDING, atol=ROUNDING)
    by_p = central_differences(lambda q: value(q, SMALL_Y0), SMALL_SDE_P, STRIDE)
    by_y0 = central_differences(lambda x: value(SMALL_SDE_P, x), SMALL_Y0, STRIDE)
    for sol in (base, again):
        of_p, of_y0 = torch.autograd.grad((sol.ys * weights).sum(), [p, y0])
        assert relative(of_p, by_p) < GRADIENT
        assert relative(of_y0, by_y0) < GRADIENT


@pytest.mark.parametrize("penalty", [ErrorPenalty(), StiffnessPenalty()], ids=repr)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("step_size", ["solver", "initial"])
@pytest.mark.parametrize("sampling", ["time", "step"])
def test_penalty_of_one_local_step(sampling: str, step_size: str, detach: bool, penalty: Penalty) -> None:
    """The local step sees increments of its own, from a second path of the same seed."""
    p = SMALL_SDE_P.clone().requires_grad_()
    y0 = SMALL_Y0.clone().requires_grad_()
    chosen = solver("sosri2")
    local = Local(sampling=sampling, step_size=step_size, detach_state=detach, seed=3)
    base, again = (
        regnde.solve(small_sde(p), y0, [0.0, END], solver("sosri2", g), record=local, noise=path()) for g in GRADIENTS
    )
    assert len(base.steps) == 1
    everything = regnde.solve(small_sde(SMALL_SDE_P), SMALL_Y0, [0.0, END], chosen, record="all", noise=path())
    frozen = FrozenSDE.of(everything, path())
    end, h = float(base.steps.t), float(base.steps.dt)
    t = end - h
    dw, area = path().independent().increment(t, end)
    one = FrozenSDE(frozen.tableau, [t, end], [h], [dw], [area], frozen.rtol, frozen.atol)
    state = frozen.states(small_sde(SMALL_SDE_P), SMALL_Y0, [t])[0]

    def value(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        y = state if detach else frozen.states(small_sde(p), y0, [t])[0]
        return penalty(as_solution(base, *one.walk(small_sde(p), y)[1:]))

    torch.testing.assert_close(penalty(base), value(p, y0), rtol=1e-9, atol=0)
    by_p = central_differences(lambda q: value(q, SMALL_Y0), SMALL_SDE_P, STRIDE)
    by_y0 = central_differences(lambda x: value(SMALL_SDE_P, x), SMALL_Y0, STRIDE)
    for sol in (base, again):
        of_p, of_y0 = torch.autograd.grad(penalty(sol), [p, y0], allow_unused=True)
        assert relative(of_p, by_p) < GRADIENT
        if detach:
            assert of_y0 is None or not of_y0.any()
        else:
            assert relative(of_y0, by_y0) < GRADIENT


def test_local_noise_is_not_the_trajectorys() -> None:
    """Nor does the local record change the trajectory."""
    plain = regnde.solve(small_sde(SMALL_SDE_P), SMALL_Y0, [0.0, END], solver("sosri"), record="all", noise=path())
    sol = regnde.solve(
        small_sde(SMALL_SDE_P),
        SMALL_Y0,
        [0.0, END],
        solver("sosri"),
        record=Local(sampling="step", seed=0),
        noise=path(),
    )
    assert torch.equal(sol.y1, plain.y1)
    at = plain.steps.t.tolist().index(float(sol.steps.t))
    assert float(sol.steps.dt) == float(plain.steps.dt[at])
    assert float(sol.steps.error) != float(plain.steps.error[at])
    assert sol.stats.nfe == plain.stats.nfe + 4
    assert sol.stats.nfe_diffusion == plain.stats.nfe_diffusion + 4


@pytest.mark.parametrize("penalty", [ErrorPenalty(), StiffnessPenalty()], ids=repr)
def test_frozen_first_stage_means_nothing_to_methods_without_one(penalty: Penalty) -> None:
    gradients = []
    for freeze in (False, True):
        p = SMALL_SDE_P.clone().requires_grad_()
        local = Local(step_size="initial", freeze_first_stage=freeze, seed=0)
        sol = regnde.solve(small_sde(p), SMALL_Y0, [0.0, END], solver("sosri2"), record=local, noise=path())
        gradients.append(torch.autograd.grad(penalty(sol), p)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("method", [*METHODS, "em"])
def test_checkpoint_has_the_same_numbers(method: str) -> None:
    outcomes = []
    for gradient in GRADIENTS:
        p = SMALL_SDE_P.clone().requires_grad_()
        sol = regnde.solve(equation(method, p), SMALL_Y0, TS, solver(method, gradient), record="all", noise=path())
        loss = sol.ys.square().sum()
        if method != "em":
            loss = loss + ErrorPenalty()(sol)
        outcomes.append((loss.detach(), *torch.autograd.grad(loss, p), sol.stats))
    assert outcomes[0][2] == outcomes[1][2]
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=0, atol=0)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=ROUNDING, atol=0)


def test_second_derivatives() -> None:
    p = SMALL_SDE_P.clone().requires_grad_()
    base = regnde.solve(small_sde(p), SMALL_Y0, [0.0, END], solver("sosri"), record="all", noise=path())
    frozen = FrozenSDE.of(base, path())
    (first,) = torch.autograd.grad(ErrorPenalty()(base), p, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), p)

    def summed_slope(q: torch.Tensor) -> torch.Tensor:
        q = q.clone().requires_grad_()
        total = ErrorPenalty()(as_solution(base, *frozen.walk(small_sde(q), SMALL_Y0)[1:]))
        return torch.autograd.grad(total, q)[0].sum()

    assert relative(second, central_differences(summed_slope, SMALL_SDE_P, STRIDE)) < GRADIENT

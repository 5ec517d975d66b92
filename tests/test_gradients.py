"""Gradients of outputs and penalties against central differences with the step sequence frozen."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import regnde
from frozen import Frozen, central_differences, estimates, gradient_of_norms, relative
from problems import SMALL_P, SMALL_Y0, seeded, small_net
from regnde import ErrorPenalty, Local, SquaredErrorPenalty, StiffnessPenalty
from tolerances import GRADIENT, ROUNDING, SOLVER

SPAN = [0.0, 1.5]
REDUCTIONS = ("sum", "mean", "max")
PENALTIES = {
    **{f"error-{r}": ErrorPenalty(r) for r in REDUCTIONS},
    **{f"squared-{r}": SquaredErrorPenalty(r) for r in REDUCTIONS},
    **{f"stiffness-{r}": StiffnessPenalty(r) for r in REDUCTIONS},
    "mixed": 0.3 * ErrorPenalty() + StiffnessPenalty("mean") * 2,
}


def solver(method: str = "tsit5", gradient: str = "discrete", tolerance: float = 1e-4) -> regnde.Solver:
    return regnde.Solver(method=method, rtol=tolerance, atol=tolerance, gradient=gradient, engine="torch")


def applied(penalty: regnde.Penalty, base: regnde.Solution, pieces: torch.Tensor) -> torch.Tensor:
    """The penalty, by its own code, of replayed records."""
    error, stiffness = estimates(pieces)
    steps = regnde.Steps(
        t=base.steps.t, dt=base.steps.dt, error=error, stiffness=stiffness, method="replay", stability_size=None
    )
    return penalty(regnde.Solution(base.ts, base.ys, base.stats, steps, base.engine, base.solver))


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "dp5", "vern7", "bs3", "heun"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalty_of_all_steps(penalty: str, method: str, gradient: str) -> None:
    p = SMALL_P.clone().requires_grad_()
    y0 = SMALL_Y0.clone().requires_grad_()
    base = regnde.solve(small_net(p), y0, SPAN, solver(method, gradient), record="all")
    regulariser = PENALTIES[penalty]
    if method == "bs3" and ("stiffness" in penalty or penalty == "mixed"):
        with pytest.raises(ValueError, match="'bs3' estimates no stiffness"):
            regulariser(base)
        return
    frozen = Frozen.of(base, SPAN[0])
    total = regulariser(base)
    torch.testing.assert_close(total, applied(regulariser, base, frozen.walk(small_net(p), y0)[1]), rtol=1e-9, atol=0)
    for got, at, pieces in zip(
        torch.autograd.grad(total, [p, y0]),
        (SMALL_P, SMALL_Y0),
        (lambda q: frozen.walk(small_net(q), SMALL_Y0)[1], lambda x: frozen.walk(small_net(SMALL_P), x)[1]),
        strict=True,
    ):
        assert relative(got, gradient_of_norms(lambda v: applied(regulariser, base, v), pieces, at)) < GRADIENT


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("penalty", [ErrorPenalty(), SquaredErrorPenalty(), StiffnessPenalty()], ids=repr)
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("step_size", ["solver", "initial"])
@pytest.mark.parametrize("sampling", ["time", "step"])
def test_penalty_of_one_local_step(
    sampling: str, step_size: str, detach: bool, freeze: bool, penalty: regnde.Penalty, gradient: str
) -> None:
    p = SMALL_P.clone().requires_grad_()
    y0 = SMALL_Y0.clone().requires_grad_()
    local = Local(sampling=sampling, step_size=step_size, detach_state=detach, freeze_first_stage=freeze, seed=3)
    chosen = solver(gradient=gradient, tolerance=1e-4 if step_size == "solver" else 1e-1)
    base = regnde.solve(small_net(p), y0, SPAN, chosen, record=local)
    frozen = Frozen.of(regnde.solve(small_net(SMALL_P), SMALL_Y0, SPAN, chosen, record="all"), SPAN[0])
    t, h = float(base.steps.t - base.steps.dt), float(base.steps.dt)
    state = frozen.state(small_net(SMALL_P), SMALL_Y0, t)
    first = small_net(SMALL_P)(torch.tensor(t, dtype=torch.float64), state)

    def pieces(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        y = state if detach else frozen.state(small_net(p), y0, t)
        return frozen.one(small_net(p), t, h, y, first if freeze else None)[1][None]

    total = penalty(base)
    torch.testing.assert_close(total, applied(penalty, base, pieces(p, y0)), rtol=1e-7, atol=1e-14)
    of_p, of_y0 = torch.autograd.grad(total, [p, y0], allow_unused=True)

    def expected(at: torch.Tensor, pieces: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return gradient_of_norms(lambda v: applied(penalty, base, v), pieces, at)

    assert relative(of_p, expected(SMALL_P, lambda q: pieces(q, SMALL_Y0))) < GRADIENT
    if detach:
        assert of_y0 is None or not of_y0.any()
    else:
        assert relative(of_y0, expected(SMALL_Y0, lambda x: pieces(SMALL_P, x))) < GRADIENT


def test_frozen_first_stage_gives_a_huge_misdirected_gradient() -> None:
    """methods.md B-1: with k_1 a constant the weights no longer sum to zero, and the gradient is of order dt."""
    gradients = {}
    for freeze in (False, True):
        p = SMALL_P.clone().requires_grad_()
        local = Local(step_size="initial", freeze_first_stage=freeze, seed=0)
        sol = regnde.solve(small_net(p), SMALL_Y0, SPAN, solver(tolerance=1e-8), record=local)
        (gradients[freeze],) = torch.autograd.grad(ErrorPenalty()(sol), p)
    ratio = gradients[True].norm() / gradients[False].norm()
    cosine = torch.cosine_similarity(gradients[True], gradients[False], dim=0)
    assert ratio > 1e3
    assert abs(cosine) < 0.9


@pytest.mark.parametrize("method", ["tsit5", "dp5", "bs3", "heun", "vern7"])
def test_a_frozen_first_stage_keeps_its_value(method: str) -> None:
    """Only the gradient changes, also where the field hands out a buffer of its own."""
    buffer = torch.empty(1, dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    for field in (lambda t, y: -y * torch.cos(t), lambda t, y: torch.mul(y, -torch.cos(t), out=buffer)):
        found = []
        for freeze in (False, True):
            local = Local(seed=4, freeze_first_stage=freeze)
            with torch.no_grad():
                steps = regnde.solve(field, y0, SPAN, solver(method), record=local).steps
            found.append((steps.t, steps.dt, steps.error))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize(("middle", "end"), [(0.0, 1.0), (-2.0, -1.0)], ids=["y1 = y", "y1 = -y"])
def test_where_both_states_are_as_large_the_error_follows_the_new_one(
    middle: float, end: float, gradient: str, batch: str
) -> None:
    """E = |h (k_1 - k_2) / 2| / (atol + rtol max(|y|, |y1|)) of Heun's method: at |y| = |y1| one side must be taken.

    A maximum would halve the gradient. The Julia engine takes |y1| too.
    """
    heun = regnde.Tableau("heun_euler", 2, a=[[], [1]], b=["1/2", "1/2"], btilde=["1/2", "-1/2"])
    chosen = regnde.Solver(method=heun, rtol=3.0, atol=7.0, dt0=1.0, gradient=gradient, batch=batch, engine="torch")
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    sol = regnde.solve(lambda t, y: p + middle + 1 - 2 * t + 0 * y, y0, [0.0, 1.0], chosen, record="all")
    assert sol.y1.item() == end
    error = sol.steps.error
    assert error.item() == pytest.approx(1 / 10, rel=ROUNDING)
    of_p, of_y0 = torch.autograd.grad(error.sum(), [p, y0])
    expected = -3.0 / 100 * end  # dE/d|y1| is -rtol E / 10, d|y1| is the sign of y1 by each of p and y0
    assert of_p.item() == pytest.approx(expected, rel=ROUNDING)
    assert of_y0.item() == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "dp5", "bs3", "vern7", "euler", "midpoint", "rk4"])
def test_outputs_between_steps(method: str, gradient: str) -> None:
    """Interior save points, both directions of time: gradients of the interpolated states."""
    for ts in ([0.0, 0.31, 0.32, 1.1, 1.5], [1.5, 0.7, 0.0]):
        fixed = regnde.Solver(method=method, dt0=0.25, gradient=gradient, engine="torch")
        adaptive = solver(method, gradient)
        chosen = fixed if method in ("euler", "midpoint", "rk4") else adaptive
        p = SMALL_P.clone().requires_grad_()
        sol = regnde.solve(small_net(p), SMALL_Y0, ts, chosen, record="none")
        weights = torch.randn(sol.ys.shape, generator=seeded(1), dtype=torch.float64)
        (of_p,) = torch.autograd.grad((sol.ys * weights).sum(), p)
        steps = recorded_steps(method, chosen, ts)

        def value(q: torch.Tensor, steps: Frozen = steps, ts: list[float] = ts, w: torch.Tensor = weights):
            return sum((steps.state(small_net(q), SMALL_Y0, t) * w[i]).sum() for i, t in enumerate(ts))

        torch.testing.assert_close(value(p), (sol.ys * weights).sum(), rtol=1e-9, atol=1e-12)
        assert relative(of_p, central_differences(value, SMALL_P)) < GRADIENT


def recorded_steps(method: str, chosen: regnde.Solver, ts: list[float]) -> Frozen:
    sol = regnde.solve(small_net(SMALL_P), SMALL_Y0, ts, chosen, record="all")
    return Frozen.of(sol, ts[0])


def test_checkpoint_has_the_same_numbers() -> None:
    outcomes = []
    for gradient in ("discrete", "checkpoint"):
        p = SMALL_P.clone().requires_grad_()
        sol = regnde.solve(small_net(p), SMALL_Y0, [0.0, 0.4, 1.5], solver(gradient=gradient), record="all")
        loss = sol.ys.square().sum() + ErrorPenalty()(sol) + 0.1 * StiffnessPenalty("max")(sol)
        outcomes.append((loss.detach(), *torch.autograd.grad(loss, p), sol.stats))
    assert outcomes[0][2] == outcomes[1][2]
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=0, atol=0)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=ROUNDING, atol=0)


def saved_bytes(gradient: str, steps: int) -> int:
    """Bytes that autograd keeps for the backward pass of a solve with so many steps."""
    layer = torch.nn.Sequential(torch.nn.Linear(4, 256), torch.nn.Tanh(), torch.nn.Linear(256, 4)).double()
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    y0 = torch.ones(32, 4, dtype=torch.float64)
    chosen = regnde.Solver(method="rk4", dt0=1 / steps, gradient=gradient, engine="torch")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sol = regnde.solve(lambda t, y: layer(y), y0, [0.0, 1.0], chosen)
    assert sol.stats.accepted == steps
    return sum(kept.values())


def test_checkpoint_keeps_states_only() -> None:
    """What a further step adds to the memory: with "checkpoint" at most its state and first stage."""
    state = 32 * 4 * 8
    growth = {g: (saved_bytes(g, 40) - saved_bytes(g, 20)) / 20 for g in ("discrete", "checkpoint")}
    assert growth["checkpoint"] <= 2.5 * state
    assert growth["discrete"] > 10 * growth["checkpoint"]


def test_gradcheck_of_everything() -> None:
    """torch's own gradcheck, with few steps of fixed size, of states and of the local record's error."""

    def run(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        chosen = regnde.Solver(method="rk4", dt0=0.3, engine="torch")
        return regnde.solve(small_net(p), y0, [0.0, 0.5, 1.0], chosen).ys

    assert torch.autograd.gradcheck(run, (SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()))


def test_case_15a_gradients_of_save_times() -> None:
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    sol = regnde.solve(lambda t, y: -t * y, torch.ones(1, dtype=torch.float64), ts, solver(tolerance=1e-9))
    (slope,) = torch.autograd.grad(sol.ys.sum(), ts)
    expected = torch.tensor([0.0, -0.5 * math.exp(-0.125), -math.exp(-0.5)], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=0, atol=SOLVER * 1e-9)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_case_15b_gradient_of_the_start_time(gradient: str) -> None:
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    sol = regnde.solve(lambda t, y: -y, torch.ones(1, dtype=torch.float64), ts, solver("tsit5", gradient, 1e-9))
    (slope,) = torch.autograd.grad(sol.ys.sum(), ts)
    assert float(slope[0]) == pytest.approx(math.exp(-0.5) + math.exp(-1), abs=SOLVER * 1e-9)


def test_case_15c_second_derivatives() -> None:
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y = regnde.solve(lambda t, y: w * y, torch.ones((), dtype=torch.float64), [0.0, 1.0], solver(tolerance=1e-9)).y1
    (first,) = torch.autograd.grad(y, w, create_graph=True)
    (second,) = torch.autograd.grad(first, w)
    for value in (y, first, second):
        assert float(value.detach()) == pytest.approx(math.exp(2), rel=SOLVER * 1e-9)


def test_second_derivatives_of_a_penalty() -> None:
    p = SMALL_P.clone().requires_grad_()
    base = regnde.solve(small_net(p), SMALL_Y0, SPAN, solver(), record="all")
    frozen = Frozen.of(base, 0.0)
    (first,) = torch.autograd.grad(ErrorPenalty()(base), p, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), p)

    def slope(q: torch.Tensor) -> torch.Tensor:
        q = q.clone().requires_grad_()
        value = applied(ErrorPenalty(), base, frozen.walk(small_net(q), SMALL_Y0)[1])
        return torch.autograd.grad(value, q)[0].sum()

    assert relative(second, central_differences(slope, SMALL_P)) < GRADIENT

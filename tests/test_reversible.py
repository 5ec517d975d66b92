"""The reversible Heun method: orders, its inverse, and the gradient that keeps no states."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

import regnde
from frozen import central_differences, relative
from frozen_sde import drive
from problems import seeded
from regnde import SDE, BrownianPath, Solver
from regnde.nn import MLP
from test_sde_kinds import END, ONE, SAMPLES, STRIDE, Y0, P, f64, path_for, slope, small, strong_errors
from tolerances import CANCELLED, GRADIENT, ORDER, ROUNDING

NOISES = ("diagonal", "scalar", "additive", "general")
GRADIENTS = ("discrete", "checkpoint", "reversible")


def solver(gradient: str = "discrete", dt0: float = 0.06) -> Solver:
    return Solver(method="reversible_heun", dt0=dt0, gradient=gradient, engine="torch")


def replayed(sde: SDE, y: torch.Tensor, path: BrownianPath, dt: float) -> torch.Tensor:
    """The end state by the formulas of Kidger et al. (2021), and the way back from it to the initial state."""
    count = round(END / dt + 0.5)
    ends = [*(i * dt for i in range(count)), END]
    z, ws = y, [path.increment(s, t).w for s, t in itertools.pairwise(ends)]
    for (s, t), w in zip(itertools.pairwise(ends), ws, strict=True):
        h, s, t = t - s, f64(s), f64(t)
        f, g = sde.drift(s, z), sde.diffusion(s, z)
        z = 2 * y - z + f * h + drive(g, w)
        y = y + (f + sde.drift(t, z)) * h / 2 + drive(g + sde.diffusion(t, z), w) / 2
    return y


@pytest.mark.parametrize("noise", NOISES)
def test_case_20c_every_gradient_is_that_of_the_steps(noise: str) -> None:
    ts = [0.0, 0.13, END]
    weights = torch.randn(3, 2, 2, generator=seeded(1), dtype=torch.float64)

    def end_value(p: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        return (replayed(small(noise, "stratonovich", p), y0, path_for(noise), 0.06) * weights[2]).sum()

    found = {}
    for gradient in GRADIENTS:
        p, y0 = P.clone().requires_grad_(), Y0.clone().requires_grad_()
        sde = small(noise, "stratonovich", p)
        sol = regnde.solve(sde, y0, ts, solver(gradient), noise=path_for(noise))
        ends = torch.autograd.grad((sol.y1 * weights[2]).sum(), [p, y0], retain_graph=True)
        found[gradient] = (sol.ys.detach(), *torch.autograd.grad((sol.ys * weights).sum(), [p, y0]), *ends, sol.stats)
    assert float((found["discrete"][0][2] * weights[2]).sum()) == pytest.approx(float(end_value(P, Y0)), rel=ROUNDING)
    for of_p, of_y0 in (x[3:5] for x in found.values()):
        assert relative(of_p, central_differences(lambda q: end_value(q, Y0), P, STRIDE)) < GRADIENT
        assert relative(of_y0, central_differences(lambda x: end_value(P, x), Y0, STRIDE)) < GRADIENT
    for gradient in GRADIENTS[1:]:
        assert torch.equal(found[gradient][0], found["discrete"][0])
        assert found[gradient][5] == found["discrete"][5]
        for a, b in zip(found[gradient][1:5], found["discrete"][1:5], strict=True):
            torch.testing.assert_close(a, b, rtol=CANCELLED, atol=CANCELLED)


@pytest.mark.parametrize(
    ("kind", "order"), [("additive", 1.0), ("area", 0.5), ("bounded", 1.0), ("scalar", 1.0), ("commuting", 1.0)]
)
def test_strong_order(kind: str, order: float) -> None:
    levels = range(3, 8) if kind != "area" else range(2, 7)
    assert abs(slope(strong_errors("reversible_heun", kind, "stratonovich", levels)) - order) < ORDER


def test_one_evaluation_a_step_and_one_more_on_the_way_back() -> None:
    calls = {"drift": 0, "diffusion": 0}

    def drift(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls["drift"] += 1
        return -y.sin()

    def diffusion(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls["diffusion"] += 1
        return 0.3 * y.cos()

    y0 = Y0.clone().requires_grad_()
    sol = regnde.solve(SDE(drift, diffusion, "diagonal", "stratonovich"), y0, [0.0, 1.0], solver("reversible", 0.1))
    assert (sol.stats.nfe, sol.stats.nfe_diffusion) == (11, 11)
    assert calls == {"drift": 11, "diffusion": 11}
    torch.autograd.grad(sol.y1.sum(), y0, retain_graph=True)
    assert calls == {"drift": 21, "diffusion": 21}
    torch.autograd.grad(sol.y1.sum(), y0)  # from the end again
    assert calls == {"drift": 31, "diffusion": 31}


def test_second_derivatives() -> None:
    found = []
    for gradient in ("discrete", "reversible"):
        p = P.clone().requires_grad_()
        y1 = regnde.solve(
            small("diagonal", "stratonovich", p), Y0, [0.0, END], solver(gradient), noise=path_for("diagonal")
        ).y1
        (first,) = torch.autograd.grad(y1.square().sum(), p, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), p)[0])
    torch.testing.assert_close(found[1], found[0], rtol=CANCELLED, atol=CANCELLED)


def kept(gradient: str, steps: int) -> int:
    """Bytes of tensors that are alive after a solve, by the garbage collector's and autograd's count."""
    net = MLP([64, 64, 64])
    sde = SDE(net, lambda t, y: 0.1 * torch.tanh(y), "diagonal", "stratonovich")
    sizes: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sol = regnde.solve(sde, torch.ones(128, 64), [0.0, 1.0], solver(gradient, 1 / steps))
    gc.collect()
    alive = sum(x.numel() * x.element_size() for x in gc.get_objects() if type(x) is torch.Tensor)
    sol.y1.sum().backward()
    return sum(sizes) + alive


def test_memory_does_not_grow_with_the_steps() -> None:
    """Tensors saved by the graph and held by objects: as many after 80 steps as after 20."""
    few, many = kept("reversible", 20), kept("reversible", 80)
    state = 128 * 64 * 4
    assert many - few < 2 * state
    assert kept("discrete", 80) - kept("discrete", 20) > 60 * 5 * state


def test_training_with_it_learns() -> None:
    torch.manual_seed(0)
    net = MLP([2, 16, 2])
    sde = SDE(net, lambda t, y: 0.1 * torch.ones_like(y), "diagonal", "stratonovich")
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    path = BrownianPath(0.0, 1.0, (50, 2), seed=1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        y1 = regnde.solve(sde, torch.zeros(50, 2), [0.0, 1.0], solver("reversible", 0.1), noise=path).y1
        loss = (y1 - torch.tensor([1.0, -1.0])).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_refuses() -> None:
    sde = small("diagonal", "stratonovich", P)
    with pytest.raises(ValueError, match="for SDEs and the method 'reversible_heun'"):
        regnde.solve(sde, Y0, [0.0, END], Solver(method="heun", dt0=0.1, gradient="reversible", engine="torch"))
    with pytest.raises(ValueError, match="for SDEs and the method 'reversible_heun'"):
        regnde.solve(lambda t, y: -y, Y0, [0.0, END], Solver(gradient="reversible", engine="torch"))
    with pytest.raises(ValueError, match="across stops"):
        regnde.solve(sde, Y0, [0.0, END], solver("reversible"), stops=[0.2])


def test_parameters_that_changed_are_found_out() -> None:
    p = P.clone().requires_grad_()
    sol = regnde.solve(
        small("diagonal", "stratonovich", p), Y0, [0.0, END], solver("reversible"), noise=path_for("diagonal")
    )
    with torch.no_grad():
        p += 0.1
    with pytest.raises(RuntimeError, match=r"changed after the solve|modified by an inplace"):
        sol.y1.sum().backward()


def test_a_way_back_that_misses_the_start_is_an_error() -> None:
    """A field that is no function: the values of the way back are others."""
    draws = seeded(0)
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    sde = SDE(
        lambda t, y: w * y * torch.rand((), generator=draws, dtype=torch.float64),
        lambda t, y: 0.1 * y,
        calculus="stratonovich",
    )
    sol = regnde.solve(sde, Y0, [0.0, END], solver("reversible", 0.01), noise=path_for("diagonal"))
    with pytest.raises(RuntimeError, match="misses the initial state"):
        sol.y1.sum().backward()


def test_stops_start_the_second_state_anew() -> None:
    """A drift that jumps: order 1 across the stop."""
    path = BrownianPath(0.0, 1.0, (SAMPLES,), seed=0)
    sde = SDE(lambda t, y: torch.where(t < 0.5, 1.0, -2.0) * y, lambda t, y: 0.3 * y, calculus="stratonovich")
    exact = ONE * torch.exp(-0.5 + 0.3 * path(1.0))
    errors = []
    for level in range(3, 8):
        y1 = regnde.solve(sde, ONE, [0.0, 1.0], solver("checkpoint", 2.0**-level), stops=[0.5], noise=path).y1
        errors.append(float((y1 - exact).square().mean().sqrt()))
    assert slope(errors) > 1 - ORDER

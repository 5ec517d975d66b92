"""Faults reported of the engine as inputs, numbered as in the project's second list of cases."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import regnde
from problems import seeded
from regnde import SDE, BrownianPath, ErrorPenalty, Local, Solver, StiffnessPenalty
from tolerances import CANCELLED, SOLVER

GRADIENTS = ("discrete", "checkpoint")
KINDS = ("joint", "local", "per-sample", "sde", "fixed", "odeint_adjoint")
Field = Callable[[Tensor, Tensor], Tensor]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def end(field: Field, y0: Tensor, kind: str, gradient: str = "checkpoint", seed: int = 5) -> Tensor:
    """The state at 1 plus a little of what is recorded, by one way to solve."""
    if kind == "odeint_adjoint":
        if gradient == "discrete":
            return regnde.odeint(field, y0, f64([0.0, 1.0]), rtol=1e-6, atol=1e-6, method="dopri5")[-1]
        function = field if isinstance(field, nn.Module) else Wrapped(field)
        params = None if isinstance(field, nn.Module) else ()
        return regnde.odeint_adjoint(
            function, y0, f64([0.0, 1.0]), rtol=1e-6, atol=1e-6, method="dopri5", adjoint_params=params
        )[-1]
    if kind == "sde":
        path = BrownianPath(0.0, 1.0, y0.shape, seed=seed)
        solver = Solver(gradient=gradient, rtol=0.3, atol=0.3, engine="torch")
        return regnde.solve(SDE(field, lambda t, y: 0.1 * y), y0, [0.0, 1.0], solver, noise=path).y1
    options = {"fixed": dict(method="rk4", dt0=0.1), "per-sample": dict(batch="per-sample")}.get(kind, {})
    solver = Solver(gradient=gradient, engine="torch", **options)
    record = Local(seed=3, detach_state=False) if kind == "local" else "none"
    sol = regnde.solve(field, y0, [0.0, 1.0], solver, record=record)
    return sol.y1 + (ErrorPenalty()(sol) if kind == "local" else 0.0)


class Wrapped(nn.Module):
    """A plain function as torchdiffeq's adjoint wants it."""

    def __init__(self, function: Field) -> None:
        super().__init__()
        self.function = function

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.function(t, y)


# --- A1: something that the field reads is changed between the solve and its derivative ---------------


class Setting(nn.Module):
    """y' = -w c y, with c where a test wants it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.w = nn.Parameter(f64(1.0))
        self.where, self.c = where, 1.0
        self.register_buffer("buffer", f64(1.0))
        box = {"c": 1.0}
        self.box = box
        inside = 1.0

        def read() -> float:
            return inside

        def write(value: float) -> None:
            nonlocal inside
            inside = value

        self.read, self.write = read, write

    def set(self, value: float) -> None:
        if self.where == "attribute":
            self.c = value
        elif self.where == "dict":
            self.box["c"] = value
        elif self.where == "closure":
            self.write(value)
        elif self.where == "buffer in place":
            self.buffer.fill_(value)
        else:
            self.buffer = f64(value)

    def get(self) -> float | Tensor:
        if self.where == "attribute":
            return self.c
        if self.where == "dict":
            return self.box["c"]
        return self.read() if self.where == "closure" else self.buffer

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.w * self.get() * y


def right_or_loud(work: Callable[[str], list[Tensor]], names: str) -> None:
    """The checkpointed gradient is the discrete one, or an error that names what changed."""
    wanted = work("discrete")
    assert any(bool(x.any()) for x in wanted)
    try:
        found = work("checkpoint")
    except RuntimeError as problem:
        text = str(problem)
        assert "does not end where it ended in the solve" in text or "modified by an inplace operation" in text, text
        if "Changed since the solve" in text:
            assert names in text, text
        else:
            assert names == "" or "inplace" in text or "Something that the field reads was changed" in text, text
        return
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=CANCELLED, atol=1e-12)


WHERE = {"attribute": "c", "dict": "box.c", "closure": "inside", "buffer in place": "buffer", "buffer": "buffer"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [name for name in WHERE if name != "buffer in place"])
def test_case_A1_two_solves_with_two_settings(where: str, kind: str) -> None:
    """One backward of both: with c = 1 and 2 over [0, 1] the right d/dw is -exp(-1) - 2 exp(-2)."""

    def work(gradient: str) -> list[Tensor]:
        field, total = Setting(where), []
        for value in (1.0, 2.0):
            field.set(value)
            total.append(end(field, f64([[1.0]]), kind, gradient).sum())
        return list(torch.autograd.grad(sum(total), [field.w]))

    if kind in ("joint", "fixed", "per-sample"):
        assert work("discrete")[0].item() == pytest.approx(-math.exp(-1) - 2 * math.exp(-2), rel=1e-4)
    right_or_loud(work, WHERE[where])


@pytest.mark.parametrize("kind", KINDS)
def test_case_A1_a_buffer_is_changed_in_place(kind: str) -> None:
    """Autograd refuses the discrete gradient, and that of a local step; the checkpoint's error names the buffer."""
    field = Setting("buffer in place")
    value = end(field, f64([[1.0]]), kind).sum()
    field.set(2.0)
    with pytest.raises(RuntimeError, match=r"Changed since the solve: .*buffer|inplace operation"):
        value.backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [name for name in WHERE if name != "buffer in place"])
def test_case_A1_a_setting_is_changed_after_one_solve(where: str, kind: str) -> None:
    def work(gradient: str) -> list[Tensor]:
        field = Setting(where)
        value = end(field, f64([[1.0]]), kind, gradient).sum()
        field.set(2.0)
        return list(torch.autograd.grad(value, [field.w]))

    right_or_loud(work, WHERE[where])


@pytest.mark.parametrize("kind", KINDS)
def test_case_A1_eval_before_backward_with_batch_norm(kind: str) -> None:
    def work(gradient: str) -> list[Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
        wrapped = lambda t, y: net(y)  # noqa: E731 - one line reads best
        value = end(wrapped, torch.randn(6, 3, dtype=torch.float64), "fixed" if kind == "sde" else kind, gradient)
        net.eval()
        return list(torch.autograd.grad(value.square().sum(), net[0].weight))

    if kind == "per-sample":
        pytest.skip("batch norm mixes samples: a field that does is none of theirs alone")
    right_or_loud(work, "training")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["data replaced", "data changed in place", "parameter replaced"])
def test_case_A1_weights_are_changed(how: str, kind: str) -> None:
    def work(gradient: str) -> list[Tensor]:
        net = nn.Linear(2, 2, bias=False).double()
        nn.init.constant_(net.weight, -0.5)
        y0 = f64([[1.0, 2.0]]).requires_grad_()
        value = end(lambda t, y: net(y), y0, kind, gradient).sum()
        weight = net.weight
        if gradient == "discrete":
            pass  # the solve as it was: in-place changes would spoil the graph that it keeps
        elif how == "data replaced":
            weight.data = 2 * weight.data
        elif how == "data changed in place":
            weight.data.mul_(2)
        else:
            net.weight = nn.Parameter(2 * weight.data)
        return list(torch.autograd.grad(value, [weight, y0]))

    right_or_loud(work, "weight")


@pytest.mark.parametrize("kind", KINDS)
def test_case_A1_an_average_of_weights_is_updated(kind: str) -> None:
    """A teacher inside the field that follows the trained module, updated between the solve and its derivative."""

    def work(gradient: str) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(2, 2).double()
        average = copy.deepcopy(net).requires_grad_(False)
        value = end(lambda t, y: torch.tanh(net(y)) + 0.1 * average(y), f64([[1.0, 2.0]]), kind, gradient).sum()
        if gradient == "checkpoint":
            with torch.no_grad():
                average.weight.lerp_(net.weight + 1, 0.1)
        return list(torch.autograd.grad(value, net.weight))

    right_or_loud(work, "weight")


@pytest.mark.filterwarnings("ignore:gradient='checkpoint'. the field uses a transform of torch.func")
@pytest.mark.parametrize("kind", ["joint", "local", "fixed", "odeint_adjoint"])
def test_case_A1_hutchinson_is_drawn_twice(kind: str) -> None:
    def work(gradient: str) -> list[Tensor]:
        torch.manual_seed(0)
        net = regnde.nn.MLP([2, 8, 2]).double()
        flow, y0 = regnde.comparators.Hutchinson(net), torch.randn(4, 2, dtype=torch.float64)
        total = []
        for _ in range(2):
            start = torch.cat([y0, torch.zeros(4, 1, dtype=torch.float64)], 1)
            flow.draw(y0)
            total.append(end(flow, start, kind, gradient).square().sum())
        return list(torch.autograd.grad(sum(total), list(net.parameters())))

    right_or_loud(work, "")


# --- A2: complex states of many entries -----------------------------------------------------------------


@pytest.mark.parametrize("entries", [4096, 2**18])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("way", ["none", "all", "local", "per-sample", "odeint"])
def test_case_A2_large_complex_states(way: str, gradient: str, entries: int) -> None:
    """psi' = -i a E psi: every entry turns at its own rate."""
    energies = torch.linspace(0, 1, entries, dtype=torch.float64)
    a = f64(1.0).requires_grad_()
    psi = torch.full((entries,), entries**-0.5, dtype=torch.complex128)
    field = lambda t, y: -1j * a * energies * y  # noqa: E731 - one line reads best
    rtol = atol = 1e-6
    if way == "odeint":
        solve = regnde.odeint if gradient == "discrete" else regnde.odeint_adjoint
        options = {} if gradient == "discrete" else {"adjoint_params": ()}
        function = field if gradient == "discrete" else Wrapped(field)
        y1 = solve(function, psi, f64([0.0, 1.0]), rtol=rtol, atol=atol, **options)[-1]
        extra: Tensor | float = 0.0
    else:
        record = {"none": "none", "local": Local(seed=1)}.get(way, "all")
        batch = "per-sample" if way == "per-sample" else "joint"
        start = psi[None] if batch == "per-sample" else psi
        solver = Solver(rtol=rtol, atol=atol, gradient=gradient, batch=batch, engine="torch")
        sol = regnde.solve(field, start, [0.0, 1.0], solver, record=record)
        y1 = sol.y1.reshape(entries)
        extra = 0.0 if record == "none" else (ErrorPenalty()(sol) + StiffnessPenalty()(sol)) * 0
    exact = psi * torch.exp(-1j * energies)
    assert float((y1 - exact).detach().abs().max()) < SOLVER * rtol * entries**-0.5 + SOLVER * atol
    (slope,) = torch.autograd.grad(((y1 * entries**0.5).real.mean() + extra), a)
    assert float(slope) == pytest.approx(float(-(energies * torch.sin(energies)).mean()), rel=1e-2)


# --- A5: hooks on parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [lambda g: -g, lambda g: 0.5 * g, lambda g: g + 1], ids=["sign", "half", "plus"])
def test_case_A5_hooks_on_parameters_act_once(change: Callable[[Tensor], Tensor], kind: str) -> None:
    gradients = []
    for gradient in GRADIENTS:
        w = nn.Parameter(f64(1.0))
        calls: list[Tensor] = []
        w.register_hook(lambda g, calls=calls: (calls.append(g), change(g))[1])
        end(lambda t, y, w=w: -w * y, f64([[1.0]]), kind, gradient).sum().backward()
        assert len(calls) == 1
        gradients.append(w.grad)
        torch.testing.assert_close(w.grad, change(calls[0]), rtol=0, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


# --- A6: second derivatives by times ----------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_A6_second_derivatives_by_the_times(gradient: str) -> None:
    """y' = cos(t) y, y(t0) = 2: y(t1) = 2 exp(sin t1 - sin t0)."""
    ts = f64([0.3, 1.7]).requires_grad_()
    y0 = f64([2.0]).requires_grad_()
    solver = Solver(rtol=1e-10, atol=1e-10, gradient=gradient, engine="torch")
    y1 = regnde.solve(lambda t, y: torch.cos(t) * y, y0, ts, solver).y1.sum()
    (first,) = torch.autograd.grad(y1, ts, create_graph=True)
    (by_t0,) = torch.autograd.grad(first[0], ts, retain_graph=True)
    by_t1, mixed = torch.autograd.grad(first[1], [ts, y0])
    a, b = 0.3, 1.7
    y = 2 * math.exp(math.sin(b) - math.sin(a))
    assert y * (math.cos(b) ** 2 - math.sin(b)) == pytest.approx(-3.912, abs=1e-3)
    assert first.tolist() == pytest.approx([-y * math.cos(a), y * math.cos(b)], abs=1e-7)
    assert by_t0.tolist() == pytest.approx(
        [y * (math.cos(a) ** 2 + math.sin(a)), -y * math.cos(a) * math.cos(b)], abs=1e-7
    )
    assert by_t1.tolist() == pytest.approx(
        [-y * math.cos(a) * math.cos(b), y * (math.cos(b) ** 2 - math.sin(b))], abs=1e-7
    )
    assert mixed.item() == pytest.approx(y / 2 * math.cos(b), abs=1e-7)


# --- A9: the units of the state ----------------------------------------------------------------------------


SCALES = [(torch.float32, s) for s in (1e-20, 1e20, 1e22)] + [(torch.float64, s) for s in (1e-160, 1e155)]


@pytest.mark.parametrize("way", ["joint", "per-sample", "sosri2"])
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
def test_case_A9_stiffness_does_not_depend_on_units(dtype: torch.dtype, scale: float, way: str) -> None:
    matrix = torch.tensor([[-1.0, 6.0], [-6.0, -1.0]], dtype=dtype)
    found = []
    for unit in (1.0, scale):
        y0 = torch.tensor([[1.0, 0.5]], dtype=dtype).mul(unit).requires_grad_()
        solver = Solver(
            method="sosri2" if way == "sosri2" else None,
            batch="per-sample" if way == "per-sample" else "joint",
            rtol=1.0 if way == "sosri2" else 1e-3,
            atol=unit * (1.0 if way == "sosri2" else 1e-3),
            dt0=0.05,
            max_steps=10_000,
            engine="torch",
        )
        drift: Field = lambda t, y: y @ matrix  # noqa: E731 - one line reads best
        if way == "sosri2":
            noise = BrownianPath(0.0, 0.2, y0.shape, seed=1)
            sol = regnde.solve(SDE(drift, lambda t, y: 0.01 * y), y0, [0.0, 0.2], solver, record="all", noise=noise)
        else:
            sol = regnde.solve(drift, y0, [0.0, 1.0], solver, record="all")
        (slope,) = torch.autograd.grad(StiffnessPenalty("mean")(sol), y0)
        assert torch.isfinite(slope).all()
        found.append(sol.steps.stiffness.detach().flatten())
    assert float(found[0].mean()) == pytest.approx(math.sqrt(37), rel=1e-2)
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=0)


# --- A12: fields that make leaves or draw noise -------------------------------------------------------------


class Counting(nn.Module):
    """A field that counts its own evaluations, of a kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.calls, self.e = kind, 0, None
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1 if kind == "energy" else 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.kind == "plain":
            return self.net(y)
        if self.kind == "time needs a gradient":
            t.requires_grad_(True)
            return self.net(y) * torch.cos(t)
        with torch.enable_grad():
            one = torch.tensor(1.0, dtype=y.dtype, requires_grad=True)
            x = one * y
            if self.kind == "energy":
                (g,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
                return torch.stack([g[:, 1], -g[:, 0]], 1)
            if self.e is None:
                self.e = torch.randn_like(y)
            slope = self.net(x)
            (v,) = torch.autograd.grad(slope, x, self.e, create_graph=True)
            return slope + 0.1 * (v * self.e)


@pytest.mark.parametrize("way", ["solve", "odeint"])
@pytest.mark.parametrize("kind", ["plain", "time needs a gradient", "energy", "noise drawn once"])
def test_case_A12_evaluations(kind: str, way: str) -> None:
    """As often as with the whole graph in the forward pass, one more sweep of the steps in the backward pass."""
    outcomes = []
    for gradient in GRADIENTS:
        field, y0 = Counting(kind), torch.randn(3, 2, dtype=torch.float64, generator=seeded(1))
        if way == "solve":
            sol = regnde.solve(field, y0, [0.0, 1.0], Solver(gradient=gradient, rtol=1e-4, atol=1e-4, engine="torch"))
            y1, stages = sol.y1, 6 * sol.stats.accepted
            assert sol.stats.nfe == field.calls
        else:
            solve = regnde.odeint if gradient == "discrete" else regnde.odeint_adjoint
            y1, stages = solve(field, y0, f64([0.0, 1.0]), rtol=1e-4, atol=1e-4)[-1], None
        forward = field.calls
        y1.square().sum().backward()
        outcomes.append((forward, field.calls - forward, [p.grad for p in field.net.parameters()]))
    (calls, again, wanted), (calls_too, more, found) = outcomes
    assert (calls_too, again) == (calls, 0)
    # On a GPU the nodes that the field's own backward passes make are run in another order: steps in turns, twice each.
    sweeps = 2 if y0.is_cuda else 1
    assert 0 < more <= sweeps * (calls if stages is None else stages)
    for parameter, a, b in zip(field.net.parameters(), found, wanted, strict=True):
        zero = torch.zeros_like(
            parameter
        )  # odeint_adjoint gives it to parameters that are not used, as torchdiffeq does
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=CANCELLED, atol=1e-14)

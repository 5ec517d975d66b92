"""torchdiffeq's adaptive methods: its evaluations, options, tolerances, norms, callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

import regnde
from regnde._dropin_methods import ADAPTIVE_METHODS
from regnde._tableau import order_conditions
from tolerances import GRADIENT, ROUNDING, SOLVER

METHODS = tuple(ADAPTIVE_METHODS)
RELEASED = tuple(m for m in METHODS if m != "tsit5")  # by torchdiffeq 0.2.5
LOOSE = {"rtol": 1e-4, "atol": 1e-5}
TOLERANCES = {method: LOOSE if method in ("adaptive_heun", "fehlberg2", "bosh3") else {} for method in METHODS}


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def peer() -> ModuleType:
    return pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install regnde[test])")


class Counted:
    """A field that counts its evaluations."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.count = field, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.count += 1
        return self.field(t, y)


def steep(t: Tensor, y: Tensor) -> Tensor:
    """A line, which all other solutions leave."""
    return 0.2 + (y - (0.2 * t + 3.0)) ** 5


def polynomial(t: Tensor, y: Tensor) -> Tensor:
    """Growing with the time, far from autonomous."""
    return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3


def swinging(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -y[0] * (1 + 0.1 * torch.sin(t))])


PROBLEMS = {
    "steep": (steep, f64(3.2)),
    "polynomial": (polynomial, f64(1.0)),
    "swinging": (swinging, f64([1.0, 0.0])),
    "decay": (lambda t, y: -0.1 * torch.exp(-0.1 * t).expand(y.shape), f64([0.9])),
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", RELEASED)
def test_as_many_evaluations_as_torchdiffeq(method: str, problem: str, backwards: bool) -> None:
    """In double precision. Where its last step, which goes beyond the end, is rejected, up to three steps fewer."""
    field, y0 = PROBLEMS[problem]
    t = torch.linspace(1, 4, 5, dtype=torch.float64)
    t = t.flip(0) if backwards else t
    t.requires_grad_()
    y0 = y0.clone().requires_grad_()
    theirs, ours = Counted(field), Counted(field)
    expected = peer().odeint(theirs, y0, t, method=method, **TOLERANCES[method])
    got = regnde.odeint(ours, y0, t, method=method, **TOLERANCES[method])
    stages = ADAPTIVE_METHODS[method].stages - 1
    assert theirs.count - ours.count in (0, stages, 2 * stages, 3 * stages)
    assert ours.count == theirs.count or problem in ("polynomial", "swinging")
    if method == "dopri5":  # the others' states between the steps are less precise there than at their ends
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=SOLVER * 1e-7 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_tableaux(method: str) -> None:
    """Order conditions of the new state, of the embedded one and of the interpolant."""
    tableau = ADAPTIVE_METHODS[method]
    b = (*tableau.b, *(0.0,) * (tableau.stages - len(tableau.b)))
    embedded = [x + e for x, e in zip(b, tableau.btilde or (), strict=True)]
    inside = {"dopri8": 5, "dopri5": 4, "tsit5": 4, "bosh3": 3}.get(method, 2)
    for order, weights, value in order_conditions(tableau.a, min(tableau.order, 8)):
        assert math.fsum(x * w for x, w in zip(b, weights, strict=True)) == pytest.approx(value, abs=1e-9)
        if order < tableau.order:
            assert math.fsum(x * w for x, w in zip(embedded, weights, strict=True)) == pytest.approx(value, abs=1e-9)
        if order <= inside and len(tableau.dense) == tableau.stages:
            at = [sum(c * 0.3**n for n, c in enumerate(row, 1)) for row in tableau.dense]
            found = math.fsum(x * w for x, w in zip(at, weights, strict=True))
            assert found == pytest.approx(0.3**order * value, abs=1e-9)


@pytest.mark.parametrize("solve", [regnde.odeint, regnde.odeint_adjoint])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_differences(method: str, solve: Callable[..., Tensor]) -> None:
    """Steps are given by the first one and bounds, so that none differs."""
    t = f64([0.0, 0.33, 1.0])
    options = {"first_step": 0.1, "max_step": 0.1, "min_step": 0.1}

    def loss(w: Tensor, y0: Tensor) -> Tensor:
        ys = solve(lambda t, y: w * torch.sin(y + t) - y.flip(0), y0, t, method=method, options=options)
        return (ys * f64([1.0, 2.0])).sum()

    at = f64([0.7]), f64([1.0, -0.5])
    w, y0 = (x.clone().requires_grad_() for x in at)
    found = torch.cat(torch.autograd.grad(loss(w, y0), [w, y0]))
    for place, value in enumerate(found):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[place] = 1e-5
        ahead, behind = (loss(at[0] + s * moved[:1], at[1] + s * moved[1:]) for s in (1, -1))
        assert float(value) == pytest.approx(float(ahead - behind) / 2e-5, rel=GRADIENT)


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_by_the_times_cost_no_evaluation(method: str) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t) * y

    y0, t, given = f64([2.0]), f64([0.0, 0.3, 1.0, 1.7]), LOOSE if method == "adaptive_heun" else {}
    plain, counted = Counted(field), Counted(field)
    regnde.odeint(plain, y0, t, method=method, **given)
    moving = t.clone().requires_grad_()
    ys = regnde.odeint(counted, y0, moving, method=method, **given)
    assert counted.count == plain.count
    right = y0 * torch.exp(torch.sin(moving) - torch.sin(moving[0]))[:, None]
    for row in range(4):
        found, wanted = (torch.autograd.grad(x[row].sum(), moving, retain_graph=True)[0] for x in (ys, right))
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=5e-3 if method in ("adaptive_heun", "fehlberg2") else 5e-5
        )
    adjoint = regnde.odeint_adjoint(field, y0, moving, method=method, **given)
    pair = [torch.autograd.grad(x[-1].sum(), moving)[0] for x in (adjoint, ys)]
    torch.testing.assert_close(*pair, rtol=ROUNDING, atol=ROUNDING)


def test_step_options_are_those_of_torchdiffeq() -> None:
    """Each of them changes the steps as it does there."""
    y0, t = f64([1.0, 0.0]), f64([0.0, 6.0])
    changes = (
        {},
        {"first_step": 0.01},
        {"safety": 0.5},
        {"ifactor": 1.5, "first_step": 1e-3},
        {"dfactor": 0.5, "first_step": 3.0},
        {"min_step": 0.2},
        {"max_step": torch.tensor(0.1)},
        {"dtype": torch.float64},
    )
    counts = []
    for options in changes:
        theirs, ours = Counted(swinging), Counted(swinging)
        expected = peer().odeint(theirs, y0, t, options=options)
        got = regnde.odeint(ours, y0, t, options=options)
        counts.append(ours.count)
        assert 0 <= theirs.count - ours.count <= 12, options
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3 if "min_step" in options else 1e-5)
    assert len(set(counts)) == len(changes) - 1  # the dtype changes nothing


def test_jumps_and_step_ends() -> None:
    seen: list[float] = []

    def switched(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return -y if t < 0.5 else y

    y0, t = f64([1.0]), f64([0.0, 1.0])
    for options in ({"jump_t": torch.tensor([0.5])}, {"step_t": torch.tensor([0.5, 0.7]), "jump_t": f64([0.9, 7.0])}):
        seen.clear()
        y1 = regnde.odeint(switched, y0, t, options=options)[-1]
        assert float(y1) == pytest.approx(1.0, abs=1e-6)
        assert 0.5 not in seen
        assert min(abs(time - 0.5) for time in seen) < 1e-12
    back = regnde.odeint(switched, y0, t.flip(0), options={"jump_t": torch.tensor([0.5])})[-1]
    assert float(back) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="give each time once"):
        regnde.odeint(switched, y0, t, options={"jump_t": f64([0.5]), "step_t": f64([0.5])})
    with pytest.raises(ValueError, match="holds a time twice"):
        regnde.odeint(switched, y0, t, options={"jump_t": f64([0.5, 0.5])})


def test_unknown_options_are_warned_about_and_ignored() -> None:
    y0, t = f64([1.0]), f64([0.0, 1.0])
    for method, name in (("dopri5", "max_iters"), ("rk4", "first_step"), ("gl4", "max_order"), ("scipy_solver", "a")):
        plain = regnde.odeint(lambda t, y: -y, y0, t, method=method)
        with pytest.warns(UserWarning, match=f"method '{method}' has no options '{name}'"):
            got = regnde.odeint(lambda t, y: -y, y0, t, method=method, options={name: 3})
        assert torch.equal(got, plain)
    given = {"step_size": 0.5, "max_iters": 7}
    with pytest.warns(UserWarning, match="no options 'step_size', 'max_iters'"):
        regnde.odeint(lambda t, y: -y, y0, t, method="dopri5", options=given)
    assert given == {"step_size": 0.5, "max_iters": 7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "seminorm"}, "must be a function"),
        ({"safety": float("nan")}, "safety=nan"),
        ({"min_step": -1.0}, "min_step=-1.0"),
        ({"jump_t": f64([[0.5]])}, "shape"),
        ({"jump_t": f64([float("inf")])}, "finite"),
    ],
)
def test_options_that_can_not_be_used(options: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        regnde.odeint(lambda t, y: -y, f64([1.0]), f64([0.0, 1.0]), options=options)


def test_a_first_step_beyond_the_largest_is_the_largest() -> None:
    y0, t = f64([1.0]), f64([0.0, 1.0])
    for first_step, same in ((0.5, 0.1), (1e-6, 1e-3)):
        got, expected = (
            regnde.odeint(lambda t, y: -y, y0, t, options={"first_step": first, "max_step": 0.1, "min_step": 1e-3})
            for first in (first_step, same)
        )
        assert torch.equal(got, expected)


@pytest.mark.parametrize("solve", [regnde.odeint, regnde.odeint_adjoint])
def test_a_negative_norm_is_an_error(solve: Callable[..., Tensor]) -> None:
    for norm, kind in ((lambda x: -x.abs().max(), ValueError), (lambda x: float(x.abs().max()), TypeError)):
        with pytest.raises(kind, match="norm"), regnde.recording():
            solve(lambda t, y: -y, f64([1.0]).requires_grad_(), f64([0.0, 1.0]), options={"norm": norm})


def test_a_tuple_is_controlled_by_its_largest_part() -> None:
    """A large still part does not hide a small restless one, as it would in one mean."""

    def field(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(y[0]), 20 * torch.cos(20 * t).reshape(1)

    y0, t = (torch.zeros(10_000, dtype=torch.float64), f64([0.0])), f64([0.0, 1.0])
    counted = Counted(field)
    _, small = regnde.odeint(counted, y0, t, rtol=1e-6, atol=1e-6)
    assert float(small[-1]) == pytest.approx(math.sin(20), abs=SOLVER * 1e-6)
    theirs = Counted(field)
    peer().odeint(theirs, y0, t, rtol=1e-6, atol=1e-6)
    assert 0 <= theirs.count - counted.count <= 12
    flat = Counted(lambda t, y: torch.cat(field(t, (y[:-1], y[-1:]))))
    regnde.odeint(flat, torch.cat(y0), t, rtol=1e-6, atol=1e-6)
    assert flat.count < counted.count


def test_tolerances_for_parts_and_entries() -> None:
    """TrajectoryNet: rtol=[1e-5] + [1e20] * n controls the first part alone."""

    def field(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return -y[0], 50 * torch.cos(50 * t) * torch.ones_like(y[1]), torch.zeros_like(y[2])

    y0, t = (f64([1.0, 2.0]), f64([[0.0]]), f64(0.0)), f64([0.0, 1.0])
    for loosened in ([1e-5, 1e20, 1e20], [1e-5, f64([1e20]), 1e20]):
        theirs, ours, every = Counted(field), Counted(field), Counted(field)
        expected = peer().odeint(theirs, y0, t, rtol=loosened, atol=loosened)[0]
        got = regnde.odeint(ours, y0, t, rtol=loosened, atol=loosened)[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert 0 <= theirs.count - ours.count <= 12
        regnde.odeint(every, y0, t, rtol=1e-5, atol=1e-5)
        assert ours.count < every.count / 4
    entries = Counted(lambda t, y: torch.stack([-y[0], 50 * torch.cos(50 * t)]))
    regnde.odeint(entries, f64([1.0, 0.0]), t, rtol=f64([1e-5, 1e20]), atol=f64([1e-5, 1e20]))
    assert entries.count < every.count / 4
    with pytest.raises(ValueError, match="sequence of 2"):
        regnde.odeint(field, y0, t, rtol=[1e-5, 1e-5])


def test_a_norm_of_the_user_controls_the_steps_and_is_recorded() -> None:
    shapes: list[object] = []

    def largest(state: Tensor) -> Tensor:
        shapes.append(state.shape)
        return state.abs().max()

    y0, t = f64([[1.0, 0.0], [2.0, 3.0]]), f64([0.0, 3.0])
    field = Counted(lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1))
    with regnde.recording() as log:
        regnde.odeint(field, y0, t, options={"norm": largest})
    (solution,) = log.solutions
    assert set(shapes) == {torch.Size([2, 2])}
    assert float(solution.steps.error.max()) <= 1.0
    theirs = Counted(field.field)
    peer().odeint(theirs, y0, t, options={"norm": lambda y: y.abs().max()})
    assert 0 <= theirs.count - field.count <= 12

    parts: list[int] = []
    norm = {"norm": lambda state: parts.append(len(state)) or torch.stack([x.abs().max() for x in state]).max()}
    regnde.odeint(lambda t, y: (-y[0], y[1]), (f64([1.0]), f64(2.0)), t, options=norm)
    assert set(parts) == {2}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "gl4", "explicit_adams"])
def test_callbacks(method: str, backwards: bool) -> None:
    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(f64(3.0))
            self.calls: list[tuple[str, float, float]] = []

        def forward(self, t: Tensor, y: tuple[Tensor]) -> tuple[Tensor]:
            return (torch.sin(self.w * t) * y[0],)

        def callback_step(self, t0: Tensor, y0: tuple[Tensor], dt: Tensor) -> None:
            assert isinstance(y0, tuple)
            self.calls.append(("step", float(t0), float(dt)))

        def callback_step_adjoint(self, t0: Tensor, y0: tuple[Tensor, ...], dt: Tensor) -> None:
            self.calls.append(("back", float(t0), float(dt)))

    if method == "dopri5":
        Field.callback_accept_step = lambda self, t0, y0, dt: self.calls.append(("accept", float(t0), float(dt)))
        Field.callback_reject_step = lambda self, t0, y0, dt: self.calls.append(("reject", float(t0), float(dt)))
    field, t = Field(), f64([0.0, 2.0])
    t = t.flip(0) if backwards else t
    options = {"first_step": 2.0} if method == "dopri5" else {"step_size": 0.5}
    (ys,) = regnde.odeint_adjoint(field, (f64([1.0]),), t, method=method, options=options)
    named = {name: [call for call in field.calls if call[0] == name] for name in ("step", "accept", "reject", "back")}
    assert all(dt > 0 for _, _, dt in field.calls)
    assert field.calls[0][:2] == ("step", float(t[0]))
    if method == "dopri5":
        assert len(named["step"]) == len(named["accept"]) + len(named["reject"])
        assert named["reject"]
        assert field.calls[1] == ("reject", *field.calls[0][1:])
    else:
        assert [call[1] for call in named["step"]] == pytest.approx(torch.linspace(*t.tolist(), 5).tolist()[:-1])
    steps = len(named["accept"]) or len(named["step"])
    ys[-1].sum().backward()
    back = [call for call in field.calls if call[0] == "back"]
    assert len(back) == steps
    assert back[0][1] == float(t[1])
    if method != "dopri5":
        field.callback_accept_step = print
        with pytest.warns(UserWarning, match="does not call callback_accept_step"):
            regnde.odeint(field, (f64([1.0]),), t, method=method, options=options)


def test_unused_parameters_get_zeros_as_a_backward_solve_gives_them() -> None:
    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = (torch.nn.Parameter(torch.tensor(x)) for x in (1.0, torch.inf))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.used * y

    field, t = Field(), torch.tensor([0.0, 1.0])
    regnde.odeint_adjoint(field, torch.ones(2), t)[-1].sum().backward()
    assert float(field.unused.grad) == 0.0
    assert float(field.used.grad) == pytest.approx(-2 * math.exp(-1), rel=1e-4)
    other = torch.ones(3, requires_grad=True)
    regnde.odeint_adjoint(field, torch.ones(2), t, adjoint_params=(other,))[-1].sum().backward()
    assert other.grad.tolist() == [0.0] * 3


def test_max_num_steps_counts_between_two_times() -> None:
    y0, options = f64([1.0]), {"first_step": 0.1, "max_step": 0.1, "max_num_steps": 5}
    regnde.odeint(lambda t, y: -y, y0, f64([0.0, 0.3, 0.6]), options=options)
    with pytest.raises(regnde.MaxStepsReached):
        regnde.odeint(lambda t, y: -y, y0, f64([0.0, 0.6]), options=options)

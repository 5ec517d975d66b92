"""Issue 17.4: states that are tuples, lists and dicts of tensors. They are solved as the flat tensor of all entries."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import regnde
from frozen import relative
from problems import exp_decay
from regnde import SDE, BrownianPath, ErrorPenalty, Event, Local, Solver, StiffnessPenalty
from regnde.comparators import RNODE, TayNODE, solve_with_integral
from regnde.nn import NeuralODE, NeuralSDE
from tolerances import EXACT, ROUNDING, SOLVER

Parts = tuple[Tensor, Tensor, Tensor, Tensor]
RATES = torch.tensor([1.3, 0.4, 0.7, 1.6], dtype=torch.float64)
SHAPES = ((2,), (2, 3), (), (0, 3))
SIZES = [2, 6, 1, 0]


class Pair(NamedTuple):
    first: Any
    rest: Any


STRUCTURES: dict[str, tuple[Callable[..., Any], Callable[[Any], Parts]]] = {
    "tuple": (lambda a, b, c, e: (a, b, c, e), tuple),
    "list": (lambda a, b, c, e: [a, [b, c], e], lambda y: (y[0], *y[1], y[2])),
    "dict": (lambda a, b, c, e: {"a": a, 1: {"b": b, "c": c}, "e": e}, lambda y: (y["a"], *y[1].values(), y["e"])),
    "named tuple": (
        lambda a, b, c, e: Pair(a, [b, (c,), {"e": e}]),
        lambda y: (y[0], y[1][0], y[1][1][0], y[1][2]["e"]),
    ),
}


def slopes(p: Tensor, t: Tensor, a: Tensor, b: Tensor, c: Tensor, e: Tensor) -> Parts:
    """Every part depends on the others and on time."""
    return torch.tanh(p[0] * b.sum(-1) + p[1] * t), c - p[2] * a.unsqueeze(-1) * b, a.sum() - p[3] * c, e * t


def parts_of(y: Tensor) -> Parts:
    return tuple(x.reshape(s) for x, s in zip(y.split(SIZES), SHAPES, strict=True))  # type: ignore[return-value]


def joined(parts: Any) -> Tensor:
    return torch.cat([x.reshape(-1) for x in parts])


def flat_field(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: joined(slopes(p, t, *parts_of(y)))


def start() -> Tensor:
    return torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)


SOLVERS = {
    "discrete": Solver(),
    "checkpoint": Solver(gradient="checkpoint"),
    "vern7": Solver(method="vern7"),
    "rk4": Solver(method="rk4", dt0=0.1),
}


def differentiated(solution: regnde.Solution[Any], ys: Tensor, *by: Tensor) -> tuple[Tensor, ...]:
    """Gradients of all that a solution holds."""
    loss = ys.square().sum()
    if solution.steps is not None and solution.solver.method != "rk4":
        loss = loss + (ErrorPenalty() + StiffnessPenalty())(solution)
    return torch.autograd.grad(loss, by)


@pytest.mark.parametrize("record", ["none", "all", "local"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", STRUCTURES)
def test_nested_states_are_solved_as_their_entries_together(kind: str, solver: str, record: str) -> None:
    """States, records, counts and gradients are those of the flat state to the last bit."""
    if solver == "rk4" and record == "local":
        pytest.skip("a fixed step has no local record")
    make, take = STRUCTURES[kind]
    what = Local(seed=4) if record == "local" else record
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    p, flat = RATES.clone().requires_grad_(), start().requires_grad_()
    wanted = regnde.solve(flat_field(p), flat, times, SOLVERS[solver], record=what)
    expected = differentiated(wanted, wanted.ys, p, flat, times)

    leaves = [x.detach().requires_grad_() for x in parts_of(start())]
    p = RATES.clone().requires_grad_()
    field = lambda t, y: make(*slopes(p, t, *take(y)))  # noqa: E731 - one line reads best
    got = regnde.solve(field, make(*leaves), times, SOLVERS[solver], record=what)
    ys = torch.cat([x.reshape(3, -1) for x in take(got.ys)], -1)
    assert got.stats == wanted.stats
    assert [x.shape for x in take(got.ys)] == [(3, *s) for s in SHAPES]
    assert [x.shape for x in take(got.y1)] == list(map(torch.Size, SHAPES))
    assert type(got.ys) is type(got.y1) is type(make(*leaves))
    assert torch.equal(ys, wanted.ys)
    assert torch.equal(joined(take(got.y1)), wanted.y1)
    if record != "none" and solver != "rk4":
        assert torch.equal(got.steps.error, wanted.steps.error)
        assert torch.equal(got.steps.stiffness, wanted.steps.stiffness)
    of_p, *of_leaves, of_times = differentiated(got, ys, p, *leaves, times)
    for a, b in zip((of_p, joined(of_leaves), of_times), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


def test_nested_states_with_steps_of_their_own() -> None:
    """`batch="per-sample"`: the parts share the leading dimension; the others are one flat sample each."""
    rates = torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64)
    x, v = torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    solver = Solver(batch="per-sample")
    for gradient in ("discrete", "checkpoint"):
        for nested in (True, False):
            x0, v0 = x.clone().requires_grad_(), v.clone().requires_grad_()

            def field(t: Tensor, y: Any, samples: Tensor) -> Any:
                assert t.shape == (len(samples), 1)
                x, v = (y["x"], y["v"][0]) if isinstance(y, dict) else y.split(2, -1)
                dx, dv = v * torch.cos(t), -rates[samples].unsqueeze(-1) * x
                return {"v": [dv], "x": dx} if isinstance(y, dict) else torch.cat((dx, dv), -1)

            y0 = {"x": x0, "v": [v0]} if nested else torch.cat((x0, v0), -1)
            sol = regnde.solve(field, y0, [0.0, 0.4, 1.0], Solver(batch="per-sample", gradient=gradient), record="all")
            ys = torch.cat((sol.ys["x"], sol.ys["v"][0]), -1) if nested else sol.ys
            got = (sol.stats, sol.steps.error, ys, *torch.autograd.grad(ys.sum() + ErrorPenalty()(sol), [x0, v0]))
            if nested:
                wanted = got
        assert got[0] == wanted[0]
        for a, b in zip(got[1:], wanted[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    # Parts of several dimensions: the time broadcasts against those that have most.
    y0 = {"x": torch.ones(3, 2, 2), "c": torch.ones(3)}
    sol = regnde.solve(
        lambda t, y: {"x": -y["x"] * torch.ones_like(t), "c": -y["c"] * torch.ones_like(t.reshape(-1))},
        y0,
        [0.0, 1.0],
        Solver(batch="per-sample"),
    )
    assert sol.y1["x"].shape == (3, 2, 2)
    torch.testing.assert_close(sol.y1["c"], torch.full((3,), math.exp(-1)), rtol=SOLVER * 1e-6, atol=0)
    for wrong, field, message in (
        ({"x": torch.ones(3, 2), "c": torch.ones(2)}, exp_decay, r"y0\['x'\] has 3 and y0\['c'\] has 2"),
        ({"x": torch.ones(3, 2), "c": torch.tensor(1.0)}, exp_decay, r"y0\['c'\] has no dimension"),
        (y0, lambda t, y: {"x": -y["x"], "c": -t * y["c"]}, r"f\(t, y\)\['c'\] has shape \(3, 1, 3\), but y\['c'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            regnde.solve(field, wrong, [0.0, 1.0], solver)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_nested_states_of_an_sde(gradient: str) -> None:
    """The noise is that of the flat state, one channel for each entry in the order of the parts."""
    solver, found = Solver(gradient=gradient), []
    for nested in (True, False):
        x, c = torch.ones(2, 2).requires_grad_(), torch.tensor(0.5).requires_grad_()
        path = BrownianPath(0.0, 1.0, (5,), seed=3)
        if nested:
            sde = SDE(lambda t, y: (-y[0] + y[1], -y[1]), lambda t, y: (0.3 * y[0], 0.1 + 0 * y[1]))
            sol = regnde.solve(sde, (x, c), [0.0, 0.5, 1.0], solver, record="all", noise=path)
            ys = torch.cat((sol.ys[0].reshape(3, -1), sol.ys[1].reshape(3, -1)), -1)
        else:
            sde = SDE(
                lambda t, y: torch.cat((-y[:4] + y[4], -y[4:])), lambda t, y: torch.cat((0.3 * y[:4], 0.1 + 0 * y[4:]))
            )
            y0 = torch.cat((x.reshape(-1), c.reshape(1)))
            sol = regnde.solve(sde, y0, [0.0, 0.5, 1.0], solver, record="all", noise=path)
            ys = sol.ys
        found.append((ys, sol.steps.error, *torch.autograd.grad(ys.sum() + ErrorPenalty()(sol), [x, c])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # float32
    with pytest.raises(ValueError, match=r"path has shape \(2, 2\), but .* needs \(5,\)"):
        regnde.solve(sde, (x, c), [0.0, 1.0], noise=BrownianPath(0.0, 1.0, (2, 2)))
    bad = SDE(lambda t, y: (-y[0], -y[1]), lambda t, y: y[0])
    with pytest.raises(TypeError, match=r"diffusion\(t, y\) is a tensor of shape \(2, 2\), but y is a tuple of 2"):
        regnde.solve(bad, (x, c), [0.0, 1.0])


def test_nested_states_with_stops_and_events() -> None:
    """A bouncing ball that is pushed from t = 0.5 on, and stops where it falls through its start."""
    push = lambda t: torch.where(t < 0.5, 0.0, 4.0)  # noqa: E731 - one line reads best
    found = []
    for nested in (True, False):
        v0 = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        x0 = torch.tensor(1.0, dtype=torch.float64)
        if nested:
            field: Any = lambda t, y: {"x": y["v"], "v": 0 * y["v"] - 9.81 + push(t)}  # noqa: E731
            y0, at = {"x": x0, "v": v0}, Event(lambda t, y: y["x"] - 1.0, direction=-1)
        else:
            field = lambda t, y: torch.stack((y[1], 0 * y[1] - 9.81 + push(t)))  # noqa: E731
            y0, at = torch.stack((x0, v0)), Event(lambda t, y: y[0] - 1.0, direction=-1)
        sol = regnde.solve(field, y0, [0.0, 0.2, 5.0], event=at, stops=[0.5])
        y1 = torch.stack((sol.y1["x"], sol.y1["v"])) if nested else sol.y1
        of_event = torch.stack((sol.events.y["x"], sol.events.y["v"]), -1) if nested else sol.events.y
        found.append((sol.events.t, y1, of_event, *torch.autograd.grad(sol.events.t.sum() + y1.sum(), v0)))
        assert sol.status == "event"
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    height, speed = 1.5 - 9.81 / 8, 3 - 9.81 / 2  # above the start, when the push begins
    later = (speed + math.sqrt(speed**2 + 2 * 5.81 * height)) / 5.81
    assert float(found[0][0].detach()) == pytest.approx(0.5 + later, rel=ROUNDING)


# --- what is one tensor, and what is not ---------------------------------------------------------


def test_lists_of_numbers_and_of_0_dim_tensors_are_one_tensor() -> None:
    a = torch.tensor(2.0, requires_grad=True)
    for y0, shape in (
        ([1.0, 2.0], (2,)),
        ((1, 2), (2,)),
        ([[1.0], [2.0]], (2, 1)),
        ([a, 1.0], (2,)),
        ([[a, 1.0], [torch.tensor(3.0), a]], (2, 2)),
        ([np.ones(3), np.ones(3)], (2, 3)),
        ((), (0,)),
    ):
        sol = regnde.solve(exp_decay, y0, [0.0, 1.0])
        assert sol.y1.shape == shape
        if sol.y1.requires_grad:  # dy1/dy0 is exp(-1) in every entry
            (slope,) = torch.autograd.grad(sol.y1.sum(), a)
            assert float(slope) == pytest.approx(math.exp(-1) * (1 if shape == (2,) else 2), rel=1e-4)


def test_tuples_of_tensors_and_lists_of_tensors_with_dimensions_are_nested() -> None:
    x, c = torch.ones(2), torch.tensor(1.0)
    for y0, like in (
        ((c, c), (c, c)),
        ((c, 1.0), (c, c)),
        ([x, x], [x, x]),
        ([x, 1.0], [x, c]),
        ({"c": 1.0}, {"c": c}),
        ({"c": [1.0, 1.0], "d": [c, c]}, {"c": x, "d": x}),
        ([c, (c,)], [c, (c,)]),
        (Pair(1.0, np.ones(2, np.float32)), Pair(c, x)),
    ):
        seen = []

        def field(t: Tensor, y: Any) -> Any:
            seen.append(torch.utils._pytree.tree_structure(y))  # noqa: B023 - called within the loop
            return torch.utils._pytree.tree_map(torch.neg, y)

        y1 = regnde.solve(field, y0, [0.0, 1.0]).y1
        structure = torch.utils._pytree.tree_structure(like)
        assert all(one == structure for one in seen)
        assert torch.utils._pytree.tree_structure(y1) == structure
        for got, one in zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (y1, like)), strict=True):
            torch.testing.assert_close(got, one * math.exp(-1), rtol=SOLVER * 1e-6, atol=0)


def test_kinds_of_dicts_are_kept() -> None:
    for y0 in (OrderedDict(b=torch.ones(2), a=torch.ones(1)), defaultdict(list, b=torch.ones(2), a=torch.ones(1))):
        sol = regnde.solve(lambda t, y: {key: -x for key, x in reversed(y.items())}, y0, [0.0, 1.0])
        assert type(sol.ys) is type(y0)
        assert list(sol.ys) == list(sol.y1) == ["b", "a"]
        assert {key: x.shape for key, x in sol.ys.items()} == {"b": (2, 2), "a": (2, 1)}
        assert getattr(sol.ys, "default_factory", None) is getattr(y0, "default_factory", None)


def test_parts_keep_their_dtypes() -> None:
    """The solver's own sums have the dtype that all are promoted to; numbers take the precision of the others."""
    y0 = {
        "z": torch.ones(2, dtype=torch.complex64, requires_grad=True),
        "x": torch.ones(2, dtype=torch.float64, requires_grad=True),
        "number": 1.0,
        "count": torch.tensor(1),
    }
    seen = set()

    def field(t: Tensor, y: Any) -> Any:
        seen.add(tuple(x.dtype for x in y.values()))
        return {key: (-1j if key == "z" else -1.0) * x for key, x in y.items()}

    sol = regnde.solve(field, y0, [0.0, 1.0], Solver(rtol=1e-5, atol=1e-5), record="all")
    assert seen == {(torch.complex64, torch.float64, torch.float64, torch.float64)}
    assert [x.dtype for x in sol.ys.values()] == [*seen.pop()]
    assert sol.steps.error.dtype == torch.float64
    torch.testing.assert_close(sol.y1["z"], torch.full((2,), math.e**-1j).to(torch.complex64), rtol=0, atol=1e-3)
    torch.testing.assert_close(sol.y1["x"].detach(), torch.full((2,), math.exp(-1)).double(), rtol=0, atol=1e-4)
    assert float(sol.y1["count"].detach()) == pytest.approx(math.exp(-1), abs=1e-4)
    of_z, of_x = torch.autograd.grad(sol.y1["z"].real.sum() + sol.y1["x"].sum(), [y0["z"], y0["x"]])
    assert of_z.dtype == torch.complex64
    torch.testing.assert_close(of_z, torch.full((2,), math.e**1j).to(torch.complex64), rtol=0, atol=1e-3)
    torch.testing.assert_close(of_x, torch.full((2,), math.exp(-1)).double(), rtol=0, atol=1e-4)


def test_a_coarse_part_is_named_where_its_tolerance_is_tighter() -> None:
    y0 = {"x": torch.ones(2, dtype=torch.float64), "coarse": torch.ones(2)}
    field = lambda t, y: {key: -x for key, x in y.items()}  # noqa: E731 - one line reads best
    with pytest.warns(UserWarning, match="resolution 1.2e-07 of torch.float32"):
        regnde.solve(field, y0, [0.0, 1.0], Solver(rtol=1e-9, atol=1e-9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regnde.solve(field, y0, [0.0, 1.0], Solver(rtol=1e-9, atol={"x": 1e-9, "coarse": math.inf}))


def test_states_that_do_not_go_together_are_refused() -> None:
    for y0, kind, message in (
        ({}, ValueError, "no parts"),
        ({"x": None}, TypeError, r"y0\['x'\] must be a tensor.*NoneType"),
        ((torch.ones(2), [torch.ones(2), "text"]), TypeError, r"y0\[1\]\[1\] must be a tensor"),
        (Pair(torch.ones(2), torch.ones(2, device="meta")), TypeError, r"y0\.rest is on the meta device"),
        ({"x": torch.ones(2).half()}, TypeError, r"y0\['x'\] has dtype torch.float16"),
    ):
        with pytest.raises(kind, match=message):
            regnde.solve(exp_decay, y0, [0.0, 1.0])
    with pytest.raises(TypeError, match="JuliaField takes a state of one tensor"):
        regnde.solve(regnde.JuliaField("(t, y) -> -y"), {"x": torch.ones(2)}, [0.0, 1.0])


def test_slopes_of_another_structure_name_the_place() -> None:
    y0 = {"x": torch.ones(2), "v": (torch.ones(3), [torch.ones(2, 2), torch.tensor(1.0)])}
    x, (v, (m, c)) = y0["x"], y0["v"]
    for slope, kind, message in (
        ({"x": x}, ValueError, r"f\(t, y\) is a dict with the keys 'x', but y is a dict with the keys 'x', 'v'"),
        ({"x": x, "w": y0["v"]}, ValueError, r"keys 'x', 'w', but"),
        ({"x": x, "v": (v,)}, ValueError, r"f\(t, y\)\['v'\] is a tuple of 1, but y\['v'\] is a tuple of 2"),
        ({"x": x, "v": v}, TypeError, r"f\(t, y\)\['v'\] is a tensor of shape \(3,\), but y\['v'\] is a tuple of 2"),
        (
            {"x": x, "v": (v, [m])},
            ValueError,
            r"f\(t, y\)\['v'\]\[1\] is a list of 1, but y\['v'\]\[1\] is a list of 2",
        ),
        (
            {"x": x, "v": (v, [m, x])},
            ValueError,
            r"f\(t, y\)\['v'\]\[1\]\[1\] has shape \(2,\), but y\['v'\]\[1\]\[1\] has \(\)",
        ),
        ({"x": x, "v": (v, [m, 1.0])}, TypeError, r"f\(t, y\)\['v'\]\[1\]\[1\] must be a tensor of shape \(\).*float"),
        ({"x": [x], "v": (v, [m, c])}, TypeError, r"f\(t, y\)\['x'\] must be a tensor of shape \(2,\).*list"),
        ({"x": x * 1j, "v": (v, [m, c])}, TypeError, r"f\(t, y\)\['x'\] is torch.complex64.*make y0\['x'\] complex"),
        (
            {"x": x.to("meta"), "v": (v, [m, c])},
            ValueError,
            r"f\(t, y\)\['x'\] is on meta, but the state is on c",
        ),
        (x, TypeError, r"f\(t, y\) is a tensor of shape \(2,\), but y is a dict"),
    ):
        with pytest.raises(kind, match=message):
            regnde.solve(lambda t, y, slope=slope: slope, y0, [0.0, 1.0])
    other = type("Other", (Pair,), {"_fields": ("a", "b")})
    with pytest.raises(ValueError, match="y is a Pair of 2"):
        regnde.solve(lambda t, y: other(*y), Pair(x, v), [0.0, 1.0])
    # Lists and tuples may stand for each other.
    assert regnde.solve(lambda t, y: [-y[0], -y[1]], (x, v), [0.0, 1.0]).y1[0].shape == (2,)


def test_a_field_of_one_tensor_is_told_that_the_state_is_nested() -> None:
    for field in (exp_decay, lambda t, y: y.sum() - y):
        with pytest.raises((TypeError, AttributeError)) as caught:
            regnde.solve(field, (torch.ones(2), torch.ones(2)), [0.0, 1.0])
        assert any("y0 is a tuple of tensors" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match=r"got tuple. Use torch.stack"):
        regnde.solve(lambda t, y: (y[1], -y[0]), [1.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="changed its argument in place"):
        regnde.solve(lambda t, y: (y[0].mul_(-1.0), -y[1]), (torch.ones(2), torch.ones(2)), [0.0, 1.0])


# --- what comes out ------------------------------------------------------------------------------


def test_a_nested_solution_can_be_shown_copied_and_pickled() -> None:
    w = torch.nn.Parameter(torch.tensor(1.0))
    y0 = {"x": torch.ones(2), "v": Pair(torch.ones(3, 1), [torch.tensor(1.0), torch.ones(2)])}
    field = lambda t, y: torch.utils._pytree.tree_map(lambda x: -w * x, y)  # noqa: E731 - one line reads best
    sol = regnde.solve(field, y0, [0.0, 0.5, 1.0], record="all")
    assert "state: {'x': (2,), 'v': Pair(first=(3, 1), rest=[(), (2,)])}, nfe=" in repr(sol)
    arrays = sol.numpy()
    assert isinstance(arrays.ys["v"].rest[0], np.ndarray)
    assert arrays.ys["v"].rest[0].shape == (3,)
    for hand in (lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy):
        got = hand(sol)
        assert torch.equal(got.ys["v"].first, sol.ys["v"].first)
        assert got.ys["v"].first.requires_grad == (hand is copy.copy)
        assert (type(got.y1["v"]), got.stats) == (Pair, sol.stats)


def test_a_failure_has_the_structure_of_the_state_and_names_the_entry() -> None:
    y0 = {"x": torch.ones(2, 2), "v": (torch.ones(3),)}

    def field(t: Tensor, y: Any) -> Any:
        return {"x": -y["x"], "v": (torch.tensor([0.0, 0.0, 1.0]) * y["v"][0] ** 2,)}

    with pytest.raises(regnde.SolveError) as caught:
        regnde.solve(field, y0, [0.0, 0.5, 2.0])
    for problem in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert problem.component == 6
        assert problem.__notes__ == ["Component 6 is y['v'][0], index (2,)."]
        assert problem.solution.ys["x"].shape == (2, 2, 2)
        assert float(problem.solution.ys["v"][0][1, 2]) == pytest.approx(2.0, rel=1e-4)  # 1 / (1 - t)
    sol = regnde.solve(field, y0, [0.0, 0.5, 2.0], throw=False)
    assert sol.ys["v"][0].shape == (2, 3)
    with pytest.raises(regnde.SolveError) as caught:
        regnde.solve(
            lambda t, y: {"x": y["x"] ** 2},
            {"x": torch.tensor([[0.0, 0.0], [0.0, 1.0]])},
            [0.0, 2.0],
            Solver(batch="per-sample"),
        )
    assert caught.value.__notes__ == ["Component 3 is y['x'], index (1, 1)."]


def test_a_checkpoint_names_what_changed_of_a_field_of_many_parts() -> None:
    options, w = {"factor": 1.0}, torch.tensor(1.0, requires_grad=True)
    y0 = {str(i): torch.ones(2) for i in range(300)}
    field = lambda t, y: {key: -options["factor"] * w * x for key, x in y.items()}  # noqa: E731 - one line reads best
    sol = regnde.solve(field, y0, [0.0, 1.0], Solver(gradient="checkpoint", rtol=1e-3, atol=1e-3))
    options["factor"] = 2.0
    with pytest.raises(RuntimeError, match=r"Changed since the solve: f\.options\.factor\."):
        sol.y1["0"].sum().backward()


def test_layers_take_nested_states() -> None:
    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, t: Tensor, y: Any) -> Any:
            return {"x": y["v"], "v": -self.w * y["x"]}

    y0 = {"x": torch.ones(3), "v": torch.zeros(3)}
    sol = NeuralODE(Field(), ts=[0.0, 1.0], record="all")(y0)
    expected = math.cos(math.sqrt(0.5))
    torch.testing.assert_close(sol.y1["x"].detach(), torch.full((3,), expected), rtol=SOLVER * 1e-6, atol=0)
    assert len(sol.steps) == sol.stats.accepted
    noisy = NeuralSDE(Field(), lambda t, y: {key: 0.1 * x for key, x in y.items()})
    assert noisy(y0).y1["v"].shape == (3,)
    model = torch.compile(lambda y: 2 * NeuralODE(Field())(y).y1["x"], backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler looks at gradients that are not there
        torch.testing.assert_close(model(y0), 2 * sol.y1["x"], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("integrand", [RNODE(probe=torch.linspace(-1, 1, 9).double()), TayNODE(2)], ids=repr)
def test_comparators_take_nested_states(integrand: Any) -> None:
    make, take = STRUCTURES["dict"]
    leaves = parts_of(start())
    field = lambda t, y: make(*slopes(RATES, t, *take(y)))  # noqa: E731 - one line reads best
    sol, value = solve_with_integral(field, make(*leaves), [0.0, 1.0], integrand)
    wanted, expected = solve_with_integral(flat_field(RATES), start(), [0.0, 1.0], integrand)
    torch.testing.assert_close(value, expected, rtol=ROUNDING, atol=0)
    assert torch.equal(joined(take(sol.y1)), wanted.y1)
    _, part = solve_with_integral(
        field, make(*leaves), [0.0, 1.0], TayNODE(1), of=lambda y: y["a"], inner=lambda t, a: torch.ones_like(a)
    )
    assert float(part) == pytest.approx(1.0, rel=ROUNDING)


def test_diagnose_takes_nested_states() -> None:
    seen = []

    def metric(solution: regnde.Solution[Any]) -> float:
        seen.append(solution.y1["x"].shape)
        return float(solution.y1["x"].sum())

    y0 = {"x": torch.ones(2), "v": torch.zeros(2, 1)}
    field = lambda t, y: {"x": -y["x"], "v": y["x"].unsqueeze(-1)}  # noqa: E731 - one line reads best
    report = regnde.diagnose(field, y0, [0.0, 1.0], metric=metric, methods=["tsit5"])
    assert set(seen) == {torch.Size([2])}
    assert report.best.evaluations < report.now.evaluations
    with pytest.raises(ValueError, match="give rtol and atol as numbers"):
        regnde.diagnose(field, y0, [0.0, 1.0], Solver(atol={"x": 1e-6, "v": 1e-3}))


def test_gradients_of_nested_states_in_float32() -> None:
    """A state of parts in float32, as users have it, against the float64 one."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in parts_of(start())]
        p = RATES.to(dtype).requires_grad_()
        sol = regnde.solve(lambda t, y, p=p: slopes(p, t, *y), tuple(leaves), [0.0, 1.0], Solver(rtol=1e-5, atol=1e-5))
        found[dtype] = torch.autograd.grad(sol.y1[0].sum() + sol.y1[2], [p, *leaves[:3]])
    for a, b in zip(*found.values(), strict=True):
        assert relative(a.double(), b) < 1e-4

"""Issue 17.4: tolerances for the parts of a state and for its entries."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import regnde
from frozen import Frozen, estimates, gradient_of_norms, relative
from frozen_sde import FrozenSDE
from problems import SMALL_P, SMALL_Y0, exp_decay, geometric, small_net
from regnde import SDE, BrownianPath, ErrorPenalty, Local, Solver
from regnde._engines import engines
from regnde._engines.base import Request
from tolerances import EXACT, GRADIENT, ROUNDING, SOLVER

SPAN = [0.0, 0.7, 1.5]
RTOL = torch.tensor([1e-3, 1e-4], dtype=torch.float64)
ATOL = torch.tensor([[1e-3, 1e-4], [1e-2, math.inf]], dtype=torch.float64)
SMALLEST = 1e-9  # of an error over its tolerance, that rounding lets be told


class Pair(NamedTuple):
    x: Any
    v: Any


def field_of_parts(t: Tensor, y: Any) -> Any:
    """A rotation at two speeds, with time in it."""
    return {"x": y["v"] * torch.cos(t), "v": -4 * y["x"]}


def parts() -> dict[str, Tensor]:
    return {"x": torch.tensor([1.0, 0.3], dtype=torch.float64), "v": torch.tensor([0.0, 0.2], dtype=torch.float64)}


def same(a: regnde.Solution[Any], b: regnde.Solution[Any]) -> None:
    """Two solves that took the same steps, to the last bit."""
    assert a.stats == b.stats
    for x, y in zip(*(torch.utils._pytree.tree_leaves(sol.ys) for sol in (a, b)), strict=True):
        torch.testing.assert_close(x, y, rtol=EXACT, atol=EXACT)
    if a.steps is not None:
        torch.testing.assert_close(a.steps.error, b.steps.error, rtol=EXACT, atol=EXACT, equal_nan=True)


# --- what a tolerance does -----------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "bs3", "vern7"])
def test_records_and_gradients_with_a_tolerance_for_each_entry(method: str, gradient: str) -> None:
    """The estimates are the formula's with these tolerances, and their gradients are right."""
    p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
    solver = Solver(method=method, rtol=RTOL, atol=ATOL, gradient=gradient)
    sol = regnde.solve(small_net(p), y0, SPAN, solver, record="all")
    free = torch.isinf(ATOL)
    rtol = RTOL.expand(2, 2).masked_fill(free, 0.0)
    begins = [SPAN[0], *sol.steps.t.tolist()[:-1]]
    frozen = Frozen(regnde._tableau.TABLEAUX[method], begins, sol.steps.dt.tolist(), rtol, ATOL)
    pieces = frozen.walk(small_net(SMALL_P), SMALL_Y0)[1]
    torch.testing.assert_close(sol.steps.error.detach(), estimates(pieces)[0], rtol=1e-7, atol=SMALLEST)
    assert bool((sol.steps.error <= 1).all())
    assert not pieces[:, 0, 3].any()  # without control

    def penalty(pieces: Tensor) -> Tensor:
        return (estimates(pieces)[0] * sol.steps.dt.abs()).sum()

    of_p, of_y0 = torch.autograd.grad(ErrorPenalty()(sol), [p, y0])
    expected = gradient_of_norms(penalty, lambda q: frozen.walk(small_net(q), SMALL_Y0)[1], SMALL_P)
    assert relative(of_p, expected) < GRADIENT
    expected = gradient_of_norms(penalty, lambda x: frozen.walk(small_net(SMALL_P), x)[1], SMALL_Y0)
    assert relative(of_y0, expected) < GRADIENT


def test_the_record_of_a_local_step_with_a_tolerance_for_each_entry() -> None:
    p = SMALL_P.clone().requires_grad_()
    solver = Solver(rtol=RTOL, atol=ATOL)
    sol = regnde.solve(small_net(p), SMALL_Y0, SPAN, solver, record=Local(sampling="step", seed=1))
    full = regnde.solve(small_net(p), SMALL_Y0, SPAN, solver, record="all")
    place = int((full.steps.t - sol.steps.t).abs().argmin())
    torch.testing.assert_close(sol.steps.error, full.steps.error[place : place + 1], rtol=1e-7, atol=SMALLEST)
    got, wanted = (torch.autograd.grad(x, p)[0] for x in (sol.steps.error, full.steps.error[place]))
    assert bool(torch.isfinite(got).all())
    assert got.shape == wanted.shape


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_samples_with_tolerances_of_their_own(gradient: str) -> None:
    """With per-sample steps each sample takes those that it takes alone at its tolerance."""
    tolerances = torch.tensor([[1e-3], [1e-8], [1e-5]], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0], [0.8, 0.3], [0.2, -0.4]], dtype=torch.float64)
    p, together = SMALL_P.clone().requires_grad_(), Solver(batch="per-sample", gradient=gradient)
    field = lambda t, y: small_net(p)(t.squeeze(-1), y)  # noqa: E731 - one line reads best
    solver = dataclasses.replace(together, rtol=tolerances, atol=tolerances)
    sol = regnde.solve(field, y0, SPAN, solver, record="all")
    (slope,) = torch.autograd.grad(sol.y1.sum() + ErrorPenalty()(sol), p)
    total = torch.zeros_like(slope)
    for i, tolerance in enumerate(tolerances.flatten().tolist()):
        alone = dataclasses.replace(together, rtol=tolerance, atol=tolerance)
        one = regnde.solve(field, y0[i : i + 1], SPAN, alone, record="all")
        assert sol.stats.samples[i] == one.stats.samples[0]
        torch.testing.assert_close(sol.ys[:, i], one.ys[:, 0], rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(sol.steps.error[: len(one.steps), i], one.steps.error[:, 0], rtol=1e-8, atol=0)
        total += torch.autograd.grad(one.y1.sum() + ErrorPenalty()(one), p)[0]
    assert len({sample.accepted for sample in sol.stats.samples}) == 3
    assert relative(slope, total) < 1e-8


@pytest.mark.parametrize(("name", "free"), [("atol", math.inf), ("atol", 1e20), ("rtol", math.inf)])
def test_a_part_without_control(name: str, free: float) -> None:
    """It counts in the mean as 0: half of the entries without control, the others at 1 / sqrt(2) of the tolerance."""
    tight, y0 = 1e-7 / math.sqrt(2), SMALL_Y0.reshape(-1)
    field, p = small_net(SMALL_P), SMALL_P.clone().requires_grad_()
    wanted = regnde.solve(
        lambda t, y: field(t, y.view(2, 2)).reshape(-1), y0, SPAN, Solver(rtol=1e-7, atol=1e-7), record="all"
    )

    def doubled(t: Tensor, y: Any) -> Any:
        slope = small_net(p)(t, y.x.view(2, 2)).reshape(-1)
        return Pair(slope, 1e3 * torch.sin(50 * t) + 0 * y.v)  # takes many more steps if it is controlled

    start = Pair(y0.clone().requires_grad_(), torch.zeros(4, dtype=torch.float64, requires_grad=True))
    solver = Solver(**{"rtol": tight, "atol": tight, name: Pair(tight, free)})
    sol = regnde.solve(doubled, start, SPAN, solver, record="all")
    assert sol.stats.accepted == wanted.stats.accepted
    torch.testing.assert_close(sol.steps.t, wanted.steps.t, rtol=1e-6, atol=0)
    torch.testing.assert_close(sol.ys.x, wanted.ys, rtol=1e-9, atol=1e-12)
    assert 3 * sol.stats.nfe < regnde.solve(doubled, start, SPAN, Solver(rtol=tight, atol=tight)).stats.nfe
    slopes = torch.autograd.grad(ErrorPenalty()(sol) + sol.y1.v.sum(), [p, *start])
    assert all(bool(torch.isfinite(x).all()) for x in slopes)
    assert slopes[1].any()
    assert slopes[2].tolist() == [1.0] * 4  # of the states alone


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_states_at_0_without_control(batch: str) -> None:
    """No 0 / 0, no 0 * inf: in no form of tolerance, with no first step."""
    y0 = torch.tensor([[0.0, 1.0]]).requires_grad_()
    for tolerances in (
        {"atol": torch.tensor([math.inf, 1e-5])},
        {"rtol": torch.tensor([math.inf, 1e-5])},
        {"rtol": torch.tensor([1e38, 1e-5]), "atol": torch.tensor([math.inf, 0.0])},
        {"rtol": torch.tensor([math.inf, 1e-5]), "atol": 0.0},
        {"rtol": torch.tensor([1e20, 1e-5]), "atol": 1e-5},
    ):
        sol = regnde.solve(exp_decay, y0, SPAN, Solver(**tolerances, batch=batch), record="all")
        assert bool(torch.isfinite(sol.steps.error).all())
        assert float(sol.y1[0, 1].detach()) == pytest.approx(math.exp(-1.5), rel=SOLVER * 1e-5)
        (slope,) = torch.autograd.grad(sol.y1.sum() + ErrorPenalty()(sol), y0)
        assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["sosri", "sosri2", "sriw1"])
def test_an_sde_with_a_tolerance_for_each_entry(method: str, gradient: str) -> None:
    y0, path = torch.tensor([1.0, 0.5], dtype=torch.float64), BrownianPath(0.0, 1.0, (2,), seed=2)
    rtol, atol = (torch.tensor(x, dtype=torch.float64) for x in ([0.1, 0.0], [1e-2, math.inf]))
    solver = Solver(method=method, rtol=0.1, atol=atol, gradient=gradient)
    y = y0.clone().requires_grad_()
    sol = regnde.solve(geometric(), y, [0.0, 1.0], solver, record="all", noise=path)
    ends = [0.0, *sol.steps.t.tolist()]
    frozen = dataclasses.replace(FrozenSDE.on(path, method, ends), rtol=rtol, atol=atol)
    frozen_error = frozen.walk(geometric(), y0)[1]
    torch.testing.assert_close(sol.steps.error.detach(), frozen_error, rtol=1e-6, atol=1e-12)
    (slope,) = torch.autograd.grad(ErrorPenalty()(sol), y)
    again = y0.clone().requires_grad_()
    replayed = (frozen.walk(geometric(), again)[1] * sol.steps.dt).sum()
    torch.testing.assert_close(slope, torch.autograd.grad(replayed, again)[0], rtol=1e-6, atol=1e-12)
    parted = SDE(lambda t, y: {k: 0.4 * x for k, x in y.items()}, lambda t, y: {k: 0.5 * x for k, x in y.items()})
    chosen = dataclasses.replace(solver, atol={"a": 1e-2, "b": math.inf})
    nested = regnde.solve(parted, {"a": y0[0], "b": y0[1]}, [0.0, 1.0], chosen, record="all", noise=path)
    assert nested.stats == sol.stats
    torch.testing.assert_close(nested.steps.error, sol.steps.error.detach(), rtol=ROUNDING, atol=0)


# --- forms ---------------------------------------------------------------------------------------


def test_numbers_in_any_form_are_one_number() -> None:
    wanted = regnde.solve(field_of_parts, parts(), SPAN, Solver(rtol=1e-7, atol=1e-4), record="all")
    for rtol, atol in (
        ({"x": 1e-7, "v": 1e-7}, 1e-4),
        (1e-7, {"v": 1e-4, "x": torch.full((2,), 1e-4, dtype=torch.float64)}),
        (np.float64(1e-7), {"x": np.full(2, 1e-4), "v": [1e-4, 1e-4]}),
        (torch.tensor(1e-7, dtype=torch.float64), np.array(1e-4)),
    ):
        same(regnde.solve(field_of_parts, parts(), SPAN, Solver(rtol=rtol, atol=atol), record="all"), wanted)
    whole = torch.full((2, 1), 1e-5, dtype=torch.float64)
    same(
        regnde.solve(small_net(SMALL_P), SMALL_Y0, SPAN, Solver(atol=whole), record="all"),
        regnde.solve(small_net(SMALL_P), SMALL_Y0, SPAN, Solver(atol=1e-5), record="all"),
    )


def test_tolerances_of_parts_are_those_of_their_entries() -> None:
    y0 = parts()
    flat = lambda t, y: torch.cat((y[2:] * torch.cos(t), -4 * y[:2]))  # noqa: E731 - one line reads best
    entries = torch.tensor([1e-7, 1e-4, 1e-2, 1e-2], dtype=torch.float64)
    wanted = regnde.solve(flat, torch.cat([*y0.values()]), SPAN, Solver(atol=entries), record="all")
    per_entry = torch.tensor([1e-7, 1e-4], dtype=torch.float64)
    for atol in (
        {"x": per_entry, "v": 1e-2},
        {"v": [1e-2], "x": per_entry.tolist()},
        {"x": per_entry.cpu().numpy(), "v": np.float64(1e-2)},
    ):
        sol = regnde.solve(field_of_parts, y0, SPAN, Solver(atol=atol), record="all")
        assert sol.stats == wanted.stats
        torch.testing.assert_close(sol.steps.error, wanted.steps.error, rtol=EXACT, atol=EXACT)
    for atol in (Pair([1e-7, 1e-4], 1e-2), ([1e-7, 1e-4], 1e-2), [per_entry, 1e-2]):
        field = lambda t, y: (y[1] * torch.cos(t), -4 * y[0])  # noqa: E731 - one line reads best
        sol = regnde.solve(field, Pair(*y0.values()), SPAN, Solver(atol=atol), record="all")
        torch.testing.assert_close(sol.steps.error, wanted.steps.error, rtol=EXACT, atol=EXACT)
    same(
        regnde.solve(flat, torch.cat([*y0.values()]), SPAN, Solver(atol=[1e-7, 1e-4, 1e-2, 1e-2]), record="all"),
        wanted,
    )


def test_one_number_for_all_parts_of_a_container() -> None:
    y0 = {"x": torch.ones(2), "v": (torch.ones(1), [torch.tensor(1.0), torch.ones(2, 2)])}
    field = lambda t, y: torch.utils._pytree.tree_map(lambda x: -x, y)  # noqa: E731 - one line reads best
    wanted = Solver(atol={"x": 1e-5, "v": (1e-3, [1e-3, torch.full((2, 2), 1e-3)])})
    same(
        regnde.solve(field, y0, SPAN, Solver(atol={"x": 1e-5, "v": 1e-3}), record="all"),
        regnde.solve(field, y0, SPAN, wanted, record="all"),
    )


def test_methods_of_fixed_step_size_take_any_tolerance() -> None:
    y0 = parts()
    plain = regnde.solve(field_of_parts, y0, SPAN, Solver(method="rk4", dt0=0.1))
    same(regnde.solve(field_of_parts, y0, SPAN, Solver(method="rk4", dt0=0.1, atol={"x": 1.0, "v": math.inf})), plain)


# --- what a solver is ----------------------------------------------------------------------------


def test_solvers_with_tolerances_of_parts_are_values() -> None:
    entries = torch.tensor([1e-6, math.inf])
    make = lambda: Solver(atol={"x": 1e-6, "v": [entries.clone(), 1e-3]})  # noqa: E731 - one line reads best
    solver = make()
    assert solver == make()
    assert hash(solver) == hash(make())
    assert len({solver, make(), Solver()}) == 2
    assert solver != Solver(atol={"x": 1e-6, "v": [entries * 2, 1e-3]})
    assert solver != Solver(atol=1e-6)
    assert Solver(atol={"a": 1.0, "b": 2.0}) == Solver(atol={"b": 2.0, "a": 1.0})
    assert Solver(atol=np.ones(2)) == Solver(atol=torch.ones(2)) != Solver(atol=torch.ones(1, 2))
    assert Solver(rtol=torch.tensor(0.5)) == Solver(rtol=0.5)
    assert hash(Solver(rtol=torch.tensor(0.5))) == hash(Solver(rtol=0.5))
    for again in (
        dataclasses.replace(solver, dt0=0.1, method="bs3"),
        pickle.loads(pickle.dumps(solver)),
        copy.deepcopy(solver),
    ):
        assert again.atol == solver.atol
    assert repr(Solver(atol={"x": 0.5, "v": (np.array([1.0, math.inf]), math.inf)})) == (
        "Solver(atol={'x': 0.5, 'v': ([1, inf], inf)})"
    )
    assert repr(Solver(rtol=torch.linspace(1, 2, 50))) == "Solver(rtol=array(shape=(50,), 1 to 2))"
    values = torch.ones(2)
    mine = Solver(atol=values)
    values.zero_()
    assert mine == Solver(atol=torch.ones(2))
    sol = regnde.solve(field_of_parts, parts(), SPAN, dataclasses.replace(solver, atol={"x": 1e-6, "v": entries}))
    assert repr(sol.solver.atol).startswith("{'x': 1e-06, 'v': [1e-06, inf]")


def test_tolerances_that_can_not_be_used() -> None:
    for wrong, kind, message in (
        ({"x": -1.0}, ValueError, r"rtol\['x'\] is -1.0: give numbers of at least 0"),
        ((1.0, [math.nan]), ValueError, r"rtol\[1\]\[0\] is nan"),
        (torch.tensor([1.0, -1.0]), ValueError, "numbers of at least 0"),
        ({"x": "small"}, TypeError, r"rtol\['x'\] is 'small': give a number"),
        (np.array(["a"]), TypeError, "give a number"),
        ([1.0, None], TypeError, r"rtol\[1\] is None"),
        (torch.ones(2, requires_grad=True), ValueError, "requires a gradient.*detached"),
    ):
        with pytest.raises(kind, match=message):
            Solver(rtol=wrong)


def test_tolerances_that_do_not_fit_the_state() -> None:
    def refused(message: str, y0: Any, **tolerances: Any) -> None:
        with pytest.raises(ValueError, match=message):
            regnde.solve(field_of_parts, y0, SPAN, Solver(**tolerances))

    y0 = parts()
    refused(
        r"rtol=...\): y is a dict with the keys 'x', 'v', but rtol is a dict with the keys 'x'\.", y0, rtol={"x": 1.0}
    )
    refused("but atol is a sequence of 2", y0, atol=(1.0, 1.0))
    refused(r"but atol is an array of shape \(2,\)", y0, atol=np.ones(2))
    refused(
        r"atol\['x'\] has shape \(3,\), which does not broadcast to the shape \(2,\) of y\['x'\]",
        y0,
        atol={"x": np.ones(3), "v": 1.0},
    )
    refused(r"atol\['x'\] is a dict, but y\['x'\] is one tensor", y0, atol={"x": {"z": 1.0}, "v": 1.0})
    refused(r"atol\['x'\] is no array of numbers", y0, atol={"x": [1.0, [1.0, 2.0]], "v": 1.0})
    refused(r"rtol and atol of y\['v'\] are both 0", y0, rtol={"x": 0.1, "v": 0.0}, atol=0.0)
    refused("infinite for every entry", y0, rtol={"x": math.inf, "v": 1.0}, atol={"x": 1.0, "v": math.inf})
    refused("atol=0 leaves entries of y0", y0, atol={"x": 1.0, "v": 0.0})
    refused(r"has shape \(3,\), which does not broadcast to the shape \(2,\) of y\.", torch.ones(2), atol=np.ones(3))


def test_rounding_is_warned_of_where_a_part_asks_for_it() -> None:
    y0 = torch.ones(2)
    with pytest.warns(UserWarning, match="rtol=1e-09, atol=1e-09 lie below the resolution 1.2e-07"):
        regnde.solve(exp_decay, y0, SPAN, Solver(rtol=1e-9, atol=1e-9))
    with pytest.warns(UserWarning, match="lie below the resolution"):
        regnde.solve(exp_decay, y0, SPAN, Solver(rtol=torch.tensor([1e-9, 1e-3]), atol=1e-9))
    regnde.solve(exp_decay, y0, SPAN, Solver(rtol=torch.tensor([math.inf, 1e-3]), atol=1e-9))  # no warning


def test_the_julia_engine_says_which_tolerances_it_does_not_take() -> None:
    for solver, record, message in (
        (Solver(method="rodas5p", gradient="gauss"), "none", "one number as rtol"),
        (Solver(gradient="gauss"), "none", "tolerances of each entry"),
        (Solver(), "all", None),
    ):
        request = Request(
            equation=exp_decay,
            y0=torch.ones(2, device="cpu"),
            ts=torch.tensor([0.0, 1.0]),
            times=(0.0, 1.0),
            solver=solver.resolve(sde=False),
            record=record,
            noise=None,
            throw=True,
            tolerances=(torch.tensor([1e-3, 1.0]), 1e-3),
        )
        why = engines()["julia"].why_unsupported(request)
        assert why is None if message is None else message in (why or "")

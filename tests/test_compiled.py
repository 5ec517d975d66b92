"""`Solver(compile=True)`: the same numbers, and a warning where torch can not compile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regnde
from regnde import ErrorPenalty, Solver, StiffnessPenalty

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "python")}
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler on the path"
)


@needs_compiler
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_steps_are_the_same_steps() -> None:
    net = regnde.nn.MLP([3, 8, 3]).double()
    y0 = torch.randn(4, 3, dtype=torch.float64)
    outcomes = []
    for compile_ in (False, True):
        calls = Solver(rtol=1e-5, atol=1e-5, compile=compile_, engine="torch")
        sol = regnde.solve(net, y0, [0.0, 0.4, 2.0], calls, record="all")
        loss = sol.ys.square().sum() + ErrorPenalty()(sol) + StiffnessPenalty("mean")(sol)
        outcomes.append((sol.stats, loss.detach(), torch.autograd.grad(loss, list(net.parameters()))))
    assert outcomes[0][0].nfe == outcomes[1][0].nfe
    torch.testing.assert_close(outcomes[0][1:], outcomes[1][1:], rtol=1e-6, atol=1e-10)


def test_falls_back_with_a_warning() -> None:
    """Where torch finds no compiler; in a process of its own, as compiled steps are kept."""
    code = """
import torch, warnings

def compile(function, **options):
    def broken(*arguments):
        raise RuntimeError("no compiler found")
    return broken

torch.compile = compile
import regnde
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], regnde.Solver(compile=True, engine="torch"))
assert any("runs uncompiled" in str(warning.message) for warning in caught), caught
assert abs(float(sol.y1) - 0.367879) < 1e-5
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_what_does_not_go_together() -> None:
    for other in (dict(gradient="checkpoint"), dict(batch="per-sample")):
        with pytest.raises(ValueError, match="compile=True"):
            Solver(compile=True, **other)

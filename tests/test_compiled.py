"""`Solver(compile=True)`: the same numbers, and a warning where torch can not compile."""

from __future__ import annotations

import shutil

import pytest
import torch

import regnde
from regnde import ErrorPenalty, Solver, StiffnessPenalty
from regnde._engines.torch import compiled

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


def test_falls_back_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(compiled, "_compiler", lambda: lambda *arguments: broken())
    with pytest.warns(UserWarning, match="runs uncompiled"):
        sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], Solver(compile=True, engine="torch"))
    assert float(sol.y1) == pytest.approx(0.367879, rel=1e-5)


def test_what_does_not_go_together() -> None:
    for other in (dict(gradient="checkpoint"), dict(batch="per-sample")):
        with pytest.raises(ValueError, match="compile=True"):
            Solver(compile=True, **other)

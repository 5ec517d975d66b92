"""Fields on the Julia engine: every kind that the exporter writes, and those written in Julia."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regnde
from complex_fields import COMPLEX_FIELDS, COMPLEX_STATES
from fields import ZOO, Zoo
from frozen import relative
from operator_fields import OPERATORS
from regnde import JuliaField, Solver
from regnde._engines.julia.runtime import JuliaFailure
from tolerances import ROUNDING

# Julia fuses multiply-adds and sums in another order: a step from equal states agrees to this, relative.
STEP = 1e-9
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("julia")]
JULIA = Solver(engine="julia")


def parameters_of(field: object) -> list[Tensor]:
    """What a module, or a closure over modules and tensors, has that needs a gradient."""
    if isinstance(field, nn.Module):
        return [p for p in field.parameters() if p.requires_grad]
    if isinstance(field, Tensor):
        return [field] if field.requires_grad else []
    cells = [cell.cell_contents for cell in getattr(field, "__closure__", None) or ()]
    return [x for held in cells for x in parameters_of(held)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("zoo", ZOO + OPERATORS + COMPLEX_FIELDS + COMPLEX_STATES, ids=str)
def test_a_step_and_its_gradient_equal_torchs(zoo: Zoo) -> None:
    """A loose tolerance and a first step over the whole span: both engines make it, and that alone."""
    field, y = zoo.make()
    called = (lambda t, y: field(y)) if isinstance(field, nn.Sequential) else field
    wanted = parameters_of(field)
    results = []
    for engine in ("torch", "julia"):
        y0 = y.clone().requires_grad_()
        solver = Solver(dt0=0.01, rtol=1e3, atol=1e3, engine=engine)  # type: ignore[arg-type]
        sol = regnde.solve(called, y0, [0.0, 0.01], solver, record="all")
        assert (sol.engine, sol.stats.accepted) == (engine, 1)
        weights = torch.linspace(1, 2, sol.y1.numel(), dtype=y.real.dtype).reshape(y.shape)
        value = (
            sol.y1 * (weights * (1 - 2j) if y.is_complex() else weights)
        ).real.sum() + 1e9 * sol.steps.error.square().sum()
        results.append((sol.y1, torch.autograd.grad(value, (y0, *wanted), allow_unused=True)))
    (theirs, others), (ours, grads) = results
    torch.testing.assert_close(ours, theirs, rtol=STEP, atol=STEP)
    scale = max(float(g.abs().max()) for g in others if g is not None)  # some are zero but for rounding
    for a, b in zip(grads, others, strict=True):
        if a is None or b is None:
            assert all(x is None or not x.any() for x in (a, b))
        else:
            assert float((a - b).abs().max()) < 1e-6 * scale


def test_a_field_that_writes_its_slope() -> None:
    """Entry by entry or by broadcasting; value and gradient are those of the other form."""
    w = torch.tensor([[0.0, 1.0], [-1.0, -0.1]], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64, requires_grad=True)
    sources = (
        "(t, y, w) -> w' * y .+ sin(t)",
        "(dy, t, y, w) -> (dy .= w' * y .+ sin(t))",
        """
        function (dy, t, y, w)
            for j in axes(y, 2), i in axes(y, 1)
                dy[i, j] = w[1, i] * y[1, j] + w[2, i] * y[2, j] + sin(t)
            end
        end
        """,
    )
    results = []
    for source in sources:
        sol = regnde.solve(JuliaField(source, (w,)), y0, [0.0, 1.0], JULIA, record="all")
        results.append((sol.ys, torch.autograd.grad(sol.ys.square().sum() + sol.steps.error.sum(), (w, y0))))
    for ys, grads in results[1:]:
        torch.testing.assert_close(ys, results[0][0], rtol=ROUNDING, atol=ROUNDING)
        for a, b in zip(grads, results[0][1], strict=True):
            assert relative(a, b) < 1e-9


@pytest.mark.parametrize(
    ("source", "parameters", "message"),
    [
        ("3", 0, r"must end in a function \(t, y, p\.\.\.\) -> dy"),
        ("(t, y, p) -> p[1] .* y", 2, r"with 2 parameters .* write it as \(t, y, p1, p2\) -> dy"),
        ("(t, y, p) -> y", 0, "has written no dy, .* each of 0 parameters"),
        ("function f(t, y)\n    z = y .* 2\n    return undefined_name .* z\nend", 0, "undefined_name.*\n  at line 3"),
        ("(t, y) -> sum(y)", 0, r"returned size \(\) for a state of size \(2,\)"),
        ("function f(t, y)\n    y .* [1.0, 2.0, 3.0]\nend", 0, "DimensionMismatch.*\n  at line 2"),
        ("(t, y -> y", 0, "at line 1 of the JuliaField"),
    ],
)
def test_case_F8_errors_in_a_julia_field_name_its_line(source: str, parameters: int, message: str) -> None:
    tensors = [torch.ones(2, dtype=torch.float64) for _ in range(parameters)]
    y0 = torch.ones(2, dtype=torch.float64)
    with pytest.raises(JuliaFailure, match=message) as caught:
        regnde.solve(JuliaField(source, tensors), y0, [0.0, 1.0], JULIA)
    assert "Stacktrace" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6

"""Every way to keep and combine stages gives the same solve: numpy and products for small states, and plain sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import regnde
from regnde import Solver
from regnde._engines.torch import buffers, ode, stages
from regnde._engines.torch.tableaux import TABLEAUX
from tolerances import GRADIENT, ROUNDING

STARTS: dict[str, Callable[[], Tensor]] = {
    "number": lambda: torch.tensor(0.7, dtype=torch.float64),
    "vector": lambda: torch.linspace(-1, 1, 3, dtype=torch.float64),
    "batch": lambda: torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3),
    "transposed": lambda: torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).T,
    "every second": lambda: torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)[:, ::2],
    "expanded": lambda: torch.linspace(-1, 1, 3, dtype=torch.float64).expand(4, 3),
    "negated view": lambda: torch.linspace(-1, 1, 3, dtype=torch.float64).mul(1j).conj().imag,
    "three dimensions": lambda: torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 2, 3),
    "one column": lambda: torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None],
    "long": lambda: torch.linspace(-1, 1, 600, dtype=torch.float64).reshape(300, 2),
    "none": lambda: torch.zeros(0, 2, dtype=torch.float64),
    "no columns": lambda: torch.zeros(2, 0, dtype=torch.float64),
}


def solved(method: str, start: Tensor, *, grad: bool) -> list[Tensor]:
    """States at save times in and between steps, the error estimates, gradients; some trial steps are rejected."""
    w = torch.tensor(1.3, dtype=torch.float64, requires_grad=grad)
    y0 = start.detach().requires_grad_(grad)
    size = {} if TABLEAUX[method].controller else {"dt0": 0.05}
    if not size and start.numel():
        size = {"dt0": 0.4}  # too large for the tolerance
    with torch.set_grad_enabled(grad):
        sol = regnde.solve(
            lambda t, y: torch.sin(w * y + 9 * t) - y,
            y0,
            [0.0, 0.13, 0.5, 1.0],
            Solver(method=method, rtol=1e-6, atol=1e-6, engine="torch", **size),
            record="all" if TABLEAUX[method].controller else "none",
        )
    counts = torch.tensor([sol.stats.nfe, sol.stats.accepted, sol.stats.rejected])
    found = [counts, sol.ys.detach()]
    if sol.steps is not None:
        found.append(sol.steps.error.detach())
    if grad:
        loss = sol.ys.sum() + (0.0 if sol.steps is None else sol.steps.error.sum())
        found += torch.autograd.grad(loss, [y0, w], materialize_grads=True, allow_unused=True)
    return found


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("method", sorted(TABLEAUX))
def test_small_states_are_stepped_like_large_ones(
    method: str, start: str, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    y0 = STARTS[start]()
    small = solved(method, y0, grad=grad)
    for module in (buffers, stages):
        monkeypatch.setattr(module, "arrays_serve", lambda y: False)
    plain = solved(method, y0, grad=grad)
    assert torch.equal(small[0], plain[0])
    for a, b in zip(small[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=GRADIENT, atol=ROUNDING)


@pytest.mark.parametrize(
    ("kind", "grad", "y0"),
    [
        (buffers.ArrayStages, False, torch.ones(4, 3)),
        (buffers.BufferStages, False, torch.ones(400, 3)),
        (buffers.BufferStages, False, torch.ones(4, 3, dtype=torch.complex64)),
        (stages.ProductStages, True, torch.ones(4, 3)),
        (stages.ProductStages, True, torch.ones(3)),
        (stages.ListStages, True, torch.ones(4, 9)),
        (stages.ListStages, True, torch.ones(300, 2)),
        (stages.ListStages, True, torch.ones(())),
    ],
)
def test_which_kind_serves(kind: type, grad: bool, y0: Tensor) -> None:
    choose = stages.listed if grad else buffers.buffered
    assert type(choose(TABLEAUX["tsit5"], y0)) is kind
    assert ode.MANY > 400 * 3


def test_a_field_may_keep_its_arguments() -> None:
    """They are tensors of their own: none is overwritten by a later stage or step."""
    kept, copies = [], []

    def field(t: Tensor, y: Tensor) -> Tensor:
        kept.append((t, y))
        copies.append((t.clone(), y.clone()))
        return -y

    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            regnde.solve(field, torch.ones(4, 3), [0.0, 0.3, 1.0], Solver(engine="torch"))
    for (t, y), (t_then, y_then) in zip(kept, copies, strict=True):
        assert torch.equal(t, t_then)
        assert torch.equal(y, y_then)


def test_y0_is_left_as_it_was() -> None:
    y0 = torch.linspace(-1, 1, 12).reshape(4, 3)
    before = y0.clone()
    with torch.no_grad():
        ys = regnde.solve(lambda t, y: -y, y0, [0.0, 1.0], Solver(engine="torch")).ys
    ys.zero_()
    assert torch.equal(y0, before)

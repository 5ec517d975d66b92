"""What a type checker sees of solutions. `mypy` checks this file with the package; nothing runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, assert_type

import numpy as np
import torch
from torch import Tensor

import regnde


class Phase(NamedTuple):
    x: Tensor
    v: Tensor


def field(t: Tensor, y: Tensor) -> Tensor:
    return -y


def of_tuple(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return y[1], -y[0]


def of_dict(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: -x for key, x in y.items()}


def of_phase(t: Tensor, y: Phase) -> Phase:
    return Phase(y.v, -y.x)


def one_tensor(y0: Tensor, module: torch.nn.Module, numbers: Sequence[float]) -> Tensor:
    ts = torch.linspace(0, 1, 5)
    assert_type(regnde.solve(field, y0, ts), regnde.Solution[Tensor])
    assert_type(regnde.solve(field, y0, [0.0, 1.0], regnde.Solver(atol=torch.ones(2))).ys, Tensor)
    assert_type(regnde.solve(module, y0, (0.0, 1.0), record="all").y1, Tensor)
    assert_type(regnde.solve(lambda t, y: -y, [1.0, 2.0], [0, 1]).y1, Tensor)
    assert_type(regnde.solve(field, 1.0, np.linspace(0, 1, 3)).ys, Tensor)
    assert_type(regnde.solve(field, np.ones(3), ts).ys, Tensor)
    assert_type(regnde.solve(field, numbers, ts).ys, Tensor)
    assert_type(regnde.solve(regnde.SDE(field, field), y0, ts).ys, Tensor)
    assert_type(regnde.solve(regnde.JuliaField("(t, y) -> -y"), y0, ts).ys, Tensor)
    last: Tensor = 2 * regnde.solve(field, y0, ts).y1
    return last


def several_tensors(x: Tensor) -> None:
    ts = [0.0, 1.0]
    assert_type(regnde.solve(of_tuple, (x, x), ts).y1, tuple[Tensor, Tensor])
    assert_type(regnde.solve(of_dict, {"a": x}, ts).ys["a"], Tensor)
    assert_type(regnde.solve(of_phase, Phase(x, x), ts).y1.v, Tensor)
    assert_type(regnde.solve(regnde.SDE(of_dict, of_dict), {"a": x}, ts).ys, dict[str, Tensor])
    assert_type(regnde.solve(lambda t, y: [y[1], -y[0]], [x, x], ts).ys, Any)
    of_lists: list[Any] = [x, [x]]
    assert_type(regnde.solve(lambda t, y: [y[0], [y[1][0]]], of_lists, ts).ys, Any)
    mixed: dict[str, Any] = {"a": x, "b": (x,)}
    assert_type(regnde.solve(lambda t, y: {"a": y["a"], "b": (-y["b"][0],)}, mixed, ts).ys, dict[str, Any])


def handed_on(solution: regnde.Solution, penalty: regnde.Penalty) -> Tensor:
    """Without a type in brackets it is a solution of one tensor."""
    assert_type(solution.ys, Tensor)
    return penalty(solution) + solution.y1.sum()

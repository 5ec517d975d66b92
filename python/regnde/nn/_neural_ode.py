"""A neural ODE as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde.nn._output import Output, checked_output, picked
from regnde.nn._times import Times, kept_times, shown

__all__ = ["NeuralODE"]


class NeuralODE(nn.Module):
    """A field and how to solve it, as a layer that maps an initial state to a `Solution` or to states.

    Args:
        field: f(t, y), usually a module; its parameters are the layer's.
        ts: save times, in units of time. A tensor that requires a gradient, or a sequence with such tensors, keeps it;
            an `nn.Parameter` is one of the layer's: it is trained, and its `state_dict` has it. Other times become
            floats.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.
        output: `"solution"`; or, for `nn.Sequential`, a tensor: `"state"`, the one at the last time, of y0's shape, or
            `"states"`, those at all times, shape (T, *y0.shape).

    Examples:
        >>> import torch
        >>> from regnde.nn import MLP, NeuralODE
        >>> layer = NeuralODE(MLP([2, 16, 2]), record="all")
        >>> solution = layer(torch.zeros(5, 2))
        >>> solution.y1.shape, solution.steps is not None, layer.eval()(torch.zeros(5, 2)).steps
        (torch.Size([5, 2]), True, None)
        >>> model = nn.Sequential(nn.Linear(3, 2), NeuralODE(MLP([2, 16, 2]), output="state"), nn.Linear(2, 1))
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        field: Callable[[Tensor, Any], Any],
        ts: Times = (0.0, 1.0),
        solver: Solver | None = None,
        record: Record = "none",
        *,
        output: Output = "solution",
    ) -> None:
        super().__init__()
        self.field = field
        self.ts = kept_times(ts)
        self.solver = Solver() if solver is None else solver
        self.record = record
        self.output = checked_output("NeuralODE", output)

    def forward(self, y0: Any, ts: Times | None = None) -> Any:
        """Solves from y0, which is as for `regnde.solve`, at the layer's times or at `ts`."""
        record = self.record if self.training else "none"
        solution = solve(self.field, y0, self.ts if ts is None else ts, self.solver, record=record)
        return picked(solution, self.output)

    def extra_repr(self) -> str:
        """Times, solver, record and output, for the module's repr."""
        return f"ts={shown(self.ts)}, solver={self.solver}, record={self.record!r}, output={self.output!r}"

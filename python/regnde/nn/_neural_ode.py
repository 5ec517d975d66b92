"""A neural ODE as a layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde.nn._times import Times, kept_times, shown

__all__ = ["NeuralODE"]


class NeuralODE(nn.Module):
    """A field and how to solve it, as a layer that maps an initial state to a `Solution`.

    Args:
        field: f(t, y), usually a module; its parameters are the layer's.
        ts: save times, in units of time. A tensor that requires a gradient, or a sequence with such tensors, keeps it;
            an `nn.Parameter` is one of the layer's: it is trained, and its `state_dict` has it. Anything else is kept
            as floats.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.

    Examples:
        >>> from regnde.nn import MLP
        >>> layer = NeuralODE(MLP([2, 16, 2]), record="all")
        >>> solution = layer(torch.zeros(5, 2))
        >>> solution.y1.shape, solution.steps is not None, layer.eval()(torch.zeros(5, 2)).steps
        (torch.Size([5, 2]), True, None)
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor], Tensor],
        ts: Times = (0.0, 1.0),
        solver: Solver | None = None,
        record: Record = "none",
    ) -> None:
        super().__init__()
        self.field = field
        self.ts = kept_times(ts)
        self.solver = Solver() if solver is None else solver
        self.record = record

    def forward(self, y0: Tensor, ts: Times | None = None) -> Solution:
        """Solves from y0, any shape, at the layer's times or at `ts` instead."""
        record = self.record if self.training else "none"
        return solve(self.field, y0, self.ts if ts is None else ts, self.solver, record=record)

    def extra_repr(self) -> str:
        """Times, solver and record, for the module's repr."""
        return f"ts={shown(self.ts)}, solver={self.solver}, record={self.record!r}"

"""A neural SDE as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from regnde._equation import SDE, Calculus, Noise
from regnde._noise import BrownianPath
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde.nn._output import Output, checked_output, picked
from regnde.nn._times import Times, kept_times, shown

__all__ = ["NeuralSDE"]


class NeuralSDE(nn.Module):
    """A drift, a diffusion and how to solve them, as a layer that maps an initial state to a `Solution` or to states.

    For many trajectories from one state, expand the state: they are then one system with one step size, and
    each entry has its own noise.

    Args:
        drift: f(t, y), usually a module; its parameters are the layer's.
        diffusion: g(t, y), likewise.
        ts: save times, increasing, in units of time.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.
        output: as in `NeuralODE`.
        noise: kind of noise, which says what shape the diffusion has and what it multiplies: see `SDE`.
        calculus: `"ito"` or `"stratonovich"`.

    Examples:
        >>> import torch
        >>> from regnde.nn import MLP, NeuralSDE
        >>> layer = NeuralSDE(MLP([2, 16, 2]), MLP([2, 2]), record="all")
        >>> solution = layer(torch.zeros(2).expand(100, 2))
        >>> solution.y1.shape, len(solution.steps) == solution.stats.accepted
        (torch.Size([100, 2]), True)
    """

    def __init__(
        self,
        drift: Callable[[Tensor, Any], Any],
        diffusion: Callable[[Tensor, Any], Any],
        ts: Times = (0.0, 1.0),
        solver: Solver | None = None,
        record: Record = "none",
        *,
        output: Output = "solution",
        noise: Noise = "diagonal",
        calculus: Calculus = "ito",
    ) -> None:
        super().__init__()
        self.drift = drift
        self.diffusion = diffusion
        self.ts = kept_times(ts)
        self.solver = Solver() if solver is None else solver
        self.record = record
        self.output = checked_output("NeuralSDE", output)
        self.noise, self.calculus = noise, calculus
        self._equation()  # refuses what is no kind of noise or calculus

    def _equation(self) -> SDE:
        return SDE(self.drift, self.diffusion, self.noise, self.calculus)

    def forward(self, y0: Any, ts: Times | None = None, *, noise: BrownianPath | None = None) -> Any:
        """Solves from y0, as `regnde.solve` takes it, at the layer's times or at `ts`, along a new path or `noise`."""
        record = self.record if self.training else "none"
        times = self.ts if ts is None else ts
        solution = solve(self._equation(), y0, times, self.solver, record=record, noise=noise)
        return picked(solution, self.output)

    def extra_repr(self) -> str:
        """Times, solver, record and output, for the module's repr."""
        kind = f"noise={self.noise!r}, calculus={self.calculus!r}"
        return f"ts={shown(self.ts)}, solver={self.solver}, record={self.record!r}, output={self.output!r}, {kind}"

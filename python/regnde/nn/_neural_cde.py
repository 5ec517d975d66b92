"""A neural controlled differential equation: a state that a path of data drives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from regnde._arguments import check_arguments
from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde.nn._control_path import ControlPath, CubicPath
from regnde.nn._output import Output, checked_output, picked
from regnde.nn._times import Times, as_floats

__all__ = ["NeuralCDE"]

Field = Callable[[Tensor, Tensor], Tensor]


class NeuralCDE(nn.Module):
    """A state driven by a path: dz = f(t, z) dX, with f a matrix for each state.

    Source: Kidger, Morrill, Foster, Lyons, "Neural controlled differential equations for irregular time series"
    (NeurIPS 2020).

    Args:
        field: f(t, z) of states of shape (batch, hidden), returning shape (batch, hidden, channels); usually a module,
            whose parameters are the layer's.
        initial: maps X at the first time, shape (batch, channels), to the initial state, shape (batch, hidden); None if
            each call gives the state.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.
        path: makes the path of a tensor of values, shape (batch, T, channels).
        output: as in `NeuralODE`.

    Examples:
        >>> import torch
        >>> from regnde.nn import LinearPath, NeuralCDE
        >>> class Field(nn.Module):
        ...     def __init__(self, hidden, channels):
        ...         super().__init__()
        ...         self.layer, self.shape = nn.Linear(hidden, hidden * channels), (hidden, channels)
        ...     def forward(self, t, z):
        ...         return torch.tanh(self.layer(z)).unflatten(-1, self.shape)
        >>> layer = NeuralCDE(Field(4, 3), nn.Linear(3, 4), path=LinearPath, output="state")
        >>> nn.Sequential(layer, nn.Linear(4, 1))(torch.randn(5, 10, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        field: Field,
        initial: Callable[[Tensor], Tensor] | None = None,
        solver: Solver | None = None,
        record: Record = "none",
        *,
        path: Callable[[Tensor], ControlPath] = CubicPath,
        output: Output = "solution",
    ) -> None:
        super().__init__()
        check_arguments("field", field, by="NeuralCDE", most=3)
        self.field = field
        self.initial = initial
        self.solver = Solver() if solver is None else solver
        self.record = record
        self.path = path
        self.output = checked_output("NeuralCDE", output)

    def forward(
        self, control: ControlPath | Tensor, z0: Tensor | None = None, ts: Times | None = None
    ) -> Solution | Tensor:
        """Solves along a path.

        Args:
            control: a path, or values that `path` makes one of, shape (batch, T, channels).
            z0: initial state, shape (batch, hidden), in place of `initial`.
            ts: save times within the path's span, increasing or decreasing; by default its first and last knot.
        """
        path = control if isinstance(control, ControlPath) else self.path(control)
        times = path.span if ts is None else ts
        first, last = path.span
        floats = as_floats(times)
        if not all(first <= t <= last for t in floats):
            raise ValueError(
                f"NeuralCDE: the path's knots span [{first:g}, {last:g}], ts goes from {floats[0]:g} to {floats[-1]:g}."
            )
        if z0 is None:
            if self.initial is None:
                raise ValueError(
                    "NeuralCDE: give an initial state z0, or the layer an `initial` that makes it of X(t0)."
                )
            z0 = self.initial(path(times[0]))
        kind = _SampledField if self.solver.batch == "per-sample" else _DrivenField
        record = self.record if self.training else "none"
        solution = solve(kind(self.field, path), z0, times, self.solver, record=record, stops=path.stops)
        return picked(solution, self.output)

    def extra_repr(self) -> str:
        """Solver, record, path and output, for the module's repr."""
        path = getattr(self.path, "__name__", repr(self.path))
        return f"solver={self.solver}, record={self.record!r}, path={path}, output={self.output!r}"


class _DrivenField(nn.Module):
    """The field f(t, z) dX/dt of an ODE."""

    def __init__(self, field: Field, control: ControlPath) -> None:
        super().__init__()
        self.field, self.control = field, control

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at time t (0-dim) and z."""
        return self._slope(t, z, None)

    def _slope(self, t: Tensor, z: Tensor, samples: Tensor | None) -> Tensor:
        matrix, rate = self.field(t, z), self.control.derivative(t, samples)
        wanted = (*z.shape, self.control.channels)
        if matrix.shape != wanted:
            raise ValueError(
                f"NeuralCDE: field(t, z) returned shape {tuple(matrix.shape)} for a state of shape {tuple(z.shape)} "
                f"and {self.control.channels} channels: it must return shape {wanted}."
            )
        return (matrix @ rate.to(matrix.dtype).unsqueeze(-1)).squeeze(-1)


class _SampledField(_DrivenField):
    """The same with the samples that it is evaluated at, where each has a clock of its own."""

    def forward(self, t: Tensor, z: Tensor, samples: Tensor) -> Tensor:  # type: ignore[override]  # by its arguments
        """The slope at times t, a column, and z."""
        return self._slope(t, z, samples)

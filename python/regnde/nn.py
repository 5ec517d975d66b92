"""Layers: fields and the neural differential equations that solve them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnde._equation import SDE
from regnde._latent import BackwardGRU, LatentODE, Reconstruction
from regnde._noise import BrownianPath
from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver

__all__ = ["MLP", "BackwardGRU", "LatentODE", "NeuralODE", "NeuralSDE", "Reconstruction"]

Activation = Callable[[Tensor], Tensor]
Times = Sequence[float] | Tensor


class MLP(nn.Module):
    """A multilayer perceptron as a field f(t, y), with the time in its biases.

    The bias of every layer is b + t w: the same function as appending t to the layer's input, as the
    papers do, without copying the state.

    Args:
        sizes: widths of input, hidden layers and output; the first and last are the state's.
        activation: between the layers.
        output: after the last layer; None for a linear output.
        time: whether the field depends on t.

    Examples:
        >>> MLP([2, 16, 2])(torch.tensor(0.0), torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation = torch.tanh,
        output: Activation | None = None,
        time: bool = True,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"MLP(sizes={list(sizes)}): give at least the input's and the output's width.")
        self.weights = nn.ParameterList(torch.empty(b, a) for a, b in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(b) for b in sizes[1:])
        self.slopes = nn.ParameterList(torch.empty(b) for b in sizes[1:]) if time else None
        self.activation = activation
        self.output = output
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, the time's included, and zero biases, as in the papers."""
        for i, weight in enumerate(self.weights):
            fan_out, fan_in = weight.shape
            bound = (6 / (fan_in + fan_out + (self.slopes is not None))) ** 0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.zeros_(self.biases[i])
            if self.slopes is not None:
                nn.init.uniform_(self.slopes[i], -bound, bound)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at time t (0-dim) and state y of shape (..., sizes[0]), shape (..., sizes[-1])."""
        last = len(self.weights) - 1
        for i, weight in enumerate(self.weights):
            bias = self.biases[i] if self.slopes is None else torch.addcmul(self.biases[i], t, self.slopes[i])
            y = functional.linear(y, weight, bias)
            if i < last:
                y = self.activation(y)
        return y if self.output is None else self.output(y)


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
        self.ts = _kept_times(ts)
        self.solver = Solver() if solver is None else solver
        self.record = record

    def forward(self, y0: Any, ts: Times | None = None) -> Solution[Any]:
        """Solves from y0, as `regnde.solve` takes it, at the layer's times or at `ts` instead."""
        record = self.record if self.training else "none"
        return solve(self.field, y0, self.ts if ts is None else ts, self.solver, record=record)

    def extra_repr(self) -> str:
        """Times, solver and record, for the module's repr."""
        return f"ts={_shown(self.ts)}, solver={self.solver}, record={self.record!r}"


class NeuralSDE(nn.Module):
    """A drift, a diffusion and how to solve them, as a layer that maps an initial state to a `Solution`.

    For many trajectories from one state, expand it: all are one system with one step size, and
    every entry has noise of its own.

    Args:
        drift: f(t, y), usually a module; its parameters are the layer's.
        diffusion: g(t, y), likewise, multiplying a Wiener process entry by entry.
        ts: save times, increasing, in units of time.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.

    Examples:
        >>> layer = NeuralSDE(MLP([2, 16, 2]), MLP([2, 2]), record="all")
        >>> solution = layer(torch.zeros(2).expand(100, 2))
        >>> solution.y1.shape, len(solution.steps) == solution.stats.accepted
        (torch.Size([100, 2]), True)
    """

    def __init__(
        self,
        drift: Callable[[Tensor, Tensor], Tensor],
        diffusion: Callable[[Tensor, Tensor], Tensor],
        ts: Times = (0.0, 1.0),
        solver: Solver | None = None,
        record: Record = "none",
    ) -> None:
        super().__init__()
        self.drift = drift
        self.diffusion = diffusion
        self.ts = _kept_times(ts)
        self.solver = Solver() if solver is None else solver
        self.record = record

    def forward(self, y0: Any, ts: Times | None = None, *, noise: BrownianPath | None = None) -> Solution[Any]:
        """Solves from y0, as `regnde.solve` takes it, at the layer's times or at `ts`, along a new path or `noise`."""
        record = self.record if self.training else "none"
        times = self.ts if ts is None else ts
        return solve(SDE(self.drift, self.diffusion), y0, times, self.solver, record=record, noise=noise)

    def extra_repr(self) -> str:
        """Times, solver and record, for the module's repr."""
        return f"ts={_shown(self.ts)}, solver={self.solver}, record={self.record!r}"


def _kept_times(ts: Times) -> Any:
    """The times as a layer keeps them: tensors that require a gradient as they are, anything else as floats."""
    if isinstance(ts, Tensor):
        return ts if ts.requires_grad or isinstance(ts, nn.Parameter) else tuple(ts.tolist())
    entries = tuple(t if isinstance(t, nn.Parameter) or _moving(t) else float(t) for t in ts)
    parameters = sum(isinstance(t, nn.Parameter) for t in entries)
    if parameters and parameters < sum(isinstance(t, Tensor) for t in entries):
        raise TypeError("ts mixes nn.Parameter with other tensors that require a gradient: give one kind of them.")
    return nn.ParameterList(entries) if parameters else entries


def _moving(t: object) -> bool:
    return isinstance(t, Tensor) and t.requires_grad


def _shown(ts: Times) -> str:
    return str(tuple(float(t.detach()) if isinstance(t, Tensor) else t for t in ts))

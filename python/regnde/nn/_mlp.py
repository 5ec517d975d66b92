"""A multilayer perceptron as a field."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MLP"]

Activation = Callable[[Tensor], Tensor]


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
        try:
            sizes = [operator.index(width) for width in sizes]
        except TypeError:
            raise TypeError(
                f"MLP(sizes={sizes!r}): give a list of widths, whole numbers, such as [2, 16, 2]."
            ) from None
        if len(sizes) < 2:
            raise ValueError(f"MLP(sizes={list(sizes)}): give at least the input's and the output's width.")
        for name, function in (("activation", activation), ("output", output)):
            if isinstance(function, type) or not (callable(function) or (function is None and name == "output")):
                raise TypeError(
                    f"MLP({name}={function!r}): give a function such as torch.tanh, or an object nn.Tanh()."
                )
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
        weights, biases, slopes = self.weights, self.biases, self.slopes
        last = len(weights) - 1
        for i in range(last + 1):
            name = str(i)  # by attributes: a list's own indexing costs as much as a small layer
            bias: Tensor = getattr(biases, name)
            if slopes is not None:
                bias = torch.addcmul(bias, t, getattr(slopes, name))
            y = functional.linear(y, getattr(weights, name), bias)
            if i < last:
                y = self.activation(y)
        return y if self.output is None else self.output(y)

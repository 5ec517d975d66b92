"""The checkpointed gradient: a part of the solve is evaluated again when its derivative is asked for.

The graph of the forward pass stays as it is. Only the tensors that its nodes would save are dropped, and
made again, one part at a time, when the backward pass asks for them. Hooks, tensors that the field makes
itself and tensors of other computations therefore behave as without a checkpoint.
A. Griewank, A. Walther, Evaluating Derivatives (2008), chapter 12.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from regnde._engines.torch.captured import (
    Captured,
    buffers_in_training,
    random_states,
    with_contents,
    with_random_states,
)
from regnde._engines.torch.field import CountedField

__all__ = ["Checkpoint", "transformed"]

T = TypeVar("T", bound="tuple[object, ...]")
DEVICE_ROUNDING = 100  # in units of the dtype's resolution, for devices whose sums are not deterministic


def transformed() -> bool:
    """Whether torch.func or forward mode is at work: they do not run the hooks that a checkpoint needs."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class Checkpoint:
    """Evaluates parts of one solve so that they can be evaluated again.

    Args:
        fields: the fields of the equation.
        device: of the state.
    """

    def __init__(self, fields: Sequence[CountedField], device: torch.device) -> None:
        self.device = device
        self.fields = fields
        functions = [field.function for field in fields]
        self.captured = Captured(functions)
        self.buffers = buffers_in_training(functions)
        self._random: list[Tensor] = []
        self._begun = self._whole = False

    def __call__(self, function: Callable[..., T], *inputs: Tensor | None) -> T:
        """function(*inputs), a tuple; what the graph would save is dropped.

        Args:
            function: of tensors; it must do the same again when called with the same tensors.
            inputs: tensors, which stay in memory until the backward pass, or None.
        """
        if self._whole:
            return function(*inputs)
        part = _Part(self, function, inputs)
        versions = [buffer._version for buffer in self.buffers]
        counts = [field.calls for field in self.fields]
        try:
            with saved_tensors_hooks(part.pack, part.unpack):
                outputs = function(*inputs)
        except RuntimeError as problem:
            if "saved tensor hooks" not in str(problem):
                raise
            self._whole = True
            for field, calls in zip(self.fields, counts, strict=True):
                field.calls = calls
            warnings.warn(
                "gradient='checkpoint': the field uses a transform of torch.func, which a checkpoint can not evaluate "
                "again. The solve keeps all that its gradient needs, as with gradient='discrete'.",
                stacklevel=2,
            )
            return function(*inputs)
        part.close(outputs)
        if not self._begun:  # from here on, copy only buffers that the field writes to
            changed = [buffer._version != version for buffer, version in zip(self.buffers, versions, strict=True)]
            self.buffers, part.buffers = (
                [b for b, c in zip(x, changed, strict=True) if c] for x in (self.buffers, part.buffers)
            )
            part.written = self.buffers
            self._begun = True
        return outputs

    def present_random_states(self) -> list[Tensor]:
        """The random states now; the same list as long as nothing is drawn."""
        states = random_states(self.device)
        if len(self._random) != len(states) or not all(map(torch.equal, states, self._random)):
            self._random = states
        return self._random


class _Part:
    """One part: what is needed to evaluate it again.

    It must not refer to its outputs with their graph, whose nodes refer to it: reference counts would never free them.
    """

    def __init__(self, checkpoint: Checkpoint, function: Callable[..., T], inputs: Sequence[Tensor | None]) -> None:
        self.function, self.inputs, self.captured = function, inputs, checkpoint.captured
        self.device, self.random = checkpoint.device, checkpoint.present_random_states()
        self.written = checkpoint.buffers
        self.buffers = [buffer.clone() for buffer in self.written]
        self.saved: dict[int, Tensor] = {}
        self.count: int | None = None  # of saved tensors; None while the part is evaluated
        self.ends: list[Tensor] = []

    def pack(self, tensor: Tensor) -> int:
        """Called by the forward pass for each tensor that a node wants to save."""
        index = len(self.saved)
        self.saved[index] = tensor
        return index

    def unpack(self, index: int) -> Tensor:
        """Called by the backward pass; also by a field that asks for derivatives itself, within the part."""
        if self.count is None:
            return self.saved[index]
        if index not in self.saved:
            self._evaluate_again()
        return self.saved.pop(index)

    def close(self, outputs: tuple[object, ...]) -> None:
        """Drops what was saved."""
        self.count, self.saved = len(self.saved), {}
        self.ends = [x.detach() for x in _tensors(outputs)]

    def _evaluate_again(self) -> None:
        inputs = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in self.inputs]
        saved: list[Tensor] = []

        def pack(tensor: Tensor) -> int:
            saved.append(tensor.detach())
            return len(saved) - 1

        with (
            with_random_states(self.random, self.device),
            with_contents(self.written, self.buffers),
            torch.enable_grad(),
            saved_tensors_hooks(pack, saved.__getitem__),
        ):
            outputs = self.function(*inputs)
        ends = [x.detach() for x in _tensors(outputs)]
        if len(saved) != self.count or not all(map(_agree, ends, self.ends)):
            raise RuntimeError(
                "gradient='checkpoint': a step that was taken again in the backward pass does not end where it ended "
                f"in the solve, so that its gradient would be wrong. {self.captured.changes()} Call backward() before "
                "you change what the field reads, or use gradient='discrete'."
            )
        self.saved = dict(enumerate(saved))


def _tensors(outputs: tuple[object, ...]) -> Iterator[Tensor]:
    """The tensors of nested tuples and lists."""
    for x in outputs:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (tuple, list)):
            yield from _tensors(tuple(x))


def _agree(again: Tensor, before: Tensor) -> bool:
    """Bit for bit on the CPU; NaN equals NaN."""
    if torch.equal(again, before):
        return True
    bound = 0.0 if before.device.type == "cpu" else DEVICE_ROUNDING * torch.finfo(before.dtype).eps
    return torch.allclose(again, before, rtol=bound, atol=bound * float(before.abs().max()), equal_nan=True)

"""The checkpointed gradient: a step of the solve is evaluated again when its derivative is asked for.

The graph of the forward pass stays as it is. Only the tensors that its nodes would save are dropped, and
made again, one step at a time, when the backward pass asks for them. Hooks, tensors that the field makes
itself and tensors of other computations therefore behave as without a checkpoint.
A. Griewank, A. Walther, Evaluating Derivatives (2008), chapter 12.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from regnde._engines.torch.captured import Captured, Surroundings
from regnde._engines.torch.field import CountedField

__all__ = ["Checkpoint", "last_size", "step_end", "step_ends"]

T = TypeVar("T")
V = TypeVar("V")
Ends = Callable[[T], Sequence[Tensor]]
DEVICE_ROUNDING = 100  # in units of the dtype's resolution, for devices whose sums are not deterministic
COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
SMALL = 1024  # entries of a constant that is kept to be compared; of a larger one the sum is


def step_end(outcome: tuple[Any, object]) -> Sequence[Tensor]:
    """The tensors by which a step that is evaluated again is compared."""
    return (outcome[0].y1,)


def step_ends(outcome: tuple[Any, object]) -> Sequence[Tensor]:
    """The same where the last stage is the first one of the next step."""
    return outcome[0].y1, outcome[0].k[-1]


def last_size(k: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same of stages that nothing else keeps: one number."""
    return (torch.linalg.vector_norm(k[-1].detach()),)


class Checkpoint:
    """Evaluates the steps of one solve so that they can be evaluated again.

    Args:
        fields: the fields of the equation.
        device: of the state.
    """

    def __init__(self, fields: Sequence[CountedField], device: torch.device) -> None:
        self.fields = fields
        functions = [field.function for field in fields]
        self.captured = Captured(functions, [field.name for field in fields])
        self.surroundings = Surroundings(functions, device)
        self.latest = _Latest()
        self._whole, self._unsupported = True, False
        self._part: _Part | None = None  # of the last call

    def __call__(self, function: Callable[..., T], *inputs: Tensor | None, ends: Ends[T]) -> T:
        """The value function(*inputs); what its graph would save is dropped.

        Args:
            function: of tensors; it must do the same again when called with the same tensors. It must not hold its
                value: the graph holds the function, and memory would wait for the garbage collector.
            inputs: tensors, kept until the backward pass, or None.
            ends: the outputs whose values must be the same again; they are kept, too.
        """
        self._part = None if self._whole or self._unsupported else _Part(self, inputs)
        self._whole = False  # the graph of the first step stays whole: later calls may use what the field makes in it
        return self._evaluated(function, *inputs, ends=ends)

    def further(self, function: Callable[[T], V], value: T, *, ends: Ends[V]) -> V:
        """The value function(value) for the value of the last call: what is evaluated again makes both.

        Args:
            function: as above.
            value: of the last call, which is not kept.
            ends: as above.
        """
        return self._evaluated(function, value, ends=ends)

    def _evaluated(self, function: Callable[..., T], *arguments: Any, ends: Ends[T]) -> T:
        part = self._part
        if part is None or not torch.is_grad_enabled():
            return function(*arguments)
        counts = [field.calls for field in self.fields]
        before = self.surroundings.snapshot() if part.functions else part.before
        try:
            with saved_tensors_hooks(part.pack, part.unpack):
                outputs = function(*arguments)
            part.close(function, ends, outputs)
        except RuntimeError as problem:
            if "saved tensor hooks" not in str(problem):
                raise
            self._unsupported, self._part = True, None
            for field, calls in zip(self.fields, counts, strict=True):
                field.calls = calls
            warnings.warn(
                "gradient='checkpoint': the field uses a transform of torch.func, which a checkpoint can not evaluate "
                "again. The solve keeps all that its gradient needs, as with gradient='discrete'.",
                stacklevel=2,
            )
            self.surroundings.restore(before)
            return function(*arguments)
        finally:
            part.saved = {}
        return outputs


class _Latest:
    """The part that was evaluated again last: only its saved tensors are in memory."""

    part: weakref.ref[_Part] | None = None


class _Part:
    """A part of a solve that can be evaluated again: a function of its inputs, and further functions of its value."""

    def __init__(self, checkpoint: Checkpoint, inputs: Sequence[Tensor | None]) -> None:
        self.inputs = inputs
        self.captured, self.surroundings, self.latest = checkpoint.captured, checkpoint.surroundings, checkpoint.latest
        self.before = self.surroundings.snapshot()
        self.functions: list[tuple[Callable[..., Any], Ends[Any]]] = []
        self.saved: dict[int, Tensor] = {}
        self.count = 0  # of tensors that the functions so far saved
        self.ends: list[Tensor] = []
        self.constants: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> int:
        """Called by the forward pass for each tensor that a node wants to save."""
        index = self.count + len(self.saved)
        self.saved[index] = tensor
        return index

    def unpack(self, index: int) -> Tensor:
        """Called by the backward pass; also by a field that asks for derivatives itself, within the part."""
        if index not in self.saved:
            self._evaluate_again()
        return self.saved[index]

    def close(self, function: Callable[..., T], ends: Ends[T], outputs: T) -> None:
        """Stores what a second evaluation is compared with."""
        self.functions.append((function, ends))
        self.count += len(self.saved)
        self.ends += [x.detach() for x in ends(outputs)]
        self.constants |= _constants(self.saved)

    def _evaluate_again(self) -> None:
        if self.latest.part is not None and (before := self.latest.part()) is not None:
            before.saved = {}
        self.latest.part = weakref.ref(self)
        inputs = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in self.inputs]
        saved: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> int:
            saved[len(saved)] = tensor.detach() if tensor.requires_grad else tensor
            return len(saved) - 1

        with (
            self.surroundings.as_in(self.before),
            torch.autocast(self.surroundings.device.type, enabled=False),  # a solve runs without it, too
            torch.enable_grad(),
            saved_tensors_hooks(pack, saved.__getitem__),
        ):
            (function, ends_of), *further = self.functions
            value = function(*inputs)
            ends = [*ends_of(value)]
            for function, ends_of in further:
                ends += ends_of(function(value))
            as_before = len(saved) == self.count and all(
                _same_again(_content(saved[i]), x) for i, x in self.constants.items()
            )
        if self.captured.parameters_changed() or not all(map(_same_again, ends, self.ends)):
            problem = "a step that was taken again in the backward pass does not end where it ended in the solve"
        elif not as_before:
            problem = "a step that was taken again in the backward pass saved other tensors than in the solve"
        else:
            self.saved = saved
            return
        raise RuntimeError(
            f"gradient='checkpoint': {problem}, so that its gradient would be wrong. {self.captured.changes()} Call "
            "backward() before you change what the field reads, or use gradient='discrete'."
        )


def _constants(saved: dict[int, Tensor]) -> dict[int, Tensor]:
    """Copies or sums of the saved tensors without a graph: they show changes that the states do not show."""
    return {i: _content(x) for i, x in saved.items() if not x.requires_grad}


def _content(x: Tensor) -> Tensor:
    if x.layout == torch.sparse_coo:
        x = x.coalesce().values()
    elif x.layout in COMPRESSED:
        x = x.values()
    return x.clone() if x.numel() <= SMALL else x.detach().sum()


def _same_again(again: Tensor, before: Tensor) -> bool:
    """Bit for bit on the CPU; NaN equals NaN."""
    if again.shape != before.shape or again.dtype != before.dtype:
        return False
    exact = before.device.type == "cpu" or not (before.is_floating_point() or before.is_complex())
    bound = 0.0 if exact else DEVICE_ROUNDING * torch.finfo(before.dtype).eps
    return torch.equal(again, before) or torch.allclose(again, before, rtol=bound, atol=bound, equal_nan=True)

"""One eager evaluation of a field: what it reads, and whether it can be written as code.

Works on any callable. Tensors are found where torch functions are given them, so that parameters, buffers, closures
and globals are one and the same thing. The sequence of calls, with every number in it, is a key: two evaluations
with equal keys have the same Julia source.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from regnde._engines.julia.equivalents import equivalent
from regnde._errors import UnsupportedField

__all__ = ["Captured", "Field", "call_field", "capture", "graph_of", "plain_attention", "user_line"]

Field = Callable[[Tensor, Tensor], Tensor]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True, eq=False)
class Captured:
    """What one evaluation of a field showed.

    Attributes:
        value: what the field returned, detached.
        tensors: every tensor it used that is neither `t` nor `y` nor made by itself, in order of first use.
        connected: for each tensor, whether it is in the value's autograd graph.
        leaves: leaves of the value's autograd graph beside the state.
        complex: whether one of the tensors that it used or made is complex.
        key: what happened, hashable.
    """

    value: Tensor
    tensors: tuple[Tensor, ...]
    connected: tuple[bool, ...]
    leaves: tuple[Tensor, ...]
    complex: bool
    key: Hashable


def capture(field: Field, t: Tensor, y: Tensor) -> Captured:
    """Evaluates `field` once.

    Args:
        field: the user's function.
        t: 0-dim time.
        y: state of any shape; not changed.

    Raises:
        UnsupportedField: the field draws random numbers, reads numbers out of tensors (so that its code would
            depend on data) or changes tensors that it did not make.
    """
    t = t.detach().clone()
    leaf = y.detach().requires_grad_()
    y = leaf.clone()  # no leaf itself: a field that writes into it is then told why it may not
    reader = _Reader(t, y)
    with torch.enable_grad(), plain_attention(), _UnsupportedOperations(reader), reader:
        value = call_field(field, t, y)
    if not isinstance(value, Tensor):
        raise TypeError(f"the field must return a tensor, got {type(value).__name__}.")
    leaves, nodes = graph_of(value)
    shape = (tuple(y.shape), y.dtype, t.dtype, tuple(value.shape), value.dtype)
    known = {id(x) for x in leaves}
    connected = tuple(id(x) in known or (x.grad_fn is not None and x.grad_fn in nodes) for x in reader.tensors)
    key = (shape, tuple(reader.calls), tuple(node.name() for node in nodes))
    beside = tuple(x for x in leaves if x is not leaf)
    return Captured(value.detach(), tuple(reader.tensors), connected, beside, reader.complex, key)


def call_field(field: Field, t: Tensor, y: Tensor) -> Tensor:
    """Calls the field; `user_line` looks for the frames inside this call."""
    with _uncompiled(), _never_evaluated_again():
        return field(t, y)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Runs what `torch.compile` wraps as it was written."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes seconds
        yield
        return
    from torch import _dynamo

    with torch.compiler.set_stance("force_eager"), _dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextmanager
def _never_evaluated_again() -> Iterator[None]:
    """Makes `torch.utils.checkpoint` a plain call: what it evaluates again in a backward pass no trace can follow."""
    module = torch.utils.checkpoint

    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
            return function(*args)

    names = {"_checkpoint_without_reentrant_generator": nothing, "CheckpointFunction": Plain}
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, names[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keeps attention from taking fused kernels, which have no decomposition."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """Where in the user's field something happened: the innermost line that is not torch's, else torch's layer."""
    mine = layer = ""
    for frame in frames:
        path = os.path.abspath(frame.filename)
        where = f"{frame.filename}:{frame.lineno}, in {frame.name}: {(frame.line or '').strip()}"
        if path.startswith(_HERE):
            if frame.name == call_field.__name__:
                mine = layer = ""
        elif not path.startswith(_TORCH):
            mine = where
        elif path.startswith(_TORCH + "nn"):
            layer = where
    return mine or layer


def graph_of(value: Tensor) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Leaves and nodes of `value`'s autograd graph."""
    if value.grad_fn is None:
        return ((value,) if value.requires_grad else ()), ()
    leaves, nodes, stack = [], {value.grad_fn: None}, [value.grad_fn]
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in nodes:
                nodes[following] = None
                stack.append(following)
    return tuple(leaves), tuple(nodes)


class _Reader(TorchFunctionMode):
    """Lists the calls of torch functions, and the tensors that the field did not make."""

    def __init__(self, t: Tensor, y: Tensor) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.calls: list[Hashable] = []
        self.complex = y.is_complex()
        self.protected = {_storage(t), _storage(y)}
        self._plain: dict[int, Tensor] = {}
        self._numbers: dict[int, Hashable] = {id(t): "t", id(y): "y"}
        self._alive: list[Tensor] = [t, y]  # a freed tensor's id would be given to another one
        assert y.grad_fn is not None
        self._began = y.grad_fn._sequence_nr()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (alternative := equivalent(func, args, self._given)) is not None:
            with self:
                return alternative()
        flat, spec = tree_flatten((args, kwargs or {}))
        self.calls.append((func, str(spec), *map(self._mark, flat)))
        if any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in flat):
            args, kwargs = tree_unflatten([self._recordable(leaf) for leaf in flat], spec)
        result = func(*args, **(kwargs or {}))
        for made in tree_flatten(result)[0]:
            if isinstance(made, Tensor) and id(made) not in self._numbers:
                self._numbers[id(made)] = len(self._alive)
                self._alive.append(made)
                self.complex |= made.is_complex()
        return result

    def _given(self, tensor: Tensor) -> bool:
        """Whether the tensor is not one that the field made, so far as torch functions showed it."""
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        return not wrapped and not isinstance(self._numbers.get(id(tensor)), int)

    def _mark(self, leaf: object) -> Hashable:
        if isinstance(leaf, Tensor):
            if id(leaf) not in self._numbers:
                self._add(leaf)
            return (self._numbers[id(leaf)], tuple(leaf.shape), leaf.dtype, leaf.requires_grad)
        if isinstance(leaf, np.ndarray):
            return (leaf.shape, leaf.dtype.str, leaf.tobytes())
        if isinstance(leaf, slice):
            return ("slice", *(self._mark(end) for end in (leaf.start, leaf.stop, leaf.step)))
        # 1, 1.0 and True are equal, yet not the same code.
        return (type(leaf), leaf if isinstance(leaf, Hashable) else repr(leaf))

    def _add(self, tensor: Tensor) -> None:
        self._numbers[id(tensor)] = f"captured {len(self.tensors)}"
        self._alive.append(tensor)
        self.complex |= tensor.is_complex()
        dense = tensor.layout is torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        if dense and not self._made(tensor):
            self.tensors.append(tensor)
            self.protected.add(_storage(tensor))

    def _recordable(self, leaf: object) -> object:
        """A copy of a tensor of `torch.inference_mode`, whose operations autograd does not record."""
        if not isinstance(leaf, Tensor) or not leaf.is_inference():
            return leaf
        if id(leaf) not in self._plain:
            self._plain[id(leaf)] = leaf.clone()
            self.protected.add(_storage(self._plain[id(leaf)]))
        return self._plain[id(leaf)]

    def _made(self, tensor: Tensor) -> bool:
        """Whether the field made the tensor where no torch function showed it: torch.func takes its wrappers off."""
        return tensor.grad_fn is not None and tensor.grad_fn._sequence_nr() > self._began


class _UnsupportedOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Stops a field, before it happens, at what no code can stand for."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.reader = reader

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reason = self._reason(func, args, kwargs or {})
        if reason:
            line = user_line(traceback.extract_stack())
            raise UnsupportedField(
                f"the field can not be written in Julia: {func} {reason}." + (f"\n  at {line}" if line else "")
            )
        return func(*args, **(kwargs or {}))

    def _reason(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return "draws random numbers, which the solver's error estimate can not see (call .eval() on the module?)"
        if func is torch.ops.aten._local_scalar_dense.default:
            return (
                "reads a number out of a tensor (if, item, float, int), so that the code would depend on the data: use "
                "torch.where, or stops= for a field that changes at given times"
            )
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            written = written or (argument.name == "running_mean" and "batch_norm" in str(func) and args[5] is True)
            if written and isinstance(value, Tensor) and _storage(value) in self.reader.protected:
                return (
                    "changes a tensor that the field did not make (its state, a parameter or a buffer): call .eval() "
                    "on modules that keep statistics, or use torch.where and torch.cat in place of assignments"
                )
        return None


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # wrappers of torch.func and others own no memory
        return id(tensor)


class Substitute(TorchFunctionMode):
    """Gives torch functions the tensors of `table` in place of those whose ids it lists; tells `fx` where they are."""

    def __init__(self, table: dict[int, Tensor]) -> None:
        super().__init__()
        self.table = table
        self.used: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (alternative := equivalent(func, args, self._given)) is not None:
            with self:
                return alternative()
        fx.traceback.set_stack_trace([user_line(traceback.extract_stack()) or " "])
        args, kwargs = tree_map(self._substituted, (args, kwargs or {}))
        return func(*args, **kwargs)

    @staticmethod
    def _given(tensor: Tensor) -> bool:
        """Whether the tensor is not one of the trace."""
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        return not wrapped and not isinstance(tensor, FakeTensor)

    def _substituted(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or id(leaf) not in self.table:
            return leaf
        self.used.add(id(leaf))
        return self.table[id(leaf)]

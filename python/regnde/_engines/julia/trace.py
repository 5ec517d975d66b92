"""From a field to one graph of core ATen operators that computes its value and its vector-Jacobian product.

PyTorch differentiates: `torch.autograd.grad` runs inside the trace, so that the backward pass is in the graph too. For
an implicit method the graph also has the Jacobian-vector product and its reverse.
The leading dimension of the state (the batch) is a symbol, everything else has its size.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from regnde._derivative_check import direction
from regnde._engines.julia.capture import (
    Captured,
    Field,
    Substitute,
    call_field,
    capture,
    graph_of,
    plain_attention,
    user_line,
)
from regnde._engines.julia.decompositions import decompositions
from regnde._equation import UNDEFINED
from regnde._errors import UnsupportedField

__all__ = ["Outputs", "Traced", "trace"]

aten = torch.ops.aten

ONCE = "torch::autograd::Error"  # the graph's node in place of a second derivative

EXAMPLE_BATCH = 7
"""The batch size that the trace sees whatever the real one, so that equal fields give equal code."""


class Outputs(NamedTuple):
    """What a graph computes: a value, and for its cotangent those of the state and of the tensors; None for zeros."""

    value: fx.Node
    ybar: fx.Node | None
    pbars: Sequence[fx.Node | None]


@dataclass(frozen=True, eq=False)
class Traced:
    """A traced field.

    Attributes:
        graph: placeholders `t, y, ct, *tensors`, with tangents `t, y, ct, tdot, ydot, *tensors`, then `*constants`;
            outputs `value, ybar, *pbar` with None for zero gradients and one `pbar` for every tensor that needs a
            gradient, with tangents as many for the Jacobian-vector product. Pure: no operator changes a tensor.
        constants: tensors that the trace found beside the captured ones; they need no gradient.
        batch: the symbol of the state's leading dimension, or None if its size is part of the code.
        cacheable: whether every captured tensor was seen again in the trace.
        tangents: whether the graph has the Jacobian-vector product.
    """

    graph: fx.Graph
    constants: tuple[Tensor, ...]
    batch: sympy.Symbol | None
    cacheable: bool
    tangents: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the placeholders before the tensors'."""
        return ("t", "y", "ct", "tdot", "ydot") if self.tangents else ("t", "y", "ct")

    @property
    def outputs(self) -> tuple[Outputs, ...]:
        """Of the field and, with tangents, of its Jacobian-vector product."""
        found = _outputs_of(self.graph)
        count = len(found) // (1 + self.tangents)
        parts = [found[i : i + count] for i in range(0, len(found), count)]
        return tuple(Outputs(part[0], part[1], part[2:]) for part in parts)


def trace(field: Field, t: Tensor, y: Tensor, seen: Captured, *, any_batch: bool, tangents: bool = False) -> Traced:
    """Traces `field` at `t`, `y`.

    Args:
        field: function of t and y.
        t: 0-dim time.
        y: a state.
        seen: what `capture` returned there.
        any_batch: whether the leading dimension is a symbol, or has its size like the others.
        tangents: whether to trace the Jacobian-vector product and its reverse, too.

    Raises:
        UnsupportedField: PyTorch can not trace it, or the trace does not reproduce the field's value.
    """
    with _quiet() if any_batch else nullcontext():
        traced, module = _trace(field, t, y, seen, any_batch, tangents)
    elsewhere = _elsewhere(field, t, y)  # at the start itself, zeros say, different fields may have one value
    if not all(_reproduces(module, *at, seen.tensors, traced) for at in ((t, y, seen.value), *elsewhere)):
        cause = (
            "torch.autocast is on: switch it off around the solve, or set Solver(engine='torch')."
            if torch.is_autocast_enabled(y.device.type)
            else "It seems to depend on something else than t, y and tensors (a counter, a random number, a value kept "
            "between calls)."
        )
        raise UnsupportedField(
            f"the field can not be written in Julia: its traced operators do not reproduce its value. {cause}"
        )
    return traced


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what PyTorch logs about a trace that fails, where the failure is expected."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _trace(
    field: Field, t: Tensor, y: Tensor, seen: Captured, any_batch: bool, tangents: bool
) -> tuple[Traced, fx.GraphModule]:
    originals = seen.tensors
    env = ShapeEnv(duck_shape=False)
    fakes = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    example = y.detach().new_empty((EXAMPLE_BATCH, *y.shape[1:])) if any_batch else y.detach()
    fake_y = _fake(fakes, example, any_batch)
    columns = seen.value.shape[y.dim() :]  # of a diffusion that is a matrix
    with fakes:
        fake_ct = fake_y.new_empty((*fake_y.shape, *columns))
        fake_ydot = fake_y.new_empty(fake_y.shape)
    moving = [_fake(fakes, t.detach()), fake_ydot] if tangents else []
    inputs = [_fake(fakes, t.detach()), fake_y, fake_ct, *moving, *(_fake(fakes, x.detach()) for x in originals)]
    used: set[int] = set()

    def joint(t: Tensor, y: Tensor, ct: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        leaf, dots, tensors = y.detach().requires_grad_(), others[: len(moving)], others[len(moving) :]
        time = t.detach().requires_grad_() if tangents else t
        copies = [x.detach().requires_grad_(o.requires_grad) for x, o in zip(tensors, originals, strict=True)]
        substitute = Substitute({id(o): x for o, x in zip(originals, copies, strict=True)})
        with torch.enable_grad(), plain_attention(), fx.traceback.preserve_node_meta(), substitute:
            y = leaf * 1  # no leaf: a field may write into it
            value = call_field(field, time, y)
            inputs = [leaf, *(x for x in copies if x.requires_grad)]
            found = [value, *_gradients([value], inputs, [ct])]
            if tangents:  # the reverse by two derivatives: a third one is wrong for some operators (layer_norm)
                found += [
                    _product(value, (time, leaf), dots),
                    *_gradients(_vjps(value, (time, leaf), ct), inputs, dots),
                ]
        used.update(substitute.used)
        return tuple(None if x is None else x.detach() for x in found)

    # torch's own shapes of complex results ask for plain integers, Python's keep the batch size a symbol
    symbolic = enable_python_dispatcher() if seen.complex else nullcontext()
    with fakes, _explained(), symbolic:
        module = _make_fx(joint, inputs)
        if any(_changes(node) for node in module.graph.nodes):
            module = _make_fx(torch.func.functionalize(_with_origins(module)), inputs)
    with _explained():
        _make_explicit(module.graph)
        constants = _lift_constants(module)
    _check_gradients(seen, constants, module.graph)
    size = fake_y.shape[0] if any_batch else None
    batch = size.node.expr if isinstance(size, torch.SymInt) else None
    batch = batch if isinstance(batch, sympy.Symbol) else None
    if batch is not None and not _takes_the_same_way(env, batch, y.shape[0]):
        raise UnsupportedField("the field can not be written in Julia for any batch size: it asks for the size.")
    cacheable = all(id(x) in used for x in originals)
    return Traced(module.graph, constants, batch, cacheable, tangents), module


def _takes_the_same_way(env: ShapeEnv, batch: sympy.Symbol, size: int) -> bool:
    """Whether what the trace asked of the batch size has the same answers at `size`; at 1 its shapes tell that."""
    answers = (guard.expr.xreplace({batch: sympy.Integer(size)}) for guard in env.guards)
    return size == 1 or not any(answer == sympy.false for answer in answers)


def _gradients(
    values: Sequence[Tensor], inputs: Sequence[Tensor], cts: Sequence[Tensor], *, graph: bool = False
) -> list[Tensor | None]:
    """Those of the values that have a graph, with their cotangents, and if asked for with a graph of their own."""
    pairs = [(x, ct) for x, ct in zip(values, cts, strict=True) if x.requires_grad]
    if not pairs:
        return [None for _ in inputs]
    values, cts = zip(*pairs, strict=True)
    return list(torch.autograd.grad(values, inputs, cts, True, graph, allow_unused=True))


def _vjps(value: Tensor, at: Sequence[Tensor], ct: Tensor) -> list[Tensor]:
    """Its vector-Jacobian products, with a graph; zeros where it does not depend."""
    found = _gradients([value], at, [ct], graph=True)
    if any(node.name() == ONCE for x in found if x is not None for node in graph_of(x)[1]):
        raise UnsupportedField(
            "the field can not be written in Julia for an implicit method, which needs its second derivatives: an "
            "autograd function in it is marked with @once_differentiable."
        )
    return [torch.zeros_like(x) if bar is None else bar for bar, x in zip(found, at, strict=True)]


def _product(value: Tensor, at: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """The Jacobian-vector product: the derivative of the vector-Jacobian product, which is linear, by its cotangent."""
    ct = torch.zeros_like(value).requires_grad_()
    (found,) = _gradients(_vjps(value, at, ct), [ct], tangents)
    return torch.zeros_like(value) if found is None else found


def _fake(mode: FakeTensorMode, tensor: Tensor, any_batch: bool = False) -> Tensor:
    sizes = [DimDynamic.DYNAMIC if any_batch and i == 0 else DimDynamic.STATIC for i in range(tensor.dim())]
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


def _make_fx(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about what eager evaluation has warned about before
        module: fx.GraphModule = make_fx(function, decomposition_table=decompositions(), _allow_non_fake_inputs=True)(
            *inputs
        )
    return module


def _changes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _with_origins(module: fx.GraphModule) -> Callable[..., Any]:
    """The module as a function that keeps its nodes' stack traces when it is traced again."""

    def run(*inputs: Tensor) -> Any:
        with fx.traceback.preserve_node_meta():
            return fx.Interpreter(module).run(*inputs)

    return run


@contextmanager
def _explained() -> Iterator[None]:
    """Turns whatever tracing raises into an `UnsupportedField` with the user's line."""
    try:
        yield
    except UnsupportedField:
        raise
    except Exception as error:
        line = user_line(traceback.extract_tb(error.__traceback__))
        first = str(error).strip().split("\n")[0]
        raise UnsupportedField(
            f"the field can not be written in Julia: PyTorch can not trace it ({type(error).__name__}: {first})."
            + (f"\n  at {line}" if line else "")
        ) from error


def _make_explicit(graph: fx.Graph) -> None:
    """Puts into the graph what operators do unseen.

    For a determinant torch factors the transpose of a contiguous real matrix, and the derivative reads those factors:
    the transpose becomes the operator's argument. Zero tangents become zeros. Torch sees complex numbers as pairs to
    take a part of them: the part becomes an operator.
    """
    for node in graph.nodes:
        if node.target is aten.select.int and (part := _part(*node.args)) is not None:
            node.target, node.args = part
        if node.target is aten._efficientzerotensor.default:  # of torch.func.jvp, on no device
            node.target, node.args = aten.full.default, (node.args[0], 0.0)
            node.kwargs = {"dtype": node.meta["val"].dtype}
        if node.target not in (aten._linalg_det.default, aten._linalg_slogdet.default):
            continue
        matrix = node.args[0]
        value = matrix.meta["val"]
        if value.is_contiguous() and not value.is_complex():
            order = [*range(value.dim() - 2), value.dim() - 1, value.dim() - 2]
            with graph.inserting_before(node):
                factored = graph.call_function(aten.permute.default, (matrix, order))
            factored.meta["val"] = value.mT
            node.args = (factored,)


def _part(pairs: fx.Node, dim: int, index: int) -> tuple[Any, tuple[Any]] | None:
    """The real or imaginary part that a selected entry of the last dimension is, as an operator and its argument."""
    if pairs.target is not aten.view_as_real.default or dim not in (-1, pairs.meta["val"].dim() - 1):
        return None
    return (aten.real.default, aten.imag.default)[index], (pairs.args[0],)


def _lift_constants(module: fx.GraphModule) -> tuple[Tensor, ...]:
    """Computes what depends on no input, and turns it into further placeholders (numbers into `full`)."""
    graph, constants = module.graph, []
    known: dict[fx.Node, Tensor] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        tensor = _computed(module, node, known)
        if tensor is None:
            continue
        known[node] = tensor
        if tensor.is_meta:
            continue  # torch has asked for a shape; nothing reads it
        if all(user.op == "call_function" and _computable(user, known) for user in node.users):
            continue
        first = tensor.flatten()[0].item() if tensor.numel() else 0
        if bool((tensor == first).all()) and not tensor.requires_grad:
            with graph.inserting_after(node):
                new = graph.call_function(aten.full.default, (list(tensor.shape), first), {"dtype": tensor.dtype})
        else:
            constants.append(tensor)
            with graph.inserting_after(last):
                new = last = graph.placeholder(f"constant{len(constants)}")
        new.meta["val"] = tensor.detach()
        node.replace_all_uses_with(new)
        known[new] = tensor
    graph.eliminate_dead_code()
    module.recompile()
    return tuple(constants)


def _computable(node: fx.Node, known: Container[fx.Node]) -> bool:
    value = node.meta.get("val")
    fixed = isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)
    return fixed and all(x in known for x in node.all_input_nodes)


def _computed(module: fx.GraphModule, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """The value of a node that depends on no input."""
    if node.op == "get_attr":
        found: Tensor = getattr(module, str(node.target))
        return found
    if (
        node.op != "call_function"
        or isinstance(node.target, str)
        or node.target is aten.full.default
        or not _computable(node, known)
    ):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: known[x])
    computed: Tensor = node.target(*args, **kwargs)
    return computed


def _outputs_of(graph: fx.Graph) -> list[Any]:
    """What the graph returns: value, ybar, pbars, and again for the Jacobian-vector product."""
    output: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    return list(output)


def _check_gradients(seen: Captured, constants: Sequence[Tensor], graph: fx.Graph) -> None:
    """Raises for a field whose gradient would miss a tensor (one that TorchScript or C++ holds, say)."""
    captured = {id(leaf) for x in seen.tensors if x.requires_grad for leaf in graph_of(x)[0]}
    missed = [x for x in seen.leaves if id(x) not in captured] + [x for x in constants if x.requires_grad]
    needing = [x for x in zip(seen.tensors, seen.connected, strict=True) if x[0].requires_grad]
    pbars = _outputs_of(graph)[2 : 2 + len(needing)]
    missed += [x for (x, connected), pbar in zip(needing, pbars, strict=True) if connected and pbar is None]
    if missed:
        raise UnsupportedField(
            "the field can not be written in Julia: it depends on a tensor that needs a gradient "
            f"(shape {tuple(missed[0].shape)}) by a way that PyTorch can not trace, as those of TorchScript, of C++ "
            "code and of sparse tensors: use plain torch functions of dense tensors."
        )


class _Replay(fx.Interpreter):
    """Runs a graph and holds every shape to what the trace says it is at this batch size."""

    def __init__(self, module: fx.GraphModule, batch: tuple[sympy.Symbol, int] | None) -> None:
        super().__init__(module)
        self.batch = batch

    def run_node(self, n: fx.Node) -> Any:
        """One operator; a `squeeze`, say, may do something else at batch size 1."""
        result, expected = super().run_node(n), n.meta.get("val")
        if isinstance(result, Tensor) and isinstance(expected, Tensor):
            sizes = [s.node.expr if isinstance(s, torch.SymInt) else sympy.Integer(s) for s in expected.shape]
            if [int(s.subs(*self.batch) if self.batch else s) for s in sizes] != list(result.shape):
                raise ValueError(f"{n.target} gives {tuple(result.shape)}")
        return result


def _elsewhere(field: Field, t: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Another time and state near by with the field's value there; nothing if the field fails there."""
    time = t + 0.01
    state = (y + 0.01 * (1 + y.abs()) * direction(torch.zeros_like(y))).detach()
    try:
        return [(time, state, capture(field, time, state).value)]
    except (UnsupportedField, *UNDEFINED):  # the field's own evaluations will meet it
        return []


def _reproduces(
    module: fx.GraphModule, t: Tensor, y: Tensor, own: Tensor, tensors: Sequence[Tensor], traced: Traced
) -> bool:
    """Whether the graph gives the field's own value at a state whose batch size it has not seen."""
    graph = fx.Graph()
    outputs: Any = graph.graph_copy(module.graph, {})
    count = len(outputs) // 2
    graph.output((outputs[0], *((outputs[1], outputs[count]) if traced.tangents else ())))
    graph.eliminate_dead_code()
    batch = None if traced.batch is None else (traced.batch, y.shape[0])
    ct, ydot = direction(torch.zeros_like(own)), direction(torch.zeros_like(y)).flip(list(range(y.dim())))
    dots = (torch.zeros_like(t), ydot) if traced.tangents else ()
    inputs = (t, y, ct, *dots, *(x.detach() for x in tensors), *traced.constants)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value, *products = _Replay(fx.GraphModule(module, graph), batch).run(*inputs)
        except Exception as error:  # whatever it is, it did not happen in the field itself
            if traced.tangents:
                where = " ".join(str(error).split("Original traceback")[0].split())
                raise UnsupportedField(
                    "the field can not be written in Julia for an implicit method, which needs its second derivatives: "
                    f"one of their operators fails: {where}"
                ) from error
            return False
    if value.shape != own.shape or value.dtype != own.dtype:
        return False
    tolerance = 1e-3 if value.dtype.to_real() == torch.float32 else 1e-9
    if products:
        _check_product(ct * products[1], ydot * (0 if products[0] is None else products[0]), tolerance)
    return torch.allclose(value, own, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)


def _check_product(by_product: Tensor, by_gradient: Tensor, tolerance: float) -> None:
    """Raises unless ct' J ydot, of which these are the terms, is the same by both kinds of products."""
    size = float(by_product.abs().sum() + by_gradient.abs().sum())
    if float((by_product.sum() - by_gradient.sum()).abs()) > tolerance * size:  # not where one is not finite
        raise UnsupportedField(
            "the field can not be written in Julia for an implicit method, which needs its second derivatives: the "
            "derivative of its gradient by the cotangent is wrong, as in an autograd function which detaches it."
        )

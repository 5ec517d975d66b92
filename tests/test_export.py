"""Fields written in Julia: the source parses, and computes what torch computes."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import regnde
from complex_fields import COMPLEX_FIELDS, COMPLEX_STATES
from fields import SPIRAL, ZOO, Net, Square, Zoo, state
from julia_evaluator import load, parses
from operator_fields import OPERATORS
from problems import MIX
from regnde import UnsupportedField
from regnde._engines.julia.capture import plain_attention
from regnde._engines.julia.code import Code
from regnde._engines.julia.export import export
from regnde._engines.julia.fields import code_of

Field = Callable[[Tensor, Tensor], Tensor]
ROOT = Path(__file__).parent.parent
REAL = ZOO + OPERATORS + COMPLEX_FIELDS
EVERY = REAL + COMPLEX_STATES


FIELD_NAMES = set(re.findall(r":([\w∇]+!?) =>", (ROOT / "julia" / "src" / "compile.jl").read_text()))
BASE = set(
    re.findall(
        r"\S+",
        "abs asinh atan ceil cosh div exp2 expm1 fill! floor hypot ifelse inv isnan max min mod rem sign sinh trunc "
        "sum! minimum! prod! any! all! PermutedDimsArray permutedims! reshape round similar size transpose "
        "view Float32 Float64 Int32 Int64 Bool ComplexF32 ComplexF64 "
        "angle complex conj cos exp imag log real sin sqrt tan tanh",
    )
)


def called(source: str) -> set[str]:
    """Names of what the functions of a source call, of a module the module's."""
    text = re.sub(r"#.*|function \w+!", "", source)
    return {name.split(".")[0] for name in re.findall(r"([A-Za-z∇_][\w∇.]*!?)\(", text)}


def made(zoo: Zoo) -> tuple[Field, Tensor]:
    field, y = zoo.make()
    return (lambda t, y: field(y)) if isinstance(field, nn.Sequential) else field, y


def reference(field: Field, t: Tensor, y: Tensor, ct: Tensor, code: Code) -> tuple[Tensor, list[Tensor]]:
    """Torch's value, and its vector-Jacobian products by the state and the tensors that need gradients."""
    y = y.clone().requires_grad_()
    value = field(t, y * 1)
    wanted = [y, *(x for x, needs in zip(code.tensors, code.needs_gradient, strict=True) if needs)]
    if not value.requires_grad:
        return value, [torch.zeros_like(x) for x in wanted]
    found = torch.autograd.grad(value, wanted, ct, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


def julia(x: Tensor) -> np.ndarray:
    return x.detach().resolve_conj().contiguous().numpy().T


def close(found: Sequence[np.ndarray], right: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(found, right, strict=True):
        b = julia(b)
        assert np.shape(a) == b.shape
        assert np.max(np.abs(a - b), initial=0.0) <= tolerance * max(1.0, np.max(np.abs(b), initial=0.0))


def check(field: Field, y: Tensor, tolerance: float = 1e-12, *, matrix: bool = False) -> Code:
    """Holds all functions of the written source against torch."""
    code = export(field, y, name="f", matrix=matrix)
    assert parses(code.source)
    assert called(code.source) <= BASE | FIELD_NAMES, "names that the code can not see"
    functions = load(code.source)
    shape = (*y.shape, code.columns) if matrix else y.shape
    t, ct = torch.tensor(0.3, dtype=y.dtype.to_real()), torch.randn(shape, dtype=y.dtype)
    value, right = reference(field, t, y, ct, code)
    p = tuple(julia(x) for x in code.tensors)
    clock, y_, ct_ = t.numpy()[()], julia(y), julia(ct)
    batch = y_.shape[-1] if y_.ndim else 1
    cache = functions["buffers"](y_, batch)
    residuals = tuple(np.full(size, np.nan, y_.dtype, order="F") for size in functions["residuals"](batch))
    dy, ybar = np.full_like(ct_, np.nan), np.full_like(y_, np.nan)
    pbar = tuple(np.zeros_like(julia(x)) for x in code.tensors if x.requires_grad)
    for times in (1, 2):  # again, with what the first run left in the cache
        functions["f!"](dy, clock, y_, p, cache)
        close([dy], [value], tolerance)
        dy[...] = np.nan
        functions["f_vjp!"](ybar, pbar, ct_, clock, y_, p, cache)
        close([ybar, *(x / times for x in pbar)], right, tolerance)  # added to what was there
    assert ("f_keep!" in functions) == ("f_back!" in functions) == bool(residuals)
    if residuals:
        functions["f_keep!"](dy, clock, y_, p, cache, residuals)
        close([dy], [value], tolerance)
        for array in (dy, ybar, *cache.values()):
            array[...] = 1  # the reverse reads the residuals, and nothing else that was left
        for array in pbar:
            array[...] = 0
        functions["f_back!"](ybar, pbar, ct_, clock, y_, p, cache, residuals)
        close([ybar, *pbar], right, tolerance)
    return code


MATRICES: dict[str, Field] = {  # diffusions with three columns
    "constant": lambda t, y: MIX.expand(*y.shape, 3),
    "of time": lambda t, y: (MIX + torch.sin(t)).expand(*y.shape, 3),
    "stretched": lambda t, y: torch.tanh(y).unsqueeze(-1) * MIX,
    "stacked": lambda t, y: torch.stack([y, y.flip(-1), torch.exp(-t) * y * y], -1),
    "mixed": lambda t, y: torch.einsum("dm,...d->...dm", MIX, torch.sin(y @ MIX @ MIX.mT)) * t,
}


@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 4, 2)])
@pytest.mark.parametrize("name", MATRICES)
def test_a_diffusion_matrix_equals_torch(name: str, shape: tuple[int, ...]) -> None:
    assert check(MATRICES[name], torch.randn(shape, dtype=torch.float64), matrix=True).columns == 3


def test_a_diffusion_that_is_no_matrix_is_refused() -> None:
    for value in (lambda t, y: y, lambda t, y: y.new_ones(2, 3), lambda t, y: y.new_ones(5, 2, 0)):
        with pytest.raises(UnsupportedField, match="the diffusion returned"):
            export(value, torch.ones(5, 2), name="g", matrix=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("zoo", EVERY, ids=str)
def test_value_and_vjp_equal_torch(zoo: Zoo) -> None:
    check(*made(zoo))


NO_SECOND_DERIVATIVE = {"diagonals": "_unique", "distances": "_cdist_backward", "running product": "bmm"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("zoo", REAL, ids=str)
def test_jvp_and_its_reverse_equal_torch(zoo: Zoo) -> None:
    """Against the Jacobian, formed row by row, times the tangents, and against the gradient of that."""
    field, y = made(zoo)
    if str(zoo) in NO_SECOND_DERIVATIVE:
        with pytest.raises(UnsupportedField, match=NO_SECOND_DERIVATIVE[str(zoo)]):
            export(field, y, name="f", tangents=True)
        return
    code = export(field, y, name="f", tangents=True)
    assert parses(code.source)
    assert called(code.source) <= BASE | FIELD_NAMES, "names that the code can not see"
    ct, ydot = torch.randn_like(y), torch.randn_like(y)
    t, tdot = torch.tensor(0.3, dtype=y.dtype), torch.tensor(0.7, dtype=y.dtype)
    product, right = product_and_gradients(field, (t, y), (tdot, ydot), ct, code)
    functions = load(code.source)
    p, y_ = tuple(julia(x) for x in code.tensors), julia(y)
    cache = functions["buffers"](y_, y_.shape[-1] if y_.ndim else 1)
    dy, ybar = np.full_like(y_, np.nan), np.full_like(y_, np.nan)
    pbar = tuple(np.zeros_like(julia(x)) for x in code.tensors if x.requires_grad)
    arguments = (tdot.numpy()[()], julia(ydot), t.numpy()[()], y_, p, cache)
    tolerance = 1e-11 if y.dtype == torch.float64 else 1e-4
    for times in (1, 2):  # again, with what the first run left in the cache
        functions["f_jvp!"](dy, *arguments)
        close([dy], [product], tolerance)
        functions["f_jvp_vjp!"](ybar, pbar, julia(ct), *arguments)
        close([ybar, *(x / times for x in pbar)], right, tolerance)


def product_and_gradients(
    field: Field, at: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor], ct: Tensor, code: Code
) -> tuple[Tensor, list[Tensor]]:
    t, y = (x.clone().requires_grad_() for x in at)
    with plain_attention():
        value = field(t, y * 1)
        wanted = [y, *(x for x, needs in zip(code.tensors, code.needs_gradient, strict=True) if needs)]
        if not value.requires_grad:
            return torch.zeros_like(value), [torch.zeros_like(x) for x in wanted]
        rows = torch.eye(y.numel(), dtype=y.dtype).view(-1, *value.shape)
        parts = [torch.autograd.grad(value, (t, y), row, create_graph=True, allow_unused=True) for row in rows]
        terms = [
            sum(((x * dot).sum() for x, dot in zip(part, tangents, strict=True) if x is not None), 0 * value.sum())
            for part in parts
        ]
        product = torch.stack(terms).view_as(value)
        found = torch.autograd.grad(product, wanted, ct, allow_unused=True)
    return product.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("zoo", [z for z in EVERY if z.batched], ids=str)
def test_one_source_for_every_batch_size(zoo: Zoo) -> None:
    field, y = made(zoo)
    other = torch.randn(y.shape[0] + 4, *y.shape[1:], dtype=y.dtype)
    assert export(field, y, name="f").source == check(field, other).source


def test_what_a_signals_handler_raises_while_a_field_is_compared_is_not_lost() -> None:
    states: list[Tensor] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        if not isinstance(y, FakeTensor):
            states.append(y)
        if len(states) == 2:
            raise TimeoutError
        return -y

    with pytest.raises(TimeoutError):
        export(field, torch.ones(3), name="f")


@pytest.mark.parametrize("width", [1, 2, 7])
def test_batch_size_that_equals_another_size(width: int) -> None:
    """Seven is also the batch size that the trace sees."""
    field = Net(2, width)
    sources = {check(field, state(batch, 2)).source for batch in (1, 2, 7)}
    assert len(sources) == 1


def test_batch_size_that_the_field_depends_on_is_part_of_the_source() -> None:
    assert "B = " not in check(lambda t, y: y if len(y) > 3 else -y, state(5, 2)).source
    check(lambda t, y: y if len(y) > 3 else -y, state(3, 2))
    check(lambda t, y: y - y.squeeze().sum(0), state(1, 3))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_case_F9_a_batch_size_that_the_field_asks_for_is_seen_at_zero(batch: int) -> None:
    """Where both ways have the same value: the gradient was that of the other way."""
    zeros = torch.zeros(batch, 2, dtype=torch.float64)
    check(lambda t, y: 2 * y if y.shape[0] == batch else -y, zeros)
    check(lambda t, y: y if len(y) > batch else -y, zeros)


def test_case_F10_what_a_mask_holds_is_read_again() -> None:
    """A mask is a list of places, whose number is part of the source."""
    mask, y = torch.tensor([True, False, True]), state(2, 3)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return y * y[:, mask].sum()

    check(field, y)
    mask[1] = True
    check(field, y)
    mask[0] = False
    check(field, y)


NEIGHBOURS = torch.tensor([1, 2, 0, 0])


@pytest.mark.parametrize(
    "field",
    [
        lambda t, y: y[NEIGHBOURS] - y,
        lambda t, y: torch.zeros_like(y).index_add(0, NEIGHBOURS, y.sin()),
    ],
)
def test_graphs_whose_nodes_are_the_leading_dimension(field: Field) -> None:
    """The number of nodes is part of the source."""
    check(field, state(4, 3))


def test_single_precision_stays_single() -> None:
    module = Net(activation=nn.GELU(), time="concat").float()
    exported = check(module, state(3, 2, dtype=torch.float32), tolerance=2e-6)
    literals = re.findall(r"\b\d+\.\d+(?:e-?\d+)?(?!\w)", exported.source)
    assert literals == [], "double-precision literals would promote the whole computation"


def test_what_the_field_reads_is_listed_with_its_gradients() -> None:
    exported = check(*made(next(z for z in ZOO if z.name == "closure")))
    assert [tuple(x.shape) for x in exported.tensors] == [(), (2, 2), (2,), (2,)]
    assert exported.needs_gradient == (True, True, False, False)
    module = Net()
    module.first.weight.requires_grad_(False)
    exported = check(module, state(3, 2))
    assert exported.needs_gradient == (False, True, True, True)
    assert exported.tensors[0] is module.first.weight


def test_source_is_readable() -> None:
    source = export(Net(time="bias"), state(3, 2), name="drift").source
    assert "mul!(h1, transpose(p1), y)" in source
    assert re.search(r"@\.\. h1 = fast_tanh\(.*h1 \+ p2.*\)", source)
    assert {f"drift{suffix}!" for suffix in ("", "_vjp", "_keep", "_back")} | {"buffers", "residuals"} == set(
        load(source)
    )


def test_the_reverse_computes_no_product_again() -> None:
    source = check(Net(), state(3, 2)).source
    back = source[source.index("function f_back!") :]
    assert back.count("mul!") == 4, "two layers, each by its weight and by its argument"
    assert "fast_tanh" not in back
    cubic = check(lambda t, y: -(y**3), state(3, 2))
    assert "f_keep!" not in load(cubic.source), "there is nothing to keep"


def test_exporting_again_is_cheap_and_sees_changes() -> None:
    class Annealed(nn.Module):
        rate = 1.5

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y

    field = Annealed()
    y = state(3, 2)
    first = export(field, y, name="f")
    assert export(field, y, name="f").source is first.source
    field.rate = 2.5
    assert "-2.5" in export(field, y, name="f").source

    def closing_over(w: Tensor) -> Field:
        return lambda t, y: w * y

    one, two = state(2), 3 * state(2)
    assert export(closing_over(one), y, name="f").source is export(closing_over(two), y, name="f").source
    assert export(closing_over(two), y, name="f").tensors[0] is two


@pytest.mark.parametrize(
    "field",
    [
        lambda t, y: torch.tanh(y) + torch.tanh(y).flip(-1),
        lambda t, y: torch.tanh(y) * torch.tanh(y).t() + torch.tanh(y).sin(),
        lambda t, y: torch.tanh(y) @ torch.tanh(y),
        lambda t, y: (lambda h: h - h.roll(1, 0) * h.sin())(torch.tanh(y)),
        lambda t, y: torch.tanh(y) - torch.tanh(y).sum(0),
        lambda t, y: torch.tanh(y) * torch.tanh(y).cumsum(1),
        lambda t, y: torch.cat([torch.tanh(y)[:, 1:], torch.tanh(y)[:, :1]], 1) * torch.tanh(y),
        lambda t, y: (lambda h: torch.cat([h[:, 2:] * h[:, :1], h[:, :2]], 1) + h)(torch.tanh(y)),
        lambda t, y: torch.tanh(y).float().double() + torch.tanh(y).sin(),
        lambda t, y: (lambda h: (h.exp() @ h).sin() * (h @ h.exp()).cos() + h)(torch.tanh(y)),
    ],
)
def test_no_array_is_overwritten_before_its_last_use(field: Field) -> None:
    """What is used more than once, as itself and moved about, in arrays that results may be written over."""
    check(field, state(3, 3))


SHIFT = state(3, 3).requires_grad_()


@pytest.mark.parametrize(
    "field",
    [
        lambda t, y: torch.div(3 * y, 0.7, rounding_mode="trunc") * y,
        lambda t, y: torch.div(3 * y, 0.7, rounding_mode="floor") * y,
        lambda t, y: torch.rsub(y, y.sin(), alpha=3),
        lambda t, y: torch.rsub(y, 2.0, alpha=0.5),
        lambda t, y: torch.sub(y, y.sin(), alpha=-2),
        lambda t, y: torch.add(2.0, y, alpha=0.25),
        lambda t, y: (y.abs() + 0.5) ** -0.5,
        lambda t, y: (y.abs() + 0.5) ** 0.5,
        lambda t, y: (y.abs() + 0.5) ** -3,
        lambda t, y: (y.abs() + 0.5) ** 0,
        lambda t, y: torch.addmm(SHIFT, y, SHIFT, beta=0.5, alpha=-2),
        lambda t, y: torch.addmm(SHIFT, y, SHIFT, beta=0),
        lambda t, y: torch.baddbmm(SHIFT[None], y[None], SHIFT[None], beta=3)[0],
        lambda t, y: torch.addmv(SHIFT[0], SHIFT, y[0], beta=0.25).expand_as(y) * y,
        lambda t, y: torch.cat([y[:, -2:], y[:, -3:-2].exp()], 1),
        lambda t, y: torch.cat([y[:, -10:2].sin(), y[:, -1:]], 1),
        lambda t, y: y[:, -10:].sin() * y[:, -1:] + y[:, -3:2].sum(1, keepdim=True),
        lambda t, y: torch.cat([y[-1:].sin(), y[:-1]], 0),
        lambda t, y: y[:, ::2].sum(1, keepdim=True) * y[:, -3::2].mean(1, keepdim=True) * y,
        lambda t, y: y.select(1, -2)[:, None] * y.select(0, -1),
        lambda t, y: y.slice_scatter(y[:, :2].sin(), 1, -2).select_scatter(y[:, 0].cos(), 1, -3),
        lambda t, y: y - (y > 0) * y.sin() + ~(y > 0.5) * 1.0,
        lambda t, y: -(-y - -(y - 1.5)) - (1 - (2 - y)) / (3 / (y.abs() + 1) / 2),
    ],
)
def test_arguments_of_operators(field: Field) -> None:
    """Rounding modes, factors, exponents, indices from the end, signs and brackets."""
    y = state(3, 3)
    check(field, y)
    check(field, -1.7 * y)


def test_residuals_of_another_type_are_not_kept_in_the_states() -> None:
    """A product in double precision inside a field of single precision: a float32 copy would lose the phase."""
    weights = (1e5 * state(3, 3)).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return (y.double() @ weights).sin().float()

    check(field, state(4, 3, dtype=torch.float32), tolerance=1e-5)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        return 1 * g


def test_the_source_depends_on_what_needs_a_gradient() -> None:
    """The same calls with a parameter that is frozen, then trained, then frozen: three exports, right each time."""

    def closing_over(w: Tensor) -> Field:
        return lambda t, y: (y * 0.77) @ w

    for needs in (False, True, False):
        code = check(closing_over(state(2, 2).requires_grad_(needs)), state(3, 2))
        assert code.needs_gradient == (needs,)
        assert ("p1bar" in code.source) == needs

    slope = state(2).requires_grad_()
    for needs in (False, True, False):  # no gradient comes to it either way, yet it has a place among the cotangents
        w = state(2).requires_grad_(needs)
        code = check(lambda t, y, w=w: (w * 2).detach() * y + slope * y, state(3, 2))
        assert code.needs_gradient == (needs, True)

    for function in (Square, StraightThrough, Square):  # the same calls forward, another derivative
        check(lambda t, y, function=function: function.apply(y * 0.79), state(3, 2))

    for cut in (True, False, True):
        w = state(2, 2).requires_grad_()
        code = check(lambda t, y, w=w, cut=cut: (y * 0.78) @ (w.detach() if cut else w), state(3, 2))
        assert ("mul!(p1bar" in code.source) != cut


def draws(t: Tensor, y: Tensor) -> Tensor:
    return y + torch.randn_like(y)  # noise


def branches(t: Tensor, y: Tensor) -> Tensor:
    if y.sum() > 0:  # branch
        return y
    return -y


def masks(t: Tensor, y: Tensor) -> Tensor:
    return y * y[y > 0].sum()  # mask


def selects(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.masked_select(y, y > 0).sum()  # select


def reduces(t: Tensor, y: Tensor) -> Tensor:
    return y.scatter_reduce(0, torch.zeros(3, 2, dtype=torch.int64), y.sin(), "prod")  # reduce


COUNTER = torch.zeros(2, dtype=torch.float64)


def counts(t: Tensor, y: Tensor) -> Tensor:
    COUNTER.add_(1)  # count
    return y * COUNTER


@pytest.mark.parametrize(
    ("field", "operator", "mark"),
    [
        (draws, "aten.randn_like", "noise"),
        (branches, "aten._local_scalar_dense", "branch"),
        (masks, "a mask as an index", "mask"),
        (selects, "a size that depends on the data: use torch.where", "select"),
        (reduces, "no translation of aten.scatter_reduce.two. Write it with other functions", "reduce"),
        (counts, "aten.add_", "count"),
    ],
)
def test_refusals_name_the_operator_and_the_line(field: Field, operator: str, mark: str) -> None:
    lines, first = inspect.getsourcelines(field)
    line = first + next(i for i, text in enumerate(lines) if f"# {mark}" in text)
    with pytest.raises(UnsupportedField, match=re.escape(operator)) as caught:
        export(field, state(3, 2), name="f")
    assert f"test_export.py:{line}" in str(caught.value)
    assert COUNTER.tolist() == [0.0, 0.0], "refused before anything was changed"


def test_layers_that_draw_or_change_themselves_in_training_are_refused() -> None:
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2).double())
    for layer in (nn.Dropout(0.5), nn.BatchNorm1d(2).double(), spectral):
        with pytest.raises(UnsupportedField, match=r"random|changes a tensor"):
            export(lambda t, y, layer=layer: layer(y), state(3, 2), name="f")


def test_a_field_that_is_no_function_of_its_arguments_is_refused() -> None:
    calls: list[int] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return y * float(len(calls))

    with pytest.raises(UnsupportedField, match="do not reproduce"):
        export(field, state(3, 2), name="f")


@pytest.mark.parametrize("inside", [True, False], ids=["in the field", "around the solve"])
def test_half_precision_of_a_field_is_refused_by_its_name(inside: bool) -> None:
    layer, y = nn.Linear(2, 2), torch.ones(3, 2)

    def field(t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
            return torch.tanh(layer(y)).float()

    around = torch.autocast("cpu", torch.bfloat16, enabled=not inside)
    with around, pytest.raises(UnsupportedField, match=r"autocast .*set Solver\(engine='torch'\)|with autocast off"):
        export(field, y, name="f")


def test_a_gradient_that_would_be_lost_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.trace(Net().first, state(3, 2))
    with pytest.raises(UnsupportedField, match=r"needs a gradient|can not trace"):
        export(lambda t, y: scripted(y)[:, :2], state(3, 2), name="f")


def test_torch_func_inside_a_field() -> None:
    module, weight = Net(), torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    check(lambda t, y: torch.func.grad(lambda x: (weight * x.sin()).sum())(y), state(3, 2))
    energy = torch.func.grad(lambda x: module(torch.zeros(()), x).tanh().sum())
    check(lambda t, y: torch.func.vmap(energy)(y), state(3, 2))


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_field_of_a_flow(trace: str) -> None:
    """The field that `nn.CNF` solves, whose slope has a product with a Jacobian in it."""
    fields: list[Field] = []

    def seen(field: Field, start: Tensor, ts: object, record: object) -> regnde.Solution:
        fields.append(field)
        return regnde.solve(field, start, ts, regnde.Solver(method="euler", dt0=1.0, engine="torch"))

    regnde.nn.CNF(Net(), 2, trace=trace)(state(3, 2), integrate=seen)
    check(fields[0], state(3, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing the compiler raises them
def test_what_is_compiled_is_read_as_it_was_written() -> None:
    module = Net()
    y = state(3, 2)
    source = export(module, y, name="f").source
    assert export(torch.compile(module), y, name="f").source == source
    assert "y" in export(torch.compile(lambda t, y: torch.tanh(y) * t), y, name="f").source
    inner = torch.compile(module, backend="eager")
    outer = lambda t, y: inner(t, y) - y  # noqa: E731
    before = export(outer, y, name="f").source
    outer(torch.tensor(0.1, dtype=y.dtype), y)
    assert export(outer, y, name="f").source == before, "a compiled part that has run is exported too"


def test_errors_of_the_field_itself_come_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        export(lambda t, y: y @ SPIRAL.repeat(2, 2), state(3, 2), name="f")
    with pytest.raises(UnsupportedField, match="shape"):
        export(lambda t, y: y[:1], state(3, 2), name="f")
    with pytest.raises(UnsupportedField, match="complex"):
        export(lambda t, y: 1j * y, state(3, 2), name="f")
    with pytest.raises(UnsupportedField, match="float16"):
        export(lambda t, y: y, state(3, 2).half(), name="f")
    with pytest.raises(ValueError, match="identifier"):
        export(lambda t, y: y, state(3, 2), name="f(x)")


def test_case_22c_a_solve_inside_of_a_field_is_refused() -> None:
    """It waited for its own thread."""
    y = torch.ones(2)

    def inner(t: Tensor, y: Tensor) -> Tensor:
        return -y

    def outer(t: Tensor, y: Tensor) -> Tensor:
        code_of(inner, y, "f")
        return -y

    with pytest.raises(UnsupportedField, match="inside of a field"):
        code_of(outer, y, "f")
    assert code_of(inner, y, "f")[0].source

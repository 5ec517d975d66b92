"""Products with a field's Jacobian, and its divergence, for the density of a flow and for RNODE.

They use `torch.autograd.grad`. `torch.func.vjp` takes up to twice the time, a checkpoint can not evaluate it again, and
the Julia engine can not export it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["divergence", "log_density_slope", "signs", "slope_and_rows"]

Field = Callable[[Tensor, Tensor], Tensor]


def slope_and_rows(field: Field, t: Tensor, y: Tensor, probes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """f(t, y), and each probe times the Jacobian of f, all of y's shape and dtype, under autocast too.

    They have a graph where gradients are enabled and something needs one.
    """
    if torch._C._are_functorch_transforms_active():  # autograd.grad does not see through a transform
        slope, pull = torch.func.vjp(lambda x: field(t, x).to(y.dtype), y)[:2]
        return slope, [pull(probe.to(y.dtype))[0] for probe in probes]
    graph = torch.is_grad_enabled()
    if torch.is_inference_mode_enabled():  # its tensors have no graph
        with torch.inference_mode(False):
            return slope_and_rows(field, t.clone(), y.clone(), [probe.clone() for probe in probes])
    with torch.enable_grad():
        x = y.view_as(y) if graph and y.requires_grad else y.detach().requires_grad_()  # y has no other derivative
        slope = field(t, x).to(y.dtype)
        if not slope.requires_grad:
            return slope, [torch.zeros_like(y) for _ in probes]
        graph = graph and (y.requires_grad or _needs_more_than(slope, x))
        rows = [
            torch.autograd.grad(
                slope, x, probe.to(y.dtype), create_graph=graph, retain_graph=True, materialize_grads=True
            )[0]
            for probe in probes
        ]
    return (slope, rows) if graph else (slope.detach(), rows)


def divergence(field: Field, t: Tensor, y: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
    """f(t, y), and the trace of its Jacobian for each sample, exact or estimated.

    Args:
        field: f(t, y), of every sample on its own.
        t: time, 0-dim or a column.
        y: states, shape (..., d).
        probe: vectors e of y's shape with entries of mean 0 and variance 1: the trace is estimated by e^T J e. None for
            the exact trace of a real field, which takes d products with the Jacobian.

    Returns:
        The slope, shape (..., d), and the trace, shape (..., 1), real.
    """
    if probe is None:
        columns = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        slope, rows = slope_and_rows(field, t, y, [column.expand_as(y) for column in columns])
        return slope, torch.stack([row[..., i] for i, row in enumerate(rows)], -1).sum(-1, keepdim=True)
    slope, (row,) = slope_and_rows(field, t, y, [probe])
    # A complex entry is two real dimensions, and the vector has half of its variance in each.
    trace = 2 * (row.conj() * probe).real if y.is_complex() else row * probe
    return slope, trace.sum(-1, keepdim=True)


def log_density_slope(field: Field, t: Tensor, z: Tensor, probe: Tensor | None) -> Tensor:
    """The slope of states with their log densities as last entries, shape (..., d + 1): d log p / dt = -trace."""
    slope, trace = divergence(field, t, z[..., :-1], probe)
    return torch.cat((slope, -trace), -1)


def _needs_more_than(slope: Tensor, x: Tensor) -> bool:
    """Whether the slope's graph has a leaf other than x."""
    seen, nodes = set(), [slope.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", x) is not x:
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def signs(y: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Entries of -1 and 1 with equal chance, of y's shape, dtype and device; (+-1 +- i) / sqrt 2 for a complex y."""
    shape = (*y.shape, 2) if y.is_complex() else y.shape
    device = "cpu" if generator is None else generator.device  # whatever torch's default device
    draws = (2 * torch.randint(0, 2, shape, generator=generator, device=device) - 1).to(y.device, y.real.dtype)
    return torch.view_as_complex(draws * 0.5**0.5) if y.is_complex() else draws

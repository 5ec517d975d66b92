"""Whether derivatives are asked for, by autograd or by a transform of torch.func."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["has_derivative", "transformed"]


def transformed() -> bool:
    """Whether torch.func or forward mode is at work: they do not run the hooks that a checkpoint needs."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def has_derivative(x: Tensor) -> bool:
    """Whether a tensor carries a gradient, or a tangent of forward mode."""
    return x.requires_grad or (transformed() and _has_tangent(x))


def _has_tangent(x: Tensor) -> bool:
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    dual: Any = torch.autograd.forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]  # torch does not type it
    return wrapped or dual.tangent is not None

"""Whether derivatives are asked for, by autograd or by a transform of torch.func."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["constant", "has_derivative", "mapped", "numbers", "transformed"]


def transformed() -> bool:
    """Whether torch.func or forward mode is at work: they do not run the hooks that a checkpoint needs."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def mapped() -> bool:
    """Whether torch.func.vmap is at work, by itself or in another transform."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def has_derivative(x: Tensor) -> bool:
    """Whether a tensor carries a gradient, or a tangent of forward mode."""
    return x.requires_grad or (transformed() and _has_tangent(x))


def constant(values: ArrayLike) -> Tensor:
    """A tensor of numbers on the CPU, floats in double precision, that no transform of torch.func takes for its own."""
    with torch._C._DisableFuncTorch():
        return torch.from_numpy(np.array(values))


def numbers(x: Tensor) -> NDArray[np.float64]:
    """The values of a real tensor, without derivatives. A tensor inside a transform of torch.func has no memory."""
    x = x.detach()
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    values: NDArray[np.float64] = (
        np.array(x.tolist(), np.float64).reshape(x.shape) if wrapped else x.to("cpu", torch.float64).numpy()
    )
    return values


def _has_tangent(x: Tensor) -> bool:
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    dual: Any = torch.autograd.forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]  # torch does not type it
    return wrapped or dual.tangent is not None

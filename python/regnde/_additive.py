"""Whether a diffusion depends on the state, where a method or an equation says that it does not."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_additive", "moved_by_noise"]

TOLERANCE = 100  # in units of the dtype's resolution


def moved_by_noise(y: Tensor, diffusion: Tensor, root: float) -> Tensor:
    """A state beside y, as far as the noise moves it in a step whose size has that root."""
    return torch.add(y, diffusion.sum(-1) if diffusion.ndim > y.ndim else diffusion, alpha=root)


def check_additive(method: str, y: Tensor, here: Tensor, there: Tensor) -> None:
    """Raises a ValueError if the values of a diffusion at two states differ.

    Args:
        method: the method, which would converge to something else.
        y: a state.
        here: the diffusion at one state.
        there: the same at another one and the same time.
    """
    bound = TOLERANCE * torch.finfo(y.dtype).eps
    if not bool(torch.isfinite(here).all()) or torch.allclose(here, there, rtol=bound, atol=0.0):
        return
    if here.ndim > y.ndim:
        raise ValueError(
            "SDE(noise='additive'): the diffusion changes with the state: write noise='general', and say in which "
            "calculus."
        )
    raise ValueError(
        f"method {method!r} is for additive noise, but the diffusion changes with the state: use 'sosri', 'sosri2' or "
        "'sriw1'."
    )

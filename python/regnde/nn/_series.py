"""Checks of irregular series: values, their mask and their times."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_series"]


def check_series(values: Tensor, mask: Tensor, ts: Tensor) -> None:
    """Refuses series whose shapes do not fit together, before torch broadcasts them."""
    shape = tuple(values.shape)
    if len(shape) != 3:
        raise ValueError(f"values must have the shape (batch, times, features), got {shape}.")
    if mask.shape != values.shape:
        raise ValueError(
            f"mask must have the shape of values, {shape}, one entry for each value, got {tuple(mask.shape)}: for one "
            "entry a time give mask.unsqueeze(-1).expand_as(values)."
        )
    if ts.shape != shape[1:2]:
        raise ValueError(f"values of shape {shape} need {shape[1]} times, got ts of shape {tuple(ts.shape)}.")

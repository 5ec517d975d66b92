"""A penalty's weight that sets itself, from the gradients that it and the task send to the parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Balance"]

MEMORY = 0.98  # of the penalty's largest norm, a measurement


class Balance:
    """The weight at which the penalty's gradient is a fixed fraction of the task's.

    weight = fraction * |d task / d p| / |d penalty / d p|, norms over the parameters that both reach, of gradients
    averaged over the measurements. A penalty's size depends on the tolerance, its reduction, the length of the span
    and the batch, and the ratio undoes all of them; it also falls by itself as the task's gradient does, which the
    papers do by a schedule. The gradients are averaged and not their norms: near the end a task's gradient is the
    noise of its batches, which is no measure of what the task has left to gain. Of the penalty's norm the largest so
    far counts, slowly forgotten: where the penalty has had its effect its gradient is small, and a weight that rose
    for that would flatten the field further instead of letting it learn. One object serves one training: hand it to
    `fit` as its weight.

    Args:
        fraction: of the task's gradient (> 0); larger ones buy fewer evaluations with the task's loss.
        every: iterations between two measurements, each of which costs two more passes backward.
        smoothing: share of the old mean that a measurement keeps, in [0, 1).

    Attributes:
        value: the weight; 0 before the first measurement, and where the penalty has no gradient. A warning says so
            where the penalty is not 0 but reaches none of the parameters that the task does.

    Raises:
        ValueError: for an argument outside its range.

    Example:
        >>> import torch
        >>> w = torch.ones((), requires_grad=True)
        >>> balance = Balance(fraction=0.5)
        >>> balance.update(task=8 * w, penalty=2 * w, parameters=[w])  # half of 8, over 2
        2.0
        >>> balance.update(task=8 * w, penalty=200 * w, parameters=[w])  # not yet time to measure again
        2.0
    """

    def __init__(self, fraction: float = 1.0, *, every: int = 10, smoothing: float = 0.8) -> None:
        if not (fraction > 0 and every >= 1 and 0 <= smoothing < 1):
            raise ValueError(
                f"Balance(fraction={fraction}, every={every}, smoothing={smoothing}): fraction must be above zero, "
                "every at least 1, smoothing in [0, 1)."
            )
        self.fraction, self.every, self.smoothing = fraction, every, smoothing
        self._task = self._peak = 0.0
        self._seen = 0
        self._means: dict[int, tuple[Tensor, ...]] = {}  # by parameter: of the task's gradient, of the penalty's
        self._warned = False

    @property
    def value(self) -> float:
        """The weight now."""
        return self.fraction * self._task / self._peak if self._peak > 0 else 0.0

    def update(self, task: Tensor, penalty: Tensor, parameters: Sequence[Tensor]) -> float:
        """Measures if it is time to; called once an iteration, before the backward pass.

        Args:
            task: loss of the task, 0-dim.
            penalty: regulariser before its weight, 0-dim.
            parameters: those that are trained.

        Returns:
            The weight.
        """
        due = self._seen % self.every == 0
        self._seen += 1
        if due and task.requires_grad:
            slopes = [_slopes(loss, parameters) for loss in (task, penalty)]
            shared = {i: (a, b) for i, (a, b) in enumerate(zip(*slopes, strict=True)) if not (a is None or b is None)}
            if not shared:
                self._warn(penalty, len(parameters))
            sizes = [_norm(side) for side in zip(*shared.values(), strict=True)]
            if len(sizes) == 2 and all(map(math.isfinite, sizes)):
                means = dict(self._means)  # a new one: a copy of this object may share the old one
                for i, pair in shared.items():
                    old = means.get(i, pair)
                    means[i] = tuple(_blend(b, a, self.smoothing) for a, b in zip(old, pair, strict=True))
                self._means = means
                self._task, penalty_norm = (_norm(side) for side in zip(*self._means.values(), strict=True))
                self._peak = max(penalty_norm, MEMORY * self._peak)
        return self.value

    def _warn(self, penalty: Tensor, count: int) -> None:
        """Says once why the weight stays 0."""
        if self._warned or self.value > 0 or float(penalty.detach()) == 0:
            return
        self._warned = True
        warnings.warn(
            f"Balance: the task and the penalty share none of the {count} parameters, so the weight stays 0. Give the "
            "optimiser the parameters of the field, or the weight as a number.",
            stacklevel=3,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {"task": self._task, "peak": self._peak, "seen": self._seen, "means": dict(self._means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from such a state."""
        self._task, self._peak, self._seen = state["task"], state["peak"], state["seen"]
        self._means = dict(state["means"])


def _slopes(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The loss' gradient by each parameter, None where there is none."""
    if not (loss.requires_grad and parameters):
        return (None,) * len(parameters)
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _blend(new: Tensor, old: Tensor, share: float) -> Tensor:
    """New and old values with this share of the old ones; sparse only if both are."""
    if new.is_sparse and old.is_sparse:
        return (new * (1 - share) + old * share).coalesce()
    new, old = (x.to_dense() if x.is_sparse else x for x in (new, old))
    return torch.lerp(new, old, share)


def _norm(parts: Iterable[Tensor]) -> float:
    """Of all entries together, of complex ones the modulus."""
    entries = (part.coalesce().values() if part.is_sparse else part for part in parts)
    return math.hypot(*(float(torch.linalg.vector_norm(x)) for x in entries))

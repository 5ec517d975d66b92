"""A penalty's weight that sets itself: from gradients (`Balance`), and from a loss that may be spent (`LossBudget`)."""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from regnde._state_dict import check_state

__all__ = ["Balance", "LossBudget", "MeasuredWeight"]

MEMORY = 0.98  # of the penalty's largest norm, a measurement
GROWN = 2.0  # a penalty that grew by this factor is measured at once
SMALLER = 256.0  # a scale at which gradients overflow is divided by this

# Of a `LossBudget`; chosen on small trainings such as those of docs/weight.md.
FAST, SLOW, SPREAD = 0.1, 0.03, 0.05  # share of the last value in the two means of the loss and in its variance
WINDOW = 60  # losses that count in any of them: none remembers how large the loss once was
LEARNT = 30  # iterations before which a model counts as learning
TOLERANCE = 0.02  # of a loss, as a share of its size: the distance that counts as one, unless noise is larger
STALLED = 0.5  # in that distance: a mean that falls by less is not learning
LOWEST = 4.0  # standard errors of a mean: what the lowest of many lies below their mean, and as much above it
SETTLED = 5  # iterations before which the means are not trusted
RISE, FALL, LET_GO = 0.1, 0.2, 0.05  # of the share's logarithm an iteration: within, above, above and never within
BACK, GONE = 0.2, 0.02  # of the first share: where the weight is 0, after the budget was met once, and before


@runtime_checkable
class MeasuredWeight(Protocol):
    """A weight that is found from the losses, once an iteration and before the backward pass."""

    def update(self, task: Tensor, penalty: Tensor, parameters: Iterable[Tensor], *, scale: float = 1.0) -> float:
        """The weight for this iteration; `scale` is that of the training's GradScaler."""


class Balance:
    """A weight with which the penalty's gradient is a fixed fraction of the task's.

    weight = fraction * |d task / d p| / |d penalty / d p|. The norms are those of mean gradients over the
    measurements, for the parameters that both depend on. So the weight does not depend on the scale of the penalty,
    its reduction, the tolerance, the span or the batch. It falls with the gradient of the task, as the schedules of
    the papers do.

    - The mean is one of gradients, not of their norms: near the end of a training the gradient of a batch is mostly
      noise, and its norm does not fall.
    - If the mean gradient of the task is longer than the last one, it is scaled down to the length of the last one.
      Gradients fall by large factors in the first iterations.
    - For the penalty the largest norm so far counts, and is slowly forgotten. When a penalty has succeeded its
      gradient is small. The weight must not rise for that reason.

    One object is for one training. Pass it to `fit` as the weight.

    Args:
        fraction: of the task's gradient (> 0). A larger one saves more evaluations and raises the loss. The default
            costs little on models that were not chosen for it (experiment `public` in docs/results.md).
        every: iterations between two measurements, each of which takes two more backward passes. At the start there
            are measurements in iterations 0, 1, 2, 4 and so on. If the penalty has doubled since the last
            measurement, the next one is made at once.
        smoothing: share of the old mean that a measurement keeps, in [0, 1).
        distributed: average the weight over the processes of `torch.distributed`'s default group, so that all
            train the same loss. Every process must then call `update` equally often.

    Attributes:
        value: the weight that the last `update` returned. 0 before the first one, and if the penalty has no gradient.
            A warning says if the penalty depends on none of the parameters that the task depends on.

    Raises:
        ValueError: for an argument outside its range.

    Examples:
        >>> import torch
        >>> w = torch.ones((), requires_grad=True)
        >>> balance = Balance(fraction=0.5)
        >>> balance.update(task=8 * w, penalty=2 * w, parameters=[w])  # half of 8, over 2
        2.0
        >>> balance.update(task=4 * w, penalty=2 * w, parameters=[w])  # the task's gradient has halved
        1.0
    """

    def __init__(
        self, fraction: float = 0.1, *, every: int = 10, smoothing: float = 0.8, distributed: bool = False
    ) -> None:
        numbers = isinstance(fraction, Real) and isinstance(every, Integral) and isinstance(smoothing, Real)
        if not (numbers and 0 < fraction < math.inf and every >= 1 and 0 <= smoothing < 1):
            raise ValueError(
                f"Balance(fraction={fraction!r}, every={every!r}, smoothing={smoothing!r}): fraction must be a number "
                "above zero, every a whole number of at least 1, smoothing in [0, 1)."
            )
        self.fraction, self.every, self.smoothing, self.distributed = fraction, every, smoothing, distributed
        self.value = 0.0
        self._task = self._peak = 0.0
        self._level = math.inf  # of the penalty, when it was last measured
        self._seen = 0
        self._means: dict[int, tuple[Tensor, ...]] = {}  # by parameter: of the task's gradient, of the penalty's
        self._warned = False
        self.forgets = True  # larger gradients of the task

    def update(self, task: Tensor, penalty: Tensor, parameters: Iterable[Tensor], *, scale: float = 1.0) -> float:
        """Measures if it is time to; called once an iteration, before the backward pass.

        Args:
            task: loss of the task, 0-dim.
            penalty: regulariser before its weight, 0-dim.
            parameters: those of the model or of the optimiser; frozen ones do not count.
            scale: factor of the losses while their gradients are measured: `scaler.get_scale()` of a GradScaler,
                without which float16 loses small ones. `fit` gives it.

        Returns:
            The weight.
        """
        if not (isinstance(task, Tensor) and isinstance(penalty, Tensor)):
            raise TypeError("update takes the two losses as tensors with their graphs, as they are before .item().")
        for name, loss in (("task", task), ("penalty", penalty)):
            if loss.numel() != 1:
                raise ValueError(f"update: {name} has the shape {tuple(loss.shape)}: reduce it to one number.")
        parameters = _listed(parameters)
        level = abs(float(penalty.detach()))
        count = self._seen
        early = count < self.every and count & (count - 1) == 0  # 0, 1, 2, 4, ...: gradients change fastest there
        grown = level > GROWN * self._level
        due = early or count % self.every == 0 or grown
        self._seen += 1
        if due and task.requires_grad:
            self._level = level
            if any(i >= len(parameters) or m[0].shape != parameters[i].shape for i, m in self._means.items()):
                self._means = {}  # others are trained now
            slopes = [_slopes(loss, parameters, scale) for loss in (task, penalty)]
            shared = {i: (a, b) for i, (a, b) in enumerate(zip(*slopes, strict=True)) if not (a is None or b is None)}
            if not shared:
                self._warn(penalty, len(parameters))
            sizes = [_norm(side) for side in zip(*shared.values(), strict=True)]
            if len(sizes) == 2 and all(map(math.isfinite, sizes)):
                means = dict(self._means)  # a new one: a copy of this object may share the old one
                shorter = min(1.0, sizes[0] / self._task) if self.forgets and self._task > 0 else 1.0
                for i, (of_task, of_penalty) in shared.items():
                    old = means.get(i, (of_task, of_penalty))
                    means[i] = (
                        _blend(of_task, old[0].to(of_task) * shorter, self.smoothing),
                        _blend(of_penalty, old[1].to(of_penalty), 0.0 if grown else self.smoothing),
                    )
                self._means = means
                self._task, penalty_norm = (_norm(side) for side in zip(*self._means.values(), strict=True))
                self._peak = max(penalty_norm, MEMORY * self._peak)
        weight = self._weight()
        self.value = averaged(weight) if self.distributed else weight
        return self.value

    def _weight(self) -> float:
        """This process's own."""
        return self.fraction * self._task / self._peak if self._peak > 0 else 0.0

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
        return {
            "value": self.value,
            "task": self._task,
            "peak": self._peak,
            "seen": self._seen,
            "level": self._level,
            "means": dict(self._means),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from such a state."""
        check_state("Balance", state, ("task", "peak", "seen", "means"))
        self._task, self._peak, self._seen = state["task"], state["peak"], state["seen"]
        self._level = state.get("level", math.inf)  # states of version 0.1.0 have none
        self._means = dict(state["means"])
        self.value = state.get("value", self._weight())


class LossBudget:
    """The largest weight that keeps the smoothed task loss at or below a loss that the user allows.

    weight = share * |d task / d p| / |d penalty / d p|, with the ratio of `Balance` and a share that follows the
    loss. Within the budget the share rises. Above the budget it falls, and faster, unless the loss is falling. The
    change is in proportion to the distance of the smoothed loss from the budget, in units of 2 % of the budget or of
    the noise of the smoothed loss, whichever is larger. Before the budget is met for the first time the share does
    not rise above its first value, because a large penalty at the start can prevent learning for good. This is an
    integral controller for the logarithm of the share (K. J. Astrom, R. M. Murray, Feedback Systems, ch. 10).
    docs/weight.md compares it with other rules.

    The loss can be above the budget because of the noise of the optimiser. To be sure, keep the parameters of an
    iteration in which `within` is true, or use `cheapen`, which does so.

    Args:
        allowed: the task loss that is allowed, for example that of the unregularised model and 2 % more. With None it
            is the lowest smoothed loss so far plus 2 % of its size, or plus four standard errors if that is more, and
            the share rises only after the loss has stopped falling.
        start: share in the first iteration (> 0). It is the largest one until the budget is met. A smaller one
            disturbs learning less, and saves less afterwards.
        largest: the largest share. With 1 the penalty never has more influence than the task. A larger one is useful
            if the state of the best iteration is kept, as in `cheapen`.
        every: iterations between two measurements of the gradients, as in `Balance`.
        distributed: average over the processes of `torch.distributed`, as in `Balance`.

    Attributes:
        allowed: as given; may be set.
        share: the norm of the weighted penalty's gradient over that of the task's gradient, at most `largest`; 0 if it
            was given up.
        loss: the smoothed task loss; NaN before the first iteration.
        within: whether `loss` is at most what is allowed.
        met: whether it ever was. If not, train longer or allow more. The smoothed loss is about ten iterations behind
            a falling loss. So a bound that the training without a penalty meets in its last iterations is not met.
        noise: standard error of the smoothed loss. No bound can be kept more exactly.

    Raises:
        ValueError: for an argument outside its range.

    Examples:
        >>> import torch
        >>> w = torch.ones((), requires_grad=True)
        >>> budget = LossBudget(allowed=10.0)
        >>> for _ in range(50):  # a task loss of 8
        ...     weight = budget.update(task=8 * w, penalty=2 * w, parameters=[w])
        >>> budget.within, budget.share
        (True, 1.0)
    """

    def __init__(
        self,
        allowed: float | Tensor | None,
        *,
        start: float = 0.1,
        largest: float = 1.0,
        every: int = 10,
        distributed: bool = False,
    ) -> None:
        if isinstance(allowed, Tensor):
            allowed = float(allowed.detach())
        if not isinstance(allowed, Real | None):
            raise TypeError(f"LossBudget(allowed={allowed!r}): give a number, the loss that is allowed, or None.")
        if not (0 < start <= largest < math.inf and (allowed is None or math.isfinite(allowed))):
            raise ValueError(
                f"LossBudget(allowed={allowed}, start={start}, largest={largest}): allowed must be a finite loss or "
                "None, start above 0 and at most largest."
            )
        self.allowed: float | None = allowed
        self.start, self.largest, self.distributed = start, largest, distributed
        self.met = False
        self._balance = Balance(1.0, every=every, distributed=distributed)
        self._share = start
        self._losses: list[float] = []  # the last ones
        self._lowest = math.inf  # of their means

    def __repr__(self) -> str:
        bound = "" if self.allowed is None else f"allowed {self.allowed:.4g}, "
        how = "within" if self.within else "above" if self.met else "above, never met"
        return f"LossBudget({bound}loss {self.loss:.4g} with a standard error of {self.noise:.1g}: {how})"

    @property
    def share(self) -> float:
        """The norm of the weighted penalty's gradient over that of the task's gradient, in this iteration."""
        return self._share if self._share > self._least else 0.0

    @property
    def _least(self) -> float:
        """The share that counts as 0. One that may come back is not far below the first one."""
        return (BACK if self.met else GONE) * self.start

    @property
    def loss(self) -> float:
        """The smoothed task loss."""
        return smoothed(self._losses)

    @property
    def noise(self) -> float:
        """Standard error of the smoothed loss."""
        return math.sqrt(self._variance() * _variance_left(len(self._losses), FAST)) if self._losses else math.nan

    @property
    def value(self) -> float:
        """The weight, as the last `update` returned it."""
        return self.share * self._balance.value

    @property
    def limit(self) -> float:
        """The loss that is allowed now; infinite where none is known yet."""
        if self.allowed is not None:
            return self.allowed
        noise = math.sqrt(self._variance() * _variance_left(LEARNT, SLOW))  # of means of which the lowest was taken
        return self._lowest + max(TOLERANCE * abs(self._lowest), LOWEST * noise)

    @property
    def within(self) -> bool:
        """Whether the smoothed loss is at or below what is allowed."""
        return self.loss <= self.limit

    def update(self, task: Tensor, penalty: Tensor, parameters: Iterable[Tensor], *, scale: float = 1.0) -> float:
        """Follows the loss; called once an iteration, before the backward pass.

        Args:
            task: loss of the task, 0-dim.
            penalty: regulariser before its weight, 0-dim.
            parameters: as in `Balance.update`.
            scale: as in `Balance.update`; `task` and `penalty` are given without it.

        Returns:
            The weight.
        """
        # Within the budget the task's gradient becomes small: what counts there is how large it was at the bound.
        self._balance.forgets = not (self.met and self.within)
        self._balance.update(task, penalty, parameters, scale=scale)
        loss = float(task.detach())
        if self.distributed:
            loss = averaged(loss)  # in every process, so that they stay in step: one that is not finite is so in all
        if math.isfinite(loss):
            self._losses = [*self._losses[1 - WINDOW :], loss]
            if len(self._losses) >= LEARNT:
                self._lowest = min(self._lowest, smoothed(self._losses, SLOW))
            if len(self._losses) > SETTLED:
                self._follow()
        return self.value

    def _variance(self) -> float:
        """Of single losses: half the squared difference of neighbours, where a trend does not count."""
        squares = [0.5 * (b - a) ** 2 for a, b in itertools.pairwise(self._losses)]
        return smoothed(squares, SPREAD) if squares else 0.0

    def _follow(self) -> None:
        """Moves the share."""
        unit = max(TOLERANCE * abs(self.limit), self.noise, 1e-12)
        now = (self.limit - self.loss) / unit
        trend = (self.loss - smoothed(self._losses, SLOW)) / unit  # below zero while the loss falls
        learning = trend < -STALLED or len(self._losses) < LEARNT
        if now >= 0 and not (learning and self.allowed is None):
            self.met = True
            self._share *= math.exp(RISE * max(0.0, min(1.0, now, now - trend)))
        elif now < 0 and now - trend < 0 and (self.met or not learning):
            self._share *= math.exp((FALL if self.met else LET_GO) * max(-1.0, now - trend))
        self._share = min(max(self._share, self._least), self.largest)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {
            "share": self._share,
            "losses": list(self._losses),
            "lowest": self._lowest,
            "met": self.met,
            "balance": self._balance.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from such a state."""
        check_state("LossBudget", state, ("share", "losses", "lowest", "met", "balance"))
        self._share, self._losses, self._lowest = state["share"], list(state["losses"]), state["lowest"]
        self.met = state["met"]
        self._balance.load_state_dict(state["balance"])


def _listed(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list."""
    found = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    for other in found:
        if not isinstance(other, Tensor):
            raise TypeError(
                f"update: parameters must be tensors, such as list(model.parameters()), got a {type(other).__name__}."
            )
    return found


def smoothed(values: Sequence[float], rate: float = FAST) -> float:
    """The mean of the last `WINDOW` values, where each weighs 1 - rate of the next one; NaN where there are none.

    With the rate as it is this is the loss that a `LossBudget` follows.
    """
    last = values[-WINDOW:]
    weights = _weights(len(last), rate)
    return sum(map(operator.mul, weights, last)) / sum(weights) if last else math.nan


def _weights(count: int, rate: float) -> list[float]:
    return [(1 - rate) ** i for i in reversed(range(count))]


def _variance_left(count: int, rate: float) -> float:
    """The variance of a smoothed value of that many, over that of one of them."""
    weights = _weights(count, rate)
    return sum(w * w for w in weights) / sum(weights) ** 2


def averaged(value: float) -> float:
    """The mean over the processes of torch.distributed's default group."""
    total = torch.tensor(value, dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        total = total.cuda()
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()


def _slopes(loss: Tensor, parameters: Sequence[Tensor], scale: float) -> list[Tensor | None]:
    """The loss' gradient by each parameter, None where there is none; measured at this scale, or one that is finite."""
    trained = [p for p in parameters if p.requires_grad]
    if not (loss.requires_grad and trained):
        return [None] * len(parameters)
    while True:
        try:
            slopes = torch.autograd.grad(loss * scale, trained, retain_graph=True, allow_unused=True)
        except RuntimeError as problem:
            if "second time" in str(problem):
                problem.add_note("regnde: call update before loss.backward(), which frees the graph.")
            raise
        if scale == 1 or math.isfinite(_norm(slope for slope in slopes if slope is not None)):
            found = iter(slope if slope is None or scale == 1 else slope / scale for slope in slopes)
            return [next(found) if p.requires_grad else None for p in parameters]
        scale = max(scale / SMALLER, 1.0)


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

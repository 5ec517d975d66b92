"""The reversible Heun method: its step, its algebraic inverse, and the gradient that goes back along the inverse.

P. Kidger, J. Foster, X. Li, T. Lyons, Efficient and Accurate Gradients for Neural SDEs, NeurIPS 2021, section 3: beside
the state y the method carries z, near y, where the drift f and the diffusion g are evaluated,

    z1 = 2 y - z + f(z) h + g(z) dW,    y1 = y + (f(z) + f(z1)) h/2 + (g(z) + g(z1)) dW/2,

so that z = 2 y1 - z1 - f(z1) h - g(z1) dW, and y follows. The gradient is that of the steps taken; no step's tensors
are kept, and the way back makes them again from the final state, with one evaluation of f and g a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from regnde._engines.torch.captured import Captured, Surroundings
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.sde_step import driven
from regnde._engines.torch.step import Field

__all__ = ["Carry", "ReversibleStep", "Rewind", "take_reversible_step"]

DRIFTED = 1e-3  # of the states where a solve began, relative: how far the way back may miss them


class Carry(NamedTuple):
    """What the method carries from step to step: the state z, and the drift and the diffusion there."""

    z: Tensor
    f: Tensor
    g: Tensor


class ReversibleStep(NamedTuple):
    """A step from y to y1: the drifts k and the diffusions g at its ends, and what the next step is given."""

    y: Tensor
    h: float
    k: list[Tensor]
    g: list[Tensor]
    y1: Tensor
    carry: Carry


def take_reversible_step(
    drift: Field,
    diffusion: Field,
    y: Tensor,
    before: Carry,
    h: float,
    end: Tensor,
    dw: Tensor,
    known: Tensor | None = None,
) -> ReversibleStep:
    """The step of size h from (y, z), whose end is a tensor; `known` replaces the value of z1."""
    noise = driven(before.g, dw)
    z1 = torch.add(torch.add(noise, before.z, alpha=-1.0), y, alpha=2.0).add(before.f, alpha=h)
    if known is not None:
        with torch.no_grad():
            z1.copy_(known)
    f1, g1 = drift(end, z1), diffusion(end, z1)
    y1 = torch.add(torch.add(y, before.f + f1, alpha=0.5 * h), noise + driven(g1, dw), alpha=0.5)
    return ReversibleStep(y, h, [before.f, f1], [before.g, g1], y1, Carry(z1, f1, g1))


Noise = Callable[[float, float, float], tuple[Tensor, Tensor]]


class Rewind:
    """Evaluates the steps of one solve without keeping their tensors, and goes back along them.

    Args:
        drift, diffusion: the functions of the equation.
        device: of the state.
        noise: of a step's start, size and end: the end as the functions get it, and the increment.
    """

    def __init__(self, drift: CountedField, diffusion: CountedField, device: torch.device, noise: Noise) -> None:
        self.drift, self.diffusion, self.noise = drift, diffusion, noise
        functions = [drift.function, diffusion.function]
        self.captured = Captured(functions, [drift.name, diffusion.name])
        self.surroundings = Surroundings(functions, device)
        self.steps: list[tuple[float, float, float]] = []
        self.first: tuple[Tensor, Carry] | None = None  # without a graph
        self.last: tuple[Tensor, Tensor] | None = None  # y and z behind the last step
        self.latest: Callable[[], _Part | None] = lambda: None  # whose tensors are in memory
        self._at = -1  # steps before the place that the way back has reached; -1 where it has not begun
        self._y, self._z = torch.empty(0), torch.empty(0)  # there
        self._later: Carry | None = None  # at the end of the step behind the place

    def __call__(self, y: Tensor, before: Carry, t: float, h: float, t1: float) -> ReversibleStep:
        """The next step."""
        if self.first is None:
            self.first = y.detach(), Carry(*(x.detach() for x in before))
        part = _Part(self, len(self.steps), (y.requires_grad, *(x.requires_grad for x in before)))
        self.steps.append((t, h, t1))
        end, dw = self.noise(t, h, t1)
        with saved_tensors_hooks(part.pack, part.unpack):
            step = take_reversible_step(self.drift, self.diffusion, y, before, h, end, dw)
        part.saved = {}
        self.last, self._at = (step.y1.detach(), step.carry.z.detach()), -1
        return step

    def again(self, part: _Part) -> dict[int, Tensor]:
        """The tensors that the graph of a step saved, made again."""
        if self.captured.parameters_changed():
            raise RuntimeError(
                "gradient='reversible': parameters of the drift or the diffusion changed after the solve, so that the "
                f"way back would be another one. {self.captured.changes()} Call backward() before you change them."
            )
        self._go(part.index + 1)
        saved: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> int:
            saved[len(saved)] = tensor.detach() if tensor.requires_grad else tensor
            return len(saved) - 1

        with saved_tensors_hooks(pack, saved.__getitem__):
            self._back(part.needs, part.before)
        if len(saved) != part.count:
            raise RuntimeError(
                "gradient='reversible': a step that was taken again in the backward pass saved other tensors than in "
                "the solve: its functions changed. Use gradient='discrete'."
            )
        return saved

    def _go(self, at: int) -> None:
        """Goes to the place behind that many steps."""
        if self._at < at:
            assert self.last is not None
            self._at, (self._y, self._z), self._later = len(self.steps), self.last, None
        while self._at > at:
            self._back(None, None)

    def _back(self, needs: Sequence[bool] | None, before: Any) -> None:
        """Takes the step before the place again, with a graph for inputs that need one, and goes to its start."""
        t, h, t1 = self.steps[self._at - 1]
        end, dw = self.noise(t, h, t1)
        assert self.first is not None
        like = (self._y, *self.first[1])
        inputs = [torch.zeros_like(x).requires_grad_(need) for x, need in zip(like, needs or (False,) * 4, strict=True)]
        with (
            self.surroundings.as_in(before if before is not None else self.surroundings.snapshot()),
            torch.autocast(end.device.type, enabled=False),
            torch.set_grad_enabled(needs is not None),
        ):
            step = take_reversible_step(self.drift, self.diffusion, inputs[0], Carry(*inputs[1:]), h, end, dw, self._z)
        with torch.no_grad():
            now = Carry(self._z, *(x.detach() for x in step.carry[1:]))
            if self._later is not None:
                self._y = self._state(now)
            self._z = 2 * self._y - now.z - h * now.f - driven(now.g, dw)
            self._later, self._at = now, self._at - 1
            if self._at == 0:
                self._check()

    def _state(self, now: Carry) -> Tensor:
        """The state at the place, from the one at the end of the step behind it."""
        assert self._later is not None
        t, h, t1 = self.steps[self._at]
        noise = driven(now.g + self._later.g, self.noise(t, h, t1)[1])
        return self._y - 0.5 * (h * (now.f + self._later.f) + noise)

    def _check(self) -> None:
        """Raises a RuntimeError if the way back does not end where the solve began."""
        assert self.first is not None
        wanted = self.first[1].z
        gap = float(torch.linalg.vector_norm(self._z - wanted))
        if not gap <= DRIFTED * float(1 + torch.linalg.vector_norm(wanted)):
            raise RuntimeError(
                f"gradient='reversible': the way back misses the initial state by {gap:.3g}: the steps are unstable, "
                "or rounding grows along them. Take shorter steps, float64, or gradient='checkpoint'."
            )


class _Part:
    """One step: what its graph would save."""

    def __init__(self, rewind: Rewind, index: int, needs: Sequence[bool]) -> None:
        self.rewind, self.index, self.needs = rewind, index, needs
        self.before = rewind.surroundings.snapshot()
        self.saved: dict[int, Tensor] = {}
        self.count = 0

    def pack(self, tensor: Tensor) -> int:
        """Called by the forward pass for each tensor that a node wants to save."""
        self.saved[self.count] = tensor
        self.count += 1
        return self.count - 1

    def unpack(self, index: int) -> Tensor:
        """Called by the backward pass; also by a function that asks for derivatives itself, within the step."""
        if index not in self.saved:
            latest = self.rewind.latest()
            if latest is not None:
                latest.saved = {}
            self.rewind.latest = weakref.ref(self)
            self.saved = self.rewind.again(self)
        return self.saved[index]

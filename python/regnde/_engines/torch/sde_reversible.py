"""The stepper of the reversible Heun method, which carries a second state from step to step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regnde._engines.torch.rewind import Carry, ReversibleStep, Rewind, take_reversible_step
from regnde._engines.torch.sde import Noise, SDEStepper
from regnde._engines.torch.step import Estimates, stage_times
from regnde._sde_method import ReversibleHeun
from regnde._stops import Segment

__all__ = ["ReversibleStepper"]


class ReversibleStepper(SDEStepper):
    """Steps one SDE along one path by the reversible Heun method. The arguments are `SDEStepper`'s."""

    def __init__(self, *arguments: Any, t0: float, reversible: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reversible = reversible
        self.t0 = t0
        self.carry: Carry | None = None
        self._rewind: Rewind | None = None

    def _step(self, t: float, h: float, t1: float, y: Tensor) -> tuple[ReversibleStep, Estimates | None]:
        """The step from (t, y)."""
        if self.carry is None:
            self.carry = self._begun(t, y)
        noise_of = functools.partial(_noise, self.noise, self.segment.within, torch.empty_like(y, requires_grad=False))
        if self.reversible:
            if self._rewind is None:
                self._rewind = Rewind(self.field, self.diffusion, y.device, noise_of)
            return self._rewind(y, self.carry, t, h, t1), None
        end, dw = noise_of(t, h, t1)
        drift, diffusion = self.field, self.diffusion

        def run(y: Tensor, z: Tensor, f: Tensor, g: Tensor) -> tuple[ReversibleStep, None]:
            return take_reversible_step(drift, diffusion, y, Carry(z, f, g), h, end, dw), None

        return self._evaluated(run, y, *self.carry, ends=_ends)

    def _begun(self, t: float, y: Tensor) -> Carry:
        """What the first step is given; its graph is kept whole."""
        assert isinstance(self.tableau, ReversibleHeun)
        if self.tableau.start is not None and t == self.t0:
            f, g, z = self.tableau.start
            return Carry(z, f, g)
        time = self._time(t, y)
        return Carry(y, self.field(time, y), self.diffusion(time, y))

    def accepted(self) -> None:
        """Passes on what the next step needs."""
        super().accepted()
        assert isinstance(self.tableau, ReversibleHeun)
        self.carry = carry = self.last_attempt[2].carry
        if self.tableau.carried is not None:
            self.tableau.carried((carry.f, carry.g, carry.z))

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        """Both states start anew from the stop: the functions may jump there."""
        self.carry = None
        return super().enter(segment, t, y)

    def restart(self, segment: Segment) -> None:
        """The same elsewhere."""
        self.carry = None
        super().restart(segment)


def _noise(
    path: Noise, within: tuple[float, float] | None, like: Tensor, t: float, h: float, t1: float
) -> tuple[Tensor, Tensor]:
    """The end of a step as the functions get it, and the increment over it."""
    dw = path.increment(t, t1).w.to(like.device, like.dtype)
    return stage_times((1.0,), t, h, t1, like, within)[0], dw


def _ends(outcome: tuple[ReversibleStep, None]) -> Sequence[Tensor]:
    return outcome[0].y1, *outcome[0].carry

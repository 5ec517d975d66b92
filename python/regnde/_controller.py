"""Step size controllers by their constants: `Solver(controller=...)`. The engines have the formulas.

All three are those of OrdinaryDiffEq.jl v7 (OrdinaryDiffEqCore, `integrators/controllers.jl`). E is the error
estimate of a step in units of the tolerance, p the order of the method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from regnde._options import keyword_only

__all__ = ["PI", "PID", "Controller", "I"]

LARGEST_EXPONENT = 5.0  # of a PID controller: powers of the least error it takes do not overflow


@keyword_only
@dataclass(frozen=True, kw_only=True)
class PI:
    """Proportional-integral control, the default: factor = safety E_previous^beta2 / E^beta1.

    E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.2; OrdinaryDiffEq.jl's `PIController`,
    whose names for the constants are in brackets. A step is accepted if E <= 1. A rejected one is tried again with
    the factor safety / E^beta1.

    Args:
        beta1: exponent of the error estimate. Default: 7 / (10 p), 0.17 for `"dp5"`.
        beta2: exponent of the estimate of the accepted step before. Default: 2 / (5 p), 0.04 for `"dp5"`.
        safety: factor below 1 that makes rejections rarer (gamma).
        min_factor: a step changes at least by this factor (qmin).
        max_factor: a step changes at most by this factor (qmax). Default: 10, for an SDE 9/8.
        first_max_factor: replaces `max_factor` until a step is accepted: the first step is only a guess
            (qmax_first_step).
        error_floor: least estimate that is remembered, and the one that the first step takes for the step before
            it (qoldinit).

    Raises:
        ValueError: for a constant that can not control a step.

    Examples:
        >>> import regnde
        >>> solver = regnde.Solver(controller=PI(safety=0.8), engine="torch")
        >>> regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], solver).status.value
        'success'
    """

    beta1: float | None = None
    beta2: float | None = None
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float | None = None
    first_max_factor: float = 10_000.0
    error_floor: float = 1e-4

    def __post_init__(self) -> None:
        _check_factors(self)
        _check(self, "beta1", above=0.0, most=1.0)
        _check(self, "beta2", least=0.0, most=1.0)
        _check(self, "error_floor", above=0.0, most=1.0)


@keyword_only
@dataclass(frozen=True, kw_only=True)
class I:  # noqa: E742 - its name in the literature
    """Integral control, the simplest one: factor = safety / E^(1/p), for accepted and rejected steps alike.

    E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4; OrdinaryDiffEq.jl's
    `IController`. torchdiffeq's control is `I(first_max_factor=10.0, accepted_min_factor=1.0)`.

    Args:
        safety: factor below 1 that makes rejections rarer.
        min_factor: a step changes at least by this factor.
        max_factor: a step changes at most by this factor. Default: 10, for an SDE 9/8.
        first_max_factor: replaces `max_factor` until a step is accepted.
        accepted_min_factor: replaces `min_factor` after an accepted step: 1 never shortens it. Default: `min_factor`.

    Raises:
        ValueError: for a constant that can not control a step.
    """

    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float | None = None
    first_max_factor: float = 10_000.0
    accepted_min_factor: float | None = None

    def __post_init__(self) -> None:
        _check_factors(self)
        _check(self, "accepted_min_factor", above=0.0, most=1.0)


@keyword_only
@dataclass(frozen=True, kw_only=True)
class PID:
    """Control by three estimates: x = E^(-beta1/p) E_1^(-beta2/p) E_2^(-beta3/p), factor = 1 + atan(x - 1).

    E_1 and E_2 are the estimates of the two accepted steps before, 1 where there were none. G. Soederlind, ACM Trans.
    Math. Software 29 (2003) 1-26; the arctangent, which bounds the factor between 0.21 and 2.57: G. Soederlind,
    L. Wang, J. Comput. Appl. Math. 185 (2006) 225-243; OrdinaryDiffEq.jl's `PIDController`.

    **A step is accepted if the factor is at least `accept_factor`**, not if E <= 1: the error of an accepted step may
    be a few times the tolerance.

    Constants from the literature, as (beta1, beta2, beta3): PI42 (0.6, -0.2, 0), PI33 (2/3, -1/3, 0),
    PI34 (0.7, -0.4, 0), H211PI (1/6, 1/6, 0), H312PID (1/18, 1/9, 1/18).

    Args:
        beta1: exponent of the error estimate, before the division by p.
        beta2: exponent of the estimate of the accepted step before.
        beta3: exponent of the estimate of the accepted step before that one.
        accept_factor: a step is accepted if the factor after it is at least this.

    Raises:
        ValueError: for a constant that can not control a step.
    """

    beta1: float
    beta2: float
    beta3: float = 0.0
    accept_factor: float = 0.81

    def __post_init__(self) -> None:
        _check(self, "beta1", above=0.0, most=LARGEST_EXPONENT)
        for name in ("beta2", "beta3"):
            _check(self, name, least=-LARGEST_EXPONENT, most=LARGEST_EXPONENT)
        _check(self, "accept_factor", above=1 - math.pi / 4, most=1.0)  # the arctangent's least value is below


Controller = PI | I | PID


def _check_factors(controller: PI | I) -> None:
    _check(controller, "safety", above=0.0, most=1.0)
    _check(controller, "min_factor", above=0.0, below=1.0)
    _check(controller, "max_factor", above=1.0)
    _check(controller, "first_max_factor", above=1.0)


def _check(
    controller: Controller,
    name: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises an error unless the constant is a finite number within the bounds, or None where that is the default."""
    value = getattr(controller, name)
    if value is None and type(controller).__dataclass_fields__[name].default is None:
        return
    kind = type(controller).__name__
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{kind}({name}={value!r}): give one number.")
    if not (math.isfinite(value) and least <= value <= most and above < value < below):
        low = f" of at least {least:g}" if least > -math.inf else f" above {above:.3g}" if above > -math.inf else ""
        high = f" up to {most:g}" if most < math.inf else f" below {below:g}" if below < math.inf else ""
        raise ValueError(f"{kind}({name}={value!r}): give a finite number{low}{high}.")

"""The rules that turn the measures of a `Diagnosis` into advice: the functions in `RULES`, and their thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from regnde._report import Advice, Diagnosis
from regnde._run import Run

__all__ = ["RULES", "advised"]

KINKS = 0.6
"""A smooth activation is named if it leaves at most this share with the weights that are there. The new training takes
half of the saving back, in logarithms: three models were measured at 0.42, 0.53, 0.65 and ended at 0.66, 0.76, 0.91."""

STIFF = 0.3
"""Share of steps at the stability limit from which stability sets the cost. A non-stiff field has less than 0.1."""

IMPLICIT = ("rosenbrock23", "rodas4", "rodas5p", "trbdf2", "kencarp4", "autotsit5")
"""Methods whose steps stability does not limit."""

REJECTED = 0.1
"""Share of rejected steps from which they are named. A smooth field has less than 0.05."""

ROUNDED = 0.1
"""Share of the evaluations that float64 saves, from which rounding is worth a change of the dtype."""

SAMPLES = 0.6
"""A step size for each sample is named if it leaves at most this share: steps of shrinking batches cost more."""

SAFE = 0.1
"""Share of the error allowed that a method of fixed step size may have: nothing holds its error on other data."""

PENALTY = 0.8
"""Share of the evaluations that `ErrorPenalty("mean")` left in nine small models of public kinds, trained at the
loosest tolerance that their loss allows: the geometric mean, between 0.45 and 1."""

TRAIN = "Try it in training too, and compare"
"""Of the nine models one, a diffusion on a graph, learnt worse at the loose tolerance in a short training."""

Said = tuple[str, int, int | None]
"""Text, evaluations before and after the change, as in an `Advice`."""


def advised(d: Diagnosis) -> tuple[Advice, ...]:
    """What the rules say: first what makes the solution wrong, then by what it saves, then what follows on a change."""
    found = [Advice(*said, rule=rule.__name__) for rule in RULES if (said := rule(d)) is not None]
    now = d.now.evaluations
    return tuple(
        sorted(
            found,
            key=lambda a: (a.rule != "inaccurate", a.before != now, -a.before, a.evaluations is None, a.evaluations),
        )
    )


def inaccurate(d: Diagnosis) -> Said | None:
    """The present solve is not as good as asked."""
    now, best, reference = d.now, d.best, None if d.reference is None else d.reference.metric
    if d.good(now):
        if now.metric is None or reference is None or d.same_metric(reference, now.metric):
            return None
        text = (
            f"the metric is {now.metric:.4g}, but {reference:.4g} with the reference: the model has learnt the error "
            "of this solver. Change the solver only together with a training."
        )
        return text, now.evaluations, None
    if now.succeeded and now.error is None and not d.has_metric:
        return None  # nothing to judge by
    was = d.quality(now) if now.succeeded else now.status.value
    if best is now:
        return f"{was}, which is not good enough, and no run is.", now.evaluations, None
    return f"{was} is not good enough: {best.solver!r} is, {d.quality(best)}", now.evaluations, best.evaluations


def looser_tolerance(d: Diagnosis) -> Said | None:
    """The given method at a looser tolerance is as good."""
    return _cheaper(d, d.now, d.best_of(d.now.method), "a looser tolerance: ", f". {TRAIN}")


def other_method(d: Diagnosis) -> Said | None:
    """Another method is as good."""
    return None if d.best.method == d.now.method else _cheaper(d, d.now, d.best, "another method: ", f". {TRAIN}")


def first_step(d: Diagnosis) -> Said | None:
    """A first step that is given saves its choice, and the small steps at the start."""
    return _cheaper(d, d.best, d.chosen, "a first step that is given: ")


def fewer_steps(d: Diagnosis) -> Said | None:
    """A few steps of fixed size are as good, where the adaptive methods are at their floor."""
    good = [run for run in d.fixed if d.good(run) and (d.has_metric or (run.error or 0.0) <= SAFE * d.error_allowed)]
    run = min(good, key=lambda r: r.cost, default=None)
    then = "; it controls no error: measure again after each training"
    return _cheaper(d, d.chosen, run, "steps of fixed size, at prediction: ", then)


def _cheaper(d: Diagnosis, before: Run, run: Run | None, what: str, then: str = "") -> Said | None:
    """A solver in the place of another one, if that is good and the new one is worth a change."""
    if run is None or not d.good(before) or not run.is_worth(before):
        return None
    return f"{what}{run.solver!r}, {d.quality(run)}{then}", before.evaluations, run.evaluations


def rounding(d: Diagnosis) -> Said | None:
    """Evaluations are spent on resolving rounding errors."""
    if d.rounding is None or d.rounding < ROUNDED:
        return None
    text = f"float64, or a tolerance of 1e-5 or more: float32's rounding takes {d.rounding:.0%} of the evaluations"
    if d.roundoff is not None:
        text = (
            f"compute the field in the dtype of its state (with autocast off inside it): its rounding error of "
            f"{d.roundoff:.0e} takes {d.rounding:.0%} of the evaluations"
        )
    return text, d.now.evaluations, round(d.now.evaluations * (1 - d.rounding))


def smooth_activations(d: Diagnosis) -> Said | None:
    """Kinks cost steps, or make the penalty's gradient noise."""
    without, smooth = d.without_kinks, d.smoothness_without
    noisy = d.smoothness is not None and not d.smoothness.reproducible and (smooth is None or smooth.reproducible)
    cheaper = without is not None and without <= KINKS * d.now.evaluations
    if not d.kinks or not (noisy or cheaper):
        return None
    text = f"a smooth activation (SiLU, tanh, softplus) in the place of {', '.join(d.kinks)}, and a new training"
    if noisy and smooth is not None:
        text += f"; with SiLU the gradient of the penalty {smooth}"
    if not cheaper or without is None:
        return text, d.now.evaluations, None
    text += f" (SiLU with the present weights: {without})"
    return text, d.now.evaluations, round(math.sqrt(d.now.evaluations * without))


def per_sample(d: Diagnosis) -> Said | None:
    """A few hard samples set the steps of all others."""
    mean = sum(d.samples) / max(len(d.samples), 1)
    if not d.samples or mean > SAMPLES * d.now.evaluations:
        return None
    text = (
        f"Solver(batch='per-sample'): {d.spread()}. It makes as many calls as the hardest sample needs, of ever fewer "
        "samples: it saves time where large batches cost more"
    )
    return text, d.now.evaluations, round(mean)


def stiffness(d: Diagnosis) -> Said | None:
    """Stability sets the steps."""
    if d.stiff is None or d.stiff < STIFF or d.now.method in IMPLICIT:
        return None
    what = "train with StiffnessPenalty('max'), or use an implicit method" if d.trainable else "use an implicit method"
    text = (
        f"{what} ('rodas5p'; 'rosenbrock23' at loose tolerances; 'autotsit5' if only a part of the span is stiff): "
        f"{d.stiff:.0%} of the steps are at the stability limit. docs/stiff.md tells how to choose"
    )
    return text, d.now.evaluations, None


def rejections(d: Diagnosis) -> Said | None:
    """Many steps are rejected: the field changes abruptly."""
    if d.rejected < REJECTED or not d.now.succeeded:
        return None
    text = (
        f"{d.rejected:.0%} of the steps are rejected: the field jumps or bends abruptly. If it does so at times that "
        "you know (the knots of a path), let steps end there; if it does so in the state, see the kinks"
    )
    return text, d.now.evaluations, round(d.now.evaluations * (1 - d.rejected))


def error_penalty(d: Diagnosis) -> Said | None:
    """The dynamics have room to become cheaper, and the penalty's gradient can tell how."""
    run = d.chosen
    gradient = d.smoothness if run is d.now else d.smoothness_then
    if not d.trainable or run.floor is None or run.at_floor or gradient is None or not gradient.reproducible:
        return None
    expected = f"expected: {PENALTY}x, not below {run.floor}"
    text = f"train with ErrorPenalty('mean') and a LossBudget, at the recommended solver ({expected})"
    return text, run.evaluations, max(run.floor, round(PENALTY * run.evaluations))


def at_floor(d: Diagnosis) -> Said | None:
    """The solver makes two or three steps: there is nothing to gain."""
    if not d.now.at_floor:
        return None
    other = "" if d.best.method == d.now.method else "; a method of fewer stages can"
    return f"{d.now.method} is at its floor: no tolerance and no penalty can save{other}", d.now.evaluations, None


RULES: Sequence[Callable[[Diagnosis], Said | None]] = (
    inaccurate,
    looser_tolerance,
    other_method,
    first_step,
    fewer_steps,
    rounding,
    smooth_activations,
    per_sample,
    stiffness,
    rejections,
    error_penalty,
    at_floor,
)

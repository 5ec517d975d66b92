"""Runs torchdiffeq's own test suite with regnde's drop-ins in place of its functions. See docs/dropin.md.

    git clone https://github.com/rtqichen/torchdiffeq /tmp/torchdiffeq && git -C /tmp/torchdiffeq checkout 657943a
    python tests/foreign/torchdiffeq_suite.py /tmp/torchdiffeq/tests

Needs torchdiffeq and scipy installed, which its tests import. Prints a table of its tests: passed, explained
(failed for a reason that `EXPLAINED` gives), failed. With `--theirs` torchdiffeq's own functions run instead.
"""

from __future__ import annotations

import collections
import contextlib
import re
import sys
import unittest
import warnings
from types import TracebackType
from typing import Any

Problem = tuple[type[BaseException], BaseException, TracebackType]
MODULES = ("odeint_tests", "gradient_tests", "api_tests", "norm_tests", "event_tests")

NO_SOLVE_BACKWARDS = "a backward pass recomputes the steps: there is no adjoint solve"
EXPLAINED = {  # a test, what its failure says, and why
    ("TestNorms.test_adjoint_norm", r"has no attribute 'adjoint_options'|False is not true"): (
        f"looks into the autograd node of an adjoint solve, or expects a norm of it to be called; {NO_SOLVE_BACKWARDS}"
    ),
    ("TestDiscontinuities.test_odeint_perturb", r"1\.0 not found in \[\]"): (
        f"expects evaluations at the times of an adjoint solve of a field without parameters; {NO_SOLVE_BACKWARDS}"
    ),
    ("TestMinMaxStep.test_min_max_step", r"not less than 50"): (
        "scipy's LSODA (1.17) takes steps below min_step: fails with torchdiffeq's own functions, too"
    ),
}


class Tally(unittest.TestResult):
    """Counts subtests where a test has them, tests where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def note(self, test: unittest.TestCase, problem: Problem | None) -> None:
        """Adds one outcome."""
        name = ".".join(test.id().split()[0].split(".")[-2:])
        kind = "passed"
        if problem is not None:
            text = f"{problem[0].__name__}: {problem[1]}".splitlines()[0]
            why = next((why for (of, says), why in EXPLAINED.items() if of == name and re.search(says, text)), None)
            kind = "failed" if why is None else "explained"
            text = re.sub(r"[-0-9.e]+(?= not less)|tensor\(.*?\)", "x", text)[:150] if why is None else why
            self.reasons[f"{kind}, {name}"][text] += 1
        self.counts[name][kind] += 1

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        """Called once for every subtest."""
        self.note(test, err)

    def addSuccess(self, test: unittest.TestCase) -> None:
        """Called for a test whose subtests all passed, too: those were counted."""
        if ".".join(test.id().split(".")[-2:]) not in self.counts:
            self.note(test, None)

    def addError(self, test: Any, err: Any) -> None:
        """Outside of a subtest."""
        self.note(test, err)

    addFailure = addError


def main(folder: str, *, theirs: bool) -> None:
    """Replaces the functions, runs the suite, prints the table."""
    import regnde

    sys.path.insert(0, folder)
    with contextlib.nullcontext() if theirs else regnde.install("torchdiffeq"), warnings.catch_warnings():
        suite, tally = unittest.TestLoader().loadTestsFromNames(MODULES), Tally()
        warnings.simplefilter("ignore")
        suite.run(tally)
    write = sys.stdout.write
    write(f"{'test':<58} {'passed':>7} {'explained':>10} {'failed':>7}\n")
    for name, count in tally.counts.items():
        write(f"{name:<58} {count['passed']:>7} {count['explained']:>10} {count['failed']:>7}\n")
    total: collections.Counter[str] = sum(tally.counts.values(), collections.Counter())
    write(f"{'all':<58} {total['passed']:>7} {total['explained']:>10} {total['failed']:>7}\n\nreasons\n")
    for name, texts in tally.reasons.items():
        for text, number in texts.most_common():
            write(f"{number:>5}  {name}: {text}\n")


if __name__ == "__main__":
    main(sys.argv[1], theirs="--theirs" in sys.argv[2:])

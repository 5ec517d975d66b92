"""Runs torchdiffeq's own test suite with regnde's drop-ins in place of its functions. See docs/dropin.md.

    git clone --branch v0.2.5 https://github.com/rtqichen/torchdiffeq /tmp/torchdiffeq
    python tests/foreign/torchdiffeq_suite.py /tmp/torchdiffeq/tests

Needs torchdiffeq and scipy installed, which its tests import. Prints a table of its tests: passed, not
applicable (the drop-in said that something is not covered), failed.
"""

from __future__ import annotations

import collections
import re
import sys
import unittest
import warnings
from types import TracebackType
from typing import Any

Problem = tuple[type[BaseException], BaseException, TracebackType]
MODULES = ("odeint_tests", "gradient_tests", "api_tests", "norm_tests", "event_tests")


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
            kind = "not applicable" if "not covered" in text else "failed"
            self.reasons[f"{kind}, {name}"][re.sub(r"[-0-9.e]+(?= not less)|tensor\(.*?\)", "x", text)[:150]] += 1
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


def main(folder: str) -> None:
    """Replaces the functions, runs the suite, prints the table."""
    import torchdiffeq

    import regnde

    torchdiffeq.odeint, torchdiffeq.odeint_adjoint = regnde.odeint, regnde.odeint_adjoint
    sys.path.insert(0, folder)
    suite, tally = unittest.TestLoader().loadTestsFromNames(MODULES), Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite.run(tally)
    write = sys.stdout.write
    write(f"{'test':<58} {'passed':>7} {'not applicable':>15} {'failed':>7}\n")
    for name, count in tally.counts.items():
        write(f"{name:<58} {count['passed']:>7} {count['not applicable']:>15} {count['failed']:>7}\n")
    total: collections.Counter[str] = sum(tally.counts.values(), collections.Counter())
    write(f"{'all':<58} {total['passed']:>7} {total['not applicable']:>15} {total['failed']:>7}\n\nreasons\n")
    for name, texts in tally.reasons.items():
        for text, number in texts.most_common():
            write(f"{number:>5}  {name}: {text}\n")


if __name__ == "__main__":
    main(sys.argv[1])

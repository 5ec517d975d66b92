"""Runs torchsde's own tests of `sdeint` and `sdeint_adjoint` with regnde's drop-ins in their place. See docs/dropin.md.

    git clone --branch v0.2.6 https://github.com/google-research/torchsde /tmp/torchsde
    python tests/foreign/torchsde_suite.py /tmp/torchsde/tests

Needs torchsde installed. Prints a table of its tests: passed, not applicable (the drop-in said that
something is not covered), failed.
"""

from __future__ import annotations

import collections
import sys
from typing import Any

import pytest


class Tally:
    """A pytest plugin that counts outcomes."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        """Sorts a finished test."""
        yield
        if call.when != "call":
            return
        kind, name = "passed", item.originalname
        if call.excinfo is not None:
            problem = call.excinfo.value
            text = str(problem.__context__ or problem).splitlines()[0]  # pytest.warns reports over the error inside it
            kind = "not applicable" if "not covered" in text else "failed"
            self.reasons[f"{kind}, {name}"][text[:150]] += 1
        self.counts[name][kind] += 1


def main(folder: str) -> None:
    """Replaces the function, runs the tests, prints the table."""
    import torchsde

    import regnde

    torchsde.sdeint, torchsde.sdeint_adjoint = regnde.sdeint, regnde.sdeint_adjoint
    tally = Tally()
    arguments = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={folder}", "--no-header", "--tb=no"]
    files = [f"{folder}/test_sdeint.py", f"{folder}/test_adjoint.py"]
    pytest.main([*arguments, "-r", "N", *files], plugins=[tally])
    write = sys.stdout.write
    write(f"\n{'test':<40} {'passed':>7} {'not applicable':>15} {'failed':>7}\n")
    for name, count in tally.counts.items():
        write(f"{name:<40} {count['passed']:>7} {count['not applicable']:>15} {count['failed']:>7}\n")
    write("\nreasons\n")
    for name, texts in tally.reasons.items():
        for text, number in texts.most_common():
            write(f"{number:>5}  {name}: {text}\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""Compares what a page shows with what a program prints: words exactly, numbers to a tolerance."""

from __future__ import annotations

import re

from tolerances import SHOWN

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")


def differences(shown: str, printed: str) -> list[str]:
    """What differs between two texts, a line each; numbers may differ by SHOWN, or by one in their last digit."""
    lines = [text.strip().splitlines() for text in (shown, printed)]
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[0])} lines are shown, {len(lines[1])} printed:\n{printed}"]
    return [f"shown:   {a}\nprinted: {b}" for a, b in zip(*lines, strict=True) if not _same(a, b)]


def _same(shown: str, printed: str) -> bool:
    if [w.split() for w in NUMBER.split(shown)] != [w.split() for w in NUMBER.split(printed)]:
        return False
    return all(_near(a, b) for a, b in zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True))


def _near(shown: str, printed: str) -> bool:
    a, b = (float(x.replace(",", "")) for x in (shown, printed))
    return abs(a - b) <= max(SHOWN * abs(a), 1.01 * _last_digit(shown))


def _last_digit(number: str) -> float:
    """One unit of the last digit that is written."""
    mantissa, _, exponent = number.replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2])
    return float(10 ** (int(exponent or 0) - decimals))

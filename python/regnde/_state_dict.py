"""The check of what is given to `load_state_dict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["check_state"]


def check_state(name: str, state: dict[str, Any], keys: Sequence[str]) -> None:
    """Refuses what is no `state_dict()` of an object of this name."""
    if missing := [key for key in keys if key not in state]:
        raise ValueError(
            f"{name}.load_state_dict: the state has no {', '.join(map(repr, missing))}: give what the state_dict() of "
            f"a {name} returned, got the keys {', '.join(map(repr, state))}."
        )

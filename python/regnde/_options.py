"""What dataclasses of options have in common."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

__all__ = ["keyword_only"]

T = TypeVar("T")


def keyword_only(cls: type[T]) -> type[T]:
    """Makes a dataclass answer positional arguments with the call that was meant."""
    first = dataclasses.fields(cls)[0].name  # type: ignore[arg-type]  # the type of a dataclass can not be named
    construct = cls.__init__

    @functools.wraps(construct)
    def checked(self: T, *positional: object, **named: Any) -> None:
        if positional:
            raise TypeError(
                f"{cls.__name__} takes arguments by name only, got {positional[0]!r}: write "
                f"{cls.__name__}({first}={positional[0]!r}) if that is what it is."
            )
        construct(self, **named)

    setattr(cls, "__init__", checked)  # noqa: B010 - an assignment is no method to the type checker
    return cls

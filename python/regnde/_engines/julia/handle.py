"""The number of what Julia keeps for this process: a saved solve, or a compiled field."""

from __future__ import annotations

from regnde._engines.julia import runtime

__all__ = ["Handle"]


class Handle:
    """A number under which Julia keeps something, which it forgets with this object, on whatever thread.

    It is made before the call that keeps it, and held by that call: whatever a signal's handler raises, and wherever,
    the number is not lost.

    Attributes:
        number: positive, and no other handle's.
    """

    def __init__(self) -> None:
        self.number = runtime.numbered(self)

"""A context in which every solve is recorded, and its solution added to a log.

`_solve` asks this module which recordings are open. So all solves are recorded, those of layers, drop-ins and
comparators included, and this module does not depend on any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from regnde._solution import Solution
from regnde._solver import Local, Record
from regnde._state import tree_map

__all__ = ["Recording", "open_recordings", "record_asked", "recording", "unrecordable", "unrecorded"]

DEAD = -2  # torch's level of a tensor that has left its torch.func transform


@dataclass(frozen=True)
class _Entry:
    """A solve in a log: its solution, why it has no records (or None), and whether autograd was on."""

    solution: Solution
    why_unrecorded: str | None
    with_grad: bool


class Recording:
    """The solves that were made while it was open; `recording` makes one.

    Opening it again adds to what it has; `clear` empties it. It may be open in several threads at once.

    Args:
        record: what the solves record, as `solve` takes it.
    """

    def __init__(self, record: Record = "all") -> None:
        if record not in ("none", "all") and not isinstance(record, Local):
            raise ValueError(f"recording({record!r}): choose 'all', a Local(...) or 'none'.")
        self.record = record
        self._entries: list[_Entry] = []
        self._failed: list[int] = []  # evaluations of solves that raised
        self._unseen: list[
            tuple[int, str]
        ] = []  # of solves by other packages: evaluations, and why there are no records
        self._entered: list[None] = []  # once for each `with` that it is in; a list's methods are safe in threads

    def __enter__(self) -> Self:
        self._entered.append(None)
        found = _OPEN.get()
        _OPEN.set(_Open((*found.recordings, self), found.why_unrecorded))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop()
        found = _OPEN.get()
        others = list(found.recordings)
        if self in others:  # not where a generator is closed in another context than it was started in
            del others[len(others) - 1 - others[::-1].index(self)]
        _OPEN.set(_Open(tuple(others), found.why_unrecorded))

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        solves = len(self._entries) + len(self._unseen)
        return f"Recording({self.record!r}, {solves} solves, nfe={self.nfe}, {state})"

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """Solution of each solve, in the order in which they ended, with the graph; `steps` is None without records."""
        return tuple(entry.solution for entry in self._entries)

    @property
    def nfe(self) -> int:
        """Evaluations of the fields in all solves (of an SDE the drift's), also of those that failed or scipy made."""
        others = sum(self._failed) + sum(nfe for nfe, _ in self._unseen)
        return others + sum(entry.solution.stats.nfe for entry in self._entries)

    def penalty(self, penalty: Callable[[Solution], Tensor]) -> Tensor:
        """The sum of a penalty over the solves, 0-dim, differentiable.

        A solve that was made under `torch.no_grad()` next to others adds a constant.

        Args:
            penalty: a `Penalty`, or any function of a solution.

        Raises:
            ValueError: if there is no solve; if one of them has no records, as with a method of fixed step size, or
                not those that the penalty needs; if all were made under `torch.no_grad()`, and this call is not; if
                one was made inside a transform of `torch.func` that has ended.
        """
        if torch.compiler.is_dynamo_compiling():  # which solves there are is known when they have run
            uncompiled: Any = torch.compiler.disable(self._sum)  # type: ignore[no-untyped-call]  # torch does not type it
            return uncompiled(penalty)  # type: ignore[no-any-return]
        return self._sum(penalty)

    def _sum(self, penalty: Callable[[Solution], Tensor]) -> Tensor:
        entries, unseen = list(self._entries), list(self._unseen)
        if unseen:
            raise ValueError(
                f"recording: a solve has no records: {unseen[0][1]} Its evaluations are counted. For a penalty of the "
                "other solves sum it over log.solutions."
            )
        if not entries:
            raise ValueError(
                "recording: there is no solve to sum the penalty over: none ran while the recording was open. Solves "
                "by another package are seen after regnde.install(...). Another thread has to open the recording "
                "itself. A solve in a backward pass is left out."
            )
        if torch.is_grad_enabled() and not any(entry.with_grad for entry in entries):
            raise ValueError(
                f"recording: all {len(entries)} solves were made under torch.no_grad(), so that the penalty has no "
                "gradient (torch.utils.checkpoint with use_reentrant=True does this, too). To look at its value alone "
                "call penalty under torch.no_grad()."
            )
        first, *rest = (self._term(penalty, entry, place) for place, entry in enumerate(entries))
        return sum((term.to(first.device) for term in rest), start=first)

    def _term(self, penalty: Callable[[Solution], Tensor], entry: _Entry, place: int) -> Tensor:
        """The penalty of one solve; an error says which solve it is about."""
        solution, why = entry.solution, entry.why_unrecorded
        which = f"solve {place + 1} of {len(self._entries)} (method {solution.solver.method!r})"
        if why is None and solution.steps is None:
            why = f"the recording was opened with record={self.record!r}."
        if why is not None:
            raise ValueError(
                f"recording: {which} has no records: {why} Its evaluations are counted. For a penalty of the other "
                "solves sum it over those of log.solutions whose steps are not None."
            )
        if _has_left_its_transform(solution.ys):
            raise ValueError(
                f"recording: {which} was made inside a transform of torch.func that has ended, and its records have "
                "no meaning outside of it: open the recording and take the penalty inside of the transform."
            )
        try:
            return penalty(solution)
        except ValueError as problem:
            raise ValueError(f"recording: {which} does not give the penalty: {problem}") from problem

    def clear(self) -> None:
        """Forgets the solves and their graphs."""
        self._entries.clear()
        self._failed.clear()
        self._unseen.clear()

    def add(self, solution: Solution, why_unrecorded: str | None) -> None:
        """Adds a solution to the log, and the reason if its records are missing. `solve` calls this."""
        if not _in_backward():
            self._entries.append(_Entry(solution, why_unrecorded, torch.is_grad_enabled()))

    def add_failed(self, nfe: int) -> None:
        """Counts the evaluations of a solve that raised. `solve` calls this."""
        if not _in_backward():
            self._failed.append(nfe)

    def add_unseen(self, nfe: int, why: str) -> None:
        """Counts the evaluations of a solve by another package; `why`, a sentence, is why it has no records."""
        if not _in_backward():
            self._unseen.append((nfe, why))

    @property
    def is_open(self) -> bool:
        """Whether solves are recorded; a task that outlives the `with` block still refers to the closed recording."""
        return bool(self._entered)


def recording(record: Record = "all") -> Recording:
    """Records every solve in a `with` block, however deep in a model, whoever wrote the model.

    The solves are those by `solve`, the layers and the drop-ins `odeint`, `odeint_adjoint` and `sdeint`. With
    `regnde.install` they are also those of models that were written for torchdiffeq or torchsde.

    - The solutions keep their graphs until the log is dropped or cleared: open a recording around one forward pass.
    - The states are those of an unrecorded solve by the same engine. A `Local` draws from torch's generator.
    - A solve that asks for a record itself keeps it, and the log has that one. One that asks for none still returns a
      solution without `steps`.
    - Recordings may be nested; each log has the solves of its block, and a solve is recorded once. Two open ones that
      ask for different records are an error at the solve.
    - A solve that can not be recorded (a `Local` record of a method of fixed step size) runs without, and its
      evaluations are counted. The log's `penalty` then refuses.
    - Each thread has recordings of its own; an asyncio task starts with those of the code that made it. A generator
      that yields inside the block leaves the recording open for its caller.
    - Solves in a backward pass are not in the log, nor is what a checkpoint evaluates again there. A model inside
      `torch.utils.checkpoint` must see the recording open when it is evaluated again: call `backward` in the block.

    Args:
        record: `"all"` (every accepted step), a `Local` (one random step of each solve), or `"none"` (evaluations
            and solutions alone).

    Returns:
        A `Recording`: the context manager, and the log that it hands out.

    Raises:
        ValueError: for another record.

    Examples:
        >>> import torch, regnde
        >>> class Model(torch.nn.Module):  # it returns no solution
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.field = regnde.nn.MLP([2, 16, 2])
        ...     def forward(self, x):
        ...         return regnde.odeint(self.field, x, torch.tensor([0.0, 1.0]))[-1]
        >>> model = Model()
        >>> with regnde.recording() as log:
        ...     loss = model(torch.ones(5, 2)).square().mean()
        >>> (loss + 1e-2 * log.penalty(regnde.ErrorPenalty("mean"))).backward()
        >>> len(log.solutions), log.nfe == log.solutions[0].stats.nfe
        (1, True)
    """
    return Recording(record)


@dataclass(frozen=True)
class _Open:
    """The open recordings, the innermost last, and the reason if solves can not be recorded now, or None."""

    recordings: tuple[Recording, ...] = ()
    why_unrecorded: str | None = None


_OPEN = ContextVar("regnde_open", default=_Open())  # noqa: B039 - frozen


def open_recordings() -> tuple[Recording, ...]:
    """The recordings that a solve made now is added to, each once."""
    found = _OPEN.get().recordings
    return tuple(dict.fromkeys(log for log in found if log.is_open)) if found else ()


def record_asked(recordings: Sequence[Recording]) -> tuple[Record, str | None]:
    """The record that open recordings ask for, and the reason if solves can not be recorded now, or None.

    Raises:
        ValueError: if they ask for different records.
    """
    wanted = list(dict.fromkeys(log.record for log in recordings if log.record != "none"))
    if len(wanted) > 1:
        raise ValueError(
            f"recordings with record={wanted[0]!r} and record={wanted[1]!r} are open, and a solve has one record: "
            "open them with the same record, or one with record='none'."
        )
    why = _OPEN.get().why_unrecorded
    return ("none", why) if why is not None or not wanted else (wanted[0], None)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Solves in this block are not recorded by a recording around it: for measurements."""
    before = _OPEN.set(_Open())
    try:
        yield
    finally:
        _OPEN.reset(before)


@contextmanager
def unrecordable(why: str) -> Iterator[None]:
    """The solves in this block have no meaningful records: only their evaluations are counted.

    Args:
        why: the reason, as a sentence.
    """
    before = _OPEN.set(_Open(_OPEN.get().recordings, why))
    try:
        yield
    finally:
        _OPEN.reset(before)


def _in_backward() -> bool:
    """Whether a backward pass is running: what it solves is evaluated again, or belongs to another equation."""
    return torch._C._current_graph_task_id() != -1


def _has_left_its_transform(states: Any) -> bool:
    """Whether states belong to a transform of torch.func that is not at work now."""
    now: int | None = torch._C._functorch.maybe_current_level()
    levels: list[int] = []
    tree_map(lambda x: levels.append(torch._C._functorch.maybe_get_level(x)), states)
    return any(level == DEAD or level > (now or 0) for level in levels)

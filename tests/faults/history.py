"""What clients did and were told, written down by each process so that not even a SIGKILL loses more than one line.

A process has a file of its own, to which it appends lines of JSON without a buffer. A call is two lines: what was
asked, before it is sent, and what came of it. A process that dies in between leaves a call without an end, whose
outcome is unknown; so is that of any call which failed, unless it is sure that nothing was done::

    with Recorder(folder, "producer-1") as recorder:
        with recorder.call("enqueue", [(task_id, digest(payload))]) as call:
            call.ok([(await queue.enqueue(payload, task_id=task_id)).deduplicated])

What is asked and told, by operation (``more`` is for the reader of a figure, but for ``lease`` and ``timeout``):

===========  ======================================  ==========================================================
enqueue      ``[(id, digest), ...]``                 deduplicated of each, or nothing
dequeue      how many are wanted                     ``[(id, token, digest), ...]``
release,     ``[(id, token), ...]``; a token of      a verdict of each (:data:`VERDICTS`), or nothing: applied
requeue,     ``None`` is that of a plain id, which
extend       acts whoever holds the task
give up,     ``[(id, token)]``: what a server is      nothing
revive,      known to have done by itself to a task,
purge        or to a dead letter
others       anything                                anything; the checker does not look at them
===========  ======================================  ==========================================================

Times are those of the monotonic clock, nanoseconds, which all processes of a machine share. A process that runs with
libfaketime needs ``DONT_FAKE_MONOTONIC=1``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from torrelque import (
    TorrelqueFullError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueValueError,
)

#: What a settle of one task may be told, or ``unknown``; all others but the first changed nothing.
VERDICTS = APPLIED, UNKNOWN_TASK, NOT_WORKING, LEASE_LOST, NOT_DONE = (
    "applied", "unknown task", "not working", "lease lost", "not done",
)  # fmt: skip
#: The verdicts that say that the task is not the caller's.
REFUSALS = (UNKNOWN_TASK, NOT_WORKING, LEASE_LOST)
#: The outcomes of a call. ``fail`` says that it surely had no effect.
OUTCOMES = OK, FAIL, UNKNOWN = "ok", "fail", "unknown"
#: An ``enqueue_many`` of more is sent in portions, of which the first may be stored when a later one fails.
_ONE_SCRIPT = 500

_REFUSALS: list[tuple[type[Exception], str]] = [
    (TorrelqueLeaseLostError, LEASE_LOST),
    (TorrelqueNotWorkingError, NOT_WORKING),
    (TorrelqueLookupError, UNKNOWN_TASK),
]
_NO_EFFECT = (
    TorrelqueUnavailableError, TorrelqueFullError, TorrelqueTimeoutError, TorrelqueValueError, TorrelqueTypeError,
)  # fmt: skip
_REASONS = {"LEASE_LOST": LEASE_LOST, "TASK_NOT_WORKING": NOT_WORKING, "TASK_NOT_FOUND": UNKNOWN_TASK}
#: Reasons of the server that leave open what was done; one that it did not give leaves that open too.
_OPEN_REASONS = {None, "OUTCOME_UNKNOWN", "INTERNAL", "STORAGE_ERROR", "SERVER_DRAINING"}


def digest(payload: bytes) -> str:
    """Tell payloads apart: the first half of their SHA-256."""
    return hashlib.sha256(payload).hexdigest()[:32]


def verdict(error: BaseException | None) -> str:
    """Name what a settle of one task was told."""
    if error is None:
        return APPLIED
    return next(name for kind, name in _REFUSALS if isinstance(error, kind))


def outcome(error: BaseException, items: int = 1) -> tuple[str, Any]:
    """Tell what an error says of a call: ``fail`` only when surely nothing was done, and the verdict of a settle."""
    if isinstance(error, grpc.RpcError):
        return _wire_outcome(error)
    for kind, name in _REFUSALS:
        if isinstance(error, kind):
            return FAIL, [name]
    if isinstance(error, _NO_EFFECT) and (items <= _ONE_SCRIPT or not isinstance(error, TorrelqueUnavailableError)):
        return FAIL, type(error).__name__
    return UNKNOWN, type(error).__name__


def wire_verdict(reason: str) -> str:
    """Name what a server said of one settle in a batch: a verdict, or ``unknown``."""
    return _REASONS.get(reason, UNKNOWN if reason in _OPEN_REASONS else NOT_DONE)


def _wire_outcome(error: Any) -> tuple[str, Any]:
    reason = dict(error.trailing_metadata() or ()).get("x-torrelque-reason")
    if reason in _REASONS:
        return FAIL, [_REASONS[reason]]
    return (UNKNOWN if reason in _OPEN_REASONS else FAIL), f"{error.code().name}/{reason}"


@dataclass(slots=True)
class Call:
    """One call of one process; ``completed`` is ``None`` when it died meanwhile."""

    process: str
    op: str
    args: Any
    invoked: int
    outcome: str = UNKNOWN
    value: Any = None
    completed: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """What was done to a process, or what it saw: ``kill``, ``stop``, ``cont``, ``term``, ``start``, ..."""

    kind: str
    about: str
    at: int
    value: Any = None


@dataclass(frozen=True, slots=True)
class Execution:
    """A task in the hands of a worker, from its delivery to its last settle that was asked for."""

    process: str
    task_id: str
    token: int | None
    digest: str
    start: int
    end: int | None


@dataclass
class History:
    """All that the processes of a run wrote."""

    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def executions(self) -> list[Execution]:
        """List the deliveries that their workers have seen."""
        ends: dict[tuple[str, str, Any], int] = {}
        for call in self.calls:
            if call.op in ("release", "requeue"):
                for task_id, token in call.args:
                    key = (call.process, task_id, token)
                    ends[key] = max(call.invoked, ends.get(key, 0))
        return [
            Execution(call.process, task_id, token, said, call.completed, ends.get((call.process, task_id, token)))
            for call in self.calls
            if call.op == "dequeue" and call.outcome == OK and call.completed is not None
            for task_id, token, said in call.value
        ]


class _Pending:
    """A call that was written down and has no outcome yet."""

    def __init__(self, recorder: Recorder, number: int, items: int) -> None:
        self._recorder = recorder
        self._number = number
        self.items = items
        self.closed = False

    def ok(self, value: Any = None) -> None:
        self._close(OK, value)

    def fail(self, value: Any = None) -> None:
        """It surely had no effect."""
        self._close(FAIL, value)

    def unknown(self, value: Any = None) -> None:
        self._close(UNKNOWN, value)

    def _close(self, how: str, value: Any) -> None:
        self.closed = True
        self._recorder.write("c", self._number, how, value, time.monotonic_ns())


class Recorder:
    """Writes the history of one process. Its methods may be called by many tasks and threads.

    :param folder: where all processes of a run write
    :param process: a name that no other process of the run has or had
    """

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self._file = os.open(folder / f"{process}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._numbers = iter(range(1 << 62))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, *line: Any) -> None:
        """Append a line: one system call, so that it is whole or not there unless the process dies in it."""
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def begin(self, op: str, args: Any, *, since: int | None = None, **more: Any) -> _Pending:
        """Write down that a call is about to be made; give its outcome to what is returned.

        :param since: when it was made, if that is not now: what comes by a stream may have been claimed since its
            beginning, and have waited for its reader
        """
        number = next(self._numbers)
        self.write("i", number, op, args, more, time.monotonic_ns() if since is None else since)
        return _Pending(self, number, len(args) if isinstance(args, Sequence) else 1)

    @contextmanager
    def call(self, op: str, args: Any, *, since: int | None = None, **more: Any) -> Iterator[_Pending]:
        """Write down a call and what the body says of it; an error, which passes on, is judged by :func:`outcome`."""
        pending = self.begin(op, args, since=since, **more)
        try:
            yield pending
        except BaseException as error:
            if not pending.closed:
                pending._close(*outcome(error, pending.items))
            raise
        if not pending.closed:
            pending.ok()

    def event(self, kind: str, about: str = "", value: Any = None) -> None:
        """Write down what was done to *about*, a process; to this one by default."""
        self.write("e", kind, about or self.process, value, time.monotonic_ns())


def _lines(path: Path) -> Iterator[list[Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # what does not was torn by the death of its process
                yield json.loads(line)


def _read(path: Path, history: History) -> None:
    calls: dict[int, Call] = {}
    for kind, *line in _lines(path):
        match kind:
            case "i":
                number, op, args, more, at = line
                calls[number] = Call(path.stem, op, args, at, more=more)
            case "c":
                number, how, value, at = line
                call = calls[number]
                call.outcome, call.value, call.completed = how, value, at
            case "e":
                what, about, value, at = line
                history.events.append(Event(what, about, at, value))
    history.calls += calls.values()


def read(folder: Path) -> History:
    """Merge what all processes wrote there; calls and events come in the order of their beginnings."""
    return merge(sorted(folder.glob("*.jsonl")))


def merge(paths: Iterable[Path]) -> History:
    """Merge some of the files."""
    history = History()
    for path in paths:
        _read(path, history)
    history.calls.sort(key=lambda call: call.invoked)
    history.events.sort(key=lambda event: event.at)
    return history


__all__ = [
    "APPLIED", "FAIL", "LEASE_LOST", "NOT_DONE", "NOT_WORKING", "OK", "OUTCOMES", "REFUSALS", "UNKNOWN",
    "UNKNOWN_TASK", "VERDICTS", "Call", "Event", "Execution", "History", "Recorder", "digest", "merge", "outcome",
    "read", "verdict", "wire_verdict",
]  # fmt: skip

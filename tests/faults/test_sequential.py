"""The sequential model explains small histories that are right, and no others."""

from __future__ import annotations

import math
from typing import Any

import pytest
from faults import sequential
from faults.checker import Allowances, Final
from faults.history import (
    FAIL,
    LEASE_LOST,
    NOT_WORKING,
    OK,
    UNKNOWN,
    UNKNOWN_TASK,
    Call,
    Event,
    History,
)

SECOND = 1_000_000_000
LEASE = 2.0


def call(began: float, ended: float | None, op: str, args: Any, value: Any = None, how: str = OK, **more: Any) -> Call:
    """Make a call; times in seconds."""
    completed = None if ended is None else round(ended * SECOND)
    return Call("p", op, args, round(began * SECOND), how, value, completed, more)


def enqueue(began: float, ended: float | None, known: bool | None = False, how: str = OK, **more: Any) -> Call:
    return call(began, ended, "enqueue", [("t", "d")], None if known is None else [known], how, **more)


def dequeue(began: float, ended: float, token: int, digest: str = "d") -> Call:
    return call(began, ended, "dequeue", 1, [("t", token, digest)])


def lost_dequeue(began: float, ended: float | None) -> Call:
    return call(began, ended, "dequeue", 1, how=UNKNOWN)


def settle(op: str, began: float, ended: float | None, token: int | None, told: str = "", **more: Any) -> Call:
    """Make a release, a requeue or an extend: applied, refused, or of unknown outcome."""
    how = UNKNOWN if told == UNKNOWN else FAIL if told else OK
    return call(began, ended, op, [("t", token)], [told] if how == FAIL else None, how, **more)


def release(began: float, ended: float | None, token: int | None, told: str = "", **more: Any) -> Call:
    return settle("release", began, ended, token, told, **more)


def requeue(began: float, ended: float | None, token: int | None, told: str = "", **more: Any) -> Call:
    return settle("requeue", began, ended, token, told, **more)


def extend(began: float, ended: float | None, token: int | None, told: str = "", **more: Any) -> Call:
    return settle("extend", began, ended, token, told, **more)


def served(op: str, at: float, token: int, kept: float | None = None) -> Call:
    """Make what the server did by itself, at this second."""
    return call(at, at, op, [("t", token)], kept=[kept])


def judge(calls: list[Call], final: Final, *events: Event) -> list[str]:
    """Search; returns what no order explains."""
    allowed = Allowances(lease=LEASE, tolerance=0)
    return [violation.task_id for violation in sequential.check(History(calls, list(events)), final, allowed)]


LIVE, KEPT = Final({"pending": ["t"]}), Final(results={"t": "COMPLETED"})
BEGUN = [enqueue(0, 1), dequeue(1, 2, 1)]
#: Ended by its worker, and kept.
BURIED = [*BEGUN, release(2, 3, 1, kept=[math.inf])]

RIGHT: dict[str, tuple[list[Call], Final]] = {
    "nothing": ([], Final()),
    "a whole life": ([*BEGUN, release(2, 3, 1)], Final()),
    "it waits": ([enqueue(0, 1)], LIVE),
    "its end was not told": ([*BEGUN, release(2, None, 1, UNKNOWN)], Final()),
    "nor was it done": ([*BEGUN, release(2, None, 1, UNKNOWN)], LIVE),
    "delivered before the enqueue was answered": ([enqueue(0, 5), dequeue(1, 2, 1), release(2, 3, 1)], Final()),
    "an enqueue without an answer": ([enqueue(0, None, None, UNKNOWN), dequeue(6, 7, 1)], LIVE),
    "that was stored, and repeated": ([enqueue(0, 1, None, UNKNOWN), enqueue(1, 2, True)], LIVE),
    "that came late, after its repeat": ([enqueue(0, 1, None, UNKNOWN), enqueue(1, 2, False)], LIVE),
    "an answer that tells nothing of it": ([enqueue(0, 1), enqueue(1, 2, None)], LIVE),
    "a lease ends": ([*BEGUN, dequeue(3, 4, 2), release(4, 5, 1, LEASE_LOST), release(5, 6, 2)], Final()),
    "and is swept": ([*BEGUN, requeue(3, 4, 1, NOT_WORKING)], LIVE),
    "past its end, and nobody swept": ([*BEGUN, release(100, 101, 1)], Final()),
    "a late release of what is gone": ([*BEGUN, release(2, 3, 1), release(3, 4, 1, UNKNOWN_TASK)], Final()),
    "of what is kept": ([*BEGUN, release(2, 3, 1, kept=[9]), extend(3, 4, 1, NOT_WORKING)], KEPT),
    "a new life after the last": (
        [*BEGUN, release(2, 3, 1, kept=[None]), enqueue(3, 4), dequeue(4, 5, 1), release(5, 6, 1, kept=[1])], Final(),
    ),
    "a kept result keeps its id": ([*BEGUN, release(2, 3, 1, kept=[9]), enqueue(4, 5, True)], KEPT),
    "until its time has passed": ([*BEGUN, release(2, 3, 1, kept=[9]), enqueue(11, 12)], LIVE),
    "requeued": ([*BEGUN, requeue(2, 3, 1), dequeue(2, 3, 2), release(3, 4, 2)], Final()),
    "with another lease": ([*BEGUN, requeue(2, 3, 1, lease=0.5), dequeue(3, 4, 2), dequeue(4, 5, 3)], LIVE),
    "by the plain id, whoever holds it": ([*BEGUN, dequeue(3, 4, 2), release(4, 5, None)], Final()),
    "extended": ([*BEGUN, extend(2, 3, 1, lease=5), dequeue(7, 8, 2)], LIVE),
    "shortened": ([*BEGUN, extend(1, 2, 1, lease=0.1), dequeue(1, 2, 2)], LIVE),
    "a delay ends": ([enqueue(0, 1, delay=3), dequeue(2, 3, 1)], LIVE),
    "a claim without an answer": ([enqueue(0, 1), lost_dequeue(1, 2), dequeue(3, 4, 2)], LIVE),
    "handed back": ([enqueue(0, 1), lost_dequeue(1, 2), dequeue(2, 3, 1)], LIVE),
    "and noticed meanwhile": (
        [*BEGUN, lost_dequeue(3, 4), requeue(4, 5, 1, LEASE_LOST), dequeue(5, 6, 2)], LIVE,
    ),
    "given up": ([*BEGUN, requeue(2, 3, 1), served("give up", 4, 1, 9)], KEPT),
    "when its lease has ended, and forgotten in time": ([*BEGUN, served("give up", 4, 1, 9)], Final()),
    "a dead letter": (BURIED, KEPT),
    "that keeps its id": ([*BURIED, enqueue(40, 50, True)], KEPT),
    "that is purged": ([*BURIED, served("purge", 40, 0), enqueue(41, 50)], LIVE),
    "that is requeued, and counts on": (
        [*BURIED, served("revive", 40, 1), dequeue(41, 42, 2), served("give up", 50, 2, math.inf)], KEPT,
    ),
}  # fmt: skip

WRONG: dict[str, tuple[list[Call], Final]] = {
    "lost": ([enqueue(0, 1)], Final()),
    "from nowhere": ([], LIVE),
    "never enqueued": ([dequeue(1, 2, 1)], LIVE),
    "undone": ([*BEGUN, release(2, 3, 1)], LIVE),
    "delivered after its end": ([*BEGUN, release(2, 3, 1), dequeue(9, 10, 2)], Final()),
    "delivered before it was enqueued": ([dequeue(0, 1, 1), enqueue(2, 3)], LIVE),
    "twice within a lease": ([*BEGUN, dequeue(2, 2.9, 2)], LIVE),
    "twice with one number": ([*BEGUN, dequeue(3, 4, 1)], LIVE),
    "a number is missing": ([enqueue(0, 1), dequeue(5, 6, 2)], LIVE),
    "as another": ([enqueue(0, 1), dequeue(1, 2, 1, "e")], LIVE),
    "released twice": ([*BEGUN, release(2, 3, 1), release(3, 4, 1)], Final()),
    "released by the late owner": ([*BEGUN, dequeue(3, 4, 2), release(4, 5, 1)], Final()),
    "extended by the late owner": ([*BEGUN, dequeue(3, 4, 2), extend(4, 4.5, 1)], LIVE),
    "refused, with the lease under way": ([*BEGUN, release(2.1, 2.9, 1, NOT_WORKING)], LIVE),
    "refused, and applied": ([*BEGUN, dequeue(3, 4, 2), release(4, 5, 1, LEASE_LOST)], Final()),
    "lost to nobody": ([*BEGUN, release(3, 4, 1, LEASE_LOST)], LIVE),
    "unknown while it lives": ([*BEGUN, release(2, 3, 1, UNKNOWN_TASK)], LIVE),
    "not working while nothing is kept": (
        [*BEGUN, release(2, 3, 1, kept=[None]), release(3, 4, 1, NOT_WORKING)], Final(),
    ),
    "known before it was": ([enqueue(0, 1, True)], LIVE),
    "new though it lives": ([enqueue(0, 1), enqueue(1, 2)], LIVE),
    "new while its result is kept": ([*BEGUN, release(2, 3, 1, kept=[9]), enqueue(4, 5)], LIVE),
    "before its delay": ([enqueue(0, 1, delay=3), dequeue(2, 2.9, 1)], LIVE),
    "before its delay, requeued": ([*BEGUN, requeue(2, 3, 1, delay=3), dequeue(4, 4.9, 2)], LIVE),
    "in spite of the extension": ([*BEGUN, extend(2, 3, 1, lease=5), dequeue(6, 6.9, 2)], LIVE),
    "a claim without an answer that came too late": (
        [enqueue(0, 1), dequeue(1, 2, 2), lost_dequeue(3, 4)], LIVE,
    ),
    "given up within a lease": ([*BEGUN, served("give up", 2.5, 1, 9)], KEPT),
    "given up with another number": ([*BEGUN, served("give up", 4, 2, 9)], KEPT),
    "delivered after it was given up": ([*BEGUN, served("give up", 4, 1, 9), dequeue(5, 6, 2)], LIVE),
    "a dead letter is lost": (BURIED, Final()),
    "a dead letter is delivered": ([*BURIED, dequeue(4, 5, 2)], LIVE),
    "and begins anew": ([*BURIED, served("revive", 40, 1), dequeue(41, 42, 1)], LIVE),
    "requeued as a dead letter, and none": ([*BEGUN, served("revive", 4, 1)], LIVE),
    "purged as a dead letter, and none": ([*BEGUN, release(2, 3, 1, kept=[9]), served("purge", 4, 0)], Final()),
    "the end before the failure": ([*BEGUN, release(2, 3, 1, "TorrelqueUnavailableError")], Final()),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str) -> None:
    """There is an order."""
    assert judge(*RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str) -> None:
    """There is none."""
    assert judge(*WRONG[name]) == ["t"]


def test_a_dead_process_claims_nothing_later() -> None:
    """A dequeue without an answer is over with its process, and a lease thereafter; one that lives may claim still."""
    calls = [enqueue(0, 1), lost_dequeue(1, None), dequeue(20, 21, 2)]
    assert judge(calls, LIVE) == []
    calls[0] = enqueue(10, 11)
    assert judge(calls, LIVE, Event("kill", "p", 2 * SECOND)) == ["t"]


def test_tasks_are_judged_apart() -> None:
    """One task that cannot be explained does not hide in a batch with one that can."""
    calls = [
        call(0, 1, "enqueue", [("t", "d"), ("u", "d")], [False, False]),
        call(1, 2, "dequeue", 2, [("t", 1, "d"), ("u", 1, "d")]),
        call(2, 3, "release", [("t", 1), ("u", 1)], ["applied", NOT_WORKING]),
    ]
    assert judge(calls, Final()) == ["u"]


def test_many_at_once() -> None:
    """Forty calls of unknown outcome about one task are soon tried, whether there is an order or not."""
    calls = [*BEGUN, *(settle(op, 2, None, 1, UNKNOWN) for op in ("release", "requeue") for _ in range(20))]
    assert judge([*calls, dequeue(2, 3, 2), release(3, 4, 2)], Final()) == []
    assert judge([*calls, dequeue(2, 3, 3), release(3, 4, 3)], Final()) == ["t"]


def test_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is given up has not shown that anything is right."""
    monkeypatch.setattr(sequential, "_ENOUGH", 2)
    assert judge(*RIGHT["requeued"]) == ["t"]


def test_only_small_ones() -> None:
    """A large history is refused: it is the checker's."""
    with pytest.raises(ValueError, match="too large"):
        judge([enqueue(0, 1)] * sequential.SMALL, LIVE)

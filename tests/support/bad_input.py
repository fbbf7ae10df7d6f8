"""What may not be passed to the methods of a queue, and what is to be said of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import redis

from torrelque import TorrelqueError, TorrelqueTaskId, TorrelqueTaskStatus

HELD = TorrelqueTaskId("held", 1, 300)


class Mute:
    """Something that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


# The values, by what is wrong with them. None is missing everywhere: it means the documented default.
NO_NUMBERS = ["5", b"5", "", "5 minutes", True, False, timedelta(seconds=5), datetime.now(UTC), Decimal(5), [5], 1j]
NO_NUMBERS += [{}, object(), Mute(), float]
TOO_SHORT = [-1, -0.001, -5e-324, -math.inf, -(10**5000)]
TOO_LONG = [math.inf, 1e308, 315_360_001, 10**400, 10**5000]
NO_LENGTHS = [*TOO_SHORT, *TOO_LONG, math.nan]
NO_POSITIVE_LENGTHS = [*NO_LENGTHS, 0, 0.0, -0.0, 1e-9]
NO_TASK_IDS = ["", "x" * 129, "é" * 65, "a\0b", "a\nb", "a\rb", "\x7f", "\x85", "\ud800"]
NO_STRINGS = [b"id", 1, 0, None, True, ["id"], ("id",), object(), Mute()]
NO_NEW_TASK_IDS = [*NO_TASK_IDS, "a b", "a:b", "a/b", "é", "*", "{a}", "a\n", "\uff12"]
NO_STATUSES = [*TorrelqueTaskStatus][:3]
NO_FLAGS = [None, 0, 1, "", "True", b"", [], object(), Mute()]
NO_CURSORS = [
    "",
    "a",
    "/a",
    "1/a",
    "1.5/a",
    "nan/a",
    "1.000000",
    "1.000000/",
    "-1.000000/a",
    "1.000000/a\0",
    "(1.000000/a",
]
NO_CURSORS += ["1.000000\n/a", "\u0661.000000/a", "1e5.000000/a", "1" * 13 + ".000000/a"]
STATUS_JUNK = [None, 99, 0, 1, 2, -1, "completed", "COMPLETED", True, 3.0, Mute(), 10**5000]


class Case(NamedTuple):
    """One parameter of one method: how to call it, what its error says, and what is wrong."""

    what: str
    parameter: str
    call: Callable[..., Any]
    values: list[Any]
    types: list[Any]


async def first(watch: AsyncGenerator[Any]) -> Any:
    return await anext(watch)


LEASE = (NO_POSITIVE_LENGTHS, NO_NUMBERS)
WAIT = (NO_LENGTHS, NO_NUMBERS)
ID = (NO_TASK_IDS, NO_STRINGS)
CASES = [
    Case("enqueue", "task_timeout", lambda q, v, **p: q.enqueue(1, task_timeout=v, **p), *LEASE),
    Case("enqueue", "delay", lambda q, v, **p: q.enqueue(1, delay=v, **p), *WAIT),
    Case(
        "enqueue", "task_id", lambda q, v, **p: q.enqueue(1, task_id=v, **p), NO_NEW_TASK_IDS,
        [value for value in NO_STRINGS if value is not None],
    ),
    Case("enqueue_many", "task_timeout", lambda q, v: q.enqueue_many([1], task_timeout=v), *LEASE),
    Case("enqueue_many", "delay", lambda q, v: q.enqueue_many([1], delay=v), *WAIT),
    Case(
        "enqueue_many", "task_id", lambda q, v: q.enqueue_many([1, 2], task_ids=["ok", v]),
        NO_NEW_TASK_IDS, NO_STRINGS,
    ),
    Case(
        "enqueue_many", "task_ids", lambda q, v: q.enqueue_many([1, 2], task_ids=v), [[], ["a"], ["a", "b", "c"], "ab"],
        [5, True, object(), Mute(), {"a", "b"}, {"a": 1, "b": 2}, (x for x in "ab")],
    ),
    Case("enqueue_many", "tasks", lambda q, v: q.enqueue_many(v), [], [None, 5, True, object(), Mute()]),
    Case("dequeue", "timeout", lambda q, v: q.dequeue(v), *WAIT),
    Case(
        "dequeue", "max_tasks", lambda q, v: q.dequeue(0, max_tasks=v),
        [0, -1, -(10**5000)], [*NO_NUMBERS, 1.5, 1.0, None],
    ),
    Case("dequeue", "max_bytes", lambda q, v: q.dequeue(0, max_bytes=v), [0, -1, -(10**5000)], [*NO_NUMBERS, 1.5, 1.0]),
    Case("requeue", "task_id", lambda q, v, **p: q.requeue(v, **p), *ID),
    Case("requeue", "delay", lambda q, v, **p: q.requeue(HELD, v, **p), *WAIT),
    Case("requeue", "task_timeout", lambda q, v, **p: q.requeue(HELD, task_timeout=v, **p), *LEASE),
    Case("release", "task_id", lambda q, v, **p: q.release(v, **p), *ID),
    Case("release", "result_ttl", lambda q, v, **p: q.release(HELD, result=1, result_ttl=v, **p), *LEASE),
    Case("release", "status", lambda q, v, **p: q.release(HELD, status=v, **p), NO_STATUSES, STATUS_JUNK),
    # True is no junk, but does not go with the status that is the default.
    Case("release", "dead_letter", lambda q, v, **p: q.release(HELD, dead_letter=v, **p), [True], NO_FLAGS),
    Case("release_many", "dead_letter", lambda q, v: q.release_many([HELD], dead_letter=v), [True], NO_FLAGS),
    Case("dead_letters", "limit", lambda q, v: q.dead_letters(v), [0, -1, -(10**5000)], [*NO_NUMBERS, 1.5, None]),
    Case("dead_letters", "max_bytes", lambda q, v: q.dead_letters(max_bytes=v), [0, -1], [*NO_NUMBERS, 1.5, 1.0]),
    Case(
        "dead_letters", "after", lambda q, v: q.dead_letters(after=v), NO_CURSORS,
        [value for value in NO_STRINGS if value is not None],
    ),
    *(
        Case(
            what, "task_ids", call, [[HELD, value] for value in NO_TASK_IDS],
            ["ab", b"ab", 5, True, object(), Mute(), *([HELD, value] for value in NO_STRINGS)],
        )
        for what, call in (
            ("requeue_dead_letters", lambda q, v: q.requeue_dead_letters(v)),
            ("purge_dead_letters", lambda q, v: q.purge_dead_letters(v)),
        )
    ),
    Case(
        "release_many", "task_ids", lambda q, v: q.release_many(v), [[HELD, value] for value in NO_TASK_IDS],
        ["ab", b"ab", None, 5, True, object(), Mute(), *([HELD, value] for value in NO_STRINGS)],
    ),
    Case(
        "release_many", "results", lambda q, v: q.release_many([HELD, "other"], results=v),
        [[], [1], [1, 2, 3]], [5, True, object(), Mute()],
    ),
    Case("release_many", "result_ttl", lambda q, v: q.release_many([HELD], results=[1], result_ttl=v), *LEASE),
    Case("release_many", "status", lambda q, v: q.release_many([HELD], status=v), NO_STATUSES, STATUS_JUNK),
    Case("extend", "task_id", lambda q, v: q.extend(v), *ID),
    Case("extend", "task_timeout", lambda q, v: q.extend(HELD, v), *LEASE),
    Case("lease", "task_id", lambda q, v: q.lease(v), [TorrelqueTaskId("", 1, 300)], [*NO_STRINGS, "plain"]),
    Case("lease", "task_timeout", lambda q, v: q.lease(HELD, v), *LEASE),
    Case(
        "lease", "task_timeout", lambda q, v: q.lease(TorrelqueTaskId("held", 1, v)),
        NO_POSITIVE_LENGTHS, [*NO_NUMBERS, None],
    ),
    Case("get_task_state", "task_id", lambda q, v: q.get_task_state(v), *ID),
    Case("watch", "task_id", lambda q, v: first(q.watch(v)), *ID),
    Case("watch", "timeout", lambda q, v: first(q.watch("held", timeout=v)), *WAIT),
    Case("check", "grace", lambda q, v: q.check(grace=v), [*WAIT[0]], [*WAIT[1], None]),
    Case("check", "repair", lambda q, v: q.check(repair=v), [], [*NO_FLAGS, None]),
    Case("check", "progress", lambda q, v: q.check(progress=v), [], [5, True, "yes", [], object()]),
    Case("run_sweep", "interval", lambda q, v: q.run_sweep(v), *LEASE),
    Case("schedule_sweep", "interval", lambda q, v: q.schedule_sweep(v), *LEASE),
]  # fmt: skip
PIPED = [case for case in CASES if case.what in {"enqueue", "requeue", "release"}]


def commands(admin: redis.Redis) -> dict[str, int]:
    """How often the server was asked for what; INFO itself is left out."""
    stats = admin.info("commandstats")
    return {name: counts["calls"] for name, counts in stats.items() if name != "cmdstat_info"}


async def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception:
    """Make a call that must be refused; returns its error."""
    try:
        outcome = call(*args, **kwargs)
        if inspect.isawaitable(outcome):
            outcome = await outcome
    except Exception as error:
        return error
    raise AssertionError(f"was not refused: {args[1:]!r}")


def judge(error: Exception, kind: type[Exception], parameter: str) -> None:
    """Assert that a refusal is ours, of the right class, names the parameter, and is not longer than a line."""
    assert isinstance(error, TorrelqueError), repr(error)
    assert isinstance(error, kind), repr(error)
    assert parameter in str(error)
    assert len(str(error)) < 400
    assert "\n" not in str(error)

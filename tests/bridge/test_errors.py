"""The table of errors: each of the library's has its row, and what is not foreseen says nothing but an id."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import grpc
import pytest
from google.rpc.status_pb2 import Status
from support.bridge import seconds

import torrelque
from grpc_server import calls, errors
from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.calls import repeated
from grpc_server.settings import Settings
from grpc_server.settling import settle
from torrelque import (
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueNotDurableError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)
from torrelque import errors as library

EXPECTED = {
    "TorrelqueError": "INTERNAL/INTERNAL",
    "TorrelqueTimeoutError": "DEADLINE_EXCEEDED/WATCH_TIMEOUT",
    "TorrelqueLookupError": "NOT_FOUND/TASK_NOT_FOUND",
    "TorrelqueValueError": "INVALID_ARGUMENT/INVALID_FIELD",
    "TorrelqueTypeError": "INVALID_ARGUMENT/INVALID_FIELD",
    "TorrelqueNotificationsError": "FAILED_PRECONDITION/WATCH_UNAVAILABLE",
    "TorrelqueNotWorkingError": "FAILED_PRECONDITION/TASK_NOT_WORKING",
    "TorrelqueLeaseLostError": "FAILED_PRECONDITION/LEASE_LOST",
    "TorrelqueDecodeError": "INTERNAL/INTERNAL",  # bytes pass through, nothing is decoded
    "TorrelqueClosedError": "UNAVAILABLE/SERVER_DRAINING",
    "TorrelqueRedisError": "INTERNAL/STORAGE_ERROR",
    "TorrelqueUnavailableError": "UNAVAILABLE/STORAGE_UNAVAILABLE",
    "TorrelqueUnknownOutcomeError": "UNKNOWN/OUTCOME_UNKNOWN",
    "TorrelqueFullError": "RESOURCE_EXHAUSTED/STORAGE_FULL",
    "TorrelqueStorageError": "INTERNAL/STORAGE_ERROR",
    "TorrelqueNotDurableError": "UNKNOWN/OUTCOME_UNKNOWN",
}


def every_error() -> list[type[TorrelqueError]]:
    """Find all error classes of the library, however deep."""
    found: list[type[TorrelqueError]] = [TorrelqueError]
    for kind in found:
        found += [each for each in kind.__subclasses__() if each.__module__ == library.__name__]
    return found


def make(kind: type[TorrelqueError]) -> TorrelqueError:
    """Build one whose text must not get out."""
    error = kind.__new__(kind)
    error.args = ("redis at 10.0.0.1 said: secret",)
    return error


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_each_has_its_row(kind: type[TorrelqueError], caplog: pytest.LogCaptureFixture) -> None:
    """Every error of the library has the status of the table, and its text stays here."""
    with caplog.at_level(logging.ERROR, "torrelque.server"):
        refused = errors.explain(make(kind))
    assert f"{refused.code.name}/{refused.reason}" == EXPECTED[kind.__name__]
    trailers = dict(refused.trailers())
    assert "secret" not in str(trailers)
    assert "secret" not in refused.text
    assert trailers["x-torrelque-reason"] == refused.reason
    assert sum(len(key) + len(value) for key, value in trailers.items()) < 4096
    details = trailers["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert Status.FromString(details).code == refused.code.value[0]
    assert ("secret" in caplog.text) == (refused.code is grpc.StatusCode.INTERNAL)


def test_no_error_is_left_out() -> None:
    """The table above names every error that the library exports."""
    exported = {name for name in torrelque.__all__ if name.endswith("Error")}
    assert exported == set(EXPECTED) == {kind.__name__ for kind in every_error()}


def test_an_error_of_nobody() -> None:
    """Anything else is INTERNAL with an id."""
    refused = errors.explain(ZeroDivisionError("division by zero"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "division" not in refused.text
    assert refused.metadata["errorId"] in refused.text


def test_long_fields_stay_within_the_trailers() -> None:
    """A field of any length is cut: trailers beyond 8 KiB would be refused by the client."""
    refused = errors.invalid("x" * 10_000, "y" * 10_000)
    assert sum(len(value) for _, value in refused.trailers()) < 4096


@pytest.mark.parametrize("second", [TorrelqueUnknownOutcomeError, TorrelqueUnavailableError])
def test_second_try(second: type[Exception]) -> None:
    """When the first of two tries may have been done, nobody is told that nothing was, whatever the second says."""
    failures: list[Exception] = [TorrelqueUnknownOutcomeError("lost"), second("away")]

    async def fail() -> None:
        raise failures.pop(0)

    with pytest.raises(errors.Refused) as caught:
        anyio.run(repeated, fail)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN")


class Failing:
    """A queue that releases so many tasks, and then fails."""

    def __init__(self, count: int, error: Exception) -> None:
        self._left = count
        self._error = error

    async def release_many(self, task_ids: Sequence[str], **_: object) -> list[None]:
        for _each in task_ids:
            if not self._left:
                raise self._error
            self._left -= 1
        return [None] * len(task_ids)


def visiting(queue: Any) -> Any:
    """Make a visit of a queue that is none."""
    return SimpleNamespace(queue=queue, settings=Settings(), queue_name="q")


AWAY, UNSURE = "STORAGE_UNAVAILABLE", "OUTCOME_UNKNOWN"


@pytest.mark.parametrize(
    ("error", "failed", "unsent"),
    [
        (TorrelqueUnavailableError, AWAY, AWAY),
        (TorrelqueFullError, "STORAGE_FULL", "STORAGE_FULL"),
        (TorrelqueUnknownOutcomeError, UNSURE, AWAY),
        (TorrelqueNotDurableError, UNSURE, AWAY),
    ],
)
@pytest.mark.parametrize(("each", "portion"), [(1, 500), (300_000, 3)])
def test_releases_of_which_a_part_is_done(
    error: type[Exception], failed: str, unsent: str, each: int, portion: int
) -> None:
    """Of many releases only those are told of a failure that it met: portions of before are done, and what was not sent
    after it is surely not."""
    total = 2 * portion + 2 if each == 1 else 2 * portion + 1
    released = pb.ReleaseAction(result=pb.Payload(data=b"x" * each))
    settlements = [pb.Settlement(task_id=f"t{n}", dequeue_count=1, release=released) for n in range(total)]
    said = anyio.run(settle, visiting(Failing(portion, error("redis is gone"))), settlements)
    assert [(item.index, item.reason) for item in said] == [
        (index, failed if index < 2 * portion else unsent) for index in range(portion, total)
    ]


def test_what_is_said_of_one_task() -> None:
    """It is done in its order, each word when the one before is done, while others are done at the same time."""
    under_way: set[str] = set()
    done: list[tuple[str, float]] = []
    most = 0

    async def extend(task_id: str, lease: float) -> None:
        nonlocal most
        assert task_id not in under_way
        under_way.add(task_id)
        most = max(most, len(under_way))
        await anyio.lowlevel.checkpoint()
        under_way.remove(task_id)
        done.append((task_id, lease))

    settlements = [
        pb.Settlement(task_id=task_id, extend=pb.ExtendAction(task_timeout=seconds(lease)))
        for lease in (1, 2, 3)
        for task_id in ("a", "b")
    ]
    assert anyio.run(settle, visiting(SimpleNamespace(extend=extend)), settlements) == []
    assert [lease for task_id, lease in done if task_id == "a"] == [1, 2, 3]
    assert [lease for task_id, lease in done if task_id == "b"] == [1, 2, 3]
    assert most == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TorrelqueUnavailableError, "UNAVAILABLE/OUTCOME_UNKNOWN"),
        (TorrelqueFullError, "RESOURCE_EXHAUSTED/STORAGE_FULL"),
    ],
)
@pytest.mark.parametrize("name", ["sweep", "requeue_dead_letters", "purge_dead_letters"])
def test_what_is_done_in_steps(name: str, error: type[Exception], expected: str) -> None:
    """Of what takes several scripts nobody is told that nothing was changed, as the first ones may have been run."""

    async def fail(*_: object) -> None:
        raise error("redis is gone")

    request = pb.RequeueDeadLettersRequest(all=True)
    with pytest.raises(errors.Refused) as caught:
        anyio.run(getattr(calls, name), visiting(SimpleNamespace(**{name: fail})), request)
    assert f"{caught.value.code.name}/{caught.value.reason}" == expected
    assert "nothing was changed" not in caught.value.text
    assert caught.value.retry_after


FULL, LOST, PARTLY = "RESOURCE_EXHAUSTED/STORAGE_FULL", "UNAVAILABLE/OUTCOME_UNKNOWN", "UNKNOWN/OUTCOME_UNKNOWN"


@pytest.mark.parametrize(
    ("error", "ids", "count", "expected"),
    [
        (TorrelqueFullError, True, 500, FULL),
        (TorrelqueFullError, True, 501, FULL),
        (TorrelqueFullError, False, 500, FULL),
        (TorrelqueFullError, False, 501, PARTLY),
        (TorrelqueUnavailableError, True, 500, "UNAVAILABLE/STORAGE_UNAVAILABLE"),
        (TorrelqueUnavailableError, True, 501, LOST),
        (TorrelqueUnavailableError, False, 500, "UNAVAILABLE/STORAGE_UNAVAILABLE"),
        (TorrelqueUnavailableError, False, 501, PARTLY),
        (TorrelqueUnknownOutcomeError, True, 500, LOST),
        (TorrelqueUnknownOutcomeError, True, 501, LOST),
        (TorrelqueUnknownOutcomeError, False, 500, PARTLY),
        (TorrelqueUnknownOutcomeError, False, 501, PARTLY),
    ],
)
def test_a_batch_that_fails(error: type[Exception], ids: bool, count: int, expected: str) -> None:
    """A batch of one portion fails as a task alone does; of several it is told that a part may be stored. That the
    storage is full stays known wherever a repeat does no harm."""

    async def fail(*_: object, **__: object) -> None:
        raise error("redis is gone")

    tasks = [pb.TaskSpec(request_id=f"t{n}" if ids else "") for n in range(count)]
    with pytest.raises((errors.Refused, TorrelqueError)) as caught:
        anyio.run(
            calls.batch_enqueue, visiting(SimpleNamespace(enqueue_many=fail)), pb.BatchEnqueueRequest(tasks=tasks)
        )
    refused = errors.explain(caught.value)
    assert f"{refused.code.name}/{refused.reason}" == expected
    assert ("nothing was changed" in refused.text) == (count == 500 and error is not TorrelqueUnknownOutcomeError)

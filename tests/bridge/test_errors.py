"""The table of errors: each of the library's has its row, and what is not foreseen says nothing but an id."""

from __future__ import annotations

import logging

import anyio
import grpc
import pytest
from google.rpc.status_pb2 import Status

import torrelque
from grpc_server import errors
from grpc_server.calls import repeated
from torrelque import TorrelqueError, TorrelqueUnavailableError, TorrelqueUnknownOutcomeError
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

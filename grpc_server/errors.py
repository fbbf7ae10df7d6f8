"""One table: what goes wrong, and with which status a client hears of it. No text of Redis or Python gets through."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from torrelque import (
    TorrelqueClosedError,
    TorrelqueFullError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotDurableError,
    TorrelqueNotificationsError,
    TorrelqueNotWorkingError,
    TorrelqueRedisError,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
    TorrelqueValueError,
)

logger = logging.getLogger("torrelque.server")

DOMAIN = "torrelque"
#: Seconds after which a client may try again what could not be done now.
RETRY_AFTER = 0.5

StatusCode = grpc.StatusCode


@dataclass(eq=False)
class Refused(Exception):
    """A call ends with this status; everything in it may be seen by the client."""

    code: grpc.StatusCode
    reason: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What varies, for ``ErrorInfo.metadata``."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Path of a field and what is wrong with it."""
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.code.name}/{self.reason}: {self.text}"

    @property
    def number(self) -> int:
        """The code as a ``google.rpc.Code``."""
        return int(self.code.value[0])

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Spell the details, once for those who know google.rpc and once for those who do not."""
        details: list[Message] = [ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))]
        if self.fields:
            violations = [BadRequest.FieldViolation(field=f, description=d) for f, d in self.fields.items()]
            details.append(BadRequest(field_violations=violations))
        trailers: list[tuple[str, str | bytes]] = [("x-torrelque-reason", self.reason)]
        if self.retry_after is not None:
            info = RetryInfo()
            info.retry_delay.FromMicroseconds(round(self.retry_after * 1e6))
            details.append(info)
            trailers.append(("grpc-retry-pushback-ms", str(round(self.retry_after * 1000))))
        status = Status(code=self.number, message=self.text)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return (*trailers, ("grpc-status-details-bin", status.SerializeToString()))


def invalid(path: str, text: str, reason: str = "INVALID_FIELD") -> Refused:
    """Refuse a field of a request."""
    return Refused(StatusCode.INVALID_ARGUMENT, reason, f"{path} {text}"[:400], fields={path[:200]: text[:200]})


def draining() -> Refused:
    """Refuse because the server stops."""
    return Refused(
        StatusCode.UNAVAILABLE, "SERVER_DRAINING", "the server is stopping: connect again", retry_after=RETRY_AFTER
    )


def too_many(what: str) -> Refused:
    """Refuse because a limit is reached."""
    return Refused(
        StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", f"too many {what}: try again later", retry_after=RETRY_AFTER
    )


def repeat_later() -> Refused:
    """Refuse what may have been done, and may be done again without harm."""
    return Refused(
        StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN",
        "the storage was lost before it answered: repeat the call, which does no harm", retry_after=RETRY_AFTER,
    )  # fmt: skip


def partly_done(*, full: bool) -> Refused:
    """Refuse what may have been done in part, and of which a repeat does the rest."""
    if full:
        code, reason, what = StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", "is full"
    else:
        code, reason, what = StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN", "cannot be reached"
    text = f"the storage {what}, a part may be done: repeat the call later, which does the rest"
    return Refused(code, reason, text, retry_after=RETRY_AFTER)


def partly_stored() -> Refused:
    """Refuse a batch of which the first portions may be there."""
    text = "the storage failed: the first tasks of the batch may be stored; with request ids it could be repeated"
    return Refused(StatusCode.UNKNOWN, "OUTCOME_UNKNOWN", text)


def explain(error: BaseException, metadata: Mapping[str, str] | None = None) -> Refused:
    """Find the status for an error: the first row that fits."""
    if isinstance(error, Refused):
        return error
    for kind, code, reason, text, retry in TABLE:
        if isinstance(error, kind):
            if code is StatusCode.INTERNAL:
                return _internal(error, reason)
            return Refused(code, reason, text, metadata or {}, retry_after=retry)
    return _internal(error, "INTERNAL")


def _internal(error: BaseException, reason: str) -> Refused:
    error_id = secrets.token_hex(8)
    logger.error("Error %s", error_id, exc_info=error, extra={"error_id": error_id})
    text = "the server failed: its log tells more under this id"
    return Refused(StatusCode.INTERNAL, reason, f"{text}: {error_id}", {"errorId": error_id})


#: Kinds below others stand above them.
TABLE: list[tuple[type[BaseException], grpc.StatusCode, str, str, float | None]] = [
    (TorrelqueTimeoutError, StatusCode.DEADLINE_EXCEEDED, "WATCH_TIMEOUT", "the time for the watch has passed", None),
    (
        TorrelqueLeaseLostError, StatusCode.FAILED_PRECONDITION, "LEASE_LOST",
        "another delivery of the task holds it", None,
    ),
    (TorrelqueNotWorkingError, StatusCode.FAILED_PRECONDITION, "TASK_NOT_WORKING", "nobody holds the task", None),
    (
        TorrelqueLookupError, StatusCode.NOT_FOUND, "TASK_NOT_FOUND",
        "there is no such task, or its state is not kept any more", None,
    ),
    (
        TorrelqueUnavailableError, StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE",
        "the storage cannot be reached, nothing was changed: try again", RETRY_AFTER,
    ),
    (
        TorrelqueNotDurableError, StatusCode.UNKNOWN, "OUTCOME_UNKNOWN",
        "the call took effect, but is not stored as safely as this server promises: a failover may undo it", None,
    ),
    (
        TorrelqueUnknownOutcomeError, StatusCode.UNKNOWN, "OUTCOME_UNKNOWN",
        "the storage was lost before it answered: the call may or may not have taken effect", None,
    ),
    (
        TorrelqueFullError, StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL",
        "the storage is full, nothing was changed: try again later", RETRY_AFTER,
    ),
    (TorrelqueRedisError, StatusCode.INTERNAL, "STORAGE_ERROR", "", None),
    # Requests are checked before, so these should not come; if one does, it is the request all the same.
    (TorrelqueValueError, StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "a field is out of range", None),
    (TorrelqueTypeError, StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "a field has the wrong type", None),
    (
        TorrelqueNotificationsError,
        StatusCode.FAILED_PRECONDITION,
        "WATCH_UNAVAILABLE",
        "the storage of this server is not set up for watching",
        None,
    ),
    (
        TorrelqueClosedError, StatusCode.UNAVAILABLE, "SERVER_DRAINING",
        "the server is stopping: connect again", RETRY_AFTER,
    ),
]  # fmt: skip


def single(error: BaseException) -> BaseException:
    """Find one error to tell of in what may be a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""Messages to values and back: pure, and every field of a request is checked here before anything is asked of Redis."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from torrelque import TorrelqueDeadLetter, TorrelqueTaskId, TorrelqueTaskState, TorrelqueTaskStatus

from ._pb import torrelque_pb2 as pb
from .errors import Refused, invalid
from .settings import Settings, valid_queue

#: Caps on times, seconds: a lease, a delay, a result.
DAY = 86_400.0
MAX_LEASE, MAX_DELAY, MAX_KEPT, MAX_INTERVAL = DAY, 365 * DAY, 30 * DAY, DAY
#: The longest Duration, seconds.
_MAX_DURATION = 315_576_000_000
#: The last second that a Timestamp can name.
_MAX_TIME = 253_402_300_799
#: No shorter time can be kept: Redis counts milliseconds.
MIN_LENGTH = 0.001
MAX_BATCH = 1000
#: Of a delivery no more bytes stand beside its payload and its content type.
_BESIDE = 192
_TASK_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
_PAGE_TOKEN = re.compile(r"[0-9]{1,12}\.[0-9]{6}/[A-Za-z0-9_.~%-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_INT32 = 2**31 - 1


# Fields of requests


def has(message: Message, name: str) -> bool:
    """Whether a field with presence is set."""
    return message.HasField(name)


def queue_name(text: str, settings: Settings, path: str = "queue") -> str:
    """The queue that a request means. Whether it is served is not for this to say."""
    if not text:
        return settings.default_queue
    if not valid_queue(text):
        raise invalid(path, "must be 1 to 128 characters of A-Z a-z 0-9 _ . : - and at most one {...}")
    return text


def seconds(message: Any, name: str, path: str, low: float, high: float) -> float | None:
    """Read a Duration; ``None`` when it is not set."""
    if not message.HasField(name):
        return None
    length: Duration = getattr(message, name)
    whole, nanos = length.seconds, length.nanos
    if abs(whole) > _MAX_DURATION or abs(nanos) > 999_999_999 or (whole > 0 > nanos) or (whole < 0 < nanos):
        raise invalid(path, "is no Duration: out of range, or of two signs")
    value = (whole * 1_000_000 + nanos // 1000) / 1e6
    if not low <= value <= high:
        raise invalid(path, f"must be {low:g} to {high:g} seconds")
    return value


def wait(message: Any, name: str) -> float | None:
    """Read how long somebody waits, which is clamped."""
    value = seconds(message, name, name, 0.0, _MAX_DURATION)
    return None if value is None else min(value, MAX_DELAY)


def lease(message: Any, path: str = "task_timeout") -> float | None:
    """Read the length of a lease."""
    return seconds(message, "task_timeout", path, MIN_LENGTH, MAX_LEASE)


def delay(message: Any, path: str = "delay") -> float | None:
    """Read how long a task waits before it is due."""
    return seconds(message, "delay", path, 0.0, MAX_DELAY)


def kept(message: Any, path: str = "result_ttl") -> float | None:
    """Read how long a result is kept."""
    return seconds(message, "result_ttl", path, MIN_LENGTH, MAX_KEPT)


def body(payload: pb.Payload, settings: Settings, path: str) -> bytes:
    """Read a payload or a result."""
    if len(payload.data) > settings.max_payload:
        raise invalid(f"{path}.data", f"is longer than {settings.max_payload} bytes", "PAYLOAD_TOO_LARGE")
    if (payload.content_type or "application/json") != settings.content_type:
        raise invalid(f"{path}.content_type", f"must be {settings.content_type!r}", "CONTENT_TYPE_MISMATCH")
    if settings.check_json:
        _check_json(payload.data, f"{path}.data")
    return payload.data


def _check_json(data: bytes, path: str) -> None:
    try:
        json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise invalid(path, "is no JSON", "PAYLOAD_NOT_JSON") from None


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python writes and reads, and others do not."""
    raise ValueError(name)


def task_id(text: str, count: int | None, path: str = "task_id") -> str:
    """Read which task is meant, and which delivery of it when there is a fencing token."""
    if not text or len(text.encode()) > 128 or _CONTROL.search(text):
        raise invalid(path, "must be 1 to 128 bytes without control characters")
    if count is None:
        return text
    if not 1 <= count <= _MAX_INT32:
        raise invalid(path.removesuffix("task_id") + "dequeue_count", "must be 1 or more")
    return TorrelqueTaskId(text, count, MIN_LENGTH)  # settling needs the number only, whatever the lease is


def token(message: Any) -> int | None:
    """Read the fencing token of a request, if it has one."""
    return message.dequeue_count if message.HasField("dequeue_count") else None


def request_id(text: str, path: str) -> str | None:
    """Read an idempotency key."""
    if not text:
        return None
    if not _TASK_ID.fullmatch(text):
        raise invalid(path, "must be 1 to 128 characters of A-Z a-z 0-9 _ . -")
    return text


def final_status(number: int, path: str = "status") -> TorrelqueTaskStatus:
    """Read how a task ends; unset is COMPLETED."""
    if number not in _STATUSES:
        raise invalid(path, "is no status that this server knows")
    if number == pb.TASK_STATUS_UNSPECIFIED:
        return TorrelqueTaskStatus.COMPLETED
    status = TorrelqueTaskStatus(number - 1)
    if not status.isfinal():
        raise invalid(path, "must be COMPLETED or REJECTED", "STATUS_NOT_FINAL")
    return status


def page_token(text: str) -> str | None:
    """Read where a list goes on."""
    if not text:
        return None
    if not _PAGE_TOKEN.fullmatch(text):
        raise invalid("page_token", "must be a next_page_token")
    return text


def some_or_all(request: pb.RequeueDeadLettersRequest | pb.PurgeDeadLettersRequest) -> list[str] | None:
    """Read which dead letters are meant; ``None`` is all of them."""
    if request.all and request.task_ids:
        raise invalid("all", "goes without task_ids")
    if request.all:
        return None
    if not 1 <= len(request.task_ids) <= MAX_BATCH:
        raise invalid("task_ids", f"must be 1 to {MAX_BATCH} ids, or none with all")
    return [task_id(text, None, f"task_ids[{i}]") for i, text in enumerate(request.task_ids)]


def count(value: int, path: str, high: int) -> int:
    """Read how many are wanted: 0 is 1, what is too much is clamped."""
    if value < 0:
        raise invalid(path, "must be 0 or more")
    return min(value or 1, high)


@dataclass(slots=True)
class Spec:
    """A task to be enqueued."""

    body: bytes
    lease: float | None
    delay: float | None
    request_id: str | None


def spec(message: pb.TaskSpec, settings: Settings, path: str) -> Spec:
    """Read a task to be enqueued."""
    return Spec(
        body(message.payload, settings, f"{path}.payload"),
        lease(message, f"{path}.task_timeout"),
        delay(message, f"{path}.delay"),
        request_id(message.request_id, f"{path}.request_id"),
    )


def specs(messages: Sequence[pb.TaskSpec], settings: Settings) -> list[Spec]:
    """Read the tasks of a batch."""
    if not 1 <= len(messages) <= MAX_BATCH:
        raise invalid("tasks", f"must be 1 to {MAX_BATCH} tasks")
    return [spec(message, settings, f"tasks[{i}]") for i, message in enumerate(messages)]


def known_cursor(request: pb.WatchRequest) -> pb.WatchCursor | None:
    """Read the place up to which a watcher has seen a task."""
    if not request.HasField("cursor"):
        return None
    if request.cursor.status not in _STATUSES:
        raise invalid("cursor.status", "is no status that this server knows")
    return request.cursor


# Answers


def status_of(status: TorrelqueTaskStatus) -> pb.TaskStatus:
    """A status on the wire is one more than in Python, as zero must mean unset."""
    return _WIRE[status]


_WIRE: dict[TorrelqueTaskStatus, pb.TaskStatus] = {
    TorrelqueTaskStatus.PENDING: pb.TASK_STATUS_PENDING,
    TorrelqueTaskStatus.WORKING: pb.TASK_STATUS_WORKING,
    TorrelqueTaskStatus.DELAYED: pb.TASK_STATUS_DELAYED,
    TorrelqueTaskStatus.COMPLETED: pb.TASK_STATUS_COMPLETED,
    TorrelqueTaskStatus.REJECTED: pb.TASK_STATUS_REJECTED,
}
_STATUSES = frozenset(pb.TaskStatus.values())


# What others have stored may be more than a message can say: it is cut, for a task that is damaged must not spoil what
# is said of others.


def _count(value: int) -> int:
    return max(0, min(value, _MAX_INT32))


def duration(value: float) -> Duration:
    """Spell a length of time."""
    whole, micros = divmod(round(max(0.0, min(value, _MAX_DURATION)) * 1e6), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1000)


def timestamp(value: float | None) -> Timestamp | None:
    """Spell a unix time; ``None`` stays unset."""
    if value is None:
        return None
    whole, micros = divmod(round(max(0.0, min(value, _MAX_TIME)) * 1e6), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1000)


def payload(data: bytes, settings: Settings) -> pb.Payload:
    """Spell a payload or a result."""
    return pb.Payload(data=data, content_type=settings.content_type)


@lru_cache(1024)
def _frame(content_type: str, timeout: float) -> pb.Task:
    return pb.Task(payload=pb.Payload(content_type=content_type), timeout=duration(timeout))


def add_tasks(
    message: pb.DequeueResponse | pb.ConsumeDelivery,
    deliveries: Iterable[tuple[TorrelqueTaskId, bytes]],
    settings: Settings,
) -> None:
    """Spell deliveries into a message: in place and from a copy, which takes a quarter of the time."""
    add = message.tasks.add
    for known, data in deliveries:
        task = add()
        task.CopyFrom(_frame(settings.content_type, known.task_timeout))
        task.task_id, task.payload.data, task.dequeue_count = known, data, known.dequeue_count


def beside_body(settings: Settings) -> int:
    """Count what a delivery takes of a message beside its payload, at the most."""
    return _BESIDE + len(settings.content_type)


def size(known: TorrelqueTaskId, data: bytes, settings: Settings) -> int:
    """Count the bytes that a delivery takes of a message."""
    message = pb.DequeueResponse()
    add_tasks(message, [(known, data)], settings)
    return message.ByteSize()


def state(known: TorrelqueTaskState, settings: Settings) -> pb.TaskState:
    """Spell a state."""
    return pb.TaskState(
        status=status_of(known.status),
        timeout=duration(known.timeout),
        result=None if known.result is None else payload(known.result, settings),
        dequeue_count=_count(known.dequeue_count),
        requeue_count=_count(known.requeue_count),
        enqueue_time=timestamp(known.enqueue_time),
        last_dequeue_time=timestamp(known.last_dequeue_time),
        last_requeue_time=timestamp(known.last_requeue_time),
        release_time=timestamp(known.release_time),
    )


def dead_letter(letter: TorrelqueDeadLetter, settings: Settings) -> pb.DeadLetter:
    """Spell a dead letter."""
    return pb.DeadLetter(
        task_id=letter.task_id,
        payload=payload(letter.task, settings),
        reason=None if letter.reason is None else payload(letter.reason, settings),
        dequeue_count=_count(letter.dequeue_count),
        requeue_count=_count(letter.requeue_count),
        enqueue_time=timestamp(letter.enqueue_time),
        last_dequeue_time=timestamp(letter.last_dequeue_time),
        last_requeue_time=timestamp(letter.last_requeue_time),
        release_time=timestamp(letter.release_time),
    )


def cursor(known: TorrelqueTaskState) -> pb.WatchCursor:
    """Spell the place of a state in the life of its task."""
    revision = 1 + _count(known.dequeue_count) + _count(known.requeue_count) + known.status.isfinal()
    return pb.WatchCursor(revision=revision, status=status_of(known.status))


def item_error(index: int, refused: Refused, known: TorrelqueTaskState | None = None) -> pb.ItemError:
    """Spell what went wrong with one of many, and what is known of its task."""
    return pb.ItemError(
        index=index,
        code=refused.number,
        reason=refused.reason,
        message=refused.text,
        status=pb.TASK_STATUS_UNSPECIFIED if known is None else status_of(known.status),
        dequeue_count=0 if known is None else _count(known.dequeue_count),
    )

"""What is stored becomes what a caller reads: payloads, states and dead letters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

from . import checks
from .calls import Delivery, Fields, Letter
from .codec import Serialiser
from .errors import TorrelqueDecodeError, TorrelqueError
from .model import TorrelqueDeadLetter, TorrelqueTaskId, TorrelqueTaskState, TorrelqueTaskStatus


class Decoder:
    """Reads what scripts hand out, by the serialiser of a queue.

    :param default_lease: tells the lease, in seconds, of tasks that have none stored
    """

    def __init__(self, serialiser: Serialiser, default_lease: Callable[[], float]) -> None:
        self._serialiser = serialiser
        self._default_lease = default_lease

    def task(self, delivery: Delivery) -> tuple[TorrelqueTaskId, Any]:
        """Read a task that was delivered.

        :raises TorrelqueDecodeError: its payload cannot be read
        """
        task_id = TorrelqueTaskId._of_delivery(delivery.task_id, delivery.count, delivery.lease, delivery.asked)
        try:
            return task_id, self._serialiser.loads(delivery.body)
        except Exception as error:
            raise TorrelqueDecodeError(task_id, delivery.body, "payload") from error

    def state(self, task_id: str, fields: Fields) -> TorrelqueTaskState:
        """Read a state.

        :raises TorrelqueDecodeError: its result cannot be read
        :raises TorrelqueError: its status is none
        """
        status, timeout, result, dequeues, requeues, *times = fields
        try:
            value = None if result is None else self._serialiser.loads(result)
        except Exception as error:
            raise TorrelqueDecodeError(task_id, result or b"", "result") from error
        enqueued, dequeued, requeued, released = (_number(text) for text in times)
        return TorrelqueTaskState(
            status=_status(task_id, status),
            timeout=_number(timeout) or self._default_lease(),
            result=value,
            dequeue_count=int(_number(dequeues) or 0),
            requeue_count=int(_number(requeues) or 0),
            enqueue_time=enqueued or 0.0,
            last_dequeue_time=dequeued,
            last_requeue_time=requeued,
            release_time=released,
        )

    def letter(self, letter: Letter) -> TorrelqueDeadLetter:
        """Read a dead letter, with an error in the place of what cannot be read."""
        task_id = letter.task_id.decode(errors="replace")
        reason, dequeues, requeues, *times = letter.fields
        enqueued, dequeued, requeued = (_number(text) for text in times)
        return TorrelqueDeadLetter(
            task_id=task_id,
            task=self._readable(task_id, letter.body or b"", "payload"),
            reason=None if reason is None else self._readable(task_id, reason, "result"),
            dequeue_count=int(_number(dequeues) or 0),
            requeue_count=int(_number(requeues) or 0),
            enqueue_time=enqueued or 0.0,
            last_dequeue_time=dequeued,
            last_requeue_time=requeued,
            release_time=float(letter.time),
            cursor=f"{letter.time.decode()}/{quote_from_bytes(letter.task_id, safe='')}",
        )

    def _readable(self, task_id: str, body: bytes, what: str) -> Any:
        """Decode what stands in a dead letter; one that cannot be read must not hide the others."""
        try:
            return self._serialiser.loads(body)
        except Exception as error:
            unreadable = TorrelqueDecodeError(task_id, body, what)
            unreadable.__cause__ = error
            return unreadable


def _status(task_id: str, text: bytes | None) -> TorrelqueTaskStatus:
    try:
        return TorrelqueTaskStatus(int(text or b""))
    except ValueError:
        raise TorrelqueError(f"The stored status of task {task_id} is none: {checks.shown(text)}") from None


def _number(text: bytes | None) -> float | None:
    """Read a stored number; what others stored may be none, or not finite."""
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

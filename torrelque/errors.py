"""What can go wrong, one class per condition.

The three documented classes are :class:`TorrelqueError`, :class:`TorrelqueTimeoutError` and
:class:`TorrelqueLookupError`; every other class stands below one of them, so that an ``except`` clause written
for the documented ones goes on catching.
"""

from __future__ import annotations

import copy


class TorrelqueError(Exception):
    """The root of every error that this library raises."""


class TorrelqueTimeoutError(TorrelqueError):
    """The time that the caller allowed has passed: a ``timeout`` of ``dequeue`` or ``watch``."""


class TorrelqueLookupError(TorrelqueError):
    """The queue knows no such task, or not in the state that the call needs."""


class TorrelqueValueError(TorrelqueError, ValueError):
    """An argument has a value outside of its allowed range. Nothing was sent."""


class TorrelqueTypeError(TorrelqueError, TypeError):
    """An argument has the wrong type. Nothing was sent."""


class TorrelqueNotWorkingError(TorrelqueLookupError):
    """The task is known, but nobody holds it: it was swept, requeued or released. Nothing was changed.

    :ivar task_id: the id that was given
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} is not working: it has been swept, requeued or released")
        self.task_id = task_id


class TorrelqueLeaseLostError(TorrelqueLookupError):
    """A later delivery of the task has been made, so this one may not change it. Nothing was changed.

    :ivar task_id: the id that was given
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(f"The lease on task {task_id} is lost: it has been delivered again since")
        self.task_id = task_id


class TorrelqueDecodeError(TorrelqueError):
    """The serialiser cannot read what is stored; the task stays leased to the caller, who may reject it.

    :ivar task_id: the id with its delivery number, ready for ``release(task_id, status=REJECTED)``
    :ivar body: the bytes as they are stored
    """

    def __init__(self, task_id: str, body: bytes, what: str) -> None:
        super().__init__(f"The {what} of task {task_id} cannot be decoded by the serialiser")
        self.task_id = task_id
        self.body = body


class TorrelqueNotificationsError(TorrelqueError):
    """Redis is not set to send the notifications that ``watch`` needs."""


class TorrelqueClosedError(TorrelqueError):
    """The queue was left, or its event loop ended, before the call was done."""


class TorrelqueRedisError(TorrelqueError):
    """Redis, or the connection to it, failed.

    What is raised is also an instance of the client's own error class (``redis.exceptions.ConnectionError``,
    ``coredis.exceptions.ConnectionError``, ...), and the client's error is its cause.
    """


class TorrelqueUnavailableError(TorrelqueRedisError):
    """Redis cannot be reached or does not serve now; what was asked has surely not been applied."""


class TorrelqueUnknownOutcomeError(TorrelqueRedisError):
    """The connection was lost between the request and its answer: it may or may not have been applied."""


class TorrelqueNotDurableError(TorrelqueUnknownOutcomeError):
    """It has been applied, but not in time as safely as ``durability`` asks for: a failover or a loss of power may
    undo it. To repeat the call is as safe as after any other unknown outcome."""


class TorrelqueFullError(TorrelqueRedisError):
    """Redis is at its ``maxmemory`` and refuses to store more. Nothing was changed."""


class TorrelqueStorageError(TorrelqueRedisError):
    """Redis refuses the command: permissions, a key of a foreign type, a script error."""


def fresh(error: Exception) -> Exception:
    """Copy an error that several callers get, so that each has a traceback of its own."""
    clone = copy.copy(error)
    clone.__cause__ = error.__cause__
    return clone


def first_error(group: BaseExceptionGroup[TorrelqueRedisError]) -> TorrelqueRedisError:
    """Find one error to tell of in a group that may be nested."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def alone(errors: BaseExceptionGroup) -> BaseException:
    """Unwrap an error: a task group wraps whatever passes it, and one error should leave as it came."""
    return errors.exceptions[0] if len(errors.exceptions) == 1 else errors

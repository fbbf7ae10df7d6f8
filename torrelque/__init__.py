"""Torrelque: a reliable work queue on Redis and Valkey for programs written with structured concurrency."""

from .codec import TorrelqueTaskSerialiser
from .embedded import open_server
from .errors import (
    TorrelqueClosedError,
    TorrelqueDecodeError,
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotDurableError,
    TorrelqueNotificationsError,
    TorrelqueNotWorkingError,
    TorrelqueRedisError,
    TorrelqueStorageError,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
    TorrelqueValueError,
)
from .model import (
    TorrelqueCheckFinding,
    TorrelqueCheckReport,
    TorrelqueDamage,
    TorrelqueDeadLetter,
    TorrelqueDurability,
    TorrelqueEnqueuedId,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
)
from .queue import Torrelque

__all__ = [
    "Torrelque",
    "TorrelqueCheckFinding",
    "TorrelqueCheckReport",
    "TorrelqueClosedError",
    "TorrelqueDamage",
    "TorrelqueDeadLetter",
    "TorrelqueDecodeError",
    "TorrelqueDurability",
    "TorrelqueEnqueuedId",
    "TorrelqueError",
    "TorrelqueFullError",
    "TorrelqueLeaseLostError",
    "TorrelqueLookupError",
    "TorrelqueNotDurableError",
    "TorrelqueNotWorkingError",
    "TorrelqueNotificationsError",
    "TorrelqueQueueStats",
    "TorrelqueRedisError",
    "TorrelqueStorageError",
    "TorrelqueTaskId",
    "TorrelqueTaskSerialiser",
    "TorrelqueTaskState",
    "TorrelqueTaskStatus",
    "TorrelqueTimeoutError",
    "TorrelqueTypeError",
    "TorrelqueUnavailableError",
    "TorrelqueUnknownOutcomeError",
    "TorrelqueValueError",
    "open_server",
]

__version__ = "1.0.0a1"

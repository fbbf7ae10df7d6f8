"""The words of the queue: statuses, states, counts, and the id that carries its delivery number."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .errors import TorrelqueTypeError, TorrelqueValueError


class TorrelqueTaskStatus(enum.IntEnum):
    """Where a task is in its life; ``docs/states.md`` draws which status follows which."""

    PENDING = 0
    """Enqueued, ready for the next consumer."""
    WORKING = 1
    """Leased to a consumer."""
    DELAYED = 2
    """Enqueued or requeued with a delay that has not passed."""
    COMPLETED = 3
    """Released by its consumer as done. Final."""
    REJECTED = 4
    """Released by its consumer as not to be done, or given up after too many deliveries. Final."""

    def isfinal(self) -> bool:
        """Tell whether a task of this status never changes again, unless somebody requeues a dead letter.

        :returns: true for ``COMPLETED`` and ``REJECTED``
        """
        return self in FINAL


FINAL = frozenset({TorrelqueTaskStatus.COMPLETED, TorrelqueTaskStatus.REJECTED})

#: Which status may follow which, and by what. Read by tests and drawn in ``docs/states.md``.
TRANSITIONS: dict[TorrelqueTaskStatus, dict[str, TorrelqueTaskStatus]] = {
    TorrelqueTaskStatus.PENDING: {
        "dequeue": TorrelqueTaskStatus.WORKING,
        "give up": TorrelqueTaskStatus.REJECTED,
    },
    TorrelqueTaskStatus.WORKING: {
        "extend": TorrelqueTaskStatus.WORKING,
        "hand back": TorrelqueTaskStatus.PENDING,
        "requeue": TorrelqueTaskStatus.PENDING,
        "requeue with delay": TorrelqueTaskStatus.DELAYED,
        "sweep": TorrelqueTaskStatus.PENDING,
        "release as completed": TorrelqueTaskStatus.COMPLETED,
        "release as rejected": TorrelqueTaskStatus.REJECTED,
    },
    TorrelqueTaskStatus.DELAYED: {
        "sweep": TorrelqueTaskStatus.PENDING,
    },
    TorrelqueTaskStatus.COMPLETED: {},
    TorrelqueTaskStatus.REJECTED: {
        "requeue of a dead letter": TorrelqueTaskStatus.PENDING,
    },
}


@dataclass(frozen=True, slots=True)
class TorrelqueDurability:
    """What it means that ``enqueue``, ``requeue``, ``release`` and ``extend`` return without an error.

    By default the task is in the memory of the primary.

    :param replicas: so many replicas have it as well, 0 to 100
    :param fsync: it is on the disk of the primary, and on those of so many replicas; needs Redis 7.2 or Valkey, with
        ``appendonly yes``
    :param timeout: seconds to wait for that, 0.001 to 10; then the call raises :exc:`TorrelqueNotDurableError`
    :raises TorrelqueValueError: an argument is out of range
    :raises TorrelqueTypeError: an argument has the wrong type
    """

    replicas: int = 0
    fsync: bool = False
    timeout: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.replicas, bool) or not isinstance(self.replicas, int):
            raise TorrelqueTypeError(f"replicas must be an int, not {type(self.replicas).__name__}")
        if not 0 <= self.replicas <= 100:
            raise TorrelqueValueError("replicas must be 0 to 100")
        if not isinstance(self.fsync, bool):
            raise TorrelqueTypeError(f"fsync must be a bool, not {type(self.fsync).__name__}")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TorrelqueTypeError(f"timeout must be a number of seconds, not {type(self.timeout).__name__}")
        if not 0.001 <= self.timeout <= 10:  # a NaN compares false
            raise TorrelqueValueError("timeout must be a number of seconds, 0.001 to 10")


class TorrelqueTaskState(NamedTuple):
    """What is known about a task. The times are unix times in seconds, by the clock of Redis."""

    status: TorrelqueTaskStatus
    """Where the task is in its life."""
    timeout: float
    """Length of a lease, seconds."""
    result: Any
    """What ``release`` kept; ``None`` when nothing."""
    dequeue_count: int
    """Deliveries so far: the number that the latest delivery carries."""
    requeue_count: int
    """Returns to *pending* so far: requeues, sweeps of stale leases and delays that came due."""
    enqueue_time: float
    """When the task was enqueued."""
    last_dequeue_time: float | None
    """When the latest delivery was made; ``None`` before the first."""
    last_requeue_time: float | None
    """When the task returned to *pending* the last time; ``None`` before the first."""
    release_time: float | None
    """When the task was released; ``None`` before."""


class TorrelqueDeadLetter(NamedTuple):
    """A task that was given up and kept. The times are unix times in seconds, by the clock of Redis."""

    task_id: str
    """Its id."""
    task: Any
    """The payload; where it cannot be read, the :exc:`TorrelqueDecodeError` that says so, with the bytes in it."""
    reason: Any
    """Why it was given up; ``None`` when nothing was said, and as for the payload where it cannot be read."""
    dequeue_count: int
    """Deliveries so far."""
    requeue_count: int
    """Returns to *pending* so far."""
    enqueue_time: float
    """When the task was enqueued."""
    last_dequeue_time: float | None
    """When the latest delivery was made; ``None`` when there was none."""
    last_requeue_time: float | None
    """When the task returned to *pending* the last time; ``None`` when it never did."""
    release_time: float
    """When it was given up."""
    cursor: str
    """Its place in the order of all: give it to :meth:`Torrelque.dead_letters` to go on behind it."""


class TorrelqueQueueStats(NamedTuple):
    """How many tasks the queue holds.

    Tasks that were released count no more, whether a result is kept or not, nor do dead letters.
    """

    tasks: int
    """All live tasks. What it has more than the other three together is just being handed out."""
    pending: int
    """Tasks ready for the next consumer."""
    working: int
    """Tasks that are leased."""
    delayed: int
    """Tasks whose delay has not passed."""


#: Whether a task was settled by a delivery's own id: perhaps, on a pipeline that may be executed or not, or by a call
#: that was cut off; in a call that is under way; or in one that was applied.
Settled = Literal["not", "staged", "sent", "done"]


class TorrelqueTaskId(str):
    """The id that ``dequeue`` returns: a :class:`str` that also knows which delivery it came from.

    Given back to ``release``, ``requeue`` or ``extend`` it acts only while that delivery still holds the task.
    A plain string acts without that check, as documented for the published package. It can be pickled and copied;
    written as JSON it becomes a plain string and loses its number, and
    ``TorrelqueTaskId(task_id, dequeue_count, task_timeout)`` makes it anew.

    :ivar dequeue_count: the number of the delivery, from 1; the fencing token
    :ivar task_timeout: length of the lease in seconds, counted from the delivery
    """

    __slots__ = ("_delivered", "_settled", "_stored", "dequeue_count", "task_timeout")

    dequeue_count: int
    task_timeout: float
    _delivered: float | None
    _settled: Settled
    _stored: bytes | None

    def __new__(cls, task_id: str, dequeue_count: int, task_timeout: float) -> TorrelqueTaskId:
        self = super().__new__(cls, task_id)
        self.dequeue_count = dequeue_count
        self.task_timeout = task_timeout
        #: When it was asked for, by the clock of the event loop; ``None`` for an id that came by another way.
        self._delivered = None
        #: What became of it where it was given to release or requeue: that its lease ends then is no surprise.
        self._settled = "not"
        #: The id as Redis has it, which a foreign writer may have made of anything; ``None`` as above.
        self._stored = None
        return self

    @classmethod
    def _of_delivery(cls, stored: bytes, count: int, lease: float, delivered: float) -> TorrelqueTaskId:
        # For every task, so not by way of __new__: that takes twice as long.
        self = str.__new__(cls, stored, "utf-8", "replace")
        self.dequeue_count = count
        self.task_timeout = lease
        self._delivered = delivered
        self._settled = "not"
        self._stored = stored
        return self

    def __reduce__(self) -> tuple[type[TorrelqueTaskId], tuple[str, int, float]]:
        return type(self), (str(self), self.dequeue_count, self.task_timeout)


class TorrelqueEnqueuedId(str):
    """The id that ``enqueue`` returns: a :class:`str` that also knows whether the task was there already.

    :ivar deduplicated: true when the id was known, and nothing was added; ``None`` on a pipeline, which has not been
        executed yet
    """

    __slots__ = ("deduplicated",)

    deduplicated: bool | None

    def __new__(cls, task_id: str, deduplicated: bool | None = None) -> TorrelqueEnqueuedId:
        self = super().__new__(cls, task_id)
        self.deduplicated = deduplicated
        return self

    def __reduce__(self) -> tuple[type[TorrelqueEnqueuedId], tuple[str, bool | None]]:
        return type(self), (str(self), self.deduplicated)


class SweepReport(NamedTuple):
    """What one sweep gave back to *pending*, as documented: ``(stale, due, undequeued)``."""

    stale: int
    due: int
    undequeued: int


class TorrelqueDamage(enum.StrEnum):
    """What can be wrong with a task in Redis, or with the whole queue; and what :meth:`Torrelque.check` makes of it."""

    GHOST = "ghost"
    """An id stands in a place and has no payload. It is dropped, and its state too."""
    ORPHAN = "orphan"
    """A payload whose id stands nowhere, and whose state is not final. It goes back to *pending*, as a requeue does."""
    LEFTOVER = "leftover"
    """A payload or a place of a task that has ended, or a state of no task. It is removed; a final state stays."""
    TWICE = "twice"
    """An id stands in two places, or twice in one list. One stays: the lease that it has, else the place that its state
    names, else *pending*; of two in a list the older one."""
    STATUS = "status"
    """The status is not that of the place. It becomes so."""
    STATE = "state"
    """The state is missing, of a foreign type, or has fields that are nothing. It gets defaults: the present time, the
    default lease, counts of 0."""
    SCORE = "score"
    """A lease or a delay ends never, before all time, or so late that the clock was wrong then. A lease gets its length
    from now on, a delay ends now."""
    EXPIRY = "expiry"
    """The state of a live task would expire, or a final one never does. The first stays, the second gets
    ``result_ttl``."""
    TYPE = "type"
    """A structure of the queue is a key of a foreign type. It is left alone: whoever put it there must remove it.
    Nothing else can be judged until then."""


class TorrelqueCheckFinding(NamedTuple):
    """One thing that is wrong."""

    damage: TorrelqueDamage
    """What it is."""
    task_id: str
    """Which task; the name of a key for ``TorrelqueDamage.TYPE``."""
    repaired: bool
    """Whether it has been put right."""


class TorrelqueCheckReport(NamedTuple):
    """What :meth:`Torrelque.check` has found."""

    looked_at: int
    """How many entries of lists, sets and hashes were looked at, without those that were looked at again."""
    findings: list[TorrelqueCheckFinding]
    """All that was found, whether repaired or not."""

    @property
    def left(self) -> list[TorrelqueCheckFinding]:
        """What has not been repaired."""
        return [finding for finding in self.findings if not finding.repaired]


class TorrelqueSeverity(enum.StrEnum):
    """How much a finding about the server matters."""

    DANGER = "danger"
    """Tasks are lost by it, or nothing works."""
    WARNING = "warning"
    """Some faults lose tasks because of it, or a part of the library does not work."""
    NOTE = "note"
    """To be known."""
    UNKNOWN = "unknown"
    """The server does not tell."""


class TorrelqueServerFinding(NamedTuple):
    """One thing about the server of a queue that matters."""

    severity: TorrelqueSeverity
    """How much."""
    name: str
    """A word for it, which does not change: ``eviction``, ``role``, ``append-only``, ..."""
    what: str
    """What was found."""
    why: str
    """What it means for the queue."""
    way_out: str
    """What to do about it."""


class TorrelqueServerReport(NamedTuple):
    """What :meth:`Torrelque.inspect_server` has found."""

    server: str
    """Kind and version, as ``valkey 9.1.2``; ``unknown`` where the server does not tell."""
    findings: list[TorrelqueServerFinding]
    """The most severe first."""

    @property
    def dangers(self) -> list[TorrelqueServerFinding]:
        """What loses tasks."""
        return [finding for finding in self.findings if finding.severity is TorrelqueSeverity.DANGER]

"""The face of the library: the documented methods, each a few lines, over the floors beneath."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self, overload

from anyio import TASK_STATUS_IGNORED, CancelScope, create_task_group, current_time
from anyio.abc import TaskStatus

from . import checks
from .auditing import Audit, Terms
from .background import Background
from .batching import Coalescer
from .bulk import encode_results, encode_tasks, portions
from .calls import Call, Calls, Delivery, GivingUp, R, Verdict
from .codec import JSON, Serialiser, encode
from .dead_letters import DeadLetters
from .decoding import Decoder
from .drivers import Driver, driver_for, driver_for_url
from .errors import (
    TorrelqueClosedError,
    TorrelqueDecodeError,
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    alone,
)
from .giving_up import giving_up
from .inspecting import inspect, warn
from .keys import NAMES, Keys
from .leasing import keep_lease
from .listening import Hub
from .model import (
    SweepReport,
    TorrelqueCheckReport,
    TorrelqueDeadLetter,
    TorrelqueDurability,
    TorrelqueEnqueuedId,
    TorrelqueQueueStats,
    TorrelqueServerReport,
    TorrelqueTaskId,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
)
from .settling import Settler, is_loss, judge
from .sweeping import Sweeper
from .waiting import Room
from .watching import Watches

#: The durability of a queue that is told nothing.
MEMORY = TorrelqueDurability()

#: Leaving a queue waits this many seconds for what is under way.
GRACE = 1.0


class Torrelque:
    """A reliable work queue in Redis or Valkey.

    ``async with Torrelque(client) as queue:`` opens the task group that owns everything the queue does in the
    background; once for each object. Leaving it waits up to a second for what is under way. With
    :class:`redis.asyncio.Redis` on asyncio the methods of the published package 0.9 also work without entering; with
    other clients calls raise :exc:`TorrelqueError` until then. Once the queue was left they raise
    :exc:`TorrelqueClosedError`.

    The attributes below are defaults, which a subclass or an instance may set.

    :param client: a :class:`redis.asyncio.Redis` (asyncio), or a :class:`coredis.Redis` that has been entered
        (asyncio, Trio); of one server or, made by the library's ``Sentinel``, of the primary; or a ``RedisCluster`` of
        either library
    :param queue: name of the queue and prefix of its keys: 1 to 128 characters of ``A-Z a-z 0-9 _ . : -`` and at most
        one ``{...}``, without a part ``:task``
    :param serialiser: anything with ``dumps(value) -> bytes`` and ``loads(bytes)``; JSON by default
    :param durability: what it means that a write returns; in the memory of the primary by default. Calls on a
        ``pipeline`` are not waited for
    :raises TorrelqueError: another client; on Trio, when it is entered, also a :class:`redis.asyncio.Redis`
    :raises TorrelqueValueError: the name is not allowed
    :raises TorrelqueTypeError: an argument has the wrong type
    """

    task_timeout: float = 300
    """Length of a lease, seconds, for a task that was given none of its own; at least 0.001."""
    sweep_interval: float = 30
    """Seconds between two sweeps of :meth:`run_sweep` and :meth:`schedule_sweep`; at least 0.001."""
    result_ttl: float = 3600
    """Seconds for which :meth:`release` keeps a result; at least 0.001."""
    max_attempts: int | None = None
    """How often a task is delivered at most, 1 to 1,000,000; ``None`` is without limit.

    A task that has been delivered so often is not delivered again, whether its consumers requeued it or died: the next
    ``dequeue`` of a queue with this limit ends it as ``REJECTED``, with a text that says so as its result. The limit is
    that of the consumer; the published package has none."""
    dead_letter: bool = False
    """Keep the tasks that *max_attempts* ends as dead letters, with their payloads and without an end.

    Otherwise their states are kept for *result_ttl* seconds."""
    linger: float = 0
    """Seconds for which a call waits for others to share its round trip, if the one before was shared; 0 or more.

    Calls that are made at the same time share round trips anyway. A wait, of a millisecond or two, is for a server, to
    which requests come one by one while others wait out of sight; a program whose tasks call the queue only loses
    time."""
    keys: dict[str, str] = NAMES
    """Names of the keys in Redis, by their documented words; on an instance with the prefix of the queue."""

    def __init__(
        self,
        client: Any,
        *,
        queue: str = "trq",
        serialiser: Serialiser = JSON,
        durability: TorrelqueDurability = MEMORY,
    ) -> None:
        self._build(driver_for(client), queue, serialiser, durability)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        queue: str = "trq",
        serialiser: Serialiser = JSON,
        durability: TorrelqueDurability = MEMORY,
        **client_options: Any,
    ) -> Torrelque:
        """Make a queue with a coredis client of its own, opened and closed by ``async with queue:``.

        Works on asyncio and on Trio. Such a queue has to be entered.

        :param url: ``redis://[user:password@]host[:port][/db]``, ``rediss://...`` or ``unix:///path[?db=0]``;
            ``redis+sentinel://[user:password@]host[:port],.../service[/db]`` for the primary that sentinels tell of;
            ``redis+cluster://[user:password@]host[:port],...`` for a cluster; both also with ``rediss+``. What is
            special in a user, a password or a path is written as ``%`` escapes
        :param queue: name of the queue, as for :class:`Torrelque`
        :param serialiser: as for :class:`Torrelque`
        :param durability: as for :class:`Torrelque`
        :param client_options: passed to :meth:`coredis.Redis.from_url`, which passes over names that it does not know
        :returns: the queue, not entered yet; no connection has been made
        :raises TorrelqueValueError: the URL cannot be used, or the name is not allowed
        :raises TorrelqueTypeError: an argument has the wrong type
        """
        self = cls.__new__(cls)
        self._build(driver_for_url(checks.url(url), client_options), queue, serialiser, durability)
        return self

    def _build(self, driver: Driver, queue: str, serialiser: Serialiser, durability: TorrelqueDurability) -> None:
        spelled = Keys(checks.queue(queue), cluster=driver.cluster)
        self.keys = spelled.names
        self._name = queue
        self._serialiser = checks.serialiser(serialiser)
        self._driver = driver
        self._calls = Calls(spelled)
        driver.serve(spelled.pending, self._calls.assurance(checks.durability(durability)))
        self._background = Background(driver)
        self._coalescer = Coalescer(driver, self._background, lambda: checks.seconds("linger", self.linger))
        self._hub = Hub(driver, self._background)
        self._room = Room(driver, self._background, self._hub, spelled, self._calls, self._lease, lambda: self._policy)
        self._sweeper = Sweeper(self._coalescer, self._hub, spelled, self._calls, self._lease, self._look)
        self._settler = Settler(self._coalescer, self._run)
        self._decoder = Decoder(self._serialiser, self._lease)
        self._dead_letters = DeadLetters(self._ask, self._calls, self._decoder)
        self._watches = Watches(driver, self._background, self._coalescer, self._hub, spelled, self._calls)
        self._policy: GivingUp | None = None
        self._schedule: CancelScope | None = None
        self._closed = False
        self._use: AbstractAsyncContextManager[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"

    async def __aenter__(self) -> Self:
        if self._use is not None:
            raise TorrelqueError(f"Queue {self._name!r} has been entered already: make another object for another use")
        use = self._use = self._open()
        try:
            await use.__aenter__()
        except BaseException:
            self._use = None
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._use is not None
        return await self._use.__aexit__(exc_type, exc, traceback)

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[None]:
        failure: BaseException | None = None
        async with self._driver.opened():
            try:
                async with create_task_group() as group:
                    self._background.enter(group)
                    try:
                        yield
                    finally:
                        self._close()
            except BaseExceptionGroup as errors:
                failure = alone(errors)
        if failure is not None:
            raise failure

    def _close(self) -> None:
        self._closed = True
        self.unschedule_sweep()
        self._room.close()
        self._hub.close()
        self._background.drain(GRACE)

    def _check_open(self) -> None:
        if self._closed:
            raise TorrelqueClosedError(f"Queue {self._name!r} is closed: call it inside its `async with`")

    def _lease(self) -> float:
        return checks.positive_seconds("task_timeout", self.task_timeout)

    async def enqueue(
        self,
        task: Any,
        *,
        task_timeout: float | None = None,
        delay: float | None = None,
        pipeline: Any = None,
        task_id: str | None = None,
    ) -> TorrelqueEnqueuedId:
        """Add a task to the queue.

        :param task: the payload, anything the serialiser takes; falsy values count like any other
        :param task_timeout: length of each lease, seconds, at least 0.001; ``self.task_timeout`` by default
        :param delay: seconds before the task is due, 0 or more; at once by default
        :param pipeline: the client's pipeline to queue the call on; it takes effect when that is executed
        :param task_id: 1 to 128 characters of ``A-Z a-z 0-9 _ . -``. The same id again, while the task lives or its
            result is kept, changes nothing: this makes a retry after a lost answer safe. Random by default
        :returns: the id of the task, a :class:`str`, whose ``deduplicated`` tells whether it was there already
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type, or the serialiser did not return bytes; errors that
            the serialiser raises pass through
        :raises TorrelqueRedisError: Redis failed; :exc:`TorrelqueUnknownOutcomeError` if the answer was lost
        """
        known = secrets.token_hex(16) if task_id is None else checks.new_task_id(task_id)
        lease = self._lease() if task_timeout is None else checks.positive_seconds("task_timeout", task_timeout)
        wait = 0.0 if delay is None else checks.seconds("delay", delay)
        call = self._calls.enqueue([(known, encode(self._serialiser, task, "task"))], lease, wait)
        added = await self._run(call, pipeline)
        return TorrelqueEnqueuedId(known, None if added is None else not added)

    async def enqueue_many(
        self,
        tasks: Iterable[Any],
        *,
        task_timeout: float | None = None,
        delay: float | None = None,
        task_ids: Sequence[str] | None = None,
    ) -> list[TorrelqueEnqueuedId]:
        """Add many tasks, in scripts of bounded size, each of which adds all of its tasks or none.

        Everything is checked and serialised before the first is sent. When Redis fails half-way, the tasks sent
        until then stay; with *task_ids* the whole call can be repeated safely.

        :param tasks: the payloads, of which an iterator is read to its end first
        :param task_timeout: seconds as for :meth:`enqueue`, for all tasks
        :param delay: seconds as for :meth:`enqueue`, for all tasks
        :param task_ids: one for each task, as for :meth:`enqueue`; random by default
        :returns: the ids, in the order of the tasks; ``deduplicated`` of each as for :meth:`enqueue`
        :raises TorrelqueValueError: an argument is out of range, or there is not one id for each task
        :raises TorrelqueTypeError: as for :meth:`enqueue`
        :raises TorrelqueRedisError: Redis failed
        """
        lease = self._lease() if task_timeout is None else checks.positive_seconds("task_timeout", task_timeout)
        wait = 0.0 if delay is None else checks.seconds("delay", delay)
        bodies = encode_tasks(self._serialiser, tasks)
        ids = checks.new_task_ids(task_ids, len(bodies)) or [secrets.token_hex(16) for _ in bodies]
        added: list[bool] = []
        for portion in portions(ids, bodies):
            self._check_open()
            added += await self._coalescer.run_many(self._calls.enqueue(portion, lease, wait))
        return [TorrelqueEnqueuedId(task_id, not new) for task_id, new in zip(ids, added, strict=True)]

    async def _run(self, call: Call[Any], pipeline: Any) -> Any:
        """Run a call now, or queue it on the user's own pipeline (then there is no outcome yet)."""
        self._check_open()
        if pipeline is not None:
            self._driver.stage(call, pipeline)
            return None
        return await self._coalescer.run(call)

    async def _ask(self, call: Call[R]) -> R:
        """Run a call that goes on no pipeline."""
        self._check_open()
        return await self._coalescer.run(call)

    @overload
    async def dequeue(  # type: ignore[overload-overlap]  # 1 is an int too: what is not the literal is taken as more
        self, timeout: float | None = None, *, max_tasks: Literal[1] = 1, max_bytes: int | None = None
    ) -> tuple[TorrelqueTaskId, Any]: ...

    @overload
    async def dequeue(
        self, timeout: float | None = None, *, max_tasks: int, max_bytes: int | None = None
    ) -> list[tuple[TorrelqueTaskId, Any]]: ...

    async def dequeue(
        self, timeout: float | None = None, *, max_tasks: int = 1, max_bytes: int | None = None
    ) -> tuple[TorrelqueTaskId, Any] | list[tuple[TorrelqueTaskId, Any]]:
        """Lease the next task, waiting for one.

        Cancelled at any moment it leaves nothing behind: a task that was on its way goes back to the head of the
        queue as if it had not been dequeued. A task that was delivered ``self.max_attempts`` times already is ended
        instead. A consumer that waits also takes up delays that pass and leases that end, to the millisecond.

        :param timeout: seconds to wait; ``None`` without limit, 0 looks once
        :param max_tasks: with more than 1, what is there up to this many (above 1,000 is clamped) comes as a list
        :param max_bytes: so many bytes of payloads at most, as they are stored, but always one task; 1 or more, without
            limit by default
        :returns: ``(task_id, task)``, or with ``max_tasks > 1`` always a list of these, at least one. The id is a
            :class:`TorrelqueTaskId`, which carries the number of the delivery
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueTimeoutError: nothing came in time
        :raises TorrelqueDecodeError: the payload cannot be read; that task stays leased, others are handed back
        :raises TorrelqueRedisError: Redis failed
        """
        wanted, wait = checks.count("max_tasks", max_tasks), checks.timeout("timeout", timeout)
        room = math.inf if max_bytes is None else checks.max_bytes(max_bytes)
        self._check_open()
        # A default that is nonsense is the caller's error, not one of the background.
        self._lease()
        self._policy = giving_up(self._serialiser, self.max_attempts, self.dead_letter, self.result_ttl, self._policy)
        deliveries = await self._room.dequeue(wanted, wait, room)
        if not deliveries:
            raise TorrelqueTimeoutError(f"No task came within {wait} s")
        return self._decoder.task(deliveries[0]) if max_tasks == 1 else self._decode_all(deliveries)

    def _decode_all(self, deliveries: list[Delivery]) -> list[tuple[TorrelqueTaskId, Any]]:
        tasks: list[tuple[TorrelqueTaskId, Any]] = []
        for i, delivery in enumerate(deliveries):
            try:
                tasks.append(self._decoder.task(delivery))
            except TorrelqueDecodeError:
                self._room.hand_back(deliveries[:i] + deliveries[i + 1 :])
                raise
        return tasks

    async def requeue(
        self,
        task_id: str,
        delay: float | None = None,
        *,
        task_timeout: float | None = None,
        pipeline: Any = None,
        strict: bool = False,
    ) -> None:
        """Give a working task back to the queue, where it goes to the tail.

        :param task_id: as ``dequeue`` returned it: acts only while that delivery holds the task; a plain ``str`` acts
            whoever holds it
        :param delay: seconds before the task is due again, 0 or more; at once by default
        :param task_timeout: length of each lease from now on, seconds, at least 0.001; as before by default
        :param pipeline: the client's pipeline to queue the call on; it takes effect when that is executed, and what
            it finds is in the pipeline's results
        :param strict: raise what is otherwise logged as a warning when nothing could be done
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueRedisError: Redis failed
        :raises TorrelqueLookupError: (strict) there is no such task
        :raises TorrelqueNotWorkingError: (strict) nobody holds the task
        :raises TorrelqueLeaseLostError: (strict) a later delivery holds the task
        """
        checks.task_id(task_id)
        wait = 0.0 if delay is None else checks.seconds("delay", delay)
        lease = None if task_timeout is None else checks.positive_seconds("task_timeout", task_timeout)
        await self._settler.settle("requeue", task_id, self._calls.requeue(task_id, wait, lease), pipeline, strict)

    async def release(
        self,
        task_id: str,
        *,
        result: Any = None,
        result_ttl: float | None = None,
        status: TorrelqueTaskStatus = TorrelqueTaskStatus.COMPLETED,
        dead_letter: bool = False,
        pipeline: Any = None,
        strict: bool = False,
    ) -> None:
        """End a working task.

        Without a result everything about the task goes at once, whatever the status; with one, the final state
        stays readable for *result_ttl* seconds. As a dead letter it stays, with or without one, until it is requeued or
        purged.

        :param task_id: as ``dequeue`` returned it: acts only while that delivery holds the task; a plain ``str`` acts
            whoever holds it
        :param result: anything the serialiser takes; ``None`` is no result, other falsy values are one
        :param result_ttl: seconds to keep the state, at least 0.001; ``self.result_ttl`` by default
        :param status: ``COMPLETED`` or ``REJECTED``
        :param dead_letter: keep the task with its payload as a dead letter, whose reason is the result; goes with
            ``REJECTED``
        :param pipeline: the client's pipeline to queue the call on; it takes effect when that is executed, and what
            it finds is in the pipeline's results
        :param strict: raise what is otherwise logged as a warning when nothing could be done
        :raises TorrelqueError: ``Invalid status for released task: N``
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type, or the serialiser did not return bytes; errors that
            the serialiser raises pass through
        :raises TorrelqueRedisError: Redis failed
        :raises TorrelqueLookupError: (strict) there is no such task
        :raises TorrelqueNotWorkingError: (strict) nobody holds the task
        :raises TorrelqueLeaseLostError: (strict) a later delivery holds the task
        """
        checks.task_id(task_id)
        final = checks.final_status(status)
        keep = checks.positive_seconds("result_ttl", self.result_ttl if result_ttl is None else result_ttl)
        buried = checks.dead_letter(dead_letter, final)
        body = None if result is None else encode(self._serialiser, result, "result")
        call = self._calls.release([(task_id, body)], final, None if buried else keep)
        await self._settler.settle("release", task_id, call, pipeline, strict)

    async def release_many(
        self,
        task_ids: Iterable[str],
        *,
        results: Iterable[Any] | None = None,
        result_ttl: float | None = None,
        status: TorrelqueTaskStatus = TorrelqueTaskStatus.COMPLETED,
        dead_letter: bool = False,
    ) -> list[TorrelqueLookupError | None]:
        """End many working tasks, in scripts of bounded size; each task is ended by itself, as by :meth:`release`.

        Everything is checked and serialised before the first is sent. When Redis fails half-way, the tasks sent until
        then are released; the whole call can be repeated, which finds those unknown or not working.

        :param task_ids: as ``dequeue`` returned them, or plain ones, as for :meth:`release`
        :param results: one for each task, ``None`` for one that has none; by default no task has
        :param result_ttl: seconds as for :meth:`release`, for all tasks
        :param status: ``COMPLETED`` or ``REJECTED``, for all tasks
        :param dead_letter: keep all tasks as dead letters, as for :meth:`release`
        :returns: for each task ``None``, or the error that a strict :meth:`release` would have raised, which is logged
            as a warning too
        :raises TorrelqueValueError: an argument is out of range, or there is not one result for each task
        :raises TorrelqueTypeError: as for :meth:`release`
        :raises TorrelqueError: ``Invalid status for released task: N``
        :raises TorrelqueRedisError: Redis failed
        """
        ids = checks.task_ids(task_ids)
        final = checks.final_status(status)
        keep: float | None = checks.positive_seconds(
            "result_ttl", self.result_ttl if result_ttl is None else result_ttl
        )
        if checks.dead_letter(dead_letter, final):
            keep = None
        bodies = encode_results(self._serialiser, results, len(ids))
        refusals: list[TorrelqueLookupError | None] = []
        for portion in portions(ids, bodies):
            self._check_open()
            call = self._calls.release(portion, final, keep)
            refusals += await self._settler.release_many([task_id for task_id, _ in portion], call)
        return refusals

    async def extend(self, task_id: str, task_timeout: float | None = None) -> float:
        """Let the lease of a working task end a full length from now, whatever was left of it.

        :param task_id: as ``dequeue`` returned it: acts only while that delivery holds the task; a plain ``str`` acts
            whoever holds it
        :param task_timeout: the length, seconds, at least 0.001; the task's own by default
        :returns: when the lease now ends, unix time in seconds by the clock of Redis
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueRedisError: Redis failed
        :raises TorrelqueLookupError: there is no such task
        :raises TorrelqueNotWorkingError: nobody holds the task
        :raises TorrelqueLeaseLostError: a later delivery holds the task
        """
        checks.task_id(task_id)
        lease = None if task_timeout is None else checks.positive_seconds("task_timeout", task_timeout)
        return await self._extend(task_id, lease, self._coalescer.run)

    async def _extend(
        self, task_id: str, lease: float | None, run: Callable[[Call[float | Verdict]], Awaitable[float | Verdict]]
    ) -> float:
        self._check_open()
        ends = await run(self._calls.extend(task_id, lease, self._lease()))
        if isinstance(ends, Verdict):
            judge("extend", task_id, ends, strict=True)
        return float(ends)

    def lease(
        self, task_id: TorrelqueTaskId, task_timeout: float | None = None
    ) -> AbstractAsyncContextManager[CancelScope]:
        """Hold the lease of a task as long as the body runs: ``async with queue.lease(task_id): ...``.

        The lease is extended at half of its time, and where that fails or is not answered, again and again. When it is
        lost all the same (the process stood still, Redis was away for too long), the body is cancelled, for somebody
        else may be at work on the task; if it comes to that, a twentieth of the lease before it ends, and at most one
        second. The body may release or requeue the task: given *task_id* itself, that is no loss, and the rest of the
        body runs on. On a ``pipeline``, and where a call was cancelled or its answer lost, that holds as long as nobody
        else has the task: whether it was applied is not known here, so a later delivery, also after a requeue, counts
        as a loss, which is noticed within half of the lease.

        :param task_id: as ``dequeue`` returned it, not a plain ``str``
        :param task_timeout: seconds of each extension, at least 0.001; the task's own length by default
        :returns: a context manager, whose value is the cancel scope around the body
        :raises TorrelqueLookupError: the lease was lost, and the body was cancelled or did not begin
        :raises TorrelqueRedisError: half of the lease had passed, so it was to be extended first, and Redis failed
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type, or the id is not one that ``dequeue`` returned
        """
        if not isinstance(task_id, TorrelqueTaskId):
            raise TorrelqueTypeError(f"task_id must be the one that dequeue returned: {checks.shown(task_id)}")
        checks.task_id(task_id)
        own = checks.positive_seconds("task_timeout", task_id.task_timeout)
        lease = own if task_timeout is None else checks.positive_seconds("task_timeout", task_timeout)
        self._check_open()

        async def extend(*, apart: bool) -> float:
            return await self._extend(task_id, lease, self._coalescer.run_apart if apart else self._coalescer.run)

        delivered = task_id._delivered
        ends_in = None if delivered is None else own - (current_time() - delivered)
        return keep_lease(extend, lease, ends_in, lambda refusal: is_loss(task_id, refusal))

    async def get_task_state(self, task_id: str) -> TorrelqueTaskState:
        """Read what is known about a task.

        :param task_id: the task
        :returns: its state
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueLookupError: there is no such task, or its result was not kept, or no longer
        :raises TorrelqueDecodeError: the result cannot be read
        :raises TorrelqueRedisError: Redis failed
        """
        encoded = checks.task_id(task_id)
        fields = await self._ask(self._calls.state(encoded))
        if fields[0] is None:
            raise TorrelqueLookupError(f"Task {task_id} is unknown")
        return self._decoder.state(task_id, fields)

    async def get_queue_stats(self) -> TorrelqueQueueStats:
        """Count the tasks of the queue, all at one moment.

        :returns: the counts
        :raises TorrelqueRedisError: Redis failed
        """
        return await self._ask(self._calls.stats())

    async def dead_letters(
        self, limit: int = 100, *, after: str | None = None, max_bytes: int | None = None
    ) -> list[TorrelqueDeadLetter]:
        """Read the dead letters: tasks that were given up and kept, in the order in which they were.

        :param limit: so many at most (above 1,000 is clamped)
        :param after: ``cursor`` of a letter, behind which to go on, whether it is still there or not; begins with the
            oldest one by default
        :param max_bytes: so many bytes of payloads and reasons at most, as they are stored, but always one letter; 1 or
            more, without limit by default
        :returns: the letters; none when there are no more
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueRedisError: Redis failed
        """
        wanted = checks.count("limit", limit)
        place = None if after is None else checks.cursor(after)
        room = math.inf if max_bytes is None else checks.max_bytes(max_bytes)
        return await self._dead_letters.read(wanted, place, room)

    async def count_dead_letters(self) -> int:
        """Count the dead letters.

        :returns: how many there are
        :raises TorrelqueRedisError: Redis failed
        """
        return await self._ask(self._calls.count_dead_letters())

    async def requeue_dead_letters(self, task_ids: Iterable[str] | None = None) -> int:
        """Give dead letters back to the queue, where they go to the tail, the oldest first.

        Their attempts begin anew; ``dequeue_count`` counts on, for it tells one delivery from another.

        :param task_ids: which ones; by default all that are there when it begins
        :returns: how many were requeued: those that are no dead letters, or no more, do not count
        :raises TorrelqueValueError: an id cannot be one
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueRedisError: Redis failed; what was requeued until then stays so
        """
        ids = checks.encoded_task_ids(task_ids)
        self._check_open()
        return await self._dead_letters.requeue(ids)

    async def purge_dead_letters(self, task_ids: Iterable[str] | None = None) -> int:
        """Remove dead letters for good, with all that is known about them.

        :param task_ids: which ones; by default all that are there when it begins
        :returns: how many were removed: those that are no dead letters, or no more, do not count
        :raises TorrelqueValueError: an id cannot be one
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueRedisError: Redis failed; what was removed until then stays so
        """
        ids = checks.encoded_task_ids(task_ids)
        self._check_open()
        return await self._dead_letters.purge(ids)

    async def check(
        self, *, repair: bool = False, grace: float = 2.0, progress: Callable[[int, int], None] | None = None
    ) -> TorrelqueCheckReport:
        """Look whether each task stands in exactly one place, with its payload and its state; put right what does not.

        For a queue in use: scripts are short, and what seems wrong counts only if it is so again after *grace*, in one
        atomic look, with which it is repaired. A queue that is well is not changed. No task is lost:
        :class:`TorrelqueDamage` tells what becomes of each kind of damage. Memory is needed for the ids of all pending
        tasks, about 200 bytes each. Let one repair run at a time.

        :param repair: put right what is found
        :param grace: seconds between the two looks, 0 or more. Producers that write a task in several steps (not those
            of this library) must be quicker
        :param progress: called now and then with how much has been looked at, and about how much there is
        :returns: what was found
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueRedisError: Redis failed; what was repaired until then stays so
        """
        wait = checks.seconds("grace", grace)
        keep = checks.positive_seconds("result_ttl", self.result_ttl)
        checks.flag("repair", repair)
        if progress is not None:
            checks.function("progress", progress)
        self._check_open()
        terms = Terms(repair, self._lease(), keep, wait, progress)
        return await Audit(self._coalescer, self._calls, terms).run()

    async def inspect_server(self) -> TorrelqueServerReport:
        """Look whether the server is set up to keep what it is given: eviction, persistence, replicas, version, rights.

        Asks for ``INFO`` and a few settings. What the user may not ask for is a finding of its own.

        :returns: what was found
        :raises TorrelqueRedisError: the server cannot be asked
        """
        self._check_open()
        return await self._background.call(lambda: inspect(self._driver, self._in_one_slot))

    @property
    def given_up(self) -> int:
        """How many tasks this object has ended for ``max_attempts`` since it was made."""
        return self._room.given_up

    @property
    def _in_one_slot(self) -> bool:
        return "{" in self.keys["pending"]

    async def _look(self) -> None:
        await self._background.call(lambda: warn(self._driver, self._in_one_slot))

    def watch(self, task_id: str, *, timeout: float | None = None) -> AsyncGenerator[TorrelqueTaskState]:
        """Follow a task: ``async for state in queue.watch(task_id): ...``.

        First comes the present state, then each change of status (changes that follow each other faster than they
        are read may be merged into the latest). It ends when the task is released: after the final state if a
        result was kept, without it otherwise. Nothing is held open between two states. Notifications of Redis are
        hints to read again; the state is also read every 30 seconds, so a lost one only delays.

        :param task_id: the task
        :param timeout: seconds for the whole watch; without limit by default
        :returns: an asynchronous iterator of states, the last one included
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueNotificationsError: ``Redis notify-keyspace-events must include KA or Kgh``
        :raises TorrelqueLookupError: there is no such task
        :raises TorrelqueTimeoutError: the time has passed
        :raises TorrelqueDecodeError: the result cannot be read
        :raises TorrelqueClosedError: the queue was left
        :raises TorrelqueRedisError: Redis failed at the start; later failures are outlived
        """
        return self._watch(task_id, checks.task_id(task_id), checks.timeout("timeout", timeout))

    async def _watch(self, task_id: str, encoded: bytes, timeout: float | None) -> AsyncGenerator[TorrelqueTaskState]:
        self._check_open()
        watcher = await self._watches.open(encoded, timeout)
        try:
            while (fields := await watcher.next()) is not None:
                state = self._decoder.state(task_id, fields)
                yield state
                if state.status.isfinal():
                    return
        finally:
            watcher.close()
            await self._background.settle(lambda: self._hub.settled)

    async def sweep(self) -> tuple[int, int, int]:
        """Give back what has ended, now.

        :returns: ``(stale, due, undequeued)``: tasks whose lease ended, delayed tasks whose time came, and tasks that
            two sweeps found between *pending* and *working*, left there by a consumer that is gone
        :raises TorrelqueRedisError: Redis failed; what went back until then stays so
        """
        self._check_open()
        report, _ = await self._sweeper.sweep_once()
        return report

    async def run_sweep(
        self, interval: float | None = None, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Sweep until cancelled, in the caller's own task group: ``await tg.start(queue.run_sweep)``.

        Every *interval* seconds everything is looked at; leases and delays also at the moment when they end.
        Failures of Redis are logged and outlived.

        :param interval: seconds, at least 0.001; ``self.sweep_interval`` by default
        :param task_status: told that the sweep has begun; ``start`` of a task group or nursery gives it
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        :raises TorrelqueClosedError: the queue was left
        """
        seconds = checks.positive_seconds("interval", self.sweep_interval if interval is None else interval)
        self._check_open()
        self._lease()
        await self._sweeper.run(seconds, task_status=task_status)

    def schedule_sweep(self, interval: float | None = None) -> None:
        """Sweep in the background from now on, as :meth:`run_sweep` does; replaces what was scheduled before.

        :param interval: seconds, at least 0.001; ``self.sweep_interval`` by default
        :raises TorrelqueValueError: an argument is out of range
        :raises TorrelqueTypeError: an argument has the wrong type
        """
        seconds = checks.positive_seconds("interval", self.sweep_interval if interval is None else interval)
        self._check_open()
        self._lease()
        scope = CancelScope()

        async def sweep() -> None:
            with scope, suppress(TorrelqueClosedError):
                await self._sweeper.run(seconds)

        self._background.start_soon(sweep)
        self.unschedule_sweep()
        self._schedule = scope

    def unschedule_sweep(self) -> None:
        """Stop the scheduled sweep; harmless when there is none."""
        scope, self._schedule = self._schedule, None
        if scope is not None:
            scope.cancel()


__all__ = ["SweepReport", "Torrelque"]

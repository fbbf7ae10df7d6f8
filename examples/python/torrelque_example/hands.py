"""The tasks in hand: each is worked on, kept leased meanwhile, and settled, on whatever stream there is by then."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import grpc

from .digest import work
from .events import emit
from .link import Link
from .options import Options
from .stream import Stream, StreamLost
from .waits import Waits
from .wire import pb

#: The task is not ours any more: its work is in vain.
LOST = {"LEASE_LOST", "TASK_NOT_FOUND", "TASK_NOT_WORKING"}
#: Codes of a failed settlement that say nothing about the task: it is sent again.
TRANSIENT = {
    code.value[0] for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN)
}
FINAL = (pb.TASK_STATUS_COMPLETED, pb.TASK_STATUS_REJECTED)


class Refused(Exception):
    """The server will not have the settlement: the task is somebody else's by now, or the result is not acceptable."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False)
class Delivery:
    """One delivery of a task: a later one of the same task is another."""

    task: pb.Task
    #: The stream that brought it, where it counts as outstanding.
    stream: Stream
    #: The work is done, and the server is being told.
    settling: bool = False


class Hands:
    """What has been delivered and not yet settled."""

    def __init__(self, options: Options, link: Link, group: asyncio.TaskGroup) -> None:
        self._options = options
        self._link = link
        self._group = group
        self._slots = asyncio.Semaphore(options.credit)
        self._held: set[Delivery] = set()
        self._stopping = False
        self.released = 0
        #: Nothing is in hand, or something.
        self.empty = asyncio.Event()
        self.busy = asyncio.Event()
        #: Nothing is being worked on, or something.
        self.resting = asyncio.Event()
        self.working = asyncio.Event()
        #: So many were released as were asked for.
        self.enough = asyncio.Event()
        self._changed()

    def allowance(self, stream: Stream | None) -> int:
        """Say how many tasks the stream may have outstanding.

        What another stream brought and is still worked on takes its share. With --until no more are taken than are
        wanted; those being settled count as released, until they are refused.
        """
        if self._stopping:
            return 0
        wanted = self._options.credit
        if self._options.until is not None:
            settling = sum(delivery.settling for delivery in self._held)
            wanted = min(wanted, self._options.until - self.released - settling)
        carried = sum(not delivery.settling and delivery.stream is not stream for delivery in self._held)
        return max(0, wanted - carried)

    def stop(self) -> None:
        """Take no more."""
        self._stopping = True
        self._changed()

    def take(self, stream: Stream, task: pb.Task) -> None:
        """Begin with a task."""
        emit("delivered", task_id=task.task_id, dequeue_count=task.dequeue_count)
        delivery = Delivery(task, stream)
        self._held.add(delivery)
        self._changed()
        self._group.create_task(self._handle(delivery))

    async def _handle(self, delivery: Delivery) -> None:
        """See a task through, from its delivery to the answer to its settlement."""
        task = delivery.task
        try:
            # A lease that is lost ends the group, and with it the work.
            async with asyncio.TaskGroup() as group:
                lease = group.create_task(self._keep_lease(delivery))
                async with self._slots:
                    release = await work(task.payload.data, self._options.hold)
                lease.cancel()
            delivery.settling = True
            self._changed()
            await self._tell(task, release=release)
        except* Refused as group_of_refusals:
            refusal = group_of_refusals.exceptions[0]
            assert isinstance(refusal, Refused)
            emit("refused", task_id=task.task_id, reason=refusal.reason)
        else:
            self.released += 1
            emit("released", task_id=task.task_id, dequeue_count=task.dequeue_count)
        finally:
            self._held.discard(delivery)
            self._changed()

    async def _keep_lease(self, delivery: Delivery) -> None:
        """Extend the lease at half its length, for ever."""
        half = delivery.task.timeout.ToTimedelta().total_seconds() / 2
        stream = delivery.stream
        while True:
            # A stream that ends is noticed: on the next one the lease is extended at once, for time may have passed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(half):
                    await stream.ended.wait()
            stream = await self._tell(delivery.task, extend=pb.ExtendAction())
            emit("extended", task_id=delivery.task.task_id)

    async def _tell(
        self, task: pb.Task, *, release: pb.ReleaseAction | None = None, extend: pb.ExtendAction | None = None
    ) -> Stream:
        """Send a settlement until it is answered, and say on which stream it was done. Raises Refused.

        It is fenced by dequeue_count, so a repeat is harmless.
        """
        settlement = pb.Settlement(
            task_id=task.task_id, dequeue_count=task.dequeue_count, release=release, extend=extend
        )
        waits = Waits()
        in_doubt = False  # it was sent before, and that answer is lost
        while True:
            stream = await self._link.current()
            try:
                error = await stream.settle(settlement)
            except StreamLost as lost:
                in_doubt |= lost.sent
                continue
            if error is None:
                return stream
            if release is not None and in_doubt and _was_released(task, error):
                return stream
            if error.reason in LOST or (release is not None and error.code not in TRANSIENT):
                raise Refused(error.reason)
            in_doubt |= error.reason == "OUTCOME_UNKNOWN"
            await asyncio.sleep(waits.next())

    def _changed(self) -> None:
        """Let those know who wait for it, and the server."""
        working = any(not delivery.settling for delivery in self._held)
        _set(self.empty, not self._held)
        _set(self.busy, bool(self._held))
        _set(self.resting, not working)
        _set(self.working, working)
        _set(self.enough, self._options.until is not None and self.released >= self._options.until)
        if stream := self._link.stream:
            stream.grant(self.allowance(stream))


def _was_released(task: pb.Task, error: pb.ItemError) -> bool:
    """Whether the second of two releases has failed because the first one, whose answer was lost, has done it."""
    if error.reason == "TASK_NOT_FOUND":
        return True
    return error.status in FINAL and error.dequeue_count == task.dequeue_count


def _set(event: asyncio.Event, truth: bool) -> None:
    if truth:
        event.set()
    else:
        event.clear()

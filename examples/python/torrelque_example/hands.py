"""The tasks in hand: each is worked on, kept leased meanwhile, and settled, on whatever stream there is by then."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

import grpc

from .client import CALL_TIMEOUT, open_client
from .digest import work
from .events import emit
from .failures import Failure
from .lease import Lease, LeaseEnds, NotExtended
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
    #: When it came, by the clock of the event loop.
    came: float
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
        delivery = Delivery(task, stream, asyncio.get_running_loop().time())
        emit("delivered", task_id=task.task_id, dequeue_count=task.dequeue_count)
        self._held.add(delivery)
        self._changed()
        self._group.create_task(self._handle(delivery))

    async def _handle(self, delivery: Delivery) -> None:
        """See a task through, from its delivery to the answer to its settlement."""
        task = delivery.task
        lease = Lease(task.timeout.ToTimedelta().total_seconds(), delivery.came)
        said: tuple[str, dict[str, str | int]] = "released", {"dequeue_count": task.dequeue_count}
        try:
            # A lease that is lost ends the group, and with it the work. Then there is nothing to settle any more.
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(lease.keep(partial(self._extend, task)))
                async with self._slots:
                    release = await work(task.payload.data, self._options.hold)
                keeper.cancel()
            delivery.settling = True
            self._changed()
            await self._tell(task, release)
            self.released += 1
        except* Refused as refusals:
            refusal = refusals.exceptions[0]
            assert isinstance(refusal, Refused)
            said = "refused", {"reason": refusal.reason}
        except* LeaseEnds:
            said = "lost", {"dequeue_count": task.dequeue_count}
        finally:
            self._held.discard(delivery)
            self._changed()
        emit(said[0], task_id=task.task_id, **said[1])

    async def _extend(self, task: pb.Task, failed: bool) -> None:
        """Ask once for a whole lease from now. Raises NotExtended, or Refused.

        On the stream, whose server knows then that the task is still in hand. If that does not answer, by a call on a
        connection of its own, for the other one may have died without a word.
        """
        if failed or self._link.stream is None:
            await self._extend_apart(task)
        else:
            await self._extend_on(self._link.stream, task)
        emit("extended", task_id=task.task_id)

    async def _extend_on(self, stream: Stream, task: pb.Task) -> None:
        try:
            error = await stream.settle(
                pb.Settlement(task_id=task.task_id, dequeue_count=task.dequeue_count, extend=pb.ExtendAction())
            )
        except StreamLost as lost:
            raise NotExtended from lost
        if error is not None:
            raise Refused(error.reason) if error.reason in LOST else NotExtended(error.reason)

    async def _extend_apart(self, task: pb.Task) -> None:
        request = pb.ExtendLeaseRequest(
            queue=self._options.queue, task_id=task.task_id, dequeue_count=task.dequeue_count
        )
        try:
            async with open_client(self._options) as client:
                await client.stub.ExtendLease(request, metadata=client.metadata, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            reason = Failure.of(error).reason
            raise Refused(reason) if reason in LOST else NotExtended(reason) from error

    async def _tell(self, task: pb.Task, release: pb.ReleaseAction) -> None:
        """Send a settlement until it is answered. Raises Refused.

        It is fenced by dequeue_count, so a repeat is harmless.
        """
        settlement = pb.Settlement(task_id=task.task_id, dequeue_count=task.dequeue_count, release=release)
        waits = Waits()
        in_doubt = False  # it was sent before, and that answer is lost
        while True:
            stream = await self._link.current()
            try:
                error = await stream.settle(settlement)
            except StreamLost as lost:
                in_doubt |= lost.sent
                continue
            if error is None or (in_doubt and _was_released(task, error)):
                return
            if error.reason in LOST or error.code not in TRANSIENT:
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

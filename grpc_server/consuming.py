"""Consume: tasks are pushed as far as the client's credit goes, and settled on the same stream or anywhere else."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import anyio
import grpc

from torrelque import TorrelqueTaskId, TorrelqueUnavailableError, TorrelqueUnknownOutcomeError

from . import convert
from ._pb import torrelque_pb2 as pb
from .errors import draining, invalid
from .guard import checked
from .house import Visit
from .settling import MAX_SETTLEMENTS, settle
from .taking import MAX_ANSWER, give_back, take
from .watching import MAX_PROGRESS, MIN_PROGRESS

MAX_CREDIT = 10_000
#: Tasks of one delivery.
MAX_DELIVERY = 250
#: So many seconds before the end of the grace a stream is ended.
_EARLY = 0.5
#: So many seconds a client that leaves has for reading what is being written.
_LAST = 1.0
#: About so many seconds between two tries to take tasks while Redis is away.
_PAUSE = 0.5


@dataclass(slots=True)
class Held:
    """A task that was delivered and not settled."""

    task_id: TorrelqueTaskId
    size: int
    expires: float
    """When its lease ends, by the clock of the event loop."""


class Credit:
    """What the client may still be given. Sums only, no I/O."""

    def __init__(self, tasks: int, room: int) -> None:
        self.most = tasks
        self._most_bytes = room or math.inf
        self.held: dict[str, Held] = {}
        self._bytes = 0
        #: No lease ends before.
        self.next_expiry = math.inf
        self._changed = anyio.Event()

    def change(self, tasks: int) -> None:
        """Replace the limit."""
        self.most = tasks
        self._tell()

    @property
    def tasks(self) -> int:
        return max(0, self.most - len(self.held)) if self._bytes < self._most_bytes else 0

    @property
    def room(self) -> int:
        return int(min(MAX_ANSWER, self._most_bytes - self._bytes))

    def add(self, deliveries: Iterable[tuple[TorrelqueTaskId, bytes]], now: float) -> None:
        """Note what is about to be delivered."""
        for task_id, body in deliveries:
            self.forget(task_id)
            expires = now + task_id.task_timeout
            self.held[task_id] = Held(task_id, len(body), expires)
            self._bytes += len(body)
            self.next_expiry = min(self.next_expiry, expires)

    def forget(self, task_id: str) -> None:
        """Give the credit of a task back."""
        held = self.held.pop(str(task_id), None)
        if held is not None:
            self._bytes -= held.size
            self._tell()

    def count(self, task_id: str) -> int | None:
        """Tell the number of the delivery that is held."""
        held = self.held.get(task_id)
        return None if held is None else held.task_id.dequeue_count

    def settled(self, task_id: str, count: int | None) -> None:
        """Give the credit of a delivery back that was settled; an older one holds none here."""
        if count is not None and count == self.count(task_id):
            self.forget(task_id)

    def extended(self, task_id: str, lease: float | None, now: float) -> None:
        """Note that a lease ends later."""
        held = self.held.get(task_id)
        if held is not None:
            held.expires = now + (held.task_id.task_timeout if lease is None else lease)
            self.next_expiry = min(self.next_expiry, held.expires)

    def expire(self, now: float) -> None:
        """Drop the tasks whose leases have ended."""
        if now < self.next_expiry:
            return
        for held in [held for held in self.held.values() if held.expires <= now]:
            self.forget(held.task_id)
        self.next_expiry = min((held.expires for held in self.held.values()), default=math.inf)

    def _tell(self) -> None:
        self._changed.set()

    async def change_within(self, seconds: float) -> None:
        """Wait until something has changed, up to so long."""
        with anyio.move_on_after(None if seconds == math.inf else max(0.0, seconds)):
            await self._changed.wait()
        self._changed = anyio.Event()


class Stream:
    """One Consume stream."""

    def __init__(self, visit: Visit, opened: pb.ConsumeOpen) -> None:
        self._visit = visit
        self.credit = Credit(*_limits(opened))
        self._policy = _policy(opened.disconnect_policy)
        self._progress = convert.seconds(opened, "progress_interval", "open.progress_interval", 0.0, MAX_PROGRESS)
        self._writing = anyio.Lock()
        self._written_at = 0.0
        #: The last delivery that was written to its end.
        self._delivered: pb.ConsumeResponse | None = None
        self._draining = False
        #: When the stream is ended because the server stops.
        self._ends = math.inf
        self._has_taken = False
        self._taking: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Serve the stream until the client has said all, or is gone."""
        house = self._visit.house
        try:
            with house.metrics.showing(self.credit.held), house.drain.told(self._begin_draining):
                async with anyio.create_task_group() as group:
                    opened = pb.ConsumeOpened(consumer_id=secrets.token_hex(8), max_outstanding_tasks=self.credit.most)
                    await self._write(pb.ConsumeResponse(opened=opened))
                    group.start_soon(self._deliver_all)
                    if self._progress:
                        group.start_soon(self._make_progress, max(self._progress, MIN_PROGRESS))
                    await self._read_all()
                    await self._end(group.cancel_scope)
        finally:
            if self._policy == pb.DISCONNECT_POLICY_REQUEUE:
                give_back(self._visit, [held.task_id for held in self.credit.held.values()])

    async def _end(self, scope: anyio.CancelScope) -> None:
        """End the work for the stream, but not amid a write: what the client has read by then would go back."""
        with anyio.move_on_after(_LAST):
            async with self._writing:
                scope.cancel()
        scope.cancel()

    def _begin_draining(self) -> None:
        grace = self._visit.settings.grace
        self._draining = True
        self._ends = anyio.current_time() + grace - min(_EARLY, grace / 4)
        self._stop_taking()
        self.credit.change(self.credit.most)

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()

    async def _write(self, response: pb.ConsumeResponse) -> None:
        async with self._writing:  # one write at a time
            await self._visit.context.write(response)
            self._written_at = anyio.current_time()

    # What comes

    async def _read_all(self) -> None:
        while (request := checked(await self._visit.context.read())) is not grpc.aio.EOF:
            kind = request.WhichOneof("request")
            if kind == "settle":
                await self._settle(request.settle)
            elif kind == "credit":
                self._change_credit(request.credit.max_outstanding_tasks)
            else:
                raise invalid("request", "must be credit or settle; open comes first, and once")

    def _change_credit(self, tasks: int) -> None:
        if not 0 <= tasks <= MAX_CREDIT:
            raise invalid("credit.max_outstanding_tasks", f"must be 0 to {MAX_CREDIT}")
        lowered = tasks < self.credit.most
        self.credit.change(tasks)
        if lowered:  # what waits for tasks may have asked for more than may come now
            self._stop_taking()

    async def _settle(self, message: pb.ConsumeSettle) -> None:
        if len(message.settlements) > MAX_SETTLEMENTS:
            raise invalid("settle.settlements", f"must be at most {MAX_SETTLEMENTS} settlements")
        asked = anyio.current_time()
        # Now, for what is requeued may be delivered here again before all is settled.
        counts = [convert.token(each) or self.credit.count(each.task_id) for each in message.settlements]
        errors = await settle(self._visit, message.settlements)
        self._account(message.settlements, counts, errors, asked)
        await self._write(pb.ConsumeResponse(settled=pb.ConsumeSettled(sequence=message.sequence, errors=errors)))

    def _account(
        self,
        settlements: Sequence[pb.Settlement],
        counts: Sequence[int | None],
        errors: Sequence[pb.ItemError],
        asked: float,
    ) -> None:
        failed = {error.index: error.reason for error in errors}
        for index, (each, count) in enumerate(zip(settlements, counts, strict=True)):
            reason = failed.get(index)
            if each.WhichOneof("action") == "extend" and reason is None:
                self.credit.extended(each.task_id, convert.lease(each.extend), asked)
            elif reason is None or reason in _NOT_HELD:
                self.credit.settled(each.task_id, count)

    # What goes

    async def _deliver_all(self) -> None:
        while not self._draining:
            self.credit.expire(anyio.current_time())
            if not self.credit.tasks:
                await self.credit.change_within(self.credit.next_expiry - anyio.current_time())
                continue
            try:
                tasks = await self._take()
            except (TorrelqueUnavailableError, TorrelqueUnknownOutcomeError):
                # Whoever opens a stream while Redis is away should hear of it. One that is at work need not break off.
                if not self._has_taken:
                    raise
                await anyio.sleep(_PAUSE * (0.5 + random.random() / 2))
                continue
            self._has_taken = True
            await self._deliver(tasks)
        left = max(0.0, self._ends - anyio.current_time())
        await self._write(pb.ConsumeResponse(draining=pb.ConsumeDraining(grace=convert.duration(left))))
        # Who has not left by then hears the reason from us, before gRPC cuts the stream without one.
        await anyio.sleep_until(self._ends)
        raise draining()

    async def _take(self) -> Sequence[tuple[TorrelqueTaskId, bytes]]:
        with anyio.CancelScope() as self._taking:
            try:
                return await take(self._visit, None, min(self.credit.tasks, MAX_DELIVERY), self.credit.room)
            finally:
                self._taking = None
        return []

    async def _deliver(self, tasks: Sequence[tuple[TorrelqueTaskId, bytes]]) -> None:
        fit = max(0, self.credit.most - len(self.credit.held))  # it may have been lowered while they were on their way
        give_back(self._visit, [task_id for task_id, _ in tasks[fit:]])
        tasks = tasks[:fit]
        if not tasks:
            return
        response = pb.ConsumeResponse()
        convert.add_tasks(response.delivery, tasks, self._visit.settings)
        self.credit.add(tasks, anyio.current_time())  # first: a settlement may come before the write returns
        try:
            await self._write_delivery(response)
        finally:
            if self._delivered is response:
                self._visit.house.metrics.delivered.inc(len(tasks))
            else:
                self._take_back([task_id for task_id, _ in tasks])

    async def _write_delivery(self, response: pb.ConsumeResponse) -> None:
        """Write tasks; when the stream ends meanwhile, wait for what becomes of it: the client may have read them."""
        async with self._writing:
            writing = asyncio.ensure_future(self._visit.context.write(response))
            try:
                await asyncio.shield(writing)
            finally:
                if await _succeeded(writing):
                    self._delivered, self._written_at = response, anyio.current_time()

    def _take_back(self, task_ids: Sequence[TorrelqueTaskId]) -> None:
        """Requeue what could not be written."""
        for task_id in task_ids:
            self.credit.forget(task_id)
        give_back(self._visit, task_ids)

    async def _make_progress(self, interval: float) -> None:
        while True:
            silent = anyio.current_time() - self._written_at
            if silent >= interval:
                await self._write(pb.ConsumeResponse(progress=pb.ConsumeProgress()))
                silent = 0.0
            await anyio.sleep(interval - silent)


async def _succeeded(writing: asyncio.Future[None]) -> bool:
    """Tell how a write has ended; gRPC knows that soon, also of one whose call is over."""
    if not writing.done():
        with anyio.move_on_after(_LAST, shield=True):
            await asyncio.wait([writing])
        writing.cancel()
    return writing.done() and not writing.cancelled() and writing.exception() is None


#: A task about which one of these is said is not held by that delivery any more.
_NOT_HELD = {"TASK_NOT_FOUND", "TASK_NOT_WORKING", "LEASE_LOST"}


def _limits(opened: pb.ConsumeOpen) -> tuple[int, int]:
    if not 1 <= opened.max_outstanding_tasks <= MAX_CREDIT:
        raise invalid("open.max_outstanding_tasks", f"must be 1 to {MAX_CREDIT}")
    if opened.max_outstanding_bytes < 0:
        raise invalid("open.max_outstanding_bytes", "must be 0 or more")
    return opened.max_outstanding_tasks, opened.max_outstanding_bytes


def _policy(number: int) -> int:
    if number not in pb.DisconnectPolicy.values():
        raise invalid("open.disconnect_policy", "is no policy that this server knows")
    return number


async def consume(visit: Visit, request: pb.ConsumeRequest) -> None:
    """Serve a stream whose first request was *request*."""
    await Stream(visit, request.open).run()

"""Concurrent calls are joined into one script run: while one is under way, the next batch collects.

A lone caller is served at once, and a crowd shares round trips. No timer is involved unless one is asked for: where
calls come one by one out of a queue that is not seen from here, as they come to a server, a short wait gathers more.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain, islice
from typing import Any

from anyio import sleep

from .background import Background, Runner
from .calls import BOUND, MAX_BYTES, Call, R, Reply, damaged, outcomes
from .drivers import Driver, Signal
from .errors import TorrelqueClosedError, TorrelqueRedisError, fresh

#: So many callers are a crowd, served in two halves: while Redis works for one of them, this process works for the
#: other. For fewer a second round trip costs more than is won.
CROWD = 16


class Slot:
    """A caller's place in a batch: the call, and where its outcome will be."""

    __slots__ = ("call", "done", "error", "reply")

    def __init__(self, call: Call[Any], done: Signal) -> None:
        self.call = call
        self.done = done
        #: The outcome of its one item, a list of those of its items, or the whole answer: as the call says.
        self.reply: Reply = None
        self.error: Exception | None = None


class Coalescer:
    """Takes calls from any number of tasks and runs them in batches, in a task of the queue's own.

    A cancelled caller leaves its slot: what was not sent yet is withdrawn whole, what was sent takes effect whole.

    :param linger: tells for how many seconds a batch waits for more calls, where the one before had several
    """

    def __init__(self, driver: Driver, background: Background, linger: Callable[[], float] = lambda: 0.0) -> None:
        self._driver = driver
        self._linger = linger
        #: When the batch that collects goes out, if it waits for more calls at all: the last ones came in company.
        self._goes_at = 0.0
        self._in_company = False
        self._lane = Runner(background, self._serve_all, self._abandon)
        self._second_lane = Runner(background, self._serve_crowd, self._abandon)
        #: What collects for the next round trip, in order.
        self._next: dict[Slot, None] = {}
        #: Round trips.
        self._under_way = 0

    # These two await nothing themselves: a coroutine around each of a queue's calls is a good part of what it costs.

    def run_many(self, call: Call[R]) -> Awaitable[list[R]]:
        """Run *call* with what others ask for meanwhile; returns the outcome of each of its items.

        :raises TorrelqueRedisError: what the driver says of the run
        """
        return self._submit(call, lambda reply: list(map(call.read, reply if call.count > 1 else [reply])))

    def run(self, call: Call[R]) -> Awaitable[R]:
        """Run a call of one item, or one without items, whose answer is read as a whole."""
        return self._submit(call, call.read)

    async def run_apart(self, call: Call[R]) -> R:
        """Run a call of one item at once, over a connection of its own, which a cancelled caller drops."""
        (reply,) = await self._driver.execute([call], apart=True)
        if isinstance(reply, Exception):
            raise reply
        answers = outcomes(reply) if call.count else [reply]
        if len(answers) != 1:
            raise damaged()
        return call.read(answers[0])

    async def _submit(self, call: Call[Any], read: Callable[[Reply], Any]) -> Any:
        slot = Slot(call, self._driver.signal())
        if not self._next:
            linger = self._linger()
            self._goes_at = self._driver.now() + linger if linger and self._in_company else 0.0
            self._lane.wake()
        self._next[slot] = None
        if len(self._next) == CROWD:
            self._second_lane.wake()
        try:
            await slot.done.wait()
        except BaseException:
            self._next.pop(slot, None)
            raise
        if slot.error is not None:
            raise fresh(slot.error)
        return read(slot.reply)

    async def _serve_all(self) -> float:
        while self._next:
            if self._goes_at:
                await self._wait_for_more()
            if batch := self._take(self._share):  # the second lane may have been quicker
                self._in_company = len(batch) > 1
                await self._serve(batch)
        return math.inf

    async def _wait_for_more(self) -> None:
        # The second lane may take a batch away, and another begin, which waits for its own time.
        while (left := self._goes_at - self._driver.now()) > 0:  # noqa: ASYNC110  an event would end it too early
            await sleep(left)

    async def _serve_crowd(self) -> float:
        while len(self._next) >= CROWD:
            await self._serve(self._take(self._share))
        return math.inf

    @property
    def _share(self) -> int:
        """How many calls to take: all, but of a crowd that comes at once a half, so that its halves return in turns."""
        waiting = len(self._next)
        return waiting // 2 if waiting >= 2 * CROWD and not self._under_way else waiting

    def _take(self, count: int) -> list[Slot]:
        batch = list(islice(self._next, count))
        for slot in batch:
            del self._next[slot]
        return batch

    def _abandon(self, _: BaseException) -> None:
        batch = self._take(len(self._next))
        _settle(batch, TorrelqueClosedError("The queue was closed before the call was sent"))
        _release(batch)

    async def _serve(self, batch: list[Slot]) -> None:
        runs = _join(batch)
        self._under_way += 1
        try:
            replies = await self._driver.execute([_merge(run) for run in runs])
            for run, reply in zip(runs, replies, strict=True):
                _deal(run, reply)
        except TorrelqueRedisError as error:
            _settle(batch, error)
        except BaseException as error:
            _settle(batch, TorrelqueClosedError(f"The queue was closed with the call under way: {error!r}"))
            raise
        finally:
            self._under_way -= 1
            _release(batch)


def _release(slots: Iterable[Slot]) -> None:
    for slot in slots:
        slot.done.set()


def _settle(slots: Iterable[Slot], error: Exception) -> None:
    for slot in slots:
        slot.error = error


def _deal(run: list[Slot], reply: Reply | Exception) -> None:
    if isinstance(reply, Exception):
        _settle(run, reply)
    elif run[0].call.count == 0:
        run[0].reply = reply
    elif len(items := outcomes(reply)) != sum([slot.call.count for slot in run]):
        _settle(run, damaged())
    else:
        left = iter(items)
        for slot in run:
            count = slot.call.count
            slot.reply = next(left) if count == 1 else list(islice(left, count))


def _alike(slots: list[Slot]) -> bool:
    """Whether one script run can serve them all: nearly always so, and quickly seen."""
    script, head = slots[0].call.script, slots[0].call.head
    for slot in slots:
        call = slot.call
        if call.count != 1 or call.script is not script or call.head != head:
            return False
    return len(slots) <= BOUND and sum(map(len, chain.from_iterable([slot.call.items for slot in slots]))) <= MAX_BYTES


def _join(slots: list[Slot]) -> list[list[Slot]]:
    """Group calls that one script run can serve, within the bound on items and bytes."""
    if _alike(slots):
        return [slots]
    runs: list[list[Slot]] = []
    current: dict[tuple[bytes, tuple[bytes, ...]], tuple[list[Slot], list[int]]] = {}
    for slot in slots:
        call = slot.call
        key = (call.script.sha1, call.head)
        size = sum(map(len, call.items))
        found = current.get(key)
        if found is not None and call.count:
            run, room = found
            if room[0] >= call.count and room[1] >= size:
                run.append(slot)
                room[0] -= call.count
                room[1] -= size
                continue
        runs.append([slot])
        current[key] = (runs[-1], [BOUND - call.count, MAX_BYTES - size])
    return runs


def _merge(run: list[Slot]) -> Call[Any]:
    first = run[0].call
    if len(run) == 1:
        return first
    items = tuple(chain.from_iterable([slot.call.items for slot in run]))
    return Call(first.script, first.keys, first.head, items, sum([slot.call.count for slot in run]), first.parse)

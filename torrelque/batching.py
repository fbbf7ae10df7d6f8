"""Concurrent calls are joined into one script run: while one is under way, the next batch collects.

No timer is involved: a lone caller is served at once, and a crowd shares round trips.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

from anyio import Event

from .background import Background, Runner
from .calls import BOUND, MAX_BYTES, Call, R, Reply, outcomes
from .drivers import Driver
from .errors import TorrelqueClosedError, TorrelqueRedisError, fresh
from .scripts import Script


class Batch:
    """Calls that go out together, and the moment when all of them have their outcome."""

    __slots__ = ("done", "slots")

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.done = Event()


class Slot:
    """A caller's place in a batch: the call, and where its outcome will be."""

    __slots__ = ("call", "error", "reply")

    def __init__(self, call: Call[Any]) -> None:
        self.call = call
        self.reply: Reply = None
        self.error: Exception | None = None


class Coalescer:
    """Takes calls from any number of tasks and runs them in batches, in a task of the queue's own.

    A cancelled caller leaves its slot: what was not sent yet is withdrawn whole, what was sent takes effect whole.
    """

    def __init__(self, driver: Driver, background: Background) -> None:
        self._driver = driver
        self._runner = Runner(background, self._serve_all, self._abandon)
        #: What collects for the next round trip.
        self._next: Batch | None = None

    async def run(self, call: Call[R]) -> list[R]:
        """Run *call* with what others ask for meanwhile; returns the outcome of each of its items.

        :raises TorrelqueRedisError: what the driver says of the run
        """
        parse = call.parse
        return [parse(item) for item in outcomes(await self._submit(call))]

    async def run_one(self, call: Call[R]) -> R:
        """Run a call of one item."""
        (item,) = outcomes(await self._submit(call))
        return call.parse(item)

    async def run_whole(self, call: Call[R]) -> R:
        """Run a call without items; its answer is read as a whole."""
        return call.parse(await self._submit(call))

    async def _submit(self, call: Call[Any]) -> Reply:
        slot = Slot(call)
        batch = self._next or self._begin()
        batch.slots.append(slot)
        try:
            await batch.done.wait()
        except BaseException:
            if batch is self._next:
                batch.slots.remove(slot)
            raise
        if slot.error is not None:
            raise fresh(slot.error)
        return slot.reply

    def _begin(self) -> Batch:
        self._runner.wake()
        batch = self._next = Batch()
        return batch

    async def _serve_all(self) -> float:
        while (batch := self._next) is not None:
            self._next = None
            await self._serve(batch)
        return math.inf

    def _abandon(self, _: BaseException) -> None:
        batch, self._next = self._next, None
        if batch is not None:
            _settle(batch.slots, TorrelqueClosedError("The queue was closed before the call was sent"))
            batch.done.set()

    async def _serve(self, batch: Batch) -> None:
        runs = _join(batch.slots)
        try:
            if runs:
                replies = await self._driver.execute([_merge([slot.call for slot in run]) for run in runs])
                for run, reply in zip(runs, replies, strict=True):
                    _deal(run, reply)
        except TorrelqueRedisError as error:
            _settle(batch.slots, error)
        except BaseException as error:
            _settle(batch.slots, TorrelqueClosedError(f"The queue was closed with the call under way: {error!r}"))
            raise
        finally:
            batch.done.set()


def _settle(slots: Iterable[Slot], error: Exception) -> None:
    for slot in slots:
        slot.error = error


def _deal(run: list[Slot], reply: Reply | Exception) -> None:
    if isinstance(reply, Exception):
        _settle(run, reply)
    elif len(run) == 1:
        run[0].reply = reply
    else:
        items = outcomes(reply)
        at = 0
        for slot in run:
            slot.reply = items[at : at + slot.call.count]
            at += slot.call.count


def _join(slots: Iterable[Slot]) -> list[list[Slot]]:
    """Group calls that one script run can serve, within the bound on items and bytes."""
    runs: list[list[Slot]] = []
    current: dict[tuple[Script, tuple[bytes, ...]], tuple[list[Slot], list[int]]] = {}
    for slot in slots:
        call = slot.call
        key = (call.script, call.head)
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


def _merge(calls: list[Call[Any]]) -> Call[Any]:
    first = calls[0]
    if len(calls) == 1:
        return first
    items = tuple(item for call in calls for item in call.items)
    return Call(first.script, first.keys, first.head, items, sum(call.count for call in calls), cast(Any, first.parse))

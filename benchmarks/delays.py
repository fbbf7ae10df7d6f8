"""Jobs: how long until a waiting consumer has what was enqueued, and what has come due."""

from __future__ import annotations

import time

from side import Event, Opened, Side

#: An idle consumer is one that has been waiting for about so many seconds.
_PAUSE = 0.01
#: Delays are spread evenly, from the first one, over so many seconds: the interval of the published package's sweep.
_SPREAD = 1.0
_FIRST = 0.1
_WARM_UP = 5
#: Longer than any wait here, and less than the 5 s after which redis-py gives up a connection that says nothing.
_PATIENCE = 4


async def delivery(side: Side, *, count: int) -> list[float]:
    """Seconds from the call of enqueue to the return of dequeue, for a consumer that waits; one task at a time."""
    async with side.open() as consumer, side.open() as producer, side.background() as start:
        took: list[float] = []
        delivered = side.event()

        async def consume() -> None:
            for _ in range(_WARM_UP + count):
                task_id, enqueued = await consumer.queue.dequeue(_PATIENCE)
                took.append(time.perf_counter() - enqueued)
                await consumer.queue.release(task_id)
                delivered.set()

        start(consume)
        for _ in range(_WARM_UP + count):
            await side.sleep(_PAUSE)
            delivered = side.event()
            await producer.queue.enqueue(time.perf_counter())
            await delivered.wait()
        return took[_WARM_UP:]


async def lateness(side: Side, *, count: int, sweep_interval: float | None) -> list[float]:
    """Seconds by which a waiting consumer gets delayed tasks late, counted from the call of enqueue plus the delay.

    :param sweep_interval: schedule a sweep, for a library that needs one
    """
    async with side.open() as consumer, side.open() as producer, side.background() as start:
        if sweep_interval is not None:
            consumer.queue.schedule_sweep(sweep_interval)
        late: list[float] = []
        finished = side.event()
        start(_consume_late, consumer, count, late, finished)
        for i in range(count):
            delay = _FIRST + _SPREAD * i / count
            await producer.queue.enqueue(time.perf_counter() + delay, delay=delay)
        await finished.wait()
        if sweep_interval is not None:
            consumer.queue.unschedule_sweep()
        return late


async def _consume_late(consumer: Opened, count: int, late: list[float], finished: Event) -> None:
    for _ in range(count):
        task_id, due = await consumer.queue.dequeue(_PATIENCE)
        late.append(time.perf_counter() - due)
        await consumer.queue.release(task_id)
    finished.set()

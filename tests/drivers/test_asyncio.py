"""What is our own on asyncio: one timer for all round trips, and signals that one task waits for."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from torrelque.drivers._asyncio import AsyncioSignal, Deadlines


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def test_late_is_a_timeout() -> None:
    """Each body has its own time, whatever order they begin in, and the time of others does not matter."""
    deadlines = Deadlines()
    ends: dict[float, float] = {}

    async def wait(seconds: float) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"{seconds:g} s"):
            with deadlines.within(seconds):
                await forever()
        ends[seconds] = time.monotonic() - began
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def main() -> None:
        await asyncio.gather(*map(wait, (0.3, 0.1, 0.2)))

    asyncio.run(main())
    assert sorted(ends) == [0.1, 0.2, 0.3]
    # The timer stood at 0.3 when the shorter ones began.
    assert list(ends) == [0.1, 0.2, 0.3]
    assert all(took >= seconds for seconds, took in ends.items())


def test_in_time_is_nothing() -> None:
    """A body that ends in time, by itself or by an error, ends as it would; the timer finds nothing to do."""
    deadlines = Deadlines()

    async def main() -> None:
        with deadlines.within(0.05):
            await asyncio.sleep(0)
        with pytest.raises(KeyError):
            with deadlines.within(0.05):
                raise KeyError
        with deadlines.within(10):
            await asyncio.sleep(0.1)

    asyncio.run(main())


def test_timer_that_had_passed() -> None:
    """On uvloop a timer set for a moment in the past is no real one; the next call begins all the same."""
    deadlines = Deadlines()

    async def main() -> None:
        with deadlines.within(-1), deadlines.within(-2):
            pass

    uvloop.run(main())


def test_cancelled_by_somebody_else() -> None:
    """A cancellation from outside goes through, also one in the same turn as the deadline."""
    deadlines = Deadlines()

    async def body(seconds: float) -> None:
        with deadlines.within(seconds):
            await forever()

    async def main() -> None:
        for seconds in (10, 0.05):
            task = asyncio.ensure_future(body(seconds))
            await asyncio.sleep(0)
            if seconds < 1:
                time.sleep(0.1)  # noqa: ASYNC251  the loop stands still, so that both are due in its next turn
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_another_event_loop() -> None:
    """A loop that ended under a body takes its timer along; the next one has its own."""
    deadlines = Deadlines()

    async def body() -> None:
        with deadlines.within(0.1):
            await forever()

    async def leave() -> None:
        asyncio.ensure_future(body())  # noqa: RUF006  it is left on purpose
        await asyncio.sleep(0)

    async def wait() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(body(), 5)

    asyncio.run(leave())
    asyncio.run(wait())


def test_signal() -> None:
    """Set before or after the wait, once or twice, it is the same; a waiter that was cancelled hears nothing."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        signal = AsyncioSignal(loop=loop)
        signal.set()
        signal.set()
        await signal.wait()
        later = AsyncioSignal(loop=loop)
        loop.call_soon(later.set)
        await later.wait()
        left = AsyncioSignal(loop=loop)

        async def wait() -> None:
            await left.wait()

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()

    asyncio.run(main())

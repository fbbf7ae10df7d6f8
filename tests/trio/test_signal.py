"""The signal on Trio: a parking place for one task."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from torrelque.drivers._trio import TrioSignal

pytestmark = pytest.mark.trio


async def test_set_before_and_after() -> None:
    """Set before or after the wait, once or twice, it is the same."""
    early = TrioSignal()
    early.set()
    early.set()
    await early.wait()
    late = TrioSignal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.wait)
        await trio.testing.wait_all_tasks_blocked()
        late.set()
        late.set()


async def test_a_waiter_that_left() -> None:
    """A cancelled waiter is gone, and the signal that comes then is nobody's."""
    signal = TrioSignal()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(signal.wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    signal.set()


async def test_set_and_cancelled_in_one_turn() -> None:
    """What was set first counts: the waiter goes on and is cancelled at its next checkpoint."""
    signal = TrioSignal()
    went_on = False

    async def wait() -> None:
        nonlocal went_on
        await signal.wait()
        went_on = True
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        signal.set()
        nursery.cancel_scope.cancel()
    assert went_on

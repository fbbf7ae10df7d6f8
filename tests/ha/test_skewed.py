"""The next primary has another clock: nothing is lost, and what waits for a time comes early by the jump or on time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest
from ha.verbs import until_it_works
from support import wait_until
from support.clusters import SERVICE, Site, eventually, open_sentinel

from torrelque import TorrelqueLookupError

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]

HOUR = 3600


@pytest.fixture(params=[HOUR, -HOUR], ids=["ahead", "behind"])
def skew(request: pytest.FixtureRequest) -> int:
    """By how many seconds the clock of the only replica is wrong."""
    return request.param


@pytest.fixture
def site(skew: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for each test: the clocks of a primary and its replica change places only once."""
    with open_sentinel(tmp_path_factory.mktemp("site"), replicas=1, skew=skew) as site:
        yield site


async def fail_over(site: Site, skew: int) -> None:
    """Make the replica the primary when it has all that there is."""
    before = await anyio.to_thread.run_sync(site.replicated, 1)
    leader = site.sentinels[0].admin
    await anyio.to_thread.run_sync(eventually, lambda: leader.execute_command("SENTINEL", "FAILOVER", SERVICE))
    await anyio.to_thread.run_sync(wait_until, lambda: site.primary() is not before, 30)
    (other,) = {*site.nodes} - {before}
    assert abs(other.admin.time()[0] - before.admin.time()[0] - skew) < 30, "its clock is wrong"


async def test_f23_failover_to_a_skewed_replica(open_queue: Any, site: Site, skew: int, name: str) -> None:
    """Put forward by an hour, leases and delays within it end at once, put back, after their whole length; the old
    owner of a lease that has ended is refused, a result is read, and what is far away stays so."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        arrived: dict[str, int] = {}
        await queue.enqueue("kept", task_id="kept")
        await queue.release((await queue.dequeue(5))[0], result="result", result_ttl=3 * HOUR)
        await queue.enqueue("leased", task_id="leased", task_timeout=5)
        held, _ = await queue.dequeue(5)
        await queue.enqueue("delayed", task_id="delayed", delay=10)
        await queue.enqueue("far", task_id="far", delay=2 * HOUR)
        await fail_over(site, skew)

        async def consume() -> None:
            while len(arrived) < 3:
                task_id, _ = await until_it_works(queue.dequeue, 60)
                arrived[str(task_id)] = task_id.dequeue_count
                await until_it_works(partial(queue.release, task_id))

        queue.schedule_sweep(0.3)
        group.start_soon(consume)
        await until_it_works(lambda: queue.enqueue("new", task_id="new"))
        with anyio.fail_after(60):
            while len(arrived) < 3:
                await anyio.sleep(0.01)
        assert arrived == {"new": 1, "leased": 2, "delayed": 1}
        with pytest.raises(TorrelqueLookupError):
            await queue.release(held, strict=True)
        assert (await queue.get_task_state("kept")).result == "result"
        assert tuple(await queue.get_queue_stats()) == (1, 0, 0, 1)
        left = site.primary().admin.zscore(f"{name}:delayed", "far") - site.primary().admin.time()[0]
        expected = 2 * HOUR - max(skew, 0)
        assert expected - 60 < left <= expected + 1
        group.cancel_scope.cancel()

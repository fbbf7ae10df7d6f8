"""The scenarios of this folder are real: the published package 0.9 shows each weakness when it meets one.

It runs in a process of its own, on the same servers. Where these tests fail, a scenario has lost its point.
"""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Server
from support.peer import NOT_JSON, Peer, PeerError, PeerQueue, blocked, frozen, lapse, run_peer, seed, until

from torrelque import TorrelqueQueueStats, TorrelqueTaskStatus

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    """Once is enough: the tested package runs elsewhere."""
    return "asyncio"


@pytest.fixture
def theirs(peer: Peer, name: str) -> PeerQueue:
    """The queue of the test, as the published package sees it."""
    return peer.on(name)


def places(admin: Redis, name: str, task_id: str) -> list[str]:
    """Where an id stands."""
    found = [place for place in ("pending", "dequeueing") if admin.lpos(f"{name}:{place}", task_id) is not None]
    return found + [place for place in ("working", "delayed") if admin.zscore(f"{name}:{place}", task_id) is not None]


async def fails(kind: str, theirs: PeerQueue, timeout: float = 1, **kwargs: Any) -> None:
    """A dequeue ends with an error of that class."""
    with pytest.raises(PeerError) as caught:
        await theirs.dequeue(timeout, **kwargs)
    assert caught.value.kind == kind


async def overrun(theirs: PeerQueue, admin: Redis, name: str) -> str:
    """Dequeue a task, let its lease end and a sweep take it."""
    task_id: str = (await theirs.dequeue(1))[0]
    lapse(admin, name, task_id)
    assert await theirs.sweep() == (1, 0, 0)
    return task_id


async def test_u01_cancelled_dequeues_park_their_tasks(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Some of 200 cancelled dequeues leave their task in `dequeueing`, until the second sweep."""
    with anyio.fail_after(30):
        while not (parked := admin.llen(f"{name}:dequeueing")):
            await theirs.pipeline(*[("enqueue", ["x"], {})] * 200)
            await theirs.start("storm", dequeues=200).result()
    assert await theirs.sweep() == (0, 0, 0)
    assert admin.llen(f"{name}:dequeueing") == parked
    assert await theirs.sweep() == (0, 0, parked)


@pytest.mark.parametrize("bad", [math.nan, "5 minutes"], ids=repr)
async def test_u02_a_bad_lease_loses_the_task(theirs: PeerQueue, admin: Redis, name: str, bad: Any) -> None:
    """The dequeue fails, and the id is in no place any more."""
    task_id = await theirs.enqueue("x", task_timeout=bad)
    await fails("ResponseError", theirs)
    assert places(admin, name, task_id) == []
    assert [await theirs.sweep() for _ in range(3)] == [(0, 0, 0)] * 3


async def test_u03_a_staged_enqueue_is_several_commands(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Without a transaction a consumer in between takes an id with nothing behind it, and the task is lost."""
    (task_id,), queued = await theirs.pipeline(("enqueue", ["x"], {}), transaction=False, execute=False)
    assert queued[0] == ["LPUSH", f"{name}:pending", task_id]
    assert len(queued) > 1
    admin.execute_command(*queued[0])
    await fails("ResponseError", theirs)
    for command in queued[1:]:
        admin.execute_command(*command)
    assert places(admin, name, task_id) == []
    assert [await theirs.sweep() for _ in range(3)] == [(0, 0, 0)] * 3


@pytest.mark.parametrize("value", [0, "", [], {}, False, None], ids=repr)
async def test_u04_a_falsy_payload_is_not_delivered(theirs: PeerQueue, admin: Redis, name: str, value: Any) -> None:
    """The dequeue says that there is no such task, and leaves it working without an owner."""
    task_id = await theirs.enqueue(value)
    await fails("TorrelqueLookupError", theirs)
    assert places(admin, name, task_id) == ["working"]


async def test_u05_a_bad_result_leaves_half_a_release_on_the_pipeline(
    theirs: PeerQueue, admin: Redis, name: str
) -> None:
    """Executed, the pipeline removes the task and leaves its state WORKING for ever."""
    await theirs.enqueue("x")
    task_id, _ = await theirs.dequeue(1)
    returned, queued = await theirs.pipeline(("release", [task_id], {"result": NOT_JSON}))
    assert returned[0].startswith("TypeError")
    assert queued
    assert await theirs.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)
    assert (await theirs.get_task_state(task_id)).status is TorrelqueTaskStatus.WORKING
    assert admin.ttl(f"{name}:task:{task_id}") == -1


@pytest.mark.parametrize("place", ["delayed", "working", "dequeueing"])
async def test_u06_a_long_backlog_ends_all_sweeps(theirs: PeerQueue, admin: Redis, name: str, place: str) -> None:
    """With 9,000 due, stale or parked ids every sweep fails, this one and the next."""
    seed(admin, name, place, 9000)
    for _ in range(2):
        with pytest.raises(PeerError, match="too many results to unpack"):
            await theirs.sweep()


async def test_u07_a_huge_max_tasks_parks_everything(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """The dequeue fails after it has moved all the ids aside."""
    seed(admin, name, "pending", 9000)
    await fails("ResponseError", theirs, max_tasks=9000)
    assert (admin.llen(f"{name}:pending"), admin.llen(f"{name}:dequeueing")) == (0, 9000)


async def test_u08_a_full_server_cannot_be_drained(theirs: PeerQueue, admin: Redis) -> None:
    """At maxmemory neither a dequeue nor a release with a result is possible."""
    await theirs.enqueue("a")
    await theirs.enqueue("b")
    task_id, _ = await theirs.dequeue(1)
    admin.config_set("maxmemory", "1")
    try:
        await fails("OutOfMemoryError", theirs)
        with pytest.raises(PeerError, match="OutOfMemoryError"):
            await theirs.release(task_id, result=1)
    finally:
        admin.config_set("maxmemory", "0")


async def test_u09_the_scheduled_sweep_ends_silently(server: Server, name: str) -> None:
    """After one error that is not Redis' own there is no second sweep."""
    with run_peer(server.url) as peer:
        assert await peer.on(name).start("break_sweep").result() == 1


async def test_u09_schedules_pile_up(server: Server, admin: Redis, name: str) -> None:
    """A second schedule leaves the first one running, and unschedule does not stop it."""
    with run_peer(server.url) as peer:
        theirs = peer.on(name)
        for _ in range(2):
            await theirs.start("schedule_sweep", 0.02).result()
        await theirs.start("unschedule_sweep").result()
        for i in range(3):
            admin.zadd(f"{name}:delayed", {f"late-{i}": 1})
            await until(lambda: not admin.exists(f"{name}:delayed"))


async def test_u10_a_ghost_hurts_its_batch(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """The dequeue raises; the good neighbour stays working without an owner."""
    good = await theirs.enqueue("a")
    admin.lpush(f"{name}:pending", "ghost")
    await fails("ResponseError", theirs, max_tasks=5)
    assert places(admin, name, good) == ["working"]


async def test_u10_an_unreadable_payload_hurts_its_batch(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """The dequeue raises a decoding error that names nobody; all of the batch stay working."""
    ids = [await theirs.enqueue(value) for value in ("a", "bad", "b")]
    admin.hset(f"{name}:tasks", ids[1], b"\xff{")
    await fails("UnicodeDecodeError", theirs, max_tasks=5)
    assert [places(admin, name, task_id) for task_id in ids] == [["working"]] * 3


async def test_u11_a_late_release_leaves_a_ghost(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """The release of a swept task deletes payload and state, and the next dequeue fails."""
    await theirs.enqueue("x")
    late = await overrun(theirs, admin, name)
    await theirs.release(late)
    assert places(admin, name, late) == ["pending"]
    assert not admin.exists(f"{name}:tasks", f"{name}:task:{late}")
    await fails("ResponseError", theirs)


async def test_u12_a_late_owner_disturbs_the_next_delivery(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A's late requeue gives C the task that B works on, and A's late rejection ends it."""
    await theirs.enqueue("x")
    a = await overrun(theirs, admin, name)
    b, _ = await theirs.dequeue(1)
    await theirs.requeue(a)
    c, _ = await theirs.dequeue(1)
    assert a == b == c
    await theirs.release(a, result="late", status=4)
    assert (await theirs.get_task_state(b)).status is TorrelqueTaskStatus.REJECTED


async def test_u13_a_task_requeued_twice_is_held_by_two(theirs: PeerQueue) -> None:
    """The id stands in the queue twice and is delivered twice."""
    task_id = await theirs.enqueue("x")
    await theirs.dequeue(1)
    await theirs.requeue(task_id)
    await theirs.requeue(task_id)
    assert [await theirs.dequeue(1) for _ in range(2)] == [(task_id, "x")] * 2


async def test_u14_a_requeue_of_an_unknown_id_makes_a_ghost(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A broken state without an end appears, and an id that fails the next dequeue."""
    await theirs.requeue("unknown")
    assert places(admin, name, "unknown") == ["pending"]
    assert admin.ttl(f"{name}:task:unknown") == -1
    with pytest.raises(PeerError, match="KeyError"):
        await theirs.get_task_state("unknown")
    await fails("ResponseError", theirs)


async def test_u15_an_ended_task_works_again(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A late result makes a swept task COMPLETED; a dequeue turns that into WORKING, and fails."""
    await theirs.enqueue("x")
    late = await overrun(theirs, admin, name)
    await theirs.release(late, result="late")
    assert (await theirs.get_task_state(late)).status is TorrelqueTaskStatus.COMPLETED
    await fails("TypeError", theirs)
    assert (await theirs.get_task_state(late)).status is TorrelqueTaskStatus.WORKING


async def test_u16_no_lease_can_be_extended(theirs: PeerQueue) -> None:
    """There is nothing to extend a lease with."""
    task_id = await theirs.enqueue("x")
    await theirs.dequeue(1)
    for method in ("extend", "lease"):
        with pytest.raises(PeerError, match="AttributeError"):
            await theirs.start(method, task_id).result()


async def test_u17_a_delivery_that_crashes_early_is_not_counted(
    peer: Peer, theirs: PeerQueue, admin: Redis, server: Server, name: str
) -> None:
    """A consumer that dies with an id in its hands leaves no trace in the counts."""
    with run_peer(server.url) as victim:
        before = blocked(admin)
        victim.on(name).start("dequeue", 30)
        await until(lambda: blocked(admin) == before + 1)
        async with frozen(victim):
            task_id = await theirs.enqueue("poison")
            assert places(admin, name, task_id) == ["dequeueing"]
            victim.close()
    await theirs.sweep()
    assert await theirs.sweep() == (0, 0, 1)
    assert (await theirs.get_task_state(task_id)).dequeue_count == 0


async def test_u18_a_fast_clock_takes_healthy_tasks(theirs: PeerQueue, server: Server, name: str) -> None:
    """A sweeper whose clock is 301 s ahead requeues a task whose lease of 300 s has just begun."""
    await theirs.enqueue("x")
    await theirs.dequeue(1)
    with run_peer(server.url) as fast:
        await fast.on(name).start("skew", seconds=301).result()
        assert await fast.on(name).sweep() == (1, 0, 0)


async def test_u19_two_sweeps_fail_a_live_dequeue(theirs: PeerQueue, admin: Redis, server: Server, name: str) -> None:
    """A waiting dequeue that two sweeps overtake raises that there is no such task."""
    with run_peer(server.url) as slow:
        before = blocked(admin)
        waiting = slow.on(name).start("dequeue", 30)
        await until(lambda: blocked(admin) == before + 1)
        async with frozen(slow):
            await theirs.enqueue("x")
            assert [await theirs.sweep() for _ in range(2)] == [(0, 0, 0), (0, 0, 1)]
        with pytest.raises(PeerError, match="TorrelqueLookupError"):
            await waiting.result()


async def test_u20_a_delay_waits_for_a_sweep(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A dequeue does not see a delayed task that is due."""
    task_id = await theirs.enqueue("x", delay=0.01)
    await fails("TorrelqueTimeoutError", theirs, 0.5)
    assert places(admin, name, task_id) == ["delayed"]


async def test_u21_a_release_between_two_states_is_missed(theirs: PeerQueue) -> None:
    """A watch whose user is busy while the task is released never ends."""
    task_id = await theirs.enqueue("x")
    await theirs.dequeue(1)
    watch = theirs.watch(task_id, hold=True, timeout=0.5)
    await until(lambda: bool(watch.events))
    await theirs.release(task_id)
    await theirs.go(watch)
    with pytest.raises(PeerError, match="TorrelqueTimeoutError"):
        await watch.result()
    assert len(watch.events) == 1


async def test_u22_a_watch_spins(theirs: PeerQueue) -> None:
    """A watch of a task that does not change asks its client for a message all the time."""
    task_id = await theirs.enqueue("x")
    before = await theirs.start("polls").result()
    with pytest.raises(PeerError, match="TorrelqueTimeoutError"):
        await theirs.watch(task_id, timeout=0.5).result()
    assert await theirs.start("polls").result() - before > 100


async def test_u23_a_server_that_refuses_config_cannot_be_watched(peer: Peer, admin: Redis, name: str) -> None:
    """A watch fails where the settings of the server may not be read."""
    admin.execute_command("ACL", "SETUSER", name, "on", ">secret", "~*", "&*", "+@all", "-config")
    try:
        theirs = peer.on(name, username=name, password="secret")
        task_id = await theirs.enqueue("x")
        with pytest.raises(PeerError, match="NoPermissionError"):
            await theirs.watch(task_id, timeout=1).result()
    finally:
        admin.execute_command("ACL", "DELUSER", name)


async def test_u24_a_rejection_without_a_result_is_invisible(theirs: PeerQueue) -> None:
    """The state is gone (this is documented, and so kept)."""
    task_id = await theirs.enqueue("x")
    await theirs.dequeue(1)
    await theirs.release(task_id, status=4)
    with pytest.raises(PeerError, match="TorrelqueLookupError"):
        await theirs.get_task_state(task_id)


async def test_u25_a_fraction_in_result_ttl_keeps_the_state_for_ever(
    theirs: PeerQueue, admin: Redis, name: str
) -> None:
    """The release raises, and has taken effect but for the expiry; 0 drops the result."""
    task_id = await theirs.enqueue("x")
    await theirs.dequeue(1)
    with pytest.raises(PeerError, match="ResponseError"):
        await theirs.release(task_id, result=1, result_ttl=1.5)
    assert (await theirs.get_task_state(task_id)).status is TorrelqueTaskStatus.COMPLETED
    assert admin.ttl(f"{name}:task:{task_id}") == -1
    other = await theirs.enqueue("y")
    await theirs.dequeue(1)
    await theirs.release(other, result=1, result_ttl=0)
    assert not admin.exists(f"{name}:task:{other}")


async def test_u25_a_bad_delay_leaks_the_payload(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """The enqueue raises, and payload and state stay for ever."""
    with pytest.raises(PeerError, match="ResponseError"):
        await theirs.enqueue("x", delay=math.nan)
    (task_id,) = admin.hkeys(f"{name}:tasks")
    assert places(admin, name, task_id) == []
    assert admin.ttl(f"{name}:task:{task_id.decode()}") == -1


async def test_u26_bad_arguments_pass(peer: Peer, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A lease of 0 is 300 s, a negative one is over at once, an infinite one never; dequeue(0) waits."""
    for lease, expected in ((0, (0, 0, 0)), (-5, (1, 0, 0)), (math.inf, (0, 0, 0))):
        task_id = await theirs.enqueue("x", task_timeout=lease)
        assert (await theirs.dequeue(1))[0] == task_id
        ends = admin.zscore(f"{name}:working", task_id)
        assert (ends == math.inf) == (lease == math.inf)
        assert await theirs.sweep() == expected
        admin.delete(f"{name}:working", f"{name}:pending")
    before = blocked(admin)
    waiting = theirs.start("dequeue", 0)
    await until(lambda: blocked(admin) == before + 1)
    await anyio.sleep(0.2)
    assert not waiting.done
    await theirs.cancel(waiting)
    task_id = await theirs.enqueue("x")
    await fails("AttributeError", peer.on(name, decode_responses=True))
    assert places(admin, name, task_id) == ["working"]


async def test_u27_a_lost_answer_makes_a_twin(peer: Peer, lossy: Any, admin: Redis, name: str) -> None:
    """When only the answer is lost, whoever repeats the enqueue, caller or client, puts the task in the queue twice."""
    theirs = peer.on(name, url=lossy.url)
    await theirs.get_queue_stats()
    lossy.marker = b"payload"
    with pytest.raises(PeerError, match="ConnectionError"):
        await theirs.enqueue("payload")
    await theirs.enqueue("payload")
    assert admin.llen(f"{name}:pending") == 2
    retrying = peer.on(name, url=lossy.url, retry_on_timeout=True)
    await retrying.get_queue_stats()
    lossy.marker = b"payload"
    await retrying.enqueue("payload")
    assert admin.llen(f"{name}:pending") == 4


async def test_u30_a_queue_does_not_fit_a_cluster(peer: Peer, cluster: str, name: str) -> None:
    """The keys of a queue lie in several slots."""
    with pytest.raises(PeerError, match=r"CROSSSLOT|same slot|ClusterCrossSlot"):
        await peer.on(name, url=cluster).enqueue("x")


async def test_u31_a_sweep_holds_up_the_server(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """The second sweep of 7,900 parked ids is one script of more than 50 ms, in which nobody else is served."""
    threshold = admin.config_get("slowlog-log-slower-than")["slowlog-log-slower-than"]
    seed(admin, name, "dequeueing", 7900)
    assert await theirs.sweep() == (0, 0, 0)
    admin.slowlog_reset()
    admin.config_set("slowlog-log-slower-than", "50000")
    try:
        assert await theirs.sweep() == (0, 0, 7900)
        assert [entry for entry in admin.slowlog_get() if b"EVAL" in entry["command"].upper()]
    finally:
        admin.config_set("slowlog-log-slower-than", threshold)


async def test_u32_ids_tell_the_machine_and_the_time(theirs: PeerQueue) -> None:
    """An id is a UUID of version 1: two of one process differ in little but the time."""
    ids = [uuid.UUID(await theirs.enqueue("x")) for _ in range(3)]
    assert {task_id.version for task_id in ids} == {1}
    assert len({task_id.node for task_id in ids}) == 1
    assert sorted(ids, key=lambda task_id: task_id.time) == ids


async def test_u34_what_cannot_be_applied_is_no_error(theirs: PeerQueue) -> None:
    """The release and the requeue of unknown tasks return as if they were done."""
    assert await theirs.release("unknown") is None
    assert await theirs.requeue("unknown") is None


async def test_u35_the_default_is_not_strict_json(theirs: PeerQueue, admin: Redis, name: str) -> None:
    """NaN is stored as a word that JSON does not have (the default here too: it is what both packages read)."""
    task_id = await theirs.enqueue(math.nan)
    body = admin.hget(f"{name}:tasks", task_id)
    assert body == b"NaN"
    with pytest.raises(ValueError, match="NaN"):
        json.loads(body, parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))


async def test_u37_every_waiter_has_a_connection(theirs: PeerQueue, admin: Redis) -> None:
    """Ten waiting dequeues are ten blocked connections."""
    before = blocked(admin)
    waiting = [theirs.start("dequeue", 30) for _ in range(10)]
    await until(lambda: blocked(admin) == before + 10)
    for each in waiting:
        await theirs.cancel(each)

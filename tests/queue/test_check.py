"""The audit of a queue: it finds what is wrong, mends it, loses nothing, and leaves a queue alone that is well."""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import anyio
import pytest
from redis import Redis
from support import PAIRS, keyspace, snapshot

from torrelque import (
    Torrelque,
    TorrelqueCheckFinding,
    TorrelqueDamage,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueValueError,
)
from torrelque.calls import Calls, Doubt, Mended
from torrelque.keys import Keys

pytestmark = pytest.mark.anyio

PLACES = ("pending", "dequeueing", "working", "delayed")
SOON = 0.0


class Stored:
    """What is stored of one queue, to be damaged and judged by."""

    def __init__(self, admin: Redis, name: str) -> None:
        self.admin = admin
        self.name = name

    def key(self, what: str) -> str:
        return f"{self.name}:{what}"

    def state(self, task_id: str) -> str:
        return f"{self.name}:task:{task_id}"

    def put(self, place: str, task_id: str, score: Any = None) -> None:
        if place in ("pending", "dequeueing"):
            self.admin.lpush(self.key(place), task_id)
        else:
            now = self.admin.time()[0]
            self.admin.zadd(self.key(place), {task_id: now + 100 if score is None else score})

    def take(self, place: str, task_id: str) -> None:
        if place in ("pending", "dequeueing"):
            self.admin.lrem(self.key(place), 0, task_id)
        else:
            self.admin.zrem(self.key(place), task_id)

    def counts(self) -> dict[str, Counter[str]]:
        """How often each id stands in each place."""
        lists = {place: self.admin.lrange(self.key(place), 0, -1) for place in PLACES[:2]}
        sets = {place: self.admin.zrange(self.key(place), 0, -1) for place in PLACES[2:]}
        return {place: Counter(each.decode() for each in ids) for place, ids in (lists | sets).items()}

    def states(self) -> dict[str, dict[str, str] | None]:
        """All states; ``None`` for one of a foreign type."""
        found: dict[str, dict[str, str] | None] = {}
        for key in self.admin.scan_iter(self.state("*")):
            task_id = key.decode().removeprefix(self.state(""))
            is_hash = self.admin.type(key) == b"hash"
            fields = self.admin.hgetall(key) if is_hash else {}
            found[task_id] = {k.decode(): v.decode() for k, v in fields.items()} if is_hash else None
        return found

    def wrong(self) -> set[str]:
        """Which ids are not as the invariants say: an oracle that knows nothing of the scripts."""
        counts, states = self.counts(), self.states()
        bodies = {task_id.decode() for task_id in self.admin.hkeys(self.key("tasks"))}
        placed = Counter[str]()
        for each in counts.values():
            placed.update(each)
        wrong = set(placed) ^ bodies | {task_id for task_id, n in placed.items() if n > 1}
        for task_id, state in states.items():
            final = state is not None and state.get("status") in ("3", "4")
            if task_id not in bodies and state is not None and (not final or self.admin.ttl(self.state(task_id)) == -1):
                wrong.add(task_id)
        for place, ids in counts.items():
            for task_id in ids:
                wrong |= self._wrong_live(place, task_id, states.get(task_id))
        return wrong

    def _wrong_live(self, place: str, task_id: str, state: dict[str, str] | None) -> set[str]:
        status = {"pending": "0", "dequeueing": "0", "working": "1", "delayed": "2"}[place]
        good = state is not None and state.get("status") == status and self.admin.ttl(self.state(task_id)) == -1
        if state is not None:
            good = good and _number(state.get("timeout", "")) > 0 and _number(state.get("enqueue_time", "")) > 0
            good = good and all(_number(state.get(field, "0")) % 1 == 0 for field in ("dequeue_count", "requeue_count"))
            good = good and all(_number(state.get(f"last_{what}_time", "0")) >= 0 for what in ("dequeue", "requeue"))
        if place in ("working", "delayed"):
            score = self.admin.zscore(self.key(place), task_id)
            good = good and abs(score) < 1e12
        return set() if good else {task_id}


def _number(text: str) -> float:
    """Read a number of a state; one that is none is negative, and no whole number."""
    number = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text) else -0.5
    return number if number < 1e11 else -0.5


@pytest.fixture
def stored(admin: Redis, name: str) -> Stored:
    """The data of the queue of the test."""
    return Stored(admin, name)


async def fill(queue: Torrelque, stored: Stored, count: int = 5) -> dict[str, list[str]]:
    """Put *count* tasks in each place, and some final states; payloads are the ids."""
    ids: dict[str, list[str]] = {}
    for place in ("working", "final", "dequeueing", "pending", "delayed"):
        names = ids[place] = [f"{place}{n}" for n in range(count)]
        await queue.enqueue_many(names, task_ids=names, delay=60 if place == "delayed" else 0)
        if place in ("working", "final"):
            taken = await queue.dequeue(0, max_tasks=count)
            for task_id, _ in taken if place == "final" else ():
                await queue.release(task_id, result=1, strict=True)
        if place == "dequeueing":
            for _ in names:
                stored.admin.lmove(stored.key("pending"), stored.key("dequeueing"), "RIGHT", "LEFT")
    return ids


async def found(queue: Torrelque, **how: Any) -> set[tuple[str, str]]:
    report = await queue.check(grace=SOON, **how)
    return {(finding.task_id, finding.damage.value) for finding in report.findings}


async def test_a_queue_that_is_well(open_queue: Any, stored: Stored) -> None:
    """Tasks in every place, results and notes of a sweep: nothing is found, and a repair changes nothing."""
    async with open_queue() as queue:
        await fill(queue, stored)
        await queue.sweep()
        held, _ = await queue.dequeue(0)
        await queue.extend(held, 86_400)
        before = keyspace(stored.admin)
        report = await queue.check(grace=SOON)
        # Five in each of four places, and again as payloads; and all states, final ones too.
        assert report == (65, [])
        assert report.left == []
        assert (await queue.check(repair=True, grace=SOON)).findings == []
        assert keyspace(stored.admin) == before
        assert stored.wrong() == set()


async def test_an_empty_queue(open_queue: Any, stored: Stored) -> None:
    """There is nothing to look at."""
    async with open_queue() as queue:
        assert await queue.check(repair=True, grace=SOON) == (0, [])
        assert stored.admin.keys(stored.key("*")) == []


#: What is done to a queue of `fill`, what is found then, and what is so after the repair.
Row = tuple[Callable[[Stored], Any], set[tuple[str, str]], Callable[[Stored], bool]]
DAMAGE: dict[str, Row] = {
    "a ghost in pending": (
        lambda s: s.put("pending", "x"), {("x", "ghost")}, lambda s: s.counts()["pending"]["x"] == 0,
    ),
    "a ghost in dequeueing": (
        lambda s: s.put("dequeueing", "x"), {("x", "ghost")}, lambda s: s.counts()["dequeueing"]["x"] == 0,
    ),
    "a ghost in working": (
        lambda s: s.put("working", "x"), {("x", "ghost")}, lambda s: s.counts()["working"]["x"] == 0,
    ),
    "a ghost with a state": (
        lambda s: s.admin.hdel(s.key("tasks"), "delayed1"), {("delayed1", "ghost")},
        lambda s: "delayed1" not in s.states() and s.counts()["delayed"]["delayed1"] == 0,
    ),
    "a ghost in several places": (
        lambda s: [s.put(place, "x") for place in (*PLACES, "pending")], {("x", "ghost")},
        lambda s: not any(ids["x"] for ids in s.counts().values()),
    ),
    "a final id that is pending": (
        lambda s: s.put("pending", "final1"), {("final1", "leftover")}, lambda s: s.states()["final1"]["result"] == "1",
    ),
    "an orphan of pending": (
        lambda s: s.take("pending", "pending1"), {("pending1", "orphan")},
        lambda s: s.counts()["pending"]["pending1"] == 1 and s.states()["pending1"]["requeue_count"] == "1",
    ),
    "an orphan of working": (
        lambda s: s.take("working", "working1"), {("working1", "orphan")},
        lambda s: s.counts()["pending"]["working1"] == 1 and s.states()["working1"]["dequeue_count"] == "1",
    ),
    "an orphan of delayed, without a state": (
        lambda s: (s.take("delayed", "delayed1"), s.admin.delete(s.state("delayed1"))), {("delayed1", "orphan")},
        lambda s: s.counts()["pending"]["delayed1"] == 1 and s.states()["delayed1"]["timeout"] == "300",
    ),
    "a payload of a final task": (
        lambda s: s.admin.hset(s.key("tasks"), "final1", "1"), {("final1", "leftover")},
        lambda s: not s.admin.hexists(s.key("tasks"), "final1") and s.states()["final1"]["status"] == "3",
    ),
    "a payload of a final task, whose state does not expire": (
        lambda s: (s.admin.hset(s.key("tasks"), "final1", "1"), s.admin.persist(s.state("final1"))),
        {("final1", "leftover"), ("final1", "expiry")},
        lambda s: not s.admin.hexists(s.key("tasks"), "final1") and 3590 < s.admin.ttl(s.state("final1")) <= 3600,
    ),
    "a state of no task": (
        lambda s: s.admin.hset(s.state("x"), "status", "1"), {("x", "leftover")}, lambda s: "x" not in s.states(),
    ),
    "twice in pending": (
        lambda s: s.put("pending", "pending1"), {("pending1", "twice")},
        # The older one stays.
        lambda s: s.admin.lrange(s.key("pending"), 0, -1) == [b"pending%d" % n for n in (4, 3, 2, 1, 0)],
    ),
    "twice in dequeueing": (
        lambda s: s.put("dequeueing", "dequeueing1"), {("dequeueing1", "twice")},
        lambda s: s.admin.lrange(s.key("dequeueing"), 0, -1) == [b"dequeueing%d" % n for n in (4, 3, 2, 1, 0)],
    ),
    "working and pending": (
        lambda s: s.put("pending", "working1"), {("working1", "twice")},
        lambda s: s.counts()["working"]["working1"] == 1 and s.counts()["pending"]["working1"] == 0,
    ),
    "pending and working": (
        lambda s: s.put("working", "pending1"), {("pending1", "twice"), ("pending1", "status")},
        lambda s: s.counts()["working"]["pending1"] == 1 and s.states()["pending1"]["status"] == "1",
    ),
    "pending and delayed": (
        lambda s: s.put("delayed", "pending1"), {("pending1", "twice")},
        lambda s: s.counts()["pending"]["pending1"] == 1 and s.counts()["delayed"]["pending1"] == 0,
    ),
    "delayed and pending": (
        lambda s: s.put("pending", "delayed1"), {("delayed1", "twice")},
        lambda s: s.counts()["delayed"]["delayed1"] == 1 and s.counts()["pending"]["delayed1"] == 0,
    ),
    "pending and dequeueing": (
        lambda s: s.put("dequeueing", "pending1"), {("pending1", "twice")},
        lambda s: s.counts()["pending"]["pending1"] == 1 and s.counts()["dequeueing"]["pending1"] == 0,
    ),
    "a wrong status": (
        lambda s: s.admin.hset(s.state("pending1"), "status", "1"), {("pending1", "status")},
        lambda s: s.states()["pending1"]["status"] == "0",
    ),
    "a status that is none": (
        lambda s: s.admin.hset(s.state("working1"), "status", "x"), {("working1", "status")},
        lambda s: s.states()["working1"]["status"] == "1",
    ),
    "no state": (
        lambda s: s.admin.delete(s.state("working1")), {("working1", "state")},
        lambda s: s.states()["working1"]["status"] == "1" and s.states()["working1"]["timeout"] == "300",
    ),
    "a state of a foreign type": (
        lambda s: (s.admin.delete(s.state("delayed1")), s.admin.set(s.state("delayed1"), "x")), {("delayed1", "state")},
        lambda s: s.states()["delayed1"]["status"] == "2",
    ),
    **{
        f"{field} = {junk!r}": (
            lambda s, field=field, junk=junk: s.admin.hset(s.state("working1"), field, junk), {("working1", "state")},
            lambda s: "working1" not in s.wrong(),
        )
        for field in ("timeout", "enqueue_time", "dequeue_count", "requeue_count", "last_dequeue_time")
        for junk in ("", "x", "nan", "inf", "-1", "0x10", " 5", "1e999")
    },
    "a fraction of a delivery": (
        lambda s: s.admin.hset(s.state("working1"), "dequeue_count", "2.5"), {("working1", "state")},
        lambda s: s.states()["working1"]["dequeue_count"] == "2",
    ),
    "a lease without an end": (
        lambda s: s.put("working", "working1", "+inf"), {("working1", "score")},
        lambda s: abs(s.admin.zscore(s.key("working"), "working1") - s.admin.time()[0] - 300) < 5,
    ),
    "a lease that has ended for ever": (
        lambda s: s.put("working", "working1", "-inf"), {("working1", "score")},
        lambda s: abs(s.admin.zscore(s.key("working"), "working1") - s.admin.time()[0]) < 5,
    ),
    "a lease of a clock that was ahead": (
        lambda s: s.put("working", "working1", s.admin.time()[0] + 7500), {("working1", "score")},
        lambda s: abs(s.admin.zscore(s.key("working"), "working1") - s.admin.time()[0] - 300) < 5,
    ),
    "a delay without an end": (
        lambda s: s.put("delayed", "delayed1", 1e300), {("delayed1", "score")},
        lambda s: abs(s.admin.zscore(s.key("delayed"), "delayed1") - s.admin.time()[0]) < 5,
    ),
    "a live state that would expire": (
        lambda s: s.admin.expire(s.state("pending1"), 100), {("pending1", "expiry")},
        lambda s: s.admin.ttl(s.state("pending1")) == -1,
    ),
    "a final state that does not": (
        lambda s: s.admin.persist(s.state("final1")), {("final1", "expiry")},
        lambda s: 3590 < s.admin.ttl(s.state("final1")) <= 3600,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage(open_queue: Any, stored: Stored, what: str) -> None:
    """Each kind is found, as what it is, and nothing else; looking changes nothing; the repair puts it right."""
    damage, expected, mended = DAMAGE[what]
    async with open_queue() as queue:
        await fill(queue, stored)
        damage(stored)
        before = keyspace(stored.admin)
        report = await queue.check(grace=SOON)
        assert {(finding.task_id, finding.damage.value) for finding in report.findings} == expected
        assert report.left == report.findings
        assert keyspace(stored.admin) == before
        assert stored.wrong() == {task_id for task_id, _ in expected} or not mended(stored)
        report = await queue.check(repair=True, grace=SOON)
        assert {finding.task_id for finding in report.findings} == {task_id for task_id, _ in expected}
        assert report.left == []
        assert mended(stored)
        assert stored.wrong() == set()
        snapshot(stored.admin, stored.name).check()
        assert await found(queue) == set()


async def test_a_structure_of_a_foreign_type(open_queue: Any, stored: Stored) -> None:
    """It is named and left alone, and nothing is taken for an orphan because of it."""
    async with open_queue() as queue:
        await fill(queue, stored)
        stored.admin.delete(stored.key("pending"))
        stored.admin.set(stored.key("pending"), "a string")
        before = keyspace(stored.admin)
        report = await queue.check(repair=True, grace=SOON)
        assert report.left == [TorrelqueCheckFinding(TorrelqueDamage.TYPE, "pending", repaired=False)]
        assert keyspace(stored.admin) == before
        stored.admin.delete(stored.key("pending"))
        assert len((await queue.check(repair=True, grace=SOON)).findings) == 5
        snapshot(stored.admin, stored.name).check()


async def test_a_queue_whose_name_goes_on(open_queue: Any, stored: Stored) -> None:
    """The keys of a queue `q:task`, which others may have, look like states of `q`, and are none of its business."""
    async with open_queue() as queue, open_queue(f"{stored.name}:other") as other:
        await fill(other, Stored(stored.admin, f"{stored.name}:other"))
        for key in stored.admin.keys(stored.key("other:*")):
            stored.admin.rename(key, key.replace(b":other:", b":task:", 1))
        before = keyspace(stored.admin)
        assert (await queue.check(repair=True, grace=SOON)).findings == []
        assert keyspace(stored.admin) == before


async def test_half_a_write_is_no_damage(open_queue: Any, stored: Stored) -> None:
    """A producer that writes id, state and payload one after the other is given the grace to finish (U3)."""
    async with open_queue() as queue:
        for place in ("pending", "dequeueing", "delayed"):
            stored.put(place, "slow")
            before = keyspace(stored.admin)
            async with anyio.create_task_group() as group:

                async def check() -> None:
                    assert (await queue.check(repair=True, grace=0.5)).findings == []

                async def finish(place: str = place, before: Any = before) -> None:
                    while stored.admin.memory_usage(stored.key(place)) is None:
                        await anyio.sleep(0.005)
                    await anyio.sleep(0.2)
                    assert keyspace(stored.admin) == before, "the repair has not waited"
                    status = {"delayed": 2}.get(place, 0)
                    stored.admin.hset(
                        stored.state("slow"), mapping={"status": status, "timeout": 300, "enqueue_time": 1}
                    )
                    stored.admin.hset(stored.key("tasks"), "slow", "1")

                group.start_soon(check)
                group.start_soon(finish)
            assert stored.counts()[place]["slow"] == 1
            stored.admin.delete(*stored.admin.keys(stored.key("*")))


def damage_by_chance(stored: Stored, ids: dict[str, list[str]], chance: random.Random) -> None:
    """Do something to a queue that none of its users does."""
    live = [task_id for place in PLACES for task_id in ids[place]]
    task_id = chance.choice([*live, *ids["final"], f"x{chance.randrange(5)}"])
    place = chance.choice(PLACES)
    score = chance.choice([None, None, "+inf", "-inf", 1e300])
    field = chance.choice(["status", "timeout", "enqueue_time", "dequeue_count", "requeue_count", "last_requeue_time"])
    chance.choice(
        [
            lambda: stored.put(place, task_id, score),
            lambda: stored.put(place, task_id, score),
            lambda: stored.take(place, task_id),
            lambda: [stored.take(each, task_id) for each in PLACES],
            lambda: stored.admin.hdel(stored.key("tasks"), task_id),
            lambda: stored.admin.hset(stored.key("tasks"), task_id, "1"),
            lambda: stored.admin.delete(stored.state(task_id)),
            lambda: stored.admin.delete(stored.state(task_id)) and stored.admin.set(stored.state(task_id), "1"),
            lambda: (
                stored.admin.type(stored.state(task_id)) == b"hash"
                and stored.admin.hset(
                    stored.state(task_id), field, chance.choice(["", "x", "-1", "nan", "9", "0", "3"])
                )
            ),
            lambda: stored.admin.expire(stored.state(task_id), 100),
            lambda: stored.admin.persist(stored.state(task_id)),
        ]
    )()


@pytest.mark.parametrize("seed", range(12))
async def test_random_damage(open_queue: Any, stored: Stored, seed: int) -> None:
    """Whatever was done: it is found, after the repair the queue is well, and what could be delivered is."""
    chance = random.Random(seed)
    async with open_queue() as queue:
        ids = await fill(queue, stored, chance.choice([2, 10, 40]))
        for _ in range(chance.choice([1, 3, 10, 40])):
            damage_by_chance(stored, ids, chance)
        wrong, states = stored.wrong(), stored.states()
        bodies = {task_id.decode() for task_id in stored.admin.hkeys(stored.key("tasks"))}
        ended = {task_id for task_id, state in states.items() if state and state.get("status") in ("3", "4")}
        before = keyspace(stored.admin)
        assert {task_id for task_id, _ in await found(queue)} == wrong
        assert keyspace(stored.admin) == before
        assert {task_id for task_id, _ in await found(queue, repair=True)} == wrong
        assert stored.wrong() == set()
        assert await found(queue) == set()
        snapshot(stored.admin, stored.name).check()
        assert {task_id.decode() for task_id in stored.admin.hkeys(stored.key("tasks"))} == bodies - ended
        # And it works: all comes out, once.
        for place in ("working", "delayed"):
            for task_id in stored.counts()[place]:
                stored.put(place, task_id, 1)
        await queue.sweep()
        await queue.sweep()
        got = [str(task_id) for task_id, _ in await queue.dequeue(0, max_tasks=1000)] if bodies - ended else []
        assert sorted(got) == sorted(bodies - ended)


@pytest.mark.parametrize("place", ["pending", "dequeueing"])
@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_in_a_long_list(open_queue: Any, stored: Stored, place: str) -> None:
    """At the ends of a list too long to be searched and in its middle: found, mended, and no other is lost."""
    names = [f"t{n}" for n in range(42_000)]
    ends = (100, 21_000, 41_900)
    async with open_queue() as queue:
        await queue.enqueue_many(names, task_ids=names)
        if place == "dequeueing":
            stored.admin.rename(stored.key("pending"), stored.key("dequeueing"))
        expected = set()
        for at in ends:
            for n, task_id in enumerate((f"ghost{at}", names[at - 7], names[at + 3])):
                stored.admin.linsert(stored.key(place), "BEFORE", names[at + n], task_id)
                expected.add((task_id, "twice" if n else "ghost"))
            stored.take(place, names[at - 50])
            expected.add((names[at - 50], "orphan"))
        assert await found(queue) == expected
        assert await found(queue, repair=True) == expected
        put_back = {names[at - 50] for at in ends}
        listed = [task_id.decode() for task_id in reversed(stored.admin.lrange(stored.key(place), 0, -1))]
        assert sorted({*listed, *put_back}) == sorted(names)
        assert len(listed) == len(names) - (3 if place == "dequeueing" else 0)
        assert {task_id for task_id in put_back if stored.counts()["pending"][task_id] == 1} == put_back
        assert await found(queue) == set()
        # Order is kept, but that in the middle of a long list the latest tasks take the places of what was cut out; and
        # three tasks stand where they were put a second time, nearer to the consumers.
        number = {task_id: n for n, task_id in enumerate(names)}
        order = [number[task_id] for task_id in listed if task_id not in put_back]
        assert sum(a > b for a, b in pairwise(order)) <= 3 + 9


async def test_under_load(open_queue: Any, stored: Stored) -> None:
    """Repairs in a loop beside producers, sweeps, and workers that requeue and are cancelled: nothing is done."""
    total, done = 3000, Counter[int]()
    chance = random.Random(7)
    rounds = 0
    async with open_queue() as queue, open_queue() as other:

        async def produce(first: int) -> None:
            for n in range(first, total, 20):
                await queue.enqueue_many(range(n, n + 10), delay=chance.choice([None, None, 0.01, 0.1]))

        async def work(mine: Torrelque) -> None:
            while sum(done.values()) < total:
                with anyio.move_on_after(chance.random() / 50):
                    tasks = await mine.dequeue(0.2, max_tasks=chance.choice([2, 10]))
                    with anyio.CancelScope(shield=True):
                        for task_id, n in tasks:
                            if chance.random() < 0.2:
                                await mine.requeue(task_id, chance.choice([None, 0.01]), strict=True)
                            else:
                                await mine.release(task_id, result=chance.choice([None, 1]), strict=True)
                                done[n] += 1

        async def work_on(mine: Torrelque) -> None:
            while sum(done.values()) < total:
                with contextlib.suppress(TorrelqueTimeoutError):
                    await work(mine)

        async def check() -> None:
            nonlocal rounds
            while sum(done.values()) < total:
                report = await other.check(repair=True, grace=SOON)
                assert report.findings == []
                rounds += 1

        other.schedule_sweep(0.05)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(produce, 0)
                group.start_soon(produce, 10)
                for each in (queue, queue, other):
                    group.start_soon(work_on, each)
                group.start_soon(check)
        other.unschedule_sweep()
        assert rounds > 5
        assert done == Counter(range(total))
        assert (await queue.get_queue_stats()).tasks == 0
        assert stored.wrong() == set()


async def test_bad_arguments(open_queue: Any, stored: Stored) -> None:
    """They are refused by name before anything is looked at."""
    async with open_queue() as queue:
        for grace in (-1, float("nan"), float("inf")):
            with pytest.raises(TorrelqueValueError, match="grace"):
                await queue.check(grace=grace)
        for bad in ("2", True, None):
            with pytest.raises(TorrelqueTypeError, match="grace"):
                await queue.check(grace=bad)
        with pytest.raises(TorrelqueTypeError, match="repair"):
            await queue.check(repair="yes")
        assert stored.admin.keys(stored.key("*")) == []


async def test_progress_is_told(open_queue: Any, stored: Stored) -> None:
    """How much is done only grows, up to all that there is."""
    async with open_queue() as queue:
        await fill(queue, stored, 200)
        told: list[tuple[int, int]] = []
        await queue.check(grace=SOON, progress=lambda done, of: told.append((done, of)))
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert len({of for _, of in told}) == 1
        assert 1600 <= told[-1][0] <= told[-1][1]


def run(stored: Stored, call: Any) -> Any:
    """Run one script of the audit alone."""
    arguments = (*call.keys, *call.head, *call.items)
    return call.parse(stored.admin.eval(call.script.text, len(call.keys), *arguments))


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_nowhere_must_be_proven(open_queue: Any, stored: Stored) -> None:
    """An id that no walk has met is an orphan only if it is at no end of the lists, and its state is what it was."""
    calls = Calls(Keys(stored.name))
    names = [f"t{n}" for n in range(1200)]
    async with open_queue() as queue:
        await queue.enqueue_many(names, task_ids=names)
        for _ in range(600):
            stored.admin.lmove(stored.key("pending"), stored.key("dequeueing"), "RIGHT", "LEFT")
        stored.take("pending", "t900")
        doubts = [Doubt(task_id.encode(), b"orphan") for task_id in ("t300", "t900", "t1100")]
        states = [state for _, state in run(stored, calls.look(doubts))]
        before = stored.counts(), stored.states()
        # Without what the states were, or with what they are no more, nothing is proven.
        for known in ([b""] * 3, [b"1" + state[1:] for state in states]):
            guesses = [Doubt(doubt.task_id, b"orphan", state) for doubt, state in zip(doubts, known, strict=True)]
            assert [words for words, _ in run(stored, calls.look(guesses))] == [b"", b"", b""]
            assert run(stored, calls.mend(guesses, 300, 60)) == Mended((0, 0), [b"", b"", b""])
        assert (stored.counts(), stored.states()) == before
        proven = [Doubt(doubt.task_id, b"orphan", state) for doubt, state in zip(doubts, states, strict=True)]
        assert run(stored, calls.mend(proven, 300, 60)) == Mended((0, 0), [b"", b"orphan", b""])
        assert stored.wrong() == set()


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_cut_out_of_the_head_and_the_middle(open_queue: Any, stored: Stored) -> None:
    """What stands at the head of a long list and in its middle is cut out of both, and nothing else is lost."""
    calls = Calls(Keys(stored.name))
    names = [f"t{n}" for n in range(45_000)]
    for place in (22_400, 22_300, 0):
        names.insert(place, "x")
    async with open_queue() as queue:
        await queue.enqueue("x", task_id="x")
        stored.admin.delete(stored.key("pending"))
        stored.admin.rpush(stored.key("pending"), *names)
        mended = run(stored, calls.mend([Doubt(b"x", b"twice")], 300, 60, ([0, 22_250], [])))
        assert mended == Mended((2, 0), [b"twice"])
        left = stored.admin.lrange(stored.key("pending"), 0, -1)
        assert Counter(left) == Counter(task_id.encode() for task_id in {*names})


def crowd(where: str) -> tuple[list[str], list[str]]:
    """Name many tasks, and say how they stand in a list with 901 copies of x among them."""
    others = [f"t{n}" for n in range(36_000 if where == "apart" else 2000)]
    copies = ["x"] * 901
    match where:
        case "left":
            return others, copies + others
        case "right":
            return others, others + copies
        case "amidst":
            return others, others[:1000] + copies + others[1000:]
        case _:
            apart = [each for n in range(0, 36_000, 40) for each in ("x", *others[n : n + 40])]
            return others, [*apart, "x"]


async def lay_out(queue: Any, stored: Stored, listed: list[str], place: str = "pending") -> None:
    """Enqueue what is listed, and let a list hold the ids just so."""
    names = list(dict.fromkeys(listed))
    await queue.enqueue_many(names, task_ids=names)
    stored.admin.delete(stored.key("pending"))
    stored.admin.rpush(stored.key(place), *listed)


@pytest.mark.parametrize("place", ["pending", "dequeueing"])
@pytest.mark.parametrize("where", ["left", "right", "amidst", "apart"])
@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_hundreds_of_copies(open_queue: Any, stored: Stored, where: str, place: str) -> None:
    """Of 901 copies of an id exactly one is left, wherever they stand, when the report says that it was put right."""
    others, listed = crowd(where)
    async with open_queue() as queue:
        await lay_out(queue, stored, listed, place)
        assert await found(queue) == {("x", "twice")}
        report = await queue.check(repair=True, grace=SOON)
        assert report.findings == [TorrelqueCheckFinding(TorrelqueDamage.TWICE, "x", repaired=True)]
        assert stored.counts()[place] == Counter([*others, "x"])
        assert await found(queue) == set()


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_copies_between_copies(open_queue: Any, stored: Stored) -> None:
    """Also who stands before and behind hundreds of copies that are cut out is found, and left in one place."""
    others, listed = crowd("apart")
    listed = [*others[:2000], "y", *listed[2050:], "y"]
    names = {*listed}
    async with open_queue() as queue:
        await lay_out(queue, stored, listed)
        expected = {("x", "twice"), ("y", "twice")}
        assert await found(queue) == expected
        assert await found(queue, repair=True) == expected
        assert stored.counts()["pending"] == Counter(names)
        assert await found(queue) == set()


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_half_a_repair_is_none(open_queue: Any, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where some copies were cut out, and others could not be followed, nothing is said to be put right."""
    monkeypatch.setattr("torrelque.auditing.WALKS", 1)
    others, listed = crowd("apart")
    listed = ["y", *others[:2000], "y", *listed[2050:], "y"]
    names = {*listed}
    async with open_queue() as queue:
        await lay_out(queue, stored, listed)
        report = await queue.check(repair=True, grace=SOON)
        assert {finding.task_id for finding in report.findings} == {"x", "y"}
        assert report.left == [TorrelqueCheckFinding(TorrelqueDamage.TWICE, "y", repaired=False)]
        assert stored.counts()["pending"]["y"] == 2
        assert (await queue.check(repair=True, grace=SOON)).left == []
        assert stored.counts()["pending"] == Counter(names)


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_half_a_repair_of_two_lists_is_none(
    open_queue: Any, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id of which a copy was cut out of one list, and another could not be followed, stands in the other as well."""
    monkeypatch.setattr("torrelque.auditing.WALKS", 1)
    others = [f"t{n}" for n in range(1400)]
    dequeueing = [*["y"] * 100, *others[:600], "x", *others[600:640], "x", *others[640:800]]
    pending = [*others[800:], "x"]
    async with open_queue() as queue:
        await queue.enqueue_many([*others, "x", "y"], task_ids=[*others, "x", "y"])
        stored.admin.delete(stored.key("pending"))
        stored.admin.rpush(stored.key("pending"), *pending)
        stored.admin.rpush(stored.key("dequeueing"), *dequeueing)
        report = await queue.check(repair=True, grace=SOON)
        assert {finding.task_id for finding in report.findings} == {"x", "y"}
        assert {finding.task_id for finding in report.left} >= stored.wrong()
        assert "x" in stored.wrong()
        assert (await queue.check(repair=True, grace=SOON)).left == []
        assert stored.wrong() == set()


@pytest.mark.parametrize("repair", [False, True], ids=["look", "repair"])
@pytest.mark.parametrize("where", ["left", "apart"])
@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_scripts_read_a_bounded_part(open_queue: Any, stored: Stored, where: str, repair: bool) -> None:
    """However many copies of an id there are, no script of a check reads more than a small part of a list."""
    _, listed = crowd(where)
    async with open_queue() as queue:
        await lay_out(queue, stored, listed)
        with stored.admin.monitor() as monitor:
            await queue.check(repair=repair, grace=SOON)
            stored.admin.echo("end")
            most, reads = read_by_scripts(monitor, len(listed))
        assert reads > len(listed) / 300
        assert most <= 1000


def read_by_scripts(monitor: Any, length: int) -> tuple[int, int]:
    """Say how many ids one script has read at most of a list that is so long, and how often scripts have read."""
    reads = most = here = 0
    while (seen := monitor.next_command())["command"] != "ECHO end":
        if seen["client_type"] != "lua":
            here = 0
        elif seen["command"].upper().startswith("LRANGE "):
            first, last = (int(index) for index in seen["command"].split()[-2:])
            here += max(0, min(length, last + 1 if last >= 0 else length) - first)
            reads += 1
        most = max(most, here)
    return most, reads


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_a_place_that_is_named_often(open_queue: Any, stored: Stored) -> None:
    """An id that stands in a list once is not taken for another of itself, however often its place is named."""
    calls = Calls(Keys(stored.name))
    names = [f"t{n}" for n in range(1200)]
    async with open_queue() as queue:
        await queue.enqueue_many(names, task_ids=names)
        before = stored.counts(), stored.states()
        for starts in ([0] * 901, [*range(901)], [600] * 20):
            doubts = [Doubt(name.encode(), b"twice") for name in names[300:1100]]
            assert not any(words for words, _ in run(stored, calls.look(doubts, (starts, []))))
            assert run(stored, calls.mend(doubts, 300, 60, (starts, []))).cut == (0, 0)
        assert (stored.counts(), stored.states()) == before


@pytest.mark.parametrize("pair", PAIRS[-1:], ids=str)
async def test_only_what_was_doubted_is_mended(open_queue: Any, stored: Stored) -> None:
    """What a first look has not found is left to the next check: nothing is believed that is seen once."""
    calls = Calls(Keys(stored.name))
    async with open_queue() as queue:
        await fill(queue, stored)
        stored.put("working", "x")
        stored.put("working", "working1", "+inf")
        before = keyspace(stored.admin)
        doubts = [Doubt(b"x", b"twice"), Doubt(b"working1", b"status")]
        assert run(stored, calls.mend(doubts, 300, 60)).words == [b"", b""]
        assert keyspace(stored.admin) == before

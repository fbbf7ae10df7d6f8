"""Each script alone on a real server: what was stored, what was asked, what is stored then, what was answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from redis import Redis

from torrelque.calls import BOUND
from torrelque.keys import Keys
from torrelque.scripts import (
    ALL,
    COUNT_DEAD_LETTERS,
    DEAD_LETTERS,
    DEQUEUE,
    ENQUEUE,
    EXTEND,
    HANDBACK,
    LOOK,
    MEND,
    PURGE_DEAD_LETTERS,
    RELEASE,
    REQUEUE,
    REQUEUE_DEAD_LETTERS,
    SCAN,
    SHAPE,
    STATE,
    STATS,
    SWEEP,
    WALK,
    Script,
)

STATUS = {"pending": "0", "dequeueing": "0", "working": "1", "delayed": "2"}
WAKE = ("wake", "30")
#: Scripts that are told where dead letters are.
BURYING = {DEQUEUE, RELEASE, DEAD_LETTERS, COUNT_DEAD_LETTERS, REQUEUE_DEAD_LETTERS, PURGE_DEAD_LETTERS}


@dataclass
class Data:
    """What a queue holds. An id in a place has a payload and a state by itself; ``None`` takes them away."""

    pending: str = ""
    """Ids of one letter each; the head first."""
    dequeueing: str = ""
    """The oldest first."""
    undequeued: str = ""
    outgoing: str = ""
    working: dict[str, float] = field(default_factory=dict)
    """Seconds from now until each lease ends."""
    delayed: dict[str, float] = field(default_factory=dict)
    dead: dict[str, float] = field(default_factory=dict)
    """Seconds from now, and so less than 0, to each death. Such an id has a payload among the buried, and a state."""
    buried: dict[str, str | None] = field(default_factory=dict)
    tasks: dict[str, str | None] = field(default_factory=dict)
    states: dict[str, dict[str, str | None] | None] = field(default_factory=dict)
    ttls: dict[str, int] = field(default_factory=dict)

    def whole(self) -> dict[str, Any]:
        """Spell out what goes without saying."""
        tasks: dict[str, str] = {}
        states: dict[str, dict[str, str]] = {}
        for place, status in STATUS.items():
            for task_id in getattr(self, place):
                tasks[task_id] = f"body {task_id}"
                states[task_id] = {"status": status, "enqueue_time": "1", "timeout": "300"}
        for task_id in self.dead:
            states[task_id] = {"status": "4", "enqueue_time": "1", "timeout": "300"}
        buried = {task_id: f"body {task_id}" for task_id in self.dead}
        for bodies, said in ((tasks, self.tasks), (buried, self.buried)):
            for task_id, body in said.items():
                bodies[task_id] = body or ""
                if body is None:
                    del bodies[task_id]
        for task_id, fields in self.states.items():
            if fields is None:
                del states[task_id]
            else:
                state = {
                    **states.get(task_id, {}),
                    **{key: value for key, value in fields.items() if value is not None},
                }
                states[task_id] = {key: value for key, value in state.items() if fields.get(key, "") is not None}
        whole = {"tasks": tasks, "states": states, "ttls": self.ttls, "working": self.working, "delayed": self.delayed}
        whole |= {"pending": list(self.pending), "dequeueing": list(self.dequeueing)}
        whole |= {"dead": self.dead, "buried": buried}
        return whole | {"undequeued": sorted(self.undequeued), "outgoing": sorted(self.outgoing)}


class Seconds(float):
    """What was left of a length of time when it was read; it was written at some moment of the test.

    It equals any whole number that it had then, however long the machine stood still in between, and no other.
    """

    def __new__(cls, left: float, elapsed: float) -> Seconds:
        self = super().__new__(cls, left)
        self.elapsed = elapsed
        return self

    def __eq__(self, other: object) -> bool:
        return self - 0.5 <= other <= self + self.elapsed + 0.5 if isinstance(other, int | float) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # what is equal to a range of others cannot have one


class Store:
    """The keys of one queue, seeded and read."""

    def __init__(self, admin: Redis, name: str) -> None:
        self.admin = admin
        self.keys = Keys(name)
        self.begun = self.now()

    def now(self) -> float:
        seconds, microseconds = self.admin.time()
        return seconds + microseconds / 1e6

    def seed(self, data: Data) -> None:
        whole, keys, now = data.whole(), self.keys, self.now()
        pipeline = self.admin.pipeline()
        for task_id in whole["pending"]:
            pipeline.lpush(keys.pending, task_id)
        for task_id in whole["dequeueing"]:
            pipeline.lpush(keys.dequeueing, task_id)
        for key, ids in ((keys.undequeued, whole["undequeued"]), (keys.outgoing, whole["outgoing"])):
            if ids:
                pipeline.sadd(key, *ids)
        for key, place in ((keys.working, "working"), (keys.delayed, "delayed"), (keys.dead, "dead")):
            if whole[place]:
                pipeline.zadd(key, {task_id: now + seconds for task_id, seconds in whole[place].items()})
        for key, place in ((keys.tasks, "tasks"), (keys.dead_payloads, "buried")):
            if whole[place]:
                pipeline.hset(key, mapping=whole[place])
        for task_id, state in whole["states"].items():
            pipeline.hset(keys.state(task_id.encode()), mapping=state)
        for task_id, seconds in whole["ttls"].items():
            pipeline.expire(keys.state(task_id.encode()), seconds)
        pipeline.execute()

    def read(self) -> dict[str, Any]:
        """The same as ``Data.whole``; a time that is now reads as ``now``."""
        admin, keys, now = self.admin, self.keys, self.now()
        prefix = f"{keys.task.decode()}:"
        states, ttls = {}, {}
        for key in admin.keys(f"{prefix}*"):
            task_id = key.decode().removeprefix(prefix)
            states[task_id] = {
                name.decode(): "now" if name.endswith(b"_time") and abs(float(value) - now) < 5 else value.decode()
                for name, value in admin.hgetall(key).items()
            }
            if (ttl := admin.ttl(key)) != -1:
                ttls[task_id] = ttl
        whole: dict[str, Any] = {"states": states}
        for name, key in (("tasks", keys.tasks), ("buried", keys.dead_payloads)):
            whole[name] = {k.decode(): v.decode() for k, v in admin.hgetall(key).items()}
        for name in ("working", "delayed", "dead"):
            pairs = admin.zrange(getattr(keys, name), 0, -1, withscores=True)
            whole[name] = {task_id.decode(): Seconds(score - now, now - self.begun) for task_id, score in pairs}
        for name in ("pending", "dequeueing"):
            whole[name] = [task_id.decode() for task_id in reversed(admin.lrange(getattr(keys, name), 0, -1))]
        for name in ("undequeued", "outgoing"):
            whole[name] = sorted(task_id.decode() for task_id in admin.smembers(getattr(keys, name)))
        return whole | {"ttls": ttls}

    def run(self, script: Script, *args: Any) -> Any:
        keys = self.keys
        table = [keys.pending, keys.dequeueing, keys.undequeued, keys.working, keys.delayed, keys.tasks, keys.task]
        if script is SWEEP:
            table.append(keys.outgoing)
        if script in BURYING:
            table += [keys.dead, keys.dead_payloads]
        return self.admin.eval(script.text, len(table), *table, *args)


@pytest.fixture
def store(admin: Redis, name: str) -> Store:
    """An empty queue."""
    return Store(admin, name)


Row = tuple[str, Script, Data, tuple[Any, ...], Data, Any]


def _rows(*rows: Row) -> Any:
    return pytest.mark.parametrize(
        ("script", "before", "args", "after", "reply"),
        [row[1:] for row in rows],
        ids=[f"{row[1].name}: {row[0]}".replace(" ", "-") for row in rows],
    )


def check(store: Store, script: Script, before: Data, args: tuple[Any, ...], after: Data, reply: Any) -> None:
    """Run one row of a table."""
    store.seed(before)
    said = store.run(script, *args)
    assert store.read() == after.whole()
    assert said == reply


DELIVERED = {"dequeue_count": "1", "last_dequeue_time": "now"}
BACK = {"requeue_count": "1", "last_requeue_time": "now"}
KEPT = {"status": "3", "result": "5"}
#: The same of a task that was enqueued as any other.
FINAL = {**KEPT, "enqueue_time": "1", "timeout": "300"}


@_rows(
    (
        "now", ENQUEUE, Data(pending="a"), (*WAKE, "b", "body b", "300", "0"),
        Data(pending="ab", states={"b": {"enqueue_time": "now"}}), b"1",
    ),
    (
        "with a delay", ENQUEUE, Data(), (*WAKE, "a", "body a", "1.5", "60"),
        Data(delayed={"a": 60}, states={"a": {"enqueue_time": "now", "timeout": "1.5"}}), b"1",
    ),
    (
        "several", ENQUEUE, Data(),
        (*WAKE, "a", "body a", "300", "0", "b", "body b", "300", "9", "c", "body c", "300", "0"),
        Data(pending="ac", delayed={"b": 9}, states={task_id: {"enqueue_time": "now"} for task_id in "abc"}), b"1 1 1",
    ),
    (
        "the same twice", ENQUEUE, Data(), (*WAKE, "a", "body a", "300", "0", "a", "other", "9", "9"),
        Data(pending="a", states={"a": {"enqueue_time": "now"}}), b"1 0",
    ),
    *(
        (f"known, {what}", ENQUEUE, known, (*WAKE, "a", "other", "9", "9"), known, b"0")
        for what, known in {
            "pending": Data(pending="a"),
            "parked": Data(dequeueing="a"),
            "working": Data(working={"a": 60}),
            "delayed": Data(delayed={"a": 60}),
            "final": Data(states={"a": KEPT}, ttls={"a": 60}),
            "dead": Data(dead={"a": -9}),
            "a payload without a state": Data(tasks={"a": "other"}),
        }.items()
    ),
    ("an empty payload", ENQUEUE, Data(), (*WAKE, "a", "", "300", "0"),
     Data(pending="a", tasks={"a": ""}, states={"a": {"enqueue_time": "now"}}), b"1"),
)  # fmt: skip
def test_enqueue(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """A new id is stored whole; a known one changes nothing."""
    check(store, script, before, args, after, reply)


def delivery(task_id: str, count: int = 1, lease: str = "300", body: str | None = None) -> tuple[str, str]:
    """A task's line in the sheet, and what stands for it in the string of all bodies."""
    body = f"body {task_id}" if body is None else body
    return f"{count} {lease} {len(task_id)} {len(body)}", task_id + body


def claimed(more: int, dropped: str, *deliveries: tuple[str, str], given_up: str = "", until: str = "inf") -> bytes:
    """The answer of the dequeue script; dropped and given up are ids of one letter each."""
    others = dropped + given_up
    counts = (str(more), str(len(dropped)), str(len(given_up)))
    sheet = " ".join([until, *counts, *(line for line, _ in deliveries), *("1" for _ in others)])
    return f"{sheet}\n{''.join(both for _, both in deliveries)}{others}".encode()


def until_next(said: bytes) -> float:
    """Read when to come back from an answer of the dequeue script."""
    return float(said.split(b" ")[0])


def claim(wanted: int, *adopt: str, bound: int = 500, limit: tuple[str, str, str] = ("", "", "")) -> tuple[Any, ...]:
    return (*WAKE, str(wanted), "300", str(bound), *limit, *adopt)


@_rows(
    ("nothing there", DEQUEUE, Data(), claim(1), Data(), claimed(0, "")),
    (
        "from the head", DEQUEUE, Data(pending="abc"), claim(2),
        Data(pending="c", working={"a": 300, "b": 300}, states={"a": DELIVERED, "b": DELIVERED}),
        claimed(0, "", delivery("a"), delivery("b")),
    ),
    (
        "for its own lease", DEQUEUE, Data(pending="a", states={"a": {"timeout": "7.9", "dequeue_count": "3"}}),
        claim(1), Data(working={"a": 8}, states={"a": {"timeout": "7.9", **DELIVERED, "dequeue_count": "4"}}),
        claimed(0, "", delivery("a", 4, "7.9")),
    ),
    (
        "what is due comes after what is pending", DEQUEUE, Data(pending="a", delayed={"b": -1, "c": -2, "d": 60}),
        claim(3),
        Data(working=dict.fromkeys("acb", 300), delayed={"d": 60},
             states={"a": DELIVERED, "b": {**DELIVERED, **BACK}, "c": {**DELIVERED, **BACK}}),
        claimed(0, "", delivery("a"), delivery("c"), delivery("b")),
    ),
    (
        "what is stale is left alone while there is more", DEQUEUE, Data(pending="a", working={"b": -1}), claim(1),
        Data(working={"a": 300, "b": -1}, states={"a": DELIVERED}), claimed(0, "", delivery("a")),
    ),
    (
        "what is stale comes when pending runs short", DEQUEUE,
        Data(pending="a", working={"b": -1}, states={"b": {"dequeue_count": "2"}}), claim(2),
        Data(working={"a": 300, "b": 300}, states={"a": DELIVERED, "b": {**DELIVERED, **BACK, "dequeue_count": "3"}}),
        claimed(0, "", delivery("a"), delivery("b", 3)),
    ),
    (
        "an adopted one first", DEQUEUE, Data(pending="a", dequeueing="xb"), claim(1, "b"),
        Data(pending="a", dequeueing="x", working={"b": 300}, states={"b": DELIVERED}),
        claimed(0, "", delivery("b")),
    ),
    (
        "an adopted one that a sweep took", DEQUEUE, Data(pending="b"), claim(1, "b"),
        Data(working={"b": 300}, states={"b": DELIVERED}), claimed(0, "", delivery("b")),
    ),
    (
        "an adopted one beyond what is wanted", DEQUEUE, Data(dequeueing="ab"), claim(1, "a", "b"),
        Data(working={"a": 300, "b": 300}, states={"a": DELIVERED, "b": DELIVERED}),
        claimed(0, "", delivery("a"), delivery("b")),
    ),
    (
        "a ghost waits for the sweep", DEQUEUE, Data(pending="abc", tasks={"b": None}, states={"b": None}), claim(3),
        Data(dequeueing="b", working={"a": 300, "c": 300}, tasks={"b": None},
             states={"a": DELIVERED, "b": None, "c": DELIVERED}),
        claimed(0, "", delivery("a"), delivery("c"), until="300"),
    ),
    (
        "an id twice", DEQUEUE, Data(pending="aab"), claim(2),
        Data(working={"a": 300, "b": 300}, states={"a": DELIVERED, "b": DELIVERED}),
        claimed(0, "a", delivery("a"), delivery("b")),
    ),
    (
        "an id that is working", DEQUEUE, Data(pending="ab", working={"a": 60}, states={"a": {"dequeue_count": "1"}}),
        claim(1), Data(working={"a": 60, "b": 300}, states={"a": {"dequeue_count": "1"}, "b": DELIVERED}),
        claimed(0, "a", delivery("b")),
    ),
    (
        "a final id", DEQUEUE,
        Data(pending="ab", tasks={"a": None}, states={"a": {"status": "3", "result": "5"}}, ttls={"a": 60}), claim(2),
        Data(working={"b": 300}, states={"a": {"status": "3", "result": "5", "enqueue_time": "1", "timeout": "300"},
                                         "b": DELIVERED}, ttls={"a": 60}),
        claimed(0, "a", delivery("b"), until="300"),
    ),
    (
        "a final id that has a payload still", DEQUEUE, Data(pending="ab", states={"a": KEPT}, ttls={"a": 60}),
        claim(2), Data(working={"b": 300}, states={"a": FINAL, "b": DELIVERED}, ttls={"a": 60}),
        claimed(0, "a", delivery("b"), until="300"),
    ),
    (
        "an empty payload", DEQUEUE, Data(pending="a", tasks={"a": ""}), claim(1),
        Data(working={"a": 300}, tasks={"a": ""}, states={"a": DELIVERED}), claimed(0, "", delivery("a", body="")),
    ),
    (
        "no state", DEQUEUE, Data(pending="a", states={"a": None}), claim(1),
        Data(working={"a": 300}, states={"a": {**DELIVERED, "enqueue_time": None}}), claimed(0, "", delivery("a")),
    ),
    *(
        (
            f"a lease of {junk or 'nothing'}", DEQUEUE, Data(pending="a", states={"a": {"timeout": junk}}), claim(1),
            Data(working={"a": 300}, states={"a": DELIVERED}), claimed(0, "", delivery("a")),
        )
        for junk in ("", "five minutes", "nan", "-nan", "inf", "-inf", "-5", "0", "1e300", "300s", "\x00")
    ),
    *(
        (
            f"a count of {junk}", DEQUEUE, Data(pending="a", states={"a": {"dequeue_count": junk}}), claim(1),
            Data(working={"a": 300}, states={"a": DELIVERED}), claimed(0, "", delivery("a")),
        )
        for junk in ("x", "nan", "inf", "-inf", "-1", "1e300", "0.5")
    ),
    (
        "the bound", DEQUEUE, Data(pending="abcde", tasks=dict.fromkeys("abcd"), states=dict.fromkeys("abcd")),
        claim(1, bound=4),
        Data(pending="e", dequeueing="abcd", tasks=dict.fromkeys("abcd"), states=dict.fromkeys("abcd")),
        claimed(1, ""),
    ),
)  # fmt: skip
def test_dequeue(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """A claim takes from the head what can be delivered, and is stopped by nothing that cannot."""
    store.seed(before)
    said = store.run(script, *args)
    assert store.read() == after.whole()
    assert said.split(b" ", 1)[1] == reply.split(b" ", 1)[1]
    assert until_next(said) == pytest.approx(until_next(reply), abs=1)


#: Two deliveries are enough: then it is a dead letter, or a state that is kept for five seconds.
BURIED, ENDED = ("2", "", "why"), ("2", "5000", "why")
WHY = {"status": "4", "result": "why", "release_time": "now"}


def times(count: int) -> dict[str, str | None]:
    return {"dequeue_count": str(count)}


@_rows(
    (
        "under the limit", DEQUEUE, Data(pending="a", states={"a": times(1)}), claim(1, limit=BURIED),
        Data(working={"a": 300}, states={"a": {**DELIVERED, **times(2)}}), claimed(0, "", delivery("a", 2)),
    ),
    (
        "at the limit, kept", DEQUEUE, Data(pending="ab", states={"a": times(2)}), claim(1, limit=BURIED),
        Data(working={"b": 300}, dead={"a": 0}, states={"a": {**WHY, **times(2)}, "b": DELIVERED}),
        claimed(0, "", delivery("b"), given_up="a"),
    ),
    (
        "at the limit, ended", DEQUEUE, Data(pending="ab", states={"a": times(2)}), claim(1, limit=ENDED),
        Data(working={"b": 300}, ttls={"a": 5}, states={
            "a": {**WHY, **times(2), "enqueue_time": "1", "timeout": "300"}, "b": DELIVERED}),
        claimed(0, "", delivery("b"), given_up="a"),
    ),
    (
        "beyond the limit, nothing else", DEQUEUE, Data(pending="a", states={"a": times(9)}), claim(1, limit=BURIED),
        Data(dead={"a": 0}, states={"a": {**WHY, **times(9)}}), claimed(0, "", given_up="a"),
    ),
    (
        "no limit", DEQUEUE, Data(pending="a", states={"a": times(9)}), claim(1),
        Data(working={"a": 300}, states={"a": {**DELIVERED, **times(10)}}), claimed(0, "", delivery("a", 10)),
    ),
    (
        "whose attempts began anew", DEQUEUE, Data(pending="ab", states={
            "a": {**times(9), "forgiven": "8"}, "b": {**times(9), "forgiven": "7"}}), claim(2, limit=BURIED),
        Data(working={"a": 300}, dead={"b": 0}, states={
            "a": {**DELIVERED, **times(10), "forgiven": "8"}, "b": {**WHY, **times(9), "forgiven": "7"}}),
        claimed(0, "", delivery("a", 10), given_up="b"),
    ),
    (
        "what was forgiven is junk", DEQUEUE, Data(pending="a", states={"a": {**times(2), "forgiven": "much"}}),
        claim(1, limit=BURIED), Data(dead={"a": 0}, states={"a": {**WHY, **times(2), "forgiven": "much"}}),
        claimed(0, "", given_up="a"),
    ),
    (
        "its lease ended", DEQUEUE, Data(working={"a": -1}, states={"a": times(2)}), claim(1, limit=BURIED),
        Data(dead={"a": 0}, states={"a": {**WHY, **times(2), **BACK}}), claimed(0, "", given_up="a"),
    ),
    (
        "it is due", DEQUEUE, Data(delayed={"a": -1}, states={"a": times(2)}), claim(1, limit=BURIED),
        Data(dead={"a": 0}, states={"a": {**WHY, **times(2), **BACK}}), claimed(0, "", given_up="a"),
    ),
    (
        "an adopted one", DEQUEUE, Data(dequeueing="a", states={"a": times(2)}), claim(1, "a", limit=BURIED),
        Data(dead={"a": 0}, states={"a": {**WHY, **times(2)}}), claimed(0, "", given_up="a"),
    ),
    (
        "twice in pending", DEQUEUE, Data(pending="aa", states={"a": times(2)}), claim(2, limit=BURIED),
        Data(dead={"a": 0}, states={"a": {**WHY, **times(2)}}), claimed(0, "a", given_up="a"),
    ),
    (
        "the bound", DEQUEUE, Data(pending="abc", states=dict.fromkeys("abc", times(2))),
        claim(1, bound=2, limit=BURIED),
        Data(pending="c", dead={"a": 0, "b": 0}, states={
            "a": {**WHY, **times(2)}, "b": {**WHY, **times(2)}, "c": times(2)}),
        claimed(1, "", given_up="ab"),
    ),
)  # fmt: skip
def test_giving_up(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """What was delivered as often as it may be is ended by the claim that would deliver it again, and only that."""
    store.seed(before)
    said = store.run(script, *args)
    assert store.read() == after.whole()
    assert said.split(b" ", 1)[1] == reply.split(b" ", 1)[1]


def test_a_dead_letter_does_not_expire(store: Store) -> None:
    """Whatever time to live a foreign hand has given to the state, it is kept."""
    store.seed(Data(pending="a", states={"a": times(2)}, ttls={"a": 60}))
    store.run(DEQUEUE, *claim(1, limit=BURIED))
    assert store.read()["ttls"] == {}


def test_giving_up_large_payloads_is_bounded_by_bytes(store: Store) -> None:
    """A claim that only gives up stops after some mebibytes, and says that there is more."""
    ids = [chr(97 + i) for i in range(20)]
    store.seed(Data(pending="".join(ids), tasks=dict.fromkeys(ids, "x" * (1 << 19)),
                    states=dict.fromkeys(ids, times(2))))  # fmt: skip
    said = [store.run(DEQUEUE, *claim(1, limit=BURIED)).split()[1:4] for _ in range(3)]
    assert said == [[b"1", b"0", b"8"], [b"1", b"0", b"8"], [b"0", b"0", b"4"]]
    assert sorted(store.read()["buried"]) == ids


def test_dequeue_tells_when_to_come_back(store: Store) -> None:
    """A claim that falls short says when the next delay or lease ends."""
    store.seed(Data(delayed={"a": 60}, working={"b": 90}))
    assert until_next(store.run(DEQUEUE, *claim(1))) == pytest.approx(60, abs=1)
    store.run(ENQUEUE, *WAKE, "c", "x", "5", "0")
    assert until_next(store.run(DEQUEUE, *claim(2))) == pytest.approx(5, abs=1)


def test_claim_is_bounded_by_bytes(store: Store) -> None:
    """The first few tasks tell how large the others are: a claim stops after some mebibytes."""
    store.seed(Data(tasks={f"t{i}": "x" * 300_000 for i in range(40)}))
    store.admin.lpush(store.keys.pending, *[f"t{i}" for i in range(40)])
    said = store.run(DEQUEUE, *claim(40, bound=125))
    assert said.split()[1] == b"1"
    assert store.admin.zcard(store.keys.working) == 16
    assert len(said) < 5_000_000


def test_claim_beside_many_that_are_due(store: Store) -> None:
    """Moving what is due uses up a part of the bound only; where more of it was left, there is more."""
    ids = [f"t{i}" for i in range(200)]
    store.seed(Data(tasks=dict.fromkeys(ids, "x")))
    store.admin.zadd(store.keys.delayed, dict.fromkeys(ids, 1))
    said = store.run(DEQUEUE, *claim(20, bound=125))
    assert store.admin.zcard(store.keys.working) == 20
    assert store.admin.zcard(store.keys.delayed) == 200 - 31
    assert said.split()[1] == b"1"
    # Of what was moved nothing may be a task.
    store.admin.hdel(store.keys.tasks, *ids)
    store.admin.delete(store.keys.pending)
    assert store.run(DEQUEUE, *claim(1, bound=125)).split()[1] == b"1"


def test_sleepers_are_told(store: Store) -> None:
    """Who makes a time come closer than all others, and within the horizon, says so, whatever it does."""
    channel = store.keys.wake.decode()
    wake = (channel, "30")
    with store.admin.pubsub(ignore_subscribe_messages=True) as hearing:
        hearing.subscribe(channel)
        hearing.get_message(timeout=5)

        def told() -> list[float]:
            store.admin.publish(channel, "end")
            heard: list[bytes] = []
            while (message := hearing.get_message(timeout=5)) is None or message["data"] != b"end":
                heard += [] if message is None else [message["data"]]
            return [round(float(text)) for text in heard]

        store.run(ENQUEUE, *wake, "a", "x", "25", "0", "b", "x", "300", "20", "c", "x", "300", "29")
        assert told() == [20]
        store.run(ENQUEUE, *wake, "d", "x", "300", "25", "e", "x", "300", "40")
        assert told() == []
        store.run(DEQUEUE, channel, *claim(1)[1:])
        assert told() == [25]
        store.run(EXTEND, *wake, "300", "a", "1", "10")
        assert told() == [10]
        store.run(EXTEND, *wake, "300", "a", "1", "40")
        assert told() == []
        store.run(REQUEUE, *wake, "a", "1", "5", "")
        assert told() == [5]


KNOWN = {
    "pending": Data(pending="a", states={"a": {"dequeue_count": "2"}}),
    "delayed": Data(delayed={"a": 60}, states={"a": {"dequeue_count": "2"}}),
    "parked": Data(dequeueing="a"),
    "final": Data(states={"a": {**KEPT, "dequeue_count": "2"}}, ttls={"a": 60}),
    "dead": Data(dead={"a": -9}, states={"a": {"dequeue_count": "2"}}),
}
WORKING = Data(working={"a": 60}, states={"a": {"dequeue_count": "2", "requeue_count": "1"}})
LOOSE = Data(tasks={"a": "body a"})
GHOST = Data(working={"a": 60}, states={"a": {"dequeue_count": "2"}}, tasks={"a": None})
SETTLES = {
    RELEASE: lambda token: ("3", "5000", "a", token, "=r"),
    REQUEUE: lambda token: (*WAKE, "a", token, "0", "9"),
    EXTEND: lambda token: (*WAKE, "300", "a", token, "9"),
}


@_rows(
    *(
        (f"{place}, token {token or 'any'}", script, data, args(token), data, b"-1")
        for script, args in SETTLES.items()
        for place, data in KNOWN.items()
        for token in ("", "2", "1", "3")
    ),
    *(
        (f"unknown, token {token or 'any'}", script, Data(), args(token), Data(), b"0")
        for script, args in SETTLES.items()
        for token in ("", "2")
    ),
    *(
        (f"working, token {token}", script, WORKING, args(token), WORKING, b"-2")
        for script, args in SETTLES.items()
        for token in ("1", "3", "0", "-2", "99999999999999999999")
    ),
    *(
        (f"payload only, token {token or 'any'}", script, LOOSE, args(token), LOOSE, b"-1")
        for script, args in SETTLES.items()
        for token in ("", "2")
    ),
    *(
        (f"working without a payload, token {token or 'any'}", REQUEUE, GHOST, SETTLES[REQUEUE](token), GHOST, b"0")
        for token in ("", "2")
    ),
)
def test_refused(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """What may not be applied writes nothing, and says why."""
    check(store, script, before, args, after, reply)


AGAIN = {"requeue_count": "2", "dequeue_count": "2", "last_requeue_time": "now"}


@pytest.mark.parametrize("token", ["", "2"])
@pytest.mark.parametrize("ends", [60, -60])
@_rows(
    ("no result", RELEASE, WORKING, ("3", "5000", "a", "{}", ""), Data(), b"1"),
    (
        "a result", RELEASE, WORKING, ("4", "5000", "a", "{}", "=r"),
        Data(states={"a": {"status": "4", "result": "r", "release_time": "now", "enqueue_time": "1", "timeout": "300",
                           "dequeue_count": "2", "requeue_count": "1"}}, ttls={"a": 5}), b"1",
    ),
    (
        "at once", REQUEUE, WORKING, (*WAKE, "a", "{}", "0", ""), Data(pending="a", states={"a": AGAIN}), b"1",
    ),
    (
        "a new lease", REQUEUE, WORKING, (*WAKE, "a", "{}", "0", "9"),
        Data(pending="a", states={"a": {**AGAIN, "timeout": "9"}}), b"1",
    ),
    (
        "a delay", REQUEUE, WORKING, (*WAKE, "a", "{}", "60", ""),
        Data(delayed={"a": 60}, states={"a": {"dequeue_count": "2", "requeue_count": "1"}}), b"1",
    ),
)  # fmt: skip
def test_settled(
    store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any, token: str, ends: float
) -> None:
    """The holder of the lease, or a plain id, settles; also past the end of the lease while no sweep took it."""
    before = Data(working={"a": ends}, states=before.states)
    check(store, script, before, tuple(arg.format(token) for arg in args), after, reply)


LETTER = {"status": "4", "release_time": "now", "dequeue_count": "2", "requeue_count": "1"}


@_rows(
    ("with a reason", RELEASE, WORKING, ("4", "", "a", "2", "=r"),
     Data(dead={"a": 0}, states={"a": {**LETTER, "result": "r"}}), b"1"),
    ("without one", RELEASE, WORKING, ("4", "", "a", "", ""), Data(dead={"a": 0}, states={"a": LETTER}), b"1"),
    ("twice", RELEASE, WORKING, ("4", "", "a", "2", "=r", "a", "2", "=s"),
     Data(dead={"a": 0}, states={"a": {**LETTER, "result": "r"}}), b"1 -1"),
    ("another's", RELEASE, WORKING, ("4", "", "a", "1", "=r"), WORKING, b"-2"),
    ("not working", RELEASE, Data(pending="a"), ("4", "", "a", "", ""), Data(pending="a"), b"-1"),
    ("a dead letter", RELEASE, Data(dead={"a": -9}), ("4", "", "a", "", ""), Data(dead={"a": -9}), b"-1"),
    ("unknown", RELEASE, Data(), ("4", "", "a", "", ""), Data(), b"0"),
    ("no payload", RELEASE, Data(working={"a": 60}, tasks={"a": None}), ("4", "", "a", "", "=r"), Data(), b"1"),
    ("an empty payload", RELEASE, Data(working={"a": 60}, tasks={"a": ""}), ("4", "", "a", "", ""),
     Data(dead={"a": 0}, buried={"a": ""}, states={"a": {"release_time": "now"}}), b"1"),
)  # fmt: skip
def test_released_as_a_dead_letter(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """The holder of the lease may keep a task with its payload; nobody else, and only once."""
    check(store, script, before, args, after, reply)


DEAD = Data(dead={"b": -2, "a": -3, "c": -1}, states={"a": {"dequeue_count": "7", "result": "why",
                                                            "release_time": "5", "requeue_count": "6"}})  # fmt: skip
ANEW = {"last_requeue_time": "now", "status": "0", "requeue_count": "1", "forgiven": "0"}
ANEW_A = {**ANEW, "dequeue_count": "7", "requeue_count": "7", "forgiven": "7"}


@_rows(
    ("all", REQUEUE_DEAD_LETTERS, DEAD, ("", "0", "9"),
     Data(pending="abc", states={"a": ANEW_A, "b": ANEW, "c": ANEW}), [3, 3, 0]),
    ("the oldest", REQUEUE_DEAD_LETTERS, DEAD, ("", "0", "1"),
     Data(pending="a", dead={"b": -2, "c": -1}, states={"a": ANEW_A}), [1, 1, 0]),
    ("behind the tail", REQUEUE_DEAD_LETTERS, Data(pending="x", dead={"a": -1}), ("", "0", "9"),
     Data(pending="xa", states={"a": ANEW}), [1, 1, 0]),
    ("passing over some", REQUEUE_DEAD_LETTERS, DEAD, ("", "1", "1"),
     Data(pending="b", dead={"a": -3, "c": -1}, states={"a": DEAD.states["a"], "b": ANEW}), [1, 1, 0]),
    ("no later ones", REQUEUE_DEAD_LETTERS, DEAD, ("1", "0", "9"), DEAD, [0, 0, 0]),
    ("by id", REQUEUE_DEAD_LETTERS, DEAD, ("", "0", "9", "c", "x", "c"),
     Data(pending="c", dead={"a": -3, "b": -2}, states={"a": DEAD.states["a"], "c": ANEW}), [1, 3, 2]),
    ("an id that is alive", REQUEUE_DEAD_LETTERS, Data(pending="p", working={"w": 60}), ("", "0", "9", "p", "w"),
     Data(pending="p", working={"w": 60}), [0, 2, 2]),
    ("an id that a foreign hand has enqueued anew", REQUEUE_DEAD_LETTERS, Data(pending="a", dead={"a": -1}),
     ("", "0", "9"), Data(pending="a", dead={"a": -1}), [0, 1, 1]),
    ("no payload", REQUEUE_DEAD_LETTERS, Data(dead={"a": -1}, buried={"a": None}), ("", "0", "9"), Data(), [0, 1, 0]),
    ("no state", REQUEUE_DEAD_LETTERS, Data(dead={"a": -1}, states={"a": None}), ("", "0", "9"),
     Data(pending="a", states={"a": {**ANEW, "enqueue_time": None, "timeout": None}}), [1, 1, 0]),
    ("all", PURGE_DEAD_LETTERS, DEAD, ("", "0", "9"), Data(), [3, 3, 0]),
    ("the oldest", PURGE_DEAD_LETTERS, DEAD, ("", "0", "2"), Data(dead={"c": -1}), [2, 2, 0]),
    ("by id", PURGE_DEAD_LETTERS, DEAD, ("", "0", "9", "x", "a"), Data(dead={"b": -2, "c": -1}), [1, 2, 1]),
    ("no later ones", PURGE_DEAD_LETTERS, DEAD, ("1", "0", "9"), DEAD, [0, 0, 0]),
    ("an id that is alive", PURGE_DEAD_LETTERS, Data(pending="p", dead={"p": -1}, states={"p": {"status": "0"}}),
     ("", "0", "9"), Data(pending="p"), [1, 1, 0]),
)  # fmt: skip
def test_done_with_dead_letters(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """Dead letters go back to the tail in the order of their deaths, or for good; what is alive stays."""
    store.seed(before)
    *counts, until = store.run(script, *args)
    assert store.read() == after.whole()
    assert counts == reply
    assert float(until) == (float(args[0]) if args[0] else pytest.approx(store.now(), abs=2))


def test_requeueing_large_dead_letters_is_bounded_by_bytes(store: Store) -> None:
    """A requeue of many stops after some mebibytes, and tells how far it came."""
    ids = [chr(97 + i) for i in range(20)]
    store.seed(
        Data(dead={task_id: n - 99 for n, task_id in enumerate(ids)}, buried=dict.fromkeys(ids, "x" * (1 << 19)))
    )
    said = [store.run(REQUEUE_DEAD_LETTERS, "", "0", "150")[:3] for _ in range(4)]
    assert said == [[8, 8, 0], [8, 8, 0], [4, 4, 0], [0, 0, 0]]
    assert store.read()["pending"] == ids


def test_reading_dead_letters(store: Store) -> None:
    """Pages go on behind a letter, whether it is still there, has gone, or has died once more."""
    store.seed(DEAD)

    def read(most: int, time: bytes = b"", last: bytes = b"", room: int = 99) -> list[bytes]:
        return [letter[0] for letter in store.run(DEAD_LETTERS, most, room, time, last)]

    first, second = store.run(DEAD_LETTERS, 2, 99, "", "")
    assert [first[0], *first[2:]] == [b"a", b"body a", b"why", b"7", b"6", b"1", None, None]
    assert [second[0], *second[2:]] == [b"b", b"body b", None, None, None, b"1", None, None]
    assert read(9, second[1], b"b") == [b"c"]
    assert read(9, first[1], b"a") == [b"b", b"c"]
    assert read(1, first[1], b"a") == [b"b"]
    assert read(9, room=15) == [b"a", b"b"]
    assert read(9, room=14) == [b"a"], "what is said of one takes room as well"
    assert read(9, room=1) == [b"a"], "one comes however large it is"
    assert store.run(COUNT_DEAD_LETTERS) == 3
    store.admin.zadd(store.keys.dead, {"b": store.now()})
    assert read(9, second[1], b"b") == [b"c", b"b"]
    store.admin.zrem(store.keys.dead, "b")
    assert read(9, second[1], b"b") == [b"c"]
    assert read(9, b"99999999999.000000", b"b") == []


@pytest.mark.parametrize("ends", [60, -60])
@pytest.mark.parametrize(("lease", "length"), [("9", 9), ("", 300), ("0.5", 0)])
def test_extend(store: Store, ends: float, lease: str, length: int) -> None:
    """An extension counts from now, whatever was left; the task's own lease stays as it is."""
    store.seed(Data(working={"a": ends}, states={"a": {"dequeue_count": "2"}}))
    said = float(store.run(EXTEND, *WAKE, "77", "a", "2", lease))
    assert said == pytest.approx(store.now() + float(lease or 300), abs=1)
    after = store.read()
    assert after["working"]["a"] == pytest.approx(length, abs=1)
    assert after["states"]["a"] == {"status": "1", "enqueue_time": "1", "timeout": "300", "dequeue_count": "2"}


def test_extend_with_a_stored_lease_that_is_junk(store: Store) -> None:
    """The default counts where the stored lease is no length."""
    store.seed(Data(working={"a": 60}, states={"a": {"timeout": "soon"}}))
    store.run(EXTEND, *WAKE, "77", "a", "", "")
    assert store.read()["working"]["a"] == pytest.approx(77, abs=1)


def test_settle_of_many_judges_each(store: Store) -> None:
    """One run over several tasks applies what it may and refuses the rest, each with its own word."""
    before = Data(
        pending="p", working={"a": 60, "b": 60}, states={"a": {"dequeue_count": "1"}, "b": {"dequeue_count": "5"}}
    )
    store.seed(before)
    items = [("a", "1"), ("b", "4"), ("p", ""), ("x", "")]
    assert store.run(RELEASE, "3", "5000", *[arg for i in items for arg in (*i, "")]) == b"1 -2 -1 0"
    assert store.read() == Data(pending="p", working={"b": 60}, states={"b": {"dequeue_count": "5"}}).whole()
    assert store.run(REQUEUE, *WAKE, *[arg for i in items for arg in (*i, "0", "")]) == b"0 -2 -1 0"
    said = store.run(EXTEND, *WAKE, "300", *[arg for i in [("b", "5"), *items] for arg in (*i, "5")]).split()
    assert said[1:] == [b"0", b"-2", b"-1", b"0"]


@_rows(
    (
        "the first delivery", HANDBACK, Data(pending="x", working={"a": 60}, states={"a": DELIVERED | {
            "last_dequeue_time": "9"}}), ("a", "1"), Data(pending="ax"), b"1",
    ),
    (
        "a later delivery", HANDBACK,
        Data(working={"a": 60}, states={"a": {"dequeue_count": "3", "last_dequeue_time": "9"}}), ("a", "3"),
        Data(pending="a", states={"a": {"dequeue_count": "2", "last_dequeue_time": "9"}}), b"1",
    ),
    ("parked", HANDBACK, Data(pending="x", dequeueing="ba"), ("a", ""), Data(pending="ax", dequeueing="b"), b"1"),
    (
        "many, the last first", HANDBACK,
        Data(pending="x", working={"a": 60, "b": 60}, dequeueing="c",
             states={"a": {"dequeue_count": "1"}, "b": {"dequeue_count": "1"}}), ("c", "", "b", "1", "a", "1"),
        Data(pending="abcx"), b"1 1 1",
    ),
    *(
        (what, HANDBACK, data, ("a", token), data, b"0")
        for what, token, data in (
            ("delivered again", "1", WORKING),
            ("settled", "2", Data()),
            ("swept", "2", Data(pending="a", states={"a": {"dequeue_count": "2"}})),
            ("unparked", "", Data(pending="a")),
            ("unparked and delivered", "", WORKING),
        )
    ),
)  # fmt: skip
def test_handback(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """A claim that nobody saw is undone, count and all; what is not ours any more stays."""
    check(store, script, before, args, after, reply)


@_rows(
    ("nothing", SWEEP, Data(), ("500", "300", ""), Data(), [0, 0, 0, [], b"end", b"inf"]),
    (
        "stale, due, and neither", SWEEP,
        Data(pending="p", working={"a": -1, "b": -2, "c": 600}, delayed={"d": -1, "e": -2, "f": 700},
             states={"c": {"timeout": "900"}}),
        ("500", "300", ""),
        Data(pending="pbaed", working={"c": 600}, delayed={"f": 700},
             states=dict.fromkeys("abde", BACK) | {"c": {"timeout": "900"}}),
        [2, 2, 0, [], b"end", None],
    ),
    ("parked at first sight", SWEEP, Data(dequeueing="ab"), ("500", "300", ""),
     Data(dequeueing="ab", undequeued="ab"), [0, 0, 0, [], b"end", b"inf"]),
    ("parked at second sight", SWEEP, Data(pending="p", dequeueing="abc", undequeued="ab"), ("500", "300", ""),
     Data(pending="pab", dequeueing="c", undequeued="c", states=dict.fromkeys("ab", BACK)),
     [0, 0, 2, [], b"end", b"inf"]),
    ("notes of what is not parked any more", SWEEP, Data(pending="a", undequeued="a"), ("500", "300", ""),
     Data(pending="a"), [0, 0, 0, [], b"end", b"inf"]),
    ("notes that a dead sweep left", SWEEP, Data(dequeueing="a", outgoing="a"), ("500", "300", ""),
     Data(dequeueing="a", undequeued="a"), [0, 0, 0, [], b"end", b"inf"]),
    ("leases and delays only", SWEEP, Data(working={"w": -1}, dequeueing="a", undequeued="a"),
     ("500", "300", "timed"), Data(pending="w", dequeueing="a", undequeued="a", states={"w": BACK}),
     [1, 0, 0, [], b"end", b"inf"]),
    ("the bound within leases", SWEEP, Data(working={"a": -3, "b": -2, "c": -1}, delayed={"d": -1}),
     ("2", "300", ""), Data(pending="ab", working={"c": -1}, delayed={"d": -1}, states=dict.fromkeys("ab", BACK)),
     [2, 0, 0, [], b"", b"0.000000"]),
    ("the bound within what is parked", SWEEP, Data(dequeueing="abc"), ("2", "300", ""),
     Data(dequeueing="abc", undequeued="ab"), [0, 0, 0, [], b"2", b"inf"]),
    ("going on", SWEEP, Data(dequeueing="abc", undequeued="ab"), ("2", "300", "2"),
     Data(dequeueing="abc", undequeued="abc"), [0, 0, 0, [], b"end", b"inf"]),
    (
        "ghosts", SWEEP,
        Data(working={"a": -1, "b": -1}, delayed={"c": -1}, dequeueing="d", undequeued="d",
             tasks=dict.fromkeys("acd"), states={"d": None}), ("500", "300", ""),
        Data(pending="b", states={"b": BACK}), [2, 1, 0, [b"a", b"c", b"d"], b"end", b"inf"],
    ),
    (
        "a final id among the leases", SWEEP, Data(working={"a": -1}, tasks={"a": None}, states={"a": KEPT}),
        ("500", "300", ""), Data(states={"a": FINAL}), [1, 0, 0, [b"a"], b"end", b"inf"],
    ),
    (
        "final ids that have payloads still", SWEEP,
        Data(working={"a": -1}, delayed={"b": -1}, dequeueing="c", undequeued="c", states=dict.fromkeys("abc", KEPT)),
        ("500", "300", ""), Data(states=dict.fromkeys("abc", FINAL)),
        [1, 1, 0, [b"a", b"b", b"c"], b"end", b"inf"],
    ),
)  # fmt: skip
def test_sweep(store: Store, script: Any, before: Data, args: Any, after: Data, reply: Any) -> None:
    """A step of a sweep gives back what has ended, in order, and goes on where it stopped."""
    store.seed(before)
    *said, until = store.run(script, *args)
    assert store.read() == after.whole()
    assert said == reply[:-1]
    if reply[-1] is None:
        assert float(until) == pytest.approx(600, abs=1)
    else:
        assert until == reply[-1]


def test_lease_without_an_end(store: Store) -> None:
    """A score of infinity would never come back: a sweep gives it an end, from its own lease or the default."""
    store.seed(Data(working={"a": 60, "b": 60, "c": 60}, states={"a": {"timeout": "9"}, "b": {"timeout": "inf"}}))
    store.admin.zadd(store.keys.working, {"a": "+inf", "b": "+inf", "c": "-inf"})
    assert store.run(SWEEP, "500", "300", "")[:3] == [1, 0, 0]
    assert store.read()["working"] == {"a": pytest.approx(9, abs=1), "b": pytest.approx(300, abs=1)}


HOUR = 3600


def test_leases_from_the_future(store: Store) -> None:
    """After the clock was put back by an hour a sweep lets leases end a whole lease from now; what may be so stays."""
    now = store.now()
    store.seed(Data(
        working={"a": HOUR + 300, "b": HOUR + 9, "c": 300, "d": 350, "e": HOUR, "f": HOUR},
        states={"b": {"timeout": "9"}, "e": {"longest_lease": "3600"}, "f": {"timeout": "7200"}},
    ))  # fmt: skip
    assert store.run(SWEEP, "500", "300", "timed")[:3] == [0, 0, 0]
    assert store.read()["working"]["a"] == HOUR + 300
    assert store.run(SWEEP, "500", "300", "")[:5] == [0, 0, 0, [], b"end"]
    assert store.read()["working"] == {"a": 300, "b": 9, "c": 300, "d": 350, "e": HOUR, "f": HOUR}
    assert store.now() - now < 60


def test_delays_from_the_future(store: Store) -> None:
    """After the clock was put back a sweep lets delays count from now, once; a long delay by itself is none of its."""
    now = store.now()
    times = {"enqueue_time": f"{now + HOUR:.6f}"}
    store.seed(Data(
        delayed={"a": HOUR + 200, "b": HOUR + 400, "c": 2 * HOUR, "d": HOUR + 500},
        states={
            "a": times, "b": {"enqueue_time": "5", "last_dequeue_time": f"{now + HOUR + 100:.6f}"},
            "c": {"enqueue_time": f"{now:.6f}"}, "d": {"enqueue_time": "nan", "last_requeue_time": "1e300"},
        },
    ))  # fmt: skip
    for _ in range(2):
        assert store.run(SWEEP, "500", "300", "")[:5] == [0, 0, 0, [], b"end"]
        assert store.read()["delayed"] == {"a": 200, "b": 300, "c": 2 * HOUR, "d": HOUR + 500}
    # And once more by a second jump.
    stamp = store.admin.hget(store.keys.state(b"a"), "rebased").decode()
    last, at = stamp.split()
    store.admin.hset(store.keys.state(b"a"), "rebased", f"{last} {float(at) + HOUR:.6f}")
    store.admin.zincrby(store.keys.delayed, HOUR, "a")
    store.run(SWEEP, "500", "300", "")
    assert store.read()["delayed"]["a"] == 200


def test_many_from_the_future(store: Store) -> None:
    """One sweep in bounded steps finds all leases of a length that a clock has moved away."""
    ids = [f"w{i}" for i in range(200)]
    store.admin.zadd(store.keys.working, {task_id: store.now() + HOUR + i for i, task_id in enumerate(ids)})
    store.admin.hset(store.keys.tasks, mapping=dict.fromkeys(ids, "body"))
    cursor, steps = b"", 0
    while cursor != b"end":
        cursor = store.run(SWEEP, "150", "300", cursor)[4]
        steps += 1
    assert 4 <= steps < 10
    assert all(left == 300 for left in store.read()["working"].values())


def test_extensions_longer_than_the_lease_are_noted(store: Store) -> None:
    """What was asked for is kept by a sweep; a shorter extension later changes nothing about that."""
    store.seed(Data(working={"a": 60}, states={"a": {"dequeue_count": "1"}}))
    for seconds in ("", "5", "3600", "1000"):
        store.run(EXTEND, *WAKE, "300", "a", "1", seconds)
    assert store.admin.hget(store.keys.state(b"a"), "longest_lease") == b"3600"
    assert store.run(EXTEND, *WAKE, "300", "a", "1", "3600")
    store.run(SWEEP, "500", "300", "")
    assert store.read()["working"] == {"a": 3600}


def test_one_from_the_future_amid_others(store: Store) -> None:
    """A lease that a clock moved away is found by some sweep, wherever it stands among leases that are in order."""
    now = store.now()
    ends = (
        {f"a{i}": now + 100 + i for i in range(20)} | {"x": now + HOUR} | {f"z{i}": now + 2 * HOUR for i in range(40)}
    )
    store.seed(Data(tasks=dict.fromkeys(ends, "x"),
                    states={task_id: {"status": "1", "timeout": "300", "longest_lease": "9000"} for task_id in ends}
                    | {"x": {"status": "1", "timeout": "300"}}))  # fmt: skip
    store.admin.zadd(store.keys.working, ends)
    for _ in range(200):
        store.run(SWEEP, "500", "300", "")
        if store.admin.zscore(store.keys.working, "x") < now + HOUR / 2:
            break
    assert store.admin.zscore(store.keys.working, "x") == pytest.approx(now + 300, abs=30)
    assert store.admin.zcount(store.keys.working, now + 2 * HOUR - 1, "+inf") == 40


def test_delay_without_an_end(store: Store) -> None:
    """A delay that never ends stops nothing else, and what is said of the next time is a number; a sweep ends it."""
    store.seed(Data(pending="a", delayed={"b": 60}))
    store.admin.zadd(store.keys.delayed, {"b": "+inf"})
    assert until_next(store.run(DEQUEUE, *claim(2))) == pytest.approx(300, abs=1)
    store.run(RELEASE, "3", "5000", "a", "", "")
    assert until_next(store.run(DEQUEUE, *claim(1))) == float("inf")
    assert store.run(SWEEP, "500", "300", "") == [0, 1, 0, [], b"end", b"inf"]
    assert store.read()["pending"] == ["b"]


def test_many_without_an_end(store: Store) -> None:
    """However many leases and delays have no end: a sweep ends them all, in bounded steps."""
    leased, waiting = [f"l{n}" for n in range(60)], [f"d{n}" for n in range(60)]
    store.seed(Data(working=dict.fromkeys(leased, 60), delayed=dict.fromkeys(waiting, 60)))
    store.admin.zadd(store.keys.working, dict.fromkeys(leased, "+inf"))
    store.admin.zadd(store.keys.delayed, dict.fromkeys(waiting, "+inf"))
    due, cursor, steps = 0, b"", 0
    while cursor != b"end":
        _, more, _, _, cursor, _ = store.run(SWEEP, "25", "300", cursor)
        due, steps = due + more, steps + 1
    assert (due, steps) == (60, 5)
    assert store.admin.zcount(store.keys.working, "-inf", "(+inf") == 60
    assert store.admin.zcard(store.keys.delayed) == 0


def test_bound_of_all_that_a_sweep_does(store: Store) -> None:
    """Leases without an end, leases from the future and stale ones count together."""
    ids = [f"t{n}" for n in range(100)]
    store.seed(Data(working=dict.fromkeys(ids, -60)))
    store.admin.zadd(store.keys.working, dict.fromkeys(ids[:20], "+inf"))
    store.admin.zadd(store.keys.working, dict.fromkeys(ids[20:40], store.now() + 9999))
    assert store.run(SWEEP, "25", "300", "")[0] == 0
    steps, cursor = 1, b""
    while cursor != b"end":
        stale, *_, cursor, _ = store.run(SWEEP, "25", "300", cursor)
        assert stale <= 25
        steps += 1
    assert store.admin.llen(store.keys.pending) == 60
    assert steps == 4


def test_stats_and_state(store: Store) -> None:
    """Counts are those of one moment; a state has nine places, nil where nothing is set."""
    store.seed(Data(pending="ab", dequeueing="c", working={"d": 60}, delayed={"e": 60}, states={"d": KEPT}))
    assert store.run(STATS) == [5, 2, 1, 1]
    said = store.run(STATE, "d", "nobody")
    assert said == [[b"3", b"300", b"5", None, None, b"1", None, None, None], [None] * 9]


# Foreign hands


COMMON: dict[Script, tuple[Any, ...]] = {
    ENQUEUE: (*WAKE, "n", "body", "300", "0", "m", "body", "300", "60"),
    DEQUEUE: claim(9, "q", limit=("1", "", "r")),
    REQUEUE: (*WAKE, "w", "", "0", "9"),
    RELEASE: ("4", "", "w", "", "=r"),
    EXTEND: (*WAKE, "300", "w", "", "9"),
    HANDBACK: ("w", "1"),
    SWEEP: ("500", "300", ""),
    STATS: (),
    STATE: ("w",),
    DEAD_LETTERS: ("9", "99", "", ""),
    COUNT_DEAD_LETTERS: (),
    REQUEUE_DEAD_LETTERS: ("", "0", "9"),
    PURGE_DEAD_LETTERS: ("", "0", "9"),
}


def test_no_script_is_forgotten() -> None:
    """Each script is tried on foreign damage, but for those that look for it (tests/queue/test_check.py)."""
    assert set(ALL) - set(COMMON) == {SHAPE, WALK, SCAN, LOOK, MEND}


def digest(store: Store) -> dict[bytes, bytes]:
    return {key: store.admin.dump(key) for key in store.admin.keys(store.keys.task[:-5] + b":*")}


@pytest.mark.parametrize("script", COMMON, ids=lambda script: script.name)
@pytest.mark.parametrize(
    "broken", ["pending", "dequeueing", "undequeued", "working", "delayed", "tasks", "dead", "dead_payloads"]
)
def test_key_of_a_foreign_type(store: Store, script: Script, broken: str) -> None:
    """Where a whole structure is something else, a script fails before its first write, or does without."""
    store.seed(Data(pending="po", dequeueing="q", working={"s": -1, "w": 60}, delayed={"d": -1}, undequeued="q",
                    dead={"x": -1}, states={"w": {"dequeue_count": "1"}, "o": {"dequeue_count": "1"}}))  # fmt: skip
    key = getattr(store.keys, broken)
    store.admin.delete(key)
    store.admin.set(key, "a string")
    before = digest(store)
    try:
        store.run(script, *COMMON[script])
    except redis.ResponseError as error:
        assert "WRONGTYPE" in str(error)  # noqa: PT017  (it need not be raised)
        after = digest(store)
        if script is SWEEP and broken in {"delayed", "undequeued"}:
            return  # what ended before the error was met is back, each task whole; see the next test
        assert after == before


def test_sweep_heals_its_own_notes(store: Store) -> None:
    """The notes of the sweep are the library's own: of a foreign type, they cost one sweep."""
    store.seed(Data(dequeueing="q"))
    store.admin.set(store.keys.undequeued, "a string")
    with pytest.raises(redis.ResponseError):
        store.run(SWEEP, *COMMON[SWEEP])
    assert store.run(SWEEP, *COMMON[SWEEP])[:3] == [0, 0, 0]
    assert store.run(SWEEP, *COMMON[SWEEP])[:3] == [0, 0, 1]


@pytest.mark.parametrize("script", COMMON, ids=lambda script: script.name)
def test_state_of_a_foreign_type(store: Store, script: Script) -> None:
    """A state that is something else is one damaged task: it is replaced when written, and stops no script."""
    store.seed(Data(pending="p", dequeueing="q", working={"s": -1, "w": 60}, delayed={"d": -1}, undequeued="q",
                    dead={"x": -1}))  # fmt: skip
    for task_id in b"pqswdx":
        store.admin.set(store.keys.state(bytes([task_id])), "a string")
    store.run(script, *COMMON[script])


def test_states_beside_one_of_a_foreign_type(store: Store) -> None:
    """A state that is something else reads as none, and its neighbours are read."""
    store.seed(Data(pending="ab"))
    store.admin.set(store.keys.state(b"x"), "a string")
    before, foreign, after = store.run(STATE, "a", "x", "b")
    assert (before[0], foreign, after[0]) == (b"0", [None] * 9, b"0")


# Bounds


def places(store: Store) -> dict[bytes, list[str]]:
    """Where each id stands."""
    found: dict[bytes, list[str]] = {}
    admin, keys = store.admin, store.keys
    for name, ids in {
        "pending": admin.lrange(keys.pending, 0, -1),
        "dequeueing": admin.lrange(keys.dequeueing, 0, -1),
        "working": admin.zrange(keys.working, 0, -1, withscores=True),
        "delayed": admin.zrange(keys.delayed, 0, -1),
        "undequeued": admin.smembers(keys.undequeued),
    }.items():
        for task_id in ids:
            if isinstance(task_id, tuple | list):
                found.setdefault(task_id[0], []).append(f"{name} {task_id[1]}")
            else:
                found.setdefault(task_id, []).append(name)
    return found


@pytest.mark.parametrize("ghosts", [False, True], ids=["live", "ghosts"])
@pytest.mark.parametrize(
    ("script", "args"),
    [(DEQUEUE, claim(250)), (DEQUEUE, claim(1))]
    + [(SWEEP, (str(BOUND), "300", cursor)) for cursor in ("", "timed", "700")],
    ids=["dequeue 250", "dequeue 1", "sweep", "sweep timed", "sweep on"],
)
@pytest.mark.parametrize("full", ["pending", "dequeueing", "working", "delayed", "all"])
def test_bound(store: Store, script: Script, args: Any, full: str, ghosts: bool) -> None:
    """No run touches more ids than the bound, wherever the backlog stands and whatever it is made of."""
    admin, keys, count = store.admin, store.keys, 1500
    for place in STATUS:
        if full in {place, "all"}:
            ids = [f"{place}{i}" for i in range(count)]
            if place in {"pending", "dequeueing"}:
                admin.lpush(getattr(keys, place), *ids)
            else:
                admin.zadd(getattr(keys, place), {task_id: i for i, task_id in enumerate(ids)})
            if not ghosts:
                admin.hset(keys.tasks, mapping=dict.fromkeys(ids, "body"))
    before = places(store)
    said = store.run(script, *args)
    after = places(store)
    changed = [task_id for task_id in before.keys() | after.keys() if before.get(task_id) != after.get(task_id)]
    assert len(changed) <= BOUND
    if script is SWEEP and full != "pending" and not (args[2] == "timed" and full == "dequeueing"):
        assert said[4] != b"end", "it says that there is more to do"
    if script is DEQUEUE and len(said) == 3 and full != "dequeueing":
        assert said[1] == 1, "it says that it has not seen all"

"""The Redis of the simulation against real ones: the same scripts, the same data, the same answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from faults.simulation.store import CommandError, Store, ZSet
from redis import Redis

from torrelque import TorrelqueTaskId, TorrelqueTaskStatus
from torrelque.calls import SWEEP_ALL, SWEEP_TIMED, Call, Calls, Doubt, GivingUp
from torrelque.keys import Keys

NOW = 1_700_000_000.0
CLOCK = b"local clock = redis.call('TIME')"
IDS = [f"t{i}" for i in range(12)]


class Both:
    """Says the same to both servers, and compares."""

    def __init__(self, admin: Redis, name: str) -> None:
        self.admin = admin
        self.name = name.encode()
        self.now = NOW
        self.events: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self.store = Store(lambda: NOW, lambda key, event: self.events[key].append(event), lambda *_: 0)
        self.script_runs = 0

    def run(self, call: Call[Any], told: Callable[[Any], Any] = lambda reply: reply) -> Any:
        """Run a script, on both by the same clock; *told* leaves out of an answer what may differ."""
        self.script_runs += 1
        head = b"local clock = { %d, %d }" % (int(self.now), round(self.now % 1 * 1e6))
        assert call.script.text.count(CLOCK) == 1
        text = call.script.text.replace(CLOCK, head)
        args = (*call.head, *call.items)
        real = _outcome(lambda: told(self.admin.eval(text, len(call.keys), *call.keys, *args)))
        ours = _outcome(lambda: told(self.store.run(text, call.keys, args)))
        assert ours == real, call
        return real

    def command(self, *command: bytes) -> None:
        """Do what only other programs do; what came of it is compared with the rest."""
        _outcome(lambda: self.admin.execute_command(*command))
        _outcome(lambda: self.store.once(*command))

    def compare(self) -> None:
        """Everything that is stored, to the last digit; times to live to a few seconds."""
        admin = self.admin
        keys = set(admin.keys(self.name + b":*"))
        assert keys == set(self.store.keys)
        for key in keys:
            value = self.store.keys[key]
            if isinstance(value, ZSet):
                real = [(member, score) for member, score in admin.zrange(key, 0, -1, withscores=True)]
                assert real == [(member, score) for score, member in value.ordered()]
            elif isinstance(value, list):
                assert admin.lrange(key, 0, -1) == value
            elif isinstance(value, set):
                assert admin.smembers(key) == value
            else:
                assert admin.hgetall(key) == value
            left = admin.pttl(key)
            assert (left == -1) == (key not in self.store.expires), key


def _outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (redis.ResponseError, CommandError) as error:
        code = str(error).split()[0]
        # redis-py makes classes of some codes, and cuts them from the text.
        return "OOM" if isinstance(error, redis.exceptions.OutOfMemoryError) else code


@pytest.fixture
def both(admin: Redis, name: str) -> Both:
    """An empty queue on both."""
    return Both(admin, name)


def _junk(both: Both, keys: Keys, chance: random.Random) -> None:
    """What a peer, a crash or an operator may leave."""
    task_id = chance.choice(IDS).encode()
    both.command(
        *chance.choice(
            (
                (b"LPUSH", keys.pending, task_id),
                (b"RPUSH", keys.pending, b"ghost"),
                (b"LMOVE", keys.pending, keys.dequeueing, b"RIGHT", b"LEFT"),
                (b"LPUSH", keys.dequeueing, task_id),
                (b"HSET", keys.state(task_id), b"timeout", chance.choice((b"nan", b"5 minutes", b"-1", b"1e400"))),
                (b"HSET", keys.state(task_id), b"dequeue_count", chance.choice((b"x", b"1.5", b"-3"))),
                (b"ZADD", keys.working, chance.choice((b"inf", b"-inf", b"0")), task_id),
                (b"ZADD", keys.delayed, b"inf", task_id),
                (b"HDEL", keys.tasks, task_id),
                (b"DEL", keys.state(task_id)),
                (b"LPUSH", keys.state(b"odd"), b"a list"),
            )
        )
    )


def _step(both: Both, calls: Calls, chance: random.Random) -> None:
    task_id: str = chance.choice([*IDS, "unknown", "odd"])
    if chance.random() < 0.7:
        task_id = TorrelqueTaskId(task_id, chance.randrange(1, 4), 1.0)
    delay = chance.choice((0, 0, 0.5, 40))
    status = chance.choice((TorrelqueTaskStatus.COMPLETED, TorrelqueTaskStatus.REJECTED))
    result = chance.choice((None, b"", b"\x00\xff"))
    steps: Sequence[Call[Any]] = (
        calls.enqueue([(i, i.encode() * 3) for i in chance.sample(IDS, 3)], chance.choice((1, 0.25, 300)), delay),
        calls.enqueue([(chance.choice(IDS), b"")], 2, delay),
        calls.dequeue(chance.randrange(1, 4), 7, [i.encode() for i in chance.sample(IDS, chance.randrange(3))]),
        calls.dequeue(9, 7),
        calls.dequeue(9, 7, giving_up=GivingUp(2, chance.choice((None, 3600.0)), b"no more")),
        calls.requeue(task_id, delay, chance.choice((None, 3))),
        calls.release([(task_id, result), (chance.choice(IDS), None)], status, chance.choice((3600, 3600, None))),
        calls.dead_letters(chance.randrange(1, 4), chance.choice((None, (b"%.6f" % both.now, task_id.encode())))),
        calls.count_dead_letters(),
        chance.choice((calls.requeue_dead_letters, calls.purge_dead_letters))(
            chance.choice(((), [task_id.encode(), chance.choice(IDS).encode()])),
            chance.choice((b"", b"%.6f" % both.now)),
            chance.randrange(2),
        ),
        calls.extend(task_id, chance.choice((None, 3)), 7),
        calls.hand_back([(chance.choice(IDS).encode(), chance.choice((None, 1, 2))) for _ in range(2)]),
        calls.sweep(7, chance.choice((SWEEP_ALL, SWEEP_TIMED))),
        calls.stats(),
        calls.state(task_id.encode()),
    )
    both.run(chance.choice(steps))


@pytest.mark.parametrize("junk", [0.0, 0.15], ids=["clean", "junk"])
def test_random_scripts(both: Both, junk: float) -> None:
    """Any sequence of script runs, also on damaged data, gives the same answers and leaves the same data."""
    chance = random.Random(4)
    keys = Keys(both.name.decode())
    calls = Calls(keys)
    for _ in range(40):
        for _ in range(30):
            both.now = round(both.now + chance.choice((0, 0.000001, 0.3, 20)), 6)
            _step(both, calls, chance)
            if chance.random() < junk:
                _junk(both, keys, chance)
        both.compare()
    assert both.script_runs == 1200


@pytest.mark.parametrize("junk", [0.0, 0.3], ids=["clean", "junk"])
def test_checks(both: Both, junk: float) -> None:
    """What is wrong with a queue both find alike, in whatever order they go through sets and hashes."""
    chance = random.Random(7)
    keys = Keys(both.name.decode())
    calls = Calls(keys)
    found = 0
    for _ in range(60):
        for _ in range(10):
            both.now += chance.choice((0, 0.3, 20))
            _step(both, calls, chance)
            if chance.random() < junk:
                _junk(both, keys, chance)
        both.run(calls.shape(), lambda reply: reply[:-1])  # the last one counts the keys of others too
        for name in ("pending", "dequeueing"):
            both.run(calls.walk(name, chance.randrange(4), 50, judge=True))
        for name in ("working", "delayed", "tasks", "states"):
            found += len(both.run(calls.scan(name, b"0", 100_000), _without_order)[3])
        ids = [task_id.encode() for task_id in [*IDS, "ghost"]]
        states = both.run(calls.look([Doubt(task_id, b"") for task_id in ids]))[1::2]
        words = b"ghost orphan leftover twice state status score expiry"
        doubts = [Doubt(task_id, words, state) for task_id, state in zip(ids, states, strict=True)]
        both.run(calls.look(doubts, starts=((0,), (0,))))
        if not junk:
            both.run(calls.mend(doubts, 7, 60))
    both.compare()
    assert bool(found) == bool(junk)


def _without_order(reply: Any) -> Any:
    cursor, looked, enough, wrong, loose = reply
    return [cursor, looked, enough, sorted(zip(wrong[::2], wrong[1::2], strict=True)), sorted(loose)]


def test_full_memory(both: Both) -> None:
    """Without memory both refuse the same scripts, and run the others."""
    chance = random.Random(5)
    calls = Calls(Keys(both.name.decode()))
    refused = 0
    try:
        for round_ in range(60):
            full = round_ % 2 == 1
            both.admin.config_set("maxmemory", "1" if full else "0")
            both.store.full = full
            for n in range(10):
                both.now += chance.choice((0, 0.3, 20))
                call = calls.enqueue([(f"new{round_}-{n}", b"x")], 5, chance.choice((0, 1)))
                refused += both.run(call) == "OOM"
                _step(both, calls, chance)
            both.compare()
    finally:
        both.admin.config_set("maxmemory", "0")
    assert refused == 300


@pytest.fixture
def told(admin: Redis, name: str) -> Iterator[Any]:
    """What a real server tells of the keys of a queue."""
    before = admin.config_get("notify-keyspace-events")["notify-keyspace-events"]
    admin.config_set("notify-keyspace-events", "KA")
    with admin.pubsub() as pubsub:
        pubsub.psubscribe(f"__keyspace@0__:{name}:task:*")
        assert pubsub.get_message(timeout=5)
        yield pubsub
    admin.config_set("notify-keyspace-events", before)


def test_notifications(both: Both, told: Any) -> None:
    """Both tell the same of the states of tasks, in the same order for each."""
    chance = random.Random(6)
    calls = Calls(Keys(both.name.decode()))
    for _ in range(300):
        both.now += chance.choice((0, 0.3, 20))
        _step(both, calls, chance)
    both.admin.publish(f"__keyspace@0__:{both.name.decode()}:task:end", "end")
    real: defaultdict[bytes, list[bytes]] = defaultdict(list)
    while (message := told.get_message(timeout=5)) is not None and message["data"] != b"end":
        real[message["channel"].removeprefix(b"__keyspace@0__:")].append(message["data"])
    prefix = both.name + b":task:"
    assert real == {key: events for key, events in both.events.items() if key.startswith(prefix)}
    assert len(real) == len(IDS)

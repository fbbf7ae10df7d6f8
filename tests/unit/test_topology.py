"""Where the primary is, as those say who know, and what is given up when it is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import MagicMock

import anyio
import pytest
from redis.asyncio import RedisCluster

from torrelque.calls import Call, Calls
from torrelque.drivers import driver_for
from torrelque.drivers._redispy import RedisPyDriver
from torrelque.drivers._scripts import run_scripts
from torrelque.drivers._topology import Cluster, Place, Searched, Sentinel, Watchman, redirected, slot_of
from torrelque.drivers._wire import ReplyError
from torrelque.keys import Keys

A, B, C, OLD, NEW, D = (Place("10.0.0.1", port) for port in range(1, 7))

pytestmark = pytest.mark.anyio


def told(place: Place, epoch: int) -> list[Any]:
    """The answer of a sentinel."""
    return [[place.host.encode(), b"%d" % place.port], [b"name", b"jobs", b"config-epoch", b"%d" % epoch]]


def searched(answers: dict[Place, Any]) -> Searched:
    """A primary that sentinels know of, who answer, or fail, as they are told."""

    async def ask(place: Place, question: Sequence[tuple[bytes, ...]]) -> list[Any]:
        answer = answers[place]
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await anyio.sleep_forever()
        return list(answer)

    return Sentinel(ask, [A, B, C, *answers], "jobs")


async def test_who_knows_the_latest_is_believed() -> None:
    """A sentinel that was cut off names the old primary; one that is gone does not matter."""
    topology = searched({A: told(OLD, 3), B: told(NEW, 4), C: OSError("gone")})
    assert await topology.locate() == NEW


async def test_what_was_known_is_not_unlearnt_from_a_few() -> None:
    """A sentinel that was cut off with the old primary is not believed when the others, who told of the new one, are
    silent; when most of them name another place again, they were set up anew."""
    answers: dict[Place, Any] = {A: told(OLD, 3), B: told(NEW, 4), C: told(NEW, 4)}
    topology = searched(answers)
    assert await topology.locate() == NEW
    generation = topology.generation
    answers.update({B: OSError("cut off"), C: OSError("cut off")})
    topology.forget()
    with pytest.raises(ConnectionError, match=r"10\.0\.0\.1:4.*1 of 3"):
        await topology.locate()
    assert topology.generation == generation
    answers[A] = told(NEW, 3)
    assert await topology.locate() == NEW
    answers[A] = told(OLD, 3)
    topology.forget()
    with pytest.raises(ConnectionError):
        await topology.locate()
    answers.update({A: told(OLD, 0), B: told(OLD, 0)})
    topology.forget()
    assert await topology.locate() == OLD


async def test_half_of_them_are_not_most() -> None:
    """Two of four may both be cut off with the old primary."""
    answers: dict[Place, Any] = dict.fromkeys((A, B, C, D), told(NEW, 4))
    topology = searched(answers)
    assert await topology.locate() == NEW
    answers.update({A: told(OLD, 3), B: told(OLD, 3), C: OSError("cut off"), D: OSError("cut off")})
    topology.forget()
    with pytest.raises(ConnectionError, match="2 of 4"):
        await topology.locate()


async def test_the_silent_are_not_waited_for() -> None:
    """More than half are enough."""
    topology = searched({A: told(NEW, 4), B: told(NEW, 4), C: None})
    with anyio.fail_after(0.5):
        assert await topology.locate() == NEW


async def test_the_slow_are_not_cut_off() -> None:
    """A connection that is cancelled while it is made may stay open: in an entered queue each ask comes to its end."""
    ended: list[Place] = []
    go_on = anyio.Event()

    async def ask(place: Place, question: Sequence[tuple[bytes, ...]]) -> list[Any]:
        if place == C:
            await go_on.wait()
        ended.append(place)
        return told(NEW, 4)

    topology = Sentinel(ask, [A, B, C], "jobs")
    async with topology.asking():
        assert await topology.locate() == NEW
        assert C not in ended
        go_on.set()
    assert ended[-1] == C


async def test_the_silent_do_not_hold_up_who_leaves() -> None:
    """Whoever leaves the queue waits for them for less than a second."""
    topology = searched({A: told(NEW, 4), B: told(NEW, 4), C: None})
    with anyio.fail_after(0.9):
        async with topology.asking():
            assert await topology.locate() == NEW


async def test_nobody_to_ask() -> None:
    """Without a sentinel there is nothing to wait for."""
    with anyio.fail_after(1), pytest.raises(ConnectionError, match="it is not known"):
        await Sentinel(None, [], "jobs").locate()


async def test_nobody_knows() -> None:
    """That is a failure to connect, and tells whom was asked in vain."""
    topology = searched({A: [None, None], B: OSError("refused"), C: OSError("gone")})
    with pytest.raises(ConnectionError, match=r"where the primary is.*10\.0\.0\.1:2: refused"):
        await topology.locate()


async def test_nobody_may_tell() -> None:
    """What a refusal says is repeated: it may name the way out."""
    refused = ReplyError("NOAUTH Authentication required.")
    topology = searched({A: [refused, refused], B: [None, refused], C: OSError("gone")})
    with pytest.raises(ConnectionError) as caught:
        await topology.locate()
    assert all(said in str(caught.value) for said in ("1:1: NOAUTH Auth", "1:2: NOAUTH Auth", "1:3: gone"))


@pytest.mark.parametrize(
    "junk", [[], [[b"\xff", b"1"], None], [[b"a", b"b"], None], [[b"a", b"1"], [b"config-epoch", b"x"]], [[1, 2], 3]]
)
async def test_answers_that_are_none(junk: list[Any]) -> None:
    """A sentinel whose answer cannot be read knows nothing; others are believed all the same."""
    topology = searched({A: junk, B: told(NEW, 4), C: told(NEW, 4)})
    assert await topology.locate() == NEW
    with pytest.raises(ConnectionError, match=r"10\.0\.0\.1:1: .*cannot be read"):
        await searched(dict.fromkeys((A, B, C), junk)).locate()


async def test_generations() -> None:
    """Only another place is another generation; what is known is not asked again, until it is doubted."""
    answers: dict[Place, Any] = dict.fromkeys((A, B, C), told(OLD, 1))
    topology = searched(answers)
    await topology.locate()
    first = topology.generation
    topology.forget()
    await topology.locate()
    assert topology.generation == first
    answers.update(dict.fromkeys((A, B, C), told(NEW, 2)))
    assert await topology.locate() == OLD
    topology.forget()
    assert await topology.locate() == NEW
    assert topology.generation == first + 1


@pytest.mark.parametrize(
    "code", ["READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING", "UNBLOCKED", "NOREPLICAS", "BUSY", "MISCONF"]
)
async def test_who_refuses_is_doubted(code: str) -> None:
    """Who serves nobody, or takes no writes, may be no primary any more: before the next call others are asked."""
    answers: dict[Place, Any] = dict.fromkeys((A, B, C), told(OLD, 1))
    topology = searched(answers)
    await topology.locate()
    answers.update(dict.fromkeys((A, B, C), told(NEW, 2)))

    async def send(name: bytes, calls: Sequence[Call[Any]], place: Place | None) -> list[Any]:
        return [Exception(f"{code} no")]

    await run_scripts(send, [Calls(Keys("q")).stats()], topology)
    assert await topology.locate() == NEW


async def test_a_stale_place_is_not_a_failure_to_connect() -> None:
    """Where the primary is elsewhere by now it is connected to there, and only otherwise the error is told."""
    answers: dict[Place, Any] = dict.fromkeys((A, B, C), told(OLD, 1))
    topology = searched(answers)
    await topology.locate()

    async def connect(place: Place) -> Place:
        if place == OLD:
            raise OSError("refused")
        return place

    with pytest.raises(OSError, match="refused"):
        await topology.reach(connect)
    answers.update(dict.fromkeys((A, B, C), told(NEW, 2)))
    assert await topology.reach(connect) == NEW


async def test_the_watchman_gives_up_only_what_still_waits() -> None:
    """What is answered while he asks around is left alone: giving it up would hit whatever comes next."""
    answers: dict[Place, Any] = dict.fromkeys((A, B, C), told(OLD, 1))
    topology = searched(answers)
    await topology.locate()
    given_up: list[str] = []
    watchman = Watchman(topology)

    async def answered() -> Place:
        watchman.end("answered")
        topology.learn(NEW)
        return NEW

    topology.look = answered
    async with anyio.create_task_group() as group:
        group.start_soon(watchman.run)
        for name in ("answered", "late"):
            watchman.begin(name, topology.generation, lambda name=name: given_up.append(name))
        with anyio.fail_after(5):
            while not given_up:
                await anyio.sleep(0.01)
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert given_up == ["late"]


async def test_the_watchman_lets_those_wait_who_are_at_the_primary() -> None:
    """A primary that is slow is one all the same: who waits for it is given up only when it is another."""
    answers: dict[Place, Any] = dict.fromkeys((A, B, C), told(OLD, 1))
    topology = searched(answers)
    await topology.locate()
    given_up = anyio.Event()
    looks = 0
    watchman = Watchman(topology)
    look = topology.look

    async def counted() -> Place:
        nonlocal looks
        looks += 1
        assert not given_up.is_set()
        if looks == 2:
            answers.update(dict.fromkeys((A, B, C), told(NEW, 2)))
        return await look()

    topology.look = counted
    async with anyio.create_task_group() as group:
        group.start_soon(watchman.run)
        watchman.begin("slow", topology.generation, given_up.set)
        with anyio.fail_after(10):
            await given_up.wait()
        group.cancel_scope.cancel()
    assert looks == 2


def test_slots() -> None:
    """The part in braces decides, if there is one that is not empty."""
    assert slot_of(b"foo") == 12182
    assert slot_of(b"{foo}:pending") == slot_of(b"a{foo}{bar}") == 12182
    assert slot_of(b"123456789") == 12739
    assert slot_of(b"{}foo") != slot_of(b"foo")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("MOVED 3999 127.0.0.1:6381", Place("127.0.0.1", 6381)),
        ("ASK 3999 node.example:6381", Place("node.example", 6381)),
        ("MOVED 3999 :6381", Place("10.0.0.1", 6381)),
        ("MOVED 3999 ::1:6381", Place("::1", 6381)),
        ("MOVED 3999 ?:6381", Place("10.0.0.1", 6381)),
        ("MOVED", None),
        ("MOVED 3999 nowhere", None),
    ],
)
def test_redirections(text: str, place: Place | None) -> None:
    """A node that does not know its own host means the one that was asked."""
    assert redirected(Exception(text), A) == place


def test_a_cluster_tells() -> None:
    """The owner of the slot; a node that knows of no working cluster is believed last."""
    topology = Cluster(None, [A])
    topology.key = b"foo"
    ranges = [[0, 9000, [b"10.0.0.9", 9, b"id"]], [9001, 16383, [b"", 4, b"id"], [b"10.0.0.1", 5, b"id"]]]
    state = b"cluster_state:%b\r\ncluster_current_epoch:7\r\n"
    assert topology.read(A, [ranges, state % b"ok"]) == ((1, 7), Place("10.0.0.1", 4))
    assert topology.read(A, [ranges, state % b"fail"]) == ((0, 7), Place("10.0.0.1", 4))
    assert topology.read(A, [[], state % b"ok"]) is None


async def test_a_connection_that_took_too_long_is_stale(
    anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learnt while a connection is made does not count for it: it leads to where the primary was."""
    if anyio_backend_name != "asyncio":
        return
    driver = driver_for(RedisCluster(host="10.0.0.1", port=1))
    assert isinstance(driver, RedisPyDriver)
    driver.serve(b"q")
    topology: Any = driver._topology
    topology.learn(OLD)

    async def connect(self: Any, place: Place) -> Any:
        if place == OLD:
            topology.learn(NEW)
        return MagicMock(socket_timeout=None)

    monkeypatch.setattr("torrelque.drivers._redispy_connections.Maker.connect", connect)
    assert (await driver._take()).generation != topology.generation
    assert (await driver._take()).generation == topology.generation

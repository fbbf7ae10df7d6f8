"""A5: a link is cut, half closed or silent at each byte of request and answer of each verb.

The links are those of the library to Redis (each client on each event loop), of a gRPC server to Redis, and of a client
to the server. After each fault the same caller calls again: what may be repeated is, and what is stored is looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import multiprocessing
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import grpc
import redis
from faults.callers import Caller, Held, LibraryCaller, NotApplied, Refused, State, Uncertain, WireCaller
from faults.clients import AS_THEY_ARE
from faults.figures import Options, Report
from faults.proxy import DOWN, UP, Cut, Fault, FaultProxy, HalfClose, Reset, Rule, Stall, faulty
from support import PAIRS, Pair, open_client, running_server, snapshot
from support.bridge import serving

from grpc_server._pb import torrelque_pb2_grpc as pb_grpc
from torrelque import Torrelque, TorrelqueTaskStatus, catching, listening, watching

TITLE = "a link cut, half closed or silent at each byte of each verb: applied once, and no call hangs"
SHORT = 0.01

#: How many faults there must be at least.
CUTS = 5_000
#: Seconds that a caller waits for an answer, and that a case may take.
PATIENCE, BOUND = 0.5, 40.0
#: Seconds that a new connection may take: there is other load on the machine.
CONNECT = 4 * PATIENCE
#: Callers at a time in a process.
LANES = 12
PART = 0.2
SERVERS = 3

_FAULTS: dict[str, Callable[[random.Random], Fault]] = {
    "cut": lambda rng: rng.choice((Cut(), Reset())),
    "half-close": lambda _: HalfClose(),
    "stall": lambda _: Stall(),
}
DONE = int(TorrelqueTaskStatus.COMPLETED)


_DIGEST = """
local keys, all = redis.call('KEYS', ARGV[1]), {}
table.sort(keys)
for i, key in ipairs(keys) do all[i] = key .. ' ' .. redis.call('DUMP', key) end
return redis.sha1hex(table.concat(all))
"""
_WIPE = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"


class Broken(Exception):
    """A promise was."""


def expect(holds: bool, promise: str, *facts: object) -> None:
    """Judge a case."""
    if not holds:
        raise Broken(f"{promise}: {', '.join(map(repr, facts))}")


class Lane:
    """A caller behind a proxy of its own, with a queue of its own.

    :param caller: makes the call that meets the fault
    :param patient: makes those after it, over the same connections
    :param straight: reaches the same queue without the proxy
    :param wire: it is gRPC that is called
    :param silent: the link is one that goes silent unnoticed, until whoever carries it gives it up
    """

    def __init__(
        self, name: str, caller: Caller, patient: Caller, straight: Caller, proxy: FaultProxy, admin: redis.Redis,
        *, wire: bool = False, silent: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self.caller = caller
        self.patient = patient
        self.straight = straight
        self.proxy = proxy
        self.admin = admin
        self.wire = wire
        self.number = 0
        self.outcomes: Counter[str] = Counter()
        #: The fault of the case, and how many bytes have passed in each direction while it might strike.
        self.rule: Rule | None = None
        self.sizes: dict[str, int] = {}
        self._silent = silent

    def nonce(self, what: object = "") -> bytes:
        """Bytes of this case and no other."""
        return f"{self.name} {self.number} {what}".encode()

    def snap(self) -> Any:
        return snapshot(self.admin, self.name)

    def digest(self) -> Any:
        """Everything that is stored, in short."""
        return self.admin.eval(_DIGEST, 0, f"{self.name}:*")

    def wipe(self) -> None:
        self.admin.eval(_WIPE, 0, f"{self.name}:*")

    @asynccontextmanager
    async def struck(self) -> AsyncGenerator[None]:
        """Have the fault strike within the body."""
        self.proxy.counts.clear()
        if self.rule is not None:
            self.proxy.set(self.rule)
        try:
            yield
        finally:
            self.sizes = {direction: self.proxy.counts[direction] for direction in (UP, DOWN)}
            self.mend()

    def mend(self) -> None:
        """Have the link work again."""
        self.proxy.clear()
        if self._silent and self.rule is not None and self.rule.hits:
            self.proxy.reset()

    async def attempt(self, call: Callable[[], Awaitable[Any]]) -> tuple[str, Any]:
        """Make the call that meets the fault: how it ended, and what it returned."""
        before, value = self.digest(), None
        async with self.struck():
            try:
                value = await call()
            except NotApplied:
                outcome = "not applied"
            except Uncertain:
                outcome = "unknown"
            else:
                outcome = "ok"
        expect(outcome != "not applied" or self.digest() == before, "said not to be applied, and was")
        self.outcomes[outcome] += 1
        return outcome, value

    async def held(self, count: int = 1) -> list[Held]:
        """Tasks that were enqueued and dequeued without the proxy."""
        await self.straight.enqueue_many({f"h{i}": self.nonce(i) for i in range(count)})
        got = [await self.straight.dequeue(5) for _ in range(count)]
        return [held for held in got if held is not None]

    async def back(self, tasks: dict[str, bytes]) -> dict[str, int]:
        """Let all leases end, sweep twice, and take everything: ids with their counts."""
        if working := self.admin.zrange(f"{self.name}:working", 0, -1):
            self.admin.zadd(f"{self.name}:working", dict.fromkeys(working, 1))
        for _ in range(2):
            await self.straight.sweep()
        counts: dict[str, int] = {}
        while (held := await self.straight.dequeue(0)) is not None:
            expect(held.task_id not in counts, "delivered twice", held)
            expect(held.body == tasks.get(held.task_id), "another payload", held)
            counts[held.task_id] = held.count
        expect(counts.keys() == tasks.keys(), "lost or made up", counts, tasks.keys())
        return counts


async def enqueue(lane: Lane) -> None:
    body = lane.nonce()
    outcome, deduplicated = await lane.attempt(lambda: lane.caller.enqueue("e", body))
    expect(outcome != "ok" or deduplicated is False or lane.wire, "a new task was said to be known")
    await lane.patient.enqueue("e", body)
    expect(lane.snap().pending == ["e"], "enqueued once", lane.snap())
    expect(await lane.back({"e": body}) == {"e": 1}, "delivered once")


async def enqueue_many(lane: Lane) -> None:
    tasks = {f"m{i}": lane.nonce(i) for i in range(3)}
    await lane.attempt(lambda: lane.caller.enqueue_many(tasks))
    await lane.patient.enqueue_many(tasks)
    expect(sorted(lane.snap().pending) == sorted(tasks), "enqueued once", lane.snap())
    await lane.back(tasks)


async def dequeue(lane: Lane) -> None:
    tasks = {f"d{i}": lane.nonce(i) for i in range(2)}
    await lane.straight.enqueue_many(tasks)
    outcome, got = await lane.attempt(lambda: lane.caller.dequeue(2))
    expect(outcome != "ok" or (got is not None and got.body == tasks[got.task_id]), "a wrong task", got)
    again = await lane.patient.dequeue(0)
    expect(again is not None and again.body == tasks[again.task_id], "the other task is there", again)
    counts = await lane.back(tasks)
    # Leased twice is what was delivered, or claimed by the call that failed, and leased again now.
    expect(set(counts.values()) <= {1, 2}, "a lost claim costs one counted lease", counts)
    expect(outcome != "ok" or set(counts.values()) == {2}, "each delivery is counted", counts)


async def dequeue_waiting(lane: Lane) -> None:
    """The task comes while the caller waits."""
    tasks = {"w": lane.nonce()}
    got: list[Held] = []

    async def wait() -> None:
        for _ in range(20):
            with suppress(NotApplied, Uncertain):
                if held := await lane.caller.dequeue(2):
                    got.append(held)
                    return

    async with lane.struck(), anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.01)
        await lane.straight.enqueue_many(tasks)
        # What is parked by a link that has died comes back when two sweeps have seen it, a lost claim with its lease.
        for n in range(100):
            await anyio.sleep(0.02 * min(n, 5))
            if got:
                break
            if n > 5:
                lane.mend()
                if working := lane.admin.zrange(f"{lane.name}:working", 0, -1):
                    lane.admin.zadd(f"{lane.name}:working", dict.fromkeys(working, 1))
                await lane.straight.sweep()
    expect([held.body for held in got] == list(tasks.values()), "the waiting caller gets the task", got)
    lane.outcomes["ok" if got[0].count == 1 else "unknown"] += 1
    try:
        await lane.patient.release(got[0], b"")
    except Refused:  # the lease was ended above while its task was on the way
        expect(n > 5, "a lease was lost", got)
        await lane.back(tasks)
    else:
        expect(lane.snap().tasks == {}, "released", lane.snap())


async def requeue(lane: Lane) -> None:
    (held,) = await lane.held()
    outcome, _ = await lane.attempt(lambda: lane.caller.requeue(held))
    await repeated(outcome, lane.patient.requeue(held))
    snap = lane.snap()
    expect((snap.pending, snap.states["h0"].get("requeue_count")) == (["h0"], b"1"), "requeued once", snap)


async def release(lane: Lane) -> None:
    (held,) = await lane.held()
    outcome, _ = await lane.attempt(lambda: lane.caller.release(held, lane.nonce("result")))
    await repeated(outcome, lane.patient.release(held, lane.nonce("result")))
    expect(await lane.patient.state("h0") == State(DONE, lane.nonce("result"), 1, 0), "released once")
    expect(lane.snap().tasks == {}, "nothing is left", lane.snap())


async def repeated(outcome: str, call: Awaitable[Any]) -> None:
    """A settlement is applied once: by the first call, or by its repetition."""
    try:
        await call
    except Refused as refused:
        expect(str(refused) == "TASK_NOT_WORKING", "the verdict on a repetition", refused)
        expect(outcome != "not applied", "not applied, and yet done")
    else:
        expect(outcome != "ok", "applied twice")


async def release_many(lane: Lane) -> None:
    results = {held: lane.nonce(f"result {held.task_id}") for held in await lane.held(3)}
    outcome, said = await lane.attempt(lambda: lane.caller.release_many(results))
    expect(said in (None, [""] * 3), "verdicts", said)
    again = await lane.patient.release_many(results)
    expect(set(again) <= {"", "TASK_NOT_WORKING"}, "the verdicts on a repetition", again)
    expect("" not in again or outcome != "ok", "applied twice", again)
    for held, result in results.items():
        expect(await lane.patient.state(held.task_id) == State(DONE, result, 1, 0), "released once", held)


async def extend(lane: Lane) -> None:
    (held,) = await lane.held()
    lane.admin.zadd(f"{lane.name}:working", {"h0": (now := lane.snap().now) + 9})
    outcome, ends = await lane.attempt(lambda: lane.caller.extend(held))
    expect(outcome != "ok" or now + 299 < ends < now + 330, "another answer", ends)
    expect(lane.snap().working["h0"] > now + 299 or outcome != "ok", "extended")
    expect(await lane.patient.extend(held) > now + 299, "extended by a repetition")
    expect(lane.snap().states["h0"]["dequeue_count"] == b"1", "held as before")


async def state(lane: Lane) -> None:
    (held,) = await lane.held()
    await lane.straight.release(held, lane.nonce("result"))
    expected = State(DONE, lane.nonce("result"), 1, 0)
    outcome, got = await lane.attempt(lambda: lane.caller.state("h0"))
    expect(outcome != "unknown" or lane.wire, "a read of unknown outcome")
    expect(got in (None, expected), "another answer", got)
    expect(await lane.patient.state("h0") == expected, "the next answer")


async def stats(lane: Lane) -> None:
    count = 1 + lane.number % 5
    await lane.straight.enqueue_many({f"s{i}": b"" for i in range(count)})
    _, got = await lane.attempt(lambda: lane.caller.stats())
    expect(got in (None, (count, count, 0, 0)), "another answer", got)
    expect(await lane.patient.stats() == (count, count, 0, 0), "the next answer")


async def sweep(lane: Lane) -> None:
    await lane.held(2)
    lane.admin.zadd(f"{lane.name}:working", {"h0": 1, "h1": 2})
    _, report = await lane.attempt(lambda: lane.caller.sweep())
    again = await lane.patient.sweep()
    # A server that has lost the answer sweeps again by itself, and tells of that.
    expect(report is None or again == (0, 0, 0), "swept once", report, again)
    expect(report in (None, (2, 0, 0)) or lane.wire, "swept once", report)
    snap = lane.snap()
    expect(sorted(snap.pending) == ["h0", "h1"], "back once", snap)
    expect({each.get("requeue_count") for each in snap.states.values()} == {b"1"}, "back once", snap)


async def watch(lane: Lane) -> None:
    (held,) = await lane.held()
    seen: list[State] = []

    async def follow() -> None:
        async with aclosing(lane.caller.watch("h0")) as states:
            async for each in states:
                seen.append(each)
                if len(seen) == 1:
                    await lane.straight.release(held, lane.nonce("result"))

    await lane.attempt(follow)
    final = State(DONE, lane.nonce("result"), 1, 0)
    expect(all(each in (final, State(1, b"", 1, 0)) for each in seen), "another's state", seen)
    if not seen:
        await lane.straight.release(held, lane.nonce("result"))
    expect(await again(lane) == [final], "the next watch sees the end")


async def again(lane: Lane) -> list[State]:
    """Watch once more. That the subscription has died may be noticed only now: it says so, and soon works again."""
    for _ in range(8):
        with suppress(NotApplied, Uncertain):
            async with aclosing(lane.patient.watch("h0")) as states:
                return [each async for each in states]
        await anyio.sleep(0.2)
    return []


VERBS: dict[str, Callable[[Lane], Awaitable[None]]] = {
    verb.__name__: verb
    for verb in (
        enqueue, enqueue_many, dequeue, dequeue_waiting, requeue, release, release_many, extend, state, stats, sweep,
        watch,
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault at a byte."""

    verb: str
    fault: str
    direction: str
    at: int


@dataclasses.dataclass
class Tally:
    """What was done.

    :ivar done: how often each fault has struck
    :ivar bytes: how many bytes each verb has, request and answer
    """

    done: Counter[str] = dataclasses.field(default_factory=Counter)
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    violations: list[str] = dataclasses.field(default_factory=list)
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)


class Bench:
    """Works through the cases of a kind of link with some lanes."""

    def __init__(self, link: str, seed: int, share: float) -> None:
        self.tally = Tally()
        self._link = link
        self._rng = random.Random(f"{seed} {link}")
        self._share = share

    async def run(self, lanes: list[Lane]) -> None:
        cases = await self._cases(lanes[0])
        async with anyio.create_task_group() as group:
            for lane in lanes:
                group.start_soon(self._work, lane, cases)
        for lane in lanes:
            self.tally.outcomes += lane.outcomes

    async def _cases(self, lane: Lane) -> list[Case]:
        """See how long requests and answers are; each of their bytes, or some, with a fault that is drawn."""
        cases: list[Case] = []
        for verb in VERBS:
            for _ in range(2):  # the first time scripts and connections are new
                await self._one(lane, Case(verb, "none", "", 0))
            self.tally.bytes[f"{self._link}, {verb}"] = sum(lane.sizes.values())
            places = [(direction, at) for direction, size in lane.sizes.items() for at in range(size)]
            drawn = self._rng.sample(places, max(len(_FAULTS), round(len(places) * self._share)))
            kinds = itertools.cycle(self._rng.sample(list(_FAULTS), len(_FAULTS)))
            cases += [Case(verb, fault, *place) for fault, place in zip(kinds, drawn, strict=False)]
        self._rng.shuffle(cases)
        return cases

    async def _work(self, lane: Lane, cases: list[Case]) -> None:
        while cases:
            await self._one(lane, cases.pop())

    async def _one(self, lane: Lane, case: Case) -> None:
        lane.number += 1
        fault = _FAULTS.get(case.fault)
        lane.rule = rule = fault and Rule(fault(self._rng), case.direction, case.at)
        try:
            with anyio.fail_after(BOUND):
                await VERBS[case.verb](lane)
        except Exception as error:
            self.tally.violations.append(f"{self._link}, {case}: {told(error)}"[:1000])
        lane.proxy.clear()
        lane.wipe()
        if rule is not None:
            self.tally.done[case.fault] += rule.hits


def told(error: BaseException) -> str:
    """Say what went wrong, from out of all groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def hasten() -> None:
    """Have connections that wait given up as soon as others; by default that takes a third of a minute."""
    from torrelque.drivers import _coredis, _redispy

    for module in (_coredis, _redispy):
        module.LATE = PATIENCE
    catching.BLOCK = PATIENCE
    listening.PING = 2 * PATIENCE
    watching.REREAD = watching.SUBSCRIBED = PATIENCE


def _address(url: str) -> tuple[str, int] | Path:
    place = urlsplit(url)
    return (place.hostname, place.port or 6379) if place.hostname else Path(place.path)


@asynccontextmanager
async def library_lanes(pair: Pair, url: str) -> AsyncGenerator[list[Lane]]:
    """Queues of the library, each behind a proxy before Redis."""
    names = ("socket_timeout",) if pair.client == "redispy" else ("stream_timeout", "connect_timeout")
    impatient = dict(zip(names, (PATIENCE, CONNECT), strict=False))
    async with AsyncExitStack() as stack:
        admin = stack.enter_context(redis.Redis.from_url(url))
        straight = await stack.enter_async_context(open_client(pair, url))
        lanes: list[Lane] = []
        for number in range(LANES):
            name = f"{pair}-{number}"
            proxy = stack.enter_context(faulty(_address(url)))
            behind = f"redis://127.0.0.1:{proxy.port}/0"
            client = await stack.enter_async_context(open_client(pair, behind, **impatient))
            callers = [
                LibraryCaller(await stack.enter_async_context(Torrelque(each, queue=name, serialiser=AS_THEY_ARE)))
                for each in (client, straight)
            ]
            lanes.append(Lane(name, callers[0], callers[0], callers[1], proxy, admin))
        yield lanes


@asynccontextmanager
async def server_lanes(url: str, link: str) -> AsyncGenerator[list[Lane]]:
    """Servers behind a proxy before Redis, or one server with proxies before it."""
    async with AsyncExitStack() as stack:
        admin = stack.enter_context(redis.Redis.from_url(url))
        pair = PAIRS[0]
        straight = await stack.enter_async_context(open_client(pair, url))
        lanes: list[Lane] = []
        served = None
        for number in range(SERVERS if link == STORAGE else LANES):
            name = f"{link}-{number}".replace(" ", "-")
            if link == STORAGE:
                proxy = stack.enter_context(faulty(_address(url)))
                behind = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout={PATIENCE}"
                target = stack.enter_context(serving("--redis", behind, "--no-sweep")).address
            else:
                served = served or stack.enter_context(serving("--redis", url, "--no-sweep"))
                host, port = served.address.split(":")
                proxy = stack.enter_context(faulty((host, int(port))))
                target = proxy.address
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=_CHANNEL))
            stub, house = pb_grpc.TorrelqueServiceStub(channel), pb_grpc.TorrelqueAdminServiceStub(channel)
            # A server is given the time to try once more what it may.
            hurried, patient = (WireCaller(stub, house, name, *bounds) for bounds in ((3 * PATIENCE, 1), (10, 3)))
            direct = LibraryCaller(
                await stack.enter_async_context(Torrelque(straight, queue=name, serialiser=AS_THEY_ARE))
            )
            lanes.append(Lane(name, hurried, patient, direct, proxy, admin, wire=True, silent=link != STORAGE))
        yield lanes


#: The links of gRPC.
STORAGE, WIRE = "server to Redis", "client to server"
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_retries", 0),
]


def work(link: str, url: str, seed: int, share: float) -> Tally:
    """Do what there is to do on a link, in a process of its own."""
    logging.getLogger("torrelque").setLevel(logging.CRITICAL)
    hasten()
    bench = Bench(link, seed, share)
    pair = next((pair for pair in PAIRS if str(pair) == link), None)

    async def main() -> None:
        lanes = library_lanes(pair, url) if pair else server_lanes(url, link)
        async with lanes as opened:
            await bench.run(opened)

    backend, options = pair.backend if pair else ("asyncio", {})
    anyio.run(main, backend=backend, backend_options=options)
    return bench.tally


def run(options: Options) -> Report:
    """All links at a time, each in a process."""
    report = Report()
    links = [str(pair) for pair in PAIRS if "uvloop" not in str(pair)] + [STORAGE, WIRE]
    total = Tally()
    context = multiprocessing.get_context("spawn")
    with running_server(fsync="no") as server, ProcessPoolExecutor(len(links), mp_context=context) as pool:
        # A server has one caller at a time, for its link is shared by all: of its bytes a part is drawn.
        shares = {link: min(1.0, options.scale) * (PART if link == STORAGE else 1) for link in links}
        for future in [pool.submit(work, link, server.url, options.seed, shares[link]) for link in links]:
            tally = future.result()
            total.done += tally.done
            total.outcomes += tally.outcomes
            total.violations += tally.violations
            total.bytes |= tally.bytes
    report.violations = total.violations
    report.minimums["faults that struck"] = (sum(total.done.values()), options.of(CUTS))
    report.measured |= {f"{fault}s": count for fault, count in total.done.items()}
    report.measured |= {f"calls, {outcome}": count for outcome, count in sorted(total.outcomes.items())}
    report.measured["bytes of all verbs and links"] = sum(total.bytes.values())
    return report

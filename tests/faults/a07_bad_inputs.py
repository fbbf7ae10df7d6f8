"""A7: bad input of every kind, to the library, to the server's way in, and to a running server."""

from __future__ import annotations

import itertools
import logging
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import anyio
import grpc
import hypothesis
import redis.asyncio
from faults.figures import Options, Report
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given
from support import PAIRS, Pair, Server, keyspace, open_client, running_server
from support.bad_input import CASES, commands, judge, refusal
from support.bridge import METHODS, Process, connect, seconds, serving
from support.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, Wire, block, frame, message
from support.mutants import INNER, LEGAL, cases, mutated, seeds

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.auth import Authority
from grpc_server.guard import Guard
from grpc_server.house import Drain, House
from grpc_server.limits import Limits
from grpc_server.metrics import Metrics
from grpc_server.queues import Entry
from grpc_server.rpcs import TABLE
from grpc_server.settings import Settings
from torrelque import Torrelque, TorrelqueLookupError, TorrelqueTaskSerialiser

TITLE = (
    "bad arguments, 500,000 spoilt messages, 20,000 spoilt frames: refused with a word of the table, nothing changed"
)
SHORT = 0.03

ARGUMENTS, MESSAGES, FRAMES, DRAWN = 2_000, 500_000, 20_000, 10_000
_AT_A_TIME = 100
#: grpc.aio ends at a path that is no UTF-8. Within so many seconds the server must answer again.
ANSWERS = 10.0


# The library


async def _arguments(pair: Pair, server: Server, violations: list[str]) -> int:
    """Pass every bad value for every parameter of every method."""
    tried = 0
    async with open_client(pair, server.url) as client, Torrelque(client, queue="arguments") as queue:
        await queue.enqueue("bystander", delay=3600)
        stored, asked = keyspace(server.admin), None
        for case in CASES:
            for kind, values in ((ValueError, case.values), (TypeError, case.types)):
                for value in values:
                    asked = asked or commands(server.admin)
                    tried += 1
                    try:
                        with anyio.fail_after(5):
                            judge(await refusal(case.call, queue, value), kind, case.parameter)
                    except (AssertionError, TimeoutError) as error:
                        violations.append(f"{pair}: {case.what}({case.parameter}) of {type(value).__name__}: {error!r}")
        if commands(server.admin) != asked:
            violations.append(f"{pair}: a refused call has asked the server")
        if keyspace(server.admin) != stored:
            violations.append(f"{pair}: a refused call has changed what is stored")
    server.admin.flushdb()
    return tried


# The server's way in: all that stands between the bytes of a message and Redis, and a queue that knows no task


async def _nothing(_: Any) -> Any:
    """Stands where a queue would ask Redis: there is no such task."""
    raise TorrelqueLookupError("there is nothing")


class _NoSeats:
    async def dequeue(self, wanted: int, timeout: float | None, room: float) -> list[Any]:
        await anyio.sleep(math.inf if timeout is None else min(timeout, 0.001))
        return []

    def hand_back(self, deliveries: Any) -> None:
        assert not deliveries


class _NoWatches:
    async def open(self, *_: Any) -> Any:
        raise TorrelqueLookupError("there is nothing")


class _Queues:
    """One queue for every name."""

    def __init__(self, queue: Torrelque) -> None:
        self._entry = Entry(queue)

    def check_served(self, name: str) -> None:
        pass

    async def entry(self, _: str) -> AbstractContextManager[Any]:
        return self._entry


class _Ended(grpc.aio.AbortError):
    """The call was ended with a status."""


class _Context:
    """What gRPC would give to a handler."""

    def __init__(self, requests: list[Any]) -> None:
        self._requests = requests
        self.code: str | None = None
        self.text = ""

    async def abort(self, code: grpc.StatusCode, text: str, trailers: Any) -> None:
        reason = dict(trailers)["x-torrelque-reason"]
        self.code, self.text = f"{code.name}/{reason}", text
        raise _Ended

    async def read(self) -> Any:
        return self._requests.pop(0) if self._requests else grpc.aio.EOF

    async def write(self, response: Any) -> None:
        response.SerializeToString()

    async def send_initial_metadata(self, _: Any) -> None:
        pass

    def time_remaining(self) -> float:
        return 0.2

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, Any]:
        return {}

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return False


class Way:
    """The handlers of a server, without gRPC and without Redis."""

    def __init__(self, group: Any) -> None:
        queue = Torrelque(redis.asyncio.Redis(), queue="way", serialiser=TorrelqueTaskSerialiser(bytes, bytes))
        inside: Any = queue
        inside._room, inside._watches = _NoSeats(), _NoWatches()
        asking = inside._coalescer  # which parts of the queue hold, too
        asking.run = asking.run_many = asking.run_apart = _nothing
        inside.schedule_sweep = lambda *_: None
        settings, queues = Settings(stream_age=0.1, default_wait=0.001, max_wait=0.001), _Queues(queue)
        parts: Any = (settings, queues, Limits(settings), Authority(None), Metrics(), Drain(), group)
        guard = Guard(House(*parts, instance="way"))
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._handlers = {
            name: guard.wrap(
                TABLE[name], method, GetMessageClass(method.input_type), GetMessageClass(method.output_type)
            )
            for name, method in METHODS.items()
        }
        opening = pb.ConsumeRequest(open=pb.ConsumeOpen(queue="way", max_outstanding_tasks=1))
        self._opening = opening.SerializeToString()

    async def try_(self, rpc: str, data: bytes) -> None:
        """Hand a message to the handler of an rpc, as gRPC would."""
        handler = self._handlers[rpc]
        behaviour = next(
            found
            for kind in ("unary_unary", "unary_stream", "stream_stream")
            if (found := getattr(handler, kind)) is not None
        )
        parse = handler.request_deserializer
        requests = [parse(self._opening), parse(data)] if len(data) % 2 else [parse(data)]
        context = _Context(requests if rpc == "Consume" else [])
        try:
            with anyio.fail_after(10):
                await behaviour(None if rpc == "Consume" else parse(data), context)
        except _Ended:
            pass
        except Exception as error:
            self.violations.append(f"{rpc} of {data!r}: {error!r}")
            return
        name = context.code or "OK"
        self.outcomes[name] += 1
        if name not in LEGAL or INNER.search(context.text):
            self.violations.append(f"{rpc} of {data!r}: {name} {context.text}")


def _chosen(known: list[tuple[str, bytes]], count: int, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    return (chance.choice(known) for _ in range(count))


async def _messages(options: Options, known: list[tuple[str, bytes]], report: Report) -> None:
    chance = random.Random(options.seed)
    async with anyio.create_task_group() as group:
        way = Way(group)
        spoilt = ((rpc, mutated(data, chance)) for rpc, data in _chosen(known, options.of(MESSAGES), chance))
        waiting = itertools.chain(spoilt, _drawn(options))

        async def work() -> None:
            for rpc, data in waiting:
                await way.try_(rpc, data)

        async with anyio.create_task_group() as workers:
            for _ in range(_AT_A_TIME):
                workers.start_soon(work)
        group.cancel_scope.cancel()
    report.violations += way.violations
    count = way.outcomes.total()
    report.minimums["messages parsed and validated, drawn ones too"] = (
        count, options.of(MESSAGES) + options.of(DRAWN, _AT_A_TIME),
    )  # fmt: skip
    report.measured |= {f"answered {name}": number for name, number in way.outcomes.most_common()}
    # It was no one-sided play: many were let through, and many refused for each of the main reasons.
    refused = sum(number for name, number in way.outcomes.items() if name.startswith("INVALID_ARGUMENT"))
    report.minimums["messages refused as invalid"] = (refused, count / 10)
    report.minimums["messages let through to the queue"] = (count - refused, count / 10)


def _drawn(options: Options) -> list[tuple[str, bytes]]:
    drawn: list[tuple[str, bytes]] = []

    @hypothesis.seed(options.seed)
    @hypothesis.settings(
        max_examples=options.of(DRAWN, _AT_A_TIME), database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @given(cases())
    def run(case: tuple[str, bytes]) -> None:
        drawn.append(case)

    run()
    # Where fewer different ones came, some are tried again.
    return (drawn * -(-options.of(DRAWN, _AT_A_TIME) // len(drawn)))[: options.of(DRAWN, _AT_A_TIME)]


# A running server


def _connected(process: Process) -> Wire:
    """Connect; gRPC may just be on its way up again."""
    wire_until = time.monotonic() + ANSWERS
    while True:
        try:
            return Wire(process.address, preface=PREFACE + frame(SETTINGS, 0, 0))
        except OSError:
            if time.monotonic() > wire_until:
                raise
            time.sleep(0.02)


def _spoilt(stream: int, path: str, body: bytes, chance: random.Random) -> bytes:
    """Spell a call and change bytes of it anywhere but in its path: one that is no UTF-8 ends grpc.aio itself, of which
    there is a test."""
    headers = frame(HEADERS, END_HEADERS, stream, block(path))
    end = headers.index(path.encode()) + len(path)
    rest = headers[end:] + frame(DATA, END_STREAM, stream, body)
    if chance.randrange(4):
        return headers[:end] + mutated(rest, chance)
    # The head of the frame: its length, its kind, its flags, its stream.
    at = chance.randrange(9)
    return headers[:at] + bytes([headers[at] ^ 1 << chance.randrange(8)]) + headers[at + 1 : end] + rest


def _frames(options: Options, process: Process, known: list[tuple[str, bytes]], report: Report) -> None:
    """Send calls of which bytes were changed anywhere: in the frames, the headers, or the message."""
    chance, sent = random.Random(options.seed + 1), 0
    while sent < options.of(FRAMES):
        with _connected(process) as wire:
            for stream in range(1, 201, 2):
                rpc, data = chance.choice(known)
                path = f"/{METHODS[rpc].containing_service.full_name}/{rpc}"
                sent += 1
                if not wire.send(_spoilt(stream, path, message(data), chance)):
                    break
        if sent % 1000 < 100 and process.process.poll() is not None:
            report.violations.append(f"the server has ended with {process.process.returncode}")
            return
    report.minimums["spoilt calls, frame by frame"] = (sent, options.of(FRAMES))


def _server(options: Options, server: Server, report: Report) -> None:
    waits = ["--default-wait", "0.02", "--max-wait", "0.05", "--stream-age", "0.1", "--max-queues", "100000"]
    with serving("--redis", server.url, *waits) as process:
        sentinel = f"s{secrets.token_hex(8)}"
        with connect(process.address, "way") as client, connect(process.address, sentinel) as owner:
            known = seeds(client)
            for number in range(20):
                owner.enqueue(b"%d" % number, delay=seconds(3600 * (number % 2)))
            before = {key: server.admin.dump(key) for key in server.admin.scan_iter(f"{sentinel}:*")}
            _frames(options, process, known, report)
            if {key: server.admin.dump(key) for key in server.admin.scan_iter(f"{sentinel}:*")} != before:
                report.violations.append("a spoilt call has changed another queue")
            with _connected(process):
                pass
            with connect(process.address, "honest") as honest:
                task_id = honest.enqueue(b"honest")
                if [task.task_id for task in honest.dequeue()] != [task_id]:
                    report.violations.append("an honest task did not come back")
    log = process.log()
    anew = log.count("gRPC has ended by itself")
    report.measured["gRPC was started anew"] = anew
    # grpc.aio complains of its own end with one traceback.
    if log.count("Traceback") > anew or log.count("UnicodeDecodeError") < anew:
        report.violations.append("the server's log has a traceback")
    anyio.run(_messages, options, known, report)


def run(options: Options) -> Report:
    """Library, way in, server."""
    report = Report()
    logging.getLogger("torrelque").addHandler(logging.NullHandler())
    with running_server(fsync="no") as server:
        tried = sum(
            anyio.run(
                _arguments, pair, server, report.violations, backend=pair.backend[0], backend_options=pair.backend[1]
            )
            for pair in PAIRS
        )
        report.minimums["bad arguments"] = (tried, ARGUMENTS)
        _server(options, server, report)
    return report

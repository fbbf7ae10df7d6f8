"""Twenty thousand messages that nobody would send, calls that are none, and HTTP/2 that is none: each gets its answer,
no word of ours gets out, and honest callers notice nothing."""

from __future__ import annotations

import random
import re
import secrets
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bridge import DEADLINE, METHODS, Client, Process, connect, refusal, seconds, serving
from support.http2 import (
    CONSUME,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    WINDOW,
    Wire,
    block,
    frame,
    header,
    message,
)  # fmt: skip
from support.mutants import INNER, LEGAL, cases, mutated, seeds
from support.streams import consuming, until

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.settings import valid_queue

MUTATED, DRAWN, DRAWN_AT_A_TIME = 18_000, 2_000, 100


@dataclass
class Target:
    """A server whose waits are short, and a queue that must stay as it is."""

    process: Process
    client: Client
    admin: redis.Redis
    sentinel: str
    outcomes: Counter[str]

    def image(self) -> dict[bytes, bytes]:
        """Copy all that is stored of the sentinel."""
        return {key: self.admin.dump(key) for key in self.admin.scan_iter(f"{self.sentinel}:*", count=1000)}

    def call(self, rpc: str, kind: str) -> Any:
        """Make a call of bytes to bytes."""
        return getattr(self.client.channel, kind)(f"/{METHODS[rpc].containing_service.full_name}/{rpc}")

    def note(self, rpc: str, data: object, name: str) -> None:
        assert name in LEGAL, (rpc, data, name)
        self.outcomes[name] += 1


@pytest.fixture(scope="module")
def target(storage: str) -> Iterator[Target]:
    """A server for this file, on a database of its own."""
    url = f"{storage}?db=5"
    options = ["--default-wait", "0.02", "--max-wait", "0.05", "--stream-age", "0.1", "--max-queues", "100000"]
    sentinel = f"s{secrets.token_hex(8)}"
    with redis.Redis.from_url(url) as admin, serving("--redis", url, *options) as process:
        with connect(process.address, "fuzz") as client:
            with connect(process.address, sentinel) as owner:
                for number in range(20):
                    owner.enqueue(b"%d" % number, delay=seconds(3600 * (number % 2)))
                for task in owner.dequeue(5):
                    if int(task.payload.data) % 4:
                        owner.release(task.task_id, result=pb.Payload(data=b"r"))
            yield Target(process, client, admin, sentinel, Counter())
        admin.flushdb()
    for sign in ("Traceback", "never retrieved", "ERROR", "was never awaited"):
        assert sign not in process.log(), process.log()


def dequeued(client: Client) -> list[pb.Task]:
    """Dequeue until something comes: this server waits for 50 ms at most, in which a busy machine may not get to it."""
    ends = time.monotonic() + DEADLINE
    while not (tasks := client.dequeue()):
        assert time.monotonic() < ends, "nothing came"
    return tasks


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the server answers, the sentinel is as it was, and all else is in queues with legal names."""
    if "target" not in request.fixturenames:
        yield
        return
    target: Target = request.getfixturevalue("target")
    before = target.image()
    assert before
    yield
    with connect(target.process.address, "honest") as honest:
        task_id = honest.enqueue(b"honest")
        assert [task.task_id for task in dequeued(honest)] == [task_id]
        honest.release(task_id)
    assert target.image() == before
    suffix = re.compile(r":(?:pending|dequeueing|undequeued|working|delayed|tasks|task:[^\x00-\x1f\x7f-\x9f]+)\Z")
    for key in target.admin.scan_iter(count=1000):
        name, parts, _ = key.decode().partition(suffix.search(key.decode())[0])
        assert parts
        assert valid_queue(name), key


# Messages


def send_all(target: Target, cases: Sequence[tuple[str, bytes]]) -> None:
    """Send messages, many at a time, and look at how each ends."""
    alone = [case for case in cases if not METHODS[case[0]].server_streaming]
    streamed = [case for case in cases if METHODS[case[0]].server_streaming]
    with ThreadPoolExecutor(24) as pool:
        streams = [pool.submit(stream_one, target, rpc, data) for rpc, data in streamed]
        calls = {rpc: target.call(rpc, "unary_unary") for rpc in METHODS}
        for start in range(0, len(alone), 200):
            window = alone[start : start + 200]
            futures = [calls[rpc].future(data, timeout=DEADLINE) for rpc, data in window]
            for (rpc, data), future in zip(window, futures, strict=True):
                target.note(rpc, data, ended(rpc, lambda future=future: [future.result()]))
        for (rpc, data), stream in zip(streamed, streams, strict=True):
            target.note(rpc, data, stream.result())


def stream_one(target: Target, rpc: str, data: bytes) -> str:
    if rpc != "Consume":
        return ended(rpc, lambda: list(target.call(rpc, "unary_stream")(data, timeout=DEADLINE)))
    opening = pb.ConsumeRequest(open=pb.ConsumeOpen(queue="fuzz", max_outstanding_tasks=1)).SerializeToString()
    # Every other one comes after a good beginning.
    requests = [opening, data] if len(data) % 2 else [data]
    return ended(rpc, lambda: list(target.call(rpc, "stream_stream")(iter(requests), timeout=DEADLINE)))


def ended(rpc: str, wait: Callable[[], list[bytes]]) -> str:
    """Name the end of a call; what it says in words must be for strangers."""
    try:
        answers = wait()
    except grpc.RpcError as error:
        refused = refusal(error)
        assert not INNER.search(refused.text), refused
        assert not INNER.search(" ".join(refused.fields)), refused
        return refused.name
    for answer in answers:
        for item in items(rpc, answer):
            assert not INNER.search(item.message), item
            assert f"{grpc_code(item.code)}/{item.reason}" in LEGAL, item
    return "OK"


def items(rpc: str, answer: bytes) -> Sequence[pb.ItemError]:
    if rpc == "BatchRelease":
        return pb.BatchReleaseResponse.FromString(answer).errors
    return pb.ConsumeResponse.FromString(answer).settled.errors if rpc == "Consume" else ()


def grpc_code(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def test_mutations_of_valid_messages(target: Target) -> None:
    """Bits flipped, bytes cut and put in, in requests of every rpc: an answer of the table, each time."""
    chance = random.Random(20_260_101)
    known = seeds(target.client)
    cases = [(rpc, mutated(data, chance)) for rpc, data in (chance.choice(known) for _ in range(MUTATED))]
    target.outcomes.clear()
    send_all(target, cases)
    assert target.outcomes.total() == MUTATED
    # It was no one-sided play: many were taken, and many refused for each of the main reasons.
    for name in ("OK", "INVALID_ARGUMENT/MALFORMED_REQUEST", "INVALID_ARGUMENT/INVALID_FIELD"):
        assert target.outcomes[name] > MUTATED / 50, target.outcomes


# Messages that are well formed and say anything


def test_drawn_messages(target: Target) -> None:
    """Any bytes, and any message that can be spelled: an answer of the table, each time."""
    sent = 0

    @settings(
        max_examples=DRAWN // DRAWN_AT_A_TIME, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(cases(), min_size=DRAWN_AT_A_TIME, max_size=DRAWN_AT_A_TIME))
    def run(drawn: list[tuple[str, bytes]]) -> None:
        nonlocal sent
        sent += len(drawn)
        send_all(target, drawn)

    run()
    assert sent >= DRAWN


# Calls of what is not there


@pytest.mark.parametrize(
    "path",
    [
        "/torrelque.v1.TorrelqueService/enqueue", "/torrelque.v1.TorrelqueService/", "/torrelque.v1.TorrelqueService",
        "/torrelque.v1.TorrelqueService/Enqueue/", "/torrelque.v1.TorrelqueService/Sweep", "/torrelque.v2.X/Enqueue",
        "/TorrelqueService/Enqueue", "/", "//", "/../Enqueue", "/torrelque.v1.TorrelqueService/Enqueue?x=1", "/%00/%0a",
        "/" + "x" * 4000,
    ],
)  # fmt: skip
def test_a_wrong_path(target: Target, path: str) -> None:
    """What is not served is UNIMPLEMENTED, however it is asked for."""
    for kind in ("unary_unary", "unary_stream"):
        with pytest.raises(grpc.RpcError) as raised:
            answer = getattr(target.client.channel, kind)(path)(b"", timeout=DEADLINE)
            list(answer)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_path_that_is_no_text(storage: str) -> None:
    """A path that is no UTF-8 ends grpc.aio's server for good, and at times the process with it, by a fault of memory.
    Ours answers again soon, or has failed for everybody to see: it never stands there and refuses connections."""
    bad = block().replace(b"/Enqueue", b"/Enqueu\xf3")
    with serving("--redis", f"{storage}?db=6") as process:
        with connect(process.address, "path") as client, consuming(client) as stream:
            stream.opened()
            with Wire(process.address) as wire:
                wire.call(1, bad, message(GOOD))
                with pytest.raises(grpc.RpcError):
                    stream.next()
        with connect(process.address, "path") as client:
            until(lambda: process.process.poll() or answers(client))


def answers(client: Client) -> bool:
    """Whether calls are answered."""
    try:
        client.stats()
    except grpc.RpcError:
        return False
    return True


def test_inflated_messages(target: Target) -> None:
    """What is small on the way and large after it counts as large."""
    request = pb.EnqueueRequest(queue="fuzz", task=pb.TaskSpec(payload=pb.Payload(data=bytes(64 << 20))))
    with pytest.raises(grpc.RpcError) as raised:
        target.client.stub.Enqueue(request, timeout=DEADLINE, compression=grpc.Compression.Gzip)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    request.task.payload.data = bytes(1000)
    assert target.client.stub.Enqueue(request, timeout=DEADLINE, compression=grpc.Compression.Gzip).task_id


# HTTP/2, by hand

GOOD = pb.EnqueueRequest(queue="fuzz", task=pb.TaskSpec(payload=pb.Payload(data=b"1"))).SerializeToString()


def test_an_honest_call_by_hand(target: Target) -> None:
    """The hand that writes the frames below writes good ones too."""
    with Wire(target.process.address) as wire:
        wire.call(1, block(), message(GOOD))
        assert wire.end_of(1)[0] == "answered"
    assert target.client.stats().tasks > 0


BAD_CALLS: dict[str, tuple[bytes, bytes]] = {
    "content_type_text": (block(content_type=b"text/plain"), message(GOOD)),
    "content_type_json": (block(content_type=b"application/json"), message(GOOD)),
    "method_get": (block() + header(b":method", b"GET"), message(GOOD)),
    "prefix_of_the_most": (block(), message(GOOD, length=2**32 - 1)),
    "compressed_without_encoding": (block(), message(GOOD, flag=1)),
    "unknown_flag": (block(), message(GOOD, flag=7)),
    "not_gzip": (block(grpc_encoding=b"gzip"), message(GOOD, flag=1)),
    "unknown_encoding": (block(grpc_encoding=b"br"), message(GOOD, flag=1)),
    "two_messages": (block(), message(GOOD) * 2),
    "timeout_of_ages": (block(grpc_timeout=b"99999999H"), message(GOOD)),
    "timeout_of_nothing": (block(grpc_timeout=b"0n"), message(GOOD)),
    "timeout_below_zero": (block(grpc_timeout=b"-1S"), message(GOOD)),
    "timeout_of_junk": (block(grpc_timeout=b"soon"), message(GOOD)),
    "timeout_empty": (block(grpc_timeout=b""), message(GOOD)),
    "metadata_too_large": (block(more=[(b"x-large", b"x" * 12_000)] * 2), message(GOOD)),
    "metadata_too_many": (block(more=[(b"x-%d" % i, b"y") for i in range(1000)]), message(GOOD)),
    "metadata_not_base64": (block(more=[(b"x-bin", b"!!!")]), message(GOOD)),
    "name_in_capitals": (block(more=[(b"X-Odd", b"y")]), message(GOOD)),
    "no_path": (header(b":method", b"POST"), message(GOOD)),
    "headers_that_are_none": (b"\xff" * 40, message(GOOD)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call(target: Target, name: str) -> None:
    """Headers and prefixes that lie are answered, or the stream is reset; nobody is left waiting."""
    headers, body = BAD_CALLS[name]
    with Wire(target.process.address) as wire:
        wire.call(1, headers, body)
        how, said = wire.end_of(1)
    assert how in {"answered", "reset"}
    assert not re.search(rb"traceback|redis|<class", said, re.I)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(1000), b"\xff" * 1000, b"\x16\x03\x01\x02\x00\x01\x00" + bytes(600),
        PREFACE + b"\xff" * 100, PREFACE + frame(SETTINGS, 0, 0, b"x"), PREFACE + frame(DATA, 0, 1, b"x"),
        PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW, 0, 0, bytes(4)),
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1, block()) + frame(DATA, 0, 1, b"x"),
        PREFACE + frame(SETTINGS, 0, 0) + frame(DATA, 0, 0, b"x" * 70_000),
    ],
    ids=[
        "http1", "zeros", "ones", "tls", "junk_after_preface", "settings_of_one_byte", "data_first", "window_of_zero",
        "headers_cut_by_data", "oversized",
    ],
)  # fmt: skip
def test_what_is_no_http2(target: Target, data: bytes) -> None:
    """A peer that does not speak HTTP/2 is hung up on."""
    with Wire(target.process.address, preface=data) as wire:
        for kind, *_ in wire.frames():
            if kind == GOAWAY:
                break


def test_frames_that_are_cut_off(target: Target) -> None:
    """A connection may end anywhere in a call."""
    whole = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, block())
    whole += frame(DATA, END_STREAM, 1, message(GOOD))
    for end in range(1, len(whole), 7):
        with Wire(target.process.address, preface=whole[:end]):
            pass


def test_streams_without_messages(target: Target) -> None:
    """Twenty calls of each rpc that say nothing after their headers, or half of it, do not lock anybody out."""
    silences = (None, b"", b"\0\0", message(GOOD, length=1000))
    with Wire(target.process.address) as wire:
        stream = -1
        for rpc, method in METHODS.items():
            headers = block(f"/{method.containing_service.full_name}/{rpc}")
            for i in range(20):
                stream += 2
                silence = silences[i % len(silences)]
                wire.send(frame(HEADERS, END_HEADERS, stream, headers))
                if silence is not None:
                    wire.send(frame(DATA, END_STREAM, stream, silence))
        with connect(target.process.address, "fuzz") as honest:
            honest.enqueue()
            assert len(dequeued(honest)) == 1
            opening = pb.ConsumeRequest(open=pb.ConsumeOpen(queue="fuzz", max_outstanding_tasks=1))
            assert next(honest.stub.Consume(iter([opening]), timeout=DEADLINE)).HasField("opened")


def honest_calls(target: Target) -> None:
    """Call while somebody else floods."""
    with connect(target.process.address, "honest") as honest:
        for _ in range(20):
            began = time.monotonic()
            honest.stats()
            assert time.monotonic() - began < 5


def flood(target: Target, make: Callable[[int], bytes], count: int) -> None:
    """Send many pieces on one connection, beside honest calls."""
    with ThreadPoolExecutor(1) as pool, Wire(target.process.address) as wire:
        honest = pool.submit(honest_calls, target)
        for number_ in range(count):
            if not wire.send(make(number_)):
                break
        honest.result(60)


def test_a_flood_of_resets(target: Target) -> None:
    """Thousands of calls that are taken back at once are borne, or the connection is ended."""
    headers = block()

    def make(n: int) -> bytes:
        stream = 2 * n + 1
        return frame(HEADERS, END_HEADERS, stream, headers) + frame(RST, 0, stream, bytes(4))

    flood(target, make, 3000)


def test_resets_end_nobody_elses_calls(target: Target) -> None:
    """Calls that others take back by thousands at once are no reason to refuse those of honest callers."""
    headers = block()
    resets = [frame(HEADERS, END_HEADERS, n, headers) + frame(RST, 0, n, bytes(4)) for n in range(1, 2001, 2)]
    with connect(target.process.address, "honest") as honest:
        honest.stats()
        calls = []
        for _ in range(8):
            with Wire(target.process.address) as wire:
                wire.send(b"".join(resets))
                request = pb.GetQueueStatsRequest(queue="honest")
                calls += [honest.stub.GetQueueStats.future(request, timeout=DEADLINE) for _ in range(20)]
        for call in calls:
            call.result()


def test_floods_of_small_frames(target: Target) -> None:
    """So are pings, settings, and headers without end."""
    flood(target, lambda n: frame(PING, 0, 0, struct.pack(">Q", n)), 3000)
    flood(target, lambda _: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)), 3000)
    flood(target, lambda n: frame(CONTINUATION, 0, 1, header(b"x", b"y")) if n else frame(HEADERS, 0, 1, block()), 3000)


def test_consumers_that_are_reset(target: Target) -> None:
    """Streams that are opened well and reset give their places and their connections back."""
    opening = pb.ConsumeRequest(open=pb.ConsumeOpen(queue="fuzz-resets", max_outstanding_tasks=1)).SerializeToString()
    with Wire(target.process.address) as wire:
        for n in range(300):
            stream = 2 * n + 1
            wire.send(frame(HEADERS, END_HEADERS, stream, block(CONSUME)) + frame(DATA, 0, stream, message(opening)))
            wire.send(frame(RST, 0, stream, struct.pack(">I", 8)))
        honest_calls(target)

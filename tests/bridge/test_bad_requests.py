"""Every field of every request: what may not be in it, the answer, and that nothing has changed after it."""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import redis
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from support.bridge import DEADLINE, Client, Process, connect, refused, seconds
from support.streams import Stream, until

from grpc_server._pb import torrelque_pb2 as pb

MIB = 1 << 20
DAY = 86_400
METHODS = {method.name: method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}


# What is bad, by kind of field: a name and the value


class Unset:
    """Stands for a field that is not set."""


class Times:
    """Stands for so many elements."""

    def __init__(self, count: int) -> None:
        self.count = count


Bad = dict[str, Any]

NAMES: Bad = {
    "long": "x" * 129, "space": "a b", "star": "a*", "question": "a?", "bracket": "[a]", "backslash": "a\\",
    "nul": "a\0", "newline": "a\r\n", "slash": "a/b", "umlaut": "ä", "rtl": "a\u202eb", "zero_width": "a\u200bb",
    "no_tag": "{}", "two_tags": "{a}{b}", "open_tag": "{a", "closed_tag": "a}", "tag_in_tag": "{{a}}",
}  # fmt: skip
TASK_IDS: Bad = {
    "empty": "", "long": "x" * 129, "long_bytes": "é" * 65, "nul": "a\0", "newline": "a\n", "delete": "\x7f",
    "control": "a\x85",
}  # fmt: skip
REQUEST_IDS: Bad = {
    "long": "x" * 129, "space": "a b", "umlaut": "ä", "slash": "a/b", "newline": "a\n", "colon": "a:b", "tag": "{a}",
    "digit": "\u0663",
}  # fmt: skip
COUNTS: Bad = {"zero": 0, "negative": -1, "most_negative": -(2**31)}
#: What is no Duration at all, or before zero.
NO_LENGTHS: Bad = {
    "negative": Duration(seconds=-1), "negative_nanos": Duration(nanos=-1), "a_second_of_nanos": Duration(nanos=10**9),
    "nanos": Duration(seconds=1, nanos=2 * 10**9), "signs": Duration(seconds=1, nanos=-1),
    "other_signs": Duration(seconds=-1, nanos=1), "beyond": Duration(seconds=315_576_000_001),
    "before": Duration(seconds=-315_576_000_001), "most": Duration(seconds=2**63 - 1),
    "least": Duration(seconds=-(2**63)), "least_nanos": Duration(nanos=-(2**31)),
}  # fmt: skip


def lengths(most: float, *, zero: bool) -> Bad:
    """What is no length of time up to *most* seconds."""
    bad = {**NO_LENGTHS, "above": seconds(most + 0.000_001)}
    return bad if zero else {**bad, "zero": Duration(), "nanosecond": Duration(nanos=1)}


LEASES, DELAYS = lengths(DAY, zero=False), lengths(365 * DAY, zero=True)
KEPT, PROGRESS = lengths(30 * DAY, zero=False), lengths(3600, zero=True)
PAGE_TOKENS: Bad = {
    "text": "next", "no_id": "1.000000/", "no_time": "/a", "short": "1.5/a", "line": "1.000000/a\n",
    "letters": "1.000000/\u00e9", "negative": "-1.000000/a", "long": "1" * 13 + ".000000/a",
}  # fmt: skip
NO_STATUSES: Bad = {"99": 99, "next": 6, "negative": -1, "most": 2**31 - 1}
NOT_FINAL: Bad = {"pending": 1, "working": 2, "delayed": 3}
TOO_LARGE: Bad = {"one_more": b"x" * (MIB + 1), "twice": b"x" * (2 * MIB)}
OTHER_TYPES: Bad = {"text": "text/plain", "case": "Application/JSON", "more": "application/json; charset=utf-8"}
NOT_SO_MANY: Bad = {"none": Times(0), "1001": Times(1001)}
ABSENT: Bad = {"unset": Unset}


@dataclass(frozen=True)
class Rule:
    """What a field may not hold, and what is said then."""

    bad: Bad
    reason: str = "INVALID_FIELD"


def rules(prefix: str, table: dict[str, list[Rule]]) -> dict[str, list[Rule]]:
    return {prefix + path: of for path, of in table.items()}


QUEUE, TASK_ID, COUNT, LEASE = [Rule(NAMES)], [Rule(TASK_IDS)], [Rule(COUNTS)], [Rule(LEASES)]
STATUS = [Rule(NO_STATUSES), Rule(NOT_FINAL, "STATUS_NOT_FINAL")]
PAYLOAD = {"data": [Rule(TOO_LARGE, "PAYLOAD_TOO_LARGE")], "content_type": [Rule(OTHER_TYPES, "CONTENT_TYPE_MISMATCH")]}
SPEC = {
    **rules("payload.", PAYLOAD), "task_timeout": LEASE, "delay": [Rule(DELAYS)], "request_id": [Rule(REQUEST_IDS)],
}  # fmt: skip
RELEASE = {
    **rules("result.", PAYLOAD), "result_ttl": [Rule(KEPT)], "status": STATUS,
    "dead_letter": [Rule({"completed": True})],
}  # fmt: skip
LETTERS = {"queue": QUEUE, "task_ids": [Rule(NOT_SO_MANY)], "task_ids[]": TASK_ID, "all": [Rule({"and_some": True})]}
REQUEUE = {"delay": [Rule(DELAYS)], "task_timeout": LEASE}
HELD = {"task_id": TASK_ID, "dequeue_count": COUNT}
SETTLEMENT = {
    **HELD, "action": [Rule(ABSENT)], **rules("release.", RELEASE), **rules("requeue.", REQUEUE),
    "extend.task_timeout": LEASE,
}  # fmt: skip

#: By rpc and path of the field; `[]` is an element of a list.
RULES: dict[str, dict[str, list[Rule]]] = {
    "Enqueue": {"queue": QUEUE, "task": [Rule(ABSENT)], **rules("task.", SPEC)},
    "BatchEnqueue": {"queue": QUEUE, "tasks": [Rule(NOT_SO_MANY)], **rules("tasks[].", SPEC)},
    "Dequeue": {
        "queue": QUEUE, "max_tasks": [Rule({"negative": -1, "least": -(2**31)})], "timeout": [Rule(NO_LENGTHS)],
    },
    "ExtendLease": {"queue": QUEUE, **HELD, "task_timeout": LEASE},
    "Requeue": {"queue": QUEUE, **HELD, **REQUEUE},
    "Release": {"queue": QUEUE, **HELD, **RELEASE},
    "BatchRelease": {"queue": QUEUE, "settlements": [Rule(NOT_SO_MANY)], **rules("settlements[].", SETTLEMENT)},
    "GetTaskState": {"queue": QUEUE, "task_id": TASK_ID},
    "GetQueueStats": {"queue": QUEUE},
    "Watch": {
        "queue": QUEUE, "task_id": TASK_ID, "timeout": [Rule(NO_LENGTHS)], "progress_interval": [Rule(PROGRESS)],
        "cursor.status": [Rule(NO_STATUSES)],
    },
    "Consume": {
        "request": [Rule(ABSENT)],
        "open.queue": QUEUE,
        "open.max_outstanding_tasks": [Rule({"zero": 0, "negative": -1, "above": 10_001, "most": 2**31 - 1})],
        "open.max_outstanding_bytes": [Rule({"negative": -1, "least": -(2**63)})],
        "open.disconnect_policy": [Rule({"next": 3, "99": 99, "negative": -1})],
        "open.progress_interval": [Rule(PROGRESS)],
        "credit.max_outstanding_tasks": [Rule({"negative": -1, "above": 10_001, "least": -(2**31)})],
        "settle.settlements": [Rule({"1001": Times(1001)})],
        **rules("settle.settlements[].", SETTLEMENT),
    },
    "Sweep": {"queue": QUEUE},
    "ScheduleSweep": {"queue": QUEUE, "interval": LEASE},
    "UnscheduleSweep": {"queue": QUEUE},
    "ListDeadLetters": {
        "queue": QUEUE, "max_letters": [Rule({"negative": -1, "least": -(2**31)})], "page_token": [Rule(PAGE_TOKENS)],
    },
    "RequeueDeadLetters": LETTERS,
    "PurgeDeadLetters": LETTERS,
}  # fmt: skip

#: Fields in which anything may stand, and why.
ANYTHING: dict[str, dict[str, str]] = {
    "Enqueue": {"task.payload": "unset is empty"},
    "BatchEnqueue": {"tasks[].payload": "unset is empty"},
    "Dequeue": {"worker_id": "grants nothing"},
    "Release": {"result": "unset is no result"},
    "BatchRelease": {"settlements[].release.result": "unset is no result"},
    "Watch": {"cursor": "unset is none", "cursor.revision": "opaque"},
    "Consume": {
        "open.worker_id": "grants nothing", "settle.sequence": "echoed",
        "settle.settlements[].release.result": "unset is no result",
    },
}  # fmt: skip


def fields(of: Any, prefix: str = "") -> Iterator[str]:
    """Walk the fields of a message; the members of a oneof go by the name of the oneof, and by what is in them."""
    for oneof in of.oneofs:
        if not oneof.name.startswith("_"):  # as that of an optional field
            yield prefix + oneof.name
    for field in of.fields:
        choice = field.containing_oneof is not None and not field.containing_oneof.name.startswith("_")
        if not choice:
            yield prefix + field.name
        if field.is_repeated and field.message_type is None:
            yield f"{prefix}{field.name}[]"
        if field.message_type is not None and field.message_type.full_name != Duration.DESCRIPTOR.full_name:
            many = "[]" if field.is_repeated else ""
            yield from fields(field.message_type, f"{prefix}{field.name}{many}.")


@pytest.mark.parametrize("rpc", METHODS)
def test_no_field_is_forgotten(rpc: str) -> None:
    """Each field of each request has its rows here, or is named as one that takes anything; and no other is named."""
    known = {*RULES[rpc], *ANYTHING.get(rpc, {})}
    assert known == set(fields(METHODS[rpc].input_type))
    assert not set(RULES[rpc]) & set(ANYTHING.get(rpc, {}))


# Requests that are good but for one field


def good(rpc: str, place: Place) -> Any:
    """Build a request that would change something, had it no bad field."""
    spec = pb.TaskSpec(payload=pb.Payload(data=b"1"), task_timeout=seconds(9), request_id="new")
    held: dict[str, Any] = {"task_id": place.task_id, "dequeue_count": 1}
    queue: dict[str, Any] = {"queue": place.queue}
    build: dict[str, Callable[[], Any]] = {
        "Enqueue": lambda: pb.EnqueueRequest(**queue, task=spec),
        "BatchEnqueue": lambda: pb.BatchEnqueueRequest(**queue, tasks=[pb.TaskSpec(), spec]),
        "Dequeue": lambda: pb.DequeueRequest(**queue, max_tasks=2, timeout=Duration()),
        "ExtendLease": lambda: pb.ExtendLeaseRequest(**queue, **held, task_timeout=seconds(9)),
        "Requeue": lambda: pb.RequeueRequest(**queue, **held, delay=seconds(9)),
        "Release": lambda: pb.ReleaseRequest(**queue, **held, result=pb.Payload(data=b"1"), result_ttl=seconds(9)),
        "BatchRelease": lambda: pb.BatchReleaseRequest(**queue, settlements=settlements(place)),
        "GetTaskState": lambda: pb.GetTaskStateRequest(**queue, task_id=place.task_id),
        "GetQueueStats": lambda: pb.GetQueueStatsRequest(**queue),
        "Watch": lambda: pb.WatchRequest(**queue, task_id=place.task_id, timeout=seconds(1)),
        "Consume": lambda: pb.ConsumeRequest(open=pb.ConsumeOpen(**queue, max_outstanding_tasks=3)),
        "Sweep": lambda: pb.SweepRequest(**queue),
        "ScheduleSweep": lambda: pb.ScheduleSweepRequest(**queue, interval=seconds(9)),
        "UnscheduleSweep": lambda: pb.UnscheduleSweepRequest(**queue),
        "ListDeadLetters": lambda: pb.ListDeadLettersRequest(**queue, max_letters=3),
        "RequeueDeadLetters": lambda: pb.RequeueDeadLettersRequest(**queue, task_ids=["nobody", "dead"]),
        "PurgeDeadLetters": lambda: pb.PurgeDeadLettersRequest(**queue, task_ids=["nobody", "dead"]),
    }
    return build[rpc]()


def settlements(place: Place) -> list[pb.Settlement]:
    """Two, of which a test spoils the second: the first changes nothing, as its task is unknown."""
    return [
        pb.Settlement(task_id="nobody", release=pb.ReleaseAction()),
        pb.Settlement(task_id=place.task_id, dequeue_count=1, release=pb.ReleaseAction()),
    ]


def put(message: Any, path: str, value: Any) -> None:
    """Set one field; of a list, the second element is meant."""
    name, _, rest = path.partition(".")
    if rest:
        put(getattr(message, name[:-2])[1] if name.endswith("[]") else getattr(message, name), rest, value)
    elif name.endswith("[]"):
        getattr(message, name[:-2])[1] = value
    elif value is Unset:
        message.ClearField(message.WhichOneof(name) if name in message.DESCRIPTOR.oneofs_by_name else name)
    elif isinstance(value, Times):
        elements = getattr(message, name)
        element = copy.deepcopy(elements[1])
        del elements[:]
        elements.extend([element] * value.count)
    elif isinstance(value, Duration):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


@dataclass
class Place:
    """A queue with a task in every state but pending, and a dead letter: nothing in it changes by itself."""

    client: Client
    admin: redis.Redis
    task_id: str

    @property
    def queue(self) -> str:
        return self.client.queue

    def digest(self) -> str:
        """Sum up all that is stored: each key, what is in it, and when it ends."""
        total = hashlib.sha256()
        for key in sorted(self.admin.scan_iter("*", count=1000)):
            total.update(key)
            if key.startswith(self.queue.encode()):
                total.update(self.admin.dump(key))
                total.update(b"%d" % self.admin.execute_command("PEXPIRETIME", key))
        return total.hexdigest()


@pytest.fixture(scope="module")
def place(bridge: Process, admin: redis.Redis) -> Iterator[Place]:
    """One queue for all: what is refused leaves it as it is."""
    with connect(bridge.address, f"t{secrets.token_hex(6)}") as client:
        client.enqueue(b"held")
        released = client.enqueue(b"released")
        client.enqueue(b"delayed", delay=seconds(3600))
        held, _ = client.dequeue(2)
        client.release(released, result=pb.Payload(data=b"r"))
        client.enqueue(b"dead", request_id="dead")
        client.dequeue()
        client.release("dead", status=pb.TASK_STATUS_REJECTED, dead_letter=True)
        yield Place(client, admin, held.task_id)
        admin.delete(*admin.scan_iter(f"{client.queue}:*"))


def send(client: Client, rpc: str, request: Any) -> Any:
    """Call an rpc that takes one request, and wait for its end."""
    stub = client.admin if METHODS[rpc].containing_service.name == "TorrelqueAdminService" else client.stub
    answer = getattr(stub, rpc)(request, timeout=DEADLINE)
    return list(answer) if METHODS[rpc].server_streaming else answer


def exchange(client: Client, *requests: pb.ConsumeRequest) -> list[pb.ConsumeResponse]:
    """Send all on a Consume stream, half-close it, and take what comes."""
    return list(client.stub.Consume(iter(requests), timeout=DEADLINE))


def rows(*, settling: bool) -> list[Any]:
    """List all that is bad, either in settlements, each of which fails on its own, or elsewhere."""
    return [
        pytest.param(rpc, path, value, rule.reason, id=f"{rpc}-{path}-{name}")
        for rpc, table in RULES.items()
        for path, of in table.items()
        for rule in of
        for name, value in rule.bad.items()
        if settling == ("settlements[]" in path)
    ]


@pytest.mark.parametrize(("rpc", "path", "value", "reason"), rows(settling=False))
def test_a_bad_field(place: Place, rpc: str, path: str, value: Any, reason: str) -> None:
    """It is refused with its reason and the path of the field, and nothing is stored or changed."""
    before = place.digest()
    with refused(f"INVALID_ARGUMENT/{reason}") as details:
        if rpc == "Consume":
            exchange(place.client, *spoiled_stream(place, path, value))
        else:
            request = good(rpc, place)
            put(request, path, value)
            send(place.client, rpc, request)
    named = [path.replace("[]", "[1]")]
    # The guard, which reads the queue of every rpc, may name it alike.
    assert details[0].fields == named
    assert details[0].text.startswith(details[0].fields[0])
    assert place.digest() == before


def spoiled_stream(place: Place, path: str, value: Any) -> list[pb.ConsumeRequest]:
    """Build the requests of a stream, the last of which is bad."""
    opening = good("Consume", place)
    if path.startswith("open."):
        put(opening, path, value)
        return [opening]
    if path.startswith("credit."):
        bad = pb.ConsumeRequest(credit=pb.ConsumeCredit(max_outstanding_tasks=1))
    else:
        bad = pb.ConsumeRequest(settle=pb.ConsumeSettle(sequence=7, settlements=settlements(place)))
    put(bad, path, value)
    return [opening, bad]


@pytest.mark.parametrize(("rpc", "path", "value", "reason"), rows(settling=True))
def test_a_bad_settlement(place: Place, rpc: str, path: str, value: Any, reason: str) -> None:
    """It fails alone, with its place, code and reason; the call and the stream go on, and nothing is changed."""
    before = place.digest()
    if rpc == "Consume":
        responses = exchange(place.client, *spoiled_stream(place, path, value))
        (settled,) = [each.settled for each in responses if each.WhichOneof("response") == "settled"]
        assert settled.sequence == 7
        other, error = settled.errors
    else:
        request = good(rpc, place)
        put(request, path, value)
        other, error = send(place.client, rpc, request).errors
    assert (other.index, other.code, other.reason) == (0, grpc.StatusCode.NOT_FOUND.value[0], "TASK_NOT_FOUND")
    assert (error.index, error.code, error.reason) == (1, grpc.StatusCode.INVALID_ARGUMENT.value[0], reason)
    assert error.message.startswith(path.removeprefix("settle.").replace("[]", "[1]"))
    assert place.digest() == before


# The order of a stream


def test_a_stream_that_is_not_opened(place: Place) -> None:
    """The first request must be `open`: nothing, an empty request or another one ends the stream."""
    before = place.digest()
    for requests in (
        [],
        [pb.ConsumeRequest()],
        [pb.ConsumeRequest(credit=pb.ConsumeCredit(max_outstanding_tasks=1))],
        [pb.ConsumeRequest(settle=pb.ConsumeSettle(settlements=settlements(place)))],
    ):
        with refused("INVALID_ARGUMENT/INVALID_FIELD") as details:
            exchange(place.client, *requests)
        assert details[0].fields == ["request"]
    assert place.digest() == before


def test_a_stream_that_is_opened_twice(place: Place) -> None:
    """A second `open` ends the stream, and so does an empty request or one that only a later version knows."""
    before = place.digest()
    opening = good("Consume", place)
    later = pb.ConsumeRequest.FromString(b"\xa2\x06\x00")  # field 100, an empty message
    for request in (opening, pb.ConsumeRequest(), later):
        with refused("INVALID_ARGUMENT/INVALID_FIELD") as details:
            exchange(place.client, opening, request)
        assert details[0].fields == ["request"]
    assert place.digest() == before


def test_tasks_of_a_stream_that_breaks_the_order(client: Client) -> None:
    """A stream that ends so leaves its delivered tasks leased, as every end does; one that asked gets them requeued."""
    for policy, stays in ((pb.DISCONNECT_POLICY_KEEP_LEASE, "working"), (pb.DISCONNECT_POLICY_REQUEUE, "pending")):
        task_id = client.enqueue()
        stream = Stream(client, disconnect_policy=policy)
        stream.opened()
        stream.tasks(1)
        stream.send()
        with refused("INVALID_ARGUMENT/INVALID_FIELD"):
            stream.next()
        stream.half_close()
        until(lambda stays=stays: getattr(client.stats(), stays) == 1)
        if stays == "pending":
            assert [task.task_id for task in client.dequeue()] == [task_id]
        client.release(task_id)


# Bytes that are no message


@pytest.mark.parametrize("rpc", METHODS)
def test_bytes_that_are_no_message(place: Place, rpc: str) -> None:
    """Bad UTF-8, a field cut off, a field number of zero, a group without end, nesting without end: one answer."""
    before = place.digest()
    service = METHODS[rpc].containing_service.full_name
    kind = "stream_stream" if rpc == "Consume" else "unary_stream"
    call = getattr(place.client.channel, kind)(f"/{service}/{rpc}")
    # In Consume the queue's name is in `open`.
    bad_name = b"\x0a\x03\x0a\x01\xff" if rpc == "Consume" else b"\x0a\x01\xff"
    for data in (bad_name, b"\x0a\x7f", b"\x02\x00", b"\x0b", b"\x0b" * 10_000, b"\xff" * 11, b"\x80"):
        with refused("INVALID_ARGUMENT/MALFORMED_REQUEST") as details:
            list(call(iter([data]) if rpc == "Consume" else data, timeout=DEADLINE))
        assert details[0].fields == []
    assert place.digest() == before


def test_fields_of_a_later_version(client: Client) -> None:
    """A field that this server does not know is passed over."""
    request = pb.EnqueueRequest(queue=client.queue, task=pb.TaskSpec(payload=pb.Payload(data=b"1")))
    later = request.SerializeToString() + b"\xa2\x06\x03abc" + b"\xa8\x06\x07"  # fields 100 and 101
    call = client.channel.unary_unary(
        "/torrelque.v1.TorrelqueService/Enqueue", response_deserializer=pb.EnqueueResponse.FromString
    )
    task_id = call(later, timeout=DEADLINE).task_id
    assert client.dequeue()[0].task_id == task_id


@pytest.mark.parametrize("rpc", ["Enqueue", "Dequeue", "Watch", "Consume"])
def test_messages_beyond_the_limit(place: Place, rpc: str) -> None:
    """What gRPC itself refuses has its code and none of our details; the connection goes on."""
    before = place.digest()
    request = good(rpc, place)
    request.MergeFrom(GetMessageClass(request.DESCRIPTOR).FromString(b"\xa2\x06\x80\x80\xc0\x02" + b"x" * (5 * MIB)))
    with pytest.raises(grpc.RpcError) as raised:
        if rpc == "Consume":
            exchange(place.client, request)
        else:
            send(place.client, rpc, request)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "x-torrelque-reason" not in dict(raised.value.trailing_metadata() or ())
    assert place.client.stats().working == 1
    assert place.digest() == before


# What is just about good


#: Values that are legal, as far as they go.
EDGES: dict[str, dict[str, Bad]] = {
    "Enqueue": {
        "queue": {"long": "x" * 128, "all": "Az09_.:-{q}", "tag": "{q}"},
        "task.payload": ABSENT,
        "task.payload.data": {"most": b"x" * MIB, "empty": b"", "nul": b"\0"},
        "task.payload.content_type": {"empty": "", "json": "application/json"},
        "task.task_timeout": {"least": Duration(nanos=1_000_000), "most": seconds(DAY), "unset": Unset},
        "task.delay": {"zero": Duration(), "most": seconds(365 * DAY), "nanosecond": Duration(nanos=1)},
        "task.request_id": {"empty": "", "long": "x" * 128, "all": "Az09_.-", "dots": ".."},
    },
    "BatchEnqueue": {"tasks": {"1000": Times(1000), "1": Times(1)}, "tasks[].payload.data": {"most": b"x" * MIB}},
    "Dequeue": {
        "max_tasks": {"zero": 0, "many": 10**9},
        "worker_id": {"long": "w" * 100_000, "odd": "a\r\n\0\u202e"},
    },
    "ExtendLease": {"task_timeout": {"least": Duration(nanos=1_000_000), "most": seconds(DAY), "unset": Unset}},
    "Requeue": {"delay": {"most": seconds(365 * DAY), "unset": Unset}, "dequeue_count": {"unset": Unset}},
    "Release": {
        "result": ABSENT,
        "result.data": {"most": b"x" * MIB, "empty": b""},
        "result_ttl": {"least": Duration(nanos=1_000_000), "most": seconds(30 * DAY), "unset": Unset},
        "status": {"unset": 0, "completed": 4, "rejected": 5},
    },
    "BatchRelease": {"settlements": {"1": Times(1), "1000": Times(1000)}},
    "Watch": {
        "cursor.status": {"unset": 0},
        "cursor.revision": {"negative": -1},
        "timeout": {"unset": Unset, "most": Duration(seconds=315_576_000_000)},
    },
    "Consume": {
        "open.max_outstanding_tasks": {"least": 1, "most": 10_000},
        "open.max_outstanding_bytes": {"zero": 0, "most": 2**63 - 1},
        "open.worker_id": {"long": "w" * 100_000},
        "open.disconnect_policy": {"keep": 1, "requeue": 2},
        "open.progress_interval": {"zero": Duration(), "most": seconds(3600)},
        "credit.max_outstanding_tasks": {"zero": 0, "most": 10_000},
        "settle.sequence": {"zero": 0, "most": 2**64 - 1},
        "settle.settlements": {"none": Times(0), "1000": Times(1000)},
    },
    "ScheduleSweep": {"interval": {"most": seconds(DAY), "unset": Unset}},
    "ListDeadLetters": {
        "max_letters": {"zero": 0, "many": 10**9},
        "page_token": {"empty": "", "late": "999999999999.999999/%FF"},
    },
    "RequeueDeadLetters": {"task_ids": {"1": Times(1), "1000": Times(1000)}},
    "PurgeDeadLetters": {"task_ids": {"1": Times(1), "1000": Times(1000)}},
}


def edges() -> list[Any]:
    return [
        pytest.param(rpc, path, value, id=f"{rpc}-{path}-{name}")
        for rpc, table in EDGES.items()
        for path, values in table.items()
        for name, value in values.items()
    ]


@pytest.fixture(scope="module")
def open_edge(bridge: Process) -> Iterator[Client]:
    """A queue that is used for one value after the other."""
    with connect(bridge.address, f"t{secrets.token_hex(6)}") as client:
        yield client


@pytest.fixture
def edge(open_edge: Client, admin: redis.Redis) -> Iterator[Place]:
    """That queue, with one task, which is held."""
    open_edge.enqueue(b"held")
    (held,) = open_edge.dequeue()
    yield Place(open_edge, admin, held.task_id)
    if keys := list(admin.scan_iter(f"{open_edge.queue}:*")):
        admin.delete(*keys)


@pytest.mark.parametrize(("rpc", "path", "value"), edges())
def test_the_edge_of_what_is_good(edge: Place, admin: redis.Redis, rpc: str, path: str, value: Any) -> None:
    """The last value within a limit is taken."""
    place, client = edge, edge.client
    request = good(rpc, place)
    if rpc == "Consume":
        exchange(client, *spoiled_stream(place, path, value))
        return
    put(request, path, value)
    if rpc == "Watch":
        client.release(place.task_id, result=pb.Payload(data=b"r"))
        assert [each.state.result.data for each in send(client, rpc, request)] == [b"r"]
    else:
        send(client, rpc, request)
    if path == "queue":
        admin.delete(*admin.scan_iter(f"{value}:*"))
    elif rpc == "ScheduleSweep":
        client.admin.UnscheduleSweep(pb.UnscheduleSweepRequest(queue=client.queue))


def test_times_beyond_the_limit_of_a_wait_are_clamped(client: Client) -> None:
    """A poll may ask for any time: it gets the server's maximum, and ends before its deadline."""
    request = pb.DequeueRequest(queue=client.queue, timeout=seconds(364 * DAY))
    assert client.stub.Dequeue(request, timeout=0.5) == pb.DequeueResponse()


@pytest.mark.parametrize("task_id", ["../pending", "*", "?", "[a]", "pending", "trq:tasks", "\u202e", "x" * 128])
def test_ids_that_nobody_has(place: Place, task_id: str) -> None:
    """Whatever else an id looks like, it is one that is not known."""
    before = place.digest()
    for rpc in ("ExtendLease", "Requeue", "Release", "GetTaskState", "Watch"):
        request = good(rpc, place)
        put(request, "task_id", task_id)
        with refused("NOT_FOUND/TASK_NOT_FOUND") as details:
            send(place.client, rpc, request)
        assert details[0].metadata == {"queue": place.queue, "taskId": task_id}
    assert place.digest() == before


@pytest.mark.parametrize("count", [2, 2**31 - 1])
def test_a_delivery_that_never_was(place: Place, count: int) -> None:
    """A number that was not given out for this task holds no lease."""
    before = place.digest()
    for rpc in ("ExtendLease", "Requeue", "Release"):
        request = good(rpc, place)
        put(request, "dequeue_count", count)
        with refused("FAILED_PRECONDITION/LEASE_LOST") as details:
            send(place.client, rpc, request)
        assert details[0].metadata["current"] == "1"
    assert place.digest() == before


def test_a_batch_with_one_bad_task(place: Place) -> None:
    """All are checked before the first is stored, whichever is bad."""
    before = place.digest()
    for position in (0, 499, 999):
        tasks = [pb.TaskSpec(payload=pb.Payload(data=b"x")) for _ in range(1000)]
        tasks[position].request_id = "a b"
        with refused("INVALID_ARGUMENT/INVALID_FIELD") as details:
            send(place.client, "BatchEnqueue", pb.BatchEnqueueRequest(queue=place.queue, tasks=tasks))
        assert details[0].fields == [f"tasks[{position}].request_id"]
    assert place.digest() == before


def test_an_error_never_outgrows_its_trailers(place: Place) -> None:
    """However long what was sent, what is said of it fits into the metadata that clients take."""
    request = good("BatchRelease", place)
    put(request, "queue", "q" * 3_000_000)
    with refused("INVALID_ARGUMENT/INVALID_FIELD") as details:
        send(place.client, "BatchRelease", request)
    assert len(details[0].text) < 400

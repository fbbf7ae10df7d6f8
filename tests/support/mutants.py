"""Messages that nobody would send: spoilt ones, and any that can be spelled; and what may be said of them."""

from __future__ import annotations

import random
import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from grpc_server._pb import torrelque_pb2 as pb

from .bridge import METHODS, Client, seconds

#: All that a message alone may bring about.
LEGAL = {
    "OK", "INVALID_ARGUMENT/MALFORMED_REQUEST", "INVALID_ARGUMENT/INVALID_FIELD", "INVALID_ARGUMENT/PAYLOAD_TOO_LARGE",
    "INVALID_ARGUMENT/CONTENT_TYPE_MISMATCH", "INVALID_ARGUMENT/STATUS_NOT_FINAL", "NOT_FOUND/TASK_NOT_FOUND",
    "FAILED_PRECONDITION/TASK_NOT_WORKING", "FAILED_PRECONDITION/LEASE_LOST", "DEADLINE_EXCEEDED/WATCH_TIMEOUT",
    "UNAVAILABLE/STREAM_EXPIRED",
}  # fmt: skip
#: Words of Python, of the library, of grpcio and of Redis. None of them is for strangers.
INNER = re.compile(r"traceback|exception|error|unexpected|redis|valkey|python|grpc|0x[0-9a-f]{6}|<class|\.py\b", re.I)


def seeds(client: Client) -> list[tuple[str, bytes]]:
    """Valid requests of every rpc, about tasks in several states."""
    queue = client.queue
    for number in range(6):
        client.enqueue(b"%d" % number)
    working = [task.task_id for task in client.dequeue(4)]
    client.release(working[3], result=pb.Payload(data=b"r"))
    payload = pb.Payload(data=b'{"a": 1}', content_type="application/json")
    spec = pb.TaskSpec(payload=payload, task_timeout=seconds(60), delay=seconds(1.5), request_id="r-1")
    actions: list[dict[str, Any]] = [
        {
            "release": pb.ReleaseAction(
                result=payload, result_ttl=seconds(60), status=pb.TASK_STATUS_REJECTED, dead_letter=True
            )
        },
        {"requeue": pb.RequeueAction(delay=seconds(5), task_timeout=seconds(60))},
        {"extend": pb.ExtendAction(task_timeout=seconds(600))},
    ]
    settlements = [pb.Settlement(task_id=working[i], dequeue_count=1, **action) for i, action in enumerate(actions)]
    held: dict[str, Any] = {"queue": queue, "task_id": working[2], "dequeue_count": 1}
    requests: dict[str, list[Any]] = {
        "Enqueue": [pb.EnqueueRequest(queue=queue, task=spec)],
        "BatchEnqueue": [pb.BatchEnqueueRequest(queue=queue, tasks=[spec, pb.TaskSpec(payload=payload), spec])],
        "Dequeue": [pb.DequeueRequest(queue=queue, max_tasks=3, timeout=seconds(0.01), worker_id="w")],
        "ExtendLease": [pb.ExtendLeaseRequest(**held, task_timeout=seconds(60))],
        "Requeue": [pb.RequeueRequest(**held, delay=seconds(60), task_timeout=seconds(60))],
        "Release": [pb.ReleaseRequest(**held, result=payload, result_ttl=seconds(60), status=pb.TASK_STATUS_COMPLETED)],
        "BatchRelease": [pb.BatchReleaseRequest(queue=queue, settlements=settlements)],
        "GetTaskState": [pb.GetTaskStateRequest(queue=queue, task_id=working[3])],
        "GetQueueStats": [pb.GetQueueStatsRequest(queue=queue)],
        "Watch": [
            pb.WatchRequest(
                queue=queue, task_id=task_id, timeout=seconds(0.05), progress_interval=seconds(0.1),
                cursor=pb.WatchCursor(revision=2, status=pb.TASK_STATUS_WORKING),
            )
            for task_id in (working[2], working[3])
        ],
        "Consume": [
            pb.ConsumeRequest(open=pb.ConsumeOpen(queue=queue, max_outstanding_tasks=2, max_outstanding_bytes=10)),
            pb.ConsumeRequest(open=pb.ConsumeOpen(queue=queue, max_outstanding_tasks=2, disconnect_policy=2)),
            pb.ConsumeRequest(credit=pb.ConsumeCredit(max_outstanding_tasks=2)),
            pb.ConsumeRequest(settle=pb.ConsumeSettle(sequence=1, settlements=settlements)),
        ],
        "Sweep": [pb.SweepRequest(queue=queue)],
        "ScheduleSweep": [pb.ScheduleSweepRequest(queue=queue, interval=seconds(3600))],
        "UnscheduleSweep": [pb.UnscheduleSweepRequest(queue=queue)],
        "ListDeadLetters": [
            pb.ListDeadLettersRequest(queue=queue, max_letters=3, page_token="1700000000.123456/r-1"),
        ],
        "RequeueDeadLetters": [pb.RequeueDeadLettersRequest(queue=queue, task_ids=["r-1", working[0]])],
        "PurgeDeadLetters": [pb.PurgeDeadLettersRequest(queue=queue, all=True)],
    }  # fmt: skip
    assert set(requests) == set(METHODS)
    return [(rpc, request.SerializeToString()) for rpc, of in requests.items() for request in of]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Spoil a message: flip bits, cut, insert, double, or swap bytes; sometimes more than once."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(6)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del changed[at : at + chance.choice((1, 2, len(changed)))]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.choice((1, 2, 8, 300)))
        elif kind == 4:
            changed[at:at] = changed[at : at + 20]
        elif at < len(changed):
            changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(changed)


NUMBERS = st.sampled_from((-(2**31), -1, 0, 1, 2, 2**31 - 1))
TEXTS = st.one_of(
    st.sampled_from(("", "fuzz", "f:2", "{f}", "r-1", "../fuzz", "*", "application/json", "x" * 129)),
    st.text(max_size=20),
)


def durations() -> st.SearchStrategy[Duration]:
    whole = st.sampled_from((0, 0, 0, 1, 60, -1, 86_400, 315_576_000_001, 2**63 - 1, -(2**63)))
    nanos = st.sampled_from((0, 0, 1_000_000, 1, -1, 999_999_999, 10**9, -(2**31)))
    return st.builds(Duration, seconds=whole, nanos=nanos)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        if field.message_type.full_name == Duration.DESCRIPTOR.full_name:
            return durations()
        return messages(field.message_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return TEXTS if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=50)
    if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64:
        return st.integers(0, 2**64 - 1)
    return NUMBERS


def messages(of: Any) -> st.SearchStrategy[Any]:
    """Draw messages of a type: any field may be there or not, and hold anything its type allows."""
    singles = {field.name: values(field) for field in of.fields if field.containing_oneof is None}
    several = {field.name for field in of.fields if field.is_repeated}
    for name in several:
        singles[name] = st.lists(singles[name], max_size=3)
    parts = [st.fixed_dictionaries({}, optional=singles)]
    for oneof in of.oneofs:
        choices = [st.fixed_dictionaries({field.name: values(field)}) for field in oneof.fields]
        parts.append(st.one_of(st.just({}), *choices))

    def build(drawn: tuple[dict[str, Any], ...]) -> Any:
        return GetMessageClass(of)(**{name: value for part in drawn for name, value in part.items()})

    return st.tuples(*parts).map(build)


def cases() -> st.SearchStrategy[tuple[str, bytes]]:
    def case(rpc: str) -> st.SearchStrategy[tuple[str, bytes]]:
        drawn = messages(METHODS[rpc].input_type).map(lambda message: message.SerializeToString())
        return st.tuples(st.just(rpc), st.one_of(drawn, drawn, st.binary(max_size=100)))

    return st.one_of(*[case(rpc) for rpc in METHODS])

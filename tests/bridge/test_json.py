"""A server that is told to take JSON only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bridge import Client, connect, refused, serving

from grpc_server._pb import torrelque_pb2 as pb

NO_JSON = [b"", b"{", b"nul", b"NaN", b"[1, Infinity]", b"-Infinity", b"\xff", b"'a'", b"1 2", b"[" * 100_000]
#: JSON may stand alone, be spaced, and hold any numbers and text.
JSON = [b"{}", b" [1, 2.5e300] ", b"null", b'"\\u00e4"', '"ä"'.encode(), b"123456789012345678901234567890"]


@pytest.fixture(scope="module")
def strict(storage: str) -> Iterator[str]:
    """The address of such a server."""
    with serving("--redis", storage, "--check-json") as process:
        yield process.address


@pytest.fixture
def client(strict: str, queue: str) -> Iterator[Client]:
    with connect(strict, queue) as client:
        yield client


@pytest.mark.parametrize("body", NO_JSON, ids=range(len(NO_JSON)))
def test_no_json(client: Client, body: bytes) -> None:
    """What is no JSON is refused, as a payload and as a result, and nothing is changed."""
    with refused("INVALID_ARGUMENT/PAYLOAD_NOT_JSON") as details:
        client.enqueue(body)
    assert details[0].fields == ["task.payload.data"]
    task_id = client.enqueue(b"1")
    client.dequeue()
    with refused("INVALID_ARGUMENT/PAYLOAD_NOT_JSON") as details:
        client.release(task_id, result=pb.Payload(data=body))
    assert details[0].fields == ["result.data"]
    assert client.stats().working == 1


@pytest.mark.parametrize("body", JSON, ids=range(len(JSON)))
def test_json(client: Client, body: bytes) -> None:
    """JSON passes, and stays byte for byte what it was."""
    client.enqueue(body)
    assert [task.payload.data for task in client.dequeue()] == [body]

"""Pings: a client that looks after its connection as Go and Java programs do is not sent away for it."""

from __future__ import annotations

import pytest
from support.bridge import Process, connect

from grpc_server._pb import torrelque_pb2 as pb

#: A client that pings as often as the server tolerates, also when nothing is said.
EAGER = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


@pytest.mark.slow
def test_a_silent_watch_outlives_its_pings(bridge: Process, queue: str) -> None:
    """A watch on which nothing comes for four pings is still there, and sees what happens then."""
    with connect(bridge.address, queue, settings=EAGER) as client:
        task_id = client.enqueue()
        watch = client.stub.Watch(pb.WatchRequest(queue=queue, task_id=task_id), timeout=100)
        assert next(watch).state.status == pb.TASK_STATUS_PENDING
        # What is waited for are the pings: this poll finds nothing and takes as long as four of them.
        with connect(bridge.address, f"{queue}.other") as other:
            assert other.dequeue(wait=42, deadline=60) == []
        client.dequeue()
        assert next(watch).state.status == pb.TASK_STATUS_WORKING
        watch.cancel()

"""Redis away, killed, full: callers hear what they may do, and everything goes on by itself."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from anyio.from_thread import start_blocking_portal
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.bridge import Client, Process, connect, refusal, refused, seconds, serving
from support.http2 import HEADERS, PREFACE, SETTINGS, Wire, block, frame, message
from support.streams import BOUND, Stream, consuming, release, until

from grpc_server._pb import torrelque_pb2 as pb
from torrelque import open_server
from torrelque.embedded import _free_port


class Storage:
    """A Valkey on one port and one directory, to be killed and started again."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    @contextmanager
    def up(self) -> Iterator[redis.Redis]:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(open_server(self.data_dir, port=self.port, fsync="always")),
            redis.Redis.from_url(self.url) as admin,
        ):
            yield admin

    def kill(self) -> None:
        os.kill(int((self.data_dir / "server.pid").read_text()), signal.SIGKILL)


def test_killed_and_started_again(tmp_path: Path) -> None:
    """Meanwhile calls are UNAVAILABLE with a time to come back; then polls, watches and consumers go on by themselves,
    and a watch has missed nothing."""
    storage = Storage(tmp_path / "data")
    with serving("--redis", storage.url) as process, connect(process.address, "q") as client:
        with storage.up():
            watched = client.enqueue(b"w")
            watch = client.watch(watched)
            assert next(watch).state.status == pb.TASK_STATUS_PENDING
            stream = Stream(client, max_outstanding_tasks=1)
            stream.opened()
            (task,) = stream.tasks(1)
            assert task.task_id == watched
            storage.kill()
            said: list[str] = []

            def unavailable() -> bool:
                try:
                    client.stats()
                except grpc.RpcError as error:
                    details = refusal(error)
                    said.append(details.name)
                    return details.name == "UNAVAILABLE/STORAGE_UNAVAILABLE" and details.retry_after is not None
                return False

            until(unavailable)
            assert not [each for each in said if "redis" in each.lower()]
        with storage.up():
            until(lambda: _works(client))
            assert stream.settle(release(task, result=pb.Payload(data=b"r"))) == []
            states = [each.state.status for each in watch]
            assert states[-1] == pb.TASK_STATUS_COMPLETED
            # The stream and a poll wait on: both find what comes now.
            client.enqueue(b"1")
            (task,) = stream.tasks(1)
            stream.settle(release(task))
            stream.send(credit=pb.ConsumeCredit(max_outstanding_tasks=0))
            stream.settle()
            client.enqueue(b"2")
            assert [task.payload.data for task in client.dequeue()] == [b"2"]
            stream.half_close()
        assert " ERROR " not in process.log()


def test_a_consumer_that_asks_meanwhile(tmp_path: Path) -> None:
    """A stream that wants more while Redis is away gets it when it is back; one that is opened meanwhile is refused."""
    storage = Storage(tmp_path / "data")
    with serving("--redis", storage.url) as process, connect(process.address, "q") as client:
        with storage.up():
            client.enqueue(b"1")
            stream = Stream(client, max_outstanding_tasks=1)
            stream.opened()
            (held,) = stream.tasks(1)
            storage.kill()
            stream.send(credit=pb.ConsumeCredit(max_outstanding_tasks=2))
            other = Stream(client, max_outstanding_tasks=1)
            other.opened()
            with pytest.raises(grpc.RpcError) as caught:
                other.next()
            # A claim may have gone over a connection of before, whose end it met.
            assert refusal(caught.value).name in {"UNAVAILABLE/STORAGE_UNAVAILABLE", "UNKNOWN/OUTCOME_UNKNOWN"}
        with storage.up():
            until(lambda: _works(client))
            client.enqueue(b"2")
            (task,) = stream.tasks(1)
            assert task.payload.data == b"2"
            assert stream.settle(release(held), release(task)) == []
            stream.half_close()


def test_what_is_given_back_meanwhile(tmp_path: Path) -> None:
    """What a stream is to give back when it ends while Redis is away goes back when that is there again."""
    storage = Storage(tmp_path / "data")
    with serving("--redis", storage.url) as process, connect(process.address, "q") as client:
        with storage.up():
            client.enqueue(b"1")
            stream = Stream(client, max_outstanding_tasks=1, disconnect_policy="DISCONNECT_POLICY_REQUEUE")
            stream.opened()
            stream.tasks(1)
            storage.kill()
            stream.half_close()
            assert list(stream.call) == []
        with storage.up():
            until(lambda: _works(client))
            (task,) = client.dequeue(wait=BOUND)
            assert task.dequeue_count == 2
            client.release(task.task_id, dequeue_count=2)


def _works(client: Client) -> bool:
    try:
        client.stats()
    except grpc.RpcError:
        return False
    return True


def test_health_follows(tmp_path: Path) -> None:
    """It is NOT_SERVING while Redis is away, and SERVING again after."""
    storage = Storage(tmp_path / "data")
    with serving("--redis", storage.url) as process, grpc.insecure_channel(process.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        said = health_pb2.HealthCheckResponse

        def status() -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status

        with storage.up():
            until(lambda: status() == said.SERVING)
            storage.kill()
            until(lambda: status() == said.NOT_SERVING)
        with storage.up():
            until(lambda: status() == said.SERVING)


def test_health_waits_for_no_watcher(tmp_path: Path) -> None:
    """Who watches health and takes in nothing keeps nobody else from hearing of an outage, of its end, and of the
    server's."""
    storage = Storage(tmp_path / "data")
    said = health_pb2.HealthCheckResponse
    # It opens the window for the first bytes of a stream no wider than nothing.
    shut = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    with serving("--redis", storage.url, "--grace", "1") as process, grpc.insecure_channel(process.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def status(service: str) -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status

        def watching() -> Any:
            return stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)

        with Wire(process.address, preface=shut) as stranger:
            with storage.up():
                until(lambda: status("") == said.SERVING)
                stranger.call(1, block("/grpc.health.v1.Health/Watch"), message(b""))
                next(each for each in stranger.frames() if each[0] == HEADERS)
                watch = watching()
                assert next(watch).status == said.SERVING
                storage.kill()
                for each in ("", "torrelque.v1.TorrelqueService", "torrelque.v1.TorrelqueAdminService"):
                    until(lambda each=each: status(each) == said.NOT_SERVING)
                assert next(watch).status == said.NOT_SERVING
                assert next(watching()).status == said.NOT_SERVING
            with storage.up():
                until(lambda: status("") == said.SERVING)
                assert next(watch).status == said.SERVING
                process.signal(signal.SIGTERM)
                assert next(watch).status == said.NOT_SERVING
                assert process.wait() == 0


def test_health_of_what_is_not_there(bridge: Process) -> None:
    """Of an unknown service a check says NOT_FOUND, and a watch that it is unknown, and stays."""
    with grpc.insecure_channel(bridge.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]  # what is raised is a call
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=1)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]  # as above


def test_health_watchers_have_a_limit(storage: str) -> None:
    """There are no more of them than of other watches, and one that leaves makes room."""
    options = ("--redis", storage, "--max-watches", "2")
    with serving(*options) as process, grpc.insecure_channel(process.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(2)]
        for watch in watches:
            next(watch)
        with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS"):
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=30))
        watches.pop().cancel()

        def enters() -> bool:
            try:
                return bool(next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)))
            except grpc.RpcError:
                return False

        until(enters)


def test_health_watchers_share_the_limit(storage: str) -> None:
    """A connection that holds all places gives some up to another, until both have as many."""
    request = health_pb2.HealthCheckRequest()
    with serving("--redis", storage, "--max-watches", "4") as process:
        with connect(process.address, "q") as greedy, connect(process.address, "q") as modest:
            many = [health_pb2_grpc.HealthStub(greedy.channel).Watch(request, timeout=30) for _ in range(4)]
            for watch in many:
                next(watch)
            stub = health_pb2_grpc.HealthStub(modest.channel)
            few = [stub.Watch(request, timeout=30) for _ in range(2)]
            for watch in few:
                assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS"):
                next(stub.Watch(request, timeout=30))
            until(lambda: sum(not watch.is_active() for watch in many) == 2)
            for watch in many:
                if not watch.is_active():
                    with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS"):
                        next(watch)
            process.signal(signal.SIGTERM)
            for watch in [*few, *many]:
                if watch.is_active():
                    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert "Traceback" not in process.log()


def test_a_waiting_poll_outlives_it_or_says_so(tmp_path: Path) -> None:
    """A poll that waits while Redis goes away ends with a reason, and holds no task."""
    storage = Storage(tmp_path / "data")
    with serving("--redis", storage.url) as process, connect(process.address, "q") as client:
        with storage.up() as admin:
            poll = client.stub.Dequeue.future(pb.DequeueRequest(queue="q", timeout=seconds(20)), timeout=25)
            until(lambda: any(each["cmd"] == "blmove" for each in admin.client_list()))
            storage.kill()
        with storage.up():
            until(lambda: _works(client))
            client.enqueue(b"1")
            error = poll.exception()
            if error is not None:
                assert refusal(error).name in {"UNAVAILABLE/STORAGE_UNAVAILABLE", "UNKNOWN/OUTCOME_UNKNOWN"}
            got = list(poll.result().tasks) if error is None else client.dequeue()
            assert [task.payload.data for task in got] == [b"1"]


def test_full(storage: str, queue: str) -> None:
    """A Redis that is full says so, with a time to come back; settling still works."""
    with redis.Redis.from_url(storage) as admin, serving("--redis", storage) as process:
        with connect(process.address, queue) as client:
            client.enqueue(b"1")
            (task,) = client.dequeue()
            admin.config_set("maxmemory", 1)
            try:
                with refused("RESOURCE_EXHAUSTED/STORAGE_FULL") as details:
                    client.enqueue(b"2")
                assert details[0].retry_after is not None
                client.release(task.task_id, dequeue_count=1)
            finally:
                admin.config_set("maxmemory", 0)


def test_foreign_data(storage: str, admin: redis.Redis, queue: str) -> None:
    """A key of a foreign type is an error of the storage with an id for the log, and nothing of Redis is told."""
    admin.set(f"{queue}:pending", "a string")
    with serving("--redis", storage, "--log-format", "json") as process, connect(process.address, queue) as client:
        with refused("INTERNAL/STORAGE_ERROR") as details:
            client.enqueue(b"secret payload")
        assert set(details[0].metadata) == {"errorId"}
        assert details[0].metadata["errorId"] in details[0].text
        assert "WRONGTYPE" not in details[0].text
        process.signal(signal.SIGTERM)
        process.wait()
        records = [json.loads(line) for line in process.lines if line.startswith("{")]
        (record,) = [each for each in records if each.get("error_id") == details[0].metadata["errorId"]]
        assert "WRONGTYPE" in record["exception"]
        assert "secret payload" not in process.log()


def test_numbers_that_no_message_holds(client: Client, admin: redis.Redis) -> None:
    """What others have stored as the counts and times of a task may be larger than a message can say: it is cut, and
    ends no stream and no page of others."""
    for task_id in ("live", "dead", "dead-too"):
        client.enqueue(request_id=task_id)
    client.dequeue()
    for task in client.dequeue(2):
        client.release(task.task_id, status=pb.TASK_STATUS_REJECTED, dead_letter=True)
    client.stub.Requeue(pb.RequeueRequest(queue=client.queue, task_id="live", delay=seconds(1000)))
    large = dict.fromkeys(("dequeue_count", "requeue_count", "timeout", "enqueue_time", "last_dequeue_time"), "1e300")
    for task_id in ("live", "dead"):
        admin.hset(f"{client.queue}:task:{task_id}", mapping=large)
    assert client.state("live").dequeue_count == 2**31 - 1
    watch = client.watch("live")
    assert next(watch).state == client.state("live")
    watch.cancel()
    letters = client.admin.ListDeadLetters(pb.ListDeadLettersRequest(queue=client.queue)).letters
    assert [letter.task_id for letter in letters] == ["dead", "dead-too"]
    client.enqueue(b"1")
    with consuming(client) as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        (error,) = stream.settle(pb.Settlement(task_id="live", release=pb.ReleaseAction()), release(task))
        assert (error.index, error.reason, error.dequeue_count) == (0, "TASK_NOT_WORKING", 2**31 - 1)


def test_away_from_the_start(tmp_path: Path) -> None:
    """A server that starts before its Redis answers UNAVAILABLE, and serves when that is there."""
    storage = Storage(tmp_path / "data")
    with serving("--redis", storage.url) as process, connect(process.address, "q") as client:
        with refused("UNAVAILABLE/STORAGE_UNAVAILABLE"):
            client.enqueue(b"1")
        with storage.up():
            until(lambda: _works(client))
            assert client.enqueue(b"1")


@pytest.mark.slow
def test_under_load(tmp_path: Path) -> None:
    """Killed three times under load: what was acknowledged is there, what was released is gone, and no call hangs."""
    storage = Storage(tmp_path / "data")
    enqueued: set[str] = set()
    unsure: set[str] = set()
    released: set[str] = set()
    going = threading.Event()
    going.set()
    lock = threading.Lock()

    def produce(client: Client, who: int) -> None:
        n = 0
        while going.is_set():
            n += 1
            name = f"{who}-{n}"
            try:
                client.enqueue(b"x", request_id=name)
                enqueued.add(name)
            except grpc.RpcError:
                unsure.add(name)
                time.sleep(0.01)

    def work(client: Client) -> None:
        while going.is_set():
            try:
                for task in client.dequeue(10, wait=0.2):
                    client.release(task.task_id, dequeue_count=task.dequeue_count)
                    with lock:
                        released.add(task.task_id)
            except grpc.RpcError:
                time.sleep(0.01)

    with serving("--redis", storage.url, "--task-timeout", "1") as process, connect(process.address, "q") as client:
        threads = [threading.Thread(target=produce, args=(client, n)) for n in range(4)]
        threads += [threading.Thread(target=work, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            with storage.up():
                before = len(released)
                until(lambda before=before: len(released) > before + 200)
                storage.kill()
        with storage.up():
            until(lambda: _works(client))
            going.clear()
            for thread in threads:
                thread.join(30)
            seen = set(released)
            began = time.monotonic()
            while client.stats().tasks:
                assert time.monotonic() - began < 60
                # A few at a time, for their leases end after a second.
                for task in client.dequeue(5, wait=0.5):
                    client.release(task.task_id, dequeue_count=task.dequeue_count)
                    seen.add(task.task_id)
        # A release whose answer was lost may have been done: one of each worker for each kill.
        assert len(enqueued - seen) <= 3 * 4
        assert seen <= enqueued | unsure

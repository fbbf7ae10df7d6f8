"""The end of a server: everybody is told, nothing is lost, and it is over within the grace."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.bridge import DEADLINE, Client, Process, connect, refusal, refused, seconds, serving
from support.streams import Stream, release, until

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.house import Drain
from grpc_server.lifecycle import probe
from grpc_server.settings import Address, SettingsError

GRACE = 4.0


def counts(admin: redis.Redis, queue: str) -> int:
    """Count the tasks that are somewhere in the queue, each in one place."""
    places = [f"{queue}:pending", f"{queue}:dequeueing"]
    listed = [each for place in places for each in admin.lrange(place, 0, -1)]
    listed += admin.zrange(f"{queue}:working", 0, -1) + admin.zrange(f"{queue}:delayed", 0, -1)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(admin.hkeys(f"{queue}:tasks"))
    return len(listed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_amid_polls_watches_and_consumers(storage: str, admin: redis.Redis, queue: str, number: int) -> None:
    """With 100 polls, 100 watches and 10 consumers open it ends within its grace, and no task is lost."""
    enqueued: list[str] = []
    released: set[str] = set()
    failures: list[str] = []
    going = threading.Event()
    going.set()

    def produce(client: Client) -> None:
        try:
            while going.is_set():
                enqueued.append(client.enqueue(b"x"))
        except grpc.RpcError as error:
            failures.append(of(error))

    def poll(client: Client) -> None:
        try:
            while True:
                for task in client.dequeue(wait=30):
                    client.release(task.task_id, dequeue_count=task.dequeue_count)
                    released.add(task.task_id)
        except grpc.RpcError as error:
            failures.append(of(error))

    def watch(client: Client, task_id: str) -> None:
        try:
            for _ in client.watch(task_id):
                pass
        except grpc.RpcError as error:
            failures.append(of(error))

    def consume(client: Client) -> None:
        stream = Stream(client, max_outstanding_tasks=5)
        try:
            while True:
                response = stream.next()
                kind = response.WhichOneof("response")
                if kind == "delivery":
                    stream.send(
                        settle=pb.ConsumeSettle(settlements=[release(task) for task in response.delivery.tasks])
                    )
                    released.update(task.task_id for task in response.delivery.tasks)
                elif kind == "draining":
                    stream.half_close()
        except StopIteration:
            failures.append("draining")
        except grpc.RpcError as error:
            failures.append(of(error))

    with serving("--redis", storage, "--grace", str(GRACE)) as process, ThreadPoolExecutor(220) as pool:
        with connect(process.address, queue) as client:
            watched = [client.enqueue(b"w", delay=seconds(600)) for _ in range(100)]
            works = [pool.submit(watch, client, task_id) for task_id in watched]
            works += [pool.submit(poll, client) for _ in range(100)]
            works += [pool.submit(consume, client) for _ in range(10)]
            works += [pool.submit(produce, client) for _ in range(2)]
            began = time.monotonic()
            while len(released) < 300:
                assert time.monotonic() - began < 30
                time.sleep(0.01)
            process.signal(number)
            asked = time.monotonic()
            assert process.wait() == 0
            took = time.monotonic() - asked
            going.clear()
            for work in works:
                work.result(30)
        assert took < GRACE + 3
        for sign in ("Traceback", "never retrieved", "ExecuteBatchError", "ERROR"):
            assert sign not in process.log(), process.log()
    assert failures.count("UNAVAILABLE/SERVER_DRAINING") >= 100, failures
    left = counts(admin, queue)
    # An answer that was lost on the way is a task that is still leased, or one more that was released or enqueued.
    unsure = [each for each in failures if each == "UNAVAILABLE/None"]
    assert abs(len(set(enqueued)) + 100 - len(released) - left) <= len(unsure)


def of(error: grpc.RpcError) -> str:
    """Name an error; without a reason it is one of the connection."""
    call: Any = error
    trailers = dict(call.trailing_metadata() or ())
    return refusal(error).name if "x-torrelque-reason" in trailers else f"{call.code().name}/None"


def test_an_idle_server_ends_at_once(storage: str) -> None:
    """With nothing under way nobody is waited for, and the exit code says that all is well."""
    with serving("--redis", storage, "--grace", "30") as process:
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - began < 5


def test_a_stream_that_says_nothing(storage: str, queue: str) -> None:
    """A stream that was begun and never opened is told that the server stops, which does not wait for it."""
    silent = threading.Event()

    def requests() -> Iterator[pb.ConsumeRequest]:
        silent.wait(DEADLINE)
        yield from ()

    with serving("--redis", storage, "--grace", "30") as process, connect(process.address, queue) as client:
        call = client.stub.Consume(requests(), timeout=DEADLINE)
        client.stats()  # so the server knows of the stream
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        with refused("UNAVAILABLE/SERVER_DRAINING"):
            next(call)
        assert process.wait() == 0
        assert time.monotonic() - began < 5
        silent.set()


def test_a_second_signal(storage: str, queue: str) -> None:
    """While the grace lasts the same signal again ends the process at once."""
    with serving("--redis", storage, "--grace", "60") as process, connect(process.address, queue) as client:
        client.enqueue()
        stream = Stream(client)
        stream.opened()
        stream.tasks(1)
        process.signal(signal.SIGTERM)
        while stream.next().WhichOneof("response") != "draining":
            pass
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        stream.half_close()


def test_a_drained_consumer_may_settle(storage: str, queue: str) -> None:
    """Told that the server stops, a consumer gets no more tasks and settles what it has."""
    with serving("--redis", storage) as process, connect(process.address, queue) as client:
        client.enqueue(b"1")
        stream = Stream(client)
        stream.opened()
        (task,) = stream.tasks(1)
        process.signal(signal.SIGTERM)
        draining = stream.next()
        assert 8 < draining.draining.grace.ToTimedelta().total_seconds() <= 9.5
        assert stream.settle(release(task, result=pb.Payload(data=b"r"))) == []
        stream.half_close()
        assert list(stream.call) == []
        assert process.wait() == 0


def test_a_consumer_that_stays(storage: str, queue: str) -> None:
    """Who does not leave within the time it is told is sent away with the reason, and keeps its lease."""
    with serving("--redis", storage, "--grace", "1") as process, connect(process.address, queue) as client:
        client.enqueue(b"1")
        stream = Stream(client)
        stream.opened()
        stream.tasks(1)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        response = stream.next()
        assert response.WhichOneof("response") == "draining"
        with refused("UNAVAILABLE/SERVER_DRAINING"):
            stream.next()
        assert time.monotonic() - began >= response.draining.grace.ToTimedelta().total_seconds()
        assert process.wait() == 0
        stream.half_close()


def test_health(storage: str) -> None:
    """It serves, overall and each service, and says so to watchers until it stops."""
    with serving("--redis", storage, "--grace", "2") as process, grpc.insecure_channel(process.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "torrelque.v1.TorrelqueService", "torrelque.v1.TorrelqueAdminService"):
            said = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert said.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with refused("UNAVAILABLE/SERVER_DRAINING"):
            next(watch)
        assert process.wait() == 0


#: Bytes a second of a link that is slow.
SLOW = 1_000_000


@contextlib.contextmanager
def slow_link(address: str) -> Iterator[str]:
    """Pass a connection on to a server, but what comes from there only slowly; gives the address."""
    host, _, port = address.rpartition(":")
    with socket.socket() as listening, contextlib.ExitStack() as open_sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def pump(source: socket.socket, sink: socket.socket, rate: float) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(8192):
                    sink.sendall(data)
                    time.sleep(len(data) / rate)
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            near, _ = listening.accept()
            far = open_sockets.enter_context(socket.socket())
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            far.connect((host, int(port)))
            threading.Thread(target=pump, args=(open_sockets.enter_context(near), far, 1e9), daemon=True).start()
            pump(far, near, SLOW)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("again", range(3))  # how much of the answer is in buffers when the signal comes is chance
def test_a_slow_answer(storage: str, queue: str, again: int) -> None:
    """A server that stops waits for answers that are on their way, within its grace: tasks reach a slow client."""
    options = ("--redis", storage, "--grace", "30", "--metrics", "127.0.0.1:0")
    wide = [("grpc.http2.lookahead_bytes", 4 << 20)]  # so the whole answer is in the buffers at once
    with serving(*options) as process, slow_link(process.address) as address:
        with connect(process.address, queue) as other, connect(address, queue, settings=wide) as client:
            until(lambda: "metrics on port" in process.log())
            port = process.log().partition("metrics on port ")[2].split()[0]

            def delivered() -> bool:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
                    return "torrelque_delivered_tasks_total 3.0" in answer.read().decode()

            for _ in range(3):
                other.enqueue(b"x" * 900_000)
            request = pb.DequeueRequest(queue=queue, max_tasks=3, timeout=seconds(5))
            call = client.stub.Dequeue.future(request, timeout=DEADLINE)
            until(delivered)
            began = time.monotonic()
            process.signal(signal.SIGTERM)
            assert len(call.result().tasks) == 3
            assert process.wait() == 0
            assert time.monotonic() - began < 20


def test_the_port_is_not_shared(bridge: Process, storage: str) -> None:
    """A second server on the same port is refused: it would take half of the calls in silence."""
    command = ["torrelque", "serve", "--redis", storage, "--listen", bridge.address]

    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "listen" in ended.stderr
    assert ended.stderr.startswith("torrelque: error:")


def is_free(address: str) -> bool:
    """Whether a server could listen there."""
    try:
        probe(Address.parse(address, "listen"))
    except SettingsError:
        return False
    return True


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_next_one_takes_the_port(storage: str, queue: str, workers: str) -> None:
    """As soon as a server stops, another can listen where it did, while its last calls end."""
    options = ("--redis", storage, "--grace", "30", "--workers", workers)
    with serving(*options) as process, connect(process.address, queue) as client:
        client.enqueue()
        stream = Stream(client)
        stream.opened()
        (task,) = stream.tasks(1)
        assert not is_free(process.address)
        process.signal(signal.SIGTERM)
        assert stream.next().WhichOneof("response") == "draining"
        until(lambda: is_free(process.address))
        with serving(*options, address=process.address) as following, connect(following.address, queue) as other:
            assert other.stats().working == 1
            assert stream.settle(release(task)) == []
            assert other.stats().working == 0
            stream.half_close()
            assert list(stream.call) == []
            assert process.wait() == 0


def test_a_unix_socket(storage: str, queue: str, tmp_path: Any) -> None:
    """It serves on a unix socket too, beside a port."""
    path = tmp_path / "s"
    with serving("--redis", storage, "--listen", f"unix:{path}") as process:
        for address in (process.address, f"unix:{path}"):
            with connect(address, queue) as client:
                client.enqueue()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))


def test_told_of_a_beginning_that_was_before() -> None:
    """Who listens for the end of the server when that has begun is told at once."""
    drain, told = Drain(), list[str]()
    with drain.told(lambda: told.append("first")):
        assert told == []
        drain.begin()
        with drain.told(lambda: told.append("second")):
            assert told == ["first", "second"]

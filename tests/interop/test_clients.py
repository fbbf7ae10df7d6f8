"""The clients of four languages against one server: each with each, on real files, over what goes wrong."""

from __future__ import annotations

import hashlib
import json
import queue as queues
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from faults.proxy import DOWN, Cut, Http2Frame, Rule, faulty
from support.bridge import ROOT, Client, Process, connect, seconds, serving
from support.clients import LANGUAGES, run, running
from support.streams import until

from grpc_server._pb import torrelque_pb2 as pb
from torrelque.embedded import _free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

#: Real input: the source of the library itself.
FOLDER = ROOT / "torrelque"
#: The credit that each language is given, so that both ends of the range are tried.
CREDIT = {"go": 100, "java": 1, "node": 100, "python": 1}


def digest(path: str, language: str) -> dict[str, Any]:
    """What a client must find out about a file."""
    body = Path(path).read_bytes()
    return {
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": len(body),
        "lines": body.count(b"\n"),
        "language": language,
    }  # fmt: skip


@pytest.mark.parametrize("consumer", LANGUAGES)
@pytest.mark.parametrize("producer", LANGUAGES)
def test_each_with_each(bridge: Process, client: Client, producer: str, consumer: str) -> None:
    """What one enqueues, by ones or in a batch, another takes, digests and releases; nothing is left, nor wrong."""
    batch = "1" if consumer in {"go", "java"} else "10"
    made = run(producer, bridge.address, client.queue, "produce", str(FOLDER), "--limit", "25", "--batch", batch)
    tasks = {event["task_id"]: event["path"] for event in made if event["event"] == "enqueued"}
    assert made[-1] == {"event": "produced", "tasks": 25}
    assert len(tasks) == 25
    assert not any(event["deduplicated"] for event in made[:-1])
    options = ("--credit", str(CREDIT[consumer]), "--until", "25")
    said = run(consumer, bridge.address, client.queue, "consume", *options)
    assert {event["task_id"] for event in said if event["event"] == "released"} == set(tasks)
    assert said[-1] == {"event": "consumed", "tasks": 25}
    for task_id, path in tasks.items():
        state = client.state(task_id)
        assert (state.status, state.dequeue_count) == (pb.TASK_STATUS_COMPLETED, 1)
        assert json.loads(state.result.data) == digest(path, consumer)
    until(lambda: client.stats() == pb.GetQueueStatsResponse())


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_that_are_lost(bridge: Process, client: Client, language: str) -> None:
    """Calls whose answers a proxy drops are repeated with their request ids, and each task is there once."""
    host, port = bridge.address.split(":")
    lost = Rule(Cut(), DOWN, Http2Frame, each=True, times=2)
    with faulty((host, int(port)), lost) as proxy:
        made = run(language, proxy.address, client.queue, "produce", str(FOLDER), "--limit", "10")
        assert lost.hits == 2
    tasks = [event for event in made if event["event"] == "enqueued"]
    assert len({event["task_id"] for event in tasks}) == len({event["path"] for event in tasks}) == 10
    assert any(event["deduplicated"] for event in tasks)
    assert client.stats().pending == 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_polls(bridge: Process, client: Client, language: str) -> None:
    """A poll ends with no tasks when its time passes, or a little before its deadline, and with what there is."""
    place = (bridge.address, client.queue)
    assert run(language, *place, "poll", "--timeout", "0.2", "--deadline", "20") == [{"event": "polled", "tasks": []}]
    assert run(language, *place, "poll", "--timeout", "30", "--deadline", "1.5") == [{"event": "polled", "tasks": []}]
    body = bytes(range(256)) * 4
    task_id = client.enqueue(body)
    (polled,) = run(language, *place, "poll", "--timeout", "30")
    assert polled["tasks"] == [
        {"task_id": task_id, "dequeue_count": 1, "bytes": 1024, "sha256": hashlib.sha256(body).hexdigest()}
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_large_answers(bridge: Process, client: Client, language: str) -> None:
    """Three mebibytes come in one answer, within what clients take by default."""
    bodies = [bytes([n]) * (1 << 20) for n in range(3)]
    for body in bodies:
        client.enqueue(body)
    (polled,) = run(language, bridge.address, client.queue, "poll", "--max", "5")
    assert [task["bytes"] for task in polled["tasks"]] == [1 << 20] * 3
    assert [task["sha256"] for task in polled["tasks"]] == [hashlib.sha256(body).hexdigest() for body in bodies]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_watch_to_the_end(bridge: Process, client: Client, language: str) -> None:
    """Each state is seen, the last one with its result."""
    task_id = client.enqueue()
    with running(language, bridge.address, client.queue, "watch", task_id) as watcher:
        assert watcher.event("state")["status"] == "PENDING"
        client.dequeue()
        assert watcher.event("state") == {
            "event": "state", "task_id": task_id, "status": "WORKING", "dequeue_count": 1, "result": None,
        }  # fmt: skip
        client.release(task_id, result=pb.Payload(data=b'{"a": [1, 2]}'))
        watcher.ended_well()
        assert watcher.events[-1] == {
            "event": "state", "task_id": task_id, "status": "COMPLETED", "dequeue_count": 1, "result": {"a": [1, 2]},
        }  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_watch_is_cancelled(bridge: Process, client: Client, language: str) -> None:
    """A watch that is cancelled half-way ends there, and well."""
    task_id = client.enqueue()
    events = run(language, bridge.address, client.queue, "watch", task_id, "--states", "1")
    assert [event["event"] for event in events] == ["state", "cancelled"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_heartbeats(bridge: Process, client: Client, language: str) -> None:
    """Work that takes longer than the lease keeps its task, delivered once, by extending it on the stream."""
    task_id = client.enqueue(json.dumps({"path": __file__}).encode(), task_timeout=seconds(1.5))
    options = ("--hold", "3.5", "--until", "1", "--credit", "1")
    events = run(language, bridge.address, client.queue, "consume", *options)
    assert [event["event"] for event in events].count("extended") >= 2
    assert {"event": "released", "task_id": task_id, "dequeue_count": 1} in events
    assert json.loads(client.state(task_id).result.data) == digest(__file__, language)


@pytest.mark.parametrize("policy", ["keep", "requeue"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_killed(bridge: Process, client: Client, language: str, policy: str) -> None:
    """What a killed consumer held comes back: at once, or when its lease has ended."""
    lease = 1.5
    task_id = client.enqueue(json.dumps({"path": __file__}).encode(), task_timeout=seconds(lease))
    options = ("--hold", "60", "--policy", policy, "--credit", "1")
    with running(language, bridge.address, client.queue, "consume", *options) as consumer:
        assert consumer.event("delivered")["task_id"] == task_id
        consumer.signal(signal.SIGKILL)
        killed = time.monotonic()
    (task,) = client.dequeue(wait=20)
    took = time.monotonic() - killed
    assert (task.task_id, task.dequeue_count) == (task_id, 2)
    assert policy == "requeue" or took > lease / 4  # the lease may have been extended just before
    client.release(task_id, dequeue_count=2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_stopped(bridge: Process, client: Client, language: str) -> None:
    """SIGTERM ends a consumer in order: what it has in hand is finished and released, the rest stays in the queue."""
    ids = [client.enqueue(json.dumps({"path": __file__}).encode()) for _ in range(3)]
    options = ("--hold", "1", "--credit", "1")
    with running(language, bridge.address, client.queue, "consume", *options) as consumer:
        consumer.event("delivered")
        consumer.signal(signal.SIGTERM)
        consumer.ended_well()
        assert [event["task_id"] for event in consumer.named("released")] == ids[:1]
    assert client.stats().pending == 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_is_replaced(storage: str, queue: str, language: str) -> None:
    """Under a consumer at work and a watch the server stops and another one starts: both go on by themselves."""
    address = f"127.0.0.1:{_free_port()}"
    body = json.dumps({"path": __file__}).encode()
    options = ("--redis", storage, "--grace", "1")
    work = ("--hold", "2", "--until", "2", "--credit", "1")
    with connect(address, queue) as client, serving(*options, address=address) as first:
        task_id = client.enqueue(body)
        with running(language, address, queue, "watch", task_id) as watcher:
            watcher.until(lambda event: event.get("status") == "PENDING")
            with running(language, address, queue, "consume", *work) as consumer:
                assert consumer.event("delivered")["task_id"] == task_id
                watcher.until(lambda event: event.get("status") == "WORKING")
                first.signal(signal.SIGTERM)
                assert first.wait() == 0
                consumer.event("reconnecting")
                with serving(*options, address=address):
                    until(lambda: answers(client))
                    watcher.ended_well()
                    assert watcher.events[-1]["status"] == "COMPLETED"
                    other = client.enqueue(body)
                    consumer.ended_well()
    assert [event["task_id"] for event in consumer.named("released")] == [task_id, other]


def answers(client: Client) -> bool:
    """Whether the server is there again."""
    try:
        client.stats()
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize("language", LANGUAGES)
def test_errors(bridge: Process, client: Client, language: str) -> None:
    """The reason of an error and what varies in it are read from its details."""
    with running(language, bridge.address, client.queue, "release", "nobody") as program:
        assert program.end() == 1
        assert program.events == [
            {
                "event": "error", "code": "NOT_FOUND", "reason": "TASK_NOT_FOUND",
                "metadata": {"queue": client.queue, "taskId": "nobody"},
            }
        ]  # fmt: skip
    task_id = client.enqueue()
    client.dequeue()
    options = (task_id, "--dequeue-count", "7", "--result", "5")
    with running(language, bridge.address, client.queue, "release", *options) as program:
        assert program.end() == 1
        assert program.events[0]["reason"] == "LEASE_LOST"
    assert run(language, bridge.address, client.queue, "release", task_id, "--dequeue-count", "1", "--result", "5") == [
        {"event": "done", "task_id": task_id}
    ]
    assert client.state(task_id).result.data == b"5"


@pytest.mark.parametrize("language", LANGUAGES)
def test_bad_arguments(bridge: Process, queue: str, language: str) -> None:
    """Arguments that cannot be used end with 2 and a line for people."""
    for options in (("frobnicate",), ("consume", "--credit", "many"), ("watch",)):
        with running(language, bridge.address, queue, *options) as program:
            assert program.end() == 2, (options, program.events)
            assert program.complaints


@pytest.mark.parametrize("language", LANGUAGES)
def test_pauses_grow(queue: str, language: str) -> None:
    """While Redis is away, and each stream ends as soon as it is open, a consumer asks ever less often."""
    nobody = f"redis://127.0.0.1:{_free_port()}"
    with (
        serving("--redis", nobody) as server,
        running(language, server.address, queue, "consume") as consumer,
    ):
        pauses = [consumer.event("reconnecting")["delay"] for _ in range(6)]
        assert consumer.named("opened")
    assert pauses[0] < 0.2
    assert pauses[5] > 1


class Mute(grpc.GenericRpcHandler):
    """Takes calls and never says a word, while its connections answer pings: as a proxy does whose server hangs."""

    def __init__(self) -> None:
        self.calls: queues.SimpleQueue[str] = queues.SimpleQueue()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.calls.put(details.method)
        return grpc.unary_stream_rpc_method_handler(self._wait)

    def _wait(self, _: bytes, call: grpc.ServicerContext) -> Any:
        ended = threading.Event()
        call.add_callback(ended.set)
        ended.wait()
        yield from ()


@pytest.mark.slow
def test_a_watch_that_hears_nothing() -> None:
    """A watch on which not even progress comes is given up, and opened anew. All languages at once: it takes long."""
    with ExitStack() as stack:
        mutes = [Mute() for _ in LANGUAGES]
        for mute, language in zip(mutes, LANGUAGES, strict=True):
            server = grpc.server(ThreadPoolExecutor(4), handlers=[mute])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda server=server: server.stop(None).wait())
            stack.enter_context(running(language, f"127.0.0.1:{port}", "q", "watch", "task"))
        for mute in mutes:
            assert mute.calls.get(timeout=60).endswith("/Watch")
        for mute in mutes:
            assert mute.calls.get(timeout=60).endswith("/Watch")


@pytest.mark.parametrize("language", LANGUAGES)
def test_tls_and_a_token(
    storage: str, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    """With --ca a client speaks TLS, calls and streams carry its token, and a wrong token ends both."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    ca, chain, key, auth = (tmp_path / name for name in ("ca.pem", "server.pem", "server.key", "auth.toml"))
    authority.cert_pem.write_to_path(ca)
    chain.write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    digest = hashlib.sha256(b"secret").hexdigest()
    grants = f'[{{ queues = ["{queue}"], verbs = ["enqueue", "consume"] }}]'
    auth.write_text(f'[[principal]]\nname = "me"\ntokens = [{{ sha256 = "{digest}" }}]\ngrants = {grants}\n')
    for private in (key, auth):
        private.chmod(0o600)
    options = ("--redis", storage, "--tls-cert", str(chain), "--tls-key", str(key), "--auth-file", str(auth))
    with serving(*options) as server:
        monkeypatch.setenv("TORRELQUE_TOKEN", "secret")
        place = (language, server.address, queue)
        made = run(*place, "produce", str(FOLDER), "--limit", "2", "--ca", str(ca))
        assert made[-1] == {"event": "produced", "tasks": 2}
        assert run(*place, "consume", "--until", "2", "--ca", str(ca))[-1] == {"event": "consumed", "tasks": 2}
        monkeypatch.setenv("TORRELQUE_TOKEN", "another")
        for verb in ("poll", "consume"):
            with running(*place, verb, "--ca", str(ca)) as program:
                assert program.end() == 1
                said = {"code": "UNAUTHENTICATED", "reason": "CREDENTIALS_INVALID"}
                assert program.events[-1].items() >= {"event": "error", **said}.items()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_token_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    """Without TLS a token is sent over loopback only: anywhere else the program refuses to run."""
    monkeypatch.setenv("TORRELQUE_TOKEN", "secret")
    # An address of nobody's, kept for documents.
    with running(language, "203.0.113.1:50051", "q", "poll", "--deadline", "2") as program:
        assert program.end() == 2, program.events
        assert program.complaints


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_watch_for_which_there_is_no_room(storage: str, queue: str, language: str) -> None:
    """A watch that the server has no room for waits, and asks again."""
    with (
        serving("--redis", storage, "--max-watches", "1") as server,
        connect(server.address, queue) as client,
    ):
        task_id = client.enqueue()
        other = client.watch(task_id)
        next(other)
        with running(language, server.address, queue, "watch", task_id, "--states", "1") as watcher:
            until(lambda: watcher.complaints)
            other.cancel()
            assert watcher.ended_well()[0]["status"] == "PENDING"

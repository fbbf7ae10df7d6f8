"""How much at a time: one more is refused and told when to try again, and a place is free again after it was used."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import redis
from support.bridge import DEADLINE, Client, Process, connect, refusal, refused, seconds, serving
from support.streams import consuming, until

from grpc_server import Settings, taking
from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.errors import Refused
from grpc_server.limits import CALL, Limits
from torrelque import TorrelqueTaskId

MOST = 3


@dataclass
class Guest(Client):
    """A client that can ask the server how many calls it holds."""

    process: Process

    def in_flight(self, kind: str) -> int:
        """Count the calls of a kind."""
        until(lambda: "metrics on port" in self.process.log())
        port = self.process.log().partition("metrics on port ")[2].split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
            found = re.search(rf'torrelque_in_flight{{kind="{kind}"}} (\d+)', answer.read().decode())
        return int(found[1]) if found else 0


@contextlib.contextmanager
def visiting(process: Process, queue: str) -> Iterator[Guest]:
    with connect(process.address, queue) as client:
        yield Guest(client.channel, queue, process)


@pytest.fixture(scope="module")
def narrow(storage: str) -> Iterator[Process]:
    """A server with little room, which is not swept: so no time matters."""
    kinds = ("polls", "watches", "consumers", "queues")
    options = ["--metrics", "127.0.0.1:0", *[part for kind in kinds for part in (f"--max-{kind}", str(MOST))]]
    with serving("--redis", storage, "--no-sweep", "--max-wait", "3600", *options) as process:
        yield process
    assert "Traceback" not in process.log()


@pytest.fixture(scope="module")
def shared(admin: redis.Redis) -> Iterator[str]:
    """One queue for the whole module, as there is room for few."""
    name = f"t{secrets.token_hex(6)}"
    yield name
    if keys := list(admin.scan_iter(f"{name}:*")):
        admin.delete(*keys)


@pytest.fixture
def client(narrow: Process, shared: str) -> Iterator[Guest]:
    with visiting(narrow, shared) as client:
        # What the test before has left is on its way out.
        until(lambda: not any(client.in_flight(kind) for kind in KINDS))
        yield client


# What holds a place, and how one sees that it does


@contextlib.contextmanager
def polling(client: Guest, metadata: Any = None) -> Iterator[None]:
    """Wait for a task that does not come."""
    before = client.in_flight("polls")
    request = pb.DequeueRequest(queue=client.queue, timeout=seconds(1000))
    call = client.stub.Dequeue.future(request, timeout=DEADLINE, metadata=metadata)
    try:
        until(lambda: call.done() or client.in_flight("polls") > before)
        if call.done():
            call.result()
        yield
    finally:
        call.cancel()


@contextlib.contextmanager
def watching(client: Guest, metadata: Any = None) -> Iterator[None]:
    """Watch a task to which nothing happens."""
    spec = pb.TaskSpec(delay=seconds(1000), request_id="watched")
    client.stub.Enqueue(pb.EnqueueRequest(queue=client.queue, task=spec), timeout=DEADLINE, metadata=metadata)
    request = pb.WatchRequest(queue=client.queue, task_id="watched")
    call = client.stub.Watch(request, timeout=DEADLINE, metadata=metadata)
    try:
        next(call)
        yield
    finally:
        call.cancel()


@contextlib.contextmanager
def opened(client: Guest) -> Iterator[None]:
    """Consume what does not come."""
    with consuming(client) as stream:
        stream.opened()
        yield


def try_polling(client: Guest, metadata: Any = None) -> None:
    client.stub.Dequeue(pb.DequeueRequest(queue=client.queue, timeout=seconds(0)), timeout=DEADLINE, metadata=metadata)


def try_watching(client: Guest) -> None:
    with watching(client):
        pass


def try_consuming(client: Guest) -> None:
    with opened(client):
        pass


Holding = Callable[[Guest], AbstractContextManager[None]]
KINDS: dict[str, tuple[Holding, Callable[[Guest], None]]] = {
    "polls": (polling, try_polling),
    "watches": (watching, try_watching),
    "consumers": (opened, try_consuming),
}


def is_refused(call: Callable[[], object]) -> bool:
    """Whether there is no room; whatever else goes wrong is raised."""
    try:
        call()
    except grpc.RpcError as error:
        said = refusal(error)
    else:
        return False
    assert said.name == "RESOURCE_EXHAUSTED/TOO_MANY_STREAMS"
    return True


def enter(held: contextlib.ExitStack, hold: Holding, client: Guest) -> None:
    """Take a place, once the one that was used before has been given back."""
    until(lambda: not is_refused(lambda: held.enter_context(hold(client))))


@pytest.mark.parametrize("kind", KINDS)
def test_one_too_many(client: Guest, kind: str) -> None:
    """The last place is given; the next caller is told when to try again, and gets in after one has left."""
    hold, attempt = KINDS[kind]
    with contextlib.ExitStack() as held, contextlib.ExitStack() as one:
        enter(one, hold, client)
        for _ in range(MOST - 1):
            enter(held, hold, client)
        until(lambda: is_refused(lambda: attempt(client)))
        with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS") as details:
            attempt(client)
        assert details[0].retry_after == 0.5
        assert kind in details[0].text
        for other in KINDS:  # each kind has its own room
            if other != kind:
                until(lambda other=other: not is_refused(lambda: KINDS[other][1](client)))
        client.stats()
        one.close()
        until(lambda: not is_refused(lambda: attempt(client)))


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_given_back(client: Guest, kind: str) -> None:
    """Calls that are refused, cancelled, or end in their own way leave no place behind."""
    hold, attempt = KINDS[kind]
    for _ in range(5 * MOST):
        until(lambda: not is_refused(lambda: attempt(client)))
        with contextlib.suppress(grpc.RpcError), hold(client):
            pass
    bad = {
        "polls": lambda: client.stub.Dequeue(pb.DequeueRequest(queue=client.queue, max_tasks=-1), timeout=DEADLINE),
        "watches": lambda: list(client.stub.Watch(pb.WatchRequest(queue=client.queue), timeout=DEADLINE)),
        "consumers": lambda: list(client.stub.Consume(iter([]), timeout=DEADLINE)),
    }
    for _ in range(5 * MOST):
        until(lambda: not is_refused(lambda: attempt(client)))
        with refused("INVALID_ARGUMENT/INVALID_FIELD"):
            bad[kind]()
    with contextlib.ExitStack() as all_places:
        for _ in range(MOST):
            enter(all_places, hold, client)
        until(lambda: is_refused(lambda: attempt(client)))


def test_a_client_that_is_gone(narrow: Process, client: Guest) -> None:
    """Whoever vanishes with their connection leaves their places."""
    with visiting(narrow, client.queue) as gone, contextlib.ExitStack() as held:
        for _ in range(MOST):
            enter(held, opened, gone)
        assert is_refused(lambda: try_consuming(client))
        gone.channel.close()
        until(lambda: not is_refused(lambda: try_consuming(client)))


def test_streams_that_say_nothing(client: Guest) -> None:
    """Streams that were begun and never opened hold no place, however many."""
    silent = threading.Event()

    def requests() -> Iterator[pb.ConsumeRequest]:
        silent.wait(DEADLINE)
        yield from ()

    calls = [client.stub.Consume(requests(), timeout=DEADLINE) for _ in range(20)]
    try:
        for _ in range(MOST):
            until(lambda: not is_refused(lambda: try_consuming(client)))
    finally:
        silent.set()
    for call in calls:
        with refused("INVALID_ARGUMENT/INVALID_FIELD"):
            next(call)


def test_queues_in_use(narrow: Process, client: Guest, admin: redis.Redis) -> None:
    """While each queue is in use there is no room for one more; one that is idle makes room for it."""
    names = [f"{client.queue}-{n}" for n in range(MOST + 1)]
    clients = [Guest(client.channel, name, client.process) for name in names]
    with contextlib.ExitStack() as held:
        # The default queue was entered at the start and is idle.
        for each in clients[:MOST]:
            enter(held, opened, each)
        with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS") as details:
            clients[-1].stats()
        assert details[0].retry_after == 0.5
        clients[0].stats()
        held.close()
        until(lambda: not is_refused(clients[-1].stats))
    for each in clients * 3:
        each.release(lease(each))
    for name in names:
        if keys := list(admin.scan_iter(f"{name}:*")):
            admin.delete(*keys)


def lease(client: Guest) -> str:
    """Enqueue a task and lease it."""
    task_id = client.enqueue()
    assert [task.task_id for task in client.dequeue()] == [task_id]
    return task_id


def test_many_queues(bridge: Process, admin: redis.Redis, queue: str) -> None:
    """As many queues as are allowed by default can be polled, far more than a pool of connections holds by itself."""
    with connect(bridge.address, queue) as client:
        for start in range(0, 300, 50):
            requests = [pb.DequeueRequest(queue=f"{queue}:{n}", timeout=seconds(0)) for n in range(start, start + 50)]
            for call in [client.stub.Dequeue.future(request, timeout=DEADLINE) for request in requests]:
                assert call.result() == pb.DequeueResponse()
        client.stats()


# Limits of each caller


@dataclass
class Callers:
    """A server that knows two callers by their tokens."""

    client: Guest

    def of(self, name: str) -> dict[str, Any]:
        return {"metadata": [("authorization", f"Bearer {name}")]}

    def stats(self, name: str) -> object:
        request = pb.GetQueueStatsRequest(queue=self.client.queue)
        return self.client.stub.GetQueueStats(request, timeout=DEADLINE, **self.of(name))


@contextlib.contextmanager
def two_callers(storage: str, folder: Path, queue: str, *options: str) -> Iterator[Callers]:
    path = folder / "auth.toml"
    path.write_text(
        "".join(
            f'[[principal]]\nname = "{name}"\ntokens = [{{ sha256 = "{hashlib.sha256(name.encode()).hexdigest()}" }}]\n'
            'grants = [{ queues = ["*"], verbs = ["enqueue", "consume", "watch"] }]\n'
            for name in ("one", "other")
        )
    )
    path.chmod(0o600)
    options = ("--redis", storage, "--auth-file", str(path), "--metrics", "127.0.0.1:0", *options)
    with serving(*options) as process, visiting(process, queue) as client:
        yield Callers(client)


def test_streams_of_one_caller(storage: str, tmp_path: Path, queue: str) -> None:
    """What one caller holds, of all kinds together, takes no room from another; calls that do not wait are free."""
    with two_callers(storage, tmp_path, queue, "--max-streams-per-principal", str(MOST)) as callers:
        client, one, other = callers.client, callers.of("one"), callers.of("other")
        with contextlib.ExitStack() as held:
            held.enter_context(watching(client, **one))
            held.enter_context(watching(client, **one))
            with polling(client, **one):
                until(lambda: is_refused(lambda: try_polling(client, **one)))
                with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS") as details:
                    try_polling(client, **one)
                assert details[0].retry_after == 0.5
                assert "of one caller" in details[0].text
                try_polling(client, **other)
                callers.stats("one")
            until(lambda: not is_refused(lambda: try_polling(client, **one)))


def test_a_rate_is_not_saved_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was silent for an hour has the calls of a second, and not those of an hour."""
    now = 100.0
    monkeypatch.setattr("grpc_server.limits.time", SimpleNamespace(monotonic=lambda: now))
    limits = Limits(Settings(rate=3.0))
    for _ in range(2):
        for _ in range(3):
            limits.taken(CALL, "a")
        with pytest.raises(Refused, match="RATE_LIMITED"):
            limits.taken(CALL, "a")
        now += 3600


def test_the_rate_of_one_caller(storage: str, tmp_path: Path, queue: str) -> None:
    """A caller has the calls of a second at once; then each waits, as long as it is told, and others do not."""
    with two_callers(storage, tmp_path, queue, "--rate", "5") as callers:
        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(lambda _: limited(lambda: callers.stats("one")), range(40)))
        assert 5 <= ends.count(None) < 30
        waits = [wait for wait in ends if wait is not None]
        assert all(0.5 <= wait <= 1 for wait in waits)
        assert limited(lambda: callers.stats("other")) is None
        # Who is refused for another reason has spent a call too; strangers spend none of anybody's.
        for _ in range(20):
            with refused("UNAUTHENTICATED/CREDENTIALS_INVALID"):
                callers.stats("stranger")
        assert limited(lambda: callers.stats("other")) is None
        until(lambda: limited(lambda: callers.stats("one")) is None)


def limited(call: Callable[[], object]) -> float | None:
    """Call; tells after how many seconds to try again, if the rate was too high."""
    try:
        call()
    except grpc.RpcError as error:
        said, trailers = refusal(error), dict(error.trailing_metadata())
    else:
        return None
    assert said.name == "RESOURCE_EXHAUSTED/RATE_LIMITED"
    assert said.retry_after is not None
    assert int(trailers["grpc-retry-pushback-ms"]) == round(said.retry_after * 1000)
    return said.retry_after


def test_calls_that_do_not_wait(queue: str) -> None:
    """They have their limit as well: while Redis says nothing, those beyond it are refused at once."""
    with socket.create_server(("127.0.0.1", 0)) as silent, contextlib.ExitStack() as stack:
        options = ["--max-calls", str(MOST), "--metrics", "127.0.0.1:0", "--grace", "0"]
        process = stack.enter_context(serving("--redis", f"redis://127.0.0.1:{silent.getsockname()[1]}", *options))
        client = stack.enter_context(visiting(process, queue))
        call = client.stub.GetQueueStats
        waiting = [call.future(pb.GetQueueStatsRequest(queue=queue), timeout=DEADLINE) for _ in range(MOST)]
        until(lambda: client.in_flight("calls") == MOST)
        with refused("RESOURCE_EXHAUSTED/TOO_MANY_STREAMS") as details:
            client.stats()
        assert details[0].retry_after == 0.5
        assert not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()
        until(lambda: client.in_flight("calls") == 0)


# Messages


@pytest.fixture(scope="module")
def small(storage: str) -> Iterator[Process]:
    """A server of small messages. Others, on the same queues, have larger ones."""
    with serving("--redis", storage, "--no-sweep", "--max-payload", "4096", "--max-message", "8192") as process:
        yield process
    assert "Traceback" not in process.log()


@pytest.fixture
def wide(bridge: Process, queue: str) -> Iterator[Client]:
    """A client of another server, whose messages are larger."""
    with connect(bridge.address, queue) as client:
        yield client


def complaints(process: Process, queue: str) -> list[str]:
    """What the log says of tasks of a queue that do not fit into a message."""
    return [line for line in process.lines if " ERROR " in line and queue in line]


def test_a_task_that_fits_into_no_message(small: Process, wide: Client) -> None:
    """A poll passes over it to those behind; it stays leased, and the log says of which size it is and what helps."""
    wide.enqueue(b"x" * 20_000, request_id="large")
    wide.enqueue(b"a")
    with connect(small.address, wide.queue) as narrow:
        assert [task.payload.data for task in narrow.dequeue()] == [b"a"]
        assert narrow.dequeue(10, wait=0.1) == []
    state = wide.state("large")
    assert (state.status, state.dequeue_count, state.requeue_count) == (pb.TASK_STATUS_WORKING, 1, 0)
    until(lambda: bool(complaints(small, wide.queue)))
    (line,) = complaints(small, wide.queue)
    assert re.search(r"'large'.* 20\d\d\d bytes.*--max-message", line)


def test_a_stream_meets_tasks_that_fit_into_no_message(small: Process, wide: Client) -> None:
    """The stream goes on with the others, and those keep their leases."""
    for number in range(3):
        wide.enqueue(b"x" * 20_000, request_id=f"large-{number}")
        wide.enqueue(b"%d" % number)
    with connect(small.address, wide.queue) as narrow, consuming(narrow, max_outstanding_tasks=10) as stream:
        stream.opened()
        assert {task.payload.data for task in stream.tasks(3)} == {b"0", b"1", b"2"}
        wide.enqueue(b"3")
        assert [task.payload.data for task in stream.tasks(1)] == [b"3"]
    for number in range(3):
        state = wide.state(f"large-{number}")
        assert (state.status, state.dequeue_count, state.requeue_count) == (pb.TASK_STATUS_WORKING, 1, 0)


def test_tasks_that_fit_into_no_message_together(small: Process, wide: Client) -> None:
    """What is asked for at once is cut to what one message holds: nothing is refused, and nothing is taken in vain."""
    bodies = [b"%03d" % number + b"x" * (number % 3 * 300) for number in range(300)]
    for body in bodies:
        wide.enqueue(body, request_id="i" * 120 + body[:3].decode())
    with connect(small.address, wide.queue) as narrow:
        got: list[pb.Task] = []
        while len(got) < 100:
            got += narrow.dequeue(1000)
        with consuming(narrow, max_outstanding_tasks=300) as stream:
            stream.opened()
            got += stream.tasks(300 - len(got))
    assert sorted(task.payload.data for task in got) == bodies
    assert {task.dequeue_count for task in got} == {1}


def test_answers_longer_than_their_requests(small: Process, queue: str) -> None:
    """What a request was answered with gets through, though it is longer than a message may be that comes in."""
    with connect(small.address, queue) as narrow:
        tasks = [pb.TaskSpec(payload=pb.Payload(data=b"x"))] * 500
        said = narrow.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=queue, tasks=tasks), timeout=DEADLINE)
        assert len(said.results) == narrow.stats().tasks == 500
        assert said.ByteSize() > 8192
        unknown = [pb.Settlement(task_id="nobody", release=pb.ReleaseAction())] * 300
        with consuming(narrow) as stream:
            stream.opened()
            stream.tasks(1)
            assert len(stream.settle(*unknown)) == 300
            assert stream.settle() == []
        request = pb.BatchReleaseRequest(queue=queue, settlements=unknown)
        assert len(narrow.stub.BatchRelease(request, timeout=DEADLINE).errors) == 300


def test_dead_letters_that_fit_into_no_message(small: Process, wide: Client) -> None:
    """Pages are as long as a message is; of a letter that alone is too large the payload is left out, then the
    reason."""
    sizes = [(2000, 500)] * 6 + [(20_000, 10), (10, 20_000), (20_000, 20_000), (10, 10)]
    for number, (payload, reason) in enumerate(sizes):
        wide.enqueue(b"x" * payload, request_id=str(number))
        wide.dequeue()
        result = pb.Payload(data=b"y" * reason)
        wide.release(str(number), status=pb.TASK_STATUS_REJECTED, dead_letter=True, result=result)
    with connect(small.address, wide.queue) as narrow:
        letters: list[pb.DeadLetter] = []
        token = ""
        while True:
            request = pb.ListDeadLettersRequest(queue=wide.queue, page_token=token)
            page = narrow.admin.ListDeadLetters(request, timeout=DEADLINE)
            if not page.letters:
                break
            letters += page.letters
            token = page.next_page_token
    assert [int(letter.task_id) for letter in letters] == list(range(len(sizes)))
    held = [(letter.HasField("payload"), letter.HasField("reason")) for letter in letters]
    assert held == [(True, True)] * 6 + [(False, True), (False, False), (False, False), (True, True)]


def test_what_does_not_fit_beside_others_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that do not fit into the message with those before them are given back; smaller ones behind them come."""
    back: list[str] = []
    monkeypatch.setattr(taking, "give_back", lambda _, task_ids: back.extend(task_ids))
    sizes = {"a": 3 << 20, "b": 2 << 20, "c": 10}
    visit: Any = SimpleNamespace(settings=Settings())
    taken = [(TorrelqueTaskId(task_id, 1, 300), b"x" * size) for task_id, size in sizes.items()]
    assert [task_id for task_id, _ in taking._sendable(visit, taken)] == ["a", "c"]
    assert back == ["b"]

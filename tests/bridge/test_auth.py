"""Who may do what: every rpc asks for credentials and for a right, before anything is asked of Redis."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.bridge import DEADLINE, METHODS, Client, Process, ask, connect, refusal, refused, seconds, serving
from support.streams import until

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.auth import VERBS, Authority, Credentials
from grpc_server.errors import Refused
from grpc_server.rpcs import TABLE

ALLOWED = [(rpc, TABLE[rpc].verb) for rpc in METHODS]
#: Nothing listens there: whoever asks Redis is answered UNAVAILABLE.
NO_REDIS = "redis://127.0.0.1:1/0"
#: A file that has changed is noticed within so many seconds.
NOTICED = 5.0

Metadata = Sequence[tuple[str, str | bytes]]


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def principal(name: str, queues: Sequence[str], verbs: Sequence[str], **tokens: str) -> str:
    """Spell a principal; a token may have a time when it expires."""
    listed = [
        f'{{ sha256 = "{digest(token)}"{f", expires = {expires}" if expires else ""} }}'
        for token, expires in tokens.items()
    ]
    grants = f"{{ queues = {list(queues)!r}, verbs = {list(verbs)!r} }}"
    return f'[[principal]]\nname = "{name}"\ntokens = [{", ".join(listed)}]\ngrants = [{grants}]\n'


def write(path: Path, text: str) -> None:
    """Replace the file as a whole, as whoever administrates it should."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)


@dataclass
class Guarded:
    """A server with an auth file."""

    process: Process
    path: Path

    def call(self, rpc: str, queue: str, *metadata: tuple[str, str | bytes]) -> str:
        """Call an rpc; names its end."""
        with grpc.insecure_channel(self.process.address) as channel:
            return ask(channel, rpc, queue, metadata)


def bearer(token: str, scheme: str = "Bearer") -> tuple[str, str]:
    return "authorization", f"{scheme} {token}"


def others(verb: str) -> list[str]:
    return [each for each in VERBS if each != verb]


BOOK = "".join(
    [
        principal("all", ["*"], VERBS, all=""),
        *[principal(verb, ["mine-*", "trq"], [verb], **{f"only-{verb}": ""}) for verb in VERBS],
        *[principal(f"not-{verb}", ["*"], others(verb), **{f"no-{verb}": ""}) for verb in VERBS],
        principal("nothing", [], [], nothing=""),
        principal("old", ["*"], VERBS, old="2020-01-31T00:00:00Z", new="2999-01-31T00:00:00+02:00"),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server whose Redis is away: what is refused nevertheless was refused without asking it."""
    path = tmp_path_factory.mktemp("away") / "auth.toml"
    write(path, BOOK)
    with serving("--redis", NO_REDIS, "--auth-file", str(path)) as process:
        yield Guarded(process, path)


@pytest.fixture(scope="module")
def open_guarded(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    path = tmp_path_factory.mktemp("guarded") / "auth.toml"
    write(path, BOOK)
    with serving("--redis", storage, "--auth-file", str(path)) as process:
        yield Guarded(process, path)


@pytest.fixture
def guarded(open_guarded: Guarded) -> Iterator[Guarded]:
    """A server whose auth file a test may change; it is put right again."""
    yield open_guarded
    write(open_guarded.path, BOOK)
    until(lambda: open_guarded.call("GetQueueStats", "trq", bearer("all")) == "OK")


INVALID: dict[str, Metadata] = {
    "absent": [],
    "wrong": [bearer("wrong")],
    "empty": [bearer("")],
    "no_token": [("authorization", "Bearer")],
    "no_scheme": [("authorization", "all")],
    "basic": [bearer("all", "Basic")],
    "spaces": [bearer(" all")],
    "more": [bearer("all x")],
    "case": [bearer("ALL")],
    "a_part": [bearer("al")],
    "digest": [bearer(digest("all"))],
    "twice": [bearer("all"), bearer("all")],
    "wrong_and_right": [bearer("wrong"), bearer("all")],
    "right_and_wrong": [bearer("all"), bearer("wrong")],
    "binary": [("authorization-bin", b"Bearer all")],
    "other_header": [("x-authorization", "Bearer all"), ("token", "all")],
    "overlong": [bearer("x" * 5000)],
    "overlong_and_right": [bearer("all" + " " * 4100)],
    "expired": [bearer("old")],
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_credentials(away: Guarded, case: str) -> None:
    """Whatever is not one known token is refused by every rpc, before Redis is asked."""
    for rpc in METHODS:
        assert away.call(rpc, "trq", *INVALID[case]) == "UNAUTHENTICATED/CREDENTIALS_INVALID", rpc


def test_the_method_of_the_proof(away: Guarded) -> None:
    """Had Redis been asked above, the answer were another one; and the scheme may be spelled as one likes."""
    for rpc in METHODS:
        said = {away.call(rpc, "trq", bearer("all", scheme)) for scheme in ("Bearer", "bearer", "BEARER")}
        assert not said & {"UNAUTHENTICATED/CREDENTIALS_INVALID", "PERMISSION_DENIED/QUEUE_FORBIDDEN"}
    assert away.call("GetQueueStats", "trq", bearer("new")) == "UNAVAILABLE/STORAGE_UNAVAILABLE"


@pytest.mark.parametrize(("rpc", "verb"), ALLOWED)
def test_what_is_not_granted(away: Guarded, rpc: str, verb: str) -> None:
    """Without the verb, or the queue, nothing is done, be it named, or the default one; Redis is not asked."""
    for token, queue in (
        (f"no-{verb}", "trq"), (f"no-{verb}", ""), (f"only-{verb}", "other"), (f"only-{verb}", "mine"),
        (f"only-{verb}", "Mine-1"), ("nothing", "trq"), *[(f"only-{other}", "mine-1") for other in others(verb)],
    ):  # fmt: skip
        assert away.call(rpc, queue, bearer(token)) == "PERMISSION_DENIED/QUEUE_FORBIDDEN", (token, queue)


def test_a_forbidden_queue_says_nothing_of_itself(storage: str, tmp_path: Path) -> None:
    """Whether it is served is told only to those who may use it."""
    path = tmp_path / "auth.toml"
    write(path, principal("one", ["mine-*"], VERBS, one=""))
    served = ["--queue", "mine-1", "--queue", "theirs", "--default-queue", "mine-1"]
    with serving("--redis", storage, "--auth-file", str(path), *served) as process:
        guarded = Guarded(process, path)
        for rpc in METHODS:
            for queue in ("theirs", "neither"):
                assert guarded.call(rpc, queue, bearer("one")) == "PERMISSION_DENIED/QUEUE_FORBIDDEN"
            assert guarded.call(rpc, "mine-2", bearer("one")) == "NOT_FOUND/QUEUE_UNKNOWN"
        assert guarded.call("GetQueueStats", "", bearer("one")) == "OK"


#: What is said where the right is there, and the task is not.
BEYOND = {"OK", "NOT_FOUND/TASK_NOT_FOUND", "INVALID_ARGUMENT/INVALID_FIELD"}


@pytest.mark.parametrize(("rpc", "verb"), ALLOWED)
def test_what_is_granted(guarded: Guarded, rpc: str, verb: str) -> None:
    """The verb of an rpc alone is enough, on a queue that the glob covers and on the default one."""
    for token, queue in ((f"only-{verb}", "mine-1"), (f"only-{verb}", ""), ("all", "mine-1")):
        # A poll would wait: it is enough that it is let in.
        if rpc == "Dequeue":
            with connect(guarded.process.address, queue) as client:
                request = pb.DequeueRequest(queue=queue, timeout=seconds(0))
                client.stub.Dequeue(request, timeout=DEADLINE, metadata=[bearer(token)])
        else:
            assert guarded.call(rpc, queue, bearer(token)) in BEYOND


def test_no_right_is_for_sale() -> None:
    """The verbs of the rpcs are those of the documented table; each is needed by one at least."""
    assert {verb for _, verb in ALLOWED} == set(VERBS)
    assert dict(ALLOWED) == {
        "Enqueue": "enqueue", "BatchEnqueue": "enqueue", "Dequeue": "consume", "ExtendLease": "consume",
        "Requeue": "consume", "Release": "consume", "BatchRelease": "consume", "Consume": "consume",
        "GetTaskState": "watch", "GetQueueStats": "watch", "Watch": "watch", "Sweep": "admin", "ScheduleSweep": "admin",
        "UnscheduleSweep": "admin", "ListDeadLetters": "admin", "RequeueDeadLetters": "admin",
        "PurgeDeadLetters": "admin",
    }  # fmt: skip


def test_knowing_a_task_grants_nothing(guarded: Guarded, queue: str) -> None:
    """Who knows a task's id and its fencing token, and may use another queue, cannot touch it."""
    with connect(guarded.process.address, queue) as client:
        signed: dict[str, Any] = {"timeout": DEADLINE, "metadata": [bearer("all")]}
        task_id = client.stub.Enqueue(pb.EnqueueRequest(queue=queue, task=pb.TaskSpec()), **signed).task_id
        client.stub.Dequeue(pb.DequeueRequest(queue=queue), **signed)
        release = pb.ReleaseRequest(queue=queue, task_id=task_id, dequeue_count=1)
        with pytest.raises(grpc.RpcError) as raised:
            client.stub.Release(release, timeout=DEADLINE, metadata=[bearer("only-consume")])
        assert refusal(raised.value).name == "PERMISSION_DENIED/QUEUE_FORBIDDEN"
        release.queue = "mine-1"
        with pytest.raises(grpc.RpcError) as raised:
            client.stub.Release(release, timeout=DEADLINE, metadata=[bearer("only-consume")])
        assert refusal(raised.value).name == "NOT_FOUND/TASK_NOT_FOUND"
        release.queue = queue
        client.stub.Release(release, **signed)


def test_health_is_open(away: Guarded) -> None:
    """Probes have no credentials, and say that this server does not serve without Redis."""
    with grpc.insecure_channel(away.process.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "torrelque.v1.TorrelqueService", "torrelque.v1.TorrelqueAdminService"):
            request = health_pb2.HealthCheckRequest(service=service)
            until(lambda request=request: stub.Check(request, timeout=DEADLINE).status == 2)
            assert stub.Check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_secrets_stay_out_of_the_log(away: Guarded) -> None:
    """Neither tokens nor their digests are logged, whoever is refused."""
    away.call("Enqueue", "trq", bearer("hunter2"))
    away.call("Enqueue", "trq", bearer("only-watch"))
    for secret in ("hunter2", "only-watch", digest("all")):
        assert secret not in away.process.log()


# The file


def becomes(guarded: Guarded, token: str, said: str) -> None:
    """Wait until a token is known, or not known any more, within the time that is promised."""
    began = time.monotonic()
    while guarded.call("GetQueueStats", "trq", bearer(token)) != said:
        assert time.monotonic() - began < NOTICED
        time.sleep(0.05)


DENIED, FORBIDDEN = "UNAUTHENTICATED/CREDENTIALS_INVALID", "PERMISSION_DENIED/QUEUE_FORBIDDEN"


def test_tokens_are_rotated(guarded: Guarded) -> None:
    """While the file names two tokens both are good; one that is taken out is refused within seconds."""
    write(guarded.path, BOOK + principal("turning", ["trq"], ["watch"], first=""))
    becomes(guarded, "first", "OK")
    write(guarded.path, BOOK + principal("turning", ["trq"], ["watch"], first="", second=""))
    becomes(guarded, "second", "OK")
    assert guarded.call("GetQueueStats", "trq", bearer("first")) == "OK"
    write(guarded.path, BOOK + principal("turning", ["trq"], ["watch"], second=""))
    becomes(guarded, "first", DENIED)
    assert guarded.call("GetQueueStats", "trq", bearer("second")) == "OK"


#: More of them are read in the tests of the settings.
BROKEN = [b"principal = [", b'x = "\xff"', b'[[principal]]\nname = "x"\ntokens = 5']


def test_a_broken_file(guarded: Guarded) -> None:
    """It is told of in the log, and the last good one stays in force, also when there is none for a while."""
    complaint = "the last good one stays in force"
    for number, content in enumerate(BROKEN, 1):
        guarded.path.write_bytes(content)
        until(lambda number=number: guarded.process.log().count(complaint) >= number)
        assert guarded.call("GetQueueStats", "trq", bearer("all")) == "OK"
        assert guarded.call("GetQueueStats", "trq") == DENIED
    before = guarded.process.log().count(complaint)
    os.unlink(guarded.path)
    until(lambda: guarded.process.log().count(complaint) > before)
    assert guarded.call("GetQueueStats", "trq", bearer("all")) == "OK"
    assert guarded.call("GetQueueStats", "trq") == DENIED
    write(guarded.path, principal("next", ["trq"], ["watch"], next=""))
    becomes(guarded, "all", DENIED)
    assert guarded.call("GetQueueStats", "trq", bearer("next")) == "OK"
    assert guarded.process.log().count(complaint) == before + 1
    assert "Traceback" not in guarded.process.log()


def test_a_file_that_cannot_be_read_for_a_while(guarded: Guarded) -> None:
    """A change that met a server without descriptors is read once there are some, without another change."""
    complaint = "auth_file cannot be read: [Errno 24]"
    with guarded.process.starved():
        write(guarded.path, principal("next", ["trq"], ["watch"], next=""))
        until(lambda: complaint in guarded.process.log())
    becomes(guarded, "all", DENIED)
    assert guarded.call("GetQueueStats", "trq", bearer("next")) == "OK"
    assert guarded.process.log().count(complaint) == 1


@pytest.mark.parametrize("more", ["", "# longer"])
def test_a_file_that_keeps_its_time(tmp_path: Path, more: str) -> None:
    """A file that is as old as the one before is read again all the same: it is another one, or of another length."""
    path = tmp_path / "auth.toml"
    path.write_text(principal("a", ["*"], VERBS, old=""))
    before = path.stat()
    authority = Authority(str(path))
    if more:
        path.write_text(principal("a", ["*"], VERBS, new="") + more)
    else:
        write(path, principal("a", ["*"], VERBS, new=""))
        assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    authority.refresh()
    assert authority.principal(Credentials(("Bearer new",), ())).name == "a"
    with pytest.raises(Refused):
        authority.principal(Credentials(("Bearer old",), ()))


def test_each_spoilt_file_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be used is complained of once, and once more when it was put right and is spoilt again."""
    path = tmp_path / "auth.toml"
    path.write_text(principal("a", ["*"], VERBS, old=""))
    authority = Authority(str(path))
    for text in ("spoilt", principal("a", ["*"], VERBS, new=""), "spoilt"):
        write(path, text)
        authority.refresh()
        authority.refresh()
    assert [record.levelname for record in caplog.records if record.levelname == "ERROR"] == ["ERROR"] * 2


def test_a_long_token(tmp_path: Path) -> None:
    """What is too long for a token is none, also where somebody has granted it."""
    path = tmp_path / "auth.toml"
    fits, long = "x" * (4096 - len("Bearer ")), "x" * 4096
    path.write_text(principal("a", ["*"], VERBS, **{fits: "", long: ""}))
    authority = Authority(str(path))
    assert authority.principal(Credentials((f"Bearer {fits}",), ())).name == "a"
    with pytest.raises(Refused):
        authority.principal(Credentials((f"Bearer {long}",), ()))


def test_a_token_runs_out(guarded: Guarded) -> None:
    """A token is good until its time, without the file being touched."""
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 5))
    write(guarded.path, BOOK + principal("short", ["trq"], ["watch"], short=ends))
    becomes(guarded, "short", "OK")
    until(lambda: guarded.call("GetQueueStats", "trq", bearer("short")) == DENIED)


def soon() -> str:
    """Spell a time after a few seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 4))


@pytest.mark.parametrize(
    ("expires", "after", "expected"),
    [
        pytest.param(False, "", DENIED, id="withdrawn"),
        pytest.param(True, None, DENIED, id="expired"),
        pytest.param(False, principal("guest", ["*"], ["enqueue"], guest=""), FORBIDDEN, id="forbidden"),
    ],
)
def test_what_is_open_ends_with_the_right(
    guarded: Guarded, queue: str, expires: bool, after: str | None, expected: str
) -> None:
    """A stream, a watch and a poll that wait hear of it when their caller may no more, and what the stream held goes on
    to somebody else; others stay."""
    write(guarded.path, BOOK + principal("guest", ["*"], VERBS, guest=soon() if expires else ""))
    becomes(guarded, "guest", "OK")
    guest, owner = ({"metadata": [bearer(token)], "timeout": DEADLINE} for token in ("guest", "all"))
    opening = pb.ConsumeOpen(queue=queue, max_outstanding_tasks=1, disconnect_policy=pb.DISCONNECT_POLICY_REQUEUE)
    with connect(guarded.process.address, queue) as client:
        spec = pb.TaskSpec(request_id="held")
        client.stub.Enqueue(pb.EnqueueRequest(queue=queue, task=spec), **owner)
        poll = client.stub.Dequeue.future(pb.DequeueRequest(queue=f"{queue}-2", timeout=seconds(DEADLINE)), **guest)
        watch = client.stub.Watch(pb.WatchRequest(queue=queue, task_id="held"), **guest)
        next(watch)
        held = threading.Event()

        def say(until_then: threading.Event) -> Iterator[pb.ConsumeRequest]:
            yield pb.ConsumeRequest(open=opening)
            until_then.wait(DEADLINE)

        try:
            stream = client.stub.Consume(say(held), **guest)
            assert next(stream).WhichOneof("response") == "opened"
            assert [task.task_id for task in next(stream).delivery.tasks] == ["held"]
            other = client.stub.Consume(say(held), **owner)
            assert next(other).WhichOneof("response") == "opened"
            if after is not None:
                write(guarded.path, BOOK + after)
            for call in (stream, watch):
                with refused(expected):
                    list(call)
            with refused(expected):
                poll.result()
            assert [(task.task_id, task.dequeue_count) for task in next(other).delivery.tasks] == [("held", 2)]
        finally:
            held.set()
    assert "Traceback" not in guarded.process.log()


def test_the_command_token(guarded: Guarded) -> None:
    """What it prints is a token, and what to paste into the file for it; the next one is another one."""
    made = [
        subprocess.run(
            [sys.executable, "-m", "torrelque", "token", "--name", "someone"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout
        for _ in range(2)
    ]  # fmt: skip
    first, second = (re.fullmatch(r"token: (\S{43})\n\n(.*)", text, re.S) for text in made)
    assert first
    assert second
    assert first[1] != second[1]
    assert first[1] not in first[2]
    assert 'name = "someone"' in first[2]
    write(guarded.path, BOOK + first[2])
    becomes(guarded, first[1], "OK")
    assert guarded.call("Enqueue", "anything", bearer(first[1])) == "INVALID_ARGUMENT/INVALID_FIELD"
    assert guarded.call("Sweep", "trq", bearer(first[1])) == "PERMISSION_DENIED/QUEUE_FORBIDDEN"
    assert guarded.call("GetQueueStats", "trq", bearer(second[1])) == DENIED


def test_a_client_of_the_stubs(guarded: Guarded, queue: str) -> None:
    """As users do it: credentials of a call, on each call."""
    with connect(guarded.process.address, queue) as client:
        signed = grpc.intercept_channel(client.channel, Signing("all"))
        owner = Client(signed, queue)
        task_id = owner.enqueue()
        assert [task.task_id for task in owner.dequeue()] == [task_id]
        owner.release(task_id)


class Signing(grpc.UnaryUnaryClientInterceptor):
    """Puts a token on each call."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Go on with the header."""
        return continuation(details._replace(metadata=[bearer(self._token)]), request)

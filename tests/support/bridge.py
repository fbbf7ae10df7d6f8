"""A gRPC server as a process of its own, as users run it, and clients for it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server._pb import torrelque_pb2_grpc as pb_grpc

#: No call of a test takes longer.
DEADLINE = 30.0


@dataclass
class Process:
    """A running `torrelque serve`."""

    process: subprocess.Popen[str]
    addresses: list[str]
    lines: list[str] = field(default_factory=list)
    """What it has printed and logged, complete when it has ended."""
    reader: threading.Thread | None = None

    @property
    def address(self) -> str:
        return self.addresses[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(seconds)
        if self.reader is not None:
            self.reader.join(seconds)
        return code

    def log(self) -> str:
        return "".join(self.lines)

    def memory(self) -> int:
        """Resident memory, bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    def descriptors(self) -> int:
        """Open files and sockets."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @contextlib.contextmanager
    def starved(self) -> Iterator[None]:
        """Let it open no file and no socket until the scope ends; what is open stays."""
        soft, hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (0, hard))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def serving(
    *options: str, environment: dict[str, str] | None = None, address: str = "127.0.0.1:0"
) -> Iterator[Process]:
    """Run `torrelque serve` until the scope ends; what is still running then is stopped by SIGTERM."""
    command = [sys.executable, "-m", "torrelque", "serve", "--listen", address, *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    served = Process(process, [])
    try:
        _wait_until_it_listens(served)
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            served.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()


def _wait_until_it_listens(served: Process) -> None:
    stdout = served.process.stdout
    assert stdout is not None
    while not served.addresses:
        line = stdout.readline()
        assert line, f"the server did not start: {served.log()}"
        served.lines.append(line)
        if found := re.fullmatch(r"listening on (\S+)\n", line):
            served.addresses.append(found[1])

    def read() -> None:
        with contextlib.suppress(ValueError):  # closed
            served.lines.extend(stdout)

    served.reader = threading.Thread(target=read, daemon=True)
    served.reader.start()


@dataclass
class Client:
    """The stubs of one channel, for one queue."""

    channel: grpc.Channel
    queue: str

    def __post_init__(self) -> None:
        self.stub: Any = pb_grpc.TorrelqueServiceStub(self.channel)
        self.admin: Any = pb_grpc.TorrelqueAdminServiceStub(self.channel)

    def enqueue(self, data: bytes = b"{}", **spec: Any) -> str:
        """Enqueue a task; returns its id."""
        task = pb.TaskSpec(payload=pb.Payload(data=data), **spec)
        return str(self.stub.Enqueue(pb.EnqueueRequest(queue=self.queue, task=task), timeout=DEADLINE).task_id)

    def dequeue(self, max_tasks: int = 1, wait: float = 5, deadline: float = DEADLINE) -> list[pb.Task]:
        """Lease tasks."""
        request = pb.DequeueRequest(queue=self.queue, max_tasks=max_tasks, timeout=seconds(wait))
        return list(self.stub.Dequeue(request, timeout=deadline).tasks)

    def release(self, task_id: str, **fields: Any) -> None:
        self.stub.Release(pb.ReleaseRequest(queue=self.queue, task_id=task_id, **fields), timeout=DEADLINE)

    def state(self, task_id: str) -> pb.TaskState:
        request = pb.GetTaskStateRequest(queue=self.queue, task_id=task_id)
        return self.stub.GetTaskState(request, timeout=DEADLINE).state

    def stats(self) -> pb.GetQueueStatsResponse:
        return self.stub.GetQueueStats(pb.GetQueueStatsRequest(queue=self.queue), timeout=DEADLINE)

    def watch(self, task_id: str, **fields: Any) -> Any:
        request = pb.WatchRequest(queue=self.queue, task_id=task_id, **fields)
        return self.stub.Watch(request, timeout=DEADLINE)


@contextlib.contextmanager
def connect(address: str, queue: str, **options: Any) -> Iterator[Client]:
    """Open a client on a connection of its own."""
    settings = [("grpc.use_local_subchannel_pool", 1), *options.pop("settings", [])]
    with grpc.insecure_channel(address, options=settings) as channel:
        yield Client(channel, queue)


METHODS = {method.name: method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}


def ask(channel: grpc.Channel, rpc: str, queue: str, metadata: Any) -> str:
    """Call an rpc about a queue with as little as it takes; names the end."""
    path = f"/{METHODS[rpc].containing_service.full_name}/{rpc}"
    if rpc == "Consume":
        opening = pb.ConsumeRequest(open=pb.ConsumeOpen(queue=queue, max_outstanding_tasks=1))
        call: Any = channel.stream_stream(path)
        requests: Any = iter([opening.SerializeToString()])
    else:
        request = GetMessageClass(METHODS[rpc].input_type)(queue=queue)
        if "task_id" in request.DESCRIPTOR.fields_by_name:
            request.task_id = "nobody"
        call = channel.unary_stream(path)
        requests = request.SerializeToString()
    try:
        list(call(requests, timeout=DEADLINE, metadata=metadata))
    except grpc.RpcError as error:
        return refusal(error).name
    return "OK"


def seconds(value: float) -> Duration:
    """Spell a length of time."""
    length = Duration()
    length.FromMicroseconds(round(value * 1e6))
    return length


@dataclass(frozen=True)
class Refusal:
    """What a client can know of an error."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    retry_after: float | None
    text: str

    @property
    def name(self) -> str:
        return f"{self.code.name}/{self.reason}"


def refusal(error: grpc.RpcError) -> Refusal:
    """Decode an error, and check that all that is said of it agrees."""
    call: Any = error
    trailers = dict(call.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailers, (call.code(), call.details())
    status = Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == call.code().value[0]
    assert status.message == call.details()
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        for message in (info, bad, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert info.domain == "torrelque"
    assert info.reason == trailers["x-torrelque-reason"]
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", info.reason)
    retry_after = retry.retry_delay.ToMicroseconds() / 1e6 if retry.HasField("retry_delay") else None
    fields = [violation.field for violation in bad.field_violations]
    return Refusal(call.code(), info.reason, dict(info.metadata), fields, retry_after, status.message)


@contextlib.contextmanager
def refused(name: str) -> Iterator[list[Refusal]]:
    """Check that the body is refused as CODE/REASON; the list gets the details."""
    details: list[Refusal] = []
    try:
        yield details
    except grpc.RpcError as error:
        details.append(refusal(error))
        assert details[0].name == name, details[0]
    else:
        raise AssertionError(f"was not refused with {name}")


ROOT = Path(__file__).parents[2]

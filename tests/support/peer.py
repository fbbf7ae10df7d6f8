"""The published package 0.9, running as a process of its own beside the tests.

Its name is ours, so it has a virtual environment of its own. ``peer_process.py`` is what runs there.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from anyio import fail_after, sleep, to_thread

from torrelque import TorrelqueQueueStats, TorrelqueTaskState, TorrelqueTaskStatus

ROOT = Path(__file__).parent.parent.parent
PYTHON = Path(os.environ.get("TORRELQUE_PEER_PYTHON") or ROOT / ".venv" / "peer" / "bin" / "python")
#: Stands for something that JSON cannot write.
NOT_JSON = "$object"
#: No command may take longer, seconds.
PATIENCE = 60.0


class PeerError(Exception):
    """The published package raised.

    :ivar kind: the name of the class
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Running:
    """A command under way in the peer."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.events: list[TorrelqueTaskState] = []
        self.outcome: Future[Any] = Future()

    @property
    def done(self) -> bool:
        return self.outcome.done()

    async def result(self, seconds: float = PATIENCE) -> Any:
        """Wait for its answer.

        :raises PeerError: the published package raised
        """
        return await to_thread.run_sync(self.outcome.result, seconds, abandon_on_cancel=True)


class Peer:
    """The process. One serves many queues; commands run concurrently."""

    def __init__(self, url: str) -> None:
        if not PYTHON.exists():
            raise AssertionError(
                f"The published package is not at {PYTHON}: `make test` installs it"
                " (or name a Python that has it in TORRELQUE_PEER_PYTHON)"
            )
        script = Path(__file__).with_name("peer_process.py")
        self._process = subprocess.Popen(
            [PYTHON, "-I", script, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._numbers = itertools.count(1)
        self._running: dict[int, Running] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            command = self._running[answer["n"]]
            if "event" in answer:
                command.events.append(_state(answer["event"]))
            elif "error" in answer:
                self._running.pop(command.number).outcome.set_exception(PeerError(answer["error"], answer["text"]))
            else:
                self._running.pop(command.number).outcome.set_result(answer["ok"])
        for command in list(self._running.values()):
            command.outcome.set_exception(PeerError("Ended", "the peer process is gone"))

    def start(self, do: str, queue: str, *args: Any, **more: Any) -> Running:
        """Begin a command without waiting for it."""
        assert self._process.stdin is not None
        command = Running(next(self._numbers))
        self._running[command.number] = command
        line = json.dumps({"n": command.number, "do": do, "queue": queue, "args": args, **more})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return command

    def on(self, queue: str, **client: Any) -> PeerQueue:
        """Speak to one queue, with options for the peer's Redis client if need be."""
        return PeerQueue(self, queue, client)

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT, SIGKILL; a stopped or killed process is so when this returns."""
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()
        elif number == signal.SIGSTOP:
            os.waitpid(self._process.pid, os.WUNTRACED)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


class PeerQueue:
    """The documented face of the published package, in its own process."""

    def __init__(self, peer: Peer, queue: str, client: dict[str, Any]) -> None:
        self._peer = peer
        self._queue = queue
        self._client = client

    def start(self, do: str, *args: Any, **more: Any) -> Running:
        """Begin a command without waiting for it; ``kwargs`` in *more* are the method's."""
        return self._peer.start(do, self._queue, *args, client=self._client, **more)

    async def _call(self, do: str, *args: Any, **kwargs: Any) -> Any:
        return await self.start(do, *args, kwargs=kwargs).result()

    async def enqueue(self, task: Any, **kwargs: Any) -> str:
        task_id: str = await self._call("enqueue", task, **kwargs)
        return task_id

    async def dequeue(self, timeout: float | None = None, **kwargs: Any) -> Any:
        got = await self._call("dequeue", timeout, **kwargs)
        return tuple(got) if isinstance(got[0], str) else [tuple(pair) for pair in got]

    async def requeue(self, task_id: str, delay: float | None = None, **kwargs: Any) -> None:
        await self._call("requeue", task_id, delay, **kwargs)

    async def release(self, task_id: str, **kwargs: Any) -> None:
        await self._call("release", task_id, **kwargs)

    async def sweep(self) -> tuple[int, int, int]:
        stale, due, undequeued = await self._call("sweep")
        return stale, due, undequeued

    async def get_task_state(self, task_id: str) -> TorrelqueTaskState:
        return _state(await self._call("get_task_state", task_id))

    async def get_queue_stats(self) -> TorrelqueQueueStats:
        return TorrelqueQueueStats(**await self._call("get_queue_stats"))

    def watch(self, task_id: str, *, hold: bool = False, **kwargs: Any) -> Running:
        """Collect states; with *hold* pause after the first one until :meth:`go`."""
        return self.start("watch", task_id, hold=hold, kwargs=kwargs)

    async def pipeline(self, *calls: tuple[str, list[Any], dict[str, Any]], transaction: bool = True,
                       execute: bool = True) -> tuple[list[Any], list[list[str]]]:  # fmt: skip
        """Queue (method, args, kwargs) on a pipeline; returns what the calls returned, and the commands queued."""
        done = await self.start("pipeline", calls=calls, transaction=transaction, execute=execute).result()
        return done["returned"], done["queued"]

    async def go(self, command: Running) -> None:
        """Let a held command go on."""
        await self.start("go", of=command.number).result()

    async def cancel(self, command: Running) -> None:
        """Cancel a command under way."""
        await self.start("cancel", of=command.number).result()


def _state(fields: dict[str, Any]) -> TorrelqueTaskState:
    return TorrelqueTaskState(**{**fields, "status": TorrelqueTaskStatus(fields["status"])})


@contextmanager
def run_peer(url: str) -> Iterator[Peer]:
    """Run a peer as long as the scope lasts."""
    peer = Peer(url)
    try:
        yield peer
    finally:
        peer.close()


@asynccontextmanager
async def frozen(peer: Peer) -> AsyncGenerator[None]:
    """Let the whole process stand still meanwhile."""
    peer.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        peer.signal(signal.SIGCONT)


def seed(admin: redis.Redis, queue: str, place: str, count: int) -> list[str]:
    """Put tasks into a place of a queue, stored as the published package stores them; leases and delays are over."""
    ids = [f"{place}-{i}" for i in range(count)]
    status = {"working": 1, "delayed": 2}.get(place, 0)
    with admin.pipeline(transaction=False) as pipe:
        for task_id in ids:
            if status:
                pipe.zadd(f"{queue}:{place}", {task_id: 1})
            else:
                pipe.lpush(f"{queue}:{place}", task_id)
            pipe.hset(f"{queue}:tasks", task_id, json.dumps(task_id))
            pipe.hset(f"{queue}:task:{task_id}", mapping={"status": status, "timeout": 300, "enqueue_time": 1.0})
        pipe.execute()
    return ids


def seed_one(admin: redis.Redis, queue: str, task_id: str) -> None:
    """Enqueue a task in one step, without the event loop getting a turn."""
    with admin.pipeline() as pipe:
        pipe.hset(f"{queue}:tasks", task_id, '"x"')
        pipe.hset(f"{queue}:task:{task_id}", mapping={"status": 0, "timeout": 300, "enqueue_time": 1.0})
        pipe.lpush(f"{queue}:pending", task_id)
        pipe.execute()


def lapse(admin: redis.Redis, queue: str, task_id: str) -> None:
    """Let the lease of a working task be over."""
    # Removing first is granted also by a server whose memory is full.
    script = "return redis.call('ZREM', KEYS[1], ARGV[1]) + redis.call('ZADD', KEYS[1], 1, ARGV[1])"
    assert admin.eval(script, 1, f"{queue}:working", task_id) == 2


def blocked(admin: redis.Redis) -> int:
    """How many connections wait in Redis for an id."""
    count: int = admin.info("clients")["blocked_clients"]
    return count


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll, while the event loop goes on, until *condition* holds."""
    with fail_after(seconds):
        while not condition():
            await sleep(0.005)

"""What the figures with worker processes share: a server, a crew of workers, servers and producers, and their end."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import coredis
import redis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from faults import checker, history, producer, worker
from faults.checker import Allowances, Findings, Violation
from faults.crew import Crew, python
from faults.history import OK, History
from support import snapshot, wait_until
from support.peer import PYTHON

from torrelque import Torrelque, open_server

#: A queue that nobody uses any more is empty within so many seconds.
DRAIN = 60.0
#: So often a watch over the queue looks, in seconds, and for a whole snapshot every so many looks.
_LOOK, _SNAPSHOT = 0.1, 10
#: More tasks make a snapshot a load of its own.
_SMALL = 3000
#: Tells the time and the oldest lease.
_OLDEST = """
local now, oldest = redis.call('TIME'), redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {now[1] .. '.' .. string.format('%06d', now[2]), oldest[2] or ''}
"""


def free_port() -> int:
    """Find a port on which a server can be started again and again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(host: str, port: int) -> bool:
    """Tell whether anybody listens there."""
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


@dataclass
class Watch:
    """What was seen of a queue in passing."""

    #: Seconds that a lease stood in ``working`` beyond its end, the longest.
    overdue: float = 0.0
    snapshots: int = 0
    violations: list[Violation] = field(default_factory=list)


@contextlib.contextmanager
def watching(url: str, queue: str) -> Iterator[Watch]:
    """Look at a queue again and again while the body runs."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        try:
            with redis.Redis.from_url(url) as admin:
                for number in range(1 << 62):
                    if ended.wait(_LOOK):
                        return
                    with contextlib.suppress(redis.RedisError):  # it may be down
                        _look(admin, queue, watch, whole=number % _SNAPSHOT == 0)
        except Exception as error:
            watch.violations.append(Violation("watch", queue, f"ended with {error!r}"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def _look(admin: redis.Redis, queue: str, watch: Watch, *, whole: bool) -> None:
    now, oldest = admin.eval(_OLDEST, 1, f"{queue}:working")
    if oldest:
        watch.overdue = max(watch.overdue, float(now) - float(oldest))
    if whole and admin.hlen(f"{queue}:tasks") <= _SMALL:
        snap = snapshot(admin, queue)
        statuses = {task_id: fields.get("status") for task_id, fields in snap.states.items()}
        watch.violations += checker.partition(snap.places(), set(snap.tasks), statuses)
        watch.snapshots += 1


@dataclass
class Site:
    """Where a storm rages."""

    folder: Path
    queue: str
    url: str
    seed: int
    lease: float
    sweep: float
    crew: Crew
    admin: redis.Redis
    portal: BlockingPortal
    addresses: list[str] = field(default_factory=list)

    def place(self, way: str) -> Any:
        return self.addresses if way in ("grpc", "stream") else self.url

    def add_server(self) -> None:
        """Start a gRPC server, always on the same port."""
        number, address = len(self.addresses), f"127.0.0.1:{free_port()}"
        self.addresses.append(address)
        options = {"--redis": self.url, "--listen": address, "--task-timeout": self.lease, "--grace": 5.0,
                   "--sweep-interval": self.sweep, "--log-level": "warning"}  # fmt: skip
        spelled = [str(part) for option in options.items() for part in option]
        self.crew.add(f"server-{number}", lambda _: [sys.executable, "-m", "torrelque", "serve", *spelled])

    def add_worker(self, slot: str, way: str, backend: str, **more: Any) -> None:
        """Start a worker."""

        def command(name: str) -> Sequence[str]:
            orders = worker.Orders(
                name, str(self.crew.history), way, backend, self.place(way), self.queue, f"{self.seed}-{name}",
                self.lease, self.sweep, **more,
            )  # fmt: skip
            return python("worker", asdict(orders))

        self.crew.add(slot, command)

    def add_peer(self, slot: str) -> None:
        """Start a worker of the published package."""
        script = Path(__file__).with_name("peer_worker.py")
        self.crew.add(
            slot, lambda name: [str(PYTHON), "-I", str(script), str(self.crew.history), name, self.url, self.queue]
        )

    def add_producer(self, slot: str, way: str, backend: str, tasks: int, pace: float, **more: Any) -> None:
        """Start a producer, which ends when all of its tasks are stored."""

        def command(name: str) -> Sequence[str]:
            orders = producer.Orders(
                name, str(self.crew.history), way, backend, self.place(way), self.queue, f"{self.seed}-{name}",
                tasks, pace, self.lease, **more,
            )  # fmt: skip
            return python("producer", asdict(orders))

        self.crew.add(slot, command, ends=True)

    def serving(self) -> bool:
        """Tell whether all gRPC servers listen."""
        return all(listens(host, int(port)) for host, _, port in (each.rpartition(":") for each in self.addresses))

    def wait_for_servers(self, seconds: float = 20) -> None:
        """Return when all gRPC servers listen."""
        wait_until(self.serving, seconds)

    def drain(self, seconds: float = DRAIN) -> float | None:
        """Wait until the queue is empty; returns how long that took, or ``None`` when it did not come."""
        began = time.monotonic()
        while self.admin.hlen(f"{self.queue}:tasks"):
            if time.monotonic() > began + seconds:
                return None
            self.crew.look()
            time.sleep(0.05)
        return time.monotonic() - began

    def sweep_twice(self) -> None:
        """Sweep by a consumer of our own, so that what the dead left has been seen twice."""

        async def sweep() -> None:
            async with coredis.Redis.from_url(self.url) as client, Torrelque(client, queue=self.queue) as queue:
                await queue.sweep()
                await queue.sweep()

        self.portal.call(sweep)

    def judge(self, allowances: Allowances) -> tuple[History, Findings]:
        """Read what all wrote and what is left, and judge it."""
        told = history.read(self.crew.history)
        return told, checker.check(told, checker.take(self.admin, self.queue), allowances)


def acked_a_second(told: History) -> float:
    """How many tasks the producers were told of, for each second from their first enqueue to their last."""
    made = [call for call in told.calls if call.op == "enqueue" and call.process.startswith("producer")]
    acked = [call for call in made if call.outcome == OK and call.completed is not None]
    span = max(call.completed or 0 for call in acked) - min(call.invoked for call in acked)
    return sum(len(call.args) for call in acked) / (span / 1e9)


@contextlib.contextmanager
def site_at(url: str, folder: Path, seed: int, lease: float, sweep: float = 1.0) -> Iterator[Site]:
    """Make a crew, which is gone at the end, for a server that somebody runs there."""
    with (
        start_blocking_portal() as portal,
        redis.Redis.from_url(url) as admin,
        Crew(folder) as crew,
    ):
        yield Site(folder, "storm", url, seed, lease, sweep, crew, admin, portal)


@contextlib.contextmanager
def open_site(folder: Path, seed: int, lease: float, sweep: float = 1.0) -> Iterator[Site]:
    """Start a server of one's own, and make a crew."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(folder / "data", fsync="no")) as url,
        site_at(url, folder, seed, lease, sweep) as site,
    ):
        yield site


def progress(text: str) -> None:
    """Tell who waits how far it is."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


__all__ = ["Site", "Watch", "acked_a_second", "free_port", "open_site", "progress", "site_at", "watching"]

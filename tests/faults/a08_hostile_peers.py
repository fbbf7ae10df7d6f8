"""A8: strangers do their worst to a gRPC server, while honest clients claim."""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import trustme
from faults.figures import Options, Report
from faults.hostile import PACE, Deeds, Site, attack
from support import keyspace, running_server
from support.bridge import Process, seconds, serving

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server._pb import torrelque_pb2_grpc as pb_grpc

TITLE = (
    "floods, resets, garbage, bombs and forged rights under 200 honest claims a second: no stranger is felt or let in"
)
SHORT = 0.03

COUNTS = {
    "streams of headers": 2_000, "rapid resets": 50_000, "pings": 20_000, "TLS garbage": 1_000, "idle sockets": 200,
    "gzip bombs": 20, "bypass attempts": 2_000,
}  # fmt: skip
#: Claims a second, and for how many seconds they are measured without strangers.
RATE, QUIET = 200, 20
#: Of the honest calls so many succeed; and the slowest hundredth takes at most so many times as long as without
#: strangers, unless that is less than what a machine of two cores makes of any company, in seconds.
OK, SLOWER, UNFELT = 0.999, 5.0, 0.05
#: Memory is back within so many bytes, after so many seconds.
MEMORY, BACK = 64 << 20, 60.0
#: Strangers have machines of their own. Here they share one with the server, which goes before their work by so much;
#: their flood of calls must keep half of its pace nevertheless.
MEEKER, KEPT = 10, 0.5
#: An honest call waits no longer.
DEADLINE = 10.0
HONEST, GRANTED = "honest", "elsewhere"


@dataclass
class Claims:
    """Calls of an honest client, and how they ended."""

    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def of_hundred(self, part: float) -> float:
        """The latency that so many of a hundred calls stay within, seconds."""
        ordered = sorted(self.latencies) or [math.inf]
        return ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))]


class Client:
    """Claims and releases at a steady rate, however long each takes."""

    def __init__(self, site: Site, token: str) -> None:
        self.channel = site.channel()
        self.stub: Any = pb_grpc.TorrelqueServiceStub(self.channel)
        self._options: Any = {"timeout": DEADLINE, "metadata": [("authorization", f"Bearer {token}")]}
        #: gRPC cancels a call that nobody holds.
        self._sent: list[Any] = []

    @contextmanager
    def claiming(self) -> Iterator[Claims]:
        """Claim as long as the body runs."""
        claims, ended = Claims(), threading.Event()
        thread = threading.Thread(target=self._claim, args=(claims, ended))
        thread.start()
        try:
            yield claims
        finally:
            ended.set()
            thread.join()

    def _claim(self, claims: Claims, ended: threading.Event) -> None:
        begun, number = time.monotonic(), 0
        calls: list[Any] = []
        for _ in range(RATE):
            self._enqueue()
        while not ended.is_set():
            time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            self._enqueue()
            request = pb.DequeueRequest(queue=HONEST, timeout=seconds(5))
            call = self.stub.Dequeue.future(request, **self._options)
            call.add_done_callback(functools.partial(self._claimed, claims, time.monotonic()))
            calls.append(call)
            number += 1
        for call in calls:
            call.exception()
        for call in self._sent:
            if (error := call.exception()) is not None:
                claims.failed.append(f"{error}")
        self._sent.clear()

    def _enqueue(self) -> None:
        spec = pb.TaskSpec(payload=pb.Payload(data=b"{}"))
        self._sent.append(self.stub.Enqueue.future(pb.EnqueueRequest(queue=HONEST, task=spec), **self._options))

    def _claimed(self, claims: Claims, sent: float, call: Any) -> None:
        if call.exception() is not None:
            claims.failed.append(f"{call.code()}: {call.debug_error_string()} after {time.monotonic() - sent:.3f} s")
            return
        claims.latencies.append(time.monotonic() - sent)
        tasks = call.result().tasks
        if not tasks:
            claims.failed.append("no task came")
        for task in tasks:
            request = pb.ReleaseRequest(queue=HONEST, task_id=task.task_id, dequeue_count=task.dequeue_count)
            self._sent.append(self.stub.Release.future(request, **self._options))


def _book(path: Path) -> None:
    text = ""
    for name, token, queue in (("honest", "honest-token", HONEST), ("stranger", "stranger-token", GRANTED)):
        digest = hashlib.sha256(token.encode()).hexdigest()
        text += f'[[principal]]\nname = "{name}"\ntokens = [{{ sha256 = "{digest}" }}]\n'
        text += f'grants = [{{ queues = ["{queue}"], verbs = ["enqueue", "consume", "watch", "admin"] }}]\n'
    path.write_text(text)
    path.chmod(0o600)


def _certificate(folder: Path) -> tuple[list[str], str]:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    (folder / "key.pem").write_bytes(made.private_key_pem.bytes())
    (folder / "key.pem").chmod(0o600)
    (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    options = ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
    return options, authority.cert_pem.bytes().decode()


def _guarded(admin: redis.Redis) -> dict[bytes, bytes | None]:
    """What no stranger may change: all but the honest queue."""
    return {key: value for key, value in keyspace(admin).items() if not key.startswith(f"{HONEST}:".encode())}


def run(options: Options) -> Report:
    """Measure without strangers, then with them, and what they leave."""
    report = Report()
    counts = {what: options.of(count) for what, count in COUNTS.items()}
    tls, ca = _certificate(options.folder)
    _book(options.folder / "auth.toml")
    with running_server(fsync="no") as server:
        server.admin.hset("sentinel:tasks", "t", "payload")
        server.admin.hset("sentinel:task:t", mapping={"status": "0", "timeout": "300", "enqueue_time": "1"})
        server.admin.lpush("sentinel:pending", "t")
        auth = ["--auth-file", str(options.folder / "auth.toml")]
        with serving("--redis", server.url, *tls, *auth) as process:
            site = Site(process.address, ca, "stranger-token")
            _attack(options, server.admin, process, site, counts, report)
    signs = [sign for sign in ("Traceback", "never retrieved", "was never awaited") if sign in process.log()]
    report.violations += [f"the server's log has {sign!r}" for sign in signs]
    return report


def _attack(
    options: Options, admin: redis.Redis, process: Process, site: Site, counts: dict[str, int], report: Report
) -> None:
    client = Client(site, "honest-token")
    spawned = multiprocessing.get_context("spawn")
    with client.channel, ProcessPoolExecutor(1, spawned, os.nice, (MEEKER,)) as pool:
        pool.submit(time.sleep, 0).result()  # the process of the strangers is there before anything is measured
        with client.claiming() as quiet:
            time.sleep(max(3.0, QUIET * options.scale))
        before, stored = process.memory(), _guarded(admin)
        began = time.monotonic()
        with client.claiming() as besieged:
            queues = ["sentinel", HONEST, "nowhere", f"{GRANTED}-2"]
            deeds: Deeds = pool.submit(attack, site, counts, GRANTED, queues, options.seed).result()
        lasted = time.monotonic() - began
        deadline = time.monotonic() + BACK
        while process.memory() > before + MEMORY and time.monotonic() < deadline:
            time.sleep(0.2)
        after = process.memory()
        with client.claiming() as afterwards:
            time.sleep(1)
    _judge(report, quiet, besieged, afterwards)
    if process.process.poll() is not None:
        report.violations.append(f"the server has ended with {process.process.returncode}")
    if after > before + MEMORY:
        report.violations.append(f"memory has grown by {(after - before) >> 20} MiB")
    if _guarded(admin) != stored:
        report.violations.append("a stranger has changed what is stored")
    report.violations += [f"let in: {line}" for line in deeds.inside]
    report.minimums = {what: (deeds.done[what], counts[what]) for what in counts}
    report.minimums["resets a second"] = (deeds.resets_a_second, PACE * KEPT)
    report.minimums["honest claims a second"] = (len(besieged.latencies) / lasted, RATE * 0.8)
    report.measured |= {
        "attack s": round(lasted, 1),
        "memory grown MiB": round((after - before) / (1 << 20), 1),
    }


def _judge(report: Report, quiet: Claims, besieged: Claims, afterwards: Claims) -> None:
    total = len(besieged.latencies) + len(besieged.failed)
    share = len(besieged.latencies) / total if total else 0.0
    p99 = {"quiet": quiet.of_hundred(99), "besieged": besieged.of_hundred(99), "after": afterwards.of_hundred(99)}
    report.measured |= {f"p99 {when} ms": round(value * 1000, 2) for when, value in p99.items()}
    report.measured |= {"p50 besieged ms": round(besieged.of_hundred(50) * 1000, 2), "honest calls": total}
    report.measured["honest calls ok"] = f"{share:.5f}"
    if share < OK:
        report.violations.append(f"honest calls: {share:.4f} succeeded, {besieged.failed[:3]}")
    if quiet.failed or afterwards.failed:
        report.violations.append(f"honest calls without strangers: {(quiet.failed + afterwards.failed)[:3]}")
    if p99["besieged"] > max(SLOWER * p99["quiet"], UNFELT):
        report.violations.append(f"p99 {p99['besieged'] * 1000:.1f} ms, without strangers {p99['quiet'] * 1000:.1f} ms")

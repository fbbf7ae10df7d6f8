"""Puts the load of one row on its server, and looks at the processor while it is measured."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from grpc_build import Clients
from grpc_plan import GHZ, LIBRARY, Row, Scale
from grpc_processes import Server
from probe import Probe

PAYLOAD = 200
BULK = 100
_HERE = Path(__file__).parent
_PROTOS = _HERE.parent / "proto"
#: How long servers are given to finish with what the client before has left behind.
_CALM = 0.3
#: What a client may take beyond the time that it measures.
_BEYOND = 60.0


class LoadError(Exception):
    """A client has failed; the text holds what it said."""


@dataclass(frozen=True)
class Outcome:
    """What one row gave in one round. Times of the processor are seconds for each item, where they are known."""

    rate: float
    p50: float
    p99: float
    server: float | None
    storage: float
    client: float | None


@dataclass(frozen=True)
class Generator:
    """Makes load."""

    clients: Clients
    servers: dict[str, Server]
    probe: Probe
    url: str
    scale: Scale

    async def run(self, row: Row, queue: str) -> Outcome:
        """Measure one row once, on an empty Redis.

        :raises LoadError: the client has failed
        """
        await anyio.sleep(_CALM)
        self.probe.flush()
        observed = _Observed(None if row.client == LIBRARY else self.servers[row.server], self.probe)
        observed.look()
        command = self._command(row, queue)
        try:
            with anyio.fail_after(_BEYOND + self.scale.warmup + self.scale.seconds):
                answer = await _talk(command, observed)
        except TimeoutError:
            raise LoadError(f"{row.label}: {command[0]} has not ended") from None
        except (ValueError, KeyError, anyio.BrokenResourceError):
            raise LoadError(f"{row.label}: {command[0]} failed\n{observed.said}") from None
        if row.client == GHZ:
            observed.look()
            answer = _of_ghz(answer)
        if answer["errors"]:
            raise LoadError(f"{row.label}: {answer['errors']} calls failed\n{observed.said}")
        return observed.outcome(answer)

    def _command(self, row: Row, queue: str) -> list[str]:
        scale = self.scale
        if row.client == LIBRARY:
            shape = {
                "url": self.url, "queue": queue, "callers": row.concurrency, "bulk": BULK, "payload": PAYLOAD,
                "seconds": scale.seconds, "warmup": scale.warmup,
            }  # fmt: skip
            return [sys.executable, str(_HERE / "grpc_library.py"), json.dumps(shape)]
        address = self.servers[row.server].address
        if row.client == GHZ:
            return _ghz(self.clients.ghz, address, row, queue, scale)
        backlog = int(row.backlog_rate * (scale.seconds + scale.warmup))
        options: dict[str, Any] = {
            "address": address, "mode": row.mode, "queue": queue, "concurrency": row.concurrency,
            "connections": row.connections, "seconds": scale.seconds, "warmup": scale.warmup, "payload": PAYLOAD,
            "batch": BULK, "backlog": backlog,
        }  # fmt: skip
        return [str(self.clients.load), *(f"-{name}={value}" for name, value in options.items())]


def _ghz(program: Path | None, address: str, row: Row, queue: str, scale: Scale) -> list[str]:
    data = {"queue": queue, "task": {"payload": {"data": base64.b64encode(b"x" * PAYLOAD).decode()}}}
    return [
        str(program), "--insecure", "--import-paths", str(_PROTOS),
        "--proto", str(_PROTOS / "torrelque/v1/torrelque.proto"),
        "--call", "torrelque.v1.TorrelqueService/Enqueue", "--data", json.dumps(data),
        "--disable-template-functions", "--disable-template-data",
        "--concurrency", str(row.concurrency), "--connections", str(row.connections), "--cpus", "1",
        "--duration", f"{scale.seconds + scale.warmup}s", "--duration-stop", "ignore", "--format", "json", address,
    ]  # fmt: skip


def _of_ghz(answer: dict[str, Any]) -> dict[str, Any]:
    spread = {each["percentage"]: each["latency"] / 1e9 for each in answer["latencyDistribution"] or ()}
    failed = sum(count for code, count in answer["statusCodeDistribution"].items() if code != "OK")
    count = answer["count"] - failed
    return {
        "count": count, "seconds": count / answer["rps"], "p50": spread.get(50, 0.0), "p99": spread.get(99, 0.0),
        "cpu_seconds": None, "errors": failed,
    }  # fmt: skip


class _Observed:
    """What a client says while it runs, and the times of the processor at the moments that it tells."""

    def __init__(self, server: Server | None, probe: Probe) -> None:
        self._server = server
        self._probe = probe
        self._looks: list[tuple[float | None, float]] = []
        self.said = ""

    def heard(self, line: str) -> None:
        if line in {"begin", "end"}:
            self.look()
        else:
            self.said += line + "\n"

    def look(self) -> None:
        info = self._probe.admin.info("cpu")
        storage = float(info["used_cpu_user"] + info["used_cpu_sys"])
        self._looks.append((self._server and self._server.processor_time(), storage))

    def outcome(self, answer: dict[str, Any]) -> Outcome:
        """Whatever was looked at last are the ends of what was measured."""
        count, used = answer["count"], answer["cpu_seconds"]
        if not count:
            raise LoadError(f"nothing was done\n{self.said}")
        (server, storage), (server_then, storage_then) = self._looks[-2:]
        return Outcome(
            count / answer["seconds"],
            answer["p50"],
            answer["p99"],
            None if server is None or server_then is None else (server_then - server) / count,
            (storage_then - storage) / count,
            None if used is None else used / count,
        )


async def _talk(command: list[str], observed: _Observed) -> dict[str, Any]:
    """Run a client to its end; returns what it printed."""
    printed = b""

    async def read() -> None:
        nonlocal printed
        assert process.stdout is not None
        async for part in process.stdout:
            printed += part

    async with (
        await anyio.open_process(command, stdin=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        anyio.create_task_group() as group,
    ):
        assert process.stderr is not None
        group.start_soon(read)
        lines = BufferedByteReceiveStream(process.stderr)
        try:
            while True:
                observed.heard((await lines.receive_until(b"\n", 1 << 16)).decode(errors="replace"))
        except (anyio.EndOfStream, anyio.IncompleteRead):
            pass
    answer: dict[str, Any] = json.loads(printed)
    return answer

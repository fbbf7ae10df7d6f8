"""Server processes, and the time that processes have had of the processor."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

ECHO, ONE, TWO = "echo", "one", "two"
_START = 30.0
_STOP = 20.0
_PROC = Path("/proc")


class ServerError(Exception):
    """A server has not started."""


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    address: str
    pid: int

    def processor_time(self) -> float | None:
        """Seconds of the processor that it and its workers have had; ``None`` where the kernel does not tell."""
        try:
            return sum(_processor_time(pid) for pid in (self.pid, *_children(self.pid)))
        except OSError:
            return None


def _children(pid: int) -> list[int]:
    return [int(child) for child in (_PROC / f"{pid}/task/{pid}/children").read_text().split()]


def _processor_time(pid: int) -> float:
    # The name of the program may hold anything, and ends with the last bracket.
    fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def open_servers(url: str) -> AsyncGenerator[dict[str, Server]]:
    """Start all servers; they end with the scope."""
    serve = ["-m", "torrelque", "serve", "--listen", "127.0.0.1:0", "--redis", url, "--log-level", "warning"]
    commands = {
        ECHO: [str(Path(__file__).parent / "grpc_echo.py")],
        ONE: serve,
        TWO: [*serve, "--workers", "2"],
    }
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(_server(command)) for name, command in commands.items()}


@asynccontextmanager
async def _server(command: list[str]) -> AsyncGenerator[Server]:
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    async with await anyio.open_process(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(await _address(BufferedByteReceiveStream(process.stdout), command), process.pid)
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
                with anyio.move_on_after(_STOP):
                    await process.wait()
                if process.returncode is None:
                    process.kill()


async def _address(lines: BufferedByteReceiveStream, command: list[str]) -> str:
    try:
        with anyio.fail_after(_START):
            while True:
                line = await lines.receive_until(b"\n", 4096)
                if found := re.fullmatch(rb"listening on (\S+)", line):
                    return found[1].decode()
    except (TimeoutError, anyio.EndOfStream, anyio.IncompleteRead):
        raise ServerError(f"the server {' '.join(command)} has not started") from None

"""Worker processes, one for each column of the tables, which do jobs one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

PUBLISHED = "published 0.9"
OURS = ("redis-py, asyncio", "redis-py, uvloop", "coredis, asyncio", "coredis, Trio")
COLUMNS = (PUBLISHED, *OURS)

_HERE = Path(__file__).parent
_LONGEST_ANSWER = 1 << 20


class WorkerError(Exception):
    """A job failed, took too long, or its process has ended."""


class Worker:
    """The process of one column."""

    def __init__(self, column: str, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.column = column
        self._requests = process.stdin
        self._answers = BufferedByteReceiveStream(process.stdout)

    async def ask(self, job: str, timeout: float, **arguments: Any) -> Any:
        """Have a job done.

        :raises WorkerError: it was not done
        """
        try:
            with anyio.fail_after(timeout):
                await self._requests.send(json.dumps({"do": job, "with": arguments}).encode() + b"\n")
                answer = json.loads(await self._answers.receive_until(b"\n", _LONGEST_ANSWER))
        except TimeoutError:
            raise WorkerError(f"{self.column}: {job} has not ended within {timeout:.0f} s") from None
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            raise WorkerError(f"{self.column}: the process has ended during {job}") from None
        if "error" in answer:
            raise WorkerError(f"{self.column}: {job} failed\n{answer['error']}")
        return answer["ok"]


@asynccontextmanager
async def open_workers(url: str, published: Path) -> AsyncGenerator[dict[str, Worker]]:
    """Start a worker for each column; they end with the scope."""
    async with AsyncExitStack() as stack:
        yield {
            column: Worker(column, await stack.enter_async_context(_process(_command(column, url, published))))
            for column in COLUMNS
        }


@asynccontextmanager
async def _process(command: list[str]) -> AsyncGenerator[Process]:
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


def _command(column: str, url: str, published: Path) -> list[str]:
    if column == PUBLISHED:
        # -E: no PYTHONPATH may put our package, which has the same name, in the place of the published one.
        return [str(published), "-E", str(_HERE / "published.py"), url]
    return [sys.executable, str(_HERE / "ours.py"), url, column]

"""Runs worker processes, and hears what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from . import Pair

#: Not AnyIO's: what is killed and stopped here must not depend on the event loop's care for its children.
_popen = subprocess.Popen


class WorkerProcess:
    """A running ``worker_process.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def said(self, seconds: float = 20) -> Any:
        """Wait for the next thing it says."""
        with anyio.fail_after(seconds):
            line = await anyio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        assert line, "the worker process has ended"
        return json.loads(line)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)


@asynccontextmanager
async def open_worker(url: str, name: str, pair: Pair, number: int) -> AsyncGenerator[WorkerProcess]:
    """Run a worker that takes *number* tasks; it is killed in the end, if it still lives."""
    command = [sys.executable, "-m", "support.worker_process", url, name, str(pair), str(number)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with _popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield WorkerProcess(process)
        finally:
            process.kill()

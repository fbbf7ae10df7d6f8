"""A server as a whole process: signals, logs, and the exit code."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskStatus

from .embedding import loop_factory
from .errors import single

logger = logging.getLogger("torrelque.server")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class JsonLines(logging.Formatter):
    """One JSON object for each record: no payload and no token is ever part of one."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if error_id := getattr(record, "error_id", None):
            entry["error_id"] = error_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Passing(logging.Filter):
    """Drops what grpcio logs as an error when a client has left, or has sent a header that is no text.

    Neither is a fault of ours, and strangers must not fill the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = f"{record.getMessage()} {record.exc_info}"
        return "ExecuteBatchError" not in text and "Invalid encoding" not in text


@dataclass(frozen=True, slots=True)
class Log:
    """How to log."""

    as_json: bool = False
    level: str = "info"


def start_logging(log: Log) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonLines() if log.as_json else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("torrelque").setLevel(log.level.upper())
    for name in ("grpc._cython.cygrpc", "grpc._common"):
        logging.getLogger(name).addFilter(_Passing())


def run(
    serving: Callable[..., Coroutine[Any, Any, None]],
    announce: Callable[[Any], None],
    at_once: Sequence[signal.Signals] = SIGNALS,
) -> None:
    """Run a server until a signal, which drains it.

    :param serving: takes ``task_status``, as for ``start`` of a task group, and serves until cancelled
    :param announce: told what ``task_status`` was given
    :param at_once: signals that end the process at once when it is draining
    """

    async def listen(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if scope.cancel_called and number in at_once:
                    os._exit(128 + number)
                logger.info("%s: stopping; a second signal ends at once", signal.Signals(number).name)
                scope.cancel()

    async def main() -> None:
        async with anyio.create_task_group() as outer:
            with anyio.CancelScope() as scope:
                await outer.start(listen, scope)
                async with anyio.create_task_group() as group:
                    announce(await group.start(serving))
                    await anyio.sleep_forever()
            outer.cancel_scope.cancel()

    calm_collector()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())
    except BaseExceptionGroup as errors:
        raise single(errors) from None


def calm_collector() -> None:
    """Look for garbage less often: what calls make is freed without, and what was imported stays for ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def say(line: str) -> None:
    """Print a line at once, for somebody who reads through a pipe too."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

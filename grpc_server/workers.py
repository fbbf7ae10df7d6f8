"""Several server processes on one port: the kernel spreads connections over them, and who dies is replaced.

Each worker is a fresh process, never a fork of one that has used gRPC. It reads its settings from its standard input,
where no list of processes shows them, and drains when that ends: so it does not outlive its supervisor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process, TaskStatus

from .lifecycle import probe, storage
from .process import Log
from .settings import Address, Settings, SettingsError

logger = logging.getLogger("torrelque.server")

#: A worker that ends by itself is replaced after so long, doubled up to the most while it goes on.
_FIRST, _MOST = 0.2, 10.0
#: One that has served for so long begins at the first again.
_GOOD = 30.0
#: What a worker may take beyond its grace before it is killed.
_BEYOND = 10.0
READY = "ready"


def _reserve(held: contextlib.ExitStack, settings: Settings) -> tuple[str, ...]:
    """Hold the ports, so that those asked for as any are the same for all workers."""
    targets: list[str] = []
    for address in settings.addresses:
        if address.path:
            raise SettingsError("workers: processes cannot share a unix socket: listen on a port, or use one")
        probe(address)  # whether others share it among them: they would not keep us out
        targets.append(address.target(_hold(held, address)))
    return tuple(targets)


def _hold(held: contextlib.ExitStack, address: Address) -> int:
    try:
        family, *_, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        holder = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(place)  # it does not listen: no connection comes to it
    except OSError as error:
        raise SettingsError(f"listen: cannot listen on {address.target()}: {error.strerror or error}") from None
    return int(holder.getsockname()[1])


async def supervise(
    settings: Settings, count: int, log: Log, *, task_status: TaskStatus[tuple[str, ...]] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Run *count* workers until cancelled, which drains them."""
    with contextlib.ExitStack() as held:
        listen = _reserve(held, settings)
        async with storage(settings) as url, anyio.create_task_group() as group:
            shared = dataclasses.replace(settings, listen=listen, redis=url, reuse_port=True)
            try:
                for index in range(count):
                    await group.start(_keep, _told(_own(shared, index), log), settings.grace, index)
                task_status.started(listen)
                await anyio.sleep_forever()
            finally:
                held.close()  # who comes next need not wait for the calls that end here


def _own(settings: Settings, index: int) -> Settings:
    """Give each worker a port of its own for its metrics."""
    if settings.metrics is None:
        return settings
    address = Address.parse(settings.metrics, "metrics")
    port = address.port and address.port + index
    return dataclasses.replace(settings, metrics=address.target(port))


def _told(settings: Settings, log: Log) -> bytes:
    """Write down what a worker is to know; :func:`told` reads it."""
    return json.dumps({"settings": dataclasses.asdict(settings), "log": dataclasses.asdict(log)}).encode() + b"\n"


def told(line: str) -> tuple[Settings, Log]:
    """Read what the supervisor has written."""
    content: dict[str, dict[str, Any]] = json.loads(line)
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content["settings"].items()}
    return Settings(**values), Log(**content["log"])


async def _keep(message: bytes, grace: float, index: int, *, task_status: TaskStatus[None]) -> None:
    """Run one worker, and another one when it has ended or could not be started."""
    pause = _FIRST
    served = False

    def ready() -> None:
        nonlocal served
        if not served:
            served = True
            task_status.started()

    while True:
        begun = anyio.current_time()
        try:
            code = await _run(message, grace, index, ready)
        except OSError as error:  # the machine has no process or no descriptor left
            if not served:
                raise SettingsError(f"workers: none can be started: {error}") from None
            end = f"could not be started: {error}"
        else:
            if code == 2 and not served:
                raise SettingsError("a worker could not start: its own line above says why")
            end = f"has ended with {code}"
        pause = _FIRST if anyio.current_time() - begun > _GOOD else min(_MOST, pause * 2)
        logger.error("Worker %d %s, starting another one in %.1f s", index, end, pause)
        await anyio.sleep(pause)


async def _run(message: bytes, grace: float, index: int, ready: Callable[[], None]) -> int:
    command = [sys.executable, "-m", "grpc_server"]
    process = await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None, start_new_session=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):  # it has ended
            await process.stdin.send(message)
            if (await process.stdout.receive()).decode().strip() == READY:
                logger.info("Worker %d serves, process %d", index, process.pid)
                ready()
        return await process.wait()
    finally:
        await _end(process, grace + _BEYOND)


async def _end(process: Process, patience: float) -> None:
    """Let a worker drain; what takes too long is killed."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(patience):
                await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await process.aclose()

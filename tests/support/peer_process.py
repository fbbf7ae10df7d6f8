"""The published package as a process of its own: JSON commands on stdin, one a line, answers on stdout.

Run by the Python of another virtual environment, where the name ``torrelque`` is the published package 0.9, of which
only the documented face is used here. ``peer.py`` holds the other end.

A command is ``{"n": 1, "do": "enqueue", "queue": "q", "args": [...], "kwargs": {...}}``; commands run concurrently.
The answer is ``{"n": 1, "ok": value}`` or ``{"n": 1, "error": class, "text": message}``; a watch also sends
``{"n": 1, "event": state}`` for each state.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from typing import Any

import redis.asyncio
from redis.asyncio.client import PubSub

from torrelque import Torrelque, TorrelqueTaskStatus, TorrelqueTimeoutError

URL = sys.argv[1]
NOT_JSON = "$object"
"""A string that stands for something which JSON cannot write."""

queues: dict[str, Torrelque] = {}
running: dict[int, asyncio.Task[None]] = {}
gates: dict[int, asyncio.Event] = {}
counted: list[int] = []


def queue_of(command: dict[str, Any]) -> Torrelque:
    """One queue object for each name and set of options: ``url`` and those of the client."""
    options = dict(command.get("client") or {})
    key = json.dumps([command["queue"], options])
    if key not in queues:
        client = redis.asyncio.Redis.from_url(options.pop("url", URL), **options)
        queues[key] = Torrelque(client, queue=command["queue"])
        queues[key].client_for_tests = client
    return queues[key]


def arguments(command: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What JSON cannot write is told by name."""
    args = [object() if value == NOT_JSON else value for value in command.get("args", ())]
    kwargs = {key: object() if value == NOT_JSON else value for key, value in command.get("kwargs", {}).items()}
    if "status" in kwargs:
        kwargs["status"] = TorrelqueTaskStatus(kwargs["status"])
    return args, kwargs


def plain(value: Any) -> Any:
    """Named tuples become dicts, so that both ends see the names of the fields."""
    return value._asdict() if hasattr(value, "_asdict") else value


async def method(command: dict[str, Any]) -> Any:
    """Call a documented method."""
    args, kwargs = arguments(command)
    result = getattr(queue_of(command), command["do"])(*args, **kwargs)
    return plain(await result if inspect.isawaitable(result) else result)


async def watch(command: dict[str, Any]) -> None:
    """Follow a task; with ``hold`` pause after the first state until ``go`` is said."""
    args, kwargs = arguments(command)
    async for state in queue_of(command).watch(*args, **kwargs):
        say(n=command["n"], event=plain(state))
        if command.get("hold"):
            await gates.setdefault(command["n"], asyncio.Event()).wait()


async def go(command: dict[str, Any]) -> None:
    """Let a held command go on."""
    gates.setdefault(command["of"], asyncio.Event()).set()


async def cancel(command: dict[str, Any]) -> None:
    """Cancel a command under way, and wait until it has ended."""
    task = running[command["of"]]
    task.cancel()
    await asyncio.wait([task])


async def pipeline(command: dict[str, Any]) -> Any:
    """Queue calls on a pipeline and execute it; answers with the commands that were queued, and the outcome."""
    queue = queue_of(command)
    pipe = queue.client_for_tests.pipeline(transaction=command["transaction"])
    returned = []
    for name, args, kwargs in command["calls"]:
        args, kwargs = arguments({"args": args, "kwargs": kwargs})
        try:
            returned.append(await getattr(queue, name)(*args, **kwargs, pipeline=pipe))
        except Exception as error:
            returned.append(repr(error))
    queued = [[_text(part) for part in args] for args, _ in pipe.command_stack]
    if command["execute"]:
        await pipe.execute()
    return {"returned": returned, "queued": queued}


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)


async def consume(command: dict[str, Any]) -> list[list[Any]]:
    """Dequeue and release with several consumers until ``go`` is said and nothing is left; answers with what came."""
    stop = gates.setdefault(command["n"], asyncio.Event())
    queue = queue_of(command)
    delivered: list[list[Any]] = []

    async def consumer() -> None:
        while True:
            last = stop.is_set()
            try:
                task_id, task = await queue.dequeue(1 if last else 0.25)
            except TorrelqueTimeoutError:
                if last:
                    return
                continue
            delivered.append([task_id, task])
            await queue.release(task_id)

    await asyncio.gather(*(consumer() for _ in range(command["consumers"])))
    return delivered


async def storm(command: dict[str, Any]) -> int:
    """Start dequeues and cancel each after 0 to 11 turns of the loop; answers how many ended cancelled."""
    queue = queue_of(command)
    cancelled = 0
    for i in range(command["dequeues"]):
        task = asyncio.create_task(queue.dequeue(5))
        for _ in range(i % 12):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        cancelled += isinstance(outcome, asyncio.CancelledError)
    return cancelled


async def break_sweep(command: dict[str, Any]) -> int:
    """Make one sweep raise what is no Redis error; answers how many sweeps a schedule begins within half a second."""
    queue = queue_of(command)
    sweep, begun = queue.sweep, 0

    async def broken() -> Any:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise RuntimeError("not a Redis error")
        return await sweep()

    queue.sweep = broken
    queue.schedule_sweep(0.02)
    await asyncio.sleep(0.5)
    return begun


async def skew(command: dict[str, Any]) -> None:
    """Set this process's clock ahead."""
    real = time.time
    time.time = lambda: real() + command["seconds"]


async def polls(_: dict[str, Any]) -> int:
    """How often the client was asked for a message so far, counted from the first call of this."""
    if not counted:
        get_message = PubSub.get_message

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            return get_message(*args, **kwargs)

        PubSub.get_message = counting
        counted.append(0)
    return counted[0]


SPECIAL = {
    function.__name__: function
    for function in (watch, go, cancel, pipeline, consume, storm, break_sweep, skew, polls)
}  # fmt: skip


def say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


async def serve(command: dict[str, Any]) -> None:
    number = command["n"]
    try:
        say(n=number, ok=await SPECIAL.get(command["do"], method)(command))
    except BaseException as error:
        say(n=number, error=type(error).__name__, text=str(error))
    finally:
        del running[number]


async def main() -> None:
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        running[command["n"]] = asyncio.create_task(serve(command))


if __name__ == "__main__":
    asyncio.run(main())

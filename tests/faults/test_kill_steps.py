"""A process that is killed at a named step of a call leaves the call done or not done, and nothing half-way."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import anyio
import pytest
from anyio import to_thread
from redis import Redis
from support import Pair, Server, Snapshot, open_client, snapshot, wait_until

from torrelque import Torrelque, TorrelqueLookupError, scripts
from torrelque.drivers._wire import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

#: Where in a round trip the process dies: nothing is sent, nothing of the answer is read, nothing made of the answer.
STEPS = ["before", "sent", "answered"]
TASK = "the-task"
#: Seconds.
LEASE = 0.5


#: Forks from a process that has all modules already, but no event loop and no threads.
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["torrelque", "coredis", "redis.asyncio", "trio", "uvloop", "pytest"])


def die(script: scripts.Script, step: str, mark: bytes = b"") -> None:
    """Have this process killed at the step of the first round trip that runs the script and holds the mark."""
    ask = Wire.ask

    async def ask_and_die(self: Wire, request: bytes, answers: int = 1) -> Any:
        if mark not in request or (script.sha1 not in request and script.text not in request):
            return await ask(self, request, answers)
        if step == "sent":
            await self._stream.send(request)
        elif step == "answered":
            await ask(self, request, answers)
        return os.kill(os.getpid(), signal.SIGKILL)

    Wire.ask = ask_and_die  # type: ignore[method-assign]  # in this process, which dies of it


async def work(pair: Pair, url: str, name: str, verb: str, step: str) -> None:
    """Call the verb, and die on the way."""
    async with open_client(pair, url) as client, Torrelque(client, queue=name) as queue:
        match verb:
            case "enqueue":
                die(scripts.ENQUEUE, step)
                await queue.enqueue("x", task_id=TASK, task_timeout=LEASE)
            case "dequeue":
                die(scripts.DEQUEUE, step)
                await queue.dequeue()
            case "adopt":
                die(scripts.DEQUEUE, step, TASK.encode())
                await queue.dequeue()
            case "release":
                task_id, _ = await queue.dequeue()
                die(scripts.RELEASE, step)
                await queue.release(task_id)
            case "requeue":
                task_id, _ = await queue.dequeue()
                die(scripts.REQUEUE, step)
                await queue.requeue(task_id)
            case "extend":
                task_id, _ = await queue.dequeue()
                die(scripts.EXTEND, step)
                await queue.extend(task_id, 60)


def child(pair: Pair, *how: str) -> None:
    anyio.run(work, pair, *how, backend=pair.backend[0], backend_options=pair.backend[1])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("verb", ["enqueue", "dequeue", "adopt", "release", "requeue", "extend"])
async def test_f01_killed_at_a_step(
    open_queue: Any, server: Server, admin: Redis, pair: Pair, name: str, verb: str, step: str
) -> None:
    """What was sent takes effect whole, what was not has none; who comes next gets the task under the right number."""
    for script in scripts.ALL:
        admin.script_load(script.text)  # the first try is the one that counts
    async with open_queue() as queue:
        if verb not in {"enqueue", "adopt"}:
            await queue.enqueue("x", task_id=TASK, task_timeout=LEASE)
        process = FORKING.Process(target=child, args=(pair, server.url, name, verb, step))
        process.start()
        if verb == "adopt":
            await to_thread.run_sync(wait_until, lambda: is_waiting(admin), 30)
            await queue.enqueue("x", task_id=TASK, task_timeout=LEASE)
        await to_thread.run_sync(process.join, 30)
        assert process.exitcode == -signal.SIGKILL
        if sent := step != "before":
            await to_thread.run_sync(wait_until, lambda: is_done(snapshot(admin, name), verb))
        left = snapshot(admin, name)
        left.check()
        match verb, sent:
            case ("enqueue", False) | ("release", True):
                with pytest.raises(TorrelqueLookupError):
                    await queue.get_task_state(TASK)
                assert not left.tasks
                return
            case "extend", True:
                await queue.release(TASK, strict=True)
                return
            case "adopt", False:
                assert left.dequeueing == [TASK]
                assert [tuple(await queue.sweep()) for _ in range(2)] == [(0, 0, 0), (0, 0, 1)]
        task_id, task = await queue.dequeue(10)
        count = {"enqueue": 1, "dequeue": 1 + sent, "adopt": 1 + sent}.get(verb, 2)
        assert (task_id, task, task_id.dequeue_count) == (TASK, "x", count)
        await queue.release(task_id, strict=True)
        snapshot(admin, name).check()
        assert not snapshot(admin, name).tasks


def is_waiting(admin: Redis) -> bool:
    """Whether somebody blocks for a task."""
    return any(each["cmd"] == "blmove" and "b" in each["flags"] for each in admin.client_list())


def is_done(now: Snapshot, verb: str) -> bool:
    """Whether the call has taken effect."""
    return {
        "enqueue": bool(now.pending),
        "dequeue": bool(now.working),
        "adopt": bool(now.working),
        "release": not now.tasks,
        "requeue": bool(now.pending),
        "extend": any(end > now.now + LEASE for end in now.working.values()),
    }[verb]

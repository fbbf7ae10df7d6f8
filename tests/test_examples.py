"""Every example runs to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAYS = {
    "going_on_anyio.py": "after the restart: COMPLETED, 17",
    "outage_asyncio.py": "2 tasks in the queue",
    "results_asyncio.py": "328350 is the sum",
    "stop_anyio.py": "finished: short\ngiven back: long\nleft for others: 2",
    "workers_trio.py": "REJECTED, 'https://example.org/broken does not answer', deliveries: 3",
}


RUNS = [*((path.name,) for path in sorted(ROOT.glob("examples/*.py"))), ("going_on_anyio.py", "trio")]
#: coredis leaves streams open of a connection that it has lost.
UNCLOSED = {"going_on_anyio.py"}


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_example_runs(run: tuple[str, ...]) -> None:
    """An example ends well, says what it is about, and warns of nothing."""
    name, *arguments = run
    warnings = "error,ignore::ResourceWarning" if name in UNCLOSED else "error"
    environment = {**os.environ, "PYTHONWARNINGS": warnings, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
    assert done.stderr == ""


#: The worker of an example, whose first task is ended by somebody else while it holds it.
TAKEN_AWAY = """
import trio, workers_trio
from torrelque import Torrelque, open_server

async def fetch(url):
    if url == "first":
        await trio.sleep_forever()
    return "done"

async def main():
    workers_trio.fetch = fetch
    async with open_server() as url, Torrelque.from_url(url) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(workers_trio.worker, "ada", queue)
        first = await queue.enqueue("first", task_timeout=0.5)
        async for state in queue.watch(first, timeout=30):
            if state.status.name == "WORKING":
                await queue.release(str(first))
        async for state in queue.watch(await queue.enqueue("second"), timeout=30):
            if state.status.isfinal():
                print(state.result)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


def test_a_worker_outlives_a_lost_lease() -> None:
    """The worker of the Trio example goes on with the next task when its lease was lost."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}"}
    command = [sys.executable, "-c", TAKEN_AWAY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"

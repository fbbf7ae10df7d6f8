"""Storage that was damaged; and the means of the fault bench: what a power cut takes away, and no process stays."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from faults.crew import Crew
from faults.storage import unflushed
from support import REDIS, SERVERS, Server, Snapshot, running_server, snapshot, wait_until

from torrelque import Torrelque, TorrelqueCheckFinding, TorrelqueError, embedded

AOF = "</d/appendonlydir/appendonly.aof.1.incr.aof>"


@pytest.mark.parametrize(
    ("lines", "bytes_lost"),
    [
        ([], 0),
        ([f'7 write(8{AOF}, ""..., 100) = 100', f"7 fdatasync(8{AOF}) = 0"], 0),
        ([f'7 write(8{AOF}, ""..., 100) = 100', f"7 fdatasync(8{AOF}) = -1 EIO (Input/output error) (INJECTED)"], 100),
        ([f"7 fdatasync(8{AOF}) = 0", f'7 write(8{AOF}, ""..., 90) = 70', "7 +++ killed by SIGKILL +++"], 70),
        # Another thread flushes: what is written meanwhile may or may not be covered, so it is not.
        (
            [
                f'7 write(8{AOF}, ""..., 100) = 100',
                f"8 fdatasync(8{AOF} <unfinished ...>",
                f'7 write(8{AOF}, ""..., 30) = 30',
                "8 <... fdatasync resumed>) = 0",
            ],
            30,
        ),
        ([f'7 write(8{AOF}, ""..., 5 <unfinished ...>', "7 <... write resumed>) = 5"], 5),
        ([f'7 write(8{AOF}, ""..., 100) = 100', f"7 fdatasync(8{AOF} <unfinished ...>"], 100),
    ],
)
def test_unflushed(lines: list[str], bytes_lost: int) -> None:
    """What was written after the beginning of the last fdatasync that returned well is lost."""
    assert unflushed(lines) == bytes_lost


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_crew_ends(tmp_path: Path) -> None:
    """Members are gone when the crew is left, also those that were stopped; who ended unasked is told and replaced."""
    with Crew(tmp_path) as crew:
        crew.add("stopped", lambda _: ["sleep", "60"])
        crew.add("gone", lambda name: ["sh", "-c", f"echo why; [ {name} = gone.1 ] && sleep 60 || exit 3"])
        crew.stop("stopped")
        first = crew.members["gone"]
        wait_until(lambda: crew.look() or crew.members["gone"] is not first)
        pids = [child.process.pid for child in crew.members.values()]
        assert all(map(alive, pids))
    assert not any(map(alive, pids))
    assert crew.deserters == ["gone.0 ended by itself with 3: why"]


def test_crew_dies_with_its_maker(tmp_path: Path) -> None:
    """A bench that is killed itself leaves nobody behind."""
    text = (
        "import sys, time; from pathlib import Path; from faults.crew import Crew; crew = Crew(Path(sys.argv[1]));"
        "crew.add('m', lambda _: ['sleep', '60']); print(crew.members['m'].process.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(pid))


def cut(log: bytes) -> bytes:
    return log[:-7]


def append_junk(log: bytes) -> bytes:
    return log + random.Random(7).randbytes(7)


def flip_a_bit(log: bytes) -> bytes:
    """Spoil the first byte of the last command, which is the end of a transaction: so is the effect of each script."""
    last = log.rindex(b"*1\r\n$4\r\nEXEC")
    return log[:last] + bytes([log[last] ^ 1]) + log[last + 1 :]


async def fill(url: str) -> None:
    """Bring tasks to all places, and one to its end."""
    async with Torrelque.from_url(url, queue="q") as queue:
        await queue.enqueue_many([{"n": n} for n in range(30)], task_ids=[f"t{n}" for n in range(30)])
        pairs = await queue.dequeue(1, max_tasks=5)
        await queue.release(pairs[0][0], result="done")
        await queue.requeue(pairs[1][0])
        await queue.requeue(pairs[2][0], delay=1000)


async def enqueue_last(url: str) -> None:
    async with Torrelque.from_url(url, queue="q") as queue:
        await queue.enqueue("the last", task_id="last")


async def look(url: str) -> list[TorrelqueCheckFinding]:
    """Ask what ``torrelque check`` asks."""
    async with Torrelque.from_url(url, queue="q") as queue:
        return (await queue.check(grace=0)).findings


def held(snap: Snapshot) -> tuple[object, ...]:
    return snap.places(), snap.tasks, snap.states, snap.working, snap.delayed


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("damage", "loads", "last_stays"),
    [(cut, True, False), (append_junk, False, True), (flip_a_bit, False, False)],
)
def test_f07_damaged_tail(
    kind: str, damage: Callable[[bytes], bytes], loads: bool, last_stays: bool, tmp_path: Path
) -> None:
    """A damaged end of the append-only file costs what was damaged: all before is as it was, the last call whole or
    undone, and nothing else is there. A torn end is loaded; another is refused until the server's tool cuts it off."""
    with running_server(kind, data_dir=tmp_path) as server:
        anyio.run(fill, server.url)
        before = held(snapshot(server.admin, "q"))
        anyio.run(enqueue_last, server.url)
        after = held(snapshot(server.admin, "q"))
    (log,) = tmp_path.glob("appendonlydir/*.incr.aof")
    log.write_bytes(damage(log.read_bytes()))
    if not loads:
        with pytest.raises(TorrelqueError, match="Bad file format"), running_server(kind, data_dir=tmp_path):
            pass
        mend(kind, log)
    with running_server(kind, data_dir=tmp_path) as server:
        assert held(snapshot(server.admin, "q")) == (after if last_stays else before)
        assert anyio.run(look, server.url) == []


def mend(kind: str, log: Path) -> None:
    """Cut off the damage with the tool that comes with the server, which is the server under another name."""
    binary = shutil.which(REDIS or "") if kind == "redis" else embedded._find_server(None)
    command = [f"{kind}-check-aof", "--fix", str(log)]
    done = subprocess.run(
        command, executable=binary, input="y\n", capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", SERVERS)
def test_backup(kind: str, tmp_path: Path) -> None:
    """A snapshot that was copied away holds the queue whole, as docs/operating.md tells of one that is restored."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    with running_server(kind, data_dir=data) as server:
        anyio.run(fill, server.url)
        before = held(snapshot(server.admin, "q"))
        server.admin.save()
        anyio.run(enqueue_last, server.url)
        later = anyio.run(take_all, server.url)
    copy.mkdir()
    shutil.copy(data / "dump.rdb", copy)
    with running_server(kind, data_dir=copy, options={"appendonly": "no"}) as server:
        assert held(snapshot(server.admin, "q")) == before
        assert anyio.run(look, server.url) == []
        server.admin.config_set("appendonly", "yes")
        wait_until(lambda: written(server))
    with running_server(kind, data_dir=copy) as server:
        assert held(snapshot(server.admin, "q")) == before
        again = anyio.run(take_all, server.url)
    assert {"last"} == set(later) - set(again), "what came after the backup is missing, and nothing else"
    assert again == {task_id: later[task_id] for task_id in again}, "the deliveries have the same numbers again"


def written(server: Server) -> bool:
    """Whether the append-only file that was asked for is there."""
    info = server.admin.info("persistence")
    return not (info["aof_rewrite_scheduled"] or info["aof_rewrite_in_progress"])


@pytest.mark.parametrize("kind", SERVERS)
def test_backup_is_not_read(kind: str, tmp_path: Path) -> None:
    """A server that keeps an append-only file and finds none begins with nothing, whatever snapshot lies there."""
    with running_server(kind, data_dir=tmp_path / "data") as server:
        anyio.run(fill, server.url)
        server.admin.save()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "data/dump.rdb", tmp_path / "copy")
    with running_server(kind, data_dir=tmp_path / "copy") as server:
        assert not server.admin.keys("q:*")


async def take_all(url: str) -> dict[str, int]:
    """Take all that is pending, and tell the numbers of the deliveries."""
    async with Torrelque.from_url(url, queue="q") as queue:
        return {task_id: task_id.dequeue_count for task_id, _ in await queue.dequeue(1, max_tasks=99)}

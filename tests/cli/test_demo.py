"""The demo: its parts one by one, and the whole of it on a small folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from anyio.from_thread import start_blocking_portal
from rich.console import Console
from support import Server

from torrelque import Torrelque, TorrelqueError, TorrelqueTaskState, TorrelqueTaskStatus, cli, open_server
from torrelque.demo import files, producer
from torrelque.demo.crew import Crew, loops, open_crew
from torrelque.demo.files import Digest, File, digest, find_files, mark_of
from torrelque.demo.producer import Plan, run_demo
from torrelque.demo.report import Job, Report, Run, Verdict, judge
from torrelque.demo.screen import ConsoleScreen

ROOT = Path(__file__).resolve().parents[2]
BOUND = 60.0
BIG = files.PIECE + 1
NAMES = ["with space", "ünïcödé ☃", "line\nfeed", "[bold]", os.fsdecode(b"bytes\xff"), "'quote\""]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each asynchronous test on both event loops."""
    return str(request.param)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A single kind of server, as if it were somebody's own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(fsync="no")) as url,
        redis.Redis.from_url(url) as admin,
    ):
        yield Server("valkey", url, admin)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of some 300 files: empty, binary, big, and with all kinds of names."""
    top = tmp_path / "folder"
    for n in range(300):
        path = top / f"sub {n % 7}" / f"file{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"line\n" * n)
    (top / "empty").touch()
    (top / "binary").write_bytes(bytes(range(256)) * 100)
    (top / "big").write_bytes(b"\n" * BIG)
    for name in NAMES:
        (top / name).write_text(name.encode("ascii", "replace").decode())
    (top / "link").symlink_to("empty")
    (top / "loop").symlink_to(".")
    os.mkfifo(top / "fifo")
    return top


COUNT = 300 + 3 + len(NAMES)


# Files


def test_find_files(folder: Path) -> None:
    """Every regular file is found, whatever its name is; no link is followed."""
    found, skipped = find_files(str(folder))
    expected = {str(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    assert {file.path for file in found} == expected
    assert (len(found), skipped) == (COUNT, 0)
    assert all(file.mark == mark_of(file.path) for file in found)


def test_find_files_leaves_out(folder: Path) -> None:
    """What others have installed is no part of the standard library."""
    found, _ = find_files(str(folder), frozenset({"sub 0"}))
    assert not [file for file in found if "/sub 0/" in file.path]
    assert [file for file in found if "/sub 1/" in file.path]


def test_find_files_counts_what_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders without permission are skipped, with a count."""
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("sub 0"):
            raise PermissionError(errno.EACCES, "no", path)
        return scandir(path)

    monkeypatch.setattr(os, "access", lambda path, _: not path.endswith("empty"))
    monkeypatch.setattr(os, "scandir", refuse)
    found, skipped = find_files(str(folder))
    assert skipped == 2
    assert len(found) == COUNT - 1 - len(os.listdir(folder / "sub 0"))


@pytest.mark.parametrize("content", [b"", b"a", b"a\n\nb", b"\n" * BIG], ids=["empty", "a", "lines", "big"])
def test_digest(tmp_path: Path, content: bytes) -> None:
    """A digest is that of the whole content, read in pieces."""
    path = tmp_path / "file"
    path.write_bytes(content)
    pieces: list[None] = []
    found = digest(str(path), lambda: pieces.append(None))
    assert found == Digest(hashlib.sha256(content).hexdigest(), len(content), content.count(b"\n"))
    assert len(pieces) == -(-len(content) // files.PIECE)
    assert Digest.from_result(found._asdict() | {"worker": 1}) == found


@pytest.mark.parametrize("result", [None, {"error": "x"}, [], "text", {"sha256": "x"}])
def test_result_without_digest(result: Any) -> None:
    """A result that holds no digest is read as none."""
    assert Digest.from_result(result) is None


# Verdicts


def final(result: Any, status: TorrelqueTaskStatus = TorrelqueTaskStatus.COMPLETED) -> TorrelqueTaskState:
    """Make a final state."""
    return TorrelqueTaskState(status, 2.0, result, 1, 0, 1.0, 1.0, None, 1.0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A task that was done well."""
    path = tmp_path / "file"
    path.write_bytes(b"content\n")
    mark = mark_of(str(path))
    assert mark is not None
    return Job(File(str(path), mark), "id", final(digest(str(path))._asdict() | {"worker": 7}))


def test_right(job: Job) -> None:
    """A digest that is that of the file is right."""
    assert judge(job) is Verdict.RIGHT


def test_lost(job: Job) -> None:
    """A task without a final state is lost."""
    job.state = None
    assert judge(job) is Verdict.LOST


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"bytes": 7}, {"lines": 0}], ids=str)
def test_mismatch(job: Job, wrong: dict[str, Any]) -> None:
    """A digest that is not that of the file, in whatever part, is a mismatch."""
    assert job.state
    job.state = final(job.state.result | wrong)
    assert judge(job) is Verdict.MISMATCH


def test_rejected_without_reason(job: Job) -> None:
    """A worker that could not read a file which is there unchanged has made a mismatch."""
    job.state = final({"error": "no", "worker": 7}, TorrelqueTaskStatus.REJECTED)
    assert judge(job) is Verdict.MISMATCH


def test_changed(job: Job) -> None:
    """A file that was changed meanwhile proves nothing against a worker."""
    Path(job.file.path).write_bytes(b"other content\n")
    assert judge(job) is Verdict.CHANGED


def test_vanished(job: Job) -> None:
    """Nor does one that is gone, whether a worker has seen it or not."""
    Path(job.file.path).unlink()
    assert judge(job) is Verdict.CHANGED
    job.state = final({"error": "gone", "worker": 7}, TorrelqueTaskStatus.REJECTED)
    assert judge(job) is Verdict.CHANGED


def report(verdict: Verdict, deserters: list[Any] | None = None) -> Report:
    """Make a report of a single task."""

    async def make() -> Report:
        run = Run(total=1, done=1, ended=1.0)
        return Report(run, 0, [], Counter([verdict]), [(verdict, "some/file\n")], deserters or [])

    return anyio.run(make)


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (report(Verdict.RIGHT), 0),
        (report(Verdict.CHANGED), 0),
        (report(Verdict.LOST), 1),
        (report(Verdict.MISMATCH), 1),
        (report(Verdict.RIGHT, [object()]), 1),
    ],
    ids=["right", "changed", "lost", "mismatch", "deserter"],
)
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: Report, code: int
) -> None:
    """A lost task, a wrong digest or a worker that died by itself make the command fail."""

    async def run_demo(*_: Any) -> Report:
        return ended

    monkeypatch.delenv("TORRELQUE_URL", raising=False)
    monkeypatch.setattr("torrelque.cli.commands.run_demo", run_demo)
    assert cli.main(["demo"]) == code
    assert "some/file\\n" in capsys.readouterr().out


# Workers


def test_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are on asyncio and Trio in turn, or all on asyncio where Trio is not installed."""
    assert loops(5) == ["asyncio", "trio", "asyncio", "trio", "asyncio"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert loops(2) == ["asyncio", "asyncio"]


@pytest.mark.anyio
async def test_crew_stops_in_order(server: Server, name: str) -> None:
    """Workers that are asked to stop leave with exit code 0."""
    async with open_crew(server.url, name, 2, pytest.fail) as crew:
        pass
    assert [member.process.returncode for member in crew.members] == [0, 0]
    assert crew.deserters == []


@pytest.mark.anyio
async def test_crew_kills_who_does_not_stop(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stands still is killed when its time is over."""
    monkeypatch.setattr("torrelque.demo.crew.STOP_GRACE", 0.1)
    async with open_crew(server.url, name, 1, pytest.fail) as crew:
        os.kill(crew.members[0].process.pid, signal.SIGSTOP)
    assert crew.members[0].process.returncode == -signal.SIGKILL


@pytest.mark.anyio
async def test_crew_tells_of_a_death(server: Server, name: str) -> None:
    """A worker that dies by itself is told of; without the last one there is no way on."""
    told: list[str] = []

    async def lose_both() -> None:
        async with open_crew(server.url, name, 2, told.append) as crew:
            first, second = crew.members
            first.process.kill()
            await first.ended.wait()
            assert (crew.deserters, crew.at_work) == ([first], [second])
            assert str(first.process.pid) in told[0]
            second.process.kill()
            await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await lose_both()
    assert caught.group_contains(TorrelqueError, match="No worker is left")
    assert len(told) == 2


@pytest.mark.anyio
async def test_crew_that_cannot_start(name: str) -> None:
    """When the workers cannot reach the server they are not ready, which is an error."""
    told: list[str] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_crew("redis://127.0.0.1:1/0", name, 1, told.append):
            pytest.fail("no worker can be ready")
    assert caught.group_contains(TorrelqueError)
    assert len(told) == 1


@pytest.mark.anyio
async def test_killed_worker_held_a_task(server: Server, name: str) -> None:
    """A worker that was asked to freeze stands still with a task in hand, which comes back after its death."""
    async with Torrelque.from_url(server.url, queue=name) as queue:
        async with open_crew(server.url, name, 1, pytest.fail) as crew:
            member = crew.members[0]
            await member.ask_to_freeze()
            task_id = await queue.enqueue("/nonsense", task_timeout=0.2)
            assert await member.kill_with_task(anyio.CancelScope(deadline=anyio.current_time() + BOUND))
            assert member.killed
            assert member.process.returncode == -signal.SIGKILL
            assert (await queue.get_task_state(task_id)).status is TorrelqueTaskStatus.WORKING
            queue.schedule_sweep(0.1)
            delivered, _ = await queue.dequeue(10)
            assert (delivered, delivered.dequeue_count) == (task_id, 2)
            await queue.release(delivered)


@pytest.mark.anyio
async def test_asking_who_has_ended(server: Server, name: str) -> None:
    """A worker that has died by itself cannot be asked for anything, which is told as what it is."""
    async with open_crew(server.url, name, 2, lambda _: None) as crew:
        first, second = crew.members
        first.process.kill()
        await first.ended.wait()
        for _ in range(2):
            with pytest.raises(TorrelqueError, match=r"worker \d+ .* has ended with exit code -9"):
                await first.ask_to_freeze()
        assert crew.choose_victim() is second


@pytest.mark.anyio
async def test_worker_rejects_what_it_cannot_read(server: Server, name: str, tmp_path: Path) -> None:
    """A file that is gone, or is none, is rejected with the reason."""
    async with Torrelque.from_url(server.url, queue=name) as queue, open_crew(server.url, name, 1, pytest.fail):
        for path in (tmp_path / "gone", tmp_path):
            task_id = await queue.enqueue(str(path))
            states = [state async for state in queue.watch(task_id, timeout=10)]
            assert states[-1].status is TorrelqueTaskStatus.REJECTED
            assert str(path) in states[-1].result["error"]


# The whole


def environment(**more: str) -> dict[str, str]:
    """The environment of a command."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TORRELQUE_")}
    return env | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"} | more


def demo(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [sys.executable, "-m", "torrelque", "demo", *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=BOUND,
        check=False,
    )


def keys(server: Server) -> set[bytes]:
    """Read the names of all keys."""
    return set(server.admin.scan_iter())


def number(output: str, name: str) -> float:
    """Read a total."""
    found = re.search(rf"^│ {name} +│ +([\d.,]+) │$", output, re.MULTILINE)
    assert found, output
    return float(found[1].replace(",", ""))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_demo(folder: Path, backend: str) -> None:
    """Every file is digested right although a worker is killed with tasks in hand, which are delivered again."""
    done = demo(str(folder), "--backend", backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert number(done.stdout, "tasks") == COUNT
    assert number(done.stdout, "redelivered") > 0
    assert number(done.stdout, "lost") == 0
    assert number(done.stdout, "mismatches") == 0
    workers = re.findall(r"^│ \d+ +│ (\w+) +│ +(\d+) │ +[\d.]+ │ (\w+) +│$", done.stdout, re.MULTILINE)
    assert [loop for loop, _, _ in workers] == ["asyncio", "trio", "asyncio", "trio"]
    assert [end for _, _, end in workers] == ["stopped", "stopped", "stopped", "killed"]
    assert sum(int(tasks) for _, tasks, _ in workers) == COUNT
    assert "killed with SIGKILL, tasks in hand" in done.stdout


def test_demo_on_a_server_of_yours(server: Server, folder: Path) -> None:
    """On somebody's server the demo uses a queue of its own, and leaves only results, which expire."""
    before = keys(server)
    done = demo(str(folder), "--workers", "2", TORRELQUE_URL=server.url)
    assert (done.returncode, done.stderr) == (0, "")
    left = keys(server) - before
    assert all(re.fullmatch(rb"demo-[0-9a-f]{8}:task:[0-9a-f]{32}", key) for key in left)
    assert len(left) == COUNT
    assert all(0 < server.admin.ttl(key) <= 300 for key in left)
    server.admin.delete(*left)


def test_demo_without_files(tmp_path: Path) -> None:
    """A folder without a file is an error of usage."""
    done = demo(str(tmp_path))
    assert done.returncode == 2
    assert re.fullmatch(r"torrelque: error: There is no file .*\n", done.stderr)


def test_demo_with_a_single_file(tmp_path: Path) -> None:
    """A single file is enough."""
    (tmp_path / "file").write_text("text")
    done = demo(str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert number(done.stdout, "lost") == 0


@pytest.mark.anyio
async def test_demo_finds_a_wrong_digest(
    folder: Path, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the files are not what the workers have read, the demo says so, and names them."""
    monkeypatch.setattr("torrelque.demo.report.digest", lambda path, between: Digest("0", 0, 0))
    output = StringIO()
    screen = ConsoleScreen(Console(file=output, width=200))
    found = await run_demo(Plan(str(folder), 2, server.url, name), screen)
    screen.show(found)
    assert not found.good
    assert found.verdicts == {Verdict.MISMATCH: COUNT}
    assert output.getvalue().count("mismatch: ") == len(found.examples) == 5


@pytest.mark.anyio
async def test_demo_finds_a_lost_task(folder: Path, server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that nobody knows any more is lost."""
    enqueue = producer._enqueue

    async def lose(queue: Torrelque, found: list[File]) -> list[Job]:
        jobs = await enqueue(queue, found)
        jobs[0].task_id = "nobody"
        return jobs

    monkeypatch.setattr(producer, "_enqueue", lose)
    found = await run_demo(Plan(str(folder), 2, server.url, name), ConsoleScreen(Console(file=StringIO())))
    assert not found.good
    assert found.verdicts == {Verdict.LOST: 2, Verdict.RIGHT: COUNT - 2}


@pytest.mark.anyio
async def test_demo_goes_on_when_a_worker_dies(
    folder: Path, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last worker dies by itself another one is killed, every file is digested, and the death is told."""

    @asynccontextmanager
    async def lose_the_last(*arguments: Any) -> AsyncIterator[Crew]:
        async with open_crew(*arguments) as crew:
            crew.members[-1].process.kill()
            await crew.members[-1].ended.wait()
            yield crew

    monkeypatch.setattr(producer, "open_crew", lose_the_last)
    output = StringIO()
    screen = ConsoleScreen(Console(file=output, width=200))
    found = await run_demo(Plan(str(folder), 3, server.url, name), screen)
    screen.show(found)
    assert found.verdicts == {Verdict.RIGHT: COUNT}
    assert not found.good
    assert len(found.deserters) == 1
    assert "has ended unexpectedly" in output.getvalue()
    assert "killed with SIGKILL, tasks in hand" in output.getvalue()


@pytest.mark.anyio
async def test_demo_on_a_terminal(folder: Path, server: Server, name: str) -> None:
    """On a terminal the progress is drawn in place, and other lines stand above it."""
    output = StringIO()
    screen = ConsoleScreen(Console(file=output, width=200, force_terminal=True))
    found = await run_demo(Plan(str(folder), 2, server.url, name), screen)
    assert found.good
    assert "\x1b[" in output.getvalue()
    assert "killed with SIGKILL, tasks in hand" in output.getvalue()


@pytest.mark.anyio
async def test_the_search_can_be_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for files, of which there may be millions, ends when it is cancelled."""
    look, looked = files._look, 0

    def stop_at_the_third(entry: os.DirEntry[str]) -> File | None:
        nonlocal looked
        looked += 1
        if looked == 3:
            anyio.from_thread.run_sync(scope.cancel)
        return look(entry)

    monkeypatch.setattr(files, "_look", stop_at_the_third)
    with anyio.CancelScope() as scope:
        await anyio.to_thread.run_sync(producer._find, str(folder))
    assert looked == 3


@pytest.mark.anyio
@pytest.mark.timeout(30)
async def test_the_check_can_be_stopped(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does the comparison of digests, amid a file that takes minutes to read."""
    os.truncate(job.file.path, 1 << 38)
    begun = anyio.Event()

    def read(path: str, between: Callable[[], object] = lambda: None) -> Digest:
        anyio.from_thread.run_sync(begun.set)
        return digest(path, between)

    monkeypatch.setattr("torrelque.demo.report.digest", read)
    async with anyio.create_task_group() as group:
        group.start_soon(producer._check, [job])
        await begun.wait()
        group.cancel_scope.cancel()


@pytest.fixture
def mark() -> Iterator[str]:
    """Mark the processes of a test by their environment, and find none of them left."""
    mark = secrets.token_hex(8)
    yield mark
    deadline = time.monotonic() + BOUND
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def _marked(mark: str) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def _start_endless(folder: Path, mark: str, **more: str) -> subprocess.Popen[str]:
    """Start a demo that cannot end by itself for long, and wait until its workers are at work."""
    (folder / "huge").write_bytes(b"")
    os.truncate(folder / "huge", 1 << 38)  # a hole, which takes minutes to read
    process = subprocess.Popen(
        [sys.executable, "-m", "torrelque", "demo", str(folder)],
        env=environment(MARK=mark, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if "tasks," in line:
            break
    return process


linux_only = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@linux_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_interrupted(folder: Path, mark: str, number: signal.Signals, code: int) -> None:
    """A signal ends the demo and all its processes, quietly."""
    with _start_endless(folder, mark) as process:
        assert len(_marked(mark)) >= 5
        process.send_signal(number)
        _, said = process.communicate(timeout=BOUND)
    assert (process.returncode, said) == (code, "")


@linux_only
def test_demo_killed(folder: Path, mark: str) -> None:
    """Also when the producer is killed, no process stays."""
    with _start_endless(folder, mark) as process:
        process.kill()


@linux_only
def test_demo_interrupted_on_a_server_of_yours(server: Server, folder: Path, mark: str) -> None:
    """An interrupted demo leaves no task on somebody's server."""
    before = keys(server)
    with _start_endless(folder, mark, TORRELQUE_URL=server.url) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=BOUND)
    assert (process.returncode, said) == (130, "")
    left = keys(server) - before
    assert all(re.fullmatch(rb"demo-[0-9a-f]{8}:task:[0-9a-f]{32}", key) for key in left)
    assert all(server.admin.ttl(key) > 0 for key in left)
    if left:
        server.admin.delete(*left)

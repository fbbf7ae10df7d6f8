"""A Valkey whose machine fails: it is killed, loses its power or its disk, and is started again on what is left.

A power cut loses what was written and not yet flushed. strace notes each write to the append-only file and each
fdatasync of it; after the cut the file is truncated to what the last fdatasync that returned had covered. It also lets
fdatasync fail. The disk is a tmpfs, which can be made too small (that needs root).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import redis
from faults.crew import Crew
from support import wait_until

from torrelque import embedded

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
#: The size of the disk, and what is left of it when it is to run full, in bytes.
_ROOMY, _SCANTY = 4 << 30, 1 << 20
#: Seconds until a server must serve, and until one that met a fault must have ended.
_START, _END = 30.0, 15.0
#: The fdatasyncs that succeed before one fails.
_GOOD = 20
#: Its name in the crew.
SLOT = "storage"

_BEGIN = re.compile(r"^(\d+) +(write|fdatasync)\(\d+<[^>]*>(.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (write|fdatasync) resumed>(.*)$")
_RESULT = re.compile(r"\) += (\d+)(?: |$)")


def unflushed(lines: Iterable[str]) -> int:
    """Find in the words of strace how many bytes of a file were written after what is surely on the disk."""
    written = flushed = 0
    covers: dict[str, int] = {}
    for line in lines:
        if found := _BEGIN.match(line):
            if found[2] == "fdatasync":
                covers[found[1]] = written
        elif not (found := _RESUMED.match(line)):
            continue
        result = _RESULT.search(found[3])
        if result is None:
            continue  # not yet, or an error
        if found[2] == "write":
            written += int(result[1])
        else:
            flushed = max(flushed, covers[found[1]])
    return written - flushed


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of one's own, which only this thread and its children see, and which goes with them."""
    if os.geteuid():
        raise PermissionError("a disk that runs full is a tmpfs, so this needs root")
    folder.mkdir()
    if _LIBC.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mounts of one's own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOMY},mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Storage:
    """The server, on one port and one disk."""

    def __init__(self, crew: Crew, folder: Path, port: int, fsync: str) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._crew = crew
        self._folder = folder
        self._words = crew.folder / "strace.txt"
        self._wrapped: list[str] = []
        #: Bytes that the last power cut has cost.
        self.lost = 0
        options = {
            "port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": fsync, "save": "",
            "auto-aof-rewrite-percentage": 0, "notify-keyspace-events": "KA", "pidfile": folder / "pid",
        }  # fmt: skip
        binary = embedded._find_server(None)
        command = [binary, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        crew.add(SLOT, lambda _: [*self._wrapped, *command], start=False)

    def start(self, *, traced: bool = False) -> None:
        """Start it, and return when it serves; *traced* for a power cut."""
        self._wrapped = [*self._strace(), "--seccomp-bpf"] if traced else []
        child = self._crew.start(SLOT)
        with redis.Redis.from_url(self.url, retry=None) as admin:
            wait_until(lambda: self._serves(admin) or child.process.poll() is not None, _START)
            assert self._serves(admin), f"the server did not start: {child.log.read_text()[-2000:]}"
            self._pid = int(admin.info("server")["process_id"])

    def _strace(self) -> list[str]:
        return ["strace", "-f", "-y", "-s", "0", "-o", str(self._words), "-P", str(self._log),
                "-e", "trace=write,fdatasync"]  # fmt: skip

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Let each fdatasync fail, after some more that do not."""
        self._crew.expect(SLOT)
        fails = ["-e", f"inject=fdatasync:error=EIO:when={_GOOD}+", "-p", str(self._pid)]
        self._crew.add("strace", lambda _: [*self._strace(), *fails])
        self._crew.expect("strace")
        yield
        self._crew.members["strace"].process.wait(_END)

    @staticmethod
    def _serves(admin: redis.Redis) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(admin.ping())
        return False

    @property
    def _log(self) -> Path:
        """The append-only file that is written now."""
        return max(self._folder.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime_ns)

    def kill(self) -> None:
        """Kill it; the machine and its disk go on."""
        self._crew.expect(SLOT)
        os.kill(self._pid, signal.SIGKILL)
        self._crew.members[SLOT].process.wait(_END)

    def lose(self) -> None:
        """Take away what was not flushed when it ended: the power was cut then."""
        with self._words.open() as lines:
            self.lost = unflushed(lines)
        os.truncate(self._log, self._log.stat().st_size - self.lost)

    def ends(self, seconds: float = _END) -> bool:
        """Tell whether it ends by itself; it has ended in any case."""
        try:
            self._crew.members[SLOT].process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def fill(self) -> None:
        """Let the disk run full soon."""
        self._crew.expect(SLOT)
        found = os.statvfs(self._folder)
        self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + _SCANTY)

    def clear(self) -> None:
        """Give it room again."""
        self._resize(_ROOMY)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self._folder], check=True)

"""The process that stands between a program and its embedded server, so that no server outlives its program.

``embedded.py`` runs this file as ``python -I -S _keeper.py SERVER CONFIG DATA_DIR RUN_DIR LOCK_WAIT GRACE``
(the last two in seconds) with one end of a socket pair as stdin, stdout and stderr. The program holds the
other end, and nobody else does: when it shuts it, or dies of whatever cause, the keeper reads the end of its
stdin, stops the server and removes RUN_DIR. If it is the keeper that is killed, Linux kills the server.

What the keeper says on stdout is one line each:

``busy``
    DATA_DIR is locked by another server, which did not end within LOCK_WAIT; nothing was started.
``pid N``
    The server was started as process N, and ``server.pid`` and ``server.log`` in DATA_DIR are its own.
``ended WHY``
    The server is over, or could not be started. The keeper then waits to be told to end.

Only the standard library is imported, and nothing of this package: the keeper must start in a few
milliseconds, and it runs with ``-I`` because the folder it lies in has a ``queue.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = 0
LOCK_RETRY = 0.02
PR_SET_PDEATHSIG = 1


class Ears:
    """What the keeper listens to: the end of the program, and signals."""

    def __init__(self) -> None:
        #: The program is over or wants the server to end, or somebody asked the keeper to end.
        self.told_to_stop = False
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # without a handler nothing is written to the wakeup fd
        self._ends = [PROGRAM, *_end_of_parent()]

    def wait(self, timeout: float | None = None) -> None:
        """Return when something happened, or after so many seconds."""
        ready, _, _ = select.select([*self._ends, self._signals], [], [], timeout)
        numbers = os.read(self._signals, 512) if self._signals in ready else b""
        # A SIGCHLD only wakes the caller up, who looks after the child.
        if any(number != signal.SIGCHLD for number in numbers) or any(fd in ready for fd in self._ends):
            self.told_to_stop = True


def _end_of_parent() -> list[int]:
    """Watch the program itself where that is possible.

    A child that the program made by a bare ``fork`` (multiprocessing does) holds a copy of its end of the
    socket, and would keep the server alive after the program was killed.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox that forbids it
            return [os.pidfd_open(os.getppid())]
    return []


def _die_with_keeper() -> Callable[[], None] | None:
    """Return what the server's process does before it becomes the server.

    PR_SET_PDEATHSIG follows the *thread* that forks, which is why the program cannot ask for it but the
    keeper, having one thread, can. SIGKILL, as the next server on this data may be started at once.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    keeper = os.getpid()

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it was killed before the line above
            os._exit(1)

    return before_exec


def _say(line: str) -> None:
    """Tell the program. If it is gone, the ears hear that too."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), os.fsencode(line) + b"\n")


@contextlib.contextmanager
def _locked(data_dir: str, ears: Ears, wait: float) -> Iterator[int | None]:
    """Yield the descriptor that holds the lock on the data, or None if it is not to be had.

    A previous server may be just about to end, its program killed and started anew: that is waited out.
    """
    lock = os.open(os.path.join(data_dir, "server.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait
        while not (held := _try_lock(lock)) and time.monotonic() < deadline and not ears.told_to_stop:
            ears.wait(LOCK_RETRY)
        yield lock if held else None
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _start(server: str, config: str, data_dir: str, lock: int) -> subprocess.Popen[bytes]:
    path = os.path.join(data_dir, "server.log")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path + ".old")  # how the previous server ended is worth keeping, once
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            [server, config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # The lock is on the open file, which the server inherits: it holds until both are gone.
            pass_fds=(lock,),
            preexec_fn=_die_with_keeper(),
        )
    finally:
        os.close(log)


def _stop(server: subprocess.Popen[bytes], grace: float) -> None:
    server.terminate()
    try:
        server.wait(grace)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _keep(server: subprocess.Popen[bytes], data_dir: str, ears: Ears, grace: float) -> str:
    """Stay with the server until either is over, and say how the server ended."""
    pid_file = os.path.join(data_dir, "server.pid")
    try:
        with open(pid_file, "w", encoding="ascii") as file:
            file.write(f"{server.pid}\n")
        _say(f"pid {server.pid}")
        while server.poll() is None and not ears.told_to_stop:
            ears.wait()
    finally:
        _stop(server, grace)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pid_file)
    status = server.returncode
    return f"it ended with exit status {status}" if status >= 0 else f"it was ended by signal {-status}"


def _run(server: str, config: str, data_dir: str, ears: Ears, lock_wait: float, grace: float) -> str:
    """Run the server from its start to its end, and return what to say then."""
    try:
        with _locked(data_dir, ears, lock_wait) as lock:
            if lock is None:
                return "busy"
            process = _start(server, config, data_dir, lock)
            return "ended " + _keep(process, data_dir, ears, grace)
    except OSError as error:  # no such binary, not for this machine, no space, a directory that is read-only
        return f"ended {error}"


def main(server: str, config: str, data_dir: str, run_dir: str, lock_wait: str, grace: str) -> None:
    """Keep one server, and leave nothing behind."""
    try:
        ears = Ears()
        _say(_run(server, config, data_dir, ears, float(lock_wait), float(grace)))
        while not ears.told_to_stop:  # the program may want to read the log in RUN_DIR
            ears.wait()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

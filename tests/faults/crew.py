"""Processes to be killed, stopped and started again, none of which outlives the run."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from faults.history import Recorder

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_TAIL = 2000
#: A program that is so young, in seconds, may not have come to its signals yet.
_COMING_UP = 10.0


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends, however that comes."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def python(module: str, told: dict[str, Any]) -> list[str]:
    """Spell the command of a module of this folder, which is told a dictionary."""
    return [sys.executable, "-m", f"faults.{module}", json.dumps(told)]


@dataclass
class Child:
    """One incarnation of a member of the crew."""

    slot: str
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    #: Its end was asked for, or has been seen.
    expected: bool = False
    #: It ends by itself when its work is done.
    ends: bool = False
    stopped: bool = False
    started: float = field(default_factory=time.monotonic)


class Crew:
    """Starts the members, and does to them what the figure wants; the history of all that is ``crew.jsonl``.

    Members are made in the thread that made the crew, and live no longer than it does.

    :param folder: for logs, and with ``history`` below it for what everybody writes
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = folder / "history"
        self.history.mkdir()
        self._recorder = Recorder(self.history, "crew")
        self._makers: dict[str, Callable[[str], Sequence[str]]] = {}
        self._numbers: dict[str, int] = {}
        self.members: dict[str, Child] = {}
        #: What ended though nobody asked it to.
        self.deserters: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.members.values():
            child.expected = True
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
        for child in self.members.values():
            child.process.wait()
        self._recorder.__exit__()

    def add(
        self, slot: str, command: Callable[[str], Sequence[str]], *, ends: bool = False, start: bool = True
    ) -> None:
        """Take in a new member; *command* spells the command for the name of an incarnation.

        :param ends: it ends by itself when its work is done
        :param start: start it now
        """
        self._makers[slot] = command
        self._numbers[slot] = 0
        if start:
            self.start(slot).ends = ends

    def note(self, kind: str, about: str, value: Any = None) -> None:
        """Write something down for the reader of the history."""
        self._recorder.event(kind, about, value)

    def expect(self, slot: str) -> None:
        """A member may end from now on, by what is done to it."""
        self.members[slot].expected = True

    def start(self, slot: str) -> Child:
        """Start a member, or the next incarnation of one that has ended."""
        name = f"{slot}.{self._numbers[slot]}"
        self._numbers[slot] += 1
        log = self.folder / f"{name}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._makers[slot](name), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        self._recorder.event("start", name)
        child = self.members[slot] = Child(slot, name, process, log)
        return child

    def kill(self, slot: str) -> None:
        """SIGKILL; it is over when this returns."""
        child = self.members[slot]
        child.expected = True
        self._recorder.event("kill", child.name)
        os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()

    def stop(self, slot: str) -> None:
        """SIGSTOP."""
        child = self.members[slot]
        child.stopped = True
        self._recorder.event("stop", child.name)
        os.killpg(child.process.pid, signal.SIGSTOP)

    def resume(self, slot: str) -> None:
        """SIGCONT."""
        child = self.members[slot]
        child.stopped = False
        os.killpg(child.process.pid, signal.SIGCONT)
        self._recorder.event("cont", child.name)

    def end(self, slot: str, seconds: float = 20) -> float:
        """SIGTERM; returns the seconds until it has ended, which it must in order."""
        return self.end_all([slot], seconds)

    def end_all(self, slots: Sequence[str], seconds: float = 20) -> float:
        """SIGTERM to all of these at once; returns the seconds until the last has ended."""
        began = time.monotonic()
        for slot in slots:
            child = self.members[slot]
            child.expected = True
            self._recorder.event("term", child.name)
            os.killpg(child.process.pid, signal.SIGTERM)
        for slot in slots:
            self._see_end(slot, began, seconds)
        return time.monotonic() - began

    def _see_end(self, slot: str, began: float, seconds: float) -> None:
        child = self.members[slot]
        try:
            code = child.process.wait(max(0.0, began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.deserters.append(f"{child.name} has not ended {seconds:g} s after SIGTERM: {self._tail(child)}")
            self.kill(slot)
        else:
            was_up = code != -signal.SIGTERM or began - child.started > _COMING_UP
            if code and was_up:
                self.deserters.append(f"{child.name} ended with {code} after SIGTERM: {self._tail(child)}")
        self._recorder.event("ended", child.name)

    def look(self) -> None:
        """Note who has ended though nobody asked, and start the next incarnation."""
        for slot, child in list(self.members.items()):
            if child.expected or (code := child.process.poll()) is None:
                continue
            child.expected = True
            if code or not child.ends:
                self.deserters.append(f"{child.name} ended by itself with {code}: {self._tail(child)}")
                self.start(slot).ends = child.ends

    def done(self, slot: str, seconds: float = 0) -> bool:
        """Tell whether a member that ends by itself has ended, waiting for it so long."""
        process = self.members[slot].process
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        self.look()
        return self.members[slot].process.poll() == 0

    @staticmethod
    def _tail(child: Child) -> str:
        return child.log.read_text(errors="replace")[-_TAIL:].strip() or "(it said nothing)"

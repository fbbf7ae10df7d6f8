"""The example clients in Go, Java, Node and Python, run as the programs that they are."""

from __future__ import annotations

import contextlib
import json
import os
import queue as queues
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .bridge import ROOT

EXAMPLES = ROOT / "examples"
LANGUAGES = ["go", "java", "node", "python"]
#: No program of a test takes longer, in seconds.
BOUND = 60.0

_BUILT = {
    "go": EXAMPLES / "go" / "bin" / "torrelque-example-go",
    "java": EXAMPLES / "java" / "target" / "torrelque-example.jar",
    "node": EXAMPLES / "node" / "node_modules",
    "python": EXAMPLES / "python" / "gen" / "torrelque_wire",
}
_PYTHON = ROOT / ".venv" / "client" / "bin" / "python"


def command(language: str) -> list[str]:
    """How to start a client; `make clients` has built it."""
    assert _BUILT[language].exists(), f"{_BUILT[language]} is missing: run `make clients`"
    return {
        "go": [str(_BUILT["go"])],
        "java": ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar", str(_BUILT["java"])],
        "node": ["node", str(EXAMPLES / "node" / "src" / "main.js")],
        "python": [str(_PYTHON), "-m", "torrelque_example"],
    }[language]


@dataclass
class Program:
    """A running client, whose lines are events."""

    language: str
    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._incoming: queues.SimpleQueue[dict[str, Any] | None] = queues.SimpleQueue()
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_complaints)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self._incoming.put(json.loads(line))
        self._incoming.put(None)

    def _read_complaints(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            self.complaints += self.process.stderr

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read events until one is as wanted."""
        ends = time.monotonic() + BOUND
        while True:
            try:
                event = self._incoming.get(timeout=max(0.0, ends - time.monotonic()))
            except queues.Empty:
                raise AssertionError(f"{self.language}: not in time; {self._told()}") from None
            if event is None:
                self._read_up(ends)
                raise AssertionError(f"{self.language}: ended before; {self._told()}")
            self.events.append(event)
            if wanted(event):
                return event

    def event(self, name: str) -> dict[str, Any]:
        """Read events until one of this name."""
        return self.until(lambda event: event["event"] == name)

    def end(self) -> int:
        """Read all that is left, and wait for the end; returns the exit code."""
        ends = time.monotonic() + BOUND
        while True:
            try:
                event = self._incoming.get(timeout=max(0.0, ends - time.monotonic()))
            except queues.Empty:
                raise AssertionError(f"{self.language}: does not end; {self._told()}") from None
            if event is None:
                break
            self.events.append(event)
        self._read_up(ends)
        return self.process.wait(BOUND)

    def ended_well(self) -> list[dict[str, Any]]:
        """Wait for the end, which must be a good one; returns all events."""
        code = self.end()
        assert code == 0, f"{self.language}: exit code {code}; {self._told()}"
        return self.events

    def named(self, name: str) -> list[dict[str, Any]]:
        """Find the events of a name among those read so far."""
        return [event for event in self.events if event["event"] == name]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def _read_up(self, ends: float) -> None:
        """Wait until all that the program said is read: its complaints may be read later than the end of its events."""
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
            assert not thread.is_alive(), f"{self.language}: what it says does not end; {self._told()}"

    def _told(self) -> str:
        return f"events {self.events}; stderr {''.join(self.complaints)}"


@contextlib.contextmanager
def running(language: str, address: str, queue: str, verb: str, *options: str) -> Iterator[Program]:
    """Run a client; it is killed at the end of the scope if it runs still."""
    place = {"TORRELQUE_ADDRESS": address, "TORRELQUE_QUEUE": queue}
    process = subprocess.Popen(
        [*command(language), verb, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **place},
        cwd=EXAMPLES / language,
    )
    try:
        yield Program(language, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def run(language: str, address: str, queue: str, verb: str, *options: str) -> list[dict[str, Any]]:
    """Run a client to its good end; returns its events."""
    with running(language, address, queue, verb, *options) as program:
        return program.ended_well()

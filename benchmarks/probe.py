"""What the server itself tells: its counters, its memory, its slow log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

_BEGIN, _END = "bench-begin", "bench-end"


@dataclass
class Traffic:
    """Bytes between two moments, all connections together: what clients sent, and what they received."""

    sent: int = 0
    received: int = 0


@dataclass
class Commands:
    """Commands that clients sent between two moments."""

    sent: int = 0


class Probe:
    """A connection of its own for looking. What looking costs is taken off what it tells."""

    def __init__(self, url: str) -> None:
        self.admin = redis.Redis.from_url(url)

    def flush(self) -> None:
        """Empty the server, and its append-only file, so that no rewrite of that begins in the middle of a job."""
        self.admin.flushall()
        self.admin.bgrewriteaof()
        self._wait(lambda: not self._info("persistence", "aof_rewrite_in_progress", "aof_rewrite_scheduled"))

    def _wait(self, reached: Callable[[], bool]) -> None:
        ends = time.monotonic() + 30
        while not reached():
            if time.monotonic() > ends:
                raise TimeoutError("The server has not settled within 30 s")
            time.sleep(0.01)

    def _info(self, section: str, *fields: str) -> int:
        info = self.admin.info(section)
        return sum(int(info[field]) for field in fields)

    def _traffic(self) -> Traffic:
        info = self.admin.info("stats")
        return Traffic(info["total_net_input_bytes"], info["total_net_output_bytes"])

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """Count bytes while the scope is open. INFO's own are measured after it, and taken off."""
        seen = Traffic()
        before = self._traffic()
        yield seen
        after, again = self._traffic(), self._traffic()
        seen.sent = after.sent - before.sent - (again.sent - after.sent)
        seen.received = after.received - before.received - (again.received - after.received)

    @contextmanager
    def commands(self) -> Iterator[Commands]:
        """Count the commands that clients send while the scope is open.

        ``total_commands_processed`` also counts what scripts call: an EVAL that calls SET ten times adds 11. Nor is
        ``commandstats`` better, for both libraries call in scripts what could be sent too. But MONITOR marks what
        scripts call as ``lua``, so these are taken off. (MONITOR alone would not do: it hides CLIENT UNBLOCK and
        other administration.) A command that blocks is counted once, when its wait has ended.

        MONITOR costs the server time, so nothing is timed while it is on.
        """
        counted = Commands()
        with self.admin.monitor() as monitor:
            self.admin.echo(_BEGIN)
            before = self._info("stats", "total_commands_processed")
            yield counted
            total = self._info("stats", "total_commands_processed") - before - 1  # one is the first INFO
            self.admin.echo(_END)
            counted.sent = total - _called_by_scripts(entry for entry in monitor.listen())

    def used_memory(self) -> int:
        """Bytes in use once that has settled: tables are rehashed, and what has been freed is given back, later."""
        seen = [0, 0, 0, self._info("memory", "used_memory")]
        ends = time.monotonic() + 30
        while max(seen[-4:]) - min(seen[-4:]) > 100_000 and time.monotonic() < ends:
            time.sleep(0.25)
            seen.append(self._info("memory", "used_memory"))
        return seen[-1]

    def subscribed_connections(self) -> int:
        """Connections that have subscribed to anything."""
        return len(self.admin.client_list(_type="pubsub"))

    def watch_scripts(self) -> None:
        """Have the slow log keep every script that takes half a millisecond or more."""
        self.admin.config_set("slowlog-log-slower-than", 500)
        self.admin.config_set("slowlog-max-len", 20_000)

    def forget_scripts(self) -> None:
        """Empty the slow log."""
        self.admin.slowlog_reset()

    def longest_script(self) -> float:
        """Seconds of the longest script in the slow log; 0 when none was slow enough to stand there."""
        entries = self.admin.slowlog_get(20_000)
        return max((e["duration"] for e in entries if e["command"].upper().startswith(b"EVAL")), default=0) / 1e6


def _called_by_scripts(entries: Iterator[dict[str, str]]) -> int:
    calls, begun = 0, False
    for entry in entries:
        if entry["command"] == f"ECHO {_END}":
            break
        begun = begun or entry["command"] == f"ECHO {_BEGIN}"
        calls += begun and entry["client_type"] == "lua"
    return calls

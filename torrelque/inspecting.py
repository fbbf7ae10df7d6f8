"""Looks at the server of a queue: is it set up to keep what it is given?

What the server tells of itself counts first, its settings where that says nothing. Where both say nothing, because the
user may not ask, the finding is that it cannot be told. The judgement is a pure function.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

from .drivers import Driver
from .errors import TorrelqueRedisError
from .model import TorrelqueServerFinding as Finding
from .model import TorrelqueServerReport
from .model import TorrelqueSeverity as Severity

logger = logging.getLogger("torrelque")

#: Settings that are asked for.
SETTINGS = (
    "maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "min-replicas-to-write", "min-replicas-max-lag",
    "notify-keyspace-events",
)  # fmt: skip
#: The oldest versions that are supported.
FLOORS = {"redis": (6, 2), "valkey": (7, 2)}
#: Of each line of Valkey the first version without the holes that are known to us.
SAFE_VALKEY: dict[tuple[int, ...], tuple[int, ...]] = {
    (8, 0): (8, 0, 7),
    (8, 1): (8, 1, 9),
    (9, 0): (9, 0, 5),
    (9, 1): (9, 1, 1),
}
#: Redis from the first of these on may be crashed by blocking commands with client eviction, until the second.
HOLE_OF_REDIS = ((7, 2), (8, 6, 3))
#: A server is nearly full from this part of its memory on.
FULL = 0.9

_ORDER = list(Severity)
#: Of which servers this process has warned already: a program may have hundreds of queues on one.
_warned: set[str] = set()


async def warn(driver: Driver, keys_share_slot: bool) -> None:
    """Log what about the server loses tasks, once for each server; a server that cannot be asked is left alone."""
    try:
        told = read_info(await driver.info() or "")
        server = told.get("run_id", "")
        if not server or server in _warned:
            return
        report = await inspect(driver, keys_share_slot)
    except TorrelqueRedisError:
        return
    if server in _warned:
        return  # another queue was quicker
    _warned.add(server)
    for finding in report.dangers:
        logger.warning("The server is a danger to its tasks: %s; %s. %s", finding.what, finding.why, finding.way_out)


async def inspect(driver: Driver, keys_share_slot: bool) -> TorrelqueServerReport:
    """Ask the server and judge what it says.

    :param keys_share_slot: all keys of the queue are in one slot of a cluster
    :raises TorrelqueRedisError: it cannot be asked
    """
    told = read_info(await driver.info() or "")
    settings = {name: await driver.config_get(name) for name in SETTINGS}
    findings = sorted(judge(told, settings, keys_share_slot), key=lambda finding: _ORDER.index(finding.severity))
    kind, version = _version(told)
    return TorrelqueServerReport(f"{kind} {'.'.join(map(str, version))}" if version else "unknown", findings)


def read_info(text: str) -> dict[str, str]:
    """Read the lines of `INFO`."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def judge(told: Mapping[str, str], settings: Mapping[str, str | None], keys_share_slot: bool) -> Iterator[Finding]:
    """Judge a server by what it tells of itself and by its settings, each ``None`` where it does not tell."""
    yield from _version_findings(told)
    yield from _topology(told, keys_share_slot)
    yield from _memory(told, settings)
    yield from _disk(told, settings)
    yield from _replicas(told, settings)
    yield from _notifications(settings)


def _version(told: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    kind = "valkey" if "valkey_version" in told or told.get("server_name") == "valkey" else "redis"
    text = told.get("valkey_version") or told.get("redis_version", "")
    return kind, tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _version_findings(told: Mapping[str, str]) -> Iterator[Finding]:
    kind, version = _version(told)
    name = f"{kind} {'.'.join(map(str, version))}"
    if not version:
        yield _untold("version", "which server this is")
    elif version < FLOORS[kind]:
        oldest = ".".join(map(str, FLOORS[kind]))
        yield Finding(
            Severity.DANGER, "version", f"the server is {name}",
            "it lacks commands that the queue needs", f"use {kind} {oldest} or later",
        )  # fmt: skip
    elif kind == "valkey" and version < (safe := SAFE_VALKEY.get(version[:2], ())):
        yield Finding(
            Severity.WARNING, "version", f"the server is {name}",
            "it has security holes that later versions have mended",
            f"use {'.'.join(map(str, safe))} or later, or a build that has the fixes",
        )  # fmt: skip
    elif kind == "redis" and HOLE_OF_REDIS[0] <= version < HOLE_OF_REDIS[1]:
        yield Finding(
            Severity.WARNING, "version", f"the server is {name}",
            "blocking commands together with client eviction crash it (CVE-2026-23479)",
            f"use {'.'.join(map(str, HOLE_OF_REDIS[1]))} or later, or a build that has the fix",
        )  # fmt: skip


def _topology(told: Mapping[str, str], keys_share_slot: bool) -> Iterator[Finding]:
    mode = told.get("redis_mode") or told.get("server_mode")
    if mode == "sentinel":
        yield Finding(
            Severity.DANGER, "mode", "this is a Sentinel", "it holds no data", "name the service by a Sentinel URL"
        )
    if mode == "cluster" and not keys_share_slot:
        yield Finding(
            Severity.DANGER, "mode", "the server is a node of a cluster", "the keys of a queue must be in one slot",
            "use the client of a cluster, or a name in braces: {trq}",
        )  # fmt: skip
    if told.get("role") == "slave":
        yield Finding(
            Severity.DANGER, "role", "the server is a replica", "it refuses all writes",
            "connect to its primary, or by Sentinel",
        )  # fmt: skip
    elif "role" not in told:
        yield _untold("role", "whether this is a primary, and whether it has replicas")


def _memory(told: Mapping[str, str], settings: Mapping[str, str | None]) -> Iterator[Finding]:
    policy = told.get("maxmemory_policy") or settings["maxmemory-policy"]
    limit = _number(told.get("maxmemory") or settings["maxmemory"])
    if policy is None or limit is None:
        yield _untold("eviction", "whether the server throws tasks away when its memory is full")
        return
    way_out = "CONFIG SET maxmemory-policy noeviction, and in its file"
    if policy.startswith("allkeys") and limit:
        yield Finding(
            Severity.DANGER, "eviction", f"maxmemory-policy is {policy}, maxmemory {limit:.0f}",
            "when the memory is full the server throws keys away: any task, or all of them at once", way_out,
        )  # fmt: skip
    elif policy.startswith("allkeys"):
        yield Finding(
            Severity.WARNING, "eviction", f"maxmemory-policy is {policy}, maxmemory not set",
            "as soon as maxmemory is set the server throws tasks away when it is full", way_out,
        )  # fmt: skip
    elif policy != "noeviction" and limit:
        yield Finding(
            Severity.WARNING, "eviction", f"maxmemory-policy is {policy}, maxmemory {limit:.0f}",
            "when the memory is full the server throws results away before their time", way_out,
        )  # fmt: skip
    used = _number(told.get("used_memory"))
    if limit and used and used > limit * FULL:
        yield Finding(
            Severity.WARNING, "memory", f"{used / limit:.0%} of maxmemory are in use",
            "when it is full, tasks are refused", "let workers drain the queue, or give the server more",
        )  # fmt: skip


def _disk(told: Mapping[str, str], settings: Mapping[str, str | None]) -> Iterator[Finding]:
    enabled = told.get("aof_enabled") or {"yes": "1", "no": "0"}.get(settings["appendonly"] or "")
    if enabled is None:
        yield _untold("append-only", "whether tasks are written to disk")
    elif enabled == "0":
        yield Finding(
            Severity.WARNING, "append-only", "appendonly is no",
            "a restart loses what is not in the last snapshot, if there is one",
            "CONFIG SET appendonly yes, and in its file",
        )  # fmt: skip
    elif settings["appendfsync"] is None:
        yield _untold("append-only", "when tasks are written to disk")
    elif settings["appendfsync"] == "no":
        yield Finding(
            Severity.WARNING, "append-only", "appendfsync is no",
            "a power cut loses what the system has not written yet, half a minute or so",
            "CONFIG SET appendfsync everysec, or always",
        )  # fmt: skip
    elif settings["appendfsync"] == "everysec":
        yield Finding(
            Severity.NOTE, "append-only", "appendfsync is everysec", "a power cut loses about a second",
            "CONFIG SET appendfsync always, if that is too much",
        )  # fmt: skip
    for key, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if told.get(key) == "err":
            yield Finding(
                Severity.DANGER, "disk", f"the server could not write its {what}",
                "it refuses writes, or loses them with its next restart", "see its log and its disk",
            )  # fmt: skip


def _replicas(told: Mapping[str, str], settings: Mapping[str, str | None]) -> Iterator[Finding]:
    if told.get("role") != "master":
        return
    wanted, good = _number(settings["min-replicas-to-write"]), _number(told.get("min_slaves_good_slaves"))
    if wanted and good is not None and good < wanted:
        yield Finding(
            Severity.DANGER, "replicas", f"{good:.0f} replicas follow, min-replicas-to-write is {wanted:.0f}",
            "it refuses all writes", "see to its replicas, or CONFIG SET min-replicas-to-write to fewer",
        )  # fmt: skip
        return
    if told.get("connected_slaves", "0") == "0":
        yield Finding(
            Severity.NOTE, "replicas", "no replica is connected", "what this machine loses is lost",
            "add a replica, where one machine is not enough",
        )  # fmt: skip
    elif settings["min-replicas-to-write"] is None:
        yield _untold("replicas", "whether writes go on when no replica follows")
    elif off := [name for name in ("min-replicas-to-write", "min-replicas-max-lag") if settings[name] == "0"]:
        # Either of them turns it off.
        default = {"min-replicas-to-write": 1, "min-replicas-max-lag": 10}[off[0]]
        yield Finding(
            Severity.WARNING, "replicas", f"{off[0]} is 0",
            "cut off from its replicas the primary takes tasks that a failover then loses",
            f"CONFIG SET {off[0]} {default}, and wait for replicas (durability)",
        )  # fmt: skip


def _notifications(settings: Mapping[str, str | None]) -> Iterator[Finding]:
    flags = settings["notify-keyspace-events"]
    if flags is None:
        yield _untold("notifications", "whether watchers are told of changes; they look every 30 seconds anyway")
    elif "K" not in flags or not ("A" in flags or {"g", "h"} <= set(flags)):
        yield Finding(
            Severity.WARNING, "notifications", f"notify-keyspace-events is {flags!r}",
            "watch is refused", "CONFIG SET notify-keyspace-events KA (or Kgh), if tasks are watched",
        )  # fmt: skip


def _untold(name: str, what: str) -> Finding:
    return Finding(
        Severity.UNKNOWN, name, f"it cannot be told {what}", "the user may not ask (INFO, CONFIG GET)",
        "ask who runs the server",
    )  # fmt: skip


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None

"""What is said of the server of a queue: whether it is set up to keep tasks, and what to do about it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest
from redis import Redis
from support import Server

from torrelque import Torrelque, TorrelqueUnavailableError, open_server
from torrelque.inspecting import SETTINGS, judge, read_info, warn

pytestmark = pytest.mark.anyio

GOOD = {
    "maxmemory": "0", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always",
    "min-replicas-to-write": "1", "min-replicas-max-lag": "10", "notify-keyspace-events": "KA",
}  # fmt: skip
INFO = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nconnected_slaves:1\r\n"


def judged(info: str = "", one_slot: bool = False, without: str = "", **settings: str | None) -> set[tuple[str, str]]:
    """Severity and name of what is found with a server that is well but for this."""
    told = read_info(INFO + info)
    told.pop(without, None)
    known = {**GOOD, **{name.replace("_", "-"): value for name, value in settings.items()}}
    return {(finding.severity.value, finding.name) for finding in judge(told, known, one_slot)}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, set()),
        ({"maxmemory": "100", "maxmemory_policy": "allkeys-lru"}, {("danger", "eviction")}),
        ({"info": "maxmemory:100\r\nmaxmemory_policy:allkeys-random\r\n"}, {("danger", "eviction")}),
        ({"maxmemory_policy": "allkeys-lru"}, {("warning", "eviction")}),
        ({"maxmemory": "100", "maxmemory_policy": "volatile-ttl"}, {("warning", "eviction")}),
        ({"maxmemory_policy": "volatile-ttl"}, set()),
        ({"maxmemory_policy": None}, {("unknown", "eviction")}),
        ({"maxmemory": "100", "info": "used_memory:95\r\n"}, {("warning", "memory")}),
        ({"appendonly": "no"}, {("warning", "append-only")}),
        ({"info": "aof_enabled:0\r\n"}, {("warning", "append-only")}),
        ({"appendonly": None}, {("unknown", "append-only")}),
        ({"appendfsync": "no"}, {("warning", "append-only")}),
        ({"appendfsync": "everysec"}, {("note", "append-only")}),
        ({"appendfsync": None}, {("unknown", "append-only")}),
        ({"info": "aof_last_write_status:err\r\n"}, {("danger", "disk")}),
        ({"info": "rdb_last_bgsave_status:err\r\n"}, {("danger", "disk")}),
        ({"min_replicas_to_write": "0"}, {("warning", "replicas")}),
        ({"min_replicas_max_lag": "0"}, {("warning", "replicas")}),
        ({"min_replicas_to_write": None}, {("unknown", "replicas")}),
        ({"info": "connected_slaves:0\r\n"}, {("note", "replicas")}),
        ({"info": "min_slaves_good_slaves:1\r\n"}, set()),
        ({"info": "min_slaves_good_slaves:0\r\n"}, {("danger", "replicas")}),
        ({"info": "connected_slaves:0\r\nmin_slaves_good_slaves:0\r\n"}, {("danger", "replicas")}),
        ({"info": "role:slave\r\n"}, {("danger", "role")}),
        ({"without": "role"}, {("unknown", "role")}),
        ({"notify_keyspace_events": ""}, {("warning", "notifications")}),
        ({"notify_keyspace_events": "Kg"}, {("warning", "notifications")}),
        ({"notify_keyspace_events": "EA"}, {("warning", "notifications")}),
        ({"notify_keyspace_events": "hgK"}, set()),
        ({"notify_keyspace_events": None}, {("unknown", "notifications")}),
        ({"info": "redis_mode:sentinel\r\n"}, {("danger", "mode")}),
        ({"info": "redis_mode:cluster\r\n"}, {("danger", "mode")}),
        ({"info": "redis_mode:cluster\r\n", "one_slot": True}, set()),
        ({"info": "redis_version:6.0.16\r\n"}, {("danger", "version")}),
        ({"info": "redis_version:6.2.14\r\n"}, set()),
        ({"info": "redis_version:8.6.2\r\n"}, {("warning", "version")}),
        ({"info": "redis_version:8.6.3\r\n"}, set()),
        ({"info": "redis_version:nonsense\r\n"}, {("unknown", "version")}),
        ({"info": "redis_version:7.2.4\r\nvalkey_version:7.2.4\r\nserver_name:valkey\r\n"}, set()),
        ({"info": "redis_version:7.2.4\r\nvalkey_version:8.1.4\r\n"}, {("warning", "version")}),
        ({"info": "redis_version:7.2.4\r\nvalkey_version:9.1.1\r\n"}, set()),
    ],
)  # fmt: skip
def test_what_is_found(how: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    """Each thing that matters is found, as severe as it is, and nothing with a server that is well."""
    assert judged(**how) == expected


def test_a_server_that_tells_nothing() -> None:
    """It cannot be told: one finding for each question, and no error."""
    found = list(judge({}, dict.fromkeys(SETTINGS), False))
    assert {finding.severity for finding in found} == {"unknown"}
    assert {finding.name for finding in found} == {"version", "role", "eviction", "append-only", "notifications"}


@pytest.fixture
def run(server: Server, open_client: Any) -> Callable[..., AbstractAsyncContextManager[tuple[Torrelque, str]]]:
    """A queue on a server of its own, of the kind of the test, with settings."""

    @asynccontextmanager
    async def run(fsync: str = "always", **settings: str) -> AsyncGenerator[tuple[Torrelque, str]]:
        options = {name.replace("_", "-"): value for name, value in settings.items()}
        async with open_server(server=_binary(server), fsync=fsync, options=options) as url, open_client(url) as client:
            async with Torrelque(client) as queue:
                yield queue, url

    return run


def _binary(server: Server) -> str | None:
    return server.admin.info("server")["executable"] if server.kind == "redis" else None


async def test_on_real_servers(run: Any, server: Server) -> None:
    """Both kinds tell enough: kind and version, and what loses tasks comes first."""
    async with run(maxmemory="100mb", maxmemory_policy="allkeys-lru", appendonly="no") as (queue, _):
        report = await queue.inspect_server()
        assert report.server.split()[0] == server.kind
        assert [(finding.severity.value, finding.name) for finding in report.findings] == [
            ("danger", "eviction"), ("warning", "append-only"), ("note", "replicas"),
        ]  # fmt: skip
        assert [finding.name for finding in report.dangers] == ["eviction"]
        assert all(text and "\n" not in text for finding in report.findings for text in finding)
    async with run() as (queue, _):
        assert [finding.name for finding in (await queue.inspect_server()).findings] == ["replicas"]


async def test_a_replica(run: Any) -> None:
    """It refuses writes, and that is said."""
    async with run() as (queue, url):
        with Redis.from_url(url) as admin:
            admin.replicaof("127.0.0.1", 1)
            assert [finding.name for finding in (await queue.inspect_server()).dangers] == ["role"]


async def test_a_primary_without_the_replicas_that_it_wants(run: Any) -> None:
    """It refuses writes as well."""
    async with run() as (queue, url):
        with Redis.from_url(url) as admin:
            admin.config_set("min-replicas-to-write", 1)
            with pytest.raises(TorrelqueUnavailableError, match="NOREPLICAS"):
                await queue.enqueue(1)
            assert [finding.name for finding in (await queue.inspect_server()).dangers] == ["replicas"]


async def test_a_user_who_may_not_ask(run: Any, open_client: Any) -> None:
    """Whoever has few rights is told what cannot be told, and no error."""
    async with run() as (_, url):
        with Redis.from_url(url) as admin:
            admin.execute_command("ACL", "SETUSER", "few", "on", ">secret", "~*", "&*", "+@all", "-info", "-config")
        async with open_client(url, username="few", password="secret") as client, Torrelque(client) as queue:
            report = await queue.inspect_server()
        assert report.server == "unknown"
        assert {finding.severity for finding in report.findings} == {"unknown"}


async def test_a_server_that_is_away(run: Any) -> None:
    """That it cannot be reached is an error, and no finding."""
    async with run() as (queue, url):
        await queue.inspect_server()
        with Redis.from_url(url) as admin:
            admin.shutdown(nosave=True, now=True) if admin.info()["redis_version"] >= "7" else admin.shutdown(
                nosave=True
            )
        with anyio.fail_after(20), pytest.raises(TorrelqueUnavailableError):
            await queue.inspect_server()


def asked(admin: Redis) -> int:
    """How often a server was asked for its settings."""
    counted = admin.info("commandstats")
    return sum(counted[name]["calls"] for name in ("cmdstat_config|get", "cmdstat_config") if name in counted)


async def test_who_sweeps_is_warned(run: Any, caplog: Any) -> None:
    """When sweeps begin, what loses tasks is logged, once for each server; entering and dequeueing ask nothing."""
    caplog.set_level(logging.WARNING, "torrelque")
    async with run(maxmemory="100mb", maxmemory_policy="allkeys-lru") as (queue, url):
        with Redis.from_url(url) as admin:
            before = asked(admin)
            await queue.enqueue(1)
            await queue.dequeue(0)
            assert asked(admin) == before
            for _ in range(2):
                queue.schedule_sweep(0.01)
                with anyio.fail_after(10):
                    while not admin.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0) > 5:
                        await anyio.sleep(0.01)
            assert asked(admin) == before + len(SETTINGS)
        queue.unschedule_sweep()
        said = [record.getMessage() for record in caplog.records if "danger" in record.getMessage()]
        assert len(said) == 1
        assert "allkeys-lru" in said[0]
        assert "noeviction" in said[0]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_warning_is_not_lost(caplog: Any) -> None:
    """A server that went away while it was looked at is looked at again by the next who sweeps, and then no more."""
    caplog.set_level(logging.WARNING, "torrelque")
    told: Any = AsyncMock()
    told.info.return_value = (
        f"{INFO}run_id:{secrets.token_hex(20)}\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n"
    )
    told.config_get.side_effect = [TorrelqueUnavailableError("gone"), *GOOD.values()]
    for said in (0, 1, 1):
        await warn(told, keys_share_slot=False)
        assert len(caplog.records) == said

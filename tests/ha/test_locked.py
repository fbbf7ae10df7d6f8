"""Sentinels and a cluster behind passwords, few rights, and TLS: a queue works there as well.

(The embedded Valkey does not speak TLS; Redis does.)
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import coredis
import pytest
import redis.asyncio
from anyio import move_on_after
from coredis.connection import TCPLocation
from ha.conftest import KINDS
from ha.verbs import every_verb, until_it_works
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel
from support import Pair
from support.clusters import SERVICE, Site, open_cluster, open_sentinel
from support.locks import SECRET, Lock
from support.marks import ON_COREDIS
from support.rights import rights, rights_elsewhere, rights_of_a_check

from torrelque import Torrelque, TorrelqueDurability, TorrelqueUnavailableError

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(90)]

#: What the clients try and do without (names and settings of connections), and what a look at the server asks for.
DISPENSABLE = {"client|setinfo", "client|setname", "hello", "select", "info", "config|get", "ping", "command"}
#: All replicas of a primary.
ALL = {"sentinel": 2, "cluster": 1}


@pytest.fixture(scope="module", params=[f"{what}-{kind}" for what in ALL for kind in KINDS])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A locked one."""
    what, _, kind = request.param.partition("-")
    folder: Path = tmp_path_factory.mktemp("locked")
    lock = Lock.make(folder / "certificates", tls=kind == "redis")
    with {"sentinel": open_sentinel, "cluster": open_cluster}[what](folder, kind, lock=lock) as site:
        yield site


@pytest.fixture
def lock(site: Site) -> Lock:
    lock = site.nodes[0].lock
    assert lock is not None
    return lock


@pytest.fixture
def name(site: Site) -> Iterator[str]:
    """A queue, and users of this name who may do on it, and ask of sentinels, what the documents say, and no more."""
    name = f"t{secrets.token_hex(6)}"
    durable, cluster, sentinel = rights_elsewhere()
    queue = name if site.sentinels else f"{{{name}}}"
    granted = [*rights(queue, site.kind), *durable, *rights_of_a_check()]
    if not site.sentinels:
        granted += [*cluster, "+command"]
    for nodes, rules in ((site.nodes, granted), (site.sentinels, ["-@all", *sentinel])):
        for node in nodes:
            node.admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{SECRET}", *rules)
            node.admin.acl_log_reset()
    yield name
    said = [entry for node in site.everything for entry in node.admin.acl_log() if entry["username"] == name]
    assert {entry["object"] for entry in said if entry["reason"] != "auth"} <= DISPENSABLE


@asynccontextmanager
async def _redispy(site: Site, lock: Lock, name: str) -> AsyncGenerator[Any]:
    client: Any
    async with AsyncExitStack() as stack:
        given = lock.redispy(name)
        if site.sentinels:
            hosts = [("127.0.0.1", node.port) for node in site.sentinels]
            sentinel = Sentinel(hosts, sentinel_kwargs={**given, "socket_timeout": 5}, **given)
            for each in sentinel.sentinels:
                stack.push_async_callback(_close, each)
            client = sentinel.master_for(SERVICE, socket_timeout=5)
        else:
            nodes = [ClusterNode("127.0.0.1", node.port) for node in site.nodes[:2]]
            client = redis.asyncio.RedisCluster(startup_nodes=nodes, **given)
        stack.push_async_callback(_close, client)
        yield client


async def _close(client: Any) -> None:
    with move_on_after(5, shield=True):
        await client.aclose()


@asynccontextmanager
async def _coredis(site: Site, lock: Lock, name: str) -> AsyncGenerator[Any]:
    given = lock.coredis(name)
    if site.sentinels:
        places = [TCPLocation("127.0.0.1", node.port) for node in site.sentinels]
        sentinel = coredis.Sentinel(places, sentinel_kwargs=given, **given)
        async with sentinel, sentinel.primary_for(SERVICE) as primary:
            yield primary
    else:
        nodes = [TCPLocation("127.0.0.1", node.port) for node in site.nodes[:2]]
        async with coredis.RedisCluster(startup_nodes=nodes, skip_full_coverage_check=True, **given) as cluster:
            yield cluster


@pytest.fixture
def open_locked(site: Site, lock: Lock, pair: Pair, name: str) -> Callable[..., AbstractAsyncContextManager[Torrelque]]:
    """Open a queue with a client of the tested library, which knows its passwords."""

    @asynccontextmanager
    async def open_locked(**options: Any) -> AsyncGenerator[Torrelque]:
        opened = _redispy if pair.client == "redispy" else _coredis
        async with opened(site, lock, name) as client, Torrelque(client, queue=name, **options) as queue:
            yield queue

    return open_locked


def url_of(site: Site, lock: Lock, user: str, secret: str = SECRET) -> str:
    """A URL with user and password, for the servers and for their sentinels."""
    plain = site.url.replace("redis+", f"{lock.scheme}+").replace("://", f"://{user}:{secret}@")
    return f"{plain}?sentinel_username={user}&sentinel_password={secret}" if site.sentinels else plain


def trusting(lock: Lock) -> dict[str, Any]:
    """Options of a client made from a URL."""
    return {"ssl_context": lock.context()} if lock.folder else {}


async def test_every_verb(open_locked: Any, site: Site) -> None:
    """With the rights that the documents name each call works, and so do acknowledgements of all replicas."""
    durability = TorrelqueDurability(replicas=ALL["sentinel" if site.sentinels else "cluster"], timeout=10)
    async with open_locked(durability=durability) as queue:
        await until_it_works(lambda: queue.enqueue("steady", task_id="steady"))
        await queue.release((await queue.dequeue(5))[0])
        await every_verb(queue)
        assert (await queue.check(grace=0)).findings == []


@ON_COREDIS
async def test_every_verb_by_url(site: Site, lock: Lock, pair: Pair, name: str) -> None:
    """A URL says the passwords as well."""
    async with Torrelque.from_url(url_of(site, lock, name), queue=name, **trusting(lock)) as queue:
        await every_verb(queue)


@ON_COREDIS
async def test_the_command(site: Site, lock: Lock, pair: Pair, name: str) -> None:
    """So it does for the command, which looks at the server too; a wrong password is told, and not shown."""
    environment = {**os.environ, **({"SSL_CERT_FILE": str(lock.authority)} if lock.folder else {})}

    async def run(secret: str) -> Any:
        url = url_of(site, lock, name, secret)
        command = [
            sys.executable,
            "-m",
            "torrelque",
            "--backend",
            pair.backend[0],
            "--queue",
            name,
            "--url",
            url,
            "check",
        ]
        return await anyio.run_process(command, check=False, env=environment)

    done = await run(SECRET)
    assert done.returncode == 0, done.stderr
    lost = await run("a-wrong-word")
    assert lost.returncode == 3
    assert b"a-wrong-word" not in lost.stderr


async def test_a_wrong_password(open_locked: Any, site: Site, lock: Lock, pair: Pair, name: str) -> None:
    """Each call says at once that it was not let in, and nothing was done."""
    for node in site.everything:
        node.admin.execute_command("ACL", "SETUSER", name, "resetpass", ">another")
    # A cluster's client of coredis would ask by itself, when it is entered.
    by_url = pair.client == "coredis"
    opened = open_locked() if not by_url else Torrelque.from_url(url_of(site, lock, name), queue=name, **trusting(lock))
    async with opened as queue:
        with anyio.fail_after(10), pytest.raises(TorrelqueUnavailableError, match=r"(?i)password|auth|wrongpass"):
            await queue.enqueue(1)

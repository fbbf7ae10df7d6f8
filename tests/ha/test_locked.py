"""TLS and passwords on all servers: of the data with the rights of the documents, and others on sentinels."""

from __future__ import annotations

import json
import re
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import coredis
import pytest
import redis.asyncio
import trustme
from coredis.connection import TCPLocation
from ha.conftest import KINDS
from ha.verbs import every_verb
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel
from support import Pair
from support.clusters import SERVICE, Lock, Site, open_cluster, open_sentinel
from support.marks import ON_COREDIS

from torrelque import Torrelque, TorrelqueRedisError, TorrelqueStorageError, TorrelqueUnavailableError
from torrelque.drivers import _topology

pytestmark = [
    pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(60),
    pytest.mark.skipif("redis" not in KINDS, reason="the embedded server speaks no TLS, and there is no other"),
]  # fmt: skip

DOCUMENTS = Path(__file__).parents[2] / "docs"
DATA, ASKER = {"username": "worker", "password": "of-the-data"}, {"username": "asker", "password": "of-the-asker"}


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Lock:
    """Certificates for everybody."""
    folder = tmp_path_factory.mktemp("lock")
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return Lock(str(folder / "authority.pem"), str(folder / "server.pem"), str(folder / "server.pem"))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes are slow beside other tests; how slow is not what is judged here."""
    monkeypatch.setattr(_topology, "PATIENCE", 20.0)


def documented_rights() -> list[str]:
    """What the documents say that a user needs, for queues of any name."""
    operating, availability = ((DOCUMENTS / f"{name}.md").read_text() for name in ("operating", "high-availability"))
    found = re.findall(r"ACL SETUSER trq (.*?)```|those above: `(.*?)`", operating, re.DOTALL)
    found += re.findall(r"needs `(.*?)` for this.* in a cluster `(.*?)`.*also\s`(.*?)`", availability, re.DOTALL)
    assert len(found) == 3
    rights = [word for parts in found for word in " ".join(parts).split() if word.startswith(("-", "+"))]
    return [*(word for word in rights if word != "+client|setinfo"), "~*", "&*"]  # Redis 7.0 does not know it


@pytest.fixture(scope="module", params=["sentinel", "cluster"])
def site(request: pytest.FixtureRequest, lock: Lock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that nobody enters without a password; its workers may do what is documented, and no more."""
    folder = tmp_path_factory.mktemp("site")
    opened = (
        open_sentinel(folder, "redis", replicas=1, lock=lock)
        if request.param == "sentinel"
        else open_cluster(folder, "redis", lock=lock)
    )
    with opened as site:
        # Nobody is to die here, and a busy machine is not to look like that.
        for node in site.sentinels:
            node.admin.execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 60_000)
        for node in [] if site.sentinels else site.nodes:
            node.admin.config_set("cluster-node-timeout", 60_000)
        for node in site.nodes:
            node.admin.execute_command("ACL", "SETUSER", DATA["username"], "on", f">{DATA['password']}",
                                       *documented_rights())  # fmt: skip
        for node in site.sentinels:
            node.admin.execute_command("ACL", "SETUSER", ASKER["username"], "on", f">{ASKER['password']}", "-@all",
                                       "+sentinel|get-master-addr-by-name", "+sentinel|master")  # fmt: skip
        yield site


def url_of(site: Site, lock: Lock, data: str = DATA["password"], asker: str = ASKER["password"]) -> str:
    """The URL of a site with everything in it."""
    scheme, _, rest = site.url.partition("://")
    url = f"{scheme.replace('redis', 'rediss')}://{DATA['username']}:{data}@{rest}?ssl_ca_certs={lock.authority}"
    if site.sentinels:
        url += f"&sentinel_username={ASKER['username']}&sentinel_password={asker}"
    return url


@asynccontextmanager
async def _redispy(site: Site, lock: Lock) -> AsyncGenerator[Any]:
    secure: dict[str, Any] = {"ssl": True, "ssl_ca_certs": lock.authority}
    if not site.sentinels:
        nodes = [ClusterNode("127.0.0.1", node.port) for node in site.nodes]
        async with redis.asyncio.RedisCluster(startup_nodes=nodes, **secure, **DATA) as cluster:
            yield cluster
        return
    sentinels = [("127.0.0.1", node.port) for node in site.sentinels]
    sentinel = Sentinel(sentinels, sentinel_kwargs={**secure, **ASKER}, **secure, **DATA)
    async with sentinel.master_for(SERVICE) as primary:
        yield primary
    for each in sentinel.sentinels:
        await each.aclose()


@asynccontextmanager
async def _coredis(site: Site, lock: Lock) -> AsyncGenerator[Any]:
    context = ssl.create_default_context(cafile=lock.authority)
    places = [TCPLocation("127.0.0.1", node.port) for node in site.sentinels or site.nodes]
    if not site.sentinels:
        made = coredis.RedisCluster(startup_nodes=places, ssl_context=context, skip_full_coverage_check=True, **DATA)
        async with made as cluster:
            yield cluster
        return
    sentinel = coredis.Sentinel(places, sentinel_kwargs={"ssl_context": context, **ASKER}, ssl_context=context, **DATA)
    async with sentinel, sentinel.primary_for(SERVICE) as primary:
        yield primary


@pytest.fixture
def open_client(site: Site, pair: Pair, lock: Lock) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """Open a client of the tested library with all that it needs to enter."""
    return lambda: (_redispy if pair.client == "redispy" else _coredis)(site, lock)


async def test_every_verb(open_queue: Any) -> None:
    """The rights of the documents are enough for every verb, with a client of either library."""
    async with open_queue() as queue:
        await every_verb(queue)


@ON_COREDIS
async def test_every_verb_by_url(site: Site, pair: Pair, lock: Lock, name: str) -> None:
    """A URL can say all of it: TLS, user and password of the servers, and others of the sentinels."""
    async with Torrelque.from_url(url_of(site, lock), queue=name) as queue:
        await every_verb(queue)


@ON_COREDIS
async def test_a_wrong_password(site: Site, pair: Pair, lock: Lock, name: str) -> None:
    """That is said in so many words, whoever refuses: a server, a sentinel, or one that nobody gave a password."""
    urls = {"WRONGPASS": url_of(site, lock, data="wrong")}
    if site.sentinels:
        urls |= {
            "WRONGPASS ": url_of(site, lock, asker="wrong"),
            "NOAUTH": url_of(site, lock).partition("&")[0],
        }
    else:
        urls["NOAUTH"] = url_of(site, lock).replace(f"{DATA['username']}:{DATA['password']}@", "")
    for why, url in urls.items():
        async with Torrelque.from_url(url, queue=name) as queue:
            with pytest.raises((TorrelqueUnavailableError, TorrelqueStorageError), match=why.strip()) as caught:
                await queue.enqueue(1)
            assert "of-the" not in str(caught.value)


@ON_COREDIS
async def test_an_unknown_authority(site: Site, pair: Pair, lock: Lock, name: str, tmp_path: Path) -> None:
    """Servers that cannot prove who they are are not spoken to."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with Torrelque.from_url(url_of(site, lock).replace(lock.authority, str(other)), queue=name) as queue:
        with anyio.fail_after(10), pytest.raises(TorrelqueRedisError, match="CERTIFICATE_VERIFY_FAILED"):
            await queue.enqueue(1)


@ON_COREDIS
async def test_check(site: Site, pair: Pair, lock: Lock, name: str) -> None:
    """`torrelque check` and `inspect_server` look at the primary, wherever it is."""
    command = [sys.executable, "-m", "torrelque", "--backend", pair.backend[0], "--queue", name]
    url = url_of(site, lock)
    async with Torrelque.from_url(url, queue=name) as queue:
        await queue.enqueue_many([1, 2, 3])
        lost = await queue.enqueue(4)
        key = queue.keys["tasks"]
        assert site.primary(key.encode()).admin.hdel(key, lost) == 1
        report = await queue.inspect_server()
        assert report.server == "unknown", "such a user may not ask"
    done = await anyio.run_process([*command, "--url", url, "check", "--json", "--grace", "0"], check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [each["task_id"] for each in found["findings"]] == [lost]
    # The default user may ask: it is a primary, with a replica.
    everything = url.replace(f"{DATA['username']}:{DATA['password']}@", f":{lock.password}@")
    async with Torrelque.from_url(everything, queue=name) as queue:
        report = await queue.inspect_server()
        assert report.server.startswith("redis 7.")
        assert not report.dangers
        assert "replicas" in {finding.name for finding in report.findings}, "min-replicas-to-write 0"

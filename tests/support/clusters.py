"""Several real servers that fail over: a primary with replicas that sentinels look after, and a cluster."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from torrelque.embedded import _find_server

from .faketime import faked
from .locks import ADMIN, Lock

SERVICE = "jobs"
#: Milliseconds of silence after which sentinels, and nodes of a cluster, take one of them for dead. A busy machine is
#: silent for less, and a failover for nothing upsets the next.
SENTINEL_DOWN, NODE_DOWN = 1000, 1000
#: Milliseconds. Sentinels wait twice as long before they do it again; if that is shorter than news of the new primary
#: take to come round (2 s and more), one that has missed them promotes yet another, which is demoted only much later.
FAILOVER_TIMEOUT = 2000
#: Milliseconds between what sentinels do now and then. They ping once a second unless told otherwise, and count from
#: the moment in which they hear of a server: each new primary would be late with its first answer. And one that stood
#: still for two seconds would do nothing for another thirty (TILT).
_SENTINEL_PACE = {"PING-PERIOD": 250, "INFO-PERIOD": 1000, "PUBLISH-PERIOD": 500, "TILT-PERIOD": 1000}
_SLOTS = 16384
_COMMON = {
    "protected-mode": "no",
    "save": "",
    "appendonly": "no",
    "appendfsync": "everysec",
    "notify-keyspace-events": "KA",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "enable-debug-command": "yes",
}


def binary_of(kind: str) -> str:
    """Find the server program: ``valkey`` is the embedded one, ``redis`` that of the distribution."""
    return "redis-server" if kind == "redis" else _find_server(None)


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Poll until *condition* is true, errors of Redis counting as false; returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"did not come true within {seconds} s: {condition}"
        time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    """Find ports that are free, and so are those 10,000 above, where nodes of a cluster speak to each other.

    All of them are below those that the system gives to outgoing connections, one of which might take it meanwhile.
    Nor do processes among which tests are spread draw from the same ones.
    """
    ports: list[int] = []
    first = 10_000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
    while len(ports) < count:
        port = random.SystemRandom().randrange(first, first + 1000)
        if port not in ports and _is_free(port) and _is_free(port + 10_000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(eq=False)
class Node:
    """One server process, which can die and come back on its port."""

    binary: str
    folder: Path
    port: int
    options: dict[str, str]
    mode: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    #: The network namespace in which it runs, if it has one of its own.
    netns: str = ""
    #: By how many seconds its clock is wrong.
    skew: int = 0
    #: What keeps strangers out.
    lock: Lock | None = None
    process: subprocess.Popen[bytes] | None = None
    admin: Any = field(init=False)

    def __post_init__(self) -> None:
        # Its own retries would ask a node that is silent for half a minute.
        self.admin = redis.Redis(
            host=self.host, port=self.port, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0),
            **(self.lock.redispy() if self.lock else {}),
        )  # fmt: skip

    def start(self) -> None:
        """Return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "server.conf"
        if not (self.mode and config.exists()):  # a sentinel writes its own
            settings = {
                "bind": self.host,
                "port": str(self.port),
                "dir": str(self.folder),
                "logfile": "server.log",
                **(self.lock.settings(self.port) if self.lock else {}),
                **self.options,
            }
            config.write_text("".join(f"{name} {value or chr(34) * 2}\n" for name, value in settings.items()))
        inside = ["ip", "netns", "exec", self.netns] if self.netns else []
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*inside, self.binary, str(config), *self.mode], stdout=output, stderr=subprocess.STDOUT,
                env=faked(self.folder / "clock", f"{self.skew:+d}") if self.skew else None,
            )  # fmt: skip
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it has ended: {self._last_words()}"
        try:
            return bool(self.admin.ping())
        except redis.exceptions.BusyLoadingError:
            return False
        except redis.exceptions.ResponseError:
            return True

    def _last_words(self) -> str:
        files = [self.folder / "output", self.folder / "server.log"]
        return "".join(file.read_text()[-2000:] for file in files if file.exists())

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process: SIGSTOP is a machine that is cut off, SIGCONT its return."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, which also ends a process that is stopped."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.admin.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()


class Network:
    """Network namespaces joined by a bridge: one machine each, and the cables between them can be cut. Needs root."""

    def __init__(self) -> None:
        self._name = f"trq{os.getpid() % 100_000}"
        self._net = f"10.{os.getpid() // 256 % 256}.{os.getpid() % 256}"
        self._members: list[Node] = []
        self._cut: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        self._ip(f"link add {self._name} type bridge", f"addr add {self._net}.1/24 dev {self._name}",
                 f"link set {self._name} up")  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._members:
            subprocess.run(["ip", "netns", "del", node.netns], check=False)
        subprocess.run(["ip", "link", "del", self._name], check=False)

    @staticmethod
    def _ip(*commands: str, netns: str = "") -> None:
        inside = ["-n", netns] if netns else []
        subprocess.run(["ip", *inside, "-batch", "-"], input="\n".join(commands).encode(), check=True)

    def join(self, node: Node) -> None:
        """Give a node that has not started a machine of its own."""
        number = len(self._members)
        self._members.append(node)
        node.netns, node.host = f"{self._name}-{number}", f"{self._net}.{number + 10}"
        node.__post_init__()
        cable = f"{self._name}v{number}"
        subprocess.run(["ip", "netns", "add", node.netns], check=True)
        self._ip(f"link add {cable} type veth peer name eth0 netns {node.netns}",
                 f"link set {cable} master {self._name} up")  # fmt: skip
        self._ip(f"addr add {node.host}/24 dev eth0", "link set eth0 up", "link set lo up", netns=node.netns)

    def cut_off(self, node: Node) -> None:
        """Part a node from all others, in both directions; clients still reach everybody."""
        others = [each for each in self._members if each is not node]
        for near, far in (([node], others), (others, [node])):
            for each in near:
                self._ip(*(f"route add blackhole {other.host}/32" for other in far), netns=each.netns)
                self._cut += [(each.netns, other.host) for other in far]

    def mend(self) -> None:
        """Join all again."""
        for netns, host in self._cut:
            self._ip(f"route del blackhole {host}/32", netns=netns)
        self._cut.clear()


def may_part() -> bool:
    """Tell whether this user of this machine can have network namespaces."""
    name = f"trqtry{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        subprocess.run(["ip", "netns", "del", name], check=False)
    return made


@dataclass(eq=False)
class Site:
    """Servers that belong together.

    :ivar nodes: those that hold data
    :ivar sentinels: those that look after them, if any
    """

    kind: str
    nodes: list[Node]
    sentinels: list[Node] = field(default_factory=list)
    network: Network | None = None

    @property
    def everything(self) -> list[Node]:
        return [*self.nodes, *self.sentinels]

    @property
    def url(self) -> str:
        """For ``Torrelque.from_url``."""
        scheme = "redis+sentinel" if self.sentinels else "redis+cluster"
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.sentinels or self.nodes)
        return f"{scheme}://{hosts}/{SERVICE}" if self.sentinels else f"{scheme}://{hosts}"

    def node(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)

    def heal(self) -> None:
        """Bring back what was killed or stopped, and wait until all of it works together again."""
        if self.network is not None:
            self.network.mend()
        for node in self.everything:
            assert node.process is not None
            if node.process.poll() is not None:
                node.start()
            else:
                node.send(signal.SIGCONT)
        self.settle()

    def _undoubted(self) -> Node | None:
        """Find the primary of which all sentinels think well: none of them is about to make another."""
        states = [sentinel.admin.sentinel_master(SERVICE) for sentinel in self.sentinels]
        known = {(state["port"], state["flags"]) for state in states}
        (port, flags) = known.pop()
        return None if known or flags != "master" else self.node(port)

    def _follow(self, primary: Node) -> None:
        """Make all others its replicas. Sentinels would do it, but take a while to make sure."""
        for node in self.nodes:
            if node is not primary and node.admin.info("replication").get("master_port") != primary.port:
                node.admin.replicaof(primary.host, primary.port)

    def settle(self) -> None:
        """Wait until there is a primary with all its replicas, and everybody knows it and thinks well of all."""
        eventually(self._is_settled, 40)

    def _is_settled(self) -> bool:
        if self.sentinels:
            primary = self._undoubted()
            if primary is None:
                return False
            self._follow(primary)
            return self._is_complete(primary, len(self.nodes) - 1) and all(map(self._may_promote, self.sentinels))
        primaries = {tuple(sorted(_primaries(node).items())) for node in self.nodes}
        if len(primaries) != 1 or any(node.admin.cluster("INFO")["cluster_state"] != "ok" for node in self.nodes):
            return False
        owners = {self.node(port) for _, port in primaries.pop()}
        return len(owners) >= 3 and all(self._is_complete(node, 1) for node in owners)

    def _may_promote(self, sentinel: Node) -> bool:
        """Whether a sentinel would take any of the replicas for the next primary."""
        replicas = sentinel.admin.sentinel_slaves(SERVICE)
        good = [each for each in replicas if (each["flags"], each["master-link-status"]) == ("slave", "ok")]
        return len(good) == len(self.nodes) - 1

    def _is_complete(self, primary: Node, replicas: int) -> bool:
        if primary.admin.info("replication")["role"] != "master":
            return False
        links = [node.admin.info("replication").get("master_link_status") for node in self.replicas(primary)]
        return links.count("up") >= replicas

    def primary(self, key: bytes = b"") -> Node:
        """Find the primary, in a cluster the one of *key*, as most of those see it who can be asked."""
        votes: list[int] = []
        for node in self.sentinels or self.nodes:
            assert node.process is not None
            if node.process.poll() is None and not _is_stopped(node):
                with contextlib.suppress(redis.RedisError):
                    if self.sentinels:
                        votes.append(node.admin.sentinel_get_master_addr_by_name(SERVICE)[1])
                    else:
                        slot = node.admin.execute_command("CLUSTER", "KEYSLOT", key)
                        votes.append(_primaries(node)[slot])
        if not votes:
            raise redis.ConnectionError("nobody tells where the primary is")
        return self.node(max(set(votes), key=votes.count))

    def replicated(self, replicas: int, key: bytes = b"written") -> Node:
        """Wait until *replicas* have all that the primary has (of *key*), and return it.

        Which node that is may change meanwhile: sentinels on a machine that stood still see the dead where there are
        none.
        """

        def replicated() -> Node | None:
            if not self._is_settled():
                return None
            primary = self.primary(key)
            primary.admin.set(key + b"written", 1)  # WAIT speaks of what its own connection has written
            return primary if primary.admin.wait(replicas, 500) == replicas else None

        return eventually(replicated, 40)

    def replicas(self, primary: Node) -> list[Node]:
        """Find those that the primary has brought up to date."""
        info = primary.admin.info("replication")
        known = [info[f"slave{i}"] for i in range(info["connected_slaves"])]
        return [self.node(each["port"]) for each in known if each["state"] == "online"]

    def move_slot(self, key: bytes, target: Node, *, pause: Callable[[], object] = lambda: None) -> None:
        """Move the slot of *key* key by key, as ``redis-cli --cluster reshard`` does; *pause* is called half-way."""
        source = self.primary(key)
        slot = source.admin.execute_command("CLUSTER", "KEYSLOT", key)
        ours, theirs = (node.admin.execute_command("CLUSTER", "MYID") for node in (source, target))
        target.admin.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ours)
        source.admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", theirs)
        keys = source.admin.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1_000_000)
        half = len(keys) // 2
        for part in (keys[:half], keys[half:]):
            for i in range(0, len(part), 100):
                command = ["MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *part[i : i + 100]]
                source.admin.execute_command(*command)
            pause()
        while rest := source.admin.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.admin.execute_command("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *rest)
        for node in (target, source, *(each for each in self.nodes if each not in (target, source))):
            with contextlib.suppress(redis.RedisError):  # a replica is told by its primary
                node.admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", theirs)

    def move_slot_whole(self, key: bytes, target: Node) -> None:
        """Move the slot of *key* in one step, as Valkey 9 can."""
        source = self.primary(key)
        slot = source.admin.execute_command("CLUSTER", "KEYSLOT", key)
        name = target.admin.execute_command("CLUSTER", "MYID")
        source.admin.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)
        eventually(lambda: _primaries(target)[slot] == target.port)


def _is_stopped(node: Node) -> bool:
    assert node.process is not None
    return Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _primaries(node: Node) -> dict[int, int]:
    """By slot the port of its primary, as *node* sees it."""
    connection = node.admin.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "SLOTS")  # past the client's own idea of the answer
        ranges = connection.read_response()
    finally:
        node.admin.connection_pool.release(connection)
    return {slot: servers[0][1] for first, last, *servers in ranges for slot in range(first, last + 1)}


@contextlib.contextmanager
def open_sentinel(
    folder: Path,
    kind: str = "valkey",
    replicas: int = 2,
    network: Network | None = None,
    skew: int = 0,
    lock: Lock | None = None,
    **options: str,
) -> Iterator[Site]:
    """Run a primary, replicas and three sentinels.

    :param network: gives each of them a machine of its own, as far as the network goes
    :param skew: by so many seconds the clocks of the replicas are wrong
    :param lock: what keeps strangers out of each of them
    :param options: settings of the data nodes, with ``_`` for ``-``
    """
    binary = binary_of(kind)
    ports = _free_ports(replicas + 4)
    given = {**_COMMON, **_known(lock), **{name.replace("_", "-"): value for name, value in options.items()}}
    nodes = [Node(binary, folder / f"node{i}", port, dict(given), lock=lock) for i, port in enumerate(ports[3:])]
    sentinels = [
        Node(binary, folder / f"sentinel{i}", port, {"protected-mode": "no"}, ("--sentinel",), lock=lock)
        for i, port in enumerate(ports[:3])
    ]
    site = Site(kind, nodes, sentinels, network)
    if network is not None:
        for node in site.everything:
            network.join(node)
    for node in nodes[1:]:
        node.skew = skew
        node.options["replicaof"] = f"{nodes[0].host} {nodes[0].port}"
    for sentinel in sentinels:
        sentinel.options["sentinel"] = f"monitor {SERVICE} {nodes[0].host} {nodes[0].port} 2"
    try:
        for node in site.everything:
            node.start()
        for sentinel in sentinels:
            if lock is not None:
                sentinel.admin.execute_command("SENTINEL", "CONFIG", "SET", "sentinel-pass", ADMIN)
                sentinel.admin.execute_command("SENTINEL", "SET", SERVICE, "auth-pass", ADMIN)
            for name, value in {
                "down-after-milliseconds": SENTINEL_DOWN, "failover-timeout": FAILOVER_TIMEOUT, "parallel-syncs": 2,
            }.items():  # fmt: skip
                sentinel.admin.execute_command("SENTINEL", "SET", SERVICE, name, value)
            paces = [word for pair in _SENTINEL_PACE.items() for word in pair]
            sentinel.admin.execute_command("SENTINEL", "DEBUG", *paces)
        eventually(lambda: all(_sees_others(sentinel, replicas) for sentinel in sentinels))
        site.settle()
        yield site
    finally:
        for node in site.everything:
            node.close()


def _known(lock: Lock | None) -> dict[str, str]:
    """Say by which password a replica comes in at its primary."""
    return {"masterauth": ADMIN} if lock else {}


def _sees_others(sentinel: Node, replicas: int) -> bool:
    state = sentinel.admin.sentinel_master(SERVICE)
    return state["num-other-sentinels"] == 2 and state["num-slaves"] == replicas


@contextlib.contextmanager
def open_cluster(folder: Path, kind: str = "valkey", lock: Lock | None = None, **options: str) -> Iterator[Site]:
    """Run a cluster of three primaries with a replica each.

    :param lock: what keeps strangers out of each of them
    :param options: settings of the nodes, with ``_`` for ``-``
    """
    binary = binary_of(kind)
    ports = _free_ports(12)
    given = {
        **_COMMON, **_known(lock), "cluster-enabled": "yes", "cluster-node-timeout": str(NODE_DOWN),
        **{name.replace("_", "-"): value for name, value in options.items()},
    }  # fmt: skip
    nodes = [
        Node(binary, folder / f"node{i}", port, {**given, "cluster-port": str(ports[6 + i])}, lock=lock)
        for i, port in enumerate(ports[:6])
    ]
    site = Site(kind, nodes)
    try:
        for node in nodes:
            node.start()
        for i, node in enumerate(nodes[:3]):
            node.admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            first, last = _SLOTS * i // 3, _SLOTS * (i + 1) // 3 - 1
            node.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in nodes[1:]:
            node.admin.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, ports[6])
        eventually(lambda: all(int(node.admin.cluster("INFO")["cluster_known_nodes"]) == 6 for node in nodes))
        for i, node in enumerate(nodes[3:]):
            name = nodes[i].admin.execute_command("CLUSTER", "MYID")
            eventually(lambda node=node, name=name: node.admin.execute_command("CLUSTER", "REPLICATE", name))
        site.settle()
        yield site
    finally:
        for node in site.everything:
            node.close()

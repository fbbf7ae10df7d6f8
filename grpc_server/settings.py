"""What a server is told: one frozen value, checked as a whole before anything is opened.

Times are seconds, sizes are bytes.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torrelque import Torrelque, TorrelqueDurability, TorrelqueValueError

#: Where a server listens when nothing else is said.
DEFAULT_LISTEN = "127.0.0.1:50051"
MIB = 1 << 20
#: Room for all that a message holds beside one payload: a task must fit into it when it is delivered too.
BESIDE_PAYLOAD = 4096
_CONTENT_TYPE = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)
_GLOB = re.compile(r"[A-Za-z0-9_.:{}*?\[\]!-]{1,128}", re.ASCII)
_QUEUE = re.compile(r"[A-Za-z0-9_.:-]*(?:\{[A-Za-z0-9_.:-]+\})?[A-Za-z0-9_.:-]*", re.ASCII)
#: The keys of such a queue would be those of tasks of the queue whose name stands before it.
_OF_TASKS = re.compile(r":task(?::|$)")
_DAY = 86_400.0
#: How a URL begins that names several servers.
SEVERAL = ("redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://")
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_DURABILITY = re.compile(r"memory|(?P<disk>disk)?(?:(?(disk)\+)replicas:(?P<replicas>[1-9][0-9]{0,2}))?", re.ASCII)


class SettingsError(ValueError):
    """A setting cannot be used; the text names it and the way out."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a TCP address, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, name: str) -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path or "\0" in path or len(os.fsencode(path)) > 100:
                raise SettingsError(f"{name} must be unix:PATH with a path of 1 to 100 bytes: {text!r:.120}")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise SettingsError(f"{name} must be HOST:PORT with a port of 0 to 65535, or unix:PATH: {text!r:.120}")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if ":" in bare and bare == host:
            raise SettingsError(f"{name}: write an IPv6 address in brackets: [{host}]:{port}")
        if not _is_host(bare):
            raise SettingsError(f"{name} must be HOST:PORT, and this is no host: {bare!r:.120}")
        return cls(host=bare, port=int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def target(self, port: int | None = None) -> str:
        """Spell it for gRPC, with the *port* that was bound where it asked for any."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port if port is None else port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a server; each has a default that is safe."""

    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    """Addresses: ``HOST:PORT``, port 0 for any that is free, or ``unix:PATH``."""
    redis: str | None = field(default=None, repr=False)  # it may hold a password
    """URL of the Redis or Valkey to use; without it an embedded Valkey is started."""
    durability: str = "memory"
    """Where a write is when it is acknowledged: ``memory`` of the primary, ``disk``, ``replicas:N`` (in the memories of
    so many as well) or ``disk+replicas:N`` (on their disks as well)."""
    data_dir: str | None = None
    """Where the embedded Valkey keeps its data; ``None`` is a temporary directory."""
    queues: tuple[str, ...] = ("*",)
    """Globs of the names of queues that are served."""
    default_queue: str = "trq"
    """The queue of a request that names none."""
    task_timeout: float = 300.0
    """Length of a lease for a task that was given none."""
    result_ttl: float = 3600.0
    """How long a result is kept when the worker does not say."""
    max_attempts: int = 0
    """How often a task is delivered at most; 0: no limit."""
    dead_letter: bool = False
    """Keep the tasks that *max_attempts* ends as dead letters."""
    sweep: bool = True
    """Sweep every queue that is in use."""
    sweep_interval: float = 30.0
    """Between two sweeps."""
    linger: float = 0.002
    """How long a call waits for others to share its round trip to Redis, when calls come in numbers."""
    content_type: str = "application/json"
    """What payloads and results are; a request that says something else is refused."""
    check_json: bool = False
    """Refuse payloads and results that are no JSON."""
    default_wait: float = 10.0
    """How long a Dequeue waits that does not say."""
    max_wait: float = 60.0
    """How long a Dequeue may wait."""
    max_payload: int = MIB
    """Bytes of one payload or result."""
    max_message: int = 4 * MIB
    """Bytes of one message; at least 4 KiB more than one payload."""
    max_calls: int = 1000
    """Calls in flight that do not wait."""
    max_polls: int = 1000
    """Dequeues in flight."""
    max_watches: int = 2000
    """Watches in flight, and as many of health."""
    max_consumers: int = 200
    """Consume streams in flight."""
    max_streams_per_principal: int = 0
    """Polls, watches and consumers of one caller; 0 is as many as there may be in all."""
    rate: float = 0.0
    """Calls a second of one caller, on the average; 0 is without limit."""
    max_queues: int = 1000
    """Queues in use at a time, beside the default queue."""
    stream_age: float = 1800.0
    """After about this long a Watch is ended, and the client opens a new one."""
    grace: float = 10.0
    """How long calls in flight may go on when the server stops."""
    tls_cert: str | None = None
    """PEM file with the certificate chain of the server."""
    tls_key: str | None = None
    """PEM file with its key."""
    tls_client_ca: str | None = None
    """PEM file with the authorities whose client certificates are accepted; with it, each client must have one."""
    auth_file: str | None = None
    """File with principals, tokens and grants; with it nothing is allowed that is not granted."""
    allow_eviction: bool = False
    """Serve although Redis throws keys away when its memory is full."""
    insecure: bool = False
    """Allow plaintext beyond loopback."""
    reflection: bool | None = None
    """Server reflection; ``None`` is on where only loopback is listened on."""
    metrics: str | None = None
    """Address where Prometheus finds the metrics."""
    reuse_port: bool = False
    """Share the port with other processes."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name in _POSITIVE:
                # Types are strings here, as annotations are not evaluated.
                _check_range(each.name, getattr(self, each.name), *_POSITIVE[each.name], whole=each.type == "int")
        _check_listen(self.addresses)
        if self.redis is not None:
            _check_redis(self.redis)
        _read_durability(self.durability)
        if not _CONTENT_TYPE.fullmatch(self.content_type):
            raise SettingsError(f"content_type must be 1 to 255 characters of ASCII: {self.content_type!r:.80}")
        for glob in self.queues:
            if not _GLOB.fullmatch(glob):
                raise SettingsError(f"queues must be globs over A-Z a-z 0-9 _ . : - {{ }}: {glob!r:.80}")
        if not valid_queue(self.default_queue) or not self.serves(self.default_queue):
            raise SettingsError(f"default_queue must be the name of a queue that is served: {self.default_queue!r:.80}")
        if self.max_message < self.max_payload + BESIDE_PAYLOAD:
            raise SettingsError(f"max_message must be at least max_payload and {BESIDE_PAYLOAD} bytes more")
        self._check_security()
        if self.metrics is not None and Address.parse(self.metrics, "metrics").path:
            raise SettingsError("metrics must be HOST:PORT: Prometheus cannot ask over a unix socket")

    def _check_security(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingsError("tls_cert and tls_key go together: name both files, or none")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("tls_client_ca needs tls_cert and tls_key: client certificates come with TLS")
        for name in ("tls_cert", "tls_key", "tls_client_ca", "auth_file"):
            path = getattr(self, name)
            if path is not None and ("\0" in str(path) or not os.access(path, os.R_OK)):
                raise SettingsError(f"{name} must be a file that can be read: {path!r:.200}")
        for name in ("tls_key", "auth_file"):
            path = getattr(self, name)
            if path is not None and Path(path).stat().st_mode & 0o007:
                raise SettingsError(f"{name} may be read by everybody: chmod o= {path}")
        open_to_all = [each.target() for each in self.addresses if not each.loopback]
        if open_to_all and not self.tls_cert and not self.insecure:
            raise SettingsError(
                f"listen {open_to_all[0]} is plaintext beyond this machine: give tls_cert and tls_key, or allow it with"
                " insecure where something else protects the network"
            )
        if self.auth_file and open_to_all and not self.tls_cert:
            raise SettingsError("auth_file needs TLS beyond loopback: tokens would be readable on the network")

    @property
    def durable(self) -> TorrelqueDurability:
        """The durability of all queues."""
        return _read_durability(self.durability)

    @property
    def addresses(self) -> list[Address]:
        """Where to listen."""
        return [Address.parse(text, "listen") for text in self.listen]

    def serves(self, queue: str) -> bool:
        """Whether a queue of this name is served."""
        return any(fnmatch.fnmatchcase(queue, glob) for glob in self.queues)

    @property
    def reflects(self) -> bool:
        """Whether server reflection is on."""
        return all(each.loopback for each in self.addresses) if self.reflection is None else self.reflection


#: The range of each number.
_POSITIVE: dict[str, tuple[float, float]] = {
    "task_timeout": (0.001, _DAY),
    "result_ttl": (0.001, 30 * _DAY),
    "max_attempts": (0, 1_000_000),
    "sweep_interval": (0.001, _DAY),
    "linger": (0.0, 1.0),
    "default_wait": (0.0, 3600.0),
    "max_wait": (0.001, 3600.0),
    "max_payload": (1, 512 * MIB),
    "max_message": (1024, 1024 * MIB),
    "max_calls": (1, 1_000_000),
    "max_polls": (1, 1_000_000),
    "max_watches": (1, 1_000_000),
    "max_consumers": (1, 1_000_000),
    "max_streams_per_principal": (0, 1_000_000),
    "rate": (0.0, 1e9),
    "max_queues": (1, 100_000),
    "stream_age": (0.1, _DAY),
    "grace": (0.0, 3600.0),
}


def _check_range(name: str, value: Any, low: float, high: float, *, whole: bool) -> None:
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise SettingsError(f"{name} must be {what} from {low:g} to {high:g}: {value!r:.80}")


def _check_redis(url: str) -> None:
    """Let the client's own parser judge. What it says stays here: it may quote a part of the password."""
    from redis.asyncio.connection import parse_url

    if url.startswith(SEVERAL):
        _check_several(url)
        return
    if not url.startswith(_REDIS_SCHEMES):
        raise SettingsError(f"redis must be a URL that begins with {', '.join((*_REDIS_SCHEMES, *SEVERAL))}")
    try:
        known, parts = parse_url(url), urlsplit(url)
        if url.startswith("unix:"):
            usable = bool(known.get("path"))
        else:
            usable = bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"/?[0-9]{0,5}", parts.path) is not None
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError("redis must be a URL as redis://HOST:PORT/DB or unix://PATH, and this one cannot be used")


def _check_several(url: str) -> None:
    try:
        Torrelque.from_url(url)
    except TorrelqueValueError as error:
        raise SettingsError(f"redis: {error}") from None


def _read_durability(text: str) -> TorrelqueDurability:
    found = _DURABILITY.fullmatch(text) if isinstance(text, str) and text else None
    replicas = int(found["replicas"] or 0) if found else 0
    if found is None or replicas > 100:
        raise SettingsError(f"durability must be memory, disk, replicas:N or disk+replicas:N, N 1 to 100: {text!r:.80}")
    return TorrelqueDurability(replicas=replicas, fsync=bool(found["disk"]))


def _is_host(text: str) -> bool:
    """Whether the resolver of names would take it at all."""
    try:
        return bool(text.encode("idna")) and text.isprintable() and " " not in text
    except UnicodeError:
        return False


def _check_listen(addresses: list[Address]) -> None:
    if not addresses:
        raise SettingsError("listen must name at least one address: HOST:PORT or unix:PATH")
    fixed = [each for each in addresses if each.path or each.port]
    if len({(each.host, each.port, each.path) for each in fixed}) < len(fixed):
        raise SettingsError("listen names an address twice")
    for folder in {os.path.dirname(each.path) or "." for each in addresses if each.path}:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SettingsError(f"listen: no socket can be made in {folder!r:.200}")


def valid_queue(name: str) -> bool:
    """Whether a queue may have this name."""
    return 0 < len(name) <= 128 and _QUEUE.fullmatch(name) is not None and not _OF_TASKS.search(name)

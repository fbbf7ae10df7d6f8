"""What strangers do to a gRPC server, by hand; each function counts what it has done, all of it on this machine."""

from __future__ import annotations

import contextlib
import functools
import gzip
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from support.bridge import METHODS, ask
from support.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST, Wire, block, frame, message

#: Nobody waits longer for a connection that is not answered, seconds.
PATIENCE = 10.0
#: Streams of headers alone, resets and pings on one connection.
STREAMS, RESETS, PINGS = 100, 1000, 200
#: Streams, resets and pings a second. A process of the server gets through some thousands of calls in a second, also of
#: those that are taken back: a flood beyond that delays everybody, which is for limits in front of the server.
PACE = 2_000
#: Who is late makes up for so many seconds of it at once. With more, strangers whom the machine had kept waiting would
#: send a burst of any height.
CAUGHT_UP = 0.02
#: Bytes of zeros, which come in a thousandth of them.
BOMB = 32 << 20


@dataclass(frozen=True)
class Site:
    """What strangers know of a server, and one of them a token that grants nothing there."""

    address: str
    ca: str
    token: str

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def wire(self) -> Wire:
        return Wire(self.address, secure=_trusting(self.ca))

    def channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.ca.encode()), options)


@functools.cache
def _trusting(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca)
    context.set_alpn_protocols(["h2"])
    return context


def _paths() -> Iterator[str]:
    while True:
        for rpc, method in METHODS.items():
            yield f"/{method.containing_service.full_name}/{rpc}"


class Pace:
    """Holds a flood to its rate."""

    def __init__(self) -> None:
        self._due = time.monotonic()

    def keep(self, more: int = 1) -> None:
        """Wait as long as so many more take."""
        now = time.monotonic()
        self._due = max(self._due, now - CAUGHT_UP) + more / PACE
        time.sleep(max(0.0, self._due - now))


def headers_only(site: Site, count: int) -> int:
    """Open streams of every rpc that say nothing after their headers, and hold them for a while."""
    sent, paths, pace = 0, _paths(), Pace()
    with contextlib.ExitStack() as held:
        while sent < count:
            wire = held.enter_context(site.wire())
            for stream in range(1, 2 * min(STREAMS, count - sent), 2):
                if not wire.send(frame(HEADERS, END_HEADERS, stream, block(next(paths)))):
                    break
                sent += 1
                pace.keep()
        time.sleep(2)
    return sent


def resets(site: Site, count: int) -> int:
    """Open streams and take them back at once."""
    sent, paths, pace = 0, _paths(), Pace()
    while sent < count:
        with site.wire() as wire:
            for stream in range(1, 2 * RESETS, 20):
                part = b"".join(
                    frame(HEADERS, END_HEADERS, each, block(next(paths))) + frame(RST, 0, each, struct.pack(">I", 8))
                    for each in range(stream, stream + 20, 2)
                )
                if not wire.send(part):
                    break
                sent += 10
                pace.keep(10)
    return sent


def pings(site: Site, count: int) -> int:
    """Ping, without a call."""
    sent, pace = 0, Pace()
    while sent < count:
        with site.wire() as wire:
            for number in range(PINGS):
                if not wire.send(frame(PING, 0, 0, struct.pack(">Q", number))):
                    break
                sent += 1
                pace.keep()
    return sent


def garbage(site: Site, count: int, seed: int) -> int:
    """Say what is no TLS, or half of it, or an old one."""
    chance = random.Random(seed)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
    kinds: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(chance.randrange(1, 2000)),
        lambda: hello[: chance.randrange(1, len(hello))],
        lambda: hello + chance.randbytes(480),
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0),
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"\x16\x03\x01\xff\xff" + bytes(2000),
        lambda: b"\x15\x03\x03\x00\x02\x02\x28",
    ]
    for number in range(count):
        with socket.create_connection(site.place, PATIENCE) as raw, contextlib.suppress(OSError):
            raw.sendall(kinds[number % len(kinds)]())
            if number % 3 == 0:
                raw.shutdown(socket.SHUT_WR)
                raw.recv(100)
    return count


@contextlib.contextmanager
def idle(site: Site, count: int) -> Iterator[int]:
    """Connect, and say nothing for as long as the body runs."""
    with contextlib.ExitStack() as held:
        for _ in range(count):
            held.enter_context(socket.create_connection(site.place, PATIENCE))
        yield count


def bombs(site: Site, count: int) -> int:
    """Send messages that are small on the way and large after it."""
    body = message(gzip.compress(bytes(BOMB)), flag=1)
    for _ in range(count):
        with site.wire() as wire:
            token = f"Bearer {site.token}".encode()
            headers = block(grpc_encoding=b"gzip", authorization=token)
            wire.send(frame(HEADERS, END_HEADERS, 1, headers))
            for start in range(0, len(body), 16_000):
                last = END_STREAM if start + 16_000 >= len(body) else 0
                wire.send(frame(DATA, last, 1, body[start : start + 16_000]))
            wire.end_of(1)
    return count


def bypass(site: Site, count: int, granted: str, queues: list[str], seed: int) -> tuple[int, list[str]]:
    """Try every rpc on queues that are not granted, with all kinds of credentials; returns who got in."""
    chance, inside = random.Random(seed), []
    token = site.token
    credentials: list[list[tuple[str, Any]]] = [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {token}x")],
        [("authorization", f"Bearer {token}".swapcase())],
        [("authorization", f"Basic {token}")],
        [("authorization", token)],
        [("authorization", f"Bearer {token}"), ("authorization", "Bearer other")],
        [("authorization", "Bearer " + "x" * 4000)],
        [("authorization-bin", token.encode())],
        [("x-authorization", f"Bearer {token}")],
        [("authorization", f"Bearer {token}")],  # known, and granted another queue
        [("authorization", f"Bearer {token}"), ("x-torrelque-principal", "honest")],
    ]
    with site.channel() as channel:
        # With its token, and where it may, the stranger is let in: so it is the refusals that are tried.
        assert ask(channel, "GetQueueStats", granted, credentials[-2]) == "OK"
        for number in range(count):
            rpc = list(METHODS)[number % len(METHODS)]
            queue, metadata = chance.choice(queues), chance.choice(credentials)
            said = ask(channel, rpc, queue, metadata)
            if said.split("/")[0] not in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
                inside.append(f"{rpc} on {queue} with {[name for name, _ in metadata]}: {said}")
    return count, inside


@dataclass(frozen=True)
class Deeds:
    """What strangers have done."""

    done: dict[str, int]
    resets_a_second: float
    inside: list[str]
    """Who was let in."""


def attack(site: Site, counts: dict[str, int], granted: str, queues: list[str], seed: int) -> Deeds:
    """Do all of it, one after the other, with idle sockets all the while; for a process of its own."""
    done: dict[str, int] = {}
    with idle(site, counts["idle sockets"]) as done["idle sockets"]:
        done["streams of headers"] = headers_only(site, counts["streams of headers"])
        began = time.monotonic()
        done["rapid resets"] = resets(site, counts["rapid resets"])
        rate = done["rapid resets"] / (time.monotonic() - began)
        done["pings"] = pings(site, counts["pings"])
        done["TLS garbage"] = garbage(site, counts["TLS garbage"], seed)
        done["gzip bombs"] = bombs(site, counts["gzip bombs"])
        done["bypass attempts"], inside = bypass(site, counts["bypass attempts"], granted, queues, seed)
    return Deeds(done, rate, inside)

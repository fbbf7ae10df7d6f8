"""The fault proxy does to a connection what each of its rules says, where it says, and counts it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.proxy import (
    DOWN,
    UP,
    Cut,
    Delay,
    Duplicate,
    FaultProxy,
    Flip,
    HalfClose,
    Http2Frame,
    Reset,
    Rule,
    Stall,
    Swallow,
    Trickle,
    faulty,
)

SAID = b"0123456789"


class Server:
    """Takes connections; each is handed to the test."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        listener.settimeout(5)

    def accept(self) -> socket.socket:
        peer, _ = self.listener.accept()
        peer.settimeout(5)
        return peer


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of which the test is the program."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Server(listener)


@contextmanager
def joined(server: Server, *rules: Rule, seed: int = 0) -> Iterator[tuple[FaultProxy, socket.socket, socket.socket]]:
    """A client and a server with the proxy between them."""
    with faulty(server.listener.getsockname()[:2], *rules, seed=seed) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as client, server.accept() as peer:
            yield proxy, client, peer


def read(end: socket.socket, size: int = 1 << 20) -> bytes:
    """Receive until *size* bytes are there or the other end has ended."""
    got = b""
    while len(got) < size and (data := end.recv(size - len(got))):
        got += data
    return got


def silent(end: socket.socket) -> bool:
    """Whether nothing comes, not even an end."""
    end.settimeout(0.1)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(5)
    return False


def pick(direction: str, client: socket.socket, peer: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Who speaks and who hears."""
    return (client, peer) if direction == UP else (peer, client)


both = pytest.mark.parametrize("direction", [UP, DOWN])


@both
def test_passes_all(server: Server, direction: str) -> None:
    """Without rules a mebibyte comes through as it is, and so does its end, while the other direction goes on."""
    body = bytes(range(256)) * 4096
    with joined(server) as (proxy, client, peer):
        speaker, hearer = pick(direction, client, peer)

        def speak() -> None:
            speaker.sendall(body)
            speaker.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=speak)
        thread.start()
        assert read(hearer, 2 << 20) == body
        thread.join()
        hearer.sendall(SAID)
        assert read(speaker, len(SAID)) == SAID
        assert proxy.counts[direction] == len(body)


@both
@pytest.mark.parametrize("at", [0, 1, 9, 10, 14])
def test_cut(server: Server, direction: str, at: int) -> None:
    """So many bytes arrive, whatever pieces they come in, and then both ends see the end."""
    with joined(server, rule := Rule(Cut(), direction, at)) as (proxy, client, peer):
        speaker, hearer = pick(direction, client, peer)
        speaker.sendall(SAID)
        if at >= len(SAID):
            assert read(hearer, len(SAID)) == SAID
            speaker.sendall(SAID)
        assert read(hearer) == SAID[: at % len(SAID)]
        assert read(speaker) == b""
        assert rule.hits == proxy.counts["Cut"] == 1


@both
def test_reset(server: Server, direction: str) -> None:
    """Both ends see the connection reset."""
    with joined(server, Rule(Reset(), direction, 5)) as (_, client, peer):
        pick(direction, client, peer)[0].sendall(SAID)
        for end in (client, peer):
            with pytest.raises(ConnectionResetError):
                read(end)


@both
def test_half_close(server: Server, direction: str) -> None:
    """One direction ends, and the other still carries."""
    with joined(server, Rule(HalfClose(), direction, 3)) as (_, client, peer):
        speaker, hearer = pick(direction, client, peer)
        speaker.sendall(SAID)
        assert read(hearer) == SAID[:3]
        hearer.sendall(SAID)
        assert read(speaker, len(SAID)) == SAID
        speaker.sendall(SAID)
        assert hearer.recv(1) == b""


@both
def test_stall(server: Server, direction: str) -> None:
    """A direction stands still, the other does not; when one end leaves, so does the other."""
    with joined(server, Rule(Stall(), direction, 3)) as (_, client, peer):
        speaker, hearer = pick(direction, client, peer)
        speaker.sendall(SAID)
        assert read(hearer, 3) == SAID[:3]
        assert silent(hearer)
        hearer.sendall(SAID)
        assert read(speaker, len(SAID)) == SAID
        speaker.close()
        assert read(hearer) == b""


@both
def test_stall_for_a_while(server: Server, direction: str) -> None:
    """What was held back passes later, whole."""
    with joined(server, Rule(Stall(0.2), direction, 3)) as (_, client, peer):
        speaker, hearer = pick(direction, client, peer)
        began = time.monotonic()
        speaker.sendall(SAID)
        assert read(hearer, len(SAID)) == SAID
        assert time.monotonic() - began >= 0.2


@both
def test_swallow(server: Server, direction: str) -> None:
    """What comes in a direction disappears; nobody sees an end."""
    with joined(server, Rule(Swallow(), direction, 2)) as (_, client, peer):
        speaker, hearer = pick(direction, client, peer)
        speaker.sendall(SAID)
        assert read(hearer, 2) == SAID[:2]
        speaker.sendall(SAID * 100_000)
        assert silent(hearer)


@both
def test_delay_and_trickle(server: Server, direction: str) -> None:
    """Slow is not wrong: all bytes come, in order, later."""
    for fault, least in ((Delay(0.1), 0.2), (Trickle(0.01), 0.1)):
        with joined(server, Rule(fault, direction, 5)) as (_, client, peer):
            speaker, hearer = pick(direction, client, peer)
            began = time.monotonic()
            for part in (SAID, SAID):
                speaker.sendall(part)
                assert read(hearer, len(part)) == part
            assert time.monotonic() - began >= least


@both
def test_duplicate_and_flip(server: Server, direction: str) -> None:
    """A piece comes twice; one bit of one byte is wrong, and what follows is right."""
    rules = (Rule(Duplicate(), direction, 7), Rule(Flip(0), direction, 2))
    with joined(server, *rules) as (proxy, client, peer):
        speaker, hearer = pick(direction, client, peer)
        speaker.sendall(SAID)
        speaker.shutdown(socket.SHUT_WR)
        assert read(hearer) == b"0133456789789"
        assert proxy.counts["Duplicate"] == proxy.counts["Flip"] == 1


def test_deaf(server: Server) -> None:
    """Connections are made, and nothing is ever heard on them."""
    with faulty(server.listener.getsockname()[:2]) as proxy:
        proxy.deaf = True
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
            client.sendall(SAID)
            assert silent(client)
        proxy.deaf = False
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as client, server.accept() as peer:
            client.sendall(SAID)
            assert read(peer, len(SAID)) == SAID


def test_times_and_each(server: Server) -> None:
    """A rule for each connection counts on each anew, and as often as it is told to."""
    with faulty(server.listener.getsockname()[:2], rule := Rule(Cut(), UP, 4, each=True, times=2)) as proxy:
        seen = []
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", proxy.port), 5) as client, server.accept() as peer:
                client.sendall(SAID)
                client.shutdown(socket.SHUT_WR)
                seen.append(read(peer))
        assert seen == [SAID[:4], SAID[:4], SAID]
        assert (rule.hits, proxy.counts["connections"]) == (2, 3)


def test_offsets_since_set_count_over_all_connections(server: Server) -> None:
    """A rule that is set later begins to count then, whoever speaks."""
    with joined(server) as (proxy, client, peer):
        client.sendall(SAID)
        read(peer, len(SAID))
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as other, server.accept() as its_peer:
            proxy.set(Rule(Cut(), UP, 15))
            client.sendall(SAID)
            assert read(peer, len(SAID)) == SAID
            other.sendall(SAID)
            assert read(its_peer) == SAID[:5]
            client.sendall(SAID)
            assert read(peer, len(SAID)) == SAID


def drawn(server: Server, seed: int) -> list[int]:
    """Where a rule with a span strikes, on ten connections."""
    rule = Rule(Cut(), UP, 1, span=8, each=True, times=None)
    seen = []
    with faulty(server.listener.getsockname()[:2], rule, seed=seed) as proxy:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", proxy.port), 5) as client, server.accept() as peer:
                client.sendall(SAID)
                seen.append(len(read(peer)))
    return seen


def test_seed(server: Server) -> None:
    """Places that are drawn by chance are the same for the same seed."""
    first = drawn(server, 7)
    assert first == drawn(server, 7) != drawn(server, 8)
    assert len(set(first)) > 2
    assert set(first) <= set(range(1, 10))


def test_unix_sockets(tmp_path: Path) -> None:
    """Both sides may be unix sockets."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "server"))
        listener.listen()
        with faulty(tmp_path / "server", Rule(Cut(), UP, 4), listen=tmp_path / "proxy"):
            client.connect(str(tmp_path / "proxy"))
            client.sendall(SAID)
            with Server(listener).accept() as peer:
                assert read(peer) == SAID[:4]


def test_server_that_is_away() -> None:
    """A server that cannot be reached is a connection that ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
    with faulty(address) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        assert client.recv(1) == b""
        assert proxy.counts["refused"] == 1


def test_close_ends_what_stands_still(server: Server) -> None:
    """Leaving the proxy resets its connections, and its thread ends."""
    before = threading.active_count()
    with joined(server, Rule(Stall(), DOWN)) as (_, _, peer):
        peer.sendall(SAID)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def frame(kind: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, 0, 0, 0, 0, 1]) + body


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9, 1000])
def test_http2_frame(size: int) -> None:
    """The first frame of a kind is found, in whatever pieces the bytes come, and not in the body of another."""
    before = frame(4, frame(1, b"not this one")) + frame(4, b"")
    data = before + frame(1, b"headers") + frame(1, b"more")
    finder: Callable[[bytes], int | None] = Http2Frame(1).find
    for at in range(0, len(data), size):
        if (found := finder(data[at : at + size])) is not None:
            # Told at the earliest when the header is complete.
            assert at <= len(before) + 9
            assert at + found in (len(before), at)
            return
    pytest.fail("not found")

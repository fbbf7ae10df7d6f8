"""Our own reading and writing of RESP: whatever way the bytes come, and whatever bytes they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio
import coredis
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from support import Server
from support.marks import ON_COREDIS

from torrelque.calls import Calls
from torrelque.drivers import _lines, driver_for
from torrelque.drivers._scripts import pack
from torrelque.drivers._wire import ReplyError, Wire
from torrelque.keys import Keys

pytestmark = pytest.mark.anyio


class Scripted(ByteStream):
    """Receives what it was given, in these pieces, and then an end, or an error."""

    def __init__(self, pieces: Iterable[bytes], end: type[Exception] = EndOfStream) -> None:
        self.pieces = list(pieces)
        self.sent = b""
        self.closed = False
        self._end = end

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await checkpoint()
        if not self.pieces:
            raise self._end
        return self.pieces.pop(0)

    async def send(self, item: bytes) -> None:
        await checkpoint()
        self.sent += item

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed = True


def written(value: Any) -> bytes:
    """Write an answer as a server does."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(written, value))
    return b"-%b\r\n" % str(value).encode()


answers = st.recursive(
    st.none() | st.binary(max_size=30) | st.integers(-(2**63), 2**63 - 1), lambda inner: st.lists(inner, max_size=4)
)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(st.lists(answers, min_size=1, max_size=4), st.lists(st.integers(1, 40), max_size=30))
def test_answers_in_any_pieces(values: list[Any], cuts: list[int]) -> None:
    """An answer is read as it was written, wherever the network cuts it."""
    text = b"".join(map(written, values))
    pieces = []
    for cut in cuts:
        pieces.append(text[:cut])
        text = text[cut:]
    pieces.append(text)

    async def read() -> None:
        wire = Wire(Scripted(filter(None, pieces)))
        assert await wire.ask(b"request", len(values)) == values

    anyio.run(read)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_every_byte_by_itself() -> None:
    """The worst case of all pieces, with an error among the answers; the next round trip finds nothing left over."""
    text = (
        written([b"a\r\n", None, [1, []]]) + b"-NOSCRIPT No matching script\r\n>2\r\n+push\r\n:1\r\n+OK\r\n*-1\r\n_\r\n"
    )
    stream = Scripted([text[i : i + 1] for i in range(len(text))])
    wire = Wire(stream)
    first, error, simple, *nothing = await wire.ask(b"x", 5)
    assert first == [b"a\r\n", None, [1, []]]
    assert isinstance(error, ReplyError)
    assert str(error) == "NOSCRIPT No matching script"
    assert (simple, nothing) == (b"OK", [None, None])
    stream.pieces.append(b":7\r\n")
    assert await wire.ask(b"y") == [7]
    assert stream.sent == b"xy"


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_an_event_behind_an_answer() -> None:
    """What was not asked for may be an event, which the next round trip passes over."""
    stream = Scripted([b":1\r\n>2\r\n+push\r\n:1\r\n"])
    wire = Wire(stream)
    assert await wire.ask(b"x") == [1]
    stream.pieces.append(b":2\r\n")
    assert await wire.ask(b"y") == [2]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "junk",
    [
        *(b"HTTP/1.1 400\r\n", b"$x\r\n", b"*1.5\r\n", b":\r\n", b"\r\n", b"?\r\n", b"*1\r\n!3\r\n", b"\xff\x00\r\n"),
        # Lengths that are wrong by a bit, or absurd: what follows must not be taken for another answer.
        *(
            b"$2\r\nabc\r\n",
            b"$3\r\nabcde",
            b"$1\r\n:5\r\n",
            b"$-2\r\n",
            b"*-7\r\n",
            b"*1\r\n" * 5000,
            b"$999999999\r\nx",
        ),
        *(b"*999999999\r\n:1\r\n", b"+" + b"x" * (1 << 20), b":1\r\n:2\r\n", b"$1\r\na\r\n$1\r\nb\r\n"),
        b">1\r\n" * 5000,
    ],
    ids=lambda junk: repr(junk[:12]),
)
async def test_junk_is_a_lost_connection(junk: bytes) -> None:
    """What is no answer is not taken for one, and nothing waits for what such a server has announced."""
    with pytest.raises(ConnectionError, match="RESP"):
        await Wire(Scripted([junk], AssertionError)).ask(b"x")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", [EndOfStream, BrokenResourceError, ClosedResourceError])
@pytest.mark.parametrize("before", [b"", b"$5", b"$5\r\nab", b"*2\r\n:1\r\n", b"$999999999\r\nx"])
async def test_an_end_in_the_middle(end: type[Exception], before: bytes) -> None:
    """Wherever the connection ends, that is what is said."""
    with pytest.raises(ConnectionError):
        await Wire(Scripted([before] if before else [], end)).ask(b"x")


def test_commands_are_packed() -> None:
    """A command is a list of strings with their lengths, whatever bytes they hold."""
    assert pack((b"GET", b"\r\n", b"")) == b"*3\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n$0\r\n\r\n"


@ON_COREDIS
async def test_a_connection_that_ended_meanwhile_is_not_used(
    server: Server, admin: Redis, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that the server closed while nobody used it costs no call."""
    monkeypatch.setattr(_lines, "HOT", 0.0)
    calls = Calls(Keys(name))
    async with coredis.Redis.from_url(server.url, client_name=name) as client:
        driver = driver_for(client)
        async with driver.opened():
            for _ in range(3):
                assert await driver.execute([calls.state(b"unknown")]) == [[[None] * 9]]
                (ours,) = [entry["id"] for entry in admin.client_list() if entry["name"] == name]
                admin.client_kill_filter(_id=ours)
                with anyio.fail_after(5):
                    while any(entry["name"] == name for entry in admin.client_list()):
                        await anyio.sleep(0.001)
            assert await driver.execute([calls.state(b"unknown")]) == [[[None] * 9]]


@ON_COREDIS
async def test_settings_of_the_client_are_kept(server: Server, admin: Redis, name: str) -> None:
    """The connection has the client's name, database and password, given directly or by a provider."""
    admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", "~*", "&*", "+@all")
    calls = Calls(Keys(name))
    given = coredis.credentials.UserPassCredentialProvider(name, "secret")
    try:
        for options in ({"username": name, "password": "secret"}, {"credential_provider": given}):
            async with coredis.Redis.from_url(server.url, client_name=name, **options) as client:
                async with (driver := driver_for(client)).opened():
                    await driver.execute([calls.state(b"unknown")])
                    (entry,) = [entry for entry in admin.client_list() if entry["name"] == name]
                    assert entry["user"] == name
    finally:
        admin.acl_deluser(name)

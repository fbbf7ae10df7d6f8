"""The small modules: keys, serialisers, the model's words, and the table of error codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import coredis.parser
import pytest
import redis.exceptions
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers.base import BaseParser

from torrelque import (
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueStorageError,
    TorrelqueTaskId,
    TorrelqueTaskSerialiser,
    TorrelqueTaskStatus,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
    codec,
)
from torrelque.calls import Call, Calls
from torrelque.drivers import _coredis, _redispy
from torrelque.drivers._errors import CODES, class_of_code, error_code
from torrelque.drivers._scripts import run_scripts
from torrelque.drivers._topology import Place, Topology
from torrelque.errors import fresh
from torrelque.keys import NAMES, Keys
from torrelque.model import FINAL, TRANSITIONS
from torrelque.settling import is_loss

# Keys


@pytest.mark.parametrize(
    ("queue", "cluster", "prefix"),
    [
        ("trq", False, "trq"),
        ("trq", True, "{trq}"),
        ("{trq}", True, "{trq}"),
        ("{trq}", False, "{trq}"),
        ("{a}:b", True, "{a}:b"),
        ("a:b", True, "{a:b}"),
    ],
)
def test_keys(queue: str, cluster: bool, prefix: str) -> None:
    """A cluster has a queue in one slot: its name is wrapped in braces, unless it has some."""
    keys = Keys(queue, cluster=cluster)
    assert keys.names == {name: f"{prefix}:{name}" for name in NAMES}
    assert keys.pending == f"{prefix}:pending".encode()
    assert keys.outgoing == f"{prefix}:undequeued:outgoing".encode()
    assert keys.state(b"id") == f"{prefix}:task:id".encode()
    assert keys.state_events(b"id", 3) == f"__keyspace@3__:{prefix}:task:id".encode()
    assert keys.wake == f"{prefix}:wake".encode()


# Serialisers


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_json_round_trip(value: Any) -> None:
    """What JSON can say arrives as it was, falsy values included."""
    assert codec.JSON.loads(codec.encode(codec.JSON, value, "task")) == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_every_encoding(encoding: str) -> None:
    """What another producer wrote in an encoding that the standard library's reader knows is read."""
    assert codec.JSON.loads('{"a": "é"}'.encode(encoding)) == {"a": "é"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nul", b"1 2"])
def test_no_json(body: bytes) -> None:
    """What is none is refused with the error of the standard library."""
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        codec.JSON.loads(body)


@given(st.binary())
def test_bytes_are_copied(body: bytes) -> None:
    """Bytes of any kind become bytes of our own."""
    for kind in (bytes, bytearray, memoryview):
        encoded = codec.encode(TorrelqueTaskSerialiser(kind, bytes), body, "task")
        assert type(encoded) is bytes
        assert encoded == body


@given(JSON_VALUES)
def test_anything_else_is_refused(value: Any) -> None:
    """A serialiser that returns no bytes is told so, with the parameter that it was for."""
    with pytest.raises(TorrelqueTypeError, match="result: the serialiser's dumps"):
        codec.encode(TorrelqueTaskSerialiser(lambda value: value, bytes), value, "result")


def test_json_is_what_the_published_package_writes() -> None:
    """ASCII, with the spaces of json.dumps."""
    assert codec.encode(codec.JSON, {"a": ["é", None]}, "task") == json.dumps({"a": ["é", None]}).encode()


# The model


def test_transitions_are_total() -> None:
    """Every status has its line; final ones lead nowhere, but dead letters back; each can be reached, and ends."""
    assert set(TRANSITIONS) == set(TorrelqueTaskStatus)
    back = {"requeue of a dead letter": TorrelqueTaskStatus.PENDING}
    assert TRANSITIONS[TorrelqueTaskStatus.REJECTED] == back
    for status, follow in TRANSITIONS.items():
        assert (follow in ({}, back)) == status.isfinal() == (status in FINAL)
        assert all(isinstance(after, TorrelqueTaskStatus) for after in follow.values())
    reached = {TorrelqueTaskStatus.PENDING, TorrelqueTaskStatus.DELAYED}
    for _ in TorrelqueTaskStatus:
        reached |= {after for status in reached for after in TRANSITIONS[status].values()}
    assert reached == set(TorrelqueTaskStatus)


def test_statuses_are_the_documented_numbers() -> None:
    """The stored numbers are those of the published package."""
    assert {status.name: status.value for status in TorrelqueTaskStatus} == {
        "PENDING": 0, "WORKING": 1, "DELAYED": 2, "COMPLETED": 3, "REJECTED": 4,
    }  # fmt: skip


# Leases


@pytest.mark.parametrize(
    ("settled", "gone", "not_working", "held_by_another"),
    [
        ("not", True, True, True),
        ("staged", False, None, True),
        ("sent", False, None, None),
        ("done", False, False, False),
    ],
)
def test_is_loss(settled: Any, gone: Any, not_working: Any, held_by_another: Any) -> None:
    """A refused extension is a loss but where the task was settled, and in doubt only where somebody may be at work."""
    task_id = TorrelqueTaskId("a", 1, 300)
    task_id._settled = settled
    assert is_loss(task_id, TorrelqueLookupError()) is gone
    assert is_loss(task_id, TorrelqueNotWorkingError("a")) is not_working
    assert is_loss(task_id, TorrelqueLeaseLostError("a")) is held_by_another


# Error codes

#: What servers say, as they say it: Redis 6.2, 7.x, 8.x and Valkey, alone and from within a script.
TEXTS: dict[str, type[Exception]] = {
    "OOM command not allowed when used memory > 'maxmemory'.": TorrelqueFullError,
    "OOM command not allowed when used memory > 'maxmemory'. script: 8f3c, on @user_script:36.": TorrelqueFullError,
    "ERR Error running script (call to f_8f3c): @user_script:36: @user_script: 36: -OOM command not allowed when used"
    " memory > 'maxmemory'. ": TorrelqueFullError,
    "LOADING Redis is loading the dataset in memory": TorrelqueUnavailableError,
    "LOADING Valkey is loading the dataset in memory": TorrelqueUnavailableError,
    "READONLY You can't write against a read only replica.": TorrelqueUnavailableError,
    "READONLY You can't write against a read only replica. script: 8f3c, on @user_script:5.": TorrelqueUnavailableError,
    "ERR Error running script (call to f_8f3c): @user_script:5: @user_script: 5: -READONLY You can't write against a"
    " read only replica. ": TorrelqueUnavailableError,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": TorrelqueUnavailableError,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": TorrelqueUnavailableError,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": (
        TorrelqueUnavailableError
    ),
    "MISCONF Errors writing to the AOF file: No space left on device": TorrelqueUnavailableError,
    "ERR Error running script (call to f_8f3c): @user_script:5: @user_script: 5: -MISCONF Errors writing to the AOF"
    " file: No space left on device ": TorrelqueUnavailableError,
    "NOREPLICAS Not enough good replicas to write.": TorrelqueUnavailableError,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": (
        TorrelqueUnavailableError
    ),
    "CLUSTERDOWN The cluster is down": TorrelqueUnavailableError,
    "CLUSTERDOWN Hash slot not served": TorrelqueUnavailableError,
    "TRYAGAIN Multiple keys request during rehashing of slot": TorrelqueUnavailableError,
    "MOVED 3999 127.0.0.1:6381": TorrelqueUnavailableError,
    "ASK 3999 127.0.0.1:6381": TorrelqueUnavailableError,
    "WRONGTYPE Operation against a key holding the wrong kind of value": TorrelqueStorageError,
    "WRONGTYPE Operation against a key holding the wrong kind of value script: 8f3c, on @user_script:36.": (
        TorrelqueStorageError
    ),
    "ERR Error running script (call to f_8f3c): @user_script:36: WRONGTYPE Operation against a key holding the wrong"
    " kind of value ": TorrelqueStorageError,
    "NOPERM User trq-svc has no permissions to run the 'zadd' command": TorrelqueStorageError,
    "NOPERM this user has no permissions to access one of the keys used as arguments": TorrelqueStorageError,
    "ERR Error running script (call to f_8f3c): @user_script:9: The user executing the script can't run this command or"
    " subcommand": TorrelqueStorageError,
    "ERR user_script:9: attempt to compare nil with number script: 8f3c, on @user_script:9.": TorrelqueStorageError,
    "ERR unknown command 'EVALSHA', with args beginning with: ": TorrelqueStorageError,
    "EXECABORT Transaction discarded because of previous errors.": TorrelqueStorageError,
}
PARSERS: dict[str, Any] = {
    "redis-py": BaseParser.parse_error,
    "coredis": lambda text: coredis.parser.Parser().parse_error(text),
    "as it is": Exception,
}


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=lambda value: str(value)[:40])
def test_error_codes(text: str, expected: type[Exception], parser: Any) -> None:
    """What a server says means the same, whichever client has read it."""
    assert class_of_code(error_code(parser(text))) is expected


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_missing_script(parser: Any) -> None:
    """A script that the server does not know is recognised, and sent again with its text."""
    assert error_code(parser("NOSCRIPT No matching script. Please use EVAL.")) == "NOSCRIPT"
    assert error_code(parser("NOSCRIPT No matching script.")) == "NOSCRIPT"


@pytest.mark.parametrize("host", ["redis-PROD", "cache-OOM", "no-SCRIPT"])
@pytest.mark.parametrize("driver", [_redispy, _coredis], ids=["redis-py", "coredis"])
def test_a_host_that_looks_like_a_code(driver: Any, host: str) -> None:
    """What a client says of a connection names a host, and no code of Redis, whatever that host is called."""
    lost = driver.theirs.ConnectionError(f"Error 111 connecting to {host}:6379. Connection refused.")
    with pytest.raises(TorrelqueUnknownOutcomeError) as caught:
        with driver._ERRORS.mapped(driver._ERRORS.ours[TorrelqueUnknownOutcomeError]):
            raise lost
    assert caught.value.__cause__ is lost
    loading = driver.theirs.BusyLoadingError("Redis is loading the dataset in memory")
    assert isinstance(driver._ERRORS.translate(loading, TorrelqueError), TorrelqueUnavailableError)


@pytest.mark.anyio
async def test_an_answer_stands_whatever_becomes_of_its_neighbour() -> None:
    """A connection lost between the trip by SHA-1 and that by text says nothing of calls that were answered by then."""
    lost = TorrelqueUnavailableError("connection refused")

    async def send(command: bytes, calls: Sequence[Call[Any]], place: Place | None) -> list[Any]:
        if command == b"EVAL":
            raise lost
        return [b"1", Exception("NOSCRIPT No matching script.")]

    calls = Calls(Keys("q"))
    assert await run_scripts(send, [calls.enqueue([("a", b"1")], 300, 0), calls.stats()], Topology()) == [b"1", lost]


def test_every_code_has_a_text() -> None:
    """The table is tried whole."""
    assert {code for code in CODES if any(code in text for text in TEXTS)} == set(CODES)


def test_fresh_errors() -> None:
    """A copy of an error is of the same class, with the same text and cause, and has no traceback yet."""
    for error in (TorrelqueFullError("text"), redis.exceptions.ResponseError("text"), TorrelqueTypeError("x")):
        error.__cause__ = cause = OSError()
        clone = fresh(error)
        assert clone is not error
        assert type(clone) is type(error)
        assert clone.args == error.args
        assert clone.__cause__ is cause
        assert clone.__traceback__ is None

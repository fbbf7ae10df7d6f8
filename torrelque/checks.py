"""Arguments are checked here, before any I/O: each error names the parameter, the value and the range."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode, urlsplit

from .errors import TorrelqueTypeError, TorrelqueValueError
from .model import TorrelqueDurability, TorrelqueTaskId, TorrelqueTaskStatus

S = TypeVar("S")

#: Ten years: beyond it a time is a mistake, and Redis' own arithmetic gets imprecise.
MAX_SECONDS = 315_360_000.0
#: Redis' expiries and block times are milliseconds; a shorter lease could not be told from none.
MIN_SECONDS = 0.001
#: A single ``dequeue`` takes no more than this, whatever it asks for.
MAX_TASKS = 1000
MAX_NAME_BYTES = 128
#: A higher limit on deliveries is a mistake.
MAX_ATTEMPTS = 1_000_000

#: Looking them up in their class takes as long as all the rest of a check.
_COMPLETED, _REJECTED = TorrelqueTaskStatus.COMPLETED, TorrelqueTaskStatus.REJECTED

_LENGTH = "a number of seconds, 0 or more"
_POSITIVE = f"a number of seconds, at least {MIN_SECONDS}"
_QUEUE = re.compile(r"[A-Za-z0-9_.:-]*(?:\{[A-Za-z0-9_.:-]+\})?[A-Za-z0-9_.:-]*", re.ASCII)
#: The keys of such a queue would be those of tasks of the queue whose name stands before it.
_OF_TASKS = re.compile(r":task(?::|$)")
_NEW_TASK_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
_SERVICE = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_CURSOR = re.compile(r"([0-9]{1,12}\.[0-9]{6})/([A-Za-z0-9_.~%-]+)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def shown(value: object) -> str:
    """Show a value in an error: its repr may be long, fail, or (an int of 5,000 digits) be refused by Python."""
    try:
        return f"{value!r:.160}"
    except Exception:
        return f"<{type(value).__name__}>"


def _number(parameter: str, value: object) -> float:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TorrelqueTypeError(f"{parameter} must be a number of seconds, not {type(value).__name__}: {shown(value)}")
    return value


def _seconds(parameter: str, value: object, low: float, what: str) -> float:
    if (type(value) is float or type(value) is int) and low <= value <= MAX_SECONDS:
        return float(value)
    number = _number(parameter, value)
    if not low <= number <= MAX_SECONDS:  # a NaN compares false
        raise TorrelqueValueError(f"{parameter} must be {what}, at most {MAX_SECONDS:.0f}: {shown(value)}")
    return float(number)


def positive_seconds(parameter: str, value: object) -> float:
    """Check a length that may not be nothing: a lease, an interval, a time to keep."""
    if (type(value) is int or type(value) is float) and MIN_SECONDS <= value <= MAX_SECONDS:  # nearly always so
        return float(value)
    return _seconds(parameter, value, MIN_SECONDS, _POSITIVE)


def seconds(parameter: str, value: object) -> float:
    """Check a length that may be nothing: a delay."""
    return _seconds(parameter, value, 0.0, _LENGTH)


def timeout(parameter: str, value: object) -> float | None:
    """Check how long a caller waits: ``None`` is without limit, 0 does not wait at all."""
    if value is None:
        return None
    return _seconds(parameter, value, 0.0, _LENGTH)


def count(parameter: str, value: object) -> int:
    """Check how many are asked for at once, and clamp it."""
    if type(value) is int and 0 < value <= MAX_TASKS:
        return value
    number = _whole(parameter, value)
    if number < 1:
        raise TorrelqueValueError(f"{parameter} must be 1 or more (above {MAX_TASKS} is clamped): {shown(value)}")
    return min(int(number), MAX_TASKS)


def max_bytes(value: object) -> int:
    """Check how many bytes of payloads are taken at once."""
    number = _whole("max_bytes", value)
    if number < 1:
        raise TorrelqueValueError(f"max_bytes must be 1 or more: {shown(value)}")
    return number


def max_attempts(value: object) -> int:
    """Check how often a task is delivered at most."""
    number = _whole("max_attempts", value)
    if not 1 <= number <= MAX_ATTEMPTS:
        raise TorrelqueValueError(f"max_attempts must be 1 to {MAX_ATTEMPTS}, or None for no limit: {shown(value)}")
    return number


def _whole(parameter: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TorrelqueTypeError(f"{parameter} must be an int, not {type(value).__name__}: {shown(value)}")
    return value


def flag(parameter: str, value: object) -> bool:
    """Check a choice of two."""
    if not isinstance(value, bool):
        raise TorrelqueTypeError(f"{parameter} must be True or False, not {type(value).__name__}: {shown(value)}")
    return value


def dead_letter(value: object, status: TorrelqueTaskStatus) -> bool:
    """Check whether a task that ends with *status* becomes a dead letter."""
    if value is False:
        return False
    buried = flag("dead_letter", value)
    if buried and status is not TorrelqueTaskStatus.REJECTED:
        raise TorrelqueValueError(f"dead_letter goes with the status REJECTED, not with {status.name}")
    return buried


def function(parameter: str, value: object) -> None:
    """Check what is to be called."""
    if not callable(value):
        raise TorrelqueTypeError(f"{parameter} must be callable, not {type(value).__name__}: {shown(value)}")


def serialiser(value: S) -> S:
    """Check what turns payloads and results into bytes and back."""
    if not callable(getattr(value, "dumps", None)) or not callable(getattr(value, "loads", None)):
        raise TorrelqueTypeError(f"serialiser must have dumps() and loads(): {shown(value)}")
    return value


def durability(value: object) -> TorrelqueDurability:
    """Check what it means that a write returns."""
    if not isinstance(value, TorrelqueDurability):
        raise TorrelqueTypeError(f"durability must be a TorrelqueDurability: {shown(value)}")
    return value


def cursor(value: object) -> tuple[bytes, bytes]:
    """Check where a list of dead letters goes on: behind the one of this time and id."""
    if not isinstance(value, str):
        raise TorrelqueTypeError(f"after must be a str, not {type(value).__name__}: {shown(value)}")
    parts = _CURSOR.fullmatch(value)
    if parts is None:
        raise TorrelqueValueError(f"after must be the cursor of a dead letter: {shown(value)}")
    return parts[1].encode(), unquote_to_bytes(parts[2])


def queue(value: object) -> str:
    """Check the name of a queue."""
    if not isinstance(value, str):
        raise TorrelqueTypeError(f"queue must be a str, not {type(value).__name__}: {shown(value)}")
    if not 0 < len(value) <= MAX_NAME_BYTES or not _QUEUE.fullmatch(value):
        raise TorrelqueValueError(
            f"queue must be 1 to {MAX_NAME_BYTES} characters of A-Z a-z 0-9 _ . : -"
            f" and at most one {{...}} that is not empty: {shown(value)}"
        )
    if _OF_TASKS.search(value):
        raise TorrelqueValueError(
            f"queue must have no part :task, whose keys would be those of tasks of another queue: {shown(value)}"
        )
    return value


def task_id(value: object, parameter: str = "task_id") -> bytes:
    """Check an id that names a task, and encode it; one that came from Redis names a task whatever it looks like."""
    if type(value) is TorrelqueTaskId and value._stored is not None:
        return value._stored
    if not isinstance(value, str):
        raise TorrelqueTypeError(f"{parameter} must be str, not {type(value).__name__}: {shown(value)}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not 0 < len(encoded) <= MAX_NAME_BYTES or _CONTROL.search(value):
        raise TorrelqueValueError(
            f"{parameter} must be 1 to {MAX_NAME_BYTES} bytes of UTF-8 without control characters: {shown(value)}"
        )
    return encoded


def task_ids(values: object) -> list[Any]:
    """Check ids that name tasks, whose iterator is read to its end."""
    ids = _listed(values)
    for value in ids:
        task_id(value, "task_ids")
    return ids


def encoded_task_ids(values: object) -> list[bytes] | None:
    """Check ids that name tasks, and encode them; ``None`` is none in particular."""
    return None if values is None else [task_id(value, "task_ids") for value in _listed(values)]


def _listed(values: object) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TorrelqueTypeError(f"task_ids must be an iterable of ids, not {type(values).__name__}: {shown(values)}")
    return list(values)


def new_task_id(value: object) -> str:
    """Check an id that a producer chose for a new task."""
    if not isinstance(value, str):
        raise TorrelqueTypeError(f"task_id must be a str, not {type(value).__name__}: {shown(value)}")
    if not _NEW_TASK_ID.fullmatch(value):
        raise TorrelqueValueError(f"task_id must be 1 to 128 characters of A-Z a-z 0-9 _ . -: {shown(value)}")
    return value


def final_status(value: object) -> TorrelqueTaskStatus:
    """Check the status that a release gives: COMPLETED or REJECTED."""
    if value is _COMPLETED or value is _REJECTED:
        return value
    number = value.value if isinstance(value, TorrelqueTaskStatus) else value
    error = TorrelqueValueError if isinstance(value, TorrelqueTaskStatus) else TorrelqueTypeError
    raise error(f"Invalid status for released task: {shown(number)}")


def new_task_ids(values: Sequence[str] | None, count: int) -> list[str] | None:
    """Check the ids that a producer chose for *count* new tasks."""
    if values is None:
        return None
    if not isinstance(values, Sequence):
        raise TorrelqueTypeError(f"task_ids must be a sequence of ids, not {type(values).__name__}: {shown(values)}")
    if isinstance(values, str) or len(values) != count:
        raise TorrelqueValueError(f"task_ids must be a sequence of {count} ids, one for each task")
    return [new_task_id(value) for value in values]


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL names: one server, the primary that Sentinel tells of, or a cluster."""

    kind: Literal["server", "sentinel", "cluster"]
    url: str = field(repr=False)
    """What a client can read: the server, with the first host in the place of one that is not known yet."""
    places: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the sentinels, or of nodes of the cluster."""
    service: str = ""
    """The name that Sentinel knows the primary by."""
    login: dict[str, str] = field(default_factory=dict, repr=False)
    """User and password for the sentinels."""


#: By the scheme of a URL: what it names, and the port of a host that has none.
_SEVERAL: dict[str, tuple[Literal["sentinel", "cluster"], int]] = {
    "redis+sentinel": ("sentinel", 26379),
    "rediss+sentinel": ("sentinel", 26379),
    "redis+cluster": ("cluster", 6379),
    "rediss+cluster": ("cluster", 6379),
}
_SCHEMES = "redis://, rediss:// or unix://, redis+sentinel:// or redis+cluster://"


def url(value: object) -> Target:
    """Check the URL of a server or of several; what it may hold of secrets is not repeated in an error."""
    if not isinstance(value, str):
        raise TorrelqueTypeError(f"url must be a str, not {type(value).__name__}")
    scheme, colon, rest = value.partition("://")
    if colon and scheme in _SEVERAL:
        return _several(scheme, rest)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise TorrelqueValueError("url cannot be read, or its port is not 1 to 65535") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise TorrelqueValueError(f"url must begin with {_SCHEMES}, not {parts.scheme!r:.40}")
    if parts.scheme == "unix":
        if not parts.path:
            raise TorrelqueValueError("url names no socket: write unix:///path/to/socket")
    elif not parts.hostname or port == 0:
        raise TorrelqueValueError("url must name a host, and a port of 1 to 65535 if any: redis://host:6379/0")
    elif parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        # Its text is not shown: after a password that holds a slash it would be the rest of the password.
        raise TorrelqueValueError("url must name a database by its number: redis://host:6379/0")
    return Target("server", value)


def _several(scheme: str, rest: str) -> Target:
    kind, default_port = _SEVERAL[scheme]
    address, question, query = rest.partition("?")
    netloc, _, path = address.partition("/")
    login, at, hosts = netloc.rpartition("@")
    places = tuple(_host(each, default_port) for each in hosts.split(","))
    service, _, database = path.partition("/")
    if kind == "cluster" and path.strip("/") not in {"", "0"}:
        raise TorrelqueValueError("url must not name a database: a cluster has only one: redis+cluster://host:6379")
    if kind == "sentinel" and not (_SERVICE.fullmatch(service) and re.fullmatch(r"[0-9]{0,5}", database)):
        raise TorrelqueValueError(
            "url must name the service that Sentinel knows, and a database by its number if any:"
            " redis+sentinel://host:26379,host2:26379/service/0"
        )
    if re.search(r"[\s\x00-\x1f\x7f]", rest):
        raise TorrelqueValueError("url must not hold spaces or control characters")
    given, others = _parted(query)
    first = f"[{places[0][0]}]" if ":" in places[0][0] else places[0][0]
    plain = f"{scheme.partition('+')[0]}://{login}{at}{first}:{places[0][1]}/{database if kind == 'sentinel' else ''}"
    if given and kind == "cluster":
        raise TorrelqueValueError("url has a user or a password for sentinels, but a cluster has none")
    return Target(kind, f"{plain}{question}{others}" if others else plain, places, service, given)


def _host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, default_port if parts.port is None else parts.port
    except ValueError:
        raise TorrelqueValueError("url cannot be read, or a port is not 1 to 65535") from None
    if not host or port == 0 or parts.path or parts.username is not None:
        raise TorrelqueValueError("url must name hosts, with ports of 1 to 65535 if any: host:26379,host2:26379")
    return host, port


def _parted(query: str) -> tuple[dict[str, str], str]:
    """Part what is for sentinels from what is for the server."""
    pairs = parse_qsl(query, keep_blank_values=True)
    ours = {"sentinel_username": "username", "sentinel_password": "password"}
    login = {ours[name]: text for name, text in pairs if name in ours}
    return login, urlencode([(name, text) for name, text in pairs if name not in ours])

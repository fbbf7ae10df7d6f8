"""How payloads and results become bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

from .errors import TorrelqueTypeError


class SupportsDumpsLoads(Protocol):
    """Anything with these two will do: a module such as :mod:`pickle`, a class, an instance."""

    def dumps(self, value: Any, /) -> bytes: ...

    def loads(self, body: bytes, /) -> Any: ...


class TorrelqueTaskSerialiser(NamedTuple):
    """A pair of functions that turn a payload or a result into bytes and back."""

    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


Serialiser: TypeAlias = TorrelqueTaskSerialiser | SupportsDumpsLoads


_read_json = json.JSONDecoder().raw_decode


def _dump_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _load_json(body: bytes) -> Any:
    try:
        # Finding out the encoding and looking for white space takes `json.loads` longer than a small payload itself.
        text = body.decode()
        value, end = _read_json(text)
        if end == len(text):
            return value
    except ValueError:
        pass
    return json.loads(body)  # another encoding that JSON allows, white space, or the error of the standard library


#: The default: JSON, readable by the published package and from every language.
JSON = TorrelqueTaskSerialiser(_dump_json, _load_json)


def encode(serialiser: Serialiser, value: Any, parameter: str) -> bytes:
    """Serialise *value*, insisting on bytes of our own, before anything is sent.

    :raises TorrelqueTypeError: ``dumps`` returned something else than bytes; its own errors pass through
    """
    body = serialiser.dumps(value)
    if type(body) is bytes:
        return body
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)  # a serialiser may reuse its buffer for the next call
    raise TorrelqueTypeError(f"{parameter}: the serialiser's dumps() must return bytes, not {type(body).__name__}")

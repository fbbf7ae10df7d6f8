"""A Redis in this process: the commands that the queue's scripts use, real Lua 5.1, and a clock that is told the time.

Small on purpose: what a queue does not use is not here and is refused loudly. That it answers as real servers do is
what ``test_simulated_store.py`` checks, with the same random script runs on both. (fakeredis does the same, and was
tried first: it takes ten times as long for a script, reads the time where it likes, and blocks in threads.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lupa import lua51

Notify = Callable[[bytes, bytes], None]


class CommandError(Exception):
    """What a server answers instead of a value; its text begins with a code."""


WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"

#: Commands that a server whose memory is full refuses, unless the script has written already.
GROWS = {b"LPUSH", b"RPUSH", b"LMOVE", b"HSET", b"HSETNX", b"ZADD", b"SADD"}
SHRINKS = {
    b"RPOP", b"LREM", b"HDEL", b"ZREM", b"SREM", b"DEL", b"UNLINK", b"RENAME", b"PEXPIRE", b"PERSIST",
}  # fmt: skip
WRITES = GROWS | SHRINKS


def _float(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        raise CommandError("ERR value is not a valid float") from None
    if math.isnan(number):
        raise CommandError("ERR value is not a valid float")
    return number


def _score(number: float) -> bytes:
    """Write a score as servers do."""
    if math.isinf(number):
        return b"inf" if number > 0 else b"-inf"
    return b"%d" % number if number == int(number) and abs(number) < 1e17 else f"{number:.17g}".encode()


def _slice(length: int, first: bytes, last: bytes) -> slice:
    start, stop = int(first), int(last)
    start = max(start + length, 0) if start < 0 else start
    stop = stop + length if stop < 0 else stop
    return slice(start, max(stop + 1, 0))


class Store:
    """The keys of a server.

    :param clock: tells the unix time in seconds, by the server's clock
    :param notify: is told of each change: the key and the event
    :param publish: is told of each message: channel and data; returns how many received it
    """

    def __init__(self, clock: Callable[[], float], notify: Notify, publish: Callable[[bytes, bytes], int]) -> None:
        self.clock = clock
        self.keys: dict[bytes, Any] = {}
        self.expires: dict[bytes, float] = {}
        self.full = False
        self._notify = notify
        self._publish = publish
        self._wrote = False
        self._lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
        self._chunks: dict[bytes, Any] = {}
        self._table = self._lua.table_from
        self._globals = self._lua.globals()
        tools = {b"call": self._call, b"pcall": self._pcall, b"error_reply": lambda text: self._table({b"err": text})}
        self._globals.redis = self._lua.table_from(tools)

    # Keys

    def expire(self) -> None:
        """Remove what has outlived its time."""
        if not self.expires:
            return
        now = self.clock()
        for key in [key for key, end in self.expires.items() if end <= now]:
            self._drop(key)
            self._notify(key, b"expired")

    def _drop(self, key: bytes) -> bool:
        self.expires.pop(key, None)
        return self.keys.pop(key, None) is not None

    def _get(self, key: bytes, kind: type) -> Any:
        value = self.keys.get(key)
        if value is not None and type(value) is not kind:
            raise CommandError(WRONG_TYPE)
        return value

    def _make(self, key: bytes, kind: type) -> Any:
        value = self._get(key, kind)
        if value is None:
            value = self.keys[key] = kind()
        return value

    def _shrunk(self, key: bytes, value: Any, event: bytes) -> None:
        self._notify(key, event)
        if not value:
            self._drop(key)
            self._notify(key, b"del")

    # Commands

    def execute(self, *command: bytes) -> Any:
        """Run one command."""
        name, *args = command
        method = getattr(self, f"_do_{name.decode().lower()}", None)
        if method is None:
            raise CommandError(f"ERR unknown command '{name.decode()}'")
        if name in GROWS and self.full and not self._wrote:
            raise CommandError("OOM command not allowed when used memory > 'maxmemory'.")
        if name in WRITES:
            self._wrote = True
        return method(*args)

    def once(self, *command: bytes) -> Any:
        """Run one command that stands alone, not in a script."""
        self._wrote = False
        self.expire()
        return self.execute(*command)

    def _do_time(self) -> list[bytes]:
        microseconds = round(self.clock() * 1e6)
        return [b"%d" % (microseconds // 1_000_000), b"%d" % (microseconds % 1_000_000)]

    def _do_publish(self, channel: bytes, data: bytes) -> int:
        return self._publish(channel, data)

    def _do_type(self, key: bytes) -> dict[bytes, bytes]:
        return {b"ok": _TYPES[type(self.keys.get(key))]}

    def _do_dbsize(self) -> int:
        return len(self.keys)

    def _do_scan(self, _cursor: bytes, match: bytes, pattern: bytes, *_: bytes) -> list[Any]:
        assert match == b"MATCH"
        assert pattern.endswith(b"*")
        return [b"0", [key for key in self.keys if key.startswith(pattern[:-1])]]

    def _do_exists(self, *keys: bytes) -> int:
        return sum(key in self.keys for key in keys)

    def _do_del(self, *keys: bytes) -> int:
        gone = 0
        for key in keys:
            if self._drop(key):
                gone += 1
                self._notify(key, b"del")
        return gone

    _do_unlink = _do_del

    def _do_rename(self, key: bytes, new: bytes) -> dict[bytes, bytes]:
        if key not in self.keys:
            raise CommandError("ERR no such key")
        end = self.expires.get(key)
        value = self.keys[key]
        self._drop(key)
        self._drop(new)
        self.keys[new] = value
        if end is not None:
            self.expires[new] = end
        self._notify(key, b"rename_from")
        self._notify(new, b"rename_to")
        return {b"ok": b"OK"}

    def _do_pexpire(self, key: bytes, milliseconds: bytes) -> int:
        if key not in self.keys:
            return 0
        self.expires[key] = self.clock() + int(milliseconds) / 1000
        self._notify(key, b"expire")
        return 1

    def _do_persist(self, key: bytes) -> int:
        if self.expires.pop(key, None) is None:
            return 0
        self._notify(key, b"persist")
        return 1

    def _do_pttl(self, key: bytes) -> int:
        if key not in self.keys:
            return -2
        return round((self.expires[key] - self.clock()) * 1000) if key in self.expires else -1

    # Lists

    def _do_llen(self, key: bytes) -> int:
        return len(self._get(key, list) or ())

    def _do_lpush(self, key: bytes, *values: bytes) -> int:
        items = self._make(key, list)
        items[:0] = reversed(values)
        self._notify(key, b"lpush")
        return len(items)

    def _do_rpush(self, key: bytes, *values: bytes) -> int:
        items = self._make(key, list)
        items.extend(values)
        self._notify(key, b"rpush")
        return len(items)

    def _do_rpop(self, key: bytes, count: bytes | None = None) -> Any:
        items = self._get(key, list)
        if items is None:
            return None
        wanted = 1 if count is None else int(count)
        popped = [items.pop() for _ in range(min(wanted, len(items)))]
        if popped:
            self._shrunk(key, items, b"rpop")
        return popped[0] if count is None else popped

    def _do_lrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        items = self._get(key, list) or []
        return list(items[_slice(len(items), first, last)])

    def _do_lpos(self, key: bytes, value: bytes, *options: bytes) -> int | None:
        """``RANK -1`` is the last one, ``MAXLEN`` how many are looked at."""
        items = self._get(key, list) or []
        given = dict(zip(options[::2], map(int, options[1::2]), strict=True))
        order = list(range(len(items)))
        if given.get(b"RANK", 1) < 0:
            order.reverse()
        return next((i for i in order[: given.get(b"MAXLEN")] if items[i] == value), None)

    def _do_lrem(self, key: bytes, count: bytes, value: bytes) -> int:
        items = self._get(key, list)
        if items is None:
            return 0
        limit, removed = int(count), 0
        order = range(len(items) - 1, -1, -1) if limit < 0 else range(len(items))
        found = [i for i in order if items[i] == value][: abs(limit) or None]
        for i in sorted(found, reverse=True):
            del items[i]
            removed += 1
        if removed:
            self._shrunk(key, items, b"lrem")
        return removed

    def _do_lmove(self, source: bytes, destination: bytes, _from: bytes, _to: bytes) -> bytes | None:
        assert (_from, _to) == (b"RIGHT", b"LEFT")
        items = self._get(source, list)
        self._get(destination, list)
        if not items:
            return None
        value: bytes = items.pop()
        self._make(destination, list).insert(0, value)
        self._notify(destination, b"lpush")
        self._shrunk(source, items, b"rpop")
        return value

    # Hashes

    def _do_hlen(self, key: bytes) -> int:
        return len(self._get(key, dict) or ())

    def _do_hset(self, key: bytes, *pairs: bytes) -> int:
        fields = self._make(key, dict)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        self._notify(key, b"hset")
        return len(fields) - before

    def _do_hsetnx(self, key: bytes, name: bytes, value: bytes) -> int:
        fields = self._make(key, dict)
        if name in fields:
            return 0
        fields[name] = value
        self._notify(key, b"hset")
        return 1

    def _do_hget(self, key: bytes, name: bytes) -> bytes | None:
        return (self._get(key, dict) or {}).get(name)

    def _do_hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        fields = self._get(key, dict) or {}
        return [fields.get(name) for name in names]

    def _do_hexists(self, key: bytes, name: bytes) -> int:
        return int(name in (self._get(key, dict) or ()))

    def _do_hdel(self, key: bytes, *names: bytes) -> int:
        fields = self._get(key, dict)
        if fields is None:
            return 0
        gone = sum(fields.pop(name, None) is not None for name in names)
        if gone:
            self._shrunk(key, fields, b"hdel")
        return gone

    def _do_hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in (self._get(key, dict) or {}).items() for part in pair]

    def _do_hkeys(self, key: bytes) -> list[bytes]:
        return list(self._get(key, dict) or ())

    def _do_hscan(self, key: bytes, _cursor: bytes, *options: bytes) -> list[Any]:
        return [b"0", self._do_hkeys(key) if options[-1] == b"NOVALUES" else self._do_hgetall(key)]

    # Sets

    def _do_sadd(self, key: bytes, *members: bytes) -> int:
        stored = self._make(key, set)
        before = len(stored)
        stored.update(members)
        self._notify(key, b"sadd")
        return len(stored) - before

    def _do_srem(self, key: bytes, *members: bytes) -> int:
        stored = self._get(key, set)
        if stored is None:
            return 0
        gone = len(stored.intersection(members))
        stored.difference_update(members)
        if gone:
            self._shrunk(key, stored, b"srem")
        return gone

    def _do_smembers(self, key: bytes) -> list[bytes]:
        return sorted(self._get(key, set) or ())

    # Sorted sets

    def _zset(self, key: bytes) -> ZSet:
        value: ZSet = self._get(key, ZSet) or ZSet()
        return value

    def _do_zcard(self, key: bytes) -> int:
        return len(self._zset(key))

    def _do_zadd(self, key: bytes, *pairs: bytes) -> int:
        scored = [(_float(pairs[i]), pairs[i + 1]) for i in range(0, len(pairs), 2)]
        stored = self._make(key, ZSet)
        before = len(stored)
        for score, member in scored:
            stored[member] = score
        self._notify(key, b"zadd")
        return len(stored) - before

    def _do_zrem(self, key: bytes, *members: bytes) -> int:
        stored = self._get(key, ZSet)
        if stored is None:
            return 0
        gone = sum(stored.pop(member, None) is not None for member in members)
        if gone:
            self._shrunk(key, stored, b"zrem")
        return gone

    def _do_zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = self._zset(key).get(member)
        return None if score is None else _score(score)

    def _do_zmscore(self, key: bytes, *members: bytes) -> list[bytes | None]:
        return [self._do_zscore(key, member) for member in members]

    def _do_zscan(self, key: bytes, _cursor: bytes, *_: bytes) -> list[Any]:
        return [b"0", self._do_zrange(key, b"0", b"-1", b"WITHSCORES")]

    def _do_zrank(self, key: bytes, member: bytes) -> int | None:
        members = [each for _, each in self._zset(key).ordered()]
        return members.index(member) if member in members else None

    def _do_zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        least, below = _float(low), high.removeprefix(b"(")
        assert below != high  # nobody asks for more than what is less
        return sum(least <= score < _float(below) for score in self._zset(key).values())

    def _do_zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        ordered = self._zset(key).ordered()
        found = ordered[_slice(len(ordered), first, last)]
        if options != (b"WITHSCORES",):
            return [member for _, member in found]
        return [part for score, member in found for part in (member, _score(score))]

    def _do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> list[bytes]:
        least, most = _float(low), _float(high)
        found = [member for score, member in self._zset(key).ordered() if least <= score <= most]
        if options:
            word, offset, count = options
            assert word == b"LIMIT"
            found = found[int(offset) :]
            found = found if int(count) < 0 else found[: int(count)]
        return found

    # Scripts

    def run(self, text: bytes, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run a script."""
        chunk = self._chunks.get(text)
        if chunk is None:
            chunk = self._chunks[text] = self._lua.compile(text)
        self.expire()
        self._wrote = False
        self._globals.KEYS = self._table(keys)
        self._globals.ARGV = self._table(args)
        try:
            return self._reply(chunk())
        except lua51.LuaError as error:
            raise CommandError(f"ERR Error running script: {error}") from None

    def _call(self, *parts: Any) -> Any:
        return self._to_lua(self.execute(*[_argument(part) for part in parts]))

    def _pcall(self, *parts: Any) -> Any:
        try:
            return self._call(*parts)
        except CommandError as error:
            return self._table({b"err": str(error).encode()})

    def _to_lua(self, value: Any) -> Any:
        if type(value) is list:
            return self._table([self._to_lua(item) for item in value])
        if type(value) is dict:
            return self._table(value)
        return False if value is None else value

    def _reply(self, value: Any) -> Any:
        """Turn what a script returns into an answer."""
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, int | float):
            return int(value)
        if isinstance(value, bytes):
            return value
        for name in (b"err", b"ok"):
            if (said := value[name]) is not None:
                if name == b"err":
                    raise CommandError(said.decode())
                return said
        items = []
        index = 1
        while (item := value[index]) is not None:
            items.append(self._reply(item))
            index += 1
        return items


class ZSet(dict[bytes, float]):
    """Members and their scores."""

    def ordered(self) -> list[tuple[float, bytes]]:
        """Score and member, in the order of a server."""
        return sorted((score, member) for member, score in self.items())


_TYPES = {type(None): b"none", list: b"list", dict: b"hash", set: b"set", ZSet: b"zset"}


def _argument(part: Any) -> bytes:
    """Write what a script passes to a command."""
    if type(part) is bytes:
        return part
    if isinstance(part, bool) or not isinstance(part, int | float):
        raise CommandError("ERR Lua redis lib command arguments must be strings or integers")
    return b"%d" % part if part == int(part) else f"{part:.17g}".encode()

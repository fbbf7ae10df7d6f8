"""The Lua scripts: one per operation, each headed by its contract, read once from the files beside this one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis knows it: by its text and the SHA-1 of its text, so that two releases can share a server."""

    name: str
    text: bytes = field(repr=False)
    sha1: bytes = field(repr=False)
    #: Sending it a second time changes nothing, so an answer that was lost is no harm.
    reads_only: bool = False
    #: Its answer is a promise to somebody, which may have to outlive the server.
    lasting: bool = False


def _load(*parts: str, reads_only: bool = False, lasting: bool = False) -> Script:
    """Join the parts of a script; the last one is the operation and names it."""
    folder = files(__name__)
    lines: list[str] = []
    for part in ("head", *parts):
        text = folder.joinpath(f"{part}.lua").read_text("utf-8")
        # Comments are for readers: Redis would parse and keep them, and a pipeline send them.
        lines += [line for line in text.splitlines() if line and not line.lstrip().startswith("--")]
    body = "\n".join(lines).encode()
    return Script(parts[-1], body, hashlib.sha1(body).hexdigest().encode(), reads_only, lasting)


ENQUEUE = _load("wake", "enqueue", lasting=True)
DEQUEUE = _load("wake", "promote", "dead", "bury", "dequeue")
REQUEUE = _load("wake", "settle", "requeue", lasting=True)
RELEASE = _load("settle", "dead", "bury", "release", lasting=True)
EXTEND = _load("wake", "settle", "extend", lasting=True)
HANDBACK = _load("handback")
SWEEP = _load("promote", "rebase", "sweep")
STATS = _load("stats", reads_only=True)
STATE = _load("state", reads_only=True)
DEAD_LETTERS = _load("dead", "dead_letters", reads_only=True)
COUNT_DEAD_LETTERS = _load("dead", "count_dead_letters", reads_only=True)
REQUEUE_DEAD_LETTERS = _load("dead", "requeue_dead_letters", lasting=True)
PURGE_DEAD_LETTERS = _load("dead", "purge_dead_letters", lasting=True)
SHAPE = _load("shape", reads_only=True)
WALK = _load("dead", "judge", "walk", reads_only=True)
SCAN = _load("dead", "judge", "scan", reads_only=True)
LOOK = _load("dead", "judge", "seek", "look", reads_only=True)
MEND = _load("dead", "judge", "seek", "promote", "mend", lasting=True)

ALL = (
    ENQUEUE, DEQUEUE, REQUEUE, RELEASE, EXTEND, HANDBACK, SWEEP, STATS, STATE,
    DEAD_LETTERS, COUNT_DEAD_LETTERS, REQUEUE_DEAD_LETTERS, PURGE_DEAD_LETTERS,
    SHAPE, WALK, SCAN, LOOK, MEND,
)  # fmt: skip

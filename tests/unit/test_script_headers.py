"""Each script's header is its contract: compared here with what is sent to it and with what it reads."""

from __future__ import annotations

import hashlib
import inspect
import re
from importlib.resources import files

import pytest

from torrelque import TorrelqueTaskStatus, calls, scripts
from torrelque.calls import Calls, Doubt, GivingUp
from torrelque.keys import Keys

FILES = {
    path.name.removesuffix(".lua"): path.read_text() for path in files(scripts).iterdir() if path.name.endswith(".lua")
}
OPERATIONS = {script.name: script for script in scripts.ALL}
PARTS = sorted(set(FILES) - set(OPERATIONS))


def header(name: str) -> str:
    """The comment at the top of a script, as one line for each of its parts."""
    lines = []
    for line in FILES[name].splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return re.sub(r" (KEYS|ARGV|RETURNS|ATOMIC) ", r"\n\1 ", re.sub(r"\s+", " ", " ".join(lines)))


CALLS = Calls(Keys("q"))
#: One call of each operation with two items, or with what it takes.
SENT = {
    "enqueue": CALLS.enqueue([("a", b"x"), ("b", b"y")], 300, 0),
    "dequeue": CALLS.dequeue(5, 300, [b"a", b"b"], GivingUp(3, None, b"why")),
    "requeue": CALLS.requeue("a", 0, None),
    "release": CALLS.release([("a", None)], TorrelqueTaskStatus.REJECTED, None),
    "extend": CALLS.extend("a", None, 300),
    "handback": CALLS.hand_back([(b"a", 1), (b"b", None)]),
    "sweep": CALLS.sweep(300, calls.SWEEP_ALL),
    "stats": CALLS.stats(),
    "state": CALLS.state(b"a"),
    "dead_letters": CALLS.dead_letters(9, None),
    "count_dead_letters": CALLS.count_dead_letters(),
    "requeue_dead_letters": CALLS.requeue_dead_letters([b"a", b"b"], b"", 0),
    "purge_dead_letters": CALLS.purge_dead_letters([b"a", b"b"], b"", 0),
    "shape": CALLS.shape(),
    "walk": CALLS.walk("pending", 0, 5, judge=True),
    "scan": CALLS.scan("tasks", b"0", 5),
    "look": CALLS.look([Doubt(b"a", b"ghost"), Doubt(b"b", b"orphan", b"x")]),
    "mend": CALLS.mend([Doubt(b"a", b"ghost"), Doubt(b"b", b"orphan", b"x")], 300, 60),
}
#: Operations that are told where dead letters are.
BURYING = {name for name, script in OPERATIONS.items() if b"KEYS[9]" in script.text}


@pytest.mark.parametrize("name", sorted(FILES))
def test_begins_with_its_name(name: str) -> None:
    """The first word of a header is the script's name."""
    assert header(name).startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_says_what_it_takes_and_returns(name: str) -> None:
    """An operation lists its arguments, if it has any, and its answer."""
    text = header(name)
    assert "\nRETURNS " in text
    call = SENT[name]
    assert ("\nARGV " in text) == bool(call.head or call.items)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_numbered_arguments_are_those_that_are_sent(name: str) -> None:
    """The numbers in the ARGV line are the arguments before the items."""
    match = re.search(r"\nARGV (.*)", header(name))
    numbers = [int(number) for number in re.findall(r"(?<!\S)(\d)(?= [a-z])", match.group(1))] if match else []
    assert numbers == list(range(1, len(SENT[name].head) + 1))


@pytest.mark.parametrize("name", ["enqueue", "requeue", "release", "extend", "handback"])
def test_items_are_as_long_as_said(name: str) -> None:
    """What the header lists for each task is what a call sends for each, and how far the loop steps."""
    call = SENT[name]
    each = len(call.items) // call.count
    assert len(call.items) == each * call.count
    listed = re.search(r"for each task(?:,[^:]*)?: (.*)", header(name).split("\nARGV ")[1].split("\n")[0])
    assert listed
    fields = re.sub(r"\([^)]*\)", "", listed.group(1)).split(",")
    assert len(fields) == each, fields
    assert f"for i = {len(call.head) + 1}, #ARGV, {each} do" in FILES[name]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_reads_only_the_arguments_it_is_sent(name: str) -> None:
    """ARGV[n] by a fixed number is within the head; the parts that it is joined from read none."""
    used = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", FILES[name])}
    assert used <= set(range(1, len(SENT[name].head) + 1))
    for part in PARTS:
        assert "ARGV" not in "\n".join(line for line in FILES[part].splitlines() if not line.startswith("--"))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_keys_are_those_that_are_sent(name: str) -> None:
    """Seven keys; the sweep has an eighth, and two more what has to do with dead letters; each is of the queue."""
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", FILES[name])}
    keys = SENT[name].keys
    assert len(keys) == (8 if name == "sweep" else 9 if name in BURYING else 7)
    assert used <= set(range(1, len(keys) + 1))
    assert all(key.startswith(b"q:") for key in keys)
    assert FILES["head"].count("unpack(KEYS)") == 1
    assert re.findall(r"\d (\w+) \(", header("head")) == [
        "pending", "dequeueing", "undequeued", "working", "delayed", "tasks", "task",
    ]  # fmt: skip


def test_every_operation_is_listed_and_used() -> None:
    """A file is an operation in ALL or a part of one; each operation is called by Calls, each part joined in."""
    assert set(OPERATIONS) == set(SENT)
    source = inspect.getsource(Calls)
    for name, script in OPERATIONS.items():
        assert getattr(scripts, name.upper()) is script
        assert f"scripts.{name.upper()}," in source
        assert SENT[name].script is script
    joined = inspect.getsource(scripts)
    assert all(f'"{part}"' in joined for part in PARTS)


@pytest.mark.parametrize("script", scripts.ALL, ids=lambda script: script.name)
def test_content_addressed(script: scripts.Script) -> None:
    """A script is known by the hash of what is sent, which has no comments and no user data."""
    assert script.sha1 == hashlib.sha1(script.text).hexdigest().encode()
    assert not [line for line in script.text.splitlines() if line.lstrip().startswith(b"--")]


#: What a script may unpack, onto a stack of 8,000: no list here is longer than twice the bound on the ids touched.
UNPACKED = {
    "head": {"KEYS"},
    "enqueue": {"states", "ready"},
    "dequeue": {"ids", "leases"},
    "release": {"ids", "ended", "gone"},
    "judge": {"FIELDS"},
}
#: Goes through the keys of the whole server, as nothing else tells which states there are: a bounded part at a time.
WALKS = {"scan": {"SCAN"}}


@pytest.mark.parametrize("name", sorted(FILES))
def test_lua_that_every_server_runs(name: str) -> None:
    """No unpack of what is not bounded, no globals, no commands that block or walk the whole key space."""
    code = "\n".join(line for line in FILES[name].splitlines() if not line.lstrip().startswith("--"))
    unpacked = set(re.findall(r"unpack\((\w+)\)", code))
    assert unpacked == UNPACKED.get(name, set())
    commands = set(re.findall(r"redis\.p?call\(\s*'(\w+)'", code))
    assert commands & {"KEYS", "SCAN"} == WALKS.get(name, set())
    assert not commands & {"LRANGE0", "SMEMBERS", "HGETALL", "HKEYS", "HVALS", "FLUSHALL", "CONFIG"}
    assert "#!lua" not in code
    assert "redis.error_reply" not in code

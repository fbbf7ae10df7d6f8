"""The command as people run it: a process, its two outputs and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Server, wait_until

from torrelque import Torrelque, TorrelqueTaskId, TorrelqueTaskStatus, __version__, cli

ROOT = Path(__file__).resolve().parents[2]
BOUND = 30.0
DEAD = "redis://127.0.0.1:1/0"
ALL = [
    "check",
    "dead",
    "dead list",
    "dead purge",
    "dead requeue",
    "demo",
    "enqueue",
    "state",
    "stats",
    "sweep",
    "watch",
]
COMMANDS = ["check", "dead", "demo", "enqueue", "state", "stats", "sweep", "watch"]


class Command:
    """Runs the command on a queue of the test's own."""

    def __init__(self, url: str, queue: str, admin: Any = None) -> None:
        self.url = url
        self.admin = admin
        self.queue = queue
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("TORRELQUE_")}
        self.env |= {"TORRELQUE_URL": url, "TORRELQUE_QUEUE": queue, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def start(self, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start it, with pipes for both outputs."""
        return subprocess.Popen(
            [sys.executable, "-m", "torrelque", *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "torrelque", *arguments],
            input=stdin,
            capture_output=True,
            env=self.env,
            timeout=BOUND,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def use(self, function: Callable[[Torrelque], Awaitable[Any]]) -> Any:
        """Use the same queue by the library."""

        async def main() -> Any:
            async with Torrelque.from_url(self.url, queue=self.queue) as queue:
                return await function(queue)

        return anyio.run(main)

    def take(self) -> list[Any]:
        """Dequeue all payloads, in their order."""

        async def take(queue: Torrelque) -> list[Any]:
            payloads: list[Any] = []
            while (await queue.get_queue_stats()).pending:
                payloads += [payload for _, payload in await queue.dequeue(0, max_tasks=1000)]
            return payloads

        return self.use(take)

    def dequeue(self) -> TorrelqueTaskId:
        """Take one task."""
        return self.use(lambda queue: queue.dequeue(0))[0]

    def release(self, task_id: str, **how: Any) -> None:
        """End a task."""
        self.use(lambda queue: queue.release(task_id, strict=True, **how))


@pytest.fixture
def torrelque(server: Server, name: str) -> Command:
    """The command, set up for the server by its environment."""
    return Command(server.url, name, server.admin)


@pytest.fixture
def alone() -> Command:
    """The command, set up for a server that is not there."""
    return Command(DEAD, "trq")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed command says, which must be a single line."""
    assert done.stdout == ""
    assert re.fullmatch(r"torrelque: error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


# Help and version


def test_version(alone: Command) -> None:
    """--version tells the version of the package."""
    done = alone("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], [], *([*command.split(), "--help"] for command in ALL)])
def test_help_teaches(alone: Command, arguments: list[str]) -> None:
    """The help of the command and of each of its verbs has examples and tells the exit codes."""
    done = alone(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Examples:\n  " in done.stdout
    assert "Exit codes:\n" in done.stdout
    assert "  3    Redis" in done.stdout


def test_help_names_all_commands(alone: Command) -> None:
    """The commands that are tested here are the ones that there are."""
    assert sorted(cli.cli.commands) == COMMANDS
    listed = alone("--help").stdout.partition("Commands:\n")[2]
    names = [line.split()[0] for line in listed.splitlines() if re.match(r"  [a-z]+ ", line)]
    assert names == sorted([*COMMANDS, "serve", "token"])  # those of the gRPC server have tests of their own


@pytest.mark.parametrize("module", ["click", "rich"])
def test_missing_extra(alone: Command, module: str) -> None:
    """Without its extra the command says how to get it, in a line."""
    program = f"import sys; sys.modules[{module!r}] = None; from torrelque.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], env=alone.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'torrelque[cli]'" in complaint(done)


# Errors


@pytest.mark.parametrize(
    "arguments",
    [["stats"], ["sweep"], ["sweep", "--every", "1"], ["state", "x"], ["watch", "x"], ["enqueue", "1"], ["demo"]],
    ids=" ".join,
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_dead_server(alone: Command, backend: str, arguments: list[str]) -> None:
    """When nobody serves, each command ends with 3 and tells the way out."""
    done = alone("--backend", backend, *arguments)
    assert done.returncode == 3
    said = complaint(done)
    assert DEAD in said
    assert "--url" in said
    assert "TORRELQUE_URL" in said


@pytest.mark.parametrize(
    "url",
    [
        "http://user:geheim@host",
        "redis://user:geheim@host:99999",
        "redis://user:geheim/x@host:6379/0",
        "redis://user:geheim#x@host:6379/0",
        "redis://user:geheim x@host/nonsense",
        "redis://user/geheim@host:6379/0",
        "user:geheim@host",
    ],
)
def test_bad_url_keeps_the_secret(alone: Command, url: str) -> None:
    """A URL that cannot be used is an error of usage, and no part of a password is shown."""
    done = alone("--url", url, "stats")
    assert done.returncode == 2
    assert "geheim" not in complaint(done)


@pytest.mark.parametrize(
    "arguments",
    [["--url", "", "stats"], ["demo", "--url", ""], ["--url", "", "serve"], ["serve", "--redis", ""]],
    ids=" ".join,
)
def test_an_empty_url_is_not_none(alone: Command, arguments: list[str]) -> None:
    """Whoever names a server by a variable that is not set is told so, and not given another server."""
    del alone.env["TORRELQUE_URL"]
    done = alone(*arguments)
    assert done.returncode == 2
    assert "redis://" in complaint(done)


@pytest.mark.parametrize("arguments", [["stats"], ["-v", "stats"], ["-v", "sweep"]], ids=" ".join)
def test_unreachable_url_keeps_the_secret(alone: Command, arguments: list[str]) -> None:
    """An error of the connection names the server without the password, also when asked for the traceback."""
    done = alone("--url", "redis://user:geheim@127.0.0.1:1/0?password=geheim", *arguments)
    assert done.returncode == 3
    assert "geheim" not in done.stderr
    assert "redis://127.0.0.1:1/0" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0?password=ge@heim",
        "redis+sentinel://127.0.0.1:1/jobs?sentinel_password=ge@heim",
        "redis://user:ge@heim@127.0.0.1:1/0?password=ge@heim",
        "redis://127.0.0.1:1?geheim@host",
    ],
)
@pytest.mark.parametrize("options", [[], ["-v"]], ids=str)
def test_secret_that_holds_what_parts_a_url(alone: Command, url: str, options: list[str]) -> None:
    """No part of a password is shown either that stands behind the host, and holds an @."""
    done = alone(*options, "--url", url, "stats")
    assert done.returncode == 3
    assert "heim" not in done.stderr


@pytest.mark.parametrize("url", ["redis://user:geheim@host", "redis://host/0?password=geheim", "redis://h?a=b@geheim"])
def test_url_in_the_wrong_place_keeps_the_secret(alone: Command, url: str) -> None:
    """A URL among the arguments is complained about without its password."""
    done = alone("stats", url)
    assert done.returncode == 2
    assert "geheim" not in complaint(done)


def test_server_that_refuses(torrelque: Command) -> None:
    """A server that is there and does not serve is not looked for elsewhere."""
    torrelque.admin.config_set("min-replicas-to-write", 1)
    try:
        done = torrelque("enqueue", "1")
    finally:
        torrelque.admin.config_set("min-replicas-to-write", 0)
    assert done.returncode == 3
    said = complaint(done)
    assert f"Redis at {torrelque.url} does not serve now: NOREPLICAS" in said
    assert "Start one" not in said


def test_wrong_password(torrelque: Command) -> None:
    """A server that refuses the password is a failure of Redis, and the password is not shown."""
    address = torrelque.url.replace("unix://", "unix://user:geheim@")
    done = torrelque("--url", address, "stats")
    assert done.returncode == 3
    assert "geheim" not in complaint(done)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["stats", "--nonsense"],
        ["state"],
        ["state", ""],
        ["watch", "x", "--timeout", "-1"],
        ["watch", "x", "--timeout", "nan"],
        ["sweep", "--every", "0"],
        ["--queue", "a b", "stats"],
        ["--backend", "curio", "stats"],
        ["enqueue"],
        ["enqueue", "1", "--file", "-"],
        ["enqueue", "--file", "/nonsense"],
        ["enqueue", "1", "2", "--id", "x"],
        ["enqueue", "--file", "-", "--id", "x"],
        ["enqueue", "1", "--id", "a b"],
        ["enqueue", "1", "--delay", "-1"],
        ["enqueue", "1", "--task-timeout", "0"],
        ["dead"],
        ["dead", "nonsense"],
        ["dead", "list", "--max", "0"],
        ["dead", "requeue"],
        ["dead", "requeue", "x", "--all"],
        ["dead", "requeue", ""],
        ["dead", "purge"],
        ["dead", "purge", "--all"],
        ["dead", "purge", "x", "--all", "--yes"],
        ["demo", "/nonsense"],
        ["demo", "--workers", "1"],
    ],
    ids=" ".join,
)
def test_bad_arguments(torrelque: Command, arguments: list[str]) -> None:
    """What cannot be asked for ends with 2 and a line, and changes nothing."""
    done = torrelque(*arguments)
    assert done.returncode == 2
    complaint(done)
    assert torrelque.take() == []


def test_verbose_shows_the_traceback(alone: Command) -> None:
    """With --verbose an error comes with its traceback, and the line at the end."""
    done = alone("--verbose", "stats")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("torrelque: error: Redis cannot be reached")


def test_reader_that_leaves(torrelque: Command) -> None:
    """When nobody reads the output any more, the command ends quietly."""
    with torrelque.start("enqueue", "--file", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write("1\n")
        process.stdin.close()
        assert process.wait(BOUND) == 1
        assert process.stderr.read() == "torrelque: info: 1 tasks enqueued\n", "it was"
    assert torrelque.take() == [1]


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
@pytest.mark.parametrize("arguments", ["check --grace 0", "enqueue --file -", "stats", "dead list"])
def test_outputs_that_are_closed(torrelque: Command, arguments: str, closed: str) -> None:
    """Started without one of its outputs, or both, the command does its work all the same."""
    command = f"{sys.executable} -m torrelque {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], input=b"1\n", env=torrelque.env, timeout=BOUND, check=False)
    assert done.returncode == 0
    assert torrelque.take() == ([1] if "enqueue" in arguments else [])


# stats, state, sweep


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_stats(torrelque: Command, backend: str) -> None:
    """Stats counts tasks, for people and for programs."""
    torrelque("enqueue", "1", "2", "3")
    torrelque("enqueue", "4", "--delay", "100")
    torrelque.dequeue()
    done = torrelque("--backend", backend, "stats")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["tasks", "4", "pending", "2", "working", "1", "delayed", "1", "dead_letters", "0"]
    done = torrelque("--backend", backend, "stats", "--json")
    assert json.loads(done.stdout) == {
        "tasks": 4, "pending": 2, "working": 1, "delayed": 1, "dead_letters": 0,
    }  # fmt: skip


def buried(torrelque: Command, count: int) -> list[str]:
    """Make dead letters of fresh tasks; returns their ids."""
    ids = torrelque("enqueue", *map(str, range(count))).stdout.split()
    for n in range(count):
        torrelque.release(torrelque.dequeue(), status=TorrelqueTaskStatus.REJECTED, result=f"no {n}", dead_letter=True)
    return ids


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_dead_letters_are_listed(torrelque: Command, backend: str) -> None:
    """Dead letters are shown in their order, for people and for programs, as many as are asked for."""
    ids = buried(torrelque, 3)
    done = torrelque("--backend", backend, "dead", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(letter["id"], letter["task"], letter["reason"]) for letter in found] == [
        (task_id, n, f"no {n}") for n, task_id in enumerate(ids)
    ]
    assert set(found[0]) == {
        "id", "task", "reason", "dequeue_count", "requeue_count", "enqueue_time", "last_dequeue_time",
        "last_requeue_time", "release_time",
    }  # fmt: skip
    lines = torrelque("dead", "list", "--max", "2").stdout.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf'\d{{4}}-\d\d-\d\d [\d:.]+Z  {ids[0]}  deliveries 1, reason "no 0", task 0', lines[0])
    assert json.loads(torrelque("stats", "--json").stdout)["dead_letters"] == 3


def test_dead_letter_that_cannot_be_read(torrelque: Command) -> None:
    """A payload that is no JSON is told in place of it, and hides no other."""
    ids = buried(torrelque, 2)
    torrelque.admin.hset(f"{torrelque.queue}:dead:payloads", ids[0], b"{no \x1b[31mJSON")
    done = torrelque("dead", "list", "--json")
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, first["task"], second["task"]) == (0, None, 1)
    assert ids[0] in first["task_error"]
    lines = torrelque("dead", "list").stdout
    assert len(lines.splitlines()) == 2
    assert "\x1b" not in lines


def test_dead_letters_are_requeued_and_purged(torrelque: Command) -> None:
    """Some by their ids, or all; ids that are no dead letters are told by the exit code."""
    ids = buried(torrelque, 5)
    done = torrelque("dead", "requeue", ids[0])
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["requeued", "1"], "")
    done = torrelque("dead", "requeue", ids[0], ids[1], ids[1])
    assert (done.returncode, done.stdout.split(), done.stderr) == (1, ["requeued", "1"], "")
    done = torrelque("dead", "purge", ids[2])
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["purged", "1"], "")
    assert torrelque("dead", "requeue", "--all").stdout.split() == ["requeued", "2"]
    assert torrelque.take() == [0, 1, 3, 4]
    buried(torrelque, 2)
    assert torrelque("dead", "purge", "--all", "--yes").stdout.split() == ["purged", "2"]
    done = torrelque("dead", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_state(torrelque: Command, backend: str) -> None:
    """State shows a task, for people and for programs."""
    task_id = torrelque("enqueue", "1", "--task-timeout", "7").stdout.strip()
    found = json.loads(torrelque("--backend", backend, "state", task_id, "--json").stdout)
    assert (found["id"], found["status"], found["timeout"], found["result"]) == (task_id, "pending", 7.0, None)
    torrelque.release(torrelque.dequeue(), result={"made": "é"})
    done = torrelque("--backend", backend, "state", task_id)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["status"] == "completed"
    assert json.loads(lines["result"]) == {"made": "é"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z", lines["release_time"])


@pytest.mark.parametrize("time", ["1e300", "1e12"])
def test_times_that_are_none(torrelque: Command, time: str) -> None:
    """A time that no calendar has, as a foreign hand may have stored it, is shown as the number that it is."""
    (buried_id,) = buried(torrelque, 1)
    torrelque("enqueue", "1", "--id", "x")
    torrelque.admin.hset(f"{torrelque.queue}:task:x", "enqueue_time", time)
    torrelque.admin.zadd(f"{torrelque.queue}:dead", {buried_id: time})
    for arguments in (["state", "x"], ["watch", "x", "--timeout", "0.05"], ["dead", "list", "--max", "1"]):
        done = torrelque(*arguments)
        assert done.returncode == (arguments[0] == "watch")
        assert str(float(time)) in done.stdout


@pytest.mark.parametrize("command", ["state", "watch"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_unknown_task(torrelque: Command, backend: str, command: str) -> None:
    """A task that nobody knows is told so, and the exit code is 1."""
    done = torrelque("--backend", backend, command, "nobody")
    assert done.returncode == 1
    assert "nobody" in complaint(done)


def test_sweep_once(torrelque: Command) -> None:
    """Sweep gives back what has ended, and tells how much."""
    torrelque("enqueue", "1", "--task-timeout", "0.001")
    torrelque.dequeue()
    done = torrelque("sweep")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["stale", "1", "due", "0", "undequeued", "0"]
    assert json.loads(torrelque("stats", "--json").stdout)["pending"] == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sweep_until_a_signal(torrelque: Command, number: signal.Signals, backend: str) -> None:
    """Sweep --every gives back a task whenever its lease ends, until a signal, which is its good end."""
    task_id = torrelque("enqueue", "1", "--task-timeout", "0.2").stdout.strip()
    with torrelque.start("--backend", backend, "sweep", "--every", "60") as process:
        assert process.stdout
        assert process.stdout.readline().split() == ["stale", "0"]
        torrelque.dequeue()

        async def returned(queue: Torrelque) -> int:
            async for found in queue.watch(task_id, timeout=BOUND):
                if found.requeue_count:
                    return found.requeue_count
            raise AssertionError("the task is gone")

        assert torrelque.use(returned) == 1
        process.send_signal(number)
        _, said = process.communicate(timeout=BOUND)
    assert (process.returncode, said) == (0, "")


# check


def test_check(torrelque: Command, admin: Redis) -> None:
    """What is wrong is a line each, and the exit code 1; with --repair it is put right, and the code 0."""
    torrelque("enqueue", "1", "--id", "t")
    assert torrelque("check", "--grace", "0").stdout.split() == ["looked_at", "3", "findings", "0", "left", "0"]
    admin.delete(f"{torrelque.queue}:pending")
    admin.rpush(f"{torrelque.queue}:pending", "\x1b[2J")
    done = torrelque("check", "--grace", "0")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert all(re.match(r"torrelque: (warning|note): .+ Way out: .+", line) for line in said)
    assert any("appendfsync is no" in line for line in said)
    lines = done.stdout.splitlines()
    assert sorted(line.split() for line in lines[:2]) == [
        ["ghost", "left", '"\\u001b[2J"'],
        ["orphan", "left", '"t"'],
    ]
    assert lines[-1].split() == ["left", "2"]
    done = torrelque("check", "--repair", "--grace", "0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert "append-only" in {finding["name"] for finding in report["server"]["findings"]}
    assert sorted(finding["damage"] for finding in report["findings"]) == ["ghost", "orphan"]
    assert all(finding["repaired"] for finding in report["findings"])
    assert torrelque("check", "--grace", "0").returncode == 0
    assert torrelque.take() == [1]


def test_check_of_nonsense(torrelque: Command) -> None:
    """A grace that is none is a mistake of the user."""
    done = torrelque("check", "--grace", "nan")
    assert done.returncode == 2
    assert "--grace" in complaint(done)


# watch


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("how", "last", "code"),
    [
        ({"result": [1]}, "completed", 0),
        ({"result": "why", "status": TorrelqueTaskStatus.REJECTED}, "rejected", 1),
        ({}, "released", 0),
        ({"status": TorrelqueTaskStatus.REJECTED}, "released", 0),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_watch(torrelque: Command, backend: str, how: dict[str, Any], last: str, code: int, as_json: bool) -> None:
    """Watch prints a line for each change, ends with the task, and tells by its exit code how."""
    task_id = torrelque("enqueue", "1").stdout.strip()
    options = ["--json"] if as_json else []
    with torrelque.start("--backend", backend, "watch", task_id, "--timeout", "20", *options) as process:
        assert process.stdout
        lines = [process.stdout.readline()]
        delivered = torrelque.dequeue()
        lines.append(process.stdout.readline())
        torrelque.release(delivered, **how)
        rest, said = process.communicate(timeout=BOUND)
    lines += rest.splitlines()
    assert (process.returncode, said) == (code, "")
    if as_json:
        found = [json.loads(line) for line in lines]
        assert [line["status"] for line in found] == ["pending", "working", last]
        assert found[-1].get("result") == how.get("result")
    else:
        assert [re.findall("pending|working|completed|rejected|released", line) for line in lines] == [
            ["pending"],
            ["working"],
            [last],
        ]
        assert "result" not in how or f"result {json.dumps(how['result'])}" in lines[-1]


def test_watch_in_time(torrelque: Command) -> None:
    """A task that does not end in time is told so, and the exit code is 1."""
    task_id = torrelque("enqueue", "1").stdout.strip()
    done = torrelque("watch", task_id, "--timeout", "0.05")
    assert done.returncode == 1
    assert "pending" in done.stdout
    assert re.fullmatch(r"torrelque: error: .*in time\n", done.stderr)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_watch_interrupted(torrelque: Command, backend: str, number: signal.Signals, code: int) -> None:
    """A signal ends a command at once and quietly, with the usual exit code."""
    task_id = torrelque("enqueue", "1").stdout.strip()
    with torrelque.start("--backend", backend, "watch", task_id) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        rest, said = process.communicate(timeout=BOUND)
    assert (process.returncode, rest, said) == (code, "", "")


# enqueue


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_enqueue_arguments(torrelque: Command, backend: str) -> None:
    """Each argument becomes a task, and its id a line."""
    done = torrelque("--backend", backend, "enqueue", '{"a": [1.5, null]}', '"é"', "--", "-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(done.stdout.splitlines())) == 3
    assert torrelque.take() == [{"a": [1.5, None]}, "é", -1]


def test_enqueue_terms(torrelque: Command) -> None:
    """The id, the delay and the lease are as asked for; the same id again changes nothing."""
    for _ in range(2):
        done = torrelque("enqueue", "1", "--id", "mine", "--delay", "60", "--task-timeout", "5")
        assert (done.returncode, done.stdout) == (0, "mine\n")
    found = json.loads(torrelque("state", "mine", "--json").stdout)
    assert (found["status"], found["timeout"]) == ("delayed", 5.0)
    assert json.loads(torrelque("stats", "--json").stdout)["tasks"] == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "not JSON"),
        ("NaN", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("1e999", "too large"),
        ("'a'", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\udcff", "UTF-8"),
    ],
    ids=["open", "nan", "infinity", "overflow", "quotes", "empty", "deep", "bytes"],
)
def test_enqueue_bad_argument(torrelque: Command, bad: str, why: str) -> None:
    """An argument that is not strict JSON is named, and nothing is enqueued, not even the good ones."""
    done = torrelque("enqueue", "1", bad, "2")
    assert done.returncode == 2
    said = complaint(done)
    assert "argument 2" in said
    assert why in said
    assert torrelque.take() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("source", ["file", "stdin", "fifo"])
def test_enqueue_lines(torrelque: Command, tmp_path: Path, source: str, backend: str) -> None:
    """A file, a pipe and standard input become tasks, line by line and in order, in several portions."""
    lines = "".join(f'{{"n": {n}}}\n' + "\r\n" * (n % 7 == 0) for n in range(1200))[:-1].encode()
    path = tmp_path / "tasks"
    stdin = b""
    if source == "file":
        path.write_bytes(lines)
    elif source == "fifo":
        os.mkfifo(path)
        stdin = lines
    if source == "fifo":
        with torrelque.start("--backend", backend, "enqueue", "--file", str(path)) as process:
            path.write_bytes(stdin)
            output, said = process.communicate(timeout=BOUND)
        code = process.returncode
    else:
        name = "-" if source == "stdin" else str(path)
        done = torrelque("--backend", backend, "enqueue", "--file", name, stdin=lines)
        code, output, said = done.returncode, done.stdout, done.stderr
    assert (code, said) == (0, "torrelque: info: 1200 tasks enqueued\n")
    assert len(set(output.splitlines())) == 1200
    assert torrelque.take() == [{"n": n} for n in range(1200)]


def test_enqueue_does_not_wait_for_the_end(torrelque: Command) -> None:
    """What comes over a pipe is enqueued when it has come, and a signal ends the wait for more."""
    with torrelque.start("enqueue", "--file", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("1\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()
        assert torrelque.take() == [1]
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 130


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_enqueue_that_is_interrupted(torrelque: Command, backend: str) -> None:
    """What was on its way when a signal came may be enqueued: it is told how much that is."""

    def on_its_way() -> bool:
        return any(client["cmd"] in {"eval", "evalsha"} for client in torrelque.admin.client_list())

    torrelque.admin.client_pause(1000 * int(BOUND), all=False)
    with torrelque.start("--backend", backend, "enqueue", "--file", "-", stdin=subprocess.PIPE) as process:
        try:
            assert process.stdin
            process.stdin.write("1\n2\n")
            process.stdin.flush()
            wait_until(on_its_way, BOUND)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=BOUND)
        finally:
            torrelque.admin.client_unpause()
    assert process.returncode == 130
    assert said.splitlines()[0] == "torrelque: info: 0 tasks, and perhaps up to 2 more, enqueued"


def test_enqueue_bad_file(torrelque: Command, tmp_path: Path) -> None:
    """A bad line at the end of a file is named, and nothing is enqueued."""
    path = tmp_path / "tasks"
    path.write_bytes(b"1\n\n" * 600 + b"[1,\n")
    done = torrelque("enqueue", "--file", str(path))
    assert done.returncode == 2
    assert "line 1201 is not JSON" in complaint(done)
    assert torrelque.take() == []


def test_enqueue_bad_utf8(torrelque: Command, tmp_path: Path) -> None:
    """A file must be UTF-8."""
    path = tmp_path / "tasks"
    path.write_bytes(b'1\n"\xe9"\n')
    done = torrelque("enqueue", "--file", str(path))
    assert done.returncode == 2
    assert "line 2 is not UTF-8" in complaint(done)


def test_enqueue_bad_stdin(torrelque: Command) -> None:
    """A bad line of standard input is named, with the number of tasks that were enqueued before it."""
    done = torrelque("enqueue", "--file", "-", stdin=b"1\n" * 1100 + b"no\n")
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert "line 1101 is not JSON" in last
    before = int(re.findall(r"(\d+) tasks were enqueued before", last)[0])
    assert before == len(done.stdout.splitlines()) == len(torrelque.take())
    assert before % 500 == 0

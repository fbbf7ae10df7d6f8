"""Several processes on one port: all serve, who dies is replaced, and all end with their supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.bridge import DEADLINE, Process, connect, refused, seconds, serving
from support.streams import consuming, release, until

from grpc_server._pb import torrelque_pb2 as pb


def workers(process: Process) -> list[int]:
    """Find the processes of the workers in the log."""
    return [int(each) for each in re.findall(r"Worker \d serves, process (\d+)", process.log())]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def instances(address: str, queue: str) -> set[str]:
    """Ask on many connections which processes answer."""
    found: set[str] = set()
    for _ in range(24):
        with connect(address, queue) as client:
            said = client.admin.ScheduleSweep(pb.ScheduleSweepRequest(queue=queue), timeout=10)
            found.add(said.server_instance_id)
    return found


def test_called_by_hand() -> None:
    """Who calls what a supervisor starts is told what to call, and does not wait for settings that nobody sends."""
    command = [sys.executable, "-m", "grpc_server", "--help"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("torrelque: error: ")
    assert "run `torrelque serve`" in done.stderr


def test_all_serve(storage: str, queue: str) -> None:
    """Connections are spread over the workers, and one that was killed is replaced while the other serves on."""
    with serving("--redis", storage, "--workers", "2") as process:
        assert len(instances(process.address, queue)) == 2
        first, second = workers(process)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(workers(process)) == 3)
        assert len(instances(process.address, queue)) == 2
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        for pid in (first, second, workers(process)[-1]):
            until(lambda pid=pid: not alive(pid))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_that_others_share(storage: str, queue: str, host: str) -> None:
    """Workers take no connections from those of another server: that the port is in use is told as with one process."""
    with serving("--redis", storage, "--workers", "2", address=f"{host}:0") as process:
        told: list[tuple[int, str, str]] = []
        for count in ("1", "2"):
            command = [sys.executable, "-m", "torrelque", "serve", "--redis", storage, "--workers", count, "--listen"]
            done = subprocess.run([*command, process.address], capture_output=True, text=True, timeout=DEADLINE)
            told.append((done.returncode, done.stdout, done.stderr))
        assert told[0] == told[1]
        code, printed, text = told[0]
        assert (code, printed) == (2, "")
        assert f"listen: cannot listen on {process.address}: Address already in use" in text
        os.kill(workers(process)[0], signal.SIGKILL)  # whose replacement shares it with the one that is left
        until(lambda: len(workers(process)) == 3)
        assert len(instances(process.address, queue)) == 2


#: Python runs it at the start of each process: a worker kills itself where it finds a file to remove beside it.
SHORT_LIFE = """
import contextlib, os, signal, sys
if sys.orig_argv[-1] == "grpc_server":
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(os.path.dirname(__file__), "doomed"))
        os.kill(os.getpid(), signal.SIGKILL)
"""


def doom(folder: Path) -> None:
    """Let one worker die at once, the next that starts with ``PYTHONPATH`` naming the folder."""
    (folder / "sitecustomize.py").write_text(SHORT_LIFE)
    (folder / "doomed").touch()


def test_one_that_dies_before_it_was_ready(storage: str, queue: str, tmp_path: Path) -> None:
    """Its replacement counts as it would have: the others are started, and all serve."""
    doom(tmp_path)
    environment = {"PYTHONPATH": str(tmp_path)}
    with serving("--redis", storage, "--workers", "2", environment=environment) as process:
        assert process.log().count("Worker 0 has ended with -9") == 1
        assert len(workers(process)) == len(instances(process.address, queue)) == 2


def test_a_replacement_that_cannot_be_started(storage: str, queue: str) -> None:
    """While no process can be started the other workers serve on, and it is tried again until there is one."""
    with serving("--redis", storage, "--workers", "2") as process:
        first, second = workers(process)
        with process.starved():
            os.kill(first, signal.SIGKILL)
            until(lambda: process.log().count("Worker 0 could not be started") >= 2)
            assert len(instances(process.address, queue)) == 1
            assert alive(second)
        until(lambda: len(workers(process)) == 3)
        assert len(instances(process.address, queue)) == 2
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_replacement_that_reads_nothing(storage: str, queue: str, tmp_path: Path) -> None:
    """One that dies amid its settings, which are more than fits on their way to it, is replaced like any other."""
    globs = [f"{n:0>127}*" for n in range(4000)]
    config = tmp_path / "config.toml"
    config.write_text(f"queue = {json.dumps(['*', *globs])}")
    environment = {"PYTHONPATH": str(tmp_path)}
    options = ("--redis", storage, "--workers", "2", "--config", str(config))
    with serving(*options, environment=environment) as process:
        doom(tmp_path)
        os.kill(workers(process)[0], signal.SIGKILL)
        until(lambda: len(workers(process)) == 3)
        assert process.log().count("Worker 0 has ended with -9") == 2
        assert len(instances(process.address, queue)) == 2
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_they_end_with_their_supervisor(storage: str) -> None:
    """When the supervisor is killed its workers drain and end."""
    with serving("--redis", storage, "--workers", "2") as process:
        until(lambda: len(workers(process)) == 2)
        pids = workers(process)
        process.signal(signal.SIGKILL)
        process.wait()
        for pid in pids:
            until(lambda pid=pid: not alive(pid))


def test_stopped_all_together(storage: str) -> None:
    """Who stops the whole group of processes stops the workers twice, and they drain all the same."""
    with serving("--redis", storage, "--workers", "2", "--grace", "5") as process:
        until(lambda: len(workers(process)) == 2)
        for pid in (*workers(process), process.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert process.wait() == 0


def test_metrics(storage: str, queue: str) -> None:
    """Prometheus finds what was counted, by rpc and code, and what is out on streams now; no queue is named."""
    options = ("--redis", storage, "--metrics", "127.0.0.1:0", "--max-attempts", "1")
    with serving(*options) as process, connect(process.address, queue) as client:
        until(lambda: "metrics on port" in process.log())
        found = re.search(r"metrics on port (\d+)", process.log())
        assert found

        def scraped() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        with refused("NOT_FOUND/TASK_NOT_FOUND"):
            client.state("nobody")
        client.enqueue(b"1")
        with consuming(client) as stream:
            stream.opened()
            (task,) = stream.tasks(1)
            assert "torrelque_outstanding_tasks 1.0" in scraped()
            stream.settle(release(task))
            assert "torrelque_outstanding_tasks 0.0" in scraped()
        until(lambda: 'code="NOT_FOUND"' in scraped())  # counted after the answer has gone out
        text = scraped()
        assert 'torrelque_rpcs_total{code="OK",rpc="Enqueue"} 1.0' in text
        assert 'torrelque_rpcs_total{code="NOT_FOUND",rpc="GetTaskState"} 1.0' in text
        assert "torrelque_storage_up 1.0" in text
        assert "torrelque_given_up_tasks_total 0.0" in text
        client.enqueue(task_timeout=seconds(0.001))
        assert [len(client.dequeue(wait=wait)) for wait in (5, 0.1)] == [1, 0]
        assert "torrelque_given_up_tasks_total 1.0" in scraped()
        assert queue not in text

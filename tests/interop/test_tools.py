"""The tools that people reach for: grpcurl, by the proto file and by reflection, and ghz."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.bridge import ROOT, Client, Process, serving

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

BIN = ROOT / ".venv" / "go" / "bin"
SERVICE = "torrelque.v1.TorrelqueService"
PROTO = ("-import-path", "proto", "-proto", "torrelque/v1/torrelque.proto")


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool that `make clients` has installed."""
    path = BIN / name
    assert path.exists(), f"{path} is missing: run `make clients`"
    return subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("source", [PROTO, ()], ids=["proto file", "reflection"])
def test_grpcurl(bridge: Process, client: Client, source: tuple[str, ...]) -> None:
    """A task goes its way by hand; bytes are base64 there, and the exit status tells the code."""

    def call(method: str, request: object) -> subprocess.CompletedProcess[str]:
        data = json.dumps(request)
        return tool("grpcurl", "-plaintext", *source, "-d", data, bridge.address, f"{SERVICE}/{method}")

    def said(ended: subprocess.CompletedProcess[str]) -> Any:
        # By reflection the names of fields are those of the proto file.
        return json.loads(ended.stdout.replace("task_id", "taskId"))

    task = {"payload": {"data": base64.b64encode(b"{}").decode()}, "requestId": "by-hand"}
    assert said(call("Enqueue", {"queue": client.queue, "task": task})) == {"taskId": "by-hand"}
    taken = said(call("Dequeue", {"queue": client.queue, "timeout": "1s"}))
    assert taken["tasks"][0]["taskId"] == "by-hand"
    refused = call("Release", {"queue": client.queue, "taskId": "nobody"})
    assert refused.returncode == 64 + 5
    assert "there is no such task" in refused.stderr  # the details are bytes to grpcurl
    assert said(call("Release", {"queue": client.queue, "taskId": "by-hand"})) == {}


def test_reflection_lists(bridge: Process) -> None:
    """Reflection names the services, on loopback by default."""
    said = tool("grpcurl", "-plaintext", bridge.address, "list").stdout.split()
    assert {SERVICE, "torrelque.v1.TorrelqueAdminService", "grpc.health.v1.Health"} <= set(said)


def test_no_reflection(storage: str) -> None:
    """Switched off, it tells nothing."""
    with serving("--redis", storage, "--no-reflection") as process:
        said = tool("grpcurl", "-plaintext", process.address, "list")
        assert said.returncode != 0
        assert "reflection" in said.stderr


def test_the_line_that_the_server_prints(bridge: Process) -> None:
    """The grpcurl line of the start works as it stands."""
    (line,) = [line for line in bridge.lines if line.startswith("try: ")]
    shell = ["sh", "-c", line.removeprefix("try: ").strip()]
    environment = {"PATH": f"{BIN}:/usr/bin:/bin"}
    ended = subprocess.run(shell, capture_output=True, text=True, timeout=60, env=environment)
    assert "task_id" in ended.stdout, ended.stderr


def test_ghz(bridge: Process, client: Client, tmp_path: Path) -> None:
    """A load of 2,000 calls ends with OK in each case, and every one is a task."""
    data = json.dumps({"queue": client.queue, "task": {"payload": {"data": "e30="}, "requestId": "{{.UUID}}"}})
    ended = tool(
        "ghz", "--insecure", "--import-paths", "proto", "--proto", "proto/torrelque/v1/torrelque.proto",
        "--call", f"{SERVICE}/Enqueue", "-n", "2000", "-c", "32", "--connections", "2", "--cpus", "1", "-O", "json",
        "-d", data, bridge.address,
    )  # fmt: skip
    report = json.loads(ended.stdout)
    assert report["statusCodeDistribution"] == {"OK": 2000}
    assert client.stats().pending == 2000

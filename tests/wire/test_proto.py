"""The wire: its proto file is tidy, breaks nobody who uses the last release, and is what the server speaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.bridge import ROOT

from grpc_server import convert
from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.rpcs import TABLE
from torrelque import TorrelqueTaskStatus

HERE = Path(__file__).parent
BUF = HERE / "node_modules" / ".bin" / "buf"
STUBS = ROOT / ".venv" / "stubs" / "bin" / "python"


@pytest.mark.interop
@pytest.mark.parametrize(
    "arguments",
    [
        ("lint", "proto"),
        ("format", "--diff", "--exit-code", "proto"),
        ("breaking", "proto", "--against", "tests/wire/released"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_proto(arguments: tuple[str, ...]) -> None:
    """buf finds nothing: STANDARD lint, its own format, no change that breaks clients of the last release."""
    assert BUF.exists(), "`make test` installs buf with npm: install Node.js 20 or later"
    ended = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_stubs_are_fresh(tmp_path: Path) -> None:
    """The generated modules are what the oldest supported tools make of the proto file, byte for byte."""
    assert STUBS.exists(), "`make test` makes the virtual environment of the generator"
    command = ["-m", "grpc_tools.protoc", "-Igrpc_server/_pb=proto/torrelque/v1"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([STUBS, *command, "grpc_server/_pb/torrelque.proto"], cwd=ROOT, check=True, timeout=60)
    made = tmp_path / "grpc_server" / "_pb"
    names = {"torrelque_pb2.py", "torrelque_pb2.pyi", "torrelque_pb2_grpc.py"}
    assert {path.name for path in made.iterdir()} == names
    for path in made.iterdir():
        assert path.read_text() == (ROOT / "grpc_server" / "_pb" / path.name).read_text(), "run `make stubs`"


def test_stubs_import_nothing_of_the_wire_name() -> None:
    """The stubs live under the server's package: a package `torrelque.v1` would collide with the library."""
    code = "import grpc_server._pb.torrelque_pb2, sys; print([m for m in sys.modules if m.startswith('torrelque.')])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "torrelque.v1" not in ended.stdout


def test_every_rpc_has_a_row() -> None:
    """The table of rpcs names each rpc of the proto file, and no other."""
    rpcs = [method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
    assert sorted(TABLE) == sorted(rpcs)


def test_statuses() -> None:
    """On the wire a status is one more than in Python, both ways, and no number is left over."""
    numbers = {status: convert.status_of(status) for status in TorrelqueTaskStatus}
    assert numbers == {status: status + 1 for status in TorrelqueTaskStatus}
    assert sorted({0, *numbers.values()}) == sorted(pb.TaskStatus.values())
    for status, number in numbers.items():
        assert pb.TaskStatus.Name(number) == f"TASK_STATUS_{status.name}"

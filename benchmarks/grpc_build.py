"""Builds the client that is ours, ``go-load``, into the virtual environment, where ``make`` has put ghz."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
_SOURCE = _HERE / "go-load"
_MODULE = "github.com/torrelque/torrelque/benchmarks/go-load"
_PROTO = "torrelque/v1/torrelque.proto"
#: A Python that has grpcio-tools, which does not belong into the environment that is measured.
_STUBS = _ROOT / ".venv/stubs/bin/python"
_PLUGINS = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")


class BuildError(Exception):
    """A client cannot be built; the text is one line that says what is missing."""


@dataclass(frozen=True)
class Clients:
    """The programs that make load."""

    load: Path
    ghz: Path | None
    """Not there, its rows are left out."""
    go: str
    """The version of Go."""


def build() -> Clients:
    """Build what has changed.

    :raises BuildError: something is missing
    """
    if shutil.which("go") is None:
        raise BuildError("go is not on the PATH: the clients of this benchmark are written in Go (1.26 or later)")
    programs = _ROOT / ".venv/go/bin"
    _run(["go", "install", *_PLUGINS], cwd=_SOURCE, GOBIN=str(programs))
    command = [*_protoc(), f"-I{_ROOT / 'proto'}"]
    for name in "go", "go-grpc":
        # M gives the package a place within this module.
        command += [f"--{name}_out=.", f"--{name}_opt=module={_MODULE},M{_PROTO}={_MODULE}/gen/torrelque/v1"]
    _run([*command, _PROTO], cwd=_SOURCE, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    _run(["go", "build", "-trimpath", "-o", str(programs / "go-load"), "."], cwd=_SOURCE)
    ghz = programs / "ghz"
    return Clients(programs / "go-load", ghz if ghz.exists() else None, _run(["go", "env", "GOVERSION"]).strip())


def _protoc() -> list[str]:
    if _STUBS.exists():
        return [str(_STUBS), "-m", "grpc_tools.protoc"]
    if importlib.util.find_spec("grpc_tools"):
        return [sys.executable, "-m", "grpc_tools.protoc"]
    if shutil.which("protoc"):
        return ["protoc"]
    raise BuildError("there is no protoc: install grpcio-tools, or protoc itself")


def _run(command: list[str], *, cwd: Path | None = None, **environment: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from None
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BuildError(f"{' '.join(map(str, command[:3]))} failed: {last}")
    return done.stdout

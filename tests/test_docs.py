"""Every code block of the documents runs, every link leads somewhere, and the drawn tables are the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import Server

from torrelque.model import TRANSITIONS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
URL = "redis://localhost:6379/0"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

Block = tuple[str, str, str]


def blocks(language: str) -> list[Block]:
    """The blocks of one language: document, line, code."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == language:
                line = text[: match.start()].count("\n") + 2
                found.append((path.relative_to(ROOT).as_posix(), str(line), match[2]))
    return found


def ids(block: Block) -> str:
    """Name a block by where it stands."""
    return f"{block[0]}:{block[1]}"


def run(command: list[str], server: Server, name: str) -> None:
    """Run a block in a process of its own, its warnings as errors."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TORRELQUE_URL": server.url,
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("block", blocks("python"), ids=ids)
def test_python_blocks_run(block: Block, server: Server) -> None:
    """A Python block is a whole program that ends well."""
    server.admin.flushdb()
    run([sys.executable, "-c", block[2].replace(URL, server.url)], server, ids(block))


@pytest.mark.parametrize("block", blocks("sh"), ids=ids)
def test_shell_blocks_run(block: Block, server: Server) -> None:
    """A shell block runs; of make, that the target exists; installing from a registry is left out."""
    for line in block[2].splitlines():
        if line.startswith("make "):
            run(["make", "--dry-run", "--directory", str(ROOT), *line.split("#")[0].split()[1:]], server, line)
        elif not line.startswith("pip "):
            run(["sh", "-ec", line], server, line)


def test_no_other_languages() -> None:
    """A block is Python, shell, or plain text marked as such: nothing escapes the tests."""
    for path in DOCUMENTS:
        for match in BLOCK.finditer(path.read_text("utf-8")):
            assert match[1] in {"python", "sh", "text"}, f"{path.name}: {match[0][:60]}"


def test_links_lead_somewhere() -> None:
    """A relative link names a file that is there."""
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_states_are_drawn_as_they_are() -> None:
    """The table in docs/states.md is TRANSITIONS."""
    rows = re.findall(r"^\| ([A-Z]+) \| ([a-z ]+) \| ([A-Z]+) \|$", (ROOT / "docs/states.md").read_text(), re.MULTILINE)
    table = [(status.name, by, then.name) for status, ways in TRANSITIONS.items() for by, then in ways.items()]
    assert rows == [row for row in rows if row in table]
    assert sorted(rows) == sorted(table)

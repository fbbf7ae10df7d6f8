"""Every code block of the documents runs and prints what they say, every link leads somewhere, and what is drawn or
generated is what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support import Server

from torrelque.model import TRANSITIONS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
URL = "redis://localhost:6379/0"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


class Block(NamedTuple):
    """A code block, and the words that introduce it."""

    document: str
    line: int
    language: str
    code: str
    before: str

    @property
    def file(self) -> str | None:
        """What the block is saved as, if the reader is told: "Save this as `app.py`:"."""
        named = re.search(r"Save this\s+as\s+`(\w+\.py)`:$", self.before)
        return named[1] if named else None

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.before.endswith("prints:")


def read(path: Path) -> list[Block]:
    """The blocks of a document in their order."""
    text = path.read_text("utf-8")
    found, end = [], 0
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 2
        name = path.relative_to(ROOT).as_posix()
        found.append(Block(name, line, match[1], match[2], text[end : match.start()].rstrip()))
        end = match.end()
    return found


PAGES = {path.relative_to(ROOT).as_posix(): read(path) for path in DOCUMENTS}
BLOCKS = [block for page in PAGES.values() for block in page]
PROGRAMS = [block for block in BLOCKS if block.language == "python" and not block.file]
SHELLS = [block for block in BLOCKS if block.language == "sh"]


def ids(block: Block) -> str:
    """Name a block by where it stands."""
    return f"{block.document}:{block.line}"


def files(page: list[Block]) -> dict[str, str]:
    """What a reader of the page has saved."""
    return {block.file: block.code for block in page if block.file}


def output(block: Block) -> str | None:
    """What the page says that the block prints."""
    page = PAGES[block.document]
    following = page[page.index(block) + 1 :]
    return following[0].code if following and following[0].is_output else None


def run(command: list[str], server: Server, name: str, folder: Path = ROOT) -> str:
    """Run a block in a process of its own, its warnings as errors; returns what it printed."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TORRELQUE_URL": server.url,
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", PROGRAMS, ids=ids)
def test_python_blocks_run(block: Block, server: Server, tmp_path: Path) -> None:
    """A Python block is a whole program that ends well."""
    server.admin.flushdb()
    printed = run([sys.executable, "-c", block.code.replace(URL, server.url)], server, ids(block), tmp_path)
    assert output(block) in {None, printed}


@pytest.mark.parametrize("block", SHELLS, ids=ids)
def test_shell_blocks_run(block: Block, server: Server, tmp_path: Path) -> None:
    """A shell block runs beside the files of its page; of make, that the target exists; installing is left out."""
    for name, code in files(PAGES[block.document]).items():
        (tmp_path / name).write_text(code.replace(URL, server.url), "utf-8")
    printed = ""
    for line in block.code.splitlines():
        if line.startswith("make "):
            run(["make", "--dry-run", "--directory", str(ROOT), *line.split("#")[0].split()[1:]], server, line)
        elif not line.startswith("pip "):
            printed += run(["sh", "-ec", line], server, line, tmp_path)
    assert output(block) in {None, printed}


@pytest.mark.parametrize("page", [page for page, found in PAGES.items() if files(found)])
def test_saved_files_are_used(page: str) -> None:
    """A file that a reader is told to save is run by a shell block of the page, or by another file."""
    saved = files(PAGES[page])
    for name in saved:
        users = [block.code for block in PAGES[page] if block.language == "sh"]
        users += [code for other, code in saved.items() if other != name]
        assert any(name in code for code in users), name


def test_no_other_languages() -> None:
    """A block is Python, shell, or plain text marked as such, and each fence is one of a pair: nothing escapes."""
    for block in BLOCKS:
        assert block.language in {"python", "sh", "text"}, ids(block)
    for path in DOCUMENTS:
        fences = re.findall(r"^ *(?:```|~~~)", path.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(PAGES[path.relative_to(ROOT).as_posix()]), path


def test_output_follows_a_program() -> None:
    """What is said to be printed stands right after what prints it."""
    for page in PAGES.values():
        for before, block in zip([None, *page], page, strict=False):
            assert not block.is_output or (before in PROGRAMS or before in SHELLS), ids(block)


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links, by GitHub's rule."""
    prose = BLOCK.sub("", path.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose)}


def test_links_lead_somewhere() -> None:
    """A relative link names a file that is there, and a heading that is in it."""
    for path in DOCUMENTS:
        for target, anchor in LINK.findall(path.read_text("utf-8")):
            page = path.parent / target if target else path
            assert page.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in anchors(page), f"{path.name} links to {target}#{anchor}"


def test_pages_are_found() -> None:
    """From the README every page can be reached by links."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        path = ahead.pop().resolve()
        if path not in reached:
            reached.add(path)
            links = LINK.findall(path.read_text("utf-8"))
            ahead += [path.parent / target for target, _ in links if target.endswith(".md")]
    assert {path.resolve() for path in DOCUMENTS} <= reached


def test_states_are_drawn_as_they_are() -> None:
    """The table in docs/states.md is TRANSITIONS."""
    rows = re.findall(r"^\| ([A-Z]+) \| ([a-z ]+) \| ([A-Z]+) \|$", (ROOT / "docs/states.md").read_text(), re.MULTILINE)
    table = [(status.name, by, then.name) for status, ways in TRANSITIONS.items() for by, then in ways.items()]
    assert rows == [row for row in rows if row in table]
    assert sorted(rows) == sorted(table)


def test_reference_is_what_the_docstrings_say() -> None:
    """docs/reference.md is up to date, and every public name, parameter and returned value has a docstring."""
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

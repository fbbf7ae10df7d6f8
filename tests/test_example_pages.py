"""The READMEs of the example clients: what they quote is in the programs, and what they say to run can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGES = sorted(EXAMPLES.glob("*/README.md"))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VERBS = {"produce", "consume", "watch", "poll", "release"}
_QUOTED = {"go", "java", "javascript", "js", "python", "json"}
_OURS = {".go", ".java", ".js", ".json", ".py", ".sh", ".txt", ".xml"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Find the code blocks of a page: language and text."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]


def squeezed(text: str) -> str:
    """Take the white space out, which differs with the place of a quotation."""
    return re.sub(r"\s+", "", text)


def sources(folder: Path) -> str:
    """Read all that is written by hand in a client."""
    built = {"node_modules", "gen", "bin", "target", ".venv"}
    files = [path for path in folder.rglob("*") if path.suffix in _OURS and not built & set(path.parts)]
    return "\n".join(squeezed(path.read_text()) for path in sorted(files))


def test_each_client_has_a_page() -> None:
    """Go, Java, Node and Python each have a README."""
    assert [page.parent.name for page in PAGES] == ["go", "java", "node", "python"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_quotations(page: Path) -> None:
    """Each paragraph of a quoted program stands in the program."""
    there = sources(page.parent)
    quoted = [text for language, text in blocks(page) if language in _QUOTED]
    assert quoted
    for text in quoted:
        for paragraph in re.split(r"\n\s*(?:\.\.\.|// \.\.\.|# \.\.\.)?\s*\n", text):
            assert squeezed(paragraph) in there, paragraph


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands(page: Path) -> None:
    """What a shell block calls is a verb of the clients or a tool, and every file and folder named there exists."""
    shell = "\n".join(text for language, text in blocks(page) if language == "sh")
    assert _VERBS & set(shell.split())
    for path in re.findall(r"examples/\w+/[\w./-]+\.(?:xml|sh|txt|js)\b", shell):
        assert (EXAMPLES.parent / path).exists(), path

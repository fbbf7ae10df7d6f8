"""The rights that the documents say are enough."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"
_OPERATING = (DOCS / "operating.md").read_text("utf-8")


def rights(queue: str, kind: str) -> list[str]:
    """Those of the user of a queue.

    :param queue: its name, in braces if it is in a cluster
    :param kind: of the server, ``valkey`` or ``redis``
    """
    (rules,) = re.findall(r"ACL SETUSER trq on #<[^>]*> (.*?)```", _OPERATING, re.DOTALL)
    granted = [rule.replace("trq:", f"{queue}:") for rule in rules.split()]
    if kind == "redis":
        granted.remove("+client|setinfo")  # unknown before 7.2, as the document says
    return granted


def rights_of_another_database() -> list[str]:
    """What a client needs beside those that uses another database than 0."""
    (found,) = re.findall(r"For a database other than 0 `([^`]*)` is needed", _OPERATING)
    return found.split()


def rights_of_a_check() -> list[str]:
    """What ``check`` needs beside those."""
    (line,) = re.findall(r"\*Permissions\*, beside those above: `([^`]*)`", _OPERATING)
    return line.split()


def rights_elsewhere() -> tuple[list[str], list[str], list[str]]:
    """What is needed for durability by replicas, in a cluster, and of a sentinel."""
    text = (DOCS / "high-availability.md").read_text("utf-8")
    durability, cluster, sentinel = r"needs `([^`]*)` for this", r"in a cluster `([^`]*)`", r"must allow `([^`]*)`"
    (found,) = re.findall(rf"{durability}[^;]*{cluster}; sentinels\s+{sentinel}", text)
    first, second, third = (each.split() for each in found)
    return first, second, third

"""The work of the demo: find files, and digest one."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

#: A file is read in pieces, so that its size does not matter.
PIECE = 1 << 20
#: What others have installed beside the standard library.
NOT_STANDARD = frozenset({"site-packages", "dist-packages"})

#: Tells one content of a file from another, without reading it: size, time of change in ns, inode.
Mark = tuple[int, int, int]


class File(NamedTuple):
    """A file as it was when it was found."""

    path: str
    mark: Mark


class Listing(NamedTuple):
    """What was found, and how much of it cannot be read."""

    files: list[File]
    skipped: int


class Digest(NamedTuple):
    """What a worker finds out about a file."""

    sha256: str
    bytes: int
    lines: int

    @classmethod
    def from_result(cls, result: Any) -> Digest | None:
        """Read a digest out of the result of a task; ``None`` if there is none in it."""
        try:
            return cls(**{name: result[name] for name in cls._fields})
        except (KeyError, TypeError):
            return None


def standard_library() -> str:
    """Name the folder of Python's own library, which every machine with a Python has."""
    return sysconfig.get_path("stdlib")


def find_files(
    folder: str, leave_out: frozenset[str] = frozenset(), between: Callable[[], object] = lambda: None
) -> Listing:
    """Find the regular files below *folder*, following no symbolic link.

    :param leave_out: names of folders not to look into
    :param between: called for each file; may raise to stop
    """
    files: list[File] = []
    skipped = 0
    for entry in _walk(folder, leave_out):
        between()
        found = entry and _look(entry)
        if found:
            files.append(found)
        else:
            skipped += 1
    return Listing(files, skipped)


def _walk(folder: str, leave_out: frozenset[str]) -> Iterator[os.DirEntry[str] | None]:
    """Go through the files; ``None`` stands for a folder that cannot be read."""
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            yield None
            continue
        folders += [e.path for e in entries if e.is_dir(follow_symlinks=False) and e.name not in leave_out]
        yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))


def _look(entry: os.DirEntry[str]) -> File | None:
    mark = mark_of(entry.path)
    return File(entry.path, mark) if mark and os.access(entry.path, os.R_OK) else None


def mark_of(path: str) -> Mark | None:
    """Tell the present content of a file from another; ``None`` if there is no such file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def digest(path: str, between: Callable[[], object] = lambda: None) -> Digest:
    """Read a file to its end.

    :param between: called after each piece; may raise to stop
    :raises OSError: it cannot be read
    """
    sha256 = hashlib.sha256()
    size = lines = 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            sha256.update(piece)
            size += len(piece)
            lines += piece.count(b"\n")
            between()
    return Digest(sha256.hexdigest(), size, lines)

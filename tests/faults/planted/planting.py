"""How a bug is planted: a piece of a script or of a function is replaced in memory, and was there before."""

from __future__ import annotations
import __future__

import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

Plant = Callable[[], AbstractContextManager[None]]


class PlantError(Exception):
    """The text to replace is not there, or more than once: the code has changed, and the plant must follow."""


def _replaced(text: str, old: str, new: str, where: str) -> str:
    if text.count(old) != 1:
        raise PlantError(f"{where} holds {old!r} {text.count(old)} times, not once")
    return text.replace(old, new)


def in_script(name: str, old: str, new: str) -> Plant:
    """Replace a piece of one script, ``DEQUEUE``, or of each script that holds the part *name*: ``head``, ``wake``."""

    @contextmanager
    def plant() -> Iterator[None]:
        scripts = importlib.import_module("torrelque.scripts")
        changed = {}
        for constant, script in [(key, value) for key, value in vars(scripts).items() if key.isupper()]:
            if constant == "ALL" or (name.isupper() and constant != name):
                continue
            text = script.text.decode()
            if old in text:
                text = _replaced(text, old, new, f"the script {script.name}").encode()
                sha1 = hashlib.sha1(text).hexdigest().encode()
                changed[constant] = scripts.Script(script.name, text, sha1, script.reads_only)
        if not changed:
            raise PlantError(f"no script of {name} holds {old!r}")
        before = {constant: getattr(scripts, constant) for constant in (*changed, "ALL")}
        try:
            scripts.ALL = tuple(
                next((new for key, new in changed.items() if before[key] is each), each) for each in before["ALL"]
            )
            for constant, script in changed.items():
                setattr(scripts, constant, script)
            yield
        finally:
            for constant, script in before.items():
                setattr(scripts, constant, script)

    return plant


def _function(module: Any, path: str) -> FunctionType:
    owner = module
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    found = inspect.getattr_static(owner, name)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    function = inspect.unwrap(found)
    assert isinstance(function, FunctionType)
    return function


def in_python(where: str, old: str, new: str) -> Plant:
    """Replace a piece of a function: ``torrelque.waiting:Room.dequeue``. Whoever has imported it gets it too.

    The pieces are indented as in a function that stands at the left margin.
    """

    @contextmanager
    def plant() -> Iterator[None]:
        name, path = where.split(":")
        module = importlib.import_module(name)
        function = _function(module, path)
        source = textwrap.dedent(inspect.getsource(function))
        text = _replaced(source, old, new, where)
        scope = dict(vars(module))
        code = compile(text, inspect.getfile(function), "exec", flags=__future__.annotations.compiler_flag)
        exec(code, scope)
        made = scope[path.split(".")[-1]]
        made = made.fget if isinstance(made, property) else made
        made = made.__func__ if isinstance(made, staticmethod | classmethod) else made
        before = function.__code__
        function.__code__ = inspect.unwrap(made).__code__
        try:
            yield
        finally:
            function.__code__ = before

    return plant


def constant(where: str, value: Any) -> Plant:
    """Give a constant of a module another value: ``torrelque.watching:REREAD``."""

    @contextmanager
    def plant() -> Iterator[None]:
        name, attribute = where.split(":")
        module = importlib.import_module(name)
        before = getattr(module, attribute)
        if before == value:
            raise PlantError(f"{where} is {value!r} already")
        setattr(module, attribute, value)
        try:
            yield
        finally:
            setattr(module, attribute, before)

    return plant


@dataclass(frozen=True)
class Bug:
    """One planted bug.

    :ivar name: ``u11-late-release``: after the weakness of the published package that it brings back, or our own
    :ivar breaks: what it breaks, in a sentence for the table
    :ivar plants: what is replaced
    :ivar tests: existing tests, one of which kills it; without any the simulation does
    :ivar choose: which of the pairs and servers run these tests, as pytest's ``-k`` has it
    """

    name: str
    breaks: str
    plants: Sequence[Plant]
    tests: Sequence[str] = ()
    choose: str = "valkey and coredis-trio"

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Run the body with the bug."""
        with ExitStack() as stack:
            for plant in self.plants:
                stack.enter_context(plant())
            yield

"""Write docs/reference.md from the docstrings of the public names: ``make reference``.

With ``--check`` nothing is written; the exit code tells whether the page is what would be written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
COMMAND = "make reference"
HEAD = """# Reference

Every public name of `torrelque`. Written from the docstrings by `make reference`; do not edit it here. The words used,
the ranges of arguments, the keys in Redis and the log are explained in [concepts](concepts.md).
"""
#: A signature that is longer is written with a line for each parameter.
WIDTH = 100
ERROR = "TorrelqueError"
ROLE = re.compile(r":\w+:`~?([^`]+)`")
CODE = re.compile(r"``(.+?)``")
Section = griffe.DocstringSectionKind


class Reference:
    """The page: sections of Markdown, and what is missing in the docstrings."""

    def __init__(self, package: griffe.Module) -> None:
        self.missing: list[str] = []
        self._objects = [_class_or_function(package[str(name)]) for name in package.exports or []]
        self._classes = [found for found in self._objects if isinstance(found, griffe.Class)]
        self._linked = {thing.name for thing in self._objects}
        self._linked.update(f"{owner.name}.{method.name}" for owner in self._classes for method in _methods(owner))

    def text(self) -> str:
        """Write the whole page."""
        errors = [found for found in self._classes if self._is_error(found)]
        words = [found for found in self._classes if found not in errors]
        parts = [HEAD]
        for word in words:
            parts += self._class(word)
        for function in self._objects:
            if isinstance(function, griffe.Function):
                parts += self._function(function, None)
        parts += ["## Errors", "```text\n" + "\n".join(self._tree(ERROR, "")) + "\n```"]
        for error in errors:
            parts += self._class(error, level=3)
        return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

    def _is_error(self, found: griffe.Class) -> bool:
        return found.name == ERROR or any(str(base) in self._errors() for base in found.bases)

    def _errors(self) -> set[str]:
        return {found.name for found in self._classes if found.name.endswith("Error")}

    def _tree(self, name: str, indent: str) -> Iterator[str]:
        """Draw the errors below one of them, with what else each is."""
        if not indent:
            yield name
        below = [found for found in self._classes if name in map(str, found.bases)]
        for error in below:
            last = error is below[-1]
            others = [str(base) for base in error.bases if str(base) != name]
            also = f" (also a {' and a '.join(others)})" if others else ""
            yield f"{indent}{'└── ' if last else '├── '}{error.name}{also}"
            yield from self._tree(error.name, indent + ("    " if last else "│   "))

    def _class(self, found: griffe.Class, level: int = 2) -> Iterator[str]:
        maker = found.members.get("__init__")
        bases = f"({', '.join(map(str, found.bases))})" if found.bases else ""
        yield f"{'#' * level} {found.name}"
        if isinstance(maker, griffe.Function) and not self._is_error(found):
            yield _signature(maker, found.name)
            yield from self._body(found, found.name, found.name, maker)
        else:
            # What an error is, the tree of errors shows.
            yield "" if self._is_error(found) else _block(f"class {found.name}{bases}")
            yield from self._body(found, found.name, found.name, None)
        yield self._attributes(found)
        for method in _methods(found):
            yield from self._function(method, found)

    def _function(self, function: griffe.Function, owner: griffe.Class | None) -> Iterator[str]:
        name = f"{owner.name}.{function.name}" if owner else function.name
        yield f"{'###' if owner else '##'} {name}"
        yield _signature(function, name)
        yield from self._body(function, name, owner.name if owner else "", function)

    def _body(self, thing: griffe.Object, name: str, owner: str, function: griffe.Function | None) -> Iterator[str]:
        """Write what a docstring says: text, parameters, what is returned, what is raised."""
        said = {section.kind: section.value for section in _sections(thing)}
        parameters = said.get(Section.parameters, [])
        self._compare(name, [parameter.name for parameter in parameters], function)
        if Section.text not in said:
            self.missing.append(name)
        yield self._markdown(said.get(Section.text, ""), owner)
        if parameters:
            yield self._list("Parameters", ((f"`{item.name}`", item.description) for item in parameters), owner)
        for item in said.get(Section.returns, []):
            yield f"**Returns** {self._one_line(item.description, owner)}"
        if function and not thing.is_class and str(function.returns) != "None" and Section.returns not in said:
            self.missing.append(f"{name}: what it returns")
        if raised := said.get(Section.raises):
            yield self._list("Raises", ((self._link(str(i.annotation), ""), i.description) for i in raised), owner)

    def _compare(self, name: str, documented: list[str], function: griffe.Function | None) -> None:
        """Every parameter is documented, and nothing else is."""
        if function is not None:
            there = [parameter.name for parameter in _parameters(function)]
            self.missing += [f"{name}: parameter {parameter}" for parameter in set(there) ^ set(documented)]

    def _attributes(self, found: griffe.Class) -> str:
        told = [item for section in _sections(found) if section.kind is Section.attributes for item in section.value]
        rows = [(f"`{item.name}`", item.description) for item in told]
        for name, member in found.members.items():
            if (
                isinstance(member, griffe.Attribute)
                and member.is_public
                and not member.is_special
                and name not in {item.name for item in told}
            ):
                rows.append((f"`{_declared(member)}`", member.docstring.value if member.docstring else ""))
        return self._list("Attributes", rows, found.name) if rows else ""

    def _list(self, title: str, rows: Iterable[tuple[str, str]], owner: str) -> str:
        lines = [f"- {name}: {self._one_line(text, owner)}" if text else f"- {name}" for name, text in rows]
        return f"**{title}**\n\n" + "\n".join(lines)

    def _one_line(self, text: str, owner: str) -> str:
        return self._markdown(" ".join(text.split()), owner)

    def _markdown(self, text: str, owner: str) -> str:
        """Turn the marks of a docstring into those of Markdown, and names into links."""
        return CODE.sub(r"`\1`", ROLE.sub(lambda role: self._link(role[1], owner), text))

    def _link(self, name: str, owner: str) -> str:
        for known in (name, f"{owner}.{name}"):
            if known in self._linked:
                return f"[`{name}`](#{known.lower().replace('.', '')})"
        return f"`{name}`"


def _class_or_function(found: griffe.Object | griffe.Alias) -> griffe.Class | griffe.Function:
    target = found.final_target if isinstance(found, griffe.Alias) else found
    assert isinstance(target, griffe.Class | griffe.Function), target
    return target


def _methods(found: griffe.Class) -> list[griffe.Function]:
    return [
        member
        for member in found.members.values()
        if isinstance(member, griffe.Function) and member.is_public and not member.is_special
    ]


def _sections(thing: griffe.Object) -> list[griffe.DocstringSection]:
    return thing.docstring.parsed if thing.docstring else []


def _parameters(function: griffe.Function) -> list[griffe.Parameter]:
    return [parameter for parameter in function.parameters if parameter.name not in {"self", "cls"}]


def _signature(function: griffe.Function, name: str) -> str:
    """Write how something is called, on one line if it fits."""
    scoped = any("contextmanager" in str(decorator.value) for decorator in function.decorators)
    before = "async with " if scoped else "async " if "async" in function.labels else ""
    returned = re.sub(r"^AsyncIterator\[(.*)\]$", r"\1", str(function.returns)) if scoped else function.returns
    after = "" if function.is_special else f" -> {returned}"
    shown = list(_shown(_parameters(function)))
    line = f"{before}{name}({', '.join(shown)}){after}"
    if len(line) > WIDTH:
        line = f"{before}{name}(\n" + "".join(f"    {parameter},\n" for parameter in shown) + f"){after}"
    return _block(line)


def _shown(parameters: list[griffe.Parameter]) -> Iterator[str]:
    starred = False
    for parameter in parameters:
        keywords = parameter.kind is griffe.ParameterKind.var_keyword
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            starred = True
            yield "*"
        default = "" if parameter.default is None or keywords else f" = {parameter.default}"
        yield f"{'**' if keywords else ''}{parameter.name}: {parameter.annotation}{default}"


def _declared(attribute: griffe.Attribute) -> str:
    """Write an attribute with its type and, if it is a plain one, its value."""
    kind = f": {attribute.annotation}" if attribute.annotation else ""
    value = f" = {attribute.value}" if isinstance(attribute.value, str) else ""
    return f"{attribute.name}{kind}{value}"


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def main(arguments: list[str]) -> str | None:
    """Write the page, or compare it; returns what is wrong."""
    package = griffe.load("torrelque", search_paths=[ROOT], docstring_parser="sphinx", resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    reference = Reference(package)
    text = reference.text()
    if reference.missing:
        return "Not in a docstring, or only there:\n  " + "\n  ".join(sorted(reference.missing))
    if arguments == ["--check"]:
        fresh = PAGE.exists() and PAGE.read_text("utf-8") == text
        return None if fresh else f"{PAGE.relative_to(ROOT)} is not what the docstrings say: run `{COMMAND}`"
    PAGE.write_text(text, "utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

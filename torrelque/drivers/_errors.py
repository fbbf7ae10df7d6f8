"""One table: what Redis or a client says went wrong, and which of this library's errors it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from torrelque.calls import Reply
from torrelque.errors import (
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueStorageError,
    TorrelqueUnavailableError,
)

from ._wire import ReplyError

#: Redis' error codes. Each of these means that the script has not written anything.
CODES: dict[str, type[TorrelqueError]] = {
    "OOM": TorrelqueFullError,
    "LOADING": TorrelqueUnavailableError,
    "READONLY": TorrelqueUnavailableError,
    "MASTERDOWN": TorrelqueUnavailableError,
    "BUSY": TorrelqueUnavailableError,
    "MISCONF": TorrelqueUnavailableError,
    "NOREPLICAS": TorrelqueUnavailableError,
    "UNBLOCKED": TorrelqueUnavailableError,
    "CLUSTERDOWN": TorrelqueUnavailableError,
    "TRYAGAIN": TorrelqueUnavailableError,
    "MOVED": TorrelqueUnavailableError,
    "ASK": TorrelqueUnavailableError,
}

#: The clients turn some codes into classes and cut them from the text.
CODE_OF_CLASS = {
    "OutOfMemoryError": "OOM",
    "BusyLoadingError": "LOADING",
    "ReadOnlyError": "READONLY",
    "MasterDownError": "MASTERDOWN",
    "UnblockedError": "UNBLOCKED",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "NoScriptError": "NOSCRIPT",
    "AuthenticationError": "WRONGPASS",
    "NoPermissionError": "NOPERM",
}

#: What is raised where there is no connection any more, or none can be made; UnicodeError if a host is no name.
LOST = (OSError, EOFError, TimeoutError, UnicodeError)

# Redis before 7 reports an error inside a script as "ERR Error running script (...): -OOM ...".
_CODE = re.compile(r"(?:^|-)([A-Z]{3,})\b")


def error_code(error: Exception) -> str:
    """Name the code that Redis gave, ``ERR`` when it gave none of its own."""
    if code := _code_of_class(error):
        return code
    codes = [str(code) for code in _CODE.findall(str(error)) if code != "ERR"]
    return next((code for code in codes if code in CODES or code == "NOSCRIPT"), codes[0] if codes else "ERR")


def _code_of_class(error: Exception) -> str | None:
    # What a server answers while a connection is made is the cause of the error that redis-py raises.
    names = (cls.__name__ for each in (error, error.__cause__) for cls in type(each).__mro__)
    return next((CODE_OF_CLASS[name] for name in names if name in CODE_OF_CLASS), None)


def class_of_code(code: str) -> type[TorrelqueError]:
    """Look up which error a code is; what is not in the table is a refusal that a retry does not help."""
    return CODES.get(code, TorrelqueStorageError)


@dataclass(frozen=True)
class ErrorMap:
    """How one client's errors become this library's."""

    root: type[Exception]
    """Whatever the client raises of its own."""
    reply: type[Exception]
    """What the client makes of an error that the server answered."""
    ours: Mapping[type[TorrelqueError], type[TorrelqueError]]
    """For each kind of error the class that is also one of the client's."""

    def read(self, reply: Reply | ReplyError) -> Reply | Exception:
        """Make an error of the client's of an answer that is one."""
        return self.reply(str(reply)) if isinstance(reply, ReplyError) else reply

    def mapped(self, otherwise: type[TorrelqueError]) -> Mapped:
        """Translate what a `with` body raises; *otherwise* is what a lost connection means at this point."""
        return Mapped(self, otherwise)

    def translate(self, error: Exception, otherwise: type[TorrelqueError]) -> TorrelqueError:
        """Translate one error; one of this library's own is translated already."""
        if isinstance(error, TorrelqueError):
            return error
        # Only the text of an answer begins with a code; another names a host, which may look like one.
        code = error_code(error) if isinstance(error, self.reply) else _code_of_class(error)
        translated = (otherwise if code is None else self.ours[class_of_code(code)])(str(error))
        # An error that came as a reply is handed on before anybody raises it `from` its cause.
        translated.__cause__ = error
        return translated


class Mapped:
    """See :meth:`ErrorMap.mapped`. (A class, for a generator costs several times as much on each round trip.)"""

    __slots__ = ("_errors", "_otherwise")

    def __init__(self, errors: ErrorMap, otherwise: type[TorrelqueError]) -> None:
        self._errors = errors
        self._otherwise = otherwise

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, self._errors.root):
            raise self._errors.translate(exc, self._otherwise) from exc
        if isinstance(exc, LOST):
            raise self._otherwise(f"{type(exc).__name__}: {exc}") from exc

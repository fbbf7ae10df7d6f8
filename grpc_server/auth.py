"""Who calls, and which queues and verbs they may use. Once there is an auth file, what is not granted is denied."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import logging
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .errors import Refused, StatusCode
from .settings import SettingsError

logger = logging.getLogger("torrelque.server")

VERBS = ("enqueue", "consume", "watch", "admin")
#: A token that is longer was never given out; hashing megabytes is not for strangers to order.
_MAX_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Grant:
    """Queues, by globs, and what may be done with them."""

    queues: tuple[str, ...]
    verbs: frozenset[str]

    def covers(self, queue: str, verb: str) -> bool:
        return verb in self.verbs and any(fnmatch.fnmatchcase(queue, glob) for glob in self.queues)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that is known."""

    name: str
    grants: tuple[Grant, ...]

    def may(self, queue: str, verb: str) -> bool:
        return any(grant.covers(queue, verb) for grant in self.grants)


@dataclass(frozen=True, slots=True)
class _Token:
    digest: bytes
    expires: datetime | None
    principal: Principal


class Credentials(NamedTuple):
    """What a caller shows of who it is."""

    headers: tuple[str | bytes, ...]
    names: tuple[str, ...]


#: Everybody, where there is no auth file.
ANYBODY = Principal("", (Grant(("*",), frozenset(VERBS)),))


class Book:
    """What an auth file says."""

    def __init__(self, tokens: Sequence[_Token], certificates: Mapping[str, Principal]) -> None:
        self._tokens = tokens
        self._certificates = certificates

    def of_token(self, token: str) -> Principal | None:
        """Find whose token it is; each is compared, so that time tells nothing."""
        digest = hashlib.sha256(token.encode()).digest()
        found: Principal | None = None
        for known in self._tokens:
            alive = known.expires is None or known.expires > datetime.now(UTC)
            if hmac.compare_digest(known.digest, digest) and alive:
                found = known.principal
        return found

    def of_certificate(self, names: Sequence[str]) -> Principal | None:
        """Find whose certificate it is by its names."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)


class Authority:
    """Tells who a caller is. The file is read again when it changes; a bad one leaves the last good one in force."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._stamp: object = None
        self._complaint = ""
        self._book = Book((), {})
        if path is not None:
            self._stamp = _stamp(path)
            self._book = read_book(path)

    def refresh(self) -> None:
        """Look whether the file has changed."""
        if self._path is None:
            return
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._book = read_book(self._path)
                self._stamp = stamp  # only now: what could not be read is tried again with the next look
                logger.info("The auth file was read again")
            self._complaint = ""
        except (OSError, SettingsError) as error:
            if str(error) != self._complaint:  # once, not with each look
                self._complaint = str(error)
                logger.error("The auth file cannot be used, the last good one stays in force: %s", error)

    def identify(self, context: Any) -> Principal:
        """Find out who calls."""
        return ANYBODY if self._path is None else self.principal(shown(context))

    def principal(self, credentials: Credentials) -> Principal:
        """Find whose credentials these are now: a bearer token, or else the client's certificate."""
        headers = credentials.headers
        found = self._of_headers(headers) if headers else self._book.of_certificate(credentials.names)
        if found is None:
            raise Refused(StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID", "no credentials, or not valid ones")
        return found

    def _of_headers(self, headers: Sequence[str | bytes]) -> Principal | None:
        if len(headers) != 1 or not isinstance(headers[0], str) or len(headers[0]) > _MAX_TOKEN:
            return None
        scheme, _, token = headers[0].partition(" ")
        return self._book.of_token(token) if scheme.lower() == "bearer" and token else None


def shown(context: Any) -> Credentials:
    """Read what a caller shows. Who shows a token is not looked up by certificate."""
    headers = tuple(value for key, value in context.invocation_metadata() or () if key == "authorization")
    if headers:
        return Credentials(headers, ())
    known = context.auth_context()
    names = [*known.get("x509_subject_alternative_name", ()), *known.get("x509_common_name", ())]
    return Credentials((), tuple(name.decode(errors="replace") for name in names))


def authorise(principal: Principal, queue: str, verb: str) -> None:
    """Refuse what was not granted, without telling whether the queue exists."""
    if principal is not ANYBODY and not principal.may(queue, verb):
        raise Refused(
            StatusCode.PERMISSION_DENIED, "QUEUE_FORBIDDEN", f"no right to {verb} on this queue", {"queue": queue}
        )


def _stamp(path: str) -> object:
    known = os.stat(path)
    return known.st_mtime_ns, known.st_size, known.st_ino


def read_book(path: str) -> Book:
    """Read an auth file.

    :raises SettingsError: something in it cannot be used
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"auth_file cannot be read: {error}") from None
    except ValueError as error:  # not TOML, or not even UTF-8
        raise SettingsError(f"auth_file is not TOML: {error}") from None
    _only(content, {"principal"}, "auth_file")
    tokens: list[_Token] = []
    certificates: dict[str, Principal] = {}
    for i, entry in enumerate(_list(content, "principal", "auth_file")):
        where = f"auth_file: principal {i + 1}"
        _only(entry, {"name", "tokens", "certificates", "grants"}, where)
        principal = Principal(_text(entry, "name", where), tuple(_grants(entry, where)))
        tokens += _tokens(entry, principal, where)
        for name in _texts(entry, "certificates", where):
            certificates[name] = principal
    return Book(tokens, certificates)


def _only(entry: Any, known: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise SettingsError(f"{where} must be a table")
    if unknown := set(entry) - known:
        raise SettingsError(f"{where} has an unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")


def _list(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    values = entry.get(key, [])
    if not isinstance(values, list):
        raise SettingsError(f"{where}: {key} must be a list of tables")
    return values


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise SettingsError(f"{where} needs {key}, a string")
    return value


def _texts(entry: Mapping[str, Any], key: str, where: str) -> list[str]:
    values = entry.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise SettingsError(f"{where}: {key} must be a list of strings")
    return values


def _grants(entry: Mapping[str, Any], where: str) -> list[Grant]:
    grants: list[Grant] = []
    for grant in _list(entry, "grants", where):
        _only(grant, {"queues", "verbs"}, f"{where}: a grant")
        verbs = frozenset(_texts(grant, "verbs", where))
        if unknown := verbs - set(VERBS):
            raise SettingsError(f"{where}: {sorted(unknown)[0]!r} is no verb; there are {', '.join(VERBS)}")
        grants.append(Grant(tuple(_texts(grant, "queues", where)), verbs))
    return grants


def _tokens(entry: Mapping[str, Any], principal: Principal, where: str) -> list[_Token]:
    tokens: list[_Token] = []
    for token in _list(entry, "tokens", where):
        _only(token, {"sha256", "expires"}, f"{where}: a token")
        try:
            digest = bytes.fromhex(_text(token, "sha256", where))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise SettingsError(f"{where}: a sha256 must be 64 hexadecimal digits; `torrelque token` makes one")
        expires = token.get("expires")
        if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
            raise SettingsError(f"{where}: expires must be a date with time and offset, as 2027-01-31T00:00:00Z")
        tokens.append(_Token(digest, expires, principal))
    return tokens

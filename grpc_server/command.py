"""``torrelque serve`` and ``torrelque token``: options, environment and a file become settings."""

from __future__ import annotations

import hashlib
import os
import secrets
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from .auth import read_book
from .embedding import serve as serve_here
from .lifecycle import Running
from .process import Log, run, say, start_logging
from .settings import DEFAULT_LISTEN, Settings, SettingsError
from .workers import supervise

_DEFAULTS = Settings()
_F = TypeVar("_F", bound=Callable[..., Any])


def _read_config(context: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Let a file say what neither the options nor the environment say."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise click.UsageError(f"--config: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no TOML, or not even UTF-8
        raise click.UsageError(f"--config: {path} is not TOML: {error}") from None
    known = {parameter.name for parameter in context.command.params} - {"config"}
    if unknown := sorted(set(content) - known):
        names = ", ".join(sorted(filter(None, known)))
        raise click.UsageError(f"--config: {path} has an unknown key {unknown[0]!r}; known are {names}")
    several = {parameter.name for parameter in context.command.params if getattr(parameter, "multiple", False)}
    values = {key: [value] if key in several and isinstance(value, str) else value for key, value in content.items()}
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _default_data_dir() -> str:
    """Where programs of this user keep what must survive a restart."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "torrelque")


def _option(name: str, help_: str, **more: Any) -> Callable[[_F], _F]:
    """An option, which an environment variable of the same name may give as well."""
    variable = "TORRELQUE_SERVE_" + name.upper().replace("-", "_")
    more.setdefault("show_default", True)
    flag = f"--{name}/--no-{name}" if more.pop("switch", False) else f"--{name}"
    return click.option(flag, envvar=variable, help=help_, **more)


def _number(name: str, help_: str, kind: Any = float) -> Callable[[_F], _F]:
    """An option for a setting that is a number."""
    return _option(name, help_, type=kind, default=getattr(_DEFAULTS, name.replace("-", "_")))


def _many(name: str, help_: str, **more: Any) -> Callable[[_F], _F]:
    return _option(name, help_, multiple=True, **more)


@click.command(
    epilog="""\b
Each option may also come from the environment, as TORRELQUE_SERVE_ and its name (TORRELQUE_SERVE_LISTEN), or
from the file of --config, a TOML file with the names of options: listen = ["127.0.0.1:0"], max_wait = 30. An
option goes before the environment, and that before the file.

\b
Signals: SIGTERM and SIGINT stop the server in order, a second one at once.
Exit codes: 0 stopped by a signal, 2 the configuration cannot be used or the storage cannot be started, 130 and
143 a second signal."""
)
@click.option(
    "--config", type=click.Path(), is_eager=True, expose_value=False, callback=_read_config,
    envvar="TORRELQUE_SERVE_CONFIG", help="TOML file with more settings.",
)  # fmt: skip
@_many("listen", "HOST:PORT (port 0: any) or unix:PATH; may be given again.", default=(DEFAULT_LISTEN,))
@_option("redis", "URL of a Redis or Valkey (also --url before the command); without it one is started.")
@_option(
    "durability", "Where a write is when it is acknowledged: memory, disk, replicas:N or disk+replicas:N.",
    default=_DEFAULTS.durability,
)  # fmt: skip
@_option("data-dir", "Where the one that is started keeps its data.  [default: the state directory of the user]")
@_many("queue", "Glob of queues that are served; may be given again.", default=("*",))
@_option("default-queue", "The queue of requests that name none.", default="trq")
@_option("workers", "Processes that share the port.", type=click.IntRange(1, 256), default=1)
@_number("task-timeout", "Lease, in seconds, of tasks that were given none.")
@_number("result-ttl", "Seconds for which results are kept when the worker does not say.")
@_number("max-attempts", "Deliveries of a task, after which it is given up; 0: no limit.", int)
@_option("dead-letter", "Keep what is given up as dead letters; otherwise it ends as REJECTED.", is_flag=True)
@_option("sweep", "Sweep the queues that are in use.", switch=True, default=True)
@_number("sweep-interval", "Seconds between two sweeps.")
@_number("linger", "Seconds for which a call waits for others to share its round trip, when many come.")
@_option("content-type", "What payloads and results are.", default=_DEFAULTS.content_type)
@_option("check-json", "Refuse payloads and results that are no JSON.", is_flag=True)
@_number("default-wait", "Seconds for which a Dequeue waits that does not say.")
@_number("max-wait", "Seconds for which a Dequeue may wait.")
@_number("max-payload", "Bytes of one payload or result.", int)
@_number("max-message", "Bytes of one message, 4096 more than --max-payload or more.", int)
@_number("max-calls", "Calls in flight that do not wait.", int)
@_number("max-polls", "Dequeues in flight.", int)
@_number("max-watches", "Watches in flight, and as many of health.", int)
@_number("max-consumers", "Consume streams in flight.", int)
@_number("max-streams-per-principal", "Polls, watches and consumers of one caller; 0: no limit.", int)
@_number("rate", "Calls a second of one caller; 0: no limit.")
@_number("max-queues", "Queues in use at a time, beside the default queue.", int)
@_number("stream-age", "Seconds after which a Watch is ended; the client opens another.")
@_number("grace", "Seconds that calls in flight may go on when the server stops.")
@_option("tls-cert", "PEM file with the certificate chain; read again when it changes.")
@_option("tls-key", "PEM file with its key.")
@_option("tls-client-ca", "PEM file with authorities: every client must have a certificate of theirs.")
@_option("auth-file", "Principals, tokens (of `torrelque token`) and grants; what is not granted is refused.")
@_option("allow-eviction", "Serve although Redis throws keys away when its memory is full.", is_flag=True)
@_option("insecure", "Allow plaintext beyond this machine.", is_flag=True)
@_option("reflection", "Server reflection; by default on loopback only.", switch=True, default=None)
@_option("metrics", "HOST:PORT for Prometheus.")
@_option("log-format", "How to log.", type=click.Choice(["text", "json"]), default="text")
@_option("log-level", "From which level on.", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.pass_obj
def serve(
    outer: Any,
    /, *, listen: tuple[str, ...], queue: tuple[str, ...], workers: int, redis: str | None,
    data_dir: str | None, log_format: str, log_level: str, **settings: Any,
) -> int:  # fmt: skip
    """Serve the queue over gRPC, for every language.

    Without options: an embedded Valkey with its data on disk, listening on 127.0.0.1:50051, every queue served and
    swept, reflection and health on. Nobody beyond this machine can reach it until you say how it is protected.

    \b
    Examples:
      torrelque serve
      torrelque serve --redis redis://redis.internal:6379/0 --listen 0.0.0.0:50051 \\
          --tls-cert server.pem --tls-key server.key --auth-file auth.toml
      torrelque serve --workers 4 --metrics 127.0.0.1:9464
    """
    # An empty one, of a variable that is not set, is refused: nobody who names a server wants another one started.
    redis = getattr(outer, "url", None) if redis is None else redis
    own = (data_dir or _default_data_dir()) if redis is None else None
    try:
        whole = Settings(listen=listen, queues=queue, redis=redis, data_dir=own, **settings)
        if whole.auth_file:
            read_book(whole.auth_file)
        if own is not None:
            _make(own)
        log = Log(as_json=log_format == "json", level=log_level)
        start_logging(log)
        _run(whole, workers, log)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    return 0


def _make(data_dir: str) -> None:
    try:
        Path(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--data-dir: {error}") from None


def _run(settings: Settings, workers: int, log: Log) -> None:
    if workers == 1:
        run(partial(serve_here, settings), lambda running: _announce(running.addresses, settings, running))
    else:
        run(partial(supervise, settings, workers, log), lambda addresses: _announce(addresses, settings))


def _announce(addresses: tuple[str, ...], settings: Settings, running: Running | None = None) -> None:
    for address in addresses:
        say(f"listening on {address}")
    if settings.data_dir:
        say(f"data in {settings.data_dir}")
    if running is not None and running.metrics_port is not None:
        say(f"metrics on port {running.metrics_port}")
    if settings.reflects and not settings.tls_cert and not settings.auth_file:
        call = f"{addresses[0]} torrelque.v1.TorrelqueService/Enqueue"
        say(f"""try: grpcurl -plaintext -d '{{"task": {{"payload": {{"data": "e30="}}}}}}' {call}""")


@click.command()
@click.option("--name", default="me", show_default=True, help="Whose token it is.")
def token(name: str) -> int:
    """Make a bearer token, and what to write into the auth file for it.

    The token itself is shown once and stored nowhere; the auth file holds only its SHA-256.
    """
    secret = secrets.token_urlsafe(32)
    say(f"token: {secret}\n")
    say(f'[[principal]]\nname = "{name}"\ntokens = [{{ sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}" }}]')
    say('grants = [{ queues = ["*"], verbs = ["enqueue", "consume", "watch"] }]')
    return 0

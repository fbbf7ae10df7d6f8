"""The only assembler: Redis, queues, handlers, ports; and the end in the right order."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection

from torrelque import open_server

from .auth import Authority
from .guard import Guard
from .health import Health
from .house import Drain, House
from .inspecting import inspect, inspect_later
from .limits import Limits
from .metrics import Metrics
from .queues import Queues, open_storage
from .rpcs import SERVICES, add_all
from .settings import MIB, Address, Settings, SettingsError
from .tls import Certificates

logger = logging.getLogger("torrelque.server")

#: Seconds between two looks at the auth file.
_REFRESH = 1.0
#: Seconds between two looks at whether gRPC still answers.
_LOOK = 0.25
#: Bytes of an answer that clients accept where they are told nothing.
_MOST_CLIENTS = 4 * MIB
#: What the end may take beyond the grace of the calls: queues are left, connections closed.
_CLOSING = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves."""

    addresses: tuple[str, ...]
    """Where it listens, ready for a client: ``127.0.0.1:50051``, ``unix:/run/torrelque``."""
    metrics_port: int | None = None
    """Where Prometheus finds the metrics."""

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]


@asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[Running]:
    """Run a server on this event loop, which must be asyncio's; leaving it drains.

    :raises SettingsError: it cannot listen, a file cannot be used, or Redis throws tasks away
    :raises TorrelqueError: the embedded server does not start
    """
    authority = Authority(settings.auth_file)
    metrics = Metrics()
    async with (
        storage(settings) as url,
        open_storage(url, settings) as store,
        anyio.create_task_group() as group,
    ):
        queues = Queues(store, settings, group)
        limits = Limits(settings)
        metrics.watch_in_flight(limits.in_flight)
        metrics.watch_given_up(lambda: queues.given_up)
        house = House(settings, queues, limits, authority, metrics, Drain(), group, instance=secrets.token_hex(8))
        guard = Guard(house)
        health = Health(SERVICES, metrics, settings.max_watches)
        doors = Doors(settings, guard, health)
        addresses = doors.listen()
        with _exposed(metrics, settings) as metrics_port:
            inspected = await inspect(store, settings)
            await doors.open()
            try:
                health.begin()
                async with anyio.create_task_group() as chores:
                    chores.start_soon(health.run, store)
                    chores.start_soon(queues.run_leaving)
                    if settings.auth_file is not None:
                        chores.start_soon(_refresh, authority, guard)
                    chores.start_soon(doors.keep_open)
                    if not inspected:
                        chores.start_soon(inspect_later, store, settings)
                    await queues.entry(settings.default_queue)
                    yield Running(tuple(addresses), metrics_port)
                    chores.cancel_scope.cancel()
            finally:
                with anyio.move_on_after(settings.grace + _CLOSING, shield=True):
                    await _drain(doors, guard, house, health)
                queues.close()


def storage(settings: Settings) -> AbstractAsyncContextManager[str]:
    """Find the Redis of a server by its URL, or start one for the length of a scope."""
    if settings.redis is not None:
        return contextlib.nullcontext(settings.redis)
    return open_server(settings.data_dir, fsync="always")


def core_options(settings: Settings) -> list[tuple[str, int]]:
    """Spell the options of gRPC's core, which passes over names that it does not know."""
    hour = 3_600_000
    return [
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.max_message),
        # What answers hold of tasks and letters is cut to max_message before. What they say of a request that was
        # carried out may be longer than that request, and has to get through.
        ("grpc.max_send_message_length", max(settings.max_message, _MOST_CLIENTS)),
        ("grpc.max_metadata_size", 8192),
        ("grpc.absolute_max_metadata_size", 16384),
        ("grpc.max_concurrent_streams", 1000),
        # From 1,000 calls on that nobody here has seen yet, gRPC would cancel ever more of those that come, whoever
        # makes them: a stranger who resets streams by thousands would end the calls of all others.
        ("grpc.server.max_pending_requests", 50_000),
        ("grpc.server.max_pending_requests_hard_limit", 100_000),
        # Dead consumers are found in 40 s; Go and Java clients that ping each 10 s are not sent away.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # Connections are renewed now and then, so that clients spread over servers that were added.
        ("grpc.max_connection_age_ms", hour // 2),
        ("grpc.max_connection_age_grace_ms", hour),
    ]


class Doors:
    """gRPC's server, which is made anew where it has ended by itself.

    ``grpc.aio`` does so, for good and without a word to us, at the first request whose path is no UTF-8; and whoever
    reaches the port can send one. Calls that are under way then end as at a lost connection.
    """

    def __init__(self, settings: Settings, guard: Guard, health: Health) -> None:
        self._settings = settings
        self._guard = guard
        self._health = health
        self._addresses = settings.addresses
        self._certificates = Certificates(settings) if settings.tls_cert else None
        self._server = self._made()

    def _made(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=core_options(self._settings))
        add_all(server, self._guard)
        self._health.add_to(server)
        if self._settings.reflects:
            reflection.enable_server_reflection((*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
        return server

    def listen(self) -> list[str]:
        """Take the addresses, if nobody else has them; returns them with their ports."""
        if not self._settings.reuse_port:
            for address in self._addresses:
                probe(address)
        self._addresses = self._listen()
        return [address.target() for address in self._addresses]

    def _listen(self) -> list[Address]:
        credentials = self._certificates.credentials() if self._certificates else None
        taken: list[Address] = []
        for address in self._addresses:
            try:
                if credentials is None:
                    port = self._server.add_insecure_port(address.target())
                else:
                    port = self._server.add_secure_port(address.target(), credentials)
            except RuntimeError:
                raise SettingsError(f"listen: cannot listen on {address.target()}") from None
            taken.append(address if address.path else replace(address, port=port))
        return taken

    async def open(self) -> None:
        """Answer from now on."""
        await self._server.start()

    async def close(self, grace: float) -> None:
        """Take no more calls, and end those under way after *grace* seconds."""
        await self._server.stop(grace)

    async def keep_open(self) -> None:
        """See that calls are answered, until cancelled."""
        while True:
            try:
                await self._server.wait_for_termination(_LOOK)
                continue
            except Exception as error:
                logger.error("gRPC has ended by itself and is started anew: %r", error)
            await self._server.stop(None)
            self._server = self._made()
            self._addresses = self._listen()
            await self._server.start()


def probe(address: Address) -> None:
    """See whether an address is free. gRPC would not say why it is not, and take the socket of another server over."""
    try:
        if address.path:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                probe.connect(address.path)
                raise SettingsError(f"listen: somebody listens on {address.target()} already")
        else:
            family, kind, *_, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
    except OSError as error:
        raise SettingsError(f"listen: cannot listen on {address.target()}: {error.strerror or error}") from None


@contextlib.contextmanager
def _exposed(metrics: Metrics, settings: Settings) -> Iterator[int | None]:
    if settings.metrics is None:
        yield None
        return
    try:
        port, stop = metrics.serve(Address.parse(settings.metrics, "metrics"))
    except OSError as error:
        raise SettingsError(f"metrics: cannot listen on {settings.metrics}: {error}") from None
    try:
        yield port
    finally:
        stop()


async def _refresh(authority: Authority, guard: Guard) -> None:
    while True:
        await anyio.sleep(_REFRESH)
        authority.refresh()
        guard.review()


async def _drain(doors: Doors, guard: Guard, house: House, health: Health) -> None:
    """Say that this server stops, let the calls end, and hang up."""
    await health.stop()
    house.drain.begin()
    async with anyio.create_task_group() as group:
        # It returns when the last answer is out. To a slow client that may be long after its handler has ended.
        group.start_soon(doors.close, house.settings.grace)
        with anyio.move_on_after(house.settings.grace):
            await guard.idle()
    with anyio.move_on_after(1):  # gRPC does not wait for handlers that have failed
        await guard.idle()

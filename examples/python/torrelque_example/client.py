"""The channel: credentials, keepalive, and what is tried again by itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from .options import Options
from .wire import TorrelqueServiceStub

#: Seconds that a unary call may take, attempts included. Without a deadline a call may wait for ever.
CALL_TIMEOUT = 30.0

# Calls that may be repeated when their answer is lost: reads; enqueues, for they carry request ids; and what is fenced
# by dequeue_count. Dequeue, Watch and Consume are missing: a repeat of the first would leave leased tasks behind, and
# the streams are opened anew by our own loops.
_REPEATABLE = ("Enqueue", "BatchEnqueue", "GetTaskState", "GetQueueStats", "Release", "ExtendLease", "Requeue")

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "torrelque.v1.TorrelqueService", "method": method} for method in _REPEATABLE],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

_CHANNEL_OPTIONS = [
    # Channels to one address would share a connection: one that is opened because of a doubt is to have its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A peer that has vanished without a word is noticed after 40 s, also between calls.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The channel waits between its own attempts to connect, and calls fail at once meanwhile: no longer than we do.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True)
class Client:
    """The stub, and the metadata that belongs to every call."""

    stub: TorrelqueServiceStub
    metadata: tuple[tuple[str, str], ...]


@asynccontextmanager
async def open_client(options: Options) -> AsyncIterator[Client]:
    """Open a channel to the server; it connects at the first call."""
    if options.ca is None:
        channel = grpc.aio.insecure_channel(options.address, options=_CHANNEL_OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(root_certificates=options.ca)
        channel = grpc.aio.secure_channel(options.address, credentials, options=_CHANNEL_OPTIONS)
    metadata = (("authorization", f"Bearer {options.token}"),) if options.token else ()
    async with channel:
        yield Client(TorrelqueServiceStub(channel), metadata)

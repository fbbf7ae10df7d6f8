"""The only floor that awaits Redis or names a client library or an event loop."""

from __future__ import annotations

import sys
from typing import Any

from torrelque.checks import Target
from torrelque.errors import TorrelqueError

from .base import Blocker, Driver, Signal, Subscriber

__all__ = ["Blocker", "Driver", "Signal", "Subscriber", "driver_for", "driver_for_url"]


def driver_for(client: Any) -> Driver:
    """Pick the driver by the client's type; a client's library is imported already, or it is not that client.

    :raises TorrelqueError: for anything that is not a supported client
    """
    if "redis" in sys.modules:
        from ._redispy import RedisPyDriver, is_redispy

        if is_redispy(client):
            return RedisPyDriver(client)
    if "coredis" in sys.modules:
        from ._coredis import CoredisDriver, is_coredis

        if is_coredis(client):
            return CoredisDriver(client)
    raise TorrelqueError(
        "client must be a redis.asyncio.Redis or a coredis.Redis instance (redis.asyncio.Redis instance expected"
        " by the published package), or a RedisCluster of either library, not"
        f" {type(client).__module__}.{type(client).__qualname__}"
    )


def driver_for_url(target: Target, options: dict[str, Any]) -> Driver:
    """Make a client for *target* that the driver opens and closes itself."""
    from ._coredis import open_url

    return open_url(target, options)

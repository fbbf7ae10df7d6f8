"""Looks at the Redis of this server when it starts: where tasks are thrown away, nothing is served."""

from __future__ import annotations

import logging

import anyio

from torrelque import TorrelqueRedisError, TorrelqueServerFinding, TorrelqueSeverity

from .queues import Storage
from .settings import Settings, SettingsError

logger = logging.getLogger("torrelque.server")

#: Seconds that looking may take, and between two tries where Redis cannot be asked.
PATIENCE, PAUSE = 5.0, 2.0
_LEVELS = {
    TorrelqueSeverity.DANGER: logging.ERROR,
    TorrelqueSeverity.WARNING: logging.WARNING,
    TorrelqueSeverity.NOTE: logging.INFO,
    TorrelqueSeverity.UNKNOWN: logging.INFO,
}


async def inspect(store: Storage, settings: Settings) -> bool:
    """Look once, and log each finding; tells whether the storage could be asked.

    :raises SettingsError: it throws tasks away, and that is not allowed
    """
    findings: list[TorrelqueServerFinding] | None = None
    with anyio.move_on_after(PATIENCE):
        try:
            async with store.queue(settings.default_queue) as queue:
                findings = (await queue.inspect_server()).findings
        except TorrelqueRedisError:
            pass
    for each in findings or ():
        logger.log(_LEVELS[each.severity], "Storage: %s; %s. Way out: %s", each.what, each.why, each.way_out)
        if each.name == "eviction" and each.severity is TorrelqueSeverity.DANGER and not settings.allow_eviction:
            raise SettingsError(f"redis: {each.what}: {each.why}. {each.way_out}, or allow it with allow_eviction")
    return findings is not None


async def inspect_later(store: Storage, settings: Settings) -> None:
    """Look again until the storage can be asked. By then the server serves, and goes on whatever is found."""
    logger.warning("Storage: it cannot be asked yet how it is set up")
    while True:
        await anyio.sleep(PAUSE)
        try:
            if await inspect(store, settings):
                return
        except SettingsError as error:
            logger.error("%s", error)
            return

"""The fixtures of a running gRPC server."""

from support.fixtures import admin, bridge, client, queue, storage

__all__ = ["admin", "bridge", "client", "queue", "storage"]

"""The fixtures of a running gRPC server, beside those of the library."""

from support.fixtures import storage

__all__ = ["storage"]

"""The gRPC server of Torrelque: the queue for programs in Go, Java, Node and every other language."""

from .embedding import running, serve
from .lifecycle import Running
from .settings import Settings, SettingsError

__all__ = ["Running", "Settings", "SettingsError", "running", "serve"]

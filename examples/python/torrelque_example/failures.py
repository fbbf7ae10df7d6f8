"""How a call has failed: its status, and the google.rpc.ErrorInfo that the server sends beside it."""

from __future__ import annotations

from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

#: The caller's mistakes: the same call would fail again.
MISTAKES = {"INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "UNIMPLEMENTED"}


class Failure(Exception):
    """The server said no, or could not be asked."""

    def __init__(
        self, code: str, reason: str | None = None, metadata: dict[str, str] | None = None, details: str | None = None
    ) -> None:
        super().__init__(f"{code}/{reason or '-'}: {details or ''}")
        self.code = code
        self.reason = reason
        self.metadata = metadata or {}
        self.details = details

    @property
    def is_over_soon(self) -> bool:
        """Whether the same call may do later: the server is away, or has no room at present."""
        return self.code == "UNAVAILABLE" or (self.code == "RESOURCE_EXHAUSTED" and self.reason is not None)

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Failure:
        """Read the error of a call."""
        info = _error_info(error)
        if info:
            return cls(error.code().name, info.reason, dict(info.metadata), error.details())
        return cls(error.code().name, _trailer(error, "x-torrelque-reason"), details=error.details())


def _error_info(error: grpc.aio.AioRpcError) -> ErrorInfo | None:
    try:
        # An AioRpcError has the methods of a finished call, and that is all that is asked of it here.
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (DecodeError, ValueError):  # not readable, or it speaks of another status
        return None
    info = ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return info
    return None


def _trailer(error: grpc.aio.AioRpcError, name: str) -> str | None:
    for key, value in error.trailing_metadata():
        if key == name:
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return None

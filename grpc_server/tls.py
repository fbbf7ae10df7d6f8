"""Certificates, read again when their files change: new connections get the new ones, no restart is needed."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import Any

import grpc

from .settings import Settings, SettingsError

logger = logging.getLogger("torrelque.server")


class Certificates:
    """The files of a server with TLS."""

    def __init__(self, settings: Settings) -> None:
        assert settings.tls_cert
        assert settings.tls_key
        self._cert, self._key = Path(settings.tls_cert), Path(settings.tls_key)
        self._client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        self._stamp: object = None
        #: What the files have held when they could be used last.
        self._last: grpc.ServerCertificateConfiguration | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Make what the secure ports of a server need; those of its successor too, whatever the files are by then.

        :raises SettingsError: a file cannot be read
        """
        if self._last is None:
            try:
                self._stamp = self._look()
                self._last = self._read()
            except (OSError, ValueError) as error:
                raise SettingsError(f"tls_cert, tls_key or tls_client_ca cannot be used: {error}") from None
        fetch: Any = self._fetch  # None is an answer too, which its stub does not know
        return grpc.dynamic_ssl_server_credentials(
            self._last, fetch, require_client_authentication=self._client_ca is not None
        )

    def _look(self) -> object:
        paths = [path for path in (self._cert, self._key, self._client_ca) if path]
        return [(os.stat(path).st_mtime_ns, os.stat(path).st_ino) for path in paths]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        key, chain = self._key.read_bytes(), self._cert.read_bytes()
        if b"PRIVATE KEY" not in key or b"CERTIFICATE" not in chain:
            raise ValueError("they must be PEM")
        authorities = self._client_ca.read_bytes() if self._client_ca else None
        self._try()
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities)

    def _try(self) -> None:
        """Load the files as TLS will: gRPC would only say that it cannot listen, or fail each handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._cert, self._key, password=str)  # none; without it, a terminal would be asked
        if self._client_ca:
            context.load_verify_locations(self._client_ca)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's own threads before each handshake: no event loop here; ``None`` is no change."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            fresh = self._read()
        except (OSError, ValueError) as error:
            logger.error("The certificate cannot be read again, the last one stays: %s", error)
            return None
        self._stamp, self._last = stamp, fresh
        logger.info("The certificate was read again")
        return fresh

"""What keeps strangers out of several servers: passwords, users with few rights, and TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

#: Of the user that may do everything, by which the servers know each other, and of the users that tests make.
ADMIN, SECRET = "all-doors", "one-door"


@dataclass(frozen=True)
class Lock:
    """The passwords of a site, and where its certificates are if its servers speak TLS."""

    folder: Path | None

    @classmethod
    def make(cls, folder: Path, tls: bool) -> Lock:
        """Make an authority, and a certificate for this machine, if TLS is wanted."""
        if not tls:
            return cls(None)
        authority = trustme.CA()
        folder.mkdir()
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        return cls(folder)

    def settings(self, port: int) -> dict[str, str]:
        """Say it to a server."""
        if self.folder is None:
            return {"requirepass": ADMIN}
        certificate = str(self.folder / "server.pem")
        return {
            "requirepass": ADMIN,
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": certificate,
            "tls-key-file": certificate,
            "tls-ca-cert-file": str(self.authority),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
            "tls-cluster": "yes",
        }

    @property
    def authority(self) -> Path:
        """Its certificate."""
        assert self.folder is not None
        return self.folder / "authority.pem"

    @property
    def scheme(self) -> str:
        """Of URLs."""
        return "rediss" if self.folder else "redis"

    def redispy(self, user: str | None = None) -> dict[str, Any]:
        """Come in as *user*, or as who may do everything, with redis-py."""
        secure = {"ssl": True, "ssl_ca_certs": str(self.authority)} if self.folder else {}
        return {"username": user, "password": SECRET if user else ADMIN, **secure}

    def coredis(self, user: str | None = None) -> dict[str, Any]:
        """The same with coredis."""
        secure = {"ssl_context": self.context()} if self.folder else {}
        return {"username": user, "password": SECRET if user else ADMIN, **secure}

    def context(self) -> ssl.SSLContext | None:
        """Trust the authority."""
        return ssl.create_default_context(cafile=str(self.authority)) if self.folder else None

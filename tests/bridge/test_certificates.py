"""TLS: who is let in, who is who, and certificates that are replaced while the server runs."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.bridge import DEADLINE, Client, Process, refused, serving
from support.http2 import END_HEADERS, END_STREAM, HEADERS, Wire, block, frame
from support.streams import consuming, until

from grpc_server._pb import torrelque_pb2 as pb


def store(folder: Path, cert: trustme.LeafCert) -> None:
    """Put a certificate where a server looks for it, the key first, as renewals do it."""
    for name, blobs in (("key", [cert.private_key_pem]), ("cert", cert.cert_chain_pems)):
        fresh = folder / f"{name}.fresh"
        fresh.write_bytes(b"".join(blob.bytes() for blob in blobs))
        fresh.chmod(0o600)
        fresh.replace(folder / f"{name}.pem")


@dataclass
class Secured:
    """A server with TLS, and what its clients trust."""

    process: Process
    folder: Path
    ca: trustme.CA

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.process.address.rpartition(":")
        return host, int(port)

    def options(self) -> list[str]:
        return ["--tls-cert", str(self.folder / "cert.pem"), "--tls-key", str(self.folder / "key.pem")]

    @contextlib.contextmanager
    def connect(
        self, queue: str, ca: trustme.CA | None = None, own: trustme.LeafCert | None = None
    ) -> Iterator[Client]:
        """Open a client on a connection of its own."""
        credentials = grpc.ssl_channel_credentials(
            (ca or self.ca).cert_pem.bytes(),
            own and own.private_key_pem.bytes(),
            own and b"".join(pem.bytes() for pem in own.cert_chain_pems),
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(self.process.address, credentials, options) as channel:
            yield Client(channel, queue)

    def context(self) -> ssl.SSLContext:
        """What trusts it."""
        context = ssl.create_default_context(cadata=self.ca.cert_pem.bytes().decode())
        context.set_alpn_protocols(["h2"])
        return context

    def serial(self) -> int:
        """Look which certificate a new connection is shown."""
        with (
            socket.create_connection(self.place, DEADLINE) as raw,
            self.context().wrap_socket(raw, server_hostname="127.0.0.1") as tls,
        ):
            return int(dict(tls.getpeercert() or {})["serialNumber"], 16)


@pytest.fixture(scope="module")
def secured(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server whose certificate is for 127.0.0.1."""
    made = Secured(None, tmp_path_factory.mktemp("tls"), trustme.CA())
    store(made.folder, made.ca.issue_cert("127.0.0.1", "localhost"))
    with serving("--redis", storage, *made.options()) as made.process:
        yield made
    assert "Traceback" not in made.process.log()


@pytest.fixture(scope="module")
def mutual(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server that asks for certificates of clients, some of which are principals."""
    made = Secured(None, tmp_path_factory.mktemp("mtls"), trustme.CA())
    store(made.folder, made.ca.issue_cert("127.0.0.1"))
    (made.folder / "ca.pem").write_bytes(made.ca.cert_pem.bytes())
    book = made.folder / "auth.toml"
    book.write_text(
        '[[principal]]\nname = "worker"\ncertificates = ["worker.example", "Worker Common"]\n'
        'grants = [{ queues = ["*"], verbs = ["enqueue", "consume", "watch"] }]\n'
        '[[principal]]\nname = "watcher"\ncertificates = ["spiffe://example/watcher"]\n'
        'grants = [{ queues = ["*"], verbs = ["watch"] }]\n'
    )
    book.chmod(0o600)
    options = ["--tls-client-ca", str(made.folder / "ca.pem"), "--auth-file", str(book)]
    with serving("--redis", storage, *made.options(), *options) as made.process:
        yield made
    assert "Traceback" not in made.process.log()


def works(client: Client) -> None:
    task_id = client.enqueue()
    assert [task.task_id for task in client.dequeue()] == [task_id]
    client.release(task_id)


def fails(client: Client) -> None:
    """Check that no connection comes about: our details would tell that one did."""
    with pytest.raises(grpc.RpcError) as raised:
        client.stub.GetQueueStats(pb.GetQueueStatsRequest(queue=client.queue), timeout=DEADLINE)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "x-torrelque-reason" not in dict(raised.value.trailing_metadata() or ())


def test_the_right_authority(secured: Secured, queue: str) -> None:
    """Who trusts the authority of the server's certificate is served; who trusts another one hangs up."""
    with secured.connect(queue) as client:
        works(client)
    with secured.connect(queue, trustme.CA()) as client:
        fails(client)
    with secured.connect(queue) as client:
        works(client)


def test_plaintext(secured: Secured, queue: str) -> None:
    """A client without TLS gets nowhere, and neither does one that sends anything else."""
    with grpc.insecure_channel(secured.process.address) as channel:
        fails(Client(channel, queue))
    for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x00" + b"\xff" * 100, bytes(1000)):
        with socket.create_connection(secured.place, DEADLINE) as raw:
            raw.sendall(junk)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while answer := raw.recv(4096):
                    assert b"grpc" not in answer
    with secured.connect(queue) as client:
        works(client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_today(secured: Secured, version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3 are spoken, and nothing but HTTP/2 in them."""
    with speak(secured, version, version) as tls:
        assert tls.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version.value]
        assert tls.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("name", ["TLSv1", "TLSv1_1"])
def test_versions_of_yesterday(secured: Secured, name: str) -> None:
    """TLS 1.0 and 1.1 are too old: the server hangs up on a greeting that this side would still send."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for the very reason that they are too old
        version = ssl.TLSVersion[name]
        with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version|eof.while.reading"):
            with speak(secured, version, version):
                pass


@contextlib.contextmanager
def speak(secured: Secured, least: ssl.TLSVersion, most: ssl.TLSVersion) -> Iterator[ssl.SSLSocket]:
    """Shake hands with a range of versions that this side would take at any level of security."""
    context = ssl.create_default_context(cadata=secured.ca.cert_pem.bytes().decode())
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.minimum_version, context.maximum_version = least, most
    with socket.create_connection(secured.place, DEADLINE) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            yield tls


# Client certificates


def test_a_client_must_have_a_certificate(mutual: Secured, queue: str) -> None:
    """Without one, with one of another authority, or one that has expired, there is no connection."""
    good = mutual.ca.issue_cert("worker.example", common_name="Worker Common")
    with mutual.connect(queue, own=good) as client:
        works(client)
    with mutual.connect(queue) as client:
        fails(client)
    with mutual.connect(queue, own=trustme.CA().issue_cert("worker.example")) as client:
        fails(client)
    with mutual.connect(queue, own=mutual.ca.issue_cert("worker.example", not_after=long_ago())) as client:
        fails(client)


def long_ago() -> Any:
    return datetime(2020, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("names", "common", "may_enqueue", "may_watch"),
    [
        (["worker.example"], "nobody", True, True),
        (["nobody.example"], "Worker Common", True, True),
        (["nobody.example", "worker.example"], "nobody", True, True),
        (["spiffe://example/watcher"], "nobody", False, True),
        (["nobody.example"], "nobody", None, None),
        (["*.example"], "worker", None, None),
        (["nobody.example"], "worker common", None, None),
    ],
)
def test_the_name_in_a_certificate(
    mutual: Secured, queue: str, names: list[str], common: str, may_enqueue: bool | None, may_watch: bool | None
) -> None:
    """Alternative names and the common name tell the principal; a name that is not in the file tells nobody."""
    own = issue(mutual.ca, names, common)
    said = {False: "PERMISSION_DENIED/QUEUE_FORBIDDEN", None: "UNAUTHENTICATED/CREDENTIALS_INVALID"}
    with mutual.connect(queue, own=own) as client:
        for call, expected in ((client.enqueue, may_enqueue), (client.stats, may_watch)):
            if expected:
                call()
            else:
                with refused(said[expected]):
                    call()


def issue(ca: trustme.CA, names: list[str], common: str) -> trustme.LeafCert:
    """Issue a certificate, which may have a URI as a name."""
    if "://" not in names[0]:
        return ca.issue_cert(*names, common_name=common)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
    secret: Any = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    now = datetime.now(UTC)
    alternatives = [x509.UniformResourceIdentifier(name) for name in names]
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(secret, hashes.SHA256())
    )  # fmt: skip
    spelled = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return trustme.LeafCert(spelled, cert.public_bytes(serialization.Encoding.PEM), [])


# Renewal


def test_a_certificate_is_replaced(secured: Secured, queue: str) -> None:
    """New connections see the new one, without a restart; a connection of before goes on, with its streams."""
    before = secured.serial()
    with secured.connect(queue) as old, consuming(old) as stream:
        stream.opened()
        store(secured.folder, secured.ca.issue_cert("127.0.0.1", "localhost"))
        after = secured.serial()
        assert after != before
        assert secured.serial() == after
        old.enqueue(b"on")
        (task,) = stream.tasks(1)
        assert task.payload.data == b"on"
        with secured.connect(queue) as fresh:
            fresh.release(task.task_id)


def test_the_authority_is_replaced(secured: Secured, queue: str) -> None:
    """A certificate of another authority is taken up too: clients that trust only the old one are told so by TLS."""
    old, secured.ca = secured.ca, trustme.CA()
    store(secured.folder, secured.ca.issue_cert("127.0.0.1", "localhost"))
    with secured.connect(queue) as client:
        works(client)
    with secured.connect(queue, old) as client:
        fails(client)


@pytest.mark.parametrize("file", ["cert.pem", "key.pem"])
@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nPRIVATE KEY\n", None, "foreign"])
def test_a_broken_renewal(secured: Secured, queue: str, file: str, content: bytes | str | None) -> None:
    """What cannot be used, is gone, or does not go together leaves the last good certificate in place."""
    path = secured.folder / file
    good, before = path.read_bytes(), secured.serial()
    complaints = secured.process.log().count("the last one stays")
    if content is None:
        path.unlink()
    elif content == "foreign":
        other = secured.ca.issue_cert("127.0.0.1")
        pem = other.private_key_pem if file == "key.pem" else other.cert_chain_pems[0]
        path.write_bytes(pem.bytes())
    else:
        path.write_bytes(content)
    try:
        assert secured.serial() == before
        with secured.connect(queue) as client:
            works(client)
        until(lambda: secured.process.log().count("the last one stays") > complaints)
    finally:
        path.write_bytes(good)
    store(secured.folder, secured.ca.issue_cert("127.0.0.1", "localhost"))
    assert secured.serial() != before


def test_a_broken_renewal_when_grpc_starts_anew(storage: str, tmp_path: Path) -> None:
    """When grpc.aio has ended by itself, its successor has the last good certificate, whatever the files are then."""
    made = Secured(None, tmp_path, trustme.CA())
    store(tmp_path, made.ca.issue_cert("127.0.0.1"))
    with serving("--redis", storage, *made.options()) as made.process:
        before, process = made.serial(), made.process.process
        (tmp_path / "key.pem").unlink()
        with Wire(made.process.address, secure=made.context()) as wire:
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block().replace(b"/Enqueue", b"/Enqueu\xf3")))
            wire.end_of(1)
        until(lambda: "is started anew" in made.process.log() or process.poll())
        # A fault of memory may have ended the process, but nothing else.
        until(lambda: (process.poll() or 0) < 0 or shows(made, before))


def shows(made: Secured, serial: int) -> bool:
    """Whether new connections are shown this certificate."""
    try:
        return made.serial() == serial
    except OSError:
        return False


def test_files_that_do_not_go_together(storage: str, admin: redis.Redis, tmp_path: Path) -> None:
    """At the start they are an error of the configuration, in one line that names the settings."""
    ca = trustme.CA()
    store(tmp_path, ca.issue_cert("127.0.0.1"))
    (tmp_path / "key.pem").write_bytes(ca.issue_cert("127.0.0.1").private_key_pem.bytes())
    command = ["-m", "torrelque", "serve", "--redis", storage, "--listen", "127.0.0.1:0"]
    command += ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr.startswith("torrelque: error: tls_cert, tls_key or tls_client_ca")
    assert ended.stderr.count("\n") == 1

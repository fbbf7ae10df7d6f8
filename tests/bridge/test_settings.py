"""What a server is told: each bad value is refused by name before anything is opened, in one line for a person."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import grpc_server.command
from grpc_server.auth import VERBS, read_book
from grpc_server.settings import Address, Settings, SettingsError, valid_queue
from torrelque import Torrelque, TorrelqueError

SECRET = "hunter2"

#: The name of a setting, and what it may not be.
BAD: dict[str, list[Any]] = {
    "listen": [
        (), ("",), ("localhost",), (":1",), ("127.0.0.1:",), ("127.0.0.1:65536",), ("127.0.0.1:99999",),
        ("127.0.0.1:-1",), ("127.0.0.1:1x",), ("127.0.0.1:1.5",), ("127.0.0.1:\u0663",), ("127.0.0.1:" + "9" * 5000,),
        ("::1:50051",),
        ("[]:1",), ("a..b:1",), ("x" * 70 + ".y:1",), ("a b:1",), ("a\0b:1",), ("unix:",), ("unix://",), ("unix:a\0b",),
        ("unix:" + "x" * 101,), ("127.0.0.1:0", "nonsense"), ("127.0.0.1:1", "127.0.0.1:1"), ("unix:/x", "unix:///x"),
        ("0.0.0.0:1",), ("[::]:1",), ("192.0.2.1:0",), ("example.org:1",), ("127.0.0.1:0", "0.0.0.0:0"), "127.0.0.1:0",
    ],
    "redis": [
        "", "localhost", "http://localhost", "redis:/localhost", "redis://", "redis:///0", f"redis://u:{SECRET}@:1",
        "redis://h:0", "redis://h:65536", "redis://h:-1", f"redis://u:{SECRET}@h:port", f"redis://u:1/{SECRET}@h", "redis://[::1",
        f"redis://h/{SECRET}", "redis://h/0/1", "redis://h/-1", "unix://", f"unix://u:{SECRET}@",
        f"redis://h?socket_timeout={SECRET}", "redis+sentinel://", "redis+sentinel://h", f"redis+sentinel://u:{SECRET}@h:0/jobs",
        f"redis+sentinel://h/jobs/{SECRET}", "redis+cluster://", f"redis+cluster://u:{SECRET}@h:port", "redis+cluster://h/1",
    ],
    "queues": [("",), ("a b",), ("a/*",), ("x" * 129,), ("ä*",), ("a", "b\n")],
    "default_queue": ["", "a b", "a*", "{}", "x" * 129, "ä"],
    "content_type": ["", " ", "a\nb", "ä/b", "x" * 256],
    "metrics": ["", "9464", "127.0.0.1", "127.0.0.1:99999", "unix:/x", "::1:1"],
    "task_timeout": [0, -1, 0.0001, 86_401, math.nan, math.inf, "5", True, None],
    "result_ttl": [0, -1, 30 * 86_400 + 1, math.nan, "5"],
    "max_attempts": [-1, 1.5, 1_000_001, True, None, "5"],
    "sweep_interval": [0, -1, 86_401, math.nan, math.inf, "5"],
    "durability": ["", "always", "disk+", "replicas", "replicas:0", "replicas:101", "memory+disk", "+replicas:1"],
    "linger": [-1, 1.1, math.nan, "0"],
    "default_wait": [-1, 3601, math.nan, "5"],
    "max_wait": [0, -1, 3601, math.nan],
    "max_payload": [0, -1, 1.5, 2**30, math.nan, "5", True],
    "max_message": [0, 1023, 2**31, 5e6, math.inf],
    "max_calls": [0, -1, 1.5, 1_000_001, True],
    "max_polls": [0, -1, 1.5, 1_000_001],
    "max_watches": [0, -1, 1.5, 1_000_001],
    "max_consumers": [0, -1, 1.5, 1_000_001],
    "max_streams_per_principal": [-1, 1.5, 1_000_001],
    "rate": [-1, 1e10, math.nan, "5"],
    "max_queues": [0, -1, 1.5, 100_001],
    "stream_age": [0, -1, 86_401],
    "grace": [-1, 3601, math.nan],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{n}") for name, values in BAD.items() for n, value in enumerate(values)],
)
def test_a_bad_setting(name: str, value: Any) -> None:
    """It is refused in one line that begins with the name; what may be secret is not repeated."""
    with pytest.raises(SettingsError) as raised:
        Settings(**{name: value})
    text = str(raised.value)
    assert text.startswith(name)
    assert "\n" not in text
    assert len(text) < 400
    assert SECRET not in text


def test_every_number_has_bad_values_here() -> None:
    """No setting that is a number is forgotten above; the others are files and switches."""
    others = {
        "data_dir",
        "sweep",
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "auth_file",
        "check_json",
        "dead_letter",
        "allow_eviction",
        "insecure",
        "reflection",
        "reuse_port",
    }
    assert set(Settings.__dataclass_fields__) - others == set(BAD)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    """Each alone could be used."""
    for payload, message in ((5 << 20, 4 << 20), (4 << 20, 4 << 20), (1, 4096), (10_000, 14_095)):
        with pytest.raises(SettingsError, match="max_message must be at least max_payload and 4096 bytes more"):
            Settings(max_payload=payload, max_message=message)
    assert Settings(max_payload=10_000, max_message=14_096)
    with pytest.raises(SettingsError, match="default_queue"):
        Settings(queues=("other-*",))
    with pytest.raises(SettingsError, match="default_queue"):
        Settings(queues=())
    file = private(tmp_path / "file")
    for some in ({"tls_cert": file}, {"tls_key": file}):
        with pytest.raises(SettingsError, match="tls_cert and tls_key go together"):
            Settings(**some)
    with pytest.raises(SettingsError, match="tls_client_ca needs"):
        Settings(tls_client_ca=file)
    with pytest.raises(SettingsError, match="auth_file needs TLS beyond loopback"):
        Settings(auth_file=file, listen=("0.0.0.0:0",), insecure=True)
    assert Settings(listen=("0.0.0.0:0",), insecure=True)
    assert Settings(listen=("0.0.0.0:0",), tls_cert=file, tls_key=file, auth_file=file)


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca", "auth_file"])
def test_files(tmp_path: Path, name: str) -> None:
    """A file must be there, and a secret one not be open to everybody; the group may read it."""
    file = private(tmp_path / "file")
    for path in (str(tmp_path / "absent"), "a\0b", ""):
        absent = not path and name in {"tls_cert", "tls_key"}
        with pytest.raises(SettingsError, match="tls_cert and tls_key" if absent else name):
            Settings(**{"tls_cert": file, "tls_key": file, "tls_client_ca": file, name: path})
    secret = name in {"tls_key", "auth_file"}
    for mode in (0o604, 0o602, 0o601, 0o644, 0o777):
        os.chmod(file, mode)
        if secret:
            with pytest.raises(SettingsError, match=f"{name} may be read by everybody: chmod"):
                Settings(tls_cert=file, tls_key=file) if name == "tls_key" else Settings(auth_file=file)
    os.chmod(file, 0o640)
    assert Settings(**{"tls_cert": file, "tls_key": file, "tls_client_ca": file, name: file})


def private(path: Path, content: str = "") -> str:
    path.write_text(content)
    path.chmod(0o600)
    return str(path)


def test_addresses() -> None:
    """What is written is what is listened on; loopback is what only this machine can reach."""
    for text, loopback in {
        "127.0.0.1:50051": True, "127.8.9.1:0": True, "localhost:1": True, "[::1]:65535": True, "unix:/run/x": True,
        "0.0.0.0:1": False, "[::]:1": False, "192.0.2.1:1": False, "example.org:1": False,
        "localhost.example.org:1": False, "127.0.0.1.example.org:1": False, "127.1:1": False,
    }.items():  # fmt: skip
        address = Address.parse(text, "listen")
        assert address.target() == text
        assert address.loopback is loopback, text
    assert Address.parse("127.0.0.1:0", "listen").target(5) == "127.0.0.1:5"
    assert Address.parse("unix:///run/x", "listen").path == "/run/x"
    assert Address.parse("unix:run/x", "listen").path == "run/x"


def test_what_is_served() -> None:
    """Globs name queues, and an upper-case letter is another one."""
    settings = Settings(queues=("trq", "mine-*", "a?[0-9]", "{x}:*"))
    for name in ("trq", "mine-", "mine-1", "ab1", "{x}:1"):
        assert settings.serves(name)
    for name in ("trq2", "Mine-1", "mine", "abc", "x:1"):
        assert not settings.serves(name)
    assert all(map(valid_queue, ("a", "x" * 128, "a:b.c_d-e", "{a}", "a{b}c")))
    assert not any(
        map(valid_queue, ("", "x" * 129, "a b", "{}", "{a}{b}", "a\n", "ä", "{a", "*", "a:task", "a:task:b"))
    )


def test_reflection() -> None:
    """It is on where nobody but this machine can ask, or where it was ordered."""
    assert Settings().reflects
    assert not Settings(listen=("127.0.0.1:0", "0.0.0.0:0"), insecure=True).reflects
    assert Settings(listen=("0.0.0.0:0",), insecure=True, reflection=True).reflects
    assert not Settings(reflection=False).reflects


def test_a_password_is_not_shown() -> None:
    """The settings can be logged."""
    assert SECRET not in repr(Settings(redis=f"redis://u:{SECRET}@localhost"))


# The auth file

TOKEN = hashlib.sha256(b"x").hexdigest()
P = '[[principal]]\nname = "x"\n'
BAD_BOOKS = {
    "no_toml": "principal = [", "no_utf8": b'x = "\xff"', "unknown_key": "tokens = []", "number": "principal = 5",
    "table": '[principal]\nname = "x"', "not_tables": 'principal = ["x"]', "no_name": "[[principal]]",
    "empty_name": '[[principal]]\nname = ""', "name_a_number": "[[principal]]\nname = 5",
    "key_of_principal": P + "token = []",
    "tokens_a_number": P + "tokens = 5",
    "tokens_of_strings": P + 'tokens = ["abc"]',
    "plain_token": P + 'tokens = [{ token = "abc" }]',
    "no_digest": P + 'tokens = [{}]',
    "short_digest": P + f'tokens = [{{ sha256 = "{TOKEN[:-2]}" }}]',
    "no_hex": P + f'tokens = [{{ sha256 = "{"g" * 64}" }}]',
    "expires_a_string": P + f'tokens = [{{ sha256 = "{TOKEN}", expires = "2027-01-31" }}]',
    "expires_a_day": P + f'tokens = [{{ sha256 = "{TOKEN}", expires = 2027-01-31 }}]',
    "expires_anywhere": P + f'tokens = [{{ sha256 = "{TOKEN}", expires = 2027-01-31T00:00:00 }}]',
    "grants_a_number": P + "grants = 5",
    "unknown_verb": P + 'grants = [{ queues = ["*"], verbs = ["enqueue", "fly"] }]',
    "verb_in_capitals": P + 'grants = [{ queues = ["*"], verbs = ["ENQUEUE"] }]',
    "verbs_a_string": P + 'grants = [{ queues = ["*"], verbs = "enqueue" }]',
    "queues_a_string": P + 'grants = [{ queues = "*", verbs = ["enqueue"] }]',
    "empty_queue": P + 'grants = [{ queues = [""], verbs = ["enqueue"] }]',
    "key_of_grant": P + 'grants = [{ queue = "*", verbs = ["enqueue"] }]',
    "certificates_a_string": P + 'certificates = "abc"',
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BOOKS)
def test_a_bad_auth_file(tmp_path: Path, case: str) -> None:
    """Whatever is wrong in it is told in one line, and nobody is let in by half of a file."""
    content = BAD_BOOKS[case]
    path = tmp_path / "auth.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=r"^auth_file") as raised:
        read_book(str(path))
    assert "\n" not in str(raised.value)


def test_an_auth_file_that_is_none(tmp_path: Path) -> None:
    """A folder, and a file that has gone since it was checked."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SettingsError, match="auth_file cannot be read"):
            read_book(str(path))


def test_a_good_auth_file(tmp_path: Path) -> None:
    """An empty file lets nobody in; capitals of a digest do not matter, those of a token and a queue do."""
    path = tmp_path / "auth.toml"
    path.write_text("")
    assert read_book(str(path)).of_token("x") is None
    path.write_text(
        f'[[principal]]\nname = "p"\ntokens = [{{ sha256 = "{TOKEN.upper()}" }}]\ncertificates = ["c"]\n'
        f'grants = [{{ queues = ["a-*"], verbs = ["enqueue"] }}, {{ queues = ["b"], verbs = {list(VERBS)} }}]'
    )
    book = read_book(str(path))
    principal = book.of_token("x")
    assert principal is not None
    assert principal is book.of_certificate(["nobody", "c"])
    assert book.of_token("X") is book.of_token("") is book.of_certificate(["C"]) is book.of_certificate([]) is None
    assert principal.may("a-1", "enqueue")
    assert not principal.may("a-1", "consume")
    assert not principal.may("A-1", "enqueue")
    assert all(principal.may("b", verb) for verb in VERBS)


# The command

Told = Callable[..., Settings]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Run the command without serving; returns the settings that it has made of all that it was told."""
    for name in [name for name in os.environ if name.startswith("TORRELQUE_")]:
        monkeypatch.delenv(name)
    made: list[Settings] = []
    monkeypatch.setattr(grpc_server.command, "_run", lambda settings, *_: made.append(settings))
    monkeypatch.setattr(grpc_server.command, "start_logging", lambda *_: None)

    def tell(*options: str, **environment: str) -> Settings:
        given = {f"TORRELQUE_SERVE_{name.upper()}": value for name, value in environment.items()}
        runner = CliRunner(env={**given, "LOG_FORMAT": None, "LOG_LEVEL": None})
        command = ["--redis", "redis://localhost", *options]
        ended = runner.invoke(grpc_server.command.serve, command, standalone_mode=False, catch_exceptions=False)
        assert not ended.exception
        return made.pop()

    return tell


@pytest.mark.parametrize(
    ("name", "of_file", "of_environment", "option", "expected"),
    [
        ("max_wait", "max_wait = 2", "3", ["--max-wait", "4"], (60.0, 2.0, 3.0, 4.0)),
        ("max_polls", "max_polls = 2", "3", ["--max-polls", "4"], (1000, 2, 3, 4)),
        (
            "content_type", 'content_type = "a/b"', "c/d", ["--content-type", "e/f"],
            ("application/json", "a/b", "c/d", "e/f"),
        ),
        ("sweep", "sweep = false", "true", ["--no-sweep"], (True, False, True, False)),
        ("max_attempts", "max_attempts = 2", "3", ["--max-attempts", "4"], (0, 2, 3, 4)),
        ("dead_letter", "dead_letter = true", "false", ["--dead-letter"], (False, True, False, True)),
        ("allow_eviction", "allow_eviction = true", "false", ["--allow-eviction"], (False, True, False, True)),
        ("insecure", "insecure = true", "false", ["--insecure"], (False, True, False, True)),
        ("reflection", "reflection = false", "1", ["--no-reflection"], (None, False, True, False)),
        (
            "listen", 'listen = ["127.0.0.1:1", "127.0.0.1:2"]', "127.0.0.1:3 127.0.0.1:4", ["--listen", "127.0.0.1:5"],
            (("127.0.0.1:50051",), ("127.0.0.1:1", "127.0.0.1:2"), ("127.0.0.1:3", "127.0.0.1:4"), ("127.0.0.1:5",)),
        ),
        (
            "queues", 'queue = ["trq", "a"]', "trq b", ["--queue", "trq", "--queue", "c"],
            (("*",), ("trq", "a"), ("trq", "b"), ("trq", "c")),
        ),
    ],
)  # fmt: skip
def test_which_word_counts(
    told: Told,
    tmp_path: Path,
    name: str,
    of_file: str,
    of_environment: str,
    option: list[str],
    expected: tuple[Any, ...],
) -> None:
    """An option goes before the environment, that before the file, and that before the default."""
    path = tmp_path / "serve.toml"
    path.write_text(of_file)
    config, variable = ["--config", str(path)], {"queue" if name == "queues" else name: of_environment}
    said = [told(), told(*config), told(*config, **variable), told(*config, *option, **variable)]
    assert tuple(getattr(settings, name) for settings in said) == expected
    assert getattr(told(**variable), name) == expected[2]
    assert getattr(told(config=str(path)), name) == expected[1]


def test_every_setting_can_be_told() -> None:
    """Each has its option, and the defaults of both are the same."""
    options = {parameter.name for parameter in grpc_server.command.serve.params}
    # `reuse_port` follows from the number of workers.
    names = set(Settings.__dataclass_fields__) - {"queues", "reuse_port"} | {"queue"}
    assert names == options - {"config", "workers", "log_format", "log_level"}
    defaults, said = Settings(), grpc_server.command.serve.make_context("serve", []).params
    for name in names - {"data_dir", "redis"}:
        expected = getattr(defaults, "queues" if name == "queue" else name)
        assert said[name] == expected, name


# As a process


#: Files for the processes below; those named `open` may be read by everybody.
FILES = {
    "key": "", "open": "", "unknown_key": "max-wait = 5", "no_toml": "listen", "other_type": 'max_wait = "long"',
    "one_for_many": "listen = 5", "bad_value": "max_wait = -1",
    "verb": '[[principal]]\nname = "x"\ngrants = [{ queues = ["*"], verbs = ["fly"] }]',
}  # fmt: skip

#: What a server is told in vain, and what its one line must name. `@` is the folder with the files, `BUSY` is taken.
WRONG: dict[str, tuple[str, str]] = {
    "unknown_key": ("max-wait", "--config @/unknown_key"),
    "config_absent": ("--config", "--config @/absent"),
    "config_a_folder": ("--config", "--config @"),
    "config_no_toml": ("--config", "--config @/no_toml"),
    "config_other_type": ("--max-wait", "--config @/other_type"),
    "config_one_for_many": ("--listen", "--config @/one_for_many"),
    "config_bad_value": ("max_wait", "--config @/bad_value"),
    "environment": ("max_wait", "TORRELQUE_SERVE_MAX_WAIT=-1"),
    "environment_other_type": ("--max-wait", "TORRELQUE_SERVE_MAX_WAIT=long"),
    "unknown_option": ("--nonsense", "--nonsense"),
    "unit": ("--max-wait", "--max-wait 5s"),
    "port": ("listen", "--listen 127.0.0.1:99999"),
    "port_in_use": ("listen", "--listen BUSY"),
    "port_of_metrics_in_use": ("metrics", "--listen 127.0.0.1:0 --metrics BUSY"),
    "listeners_alike": ("listen", "--listen 127.0.0.1:1 --listen 127.0.0.1:1"),
    "not_our_address": ("listen", "--listen 192.0.2.1:1 --insecure"),
    "plaintext_beyond": ("listen", "--listen 0.0.0.0:0"),
    "cert_without_key": ("tls_cert and tls_key", "--tls-cert @/key"),
    "key_absent": ("tls_key", "--tls-cert @/key --tls-key @/absent"),
    "key_open": ("tls_key", "--tls-cert @/key --tls-key @/open"),
    "key_no_pem": ("tls_cert, tls_key", "--listen 127.0.0.1:0 --tls-cert @/key --tls-key @/key"),
    "verb": ("auth_file", "--auth-file @/verb"),
    "verb_with_workers": ("auth_file", "--auth-file @/verb --workers 2"),
    "auth_open": ("auth_file", "--auth-file @/open"),
    "redis": ("redis", f"--redis redis://u:{SECRET}@h:port"),
    "no_worker": ("--workers", "--workers 0"),
    "socket_nowhere": ("listen", "--listen unix:@/absent/s"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, str]]]:
    """Run all these processes, a few at a time; by name, what became of them."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        private(folder / name, content)
    os.chmod(folder / "open", 0o644)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORRELQUE_")}
    with socket.create_server(("127.0.0.1", 0)) as taken, ThreadPoolExecutor(4) as pool:
        busy = f"127.0.0.1:{taken.getsockname()[1]}"

        def run(words: str) -> tuple[int, str, str]:
            parts = words.replace("@/", f"{folder}/").replace("BUSY", busy).split()
            parts = [str(folder) if part == "@" else part for part in parts]
            variables = dict(part.split("=", 1) for part in parts if part.startswith("TORRELQUE_"))
            options = [part for part in parts if not part.startswith("TORRELQUE_")]
            # Nothing listens there; it is not asked before all that is wrong has been said.
            command = [sys.executable, "-m", "torrelque", "serve", "--redis", "redis://127.0.0.1:1", *options]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**clean, **variables})
            return done.returncode, done.stdout, done.stderr

        yield dict(zip(WRONG, pool.map(run, [words for _, words in WRONG.values()]), strict=True))


@pytest.mark.parametrize("case", WRONG)
def test_a_server_that_cannot_start(ended: dict[str, tuple[int, str, str]], case: str) -> None:
    """It ends with 2 and one line that names what is wrong; no traceback, no secret, and nothing was served."""
    code, stdout, stderr = ended[case]
    assert (code, stdout) == (2, "")
    assert stderr.startswith("torrelque: error: ")
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1
    assert WRONG[case][0] in stderr
    assert SECRET not in stderr
    assert "Traceback" not in stderr


def test_only_the_data_directory_is_blamed_on_its_option(tmp_path: Path) -> None:
    """A folder that cannot be made names --data-dir; that nobody reads what the server prints ends it, and does not."""
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "torrelque", "serve", "--listen", "127.0.0.1:0", "--data-dir"]
    done = subprocess.run([*command, tmp_path / "file" / "x"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("torrelque: error: --data-dir: ")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        told = subprocess.run(
            [*command, tmp_path / "data"], stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert told.returncode == 1
    assert "torrelque: error" not in told.stderr


@pytest.mark.parametrize(
    "name",
    [
        "",
        "q",
        "a.b:c_d-e",
        "{q}",
        "a{q}b",
        "x" * 128,
        "x" * 129,
        "{}",
        "{a}{b}",
        "a b",
        "ä",
        "a*",
        "a\n",
        "}",
        "{a",
        "0",
        "a:task",
        "a:task:b",
        "a:tasks",
        "task",
    ],
)
def test_names_of_queues(name: str) -> None:
    """The server, which sees nothing of the library's inside, allows the names that the library allows."""
    try:
        Torrelque.from_url("redis://localhost", queue=name)
    except TorrelqueError:
        assert not valid_queue(name)
    else:
        assert valid_queue(name)

"""Every code block of the documents runs and prints what they say, every link leads somewhere, and what is drawn or
generated is what the code says."""

from __future__ import annotations

import configparser
import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import trustme
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from support import Server

from grpc_server import Settings
from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.auth import read_book
from grpc_server.command import serve
from grpc_server.metrics import Metrics
from torrelque.model import TRANSITIONS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
URL = "redis://localhost:6379/0"
#: Where a gRPC server listens; a test takes another port.
PORT = ":50051"
#: Where tools are that `make clients` installs.
TOOLS = ROOT / ".venv/go/bin"
#: Languages of which a test runs every block, and those of other programs' files.
RUN = {"python", "sh", "go", "java", "javascript"}
DATA = {"text", "json", "toml", "ini", "yaml", "nginx", "dockerfile"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


class Block(NamedTuple):
    """A code block, and the words that introduce it."""

    document: str
    line: int
    language: str
    code: str
    before: str

    @property
    def file(self) -> str | None:
        """What the block is saved as, if the reader is told: "Save this as `app.py`:"."""
        named = re.search(r"Save this\s+as\s+`(\w+\.\w+)`:$", self.before)
        return named[1] if named else None

    @property
    def sources(self) -> list[Path]:
        """The files that it is taken from: "From [failure.go](../examples/go/failure.go):"."""
        said = self.before.rpartition("\n\n")[2]
        if not said.startswith("From [") or not said.endswith(":"):
            return []
        return [(ROOT / self.document).parent / target for target, _ in LINK.findall(said)]

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.before.endswith("prints:")


def read(path: Path) -> list[Block]:
    """The blocks of a document in their order."""
    text = path.read_text("utf-8")
    found, end = [], 0
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 2
        name = path.relative_to(ROOT).as_posix()
        found.append(Block(name, line, match[1], match[2], text[end : match.start()].rstrip()))
        end = match.end()
    return found


PAGES = {path.relative_to(ROOT).as_posix(): read(path) for path in DOCUMENTS}
BLOCKS = [block for page in PAGES.values() for block in page]
EXCERPTS = [block for block in BLOCKS if block.sources]
PROGRAMS = [block for block in BLOCKS if block.language == "python" and not block.file and not block.sources]
SHELLS = [block for block in BLOCKS if block.language == "sh"]
GO_PROGRAMS = [block for block in BLOCKS if block.language == "go" and not block.sources]


def written_in(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def ids(block: Block) -> str:
    """Name a block by where it stands."""
    return f"{block.document}:{block.line}"


def files(page: list[Block]) -> dict[str, str]:
    """What a reader of the page has saved."""
    return {block.file: block.code for block in page if block.file}


def output(block: Block) -> str | None:
    """What the page says that the block prints."""
    page = PAGES[block.document]
    following = page[page.index(block) + 1 :]
    return following[0].code if following and following[0].is_output else None


def environment() -> dict[str, str]:
    """What a reader has: our command and the tools; warnings are errors."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(TOOLS)]),
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(ROOT),
    }


def run(command: list[str], server: Server, name: str, folder: Path = ROOT) -> str:
    """Run a block in a process of its own; returns what it printed."""
    known = {**environment(), "TORRELQUE_URL": server.url}
    done = subprocess.run(command, env=known, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", PROGRAMS, ids=ids)
def test_python_blocks_run(block: Block, server: Server, tmp_path: Path) -> None:
    """A Python block is a whole program that ends well."""
    server.admin.flushdb()
    printed = run([sys.executable, "-c", block.code.replace(URL, server.url)], server, ids(block), tmp_path)
    assert output(block) in {None, printed}


@pytest.mark.parametrize("block", SHELLS, ids=ids)
def test_shell_blocks_run(block: Block, server: Server, tmp_path: Path) -> None:
    """A shell block runs beside the files of its page; of make, that the target exists; installing is left out.

    A line that serves goes on to the end of its block. A block that calls a server without starting one gets one.
    """
    here = Here(server, tmp_path)
    for name, code in files(PAGES[block.document]).items():
        here.save(name, code)
    if "server.pem" in block.code:
        here.certify()
    printed: list[str] = []
    with contextlib.ExitStack() as served:
        if PORT in block.code and "torrelque serve" not in block.code:
            served.enter_context(here.serving("torrelque serve", []))
        for line in block.code.replace("\\\n", "").splitlines():
            if line.startswith("make "):
                run(["make", "--dry-run", "--directory", str(ROOT), *line.split("#")[0].split()[1:]], server, line)
            elif line.startswith("torrelque serve"):
                served.enter_context(here.serving(line, printed))
            elif line.startswith("grpcurl "):
                check_grpcurl(line)
                if shutil.which("grpcurl", path=environment()["PATH"]):
                    printed.append(run(["sh", "-ec", here.fit(line)], server, line, tmp_path))
            elif not line.startswith("pip "):
                printed.append(run(["sh", "-ec", here.fit(line)], server, line, tmp_path))
    assert output(block) in {None, here.unfit("".join(printed))}


class Here:
    """A folder in which a reader follows a page, with a port of its own for the gRPC server."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = f":{probe.getsockname()[1]}"

    def fit(self, text: str) -> str:
        return text.replace(URL, self._server.url).replace(PORT, self._port)

    def unfit(self, text: str) -> str:
        return text.replace(self._port, PORT).replace(str(self._folder), "~/.local/state")

    def save(self, name: str, code: str) -> None:
        (self._folder / name).write_text(self.fit(code), "utf-8")

    def certify(self) -> None:
        """Write the certificates that pages call ca.pem, server.pem and server.key."""
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(self._folder / "ca.pem")
        (self._folder / "server.pem").write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(self._folder / "server.key")
        (self._folder / "server.key").chmod(0o600)

    @contextlib.contextmanager
    def serving(self, line: str, printed: list[str]) -> Iterator[None]:
        """Run a line that serves; what it prints is known in the end."""
        known = {**environment(), "XDG_STATE_HOME": str(self._folder)}
        if "--listen" not in line and "--config" not in line:
            known["TORRELQUE_SERVE_LISTEN"] = f"127.0.0.1{self._port}"
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                ["sh", "-ec", f"exec {self.fit(line)}"],
                env=known, cwd=self._folder, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
            assert process.stdout
            with process.stdout:
                said = process.stdout.readline()
                try:
                    yield
                finally:
                    process.send_signal(signal.SIGTERM)
                    said += process.stdout.read()
                    code = process.wait(timeout=40)
            log.seek(0)
            assert code == 0, f"{line}\n{log.read()}"
            assert "Traceback" not in log.read()
        printed.append(said)


def check_grpcurl(line: str) -> None:
    """The method exists, and the request is one of its own."""
    words = shlex.split(line)
    service, _, method = words[-1].partition("/")
    found = pb.DESCRIPTOR.services_by_name[service.removeprefix("torrelque.v1.")].methods_by_name[method]
    json_format.Parse(words[words.index("-d") + 1], GetMessageClass(found.input_type)())


@pytest.mark.interop
@pytest.mark.parametrize("block", GO_PROGRAMS, ids=ids)
def test_go_programs_run(block: Block, server: Server, tmp_path: Path) -> None:
    """A Go block is a whole program as well; it is built as if it stood beside the example in Go."""
    here, module = Here(server, tmp_path), ROOT / "examples/go"
    assert (module / "gen").exists(), "run `make clients`"
    here.save("main.go", block.code)
    source = str(tmp_path / "main.go")
    assert run(["gofmt", "-l", source], server, ids(block)) == ""
    (tmp_path / "overlay.json").write_text(json.dumps({"Replace": {str(module / "block/main.go"): source}}))
    overlay, program = str(tmp_path / "overlay.json"), str(tmp_path / "program")
    run(["go", "build", "-overlay", overlay, "-o", program, "./block"], server, ids(block), module)
    with here.serving("torrelque serve", []):
        assert run([program], server, ids(block)) == output(block)


@pytest.mark.parametrize("block", EXCERPTS, ids=ids)
def test_excerpts_are_what_they_are_taken_from(block: Block) -> None:
    """Each paragraph of an excerpt stands in one of its files, which are compiled and run elsewhere."""
    for paragraph in block.code.split("\n\n"):
        assert any(contains(source, paragraph) for source in block.sources), paragraph


def contains(source: Path, paragraph: str) -> bool:
    lines, wanted = (
        [line.strip() for line in text.splitlines() if line.strip()] for text in (source.read_text("utf-8"), paragraph)
    )
    return any(lines[i : i + len(wanted)] == wanted for i in range(len(lines)))


@pytest.mark.parametrize("page", [page for page, found in PAGES.items() if files(found)])
def test_saved_files_are_used(page: str) -> None:
    """A file that a reader is told to save is run by a shell block of the page, or by another file."""
    saved = files(PAGES[page])
    for name in saved:
        users = [block.code for block in PAGES[page] if block.language == "sh"]
        users += [code for other, code in saved.items() if other != name]
        assert any(name in code for code in users), name


def test_no_other_languages() -> None:
    """A block is of a language that is run, or known as data, and each fence is one of a pair: nothing escapes."""
    for block in BLOCKS:
        assert block.language in RUN | DATA, ids(block)
        assert block.sources or block.language not in {"java", "javascript"}, ids(block)
    for path in DOCUMENTS:
        fences = re.findall(r"^ *(?:```|~~~)", path.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(PAGES[path.relative_to(ROOT).as_posix()]), path


def test_output_follows_a_program() -> None:
    """What is said to be printed stands right after what prints it."""
    for page in PAGES.values():
        for before, block in zip([None, *page], page, strict=False):
            assert not block.is_output or before in [*PROGRAMS, *SHELLS, *GO_PROGRAMS], ids(block)


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links, by GitHub's rule."""
    prose = BLOCK.sub("", path.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose)}


def test_links_lead_somewhere() -> None:
    """A relative link names a file that is there, and a heading that is in it."""
    for path in DOCUMENTS:
        for target, anchor in LINK.findall(path.read_text("utf-8")):
            page = path.parent / target if target else path
            assert page.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in anchors(page), f"{path.name} links to {target}#{anchor}"


def test_pages_are_found() -> None:
    """From the README every page can be reached by links."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        path = ahead.pop().resolve()
        if path not in reached:
            reached.add(path)
            links = LINK.findall(path.read_text("utf-8"))
            ahead += [path.parent / target for target, _ in links if target.endswith(".md")]
    assert {path.resolve() for path in DOCUMENTS} <= reached


def test_tests_that_are_named_are_there() -> None:
    """A test, or a file of tests, that a document names is one: what it says was shown can be looked up."""
    files = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")}
    known = {path.name for path in files} | {name for text in files.values() for name in TEST.findall(text)}
    for path in DOCUMENTS:
        for span in re.findall(r"`([^`\n]+)`", path.read_text("utf-8")):
            for name in re.findall(r"\btest_[a-z0-9_]+(?:\.py)?$", span):
                assert name in known, f"{path.name} names {span}"
            if span.startswith("tests/"):
                assert (ROOT / span.partition("::")[0]).exists(), f"{path.name} names {span}"


# Files of other programs


@pytest.mark.parametrize("block", written_in("json"), ids=ids)
def test_json_blocks(block: Block) -> None:
    """A service config names methods that there are."""
    for entry in json.loads(block.code)["methodConfig"]:
        for named in entry["name"]:
            service = pb.DESCRIPTOR.services_by_name[named["service"].removeprefix("torrelque.v1.")]
            assert named["method"] in service.methods_by_name


@pytest.mark.parametrize("block", written_in("toml"), ids=ids)
def test_toml_blocks(block: Block, server: Server, tmp_path: Path) -> None:
    """An auth file and a configuration can be used as they are, once the files are there that they name."""
    text = block.code.replace("/etc/torrelque", str(tmp_path))
    path = tmp_path / "block.toml"
    path.write_text(text, "utf-8")
    if "principal" in (content := tomllib.loads(text)):
        read_book(str(path))
        return
    Here(server, tmp_path).certify()
    (tmp_path / "auth.toml").write_text("")
    (tmp_path / "auth.toml").chmod(0o600)
    settings: dict[str, Any] = serve.make_context("serve", ["--config", str(path)]).params
    assert settings.items() >= {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}.items()
    queues = settings.pop("queue")
    Settings(queues=queues, **{name: settings[name] for name in settings.keys() & Settings.__slots__})


@pytest.mark.parametrize("block", written_in("ini"), ids=ids)
def test_ini_blocks(block: Block, tmp_path: Path) -> None:
    """A unit is one for systemd, too, where that is installed."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block.code)
    command = unit["Service"]["ExecStart"].split()
    assert command[1] == "serve"
    if verifier := shutil.which("systemd-analyze"):
        path = tmp_path / "torrelque.service"
        path.write_text(block.code.replace(command[0], str(Path(sys.executable).parent / "torrelque")))
        done = subprocess.run([verifier, "verify", "--man=no", path], capture_output=True, text=True, timeout=60)
        assert "torrelque.service" not in done.stderr, done.stderr


@pytest.mark.parametrize("block", written_in("yaml"), ids=ids)
def test_yaml_blocks(block: Block) -> None:
    """Where there is a parser it reads the block; everywhere each line is a key or an item, two spaces a level."""
    with contextlib.suppress(ModuleNotFoundError):
        assert importlib.import_module("yaml").safe_load(block.code)
    for line in block.code.splitlines():
        assert re.fullmatch(r"(?:  )*(?:- )?[\w@.\"]+:(?: \S.*)?|(?:  )*- \S.*", line), line


@pytest.mark.parametrize("block", written_in("nginx"), ids=ids)
def test_nginx_blocks(block: Block, server: Server, tmp_path: Path) -> None:
    """Each directive ends as it must, and nginx takes the file where it is installed."""
    assert block.code.count("{") == block.code.count("}")
    for line in block.code.splitlines():
        assert re.fullmatch(r"\s*(?:[a-z_\d]+(?: [^;{}]+)?(?:;| \{)|\}|)(?:\s+#.*)?", line), line
    if nginx := shutil.which("nginx"):
        here = Here(server, tmp_path)
        here.certify()
        site = block.code.replace("/etc/nginx", str(tmp_path)).replace(
            "listen 443", here.fit(f"listen 127.0.0.1{PORT}")
        )
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
        (tmp_path / "nginx.conf").write_text(
            f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {site} }}"
        )
        subprocess.run([nginx, "-t", "-c", tmp_path / "nginx.conf", "-p", tmp_path], check=True, timeout=60)


@pytest.mark.parametrize("block", written_in("dockerfile"), ids=ids)
def test_container_files(block: Block, server: Server, tmp_path: Path) -> None:
    """An image has a user of its own, and its health check finds out whether the server serves."""
    lines = dict(line.split(" ", 1) for line in block.code.replace("\\\n", "").splitlines() if line[:1].isupper())
    assert lines["USER"] != "root"
    assert json.loads(lines["ENTRYPOINT"])[:2] == ["torrelque", "serve"]
    check = json.loads(lines["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "/health.py"]
    here = Here(server, tmp_path)
    here.save("health.py", files(PAGES["docs/server.md"])["health.py"])
    command = [sys.executable, str(tmp_path / "health.py"), here.fit(check[2])]
    with here.serving("torrelque serve", []):
        run(command, server, ids(block))
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1


# What is drawn or generated


def table(page: str) -> list[list[str]]:
    """All rows of all tables of a page."""
    text = (ROOT / page).read_text("utf-8")
    return [[cell.strip() for cell in row.split(" | ")] for row in re.findall(r"^\| (.+) \|$", text, re.MULTILINE)]


def test_options_are_those_of_the_command() -> None:
    """The table in docs/server.md has every option of `torrelque serve`, with its default."""
    rows = {row[0].strip("`"): row[1].strip("`") for row in table("docs/server.md") if row[0].startswith("`--")}
    options = {each.opts[0]: each for each in serve.params if isinstance(each, click.Option)}
    assert rows.keys() == options.keys()
    for name, option in options.items():
        default = option.default[0] if isinstance(option.default, tuple) else option.default
        if isinstance(default, bool):
            assert rows[name] == ("on" if default else "off"), name
        elif isinstance(default, float):
            assert rows[name] == f"{default:g}", name
        elif isinstance(default, str | int):
            assert rows[name] == str(default), name


def test_metrics_are_those_of_the_server() -> None:
    """The table in docs/server.md has every metric."""
    metrics = Metrics()
    metrics.watch_in_flight({})
    metrics.watch_given_up(int)
    there = {
        each.name + ("_total" if each.type == "counter" else "")
        for each in metrics.registry.collect()
        if not each.name.endswith("_created")
    }
    assert {row[0].strip("`") for row in table("docs/server.md") if row[0].startswith("`torrelque_")} == there


def test_reasons_are_those_of_the_server() -> None:
    """The table in docs/errors.md has every status and reason that the server gives, and no other."""
    code = "".join(path.read_text("utf-8") for path in sorted((ROOT / "grpc_server").glob("*.py")))
    there = {f"{status}/{reason}" for status, reason in re.findall(r"StatusCode\.([A-Z_]+),\s+\"([A-Z_]+)\"", code)}
    there |= {f"INVALID_ARGUMENT/{reason}" for reason in re.findall(r"invalid\(.*?, \"([A-Z_]+)\"\)", code)}
    rows = {row[0].strip("`") for row in table("docs/errors.md")}
    assert {row for row in rows if "/" in row} == there | {"INVALID_ARGUMENT/INVALID_FIELD", "INTERNAL/INTERNAL"}


def test_states_are_drawn_as_they_are() -> None:
    """The table in docs/states.md is TRANSITIONS."""
    rows = re.findall(r"^\| ([A-Z]+) \| ([a-z ]+) \| ([A-Z]+) \|$", (ROOT / "docs/states.md").read_text(), re.MULTILINE)
    table = [(status.name, by, then.name) for status, ways in TRANSITIONS.items() for by, then in ways.items()]
    assert rows == [row for row in rows if row in table]
    assert sorted(rows) == sorted(table)


def test_reference_is_what_the_docstrings_say() -> None:
    """docs/reference.md is up to date, and every public name, parameter and returned value has a docstring."""
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

"""Fixtures for all tests: real servers on free ports, one namespace for each test.

And a watch over the whole run: a test fails when a token, password or key gets into a log record of
its process, or into what a child process writes to stderr.
"""

import asyncio
import base64
import contextlib
import functools
import gc
import hashlib
import logging
import os
import re
import runpy
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import hypothesis
import pytest
import pytest_asyncio

from eventbus.client.sockets import Sockets
from eventbus.config import Settings
from eventbus.drivers import registry
from eventbus.events import current, default_listeners
from eventbus.server import NatsServer
from tests import commands, packages

# What a test may take is the business of pytest-timeout: a busy machine is no fault of the code.
hypothesis.settings.register_profile(
    "eventbus", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("eventbus")

MAX_PAYLOAD = 65_536


@pytest.fixture(scope="session")
def nats_server_config() -> Mapping[str, Any]:
    """Of the fixture `nats_server` (eventbus.testing.plugin), which the tests of a worker share."""
    return {"max_payload": MAX_PAYLOAD}


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test has."""
    return f"t{secrets.token_hex(5)}"


@pytest.fixture
def settings(nats_server: NatsServer, namespace: str) -> Settings:
    """Settings for the shared server and this test's namespace.

    The stream is small, for a stream's bytes count against the server's disk from the start.
    """
    return Settings(nats_url=nats_server.url, namespace=namespace, history_bytes=4 * 1024**2)


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config) -> Path:
    """What tests/npm/package-lock.json names, installed once into pytest's cache folder."""
    return packages.install(Path(__file__).parent / "npm", pytestconfig.cache.mkdir("npm"))


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages in npm/ as `npm pack` makes them, by the names of their folders."""
    return packages.pack(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def program(
    tmp_path_factory: pytest.TempPathFactory, archives: dict[str, Path], node_modules: Path
) -> Path:
    """The folder of a program in which those packages are installed."""
    return packages.make_program(tmp_path_factory.mktemp("program"), archives, node_modules)


@pytest.fixture(scope="session")
def new_operator() -> Any:
    """Makes an operator of NATS, whose users have JWTs: see nats_operator.py."""
    return runpy.run_path(str(Path(__file__).parent / "nats_operator.py"))["Operator"]


@pytest.fixture
def operator(new_operator: Any) -> Any:
    """An operator of this test's own."""
    return new_operator()


@pytest_asyncio.fixture
async def jwt_server(operator: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """A nats-server of that operator; `renew()` gives it what the operator says by now."""

    class JwtServer(NatsServer):
        def renew(self) -> None:
            self.reload(operator.config())

    async with JwtServer(tmp_path / "jwt-nats", config=operator.config()) as server:
        yield server


@pytest_asyncio.fixture
async def own_nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server of this test alone, to be killed and started again: stop(), then start()."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


SECRETS = re.compile(
    r"""
      eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}   # a JWT (RFC 7515, 7.1)
    | ://[^\s/:@]*:(?!\*+@)[^\s/@]+@            # a URL with a password that is not masked
    | \bS[UAONCX][A-Z2-7]{56}\b                 # a seed of an nkey
    | a-secret-of-(?:tests|64-bytes|webhooks) | a-password-for- | s3cr3t-pass
    | the-(?:api-)?key-of-
    """,
    re.VERBOSE,
)
"""What never may be logged: what looks like a credential, and those that the tests use."""


class Leaks(logging.Handler):
    """Looks at every record of the process, and remembers where a secret stood."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look at the message, and at the exceptions' own."""
        if record.name.startswith("websockets.client"):  # the tests' client shows what it sends
            return
        self.look(f"a record of {record.name}", record.getMessage())
        cause = record.exc_info[1] if record.exc_info else None
        while cause is not None:
            self.look(f"an exception in a record of {record.name}", str(cause))
            cause = cause.__cause__ or cause.__context__

    def look(self, where: str, text: str | bytes | None) -> None:
        """Look at a text."""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        if text and (leak := SECRETS.search(text)):
            start = max(0, leak.start() - 60)
            self.found.append(f"{where}: …{text[start : leak.start()]}{leak[0][:6]}…")


_leaks = Leaks()


def pytest_configure() -> None:
    """Take SIGINT and SIGTERM as a terminal's programs do, and watch for secrets.

    A shell's background job ignores SIGINT, and its children inherit that: tests that interrupt
    the programs they start would wait forever.
    """
    for number, handler in {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    _watch_for_secrets()
    logging.getLogger("eventbus_edge.node").addFilter(_is_no_pause)


def _is_no_pause(record: logging.LogRecord) -> bool:
    """Hide from tests of what a node logs that the whole machine stood still: it is no fault."""
    return "the process was stopped" not in record.msg


def _watch_for_secrets() -> None:
    """Watch the logs from the start, ours from the debug level on, and children's stderr."""
    logging.getLogger().addHandler(_leaks)
    for package in ("eventbus_edge", "eventbus"):
        logging.getLogger(package).setLevel(logging.DEBUG)
    # Fixtures and tests read a child's output by one of these, or by the fixture `run_command`.
    run, run_async = subprocess.Popen.communicate, asyncio.subprocess.Process.communicate

    def communicate(self: Any, *args: Any, **kwargs: Any) -> Any:
        out, err = run(self, *args, **kwargs)
        _leaks.look(f"stderr of {self.args!r:.80}", err)
        return out, err

    async def communicate_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        out, err = await run_async(self, *args, **kwargs)
        _leaks.look(f"stderr of process {self.pid}", err)
        return out, err

    subprocess.Popen.communicate = communicate  # type: ignore[method-assign]
    asyncio.subprocess.Process.communicate = communicate_async  # type: ignore[method-assign]


LONGEST_ID = 120
SLOW_LIMIT_S = 360
"""For browsers, and nodes as processes: on a busy machine each takes some ten seconds to start."""
ROOT = Path(__file__).parent
SERVER_FIXTURES = {
    "jwt_server", "nats_server", "own_nats_server", "redis_server", "run_command", "start_redis",
}  # fmt: skip
PROGRAMS = ("browser", "fuse", "nginx", "npm", "postgres", "redis")
"""Marks of tests that need these programs."""
SERVER_FOLDERS = {
    "browser",
    "cli",
    "conformance",
    "deployment",
    "docs",
    "npm_package",
    "scripts",
    "server",
    "typing",
}


def pytest_make_parametrize_id(val: object) -> str | None:
    """Shorten a long value: tests' ids are in the environment of every child process.

    One entry there holds 128 KiB at most (execve(2), MAX_ARG_STRLEN).
    """
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:
        digest = hashlib.sha256(val if isinstance(val, bytes) else val.encode(errors="replace"))
        start = ascii(val[:40]).strip("b'\"")
        return f"{start}~{len(val)}-{digest.hexdigest()[:8]}"
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Start two workers per core for `-n auto`: most tests wait for processes and for deadlines.

    Those without servers do not wait, and each worker has to import all tests.
    """
    are_quick = "not server" in config.option.markexpr
    return (1 if are_quick else 2) * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no worker has one left when the others are done.

    Mark the tests that start servers or programs. Refuse ids that explicit `ids` made long, or that
    have an address, which differs between pytest-xdist's workers and ends the run.
    """
    for item in items:
        is_slow = "start_process" in getattr(item, "fixturenames", ())
        if (is_slow or item.get_closest_marker("browser")) and not _time_limit(item):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))
    items.sort(key=_time_limit, reverse=True)
    for item in items:
        if (
            SERVER_FIXTURES & set(getattr(item, "fixturenames", ()))
            or _is_in_server_folder(item.path)
            or any(item.get_closest_marker(name) for name in PROGRAMS)
        ):
            item.add_marker(pytest.mark.server)
        if len(item.nodeid) > 10 * LONGEST_ID:
            raise pytest.UsageError(f"an id of {len(item.nodeid)} characters: {item.nodeid:.200}…")
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"an id that differs between workers: {item.nodeid}")


@functools.cache  # thousands of tests are in a few hundred files
def _is_in_server_folder(path: Path) -> bool:
    return not SERVER_FOLDERS.isdisjoint(path.relative_to(ROOT).parts[:-1])


def pytest_collection_finish() -> None:
    """Hide the collected tests from the garbage collector, which would visit all of them often."""
    gc.collect()
    gc.freeze()


def _time_limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else 0.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Fail the part of a test in which a secret was logged."""
    report = yield
    if _leaks.found:
        found, _leaks.found = _leaks.found, []
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} has logged secrets:\n" + "\n".join(found)
    return report


def _process_wide() -> dict[str, object]:
    """What this process keeps for all its buses: another test would meet what one leaves there."""
    return {
        "listeners": [one.handler for one in default_listeners._listeners],
        "open buses": list(current._entries),
        "fakes": list(current._fakes),
        "drivers": dict(registry._registered),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
    }


@pytest.fixture(autouse=True)
def _nothing_process_wide_stays() -> Iterator[None]:
    """Fail a test that leaves a listener, a bus or the like to the tests after it."""
    before = _process_wide()
    yield
    after = _process_wide()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"the test has changed what all tests share: {', '.join(changed)}"


@pytest.fixture
def own_current_buses(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests whose loops end like processes that are killed: their buses are never closed."""
    monkeypatch.setattr(current, "_entries", [])


@pytest.fixture(scope="session", autouse=True)
def _programs_write_no_bytecode() -> Iterator[None]:
    """Keep the programs of tests from caching modules which the tests may change within a second.

    Python notices changes by the size and the second. What pytest has cached is still read.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        yield


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `eventbus` to its end: `run_command("token", "issue", env=…, cwd=…, input="…")`."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        done = commands.run_command(*arguments, **options)
        _leaks.look(f"stderr of {arguments!r:.80}", done.stderr)
        return done

    return run


@pytest.fixture(scope="session")
def http_session():
    """An aiohttp session whose connections, over TLS too, are closed when it ends."""

    @contextlib.asynccontextmanager
    async def begin(tls=True, base_url=None, **options):
        sockets = Sockets()
        connector = sockets.connector(tls)
        async with aiohttp.ClientSession(base_url, connector=connector, **options) as session:
            yield session
        await sockets.aclose()

    return begin


class HttpProxy:
    """A small HTTP proxy (RFC 9110 §7.6 and §9.3.6), which finds every host name at 127.0.0.1."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        """`METHOD authority` of each request that it has passed on."""
        self.credentials = ""
        """`user:password` that it requires; empty for none."""
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Its host and port."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split(" ", 2)
            wanted = base64.b64encode(self.credentials.encode()).decode()
            if self.credentials and f"Proxy-Authorization: Basic {wanted}" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nConnection: close\r\n")
                writer.write(b"Content-Length: 0\r\n\r\n")
            else:
                await self._pass(method, target, head, reader, writer)
        writer.close()

    async def _pass(
        self,
        method: str,
        target: str,
        head: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(target if "://" in target else f"//{target}")
        self.targets.append(f"{method} {url.netloc}")
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", url.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream.write(head.replace(target, url.path, 1).encode("latin-1"))
        await asyncio.gather(_pour(reader, upstream), _pour(upstream_reader, writer))


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()


@pytest_asyncio.fixture
async def http_proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpProxy]:
    """A proxy; a test names it in HTTP_PROXY or HTTPS_PROXY."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    proxy = HttpProxy()
    await proxy.start()
    yield proxy
    await proxy.stop()

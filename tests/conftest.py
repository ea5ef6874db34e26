"""Fixtures for all tests: real servers on free ports, one namespace for each test.

And a watch over the whole run: a test fails when a token, password or key gets into a log record of
its process, or into what a child process writes to stderr.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import runpy
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from eventbus.client.sockets import Sockets
from eventbus.config import Settings
from eventbus.server import NatsServer

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
def new_operator() -> Any:
    """Makes an operator of NATS, whose users have JWTs: see nats_operator.py."""
    return runpy.run_path(str(Path(__file__).parent / "nats_operator.py"))["Operator"]


@pytest.fixture
def operator(new_operator: Any) -> Any:
    """An operator of this test's own."""
    return new_operator()


@pytest_asyncio.fixture
async def jwt_server(operator: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """A nats-server of that operator; `reload()` gives it what the operator says by now."""

    class JwtServer(NatsServer):
        def reload(self) -> None:
            file = tmp_path / "jwt-nats" / "nats-server.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(config | operator.config()), encoding="utf-8")
            os.kill(self.pid, signal.SIGHUP)

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
        if record.name.startswith("websockets.client"):  # the tests' client tells what it sends
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


def _watch_for_secrets() -> None:
    """Watch the logs from the start, ours from the debug level on, and children's stderr."""
    logging.getLogger().addHandler(_leaks)
    for package in ("eventbus_edge", "eventbus"):
        logging.getLogger(package).setLevel(logging.DEBUG)
    # Every fixture and test that reads a child's output does it by one of these.
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


def pytest_make_parametrize_id(val: object) -> str | None:
    """Shorten a long value: tests' ids stand in the environment of every child process.

    One entry there holds 128 KiB at most (execve(2), MAX_ARG_STRLEN).
    """
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:
        digest = hashlib.sha256(val if isinstance(val, bytes) else val.encode(errors="replace"))
        start = ascii(val[:40]).strip("b'\"")
        return f"{start}~{len(val)}-{digest.hexdigest()[:8]}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse ids that explicit `ids` made long."""
    for item in items:
        if len(item.nodeid) > 10 * LONGEST_ID:
            raise pytest.UsageError(f"an id of {len(item.nodeid)} characters: {item.nodeid:.200}…")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Fail the part of a test in which a secret was logged."""
    report = yield
    if _leaks.found:
        found, _leaks.found = _leaks.found, []
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} has logged secrets:\n" + "\n".join(found)
    return report


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

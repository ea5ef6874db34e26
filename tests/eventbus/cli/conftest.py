"""The real command as a process, and real edge nodes beside it."""

import contextlib
import functools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from eventbus.config import Settings
from eventbus.tokens import issue_token
from tests.commands import COMMAND

ROOT = Path(__file__).parents[3]
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli_environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        "JWT_SECRET": SECRET,
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }


@pytest.fixture
def eventbus(run_command, cli_environment, tmp_path) -> Run:
    """Run a command to its end: `eventbus("broadcast", "test", input="…")`."""
    return functools.partial(run_command, env=cli_environment, cwd=tmp_path)


@pytest.fixture
def on_terminal(cli_environment, tmp_path) -> Callable[..., str]:
    """Run a command to its end on a terminal: `on_terminal(80, "queue", "failed")`.

    Returns the text, without the codes for colours.
    """
    pty = pytest.importorskip("pty")

    def run(columns: int, *arguments: str, env: dict[str, str] | None = None) -> str:
        ours, terminal = pty.openpty()
        with subprocess.Popen(
            [*COMMAND, *arguments],
            env={**(env or cli_environment), "COLUMNS": str(columns), "TERM": "xterm"},
            cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal,
        ) as process:  # fmt: skip
            os.close(terminal)
            written = b""
            with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
                while read := os.read(ours, 65_536):
                    written += read
            os.close(ours)
            assert process.wait(30) in {0, 1}
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode()).replace("\r\n", "\n")

    return run


@pytest.fixture
def start_command(cli_environment, tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command that keeps running; it is killed with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **options) -> subprocess.Popen[str]:
            options = {
                "env": cli_environment, "cwd": tmp_path, "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE, "text": True, **options,
            }  # fmt: skip
            process = stack.enter_context(subprocess.Popen([*COMMAND, *arguments], **options))
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def start_node(start_command, cli_environment) -> Callable[..., str]:
    """Start an edge node by the command line, and wait until it listens; gives its address."""

    def start(*arguments: str, **environ: str) -> str:
        process = start_command(
            *(arguments or ("broadcast", "websocket", "--host", "127.0.0.1", "--port", "0")),
            env=cli_environment | environ,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None, line
        return address[0]

    return start


@pytest.fixture
def cli_token() -> Callable[..., str]:
    return lambda user="7", **claims: issue_token(user, secret=SECRET, **claims)


@pytest.fixture
def cli_command() -> list[str]:
    return COMMAND


@pytest.fixture
def join() -> Iterator[Callable[..., ClientConnection]]:
    """A client that has joined: `join(address, "general", token=…)`; it stays until the end."""
    with contextlib.ExitStack() as stack:

        def connect_and_join(address: str, channel: str, token: str = "") -> ClientConnection:
            client = stack.enter_context(
                connect(
                    f"{address.replace('http', 'ws', 1)}/ws/{channel}",
                    additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                    proxy=None,
                )
            )
            while json.loads(client.recv(timeout=30))["event"] != "eb:subscribed":
                pass
            return client

        yield connect_and_join

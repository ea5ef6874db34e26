"""The real command as a process, and real edge nodes beside it."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from eventbus.cli.tokens.commands import issue_token
from eventbus.config import Settings

ROOT = Path(__file__).parents[3]
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
COMMAND = [sys.executable, "-c", "from eventbus.cli.app import main; main()"]
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
def eventbus(cli_environment, tmp_path) -> Run:
    """Run a command to its end: `eventbus("broadcast", "test", input="…")`."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        options = {"env": cli_environment, "cwd": tmp_path, **options}
        return subprocess.run(
            [*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=60,
            **options,
        )  # fmt: skip

    return run


@pytest.fixture
def start_command(cli_environment, tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command that goes on; it is killed with the test."""
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
    return lambda user="7", **claims: issue_token(SECRET, user, **claims)


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

"""Fixtures for all tests: real servers on free ports, one namespace for each test."""

import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

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


@pytest_asyncio.fixture
async def own_nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server of this test alone, to be killed and started again: stop(), then start()."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server

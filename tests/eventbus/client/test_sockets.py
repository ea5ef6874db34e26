"""A client that is closed leaves nothing open, over TLS too, whatever the other side does."""

import asyncio
import gc
import signal
import ssl
import warnings

import pytest
import trustme

from eventbus.client import connect
from eventbus.errors import ClientRefused


@pytest.fixture
async def secured(new_edge, tmp_path, token):
    """An edge with a certificate, and what connects a client to it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "edge.pem")
    edge = await new_edge(
        BROADCAST_TLS_CERT=str(tmp_path / "edge.pem"), BROADCAST_TLS_KEY=str(tmp_path / "edge.pem")
    )
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    url = edge.url.replace("ws://", "wss://")
    return edge, lambda path="": connect(url + path, tls=tls, token=token())


def left_open(main):
    """What is still open when an event loop has run that and ended."""
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(main())
        gc.collect()
    return [str(each.message) for each in reported]


async def test_program_that_ends_after_its_client_leaves_no_socket_open(secured):
    _, connected = secured

    async def main():
        async with connected() as client:
            await client.subscribe("general")

    assert await asyncio.to_thread(left_open, main) == []


async def test_client_of_an_edge_that_is_suspended_is_closed_anyway(secured, monkeypatch):
    monkeypatch.setattr("eventbus.client.link.CLOSE_S", 0.2)
    monkeypatch.setattr("eventbus.client.sockets._CLOSE_S", 0.2)
    edge, connected = secured

    async def main():
        async with connected() as client:
            await client.subscribe("general")
            edge.process.send_signal(signal.SIGSTOP)

    assert await asyncio.to_thread(left_open, main) == []


async def test_client_that_is_refused_leaves_no_socket_open(secured):
    _, connected = secured

    async def main():
        with pytest.raises(
            ClientRefused, match="401"
        ):  # a path names a channel: it asks for a token
            async with connected("/orders.1"):
                pass

    assert await asyncio.to_thread(left_open, main) == []

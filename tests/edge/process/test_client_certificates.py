"""A node that demands certificates of its clients (BROADCAST_TLS_CLIENT_CA)."""

import asyncio
import os
import re
import signal
import ssl
import sys

import aiohttp
import pytest
import trustme

from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.tls import tls_context


class House:
    """An authority, the node's certificate by it, and who else it signs."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = trustme.CA()
        server = self.authority.issue_cert("localhost")
        (folder / "node.pem").write_bytes(server.private_key_and_cert_chain_pem.bytes())
        self.demand(self.authority)

    def demand(self, *authorities):
        pems = b"".join(each.cert_pem.bytes() for each in authorities)
        (self.folder / "clients.pem").write_bytes(pems)

    @property
    def environ(self):
        return {
            "BROADCAST_TLS_CERT": str(self.folder / "node.pem"),
            "BROADCAST_TLS_CLIENT_CA": str(self.folder / "clients.pem"),
        }

    def client(self, by=None):
        """TLS of a client whose certificate an authority has signed; of one without when None."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if by is not None:
            by.issue_cert("proxy.example").configure_cert(context)
        return context


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.fixture
def status(http_session):
    async def ask(port, tls, path="/dashboard"):
        async with (
            http_session(tls) as session,
            session.get(f"https://localhost:{port}{path}") as response,
        ):
            return response.status, await response.text()

    return ask


async def test_client_with_a_certificate_is_served(start_process, house, bus, http_session, status):
    edge = await start_process(**house.environ)
    tls = house.client(by=house.authority)
    assert (await status(edge.port, tls))[0] == 200
    async with (
        http_session(tls) as session,
        session.ws_connect(f"wss://localhost:{edge.port}/ws/general") as ws,
    ):
        assert (await ws.receive_json())["event"] == "eb:connected"


async def test_client_without_a_certificate_gets_a_reason_and_is_logged(
    start_process, house, http_session, status
):
    edge = await start_process(**house.environ)
    stranger = house.client()
    for path in ("/dashboard", "/metrics", "/sse?channel=general", "/nothing", "/static/"):
        code, body = await status(edge.port, stranger, path)
        assert (code, "certificate_required" in body) == (403, True), path
    async with http_session(stranger) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"wss://localhost:{edge.port}/ws")
    assert refused.value.status == 403
    _, metrics = await status(edge.port, house.client(by=house.authority), "/metrics")
    assert 'eventbus_edge_refusals_total{code="certificate_required"} 6.0' in metrics
    edge.terminate()
    _, log = await edge.end()
    assert "refused a request without a client certificate" in log
    assert "from 127.0.0.1" in log


async def test_certificate_that_another_has_signed_ends_the_handshake(start_process, house, status):
    edge = await start_process(**house.environ)
    with pytest.raises(aiohttp.ClientConnectionError):
        await status(edge.port, house.client(by=trustme.CA()))
    with pytest.raises(aiohttp.ClientConnectionError):
        await status(edge.port, house.client(by=trustme.CA()), "/readyz")
    _, metrics = await status(edge.port, house.client(by=house.authority), "/metrics")
    counted = float(re.search(r"^eventbus_edge_tls_faults_total (\S+)$", metrics, re.MULTILINE)[1])
    assert counted >= 2  # aiohttp tries some again
    edge.terminate()
    _, log = await edge.end()
    assert "a TLS handshake failed: unable to get local issuer" in log


async def test_probes_need_no_certificate(start_process, house, status):
    edge = await start_process(**house.environ)
    for path in ("/healthz", "/readyz"):
        assert (await status(edge.port, house.client(), path))[0] == 200


async def test_at_sighup_another_authority_is_believed_and_the_one_before_is_not(
    start_process, house, http_session, status
):
    edge = await start_process(**house.environ)
    old, new = house.client(by=house.authority), trustme.CA()
    async with http_session(old) as session:
        ws = await session.ws_connect(f"wss://localhost:{edge.port}/ws/general")
        assert (await ws.receive_json())["event"] == "eb:connected"
        house.demand(new)
        edge.process.send_signal(signal.SIGHUP)
        renewed = house.client(by=new)
        async with asyncio.timeout(40):
            while True:
                try:
                    code, _ = await status(edge.port, renewed)
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
                else:
                    break
        assert code == 200
        # The same context: what it kept of its session is of no use either.
        with pytest.raises(aiohttp.ClientConnectionError):
            await status(edge.port, old)
        await ws.send_json({"action": "ping"})  # who is connected stays
        while (await ws.receive_json(timeout=10))["event"] != "pong":
            pass
        await ws.close()


async def health(**environ):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "eventbus_edge.health",
        env={"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9", **environ},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, output = await process.communicate()
    return process.returncode, output.decode()


async def test_health_check_follows_the_nodes_port_and_tls(start_process, house):
    plain = await start_process()
    assert await health(BROADCAST_WEBSOCKET_PORT=str(plain.port)) == (0, "")
    edge = await start_process(**house.environ)
    environ = house.environ | {"BROADCAST_WEBSOCKET_PORT": str(edge.port)}
    assert await health(**environ) == (0, "")
    edge.terminate()
    await edge.end()
    code, output = await health(**environ)
    assert (code, "refused" in output) == (1, True)


async def test_health_check_says_what_a_node_lacks(start_process, own_nats_server):
    edge = await start_process(NATS_URL=own_nats_server.url)
    await own_nats_server.stop()
    environ = {"BROADCAST_WEBSOCKET_PORT": str(edge.port)}
    async with asyncio.timeout(40):
        while (answer := await health(**environ))[0] == 0:
            pass
    assert "503: " in answer[1]
    assert "not connected to the bus" in answer[1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "BROADCAST_TLS_CLIENT_CA is set without BROADCAST_TLS_CERT"),
        ({"tls_cert": "node.pem"}, "No such file"),
        (
            {"tls_cert": "node.pem", "of": b"no certificate"},
            "allowed: a PEM file with the CA certif",
        ),
    ],
)
def test_authority_that_cannot_be_used_stops_the_start(house, settings, says):
    changes = {key: str(house.folder / value) for key, value in settings.items() if key != "of"}
    authority = house.folder / "authority.pem"
    if "of" in settings:
        authority.write_bytes(settings["of"])
    with pytest.raises(ConfigError, match=says):
        tls_context(EdgeSettings(tls_client_ca=str(authority), **changes))

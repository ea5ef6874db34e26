"""A client behind a real HTTP proxy, which alone can resolve the edge's name."""

import ssl

import pytest
import trustme

from eventbus.client import ClientOptions, connect
from eventbus.errors import ClientDisconnected, ConfigError


@pytest.fixture
async def edge(new_edge, tmp_path, token):
    """What connects a client to an edge at wss://edge.test."""
    authority = trustme.CA()
    certificate = authority.issue_cert("edge.test")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "edge.pem")
    edge = await new_edge(
        BROADCAST_TLS_CERT=str(tmp_path / "edge.pem"), BROADCAST_TLS_KEY=str(tmp_path / "edge.pem")
    )
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    url = f"wss://edge.test:{edge.url.rpartition(':')[2].partition('/')[0]}/ws"
    options = ClientOptions(open_timeout=30.0)
    return url, lambda: connect(url, tls=tls, token=token("7"), options=options)


async def test_client_tunnels_through_the_proxy_of_https(edge, http_proxy, monkeypatch):
    url, connected = edge
    http_proxy.credentials = "app:pass word"
    monkeypatch.setenv("HTTPS_PROXY", f"http://app:pass%20word@{http_proxy.address}")
    async with connected() as client:
        assert client.user_id == "7"
    assert http_proxy.targets == [f"CONNECT {url.removeprefix('wss://').removesuffix('/ws')}"]


async def test_client_of_a_host_in_no_proxy_connects_directly(edge, http_proxy, monkeypatch):
    _, connected = edge
    monkeypatch.setenv("HTTPS_PROXY", http_proxy.address)
    monkeypatch.setenv("NO_PROXY", ".test")
    with pytest.raises(ClientDisconnected):  # this machine does not know the name
        async with connected():
            pass
    assert http_proxy.targets == []


async def test_status_of_a_proxy_that_refuses_is_in_the_error(edge, http_proxy, monkeypatch):
    _, connected = edge
    http_proxy.credentials = "app:S3cr3t"
    monkeypatch.setenv("HTTPS_PROXY", f"http://app:wr0ng-S3cr3t@{http_proxy.address}")
    with pytest.raises(ClientDisconnected, match="HTTP 407") as refused:
        async with connected():
            pass
    assert "S3cr3t" not in str(refused.value)


async def test_proxy_that_cannot_be_used_is_a_config_error(edge, monkeypatch):
    _, connected = edge
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        async with connected():
            pass

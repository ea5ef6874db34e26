"""The address of an edge, as it is written and as it is used."""

import pytest

from eventbus.client.options import parse_address


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("ws://edge:8080/ws", "ws://edge:8080/ws"),
        ("http://edge:8080", "ws://edge:8080/ws"),
        ("https://edge/", "wss://edge/ws"),
        ("wss://edge/live/ws?region=eu", "wss://edge/live/ws?region=eu"),
        ("ws://[::1]:8080", "ws://[::1]:8080/ws"),
    ],
)
def test_every_way_to_write_an_address_leads_to_its_websocket(written, url):
    assert parse_address(written).url == url


def test_what_may_be_secret_is_used_and_not_shown():
    address = parse_address("wss://me:hunter2@edge:8080/ws?key=hunter2#hunter2")
    assert address.url == "wss://me:hunter2@edge:8080/ws?key=hunter2"
    assert address.shown == "wss://edge:8080/ws"
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x/ws", "ws:///ws"])
def test_what_is_no_address_is_refused_with_what_is_allowed(url):
    with pytest.raises(ValueError, match="not the address of an edge; allowed: ws://host:port/ws"):
        parse_address(url)


@pytest.mark.parametrize(
    "url",
    [
        "me:hunter2@edge", "ws//me:hunter2@edge", "ftp://me:hunter2@edge", "ws://me:hunter2@[::1",
        "ws://me:hunter2#1@edge", "ws://me:hunter2@edge:port", "ws://me:hunter2℀@edge",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match="not the address of an edge") as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)

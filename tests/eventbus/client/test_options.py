"""The address of an edge, as it is written and as it is used."""

import pytest

from eventbus.client import connect
from eventbus.client.options import ClientOptions, parse_address


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


def test_possible_secrets_are_used_and_not_shown():
    address = parse_address("wss://me:hunter2@edge:8080/ws?key=hunter2#hunter2")
    assert address.url == "wss://me:hunter2@edge:8080/ws?key=hunter2"
    assert address.shown == "wss://edge:8080/ws"
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x/ws", "ws:///ws"])
def test_invalid_address_is_refused_with_what_is_allowed(url):
    with pytest.raises(ValueError, match="not the address of an edge; allowed: ws://host:port/ws"):
        parse_address(url)


@pytest.mark.parametrize(
    "url",
    [
        "me:hunter2@edge", "ws//me:hunter2@edge", "ftp://me:hunter2@edge", "ws://me:hunter2@[::1",
        "ws://me:hunter2#1@edge", "ws://me:hunter2@edge:port", "ws://me:hunter2℀@edge",
    ],
)  # fmt: skip
def test_invalid_address_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match="not the address of an edge") as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)


async def _async(_change):
    """Nothing awaits this as an observer."""


async def _generator():
    yield "token"


async def test_callback_whose_code_would_never_run_is_refused():
    client = connect("ws://127.0.0.1:1")
    for observer in (_async, None, lambda: None):
        with pytest.raises(TypeError, match="an observer"):
            client.on_state(observer)
    for token in (_generator, lambda user: "token", 7):
        with pytest.raises(TypeError, match="token"):
            connect("ws://127.0.0.1:1", token=token)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("open_timeout", 0),
        ("request_timeout", float("nan")),
        ("last_delay", float("inf")),
        ("buffer", 0),
        ("buffer", "5"),
        ("max_requests", 1.5),
        ("max_frame_bytes", -1),
        ("first_delay", 31.0),
    ],
)
def test_option_that_is_not_allowed_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=name):
        ClientOptions(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"url": 8080}, "url is a str, not a int"),
        ({"url": None}, "url is a str"),
        ({"url": b"ws://127.0.0.1:1"}, "url is a str"),
        ({"options": {"buffer": 5}}, "options is a ClientOptions, not a dict"),
        ({"tls": True}, "tls is a SSLContext"),
        ({"token": b"secret"}, "token"),
        ({"token": ["secret"]}, "token"),
    ],
)
def test_argument_of_a_wrong_type_is_refused_at_once_and_not_shown(arguments, named):
    with pytest.raises(TypeError, match=named) as caught:
        connect(**{"url": "ws://127.0.0.1:1"} | arguments)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("channel", "history", "error"),
    [
        ("orders.1", "5", TypeError),
        ("orders.1", True, TypeError),
        ("orders.1", -1, ValueError),
        ("orders.1", 1001, ValueError),
        ("orders.*", 5, ValueError),
    ],
)
async def test_history_that_cannot_be_requested_is_refused(channel, history, error):
    client = connect("ws://127.0.0.1:1")
    with pytest.raises(error, match="history"):
        await client.subscribe(channel, history=history)

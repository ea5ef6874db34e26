"""Signatures of the HTTP API, by the vectors of the protocol's documentation."""

import hashlib
import hmac

import pytest

from eventbus.integrations.pusher import PusherApp
from eventbus_edge.pusher.signing import read_parameters, refusal

APP = PusherApp(id="1001", key="app-key", secret="app-secret")
NOW = 1_700_000_000
BODY = b'{"name":"e","channels":["c"],"data":"{\\"n\\":1}"}'
COMMON = f"auth_key=app-key&auth_timestamp={NOW}&auth_version=1.0"
EVENTS = (
    f"/apps/1001/events?{COMMON}&body_md5=2bb6fbf8c5626b89f484969842e403a6"
    "&auth_signature=eb488241646fd8fbb957dd3d55f5cdab1d53626a9a77de0804d9010402235c6f"
)
CHANNELS = (
    f"/apps/1001/channels?{COMMON}&filter_by_prefix=presence-&info=user_count"
    "&auth_signature=41c9e900e24de83238d32c82f84106699d1dd091da05e07806d383aa5085c4e0"
)
CHANNELS_WITH_EMPTY_BODY = (
    f"/apps/1001/channels?{COMMON}&body_md5=d41d8cd98f00b204e9800998ecf8427e"
    "&filter_by_prefix=presence-&info=user_count"
    "&auth_signature=28f62f382529a54019441fe94dad9b404373e2058e52dc6024a1c8b5b9bc4d7f"
)


def signed(path, parameters, decoded=None, method="GET", body=b""):
    """A target whose signature covers `decoded`, the parameters that are not percent-encoded."""
    text = f"{method}\n{path}\n{decoded or parameters}"
    made = hmac.new(APP.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"{path}?{parameters}&auth_signature={made}"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [("POST", EVENTS, BODY), ("GET", CHANNELS, b""), ("GET", CHANNELS_WITH_EMPTY_BODY, b"")],
    ids=["post", "get", "get-with-digest"],
)
def test_requests_of_the_documentation_are_believed(method, target, body):
    assert refusal(APP, method, target, body, now=NOW) is None
    assert refusal(APP, method.lower(), target, body, now=NOW + 600) is None


def test_order_of_the_parameters_does_not_matter():
    path, _, query = CHANNELS.partition("?")
    target = f"{path}?{'&'.join(reversed(query.split('&')))}"
    assert refusal(APP, "GET", target, b"", now=NOW) is None


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [("info=a%2Cb", "info=a,b"), ("info=a,b", "info=a,b"), ("x=a+b", "x=a b"), ("x=a+b", "x=a+b"),
     ("x=%C3%A9", "x=é"), ("info[]=a&info[]=b", "info=a,b"), ("X=1", "x=1"),
     ("info%5B0%5D=b&info%5B1%5D=a", "info=b,a"),  # of PHP
     ("info[]=b&info[]=a", "info[]=b&info[]=a"),  # of Ruby
     ("info%5B%5D=b&info%5B%5D=a", "info[]=b&info[]=a")],
)  # fmt: skip
def test_values_are_signed_without_percent_encoding(encoded, decoded):
    target = signed("/apps/1001/channels", f"{COMMON}&{encoded}", f"{COMMON}&{decoded}")
    assert refusal(APP, "GET", target, b"", now=NOW) is None


@pytest.mark.parametrize("query", ["info=a,b", "info[]=a&info[]=b", "info%5B0%5D=a&info%5B1%5D=b"])
def test_values_of_an_array_are_read_as_one(query):
    assert read_parameters(f"/apps/1/channels?{query}&x=1+2") == {"info": "a,b", "x": "1 2"}


def test_path_may_be_signed_before_it_was_percent_encoded():
    target = signed("/apps/1001/channels/a@b", COMMON)
    encoded = target.replace("a@b", "a%40b")
    for each in (target, encoded):
        assert refusal(APP, "GET", each, b"", now=NOW) is None


@pytest.mark.parametrize(
    ("method", "target", "body", "now", "named"),
    [
        ("GET", EVENTS, BODY, NOW, "auth_signature"),
        ("POST", EVENTS.replace("events", "event"), BODY, NOW, "auth_signature"),
        ("POST", EVENTS + "&info=x", BODY, NOW, "auth_signature"),
        ("POST", EVENTS[:-1] + "0", BODY, NOW, "auth_signature"),
        ("POST", EVENTS.replace("=app-key", "=other"), BODY, NOW, "auth_key"),
        ("POST", EVENTS.replace("=1.0", "=2.0"), BODY, NOW, "auth_version"),
        ("POST", EVENTS, BODY, NOW + 601, "auth_timestamp"),
        ("POST", EVENTS, BODY, NOW - 601, "auth_timestamp"),
        ("POST", EVENTS.replace(str(NOW), "soon"), BODY, NOW, "auth_timestamp"),
        ("POST", EVENTS.replace(str(NOW), "9" * 400), BODY, NOW, "auth_timestamp"),
        ("POST", EVENTS.replace(str(NOW), f"-{'9' * 400}"), BODY, NOW, "auth_timestamp"),
        ("POST", EVENTS.replace("=app-key", "=\udcff"), BODY, NOW, "auth_key"),
        ("POST", EVENTS + "&info=\udcff", BODY, NOW, "auth_signature"),
        ("POST", EVENTS.replace("events", "\udcff"), BODY, NOW, "auth_signature"),
        ("POST", EVENTS, BODY + b" ", NOW, "body_md5"),
        ("POST", EVENTS, b"", NOW, "body_md5"),
        ("GET", CHANNELS, b"x", NOW, "body_md5"),
        ("GET", "/apps/1001/channels", b"", NOW, "auth_key"),
        ("GET", f"/apps/1001/channels?{COMMON}", b"", NOW, "auth_signature"),
        ("GET", f"/apps/1001/channels?{COMMON}&auth_signature=é", b"", NOW, "auth_signature"),
    ],
)
def test_requests_that_are_not_as_signed_are_refused(method, target, body, now, named):
    assert named in refusal(APP, method, target, body, now=now)

"""URLs with credentials: read as they are meant, and never shown with a password."""

from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from eventbus.errors import ConfigError
from eventbus.urls import (
    BrokerAddress,
    fault_text,
    is_web_address,
    mask_url,
    parse_broker_address,
    parse_host,
    proxy_for,
)

SECRET = "S3cr3t"
PASSWORDS = [
    "S3cr3t", "S3cr3t#1", "S3cr3t@1", "@S3cr3t", "S3cr3t/1", "S3cr3t?1", "S3cr3t:1", ":S3cr3t",
    "S3cr3t%1", "S3cr3t%", "100%S3cr3t", "S3cr3t://1", "S3cr3t[1", "S3cr3t]", "S3cr3t\\1",
    "S3cr3t 1", "S3cr3tä", "S3cr3t℀", "S3cr3t✓", "S3cr3t&=+;'\"<>{}|^`~$", "#@/?:%S3cr3t",
]  # fmt: skip
"""As in an address; none has a % before two hexadecimal digits."""
SCHEMES = ("nats", "tls")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("encode", [str, lambda text: quote(text, safe="")], ids=["raw", "encoded"])
def test_a_password_is_read_as_it_is_meant(password, encode):
    address = parse_broker_address(f"nats://app:{encode(password)}@h:4222", SCHEMES)
    assert (address.user, address.password) == ("app", password)
    assert (address.hosts, address.url) == ((("h", 4222),), "nats://h:4222")
    assert address.shown == "nats://***@h:4222"
    assert SECRET not in repr(address) + str(address) + f"{address}"


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_every_printable_password_survives_encoding(password):
    address = parse_broker_address(f"nats://{quote(password, safe='')}@[::1]", SCHEMES)
    assert (address.user, address.password, address.hosts) == (password, None, (("::1", None),))


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ("h:4222", None, None),
        ("nats://h", None, None),
        ("TLS://h", None, None),
        ("nats://S3cr3t@h", "S3cr3t", None),
        ("nats://app:@h", "app", ""),
        ("nats://:S3cr3t@h", "", "S3cr3t"),
        ("app:S3cr3t@h:4222", "app", "S3cr3t"),
        ("nats://a%40b:c%3Ad@h", "a@b", "c:d"),
    ],
)
def test_parts_that_are_missing_are_none(text, user, password):
    address = parse_broker_address(text, SCHEMES, "nats")
    assert (address.user, address.password) == (user, password)


BROKEN = [
    "nats://app:S3cr3t@[::1:4222", "nats://app:S3cr3t@::1]:4222", "nats://app:S3cr3t@h:port",
    "nats://app:S3cr3t@h:0", "nats://app:S3cr3t@h:65536", "nats://app:S3cr3t@h:-1",
    "nats://app:S3cr3t@", "nats://app:S3cr3t@:4222", "nats://app:S3cr3t@h#x", "nats://app:S3cr3t@h#",
    "nats://app:S3cr3t@h h", "nats://@h", "http://app:S3cr3t@h", "app:S3cr3t@h", "app:S3cr3t:h",
    "nats://app:S3cr3t", "nats://app:S3cr3t#1", "nats://app:S3cr3t\n@h", "nats://app:S3cr3t\t@h",
    "nats://app:S3cr3t\x00@h", "nats://app:S3cr3t\udcff@h", "nats://app:S3cr3t%ff@h",
    "nats://app:S3cr3t@h℀", "nats:/app:S3cr3t@h", "nats//app:S3cr3t@h", "://app:S3cr3t@h", "",
    "nats://", "nats://app:S3cr3t@h,",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"nats://app:S3cr3t@h"', "it is in quotes: remove them"),
        ("'nats://app:S3cr3t@h'", "it is in quotes: remove them"),
        ("nats://app:S3cr3t@h:1;nats://app:S3cr3t@i:1", "addresses are separated by commas"),
        ("nats://h:1;nats://i:1", "addresses are separated by commas"),
        ("nats://h:1 nats://i:1", "addresses are separated by commas"),
        ("http://app:S3cr3t@h", "its scheme is http://, not one of nats, "),
        ("S3cr3t://h", "its scheme is not one of nats, "),
    ],
)
def test_common_mistakes_are_named(text, problem):
    with pytest.raises(ValueError, match="it") as caught:
        parse_broker_address(text, ["nats", "tls"])
    assert problem in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", BROKEN)
def test_invalid_address_is_refused_without_being_quoted(text):
    with pytest.raises(ValueError, match="it") as caught:
        parse_broker_address(text, SCHEMES)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_several_hosts_have_one_login():
    address = parse_broker_address("redis+cluster://u:p,w@a:1,[::1]:2,c/x%2Fy?z", ["redis+cluster"])
    assert address == BrokerAddress(
        "redis+cluster", "u", "p,w", (("a", 1), ("::1", 2), ("c", None)), "/x%2Fy", "z"
    )
    assert address.shown == "redis+cluster://***@a:1,[::1]:2,c/x%2Fy?***"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("h", ("h", None)), ("H.x:1", ("h.x", 1)), ("[::1]:2", ("::1", 2)), ("h:", ("h", None))],
)
def test_host_and_port_are_read(text, expected):
    assert parse_host(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":1", "u:S3cr3t@h", "h/x", "h?x", "h#x", "h:x", "a b", "[::1"]
)
def test_invalid_host_is_not_quoted(text):
    with pytest.raises(ValueError, match="a port of 1 to 65535") as caught:
        parse_host(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a/b", "http://a/b"),
        ("https://u:p@a:1/b?c=d#e", "https://***@a:1/b?***"),
        ("http://u:p@@a/", "http://***@a/"),
        ("http://[::1]:1/x", "http://[::1]:1/x"),
        ("redis://u:p@a:1,b:2/0", "redis://***@a:1,b:2/0"),
        ("a:4222", "a:4222"),
        ("http://[::1", "***"),
        ("u:p@a", "***"),
        ("http://u:p@a/x@y", "***"),
        ("http:/u:p@a", "***"),
        ("", "***"),
    ],
)
def test_addresses_are_shown_without_their_secrets(url, shown):
    assert mask_url(url) == shown


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "form",
    ["https://u:{}@h:1/x", "https://{}@h", "https://:{}@h", "u:{}@h", "https://h/?k={}",
     "https://h#{}", "https://u:{}@[::1", "https://u:{}@h:port", "https://u:{}", "//u:{}@h",
     "https://a:1,u:{}@h"],
)  # fmt: skip
def test_no_form_of_a_url_shows_its_password(form, password):
    url = form.format(password)
    if not url.endswith(f"@{SECRET}"):  # that is the name of a host
        assert SECRET not in mask_url(url)


def test_web_addresses_have_a_scheme_and_a_host():
    assert is_web_address("http://u:p@h:1/x?y")
    assert not any(
        map(is_web_address, ("", "h", "ftp://h", "http://", "http://[::1", "http://h:0", "http://h:x",
                             "http://u:p℀@h"))
    )  # fmt: skip


def test_an_error_that_may_quote_a_url_is_shown_by_its_type():
    assert fault_text(OSError("Connect call failed ('127.0.0.1', 1)")).startswith("Connect call")
    assert fault_text(ValueError("http://u:S3cr3t@h")) == "ValueError"
    assert fault_text(ValueError("")) == "ValueError"


# Proxies


@pytest.fixture
def environ(monkeypatch):
    def change(**variables):
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://a.example", "http://plain:3128"),
        ("https://a.example/keys", "http://tls:3128"),
        ("wss://a.example/ws", "http://tls:3128"),
        ("ws://a.example/ws", None),
        ("http://localhost:8080", None),
        ("https://LOCALHOST", None),
        ("http://127.0.0.1:8080", None),
        ("http://[::1]:8080", None),
        ("wss://127.8.8.8", None),
        ("http://10.0.0.7", "http://plain:3128"),
        ("http://localhost.example", "http://plain:3128"),
    ],
)
def test_the_proxy_is_that_of_the_scheme_and_none_for_this_machine(environ, url, proxy):
    environ(HTTP_PROXY="http://plain:3128", HTTPS_PROXY="tls:3128")
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "https://a.example", True),
        ("*", "https://10.0.0.7", True),
        ("a.example", "https://a.example", True),
        ("A.example", "https://a.EXAMPLE", True),
        ("example", "https://a.example", True),
        (".example", "https://a.example", True),
        ("b.example, .a.example", "https://x.a.example", True),
        ("a.example", "https://xa.example", False),
        ("a.example:8443", "https://a.example:8443", True),
        ("a.example:443", "https://a.example", True),
        ("a.example:8443", "https://a.example", False),
        ("10.0.0.7", "https://10.0.0.7", True),
        ("10.0.0.7:443", "https://10.0.0.7", True),
        ("10.0.0.7:8443", "https://10.0.0.7", False),
        ("10.0.0.0/8,.svc", "https://10.9.8.7", True),
        ("10.0.0.0/8,.svc", "https://keys.auth.svc:8443", True),
        ("10.0.0.0/8", "https://11.0.0.1", False),
        ("fd00::/8", "https://[fd00::1]", True),
        ("[fd00::1]", "https://[fd00::1]", True),
        ("[fd00::1]:443", "https://[fd00::1]", True),
        ("fd00::1", "https://[fd00::2]", False),
        ("", "https://a.example", False),
    ],
)
def test_hosts_in_no_proxy_are_reached_directly(environ, no_proxy, url, is_direct):
    environ(HTTPS_PROXY="http://tls:3128", NO_PROXY=no_proxy)
    assert (proxy_for(url) is None) is is_direct


def test_a_proxy_for_all_is_used_where_there_is_no_other(environ):
    environ(ALL_PROXY="http://all:3128", https_proxy="https://tls:3128")
    assert proxy_for("http://a.example") == "http://all:3128"
    assert proxy_for("https://a.example") == "https://tls:3128"
    environ()
    assert proxy_for("https://a.example") is None


@pytest.mark.parametrize("proxy", ["socks5://app:S3cr3t@h:1080", "http://", "http://h:x", "//h"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_credentials(environ, proxy):
    environ(HTTPS_PROXY=proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as refused:
        proxy_for("https://a.example")
    assert SECRET not in str(refused.value)
    assert "allowed: " in str(refused.value)

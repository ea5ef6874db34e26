"""URLs with credentials: read as they are meant, and never shown with a password."""

from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from eventbus.urls import (
    BrokerAddress,
    fault_text,
    is_web_address,
    mask_url,
    parse_broker_address,
    parse_host,
)

SECRET = "S3cr3t"
PASSWORDS = [
    "S3cr3t", "S3cr3t#1", "S3cr3t@1", "@S3cr3t", "S3cr3t/1", "S3cr3t?1", "S3cr3t:1", ":S3cr3t",
    "S3cr3t%1", "S3cr3t%", "100%S3cr3t", "S3cr3t://1", "S3cr3t[1", "S3cr3t]", "S3cr3t\\1",
    "S3cr3t 1", "S3cr3tä", "S3cr3t℀", "S3cr3t✓", "S3cr3t&=+;'\"<>{}|^`~$", "#@/?:%S3cr3t",
]  # fmt: skip
"""As they stand in an address; none has a % before two hexadecimal digits."""
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


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_address_is_refused_without_being_quoted(text):
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
def test_what_is_no_host_is_not_quoted(text):
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

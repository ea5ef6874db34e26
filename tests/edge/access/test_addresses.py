"""The client's address behind proxies: only trusted proxies may set it."""

import ipaddress

import pytest
from hypothesis import given, strategies as st
from multidict import CIMultiDict

from eventbus.errors import ConfigError
from eventbus_edge.access.addresses import (
    ClientAddresses,
    group,
)

PROXY = "10.0.0.1"
BEHIND = ClientAddresses(["10.0.0.0/8", "fd00::/8"])
BEHIND_RFC7239 = ClientAddresses(["10.0.0.0/8"], "Forwarded")


def of(value, peer=PROXY, addresses=BEHIND, header="X-Forwarded-For"):
    return addresses.of(peer, {header: value})


def test_without_trusted_proxies_the_address_is_that_of_the_socket():
    assert ClientAddresses().of("8.8.8.8", {"X-Forwarded-For": "1.1.1.1"}) == "8.8.8.8"
    assert ClientAddresses().of("127.0.0.1", {"X-Forwarded-For": "1.1.1.1"}) == "127.0.0.1"


def test_forwarded_headers_of_a_client_that_is_not_a_proxy_are_ignored():
    assert of("1.1.1.1", peer="8.8.8.8") == "8.8.8.8"


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("9.9.9.9, 1.2.3.4", "1.2.3.4"),  # preceded by what the client itself had written
        ("9.9.9.9, 1.2.3.4, 10.1.1.1", "1.2.3.4"),
        ("10.2.2.2, 10.1.1.1", "10.2.2.2"),  # trusted all the way: the farthest
        ("1.2.3.4:567", "1.2.3.4"),
        ("[2001:db8::1]:567", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("1.2.3.4, unknown", PROXY),  # beyond what cannot be read nothing is known
        ("1.2.3.4, ", PROXY),
        ("", PROXY),
        ("1.2.3.4, <script>", PROXY),
    ],
)
def test_the_list_is_read_from_its_end_to_the_first_that_is_not_trusted(value, client):
    assert of(value) == client


def test_several_headers_are_one_list():
    headers = CIMultiDict([("x-forwarded-for", "9.9.9.9"), ("X-Forwarded-For", "1.2.3.4")])
    assert BEHIND.of(PROXY, headers) == "1.2.3.4"


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("for=1.2.3.4", "1.2.3.4"),
        ('for=9.9.9.9, For="1.2.3.4:80";proto=https;by=10.0.0.9', "1.2.3.4"),
        ('proto=http;for="[2001:db8::1]:4711"', "2001:db8::1"),
        ("for=1.2.3.4;host=a, for=10.3.3.3", "1.2.3.4"),
        ("for=_hidden", PROXY),
        ("for=unknown", PROXY),
        ("by=10.0.0.9", PROXY),
        ('for="1.2.3.4', PROXY),
        ("garbage", PROXY),
    ],
)
def test_a_forwarded_header_is_read_by_its_rfc(value, client):
    assert of(value, addresses=BEHIND_RFC7239, header="Forwarded") == client


def test_only_the_header_that_the_proxies_set_is_read():
    assert of("for=1.2.3.4", header="Forwarded") == PROXY
    assert of("1.2.3.4", addresses=BEHIND_RFC7239) == PROXY


def test_a_proxy_over_a_socket_of_both_families_is_known():
    assert of("1.2.3.4", peer="::ffff:10.0.0.1") == "1.2.3.4"


def test_a_peer_without_an_address_is_one_and_the_same():
    assert ClientAddresses().of(None, {}) == "unknown"


@given(st.text(max_size=200), st.sampled_from([BEHIND, BEHIND_RFC7239]))
def test_any_header_gives_an_address(value, addresses):
    name = "Forwarded" if addresses is BEHIND_RFC7239 else "X-Forwarded-For"
    ipaddress.ip_address(addresses.of(PROXY, {name: value}))


@given(st.lists(st.ip_addresses(), max_size=5), st.ip_addresses(v=4))
def test_addresses_that_a_client_puts_in_front_never_count(written, real):
    if real in ipaddress.ip_network("10.0.0.0/8"):
        return
    claimed = ", ".join([*map(str, written), str(real)])
    assert of(claimed) == str(real)


def test_an_ipv6_site_counts_as_one():
    assert group("2001:db8:0:1::1") == group("2001:db8:0:1:ffff::2") == "2001:db8:0:1::/64"
    assert group("2001:db8:0:2::1") != group("2001:db8:0:1::1")
    assert group("1.2.3.4") == group("::ffff:1.2.3.4") == "1.2.3.4"
    assert group("unknown") == "unknown"


@pytest.mark.parametrize("text", ["example.com", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_a_proxy_that_is_not_an_address_is_refused(text):
    with pytest.raises(ConfigError, match="BROADCAST_TRUSTED_PROXIES"):
        ClientAddresses([text])

"""The handshake: what a request asks for, and a clear refusal of anything else in it."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from eventbus_edge.access.origins import (
    AllowedOrigins,
    parse_origin,
)
from eventbus_edge.problem import Problem
from eventbus_edge.protocols.native import NATIVE
from eventbus_edge.transports.handshake import (
    MAX_PARAMETERS_BYTES,
    read_handshake,
)

PROTOCOLS = "Sec-WebSocket-Protocol"
INVALID_TOKEN = 'Bearer error="invalid_token"'


def read(path=None, query=(), headers=(), max_channels=100):
    return read_handshake(
        raw_path_channel=path,
        query=list(query),
        headers=CIMultiDictProxy(CIMultiDict(headers)),
        max_channels=max_channels,
        subprotocols=NATIVE.subprotocols,
    )


def refused(*args, **kwargs):
    with pytest.raises(Problem) as caught:
        read(*args, **kwargs)
    return caught.value


def channel(*names):
    return [("channel", name) for name in names]


def test_plain_request_asks_for_nothing():
    assert read() == ((), None, None)


def test_channels_are_the_paths_first_and_each_once():
    asked = read("chat.lobby", channel("general", "chat.lobby", "system", "general"))
    assert asked.channels == ("chat.lobby", "general", "system")


@pytest.mark.parametrize(
    ("raw", "name"),
    [("general", "general"), ("user%2E1", "user.1"), ("a@b,c;d=e", "a@b,c;d=e"), ("%61", "a")],
)
def test_path_is_percent_decoded_once(raw, name):
    assert read(raw).channels == (name,)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "%",
        "%2",
        "%zz",
        "%FF",
        "%C3%28",
        "%E2%82",
        "%C3%A9",
        "é",
        "\udcff",
        chr(0xD800),
        "%00",
        "a%00b",
        "%2F",
        "a/b",
        "a%2Fb",
        "%2e%2e",
        "..",
        ".",
        "a..b",
        ".a",
        "a.",
        "%20",
        "a b",
        "a+b",
        "%0d%0aSet-Cookie:a",
        "a%0A",
        "*",
        "a.%3E",
        ">",
        "%2561",
        "x" * 201,
        "%78" * 201,
        "x" * 1_000_000,
        "$SYS.x",
        "eb:x",
    ],
)
def test_any_path_is_a_channel_or_a_400(raw):
    problem = refused(raw)
    assert (problem.status, problem.code) == (400, "invalid_channel")
    assert "is not a channel name" in problem.detail
    assert len(problem.body()) < 1000


def test_bytes_that_are_not_text_are_shown_as_they_came():
    assert "'a%FF'" in refused("a%FF").detail


@pytest.mark.parametrize(
    "query",
    [
        "channel=",
        "channel",
        "channel=%FF",
        "channel=%00",
        "channel=a%20b",
        "channel=general&channel=a..b",
        "channel=*",
        "channel=orders.%3E",
        "channel=%E2%82",
        "channel=\ufffd",
        "channel=" + "x" * 201,
        "channel=[]",
    ],
)
def test_any_query_is_a_channel_or_a_400(query):
    problem = refused(query=URL(f"/ws?{query}", encoded=True).query.items())
    assert (problem.status, problem.code) == (400, "invalid_channel")


def test_unknown_parameters_and_headers_are_ignored():
    asked = read(query=[("foo", "\0"), ("Channel", "x y"), ("channel[]", "x")], headers={"X": "y"})
    assert asked == ((), None, None)


def test_channels_over_the_limit_are_refused_and_counted_once_each():
    names = [f"c{i}" for i in range(3)]
    assert len(read(query=channel(*names, *names), max_channels=3).channels) == 3
    problem = refused("c9", channel(*names), max_channels=3)
    assert (problem.status, problem.code) == (400, "limit_exceeded")
    assert problem.detail == ("the request names 4 channels: at most 3 per connection are allowed")


@pytest.mark.parametrize(
    "query", [[("x", "y" * MAX_PARAMETERS_BYTES)], [("x" * 10, "")] * 4000], ids=["one", "many"]
)
def test_oversized_query_is_refused(query):
    problem = refused(query=query)
    assert (problem.status, problem.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("headers", "query", "token"),
    [
        ({"Authorization": "Bearer a.b.c"}, [], "a.b.c"),
        ({"authorization": "bearer a.b.c"}, [], "a.b.c"),
        ({"Authorization": "Bearer   a.b.c "}, [], "a.b.c"),
        ({PROTOCOLS: "eventbus.v1, eventbus.bearer.a.b.c"}, [], "a.b.c"),
        ({PROTOCOLS: "eventbus.bearer.a.b.c,eventbus.v1"}, [], "a.b.c"),
        ({}, [("auth_token", "a.b.c")], "a.b.c"),
        (
            {"Authorization": "Bearer 1", PROTOCOLS: "eventbus.v1,eventbus.bearer.2"},
            [("auth_token", "3")],
            "1",
        ),
        ({PROTOCOLS: "eventbus.v1,eventbus.bearer.2"}, [("auth_token", "3")], "2"),
        ({PROTOCOLS: "eventbus.v1"}, [("auth_token", "3")], "3"),
        ({PROTOCOLS: "eventbus.v1"}, [], None),
        ({PROTOCOLS: "other, eventbus.v1"}, [], None),
    ],
)
def test_token_is_taken_from_the_first_place_that_has_one(headers, query, token):
    asked = read(query=query, headers=headers)
    assert asked.token == token
    assert asked.subprotocol == ("eventbus.v1" if PROTOCOLS in headers else None)


def test_several_headers_of_subprotocols_are_one_list():
    """RFC 6455, 11.3.4."""
    headers = [(PROTOCOLS, "other"), ("sec-websocket-protocol", "eventbus.bearer.a.b.c")]
    asked = read(headers=[*headers, (PROTOCOLS, "eventbus.v1")])
    assert (asked.subprotocol, asked.token) == ("eventbus.v1", "a.b.c")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer  ",
        "Bearera.b.c",
        "Bearer\ta.b.c",
        "Bearer a b",
        "Basic dXNlcjpwYXNz",
        "Token a.b.c",
        "a.b.c",
        "Bearer, a.b.c",
        "\0Bearer a.b.c",
    ],
)
def test_authorization_of_another_form_is_a_401_whatever_else_is_given(authorization):
    problem = refused(headers={"Authorization": authorization}, query=[("auth_token", "a.b.c")])
    assert (problem.status, problem.code) == (401, "unauthorized")
    assert problem.headers["WWW-Authenticate"] == INVALID_TOKEN
    assert "dXNlcjpwYXNz" not in problem.detail


@pytest.mark.parametrize(
    ("headers", "query"),
    [({}, [("auth_token", "")]), ({PROTOCOLS: "eventbus.v1,eventbus.bearer."}, [])],
)
def test_empty_token_is_a_401(headers, query):
    problem = refused(headers=headers, query=query)
    assert (problem.status, problem.detail) == (401, "the token is empty")
    assert problem.headers["WWW-Authenticate"] == INVALID_TOKEN


@pytest.mark.parametrize(
    "offered",
    [
        "eventbus.bearer.a.b.c",
        "EventBus.Bearer.a.b.c",
        "eventbus.bearer.a.b.c, other",
        "eventbus.bearer.a.b.c eventbus.v1",
        "eventbus.bearer.a.b.c, Eventbus.V1",
        "eventbus.v2",
        "eventbus.v1x",
        "",
        ",,",
    ],
)
def test_subprotocols_without_the_real_one_are_a_400_that_shows_no_token(offered):
    problem = refused(headers={PROTOCOLS: offered})
    assert (problem.status, problem.code) == (400, "bad_request")
    assert "offer eventbus.v1" in problem.detail
    assert "a.b.c" not in problem.detail


@pytest.mark.parametrize(
    ("query", "headers", "what"),
    [
        ([("auth_token", "a"), ("auth_token", "a")], [], "auth_token"),
        ([("auth_token", "a"), ("auth_token", "b")], [("Authorization", "Bearer c")], "auth_token"),
        ([], [("Authorization", "Bearer a"), ("authorization", "Bearer b")], "Authorization"),
        (
            [],
            [(PROTOCOLS, "eventbus.v1, eventbus.bearer.a"), (PROTOCOLS, "eventbus.bearer.b")],
            "bearer",
        ),
        ([], [(PROTOCOLS, "eventbus.v1,eventbus.bearer.a,eventbus.bearer.b")], "bearer"),
    ],
)
def test_repeated_parameter_is_a_400(query, headers, what):
    problem = refused(query=query, headers=headers)
    assert (problem.status, problem.code) == (400, "bad_request")
    assert what in problem.detail
    assert "given 2 times" in problem.detail


ORIGINS = [
    # origin, host, allowed, may come
    (None, "example.com", (), True),
    (None, "", (), True),
    ("https://example.com", "example.com", (), True),
    ("http://example.com", "example.com", (), True),
    ("https://EXAMPLE.com", "example.COM", (), True),
    ("https://example.com", "example.com:443", (), True),
    ("https://example.com:443", "example.com", (), True),
    ("http://example.com", "example.com:80", (), True),
    ("http://localhost:8080", "localhost:8080", (), True),
    ("http://[::1]:8080", "[::1]:8080", (), True),
    ("http://127.0.0.1:8080", "127.0.0.1:8080", (), True),
    ("https://example.com", "example.com:80", (), False),
    ("http://example.com", "example.com:443", (), False),
    ("http://localhost:3000", "localhost:8080", (), False),
    ("http://localhost", "localhost:8080", (), False),
    ("http://127.0.0.1:8080", "localhost:8080", (), False),
    ("https://evil.example", "example.com", (), False),
    ("https://example.com.evil.example", "example.com", (), False),
    ("https://evilexample.com", "example.com", (), False),
    ("https://sub.example.com", "example.com", (), False),
    ("https://example.com.", "example.com", (), False),
    ("capacitor://localhost", "localhost", (), False),
    ("capacitor://localhost", "node", ("capacitor://localhost",), True),
    ("chrome-extension://abcdef", "node", ("chrome-extension://abcdef",), True),
    ("https://app.example", "node", ("https://app.example",), True),
    ("https://app.example", "node", ("https://other.example", "https://APP.example:443"), True),
    ("http://app.example", "node", ("https://app.example",), False),
    ("https://app.example:8443", "node", ("https://app.example",), False),
    ("https://x.app.example", "node", ("https://app.example",), False),
    ("https://app.example", "node", ("app.example",), True),
    ("http://app.example:3000", "node", ("app.example:3000",), True),
    ("http://app.example:3000", "node", ("app.example",), False),
    ("capacitor://app.example", "node", ("app.example",), False),
    ("https://anything.example", "node", ("*",), True),
    ("capacitor://localhost", "node", ("*",), True),
    ("https://x.app.example", "node", ("*.app.example",), True),
    ("http://x.app.example", "node", ("*.app.example",), True),
    ("https://x.app.example", "node", ("https://*.app.example",), True),
    ("https://X.y.APP.example:443", "node", ("https://*.App.example",), True),
    ("http://x.app.example", "node", ("https://*.app.example",), False),
    ("https://app.example", "node", ("https://*.app.example",), False),
    ("https://.app.example", "node", ("https://*.app.example",), False),
    ("https://xapp.example", "node", ("https://*.app.example",), False),
    ("https://x.app.example.evil.example", "node", ("https://*.app.example",), False),
    ("https://x.app.example:8443", "node", ("https://*.app.example",), False),
    ("https://x.app.example:8443", "node", ("https://*.app.example:8443",), True),
    ("https://x.app.example:8443", "node", ("https://*.app.example:*",), True),
    ("http://localhost:5173", "node", ("http://localhost:*",), True),
    ("http://localhost", "node", ("http://localhost:*",), True),
    ("https://localhost:5173", "node", ("http://localhost:*",), False),
    ("https://localhost:5173", "node", ("localhost:*",), True),
    ("http://[::1]:5173", "node", ("http://[::1]:*",), True),
    ("http://localhost.evil.example:5173", "node", ("http://localhost:*",), False),
    ("null", "null", (), False),
    ("null", "node", ("*",), False),
    ("null", "node", ("*", "null"), True),
    ("https://null", "node", ("null",), True),
    ("NULL", "node", ("null",), False),
]


@pytest.mark.parametrize(("origin", "host", "allowed", "expected"), ORIGINS)
def test_origin_is_the_own_host_or_one_allowed(origin, host, allowed, expected):
    assert AllowedOrigins(allowed).allows(origin, host) is expected


MALFORMED = [
    "",
    " ",
    "example.com",
    "//example.com",
    "://example.com",
    "https:example.com",
    "https:/example.com",
    "https://",
    "https://example.com/",
    "https://example.com/path",
    "https://example.com?x",
    "https://example.com#x",
    "https://user@example.com",
    "https://evil.example@example.com",
    "https://evil.example\\example.com",
    "https://example.com:",
    "https://example.com:0",
    "https://example.com:65536",
    "https://example.com:443:443",
    "https://example.com:٤٤٣",
    "https://example.com:+443",
    "https://example.com https://evil.example",
    "https://example.com, https://evil.example",
    " https://example.com",
    "https://example.com\n",
    "https://example.com\0",
    "https://exämple.com",
    "https://\udcff",
    "https://[::1",
    "https://::1",
    "ht tp://example.com",
    "1http://example.com",
    "https://" + "x" * 100 + "/" * 100_000,
]


@pytest.mark.parametrize("origin", MALFORMED)
def test_malformed_origin_is_refused_even_where_any_is_allowed(origin):
    assert parse_origin(origin) is None
    assert not AllowedOrigins(()).allows(origin, "example.com")
    assert not AllowedOrigins(("*", "null", "https://example.com")).allows(origin, "example.com")


@pytest.mark.parametrize("host", ["", " ", "example.com/", "a@example.com", "example.com:x", "é"])
def test_malformed_host_belongs_to_nobody(host):
    assert not AllowedOrigins(()).allows("https://example.com", host)
    assert AllowedOrigins(("https://example.com",)).allows("https://example.com", host)

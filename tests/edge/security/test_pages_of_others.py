"""A page of another site can do nothing with a user's browser."""

import json

import pytest

EVIL = "https://evil.example"


@pytest.fixture
def cookies(token):
    """Everything that an application might keep in cookies of the edge's host."""
    value = token("7", roles=["admin"])
    names = ("token", "auth_token", "access_token", "session", "Authorization", "jwt")
    return {"Cookie": "; ".join(f"{name}={value}" for name in names)}


async def test_cookies_identify_nobody(edge, cookies, http_session):
    """Cross-site WebSocket hijacking needs a handshake that is authenticated by a cookie."""
    client = await edge.connect(headers=cookies)
    assert client.greeting["data"].get("user_id") is None
    assert await client.error("subscribe", channel="user.7") == "unauthorized"
    status, _, problem = await edge.refusal("/ws/user.7", headers=cookies)
    assert (status, problem["code"]) == (401, "unauthorized")
    async with (
        http_session() as session,
        session.get(f"{edge.url}/sse?channel=user.7", headers=cookies) as response,
    ):
        assert response.status == 401


async def test_cookies_open_no_api(start_edge, bus, cookies, http_session):
    edge = await start_edge(bus, api_key="the-api-key-of-cookies")
    async with http_session() as session:
        for path in ("/api/broadcast/channels", "/metrics", "/api/asyncapi.json"):
            async with session.get(f"{edge.url}{path}", headers=cookies) as response:
                assert response.status == 401, path
        ticket = session.post(f"{edge.url}/dashboard/ticket", headers=cookies)
        async with ticket as response:
            assert response.status == 401


async def test_page_of_another_origin_opens_no_socket_even_with_a_token(edge, token):
    for origin in (EVIL, "null", "https://127.0.0.1.evil.example", "http://127.0.0.1:1", "file://"):
        status, _, problem = await edge.refusal(headers={"Origin": origin}, token=token("7"))
        assert (status, problem["code"]) == (403, "forbidden"), origin


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1",)], ids=["a client", "a trusted proxy"])
async def test_forwarded_host_and_scheme_are_never_read(start_edge, bus, trusted):
    edge = await start_edge(bus, trusted_proxies=trusted)
    forwarded = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Port": "443",
        "Forwarded": "host=evil.example;proto=https",
        "X-Original-Host": "evil.example",
    }
    status, _, _ = await edge.refusal(headers=forwarded | {"Origin": EVIL})
    assert status == 403
    assert await edge.connect(headers=forwarded | {"Origin": edge.url})


async def test_answers_are_not_shared_with_pages_of_other_origins(edge, http_session):
    async with http_session() as session:
        for path in ("/api/broadcast/channels", "/sse?channel=general", "/readyz", "/dashboard"):
            async with session.get(f"{edge.url}{path}", headers={"Origin": EVIL}) as response:
                assert "Access-Control-Allow-Origin" not in response.headers, path
                assert "Access-Control-Allow-Credentials" not in response.headers, path


async def test_pages_cannot_be_framed_or_run_what_others_inject(edge, http_session):
    async with http_session() as session:
        for path in ("/", "/dashboard", "/api/docs"):
            async with session.get(f"{edge.url}{path}") as response:
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy, path
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                text = await response.text()
                assert "<script>" not in text
                assert " onclick=" not in text


async def test_answers_that_quote_a_request_are_never_html(edge, http_session):
    attack = "<script>alert(1)</script>"
    async with http_session() as session:
        for path in (f"/{attack}", f"/ws/{attack}", f"/sse?channel={attack}", f"/static/{attack}"):
            async with session.get(f"{edge.url}{path}") as response:
                assert response.content_type == "application/problem+json", path
                json.loads(await response.text())

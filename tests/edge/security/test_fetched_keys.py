"""Tokens that name the address of their keys, and servers that answer with more than keys."""

import asyncio
import gzip
import tracemalloc

import jwt
import pytest
from aiohttp import web

from eventbus_edge.access import Jwks

SECRET = "a-secret-of-tests-that-is-32-bytes-long"
BOMB = gzip.compress(bytes(64 * 1024**2), 9)
MIB = 1024**2


@pytest.fixture
async def server():
    """A web server that counts requests, and answers each with a body that inflates to 64 MiB."""
    requests = []

    async def handle(request):
        requests.append(request.path)
        return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", requests
    await runner.cleanup()


@pytest.mark.parametrize("header", ["jku", "x5u", "kid", "jwk", "iss"])
async def test_node_never_fetches_what_a_token_names(start_edge, bus, server, header):
    url, requests = server
    edge = await start_edge(bus, jwt_secret=SECRET)
    value = {"kty": "oct", "k": "AAAA", "x5u": url} if header == "jwk" else f"{url}/keys"
    claims = {"sub": "7", "aud": "websocket", "exp": 4_000_000_000, "iss": url}
    token = jwt.encode(claims, "k" * 32, headers={header: value})
    assert (await edge.refusal(token=token))[0] == 401
    client = await edge.connect()
    assert await client.error("auth", data={"token": token}) == "unauthorized"
    assert requests == []


async def test_key_set_that_inflates_without_end_is_given_up_in_bounded_memory(server, caplog):
    url, requests = server
    keys = Jwks(url, frozenset({"RS256"}), timeout_s=10.0)
    tracemalloc.start()
    try:
        async with asyncio.timeout(40):
            await keys.open(lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await keys.aclose()
    assert requests == ["/"]
    assert "more than 262144 bytes" in caplog.text
    assert peak < 8 * MIB
    assert keys.algorithms == ()

"""The static files: the client is for pages of every origin."""

import aiohttp
import pytest


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize("path", ["/static/eventbus.js", "/static/nothing.js"])
async def test_pages_of_every_origin_may_import_the_client(edge, http, path):
    async with http.get(edge.url + path, headers={"Origin": "https://shop.example"}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in response.headers
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-cache"


async def test_nothing_else_is_opened_to_other_origins_by_that(edge, http):
    for path in ("/healthz", "/dashboard", "/api/broadcast/stats", "/metrics"):
        headers = {"Origin": "https://shop.example"}
        async with http.get(edge.url + path, headers=headers) as response:
            assert "Access-Control-Allow-Origin" not in response.headers

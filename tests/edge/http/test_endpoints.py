"""HTTP beside the sockets: alive, ready, and the metrics for those who may see them."""

import aiohttp
import pytest

KEY = "the-key-of-this-test"


async def get(edge, path, method="GET", **headers):
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, edge.url + path, headers=headers) as response,
    ):
        return response.status, response.headers, await response.read()


async def problem(edge, path, method="GET", **headers):
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, edge.url + path, headers=headers) as response,
    ):
        assert response.content_type == "application/problem+json"
        body = await response.json()
        assert body["status"] == response.status
        return response.status, body["code"], response.headers


async def test_a_node_that_can_serve_is_alive_and_ready(edge):
    assert (await get(edge, "/healthz"))[0] == 200
    status, headers, body = await get(edge, "/readyz")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert edge.node.id.encode() in body


async def test_the_metrics_count_what_happens(edge, bus):
    client = await edge.connect("/ws/general")
    await client.next()
    await bus.publish("general", "e", 1)
    await client.next()
    await client.error("subscribe", channel="user.7")
    await edge.refusal("/ws/user.7")
    _, _, body = await get(edge, "/metrics")
    lines = body.decode().splitlines()
    for line in (
        "eventbus_edge_connections 1.0",
        "eventbus_edge_connections_opened_total 1.0",
        "eventbus_edge_subscriptions 1.0",
        "eventbus_edge_messages_in_total 1.0",
        "eventbus_edge_messages_out_total 1.0",
        'eventbus_edge_client_errors_total{code="unauthorized"} 1.0',
        'eventbus_edge_refusals_total{code="unauthorized"} 1.0',
    ):
        assert line in lines


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, "Bearer é"],
)
async def test_configured_key_protects_the_metrics(start_edge, bus, authorization):
    edge = await start_edge(bus, api_key=KEY)
    headers = {} if authorization is None else {"Authorization": authorization}
    status, code, headers = await problem(edge, "/metrics", **headers)
    assert (status, code) == (401, "unauthorized")
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert (await get(edge, "/metrics", Authorization=f"Bearer {KEY}"))[0] == 200
    assert (await get(edge, "/metrics", Authorization=f"bearer  {KEY}"))[0] == 200


async def test_the_metrics_can_be_opened_to_all(start_edge, bus):
    edge = await start_edge(bus, api_key=KEY, metrics_open=True)
    assert (await get(edge, "/metrics"))[0] == 200


async def test_missing_file_is_a_problem_too(edge):
    assert (await problem(edge, "/nothing"))[:2] == (404, "not_found")
    status, _, headers = await problem(edge, "/healthz", "POST")
    assert status == 405
    assert "GET" in headers["Allow"]


@pytest.mark.parametrize(
    "path", ["/static/../config.py", "/static/%2e%2e/config.py", "/static/..%2fconfig.py"]
)
async def test_nothing_outside_the_static_folder_is_served(edge, path):
    from yarl import URL  # noqa: PLC0415 - a request as it is written

    async with (
        aiohttp.ClientSession() as http,
        http.get(URL(edge.url + path, encoded=True)) as response,
    ):
        assert response.status in {403, 404}
        assert b"EdgeSettings" not in await response.read()


async def test_a_node_without_websockets_says_so_at_their_path(start_edge, bus):
    edge = await start_edge(bus, websocket_enabled=False)
    assert (await problem(edge, "/ws"))[:2] == (404, "websocket_disabled")
    assert (await problem(edge, "/wss"))[:2] == (404, "not_found")
    assert (await get(edge, "/readyz"))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/ws", "/static/eventbus.js"])
async def test_no_response_contains_the_versions_of_the_server(edge, path):
    assert (await get(edge, path))[1]["Server"] == "eventbus"


async def test_an_upgrade_does_not_contain_them_either(edge):
    client = await edge.connect()
    assert client.socket.response.headers["Server"] == "eventbus"


@pytest.mark.parametrize("path", ["/ws", "/ws/general", "/nowhere"])
async def test_pages_of_every_origin_may_read_why_they_cannot_open_a_websocket(edge, path):
    _, code, headers = await problem(edge, path, Origin="https://shop.example")
    assert code in {"forbidden", "not_found", "upgrade_required"}
    assert headers["Access-Control-Allow-Origin"] == "*"

"""What eventbus.js says when it cannot connect: which option, origin or path to change."""

import asyncio

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.browser.scripted import state

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-client")]


@pytest_asyncio.fixture
async def warned(loaded):
    """What the console of the page shows as warnings."""
    texts = []
    loaded.on("console", lambda message: message.type == "warning" and texts.append(message.text))
    return texts


WRONG_OPTIONS = {
    "undefined": "url",
    "{}": "url must be of type string or URL",
    "{ url: 7 }": "url must be of type string or URL",
    "{ url: null }": "url must be",
    "{ url: 'ftp://edge/ws' }": "url must start with ws: or http:",
    "{ url: 'http://[/ws' }": "URL",
    "{ url: '/ws', token: 7 }": "token must be of type function or string",
    "{ url: '/ws', token: { jwt: 'x' } }": "token must be",
    "{ url: '/ws', token: Promise.resolve('x') }": "token must be",
    "{ url: '/ws', sseUrl: true }": "sseUrl must be",
    "{ url: '/ws', sseUrl: null }": "sseUrl must be",
    "{ url: '/ws', minDelay: '1s' }": "minDelay and maxDelay must be positive",
    "{ url: '/ws', maxDelay: '5000' }": "minDelay and maxDelay must be positive numbers",
    "{ url: '/ws', minDelay: -1 }": "minDelay and maxDelay must be positive",
    "{ url: '/ws', maxDelay: NaN }": "minDelay and maxDelay must be positive",
    "{ url: '/ws', maxDelay: Infinity }": "minDelay and maxDelay must be positive",
}
WRONG_ARGUMENTS = {
    "": "channel must be of type string",
    "7": "channel must be of type string",
    "'orders.2', { Shipped: 'show' }": "handler of Shipped must be of type function",
    "'orders.2', 'show'": "must be of type function",
    "'orders.2', {}, { state: {} }": "state must be of type function",
    "'orders.2', {}, { state: () => 1, onState: 'show' }": "onState must be of type function",
}
THROWN = """
(() => { try { %s; } catch (error) { return String(error); } return "nothing was thrown"; })()
"""


async def test_options_of_a_wrong_type_throw_at_connect(server, loaded):
    await loaded.evaluate(
        "import('/static/eventbus.js').then((client) => void Object.assign(window, { ...client }))"
    )
    for options, named in WRONG_OPTIONS.items():
        text = await loaded.evaluate(THROWN % f"connect({options}).close()")
        assert text.startswith("TypeError: "), options
        assert named in text
    assert server.connections.empty()


async def test_arguments_of_a_wrong_type_throw_at_subscribe(page):
    for arguments, named in WRONG_ARGUMENTS.items():
        text = await page.evaluate(THROWN % f"bus.subscribe({arguments})")
        assert text.startswith("TypeError: "), arguments
        assert named in text


async def test_token_may_be_a_string(server, loaded):
    await loaded.evaluate(
        """async () => {
          const { connect } = await import("/static/eventbus.js");
          globalThis.bus = connect({ url: "/ws", token: "a.b.c" });
        }"""
    )
    await server.next(server.connections)
    assert (await server.asks("auth"))["data"] == {"token": "a.b.c"}


@pytest.mark.parametrize("token", ["{ token: 'a.b.c' }", "7"])
async def test_token_function_that_returns_no_string_is_named(server, loaded, token):
    await loaded.evaluate(
        f"""async () => {{
          const {{ connect }} = await import("/static/eventbus.js");
          globalThis.bus = connect({{ url: "/ws", token: async () => ({token}) }});
          bus.onState((state) => states.push(state));
        }}"""
    )
    error = (await state(loaded, "waiting"))["error"]
    assert error["code"] == "unauthorized"
    assert error["message"] == "token() must return a string"


PROBLEM = '{"status": %d, "code": "%s", "detail": "so be it"}'


@pytest.mark.parametrize(
    ("status", "code"), [(400, "bad_request"), (403, "forbidden"), (404, "not_found")]
)
async def test_refusal_of_an_edge_ends_it_and_says_why(server, loaded, warned, status, code):
    server.refusal = web.Response(
        status=status, text=PROBLEM % (status, code), content_type="application/problem+json"
    )
    await loaded.evaluate("start()")
    closed = await state(loaded, "closed")
    text = f"{server.url}/ws answered {status}: so be it"
    assert closed["error"] == {"code": code, "message": text}
    assert closed["reason"] == text
    ready = await loaded.evaluate("room.ready.catch(({ code, message }) => [code, message])")
    assert ready == [code, text]
    assert warned == [f"eventbus cannot connect: {text}"]
    await loaded.evaluate("bus.reconnect(); dispatchEvent(new Event('online'))")
    assert await loaded.evaluate("bus.state.status") == "closed"


ADVICE = "It must be /ws of an edge with CORS_ALLOWED_ORIGINS={origin}"


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_refusal_of_another_server_names_the_path_and_the_origin(server, loaded, status):
    server.refusal = web.Response(status=status, text="<h1>No</h1>", content_type="text/html")
    await loaded.evaluate("start()")
    closed = await state(loaded, "closed")
    text = f"{server.url}/ws answered {status}: {ADVICE.format(origin=server.url)}"
    assert closed["error"] == {"code": f"http_{status}", "message": text}


async def test_refusal_of_a_stream_names_the_path_of_streams(server, loaded):
    server.refusal = web.Response(
        status=426,
        text=PROBLEM % (426, "upgrade_required"),
        content_type="application/problem+json",
    )
    await loaded.evaluate("start()")
    closed = await state(loaded, "closed")
    advice = ADVICE.format(origin=server.url).replace("/ws", "/sse")
    text = f"{server.url}/sse answered 404: {advice}"
    assert closed["error"] == {"code": "http_404", "message": text}


async def test_secrets_in_the_url_are_not_shown(server, loaded, warned):
    server.refusal = web.Response(status=404, text="no", content_type="text/html")
    await loaded.evaluate(
        """async () => {
          const { connect } = await import("/static/eventbus.js");
          globalThis.bus = connect({ url: "/ws?auth_token=a.secret.jwt" });
          bus.onState((state) => states.push(state));
        }"""
    )
    closed = await state(loaded, "closed")
    assert "secret" not in closed["error"]["message"]
    assert len(warned) == 1
    assert "secret" not in warned[0]


@pytest.mark.parametrize("status", [200, 429, 500, 502, 503])
async def test_answer_that_may_pass_is_waited_for_and_no_stream_is_tried(
    server, loaded, warned, status
):
    streams = []
    loaded.on("request", lambda request: request.url.endswith("/sse") and streams.append(request))
    server.refusal = web.Response(status=status, text="<h1>Hello</h1>", content_type="text/html")
    await loaded.evaluate("start()")
    error = (await state(loaded, "waiting"))["error"]
    text = f"{server.url}/ws answered {status}: {ADVICE.format(origin=server.url)}"
    assert error == {"code": f"http_{status}", "message": text}
    server.refusal = None
    await server.joined(0)
    await loaded.wait_for_function("bus.state.status === 'connected'")
    assert await loaded.evaluate("bus.state.error") is None
    assert streams == []
    assert len(warned) == 1  # however often it tries


async def test_proxy_that_has_lost_its_edges_for_a_moment_ends_nothing(server, page):
    socket = await server.joined(0)
    server.refusal = web.Response(status=404, text="default backend", content_type="text/html")
    await page.evaluate("void bus.onState(({ status }) => status === 'waiting' && bus.reconnect())")
    await socket.close(code=4100)
    await page.wait_for_function("states.filter(({ status }) => status === 'waiting').length > 3")
    assert "closed" not in await page.evaluate("states.map(({ status }) => status)")
    server.refusal = None
    await server.joined(0)


async def test_server_that_is_not_there_is_named_once_on_the_console(server, loaded, warned):
    await loaded.evaluate(
        """async () => {
          const { connect } = await import("/static/eventbus.js");
          globalThis.bus = connect({ url: "http://127.0.0.1:9/ws", minDelay: 10, maxDelay: 50 });
          bus.onState((state) => states.push(state));
        }"""
    )
    error = (await state(loaded, "waiting"))["error"]
    text = f"http://127.0.0.1:9/ws cannot be reached. {ADVICE.format(origin=server.url)}"
    assert error == {"code": "unreachable", "message": text}
    await loaded.wait_for_function("states.filter(({ status }) => status === 'waiting').length > 2")
    assert warned == [f"eventbus cannot connect: {text}"]
    assert await loaded.evaluate("bus.state.error.code") == "unreachable"  # while it tries, too


async def test_lost_connection_is_an_error_until_there_is_another(server, page, warned):
    await (await server.joined(0)).close(code=4201, message=b"too slow")
    lost = await state(page, "waiting")
    assert lost["error"] == {"code": "disconnected", "message": "too slow"}
    await server.joined(0)
    await page.wait_for_function("bus.state.status === 'connected'")
    assert await page.evaluate("[bus.state.error, bus.state.transport]") == [None, "websocket"]
    assert warned == []


async def test_bus_that_the_page_closes_has_no_error(server, page):
    await server.joined(0)
    await page.evaluate("bus.close()")
    assert (await state(page, "closed"))["error"] is None


async def test_states_are_frozen_and_replaced(server, page):
    await server.joined(0)
    await page.wait_for_function("bus.state.status === 'connected'")
    assert await page.evaluate(
        "[Object.isFrozen(bus.state), bus.state === bus.state, bus.state === states.at(-1)]"
    ) == [True, True, True]


# In front of real edges


async def fault(page, url):
    """Connect a page, and give the state's error when it has one."""
    return await page.evaluate(
        """(url) => import("/static/eventbus.js").then(({ connect }) => new Promise((done) => {
          globalThis.bus = connect({ url });
          bus.onState(({ status, error }) => error && done([status, error.code, error.message]));
        }))""",
        url,
    )


@pytest_asyncio.fixture
async def edge_page(edge_process, gate, open_tab):
    await edge_process()
    page = await open_tab("about:blank", ready="")
    await page.goto(f"{gate.url}/healthz")
    return page


async def test_wrong_path_of_an_edge_is_final_and_named(edge_page, gate):
    status, code, message = await fault(edge_page, "/wss")
    assert (status, code) == ("closed", "not_found")
    assert message.startswith(f"{gate.url}/wss answered 404: ")
    assert "WebSockets connect to /ws" in message


async def test_wrong_channel_in_the_url_is_final_and_named(edge_page, gate):
    status, code, message = await fault(edge_page, "/ws?channel=a%20b")
    assert (status, code) == ("closed", "invalid_channel")
    assert message.startswith(f"{gate.url}/ws answered 400: 'a b' is not a channel name")


async def test_origin_that_an_edge_refuses_is_final_and_named(edge_process, gate, loaded, server):
    await edge_process()
    status, code, message = await fault(loaded, f"{gate.url}/ws")
    assert (status, code) == ("closed", "forbidden")
    assert server.url in message
    assert "add it to CORS_ALLOWED_ORIGINS" in message


async def test_wrong_path_is_named_for_pages_of_other_origins_too(
    edge_process, gate, loaded, server
):
    await edge_process(CORS_ALLOWED_ORIGINS=server.url)
    status, code, message = await fault(loaded, f"{gate.url}/wss")
    assert (status, code) == ("closed", "not_found")
    assert message.startswith(f"{gate.url}/wss answered 404: ")


@pytest_asyncio.fixture
async def blocking_proxy(gate):
    """Passes requests on without their upgrade, as many a proxy does."""

    async def forward(request: web.Request) -> web.StreamResponse:
        kept = {
            name: value
            for name, value in request.headers.items()
            if not name.startswith("Sec-") and name not in ("Upgrade", "Connection", "Host")
        }
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.request(
                request.method, gate.url + request.path_qs, headers=kept, data=await request.read()
            ) as answer,
        ):
            passed = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            await passed.prepare(request)
            async for chunk in answer.content.iter_any():
                await passed.write(chunk)
            return passed

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("sse_url", ["sse", False])
async def test_stream_is_used_where_a_proxy_drops_the_upgrade(
    edge_process, blocking_proxy, open_tab, bus, sse_url
):
    await edge_process(CORS_ALLOWED_ORIGINS=blocking_proxy)
    page = await open_tab("about:blank", ready="")
    await page.goto(f"{blocking_proxy}/healthz")
    await page.evaluate(
        """(sseUrl) => import("/static/eventbus.js").then(({ connect }) => {
          globalThis.got = [];
          globalThis.bus = connect({ url: "/ws", sseUrl });
          globalThis.general = bus.subscribe("general", (data) => got.push(data));
        })""",
        sse_url,
    )
    if sse_url is False:
        await page.wait_for_function("bus.state.status === 'waiting'")
        error = await page.evaluate("bus.state.error")
        assert error["code"] == "upgrade_required"
        assert "proxy" in error["message"]
        return
    await page.evaluate("general.ready")
    async with asyncio.timeout(40):
        await bus.publish("general", "Note", 1)
        await page.wait_for_function("got.length === 1")
    state_now = await page.evaluate("bus.state")
    assert state_now == {"status": "connected", "transport": "sse", "error": None}

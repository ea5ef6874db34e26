"""A page that floods its edge gets the close code, in Chromium and with eventbus.js.

1006 would make a client connect again at once, although it is to stay away.
"""

import asyncio

import pytest

from eventbus.tokens import issue_token
from eventbus_edge import lingering
from eventbus_edge.protocols import CloseReason
from eventbus_edge.transports import websocket
from tests.conformance.edges import SECRET, serving

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

FLOOD = """
async ([url, text]) => {
  const socket = new WebSocket(url);
  await new Promise((resolve) => { socket.onopen = resolve; });
  return new Promise((resolve) => {
    const send = () => {
      for (let count = 0; count < 200 && socket.bufferedAmount < 2 ** 21; count++)
        socket.send(text);
    };
    const timer = setInterval(send, 0);
    socket.onclose = ({ code }) => { clearInterval(timer); resolve(code); };
  });
}
"""
CLIENT = """
async ([url, token]) => {
  const { connect } = await import("/static/eventbus.js");
  const bus = connect({ url, token });
  const room = bus.subscribe("chat.1");
  await room.ready;
  globalThis.flooded = 0;
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      for (let count = 0; count < 50; count++)
        Promise.resolve(room.whisper("typing", "x".repeat(500))).catch(() => {});
      globalThis.flooded += 50;
    }, 0);
    bus.on("state", ({ status, code }) => {
      if (status === "connected" || status === "connecting") return;
      clearInterval(timer);
      resolve([status, code]);
    });
  });
}
"""


@pytest.fixture(scope="module")
def edge():
    """A node with the event loop and the rate limits of production."""
    pace = {"max_actions_per_second": 50.0, "action_burst": 100}
    with pytest.MonkeyPatch.context() as patch:  # the machine may be slow
        patch.setattr(lingering, "LINGER_S", 30.0)
        patch.setattr(websocket, "CLOSE_TIMEOUT_S", 30.0)
        with serving(**pace) as started:
            yield started


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("path", "text", "code"),
    [
        ("/ws", '{"action":"ping"}', 4008),
        ("/app/conformance", '{"event":"pusher:ping"}', 4009),
        ("/app/nobody", '{"event":"pusher:ping"}', 4001),
        ("/ws", "x" * 300_000, 1009),
        ("/app/conformance", "x" * 300_000, 1009),
    ],
)
async def test_chromium_reads_the_code_while_its_page_floods(edge, open_tab, tls, path, text, code):
    scheme = "https" if tls else "http"
    at = f"127.0.0.1:{edge.port(tls)}"
    page = await open_tab(f"{scheme}://{at}/", ready="", ignore_https_errors=True)
    for _ in range(3):
        url = f"{scheme.replace('http', 'ws')}://{at}{path}"
        assert await page.evaluate(FLOOD, [url, text]) == code


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_client_that_floods_stays_away_when_its_access_is_revoked(edge, open_tab, tls):
    at = f"127.0.0.1:{edge.port(tls)}"
    page = await open_tab(
        f"{'https' if tls else 'http'}://{at}/", ready="", ignore_https_errors=True
    )
    done = page.evaluate(CLIENT, ["/ws", issue_token("7", secret=SECRET)])
    ending = asyncio.ensure_future(done)
    while await page.evaluate("globalThis.flooded ?? 0") < 100:  # noqa: ASYNC110 - in the page
        await asyncio.sleep(0.02)

    def revoke():
        for connection in list(edge.node.connections.values()):
            connection.close(CloseReason.REVOKED, "revoked")

    await edge.call(revoke)
    assert await ending == ["closed", 4003]

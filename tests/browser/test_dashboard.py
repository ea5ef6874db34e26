"""The dashboard in Chromium, on real edges."""

import re
import signal
import time

import jwt
import pytest
from playwright.async_api import expect

from eventbus.tokens import issue_token
from tests.edge.conftest import expired

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

PHONE = {"width": 360, "height": 780}
PATIENCE_MS = 15_000
KEY = "the-key-of-the-api"
SECRET = "a-secret-of-tests-that-is-32-bytes-long"


@pytest.fixture
async def dashboard(gate, edge_process, open_tab):
    """Opens the page by the gate, which is on this host too."""

    async def dashboard(*, ready="connected", environ=None, **options):
        node = await edge_process(**(environ or {}))
        return node, await open_tab(f"{gate.url}/dashboard", ready=ready, **options)

    return dashboard


async def grown(page, selector, least):
    await page.wait_for_function(
        "([selector, least]) => Number(document.querySelector(selector).textContent"
        ".split(' ')[0].replace(/\\D/g, '')) >= least",
        arg=[selector, least],
        timeout=PATIENCE_MS,
    )


async def test_numbers_appear_and_change_with_what_passes(dashboard, bus, keep):
    _, page = await dashboard()
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    await expect(page.locator("#nodes .badge")).to_have_text("ready")
    await expect(page.locator("#channels-empty")).to_be_visible()
    await expect(page.locator("#failed-empty")).to_be_visible()
    await page.fill("#tail-channel", "chat.1")
    await page.click("#tail-start")
    await expect(page.locator("#tail-about")).to_have_text(re.compile("Waiting for the first"))
    for count in range(20):
        await bus.publish("chat.1", "Said", {"n": count})
    await grown(page, "#now-in-about", 20)
    row = page.locator("#channels tr", has_text="chat.1")
    await expect(row).to_be_visible(timeout=PATIENCE_MS)
    await expect(page.locator("#now-p95")).to_have_text(re.compile(r"ms$"), timeout=PATIENCE_MS)
    await expect(page.locator(".chart canvas")).to_have_count(3)
    label = await page.get_attribute("#connections-chart", "aria-label")
    assert re.search(r"now: open \d", label)
    await keep(page, "dashboard")


async def test_published_test_event_is_shown_by_the_tail_as_text(dashboard):
    _, page = await dashboard()
    await page.fill("#tail-channel", "general")
    await page.click("#tail-start")
    await expect(page.locator("#tail-about")).to_have_text(re.compile("Waiting for the first"))
    await page.fill("#publish-data", '{"text": "<img src=x>"}')
    await page.click("#publish button")
    result = page.locator("#publish-result")
    await expect(result).to_have_text(re.compile(r"Published to general at offset \d+"))
    await expect(page.locator("#tail .tail-data")).to_have_text(['{"text":"<img src=x>"}'])
    # What turns the direction of its neighbours is shown, not obeyed.
    await page.fill("#publish-data", '{"\u202egnp.exe": 1}')
    await page.click("#publish button")
    await expect(page.locator("#tail .tail-data").first).to_have_text('{"\\u202egnp.exe":1}')
    assert await page.locator("#tail img").count() == 0
    await page.fill("#publish-data", "{")
    await page.click("#publish button")
    await expect(result).to_have_text(re.compile("not JSON"))
    await page.fill("#publish-data", "1")
    await page.fill("#publish-channel", "no..channel")
    await page.click("#publish button")
    await expect(result).to_have_text(re.compile("not a channel name"))
    await expect(page.locator("#tail li")).to_have_count(2)


async def test_tail_keeps_a_bounded_number_of_rows(dashboard, bus):
    _, page = await dashboard()
    await page.fill("#tail-channel", "orders.*")
    await page.click("#tail-start")
    await expect(page.locator("#tail-about")).to_have_text(re.compile("Waiting for the first"))
    for count in range(230):
        await bus.publish("orders.42", "Placed", {"n": count}, volatile=True)
    about = page.locator("#tail-about")
    await expect(about).to_have_text(re.compile("230 messages"), timeout=PATIENCE_MS)
    await expect(page.locator("#tail li")).to_have_count(200)
    await expect(page.locator("#tail li").first).to_contain_text('{"n":229}')


async def test_following_a_presence_channel_makes_nobody_a_member(dashboard, bus):
    _, page = await dashboard()
    await page.fill("#tail-channel", "presence.room")
    await page.click("#tail-start")
    await expect(page.locator("#tail-about")).to_have_text(re.compile("Waiting for the first"))
    await bus.publish("presence.other", "Said", 1)
    await bus.publish("presence.room", "Said", 2)
    await expect(page.locator("#tail .tail-data")).to_have_text(["2"])
    await expect(page.locator("#now-present")).to_have_text("0")


async def test_signing_in_is_refused_and_accepted(dashboard, keep):
    _, page = await dashboard(ready="signed-out", environ={"BROADCAST_API_KEY": KEY})
    await expect(page.locator("#dashboard")).to_be_hidden()
    await expect(page.locator("#refused")).to_be_hidden()
    for wrong, why in (
        ("not the key", "without spaces"),
        ("not-the-key", "neither the API key nor a valid token"),
        (issue_token("7", secret=SECRET), "neither the role nor the permission"),
        (expired(roles=["admin"]), "that token has expired"),
    ):
        await page.fill("#secret", wrong)
        await page.press("#secret", "Enter")
        await expect(page.locator("#refused")).to_have_text(re.compile(why))
        await expect(page.locator("#dashboard")).to_be_hidden()
    await keep(page, "dashboard-sign-in")
    await page.fill("#secret", KEY)
    await page.press("#secret", "Enter")
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    assert KEY not in page.url
    assert await page.evaluate("localStorage.length") == 0
    await page.reload()
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    await page.click("#sign-out")
    await expect(page.locator("#sign-in")).to_be_visible()
    assert await page.evaluate("sessionStorage.length") == 0


async def test_administrators_token_is_accepted(dashboard):
    _, page = await dashboard(ready="signed-out", environ={"BROADCAST_API_KEY": KEY})
    await page.fill("#secret", issue_token("7", secret=SECRET, roles=["admin"]))
    await page.press("#secret", "Enter")
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)


async def test_lost_edge_is_shown_and_comes_back_by_itself(dashboard, edge_process):
    node, page = await dashboard()
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    before = await page.inner_text("#nodes code")
    await node.end(signal.SIGKILL)
    await page.wait_for_selector("[data-state=waiting]", timeout=PATIENCE_MS)
    await expect(page.locator("#lost")).to_be_visible()
    await expect(page.locator("#status")).to_have_text("Reconnecting")
    await edge_process()
    await page.wait_for_selector("[data-state=connected]", timeout=PATIENCE_MS)
    await expect(page.locator("#lost")).to_be_hidden()
    await expect(page.locator("#nodes code", has_text=before)).to_have_count(0, timeout=30_000)
    await expect(page.locator("#nodes .badge")).to_have_text(["ready"])


async def test_node_that_has_lost_the_bus_says_so_wherever_one_has_scrolled_to(
    dashboard, own_nats_server
):
    _, page = await dashboard(environ={"NATS_URL": own_nats_server.url})
    await expect(page.locator("#nodes .badge")).to_have_text("ready", timeout=PATIENCE_MS)
    await page.evaluate("scrollTo(0, document.body.scrollHeight)")
    await own_nats_server.stop()
    trouble = page.locator("#trouble")
    await expect(page.locator("#nodes .badge")).to_have_text("no bus", timeout=30_000)
    await expect(trouble).to_have_text(re.compile("1 node has lost the bus"))
    await expect(trouble).to_be_in_viewport()
    await expect(page.locator("#failed-fault")).to_contain_text("Cannot be loaded", timeout=30_000)
    await expect(page.locator("#failed-empty")).to_be_hidden()
    await own_nats_server.start()
    await expect(page.locator("#nodes .badge")).to_have_text("ready", timeout=30_000)
    await expect(trouble).to_be_hidden()


async def test_width_of_a_phone_needs_no_sideways_scrolling(dashboard, bus, keep):
    _, page = await dashboard(viewport=PHONE)
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    await page.fill("#tail-channel", ">")
    await page.click("#tail-start")
    await expect(page.locator("#tail-about")).to_have_text(re.compile("Waiting for the first"))
    await bus.publish("W" * 150, "Event", {"text": "W" * 300})
    await expect(page.locator("#tail li")).to_have_count(1)
    await page.wait_for_selector("#channels tr", timeout=PATIENCE_MS)
    assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    await keep(page, "dashboard-narrow")


async def test_page_can_be_used_by_keyboard_and_screen_reader(dashboard):
    _, page = await dashboard()
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the numbers"
    unlabelled = await page.evaluate(
        """[...document.querySelectorAll("input, select, textarea")]
          .filter((field) => ![...field.labels].some((label) => label.textContent.trim()))
          .map((field) => field.id)"""
    )
    assert unlabelled == []
    unnamed = await page.evaluate(
        """[...document.querySelectorAll("main section")]
          .filter((part) => !document.getElementById(part.getAttribute("aria-labelledby")))
          .length"""
    )
    assert unnamed == 0
    headless = (
        "[...document.querySelectorAll('table:not(.u-legend)')].filter((t) => !t.tHead).length"
    )
    assert await page.evaluate(headless) == 0
    assert await page.locator("main").count() == await page.locator("h1").count() == 1
    assert await page.locator("[aria-live=assertive]").count() == 0


async def test_page_asks_nobody_else(dashboard, gate, browser):
    await dashboard()
    page = await (await browser.new_context()).new_page()
    urls, faults = [], []
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    await page.goto(f"{gate.url}/dashboard")
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    assert [url for url in urls if not url.startswith(f"{gate.url}/") or "ticket-" in url] == []
    assert faults == []


async def test_member_whose_connection_is_lost_is_shown_with_its_info_while_it_is_counted(
    dashboard, http_session
):
    node, page = await dashboard(environ={"BROADCAST_PRESENCE_GRACE": "60"})
    claims = {"sub": "7", "aud": "websocket", "exp": time.time() + 600, "name": "Ada"}
    info = {"status": "away <b>", "level": 3}
    token = jwt.encode({**claims, "info": info}, SECRET, "HS256")
    async with (
        http_session() as http,
        http.ws_connect(
            f"http://127.0.0.1:{node.port}/ws/presence.room",
            headers={"Authorization": f"Bearer {token}"},
        ) as socket,
    ):
        await socket.receive()
        await socket.receive()
        socket._response.connection.transport.abort()  # lost, not closed
    await expect(page.locator("#now-present")).to_have_text("1", timeout=PATIENCE_MS)
    row = page.locator("#members tr")
    await expect(row.locator("dt")).to_have_text(["status", "level", "name"], timeout=PATIENCE_MS)
    await expect(row.locator("dd")).to_have_text(["away <b>", "3", "Ada"])
    await expect(page.locator("#presence-empty")).to_be_hidden()
    channel = page.locator("#channels tr", has_text="presence.room")
    await expect(channel.locator(".number").first).to_have_text("0")


async def test_tail_begins_with_stored_messages_newest_first(dashboard, bus):
    _, page = await dashboard()
    for count in range(30):
        await bus.publish("general", "Said", count)
    await page.fill("#tail-channel", "general")
    await page.click("#tail-start")
    await expect(page.locator("#tail .tail-data")).to_have_text(
        [str(count) for count in range(29, 9, -1)], timeout=PATIENCE_MS
    )
    await bus.publish("general", "Said", 30)
    await expect(page.locator("#tail .tail-data").first).to_have_text("30")


async def test_tail_of_a_presence_channel_begins_with_its_stored_messages(dashboard, bus):
    _, page = await dashboard()
    for count in range(30):
        await bus.publish("presence.room", "Said", count)
    await bus.publish("presence.other", "Said", "another channel's")
    await page.fill("#tail-channel", "presence.room")
    await page.click("#tail-start")
    await expect(page.locator("#tail .tail-data")).to_have_text(
        [str(count) for count in range(29, 9, -1)], timeout=PATIENCE_MS
    )
    await bus.publish("presence.room", "Said", 30)
    await expect(page.locator("#tail .tail-data").first).to_have_text("30")
    await expect(page.locator("#now-present")).to_have_text("0")


async def test_charts_begin_with_the_last_minutes(dashboard, gate, open_tab, bus):
    _, page = await dashboard()
    await page.fill("#tail-channel", "general")
    await page.click("#tail-start")
    await expect(page.locator("#tail-about")).to_have_text(re.compile("Waiting for the first"))
    for count in range(10):
        await bus.publish("general", "Said", count)
    await expect(page.locator("#tail li")).to_have_count(10)
    later = await open_tab(f"{gate.url}/dashboard")
    await expect(later.locator("#now-nodes")).to_have_text("1", timeout=PATIENCE_MS)
    # The node notes its numbers every two seconds.
    drawn = await later.evaluate(
        """async () => {
          const { past } = await import("./static/dashboard-numbers.js");
          const { connect } = await import("./static/eventbus.js");
          const { token } = await (await fetch("dashboard/ticket", { method: "POST" })).json();
          for (;;) {
            const bus = connect({ url: "ws", token: async () => token });
            const sample = await new Promise((resolve) =>
              bus.subscribe("admin.stats", { "eb:stats": resolve }));
            bus.close();
            const points = past(sample, 1000);
            if (points.reduce((sum, point) => sum + point[2] * 2, 0) >= 9.9) return points;
          }
        }"""
    )
    times = [at for at, *_ in drawn]
    assert times == [1000 - 2 * steps for steps in range(len(times), 0, -1)]
    assert any(percentiles[0] is not None for *_, percentiles in drawn)


async def test_chart_takes_the_points_that_it_does_not_have(dashboard):
    _, page = await dashboard()
    columns = await page.evaluate(
        """async () => {
          const { Series, MOST_POINTS } = await import("./static/dashboard-numbers.js");
          const series = new Series(1);
          series.fill([[1, 10], [3, 30]]); // of the time before the page was opened
          series.add(5, 50);
          series.add(6, 60);
          series.pause(7);
          series.fill([[1, 0], [5.5, 0], [9, 90]]); // after a reconnect
          series.add(10, 100);
          const few = series.columns.map((column) => [...column]);
          series.fill(Array.from({ length: 1000 }, (_, i) => [11 + i, i]));
          return [few, series.columns.map((column) => [column.length, column.at(-1)]), MOST_POINTS];
        }"""
    )
    few, many, most = columns
    assert few == [[1, 3, 5, 6, 7, 9, 10], [10, 30, 50, 60, None, 90, 100]]
    assert many == [[most, 1010], [most, 999]]

"""The contract's page in Chromium: it shows the events, asks for a key, and finds events."""

import re

import pytest
from aiohttp import web
from playwright.async_api import expect

from eventbus import (
    ClientEvent,
    Event,
    ShouldBroadcast,
)
from eventbus.config import Settings
from eventbus.events import event as events
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(autouse=True)
def _types(monkeypatch):
    monkeypatch.setattr(events, "_types", {})

    class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="order.shipped"):
        """On its way. <script>document.title = "bad"</script>"""

        order_id: int
        carrier: str = "DHL"

    class Typing(Event, ClientEvent, channel="chat.{room_id}", name="typing"):
        is_typing: bool


@pytest.fixture
async def start():
    runners = []

    async def start(**settings):
        runner = make_runner(create_app(EdgeSettings(**settings), Settings(driver="memory")))
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/api/docs"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def page(browser):
    page = await browser.new_page(viewport={"width": 360, "height": 800})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    await page.close()
    assert errors == []


async def test_page_shows_events_and_finds_them(start, page):
    await page.goto(await start())
    cards = page.locator("article")
    await expect(cards).to_have_count(2)
    shipped = cards.filter(has_text="order.shipped")
    await expect(shipped).to_contain_text("orders.{order_id}")
    await expect(shipped).to_contain_text('"DHL" by default')
    await expect(shipped).to_contain_text("string, optional")
    await expect(shipped).to_contain_text("On its way. <script>")  # as text
    await expect(page).to_have_title("Events")
    await expect(cards.filter(has_text="client-typing")).to_contain_text("sent by clients")
    assert await page.evaluate("document.documentElement.scrollWidth") == 360

    await page.get_by_label("Find an event or a channel").fill("chat.")
    await expect(shipped).to_be_hidden()
    await page.get_by_label("Find an event or a channel").fill("nothing")
    await expect(page.get_by_text("No event matches.")).to_be_visible()


DOCSTRING = """A summary.

    Several things, on
    two lines: **bold**, *slanted*, `code <b>`, and snake_case_names.

    - one
      that goes on
    - [two](https://example.com/a?b=1), not [three](javascript:alert(1))

    1. first
    2. second

    ```python
    print("<b>")
    ```

    > quoted
    """


async def test_docstrings_are_shown_as_markdown_and_never_as_html(start, page, monkeypatch):
    monkeypatch.setattr(events, "_types", {})
    cls = type("Noted", (Event, ShouldBroadcast), {"__doc__": DOCSTRING}, channel="notes")
    assert cls.__doc__
    await page.goto(await start())
    await expect(page.locator("#about")).to_have_text(re.compile("· 1 event$"))
    card = page.locator("main article")
    await expect(card.locator("> p.doc").nth(1)).to_have_text(
        "Several things, on two lines: bold, slanted, code <b>, and snake_case_names."
    )
    await expect(card.locator("ul.doc li")).to_have_text(
        ["one that goes on", "two, not [three](javascript:alert(1))"]
    )
    await expect(card.locator("ol.doc li")).to_have_text(["first", "second"])
    await expect(card.locator("strong")).to_have_text("bold")
    await expect(card.locator("em")).to_have_text("slanted")
    await expect(card.locator("> pre code")).to_have_text('print("<b>")')
    await expect(card.locator("blockquote")).to_have_text("quoted")
    links = await card.locator("a").evaluate_all("all => all.map((each) => each.href)")
    assert links == ["https://example.com/a?b=1"]
    assert await card.locator("b").count() == 0


async def test_page_asks_for_the_key(start, page):
    await page.goto(await start(api_key="the-key"))
    field = page.get_by_label("API key, or token of an administrator")
    await expect(field).to_be_focused()
    await expect(page.locator("article")).to_have_count(0)
    await field.fill("wrong")
    await field.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("Refused")
    await field.fill("the-key")
    await field.press("Enter")
    await expect(page.locator("article")).to_have_count(2)
    await expect(field).to_be_hidden()


async def test_page_of_a_node_without_events_says_what_to_set(start, page, monkeypatch):
    monkeypatch.setattr(events, "_types", {})
    await page.goto(await start())
    await expect(page.get_by_role("alert")).to_contain_text(
        "This node has no contract: set BROADCAST_CONTRACT"
    )

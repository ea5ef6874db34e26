import asyncio
import re

import nats
import pytest
from playwright.async_api import Page, Route, WebSocket, expect

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

PHONE = {"width": 360, "height": 780}
PATIENCE_MS = 15_000


async def measured(page: Page, points: int) -> None:
    """Wait until the page has drawn that many measurements."""
    path = re.compile(rf"M[^L]*(L[^L]*){{{points - 1},}}")
    await expect(page.locator("#cpu .line")).to_have_attribute("d", path, timeout=PATIENCE_MS)


async def say(page: Page, text: str) -> None:
    await page.fill("#chat-input", text)
    await page.press("#chat-input", "Enter")


async def test_page_draws_measurements_as_they_come(demo, open_tab, keep):
    page = await open_tab(demo.page)
    await measured(page, 12)
    for card in ("cpu", "memory", "load", "latency", "disk"):
        text = await page.inner_text(f"#{card} .value")
        assert re.fullmatch(r"\d+(\.\d+)?", text), f"{card} shows {text!r}"
    await expect(page.locator("#status")).to_have_text("Live")
    await expect(page.locator("#memory .detail")).to_have_text(re.compile(r"[\d.]+ of [\d.]+ GB"))
    label = await page.get_attribute("#cpu .chart svg", "aria-label")
    assert re.fullmatch(r"CPU, the last 15 seconds: now \d+ %, highest \d+ %", label)
    await keep(page, "demo-wide-light")


async def test_dark_mode_is_dark(demo, open_tab, keep):
    page = await open_tab(demo.page, color_scheme="dark")
    await measured(page, 8)
    await page.hover("#cpu .chart", position={"x": 520, "y": 40})
    await expect(page.locator("#cpu output")).to_have_text(re.compile(r"\d+ %, (now|\d+ s ago)"))
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground)[:3])) < 40
    await keep(page, "demo-wide-dark")


async def test_width_of_a_phone_needs_no_sideways_scrolling(demo, open_tab, keep):
    light = await open_tab(demo.page, viewport=PHONE)
    dark = await open_tab(demo.page, viewport=PHONE, color_scheme="dark")
    await say(light, "W" * 120)
    await dark.wait_for_selector(".message")
    await measured(dark, 8)
    for page in (light, dark):
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    await keep(light, "demo-narrow-light")
    await keep(dark, "demo-narrow-dark")


async def test_two_tabs_see_each_others_messages_once(demo, open_tab, keep):
    ada, bob = await open_tab(demo.page), await open_tab(demo.page)
    await expect(ada.locator("#chat-form button")).to_be_enabled()
    await expect(bob.locator("#chat-form button")).to_be_enabled()
    await expect(ada.locator("#chat-empty")).to_be_visible()
    name = (await ada.inner_text("#me")).removeprefix("You are ")

    await ada.fill("#chat-input", "hello")
    await expect(bob.locator("#chat-typing")).to_have_text(f"{name} is typing…")
    await ada.press("#chat-input", "Enter")
    await expect(bob.locator(".message .text")).to_have_text(["hello"])
    await expect(bob.locator(".message .who b")).to_have_text([name])
    await expect(bob.locator("#chat-typing")).to_have_text("")
    await say(bob, "<b>hello</b> & welcome")

    both = ["hello", "<b>hello</b> & welcome"]
    await expect(ada.locator(".message .text")).to_have_text(both)
    await expect(bob.locator(".message .text")).to_have_text(both)
    await expect(ada.locator(".message.mine")).to_have_count(1)
    await keep(ada, "demo-chat")


async def test_reload_keeps_the_guest(demo, open_tab):
    page = await open_tab(demo.page)
    before = await page.inner_text("#me")
    await page.reload()
    await page.wait_for_selector("[data-state=connected]")
    assert await page.inner_text("#me") == before != ""


async def test_messages_of_any_nats_client_are_shown(demo, open_tab):
    page = await open_tab(demo.page)
    await measured(page, 1)
    client = await nats.connect(demo.nats_url)
    try:
        await client.publish("eb.event.general", b'{"hello": "<i>world</i>"}')
        row = page.locator("#tail li", has_text="general")
        await expect(row.locator(".data")).to_have_text('{"hello":"<i>world</i>"}')
    finally:
        await client.close()


async def test_lost_connection_is_shown_and_comes_back_by_itself(demo, open_tab, keep):
    page = await open_tab(demo.page)
    await measured(page, 8)
    await page.fill("#chat-input", "not lost")
    await demo.stop()
    await page.wait_for_selector("[data-state=waiting]")
    await expect(page.locator("#lost")).to_be_visible()
    await expect(page.locator("#status")).to_have_text("Reconnecting")
    await expect(page.locator("#chat-form button")).to_be_disabled()
    await keep(page, "demo-disconnected")

    shown = await page.inner_text("#tail-count")
    await demo.start()
    await page.wait_for_selector("[data-state=connected]")
    await expect(page.locator("#lost")).to_be_hidden()
    await expect(page.locator("#tail-count")).not_to_have_text(shown)
    await expect(page.locator("#chat-form button")).to_be_enabled()
    await page.press("#chat-input", "Enter")
    await expect(page.locator(".message.mine .text")).to_have_text(["not lost"])


async def test_page_shows_what_it_waits_for(demo, browser, keep):
    page = await (await browser.new_context()).new_page()
    asked = asyncio.Event()

    async def never(_: Route) -> None:
        asked.set()

    await page.route("**/demo/token", never)
    await page.goto(demo.page)
    await asked.wait()
    await expect(page.locator("#status")).to_have_text("Connecting")
    await expect(page.locator("#cpu .value")).to_have_text("\N{EN DASH}")
    await expect(page.locator("#cpu .detail")).to_have_text("Waiting for the first measurement")
    await expect(page.locator("#chat-form button")).to_be_disabled()
    await keep(page, "demo-connecting")


async def test_page_asks_nobody_else_and_puts_no_token_into_a_url(demo, browser):
    page = await (await browser.new_context()).new_page()
    urls: list[str] = []

    def opened(socket: WebSocket) -> None:
        urls.append(socket.url.replace("ws:", "http:"))

    page.on("request", lambda request: urls.append(request.url))
    page.on("websocket", opened)
    await page.goto(demo.page)
    await page.wait_for_selector("[data-state=connected]")
    assert f"{demo.url}/ws" in urls
    assert [url for url in urls if not url.startswith(f"{demo.url}/") or "eyJ" in url] == []


async def test_page_can_be_used_by_keyboard_and_screen_reader(demo, open_tab):
    page = await open_tab(demo.page)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the chat"
    await page.keyboard.press("Enter")
    await expect(page.locator("#chat-input")).to_be_focused()
    await expect(page.locator("#chat-form button")).to_be_enabled()
    await page.keyboard.type("by keyboard")
    await page.keyboard.press("Enter")
    await expect(page.locator("#chat-log")).to_have_attribute("aria-live", "polite")
    await expect(page.get_by_role("log").get_by_text("by keyboard")).to_be_visible()
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()


@pytest.mark.npm
@pytest.mark.usefixtures("echo_packages")
async def test_tab_on_laravel_echo_shares_chat_and_members_with_the_native_tab(
    demo, open_tab, keep
):
    ada, bob = await open_tab(demo.page), await open_tab(f"{demo.page}?client=echo")
    for page in (ada, bob):
        await expect(page.locator("#chat-form button")).to_be_enabled()
    names = [(await page.inner_text("#me")).removeprefix("You are ") for page in (ada, bob)]
    await expect(ada.locator("#chat-members")).to_have_text(f"Here now: you, {names[1]}")
    await expect(bob.locator("#chat-members")).to_have_text(f"Here now: you, {names[0]}")
    await expect(bob.locator(".clients [aria-current]")).to_have_text("Laravel Echo")

    await ada.fill("#chat-input", "hello, Echo")
    await expect(bob.locator("#chat-typing")).to_have_text(f"{names[0]} is typing…")
    await ada.press("#chat-input", "Enter")
    await expect(bob.locator(".message .text")).to_have_text(["hello, Echo"])
    await say(bob, "hello, eventbus.js")
    for page in (ada, bob):
        both = ["hello, Echo", "hello, eventbus.js"]
        await expect(page.locator(".message .text")).to_have_text(both)
        await expect(page.locator(".message.theirs .who b")).to_have_text(
            [names[1] if page is ada else names[0]]
        )
    await measured(bob, 8)
    await keep(bob, "demo-echo-wide")
    await bob.set_viewport_size(PHONE)
    assert await bob.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    await keep(bob, "demo-echo-narrow")
    await bob.close()
    await expect(ada.locator("#chat-members")).to_have_text("Here now: you", timeout=PATIENCE_MS)


@pytest.mark.npm
@pytest.mark.usefixtures("echo_packages")
async def test_tab_on_laravel_echo_returns_after_a_restart(demo, open_tab):
    page = await open_tab(f"{demo.page}?client=echo")
    await measured(page, 2)
    await demo.stop()
    await page.wait_for_selector("[data-state=waiting]")
    await expect(page.locator("#status")).to_have_text("Reconnecting")
    await demo.start()
    await page.click("#retry")
    await page.wait_for_selector("[data-state=connected]")
    await expect(page.locator("#chat-form button")).to_be_enabled()
    await say(page, "back again")
    await expect(page.locator(".message.mine .text")).to_have_text(["back again"])


async def test_tab_without_laravel_echo_says_how_to_get_it(demo, browser, keep):
    page = await (await browser.new_context()).new_page()
    await page.route("**/demo/echo/*", lambda route: route.fulfill(status=404))
    await page.goto(f"{demo.page}?client=echo")
    await expect(page.locator("#lost")).to_contain_text("Run scripts/demo/packages")
    await expect(page.locator("#status")).to_have_text("Not connected")
    await expect(page.locator("#chat-form button")).to_be_disabled()
    await keep(page, "demo-echo-missing")

"""What everybody needs to read and hit on the edge's own pages, measured in Chromium.

WCAG 2.2: contrast of text (1.4.3), targets of at least 24 by 24 px (2.5.8), and landmarks that can
be told apart. Links within a text are exempt from 2.5.8, as there.
"""

import pytest
from aiohttp import web
from playwright.async_api import expect

from eventbus import Event, ShouldBroadcast
from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.config import EdgeSettings

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

MEASURE = """() => {
  const shown = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((each, i) => (i < 3 ? each : each / 255));
  };
  const over = (top, below) =>
    top.slice(0, 3).map((each, i) => each * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(rgba(getComputedStyle(each).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !shown(element) || element.closest("script, style, noscript, :disabled")) continue;
    const box = element.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue; // for screen readers
    const style = getComputedStyle(element);
    const below = ground(element);
    const [a, b] = [luminance(over(rgba(style.color), below)), luminance(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    texts.push({ text: text.slice(0, 40), contrast, least: isLarge ? 3 : 4.5 });
  }
  const targets = [];
  const controls = "a[href], button, input, select, textarea, summary";
  for (const element of document.querySelectorAll(controls)) {
    if (!shown(element)) continue;
    const { width, height } = element.getBoundingClientRect();
    if (width <= 1 || height <= 1 || element.className === "skip") continue; // shown with the focus
    const isInText = element.tagName === "A" && element.parentElement.matches("p, li, td, dd") &&
      getComputedStyle(element).display === "inline";
    if (!isInText) targets.push({ what: element.outerHTML.slice(0, 80), width, height });
  }
  return { texts, targets };
}"""
LANDMARKS = ("banner", "complementary", "contentinfo", "form", "main", "navigation", "region")


@pytest.fixture
def _types(monkeypatch):
    from eventbus.events import event as events  # noqa: PLC0415

    monkeypatch.setattr(events, "_types", {})

    class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="order.shipped"):
        """On its way, see [the carriers](https://example.com).

        - `carrier` is **one** of ours
        """

        order_id: int
        carrier: str = "DHL"


@pytest.fixture
async def node(_types):
    app = create_app(EdgeSettings(), Settings(driver="memory"), rules=ChannelRules())
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def check(page):
    """Check what the page shows now."""
    measured = await page.evaluate(MEASURE)
    assert len(measured["texts"]) > 3
    assert [each for each in measured["texts"] if each["contrast"] < each["least"]] == []
    small = [each for each in measured["targets"] if min(each["width"], each["height"]) < 24]
    assert small == []
    names = []
    for role in LANDMARKS:
        found = page.get_by_role(role)
        for position in range(await found.count()):
            snapshot = await found.nth(position).aria_snapshot()
            names.append(snapshot.splitlines()[0].removesuffix(":"))
    assert len(set(names)) == len(names), f"landmarks with the same role and name: {names}"
    assert len([name for name in names if name.startswith("- main")]) == 1
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) == 0


@pytest.fixture(params=["light", "dark"])
async def page(request, browser):
    context = await browser.new_context(
        color_scheme=request.param, viewport={"width": 1280, "height": 900}
    )
    yield await context.new_page()
    await context.close()


@pytest.mark.parametrize("width", [360, 1280])
async def test_landing_page(node, page, width, keep):
    await page.set_viewport_size({"width": width, "height": 900})
    await page.goto(node)
    await check(page)
    await keep(page, f"landing-{width}")


@pytest.mark.parametrize("width", [360, 1280])
async def test_dashboard(node, page, width, keep):
    await page.set_viewport_size({"width": width, "height": 900})
    await page.goto(f"{node}/dashboard")
    await expect(page.locator("#now-nodes")).to_have_text("1", timeout=15_000)
    await check(page)
    await page.fill("#tail-channel", "general")
    await page.click("#tail-start")
    await page.fill("#publish-data", '{"a": 1}')
    await page.click("#publish button")
    await expect(page.locator("#tail li")).to_have_count(1)
    await check(page)
    await page.fill("#publish-data", "{")
    await page.click("#publish button")
    await check(page)
    await keep(page, f"dashboard-{width}")


@pytest.mark.usefixtures("_types")
async def test_form_to_sign_in(page):
    app = create_app(EdgeSettings(api_key="k" * 20), Settings(driver="memory"))
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    for path, secret in (("dashboard", "#secret"), ("api/docs", "#secret")):
        await page.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/{path}")
        await page.fill(secret, "wrong")
        await page.press(secret, "Enter")
        await expect(page.locator("#refused")).to_contain_text("Refused")
        await check(page)
    await runner.cleanup()


@pytest.mark.parametrize("width", [360, 1280])
async def test_page_of_the_contract(node, page, width, keep):
    await page.set_viewport_size({"width": width, "height": 900})
    await page.goto(f"{node}/api/docs")
    await page.click("summary")
    await check(page)
    await keep(page, f"docs-{width}")


@pytest.mark.parametrize("width", [360, 1280])
async def test_page_of_the_demo(demo, page, width, keep):
    await page.set_viewport_size({"width": width, "height": 900})
    await page.goto(demo.page)
    await page.wait_for_selector("[data-state=connected]")
    await page.fill("#chat-input", "hello")
    await page.press("#chat-input", "Enter")
    await expect(page.locator("#tail li").first).to_be_visible()
    await check(page)
    await keep(page, f"demo-{width}")

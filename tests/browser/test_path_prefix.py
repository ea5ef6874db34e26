"""The edge's pages below a path prefix, behind a real nginx that removes it."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.ports import free_port

KEY = "the-key-of-the-prefix"

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen 127.0.0.1:{port};
        location /realtime/ {{
            proxy_pass http://127.0.0.1:{upstream}/;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_buffering off;
        }}
        location /without-upgrade/ {{ proxy_pass http://127.0.0.1:{upstream}/; }}
    }}
}}
"""


@pytest_asyncio.fixture
async def site(edge_process, tmp_path: Path) -> AsyncIterator[str]:
    """The address of an nginx that passes /realtime/ on to an edge."""
    node = await edge_process(BROADCAST_API_KEY=KEY)
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(folder=tmp_path, port=port, upstream=node.port))
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert nginx is not None, "this test needs Debian's package nginx"
    process = await asyncio.create_subprocess_exec(nginx, "-c", str(config), "-p", str(tmp_path))
    try:
        async with asyncio.timeout(40):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except ConnectionError:
                    await asyncio.sleep(0.02)
        writer.close()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_all_pages_work_below_a_path_prefix(site, browser, keep):
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    requests: list[str] = []
    failures: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda each: requests.append(each.url.replace("ws:", "http:")))
    page.on("pageerror", lambda error: failures.append(str(error)))
    await page.goto(f"{site}/realtime")  # nginx adds the slash
    await expect(page.locator("pre").first).to_contain_text(f"{site}/realtime/static/eventbus.js")
    await keep(page, "landing")
    assert (
        f"{site}/realtime/ws".replace("http", "ws") in await page.locator("pre").first.inner_text()
    )
    await page.get_by_role("link", name=re.compile("^Dashboard")).click()
    await page.get_by_label("API key, or token of an administrator").fill(KEY)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_selector("[data-state=connected]")
    await expect(page.locator("#now-nodes")).to_have_text("1")
    await page.get_by_label("Channel", exact=True).fill("general")
    await page.get_by_role("button", name="Publish").click()
    await expect(page.locator("#publish-result")).to_contain_text("Published to general")
    await page.get_by_role("link", name="Events of the contract").click()
    await page.get_by_label("API key, or token of an administrator").fill(KEY)
    await page.get_by_role("button", name="Show the events").click()
    await expect(page.locator("#index a").first).to_be_visible()
    await page.get_by_role("link", name="OpenAPI").click()
    assert page.url == f"{site}/realtime/api/openapi.json"
    assert [url for url in requests if not url.startswith(f"{site}/realtime")] == []
    assert failures == []
    await page.close()


async def test_proxy_that_drops_the_upgrade_is_answered_with_its_remedy(site, http_session):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with (
        http_session() as http,
        http.get(f"{site}/without-upgrade/ws", headers=upgrade) as response,
    ):
        assert response.status == 426
        assert "proxy_set_header Upgrade $http_upgrade" in (await response.json())["detail"]

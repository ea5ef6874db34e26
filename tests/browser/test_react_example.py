"""The example of React: built by Vite, served by its FastAPI service, in front of a real edge."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests import packages
from tests.ports import free_port

pytestmark = [
    pytest.mark.browser,
    pytest.mark.npm,
    pytest.mark.xdist_group("browser-frameworks"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "react-orders"
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
PATIENCE_MS = 20_000


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def example(pytestconfig, archives, tmp_path) -> Path:
    """A copy of the example, with what its package-lock.json names and the packages as packed."""
    node_modules = packages.install_example(EXAMPLE.name, pytestconfig.cache.mkdir("npm"))
    copy = packages.make_program(tmp_path / EXAMPLE.name, archives, node_modules)
    ignored = shutil.ignore_patterns("node_modules", "dist", "__pycache__", ".eventbus")
    return shutil.copytree(EXAMPLE, copy, ignore=ignored, dirs_exist_ok=True)


@pytest.fixture
async def start_app(settings, example, port):
    started = []

    async def start():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "app.py"),
            cwd=example,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "PORT": str(port),
                "JWT_SECRET": SECRET,
                "NATS_URL": settings.nats_url,
                "BROADCAST_CHANNELS_PREFIX": settings.namespace,
            },
        )
        started.append(process)
        async with asyncio.timeout(30):
            while b"Uvicorn running" not in (line := await process.stderr.readline()):
                assert line, "the example has ended"

    yield start
    for process in started:
        process.terminate()
        async with asyncio.timeout(40):
            await process.communicate()


async def test_orders_move_on_all_pages_at_once_and_none_is_missed(
    edge_process, start_app, open_tab, example, gate, port, keep, monkeypatch
):
    monkeypatch.setenv("VITE_EDGE_URL", f"{gate.url}/ws")
    await asyncio.to_thread(packages.run, "npm", "run", "build", cwd=example)
    origin = f"http://127.0.0.1:{port}"
    node = await edge_process(CORS_ALLOWED_ORIGINS=origin)
    await start_app()

    async def page_of(name: str):
        tab = await open_tab(origin, ready="connected")
        await tab.select_option("select", label=name)
        await expect(tab.get_by_title(f"{name} is looking")).to_be_visible(timeout=PATIENCE_MS)
        return tab

    ada, grace = await page_of("Ada"), await page_of("Grace")
    for tab in (ada, grace):
        await expect(tab.get_by_text("2 here")).to_be_visible(timeout=PATIENCE_MS)
        await expect(tab.locator("li")).to_have_count(3)

    # What Ada asks for is on Grace's page before the service answers.
    asked, answered = asyncio.Event(), asyncio.Event()

    async def late(route) -> None:
        asked.set()
        await answered.wait()
        await route.continue_()

    await ada.route("**/api/orders/*", late)
    await ada.locator("[data-order='1003'] button").click()
    await asked.wait()
    moving = grace.locator("[data-order='1003'][data-pending]")
    await expect(moving).to_contain_text("Ada is saving…", timeout=PATIENCE_MS)
    await keep(grace, "react-orders-optimistic")
    answered.set()
    for tab in (ada, grace):
        moved = tab.locator("[data-order='1003'][data-status='packed']:not([data-pending])")
        await expect(moved).to_be_visible(timeout=PATIENCE_MS)
    await ada.unroute("**/api/orders/*")

    await node.end()
    await expect(grace.get_by_text("waiting")).to_be_visible(timeout=PATIENCE_MS)
    await ada.fill("[name=customer]", "<b>Café Nord</b>")
    await ada.fill("[name=item]", "Grinder")
    await ada.click("form button")
    await expect(ada.locator("[name=item]")).to_have_value("", timeout=PATIENCE_MS)
    await node.start()
    for tab in (ada, grace):
        await expect(tab.locator("li")).to_have_count(4, timeout=PATIENCE_MS)
        await expect(tab.locator("li").first).to_contain_text("<b>Café Nord</b>")
    await keep(ada, "react-orders")
    await ada.set_viewport_size({"width": 390, "height": 844})
    await keep(ada, "react-orders-small")


def test_types_of_the_example_are_those_of_its_contracts():
    eventbus = Path(sys.executable).with_name("eventbus")
    command = (eventbus, "schema", "export", "--app", "app", "--format", "typescript")
    exported = packages.run(*command, cwd=EXAMPLE)
    assert exported == (EXAMPLE / "src" / "contracts.ts").read_text()

"""`eventbus init`: what it writes passes its own tests, and runs beside `eventbus dev`."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from eventbus.client import connect
from tests.ports import free_port

pytestmark = pytest.mark.server
BIN = Path(sys.executable).parent
EVENTBUS = str(BIN / "eventbus")
SERVERS = {
    "fastapi": [str(BIN / "uvicorn"), "app:app", "--port"],
    "flask": [str(BIN / "flask"), "run", "--port"],
    "django": [sys.executable, "manage.py", "runserver", "--noreload"],
}


def _init(folder, framework, *options):
    return subprocess.run(
        [EVENTBUS, "init", framework, *options], cwd=folder, capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*command, **environ):
        process = subprocess.Popen(
            command, cwd=tmp_path / "app", env={**os.environ, **environ}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.parametrize("framework", SERVERS)
async def test_application_passes_its_tests_and_runs_beside_the_development_server(
    tmp_path, framework, start
):
    done = _init(tmp_path, framework, "app")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eventbus dev" in done.stdout
    tests = start(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    shown, _ = tests.communicate(timeout=150)
    assert tests.returncode == 0, shown
    assert "3 passed" in shown

    dev = start(EVENTBUS, "dev", "--port", "0", BROADCAST_NATS_PORT="0")
    edge = next(found[1] for line in dev.stdout if (found := re.search(r"(http://[\w.:]+)", line)))
    port = str(free_port())
    service = start(*SERVERS[framework], port, EDGE_URL=edge)
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        async with asyncio.timeout(40):
            while True:
                try:
                    async with http.get(url) as page:
                        assert edge in await page.text()
                    break
                except aiohttp.ClientConnectionError:
                    assert service.poll() is None
                    await asyncio.sleep(0.1)

        async def token():
            async with http.get(f"{url}/token") as answer:
                return await answer.text()

        async with connect(f"{edge.replace('http', 'ws')}/ws", token=token) as client:
            subscription = await client.subscribe("general")
            async with http.post(f"{url}/messages", json={"text": "hello"}) as answer:
                assert answer.status == 204, await answer.text()
            message = await anext(aiter(subscription))
            assert (message.event, message.data) == ("message.posted", {"text": "hello"})


@pytest.mark.parametrize("framework", SERVERS)
def test_nothing_is_overwritten_and_nothing_else_written_then(tmp_path, framework):
    (tmp_path / "pyproject.toml").write_text("mine")
    done = _init(tmp_path, framework)
    assert done.returncode == 1
    assert "pyproject.toml exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
    assert (tmp_path / "pyproject.toml").read_text() == "mine"


def test_unknown_framework_is_refused_with_those_that_exist(tmp_path):
    done = _init(tmp_path, "rails")
    assert done.returncode == 2
    assert "fastapi" in done.stderr

"""`eventbus dev` as a process: what it prints; reloads lose neither clients nor messages."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request

import pytest

from eventbus.bus import EventBus
from eventbus.client import ClientOptions, connect
from eventbus.config import Settings
from eventbus.server import NatsServer, syncs_always
from eventbus.tokens import issue_token

RULES = """
from eventbus_edge import ANYONE, Rule, channels
from eventbus.channels import ChannelKind, Pattern

channels.add(Rule(Pattern("{name}.>"), ChannelKind.PUBLIC, ANYONE))
"""
COMMAND = [sys.executable, "-c", "from eventbus.cli.app import main; main()", "dev"]
CTRL_C = signal.SIGINT


class Dev:
    def __init__(self, process):
        self.process = process
        self.said = []

    async def until(self, pattern):
        """The next line that matches."""
        async with asyncio.timeout(60):
            while line := (await self.process.stdout.readline()).decode():
                self.said.append(line)
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"it ended without {pattern!r}:\n{''.join(self.said)}")

    async def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(CTRL_C)
        async with asyncio.timeout(60):
            rest, _ = await self.process.communicate()
        self.said.append(rest.decode())
        return self.process.returncode


@pytest.fixture
async def dev(tmp_path):
    started = []

    async def start(*options, **environ):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("JWT_", "BROADCAST_"))}
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("--port", "0", *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
            env={**plain, "BROADCAST_NATS_PORT": "0", "NO_COLOR": "1", "NATS_URL": ""} | environ,
        )
        started.append(process)
        return Dev(process)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_prints_where_everything_is_and_ends_at_ctrl_c(dev, tmp_path):
    running = await dev("--no-reload")
    url = (await running.until(r"edge ready on (http://127\.0\.0\.1:\d+)$"))[1]
    assert (await running.until(r"dashboard +(\S+)"))[1] == f"{url}/dashboard"
    assert (await running.until(r"WebSocket +(\S+)"))[1] == url.replace("http", "ws") + "/ws"
    nats = await running.until(r"NATS +nats://127\.0\.0\.1:(\d+)")
    await running.until("token +valid for 1 hour")
    token = (await running.until(r"^(\S+\.\S+\.\S+)$"))[1]
    async with connect(url, token=token) as client:
        assert client.user_id == "dev"
        assert (await client.subscribe("anything.at.all")).is_active
    assert await running.end() == 0
    for port in (int(url.rpartition(":")[2]), int(nats[1])):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)
    assert not any("watching" in line for line in running.said)
    assert (tmp_path / ".eventbus" / "dev-secret").exists()


async def test_it_runs_the_server_of_a_stack_that_has_nats_by_its_other_name(dev):
    running = await dev("--no-reload", BROADCAST_DRIVER="stack", BROADCAST_STACK="websocket,null")
    await running.until(r"NATS +nats://127\.0\.0\.1:(\d+)")
    assert await running.end() == 0


async def test_pages_of_this_machine_may_connect_from_any_port_and_others_may_not(dev):
    running = await dev("--no-reload", CORS_ALLOWED_ORIGINS="https://app.example")
    url = (await running.until(r"edge ready on (\S+)"))[1]

    def status(origin):
        request = urllib.request.Request(f"{url}/sse?channel=general", method="HEAD")
        request.add_header("Origin", origin)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as exc:
            return exc.code

    for origin in (
        "http://localhost:5173", "https://localhost:5173", "http://localhost", "http://127.0.0.1:1",
        "http://[::1]:3000", "http://shop.localhost:3000", "https://app.example",
    ):  # fmt: skip
        assert await asyncio.to_thread(status, origin) == 200, origin
    for origin in ("http://localhost.evil.example:5173", "https://evil.example", "null"):
        assert await asyncio.to_thread(status, origin) == 403, origin
    assert await running.end() == 0


async def test_keys_in_files_take_the_place_of_the_secret_of_development(dev, tmp_path):
    secret = "a-secret-of-tests-that-is-32-bytes-long"
    (tmp_path / "jwt").write_text(secret)
    running = await dev("--no-reload", JWT_SECRET_FILE="jwt")
    url = (await running.until(r"edge ready on (\S+)"))[1]
    async with connect(url, token=issue_token("ann", secret=secret)) as client:
        assert client.user_id == "ann"
    assert await running.end() == 0
    assert not (tmp_path / ".eventbus" / "dev-secret").exists()


async def test_server_of_durable_settings_syncs_each_write(dev, tmp_path):
    running = await dev("--no-reload", BROADCAST_HISTORY_DURABILITY="disk")
    await running.until("edge ready on ")
    assert syncs_always(tmp_path / ".eventbus" / "nats")
    assert await running.end() == 0


async def test_the_login_of_a_given_server_is_used_and_not_printed(dev, tmp_path):
    user = {"user": "app", "password": "S3cr3t#@/1"}
    config = {"authorization": {"users": [user]}}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        host = server.url.removeprefix("nats://")
        running = await dev("--no-reload", NATS_URL=f"nats://app:S3cr3t%23@/1@{host}")
        assert (await running.until(r"NATS +(\S+)"))[1] == f"nats://***@{host}"
        assert await running.end() == 0
    assert "S3cr3t" not in "".join(running.said)


async def test_reload_keeps_history_and_clients_continue_where_they_were(dev, tmp_path):
    app = tmp_path / "rules_app.py"
    app.write_text("")
    running = await dev("--app", "rules_app")
    url = (await running.until(r"edge ready on (\S+)"))[1]
    token = (await running.until(r"^(\S+\.\S+\.\S+)$"))[1]
    await running.until(r"watching \.")

    async def publish(n):
        body = json.dumps({"channel": "shop.orders", "event": "n", "data": n}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{url}/api/broadcast/events", body, headers)
        with await asyncio.to_thread(urllib.request.urlopen, request, timeout=30) as answer:
            assert answer.status == 200

    options = ClientOptions(first_delay=0.05, last_delay=0.5)
    async with connect(url, token=token, options=options) as client:
        orders, states = await client.subscribe("shop.orders"), []
        client.on_state(states.append)
        messages = aiter(orders)
        await publish(1)
        app.write_text(RULES)
        await running.until(r"changed: rules_app\.py")
        await running.until("ready again on " + re.escape(url))
        await publish(2)
        async with asyncio.timeout(60):
            assert [(await anext(messages)).data for _ in range(2)] == [1, 2]
        assert orders.gaps == 0
        assert states[0].code == 4200, "the old edge was drained, not killed"
    async with connect(url, options=options) as anonymous:
        await anonymous.subscribe("shop.orders")  # by the new rule
    assert await running.end() == 0


async def test_syntax_error_is_shown_the_old_edge_stays_and_the_next_save_is_tried(dev, tmp_path):
    app = tmp_path / "rules_app.py"
    app.write_text("")
    running = await dev("--app", "rules_app")
    url = (await running.until(r"edge ready on (\S+)"))[1]
    await running.until("watching")
    app.write_text("def (\n")
    await running.until("SyntaxError")
    await running.until("could not start; the previous one keeps running: save a file to try again")
    async with connect(url):
        pass
    app.write_text("")
    await running.until("ready again on")
    assert await running.end() == 0


async def test_application_that_is_wrong_from_the_start_is_waited_for(dev, tmp_path):
    app = tmp_path / "rules_app.py"
    app.write_text("1 / 0\n")
    running = await dev("--app", "rules_app")
    await running.until("ZeroDivisionError")
    await running.until("the edge could not start: save a file to try again")
    app.write_text("")
    await running.until(r"edge ready on (\S+)")
    assert await running.end() == 0


async def test_application_of_pyproject_is_run_and_followed(dev, tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.eventbus]\napp = "first_app"\n')
    for name in ("first_app", "second_app"):
        (tmp_path / f"{name}.py").touch()
    running = await dev()
    await running.until("loaded application first_app from")
    await running.until("watching")
    project.write_text('[tool.eventbus]\napp = ["second_app"]\n')
    await running.until("changed: pyproject.toml")
    await running.until("loaded application second_app from")
    await running.until("ready again on")
    assert await running.end() == 0


async def test_without_reload_an_application_that_is_wrong_ends_it(dev, tmp_path):
    (tmp_path / "rules_app.py").write_text("1 / 0\n")
    running = await dev("--app", "rules_app", "--no-reload")
    await running.until("ZeroDivisionError")
    async with asyncio.timeout(60):
        await running.process.communicate()
    assert running.process.returncode == 1


async def test_port_of_another_program_is_reported_with_exit_code_2(dev):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = str(taken.getsockname()[1])
        running = await dev("--port", busy)
        await running.until(f"BROADCAST_WEBSOCKET_PORT={busy}: cannot listen on 127.0.0.1")
        async with asyncio.timeout(60):
            await running.process.communicate()
        assert running.process.returncode == 2


async def test_killed_it_leaves_no_process_behind(dev):
    running = await dev()
    url = (await running.until(r"edge ready on (\S+)"))[1]
    running.process.kill()
    port = int(url.rpartition(":")[2])
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0.05)


async def test_second_dev_in_a_folder_says_where_the_first_one_is(dev):
    running = await dev("--no-reload")
    url = (await running.until(r"open +(\S+)/$"))[1]
    await running.until("token +valid")
    for options in ((), ("--port", "0"), ("--port", url.rpartition(":")[2])):
        second = await dev("--no-reload", *options)
        await second.until(f"already running in this folder: open {url}/ ")
        async with asyncio.timeout(30):
            assert await second.process.wait() == 1
    assert await running.end() == 0
    third = await dev("--no-reload")
    await third.until("edge ready on")
    assert await third.end() == 0


async def test_a_killed_dev_does_not_keep_the_next_one_from_starting(dev):
    running = await dev("--no-reload")
    await running.until("token +valid")
    running.process.kill()
    await running.process.wait()
    following = await dev("--no-reload")
    await following.until("edge ready on")
    assert await following.end() == 0


async def test_dev_uses_the_server_that_an_application_of_the_folder_runs(dev, tmp_path):
    settings = Settings(nats_data=str(tmp_path / ".eventbus/nats"), nats_port=0)
    async with EventBus(settings) as bus:
        running = await dev("--no-reload")
        url = (await running.until(r"edge ready on (\S+)"))[1]
        await running.until("NATS +nats://127")
        token = (await running.until(r"^(\S+\.\S+\.\S+)$"))[1]
        async with connect(url, token=token) as client:
            messages = aiter(await client.subscribe("general"))
            await bus.publish("general", "hello", {"n": 1})
            async with asyncio.timeout(30):
                assert (await anext(messages)).data == {"n": 1}
        assert await running.end() == 0
        await bus.publish("general", "hello", {"n": 2})

"""eventbus.js without a browser: Node 22 and later have all that it needs."""

import asyncio
import json
import signal
from typing import Any

import pytest
from playwright._impl._driver import compute_driver_executable

from eventbus_edge.app import STATIC

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SCRIPT = """
import { connect } from "CLIENT";
const say = (...words) => console.log(JSON.stringify(words));
const bus = connect({ url: "URL/ws", token: async () => "TOKEN", minDelay: 50, maxDelay: 500 });
bus.on("state", ({ state }) => say("state", state));
const room = bus.subscribe("chat.7", {
  Number: (number) => say("number", number),
  Last: () => { say("transport", bus.transport); bus.close(); },
});
await room.ready;
say("whisper", await room.whisper("typing"));
"""


async def test_client_runs_in_node_and_lets_it_end_when_closed(
    edge_process, gate, client_token, numbers, bus
):
    node = await edge_process()
    script = (
        SCRIPT.replace("CLIENT", (STATIC / "eventbus.js").as_uri())
        .replace("URL", gate.url)
        .replace("TOKEN", client_token)
    )
    executable, _ = compute_driver_executable()
    process = await asyncio.create_subprocess_exec(
        *(executable, "--input-type=module", "--eval", script),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said: list[list[Any]] = []

    async def until(words: list[Any]) -> None:
        async with asyncio.timeout(20):
            while words not in said:
                line = await process.stdout.readline()
                assert line, f"node has ended after {said[-3:]}"
                said.append(json.loads(line))

    try:
        await until(["whisper", {}])
        publishing = numbers()
        await publishing.some_more()
        await node.end(signal.SIGKILL)
        await until(["state", "waiting"])
        await publishing.some_more()
        await node.start()
        await publishing.some_more()
        await publishing.stop()
        await bus.publish("chat.7", "Last", None)
        await until(["transport", "websocket"])
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    heard = [word for kind, word in said if kind == "number"]
    assert heard == list(range(publishing.count))

"""eventbus.js without a browser: Node 22 and later have all that it needs."""

import asyncio
import json
import signal
from typing import Any

import pytest
from playwright._impl._driver import compute_driver_executable

from eventbus import user_channel
from eventbus_edge.app import STATIC

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SCRIPT = """
import { connect } from "CLIENT";
const say = (...words) => console.log(JSON.stringify(words));
const bus = connect({
  url: "URL/ws", token: async () => "TOKEN", minDelay: 50, maxDelay: 500,
  sseUrl: false, // a stream, tried right after a WebSocket, might find the edge back first
});
bus.on("state", ({ status }) => say("state", status));
const room = bus.subscribe("chat.7", {
  Number: (number) => say("number", number),
  Last: () => { say("transport", bus.transport); bus.close(); },
});
await room.ready;
say("whisper", await room.whisper("typing"));
"""


IDS = """
import { userChannel } from "CLIENT";
const attempt = (id) => { try { return userChannel(id); } catch (error) { return error.name; } };
console.log(JSON.stringify(JSON.parse(IDS).map(attempt)));
"""


async def test_channel_of_a_user_is_the_same_as_in_python():
    characters = [chr(number) for number in (*range(0x180), 0x2028, 0xFFFF, 0x10000, 0x10FFFF)]
    ids = [
        *characters,
        "auth0|5f7",
        "ada+x@example.com",
        "a~2eb",
        "Zoë 😀",
        "x" * 195,
        7,
        -1,
        2**53 - 1,
    ]
    refused = ["", None, True, 1.5, [], ["a"], {}, "\ud800", "a\udc00"]
    script = IDS.replace("CLIENT", (STATIC / "user-channel.js").as_uri())
    script = script.replace("IDS", json.dumps(json.dumps([*ids, *refused])))
    executable, _ = compute_driver_executable()
    process = await asyncio.create_subprocess_exec(
        *(executable, "--input-type=module", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        out, _ = await process.communicate(script.encode())
    expected = [*map(user_channel, ids), *(["TypeError"] * len(refused))]
    assert json.loads(out) == expected


SERVER_SIDE = """
import { connect } from "CLIENT";
globalThis.WebSocket = class { constructor() { throw new Error("a WebSocket was opened"); } };
globalThis.fetch = () => { throw new Error("a request was sent"); };
const relative = connect({ url: "/ws", token: async () => "TOKEN" });
relative.onState(({ status }) => console.log(status));
const room = relative.subscribe("chat.7", { Number: () => {} }, { state: async () => ({}) });
room.ready.catch(({ code }) => console.log(code));
room.whisper("typing").catch(({ code }) => console.log(code));
relative.reconnect();
const absolute = connect({ url: "http://127.0.0.1:9/ws" });
console.log(JSON.stringify([relative.state, absolute.state, relative.headers(), room.active]));
room.unsubscribe();
"""


async def test_page_that_a_server_renders_opens_no_connection_and_lets_node_end():
    script = SERVER_SIDE.replace("CLIENT", (STATIC / "eventbus.js").as_uri())
    executable, _ = compute_driver_executable()
    process = await asyncio.create_subprocess_exec(
        *(executable, "--input-type=module", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        out, errors = await process.communicate(script.encode())
    assert (process.returncode, errors.decode()) == (0, "")
    first, *codes = out.decode().splitlines()
    state = {"status": "connecting", "transport": None, "error": None}
    assert json.loads(first) == [state, state, {}, False]
    assert codes == ["disconnected", "unsubscribed"]


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
    output: list[list[Any]] = []

    async def until(words: list[Any]) -> None:
        async with asyncio.timeout(40):
            while words not in output:
                line = await process.stdout.readline()
                assert line, f"node has ended after {output[-3:]}"
                output.append(json.loads(line))

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
        async with asyncio.timeout(40):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    received = [word for kind, word in output if kind == "number"]
    assert received == list(range(publishing.count))

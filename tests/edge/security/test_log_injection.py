"""Foreign text in logs is shown, and has no effect."""

import asyncio
import json
import logging
import re
import urllib.parse

import pytest

from eventbus.log_lines import LineFormatter
from eventbus_edge.logs import ConsoleFormatter, JsonFormatter

LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[\w.]+: .*")
FORGED = "12:00:00.000 ERROR   eventbus_edge.node: forged"
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
MARKS = "\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\U000e0041"
HOSTILE = f"a{CONTROLS}{MARKS}b\r\n{FORGED}\n\x1b[2J\x1b]0;title\x07\x9b31m\x1b[1A"


def record(message, *arguments, exc=None):
    info = None if exc is None else (type(exc), exc, None)
    return logging.LogRecord("edge.somewhere", logging.WARNING, "", 0, message, arguments, info)


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter(), LineFormatter()])
def test_message_is_one_line_without_control_and_invisible_characters(formatter):
    line = formatter.format(record("channel %s", HOSTILE))
    assert [char for char in line if not char.isprintable() and char != "\t"] == []
    assert len(line.splitlines()) == 1
    assert FORGED in line  # shown, within the line


def test_json_is_harmless_when_a_program_decodes_it():
    line = json.loads(JsonFormatter().format(record("%s", HOSTILE, exc=ValueError(HOSTILE))))
    assert [char for char in line["message"] if not char.isprintable() and char != "\t"] == []
    assert [
        char for char in line["exception"] if not char.isprintable() and char not in "\n\t"
    ] == []


@pytest.mark.parametrize("formatter", [ConsoleFormatter(), LineFormatter()])
def test_text_of_an_exception_cannot_pass_for_a_line_of_the_log(formatter):
    first, *others = formatter.format(record("failed", exc=ValueError(HOSTILE))).split("\n")
    assert first.endswith("failed")
    assert others
    assert all(line.startswith("    ") for line in others)
    assert [char for line in others for char in line if not char.isprintable()] == ["\t"]


@pytest.mark.parametrize("formatter", [ConsoleFormatter(), LineFormatter()])
def test_text_of_any_language_is_logged_as_it_is(formatter):
    assert "Größe 漢字 عربي 😀" in formatter.format(record("%s", "Größe 漢字 عربي 😀"))


async def raw(port, *parts):
    """Send bytes on a new socket, and wait until the edge has closed it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"".join(parts))
        async with asyncio.timeout(40):
            return await reader.read()
    finally:
        writer.close()


async def attack(port):
    """Send hostile text everywhere a client may send text."""
    text = HOSTILE.replace("\r", "").replace("\n", "").replace("\0", "").encode()
    quoted = urllib.parse.quote(HOSTILE).encode()
    host = b"Host: 127.0.0.1\r\n"
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    requests = (
        b"GET /" + quoted + b" HTTP/1.1\r\n" + host,
        b"GET /ws/" + quoted + b" HTTP/1.1\r\n" + host + upgrade,
        b"GET /ws?channel=" + quoted + b"&auth_token=" + quoted + b" HTTP/1.1\r\n" + host + upgrade,
        b"GET /ws HTTP/1.1\r\n" + host + upgrade + b"Origin: http://" + text + b"\r\n",
        b"GET /ws HTTP/1.1\r\n" + host + upgrade + b"Origin: http://a\x9b31m\xe2\x80\xae.b\r\n",
        b"GET /ws HTTP/1.1\r\n" + host + upgrade + b"Authorization: Bearer " + text + b"\r\n",
        b"GET /sse?channel=" + quoted + b" HTTP/1.1\r\n" + host,
        b"GET /api/broadcast/channels/" + quoted + b" HTTP/1.1\r\n" + host,
        b"GET /api/broadcast/channels HTTP/1.1\r\nHost: " + text + b"\r\n",
        b"G\x1b[2JT / HTTP/1.1\r\n" + host,
        b"POST /api/broadcast/events HTTP/1.1\r\n" + host + b"Content-Length: 20\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"X-Forwarded-For: " + text + b"\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"traceparent: " + text + b"\r\n",
    )
    await asyncio.gather(*(raw(port, each, b"\r\n", HOSTILE.encode()) for each in requests))


@pytest.mark.parametrize("form", ["console", "json"])
async def test_no_request_writes_more_than_one_line_or_acts_on_a_terminal(
    form, start_process, connect, nats, namespace
):
    edge = await start_process(
        EDGE_LOG_FORMAT=form, EDGE_LOG_LEVEL="debug", BROADCAST_REQUEST_TIMEOUT="2"
    )
    await attack(edge.port)
    client = await connect(edge.port, "/ws/general")
    await client.next(), await client.next()
    for name in (HOSTILE, FORGED):
        assert await client.error("subscribe", channel=name, ref=name[:40])
        assert await client.error("whisper", channel="general", event=name, data=name)
        assert await client.error("auth", data={"token": name})
    # Also from the bus: a payload that is not a message, with a name that no channel can have.
    await nats.publish(f"{namespace}.live.general", HOSTILE.encode())
    await nats.publish(f"{namespace}.live.general", b"{}", headers={"Eb-Event": "x\x1b[2J\x9b"})
    await nats.publish(f"{namespace}.control.revocations", HOSTILE.encode())
    assert await client.receives_nothing()
    edge.terminate()
    code, log = await edge.end()
    assert code == 0
    lines = log.split("\n")
    assert [
        char for line in lines for char in line if not char.isprintable() and char != "\t"
    ] == []
    if form == "json":
        decoded = [json.loads(line) for line in lines if line.startswith("{")]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in decoded)
        assert [
            char for line in decoded for char in line["message"] if not char.isprintable()
        ] == []
    else:
        at_margin = [line for line in lines if line and not line.startswith("    ")]
        assert [line for line in at_margin if not LINE.fullmatch(line)] == []
    assert not any(line.startswith(FORGED) for line in lines)


async def test_fault_at_the_start_is_one_line(start_process):
    with pytest.raises(AssertionError, match="the edge did not start") as caught:
        await start_process(BROADCAST_RULES=f"/nowhere/{HOSTILE.replace(chr(0), '')}")
    written = str(caught.value)
    assert "error: " in written
    assert [char for char in written if not char.isprintable() and char != "\n"] == []
    assert not any(line.startswith(FORGED) for line in written.split("\n"))

"""Requests that no decent client sends, as bytes on a socket."""

import asyncio
import json
import logging

import pytest
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.keys import NODE

KEY = "the-key-of-raw-requests"
UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HOST = b"Host: a\r\n"
PUBLISH = (
    b"POST /api/broadcast/events HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    b"Authorization: Bearer " + KEY.encode() + b"\r\n"
)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
TWO = b"Content-Length: 2\r\n"


@pytest.fixture
async def runner():
    async with EventBus(Settings(driver="memory")) as bus:
        settings = EdgeSettings(api_key=KEY, request_timeout=4.0)
        started = make_runner(create_app(settings, bus), settings.request_timeout)
        await started.setup()
        await web.TCPSite(started, "127.0.0.1", 0).start()
        yield started
        await started.cleanup()


@pytest.fixture
def port(runner):
    return runner.addresses[0][1]


async def ask(port, head, lines=1):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"\r\n")
    answer = b"".join([await reader.readline() for _ in range(lines)])
    writer.close()
    await writer.wait_closed()
    return answer


async def refusal(port, *parts):
    """The answer to a request that is written in parts: headers in lower case, and its problem."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number, part in enumerate(parts):
            if number:
                await asyncio.sleep(0.05)  # so that the part before has been read by itself
            writer.write(part)
        async with asyncio.timeout(40):
            raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in raw[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
    assert headers["content-type"] == "application/problem+json"
    assert headers["server"] == "eventbus"
    problem = json.loads(body)
    assert problem["status"] == int(raw[0].split()[1])
    return problem["status"], problem["code"], problem["detail"]


REFUSED = {
    "no HTTP": ([b"\x00\xff\r\n\r\n"], 400, "bad_request"),
    "TLS": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], 400, "bad_request"),
    "HTTP/2": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], 400, "bad_request"),
    "a version that is none": ([b"GET /healthz HTTP/9.9\r\n\r\n"], 400, "bad_request"),
    "a method that is none": ([b"FOO /healthz HTTP/1.1\r\n" + HOST + b"\r\n"], 400, "bad_request"),
    "no host": ([b"GET /healthz HTTP/1.1\r\n\r\n"], 400, "bad_request"),
    "two hosts": ([b"GET /healthz HTTP/1.1\r\n" + HOST + HOST + b"\r\n"], 400, "bad_request"),
    "a header's name": ([b"GET / HTTP/1.1\r\n" + HOST + b"X Y: b\r\n\r\n"], 400, "bad_request"),
    "a URL": ([b"GET http://[s3cret/ HTTP/1.1\r\n" + HOST + b"\r\n"], 400, "bad_request"),
    "a long header": (
        [b"GET / HTTP/1.1\r\n" + HOST + b"X: s3cret" + b"x" * 9000 + b"\r\n\r\n"],
        431,
        "bad_request",
    ),
    "a length that is none": ([PUBLISH + b"Content-Length: -1\r\n\r\n"], 400, "bad_request"),
    "two lengths": ([PUBLISH + TWO + CHUNKED + b"0\r\n\r\n"], 400, "bad_request"),
    "a chunk that is none": ([PUBLISH + CHUNKED + b"zz\r\n\r\n"], 400, "bad_request"),
    "a later chunk": ([PUBLISH + CHUNKED + b"1\r\n{\r\n", b"zz\r\n\r\n"], 400, "bad_request"),
    "a deflated body": (
        [PUBLISH + TWO + b"Content-Encoding: gzip\r\n\r\n{}"],
        415,
        "bad_request",
    ),
    "an encoding that is none": (
        [PUBLISH + TWO + b"Content-Encoding: zzz\r\n\r\n{}"],
        415,
        "bad_request",
    ),
    "an expectation": ([PUBLISH + TWO + b"Expect: foo\r\n\r\n{}"], 417, "bad_request"),
    "half a body": ([PUBLISH + b"Content-Length: 20\r\n\r\n{}"], 408, "bad_request"),
    "a long file name": (
        [b"GET /static/" + b"x" * 3000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"],
        404,
        "not_found",
    ),
    "a folder": ([b"GET /static/ HTTP/1.1\r\n" + HOST + b"\r\n"], 404, "not_found"),
    "another method": (
        [b"POST /ws HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"],
        405,
        "method_not_allowed",
    ),
    "a WebSocket of HTTP/1.0": ([b"GET /ws HTTP/1.0\r\n" + UPGRADE + b"\r\n"], 400, "bad_request"),
}


@pytest.mark.parametrize(("parts", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_every_refusal_is_a_counted_problem_without_client_data(
    runner, port, parts, status, code, caplog
):
    caplog.set_level(logging.DEBUG)
    answer = await refusal(port, *parts)
    assert answer[:2] == (status, code)
    assert "s3cret" not in answer[2] + caplog.text
    assert runner.app[NODE].metrics.refusals.labels(code)._value.get() == 1
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert b" 200 " in await ask(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\n")


async def test_client_that_leaves_while_its_body_is_read_is_not_a_fault_of_the_node(
    runner, port, caplog
):
    refusals = runner.app[NODE].metrics.refusals
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PUBLISH + b"Content-Length: 20\r\nExpect: 100-continue\r\n\r\n{}")
    await asyncio.sleep(0.05)
    writer.transport.abort()
    async with asyncio.timeout(40):
        while not refusals.labels("bad_request")._value.get():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert refusals.labels("internal")._value.get() == 0
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_head_request_does_not_open_a_websocket(port):
    assert b" 405 " in await ask(port, b"HEAD /ws HTTP/1.1\r\nHost: a\r\n" + UPGRADE)


async def test_a_body_that_is_awaited_is_asked_for(port):
    head = PUBLISH + TWO + b"Expect: 100-continue\r\n"
    assert b" 100 " in await ask(port, head)


async def test_an_api_key_of_undecodable_bytes_is_unauthorized(port):
    head = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\n"
    assert b" 401 " in await ask(port, head)


async def test_a_percent_encoded_route_still_checks_its_channel(port):
    head = b"GET /w%%73/%b HTTP/1.1\r\nHost: a\r\n" + UPGRADE
    assert b" 401 " in await ask(port, head % b"user.7")
    assert b" 101 " in await ask(port, head % b"general")


async def test_a_request_line_that_cannot_be_parsed_leaves_no_token_in_the_log(port, caplog):
    caplog.set_level(logging.DEBUG)
    answer = await ask(port, b"GET /ws?auth_token=s3cret-t0ken\xff HTTP/1.1\r\nHost: a\r\n")
    assert b" 400 " in answer
    assert "s3cret" not in caplog.text

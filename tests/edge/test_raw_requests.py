"""Requests that no decent client sends, as bytes on a socket."""

import asyncio
import logging

import pytest
from aiohttp import web

from edge.app import create_app, make_runner
from edge.config import EdgeSettings
from eventbus.bus import EventBus
from eventbus.config import Settings

UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture
async def port():
    async with EventBus(Settings(driver="memory")) as bus:
        runner = make_runner(create_app(EdgeSettings(api_key="the-key"), bus))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
        await runner.cleanup()


async def ask(port, head, lines=1):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"\r\n")
    answer = b"".join([await reader.readline() for _ in range(lines)])
    writer.close()
    await writer.wait_closed()
    return answer


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

"""Requests without a reply end, and none does because this process stood still."""

import asyncio
import time

from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection.replies import Replies, Reply

PATIENCE_S = 20.0
LIMIT_S = 0.3


async def test_request_without_a_reply_ends():
    replies = Replies()
    _, answer = replies.expect("subject", LIMIT_S)
    async with asyncio.timeout(PATIENCE_S):
        assert await answer is None
    assert len(replies) == 0


async def test_reply_that_came_while_the_process_stood_still_is_the_reply():
    replies = Replies()
    reply_to, answer = replies.expect("subject", LIMIT_S)
    time.sleep(LIMIT_S + 1.0)  # noqa: ASYNC251 - a process that is suspended
    for _ in range(3):  # turns of the loop, in which what is due ends before sockets are read
        await asyncio.sleep(0)
    replies.receive(reply_to, b"there", WireHeaders(b""))
    assert await answer == Reply(b"there", "")


async def test_request_without_a_reply_ends_although_the_process_stood_still():
    replies = Replies()
    _, answer = replies.expect("subject", LIMIT_S)
    time.sleep(LIMIT_S + 1.0)  # noqa: ASYNC251 - a process that is suspended
    async with asyncio.timeout(PATIENCE_S):
        assert await answer is None
    replies.close()

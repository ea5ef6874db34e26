"""What clients have through nginx over TLS, whatever the bus: the same over NATS and over Redis."""

import asyncio
import contextlib
import functools
import json

import pytest

from eventbus.errors import EventBusError

pytestmark = [
    pytest.mark.nginx,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.timeout(240),
]
PATIENCE_S = 30


@pytest.fixture(scope="module", params=["nats", pytest.param("redis", marks=pytest.mark.redis)])
def front(request, new_front):
    with new_front(request.param) as made:
        yield made


async def test_event_of_a_service_reaches_clients_of_both_edges(front, publish):
    async with contextlib.AsyncExitStack() as stack:
        listeners = await front.listen(stack, "general", 8)
        await publish("general", 1)
        async with asyncio.timeout(PATIENCE_S):
            while any(not each.got for each in listeners):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        assert [each.got for each in listeners] == [[1]] * 8


async def test_client_that_was_away_gets_what_it_missed_once(front, publish):
    async with front.connect(token=front.token("42")) as client:
        subscription = await client.subscribe("user.42")
        await publish("user.42", 0)
        messages = aiter(subscription)
        async with asyncio.timeout(PATIENCE_S):
            got = [(await anext(messages)).data]
            client.reconnect()
            for number in range(1, 20):
                await publish("user.42", number)
            got += [(await anext(messages)).data for _ in range(19)]
        assert got == list(range(20))
        assert subscription.gaps == 0


async def test_history_is_available_to_later_clients(front, publish):
    for number in range(5):
        await publish("chat.history", number)
    async with front.connect(token=front.token("42")) as client:
        chat = await client.subscribe("chat.history", history=3)
        messages = aiter(chat)
        async with asyncio.timeout(PATIENCE_S):
            assert [(await anext(messages)).data for _ in range(3)] == [2, 3, 4]
        page = await chat.history(2)
        assert [message.data for message in page.messages] == [3, 4]


async def test_server_sent_events_pass_as_they_come(front, publish):
    async with front.session() as session, session.get("/sse?channel=general") as response:
        assert response.status == 200
        lines = response.content
        async with asyncio.timeout(PATIENCE_S):
            while b"eb:subscribed" not in (line := await lines.readline()):
                assert line, "the stream has ended"
            await publish("general", 2)
            while b"tick" not in (line := await lines.readline()):
                assert line, "the stream has ended"
        assert json.loads(line.removeprefix(b"data:"))["data"] == 2
        # aiohttp cuts a stream that goes on; over TLS, Python 3.11 would warn of an open socket.
        transport = response.connection.transport
        connection = transport.get_extra_info("socket")
        transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            while connection.fileno() != -1:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)


async def test_token_is_checked_and_its_user_reported(front):
    async with front.connect(token=front.token("42")) as client:
        await client.subscribe("user.42")
        with pytest.raises(EventBusError):
            await client.subscribe("user.43")


async def test_presence_is_the_same_on_all_edges(front):
    async with contextlib.AsyncExitStack() as stack:
        joined = []
        for user in range(8):
            client = await stack.enter_async_context(front.connect(token=front.token(f"u{user}")))
            joined.append(await client.subscribe("presence.hall"))

        async def all_see(count):
            async with asyncio.timeout(PATIENCE_S):
                for each in joined:
                    while len(await each.presence()) != count:  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(0.05)

        await all_see(8)
        await joined.pop().unsubscribe()
        await all_see(7)


async def test_whisper_reaches_the_clients_of_both_edges_and_not_its_sender(front):
    async with contextlib.AsyncExitStack() as stack:
        received = asyncio.Queue()
        chats = []
        for user in range(6):
            client = await stack.enter_async_context(front.connect(token=front.token(f"u{user}")))
            take = functools.partial(lambda user, data: received.put_nowait((user, data)), user)
            chats.append(await client.subscribe("chat.whispers", take))
        for user in (0, 1):
            await chats[user].whisper("typing", user)
            async with asyncio.timeout(PATIENCE_S):
                got = [await received.get() for _ in range(5)]
            assert sorted(got) == [(other, user) for other in range(6) if other != user]


async def test_api_answers_for_the_whole_cluster_and_wants_its_key(front):
    async with front.session() as stranger, stranger.get("/api/broadcast/stats") as response:
        assert response.status == 401
    async with front.api() as session, session.get("/api/broadcast/stats") as response:
        stats = await response.json()
    assert stats["driver"] == front.publisher.driver
    assert len(stats["nodes"]) == 4  # two edges of two workers

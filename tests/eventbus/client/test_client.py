"""The client against real edge processes: joins, answers, errors, handlers, its end."""

import asyncio
import contextlib
import logging

import msgspec
import pytest
from aiohttp import web

from eventbus import (
    BusStateError,
    ClientClosed,
    ClientDisconnected,
    ClientRefused,
    EncodingError,
    Event,
    InvalidChannel,
    InvalidPattern,
    ShouldBroadcast,
)
from eventbus.client import ClientOptions, ClientState, connect


class ParcelShipped(Event, ShouldBroadcast, channel="orders.{order_id}"):
    order_id: int
    carrier: str


class Shipment(msgspec.Struct):
    carrier: str


@pytest.fixture
async def edge(new_edge):
    return await new_edge()


@pytest.fixture
async def client(edge, token, quick):
    async with connect(edge.url, token=token(), options=quick) as client:
        yield client


@contextlib.asynccontextmanager
async def patience(seconds=30):
    async with asyncio.timeout(seconds):
        yield


async def first(subscription, count):
    messages = aiter(subscription)
    async with patience():
        return [await anext(messages) for _ in range(count)]


async def test_messages_arrive_in_order_with_their_positions(client, publisher):
    orders = await client.subscribe("orders.1")
    assert orders.is_active
    sent = [await publisher.publish("orders.1", "Paid", {"n": n}) for n in range(20)]
    got = await first(orders, 20)
    assert [message.data["n"] for message in got] == list(range(20))
    assert [message.id for message in got] == [each.id for each in sent]
    assert [message.offset for message in got] == [each.offset for each in sent]
    assert got[0].event == "Paid"
    assert not any(message.after_gap for message in got)


async def test_events_are_decoded_by_their_type_and_by_their_name(client, publisher):
    got = asyncio.Queue()
    await client.subscribe(
        "orders.1", {ParcelShipped: lambda event, about: got.put((event, about))}
    )
    orders = await client.subscribe("orders.1")
    orders.on("ParcelShipped", lambda data, message: got.put((data, message)), type=Shipment)
    orders.on("Other", lambda data: got.put(("never", data)))

    async def anything(data):
        await got.put(data)

    orders.on("*", anything)
    await publisher.dispatch(ParcelShipped(order_id=1, carrier="DHL"))
    async with patience():
        event, about = await got.get()
        data, message = await got.get()
        assert await got.get() == {"order_id": 1, "carrier": "DHL"}
    assert (event, about.channel, about.offset) == (
        ParcelShipped(order_id=1, carrier="DHL"),
        "orders.1",
        message.offset,
    )
    assert event.event_meta.id == message.id
    assert data == Shipment("DHL")
    assert got.empty()


async def test_data_that_fits_no_type_is_logged_and_stops_nothing(client, publisher, caplog):
    got = asyncio.Queue()
    orders = await client.subscribe("orders.1")
    orders.on("ParcelShipped", got.put, type=Shipment)
    await publisher.publish("orders.1", "ParcelShipped", {"carrier": 7, "card": "4111"})
    await publisher.publish("orders.1", "ParcelShipped", {"carrier": "UPS"})
    async with patience():
        assert await got.get() == Shipment("UPS")
    assert orders.failures == 1
    assert "'ParcelShipped' of the subscription to orders.1 failed" in caplog.text
    assert "4111" not in caplog.text


class Panic(BaseException):
    """As a Rust extension raises it."""


@pytest.mark.parametrize("leak", [asyncio.CancelledError, SystemExit, GeneratorExit, Panic])
async def test_handler_that_leaks_something_other_than_an_exception_is_counted_and_stops_nothing(
    client, publisher, caplog, leak
):
    got = asyncio.Queue()

    async def leaking(data):
        await asyncio.sleep(0)
        raise leak

    orders = await client.subscribe("orders.1", {"Paid": leaking})
    orders.on("Paid", got.put)
    for n in range(2):
        await publisher.publish("orders.1", "Paid", n)
    async with patience():
        assert [await got.get(), await got.get()] == [0, 1]
    assert orders.failures == 2
    assert "'Paid' of the subscription to orders.1 failed" in caplog.text


async def test_handler_that_cancels_its_own_task_is_counted_and_later_messages_are_handled(
    client, publisher, caplog
):
    got = asyncio.Queue()

    async def cancelling(data):
        if data == 0:
            asyncio.current_task().cancel()
            await asyncio.Event().wait()
        await got.put(data)

    orders = await client.subscribe("orders.1", {"Paid": cancelling})
    for n in range(2):
        await publisher.publish("orders.1", "Paid", n)
    async with patience():
        assert await got.get() == 1
    assert orders.failures == 1
    assert "a handler of subscription to orders.1 cancelled the task" in caplog.text


@pytest.mark.parametrize("leak", [asyncio.CancelledError, SystemExit, GeneratorExit, Panic])
async def test_token_function_and_observer_that_leak_do_not_end_the_client(
    edge, token, quick, leak
):
    tokens = [leak]
    states = []

    async def ask():
        if tokens:
            raise tokens.pop()
        return token()

    client = connect(edge.url, token=ask, options=quick)

    def leaking(_change):
        raise leak

    client.on_state(leaking)
    client.on_state(states.append)
    async with patience(), client:
        assert client.user_id == "7"
    assert tokens == []
    assert [change.state for change in states][-1] is ClientState.CLOSED


async def test_history_is_replayed_and_read(client, publisher):
    for n in range(10):
        await publisher.publish("orders.1", "Paid", n)
    orders = await client.subscribe("orders.1", history=3)
    assert [message.data for message in await first(orders, 3)] == [7, 8, 9]
    page = await orders.history(4)
    assert [message.data for message in page.messages] == [6, 7, 8, 9]
    older = await orders.history(2, since=page.messages[0].offset)
    assert [message.data for message in older.messages] == [7, 8]
    assert older.epoch == page.epoch


async def test_presence_and_whispers_between_two_clients(edge, token, quick, client):
    received = asyncio.Queue()
    room = await client.subscribe(
        "presence.room",
        {
            "eb:presence.joined": lambda data: received.put(("joined", data["user_id"])),
            "eb:presence.left": lambda data: received.put(("left", data["user_id"])),
            "client-typing": lambda data, message: received.put((data, message.user_id)),
        },
    )
    async with connect(edge.url, token=token("8", name="Bo"), options=quick) as other, patience():
        there = await other.subscribe("presence.room")
        assert await received.get() == ("joined", "8")
        assert {member.user_id for member in await room.presence()} == {"7", "8"}
        members = await there.presence({"mood": "fine"})
        assert {"name": "Bo", "mood": "fine"} in [member.info for member in members]
        await there.whisper("typing", {"on": True})
        assert await received.get() == ({"on": True}, "8")
        await there.unsubscribe()
        assert await received.get() == ("left", "8")


async def test_handlers_of_the_edges_events_keep_no_message_from_a_later_iteration(
    client, publisher
):
    orders = await client.subscribe("orders.1", {"eb:unsubscribed": print})
    await publisher.publish("orders.1", "Paid", 1)
    await client.ping()
    page = await orders.history()  # by now the message has come
    assert len(page.messages) == 1
    assert (await first(orders, 1))[0].data == 1


async def test_pattern_gets_each_message_once(client, publisher):
    every = await client.subscribe("orders.*")
    one = await client.subscribe("orders.1")
    for n in range(3):
        await publisher.publish("orders.1", "Paid", n)
        await publisher.publish("orders.2", "Paid", n)
    assert [(m.channel, m.data) for m in await first(every, 3)] == [
        ("orders.2", n) for n in range(3)
    ]
    assert [m.data for m in await first(one, 3)] == [0, 1, 2]
    await one.unsubscribe()
    await publisher.publish("orders.1", "Paid", 3)
    assert [(m.channel, m.data) for m in await first(every, 1)] == [("orders.1", 3)]


@pytest.mark.parametrize(
    ("channel", "error"),
    [
        ("no spaces", InvalidPattern),
        ("", InvalidPattern),
        ("a..b", InvalidPattern),
        ("x" * 201, InvalidChannel),
    ],
)
async def test_names_outside_the_grammar_are_refused_before_they_are_sent(client, channel, error):
    with pytest.raises(error):
        await client.subscribe(channel)


async def test_refusal_of_the_edge_is_raised_with_its_code(client):
    with pytest.raises(ClientRefused, match=r"subscribe admin: .*\(forbidden\)") as caught:
        await client.subscribe("admin")
    assert (caught.value.code, caught.value.channel) == ("forbidden", "admin")
    orders = await client.subscribe("orders.1")
    with pytest.raises(ClientRefused) as caught:
        await orders.whisper("typing")
    assert caught.value.code == "forbidden"
    with pytest.raises(ClientRefused) as caught:
        await orders.presence()
    assert caught.value.code == "bad_request"
    with pytest.raises(EncodingError, match="client event 'typing'"):
        await orders.whisper("typing", object())
    assert client.state is ClientState.CONNECTED


async def test_static_token_that_is_refused_is_reported_at_once_and_never_shown(
    edge, quick, caplog
):
    caplog.set_level(logging.DEBUG)
    bad = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJl"
    with pytest.raises(ClientRefused, match="signature does not verify") as caught:
        async with connect(edge.url, token=bad, options=quick):
            pass
    assert caught.value.code == "unauthorized"
    assert bad not in caplog.text + str(caught.value)


async def test_token_function_is_asked_again_when_its_token_is_refused(edge, token, quick):
    tokens = iter(["bad.bad.bad", token("9")])

    async def issue():
        return next(tokens)

    async with connect(edge.url, token=issue, options=quick) as client:
        assert client.user_id == "9"


async def test_token_function_that_fails_is_tried_again_and_its_words_are_not_logged(
    edge, token, quick, caplog
):
    caplog.set_level(logging.DEBUG)
    calls = 0

    async def issue():
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("password=hunter2")
        return token("9")

    async with connect(edge.url, token=issue, options=quick) as client:
        assert client.user_id == "9"
    assert "the token function failed: RuntimeError" in caplog.text
    assert "hunter2" not in caplog.text


async def test_without_a_token_public_channels_are_received(edge, publisher, quick):
    async with connect(f"http://127.0.0.1:{edge.port}", options=quick) as client:
        general = await client.subscribe("general")
        await publisher.publish("general", "Hello", 1)
        assert (await first(general, 1))[0].data == 1
        with pytest.raises(ClientRefused) as caught:
            await client.subscribe("orders.1")
    assert caught.value.code == "unauthorized"


async def test_no_edge_at_the_address(edge, quick):
    options = msgspec.structs.replace(quick, open_timeout=0.5)
    with pytest.raises(
        ClientDisconnected, match=r"ws://127.0.0.1:1/ws within 0.5 s: the edge cannot be"
    ):
        await connect("ws://127.0.0.1:1", options=options).open()
    with pytest.raises(ClientRefused, match="404") as caught:
        await connect(f"ws://127.0.0.1:{edge.port}/nowhere", options=options).open()
    assert caught.value.code == "http_404"


def test_arguments_of_connect_are_checked():
    with pytest.raises(ValueError, match="not the address of an edge"):
        connect("ftp://x/ws")
    with pytest.raises(ValueError, match="buffer=0"):
        ClientOptions(buffer=0)
    with pytest.raises(ValueError, match="longer than last_delay"):
        ClientOptions(first_delay=60)
    with pytest.raises(TypeError, match="a token is"):
        connect("ws://x", token=7)


async def test_client_that_is_not_open_says_so():
    client = connect("ws://127.0.0.1:1")
    with pytest.raises(BusStateError, match="async with"):
        await client.subscribe("general")
    await client.aclose()


async def test_closing_ends_iteration_requests_and_handlers_and_leaves_no_task(edge, token, quick):
    before = asyncio.all_tasks()
    client = connect(edge.url, token=token(), options=quick)
    await client.open()
    states = []
    client.on_state(lambda change: states.append(change.state))
    orders = await client.subscribe("orders.1", {"Paid": lambda _: asyncio.sleep(60)})
    plain = await client.subscribe("orders.2")
    reading = asyncio.create_task(anext_or_end(plain))
    joining = asyncio.create_task(client.subscribe("orders.3"))
    async with patience():
        await joining
        await client.aclose()
        assert await reading == "ended"
    assert asyncio.all_tasks() == before
    assert states == [ClientState.CLOSED]
    with pytest.raises(ClientClosed, match="the client was closed"):
        await client.subscribe("orders.1")
    with pytest.raises(ClientClosed):
        await orders.whisper("x")
    await client.aclose()


async def anext_or_end(subscription):
    async for message in subscription:
        return message
    return "ended"


async def test_handler_may_close_the_client(edge, token, quick, publisher):
    before = asyncio.all_tasks()
    done = asyncio.Event()
    client = connect(edge.url, token=token(), options=quick)
    await client.open()

    async def close(_):
        await client.aclose()
        done.set()

    await client.subscribe("orders.1", {"Paid": close})
    await publisher.publish("orders.1", "Paid", 1)
    async with patience():
        await done.wait()
        await asyncio.gather(*(asyncio.all_tasks() - before))
    assert client.state is ClientState.CLOSED


async def test_cancelled_open_and_subscribe_leave_nothing(edge, token, quick):
    before = asyncio.all_tasks()
    for pause in (0, 0.001, 0.003, 0.01):
        client = connect(edge.url, token=token(), options=quick)
        opening = asyncio.create_task(client.open())
        await asyncio.sleep(pause)
        if opening.cancel():
            with contextlib.suppress(asyncio.CancelledError):
                await opening
        else:  # it was faster
            await client.aclose()
        assert client.state is ClientState.CLOSED
        assert not {task for task in asyncio.all_tasks() - before if not task.done()}
    async with connect(edge.url, token=token(), options=quick) as client:
        joining = asyncio.create_task(client.subscribe("orders.1"))
        await asyncio.sleep(0)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        again = await client.subscribe("orders.1")
        assert again.is_active


# Several subscriptions to one channel


async def test_subscriptions_to_one_channel_are_independent_and_join_it_once(client, publisher):
    got = asyncio.Queue()
    one = await client.subscribe("orders.1", lambda data: got.put_nowait(("one", data)))
    two = await client.subscribe("orders.1", {"e": lambda data: got.put_nowait(("two", data))})
    three = await client.subscribe("orders.1")
    assert len({id(each) for each in (one, two, three)}) == 3
    await publisher.publish("orders.1", "e", 1)
    assert [message.data for message in await first(three, 1)] == [1]
    async with patience():
        assert sorted([await got.get(), await got.get()]) == [("one", 1), ("two", 1)]
    await two.unsubscribe()
    await two.unsubscribe()
    assert not two.is_active
    assert one.is_active
    assert one.error is two.error is None
    await publisher.publish("orders.1", "e", 2)
    assert [message.data for message in await first(three, 1)] == [2]
    async with patience():
        assert await got.get() == ("one", 2)
    assert got.empty()
    await one.unsubscribe()
    await three.unsubscribe()
    # The last one has left the channel: the edge has no subscription to it.
    with pytest.raises(ClientRefused) as caught:
        await client.ask("unsubscribe", channel="orders.1")
    assert caught.value.code == "not_subscribed"
    again = await client.subscribe("orders.1")
    await publisher.publish("orders.1", "e", 3)
    assert [message.data for message in await first(again, 1)] == [3]


async def test_refused_channel_refuses_all_who_wait_for_it_and_cancelling_one_spares_others(
    client, publisher
):
    results = await asyncio.gather(
        *(client.subscribe("secret.1") for _ in range(3)), return_exceptions=True
    )
    assert [(type(each), each.code) for each in results] == [(ClientRefused, "forbidden")] * 3
    waiting = [asyncio.create_task(client.subscribe("orders.9")) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    async with patience():
        stays = await waiting[1]
    await publisher.publish("orders.9", "e", 1)
    assert [message.data for message in await first(stays, 1)] == [1]


async def test_bad_handler_does_not_end_another_subscription(client, publisher):
    orders = await client.subscribe("orders.1")
    with pytest.raises(TypeError):
        await client.subscribe("orders.1", {"e": "not a function"})
    await publisher.publish("orders.1", "e", 1)
    assert [message.data for message in await first(orders, 1)] == [1]


# Without joining


async def test_members_and_history_are_read_without_joining(edge, token, quick, client, publisher):
    await publisher.publish("orders.5", "e", {"n": 5})
    page = await client.history("orders.5", 10)
    assert [message.data for message in page.messages] == [{"n": 5}]
    assert await client.presence("presence.room") == []
    async with connect(edge.url, token=token("8", name="Ada"), options=quick) as other:
        await other.subscribe("presence.room")
        [member] = await client.presence("presence.room")
        assert (member.user_id, member.info) == ("8", {"name": "Ada"})
        assert len(await other.presence("presence.room")) == 1, "nobody has joined by asking"
    async with connect(edge.url, options=quick) as nobody:
        for request in (nobody.presence("presence.room"), nobody.history("orders.5")):
            with pytest.raises(ClientRefused) as caught:
                await request
            assert caught.value.code == "unauthorized"
    for wrong in ("a b", "presence.*", 7):
        with pytest.raises(InvalidChannel):
            await client.presence(wrong)


# The handshake


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "Upgrade"), (401, "proxy"), (403, "BROADCAST_ALLOWED_HOSTS"), (404, "/ws by default")],
)
async def test_final_refusal_of_the_handshake_says_what_to_change(quick, status, remedy):
    async def refuse(_request):
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/wss", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"ws://me:hunter2@127.0.0.1:{runner.addresses[0][1]}/wss?key=hunter2"
        with pytest.raises(ClientRefused, match=remedy) as caught:
            await connect(address, options=quick).open()
        assert caught.value.code == f"http_{status}"
        assert "/wss" in str(caught.value)
        assert "hunter2" not in str(caught.value)
    finally:
        await runner.cleanup()


async def test_wrong_path_of_an_edge_is_named(edge, quick):
    with pytest.raises(ClientRefused, match=r"/wss was answered by HTTP 404: .* /ws by default"):
        await connect(edge.url.replace("/ws", "/wss"), options=quick).open()

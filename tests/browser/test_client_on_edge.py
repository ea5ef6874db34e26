"""eventbus.js in Chromium, on edges that end, move and block: every message once, and in order."""

import asyncio
import signal

import aiohttp
import msgspec
import pytest

from eventbus.bus import EventBus

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

NO_STREAM = "{ sseUrl: false }"
"""For an edge that comes back: a stream, tried right after a WebSocket, may find it first."""


async def test_edge_that_is_killed_and_started_again_loses_nothing(edge_process, client, numbers):
    node = await edge_process()
    page = await client(NO_STREAM)
    publishing = numbers()
    for _ in range(2):
        await publishing.some_more()
        await node.end(signal.SIGKILL)
        await page.has_been("waiting")
        await publishing.some_more()
        await node.start()
        await page.has_been("connected")
    await publishing.some_more()
    await page.has_all(publishing)


async def test_node_that_drains_hands_its_pages_to_another_one(edge_process, client, numbers, gate):
    first = await edge_process()
    page = await client()
    publishing = numbers()
    await publishing.some_more()
    await edge_process()  # the gate's next connections are its own
    await first.end(signal.SIGTERM)
    assert (await page.has_been("waiting"))["code"] == 4200
    await page.has_been("connected")
    await publishing.some_more()
    await page.has_all(publishing)


async def test_dead_connection_is_noticed_by_silence(edge_process, client, numbers, gate):
    await edge_process(BROADCAST_HEARTBEAT="1")
    page = await client()
    publishing = numbers()
    await publishing.some_more()
    gate.stall()
    lost = await page.has_been("waiting")
    assert lost["reason"] == "no answer"
    await page.has_been("connected")
    await page.has_all(publishing)


async def test_restart_of_nats_is_noticed_by_no_page(
    edge_process, client, settings, own_nats_server, numbers
):
    await edge_process(NATS_URL=own_nats_server.url)
    page = await client()
    async with EventBus(msgspec.structs.replace(settings, nats_url=own_nats_server.url)) as bus:
        publishing = numbers(bus)
        await publishing.some_more()
        await own_nats_server.stop()
        await own_nats_server.start()
        await publishing.some_more()
        await page.has_all(publishing)


async def test_offline_browser_says_so_and_continues_when_it_is_online(
    edge_process, client, numbers
):
    await edge_process()
    page = await client()
    publishing = numbers()
    await publishing.some_more()
    await page.page.context.set_offline(True)
    await page.has_been("offline")
    await publishing.some_more()
    await page.page.context.set_offline(False)
    await page.has_been("connected")
    await publishing.some_more()
    await page.has_all(publishing)


async def test_frozen_and_hidden_page_gets_everything_when_it_is_shown_again(
    edge_process, client, numbers
):
    await edge_process()
    page = await client()
    publishing = numbers()
    await publishing.some_more()
    devtools = await page.page.context.new_cdp_session(page.page)
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    await publishing.some_more(50)
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
    await publishing.some_more()
    await page.has_all(publishing)


async def test_busy_page_gets_everything_and_keeps_its_connection(edge_process, client, numbers):
    await edge_process(BROADCAST_HEARTBEAT="1")
    page = await client()
    publishing = numbers()
    await publishing.some_more()
    await page.evaluate("(() => { const end = Date.now() + 4000; while (Date.now() < end); })()")
    await publishing.some_more()
    await page.has_all(publishing)
    assert await page.evaluate("states.map(({ status }) => status)") == ["connected"]


async def test_token_is_refreshed_in_place_before_it_ends(edge_process, client, numbers):
    await edge_process(BROADCAST_TOKEN_GRACE="0", JWT_LEEWAY="0")
    page = await client(None)
    issue = page.token
    issued = []

    def short_lived():
        issued.append(issue(lifetime=8 if not issued else 3600))
        return issued[-1]

    page.token = short_lived
    await page.start()
    id_before = await page.evaluate("bus.connectionId")
    assert await page.evaluate("bus.headers()") == {"X-Eventbus-Connection": id_before}
    publishing = numbers()
    async with asyncio.timeout(40):
        while len(issued) < 2:  # noqa: ASYNC110 - the page asks when it is time
            await asyncio.sleep(0.05)
    await publishing.some_more(250)  # five seconds: beyond the first token's end
    await page.has_all(publishing)
    assert await page.evaluate("[bus.connectionId, errors.length]") == [id_before, 0]
    assert len(issued) == 2


async def test_token_that_could_not_be_refreshed_in_time_is_requested_again(
    edge_process, client, numbers
):
    await edge_process(BROADCAST_TOKEN_GRACE="0", JWT_LEEWAY="0")
    page = await client(None)
    issue = page.token
    asked = 0

    def failing_once():
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("the token service is away")
        return issue(lifetime=6 if asked == 1 else 3600)

    page.token = failing_once
    await page.start()
    publishing = numbers()
    assert (await page.has_been("waiting"))["code"] == 4202
    await page.has_been("connected")
    await publishing.some_more()
    await page.has_all(publishing)
    assert await page.evaluate("errors") == ["unauthorized"]


async def test_page_that_is_revoked_never_comes_back(edge_process, client, gate):
    await edge_process(BROADCAST_API_KEY="the-key")
    page = await client()
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{gate.url}/api/broadcast/disconnect",
            json={"user_id": "7"},
            headers={"Authorization": "Bearer the-key"},
        ) as response,
    ):
        assert (await response.json())["count"] == 1
    assert (await page.has_been("closed"))["code"] == 4003
    await page.evaluate("dispatchEvent(new Event('online')); bus.reconnect()")
    await asyncio.sleep(1)  # nothing to wait for: it must not come back
    assert await page.evaluate("[bus.state.status, states.length]") == ["closed", 0]


async def test_page_is_notified_when_it_cannot_be_brought_up_to_date(
    edge_process, client, settings
):
    small = msgspec.structs.replace(
        settings, history_messages=5, namespace=f"{settings.namespace}s"
    )
    async with EventBus(small) as bus:
        node = await edge_process(
            BROADCAST_HISTORY_MESSAGES="5", BROADCAST_CHANNELS_PREFIX=small.namespace
        )
        page = await client(NO_STREAM)
        await bus.publish("chat.7", "Number", 0)
        await page.until("got.length === 1")
        await node.end()
        for number in range(1, 10):
            await bus.publish("chat.7", "Number", number)
        await node.start()
        await page.until("recovered.length === 2")
        assert await page.evaluate("recovered[1]") is False
        await bus.publish("chat.7", "Number", 10)
        await page.until("got.includes(10)")
        history = await page.evaluate("room.history({ limit: 3 })")
        assert [message["data"] for message in history["messages"]] == [8, 9, 10]


async def test_pattern_receives_its_channels_and_what_it_missed(edge_process, client, bus):
    node = await edge_process()
    page = await client(None)
    issue = page.token
    page.token = lambda: issue(channels=["orders.>"])
    await page.start(NO_STREAM)
    await page.evaluate(
        """() => {
          globalThis.heard = [];
          const told = ({ recovered }) => heard.push(recovered ?? "joined");
          const tell = (name) => (data, { channel }) => heard.push([name, channel, data]);
          globalThis.all = bus.subscribe("orders.*", { Shipped: tell("*"), "eb:subscribed": told });
          globalThis.one = bus.subscribe("orders.1", { Shipped: tell("1") }, { history: 10 });
          return Promise.all([all.ready, one.ready]);
        }"""
    )
    await bus.publish("orders.1", "Shipped", "a")
    await bus.publish("orders.2", "Shipped", "b")
    await bus.publish("orders.2.items", "Shipped", "not matched")
    await page.until("heard.length >= 4")
    received = await page.evaluate("heard.splice(0)")
    assert received[0] == "joined"
    assert sorted(received[1:]) == [
        ["*", "orders.1", "a"],
        ["*", "orders.2", "b"],
        ["1", "orders.1", "a"],
    ]

    await node.end()
    for number in (2, 1, 3):
        await bus.publish(f"orders.{number}", "Shipped", "missed")
    await node.start()
    await page.until("heard.length >= 5")
    resumed = await page.evaluate("heard.splice(0).map(String)")
    assert sorted(resumed) == [
        "*,orders.1,missed", "*,orders.2,missed", "*,orders.3,missed", "1,orders.1,missed", "true",
    ]  # fmt: skip
    await page.evaluate("all.unsubscribe()")
    await bus.publish("orders.2", "Shipped", "c")
    await bus.publish("orders.1", "Shipped", "d")
    await page.until("heard.length >= 1")
    assert await page.evaluate("heard") == [["1", "orders.1", "d"]]
    refused = await page.evaluate("bus.subscribe('secret.*').ready.catch(({ code }) => code)")
    assert refused == "forbidden"


OVERLAPPING = ("orders.1", "orders.*", "orders.>")
OVERLAP = """
async (names) => {
  globalThis.heard = Object.fromEntries([...names, "passing"].map((name) => [name, []]));
  globalThis.gaps = [];
  const listen = (name, log = heard[name]) => bus.subscribe(name, {
    Shipped: (data, { channel }) => log.push([channel, data]),
    "eb:subscribed": ({ recovered }) => recovered === false && gaps.push(name),
  });
  globalThis.turn = () => {  // one that comes and goes
    if (globalThis.passing) passing = passing.unsubscribe();
    else globalThis.passing = listen("orders.2", heard.passing);
  };
  globalThis.cut = () => {
    dispatchEvent(new Event("offline"));
    dispatchEvent(new Event("online"));
  };
  await Promise.all(names.map((name) => listen(name).ready));
}
"""


async def test_overlapping_subscriptions_hear_each_message_once_through_reconnects(
    edge_process, client, bus
):
    await edge_process()
    page = await client(None)
    issue = page.token
    page.token = lambda: issue(channels=["orders.>"])
    await page.start(NO_STREAM)
    await page.evaluate(OVERLAP, OVERLAPPING)
    channels = ("orders.1", "orders.2", "orders.3")
    sent = []
    for number in range(600):
        channel = channels[number % 3]
        await bus.publish(channel, "Shipped", number)
        sent.append([channel, number])
        if number % 40 == 20:
            await page.evaluate("cut()")
        if number % 50 == 30:
            await page.until("bus.state.status === 'connected'")
            await page.evaluate("turn()")
    await page.until("heard['orders.>'].length >= 600 && heard['orders.*'].length >= 600")
    await page.until("heard['orders.1'].length >= 200")
    await page.until("bus.state.status === 'connected'")
    heard = await page.evaluate("heard")
    for name in OVERLAPPING:
        for channel in channels if name != "orders.1" else channels[:1]:
            expected = [each for each in sent if each[0] == channel]
            assert [each for each in heard[name] if each[0] == channel] == expected
    numbers = [number for _, number in heard["passing"]]
    assert numbers == sorted(set(numbers))
    assert await page.evaluate("[gaps, errors]") == [[], []]


async def test_two_pages_whisper_and_see_each_other(edge_process, client):
    await edge_process(BROADCAST_PRESENCE_GRACE="0")
    ada, bob = await client(None), await client(None)
    bob.user = "8"
    members = []
    for page in (ada, bob):
        await page.start()
        members.append(
            await page.evaluate(
                """async () => {
                  globalThis.seen = [];
                  const note = (data, { event, user_id }) => seen.push([event, data, user_id]);
                  globalThis.lobby = bus.subscribe("presence.lobby", {
                    "eb:presence.joined": note, "eb:presence.left": note,
                    "eb:presence.updated": note, "client-wave": note,
                  });
                  return (await lobby.ready).members.map(({ user_id }) => user_id).sort();
                }"""
            )
        )
    assert members == [["7"], ["7", "8"]]
    await ada.until("seen.length === 1")
    assert await bob.evaluate("lobby.whisper('wave', { hard: true })") == {}
    await ada.until("seen.length === 2")  # whispers and members are sent in different ways
    await bob.evaluate("lobby.presence({ mood: 'merry' })")
    await ada.until("seen.length === 3")
    joined, waved, updated = await ada.evaluate("seen")
    assert (joined[0], joined[1]["user_id"]) == ("eb:presence.joined", "8")
    assert waved == ["client-wave", {"hard": True}, "8"]
    assert (updated[0], updated[1]["info"]["mood"]) == ("eb:presence.updated", "merry")
    visitor = await client(None)
    visitor.user = "9"
    await visitor.start()
    present = await visitor.evaluate("bus.presence('presence.lobby')")  # without joining it
    assert sorted(each["user_id"] for each in present["members"]) == ["7", "8"]
    unnamed = await visitor.evaluate(
        """() => new Promise((done) => {
          const unnamed = connect({ url: "/ws" });
          unnamed.onState(({ status }) => {
            if (status === "connected") done(unnamed.presence("presence.lobby"));
          });
        }).catch(({ code }) => code)"""
    )
    assert unnamed == "unauthorized"
    present = await ada.evaluate("lobby.presence()")
    assert present["count"] == 2
    await bob.evaluate("lobby.unsubscribe()")
    await ada.until("seen.length === 4")
    codes = await bob.evaluate(
        "Promise.all([room.presence(), lobby.whisper('wave'), room.whisper('eb:no')]"
        ".map((each) => each.catch(({ code }) => code)))"
    )
    assert codes == ["bad_request", "not_subscribed", "bad_request"]


async def test_blocked_websockets_are_replaced_by_a_stream_until_they_are_allowed(
    edge_process, client, numbers
):
    node = await edge_process(BROADCAST_WEBSOCKET_ENABLED="false")
    urls = []
    page = await client(None)
    page.page.on("request", lambda request: urls.append(request.url))
    await page.page.clock.install()
    await page.start()
    assert await page.evaluate("[bus.state.status, bus.transport]") == ["connected", "sse"]
    await page.evaluate("void dispatchEvent(new Event('online'))")
    for _ in range(3):  # it cannot be pinged, and silence is not a loss
        await page.page.clock.fast_forward(6_000)
    assert await page.evaluate("states.map(({ status }) => status)") == ["connected"]
    publishing = numbers()
    await publishing.some_more()
    refused = await page.evaluate("room.whisper('typing').catch(({ code }) => code)")
    assert refused == "no_websocket"

    # An added channel is received in a stream of both, without a gap in the first.
    await page.evaluate("bus.subscribe('general', {}).ready")
    await publishing.some_more()
    await node.end(signal.SIGKILL)
    await page.has_been("waiting")
    await publishing.some_more()
    await node.start()
    assert (await page.has_been("connected"))["transport"] == "sse"
    await publishing.some_more()

    await node.end(signal.SIGTERM)
    assert (await page.has_been("waiting"))["code"] == 4200
    await publishing.some_more()
    await node.start()
    assert (await page.has_been("connected"))["transport"] == "sse"

    await edge_process()  # the gate leads to a node that takes WebSockets
    await page.page.clock.fast_forward(61_000)
    assert (await page.has_been("connected"))["transport"] == "websocket"
    await publishing.some_more()
    await page.has_all(publishing)
    assert await page.evaluate("room.whisper('typing')") == {}
    assert not [url for url in urls if "eyJ" in url]


async def test_page_of_many_channels_is_admitted_everywhere_by_an_edge_that_allows_few_actions(
    edge_process, client
):
    await edge_process(
        BROADCAST_ACTION_BURST="60",
        BROADCAST_MAX_ACTIONS_PER_SECOND="60",
        BROADCAST_MAX_CHANNELS_PER_CONNECTION="300",
    )
    page = await client(None)
    await page.evaluate(
        "void start();"  # all are asked for at once when it is connected, as after a reconnect
        "globalThis.rooms = [...Array(130)].map((_, i) => bus.subscribe(`chat.${1000 + i}`));"
    )
    await page.until("rooms.every((each) => each.active)")
    assert await page.evaluate("states.map(({ status }) => status)") == ["connected"]


async def test_history_is_read_page_by_page(edge_process, client, bus):
    await edge_process()
    page = await client()
    for number in range(25):
        await bus.publish("chat.7", "Number", number)
    pages = await page.evaluate(
        """async () => {
          const pages = [];
          for (let since = 0, page; pages.length < 9; since = page.messages.at(-1).offset) {
            page = await room.history({ limit: 10, since });
            if (!page.messages.length) break;
            pages.push(page.messages.map(({ data }) => data));
          }
          return pages;
        }"""
    )
    assert [len(each) for each in pages] == [10, 10, 5]
    assert [number for each in pages for number in each] == list(range(25))

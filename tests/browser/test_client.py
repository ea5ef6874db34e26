"""eventbus.js against a real edge, and against a server that misbehaves as no edge would."""

import asyncio
import shutil

import pytest
from playwright.async_api import async_playwright

from tests.browser.conftest import CHROMIUM_ARGS
from tests.browser.scripted import received, state

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-client")]


async def test_token_goes_by_the_auth_action_and_subscriptions_follow_it(server, page):
    socket = await server.next(server.connections)
    assert (await server.authenticate(socket))["data"] == {"token": "token-1"}
    asked = await server.next(server.received)
    assert (asked["action"], asked["channel"]) == ("subscribe", "orders.1")
    assert asked["data"] == {"history": 5}


async def test_reconnect_resumes_after_the_last_message_and_hands_on_none_twice(server, page):
    socket = await server.joined(3)
    for offset in (4, 5, 5, 4):
        await server.message(socket, offset)
    await received(page, [4, 5])
    await socket.close(code=4201)

    socket = await server.joined(5, recovered=True)
    assert server.asked["data"] == {"offset": 5, "epoch": "e"}
    for offset in (5, 6):
        await server.message(socket, offset)
    await received(page, [4, 5, 6])
    await server.message(socket, 1, epoch="another stream")
    await received(page, [4, 5, 6, 1])


async def test_reconnect_gives_back_the_mark_of_the_last_message(server, page):
    socket = await server.joined(3)
    place = {"offset": 4, "epoch": "e", "mark": "2026-11-30T18:55:02.5Z"}
    await server.say(socket, "Shipped", 4, "orders.1", **place)
    await page.wait_for_function("room.position?.offset === 4")
    await socket.close(code=4201)
    await server.joined(4, recovered=True)
    assert server.asked["data"] == place


async def test_gap_that_the_edge_reports_reaches_a_channel_and_a_pattern(server, page):
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await page.evaluate(
        "globalThis.all = bus.subscribe('orders.*');"
        "for (const each of [room, all])"
        "  each.on('eb:subscribed',"
        "    ({ recovered }) => got.push([each.channel, recovered ?? null]));"
        "null"  # a function would be called
    )
    asked = await server.next(server.received)
    assert asked["pattern"] == "orders.*"
    about = {"pattern": "orders.*", "kind": "private"}
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await received(page, [["orders.*", None]])
    await server.say(socket, "eb:subscribed", about | {"recovered": False})
    reported = {"kind": "private", "offset": 7, "epoch": "e", "recovered": False}
    await server.say(socket, "eb:subscribed", reported, "orders.1")
    await server.message(socket, 8)
    await received(page, [["orders.*", None], ["orders.*", False], ["orders.1", False], 8])


@pytest.mark.parametrize(
    ("code", "name"), [(4001, "unauthorized"), (4003, "revoked"), (4008, "rate_limited")]
)
async def test_code_that_says_stay_away_ends_it_for_good(server, page, code, name):
    socket = await server.joined(0)
    await socket.close(code=code, message=b"so be it")
    closed = await state(page, "closed")
    assert (closed["code"], closed["reason"]) == (code, "so be it")
    assert closed["error"] == {"code": name, "message": "so be it"}
    await page.evaluate("bus.reconnect(); dispatchEvent(new Event('online'))")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await server.connections.get()


@pytest.mark.parametrize(
    ("code", "shortest_ms", "longest_ms"), [(4100, 200, 500), (1001, 200, 500), (4200, -50, 500)]
)
async def test_code_that_says_come_back_sets_the_delay(server, page, code, shortest_ms, longest_ms):
    socket = await server.joined(0)
    before = await page.evaluate("Date.now()")
    await page.evaluate(
        "void bus.onState(({ retryAt }) => { globalThis.in_ms ??= retryAt - Date.now(); })"
    )
    await socket.close(code=code)
    lost = await state(page, "waiting")
    assert lost["code"] == code
    assert lost["retryAt"] > before
    assert shortest_ms <= await page.evaluate("in_ms") <= longest_ms
    await server.joined(0)


async def test_delay_grows_while_connections_fail_at_once(server, page):
    await page.evaluate(
        "globalThis.delays = [];"
        "void bus.on('state', ({ retryAt }) => retryAt && delays.push(retryAt - Date.now()))"
    )
    for _ in range(4):
        await (await server.next(server.connections)).close(code=4200)
    await page.wait_for_function("delays.length >= 4")
    delays = await page.evaluate("delays")
    assert delays[0] <= 500
    assert delays[1] < delays[3]
    assert 1900 <= delays[3] <= 4000


async def test_silent_server_is_asked_twice_and_then_given_up(server, loaded):
    server.heartbeat_s = 1.5
    await loaded.evaluate("start()")
    await server.joined(0)
    lost = await state(loaded, "waiting")
    assert lost["reason"] == "no answer"
    asked = []
    while not server.received.empty():
        asked.append(server.received.get_nowait()["action"])
    assert asked.count("ping") == 2


async def test_going_offline_is_noticed_and_online_connects_at_once(server, page):
    await server.joined(0)
    await page.context.set_offline(True)
    assert (await state(page, "offline"))["reason"] == "offline"
    await page.context.set_offline(False)
    await server.joined(0)


async def test_expiring_token_is_refreshed_in_place(server, page):
    socket = await server.joined(0)
    await server.say(socket, "eb:token.expiring", {"expires_at": "2030-01-01", "in_s": 60})
    assert (await server.authenticate(socket))["data"] == {"token": "token-2"}


async def test_token_is_kept_over_reconnects_and_asked_for_again_when_it_has_expired(server, page):
    await (await server.joined(0)).close(code=4200)
    again = await server.next(server.connections)
    assert (await server.authenticate(again))["data"] == {"token": "token-1"}
    await server.next(server.received)
    await again.close(code=4202)
    again = await server.next(server.connections)
    assert (await server.authenticate(again))["data"] == {"token": "token-2"}


async def test_refused_token_is_replaced_once_then_channels_are_asked_for_without_a_name(
    server, page
):
    await page.evaluate("void bus.on('error', (error) => got.push(error.code))")
    socket = await server.next(server.connections)
    for number in (1, 2):
        asked = await server.next(server.received)
        assert asked["data"] == {"token": f"token-{number}"}
        await server.refuse(socket, asked, "unauthorized")
    assert (await server.next(server.received))["action"] == "subscribe"
    await received(page, ["unauthorized"])


async def test_token_function_that_fails_is_asked_again(server, loaded):
    await loaded.evaluate(
        """() => {
          let times = 0;
          const token = async () => { if (!times++) throw new Error("no network"); return "late"; };
          return import("/static/eventbus.js").then(({ connect }) => {
            globalThis.bus = connect({ url: "/ws", token, minDelay: 20 });
            bus.on("state", (state) => states.push(state));
          });
        }"""
    )
    assert (await state(loaded, "waiting"))["reason"] == "no network"
    socket = await server.next(server.connections)
    assert (await server.authenticate(socket))["data"] == {"token": "late"}


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "token_expired"])
async def test_subscription_refused_for_the_moment_is_requested_again(server, page, code):
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    asked = await server.next(server.received)
    assert asked["action"] == "subscribe"
    await server.refuse(socket, asked, code)
    assert (await server.next(server.received))["action"] == "subscribe"


async def test_refused_subscription_is_reported_everywhere_and_asked_for_on_the_next_connection(
    server, page
):
    await page.evaluate(
        "room.on('eb:error', ({ code, message }) => got.push([code, message]));"
        "bus.on('error', ({ code, channel }) => got.push([code, channel]));"
        "void room.ready.catch((error) => got.push([error.name, error.code]))"
    )
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    await server.refuse(socket, await server.next(server.received), "forbidden")
    await received(
        page,
        [["forbidden", "so be it"], ["forbidden", "orders.1"], ["EventBusError", "forbidden"]],
    )
    await asyncio.sleep(0.5)  # nothing to wait for: it must not ask again by itself
    assert server.received.empty()
    await socket.close(code=4200)
    await server.joined(0)


async def test_error_that_nobody_listens_to_is_reported(server, page):
    await page.evaluate(
        "addEventListener('error', (event) => {"
        " got.push(event.error.code); event.preventDefault(); })"
    )
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    await server.refuse(socket, await server.next(server.received), "forbidden")
    await received(page, ["forbidden"])


async def test_answers_go_to_their_requests_and_errors_reject(server, page):
    socket = await server.joined(0)
    await page.evaluate(
        "void Promise.allSettled("
        "[room.whisper('typing', {}), room.presence({ at: 1 }), room.history({ limit: 2 })]"
        ").then((all) => got.push(...all.map(({ value, reason }) => value ?? reason.code)))"
    )
    whisper, presence, history = [await server.next(server.received) for _ in range(3)]
    assert (whisper["event"], whisper["data"]) == ("typing", {})
    assert (presence["action"], presence["data"]) == ("presence", {"at": 1})
    assert (history["action"], history["data"]) == ("history", {"limit": 2})
    about = {"messages": [], "offset": 1, "epoch": "e"}
    await server.say(socket, "eb:history", about | {"ref": history["ref"]}, "orders.1")
    # An application's message is never an answer, whatever it contains.
    await server.say(socket, "Shipped", {"ref": whisper["ref"]}, "orders.1")
    await server.refuse(socket, whisper, "forbidden")
    await server.say(socket, "eb:presence", {"count": 0, "ref": presence["ref"]}, "orders.1")
    await received(page, [{"ref": whisper["ref"]}, "forbidden", {"count": 0}, about])


async def test_members_and_history_are_answered_without_joining(server, page):
    socket = await server.joined(0)
    await page.evaluate(
        "void Promise.allSettled([bus.presence('presence.lobby'), bus.history('logs', { limit: 1 })"
        "]).then((all) => got.push(...all.map(({ value, reason }) => value ?? reason.code)))"
    )
    presence, history = await server.asks("presence"), await server.asks("history")
    assert (presence["channel"], "data" in presence) == ("presence.lobby", False)
    assert (history["channel"], history["data"]) == ("logs", {"limit": 1})
    about = {"members": [], "count": 0}
    await server.say(socket, "eb:presence", about | {"ref": presence["ref"]}, "presence.lobby")
    await server.refuse(socket, history, "unauthorized")
    await received(page, [about, "unauthorized"])
    assert server.received.empty()


async def test_requests_under_way_are_rejected_when_the_connection_is_lost(server, page):
    socket = await server.joined(0)
    await page.evaluate("void room.whisper('typing', {}).catch(({ code }) => got.push(code))")
    await server.next(server.received)
    await socket.close(code=4200)
    await received(page, ["disconnected"])


async def test_unanswered_requests_are_bounded(server, page):
    await server.joined(0)
    await page.wait_for_function("room.active")
    codes = await page.evaluate(
        "Promise.race([...Array(1100)].map(() => room.whisper('x'))).catch(({ code }) => code)"
    )
    assert codes == "limit_exceeded"
    asked = 0
    while not server.received.empty():
        server.received.get_nowait()
        asked += 1
    assert asked <= 1000


async def test_two_buses_of_a_page_have_nothing_in_common(server, page):
    first = await server.joined(0)
    await page.evaluate(
        """() => import("/static/eventbus.js").then(({ connect }) => {
          globalThis.other = connect({ url: "/ws" });
          other.subscribe("orders.1", (data) => got.push(`other ${data}`));
        })"""
    )
    second = await server.next(server.connections)
    asked = await server.next(server.received)
    about = {"kind": "private", "offset": 0, "epoch": "e", "ref": asked["ref"]}
    await server.say(second, "eb:subscribed", about, "orders.1")
    await server.message(second, 1)
    await received(page, ["other 1"])
    await page.evaluate("other.close()")
    await server.message(first, 1)
    await received(page, ["other 1", 1])
    assert await page.evaluate("[bus.state.status, other.state.status]") == ["connected", "closed"]


async def test_handler_that_throws_keeps_no_message_from_the_others(server, page):
    # The fault is reported as the page's own, which this listener takes note of.
    await page.evaluate(
        "addEventListener('error', (event) => { got.push('reported'); event.preventDefault(); });"
        "room.on('Shipped', () => { throw new Error('mine'); });"
        "void room.on('Shipped', (data) => got.push(`second ${data}`));"
    )
    socket = await server.joined(0)
    await server.message(socket, 1)
    await received(page, ["reported", "second 1", 1])


async def test_nothing_is_buffered_without_a_connection(server, page):
    await (await server.joined(0)).close(code=4100)
    await state(page, "waiting")
    refused = await page.evaluate("room.whisper('typing', {}).catch(({ code }) => code)")
    assert refused == "disconnected"
    await server.joined(0)
    assert server.received.empty()


async def test_unsubscribe_is_said_once_and_not_undone_by_a_reconnect(server, page):
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await page.evaluate("room.unsubscribe(); room.unsubscribe()")
    output = await server.next(server.received)
    assert (output["action"], output["channel"]) == ("unsubscribe", "orders.1")
    await socket.close(code=4200)
    await server.authenticate(await server.next(server.connections))
    await page.wait_for_function("bus.state.status === 'connected'")
    assert server.received.empty()


async def test_messages_of_a_channel_that_was_left_and_joined_again_wait_for_the_answer(
    server, page
):
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await page.evaluate("room.unsubscribe()")
    left = await server.next(server.received)
    await page.evaluate(
        "globalThis.room = bus.subscribe('orders.1', (data) => got.push(`again ${data}`));"
        "void room.on('eb:unsubscribed', () => got.push('unsubscribed'))"
    )
    joined = await server.next(server.received)
    await server.message(socket, 1)  # of the earlier subscription
    await server.say(socket, "eb:unsubscribed", {"ref": left["ref"]}, "orders.1")
    about = {"kind": "private", "offset": 1, "epoch": "e", "ref": joined["ref"]}
    await server.say(socket, "eb:subscribed", about, "orders.1")
    await server.message(socket, 2)
    await received(page, ["again 2"])


async def test_closed_bus_takes_no_more_subscriptions(server, page):
    await server.joined(0)
    await page.evaluate("bus.close()")
    assert (await state(page, "closed"))["code"] == 1000
    code = await page.evaluate(
        "(() => { try { bus.subscribe('x'); } catch (error) { return error.code; } })()"
    )
    assert code == "closed"


@pytest.mark.parametrize("last", ["connecting", "connected", "waiting"])
async def test_bus_closed_by_its_own_listener_stays_closed(server, loaded, last):
    await loaded.clock.install()
    await loaded.evaluate(
        f"start(); void bus.on('state', ({{ status: state }}) => {{"
        f" if (state === 'waiting') setTimeout(() => bus.reconnect());"
        f" if (state === '{last}') bus.close(); }})"
    )
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    if last != "connected":
        await socket.close(code=4100)
    await loaded.clock.run_for(100)
    await loaded.wait_for_function("bus.state.status === 'closed'")
    await loaded.clock.run_for(120_000)  # beyond every delay there is
    assert await loaded.evaluate("bus.state.status") == "closed"
    assert server.connections.empty()


async def test_channel_is_requested_once_when_subscribing_while_connected(server, loaded):
    await loaded.evaluate(
        """start(); void bus.on("state", ({ status: state }) => {
          if (state !== "connected") return;
          bus.subscribe("orders.2", { "eb:subscribed": ({ recovered }) => got.push(recovered) });
        })"""
    )
    socket = await server.joined(0)
    other = server.asked
    first = await server.next(server.received)
    assert {first["channel"], other["channel"]} == {"orders.1", "orders.2"}
    about = {"kind": "private", "offset": 0, "epoch": "e", "ref": first["ref"]}
    await server.say(socket, "eb:subscribed", about, first["channel"])
    # A channel requested again meanwhile, after a new token, is not requested twice either.
    await server.say(socket, "eb:token.expiring", {"expires_at": "2030-01-01", "in_s": 60})
    await server.authenticate(socket)
    await loaded.evaluate("void room.whisper('last').catch(() => {})")
    assert (await server.next(server.received))["action"] == "whisper"
    assert await loaded.evaluate("got") == [None]


async def test_subscription_that_was_left_before_its_answer_receives_nothing(server, page):
    await page.evaluate(
        "room.on('eb:subscribed', () => got.push('subscribed'));"
        "void bus.on('eb:note', () => got.push('note'))"
    )
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    asked = await server.next(server.received)
    await page.evaluate("room.unsubscribe()")
    assert (await server.next(server.received))["action"] == "unsubscribe"
    about = {"kind": "private", "offset": 0, "epoch": "e", "ref": asked["ref"]}
    await server.say(socket, "eb:subscribed", about, "orders.1")
    await server.message(socket, 1)
    await server.say(socket, "eb:note", {}, None)  # after which everything before it has arrived
    await received(page, ["note"])
    assert await page.evaluate("room.active") is False


@pytest.mark.parametrize("code", ["rate_limited", "unavailable", "forbidden"])
async def test_subscription_that_was_left_before_its_refusal_is_not_asked_for_again(
    server, loaded, code
):
    server.heartbeat_s = 10_000.0  # no pings meanwhile
    await loaded.clock.install()
    await loaded.evaluate(
        "start(); room.on('eb:error', () => got.push('room'));"
        "bus.on('error', () => got.push('bus'));"
        "void bus.on('eb:note', () => got.push('note'))"
    )
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    asked = await server.next(server.received)
    await loaded.evaluate("room.unsubscribe()")
    assert (await server.next(server.received))["action"] == "unsubscribe"
    await server.refuse(socket, asked, code)
    await server.say(socket, "eb:note", {}, None)
    await received(loaded, ["note"])
    await loaded.clock.run_for(120_000)  # beyond every delay there is
    await loaded.evaluate("void bus.subscribe('orders.2')")
    assert (await server.next(server.received))["channel"] == "orders.2"


async def test_subscription_that_a_handler_leaves_gets_no_more_of_that_message(server, page):
    await page.evaluate("void room.on('Shipped', () => { room.unsubscribe(); got.push('left'); })")
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await server.message(socket, 1)
    assert (await server.next(server.received))["action"] == "unsubscribe"
    assert await page.evaluate("got") == ["left"]


async def test_channel_that_is_left_before_there_is_a_connection_is_never_asked_for(server, loaded):
    await loaded.evaluate("start(); room.unsubscribe(); void bus.subscribe('orders.2')")
    await server.authenticate(await server.next(server.connections))
    assert (await server.next(server.received))["channel"] == "orders.2"
    assert await loaded.evaluate("room.ready.catch(({ code }) => code)") == "unsubscribed"


async def test_page_never_acts_faster_than_the_server_allows(server, loaded):
    server.pace = {"actions_per_s": 0.001, "action_burst": 20}
    await loaded.evaluate("start()")
    socket = await server.joined(0)
    await loaded.wait_for_function("room.active")
    codes = await loaded.evaluate(
        "(() => { const all = [...Array(40)].map((_, i) =>"
        "    room.whisper('moved', i).catch(({ code }) => code));"
        "  return Promise.all(all.slice(20)); })()"
    )
    assert codes == ["rate_limited"] * 20
    for _ in range(17):  # of 20, a tenth is left to spare
        await server.next(server.received)
    assert server.received.empty()
    # A new connection starts over.
    await socket.close(code=4200)
    await server.joined(0)


async def test_leaving_a_channel_waits_for_its_turn_unless_it_is_joined_again(server, loaded):
    server.pace = {"actions_per_s": 2, "action_burst": 5}
    await loaded.evaluate("start()")
    await server.joined(0)
    await loaded.wait_for_function("room.active")
    await loaded.evaluate(
        "for (let i = 0; i < 5; i++) room.whisper('moved', i).catch(() => {}); room.unsubscribe()"
    )
    async with asyncio.timeout(40):
        while (await server.received.get())["action"] != "unsubscribe":
            pass


async def test_errors_are_reported_again_when_their_listener_has_gone(server, page):
    await page.evaluate(
        "bus.on('error', () => {})();"
        "addEventListener('error', (event) => {"
        " got.push(event.error.code); event.preventDefault(); })"
    )
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    await server.refuse(socket, await server.next(server.received), "forbidden")
    await received(page, ["forbidden"])


@pytest.mark.parametrize(
    ("fault", "noticed_ms"), [("Promise.reject()", 0), ("new Promise(() => {})", 20_000)]
)
async def test_token_function_that_rejects_with_nothing_or_hangs_is_asked_again(
    server, loaded, fault, noticed_ms
):
    await loaded.clock.install()
    await loaded.evaluate(
        f"""() => {{
          let times = 0;
          const token = () => (times++ ? "late" : {fault});
          return import("/static/eventbus.js").then(({{ connect }}) => {{
            globalThis.bus = connect({{ url: "/ws", token, minDelay: 20 }});
            bus.on("state", (state) => states.push(state));
          }});
        }}"""
    )
    await loaded.clock.run_for(noticed_ms)
    await state(loaded, "waiting")
    await loaded.clock.run_for(100)
    socket = await server.next(server.connections)
    assert (await server.authenticate(socket))["data"] == {"token": "late"}


async def test_network_that_may_have_changed_is_tried_at_once(server, page):
    await server.joined(0)
    await page.evaluate("void dispatchEvent(new Event('online'))")
    assert (await server.next(server.received))["action"] == "ping"


UNREADABLE = [
    "nonsense", "", "7", "null", "[]", "{}", '{"event":7,"data":{}}', "[" * 100_000, b"binary",
    '{"event":"eb:news","channel":null}',
]  # fmt: skip


async def test_frames_that_cannot_be_read_are_skipped_counted_and_reported(server, page):
    await page.evaluate(
        "globalThis.errors = [];bus.on('error', ({ name, code }) => errors.push([name, code]));null"
    )
    socket = await server.joined(3)
    for frame in UNREADABLE:
        await (socket.send_str if isinstance(frame, str) else socket.send_bytes)(frame)
    await server.message(socket, 4)
    await received(page, [4])
    assert await page.evaluate("bus.skipped") == len(UNREADABLE)
    assert await page.evaluate("errors") == [["EventBusError", "bad_frame"]] * len(UNREADABLE)
    assert await page.evaluate("bus.state.status") == "connected"
    assert server.connections.empty()


async def test_page_that_back_restores_from_the_cache_resumes(server):
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=CHROMIUM_ARGS,
            ignore_default_args=["--disable-back-forward-cache"],
        )
        page = await browser.new_page()
        await page.goto(server.url)
        await page.wait_for_function("document.title === 'ready'")
        await page.evaluate("start()")
        socket = await server.joined(3)
        await server.message(socket, 4)
        await received(page, [4])
        await page.goto(f"{server.url}/page.js")
        await page.go_back(wait_until="commit")  # a restored page is not loaded
        # A page that was loaded again would not call start().
        await server.joined(4, recovered=True)
        assert server.asked["data"] == {"offset": 4, "epoch": "e"}
        await browser.close()

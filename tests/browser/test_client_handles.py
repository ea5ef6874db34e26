"""Subscription handles of eventbus.js: several callers on one channel, and patterns that resume."""

import asyncio

import pytest

from tests.browser.scripted import received

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-client")]

TWO = (
    "globalThis.first = bus.subscribe('orders.1', (data) => got.push(`first ${data}`));"
    "globalThis.second = bus.subscribe('orders.1', (data) => got.push(`second ${data}`));"
    "void room.unsubscribe()"
)


async def test_end_of_one_handle_leaves_the_others_and_the_channel_as_they_are(server, loaded):
    await loaded.evaluate(f"start(); {TWO}")
    socket = await server.joined(0)
    await loaded.wait_for_function("first.active && second.active")
    await loaded.evaluate("second.unsubscribe(); second.unsubscribe()")
    await server.message(socket, 1)
    await received(loaded, ["first 1"])
    assert await loaded.evaluate("[first.active, second.active]") == [True, False]
    await asyncio.sleep(1.2)  # nothing to wait for: the channel must not be left
    assert server.received.empty()


async def test_channel_is_left_a_second_after_its_last_handle_has_ended(server, loaded):
    await loaded.clock.install()
    await loaded.evaluate(f"start(); {TWO}")
    await server.joined(0)
    await loaded.wait_for_function("first.active")
    await loaded.evaluate("second.unsubscribe(); first.unsubscribe()")
    await loaded.clock.run_for(900)
    assert server.received.empty()
    await loaded.clock.run_for(200)
    left = await server.asks("unsubscribe")
    assert left["channel"] == "orders.1"


async def test_remount_within_a_second_costs_nothing_and_misses_nothing(server, page):
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await page.evaluate("room.unsubscribe()")
    await server.message(socket, 1)  # between the two, for nobody
    await page.evaluate("new Promise((done) => setTimeout(done, 100))")
    answer = await page.evaluate(
        "(globalThis.room = bus.subscribe('orders.1', {"
        "  '*': (data) => got.push(data),"
        "  'eb:subscribed': ({ kind }) => got.push(kind),"
        "})).ready"
    )
    assert answer | {"mark": None} == {
        "kind": "private",
        "offset": 1,
        "epoch": "e",
        "mark": None,
    }
    await server.message(socket, 2)
    await received(page, ["private", 2])
    await asyncio.sleep(1.2)  # nothing to wait for: the channel must not be left
    assert server.received.empty()


async def test_mount_unmount_and_mount_again_joins_once_and_rejects_nothing(server, page):
    await page.evaluate(
        "globalThis.mount = () => bus.subscribe('orders.2', (data) => got.push(data));"
        "globalThis.one = mount(); one.unsubscribe(); globalThis.two = mount();"
        # An unhandled rejection would be an error of the page, which open_tab reports.
        "one.ready.then(() => got.push('one')); void two.ready.then(() => got.push('two'))"
    )
    socket = await server.joined(0)
    asked = await server.asks("subscribe")
    assert asked["channel"] == "orders.2"
    await server.admit(socket, asked)
    await server.say(socket, "Shipped", 1, "orders.2", offset=1, epoch="e")
    await page.wait_for_function("got.length >= 3")
    assert sorted(await page.evaluate("got.map(String)")) == ["1", "one", "two"]
    assert server.received.empty()


async def test_handle_that_ends_without_a_connection_rejects_as_unsubscribed(server, loaded):
    await loaded.evaluate(
        "start(); globalThis.early = bus.subscribe('orders.2'); early.unsubscribe()"
    )
    assert await loaded.evaluate("early.ready.catch(({ code }) => code)") == "unsubscribed"


async def test_handlers_of_one_handle_are_not_those_of_another(server, page):
    await page.evaluate(
        "globalThis.other = bus.subscribe('orders.1');"
        "other.on('Shipped', (data) => got.push(`other ${data}`));"
        "void room.unsubscribe()"
    )
    socket = await server.joined(0)
    await page.wait_for_function("other.active")
    await server.message(socket, 1)
    await received(page, ["other 1"])


async def test_later_handle_gets_its_own_history_and_then_what_comes(server, page):
    socket = await server.joined(5)
    await server.message(socket, 6)
    await received(page, [6])
    await page.evaluate(
        "void bus.subscribe('orders.1', (data) => got.push(`late ${data}`), { history: 2 })"
    )
    asked = await server.asks("history")
    assert (asked["channel"], asked["data"]) == ("orders.1", {"limit": 2})
    await server.message(socket, 7)  # arrives first, and is part of the history as well
    await server.message(socket, 8)
    stored = [
        {"channel": "orders.1", "event": "Shipped", "data": n, "offset": n, "epoch": "e"}
        for n in (6, 7)
    ]
    about = {"messages": stored, "offset": 7, "epoch": "e", "ref": asked["ref"]}
    await server.say(socket, "eb:history", about, "orders.1")
    await received(page, [6, 7, 8, "late 6", "late 7", "late 8"])


async def test_handle_without_history_gets_none_of_what_another_one_asked_for(server, page):
    await page.evaluate("void bus.subscribe('orders.1', (data) => got.push(`live ${data}`))")
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    asked = await server.asks("subscribe")
    assert "data" not in asked
    await server.admit(socket, asked, offset=9)
    asked = await server.asks("history")
    assert asked["data"] == {"limit": 5}
    stored = [{"channel": "orders.1", "event": "Shipped", "data": 9, "offset": 9, "epoch": "e"}]
    about = {"messages": stored, "offset": 9, "epoch": "e", "ref": asked["ref"]}
    await server.say(socket, "eb:history", about, "orders.1")
    await received(page, [9])
    await server.message(socket, 10)
    await page.wait_for_function("got.length === 3")
    assert sorted(map(str, await page.evaluate("got"))) == ["10", "9", "live 10"]


async def test_history_that_is_not_allowed_is_reported_and_messages_go_on(server, page):
    await page.evaluate("void bus.on('error', ({ code }) => got.push(code))")
    socket = await server.joined(0)
    await page.wait_for_function("room.active")
    await page.evaluate(
        "void bus.subscribe('orders.1', (n) => got.push(`late ${n}`), { history: 2 })"
    )
    await server.refuse(socket, await server.asks("history"), "forbidden")
    await received(page, ["forbidden"])
    await server.message(socket, 1)
    await page.wait_for_function("got.length === 3")
    assert sorted(map(str, await page.evaluate("got"))) == ["1", "forbidden", "late 1"]


async def test_members_are_up_to_date_for_a_later_handle(server, page):
    def member(user_id, **info):
        return {"user_id": user_id, "info": info}

    socket = await server.joined(0)
    await page.evaluate("void (globalThis.lobby = bus.subscribe('presence.lobby'))")
    assert await page.evaluate("lobby.members") is None
    asked = await server.asks("subscribe")
    await server.admit(socket, asked, kind="presence", members=[member("1"), member("2")])
    for event, about in (
        ("joined", member("3")),
        ("left", member("1")),
        ("updated", member("2", mood="merry")),
    ):
        await server.say(socket, f"eb:presence.{event}", about, "presence.lobby")
    await page.wait_for_function("lobby.members?.find(({ info }) => info.mood)")
    answer = await page.evaluate("bus.subscribe('presence.lobby').ready")
    expected = [member("2", mood="merry"), member("3")]
    assert sorted(answer["members"], key=lambda each: each["user_id"]) == expected
    # A gap does not bring back members of long ago.
    about = {"kind": "presence", "offset": 1, "epoch": "e", "recovered": False}
    await server.say(socket, "eb:subscribed", about, "presence.lobby")
    await page.wait_for_function("lobby.position?.offset === 1")
    assert sorted(await page.evaluate("lobby.members.map(({ user_id }) => user_id)")) == ["2", "3"]


async def test_change_of_ones_own_info_is_seen_by_all_of_the_page(server, page):
    def member(user_id, **info):
        return {"user_id": user_id, "info": info}

    socket = await server.joined(0)
    await page.evaluate(
        """() => import("/static/stores.js").then(({ presenceStore }) => {
          const updated = (member, { event, channel }) => got.push([member, event, channel]);
          globalThis.lobby = bus.subscribe("presence.lobby", { "eb:presence.updated": updated });
          globalThis.list = presenceStore(bus, "presence.lobby");
          globalThis.picker = presenceStore(bus, "presence.lobby");
          list.subscribe(() => {});
          picker.subscribe(() => {});
        })"""
    )
    asked = await server.asks("subscribe")
    members = [member("1"), member("2", mood="merry")]
    await server.admit(socket, asked, kind="presence", members=members)
    await page.wait_for_function("list.get().count === 2 && picker.get().count === 2")
    await page.evaluate(
        "void picker.update({ mood: 'busy' }).then(({ count }) => got.push("
        "  [count, list.get().members, picker.get().members, lobby.members]))"
    )
    asked = await server.asks("presence")
    assert asked["data"] == {"mood": "busy"}
    mine, later = member("1", mood="busy"), member("3")
    # Not yet announced: the third one joins afterwards.
    about = {"members": [mine, members[1], later], "count": 3, "ref": asked["ref"]}
    await server.say(socket, "eb:presence", about, "presence.lobby")
    now = [mine, members[1]]
    await page.wait_for_function("got.length === 2")
    change = [mine, "eb:presence.updated", "presence.lobby"]
    assert await page.evaluate("got") == [change, [3, now, now, now]]
    await server.say(socket, "eb:presence.joined", later, "presence.lobby")
    await page.wait_for_function("list.get().count === 3")
    # What has not changed is not announced.
    await page.evaluate("void lobby.presence().then(({ count }) => got.push(count))")
    asked = await server.asks("presence")
    await server.say(socket, "eb:presence", about | {"ref": asked["ref"]}, "presence.lobby")
    await page.wait_for_function("got.length === 3")
    assert await page.evaluate("got[2]") == 3


async def test_refused_channel_is_asked_for_again_by_a_new_handle(server, page):
    await page.evaluate("void bus.on('error', ({ code }) => got.push(code))")
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    await server.refuse(socket, await server.asks("subscribe"), "forbidden")
    await received(page, ["forbidden"])
    await page.evaluate("void (globalThis.again = bus.subscribe('orders.1'))")
    await server.admit(socket, await server.asks("subscribe"))
    await page.wait_for_function("again.active")
    assert await page.evaluate("room.ready.catch(({ code }) => code)") == "forbidden"


async def test_handles_that_ended_while_offline_are_not_joined_again(server, page):
    socket = await server.joined(0)
    await page.evaluate("void (globalThis.other = bus.subscribe('orders.2'))")
    await server.admit(socket, await server.asks("subscribe"))
    await page.wait_for_function("other.active")
    await socket.close(code=4100)
    await page.wait_for_function("bus.state.status === 'waiting'")
    await page.evaluate("other.unsubscribe()")
    await server.joined(0)
    await page.wait_for_function("room.active")
    await asyncio.sleep(1.2)  # nothing to wait for: there is no second channel to leave
    assert server.received.empty()


async def test_only_one_of_several_subscriptions_takes_the_position_of_a_message(server, page):
    socket = await server.joined(0)
    await page.evaluate(
        "globalThis.all = bus.subscribe('orders.*', (data) => got.push(`all ${data}`));"
        "void all.on('eb:subscribed', ({ recovered }) => got.push(recovered ?? 'new'))"
    )
    asked = await server.asks("subscribe")
    assert (asked["pattern"], "data" in asked) == ("orders.*", False)
    about = {"kind": "private", "pattern": "orders.*", "offset": 3, "epoch": "e", "mark": "m"}
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await server.message(socket, 4)  # through the channel
    await server.say(socket, "Shipped", 5, "orders.2", offset=5, epoch="e", mark="m5")
    await server.message(socket, 6)
    await received(page, ["new", 4, "all 4", "all 5", 6, "all 6"])
    assert await page.evaluate("[all.position.offset, room.position.offset]") == [5, 6]

    # Channels come first, so that the server leaves their messages out of the pattern.
    await socket.close(code=4201)
    socket = await server.joined(6, recovered=True)
    assert server.asked["data"] == {"offset": 6, "epoch": "e"}
    asked = await server.asks("subscribe")
    assert asked["data"] == {"offset": 5, "epoch": "e", "mark": "m5"}
    about |= {"offset": 5, "recovered": True, "ref": asked["ref"]}
    await server.say(socket, "eb:subscribed", about)
    await server.say(socket, "Shipped", 7, "orders.2", offset=7, epoch="e")
    await server.say(socket, "Shipped", 6, "orders.1", offset=6, epoch="e")  # was there already
    await server.say(socket, "Shipped", 8, "orders.3", offset=8, epoch="e")
    await page.wait_for_function("got.length >= 9")
    assert await page.evaluate("got.slice(6)") == [True, "all 7", "all 8"]


async def test_history_of_a_channel_is_not_new_to_a_pattern(server, page):
    socket = await server.joined(0)
    await page.evaluate("void bus.subscribe('items.*', (data) => got.push(`all ${data}`))")
    asked = await server.asks("subscribe")
    about = {"kind": "private", "pattern": "items.*", "offset": 3, "epoch": "e"}
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await page.evaluate("void bus.subscribe('items.1', (n) => got.push(n), { history: 2 })")
    await server.admit(socket, await server.asks("subscribe"), offset=1)
    for offset in (2, 3, 4):
        await server.say(socket, "Added", offset, "items.1", offset=offset, epoch="e")
    await page.wait_for_function("got.length >= 4")
    assert await page.evaluate("got") == [2, 3, 4, "all 4"]


async def test_pattern_of_a_server_that_gives_no_position_is_a_gap_after_a_reconnect(server, page):
    socket = await server.joined(0)
    await page.evaluate(
        "globalThis.all = bus.subscribe('orders.*', {"
        "  'eb:subscribed': ({ recovered }) => got.push(recovered ?? 'new') }); null"
    )
    about = {"kind": "private", "pattern": "orders.*"}
    asked = await server.asks("subscribe")
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await server.say(socket, "Shipped", 5, "orders.2", offset=5, epoch="e")
    await received(page, ["new"])
    await socket.close(code=4201)
    socket = await server.joined(0)
    asked = await server.asks("subscribe")
    assert "data" not in asked
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await received(page, ["new", False])


async def test_pattern_that_resumes_gets_what_a_channel_brings_before_its_answer(server, page):
    socket = await server.joined(0)
    await page.evaluate(
        "globalThis.all = bus.subscribe('orders.*', (data) => got.push(`all ${data}`));"
        "void all.on('eb:subscribed', ({ recovered }) => got.push(recovered ?? 'new'))"
    )
    about = {"kind": "private", "pattern": "orders.*", "offset": 0, "epoch": "e"}
    asked = await server.asks("subscribe")
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await received(page, ["new"])
    await socket.close(code=4201)
    socket = await server.joined(0, recovered=True)
    asked = await server.asks("subscribe")
    await server.message(socket, 2)
    await server.say(socket, "eb:subscribed", about | {"recovered": True, "ref": asked["ref"]})
    await server.say(socket, "Shipped", 1, "orders.2", offset=1, epoch="e")
    await received(page, ["new", 2, "all 2", True, "all 1"])
    assert await page.evaluate("all.position.offset") == 1
    # One that has ended gets nothing more through the channel.
    await server.say(socket, "eb:unsubscribed", {"pattern": "orders.*", "reason": "revoked"})
    await server.message(socket, 3)
    await page.wait_for_function("got.includes(3)")
    assert await page.evaluate("got.at(-1)") == 3


async def test_gap_of_a_stream_that_went_back_silences_nothing(server, page):
    socket = await server.joined(5)
    await page.wait_for_function("room.active")
    await page.evaluate(
        "void bus.subscribe('orders.1', (n) => got.push(`late ${n}`), { history: 1 });"
    )
    asked = await server.asks("history")
    about = {"messages": [], "offset": 9, "epoch": "e", "ref": asked["ref"]}
    await server.say(socket, "eb:history", about, "orders.1")
    await page.evaluate("void bus.subscribe('orders.*', (n) => got.push(`all ${n}`))")
    asked = await server.asks("subscribe")
    about = {"kind": "private", "pattern": "orders.*", "offset": 8, "epoch": "e"}
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await server.say(socket, "Shipped", 9, "orders.2", offset=9, epoch="e")
    await received(page, ["all 9"])

    # The stream was restored from a copy: both offsets are assigned once more.
    about |= {"offset": 2, "recovered": False}
    await server.say(socket, "eb:subscribed", about)
    about = {"kind": "private", "offset": 2, "epoch": "e", "recovered": False}
    await server.say(socket, "eb:subscribed", about, "orders.1")
    await server.message(socket, 3)
    await server.say(socket, "Shipped", 4, "orders.2", offset=4, epoch="e")
    await received(page, ["all 9", 3, "late 3", "all 3", "all 4"])


async def test_pattern_of_very_many_channels_gets_nothing_twice(server, page):
    socket = await server.joined(0)
    await page.evaluate("void bus.subscribe('items.*', (data) => got.push(data))")
    asked = await server.asks("subscribe")
    about = {"kind": "private", "pattern": "items.*", "offset": 0, "epoch": "e"}
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    last = 1_100
    for offset in range(1, last + 1):  # of more channels than the client remembers
        await server.say(socket, "Added", offset, f"items.{offset}", offset=offset, epoch="e")
    await received(page, list(range(1, last + 1)))
    for number in (1, last - 10):  # one that is forgotten, and one that is not
        channel = f"items.{number}"
        await page.evaluate(
            "(name) => void bus.subscribe(name, (n) => got.push(`own ${n}`), { history: 1 })",
            channel,
        )
        await server.admit(socket, await server.asks("subscribe"), offset=0)
        await server.say(socket, "Added", number, channel, offset=number, epoch="e")
    await server.say(socket, "Added", "end", "items.1", offset=last + 1, epoch="e")
    await page.wait_for_function("got.at(-1) === 'end'")
    assert await page.evaluate(f"got.slice({last})") == [
        "own 1",
        f"own {last - 10}",
        "own end",
        "end",
    ]


async def test_gap_without_members_leaves_those_that_a_store_has(server, page):
    socket = await server.joined(0)
    await page.evaluate(
        """() => import("/static/stores.js").then(({ presenceStore }) => {
          globalThis.present = presenceStore(bus, "presence.lobby");
          void present.subscribe(() => {});
        })"""
    )
    members = [{"user_id": "1", "info": {}}]
    asked = await server.asks("subscribe")
    await server.admit(socket, asked, kind="presence", members=members)
    await page.wait_for_function("present.get().count === 1")
    about = {"kind": "presence", "offset": 1, "epoch": "e", "recovered": False}
    await server.say(socket, "eb:subscribed", about, "presence.lobby")
    await server.message(socket, 1)  # after the gap
    await received(page, [1])
    assert await page.evaluate("present.get().members") == members


async def test_new_channels_are_joined_after_the_patterns_that_resume(server, page):
    socket = await server.joined(0)
    await page.evaluate("void bus.subscribe('orders.*', (data) => got.push(`all ${data}`))")
    about = {"kind": "private", "pattern": "orders.*", "offset": 0, "epoch": "e"}
    asked = await server.asks("subscribe")
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    await socket.close(code=4201)
    await page.wait_for_function("bus.state.status !== 'connected'")
    await page.evaluate("void bus.subscribe('orders.2', (data) => got.push(data))")
    socket = await server.joined(0, recovered=True)
    asked = await server.asks("subscribe")
    assert asked["pattern"] == "orders.*"
    await server.say(socket, "eb:subscribed", about | {"recovered": True, "ref": asked["ref"]})
    await server.say(socket, "Shipped", 1, "orders.2", offset=1, epoch="e")
    asked = await server.asks("subscribe")
    assert (asked["channel"], "data" in asked) == ("orders.2", False)
    await server.admit(socket, asked, offset=1)
    await server.say(socket, "Shipped", 2, "orders.2", offset=2, epoch="e")
    await page.wait_for_function("got.length >= 3")
    assert await page.evaluate("got.map(String).sort()") == ["2", "all 1", "all 2"]


@pytest.mark.parametrize("ends", ["refused", "revoked"])
async def test_pattern_that_was_ended_has_a_gap_when_it_is_joined_again(server, page, ends):
    about = {"kind": "private", "pattern": "orders.*", "offset": 0, "epoch": "e"}
    socket = await server.joined(0)
    await page.evaluate(
        "void bus.on('error', ({ code }) => got.push(code));"
        "void bus.subscribe('orders.*', { 'eb:subscribed': (a) => got.push(a.recovered ?? 'new'),"
        "  'eb:unsubscribed': ({ reason }) => got.push(reason) })"
    )
    asked = await server.asks("subscribe")
    await server.say(socket, "eb:subscribed", about | {"ref": asked["ref"]})
    if ends == "revoked":
        await server.say(socket, "eb:unsubscribed", {"pattern": "orders.*", "reason": ends})
        await received(page, ["new", "revoked"])
    else:
        await socket.close(code=4201)
        socket = await server.joined(0, recovered=True)
        await server.refuse(socket, await server.asks("subscribe"), "forbidden")
        await received(page, ["new", "forbidden"])
    await socket.close(code=4201)
    socket = await server.joined(0, recovered=True)
    asked = await server.asks("subscribe")
    assert "data" not in asked
    await server.say(socket, "eb:subscribed", about | {"offset": 9, "ref": asked["ref"]})
    await page.wait_for_function("got.length >= 3")
    assert await page.evaluate("got[2]") is False

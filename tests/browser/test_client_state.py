"""The option `state` of eventbus.js: what a page has loaded, and exactly the messages after it."""

import pytest

from tests.browser.scripted import received

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-client")]

# Each call of `state` waits in `loads` until the test answers it.
OPEN = """
globalThis.loads = [];
globalThis.errors = [];
bus.on("error", ({ code }) => errors.push(code));
room.unsubscribe();
globalThis.open = (name = "state") => bus.subscribe("orders.1", (data) => got.push(data), {
  state: () => new Promise((resolve, reject) => loads.push({ resolve, reject })),
  onState: (data) => got.push(`${name} ${data}`),
});
void (globalThis.order = open());
"""


@pytest.fixture
async def opened(page):
    await page.evaluate(OPEN)
    return page


async def answers(page, data, offset, epoch="e"):
    """Answer the oldest load."""
    await page.wait_for_function("loads.length")
    position = f"offset: {offset}, epoch: {epoch!r}" if offset is not None else "offset: null"
    await page.evaluate(f"loads.shift().resolve({{ data: {data!r}, {position} }})")


async def test_messages_that_the_state_contains_are_not_delivered(server, opened):
    socket = await server.joined(3)
    await opened.wait_for_function("loads.length")
    for offset in (4, 5, 6):
        await server.message(socket, offset)
    await opened.wait_for_function("order.position?.offset === 6")
    assert await opened.evaluate("got") == []
    await answers(opened, "at 5", 5)
    await received(opened, ["state at 5", 6])
    await server.message(socket, 7)
    await received(opened, ["state at 5", 6, 7])


async def test_state_that_is_ahead_of_the_connection_silences_what_it_contains(server, opened):
    socket = await server.joined(3)
    await answers(opened, "at 5", 5)
    await received(opened, ["state at 5"])
    for offset in (4, 5, 6):
        await server.message(socket, offset)
    await received(opened, ["state at 5", 6])


async def test_state_is_loaded_when_the_channel_is_joined_and_not_before(server, opened):
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    asked = await server.asks("subscribe")
    assert await opened.evaluate("loads.length") == 0
    await server.refuse(socket, asked, "forbidden")
    await opened.wait_for_function("errors.length")
    assert await opened.evaluate("[errors, loads.length]") == [["forbidden"], 0]


async def test_recovered_reconnect_loads_nothing(server, opened):
    socket = await server.joined(3)
    await answers(opened, "at 3", 3)
    await received(opened, ["state at 3"])
    await socket.close(code=4201)
    socket = await server.joined(3, recovered=True)
    await server.message(socket, 4)
    await received(opened, ["state at 3", 4])
    assert await opened.evaluate("loads.length") == 0


@pytest.mark.parametrize("is_reconnect", [True, False])
async def test_gap_loads_the_state_again_and_nothing_is_shown_before_it(
    server, opened, is_reconnect
):
    socket = await server.joined(3)
    await answers(opened, "at 3", 3)
    await received(opened, ["state at 3"])
    if is_reconnect:
        await socket.close(code=4201)
        socket = await server.joined(50, recovered=False)
    else:
        about = {"kind": "private", "offset": 50, "epoch": "e", "recovered": False}
        await server.say(socket, "eb:subscribed", about, "orders.1")
    await server.message(socket, 51)
    await server.message(socket, 52)
    await opened.wait_for_function("order.position?.offset === 52 && loads.length === 1")
    assert await opened.evaluate("got") == ["state at 3"]
    await answers(opened, "at 51", 51)
    await received(opened, ["state at 3", "state at 51", 52])


async def test_gap_during_a_load_makes_it_load_once_more(server, opened):
    socket = await server.joined(3)
    await opened.wait_for_function("loads.length === 1")
    about = {"kind": "private", "offset": 50, "epoch": "f", "recovered": False}
    await server.say(socket, "eb:subscribed", about, "orders.1")
    await opened.wait_for_function("order.position?.epoch === 'f'")
    await answers(opened, "old", 60)
    await opened.wait_for_function("loads.length === 1")
    assert await opened.evaluate("got") == []
    await answers(opened, "new", 50, "f")
    await server.message(socket, 51, "f")
    await received(opened, ["state new", 51])


async def test_messages_from_before_a_gap_are_not_delivered_after_the_state_that_follows_it(
    server, opened
):
    socket = await server.joined(3)
    await opened.wait_for_function("loads.length === 1")
    for offset in (4, 5):
        await server.message(socket, offset)
    await opened.wait_for_function("order.position?.offset === 5")
    await socket.close(code=4201)
    socket = await server.joined(50, epoch="f", recovered=False)
    await opened.wait_for_function("order.position?.epoch === 'f'")
    await answers(opened, "old", 5)
    await answers(opened, "new", 50, "f")
    await server.message(socket, 51, "f")
    await received(opened, ["state new", 51])


async def test_state_from_before_the_subscription_is_followed_by_what_came_between(server, opened):
    socket = await server.joined(10)
    await server.message(socket, 11)
    await opened.wait_for_function("order.position?.offset === 11")
    await answers(opened, "at 8", 8)
    left = await server.asks("unsubscribe")
    await server.say(socket, "eb:unsubscribed", {"ref": left["ref"]}, "orders.1")
    asked = await server.asks("subscribe")
    assert asked["data"] == {"offset": 8, "epoch": "e"}
    assert await opened.evaluate("got") == []
    await server.admit(socket, asked, offset=8, recovered=True)
    for offset in (9, 10, 11, 12):
        await server.message(socket, offset)
    await received(opened, ["state at 8", 9, 10, 11, 12])
    assert await opened.evaluate("loads.length") == 0


async def test_other_handles_hear_nothing_twice_when_an_older_state_is_caught_up_with(
    server, opened
):
    await opened.evaluate("void bus.subscribe('orders.1', (data) => got.push(`other ${data}`))")
    socket = await server.joined(10)
    await server.message(socket, 11)
    await received(opened, ["other 11"])
    await answers(opened, "at 9", 9)
    await server.asks("unsubscribe")
    await server.admit(socket, await server.asks("subscribe"), offset=9, recovered=True)
    for offset in (10, 11, 12):
        await server.message(socket, offset)
    await opened.wait_for_function("got.length >= 6")
    got = await opened.evaluate("got.map(String)")
    assert [each for each in got if "other" in each] == ["other 11", "other 12"]
    assert [each for each in got if "other" not in each] == ["state at 9", "10", "11", "12"]


async def other_catches_up_from_8(server, opened):
    """Two handles load while 11 and 12 come; one gets a state from before the join."""
    await opened.evaluate("void open('other')")
    socket = await server.joined(10)
    await opened.wait_for_function("loads.length === 2")
    for offset in (11, 12):
        await server.message(socket, offset)
    await opened.wait_for_function("order.position?.offset === 12")
    await opened.evaluate("loads.pop().resolve({ data: 'at 8', offset: 8, epoch: 'e' })")
    await server.asks("unsubscribe")
    return socket


async def test_handle_that_loads_hears_nothing_twice_when_another_catches_up(server, opened):
    socket = await other_catches_up_from_8(server, opened)
    asked = await server.asks("subscribe")
    await answers(opened, "at 10", 10)
    await received(opened, ["state at 10", 11, 12])
    await server.admit(socket, asked, offset=8, recovered=True)
    for offset in range(9, 14):
        await server.message(socket, offset)
    await opened.wait_for_function("got.filter((each) => each === 13).length === 2")
    assert await opened.evaluate("got.slice(3)") == ["other at 8", 9, 10, 11, 12, 13, 13]


async def test_handle_that_catches_up_after_another_did_gets_all_after_its_own_state(
    server, opened
):
    socket = await other_catches_up_from_8(server, opened)
    await server.admit(socket, await server.asks("subscribe"), offset=8, recovered=True)
    for offset in range(9, 13):
        await server.message(socket, offset)
    await received(opened, ["other at 8", 9, 10, 11, 12])
    await answers(opened, "at 7", 7)
    await server.asks("unsubscribe")
    await server.admit(socket, await server.asks("subscribe"), offset=7, recovered=True)
    for offset in range(8, 14):
        await server.message(socket, offset)
    await opened.wait_for_function("got.filter((each) => each === 13).length === 2")
    assert await opened.evaluate("got.slice(5)") == ["state at 7", 8, 9, 10, 11, 12, 13, 13]


async def test_other_handle_hears_nothing_that_its_state_contains_when_one_catches_up(
    server, opened
):
    await opened.evaluate("void open('other')")
    socket = await server.joined(10)
    await answers(opened, "at 12", 12)
    await received(opened, ["state at 12"])
    await answers(opened, "at 8", 8)
    await server.asks("unsubscribe")
    await server.admit(socket, await server.asks("subscribe"), offset=8, recovered=True)
    for offset in range(9, 14):
        await server.message(socket, offset)
    await opened.wait_for_function("got.filter((each) => each === 13).length === 2")
    expected = ["state at 12", "other at 8", 9, 10, 11, 12, 13, 13]
    assert await opened.evaluate("got") == expected


async def test_state_that_is_too_old_to_catch_up_with_is_loaded_again(server, opened):
    socket = await server.joined(100)
    await answers(opened, "at 1", 1)
    await server.asks("unsubscribe")
    await server.admit(socket, await server.asks("subscribe"), offset=100, recovered=False)
    await opened.wait_for_function("loads.length === 1")
    assert await opened.evaluate("got") == []
    await answers(opened, "at 100", 100)
    await server.message(socket, 101)
    await received(opened, ["state at 100", 101])


async def test_connection_lost_while_catching_up_continues_from_the_state(server, opened):
    socket = await server.joined(10)
    await answers(opened, "at 8", 8)
    await server.asks("unsubscribe")
    await server.asks("subscribe")
    await socket.close(code=4201)
    socket = await server.joined(8, recovered=True)
    assert server.asked["data"] == {"offset": 8, "epoch": "e"}
    await server.message(socket, 9)
    await received(opened, ["state at 8", 9])


async def test_older_state_that_arrives_during_a_join_is_caught_up_with(server, opened):
    socket = await server.joined(10)
    await opened.wait_for_function("loads.length")
    await socket.close(code=4201)
    socket = await server.next(server.connections)
    await server.authenticate(socket)
    first = await server.asks("subscribe")
    await answers(opened, "at 8", 8)
    await server.asks("unsubscribe")
    asked = await server.asks("subscribe")
    assert asked["data"] == {"offset": 8, "epoch": "e"}
    await server.admit(socket, first, offset=10, recovered=True)
    await server.message(socket, 11)  # of the subscription that is left
    await server.admit(socket, asked, offset=8, recovered=True)
    for offset in (9, 10, 11):
        await server.message(socket, offset)
    await received(opened, ["state at 8", 9, 10, 11])


async def test_state_of_another_epoch_is_left_to_the_server_to_compare(server, opened):
    socket = await server.joined(10, epoch="k.1")
    await answers(opened, "at 12", 12, "k")
    await server.asks("unsubscribe")
    asked = await server.asks("subscribe")
    assert asked["data"] == {"offset": 12, "epoch": "k"}
    await server.admit(socket, asked, offset=12, epoch="k.1", recovered=True)
    for offset in (12, 13):
        await server.message(socket, offset, "k.1")
    await received(opened, ["state at 12", 13])


async def test_load_that_fails_is_reported_and_tried_again(server, opened):
    await opened.evaluate("void order.on('eb:error', ({ message }) => got.push(message))")
    socket = await server.joined(3)
    await opened.wait_for_function("loads.length")
    await opened.evaluate("loads.shift().reject(new Error('answered 503'))")
    text = "the state of orders.1 could not be loaded: answered 503"
    await received(opened, [text])
    await server.message(socket, 4)
    await answers(opened, "at 3", 3)
    await received(opened, [text, "state at 3", 4])
    assert await opened.evaluate("errors") == ["state_failed"]


@pytest.mark.parametrize(
    "state", ["{ data: 1 }", "null", "[1]", "{ offset: 3, epoch: 'e' }", "{ data: 1, offset: '3' }"]
)
async def test_state_without_data_or_position_is_an_error_that_says_so(server, opened, state):
    await opened.evaluate("void order.on('eb:error', ({ message }) => got.push(message))")
    await server.joined(3)
    await opened.wait_for_function("loads.length")
    await opened.evaluate(f"loads.shift().resolve({state})")
    await opened.wait_for_function("got.length")
    assert "{data, offset, epoch}" in await opened.evaluate("got[0]")


async def test_channel_without_history_delivers_everything_since_it_was_joined(server, opened):
    socket = await server.joined(None, epoch=None)
    await opened.wait_for_function("loads.length")
    await server.say(socket, "Shipped", "a", "orders.1")
    await server.say(socket, "eb:note", {}, "orders.1")
    await answers(opened, "some", None)
    await server.say(socket, "Shipped", "b", "orders.1")
    await received(opened, ["state some", "a", "b"])


async def test_more_messages_than_a_load_may_wait_for_are_read_from_the_history(server, opened):
    socket = await server.joined(0)
    await opened.wait_for_function("loads.length")
    for offset in range(1, 1101):
        await server.message(socket, offset)
    await opened.wait_for_function("order.position?.offset === 1100")
    await answers(opened, "at 50", 50)
    await server.asks("unsubscribe")
    asked = await server.asks("subscribe")
    assert asked["data"] == {"offset": 50, "epoch": "e"}
    await server.admit(socket, asked, offset=50, recovered=True)
    await server.message(socket, 51)
    await received(opened, ["state at 50", 51])


async def test_more_messages_than_may_wait_do_not_matter_if_the_state_contains_them(server, opened):
    socket = await server.joined(0)
    await opened.wait_for_function("loads.length")
    for offset in range(1, 1101):
        await server.message(socket, offset)
    await opened.wait_for_function("order.position?.offset === 1100")
    await answers(opened, "at 1099", 1099)
    await received(opened, ["state at 1099", 1100])


async def test_handle_that_ends_during_its_load_gets_nothing(server, opened):
    socket = await server.joined(3)
    await opened.wait_for_function("loads.length === 1")
    await opened.evaluate("order.unsubscribe(); void (globalThis.order = open('second'))")
    await opened.wait_for_function("loads.length === 2")
    await server.message(socket, 4)
    await opened.wait_for_function("order.position?.offset === 4")
    await opened.evaluate("loads.shift().resolve({ data: 'late', offset: 3, epoch: 'e' })")
    await answers(opened, "at 3", 3)
    await received(opened, ["second at 3", 4])


async def test_two_components_load_their_states_independently(server, opened):
    socket = await server.joined(3)
    await opened.wait_for_function("loads.length === 1")
    await server.message(socket, 4)
    await opened.wait_for_function("order.position?.offset === 4")
    await opened.evaluate("void open('second')")
    await opened.wait_for_function("loads.length === 2")
    await answers(opened, "at 3", 3)
    await received(opened, ["state at 3", 4])
    await server.message(socket, 5)
    await answers(opened, "at 4", 4)
    await opened.wait_for_function("got.length === 5")
    got = await opened.evaluate("got.map(String)")
    assert sorted(got[2:]) == ["5", "5", "second at 4"]
    assert got.index("second at 4") < len(got) - 1


async def test_exception_of_onstate_is_reported_and_messages_follow(server, opened):
    await opened.evaluate(
        "addEventListener('error', (event) => { got.push('reported'); event.preventDefault(); });"
        "order.unsubscribe(); void bus.subscribe('orders.1', (data) => got.push(data), {"
        "  state: async () => ({ data: 1, offset: 3, epoch: 'e' }),"
        "  onState: () => { throw new Error('mine'); } })"
    )
    socket = await server.joined(3)
    await server.message(socket, 4)
    await received(opened, ["reported", 4])

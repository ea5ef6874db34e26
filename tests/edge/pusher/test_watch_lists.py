"""Signed-in users are notified when those of their watch list come online and go offline."""

import asyncio

import aiohttp
import pytest

from tests.edge.pusher.test_api import APP, SETTINGS, Client

EVENT = "pusher_internal:watchlist_events"


async def open_client(edge):
    return await Client(await edge.connect(f"/app/{APP.key}", greeted=False)).greeted()


async def sign_in(edge, user_id, *watched):
    client = await open_client(edge)
    answer = await client.sign_in(user_id, **({"watchlist": list(watched)} if watched else {}))
    assert answer["event"] == "pusher:signin_success"
    return client


async def news(client):
    frame = await client.next()
    assert frame["event"] == EVENT, frame
    return {event["name"]: event["user_ids"] for event in frame["data"]["events"]}


@pytest.fixture
def start(start_edge, bus):
    async def start(which=None, **changes):
        return await start_edge(
            bus if which is None else which, **SETTINGS | {"presence_grace": 0.3} | changes
        )

    return start


async def test_users_on_all_nodes_are_watched(start, settings, know_each_other):
    nodes = [await start(), await start(settings)]
    await know_each_other(*nodes)
    # Ids may have characters that channels may not.
    there = await sign_in(nodes[1], "auth0|ann")
    watcher = await sign_in(nodes[0], "7", "auth0|ann", "bob", "7")
    assert await news(watcher) == {"online": ["auth0|ann", "7"], "offline": ["bob"]}
    bob = await sign_in(nodes[1], "bob")
    assert await news(watcher) == {"online": ["bob"]}
    await bob._client.socket.close()
    assert await news(watcher) == {"offline": ["bob"]}
    await there._client.socket.close()
    assert await news(watcher) == {"offline": ["auth0|ann"]}
    await sign_in(nodes[0], "bob")
    assert await news(watcher) == {"online": ["bob"]}


async def test_user_with_another_tab_or_back_in_time_stays_online(start):
    edge = await start(presence_grace=6.0)
    tabs = [await sign_in(edge, "bob"), await sign_in(edge, "bob")]
    watcher = await sign_in(edge, "7", "bob", "carol")
    assert await news(watcher) == {"online": ["bob"], "offline": ["carol"]}
    for tab in tabs:
        await tab._client.socket.close()
    await asyncio.sleep(0.5)  # long enough to be noticed
    await sign_in(edge, "bob")
    await asyncio.sleep(6.0)
    carol = await sign_in(edge, "carol")
    assert await news(watcher) == {"online": ["carol"]}
    await carol._client.socket.close()
    assert await news(watcher) == {"offline": ["carol"]}


async def test_users_of_a_killed_node_go_offline(start, start_process, connect):
    dying = await start_process(
        PUSHER_APP_ID=APP.id, PUSHER_APP_KEY=APP.key, PUSHER_APP_SECRET=APP.secret
    )
    watcher = await sign_in(await start(), "7", "bob")
    assert await news(watcher) == {"offline": ["bob"]}
    bob = await Client(await connect(dying.port, f"/app/{APP.key}")).greeted()
    await bob.sign_in("bob")
    assert await news(watcher) == {"online": ["bob"]}
    dying.process.kill()
    assert await news(watcher) == {"offline": ["bob"]}


async def test_watch_list_of_more_than_100_users_ends_the_connection(start):
    edge = await start()
    client = await open_client(edge)
    answer = await client.sign_in("7", watchlist=[str(number) for number in range(101)])
    assert (answer["event"], answer["data"]["code"]) == ("pusher:error", 4302)
    assert await client.closed() == 4302
    watcher = await sign_in(edge, "7", *map(str, range(100)))
    found = await news(watcher)
    assert (found["online"], len(found["offline"])) == (["7"], 99)


@pytest.mark.parametrize("watchlist", [[""], ["x" * 300], [{}], "bob", [None]])
async def test_watch_list_that_is_not_valid_is_refused(start, watchlist):
    client = await open_client(await start())
    answer = await client.sign_in("7", watchlist=watchlist)
    assert (answer["event"], answer["data"]["code"]) == ("pusher:error", 4009)
    assert (await client.sign_in("7"))["event"] == "pusher:signin_success"


@pytest.mark.parametrize("watched", [["bob", "carol"], []])
async def test_edge_signs_the_watch_list_of_a_token(start, token, watched):
    edge = await start()
    await sign_in(edge, "bob")
    client = await open_client(edge)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{edge.url}/broadcasting/user-auth",
            data={"socket_id": client.id},
            headers={"Authorization": f"Bearer {token('7', watchlist=watched)}"},
        ) as answer,
    ):
        signed = await answer.json()
    assert (await client.ask("pusher:signin", **signed))["event"] == "pusher:signin_success"
    if watched:
        assert await news(client) == {"online": ["bob"], "offline": ["carol"]}
    assert await client.receives_nothing()


async def test_connection_that_has_ended_leaves_nothing_behind(start):
    edge = await start()
    watcher = await sign_in(edge, "7", "bob")
    await news(watcher)
    await watcher._client.socket.close()
    watchers, counts = edge.node._watchers, edge.node._counts
    async with asyncio.timeout(40):
        while watchers._watching or counts._tracked:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.05)
    assert not watchers._inboxes
    assert not counts._watched

"""Statistics and metrics show which protocol connections speak."""

import asyncio

import aiohttp

from tests.edge.pusher.test_api import APP, SETTINGS, Client


async def open_client(edge):
    return await Client(await edge.connect(f"/app/{APP.key}", greeted=False)).greeted()


async def scraped(edge):
    async with aiohttp.ClientSession() as session, session.get(f"{edge.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {
        tuple(line.removeprefix("eventbus_edge_protocol_").rsplit(" ", 1))
        for line in lines
        if line.startswith("eventbus_edge_protocol_") and "_created" not in line
    }


async def test_connections_and_messages_are_shown_by_protocol(start_edge, bus, token):
    edge = await start_edge(bus, **SETTINGS)
    tabs = [await open_client(edge) for _ in range(2)]
    resuming = await edge.connect(f"/app/{APP.key}?cursor=1", greeted=False)
    resuming = await Client(resuming).greeted()
    native = await edge.connect(token=token("7"))
    for tab in (*tabs, resuming):
        await tab.join("private-chat.1")
    await native.subscribe("chat.1")
    await bus.publish("chat.1", "news", 1)
    await bus.publish("chat.1", "news", 2, except_connection=tabs[0].id)
    for client in (*tabs, resuming, native):
        await client.next()
    for client in (tabs[1], resuming, native):
        await client.next()
    [node] = (await bus.stats()).nodes
    assert node.protocols == {"native": 1, "pusher": 3}
    expected = {
        ('connections{protocol="native"}', "1.0"),
        ('connections{protocol="pusher"}', "3.0"),
        ('messages_out_total{protocol="native"}', "2.0"),
        ('messages_out_total{protocol="pusher"}', "5.0"),
    }
    async with asyncio.timeout(40):
        while (found := await scraped(edge)) != expected:  # noqa: ASYNC110 - counted each turn
            await asyncio.sleep(0.05)
    assert found == expected
    sample = edge.node.metrics.registry.get_sample_value
    assert sample("eventbus_edge_messages_out_total") == 7
    await tabs[0]._client.socket.close()
    async with asyncio.timeout(40):
        while (await bus.stats()).nodes[0].protocols != {"native": 1, "pusher": 2}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

"""State over Redis, where it is not as the contract has it for every driver."""

import asyncio

from eventbus.testing.contracts.driver import Changes


async def test_entries_that_are_lost_under_a_live_connection_count_as_a_loss(
    make_redis, redis_server, namespace
):
    state = (await make_redis()).state
    await state.put("a", b"1")
    await state.put("a", b"2")
    assert state.losses == 0
    keys = [f"{{{namespace}.state}}:{part}" for part in "veg"]
    assert int(await redis_server.command("DEL", *keys)) >= 2
    await state.put("b", b"1")
    assert state.losses == 1
    assert await state.entries(">") == {"b": b"1"}


async def test_nothing_is_stored_forever(make_redis, redis_server, namespace):
    state = (await make_redis()).state
    await state.put("a", b"1", ttl_s=60)
    for part in "veg":
        assert int(await redis_server.command("TTL", f"{{{namespace}.state}}:{part}")) > 0


async def test_entries_that_outlive_a_restart_are_under_keys_that_do_not_expire(
    make_redis, redis_server, namespace
):
    state = (await make_redis()).durable_state
    await state.put("a", b"1", ttl_s=60)
    await state.claim("b", b"1", ttl_s=60)
    for part in "veg":
        assert int(await redis_server.command("TTL", f"{{{namespace}.durable}}:{part}")) == -1


async def test_expired_entries_are_removed_with_the_next_write_even_without_watchers(
    make_redis, redis_server, namespace
):
    state = (await make_redis()).durable_state
    await state.put("short", b"1", ttl_s=1)
    await asyncio.sleep(1.1)
    assert await state.entries(">") == {}
    await state.put("long", b"1", ttl_s=60)
    for command in ("HLEN", "ZCARD"):
        key = f"{{{namespace}.durable}}:{'v' if command == 'HLEN' else 'e'}"
        assert int(await redis_server.command(command, key)) == 1


async def test_a_restarted_server_is_a_loss_and_watchers_continue(own_redis, make_redis, namespace):
    driver = await make_redis(redis_port=own_redis.port)
    changes = Changes()
    await driver.state.watch("node.*", changes)
    await own_redis.kill()
    await own_redis.start()
    await driver.state.put("node.7", b"after")
    await changes.until("node.7", b"after")
    assert driver.state.losses >= 1
    await driver.state.put("node.8", b"x", ttl_s=1)
    await changes.until("node.8", None)


async def test_when_one_that_watches_is_gone_another_reports_the_end(make_redis):
    one, two, changes = await make_redis(), await make_redis(), Changes()
    await one.state.watch("node.*", Changes())
    await two.state.watch("node.*", changes)
    await one.state.put("node.one", b"", ttl_s=1)
    await one.aclose()
    async with asyncio.timeout(30):
        await changes.until("node.one", None)
    assert await two.state.entries("node.*") == {}

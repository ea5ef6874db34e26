"""What one client may take: the arithmetic, and what a node answers when it is too much."""

import asyncio
import contextlib

import pytest
from hypothesis import given, strategies as st
from websockets.exceptions import ConnectionClosed

from eventbus_edge.access.admission import (
    ConnectionLimitReached,
    Paces,
    SlotLimits,
    Slots,
    TokenBucket,
)
from eventbus_edge.sessions.limits import (
    STRIKES,
    Pace,
    Verdict,
)

# The arithmetic


def test_a_bucket_lets_a_burst_pass_and_then_its_rate():
    bucket = TokenBucket(10.0, 5, 0.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(0.09)
    assert bucket.take(0.2)


def test_a_bucket_never_holds_more_than_its_burst():
    bucket = TokenBucket(10.0, 5, 0.0)
    assert sum(bucket.take(1000.0) for _ in range(20)) == 5


def test_time_that_goes_backwards_gives_no_tokens():
    bucket = TokenBucket(10.0, 1, 100.0)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)
    assert not bucket.take(100.0)


@given(
    st.floats(0.5, 100),
    st.integers(1, 50),
    st.lists(st.floats(0, 2), max_size=200),
)
def test_a_bucket_passes_at_most_its_burst_and_its_rate_over_any_time(rate, burst, pauses):
    bucket, now, passed = TokenBucket(rate, burst, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += bucket.take(now)
    assert passed <= burst + rate * now + 1e-6


def test_client_that_is_refused_repeatedly_without_a_rest_is_closed():
    pace = Pace(50.0, 10, 0.0)
    verdicts = [pace.judge(0.0) for _ in range(10 + STRIKES)]
    assert verdicts[:10] == [Verdict.SERVE] * 10
    assert set(verdicts[10:-1]) == {Verdict.REFUSE}
    assert verdicts[-1] is Verdict.END


def test_refusals_of_large_messages_count_as_much_as_the_messages_would():
    pace = Pace(50.0, 10, 0.0)
    assert pace.judge(0.0, 10.0) is Verdict.SERVE
    verdicts = [pace.judge(0.0, 4.0) for _ in range(STRIKES // 4)]
    assert set(verdicts[:-1]) == {Verdict.REFUSE}
    assert verdicts[-1] is Verdict.END


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1)), max_size=20))
def test_actions_that_come_together_are_judged_as_if_each_came_alone(batches):
    together, alone, now = Pace(50.0, 10, 0.0), Pace(50.0, 10, 0.0), 0.0
    for count, pause in batches:
        now += pause
        served, verdict = together.judge_all(now, count)
        verdicts = [alone.judge(now) for _ in range(count)]
        assert served == verdicts.count(Verdict.SERVE)
        assert verdict is verdicts[-1]


def test_a_little_over_the_rate_is_ended_too_although_most_is_served():
    pace, now, verdict, served = Pace(50.0, 10, 0.0), 0.0, Verdict.SERVE, 0
    while verdict is not Verdict.END and now < 60:
        now += 1 / 60
        verdict = pace.judge(now)
        served += verdict is Verdict.SERVE
    assert verdict is Verdict.END
    assert served / now > 45


def test_refusals_are_forgiven_after_a_rest():
    pace, now = Pace(50.0, 10, 0.0), 0.0
    for _ in range(20):
        verdicts = [pace.judge(now) for _ in range(10 + STRIKES - 1)]
        assert Verdict.END not in verdicts
        now += 1.0  # more than the 0.2 s in which the bucket fills


def test_buckets_of_keys_are_apart_and_forgotten_when_they_have_rested():
    paces = Paces(10.0, 2)
    assert [paces.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert paces.take("b", 0.0)
    paces.sweep(0.05)
    assert len(paces) == 2
    paces.sweep(0.15)
    assert len(paces) == 1  # a, of which two are gone, needs 0.2 s
    paces.sweep(0.2)
    assert len(paces) == 0


def test_cost_of_several_tokens_is_taken_at_once_or_not_at_all():
    bucket = TokenBucket(10.0, 5, 0.0)
    assert bucket.take(0.0, 3)
    assert not bucket.take(0.0, 3)
    assert bucket.take(0.0, 2)


def test_cost_above_the_burst_needs_a_full_bucket_and_leaves_a_debt():
    bucket = TokenBucket(10.0, 5, 0.0)
    assert bucket.take(0.0, 8)
    assert bucket.debt_s(0.0) == pytest.approx(0.3)
    assert not bucket.take(0.7, 8)
    assert bucket.take(0.8, 8)


def test_a_charge_is_never_refused_and_is_paid_with_time():
    bucket = TokenBucket(10.0, 5, 0.0)
    bucket.charge(0.0, 25)
    assert bucket.debt_s(0.0) == pytest.approx(2.0)
    assert bucket.debt_s(1.5) == pytest.approx(0.5)
    assert not bucket.take(2.0)
    assert bucket.take(2.1)
    assert bucket.debt_s(9.0) == 0.0


def test_returned_tokens_do_not_overfill_a_bucket():
    bucket = TokenBucket(10.0, 2, 0.0)
    bucket.charge(0.0, -5)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]


def test_an_expensive_action_costs_a_connection_several_of_its_pace():
    pace = Pace(1.0, 10, 0.0)
    assert [pace.judge(0.0, 5) for _ in range(3)] == [Verdict.SERVE] * 2 + [Verdict.REFUSE]
    pace.charge(0.0, 3)
    assert pace.judge(3.9) is Verdict.REFUSE
    assert pace.judge(4.1) is Verdict.SERVE


def test_the_keys_of_paces_are_bounded_and_keys_forgotten_too_early_are_counted():
    paces = Paces(1.0, 1, most_keys=3)
    assert all(paces.take(key, 0.0) for key in "abc")
    assert not paces.take("a", 0.0)
    assert paces.take("d", 0.0)
    assert (len(paces), paces.overflows) == (3, 1)
    assert paces.take("a", 0.0)  # it was kept for longest
    assert [paces.take_overflows() for _ in "12"] == [2, 0]


def slots(**limits):
    return Slots(SlotLimits(**limits))


def test_slots_are_bounded_in_all_for_an_address_and_for_a_user():
    full = slots(connections=3, per_address=2, per_user=1)
    first, second = full.enter("a"), full.enter("a")
    with pytest.raises(ConnectionLimitReached, match="address") as caught:
        full.enter("a")
    assert caught.value.limit == "address"
    third = full.enter("b")
    with pytest.raises(ConnectionLimitReached) as caught:
        full.enter("c")
    assert caught.value.limit == "connections"
    first.claim("7")
    first.claim("7")  # as once
    with pytest.raises(ConnectionLimitReached) as caught:
        second.claim("7")
    assert caught.value.limit == "user"
    first.release()
    second.claim("7")
    third.claim("8")


def test_slots_within_others_count_in_both_and_leave_both():
    process = slots(connections=3, per_address=2)
    one, other = [Slots(SlotLimits(connections=2), process) for _ in range(2)]
    held = [one.enter("a"), one.enter("b")]
    with pytest.raises(ConnectionLimitReached, match="max_connections of the app") as caught:
        one.enter("c")
    assert caught.value.limit == "connections"
    held.append(other.enter("a"))
    for address, limit in (("a", "process"), ("c", "process")):
        with pytest.raises(ConnectionLimitReached) as caught:
            other.enter(address)
        assert caught.value.limit == limit
    assert (len(one), len(other), len(process)) == (2, 1, 3)
    for slot in held:
        slot.release()
        slot.release()
    assert (len(one), len(other), len(process)) == (0, 0, 0)
    assert not process._addresses


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz "), st.booleans())))
def test_leaving_client_leaves_nothing_behind(visits):
    it = slots()
    held = []
    for address, user, twice in visits:
        slot = it.enter(address)
        if user != " ":
            slot.claim(user)
        held.append((slot, twice))
    assert len(it) == len(visits)
    for slot, twice in held:
        slot.release()
        if twice:
            slot.release()
    assert len(it) == 0
    assert not it._addresses
    assert not it._users


# Connections


def reached(edge, limit):
    return edge.node.metrics.limits_reached.labels(limit)._value.get()


async def test_one_address_has_its_number_of_connections_and_a_trusted_proxy_many(start_edge, bus):
    edge = await start_edge(bus, max_connections_per_address=2, trusted_proxies=("127.0.0.1",))
    first, _ = [await edge.connect(headers={"X-Forwarded-For": "9.9.9.9"}) for _ in range(2)]
    status, headers, problem = await edge.refusal(
        headers={"X-Forwarded-For": "1.1.1.1, 9.9.9.9"}  # its own claim does not count
    )
    assert (status, problem["code"]) == (429, "limit_exceeded")
    assert int(headers["Retry-After"]) >= 1
    assert reached(edge, "address") == 1
    await edge.connect(headers={"X-Forwarded-For": "9.9.9.8"})
    await first.socket.close()
    async with asyncio.timeout(40):
        while len(edge.node.connections) > 2:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    await edge.connect(headers={"X-Forwarded-For": "9.9.9.9"})


async def test_nobody_but_a_trusted_proxy_is_believed_about_the_address(start_edge, bus):
    edge = await start_edge(bus, max_connections_per_address=2)
    for n in range(2):
        await edge.connect(headers={"X-Forwarded-For": f"9.9.9.{n}", "Forwarded": f"for=8.8.8.{n}"})
    assert (await edge.refusal(headers={"X-Forwarded-For": "9.9.9.9"}))[0] == 429


async def test_one_user_has_its_number_of_connections_by_url_and_by_action(start_edge, bus, token):
    edge = await start_edge(bus, max_connections_per_user=2)
    await edge.connect(token=token("7"))
    by_action = await edge.connect()
    assert (await by_action.ask("auth", data={"token": token("7")}))["event"] == "eb:authenticated"
    assert (await by_action.ask("auth", data={"token": token("7")}))["event"] == "eb:authenticated"
    status, headers, problem = await edge.refusal(token=token("7"))
    assert (status, problem["code"]) == (429, "limit_exceeded")
    assert "Retry-After" in headers
    third = await edge.connect()
    assert await third.error("auth", data={"token": token("7")}) == "limit_exceeded"
    assert await third.error("subscribe", channel="user.7") == "unauthorized"
    assert (await third.ask("auth", data={"token": token("8")}))["event"] == "eb:authenticated"
    assert reached(edge, "user") == 2


async def test_a_refused_handshake_releases_its_slot(start_edge, bus, token):
    edge = await start_edge(bus, max_connections=1, max_connections_per_user=1)
    for _ in range(3):
        assert (await edge.refusal("/ws/user.8", token=token("7")))[0] == 403
        assert (await edge.refusal("/ws/user.8", token="no.to.ken"))[0] == 401
    await edge.connect(token=token("7"))


async def test_above_the_memory_bound_new_connections_are_refused_and_old_ones_served(
    start_edge, bus
):
    edge = await start_edge(bus, max_memory=1024**5)
    client = await edge.connect("/ws/general")
    await client.next()
    assert edge.node.metrics.memory._value.get() > 1024**2
    edge.node.access.admission._max_memory = 1024
    status, headers, problem = await edge.refusal()
    assert (status, problem["code"]) == (503, "unavailable")
    assert int(headers["Retry-After"]) >= 1
    assert reached(edge, "memory") == 1
    await bus.publish("general", "e", 1)
    assert (await client.next())["data"] == 1


# Actions and whispers


async def test_too_many_actions_are_refused_and_the_connection_continues(
    start_edge, bus, monkeypatch
):
    edge = await start_edge(bus, max_actions_per_second=20.0, action_burst=5)
    client = await edge.connect()
    with monkeypatch.context() as stopped:
        stopped.setattr(TokenBucket, "_fill", lambda *_: None)
        for n in range(8):
            await client.send("ping", ref=n)
        answers = [await client.next() for _ in range(8)]
    assert [a["event"] for a in answers[:5]] == ["pong"] * 5
    assert {a["data"].get("code") for a in answers[5:]} == {"rate_limited"}
    assert [a["data"]["ref"] for a in answers] == list(range(8))
    await asyncio.sleep(0.1)
    assert (await client.ask("ping"))["event"] == "pong"


async def test_malformed_frames_count_as_actions(start_edge, bus):
    edge = await start_edge(bus, max_actions_per_second=0.1, action_burst=3)
    client = await edge.connect()
    codes = []
    for _ in range(4):
        await client.socket.send("nonsense")
        codes.append((await client.next())["data"]["code"])
    assert codes == ["bad_request"] * 3 + ["rate_limited"]


@pytest.mark.usefixtures("no_refills")
async def test_client_that_keeps_exceeding_the_limit_is_closed_with_4008_and_others_are_not(
    start_edge, bus
):
    edge = await start_edge(bus, max_actions_per_second=1.0, action_burst=5)
    other, client = await edge.connect(), await edge.connect()
    served = 0
    with contextlib.suppress(ConnectionClosed):
        for _ in range(5 + STRIKES + 5):
            served += (await client.ask("ping"))["event"] == "pong"
    assert await client.closed() == 4008
    assert served == 5
    assert edge.node.metrics.closes.labels("4008")._value.get() == 1
    assert edge.node.metrics.errors.labels("rate_limited")._value.get() == STRIKES
    assert await other.receives_nothing()


@pytest.mark.usefixtures("no_refills")
async def test_one_channel_takes_its_number_of_whispers_from_all_who_send(start_edge, bus, token):
    edge = await start_edge(bus, max_whispers_per_channel=3.0)
    first, second = [await edge.connect("/ws/chat.1?channel=chat.2", token=token()) for _ in "12"]
    for client in (first, second):
        await client.next(), await client.next()
    whisper = {"event": "typing", "data": {}, "ref": 1}
    for _ in range(3):
        assert (await first.ask("whisper", channel="chat.1", **whisper))["event"] == "eb:ack"
        assert (await second.next())["event"] == "client-typing"
    assert await second.error("whisper", channel="chat.1", **whisper) == "rate_limited"
    assert reached(edge, "whispers") == 1
    assert await first.receives_nothing()
    assert (await second.ask("whisper", channel="chat.2", **whisper))["event"] == "eb:ack"


# Requests that never end


async def test_a_request_that_is_sent_in_pieces_is_cut_although_it_trickles(start_edge, bus):
    edge = await start_edge(bus, request_timeout=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /ws HTTP/1.1\r\nHost: a\r\n")
    ended = asyncio.ensure_future(reader.read())
    async with asyncio.timeout(40):
        while not ended.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.wait({ended}, timeout=0.1)
    assert ended.result() == b""
    writer.close()


async def test_a_silent_socket_is_cut_and_a_websocket_outlives_the_request_timeout(start_edge, bus):
    edge = await start_edge(bus, request_timeout=0.3)
    client = await edge.connect()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    async with asyncio.timeout(40):
        assert await reader.read() == b""
    writer.close()
    assert await client.receives_nothing()


@pytest.mark.parametrize(
    "head",
    [b"X-A: " + b"x" * 9000 + b"\r\n", b"".join(b"X-%d: y\r\n" % n for n in range(70))],
    ids=["a long header", "many headers"],
)
async def test_a_head_that_is_too_large_is_refused(start_edge, bus, head):
    edge = await start_edge(bus)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n")
    async with asyncio.timeout(40):
        assert b" 431 " in await reader.readline()
    writer.close()

"""Revocations: what they concern, how long they are kept, and that every node keeps to them."""

import asyncio
import time

import jwt
import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus.bus import EventBus
from eventbus.channels import Pattern
from eventbus.cluster.announcing import announce_revocation, stored_revocations
from eventbus.cluster.revocation import Revocation
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.drivers.memory.state import MemoryState
from eventbus.errors import ConnectionFailed
from eventbus_edge.access.revocation import Revocations
from eventbus_edge.access.revoker import (
    Revoker,
)
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.access.tokens import (
    Claims,
    check_times,
)
from eventbus_edge.state import mirror
from tests.edge.conftest import SECRET

T = 1_000_000.0


def claims(user="7", iat=T - 10, **more):
    return Claims(sub=user, exp=T + 3600, iat=iat, **more)


def revocation(at=T, until=T + 3600, **about):
    return Revocation(at=at, until=until, **about)


# What they concern


def test_a_users_older_tokens_are_refused_and_newer_ones_are_not():
    known = Revocations()
    assert known.add(revocation(user_id="7"), T)
    assert known.forbids_token(claims("7"), T)
    assert known.forbids_token(claims("7", iat=T), T)
    assert known.forbids_token(claims("7", iat=None), T)
    assert not known.forbids_token(claims("7", iat=T + 1), T)
    assert not known.forbids_token(claims("8"), T)
    assert not known.forbids("chat.1", claims("7"), T)  # the token is refused, not the channel


def test_a_token_is_refused_by_its_id_whenever_it_was_issued():
    known = Revocations()
    known.add(revocation(jti="a"), T)
    assert known.forbids_token(claims(jti="a", iat=T + 5), T)
    assert not known.forbids_token(claims(jti="b"), T)
    assert not known.forbids_token(claims(jti=None), T)


def test_a_channel_is_refused_to_older_tokens_only_and_to_nobody_without_one():
    known = Revocations()
    known.add(revocation(channel="chat.1"), T)
    assert known.forbids("chat.1", claims(), T)
    assert not known.forbids("chat.2", claims(), T)
    assert not known.forbids("chat.1", claims(iat=T + 1), T)
    assert not known.forbids("chat.1", None, T)
    assert not known.forbids_token(claims(), T)


def test_a_channel_may_be_revoked_for_one_user_or_one_token():
    known = Revocations()
    known.add(revocation(channel="chat.1", user_id="7"), T)
    known.add(revocation(channel="chat.1", jti="a"), T)
    assert known.forbids("chat.1", claims("7"), T)
    assert known.forbids("chat.1", claims("8", jti="a"), T)
    assert not known.forbids("chat.1", claims("8"), T)
    assert not known.forbids_token(claims("7"), T)


def test_the_later_of_two_about_the_same_counts_and_neither_ends_the_other_early():
    known = Revocations()
    assert known.add(revocation(user_id="7", at=T, until=T + 100), T)
    assert known.add(revocation(user_id="7", at=T + 5, until=T + 50), T)
    assert not known.add(revocation(user_id="7", at=T, until=T + 50), T)
    assert known.forbids_token(claims(iat=T + 5), T + 99)
    assert not known.forbids_token(claims(iat=T + 5), T + 100)
    assert len(known) == 1


def test_one_that_is_over_is_forgotten():
    known = Revocations()
    known.add(revocation(user_id="7", until=T + 10), T)
    known.sweep(T + 10)
    assert len(known) == 0
    assert not known.add(revocation(user_id="8", until=T), T)


def test_their_number_is_bounded_and_those_that_end_first_go():
    known = Revocations(limit=3)
    for n in range(10):
        known.add(revocation(user_id=str(n), until=T + 100 - n), T)
    assert [known.forbids_token(claims(str(n)), T) for n in range(4)] == [True, True, True, False]
    assert len(known) == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(0, 20))))
def test_one_holds_as_long_as_any_that_was_made_about_the_same(made):
    known, ends, now = Revocations(), dict.fromkeys("abc", T), T
    for user, life, pause in made:
        now += pause
        known.add(revocation(user_id=user, at=now, until=now + life), now)
        ends[user] = max(ends[user], now + life)
        for name, end in ends.items():
            assert known.forbids_token(claims(name), now) == (end > now)
        assert len(known) == sum(end > now for end in ends.values())
        assert len(known._ends) == len(known.all())


def test_many_that_end_together_are_removed_in_steps_and_refuse_nothing_meanwhile():
    known = Revocations()
    for number in range(2500):
        known.add(revocation(channel=f"chat.{number}", until=T + 10), T)
    assert known.forbids("chat.2400", claims(), T + 9)
    assert [known.sweep(T + 10) for _ in range(3)] == [True, True, False]
    assert (len(known), known.all()) == (0, [])
    for number in range(2500):
        known.add(revocation(channel=f"chat.{number}", until=T + 10), T)
    assert known.sweep(T + 10)
    assert not any(known.forbids(f"chat.{number}", claims(), T + 10) for number in range(2500))
    assert not known.forbids_any(Pattern("chat.*"), claims(), T + 10)


ABOUT = st.fixed_dictionaries(
    {"channel": st.sampled_from(["chat.1", "chat.2", "orders.1"])},
    optional={"user_id": st.sampled_from("78")},
) | st.fixed_dictionaries(
    {"channel": st.sampled_from(["chat.1", "orders.1"]), "jti": st.sampled_from("ab")}
)


@given(st.lists(st.tuples(ABOUT, st.integers(1, 50), st.booleans()), max_size=12))
def test_pattern_is_forbidden_if_one_of_its_channels_is(made):
    known = Revocations(limit=5)
    for number, (about, life, lifted) in enumerate(made):
        now = T + number
        known.add(revocation(at=now, until=now + life, lifted=lifted, **about), now)
    end = T + len(made)
    for bearer in (claims("7", jti="a"), claims("8"), claims("9", jti="b")):
        for pattern in ("chat.*", "chat.>", "*.1", "orders.1", "none.*"):
            expected = any(
                Pattern(pattern).match(channel) is not None and known.forbids(channel, bearer, end)
                for channel in ("chat.1", "chat.2", "orders.1")
            )
            assert known.forbids_any(Pattern(pattern), bearer, end) == expected


# Clocks that differ


LEEWAY = 5.0


@pytest.mark.parametrize("iat", [T - 1e6, T, T + 0.5, T + 4, T + LEEWAY, None])
@pytest.mark.parametrize(
    ("about", "channel"),
    [({"user_id": "7"}, None), ({"user_id": "7", "channel": "chat.1"}, "chat.1"),
     ({"channel": "chat.1"}, "chat.1")],
)  # fmt: skip
def test_a_token_of_an_issuer_whose_clock_is_ahead_is_refused(iat, about, channel):
    known = Revocations(leeway_s=LEEWAY)
    known.add(revocation(**about), T)
    mine, later = claims(iat=iat), claims(iat=T + LEEWAY + 0.01)
    if channel is None:
        assert known.forbids_token(mine, T + 60)
        assert not known.forbids_token(later, T + 60)
    else:
        assert known.forbids(channel, mine, T + 60)
        assert known.forbids_any(Pattern("chat.*"), mine, T + 60)
        assert not known.forbids(channel, later, T + 60)
        assert not known.forbids_any(Pattern("chat.*"), later, T + 60)


def test_the_last_token_that_is_concerned_is_refused_for_as_long_as_it_could_be_accepted():
    known, life = Revocations(leeway_s=LEEWAY), 60.0
    taken = revocation(user_id="7", until=T + life)
    known.add(taken, T)
    last = Claims(sub="7", iat=T + LEEWAY, exp=T + LEEWAY + life)
    now = last.exp + LEEWAY - 0.01  # the last moment in which a verifier accepts it
    check_times(last, now, LEEWAY)
    assert known.forbids_token(last, now)
    assert known.find(taken, now) == taken
    known.sweep(now)
    assert len(known) == 1
    known.sweep(now + 0.01)
    assert len(known) == 0


def test_a_time_of_the_issuers_own_clock_is_compared_exactly():
    known = Revocations(leeway_s=LEEWAY)
    known.add(revocation(user_id="7", issued_before=T + 2), T)
    assert known.forbids_token(claims(iat=T + 1.99), T)
    assert known.forbids_token(claims(iat=None), T)
    assert not known.forbids_token(claims(iat=T + 2), T)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 40)), min_size=1, max_size=6),
    st.integers(0, 50),
    st.data(),
)
def test_merged_revocations_refuse_what_each_refuses_in_any_order(made, iat, data):
    all_ = [
        revocation(user_id="7", at=T + at, issued_before=None if before is None else T + before)
        for at, before in made
    ]
    mine = claims(iat=T + iat)
    ends = set()
    for order in (all_, data.draw(st.permutations(all_))):
        known = Revocations(leeway_s=LEEWAY)
        for each in order:
            known.add(each, T)
        ends.add(known.forbids_token(mine, T))
    assert len(ends) == 1
    if any(each.concerns(None, mine, LEEWAY) for each in all_):
        assert ends == {True}


@pytest.mark.parametrize(
    "about", [{"jti": "a"}, {"jti": "a", "channel": "c"}, {"connection_id": "c"}]
)
def test_issued_before_is_only_for_revocations_by_time_of_issue(about):
    with pytest.raises(ValueError, match="issued_before"):
        revocation(issued_before=T, **about)


def test_a_revocation_after_a_lift_by_a_clock_that_is_ahead_holds():
    known = Revocations()
    lift = revocation(user_id="7", at=T + 60).lift(T + 60)
    known.add(lift, T)
    again = revocation(user_id="7", at=T + 1).after(known.get(lift))
    known.add(again, T + 1)
    assert known.forbids_token(claims("7"), T + 1)


# Lifted


def test_lifted_revocation_neither_refuses_nor_counts():
    known = Revocations()
    taken = revocation(user_id="7")
    known.add(taken, T)
    assert known.find(revocation(user_id="7"), T) == taken
    assert known.add(taken.lift(T + 5), T + 5)
    assert not known.forbids_token(claims("7"), T + 5)
    assert known.find(taken, T + 5) is None
    assert len(known) == 0
    assert not known.add(taken.lift(T + 5), T + 5)
    assert not known.add(taken, T + 5)  # by a process that does not know of it
    assert not known.forbids_token(claims("7"), T + 5)
    assert known.add(revocation(user_id="7", at=T + 6), T + 6)
    assert known.forbids_token(claims("7"), T + 6)
    assert len(known) == 1


def test_a_lift_concerns_what_was_named_and_nothing_beside_it():
    known = Revocations()
    known.add(revocation(user_id="7"), T)
    known.add(revocation(user_id="7", channel="chat.1"), T)
    known.add(revocation(channel="chat.1"), T)
    known.add(revocation(user_id="7").lift(T), T)
    assert not known.forbids_token(claims("7"), T)
    assert known.forbids("chat.1", claims("7"), T)
    known.add(revocation(user_id="7", channel="chat.1").lift(T), T)
    assert known.forbids("chat.1", claims("7"), T)  # it is taken from everybody still
    known.add(revocation(channel="chat.1").lift(T), T)
    assert not known.forbids("chat.1", claims("7"), T)


def test_a_lift_by_a_clock_that_is_behind_holds():
    known = Revocations()
    taken = revocation(user_id="7", at=T + 60)
    known.add(taken, T)
    known.add(taken.lift(T), T)
    assert not known.forbids_token(claims("7"), T)


def test_lifts_are_forgotten_when_what_they_lift_would_be_over():
    known = Revocations()
    known.add(revocation(user_id="7", until=T + 10).lift(T), T)
    assert len(known.all()) == 1
    known.sweep(T + 10)
    assert known.all() == []
    assert len(known) == 0


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(30, 60)), max_size=8),
    st.data(),
)
def test_latest_revocation_counts_in_any_order_of_arrival(made, data):
    known = Revocations()
    made = [
        revocation(user_id="7", at=T + at, until=T + until, lifted=lifted)
        for lifted, at, until in made
    ]
    for each in data.draw(st.permutations(made + made)):
        known.add(each, T)
    last = max(((each.at, each.lifted) for each in made), default=(0, True))
    assert known.forbids_token(claims("7"), T) == (not last[1])
    assert len(known) == (not last[1])


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"user_id": "7", "jti": "a"},
        {"user_id": "7", "connection_id": "c"},
        {"connection_id": "c", "channel": "chat.1"},
        {"connection_id": "c", "lifted": True},
        {"channel": "a b"},
    ],
)
def test_revocation_of_invalid_ids_is_refused(about):
    with pytest.raises(ValueError):
        revocation(**about)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"at": 1, "until": 2} | about), type=Revocation)


# Through faults


class Broken(MemoryState):
    """What is kept, on a broker that is away at first."""

    def __init__(self):
        super().__init__()
        self.losses = 0
        self.is_away = False

    async def entries(self, pattern):
        if self.is_away:
            raise ConnectionFailed("there is nobody", driver="memory")
        return await super().entries(pattern)


async def test_after_a_fault_revocations_are_read_until_the_bus_answers(caplog, monkeypatch):
    monkeypatch.setattr(mirror, "_CHECK_S", 0.005)
    monkeypatch.setattr(mirror, "_RETRY_S", 0.005)
    driver = MemoryDriver()
    driver.broker.state = store = Broken()
    ended, has_ended = [], asyncio.Event()

    async def end(revocation):
        ended.append(revocation)
        has_ended.set()

    async with EventBus(Settings(driver="memory"), driver) as bus:
        revoker = Revoker(driver, bus.subjects, end)
        await revoker.start()
        missed = revocation(at=time.time(), until=time.time() + 60, user_id="7")
        await store.put("revocation.missed", msgspec.json.encode(missed))
        store.is_away = True
        store.losses += 1
        await until(lambda: caplog.records)
        assert (ended, revoker.is_current) == ([], False)
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        store.is_away = False
        async with asyncio.timeout(40):
            await has_ended.wait()
        assert ended == [missed]
        assert revoker.forbids_token(claims("7", iat=missed.at - 1))
        await until(lambda: revoker.is_current)
        # After a pause of the process, whatever the store says.
        later = revocation(at=time.time(), until=time.time() + 60, user_id="8")
        await store.put("revocation.later", msgspec.json.encode(later))
        has_ended.clear()
        revoker.invalidate()
        async with asyncio.timeout(40):
            await has_ended.wait()
        assert ended == [missed, later]
        await revoker.aclose()


async def test_reading_many_revocations_does_not_hold_the_loop():
    """As turns of the loop: times mean little on a busy machine."""
    driver, ended = MemoryDriver(), []

    async def end(revocation):
        ended.append(revocation)

    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with EventBus(Settings(driver="memory"), driver) as bus:
        revoker = Revoker(driver, bus.subjects, end)
        now = time.time()
        for number in range(20_000):
            each = revocation(at=now, until=now + 60, user_id=str(number))
            await driver.state.put(f"revocation.{each.key}", msgspec.json.encode(each))
        counting = asyncio.create_task(count_turns())
        await revoker.start()
        assert len(ended) == 20_000
        before, turns = turns, 0
        assert before > 10
        await revoker.resync()
        assert turns > 10
        counting.cancel()
        await revoker.aclose()


# On the wire


@pytest.fixture(params=["nats", pytest.param("redis", marks=pytest.mark.redis)])
async def settings(request, settings, start_redis):
    return start_redis() if request.param == "redis" else settings


@pytest.fixture
async def two(start_edge, settings):
    """Two nodes, each with a connection to the bus of its own."""
    return [await start_edge(settings) for _ in range(2)]


async def until(holds):
    async with asyncio.timeout(40):
        while not holds():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def ends_at_once(client):
    """By notification: stored revocations are read only every 30 s. It takes milliseconds when
    idle."""
    async with asyncio.timeout(40):
        return await client.closed()


async def test_a_revoked_user_is_closed_on_every_node_and_stays_out_with_the_old_token(two, token):
    old = token("7")
    clients = [await node.connect(token=old) for node in two]
    other = await two[1].connect(token=token("8"))
    await two[0].node.access.revoker.revoke(user_id="7")
    assert [await ends_at_once(c) for c in clients] == [4003, 4003]
    for node in two:
        status, headers, problem = await node.refusal(token=old)
        assert (status, problem["code"]) == (401, "unauthorized")
        assert 'error="invalid_token"' in headers["WWW-Authenticate"]
    late = await two[1].connect()
    assert await late.error("auth", data={"token": old}) == "unauthorized"
    await other.subscribe("user.8")


def issued(at, user="7", lifetime_s=3600, **more):
    """A token of an issuer whose clock says `at`."""
    made = {"sub": user, "aud": "websocket", "iat": at, "exp": at + lifetime_s, "jti": "a", **more}
    return jwt.encode({k: v for k, v in made.items() if v is not None}, SECRET, "HS256")


async def test_login_after_the_leeway_is_accepted_and_before_it_is_refused(start_edge, settings):
    edge = await start_edge(settings, jwt_leeway=2.0)
    now = time.time()
    await edge.node.access.revoker.revoke(user_id="7")
    assert (await edge.refusal(token=issued(now + 1)))[0] == 401
    await asyncio.sleep(2.1)
    await (await edge.connect(token=issued(time.time()))).subscribe("user.7")


async def test_a_token_of_an_issuer_whose_clock_is_ahead_does_not_survive_its_users_revocation(
    two, start_edge, settings
):
    ahead, without = issued(time.time() + 4), issued(time.time(), iat=None)
    clients = [await node.connect(token=each) for node in two for each in (ahead, without)]
    other = await two[0].connect(token=token_of_another())
    now = time.time()
    await two[1].node.access.revoker.revoke(user_id="7")
    assert [await ends_at_once(client) for client in clients] == [4003] * 4
    for node in [*two, await start_edge(settings)]:
        for each in (ahead, without, issued(now + 4.5)):
            assert (await node.refusal(token=each))[0] == 401
    assert await other.error("auth", data={"token": ahead}) == "unauthorized"


def token_of_another():
    return issued(time.time() + 4, user="8")


async def test_a_channel_is_revoked_for_a_token_of_an_issuer_whose_clock_is_ahead(two):
    ahead = issued(time.time() + 4)
    client = await two[0].connect("/ws/user.7", token=ahead)
    await client.next()
    now = time.time()
    await two[1].node.access.revoker.revoke(channel="user.7")
    assert (await client.next())["event"] == "eb:unsubscribed"
    assert await client.error("subscribe", channel="user.7") == "forbidden"
    refreshed = issued(now + 4.5)
    assert (await client.ask("auth", data={"token": refreshed}))["event"] == "eb:authenticated"
    assert await client.error("subscribe", channel="user.7") == "forbidden"


async def test_a_new_token_is_good_at_once_with_a_time_by_its_issuers_clock(two):
    now = time.time() + 3  # the issuer's clock
    old, new = issued(now - 1), issued(now)
    client, kept = await two[0].connect(token=old), await two[0].connect(token=new)
    await two[1].node.access.revoker.revoke(user_id="7", issued_before=now)
    assert await ends_at_once(client) == 4003
    for node in two:
        assert (await node.refusal(token=old))[0] == 401
        await (await node.connect(token=new)).subscribe("user.7")
    assert await kept.receives_nothing()


async def test_a_revocation_after_a_lift_holds_on_all_nodes_whatever_the_clocks(two, bus, token):
    old, now = token("7"), time.time()
    ahead = Revocation(at=now + 60, until=now + 600, user_id="7")
    await announce_revocation(bus.driver, bus.subjects, ahead)
    await announce_revocation(bus.driver, bus.subjects, ahead.lift(now + 61))
    await until(lambda: all(node.node.access.revoker.known.all() for node in two))
    again = Revocation(at=now + 1, until=now + 600, user_id="7")
    await announce_revocation(bus.driver, bus.subjects, again)
    await until(lambda: all(len(node.node.access.revoker.known) for node in two))
    for node in two:
        await node.node.access.revoker.resync()
        assert (await node.refusal(token=old))[0] == 401
    assert len(await stored_revocations(bus.driver)) == 1


async def test_user_revoked_by_mistake_is_accepted_again_with_the_old_token(
    two, start_edge, settings, token
):
    old = token("7")
    await two[0].node.access.revoker.revoke(user_id="7")
    await until(lambda: all(node.node.access.revoker.known.all() for node in two))
    assert await two[1].node.access.revoker.lift(user_id="7")
    await until(lambda: not any(len(node.node.access.revoker.known) for node in two))
    for node in [*two, await start_edge(settings)]:
        await (await node.connect(token=old)).subscribe("user.7")
    assert not await two[0].node.access.revoker.lift(user_id="7")


async def test_a_channel_revoked_by_mistake_may_be_joined_again(two, token):
    clients = [await node.connect("/ws/chat.1", token=token("7")) for node in two]
    for client in clients:
        await client.next()
    await two[0].node.access.revoker.revoke(channel="chat.1")
    for client in clients:
        assert (await client.next())["event"] == "eb:unsubscribed"
    assert await two[0].node.access.revoker.lift(channel="chat.1")
    await until(lambda: not any(len(node.node.access.revoker.known) for node in two))
    for client in clients:
        await client.subscribe("chat.1")


async def test_a_node_that_does_not_know_of_a_lift_finds_it_and_does_not_undo_it(two, token):
    old = token("7")
    await two[0].node.access.revoker.revoke(user_id="7")
    await until(lambda: all(node.node.access.revoker.known.all() for node in two))
    await two[1].node.access.revoker._subscription.aclose()
    await two[0].node.access.revoker.lift(user_id="7")
    assert two[1].node.access.revoker.known.all()[0].holds(time.time())
    await two[1].node.access.revoker.resync()
    await two[0].node.access.revoker.resync()
    for node in two:
        await (await node.connect(token=old)).subscribe("user.7")


async def test_an_older_entry_that_is_written_over_a_lift_is_put_right(edge, bus, token):
    await edge.node.access.revoker.revoke(user_id="7")
    [(key, older)] = (await bus.driver.durable_state.entries("revocation.*")).items()
    await edge.node.access.revoker.lift(user_id="7")
    await bus.driver.durable_state.put(key, older, ttl_s=60)
    await edge.node.access.revoker.resync()
    [kept] = (await bus.driver.durable_state.entries("revocation.*")).values()
    assert msgspec.json.decode(kept)["lifted"] is True
    assert await stored_revocations(bus.driver) == {}


async def test_a_node_that_starts_later_refuses_too(two, start_edge, settings, token):
    old = token("7")
    jti = jwt.decode(old, options={"verify_signature": False})["jti"]
    await two[0].node.access.revoker.revoke(jti=jti)
    later = await start_edge(settings)
    assert (await later.refusal(token=old))[0] == 401
    await later.connect(token=token("7"))


async def test_a_revoked_connection_is_closed_wherever_it_is_and_its_user_may_come_back(two, token):
    client, same_user = [await two[1].connect(token=token("7")) for _ in range(2)]
    await two[0].node.access.revoker.revoke(connection_id=client.greeting["data"]["connection_id"])
    assert await ends_at_once(client) == 4003
    assert await same_user.receives_nothing()
    await two[1].connect(token=token("7"))


async def test_a_revoked_channel_is_dropped_and_the_connection_continues(two, bus, token):
    old = token("7")
    clients = [await node.connect("/ws/chat.1?channel=chat.2", token=old) for node in two]
    for client in clients:
        await client.next(), await client.next()
    await two[0].node.access.revoker.revoke(channel="chat.1")
    for client in clients:
        dropped = await client.next()
        assert (dropped["event"], dropped["channel"]) == ("eb:unsubscribed", "chat.1")
        assert dropped["data"] == {"reason": "revoked"}
        assert await client.error("subscribe", channel="chat.1") == "forbidden"
    await bus.publish("chat.1", "e", 1)
    await bus.publish("chat.2", "e", 2)
    assert [(await client.next())["data"] for client in clients] == [2, 2]
    assert (await two[1].refusal("/ws/chat.1", token=old))[0] == 403


async def test_a_channel_is_revoked_for_one_user_only(two, token):
    mine, others = [await two[1].connect("/ws/chat.1", token=token(u)) for u in "78"]
    await mine.next(), await others.next()
    await two[0].node.access.revoker.revoke(user_id="7", channel="chat.1")
    assert (await mine.next())["event"] == "eb:unsubscribed"
    assert await others.receives_nothing()


async def test_client_that_is_revoked_during_its_handshake_does_not_stay(start_edge, bus, token):
    rules, asked, answer = ChannelRules(), asyncio.Event(), asyncio.Event()

    @rules.authorize("team.{team_id}")
    async def wait(user, team_id):
        asked.set()
        await answer.wait()
        return True

    edge = await start_edge(bus, rules)
    connecting = asyncio.ensure_future(edge.connect("/ws/team.1", token=token("7"), greeted=False))
    await asked.wait()
    await edge.node.access.revoker.revoke(user_id="7")
    answer.set()
    assert await (await connecting).closed() == 4003


async def test_a_channel_revoked_while_it_is_being_joined_does_not_stay(start_edge, bus, token):
    rules, asked, answer = ChannelRules(), asyncio.Event(), asyncio.Event()

    @rules.authorize("team.{team_id}")
    async def wait(user, team_id):
        asked.set()
        await answer.wait()
        return True

    edge = await start_edge(bus, rules)
    client = await edge.connect(token=token("7"))
    await client.send("subscribe", channel="team.1")
    await asked.wait()
    await edge.node.access.revoker.revoke(user_id="7", channel="team.1")
    answer.set()
    refusal = await client.next()
    assert (refusal["event"], refusal["data"]["code"]) == ("eb:error", "forbidden")
    await bus.publish("team.1", "e", 1)
    assert await client.receives_nothing()
    assert edge.node._hub.count("team.1") == 0


async def test_unreadable_events_on_the_control_subject_are_left_out(edge, nats, namespace, token):
    client = await edge.connect(token=token("7"))
    for payload in (b"\xff", b"{}", b'{"at":1,"until":9e9}', b"[" * 50_000):
        await nats.publish(f"{namespace}.control.revoke", payload)
    await nats.flush()
    await edge.node.access.revoker.revoke(user_id="8")
    assert await client.receives_nothing()
    assert len(edge.node.access.revoker.known) == 1


async def test_a_process_that_is_not_a_node_may_revoke(two, bus, token):
    client = await two[0].connect(token=token("7"))
    now = time.time()
    await announce_revocation(
        bus.driver, bus.subjects, Revocation(at=now, until=now + 60, user_id="7")
    )
    assert await ends_at_once(client) == 4003


async def test_revocations_that_the_broker_lost_are_written_again(edge, bus):
    await edge.node.access.revoker.revoke(user_id="7")
    [key] = await bus.driver.durable_state.entries("revocation.*")
    await bus.driver.durable_state.delete(key)
    await edge.node.access.revoker.resync()
    assert list(await bus.driver.durable_state.entries("revocation.*")) == [key]

"""Entries, the ledger, and the events that follow from the two, without a bus."""

import datetime
import json

import pytest
from hypothesis import given, strategies as st

from eventbus.channels import Pattern
from eventbus.webhooks import WebhookEvent
from eventbus_edge.lifecycle.holdings import (
    CHANNELS,
    MEMBERS,
    Announcement,
    Holdings,
    decode_announcement,
    encode_announcement,
    interest_key,
    kind_of,
    pending_batches,
)
from eventbus_edge.presence.members import (
    Entry,
    encode_entry,
    key_of,
    token_of,
)

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
ANN = token_of("ann")


def announcement(number, batch="b", is_done=False):
    event = WebhookEvent(
        id=str(number), event="channel_occupied", channel=f"c.{number}", timestamp=NOW
    )
    return Announcement(event, batch, is_done)


def member(node, at, channel="presence.a.b", **info):
    entry = Entry("ann", json.dumps(info).encode(), at)
    return key_of(node, channel, ANN), encode_entry(entry)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from("+-!?"))))
def test_an_item_is_held_while_a_live_node_has_an_entry_for_it(steps):
    live = {"a", "b"}
    entries = set()
    holdings = Holdings(CHANNELS, live)
    for now, (node, channel, what) in enumerate(steps):
        match what:
            case "+":
                entries.add((node, channel))
                holdings.set(interest_key(node, channel), b"", now)
                assert holdings.dirty[channel] == now
            case "-":
                entries.discard((node, channel))
                holdings.set(interest_key(node, channel), None, now)
            case "!":
                live.discard(node)
                holdings.refresh(node, now)
            case "?":
                live.add(node)
                holdings.refresh(node, now)
        for name in "xyz":
            held = any(n in live for n, c in entries if c == name)
            assert holdings.is_held(name) is held
        assert set(holdings.items) == {c for _, c in entries}
        if what in "!?":
            touched = {c for n, c in entries if n == node}
            assert all(holdings.dirty[c] == now for c in touched)


def test_the_keys_of_the_longest_names_may_be_kept():
    longest = ".".join(["a" * 49] * 4)
    keys = [
        interest_key("n" * 49, longest),
        CHANNELS.ledger_key(longest),
        MEMBERS.ledger_key(f"{longest}.{ANN}"),
    ]
    assert all(Pattern(key).is_exact for key in keys)
    assert [kind_of(key) for key in keys[1:]] == [
        (CHANNELS, longest), (MEMBERS, f"{longest}.{ANN}"),
    ]  # fmt: skip


def test_event_of_a_member_has_the_newest_info_and_the_whole_channel():
    holdings = Holdings(MEMBERS, {"a", "b"})
    for key, value in (member("a", 1, n=1), member("b", 3, n=3), member("c", 9, n=9)):
        holdings.set(key, value, 0)
    [rest] = holdings.items
    event = holdings.event(rest, "member_joined", "1", None)
    assert (event.channel, event.user_id, event.info) == ("presence.a.b", "ann", {"n": 3})
    for node in "abc":
        holdings.set(member(node, 1)[0], None, 0)
    assert not holdings.is_held(rest)
    left = holdings.event(rest, "member_left", "2", event)
    assert (left.id, left.event, left.user_id, left.info) == ("2", "member_left", "ann", {"n": 3})


@pytest.mark.parametrize("value", [b"", b"x", b"{}", b'{"user_id":1,"info":{},"at":1}', b"\xff"])
def test_entries_that_no_node_could_have_written_are_not_announced(value):
    holdings = Holdings(MEMBERS, {"a"})
    holdings.set(key_of("a", "presence.a", ANN), value, 0)
    [rest] = holdings.items
    assert holdings.event(rest, "member_joined", "1", None) is None


def test_the_ledger_is_read_as_it_was_written():
    for number, entry in ((1, announcement(1)), (2, announcement(2, is_done=True))):
        assert (
            decode_announcement(CHANNELS.ledger_key(f"c.{number}"), encode_announcement(entry))
            == entry
        )
    for value in (b"", b"x", b"{}", b"\xff", b"[" * 100_000, b'{"event":{},"batch":"b"}'):
        assert decode_announcement(CHANNELS.ledger_key("c.1"), value) is None


@pytest.mark.parametrize(
    "key", ["lifecycle.told.c.c.2", "lifecycle.told.m.c.1.token", "lifecycle.told.x.c.1"]
)
def test_value_under_the_key_of_another_item_is_not_an_announcement(key):
    assert decode_announcement(key, encode_announcement(announcement(1))) is None


def test_pending_announcements_are_made_in_order_of_their_batches():
    ledger = {
        "k1": announcement(1, "b2"),
        "k2": announcement(2, "b1"),
        "k3": announcement(3, "b1", is_done=True),
    }
    ledger["k4"] = announcement(4, "b2")
    assert [(batch, sorted(entries)) for batch, entries in pending_batches(ledger)] == [
        ("b1", ["k2"]), ("b2", ["k1", "k4"]),
    ]  # fmt: skip

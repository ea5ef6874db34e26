"""Membership from entries, without a bus."""

import itertools
import json

import pytest
from hypothesis import given, strategies as st

from eventbus_edge.presence.members import (
    Change,
    Entry,
    Room,
    Stays,
    decode_entry,
    encode_entry,
    token_of,
)

ALICE, BOB = token_of("alice"), token_of("bob")


def entry(user, info=b"{}", at=1):
    return Entry(user, info, at)


def members(room):
    return {member["user_id"]: member["info"] for member in json.loads(room.members)}


def test_a_user_of_several_nodes_joins_once_and_leaves_with_the_last():
    room = Room({"a", "b"})
    assert room.put("a", ALICE, entry("alice")) == [Change("joined", "alice", b"{}")]
    assert room.put("b", ALICE, entry("alice")) == []
    assert room.put("b", ALICE, entry("alice")) == []
    assert room.remove("a", ALICE) == []
    assert members(room) == {"alice": {}}
    assert room.remove("a", ALICE) == []
    assert room.remove("b", ALICE) == [Change("left", "alice", b"{}")]
    assert (members(room), len(room)) == ({}, 0)


def test_entries_of_a_node_count_while_it_lives():
    live = {"a"}
    room = Room(live)
    room.put("a", ALICE, entry("alice"))
    assert room.put("b", ALICE, entry("alice")) == []
    assert room.put("b", BOB, entry("bob", b'{"x":1}')) == []
    assert members(room) == {"alice": {}}
    live.add("b")
    assert room.refresh("b") == [Change("joined", "bob", b'{"x":1}')]
    live.discard("a")
    assert room.refresh("a") == [], "alice is at b too"
    live.discard("b")
    assert {change.user_id for change in room.refresh("b")} == {"alice", "bob"}
    assert len(room) == 0


def test_the_newest_info_holds_whichever_node_gave_it_and_however_long_it_is_there():
    room = Room({"a", "b"})
    room.put("a", ALICE, entry("alice", b'{"n":1}', at=5))
    assert room.put("b", ALICE, entry("alice", b'{"n":0}', at=4)) == []
    newer = Change("updated", "alice", b'{"n":2}')
    assert room.put("b", ALICE, entry("alice", b'{"n":2}', at=6)) == [newer]
    assert room.put("a", ALICE, entry("alice", b'{"n":1}', at=5)) == []
    assert room.remove("b", ALICE) == [], "what was told is not taken back"
    assert members(room) == {"alice": {"n": 2}}


def test_nodes_agree_on_infos_given_in_the_same_millisecond():
    entries = {"a": entry("alice", b'{"n":1}'), "b": entry("alice", b'{"n":2}')}
    seen = set()
    for order in itertools.permutations(entries):
        room = Room(set(entries))
        for node in order:
            room.put(node, ALICE, entries[node])
        seen.add(room.members)
    assert len(seen) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvw"), st.sampled_from("+-!?"))))
def test_events_always_add_up_to_the_members(steps):
    """Whatever comes in whatever order: who applies the events has the list."""
    live, told = {"a", "b", "c"}, {}
    room = Room(live)
    for i, (node, user, what) in enumerate(steps):
        token = token_of(user)
        match what:
            case "+":
                changes = room.put(node, token, entry(user, b'{"i":%d}' % i, at=i))
            case "-":
                changes = room.remove(node, token)
            case "!":
                live.discard(node)
                changes = room.refresh(node)
            case _:
                live.add(node)
                changes = room.refresh(node)
        for kind, who, info in changes:
            assert (who in told) == (kind != "joined")
            if kind == "left":
                del told[who]
            else:
                told[who] = json.loads(info)
    assert told == members(room)


def test_the_list_is_made_once_for_each_change():
    room = Room({"a"})
    room.put("a", ALICE, entry("alice"))
    first = room.members
    room.put("a", ALICE, entry("alice"))
    assert room.members is first
    room.put("a", BOB, entry("bob"))
    assert room.members is not first


@given(st.text(max_size=300))
def test_any_user_id_has_a_token_that_keys_may_hold(user):
    token = token_of(user)
    assert len(token) == 32
    assert token.isalnum()
    assert decode_entry(token, encode_entry(entry(user, b'{"a":[1]}', 7))) == entry(
        user, b'{"a":[1]}', 7
    )


@pytest.mark.parametrize(
    "value",
    [
        b"", b"x", b"[]", b"{}", b"\xff",
        b'{"user_id":"bob","info":{},"at":1}',
        b'{"user_id":"alice","info":[],"at":1}',
        b'{"user_id":"alice","info":{},"at":-1}',
        b'{"user_id":"alice","info":{},"at":1e400}',
        b'{"user_id":"alice","info":{},"at":9007199254740993}',
        b'{"user_id":"alice","info":{"a":"\xff"},"at":1}',
        b'{"user_id":"alice","info":' + b'{"a":' * 5000 + b"1" + b"}" * 5001 + b',"at":1}',
    ],
)  # fmt: skip
def test_values_that_no_node_could_have_written_are_ignored(value):
    assert decode_entry(ALICE, value) is None


def test_a_stay_ends_with_the_last_connection():
    stays = Stays()
    stays.join(ALICE, "c1")
    stays.join(ALICE, "c2")
    assert stays.leave(ALICE, "c1", now=0.0, grace_s=0.0) is None
    assert not stays.end(ALICE, 0.0)
    assert stays.leave(ALICE, "c1", now=0.0, grace_s=0.0) is None, "it has left already"
    assert stays.leave(ALICE, "c2", now=1.0, grace_s=0.0) == 1.0
    assert stays.end(ALICE, 1.0)
    assert not stays.end(ALICE, 1.0)
    assert len(stays) == 0
    assert stays.leave(BOB, "c", now=0.0, grace_s=1.0) is None


def test_a_lost_connection_is_waited_for_also_by_those_that_leave_later():
    stays = Stays()
    stays.join(ALICE, "tab1")
    stays.join(ALICE, "tab2")
    assert stays.leave(ALICE, "tab1", now=0.0, grace_s=15.0) is None
    assert stays.leave(ALICE, "tab2", now=5.0, grace_s=0.0) == 15.0
    assert not stays.end(ALICE, 14.9)
    assert stays.end(ALICE, 15.0)


@pytest.mark.parametrize("how", ["here", "elsewhere"])
def test_who_has_returned_is_waited_for_no_more(how):
    stays = Stays()
    stays.join(ALICE, "tab1")
    assert stays.leave(ALICE, "tab1", now=0.0, grace_s=15.0) == 15.0
    if how == "here":
        stays.join(ALICE, "tab2")
        assert not stays.end(ALICE, 99.0)
        assert stays.leave(ALICE, "tab2", now=1.0, grace_s=0.0) == 1.0
    else:
        stays.returned(ALICE)
    assert stays.end(ALICE, 1.0)

"""Membership from entries, without a bus."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus_edge.presence.members import (
    Change,
    Entry,
    LocalMembers,
    Room,
    decode_entry,
    encode_entry,
    token_of,
)

ALICE, BOB = token_of("alice"), token_of("bob")


def entry(user, info=b"{}", at=1):
    return Entry(user, info, at)


def members(room):
    return {member.user_id: json.loads(member.info) for member in room.members}


def refreshed(room, node):
    return [change for changes in room.refresh(node) for change in changes]


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
    assert refreshed(room, "b") == [Change("joined", "bob", b'{"x":1}')]
    live.discard("a")
    assert refreshed(room, "a") == [], "alice is at b too"
    live.discard("b")
    assert {change.user_id for change in refreshed(room, "b")} == {"alice", "bob"}
    assert len(room) == 0


def test_the_newest_info_holds_on_any_node_and_for_any_time():
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
        seen.add(tuple((member.user_id, member.info) for member in room.members))
    assert len(seen) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvw"), st.sampled_from("+-!?"))))
def test_events_always_add_up_to_the_members(steps):
    """In any order: applying the events gives the list."""
    live, reported = {"a", "b", "c"}, {}
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
                changes = refreshed(room, node)
            case _:
                live.add(node)
                changes = refreshed(room, node)
        for kind, who, info in changes:
            assert (who in reported) == (kind != "joined")
            if kind == "left":
                del reported[who]
            else:
                reported[who] = json.loads(info)
    assert reported == members(room)


def test_the_list_is_made_once_for_each_change():
    room = Room({"a"})
    room.put("a", ALICE, entry("alice"))
    first = room.members
    room.put("a", ALICE, entry("alice"))
    assert room.members is first
    room.put("a", BOB, entry("bob"))
    assert room.members is not first


def test_members_are_encoded_once_for_all_who_join_and_each_member_once_for_all_lists():
    room = Room({"a"})
    encoded = []

    def encode_member(member):
        encoded.append(member.user_id)
        return member.user_id.encode()

    def encode_all(members):
        encoded.append(len(members))
        return b",".join(member.encoded(encode_member) for member in members)

    room.put("a", ALICE, entry("alice"))
    for _ in range(3):
        assert room.members.encoded(encode_all) == b"alice"
    room.put("a", BOB, entry("bob"))
    for _ in range(3):
        assert room.members.encoded(encode_all) == b"alice,bob"
    assert encoded == [1, "alice", 2, "bob"]
    # Another protocol gets its own encoding.
    assert room.members.encoded(lambda members: b"%d" % len(members)) == b"2"
    assert room.members.encoded(encode_all) == b"alice,bob"


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.text(max_size=5), st.booleans())))
def test_size_is_at_least_that_of_the_native_list_and_not_much_more(steps):
    room = Room({"a"})
    for number, (user, text, present) in enumerate(steps):
        info = msgspec.json.encode({"n": text})
        room.put("a", token_of(user), entry(user, info, at=number))
        if not present:
            room.remove("a", token_of(user))
    listed = [{"user_id": m.user_id, "info": msgspec.Raw(m.info)} for m in room.members]
    actual = len(msgspec.json.encode(listed))
    assert actual - 2 <= room.size <= actual + 4 * len(room)


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
    present = LocalMembers()
    present.join(ALICE, "c1")
    present.join(ALICE, "c2")
    assert present.leave(ALICE, "c1", now=0.0, grace_s=0.0) is None
    assert not present.end(ALICE, 0.0)
    assert present.leave(ALICE, "c1", now=0.0, grace_s=0.0) is None, "it has left already"
    assert present.leave(ALICE, "c2", now=1.0, grace_s=0.0) == 1.0
    assert present.end(ALICE, 1.0)
    assert not present.end(ALICE, 1.0)
    assert len(present) == 0
    assert present.leave(BOB, "c", now=0.0, grace_s=1.0) is None


def test_a_lost_connection_is_waited_for_also_by_those_that_leave_later():
    present = LocalMembers()
    present.join(ALICE, "tab1")
    present.join(ALICE, "tab2")
    assert present.leave(ALICE, "tab1", now=0.0, grace_s=15.0) is None
    assert present.leave(ALICE, "tab2", now=5.0, grace_s=0.0) == 15.0
    assert not present.end(ALICE, 14.9)
    assert present.end(ALICE, 15.0)


@pytest.mark.parametrize("how", ["here", "elsewhere"])
def test_grace_time_ends_when_a_member_returns(how):
    present = LocalMembers()
    present.join(ALICE, "tab1")
    assert present.leave(ALICE, "tab1", now=0.0, grace_s=15.0) == 15.0
    if how == "here":
        present.join(ALICE, "tab2")
        assert not present.end(ALICE, 99.0)
        assert present.leave(ALICE, "tab2", now=1.0, grace_s=0.0) == 1.0
    else:
        present.returned(ALICE)
    assert present.end(ALICE, 1.0)

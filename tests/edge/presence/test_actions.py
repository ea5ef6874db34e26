"""The action `presence`, and members in answers: the session and the native protocol, pure."""

import json

import pytest

from eventbus.channels import ChannelKind
from eventbus_edge.access.rules import (
    Allowed,
    ChannelRules,
)
from eventbus_edge.access.tokens import Claims
from eventbus_edge.protocols.native import (
    decode,
    encode_reply,
)
from eventbus_edge.protocols.vocabulary import (
    Malformed,
    Members,
    Presence,
    PresenceMembers,
    PresentMember,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from eventbus_edge.sessions.effects import Read
from eventbus_edge.sessions.limits import SessionLimits
from eventbus_edge.sessions.session import Session

MEMBERS = Members([PresentMember("7", b"{}")])
ROOM = "presence.room"


@pytest.fixture
def session():
    made = Session("c1", ChannelRules(), SessionLimits(token_grace_s=10.0), 0.0)
    made.authenticate(Claims(sub="7", exp=2e9), 60.0, 0.0)
    return made


def join(session, channel):
    [effect] = session.receive(Subscribe(channel, None, 0, None), 0.0)
    return session.joined(effect.command, effect.rule, None, None, MEMBERS)


def failure(effects):
    [effect] = effects
    return effect.reply.code, effect.reply.channel, effect.reply.ref


def test_member_may_ask_for_presence_and_change_it(session):
    [reported] = join(session, ROOM)
    assert reported.reply.members == MEMBERS
    for changes in (None, {}, {"status": "away"}):
        [effect] = session.receive(Presence(ROOM, changes, 1), 0.0)
        assert effect == (Presence(ROOM, changes, 1),)


@pytest.mark.parametrize(
    ("channel", "code", "named"),
    [
        ("general", "bad_request", "general"),
        ("a b", "invalid_channel", None),
        ("presence.*", "invalid_channel", None),
    ],
)
@pytest.mark.parametrize("changes", [None, {"a": 1}])
def test_others_learn_why_they_may_not(session, channel, code, named, changes):
    assert failure(session.receive(Presence(channel, changes, "r"), 0.0)) == (code, named, "r")


def test_changes_need_a_joined_channel(session):
    changed = session.receive(Presence(ROOM, {"a": 1}, "r"), 0.0)
    assert failure(changed) == ("not_subscribed", ROOM, "r")


def test_members_of_a_channel_that_one_may_join_are_read_without_joining_it(session):
    assert session.receive(Presence(ROOM, None, 1), 0.0) == [Read(Presence(ROOM, None, 1))]
    assert ROOM not in session.channels
    nobody = Session("c2", ChannelRules(), SessionLimits(), 0.0)
    assert failure(nobody.receive(Presence(ROOM, None, 1), 0.0)) == ("unauthorized", ROOM, 1)


def test_a_joined_channel_of_another_kind_has_no_members(session):
    join(session, "general")
    assert failure(session.receive(Presence("general", None, 1), 0.0))[0] == "bad_request"


def test_client_that_left_may_not_change_its_info(session):
    join(session, ROOM)
    session.receive(Unsubscribe(ROOM, None), 0.0)
    assert failure(session.receive(Presence(ROOM, {}, 1), 0.0))[0] == "not_subscribed"


def test_an_expired_token_lets_ask_and_not_change(session):
    join(session, ROOM)
    assert failure(session.receive(Presence(ROOM, {}, 1), 61.0))[0] == "token_expired"
    [effect] = session.receive(Presence(ROOM, None, 1), 61.0)
    assert effect == (Presence(ROOM, None, 1),)


def test_info_of_an_authorizer_is_part_of_the_join(session):
    rule = ChannelRules().find(ROOM)
    [effect] = session.consulted(Subscribe(ROOM, None, 0, None), Allowed(rule, {"role": "owner"}))
    assert effect.info == {"role": "owner"}


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('{"action":"presence","channel":"c","ref":1}', Presence("c", None, 1)),
        ('{"action":"presence","channel":"c","data":{}}', Presence("c", {}, None)),
        (
            '{"action":"presence","channel":"c","data":{"a":{"b":[1,null]}},"ref":"x"}',
            Presence("c", {"a": {"b": [1, None]}}, "x"),
        ),
        ('{"action":"presence","channel":"c","data":null}', Presence("c", None, None)),
    ],
)
def test_a_frame_is_decoded_to_its_command(text, command):
    assert decode(text) == command


@pytest.mark.parametrize("data", ["1", '"x"', "[]", "true", '{"a":' * 3000 + "1" + "}" * 3000])
def test_changes_that_are_not_an_object_are_malformed(data):
    command = decode('{"action":"presence","channel":"c","ref":5,"data":' + data + "}")
    assert isinstance(command, Malformed)
    assert command.code == "bad_request"


def test_a_channel_is_needed():
    assert decode('{"action":"presence"}').code == "bad_request"


def test_members_are_sent_as_an_array_with_unchanged_info():
    members = Members([PresentMember("7", b"{}"), PresentMember('\u00e9"', b'{"n":1.50}')])
    listed = [{"user_id": "7", "info": {}}, {"user_id": '\u00e9"', "info": {"n": 1.5}}]
    reply = Subscribed(ROOM, ChannelKind.PRESENCE, None, None, 3, members)
    frame = json.loads(encode_reply(reply))
    assert (frame["event"], frame["channel"]) == ("eb:subscribed", ROOM)
    assert frame["data"] == {
        "kind": "presence", "offset": None, "epoch": None, "members": listed, "ref": 3,
    }  # fmt: skip
    payload = encode_reply(PresenceMembers(ROOM, members, "r"))
    assert b'{"n":1.50}' in payload
    frame = json.loads(payload)
    assert (frame["event"], frame["channel"]) == ("eb:presence", ROOM)
    assert frame["data"] == {"members": listed, "count": 2, "ref": "r"}


def test_a_channel_without_members_says_nothing_of_them():
    reply = Subscribed("general", ChannelKind.PUBLIC, None, None, None)
    assert "members" not in json.loads(encode_reply(reply))["data"]

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
    Presence,
    PresenceMembers,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from eventbus_edge.sessions.limits import SessionLimits
from eventbus_edge.sessions.session import Session

MEMBERS = b'[{"user_id":"7","info":{}}]'
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


def test_who_has_joined_may_ask_and_change(session):
    [told] = join(session, ROOM)
    assert told.reply.members == MEMBERS
    for changes in (None, {}, {"status": "away"}):
        [effect] = session.receive(Presence(ROOM, changes, 1), 0.0)
        assert effect == (Presence(ROOM, changes, 1),)


@pytest.mark.parametrize(
    ("channel", "code", "named"),
    [
        (ROOM, "not_subscribed", ROOM),
        ("general", "bad_request", "general"),
        ("a b", "invalid_channel", None),
        ("presence.*", "invalid_channel", None),
    ],
)
@pytest.mark.parametrize("changes", [None, {"a": 1}])
def test_others_are_told_why_they_may_not(session, channel, code, named, changes):
    assert failure(session.receive(Presence(channel, changes, "r"), 0.0)) == (code, named, "r")


def test_a_joined_channel_of_another_kind_has_no_members(session):
    join(session, "general")
    assert failure(session.receive(Presence("general", None, 1), 0.0))[0] == "bad_request"


def test_who_has_left_may_not_ask(session):
    join(session, ROOM)
    session.receive(Unsubscribe(ROOM, None), 0.0)
    assert failure(session.receive(Presence(ROOM, None, 1), 0.0))[0] == "not_subscribed"


def test_an_expired_token_lets_ask_and_not_change(session):
    join(session, ROOM)
    assert failure(session.receive(Presence(ROOM, {}, 1), 61.0))[0] == "token_expired"
    [effect] = session.receive(Presence(ROOM, None, 1), 61.0)
    assert effect == (Presence(ROOM, None, 1),)


def test_what_an_authorizer_adds_comes_with_the_join(session):
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
def test_changes_that_are_no_object_are_malformed(data):
    command = decode('{"action":"presence","channel":"c","ref":5,"data":' + data + "}")
    assert isinstance(command, Malformed)
    assert command.code == "bad_request"


def test_a_channel_is_needed():
    assert decode('{"action":"presence"}').code == "bad_request"


def test_members_go_out_as_they_were_encoded():
    reply = Subscribed(ROOM, ChannelKind.PRESENCE, None, None, 3, MEMBERS)
    frame = json.loads(encode_reply(reply))
    assert (frame["event"], frame["channel"]) == ("eb:subscribed", ROOM)
    assert frame["data"] == {
        "kind": "presence", "offset": None, "epoch": None, "members": json.loads(MEMBERS), "ref": 3,
    }  # fmt: skip
    frame = json.loads(encode_reply(PresenceMembers(ROOM, MEMBERS, 1, "r")))
    assert (frame["event"], frame["channel"]) == ("eb:presence", ROOM)
    assert frame["data"] == {"members": json.loads(MEMBERS), "count": 1, "ref": "r"}


def test_a_channel_without_members_says_nothing_of_them():
    reply = Subscribed("general", ChannelKind.PUBLIC, None, None, None)
    assert "members" not in json.loads(encode_reply(reply))["data"]

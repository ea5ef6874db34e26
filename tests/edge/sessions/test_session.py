"""One connection's state machine: every transition, and no effect that was not due."""

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule as step

from eventbus.channels import ChannelKind, Pattern
from eventbus.drivers.base import Position
from eventbus.messages.message import MAX_EVENT_NAME
from eventbus_edge.access.rules import (
    ANYONE,
    AUTHENTICATED,
    Allowed,
    Ask,
    ChannelRules,
    Denied,
    Rule,
)
from eventbus_edge.access.tokens import Claims
from eventbus_edge.protocols.native import CLOSE_CODES
from eventbus_edge.protocols.vocabulary import (
    Acknowledged,
    AskStats,
    Authenticate,
    Authenticated,
    Connected,
    Failed,
    Malformed,
    Ping,
    Pong,
    Presence,
    ReadHistory,
    Subscribe,
    Subscribed,
    TokenExpiring,
    Unsubscribe,
    Unsubscribed,
    Whisper,
)
from eventbus_edge.sessions.effects import (
    Close,
    Consult,
    Heartbeat,
    Join,
    Leave,
    Send,
    Verify,
    WhisperOut,
)
from eventbus_edge.sessions.limits import SessionLimits
from eventbus_edge.sessions.session import Session

EXP = 2_000_000_000.0
AT = Position(3, "e")


def rules():
    made = ChannelRules()
    made.authorize("team.{team_id}")(lambda user, team_id: True)
    return made


def session(now=0.0, *, user=None, life=3600.0, **limits):
    made = Session("c1", rules(), SessionLimits(**limits), now)
    if user is not None:
        made.authenticate(claims(user), life, now)
    return made


def claims(user="7", **more):
    return Claims(sub=user, exp=EXP, **more)


def subscribe(channel, ref=None):
    return Subscribe(channel, None, 0, ref)


def join(it, channel, now=0.0, position=AT):
    """Subscribe to a channel that may be joined at once."""
    (effect,) = it.receive(subscribe(channel), now)
    assert isinstance(effect, Join)
    return it.joined(effect.command, effect.rule, position, recovered=None)


def code_of(effects):
    (effect,) = effects
    assert isinstance(effect, Send)
    assert isinstance(effect.reply, Failed)
    return effect.reply.code


# Greeting, ping, malformed


def test_a_new_connection_is_greeted_with_its_id_its_node_and_the_heartbeat():
    assert session(heartbeat_s=9.0).open("n1") == [Send(Connected("c1", "n1", 9.0, 50.0, 100))]


def test_a_ping_is_answered_with_its_data_and_ref():
    assert session().receive(Ping(None, 5), 0.0) == [Send(Pong(None, 5))]


def test_a_malformed_command_is_answered_and_changes_nothing():
    it = session()
    join(it, "general")
    answer = it.receive(Malformed("bad_request", "no", "r"), 0.0)
    assert answer == [Send(Failed("bad_request", "no", None, "r"))]
    assert list(it.channels) == ["general"]


# The pace


def test_frames_that_are_not_commands_are_counted_and_refused_with_one_error():
    it = session(actions_per_s=1.0, action_burst=10)
    assert it.count(6, 0.0) == (True, [])
    is_served, effects = it.count(6, 0.0)
    assert is_served
    assert code_of(effects) == "rate_limited"
    is_served, effects = it.count(6, 0.0)
    assert not is_served
    assert code_of(effects) == "rate_limited"
    assert code_of(it.receive(Ping(None, None), 0.0)) == "rate_limited"


def test_frames_that_are_not_commands_end_the_connection_when_they_are_too_many():
    it = session(actions_per_s=1.0, action_burst=10)
    _, (error, end) = it.count(10_000, 0.0)
    assert code_of([error]) == "rate_limited"
    assert CLOSE_CODES[end.reason] == 4008


def test_a_frame_of_any_kind_is_a_sign_of_life():
    it = session(heartbeat_s=10.0)
    it.count(1, 9.0)
    assert it.time.tick(18.0) == []


@pytest.mark.parametrize(
    ("command", "size", "cost"),
    [
        (Ping(None, None), 10, 1),
        (Ping(None, None), 16 * 1024, 2),
        (Ping(None, None), 64 * 1024, 5),
        (Authenticate("a.b.c", None), 500, 5),
        (AskStats(None), 20, 5),
    ],
)
def test_commands_cost_what_they_cost_the_node(command, size, cost):
    it = session(actions_per_s=1.0, action_burst=10)
    served = 0
    for _ in range(10):
        (effect,) = it.receive(command, 0.0, size)
        limited = isinstance(effect, Send) and getattr(effect.reply, "code", "") == "rate_limited"
        served += not limited
    assert served == 10 // cost


def test_a_token_that_has_all_channels_checked_again_costs_more():
    it = session(user="7", actions_per_s=1.0, action_burst=10)
    for channel in ("user.7", "general", "public", "announcements"):
        join(it, channel)
    assert not isinstance(it.receive(Authenticate("a.b.c", None), 0.0)[0], Send)
    it.verified(claims(name="new"), 60.0, None, 0.0)  # 4, 5 and 2 are 11
    assert code_of(it.receive(Ping(None, None), 1.9)) == "rate_limited"
    assert it.receive(Ping(None, None), 2.1) == [Send(Pong(None, None))]


def test_a_long_answer_costs_something_afterwards():
    it = session(actions_per_s=1.0, action_burst=10)
    it.answered(64 * 1024 - 1, 0.0)
    assert it.count(0, 0.0) == (False, [])
    it.answered(640 * 1024, 0.0)
    assert code_of(it.receive(Ping(None, None), 0.5)) == "rate_limited"
    assert it.receive(Ping(None, None), 1.5) == [Send(Pong(None, None))]


# Tokens


def test_a_token_is_verified_and_then_answered_with_its_end():
    it = session()
    assert it.receive(Authenticate("a.b.c", 1), 0.0) == [Verify("a.b.c", 1)]
    assert it.claims is None  # not before it has been verified
    assert it.verified(claims(), 60.0, 1, 0.0) == [Send(Authenticated("7", EXP, 1))]
    assert it.claims == claims()


def test_a_bad_token_leaves_the_connection_as_it_was():
    it = session(user="7")
    join(it, "user.7")
    answer = it.token_rejected("token_expired", "the token has expired", 2)
    assert answer == [Send(Failed("token_expired", "the token has expired", None, 2))]
    assert it.claims == claims()
    assert list(it.channels) == ["user.7"]


def test_the_third_bad_token_closes_with_4001_after_its_answer():
    it = session()
    for _ in range(2):
        assert code_of(it.token_rejected("unauthorized", "bad", None)) == "unauthorized"
    answer, close = it.token_rejected("unauthorized", "bad", None)
    assert answer.reply.code == "unauthorized"
    assert isinstance(close, Close)
    assert CLOSE_CODES[close.reason] == 4001


def test_a_good_token_between_bad_ones_makes_them_count_from_zero():
    it = session()
    for _ in range(2):
        it.token_rejected("unauthorized", "bad", None)
    it.verified(claims(), 60.0, None, 0.0)
    assert len(it.token_rejected("unauthorized", "bad", None)) == 1


def test_a_token_of_another_user_is_forbidden_and_the_first_user_stays():
    it = session(user="7")
    assert code_of(it.verified(claims("8"), 60.0, None, 0.0)) == "forbidden"
    assert it.claims.user_id == "7"


def test_a_token_of_the_same_user_is_a_refresh():
    it = session(user="7", life=20.0)
    newer = claims(roles=frozenset({"admin"}))
    assert it.verified(newer, 3600.0, None, 15.0) == [Send(Authenticated("7", EXP, None))]
    assert it.claims is newer
    it.time.received(40.0)
    assert it.time.tick(40.0) == []  # the first token's end no longer applies


@pytest.mark.parametrize(
    ("life", "notice"), [(3600.0, 3540.0), (120.0, 60.0), (119.0, 59.5), (10.0, 5.0)]
)
def test_the_end_of_a_token_is_announced_60_s_before_or_at_half_its_life(life, notice):
    it = session(user="7", life=life, heartbeat_s=1e6)
    assert it.time.deadline() == notice
    assert it.time.tick(notice - 0.01) == []
    (effect,) = it.time.tick(notice)
    assert effect == Send(TokenExpiring(EXP, round(life - notice, 1)))
    assert it.time.tick(notice + 0.01) == []  # once


def test_an_expired_token_holds_for_the_grace_time_for_old_subscriptions_only():
    it = session(user="7", life=10.0, token_grace_s=10.0, heartbeat_s=1e6)
    join(it, "chat.1")
    it.time.tick(5.0)
    assert it.time.deadline() == 20.0
    assert it.time.tick(10.0) == []
    assert it.time.tick(19.99) == []
    assert list(it.channels) == ["chat.1"]
    assert code_of(it.receive(subscribe("chat.2"), 10.0)) == "token_expired"
    assert code_of(it.receive(subscribe("general"), 10.0)) == "token_expired"
    assert code_of(it.receive(Whisper("chat.1", "e", b"1", None), 10.0)) == "token_expired"
    (close,) = it.time.tick(20.0)
    assert (type(close), CLOSE_CODES[close.reason]) == (Close, 4202)


def test_a_token_that_would_be_accepted_within_the_leeway_is_good_for_subscriptions():
    it = session(user="7", life=-2.0, token_leeway_s=5.0, token_grace_s=10.0, heartbeat_s=1e6)
    assert isinstance(it.receive(subscribe("chat.1"), 2.9)[0], Join)
    assert code_of(it.receive(subscribe("chat.2"), 3.0)) == "token_expired"
    assert it.time.tick(12.9) == []
    assert [CLOSE_CODES[effect.reason] for effect in it.time.tick(13.0)] == [4202]


def test_the_end_of_a_token_is_announced_by_its_exp_whatever_the_leeway():
    it = session(user="7", life=10.0, token_leeway_s=5.0, heartbeat_s=1e6)
    assert it.time.tick(5.0) == [Send(TokenExpiring(EXP, 5.0))]


def test_a_token_refreshed_within_the_grace_time_holds_on():
    it = session(user="7", life=10.0, heartbeat_s=1e6)
    it.verified(claims(), 100.0, None, 15.0)
    assert it.time.tick(20.0) == []
    assert isinstance(it.receive(subscribe("chat.2"), 20.0)[0], Join)


def test_a_token_that_comes_just_expired_is_not_announced_and_ends_by_its_grace():
    it = session(user="7", life=-2.0, token_grace_s=10.0, heartbeat_s=1e6)
    assert it.time.tick(0.0) == []
    assert [CLOSE_CODES[effect.reason] for effect in it.time.tick(8.0)] == [4202]


def test_after_a_pause_of_the_node_an_answer_to_its_heartbeat_has_its_whole_time_again():
    it = session(heartbeat_s=10.0)
    assert it.time.tick(10.0) == [Heartbeat()]
    it.time.resumed(60.0)
    assert it.time.tick(69.9) == []
    assert [CLOSE_CODES[effect.reason] for effect in it.time.tick(70.0)] == [4203]


def test_a_connection_without_the_token_that_is_required_is_closed_in_time():
    it = session(token_required=True, token_timeout_s=3.0, heartbeat_s=1e6)
    assert it.time.deadline() == 3.0
    assert it.time.tick(2.99) == []
    assert [CLOSE_CODES[effect.reason] for effect in it.time.tick(3.0)] == [4001]


def test_a_connection_that_gave_its_token_in_time_stays():
    it = session(token_required=True, token_timeout_s=3.0, heartbeat_s=1e6)
    it.verified(claims(), 3600.0, None, 2.0)
    assert it.time.tick(3.0) == []


def test_no_token_is_asked_for_where_none_is_required():
    assert session(token_timeout_s=3.0, heartbeat_s=1e6).time.tick(3.0) == []


# Subscriptions


def test_a_channel_that_is_allowed_is_joined_and_only_then_answered():
    it = session()
    (effect,) = it.receive(subscribe("general", 4), 0.0)
    assert isinstance(effect, Join)
    assert it.channels == {}
    answer = it.joined(effect.command, effect.rule, AT, recovered=None)
    assert answer == [Send(Subscribed("general", ChannelKind.PUBLIC, AT, None, 4))]
    assert list(it.channels) == ["general"]


@pytest.mark.parametrize(
    ("channel", "user", "code"),
    [
        ("chat.1", None, "unauthorized"),
        ("user.8", "7", "forbidden"),
        ("nobody.knows", "7", "forbidden"),
        ("admin.x", "7", "forbidden"),
        ("team.1", None, "unauthorized"),
    ],
)
def test_a_channel_that_is_denied_is_answered_and_not_joined(channel, user, code):
    it = session(user=user)
    (effect,) = it.receive(subscribe(channel, 4), 0.0)
    assert (effect.reply.code, effect.reply.channel, effect.reply.ref) == (code, channel, 4)
    assert it.channels == {}


BAD_CHANNELS = [
    "",
    "a b",
    "a..b",
    ".a",
    "a.",
    "*",
    "a.>",
    "a\r\nb",
    "a\x00",
    "a\x0b",
    "é",
    "x" * 201,
]


@pytest.mark.parametrize("channel", BAD_CHANNELS)
@pytest.mark.parametrize(
    "command",
    [
        subscribe,
        lambda name: Unsubscribe(name, None),
        lambda name: Whisper(name, "e", b"1", None),
        lambda name: Presence(name, None, None),
        lambda name: ReadHistory(name, None, 1, None),
    ],
    ids=["subscribe", "unsubscribe", "whisper", "presence", "history"],
)
def test_a_name_that_is_not_a_channel_is_refused_and_not_sent_back_as_a_channel(channel, command):
    (effect,) = session(user="7").receive(command(channel), 0.0)
    assert (effect.reply.code, effect.reply.channel) == ("invalid_channel", None)


def test_the_authorizer_is_asked_and_its_decision_applies():
    it = session(user="7")
    (effect,) = it.receive(subscribe("team.1", 1), 0.0)
    assert isinstance(effect, Consult)
    assert isinstance(effect.question, Ask)
    denied = it.consulted(effect.command, Denied("forbidden", "no"))
    assert denied == [Send(Failed("forbidden", "no", "team.1", 1))]
    allowed = it.consulted(effect.command, Allowed(effect.question.rule))
    assert allowed == [Join(effect.command, effect.question.rule)]
    assert it.channels == {}


def test_a_second_subscription_is_answered_again_and_is_not_duplicated():
    it = session()
    join(it, "general")
    assert join(it, "general") == [Send(Subscribed("general", ChannelKind.PUBLIC, AT, None, None))]
    assert list(it.channels) == ["general"]
    it.receive(Unsubscribe("general", None), 0.0)
    assert it.channels == {}


def test_a_second_subscription_does_not_ask_the_authorizer_again():
    it = session(user="7")
    (asked,) = it.receive(subscribe("team.1"), 0.0)
    it.joined(asked.command, asked.question.rule, AT, recovered=None)
    assert isinstance(it.receive(subscribe("team.1"), 0.0)[0], Join)


def test_a_connection_has_at_most_its_number_of_channels():
    it = session(user="7", max_channels=2)
    join(it, "chat.1")
    join(it, "chat.2")
    assert code_of(it.receive(subscribe("chat.3"), 0.0)) == "limit_exceeded"
    assert isinstance(it.receive(subscribe("chat.1"), 0.0)[0], Join)  # has it already
    it.receive(Unsubscribe("chat.2", None), 0.0)
    join(it, "chat.3")


def test_a_bus_that_cannot_be_listened_to_is_answered_and_leaves_no_subscription():
    it = session()
    (effect,) = it.receive(subscribe("general", 1), 0.0)
    answer = it.not_joined(effect.command, "no bus")
    assert answer == [Send(Failed("unavailable", "no bus", "general", 1))]
    assert it.channels == {}


def test_unsubscribing_leaves_first_and_then_answers():
    it = session()
    join(it, "general")
    effects = it.receive(Unsubscribe("general", 9), 0.0)
    assert effects == [Leave("general"), Send(Unsubscribed("general", 9))]
    assert code_of(it.receive(Unsubscribe("general", 9), 0.0)) == "not_subscribed"


# Client events


def whisper(it, event="typing", *, channel="chat.1", data=b"1", ref=None):
    return it.receive(Whisper(channel, event, data, ref), 0.0)


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("typing", "client-typing"),
        ("client-typing", "client-typing"),
        ("client", "client-client"),
        ("Ping", "client-Ping"),
        ("x" * (MAX_EVENT_NAME - 7), "client-" + "x" * (MAX_EVENT_NAME - 7)),
    ],
)
def test_a_whisper_goes_out_with_its_prefix_once_and_its_sender(event, name):
    it = session(user="7")
    join(it, "chat.1")
    (effect,) = whisper(it, event)
    assert isinstance(effect, WhisperOut)
    assert (effect.event, effect.user_id, effect.command.data) == (name, "7", b"1")


@pytest.mark.parametrize(
    "event",
    [
        "",
        "pong",
        "eb:connected",
        "eb:",
        "pusher:error",
        "pusher_internal:x",
        "a\r\nb",
        "a\x00",
        "x" * (MAX_EVENT_NAME + 1),
        # With its prefix no event name any more: it would be put in quarantine on arrival.
        "x" * (MAX_EVENT_NAME - 6),
        "client-",
    ],
)
def test_a_whisper_with_a_reserved_or_impossible_name_is_a_bad_request(event):
    it = session(user="7")
    join(it, "chat.1")
    assert code_of(whisper(it, event)) == "bad_request"


def test_a_whisper_may_be_as_large_as_the_limit_and_no_larger():
    it = session(user="7", max_whisper_bytes=10)
    join(it, "chat.1")
    assert isinstance(whisper(it, data=b"1" * 10)[0], WhisperOut)
    assert code_of(whisper(it, data=b"1" * 11)) == "payload_too_large"


def test_a_whisper_to_a_channel_that_was_not_joined_is_refused():
    assert code_of(whisper(session(user="7"))) == "not_subscribed"


def test_a_whisper_is_refused_where_the_rule_does_not_allow_it():
    it = session(user="7")
    join(it, "general")
    assert code_of(whisper(it, channel="general")) == "forbidden"


def test_a_whisper_needs_a_token_even_where_anyone_may_listen():
    open_to_all = Rule(Pattern("lobby"), ChannelKind.PUBLIC, ANYONE, AUTHENTICATED)
    it = Session("c1", ChannelRules([open_to_all]), SessionLimits(), 0.0)
    join(it, "lobby")
    assert code_of(whisper(it, channel="lobby")) == "unauthorized"


def test_a_whisper_is_acknowledged_only_when_it_has_a_ref():
    it = session(user="7")
    join(it, "chat.1")
    (silent,) = whisper(it)
    assert it.whispered(silent.command, None) == []
    (asked,) = whisper(it, ref=0)
    assert it.whispered(asked.command, None) == [Send(Acknowledged("chat.1", 0))]
    failed = it.whispered(asked.command, "no bus")
    assert failed == [Send(Failed("unavailable", "no bus", "chat.1", 0))]


# Heartbeat


def test_a_silent_client_is_asked_and_then_closed_with_4203():
    it = session(heartbeat_s=25.0)
    assert it.time.deadline() == 25.0
    assert it.time.tick(24.9) == []
    assert it.time.tick(25.0) == [Heartbeat()]
    assert it.time.deadline() == 50.0
    assert it.time.tick(49.9) == []  # asked once, not at every tick
    assert [CLOSE_CODES[effect.reason] for effect in it.time.tick(50.0)] == [4203]


@pytest.mark.parametrize(
    "sign",
    [
        lambda it: it.time.received(30.0),
        lambda it: it.receive(Ping(None, None), 30.0),
        lambda it: it.receive(Malformed("bad_request", "no", None), 30.0),
    ],
    ids=["a pong", "a command", "nonsense"],
)
def test_any_frame_answers_the_heartbeat(sign):
    it = session(heartbeat_s=25.0)
    it.time.tick(25.0)
    sign(it)
    assert it.time.deadline() == 55.0
    assert it.time.tick(50.0) == []
    assert it.time.tick(55.0) == [Heartbeat()]


def test_the_notice_of_a_token_does_not_keep_the_heartbeat_from_being_asked():
    it = session(user="7", life=50.0, heartbeat_s=25.0)
    assert it.time.tick(25.0) == [Send(TokenExpiring(EXP, 25.0)), Heartbeat()]


# All of it, in any order


class AnyOrder(RuleBasedStateMachine):
    """A session among arbitrary commands and times does what a naive model of it says."""

    limits = SessionLimits(max_channels=2, heartbeat_s=20.0, token_grace_s=5.0)

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.session = Session("c1", rules(), self.limits, 0.0)
        self.joined = set()
        self.user = None
        self.expires = None
        self.last_seen = 0.0
        self.asked_at = None
        self.closed = False

    def command(self, command):
        self.last_seen, self.asked_at = self.now, None
        return self.session.receive(command, self.now)

    @step(channel=st.sampled_from(["general", "chat.1", "chat.2", "user.7", "user.8", "a b"]))
    def subscribe(self, channel):
        (effect,) = self.command(subscribe(channel))
        allowed = {"general"} | ({"chat.1", "chat.2", f"user.{self.user}"} if self.user else set())
        expired = self.expires is not None and self.now >= self.expires
        full = len(self.joined) >= 2 and channel not in self.joined
        if channel in self.joined or (channel in allowed and not expired and not full):
            assert isinstance(effect, Join)
            self.session.joined(effect.command, effect.rule, AT, recovered=None)
            self.joined.add(channel)
        else:
            assert isinstance(effect.reply, Failed)

    @step(channel=st.sampled_from(["general", "chat.1", "user.8"]))
    def unsubscribe(self, channel):
        effects = self.command(Unsubscribe(channel, None))
        assert (effects[0] == Leave(channel)) == (channel in self.joined)
        self.joined.discard(channel)

    @step(user=st.sampled_from(["7", "8"]), life=st.integers(1, 100))
    def authenticate(self, user, life):
        (effect,) = self.session.verified(claims(user), float(life), None, self.now)
        if self.user in {None, user}:
            assert isinstance(effect.reply, Authenticated)
            self.user, self.expires = user, self.now + life
        else:
            assert effect.reply.code == "forbidden"

    @step(channel=st.sampled_from(["general", "chat.1", "user.7"]))
    def whisper(self, channel):
        (effect,) = self.command(Whisper(channel, "e", b"1", None))
        expired = self.expires is not None and self.now >= self.expires
        due = channel == "chat.1" and channel in self.joined and not expired
        assert isinstance(effect, WhisperOut) == due

    @step()
    def pong(self):
        self.last_seen, self.asked_at = self.now, None
        self.session.time.received(self.now)

    @step(seconds=st.floats(0.1, 30.0))
    def pass_time(self, seconds):
        """To the next deadline at most, as the node's clock does."""
        if self.closed:
            return
        self.now = max(self.now, min(self.now + seconds, self.session.time.deadline()))
        effects = self.session.time.tick(self.now)
        codes = [CLOSE_CODES[effect.reason] for effect in effects if isinstance(effect, Close)]
        if self.expires is not None and self.now >= self.expires + 5.0:
            assert codes == [4202]
        elif self.asked_at is not None and self.now >= self.asked_at + 20.0:
            assert codes == [4203]
        else:
            assert codes == []
            asks = self.asked_at is None and self.now >= self.last_seen + 20.0
            assert (Heartbeat() in effects) == asks
            if asks:
                self.asked_at = self.now
        self.closed = bool(codes)

    @invariant()
    def channels_match_the_replies(self):
        assert set(self.session.channels) == self.joined

    @invariant()
    def looks_ahead(self):
        assert self.closed or self.session.time.deadline() >= self.now


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_in_any_order_a_session_does_what_its_model_says = AnyOrder.TestCase

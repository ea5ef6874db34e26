"""The grammar of channels, patterns and subjects."""

import asyncio
import enum
import itertools
import re
import string
import uuid

import nats
import pytest
from hypothesis import example, given, strategies as st

from eventbus.broadcasting import Broadcast, broadcast
from eventbus.channels import (
    MAX_CHANNEL_BYTES,
    Pattern,
    Subjects,
    decode_token,
    encode_token,
    user_channel,
    validate_channel,
)
from eventbus.errors import ConfigError, InvalidChannel, InvalidPattern

TOKEN_CHARS = string.ascii_letters + string.digits + "_=@,;-"
tokens = st.text(TOKEN_CHARS, min_size=1, max_size=12)
channels = st.lists(tokens, min_size=1, max_size=6).map(".".join)
# Short enough for a channel when every character is escaped.
ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=14)
namespaces = st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=32)
# Text that is nearly a channel: its letters, and what the traps are made of.
hostile = st.text(st.sampled_from([*"ab.*>{} \t\r\n/\\é", "\0", "\x0b", "\x0c", "\x7f", "\ud800"]))

# What brokers and clients do with each: nats-facts, "Subjects: what the client lets through".
TRAPS = {
    "empty": "",
    "space": "a b",
    "tab": "a\tb",
    "carriage_return": "a\rb",
    "line_feed": "a\nb",
    "final_line_feed": "general\n",
    "empty_token": "a..b",
    "leading_dot": ".a",
    "trailing_dot": "a.",
    "only_a_dot": ".",
    "star": "a.*",
    "rest": "a.>",
    "star_in_token": "a*b",
    "nul": "a\0b",
    "delete": "a\x7fb",
    "vertical_tab": "a\x0bb",
    "form_feed": "a\x0cb",
    "unicode_letter": "caf\xe9",
    "unicode_digit": "a.\u0663",
    "lone_surrogate": "a\ud800",
    "byte_order_mark": "\ufeffa",
    "system_subject": "$SYS.REQ",
    "slash": "a/b",
    "colon": "a:b",
    "too_long": "a" * (MAX_CHANNEL_BYTES + 1),
}


@pytest.mark.parametrize("name", TRAPS.values(), ids=TRAPS.keys())
def test_name_that_a_broker_would_mishandle_is_refused_everywhere(name):
    subjects = Subjects()
    makers = (
        validate_channel,
        subjects.event,
        subjects.live,
        subjects.quarantine,
        subjects.control,
        subjects.queue,
    )
    for make in makers:
        with pytest.raises(InvalidChannel, match="allowed: dot-separated tokens"):
            make(name)
    for root in ("live", "event", "quarantine"):
        with pytest.raises(InvalidChannel):
            subjects.channel_of(f"eb.{root}.{name}")


@pytest.mark.parametrize("value", [None, 7, b"general", ["general"], True], ids=repr)
def test_value_that_is_not_a_string_is_not_a_channel(value):
    with pytest.raises(InvalidChannel, match=f"a value of type {type(value).__name__}"):
        validate_channel(value)


def test_longest_name_is_accepted():
    assert validate_channel("a" * MAX_CHANNEL_BYTES)


def test_error_shows_a_long_name_shortened():
    with pytest.raises(InvalidChannel) as caught:
        validate_channel("\n" * 100_000)
    assert len(str(caught.value)) < 300


@given(channels, namespaces)
def test_channel_comes_back_from_each_of_its_subjects(channel, namespace):
    subjects = Subjects(namespace)
    for subject in (subjects.event, subjects.live, subjects.quarantine):
        assert subjects.channel_of(subject(channel)) == channel
    assert subjects.live_of(subjects.event(channel)) == subjects.live(channel)
    assert subjects.live_of(subjects.live(channel)) is None


@given(st.one_of(channels, hostile, st.text()))
@example("a\n")
def test_accepted_name_never_yields_a_subject_that_harms(name):
    try:
        subject = Subjects().event(name)
    except InvalidChannel:
        return
    assert re.fullmatch(rb"[A-Za-z0-9_=@,;.~-]{1,209}", subject.encode())
    assert all(subject.split("."))


@given(channels, channels)
def test_different_channels_never_share_a_subject(one, other):
    subjects = Subjects()
    assert (subjects.event(one) == subjects.event(other)) == (one == other)
    assert subjects.event(one) != subjects.live(other)


def test_subjects_of_another_namespace_or_root_are_not_channels():
    subjects = Subjects("eb")
    for subject in ("other.live.general", "eb.control.x", "eb.livegeneral", "eb.live.", "live.a"):
        with pytest.raises(InvalidChannel):
            subjects.channel_of(subject)


@pytest.mark.parametrize("namespace", ["", "a.b", "A", "a b", "*", ">", "é", "a" * 33, "a\n"])
def test_namespace_that_could_lie_inside_anothers_is_refused(namespace):
    with pytest.raises(ConfigError, match="BROADCAST_CHANNELS_PREFIX") as caught:
        Subjects(namespace)
    assert caught.value.variable == "BROADCAST_CHANNELS_PREFIX"


@pytest.mark.parametrize(
    ("pattern", "channel", "captured"),
    [
        ("general", "general", {}),
        ("general", "General", None),
        ("general", "general.x", None),
        ("team.{team_id}", "team.7", {"team_id": "7"}),
        ("team.{team_id}", "team", None),
        ("team.{team_id}", "team.7.8", None),
        ("team.{team_id}", "teams.7", None),
        ("{a}.{b}", "x.y", {"a": "x", "b": "y"}),
        ("*", "x", {}),
        ("*", "x.y", None),
        ("a.*.c", "a.b.c", {}),
        ("a.*.c", "a.b.d", None),
        (">", "x", {}),
        (">", "x.y.z", {}),
        ("orders.>", "orders.eu.42", {}),
        ("orders.>", "orders", None),
        ("org.{id}.>", "org.5.a.b", {"id": "5"}),
        ("org.{id}.>", "org.5", None),
    ],
)
def test_pattern_matches_and_captures(pattern, channel, captured):
    assert Pattern(pattern).match(channel) == captured


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ">.a",
        "a>",
        "a*",
        "**",
        "{}",
        "{1a}",
        "{a b}",
        "{a}x",
        "x{a}",
        "{a",
        "a}",
        "{a}.{a}",
        "a b",
        "a\n",
        "é",
        "{é}",
        "a" * 301,
        None,
        5,
    ],
)
def test_bad_pattern_is_refused_with_what_is_allowed(text):
    with pytest.raises(
        InvalidPattern, match=r"is not a channel pattern|uses a token name more than once"
    ):
        Pattern(text)


def _matches_by_definition(pattern, channel):
    """The semantics of NATS wildcards, as a regular expression."""
    parts = [
        ".+" if token == ">" else r"[^.]+" if token == "*" else re.escape(token)
        for token in pattern.split(".")
    ]
    return re.fullmatch(r"\.".join(parts), channel) is not None


def _enumerate(alphabet, longest):
    for length in range(1, longest + 1):
        for parts in itertools.product(alphabet, repeat=length):
            yield ".".join(parts)


# Tokens a and b stand in patterns; c does not, and so represents every other token. A pattern of
# up to three tokens is distinguished from another by channels of up to four.
CHANNELS = list(_enumerate("abc", 4))
PATTERNS = [p for p in _enumerate(["a", "b", "*", ">"], 3) if ">" not in p[:-1]]


def test_matching_agrees_with_its_definition_over_all_short_patterns():
    for text in PATTERNS:
        pattern = Pattern(text)
        for channel in CHANNELS:
            matched = pattern.match(channel) is not None
            assert matched == _matches_by_definition(text, channel), (text, channel)


def test_contains_agrees_with_enumeration_over_all_short_patterns():
    matched = {
        text: {channel for channel in CHANNELS if _matches_by_definition(text, channel)}
        for text in PATTERNS
    }
    for one, other in itertools.product(PATTERNS, repeat=2):
        expected = matched[one] >= matched[other]
        assert Pattern(one).contains(Pattern(other)) == expected, (one, other)


@given(st.data())
def test_filled_template_is_matched_by_it_and_captures_the_values(data):
    names = data.draw(
        st.lists(st.sampled_from(["a", "b", "user_id", "_x"]), unique=True, min_size=1)
    )
    values = {name: data.draw(ids) for name in names}
    text = ".".join(
        data.draw(st.permutations([f"{{{name}}}" for name in names] + data.draw(st.lists(tokens))))
    )
    pattern = Pattern(text[:300]) if len(text) <= 300 else Pattern("{" + names[0] + "}")
    try:
        channel = pattern.fill(values)
    except InvalidChannel:
        encoded = sum(len(encode_token(value)) for value in values.values())
        assert len(text) + encoded > 100  # only the whole name's length can be wrong
        return
    assert pattern.match(channel) == {name: values[name] for name in pattern.names}


class Level(enum.Enum):
    HIGH = "high.est"
    NONE = None


@pytest.mark.parametrize(
    "value",
    ["", "\ud800", "a" * 201, "é" * 40, None, True, False, 1.5, float("nan"), b"a", [1], object(),
     Level.NONE, Level, 10**5000],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_value_that_cannot_be_a_token_is_refused_wherever_a_channel_is_made_of_it(value):
    makers = (
        encode_token,
        user_channel,
        lambda value: Pattern("orders.{order_id}").fill({"order_id": value}),
        broadcast().to_user,
        broadcast().to_team,
        broadcast().to_organization,
        Broadcast.to_user,
    )
    for make in makers:
        with pytest.raises(InvalidChannel) as caught:
            make(value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("42", "42"),
        (42, "42"),
        (-1, "-1"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Level.HIGH, "high~2eest"),
        ("auth0|507f", "auth0~7c507f"),
        (-7, "-7"),
        (10**18, "1000000000000000000"),
        (10**190, "1" + "0" * 190),
        ("ada@example.com", "ada@example~2ecom"),
        ("ada+news@example.com", "ada~2bnews@example~2ecom"),
        ("a b", "a~20b"),
        ("~", "~7e"),
        ("a~2eb", "a~7e2eb"),
        ("Zoë", "Zo~c3~ab"),
        ("😀", "~f0~9f~98~80"),
        ("\n\0", "~0a~00"),
        ("*", "~2a"),
        (">", "~3e"),
    ],
)
def test_id_is_escaped_as_documented(value, token):
    assert encode_token(value) == token
    plain = value.value if isinstance(value, enum.Enum) else value
    assert decode_token(token) == str(plain)
    assert user_channel(value) == f"user.{token}"
    assert Pattern("user.{user_id}").match(f"user.{token}") == {"user_id": str(plain)}


@given(st.one_of(ids, tokens))
def test_id_comes_back_from_its_token_which_is_one_token_of_a_channel(value):
    token = encode_token(value)
    assert decode_token(token) == value
    assert validate_channel(token) == token
    assert "." not in token


@given(tokens)
def test_id_that_needs_no_escapes_is_its_own_token(value):
    assert encode_token(value) == value


@given(st.one_of(ids, st.text(st.sampled_from("~27e.aé|"), min_size=1, max_size=8)), ids)
def test_two_ids_never_share_a_channel(one, other):
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(st.text(st.sampled_from("~0123456789abcdefAF.xé"), max_size=12))
@example("~61")
@example("~ff")
@example("~C3~AB")
@example("~c3")
@example("~2")
@example("a~")
@example("~ed~a0~80")
def test_channel_has_one_spelling(name):
    try:
        validate_channel(name)
    except InvalidChannel:
        with pytest.raises(InvalidPattern):
            Pattern(f"{name}.>")
        return
    assert ".".join(encode_token(decode_token(token)) for token in name.split(".")) == name


def test_filling_without_a_value_is_a_key_error():
    with pytest.raises(KeyError, match="order_id"):
        Pattern("orders.{order_id}").fill({})


def test_patterns_equal_by_their_text():
    assert Pattern("a.{x}") == Pattern("a.{x}")
    assert len({Pattern("a.{x}"), Pattern("a.{x}"), Pattern("a.*")}) == 2
    assert Pattern("a.{x}").filter == "a.*"
    assert Pattern("a.b").is_exact
    assert not Pattern("a.{x}").is_exact
    assert not Pattern("a.>").is_exact


async def test_matching_agrees_with_what_a_nats_server_delivers(nats_server, namespace):
    patterns = [*PATTERNS, "team.{team_id}", "{a}.{b}", "a.{x}.>"]
    channels = [*CHANNELS, "team.7", "team.7.8", "team"]
    subjects = Subjects(namespace)
    delivered = {text: set() for text in patterns}
    # One connection, whose commands the server takes in order: a flush would not prove that the
    # subscriptions are in place (it sends its PING before what is pending).
    client = await nats.connect(nats_server.url)
    ended = asyncio.Event()
    try:
        for text in patterns:

            async def receive(message, got=delivered[text]):
                got.add(subjects.channel_of(message.subject))

            await client.subscribe(subjects.live_filter(Pattern(text)), cb=receive)

        async def end(message):
            ended.set()

        await client.subscribe(f"{namespace}.end", cb=end)
        for channel in channels:
            await client.publish(subjects.live(channel), b"")
        await client.publish(f"{namespace}.end", b"")
        async with asyncio.timeout(20):
            await ended.wait()
        # The last message has come, so that all have; each callback runs in a task of its own.
        await client.drain()
    finally:
        await client.close()
    for text in patterns:
        expected = {channel for channel in channels if Pattern(text).match(channel) is not None}
        assert delivered[text] == expected, text


async def test_names_that_are_refused_are_mishandled_by_nats(nats_server, namespace):
    """Why we check the grammar: the server accepts these and delivers them to nobody."""
    client = await nats.connect(nats_server.url)
    try:
        got = asyncio.Queue()
        subscription = await client.subscribe(f"{namespace}.>")
        for channel in ("a..b", ".a", "a."):
            await client.publish(f"{namespace}.live.{channel}", b"lost")
        await client.publish(f"{namespace}.live.*", b"taken as it is")
        await client.publish(f"{namespace}.live.a", b"last")
        async with asyncio.timeout(30):
            while (message := await subscription.next_msg(timeout=30)).data != b"last":
                got.put_nowait(message.subject)
    finally:
        await client.close()
    assert [got.get_nowait() for _ in range(got.qsize())] == [f"{namespace}.live.*"]

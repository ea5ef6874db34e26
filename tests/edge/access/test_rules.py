"""Channel rules: the default table, the order of precedence, grants, and what is never open."""

import pytest

from eventbus.channels import ChannelKind, Pattern, encode_token, user_channel
from eventbus.errors import InvalidChannel, InvalidPattern
from eventbus_edge.access.rules import (
    ANYONE,
    AUTHENTICATED,
    DEFAULT_RULES,
    NOBODY,
    Allowed,
    Ask,
    AuthorizerError,
    ChannelRules,
    Denied,
    Rule,
    Who,
    channels,
)
from eventbus_edge.access.tokens import Claims

PUBLIC, PRIVATE, PRESENCE = ChannelKind.PUBLIC, ChannelKind.PRIVATE, ChannelKind.PRESENCE


def user(sub="42", *, roles=(), permissions=(), grants=()):
    return Claims(
        sub=sub,
        exp=2e9,
        roles=frozenset(roles),
        permissions=frozenset(permissions),
        channels=tuple(grants),
    )


def rule(pattern, kind=PRIVATE, join=None, whisper=NOBODY):
    return Rule(Pattern(pattern), kind, join, whisper)


def outcome(decision):
    match decision:
        case Allowed():
            return "allowed"
        case Denied(code):
            return code
        case Ask():
            return "ask"


DEFAULTS = [
    # channel, kind, without a token, any user, whispers of any user
    ("general", PUBLIC, "allowed", "allowed", "forbidden"),
    ("public", PUBLIC, "allowed", "allowed", "forbidden"),
    ("announcements", PUBLIC, "allowed", "allowed", "forbidden"),
    ("general.x", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("General", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("notifications", PRIVATE, "unauthorized", "allowed", "forbidden"),
    ("system", PRIVATE, "unauthorized", "allowed", "forbidden"),
    ("system.x", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("user.42", PRIVATE, "unauthorized", "allowed", "forbidden"),
    ("user.43", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("user.4", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("user.42.x", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("user", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("admin", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("admin.dashboard", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("team.7", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("org.7", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("chat.lobby", PRIVATE, "unauthorized", "allowed", "allowed"),
    ("chat.lobby.x", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("presence.lobby", PRESENCE, "unauthorized", "allowed", "allowed"),
    ("presence.chat.42", PRESENCE, "unauthorized", "allowed", "allowed"),
    ("presence", PRIVATE, "unauthorized", "forbidden", "forbidden"),
    ("orders.1", PRIVATE, "unauthorized", "forbidden", "forbidden"),
]


@pytest.mark.parametrize(("channel", "kind", "nobody", "anybody", "whisper"), DEFAULTS)
def test_default_rules_are_those_of_the_protocol(channel, kind, nobody, anybody, whisper):
    rules = ChannelRules()
    assert rules.find(channel).kind is kind
    assert outcome(rules.decide(channel, None)) == nobody
    assert outcome(rules.decide(channel, user())) == anybody
    assert outcome(rules.decide_whisper(channel, user())) == whisper
    assert outcome(rules.decide_whisper(channel, None)) == (
        "unauthorized" if whisper == "allowed" else "forbidden"
    )


@pytest.mark.parametrize("channel", ["admin", "admin.dashboard", "admin.a.b"])
@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (user(roles=["admin"]), "allowed"),
        (user(permissions=["admin_channels"]), "allowed"),
        (user(roles=["admin_channels"]), "forbidden"),
        (user(permissions=["admin"]), "forbidden"),
        (user(roles=["Admin", "administrator"]), "forbidden"),
        (user(sub="admin"), "forbidden"),
    ],
)
def test_admin_channels_want_the_role_admin_or_the_permission(channel, claims, expected):
    assert outcome(ChannelRules().decide(channel, claims)) == expected


@pytest.mark.parametrize("sub", ["a.b", "*", ">", "{user_id}", "a b", "é", "4 2", "user_id", "\0"])
def test_user_id_with_other_characters_owns_its_escaped_channel_and_no_other(sub):
    rules = ChannelRules()
    for channel in ("user.a", "user.a.b", "user.b", "user.42", "user.4", "user.2"):
        assert outcome(rules.decide(channel, user(sub))) == "forbidden"
    own = user_channel(sub)
    assert outcome(rules.decide(own, user(sub))) == "allowed"
    for other in (own.removeprefix("user."), "a", sub + "~"):
        assert outcome(rules.decide(own, user(other))) == (
            "allowed" if other == sub else "forbidden"
        )


def test_id_that_is_too_long_for_a_channel_owns_none():
    longest = "é" * 32
    assert outcome(ChannelRules().decide(user_channel(longest), user(longest))) == "allowed"
    with pytest.raises(InvalidChannel):
        user_channel(longest + "éé")


def test_authorizer_and_own_rule_get_the_value_that_was_escaped():
    rules = ChannelRules([rule("shop.{owner}.{n}", join=Who(user="owner"))])
    rules.authorize("team.{team_id}")(lambda user, team_id: True)
    asked = rules.decide(f"team.{encode_token('a.b|ü')}", user())
    assert isinstance(asked, Ask)
    assert asked.captures == {"team_id": "a.b|ü"}
    for sub, expected in (("a.b", "allowed"), ("a~2eb", "forbidden")):
        assert outcome(rules.decide(f"shop.{encode_token('a.b')}.7", user(sub))) == expected


def test_grant_may_name_an_escaped_channel():
    own = user_channel("auth0|7")
    assert outcome(ChannelRules().decide(own, user("7", grants=[own]))) == "allowed"
    assert outcome(ChannelRules().decide("user.auth0~7c8", user("7", grants=[own]))) == "forbidden"


@pytest.mark.parametrize(
    ("grant", "channel", "expected"),
    [
        ("team.7", "team.7", "allowed"),
        ("team.*", "team.7", "allowed"),
        ("team.7", "team.8", "forbidden"),
        ("team.*", "team.7.x", "forbidden"),
        ("orders.>", "orders.eu.1", "allowed"),
        ("orders.>", "orders", "forbidden"),
        ("presence.>", "orders.1", "forbidden"),
        ("admin.>", "admin.dashboard", "allowed"),
        ("user.43", "user.43", "allowed"),
        (">", "anything.at.all", "allowed"),
    ],
)
def test_grants_let_in_beyond_the_rules_and_only_where_they_match(grant, channel, expected):
    assert outcome(ChannelRules().decide(channel, user(grants=[grant]))) == expected


def test_grant_to_join_does_not_allow_whispers():
    assert outcome(ChannelRules().decide_whisper("team.7", user(grants=[">"]))) == "forbidden"


def test_refusal_names_the_channel_and_what_is_missing():
    rules = ChannelRules()
    assert rules.decide("team.7", None) == Denied("unauthorized", "'team.7' needs a token")
    assert "'team.7'" in rules.decide("team.7", user()).message


def test_own_rules_come_before_the_defaults_in_their_order():
    rules = ChannelRules([rule("general", join=AUTHENTICATED)])
    rules.add(rule("general", PUBLIC, ANYONE), rule("orders.*", PRESENCE, AUTHENTICATED, ANYONE))
    assert outcome(rules.decide("general", None)) == "unauthorized"
    assert rules.find("orders.1").kind is PRESENCE
    assert outcome(rules.decide_whisper("orders.1", user())) == "allowed"
    assert outcome(rules.decide("public", None)) == "allowed"


def test_refusal_says_whether_there_is_a_rule_at_all():
    rules, claims = ChannelRules(), user("7")
    denied = rules.decide("orders.1", claims)
    assert isinstance(denied, Denied)
    assert denied.message == (
        "no rule matches 'orders.1', and the token does not allow joining 'orders.1'"
    )
    denied = rules.decide("user.8", claims)
    assert isinstance(denied, Denied)
    assert denied.message == "the token does not allow joining 'user.8'"


def test_own_rule_can_close_a_channel_but_not_to_a_grant():
    rules = ChannelRules([rule("chat.>", join=NOBODY)])
    assert outcome(rules.decide("chat.lobby", user())) == "forbidden"
    assert outcome(rules.decide("chat.lobby", user(grants=["chat.*"]))) == "allowed"


def test_whisper_needs_a_token_even_where_anyone_may():
    rules = ChannelRules([rule("open", PUBLIC, ANYONE, ANYONE)])
    assert outcome(rules.decide_whisper("open", None)) == "unauthorized"
    assert outcome(rules.decide_whisper("open", user())) == "allowed"


def test_whispers_can_be_kept_to_the_user_of_the_channel():
    rules = ChannelRules([rule("desk.{owner}", PRIVATE, AUTHENTICATED, Who(user="owner"))])
    assert outcome(rules.decide_whisper("desk.42", user())) == "allowed"
    assert outcome(rules.decide_whisper("desk.43", user())) == "forbidden"


def test_authorizer_is_asked_with_what_its_pattern_captured():
    rules = ChannelRules()

    @rules.authorize("team.{team}")
    def in_team(user, team):
        raise AssertionError("the pure ring never calls it")

    question = rules.decide("team.7", user())
    assert isinstance(question, Ask)
    assert question.authorizer.check is in_team
    assert dict(question.captures) == {"team": "7"}
    assert (question.channel, question.rule.kind) == ("team.7", PRIVATE)
    assert outcome(rules.decide("team.7", None)) == "unauthorized"
    assert outcome(rules.decide("team.7", user(grants=["team.7"]))) == "allowed"
    assert outcome(rules.decide("org.7", user())) == "forbidden"


@pytest.mark.parametrize(
    ("pattern", "channel", "kind", "whisper"),
    [
        ("orders.{id}", "orders.1", PRIVATE, "forbidden"),
        ("chat.{room}", "chat.lobby", PRIVATE, "allowed"),
        ("presence.team.{id}", "presence.team.7", PRESENCE, "allowed"),
        ("general", "general", PRIVATE, "forbidden"),
        (">", "public", PRIVATE, "forbidden"),
        ("user.{id}", "user.42", PRIVATE, "forbidden"),
    ],
)
def test_authorizer_replaces_the_join_of_a_default_rule_and_keeps_its_kind(
    pattern, channel, kind, whisper
):
    rules = ChannelRules()
    rules.authorize(pattern)(lambda user, **captures: True)
    assert rules.find(channel).kind is kind
    assert outcome(rules.decide(channel, None)) == "unauthorized"
    assert outcome(rules.decide(channel, user())) == "ask"
    assert outcome(rules.decide_whisper(channel, user())) == whisper


def test_own_rule_that_says_who_may_join_is_final():
    rules = ChannelRules([rule("team.lobby", PUBLIC, ANYONE)])
    rules.authorize("team.{team_id}")(lambda user, team_id: False)
    assert outcome(rules.decide("team.lobby", None)) == "allowed"
    assert outcome(rules.decide("team.7", user())) == "ask"


def test_own_rule_without_join_leaves_it_to_the_authorizer_and_gives_the_kind():
    rules = ChannelRules([rule("team.{id}", PRESENCE, None, AUTHENTICATED)])
    assert outcome(rules.decide("team.7", user())) == "forbidden"
    rules.authorize("team.{team_id}")(lambda user, team_id: True)
    question = rules.decide("team.7", user())
    assert isinstance(question, Ask)
    assert question.rule.kind is PRESENCE
    assert dict(question.captures) == {"team_id": "7"}
    assert outcome(rules.decide_whisper("team.7", user())) == "allowed"


def test_first_registered_of_overlapping_authorizers_is_asked():
    rules = ChannelRules()
    first = rules.authorize("a.b")(lambda user: True)
    second = rules.authorize("a.*")(lambda user: True)
    assert rules.decide("a.b", user()).authorizer.check is first
    assert rules.decide("a.c", user()).authorizer.check is second


@pytest.mark.parametrize("again", ["team.{team_id}", "team.{other}", "team.*"])
def test_second_authorizer_for_the_same_channels_is_refused(again):
    rules = ChannelRules()

    @rules.authorize("team.{team_id}")
    def in_team(user, team_id):
        return True

    with pytest.raises(AuthorizerError, match=r"already: .*in_team"):
        rules.authorize(again)(lambda user, **captures: True)


async def with_default(user, team_id, *, extra=1):
    return True


async def with_channel(user, team_id, channel):
    return True


async def with_captures(user, **captures):
    return True


async def without_capture(user):
    return True


async def with_other_name(user, team):
    return True


async def with_one_too_many(user, team_id, role):
    return True


async def without_user(*, team_id):
    return True


@pytest.mark.parametrize("check", [with_default, with_channel, with_captures])
def test_authorizer_that_takes_the_names_of_its_pattern_is_registered(check):
    rules = ChannelRules()
    assert rules.authorize("team.{team_id}")(check) is check
    assert rules.decide("team.7", user()).authorizer.takes_channel is (check is with_channel)


@pytest.mark.parametrize(
    "check", [without_capture, with_other_name, with_one_too_many, without_user]
)
def test_authorizer_that_cannot_be_called_is_refused_where_it_is_written(check):
    with pytest.raises(AuthorizerError) as caught:
        ChannelRules().authorize("team.{team_id}")(check)
    for part in (check.__name__, "'team.{team_id}'", "(user, team_id)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("check", [None, "in_team", 7])
def test_authorizer_that_is_not_a_function_is_refused(check):
    with pytest.raises(AuthorizerError, match="cannot be an authorizer"):
        ChannelRules().authorize("team.{team_id}")(check)


def test_name_that_collides_with_the_first_parameter_is_refused():
    with pytest.raises(AuthorizerError, match="multiple values"):
        ChannelRules().authorize("x.{user}")(lambda user: True)


@pytest.mark.parametrize("pattern", ["", "team..x", "team.{", "a.>.b", "a b"])
def test_authorizer_for_no_pattern_is_refused(pattern):
    with pytest.raises(InvalidPattern):
        ChannelRules().authorize(pattern)


@pytest.mark.parametrize(
    ("kind", "join", "words"),
    [
        (PUBLIC, AUTHENTICATED, "anyone may join"),
        (PUBLIC, None, "anyone may join"),
        (PRIVATE, ANYONE, "anyone may join"),
        (PRESENCE, ANYONE, "anyone may join"),
        (PRIVATE, Who(user="owner"), "{owner}"),
    ],
)
def test_rule_that_contradicts_itself_is_refused(kind, join, words):
    with pytest.raises(ValueError, match=words) as caught:
        rule("x.{id}", kind, join)
    assert "'x.{id}'" in str(caught.value)


def test_without_a_token_only_public_channels_are_open():
    rules = ChannelRules()
    names = [r.pattern.filter.replace("*", "x").replace(">", "x.y") for r in DEFAULT_RULES]
    for channel in [*names, "other", "a.b.c"]:
        allowed = outcome(rules.decide(channel, None)) == "allowed"
        assert allowed == (rules.find(channel).kind is PUBLIC)


def test_shared_rules_are_the_default_ones():
    assert isinstance(channels, ChannelRules)
    assert outcome(channels.decide("general", None)) == "allowed"


def test_user_with_the_id_registered_does_not_receive_registrations():
    rules = ChannelRules()
    assert isinstance(rules.decide("user.registered", user("registered")), Denied)
    assert isinstance(rules.decide("user.registered", user("7", roles=("admin",))), Allowed)
    assert isinstance(rules.decide("user.register", user("register")), Allowed)


def test_rule_with_a_plain_string_for_its_pattern_is_refused_at_once():
    with pytest.raises(TypeError, match="give Pattern"):
        Rule("orders.*")


def test_rule_or_authorizer_that_is_added_later_applies_to_channels_that_were_asked_about_before():
    rules = ChannelRules()
    copy = rules.preceded_by([])
    for asked in (rules, copy):
        assert isinstance(asked.decide("orders.7", None), Denied)
    rules.add(Rule(Pattern("orders.{id}"), ChannelKind.PUBLIC, ANYONE))
    for asked in (rules, copy):
        assert isinstance(asked.decide("orders.7", None), Allowed)
        assert asked.explain("team.7")[1] is None

    @rules.authorize("team.{team_id}")
    def may_join(user, team_id):
        return True

    for asked in (rules, copy):
        assert asked.explain("team.7")[1].check is may_join

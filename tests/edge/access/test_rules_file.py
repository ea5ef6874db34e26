"""Channel rules from a TOML file: the same as in Python, or an error that says what is wrong."""

import pytest

from eventbus.channels import ChannelKind, Pattern
from eventbus.errors import ConfigError
from eventbus_edge.access.rules import (
    ANYONE,
    AUTHENTICATED,
    NOBODY,
    Allowed,
    Ask,
    ChannelRules,
    Denied,
    Rule,
    Who,
)
from eventbus_edge.access.rules_file import (
    MAX_RULES,
    parse_rules,
    read_rules,
)
from eventbus_edge.access.tokens import Claims
from eventbus_edge.config import EdgeSettings

FILE = """
[[rule]]
pattern = "news.>"
kind = "public"

[[rule]]
pattern = "orders.{shop}.>"
join = { roles = ["clerk", "owner"], permissions = ["orders"], user = "shop" }
whisper = "authenticated"

[[rule]]
pattern = "orders.>"
join = "nobody"

[[rule]]
pattern = "lobby.{room}"
kind = "presence"
join = "authenticated"
whisper = { roles = ["host"] }

[[rule]]
pattern = "club.{club_id}"
join = "authorizer"
"""


def claims(user="7", **more):
    return Claims(sub=user, exp=2e9, **more)


def test_a_file_gives_its_rules_in_their_order():
    clerks = Who(
        user="shop", roles=frozenset({"clerk", "owner"}), permissions=frozenset({"orders"})
    )
    assert parse_rules(FILE, "rules.toml") == [
        Rule(Pattern("news.>"), ChannelKind.PUBLIC, ANYONE),
        Rule(Pattern("orders.{shop}.>"), ChannelKind.PRIVATE, clerks, AUTHENTICATED),
        Rule(Pattern("orders.>"), ChannelKind.PRIVATE, NOBODY),
        Rule(
            Pattern("lobby.{room}"),
            ChannelKind.PRESENCE,
            AUTHENTICATED,
            Who(roles=frozenset({"host"})),
        ),
        Rule(Pattern("club.{club_id}"), ChannelKind.PRIVATE, None),
    ]


def test_the_first_rule_of_the_file_that_matches_decides():
    rules = ChannelRules(parse_rules(FILE, "rules.toml"))
    assert isinstance(rules.decide("orders.7.new", claims("7")), Allowed)
    assert isinstance(rules.decide("orders.7.new", claims("8")), Denied)
    assert isinstance(rules.decide("orders.7.new", claims("8", roles={"clerk"})), Allowed)
    assert isinstance(rules.decide("orders.7", claims("7", roles={"clerk"})), Denied)
    assert isinstance(rules.decide("news.today", None), Allowed)


def test_an_empty_file_has_no_rules():
    assert parse_rules("# nothing yet\n", "rules.toml") == []


BAD = [
    ("[[rule]", "line 1"),
    ("x = 1", "unknown field `x`"),
    ("rule = 3", "Expected `array`"),
    ("rule = " + "9" * 5000, "digits"),
    ("rule = [3]", "number 1"),
    ('[[rule]]\nkind = "public"', "missing required field `pattern`"),
    ('[[rule]]\npattern = "a"\njion = "anyone"', "unknown field `jion`"),
    ('[[rule]]\npattern = "a"\njoin = "everyone"', "everyone"),
    ('[[rule]]\npattern = "a"\njoin = { role = ["x"] }', "unknown field `role`"),
    ('[[rule]]\npattern = "a"\njoin = { roles = "x" }', "Expected `array"),
    ('[[rule]]\npattern = "a"\njoin = { roles = [] }', "length"),
    ('[[rule]]\npattern = "a"\njoin = {}', "an empty table matches nobody"),
    ('[[rule]]\npattern = "a"\nkind = "secret"', "secret"),
    ('[[rule]]\npattern = "a"\nkind = 3', "Expected `str`"),
    ('[[rule]]\npattern = "a..b"', "'a..b' is not a channel pattern"),
    ('[[rule]]\npattern = "a.>.b"', "is not a channel pattern"),
    ('[[rule]]\npattern = "a.{x}"\njoin = { user = "y" }', "{y}"),
    ('[[rule]]\npattern = "a.{x}.{x}"', "uses a token name more than once"),
    (
        '[[rule]]\npattern = "a"\njoin = "anyone"',
        "a channel is public if, and only if, anyone may join it",
    ),
    ('[[rule]]\npattern = "a"\nkind = "public"\njoin = "authenticated"', "a channel is public if"),
    ('[[rule]]\npattern = "a"\nwhisper = "anyone"', "anyone"),
    ('[[rule]]\npattern = "a.{x}"\n[[rule]]\npattern = "a.*"', "number 2"),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_fault_is_reported_with_file_table_and_what_is_allowed(text, expected):
    with pytest.raises(ConfigError) as caught:
        parse_rules(text, "conf/rules.toml")
    message = str(caught.value)
    assert message.startswith("BROADCAST_RULES=conf/rules.toml: ")
    assert expected in message
    assert message.count("allowed: ") == 1
    if "[[rule]]\n" in text:
        assert f"[[rule]] number {text.count('[[rule]]')}" in message


def test_more_rules_than_a_join_can_look_through_are_refused():
    text = "".join(f'[[rule]]\npattern = "a{n}"\n' for n in range(MAX_RULES + 1))
    with pytest.raises(ConfigError, match=f"at most {MAX_RULES}"):
        parse_rules(text, "rules.toml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_rules(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="utf-8"):
        read_rules(str(tmp_path / "latin.toml"))
    (tmp_path / "large.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="at most"):
        read_rules(str(tmp_path / "large.toml"))


def test_the_files_rules_come_before_the_applications_which_keep_what_they_have():
    own = ChannelRules([Rule(Pattern("news.>"), ChannelKind.PRIVATE, NOBODY)])
    both = own.preceded_by(parse_rules(FILE, "rules.toml"))

    @own.authorize("club.{club_id}")  # added later, by a module that is imported late
    def member(user, club_id):
        return True

    assert isinstance(both.decide("news.today", None), Allowed)
    assert isinstance(own.decide("news.today", None), Denied)
    assert isinstance(both.decide("club.1", claims()), Ask)
    assert isinstance(both.decide("general", None), Allowed)  # the defaults still hold


async def test_a_node_takes_its_rules_from_the_file(start_edge, bus, token, tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(FILE)
    edge = await start_edge(bus, rules_file=str(path))
    client = await edge.connect("/ws/news.today")
    assert (await client.next())["data"]["kind"] == "public"
    assert (await edge.refusal("/ws/orders.8.new", token=token("7")))[0] == 403
    granted = await edge.connect("/ws/orders.7.new", token=token("7"))
    assert (await granted.next())["event"] == "eb:subscribed"


async def test_a_node_with_a_bad_file_does_not_start(start_process, tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text('[[rule]]\npattern = "a..b"')
    with pytest.raises(AssertionError, match=r"rules\.toml: \[\[rule\]\] number 1 "):
        await start_process(BROADCAST_RULES=str(path))


def test_the_setting_is_read_from_the_environment():
    assert EdgeSettings.from_env({"BROADCAST_RULES": "r.toml"}).rules_file == "r.toml"

"""The examples of docs/access.md do what the page says."""

import re
import runpy
from pathlib import Path

import pytest

from eventbus.config import Settings
from eventbus.environment import variables
from eventbus_edge.access.rules import (
    Allowed,
    Ask,
    ChannelRules,
    Denied,
)
from eventbus_edge.access.rules_file import read_rules
from eventbus_edge.access.tokens import Claims
from eventbus_edge.config import EdgeSettings

PAGE = (Path(__file__).parent.parent.parent / "docs" / "access.md").read_text(encoding="utf-8")


def example(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


def user(user_id="7", **more):
    return Claims(sub=user_id, exp=2e9, **more)


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(example("toml"), encoding="utf-8")
    return ChannelRules(read_rules(str(path)))


def test_the_file_of_the_page_says_what_its_comments_say(rules):
    assert isinstance(rules.decide("news.today", None), Allowed)
    assert isinstance(rules.decide("prices.btc", None), Allowed)
    assert (rules.find("prices.btc").retain, rules.find("prices.btc").most_history) == (True, 0)
    assert isinstance(rules.decide("orders.7.new", user("7")), Allowed)
    assert isinstance(rules.decide("orders.7.new", user("8")), Denied)
    assert isinstance(rules.decide("orders.7.new", user("8", roles={"clerk"})), Allowed)
    assert isinstance(rules.decide("orders.7.new", user(permissions={"orders:read"})), Allowed)
    assert isinstance(rules.decide("lobby.1", user()), Allowed)
    assert isinstance(rules.decide("lobby.1", None), Denied)
    assert isinstance(rules.decide_whisper("lobby.1", user()), Denied)
    assert isinstance(rules.decide_whisper("lobby.1", user(roles={"host"})), Allowed)
    assert isinstance(rules.decide("club.1", user()), Denied)
    rules.authorize("club.{club_id}")(lambda user, club_id: True)
    assert isinstance(rules.decide("club.1", user()), Ask)


def test_the_module_of_the_page_registers_its_rules_and_its_authorizer(tmp_path, monkeypatch):
    made = ChannelRules()
    monkeypatch.setattr("eventbus_edge.channels", made)
    path = tmp_path / "app.py"
    path.write_text(example("python"), encoding="utf-8")
    runpy.run_path(str(path))
    assert isinstance(made.decide("shop.7.orders", user("7")), Allowed)
    assert isinstance(made.decide("shop.7.orders", user("8")), Denied)
    assert isinstance(made.decide_whisper("room.1", user()), Allowed)
    assert isinstance(made.decide("club.1", user()), Ask)


def test_the_page_names_only_settings_that_exist():
    known = {each.name for struct in (EdgeSettings, Settings) for each in variables(struct)}
    named = set(re.findall(r"\b(?:BROADCAST|JWT|EDGE)_[A-Z_]+\b", PAGE))
    assert named <= known
    assert len(named) > 15

"""Authorizers: their answers, and that none of their faults lets anyone in."""

import asyncio
import logging
import time

import pytest

from eventbus_edge.access.authorizers import (
    Authorizers,
    ask,
)
from eventbus_edge.access.rules import (
    Allowed,
    ChannelRules,
    Denied,
)
from eventbus_edge.access.tokens import Claims

USER = Claims(sub="42", exp=2e9, name="Ada")


def put(check, *, limit_s=5.0, pattern="team.{team_id}"):
    rules = ChannelRules()
    rules.authorize(pattern)(check)
    return ask(rules.decide("team.7", USER), USER, limit_s=limit_s)


@pytest.mark.parametrize("plain", [True, False])
async def test_authorizer_gets_the_user_and_the_captured_tokens(plain):
    async def in_team(user, team_id):
        await asyncio.sleep(0)
        return (user, team_id) == (USER, "7")

    check = (lambda user, team_id: (user, team_id) == (USER, "7")) if plain else in_team
    assert isinstance(await put(check), Allowed)


async def test_authorizer_that_asks_for_it_gets_the_channel():
    assert isinstance(await put(lambda user, channel: channel == "team.7", pattern=">"), Allowed)


async def test_mapping_allows_and_adds_presence_info():
    answer = await put(lambda user, team_id: {"role": "lead", "at": (1, 2)})
    assert answer == Allowed(answer.rule, {"role": "lead", "at": [1, 2]})
    assert isinstance(await put(lambda user, team_id: {}), Allowed)


async def test_false_denies_and_is_not_a_fault(caplog):
    answer = await put(lambda user, team_id: False)
    assert (answer.code, answer.fault) == ("forbidden", None)
    assert not caplog.records


@pytest.mark.parametrize(
    "verdict", [None, 1, 0, "yes", "", [], ["x"], object(), {"x": object()}, {(1, 2): 3}]
)
async def test_verdict_of_another_type_denies_and_is_logged_with_the_channel(verdict, caplog):
    answer = await put(lambda user, team_id: verdict)
    assert (answer.code, answer.fault) == ("forbidden", "verdict")
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "'team.7'" in caplog.text


class Panic(BaseException):
    """As a Rust extension raises it."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError, TimeoutError, KeyError, RecursionError,
        SystemExit, GeneratorExit, asyncio.CancelledError, Panic,
    ],
)  # fmt: skip
@pytest.mark.parametrize("plain", [True, False])
async def test_exception_denies_and_is_logged_and_not_shown_to_the_client(plain, error, caplog):
    def fail(user, team_id):
        raise error("the database of accounts")

    async def fail_later(user, team_id):
        await asyncio.sleep(0)
        fail(user, team_id)

    answer = await put(fail if plain else fail_later)
    assert (answer.code, answer.fault) == ("forbidden", "error")
    assert "database" not in answer.message
    assert "'team.7'" in caplog.text
    assert "the database of accounts" in caplog.text


async def test_overtime_denies_and_ends_the_authorizer(caplog):
    ended = asyncio.Event()

    async def hang(user, team_id):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    answer = await put(hang, limit_s=0.01)
    assert (answer.code, answer.fault) == ("forbidden", "timeout")
    assert ended.is_set()
    assert "'team.7'" in caplog.text


async def test_late_answer_of_one_that_caught_its_cancellation_denies():
    async def stubborn(user, team_id):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return True

    answer = await put(stubborn, limit_s=0.01)
    assert isinstance(answer, Denied)
    assert answer.fault == "timeout"


async def test_late_answer_of_one_that_blocked_the_loop_denies():
    answer = await put(lambda user, team_id: time.sleep(0.05) or True, limit_s=0.01)
    assert isinstance(answer, Denied)
    assert answer.fault == "timeout"


async def test_authorizer_that_cancels_its_own_task_denies_and_cancels_nobody(caplog):
    async def cancel_itself(user, team_id):
        asyncio.current_task().cancel()
        await asyncio.Event().wait()

    answer = await put(cancel_itself)
    assert (answer.code, answer.fault) == ("forbidden", "error")
    assert "'team.7'" in caplog.text
    assert asyncio.current_task().cancelling() == 0


async def test_cancelling_the_question_cancels_the_authorizer_and_is_not_a_denial(caplog):
    started = asyncio.Event()

    async def hang(user, team_id):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(put(hang))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not caplog.records


async def test_channel_is_decided_by_the_rules_and_by_the_authorizer_that_they_name():
    rules = ChannelRules()
    rules.authorize("team.{team_id}")(lambda user, team_id: user == USER and team_id == "7")
    authorizers = Authorizers(rules, 5.0, print)
    assert isinstance(await authorizers.decide("general", None), Allowed)
    assert isinstance(await authorizers.decide("team.7", USER), Allowed)
    assert (await authorizers.decide("team.8", USER)).code == "forbidden"
    assert (await authorizers.decide("team.7", None)).code == "unauthorized"


async def test_fault_of_an_authorizer_is_reported_and_its_refusal_is_not():
    rules, faults = ChannelRules(), []
    rules.authorize("team.{team_id}")(lambda user, team_id: {"8": False, "9": 3}.get(team_id))
    rules.authorize("slow")(lambda user: asyncio.sleep(60))
    authorizers = Authorizers(rules, 0.05, faults.append)
    for channel in ("team.8", "team.9", "slow"):
        assert isinstance(await authorizers.decide(channel, USER), Denied)
    assert faults == ["verdict", "timeout"]

import datetime

import pytest

from eventbus import Event, InvalidPattern, ShouldBroadcast
from eventbus.broadcasting import broadcast
from eventbus.events import ShouldQueue
from eventbus.testing import fake
from eventbus.testing.records import MAX_LISTED


class UserJoined(Event, ShouldBroadcast, channel="club.{club_id}", name="user.joined"):
    club_id: int
    name: str


class UserQuit(Event):
    name: str


class DuesOwed(Event, ShouldQueue, queue="dues"):
    amount: int


class NewsPosted(Event, ShouldBroadcast, ShouldQueue, channel="news", queue="slow", delay=30):
    title: str


@pytest.fixture
async def events():
    with fake() as recorder:
        await UserJoined(club_id=1, name="Ada").dispatch()
        await UserJoined(club_id=2, name="Bob").dispatch()
        await DuesOwed(amount=5).dispatch()
        await NewsPosted(title="Rain").dispatch()
        await broadcast("general", "hello", {"text": "hi"})
        yield recorder


def test_valid_workflow_passes(events):
    events.assert_dispatched(UserJoined)
    events.assert_dispatched(UserJoined, times=2)
    events.assert_dispatched(UserJoined, lambda event: event.club_id == 1, times=1)
    events.assert_dispatched(DuesOwed, times=1)
    events.assert_not_dispatched(UserQuit)
    events.assert_not_dispatched(UserJoined, lambda event: event.club_id == 3)
    events.assert_queued(DuesOwed, queue="dues", times=1)
    events.assert_queued(Event, times=2)
    events.assert_broadcast_on("club.1")
    events.assert_broadcast_on("club.{id}", times=2)
    events.assert_broadcast_on("club.1", event=UserJoined)
    events.assert_broadcast_on("club.1", event="user.joined", data={"club_id": 1, "name": "Ada"})
    events.assert_broadcast_on("club.1", data=UserJoined(club_id=1, name="Ada"))
    events.assert_broadcast_on("general", event="hello", data=lambda data: data["text"] == "hi")
    events.assert_not_broadcast_on("news")
    events.assert_not_broadcast_on("general", event="bye")
    events.assert_not_broadcast_on("general", data={"text": "ho"})


@pytest.mark.parametrize(
    "claim",
    [
        lambda e: e.assert_dispatched(UserQuit),
        lambda e: e.assert_dispatched(UserJoined, times=1),
        lambda e: e.assert_dispatched(UserJoined, times=3),
        lambda e: e.assert_dispatched(UserJoined, lambda event: event.name == "Eve"),
        lambda e: e.assert_dispatched(UserJoined, lambda event: event.name == "Ada", times=2),
        lambda e: e.assert_not_dispatched(UserJoined),
        lambda e: e.assert_not_dispatched(UserJoined, lambda event: event.name == "Ada"),
        lambda e: e.assert_nothing_dispatched(),
        lambda e: e.assert_queued(UserJoined),
        lambda e: e.assert_queued(DuesOwed, queue="default"),
        lambda e: e.assert_queued(DuesOwed, lambda event: event.amount == 6),
        lambda e: e.assert_queued(DuesOwed, times=2),
        lambda e: e.assert_broadcast_on("club.3"),
        lambda e: e.assert_broadcast_on("club"),
        lambda e: e.assert_broadcast_on("news"),
        lambda e: e.assert_broadcast_on("club.1", times=2),
        lambda e: e.assert_broadcast_on("club.1", event="UserJoined"),
        lambda e: e.assert_broadcast_on("general", event=UserJoined),
        lambda e: e.assert_broadcast_on("general", data=None),
        lambda e: e.assert_broadcast_on("general", data={"text": "hi", "more": 1}),
        lambda e: e.assert_broadcast_on("general", data=lambda data: data["text"] == "ho"),
        lambda e: e.assert_not_broadcast_on("general"),
        lambda e: e.assert_not_broadcast_on("*", event="hello"),
    ],
)
def test_failed_assertion_lists_what_was_dispatched(events, claim):
    with pytest.raises(AssertionError) as caught:
        claim(events)
    message = str(caught.value)
    for part in (
        "UserJoined(club_id=1, name='Ada') on club.1",
        "UserJoined(club_id=2, name='Bob') on club.2",
        "DuesOwed(amount=5) queued on dues\n",
        "NewsPosted(title='Rain') queued on slow, after 30 s (its worker broadcasts it)",
        "message 'hello' on general: {'text': 'hi'}",
    ):
        assert part in message + "\n"


def test_failure_reads_like_a_sentence(events):
    with pytest.raises(AssertionError) as caught:
        events.assert_dispatched(UserJoined, lambda event: event.name == "Eve", times=1)
    assert str(caught.value).splitlines()[:3] == [
        "UserJoined that matches the predicate was dispatched never, expected once.",
        "Dispatched instead:",
        "  1. UserJoined(club_id=1, name='Ada') on club.1",
    ]
    with pytest.raises(
        AssertionError, match=r"^'bye' with matching data was broadcast on general nev"
    ):
        events.assert_broadcast_on("general", event="bye", data=1)


def test_failure_of_an_empty_record_says_so():
    with fake() as events, pytest.raises(AssertionError, match=r"\nNothing was dispatched\.$"):
        events.assert_dispatched(UserQuit)


def test_nothing_dispatched_holds_for_an_empty_record():
    with fake() as events:
        events.assert_nothing_dispatched()


async def test_plain_message_alone_is_something_dispatched():
    with fake() as events:
        await broadcast("general", "hello", 1)
    with pytest.raises(AssertionError, match="message 'hello' on general: 1"):
        events.assert_nothing_dispatched()


async def test_failure_has_a_bounded_length_and_lists_similar_events_first():
    with fake() as events:
        for number in range(500):
            await UserJoined(club_id=number, name="x" * 10_000).dispatch()
        await broadcast("general", "hello", ["y" * 10_000])
        await UserQuit(name="z" * 10_000).dispatch()
    with pytest.raises(AssertionError) as caught:
        events.assert_dispatched(UserQuit, times=2)
    message = str(caught.value)
    assert len(message) < 10_000
    assert "1. UserQuit(name='zzz" in message
    assert message.endswith(f"… and {502 - MAX_LISTED} more")
    with pytest.raises(AssertionError, match=r"1\. message 'hello' on general: \['yyy") as caught:
        events.assert_broadcast_on("general", times=7)
    assert len(str(caught.value)) < 10_000


async def test_failure_shows_the_options_of_a_message():
    with fake() as events:
        await broadcast("general", "hello", 1).volatile().via("null").to_others("c1").send()
    with pytest.raises(AssertionError, match=r"on general \(volatile, via null, except c1\): 1"):
        events.assert_nothing_dispatched()


def test_dispatched_gives_the_events_in_order(events):
    assert [event.name for event in events.dispatched(UserJoined)] == ["Ada", "Bob"]
    assert [event.name for event in events.dispatched(UserJoined, lambda e: e.club_id > 1)] == [
        "Bob"
    ]
    assert len(events.dispatched(Event)) == 4
    assert [type(event) for event in events.queued(Event)] == [DuesOwed, NewsPosted]


def test_broadcasts_gives_the_messages_of_a_channel_or_pattern(events):
    assert [message.channel for message in events.broadcasts()] == ["club.1", "club.2", "general"]
    assert [message.data["name"] for message in events.broadcasts("club.*")] == ["Ada", "Bob"]
    assert events.broadcasts("club.3") == []


async def test_event_on_several_channels_is_one_event_and_a_message_on_each():
    class Gossip(Event, ShouldBroadcast):
        def broadcast_on(self):
            return ["left", "right"]

    with fake() as events:
        await Gossip().dispatch()
    events.assert_dispatched(Gossip, times=1)
    events.assert_broadcast_on("left", event=Gossip)
    events.assert_broadcast_on("right", event=Gossip)
    with pytest.raises(AssertionError, match=r"Gossip\(\) on left, right"):
        events.assert_nothing_dispatched()


async def test_data_is_compared_as_json():
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    with fake() as events:
        await broadcast("general", "hello", {"when": when, "pair": (1, 2)})
    events.assert_broadcast_on("general", data={"when": when, "pair": [1, 2]})


async def test_clear_forgets(events):
    events.clear()
    events.assert_nothing_dispatched()
    await UserQuit(name="Ada").dispatch()
    events.assert_dispatched(UserQuit, times=1)


# Mistakes of a test


def test_question_about_a_type_that_is_not_faked_is_refused():
    with fake(UserJoined) as events:
        events.assert_not_dispatched(Event)  # a base class of a faked type
        for claim in (
            lambda: events.assert_not_dispatched(UserQuit),
            lambda: events.dispatched(UserQuit),
            lambda: events.queued(UserQuit),
            lambda: events.assert_not_broadcast_on("general", event=UserQuit),
        ):
            with pytest.raises(ValueError, match=r"UserQuit is not faked: .* only UserJoined"):
                claim()


@pytest.mark.parametrize("wrong", ["UserQuit", UserQuit(name="x"), int, None])
def test_question_about_no_event_type_is_refused(events, wrong):
    with pytest.raises(TypeError, match="is not an event type"):
        events.assert_not_dispatched(wrong)


def test_number_in_place_of_a_predicate_is_refused(events):
    with pytest.raises(TypeError, match=r"2 is not a predicate: .*`times=`"):
        events.assert_dispatched(UserJoined, 2)


def test_invalid_channel_or_queue_is_refused(events):
    with pytest.raises(InvalidPattern):
        events.assert_not_broadcast_on("no channel!")
    with pytest.raises(ValueError, match="not a queue's name"):
        events.assert_queued(DuesOwed, queue="no queue!")
    with pytest.raises(ValueError, match="times=-1"):
        events.assert_dispatched(UserJoined, times=-1)


def test_exception_of_a_predicate_is_raised(events):
    with pytest.raises(AttributeError):
        events.assert_not_dispatched(UserJoined, lambda event: event.nickname)

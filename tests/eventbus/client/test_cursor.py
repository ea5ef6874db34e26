"""A cursor against a model of an edge and its stream: each message once, in order, gaps
reported."""

from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventbus.client.cursor import Cursor, Phase


class Stream:
    """One channel's messages, and what an edge answers to a join."""

    def __init__(self):
        self.epoch, self.last, self.held = "a", 0, []

    def publish(self, step):
        self.last += step
        self.held.append(self.last)
        return self.last

    def join(self, asked):
        """Offset, epoch, recovered, and the messages that follow."""
        if asked is not None and "offset" in asked:
            offset = asked["offset"]
            if asked["epoch"] == self.epoch and offset <= self.last and not self.evicted(offset):
                return offset, self.epoch, True, [n for n in self.held if n > offset]
            return self.last, self.epoch, False, []
        return self.last, self.epoch, None, []

    oldest = 0

    def evicted(self, offset):
        return offset < self.oldest


class ClientModel(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.stream, self.cursor = Stream(), Cursor()
        self.got, self.expected = [], []
        self.epochs = 0

    @rule(step=st.integers(1, 5))
    def publish(self, step):
        n = self.stream.publish(step)
        if self.cursor.phase is Phase.ACTIVE:
            assert self.cursor.take(n, self.stream.epoch)
            self.got.append((self.stream.epoch, n))
        else:
            assert not self.cursor.take(n, self.stream.epoch)

    @precondition(lambda self: self.got and self.cursor.phase is Phase.ACTIVE)
    @rule(data=st.data())
    def deliver_again(self, data):
        epoch, n = data.draw(st.sampled_from(self.got))
        if epoch == self.stream.epoch:
            assert not self.cursor.take(n, epoch)

    @rule()
    def volatile(self):
        assert self.cursor.take(None, None) is (self.cursor.phase is Phase.ACTIVE)

    @rule()
    def lose(self):
        self.cursor.lost()
        assert self.cursor.phase is Phase.WAITING or self.cursor.phase is Phase.BEHIND

    @precondition(lambda self: self.cursor.phase is Phase.ACTIVE)
    @rule()
    def fall_behind(self):
        self.cursor.fall_behind()

    @rule()
    def evict(self):
        self.stream.oldest = self.stream.last
        self.stream.held = []

    @rule()
    def recreate(self):
        """A recreated stream, on a connection that is lost with it."""
        self.cursor.lost()
        self.epochs += 1
        self.stream.epoch, self.stream.last, self.stream.held = f"e{self.epochs}", 0, []
        self.stream.oldest = 0

    @precondition(lambda self: self.cursor.phase in {Phase.WAITING, Phase.BEHIND})
    @rule()
    def join(self):
        self.cursor.wait()
        gaps = self.cursor.gaps
        before = (self.cursor.offset, self.cursor.epoch)
        asked = self.cursor.ask()
        assert (asked is None) is (before == (None, None))
        offset, epoch, recovered, missed = self.stream.join(asked)
        self.cursor.subscribed(offset, epoch, recovered=recovered)
        assert self.cursor.gaps == gaps + (recovered is False)
        assert self.cursor.take_gap() is (recovered is False)
        for n in missed:
            assert self.cursor.take(n, epoch)
            self.got.append((epoch, n))

    @invariant()
    def each_once_and_in_order(self):
        assert len(set(self.got)) == len(self.got)
        for epoch in {epoch for epoch, _ in self.got}:
            offsets = [n for each, n in self.got if each == epoch]
            assert offsets == sorted(offsets)


TestCursor = ClientModel.TestCase


def test_history_is_requested_once():
    cursor = Cursor(history=10)
    assert cursor.ask() == {"history": 10}
    cursor.subscribed(4, "a", recovered=None)
    cursor.lost()
    assert cursor.ask() == {"offset": 4, "epoch": "a"}
    assert cursor.recovered is None


def test_pattern_resumes_after_the_last_message_of_any_channel():
    cursor = Cursor(is_pattern=True)
    assert cursor.ask() is None
    cursor.subscribed(4, "a", recovered=None)
    assert cursor.take(7, "a", "m7")
    assert not cursor.take(6, "a")
    cursor.lost()
    assert cursor.ask() == {"offset": 7, "epoch": "a", "mark": "m7"}
    cursor.subscribed(7, "a", recovered=True, mark="m7")
    assert (cursor.recovered, cursor.gaps) == (True, 0)
    assert not cursor.take(7, "a")
    assert cursor.take(8, "a")


def test_subscription_covers_what_follows_its_beginning_or_its_last_gap():
    cursor = Cursor()
    assert not cursor.covers(1, "a")
    cursor.subscribed(4, "a", recovered=None)
    cursor.take(9, "a")
    cursor.lost()
    cursor.subscribed(9, "a", recovered=True)
    assert [cursor.covers(offset, "a") for offset in (3, 4, 5, 9)] == [False, False, True, True]
    assert [cursor.has(offset, "a") for offset in (9, 10)] == [True, False]
    assert cursor.covers(3, "b")
    assert not cursor.has(3, "b")
    cursor.lost()
    cursor.subscribed(20, "a", recovered=False)
    assert [cursor.covers(offset, "a") for offset in (9, 20, 21)] == [False, False, True]
    cursor.missed(5, "b")
    assert [cursor.covers(offset, "b") for offset in (5, 6)] == [False, True]


def test_pattern_without_an_order_asks_for_no_place_and_every_reconnect_is_a_gap():
    cursor = Cursor(is_pattern=True)
    assert cursor.ask() is None
    cursor.subscribed(None, None, recovered=None)
    assert cursor.take(5, "a")
    assert cursor.take(4, "a"), "of another channel of the pattern"
    assert cursor.gaps == 0
    cursor.lost()
    assert cursor.ask() is None
    cursor.subscribed(None, None, recovered=None)
    assert (cursor.recovered, cursor.gaps) == (False, 1)


def test_stream_recreated_under_a_connection_is_a_gap():
    cursor = Cursor()
    cursor.ask()
    cursor.subscribed(7, "a", recovered=None)
    assert cursor.take(1, "b")
    assert cursor.take_gap()
    assert not cursor.take_gap()


@given(st.sampled_from([Phase.WAITING, Phase.ASKED, Phase.BEHIND, Phase.ENDED]), st.integers(0))
def test_nothing_is_taken_unless_joined(phase, offset):
    cursor = Cursor()
    cursor.phase = phase
    assert not cursor.take(offset, "a")
    assert (cursor.offset, cursor.epoch) == (None, None)


def test_gap_that_the_edge_reports_shows_at_the_next_message():
    cursor = Cursor(is_pattern=True)
    cursor.ask()
    cursor.subscribed(None, None, recovered=None)
    assert cursor.take(1, "a")
    assert not cursor.take_gap()
    cursor.missed()
    assert (cursor.recovered, cursor.gaps) == (False, 1)
    assert cursor.take(2, "a")
    assert cursor.take_gap()
    assert not cursor.take_gap()


def test_position_is_returned_with_the_mark_of_its_message():
    cursor = Cursor()
    cursor.subscribed(3, "e", recovered=None, mark="~2026-11-30T18:55:02Z")
    assert cursor.ask() == {"offset": 3, "epoch": "e", "mark": "~2026-11-30T18:55:02Z"}
    cursor.subscribed(3, "e", recovered=True, mark="~2026-11-30T18:55:02Z")
    assert cursor.take(4, "e", "2026-11-30T18:55:03Z")
    assert cursor.ask() == {"offset": 4, "epoch": "e", "mark": "2026-11-30T18:55:03Z"}
    cursor.subscribed(4, "e", recovered=True)
    assert cursor.ask() == {"offset": 4, "epoch": "e"}


def test_after_a_gap_messages_of_earlier_offsets_are_new():
    cursor = Cursor()
    cursor.subscribed(100, "e", recovered=None)
    cursor.missed(80, "e")
    assert cursor.take(81, "e")
    assert cursor.take_gap()
    assert cursor.gaps == 1
    cursor.missed(90, "e.1", "mark")
    assert cursor.take(85, "e.1") is False
    assert cursor.take(91, "e.1")
    assert cursor.gaps == 2  # the other epoch is not a second gap

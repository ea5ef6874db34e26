"""What follows the stored messages of a client that has caught up."""

import pytest

from eventbus.channels import ChannelKind
from eventbus.drivers import Position
from eventbus_edge.delivery.history import CaughtUp, Stored
from eventbus_edge.delivery.hub import Backlog
from eventbus_edge.protocols.vocabulary import ChannelMessage, Subscribed

OLD, NEW = "old", "new"


def message(offset, epoch, *, mark=None):
    position = None if offset is None else Position(offset, epoch)
    return ChannelMessage("c", "e", b"{}", position, None, None, mark)


def passed(*messages):
    backlog = Backlog("c", 1000)
    for each in messages:
        backlog.add(each)
    return backlog


def gap(offset, epoch):
    position = Position(offset, epoch)
    return Subscribed("c", ChannelKind.PUBLIC, position, recovered=False, ref=None)


def test_what_the_history_has_is_left_out_and_the_rest_is_in_order():
    stored = Stored([message(4, NEW), message(5, NEW)])
    caught_up = CaughtUp(Position(3, NEW), stored, recovered=True, last=5)
    volatile, later = message(None, NEW), message(6, NEW)
    backlog = passed(message(5, NEW), volatile, later)
    assert caught_up.live(backlog, Position(6, NEW)) == [volatile, later]


def test_nothing_of_an_earlier_history_follows_a_position_in_a_later_one():
    caught_up = CaughtUp(Position(7, NEW), Stored(), recovered=False, last=7)
    later = message(8, NEW)
    backlog = passed(message(90, OLD), message(91, OLD), message(7, NEW), later)
    assert caught_up.live(backlog, Position(8, NEW)) == [later]


def test_message_comes_once_that_was_delivered_before_its_history_was_recognized():
    stored = Stored([message(5, NEW, mark="05:00")])
    caught_up = CaughtUp(Position(4, NEW), stored, recovered=True, last=5)
    other = message(6, OLD, mark="06:00")
    backlog = passed(message(5, OLD, mark="05:00"), other)
    assert caught_up.live(backlog, Position(6, OLD)) == [other]


@pytest.mark.parametrize("at", [Position(12, NEW), None])
def test_later_history_is_reported_and_follows(at):
    caught_up = CaughtUp(Position(7, OLD), Stored(), recovered=True, last=8)
    kept = [message(9, OLD), gap(11, NEW), message(12, NEW)]
    backlog = passed(kept[0])
    backlog.note_gap(kept[1])
    backlog.add(kept[2])
    assert caught_up.live(backlog, at) == kept

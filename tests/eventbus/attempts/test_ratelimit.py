"""Log lines at a limited rate: one per kind and interval, with the number of those suppressed."""

import logging

import pytest

from eventbus.attempts import OutageLog, RateLimitedLog


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(clock):
    return RateLimitedLog(logging.getLogger("test"), interval_s=10, limit=2, clock=clock)


def test_line_is_logged_once_per_interval_with_the_number_suppressed(log, clock, caplog):
    assert log.warning("payload %s", 1)
    assert not log.warning("payload %s", 2)
    clock.now += 9.9
    assert not log.warning("payload %s", 3)
    clock.now += 0.1
    assert log.warning("payload %s", 4)
    assert caplog.messages == ["payload 1", "payload 4 (2 more in the meantime)"]


def test_count_of_suppressed_lines_begins_again_with_each_line(log, clock, caplog):
    for _ in range(3):
        log.warning("lost")
        log.warning("lost")
        clock.now += 10
    assert caplog.messages == ["lost"] + ["lost (1 more in the meantime)"] * 2


def test_kinds_are_limited_one_by_one(log, caplog):
    for kind in ("a", "b", "a", "b"):
        log.log(logging.ERROR, "%s failed", kind, kind=kind)
    assert caplog.messages == ["a failed", "b failed"]
    assert {record.levelname for record in caplog.records} == {"ERROR"}


def test_kind_logged_least_recently_is_forgotten_beyond_the_limit(log, clock, caplog):
    for kind in ("a", "b"):
        log.warning(kind, kind=kind)
    clock.now += 10
    log.warning("a", kind="a")
    log.warning("c", kind="c")  # b is forgotten
    log.warning("a", kind="a")
    log.warning("b", kind="b")
    assert caplog.messages == ["a", "b", "a", "c", "b"]


def test_line_names_the_place_that_logged_it_and_the_exception(log, caplog):
    fault = RuntimeError("no")
    log.log(logging.ERROR, "100%% full: %s", fault, exc_info=fault)
    [record] = caplog.records
    assert record.getMessage() == "100% full: no"
    assert record.exc_info[1] is fault
    assert record.pathname == __file__


def test_end_of_an_outage_is_logged_once_with_its_duration(caplog):
    now = 100.0
    outage = OutageLog(logging.getLogger("eventbus.x"), "%s is back", "it", clock=lambda: now)
    outage.ended()
    assert caplog.records == []  # there was none
    outage.failed("%s is away: %s", "it", "first")
    now += 5
    outage.failed("%s is away: %s", "it", "first")
    outage.failed("%s is away: %s", "it", "second")
    now += 7.5
    outage.ended()
    outage.ended()
    assert [record.getMessage() for record in caplog.records] == [
        "it is away: first", "it is away: second", "it is back, after 12.5 s",
    ]  # fmt: skip

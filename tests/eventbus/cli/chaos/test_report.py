"""The report of a run: its numbers by fault, its table, and what breaks a promise."""

import pytest

from eventbus.cli.chaos import Ledger, Log, Message, Promise, Window, make_report, table

CHANNEL = "chaos.x.0"


@pytest.fixture
def ledger():
    """Twenty messages, one per second, acknowledged at once."""
    made = Ledger()
    for number in range(20):
        publication = made.sent(Message("library", number), CHANNEL, float(number))
        publication.acknowledged_at = float(number)
    return made


def receive(ledger, numbers, name="websocket 0", promise=Promise.EACH_ONCE):
    log = Log(ledger, name, CHANNEL, promise)
    for number in numbers:
        log.received(Message("library", number), number + 0.25)
    return log


def window(fault, began_at, ended_at, limit=None):
    return Window(fault, "edge 1", began_at, began_at + 1, ended_at, limit)


def report(ledger, logs, windows, **options):
    return make_report(
        where="one server", seed=7,
        plan=[each.fault for each in windows], ledger=ledger, logs=logs, windows=windows,
        began_at=0.0, stopped_at=20.0, ended_at=25.0, **options,
    )  # fmt: skip


def test_numbers_of_each_fault_are_those_of_its_time(ledger):
    windows = [window("killed", 5.0, 10.0), window("cut", 10.0, 25.0)]
    made = report(ledger, [receive(ledger, range(20))], windows)
    assert made.broken == []
    killed, cut = made.rows
    assert (killed.fault, killed.at_s, killed.held_s) == ("killed", 5.0, 1.0)
    assert (killed.acknowledged, killed.delivered) == (5, 5)
    assert (cut.acknowledged, cut.delivered) == (10, 10)
    assert (made.total.acknowledged, made.total.delivered) == (20, 20)


def test_loss_counts_where_it_was_acknowledged_and_a_copy_where_it_arrived(ledger):
    log = receive(ledger, [number for number in range(20) if number != 6])
    log.received(Message("library", 7), 19.5)
    made = report(ledger, [log], [window("killed", 5.0, 10.0), window("cut", 10.0, 25.0)])
    killed, cut = made.rows
    assert (killed.lost, killed.duplicates) == (1, 0)
    assert (cut.lost, cut.duplicates) == (0, 1)
    assert made.broken == [
        "websocket 0: 1 lost: library #6",
        "websocket 0: 1 received twice: library #7",
    ]


def test_longest_gaps_are_those_of_the_publisher_and_of_the_receiver(ledger):
    for number in (6, 7):
        ledger.of_channel(CHANNEL)[Message("library", number)].acknowledged_at = None
    log = receive(ledger, range(6))
    log.gap(9.0)
    for number in range(12, 20):
        log.received(Message("library", number), number + 0.25)
    made = report(ledger, [log], [window("erased", 5.5, 14.0)], gaps_allowed_from=5.5)
    (row,) = made.rows
    assert (row.publish_gap_s, row.publisher) == (3.0, "library")
    assert row.receiver == "websocket 0"
    assert row.delivery_gap_s == pytest.approx(3.8, abs=0.1)  # up to the reported gap
    assert row.gaps == 1
    assert made.broken == []
    assert made.total.publish_gap_s == 3.0


def test_silence_after_the_end_of_publishing_is_no_gap(ledger):
    made = report(ledger, [receive(ledger, range(20))], [window("cut", 10.0, 25.0)])
    assert made.rows[0].delivery_gap_s == 1.0


def test_reported_gap_breaks_a_promise_unless_history_was_lost(ledger):
    log = receive(ledger, range(20))
    log.gap(20.0)
    made = report(ledger, [log], [window("cut", 10.0, 25.0)])
    assert made.broken == [
        "websocket 0: a gap was reported although nothing was lost, at 20.0 s",
    ]
    assert report(ledger, [log], [], gaps_allowed_from=10.0).broken == []


def test_waiting_longer_than_promised_breaks_a_promise(ledger):
    windows = [window("leader-killed", 5.0, 10.0, 0.5)]
    made = report(ledger, [receive(ledger, range(20))], windows)
    assert made.broken == [
        "leader-killed: library waited 1.0 s for an acknowledgement; the limit is 0.5 s",
    ]


def test_limit_does_not_apply_to_publishers_without_that_promise(ledger):
    cut = window("routes-cut", 5.0, 25.0, limit=0.5)
    assert report(ledger, [receive(ledger, range(20))], [cut]).broken != []
    exempt = cut._replace(unlimited={"library"})
    assert report(ledger, [receive(ledger, range(20))], [exempt]).broken == []


def test_table_fits_in_80_columns_with_long_names_and_large_numbers(ledger):
    logs = [receive(ledger, range(3), f"websocket {number}") for number in range(300)]
    windows = [window("a-fault-with-a-very-long-name", 5.0, 25.0)]
    made = report(ledger, logs, windows, notes=["left out: " + "a reason, " * 20])
    text = table(made)
    assert max(map(len, text.splitlines())) <= 80
    assert "seed 7" in text
    assert "BROKEN: 300" in text
    assert "websocket 299: 17 lost" in text
    assert "All promises were kept" not in text


def test_table_of_a_good_run_says_so(ledger):
    made = report(ledger, [receive(ledger, range(20))], [window("killed", 5.0, 10.0)])
    assert table(made).endswith("All promises were kept.")


def test_copies_are_allowed_where_at_least_once_is_promised(ledger):
    log = receive(ledger, [*range(20), 19, 19], "queue", Promise.AT_LEAST_ONCE)
    made = report(ledger, [log], [window("killed", 5.0, 25.0)])
    assert made.broken == []
    assert made.allowed_duplicates == 2
    assert made.total.duplicates == 0


def test_volatile_messages_that_are_missing_are_no_loss(ledger):
    made = report(ledger, [receive(ledger, [3], promise=Promise.AT_MOST_ONCE)], [])
    assert made.broken == []
    assert made.total.lost == 0

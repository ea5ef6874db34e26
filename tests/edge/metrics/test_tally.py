import datetime

import pytest

from eventbus.cluster.cluster import BusLag
from eventbus_edge.metrics.tally import (
    LATENCY_BOUNDS,
    Latencies,
)


def ago(**span):
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(**span)


def test_latency_falls_into_its_bucket_and_into_the_sum():
    latencies = Latencies()
    latencies.since(ago(milliseconds=30).isoformat())
    assert latencies.counts[LATENCY_BOUNDS.index(0.05)] == 1
    assert latencies.sum == pytest.approx(0.03, abs=0.015)
    buckets = dict(latencies.cumulative())
    assert (buckets["0.025"], buckets["0.05"], buckets["+Inf"]) == (0, 1, 1)


@pytest.mark.parametrize(
    "form", ["2026-11-23T21:20:11.123456789Z", "2026-11-23T21:20:11Z", "2026-11-23T22:20:11+01:00"]
)
def test_times_as_streams_and_publishers_write_them_are_read(form):
    latencies = Latencies()
    latencies.since(form)
    assert sum(latencies.counts) == 1


def test_more_than_an_hour_counts_as_an_hour_and_the_future_as_now():
    latencies = Latencies()
    latencies.since("1970-01-01T00:00:00Z")
    latencies.since("0001-01-01T00:00:00+14:00")
    assert latencies.sum <= 2 * 3600.0
    assert latencies.counts[-1] >= 1
    before = latencies.sum
    latencies.since("2999-01-01T00:00:00Z")
    assert latencies.sum == before


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-23T21:20:11", "nan", "9" * 5000])
def test_invalid_times_and_times_without_a_zone_are_ignored(text):
    latencies = Latencies()
    latencies.since(text)
    assert sum(latencies.counts) == 0


def test_lag_is_the_round_trip_of_the_last_hello():
    lag = BusLag()
    assert lag.seconds(5.0) == 0.0
    lag.sent(10.0)
    lag.received(10.25)
    assert lag.seconds(99.0) == 0.25


def test_lag_grows_while_a_hello_is_under_way_even_if_others_follow():
    lag = BusLag()
    lag.sent(10.0)
    lag.sent(12.0)
    assert lag.seconds(13.0) == 3.0
    lag.received(14.0)
    assert lag.seconds(20.0) == 4.0

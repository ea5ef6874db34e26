import pytest

from eventbus_edge.cluster.rates import (
    MAX_COUNTED,
    ChannelRates,
)


def test_steady_messages_have_their_rate_from_the_first_second_on():
    rates = ChannelRates(0.0)
    for second in range(1, 30):
        for _ in range(10):
            rates.count("general")
        assert rates.read(float(second))["general"] == pytest.approx(10, rel=0.15)


def test_silent_channel_is_forgotten():
    rates = ChannelRates(0.0)
    rates.count("general")
    assert "general" in rates.read(1.0)
    assert rates.read(60.0) == {}


def test_more_channels_than_the_bound_are_not_counted_and_reported():
    rates = ChannelRates(0.0)
    for number in range(MAX_COUNTED):
        rates.count(f"c.{number}")
    assert not rates.overflowed
    rates.count("one.more")
    assert rates.overflowed
    assert len(rates.read(1.0)) == MAX_COUNTED


def test_bound_holds_over_several_readings():
    rates = ChannelRates(0.0)
    for reading in range(2):
        for number in range(MAX_COUNTED):
            rates.count(f"c.{reading}.{number}")
        assert len(rates.read(reading + 1.0)) <= MAX_COUNTED
    assert rates.overflowed

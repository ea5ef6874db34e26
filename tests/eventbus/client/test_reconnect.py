"""When a client connects again: the bands of close codes, and a delay that grows."""

import pytest
from hypothesis import given, strategies as st

from eventbus.client.link import Reconnect

codes = st.integers(1000, 4999)


@pytest.mark.parametrize("code", [4000, 4001, 4003, 4008, 4099])
def test_the_edge_says_to_stay_away(code):
    assert Reconnect(0.5, 30.0).after(code) is None


@pytest.mark.parametrize("code", [4200, 4201, 4202, 4203, 4299])
def test_at_once_is_anywhere_below_the_first_delay(code):
    assert Reconnect(0.5, 30.0, lambda low, _: low).after(code) == 0.0
    assert Reconnect(0.5, 30.0, lambda _, high: high).after(code) == 0.5


def test_at_once_again_and_again_backs_off():
    reconnect = Reconnect(0.5, 30.0, lambda low, _: low)
    assert [reconnect.after(4200) for _ in range(4)] == [0.0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("code", [1001, 1006, 1011, 4100, 4199, 4300])
def test_anything_else_doubles_up_to_the_longest_delay(code):
    reconnect = Reconnect(0.5, 4.0, lambda _, high: high)
    assert [reconnect.after(code) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_steady_connection_begins_again_at_the_first_delay():
    reconnect = Reconnect(0.5, 4.0, lambda _, high: high)
    reconnect.after(1006), reconnect.after(1006)
    reconnect.steady()
    assert reconnect.after(1006) == 0.5


def test_retry_after_holds_where_it_is_longer_and_no_longer_than_the_longest_delay():
    assert Reconnect(0.5, 30.0, lambda _, high: high).after(1006, 7.0) == 7.0
    assert Reconnect(0.5, 30.0, lambda _, high: high).after(1006, 7000.0) == 30.0


@given(st.lists(codes, max_size=200), st.floats(0.01, 5.0), st.floats(5.0, 100.0))
def test_delays_are_bounded_and_jittered_whatever_comes(seen, first, last):
    reconnect = Reconnect(first, last)
    for code in seen:
        delay = reconnect.after(code)
        if 4000 <= code < 4100:
            assert delay is None
        else:
            assert 0 <= delay <= last

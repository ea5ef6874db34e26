"""Back-off: delays grow to the limit, begin again after a success, and are spread by jitter."""

import pytest
from hypothesis import given, strategies as st

from eventbus.attempts import Backoff


def test_delays_grow_by_the_factor_up_to_the_limit():
    backoff = Backoff(0.1, 1.0, factor=3, jitter=0)
    assert [backoff.next() for _ in range(5)] == pytest.approx([0.1, 0.3, 0.9, 1.0, 1.0])


def test_reset_begins_with_the_shortest_delay_again():
    backoff = Backoff(1, 8, jitter=0)
    assert [backoff.next(), backoff.next()] == [1, 2]
    backoff.reset()
    assert backoff.next() == 1


def test_delay_of_an_attempt_does_not_count_as_one():
    backoff = Backoff(1, 8, jitter=0)
    assert [backoff.delay(2), backoff.delay(0), backoff.next()] == [4, 1, 1]


@given(attempt=st.integers(0, 10**9), jitter=st.floats(0, 1))
def test_delay_is_between_the_jittered_part_and_the_whole(attempt, jitter):
    backoff = Backoff(0.1, 30, jitter=jitter)
    whole = min(30, 0.1 * 2 ** min(attempt, 64))
    assert whole * (1 - jitter) - 1e-9 <= backoff.delay(attempt) <= whole + 1e-9


def test_jitter_draws_from_the_whole_range():
    drawn = []
    backoff = Backoff(2, 8, jitter=1, uniform=lambda low, high: drawn.append((low, high)) or high)
    assert [backoff.next(), backoff.next()] == [2, 4]
    assert drawn == [(0, 2), (0, 4)]


@pytest.mark.parametrize(
    "settings",
    [{"first": -1}, {"first": 2}, {"factor": 0.5}, {"jitter": 1.5}, {"limit": float("nan")}],
)
def test_invalid_settings_are_refused(settings):
    with pytest.raises(ValueError, match="no back-off"):
        Backoff(**{"first": 0.1, "limit": 1.0} | settings)

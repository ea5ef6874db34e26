"""Retention classes: what the setting means, and that nothing else means anything."""

import pytest
from hypothesis import given, strategies as st

from eventbus.errors import ConfigError
from eventbus.retention import MAX_CLASSES, MAX_COUNT, Retention

TOKENS = st.text("abcXYZ09_=@,;-", min_size=1, max_size=8)
NAMES = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
AGES = st.tuples(st.integers(1, 365), st.sampled_from("smhd"))
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SIZES = st.none() | st.tuples(st.integers(1, 1024), st.sampled_from(["MiB", "GiB"]))


def test_classes_are_read_and_the_first_that_matches_holds():
    retention = Retention("prices.btc:5/90s prices.*:1/7d/64MiB  orders.{id}.>:1000/24h")
    assert retention.of("prices.btc")[1:] == (5, 90.0, None, "process")
    assert retention.of("prices.eth")[1:] == (1, 604_800.0, 64 * 1024**2, "process")
    assert retention.of("orders.7.paid")[1:] == (1000, 86_400.0, None, "process")


def test_channels_of_no_class_are_kept_as_by_default():
    retention = Retention("prices.*:1/7d", count=7, seconds=3.0)
    assert retention.of("prices") == retention.of("orders.7") == retention.default
    assert retention.default == (None, 7, 3.0, None, "process")
    assert Retention("").of("a") == (None, 100, 600.0, None, "process")


def test_class_names_its_durability_or_has_the_default_one():
    retention = Retention("a:1/1h/disk b:1/1h/1MiB/disk c:1/1h/process d:1/1h")
    assert [retention.of(name).durability for name in "abcd"] == [
        "disk", "disk", "process", "process",
    ]  # fmt: skip
    assert retention.of("b").max_bytes == 1024**2
    assert retention.durability == "disk"
    retention = Retention("c:1/1h/process d:1/1h", durability="disk")
    assert [retention.of(name).durability for name in "cde"] == ["process", "disk", "disk"]


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("", "process", "process"),
        ("a:1/1h b:1/1h/process", "process", "process"),
        ("a:1/1h b:1/1h/disk", "process", "disk"),
        ("a:1/1h/process", "disk", "disk"),
    ],
)
def test_the_strictest_class_decides_on_the_durability_of_all(text, default, expected):
    assert Retention(text, durability=default).durability == expected


def test_the_greatest_bounds_are_known():
    retention = Retention("a:1000/1s b:1/1h", count=7, seconds=3.0)
    assert (retention.max_count, retention.max_seconds) == (1000, 3600.0)


@given(st.lists(st.tuples(NAMES, st.integers(1, MAX_COUNT), AGES, SIZES), max_size=8,
                unique_by=lambda one: one[0]))  # fmt: skip
def test_written_events_are_read_unchanged(given_classes):
    text = "\n ".join(
        f"{name}:{count}/{age}{unit}" + (f"/{size[0]}{size[1]}" if size else "")
        for name, count, (age, unit), size in given_classes
    )
    retention = Retention(text)
    assert len(retention.classes) == len(given_classes)
    for name, count, (age, unit), size in given_classes:
        kept = retention.of(name)
        assert kept.messages == count
        assert kept.seconds == age * SECONDS[unit]
        scale = {"MiB": 1024**2, "GiB": 1024**3}
        assert kept.max_bytes == (size[0] * scale[size[1]] if size else None)


@given(st.text("ab.*>{}:/019smhdKMiB ", max_size=40))
def test_any_text_is_classes_or_an_error_that_names_the_variable(text):
    try:
        read = Retention(text)
    except ConfigError as exc:
        read = exc
    assert len(read.classes) == len(text.split()) if isinstance(read, Retention) else read.variable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orders", "'orders' is not a retention class"),
        ("orders:5", "is not a retention class"),
        ("orders:5/1w", "is not a retention class"),
        ("orders:5/1h/1MB", "is not a retention class"),
        ("orders:5/1h/ssd", "is not a retention class"),
        ("orders:5/1h/disk/1MiB", "is not a retention class"),
        ("orders:5/disk", "is not a retention class"),
        ("orders:-5/1h", "is not a retention class"),
        ("orders:٣/1h", "is not a retention class"),
        ("a:1/1h,b:1/1h", "is not a retention class"),
        ("a..b:1/1h", "not a channel pattern"),
        ("a.>.b:1/1h", "not a channel pattern"),
        ("a:0/1h", "count 0"),
        (f"a:{MAX_COUNT + 1}/1h", "count 10001"),
        ("a:1/0s", "age 0s"),
        ("a:1/0.01s", "age 0.01s"),
        ("a:1/366d", "age 366d"),
        ("a:1/1h/1023KiB", "size 1023KiB"),
        ("a:1/1h/999999999TiB", "size 999999999TiB"),
        ("a.>:1/1h a.b:2/1h", "never applies: 'a.>' matches all its channels"),
        ("a.{x}:1/1h a.*:2/1h", "never applies"),
        (" ".join(f"c{i}:1/1h" for i in range(MAX_CLASSES + 1)), "33 classes"),
    ],
)
def test_invalid_values_are_refused_with_what_is_allowed(text, expected):
    with pytest.raises(
        ConfigError, match=r"BROADCAST_RETENTION=.*allowed: pattern:count"
    ) as caught:
        Retention(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "default",
    [
        {"count": 0},
        {"count": -1},
        {"count": 2**63},
        {"count": 1.5},
        {"count": True},
        {"seconds": 0},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": "600"},
    ],
)
def test_default_that_is_made_in_code_is_checked(default):
    with pytest.raises(ConfigError, match="allowed: 1 message or more"):
        Retention(**default)

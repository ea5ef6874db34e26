"""Durations in options: which forms they accept, and the limits of each option."""

import pytest
import typer
import typer.testing

from eventbus.cli.app import app
from eventbus.cli.durations import MAX_S, duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), (" 10m ", 600), ("1.5h", 5400), ("24h", 86_400), ("2d", 172_800),
        ("250ms", 0.25), ("365d", MAX_S), ("90 s", 90),
    ],
)  # fmt: skip
def test_duration_has_a_unit_or_is_in_seconds(text, seconds):
    assert duration(text, "--for") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1e3", "h", "1 week", "1h30m", "24H", "٣s", "inf", "nan", "366d", "9" * 5000],
)
def test_anything_else_is_refused_with_the_option_and_what_is_allowed(text, capsys):
    with pytest.raises(typer.Exit) as exited:
        duration(text, "--lifetime")
    assert exited.value.exit_code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --lifetime: ")
    assert "such as 90s, 10m or 1.5h" in error
    assert len(error) < 400


def test_zero_is_allowed_where_it_has_a_meaning():
    assert duration("0", "--duration", zero=True) == 0
    assert duration("0s", "--duration", zero=True) == 0


@pytest.mark.parametrize(("text", "limit"), [("49ms", "50ms to 1h"), ("61m", "50ms to 1h")])
def test_limits_of_an_option_are_named(text, limit, capsys):
    with pytest.raises(typer.Exit):
        duration(text, "--interval", least=0.05, most=3600)
    assert limit in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("token", "issue", "7", "--dev-secret"), "--lifetime"),
        (("revoke", "--user", "7"), "--for"),
        (("subjects", "tail", "general"), "--since"),
        (("broadcast", "monitor"), "--duration"),
        (("broadcast", "ping"), "--interval"),
        (("queue", "work"), "--grace"),
        (("queue", "work"), "--max-time"),
        (("chaos", "--edges", "http://127.0.0.1:1"), "--time"),
    ],
)
def test_every_option_that_is_a_duration_has_the_same_forms(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("BROADCAST_CONNECT_TIMEOUT", "0.1")
    runner = typer.testing.CliRunner()
    refused = runner.invoke(app, [*command, option, "1 week"])
    assert (refused.exit_code, refused.output.count(f"{option}: '1 week'")) == (2, 1)
    for good in ("15m", "900"):
        accepted = runner.invoke(app, [*command, option, good])
        assert "is not a duration" not in accepted.output
        assert accepted.exit_code in {0, 1}, accepted.output

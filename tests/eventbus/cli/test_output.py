"""Tables in narrow terminals, and text that others wrote."""

import io
import json

import pytest

from eventbus.cli import output
from eventbus.cli.output import fit_columns, one_line, print_table, say, write_json

FAILED = {"id": 36, "event": 20, "error": 60, "queue": 8, "attempts": 8, "failed at": 20}
CHANNELS = {"channel": 200, "connections": 11, "kind": 8}
HOSTILE = "a\x1b[31mb\x9b2Jc\u202ed\x07\x7f\u2066e\ud800\U000e0041"


@pytest.mark.parametrize(
    ("room", "widths"),
    [
        (200, [36, 20, 60, 8, 8, 20]),
        (120, [36, 20, 18, 8, 8, 20]),
        (100, [36, 20, 20, 8, 8]),
        (80, [36, 18, 12, 8]),
        (60, [36, 20]),
        (40, [36]),
        (30, [30]),
        (1, [1]),
    ],
)
def test_ids_are_never_cut_and_the_last_columns_are_left_out(room, widths):
    fitting = fit_columns(FAILED, room, ("attempts", "failed at"), ("id",))
    assert list(fitting.items()) == list(zip(FAILED, widths, strict=False))


@pytest.mark.parametrize(
    ("room", "widths"), [(80, [57, 11, 8]), (60, [37, 11, 8]), (40, [27, 11]), (25, [25])]
)
def test_long_channel_is_folded_and_leaves_room_for_its_counts(room, widths):
    fitting = fit_columns(CHANNELS, room, ("connections",), ("channel",))
    assert list(fitting.items()) == list(zip(CHANNELS, widths, strict=False))


@pytest.mark.parametrize("columns", range(1, 130, 7))
def test_table_fits_every_width(columns):
    for natural, right, whole in (
        (FAILED, ("attempts", "failed at"), ("id",)),
        (CHANNELS, ("connections",), ("channel",)),
        (CHANNELS, (), ("channel", "kind")),
    ):
        widths = fit_columns(natural, columns, right, whole)
        gaps = 2 * (len(widths) - 1)
        assert sum(widths.values()) + gaps <= max(columns, gaps + len(widths))
        assert set(whole) <= widths.keys()
        assert all(1 <= width <= natural[name] for name, width in widths.items())
        assert all(widths[name] == natural[name] for name in right if name in widths)


def test_folded_cell_has_every_character(monkeypatch, capsys):
    monkeypatch.setattr(output, "_NO_LIMIT", 60)
    print_table(
        ("channel", "connections"), [["x" * 200, 12]], right=("connections",), whole=("channel",)
    )
    shown = capsys.readouterr().out
    assert shown.count("x") == 200
    assert "12" in shown.splitlines()[1]


def test_columns_that_are_left_out_are_named(monkeypatch, capsys):
    monkeypatch.setattr(output, "_NO_LIMIT", 40)
    print_table(("id", "error", "queue"), [["i" * 36, "wrong", "mail"]], whole=("id",))
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "not shown in this width: error, queue (see --json)"


@pytest.mark.parametrize("write", [say, lambda text: print_table(("name",), [[text]])])
def test_control_and_invisible_characters_of_others_are_escaped(write, capsys):
    write(HOSTILE)
    shown = capsys.readouterr().out
    assert r"a\x1b[31mb\x9b2Jc\u202ed\x07\x7f\u2066e\ud800\U000e0041" in shown
    assert all(char.isprintable() for char in shown.replace("\n", ""))


def test_text_of_any_language_is_shown_as_it_is(capsys):
    text = "Größe 漢字 عربي 😀 a\u3000b\u00a0c"
    say(text)
    assert capsys.readouterr().out == f"{text}\n"
    assert one_line("a\tb\r\nc\x1b[0m") == r"a b c\x1b[0m"
    assert one_line("x" * 100, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_is_plain_text_in_every_encoding_and_keeps_its_meaning(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    value = {"text": "Größe 漢 😀 \x1b\x9b\u202e\u2028", "tag": "\U000e0041"}
    write_json(value, indent=False)
    shown = written.getvalue().decode(encoding)
    assert json.loads(shown) == value
    assert all(char.isprintable() for char in shown.rstrip("\n"))
    assert ("漢" in shown) is (encoding == "utf-8")

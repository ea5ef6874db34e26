import asyncio
import io
import sys

import pytest

from eventbus_edge.child_output import MAX_PIECE, pass_on

MARKER = "ready on "


async def passed(*chunks):
    """What was found after the marker, when the chunks arrive one after the other."""
    stream, found = asyncio.StreamReader(), []
    reading = asyncio.create_task(pass_on(stream, MARKER, found.append))
    for chunk in chunks:
        stream.feed_data(chunk)
        await asyncio.sleep(0)
    stream.feed_eof()
    async with asyncio.timeout(40):
        await reading
    return found


async def test_lines_are_passed_on_and_the_marked_one_is_not(capsys):
    assert await passed(b"one\ntwo\nready on http://a\nthr", b"ee") == ["http://a"]
    assert capsys.readouterr().out == "one\ntwo\nthree"


@pytest.mark.parametrize("end", [b"", b"\n", b" loading... "])
@pytest.mark.parametrize("size", [200_000, MAX_PIECE - 1, MAX_PIECE, MAX_PIECE + 1, 3 * MAX_PIECE])
async def test_address_is_found_after_a_long_line_or_one_without_an_end(capsys, size, end):
    text = b"x" * size + end + b"ready on http://a\nafter\n"
    for cut in (len(text), 65_536, 65_530 + size % 7):
        chunks = [text[start : start + cut] for start in range(0, len(text), cut)]
        assert await passed(*chunks) == ["http://a"]
        shown = capsys.readouterr().out
        assert shown.count("x") == size, "nothing of it is dropped"
        assert shown.endswith("after\n")


async def test_line_that_never_ends_takes_bounded_memory_and_is_shown(capsys):
    chunks = 64
    assert await passed(*(b"x" * 65_536 for _ in range(chunks))) == []
    assert len(capsys.readouterr().out) == chunks * 65_536


async def test_characters_are_decoded_across_chunks_and_bad_bytes_replaced(capsys):
    assert await passed("é".encode()[:1], "é".encode()[1:] + b"\xff\n") == []
    assert capsys.readouterr().out == "é\ufffd\n"


async def test_output_of_another_encoding_shows_escapes(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert await passed("é\nready on x\n".encode()) == ["x"]
    assert out.buffer.getvalue() == b"\\xe9\n"


async def test_closed_output_does_not_end_the_reading(monkeypatch, caplog):
    out = io.StringIO()
    out.close()
    monkeypatch.setattr(sys, "stdout", out)
    assert await passed(b"one\ntwo\nready on x\n") == ["x"]
    assert caplog.messages == [
        "the output of a child process is lost: I/O operation on closed file"
    ]

"""The log driver: what its lines say, what they hide, and what becomes of writes that fail."""

import asyncio
import base64
import datetime
import io
import json
import os
import pty
import threading

import msgspec
import pytest
from hypothesis import given, settings as bounds, strategies as st

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.config import SECRET_KEYS, Settings
from eventbus.drivers.local import Listeners
from eventbus.drivers.log import LogDriver, driver as log_module
from eventbus.drivers.log.lines import (
    Entry,
    LineFormat,
)
from eventbus.drivers.log.mask import Mask
from eventbus.drivers.log.output import Console
from eventbus.errors import ConfigError, ConnectionFailed, PublishFailed
from eventbus.events import Event, ShouldBroadcast
from eventbus.testing.contracts import DriverContract
from eventbus.testing.contracts.driver import Inbox

SUBJECTS = Subjects()
NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=datetime.UTC)


class Signed(Event, ShouldBroadcast, channel="users.{user_id}", name="log.signed", version=2):
    user_id: int
    password: str
    devices: list[dict[str, str]]


class TestLog(DriverContract):
    @pytest.fixture
    def make_driver(self, tmp_path, opened):
        listeners = Listeners()
        paths = iter(range(10))

        def make():
            settings = Settings(log_path=str(tmp_path / f"{next(paths)}.log"))
            return opened(LogDriver(settings, listeners=listeners))

        return make


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bus.log"


@pytest.fixture
def open_log(path, opened):
    return lambda **settings: opened(LogDriver(Settings(**{"log_path": str(path), **settings})))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def line_of(payload, subject="eb.event.a", headers=None, mask=SECRET_KEYS):
    text = LineFormat(SUBJECTS, mask).json(Entry(NOON, subject, payload, headers or {}))
    assert len(text.splitlines()) == 1
    return text


async def test_event_is_one_line_of_json_with_its_secrets_masked(path):
    settings = Settings(driver="log", log_path=str(path))
    async with EventBus(settings) as bus:
        event = Signed(user_id=7, password="hunter2", devices=[{"name": "x", "apiToken": "t0p"}])
        [receipt] = await bus.dispatch(event)
        [line] = lines(path)
    assert receipt.offset is None
    stamp = datetime.datetime.fromisoformat(line.pop("timestamp"))
    assert abs(datetime.datetime.now(datetime.UTC) - stamp) < datetime.timedelta(minutes=1)
    assert line == {
        "level": "info",
        "subject": "eb.event.users.7",
        "channel": "users.7",
        "event": "log.signed",
        "id": event.event_meta.id,
        "data": {"user_id": 7, "password": "***", "devices": [{"name": "x", "apiToken": "***"}]},
        "headers": {"Eb-Version": "2"},
    }


async def test_listeners_get_the_message_as_it_was_published_not_as_it_was_logged(open_log, path):
    driver, inbox = await open_log(), Inbox()
    await driver.subscribe(SUBJECTS.live("a"), inbox)
    payload = b'{"event":"x","data":{"token":"t0p"}}'
    await driver.publish(SUBJECTS.event("a"), payload)
    await inbox.until(1)
    assert inbox.payloads == [payload]
    assert lines(path)[0]["data"] == {"token": "***"}


def test_numbers_and_texts_stay_as_they_were_published():
    data = '{"n": 1.000, "big":123456789012345678901234567890, "huge":1.5E+400, "e":"\\u00e9é"}'
    payload = f'{{"event":"x","data":{data},"channel":"a"}}'.encode()
    logged = '{"n":1.000,"big":123456789012345678901234567890,"huge":1.5E+400,"e":"éé"}'
    assert f'"data":{logged}' in line_of(payload)


def test_json_in_a_string_stays_as_it_is_where_nothing_is_secret():
    data = {"body": '{ "a" : 1.50,\n"b": ["\\u00e9"] }', "broken": '{"token":', "text": '"'}
    assert json.loads(line_of(json.dumps(data).encode()))["data"] == data


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b'{"event":"x","data":null}', {"event": "x"}),
        (b'{"event":"x","data":1,"id":"7"}', {"event": "x", "id": "7", "data": 1}),
        (b'{"hello":1}', {"data": {"hello": 1}}),
        (b'{"event":7,"data":1}', {"data": {"event": 7, "data": 1}}),
        (b"[1,2]", {"data": [1, 2]}),
        (b'"text"', {"data": "text"}),
        ("größe".encode(), {"data_base64": base64.b64encode("größe".encode()).decode()}),
        (b"\xff\xfe", {"data_base64": "//4="}),
        (b'{"a":"\xff"}', {"data_base64": base64.b64encode(b'{"a":"\xff"}').decode()}),
        (b"", {"data_base64": ""}),
        (b'{"a":1}{"b":2}', {"data_base64": base64.b64encode(b'{"a":1}{"b":2}').decode()}),
        (b"[" * 100_000, {"data_base64": base64.b64encode(b"[" * 100_000).decode()}),
    ],
)
def test_every_payload_has_its_line(payload, shown):
    line = json.loads(line_of(payload))
    expected = {"timestamp": "2026-01-02T12:00:00.000005Z", "level": "info",
                "subject": "eb.event.a", "channel": "a", **shown}  # fmt: skip
    if shown == {"event": "x"}:
        expected["data"] = None
    assert line == expected


def test_headers_are_shown_and_those_of_secrets_masked():
    headers = {"Nats-Msg-Id": "7:a", "Eb-Event": "named", "Authorization": "Bearer x",
               "X-Api-Key": "k", "traceparent": "00-ab"}  # fmt: skip
    line = json.loads(line_of(b"1", headers=headers))
    assert (line["id"], line["event"]) == ("7:a", "named")
    assert line["headers"] == {"Authorization": "***", "X-Api-Key": "***", "traceparent": "00-ab"}


def test_text_that_would_break_a_line_or_steer_a_terminal_is_escaped():
    name = "a\n\r\x1b[2J\x9b2J\u2028\u202eb"
    payload = json.dumps({"event": name, "data": {"x": name}}, indent=2, ensure_ascii=False)
    line = line_of(payload.encode())
    assert json.loads(line)["data"] == {"x": name}
    assert json.loads(line)["event"] == name
    shown = LineFormat(SUBJECTS, ()).readable(
        Entry(NOON, "eb.event.a", payload.encode(), {"h": "\x1b]0;title\x07"}), colour=False
    )
    for text in (line, shown):
        assert not any(c in text for c in "\n\r\x1b\x9b\x07\u2028\u202e")


SECRETS = [
    '{"password":"S3CR3T"}',
    '{"PassWord":"S3CR3T"}',
    '{"user_password":"S3CR3T"}',
    '{"x-access-TOKEN":"S3CR3T"}',
    '{"apiKey":"S3CR3T","api-key":"S3CR3T","API_KEY":"S3CR3T"}',
    '{"p\\u0061ssword":"S3CR3T"}',
    '{"\\u0070\\u0061\\u0073\\u0073\\u0077\\u006f\\u0072\\u0064":"S3CR3T"}',
    '{"pass\\u005fword":"S3CR3T"}',
    '{"a":[{"b":[[{"secret":["S3CR3T",{"x":"S3CR3T"}]}]]}]}',
    '{"token":{"a":"}\\"S3CR3T","b":["]S3CR3T"]}}',
    '{ "token" \n:\t "S3CR3T" }',
    '{"token":"\\"S3CR3T\\\\"}',
    '{"token":"a","token":"S3CR3T"}',
    '{"token":"S3CR3T","token":"***"}',
    json.dumps({"body": '{"token":"S3CR3T","token":"***"}'}),
    json.dumps({"body": "[" * 2000 + '{"token":"S3CR3T"}' + "]" * 2000}),
    json.dumps({"body": "[" * 500 + '{"token":"S3CR3T"}' + "]" * 500}),
    "[" * 500 + '{"token":"S3CR3T"}' + "]" * 500,
    '{"a":"\\"password\\":","token":"S3CR3T"}',
    '{"a":"\\\\","token":"S3CR3T"}',
    json.dumps({"body": json.dumps({"password": "S3CR3T"})}),
    json.dumps({"body": json.dumps([json.dumps({"token": "S3CR3T"})])}),
    json.dumps(json.dumps(json.dumps({"password": "S3CR3T"}))),
    '{"token":"\\u00e9S3CR3T","\\ud83d\\ude00":1}',
]


@pytest.mark.parametrize("text", SECRETS)
def test_secret_is_masked_wherever_and_however_it_stands(text):
    for payload in (text, f'{{"event":"x","data":{text}}}'):
        line = line_of(payload.encode())
        assert "S3CR3T" not in line
        assert "***" in line
        json.loads(line)


def test_json_in_strings_too_deep_to_look_into_is_masked_whole():
    text = '{"password":"S3CR3T"}'
    for _ in range(7):
        text = json.dumps([text])
    line = line_of(text.encode())
    assert "S3CR3T" not in line
    assert "***" in line


def test_json_that_is_deep_in_strings_within_strings_is_logged_anyway():
    text = '{"password":"S3CR3T"}'
    for _ in range(6):
        text = json.dumps(json.loads("[" * 90 + "0" + "]" * 90)).replace("0", json.dumps(text))
    line = line_of(text.encode())
    assert "S3CR3T" not in line
    json.loads(line)


@pytest.mark.parametrize(
    "payload", [b'{"password":"S3CR3T"', b'{"p\\u0061ssword":"S3CR3T","x":"\\ud800"}',
                "{'password':1}".encode("utf-16"), b"user=a&password=S3CR3T"]
)  # fmt: skip
def test_data_other_than_json_is_masked_whole_when_it_names_a_secret(payload):
    assert json.loads(line_of(payload))["data_base64"] == "***"


def test_text_that_only_looks_like_a_secret_stays():
    text = '{"a":"password","b":["token"],"pass":"x","words":"the \\"token\\": none"}'
    assert json.loads(line_of(text.encode()))["data"] == json.loads(text)


def test_numbers_and_literals_under_a_secret_key_are_masked():
    text = '{"token":12.5e3,"secret":null,"jwt":true,"cookie":[],"after":1}'
    expected = dict.fromkeys(["token", "secret", "jwt", "cookie"], "***") | {"after": 1}
    assert json.loads(line_of(text.encode()))["data"] == expected


def test_words_of_the_setting_take_the_place_of_the_default_ones():
    line = json.loads(line_of(b'{"iban":"x","password":"y"}', mask=["IBAN"]))
    assert line["data"] == {"iban": "***", "password": "y"}


KEYS = st.sampled_from(["password", "a", "", 'x"', "\\", "to ken", "token", "é", "{", "secrets:"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def masked(value):
    """What masking must give, computed over decoded values."""
    if isinstance(value, dict):
        hidden = ("password", "token", "secrets:")
        return {
            key: "***" if key in hidden or key == "to ken" else masked(inner)
            for key, inner in value.items()
        }
    return [masked(each) for each in value] if isinstance(value, list) else value


@bounds(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_masking_any_json_masks_its_secrets_and_keeps_the_rest(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):  # half of a surrogate pair
        return
    assert json.loads(Mask(SECRET_KEYS).apply(text)) == masked(value)


async def test_level_says_what_is_logged_and_everything_is_delivered(open_log, path):
    expected = {"debug": 4, "info": 2, "warning": 1}
    for level, count in expected.items():
        driver, inbox = await open_log(log_level=level), Inbox()
        await driver.subscribe("eb.>", inbox)
        for subject in (SUBJECTS.event("a"), SUBJECTS.live("a"), SUBJECTS.control("nodes"),
                        SUBJECTS.quarantine("a")):  # fmt: skip
            await driver.publish(subject, b"1")
        await inbox.until(4)
        written = lines(path)
        assert len(written) == count, level
        path.write_text("")
    assert [line["level"] for line in written] == ["warning"]
    assert (written[0]["channel"], written[0]["subject"]) == ("a", "eb.quarantine.a")


async def test_file_is_rotated_by_size_and_only_so_many_are_kept(open_log, path):
    driver = await open_log(log_max_bytes=1000, log_backups=2)
    for i in range(100):
        await driver.publish(SUBJECTS.event("a"), str(i).encode())
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["bus.log", "bus.log.1", "bus.log.2"]
    assert all(file.stat().st_size <= 1000 for file in files)
    newest = [line["data"] for file in (files[2], files[1], files[0]) for line in lines(file)]
    assert newest == list(range(100 - len(newest), 100)), "nothing is lost at a rotation"


async def test_file_without_a_size_is_never_rotated(open_log, path):
    driver = await open_log(log_max_bytes=0)
    for _ in range(100):
        await driver.publish(SUBJECTS.event("a"), b"1")
    assert list(path.parent.iterdir()) == [path]
    assert len(lines(path)) == 100


async def test_log_continues_where_it_ended_and_mends_a_line_cut_short(open_log, path):
    path.write_text('{"whole":1}\n{"cut')
    driver = await open_log()
    await driver.publish(SUBJECTS.event("a"), b"1")
    first, cut, last = path.read_text().splitlines()
    assert (first, cut) == ('{"whole":1}', '{"cut')
    assert json.loads(last)["data"] == 1


@pytest.mark.parametrize("name", ["missing/bus.log", ".", "nul\0.log"])
async def test_path_that_cannot_be_written_stops_the_start_and_names_its_variable(tmp_path, name):
    bus = EventBus(Settings(driver="log", log_path=f"{tmp_path}/{name}"))
    with pytest.raises(ConfigError, match=r"BROADCAST_LOG_PATH=.*allowed: the path") as caught:
        await bus.open()
    assert caught.value.variable == "BROADCAST_LOG_PATH"
    assert not bus.driver.is_connected


def test_word_to_mask_that_is_not_a_word_is_refused():
    with pytest.raises(ConfigError, match="BROADCAST_LOG_MASK: '-_' has no letter") as caught:
        EventBus.from_env({"BROADCAST_DRIVER": "log", "BROADCAST_LOG_MASK": "token,-_"})
    assert caught.value.variable == "BROADCAST_LOG_MASK"


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEVEL", "loud"), ("MAX_BYTES", "-1"), ("MAX_BYTES", "10MB"), ("BACKUPS", "0")],
)
def test_setting_that_cannot_be_understood_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"BROADCAST_LOG_{name}='{value}'.*allowed"):
        Settings.from_env({f"BROADCAST_LOG_{name}": value})


async def test_full_disk_is_reported_to_the_publisher_and_nothing_is_delivered(open_log):
    driver, inbox = await open_log(log_path="/dev/full"), Inbox()
    await driver.subscribe(SUBJECTS.live("a"), inbox)
    for _ in range(2):
        with pytest.raises(PublishFailed, match=r"written to /dev/full: .*No space left") as caught:
            await driver.publish(SUBJECTS.event("a"), b"x" * 100_000)
        assert caught.value.driver == "log"
    await driver.publish(SUBJECTS.live("a"), b"volatile, which is not logged")
    await inbox.until(1)
    assert len(inbox.deliveries) == 1
    assert driver.is_connected


class SlowConsole(io.StringIO):
    """A console whose reader has stopped reading."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def write(self, text):
        self.gate.wait(10)
        return super().write(text)


async def test_output_that_hangs_blocks_neither_the_loop_nor_more_than_its_bound(monkeypatch):
    monkeypatch.setattr(log_module, "MAX_PENDING_BYTES", 10)
    stream = SlowConsole()
    driver = LogDriver(Settings(publish_timeout=0.05), console=Console(stream))
    await driver.open()
    try:
        with pytest.raises(PublishFailed, match=r"to the console: not within 0\.05 s"):
            await driver.publish(SUBJECTS.event("a"), b"1" * 8)
        with pytest.raises(PublishFailed, match="not logged: 8 bytes wait to be written"):
            await driver.publish(SUBJECTS.event("a"), b"2" * 8)
        stream.gate.set()
        async with asyncio.timeout(30):
            while "11111111" not in stream.getvalue():  # noqa: ASYNC110 - a thread writes it
                await asyncio.sleep(0.001)
        await driver.publish(SUBJECTS.event("a"), b"3" * 8)
    finally:
        stream.gate.set()
        await driver.aclose()
    assert [json.loads(line)["data"] for line in stream.getvalue().splitlines()] == [
        11111111,
        33333333,
    ], "what was given up is written late, and what was refused never"


async def test_close_gives_up_an_output_that_hangs(caplog):
    stream = SlowConsole()
    driver = LogDriver(Settings(publish_timeout=0.05), console=Console(stream))
    await driver.open()
    with pytest.raises(PublishFailed):
        await driver.publish(SUBJECTS.event("a"), b"1")
    await driver.aclose()
    stream.gate.set()
    assert "the console could not be closed in time" in caplog.text


async def test_console_that_is_closed_is_a_reported_failure():
    stream = io.StringIO()
    driver = LogDriver(Settings(), console=Console(stream))
    await driver.open()
    stream.close()
    with pytest.raises(PublishFailed, match="the console: I/O operation on closed file"):
        await driver.publish(SUBJECTS.event("a"), b"1")
    await driver.aclose()


async def test_console_that_is_not_a_terminal_gets_json_on_standard_output(capsys):
    async with EventBus.from_env({"BROADCAST_DRIVER": "log"}) as bus:
        await bus.publish("general", "news", {"a": "é"})
    captured = capsys.readouterr()
    assert json.loads(captured.out)["data"] == {"a": "é"}
    assert captured.err == ""


async def test_console_without_unicode_gets_escapes_that_are_json():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    driver = LogDriver(Settings(), console=Console(stream))
    await driver.open()
    await driver.publish(SUBJECTS.event("a"), '{"a":"é€😀"}'.encode())
    await driver.aclose()
    assert json.loads(stream.buffer.getvalue())["data"] == {"a": "é€😀"}


@pytest.mark.parametrize("no_color", ["", "1"])
async def test_terminal_gets_readable_lines_coloured_unless_set_otherwise(no_color):
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream, os.fdopen(controller, "rb") as seen:
        driver = LogDriver(Settings.from_env({"NO_COLOR": no_color}), console=Console(stream))
        await driver.open()
        payload = b'{"event":"news","data":{"a":1,"token":"x"},"id":"7"}'
        await driver.publish(SUBJECTS.event("general"), payload, {"traceparent": "00-ab"})
        await driver.aclose()
        text = os.read(seen.fileno(), 4096).decode()
    assert ("\x1b[" in text) == (not no_color)
    for code in ("2", "36", "1", "0"):
        text = text.replace(f"\x1b[{code}m", "")
    time, rest = text.split("  ", 1)
    assert rest == 'general  news  {"a":1,"token":"***"}  7  traceparent=00-ab\r\n'
    datetime.time.fromisoformat(time)


async def test_driver_is_opened_once(open_log):
    driver = await open_log()
    with pytest.raises(ConnectionFailed, match="opened only once"):
        await driver.open()
    with pytest.raises(ConnectionFailed, match="not open"):
        await LogDriver(Settings()).publish("eb.event.a", b"")

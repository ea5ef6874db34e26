import io
import json
import logging
import sys

import pytest

from eventbus.tokens import issue_token
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.logs import (
    ConsoleFormatter,
    JsonFormatter,
    configure,
)
from eventbus_edge.protocols.vocabulary import CloseReason
from eventbus_edge.sessions.session import Session

SECRET = "a-secret-of-tests-that-is-32-bytes-long"


@pytest.fixture
def log():
    """A logger of its own, whose records come out as a formatter makes them."""
    logger = logging.getLogger("edge.test_logs")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)

    def use(formatter):
        handler.setFormatter(formatter)
        return logger, stream

    yield use
    logger.removeHandler(handler)


def test_json_line_has_time_level_logger_message_and_connection(log):
    logger, stream = log(JsonFormatter())
    logger.warning("slow by %d ms", 7, extra={"connection": "c1"})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "edge.test_logs",
        "message": "slow by 7 ms",
        "connection": "c1",
    }


def test_exception_is_one_json_line_and_a_traceback_on_the_console(log):
    for formatter, lines in ((JsonFormatter(), 1), (ConsoleFormatter(), 4)):
        logger, stream = log(formatter)
        stream.truncate(0)
        stream.seek(0)
        try:
            int("no")
        except ValueError:
            logger.exception("failed")
        assert "ValueError: invalid literal" in stream.getvalue()
        assert len(stream.getvalue().splitlines()) >= lines
        if lines == 1:
            assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_token_is_hidden_in_message_and_in_traceback(log, formatter):
    token = issue_token("7", secret=SECRET)
    logger, stream = log(formatter)
    logger.warning("GET /ws?auth_token=%s", token)
    try:
        int(token)
    except ValueError:
        logger.exception("refused %s", token)
    assert "<token>" in stream.getvalue()
    for part in token.split("."):
        assert part not in stream.getvalue()


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_quoted_text_cannot_pass_for_a_separate_line(formatter):
    # Made by hand: no other handler of the test run should have to write such a text.
    forged = "a\r\n12:00:00 ERROR forged \ud800"
    record = logging.LogRecord("edge", logging.WARNING, "", 0, "channel %s", (forged,), None)
    line = formatter.format(record)
    assert len(line.splitlines()) == 1
    line.encode()


def test_console_is_coloured_for_a_terminal_only(log):
    for colour in (True, False):
        logger, stream = log(ConsoleFormatter(colour=colour))
        logger.error("x")
        assert ("\x1b[31m" in stream.getvalue()) is colour
        stream.truncate(0)
        stream.seek(0)


def test_configure_takes_the_place_of_what_was_configured_before():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure("json", "info", stream)
        configure("json", "warning", stream)
        logging.getLogger("other.x").info("unheard")
        logging.getLogger("other.x").warning("heard")
        assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["heard"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)


async def test_log_records_about_a_connection_name_it(start_edge, bus, token, caplog):
    rules = ChannelRules()

    @rules.authorize("team.{team_id}")
    async def check(user, team_id):
        raise LookupError("the application's own fault")

    edge = await start_edge(bus, rules=rules)
    client = await edge.connect(token=token())
    connection_id = client.greeting["data"]["connection_id"]
    assert await client.error("subscribe", channel="team.7") == "forbidden"
    edge.node.connections[connection_id].close(CloseReason.TOO_SLOW, "too slow: says the test")
    assert await client.closed() == 4201
    records = [r for r in caplog.records if getattr(r, "connection", None) == connection_id]
    names = {record.name for record in records}
    assert {"eventbus_edge.access.authorizers", "eventbus_edge.sessions.connection"} <= names
    for record in records:
        line = json.loads(JsonFormatter().format(record))
        assert line["connection"] == connection_id
        assert f"[connection={connection_id}]" in ConsoleFormatter().format(record)
    assert [r.levelname for r in records if "closing: 4201" in r.getMessage()] == ["INFO"]


async def test_fault_in_a_command_ends_its_connection_alone_and_is_logged_with_its_id(
    edge, caplog, monkeypatch
):
    client, other = await edge.connect(), await edge.connect()
    connection_id = client.greeting["data"]["connection_id"]
    broken, receive = edge.node.connections[connection_id].session, Session.receive

    def fail_for_one(session, *arguments):
        return 1 / 0 if session is broken else receive(session, *arguments)

    monkeypatch.setattr(Session, "receive", fail_for_one)
    await client.send("ping")
    assert await client.closed() == 1011
    assert await other.receives_nothing()
    [record] = [r for r in caplog.records if r.exc_info]
    assert (record.connection, record.name) == (connection_id, "eventbus_edge.sessions.connection")


class Unshowable(Exception):
    def __str__(self):
        raise SystemExit


@pytest.mark.parametrize("formatter", [JsonFormatter, ConsoleFormatter])
@pytest.mark.parametrize("exc", [Unshowable(), ValueError("\ud800")], ids=["text", "surrogate"])
def test_exception_that_cannot_be_shown_does_not_cost_the_record(formatter, exc):
    info = (type(exc), exc, None)
    # No logger: pytest-xdist cannot send a captured log that holds lone surrogates.
    record = logging.LogRecord("edge", logging.ERROR, __file__, 1, "it failed", None, info)
    written = formatter().format(record)
    assert "it failed" in written
    assert type(exc).__name__ in written
    assert written.encode()


def test_control_characters_of_others_do_not_reach_the_console(log):
    logger, stream = log(ConsoleFormatter())
    try:
        sys.exit("a\x1b[2J\u202eb\x9bc")
    except SystemExit:
        logger.exception("channel %s", "\x1b[31m\x9b\u2066")
    written = stream.getvalue()
    assert r"channel \x1b[31m\x9b\u2066" in written
    assert r"SystemExit: a\x1b[2J\u202eb\x9bc" in written
    assert all(char.isprintable() or char == "\n" for char in written)

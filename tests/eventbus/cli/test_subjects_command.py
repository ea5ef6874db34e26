"""`eventbus subjects`: what its commands print, against real servers and nodes."""

import asyncio
import json
import re
import signal

import nats
import pytest

from eventbus.bus import EventBus
from tests.eventbus.drivers.nats.conftest import api, connected


@pytest.fixture
def publish(eventbus):
    def one(channel, event, data, *more) -> dict:
        shown = eventbus("subjects", "publish", channel, event, json.dumps(data), *more, "--json")
        assert shown.returncode == 0, shown.stderr
        return json.loads(shown.stdout)

    return one


def test_published_message_is_stored_once_for_one_id(eventbus, publish):
    first = publish("orders.1", "order.shipped", {"n": 1}, "--id", "m1")
    again = publish("orders.1", "order.shipped", {"n": 1}, "--id", "m1")
    assert (first["offset"], first["duplicate"]) == (1, False)
    assert (again["offset"], again["duplicate"]) == (1, True)
    assert publish("orders.1", "tick", 5, "--volatile")["offset"] is None
    shown = eventbus("subjects", "publish", "orders.1", "e", "-", input='["from", "stdin"]')
    assert shown.stdout.startswith("published e on orders.1: offset 2, id "), shown.stderr
    tail = eventbus("subjects", "tail", "orders.1", "--last", "1", "--count", "1", "--json")
    assert json.loads(tail.stdout)["data"] == ["from", "stdin"]


def test_channels_with_subscribers_or_stored_messages_are_listed(
    eventbus, publish, start_node, join
):
    publish("orders.1", "e", {})
    publish("orders.1", "e", {})
    publish("general", "e", {})
    alone = json.loads(eventbus("subjects", "list", "--json").stdout)
    assert [row["kind"] for row in alone["channels"]] == [None, None]
    address = start_node()
    join(address, "public")
    join(address, "general")
    shown = eventbus("subjects", "list")
    assert shown.returncode == 0, shown.stderr
    header, *rows = shown.stdout.splitlines()
    assert header.split("  ")[0] == "channel"
    cells = [row.split() for row in rows]
    assert [each[:4] for each in cells] == [
        ["general", "1", "1", "public"],
        ["public", "1", "0", "public"],
        ["orders.1", "0", "2", "private"],
    ]
    assert cells[0][4].endswith("Z")
    assert len(cells[1]) == 4
    output = json.loads(eventbus("subjects", "list", "--pattern", "orders.*", "--json").stdout)
    assert [row["channel"] for row in output["channels"]] == ["orders.1"]
    output = json.loads(eventbus("subjects", "list", "--limit", "1", "--json").stdout)
    assert (len(output["channels"]), output["truncated"]) == (1, True)


def test_tail_shows_what_is_stored_then_what_comes_each_once(start_command, publish):
    publish("orders.1", "e", {"n": 1})
    publish("orders.2", "e", {"n": 2})
    process = start_command("subjects", "tail", "orders.*", "--last", "10", "--json")
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    publish("orders.1", "e", {"n": 3})
    publish("other", "e", {"n": 4})
    publish("orders.3", "e", {"n": 5}, "--volatile")
    lines += [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [line["data"]["n"] for line in lines] == [1, 2, 3, 5]
    assert lines[3]["offset"] is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, ""), err


@pytest.mark.parametrize("stored", [["--last", "10"], ["--since", "1h"]])
def test_tail_shows_the_messages_of_a_stream_that_was_created_again(
    start_command, publish, settings, stored
):
    for number in range(3):
        publish("orders.1", "before", number)
    process = start_command("subjects", "tail", "orders.1", *stored, "--json")
    assert [json.loads(process.stdout.readline())["data"] for _ in range(3)] == [0, 1, 2]
    asyncio.run(create_stream_again(settings))
    publish("orders.1", "after", 3)
    shown = json.loads(process.stdout.readline())
    assert (shown["data"], shown["offset"]) == (3, 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


async def create_stream_again(settings):
    name = f"{settings.namespace.upper()}_EVENTS"
    async with connected(settings.nats_url) as client:
        config = (await api(client, f"STREAM.INFO.{name}"))["config"]
        await api(client, f"STREAM.DELETE.{name}")
        while "error" in await api(client, f"STREAM.CREATE.{name}", config):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the server still removes the files of the one before


def test_tail_names_what_does_not_match_its_schema(eventbus, publish, settings):
    publish("chat.7", "ChatMessage", {"room_id": "7", "user_id": "1", "name": "Ada", "text": "hi"})
    publish("chat.7", "ChatMessage", {"room_id": "7", "user_id": "1", "name": "Ada", "text": 5})
    publish("chat.7", "unheard", None)

    async def not_a_message() -> None:
        async with EventBus(settings) as bus:
            await bus.driver.publish(bus.subjects.event("chat.7"), b"\xff\x1b[31m")

    asyncio.run(not_a_message())
    arguments = ("subjects", "tail", "chat.7", "--since", "5m", "--count", "4")
    decoded = ("--decode", "--app", "schemas")
    shown = eventbus(*arguments, *decoded)
    assert shown.returncode == 0, shown.stderr
    good, bad, why, other, fault, cause = shown.stdout.splitlines()
    assert good.endswith('"text": "hi"}  ChatMessage')
    assert bad.endswith('"text": 5}')
    assert why == "  does not match ChatMessage: Expected `str`, got `int` - at `$.text`"
    assert other.endswith("chat.7 unheard #3 null")
    assert "\x1b" not in fault
    assert cause.startswith("  not a message: ")
    assert "ChatMessage:" not in eventbus(*arguments).stdout
    reported = [
        json.loads(line) for line in eventbus(*arguments, *decoded, "--json").stdout.splitlines()
    ]
    assert [bool(each["mismatch"]) for each in reported] == [False, True, False, False]
    assert reported[3]["fault"]


def test_since_leaves_out_what_is_older(start_command, publish):
    publish("orders.1", "old", 1)
    arguments = ("subjects", "tail", "orders.1", "--since", "1ms", "--count", "1", "--json")
    process = start_command(*arguments)
    for _ in range(50):  # until it subscribes: a tail does not show earlier messages
        publish("orders.1", "new", 2, "--volatile")
        if process.poll() is not None:
            break
    out, err = process.communicate(timeout=30)
    assert json.loads(out)["event"] == "new", err


def test_inspect_shows_rule_history_members_and_nodes(
    eventbus, publish, start_node, join, cli_token
):
    address = start_node()
    join(address, "presence.room", cli_token("7", name="Ada"))
    receipt = publish("presence.room", "e", {})
    shown = eventbus("subjects", "inspect", "presence.room")
    assert shown.returncode == 0, shown.stderr
    lines = dict(line.split("  ", 1) for line in shown.stdout.splitlines() if line[0] != " ")
    reported = {name: text.strip() for name, text in lines.items()}
    assert reported["rule"] == "presence.>  (presence)"
    assert (
        reported["can join"] == "any authenticated user; holders of a token whose channels grant it"
    )
    assert reported["can whisper"] == "any authenticated user"
    assert reported["stored"].startswith("1 message, 20")
    assert reported["offset"].startswith(f"{receipt['offset']} (epoch ")
    assert reported["connections"] == "1"
    assert reported["node"].endswith(": 1")
    assert reported["members"] == "1"
    reported = json.loads(eventbus("subjects", "inspect", "presence.room", "--json").stdout)
    assert reported["members"] == [{"user_id": "7", "info": {"name": "Ada"}}]
    assert list(reported["nodes"].values()) == [1]


def test_inspect_without_an_edge_says_so_and_shows_the_history(eventbus, publish):
    publish("general", "e", {})
    publish("public", "e", {})  # later, and so beyond the channel's own offset
    shown = eventbus("subjects", "inspect", "general")
    assert shown.returncode == 0, shown.stderr
    assert "unknown: no edge node replied" in shown.stdout
    assert "1 message" in shown.stdout
    assert re.search(r"^offset +1 \(epoch ", shown.stdout, re.MULTILINE)
    empty = json.loads(eventbus("subjects", "inspect", "quiet", "--json").stdout)
    assert (empty["history"]["messages"], empty["history"]["offset"]) == (0, 2)


def test_purge_asks_first_and_a_resuming_client_is_notified(eventbus, publish, start_node, join):
    first, last = publish("general", "e", 1), publish("general", "e", 2)
    publish("public", "e", 3)
    assert eventbus("subjects", "purge", "general", input="n\n").returncode == 1
    shown = eventbus("subjects", "purge", "general", input="y\n")
    assert (shown.returncode, shown.stdout.strip()) == (0, "deleted 2 messages of general")
    output = json.loads(eventbus("subjects", "purge", "general", "--yes", "--json").stdout)
    assert output == {"channel": "general", "purged": 0}
    assert publish("general", "e", 4)["offset"] > last["offset"]

    client = join(start_node(), "public")
    for since, recovered in ((first, False), (last, True)):
        data = {"offset": since["offset"], "epoch": since["epoch"]}
        client.send(json.dumps({"action": "subscribe", "channel": "general", "data": data}))
        answer = json.loads(client.recv(timeout=30))
        assert answer["data"]["recovered"] is recovered
        if recovered:
            assert json.loads(client.recv(timeout=30))["data"] == 4
        client.send('{"action":"unsubscribe","channel":"general"}')
        assert json.loads(client.recv(timeout=30))["event"] == "eb:unsubscribed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["publish", "a b", "e"], "'a b' is not a channel name"),
        (["publish", "a", "eb:e"], "eb:e"),
        (["publish", "a", "e", "{"], "DATA: invalid JSON"),
        (["publish", "a", "e", "-"], "stdin: invalid JSON"),
        (["tail", "a..b"], "a..b"),
        (["tail", "a", "--since", "soon"], "--since: 'soon' is not a duration"),
        (["tail", "a", "--since", "1m", "--last", "1"], "--since and --last cannot be combined"),
        (["tail", "a", "--decode", "--app", "no_such_module"], "there is no such module"),
        (["tail", "a", "--decode"], "no application is named: give --app"),
        (["inspect", "a.*"], "'a.*' is not a channel name"),
        (["purge", "a.*", "--yes"], "'a.*' is not a channel name"),
        (["list", "--pattern", "a..b"], "a..b"),
    ],
)
def test_wrong_usage_is_reported_with_exit_code_2(eventbus, arguments, expected):
    shown = eventbus("subjects", *arguments)
    assert shown.returncode == 2, shown.stdout + shown.stderr
    assert expected in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("arguments", [["list"], ["tail", ">"], ["inspect", "a"],
                                       ["publish", "a", "e"], ["purge", "a", "--yes"]])  # fmt: skip
def test_unreachable_broker_is_reported_in_bounded_time(eventbus, cli_environment, arguments):
    away = {"NATS_URL": "nats://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": "0.3"}
    shown = eventbus("subjects", *arguments, env=cli_environment | away)
    assert shown.returncode == 1
    assert "cannot connect to nats://127.0.0.1:1" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("command", ["list", "tail", "inspect", "publish", "purge"])
def test_help_has_an_example(eventbus, command):
    assert f"eventbus subjects {command}" in eventbus("subjects", command, "--help").stdout


HOSTILE = [
    (b'{"event":"evil\\u001b[31m\\u009b2J\\u202eabc","data":{"x\\u001b":"\\u009b1"}}', {}),
    (b'{"event":"raw","data":"\xc2\x9b2J \xe2\x80\xae"}', {}),
    (b'{"event":"infinite","data":1e999}', {}),
    (b'{"event":"long","data":{"n":' + b"9" * 5000 + b"}}", {}),
    (b'{"event":"deep","data":' + b"[" * 100 + b"]" * 100 + b"}", {}),
    (b"\x1b[31mnot json \x07", {}),
    (b"5", {"Eb-Event": "header \x1b[31m"}),
    ('{"event":"Größe","data":"漢 😀"}'.encode(), {}),
    (b'{"event":"deeper","data":' + b"[" * 500 + b"]" * 500 + b"}", {}),
]


@pytest.fixture
def with_hostile_messages(settings):
    async def send():
        nc = await nats.connect(settings.nats_url)
        for payload, headers in HOSTILE:
            subject = f"{settings.namespace}.event.general"
            await nc.jetstream().publish(subject, payload, headers=headers or None)
        await nc.close()

    async def make():
        async with EventBus(settings):  # creates the stream
            await send()

    asyncio.run(make())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize("form", [(), ("--json",), ("--decode", "--app", "eventbus.notifications")])
def test_any_message_can_be_shown(eventbus, cli_environment, with_hostile_messages, encoding, form):
    count = str(len(HOSTILE))
    arguments = ("subjects", "tail", "general", "--last", count, "--count", count, *form)
    shown = eventbus(
        *arguments, env=cli_environment | {"PYTHONIOENCODING": encoding}, encoding=encoding
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(char.isprintable() for char in shown.stdout.replace("\n", ""))
    assert "9" * 5000 in shown.stdout
    assert "[" * 100 + "]" * 100 in shown.stdout
    assert "nested too deeply" in shown.stdout
    assert "1e999" in shown.stdout
    assert ("漢 😀" in shown.stdout) is (encoding == "utf-8")
    lines = shown.stdout.splitlines()
    # Without --json, a second line says what is wrong with two of them.
    assert len(lines) == len(HOSTILE) + (0 if form == ("--json",) else 2)
    if form == ("--json",):
        values = [json.loads(lines[n]) for n in (0, 1, 7)]
        assert values[0]["event"] == "evil\x1b[31m\x9b2J\u202eabc"
        assert values[1]["data"] == "\x9b2J \u202e"
        assert (values[2]["event"], values[2]["data"]) == ("Größe", "漢 😀")
    else:
        assert r"evil\x1b[31m\x9b2J\u202eabc" in lines[0]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",), ("--help",), ("subjects", "inspect", "Größe"), ("broadcast", "monitor"),
        ("token", "inspect", "x"), ("subjects", "list"),
    ],
)  # fmt: skip
def test_output_in_an_encoding_without_our_symbols_is_plain(
    eventbus, cli_environment, arguments, encoding
):
    environ = cli_environment | {"PYTHONIOENCODING": encoding}
    shown = eventbus(*arguments, env=environ, encoding=encoding)
    assert "Traceback" not in shown.stderr
    assert shown.stdout + shown.stderr
    assert not re.search(r"\\u2|\\xe2", shown.stdout + shown.stderr)


@pytest.mark.parametrize(
    "url",
    ["nats://127.0.0.1:1", "nats://localhost:1,nats://127.0.0.1:2", "nats://no-such-host.invalid"],
)
def test_command_does_not_wait_for_a_broker_that_refuses(eventbus, cli_environment, url):
    away = {"NATS_URL": url, "BROADCAST_CONNECT_TIMEOUT": "600"}
    shown = eventbus("subjects", "list", env=cli_environment | away)  # within 60 s
    assert shown.returncode == 1
    assert "cannot connect to nats://" in shown.stderr
    assert "start it, or check NATS_URL" in shown.stderr

"""`eventbus broadcast`: what its commands print, against real edge nodes."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from fcntl import ioctl

import nats
import pytest

from eventbus.cli.broadcast.monitor import sparkline

NOWHERE = {"NATS_URL": "nats://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": "0.3"}


@pytest.fixture
def last_offset(eventbus):
    """The offset of a channel's newest message, as the stream has it.

    Offsets count all messages of the stream, and nodes store a probe in it from time to time.
    """

    def read(channel) -> int:
        tail = eventbus("subjects", "tail", channel, "--last", "1", "--count", "1", "--json")
        assert tail.returncode == 0, tail.stderr
        return json.loads(tail.stdout)["offset"]

    return read


def test_message_is_delivered_by_an_edge_that_the_cluster_reports(
    eventbus, start_node, last_offset
):
    address = start_node()
    shown = eventbus("broadcast", "test", "--message", "hi")
    assert shown.returncode == 0, shown.stderr
    first, second = shown.stdout.splitlines()
    offset = last_offset("general")
    assert re.fullmatch(rf"published test on general: offset {offset}, in \d+\.\d ms", first)
    assert re.fullmatch(rf"delivered by {address} after \d+\.\d ms", second)
    output = json.loads(eventbus("broadcast", "test", "--json", "--url", address).stdout)
    assert output["offset"] > offset
    assert (output["offset"], output["edge"], output["why"]) == (
        last_offset("general"),
        address,
        None,
    )
    assert output["delivery_ms"] > 0


def test_private_channel_needs_a_token_and_nothing_is_published_without(
    eventbus, start_node, cli_token, last_offset
):
    start_node()
    refused = eventbus("broadcast", "test", "--channel", "user.7")
    assert refused.returncode == 1
    assert "unauthorized" in refused.stderr
    assert "--token" in refused.stderr
    assert "Nothing was published" in refused.stderr
    shown = eventbus("broadcast", "test", "--channel", "user.7", "--token", cli_token("7"))
    assert shown.returncode == 0, shown.stderr
    assert f"offset {last_offset('user.7')}," in shown.stdout
    assert "delivered by" in shown.stdout
    stored = json.loads(eventbus("subjects", "inspect", "user.7", "--json").stdout)["history"]
    assert stored["messages"] == 1  # that of the second command


def test_without_an_edge_the_publish_is_reported(eventbus):
    shown = eventbus("broadcast", "test")
    assert shown.returncode == 0, shown.stderr
    assert "offset 1," in shown.stdout
    assert "no edge node replied (start one with `eventbus edge run`)" in shown.stdout


def test_unreachable_edge_is_reported(eventbus):
    shown = eventbus("broadcast", "test", "--url", "http://127.0.0.1:1")
    assert shown.returncode == 1
    assert "the edge at http://127.0.0.1:1 cannot be reached" in shown.stderr
    assert "--url" in shown.stderr


def test_stats_and_channels_are_those_of_all_nodes(eventbus, start_node, start_command):
    one, two = start_node(), start_node()
    shown = eventbus("broadcast", "stats")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split() == [
        "node",
        "address",
        "protocols",
        "up",
        "connections",
        "channels",
        "in",
        "out",
    ]
    assert {line.split()[1] for line in lines[1:3]} == {one, two}
    assert lines[-1].startswith("nats: 2 nodes, 0 connections, 0 channels")
    output = json.loads(eventbus("broadcast", "stats", "--json").stdout)
    assert {node["address"] for node in output["nodes"]} == {one, two}
    assert eventbus("broadcast", "channels").stdout == "no clients are subscribed to a channel\n"


def test_channels_that_clients_of_an_edge_subscribe_to_are_listed(eventbus, start_node, join):
    address = start_node()
    for channel in ("general", "general", "public"):
        join(address, channel)
    shown = eventbus("broadcast", "channels")
    assert shown.stdout == (
        "channel  connections  kind\ngeneral            2  public\npublic             1  public\n"
    )
    output = eventbus("broadcast", "channels", "--pattern", "other", "--json")
    assert json.loads(output.stdout)["channels"] == []
    output = json.loads(eventbus("broadcast", "channels", "--pattern", "public", "--json").stdout)
    assert output["channels"] == [{"channel": "public", "kind": "public", "connections": 1}]


@pytest.mark.parametrize("command", ["stats", "channels", "monitor"])
def test_command_without_an_edge_says_what_to_do(eventbus, command):
    shown = eventbus("broadcast", command)
    assert shown.returncode == 1
    assert "no edge node replied over nats" in shown.stderr
    assert "eventbus edge run" in shown.stderr


def test_pings_are_counted_and_summed_up(eventbus):
    shown = eventbus("broadcast", "ping", "--count", "3", "--interval", "0.05")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "PING general over nats"
    for number in (1, 2, 3):
        assert re.fullmatch(rf"general: seq={number} time=\d+\.\d\d ms", lines[number])
    assert lines[-2] == "3 sent, 3 received, 0% lost"
    found = re.fullmatch(r"round trip min/avg/max = ([\d.]+)/([\d.]+)/([\d.]+) ms", lines[-1])
    low, mean, high = map(float, found.groups())
    assert 0 < low <= mean <= high


def test_ping_that_is_interrupted_sums_up_and_ends_well(start_command):
    process = start_command("broadcast", "ping", "--interval", "60", "--json")
    first = json.loads(process.stdout.readline())
    assert first["seq"] == 1
    assert first["ms"] > 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert (summary["sent"], summary["received"], summary["loss_percent"]) == (1, 1, 0.0)


def test_notification_and_alert_match_their_event_types(eventbus):
    shown = eventbus("broadcast", "notify:user", "42", "Shipped", "On its way",
                     "--action-url", "https://shop/42")  # fmt: skip
    assert shown.stdout.startswith("published on user.42: offset 1, id "), shown.stderr
    output = eventbus(
        "broadcast", "system:alert", "critical", "Disk", "--action-required", "--json"
    )
    assert json.loads(output.stdout)["channel"] == "system"
    tail = eventbus("subjects", "tail", ">", "--last", "2", "--count", "2", "--json",
                    "--decode", "--app", "eventbus.notifications")  # fmt: skip
    notice, alert = map(json.loads, tail.stdout.splitlines())
    assert (notice["channel"], notice["event"]) == ("user.42", "notification")
    assert notice["data"]["action_url"] == "https://shop/42"
    assert (alert["event"], alert["data"]["level"]) == ("alert", "critical")
    assert alert["data"]["action_required"] is True
    assert [each["mismatch"] for each in (notice, alert)] == [None, None]


def test_monitor_prints_lines_where_there_is_no_terminal(eventbus, start_node, start_command):
    start_node()
    process = start_command("broadcast", "monitor", "--duration", "0")
    reported = "1 node, 0 connections, 0 channels, 0 in/s, 0 out/s\n"
    assert process.stdout.readline() == reported
    assert any(line == reported for line in process.stdout)  # and on; one may tell of a slow node
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    (only,) = eventbus("broadcast", "monitor", "--duration", "0.1", "--json").stdout.splitlines()
    assert json.loads(only)["nodes"] == 1


def _in_terminal(command, environment, cwd, columns, until) -> tuple[int, str]:
    """Run a command on a terminal of that width, and press Ctrl-C when it has written `until`.

    Its exit code, and all that it wrote.
    """
    terminal, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, cwd=cwd)
    os.close(end)
    wrote, ends, pressed = b"", time.monotonic() + 60, False
    while time.monotonic() < ends:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                wrote += os.read(terminal, 65536)
            except OSError:  # Linux's word for the end
                break
        if not pressed and until in wrote.decode(errors="ignore"):
            pressed = True
            process.send_signal(signal.SIGINT)
    os.close(terminal)
    return process.wait(timeout=30), wrote.decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_monitor_is_a_live_table_on_a_terminal(
    start_node, cli_environment, tmp_path, columns, cli_command
):
    address = start_node()
    assert address
    environment = {**cli_environment, "TERM": "xterm-256color"}
    del environment["COLUMNS"]
    command = [*cli_command, "broadcast", "monitor", "--duration", "0"]
    # Two bars are shown when it has been drawn three times.
    code, wrote = _in_terminal(command, environment, tmp_path, columns, until="▁▁")
    assert code == 0, wrote
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", wrote)
    header = next(line for line in plain.splitlines() if line.startswith("node"))
    assert header.split() == ["node", "up", "conns", "channels", "in/s", "out/s"]
    assert "▁▁" in plain
    assert "over nats; press Ctrl-C to stop" in plain
    assert all(len(line) <= columns for line in plain.splitlines())


def test_sparkline_is_as_wide_as_asked_and_reaches_the_top():
    assert sparkline([0, 1, 2, 4], 6) == "  ▁▃▅█"
    assert sparkline([0, 0], 2) == "▁▁"
    assert sparkline([], 3) == "   "
    assert sparkline([9, 9, 1, 1], 2) == "██"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["test", "--data", "{nope"], "--data: invalid JSON"),
        (["test", "--channel", "a b"], "'a b' is not a channel name"),
        (["test", "--event", "eb:x"], "eb:x"),
        (["ping", "--channel", "a..b"], "'a..b' is not a channel name"),
        (["ping", "--interval", "0"], "interval"),
        (["test", "--data", "[" * 101 + "]" * 101], "nested too deeply"),
        (["notify:user", "", "T", "M"], "user_id"),
        (["notify:user", "7"], "Missing argument"),
        (["system:alert", "loud", "M"], "loud"),
    ],
)
def test_wrong_usage_is_reported_with_exit_code_2(eventbus, arguments, expected):
    shown = eventbus("broadcast", *arguments)
    assert shown.returncode == 2, shown.stdout + shown.stderr
    assert expected in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("arguments", [["test"], ["stats"], ["ping", "--count", "1"], ["monitor"]])
def test_unreachable_broker_is_reported_in_bounded_time(eventbus, cli_environment, arguments):
    shown = eventbus("broadcast", *arguments, env=cli_environment | NOWHERE)
    assert shown.returncode == 1
    assert "cannot connect to nats://127.0.0.1:1" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_no_embedded_server_is_started_and_that_of_a_node_is_found(
    eventbus, start_node, cli_environment, tmp_path
):
    embedded = {**cli_environment, "NATS_URL": "", "BROADCAST_NATS_PORT": "0"}
    alone = eventbus("broadcast", "stats", env=embedded)
    assert alone.returncode == 1
    assert "no embedded nats-server is running on" in alone.stderr
    assert "eventbus dev" in alone.stderr
    assert not (tmp_path / ".eventbus").exists()
    address = start_node(NATS_URL="", BROADCAST_NATS_PORT="0")
    output = json.loads(eventbus("broadcast", "stats", "--json", env=embedded).stdout)
    assert [node["address"] for node in output["nodes"]] == [address]
    assert "delivered by" in eventbus("broadcast", "test", env=embedded).stdout


def test_driver_that_reaches_nobody_is_refused(eventbus, cli_environment):
    shown = eventbus("broadcast", "stats", env=cli_environment | {"BROADCAST_DRIVER": "memory"})
    assert shown.returncode == 2
    assert "do not leave the process" in shown.stderr


@pytest.mark.parametrize("command", ["test", "websocket", "stats", "channels", "ping",
                                     "notify:user", "system:alert", "monitor"])  # fmt: skip
def test_help_has_an_example(eventbus, command):
    assert f"eventbus broadcast {command}" in eventbus("broadcast", command, "--help").stdout


def test_broadcast_test_is_not_disturbed_by_the_messages_of_others(
    eventbus, start_node, start_command, settings
):
    start_node()

    async def disturb(done):
        nc = await nats.connect(settings.nats_url)
        while not done.is_set():
            await nc.publish(f"{settings.namespace}.live.general", b'{"event":"x","data":1e999}')
            await asyncio.sleep(0.005)
        await nc.close()

    async def main():
        done = asyncio.Event()
        disturbing = asyncio.create_task(disturb(done))
        shown = await asyncio.to_thread(eventbus, "broadcast", "test")
        done.set()
        await disturbing
        return shown

    shown = asyncio.run(main())
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "delivered by" in shown.stdout


LONG = "x" * 200


@pytest.mark.parametrize("columns", [60, 80])
def test_monitor_and_stats_keep_their_counts_beside_a_long_channel(
    on_terminal, start_node, join, cli_token, columns
):
    address = start_node()
    token = cli_token("7", channels=[LONG])
    join(address, LONG, token)
    join(address, LONG, token)
    for command in (("monitor", "--duration", "100ms"), ("channels",)):
        shown = on_terminal(columns, "broadcast", *command)
        assert re.search(r"x{20,} +2 ", shown), shown
    stats = on_terminal(columns, "broadcast", "stats")
    assert address.rpartition(":")[2] in stats
    assert "2 connections, 1 channel," in stats

"""`eventbus revoke`, against a real edge node."""

import datetime
import json
import re
import time

import jwt
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def test_user_is_disconnected_from_a_node_and_stays_refused(eventbus, start_node, join, cli_token):
    address, token = start_node(), cli_token("7")
    client, other = join(address, "user.7", token), join(address, "user.8", cli_token("8"))
    shown = eventbus("revoke", "--user", "7", "--for", "1h")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "revoked on all nodes: user 7, for 1h\n"
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(timeout=30)
    assert caught.value.rcvd.code == 4003
    with pytest.raises(InvalidStatus):
        join(address, "user.7", token)
    other.send('{"action":"ping"}')
    assert json.loads(other.recv(timeout=30))["event"] == "pong"
    with pytest.raises(InvalidStatus):  # a node that starts later knows of it too
        join(start_node(), "user.7", token)


@pytest.mark.parametrize("form", ["{:.0f}", "{:%Y-%m-%dT%H:%M:%SZ}"])
def test_tokens_from_a_moment_on_are_good_at_once(eventbus, start_node, join, cli_token, form):
    address, token = start_node(), cli_token("7")
    issued = jwt.decode(token, options={"verify_signature": False})["iat"]
    moments = [
        form.format(at if "Y" not in form else datetime.datetime.fromtimestamp(at, datetime.UTC))
        for at in (issued, issued + 1)
    ]
    assert eventbus("revoke", "--user", "7", "--issued-before", moments[0]).returncode == 0
    join(address, "user.7", token)
    assert eventbus("revoke", "--user", "7", "--issued-before", moments[1]).returncode == 0
    with pytest.raises(InvalidStatus):
        join(address, "user.7", token)


def test_connection_is_closed_by_the_start_of_its_id(eventbus, start_node):
    url = start_node().replace("http", "ws", 1) + "/ws"
    with connect(url, proxy=None) as one, connect(url, proxy=None) as other:
        first, second = (
            json.loads(client.recv(timeout=30))["data"]["connection_id"] for client in (one, other)
        )
        for unknown in ("no-such-connection", first[:3], f"{first}x"):
            shown = eventbus("revoke", "--connection", unknown)
            assert shown.returncode == 1
            assert f"no connection has the id {unknown}" in shown.stderr
        shown = eventbus("revoke", "--connection", first[:8], "--json")
        assert json.loads(shown.stdout) == {"revoked": {"connection": first}, "seconds": None}
        with pytest.raises(ConnectionClosed):
            one.recv(timeout=30)
        shown = eventbus("revoke", "--connection", second)
        assert shown.stdout == f"closed on all nodes: connection {second}\n"
        with pytest.raises(ConnectionClosed):
            other.recv(timeout=30)


def test_channel_is_revoked_for_a_user(eventbus, start_node, join, cli_token):
    address = start_node()
    client = join(address, "chat.1", cli_token("7"))
    shown = eventbus("revoke", "--user", "7", "--channel", "chat.1", "--json")
    output = json.loads(shown.stdout)
    assert output == {"revoked": {"user": "7", "channel": "chat.1"}, "seconds": 86400.0}
    answer = json.loads(client.recv(timeout=30))
    assert (answer["event"], answer["data"]["reason"]) == ("eb:unsubscribed", "revoked")


def test_revocation_is_listed_and_undone(eventbus, start_node, join, cli_token):
    address, token = start_node(), cli_token("7")
    assert eventbus("revoke", "--list").stdout == "no revocations\n"
    eventbus("revoke", "--jti", "some-token", "--for", "10h")
    eventbus("revoke", "--user", "7", "--channel", "chat.1", "--for", "2d")
    eventbus("revoke", "--user", "7")
    head, *rows = eventbus("revoke", "--list").stdout.splitlines()
    assert head.split("  ")[0] == "user"
    named = [re.split(" {2,}", row.strip()) for row in rows]
    assert [each[:-2] for each in named] == [["7"], ["7", "chat.1"], ["some-token"]]
    assert [each[-2][:3] for each in named] == ["23h", "1d ", "9h "]
    listed = json.loads(eventbus("revoke", "--list", "--json").stdout)["revocations"]
    assert [(r["user_id"], r["jti"], r["channel"]) for r in listed] == [
        ("7", None, None),
        ("7", None, "chat.1"),
        (None, "some-token", None),
    ]
    shown = eventbus("revoke", "--undo", "--user", "7")
    assert (shown.returncode, shown.stdout) == (0, "allowed again on all nodes: user 7\n")
    join(start_node(), "user.7", token)
    deadline = time.monotonic() + 30
    while True:  # the bus still reports the earlier node
        try:
            join(address, "user.7", token)
        except InvalidStatus:
            assert time.monotonic() < deadline
        else:
            break
    assert len(eventbus("revoke", "--list").stdout.splitlines()) == 3
    output = json.loads(eventbus("revoke", "--undo", "--jti", "some", "--json").stdout)
    assert output == {"undone": {"jti": "some-token"}}


def test_undo_without_a_revocation_fails(eventbus):
    eventbus("revoke", "--user", "7", "--channel", "chat.1")
    shown = eventbus("revoke", "--undo", "--user", "7")
    assert shown.returncode == 1
    assert "error: not revoked: user 7 (see `eventbus revoke --list`)" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "error: nothing to revoke: use one of --user, --jti, --connection and --channel"),
        (["--user", "7", "--jti", "x"], "--user and --jti cannot be combined: use one of"),
        (["--connection", "c", "--channel", "a"], "--connection and --channel cannot be combined"),
        (["--user", ""], "error: --user is empty"),
        (["--undo"], "error: nothing to revoke"),
        (["--undo", "--connection", "c"], "--undo: a closed connection stays closed"),
        (["--list", "--user", "7"], "--list can only be combined with --json"),
        (["--channel", "a b"], "'a b' is not a channel name"),
        (["--user", "7", "--issued-before", "soon"], "--issued-before: 'soon' is not a time"),
        (["--user", "7", "--issued-before", "2026-11-24T03:00:12"], "is not a time"),
        (["--user", "7", "--issued-before", "-1"], "is not a time"),
        (["--jti", "7", "--issued-before", "1"], "issued_before needs a user_id"),
        (
            ["--undo", "--user", "7", "--issued-before", "1"],
            "--undo and --issued-before cannot be combined",
        ),
        (["--list", "--issued-before", "1"], "--list can only be combined with --json"),
        (["--user", "7", "--for", "soon"], "--for: 'soon' is not a duration"),
        (["--user", "7", "--for", "0s"], "--for: '0s' is not a duration"),
    ],
)
def test_wrong_usage_is_reported_with_exit_code_2(eventbus, arguments, expected):
    shown = eventbus("revoke", *arguments)
    assert shown.returncode == 2
    assert expected in " ".join(shown.stderr.split())


def test_help_has_an_example(eventbus):
    assert "eventbus revoke --user 42 --for 1h" in eventbus("revoke", "--help").stdout

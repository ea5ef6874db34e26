"""`eventbus revoke`, against a real edge node."""

import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus


def test_user_is_put_out_of_a_node_and_kept_out(eventbus, start_node, join, cli_token):
    address, token = start_node(), cli_token("7")
    client, other = join(address, "user.7", token), join(address, "user.8", cli_token("8"))
    shown = eventbus("revoke", "--user", "7", "--for", "1h")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "revoked on every node: user 7, refused for 1h 00m\n"
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(timeout=30)
    assert caught.value.rcvd.code == 4003
    with pytest.raises(InvalidStatus):
        join(address, "user.7", token)
    other.send('{"action":"ping"}')
    assert json.loads(other.recv(timeout=30))["event"] == "pong"
    with pytest.raises(InvalidStatus):  # a node that starts later knows of it too
        join(start_node(), "user.7", token)


def test_channel_is_taken_away_from_a_user(eventbus, start_node, join, cli_token):
    address = start_node()
    client = join(address, "chat.1", cli_token("7"))
    shown = eventbus("revoke", "--user", "7", "--channel", "chat.1", "--json")
    told = json.loads(shown.stdout)
    assert told == {"revoked": {"user": "7", "channel": "chat.1"}, "seconds": 86400.0}
    answer = json.loads(client.recv(timeout=30))
    assert (answer["event"], answer["data"]["reason"]) == ("eb:unsubscribed", "revoked")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Give one of --user, --jti, --connection and --channel"),
        (["--user", "7", "--jti", "x"], "Give one of"),
        (["--connection", "c", "--channel", "a"], "Give one of"),
        (["--channel", "a b"], "'a b' is not a channel name"),
        (["--user", "7", "--for", "soon"], "--for: 'soon' is no length of time"),
        (["--user", "7", "--for", "0s"], "--for: '0s' is no length of time"),
    ],
)
def test_wrong_usage_is_told_with_exit_code_2(eventbus, arguments, told):
    shown = eventbus("revoke", *arguments)
    assert shown.returncode == 2
    assert told in " ".join(shown.stderr.split())


def test_help_has_an_example(eventbus):
    assert "eventbus revoke --user 42 --for 1h" in eventbus("revoke", "--help").stdout

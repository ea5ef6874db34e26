"""`eventbus chaos` against real edge nodes: it touches only its own channels and clients."""

import json
import sys

import pytest

from eventbus.tokens import issue_token
from tests.eventbus.cli.conftest import SECRET

SHORT = ("--time", "10s", "--clients", "4", "--rate", "3", "--seed", "3")
APP = {
    "PUSHER_APP_ID": "1",
    "PUSHER_APP_KEY": "chaos-key",
    "PUSHER_APP_SECRET": "a-secret-of-tests-of-an-app",
}

KEY = "the-api-key-of-chaos-tests"
RULE = """
[[rule]]
pattern = "chaos.>"
kind = "private"
join = "authenticated"
"""


@pytest.mark.timeout(180)
def test_running_cluster_is_checked_and_left_as_it_was(
    eventbus, start_node, cli_environment, tmp_path
):
    (tmp_path / "rules.toml").write_text(RULE)
    environ = APP | {"BROADCAST_RULES": str(tmp_path / "rules.toml"), "BROADCAST_API_KEY": KEY}
    for _ in range(2):
        start_node(**environ)
    env = cli_environment | environ
    kinds = "websocket,sse,pusher"
    done = eventbus("chaos", *SHORT, "--kinds", kinds, "--json", env=env, timeout=160)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["broken"] == []
    assert report["seed"] == 3
    assert set(report["plan"]) == {"clients-cut", "some-clients-cut", "publisher-restarted"}
    assert report["receivers"] == {"websocket": 2, "sse": 1, "pusher": 1}
    assert report["total"]["acknowledged"] > 0
    assert report["total"]["delivered"] > 0
    assert report["total"]["lost"] == report["total"]["duplicates"] == 0
    listed = json.loads(eventbus("subjects", "list", "--pattern", "chaos.>", "--json").stdout)
    assert not any(row["stored"] for row in listed["channels"])


@pytest.mark.timeout(180)
def test_edges_drain_by_the_command_that_the_user_gives(eventbus, start_node, tmp_path):
    address, calls = start_node(), tmp_path / "calls"
    command = f"{sys.executable} -c \"open({str(calls)!r}, 'a').write('{{edge}} {{port}}\\n')\""
    done = eventbus(
        "chaos", *SHORT, "--edges", address, "--drain-command", command, "--yes", timeout=160,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "edge-drained" in done.stdout
    assert "All promises were kept." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    port = address.rpartition(":")[2]
    assert set(calls.read_text().splitlines()) == {f"{address} {port}"}


def test_edges_do_not_drain_without_consent(eventbus):
    done = eventbus("chaos", *SHORT, "--drain-command", "touch drained")
    assert done.returncode == 2
    assert "add --yes" in done.stderr


@pytest.mark.timeout(240)
def test_drain_command_that_fails_ends_the_run_with_its_error(eventbus, start_node):
    address = start_node()
    done = eventbus(
        "chaos", *SHORT, "--edges", address, "--drain-command", "false", "--yes", timeout=110
    )
    assert done.returncode == 1
    assert "--drain-command exited with 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_token_without_the_grant_is_refused_with_the_channel(eventbus, start_node):
    token = issue_token("7", secret=SECRET, channels=["orders.*"])
    start_node()
    done = eventbus("chaos", *SHORT, "--token", token)
    assert done.returncode == 1
    assert "chaos." in done.stderr
    assert "Traceback" not in done.stderr


def test_without_an_edge_it_says_what_to_do(eventbus):
    done = eventbus("chaos", *SHORT)
    assert done.returncode == 1
    assert "--edges" in done.stderr


def test_secrets_may_be_in_files(eventbus, cli_environment, tmp_path):
    (tmp_path / "secret").write_text(APP["PUSHER_APP_SECRET"])
    environ = cli_environment | {"PUSHER_APP_KEY": APP["PUSHER_APP_KEY"]}
    pusher = ("chaos", "--kinds", "pusher")
    found = eventbus(*pusher, env=environ | {"PUSHER_APP_SECRET_FILE": str(tmp_path / "secret")})
    assert "--edges" in found.stderr
    for name in ("PUSHER_APP_SECRET_FILE", "BROADCAST_API_KEY_FILE"):
        refused = eventbus(*pusher, env=environ | {name: str(tmp_path / "none")})
        assert (refused.returncode, name in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--kinds", "websocket,telnet"), "telnet"),
        (("--kinds", "pusher"), "PUSHER_APP_KEY"),
        (("--time", "1s"), "--time"),
        (("--edges", ","), "--edges"),
    ],
)
def test_wrong_usage_is_reported_with_what_is_allowed(eventbus, options, expected):
    done = eventbus("chaos", *options)
    assert done.returncode == 2
    assert expected in done.stderr

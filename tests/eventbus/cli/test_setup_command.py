import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def run(own_nats_server):
    def run(*arguments, **environ):
        given = {"NATS_URL": own_nats_server.url, "BROADCAST_HISTORY_BYTES": "1048576", **environ}
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from eventbus.cli.app import main; main()",
                "setup",
                *arguments,
            ],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    return run


STREAMS = ["EB_EVENTS", "EB_QUEUE", "EB_FAILED", "KV_EB_STATE", "KV_EB_DURABLE"]


def test_streams_are_made_once_and_found_the_second_time(run):
    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.split("\n")[:-1] == [f"ready: {name}" for name in STREAMS]
    assert json.loads(run("--json").stdout) == {"driver": "nats", "ready": STREAMS}


def test_server_that_is_not_there_is_a_failure(run):
    done = run(NATS_URL="nats://127.0.0.1:1", BROADCAST_CONNECT_TIMEOUT="0.3")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr

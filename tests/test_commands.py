"""A forked command is like one that the interpreter starts."""

import os
import subprocess

import pytest

from tests.commands import COMMAND


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["token", "--help"], ""),
        (["token", "inspect"], "a.b.c"),
        (["token", "no-such-command"], ""),
        (["schema", "list", "--app", "events_here"], ""),
    ],
    ids=["help", "standard input", "wrong usage", "modules of its folder"],
)
def test_forked_command_is_like_one_that_is_started(run_command, tmp_path, arguments, text):
    (tmp_path / "events_here.py").write_text(
        "import eventbus\n\nclass Ping(eventbus.Event): pass\n"
    )
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "JWT_SECRET": "x" * 40}
    forked = run_command(*arguments, env=env, cwd=tmp_path, input=text)
    started = subprocess.run(
        [*COMMAND, *arguments], env=env, cwd=tmp_path, input=text, encoding="utf-8",
        capture_output=True, check=False, timeout=150,
    )  # fmt: skip
    assert forked.stdout + forked.stderr
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        started.returncode,
        started.stdout,
        started.stderr,
    )


def test_forked_command_leaves_nothing_to_the_next(run_command, tmp_path):
    env = {**os.environ, "JWT_SECRET": "x" * 40}
    assert run_command("token", "issue", "ada", env=env, cwd=tmp_path).returncode == 0
    del env["JWT_SECRET"]
    refused = run_command("token", "issue", "ada", env=env, cwd=tmp_path)
    assert refused.returncode == 2
    assert "JWT_SECRET is not set" in refused.stderr

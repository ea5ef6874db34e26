"""`eventbus token`: what is issued, what is shown, and what an edge would say."""

import base64
import json
import os
import re
import time

import jwt
import pytest

SECRET = "a-secret-of-tests-that-is-32-bytes-long"


@pytest.fixture
def run(run_command, tmp_path):
    def run(*arguments, stdin="", **environ):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("JWT_", "BROADCAST_"))}
        env = {**plain, "NO_COLOR": "1", **environ}
        return run_command("token", *arguments, input=stdin, cwd=tmp_path, env=env)

    return run


def sign(claims, secret=SECRET, **more):
    standard = {"sub": "7", "aud": "websocket", "exp": time.time() + 3600}
    return jwt.encode({**standard, **claims}, secret, **more)


def test_issued_token_is_shown_and_accepted(run):
    token = run("issue", "alice", "--role", "admin", "--channel", "orders.*", JWT_SECRET=SECRET)
    assert token.returncode == 0, token.stderr
    shown = run("inspect", stdin=token.stdout, JWT_SECRET=SECRET)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[:3] == ["Header", "  alg  HS256  algorithm", "  typ  JWT  type"]
    assert "  sub       alice  user id" in lines
    assert '  channels  ["orders.*"]  granted in addition to the rules' in lines
    assert re.search(
        r"exp +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, in (1 h|59 min \d+ s)  expires at", shown.stdout
    )
    assert re.fullmatch(r"✓ accepted: valid for another (1 h|59 min \d+ s)", lines[-1])


def test_signature_is_never_shown(run):
    token = sign({})
    for how in ([], ["--json"]):
        shown = run("inspect", token, *how, JWT_SECRET=SECRET)
        assert token.rpartition(".")[2] not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("claims", "secret", "reason", "words"),
    [
        ({}, SECRET[::-1], "signature", "signature does not verify"),
        ({"exp": 1_000_000_000}, SECRET, "expired", "the token has expired"),
        ({"aud": "other"}, SECRET, "audience", "its aud must contain 'websocket'"),
        ({"nbf": 9_000_000_000}, SECRET, "not_yet_valid", "its nbf is in the future"),
        ({"sub": ""}, SECRET, "claims", "claims are not valid"),
        ({"channels": ["a b"]}, SECRET, "claims", "not a channel pattern"),
    ],
)
def test_refusal_is_explained_with_exit_code_1(run, claims, secret, reason, words):
    token = sign(claims, secret)
    shown = run("inspect", token, JWT_SECRET=SECRET)
    assert shown.returncode == 1
    assert words in shown.stdout.splitlines()[-1]
    assert shown.stdout.splitlines()[-1].startswith("✗ refused: ")
    output = json.loads(run("inspect", "--json", token, JWT_SECRET=SECRET).stdout)
    assert output["verdict"]["reason"] == reason
    assert output["claims"]["aud"] in ("websocket", "other")


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "..", "\x1b[31m.x.y"])
def test_invalid_token_is_refused_without_control_characters(run, token):
    shown = run("inspect", stdin=token, JWT_SECRET=SECRET)
    assert shown.returncode == 1, shown.stderr
    assert "✗ refused: the token is not a JWT" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_control_characters_in_claims_are_not_written(run):
    shown = run("inspect", sign({"name": "\x1b[2J\nsub  root"}), JWT_SECRET=SECRET)
    assert "\x1b" not in shown.stdout
    assert r"name  \x1b[2J sub root" in shown.stdout


def test_times_that_no_calendar_has_are_shown_as_they_are(run):
    shown = run("inspect", sign({"exp": 10**17}), JWT_SECRET=SECRET)
    assert "not a valid time" in shown.stdout
    assert shown.returncode == 1


def test_unsigned_token_is_named_so(run):
    head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    shown = run("inspect", f"{head}.e30.", JWT_SECRET=SECRET)
    assert shown.returncode == 1
    assert "the token is not signed" in shown.stdout


def test_without_keys_it_is_shown_and_nothing_is_said_of_it(run):
    shown = run("inspect", sign({}))
    assert shown.returncode == 0
    assert "since the settings have no keys: set JWT_SECRET" in shown.stdout


def test_invalid_settings_are_reported_with_exit_code_2(run):
    shown = run("inspect", sign({}), JWT_SECRET="short")
    assert shown.returncode == 2
    assert "JWT_SECRET has 5 bytes; HS256 needs at least 32" in shown.stderr
    assert run("inspect", stdin="", JWT_SECRET=SECRET).returncode == 2


def test_secret_of_development_is_used_only_when_asked_for(run, tmp_path):
    refused = run("issue", "alice")
    assert refused.returncode == 2
    assert "JWT_SECRET is not set" in refused.stderr
    assert "--dev-secret" in refused.stderr
    assert not (tmp_path / ".eventbus").exists()
    token = run("issue", "alice", "--dev-secret").stdout
    kept = tmp_path / ".eventbus" / "dev-secret"
    assert kept.stat().st_mode & 0o077 == 0
    assert run("inspect", "--dev-secret", stdin=token).returncode == 0
    assert run("inspect", stdin=token, JWT_SECRET=SECRET).returncode == 1
    assert run("issue", "bob", "--dev-secret").returncode == 0
    assert run("inspect", "--dev-secret", stdin=token).returncode == 0, "it is the same secret"


def test_secret_may_be_in_a_file(run, tmp_path):
    (tmp_path / "jwt").write_text(f"{SECRET}\n")
    by_file = {"JWT_SECRET_FILE": str(tmp_path / "jwt")}
    token = run("issue", "alice", **by_file)
    assert token.returncode == 0, token.stderr
    for checked_with in (by_file, {"JWT_SECRET": SECRET}):
        assert run("inspect", stdin=token.stdout, **checked_with).returncode == 0
    own = run("issue", "alice", "--secret", SECRET[::-1], **by_file)
    assert run("inspect", stdin=own.stdout, JWT_SECRET=SECRET[::-1]).returncode == 0


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"JWT_SECRET_FILE": "none"}, "JWT_SECRET_FILE='none' cannot be read"),
        ({"JWT_SECRET_FILE": "none", "JWT_SECRET": SECRET}, "are both set; set only one"),
    ],
)
def test_file_of_the_secret_that_cannot_be_used_is_named(run, environ, words):
    shown = run("issue", "alice", **environ)
    assert (shown.returncode, words in shown.stderr) == (2, True)
    assert run("issue", "alice", "--secret", SECRET, **environ).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "secret", "words"),
    [
        (["issue", "alice"], "short", "at least 32 bytes"),
        (["issue", ""], SECRET, "a user id has 1 to 255 characters"),
        (
            ["issue", "alice", "--channel", "a b"],
            SECRET,
            "--channel: 'a b' is not a channel pattern",
        ),
    ],
)
def test_wrong_usage_of_issue_is_reported_with_exit_code_2(run, arguments, secret, words):
    shown = run(*arguments, JWT_SECRET=secret)
    assert shown.returncode == 2
    assert words in shown.stderr
    assert shown.stdout == ""

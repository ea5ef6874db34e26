"""BROADCAST_ENVIRONMENT=production: what an edge refuses to start with, and what it warns of."""

import base64
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings, weakness
from eventbus_edge.process.production import (
    production_problems,
    require_production,
)

ROOT = Path(__file__).parents[3]
GOOD = "Qk7vXw2pLr9TzB4nYc6HsD1mJf8GaE3uN5oKi0W-xMy"
"""Fixed: a part of tests' names, which must be the same in every process."""
COMMAND = [sys.executable, "-c", "from eventbus.cli.app import main; main()"]


def production(**changes):
    given = {"environment": "production", "jwt_secret": GOOD, "api_key": secrets.token_urlsafe(32)}
    return EdgeSettings(**given | changes)


def documented_secrets():
    """Every value that the documents, or jwt.io, show for JWT_SECRET."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"JWT_SECRET=(\S+)", text))
    for literal, times in re.findall(r'jwt_secret="([^"]*)"(?: \* (\d+))?', text):
        shown.add(literal * int(times or 1))
    assert {"…", "s" * 32} <= shown, "the pages' examples are found"
    return sorted(shown | {"your-256-bit-secret", "a-string-secret-at-least-256-bits-long"})


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("short", "has 5 bytes; at least 32 are needed"),
        (GOOD[:31], "has 31 bytes; at least 32 are needed"),
        ("a" * 64, "fewer than 8 different"),
        ("ab12cd" * 8, "fewer than 8 different"),
        ("0123456789" * 4, "repeats a part of itself"),
        ("Tr0ub4dor&3Tr0ub4dor&3Tr0ub4dor", "has 31 bytes"),
        ("Tr0ub4dor&3Tr0ub4dor&3Tr0ub4dor&3Tr0", "repeats a part of itself"),
        ("abcdefghijklmnopqrstuvwxyz0123456789", "consecutive characters"),
        ("zyxwvutsrqponmlkjihgfedcba9876543210", "consecutive characters"),
        ("changeme-changeme-changeme-please-do", "'changeme'"),
        ("My-Super-SECRET-Of-Quite-Some-Length-1", "'secret'"),
        ("a-secret-of-tests-that-is-32-bytes-long", "'secret'"),
        ("development-only-" + GOOD, "'development'"),
        ("Password1Password2Password3Password4", "'password'"),
    ],
)
def test_secret_that_could_be_guessed_is_refused_with_the_reason(secret, why):
    assert why in (weakness(secret) or "")
    with pytest.raises(ConfigError) as caught:
        require_production(production(jwt_secret=secret))
    message = str(caught.value)
    assert message.startswith("BROADCAST_ENVIRONMENT=production: JWT_SECRET ")
    assert why in message
    assert "openssl rand -base64 48" in message
    assert caught.value.variable == "JWT_SECRET"
    assert secret not in message


@pytest.mark.parametrize("secret", documented_secrets())
def test_secret_of_an_example_is_refused(secret):
    assert weakness(secret)


@given(st.binary(min_size=32, max_size=64))
def test_pattern_is_found_wherever_it_begins(data):
    text = base64.b64encode(data).decode()
    assert weakness(text + text)
    assert weakness(text + text + text[: len(text) // 2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: secrets.token_urlsafe(32),
        lambda: secrets.token_hex(16),
        lambda: secrets.token_hex(32),
        lambda: base64.b64encode(os.urandom(48)).decode(),
    ],
)
def test_random_secrets_are_not_refused(make):
    assert [received for received in (weakness(make()) for _ in range(2000)) if received] == []


def test_without_any_key_for_tokens_production_is_refused():
    with pytest.raises(ConfigError, match="no key to check tokens with is set") as caught:
        require_production(production(jwt_secret=""))
    assert all(
        name in str(caught.value) for name in ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL")
    )


@pytest.mark.parametrize(
    "key", [{"jwt_public_key": "/a.pem"}, {"jwt_jwks_url": "https://id.example/keys"}]
)
def test_a_public_key_or_its_address_is_enough(key):
    assert require_production(production(jwt_secret="", **key)) == ()


@pytest.mark.parametrize(
    ("field", "variable"),
    [
        ("api_key", "BROADCAST_API_KEY"),
        ("webhook_secret", "BROADCAST_WEBHOOK_SECRET"),
        ("pusher_app_secret", "PUSHER_APP_SECRET"),
    ],
)
def test_every_secret_that_proves_something_to_the_node_or_by_it_is_checked(field, variable):
    for weak in ("password-of-the-shop", "a" * 40, "short"):
        with pytest.raises(ConfigError, match=f"production: {variable} ") as caught:
            require_production(production(**{field: weak}))
        assert weak not in str(caught.value)
    assert require_production(production(**{field: secrets.token_hex(16)})) == ()


def test_all_reasons_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        require_production(production(jwt_secret="a" * 40, api_key="key"))
    assert "JWT_SECRET has fewer" in str(caught.value)
    assert "BROADCAST_API_KEY has 3 bytes; at least 16 are needed" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ()),
        ({"cors_allowed_origins": ("https://app.example",)}, ()),
        ({"cors_allowed_origins": ("*",)}, ("CORS_ALLOWED_ORIGINS=*",)),
        ({"api_key": ""}, ("BROADCAST_API_KEY is not set",)),
        ({"jwt_secret": "", "jwt_jwks_url": "http://id.example/keys"}, ("JWT_JWKS_URL",)),
        ({"jwt_secret": "", "jwt_jwks_url": "http://127.0.0.1:8000/keys"}, ()),
        ({"jwt_secret": "", "jwt_jwks_url": "http://localhost/keys"}, ()),
    ],
)
def test_possibly_intended_settings_only_cause_warnings(changes, expected):
    warnings = require_production(production(**changes))
    assert len(warnings) == len(expected)
    assert all(
        warning.startswith(begin) for warning, begin in zip(warnings, expected, strict=True)
    ), warnings


def test_development_has_nothing_to_object():
    settings = EdgeSettings(jwt_secret="a" * 40, cors_allowed_origins=("*",))
    assert settings.environment == "development"
    assert production_problems(settings) == ((), (), "")


# As processes


@pytest.fixture
def environ(nats_server, namespace):
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "BROADCAST_ENVIRONMENT": "production",
        "NATS_URL": nats_server.url,
        "BROADCAST_CHANNELS_PREFIX": namespace,
        "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
        "BROADCAST_WEBSOCKET_PORT": "0",
    }


@pytest.fixture
def run(environ, tmp_path):
    def run_command(*command, **changes):
        return subprocess.run(
            [*command],
            env=environ | changes,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )

    return run_command


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "eventbus_edge"],
        [*COMMAND, "edge", "run"],
        [*COMMAND, "edge", "run", "--workers", "2"],
    ],
    ids=["python -m eventbus_edge", "edge run", "edge run --workers 2"],
)
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "no key to check tokens with is set"),
        ({"JWT_SECRET": "a" * 40}, "JWT_SECRET has fewer than 8 different characters"),
    ],
)
def test_start_is_refused_with_2_and_one_line_that_says_why(run, command, changes, why):
    done = run(*command, **changes)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: BROADCAST_ENVIRONMENT=production: ")
    assert why in line


def test_secret_that_eventbus_makes_for_development_is_refused(run, tmp_path):
    assert run(*COMMAND, "token", "issue", "ada", "--dev-secret").returncode == 0
    copied = (tmp_path / ".eventbus" / "dev-secret").read_text().strip()
    done = run(*COMMAND, "edge", "run", JWT_SECRET=copied)
    assert done.returncode == 2
    assert "'development'" in done.stderr
    assert copied not in done.stderr


def test_invalid_environment_is_refused(run):
    done = run(*COMMAND, "edge", "run", BROADCAST_ENVIRONMENT="prod", JWT_SECRET=GOOD)
    assert done.returncode == 2
    assert "BROADCAST_ENVIRONMENT='prod'" in done.stderr
    assert "development or production" in done.stderr


def test_dev_is_not_for_production(run, tmp_path):
    done = run(*COMMAND, "dev")
    assert done.returncode == 2
    assert "`eventbus dev` is for development" in done.stderr
    assert not (tmp_path / ".eventbus").exists()


def test_doctor_says_beforehand_what_a_start_would(run):
    done = run(*COMMAND, "doctor", JWT_SECRET="a" * 40)
    assert done.returncode == 1
    lines = " ".join(done.stdout.split())
    assert "✗ production JWT_SECRET has fewer than 8 different characters" in lines
    assert "! production BROADCAST_API_KEY is not set" in lines
    fine = run(
        *COMMAND, "doctor",
        JWT_SECRET=GOOD, BROADCAST_API_KEY=secrets.token_hex(16), BROADCAST_MAX_CONNECTIONS="100",
    )  # fmt: skip
    assert "✓ production" in fine.stdout, fine.stdout + fine.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_edge_that_may_start_warns_once(start_process, workers):
    edge = await start_process(
        BROADCAST_ENVIRONMENT="production",
        JWT_SECRET=GOOD,
        BROADCAST_WORKERS=workers,
        BROADCAST_DRAIN_TIME="0",
        BROADCAST_MAX_CONECTIONS="7",
    )
    edge.terminate()
    code, log = await edge.end()
    assert code == 0
    assert log.count("BROADCAST_API_KEY is not set") == 1
    assert log.count("CONECTIONS is not a setting: did you mean BROADCAST_MAX_CONNECTIONS?") == 1

"""Commands with passwords in the addresses given to them: whatever is wrong, none is shown."""

import pytest

UNREADABLE = [
    "nats://app:S3cr3t@127.0.0.1:1;nats://127.0.0.1:1",
    "nats://app:S3cr3t@[::1:4222", "nats://app:S3cr3t", "app:S3cr3t:h:4222",
    "nats://app:S3,cr3t@127.0.0.1:1", "http://app:S3cr3t@127.0.0.1:1",
]  # fmt: skip
UNREACHABLE = [
    "nats://app:S3cr3t#1@127.0.0.1:1",
    "nats://S3cr3t%231@127.0.0.1:1",
    "app:S3@cr3t@127.0.0.1:1",
]


@pytest.fixture
def shown(eventbus, cli_environment):
    """All that a command writes, and its exit code."""

    def run(*arguments, **environ):
        environ = cli_environment | {"BROADCAST_CONNECT_TIMEOUT": "0.3"} | environ
        done = eventbus(*arguments, env=environ)
        text = done.stdout + done.stderr
        assert "cr3t" not in text
        assert "Traceback" not in text
        return text, done.returncode

    return run


@pytest.mark.parametrize("url", UNREADABLE)
@pytest.mark.parametrize(
    "command", [("setup",), ("edge", "run", "--port", "0"), ("dev", "--port", "0")]
)
def test_an_address_that_cannot_be_read_ends_the_command(shown, command, url):
    text, code = shown(*command, NATS_URL=url)
    assert code == 2
    assert "error: NATS_URL=***: " in text


@pytest.mark.parametrize("url", UNREACHABLE)
@pytest.mark.parametrize(
    "command", [("setup",), ("subjects", "list"), ("edge", "run", "--port", "0")]
)
def test_a_server_that_is_not_there_is_shown_without_its_login(shown, command, url):
    text, code = shown(*command, NATS_URL=url)
    assert code == 1
    assert "nats://***@127.0.0.1:1" in text


@pytest.mark.parametrize(
    ("url", "output"),
    [(UNREADABLE[0], "NATS_URL=***"), (UNREACHABLE[0], "nats://***@127.0.0.1:1")],
)
def test_doctor_says_what_is_wrong_without_the_password(shown, url, output):
    text, code = shown("doctor", NATS_URL=url, JWT_JWKS_URL="http://app:S3cr3t#1@[::1/x")
    assert code == 1
    assert output in text
    assert "JWT_JWKS_URL='***'" in text


@pytest.mark.parametrize(
    ("url", "output"),
    [
        ("http://app:S3cr3t@127.0.0.1:1", "http://***@127.0.0.1:1"),
        ("http://127.0.0.1:1/?auth_token=S3cr3t", "http://127.0.0.1:1/?***"),
        ("http://app:S3cr3t#1@127.0.0.1:1", "***"),
        ("http://app:S3cr3t@[::1", "***"),
        ("app:S3cr3t@127.0.0.1:1", "***"),
    ],
)
def test_the_address_of_an_edge_is_shown_without_what_is_secret(shown, url, output):
    text, code = shown("broadcast", "test", "--url", url)
    assert code == 1
    assert output in text


@pytest.mark.parametrize("option", ["--edge", "--nats"])
@pytest.mark.parametrize("url", ["{}://app:S3cr3t@h", "{}://app:S3cr3t#1@h", "{}://u:S3cr3t@[::1"])
def test_addresses_in_contracts_are_refused_with_credentials(shown, option, url):
    scheme = "wss" if option == "--edge" else "nats"
    app = ("--app", "eventbus.notifications")
    text, code = shown("schema", "export", "--format", "asyncapi", *app, option, url.format(scheme))
    assert code == 2
    assert "without credentials" in text

"""The assembled command line: how help is shown, and errors about arguments."""

import itertools

import pytest
from typer.testing import CliRunner

from eventbus.cli.app import app

WIDTH = 80


def run(*arguments):
    return CliRunner(env={"COLUMNS": str(WIDTH), "NO_COLOR": "1"}).invoke(app, arguments)


def shown_help(*command):
    lines = run(*command, "--help").stdout.splitlines()
    return [line.strip() for line in lines]


@pytest.mark.parametrize("command", [("revoke",), ("dev",), ("schema", "check"), ("setup",)])
def test_lines_of_help_are_filled_to_the_width_of_the_terminal(command):
    lines = shown_help(*command)
    text = lines[lines.index("") + 1 : lines.index(next(x for x in lines if x.startswith("╭")))]
    for line, following in itertools.pairwise(text):
        if line and following:
            assert len(line) + 1 + len(following.split()[0]) > WIDTH - 2, line


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (("schema", "check"), "Default: schemas/schemas.lock.json"),
        (("schema", "new"), "Default: made from the name."),
        (("edge", "run"), "Default: the application in pyproject.toml."),
        (("queue", "work"), "Default: BROADCAST_DRIVER."),
    ],
)
def test_defaults_are_part_of_the_help(command, default):
    words = " ".join(shown_help(*command)).replace("│", " ").split()
    assert default in " ".join(words)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("broadcast", "system:alert", "loud", "text"), "'level': 'loud' is not one of 'info'"),
        (("schema", "export", "--format", "yaml"), "'--format': 'yaml' is not one of 'asyncapi'"),
    ],
)
def test_error_about_an_argument_starts_with_its_value(arguments, error):
    result = run(*arguments)
    assert result.exit_code == 2
    assert error in " ".join(result.output.replace("│", " ").split())


def test_unknown_driver_of_a_queue_is_an_error_about_the_option():
    result = run("queue", "stats", "--connection", "nonsense")
    assert result.exit_code == 2
    assert "--connection='nonsense'" in result.output

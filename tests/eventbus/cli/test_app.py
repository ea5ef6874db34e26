"""The assembled command line: how help is shown, and errors about arguments."""

import itertools
import re
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from eventbus.cli.app import all_commands, app

WIDTH = 80


def run(*arguments):
    return CliRunner(env={"COLUMNS": str(WIDTH), "NO_COLOR": "1"}).invoke(app, arguments)


def shown_help(*command):
    lines = run(*command, "--help").stdout.splitlines()
    return [line.strip() for line in lines]


def every_command(commands, path=()):
    for name, command in commands.items():
        yield (*path, name)
        yield from every_command(getattr(command, "commands", {}), (*path, name))


def test_options_and_commands_are_never_cut_at_the_width_of_a_terminal():
    for command in ((), *every_command(all_commands())):
        assert [line for line in shown_help(*command) if re.search(r"… *│$", line)] == [], command


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


def commands_of(*group):
    shown = run(*group, "--help").stdout
    return re.findall(r"^│ ([a-z][a-z:]*) ", shown, re.MULTILINE)


def test_commands_are_in_the_order_of_use_in_groups():
    shown = run("--help").stdout
    assert re.findall(r"^╭─ (\w+)", shown, re.MULTILINE) == [
        "Options", "Develop", "Messages", "Operate"
    ]  # fmt: skip
    assert commands_of() == [
        "dev", "init", "schema", "token", "doctor", "broadcast", "subjects", "setup", "edge",
        "queue", "outbox", "revoke", "chaos",
    ]  # fmt: skip
    assert commands_of("queue") == ["work", "stats", "failed", "retry", "forget", "flush"]
    assert commands_of("broadcast")[:3] == ["test", "notify:user", "system:alert"]
    assert commands_of("schema")[0] == "new"
    assert commands_of("subjects")[0] == "list"


def test_list_of_commands_has_the_first_sentence_of_their_help():
    listed = typer.main.get_group(app).commands
    commands = all_commands()
    assert list(listed) == list(commands)
    for name, command in commands.items():
        assert command.help.partition("\n\n")[0] == listed[name].help


@pytest.mark.parametrize("command", [(), ("dev",), ("queue", "retry"), ("edge", "run")])
def test_options_without_a_value_have_no_type_in_the_help(command):
    shown = run(*command, "--help").stdout
    assert "--help" in shown
    assert "bool" not in shown


@pytest.mark.parametrize(
    ("command", "excluded"),
    [
        (("--help",), "eventbus.bus eventbus_edge aiohttp jwt nats redis uvloop watchfiles"),
        (("--version",), "eventbus.bus eventbus_edge aiohttp jwt nats redis uvloop watchfiles"),
        (("token", "issue", "7", "--dev-secret"), "eventbus_edge aiohttp nats redis watchfiles"),
        (("subjects", "--help"), "eventbus_edge aiohttp jwt nats redis watchfiles"),
        (("dev", "--help"), "eventbus_edge aiohttp nats redis"),
    ],
)
def test_command_imports_only_what_it_needs(command, excluded, tmp_path):
    code = (
        "import atexit, sys\n"
        f"sys.argv = ['eventbus', *{command!r}]\n"
        "loaded = lambda: print('loaded', *sys.modules, file=sys.stderr)\n"
        "atexit.register(loaded)\n"
        "from eventbus.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, cwd=tmp_path,
        check=True,
    )  # fmt: skip
    loaded = set(done.stderr.partition("loaded")[2].split())
    assert "eventbus.cli.app" in loaded
    assert loaded & set(excluded.split()) == set()
    if command == ("--help",):
        assert len([name for name in loaded if name.startswith("eventbus")]) <= 8

"""How settings are read: from variables and files, each checked, and secrets never shown."""

import os
import subprocess
import sys
from typing import Annotated

import msgspec
import pytest

from eventbus.config import Settings
from eventbus.environment import (
    MASK,
    UnknownVariable,
    Var,
    load,
    unknown_variables,
    variables,
)
from eventbus.errors import ConfigError


def test_secret_may_be_in_a_file(tmp_path):
    (tmp_path / "password").write_text(" p4ss\n")
    environ = {"BROADCAST_REDIS_PASSWORD_FILE": str(tmp_path / "password")}
    assert Settings.from_env(environ) == msgspec.structs.replace(Settings(), redis_password="p4ss")


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff", b"x" * 70_000])
def test_file_without_a_secret_is_refused_naming_the_file(tmp_path, content):
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"BROADCAST_REDIS_PASSWORD_FILE='{path}'") as caught:
        Settings.from_env({"BROADCAST_REDIS_PASSWORD_FILE": str(path)})
    assert "allowed" in str(caught.value)
    assert caught.value.variable == "BROADCAST_REDIS_PASSWORD_FILE"


def test_secret_and_its_file_are_not_both_given(tmp_path):
    (tmp_path / "password").write_text("p4ss")
    both = {
        "BROADCAST_REDIS_PASSWORD": "other",
        "BROADCAST_REDIS_PASSWORD_FILE": str(tmp_path / "password"),
    }
    with pytest.raises(ConfigError, match="both set"):
        Settings.from_env(both)


@pytest.mark.parametrize(
    "name", ["BROADCAST_DRIVER", "BROADCAST_REDIS_PASSWORD", "BROADCAST_HISTORY_SECONDS"]
)
def test_value_that_is_not_utf_8_is_refused_without_quoting_it(name):
    value = os.fsdecode(b"p4ss\xff")
    with pytest.raises(ConfigError, match="is not UTF-8; allowed: ") as caught:
        Settings.from_env({name: value})
    assert caught.value.variable == name
    assert "p4ss" not in str(caught.value)
    assert not isinstance(caught.value.__context__, UnicodeEncodeError)  # it has the value


def test_value_in_code_that_is_not_unicode_is_refused():
    with pytest.raises(ConfigError, match="BROADCAST_LOG_LEVEL"):
        Settings(log_level="\udcff")


def test_only_secrets_are_read_from_files(tmp_path):
    (tmp_path / "host").write_text("elsewhere")
    assert Settings.from_env({"BROADCAST_REDIS_HOST_FILE": str(tmp_path / "host")}) == Settings()


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    flag: Annotated[bool, Var("FLAG", "a flag", "true or false")] = False
    names: Annotated[tuple[str, ...], Var("NAMES", "names", "a list")] = ()
    ports: Annotated[tuple[int, ...], Var("PORTS", "ports", "numbers")] = ()
    pin: Annotated[int, Var("PIN", "a secret", "a number", secret=True)] = 0
    internal: int = 5


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("YES", True), ("on", True),
     ("0", False), ("False", False), ("no", False), ("OFF", False)],
)  # fmt: skip
def test_booleans_are_read_in_words(text, value):
    assert load(Sample, {"FLAG": text}).flag is value


@pytest.mark.parametrize("text", ["2", "y", "truee", "enabled", "-1"])
def test_no_other_word_is_a_boolean(text):
    with pytest.raises(ConfigError, match=r"FLAG=.*true or false"):
        load(Sample, {"FLAG": text})


def test_lists_are_separated_by_commas():
    assert load(Sample, {"NAMES": "a, b ,,c,"}).names == ("a", "b", "c")
    assert load(Sample, {"PORTS": "1,2"}).ports == (1, 2)
    with pytest.raises(ConfigError, match="PORTS='1,x'"):
        load(Sample, {"PORTS": "1,x"})


@pytest.mark.parametrize("text", [",", " , ,"])
def test_list_of_nothing_but_commas_is_refused(text):
    for name in ("NAMES", "PORTS"):
        with pytest.raises(ConfigError, match=f"{name}='{text.strip()}'.*no entries") as caught:
            load(Sample, {name: text})
        assert caught.value.variable == name


def test_secret_never_stands_in_an_error():
    with pytest.raises(ConfigError, match="PIN") as caught:
        load(Sample, {"PIN": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert MASK in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "value", ["redis://u:S3cr3t@h", "nats://u:S3cr3t#1@h", "a,http://S3cr3t@h"]
)
@pytest.mark.parametrize("name", ["FLAG", "NAMES", "PORTS"])
def test_a_url_with_credentials_in_a_variable_that_is_not_a_secret_is_not_quoted(name, value):
    with pytest.raises(
        ConfigError, match=rf"{name}=\*\*\*: the value has a URL with credentials"
    ) as caught:
        load(Sample, {name: value})
    assert "S3cr3t" not in str(caught.value)


def test_field_without_a_variable_is_not_read_from_the_environment():
    assert load(Sample, {"internal": "9", "INTERNAL": "9"}).internal == 5
    assert "internal" not in [variable.field for variable in variables(Sample)]


def test_misspelt_variable_is_found_with_the_one_that_is_meant():
    environ = {"BROADCAST_DRIVR": "log", "NATS_ULR": "nats://h", "BROADCAST_COLOUR": "red"}
    assert unknown_variables((Settings,), environ) == [
        UnknownVariable("BROADCAST_COLOUR", ""),
        UnknownVariable("BROADCAST_DRIVR", "BROADCAST_DRIVER"),
        UnknownVariable("NATS_ULR", "NATS_URL"),
    ]


def test_variables_of_other_programs_and_of_files_with_secrets_are_not_reported():
    environ = {
        "NATS_CONTEXT": "prod",
        "BROADCAST_DRIVER": "log",
        "BROADCAST_REDIS_PASSWORD_FILE": "/run/secrets/redis",
        "BROADCAT_DRIVER": "log",
        "PATH": "/bin",
    }
    assert unknown_variables((Settings,), environ) == []


def test_importing_the_library_reads_no_environment():
    code = (
        "import os\n"
        "class Closed(dict):\n"
        "    def get(self, *a): raise SystemExit(f'read {a}')\n"
        "    __getitem__ = __contains__ = get\n"
        "import msgspec, uuid_utils, importlib.metadata, asyncio, logging\n"
        "os.environ = Closed()\n"
        "import eventbus\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert done.returncode == 0

import subprocess
from pathlib import Path

import nats
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eventbus.errors import ServerError
from eventbus.server import NatsServer, find_binary
from eventbus.server.configuration import configuration

NASTY = [
    "é", "日本", "😀", "a b", "", " ", '"', "'", "\"'", "\\", "\\x41", "\\u00e9", "$HOME", "$",
    "a\nb", "a\rb", "a\tb", "\x00", "\x7f", "#", "//", "{", "}", "[", "]", "(", ")", "\n)\n", ",",
    "=", ":", ";", "true", "off", "12", "1k", "1.5", "127.0.0.1", "2024-01-01T00:00:00Z", "${x}",
    "\u2028", "\ufeff", "\x85", "include x", "-1",
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(NASTY)


def check(tmp_path: Path, text: str) -> None:
    """Raises CalledProcessError if nats-server cannot read the configuration."""
    file = tmp_path / "checked.conf"
    file.write_text(text, encoding="utf-8")
    subprocess.run([find_binary(), "-t", "-c", file], check=True, capture_output=True)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=texts, user=texts, password=texts, folder=texts)
def test_server_accepts_any_text_in_names_folders_and_credentials(
    tmp_path, name, user, password, folder
):
    check(
        tmp_path,
        configuration(
            {
                "server_name": f"n{name}".replace(" ", "_"),  # it refuses spaces in a name
                "jetstream": {"store_dir": f"/{folder}"},
                "authorization": {"users": [{"user": f"u{user}", "password": f"p{password}"}]},
            }
        ),
    )


async def test_server_reads_the_very_text_that_was_written():
    users = [
        {"user": f"u{number}{text}", "password": f"p{text}"} for number, text in enumerate(NASTY)
    ]
    async with NatsServer(config={"authorization": {"users": users}}) as server:
        for user in users:
            nc = await nats.connect(server.url, **user, allow_reconnect=False)
            await nc.close()


def test_numbers_booleans_lists_and_mappings_are_read(tmp_path):
    check(
        tmp_path,
        configuration(
            {
                "max_payload": 2**20,
                "debug": False,
                "write_deadline": "2s",
                "accounts": {"A": {"mappings": {"a.*": [{"dest": "b.$1", "weight": 100}]}}},
                "ping_max": 2,
            }
        ),
    )
    assert configuration({"a": 1e-7, "b": 1e20, "c": True, "d": [1, "1"]}) == (
        '"a": 0.000000\n"b": 100000000000000000000.000000\n"c": true\n"d": [1, "1"]\n'
    )


@pytest.mark.parametrize(
    "value", [None, b"x", 2**63, float("nan"), float("inf"), object(), "\ud800"]
)
def test_value_that_the_language_does_not_know_is_refused(value):
    with pytest.raises(ServerError, match="nats-server"):
        configuration({"a": [value]})


@pytest.mark.parametrize("key", ["", "\"'", "a\nb", 1])
def test_key_that_the_language_does_not_know_is_refused(key):
    with pytest.raises(ServerError, match="key"):
        configuration({key: 1})


def test_surrogates_stand_for_the_bytes_of_a_file_name():
    assert configuration({"a": "\udcff"}) == '"a": "\\xff"\n'

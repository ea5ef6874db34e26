"""Settings: every bad value stops the start, with a message that a person can act on."""

import io

import msgspec
import pytest
from rich.console import Console

from eventbus.config import Settings
from eventbus.environment import variables
from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings


def test_defaults_hold_without_any_variable():
    assert Settings.from_env({}) == Settings()
    assert Settings().driver == "nats"
    assert Settings().namespace == "eb"
    assert (Settings().history_messages, Settings().history_seconds) == (100, 600)


def test_empty_variable_counts_as_not_set():
    environ = {variable.name: "  " for variable in variables(Settings)}
    assert Settings.from_env(environ) == Settings()


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("BROADCAST_CHANNELS_PREFIX", "mine")
    assert Settings.from_env().namespace == "mine"
    assert Settings.from_env({}).namespace == "eb"


@pytest.mark.parametrize("struct", [Settings, EdgeSettings])
def test_settings_show_no_secret(struct):
    secrets = {variable.field for variable in variables(struct) if variable.secret}
    settings = struct(**dict.fromkeys(secrets, "S3cr3t"))
    console = Console(file=io.StringIO(), width=1000)
    console.print(settings)
    for shown in (repr(settings), str(settings), f"{settings}", console.file.getvalue()):
        assert "S3cr3t" not in shown
        assert shown.count("***") == len(secrets) > 3
        assert "history_messages=100" in shown or "max_channels_per_connection=100" in shown
    assert "nats_url=''" in repr(Settings())


GOOD = {
    "BROADCAST_DRIVER": ("memory", "driver", "memory"),
    "BROADCAST_ENVIRONMENT": ("production", "environment", "production"),
    "BROADCAST_CHANNELS_PREFIX": ("my-app_1", "namespace", "my-app_1"),
    "NATS_URL": ("nats://a:1,nats://b:2", "nats_url", "nats://a:1,nats://b:2"),
    "NATS_CREDS": ("/x.creds", "nats_creds", "/x.creds"),
    "NATS_NKEY": ("/x.nk", "nats_nkey", "/x.nk"),
    "NATS_CA": ("/ca.pem", "nats_ca", "/ca.pem"),
    "NATS_CERT": ("/cert.pem", "nats_cert", "/cert.pem"),
    "NATS_KEY": ("/key.pem", "nats_key", "/key.pem"),
    "NATS_INBOX_PREFIX": ("_INBOX.edge", "nats_inbox_prefix", "_INBOX.edge"),
    "BROADCAST_NATS_DATA": ("/var/x", "nats_data", "/var/x"),
    "BROADCAST_NATS_PORT": ("0", "nats_port", 0),
    "BROADCAST_CONNECT_TIMEOUT": ("2.5", "connect_timeout", 2.5),
    "BROADCAST_PUBLISH_TIMEOUT": (" 20 ", "publish_timeout", 20.0),
    "BROADCAST_HISTORY_MESSAGES": ("7", "history_messages", 7),
    "BROADCAST_HISTORY_SECONDS": ("0.5", "history_seconds", 0.5),
    "BROADCAST_HISTORY_BYTES": ("1048576", "history_bytes", 1_048_576),
    "BROADCAST_HISTORY_REPLICAS": ("3", "history_replicas", 3),
    "BROADCAST_RETENTION": ("a.>:9/1h b:1/7d", "retention", "a.>:9/1h b:1/7d"),
    "BROADCAST_HISTORY_DURABILITY": ("disk", "history_durability", "disk"),
    "BROADCAST_QUEUE_DURABILITY": ("disk", "queue_durability", "disk"),
    "BROADCAST_QUEUE_LEASE": ("12.5", "queue_lease", 12.5),
    "BROADCAST_QUEUE_NO_LISTENER": ("fail", "queue_no_listener", "fail"),
    "BROADCAST_QUEUE_BYTES": ("2097152", "queue_bytes", 2_097_152),
    "BROADCAST_FAILED_BYTES": ("1048576", "failed_bytes", 1_048_576),
    "BROADCAST_REDIS_ENABLED": ("no", "redis_enabled", False),
    "BROADCAST_REDIS_URL": ("rediss://a:1/2", "redis_url", "rediss://a:1/2"),
    "BROADCAST_REDIS_USERNAME": ("ada", "redis_username", "ada"),
    "BROADCAST_REDIS_TLS": ("yes", "redis_tls", True),
    "BROADCAST_REDIS_TLS_CA": ("/ca.pem", "redis_tls_ca", "/ca.pem"),
    "BROADCAST_REDIS_TLS_CERT": ("/c.pem", "redis_tls_cert", "/c.pem"),
    "BROADCAST_REDIS_TLS_KEY": ("/k.pem", "redis_tls_key", "/k.pem"),
    "BROADCAST_REDIS_CLUSTER": ("on", "redis_cluster", True),
    "BROADCAST_REDIS_SENTINELS": ("a:1, b", "redis_sentinels", ("a:1", "b")),
    "BROADCAST_REDIS_SENTINEL_SERVICE": ("main", "redis_sentinel_service", "main"),
    "BROADCAST_REDIS_SENTINEL_PASSWORD": ("p", "redis_sentinel_password", "p"),
    "BROADCAST_REDIS_WAIT_REPLICAS": ("2", "redis_wait_replicas", 2),
    "BROADCAST_REDIS_HOST": ("redis.internal", "redis_host", "redis.internal"),
    "BROADCAST_REDIS_PORT": ("7000", "redis_port", 7000),
    "BROADCAST_REDIS_PASSWORD": ("p4ss", "redis_password", "p4ss"),
    "BROADCAST_REDIS_DATABASE": ("3", "redis_database", 3),
    "BROADCAST_LOG_PATH": ("/var/log/bus.log", "log_path", "/var/log/bus.log"),
    "BROADCAST_LOG_LEVEL": ("debug", "log_level", "debug"),
    "BROADCAST_LOG_MAX_BYTES": ("0", "log_max_bytes", 0),
    "BROADCAST_LOG_BACKUPS": ("1", "log_backups", 1),
    "BROADCAST_LOG_MASK": ("iban, pin", "log_mask", ("iban", "pin")),
    "NO_COLOR": ("1", "no_color", "1"),
    "BROADCAST_STACK": ("nats,log", "stack", ("nats", "log")),
    "BROADCAST_STACK_REQUIRED": ("nats", "stack_required", ("nats",)),
}


@pytest.mark.parametrize("name", GOOD)
def test_each_variable_has_its_effect_and_no_other(name):
    text, field, value = GOOD[name]
    settings = Settings.from_env({name: text})
    assert getattr(settings, field) == value
    assert settings == msgspec.structs.replace(Settings(), **{field: value})
    assert settings != Settings()


def test_the_table_above_has_every_variable():
    assert {variable.name for variable in variables(Settings)} == set(GOOD)


def test_websocket_is_another_name_of_nats():
    assert Settings.from_env({"BROADCAST_DRIVER": "websocket"}).driver == "nats"


DISK = [
    {"history_durability": "disk"},
    {"queue_durability": "disk"},
    {"retention": "a:1/1h b:1/1h/disk"},
]


@pytest.mark.parametrize("asked", DISK)
def test_any_setting_may_ask_for_disk(asked):
    assert Settings(**asked).durability == "disk"
    for nats in ("nats", "websocket"):
        assert Settings(**asked, driver="stack", stack=("redis", nats)).durability == "disk"
    assert Settings().durability == "process"


@pytest.mark.parametrize("asked", DISK)
def test_driver_without_a_disk_may_stand_in_for_nats_in_tests(asked):
    assert msgspec.structs.replace(Settings(**asked), driver="memory").durability == "disk"


@pytest.mark.parametrize("asked", DISK)
@pytest.mark.parametrize("driver", ["redis", "stack"])
def test_driver_that_cannot_promise_disk_is_refused(asked, driver):
    with pytest.raises(ConfigError, match="only the driver nats has the durability disk") as caught:
        Settings(**asked, driver=driver, stack=("redis", "log"))
    assert caught.value.variable == "BROADCAST_DRIVER"


BAD = [
    ("BROADCAST_CHANNELS_PREFIX", "a.b"),
    ("BROADCAST_CHANNELS_PREFIX", "Eb"),
    ("BROADCAST_CHANNELS_PREFIX", "a b"),
    ("BROADCAST_CHANNELS_PREFIX", "*"),
    ("BROADCAST_CHANNELS_PREFIX", "a" * 33),
    *((name, value) for name in ("BROADCAST_NATS_PORT", "BROADCAST_REDIS_PORT")
      for value in ("-1", "65536", "x", "80.5", "0x50", "80 81", "true")),
    *((name, value)
      for name in ("BROADCAST_CONNECT_TIMEOUT", "BROADCAST_PUBLISH_TIMEOUT",
                   "BROADCAST_HISTORY_SECONDS")
      for value in ("0", "-1", "ten", "1s", "nan", "inf", "-inf", "1e300", "1,5")),
    *((name, value) for name in ("BROADCAST_HISTORY_MESSAGES", "BROADCAST_HISTORY_BYTES")
      for value in ("0", "-5", "many", "1.5", "1_000")),
    *(("BROADCAST_RETENTION", value)
      for value in ("x", "a:1", "a:1/1w", "a:0/1h", "a:1/1h,b:1/1h", "a..b:1/1h", "a:1/1h a:2/1h")),
    *((name, value) for name in ("BROADCAST_HISTORY_DURABILITY", "BROADCAST_QUEUE_DURABILITY")
      for value in ("yes", "Disk", "process disk")),
    *(("BROADCAST_HISTORY_REPLICAS", value) for value in ("0", "2", "7", "three")),
    *(("BROADCAST_REDIS_DATABASE", value) for value in ("-1", "x", "1.5")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_is_refused_naming_variable_value_and_what_is_allowed(name, value):
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({name: value})
    message = str(caught.value)
    assert caught.value.variable == name
    assert f"{name}={value!r}" in message
    assert "allowed" in message


@pytest.mark.parametrize("struct", [Settings, EdgeSettings])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_around_a_url_are_named_without_quoting_it(struct, quote):
    names = [each.name for each in variables(struct) if each.name.endswith("_URL")]
    assert len(names) >= 2
    for name in names:
        with pytest.raises(ConfigError, match="the value is in quotes") as caught:
            struct.from_env({name: f"{quote}nats://app:S3cr3t@h{quote}"})
        assert name in str(caught.value)
        assert "S3cr3t" not in str(caught.value)


@pytest.mark.parametrize("struct", [Settings, EdgeSettings])
def test_value_of_another_type_in_code_is_refused_naming_field_variable_and_what_is_allowed(struct):
    for variable in variables(struct):
        with pytest.raises(ConfigError) as caught:
            struct(**{variable.field: object()})
        message = str(caught.value)
        assert message.startswith(f"{struct.__name__}({variable.field}=…), {variable.name}=")
        assert variable.allowed in message
        assert caught.value.variable == variable.name
        assert ("<object" in message) is not variable.secret


@pytest.mark.parametrize(
    ("struct", "field", "values"),
    [
        (Settings, "history_bytes", [0, -1, 1.5, "1", True, None, 2**63]),
        (Settings, "history_seconds", [0, -1.0, float("nan"), float("inf"), "1"]),
        (Settings, "publish_timeout", [0.0, float("nan"), 1e9]),
        (Settings, "history_replicas", [0, 2, 7]),
        (Settings, "namespace", ["", "a.b", "A", "a" * 33]),
        (Settings, "retention", ["orders", "a:0/1h", "a:1/1h/1KiB"]),
        (Settings, "nats_port", [-1, 65536]),
        (Settings, "queue_lease", [0.5, 3601]),
        (Settings, "queue_no_listener", ["ignore"]),
        (Settings, "nats_inbox_prefix", ["a.", "*"]),
        (Settings, "stack", ["nats", [1]]),
        (EdgeSettings, "heartbeat", [0, float("nan")]),
        (EdgeSettings, "workers", [0, -1, 1.5]),
        (EdgeSettings, "port", [65536]),
        (EdgeSettings, "drain_time", [-1, float("inf"), float("nan")]),
    ],
)
def test_value_that_the_environment_may_not_have_is_refused_in_code_too(struct, field, values):
    name = next(each.name for each in variables(struct) if each.field == field)
    for value in values:
        with pytest.raises(ConfigError, match=name):
            struct(**{field: value})
        with pytest.raises(ConfigError, match=name):
            msgspec.structs.replace(struct(), **{field: value})


def test_secret_in_code_is_not_in_its_error():
    for field, value in [("redis_password", b"hunter2"), ("log_path", b"redis://u:hunter2@h")]:
        with pytest.raises(ConfigError) as caught:
            Settings(**{field: value})
        assert "hunter2" not in str(caught.value)


def test_list_and_path_in_code_are_accepted(tmp_path):
    settings = Settings(stack=["nats", "log"], nats_data=tmp_path, history_seconds=60)
    assert settings.stack == ("nats", "log")
    assert settings.nats_data == str(tmp_path)
    assert isinstance(settings.history_seconds, float)
